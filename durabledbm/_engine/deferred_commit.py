"""Deferred commits: changes stay in memory, and the writer lock with them, until they are committed all at once.

Other processes cannot write meanwhile, so what was written in memory is still right when it is committed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from .._interrupts import is_from_handler, is_interrupt
from ..errors import BusyError, error
from .changeset import ChangeSet
from .commit import Committer
from .flusher import may_start
from .pipeline import Pipeline
from .spill import Spill
from .threads import Lease, held_here
from .view import State, View

__all__ = ["DeferredCommit"]

_DEFERRED_MAX = 256 * 2**20
"""Bytes of memory that deferred changes may take before they are committed early."""

T = TypeVar("T")


class DeferredCommit(Pipeline):
    """Keeps changes in memory, and the writer lock with them, until `flush`."""

    defers = True

    def __init__(self, committer: Committer, timeout: float | None) -> None:
        super().__init__(committer, timeout)
        self._make_locks()
        self._changes: ChangeSet | None = None
        self._state = self.store.state
        self._transaction: weakref.ref[Lease] | None = None
        """Of the last transaction. Weakly: that of one that was dropped ends by itself (see `Lease`)."""

    def _make_locks(self) -> None:
        self._mutex = threading.RLock()
        """Held while the deferred changes are changed or committed."""
        self._changing = threading.RLock()
        """Held, within that, only while they really change: readers wait for this one."""
        self.store.inside.locks += (self._mutex, self._changing)

    def apply(self, operation: Callable[[ChangeSet], T]) -> T:
        lease = Lease()
        try:
            self.committer.begin(lease, self.timeout)
            with self._mutex, self._changing:
                self.store.writer.reserved = True
                result = operation(self._current())
                self._check_lock()
            self._end(lease)
        except BaseException:
            self._end(lease)
            raise
        return result

    def put(self, key: bytes, value: bytes) -> bool:
        # No lease is needed if changes are deferred already, no transaction is open, and there is no error to raise.
        store, flusher = self.store, self.flusher
        if held_here(self._mutex) or held_here(store.mutex):
            return False  # this call has interrupted one of its own thread: `apply` refuses it
        try:
            with self._mutex:
                changes = self.deferred()
                if changes is None or changes.size > _DEFERRED_MAX or self._in_transaction:
                    return False
                if self.committer.in_progress or store.closed or store.failure is not None:
                    return False
                if flusher is not None and (flusher.failure is not None or flusher.overdue):
                    return False
                with self._changing:
                    changes.put(key, value)
                if self._changes is not changes:
                    self._check_lock()
        finally:
            if store.inside.postponed:
                store.inside.came_out()
        return True

    def _check_lock(self) -> None:
        """Raise if what was deferred just now was the parent's operation, and this is its child (see `WriterLock`)."""
        try:
            self.committer.writes()
        except error as exc:
            if not is_from_handler(exc):
                self._changes, self.store.writer.reserved = None, False
            raise

    def _current(self) -> ChangeSet:
        """The deferred changes, or a new change set. The mutex must be held, and the writer lock."""
        changes = self.deferred()
        if changes is None:
            state = self.store.state
            changes = self._changes = ChangeSet.on(state)
            self._state = state
        return changes

    def _end(self, lease: Lease) -> None:
        """Release the writer lock, unless changes are deferred: then only threads of this handle may write."""
        if lease.holder is None:
            return
        with self._mutex:
            changes, flusher = self.deferred(), self.flusher
            try:
                if changes is not None and (
                    changes.size > _DEFERRED_MAX
                    or (not may_start() if flusher is None else flusher.overdue or not flusher.wake())
                ):
                    self._commit()
            finally:
                self.store.writer.reserved = self.deferred() is not None
                self.store.writer.lasting = self.flusher is None
                lease.end()

    def _commit(self) -> None:
        """Commit the deferred changes. The mutex must be held, and the writer lock kept."""
        if self.committer.in_progress and self.deferred() is not None:
            self.committer.reconcile()  # the thread that committed them was interrupted
        changes = self.deferred()
        if changes is not None:
            self.committer.commit(changes.as_dict(), cleared=changes.cleared, shrink=not self._in_transaction)
            with self._changing:
                self._changes = None
            self.store.writer.reserved = False
            if self.flusher is not None:
                self.flusher.mark_flushed()

    @property
    def _in_transaction(self) -> bool:
        lease = None if self._transaction is None else self._transaction()
        return lease is not None and lease.holder is not None

    def deferred(self) -> ChangeSet | None:
        # No other handle writes while changes are deferred. So if the state has moved on, it was by committing them.
        changes = self._changes
        if changes is None or not changes.size or self._state.meta.txid != self.store.state.meta.txid:
            return None
        return changes

    def count(self) -> int:
        if held_here(self._changing):  # interrupted amid a change: nothing that it relies on may be touched
            changes = self.deferred()
            return self.store.state.meta.entry_count if changes is None else changes.counted_afresh()
        with self._changing:
            changes = self.deferred()
            if changes is not None:
                return changes.count()
        return self.store.current().meta.entry_count

    def view(self) -> tuple[View, State] | None:
        if held_here(self._changing):
            changes, state = self.deferred(), self._state
            return None if changes is None else (changes.copied_view(), state)
        with self._changing:
            changes, state = self.deferred(), self._state
            return None if changes is None else (changes.view(), state)

    def begin(self, lease: Lease) -> ChangeSet:
        self.committer.begin(lease, self.timeout)
        with self._mutex, self._changing:
            changes = self._current()
            self._transaction = weakref.ref(lease)
            # The deferred changes may be committed while the transaction goes on reading what they replace.
            return ChangeSet(changes.view(), changes.count, hold=self.store.hold() if changes.size else None)

    def spill(self, changes: ChangeSet) -> Spill:
        with self._mutex:
            self._commit()
            return super().spill(changes)

    def finish(self, lease: Lease, changes: ChangeSet | None, spill: Spill | None = None) -> None:
        try:
            with self._mutex:
                if self.committer.in_progress:
                    self.committer.reconcile()  # a thread was interrupted that committed the deferred changes
                if changes is not None and spill is not None:
                    self.committer.commit_spill(spill, changes.as_dict(), sync=True)
                    self._changes = None
                elif changes is not None:
                    with self._changing:
                        self.store.writer.reserved = True
                        deferred = self._current()
                        if changes.cleared:
                            deferred.clear()
                        deferred.add(changes.as_dict(), changes.size)
                        self._check_lock()
        finally:
            self._end(lease)

    def before_fork(self) -> None:
        try:
            self._flush(0.0)
        except BusyError as exc:
            if is_interrupt(exc):
                raise

    def after_fork(self) -> None:
        super().after_fork()
        self._make_locks()
        self._changes = None
        self._transaction = None

    @contextmanager
    def writing(self, lease: Lease | None = None) -> Iterator[None]:
        lease = lease or Lease()
        try:
            self.committer.begin(lease, self.timeout)
            with self._mutex:
                self._commit()
            yield
        finally:
            self._end(lease)

    def flush(self) -> None:
        self._flush(self.timeout)

    def _flush(self, timeout: float | None) -> None:
        # A transaction that is open, of whatever thread, does not stand in the way: the deferred
        # changes are complete, and the transaction builds on them.
        committer = self.committer
        with self._mutex:
            if self.deferred() is None and not self.store.writer.reserved and not committer.in_progress:
                return
            self._commit()
        wanted = committer.in_progress or self.deferred() is not None
        if (wanted or not self._flushed(0.0)) and not self._flushed(timeout):
            raise BusyError(f"{self.store.path}: a commit of another thread did not end in time")

    def _flushed(self, timeout: float | None) -> bool:
        """Commit the deferred changes and release the writer lock. False if a commit of another thread is in progress
        that has not ended within `timeout`: what becomes of it is worth waiting for, and nothing else is.
        """
        lease = Lease()
        try:
            self.committer.begin(lease, timeout)
            with self._mutex:
                self._commit()
        except BusyError as exc:
            if is_interrupt(exc):
                raise
            return not self.committer.in_progress  # else another thread has the lease, and releases the lock at its end
        except BaseException:
            self._end(lease)
            raise
        try:
            self._end(lease)
        finally:  # an interrupt may have struck in there, and another handle of the file be used next
            lease.end()
        return True
