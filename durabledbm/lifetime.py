"""The handles that are open in this process: for the end of the interpreter, and for fork."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Generic, Protocol, TypeVar

from ._engine.locks import forget_owners

__all__ = ["Handle", "Living", "began", "ended"]

T = TypeVar("T")


class Handle(Protocol):
    """What must happen to a handle when its process ends or forks. Users of the handle do not see these methods."""

    def _sync_in_a_hurry(self) -> None:
        """The interpreter ends."""

    def _before_fork(self) -> None:
        """The process is about to fork."""

    def _after_fork(self) -> None:
        """The process has forked, and this is the child."""


class Living(Generic[T]):
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


_handles: Living[Handle] = Living()


def began(handle: Handle) -> None:
    """A handle was opened."""
    _handles.add(handle)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        _finish_with_multiprocessing()


def ended(handle: Handle) -> None:
    """A handle was closed."""
    _handles.discard(handle)


def _at_exit() -> None:
    # What was deferred must not be lost with the process. Closing is left to the handles: others may still use them.
    for handle in _handles.all():
        try:
            handle._sync_in_a_hurry()
        except OSError:
            pass


_promised = False
"""multiprocessing was asked to call `_at_exit` in this process."""


def _finish_with_multiprocessing(_: object = None) -> None:
    """A child of multiprocessing ends without the interpreter's own farewell: have it call ours."""
    global _promised
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not _promised:
        _promised = True
        util.Finalize(None, _at_exit, exitpriority=0)


def _before_fork() -> None:
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _handles.all():
        # Called in the child, when multiprocessing has cleared the finalizers that it inherited.
        util.register_after_fork(_at_exit, _finish_with_multiprocessing)
    for handle in _handles.all():
        try:
            handle._before_fork()
        except OSError:
            pass  # the next call, or close(), meets the same trouble and says so


def _after_fork() -> None:
    global _promised
    _promised = False
    forget_owners()
    for handle in _handles.all():
        handle._after_fork()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
