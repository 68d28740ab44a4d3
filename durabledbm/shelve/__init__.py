"""Shelves: persistent dicts of Python objects. `import durabledbm.shelve as shelve` replaces the standard library's
    module.

A shelf turns keys and objects into bytes and back, over any mapping of bytes: one of ours, a dict, another dbm. The
mapping provides transactions and snapshots; `shelve.writeback` holds the cache.

Beyond the standard library's shelf:

* `transaction()` and `snapshot()` work as those of the database, for objects.
* `update()` is one commit, `clear()` one operation, `get()` one look-up; `values()` and `items()` hold one object in
  memory, not all keys.
* `writeback=True` writes only what changed: `sync()` and `close()` serialize every cached object, compare, and write
  the differences in one commit.

The write-back cache has a size limit. Changes may be written before `sync()`, and no changed object is dropped
unwritten. Changes that must appear together belong in a `transaction()`.
"""

from __future__ import annotations

import shelve as _stdlib
import sys
import warnings
from collections.abc import Callable, ItemsView, Iterator, MutableMapping, ValuesView
from contextlib import contextmanager, nullcontext
from itertools import islice
from pickle import DEFAULT_PROTOCOL, dumps, loads
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from .._files.opening import Flag, OpenOptions
from .._messages import not_copied, represented
from ..database import open as open_database
from ..errors import BusyError
from ..mapping import COMPLETIONS, Readable
from ..table import Table, checked_name
from .lock import CacheLock, Running
from .writeback import ObjectCodec, WriteBackCache, close_at_exit

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._files.arguments import Path

    _Serializer = Callable[[Any, int], Any]
    _Deserializer = Callable[[bytes], Any]

if sys.version_info >= (3, 15):
    from shelve import ShelveError
else:

    class ShelveError(Exception):
        """A serializer was given without a deserializer, or a deserializer without a serializer."""


__all__ = ["BsdDbShelf", "DbfilenameShelf", "Shelf", "ShelveError", "open"]

_V = TypeVar("_V")
_T = TypeVar("_T")

_SHELF_OPTIONS = ("serializer", "deserializer", "writeback_size")

_NOTHING = nullcontext()
_ABSENT = object()

_TIMEOUT = 30.0
"""Seconds that a call waits for the transaction of a write-back shelf, as for `durabledbm.open`."""

WRITEBACK_SIZE = 64 * 2**20
"""Bytes of serialized objects that a `writeback=True` shelf keeps before it lets go of the oldest."""


class ShelfOptions(OpenOptions, total=False):
    """The keyword arguments of `open`: those of `durabledbm.open` and those of `Shelf`."""

    mode: int
    serializer: _Serializer | None
    deserializer: _Deserializer | None
    writeback_size: int
    table: str | None


