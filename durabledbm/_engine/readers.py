"""Readers: which commits a handle reads, how often, and since when; and reading on when a pin was lost.

The kernel holds one lock for each pinned commit and handle (see `locks`); here the pins are counted. A pin may end in
the garbage collector, at any moment and in any thread. So its end is only noted, in a queue, and carried out by the
next thread that has the store's mutex, which protects everything else here.

A forked child inherits snapshots and iterators whose pins are the parent's. Nothing keeps their pages from being reused
until the child pins them. It does so when it first reads a page, not before: a child that never looks at what it has
inherited must not make the file grow. Pages that were reused by then do not have the checksums that their parents hold,
so nothing wrong is ever read; that is no damage, and the error says what it is (`Unpinned`).
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from ..errors import CorruptionError, error
from .disk.protocol import Disk
from .locks import oldest_pin, pin
from .pager import Pager

__all__ = ["Hold", "LimitedReaders", "PinTable", "Pins", "Reader", "Unpinned"]

class Pins(NamedTuple):
    """The oldest commit that is still read, and by which process (None: this one, or not known)."""

    txid: int
    pid: int | None


class Reader:
    """One that reads a commit for longer: a snapshot, an iterator."""

    __slots__ = ("__weakref__", "disk", "txid")

    def __init__(self) -> None:
        self.disk: Disk | None = None
        """The open file that holds the lock, if it is not the handle's (see `Current.pin`)."""
        self.txid = 0
        """The commit; 0 before it is pinned, and when it is read no more."""


class PinTable:
    """Who reads which commit."""

    __slots__ = ("ended", "locked", "readers", "since")

    def __init__(self) -> None:
        self.readers: dict[int, set[weakref.ref[Reader]]] = {}
        """By the txid of the commit. One that is freed leaves by itself, if a finalizer was interrupted before that."""
        self.locked: set[int] = set()
        """The txids whose pages are known to stay."""
        self.since: dict[int, float] = {}
        """When a commit was first pinned, by the monotonic clock, in seconds."""
        self.ended: deque[tuple[Reader, int]] = deque()
        """Readers that have ended, and of which commit."""

    def add(self, reader: Reader, txid: int) -> None:
        """One more reader of commit `txid`."""
        reader.txid = txid
        readers = self.readers.setdefault(txid, set())
        readers.add(weakref.ref(reader, readers.discard))
        self.since.setdefault(txid, time.monotonic())

    def pin_again(self, disk: Disk, reader: Reader) -> None:
        """Pin what a reader reads whose pin was lost, if it still reads."""
        if txid := reader.txid:
            self.add(reader, txid)
            self.locked.add(txid)
            pin(disk, txid)

    def count(self, txid: int) -> int:
        """How many readers commit `txid` has here."""
        return len(self.readers.get(txid, ()))

    def drain(self) -> Iterator[int]:
        """Carry out the ends that were noted; the commits that are not read any more.

        An end stays noted until it was carried out, whatever interrupts that.
        """
        while self.ended:
            reader, txid = self.ended[0]
            self.readers.get(txid, set()).discard(weakref.ref(reader))
            yield from self._unread([txid])
            self.ended.popleft()
        yield from self._unread(list(self.readers))

    def _unread(self, txids: list[int]) -> Iterator[int]:
        """Forget those of the commits that no one reads."""
        for txid in txids:
            if not self.readers.get(txid):
                self.locked.discard(txid)
                yield txid
                self.readers.pop(txid, None)
                self.since.pop(txid, None)

    def part(self) -> list[Reader]:
        """In a child process: nothing is pinned; the readers that are left."""
        references = [ref for txid in self.locked for ref in self.readers.get(txid, set()).copy()]
        readers = [reader for ref in references if (reader := ref()) is not None and reader.txid]
        self.readers, self.locked, self.since, self.ended = {}, set(), {}, deque()
        return readers

    def oldest(self, disk: Disk) -> Pins | None:
        """The oldest commit that is pinned, here or by another handle of the file."""
        own = min(self.readers, default=None)
        foreign = oldest_pin(disk)
        if foreign is not None and (own is None or foreign.offset < own):
            return Pins(foreign.offset, foreign.pid)
        return None if own is None else Pins(own, None)


class Hold:
    """Keeps the pages of one commit from being reused by the handle's own commits, while it exists.

    No lock in the file stands for it: its maker has the writer lock, so no other handle commits.
    """

    __slots__ = ("_reader", "_unpin")

    def __init__(self, pins: PinTable, txid: int, unpin: Callable[[Reader], None]) -> None:
        self._reader = Reader()
        self._unpin = unpin
        pins.add(self._reader, txid)

    def __del__(self) -> None:
        if hasattr(self, "_unpin"):  # else it was interrupted before it began
            self._unpin(self._reader)


class Unpinned:
    """The file, as `pager` reads it from now on: for `readers`, of commit `txid` or later ones.

    `pin` pins them; `newest` tells the number of the newest commit. `reason` says why the pins were lost.
    """

    __slots__ = (
        "__weakref__", "_disk", "_mend", "_newest", "_pager", "_pin", "_readers", "_reason", "_txid", "_unpinned",
    )  # fmt: skip

    def __init__(
        self, pager: Pager, disk: Disk, txid: int, readers: list[Reader], reason: str,
        pin: Callable[[list[Reader]], None], newest: Callable[[], int],
    ) -> None:  # fmt: skip
        self._disk = disk
        self._txid = txid
        self._readers = readers
        self._unpinned = True
        self._reason = reason
        self._pin = pin
        self._newest = newest
        self._mend = pager.mend
        self._pager = weakref.ref(pager)
        pager.use(self)
        pager.mend = self.mend

    @property
    def path(self) -> str:
        """As `Disk.path`."""
        return self._disk.path

    def read(self, length: int, offset: int) -> bytes:
        """As `Disk.read`."""
        if self._unpinned:
            self._pin(self._readers)
            self._unpinned = False
        return self._disk.read(length, offset)

    def size(self) -> int:
        """As `Disk.size`."""
        return self._disk.size()

    def data(self, start: int, stop: int) -> tuple[int, int]:
        """As `Disk.data`."""
        return self._disk.data(start, stop)

    def part(self) -> None:
        """In a child process: what was pinned is pinned by the parent. Nothing stays in memory, so that who reads on
        reads from here.
        """
        self._unpinned = True
        if (pager := self._pager()) is not None:
            pager.clear()

    def mend(self, cause: error) -> bool:
        """As `Pager.mend`."""
        if self._mend(cause):
            return True
        if isinstance(cause, CorruptionError) and self._newest() > self._txid:
            raise error(f"{self.path}: {self._reason}") from cause
        return False


class Limited(Protocol):
    """A reader that may be ended."""

    def end_overdue(self) -> None:
        """End it, and tell those who go on with it why."""


class LimitedReaders:
    """The readers of a handle that may be ended when their pages are needed, and from when on."""

    def __init__(self) -> None:
        self._readers: list[tuple[float, Callable[[], Limited | None]]] = []

    def add(self, max_age: float, reader: Callable[[], Limited | None]) -> None:
        """From `max_age` seconds on, the reader, to which this is a weak reference, may be ended."""
        self._readers.append((time.monotonic() + max_age, reader))

    def end_overdue(self) -> None:
        """Pages are needed: end those that have been reading for as long as they may."""
        now = time.monotonic()
        for entry in self._readers.copy():
            reader = entry[1]()
            if reader is not None and entry[0] <= now:
                reader.end_overdue()
            if reader is None or entry[0] <= now:
                self._readers.remove(entry)
