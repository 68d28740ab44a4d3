"""inspect: a database file as a map of its pages: what each is, how full and how old, and how a key is found.

This module opens a file in any condition and follows one key; `survey` finds out what each page is, and `cli.pictures`
draws the resulting `FileMap`. Nothing is changed. Damage is part of the map, not an error: only a missing file, or one
that is not ours, raises. The map shows one commit, which is pinned meanwhile, so others may read and write.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right

from .._engine.catalog import name_key
from .._engine.disk import FileVolume
from .._engine.disk.protocol import Disk
from .._engine.large_value import is_indexed
from .._engine.meta import META_SIZE, first_page
from .._engine.node import Overflow, decode_leaf
from .._engine.page import LEAF, MIN_PAGE_SIZE, REF
from .._engine.pager import MALFORMED, Pager
from .._engine.recovery import read_slots
from .._engine.store import Store
from .._engine.tables import table_view
from .._engine.view import State
from .._files.arguments import Path, Progress
from .._files.intact_pages import guess_page_size
from ..errors import CorruptionError, error
from ..snapshot import Pin
from .file_map import KINDS, FileMap, Run, Step
from .survey import Survey, cut_off, meta_runs, unreachable

__all__ = ["KINDS", "FileMap", "Run", "Step", "inspect"]


def inspect(
    file: Path,
    *,
    key: bytes | None = None,
    table: str | None = None,
    progress: Progress | None = None,
) -> FileMap:
    """Map the pages of a file and, with `key`, the way to its value, in the main table or in `table`.

    Reads and verifies every page in use. Raises `error` for a missing file and for one that is not ours. Damage does
    not raise; it is on the map. `progress(done, total)` counts pages.
    """
    name = os.fsdecode(file)
    try:
        disk = FileVolume().open(name, writable=False)
    except OSError as exc:
        raise error.wrap(exc, name) from exc
    try:
        if read_slots(disk).uninitialised:
            return FileMap(name, MIN_PAGE_SIZE, 0, 0, 0, 0, 0, 0, 0, None, [], [], [], False)
        try:
            store = Store(FileVolume(), disk, page_size=MIN_PAGE_SIZE, cache_size=0)
        except CorruptionError as exc:
            return _without_tree(name, disk, exc)
        pin = Pin(store)
        try:
            survey = Survey(store, pin.state, progress)
            survey.run()
            steps, found = ([], False) if key is None else _way(store, pin.state, key, table)
            return survey.map(name, steps, found)
        finally:
            pin.release()
    except error:
        raise
    except OSError as exc:
        raise error.wrap(exc, name) from exc
    finally:
        disk.close()


def _without_tree(name: str, disk: Disk, exc: CorruptionError) -> FileMap:
    """The map of a file without a usable meta page: every page is judged by itself."""
    slots = read_slots(disk)
    known = next((meta for meta in slots.metas if meta is not None), None)
    page_size = known.page_size if known is not None else guess_page_size(disk)
    page_count = -(-disk.size() // page_size)
    first = min(first_page(page_size), page_count)
    runs = [run for run in meta_runs(slots.metas, page_size) if run.page_id < page_count]
    runs += unreachable(disk, page_size, first, page_count)
    txid = max((run.txid for run in runs), default=0)
    problems = [exc.message.split("; ")[0], *cut_off(runs)]
    return FileMap(name, page_size, page_count, disk.size(), txid, 0, 0, 0, 0, None, runs, problems, [], False)


# -- the way to a key ------------------------------------------------------------------------------


def _way(store: Store, state: State, key: bytes, table: str | None) -> tuple[list[Step], bool]:
    """The pages that a look-up of `key` reads, and whether it is found. In a table, its id is looked up first."""
    if table is None:
        return _way_in_tree(store, state, key)
    steps, found = _way_in_tree(store, state, name_key(table))
    view = table_view(state.view, table) if found else None
    if view is None:
        return steps, False
    more, found = _way_in_tree(store, state, view.key(key))
    return steps + more, found


def _way_in_tree(store: Store, state: State, key: bytes) -> tuple[list[Step], bool]:
    meta, tree = state.meta, state.view.tree_of(key)
    page = state.slot if meta.page_size == META_SIZE else 0
    if key in meta.changes:
        value = meta.changes[key]
        what = "deleted" if value is None else f"{len(value)} bytes"
        return [
            Step(page, 1, f"meta page of commit {meta.txid}: {what}, a change that is not in the tree yet")
        ], value is not None
    key = bytes(key)  # as the tree has it
    root = f"the root is page {REF.unpack(tree.root)[0]}" if tree.depth else "the tree is empty"
    steps = [Step(page, 1, f"meta page of commit {meta.txid}: {root}")]
    pager = Pager(store.disk, meta.page_size, 0)
    ref = tree.root
    try:
        for level in range(tree.depth, 1, -1):
            branch = pager.branch(ref)
            at = bisect_right(branch.separators, key)
            steps.append(_step(ref, f"branch, level {level}: child {at + 1} of {len(branch.refs)}"))
            ref = branch.refs[at]
        if not tree.depth:
            return steps, False
        keys, values = decode_leaf(pager.read(ref, LEAF))
        at = bisect_left(keys, key)
        if at == len(keys) or keys[at] != key:
            steps.append(_step(ref, f"leaf: not among its {len(keys)} entries"))
            return steps, False
        value = values[at]
        if type(value) is not Overflow:
            steps.append(_step(ref, f"leaf: entry {at + 1} of {len(keys)}, {len(value)} bytes"))
            return steps, True
        steps.append(_step(ref, f"leaf: entry {at + 1} of {len(keys)}, a large value"))
        ref = value.ref
        pager.check_value(value, key)
        pieces = pager.index(value, key) if is_indexed(value, key) else []
        parts = f" in {len(pieces):,} pieces" if pieces else ""
        steps.append(_step(ref, f"overflow: {value.length:,} bytes{parts}"))
        for number, ref in enumerate(pieces):
            pager.check_piece(value, key, number, ref)
    except (CorruptionError, *MALFORMED) as exc:
        said = exc.message if isinstance(exc, CorruptionError) else str(exc)
        steps.append(_step(ref, f"damaged: {said}"))
        return steps, False
    return steps, True


def _step(ref: bytes, what: str) -> Step:
    page_id, page_count, _ = REF.unpack(ref)
    return Step(page_id, page_count, what)
