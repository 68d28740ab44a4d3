"""The cache behind a shelf's `writeback=True`: which objects changed, and which of them may leave the cache.

The cache holds objects and their serialized forms. The mapping and the codec are passed to each call: a cache that held
them would keep a dropped shelf alive.

Two questions decide everything:

* *Has an object changed?* It is serialized again and compared with the bytes that it was read from or written as. If
  they differ, the old bytes are loaded and serialized once more: a shelf written with another protocol, or an object
  whose shared strings became distinct by loading, differs without having changed.
* *May an object leave the cache?* Only if nothing else can change it, or a later change would be lost silently. The
  program may hold the object or only a part of it (`items = shelf["cart"].items`). So the references to everything
  reachable from it are counted, as the garbage collector does. If all of them come from inside, or lead to something
  immutable, nothing else can reach it. In doubt it stays.

The second question comes first: once nothing else can reach an object, what is written of it is final. In the other
order, a thread could change the object after it was written and before its references were counted.

The size limit: when the serialized forms take more than `limit` bytes, the oldest quarter is examined. What changed is
written in one commit, and every object that the program does not refer to, itself or in part, leaves. An object that
the program still refers to stays, whatever the limit.
"""

from __future__ import annotations

import atexit
import datetime
import decimal
import os
import re
import sys
import traceback
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from gc import get_referents
from typing import Any, NamedTuple

__all__ = ["ObjectCodec", "WriteBackCache", "close_at_exit", "is_held"]

_ENTRY_COST = 256  # bytes that an entry takes beside its serialized form, in round figures

_IMMUTABLE: set[type] = {
    int, float, complex, bool, str, bytes, type(None), type(...), range, slice, object,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone, decimal.Decimal,
    re.Pattern, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodDescriptorType,
    types.WrapperDescriptorType,
}  # fmt: skip
_SHARED = (type, Enum)  # the whole program shares these objects, and pickles hold them by name

_count: Callable[[object], int] = getattr(sys, "getrefcount", lambda part: 0)
_CAN_COUNT = hasattr(sys, "getrefcount")  # PyPy has no such thing


class ObjectCodec(NamedTuple):
    """How a shelf turns keys and objects into bytes."""

    serializer: Callable[[Any, int], Any]
    deserializer: Callable[[bytes], Any]
    protocol: int
    keyencoding: str

    def encode(self, key: str) -> bytes:
        """The key in the mapping."""
        return key.encode(self.keyencoding)

    def dump(self, value: object) -> Any:
        """The serialized form, as an unchanging object that can be compared."""
        raw = self.serializer(value, self.protocol)
        return bytes(raw) if isinstance(raw, (bytearray, memoryview)) else raw

    def same(self, raw: bytes, old: bytes) -> bool:
        """Whether `raw` is what the object stored as `old` serializes to now."""
        try:
            return bool(self.dump(self.deserializer(old)) == raw)
        except Exception:  # the program's own code; what can't be loaded is not the same
            return False


