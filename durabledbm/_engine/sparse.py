"""Long runs: verified piece by piece, before memory is taken for them, and without reading the holes of a sparse file.

A few kilobytes on the disk may call themselves a run of terabytes, if the file is sparse: what is not there costs
nothing but a number. So whatever is done with a run takes time and memory for the bytes that are really there, or for
less than `LONG` of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from .checksum import crc32c, with_zeros
from .disk.protocol import Readable
from .page import CRC_SIZE, self_consistent

__all__ = ["LONG", "checksum_of", "crc_if_whole", "is_sparse", "keeps", "kept_pages", "stretches"]

LONG = 1 << 20
"""Bytes of the longest run that is read without a look at what is there."""

_PIECE = 1 << 24
"""Bytes that are read at a time."""


def stretches(disk: Readable, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts of the bytes from `start` up to `stop` that are no holes, as offsets: from, and up to."""
    while start < stop:
        first, end = disk.data(start, stop)
        if first < end:
            yield first, end
        start = max(end, start + 1)


def is_sparse(disk: Readable, start: int, stop: int) -> bool:
    """Whether there are holes among the bytes from `start` up to `stop`."""
    return disk.data(start, stop) != (start, stop)


def kept_pages(disk: Readable, page_size: int) -> int:
    """How many pages of the file take space on the disk, at least in part."""
    pages, last = 0, -1
    for start, stop in stretches(disk, 0, disk.size()):
        first, end = max(start // page_size, last + 1), -(-stop // page_size)
        pages += max(end - first, 0)
        last = max(last, end - 1)
    return pages


def keeps(disk: Readable, size: int) -> bool:
    """Whether the file takes `size` bytes of the disk or more."""
    for start, stop in stretches(disk, 0, disk.size()):
        size -= stop - start
        if size <= 0:
            break
    return size <= 0


def checksum_of(disk: Readable, start: int, stop: int) -> int | None:
    """The checksum of the bytes from `start` up to `stop`; None if the file ends before."""
    if stop > disk.size():
        return None
    checksum, at = crc32c(b""), start
    for first, end in stretches(disk, start, stop):
        checksum = with_zeros(checksum, first - at)
        at = first
        while at < end:
            piece = disk.read(min(end - at, _PIECE), at)
            if not piece:
                return None
            checksum = crc32c(piece, checksum)
            at += len(piece)
    return with_zeros(checksum, stop - at)


def crc_if_whole(disk: Readable, offset: int, size: int) -> bytes | None:
    """The CRC field of the run there, or None if the run does not match it."""
    if size <= LONG:
        run = disk.read(size, offset)
        return run[-CRC_SIZE:] if len(run) == size and self_consistent(run) else None
    checksum = checksum_of(disk, offset, offset + size - CRC_SIZE)
    crc = disk.read(CRC_SIZE, offset + size - CRC_SIZE)
    return crc if checksum is not None and crc == checksum.to_bytes(CRC_SIZE, "little") else None
