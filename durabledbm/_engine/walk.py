"""The one walk through a tree, for whatever must see all of it, or much of it.

It goes from parents to children, in the order of the keys, reads and verifies each run anew, and holds what a parent
says against what it finds: a run is inside the file, and no page of it belongs to another one; separators ascend, and
stay within those above. So each page is visited once at most, whatever a file that was made to hurt says, and a walk
takes no longer than reading the file.

What is wrong with a run ends the walk with `CorruptionError`; or it is noted in the `Visit`, for those who look for
damage, and the walk goes on beside it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from operator import lt
from typing import NamedTuple

from ..errors import CorruptionError, error
from .node import Branch, Overflow, decode_branch, decode_leaf, has_overflow
from .page import BRANCH, HEADER, LEAF, OVERFLOW, REF
from .pager import MALFORMED
from .pageset import PageSet
from .tree import Tree

__all__ = ["Flaw", "Visit", "walk"]


class Flaw(NamedTuple):
    """What is wrong with a run."""

    invariant: int
    """The number, in docs/format.md, of what should be so."""
    message: str


class Visit:
    """A run of a tree, met on a walk."""

    __slots__ = (
        "_entries", "branch", "flaw", "high", "level", "low", "page_count", "page_id", "parent", "ref", "run", "value",
    )  # fmt: skip

    def __init__(
        self, ref: bytes, level: int, low: bytes, high: bytes | None, parent: Visit | None,
        value: Overflow | None = None,
    ) -> None:  # fmt: skip
        self.ref = ref
        self.page_id, self.page_count, _ = REF.unpack(ref)
        self.level = level
        """0 for a large value, 1 for a leaf, more for a branch."""
        self.low = low
        """No key in it is smaller. Of a large value, the key."""
        self.high = high
        """All keys in it are smaller; None: there is no limit."""
        self.parent = parent
        self.value = value
        """What the leaf holds in place of a large value."""
        self.run = b""
        """The bytes of a branch, or of a leaf that was read."""
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
        """The commit that wrote a branch, or a leaf that was read."""
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

    def _large_values(self) -> Iterator[Visit]:
        """What a leaf leads to, from the last to the first."""
        for key, value in zip(*map(reversed, self.entries()), strict=True):
            if type(value) is Overflow:
                yield Visit(value.ref, 0, key, None, self, value)


def walk(
    tree: Tree, pages: PageSet, *, down_to: int = 0, after: bytes | None = None,
    tolerated: type[error] | tuple[()] = (),
) -> Iterator[Visit]:  # fmt: skip
    """Visit the runs of a tree, claiming their pages in `pages`, in the order of the keys, parents before children.

    `down_to` is the lowest level that is visited: 0 for large values, which are not read; with 1 leaves are visited and
    not read. Subtrees without keys behind `after` are left out. Raises `CorruptionError` for damage, and `error` if
    reading fails; but what is `tolerated` only becomes the visit's flaw.
    """
    stack = [Visit(tree.root, tree.depth, b"", None, None)] if tree.depth else []
    read, malformed = tree.pager.read, tree.pager.malformed
    while stack:
        visit = stack.pop()
        level = visit.level
        flaw = _claimed(visit, pages)
        if flaw is None and (level > 1 or level > down_to):
            try:
                run = read(visit.ref, BRANCH if level > 1 else LEAF)
                flaw = visit._decode(run, entries=tolerated != () or has_overflow(run))
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


def _claimed(visit: Visit, pages: PageSet) -> Flaw | None:
    """Claim the pages of a run; what is wrong with them."""
    page_id, page_count = visit.page_id, visit.page_count
    if page_id < pages.first_page or page_count < 1 or page_id + page_count > pages.page_count:
        return Flaw(4, f"a run of {page_count} pages that is not inside the file")
    taken = pages.claim(page_id, page_count)
    return None if taken is None else Flaw(1, f"page {taken} is in use twice")
