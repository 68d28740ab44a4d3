"""A committed state: a meta page, and the view that it stands for.

States never change; a commit makes a new one. Readers hold the state that they read.
"""

from __future__ import annotations

from .meta import Meta
from .pager import Pager
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
