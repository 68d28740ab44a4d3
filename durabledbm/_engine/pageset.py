"""Which pages of a file are spoken for, and by whom: how a walk notices that it comes to a page for the second time.

A file that was made to hurt may have a branch whose children are all one page, ten levels deep, or runs that overlap.
Whoever goes through a tree claims each run; what is claimed already is damage. So no walk takes longer than reading the
file once.

Memory is taken where pages are claimed, about a byte for a page: few claims in a file of terabytes, most of which is
a hole, cost little.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["PageSet"]

_SHIFT = 8
_PART = 1 << _SHIFT
"""Pages that memory is taken for at a time."""

_OWNED = bytes([0, *[1] * 255])
"""Any owner becomes 1: for searching."""


class PageSet:
    """The pages of a file from `first_page` on, each with a small number: who has claimed it, 0 for nobody."""

    __slots__ = ("_parts", "first_page", "page_count")

    def __init__(self, first_page: int, page_count: int) -> None:
        self.first_page = first_page
        self.page_count = page_count
        self._parts: dict[int, bytearray] = {}

    def holds(self, page_id: int, page_count: int) -> bool:
        """Whether the file has these pages."""
        return page_count > 0 and self.first_page <= page_id and page_id + page_count <= self.page_count

    def owner(self, page_id: int) -> int:
        """Who has claimed the page."""
        part = self._parts.get(page_id >> _SHIFT)
        return 0 if part is None else part[page_id & (_PART - 1)]

    def claim(self, page_id: int, page_count: int, owner: int = 1) -> int | None:
        """Claim consecutive pages, all of them or none. None, or the first one that is claimed already."""
        parts = self._parts
        at = page_id & (_PART - 1)
        if at + page_count > _PART:
            return self._claim_many(page_id, page_count, owner)
        part = parts.get(page_id >> _SHIFT)
        if part is None:
            part = parts[page_id >> _SHIFT] = bytearray(_PART)
        if page_count == 1:
            if part[at]:
                return page_id
            part[at] = owner
            return None
        free = part[at : at + page_count].translate(_OWNED).find(1)
        if free >= 0:
            return page_id + free
        part[at : at + page_count] = bytes((owner,)) * page_count
        return None

    def _claim_many(self, page_id: int, page_count: int, owner: int) -> int | None:
        end = page_id + page_count
        blank, count = next(self.gaps(page_id, end), (end, 0))
        if blank > page_id:
            return page_id
        if count < page_count:
            return page_id + count
        while page_id < end:
            at = page_id & (_PART - 1)
            count = min(_PART - at, end - page_id)
            part = self._parts.setdefault(page_id >> _SHIFT, bytearray(_PART))
            part[at : at + count] = bytes((owner,)) * count
            page_id += count
        return None

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The pages from `start` up to `stop` that nobody has claimed: page id of the first one, and how many."""
        blank = start
        """From here on nothing was met."""
        for index in sorted(index for index in self._parts if start >> _SHIFT <= index <= (stop - 1) >> _SHIFT):
            base = index << _SHIFT
            owned = self._parts[index].translate(_OWNED)
            at = owned.find(1, max(start - base, 0), max(stop - base, 0))
            while at >= 0:
                if base + at > blank:
                    yield blank, base + at - blank
                end = owned.find(0, at)
                blank = base + (_PART if end < 0 else end)
                at = -1 if end < 0 else owned.find(1, end, max(stop - base, 0))
        if blank < stop:
            yield blank, stop - blank
