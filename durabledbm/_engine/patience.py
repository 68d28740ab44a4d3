"""Waiting with a limit, by what was really waited.

A clock may stand still or jump: tests replace it, and some machines adjust it while they are suspended. Whoever then
waits until a moment that the clock tells waits for ever, or not at all. So what was waited is added up, nap by nap: a
nap has taken as long as it was to take, or longer, as the clock tells, if that can be believed.
"""

from __future__ import annotations

from math import inf
from time import monotonic, sleep
from typing import Protocol

__all__ = ["Patience"]

_BELIEVED = 1.0
"""Seconds that a nap may take beyond what it was to take. If the clock tells of more, it has jumped."""


class Gate(Protocol):
    """A `threading.Lock`, as far as it is waited for."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait at most `timeout` seconds; whether it was to be had."""


class Patience:
    """How long somebody still waits: at most `seconds` in all, None for ever."""

    __slots__ = ("left",)

    def __init__(self, seconds: float | None) -> None:
        self.left = inf if seconds is None else seconds
        """Seconds that are left."""

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.left <= 0

    def nap(self, seconds: float) -> None:
        """Sleep for `seconds`, or for what is left."""
        seconds = max(0.0, min(seconds, self.left))
        began = monotonic()
        sleep(seconds)
        self._count(seconds, monotonic() - began)

    def acquire(self, gate: Gate, seconds: float) -> bool:
        """Wait for `gate`, for at most `seconds`, whatever is left. Whether it was to be had."""
        began = monotonic()
        if gate.acquire(timeout=seconds):
            self._count(0.0, min(seconds, monotonic() - began))
            return True
        self._count(seconds, monotonic() - began)
        return False

    def _count(self, planned: float, told: float) -> None:
        self.left -= told if planned <= told <= planned + _BELIEVED else planned
