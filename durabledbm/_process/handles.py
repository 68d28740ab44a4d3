"""The open handles of this process: what happens to them at the end of the interpreter and at a fork."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import weakref
from collections.abc import Callable
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from .._engine.flusher import start_no_more
from .._engine.locks import forget_owners
from .._engine.threads import forget_threads, report
from .._interrupts import is_from_handler, is_interrupt

__all__ = ["OpenHandle", "Registry", "began", "ended"]

T = TypeVar("T")


class OpenHandle(Protocol):
    """What a handle does when its process ends or forks. These methods are not for users."""

    def _finish(self) -> None:
        """The interpreter ends. Raises `OSError` if something that was acknowledged could not be written."""

    def _before_fork(self) -> None:
        """The process is about to fork."""

    def _after_fork(self) -> None:
        """The process has forked, and this is the child."""


_numbers = itertools.count()


class _Reference(weakref.ref[T]):
    """A weak reference that is equal to itself alone."""

    __slots__ = ("number",)
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(self, thing: T, callback: Callable[[weakref.ref[T]], None]) -> None:
        super().__init__(thing, callback)  # type: ignore[call-arg]
        self.number = next(_numbers)


class Registry(Generic[T]):
    """Weak references to objects. What removes them runs no Python code: a signal whose handler raises could strike
    there, and the exception would be lost, since a finalizer has no caller.
    """

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: set[_Reference[T]] = set()

    def add(self, thing: T) -> None:
        """Register an object for as long as it exists."""
        self._references.add(_Reference(thing, self._references.discard))

    def discard(self, thing: T) -> None:
        """Remove an object."""
        for reference in self._references.copy():
            if reference() is thing:
                self._references.discard(reference)

    def all(self) -> list[T]:
        """The registered objects that still exist, in the order of registering."""
        references = sorted(self._references.copy(), key=attrgetter("number"))
        found = {id(thing): thing for reference in references if (thing := reference()) is not None}
        return list(found.values())


_handles: Registry[OpenHandle] = Registry()


def began(handle: OpenHandle) -> None:
    """Register a handle that was opened."""
    _handles.add(handle)
    for library in _LIBRARIES:
        if _is_child_of(library):
            _finish_with(library)


def ended(handle: OpenHandle) -> None:
    """Remove a handle that was closed."""
    _handles.discard(handle)


def _is_child_of(library: str) -> bool:
    """Whether the library started this process."""
    process = sys.modules.get(f"{library}.process")
    if process is None:
        return False
    if hasattr(process, "parent_process"):
        return process.parent_process() is not None
    return type(process.current_process()).__name__ != "_MainProcess"


def _at_exit() -> None:
    # What was deferred must not be lost with the process. Closing is left to the handles: others may still use them,
    # so what is written from now on is flushed at once. All this is over before daemon threads are frozen.
    start_no_more()
    _finish_all(_handles.all(), _TRIES)


_TRIES = 10
"""How often what is done at the end of the interpreter may be interrupted, and is taken up again."""


def _finish_all(handles: list[OpenHandle], tries: int) -> None:
    """Finish each of them, whatever happens to the others. Another SIGTERM or Ctrl-C is raised when that is done."""
    try:
        while True:
            if not handles:
                break
            try:
                handles[0]._finish()
            except OSError as exc:
                if is_interrupt(exc):
                    raise
                report("the flush at the end of the interpreter", exc)
            del handles[0]
    except BaseException as exc:
        if tries <= 0 or (isinstance(exc, Exception) and not is_from_handler(exc)):
            del handles[:1]
        raise
    finally:
        if handles:
            _finish_all(handles, tries - 1)


_LIBRARIES = ("multiprocessing", "billiard")
"""Libraries whose child processes end by `os._exit`, after exit functions of the library's own."""

_promised: set[str] = set()
"""Those that were asked to call `_at_exit` in this process."""


def _finish_with(library: str) -> None:
    """A child process of the library ends without the interpreter's `atexit`: have the library call ours."""
    util = sys.modules.get(f"{library}.util")
    if util is not None and library not in _promised:
        _promised.add(library)
        util.Finalize(None, _at_exit, exitpriority=0)


def _before_fork() -> None:
    for library in _LIBRARIES:
        util = sys.modules.get(f"{library}.util")
        if util is not None and _handles.all():
            # Called in the child, when the library has cleared the finalizers that it inherited.
            util.register_after_fork(_at_exit, lambda _, library=library: _finish_with(library))
    for handle in _handles.all():
        try:
            handle._before_fork()
        except OSError as exc:
            if is_interrupt(exc):
                raise
            # else the next call, or close(), meets the same trouble and says so


def _after_fork() -> None:
    _promised.clear()
    forget_owners()
    forget_threads()
    for handle in _handles.all():
        handle._after_fork()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
