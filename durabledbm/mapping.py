"""The methods of a mapping that databases, transactions and snapshots share.

`str` becomes `bytes` here and nowhere else. A subclass defines how to look up one key, scan a range and write; the rest
follows from that.
"""

from __future__ import annotations

import io
from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping, Reversible, ValuesView
from itertools import islice, zip_longest
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ._messages import not_copied
from .streams import InputFile, Source

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

__all__ = [
    "Entries", "Key", "Readable", "Value", "Values", "Writable", "as_bytes", "as_changes", "prefix_range",
]  # fmt: skip

Key = str | bytes | bytearray | memoryview
Value = str | bytes | bytearray | memoryview

COMPLETIONS = 1000
"""Keys that an interactive interpreter is offered: more are no help, and a database may have millions."""

T = TypeVar("T")
_REQUIRED: Any = object()


def as_bytes(data: object, what: str) -> bytes:
    """Return a key or value that a user passed as bytes. `str` is encoded as UTF-8.

    `what` is "key" or "value". Raises `TypeError`, which names it and the wrong type.
    """
    if isinstance(data, bytes):
        return data if type(data) is bytes else bytes(data)
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"{what} must be str, bytes, bytearray or memoryview, not {type(data).__name__}")


def as_changes(other: Any, more: Mapping[str, Any]) -> dict[bytes, bytes]:
    """What `dict.update(other, **more)` would set, as bytes. Raises before anything is written."""
    # What can be gone through twice, if need be: a dict, or pairs that are no iterators.
    if not more and (type(other) is dict or (type(other) in (list, tuple) and {*map(type, other)} <= {tuple, list})):
        try:
            changes: dict[bytes, bytes] = dict(other)
        except (TypeError, ValueError):
            changes = {}  # not hashable, or no pairs
        if changes and {*map(type, changes), *map(type, changes.values())} == {bytes}:
            return changes
    changes = {}
    if isinstance(other, Mapping):
        pairs: Iterable[tuple[object, object]] = other.items()
    elif hasattr(other, "keys"):
        pairs = ((key, other[key]) for key in other.keys())  # noqa: SIM118 - what dict.update does
    else:
        pairs = other
    for key, value in pairs:
        if type(key) is bytes and type(value) is bytes:
            changes[key] = value
        else:
            changes[as_bytes(key, "key")] = as_bytes(value, "value")
    for name, value in more.items():
        changes[name.encode()] = as_bytes(value, "value")
    return changes


def prefix_range(prefix: bytes) -> tuple[bytes, bytes | None]:
    """The range of keys that begin with `prefix`: its first key, and the first key behind it (None: there is no limit).
    """
    stem = prefix.rstrip(b"\xff")
    return prefix, stem[:-1] + bytes([stem[-1] + 1]) if stem else None


class Entries(ItemsView[bytes, bytes]):
    """The lazy view that `items()` returns. Each iteration shows the state at its start."""

    _mapping: Readable

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping.range()

    def __reversed__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping.range(reverse=True)


class Values(ValuesView[bytes]):
    """The lazy view that `values()` returns. Each iteration shows the state at its start."""

    _mapping: Readable

    def __iter__(self) -> Iterator[bytes]:
        return map(itemgetter(1), self._mapping.range())

    def __reversed__(self) -> Iterator[bytes]:
        return map(itemgetter(1), self._mapping.range(reverse=True))

    def __contains__(self, value: object) -> bool:
        return any(value == other for other in self)


