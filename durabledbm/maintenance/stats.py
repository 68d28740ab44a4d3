"""stats: what a database file consists of, and what keeps it from shrinking."""

from __future__ import annotations

import time
from typing import NamedTuple

from .._engine.checkpoints import checkpoints, runs_not_in_newer
from .._engine.meta import first_page
from .._engine.page import REF
from .._engine.store import Store
from .._engine.tables import names
from .._engine.tree import walk
from .._engine.view import State
from ..errors import CorruptionError

__all__ = ["OldestSnapshot", "Stats", "gather"]


class OldestSnapshot(NamedTuple):
    """The oldest commit that is still being read."""

    txid: int
    age: float | None
    """Seconds since this handle first pinned it; None if another handle did."""
    pid: int | None
    """The process that pins it; None where the kernel does not tell."""


class Stats(NamedTuple):
    """Figures of one database at one moment. Sizes are in bytes; pages are counted."""

    entries: int
    """Entries of the main table."""
    txid: int
    """The number of the newest commit."""
    depth: int
    """Levels of the main table's tree."""
    page_size: int
    page_count: int
    leaf_pages: int
    branch_pages: int
    overflow_pages: int
    space_pages: int
    """Pages of the free-space map."""
    free_pages: int
    """Pages that may be written again."""
    pending_pages: int
    """Pages that were freed, but may still be read by a snapshot or needed after a crash."""
    file_bytes: int
    live_bytes: int
    """In use: meta pages, trees and large values, also those that only checkpoints need."""
    free_bytes: int
    pinned_bytes: int
    """Freed, but kept for the oldest snapshot."""
    oldest_snapshot: OldestSnapshot | None
    commits: int
    """Commits made through this handle."""
    syncs: int
    """Syncs made through this handle."""
    pages_written: int
    """Pages written through this handle, meta pages not counted."""
    cache_misses: int
    """Runs that this handle read from the file."""
    cache_hits: int
    """Look-ups that found all pages in memory. Those of values that were read lately do not get to pages at all."""
    time_ns: int
    """When the newest commit was made, in nanoseconds since 1970."""
    tables: int
    """Other tables."""
    table_entries: int
    """Entries of all other tables."""
    checkpoints: int
    kept_pages: int
    """Pages that are needed for checkpoints only."""


def gather(store: Store, state: State) -> Stats:
    """The figures of `state`, which must be pinned."""
    meta = state.meta
    leaf, branch = _tree_pages(state)
    records = [record for _, record in names(state.view)]
    space = state.free_map(store.pager)
    own = sum(REF.unpack(ref)[1] for ref in space.own_runs())
    pins = store.oldest_pin()
    pinned = 0
    oldest = None
    if pins is not None and (pins.txid != meta.txid or store.pins.count(pins.txid) > 1 or pins.pid is not None):
        pinned = sum(count for txid, (_, count) in space.pending_runs() if txid > pins.txid)
        since = store.pins.since.get(pins.txid)
        oldest = OldestSnapshot(pins.txid, None if since is None else time.monotonic() - since, pins.pid)
    live = space.pages.used_count - own
    kept_names = checkpoints(state.view)
    kept = sum(REF.unpack(ref)[1] for name in kept_names for ref in runs_not_in_newer(state, name))
    if leaf + branch + kept > live:
        raise CorruptionError(f"the trees have {leaf + branch} pages, and {live} are in use", path=store.path)
    return Stats(
        entries=meta.entry_count, txid=meta.txid, time_ns=meta.time_ns, depth=meta.depth, page_size=meta.page_size,
        page_count=meta.page_count, leaf_pages=leaf, branch_pages=branch,
        overflow_pages=live - leaf - branch - kept - first_page(meta.page_size), space_pages=own,
        free_pages=space.pages.free_count, pending_pages=space.pages.pending_count, file_bytes=store.disk.size(),
        live_bytes=live * meta.page_size, free_bytes=space.pages.free_count * meta.page_size,
        pinned_bytes=pinned * meta.page_size, oldest_snapshot=oldest, commits=store.commits,
        syncs=store.syncs, pages_written=store.pages_written, cache_hits=store.hits,
        cache_misses=store.pager.misses, tables=len(records), table_entries=sum(record.entries for record in records),
        checkpoints=len(kept_names), kept_pages=kept,
    )  # fmt: skip


def _tree_pages(state: State) -> tuple[int, int]:
    """Pages of leaves and of branches. Leaves are counted in their parents and need not be read."""
    leaf = branch = 0
    pages = state.pages()
    for tree in state.view.trees():
        if tree.depth == 1:
            leaf += REF.unpack(tree.root)[1]
        for visit in walk(tree, pages, down_to=2) if tree.depth > 1 else ():
            branch += visit.page_count
            if visit.level == 2 and visit.branch is not None:
                leaf += sum(page_count for _, page_count, _ in REF.iter_unpack(b"".join(visit.branch.refs)))
    return leaf, branch
