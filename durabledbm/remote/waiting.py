"""Waiting and ending: what all databases on servers need."""

from __future__ import annotations

import random
import threading
import time
from types import TracebackType

from ..errors import BusyError, ClosedError

__all__ = ["Backoff", "OwnedLock", "Scope"]

_CLOSED = "DBM object has already been closed"

_LONGEST_PAUSE = 0.2
"""Seconds between two tries."""


class Scope:
    """Whether something still exists. `reason` is the error's text once it does not."""

    __slots__ = ("_reason", "ended")

    def __init__(self, reason: str = _CLOSED) -> None:
        self._reason = reason
        self.ended = False

    def end(self) -> None:
        """It is over."""
        self.ended = True

    def check(self) -> None:
        """Raise `ClosedError` if it is over."""
        if self.ended:
            raise ClosedError(self._reason)


class Backoff:
    """Growing pauses between tries, at most `timeout` seconds in all (None: for ever)."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout
        self._pause = 0.001

    def left(self) -> float | None:
        """Seconds left, at least 0; None: for ever."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def pause(self) -> bool:
        """Wait a little; False, at once, if no time is left."""
        left = self.left()
        if left is not None and left <= 0:
            return False
        pause = random.uniform(0, self._pause)  # at random: else those who met once meet again
        time.sleep(pause if left is None else min(pause, left))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


class OwnedLock:
    """A lock that notices when its holder asks for it again, in a signal handler or finalizer on its own stack.

    Then it raises `BusyError` instead of deadlocking. An interrupt may come between any two steps, so the lock itself
    says who holds it, never a variable that is set before or after.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def held_here(self) -> bool:
        """Whether this thread holds it."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def is_free(self) -> bool:
        """Whether it is free just now."""
        if self.held_here() or not self._lock.acquire(blocking=False):
            return False
        self._lock.release()
        return True

    def __enter__(self) -> None:
        if self.held_here():
            raise BusyError("this thread is in the middle of another operation of the same transaction or snapshot")
        try:
            self._lock.acquire()
        except BaseException:
            if self.held_here():
                self._lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
