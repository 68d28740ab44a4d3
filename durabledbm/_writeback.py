"""The cache behind a shelf's `writeback=True`: which objects changed, and which of them may be let go.

What may live here: objects, their serialized forms, and the question who else refers to them. The mapping
that they are written to and the codec are handed in with each call: a cache that kept them would keep a
dropped shelf alive.

Two questions decide everything:

* *Has an object changed?* It is serialized again and compared with the bytes that it was read from or
  written as. Where they differ, the old bytes are loaded and serialized once more: a shelf written with
  another protocol, or an object whose shared strings became distinct by loading, differs without having
  changed.
* *May an object be let go?* Only if nobody could change it any more, or a later change would be lost in
  silence. The program may hold the object, or only a part of it (`items = shelf["cart"].items`). So the
  references to everything reachable from it are counted, as the garbage collector does: if all of them come
  from inside, or lead to something immutable, nobody else can reach it. Whatever is in doubt stays.

So the cache is bounded: once the serialized forms in it take more than `limit` bytes, the oldest quarter is
looked at. What changed is written, in one commit, and every object is let go that the program does not
refer to any more, itself or in part. An object that the program still refers to stays, whatever the bound.
"""

from __future__ import annotations

import atexit
import datetime
import decimal
import re
import sys
import traceback
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from gc import get_referents
from typing import Any, NamedTuple

__all__ = ["Codec", "WriteBackCache", "close_at_exit", "is_held"]

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


class Codec(NamedTuple):
    """How a shelf turns keys and objects into bytes."""

    serializer: Callable[[Any, int], Any]
    deserializer: Callable[[bytes], Any]
    protocol: int
    keyencoding: str

    def encode(self, key: str) -> bytes:
        """The key in the mapping."""
        return key.encode(self.keyencoding)

    def dump(self, value: object) -> Any:
        """The serialized form, as something that does not change and can be compared."""
        raw = self.serializer(value, self.protocol)
        return bytes(raw) if isinstance(raw, (bytearray, memoryview)) else raw

    def same(self, raw: bytes, old: bytes) -> bool:
        """Whether `raw` is how the object that `old` holds is serialized now."""
        try:
            return bool(self.dump(self.deserializer(old)) == raw)
        except Exception:  # the program's own code; what can't be loaded is not the same
            return False


class WriteBackCache(dict[str, Any]):
    """key -> object, in the order in which they came. `stored` holds the serialized form last read or
    written.

    It is not locked: the shelf calls it with its own lock held. What a program removes or adds by hand is
    tolerated: what is in the dict counts, and an object without a serialized form has changed.
    """

    __slots__ = ("_budget", "limit", "size", "stored")

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.stored: dict[str, bytes] = {}
        self.size = 0
        self._budget = limit

    def put(self, key: str, value: object, raw: Any) -> None:
        """Keep `value`, which `raw` is the serialized form of."""
        if isinstance(raw, (bytearray, memoryview)):
            raw = bytes(raw)
        old = self.stored.get(key)
        self.size += len(raw) + _ENTRY_COST if old is None else len(raw) - len(old)
        self.stored[key] = raw
        self[key] = value

    def drop(self, key: str) -> None:
        """Forget one entry, if it is there."""
        self.pop(key, None)
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
        """Whether it is time to let go of something."""
        return self.size > self._budget

    def changes(self, codec: Codec, keys: Iterable[str]) -> dict[str, bytes]:
        """Of the entries with these keys, those that changed, with their new serialized forms."""
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

    def write(self, mapping: Any, codec: Codec, keys: Iterable[str] | None = None) -> None:
        """Write what changed (of these keys) into `mapping`: in one commit, if it knows transactions."""
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

    def shrink(self, mapping: Any, codec: Codec) -> None:
        """Let go of the oldest objects, after writing those that changed: a commit for about a quarter."""
        for batch in self._batches():
            try:
                self.write(mapping, codec, batch)
            except Exception:
                # Not the fault of whoever reads some other entry: all stays, and sync() says it again.
                break
            self.release(batch)
            if self.size <= self.limit - self.limit // 4:
                break
        self._settle()

    def release(self, keys: Iterable[str] | None = None) -> None:
        """Let go of those (of these keys) that nobody else refers to; the others become the youngest."""
        for key in list(self) if keys is None else keys:
            if key in self and is_held(self, key):
                self[key] = self.pop(key)
            else:
                self.drop(key)
        self._settle()

    def forget_differing(self, mapping: Any, codec: Codec) -> None:
        """After a rollback: keep the objects that are what `mapping` holds, forget the others."""
        for key, value in list(self.items()):
            self.drop(key)
            try:
                raw = mapping.get(codec.encode(key))
            except OSError:  # the error that is on its way says more
                raw = None
            if raw is None:
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
        """All keys, oldest first, in lists that make up about a quarter of the limit each."""
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
    """Whether anybody but `owner` refers to `owner[key]`, or to a part of it that could be changed."""
    if not _CAN_COUNT:
        return True
    if _is_immutable(owner[key]):
        return False
    parts = [owner[key]]
    inside = {id(parts[0]): 1}  # how many references to a part are known; this one is the owner's
    done = 0
    while done < len(parts):
        found = get_referents(*parts[done:])
        done = len(parts)
        while found:
            part = found.pop()  # popped: `found` must hold nothing when references are counted
            if _is_immutable(part):
                continue
            if id(part) in inside:
                inside[id(part)] += 1
            else:
                inside[id(part)] = 1
                parts.append(part)
    part = None
    return _any_held(parts, inside)


def _is_immutable(part: Any) -> bool:
    kind = type(part)
    if kind in _IMMUTABLE or isinstance(part, _SHARED):
        return True
    # Constants and the empty tuple are shared by everybody; a tuple of immutable things is immutable itself.
    return (kind is tuple or kind is frozenset) and all(type(item) in _IMMUTABLE for item in part)


def _any_held(parts: list[Any], inside: dict[int, int]) -> bool:
    for part in parts:
        if _count(part) > inside[id(part)] + _OWN:
            return True
        # Since 3.13 attributes may be traversed without the object's __dict__, which may be held as well.
        if type(part).__dictoffset__ and _namespace_references(part, inside) > _OWN_NAMESPACE:
            return True
    return False


def _namespace_references(part: Any, inside: dict[int, int]) -> int:
    namespace = getattr(part, "__dict__", None)
    return 0 if namespace is None or id(namespace) in inside else _count(namespace)


class _Probe:
    """An object with a `__dict__`."""


def _own_references() -> tuple[int, int]:
    """How many references the two functions above add themselves: it differs between versions of Python."""
    own = own_namespace = 0
    for part in [_Probe()]:
        own = _count(part)
        own_namespace = _namespace_references(part, {})
    return own, own_namespace


_OWN, _OWN_NAMESPACE = _own_references()


_shelves: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def close_at_exit(shelf: Any) -> None:
    """Close this shelf when the interpreter ends, before the databases are closed."""
    _shelves[id(shelf)] = shelf


@atexit.register
def _close_all() -> None:
    for shelf in list(_shelves.values()):
        try:
            shelf.close()
        except Exception:
            traceback.print_exc()  # there is nobody left to raise it to
