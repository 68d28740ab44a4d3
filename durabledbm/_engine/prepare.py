"""Preparing a commit: the meta page of a state's successor, and the pages that it names.

The first step of `commit`. Nothing that is written here is part of the database before the meta page is: the pages are
free ones. `Preparer` also keeps the free space in memory from one commit to the next.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .._interrupts import is_from_handler, is_interrupt
from ..errors import CorruptionError
from .catalog import LAST_ID, NAMES, TableKey, of_tables
from .checkpoints import changed_checkpoints, freed_by_dropping, has_checkpoints, walk_all
from .freemap import FreeMap
from .merge import Change
from .meta import CHANGE_OVERHEAD, Meta, encode_changes, first_page, pages_of, room_for
from .page import NO_REF, REF
from .page_writer import PageWriter
from .shrink import is_half_empty, is_wasteful, tail_runs
from .spill import Spill
from .store import Phase, Store
from .tables import Trees, drops_table, merge_trees
from .view import Layer, State, View

__all__ = ["MOST_EXTENTS", "MOST_PAGES", "MOST_PAGES_RELAXED", "Batch", "Prepared", "Preparer", "has_room"]

MOST_PAGES = 256
"""A commit with more pages syncs twice instead of listing them: verifying them after a crash would take long."""

MOST_PAGES_RELAXED = 512
"""Commits that were not synced list so many together."""

MOST_EXTENTS = 64
"""So does one whose pages are in more places."""

_RESERVE = 8
"""A file has so many pages that hold nothing, and one for each level of its tree, so that something can be deleted when
the disk is full..."""

_RESERVED_PART = 4
"""...but no more than a page for so many that are in use."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_ATTEMPTS = 4
"""How many leaves are tried when the disk is full."""

_LEAST_MOVED = 16
"""A commit that merges moves a run for two changes, and as many more, from the end of a file that is largely free."""

_SHRUNK = 0.995
"""A database has shrunk if it needs less than this part of the pages that it needed before."""


class Batch(NamedTuple):
    """What one commit makes of the state before it."""

    changes: Mapping[bytes, Change]
    cleared: bool = False
    """The changes are made to an empty main tree."""
    erased: bool = False
    """Nothing is left: no table, no checkpoint."""
    spill: Spill | None = None
    """The changes are made to the trees of this, which holds the transaction's earlier changes."""
    moving: bool = False
    """The changes touch what is to be moved to the front of the file."""
    packing: bool = False
    """The changes touch leaves that are to be filled to the brim."""
    sparing: bool = False
    """The disk is full: merge only these changes, and give back nothing of the file."""

    @property
    def frugal(self) -> bool:
        """It takes no pages that it does not need: it makes the file smaller, or the disk is full."""
        return self.moving or self.packing or self.sparing


class Prepared(NamedTuple):
    """A commit that only lacks its meta page."""

    meta: Meta
    """As it will be, but for what every commit has of its own: number, time and the like."""
    encoded: bytes | None
    """The changes as they stand in the meta page, if they are encoded already."""
    sync: bool
    """It must be synced before it is shown."""
    merged: bool
    """Pages were written, which `meta.extents` lists."""


