"""Free pages in memory: one byte per page of the file, 1 where the page may be written.

Searching a bytearray for a run of ones is a single C call, and remembering up to where there is no run of 1, 2, 4...
pages makes asking again cost nothing. Runs nearest to the front are taken first, so that the end gets free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["Allocator", "Run", "coalesced"]

_SLACK = 1.15
"""Grow the file rather than fill scattered holes while it is at most so many times the pages in use..."""

_SLACK_PAGES = 64
"""...and so many pages more. Small files should not be scattered for a few kilobytes."""

_POWERS = 13
"""Free runs of 1, 2, 4 ... 4096 pages are looked for."""

_NOWHERE = 1 << 62

_TAKEN = b"\0"
_HOLE = b"\0\1\0"

Run = tuple[int, int]
"""Page id of the first page, and how many."""


class Allocator:
    """The pages of a file, of which some may be written."""

    def __init__(self, first_page: int, page_count: int, span: int) -> None:
        self.first_page = first_page
        self.free_count = 0
        self.pending_count = 0
        """Pages that were freed and may not be written yet."""
        self.flags = bytearray(page_count)
        self.span = span
        self.dirty: set[int] = set()
        """Which spans of so many pages have changed."""
        self.taken: list[Run] = []
        self.base = page_count
        self._starts = [first_page] * _POWERS
        self._reused_from = _NOWHERE
        self._holes_from = 0
        self._hand = first_page
        """Where the search for scattered pages goes on."""
        self._closed: tuple[int, bytes] = 0, b""
        self._longest = _POWERS
        """There is no free run of more than 2 to this power pages, as far as is known."""

    @property
    def page_count(self) -> int:
        """Pages of the file."""
        return len(self.flags)

    def is_free(self, page_id: int) -> bool:
        """Whether the page may be reused now."""
        return bool(self.flags[page_id])

    def free_runs(self) -> Iterator[Run]:
        """All reusable pages, ascending."""
        free, at = self.flags, self.flags.find(1)
        while at >= 0:
            end = free.find(0, at)
            end = len(free) if end < 0 else end
            yield at, end - at
            at = free.find(1, end)

    @property
    def used_count(self) -> int:
        """Pages that the newest commit, or the one being made, needs; meta pages included."""
        return len(self.flags) - self.free_count - self.pending_count

    def take(self, want: int, *, grow: bool = True) -> list[Run]:
        """Allocate about `want` pages, at least one: in one run, if there is one or the file may grow, else wherever
        they are, ascending.

        With `grow` false the file grows only if nothing at all is free: for commits that make the file smaller.
        """
        power = (want - 1).bit_length()
        found = self._find(1 << power) if power <= self._longest else -1
        if found >= 0:
            return [self._claimed(found, 1 << power)]
        if self._may_grow(1 << power, grow):
            return [self._grown(1 << power)]
        self._longest = min(power - 1, self._longest)
        return self._scattered(want)

    def _scattered(self, want: int) -> list[Run]:
        """Go around the file, and take what is free: there is most where the last search was longest ago."""
        flags, runs = self.flags, []
        at = flags.find(1, self._hand)
        if at < 0:
            at = flags.find(1)
        while want > 0 and at >= 0:
            end = flags.find(0, at, at + want)
            end = min(at + want, len(flags)) if end < 0 else end
            runs.append((at, end - at))
            want -= end - at
            at = flags.find(1, end)
        self._hand = sum(runs[-1])
        for at, count in runs:
            flags[at : at + count] = _TAKEN if count == 1 else bytes(count)
            self.free_count -= count
            self.touch(at, count)
        self.taken += runs
        return runs

    def take_hole(self) -> int:
        """Allocate a free page between two that are not, where nothing longer would fit; 0 if there is none."""
        found = self.flags.find(_HOLE, self._holes_from)
        self._holes_from = found if found >= 0 else len(self.flags)
        return 0 if found < 0 else self._claimed(found + 1, 1)[0]

    def take_run(self, want: int) -> Run:
        """Allocate exactly `want` consecutive pages, at the end of the file if there is no such run inside."""
        found = self._find(want)
        return self._grown(want) if found < 0 else self._claimed(found, want)

    def reserve(self, count: int, *, soon: bool) -> int:
        """See to it that `count` pages are free, or may be `soon`, if need be at the end of the file; from where on."""
        start, missing = len(self.flags), count - self.free_count - soon * self.pending_count
        if missing > 0:
            self.reuse(*self._grown(missing))
        return start

    def _may_grow(self, want: int, grow: bool) -> bool:
        if self.free_count == 0:
            return True
        return grow and len(self.flags) + want <= self.used_count * _SLACK + _SLACK_PAGES

    def _grown(self, want: int) -> Run:
        found = len(self.flags)
        self.flags.extend(b"\1" * want)
        self.free_count += want
        return self._claimed(found, want)

    def _claimed(self, page_id: int, page_count: int) -> Run:
        self.flags[page_id : page_id + page_count] = bytes(page_count)
        self.free_count -= page_count
        self.touch(page_id, page_count)
        self.taken.append((page_id, page_count))
        return page_id, page_count

    def _find(self, length: int) -> int:
        """Page id of the first free run of that length, or -1.

        For each power of two it is remembered up to where there is no such run, so looking again costs nothing.
        """
        if self.free_count < length:
            return -1
        starts = self._starts
        if self._reused_from < len(self.flags):
            for power, start in enumerate(starts):
                starts[power] = min(start, max(self._reused_from - (1 << power), self.first_page))
            self._reused_from = _NOWHERE
        power = min(length.bit_length() - 1, len(starts) - 1)
        found = self.flags.find(b"\1" * length, starts[power])
        if length == 1 << power:
            starts[power] = found if found >= 0 else len(self.flags)
        return found

    def give_back(self, page_id: int, page_count: int) -> None:
        """Undo part of a `take` of this commit: the pages hold nothing that anybody can reach."""
        if page_id + page_count == len(self.flags) and page_id >= self.base:
            del self.flags[page_id:]
        else:
            self.reuse(page_id, page_count)

    def reuse(self, page_id: int, page_count: int) -> None:
        if page_count == 1:
            self.free_count += not self.flags[page_id]
            self.flags[page_id] = 1
        else:
            end = page_id + page_count
            self.free_count += self.flags.count(0, page_id, end)
            self.flags[page_id:end] = b"\1" * page_count
        self._longest = _POWERS
        self.touch(page_id, page_count)
        self._reused_from = min(self._reused_from, page_id)
        self._holes_from = min(self._holes_from, page_id - 1)

    def touch(self, page_id: int, page_count: int) -> None:
        first = page_id // self.span
        self.dirty.add(first)
        if page_count > 1 and (last := (page_id + page_count - 1) // self.span) != first:
            self.dirty.update(range(first + 1, last + 1))

    def close_from(self, page_id: int) -> None:
        """Allocate nothing from this page on, up to `reopen`: what stands there is being moved to the front."""
        free = bytes(self.flags[page_id:])
        self._closed = page_id, free
        self.flags[page_id:] = bytes(len(free))
        self.free_count -= free.count(1)

    def reopen(self) -> None:
        """What was closed is free as it was."""
        page_id, free = self._closed
        self._closed = 0, b""
        if free:
            self.flags[page_id : page_id + len(free)] = free
            self.free_count += free.count(1)
            self._longest = _POWERS
            self._reused_from = min(self._reused_from, page_id)
            self._holes_from = min(self._holes_from, page_id - 1)

    def cut_tail(self, *, all_of_it: bool = False) -> None:
        """Forget the reusable pages at the end of the file, if they are worth it: the file may be cut off there."""
        tail = len(self.flags) - len(self.flags.rstrip(b"\1"))
        if tail > (0 if all_of_it else max(len(self.flags) // 16, 16)):
            del self.flags[-tail:]
            self.free_count -= tail
            self.base = min(self.base, len(self.flags))
            self._starts = [self.first_page] * _POWERS


def coalesced(runs: Iterable[Run]) -> Iterator[Run]:
    """The same pages as few runs, ascending."""
    start = end = -1
    for page_id, length in sorted(runs):
        if page_id <= end:  # the same page may have been taken, given back and taken again
            end = max(end, page_id + length)
        else:
            if end > start:
                yield start, end - start
            start, end = page_id, page_id + length
    if end > start:
        yield start, end - start
