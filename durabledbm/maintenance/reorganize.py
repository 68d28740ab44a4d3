"""reorganize: make a file as small as its content allows, while it is in use.

It makes two passes of ordinary commits. The first packs the leaves: batches of neighbouring leaves are rewritten,
completely filled, into the free pages nearest to the front. The second moves runs from behind the place where the file
could end to the front, last runs first. Where the holes in front are too short, it first moves the runs between them
out of the way. After every commit the free pages at the end of the file are cut off. Other threads and processes read
meanwhile, and write between the commits. A crash loses nothing.

If there is almost nothing to gain, nothing is written: full leaves stay where they are, and a file with hardly any
spare pages is left alone.

Both trees are treated alike: the main table's, and that of the other tables. Pages that a snapshot or a checkpoint
needs stay where they are, so the file may stay larger than necessary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from heapq import nlargest
from operator import itemgetter

from .._engine.catalog import TableKey
from .._engine.commit import Committer
from .._engine.merge import MOVE, TOUCH, Touch
from .._engine.pager import Pager
from .._engine.shrink import leaf_batches, spare_pages, touch_run
from .._engine.tree import walk
from .._engine.view import State
from .._files.arguments import CountedProgress

__all__ = ["reorganize"]

_Run = tuple[int, bytes, Touch]
"""Page id, a key that leads there, and how to touch it."""

_BATCH = 256
"""Runs written anew by one commit: others may write between two of them."""

_FULL = 0.05
"""The share of their pages that the leaves of a batch may waste and still count as packed."""

_COMPACT = 0.02
"""The share of its pages that a file may not use and still count as compact..."""

_COMPACT_PAGES = 8
"""...and as many pages, however small the file."""

_KEYS = bytes, TableKey
"""What makes the keys of a change from those of each tree."""


def reorganize(
    committer: Committer, writing: Callable[[], AbstractContextManager[object]], progress: CountedProgress | None = None
) -> None:
    """Make the file of `store` smaller. Each commit is made inside a `with writing()` block, which takes the writer
    lock.
    """
    with writing():
        state = committer.store.state
        if state.meta.changes and any(tree.depth for tree in state.view.trees()):
            committer.rewrite({}, packing=False)  # what the meta page replaces or deletes is still in the tree
        total = max(committer.store.state.meta.page_count, 1)
    if _pack(committer, writing, progress, total) or _is_loose(committer, writing):
        _move(committer, writing, progress, total)
    with writing():
        committer.cut_off_rest()
    if progress is not None:
        progress(total, total)


def _pack(
    committer: Committer, writing: Callable[[], AbstractContextManager[object]], progress: CountedProgress | None,
    total: int,
) -> bool:
    """Rewrite leaves that are not full; return whether there were any."""
    done, packed = 0, False
    for number in (0, 1):
        after: bytes | None = None
        while True:
            with writing():
                state = committer.store.state
                tree = state.view.trees()[number]
                leaves = leaf_batches(tree, state.pages(), after, _BATCH)
                if not leaves:
                    break
                after = next(reversed(leaves))
                done += len(leaves)
                leaves = _born_after(state.meta.checkpoint_txid, leaves, tree.pager)
                if leaves and spare_pages(tree, leaves.values()) > _FULL:
                    committer.rewrite(dict.fromkeys(map(_KEYS[number], leaves), TOUCH), packing=True)
                    packed = True
            if progress is not None:
                progress(min(done, total - 1) // 2, total)
    return packed


def _born_after(txid: int, leaves: dict[bytes, bytes], pager: Pager) -> dict[bytes, bytes]:
    """Those that no checkpoint keeps, if the newest is that commit."""
    return {key: ref for key, ref in leaves.items() if pager.birth(ref) > txid}


def _is_loose(committer: Committer, writing: Callable[[], AbstractContextManager[object]]) -> bool:
    """Whether the file has spare pages."""
    with writing():
        space = committer.preparer.free_map()
        return space.pages.page_count - space.pages.used_count > max(_COMPACT_PAGES, _COMPACT * space.pages.page_count)


def _move(
    committer: Committer, writing: Callable[[], AbstractContextManager[object]], progress: CountedProgress | None,
    total: int,
) -> None:
    smallest, patience, cleared, before = 1 << 62, 3, 0, 1 << 62
    while patience:
        with writing():
            committer.rewrite({}, packing=False)
            end = committer.preparer.free_map().pages.used_count
            found = _Found(committer.store.state, cleared, end)
            size = _rewritten(committer, found.behind)
        if cleared >= end and smallest < before * (1 - _COMPACT):
            cleared, before = 0, smallest  # once more, since it was worth it
        if size < smallest:
            smallest, patience = size, 3
        elif cleared < end and _is_loose(committer, writing):
            # What stands at the end is too long for the holes at the front: make larger ones, bit by bit.
            with writing():
                _rewritten(committer, found.between)
            cleared = found.next
        else:
            patience -= 1
        if progress is not None:
            progress(total - min(total // 2, max(size - end, 1)), total)


class _Found:
    """What a walk of the trees finds: the last runs `behind` page `end`, all runs `between` page `cleared` and one not
    far behind it, and the `next` page after these.

    A run may have been moved before its turn comes; then it is moved once more.
    """

    def __init__(self, state: State, cleared: int, end: int) -> None:
        self.between: list[_Run] = []
        self.next = end
        self.behind = nlargest(_BATCH, self._sorted(state, cleared, end), key=itemgetter(0))

    def _sorted(self, state: State, cleared: int, end: int) -> Iterator[_Run]:
        stop, kept_txid = cleared + _BATCH, state.meta.checkpoint_txid
        pages = state.pages()
        trees = zip(state.view.trees(), _KEYS, strict=True)
        visits = ((visit, kind) for tree, kind in trees for visit in walk(tree, pages))
        for visit, kind in visits:
            if kept_txid and (visit.txid if visit.level else state.view.tree.pager.birth(visit.ref)) <= kept_txid:
                continue
            run = visit.page_id, kind(visit.low), TOUCH if visit.level else MOVE
            if visit.page_id >= stop:
                self.next = min(self.next, visit.page_id)
            elif visit.page_id + visit.page_count > cleared:
                self.between.append(run)
            if visit.page_id + visit.page_count > end:
                yield run


def _rewritten(committer: Committer, runs: list[_Run]) -> int:
    """Move runs, the last ones first, up to a limit; return the new page count."""
    touches: dict[bytes, Touch] = {}
    for page_id, key, touch in sorted(runs, key=itemgetter(0), reverse=True)[:_BATCH]:
        touch_run(touches, key, touch, page_id)
    return committer.rewrite(touches, packing=False).meta.page_count
