"""Views: a tree with layers of changes on top, read as one; and committed states, each with its view.

Everything that can be read is a view: a committed state (its two trees, and the changes in its meta page), a
transaction (its own changes on top of that), an iterator in the middle of either. A layer maps keys to new values, or
to None for a deleted key. Its keys are those of the main tree, and `TableKey`s, which are those of the tree of tables
(see `catalog`). Once a view has been handed out its layers do not change: a writer that goes on adds a layer.

A `View` iterates over the main table. A `TableView` reads the same, and iterates over one of the others.

States never change; a commit makes a new one. Readers hold the state that they read.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from .._interrupts import is_from_handler
from ..errors import ClosedError, error
from .catalog import TableKey, has_table_keys, next_prefix
from .freemap import FreeMap
from .large_value import is_indexed
from .meta import Meta, first_page
from .node import Overflow
from .page import NO_REF
from .pager import MALFORMED, Pager
from .tree import Chunk, PageSet, Tree

__all__ = ["EMPTY_LAYER", "ENDLESS", "Layer", "Scope", "State", "TableView", "View"]

_STRIDE = 256
"""Changes that are taken at a time where there is no leaf to set the pace."""

_NO_CHANGES: Mapping[bytes, bytes | None] = {}


class Layer(dict[bytes, bytes | None]):
    """Changes on top of a tree. Its keys are sorted when first needed, which only a final layer may be asked."""

    __slots__ = ("_sorted", "_sorted_table_keys", "shared")
    _sorted: list[bytes]
    _sorted_table_keys: list[bytes]
    shared: bool
    """It is being read, and must not change any more."""

    def __init__(self, changes: Mapping[bytes, bytes | None] = _NO_CHANGES) -> None:
        super().__init__(changes)
        self.shared = False

    def sorted_keys(self) -> list[bytes]:
        """The keys of the main tree, ascending."""
        try:
            keys = self._sorted
        except AttributeError:
            keys = sorted([key for key in self if type(key) is bytes] if has_table_keys(self) else self)
            self._sorted = keys
        return keys

    def sorted_table_keys(self) -> list[bytes]:
        """The keys of the tree of tables, ascending."""
        try:
            keys = self._sorted_table_keys
        except AttributeError:
            keys = sorted(key for key in self if type(key) is TableKey) if has_table_keys(self) else []
            self._sorted_table_keys = keys
        return keys


EMPTY_LAYER = Layer()


class _Keys(list[bytes]):
    """The keys that an iterator is about to hand out. Told apart by what it is, not by what is in it."""

    __slots__ = ("__weakref__",)
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class Scope:
    """What an iterator must not outlive: an open handle, a snapshot, a block of a transaction.

    Iterators hand out a list of keys at a time without asking whether the scope has ended. So their lists are
    registered here, and the end of the scope empties the lists: at its next step each iterator has to ask.
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

    def end_because(self, what: str) -> None:
        """End it, for a reason that errors shall give."""
        self._what = what
        self.end()

    def closed_error(self) -> ClosedError:
        """The error for what is asked for after the end."""
        return ClosedError(self._what)

    def register(self) -> list[bytes]:
        """The list of an iterator that begins: see whether the scope has ended *after* filling it."""
        keys = _Keys()
        self._lists.add(weakref.ref(keys, self._lists.discard))
        return keys


ENDLESS = Scope()


