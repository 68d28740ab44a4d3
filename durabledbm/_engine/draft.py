"""Drafts: nodes that are not written yet, and how entries are cut into them.

How full nodes are, and how many entries they hold at least, is decided here and nowhere else.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from operator import add
from typing import NamedTuple

from .node import BRANCH_OVERHEAD, LEAF_OVERHEAD, Overflow, capacity, separator

__all__ = ["Cutter", "Draft"]

_MIN_BRANCH = 4
"""A branch has at least so many children, however long the separators: a tree of long keys must not become a list."""

_MIN_LEAF = 8
"""A leaf takes as many pages as so many of its entries need..."""

_MIN_LEAF_PACKED = 16
"""...or so many, if it is being packed..."""

_JOIN_BELOW = 0.4
"""A node filled less than this is joined with a neighbour, whatever comes of it..."""

_LEAN_BELOW = 0.7
"""...and a leaf that has shrunk to less than this, if fewer pages will do then."""

_ROOM = 12
"""One part in so many is left free where a batch makes many leaves: the next few keys then need no split."""

_MAX_LEAF_PAGES = 4
"""...but no more than this, unless a single entry needs them."""


class Draft(NamedTuple):
    """A node that is not written yet. A leaf's keys and values; or, in a branch, the children's lows and refs."""

    low: bytes
    """No key in or below the node is smaller. What the parent uses as separator."""
    keys: list[bytes]
    values: list[bytes]
    size: int
    lean: bool = False
    """A leaf that has shrunk, and might do with fewer pages together with its neighbours."""
    ref: bytes = b""
    """Where it is, if it is written already after all; then its entries are not here any more."""


class Cutter:
    """Cuts entries into nodes that fit in pages of `page_size` bytes. `packing` fills them to the brim."""

    __slots__ = ("_packing", "_page_size", "one_page")

    def __init__(self, page_size: int, *, packing: bool) -> None:
        self._page_size = page_size
        self._packing = packing
        self.one_page = capacity(1, page_size)
        """Bytes of entries that a node of one page holds."""

    def cut(self, keys: list[bytes], values: list[bytes], level: int, low: bytes, *, greedy: bool) -> list[Draft]:
        """Cut entries into drafts that fit. Evenly, unless `greedy`: then as full as can be, for appending."""
        count = len(keys)
        if not count:
            return []
        overhead = BRANCH_OVERHEAD if level else LEAF_OVERHEAD + (Overflow in set(map(type, values)))
        total = sum(map(len, keys)) + (0 if level else sum(map(len, values))) + overhead * count
        limit, minimum = (self.one_page, _MIN_BRANCH) if level else (self._leaf_limit(total, count), 1)
        if total <= limit or count <= minimum:
            return [Draft(low, keys, values, total)]
        sizes = map(overhead.__add__, map(len, keys))
        ends = list(accumulate(sizes if level else map(add, sizes, map(len, values))))
        drafts: list[Draft] = []
        at = done = 0
        while at < count:
            rest = total - done
            if greedy:
                target = limit
            else:
                most = limit if level or self._packing or rest <= 2 * limit else limit - limit // _ROOM
                target = min(limit, -(-rest // -(-rest // most)) + limit // 64)
            end = max(bisect_right(ends, done + target), at + minimum)
            if count - end < minimum:
                end = count
            first = low if not drafts else keys[at] if level else separator(keys[at - 1], keys[at])
            drafts.append(Draft(first, keys[at:end], values[at:end], ends[end - 1] - done))
            done = ends[end - 1]
            at = end
        return drafts

    def limit_of(self, draft: Draft, level: int) -> int:
        """Bytes of entries that a node like this one may hold."""
        return self.one_page if level else self._leaf_limit(draft.size, len(draft.keys))

    def is_small(self, draft: Draft, level: int) -> bool:
        """Whether the node must be joined with a neighbour. A branch must not be left with a single child."""
        if draft.ref:
            return False
        small = draft.size < _JOIN_BELOW * self.limit_of(draft, level)
        return small or (len(draft.values) < 2 and draft.keys[0] == draft.low)

    def shrunk(self, draft: Draft) -> Draft:
        """A leaf that has become smaller, marked as lean if it is."""
        return draft._replace(lean=True) if draft.size < _LEAN_BELOW * self.limit_of(draft, 0) else draft

    @property
    def lean_below(self) -> int:
        """What makes a leaf of one page lean, in bytes."""
        return int(_LEAN_BELOW * self.one_page)

    def fewer_do(self, drafts: list[Draft]) -> bool:
        """Whether the entries of these leaves fit in one leaf less, with some room to spare."""
        total = sum(draft.size for draft in drafts)
        limit = self._leaf_limit(total, sum(len(draft.keys) for draft in drafts))
        return total <= (len(drafts) - 1) * (limit - limit // _ROOM)

    def _leaf_limit(self, total: int, count: int) -> int:
        """Bytes of entries in a leaf: one page if entries are small, more if a page would hold but a few."""
        pages = -(-(_MIN_LEAF_PACKED if self._packing else _MIN_LEAF) * total // count // self.one_page)
        return self.one_page if pages <= 1 else capacity(min(pages, _MAX_LEAF_PAGES), self._page_size)
