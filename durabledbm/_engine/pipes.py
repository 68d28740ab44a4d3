"""What all pipelines have in common (see `pipeline`).

A pipeline decides who may write pages, and when: one thread at a time, which has the handle's turn and with it the
writer lock of the file. There is one exception. What is pending in a `Deferred` may be committed while a transaction
of another thread has the turn, as long as that has not spilled: it builds on the pending changes, and holds the pages
that it reads. Once it spills, the free pages are its own; so before it does, what is pending is committed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..errors import BusyError
from .flusher import Flusher
from .locks import Turn
from .spill import Spill
from .state import State
from .store import Store
from .view import View
from .work import Work

__all__ = ["Pipeline"]

_MOMENT = 1.0
"""Seconds to wait for a writer when the interpreter ends."""

_TIDYING = 2.0
"""Seconds that closing takes to give back space, at most about: the next commits go on with it."""

T = TypeVar("T")


class Pipeline(ABC):
    """Runs operations and commits their changes. All but `put` are called inside an operation (see `reentry`)."""

    def __init__(self, store: Store, timeout: float | None) -> None:
        self.store = store
        self.flusher: Flusher | None = None
        self.timeout = timeout

    # -- writing -----------------------------------------------------------------------------------

    @abstractmethod
    def run(self, operation: Callable[[Work], T]) -> T:
        """Run one operation as an atomic change; return when its durability mode says so."""

    def put(self, key: bytes, value: bytes) -> bool:
        """Set the value of `key` without taking a turn, if that is possible. False if it was not: then use `run`."""
        return False

    @abstractmethod
    def begin(self, turn: Turn) -> Work:
        """Take the writer lock for a transaction, and return the work that it builds on."""

    @abstractmethod
    def finish(self, turn: Turn, work: Work | None, commit: Callable[[bool], State] | None = None) -> None:
        """End what `begin` began: with the changes of `work`, or with a commit that was prepared, or with nothing."""

    def spill(self, work: Work) -> Spill:
        """Begin to write the changes of a transaction, `work`, to pages of their own. It must have the turn."""
        store = self.store
        return Spill(store.committer, store.pager, store.state, store.oldest_txid(), cleared=work.cleared)

    @abstractmethod
    def flush(self) -> None:
        """Commit and sync whatever is not yet on the disk. Waits for no other writer, if that can be avoided."""

    # -- what is pending ---------------------------------------------------------------------------

    def pending(self) -> Work | None:
        """Changes that this handle sees, but the file does not hold yet: to look up single keys in."""
        return None

    def count(self) -> int:
        """Entries, with what is pending."""
        return self.store.current().meta.entry_count

    def view(self) -> tuple[View, State] | None:
        """The same, as a view that does not change, and the state that it builds on; None if nothing is pending."""
        return None

    # -- ends --------------------------------------------------------------------------------------

    @contextmanager
    def turn(self, turn: Turn | None = None) -> Iterator[None]:
        """A block in which nothing is pending and nobody else writes: for commits that are made by hand."""
        turn = turn or Turn()
        try:
            self.store.begin(turn, self.timeout)
            yield
        finally:
            turn.end()

    def hurry(self) -> None:
        """From now on, wait for nobody for more than a moment: the interpreter or the handle is about to end."""
        self.timeout = _MOMENT if self.timeout is None else min(self.timeout, _MOMENT)

    def tidy(self) -> None:
        """Before closing: give back space that the handle's commits have left at the end of the file."""
        store = self.store
        if not store.readonly and store.committer.leaves_waste() and store.in_place():
            try:
                with self.turn():
                    store.shrink(max(store.committer.pages_written, 1), seconds=_TIDYING)
            except BusyError:
                pass  # whoever writes now will give it back

    def before_fork(self) -> None:
        """Write what is pending if that is possible at once: a child sees only what is in the file."""
        return

    def after_fork(self) -> None:
        """In a child process: locks that threads of the parent held, and what they were doing, are not here."""
        if self.flusher is not None:
            self.flusher = self.flusher.twin()
