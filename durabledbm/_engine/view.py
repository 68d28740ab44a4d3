"""Views: a tree with layers of changes on top, read as one.

All that can be read is a view: a committed state (the tree, and the changes in its meta page), a transaction (its
own changes on top of that), an iterator in the middle of either. A layer maps keys to new values, or to None for a
deleted key. Once a view has been handed out its layers do not change: a writer that goes on adds a layer (`freeze`).
"""

from __future__ import annotations

import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from ..errors import ClosedError, error
from .node import Overflow
from .tree import Chunk, Tree

__all__ = ["EMPTY_LAYER", "ENDLESS", "Layer", "Life", "View"]


_STRIDE = 256
"""Changes that are taken at a time where there is no leaf to set the pace."""

_NO_CHANGES: Mapping[bytes, bytes | None] = {}


class Layer(dict[bytes, bytes | None]):
    """Changes on top of a tree. Its keys are sorted when first needed, which only a final layer may be asked."""

    __slots__ = ("_sorted", "shared")
    _sorted: list[bytes]
    shared: bool
    """Somebody reads it: it must not change any more."""

    def __init__(self, changes: Mapping[bytes, bytes | None] = _NO_CHANGES) -> None:
        super().__init__(changes)
        self.shared = False

    def sorted_keys(self) -> list[bytes]:
        """The keys, ascending."""
        try:
            keys = self._sorted
        except AttributeError:
            keys = sorted(self)
            self._sorted = keys
        return keys


EMPTY_LAYER = Layer()


class _Keys(list[bytes]):
    """The keys that an iterator is about to hand out. Told apart by what it is, not by what is in it."""

    __slots__ = ("__weakref__",)
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class Life:
    """Something that iterators depend on, such as an open handle.

    They hand out entries without asking whether there still is life, a list of keys at a time. So each has its list
    here, and the end of life empties the lists: what an iterator would hand out next it must ask for first.
    """

    __slots__ = ("_lists", "_what", "ended")

    def __init__(self, what: str = "DBM object has already been closed") -> None:
        self.ended = False
        self._what = what
        self._lists: set[weakref.ref[_Keys]] = set()

    def end(self) -> None:
        """End it, and with it the iterators, at their next step. May be called by any thread."""
        self.ended = True
        for ref in self._lists.copy():
            keys = ref()
            if keys is not None:
                keys.clear()

    def over(self) -> ClosedError:
        """The error for who still wants something."""
        return ClosedError(self._what)

    def join(self) -> list[bytes]:
        """The list of an iterator that begins: look whether life has ended *after* filling it. It leaves with it."""
        keys = _Keys()
        self._lists.add(weakref.ref(keys, self._lists.discard))
        return keys


ENDLESS = Life()


