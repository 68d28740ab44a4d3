"""The writer of one commit's pages: gives every new run its place, and puts runs on the disk in few large writes.

Where pages go is free, since nothing is overwritten, so a commit's pages are laid one after another into as long a free
run as there is. `extents` records what was written where, for the meta page (see `meta`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from .checksum import crc32c
from .disk.protocol import Writes
from .freemap import FreeMap, Run
from .meta import Extent
from .node import Branch, encode_branch, encode_leaf
from .page import BRANCH, CRC_SIZE, HEADER, LEAF, OVERFLOW, REF, crc_of, pages_for, seal
from .pager import Pager

__all__ = ["Mark", "PageWriter"]

_BUFFER_MAX = 1 << 20
"""Bytes of adjacent runs that are collected before they are written."""


class Mark(NamedTuple):
    """A moment in the work of a writer that has spilled."""

    freed: int
    deferred: int
    fresh: int


class PageWriter:
    """Writes the runs of commit `txid`. After `finish` everything is written, though not synced."""

    def __init__(self, writes: Writes, pager: Pager, free_map: FreeMap, txid: int, *, grow: bool = True) -> None:
        self._write = writes.write
        self._pager = pager
        self._free_map = free_map
        self._pages = free_map.pages
        self._grow = grow
        self._place: Run = (0, 0)
        self._places: list[Run] = []
        """Where to go on after that, the first place last."""
        self._buffer: list[bytes | memoryview] = []
        self._buffer_start = 0
        self._buffer_end = 0
        self._written: list[bytes] = []
        """The refs of all runs, in the order in which they were written."""
        self.txid = txid
        self.kept_txid = 0
        """Runs that were written by this commit or an older one are kept by a checkpoint, and not freed."""
        self.page_size = pager.page_size
        self.tree = 0
        """Which tree the runs belong to that are written: 0 is the main tree, 1 the tree of tables."""
        self.expected = 1
        """How many more pages the commit will take, about: how long a free run to look for."""
        self.pages_written = 0
        self.own: set[int] | None = None
        """Page ids that a spilling transaction wrote before its commit: only it can reach them."""
        self.reuse = True
        """Whether pages in `own` may be written again as soon as they are replaced."""
        self._mine: set[int] = set()
        """Page ids that a commit which does not spill has written."""
        self._deferred: list[Run] = []
        self._fresh: list[Run] = []
        self._dead: list[Run] = []

    def expect(self, changes: Mapping[bytes, object], depth: int) -> None:
        """About as many pages as merging the changes into a tree of that depth takes will be written."""
        count = len(changes)
        if count <= 1000:
            self.expected = count * max(depth - 1, 1) + depth + 3
            return
        sample = [value for _, value in zip(range(256), changes.values(), strict=False) if type(value) is bytes]
        average = sum(map(len, sample)) // max(len(sample), 1) + 40
        self.expected = max(count * average // self.page_size + count // 64 + 3, min(count, 4096))

    # -- places ------------------------------------------------------------------------------------

    def _allocate(self, page_count: int) -> int:
        """The page id of `page_count` consecutive free pages."""
        if page_count == 1 and not self._grow and (hole := self._pages.take_hole()):
            return hole
        start, left = self._place
        if left < page_count:
            if left:
                self._pages.give_back(start, left)
                self._place = (0, 0)
            if not self._places:
                self._places = self._pages.take(max(self.expected, page_count), grow=self._grow)
                self._places.reverse()
            start, left = self._places.pop()
            if left < page_count:
                self._pages.give_back(start, left)
                start, left = self._pages.take_run(page_count)
        self._place = (start + page_count, left - page_count)
        self.expected -= page_count
        return start

    def release_place(self) -> None:
        """Give back what was allocated but not used."""
        for start, left in (self._place, *self._places):
            if left:
                self._pages.give_back(start, left)
        self._place, self._places = (0, 0), []

    def free(self, ref: bytes) -> None:
        """The commit no longer needs the run at `ref`."""
        page_id, page_count, _ = REF.unpack(ref)
        if self.own is not None and page_id in self.own:
            self.own.discard(page_id)
            if self.reuse:
                self._pages.give_back(page_id, page_count)
            else:
                self._deferred.append((page_id, page_count))
        elif page_id in self._mine:
            self._free_map.drop(page_id, page_count)
        elif not self.kept_txid or self._pager.birth(ref) > self.kept_txid:
            self._free_map.free(page_id, page_count)

    def mark(self) -> Mark:
        """Remember the present, to return to it with `reset`. Until then nothing in `own` may be reused."""
        return Mark(self._free_map.freed_mark(), len(self._deferred), len(self._fresh))

    def reset(self, mark: Mark, *, reuse: bool = True) -> None:
        """Forget what was written and freed since the mark. `reuse` allows to overwrite it before the commit."""
        assert self.own is not None
        self._free_map.unfree(mark.freed)
        self.own.update(page_id for page_id, _ in self._deferred[mark.deferred :])
        del self._deferred[mark.deferred :]
        for page_id, page_count in self._fresh[mark.fresh :]:
            self.own.discard(page_id)
            if reuse:
                self._pages.give_back(page_id, page_count)
            else:
                self._dead.append((page_id, page_count))
        del self._fresh[mark.fresh :]

    def give_back_deferred(self) -> None:
        """Give back the pages in `own` that were replaced while they could not be reused."""
        for page_id, page_count in self._deferred + self._dead:
            self._pages.give_back(page_id, page_count)
        self._deferred, self._dead = [], []

    # -- runs --------------------------------------------------------------------------------------

    def leaf(self, keys: list[bytes], values: list[bytes]) -> bytes:
        """Write a leaf, return its ref."""
        flags, payload = encode_leaf(keys, values, self.page_size)
        return self.leaf_payload(flags, len(keys), payload)

    def leaf_payload(self, flags: int, entry_count: int, *payload: bytes) -> bytes:
        """Write a leaf that is encoded already, return its ref."""
        ref, run = self._sealed(LEAF, flags, entry_count, payload)
        self._pager.keep(ref, run)
        return ref

    def branch(self, separators: list[bytes], refs: list[bytes], tail: bytes | None = None) -> bytes:
        """Write a branch, return its ref. `tail` is its payload after the refs, if that is known."""
        if tail is None:
            tail = encode_branch(separators, self.page_size)
        ref, _ = self._sealed(BRANCH, 0, len(refs), (b"".join(refs), tail))
        self._pager.keep(ref, Branch(separators, refs, tail))
        return ref

    def _sealed(self, kind: int, flags: int, entry_count: int, payload: tuple[bytes, ...]) -> tuple[bytes, bytes]:
        """Give a run its place and write it; its ref, and its bytes."""
        page_id = self._allocate(pages_for(sum(map(len, payload)), self.page_size))
        run = seal(kind, flags, entry_count, page_id, self.txid, self.page_size, *payload, tree=self.tree)
        return self.write(run, page_id), run

    def overflow(self, key: bytes, flags: int, *content: bytes | memoryview) -> bytes:
        """Write a large value, or a part of one, as a run of its own, return its ref (see `large_value`).

        It names its key, so that it can be moved, and salvaged, alone.
        """
        payload_size = len(key) + sum(map(len, content))
        used = HEADER.size + payload_size + CRC_SIZE
        page_count = -(-used // self.page_size)
        page_id = self._allocate(page_count)
        header = HEADER.pack(OVERFLOW, flags, self.tree, len(key), page_id, self.txid, page_count, payload_size)
        parts: list[bytes | memoryview] = [header, key, *content, bytes(page_count * self.page_size - used)]
        checksum = 0
        for part in parts:
            checksum = crc32c(part, checksum)
        return self._put([*parts, checksum.to_bytes(CRC_SIZE, "little")], page_id, page_count, checksum)

    def write(self, run: bytes, page_id: int) -> bytes:
        """Write a sealed run at a place that was taken for it, return its ref."""
        return self._put([run], page_id, len(run) // self.page_size, int.from_bytes(crc_of(run), "little"))

    def _put(self, parts: Sequence[bytes | memoryview], page_id: int, page_count: int, crc: int) -> bytes:
        before = self._buffer_end
        if page_id != before or (before - self._buffer_start + page_count) * self.page_size > _BUFFER_MAX:
            self.flush()
            self._buffer_start = page_id
        self._buffer += parts
        self._buffer_end = page_id + page_count
        self.pages_written += page_count
        if self.own is None:
            self._mine.add(page_id)
        else:
            self.own.add(page_id)
            if not self.reuse:
                self._fresh.append((page_id, page_count))
        ref = REF.pack(page_id, page_count, crc)
        self._written.append(ref)
        return ref

    def flush(self) -> None:
        """Hand to the disk what is still collected here."""
        if self._buffer:
            self._write(self._buffer_start * self.page_size, self._buffer)
            self._buffer = []
        self._buffer_start = self._buffer_end = 0

    def pad(self, start: int, end: int) -> None:
        """Write zeros from page `start` up to `end`, but for what was written there last, so that there is space for
        what may be written there one day.
        """
        start = max(start, min(self._buffer_end, end))
        if start < end:
            if start != self._buffer_end:
                self.flush()
                self._buffer_start = start
            self._buffer.append(bytes((end - start) * self.page_size))
            self._buffer_end = end

    def discard(self) -> None:
        """Forget what is still collected here: nothing leads to it."""
        self._buffer = []
        self._buffer_start = self._buffer_end = 0

    def finish(self) -> tuple[Extent, ...]:
        """Return the places that are left, write what is left, and tell what was written where."""
        self.release_place()
        self.flush()
        return tuple(_extents_of(self._written))


def _extents_of(refs: list[bytes]) -> Iterator[Extent]:
    """The runs, in this order, as few extents."""
    start = end = 0
    crcs: list[bytes] = []
    for ref in refs:
        page_id, page_count, _ = REF.unpack(ref)
        if page_id != end:
            if crcs:
                yield Extent(start, end - start, crc32c(b"".join(crcs)))
            start, crcs = page_id, []
        crcs.append(ref[-CRC_SIZE:])
        end = page_id + page_count
    if crcs:
        yield Extent(start, end - start, crc32c(b"".join(crcs)))
