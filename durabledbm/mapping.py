"""The mapping face: what a database, a transaction and a snapshot have in common as dicts.

`str` becomes `bytes` here and nowhere else. Subclasses say how to find one key, how to scan a range, and how to write;
everything else follows.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping, Reversible, ValuesView
from itertools import islice, zip_longest
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .errors import ReadOnlyError

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

__all__ = [
    "Entries", "Key", "Readable", "Value", "Values", "Writable", "as_bytes", "as_changes", "counted", "not_copied",
    "prefix_range", "represented",
]  # fmt: skip

Key = str | bytes | bytearray | memoryview
Value = str | bytes | bytearray | memoryview

COMPLETIONS = 1000
"""Keys that an interactive interpreter is offered: more are no help, and a database may have millions."""

T = TypeVar("T")
_REQUIRED: Any = object()


def as_bytes(data: object, what: str) -> bytes:
    """`data`, a key or a value as users may pass it, as bytes. `str` is encoded as UTF-8.

    Raises `TypeError`, naming `what` it is and its type.
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
    """The range of keys that begin with `prefix`: from it up to, not including, the next bytes that do not."""
    stem = prefix.rstrip(b"\xff")
    return prefix, stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def represented(thing: object, *parts: str) -> str:
    """What `repr` shows of a handle: its class and `parts`."""
    return f"<{type(thing).__module__}.{type(thing).__qualname__} {', '.join(parts)}>"


def counted(entries: int, *, unflushed: bool) -> str:
    """How many entries a handle's file has, and whether that is all, for `repr`."""
    return f"{entries:,} {'entry' if entries == 1 else 'entries'}{' and unflushed writes' if unflushed else ''}"


def not_copied(thing: object) -> TypeError:
    """The error for `pickle` and `copy`, which would make a second handle of one."""
    return TypeError(
        f"cannot copy or pickle a {type(thing).__name__}: it stands for an open file. "
        "Pass the path on and open the file again; dict() copies the entries"
    )


class Entries(ItemsView[bytes, bytes]):
    """The lazy view that `items()` returns: each iteration is over the state when it starts."""

    _mapping: Readable

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping.range()

    def __reversed__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping.range(reverse=True)


class Values(ValuesView[bytes]):
    """The lazy view that `values()` returns: each iteration is over the state when it starts."""

    _mapping: Readable

    def __iter__(self) -> Iterator[bytes]:
        return map(itemgetter(1), self._mapping.range())

    def __reversed__(self) -> Iterator[bytes]:
        return map(itemgetter(1), self._mapping.range(reverse=True))

    def __contains__(self, value: object) -> bool:
        return any(value == other for other in self)


