"""Deferred commits: changes stay in memory, and the writer lock with them, until they are committed all at once.

Other processes cannot write meanwhile, so what was written in memory is still right when it is committed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..errors import BusyError
from .flusher import Flusher
from .pipes import MOMENT, tidy
from .state import State
from .store import Store
from .view import View
from .work import Work

__all__ = ["Deferred"]

_PENDING_MAX = 256 * 2**20
"""Bytes of memory that deferred changes may take before they are committed early."""

T = TypeVar("T")


class Deferred:
    """Keeps changes in memory, and the writer lock with them, until `flush`."""

    def __init__(self, store: Store, timeout: float | None) -> None:
        self.store = store
        self.flusher: Flusher | None = None
        self.timeout = timeout
        self._mutex = threading.Lock()
        """Held while the pending work is changed or committed."""
        self._glance = threading.Lock()
        """Held, within that, only while the pending work really changes: readers wait for this one."""
        self._work: Work | None = None
        self._state: State | None = None
        self._in_transaction = False
        self.spilling = False
        """A transaction has outgrown memory, and written what is pending to pages of its own."""

    def run(self, operation: Callable[[Work], T]) -> T:
        self.store.begin(self.timeout)
        try:
            with self._mutex, self._glance:
                return operation(self._current_work())
        finally:
            self._end()

    def _current_work(self) -> Work:
        """What is pending, or, if nothing is, new work. The mutex must be held, and the writer lock."""
        state, work = self.store.state, self._work
        if work is None or not work.size:
            work = self._work = Work.on(state)
            self._state = state
        assert work.cleared or work.root_of(state)
        return work

    def _end(self) -> None:
        keep = False
        with self._mutex:
            try:
                work = self._work
                if work is not None and work.size > _PENDING_MAX:
                    self._commit()
                elif work is not None and work.size:
                    keep = True
            finally:
                self.store.end(keep=keep)
        if keep and self.flusher is not None:
            self.flusher.wake()

    def _commit(self) -> None:
        """Commit what is pending. The mutex must be held, and the writer lock kept."""
        work = self._work
        if work is not None:
            before = self.store.state
            try:
                # A transaction that is open builds on pages that nobody pins: one commit leaves them, more may not.
                self.store.commit(work, shrink=not self._in_transaction)
            finally:
                if self.store.state is not before:
                    with self._glance:
                        self._work = None  # committed, whatever else was raised

    def pending(self) -> Work | None:
        work = self._work
        return work if work is not None and work.size else None

    def count(self) -> int:
        with self._glance:
            work = self._work
            if work is not None and work.size:
                return work.count()
        return self.store.current().meta.entry_count

    def view(self) -> tuple[View, State] | None:
        with self._glance:
            work, state = self._work, self._state
            return None if work is None or state is None or not work.size else (work.view(), state)

    def begin(self) -> Work:
        self.store.begin(self.timeout)
        with self._mutex, self._glance:
            work = self._current_work()
            self._in_transaction = True
            return Work(work.view(), work.count)

    def finish(self, work: Work | None, commit: Callable[[bool], State] | None = None) -> None:
        try:
            with self._mutex:
                self.spilling = self._in_transaction = False
                if commit is not None:
                    self.store.guarded(lambda: commit(True), None)
                    self._work = None
                elif work is not None:
                    with self._glance:
                        pending = self._current_work()
                        if work.cleared:
                            pending.clear()
                        pending.update(work.changes(), work.size)
        finally:
            self._end()

    def hurry(self) -> None:
        self.timeout = MOMENT if self.timeout is None else min(self.timeout, MOMENT)

    def tidy(self) -> None:
        tidy(self)

    def before_fork(self) -> None:
        timeout, self.timeout = self.timeout, 0.0
        try:
            self.flush()
        except BusyError:
            pass
        finally:
            self.timeout = timeout

    def after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._glance = threading.Lock()
        self._work = None
        self._in_transaction = self.spilling = False
        if self.flusher is not None:
            self.flusher = self.flusher.twin()

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.store.begin(self.timeout)
        try:
            with self._mutex:
                self._commit()
                yield
        finally:
            self.store.end(keep=self._work is not None)

    def flush(self) -> None:
        # A transaction that is open, of whatever thread, does not stand in the way: what is pending is complete, and
        # the transaction builds on it. Only one that has spilled has taken it along.
        with self._mutex:
            if self._work is None or not self._work.size:
                return
            if not self.spilling:
                self._commit()
        try:
            self.store.begin(0.0 if self._work is None else self.timeout)
        except BusyError:
            return  # somebody has a turn, and will let go of the writer lock at its end
        with self._mutex:
            try:
                self._commit()
            finally:
                self.store.end(keep=self._work is not None)