class Shelf(_stdlib.Shelf[_V]):
    """Objects by name, over `dict`: any mapping from bytes to bytes.

    `protocol` is pickle's (None: pickle.DEFAULT_PROTOCOL). `keyencoding` turns keys into bytes. `serializer(obj,
    protocol)` returns the bytes to store, and `deserializer(bytes)` the object; giving only one of them raises
    ShelveError. With `writeback`, objects that were read or assigned are cached, and `sync()` and `close()` write their
    changes; any thread may use the cache. `writeback_size` limits it, in bytes of serialized objects.

    A missing key raises KeyError(key). After `close()` every use raises ValueError.
    """

    dict: Any
    cache: WriteBackCache

    # Whether __getitem__ and __setitem__ are this class's own, so that many objects may be handled without
    # them.
    _plain_reads = _plain_writes = True

    def __init_subclass__(cls) -> None:
        cls._plain_reads = cls.__getitem__ is Shelf.__getitem__
        cls._plain_writes = cls.__setitem__ is Shelf.__setitem__

    def __init__(
        self, dict: Any, protocol: int | None = None, writeback: bool = False, keyencoding: str = "utf-8", *,
        serializer: _Serializer | None = None, deserializer: _Deserializer | None = None,
        writeback_size: int = WRITEBACK_SIZE,
    ) -> None:  # fmt: skip
        self.serializer, self.deserializer = _checked(serializer, deserializer)
        self.dict = dict
        self._protocol = DEFAULT_PROTOCOL if protocol is None else protocol
        self.keyencoding = keyencoding
        self.cache = WriteBackCache(writeback_size)
        self._path = [repr(dict.path)] if hasattr(dict, "path") else []
        self._lock = CacheLock(_TIMEOUT, self._name())
        self._running: list[Running] = []
        self.writeback = writeback  # last: the stdlib's __del__ closes what has this attribute
        close_at_exit(self)

    def __repr__(self) -> str:
        mapping = self.dict
        if isinstance(mapping, _ClosedMapping):
            return represented(self, *self._path, "closed")
        if hasattr(mapping, "_said"):
            return represented(self, *mapping._said())
        over = repr(mapping) if isinstance(mapping, Readable) else f"a {type(mapping).__name__}"
        return represented(self, f"over {over}", "open")

    def _name(self) -> str:
        """What reports call the shelf."""
        return self._path[0] if self._path else "a shelf"

    def __reduce__(self) -> Any:
        raise not_copied(self)

    def __del__(self) -> None:
        if not hasattr(self, "writeback"):
            return  # it was not made
        unflushed = hasattr(self.dict, "_unflushed") and self.dict._unflushed()
        try:
            super().__del__()
        finally:
            if unflushed:
                path = self._path[0]
                warnings.warn(f"{path} was not closed, and had unflushed writes", ResourceWarning, stacklevel=2)

    def _ipython_key_completions_(self) -> list[str]:
        """The first keys, for completing `shelf["`."""
        return list(islice(self, COMPLETIONS))

    def _codec(self) -> ObjectCodec:
        return ObjectCodec(self.serializer, self.deserializer, self._protocol, self.keyencoding)

    def __getitem__(self, key: str) -> _V:
        if self.writeback:
            return self._cached(key)
        try:
            raw = self.dict[key.encode(self.keyencoding)]
        except KeyError:
            raise KeyError(key) from None
        return self.deserializer(raw)  # type: ignore[no-any-return]

    def _cached(self, key: str) -> _V:
        lock, cache = self._lock, self.cache
        with lock.moment:  # the common case, in few steps
            if lock.holder is None and (value := cache.get(key, _ABSENT)) is not _ABSENT:
                cache.touch(key)
                return value  # type: ignore[no-any-return]
        with lock:
            if (value := cache.get(key, _ABSENT)) is not _ABSENT:
                cache.touch(key)
                return value  # type: ignore[no-any-return]
            try:
                raw = self.dict[key.encode(self.keyencoding)]
            except KeyError:
                raise KeyError(key) from None
            value = cache.add(key, self.deserializer(raw), raw)
            if cache.full:
                cache.shrink(self.dict, self._codec())
            return value  # type: ignore[no-any-return]

    def __setitem__(self, key: str, value: _V) -> None:
        raw = self.serializer(value, self._protocol)
        if not self.writeback:
            self.dict[key.encode(self.keyencoding)] = raw
            return
        with self._lock:
            self.dict[key.encode(self.keyencoding)] = raw
            self.cache.put(key, value, raw)
            if self.cache.full:
                self.cache.shrink(self.dict, self._codec())

    def __delitem__(self, key: str) -> None:
        with self._lock:
            try:
                del self.dict[key.encode(self.keyencoding)]
            except KeyError:
                self.cache.drop(key)
                raise KeyError(key) from None
            self.cache.drop(key)

    @overload
    def get(self, key: str, default: None = None) -> _V | None: ...
    @overload
    def get(self, key: str, default: _V) -> _V: ...
    @overload
    def get(self, key: str, default: _T) -> _V | _T: ...
    def get(self, key: str, default: Any = None) -> Any:
        """The object, or `default`. An error while loading the object is raised, not taken for a missing key."""
        if self._plain_reads and not self.writeback:
            try:
                raw = self.dict[key.encode(self.keyencoding)]
            except KeyError:
                return default
            return self.deserializer(raw)
        try:
            return self[key]
        except KeyError:
            if key in self:
                raise  # it was the object's own code that raised it
            return default

    def __iter__(self) -> Iterator[str]:
        # Our mappings iterate lazily over one state; of others, keys() is what a shelf has always asked for.
        for key in self.dict if _is_ours(self.dict) else self.dict.keys():
            yield key.decode(self.keyencoding)

    def values(self) -> ValuesView[_V]:
        """The objects, loaded one at a time during iteration."""
        return _Values(self)

    def items(self) -> ItemsView[str, _V]:
        """(key, object) pairs, loaded one at a time during iteration."""
        return _Items(self)

    def _pairs(self) -> Iterator[tuple[str, _V]]:
        if self._plain_reads and not self.writeback and _is_ours(self.dict):
            for raw_key, raw in self.dict.items():
                yield raw_key.decode(self.keyencoding), self.deserializer(raw)
            return
        for key in self:
            try:
                value = self[key]
            except KeyError:
                if key in self:
                    raise
                continue  # deleted since the iteration began
            yield key, value

    def update(self, other: Any = (), /, **named: _V) -> None:
        """Assign all entries of `other` and the named ones: in one commit, if the mapping updates in one."""
        entries: dict[str, _V] = dict(other, **named)
        if not self._plain_writes or not hasattr(self.dict, "update"):
            for key, value in entries.items():
                self[key] = value
            return
        raws = {key: self.serializer(value, self._protocol) for key, value in entries.items()}
        with self._lock if self.writeback else _NOTHING:
            self.dict.update({key.encode(self.keyencoding): raw for key, raw in raws.items()})
            if self.writeback:
                for key, value in entries.items():
                    self._keep(key, value, raws[key])

    def _keep(self, key: str, value: _V, raw: bytes) -> None:
        """Put an object that was written into the cache, and make room there. The lock must be held."""
        self.cache.put(key, value, raw)
        if self.cache.full:
            self.cache.shrink(self.dict, self._codec())

    def clear(self) -> None:
        """Remove all entries, in one operation if the mapping has one."""
        with self._lock:
            if hasattr(self.dict, "clear"):
                self.dict.clear()
            else:
                for key in list(self.dict.keys()):
                    del self.dict[key]
            self.cache.clear()

    @contextmanager
    def transaction(self, *key: str) -> Iterator[Shelf[_V]]:
        """`with shelf.transaction():` makes the block one atomic commit; an exception undoes it.

        Blocks may be nested; an inner block that fails is undone alone. With `writeback`, changes made to cached
        objects before the block are written before it begins; those made inside belong to it. When the block is undone,
        cached objects that differ from what is stored are forgotten, and changing them further has no effect. Other
        users of the same write-back shelf wait, at most `timeout` seconds. Like a database's, a transaction belongs to
        the context that began it.

        A mapping with one transaction per part, such as a sharded database, needs a `key`. Raises TypeError if the
        mapping has no transactions, and BusyError as the database does.
        """
        if not hasattr(self.dict, "transaction"):
            raise TypeError(f"a {type(self.dict).__name__} object has no transactions")
        with self._lock.held() if self.writeback else _NOTHING:
            self._write_cache()
            running = Running()
            try:
                with self.dict.transaction(*map(self._codec().encode, key)) as running.transaction:
                    self._running.append(running)
                    yield self
                    if not running.over:
                        self._write_cache()
            except BaseException:
                if running.transaction is not None:  # else nothing was undone
                    self._forget_differing()
                raise
            finally:
                if running in self._running:
                    self._running.remove(running)

    def rollback(self) -> None:
        """Undo everything in this context's innermost transaction now; its block continues. Outside a transaction:
        ValueError.
        """
        running = next((running for running in reversed(self._running) if running.caller.is_me()), None)
        if running is None or running.over:
            raise ValueError("no transaction to roll back")
        running.transaction.rollback()
        running.over = True
        self._forget_differing()

    def _write_cache(self) -> None:
        with self._lock.moment:
            self.cache.write(self.dict, self._codec())

    def _forget_differing(self) -> None:
        with self._lock.moment:
            self.cache.forget_differing(self.dict, self._codec())

    def snapshot(self) -> Shelf[_V]:
        """A read-only shelf of this instant, for a `with` block or until `close()`. Cached changes are written first.

        Raises TypeError if the mapping has no snapshots.
        """
        if not hasattr(self.dict, "snapshot"):
            raise TypeError(f"a {type(self.dict).__name__} object has no snapshots")
        with self._lock:
            self._write_cache()
        codec: dict[str, Any] = {"serializer": self.serializer, "deserializer": self.deserializer}
        return Shelf(self.dict.snapshot(), self._protocol, keyencoding=self.keyencoding, **codec)

    def sync(self) -> None:
        """Write cached objects that changed, in one commit, and then sync the mapping if it can.

        Objects that the program does not refer to leave the cache, so the next look-up sees what others wrote. If an
        object cannot be serialized, nothing is written and everything stays cached.
        """
        with self._lock:
            if self.cache:
                self.cache.flush(self.dict, self._codec())
        if hasattr(self.dict, "sync"):
            self.dict.sync()

    def reorganize(self) -> None:
        """`sync()`, then release unused space if the mapping can."""
        self.sync()
        if hasattr(self.dict, "reorganize"):
            self.dict.reorganize()

    def close(self) -> None:
        """Write cached objects that changed, then close the mapping if it can. Closing twice is harmless.

        After BusyError the shelf stays open and keeps its changes: call `close()` again. After any other error the
        shelf is closed, and changes that could not be written are lost. Call `sync()` first where that matters: it
        keeps them.

        A call from a signal handler or finalizer that interrupted an operation of this shelf returns immediately, and
        takes effect when that operation has ended.
        """
        mapping = self.dict
        if mapping is None or isinstance(mapping, _ClosedMapping):
            return
        if self._lock.postpone(self.close) or (hasattr(mapping, "_postpone") and mapping._postpone(self.close)):
            return
        with self._lock:
            closed = True
            try:
                self._close(mapping)
            except BusyError:
                closed = False
                raise
            finally:
                if closed:
                    self.cache.clear()
                    self.dict = _ClosedMapping()

    def _close(self, mapping: Any) -> None:
        close = getattr(mapping, "close", _nothing)
        try:
            self.cache.write(mapping, self._codec())
            if not getattr(mapping, "closed", False):
                if type(self).sync is Shelf.sync:  # without letting go of objects: all go
                    getattr(mapping, "sync", _nothing)()
                else:
                    self.sync()
        except BusyError:
            raise
        except BaseException:
            close()
            raise
        close()

    def _after_fork(self) -> None:
        """In a child process: replace the lock, which a thread of the parent may have held."""
        self._lock = CacheLock(self._lock.timeout, self._name())


