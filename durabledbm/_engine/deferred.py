"""Deferred commits: changes stay in memory, and the writer lock with them, until they are committed all at once.

Other processes cannot write meanwhile, so what was written in memory is still right when it is committed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..errors import BusyError
from .locks import Turn
from .pipes import Pipeline
from .reentry import held_here
from .spill import Spill
from .state import State
from .store import Store
from .view import View
from .work import Work

__all__ = ["Deferred"]

_PENDING_MAX = 256 * 2**20
"""Bytes of memory that deferred changes may take before they are committed early."""

T = TypeVar("T")


class Deferred(Pipeline):
    """Keeps changes in memory, and the writer lock with them, until `flush`."""

    def __init__(self, store: Store, timeout: float | None) -> None:
        super().__init__(store, timeout)
        self._make_locks()
        self._work: Work | None = None
        self._state = store.state
        self._transaction: Turn | None = None

    def _make_locks(self) -> None:
        self._mutex = threading.RLock()
        """Held while the pending work is changed or committed."""
        self._glance = threading.RLock()
        """Held, within that, only while the pending work really changes: readers wait for this one."""
        self.store.inside.locks += (self._mutex, self._glance)

    def run(self, operation: Callable[[Work], T]) -> T:
        turn = Turn()
        try:
            self.store.begin(turn, self.timeout)
            with self._mutex, self._glance:
                self.store.writer.reserved = True
                result = operation(self._current_work())
            self._end(turn)
        except BaseException:
            self._end(turn)
            raise
        return result

    def put(self, key: bytes, value: bytes) -> bool:
        # No turn is needed if something is pending already, nobody is in a transaction, and there is nothing to say.
        store, flusher = self.store, self.flusher
        if held_here(self._mutex) or held_here(store.mutex):
            return False  # this call has interrupted one of its own thread: `run` refuses it
        try:
            with self._mutex:
                work = self.pending()
                if work is None or work.size > _PENDING_MAX or self._in_transaction or store.underway:
                    return False
                if store.closed or store.failure is not None:
                    return False
                if flusher is not None and (flusher.failure is not None or flusher.overdue):
                    return False
                with self._glance:
                    work.put(key, value)
        finally:
            if store.inside.postponed:
                store.inside.came_out()
        return True

    def _current_work(self) -> Work:
        """What is pending, or, if nothing is, new work. The mutex must be held, and the writer lock."""
        work = self.pending()
        if work is None:
            state = self.store.state
            work = self._work = Work.on(state)
            self._state = state
        return work

    def _end(self, turn: Turn) -> None:
        """Let go of the writer lock, unless something is pending: then only threads of this handle may write."""
        if turn.lock is None:
            return
        with self._mutex:
            work, flusher = self.pending(), self.flusher
            try:
                if work is not None and (
                    work.size > _PENDING_MAX
                    or (flusher is not None and (flusher.overdue or not flusher.wake()))
                ):
                    self._commit()
            finally:
                self.store.writer.reserved = self.pending() is not None
                self.store.writer.lasting = self.flusher is None
                turn.end()

    def _commit(self) -> None:
        """Commit what is pending. The mutex must be held, and the writer lock kept."""
        if self.store.underway and self.pending() is not None:
            self.store.settle()  # somebody was interrupted who committed it
        work = self.pending()
        if work is not None:
            self.store.commit(work, shrink=not self._in_transaction)
            with self._glance:
                self._work = None
            self.store.writer.reserved = False
            if self.flusher is not None:
                self.flusher.mark_flushed()

    @property
    def _in_transaction(self) -> bool:
        return self._transaction is not None and self._transaction.lock is not None

    def pending(self) -> Work | None:
        # Nobody else writes while something is pending. So if the state has moved on, it was by committing that.
        work = self._work
        if work is None or not work.size or self._state.meta.txid != self.store.state.meta.txid:
            return None
        return work

    def count(self) -> int:
        if held_here(self._glance):  # interrupted amid a change: nothing that it relies on may be touched
            work = self.pending()
            return self.store.state.meta.entry_count if work is None else work.counted_afresh()
        with self._glance:
            work = self.pending()
            if work is not None:
                return work.count()
        return self.store.current().meta.entry_count

    def view(self) -> tuple[View, State] | None:
        if held_here(self._glance):
            work, state = self.pending(), self._state
            return None if work is None else (work.copied_view(), state)
        with self._glance:
            work, state = self.pending(), self._state
            return None if work is None else (work.view(), state)

    def begin(self, turn: Turn) -> Work:
        self.store.begin(turn, self.timeout)
        with self._mutex, self._glance:
            work = self._current_work()
            self._transaction = turn
            # What is pending may be committed while the transaction goes on reading what that replaces.
            return Work(work.view(), work.count, hold=self.store.hold() if work.size else None)

    def spill(self, work: Work) -> Spill:
        with self._mutex:
            self._commit()
            return super().spill(work)

    def finish(self, turn: Turn, work: Work | None, commit: Callable[[bool], State] | None = None) -> None:
        try:
            with self._mutex:
                if self.store.underway:
                    self.store.settle()  # somebody was interrupted who committed what was pending
                if commit is not None:
                    self.store.guarded(lambda: commit(True), None)
                    self._work = None
                elif work is not None:
                    with self._glance:
                        self.store.writer.reserved = True
                        pending = self._current_work()
                        if work.cleared:
                            pending.clear()
                        pending.update(work.changes(), work.size)
        finally:
            self._end(turn)

    def before_fork(self) -> None:
        try:
            self._flush(0.0)
        except BusyError:
            pass

    def after_fork(self) -> None:
        super().after_fork()
        self._make_locks()
        self._work = None
        self._transaction = None

    @contextmanager
    def turn(self, turn: Turn | None = None) -> Iterator[None]:
        turn = turn or Turn()
        try:
            self.store.begin(turn, self.timeout)
            with self._mutex:
                self._commit()
            yield
        finally:
            self._end(turn)

    def flush(self) -> None:
        self._flush(self.timeout)

    def _flush(self, timeout: float | None) -> None:
        # A transaction that is open, of whatever thread, does not stand in the way: what is pending is complete, and
        # the transaction builds on it.
        store = self.store
        with self._mutex:
            if self.pending() is None and not store.writer.reserved and not store.underway:
                return
            self._commit()
        wanted = store.underway or self.pending() is not None
        if not self._flushed(timeout if wanted else 0.0) and not self._flushed(timeout):
            raise BusyError(f"{store.path}: a commit of another thread did not end in time")

    def _flushed(self, timeout: float | None) -> bool:
        """Commit what is pending and let go of the writer lock. False if a commit of another thread is under way that
        has not ended within `timeout`: what becomes of it is worth waiting for, and nothing else is.
        """
        turn = Turn()
        try:
            self.store.begin(turn, timeout)
            with self._mutex:
                self._commit()
        except BusyError:
            return not self.store.underway  # else somebody has a turn, and will let go of the writer lock at its end
        except BaseException:
            self._end(turn)
            raise
        self._end(turn)
        return True
