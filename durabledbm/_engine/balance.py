"""Balance: how entries are split into nodes, and which nodes are put together.

How full nodes are, and how many entries they hold at least, is decided here and nowhere else: for the merge, whose
children of one branch come as drafts if they were changed and as refs if not, and for building in bulk.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, groupby
from typing import NamedTuple

from .node import BRANCH_OVERHEAD, capacity, decode_leaf, leaf_ends, separator
from .page import read_header
from .page_writer import PageWriter
from .pager import MALFORMED, Pager

__all__ = ["MIN_BRANCH", "Balancer", "Draft", "Node", "Splitter", "inline_max"]

MIN_BRANCH = 4
"""A branch has at least so many children, however long the separators: a tree of long keys must not become a list."""

_MIN_LEAF = 8
"""A leaf takes as many pages as so many of its entries need..."""

_MIN_LEAF_PACKED = 16
"""...or so many, if it is being packed..."""

_JOIN_BELOW = 0.4
"""A node filled less than this always merges with a neighbour."""

_UNDERFULL_BELOW = 0.7
"""A leaf that has shrunk to less than this merges with its neighbours if that saves a leaf."""

_ROOM = 12
"""One part in so many is left free where a batch makes many leaves: the next few keys then need no split."""

_MAX_LEAF_PAGES = 4
"""...but no more than this, unless a single entry needs them."""


def inline_max(page_size: int) -> int:
    """The longest value, in bytes, that is kept in a leaf; longer ones get runs of their own."""
    return page_size // 2


class Draft(NamedTuple):
    """A node that is not written yet. A leaf's keys and values; or, in a branch, the children's lows and refs."""

    low: bytes
    """No key in or below the node is smaller. What the parent uses as separator."""
    keys: list[bytes]
    values: list[bytes]
    size: int
    underfull: bool = False
    """A leaf that has shrunk, and might do with fewer pages together with its neighbours."""
    ref: bytes = b""
    """Where it is, if it is written already after all; then its entries are not here any more."""


class Splitter:
    """Cuts entries into nodes that fit in pages of `page_size` bytes. `packing` fills them to the brim."""

    __slots__ = ("_packing", "_page_size", "one_page")

    def __init__(self, page_size: int, *, packing: bool) -> None:
        self._page_size = page_size
        self._packing = packing
        self.one_page = capacity(1, page_size)
        """Bytes of entries that a node of one page holds."""

    def split(self, keys: list[bytes], values: list[bytes], level: int, low: bytes, *, greedy: bool) -> list[Draft]:
        """Cut entries into drafts that fit. Evenly, unless `greedy`: then as full as can be, for appending."""
        count = len(keys)
        if not count:
            return []
        ends = list(accumulate(map(BRANCH_OVERHEAD.__add__, map(len, keys)))) if level else leaf_ends(keys, values)
        total = ends[-1]
        limit, minimum = (self.one_page, MIN_BRANCH) if level else (self.leaf_limit(total, count), 1)
        if total <= limit or count <= minimum:
            return [Draft(low, keys, values, total)]
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
        return self.one_page if level else self.leaf_limit(draft.size, len(draft.keys))

    def is_small(self, draft: Draft, level: int) -> bool:
        """Whether the node must be joined with a neighbour. A branch must not be left with a single child."""
        if draft.ref:
            return False
        small = draft.size < _JOIN_BELOW * self.limit_of(draft, level)
        return small or (len(draft.values) < 2 and draft.keys[0] == draft.low)

    def rated(self, draft: Draft) -> Draft:
        """A leaf that has become smaller, marked as underfull if it is."""
        return draft._replace(underfull=True) if draft.size < _UNDERFULL_BELOW * self.limit_of(draft, 0) else draft

    @property
    def underfull_below(self) -> int:
        """What makes a leaf of one page underfull, in bytes."""
        return int(_UNDERFULL_BELOW * self.one_page)

    def fewer_do(self, drafts: list[Draft]) -> bool:
        """Whether the entries of these leaves fit in one leaf less, with some room to spare."""
        total = sum(draft.size for draft in drafts)
        limit = self.leaf_limit(total, sum(len(draft.keys) for draft in drafts))
        return total <= (len(drafts) - 1) * (limit - limit // _ROOM)

    def leaf_limit(self, total: int, count: int) -> int:
        """Bytes of entries in a leaf: one page if entries are small, more if a page would hold but a few."""
        pages = -(-(_MIN_LEAF_PACKED if self._packing else _MIN_LEAF) * total // count // self.one_page)
        return self.one_page if pages <= 1 else capacity(min(pages, _MAX_LEAF_PAGES), self._page_size)


Node = bytes | Draft
"""A child of a branch: the ref of a node that is written, or a draft."""

_UNDERUSED = 0.75
"""Neighbouring nodes that are both written, and filled less than this, are repacked together."""


class Balancer:
    """Decides which nodes are put together, and does it."""

    __slots__ = ("_one_page", "_packing", "_pager", "_splitter", "_writer")

    def __init__(self, pager: Pager, writer: PageWriter, splitter: Splitter, *, packing: bool) -> None:
        self._pager = pager
        self._writer = writer
        self._splitter = splitter
        self._packing = packing
        self._one_page = splitter.one_page

    def concerns(self, draft: Draft, level: int) -> bool:
        """Whether `joined` would do something about the node, if it can."""
        return draft.underfull or self._splitter.is_small(draft, level)

    def is_underused(self, sizes: list[int]) -> bool:
        """Whether nodes of these sizes leave so much of their pages empty that they may be repacked together."""
        pages = sum(map(self._pages_of, sizes))
        return sum(sizes) < _UNDERUSED * pages * self._one_page

    def joined(
        self, lows: list[bytes], nodes: list[Node], level: int, *, keep_last: bool
    ) -> tuple[list[bytes], list[Node]]:
        """Join drafts that are too small with a neighbour, and split the result where it is too large for one node.

        With `keep_last` the last node may stay small: it is about to grow.
        """
        at = 0
        while at < len(nodes) and len(nodes) > 1:
            last = at == len(nodes) - 1
            first, end = (at, at) if last and keep_last else self._together(lows, nodes, at, level)
            if first == end:
                at += 1
                continue
            some = [self._draft(lows[index], nodes[index], level) for index in range(first, end)]
            for node in nodes[first:end]:
                if isinstance(node, bytes):
                    self._writer.free(node)
            keys, values = [key for draft in some for key in draft.keys], [v for draft in some for v in draft.values]
            drafts = self._splitter.split(keys, values, level, some[0].low, greedy=False)
            lows[first:end] = [draft.low for draft in drafts]
            nodes[first:end] = drafts
            at = first if len(drafts) == 1 else first + len(drafts)
        return lows, nodes

    def _together(self, lows: list[bytes], nodes: list[Node], at: int, level: int) -> tuple[int, int]:
        """From where up to where nodes are to be joined with the one at `at`: nothing, if that may stay as it is."""
        node = nodes[at]
        if isinstance(node, bytes) or not self.concerns(node, level):
            return at, at
        if not level:
            around = {i: self._draft(lows[i], nodes[i], 0) for i in range(max(at - 1, 0), min(at + 2, len(nodes)))}
            for first, end in ((at - 1, at + 1), (at, at + 2), (at - 1, at + 2)):
                some = [around[index] for index in range(first, end) if index in around]
                if len(some) == end - first and self._splitter.fewer_do(some):
                    return first, end
        if not self._splitter.is_small(node, level):
            return at, at
        first = at - 1 if at == len(nodes) - 1 or (at and isinstance(nodes[at - 1], Draft)) else at
        return first, first + 2

    def repacked(self, lows: list[bytes], nodes: list[Node], level: int) -> tuple[list[bytes], list[Node]]:
        """Repack adjacent drafts where fewer pages will do. They are written anyway."""
        new_lows: list[bytes] = []
        new_nodes: list[Node] = []
        at = 0
        for is_draft, group in groupby(nodes, key=lambda node: isinstance(node, Draft) and not node.ref):
            some = list(group)
            drafts = [node for node in some if isinstance(node, Draft)] if is_draft else []
            if len(drafts) > 1 and self._repacks(drafts):
                keys = [key for draft in drafts for key in draft.keys]
                values = [value for draft in drafts for value in draft.values]
                parts = self._splitter.split(keys, values, level, lows[at], greedy=self._packing)
                new_lows += [draft.low for draft in parts]
                new_nodes += parts
            else:
                new_lows += lows[at : at + len(some)]
                new_nodes += some
            at += len(some)
        return new_lows, new_nodes

    def _repacks(self, drafts: list[Draft]) -> bool:
        """Whether drafts side by side are repacked: to pack them, or because fewer pages will do."""
        sizes = [draft.size for draft in drafts]
        pages = sum(map(self._pages_of, sizes))
        return self._packing or (self.is_underused(sizes) and self._pages_of(sum(sizes)) < pages)

    def _pages_of(self, size: int) -> int:
        return -(-size // self._one_page)

    def _draft(self, low: bytes, node: Node, level: int) -> Draft:
        """The node as a draft: decoded, if it was to stay as it is."""
        if isinstance(node, Draft):
            return node
        self._writer.flush()  # it may have been written only now, and not be in the cache
        if level:
            branch = self._pager.branch(node)
            return Draft(low, [low, *branch.separators], list(branch.refs), 0)
        leaf = self._pager.leaf(node, keep=False)
        try:
            return Draft(low, *decode_leaf(leaf), read_header(leaf).payload_size)
        except MALFORMED as exc:
            raise self._pager.malformed(node, exc) from exc