class View:
    """`tree`, and the tree of `tables`, under `layers`, the newest layer first."""

    __slots__ = ("_skipped", "layers", "tables", "tree")

    def __init__(self, tree: Tree, layers: tuple[Layer, ...] = (), tables: Tree | None = None) -> None:
        self.tree = tree
        self.layers = layers
        self.tables = Tree(tree.pager) if tables is None else tables
        self._skipped = 0
        """Bytes of each key that an iterator leaves out."""

    def tree_of(self, key: bytes) -> Tree:
        """The tree that a key belongs to."""
        return self.tables if type(key) is TableKey else self.tree

    def trees(self) -> tuple[Tree, Tree]:
        """Both trees."""
        return self.tree, self.tables

    def find(self, key: bytes) -> bytes | None:
        """The value of `key`, an `Overflow` in place of a large one, or None."""
        for layer in self.layers:
            if key in layer:
                return layer[key]
        return self.tree_of(key).find(key)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        for layer in self.layers:
            if key in layer:
                value = layer[key]
                break
        else:
            value = self.tree_of(key).find(key)
        return self.tree.pager.value(value, key) if type(value) is Overflow else value

    def items(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False,
        scope: Scope = ENDLESS, pin: object = None, in_pieces: Callable[[bytes, Overflow], object] | None = None,
    ) -> Iterator[tuple[bytes, Any]]:
        """The entries with `start <= key < stop`, ascending, or descending if `reverse`.

        A value that is cut into pieces is not read if there is `in_pieces(key, overflow)`, whose result stands for it.

        `pin` is kept for as long as the iterator is, started or not. When `scope` has ended, so has the iteration, with
        `ClosedError`.
        """  # fmt: skip
        batches = self._batches(start, stop, reverse, scope, pin, with_values=True, in_pieces=in_pieces)
        return chain.from_iterable(batches)

    def keys(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False,
        scope: Scope = ENDLESS, pin: object = None,
    ) -> Iterator[bytes]:
        """The keys with `start <= key < stop`, as `items` gives entries."""  # fmt: skip
        return chain.from_iterable(self._batches(start, stop, reverse, scope, pin, with_values=False))

    def _batches(
        self, start: bytes | None, stop: bytes | None, reverse: bool, scope: Scope, pin: object, *,
        with_values: bool, in_pieces: Callable[[bytes, Overflow], Any] | None = None,
    ) -> Iterator[Iterable[Any]]:
        """What `items` and `keys` hand out, a leaf at a time, so that no step in Python is made for each entry.

        An iterator finds the keys gone when the scope ends, comes back here for more, and is told.
        """
        pager, skipped = self.tree.pager, self._skipped
        room = -1
        ahead = scope.register()
        try:
            for keys, values, large in self._chunks(start, stop, reverse, with_values=with_values):
                if large:  # values, which are read one by one, when it is their turn
                    if room < 0:
                        room = pager.file_size()
                    for key, value in zip(keys, values, strict=True):
                        if scope.ended:
                            raise scope.closed_error()
                        if type(value) is Overflow:
                            room -= value.length
                            if room < 0:  # runs that overlap: more to read than there is
                                raise pager.malformed(value.ref, "the large values are larger than the file")
                            if in_pieces is not None and is_indexed(value, key):
                                yield ((key[skipped:], in_pieces(key, value)),)
                            else:
                                yield ((key[skipped:], pager.value(value, key)),)
                        else:
                            yield ((key[skipped:], value),)
                    continue
                ahead[:] = [key[skipped:] for key in keys] if skipped else keys
                if scope.ended:
                    raise scope.closed_error()
                yield zip(ahead, values, strict=False) if with_values else ahead
            if scope.ended:  # perhaps the last batch was cut short
                raise scope.closed_error()
        except error:
            del pin  # the traceback would keep it
            if scope.ended:  # then what is in the pages does not matter
                raise scope.closed_error() from None
            raise

    def _chunks(self, start: bytes | None, stop: bytes | None, reverse: bool, *, with_values: bool) -> Iterator[Chunk]:
        """The tree's chunks with the layers' changes made to them, and then the changes after the last chunk."""
        chunks = self.tree.chunks(start, stop, reverse=reverse, with_values=with_values)
        layers = ((layer, layer.sorted_keys()) for layer in reversed(self.layers) if layer)
        cursors = [_Cursor(layer, keys, start, stop, reverse) for layer, keys in layers if keys]
        return _merged(chunks, cursors, reverse, with_values=with_values) if cursors else chunks