class Readable(Reversible[bytes], Mapping[Any, bytes]):
    """A read-only mapping of bytes to bytes, in the order of the keys.

    A look-up in a database sees every commit that was acknowledged before it began, by whatever thread or process; in
    a transaction also what was written in it; in a snapshot the instant of the snapshot. An iterator shows one state,
    whole: that of the call that made it.

    All methods raise `TypeError` for a key of another type than `Key`, `CorruptionError` where the file is damaged,
    `error` where it cannot be read, and `ClosedError` after the end of the database, transaction or snapshot.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        raise not_copied(self)

    def _ipython_key_completions_(self) -> list[str | bytes]:
        """The first keys, for completing `db["`: those that are UTF-8 as str, as one types them."""
        return [_typed(key) for key in islice(self._keys(None, None, False), COMPLETIONS)]

    # What a subclass provides. Keys are bytes already.

    def _check(self) -> None:
        """Raise if it has been closed."""

    def _find(self, key: bytes) -> bytes | None:
        raise NotImplementedError

    def _has(self, key: bytes) -> bool:
        """Whether `key` is there, by a shorter way than `_find` where its value need not be read."""
        return self._find(key) is not None

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """Entries of the state as of this call, not of the first `next`."""
        raise NotImplementedError

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        raise NotImplementedError

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
        """The value of `key`, or `default` if it is not there."""
        value = self._find(key if type(key) is bytes else as_bytes(key, "key"))
        return default if value is None else value

    def get_many(self, keys: Iterable[Key]) -> dict[bytes, bytes]:
        """A dict of those of `keys` that are there, as bytes, to their values."""
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
        """Whether `key` is there. Of a large value nothing is read."""
        return self._has(key if type(key) is bytes else as_bytes(key, "key"))

    def __bool__(self) -> bool:
        return len(self) > 0

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a mapping with the same entries; its keys must be bytes to be equal."""
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

    # Order

    def __iter__(self) -> Iterator[bytes]:
        """The keys, ascending, lazily. Writing meanwhile is fine: the iterator does not see it."""
        return self._keys(None, None, False)

    def __reversed__(self) -> Iterator[bytes]:
        """The keys, descending, lazily."""
        return self._keys(None, None, True)

    def keys(self) -> list[bytes]:  # type: ignore[override]
        """All keys, as a list, as every dbm module returns them. `iter(db)` is lazy."""
        return list(self._keys(None, None, False))

    def items(self) -> Entries:
        """All entries `(key, value)`, lazily: each iteration is over the state when it starts."""
        return Entries(self)

    def values(self) -> Values:
        """All values, in the order of their keys, lazily."""
        return Values(self)

    def range(
        self, start: Key | None = None, stop: Key | None = None, *, prefix: Key | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries with `start <= key < stop`, and with `prefix` if given, ascending unless `reverse`.

        Lazy, over the state at the time of this call.
        """
        low = None if start is None else as_bytes(start, "start")
        high = None if stop is None else as_bytes(stop, "stop")
        if prefix is not None:
            first, end = prefix_range(as_bytes(prefix, "prefix"))
            low = first if low is None else max(low, first)
            high = end if high is None else high if end is None else min(high, end)
        return self._items(low, high, reverse)

    def first(self) -> tuple[bytes, bytes]:
        """The entry with the smallest key. Raises `KeyError` if there is none."""
        return _only(self._items(None, None, False))

    def last(self) -> tuple[bytes, bytes]:
        """The entry with the greatest key. Raises `KeyError` if there is none."""
        return _only(self._items(None, None, True))

    def firstkey(self) -> bytes | None:
        """The smallest key, or None: for code written for `dbm.gnu`."""
        return next(self._keys(None, None, False), None)

    def nextkey(self, key: Key) -> bytes | None:
        """The smallest key greater than `key`, or None: for code written for `dbm.gnu`."""
        return next(self._keys(as_bytes(key, "key") + b"\0", None, False), None)


class Writable(Readable, MutableMapping[Any, bytes]):
    """A mapping of bytes to bytes that can be written.

    Each method is one atomic change: all of it is there or nothing, also after a crash. In a database it is a commit,
    which survives what the `durability` says when the call returns; in a transaction it is part of that.

    All methods raise `TypeError` for keys and values of other types, `ReadOnlyError` for a handle with flag "r", and
    `BusyError` if another writer held the file for longer than `timeout`, each with nothing written. They raise
    `error` if writing or syncing fails: what was acknowledged before is safe, and whether this change will be there is
    open until the file is opened again.
    """

    __slots__ = ()

    # What a subclass provides. Each is one atomic change.

    def _put(self, key: bytes, value: bytes) -> None:
        raise NotImplementedError

    def _delete(self, key: bytes) -> bool:
        """Delete `key`; False if it is not there."""
        raise NotImplementedError

    def _pop(self, key: bytes) -> bytes | None:
        """Delete `key` and return its value, or None if it is not there."""
        raise NotImplementedError

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        """Delete the last entry and return it."""
        raise NotImplementedError

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        raise NotImplementedError

    def _update(self, changes: dict[bytes, bytes]) -> None:
        raise NotImplementedError

    def _writable(self) -> bool:
        raise NotImplementedError

    def __setitem__(self, key: Key, value: Value) -> None:
        """Set `key` to `value`. Key and value together must be shorter than 4 GiB (`ValueError`)."""
        self._put(
            key if type(key) is bytes else as_bytes(key, "key"),
            value if type(value) is bytes else as_bytes(value, "value"),
        )

    def __delitem__(self, key: Key) -> None:
        """Delete `key`. Raises `KeyError` if it is not there."""
        if not self._delete(as_bytes(key, "key")):
            raise KeyError(key)

    def setdefault(self, key: Key, default: Value = _REQUIRED) -> bytes:
        """The value of `key`, after setting it to `default` if it is not there. Returns the stored bytes."""
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
        """Delete `key` and return its value; if it is not there, return `default` or raise `KeyError`."""
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
        """Delete the entry with the greatest key and return it. Raises `KeyError` if there is none."""
        entry = self._pop_end()
        if entry is None:
            raise KeyError("popitem(): the mapping is empty")
        return entry

    @overload
    def update(self, other: SupportsKeysAndGetItem[Any, Any], /, **more: Value) -> None: ...
    @overload
    def update(self, other: Iterable[tuple[Any, Any]] = (), /, **more: Value) -> None: ...
    def update(self, other: Any = (), /, **more: Value) -> None:
        """Set many entries in one atomic change, however many: those of a mapping or of `(key, value)` pairs."""
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


def read_only(path: str) -> ReadOnlyError:
    """The error for a write through a read-only handle, in the words that dbm's users know."""
    return ReadOnlyError(f"{path}: the database is opened for reading only")
