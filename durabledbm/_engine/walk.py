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
from .pager import MALFORMED, Pager
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

    def _read(self, pager: Pager, *, all_entries: bool) -> Flaw | None:
        """Read and decode it; what is wrong with it. Raises `CorruptionError` if it is not what is pointed at."""
        run = self.run = pager.read(self.ref, self.kind)
        try:
            if self.level == 1:
                if all_entries or has_overflow(run):
                    self.entries()
                return None
            self.branch = decode_branch(run)
        except MALFORMED as exc:
            return Flaw(3, f"the content makes no sense: {exc}")
        bounds = self.lows() if self.high is None else [*self.lows(), self.high]
        return None if all(map(lt, bounds, bounds[1:])) else Flaw(2, "the separators are out of order")

    def _below(self, after: bytes | None) -> Iterator[Visit]:
        """What it leads to, from the last to the first: of children only those that may hold keys behind `after`."""
        if self.branch is None:
            if has_overflow(self.run):
                for key, value in zip(*map(reversed, self.entries()), strict=True):
                    if type(value) is Overflow:
                        yield Visit(value.ref, 0, key, None, self, value)
            return
        separators, refs, _ = self.branch
        lows, highs = self.lows(), [*separators, self.high]
        first = 0 if after is None else bisect_right(separators, after)
        for at in range(len(refs) - 1, first - 1, -1):
            yield Visit(refs[at], self.level - 1, lows[at], highs[at], self)


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
    while stack:
        visit = stack.pop()
        flaw = _claimed(visit, pages)
        if flaw is None and visit.level > min(down_to, 1):
            try:
                flaw = visit._read(tree.pager, all_entries=tolerated != ())
            except tolerated as exc:
                flaw = Flaw(3, exc.message if isinstance(exc, CorruptionError) else str(exc))
        if flaw is None:
            if visit.level > down_to:
                stack += visit._below(after)
        elif tolerated == ():
            raise tree.pager.malformed(visit.ref, flaw.message)
        visit.flaw = flaw
        yield visit


def _claimed(visit: Visit, pages: PageSet) -> Flaw | None:
    """Claim the pages of a run; what is wrong with them."""
    if not pages.holds(visit.page_id, visit.page_count):
        return Flaw(4, f"a run of {visit.page_count} pages that is not inside the file")
    taken = pages.claim(visit.page_id, visit.page_count)
    return None if taken is None else Flaw(1, f"page {taken} is in use twice")
