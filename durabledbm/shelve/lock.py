"""Who may use the write-back cache of a shelf: one thread for a moment, or one context for a transaction."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from .._engine.threads import Inside, Patience, held_here
from .._process.caller_context import CallerContext
from ..errors import BusyError

__all__ = ["CacheLock", "Running"]

_NAP = 0.002
"""Seconds between looks whether a transaction has ended."""


class CacheLock:
    """The right to use a shelf's cache: for a thread during one operation, or for a context during a transaction.

    As a context manager it covers one operation. While a transaction is open, others wait at most `timeout` seconds
    (None: for ever) and then raise `BusyError`. A caller that would wait for itself raises it at once.

    `name` is what reports call the shelf.
    """

    def __init__(self, timeout: float | None, name: str) -> None:
        self.timeout = timeout
        self._operations = 0
        """Those that the thread that has it is in, each in the one before: a signal handler's, say."""
        self._inside = Inside(name, None)
        self.moment = RLock()
        """Who has it looks whether there is a `holder`."""
        self.holder: weakref.ref[CallerContext] | None = None
        """Who is in a transaction. Only that block keeps it alive: an interrupt cannot leave the lock taken."""

    def _other(self) -> CallerContext | None:
        """The holder of a transaction, unless it is the caller."""
        holder = None if self.holder is None else self.holder()
        return None if holder is None or holder.is_me() else holder

    def __enter__(self) -> None:
        self.moment.acquire()
        operations = self._operations
        try:
            patience = Patience(self.timeout)
            while True:
                other = self._other()
                if other is None:
                    break
                self._wait(other, patience)
            self._operations = operations + 1
        except BaseException:
            self._operations = operations  # an interrupt may have come last of all
            self.moment.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._operations -= 1
        outermost = not self._operations
        self.moment.release()
        if outermost and self._inside.postponed:
            self._inside.came_out()

    def postpone(self, action: Callable[[], None]) -> bool:
        """If this thread is inside an operation of the shelf, have `action` called after it. Whether it is."""
        if not held_here(self.moment) or not self._operations:
            return False
        self._inside.postpone(action)
        return True

    def _wait(self, other: CallerContext, patience: Patience) -> None:
        """Let others use the lock for a moment."""
        if other.is_stuck():
            raise BusyError("the shelf is in a transaction that cannot end while this call waits")
        if patience.over:
            raise BusyError(f"the shelf was in another transaction for more than {self.timeout:g} seconds")
        self.moment.release()
        try:
            patience.nap(_NAP)
        finally:
            self.moment.acquire()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock until the block ends, on whatever thread its context continues."""
        caller, nested = CallerContext(), True
        try:
            with self:
                nested = self.holder is not None and self.holder() is not None
                if not nested:
                    self.holder = weakref.ref(caller)
            yield
        finally:
            if not nested:
                self.holder = None


class Running:
    """An open transaction of a shelf, and who began it."""

    __slots__ = ("caller", "over", "transaction")

    def __init__(self) -> None:
        self.caller = CallerContext()
        self.transaction: Any = None
        """The mapping's, once it has begun."""
        self.over = False
        """It was rolled back."""
