"""Change sets: changes being made on top of a committed state, in memory, for one writer.

It is a stack of layers over a view. Writing goes to the top layer; a savepoint is one more layer; handing out a view,
to iterate over it, makes the present layers final and starts a new one. So nothing that was handed out ever changes,
and rolling back means dropping layers. The keys of a layer are those of the main table and, as `TableKey`s, those of
all others: savepoints, rolling back and commits are of all tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from .catalog import of_tables
from .large_value import KEY_MAX
from .node import Overflow
from .tree import Tree
from .view import Layer, State, View

__all__ = ["CHANGE_MEMORY", "ChangeSet", "Observer", "Savepoint"]

CHANGE_MEMORY = 250
"""Bytes of memory, about, that a change takes beside its key and value."""

_TOO_LONG = "a key must be shorter than 2 GiB"

_ABSENT = object()


class Observer(Protocol):
    """Is told of every commit made through a handle, as an attached log of changes is."""

    def admit(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Raise `ValueError` to keep these changes from being committed."""

    def admit_large(self, key: bytes, length: int, value: Callable[[], bytes] | None = None) -> None:
        """The same for a value that is not in memory. Its length may still grow, unless there is a `value` to get."""

    def expect(self, before: object) -> None:
        """A commit is about to be made on the state `before`. If it is interrupted, `committed` may not be called
        although it was made.
        """

    def committed(self, changes: Mapping[bytes, object] | None) -> None:
        """It was made: with these changes, or (None) with changes that are not known one by one. Or the state has
        become durable: then there are none.
        """

    def finish(self) -> None:
        """The handle is about to be closed. All it has committed is durable."""

    def close(self) -> None:
        """The handle is being closed."""


class Savepoint(NamedTuple):
    """What rolling back returns to."""

    base: View
    base_count: Callable[[], int]
    layers: tuple[Layer, ...]
    size: int
    floors: tuple[int, ...]
    cleared: bool


