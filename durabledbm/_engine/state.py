"""A committed state: a meta page, and the view that it stands for.

States never change; a commit makes a new one. Readers hold the state that they read.
"""

from __future__ import annotations

from .meta import Meta, first_page
from .page import NO_REF
from .pager import MALFORMED, Pager
from .pageset import PageSet
from .space import Space
from .tree import Tree
from .view import Layer, View

__all__ = ["State"]


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
        layers = (Layer(meta.changes),) if meta.changes else ()
        return cls(meta, slot, View(Tree(pager, meta.root, meta.depth), layers))

    def pages(self) -> PageSet:
        """The pages of the file that a tree may use, for a walk to claim."""
        return PageSet(first_page(self.meta.page_size), self.meta.page_count)

    def space(self, pager: Pager) -> Space:
        """The free space, as the file has it. Raises `CorruptionError` if it cannot be as is said there."""
        meta = self.meta
        first = first_page(meta.page_size)
        if meta.space == NO_REF and not meta.depth:
            return Space.emptied(meta.page_size, first, meta.page_count, meta.txid)
        try:
            return Space.load(meta.space, meta.page_size, first, meta.page_count, pager.read)
        except MALFORMED as exc:
            raise pager.malformed(meta.space, f"the free-space map makes no sense: {exc}") from exc
