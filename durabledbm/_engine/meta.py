"""The meta page: the one thing that decides what the database contains.

There are two slots, at the start of the file. A commit writes the slot that does not hold the last commit known to be
on the disk, so that one always remains; the newest valid slot *is* the database. A meta holds the root of the tree,
where free space is recorded, and two short lists:

* `extents`: the pages that were written since the last commit known to be on disk. With them, one sync is enough for
  pages and meta together: an open after a crash believes this meta only if all of them arrived.
* `changes`: the newest changes, not merged into the tree yet. A small commit is then one write of one page. They are
  part of the state, not a log: nothing is replayed, readers look here first and in the tree after.

A commit has a number, its txid, and numbers are not enough: when an older copy of the file is put in its place, the
numbers that follow are given out a second time. So a meta also names its *generation*. Every handle begins a new one
with its first commit, under a random name, and notes the number of that commit. A reader that has seen a commit can
tell from a later meta whether that commit may be part of its past (see `may_follow`).

Pure: bytes in, bytes out. The layout is documented in docs/format.md.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from ..errors import error
from .catalog import MAX_DEPTH, TableKey
from .checksum import crc32c
from .page import MAX_PAGE_SIZE, MIN_PAGE_SIZE, NO_REF, self_consistent

__all__ = [
    "CHANGE_OVERHEAD", "MAGIC", "MAX_DEPTH", "MAX_LISTED", "MAX_TXID", "META_AREA", "META_SIZE", "SECTOR", "SLOTS",
    "STAMP_OFFSET", "STAMP_SIZE", "UNFINISHED", "Extent", "ForeignFileError", "Meta", "UnknownVersionError",
    "decode_meta", "encode_changes", "encode_meta", "first_page", "flaw_of", "has_magic", "is_uninitialised",
    "may_follow", "now_ns", "pages_of", "room_for", "stamp_of", "stamp_with", "steady_copy",
]  # fmt: skip

META_SIZE = 4096
"""Bytes of one meta page, whatever the page size: what a disk writes whole or a checksum catches."""

SLOTS = 2
META_AREA = SLOTS * META_SIZE

MAX_LISTED = 1 << 12
"""Pages that all extents of a meta have together at most: verifying them must not take long."""

MAX_TXID = 1 << 62
"""Commits are numbered below this: the locks that pin them have no room for more."""

MAGIC = b"\x8bdurabledbm\r\n\x1a\n\x00"
"""First 16 bytes of the file. Not text, and not what a text-mode copy would leave unchanged."""

FORMAT_VERSION = 2

SECTOR = 512
"""Bytes that a power failure does not tear: all of them arrive, or none."""

UNFINISHED = (MAGIC + b"the initialisation of this database has not finished\n").ljust(SECTOR, b"\0")
"""The first sector of a file while it is being initialised (see `creation`)."""

_FIXED = struct.Struct("<16sQIIIIQQQ16sII16sQQ16s8sQIHHQ16sQ")
"""magic, txid, version, features, page size, flags, page count, entry count, tree count, root, depth, tables depth,
space, steady txid, time, database id, generation, generation txid, changes size, extent count, change count,
tables count, tables root, checkpoint txid."""

_FLAGS_OFFSET = 36

_STEADY = 1
"""Flag: this commit is known to be on disk, and so is all that it refers to. What is missing is damage, not a crash."""

_RELAXED = 2
"""Flag: this commit counts, for this process and for others, as soon as it is written, without waiting for a sync."""

_EXTENT_CODES = "QII"
_EXTENT = struct.Struct("<" + _EXTENT_CODES)
_CHANGE = struct.Struct("<Ii")
_TRAILER = struct.Struct("<QI")
_TOMBSTONE = -1
_OF_TABLES = 1 << 31
"""Flag in the size of a key: it is a key of the tree of tables."""

CHANGE_OVERHEAD = _CHANGE.size
"""Bytes that a change takes in a meta beside its key and value."""

STAMP_OFFSET = META_SIZE - _TRAILER.size
STAMP_SIZE = _TRAILER.size + _FIXED.size
"""The bytes that tell whether anything was committed: the end of slot 0, which is its txid and CRC, and the fixed part
of slot 1. They are adjacent, so that a reader notices another process's commit with one small read."""


class UnknownVersionError(error):
    """The file was written by a newer version of durabledbm."""


class ForeignFileError(error):
    """Neither meta page is one of durabledbm's."""


class Extent(NamedTuple):
    """Consecutive pages that a commit wrote. `digest` is the CRC32C of the CRCs of the runs in it, in order."""

    page_id: int
    page_count: int
    digest: int


_PAGE_COUNT = attrgetter("page_count")

_NO_CHANGES: Mapping[bytes, bytes | None] = {}