class Preparer:
    """Prepares the commits of one store. `make_durable(meta)` syncs the state before, whose meta is given."""

    def __init__(self, store: Store, make_durable: Callable[[Meta], None]) -> None:
        self._store = store
        self._make_durable = make_durable
        self._free_map: FreeMap | None = None
        self._reusable_txid = -1
        """Pages freed at or before this txid are safe to reuse: no recovery needs them."""
        self._encoded: tuple[Mapping[bytes, bytes | None], bytes] = {}, b""
        """The changes that were last put in a meta, as they stand there: the next commit may just append."""
        self._used_before = 0
        """Pages that the commit before the last one needed."""
        self._written = 0
        """Pages the last merging commit wrote. The next may need as many, so keep that much free."""
        self._places = 0
        """In how many places it wrote them."""

    def prepare(self, old: State, batch: Batch, *, sync: bool) -> Prepared:
        """Prepare the successor of `old`: write its pages, and return its meta."""
        if batch.spill is not None:
            self._free_map = None
            return Prepared(self._sealed(old, batch, *batch.spill.finish(batch.changes), sync=sync), None, sync, True)
        if batch.moving or batch.packing:
            return Prepared(self._in_tree(old, batch, sync=sync), None, sync, True)
        if batch.erased:
            return Prepared(self._erased(old), None, sync, False)
        changes: Mapping[bytes, bytes | None] = batch.changes  # type: ignore[assignment]
        meta = self._emptied(old, changes) if batch.cleared else self._in_meta(old, changes)
        if meta is not None:
            return Prepared(meta, self._encoded[1], sync, False)
        # Where the list is about to get too long, a sync is due anyway. Then this commit may as well become durable, so
        # that the pages which were freed meanwhile are reused.
        sync = sync or self._list_is_long(old.meta)
        try:
            return Prepared(self._in_tree(old, batch, sync=sync), None, sync, True)
        except OSError as exc:
            if exc.errno not in _NO_SPACE or is_interrupt(exc) or self._store.phase is Phase.POISONED or batch.cleared:
                raise
            meta = self._in_little_space(old, changes)
            if meta is None:
                raise
            return Prepared(meta, None, True, True)  # synced: the next one needs the pages that it has freed

    def _list_is_long(self, meta: Meta) -> bool:
        """Whether another merge like the last one would make the list of pages too long for a meta page."""
        if meta.txid <= self._store.durable_txid:
            return False
        if len(meta.extents) + self._places > MOST_EXTENTS:
            return True
        return pages_of(meta.extents) + self._written > MOST_PAGES_RELAXED

    def _in_meta(self, old: State, changes: Mapping[bytes, bytes | None]) -> Meta | None:
        """The successor with the changes in its meta page, or None if they do not fit."""
        extents = () if old.meta.txid <= self._store.durable_txid else old.meta.extents
        room = room_for(len(extents))
        if not _fit(changes, room) or drops_table(changes):
            return None
        dropped, kept_txid = changed_checkpoints(old, changes)
        if dropped and self._freed_by(old, dropped) != []:
            return None
        waiting, count, appended = _waiting(old, changes, appending=self._encoded[0] is old.meta.changes)
        encoded = self._encoded[1] + encode_changes(changes) if appended else encode_changes(waiting)
        if len(encoded) > room:
            return None
        self._encoded = waiting, encoded
        meta = old.meta.with_changes(count, extents, waiting)
        return meta if kept_txid == meta.checkpoint_txid else meta._replace(checkpoint_txid=kept_txid)

    def _emptied(self, old: State, changes: Mapping[bytes, bytes | None]) -> Meta | None:
        """The successor with empty trees and the changes in its meta page, or None if they do not fit, or if there are
        other tables.

        All pages are free from then on, without a record of it: this needs no page, so it works on a full disk.
        """
        if old.meta.tables_depth or old.meta.checkpoint_txid or drops_table(changes):
            return None
        changes = {**of_tables(old.meta.changes), **changes}
        waiting = {key: value for key, value in changes.items() if value is not None}
        if not _fit(waiting, room_for(0)):
            return None
        self._encoded = waiting, encode_changes(waiting)
        count = sum(type(key) is bytes for key in waiting)
        return self._without_trees(old, old.meta.page_count)._replace(entry_count=count, changes=waiting)

    def _erased(self, old: State) -> Meta:
        """The successor with nothing in it but, if it can be read, the last id of a table: none gets it again."""
        try:
            last = old.view.get(LAST_ID)
        except CorruptionError:
            last = None
        return self._without_trees(old, old.meta.page_count)._replace(changes={} if last is None else {LAST_ID: last})

    def _without_trees(self, old: State, page_count: int) -> Meta:
        """The successor without entries and without anything in its pages."""
        meta = old.meta
        self._free_map = FreeMap.emptied(meta.page_size, first_page(meta.page_size), page_count, meta.txid + 1)
        return meta._replace(
            **Trees()._asdict(), page_count=page_count, entry_count=0, space=NO_REF, extents=(), changes={},
            checkpoint_txid=0,
        )  # fmt: skip

    def _in_tree(self, old: State, batch: Batch, *, sync: bool) -> Meta:
        """The successor with everything merged into the tree; its runs are written."""
        pager = self._store.pager
        changes = batch.changes
        dropped, kept_txid = changed_checkpoints(old, changes)
        gone = self._freed_by(old, dropped)
        free_map = self.free_map() if gone is not None else self._rebuilt(old, dropped)
        self._free_map = None  # until this commit is through, a failure leaves it unknown
        writes = self._store.writer.writes(self._store.path)
        writer = PageWriter(writes, pager, free_map, old.meta.txid + 1, grow=not batch.frugal)
        writer.kept_txid = kept_txid
        trees = Trees.of(old.meta)
        for ref in gone or ():
            page_id, page_count, _ = REF.unpack(ref)
            free_map.free(page_id, page_count)
        if batch.cleared:
            trees = trees.without_main(pager, free_map, writer)
            changes = {**of_tables(old.meta.changes), **changes}
        elif batch.moving or batch.packing:
            free_map.pages.cut_tail(all_of_it=True)  # as in `_with_tail`
            changes = {**changes, **old.meta.changes}
        elif not batch.sparing:
            if old.meta.changes:
                changes = {**old.meta.changes, **changes}
            if not writer.kept_txid:  # else what stands at the end may be kept there
                changes = self._with_tail(old.view, free_map, changes)
        trees = merge_trees(pager, writer, trees, changes, packing=batch.packing)
        return self._sealed(old, batch, trees, free_map, writer, sync=sync)

    def _freed_by(self, old: State, dropped: Sequence[str]) -> list[bytes] | None:
        """The refs of runs that are free when these checkpoints are dropped; None if one of them is damaged."""
        try:
            return freed_by_dropping(old, dropped)
        except CorruptionError:
            return None

    def _with_tail(self, view: View, free_map: FreeMap, changes: Mapping[bytes, Change]) -> Mapping[bytes, Change]:
        """The changes, and, if most of the file is free, what stands at its end, so that it can be cut off."""
        if not is_half_empty(free_map.pages.free_count, free_map.pages.used_count, self._written):
            return changes
        free_map.pages.cut_tail(all_of_it=True)
        tail, start = tail_runs(self._store.disk, view.trees(), free_map, len(changes) // 2 + _LEAST_MOVED)
        if tail:
            free_map.pages.close_from(start)  # what is moved must not go back there
        return {**tail, **changes}

    def _sealed(
        self, old: State, batch: Batch, trees: Trees, free_map: FreeMap, writer: PageWriter, *, sync: bool
    ) -> Meta:
        """Close a merge: write the free space, return the meta."""
        store, fold, frugal = self._store, batch.moving, batch.frugal
        writer.release_place()
        free_map.pages.reopen()
        free_map.pages.cut_tail(all_of_it=fold)
        depth = max(trees.depth, trees.tables_depth)
        if not depth and not writer.kept_txid:
            writer.discard()
            return self._without_trees(old, min(free_map.pages.page_count, old.meta.page_count))
        reserve = 0 if frugal else min(depth + _RESERVE, free_map.pages.used_count // _RESERVED_PART)
        reserved = free_map.pages.reserve(reserve, soon=sync)
        try:
            space_ref = free_map.save(writer.txid, writer.write, fold=fold, log_pages=1 if frugal else None)
        except ValueError as exc:
            if is_from_handler(exc):
                raise
            raise CorruptionError(str(exc), path=store.path) from exc
        writer.pad(reserved, free_map.pages.page_count)
        extents = writer.finish()
        self._free_map = free_map
        store.pages_written += writer.pages_written
        if not fold:
            self._written, self._places = writer.pages_written, len(extents)
        if old.meta.txid > store.durable_txid:
            extents = old.meta.extents + extents
        return old.meta._replace(
            page_count=free_map.pages.page_count, entry_count=trees.tree_count, **trees._asdict(), space=space_ref,
            extents=extents, changes={}, checkpoint_txid=writer.kept_txid,
        )  # fmt: skip

    # -- a full disk -------------------------------------------------------------------------------

    def _in_little_space(self, old: State, changes: Mapping[bytes, bytes | None]) -> Meta | None:
        """The successor with no more merged into the tree than must be for the rest to fit in the meta page, leaf by
        leaf: for a full disk, where the few pages must do that the file has. None if it cannot be done so.
        """
        room = room_for(0)
        if not _fit(changes, room) or not any(tree.depth for tree in old.view.trees()) or _adds(changes):
            return None
        if old.meta.txid > self._store.durable_txid:  # then what was freed before it may be written
            self._make_durable(old.meta)
        waiting, count, _ = _waiting(old, changes)
        # What a dropped checkpoint frees is free from the commit on that drops it.
        dropped = {key: value for key, value in changes.items() if has_checkpoints((key,))}
        for leaves in _by_leaf(old.view, waiting):
            merged = dict(dropped)
            rest = {key: value for key, value in waiting.items() if key not in merged}
            for keys in leaves:
                if merged and _fit(rest, room):
                    break
                merged.update((key, rest.pop(key)) for key in keys if key in rest)
            try:
                meta = self._in_tree(old, Batch(merged, sparing=True), sync=True)
            except OSError as exc:
                if exc.errno not in _NO_SPACE or is_interrupt(exc):
                    raise
            else:
                return meta._replace(entry_count=count, changes=rest)
        return None

    # -- free space --------------------------------------------------------------------------------

    def free_map(self) -> FreeMap:
        """The free space at the current state, with everything released that neither a snapshot nor a crash can reach.

        The writer lock must be held.
        """
        self._store.limited.end_overdue()
        state, pinned = self._store.state, self._store.oldest_txid()
        free_map, self._free_map = self._free_map, None  # until it is as it should be again
        if free_map is None or free_map.ref != state.meta.space:
            free_map = self._load_free_map(state)
        free_map.release(self._reusable_txid if pinned is None else min(pinned, self._reusable_txid))
        self._free_map, self._used_before = free_map, free_map.pages.used_count
        return free_map

    def take_free_map(self) -> FreeMap:
        """The same, for a transaction that writes pages before its commit: the next commit reads it from the file."""
        free_map, self._free_map = self.free_map(), None
        return free_map

    def forget(self) -> None:
        """What is in memory of the free space may be wrong: read it again before it is used."""
        self._free_map = None

    def note_durable(self, meta: Meta) -> None:
        """A crash falls back to `meta` at worst.

        Its list must verify then. If it was made on top of commits that were not synced themselves, the list has pages
        of theirs, too, of which some have been freed since: they must stay until another commit is durable.
        """
        alone = not meta.extents or meta.steady_txid >= meta.txid - 1
        self._reusable_txid = meta.txid if alone else meta.steady_txid

    def _load_free_map(self, state: State) -> FreeMap:
        try:
            return state.free_map(self._store.pager)
        except CorruptionError:
            return self._rebuilt(state)

    def _rebuilt(self, state: State, dropped: Sequence[str] = ()) -> FreeMap:
        """The free space derived from the trees, but for those of some checkpoints: what they do not use is free."""
        meta = state.meta
        used = ((run.page_id, run.page_count) for run in walk_all(state, dropped))
        return FreeMap.rebuilt(meta.page_size, first_page(meta.page_size), meta.page_count, used, meta.txid + 1)

    @property
    def has_shrunk(self) -> bool:
        """Whether the last commit has left the database smaller than it was."""
        return self._free_map is not None and self._free_map.pages.used_count < self._used_before * _SHRUNK

    def leaves_waste(self, written: int = 0) -> bool:
        """Whether the file is larger than it must be, as far as is known, and something is to be done about it now: if
        the database has shrunk, or is being closed (nothing is `written`), or the file is twice what it must be.
        """
        free_map = self._free_map
        if free_map is None:
            return False
        room = free_map.pages.used_count if written and not self.has_shrunk else 0
        return is_wasteful(free_map.pages.page_count - free_map.pages.used_count, free_map.pages.used_count, room)


def _waiting(
    old: State, changes: Mapping[bytes, bytes | None], *, appending: bool = False
) -> tuple[Layer, int, bool]:
    """All changes that are not in the tree with `changes` among them, the number of entries then, and whether encoding
    `changes` behind the others is encoding all of them, if there is something encoded to append to.
    """
    waiting = Layer(old.meta.changes)
    view = old.view
    count = old.meta.entry_count
    for key, value in changes.items():
        in_tree = key in view.tree_of(key)
        was_there = in_tree
        if key in waiting:
            was_there = waiting[key] is not None
            appending = False
        if type(key) is bytes:
            count += (value is not None) - was_there
        if value is not None or in_tree:
            waiting[key] = value
        else:
            waiting.pop(key, None)
            appending = False
    return waiting, count, appending


def _adds(changes: Mapping[bytes, bytes | None]) -> bool:
    """Whether changes do anything but to delete entries, and to note in the catalog that this was done."""
    return any(
        value is not None and not (type(key) is TableKey and key.startswith(NAMES)) for key, value in changes.items()
    )


def _by_leaf(view: View, changes: Mapping[bytes, bytes | None]) -> Iterator[list[list[bytes]]]:
    """The keys of changes that concern the same leaf, in some orders: first those first that make most room in the meta
    page, then those that make the tree no larger.
    """
    leaves: dict[bytes, list[bytes]] = {}
    for key in changes:
        tree = view.tree_of(key)
        leaves.setdefault(tree.leaf_ref(key) if tree.depth else tree.root, []).append(key)
    largest = sorted(leaves.values(), key=lambda keys: -sum(_size(key, changes[key]) for key in keys))
    deletions = sorted(largest, key=lambda keys: any(changes[key] is not None for key in keys))
    for first in range(min(len(largest), _ATTEMPTS)):
        yield largest[first:]
        yield deletions[first:]


def has_room(changes: Mapping[bytes, bytes | None], extent_count: int) -> bool:
    """Whether a meta page with so many extents holds the changes."""
    return _fit(changes, room_for(extent_count))


def _fit(changes: Mapping[bytes, bytes | None], room: int) -> bool:
    """Whether changes take no more than `room` bytes of a meta page."""
    for key, value in changes.items():
        room -= _size(key, value)
        if room < 0:
            return False
    return True


def _size(key: bytes, value: bytes | None) -> int:
    """Bytes that a change takes in a meta page."""
    return CHANGE_OVERHEAD + len(key) + (0 if value is None else len(value))
