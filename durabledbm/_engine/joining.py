"""Joining: nodes that came out too small, or that leave much of their pages empty, are put together with neighbours.

Part of the merge, which hands in the children of one branch: those that were changed as drafts, the others as refs.
"""

from __future__ import annotations

from itertools import groupby

from .draft import Cutter, Draft
from .node import decode_leaf
from .pager import MALFORMED, Pager
from .writer import Writer

__all__ = ["Joiner", "Node"]

Node = bytes | Draft
"""A child of a branch: the ref of a node that is written, or a draft."""

_AIRY = 0.75
"""Neighbouring nodes that are both written, and filled less than this, are poured together."""

_JOIN_BELOW = 0.4
"""A node filled less than this is joined with a neighbour."""


class Joiner:
    """Decides which nodes are put together, and does it."""

    __slots__ = ("_cutter", "_one_page", "_packing", "_pager", "_threshold", "_writer")

    def __init__(self, pager: Pager, writer: Writer, cutter: Cutter, *, packing: bool) -> None:
        self._pager = pager
        self._writer = writer
        self._cutter = cutter
        self._packing = packing
        self._one_page = cutter.one_page
        self._threshold = _JOIN_BELOW * cutter.one_page

    def is_small(self, draft: Draft) -> bool:
        """Whether the node should be joined with a neighbour. A branch must not be left with a single child."""
        if draft.ref:
            return False
        return draft.size < self._threshold or (len(draft.values) < 2 and draft.keys[0] == draft.low)

    def is_airy(self, sizes: list[int]) -> bool:
        """Whether nodes of these sizes leave so much of their pages empty that they may be poured together."""
        pages = sum(-(-size // self._one_page) for size in sizes)
        return sum(sizes) < _AIRY * pages * self._one_page

    def joined(
        self, lows: list[bytes], nodes: list[Node], level: int, *, keep_last: bool
    ) -> tuple[list[bytes], list[Node]]:
        """Join drafts that are too small with a neighbour, and cut the result anew where it is too large for one.

        With `keep_last` the last node may stay small: it is about to grow.
        """
        at = 0
        while at < len(nodes) and len(nodes) > 1:
            node = nodes[at]
            last = at == len(nodes) - 1
            if isinstance(node, bytes) or not self.is_small(node) or (last and keep_last):
                at += 1
                continue
            a = at - 1 if last or (at and isinstance(nodes[at - 1], Draft)) else at
            left, right = self._draft(lows[a], nodes[a], level), self._draft(lows[a + 1], nodes[a + 1], level)
            keys, values = left.keys + right.keys, left.values + right.values
            drafts = self._cutter.cut(keys, values, level, left.low, greedy=False)
            lows[a : a + 2] = [draft.low for draft in drafts]
            nodes[a : a + 2] = drafts
            at = a if len(drafts) == 1 else a + len(drafts)
        return lows, nodes

    def poured(self, lows: list[bytes], nodes: list[Node], level: int) -> tuple[list[bytes], list[Node]]:
        """Pour adjacent drafts together where fewer pages will do, and cut them anew. They are written anyway."""
        new_lows: list[bytes] = []
        new_nodes: list[Node] = []
        at = 0
        for is_draft, group in groupby(nodes, key=lambda node: isinstance(node, Draft) and not node.ref):
            some = list(group)
            drafts = [node for node in some if isinstance(node, Draft)] if is_draft else []
            if len(drafts) > 1 and self._fewer_do(drafts):
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

    def _fewer_do(self, drafts: list[Draft]) -> bool:
        sizes = [draft.size for draft in drafts]
        pages = sum(-(-size // self._one_page) for size in sizes)
        return self._packing or (self.is_airy(sizes) and -(-sum(sizes) // self._one_page) < pages)

    def _draft(self, low: bytes, node: Node, level: int) -> Draft:
        """The node as a draft: decoded, if it was to stay as it is."""
        if isinstance(node, Draft):
            return node
        self._writer.flush()  # it may have been written only now, and not be in the cache
        self._writer.free(node)
        if level:
            branch = self._pager.branch(node)
            return Draft(low, [low, *branch.separators], list(branch.refs), 0)
        leaf = self._pager.leaf(node, keep=False)
        try:
            return Draft(low, *decode_leaf(leaf), 0)
        except MALFORMED as exc:
            raise self._pager.malformed(node, exc) from exc
