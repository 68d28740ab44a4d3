"""The tree as a reader sees it: one root, which never changes. Look-ups, scans, and the one walk.

There is no cursor to keep valid: a writer makes a new tree (see `merge`), and this one stays what it was for as long as
its pages are pinned. Descents are as deep as the meta page says and no deeper, so a damaged file cannot lead in
circles. A scan goes through a leaf for each branch and checks that keys ascend from leaf to leaf, so it cannot lead
through the same leaf a billion times either.

`walk` is for everything that must see all of a tree, or much of it. It goes from parents to children, in the order of
the keys, reads and verifies each run anew, and checks what a parent says against what it finds: a run is inside the
file, and no page of it belongs to another one; separators ascend, and stay within those above. A walk claims the pages
of each run in a `PageSet`, and a page that is claimed already is damage. So each page is visited at most once, whatever
a forged file says, and a walk takes no longer than reading the file. Damage ends the walk with `CorruptionError`; or it
is noted in the `Visit`, for those that look for damage, and the walk goes on beside it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from operator import lt
from typing import NamedTuple

from .._interrupts import is_from_handler
from ..errors import CorruptionError, error
from .kernels import twin
from .large_value import is_indexed
from .node import Branch, Overflow, decode_branch, decode_leaf, find_value, has_overflow, leaf_keys
from .page import BRANCH, HEADER, LEAF, NO_REF, OVERFLOW, REF
from .pager import MALFORMED, Pager

__all__ = ["Chunk", "Flaw", "PageSet", "Tree", "Visit", "walk"]

Chunk = tuple[list[bytes], list[bytes], bool]
"""Keys, their values, and whether there may be an `Overflow` among these. Without values, the rest is to be ignored."""

_KEPT = 8
"""Leaves at the start of a scan that go into the cache. A short scan may come again; a long one must not empty it."""


@twin
def find(young: Mapping[bytes, bytes | Branch], pager: Pager, ref: bytes, depth: int, key: bytes) -> bytes | None:
    """What the leaf holds for `key` in the tree under `ref`, of `depth` levels, one or more; see `Tree.find`.

    `young` are nodes that are at hand, by ref; the pager is asked for the others.
    """
    while depth > 1:
        depth -= 1
        node = young.get(ref)
        ref = node[1][bisect_right(node[0], key)] if type(node) is Branch else pager.child(ref, key)
    leaf = young.get(ref) or pager.leaf(ref)
    return find_value(leaf, key)  # type: ignore[arg-type]


class Tree:
    """The tree under `root`. `depth` counts its levels: 0 for an empty tree, 1 for a single leaf."""

    __slots__ = ("depth", "pager", "root")

    def __init__(self, pager: Pager, root: bytes = NO_REF, depth: int = 0) -> None:
        self.pager = pager
        self.root = root
        self.depth = depth

    def find(self, key: bytes) -> bytes | None:
        """What the leaf holds for `key`: a value, an `Overflow`, or None."""
        if not self.depth:
            return None
        pager = self.pager
        try:
            return find(pager.nodes.young, pager, self.root, self.depth, key)
        except MALFORMED as exc:
            raise self._malformed(exc) from exc

    def __contains__(self, key: bytes) -> bool:
        return self.find(key) is not None

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        value = self.find(key)
        return self.pager.value(value, key) if type(value) is Overflow else value

    def leaf_ref(self, key: bytes) -> bytes:
        """The ref of the leaf that `key` belongs to. The tree must not be empty."""
        ref = self.root
        for _ in range(self.depth - 1):
            ref = self.pager.child(ref, key)
        return ref

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


_SHIFT = 8
_PART = 1 << _SHIFT
"""Pages that memory is taken for at a time."""

_OWNED = bytes([0, *[1] * 255])
"""Any owner becomes 1: for searching."""


class PageSet:
    """The pages of a file from `first_page` on, each with a small number: its owner, or 0."""

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
        """The pages from `start` up to `stop` that are not claimed: page id of the first one, and how many."""
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


class Flaw(NamedTuple):
    """What is wrong with a run."""

    invariant: int
    """The number, in docs/format.md, of what should be so."""
    message: str


class Visit:
    """A run of a tree, met on a walk."""

    __slots__ = (
        "_entries", "branch", "flaw", "high", "level", "low", "page_count", "page_id", "parent", "piece", "ref", "run",
        "value",
    )  # fmt: skip

    def __init__(
        self, ref: bytes, level: int, low: bytes, high: bytes | None, parent: Visit | None,
        value: Overflow | None = None, piece: int | None = None,
    ) -> None:  # fmt: skip
        self.ref = ref
        self.page_id, self.page_count, _ = REF.unpack(ref)
        self.level = level
        """0 for a large value, its index or a piece, 1 for a leaf, more for a branch."""
        self.low = low
        """No key in it is smaller. Of a large value, the key."""
        self.high = high
        """All keys in it are smaller; None: there is no limit."""
        self.parent = parent
        self.value = value
        """What the leaf holds in place of a large value."""
        self.piece = piece
        """The number of a piece of it."""
        self.run = b""
        """The bytes of a branch or an index, or of a leaf that was read."""
        self.branch: Branch | None = None
        self.flaw: Flaw | None = None
        """What is wrong with it: then nothing that it says is to be believed."""
        self._entries: tuple[list[bytes], list[bytes]] | None = None

    @property
    def kind(self) -> int:
        """The type of the run."""
        return BRANCH if self.level > 1 else LEAF if self.level else OVERFLOW

    @property
    def txid(self) -> int:
        """The commit that wrote a branch or an index, or a leaf that was read."""
        txid: int = HEADER.unpack_from(self.run)[5]
        return txid

    def entries(self) -> tuple[list[bytes], list[bytes]]:
        """The keys and the values of a leaf that was read."""
        if self._entries is None:
            self._entries = decode_leaf(self.run)
        return self._entries

    def lows(self) -> list[bytes]:
        """The low of each child of a branch."""
        assert self.branch is not None
        return [self.low, *self.branch.separators]

    def _decode(self, run: bytes, *, entries: bool) -> Flaw | None:
        """Decode a branch, or a leaf of which the `entries` will be asked for; what is wrong with it."""
        self.run = run
        try:
            if self.level == 1:
                if entries:
                    self.entries()
                return None
            self.branch = decode_branch(run)
        except MALFORMED as exc:
            if is_from_handler(exc):
                raise
            return Flaw(3, f"the content makes no sense: {exc}")
        bounds = self.lows() if self.high is None else [*self.lows(), self.high]
        return None if all(map(lt, bounds, bounds[1:])) else Flaw(2, "the separators are out of order")

    def _children(self, after: bytes | None) -> Iterator[Visit]:
        """What a branch leads to, from the last to the first: only what may hold keys behind `after`."""
        assert self.branch is not None
        separators, refs, _ = self.branch
        lows, highs = self.lows(), [*separators, self.high]
        first = 0 if after is None else bisect_right(separators, after)
        for at in range(len(refs) - 1, first - 1, -1):
            yield Visit(refs[at], self.level - 1, lows[at], highs[at], self)

    @property
    def is_index(self) -> bool:
        """Whether it is the index of a value that is cut into pieces."""
        return self.value is not None and self.piece is None and is_indexed(self.value, self.low)

    def check_value(self, pager: Pager) -> int:
        """Verify a large value, or a part of one; return the commit that wrote it. Raises `CorruptionError`."""
        assert self.value is not None
        if self.run:
            return self.txid
        if self.piece is None:
            return pager.check_value(self.value, self.low)
        return pager.check_piece(self.value, self.low, self.piece, self.ref)

    def _pieces(self, pager: Pager) -> Iterator[Visit]:
        """What an index leads to, from the last to the first."""
        assert self.value is not None
        self.run = pager.index_run(self.value, self.low)
        refs = pager.refs_in(self.run, self.low)
        for number in range(len(refs) - 1, -1, -1):
            yield Visit(refs[number], 0, self.low, None, self, self.value, number)

    def _large_values(self) -> Iterator[Visit]:
        """What a leaf leads to, from the last to the first."""
        for key, value in zip(*map(reversed, self.entries()), strict=True):
            if type(value) is Overflow:
                yield Visit(value.ref, 0, key, None, self, value)


def walk(
    tree: Tree, pages: PageSet, *, down_to: int = 0, after: bytes | None = None,
    tolerated: type[error] | tuple[()] = (), shared: bool = False,
) -> Iterator[Visit]:  # fmt: skip
    """Visit the runs of a tree, claiming their pages in `pages`, in the order of the keys, parents before children.

    `down_to` is the lowest level that is visited: 0 for large values, which are not read but for an index, before its
    pieces; with 1 leaves are visited and not read. Subtrees without keys behind `after` are left out. Raises
    `CorruptionError` for damage, and `error` if reading fails; but what is `tolerated` only becomes the visit's flaw.
    With `shared`, what was claimed before is left out, with all that is below it: another tree has it, too.
    """
    stack = [Visit(tree.root, tree.depth, b"", None, None)] if tree.depth else []
    read, malformed = tree.pager.read, tree.pager.malformed
    while stack:
        visit = stack.pop()
        level = visit.level
        flaw = _claimed(visit, pages)
        if flaw is not None and shared and flaw.invariant == 1 and _is_intact(tree, visit):
            continue  # another tree has it, and everything below
        if flaw is None and (level > 1 or level > down_to):
            try:
                run = read(visit.ref, BRANCH if level > 1 else LEAF)
                flaw = visit._decode(run, entries=tolerated != () or has_overflow(run))
            except tolerated as exc:
                flaw = Flaw(3, exc.message if isinstance(exc, CorruptionError) else str(exc))
        elif flaw is None and visit.is_index:
            try:
                stack += visit._pieces(tree.pager)
            except tolerated as exc:
                flaw = Flaw(3, exc.message if isinstance(exc, CorruptionError) else str(exc))
        if flaw is not None:
            if tolerated == ():
                raise malformed(visit.ref, flaw.message)
            visit.flaw = flaw
        elif level > 1:
            if level > down_to:
                stack += visit._children(after)
        elif level > down_to and has_overflow(visit.run):
            stack += visit._large_values()
        yield visit


def _is_intact(tree: Tree, visit: Visit) -> bool:
    """Whether a run is what its parent says."""
    try:
        if visit.is_index:
            assert visit.value is not None
            tree.pager.index_run(visit.value, visit.low)
        elif visit.value is not None:
            visit.check_value(tree.pager)
        else:
            tree.pager.read(visit.ref, visit.kind)
    except CorruptionError:
        return False
    return True


def _claimed(visit: Visit, pages: PageSet) -> Flaw | None:
    """Claim the pages of a run; what is wrong with them."""
    page_id, page_count = visit.page_id, visit.page_count
    if page_id < pages.first_page or page_count < 1 or page_id + page_count > pages.page_count:
        return Flaw(4, f"a run of {page_count} pages that is not inside the file")
    taken = pages.claim(page_id, page_count)
    return None if taken is None else Flaw(1, f"page {taken} is in use twice")
