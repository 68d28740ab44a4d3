"""Tables of a sharded database: each shard has a part of each table. Keys are placed as those of the main table are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from .._messages import read_only
from ..mapping import Key, Writable, as_bytes
from ..table import Table, checked_name
from .manifest import place
from .views import MergedIterator, ShardedSnapshot, ShardedTableSnapshot, ShardTransaction

__all__ = ["ShardedTable"]


class Owner(Protocol):
    """What is used of a sharded database."""

    path: str

    @property
    def closed(self) -> bool: ...

    @property
    def readonly(self) -> bool: ...

    def transaction(self, key: bytes) -> ShardTransaction: ...

    def snapshot(self) -> ShardedSnapshot: ...

    def sync(self) -> None: ...

    def _check(self) -> None: ...

    def _unflushed(self) -> bool: ...

    def _tables(self, name: str) -> list[Table]:
        """The parts of a table."""



class ShardedTable(Writable):
    """A dict of bytes to bytes, ordered by key: one table. Made by `ShardedDatabase.table()`.

    Single writes are atomic; `update()` and `clear()` are one commit per shard.
    """

    __slots__ = ("_owner", "_parts", "name")

    def __init__(self, owner: Owner, name: str) -> None:
        self._owner = owner
        self.name = checked_name(name)
        """The name of the table."""
        self._parts = owner._tables(self.name)

    @property
    def path(self) -> str:
        """The name of the directory."""
        return self._owner.path

    def _part(self, key: bytes) -> Table:
        return self._parts[place(key, len(self._parts))]

    def _check(self) -> None:
        self._owner._check()

    def _find(self, key: bytes) -> bytes | None:
        return self._part(key)._find(key)

    def _has(self, key: bytes) -> bool:
        return self._part(key)._has(key)

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        parts = [part._items(start, stop, reverse) for part in self._parts]
        return MergedIterator(parts, self._owner, reverse=reverse)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        parts = [part._keys(start, stop, reverse) for part in self._parts]
        return MergedIterator(parts, self._owner, reverse=reverse)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def _writable(self) -> bool:
        return not self._owner.readonly

    def _put(self, key: bytes, value: bytes) -> None:
        self._part(key)._put(key, value)

    def _delete(self, key: bytes) -> bool:
        return self._part(key)._delete(key)

    def _pop(self, key: bytes) -> bytes | None:
        return self._part(key)._pop(key)

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        return self._part(key)._set_default(key, default)

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        if not self._writable():
            raise read_only(self.path)
        while (key := next(self._keys(None, None, True), None)) is not None:
            with self._owner.transaction(key):
                part = self._part(key)
                if next(part._keys(None, None, True), None) == key:
                    return part._pop_end()
        return None

    def _update(self, changes: dict[bytes, bytes]) -> None:
        parts: dict[int, dict[bytes, bytes]] = {}
        for key, value in changes.items():
            parts.setdefault(place(key, len(self._parts)), {})[key] = value
        for number, part in parts.items():
            self._parts[number]._update(part)

    def clear(self) -> None:
        """Delete all entries, in one atomic commit per shard. The table stays."""
        for part in self._parts:
            part.clear()

    def transaction(self, key: Key) -> ShardTransaction:
        """A transaction of the shard that holds `key` (see `ShardedDatabase.transaction`)."""
        return self._owner.transaction(as_bytes(key, "key"))

    def snapshot(self) -> ShardedTableSnapshot:
        """This table in snapshots of all shards, taken one after another."""
        return self._owner.snapshot().table(self.name)

    def sync(self) -> None:
        """Return when everything written through the database is on the disk."""
        self._owner.sync()

    def _unflushed(self) -> bool:
        return self._owner._unflushed()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._owner!r}>"
