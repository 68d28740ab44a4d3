"""Whether a call comes from the context that began something, and whether that context can still end it.

A context (see `contextvars`) belongs to a piece of a program wherever it runs: each thread has one, each asyncio task
has one, and frameworks run the steps of a request in one, on any free thread of a pool. So the number of a thread does
not identify who began something.
"""

from __future__ import annotations

import weakref
from contextvars import Context, ContextVar
from gc import get_referents
from sys import modules
from threading import get_ident
from typing import Any

__all__ = ["CallerContext"]

_here: ContextVar[None] = ContextVar("durabledbm_here")


def _this_context() -> Context:
    """The context of the calling code itself; `contextvars` only gives copies. A token refers to it."""
    return next(part for part in get_referents(_here.set(None)) if type(part) is Context)


def _is_entered(context: Context) -> bool:
    """Whether some thread is inside `context.run`."""
    try:
        context.run(int)  # all of it is one call into C: no other thread can find it entered meanwhile
    except RuntimeError:
        return True
    return False


def _task() -> object | None:
    """The asyncio task that runs in this thread."""
    asyncio: Any = modules.get("asyncio")
    loop = _asyncio_loop(asyncio)
    return None if loop is None else asyncio.current_task(loop)


def _asyncio_loop(asyncio: Any) -> object | None:
    running_loop = getattr(asyncio, "_get_running_loop", None)  # it is not there before asyncio is imported completely
    return None if running_loop is None else running_loop()


def _event_loop() -> object | None:
    """The event loop of asyncio or trio that runs in this thread."""
    trio: Any = modules.get("trio")
    loop = _asyncio_loop(modules.get("asyncio"))
    if loop is None and trio is not None:
        try:
            loop = trio.lowlevel.current_trio_token()
        except (AttributeError, RuntimeError):
            pass
    return loop


def _reference(thing: object | None) -> weakref.ref[object] | None:
    return None if thing is None else weakref.ref(thing)


class CallerContext:
    """The code that creates this object: its context, and the thread, event loop and task that it runs in.

    It keeps nothing alive.
    """

    __slots__ = ("__weakref__", "_context", "_loop", "_owns_thread", "_task", "_thread")

    def __init__(self) -> None:
        context = _this_context()
        self._context = weakref.ref(context)
        self._loop = _reference(_event_loop())
        self._task = _reference(_task())
        self._thread = get_ident()
        """The thread in which the context was last seen."""
        self._owns_thread = not _is_entered(context)
        """It is the context in which the thread began: it never leaves that."""

    def is_me(self) -> bool:
        """Whether the calling code runs in the same context, in any thread.

        Code that it calls in a copy of the context (`copy_context().run`) does, too; a task or thread that it starts
        does not.
        """
        task = None if self._task is None else self._task()
        in_task = _task() is task
        if in_task and (task is not None or (self._owns_thread and self._thread == get_ident())):
            return True  # found out without asking for the context, which takes longer
        return self._is_here() or (in_task and self._is_beneath())

    def is_stuck(self) -> bool:
        """Whether that code cannot continue while the calling thread waits.

        That is so if it is the calling code, has called it, or needs the event loop that runs in this thread.
        """
        loop = None if self._loop is None else self._loop()
        return (loop is not None and loop is _event_loop()) or self._is_here() or self._is_beneath()

    def _is_here(self) -> bool:
        """Whether the caller's context is the present one."""
        if self._context() is not _this_context():
            return False
        self._thread = get_ident()
        return True

    def _is_beneath(self) -> bool:
        """Whether this thread is inside that context, below the present one."""
        context = self._context()
        if context is None or self._thread != get_ident():
            return False
        return self._owns_thread or _is_entered(context)
