"""Calls that interrupt their own thread: what a signal handler or a finalizer does to a handle that is in use.

Such code runs on the stack of whatever it has interrupted, so waiting for that would be waiting for ever. `Inside`
knows which threads are inside an operation of a handle, and which hold one of its locks. A call that finds itself
inside does what it can do without waiting: a read answers from the newest state that is installed, a write raises
`BusyError`, and closing is put off until the interrupted operation has unwound.

The marks follow the two rules for exceptions that may strike between any two bytecodes: an operation is marked inside
the `try` whose `finally` takes the mark away, and taking it away twice is harmless.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from ..errors import BusyError

__all__ = ["Inside", "held_here"]

T = TypeVar("T")


class _Mark:
    """Stands for one operation that is going on."""

    __slots__ = ("__weakref__", "over")

    def __init__(self) -> None:
        self.over = False


def held_here(lock: Any) -> bool:
    """Whether the calling thread holds the lock, an `RLock`."""
    return bool(lock._is_owned())


def _goes_on(reference: weakref.ref[_Mark] | None) -> bool:
    mark = None if reference is None else reference()
    return mark is not None and not mark.over


class Inside:
    """Which threads are inside an operation of one handle, and what is to be done when they are out."""

    __slots__ = ("_marks", "_path", "_postponed", "locks")

    def __init__(self, path: str) -> None:
        self._path = path
        self._marks: dict[int, weakref.ref[_Mark]] = {}
        """By thread."""
        self._postponed: tuple[int | None, Callable[[], None]] | None = None
        """What to do, and by which thread; None: by any."""
        self.locks: tuple[Any, ...] = ()
        """The handle's locks (`RLock`s). Who holds one of them must not wait for any other."""

    def run(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Call `operation(*arguments)`. Raises `BusyError` if this thread is inside an operation already."""
        mark = _Mark()
        try:
            self._enter(mark)
            return operation(*arguments)
        finally:
            mark.over = True  # no interrupt can strike between the start of the `finally` and this
            self._leave(mark)

    def _enter(self, mark: _Mark) -> None:
        if self.here():
            raise BusyError(
                f"{self._path}: this thread is inside another operation of the handle, which this call has interrupted "
                "(from a signal handler, a finalizer or a callback) and would wait for for ever"
            )
        self._marks[threading.get_ident()] = weakref.ref(mark)

    def _leave(self, mark: _Mark) -> None:
        thread = threading.get_ident()
        known = self._marks.get(thread)
        if known is not None and known() is mark:
            del self._marks[thread]
        if self._postponed is not None:
            self.came_out()

    def here(self) -> bool:
        """Whether the calling thread is inside an operation, or holds a lock of the handle."""
        return _goes_on(self._marks.get(threading.get_ident())) or self.holds_lock()

    @property
    def occupied(self) -> bool:
        """Whether any thread is inside an operation."""
        return any(map(_goes_on, list(self._marks.values())))

    def holds_lock(self) -> bool:
        """Whether the calling thread holds a lock of the handle."""
        return any(map(held_here, self.locks))

    def postpone(self, action: Callable[[], None], *, by_any: bool = False) -> None:
        """Have `action` called when this thread is outside again, or by the next thread that is."""
        self._postponed = None if by_any else threading.get_ident(), action

    @property
    def postponed(self) -> bool:
        """Whether something is."""
        return self._postponed is not None

    def came_out(self) -> None:
        """Do what was postponed, if it is time. What it raises is reported: no caller waits for it."""
        postponed = self._postponed
        if postponed is None or postponed[0] not in (None, threading.get_ident()) or self.here():
            return
        self._postponed = None
        try:
            postponed[1]()
        except Exception as exc:
            report: Any = SimpleNamespace(
                exc_type=type(exc),
                exc_value=exc,
                exc_traceback=exc.__traceback__,
                err_msg=f"{self._path}: closing was put off, and failed",
                object=None,
            )
            sys.unraisablehook(report)

    def forget(self) -> None:
        """In a child process: the threads of the parent are not here."""
        self._marks.clear()
        self._postponed = None
