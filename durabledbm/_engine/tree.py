"""The tree as a reader sees it: one root, which never changes.

Look-ups and scans in both directions. There is no cursor to keep valid: whoever writes makes a new tree (see `merge`),
and this one stays what it was for as long as its pages are pinned. Descents are as deep as the meta page says and no
deeper, so a damaged file cannot lead in circles; a scan goes through a leaf for each branch and checks that keys ascend
from leaf to leaf, so it cannot lead through the same leaf a billion times either.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain

from ..errors import CorruptionError
from .node import Overflow, decode_leaf, find_value, has_overflow, leaf_keys
from .page import NO_REF
from .pager import MALFORMED, Pager

__all__ = ["Chunk", "Tree"]

Chunk = tuple[list[bytes], list[bytes], bool]
"""Keys, their values, and whether there may be an `Overflow` among these. Without values, the rest is to be ignored."""

_KEPT = 8
"""Leaves at the start of a scan that go into the cache. A short scan may come again; a long one must not empty it."""


class Tree:
    """The tree under `root`. `depth` counts its levels: 0 for an empty tree, 1 for a single leaf."""

    __slots__ = ("depth", "pager", "root")

    def __init__(self, pager: Pager, root: bytes = NO_REF, depth: int = 0) -> None:
        self.pager = pager
        self.root = root
        self.depth = depth

    def find(self, key: bytes) -> bytes | None:
        """What the leaf holds for `key`: a value, an `Overflow`, or None."""
        depth = self.depth
        if not depth:
            return None
        ref = self.root
        pager = self.pager
        young = pager.young
        try:
            while depth > 1:
                depth -= 1
                node = young.get(ref)
                ref = node[1][bisect_right(node[0], key)] if node else pager.child(ref, key)  # type: ignore[index, arg-type]
            leaf = young.get(ref) or pager.leaf(ref)
            return find_value(leaf, key)  # type: ignore[arg-type]
        except MALFORMED as exc:
            raise self._malformed(exc) from exc

    def __contains__(self, key: bytes) -> bool:
        return self.find(key) is not None

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        value = self.find(key)
        return self.pager.value(value, key) if type(value) is Overflow else value

    def leaf_refs(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """The refs of the leaves that may hold keys from `start` up to `stop`."""
        return chain.from_iterable(self._siblings(start, stop, reverse, self.depth, self.root))

    def chunks(
        self, start: bytes | None, stop: bytes | None, *, reverse: bool, with_values: bool
    ) -> Iterator[Chunk]:
        """The entries with `start <= key < stop`, a leaf at a time; no list is empty."""
        if start is not None and stop is not None and start >= stop:
            return
        last: bytes | None = None
        values: list[bytes] = []
        large = False
        try:
            for leaf in self._leaves(start, stop, reverse):
                if with_values:
                    keys, values = decode_leaf(leaf)
                    large = has_overflow(leaf)
                else:
                    keys = leaf_keys(leaf)
                if not keys:
                    raise self._malformed("an empty leaf")
                if keys[0] > keys[-1] or (last is not None and (keys[-1] >= last if reverse else keys[0] <= last)):
                    raise self._malformed("the keys are out of order")
                last = keys[0] if reverse else keys[-1]
                first = 0 if start is None or keys[0] >= start else bisect_left(keys, start)
                end = len(keys) if stop is None or keys[-1] < stop else bisect_left(keys, stop)
                if first or end < len(keys):
                    keys, values = keys[first:end], values[first:end]
                if reverse:
                    keys.reverse()
                    values.reverse()
                if keys:
                    yield keys, values, large
        except MALFORMED as exc:
            raise self._malformed(exc) from exc

    def _leaves(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        pager, left = self.pager, _KEPT
        for refs in self._siblings(start, stop, reverse, self.depth, self.root):
            if left:
                for ref in refs[:left]:
                    yield pager.leaf(ref)
            if len(refs) > left:
                yield from pager.leaves(refs[left:])
            left = max(left - len(refs), 0)

    def _siblings(
        self, start: bytes | None, stop: bytes | None, reverse: bool, level: int, ref: bytes
    ) -> Iterable[list[bytes]]:
        """The refs of the leaves in the range, those under one branch at a time."""
        if level < 2:
            return ([ref],) if level else ()
        separators, refs, _ = self.pager.branch(ref)
        first = 0 if start is None else bisect_right(separators, start)
        end = len(refs) if stop is None else bisect_left(separators, stop) + 1
        children = refs[first:end]
        if not children:
            raise self.pager.malformed(ref, "the separators are out of order")
        if reverse:
            children.reverse()
        if level == 2:
            return (children,)
        return chain.from_iterable(map(partial(self._siblings, start, stop, reverse, level - 1), children))

    def _malformed(self, what: object) -> CorruptionError:
        return self.pager.malformed(self.root, what)
