"""The mapping methods of a table on a server, for databases, blocks, snapshots and their tables.

A face knows its table, and passes each operation to `_read` or `_write`, which carry it out with or without a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from ..mapping import Key, Readable, Writable, as_bytes

__all__ = ["KeyRange", "Operation", "ReadableTable", "TableOperations", "WritableTable"]

T = TypeVar("T")

Operation = Callable[["TableOperations", Any], T]
"""What is done to a table on a session: the table may be another view of the one that was asked for."""

_AT_A_TIME = 1000
"""Keys that are looked up by one request."""


class KeyRange(NamedTuple):
    """The keys with `start <= key < stop`, and in which direction they are wanted."""

    start: bytes | None = None
    stop: bytes | None = None
    reverse: bool = False


class TableOperations(Protocol):
    """What can be done to a table on a session with its server. Each operation is atomic."""

    name: str
    entry_max: int
    """Bytes of the largest key and value together."""

    def find(self, session: Any, key: bytes) -> bytes | None:
        """The value of `key`."""

    def has(self, session: Any, key: bytes) -> bool:
        """Whether `key` is there."""

    def find_many(self, session: Any, keys: list[bytes]) -> dict[bytes, bytes]:
        """Those of `keys` that are there, with their values."""

    def count(self, session: Any) -> int:
        """The number of entries."""

    def has_any(self, session: Any) -> bool:
        """Whether there is an entry."""

    def first_of(self, session: Any, keys: KeyRange) -> tuple[bytes, bytes] | None:
        """The first entry of a range."""

    def first_key_of(self, session: Any, keys: KeyRange) -> bytes | None:
        """The first key of a range."""

    def put(self, session: Any, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""

    def delete(self, session: Any, key: bytes) -> bool:
        """Delete `key`; False if it is not there."""

    def pop(self, session: Any, key: bytes) -> bytes | None:
        """Delete `key` and return its value."""

    def pop_end(self, session: Any) -> tuple[bytes, bytes] | None:
        """Delete the last entry and return it."""

    def set_default(self, session: Any, key: bytes, default: bytes) -> bytes:
        """The value of `key`, which is set to `default` if it is not there."""

    def apply(self, session: Any, changes: Mapping[bytes, bytes | None]) -> None:
        """Make many changes as one; None deletes."""

    def clear(self, session: Any) -> None:
        """Delete all entries."""


class ReadableTable(Readable):
    """A mapping of bytes to bytes, in the order of the keys, on a server.

    Each look-up is a round trip to the server, `get_many` one for a thousand keys.

    All methods raise `TypeError` for a key of another type than `Key`, `error` where the server refuses,
    `ConnectionLostError` where it cannot be reached, and `ClosedError` after the end of the database, transaction or
    snapshot.
    """

    __slots__ = ()
    _table: TableOperations

    # What a subclass provides.

    def _read(self, table: TableOperations, operation: Operation[T]) -> T:
        """The result of `operation` on the table, which only reads."""
        raise NotImplementedError

    def _scan(self, table: TableOperations, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        """An iterator over a range of a table: over pairs, or, without `values`, over keys."""
        raise NotImplementedError

    # What follows.

    def _find(self, key: bytes) -> bytes | None:
        return self._read(self._table, lambda table, session: table.find(session, key))

    def __contains__(self, key: object) -> bool:
        """Whether `key` is there. Its value is not fetched."""
        data = as_bytes(key, "key")
        return self._read(self._table, lambda table, session: table.has(session, data))

    def get_many(self, keys: Iterable[Key]) -> dict[bytes, bytes]:
        """A dict of those of `keys` that are there, as bytes, to their values. One round trip for 1,000 keys."""
        wanted = list(dict.fromkeys(as_bytes(key, "key") for key in keys))
        found: dict[bytes, bytes] = {}
        for first in range(0, len(wanted), _AT_A_TIME):
            part = wanted[first : first + _AT_A_TIME]
            found |= self._read(self._table, partial(_found_of, part))
        if not wanted:
            self._check()
        return found

    def __len__(self) -> int:
        """The number of entries. PostgreSQL counts them, which takes longer the more there are."""
        return self._read(self._table, lambda table, session: table.count(session))

    def __bool__(self) -> bool:
        return self._read(self._table, lambda table, session: table.has_any(session))

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        return self._scan(self._table, KeyRange(start, stop, reverse), values=True)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        return self._scan(self._table, KeyRange(start, stop, reverse), values=False)

    def first(self) -> tuple[bytes, bytes]:
        """The entry with the smallest key. Raises `KeyError` if there is none."""
        return self._outermost(reverse=False)

    def last(self) -> tuple[bytes, bytes]:
        """The entry with the greatest key. Raises `KeyError` if there is none."""
        return self._outermost(reverse=True)

    def _outermost(self, *, reverse: bool) -> tuple[bytes, bytes]:
        keys = KeyRange(reverse=reverse)
        entry = self._read(self._table, lambda table, session: table.first_of(session, keys))
        if entry is None:
            raise KeyError("the mapping is empty")
        return entry

    def firstkey(self) -> bytes | None:
        """The smallest key, or None: for code written for `dbm.gnu`."""
        return self._key_from(None)

    def nextkey(self, key: Key) -> bytes | None:
        """The smallest key greater than `key`, or None: for code written for `dbm.gnu`."""
        return self._key_from(as_bytes(key, "key") + b"\0")

    def _key_from(self, start: bytes | None) -> bytes | None:
        keys = KeyRange(start)
        return self._read(self._table, lambda table, session: table.first_key_of(session, keys))


def _found_of(keys: list[bytes], table: TableOperations, session: Any) -> dict[bytes, bytes]:
    return table.find_many(session, keys)


class WritableTable(ReadableTable, Writable):
    """A mapping that can be written. Each method is one atomic change.

    `BusyError` means that others stood in the way for `timeout` seconds, and nothing was written. What a
    `ConnectionLostError` means for a write is told by its attribute `committed`.
    """

    __slots__ = ()

    def _write(self, table: TableOperations, operation: Operation[T]) -> T:
        """The result of `operation` on the table, as one change."""
        raise NotImplementedError

    def _put(self, key: bytes, value: bytes) -> None:
        self._check_size(key, value)
        self._write(self._table, lambda table, session: table.put(session, key, value))

    def _delete(self, key: bytes) -> bool:
        return self._write(self._table, lambda table, session: table.delete(session, key))

    def _pop(self, key: bytes) -> bytes | None:
        return self._write(self._table, lambda table, session: table.pop(session, key))

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        return self._write(self._table, lambda table, session: table.pop_end(session))

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        self._check_size(key, default)
        return self._write(self._table, lambda table, session: table.set_default(session, key, default))

    def _update(self, changes: dict[bytes, bytes]) -> None:
        self._apply(changes)

    def _apply(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Make many changes as one: a dict of keys to values, or to None for keys that are to be deleted."""
        for key, value in changes.items():
            self._check_size(key, value or b"")
        self._write(self._table, lambda table, session: table.apply(session, changes))

    def clear(self) -> None:
        """Delete all entries, as one change."""
        self._write(self._table, lambda table, session: table.clear(session))

    def _check_size(self, key: bytes, value: bytes) -> None:
        size, limit = len(key) + len(value), self._table.entry_max
        if size > limit:
            raise ValueError(f"a key and its value have {size:,} bytes, the limit is {limit:,}")