class _Values(ValuesView[_V]):
    """What `Shelf.values()` returns."""

    _mapping: Shelf[_V]

    def __iter__(self) -> Iterator[_V]:
        for _, value in self._mapping._pairs():
            yield value


class _Items(ItemsView[str, _V]):
    """What `Shelf.items()` returns."""

    _mapping: Shelf[_V]

    def __iter__(self) -> Iterator[tuple[str, _V]]:
        return self._mapping._pairs()


class _ClosedMapping(MutableMapping[bytes, bytes]):
    """Takes the place of a closed shelf's mapping: every use raises ValueError, as in the standard library."""

    def _refuse(self, *args: object, **options: object) -> NoReturn:
        raise ValueError("invalid operation on closed shelf")

    __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = __contains__ = _refuse
    keys = get = clear = update = transaction = snapshot = first = last = range = _refuse


class BsdDbShelf(Shelf[_V]):
    """A shelf with a cursor, over a mapping with bsddb's cursor methods or over one of ours.

    Each method returns the (key, object) pair that it moves to, and raises KeyError if there is none.
    """

    _position: bytes | None = None

    def first(self) -> tuple[str, _V]:
        """The entry with the lowest key."""
        return self._at(self.dict.first())

    def last(self) -> tuple[str, _V]:
        """The entry with the highest key."""
        return self._at(self.dict.last())

    def set_location(self, key: str) -> tuple[str, _V]:
        """The entry with the lowest key that is not below `key`."""
        raw_key = key.encode(self.keyencoding)
        if _is_ours(self.dict):
            return self._at(self._neighbour(start=raw_key))
        return self._at(self.dict.set_location(raw_key))

    def next(self) -> tuple[str, _V]:
        """The entry after the present one; the first one at the start."""
        if not _is_ours(self.dict):
            return self._at(next(self.dict))
        if self._position is None:
            return self.first()
        return self._at(self._neighbour(start=self._position + b"\0"))

    def previous(self) -> tuple[str, _V]:
        """The entry before the present one; the last one at the start."""
        if not _is_ours(self.dict):
            return self._at(self.dict.previous())
        if self._position is None:
            return self.last()
        return self._at(self._neighbour(stop=self._position, reverse=True))

    def _neighbour(self, **bounds: Any) -> tuple[bytes, bytes]:
        pair = next(self.dict.range(**bounds), None)
        if pair is None:
            raise KeyError("no entry in this direction")
        return pair  # type: ignore[no-any-return]

    def _at(self, pair: tuple[bytes, bytes]) -> tuple[str, _V]:
        raw_key, raw = pair
        self._position = raw_key
        key = raw_key.decode(self.keyencoding)
        return key, self[key] if self.writeback else self.deserializer(raw)


