"""Concurrent calls: on threads where threads can start, otherwise in the caller, one after another.

`concurrent.futures` is not suitable: it refuses work at the end of the interpreter, and an interrupt of the caller may
leave its locks held. Here the caller makes every call that no thread has begun, so nothing depends on a thread that
does not start. A call is claimed, begun and cancelled by single dict operations, so an interrupt may come at any point.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from threading import Lock, Thread

__all__ = ["Call", "Cancelled", "Threads"]

_IDLE = 10.0
"""Seconds after which a thread that has nothing to do ends."""

_LOOK = 0.5
"""Seconds after which the caller looks whether a call has ended: it is woken then, unless an interrupt took that."""


class Cancelled(Exception):
    """The caller was interrupted before this call began to change anything."""


class Call:
    """One call of `function`, which receives this object."""

    __slots__ = ("_bell", "_claims", "_ended", "_function", "failure")

    def __init__(self, function: Callable[[Call], None]) -> None:
        self._function = function
        self._claims: dict[str, object] = {}
        self._ended = False
        self._bell = Lock()
        self._bell.acquire()
        self.failure: BaseException | None = None

    def make(self, maker: object) -> None:
        """Make the call, unless another maker does. Its exception is kept; an interrupt is also raised."""
        if self._claims.setdefault("maker", maker) is not maker:
            return
        try:
            self._function(self)
        except BaseException as exc:
            self.failure = exc
            if not isinstance(exc, Exception):
                raise
        finally:
            self._ended = True
            self._bell.release()

    def begin(self) -> None:
        """Called by the function before it changes anything: raise `Cancelled` if it must not any more."""
        if self._claims.setdefault("fate", "begun") != "begun":
            raise Cancelled

    def wait(self) -> None:
        """Wait until the call has ended."""
        while not self._ended:
            self._bell.acquire(timeout=_LOOK)

    def cancel(self) -> None:
        """Prevent the call from changing anything, unless it has begun to."""
        self._claims.setdefault("fate", "cancelled")

    def settle(self, maker: object) -> None:
        """Wait for a call that has begun to change something, unless `maker` was interrupted in it."""
        if self._claims.get("fate") == "begun" and self._claims.get("maker") is not maker:
            self.wait()


class _Idle(list["SimpleQueue[Call | None]"]):
    """Where threads that have nothing to do get their next call."""

    over = False
    """There will be none."""


class Threads:
    """Threads that make calls. They end when this object is freed, or after some idle seconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle = _Idle()
        self._pid = os.getpid()

    def make(self, here: Iterable[Callable[[Call], None]], anywhere: Iterable[Callable[[Call], None]]) -> None:
        """Make all these calls, those of `here` in this thread. Return when all have ended.

        Raises the exception of the first that fails. If this thread is interrupted, calls that have not begun never do.
        """
        maker = object()
        calls = [Call(function) for function in here]
        own = len(calls) or 1  # so many are made here in any case
        calls += map(Call, anywhere)
        try:
            all(map(self._start, calls[own:]))  # until no thread can start
            for call in calls:
                call.make(maker)
            for call in calls:
                call.wait()
        except BaseException:
            _cancel(calls, maker)
            raise
        failures = [call.failure for call in calls if call.failure is not None]
        if failures:
            for call in calls:
                call.failure = None  # else it would be kept alive by its own traceback
            try:
                raise failures[0]
            finally:
                del failures

    def _start(self, call: Call) -> bool:
        """Have a thread make the call; False if no thread can start."""
        if sys.is_finalizing():
            return False
        if self._pid != os.getpid():  # after a fork the threads are the parent's
            self._idle, self._pid = _Idle(), os.getpid()
        try:
            self._idle.pop().put(call)
        except IndexError:
            inbox: SimpleQueue[Call | None] = SimpleQueue()
            inbox.put(call)
            try:
                Thread(target=_work, args=(inbox, self._idle), name=self._name, daemon=True).start()
            except RuntimeError:
                return False
        return True

    def close(self) -> None:
        """End the threads when they become idle. Does not wait."""
        idle = self._idle
        idle.over = True
        while idle:
            try:
                idle.pop().put(None)
            except IndexError:  # it has ended just now
                break

    def __del__(self) -> None:
        self.close()


def _cancel(calls: list[Call], maker: object) -> None:
    """The caller was interrupted. A further interrupt is raised when the calls that have begun have ended."""
    late: BaseException | None = None
    while True:
        try:
            for call in calls:
                call.cancel()
            for call in calls:
                call.settle(maker)
            break
        except BaseException as exc:
            late = exc
    if late is not None:
        raise late


def _work(inbox: SimpleQueue[Call | None], idle: _Idle) -> None:
    """The loop of a thread. While it waits, it keeps nothing alive but its inbox."""
    forgotten = False
    while True:
        try:
            call = inbox.get(timeout=_IDLE)
        except Empty:
            try:
                idle.remove(inbox)
            except ValueError:  # a caller is about to put something into it, or was interrupted before that
                if not forgotten:
                    forgotten = True
                    continue
            return
        if call is None:
            return
        try:
            call.make(inbox)
        except BaseException:
            pass  # it is kept for the caller
        del call
        forgotten = False
        idle.append(inbox)
        if idle.over:
            return