class Meta(NamedTuple):
    """One commit: everything that a reader or the next writer must know."""

    txid: int
    page_size: int
    database_id: bytes
    page_count: int
    """Pages of the file that belong to the database, meta area included: whatever is beyond is left over."""
    entry_count: int = 0
    tree_count: int = 0
    """Entries of the tree alone, without the changes here."""
    root: bytes = NO_REF
    depth: int = 0
    tables_count: int = 0
    """Entries of the tree of tables (see `catalog`), without the changes here."""
    tables_root: bytes = NO_REF
    tables_depth: int = 0
    checkpoint_txid: int = 0
    """The newest commit that a checkpoint keeps; 0: there is none."""
    space: bytes = NO_REF
    steady_txid: int = 0
    """The newest commit that was known to be on disk when this one was written."""
    steady: bool = False
    relaxed: bool = False
    time_ns: int = 0
    """When the commit was made, nanoseconds since 1970, by the clock of the machine that made it; 0 if unknown."""
    generation: bytes = bytes(8)
    """The name of the generation that the commit belongs to; zeros if no handle has committed anything yet."""
    generation_txid: int = 0
    """The first commit of that generation."""
    extents: tuple[Extent, ...] = ()
    changes: Mapping[bytes, bytes | None] = _NO_CHANGES

    # What follows does what `_replace` would, in a third of the time: it is on the way of every write.

    def with_changes(
        self, entry_count: int, extents: tuple[Extent, ...], changes: Mapping[bytes, bytes | None]
    ) -> Meta:
        """The same tree with other changes."""
        return Meta(
            self.txid, self.page_size, self.database_id, self.page_count, entry_count, self.tree_count, self.root,
            self.depth, self.tables_count, self.tables_root, self.tables_depth, self.checkpoint_txid, self.space,
            self.steady_txid, self.steady, self.relaxed, self.time_ns, self.generation, self.generation_txid, extents,
            changes,
        )  # fmt: skip

    def numbered(
        self, txid: int, steady_txid: int, time_ns: int, generation: bytes, generation_txid: int, *, relaxed: bool
    ) -> Meta:
        """The same content as another commit, which is not steady yet."""
        return Meta(
            txid, self.page_size, self.database_id, self.page_count, self.entry_count, self.tree_count, self.root,
            self.depth, self.tables_count, self.tables_root, self.tables_depth, self.checkpoint_txid, self.space,
            steady_txid, False, relaxed, time_ns, generation, generation_txid, self.extents, self.changes,
        )  # fmt: skip


def now_ns() -> int:
    """Nanoseconds since 1970, as files hold them: 0, which means "unknown", if the clock shows an earlier time."""
    return min(max(time.time_ns(), 0), 2**64 - 1)


