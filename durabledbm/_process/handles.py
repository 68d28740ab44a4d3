"""The handles that are open in this process: for the end of the interpreter, and for fork."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Generic, Protocol, TypeVar

from .._engine.flusher import start_no_more
from .._engine.locks import forget_owners
from .._engine.reentry import forget_threads

__all__ = ["OpenHandle", "Registry", "began", "ended"]

T = TypeVar("T")


class OpenHandle(Protocol):
    """What must happen to a handle when its process ends or forks. Users of the handle do not see these methods."""

    def _finish(self) -> None:
        """The interpreter ends."""

    def _before_fork(self) -> None:
        """The process is about to fork."""

    def _after_fork(self) -> None:
        """The process has forked, and this is the child."""


class Registry(Generic[T]):
    """Objects, for as long as somebody else holds them: a WeakValueDictionary with less to do when a file is opened."""

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[T]] = {}

    def add(self, thing: T) -> None:
        """Name one more, for as long as it lives."""
        number, references = id(thing), self._references
        references[number] = weakref.ref(thing, lambda _: references.pop(number, None))

    def discard(self, thing: T) -> None:
        """Name it no more."""
        self._references.pop(id(thing), None)

    def all(self) -> list[T]:
        """Those that live."""
        found = [reference() for reference in self._references.copy().values()]
        return [thing for thing in found if thing is not None]


_handles: Registry[OpenHandle] = Registry()


def began(handle: OpenHandle) -> None:
    """A handle was opened."""
    _handles.add(handle)
    for library in _LIBRARIES:
        if _is_child_of(library):
            _finish_with(library)


def ended(handle: OpenHandle) -> None:
    """A handle was closed."""
    _handles.discard(handle)


def _is_child_of(library: str) -> bool:
    """Whether this process was started by the library."""
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
    for handle in _handles.all():
        try:
            handle._finish()
        except OSError:
            pass


_LIBRARIES = ("multiprocessing", "billiard")
"""Libraries whose child processes end by `os._exit`, after exit functions of the library's own."""

_promised: set[str] = set()
"""Those that were asked to call `_at_exit` in this process."""


def _finish_with(library: str) -> None:
    """A child process of the library ends without the interpreter's own farewell: have the library call ours."""
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
        except OSError:
            pass  # the next call, or close(), meets the same trouble and says so


def _after_fork() -> None:
    _promised.clear()
    forget_owners()
    forget_threads()
    for handle in _handles.all():
        handle._after_fork()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
