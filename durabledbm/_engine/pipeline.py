"""The ways of a write to the disk, one for each durability mode.

An *operation* is a function of a `Work`: it reads what there is, makes its changes and returns a result. A pipeline
runs operations one at a time and decides when their changes are committed:

* `Group` (durability "full" and "process"): before `run` returns. Operations of threads that wait at the same time are
  committed together: the first of a batch becomes its leader, waits for its turn, and runs and commits all operations
  that have come in by then.
* `Deferred` ("interval" and "manual"): later, all at once. Until then this handle keeps the writer lock, so what was
  written in memory is still right when it is committed.

A `Flusher` is the thread that syncs or commits in time, for the modes that promise one.
"""

from __future__ import annotations

import copy
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

from ..errors import BusyError, error
from .locks import someone_waits
from .state import State
from .store import Store
from .view import View
from .work import Work

__all__ = ["Deferred", "Flusher", "Group", "Pipeline", "make_pipeline"]

T = TypeVar("T")

_PENDING_MAX = 256 * 2**20
"""Bytes of memory that deferred changes may take before they are committed early."""

_MOMENT = 1.0
"""Seconds to wait for a writer when the interpreter ends."""

_PEEK = 0.02
"""Seconds between looks whether another process waits for what this handle holds back."""


class Pipeline(Protocol):
    """Runs operations and commits their changes."""

    store: Store
    flusher: Flusher | None

    def run(self, operation: Callable[[Work], T]) -> T:
        """Run one operation as an atomic change; return when its durability mode says so."""

    def pending(self) -> Work | None:
        """Changes that this handle sees, but the file does not hold yet: to look up single keys in."""

    def count(self) -> int:
        """Entries, with what is pending."""

    def view(self) -> tuple[View, State] | None:
        """The same, as a view that does not change, and the state that it builds on; None if nothing is pending."""

    def begin(self) -> Work:
        """Take the writer lock for a transaction, and return the work that it builds on."""

    def finish(self, work: Work | None, commit: Callable[[bool], State] | None = None) -> None:
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

    def turn(self) -> AbstractContextManager[None]:
        """A block in which nothing is pending and nobody else writes: for commits that are made by hand."""


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
        self._timeout = timeout
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
        return self._timeout is None or time.monotonic() < started + self._timeout

    def _lead(self, batch: _Batch) -> None:
        try:
            try:
                self.store.begin(self._timeout)
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
        return Work.on(self.store.begin(self._timeout))

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
        self._timeout = _MOMENT if self._timeout is None else min(self._timeout, _MOMENT)

    def tidy(self) -> None:
        _tidy(self)

    def before_fork(self) -> None:
        pass

    def after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._open = None
        if self.flusher is not None:
            self.flusher = self.flusher.twin()

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.store.begin(self._timeout)
        try:
            yield
        finally:
            self.store.end()

    def flush(self) -> None:
        store = self.store
        if not store.committer.is_loose:
            return
        store.begin(self._timeout)
        try:
            store.harden()
        finally:
            store.end()


class Deferred:
    """Keeps changes in memory, and the writer lock with them, until `flush`."""

    def __init__(self, store: Store, timeout: float | None) -> None:
        self.store = store
        self.flusher: Flusher | None = None
        self._timeout = timeout
        self._mutex = threading.Lock()
        self._work: Work | None = None
        self.spilling = False
        """A transaction has outgrown memory, and written what is pending to pages of its own."""

    def run(self, operation: Callable[[Work], T]) -> T:
        state = self.store.begin(self._timeout)
        try:
            with self._mutex:
                return operation(self._work_on(state))
        finally:
            self._end()

    def _work_on(self, state: State) -> Work:
        work = self._work
        if work is None or not work.size:
            work = self._work = Work.on(state)
        assert work.cleared or work.root_of(state)
        return work

    def _end(self) -> None:
        keep = False
        try:
            with self._mutex:
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
                self.store.commit(work)
            finally:
                if self.store.state is not before:
                    self._work = None  # committed, whatever else was raised

    def pending(self) -> Work | None:
        work = self._work
        return work if work is not None and work.size else None

    def count(self) -> int:
        with self._mutex:
            work = self._work
            return self.store.current().meta.entry_count if work is None or not work.size else work.count()

    def view(self) -> tuple[View, State] | None:
        with self._mutex:
            work = self._work
            return None if work is None or not work.size else (work.view(), self.store.state)

    def begin(self) -> Work:
        state = self.store.begin(self._timeout)
        with self._mutex:
            work = self._work_on(state)
            return Work(work.view(), work.count)

    def finish(self, work: Work | None, commit: Callable[[bool], State] | None = None) -> None:
        try:
            with self._mutex:
                self.spilling = False
                if commit is not None:
                    self.store.guarded(lambda: commit(True), None)
                    self._work = None
                elif work is not None:
                    pending = self._work_on(self.store.state)
                    if work.cleared:
                        pending.clear()
                    pending.update(work.changes(), work.size)
        finally:
            self._end()

    def hurry(self) -> None:
        self._timeout = _MOMENT if self._timeout is None else min(self._timeout, _MOMENT)

    def tidy(self) -> None:
        _tidy(self)

    def before_fork(self) -> None:
        timeout, self._timeout = self._timeout, 0.0
        try:
            self.flush()
        except BusyError:
            pass
        finally:
            self._timeout = timeout

    def after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._work = None
        if self.flusher is not None:
            self.flusher = self.flusher.twin()

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.store.begin(self._timeout)
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
            self.store.begin(0.0 if self._work is None else self._timeout)
        except BusyError:
            return  # somebody has a turn, and will let go of the writer lock at its end
        with self._mutex:
            try:
                self._commit()
            finally:
                self.store.end(keep=self._work is not None)


