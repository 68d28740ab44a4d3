"""Adapters for the log-structured stores: they append, and pay for it when reading or compacting."""

from __future__ import annotations

import shelve
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import partial
from importlib.metadata import version
from itertools import islice
from time import perf_counter
from typing import Any

from .stores import DURABLE, READ, RELAXED, Face, Store, lacks

_ONE_PROCESS = "one process at a time"
_NO_LOCKS = "has no locks"
_CACHE = 64 << 20


class Rocksdict(Store):
    """rocksdict: RocksDB."""

    name = family = "rocksdict"
    requires = ("rocksdict",)
    note = "raw_mode, 64 MB block cache, bloom filters"
    durable = "sync=True"
    relaxed = "its log is written, not synced"
    relaxed_safe = True
    traits = frozenset({"dict_like", "log"})
    gaps = lacks(processes=_ONE_PROCESS, len="has no len")

    def version(self) -> str:
        return version("rocksdict")

    def open(self, mode: str) -> None:
        import rocksdict

        self.mode = mode
        options = rocksdict.Options(raw_mode=True)
        table = rocksdict.BlockBasedOptions()
        table.set_block_cache(rocksdict.Cache(_CACHE))
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
        self.face = rocksdict.Rdict(self.path, options)
        if mode == DURABLE:
            synced = rocksdict.WriteOptions()
            synced.sync = True
            self.face.set_write_options(synced)
        self.put = self.face.__setitem__

    @property
    def direct(self) -> bool:
        return True

    def close(self) -> None:
        self.face.close()

    def snapshot(self) -> tuple[Any, Callable[[bytes], bytes]]:
        snapshot = self.face.snapshot()
        return snapshot, snapshot.__getitem__

    def range(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        return list(islice(self.face.items(from_key=start), count))

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        import rocksdict

        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in puts:
            batch.put(key, value)
        for key in deletes:
            batch.delete(key)
        self.face.write(batch)

    def load_part(self, part: list[tuple[bytes, bytes]]) -> None:
        self.batch(part)

    def flush(self) -> None:
        self.face.flush_wal(True)


class Plyvel(Store):
    """plyvel: LevelDB, a log-structured store in C++ that groups the commits of waiting threads."""

    name = family = "plyvel"
    requires = ("plyvel",)
    note = "64 MB block cache, bloom filters"
    durable = "put(sync=True)"
    relaxed = "its log is written, not synced"
    relaxed_safe = True
    traits = frozenset({"log"})
    gaps = lacks(processes=_ONE_PROCESS, len="has no len")

    def version(self) -> str:
        return version("plyvel")

    def open(self, mode: str) -> None:
        import plyvel

        self.mode = mode
        self.db = plyvel.DB(
            self.path,
            create_if_missing=True,
            lru_cache_size=_CACHE,
            bloom_filter_bits=10,
            write_buffer_size=16 << 20,
        )
        self.get = self.find = self.db.get
        self.put = partial(self.db.put, sync=True) if mode == DURABLE else self.db.put

    def close(self) -> None:
        self.get = self.find = self.put = None  # type: ignore[assignment]
        self.db.close()

    def snapshot(self) -> tuple[Any, Callable[[bytes], bytes]]:
        return None, self.db.snapshot().get

    def keys(self) -> Iterable[bytes]:
        return self.db.iterator(include_value=False)  # type: ignore[no-any-return]

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return self.db.iterator()  # type: ignore[no-any-return]

    def range(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        return list(islice(self.db.iterator(start=start), count))

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        with self.db.write_batch(sync=self.mode == DURABLE) as batch:
            for key, value in puts:
                batch.put(key, value)
            for key in deletes:
                batch.delete(key)

    def load_part(self, part: list[tuple[bytes, bytes]]) -> None:
        self.batch(part)

    def flush(self) -> None:
        self.db.put(b"\0flush", b"", sync=True)  # a synced write syncs the log before it
        self.db.delete(b"\0flush")

    def shelf(self, mode: str) -> MutableMapping[str, Any]:
        self.open(mode)
        return shelve.Shelf(Face(self.get, self.put))


class Semidbm(Store):
    """semidbm: an append-only file and an index kept in memory."""

    name = family = "semidbm"
    requires = ("semidbm",)
    durable = "db[k] = v; db.sync()"
    note = "as it is; nothing is compacted"
    max_entries = 2_000_000
    relaxed = "written, synced at the end"
    traits = frozenset({"dict_like", "log"})
    gaps = lacks(
        snapshot="has no snapshots",
        range="has no order",
        processes=_NO_LOCKS,
        threads=_NO_LOCKS,
        miss="has no get",
    )

    def version(self) -> str:
        return version("semidbm")

    def open(self, mode: str) -> None:
        import semidbm

        self.mode = mode
        self.face = semidbm.open(self.path, "r" if mode == READ else "c")
        self.put = self._put_synced if mode == DURABLE else self.face.__setitem__

    def close(self) -> None:
        self.face.close()

    def _put_synced(self, key: bytes, value: bytes) -> None:
        self.face[key] = value
        self.face.sync()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        face = self.face
        return ((key, face[key]) for key in face.keys())  # noqa: SIM118 - it cannot be iterated

    def __len__(self) -> int:
        return len(self.face.keys())

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        for key, value in puts:
            self.face[key] = value
        for key in deletes:
            del self.face[key]
        self.face.sync()

    def flush(self) -> None:
        self.face.sync()


class Zodb(Store):
    """ZODB with an OOBTree: Python objects in a log-structured file, cached as objects."""

    name = family = "zodb"
    requires = ("ZODB", "BTrees.OOBTree")
    note = "FileStorage, never packed, an OOBTree, cache of 100,000 objects (buckets); a connection per thread"
    durable = "transaction.commit() per put"
    relaxed = "one commit a second, which syncs"
    relaxed_safe = True
    traits = frozenset({"dict_like", "log"})
    gaps = lacks(processes="one process at a time without a server", big="has another interface for them, blobs")
    max_entries = 2_000_000

    def version(self) -> str:
        return f"{version('ZODB')}, BTrees {version('BTrees')}"

    def open(self, mode: str) -> None:
        import transaction
        import ZODB
        import ZODB.FileStorage
        from BTrees.OOBTree import OOBTree

        self.mode = mode
        storage = ZODB.FileStorage.FileStorage(self.path, read_only=mode == READ)
        self.db = ZODB.DB(storage, cache_size=100_000)
        self._manager = transaction.TransactionManager(explicit=False)
        connection = self.db.open(self._manager)
        root = connection.root()
        if mode != READ and "tree" not in root:
            root["tree"] = OOBTree()
            self._manager.commit()
        self.face = root["tree"]
        self.put = {DURABLE: self._put_durable, RELAXED: self._put_relaxed()}.get(mode, self.face.__setitem__)

    @property
    def direct(self) -> bool:
        return self.mode not in (DURABLE, RELAXED)

    def close(self) -> None:
        if self.mode != READ:
            self._manager.commit()
        self._manager.abort()
        self.db.close()

    def _put_durable(self, key: bytes, value: bytes) -> None:
        self.face[key] = value
        self._manager.commit()

    def _put_relaxed(self) -> Callable[[bytes, bytes], None]:
        face, commit = self.face, self._manager.commit
        deadline = perf_counter() + 1.0

        def put(key: bytes, value: bytes) -> None:
            nonlocal deadline
            face[key] = value
            if perf_counter() > deadline:
                commit()
                deadline = perf_counter() + 1.0

        return put

    def snapshot(self) -> tuple[Any, Callable[[bytes], bytes]]:
        return self.face, self.face.__getitem__  # every transaction is one

    def range(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        return list(islice(self.face.items(start), count))

    def thread_put(self) -> tuple[Callable[[bytes, bytes], Any], Callable[[], None]]:
        import transaction
        from ZODB.POSException import ConflictError

        manager = transaction.TransactionManager(explicit=False)
        tree = self.db.open(manager).root()["tree"]

        def put(key: bytes, value: bytes) -> None:
            while True:
                try:
                    tree[key] = value
                    manager.commit()
                    return
                except ConflictError:
                    manager.abort()

        return put, manager.abort

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        self.face.update(puts)
        for key in deletes:
            del self.face[key]
        self._manager.commit()

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        for start in range(0, len(entries), 50_000):
            self.face.update(entries[start : start + 50_000])
            self._manager.savepoint(optimistic=True)  # lets objects leave memory
        self._manager.commit()
        return len(entries)

    def flush(self) -> None:
        self._manager.commit()

    def shelf(self, mode: str) -> MutableMapping[str, Any]:
        self.open(mode)
        return ZodbShelf(self.face, self.put)


class ZodbShelf:
    """Objects go into the tree as they are; ZODB pickles them with their bucket and caches them unpickled."""

    def __init__(self, tree: Any, put: Callable[[Any, Any], Any]) -> None:
        self._tree, self._put = tree, put

    def __getitem__(self, key: str) -> Any:
        return self._tree[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._put(key, value)


STORES: list[type[Store]] = [Rocksdict, Plyvel, Semidbm, Zodb]
