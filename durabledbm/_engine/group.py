"""Group commit: each operation is committed before it returns, together with those that wait at the same time.

The first of a batch becomes its leader, waits for its turn, and runs and commits all operations that have come in by
then. The others wait for the batch, which wakes them in a chain, one by one: waking all at once would make them fight.
A leader that is interrupted ends its batch on the way out; should even that be interrupted, the others find out by
looking now and then whether its turn still exists.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from copy import copy
from typing import Any, TypeVar

from ..errors import BusyError, error
from .locks import Turn
from .patience import Patience
from .pipes import Pipeline
from .state import State
from .store import Store
from .work import Work

__all__ = ["Group"]

_LOOK = 0.5
"""Seconds after which one that waits for its batch looks whether it still has a leader."""

T = TypeVar("T")


class _Ticket:
    """One operation that waits for its batch."""

    __slots__ = ("failure", "operation", "result")

    def __init__(self, operation: Callable[[Work], Any]) -> None:
        self.operation = operation
        self.result: Any = None
        self.failure: BaseException | None = None


class _Batch:
    """Operations that will be committed together."""

    __slots__ = ("committed", "done", "leader", "over", "tickets")

    def __init__(self, turn: Turn) -> None:
        self.tickets: list[_Ticket] = []
        self.leader = weakref.ref(turn)
        """The turn of the thread that commits for all."""
        self.committed: bool | None = False
        """None while the commit is going on, and if it was interrupted and nothing tells what became of it."""
        self.over = False
        self.done = threading.Lock()
        self.done.acquire()

    def wake(self) -> None:
        """Wake the next one that waits. Doing it twice is harmless."""
        try:
            self.done.release()
        except RuntimeError:
            pass


class Group(Pipeline):
    """Commits each operation before it returns, together with those that wait at the same time."""

    def __init__(self, store: Store, timeout: float | None, *, sync: bool) -> None:
        super().__init__(store, timeout)
        self._sync = sync
        self._mutex = threading.Lock()
        self._open: _Batch | None = None

    def run(self, operation: Callable[[Work], T]) -> T:
        self.store.writer.check_self(self.store.path)
        patience = Patience(self.timeout)
        while True:
            ticket, turn = _Ticket(operation), Turn()
            batch: _Batch | None = None
            try:
                with self._mutex:
                    batch = self._open
                    if batch is None:
                        batch = self._open = _Batch(turn)
                    batch.tickets.append(ticket)
                leads = batch.leader() is turn
                if leads:
                    self._lead(batch, turn)
                else:
                    self._follow(batch, patience)
            except BaseException as exc:  # an interrupt: whatever else goes wrong is noted in the tickets
                self._leave(batch, turn, exc)
                raise
            if ticket.failure is None:
                if batch.committed:
                    return ticket.result  # type: ignore[no-any-return]
                self._close(batch)  # its leader was interrupted before it did anything, perhaps even before this
                continue
            # Whoever joined a batch late has not waited for as long as its leader.
            if leads or type(ticket.failure) is not BusyError or patience.over:
                raise ticket.failure

    def _lead(self, batch: _Batch, turn: Turn) -> None:
        try:
            try:
                self.store.begin(turn, self.timeout)
            finally:
                self._close(batch)
            work = Work.on(self.store.state)
            for number, ticket in enumerate(batch.tickets):
                self._carry_out(ticket, work, others=number > 0)
            before, batch.committed = self.store.state.meta.txid, None
            self._commit(work)
            batch.committed = True
            turn.end()
        except BaseException as exc:
            if batch.committed is None and _is_interrupt(exc):
                batch.committed = self._arrived(before)
            turn.end()
            self._fail(batch, exc)
        batch.over = True
        batch.wake()

    def _arrived(self, before: int) -> bool | None:
        """Whether a commit on top of commit `before`, which was interrupted, has been made; None if nothing tells.

        The turn is still the caller's, so nobody else can have committed since.
        """
        try:
            self.store.settle()
        except Exception:
            return None
        return self.store.state.meta.txid > before

    def _follow(self, batch: _Batch, patience: Patience) -> None:
        while not patience.acquire(batch.done, _LOOK):
            if batch.leader() is None and not batch.over:
                self._end(batch, error("the thread that was to commit this write was interrupted"))
        batch.wake()

    def _leave(self, batch: _Batch | None, turn: Turn, cause: BaseException) -> None:
        """Somebody of the batch was interrupted. A leader ends it; a follower may have been woken already."""
        turn.end()
        if batch is not None:
            if batch.leader() is turn:
                self._end(batch, cause)
            elif batch.over:
                batch.wake()

    def _close(self, batch: _Batch) -> None:
        """Nobody may join the batch any more."""
        with self._mutex:
            if self._open is batch:
                self._open = None

    def _end(self, batch: _Batch, cause: BaseException) -> None:
        self._close(batch)
        self._fail(batch, cause)
        batch.over = True
        batch.wake()

    def _fail(self, batch: _Batch, cause: BaseException) -> None:
        """The leader gets the exception. So do the others, each one of its own, if it was no interrupt: that is the
        leader's alone, and they find that they were committed, or are carried out again.
        """
        for number, ticket in enumerate(batch.tickets):
            if ticket.failure is not None:
                continue
            if number == 0:
                ticket.failure = cause
            elif not _is_interrupt(cause):
                ticket.failure = _copy(cause)
            elif batch.committed is None:
                ticket.failure = error(
                    f"the commit of this write together with others was interrupted, and it is not known what became "
                    f"of it: {cause!r}"
                )

    def _carry_out(self, ticket: _Ticket, work: Work, *, others: bool) -> None:
        """Run the operation of a ticket. What it raises is kept there, if it is the operation that raises it.

        An asynchronous exception for the thread that leads, while it runs what `others` have asked for, is the leader's
        own. It is told by a second try: an operation that fails changes nothing, and fails again.
        """
        try:
            ticket.result = self._result(ticket.operation, work)
        except Exception as exc:
            ticket.failure = exc
            if others:
                try:
                    self._result(ticket.operation, work)
                except Exception:
                    return
                raise

    def _result(self, operation: Callable[[Work], T], work: Work) -> T:
        """What an operation returns, after its changes were admitted by whoever observes the commits, if anybody."""
        observer = self.store.observer
        if observer is None:
            return operation(work)
        point = work.savepoint()
        try:
            result = operation(work)
            observer.admit(work.changes())
        except BaseException:
            work.roll_back(point)
            raise
        work.release(point)
        return result

    def _commit(self, work: Work) -> None:
        flusher = self.flusher
        if flusher is None:
            self.store.commit(work, sync=self._sync)
        else:
            self.store.commit(work, sync=False)
            if flusher.overdue or not flusher.wake():
                self.store.harden()
                flusher.mark_flushed()

    def begin(self, turn: Turn) -> Work:
        return Work.on(self.store.begin(turn, self.timeout))

    def finish(self, turn: Turn, work: Work | None, commit: Callable[[bool], State] | None = None) -> None:
        try:
            if commit is not None:
                self.store.guarded(lambda: commit(self._sync), None)
                if self.flusher is not None and not self.flusher.wake():
                    self.store.harden()
            elif work is not None:
                self._commit(work)
        finally:
            turn.end()

    def after_fork(self) -> None:
        super().after_fork()
        self._mutex = threading.Lock()
        self._open = None

    def flush(self) -> None:
        # A sync needs no leave of other writers. Only what becomes of a commit that is under way is worth waiting for.
        if self.store.unsynced and not self._made_durable(0.0) and not self._made_durable(self.timeout):
            raise BusyError(f"{self.store.path}: a commit of another thread did not end in time")
        if self.flusher is not None:
            self.flusher.mark_flushed()

    def _made_durable(self, timeout: float | None) -> bool:
        """Sync what was committed. False if a commit is under way that has not ended within `timeout`."""
        store, turn = self.store, Turn()
        try:
            store.begin(turn, timeout)
            store.harden()
        except BusyError:
            if store.underway:
                return False
            store.sync_file()
        finally:
            turn.end()
        return True


def _is_interrupt(cause: BaseException) -> bool:
    """Whether an exception was raised in a thread from outside, as far as can be told: by a signal handler, or by
    `PyThreadState_SetAsyncExc`, which makes exceptions without arguments. What goes wrong in a commit is an `OSError`
    that says what.
    """
    return not isinstance(cause, (OSError, MemoryError)) or not cause.args


def _copy(cause: BaseException) -> BaseException:
    twin = copy(cause)
    twin.__cause__ = cause
    return twin
