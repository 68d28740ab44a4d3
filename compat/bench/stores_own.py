"""Adapters for durabledbm itself, each used as its reference tells a user to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from itertools import islice
from types import MappingProxyType
from typing import Any

from .stores import DURABLE, LOAD, READ, Store


class Durabledbm(Store):
    """durabledbm with the defaults of `open`."""

    name = family = "durabledbm"
    requires = ("durabledbm",)
    note = "defaults (64 MB cache); reads through db[k]"
    durable = 'durability="full": db[k] = v'
    relaxed = 'durability="interval" (1 s)'
    relaxed_safe = True
    traits = frozenset({"dict_like", "shared", "own"})
    options: Mapping[str, Any] = MappingProxyType({})
    relaxed_durability = "interval"

    def version(self) -> str:
        import durabledbm

        assert durabledbm.open  # the package may be importable before it can do anything
        return str(durabledbm.__version__)

    def open(self, mode: str) -> None:
        import durabledbm

        self._begin(mode, durabledbm.open)

    def _begin(self, mode: str, opener: Callable[..., Any]) -> None:
        self.mode = mode
        durability = "full" if mode in (READ, LOAD, DURABLE) else self.relaxed_durability
        flag = "r" if mode == READ else "c"
        self.face = opener(self.path, flag, durability=durability, **self.options)
        self.put = self.face.__setitem__
        self._snapshot: Any = None

    @property
    def direct(self) -> bool:
        return True

    def close(self) -> None:
        if self._snapshot is not None:
            self._snapshot.__exit__(None, None, None)
            self._snapshot = None
        self.face.close()

    def snapshot(self) -> tuple[Any, Callable[[bytes], bytes]]:
        self._snapshot = self.face.snapshot()
        view = self._snapshot.__enter__()
        return view, view.__getitem__

    def keys(self) -> Iterable[bytes]:
        return iter(self.face)

    def range(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        return list(islice(self.face.range(start), count))

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        deletes = list(deletes)
        if not deletes:
            self.face.update(puts)
            return
        with self.face.transaction() as tx:
            tx.update(puts)
            for key in deletes:
                del tx[key]

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        self.face.update(entries)
        return len(entries)

    def flush(self) -> None:
        self.face.sync()

    def shelf(self, mode: str) -> MutableMapping[str, Any]:
        self._begin(mode, self._open_shelf)
        return self.face  # type: ignore[no-any-return]

    @staticmethod
    def _open_shelf(path: str, flag: str, **options: Any) -> Any:
        import durabledbm.shelve

        return durabledbm.shelve.open(path, flag, **options)


class DurabledbmBigCache(Durabledbm):
    """The same with a cache that holds everything."""

    name = "durabledbm_bigcache"
    note = "cache_size of 8 GiB, so that everything stays in memory"
    options = MappingProxyType({"cache_size": 8 << 30})
    only = frozenset({
        "get_small", "get_large", "get_wide", "get_zipf", "miss_in", "miss_get", "snap_large", "snap_zipf",
        "scan_keys", "scan_items", "range_100", "mix_95_durable", "mix_50_durable", "mix_95_relaxed",
        "mix_50_relaxed", "update_1000",
    })  # fmt: skip


class DurabledbmProcess(Durabledbm):
    """The same with the durability that survives the death of the process, not of the machine."""

    name = "durabledbm_process"
    note = 'relaxed rows with durability="process"'
    relaxed = 'durability="process": written per put, synced once a second'
    relaxed_durability = "process"
    only = frozenset({"put_relaxed", "mix_95_relaxed", "mix_50_relaxed", "shelf_put"})


STORES: list[type[Store]] = [Durabledbm, DurabledbmBigCache, DurabledbmProcess]
