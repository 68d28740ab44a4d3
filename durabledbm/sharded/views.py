"""What a `ShardedDatabase` hands out: transactions, snapshots, statistics and merged iterators."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

from .._engine.catalog import CATALOG, PREFIX_SIZE, TableKey, prefix_of
from ..database import Database
from ..errors import ClosedError, error
from ..maintenance.stats import Stats
from ..mapping import Readable, Writable
from ..snapshot import Snapshot
from ..streams import Source
from ..table import TableSnapshot
from ..transaction import Transaction
from .manifest import place

__all__ = ["MergedIterator", "ShardTransaction", "ShardedSnapshot", "ShardedStats"]

T = TypeVar("T", bytes, tuple[bytes, bytes])
R = TypeVar("R")
S = TypeVar("S", bound="_Snapshots")


class _Closable(Protocol):
    @property
    def closed(self) -> bool: ...


class MergedIterator(Iterator[T]):
    """The items of several sorted iterators in order, until `owner` is closed. Keys are distinct, so values are never
    compared.

    After an error or interrupt the next step raises: the iterator never seems complete when it is not.
    """

    __slots__ = ("_broken", "_items", "_owner")

    def __init__(self, parts: list[Iterator[T]], owner: _Closable, *, reverse: bool) -> None:
        self._items: Iterator[Any] = merge(*parts, reverse=reverse)
        self._owner = owner
        self._broken = False

    def __next__(self) -> T:
        if self._owner.closed:
            raise ClosedError
        if self._broken:
            raise error("an error or an interrupt stopped the iteration: start it again")
        self._broken = True  # until the item is handed out: an interrupt may come anywhere
        item: T | None = next(self._items, None)
        self._broken = False
        if item is None:
            raise StopIteration
        return item


class ShardedStats(NamedTuple):
    """Figures of all shards together; `shards` holds those of each."""

    entries: int
    depth: int
    """Levels of the deepest shard's tree."""
    file_bytes: int
    live_bytes: int
    free_bytes: int
    pinned_bytes: int
    commits: int
    syncs: int
    pages_written: int
    shards: list[Stats]


class ShardTransaction(Transaction):
    """A transaction of one shard. Keys of other shards raise `ValueError`."""

    __slots__ = ("_count", "_number")

    def __init__(self, database: Database, number: int, count: int) -> None:
        super().__init__(database)
        self._number = number
        self._count = count

    def _mine(self, key: bytes) -> bytes:
        if type(key) is TableKey:
            if prefix_of(key) == CATALOG:
                return key
            return TableKey(key[:PREFIX_SIZE] + self._mine(key[PREFIX_SIZE:]))
        if place(key, self._count) != self._number:
            raise ValueError(f"key {key[:40]!r} is in another shard than the one of this transaction")
        return key

    __setitem__ = Writable.__setitem__  # that of `Transaction` does not go through `_put`

    def _find(self, key: bytes, *, whole: bool = True) -> bytes | None:
        return super()._find(self._mine(key), whole=whole)

    def _change_table(self, operation: Callable[..., R], name: str, *arguments: Any) -> R:
        for key in arguments[:1]:
            for each in [key] if isinstance(key, bytes) else key:
                self._mine(each)
        return super()._change_table(operation, name, *arguments)

    def _put(self, key: bytes, value: bytes) -> None:
        super()._put(self._mine(key), value)

    def _value_reader(self, key: bytes) -> io.BufferedReader | None:
        return super()._value_reader(self._mine(key))

    def _put_stream(self, key: bytes, source: Source) -> None:
        super()._put_stream(self._mine(key), source)

    def _update(self, changes: dict[bytes, bytes]) -> None:
        for key in changes:
            self._mine(key)
        super()._update(changes)

    def _pop(self, key: bytes) -> bytes | None:
        return super()._pop(self._mine(key))

    def _delete(self, key: bytes) -> bool:
        return super()._delete(self._mine(key))


class _Snapshots(Readable):
    """One snapshot per shard. A context manager; `close()` ends it."""

    def __init__(self, snapshots: Sequence[Snapshot | TableSnapshot]) -> None:
        self._snapshots = snapshots

    @property
    def closed(self) -> bool:
        """Whether the snapshot has ended."""
        return self._snapshots[0].closed

    @property
    def txids(self) -> list[int]:
        """The commit number that is shown, for each shard."""
        return [snapshot.txid for snapshot in self._snapshots]

    def close(self) -> None:
        """End the snapshot, so that its pages can be reused."""
        for snapshot in self._snapshots:
            snapshot.close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, key: bytes) -> bytes | None:
        return self._snapshots[place(key, len(self._snapshots))]._find(key)

    def _value_reader(self, key: bytes) -> io.BufferedReader | None:
        return self._snapshots[place(key, len(self._snapshots))]._value_reader(key)

    def _has(self, key: bytes) -> bool:
        return self._snapshots[place(key, len(self._snapshots))]._has(key)

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        parts = [part._items(start, stop, reverse) for part in self._snapshots]
        return MergedIterator(parts, self, reverse=reverse)

    def _parted_items(self) -> Iterator[tuple[bytes, Any]]:
        return MergedIterator([part._parted_items() for part in self._snapshots], self, reverse=False)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        parts = [part._keys(start, stop, reverse) for part in self._snapshots]
        return MergedIterator(parts, self, reverse=reverse)

    def __len__(self) -> int:
        return sum(map(len, self._snapshots))


class ShardedTableSnapshot(_Snapshots):
    """One table in the snapshots of all shards. A context manager; `close()` ends them."""


class ShardedSnapshot(_Snapshots):
    """One snapshot per shard. A context manager; `close()` ends it."""

    _snapshots: Sequence[Snapshot]

    def table(self, name: str) -> ShardedTableSnapshot:
        """The table of that name, as it was in each shard."""
        return ShardedTableSnapshot([snapshot.table(name) for snapshot in self._snapshots])

    def tables(self) -> list[str]:
        """The names of the tables that there were, ascending."""
        return sorted({name for snapshot in self._snapshots for name in snapshot.tables()})
