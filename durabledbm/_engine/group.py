"""Group commit: each operation is committed before it returns, together with those that wait at the same time.

The first of a batch becomes its leader, waits for its turn, and runs and commits all operations that have come in by
then. The others wait for the batch, which wakes them in a chain, one by one: waking all at once would make them fight.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import BusyError, error
from .flusher import Flusher
from .pipes import MOMENT, tidy
from .state import State
from .store import Store
from .view import View
from .work import Work

__all__ = ["Group"]

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

    __slots__ = ("done", "tickets")

    def __init__(self) -> None:
        self.tickets: list[_Ticket] = []
        self.done = threading.Lock()
        self.done.acquire()


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
            ticket = _Ticket(operation)
            with self._mutex:
                batch = self._open
                leads = batch is None
                if batch is None:
                    batch = self._open = _Batch()
                batch.tickets.append(ticket)
            if leads:
                self._lead(batch)
            else:
                batch.done.acquire()
                batch.done.release()
            if ticket.failure is None:
                return ticket.result  # type: ignore[no-any-return]
            # Whoever joined a batch late has not waited for as long as its leader.
            if leads or type(ticket.failure) is not BusyError or not self._may_wait(started):
                raise ticket.failure

    def _may_wait(self, started: float) -> bool:
        return self.timeout is None or time.monotonic() < started + self.timeout

    def _lead(self, batch: _Batch) -> None:
        try:
            try:
                self.store.begin(self.timeout)
            finally:
                with self._mutex:
                    self._open = None
            try:
                work = Work.on(self.store.state)
                for ticket in batch.tickets:
                    try:
                        ticket.result = ticket.operation(work)
                    except Exception as exc:
                        ticket.failure = exc
                self._commit(work)
            finally:
                self.store.end()
        except BaseException as exc:
            self._fail(batch, exc)
        finally:
            batch.done.release()

    def _fail(self, batch: _Batch, cause: BaseException) -> None:
        """Nothing of the batch counts as written. Each caller gets an exception of its own."""
        for number, ticket in enumerate(batch.tickets):
            if ticket.failure is None:
                if number == 0:
                    ticket.failure = cause
                elif isinstance(cause, OSError):
                    ticket.failure = _copy(cause)
                else:
                    ticket.failure = error(f"the commit of this write together with others failed: {cause!r}")

    def _commit(self, work: Work) -> None:
        self.store.commit(work, sync=self._sync)
        if self.flusher is not None:
            self.flusher.wake()

    def pending(self) -> Work | None:
        return None

    def count(self) -> int:
        return self.store.state.meta.entry_count

    def view(self) -> tuple[View, State] | None:
        return None

    def begin(self) -> Work:
        return Work.on(self.store.begin(self.timeout))

    def finish(self, work: Work | None, commit: Callable[[bool], State] | None = None) -> None:
        try:
            if commit is not None:
                self.store.guarded(lambda: commit(self._sync), None)
                if self.flusher is not None:
                    self.flusher.wake()
            elif work is not None:
                self._commit(work)
        finally:
            self.store.end()

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
    def turn(self) -> Iterator[None]:
        self.store.begin(self.timeout)
        try:
            yield
        finally:
            self.store.end()

    def flush(self) -> None:
        store = self.store
        if not store.committer.is_loose:
            return
        store.begin(self.timeout)
        try:
            store.harden()
        finally:
            store.end()


def _copy(cause: OSError) -> OSError:
    from copy import copy

    twin = copy(cause)
    twin.__cause__ = cause
    return twin