class WriteBackCache(dict[str, Any]):
    """key -> object, oldest first. `stored` holds the serialized form last read or written.

    The cache has no lock of its own: the shelf calls it with the shelf's lock held. A program may add or remove entries
    by hand: what the dict holds counts, and an object without a serialized form counts as changed. A signal handler
    that uses the shelf may interrupt any method between two calls; therefore state that it may change is read and
    changed without a call in between.
    """

    __slots__ = ("_budget", "free", "limit", "size", "stored")

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.stored: dict[str, bytes] = {}
        self.size = 0
        self._budget = limit
        self.free: set[str] | None = None
        """While objects are dropped: those that nothing else refers to. An interrupting call removes the ones that
        it returns (see `touch`)."""

    def put(self, key: str, value: object, raw: Any) -> None:
        """Keep `value`, whose serialized form is `raw`."""
        if isinstance(raw, (bytearray, memoryview)):
            raw = bytes(raw)
        old = self.stored.get(key)
        self.size += len(raw) + _ENTRY_COST if old is None else len(raw) - len(old)
        self.stored[key] = raw
        self[key] = value

    def add(self, key: str, value: object, raw: Any) -> Any:
        """Keep `value`, loaded from `raw`, unless the key has an object by now. Return the object that the key has."""
        there = self.setdefault(key, value)
        if there is value:
            self.put(key, value, raw)
        return there

    def touch(self, key: str) -> None:
        """The program receives the object, perhaps in a signal handler during `shrink` or `flush`: it stays."""
        if self.free is not None:
            self.free.discard(key)

    def drop(self, key: str) -> None:
        """Forget one entry, if there is one."""
        self.pop(key, None)
        self._forget(key)

    def _forget(self, key: str) -> None:
        raw = self.stored.pop(key, None)
        if raw is not None:
            self.size -= len(raw) + _ENTRY_COST

    def clear(self) -> None:
        super().clear()
        self.stored.clear()
        self.size = 0
        self._budget = self.limit

    @property
    def full(self) -> bool:
        """Whether objects should leave the cache now."""
        return self.size > self._budget

    def changes(self, codec: ObjectCodec, keys: Iterable[str]) -> dict[str, bytes]:
        """Those of the entries `keys` that changed, with their new serialized forms."""
        changed = {}
        for key in keys:
            try:
                raw = codec.dump(self[key])
            except KeyError:
                if key in self:
                    raise
                continue  # taken out by hand, or by what serializing another entry called
            old = self.stored.get(key)
            if raw != old and (old is None or not codec.same(raw, old)):
                changed[key] = raw
        return changed

    def write(self, mapping: Any, codec: ObjectCodec, keys: Iterable[str] | None = None) -> None:
        """Write what changed (of `keys`) to `mapping`: in one commit, if it has transactions."""
        changed = self.changes(codec, list(self) if keys is None else keys)
        if not changed:
            return
        encoded = {codec.encode(key): raw for key, raw in changed.items()}
        if hasattr(mapping, "transaction"):
            mapping.update(encoded)
        else:
            for raw_key, raw in encoded.items():
                mapping[raw_key] = raw
        for key, raw in changed.items():
            if key in self:
                self.put(key, self[key], raw)

    def shrink(self, mapping: Any, codec: ObjectCodec) -> None:
        """Drop the oldest objects, after writing those that changed: one commit for about a quarter of the limit."""
        if self.free is not None:
            return  # this call has interrupted another one that does the same
        for batch in self._batches():
            try:
                self.flush(mapping, codec, batch)
            except Exception:
                # Not the fault of a caller that reads another entry: everything stays, and sync() raises it again.
                break
            if self.size <= self.limit - self.limit // 4:
                break
        self._settle()

    def flush(self, mapping: Any, codec: ObjectCodec, keys: list[str] | None = None) -> None:
        """Write what changed (of `keys`), and drop the objects that nothing else refers to."""
        if self.free is not None:
            self.write(mapping, codec, keys)
            return
        keys = list(self) if keys is None else keys
        try:
            self.free = set()
            self.free.update(key for key in keys if key in self and not is_held(self, key))
            self.write(mapping, codec, keys)
            self.release(keys)
        finally:
            self.free = None

    def release(self, keys: Iterable[str] | None = None) -> None:
        """Drop the objects (of `keys`) that are `free`; make the others the youngest."""
        free = self.free or set()
        for key in list(self) if keys is None else keys:
            if key not in self:
                self._forget(key)
            elif key in free:
                del self[key]
                self._forget(key)
            else:
                value = self[key]
                del self[key]
                self[key] = value
        self._settle()

    def forget_differing(self, mapping: Any, codec: ObjectCodec) -> None:
        """After a rollback: keep objects that equal what `mapping` holds, forget the others."""
        for key, value in list(self.items()):
            try:
                raw = mapping.get(codec.encode(key))
            except OSError:  # the error that is on its way says more
                raw = None
            if raw is None:
                self.drop(key)
                continue
            self.put(key, value, raw)
            try:
                differs = bool(self.changes(codec, [key]))
            except Exception:  # changed into something that can't be serialized
                differs = True
            if differs:
                self.drop(key)

    def _settle(self) -> None:
        # What had to stay is not looked at again before a quarter more has come, or every access would look.
        self._budget = max(self.limit, self.size + self.size // 4)

    def _batches(self) -> Iterator[list[str]]:
        """All keys, oldest first, in lists of about a quarter of the limit each."""
        batch: list[str] = []
        cost = 0
        for key in list(self):
            batch.append(key)
            cost += len(self.stored.get(key, b"")) + _ENTRY_COST
            if cost >= self.limit // 4:
                yield batch
                batch, cost = [], 0
        if batch:
            yield batch


def is_held(owner: dict[str, Any], key: str) -> bool:
    """Whether anything but `owner` refers to `owner[key]` or to a mutable part of it.

    If not, from now on only those that get it from `owner` can.
    """
    if not _CAN_COUNT:
        return True
    if _is_immutable(owner[key]):
        return False
    parts, inside = _reachable(owner[key])
    if _any_held(parts, inside):
        return True
    # Nothing held any of these parts when they were counted. If the parts are still the same, nothing can hold one now.
    return _reachable(owner[key])[1] != inside


def _reachable(root: Any) -> tuple[list[Any], dict[int, int]]:
    """The mutable parts of `root`, itself included, and the number of known references to each."""
    parts = [root]
    inside = {id(root): 1}  # this one is the owner's
    done = 0
    while done < len(parts):
        found = get_referents(*parts[done:])
        done = len(parts)
        for part in found:
            if _is_immutable(part):
                continue
            if id(part) in inside:
                inside[id(part)] += 1
            else:
                inside[id(part)] = 1
                parts.append(part)
    return parts, inside


def _is_immutable(part: Any) -> bool:
    kind = type(part)
    if kind in _IMMUTABLE or isinstance(part, _SHARED):
        return True
    # Constants and the empty tuple are shared by everybody; a tuple of immutable things is immutable itself.
    return (kind is tuple or kind is frozenset) and all(type(item) in _IMMUTABLE for item in part)


def _any_held(parts: list[Any], inside: dict[int, int]) -> bool:
    """Whether one of the parts has more references than those `inside`. `parts` must hold the only others."""
    known = [inside[id(part)] for part in parts]
    # Since 3.13 attributes may be traversed without the object's __dict__, which may be held as well.
    parts += _namespaces(parts, inside)
    known += [1] * (len(parts) - len(known))
    # All are counted by one call into C, at one moment: no thread can hand one on to another meanwhile.
    counts = list(map(_count, parts))
    return any(count > references + _OWN for count, references in zip(counts, known, strict=True))


def _namespaces(parts: list[Any], inside: dict[int, int]) -> list[Any]:
    spaces = (getattr(part, "__dict__", None) for part in parts if type(part).__dictoffset__)
    return [space for space in spaces if space is not None and id(space) not in inside]


_OWN = next(map(_count, [[]]))
"""How many references counting adds itself: it differs between versions of Python."""


_shelves: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def close_at_exit(shelf: Any) -> None:
    """Close this shelf at the end of the interpreter, before the databases, and renew its lock in a child process."""
    _shelves[id(shelf)] = shelf


def _renew_locks() -> None:
    for shelf in list(_shelves.values()):
        shelf._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


@atexit.register
def _close_all() -> None:
    for shelf in list(_shelves.values()):
        try:
            shelf.close()
        except Exception:
            traceback.print_exc()  # no caller is left to raise it to