class View:
    """`tree` under `layers`, the newest layer first."""

    __slots__ = ("layers", "tree")

    def __init__(self, tree: Tree, layers: tuple[Layer, ...] = ()) -> None:
        self.tree = tree
        self.layers = layers

    def find(self, key: bytes) -> bytes | None:
        """The value of `key`, an `Overflow` in place of a large one, or None."""
        for layer in self.layers:
            if key in layer:
                return layer[key]
        return self.tree.find(key)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        for layer in self.layers:
            if key in layer:
                value = layer[key]
                break
        else:
            value = self.tree.find(key)
        return self.tree.pager.value(value, key) if type(value) is Overflow else value

    def items(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False,
        life: Life = ENDLESS, pin: object = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries with `start <= key < stop`, ascending, or descending if `reverse`.

        `pin` is kept for as long as the iterator is, started or not. When `life` has ended, so has the iteration, with
        `ClosedError`.
        """  # fmt: skip
        return chain.from_iterable(self._runs(start, stop, reverse, life, pin, with_values=True))

    def keys(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False,
        life: Life = ENDLESS, pin: object = None,
    ) -> Iterator[bytes]:
        """The keys with `start <= key < stop`, as `items` gives entries."""  # fmt: skip
        return chain.from_iterable(self._runs(start, stop, reverse, life, pin, with_values=False))

    def _runs(
        self, start: bytes | None, stop: bytes | None, reverse: bool, life: Life, pin: object, *, with_values: bool
    ) -> Iterator[Iterable[Any]]:
        """What `items` and `keys` hand out, a leaf at a time, so that no step in Python is made for each entry.

        Whoever iterates over a run finds the keys gone when life ends, comes back here for more, and is told.
        """
        pager = self.tree.pager
        room = -1
        ahead = life.join()
        try:
            for keys, values, large in self._chunks(start, stop, reverse, with_values=with_values):
                if large:  # values, which are read one by one, when it is their turn
                    if room < 0:
                        room = pager.file_size()
                    for key, value in zip(keys, values, strict=True):
                        if life.ended:
                            raise life.over()
                        if type(value) is Overflow:
                            room -= value.length
                            if room < 0:  # runs that overlap: more to read than there is
                                raise pager.malformed(value.ref, "the large values are larger than the file")
                            yield ((key, pager.value(value, key)),)
                        else:
                            yield ((key, value),)
                    continue
                ahead[:] = keys
                if life.ended:
                    raise life.over()
                yield zip(ahead, values, strict=False) if with_values else ahead
            if life.ended:  # perhaps the last run was cut short
                raise life.over()
        except error:
            del pin  # the traceback would keep it
            if life.ended:  # then what is in the pages is nobody's business
                raise life.over() from None
            raise

    def _chunks(self, start: bytes | None, stop: bytes | None, reverse: bool, *, with_values: bool) -> Iterator[Chunk]:
        """The tree's chunks with the layers' changes made to them, and then the changes after the last chunk."""
        chunks = self.tree.chunks(start, stop, reverse=reverse, with_values=with_values)
        cursors = [_Cursor(layer, start, stop, reverse) for layer in reversed(self.layers) if layer]
        return _merged(chunks, cursors, reverse, with_values=with_values) if cursors else chunks


def _merged(chunks: Iterator[Chunk], cursors: list[_Cursor], reverse: bool, *, with_values: bool) -> Iterator[Chunk]:
    for keys, values, large in chunks:
        changes: dict[bytes, bytes | None] = {}
        for cursor in cursors:
            cursor.take(keys[-1], changes)
        if not changes:
            yield keys, values, large
            continue
        chunk = _combined(keys, values if with_values else keys, changes, reverse)
        if chunk[0]:
            yield chunk
    while ahead := [cursor.ahead() for cursor in cursors if cursor.first < cursor.end]:
        bound = max(ahead) if reverse else min(ahead)
        changes = {}
        for cursor in cursors:
            cursor.take(bound, changes)
        chunk = _combined([], [], changes, reverse)
        if chunk[0]:
            yield chunk


class _Cursor:
    """A place in the changes of one layer, from which they are taken bit by bit."""

    __slots__ = ("_keys", "_layer", "_reverse", "end", "first")

    def __init__(self, layer: Layer, start: bytes | None, stop: bytes | None, reverse: bool) -> None:
        self._layer = layer
        self._reverse = reverse
        self._keys = layer.sorted_keys()
        self.first = 0 if start is None else bisect_left(self._keys, start)
        self.end = len(self._keys) if stop is None else bisect_left(self._keys, stop)

    def ahead(self) -> bytes:
        """A key some way ahead, to take changes up to. There must be some left."""
        if self._reverse:
            return self._keys[max(self.end - _STRIDE, self.first)]
        return self._keys[min(self.first + _STRIDE, self.end) - 1]

    def take(self, bound: bytes, changes: dict[bytes, bytes | None]) -> None:
        """Move the changes up to and including those of key `bound` to `changes`."""
        if self._reverse:
            at = bisect_left(self._keys, bound, self.first, max(self.first, self.end))
            taken, self.end = self._keys[at : self.end], min(at, self.end)
        else:
            at = bisect_right(self._keys, bound, self.first, max(self.first, self.end))
            taken, self.first = self._keys[self.first : at], at
        layer = self._layer
        for key in taken:
            changes[key] = layer[key]


def _combined(
    keys: list[bytes], values: list[bytes], changes: Mapping[bytes, bytes | None], reverse: bool
) -> Chunk:
    """The entries after the changes."""
    entries: dict[bytes, bytes | None] = dict(zip(keys, values, strict=True))
    entries.update(changes)
    result = sorted((key for key, value in entries.items() if value is not None), reverse=reverse)
    found: list[bytes] = [entries[key] for key in result]  # type: ignore[misc]
    return result, found, Overflow in set(map(type, found))
