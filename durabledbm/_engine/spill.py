"""Spilling: a transaction larger than its memory budget merges early, into pages that no meta page names yet.

The trees under construction are the transaction's alone. A crash leaves its pages unreachable, so they are free;
rolling back forgets them. Pages that a later spill replaces are used again at once, unless an iterator or a savepoint
of the transaction may still want them.
"""

from __future__ import annotations

from collections.abc import Mapping

from .catalog import of_tables
from .disk.protocol import Writes
from .freemap import FreeMap
from .merge import Change
from .page_writer import Mark, PageWriter
from .tables import Trees, merge_trees
from .value_writer import ValueWriter
from .view import State, View

__all__ = ["Spill"]


class Spill:
    """The trees of a transaction on top of `state` that has outgrown memory."""

    def __init__(self, writes: Writes, state: State, free_map: FreeMap, *, cleared: bool) -> None:
        self._pager = pager = state.view.tree.pager
        self._waiting = state.meta.changes
        """Changes that are not in the trees yet."""
        self._free_map = free_map
        self._writer = PageWriter(writes, pager, free_map, state.meta.txid + 1)
        self._writer.own = set()
        self._writer.kept_txid = state.meta.checkpoint_txid
        self._trees = Trees.of(state.meta)
        if cleared:
            self._trees = self._trees.without_main(pager, free_map, self._writer)
            self._waiting = of_tables(self._waiting)
        self.started = cleared
        """Something was merged, or is about to be: the trees are not those of the state any more."""

    @property
    def reuse(self) -> bool:
        """Whether what is replaced may be overwritten at once: no iterator and no savepoint wants it."""
        return self._writer.reuse

    @reuse.setter
    def reuse(self, allowed: bool) -> None:
        self._writer.reuse = allowed

    def add(self, changes: Mapping[bytes, bytes | None]) -> tuple[View, int]:
        """Merge changes; return the trees and the entry count.

        An `Overflow` among them is what a `ValueWriter` of this spill has returned.
        """
        changes, self._waiting = {**self._waiting, **changes}, {}
        self.started = True
        self._trees = merge_trees(self._pager, self._writer, self._trees, changes)
        self._writer.flush()
        return self.view, self._trees.tree_count

    def value_writer(self, key: bytes) -> ValueWriter:
        """A writer for a large value, which becomes part of the tree when `add` is told of it."""
        return ValueWriter(self._writer, key)

    def flush(self) -> None:
        """Hand to the disk what was written, so that it can be read."""
        self._writer.flush()

    @property
    def view(self) -> View:
        """The trees as they are now."""
        return self._trees.view(self._pager)

    def mark(self) -> tuple[Trees, Mark]:
        """Remember the trees as they are, to return to them with `reset`."""
        return self._trees, self._writer.mark()

    def reset(self, mark: tuple[Trees, Mark], *, reuse: bool = True) -> None:
        """Return to the trees as they were. Everything since must have been added with `reuse` false.

        `reuse` allows to overwrite what was written since: no iterator reads it.
        """
        self._writer.release_place()
        self._writer.flush()
        self._trees = mark[0]
        self._writer.reset(mark[1], reuse=reuse)

    def finish(self, changes: Mapping[bytes, Change]) -> tuple[Trees, FreeMap, PageWriter]:
        """Merge the last changes: the trees, and what their commit needs to close the merge."""
        if changes or self._waiting:
            self.reuse = True
            self.add(changes)  # type: ignore[arg-type]
        self._writer.give_back_deferred()
        return self._trees, self._free_map, self._writer