class Readable(Reversible[bytes], Mapping[Any, bytes]):
    """A read-only mapping of bytes to bytes, ordered by key.

    A look-up in a database sees every commit that was acknowledged before the look-up began, by any thread or process.
    In a transaction it also sees the transaction's own writes; in a snapshot it sees the instant of the snapshot. An
    iterator shows one complete state: that of the call that made it.

    Every method raises `TypeError` for a key that is not a `Key`, `CorruptionError` if the file is damaged, `error` if
    it cannot be read, and `ClosedError` once the database, transaction or snapshot has ended.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        raise not_copied(self)

    def _ipython_key_completions_(self) -> list[str | bytes]:
        """The first keys, for completing `db["`. Keys that are UTF-8 come as str, as one types them."""
        return [_typed(key) for key in islice(self._keys(None, None, False), COMPLETIONS)]

    # What a subclass provides. Keys are bytes already.

    def _check(self) -> None:
        """Raise if it is closed."""

    def _find(self, key: bytes) -> bytes | None:
        raise NotImplementedError

    def _has(self, key: bytes) -> bool:
        """Whether `key` exists, without reading a large value."""
        return self._find(key) is not None

    def _value_reader(self, key: bytes) -> io.BufferedReader | None:
        """A reader of the value of `key`; None if it does not exist."""
        value = self._find(key)
        return None if value is None else io.BufferedReader(io.BytesIO(value))

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """The entries of the state at this call, not at the first `next`."""
        raise NotImplementedError

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        raise NotImplementedError

    def _parted_items(self) -> Iterator[tuple[bytes, Any]]:
        """All entries. A file stands for a value that need not be in memory as a whole."""
        return self._items(None, None, False)

    # Look-ups

    def __getitem__(self, key: Key) -> bytes:
        """The value of `key`. Raises `KeyError` with the key as it was passed."""
        value = self._find(key if type(key) is bytes else as_bytes(key, "key"))
        if value is None:
            raise KeyError(key)
        return value

    @overload
    def get(self, key: Key) -> bytes | None: ...
    @overload
    def get(self, key: Key, default: bytes | T) -> bytes | T: ...
    def get(self, key: Key, default: Any = None) -> Any:
        """The value of `key`, or `default` if there is none."""
        value = self._find(key if type(key) is bytes else as_bytes(key, "key"))
        return default if value is None else value

    def get_many(self, keys: Iterable[Key]) -> dict[bytes, bytes]:
        """A dict of those of `keys` that exist, as bytes, to their values."""
        found = {}
        for key in keys:
            data = as_bytes(key, "key")
            value = self._find(data)
            if value is not None:
                found[data] = value
        if not found:
            self._check()  # perhaps nothing was asked for
        return found

    def __contains__(self, key: object) -> bool:
        """Whether `key` exists. A large value is not read."""
        return self._has(key if type(key) is bytes else as_bytes(key, "key"))

    def __bool__(self) -> bool:
        return len(self) > 0

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a mapping with the same entries. Its keys must be bytes to be equal."""
        if not isinstance(other, Mapping):
            return NotImplemented
        if len(self) != len(other):
            return False
        if isinstance(other, Readable):
            return all(mine == theirs for mine, theirs in zip_longest(self.range(), other.range()))
        if isinstance(other, dict):  # asked in a way that lets no defaultdict add what it has not
            return all(dict.get(other, key, _REQUIRED) == value for key, value in self.range())
        mine = self.get
        return all(isinstance(key, bytes) and mine(key, _REQUIRED) == value for key, value in other.items())

    def open_value(self, key: Key) -> io.BufferedReader:
        """The value of `key` as a file that is open for reading bytes, and can be sought in.

        It shows the value as it is at this call, whatever is written later. At most a few hundred kilobytes of it are
        in memory, and what is read is verified first. The pages of the value are kept until the file is closed or
        dropped, so use it in a `with` statement. After the end of the database, transaction or snapshot its methods
        raise `ClosedError`. Raises `KeyError` with the key as it was passed.
        """
        reader = self._value_reader(as_bytes(key, "key"))
        if reader is None:
            raise KeyError(key)
        return reader

    # Order

    def __iter__(self) -> Iterator[bytes]:
        """The keys, ascending and lazily. The iterator does not see later writes."""
        return self._keys(None, None, False)

    def __reversed__(self) -> Iterator[bytes]:
        """The keys, descending and lazily."""
        return self._keys(None, None, True)

    def keys(self) -> list[bytes]:  # type: ignore[override]
        """All keys as a list, as every dbm module returns them. `iter(db)` is lazy."""
        return list(self._keys(None, None, False))

    def items(self) -> Entries:
        """All entries `(key, value)`, lazily. Each iteration shows the state at its start."""
        return Entries(self)

    def values(self) -> Values:
        """All values in key order, lazily."""
        return Values(self)

    def range(
        self, start: Key | None = None, stop: Key | None = None, *, prefix: Key | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries with `start <= key < stop` and, if given, with `prefix`; ascending unless `reverse`.

        Lazy, over the state at this call.
        """
        low = None if start is None else as_bytes(start, "start")
        high = None if stop is None else as_bytes(stop, "stop")
        if prefix is not None:
            first, end = prefix_range(as_bytes(prefix, "prefix"))
            low = first if low is None else max(low, first)
            high = end if high is None else high if end is None else min(high, end)
        return self._items(low, high, reverse)

    def first(self) -> tuple[bytes, bytes]:
        """The entry with the smallest key. Raises `KeyError` if the mapping is empty."""
        return _only(self._items(None, None, False))

    def last(self) -> tuple[bytes, bytes]:
        """The entry with the greatest key. Raises `KeyError` if the mapping is empty."""
        return _only(self._items(None, None, True))

    def firstkey(self) -> bytes | None:
        """The smallest key, or None, as in `dbm.gnu`."""
        return next(self._keys(None, None, False), None)

    def nextkey(self, key: Key) -> bytes | None:
        """The smallest key greater than `key`, or None, as in `dbm.gnu`."""
        return next(self._keys(as_bytes(key, "key") + b"\0", None, False), None)


class Writable(Readable, MutableMapping[Any, bytes]):
    """A mapping of bytes to bytes that can be written.

    Each method is one atomic change: it happens completely or not at all, also across a crash. In a database it is a
    commit; when the call returns, the commit survives what `durability` says. In a transaction it is part of the
    transaction.

    Every method raises `TypeError` for keys and values of other types, `ReadOnlyError` on a handle with flag "r", and
    `BusyError` if another writer held the file for longer than `timeout`; nothing is written then. Every method raises
    `error` if writing or syncing fails: earlier acknowledged writes are safe, and whether this change took place is
    known when the file is opened again.
    """

    __slots__ = ()

    # What a subclass provides. Each is one atomic change.

    def _put(self, key: bytes, value: bytes) -> None:
        raise NotImplementedError

    def _delete(self, key: bytes) -> bool:
        """Delete `key`. False if it does not exist."""
        raise NotImplementedError

    def _pop(self, key: bytes) -> bytes | None:
        """Delete `key` and return its value, or None if it does not exist."""
        raise NotImplementedError

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        """Delete the last entry and return it, or None if there is none."""
        raise NotImplementedError

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        raise NotImplementedError

    def _update(self, changes: dict[bytes, bytes]) -> None:
        raise NotImplementedError

    def _writable(self) -> bool:
        raise NotImplementedError

    def __setitem__(self, key: Key, value: Value) -> None:
        """Set `key` to `value`. A key must be shorter than 2 GiB (`ValueError`)."""
        self._put(
            key if type(key) is bytes else as_bytes(key, "key"),
            value if type(value) is bytes else as_bytes(value, "value"),
        )

    def put_stream(self, key: Key, file: InputFile, *, size: int | None = None) -> None:
        """Set the value of `key` to what `file`, an object with a method `read(size)`, gives up to its end.

        With `size`, exactly so many bytes are read, and no more. The value is written as it is read, so it is never in
        memory as a whole; nothing shows it before it is complete. If the file raises, that is raised and the old value
        stays. Up to 4 MiB are read first. If that is not all, the rest is read as part of a transaction, which other
        writers have to wait for: what a file uses of this database meanwhile belongs to it, and a slow source is better
        copied to a temporary file first.

        Raises `ValueError` if the file ends before `size` bytes, and `TypeError` if it does not read bytes.
        """
        data = as_bytes(key, "key")
        self._put_stream(data, Source(file, size, data))

    def _put_stream(self, key: bytes, source: Source) -> None:
        """Where the value must be in memory as a whole."""
        self._put(key, b"".join(source.parts()))

    def __delitem__(self, key: Key) -> None:
        """Delete `key`. Raises `KeyError` if it does not exist."""
        if not self._delete(as_bytes(key, "key")):
            raise KeyError(key)

    def setdefault(self, key: Key, default: Value = _REQUIRED) -> bytes:
        """The value of `key`. If there is none, set it to `default` first. Returns the stored bytes."""
        data = as_bytes(key, "key")
        value = self._find(data)
        if value is not None:
            return value
        if default is _REQUIRED:
            default = None  # type: ignore[assignment]
        return self._set_default(data, as_bytes(default, "value"))

    @overload
    def pop(self, key: Key) -> bytes: ...
    @overload
    def pop(self, key: Key, default: bytes | T) -> bytes | T: ...
    def pop(self, key: Key, default: Any = _REQUIRED) -> Any:
        """Delete `key` and return its value. If it does not exist, return `default` or raise `KeyError`."""
        data = as_bytes(key, "key")
        if default is not _REQUIRED and not self._writable() and not self._has(data):
            return default
        value = self._pop(data)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[bytes, bytes]:
        """Delete the entry with the greatest key and return it. Raises `KeyError` if the mapping is empty."""
        entry = self._pop_end()
        if entry is None:
            raise KeyError("popitem(): the mapping is empty")
        return entry

    @overload
    def update(self, other: SupportsKeysAndGetItem[Any, Any], /, **more: Value) -> None: ...
    @overload
    def update(self, other: Iterable[tuple[Any, Any]] = (), /, **more: Value) -> None: ...
    def update(self, other: Any = (), /, **more: Value) -> None:
        """Set any number of entries in one atomic change, from a mapping or from `(key, value)` pairs."""
        changes = as_changes(other, more)
        if changes:
            self._update(changes)
        else:
            self._check()


def _typed(key: bytes) -> str | bytes:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def _only(items: Iterator[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    for entry in items:
        return entry
    raise KeyError("the mapping is empty")
