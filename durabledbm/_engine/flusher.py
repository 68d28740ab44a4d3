"""The flusher: the thread that writes in time what the relaxed durability modes promise to write in time.

Nothing depends on the thread: where it cannot run, because the interpreter ends or the system gives no thread, each
write flushes at once; and if it gets no time, the next write does its work.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from math import inf
from typing import Protocol

from .._interrupts import is_from_handler
from ..errors import BusyError
from .locks import someone_waits
from .store import Store

__all__ = ["Flusher", "Flushes", "start_no_more"]

_PEEK = 0.02
"""Seconds between looks whether another process waits for what this handle holds back."""

_START = 0.5
"""The part of the interval after which a flush begins; the rest is for the flush itself..."""

_DUE = 0.8
"""...which should be over after this part of it. What was written longer ago is flushed by the next write."""

_LIVENESS = 0.5
"""Seconds between looks of an idle thread whether its handle still exists."""

_threads_end = False
"""The interpreter ends: threads that are started now may never run, or never end."""


def start_no_more() -> None:
    """From now on no flusher of this process has a thread: what is written is flushed at once."""
    global _threads_end
    _threads_end = True


class Flushes(Protocol):
    """What a flusher flushes."""

    store: Store

    def flush(self) -> None:
        """Commit and sync whatever is not yet on the disk."""


class Flusher:
    """A daemon thread that calls `flush` within `interval` seconds of a `wake`.

    It holds the pipeline weakly, so it dies with the handle. What goes wrong in it is kept in `failure`, until a later
    flush succeeds.
    """

    def __init__(self, pipeline: Flushes, interval: float) -> None:
        self._pipeline = weakref.ref(pipeline)
        self._interval = interval
        self._bell = threading.Lock()
        """Not locked: something is to be flushed. No `Event`: an interrupt while it is set may leave it locked."""
        self._bell.acquire()
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self._stopped = False
        self._since = 0.0
        """When the first of what is to be flushed was written."""
        self.due = inf
        """When it should be on the disk, if anything is to be flushed."""
        self._took = 0.0
        """Seconds that the last flush took."""

    def twin(self) -> Flusher:
        """A flusher like this one, without its thread: for a child process."""
        pipeline = self._pipeline()
        assert pipeline is not None
        return Flusher(pipeline, self._interval)

    def wake(self) -> bool:
        """Something was written. False if there is no thread to flush it: then the caller must, at once."""
        if self._thread is not None and not self._bell.locked() and not self._stopped:
            return True
        self._since = time.monotonic()
        self.due = self._since + _DUE * self._interval
        if self._stopped or (self._thread is None and not self._start()):
            return False
        self._ring()
        return True

    def _start(self) -> bool:
        if _threads_end or sys.is_finalizing():
            return False
        try:
            thread = threading.Thread(
                target=_flush_in_time, args=(weakref.ref(self), self._bell), daemon=True, name="durabledbm-flusher"
            )
            thread.start()
        except Exception:  # the limit of threads, the end of the interpreter, an interpreter that allows none
            return False
        self._thread = thread  # two may have been started at once; then both take turns at the bell
        return True

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError as exc:
            if is_from_handler(exc):
                raise

    def flush_once(self) -> bool:
        """Wait for the interval to pass and flush once; False when the thread is to end."""
        wait = min(_START * self._interval, max(0.0, _DUE * self._interval - 2 * self._took))
        begun = time.monotonic()
        slept = max(0.0, begun - self._since)
        while not self._stopped and slept < wait:
            nap = min(wait - slept, _PEEK)
            time.sleep(nap)
            # At least what was slept has passed, whatever the clock says.
            slept = max(slept + nap, time.monotonic() - self._since)
            pipeline = self._pipeline()
            if pipeline is None:
                return False
            if _others_wait_for(pipeline.store):
                break
            del pipeline
        pipeline = self._pipeline()
        if pipeline is None or self._stopped:
            return False
        self._bell.acquire(blocking=False)
        self.due = inf
        begun = time.monotonic()
        try:
            pipeline.store.inside.call(pipeline.flush)
        except BusyError:
            self.wake()  # it passes by itself
        except BaseException as exc:
            self.failure = exc
            if pipeline.store.failure is None:
                self.wake()  # the next try may succeed
        else:
            self.failure = None
        self._took = time.monotonic() - begun
        return True

    @property
    def overdue(self) -> bool:
        """Whether something should be on the disk already, and is not: then the caller flushes, and says so."""
        return self.due < time.monotonic()

    def mark_flushed(self) -> None:
        """All that was written is on the disk."""
        self.due = inf

    def stop(self) -> None:
        """Have the thread end, without waiting for it. What is unwritten is the caller's business."""
        self._stopped = True
        self._ring()

    def join(self, timeout: float) -> None:
        """Wait for the thread, which was stopped, to end, for at most `timeout` seconds."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join(timeout)
        self._thread = None


def _others_wait_for(store: Store) -> bool:
    try:
        return store.writer.kept and someone_waits(store.disk)
    except OSError:  # closed at this moment, or in trouble that the flush will meet
        return False


def _flush_in_time(flusher: weakref.ref[Flusher], bell: threading.Lock) -> None:
    """The thread. Between flushes it holds nothing but the bell, so that the handle can go away."""
    while True:
        while not bell.acquire(timeout=_LIVENESS):
            if flusher() is None:
                return
        living = flusher()
        if living is None:
            return
        living._ring()  # until the flush is through
        if not living.flush_once():
            return
        del living
