"""The flusher: the thread that writes in time what the relaxed durability modes promise to write in time."""

from __future__ import annotations

import threading
import time
import weakref
from math import inf
from typing import Protocol

from .locks import someone_waits
from .store import Store

__all__ = ["Flusher", "Flushes"]

_PEEK = 0.02
"""Seconds between looks whether another process waits for what this handle holds back."""

_START = 0.5
"""The part of the interval after which a flush begins; the rest is for the flush itself..."""

_DUE = 0.8
"""...which should be over after this part of it. What was written longer ago is flushed by whoever writes next."""


class Flushes(Protocol):
    """What a flusher flushes."""

    store: Store

    def flush(self) -> None:
        """Commit and sync whatever is not yet on the disk."""


class Flusher:
    """A daemon thread that calls `flush` within `interval` seconds of a `wake`.

    It holds the pipeline weakly, so it dies with the handle. What goes wrong in it is kept in `failure`. Should the
    system not give it time, whoever writes does its work: see `late`.
    """

    def __init__(self, pipeline: Flushes, interval: float) -> None:
        self._pipeline = weakref.ref(pipeline)
        self._interval = interval
        self._bell = threading.Lock()
        """Not locked: something is to be flushed. No `Event`: an interrupt while it is set may leave it locked."""
        self._bell.acquire()
        self._thread: threading.Thread | None = None
        self._mutex = threading.Lock()
        self.failure: BaseException | None = None
        self._started = self._stopped = False
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

    def wake(self) -> None:
        """Something was written."""
        if not self._bell.locked() and self._started:
            return
        self._since = time.monotonic()
        self.due = self._since + _DUE * self._interval
        self._ring()
        with self._mutex:
            if not self._started and not self._stopped:
                self._thread = threading.Thread(
                    target=_flush_in_time, args=(weakref.ref(self), self._bell), daemon=True,
                    name="durabledbm-flusher",
                )
                self._thread.start()
                self._started = True

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass

    def round(self) -> bool:
        """Wait for the interval to pass and flush once; False when the thread is to end."""
        deadline = self._since + min(_START * self._interval, max(0.0, _DUE * self._interval - 2 * self._took))
        while not self._stopped and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _PEEK))
            pipeline = self._pipeline()
            if pipeline is None:
                return False
            if pipeline.store.writer.kept and someone_waits(pipeline.store.disk):
                break
            del pipeline
        pipeline = self._pipeline()
        if pipeline is None or self._stopped:
            return False
        self._bell.acquire(blocking=False)
        self.due = inf
        begun = time.monotonic()
        try:
            pipeline.flush()
        except BaseException as exc:
            self.failure = exc
        self._took = time.monotonic() - begun
        return True

    def late(self) -> bool:
        """Whether something should be on the disk already, and is not: then the caller sees to it, and says `done`."""
        return self.due < time.monotonic()

    def done(self) -> None:
        """All that was written is on the disk."""
        self.due = inf

    def stop(self) -> None:
        """End the thread. What is unwritten is the caller's business."""
        self._stopped = True
        self._ring()
        thread = self._thread
        if thread is not None and self._started and thread is not threading.current_thread():
            thread.join()
        self._thread = None


def _flush_in_time(flusher: weakref.ref[Flusher], bell: threading.Lock) -> None:
    """The thread. Between rounds it holds nothing but the bell, so that the handle can go away."""
    while True:
        while not bell.acquire(timeout=0.5):
            if flusher() is None:
                return
        living = flusher()
        if living is None:
            return
        living._ring()  # till the round is through
        if not living.round():
            return
        del living
