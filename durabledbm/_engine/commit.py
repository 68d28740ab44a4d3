"""The commit: how a batch of changes becomes the database, and survives.

This is the only module on the way of a write that calls `sync()`. A commit takes one of two ways.

*In the meta page.* If all changes that are not in the tree yet fit in a meta page, they are written there:

1. write the new meta, over the slot that does not hold the last durable commit;
2. sync. Now the commit is acknowledged.

*Into the tree.* Otherwise they are merged, all at once:

1. write the new runs, to pages that neither the last durable commit nor any pinned one can reach;
2. if they are too many to be listed in a meta page, sync;
3. write the new meta, with the list, over the slot that does not hold the last durable commit;
4. sync. Now the commit is acknowledged.

What a crash leaves, by the step that it interrupts. Before the meta is written: the old meta is the newest valid one,
and all that it reaches is intact. While it is written: the slot holds the old meta, the new one, or neither if it was
torn, which the checksum tells; then the other slot, which nobody touched, holds the last durable commit. After it is
written, before the sync is through: the new meta may have arrived without some of its runs. The list in it tells, for
every page of it is verified before the meta is believed. After the sync: everything is there.

Then, without another sync, a copy of the meta, marked *steady*, goes to the other slot, which the next commit will
overwrite anyway. That write makes the commit visible to readers: none of them sees what a power failure may still undo.
Whoever sees the mark knows that the commit is on the disk and needs neither to verify the list nor to
sync again; and from then on two copies of the newest meta exist, so that a damaged one does not silently take the
database back to the commit before.

With `sync=False` (the relaxed durability modes) step "sync" is left out: the commits that follow overwrite the same
slot, the list grows, and pages freed since the last durable commit are not reused, until `harden` syncs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping

from ..errors import CorruptionError
from .creation import random_bytes
from .disk import Disk
from .merge import Change, Merged, Touch, merge
from .meta import (
    CHANGE_OVERHEAD,
    META_SIZE,
    Meta,
    encode_changes,
    encode_meta,
    first_page,
    flaw_of,
    now_ns,
    room_for,
    steady_copy,
)
from .page import NO_REF
from .pager import Pager
from .space import Space
from .state import State
from .tree import Tree
from .vacuum import at_the_end, is_wasteful
from .walk import walk
from .writer import Writer

__all__ = ["Committer", "expected_pages"]

_LISTED_PAGES = 256
"""A commit with more pages syncs twice instead of listing them: verifying them after a crash would take long."""

_LISTED_PAGES_RELAXED = 512
_LISTED_EXTENTS = 64

_MOST_MOVED = 1024
"""Runs that one commit moves at most."""

_LEAST_MOVED = 16
"""A commit that merges moves a run for two changes, and as many more, from the end of a file that is largely free."""

_SHRUNK = 0.995
"""A database has shrunk if it needs less than this part of the pages that it needed before."""


_RESERVE = 8
"""A file has so many pages that nothing is in, and one for each level of its tree, so that something can be deleted
when the disk is full..."""

_RESERVED_PART = 4
"""...but no more than a page for so many that are in use."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_ATTEMPTS = 4
"""How many leaves are tried when the disk is full."""