def first_page(page_size: int) -> int:
    """The first page id after the meta area."""
    return -(-META_AREA // page_size)


def flaw_of(meta: Meta) -> str | None:
    """Which number in a meta cannot be, or None if all of them can.

    None is written with such a number; but checksums do not keep out a file that was made to hurt.
    """
    if not 0 < meta.txid < MAX_TXID:
        return f"{meta.txid} as the number of a commit"
    if meta.depth > MAX_DEPTH:
        return f"a tree of {meta.depth} levels"
    if meta.page_count < first_page(meta.page_size):
        return f"{meta.page_count} pages"
    if meta.checkpoint_txid >= meta.txid:
        return f"a checkpoint of commit {meta.checkpoint_txid}"
    if meta.tables_depth > MAX_DEPTH:
        return f"a tree of {meta.tables_depth} levels"
    for count in (meta.entry_count, meta.tree_count, meta.tables_count):
        if not 0 <= count <= meta.page_count * meta.page_size:
            return f"{count} entries"
    if pages_of(meta.extents) > MAX_LISTED:
        return "a list of too many pages"
    return None


def pages_of(extents: tuple[Extent, ...]) -> int:
    """How many pages these are."""
    return sum(map(_PAGE_COUNT, extents))


def room_for(extent_count: int) -> int:
    """Bytes that are left for changes in a meta with so many extents."""
    return META_SIZE - _FIXED.size - _TRAILER.size - extent_count * _EXTENT.size


def stamp_of(slot0: bytes, slot1: bytes) -> bytes:
    """The bytes at `STAMP_OFFSET` of a file with these two slots."""
    return slot0[STAMP_OFFSET:] + slot1[: _FIXED.size]


def stamp_with(stamp: bytes, slot: int, page: bytes) -> bytes:
    """What `stamp` becomes when `page` is written to a slot."""
    return stamp[: _TRAILER.size] + page[: _FIXED.size] if slot else page[STAMP_OFFSET:] + stamp[_TRAILER.size :]


def may_follow(meta: Meta, seen: Meta) -> bool:
    """Whether a file that held `seen` may hold `meta` now, by nothing but commits.

    If not, another copy of the database was put in its place, or its disk has lost what was written.
    """
    if meta.txid <= seen.txid:
        return meta._replace(steady=seen.steady, relaxed=seen.relaxed) == seen
    # Else the generation of `meta` has made the commit that has the number of `seen`, and it was another one.
    return meta.generation == seen.generation or meta.generation_txid > seen.txid


def encode_changes(changes: Mapping[bytes, bytes | None]) -> bytes:
    """The changes as they stand in a meta page."""
    parts: list[bytes] = []
    for key, value in changes.items():
        key_size = len(key) if type(key) is bytes else len(key) | _OF_TABLES
        if value is None:
            parts += (_CHANGE.pack(key_size, _TOMBSTONE), key)
        else:
            parts += (_CHANGE.pack(key_size, len(value)), key, value)
    return b"".join(parts)


def encode_meta(meta: Meta, changes: bytes | None = None) -> bytes:
    """The meta page, `META_SIZE` bytes. `changes`, if given, are those of `meta`, encoded already."""
    if changes is None:
        changes = encode_changes(meta.changes)
    fixed = _FIXED.pack(
        MAGIC, meta.txid, FORMAT_VERSION, 0, meta.page_size, _STEADY * meta.steady | _RELAXED * meta.relaxed,
        meta.page_count, meta.entry_count, meta.tree_count, meta.root, meta.depth,
        meta.tables_depth, meta.space,
        meta.steady_txid, meta.time_ns, meta.database_id, meta.generation, meta.generation_txid,
        len(changes), len(meta.extents), len(meta.changes), meta.tables_count, meta.tables_root,
        meta.checkpoint_txid,
    )  # fmt: skip
    extents = struct.pack("<" + _EXTENT_CODES * len(meta.extents), *chain.from_iterable(meta.extents))
    body = b"".join((fixed, extents, changes))
    assert len(body) <= STAMP_OFFSET, "the changes do not fit in a meta page"
    body = body.ljust(STAMP_OFFSET, b"\0") + meta.txid.to_bytes(8, "little")
    return body + crc32c(body).to_bytes(4, "little")


def steady_copy(slot: bytes) -> bytes:
    """The same meta page, marked steady."""
    body = slot[:_FLAGS_OFFSET] + _STEADY.to_bytes(4, "little") + slot[_FLAGS_OFFSET + 4 : -4]
    return body + crc32c(body).to_bytes(4, "little")


def has_magic(slot: bytes) -> bool:
    """Whether the bytes claim to be a meta page of ours."""
    return slot.startswith(MAGIC)


def is_uninitialised(area: bytes, size: int) -> bool:
    """Whether a file is a database that was not initialised yet. It has `size` bytes and begins with `area`.

    Either the file is empty, or a crash interrupted `creation.initialise`: the file is one sector of zeros, or begins
    with `UNFINISHED` while slot 1 holds no meta. A read that came short tells nothing.
    """
    if len(area) != min(size, META_AREA):
        return False
    if not size or (size == SECTOR and area == bytes(SECTOR)):
        return True
    return area.startswith(UNFINISHED) and decode_meta(area[META_SIZE:]) is None


def decode_meta(slot: bytes) -> Meta | None:
    """The meta in a slot, or None if the slot does not hold a whole one.

    Raises `UnknownVersionError` if it is whole, but of a format that this version of durabledbm does not know.
    """
    if len(slot) != META_SIZE or not slot.startswith(MAGIC) or not self_consistent(slot):
        return None
    (
        _, txid, version, features, page_size, flags, page_count, entry_count, tree_count, root, depth,
        tables_depth, space, steady_txid, time_ns, database_id, generation, generation_txid, changes_size, extent_count,
        change_count, tables_count, tables_root, checkpoint_txid,
    ) = _FIXED.unpack_from(slot)  # fmt: skip
    if version != FORMAT_VERSION:
        known = f"this durabledbm reads version {FORMAT_VERSION}"
        raise UnknownVersionError(f"the file has format version {version}; {known}")
    if features:
        raise UnknownVersionError(f"the file uses features that this durabledbm does not know: {features:#x}")
    if not (MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE) or page_size & (page_size - 1):
        return None
    at = _FIXED.size + extent_count * _EXTENT.size
    if at + changes_size > STAMP_OFFSET:
        return None
    extents = tuple(map(Extent._make, _EXTENT.iter_unpack(slot[_FIXED.size : at]))) if extent_count else ()
    changes = _decode_changes(slot, at, at + changes_size, change_count) if change_count else _NO_CHANGES
    if changes is None:
        return None
    meta = Meta(
        txid, page_size, database_id, page_count, entry_count, tree_count, root, depth, tables_count,
        tables_root, tables_depth, checkpoint_txid, space, steady_txid, bool(flags & _STEADY), bool(flags & _RELAXED),
        time_ns, generation, generation_txid, extents, changes,
    )  # fmt: skip
    return None if flaw_of(meta) else meta


def _decode_changes(slot: bytes, at: int, end: int, count: int) -> dict[bytes, bytes | None] | None:
    changes: dict[bytes, bytes | None] = {}
    for _ in range(count):
        if at + _CHANGE.size > end:
            return None
        key_size, value_size = _CHANGE.unpack_from(slot, at)
        at += _CHANGE.size
        middle = at + (key_size & ~_OF_TABLES)
        stop = middle + max(value_size, 0)
        if stop > end:
            return None
        key = TableKey(slot[at:middle]) if key_size & _OF_TABLES else slot[at:middle]
        changes[key] = None if value_size == _TOMBSTONE else slot[middle:stop]
        at = stop
    return changes
