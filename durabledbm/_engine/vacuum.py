"""Giving space back: what stands at the end of a file, and how to get it out of the way.

Pages are never moved as such. To move a run is to touch a key that leads to it, and to commit: the merge writes the run
anew wherever there is room, as it does with everything it touches. So making a file smaller is as safe as any other
commit, and may be interrupted at any moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import CorruptionError
from .disk import Disk
from .merge import MOVE, TOUCH, Touch
from .node import Overflow, decode_branch, decode_leaf, leaf_keys
from .page import BRANCH, CRC_SIZE, HEADER, LEAF, OVERFLOW, REF, self_consistent
from .pager import MALFORMED
from .space import Space
from .tree import Tree

__all__ = ["at_the_end", "is_wasteful", "leaf_batches", "spare_pages", "standing"]

_WASTEFUL = 0.2
"""Pages that a file may have beyond those in use, in proportion to them: room to write in..."""

_WASTEFUL_PAGES = 64
"""...and so many more."""

_LONGEST_RUN = 1024
"""Pages of the longest run that is looked for at the end of a file while committing something else."""


def is_wasteful(spare: int, used: int, written: int = 0) -> bool:
    """Whether a file has many more pages than it needs. `written`: by the last commit, of whose size the next may be:
    to give back what it freed, just to take it again, would be work done twice.
    """
    return spare > max(used * _WASTEFUL, min(written * 5 // 4, used)) + _WASTEFUL_PAGES


def at_the_end(disk: Disk, tree: Tree, space: Space, limit: int) -> tuple[dict[bytes, Touch], int]:
    """Keys that lead to the last runs in the file, about `limit` of them, and the page from which on these stand.

    Found by reading the last pages in use, down to where the file could end. What the tree has replaced lately, and
    may not be overwritten yet, looks like the rest: so each is looked for in the tree.
    """
    touches: dict[bytes, Touch] = {}
    page_id = space.page_count - 1
    looked = 0
    end = space.used_count
    while page_id >= end and len(touches) < limit and looked < 4 * limit + _LONGEST_RUN:
        looked += 1
        if not space.is_free(page_id):
            touch = _key_of(disk, tree, page_id)
            if touch is not None and _is_there(tree, touch[0], page_id):
                touches[touch[0]] = touch[1]
        page_id -= 1
    return touches, page_id + 1


def _is_there(tree: Tree, key: bytes, page_id: int) -> bool:
    """Whether the way to `key` leads over the run at that page."""
    ref = tree.root
    try:
        for level in range(tree.depth, 0, -1):
            if REF.unpack(ref)[0] == page_id:
                return True
            if level > 1:
                ref = tree.pager.child(ref, key)
        value = tree.find(key)
    except (*MALFORMED, CorruptionError):
        return False  # damage elsewhere is not for a commit to find
    return type(value) is Overflow and REF.unpack(value.ref)[0] == page_id


def _key_of(disk: Disk, tree: Tree, page_id: int) -> tuple[bytes, Touch] | None:
    """A key that leads to the run that starts at the page, if one does."""
    page_size = tree.pager.page_size
    head = disk.read(page_size, page_id * page_size)
    if len(head) < page_size:
        return None
    kind, _, _, count, own_id, _, page_count, payload_size = HEADER.unpack_from(head)
    if own_id != page_id or kind not in (LEAF, BRANCH, OVERFLOW) or not 0 < page_count <= _LONGEST_RUN:
        return None
    run = head if page_count == 1 else disk.read(page_count * page_size, page_id * page_size)
    if len(run) < page_count * page_size or not self_consistent(run):
        return None
    try:
        if kind == OVERFLOW:
            return (run[HEADER.size : HEADER.size + count], MOVE) if count <= payload_size else None
        if kind == LEAF:
            return leaf_keys(run)[0], TOUCH
        ref = decode_branch(run).refs[0]
        # Nobody vouches for what a branch that is not in the tree leads to: it may be long, or the branch itself.
        for _ in range(tree.depth):
            child, page_count, _ = REF.unpack(ref)
            if page_count > _LONGEST_RUN:
                return None
            run = disk.read(page_count * page_size, child * page_size)
            kind = HEADER.unpack_from(run)[0]
            if kind == LEAF:
                return leaf_keys(run)[0], TOUCH
            if kind != BRANCH or not self_consistent(run):
                return None
            ref = decode_branch(run).refs[0]
    except (*MALFORMED, CorruptionError):
        pass
    return None


def standing(tree: Tree, start: int, end: int) -> Iterator[tuple[int, bytes, Touch]]:
    """Page id, and a key that leads there, of every run of the tree that has a page from `start` up to `end`."""
    if tree.depth:
        yield from _standing(tree, tree.root, tree.depth, b"", start, end)


def _standing(
    tree: Tree, ref: bytes, level: int, low: bytes, start: int, end: int
) -> Iterator[tuple[int, bytes, Touch]]:
    page_id, page_count, _ = REF.unpack(ref)
    if page_id < end and page_id + page_count > start:
        yield page_id, low, TOUCH
    if level > 1:
        branch = tree.pager.branch(ref)
        for child, bound in zip(branch.refs, [low, *branch.separators], strict=True):
            yield from _standing(tree, child, level - 1, bound, start, end)
        return
    leaf = tree.pager.leaf(ref, keep=False)
    if leaf[1]:
        for key, value in zip(*decode_leaf(leaf), strict=True):
            if type(value) is Overflow:
                page_id, page_count, _ = REF.unpack(value.ref)
                if page_id < end and page_id + page_count > start:
                    yield page_id, key, MOVE


def leaf_batches(tree: Tree, after: bytes | None, limit: int) -> dict[bytes, bytes]:
    """The next `limit` leaves after the one that holds `after`, from the first if that is None.

    Each is a key that leads to the leaf, and its ref.
    """
    leaves: dict[bytes, bytes] = {}
    if tree.depth:
        for low, ref in _lows(tree, tree.root, tree.depth, b"", after):
            if after is None or low > after:
                leaves[low] = ref
                if len(leaves) == limit:
                    break
    return leaves


def spare_pages(tree: Tree, refs: Iterable[bytes]) -> float:
    """The share of the pages of these leaves that they would not need if they were filled to the brim."""
    room = tree.pager.page_size - HEADER.size - CRC_SIZE
    pages = size = 0
    for ref in refs:
        pages += REF.unpack(ref)[1]
        size += HEADER.unpack_from(tree.pager.leaf(ref, keep=False))[-1]
    return (pages - -(-size // room)) / max(pages, 1)


def _lows(tree: Tree, ref: bytes, level: int, low: bytes, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    if level == 1:
        yield low, ref
        return
    branch = tree.pager.branch(ref)
    bounds = [low, *branch.separators]
    for at, child in enumerate(branch.refs):
        if after is None or at + 1 == len(bounds) or bounds[at + 1] > after:
            yield from _lows(tree, child, level - 1, bounds[at], after)
