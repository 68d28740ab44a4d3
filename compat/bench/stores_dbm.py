"""Adapters for the dbm modules of the standard library, one of which `shelve` uses."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import perf_counter, sleep
from typing import Any

from .stores import DURABLE, LOAD, READ, Store, lacks

_NO_SNAPSHOT = "has no snapshots"
_NO_ORDER = "has no order"
_NOT_DURABLE = "has no durable put"


class DbmGnu(Store):
    """dbm.gnu: a C hash table; a writer keeps every other process out, readers keep writers out."""

    name = family = "dbm.gnu"
    requires = ("dbm.gnu",)
    note = "dbm.gnu, flag r to read; writes with flag f (no sync) and sync() where stated"
    durable = "db[k] = v; db.sync()"
    relaxed = "flag f, one sync() at the end"
    traits = frozenset({"dict_like"})
    gaps = lacks(snapshot=_NO_SNAPSHOT, range=_NO_ORDER, processes="a writer locks all others out")

    def version(self) -> str:
        import _gdbm

        return "gdbm " + ".".join(map(str, _gdbm._GDBM_VERSION))

    def open(self, mode: str) -> None:
        import dbm.gnu

        self.mode = mode
        self.face = dbm.gnu.open(self.path, {READ: "r", LOAD: "nf"}.get(mode, "cf"))  # noqa: SIM115
        self.put = self._put_synced if mode == DURABLE else self.face.__setitem__

    def close(self) -> None:
        self.face.close()

    def _put_synced(self, key: bytes, value: bytes) -> None:
        self.face[key] = value
        self.face.sync()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        face = self.face
        return ((key, face[key]) for key in face.keys())  # noqa: SIM118 - it cannot be iterated

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        face = self.face
        for key, value in puts:
            face[key] = value
        for key in deletes:
            del face[key]
        if self.mode == DURABLE:
            face.sync()

    def flush(self) -> None:
        self.face.sync()


class DbmNdbm(DbmGnu):
    """dbm.ndbm over Berkeley DB."""

    name = family = "dbm.ndbm"
    requires = ("dbm.ndbm",)
    note = "dbm.ndbm, flag r to read"
    durable = ""
    relaxed = "its only mode: nothing is synced, not even by close()"
    gaps = lacks(snapshot=_NO_SNAPSHOT, range=_NO_ORDER, processes="no sync, no locks", threads=_NOT_DURABLE)

    def version(self) -> str:
        import dbm.ndbm

        return str(dbm.ndbm.library)

    def open(self, mode: str) -> None:
        import dbm.ndbm

        self.mode = mode
        self.face = dbm.ndbm.open(self.path, {READ: "r", LOAD: "n"}.get(mode, "c"))  # noqa: SIM115
        self.put = self.face.__setitem__

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        face = self.face
        for key, value in puts:
            face[key] = value
        for key in deletes:
            del face[key]

    def flush(self) -> None:
        pass


class DbmDumb(DbmNdbm):
    """dbm.dumb: a data file and an index kept in memory."""

    name = family = "dbm.dumb"
    requires = ("dbm.dumb",)
    note = "dbm.dumb, flag r to read"
    relaxed = "the index is written at sync() or close(), without a sync of the disk"
    max_entries = 200_000
    gaps = lacks(**DbmNdbm.gaps, cold="keeps its whole index in memory")

    def version(self) -> str:
        return "standard library"

    def open(self, mode: str) -> None:
        import dbm.dumb

        self.mode = mode
        self.face = dbm.dumb.open(self.path, {READ: "r", LOAD: "n"}.get(mode, "c"))  # noqa: SIM115
        self.put = self.face.__setitem__

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return self.face.items()  # type: ignore[no-any-return]

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        done = 0
        feed = iter(entries)
        while perf_counter() < deadline and (part := list(islice(feed, 1000))):
            self.load_part(part)
            done += len(part)
        self.face.sync()
        return done

    def flush(self) -> None:
        self.face.sync()


class DbmSqlite3(Store):
    """dbm.sqlite3, the default of dbm and shelve since Python 3.13: one synced transaction per write."""

    name = family = "dbm.sqlite3"
    requires = ("dbm.sqlite3",)
    note = "as it is: WAL, synchronous=FULL, a transaction per write; a handle per thread, a lock around writes"
    durable = "db[k] = v"
    relaxed = "its only mode is durable"
    relaxed_safe = True
    traits = frozenset({"dict_like", "shared"})
    gaps = lacks(snapshot=_NO_SNAPSHOT, range=_NO_ORDER)

    def version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    def open(self, mode: str) -> None:
        self.mode = mode
        self._turns = threading.Lock()
        self.face = self._open({READ: "r", LOAD: "n"}.get(mode, "c"))
        self.put = self.face.__setitem__

    def _open(self, flag: str) -> Any:
        import dbm.sqlite3

        return dbm.sqlite3.open(self.path, flag)

    @property
    def direct(self) -> bool:
        return True

    def close(self) -> None:
        self.face.close()

    def thread_put(self) -> tuple[Callable[[bytes, bytes], Any], Callable[[], None]]:
        import dbm.sqlite3

        db, turns = self._open("w"), self._turns

        def put(key: bytes, value: bytes) -> None:
            # Other processes may win the file's lock for longer than the 5 s that dbm.sqlite3 waits.
            while True:
                try:
                    with turns:
                        db[key] = value
                    return
                except dbm.sqlite3.error as exc:
                    if "locked" not in str(exc):
                        raise
                    sleep(0.001)

        return put, db.close

    def keys(self) -> Iterable[bytes]:
        return iter(self.face)

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        self.face.update(puts)
        for key in deletes:
            del self.face[key]

    def prepare(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        # Through dbm.sqlite3 itself a million entries take minutes; its file is an ordinary SQLite file.
        self.open(LOAD)
        self.close()
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            connection.executemany("INSERT INTO Dict (key, value) VALUES (?, ?)", entries)


STORES: list[type[Store]] = [DbmGnu, DbmNdbm, DbmDumb, DbmSqlite3]
