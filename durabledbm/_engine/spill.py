"""Spilling: a transaction larger than its memory budget merges early, into pages that no meta page names yet.

The tree under construction is the transaction's alone. A crash leaves its pages unreachable, so they are free; rolling
back forgets them. Pages that a later spill replaces are used again at once, unless an iterator or a savepoint of the
transaction may still want them.
"""

from __future__ import annotations

from collections.abc import Mapping

from .disk.protocol import Disk
from .freemap import FreeMap
from .merge import Change, Merged, merge
from .page import NO_REF
from .page_writer import Mark, PageWriter
from .tree import Tree
from .value_writer import ValueWriter
from .view import State

__all__ = ["Spill"]


class Spill:
    """The tree of a transaction on top of `state` that has outgrown memory."""

    def __init__(self, disk: Disk, state: State, free_map: FreeMap, *, cleared: bool) -> None:
        self._pager = pager = state.view.tree.pager
        self._state = state
        self._free_map = free_map
        self._writer = PageWriter(disk, pager, free_map, state.meta.txid + 1)
        self._writer.own = set()
        if cleared:
            self._free_map.free_all()
            self._merged, self._base_count = Merged(NO_REF, 0, 0), 0
        else:
            tree = state.view.tree
            self._merged, self._base_count = Merged(tree.root, tree.depth, 0), state.meta.tree_count
        self.started = cleared
        """Something was merged, or is about to be: the tree is not that of the state any more."""

    @property
    def reuse(self) -> bool:
        """Whether what is replaced may be overwritten at once: no iterator and no savepoint wants it."""
        return self._writer.reuse

    @reuse.setter
    def reuse(self, allowed: bool) -> None:
        self._writer.reuse = allowed

    def add(self, changes: Mapping[bytes, bytes | None]) -> tuple[Tree, int]:
        """Merge changes; return the tree and its entry count.

        An `Overflow` among them is what a `ValueWriter` of this spill has returned.
        """
        if not self.started:
            changes = {**self._state.meta.changes, **changes}
            self.started = True
        self._writer.expect(changes, self._merged.depth)
        self._merge(changes)
        self._writer.flush()
        return self.tree, self._base_count + self._merged.growth

    def value_writer(self, key: bytes) -> ValueWriter:
        """A writer for a large value, which becomes part of the tree when `add` is told of it."""
        return ValueWriter(self._writer, key)

    def flush(self) -> None:
        """Hand to the disk what was written, so that it can be read."""
        self._writer.flush()

    @property
    def tree(self) -> Tree:
        """The tree as it is now."""
        return Tree(self._pager, self._merged.root, self._merged.depth)

    def mark(self) -> tuple[Merged, Mark]:
        """Remember the tree as it is, to return to it with `reset`."""
        return self._merged, self._writer.mark()

    def reset(self, mark: tuple[Merged, Mark], *, reuse: bool = True) -> None:
        """Return to the tree as it was. Everything since must have been added with `reuse` false.

        `reuse` allows to overwrite what was written since: no iterator reads it.
        """
        self._writer.release_place()
        self._writer.flush()
        self._merged = mark[0]
        self._writer.reset(mark[1], reuse=reuse)

    def _merge(self, changes: Mapping[bytes, Change]) -> None:
        old = self._merged
        new = merge(self._pager, self._writer, old.root, old.depth, changes)
        self._merged = new._replace(growth=old.growth + new.growth)

    def finish(self, changes: Mapping[bytes, Change]) -> tuple[Merged, int, FreeMap, PageWriter]:
        """Merge the last changes: the tree, its entry count, and what its commit needs to close the merge."""
        if changes or not self.started:
            self.reuse = True
            self.add(changes)  # type: ignore[arg-type]
        self._writer.give_back_deferred()
        return self._merged, self._base_count + self._merged.growth, self._free_map, self._writer
