"""What the blocks of one transaction, the outermost and those nested in it, have in common."""

from __future__ import annotations

import sys
import threading

from ._engine.spill import Spill
from ._engine.view import Life
from ._engine.work import Work

__all__ = ["BLOCK_OVER", "Root", "Use", "task"]

BLOCK_OVER = "the block of the transaction is over, or was undone"


def task() -> object:
    """The asyncio task that is running, if any: tasks share a thread, and a task's children inherit its context."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class Root:
    """What a transaction and its nested ones share."""

    __slots__ = ("busy", "doomed", "life", "lives", "orphaned", "spill", "task", "thread", "uses", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.spill: Spill | None = None
        self.thread = threading.get_ident()
        self.task = task()
        self.life = Life(BLOCK_OVER)
        self.lives = [self.life]
        """One for each block, nested ones included: what its iterators depend on."""
        self.uses: set[int] = set()
        """Iterators that exist."""
        self.doomed: BaseException | None = None
        """What went wrong while changes were moved out of memory: all that is left to do is to roll back."""
        self.busy = False
        """An operation is going on that a write must not come between: a spill, or the end of a block."""
        self.orphaned = False
        """The process forked: the transaction is the parent's."""


class Use:
    """Counts an iterator of a transaction for as long as it exists, so that its pages are not reused under it."""

    __slots__ = ("_root",)

    def __init__(self, root: Root) -> None:
        self._root = root
        root.uses.add(id(self))

    def __del__(self) -> None:
        self._root.uses.discard(id(self))
