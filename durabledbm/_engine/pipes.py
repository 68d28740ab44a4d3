"""What all pipelines have in common (see `pipeline`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from ..errors import BusyError
from .flusher import Flusher
from .locks import Turn
from .state import State
from .store import Store
from .view import View
from .work import Work

__all__ = ["MOMENT", "Pipeline", "tidy"]

MOMENT = 1.0
"""Seconds to wait for a writer when the interpreter ends."""

_TIDYING = 2.0
"""Seconds that closing takes to give back space, at most about: the next commits go on with it."""

T = TypeVar("T")


class Pipeline(Protocol):
    """Runs operations and commits their changes."""

    store: Store
    flusher: Flusher | None
    timeout: float | None

    def run(self, operation: Callable[[Work], T]) -> T:
        """Run one operation as an atomic change; return when its durability mode says so."""

    def pending(self) -> Work | None:
        """Changes that this handle sees, but the file does not hold yet: to look up single keys in."""

    def count(self) -> int:
        """Entries, with what is pending."""

    def view(self) -> tuple[View, State] | None:
        """The same, as a view that does not change, and the state that it builds on; None if nothing is pending."""

    def begin(self, turn: Turn) -> Work:
        """Take the writer lock for a transaction, and return the work that it builds on."""

    def finish(self, turn: Turn, work: Work | None, commit: Callable[[bool], State] | None = None) -> None:
        """End what `begin` began: with the changes of `work`, or with a commit that was prepared, or with nothing."""

    spilling: bool

    def flush(self) -> None:
        """Commit and sync whatever is not yet on the disk."""

    def hurry(self) -> None:
        """From now on, wait for nobody for more than a moment: the interpreter or the handle is about to end."""

    def tidy(self) -> None:
        """Before closing: give back space that the handle's commits have left at the end of the file."""

    def before_fork(self) -> None:
        """Write what is pending if that is possible at once: a child sees only what is in the file."""

    def after_fork(self) -> None:
        """In a child process: locks that threads of the parent held, and what they were doing, are not here."""

    def turn(self, turn: Turn | None = None) -> AbstractContextManager[None]:
        """A block in which nothing is pending and nobody else writes: for commits that are made by hand."""


def tidy(pipeline: Pipeline) -> None:
    """Before closing: give back space that the handle's commits have left at the end of the file."""
    store = pipeline.store
    if not store.readonly and store.committer.leaves_waste():
        try:
            with pipeline.turn():
                store.shrink(store.committer.pages_written, seconds=_TIDYING)
        except BusyError:
            pass  # whoever writes now will give it back