class TableView(View):
    """A view that iterates over the table whose keys have the given prefix, and does so without that. With an empty
    prefix it iterates over all of the tree of tables.
    """

    __slots__ = ("_prefix",)

    def __init__(self, view: View, prefix: bytes) -> None:
        super().__init__(view.tree, view.layers, view.tables)
        self._prefix = prefix
        self._skipped = len(prefix)

    def key(self, key: bytes) -> TableKey:
        """The key of the tree that a key of the table is."""
        return TableKey(self._prefix + key)

    def _chunks(self, start: bytes | None, stop: bytes | None, reverse: bool, *, with_values: bool) -> Iterator[Chunk]:
        first = self._prefix if start is None else self._prefix + start
        end = next_prefix(self._prefix) if stop is None else self._prefix + stop
        chunks = self.tables.chunks(first, end, reverse=reverse, with_values=with_values)
        layers = ((layer, layer.sorted_table_keys()) for layer in reversed(self.layers) if layer)
        cursors = [_Cursor(layer, keys, first, end, reverse) for layer, keys in layers if keys]
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

    def __init__(
        self, layer: Layer, keys: list[bytes], start: bytes | None, stop: bytes | None, reverse: bool
    ) -> None:  # fmt: skip
        self._layer = layer
        self._reverse = reverse
        self._keys = keys
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
            changes[bytes(key)] = layer[key]  # as in a leaf, where no key is a `TableKey`


def _combined(
    keys: list[bytes], values: list[bytes], changes: Mapping[bytes, bytes | None], reverse: bool
) -> Chunk:
    """The entries after the changes."""
    entries: dict[bytes, bytes | None] = dict(zip(keys, values, strict=True))
    entries.update(changes)
    result = sorted((key for key, value in entries.items() if value is not None), reverse=reverse)
    found: list[bytes] = [entries[key] for key in result]  # type: ignore[misc]
    return result, found, Overflow in set(map(type, found))


class State:
    """The database as of one commit. `slot` is the meta slot that was synced with it."""

    __slots__ = ("meta", "slot", "view")

    def __init__(self, meta: Meta, slot: int, view: View) -> None:
        self.meta = meta
        self.slot = slot
        self.view = view

    @classmethod
    def make(cls, meta: Meta, slot: int, pager: Pager) -> State:
        """The state that `meta`, in `slot`, stands for."""
        changes = meta.changes
        layers = (changes if type(changes) is Layer else Layer(changes),) if changes else ()
        tables = Tree(pager, meta.tables_root, meta.tables_depth)
        return cls(meta, slot, View(Tree(pager, meta.root, meta.depth), layers, tables))

    def pages(self) -> PageSet:
        """The pages of the file that the trees may use, for a walk to claim."""
        return PageSet(first_page(self.meta.page_size), self.meta.page_count)

    def free_map(self, pager: Pager) -> FreeMap:
        """The free space, as the file has it. Raises `CorruptionError` if it cannot be as is said there."""
        meta = self.meta
        first = first_page(meta.page_size)
        if meta.space == NO_REF and not meta.depth and not meta.tables_depth:
            return FreeMap.emptied(meta.page_size, first, meta.page_count, meta.txid)
        try:
            free_map = FreeMap.load(meta.space, meta.page_size, first, meta.page_count, pager.read)
        except MALFORMED as exc:
            if is_from_handler(exc):
                raise
            raise pager.malformed(meta.space, f"the free-space map makes no sense: {exc}") from exc
        # Between two free runs stands something; so there are no more of them than pages that are really there. In a
        # sparse file a few bytes of the map could claim otherwise.
        most = pager.kept_pages() + 1
        if meta.page_count > 2 * most and next(islice(free_map.pages.free_runs(), most, None), None) is not None:
            raise pager.malformed(meta.space, "the free-space map has free pages between pages that are not there")
        return free_map
