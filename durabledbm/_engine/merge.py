"""The merge: the one way in which a tree gets a successor.

A sorted batch of changes goes down the tree in one recursive pass and comes back as new nodes. Each node that a change
concerns is decoded, merged with its share of the batch, and cut into as many nodes as its entries now need; one that
came out too small is joined with a neighbour first. There is no separate insert, delete, split or rebalance, and it
makes no difference whether the batch is one change or a million.

Until its parent has settled who is joined with whom, a new node is a `Draft`; then it is written, and the parent
keeps its ref. So pages are written bottom up, each once, and no page is ever changed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import groupby
from types import NoneType
from typing import Final, NamedTuple

from .draft import Cutter, Draft
from .node import Branch, Overflow, decode_leaf, edit_leaf
from .page import CRC_SIZE, HEADER, NO_REF, ref_parts
from .pager import MALFORMED, Pager
from .writer import Writer

__all__ = ["MOVE", "TOUCH", "Change", "Merged", "Touch", "inline_max", "merge"]


class Touch:
    """Instead of a value: leave the entry, if there is one, as it is, but write its leaf anew, somewhere else."""

    __slots__ = ("moves_value",)

    def __init__(self, *, moves_value: bool) -> None:
        self.moves_value = moves_value


TOUCH: Final = Touch(moves_value=False)
MOVE: Final = Touch(moves_value=True)
"""The same for a large value in a run of its own: the run is written anew, too."""

Change = bytes | Touch | None
"""A new value; `TOUCH` or `MOVE`; or None, the tombstone: the key is deleted."""

_EDITED = 3
"""So many changes, or fewer, are made to a leaf in its bytes."""

_AIRY = 0.75
"""Neighbouring nodes that are both written, and filled less than this, are poured together."""

_JOIN_BELOW = 0.4
"""A node filled less than this is joined with a neighbour."""


class Merged(NamedTuple):
    """The successor of a tree."""

    root: bytes
    depth: int
    growth: int
    """How many entries it has more (or, if negative, fewer) than its predecessor."""


def inline_max(page_size: int) -> int:
    """The longest value, in bytes, that is kept in a leaf; longer ones get runs of their own."""
    return page_size // 2


def merge(
    pager: Pager, writer: Writer, root: bytes, depth: int, keys: Sequence[bytes], values: Sequence[Change],
    *, packing: bool = False,
) -> Merged:  # fmt: skip
    """Merge changes, `values[i]` for `keys[i]`, keys strictly ascending, into the tree under `root`.

    Old runs are freed and new ones written through `writer`. `packing` leaves no room for later changes in the nodes
    that are concerned. Raises `CorruptionError` if the tree is damaged.
    """
    return _Merge(pager, writer, keys, values, packing=packing).run(root, depth)


class _Merge:
    """The state of one pass."""

    def __init__(
        self, pager: Pager, writer: Writer, keys: Sequence[bytes], values: Sequence[Change], *, packing: bool
    ) -> None:
        self._pager = pager
        self._writer = writer
        self._keys = keys
        self._values = values
        self._growth = 0
        self._page_size = writer.page_size
        self._cutter = Cutter(self._page_size, packing=packing)
        self._inline_max = inline_max(self._page_size)
        self._threshold = _JOIN_BELOW * self._cutter.one_page
        self._packing = packing
        page = self._page_size - HEADER.size - CRC_SIZE
        self._edit_limits = (page // 2, page, self._inline_max)

    def run(self, root: bytes, depth: int) -> Merged:
        count = len(self._keys)
        if not count:
            return Merged(root, depth, 0)
        if depth:
            result = self._node(root, depth - 1, b"", 0, count, rightmost=True)
            if type(result) is bytes:
                return Merged(result, depth, self._growth)
            drafts: list[Draft] = result  # type: ignore[assignment]
        else:
            drafts = self._apply([], [], b"", 0, count, greedy=True)
        level = max(depth - 1, 0)
        while len(drafts) > 1:
            refs = [self._write(draft, level) for draft in drafts]
            level += 1
            drafts = self._cutter.cut([draft.low for draft in drafts], refs, level, b"", greedy=False)
        if not drafts:
            return Merged(NO_REF, 0, self._growth)
        if level and len(drafts[0].values) == 1:
            ref = drafts[0].values[0]
            level -= 1
        else:
            ref = self._write(drafts[0], level)
        if level:
            self._writer.flush()  # the child may have been written only now, and not be in the cache
        while level and len(branch := self._pager.branch(ref).refs) == 1:
            self._writer.free(ref)
            ref = branch[0]
            level -= 1
        return Merged(ref, level + 1, self._growth)

    # -- one node ----------------------------------------------------------------------------------

    def _node(
        self, ref: bytes, level: int, low: bytes, first: int, end: int, *, rightmost: bool = False
    ) -> list[Draft] | bytes:
        """Merge the changes from `first` to `end` into the node at `ref`, return what takes its place.

        That is the ref of its successor, if there is just one and it need not be joined with anything; else drafts.
        """
        if level == 0:
            return self._leaf(ref, low, first, end, rightmost=rightmost)
        branch = self._pager.branch(ref)
        separators, refs = branch.separators, branch.refs
        results: list[tuple[int, list[Draft] | bytes]] = []
        simple = True
        child = 0
        while first < end:
            child = bisect_right(separators, self._keys[first], child)
            stop = bisect_left(self._keys, separators[child], first, end) if child < len(separators) else end
            last = rightmost and child == len(separators)
            child_low = separators[child - 1] if child else low
            result = self._node(refs[child], level - 1, child_low, first, stop, rightmost=last)
            results.append((child, result))
            simple = simple and type(result) is bytes
            first = stop
        self._writer.free(ref)
        if simple:
            refs = refs.copy()
            for child, result in results:
                refs[child] = result  # type: ignore[assignment]
            return self._writer.branch(separators, refs, branch.tail)
        return self._branch(branch, level, low, results, rightmost=rightmost)

    def _branch(
        self, branch: Branch, level: int, low: bytes, results: list[tuple[int, list[Draft] | bytes]], *, rightmost: bool
    ) -> list[Draft]:
        """The branch with `results` in place of some of its children, as drafts."""
        old_lows = [low, *branch.separators]
        lows: list[bytes] = []
        nodes: list[bytes | Draft] = []
        done = 0
        small = False
        for child, result in results:
            lows += old_lows[done:child]
            nodes += branch.refs[done:child]
            if type(result) is bytes:
                lows.append(old_lows[child])
                nodes.append(result)
            else:
                for draft in result:
                    lows.append(draft.low)  # type: ignore[union-attr]
                    nodes.append(draft)  # type: ignore[arg-type]
                    small = small or self._is_small(draft)  # type: ignore[arg-type]
            done = child + 1
        lows += old_lows[done:]
        nodes += branch.refs[done:]
        if self._packing or (level == 1 and len(results) > 1):
            lows, nodes = self._poured(lows, nodes, level - 1)
        if small:
            lows, nodes = self._joined(lows, nodes, level - 1, rightmost=rightmost)
        written = [node if type(node) is bytes else self._write(node, level - 1) for node in nodes]  # type: ignore[arg-type]
        return self._cutter.cut(lows, written, level, low, greedy=False)

    def _leaf(self, ref: bytes, low: bytes, first: int, end: int, *, rightmost: bool) -> list[Draft] | bytes:
        """Merge the changes into the leaf at `ref`: in its bytes, if they are few, else entry by entry."""
        leaf = self._pager.leaf(ref, keep=False)
        self._writer.free(ref)
        try:
            if end - first <= _EDITED and not self._packing:
                edited = edit_leaf(leaf, self._keys, self._values, first, end, self._edit_limits)
                if edited is not None:
                    count, payload, growth = edited
                    self._growth += growth
                    return self._writer.leaf_payload(0, count, payload)
            keys, values = decode_leaf(leaf)
        except MALFORMED as exc:
            raise self._pager.malformed(ref, exc) from exc
        greedy = rightmost and bool(keys) and self._keys[first] > keys[-1]
        return self._apply(keys, values, low, first, end, greedy=greedy)

    def _decode(self, ref: bytes) -> tuple[list[bytes], list[bytes]]:
        leaf = self._pager.leaf(ref, keep=False)
        try:
            return decode_leaf(leaf)
        except MALFORMED as exc:
            raise self._pager.malformed(ref, exc) from exc

    def _write(self, draft: Draft, level: int) -> bytes:
        if level:
            return self._writer.branch(draft.keys[1:], draft.values)
        return self._writer.leaf(draft.keys, draft.values)

    # -- leaves ------------------------------------------------------------------------------------

    def _apply(
        self, keys: list[bytes], values: list[bytes], low: bytes, first: int, end: int, *, greedy: bool
    ) -> list[Draft]:
        """Apply the changes from `first` to `end` to the entries of one leaf."""
        before = len(keys)
        if end - first <= len(keys) // 4:
            self._apply_few(keys, values, first, end)
        else:
            keys, values = self._apply_many(keys, values, first, end)
        self._growth += len(keys) - before
        if not self._packing and set(map(type, self._values[first:end])) == {Touch}:
            return [Draft(low, keys, values, self._cutter.one_page)] if keys else []  # moved as it is, however full
        return self._cutter.cut(keys, values, 0, low, greedy=greedy)

    def _apply_few(self, keys: list[bytes], values: list[bytes], first: int, end: int) -> None:
        for index in range(first, end):
            key, change = self._keys[index], self._values[index]
            at = bisect_left(keys, key)
            if at < len(keys) and keys[at] == key:
                if type(change) is Touch:
                    if change.moves_value:
                        self._move(key, values, at)
                    continue
                self._drop(values[at])
                if change is None:
                    del keys[at], values[at]
                else:
                    values[at] = self._stored(key, change)  # type: ignore[arg-type]
            elif type(change) is bytes or type(change) is Overflow:
                keys.insert(at, key)
                values.insert(at, self._stored(key, change))

    def _apply_many(
        self, keys: list[bytes], values: list[bytes], first: int, end: int
    ) -> tuple[list[bytes], list[bytes]]:
        changes = dict(zip(self._keys[first:end], self._values[first:end], strict=True))
        entries = dict(zip(keys, values, strict=True))
        kinds = set(map(type, changes.values()))
        if Touch in kinds:
            for key in [key for key, change in changes.items() if type(change) is Touch]:
                if changes.pop(key) is MOVE and key in entries:
                    self._move_in(key, entries)
        if Overflow in set(map(type, values)):
            for key in changes.keys() & entries.keys():
                self._drop(entries[key])
        if not entries and NoneType not in kinds:
            merged: dict[bytes, bytes] = changes  # type: ignore[assignment]
        else:
            merged = entries
            merged.update(changes)  # type: ignore[arg-type]
            if NoneType in kinds:
                for key in [key for key, change in changes.items() if change is None]:
                    del merged[key]
        if max(map(len, merged.values()), default=0) > self._inline_max:
            for key, value in merged.items():
                merged[key] = self._stored(key, value)
        keys = sorted(merged)
        return keys, list(map(merged.__getitem__, keys))

    def _stored(self, key: bytes, value: bytes) -> bytes:
        """What a leaf holds for `value`."""
        if len(value) > self._inline_max:
            return self._writer.value(key, value)
        return value

    def _drop(self, value: bytes) -> None:
        if type(value) is Overflow:
            self._writer.free(value.ref)

    def _move(self, key: bytes, values: list[bytes], at: int) -> None:
        """Write a large value anew: its owner was touched to get it out of the way."""
        value = values[at]
        if type(value) is Overflow:
            values[at] = self._writer.value(key, self._pager.value(value))
            self._writer.free(value.ref)

    def _move_in(self, key: bytes, entries: dict[bytes, bytes]) -> None:
        holder = [entries[key]]
        self._move(key, holder, 0)
        entries[key] = holder[0]

    # -- cutting and joining -----------------------------------------------------------------------

    def _joined(
        self, lows: list[bytes], nodes: list[bytes | Draft], level: int, *, rightmost: bool
    ) -> tuple[list[bytes], list[bytes | Draft]]:
        """Join drafts that are too small with a neighbour, and cut the result anew where it is too large for one."""
        at = 0
        while at < len(nodes) and len(nodes) > 1:
            node = nodes[at]
            last = at == len(nodes) - 1
            if type(node) is bytes or not self._is_small(node) or (last and rightmost and self._growth > 0):  # type: ignore[arg-type]
                at += 1
                continue
            a = at - 1 if last or (at and type(nodes[at - 1]) is Draft) else at
            left, right = self._draft(lows[a], nodes[a], level), self._draft(lows[a + 1], nodes[a + 1], level)
            keys, values = left.keys + right.keys, left.values + right.values
            drafts = self._cutter.cut(keys, values, level, left.low, greedy=False)
            lows[a : a + 2] = [draft.low for draft in drafts]
            nodes[a : a + 2] = drafts
            at = a if len(drafts) == 1 else a + len(drafts)
        return lows, nodes

    def _is_small(self, draft: Draft) -> bool:
        """Whether the node should be joined with a neighbour. A branch must not be left with a single child."""
        return draft.size < self._threshold or (len(draft.values) < 2 and draft.keys[0] == draft.low)

    def _poured(
        self, lows: list[bytes], nodes: list[bytes | Draft], level: int
    ) -> tuple[list[bytes], list[bytes | Draft]]:
        """Pour adjacent drafts together, if they are not full, and cut them anew. They are written anyway."""
        new_lows: list[bytes] = []
        new_nodes: list[bytes | Draft] = []
        for is_draft, group in groupby(zip(lows, nodes, strict=True), key=lambda pair: type(pair[1]) is Draft):
            pairs = list(group)
            if is_draft and len(pairs) > 1 and self._airy(pairs):
                keys = [key for _, node in pairs for key in node.keys]  # type: ignore[union-attr]
                values = [value for _, node in pairs for value in node.values]  # type: ignore[union-attr]
                drafts = self._cutter.cut(keys, values, level, pairs[0][0], greedy=self._packing)
                new_lows += [draft.low for draft in drafts]
                new_nodes += drafts
            else:
                new_lows += [low for low, _ in pairs]
                new_nodes += [node for _, node in pairs]
        return new_lows, new_nodes

    def _airy(self, pairs: list[tuple[bytes, bytes | Draft]]) -> bool:
        """Whether the drafts leave so much of their pages empty that fewer pages would do."""
        sizes = [node.size for _, node in pairs if type(node) is Draft]
        pages = sum(-(-size // self._cutter.one_page) for size in sizes)
        return self._packing or sum(sizes) < _AIRY * pages * self._cutter.one_page

    def _draft(self, low: bytes, node: bytes | Draft, level: int) -> Draft:
        """The node as a draft: decoded, if it was to stay as it is."""
        if type(node) is Draft:
            return node
        ref: bytes = node  # type: ignore[assignment]
        self._writer.flush()  # it may have been written only now, and not be in the cache
        self._writer.free(ref)
        if level:
            branch = self._pager.branch(ref)
            return Draft(low, [low, *branch.separators], list(branch.refs), ref_parts(ref)[1])
        keys, values = self._decode(ref)
        return Draft(low, keys, values, ref_parts(ref)[1])

