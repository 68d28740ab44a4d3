"""Giving space back: what stands at the end of a file, and how to get it out of the way.

Pages are never moved as such. To move a run is to touch a key that leads to it, and to commit: the merge writes the run
anew wherever there is room, as it does with everything it touches. So making a file smaller is as safe as any other
commit, and may be interrupted at any moment.
"""

from __future__ import annotations

from collections.abc import Iterable

from .._interrupts import is_from_handler
from ..errors import CorruptionError
from .catalog import TableKey
from .disk.protocol import Disk
from .freemap import FreeMap
from .large_value import is_indexed
from .merge import MOVE, TOUCH, Touch
from .node import Overflow, decode_branch, leaf_keys
from .page import BRANCH, CRC_SIZE, HEADER, LEAF, OVERFLOW, REF, self_consistent
from .pager import MALFORMED
from .tree import PageSet, Tree, walk

__all__ = ["is_half_empty", "is_wasteful", "leaf_batches", "spare_pages", "tail_runs", "touch_run"]

_WASTEFUL = 0.2
"""Pages that a file may have beyond those in use, in proportion to them: room to write in..."""

_WASTEFUL_PAGES = 64
"""...and so many more."""

_LONGEST_RUN = 1024
"""Pages of the longest run that is looked for at the end of a file while committing something else..."""

_LONGEST_NODE = 64
"""...and of the longest leaf, branch or key, which must be read for that."""


def is_wasteful(spare: int, used: int, written: int = 0) -> bool:
    """Whether a file has many more pages than it needs.

    `written`: pages the last commit wrote. The next may need as many, so keep that much free.
    """
    return spare > max(used * _WASTEFUL, min(written * 5 // 4, used)) + _WASTEFUL_PAGES


def is_half_empty(spare: int, used: int, written: int) -> bool:
    """Whether a file has so many pages more than it needs that even small commits are to make it smaller.

    Looking for what stands at the end costs more than a small commit. Copy-on-write always leaves some pages free, and
    large commits, closing and `reorganize` give back what there is in between.
    """
    return spare > max(used, written * 5 // 4) + _WASTEFUL_PAGES


def tail_runs(
    disk: Disk, trees: tuple[Tree, Tree], free_map: FreeMap, limit: int
) -> tuple[dict[bytes, Touch], int]:
    """Keys that lead to the last runs in the file, about `limit` of them, and the page from which on these stand.

    They are found by reading the last pages in use, down to where the file could end. A run that this commit has
    replaced looks like the rest: so each is looked for in the `trees`, the main one and that of tables. Keys of the
    latter are `TableKey`s.
    """
    touches: dict[bytes, Touch] = {}
    page_id = free_map.pages.page_count - 1
    looked = found = 0
    end = free_map.pages.used_count
    freed: set[int] = set()  # lately, so they may not be overwritten yet
    for _, (first, count) in free_map.pending_runs():
        freed.update(range(max(first, end), first + count))
    while page_id >= end and found < limit and looked < 4 * limit + _LONGEST_RUN:
        looked += 1
        if not free_map.pages.is_free(page_id) and page_id not in freed:
            touch = _key_of(disk, trees[0].pager.page_size, page_id)
            if touch is not None and _is_live(trees[type(touch[0]) is TableKey], touch[0], page_id):
                touch_run(touches, *touch, page_id)
                found += 1
        page_id -= 1
    return touches, page_id + 1


def touch_run(touches: dict[bytes, Touch], key: bytes, touch: Touch, page_id: int) -> None:
    """Add to `touches` the run at that page, to which `key` leads. `touch` is `MOVE` if a large value is in it."""
    known = touches.get(key, TOUCH)
    if not touch.moves_value:
        touches[key] = known
    elif known.moves_value:
        assert type(known.runs) is set
        known.runs.add(page_id)
    else:
        touches[key] = Touch(moves_value=True, runs={page_id})


def _is_live(tree: Tree, key: bytes, page_id: int) -> bool:
    """Whether the way to `key` leads over the run at that page, and is intact."""
    ref = tree.root
    met = False
    try:
        for level in range(tree.depth, 0, -1):
            met = met or REF.unpack(ref)[0] == page_id
            if level > 1:
                ref = tree.pager.child(ref, key)
        value = tree.find(key)
        if type(value) is not Overflow:
            return met
        if REF.unpack(value.ref)[0] == page_id:
            tree.pager.check_value(value, key)
            return True
        if is_indexed(value, key):
            for number, piece in enumerate(tree.pager.index(value, key)):
                if REF.unpack(piece)[0] == page_id:
                    tree.pager.piece(value, key, number, piece)
                    return True
    except (*MALFORMED, CorruptionError) as exc:
        if is_from_handler(exc):
            raise
        return False  # damage elsewhere is not for a commit to find
    return met


def _key_of(disk: Disk, page_size: int, page_id: int) -> tuple[bytes, Touch] | None:
    """A key that leads to the run that starts at the page, if it looks like one of a tree. Reads little of it."""
    head = disk.read(page_size, page_id * page_size)
    if len(head) < page_size:
        return None
    kind, _, tree, count, own_id, _, page_count, payload_size = HEADER.unpack_from(head)
    key_of = TableKey if tree else bytes
    if own_id != page_id or not 0 < page_count <= _LONGEST_RUN:
        return None
    if kind == OVERFLOW:
        size = HEADER.size + count
        if count > payload_size or size > min(page_count, _LONGEST_NODE) * page_size:
            return None
        run = head if size <= page_size else disk.read(size, page_id * page_size)
        return key_of(run[HEADER.size : size]), MOVE
    if kind not in (LEAF, BRANCH) or page_count > _LONGEST_NODE:
        return None
    run = head if page_count == 1 else disk.read(page_count * page_size, page_id * page_size)
    if len(run) < page_count * page_size or not self_consistent(run):
        return None
    try:
        keys = leaf_keys(run) if kind == LEAF else decode_branch(run).separators
    except MALFORMED as exc:
        if is_from_handler(exc):
            raise
        return None
    return (key_of(keys[0]), TOUCH) if keys else None


def leaf_batches(tree: Tree, pages: PageSet, after: bytes | None, limit: int) -> dict[bytes, bytes]:
    """The next `limit` leaves after the one that holds `after`, from the first if that is None.

    Each is a key that leads to the leaf, and its ref. `pages` are those of the file, for the walk to claim.
    """
    leaves: dict[bytes, bytes] = {}
    for visit in walk(tree, pages, down_to=1, after=after):
        if visit.level == 1 and (after is None or visit.low > after):
            leaves[visit.low] = visit.ref
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
