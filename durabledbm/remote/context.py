"""Which block a use of a database belongs to: the one that was begun in the same context.

A context is that of `contextvars`: each thread has its own, and so has each asyncio task; web frameworks and
`asyncio.to_thread` carry one from thread to thread. So a block may begin on one thread of a pool and continue on
another, and what the pool does on the first thread meanwhile is not part of it.

A task that is started inside a block inherits the context, but runs beside the block, not in it (see
`_process.caller_context`).
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any, TypeVar

from .._process.caller_context import CallerContext

__all__ = ["Block", "enter", "innermost", "leave"]

B = TypeVar("B", bound="Block")


class Block:
    """A block of a transaction, as far as its context is concerned."""

    __slots__ = ()
    database: Any
    _caller: CallerContext | None
    """Who began the outermost block; None before that."""

    @property
    def is_open(self) -> bool:
        """Whether the block has begun and not ended."""
        raise NotImplementedError


_active: ContextVar[tuple[weakref.ref[Block], ...]] = ContextVar("durabledbm_remote_blocks", default=())
"""The blocks that were begun in this context, innermost last. The code that began them keeps them alive."""


def innermost(kind: type[B], database: object) -> B | None:
    """The innermost open block of `database` that the caller is in."""
    for reference in reversed(_active.get()):
        block = reference()
        if isinstance(block, kind) and block.database is database and block.is_open:
            return block if block._caller is not None and block._caller.is_me() else None
    return None


def enter(block: Block) -> None:
    """The block has begun, in this context."""
    leave()
    _active.set((*_active.get(), weakref.ref(block)))


def leave() -> None:
    """A block has ended: forget those that are over."""
    _active.set(tuple(reference for reference in _active.get() if (block := reference()) is not None and block.is_open))
