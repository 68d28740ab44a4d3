"""Free space: which pages may be written, and how the file remembers it.

In memory there is one byte per page, 1 where the page may be reused, because searching a bytearray for a run of ones
is a single C call. Pages that a commit frees wait in `_pending` until no snapshot and no fallback can reach them.

On the disk the same is a *map* (one bit per page, in MAP pages, each for a span of the file) and a *log* of what was
taken and freed since the map was written. Every commit that writes pages writes the log anew (one page); when the log
grows too long it is folded into the map, which rewrites only the MAP pages of the spans that changed. So a commit
costs what it changed, however much is free. Freed pages that a long-lived snapshot still pins would make the log grow:
they move into PENDING runs, which are written once and dropped as a whole when the last of them is reusable.

Pure but for `load`, which is handed a function that reads runs. Nothing here is needed to read the database: all of it
can be rebuilt from the tree.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from typing import NamedTuple

from .allocator import Allocator, Run, coalesced
from .page import CRC_SIZE, HEADER, MAP, NO_REF, PENDING, REF, SPACE, pages_for, ref_parts, seal

__all__ = ["FreeMap", "Run"]

_FIXED = struct.Struct("<QIIII")
"""pages in use, map count, chunk count, log count, reserved"""

_LOG = struct.Struct("<QIQ")
"""page id, page count, txid that freed the pages, or 0 if they were taken"""

_CHUNK = struct.Struct("<16sQ")
"""ref of a PENDING run, the newest txid in it"""

_EXTENT = struct.Struct("<QI")

_ANCIENT = 1
"""The commit that made the file, which has freed all that has never been used."""

_LOG_PAGES = 2
"""Fold when the log would take more pages than this."""

_CHUNK_MIN = 64
"""So many freed extents that cannot be folded yet are worth a PENDING run; fewer stay in the log."""

_TWICE = "the tree leads to a page twice, or out of the file"

_EXPAND = [bytes((byte >> bit) & 1 for bit in range(8)) for byte in range(256)]

class _Pending(NamedTuple):
    """Pages freed by commits up to `txid`. `chunk` is the ref of the PENDING run that lists them, if one does."""

    txid: int
    runs: list[Run]
    chunk: bytes


class FreeMap:
    """The free pages of one database, as the writer sees them. Not thread-safe: only the writer has it."""

    def __init__(self, page_size: int, first_page: int, page_count: int) -> None:
        self.pages = Allocator(first_page, page_count, (page_size - HEADER.size - CRC_SIZE) * 8)
        """Which pages are free, in memory."""
        self._page_size = page_size
        self._pending: deque[_Pending] = deque()
        self._log = bytearray()
        """The records as they stand in the file."""
        self._maps: list[bytes] = []
        self._chunks: list[tuple[bytes, int]] = []
        self.ref = NO_REF
        """The run that the newest commit's meta points at."""
        self._freed: list[Run] = []
        self._dropped: list[Run] = []
        """Freed by the commit that wrote them."""
        self._unwritten = False
        """What is free here is nowhere in the file: it was found out, not read."""

    # -- what there is --------------------------------------------------------------------------------

    def pending_runs(self) -> Iterator[tuple[int, Run]]:
        """All pages that were freed and may not be reused yet, with the txid that freed them (or a newer one)."""
        for group in self._pending:
            for run in group.runs:
                yield group.txid, run

    def own_runs(self) -> Iterator[bytes]:
        """The refs of the runs that hold the free-space map itself."""
        if self.ref != NO_REF:
            yield self.ref
        yield from (ref for ref in self._maps if ref != NO_REF)
        yield from (ref for ref, _ in self._chunks)

    # -- taking and freeing ------------------------------------------------------------------------

    def free(self, page_id: int, page_count: int) -> None:
        """The commit being made no longer needs these pages; older commits may."""
        self._freed.append((page_id, page_count))
        self.pages.pending_count += page_count

    def drop(self, page_id: int, page_count: int) -> None:
        """The commit being made has written these pages and does not need them after all.

        They are still in its extent list, so they are reused only after one more durable commit.
        """
        self._dropped.append((page_id, page_count))
        self.pages.pending_count += page_count

    def free_all(self) -> None:
        """The commit being made, which has taken nothing yet, starts from an empty tree."""
        unused = self.pages.flags[:]
        unused[: self.pages.first_page] = b"\1" * self.pages.first_page
        kept = [REF.unpack(ref)[:2] for ref in self.own_runs()]
        for page_id, page_count in [*kept, *(run for _, run in self.pending_runs())]:
            unused[page_id : page_id + page_count] = b"\1" * page_count
        at = unused.find(0)
        while at >= 0:
            end = unused.find(1, at)
            end = len(unused) if end < 0 else end
            self.free(at, end - at)
            at = unused.find(0, end)

    def freed_mark(self) -> int:
        """How many runs the commit being made has freed."""
        return len(self._freed)

    def unfree(self, mark: int) -> None:
        """Take back what was freed since there were `mark` freed runs."""
        for _, page_count in self._freed[mark:]:
            self.pages.pending_count -= page_count
        del self._freed[mark:]

    def release(self, txid: int) -> None:
        """Make reusable what was freed by commits up to `txid`: nothing reaches it any more."""
        while self._pending and self._pending[0].txid <= txid:
            for page_id, page_count in self._pending.popleft().runs:
                self.pages.pending_count -= page_count
                self.pages.reuse(page_id, page_count)

    # -- persistence -------------------------------------------------------------------------------

    def save(
        self, txid: int, write: Callable[[bytes, int], bytes], *, fold: bool = False, log_pages: int | None = None
    ) -> bytes:
        """Close the books of commit `txid`: write what changed with `write(run, page_id) -> ref`, return the ref.

        Allocates the pages it needs itself. It writes the map if the log would take more than `log_pages`, and with
        `fold` in any case. Raises `ValueError` if what was freed cannot have been in use.
        """
        log_pages = log_pages or _LOG_PAGES
        self._free_ref(self.ref)
        freed, dropped = self._disjoint(self._freed), self._disjoint(self._dropped)
        log_count = self._log_count + len(freed) + len(dropped) + 2
        if self._log_pages(log_count) <= log_pages:
            log_count += sum(1 for _ in self._taken_records())
        if fold or self._unwritten or self._log_pages(log_count) > log_pages:
            self._fold(txid, write)
            freed = self._disjoint(self._freed)
            log_count = self._log_count + len(freed) + len(dropped) + 2
        where = self.pages.take_run(self._size_pages(log_count))
        self._log += b"".join(_LOG.pack(*record) for record in self._taken_records())
        self._log += b"".join(_LOG.pack(page_id, page_count, txid) for page_id, page_count in freed)
        self._log += b"".join(_LOG.pack(page_id, page_count, txid + 1) for page_id, page_count in dropped)
        if freed:
            self._pending.append(_Pending(txid, freed, NO_REF))
        if dropped:
            self._pending.append(_Pending(txid + 1, dropped, NO_REF))
        self.pages.taken, self._freed, self._dropped, self.pages.base = [], [], [], len(self.pages.flags)
        if self.pages.used_count < self.pages.first_page:
            raise ValueError(_TWICE)
        payload = b"".join(
            (
                _FIXED.pack(self.pages.used_count, len(self._maps), len(self._chunks), self._log_count, 0),
                *self._maps,
                *(_CHUNK.pack(ref, newest) for ref, newest in self._chunks),
                self._log,
            )
        )
        spare = bytes(max(0, _payload_size(where[1], self._page_size) - len(payload)))
        run = seal(SPACE, 0, 0, where[0], txid, self._page_size, payload + spare)
        assert len(run) == where[1] * self._page_size, "the free-space log is longer than was reckoned"
        self.ref = write(run, where[0])
        return self.ref

    def _disjoint(self, runs: list[Run]) -> list[Run]:
        """The runs, ascending, as few as can be. Raises `ValueError` if they are not what a tree can give up: a file
        that was made to hurt may lead to a page twice, or out of the file.
        """
        few = list(coalesced(runs))
        inside = not few or (few[0][0] >= self.pages.first_page and sum(few[-1]) <= len(self.pages.flags))
        if not inside or sum(count for _, count in few) != sum(count for _, count in runs):
            raise ValueError(_TWICE)
        for page_id, page_count in few:
            if self.pages.flags.find(1, page_id, page_id + page_count) >= 0:
                raise ValueError(f"of the pages {page_id} to {page_id + page_count - 1} some are free, and in the tree")
        return few

    def _taken_records(self) -> Iterator[tuple[int, int, int]]:
        """What to log of the pages taken: those that were given back again count only where the map lacks them."""
        for page_id, page_count in coalesced(self.pages.taken):
            at, end = page_id, min(page_id + page_count, len(self.pages.flags))
            while at < end:
                given_back = self.pages.flags[at]
                stop = self.pages.flags.find(1 - given_back, at, end)
                stop = end if stop < 0 else stop
                if not given_back:
                    yield at, stop - at, 0
                elif stop > self.pages.base:
                    start = max(at, self.pages.base)
                    yield start, stop - start, _ANCIENT
                at = stop

    @property
    def _log_count(self) -> int:
        return len(self._log) // _LOG.size

    def _log_pages(self, count: int) -> int:
        return pages_for(count * _LOG.size, self._page_size)

    def _size_pages(self, log_count: int) -> int:
        fixed = _FIXED.size + len(self._maps) * REF.size + len(self._chunks) * _CHUNK.size
        return pages_for(fixed + log_count * _LOG.size, self._page_size)

    def _free_ref(self, ref: bytes) -> None:
        if ref != NO_REF:
            page_id, page_count, _ = REF.unpack(ref)
            self.free(page_id, page_count)

    def _fold(self, txid: int, write: Callable[[bytes, int], bytes]) -> None:
        """Write the map pages that changed, and start the log anew with what is not reusable yet."""
        listed = {group.chunk for group in self._pending}
        for ref, _ in self._chunks:
            if ref not in listed:
                self._free_ref(ref)
        self._chunks = [chunk for chunk in self._chunks if chunk[0] in listed]
        unlisted = [group for group in self._pending if group.chunk == NO_REF]
        if sum(len(group.runs) for group in unlisted) >= _CHUNK_MIN:
            self._write_chunk(unlisted, txid, write)
            unlisted = []
        self._log = bytearray().join(
            _LOG.pack(page_id, count, group.txid) for group in unlisted for page_id, count in group.runs
        )
        spans = -(-len(self.pages.flags) // self.pages.span)
        for ref in self._maps[spans:]:
            self._free_ref(ref)
        del self._maps[spans:]
        self._maps += [NO_REF] * (spans - len(self._maps))
        end = self.pages.used_count
        self.pages.dirty.update(
            index for index, ref in enumerate(self._maps) if ref != NO_REF and REF.unpack(ref)[0] >= end
        )
        # Taking the pages for the map may make one more span dirty, so they are taken before anything is written.
        places: dict[int, Run] = {}
        while todo := sorted(i for i in self.pages.dirty if i < spans and i not in places):
            for index in todo:
                places[index] = self.pages.take_run(1)
            spans = -(-len(self.pages.flags) // self.pages.span)
            self._maps += [NO_REF] * (spans - len(self._maps))
        # Whatever the log page itself takes after this goes into the new log, as any later commit's pages do.
        self.pages.taken = []
        for index, place in places.items():
            self._free_ref(self._maps[index])
            bits = _pack_bits(self.pages.flags[index * self.pages.span : (index + 1) * self.pages.span])
            run = seal(MAP, 0, index, place[0], txid, self._page_size, bits)
            self._maps[index] = write(run, place[0])
        self.pages.dirty = set()
        self._unwritten = False

    def _write_chunk(self, groups: list[_Pending], txid: int, write: Callable[[bytes, int], bytes]) -> None:
        runs = list(coalesced(run for group in groups for run in group.runs))
        newest = groups[-1].txid
        payload = b"".join(_EXTENT.pack(*run) for run in runs)
        where = self.pages.take_run(pages_for(len(payload), self._page_size))
        ref = write(seal(PENDING, 0, len(runs), where[0], txid, self._page_size, payload), where[0])
        self._chunks.append((ref, newest))
        self._pending = deque(group for group in self._pending if group.chunk != NO_REF)
        self._pending.append(_Pending(newest, runs, ref))

    @classmethod
    def load(
        cls, ref: bytes, page_size: int, first_page: int, page_count: int, read: Callable[[bytes, int], bytes]
    ) -> FreeMap:
        """The free space that a meta points at; `read(ref, type)` returns verified runs.

        Raises `ValueError` if what is written there cannot be.
        """
        space = cls(page_size, first_page, page_count)
        if ref == NO_REF:
            return space
        run = read(ref, SPACE)
        _, map_count, chunk_count, log_count, _ = _FIXED.unpack_from(run, HEADER.size)
        at = HEADER.size + _FIXED.size
        end = at + map_count * REF.size + chunk_count * _CHUNK.size + log_count * _LOG.size
        if end > len(run):
            raise ValueError("the free-space map is larger than its page")
        space.ref = ref
        space._maps = [run[i : i + REF.size] for i in range(at, at + map_count * REF.size, REF.size)]
        at += map_count * REF.size
        space._chunks = list(_CHUNK.iter_unpack(run[at : at + chunk_count * _CHUNK.size]))
        at += chunk_count * _CHUNK.size
        space._log = bytearray(run[at : at + log_count * _LOG.size])
        space._check_own_runs()
        space._load_map(read)
        space._load_pending(read)
        return space

    def _check_own_runs(self) -> None:
        """No run that is read is outside of the file, or read twice, however many refs there are."""
        at = self.pages.first_page
        for page_id, page_count in sorted(ref_parts(ref)[:2] for ref in self.own_runs()):
            if page_id < at or page_count < 1 or page_id + page_count > len(self.pages.flags):
                raise ValueError("its own pages overlap, or are not inside the file")
            at = page_id + page_count

    def _load_map(self, read: Callable[[bytes, int], bytes]) -> None:
        page_count = len(self.pages.flags)
        parts = []
        for ref in self._maps[: -(-page_count // self.pages.span)]:
            if ref == NO_REF:
                parts.append(bytes(self.pages.span))
            else:
                run = read(ref, MAP)
                parts.append(_unpack_bits(run[HEADER.size : self._page_size - CRC_SIZE]))
        free = bytearray().join(parts)[:page_count]
        free.extend(bytes(page_count - len(free)))
        free[: self.pages.first_page] = bytes(self.pages.first_page)
        self.pages.flags = free

    def _load_pending(self, read: Callable[[bytes, int], bytes]) -> None:
        """Go through the lists and the log in order: what the last record says of a page counts."""
        runs: list[Run] = []
        freed_by: list[tuple[int, bytes]] = []
        for ref, newest in self._chunks:
            run = read(ref, PENDING)
            count = HEADER.unpack_from(run)[3]
            if count * _EXTENT.size > len(run) - HEADER.size - CRC_SIZE:
                raise ValueError("a list of freed pages is larger than its page")
            extents = _EXTENT.iter_unpack(run[HEADER.size : HEADER.size + count * _EXTENT.size])
            runs += [self._inside(page_id, length) for page_id, length in extents]
            freed_by += [(newest, ref)] * count
        listed = len(runs)
        for page_id, length, txid in _LOG.iter_unpack(self._log):
            runs.append(self._inside(page_id, length))
            freed_by.append((txid, NO_REF))
        groups: dict[tuple[int, bytes], list[Run]] = {}
        for page_id, length, number in _topmost(runs):
            self.pages.flags[page_id : page_id + length] = bytes(length)
            if number >= listed:
                self.pages.touch(page_id, length)
            if freed_by[number][0]:
                groups.setdefault(freed_by[number], []).append((page_id, length))
                self.pages.pending_count += length
        self._pending = deque(
            _Pending(txid, list(coalesced(freed)), chunk) for (txid, chunk), freed in sorted(groups.items())
        )
        self.pages.free_count = self.pages.flags.count(1)

    def _inside(self, page_id: int, length: int) -> Run:
        """The pages of a record that the file still has: it may have been cut off after the record was made."""
        if page_id < self.pages.first_page or length < 1:
            raise ValueError(f"pages {page_id} to {page_id + length - 1} cannot be free")
        return page_id, max(0, min(length, len(self.pages.flags) - page_id))

    @classmethod
    def emptied(cls, page_size: int, first_page: int, page_count: int, txid: int) -> FreeMap:
        """The free space beside an empty tree: all pages, freed by commit `txid` or before.

        It need not be recorded. So emptying a database needs no page, and is possible where the disk is full.
        """
        space = cls(page_size, first_page, page_count)
        if page_count > first_page:
            everything = first_page, page_count - first_page
            space._log += _LOG.pack(*everything, txid)
            space._pending.append(_Pending(txid, [everything], NO_REF))
            space.pages.pending_count = everything[1]
        return space

    @classmethod
    def rebuilt(
        cls, page_size: int, first_page: int, page_count: int, used: Iterable[Run], pinned_until: int
    ) -> FreeMap:
        """Free space derived from what is in use: all else is free, though maybe still read by a snapshot.

        What is free becomes reusable by `release(pinned_until)`.
        """
        space = cls(page_size, first_page, page_count)
        unused = bytearray(b"\1" * page_count)
        unused[:first_page] = bytes(first_page)
        for page_id, length in used:
            unused[page_id : page_id + length] = bytes(length)
        space.pages.flags = unused
        runs = list(space.pages.free_runs())
        space.pages.flags = bytearray(page_count)
        space.pages.dirty = set(range(-(-page_count // space.pages.span)))
        space._unwritten = True
        if runs:
            space._pending.append(_Pending(pinned_until, runs, NO_REF))
            space.pages.pending_count = sum(length for _, length in runs)
        return space


def _topmost(runs: list[Run]) -> Iterator[tuple[int, int, int]]:
    """Runs laid over each other, each over those before it, as they are seen from above: first page, length, and the
    number of the run. A sweep from the first page to the last: however much they overlap, it takes a time that depends
    on their number only.
    """
    starts = sorted((page_id, -number, page_id + length) for number, (page_id, length) in enumerate(runs) if length)
    open_runs: list[tuple[int, int]] = []
    """A heap of those that began: the highest one first, with its end."""
    at = upto = 0
    while upto < len(starts) or open_runs:
        if not open_runs:
            at = starts[upto][0]
        while upto < len(starts) and starts[upto][0] <= at:
            heappush(open_runs, starts[upto][1:])
            upto += 1
        number, end = open_runs[0]
        if end <= at:
            heappop(open_runs)
            continue
        stop = min(end, starts[upto][0]) if upto < len(starts) else end
        yield at, stop - at, -number
        at = stop


def _payload_size(page_count: int, page_size: int) -> int:
    return page_count * page_size - HEADER.size - CRC_SIZE


def _pack_bits(flags: bytearray) -> bytes:
    """Eight pages to a byte, the lowest page in the lowest bit. int() reads base 2 in C, from the highest digit."""
    if not flags:
        return b""
    digits = flags[::-1].translate(_DIGITS).decode("ascii")
    return int(digits, 2).to_bytes(-(-len(flags) // 8), "little")


_DIGITS = bytes(range(256)).replace(b"\0\1", b"01")


def _unpack_bits(bits: bytes) -> bytes:
    return b"".join(map(_EXPAND.__getitem__, bits))
