"""What a transaction and the blocks nested in it share."""

from __future__ import annotations

import weakref
from enum import Enum, auto
from typing import Any

from ._engine.changeset import ChangeSet, Savepoint
from ._engine.spill import Spill
from ._engine.view import ENDLESS, Scope
from ._process.caller_context import CallerContext

__all__ = ["BLOCK_OVER", "Block", "Fate", "TransactionContext", "Use"]

BLOCK_OVER = "the block of the transaction is over, or was undone"


class Fate(Enum):
    """What became of a block."""

    NEW = auto()
    OPEN = auto()
    ENDED = auto()
    """By its own end, or the handle was closed."""
    KEPT = auto()
    """A block around it was left before it, and what this one had changed counts."""
    UNDONE = auto()
    """A block around it was left before it, and what this one had changed does not count."""


class Block:
    """One block, and how to return to its start."""

    __slots__ = ("fate", "first_scope", "mark", "outer", "outer_scope", "owner", "point", "rolled_back", "untouched")

    def __init__(self) -> None:
        self.fate = Fate.NEW
        self.outer: Block | None = None
        """The block around it, if any; then there is also:"""
        self.point: Savepoint | None = None
        self.mark: Any = None
        """The place in what was spilled before; None if that was nothing."""
        self.outer_scope, self.first_scope = ENDLESS, 0
        self.owner: weakref.ref[Any] | None = None
        """The transaction whose block it is."""
        self.rolled_back = False
        self.untouched = False
        """Nothing had been changed in it when a block around it was left."""


class TransactionContext:
    """The state that an outermost transaction shares with the blocks nested in it."""

    __slots__ = (
        "__weakref__",
        "busy",
        "caller",
        "doomed",
        "orphaned",
        "outermost",
        "scope",
        "scopes",
        "spill",
        "top",
        "uses",
        "work",
    )  # fmt: skip

    def __init__(self, work: ChangeSet, caller: CallerContext, outermost: Block) -> None:
        self.work = work
        self.caller = caller
        """Who began it."""
        self.outermost = outermost
        self.top: Block | None = outermost
        """The innermost block that is open: the only one that may write."""
        self.spill: Spill | None = None
        self.scope = Scope(BLOCK_OVER)
        self.scopes = [self.scope]
        """One for each block, nested ones included: what its iterators depend on."""
        self.uses: set[int] = set()
        """Iterators that exist."""
        self.doomed: BaseException | None = None
        """What went wrong: all that is left to do is to roll back."""
        self.busy = False
        """An operation is going on that a write must not come between: a spill, or the end of a block."""
        self.orphaned = False
        """The process forked: the transaction is the parent's."""

    def inside(self, block: Block) -> list[Block]:
        """The open blocks inside `block`, innermost first. `block` is open itself."""
        blocks = []
        inner = self.top
        while inner is not None and inner is not block:
            blocks.append(inner)
            inner = inner.outer
        return blocks

    def leave(self, block: Block) -> list[Block]:
        """Mark `block` and the blocks inside it as ended; return those inside."""
        inside = self.inside(block)
        for inner in inside:
            if inner.fate is Fate.OPEN:
                inner.fate = Fate.UNDONE
        self.top = block.outer
        return inside

    def end_scopes(self) -> None:
        """End all iterators."""
        for scope in self.scopes:
            scope.end()


class Use:
    """Counts an iterator of a transaction while it exists, so that the pages it reads are not reused."""

    __slots__ = ("_context",)

    def __init__(self, context: TransactionContext) -> None:
        self._context = context
        context.uses.add(id(self))

    def __del__(self) -> None:
        self._context.uses.discard(id(self))
