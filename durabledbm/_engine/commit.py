"""The commit: how a batch of changes becomes the database, and survives.

`Committer.commit` and `_carry_out` below it read from top to bottom. This is the only module on the way of a write that
calls `sync()`. A commit takes one of two ways.

*In the meta page.* If all changes that are not in the tree yet fit in a meta page, they are written there:

1. write the new meta, over the slot that does not hold the last durable commit;
2. sync. Now the commit is acknowledged.

*Into the tree.* Otherwise they are merged, all at once:

1. write the new runs, to pages that neither the last durable commit nor any pinned one can reach;
2. if they are too many to be listed in a meta page, sync;
3. write the new meta, with the list, over the slot that does not hold the last durable commit;
4. sync. Now the commit is acknowledged.

Then, without another sync, a copy of the meta, marked *steady*, goes to the other slot, which the next commit will
overwrite anyway. That write publishes the commit: no reader sees what a power failure may still undo. The mark says
that the commit is on the disk, so that the next writer needs neither to verify the list nor to sync again; and from
then on two copies of the newest meta exist, so that a damaged one does not silently take the database back to the
commit before.

With `sync=False` (the relaxed durability modes) the last sync is left out and the meta itself publishes: the commits
that follow overwrite the same slot, the list grows, and pages freed since the last durable commit are not reused, until
`make_durable` syncs.

What a failure does, by the phase of the commit (`store.Phase`) that it strikes:

    phase       an I/O error   an interrupt   a crash leaves
    ---------   ------------   ------------   ----------------------------------------------------------------------
    IDLE        -              -              the last acknowledged commit
    PREPARED    UNKNOWN        UNKNOWN        the commit before: no meta names the new pages
    WRITTEN     POISONED       UNKNOWN        the new commit if all of it arrived, else the one before
    SYNCED      POISONED       UNKNOWN        the new commit
    PUBLISHED   UNKNOWN        UNKNOWN        the new commit
    UNKNOWN     UNKNOWN        UNKNOWN        what the file holds: `reconcile` finds out before the next commit
    POISONED    POISONED       POISONED       what the disk holds: only the next open can tell

A sync that fails poisons in every phase. A fork leaves the parent in its phase; the child begins `IDLE`, with a lock
and an open file of its own, and reconciles with the file before its first commit. Locks and leases are released as the
interrupt discipline demands (see `threads`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from math import inf

from .._interrupts import is_interrupt
from ..errors import BusyError, CorruptionError, error
from .disk.protocol import Writes
from .files import initialise, random_bytes
from .merge import Touch
from .meta import (
    META_SIZE,
    STAMP_OFFSET,
    STAMP_SIZE,
    Meta,
    encode_meta,
    flaw_of,
    now_ns,
    pages_of,
    stamp_with,
    steady_copy,
)
from .page import NO_REF
from .prepare import MOST_EXTENTS, MOST_PAGES, MOST_PAGES_RELAXED, Batch, Prepared, Preparer, has_room
from .recovery import Slots, newest, read_slots
from .shrink import is_wasteful, tail_runs
from .spill import Spill
from .store import UNKNOWN_STAMP, Phase, Store
from .threads import Lease
from .view import State

__all__ = ["Committer"]

_AFTER_IO_ERROR = {
    Phase.IDLE: Phase.UNKNOWN,
    Phase.PREPARED: Phase.UNKNOWN,
    Phase.WRITTEN: Phase.POISONED,
    Phase.SYNCED: Phase.POISONED,
    Phase.PUBLISHED: Phase.UNKNOWN,
    Phase.UNKNOWN: Phase.UNKNOWN,
    Phase.POISONED: Phase.POISONED,
}
"""The table above, for I/O errors. An interrupt leads to `UNKNOWN` from every phase but `POISONED`."""

_MOST_MOVED = 1024
"""Runs that one commit moves at most."""

_LARGE = 256
"""A commit of more pages looks whether it has left the file much larger than it must be."""

_FRUITLESS = 4
"""How many commits that move pages may fail to make the file smaller before it is left as it is."""


class Committer:
    """Makes the commits of one store. Used by one thread at a time: the one that has the writer lock."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.preparer = Preparer(store, self._make_old_durable)
        self._known_txid = -1
        """The newest commit that this handle made, or has reconciled with the disk."""
        self._synced_txid = -1
        """The newest commit made here that a sync outside of a commit has covered (see `sync_file`)."""
        self._generation_begun = False
        """A commit made here was published, so the generation is the one that it began, or a later one."""
        self._cut_due = False
        """The database has got shorter than the file, which is cut off when that is known to be on the disk."""

    # -- the writer lock ---------------------------------------------------------------------------

    def begin(self, lease: Lease, timeout: float | None) -> State:
        """Take the writer lock and return the newest state, known to be on the disk. `lease.end()` releases the lock.

        Waits at most `timeout` seconds, then raises `BusyError`.
        """
        store = self.store
        store.check_writable()
        store.inside.check_file()
        try:
            store.writer.acquire(lease, store.disk, timeout)
        except OSError as exc:
            if is_interrupt(exc) or store.closed or store.disk.held():
                raise
            store.attend()
            store.writer.acquire(lease, store.disk, timeout)
        try:
            store.check_writable()
            if not store.writer.is_current or store.phase is not Phase.IDLE:
                if not store.state.meta.txid and (successor := store.successor()) is not None:
                    lease.end()
                    with store.mutex:
                        store.go_on_with(successor)
                    return self.begin(lease, timeout)
                self.reconcile()
            store.check_name()
        except BaseException as exc:
            lease.end()
            if isinstance(exc, OSError):
                raise error.wrap(exc, store.path) from exc
            raise
        return store.state

    def initialise(self) -> None:
        """Make the file, which was just created, a database. If another handle holds the writer lock, that one does it.

        If that fails the file is removed again. Others may have opened it meanwhile: they find out before they write.
        """
        store, lease = self.store, Lease()
        try:
            store.inside.check_file()
            store.writer.acquire(lease, store.disk, 0.0)
            self.reconcile()
        except BusyError as exc:
            if is_interrupt(exc):
                raise
        except BaseException:
            if read_slots(store.disk).uninitialised:
                store.volume.remove(store.path)
            raise
        finally:
            try:
                lease.end()
            finally:  # there is no later operation of this handle that would end a lease left over by an interrupt
                lease.end()

    def reconcile(self) -> None:
        """Make sure that the newest commit in the file is on the disk, whichever handle made it and however it ended.

        The writer lock must be held. Afterwards the state is the newest, and stays so until the lock is released.
        """
        store = self.store
        with store.committing, store.mutex:
            if store.phase is not Phase.IDLE:
                self._abandon(None)
                store.check()
            if self._known_txid != store.state.meta.txid or store.read(STAMP_SIZE, STAMP_OFFSET) != store.stamp:
                self._reconcile()
            # Who was killed, or failed, while writing pages has left them behind the database.
            meta = store.state.meta
            self._cut_due = self._cut_due or store.disk.size() > meta.page_count * meta.page_size
            store.lost, store.phase = False, Phase.IDLE
            store.writer.confirm()

    def _reconcile(self) -> None:
        store = self.store
        slots = self._initialised_slots()
        meta, slot = newest(store.disk, slots)
        store.compare(slots)
        stamp = slots.stamp or store.read(STAMP_SIZE, STAMP_OFFSET)
        first, second = slots.metas
        twins = first is not None and second is not None and first.txid == second.txid
        if not (twins and (first.steady or second.steady)):  # type: ignore[union-attr]
            # It may be in memory only; after a sync that failed unseen, it may even never reach the disk. What the
            # medium holds is what counts.
            self.sync()
            store.disk.forget()
            store.pager.clear()
            slots = self._initialised_slots()
            meta, slot = newest(store.disk, slots)
            stamp, other = slots.stamp or store.read(STAMP_SIZE, STAMP_OFFSET), slots.metas[1 - slot]
            if other is None or other.txid > meta.txid:
                # A commit stands there of which something is missing. What is written from now on, even half of it,
                # could complete it, so nothing of it may be left: noise agrees with no sector of anything.
                self.writes().write((1 - slot) * META_SIZE, (random_bytes(META_SIZE),))
                self.sync()
            page = steady_copy(store.read(META_SIZE, slot * META_SIZE))
            self.writes().write((1 - slot) * META_SIZE, (page,))
            stamp = stamp_with(stamp, 1 - slot, page)
        if meta.txid != store.state.meta.txid or slot != store.state.slot:
            store.install(State.make(meta, slot, store.pager), None)
        store.stamp = stamp
        self._synced_txid = min(self._synced_txid, meta.txid)
        self._note_durable(meta)
        store.unsynced = None
        if meta.space == NO_REF:  # which does not tell this commit's free space from that of another
            self.preparer.forget()
        self._known_txid = meta.txid

    def _initialised_slots(self) -> Slots:
        """The two slots, of a file that is a database afterwards."""
        store = self.store
        slots = read_slots(store.disk)
        if slots.uninitialised:
            if store.state.meta.txid > 1:
                raise store.replaced()  # emptied: what was committed must not seem undone
            initialise(store.volume, store.disk, store.page_size, self.writes())
            slots = read_slots(store.disk)
            store.load_from(slots)
        elif not store.state.meta.txid:
            store.load_from(slots)
        return slots

    # -- committing --------------------------------------------------------------------------------

    def commit(
        self, changes: Mapping[bytes, bytes | None], *, sync: bool = True, cleared: bool = False, shrink: bool = True
    ) -> State:
        """Make `changes` on top of the current state, or of nothing if `cleared`. The writer lock must be held.

        With `sync` true the commit survives anything once this returns. If it raises, the phase tells what happened.
        After a large commit, unless `shrink` is false, more commits may follow that give back space.
        """
        store = self.store
        if not changes and not cleared:
            return store.state
        if store.observer is not None:
            store.observer.admit(changes)
        before = store.pages_written
        state = self._carry_out(Batch(changes, cleared), None if cleared else changes, sync=sync)
        written = store.pages_written - before
        if written > _LARGE and sync and shrink and self.preparer.leaves_waste(written):
            state = self.shrink(2 * written, 0 if self.preparer.has_shrunk else written)
        return state

    def erase(self, writing: Callable[[], AbstractContextManager[object]]) -> None:
        """Commit an empty database, in a block `with writing()`, which takes the writer lock.

        The trees of the present one are not needed for that: they may be damaged.
        """
        with writing():
            self._carry_out(Batch({}, erased=True), None, sync=True)

    def spill(self, *, cleared: bool) -> Spill:
        """Begin to write pages before their commit, on top of the current state, or of nothing if `cleared`.

        If there is no such commit in the end, the next one cuts off what was written behind the database.
        """
        self._cut_due = True
        return Spill(self.writes(), self.store.state, self.preparer.take_free_map(), cleared=cleared)

    def commit_spill(self, spill: Spill, changes: Mapping[bytes, bytes | None], *, sync: bool) -> State:
        """Commit the tree of a transaction that has outgrown memory, with its last `changes`."""
        return self._carry_out(Batch(changes, spill=spill), None, sync=sync)

    def rewrite(self, touches: Mapping[bytes, Touch], *, packing: bool) -> State:
        """Commit the same content in other pages: everything in `touches` is moved as far to the front as it can."""
        return self._carry_out(Batch(touches, moving=not packing, packing=packing), {}, sync=True)

    def _carry_out(self, batch: Batch, rows: Mapping[bytes, object] | None, *, sync: bool) -> State:
        """Make one commit and make its result current. `rows` are the keys it changes; None: they are not known."""
        store = self.store
        self._admit()
        with store.committing:
            self._start()
            try:
                self.check_place()
                old = store.state

                # Merge: write the new pages, where nothing stands that a crash or a reader needs. A failure here leaves
                # the file as it was; a crash leaves pages that nothing refers to, which are free.
                prepared = self.preparer.prepare(old, batch, sync=sync)
                sync = prepared.sync
                if not self._lists(prepared, spilled=batch.spill is not None):
                    self.sync()
                    prepared = prepared._replace(meta=prepared.meta._replace(extents=()))
                if sync and old.meta.txid > store.durable_txid:
                    # Until this commit is synced, readers take the last durable one for the newest. So that must be the
                    # one before, which was acknowledged, and not an older one.
                    self._make_old_durable(old.meta)
                    # So its pages need not be listed any more. They must not be: those that it has freed itself may be
                    # reused as soon as this commit is durable, and then the list would not verify.
                    extents = prepared.meta.extents[len(old.meta.extents) :]
                    prepared = prepared._replace(meta=prepared.meta._replace(extents=extents))
                slot, meta = self._numbered(old, prepared.meta, relaxed=not sync)
                page = encode_meta(meta, prepared.encoded)

                # Write: the meta goes over the slot that does not hold the last durable commit. A crash leaves the old
                # meta, the new one, or a torn one, which its checksum tells; the other slot is not touched.
                store.phase = Phase.WRITTEN
                writes: list[tuple[int, bytes]] = []
                if sync:
                    self._write_slot(slot, page, writes)

                    # Sync: until it returns, the meta may be on the disk without some of its pages; the list in it
                    # tells. After it the commit survives anything.
                    self.sync()
                    self._note_durable(meta)
                    store.phase = Phase.SYNCED

                # Publish: one write lets all readers see the commit. It is the steady copy of a synced meta, and the
                # meta itself if nothing was synced. A crash may tear it: then the other slot has the same commit, or,
                # if nothing was synced, the last durable one.
                state = State.make(meta, slot, store.pager)
                self._publish(state, 1 - slot if sync else slot, steady_copy(page) if sync else page, writes, rows)
            except BaseException as exc:
                self._fail(exc)
                raise
        self._acknowledge(rows)
        return state

    def cut_off_rest(self) -> None:
        """Make the file end where the database ends, by a commit if need be. The writer lock must be held."""
        meta = self.store.state.meta
        if self.store.disk.size() > meta.page_count * meta.page_size:
            self._cut_due = True
            self.rewrite({}, packing=False)

    def _cut_off(self, meta: Meta) -> bool:
        """Give back what lies behind the database. False if that is not possible now.

        The commit is done, and a file that is too long is as good: the next one cuts it off. Windows refuses to cut a
        file that another program, a virus scanner for example, has mapped into its memory.
        """
        try:
            self.writes().resize(meta.page_count * meta.page_size)
        except OSError as exc:
            if is_interrupt(exc):
                raise
            return False
        return True

    def make_durable(self) -> None:
        """Sync what was committed with `sync=False`. The writer lock must be held."""
        store = self.store
        if store.unsynced is None:
            return
        self._admit()
        with store.committing:
            self._start()
            try:
                self.check_place()
                state, page = store.state, store.unsynced
                assert page is not None
                self.sync()
                self._note_durable(state.meta)
                store.phase = Phase.SYNCED
                self._publish(state, 1 - state.slot, steady_copy(page), [], {})
            except BaseException as exc:
                self._fail(exc)
                raise
        self._acknowledge({})

    def _admit(self) -> None:
        """Before a commit is made: raise if it may not be, and tell the observer."""
        store = self.store
        self.writes()
        store.check()
        if store.observer is not None:
            store.observer.expect(store.state)

    def _acknowledge(self, rows: Mapping[bytes, object] | None) -> None:
        """After it was made: tell the observer. What cannot be found again under its name is not acknowledged."""
        store = self.store
        if store.observer is not None:
            store.observer.committed(rows)
        store.check_name()

    def writes(self) -> Writes:
        """What writes to the file, for who has the writer lock (see `WriterLock.writes`)."""
        return self.store.writer.writes(self.store.path)

    def _start(self) -> None:
        store = self.store
        if store.unsynced is not None and store.state.meta.txid <= self._synced_txid:
            self._note_durable(store.state.meta)  # a sync outside of a commit has covered it
        if store.phase is not Phase.IDLE:
            raise error(f"{store.path}: an earlier commit was interrupted; this one was to build on it")
        store.phase = Phase.PREPARED

    def check_place(self) -> None:
        """Raise if something that knows no locks has written to the file since this handle has the writer lock: pages
        that are free here may be in use there.
        """
        store = self.store
        store.attend()  # the number may be another open file's by now, even one of this very file
        if store.read(STAMP_SIZE, STAMP_OFFSET) != store.stamp:
            self.writes()  # else it was another process's turn, of which this is the child
            raise store.replaced()

    def _lists(self, prepared: Prepared, *, spilled: bool) -> bool:
        """Whether the meta may list the pages of its commit; else they are synced before it is written."""
        if not prepared.merged:
            return True
        extents = prepared.meta.extents
        most = MOST_PAGES if prepared.sync else MOST_PAGES_RELAXED
        fits = pages_of(extents) <= most and len(extents) <= MOST_EXTENTS
        return fits and not spilled and has_room(prepared.meta.changes, len(extents))

    def _numbered(self, old: State, meta: Meta, *, relaxed: bool) -> tuple[int, Meta]:
        """The slot for the successor of `old`, and its meta with everything that a new commit has of its own."""
        store = self.store
        durable = old.meta.txid <= store.durable_txid
        slot = 1 - old.slot if durable else old.slot
        txid = old.meta.txid + 1
        generation = meta.generation, meta.generation_txid
        if not self._generation_begun:
            generation = random_bytes(8), txid
        meta = meta.numbered(txid, store.durable_txid, now_ns(), *generation, relaxed=relaxed)
        if (flaw := flaw_of(meta)) is not None:  # following from what the one before said
            raise CorruptionError(f"after this commit, the meta page would say: {flaw}", path=store.path)
        self._cut_due = self._cut_due or meta.page_count < old.meta.page_count
        return slot, meta

    def _write_slot(self, slot: int, page: bytes, writes: list[tuple[int, bytes]]) -> None:
        writes.append((slot, page))
        self.writes().write(slot * META_SIZE, (page,))

    def _publish(
        self, state: State, slot: int, page: bytes, writes: list[tuple[int, bytes]], rows: Mapping[bytes, object] | None
    ) -> None:
        """Show the commit to all at once: other processes see what is written here, threads of this one what is
        installed. `writes` are the slots that this commit has written before. If this is interrupted, readers find out
        from the file what there is.
        """
        store = self.store
        with store.mutex:
            stamp, store.stamp = store.stamp, UNKNOWN_STAMP
            store.writer.doubt()
            self._write_slot(slot, page, writes)
            self.writes()  # a child that was forked during that is not to go on
            store.phase = Phase.PUBLISHED
            self._generation_begun = True
            store.commits += 1
            if state.meta.txid > store.durable_txid:
                store.unsynced = page
            else:
                store.unsynced = None
                if self._cut_due:
                    self._cut_due = not self._cut_off(state.meta)
            for written in writes:
                stamp = stamp_with(stamp, *written)
            store.install(state, rows)
            if store.read(STAMP_SIZE, STAMP_OFFSET) != stamp:
                self.writes()
                raise store.replaced()
            store.stamp, self._known_txid = stamp, state.meta.txid
            store.writer.confirm()
            store.phase = Phase.IDLE

    def _fail(self, cause: BaseException) -> None:
        """A commit has failed, or was interrupted: the phase says with what consequence. Wraps an I/O error."""
        with self.store.mutex:
            self._abandon(cause)
        if isinstance(cause, OSError) and not is_interrupt(cause):
            raise error.wrap(cause, self.store.path) from cause

    def _abandon(self, cause: BaseException | None) -> None:
        """A commit ended half-way. What became of it is found out, from the file, before the next one."""
        store = self.store
        store.writer.doubt()
        store.stamp = UNKNOWN_STAMP
        store.lost = store.lost or store.unsynced is not None
        failed = isinstance(cause, OSError) and not is_interrupt(cause) and store.writer.kept  # see `writes`
        if failed and _AFTER_IO_ERROR[store.phase] is Phase.POISONED:
            store.poison(cause)  # type: ignore[arg-type]
        elif store.phase is not Phase.POISONED:
            store.phase = Phase.UNKNOWN
        store.unsynced = None
        self.preparer.forget()

    def after_fork(self) -> None:
        """In a child process: what was prepared is the parent's, and what is committed from now on is not."""
        self.preparer.forget()
        self._known_txid = -1
        self._generation_begun = False

    # -- durability --------------------------------------------------------------------------------

    def sync(self) -> None:
        """Sync. If it fails, nothing may be assumed about the disk any more."""
        self.store.syncs += 1
        try:
            self.store.disk.sync()
        except OSError as exc:
            if not is_interrupt(exc):
                self.store.poison(exc)
            raise

    def sync_file(self) -> None:
        """Sync what was committed here, waiting for no other writer: the writer lock need not be held.

        That is all that a relaxed commit lacks to survive anything. Its meta is not marked steady by this, which
        `make_durable` does, so the next writer verifies it once more, or syncs again.
        """
        store = self.store
        store.attend()
        txid = store.state.meta.txid
        self.sync()
        store.check_name()
        self._synced_txid = max(self._synced_txid, txid)

    @property
    def in_progress(self) -> bool:
        """Whether a commit of this handle is in progress, or it is not known what became of the last one."""
        return self.store.phase is not Phase.IDLE

    @property
    def has_unsynced(self) -> bool:
        """Whether something that was committed here may not be on the disk."""
        store = self.store
        unsynced = store.unsynced is not None and self._synced_txid < store.state.meta.txid
        return unsynced or store.phase is not Phase.IDLE

    def _note_durable(self, meta: Meta) -> None:
        """From now on a crash falls back to `meta` at worst."""
        self.store.durable_txid = meta.txid
        self.preparer.note_durable(meta)

    def _make_old_durable(self, meta: Meta) -> None:
        self.sync()
        self._note_durable(meta)

    # -- giving space back -------------------------------------------------------------------------

    def shrink(self, budget: int, room: int = 0, *, seconds: float = inf) -> State:
        """After commits that left much of the file free, move what stands at its end, about `budget` runs at most.

        Small commits do this on their way; a large one would leave a large file behind it. `room` pages may stay free.
        """
        store = self.store
        if store.state.meta.checkpoint_txid:
            return store.state  # what stands at the end may be kept there
        smallest, tries = store.state.meta.page_count, _FRUITLESS
        deadline = time.monotonic() + seconds
        while budget > 0 and tries and time.monotonic() < deadline:
            free_map = self.preparer.free_map()
            if not is_wasteful(free_map.pages.free_count, free_map.pages.used_count, room):
                break
            touches, _ = tail_runs(store.disk, store.state.view.trees(), free_map, min(budget, _MOST_MOVED))
            budget -= len(touches) + 1
            if self.rewrite(touches, packing=False).meta.page_count < smallest:
                smallest, tries = store.state.meta.page_count, _FRUITLESS
            else:
                tries -= 1
        return store.state
