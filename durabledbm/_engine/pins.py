"""The pins of one handle: which commits it reads, how often, and since when.

The kernel holds one lock for each pinned commit and handle (see `locks`); here they are counted. A pin may end in the
garbage collector, at any moment and in any thread, so its end is only noted, in a queue, and carried out by the next
one who has the store's mutex, which protects everything else here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from .disk import Disk
from .locks import oldest_pin

__all__ = ["PinTable", "Pins"]


class Pins(NamedTuple):
    """The oldest commit that is still read, and by which process (None: this one, or not known)."""

    txid: int
    pid: int | None


class PinTable:
    """Counts pins."""

    __slots__ = ("counts", "ended", "since")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.since: dict[int, float] = {}
        """When a commit was first pinned, by the monotonic clock, in seconds."""
        self.ended: deque[int] = deque()
        """The txids of pins that have ended; each stands here once for each time."""

    def add(self, txid: int) -> None:
        """One more reader of commit `txid`."""
        self.counts[txid] = self.counts.get(txid, 0) + 1
        self.since.setdefault(txid, time.monotonic())

    def drain(self) -> Iterator[int]:
        """Carry out the ends that were noted; the commits that nobody reads any more."""
        while self.ended:
            txid = self.ended.popleft()
            left = self.counts.get(txid, 0) - 1
            if left > 0:
                self.counts[txid] = left
            elif self.counts.pop(txid, None) is not None:
                del self.since[txid]
                yield txid

    def oldest(self, disk: Disk) -> Pins | None:
        """The oldest commit that is pinned, here or by another handle of the file."""
        own = min(self.counts, default=None)
        foreign = oldest_pin(disk)
        if foreign is not None and (own is None or foreign.offset < own):
            return Pins(foreign.offset, foreign.pid)
        return None if own is None else Pins(own, None)
