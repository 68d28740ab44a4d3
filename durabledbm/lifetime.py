"""The handles that are open in this process: for the end of the interpreter, and for fork."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol

from ._engine.locks import forget_owners

__all__ = ["Handle", "began", "ended"]


class Handle(Protocol):
    """What must happen to a handle when its process ends or forks."""

    def sync_in_a_hurry(self) -> None:
        """The interpreter ends."""

    def before_fork(self) -> None:
        """The process is about to fork."""

    def after_fork(self) -> None:
        """The process has forked, and this is the child."""


_handles: dict[int, weakref.ref[Handle]] = {}
"""By their ids. A plain dict: a WeakValueDictionary takes a good part of the time in which a file is opened."""


def began(handle: Handle) -> None:
    """A handle was opened."""
    number = id(handle)
    _handles[number] = weakref.ref(handle, lambda _: _handles.pop(number, None))
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        _finish_with_multiprocessing()


def ended(handle: Handle) -> None:
    """A handle was closed."""
    _handles.pop(id(handle), None)


def _open_handles() -> list[Handle]:
    found = [reference() for reference in _handles.copy().values()]
    return [handle for handle in found if handle is not None]


def _at_exit() -> None:
    # What was deferred must not be lost with the process. Closing is left to the handles: others may still use them.
    for handle in _open_handles():
        try:
            handle.sync_in_a_hurry()
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
    if util is not None and _handles:
        # Called in the child, when multiprocessing has cleared the finalizers that it inherited.
        util.register_after_fork(_at_exit, _finish_with_multiprocessing)
    for handle in _open_handles():
        try:
            handle.before_fork()
        except OSError:
            pass  # the next call, or close(), meets the same trouble and says so


def _after_fork() -> None:
    global _promised
    _promised = False
    forget_owners()
    for handle in _open_handles():
        handle.after_fork()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