class _OnlyTable(Table):
    """A table whose database is open for it alone."""

    __slots__ = ()

    def close(self) -> None:
        """Close the database."""
        self._source.close()


class DbfilenameShelf(Shelf[_V], _stdlib.DbfilenameShelf[_V]):
    """A shelf in the file of exactly this name. `options`: see `open`."""

    def __init__(
        self, filename: Path, flag: Flag = "c", protocol: int | None = None, writeback: bool = False,
        **options: Unpack[ShelfOptions],
    ) -> None:  # fmt: skip
        others: dict[str, Any] = {**options}
        name = others.pop("table", None)
        own = {name: others.pop(name) for name in _SHELF_OPTIONS if name in others}
        _checked(own.get("serializer"), own.get("deserializer"))  # complain before a file is created
        if name is not None:
            checked_name(name)
        database = open_database(filename, flag, **others)
        mapping = database if name is None else _OnlyTable(database, name)
        Shelf.__init__(self, mapping, protocol, writeback, **own)
        self._lock.timeout = others.get("timeout", _TIMEOUT)


def open(
    filename: Path, flag: Flag = "c", protocol: int | None = None, writeback: bool = False,
    **options: Unpack[ShelfOptions],
) -> DbfilenameShelf[Any]:  # fmt: skip
    """Open the shelf in the file of exactly this name, creating it if need be.

    `options` are `table`, the name of the table that holds the shelf (None: the main table; see `Database.table`),
    `serializer`, `deserializer` and `writeback_size` of `Shelf`, and those of
    `durabledbm.open` (mode, durability, timeout and others), whose flags, errors and guarantees these are.
    """
    return DbfilenameShelf(filename, flag, protocol, writeback, **options)


def _checked(
    serializer: _Serializer | None, deserializer: _Deserializer | None
) -> tuple[_Serializer, _Deserializer]:
    if (serializer is None) is not (deserializer is None):
        raise ShelveError("serializer and deserializer must be given together")
    return serializer or dumps, deserializer or loads


def _nothing() -> None:
    pass


def _is_ours(mapping: object) -> bool:
    """Whether `mapping` is ordered and iterates over one state, as ours do."""
    return hasattr(mapping, "range")
