"""What the benchmark asks of a store: the interface of its adapter.

One class per store. An adapter says in words how it is durable and how it is relaxed, which capabilities it
lacks and why, and offers each operation in the idiom that the store's own documentation recommends. What it
must not do: know a workload, or do anything for speed that a user of the store would not do."""

from __future__ import annotations

import importlib
import os
import shelve
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from itertools import islice
from time import perf_counter
from types import MappingProxyType
from typing import Any

READ, LOAD, DURABLE, RELAXED = "read", "load", "durable", "relaxed"
"""How a store is opened: an existing one to read; an empty one to fill; to write with a sync per commit; to
write as
fast as the store can without one."""

CAPABILITIES = (
    "get", "contains", "miss", "snapshot", "cold", "load", "durable", "threads", "processes", "relaxed",
    "mix", "mix_durable", "scan", "range", "len", "churn", "shelf", "big",
)  # fmt: skip

_CHUNK = 1000


class Store:
    """One store. `open` first, then `face` (what is subscripted, if it is a mapping), `get` and `put`."""

    name = ""
    family = ""  # stores of one family read each other's prepared files
    requires: tuple[str, ...] = ()  # what must be importable
    note = ""  # configuration, in words
    durable = ""  # how a single put is made durable, or "" if it cannot be
    relaxed = ""  # the fastest mode
    relaxed_safe = False  # whether power loss in that mode costs only the newest writes
    traits: frozenset[str] = frozenset()  # "dict_like", "shared" (others may write meanwhile), "log", "limit"
    gaps: Mapping[str, str] = MappingProxyType({})  # capabilities it lacks: capability -> reason
    only: frozenset[str] = frozenset()  # if set, it takes part in these workloads only
    max_entries = 1 << 62  # beyond this, preparing or opening takes minutes
    persistent = True  # whether prepared files can be reused by another process

    face: Any = None
    put: Callable[[bytes, bytes], Any]

    def __init__(self, directory: str, value_size: int = 100) -> None:
        self.directory = directory
        self.path = os.path.join(directory, "data")
        self.value_size = value_size
        self.mode = READ

    # -- about

    def import_library(self) -> None:
        """Import what the store needs, so that no timed part does."""
        for name in self.requires:
            importlib.import_module(name)

    def version(self) -> str:
        """The version of the store's library."""
        return ""

    # -- opening

    def open(self, mode: str) -> None:
        """Open in one of the four modes. `LOAD` finds an empty directory, the two to write may."""
        raise NotImplementedError

    def close(self) -> None:
        """Close. What was written before is in the files."""
        raise NotImplementedError

    # -- reading; `get` is used where there is no `face`

    def get(self, key: bytes) -> bytes:
        """The value of a key that exists."""
        return self.face[key]  # type: ignore[no-any-return]

    def find(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        return self.face.get(key)  # type: ignore[no-any-return]

    def snapshot(self) -> tuple[Any, Callable[[bytes], bytes]]:
        """A mapping (or None) and a get within one snapshot, kept until `close`."""
        raise NotImplementedError

    def keys(self) -> Iterable[bytes]:
        return self.face.keys()  # type: ignore[no-any-return]

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return self.face.items()  # type: ignore[no-any-return]

    def range(self, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Up to `count` entries in key order, from the first key not below `start`."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.face)

    # -- writing; `put` is used where `direct` is False

    @property
    def direct(self) -> bool:
        """Whether `face[key] = value` is one put in the mode the store was opened in."""
        return self.face is not None and self.mode != DURABLE

    def thread_put(self) -> tuple[Callable[[bytes, bytes], Any], Callable[[], None]]:
        """For one of several threads: its put, and what it calls when it is done."""
        return self.put, _nothing

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        """Many changes in one commit where the store has one, durable if opened so."""
        raise NotImplementedError

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        """Fill an empty store the fastest way and sync it; return how many went in until `deadline`."""
        done = 0
        feed = iter(entries)
        while perf_counter() < deadline and (part := list(islice(feed, _CHUNK))):
            self.load_part(part)
            done += len(part)
        self.flush()
        return done

    def load_part(self, part: list[tuple[bytes, bytes]]) -> None:
        """One part of a bulk load, where the store has no call that takes everything."""
        face = self.face
        for key, value in part:
            face[key] = value

    def flush(self) -> None:
        """Return when everything written so far is on the disk, as far as the store can do that."""

    def prepare(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Fill an empty store for later rounds. Not timed: any means will do that leaves an ordinary file."""
        self.open(LOAD)
        feed = iter(entries)
        while part := list(islice(feed, 100_000)):
            self.load(part, float("inf"), in_order=False)
        self.close()

    # -- shelf

    def shelf(self, mode: str) -> MutableMapping[str, Any]:
        """A mapping from str to any object: the store's own, or the standard library's over the store."""
        self.open(mode)
        return shelve.Shelf(self.face)

    def close_shelf(self, shelf: MutableMapping[str, Any]) -> None:
        self.close()


def lacks(**reasons: str) -> Mapping[str, str]:
    """The capabilities that a store lacks, and why; for `Store.gaps`."""
    assert reasons.keys() <= set(CAPABILITIES)
    return MappingProxyType(reasons)


def _nothing() -> None:
    pass


class Face(MutableMapping[bytes, bytes]):
    """A dict face over a get and a put, for `shelve`."""

    def __init__(self, get: Callable[[bytes], bytes | None], put: Callable[[bytes, bytes], Any]) -> None:
        self._get, self._put = get, put

    def __getitem__(self, key: bytes) -> bytes:
        value = self._get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._put(key, value)

    def __delitem__(self, key: bytes) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[bytes]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


def sync_tree(directory: str) -> None:
    """Sync every file below a directory."""
    for parent, _, names in os.walk(directory):
        for name in names:
            fd = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def disk_bytes(directory: str) -> int:
    """Bytes allocated to the files below a directory."""
    total = 0
    for parent, _, names in os.walk(directory):
        total += sum(os.stat(os.path.join(parent, name)).st_blocks * 512 for name in names)
    return total


def can(store: type[Store], capability: str) -> str | None:
    """None if the store has the capability, else why not."""
    assert capability in CAPABILITIES, capability
    if capability in store.gaps:
        return store.gaps[capability]
    if capability in ("durable", "mix_durable") and not store.durable:
        return "has no durable put"
    return None
