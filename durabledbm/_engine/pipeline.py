"""Pipelines: the ways of a write to the disk, of which each durability mode has one (see `durability`).

An *operation* is a function of a `ChangeSet`: it reads what there is, makes its changes and returns a result. A
pipeline runs operations one at a time and decides when their changes are committed: `GroupCommit` before `apply`
returns, `DeferredCommit` later, all at once.

One thread at a time may write pages: the one that has the handle's lease, and with it the writer lock of the file.
There is one exception. The deferred changes of a `DeferredCommit` may be committed while a transaction of another
thread has the lease, as long as that has not spilled: it builds on the deferred changes, and holds the pages that it
reads. Once it spills, the free pages are its own; so before it does, the deferred changes are committed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from .._interrupts import is_interrupt
from ..errors import BusyError
from .changeset import ChangeSet
from .commit import Committer
from .flusher import Flusher
from .spill import Spill
from .threads import Lease
from .view import State, View

__all__ = ["Pipeline"]

_MOMENT = 1.0
"""Seconds to wait for a writer when the interpreter ends."""

_TIDYING = 2.0
"""Seconds that closing takes to give back space, at most about: the next commits go on with it."""

T = TypeVar("T")


class Pipeline(ABC):
    """Applies operations and commits their changes. All but the `put` of a pipeline that `defers` are called inside an
    operation (see `threads`).
    """

    defers = False
    """Whether `deferred` may be anything but None."""

    def __init__(self, committer: Committer, timeout: float | None) -> None:
        self.committer = committer
        self.store = committer.store
        self.flusher: Flusher | None = None
        self.timeout = timeout

    # -- writing -----------------------------------------------------------------------------------

    @abstractmethod
    def apply(self, operation: Callable[[ChangeSet], T]) -> T:
        """Apply one operation as an atomic change; return when the durability mode says so."""

    def put(self, key: bytes, value: bytes) -> bool:
        """As `apply`, for the most common of all operations: set the value of `key` in a shorter way. False if there is
        none now: then use `apply`.
        """
        return False

    @abstractmethod
    def begin(self, lease: Lease) -> ChangeSet:
        """Take the writer lock for a transaction, and return the change set that it builds on."""

    @abstractmethod
    def finish(self, lease: Lease, changes: ChangeSet | None, spill: Spill | None = None) -> None:
        """End what `begin` began: with changes, on top of a spilled tree if there is one, or (None) with nothing."""

    def spill(self, changes: ChangeSet) -> Spill:
        """Begin to write the changes of a transaction to pages of their own. It must have the lease."""
        return self.committer.spill(cleared=changes.cleared)

    @abstractmethod
    def flush(self) -> None:
        """Commit and sync whatever is not yet on the disk. Waits for no other writer, if that can be avoided."""

    # -- deferred changes --------------------------------------------------------------------------

    def deferred(self) -> ChangeSet | None:
        """Changes that this handle sees, but the file does not hold yet: to look up single keys in."""
        return None

    def count(self) -> int:
        """Entries, with the deferred changes."""
        return self.store.current().meta.entry_count

    def view(self) -> tuple[View, State] | None:
        """The same, as a view that does not change, and the state that it builds on; None if nothing is deferred."""
        return None

    # -- ends --------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, lease: Lease | None = None) -> Iterator[None]:
        """A block in which nothing is deferred and no one else writes: for commits that are made by hand."""
        lease = lease or Lease()
        try:
            self.committer.begin(lease, self.timeout)
            yield
        finally:
            lease.end()

    @property
    def waits_for_the_disk(self) -> bool:
        """Whether `apply` returns only after a sync."""
        return not self.defers and self.flusher is None

    def hurry(self) -> None:
        """From now on, wait for nothing for more than a moment: the interpreter or the handle is about to end."""
        self.timeout = _MOMENT if self.timeout is None else min(self.timeout, _MOMENT)

    def tidy(self) -> None:
        """Before closing: give back space that the handle's commits have left at the end of the file."""
        store = self.store
        if not store.readonly and self.committer.preparer.leaves_waste() and store.in_place():
            try:
                with self.writing():
                    self.committer.shrink(max(store.pages_written, 1), seconds=_TIDYING)
            except BusyError as exc:
                if is_interrupt(exc):
                    raise
                # else the one that writes now will give it back

    def before_fork(self) -> None:
        """Write the deferred changes if that is possible at once: a child sees only what is in the file."""
        return

    def after_fork(self) -> None:
        """In a child process: locks that threads of the parent held, and what they were doing, are not here."""
        self.committer.after_fork()
        if self.flusher is not None:
            self.flusher = self.flusher.twin()
