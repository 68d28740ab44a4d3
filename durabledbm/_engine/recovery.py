"""What a file says that it is: reading the two meta slots, and deciding which one to believe.

This is all the recovery there is. Nothing is replayed and nothing is repaired: the newest commit that arrived whole is
the database. A commit that was synced before its meta was marked steady may still be in question after a crash, so the
list of pages in its meta is verified; if one is missing, the commit was never acknowledged (see `commit`), and the
other slot holds the one before it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from ..errors import CorruptionError
from .checksum import crc32c
from .disk.protocol import Disk
from .locks import writer_present
from .meta import (
    META_AREA,
    META_SIZE,
    UNFINISHED,
    Extent,
    ForeignFileError,
    Meta,
    decode_meta,
    has_magic,
    is_uninitialised,
    stamp_of,
)
from .page import HEADER
from .sparse import crc_if_whole, keeps

__all__ = ["Slots", "Visible", "extent_arrived", "newest", "read_slots", "visible"]

_PATIENCE = 200
"""How often to read again a slot that seems to be in the middle of being written."""

_PATIENCE_NEW = 20_000
"""The same for a file of which nothing can be read yet, while a writer is at work: it may be making it a database."""

_MISSING = 1 << 14
"""Pages that a commit may have added to a small file."""

_PAGES = 1 << 22
"""Pages of a file that may be sparse to whatever degree: a few megabytes are enough to count them."""

_BYTES = 16
"""Bytes for each page that a larger file must take of the disk."""


class Slots(NamedTuple):
    """The two meta slots at one moment."""

    metas: tuple[Meta | None, Meta | None]
    stamp: bytes
    """The bytes by which to notice the next commit; empty if that is not to be trusted now."""
    ours: bool
    """Whether the file looks like one of ours at all."""
    uninitialised: bool
    """Whether the file is a database of ours that was not initialised yet: an empty file, mostly."""


def read_slots(disk: Disk) -> Slots:
    """Read both slots. While a writer is at work a slot may be read half written: then it is read again."""
    for attempt in range(_PATIENCE_NEW):
        area = disk.read(META_AREA, 0)
        slot0, slot1 = area[:META_SIZE], area[META_SIZE:]
        metas = decode_meta(slot0), decode_meta(slot1)
        if slot0.startswith(UNFINISHED):
            metas = metas[1], metas[1]  # the mark stands for the copy that is to take its place (see `creation`)
        if None not in metas:
            return Slots(metas, stamp_of(slot0, slot1), True, False)
        if not writer_present(disk):
            if area == disk.read(META_AREA, 0):
                break
        elif attempt:
            time.sleep(50e-6)
        if attempt >= _PATIENCE and (any(metas) or is_uninitialised(area, disk.size())):
            break
    settled = not writer_present(disk)
    ours = has_magic(slot0) or has_magic(slot1)
    return Slots(metas, stamp_of(slot0, slot1) if settled else b"", ours, is_uninitialised(area, disk.size()))


def newest(disk: Disk, slots: Slots) -> tuple[Meta, int]:
    """The meta that is the database, and the slot that was synced with it.

    Raises `ForeignFileError` for a file that is not ours, `CorruptionError` for one that is but has no usable meta.
    """
    meta0, meta1 = slots.metas
    if meta0 is None and meta1 is None:
        if slots.ours:
            raise CorruptionError("both meta pages are damaged; 'durabledbm salvage' may help", path=disk.path)
        raise ForeignFileError(f"{disk.path}: not a durabledbm database")
    first = meta0 is not None and (
        meta1 is None or meta0.txid > meta1.txid or (meta0.txid == meta1.txid and meta1.steady)
    )
    meta, other, slot = (meta0, meta1, 0) if first else (meta1, meta0, 1)
    assert meta is not None
    _check_size(disk, meta)
    steady = meta.steady or (other is not None and other.txid == meta.txid and other.steady)
    if steady or all(extent_arrived(disk, extent, meta.page_size) for extent in meta.extents):
        return meta, slot
    if other is None or other.txid != meta.steady_txid:
        raise CorruptionError("the newest commit is incomplete, and the one before it is damaged", path=disk.path)
    _check_size(disk, other)
    return other, 1 - slot


def _check_size(disk: Disk, meta: Meta) -> None:
    """Refuse a meta that speaks of far more pages than the file has, before memory is taken for them.

    Some pages at the end may never have been written, and those of a commit that a crash interrupted may be missing.
    Where the file is sparse, what counts is what it takes of the disk: pages are counted in memory, with a byte each.
    """
    here = disk.size() // meta.page_size
    if meta.page_count > 2 * here + _MISSING:
        raise CorruptionError(f"the file has {here} pages, the meta page speaks of {meta.page_count}", path=disk.path)
    if meta.page_count > _PAGES and not keeps(disk, meta.page_count * _BYTES):
        what = f"nearly all of the {meta.page_count} pages are a hole; if copying the file made it so, copy it whole"
        raise CorruptionError(what, path=disk.path)


class Visible(NamedTuple):
    """What readers may see while a writer is at work."""

    meta: Meta
    slot: int
    certain: bool
    """Not so if a newer commit is written, but not yet synced."""


def visible(disk: Disk, slots: Slots) -> Visible | None:
    """The newest commit that counts, in a file that may be being written; None if no slot holds a meta.

    A commit counts when it is steady, or relaxed, or when its writer is gone: then no one will sync it, and it is as
    good as what a fresh `open` would find. Raises `CorruptionError` if it speaks of far more pages than the file has.
    """
    found = [(meta, slot) for slot, meta in enumerate(slots.metas) if meta is not None]
    if not found:
        return None
    found.sort(key=lambda pair: (pair[0].txid, not pair[0].steady))
    meta, slot = found[-1]
    if len(found) == 2 and not meta.steady and not meta.relaxed:
        other = found[0][0]
        if other.txid < meta.txid and other.txid == meta.steady_txid and writer_present(disk):
            _check_size(disk, other)
            return Visible(other, found[0][1], False)
    _check_size(disk, meta)
    return Visible(meta, slot, bool(slots.stamp))


def extent_arrived(disk: Disk, extent: Extent, page_size: int) -> bool:
    """Whether every run in the extent is on the disk as it was written."""
    digest = 0
    page_id, end = extent.page_id, extent.page_id + extent.page_count
    if end * page_size > disk.size():
        return False
    while page_id < end:
        head = disk.read(HEADER.size, page_id * page_size)
        page_count = HEADER.unpack(head)[6] if len(head) == HEADER.size else 0
        if not 0 < page_count <= end - page_id:
            return False
        crc = crc_if_whole(disk, page_id * page_size, page_count * page_size)
        if crc is None:
            return False
        digest = crc32c(crc, digest)
        page_id += page_count
    return digest == extent.digest
