"""Adapters for SQLite used by hand, and for the two packages that put a dict over it."""

from __future__ import annotations

import shelve
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from importlib.metadata import version
from time import perf_counter
from typing import Any

from .stores import DURABLE, READ, RELAXED, Face, Store, lacks

_NO_SNAPSHOT = "has no snapshots"
_TABLE = "CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB NOT NULL)"
_GET = "SELECT v FROM kv WHERE k = ?"
_PUT = "INSERT OR REPLACE INTO kv VALUES (?, ?)"
_DELETE = "DELETE FROM kv WHERE k = ?"


class SqliteWal(Store):
    """The sqlite3 module, used by hand."""

    name = "sqlite_wal"
    family = "sqlite"
    requires = ("sqlite3",)
    note = "WAL, 64 MB page cache; WITHOUT ROWID for values below 200 B; a connection per thread, a lock around writes"
    durable = "autocommit, synchronous=FULL"
    relaxed = "autocommit, synchronous=NORMAL"
    relaxed_safe = True
    traits = frozenset({"shared"})

    def version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    def open(self, mode: str) -> None:
        self.mode = mode
        self._db = self._connect()
        self._turns = threading.Lock()
        if mode != READ:
            self._db.execute(_TABLE + (" WITHOUT ROWID" if self.value_size < 200 else ""))
        self.get, self.find, self.put = self._calls(self._db)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self.mode == DURABLE else 'NORMAL'}")
        db.execute("PRAGMA cache_size = -65536")
        return db

    @staticmethod
    def _calls(db: sqlite3.Connection) -> tuple[Any, Any, Any]:
        execute = db.execute

        def get(key: bytes) -> bytes:
            for (value,) in execute(_GET, (key,)):
                return value  # type: ignore[no-any-return]
            raise KeyError(key)

        def find(key: bytes) -> bytes | None:
            for (value,) in execute(_GET, (key,)):
                return value  # type: ignore[no-any-return]
            return None

        def put(key: bytes, value: bytes) -> None:
            execute(_PUT, (key, value))

        return get, find, put

    def close(self) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.close()

    def snapshot(self) -> tuple[Any, Callable[[bytes], bytes]]:
        self._db.execute("BEGIN")
        return None, self.get

    def keys(self) -> Iterator[bytes]:
        return (key for (key,) in self._db.execute("SELECT k FROM kv"))

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return self._db.execute("SELECT k, v FROM kv")

    def range(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        query = "SELECT k, v FROM kv WHERE k >= ? ORDER BY k LIMIT ?"
        return self._db.execute(query, (start, count)).fetchall()

    def __len__(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM kv").fetchone()[0])

    def thread_put(self) -> tuple[Callable[[bytes, bytes], Any], Callable[[], None]]:
        db, turns = self._connect(), self._turns

        def put(key: bytes, value: bytes) -> None:
            # SQLite itself waits by sleeping, and threads then get much less done together than one does alone.
            with turns:
                db.execute(_PUT, (key, value))

        return put, db.close

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        execute = self._db.execute
        execute("BEGIN IMMEDIATE")
        self._db.executemany(_PUT, puts)
        self._db.executemany(_DELETE, ((key,) for key in deletes))
        execute("COMMIT")

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        self.batch(entries)
        self.flush()
        return len(entries)

    def flush(self) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # syncs log and database

    def shelf(self, mode: str) -> MutableMapping[str, Any]:
        self.open(mode)
        return shelve.Shelf(Face(self.get, self.put))


class SqliteTxn(SqliteWal):
    """The same, its relaxed writes collected in a transaction that is committed once a second."""

    name = "sqlite_txn"
    note = SqliteWal.note + "; relaxed writes share a transaction, committed once a second"
    relaxed = "one transaction a second, synchronous=NORMAL; nobody else can write"
    traits = frozenset()
    only = frozenset({"put_relaxed", "mix_95_relaxed", "mix_50_relaxed", "shelf_put"})

    def open(self, mode: str) -> None:
        super().open(mode)
        if mode == RELAXED:
            self._begin()

    def _begin(self) -> None:
        execute = self._db.execute
        execute("BEGIN IMMEDIATE")
        deadline = perf_counter() + 1.0

        def put(key: bytes, value: bytes) -> None:
            nonlocal deadline
            execute(_PUT, (key, value))
            if perf_counter() > deadline:
                execute("COMMIT")
                execute("BEGIN IMMEDIATE")
                deadline = perf_counter() + 1.0

        self.put = put


class Sqlitedict(Store):
    """sqlitedict: a dict over SQLite that hands every operation to a thread."""

    name = family = "sqlitedict"
    requires = ("sqlitedict",)
    note = "bytes passed through unpickled, except in the shelf rows"
    relaxed = "autocommit=False, commit() at the end; it sets synchronous=OFF, so nothing is synced"
    traits = frozenset({"dict_like", "shared"})
    gaps = lacks(
        snapshot=_NO_SNAPSHOT,
        range="has no order",
        threads="has no durable put",
        processes="has no durable put",
    )

    def version(self) -> str:
        return version("sqlitedict")

    def _open(self, mode: str, **codec: Any) -> None:
        import sqlitedict

        self.mode = mode
        self.face = sqlitedict.SqliteDict(self.path, flag="r" if mode == READ else "c", outer_stack=False, **codec)
        self.put = self.face.__setitem__

    def open(self, mode: str) -> None:
        self._open(mode, encode=_same, decode=_same, encode_key=_same, decode_key=_same)

    def close(self) -> None:
        if self.mode != READ:
            self.face.commit()
        self.face.close()

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        self.face.update(puts)
        for key in deletes:
            del self.face[key]
        self.face.commit()

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        self.face.update(entries)
        self.face.commit()
        return len(entries)

    def flush(self) -> None:
        self.face.commit()

    def shelf(self, mode: str) -> MutableMapping[str, Any]:
        self._open(mode)
        return self.face  # type: ignore[no-any-return]


def _same(data: bytes) -> bytes:
    return data


class Diskcache(Store):
    """diskcache: SQLite in WAL mode, values from 32 KiB in files of their own."""

    name = family = "diskcache"
    requires = ("diskcache",)
    note = "Cache, eviction_policy='none'"
    durable = "sqlite_synchronous=FULL, a transaction per put; values in files of their own are not synced"
    relaxed = "its default: synchronous=NORMAL, a transaction per put"
    relaxed_safe = True
    traits = frozenset({"dict_like", "shared"})
    gaps = lacks(snapshot=_NO_SNAPSHOT, range="orders by insertion only")
    max_entries = 2_000_000

    def version(self) -> str:
        return version("diskcache")

    def open(self, mode: str) -> None:
        import diskcache

        self.mode = mode
        level = 2 if mode == DURABLE else 1
        self.face = diskcache.Cache(
            self.path,
            eviction_policy="none",
            size_limit=1 << 40,
            cull_limit=0,
            sqlite_synchronous=level,
            timeout=60,
        )
        self.put = self.face.__setitem__

    @property
    def direct(self) -> bool:
        return True

    def close(self) -> None:
        self.face.close()

    def keys(self) -> Iterable[bytes]:
        return iter(self.face)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        return ((key, self.face[key]) for key in self.face)

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        face = self.face
        with face.transact():
            for key, value in puts:
                face[key] = value
            for key in deletes:
                del face[key]

    def load_part(self, part: list[tuple[bytes, bytes]]) -> None:
        self.batch(part)

    def thread_put(self) -> tuple[Callable[[bytes, bytes], Any], Callable[[], None]]:
        return self.put, self.face.close  # closes this thread's connection only

    def shelf(self, mode: str) -> MutableMapping[str, Any]:
        self.open(mode)
        return self.face  # type: ignore[no-any-return]


STORES: list[type[Store]] = [SqliteWal, SqliteTxn, Sqlitedict, Diskcache]
