"""reorganize: make a file as small as its content allows, while it is in use.

Two passes of ordinary commits. The first packs the leaves: a batch of neighbouring leaves at a time is written anew,
filled to the brim, into the free pages nearest to the front. The second takes what still stands behind the place where
the file could end and moves it to the front, last runs first; where the holes there are too short for that, it first
moves what stands between them out of the way. After every commit the end of the file is cut off as far
as it is free. Other threads and processes read meanwhile, and write between the commits; a crash loses nothing.

Where there is next to nothing to gain nothing is written: leaves that are full already stay where they are, and a file
that has hardly a page to spare is left alone.

Pages that a snapshot pins stay where they are, so while one is open the file may stay larger than it could be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from heapq import nlargest
from operator import itemgetter

from .._engine.merge import MOVE, TOUCH, Touch
from .._engine.state import State
from .._engine.store import Store
from .._engine.vacuum import leaf_batches, spare_pages
from .._engine.walk import walk
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


def reorganize(
    store: Store, writing: Callable[[], AbstractContextManager[object]], progress: CountedProgress | None = None
) -> None:
    """Make the file of `store` smaller. Each commit is made inside a `with writing()` block, which gives the turn."""
    with writing():
        if store.state.meta.changes and store.state.view.tree.depth:
            store.rewrite({}, packing=False)  # what the meta page replaces or deletes is still in the tree
        total = max(store.state.meta.page_count, 1)
    if _pack(store, writing, progress, total) or _is_loose(store, writing):
        _move(store, writing, progress, total)
    if progress is not None:
        progress(total, total)


def _pack(
    store: Store, writing: Callable[[], AbstractContextManager[object]], progress: CountedProgress | None, total: int
) -> bool:
    """Write leaves anew that are not full; whether there were any."""
    after: bytes | None = None
    done, packed = 0, False
    while True:
        with writing():
            tree = store.state.view.tree
            leaves = leaf_batches(tree, store.state.pages(), after, _BATCH)
            if not leaves:
                return packed
            if spare_pages(tree, leaves.values()) > _FULL:
                store.rewrite(dict.fromkeys(leaves, TOUCH), packing=True)
                packed = True
        after = next(reversed(leaves))
        done += len(leaves)
        if progress is not None:
            progress(min(done, total - 1) // 2, total)


def _is_loose(store: Store, writing: Callable[[], AbstractContextManager[object]]) -> bool:
    """Whether the file has pages to spare."""
    with writing():
        space = store.committer.space(store.state, store.oldest_txid())
        return space.page_count - space.used_count > max(_COMPACT_PAGES, _COMPACT * space.page_count)


def _move(
    store: Store, writing: Callable[[], AbstractContextManager[object]], progress: CountedProgress | None, total: int
) -> None:
    smallest, patience, cleared, before = 1 << 62, 3, 0, 1 << 62
    while patience:
        with writing():
            store.rewrite({}, packing=False)
            end = store.committer.space(store.state, store.oldest_txid()).used_count
            found = _Found(store.state, cleared, end)
            size = _rewritten(store, found.behind)
        if cleared >= end and smallest < before * (1 - _COMPACT):
            cleared, before = 0, smallest  # once more, since it was worth it
        if size < smallest:
            smallest, patience = size, 3
        elif cleared < end and _is_loose(store, writing):
            # What stands at the end is too long for the holes at the front: make larger ones, bit by bit.
            with writing():
                _rewritten(store, found.between)
            cleared = found.next
        else:
            patience -= 1
        if progress is not None:
            progress(total - min(total // 2, max(size - end, 1)), total)


class _Found:
    """What one walk through the tree finds: the last of what stands `behind` page `end`, all that stands `between` page
    `cleared` and one not far behind it, and the `next` page from which on there is more.

    When its turn comes, a run may have been moved already; then it is moved once more.
    """

    def __init__(self, state: State, cleared: int, end: int) -> None:
        self.between: list[_Run] = []
        self.next = end
        self.behind = nlargest(_BATCH, self._sorted(state, cleared, end), key=itemgetter(0))

    def _sorted(self, state: State, cleared: int, end: int) -> Iterator[_Run]:
        stop = cleared + _BATCH
        for visit in walk(state.view.tree, state.pages()):
            run = visit.page_id, visit.low, TOUCH if visit.level else MOVE
            if visit.page_id >= stop:
                self.next = min(self.next, visit.page_id)
            elif visit.page_id + visit.page_count > cleared:
                self.between.append(run)
            if visit.page_id + visit.page_count > end:
                yield run


def _rewritten(store: Store, runs: list[_Run]) -> int:
    """Move runs, the last ones first, and not too many; the page count after that."""
    touches: dict[bytes, Touch] = {}
    for _, key, touch in sorted(runs, key=itemgetter(0), reverse=True)[:_BATCH]:
        if key not in touches or touch.moves_value:
            touches[key] = touch
    return store.rewrite(touches, packing=False).meta.page_count
