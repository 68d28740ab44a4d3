"""Writing a value into a transaction, piece by piece, while its file is read.

Between two pieces the file's code runs, and may do anything with the transaction. So each piece is written for itself,
and only if the transaction is still as it was. The value becomes part of it at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from ._engine.changeset import Observer
from ._engine.node import Overflow
from ._engine.spill import Spill
from ._engine.value_writer import ValueWriter
from ._transaction_context import Block, TransactionContext
from .errors import error
from .streams import Source

__all__ = ["put_in_pieces"]


class Target(Protocol):
    """What is used of a transaction."""

    _block: Block

    def _open_context(self) -> TransactionContext: ...

    def _writing(self) -> object:
        """Raise if nothing may be written."""

    def _exclusively(self, context: TransactionContext, write: Callable[..., Any], *arguments: Any) -> Any:
        """Call `write(spill, *arguments)`; if it fails, the transaction can only be rolled back."""

    def _move(self, spill: Spill, more: Mapping[bytes, bytes] | None = None) -> None:
        """Merge the changes, and `more`, into the trees of the spill."""


def put_in_pieces(target: Target, key: bytes, source: Source, observer: Observer | None) -> None:
    """Set the value of `key` to what `source` gives, which has more than one part."""
    context = target._open_context()
    begun = context.spill is None
    writer: ValueWriter = target._exclusively(context, Spill.value_writer, key)
    spill = context.spill
    try:
        for part in source.parts():  # here the file is read: what it does with the transaction is its own affair...
            target._writing()
            if context.spill is not spill:  # ...unless that has taken away what was written
                raise error("the transaction was rolled back or cleared while a value was read for it")
            if observer is not None:
                observer.admit_large(key, source.length)
            target._exclusively(context, _add, writer, part)
        large: Overflow = target._exclusively(context, _finish, writer)
        if observer is not None:
            observer.admit_large(key, source.length, partial(context.work.base.tree.pager.value, large, key))
        target._exclusively(context, target._move, {key: large})
    except BaseException:
        if spill is not None and context.spill is spill and context.doomed is None and not context.orphaned:
            # The transaction goes on without the value, whose pages are free again.
            if begun and context.top is target._block and not spill.started:
                context.spill = None  # it was for this value alone
            else:
                target._exclusively(context, _free, writer)
        raise


def _add(spill: Spill, writer: ValueWriter, part: bytes) -> None:
    if part:
        writer.add(part)


def _finish(spill: Spill, writer: ValueWriter) -> Overflow:
    large = writer.finish()
    spill.flush()  # an attached log may read it
    return large


def _free(spill: Spill, writer: ValueWriter) -> None:
    writer.abandon()
