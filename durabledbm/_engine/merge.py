"""The merge: the one way in which a tree gets a successor.

A sorted batch of changes goes down the tree in one recursive pass and comes back as new nodes. Each node that a change
concerns is decoded, merged with its share of the batch, and split into as many nodes as its entries now need; one that
came out too small is joined with a neighbour first. There is no separate insert, delete, split or rebalance, and it
makes no difference whether the batch is one change or a million.

Until its parent has decided which nodes are joined, a new node is a `Draft`; then it is written, and the parent
keeps its ref. So pages are written bottom up, each once, and no page is ever changed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping
from types import NoneType
from typing import Final, NamedTuple

from .balance import Balancer, Draft, Node, Splitter, inline_max
from .node import BRANCH_OVERHEAD, Branch, Overflow, decode_leaf, edit_leaf, grown_tail
from .page import CRC_SIZE, HEADER, NO_REF, REF, read_header
from .page_writer import PageWriter
from .pager import MALFORMED, Pager
from .tree import PageSet, Tree, walk
from .value_writer import free_value, moved, stored

__all__ = ["MOVE", "TOUCH", "Change", "Merged", "Touch", "merge"]


class Touch:
    """Instead of a value: leave the entry, if there is one, as it is, but write its leaf anew, somewhere else."""

    __slots__ = ("moves_value", "runs")

    def __init__(self, *, moves_value: bool, runs: Collection[int] | None = None) -> None:
        self.moves_value = moves_value
        self.runs = runs
        """With `moves_value`: the first pages of those runs of a large value that are written anew, too; None: all."""


TOUCH: Final = Touch(moves_value=False)
MOVE: Final = Touch(moves_value=True)
"""The same for a large value in runs of its own: they are written anew, too."""

Change = bytes | Touch | None
"""A new value; `TOUCH` or `MOVE`; or None, the tombstone: the key is deleted."""

_EDITED = 3
"""So many changes, or fewer, are made to a leaf in its bytes."""

_STRIDE = 256
"""Entries that are split into leaves and written at a time."""


class Merged(NamedTuple):
    """The successor of a tree."""

    root: bytes
    depth: int
    growth: int
    """How many entries it has more (or, if negative, fewer) than its predecessor."""


_NOTHING_CUT: Mapping[bytes, int] = {}


def merge(
    pager: Pager, writer: PageWriter, root: bytes, depth: int, changes: Mapping[bytes, Change], *,
    packing: bool = False, cut: Mapping[bytes, int] = _NOTHING_CUT,
) -> Merged:  # fmt: skip
    """Merge changes into the tree under `root`.

    Old runs are freed and new ones written through `writer`. `packing` leaves no room for later changes in the nodes
    that are concerned. `cut` are subtrees to be left out as wholes: a key that leads there, for which `changes` says
    None, and the level of the top node. Raises `CorruptionError` if the tree is damaged.
    """
    return _Merge(pager, writer, changes, packing=packing, cut=cut).run(root, depth)


class _Merge:
    """The state of one pass."""

    def __init__(
        self, pager: Pager, writer: PageWriter, changes: Mapping[bytes, Change], *, packing: bool,
        cut: Mapping[bytes, int],
    ) -> None:  # fmt: skip
        self._pager = pager
        self._cut = cut
        self._writer = writer
        self._keys = sorted(changes)
        self._changes = changes
        self._growth = 0
        self._page_size = writer.page_size
        self._splitter = Splitter(self._page_size, packing=packing)
        self._inline_max = inline_max(self._page_size)
        self._balancer = Balancer(pager, writer, self._splitter, packing=packing)
        self._packing = packing
        page = self._page_size - HEADER.size - CRC_SIZE
        self._edit_limits = (self._splitter.underfull_below, page, self._inline_max)

    def run(self, root: bytes, depth: int) -> Merged:
        count = len(self._keys)
        if not count:
            return Merged(root, depth, 0)
        level = max(depth - 1, 0)
        result: list[Draft] | bytes
        if depth > 1:
            result = self._node(root, level, b"", 0, count, rightmost=True)
        elif depth:
            result = self._leaf(root, b"", 0, count, rightmost=True)
        else:
            ascending = self._keys == list(self._changes)  # then more of the kind may follow: what is full stays full
            result = self._apply([], [], b"", 0, count, greedy=ascending)
        if isinstance(result, bytes):
            return Merged(result, depth, self._growth)
        drafts = result
        while len(drafts) > 1:
            refs = [self._write(draft, level) for draft in drafts]
            level += 1
            drafts = self._splitter.split([draft.low for draft in drafts], refs, level, b"", greedy=False)
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
        branch = self._pager.branch(ref)
        separators, refs = branch.separators, branch.refs
        keys = self._keys
        results: list[tuple[int, list[Draft] | bytes]] = []
        simple = True
        child = 0
        while first < end:
            child = bisect_right(separators, keys[first], child)
            beyond = child == len(separators)
            stop = end if beyond else bisect_left(keys, separators[child], first + 1, end)
            child_low = separators[child - 1] if child else low
            if self._cut and self._cut.get(keys[first]) == level - 1:
                result: list[Draft] | bytes = self._left_out(refs[child], level)
            elif level == 1:
                result = self._leaf(refs[child], child_low, first, stop, rightmost=rightmost and beyond)
            else:
                result = self._node(refs[child], level - 1, child_low, first, stop, rightmost=rightmost and beyond)
            results.append((child, result))
            simple = simple and type(result) is bytes
            first = stop
        self._writer.free(ref)
        if self._packing or not (simple or self._fits(branch, level, results)):
            return self._branch(branch, level, low, results, rightmost=rightmost)
        separators, refs, tail = separators.copy(), refs.copy(), branch.tail
        for child, result in reversed(results):
            if isinstance(result, bytes):
                refs[child] = result
                continue
            for draft in reversed(result[1:]):
                tail = grown_tail(tail, len(refs), child, draft.low)
                separators.insert(child, draft.low)
                refs.insert(child + 1, self._write(draft, level - 1))
            refs[child] = self._write(result[0], level - 1)
        return self._writer.branch(separators, refs, tail)

    def _fits(self, branch: Branch, level: int, results: list[tuple[int, list[Draft] | bytes]]) -> bool:
        """Whether `results` can just replace children: none is to be joined or repacked, and there is room."""
        size = len(branch.refs) * REF.size + len(branch.tail)
        before = -2
        for child, result in results:
            if isinstance(result, list):
                if not result or child == before + 1:
                    return False
                if any(self._balancer.concerns(draft, level - 1) for draft in result):
                    return False
                before = child
                size += sum(BRANCH_OVERHEAD + len(draft.low) for draft in result[1:])
        return size <= self._splitter.one_page

    def _branch(
        self, branch: Branch, level: int, low: bytes, results: list[tuple[int, list[Draft] | bytes]], *, rightmost: bool
    ) -> list[Draft] | bytes:
        """The branch with `results` in place of some of its children; see `_node`."""
        old_lows = [low, *branch.separators]
        lows: list[bytes] = []
        nodes: list[Node] = []
        done = 0
        small = False
        for child, result in results:
            lows += old_lows[done:child]
            nodes += branch.refs[done:child]
            if isinstance(result, bytes):
                lows.append(old_lows[child])
                nodes.append(result)
            else:
                for draft in result:
                    lows.append(draft.low)
                    nodes.append(draft.ref or draft)
                    small = small or self._balancer.concerns(draft, level - 1)
            done = child + 1
        lows += old_lows[done:]
        nodes += branch.refs[done:]
        if self._packing or (level == 1 and len(results) > 1):
            lows, nodes = self._balancer.repacked(lows, nodes, level - 1)
        if small:
            lows, nodes = self._balancer.joined(lows, nodes, level - 1, keep_last=rightmost and self._growth > 0)
        written = [node if isinstance(node, bytes) else self._write(node, level - 1) for node in nodes]
        drafts = self._splitter.split(lows, written, level, low, greedy=False)
        if len(drafts) == 1 and not self._packing and not self._splitter.is_small(drafts[0], level):
            return self._write(drafts[0], level)
        return drafts

    def _left_out(self, ref: bytes, height: int) -> list[Draft]:
        """Free all runs of a subtree of so many levels: nothing takes its place."""
        pages = PageSet(0, 1 << 62)
        for visit in walk(Tree(self._pager, ref, height), pages):
            self._writer.free(visit.ref)
            if visit.level == 1:
                self._growth -= read_header(visit.run).entry_count
        return []

    def _leaf(self, ref: bytes, low: bytes, first: int, end: int, *, rightmost: bool) -> list[Draft] | bytes:
        """Merge the changes into the leaf at `ref`: in its bytes, if they are few, else entry by entry."""
        leaf = self._pager.leaf(ref, keep=False)
        self._writer.free(ref)
        try:
            if end - first <= _EDITED and not self._packing:
                edited = edit_leaf(leaf, self._changes, self._keys[first:end], self._edit_limits)
                if edited is not None:
                    count, growth, payload = edited
                    self._growth += growth
                    return self._writer.leaf_payload(0, count, *payload)
            keys, values = decode_leaf(leaf)
        except MALFORMED as exc:
            raise self._pager.malformed(ref, exc) from exc
        greedy = rightmost and bool(keys) and self._keys[first] > keys[-1]
        drafts = self._apply(keys, values, low, first, end, greedy=greedy)
        if len(drafts) == 1 and not self._packing:
            if drafts[0].size < read_header(leaf).payload_size - 2:  # where an offset more stands
                drafts[0] = self._splitter.rated(drafts[0])
            if not drafts[0].underfull and not self._balancer.is_underused([drafts[0].size]):
                return self._write(drafts[0], 0)
        return drafts

    def _write(self, draft: Draft, level: int) -> bytes:
        if draft.ref:
            return draft.ref
        if level:
            return self._writer.branch(draft.keys[1:], draft.values)
        return self._writer.leaf(draft.keys, draft.values)

    # -- leaves ------------------------------------------------------------------------------------

    def _apply(
        self, keys: list[bytes], values: list[bytes], low: bytes, first: int, end: int, *, greedy: bool
    ) -> list[Draft]:
        """Apply the changes from `first` to `end` to the entries of one leaf."""
        if end - first <= _STRIDE:
            keys, values = self._applied(keys, values, first, end)
            if not self._packing and all(type(self._changes[key]) is Touch for key in self._keys[first:end]):
                return [Draft(low, keys, values, self._splitter.one_page)] if keys else []  # moved, however full
            return self._splitter.split(keys, values, 0, low, greedy=greedy)
        # Going over the same entries several times is cheap while they are in the processor's cache. For the same
        # reason leaves are written at once, but for the last, which may be small.
        drafts: list[Draft] = []
        last = Draft(low, [], [], 0)
        done = 0
        while first < end:
            stop = min(first + _STRIDE, end)
            upto = len(keys) if stop == end else bisect_right(keys, self._keys[stop - 1], done)
            more_keys, more_values = self._applied(keys[done:upto], values[done:upto], first, stop)
            parts = self._splitter.split(last.keys + more_keys, last.values + more_values, 0, last.low, greedy=greedy)
            if parts:
                *full, last = parts
                drafts += [Draft(draft.low, [], [], draft.size, ref=self._write(draft, 0)) for draft in full]
            first, done = stop, upto
        return [*drafts, last] if last.keys else drafts

    def _applied(
        self, keys: list[bytes], values: list[bytes], first: int, end: int
    ) -> tuple[list[bytes], list[bytes]]:
        """The entries with the changes from `first` to `end` made to them."""
        before = len(keys)
        if end - first <= before // 4:
            self._apply_few(keys, values, first, end)
        else:
            keys, values = self._apply_many(keys, values, first, end)
        self._growth += len(keys) - before
        return keys, values

    def _apply_few(self, keys: list[bytes], values: list[bytes], first: int, end: int) -> None:
        for index in range(first, end):
            key = self._keys[index]
            change = self._changes[key]
            at = bisect_left(keys, key)
            if at < len(keys) and keys[at] == key:
                if type(change) is Touch:
                    if change.moves_value:
                        values[at] = self._moved(key, values[at], change)
                    continue
                self._drop(key, values[at])
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
        new_keys = self._keys[first:end]
        new_values = list(map(self._changes.__getitem__, new_keys))
        kinds = set(map(type, new_values))
        if not keys and kinds == {bytes}:
            if max(map(len, new_values)) <= self._inline_max:  # type: ignore[arg-type]
                return new_keys, new_values  # type: ignore[return-value]
            return new_keys, list(map(self._stored, new_keys, new_values))  # type: ignore[arg-type]
        changes = dict(zip(new_keys, new_values, strict=True))
        entries = dict(zip(keys, values, strict=True))
        if Touch in kinds:
            for key in [key for key, change in changes.items() if type(change) is Touch]:
                change = changes.pop(key)
                if change.moves_value and key in entries:  # type: ignore[union-attr]
                    entries[key] = self._moved(key, entries[key], change)  # type: ignore[arg-type]
        if Overflow in set(map(type, values)):
            for key in changes.keys() & entries.keys():
                self._drop(key, entries[key])
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
            return stored(self._writer, key, value)
        return value

    def _drop(self, key: bytes, value: bytes) -> None:
        if type(value) is Overflow:
            free_value(self._writer, self._pager, key, value)

    def _moved(self, key: bytes, value: bytes, touch: Touch) -> bytes:
        """A large value written anew: its owner was touched to get it out of the way."""
        return moved(self._writer, self._pager, key, value, touch.runs) if type(value) is Overflow else value