class Flusher:
    """A daemon thread that calls `flush` within `interval` seconds of a `wake`.

    It holds the pipeline weakly, so it dies with the handle. What goes wrong in it is kept in `failure`.
    """

    def __init__(self, pipeline: Group | Deferred, interval: float) -> None:
        self._pipeline = weakref.ref(pipeline)
        self._interval = interval
        self._event = threading.Event()
        self._thread: threading.Thread | None = None
        self._mutex = threading.Lock()
        self.failure: BaseException | None = None
        self._stopped = False

    def twin(self) -> Flusher:
        """A flusher like this one, without its thread: for a child process."""
        pipeline = self._pipeline()
        assert pipeline is not None
        return Flusher(pipeline, self._interval)

    def wake(self) -> None:
        """Something was written."""
        if self._event.is_set():
            return
        self._event.set()
        if self._thread is None:
            with self._mutex:
                if self._thread is None and not self._stopped:
                    self._thread = threading.Thread(
                        target=_flush_in_time, args=(weakref.ref(self), self._event), daemon=True, name="durabledbm-flusher"
                    )
                    self._thread.start()

    def round(self) -> bool:
        """Wait for the interval to pass and flush once; False when the thread is to end."""
        deadline = time.monotonic() + self._interval / 2  # the rest is for the flush itself
        while not self._stopped and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _PEEK))
            pipeline = self._pipeline()
            if pipeline is None:
                return False
            if type(pipeline) is Deferred and pipeline.store.writer.kept and someone_waits(pipeline.store.disk):
                break
            del pipeline
        pipeline = self._pipeline()
        if pipeline is None or self._stopped:
            return False
        self._event.clear()
        try:
            pipeline.flush()
        except BaseException as exc:  # noqa: BLE001 - raised by the next call, and by close
            self.failure = exc
        return True

    def stop(self) -> None:
        """End the thread. What is unwritten is the caller's business."""
        self._stopped = True
        self._event.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._thread = None


def _flush_in_time(flusher: weakref.ref[Flusher], event: threading.Event) -> None:
    """The thread. Between rounds it holds nothing but the event, so that the handle can go away."""
    while True:
        while not event.wait(0.5):
            if flusher() is None:
                return
        living = flusher()
        if living is None or not living.round():
            return
        del living


def make_pipeline(store: Store, durability: str, interval: float, timeout: float | None) -> Group | Deferred:
    """The pipeline of a durability mode, with its flusher."""
    pipeline: Group | Deferred
    if durability in ("full", "process"):
        pipeline = Group(store, timeout, sync=durability == "full")
    else:
        pipeline = Deferred(store, timeout)
    if durability in ("process", "interval"):
        pipeline.flusher = Flusher(pipeline, interval)
    return pipeline


def _tidy(pipeline: Group | Deferred) -> None:
    store = pipeline.store
    if not store.readonly and store.committer.leaves_waste:
        try:
            with pipeline.turn():
                store.shrink(store.committer.pages_written)
        except BusyError:
            pass  # whoever writes now will give it back


def _copy(cause: OSError) -> OSError:
    twin = copy.copy(cause)
    twin.__cause__ = cause
    return twin
