"""Interrupts: exceptions that come from outside of the code that they are raised in.

A signal handler may raise anything at any moment, also an `OSError`: `TimeoutError`, say, or the `BusyError` of a write
that it tried. That says nothing about the disk, though it comes out of a system call. So whoever catches an exception
to act on it, or to raise another in its place, asks here first. Interrupts pass through as they are.
"""

from __future__ import annotations

from _thread import get_ident

TYPE_CHECKING = False  # the name that type checkers know; its module would take longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["Late", "is_from_handler", "is_interrupt"]


def is_interrupt(cause: BaseException) -> bool:
    """Whether an exception was raised in a thread from outside, as far as can be told: by a signal handler, or by
    `PyThreadState_SetAsyncExc`, which makes exceptions without arguments. What goes wrong in a commit is an `OSError`
    that says what.
    """
    return not isinstance(cause, (OSError, MemoryError)) or not cause.args or is_from_handler(cause)


def is_from_handler(cause: BaseException) -> bool:
    """Whether an exception was raised by a signal handler, or in what that has called.

    A handler is given the frame that it interrupts, and nothing else is. So in the traceback it is the function that
    has, in one of its variables, the frame from which it was called.
    """
    step = cause.__traceback__
    while step is not None:
        called = step.tb_next
        if called is not None and _has(called.tb_frame, step.tb_frame):
            return True
        step = called
    return False


class Late:
    """Returns an interrupt that was raised where nobody could receive it: once, to the thread that it was meant for.
    To others, and then, it returns what `otherwise` does.
    """

    __slots__ = ("_interrupt", "_otherwise", "_thread")

    def __init__(self, cause: BaseException, otherwise: Callable[[], BaseException | None] | None) -> None:
        """If `cause` is not an interrupt, it is raised."""
        if isinstance(cause, Exception) and not is_from_handler(cause):
            raise cause
        self._interrupt: BaseException | None = cause
        self._otherwise = otherwise
        self._thread = get_ident()

    def __call__(self) -> BaseException | None:
        if self._interrupt is not None and self._thread == get_ident():
            interrupt, self._interrupt = self._interrupt, None
            return interrupt
        return None if self._otherwise is None else self._otherwise()


def _has(frame: FrameType, interrupted: FrameType) -> bool:
    return any(
        value is interrupted or (type(value) is tuple and any(item is interrupted for item in value))
        for value in frame.f_locals.values()
    )
