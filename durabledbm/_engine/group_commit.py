"""Group commit: each operation is committed before it returns, together with those that wait at the same time.

The first of a batch becomes its leader, waits for its lease, and runs and commits all operations that have come in by
then. The others wait for the batch, which wakes them in a chain, one by one: waking all at once would make them fight.
A leader that is interrupted ends its batch on the way out; should even that be interrupted, the others find out by
looking now and then whether its lease still exists.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from copy import copy
from typing import Any, TypeVar

from .._interrupts import is_from_handler, is_interrupt
from ..errors import BusyError, error
from .changeset import ChangeSet
from .commit import Committer
from .large_value import KEY_MAX
from .pipeline import Pipeline
from .spill import Spill
from .threads import Lease, Patience

__all__ = ["GroupCommit"]

_LOOK = 0.5
"""Seconds after which one that waits for its batch looks whether it still has a leader."""

_LINGER = 3e-4
"""Seconds that a leader waits at most for others to join its batch: less than a sync takes."""

_TRIES = 10
"""How often finding out what became of an interrupted commit may be interrupted, and is begun again."""

_GLANCES = 1000
"""How often it looks meanwhile, at most."""

T = TypeVar("T")


class _Request:
    """One operation that waits for its batch."""

    __slots__ = ("failure", "operation", "result")

    def __init__(self, operation: Callable[[ChangeSet], Any]) -> None:
        self.operation = operation
        self.result: Any = None
        self.failure: BaseException | None = None


class _Batch:
    """Operations that will be committed together."""

    __slots__ = ("committed", "done", "leader", "over", "requests")

    def __init__(self, lease: Lease) -> None:
        self.requests: list[_Request] = []
        self.leader = weakref.ref(lease)
        """The lease of the thread that commits for all."""
        self.committed: bool | None = False
        """None while the commit is going on, and if it was interrupted and nothing tells what became of it."""
        self.over = False
        self.done = threading.Lock()
        self.done.acquire()

    def wake(self) -> None:
        """Wake the next one that waits. Doing it twice is harmless."""
        try:
            self.done.release()
        except RuntimeError as exc:
            if is_from_handler(exc):
                raise


class GroupCommit(Pipeline):
    """Commits each operation before it returns, together with those that wait at the same time."""

    def __init__(self, committer: Committer, timeout: float | None, *, sync: bool) -> None:
        super().__init__(committer, timeout)
        self._sync = sync
        self._mutex = threading.Lock()
        self._open: _Batch | None = None
        self._crowd = 0
        """How many threads have been writing at the same time lately."""

    def put(self, key: bytes, value: bytes) -> bool:
        # Nobody else of this handle writes, or has written lately: one change needs neither a request nor a batch.
        store = self.store
        if self._crowd > 1 or self._open is not None or store.writer.busy or store.observer is not None:
            return False
        if len(key) > KEY_MAX:
            return False
        lease = Lease()
        try:
            self.committer.begin(lease, self.timeout)
            try:
                self.committer.commit({key: value}, sync=self._sync)
                self._wake_flusher()
            except BaseException as exc:
                if is_interrupt(exc):
                    self._arrived(0)  # so that no later commit brings it to light
                raise
        finally:
            try:
                lease.end()
            finally:  # an interrupt may have struck in there
                lease.end()
        return True

    def apply(self, operation: Callable[[ChangeSet], T]) -> T:
        self.store.writer.check_self(self.store.path)
        patience = Patience(self.timeout)
        while True:
            request, lease = _Request(operation), Lease()
            batch: _Batch | None = None
            try:
                with self._mutex:
                    batch = self._open
                    if batch is None:
                        batch = self._open = _Batch(lease)
                    batch.requests.append(request)
                leads = batch.leader() is lease
                if leads:
                    self._lead(batch, lease)
                else:
                    self._follow(batch, patience)
            except BaseException as exc:  # an interrupt: whatever else goes wrong is noted in the requests
                self._leave(batch, lease, exc)
                raise
            if request.failure is None:
                if batch.committed:
                    return request.result  # type: ignore[no-any-return]
                self._close(batch)  # its leader was interrupted before it did anything, perhaps even before this
                continue
            # A follower that joined late has not waited for as long as its leader.
            if leads or type(request.failure) is not BusyError or patience.over:
                raise request.failure

    def _lead(self, batch: _Batch, lease: Lease) -> None:
        try:
            try:
                self.committer.begin(lease, self.timeout)
                self._linger(batch)
            finally:
                self._close(batch)
            changes = ChangeSet.on(self.store.state)
            for number, request in enumerate(batch.requests):
                self._carry_out(request, changes, others=number > 0)
            before, batch.committed = self.store.state.meta.txid, None
            self._commit(changes)
            batch.committed = True
            waiting = self._open
            crowd = len(batch.requests) + (len(waiting.requests) if waiting is not None else 0)
            self._crowd = max(crowd, self._crowd - 1 - self._crowd // 8)
            lease.end()
        except BaseException as exc:
            if batch.committed is None and is_interrupt(exc):
                batch.committed = self._arrived(before)
            lease.end()
            self._fail(batch, exc)
        batch.over = True
        batch.wake()

    def _linger(self, batch: _Batch) -> None:
        """Wait a moment for those that wrote together lately: who was in the last batch is only just being woken.
        Without that there would be two batches that take turns, each of half of the threads.
        """
        crowd, requests = self._crowd, batch.requests
        deadline = time.monotonic() + _LINGER
        for _ in range(_GLANCES):  # the clock may stand still
            if len(requests) >= crowd or time.monotonic() > deadline:
                break
            time.sleep(0)  # which lets the others run

    def _arrived(self, before: int) -> bool | None:
        """Whether a commit on top of commit `before`, which was interrupted, has been made; None if nothing tells.

        The lease is still the caller's, so no one else can have committed since.
        """
        for _ in range(_TRIES):
            try:
                self.committer.reconcile()
            except BaseException as exc:
                if not is_interrupt(exc):
                    return None
                # else another one: the caller raises the first, and the others of the batch are to know
            else:
                return self.store.state.meta.txid > before
        return None

    def _follow(self, batch: _Batch, patience: Patience) -> None:
        while not patience.acquire(batch.done, _LOOK):
            if batch.leader() is None and not batch.over:
                self._end(batch, error("the thread that was to commit this write was interrupted"))
        batch.wake()

    def _leave(self, batch: _Batch | None, lease: Lease, cause: BaseException) -> None:
        """A thread of the batch was interrupted. A leader ends the batch; a follower may have been woken already."""
        lease.end()
        if batch is not None:
            if batch.leader() is lease:
                self._end(batch, cause)
            elif batch.over:
                batch.wake()

    def _close(self, batch: _Batch) -> None:
        """Let no more requests join the batch."""
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
        for number, request in enumerate(batch.requests):
            if request.failure is not None:
                continue
            if number == 0:
                request.failure = cause
            elif not is_interrupt(cause):
                request.failure = _copy(cause)
            elif batch.committed is None:
                request.failure = error(
                    f"the commit of this write together with others was interrupted, and it is not known what became "
                    f"of it: {cause!r}"
                )

    def _carry_out(self, request: _Request, changes: ChangeSet, *, others: bool) -> None:
        """Run the operation of a request. What it raises is kept there, if it is the operation that raises it.

        An asynchronous exception for the thread that leads, while it runs what `others` have asked for, is the leader's
        own. It is told by a second try: an operation that fails changes nothing, and fails again.
        """
        try:
            request.result = self._result(request.operation, changes)
        except Exception as exc:
            request.failure = exc
            if others:
                try:
                    self._result(request.operation, changes)
                except Exception:
                    return
                raise

    def _result(self, operation: Callable[[ChangeSet], T], changes: ChangeSet) -> T:
        """What an operation returns, after the observer, if there is one, has admitted its changes."""
        observer = self.store.observer
        if observer is None:
            return operation(changes)
        point = changes.savepoint()
        try:
            result = operation(changes)
            observer.admit(changes.as_dict())
        except BaseException:
            changes.roll_back(point)
            raise
        changes.release(point)
        return result

    def _commit(self, changes: ChangeSet, spill: Spill | None = None) -> None:
        if spill is None:
            self.committer.commit(changes.as_dict(), cleared=changes.cleared, sync=self._sync)
        else:
            self.committer.commit_spill(spill, changes.as_dict(), sync=self._sync)
        self._wake_flusher()

    def _wake_flusher(self) -> None:
        """Something was committed: it is on the disk, or the flusher sees to it in time, or this does."""
        flusher = self.flusher
        if flusher is not None and (flusher.overdue or not flusher.wake()):
            self.committer.make_durable()
            flusher.mark_flushed()

    def begin(self, lease: Lease) -> ChangeSet:
        return ChangeSet.on(self.committer.begin(lease, self.timeout))

    def finish(self, lease: Lease, changes: ChangeSet | None, spill: Spill | None = None) -> None:
        try:
            if changes is not None:
                self._commit(changes, spill)
        except BaseException as exc:
            if changes is not None and is_interrupt(exc):
                self._arrived(0)  # so that no later commit brings it to light
            raise
        finally:
            lease.end()

    def after_fork(self) -> None:
        super().after_fork()
        self._mutex = threading.Lock()
        self._open = None
        self._crowd = 0

    def flush(self) -> None:
        # A sync needs no lease. Only a commit in progress is worth waiting for: what becomes of it is not known yet.
        if self.committer.has_unsynced and not self._made_durable(0.0) and not self._made_durable(self.timeout):
            raise BusyError(f"{self.store.path}: a commit of another thread did not end in time")
        if self.flusher is not None:
            self.flusher.mark_flushed()

    def _made_durable(self, timeout: float | None) -> bool:
        """Sync what was committed. False if a commit is in progress that has not ended within `timeout`."""
        committer, lease = self.committer, Lease()
        try:
            committer.begin(lease, timeout)
            committer.make_durable()
        except BusyError as exc:
            if is_interrupt(exc):
                raise
            if committer.in_progress:
                return False
            committer.sync_file()
        finally:
            try:
                lease.end()
            finally:  # an interrupt may have struck in there, and another handle of the file be used next
                lease.end()
        return True


def _copy(cause: BaseException) -> BaseException:
    twin = copy(cause)
    twin.__cause__ = cause
    return twin