class ChangeSet:
    """Changes on top of `state`."""

    __slots__ = (
        "_base_count", "_floors", "_growth", "_live", "_origin", "_present", "base", "cleared", "hold", "layers",
        "size",
    )  # fmt: skip

    def __init__(self, base: View, count: Callable[[], int], *, hold: object = None) -> None:
        self.base = base
        self.hold = hold
        """What keeps the pages of the base, if anything must."""
        self._base_count = count
        self._origin = base, count
        self.cleared = False
        """The changes are on top of nothing, not of the committed state."""
        self._live = Layer()
        self.layers: tuple[Layer, ...] = (self._live,)
        """Newest first."""
        self._floors: list[int] = []
        self.size = 0
        """Bytes of memory that the changes take, about."""
        self._present: dict[bytes, bool] | None = None
        self._growth = 0

    @classmethod
    def on(cls, state: State) -> ChangeSet:
        """A change set on top of a committed state."""
        return cls(state.view, lambda: state.meta.entry_count)

    # -- reading -----------------------------------------------------------------------------------

    def find(self, key: bytes) -> bytes | None:
        """The value of `key`, an `Overflow` in place of a large one, or None."""
        for layer in self.layers:
            value = layer.get(key, _ABSENT)
            if value is not _ABSENT:
                return value  # type: ignore[return-value]
        return self.base.find(key)

    def get(
        self, key: bytes, fetch: Callable[..., bytes | None] | None = None, *, whole: bool = True
    ) -> bytes | None:
        """The value of `key`, or None. `fetch(key, whole=whole)`, if given, is a faster way to get what the base holds.

        Unless it is to be `whole`, an `Overflow` may stand for a large value.
        """
        for layer in self.layers:
            value = layer.get(key, _ABSENT)
            if value is not _ABSENT:
                break
        else:
            value = self.base.find(key) if fetch is None else fetch(key, whole=whole)
        if whole and type(value) is Overflow:
            return self.base.tree.pager.value(value, key)
        return value  # type: ignore[return-value]

    def view(self) -> View:
        """What there is now, as a view that later changes do not touch."""
        layers = tuple(layer for layer in self.layers if layer)
        for layer in layers:
            layer.shared = True
        return View(self.base.tree, layers + self.base.layers, self.base.tables)

    def copied_view(self) -> View:
        """The same, for a call that has interrupted a change: what is being changed is copied, not handed out."""
        layers = tuple(Layer(layer.copy()) for layer in self.layers if layer)
        return View(self.base.tree, layers + self.base.layers, self.base.tables)

    def count(self) -> int:
        """How many entries the main table has. The first call looks up every changed key; then it is kept current."""
        if self._present is None:
            changes = self.as_dict()
            self._growth = self._growth_by(changes)
            self._present = {key: value is not None for key, value in changes.items()}
        return self._base_count() + self._growth

    def counted_afresh(self) -> int:
        """The same, for a call that has interrupted a change: nothing is kept up to date by it."""
        return self._base_count() + self._growth_by(self.as_dict().copy())

    def _growth_by(self, changes: dict[bytes, bytes | None]) -> int:
        return sum((value is not None) - self._in_base(key) for key, value in changes.items() if type(key) is bytes)

    def _in_base(self, key: bytes) -> bool:
        return self.base.find(key) is not None

    def builds_on(self, state: State) -> bool:
        """Whether these are changes on top of `state`."""
        return self.base is state.view

    # -- writing -----------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of `key`."""
        live = self._live
        if live.shared:
            live = self._start_layer()
        size = len(key) + len(value)
        if len(key) > KEY_MAX:
            raise ValueError(_TOO_LONG)
        known, self._present = self._present, None  # if this is interrupted, entries are counted anew
        live[key] = value
        if live is not self._live:  # a signal handler has written too, and has moved the changes elsewhere
            self._live[key] = value
            known = None
        self.size += size + CHANGE_MEMORY
        if known is not None:
            after = self.size
            self._count_change(known, key, present=True)
            if self.size == after:  # else a signal handler has written meanwhile, too
                self._present = known

    def delete(self, key: bytes) -> None:
        """Delete `key`, which may be absent."""
        if self._live.shared:
            self._start_layer()
        known, self._present = self._present, None
        self._live[key] = None
        self.size += len(key) + CHANGE_MEMORY
        if known is not None:
            after = self.size
            self._count_change(known, key, present=False)
            if self.size == after:
                self._present = known

    def add(self, changes: dict[bytes, bytes | None], size: int) -> None:
        """Make many changes; `size` is their memory."""
        if size > KEY_MAX and max(map(len, changes), default=0) > KEY_MAX:
            raise ValueError(_TOO_LONG)
        if self._live.shared:
            self._start_layer()
        known, self._present = self._present, None
        self._live.update(changes)
        self.size += size
        if known is not None:
            for key, value in changes.items():
                if type(key) is bytes:
                    self._count_change(known, key, present=value is not None)
            self._present = known

    def _count_change(self, known: dict[bytes, bool], key: bytes, *, present: bool) -> None:
        before = known.get(key)
        if before is None:
            before = self._in_base(key)
        self._growth += present - before
        known[key] = present

    def _start_layer(self) -> Layer:
        """Write to a new layer: the present one was handed out."""
        live = Layer()
        layers = (live, *self._folded(self.layers))
        self._live, self.layers = live, layers  # in one statement, as in `_become`
        return live

    def _folded(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """The layers with those of like size above the last savepoint made one, so that there are never many."""
        floor = self._floors[-1] if self._floors else 0
        while len(layers) - floor >= 2 and len(layers[1]) <= 2 * len(layers[0]):
            layers = (Layer({**layers[1], **layers[0]}), *layers[2:])
        return layers

    # -- writes that depend on what there is -------------------------------------------------------

    def update(self, values: dict[bytes, bytes]) -> None:
        """Set all these values."""
        size = sum(map(len, values)) + sum(map(len, values.values())) + CHANGE_MEMORY * len(values)
        self.add(values, size)  # type: ignore[arg-type]

    def discard(self, key: bytes) -> bool:
        """Delete `key`; False if it is not there."""
        if self.find(key) is None:
            return False
        self.delete(key)
        return True

    def pop(self, key: bytes) -> bytes | None:
        """Delete `key` and return its value, or None if it is not there."""
        value = self.get(key)
        if value is not None:
            self.delete(key)
        return value

    def pop_last(self) -> tuple[bytes, bytes] | None:
        """Delete the entry with the greatest key and return it, or None if there is none."""
        entry = next(self.view().items(reverse=True), None)
        if entry is not None:
            self.delete(entry[0])
        return entry

    def set_default(self, key: bytes, default: bytes) -> bytes:
        """The value of `key`, after setting it to `default` if it is not there."""
        value = self.get(key)
        if value is None:
            self.put(key, default)
            return default
        return value

    # -- savepoints --------------------------------------------------------------------------------

    def savepoint(self) -> Savepoint:
        """Remember the present."""
        layers = self.layers if self._live else self.layers[1:]
        point = Savepoint(self.base, self._base_count, layers, self.size, tuple(self._floors), self.cleared)
        live = Layer()
        self._live, self.layers = live, (live, *layers)
        self._floors.append(len(layers))
        return point

    def release(self, point: Savepoint) -> None:
        """The changes since the savepoint stay, and so do those since savepoints that were made after it."""
        depth = len(point.floors)
        floor, outer = self._floors[depth], self._floors[depth - 1] if depth else 0
        del self._floors[depth:]
        above, below = self.layers[: len(self.layers) - floor], self.layers[len(self.layers) - floor :]
        if floor > outer and not below[0].shared:
            for layer in reversed(above):
                below[0].update(layer)
            self._live, self.layers = below[0], below
        else:
            self._start_layer()

    def unchanged_since(self, point: Savepoint) -> bool:
        """Whether nothing was changed since the savepoint."""
        return self.base is point.base and self.size == point.size

    def roll_back(self, point: Savepoint) -> None:
        """The changes since the savepoint, and since those made after it, are gone."""
        self._become(point.base, point.base_count, point.layers, point.size, list(point.floors), point.cleared)

    def _become(
        self, base: View, count: Callable[[], int], layers: tuple[Layer, ...] = (), size: int = 0,
        floors: list[int] | None = None, cleared: bool = False,
    ) -> None:  # fmt: skip
        live = Layer()
        floors = floors or []
        # In one statement, in which the interpreter looks for no signal: an interrupt comes before it or after it.
        self.base, self._base_count, self.layers, self._live, self._floors, self.cleared, self.size, self._present = (
            base, count, (live, *layers), live, floors, cleared, size, None,
        )  # fmt: skip

    @property
    def has_savepoints(self) -> bool:
        """Whether something may still be rolled back to."""
        return bool(self._floors)

    # -- ends --------------------------------------------------------------------------------------

    def as_dict(self) -> dict[bytes, bytes | None]:
        """All changes, as one dict."""
        layers = [layer for layer in self.layers if layer]
        if len(layers) == 1:
            return layers[0]
        changes: dict[bytes, bytes | None] = {}
        for layer in reversed(layers):
            changes.update(layer)
        return changes

    def reset(self) -> None:
        """Forget all changes, and all savepoints."""
        self._become(*self._origin)

    def clear(self) -> None:
        """Delete everything in the main table."""
        base = self.base
        kept = View(Tree(base.tree.pager), tuple(Layer(of_tables(layer)) for layer in base.layers), base.tables)
        changes = Layer(of_tables(self.as_dict()))
        size = sum(len(key) + len(value or b"") for key, value in changes.items()) + CHANGE_MEMORY * (len(changes) + 1)
        layers = (changes,) if changes else ()
        self._become(kept, _nothing, layers, size, [0] * len(self._floors), cleared=True)

    def rebase(self, base: View, count: int) -> None:
        """Go on from a base that contains all changes made so far."""
        self._become(base, lambda: count, floors=[0] * len(self._floors), cleared=self.cleared)


def _nothing() -> int:
    return 0
