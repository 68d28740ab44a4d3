"""Who may use the write-back cache of a shelf: one thread for a moment, or one context for a transaction."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from .._engine.threads import Patience
from .._process.caller_context import CallerContext
from ..errors import BusyError

__all__ = ["CacheLock", "Running"]

_NAP = 0.002
"""Seconds between looks whether a transaction has ended."""


class CacheLock:
    """The right to use a shelf's cache: for a thread during one operation, or for a context during a transaction.

    As a context manager it covers one operation. While a transaction is open, others wait at most `timeout` seconds
    (None: for ever) and then raise `BusyError`. A caller that would wait for itself raises it at once.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
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
        try:
            patience = Patience(self.timeout)
            while (other := self._other()) is not None:
                self._wait(other, patience)
        except BaseException:
            self.moment.release()
            raise

    def __exit__(self, *_: object) -> None:
        self.moment.release()

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
