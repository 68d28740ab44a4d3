"""Finding intact pages in a file whose tree cannot be trusted, for `inspect` and `salvage`.

A page is trusted only after its checksum is verified. Nothing is written.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from .._engine.checksum import crc32c, of_the_end, with_zeros
from .._engine.disk.protocol import Disk
from .._engine.page import (
    CRC_SIZE,
    HEADER,
    MAX_PAGE_SIZE,
    MIN_PAGE_SIZE,
    OVERFLOW,
    TYPE_NAMES,
    WHOLE,
    pages_for,
)  # fmt: skip
from .._engine.sparse import crc_if_whole, stretches

__all__ = ["IntactRun", "guess_page_size", "intact_runs"]

_SHORT = 16
"""Pages of a run that is read for itself, even if it overlaps others."""

_PIECE = 1 << 20
"""Bytes that are read at a time."""

_GUESS_PAGES = 4096
"""Pages that are looked at to find out the page size."""


class IntactRun(NamedTuple):
    """A run that matches its own checksum."""

    page_id: int
    kind: str
    entries: int
    """Of an overflow run, the size of the key."""
    txid: int
    page_count: int
    payload: int
    """Bytes of content."""
    tree: int = 0
    """Which tree it belongs to: see `page.Header`."""
    flags: int = 0
    """Of the type."""

    @property
    def used(self) -> int:
        """Bytes of its pages that are in use."""
        return HEADER.size + self.payload + CRC_SIZE


def intact_runs(disk: Disk, page_size: int, start: int, stop: int) -> Iterator[tuple[int, IntactRun | None]]:
    """The intact runs between pages `start` and `stop` with their page ids, in order, and the ids of other non-empty
    pages with None.

    Takes time in proportion to the data: holes are skipped, and even if every page claims to begin a run that reaches
    to the end, each byte is read only once or twice.
    """
    sums = _Sums(disk, page_size)
    page_id = start
    for first, end in stretches(disk, start * page_size, stop * page_size):
        page_id = max(page_id, first // page_size)
        while page_id * page_size < end:
            head = disk.read(HEADER.size, page_id * page_size)
            run = _plausible(head, page_id, page_size, stop)
            if run is not None and sums.is_whole(page_id, run.page_count):
                yield page_id, run
                page_id += run.page_count
            else:
                if any(head):
                    yield page_id, None
                page_id += 1


def _plausible(head: bytes, page_id: int, page_size: int, stop: int) -> IntactRun | None:
    """The run that this header begins, if the header is plausible."""
    if len(head) < HEADER.size:
        return None
    kind, flags, tree, entries, own_id, txid, page_count, payload = HEADER.unpack(head)
    if kind not in TYPE_NAMES or own_id != page_id or not 0 < page_count <= stop - page_id:
        return None
    if page_count != pages_for(payload, page_size) or (kind == OVERFLOW and entries > payload):
        return None
    return IntactRun(page_id, TYPE_NAMES[kind], entries, txid, page_count, payload, tree, flags)


class _Sums:
    """Verifies runs, which may overlap. Ask for them in the order of their first pages.

    Short runs are simply read. For long runs the file is read once, from the first one on, and the checksum up to each
    page is stored: the checksum of any run follows from those before its first and after its last page.
    """

    def __init__(self, disk: Disk, page_size: int) -> None:
        self._disk = disk
        self._page_size = page_size
        self._pages = array("Q")
        """Where a checksum was noted; between two of these are zeros only, or nothing that was asked for."""
        self._crcs = array("L")
        self._end = 0
        """What was read ends before this page."""

    def is_whole(self, page_id: int, page_count: int) -> bool:
        """Whether the run matches its own checksum."""
        size = page_count * self._page_size
        if page_count <= _SHORT:
            return crc_if_whole(self._disk, page_id * self._page_size, size) is not None
        if page_id >= self._end:
            self._pages, self._crcs, self._end = array("Q", [page_id]), array("L", [crc32c(b"")]), page_id
        self._read_up_to(page_id + page_count)
        whole = self._crc_before(page_id + page_count)
        return of_the_end(whole, self._crc_before(page_id), size) == WHOLE

    def _read_up_to(self, end: int) -> None:
        size, at = self._page_size, self._end
        crc = self._crc_before(at)
        for first, stop in stretches(self._disk, at * size, end * size):
            if first // size > at:
                crc = with_zeros(crc, (first // size - at) * size)
                at = first // size
            while at * size < stop:
                pages = min(_PIECE // size, -(-stop // size) - at)
                data = self._disk.read(pages * size, at * size).ljust(pages * size, b"\0")
                for page in range(pages):
                    self._note(at + page, crc)
                    crc = crc32c(data[page * size : (page + 1) * size], crc)
                at += pages
        self._note(at, crc)
        self._end = max(self._end, end)

    def _note(self, page_id: int, crc: int) -> None:
        if self._pages[-1] < page_id:
            self._pages.append(page_id)
            self._crcs.append(crc)

    def _crc_before(self, page_id: int) -> int:
        """The checksum of everything from the first page that was read up to this one."""
        at = bisect_right(self._pages, page_id) - 1
        return with_zeros(self._crcs[at], (page_id - self._pages[at]) * self._page_size)


def guess_page_size(disk: Disk) -> int:
    """The page size of a file without a usable meta page: the one that most pages' ids agree with."""
    votes: Counter[int] = Counter()
    for at in range(1, min(disk.size() // MIN_PAGE_SIZE, _GUESS_PAGES)):
        offset = at * MIN_PAGE_SIZE
        head = disk.read(HEADER.size, offset)
        if len(head) < HEADER.size:
            break
        kind, own_id = head[0], HEADER.unpack(head)[4]
        if kind in TYPE_NAMES and own_id and offset % own_id == 0:
            size = offset // own_id
            if MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE and not size & (size - 1):
                votes[size] += 1
    return votes.most_common(1)[0][0] if votes else MIN_PAGE_SIZE
