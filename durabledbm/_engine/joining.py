"""Joining: nodes that came out too small, or that leave much of their pages empty, are put together with neighbours.

Part of the merge, which hands in the children of one branch: those that were changed as drafts, the others as refs.
"""

from __future__ import annotations

from itertools import groupby

from .draft import Cutter, Draft
from .node import decode_leaf
from .page import read_header
from .pager import MALFORMED, Pager
from .writer import Writer

__all__ = ["Joiner", "Node"]

Node = bytes | Draft
"""A child of a branch: the ref of a node that is written, or a draft."""

_AIRY = 0.75
"""Neighbouring nodes that are both written, and filled less than this, are poured together."""


class Joiner:
    """Decides which nodes are put together, and does it."""

    __slots__ = ("_cutter", "_one_page", "_packing", "_pager", "_writer")

    def __init__(self, pager: Pager, writer: Writer, cutter: Cutter, *, packing: bool) -> None:
        self._pager = pager
        self._writer = writer
        self._cutter = cutter
        self._packing = packing
        self._one_page = cutter.one_page

    def concerns(self, draft: Draft, level: int) -> bool:
        """Whether `joined` would do something about the node, if it can."""
        return draft.lean or self._cutter.is_small(draft, level)

    def is_airy(self, sizes: list[int]) -> bool:
        """Whether nodes of these sizes leave so much of their pages empty that they may be poured together."""
        pages = sum(map(self._pages_of, sizes))
        return sum(sizes) < _AIRY * pages * self._one_page

    def joined(
        self, lows: list[bytes], nodes: list[Node], level: int, *, keep_last: bool
    ) -> tuple[list[bytes], list[Node]]:
        """Join drafts that are too small with a neighbour, and cut the result anew where it is too large for one.

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
            drafts = self._cutter.cut(keys, values, level, some[0].low, greedy=False)
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
                if len(some) == end - first and self._cutter.fewer_do(some):
                    return first, end
        if not self._cutter.is_small(node, level):
            return at, at
        first = at - 1 if at == len(nodes) - 1 or (at and isinstance(nodes[at - 1], Draft)) else at
        return first, first + 2

    def poured(self, lows: list[bytes], nodes: list[Node], level: int) -> tuple[list[bytes], list[Node]]:
        """Pour adjacent drafts together where fewer pages will do, and cut them anew. They are written anyway."""
        new_lows: list[bytes] = []
        new_nodes: list[Node] = []
        at = 0
        for is_draft, group in groupby(nodes, key=lambda node: isinstance(node, Draft) and not node.ref):
            some = list(group)
            drafts = [node for node in some if isinstance(node, Draft)] if is_draft else []
            if len(drafts) > 1 and self._pours(drafts):
                keys = [key for draft in drafts for key in draft.keys]
                values = [value for draft in drafts for value in draft.values]
                cut = self._cutter.cut(keys, values, level, lows[at], greedy=self._packing)
                new_lows += [draft.low for draft in cut]
                new_nodes += cut
            else:
                new_lows += lows[at : at + len(some)]
                new_nodes += some
            at += len(some)
        return new_lows, new_nodes

    def _pours(self, drafts: list[Draft]) -> bool:
        """Whether drafts side by side are poured together: to pack them, or because fewer pages will do."""
        sizes = [draft.size for draft in drafts]
        pages = sum(map(self._pages_of, sizes))
        return self._packing or (self.is_airy(sizes) and self._pages_of(sum(sizes)) < pages)

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