class Committer:
    """What the writer of a file knows beyond what a reader knows. Used by one thread at a time."""

    def __init__(self, disk: Disk, pager: Pager) -> None:
        self.disk = disk
        self._pager = pager
        self._space: Space | None = None
        self.durable_txid = -1
        """The newest commit that is known to be on the disk, with everything it reaches."""
        self.in_doubt = False
        """A commit was started and neither acknowledged nor known to have failed: only the file knows."""
        self.synced_txid = -1
        """The newest commit made here that a sync outside of a commit has covered (see `Store.sync_file`)."""
        self.sync_failed = False
        """Nothing may be assumed about what is on the disk."""
        self._reusable = -1
        """What was freed by commits up to this one, no crash can bring back."""
        self._visible: tuple[int, bytes] | None = None
        self._written_slots: list[tuple[int, bytes]] = []
        """The slots that were written since the last commit was published, and what was written there."""
        self._has_begun = False
        """A commit made here was published, so the generation is the one that it began, or a later one."""
        self._encoded: tuple[Mapping[bytes, bytes | None], bytes] = {}, b""
        """The changes that were last put in a meta, and how they stand there: the next commit may just append."""
        self._loose: bytes | None = None
        self._cut = False
        """The database has got shorter than the file, which may be cut off when that is known to be on the disk."""
        self._used = 0
        """Pages that the commit before the last one needed."""
        self._written = 0
        """Pages that the last commit which merged changes wrote."""
        self.syncs = 0
        self.commits = 0
        self.pages_written = 0

    def use(self, pager: Pager) -> None:
        """Read through another pager from now on."""
        self._pager = pager

    # -- the ways to commit ------------------------------------------------------------------------

    def commit(
        self, state: State, changes: Mapping[bytes, bytes | None], *, pinned: Callable[[], int | None],
        sync: bool = True, cleared: bool = False,
    ) -> State:  # fmt: skip
        """Make `changes` on top of `state`, or of nothing if `cleared`, its successor and return that.

        `pinned` tells the oldest commit that is still read.

        When it returns with `sync` true, the commit survives anything. If it raises before the meta was written,
        nothing happened; if it raises later, only the file knows what happened.
        """
        meta = self._emptied(state, changes) if cleared else self._in_meta(state, changes)
        if meta is None:
            try:
                meta = self._in_tree(state, changes, pinned=pinned, sync=sync, cleared=cleared)
            except OSError as exc:
                if exc.errno not in _NO_SPACE or self.sync_failed or cleared:
                    raise
                meta = self._in_little_space(state, changes, pinned)
                if meta is None:
                    raise
                sync = True  # what it has freed is needed by the next one
        return self._finish(state, meta, sync=sync)

    def _in_meta(self, state: State, changes: Mapping[bytes, bytes | None]) -> Meta | None:
        """The successor with the changes in its meta page, or None if they do not fit."""
        extents = () if state.meta.txid <= self.durable_txid else state.meta.extents
        room = room_for(len(extents))
        if not _fit(changes, room):
            return None
        waiting, count, appended = self._waiting(state, changes)
        encoded = self._encoded[1] + encode_changes(changes) if appended else encode_changes(waiting)
        if len(encoded) > room:
            return None
        self._encoded = waiting, encoded
        return state.meta._replace(entry_count=count, changes=waiting, extents=extents)

    def _waiting(
        self, state: State, changes: Mapping[bytes, bytes | None]
    ) -> tuple[dict[bytes, bytes | None], int, bool]:
        """All changes that are not in the tree with `changes` among them, the number of entries then, and whether
        encoding `changes` behind the others is encoding all of them.
        """
        old = state.meta
        waiting = dict(old.changes)
        tree = state.view.tree
        count = old.entry_count
        appended = self._encoded[0] is old.changes
        for key, value in changes.items():
            in_tree = key in tree
            was_there = in_tree
            if key in waiting:
                was_there = waiting[key] is not None
                appended = False
            count += (value is not None) - was_there
            if value is not None or in_tree:
                waiting[key] = value
            else:
                waiting.pop(key, None)
                appended = False
        return waiting, count, appended

    def _emptied(self, state: State, changes: Mapping[bytes, bytes | None]) -> Meta | None:
        """The successor with an empty tree and the changes in its meta page, or None if they do not fit.

        The tree's pages are free from then on, without a record of it: this needs no page, so it works on a full disk.
        """
        waiting = {key: value for key, value in changes.items() if value is not None}
        if not _fit(waiting, room_for(0)):
            return None
        self._encoded = waiting, encode_changes(waiting)
        return self._without_tree(state, state.meta.page_count)._replace(entry_count=len(waiting), changes=waiting)

    def _without_tree(self, state: State, page_count: int) -> Meta:
        """The successor without entries and without anything in its pages."""
        meta = state.meta
        self._space = Space.emptied(meta.page_size, first_page(meta.page_size), page_count, meta.txid + 1)
        return meta._replace(
            page_count=page_count, entry_count=0, tree_count=0, root=NO_REF, depth=0, space=NO_REF, extents=(),
            changes={},
        )  # fmt: skip

    def _in_tree(
        self, state: State, changes: Mapping[bytes, Change], *, pinned: Callable[[], int | None], sync: bool,
        cleared: bool = False, moving: bool = False, packing: bool = False, sparing: bool = False,
    ) -> Meta:  # fmt: skip
        """The successor with everything merged into the tree; its runs are written.

        With `sparing` only `changes` are, and of what the file has nothing is given back.
        """
        txid = state.meta.txid + 1
        space = self.space(state, pinned())
        self._space = None  # until this commit is through, a failure leaves it unknown
        writer = Writer(self.disk, self._pager, space, txid, grow=not (moving or packing or sparing))
        if cleared:
            space.free_all()
            tree = Tree(self._pager)
        else:
            tree = state.view.tree
            if moving or packing:
                space.cut_tail(all_of_it=True)  # as in `_with_tail`
                changes = {**changes, **state.meta.changes}
            elif not sparing:
                if state.meta.changes:
                    changes = {**state.meta.changes, **changes}
                changes = self._with_tail(tree, space, changes)
        writer.expected = expected_pages(changes, tree.depth, self._pager.page_size)
        merged = merge(self._pager, writer, tree.root, tree.depth, changes, packing=packing)
        count = merged.growth + (0 if cleared else state.meta.tree_count)
        lean = moving or packing or sparing
        return self.seal(state, merged, count, space, writer, sync=sync, fold=moving, lean=lean)

    def _in_little_space(
        self, state: State, changes: Mapping[bytes, bytes | None], pinned: Callable[[], int | None]
    ) -> Meta | None:
        """The successor with no more merged into the tree than must be for the rest to fit in the meta page, leaf by
        leaf: for a full disk, where the few pages must do that the file has. None if it cannot be done so.
        """
        room = room_for(0)
        if not _fit(changes, room) or not state.view.tree.depth or set(changes.values()) != {None}:
            return None
        if state.meta.txid > self.durable_txid:  # then what was freed before it may be written
            self.sync()
            self._set_durable(state.meta)
        waiting, count, _ = self._waiting(state, changes)
        for leaves in self._by_leaf(state, waiting):
            rest = dict(waiting)
            merged: dict[bytes, bytes | None] = {}
            for keys in leaves:
                merged.update((key, rest.pop(key)) for key in keys)
                if _fit(rest, room):
                    break
            try:
                meta = self._in_tree(state, merged, pinned=pinned, sync=True, sparing=True)
            except OSError as exc:
                if exc.errno not in _NO_SPACE:
                    raise
            else:
                if not _fit(rest, room_for(len(meta.extents))):
                    self.sync()
                    meta = meta._replace(extents=())
                return meta._replace(entry_count=count, changes=rest)
        return None

    def _by_leaf(
        self, state: State, changes: Mapping[bytes, bytes | None]
    ) -> Iterator[list[list[bytes]]]:
        """The keys of changes that concern the same leaf, in some orders: first those first that make most room in the
        meta page, then those that make the tree no larger.
        """
        leaves: dict[bytes, list[bytes]] = {}
        for key in changes:
            leaves.setdefault(next(state.view.tree.leaf_refs(key, key + b"\0")), []).append(key)
        largest = sorted(leaves.values(), key=lambda keys: -sum(_size(key, changes[key]) for key in keys))
        deletions = sorted(largest, key=lambda keys: any(changes[key] is not None for key in keys))
        for first in range(min(len(largest), _ATTEMPTS)):
            yield largest[first:]
            yield deletions[first:]

    def _with_tail(self, tree: Tree, space: Space, changes: Mapping[bytes, Change]) -> Mapping[bytes, Change]:
        """The changes, and, if much of the file is free, what stands at its end, so that it can be cut off."""
        if not is_wasteful(space.free_count, space.used_count, self._written):
            return changes
        space.cut_tail(all_of_it=True)
        tail, start = at_the_end(self.disk, tree, space, len(changes) // 2 + _LEAST_MOVED)
        if tail:
            space.close_from(start)  # what is moved must not go back there
        return {**tail, **changes}

    def to_move(self, state: State, pinned: int | None, limit: int, room: int) -> dict[bytes, Touch] | None:
        """Keys that lead to what stands at the end of the file, if more than `room` pages are spare; else None."""
        space = self.space(state, pinned)
        if not is_wasteful(space.free_count, space.used_count, room):
            return None
        return at_the_end(self.disk, state.view.tree, space, min(limit, _MOST_MOVED))[0]

    def rewrite(
        self, state: State, touches: Mapping[bytes, Change], *, pinned: Callable[[], int | None], packing: bool
    ) -> State:
        """Commit the same content with other pages: everything in `touches` is moved as far to the front as it can."""
        meta = self._in_tree(state, touches, pinned=pinned, sync=True, moving=not packing, packing=packing)
        return self._finish(state, meta, sync=True)

    def seal(
        self, state: State, merged: Merged, count: int, space: Space, writer: Writer, *, sync: bool,
        fold: bool = False, lean: bool = False,
    ) -> Meta:  # fmt: skip
        """Close a merge: write the free space, sync if the runs are too many to be listed, return the meta.

        A `lean` commit takes no pages that it does not need: it makes the file smaller, or the disk is full.
        """
        writer.release_place()
        space.reopen()
        space.cut_tail(all_of_it=fold)
        if not merged.depth:
            writer.discard()
            return self._without_tree(state, min(space.page_count, state.meta.page_count))
        reserve = 0 if lean else min(merged.depth + _RESERVE, space.used_count // _RESERVED_PART)
        reserved = space.reserve(reserve, soon=sync)
        try:
            space_ref = space.save(writer.txid, writer.write, fold=fold, log_pages=1 if lean else None)
        except ValueError as exc:
            raise CorruptionError(str(exc), path=self.disk.path) from exc
        writer.pad(reserved, space.page_count)
        extents = writer.finish()
        self._space = space
        self.pages_written += writer.pages_written
        if not fold:
            self._written = writer.pages_written
        if state.meta.txid > self.durable_txid:
            extents = state.meta.extents + extents
        listed = sum(extent.page_count for extent in extents)
        most = _LISTED_PAGES if sync else _LISTED_PAGES_RELAXED
        if writer.own is not None or listed > most or len(extents) > _LISTED_EXTENTS:
            self.sync()
            extents = ()
        old = state.meta
        return old._replace(
            page_count=space.page_count, entry_count=count, tree_count=count, root=merged.root, depth=merged.depth,
            space=space_ref, extents=extents, changes={},
        )  # fmt: skip

    def finish(self, state: State, meta: Meta, *, sync: bool) -> State:
        """Write the meta of a sealed merge: the commit itself."""
        return self._finish(state, meta, sync=sync)

    def _finish(self, state: State, meta: Meta, *, sync: bool) -> State:
        if sync and state.meta.txid > self.durable_txid:
            # Until the sync is through, readers take the last durable commit for the newest. So that must be the one
            # before, which was acknowledged, and not an older one.
            self.sync()
            self._set_durable(state.meta)
        slot = 1 - state.slot if state.meta.txid <= self.durable_txid else state.slot
        meta = meta._replace(
            txid=state.meta.txid + 1,
            steady_txid=self.durable_txid,
            steady=False,
            relaxed=not sync,
            time_ns=now_ns(),
        )
        if not self._has_begun:
            meta = meta._replace(generation=random_bytes(8), generation_txid=meta.txid)
        if (flaw := flaw_of(meta)) is not None:  # following from what the one before said
            raise CorruptionError(f"after this commit, the meta page would say: {flaw}", path=self.disk.path)
        page = encode_meta(meta, self._encoded[1] if meta.changes is self._encoded[0] else None)
        self._cut = self._cut or meta.page_count < state.meta.page_count
        self.in_doubt = True
        if sync:
            self._visible = 1 - slot, steady_copy(page)
            self._write(slot, page)
            self.sync()
            self._set_durable(meta)
        else:
            self._visible = slot, page
        return State.make(meta, slot, self._pager)

    def _write(self, slot: int, page: bytes) -> None:
        self._written_slots.append((slot, page))
        self.disk.write(slot * META_SIZE, (page,))

    def publish(self, state: State) -> list[tuple[int, bytes]]:
        """Let everybody see the commit that has been made: the write that does it is left to this moment.

        For a synced commit it is the steady copy of the meta, for a relaxed one the meta itself. Returns the slots that
        the commit has written, and what it wrote there.
        """
        assert self._visible is not None
        slot, page = self._visible
        self._visible = None
        self._write(slot, page)
        self.in_doubt = False
        self._has_begun = True
        self.commits += 1
        if state.meta.txid > self.durable_txid:
            self._loose = page
        else:
            self._loose = None
            if self._cut:
                try:
                    self.disk.resize(state.meta.page_count * state.meta.page_size)
                    self._cut = False
                except OSError:
                    # The commit is done, and a file that is too long is as good: the next one cuts it. Windows refuses
                    # to cut a file that another program, a virus scanner for one, has mapped into its memory.
                    pass
        written, self._written_slots = self._written_slots, []
        return written

    @property
    def is_loose(self) -> bool:
        """Whether the newest commit made here is not known to be on the disk."""
        return self._loose is not None

    def harden(self, state: State) -> None:
        """Sync, so that `state`, which this committer made last, survives anything; `publish` then says so."""
        assert self._loose is not None
        self.sync()
        self._set_durable(state.meta)
        self._visible = 1 - state.slot, steady_copy(self._loose)

    def note_synced(self, meta: Meta) -> None:
        """The newest commit is `meta`. If a sync has covered it meanwhile, it is durable."""
        if self._loose is not None and meta.txid <= self.synced_txid:
            self._set_durable(meta)

    def settled(self, meta: Meta) -> None:
        """The newest commit of all is on the disk, whoever made it."""
        self.synced_txid = min(self.synced_txid, meta.txid)
        self._set_durable(meta)
        self._loose = None
        if meta.space == NO_REF:  # which does not tell this commit's free space from that of another
            self._space = None

    def _set_durable(self, meta: Meta) -> None:
        """From now on a crash falls back to `meta` at worst.

        Its list must verify then. If it was made on top of commits that were not synced themselves, the list has pages
        of theirs, too, of which some have been freed since: they must stay until another commit is durable.
        """
        self.durable_txid = meta.txid
        alone = not meta.extents or meta.steady_txid >= meta.txid - 1
        self._reusable = meta.txid if alone else meta.steady_txid

    def give_up(self) -> None:
        """What was prepared for the next step is void, and free space must be read anew: a commit failed half-way, or
        this is the child of a process that goes on with all that.
        """
        self._space = self._visible = self._loose = None
        self._written_slots = []
        self.in_doubt = False

    def after_fork(self) -> None:
        """In a child process: what was prepared is the parent's, and what is committed from now on is not."""
        self.give_up()
        self._has_begun = False

    def sync(self) -> None:
        """Sync. If it fails, nothing may be assumed any more."""
        self.syncs += 1
        try:
            self.disk.sync()
        except OSError:
            self.sync_failed = True
            raise

    # -- free space --------------------------------------------------------------------------------

    def space(self, state: State, pinned: int | None) -> Space:
        """The free space at `state`, with everything released that neither a snapshot nor a crash can reach."""
        space, self._space = self._space, None  # until it is as it should be again
        if space is None or space.ref != state.meta.space:
            space = self._load_space(state)
        space.release(self._reusable if pinned is None else min(pinned, self._reusable))
        self._space, self._used = space, space.used_count
        return space

    @property
    def has_shrunk(self) -> bool:
        """Whether the last commit has left the database smaller than it was."""
        return self._space is not None and self._space.used_count < self._used * _SHRUNK

    def leaves_waste(self, written: int = 0) -> bool:
        """Whether the file is larger than it must be, as far as is known, and something is to be done about it now: if
        the database has shrunk, or is being closed (nothing is `written`), or the file is twice what it must be.
        """
        space = self._space
        if space is None:
            return False
        room = space.used_count if written and not self.has_shrunk else 0
        return is_wasteful(space.page_count - space.used_count, space.used_count, room)

    def forget_space(self) -> None:
        """What this committer believes about free space may be wrong: read it again before it is used."""
        self._space = None

    def _load_space(self, state: State) -> Space:
        try:
            return state.space(self._pager)
        except CorruptionError:
            # Nothing is lost with the free-space map: what the tree does not use is free.
            meta = state.meta
            used = ((visit.page_id, visit.page_count) for visit in walk(state.view.tree, state.pages()))
            return Space.rebuilt(meta.page_size, first_page(meta.page_size), meta.page_count, used, meta.txid + 1)


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


def expected_pages(changes: Mapping[bytes, Change], depth: int, page_size: int) -> int:
    """About how many pages merging the changes will take."""
    count = len(changes)
    if count <= 1000:
        return count * max(depth - 1, 1) + depth + 3
    sample = [value for _, value in zip(range(256), changes.values(), strict=False) if type(value) is bytes]
    average = sum(map(len, sample)) // max(len(sample), 1) + 40
    return max(count * average // page_size + count // 64 + 3, min(count, 4096))
