"""Adapters for `lmdb` (py-lmdb): the fastest ordered peer, in the ways that it can be used."""

from __future__ import annotations

import shelve
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from itertools import islice
from time import perf_counter
from typing import Any

from .stores import READ, RELAXED, Face, Store, lacks

_MAP_SIZE = 1 << 36  # address space only


class LmdbTxn(Store):
    """lmdb as its documentation recommends for speed: one long transaction; a transaction per durable put."""

    name = "lmdb_txn"
    family = "lmdb"
    requires = ("lmdb",)
    note = "reads in one read transaction, bulk writes with putmulti in one transaction"
    durable = "a write transaction per put; in mixes a read transaction per get"
    relaxed = "one write transaction, committed once a second; nobody else can write"
    relaxed_safe = True

    def version(self) -> str:
        import lmdb

        return f"{lmdb.__version__}, engine {'.'.join(map(str, lmdb.version()))}"

    def open(self, mode: str) -> None:
        self.mode = mode
        self._open(metasync=True)
        self._txn: Any = None
        if mode == READ:
            self._txn = self.env.begin()
            self.get = self.find = self._txn.get
        elif mode == RELAXED:
            self._begin_relaxed()
        else:
            self.get = self.find = self._get_fresh
            self.put = self._put_durable

    def _open(self, *, metasync: bool) -> None:
        import lmdb

        # The engine is pinned: newer releases of the package hold two whose files differ.
        pin = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}
        self.env = lmdb.open(
            self.path, subdir=False, map_size=_MAP_SIZE, readonly=self.mode == READ, metasync=metasync, **pin
        )

    def _get_fresh(self, key: bytes) -> bytes:
        with self.env.begin() as txn:
            return txn.get(key)  # type: ignore[no-any-return]

    def _put_durable(self, key: bytes, value: bytes) -> None:
        with self.env.begin(write=True) as txn:
            txn.put(key, value)

    def _begin_relaxed(self) -> None:
        txn = self._txn = self.env.begin(write=True)
        deadline = perf_counter() + 1.0

        def renew() -> None:
            nonlocal txn, deadline
            txn.commit()
            txn = self._txn = self.env.begin(write=True)
            deadline = perf_counter() + 1.0

        def get(key: bytes) -> bytes:
            return txn.get(key)  # type: ignore[no-any-return]

        def put(key: bytes, value: bytes) -> None:
            txn.put(key, value)
            if perf_counter() > deadline:
                renew()

        self.get = self.find = get
        self.put, self._renew = put, renew

    def close(self) -> None:
        if self._txn is not None:
            self._txn.commit()
        self._txn = None
        self.env.close()

    def snapshot(self) -> tuple[Any, Callable[[bytes], bytes]]:
        return None, self._txn.get

    def keys(self) -> Iterable[bytes]:
        return self._txn.cursor().iternext(keys=True, values=False)  # type: ignore[no-any-return]

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return self._txn.cursor().iternext()  # type: ignore[no-any-return]

    def range(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        cursor = self._txn.cursor()
        return list(islice(cursor.iternext(), count)) if cursor.set_range(start) else []

    def __len__(self) -> int:
        return int(self._txn.stat()["entries"])

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        with self.env.begin(write=True) as txn:
            txn.cursor().putmulti(puts)
            for key in deletes:
                txn.delete(key)

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        with self.env.begin(write=True) as txn:
            txn.cursor().putmulti(entries, append=in_order)
        return len(entries)

    def flush(self) -> None:
        if self.mode == RELAXED:
            self._renew()
        self.env.sync(True)

    def shelf(self, mode: str) -> MutableMapping[str, Any]:
        self.open(mode)
        return shelve.Shelf(Face(self.get, self.put if mode != READ else _read_only))


class LmdbSorted(LmdbTxn):
    """The same, sorting a bulk load first, as a user who knows LMDB might."""

    name = "lmdb_sort"
    note = "the random load sorted in Python first (timed), then putmulti(append=True)"
    relaxed = ""
    durable = ""
    only = frozenset({"load_random"})

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        return super().load(sorted(entries), deadline, in_order=True)


class LmdbDict(Store):
    """lmdb behind a dict face: a transaction per operation, so that others may write between any two."""

    name = "lmdb_dict"
    family = "lmdb"
    requires = ("lmdb",)
    note = "a transaction per operation behind a dict face; bulk writes as lmdb_txn"
    durable = "a write transaction per put"
    relaxed = "metasync=False: a transaction and one sync per put"
    relaxed_safe = True
    traits = frozenset({"dict_like", "shared"})
    gaps = lacks(snapshot="see lmdb_txn")

    version = LmdbTxn.version
    _open = LmdbTxn._open
    batch = LmdbTxn.batch
    load = LmdbTxn.load

    def open(self, mode: str) -> None:
        self.mode = mode
        self._open(metasync=mode != RELAXED)
        self.face = _Face(self.env)
        self.put = self.face.__setitem__

    @property
    def direct(self) -> bool:
        return True

    def close(self) -> None:
        self.env.close()

    def range(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        with self.env.begin() as txn:
            cursor = txn.cursor()
            return list(islice(cursor.iternext(), count)) if cursor.set_range(start) else []

    def flush(self) -> None:
        self.env.sync(True)


class _Face(MutableMapping[bytes, bytes]):
    """The least that a dict over LMDB needs."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getitem__(self, key: bytes) -> bytes:
        with self._env.begin() as txn:
            value = txn.get(key)
        if value is None:
            raise KeyError(key)
        return value  # type: ignore[no-any-return]

    def get(self, key: bytes, default: Any = None) -> Any:
        with self._env.begin() as txn:
            return txn.get(key, default)

    def __contains__(self, key: object) -> bool:
        with self._env.begin() as txn:
            return txn.get(key) is not None

    def __setitem__(self, key: bytes, value: bytes) -> None:
        with self._env.begin(write=True) as txn:
            txn.put(key, value)

    def __delitem__(self, key: bytes) -> None:
        with self._env.begin(write=True) as txn:
            if not txn.delete(key):
                raise KeyError(key)

    def __iter__(self) -> Iterator[bytes]:
        with self._env.begin() as txn:
            yield from txn.cursor().iternext(keys=True, values=False)

    def keys(self) -> Iterator[bytes]:  # type: ignore[override]
        return iter(self)

    def items(self) -> Iterator[tuple[bytes, bytes]]:  # type: ignore[override]
        with self._env.begin() as txn:
            yield from txn.cursor().iternext()

    def __len__(self) -> int:
        with self._env.begin() as txn:
            return int(txn.stat()["entries"])


def _read_only(key: bytes, value: bytes) -> None:
    raise TypeError("opened to read")


STORES: list[type[Store]] = [LmdbTxn, LmdbSorted, LmdbDict]
