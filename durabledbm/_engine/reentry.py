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
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

from ..errors import BusyError

__all__ = ["Inside", "forget_threads", "held_here"]

T = TypeVar("T")


class _Mark:
    """Stands for one operation that is going on."""

    __slots__ = ("__weakref__", "inside", "over")

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        self.over = False


_marks: dict[int, tuple[weakref.ref[_Mark], ...]] = {}
"""The operations that each thread is inside of, the innermost last."""


def held_here(lock: Any) -> bool:
    """Whether the calling thread holds the lock, an `RLock`."""
    return bool(lock._is_owned())


def forget_threads() -> None:
    """In a child process: the threads of the parent are not here."""
    _marks.clear()


def _going_on(thread: int) -> Iterator[_Mark]:
    """The operations that the thread is inside of."""
    for reference in _marks.get(thread, ()):
        mark = reference()
        if mark is not None and not mark.over:
            yield mark


class Inside:
    """Which threads are inside an operation of one handle, and what is to be done when they are out."""

    __slots__ = ("_path", "_postponed", "file", "locks")

    def __init__(self, path: str, file: object) -> None:
        self._path = path
        self.file = file
        """What tells the file from others: two handles may have the same."""
        self._postponed: tuple[int | None, Callable[[], None]] | None = None
        """What to do, and by which thread; None: by any."""
        self.locks: tuple[Any, ...] = ()
        """The handle's locks (`RLock`s). Who holds one of them must not wait for any other."""

    def run(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Call `operation(*arguments)`. Raises `BusyError` if this thread is inside an operation already."""
        mark = _Mark(self)
        try:
            self._enter(mark)
            return operation(*arguments)
        finally:
            mark.over = True  # no interrupt can strike between the start of the `finally` and this
            self._leave()

    def _enter(self, mark: _Mark) -> None:
        if self.here():
            raise self._busy("the handle")
        thread = threading.get_ident()
        _marks[thread] = (*_marks.get(thread, ()), weakref.ref(mark))

    def _leave(self) -> None:
        thread = threading.get_ident()
        left = tuple(weakref.ref(mark) for mark in _going_on(thread))
        if left:
            _marks[thread] = left
        else:
            _marks.pop(thread, None)
        if self._postponed is not None:
            self.came_out()

    def check_file(self) -> None:
        """Raise `BusyError` if this thread is inside an operation of another handle of the same file."""
        if len(_marks.get(threading.get_ident(), ())) > 1 and any(
            mark.inside is not self and mark.inside.file == self.file for mark in _going_on(threading.get_ident())
        ):
            raise self._busy("another handle of the file")

    def _busy(self, whose: str) -> BusyError:
        return BusyError(
            f"{self._path}: this thread is inside an operation of {whose}, which this call has interrupted "
            "(from a signal handler, a finalizer or a callback), so it cannot wait for that"
        )

    def here(self) -> bool:
        """Whether the calling thread is inside an operation, or holds a lock of the handle."""
        return any(mark.inside is self for mark in _going_on(threading.get_ident())) or self.holds_lock()

    @property
    def occupied(self) -> bool:
        """Whether any thread is inside an operation."""
        return any(mark.inside is self for thread in list(_marks) for mark in _going_on(thread))

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
