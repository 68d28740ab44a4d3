"""Group commit: each operation is committed before it returns, together with those that wait at the same time.

The first of a batch becomes its leader, waits for its turn, and runs and commits all operations that have come in by
then. The others wait for the batch, which wakes them in a chain, one by one: waking all at once would make them fight.
A leader that is interrupted ends its batch on the way out; should even that be interrupted, the others find out by
looking now and then whether its turn still exists.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, TypeVar

from ..errors import BusyError, error
from .flusher import Flusher
from .locks import Turn
from .pipes import MOMENT, tidy
from .state import State
from .store import Store
from .view import View
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

    __slots__ = ("begun", "committed", "done", "leader", "over", "tickets")

    def __init__(self, turn: Turn) -> None:
        self.tickets: list[_Ticket] = []
        self.leader = weakref.ref(turn)
        """The turn of the thread that commits for all."""
        self.begun = self.committed = self.over = False
        self.done = threading.Lock()
        self.done.acquire()

    def wake(self) -> None:
        """Wake the next one that waits. Doing it twice is harmless."""
        try:
            self.done.release()
        except RuntimeError:
            pass


class Group:
    """Commits each operation before it returns, together with those that wait at the same time."""

    def __init__(self, store: Store, timeout: float | None, *, sync: bool) -> None:
        self.store = store
        self.flusher: Flusher | None = None
        self.timeout = timeout
        self._sync = sync
        self.spilling = False
        self._mutex = threading.Lock()
        self._open: _Batch | None = None

    def run(self, operation: Callable[[Work], T]) -> T:
        self.store.writer.check_self(self.store.path)
        started = time.monotonic()
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
                    self._follow(batch)
            except BaseException as exc:  # an interrupt: whatever else goes wrong is noted in the tickets
                self._leave(batch, turn, exc)
                raise
            if ticket.failure is None:
                if batch.committed:
                    return ticket.result  # type: ignore[no-any-return]
                self._close(batch)  # its leader was interrupted before it did anything, perhaps even before this
                continue
            # Whoever joined a batch late has not waited for as long as its leader.
            if leads or type(ticket.failure) is not BusyError or not self._may_wait(started):
                raise ticket.failure

    def _may_wait(self, started: float) -> bool:
        return self.timeout is None or time.monotonic() < started + self.timeout

    def _lead(self, batch: _Batch, turn: Turn) -> None:
        try:
            try:
                self.store.begin(turn, self.timeout)
            finally:
                self._close(batch)
            work = Work.on(self.store.state)
            for ticket in batch.tickets:
                try:
                    ticket.result = ticket.operation(work)
                except Exception as exc:
                    ticket.failure = exc
            batch.begun = True
            self._commit(work)
            batch.committed = True
            turn.end()
        except BaseException as exc:
            turn.end()
            self._fail(batch, exc)
        batch.over = True
        batch.wake()

    def _follow(self, batch: _Batch) -> None:
        while not batch.done.acquire(timeout=_LOOK):
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
        """Nothing of the batch counts as written. Each caller gets an exception of its own."""
        unhurt = batch.committed or not (batch.begun or isinstance(cause, Exception))
        for number, ticket in enumerate(batch.tickets):
            if ticket.failure is not None:
                continue
            if number == 0:
                ticket.failure = cause
            elif unhurt:
                continue  # committed; or nothing was done yet when the leader was interrupted, so it may be done again
            elif isinstance(cause, OSError):
                ticket.failure = _copy(cause)
            else:
                ticket.failure = error(f"the commit of this write together with others failed: {cause!r}")

    def _commit(self, work: Work) -> None:
        flusher = self.flusher
        if flusher is None:
            self.store.commit(work, sync=self._sync)
        elif flusher.late():
            self.store.commit(work)
            flusher.done()
        else:
            self.store.commit(work, sync=self._sync)
            flusher.wake()

    def pending(self) -> Work | None:
        return None

    def count(self) -> int:
        return self.store.state.meta.entry_count

    def view(self) -> tuple[View, State] | None:
        return None

    def begin(self, turn: Turn) -> Work:
        return Work.on(self.store.begin(turn, self.timeout))

    def finish(self, turn: Turn, work: Work | None, commit: Callable[[bool], State] | None = None) -> None:
        try:
            if commit is not None:
                self.store.guarded(lambda: commit(self._sync), None)
                if self.flusher is not None:
                    self.flusher.wake()
            elif work is not None:
                self._commit(work)
        finally:
            turn.end()

    def hurry(self) -> None:
        self.timeout = MOMENT if self.timeout is None else min(self.timeout, MOMENT)

    def tidy(self) -> None:
        tidy(self)

    def before_fork(self) -> None:
        pass

    def after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._open = None
        if self.flusher is not None:
            self.flusher = self.flusher.twin()

    @contextmanager
    def turn(self, turn: Turn | None = None) -> Iterator[None]:
        turn = turn or Turn()
        try:
            self.store.begin(turn, self.timeout)
            yield
        finally:
            turn.end()

    def flush(self) -> None:
        store = self.store
        if not store.unsynced:
            return
        turn = Turn()
        try:
            store.begin(turn, self.timeout)
            store.harden()
            turn.end()
        except BaseException:
            turn.end()
            raise


def _copy(cause: OSError) -> OSError:
    twin = copy(cause)
    twin.__cause__ = cause
    return twin
