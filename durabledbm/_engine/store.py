"""The store: one open database file, and the newest commit in it as this handle sees it.

Any thread may read at any time and waits for no one. `current` notices commits of other processes by one small read of
the *commit stamp*, the bytes of the meta pages that every commit changes. A look-up whose pages are reused before it
has read them finds that out by their checksums and is tried again on the newer state; what reads for longer pins the
state first (see `readers`). Writing is in `commit`, which makes its results current here.

The store also notices what happens to an open file from outside. Its name may be taken away, or given to another file:
then nothing is acknowledged any more, since it could not be found again. Another copy may be put in its place by a
program that knows no locks: then the file holds commits that do not follow the one that was read last (see
`meta.may_follow`), and the handle can only be closed. Another part of the program may close its descriptor: then the
file is opened again, and what was locked is locked again.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from itertools import repeat

from .._interrupts import Late, is_from_handler, is_interrupt
from ..errors import ClosedError, CorruptionError, ReadOnlyError, error
from .cache import RowCache
from .changeset import Observer
from .disk.protocol import Disk, Volume
from .files import INHERITED, INTERRUPTED, displaced, overtaken, overwritten, unavailable
from .locks import WriterLock, pin, pin_refused, unpin, writer_present
from .meta import STAMP_OFFSET, STAMP_SIZE, Meta, first_page, may_follow
from .node import Overflow
from .pager import Pager
from .readers import Hold, LimitedReaders, Pins, PinTable, Reader, Unpinned
from .recovery import Slots, newest, read_slots, visible
from .threads import Inside, held_here
from .view import State

__all__ = ["UNKNOWN_STAMP", "Phase", "Store"]

UNKNOWN_STAMP = b"unknown"
"""A stamp that no read can equal: the file must be asked."""

_FORESEEN = 1000
"""A commit with more changes than this empties the row cache instead of taking them out of it one by one."""

_ROW_RARITY = 4
"""When the row cache is full, one look-up in so many puts its value there: one-off reads do not evict hot keys."""

_GLANCES, _MOST_STAMPS = 4, 128
"""Asking whether the file still has its name costs three times as much as reading the stamp. So after so many stamps
that came with that question, one comes without, then two, four and so on, up to so many."""

_kept: set[Disk] = set()
"""The disks of open handles."""


class Phase(Enum):
    """How far a commit of this handle has got. The table in `commit` says what a failure does in each phase."""

    IDLE = "no commit is in progress"
    PREPARED = "pages are being written to free places; no meta page names them"
    WRITTEN = "the meta page is being written, or is written, and not synced"
    SYNCED = "the commit is on the disk; readers do not see it yet"
    PUBLISHED = "readers of other handles see the commit; this handle does not show it yet"
    UNKNOWN = "a commit failed or was interrupted: the file tells what became of it"
    POISONED = "nothing may be assumed about the disk: the next open decides"


class Store:
    """One open database file, as readers see it. Any thread may call anything here at any time, but `close`."""

    def __init__(self, volume: Volume, disk: Disk, *, page_size: int, cache_size: int) -> None:
        self.volume = volume
        self.page_size = page_size
        """That of a file that is not initialised yet."""
        self.disk = disk
        self.path = disk.path
        self.readonly = not disk.writable
        self.file = disk.identity()
        self.inside = Inside(disk.path, self.file)
        self.rows = RowCache(cache_size // 2)
        self._make_locks()
        self.writer = WriterLock(self.file)
        self.pins = PinTable()
        self.closed = False
        self._refusal: Callable[[], BaseException | None] | None = None
        """What every use of the handle raises, since its file is not what it was; or the next one (see `Late`)."""
        self.observer: Observer | None = None
        self.limited = LimitedReaders()
        # Commits of this handle, as `commit` keeps the books.
        self.phase = Phase.IDLE
        self.failure: BaseException | None = None
        """Why the handle is `POISONED`, or refuses everything."""
        self.durable_txid = -1
        """The newest commit that is known to be on the disk, with everything it reaches."""
        self.unsynced: bytes | None = None
        """The meta page of the newest commit made here, if that is not known to be on the disk."""
        self.lost = False
        """Acknowledged commits, not synced yet when a write failed, may be gone."""
        self.commits = self.syncs = self.pages_written = 0
        # What readers see.
        self._fetched = 0
        self.hits = 0
        """Look-ups that found all pages in memory, about."""
        self._set_aside_readers: list[weakref.ref[Unpinned]] = []
        """What those read whose pins were lost once."""
        self.stamps: Iterator[bytes] = iter(())
        """Each step reads the stamp from the file. When it ends, `glance` is due."""
        self._glances = 0
        """Glances since anything but reading stamps happened."""
        self._doubtful = UNKNOWN_STAMP
        """The stamp of a commit that is written, not yet synced: it is not shown till it is, or its writer is gone."""
        self._cache_size = cache_size - cache_size // 2
        self.read = disk.read
        self.stamp = UNKNOWN_STAMP
        """That of `state`."""
        self.pager = self._new_pager(page_size)
        self.state = self._uninitialised()
        self._load()

    def _make_locks(self) -> None:
        self.mutex = threading.RLock()
        """Held while the state is replaced, and while pins are counted."""
        self.committing = threading.RLock()
        """Held while a commit is in progress: if one is and the lock is free, it was interrupted."""
        self.rows.lock = threading.RLock()
        self.inside.locks = self.mutex, self.committing, self.rows.lock

    # -- the current state -------------------------------------------------------------------------

    def current(self) -> State:
        """The newest commit of any process."""
        try:
            if next(self.stamps, b"") == self.stamp or self.glance():
                return self.state
        except OSError as exc:
            if not self.may_pass(exc):
                raise
        return self.refresh()

    def glance(self) -> bool:
        """Whether the state is the newest, as the stamp tells, and the file still is this handle's and has its name.

        If so, some of the next reads of the stamp need not ask for that.
        """
        if not self.in_place() or self.read(STAMP_SIZE, STAMP_OFFSET) != self.stamp:
            return False
        count = min(1 << self._glances >> _GLANCES, _MOST_STAMPS)
        self.stamps = map(self.read, repeat(STAMP_SIZE, count), repeat(STAMP_OFFSET))
        self._glances += count < _MOST_STAMPS
        return True

    def may_pass(self, cause: OSError) -> bool:
        """Whether a read that has failed is worth another try: writers overtook it, or the descriptor is gone."""
        passing = isinstance(cause, CorruptionError) or not (self.closed or self.disk.held())
        return passing and not is_interrupt(cause)

    def refresh(self) -> State:
        """Look again for newer commits. While this handle writes, no other can have committed."""
        self.check()
        if self.inside.holds_lock():
            return self.state  # the newest that is installed: this call has interrupted one that was looking
        self.attend()
        try:
            with self.mutex:
                self._drain()
                self._look_again()
                self.check_name()
                return self.state
        finally:
            self._released()

    def _look_again(self) -> None:
        if not self.writer.is_current:
            self._refresh()
        elif self.read(STAMP_SIZE, STAMP_OFFSET) != self.stamp and self.phase is Phase.IDLE and self.writer.is_current:
            raise self.replaced()  # (if the lock went with a fork in between, there was nothing to compare)

    def _refresh(self) -> None:
        seen = self.state.meta
        if not seen.txid and (successor := self.successor()) is not None:
            self.go_on_with(successor)
        stamp = self.read(STAMP_SIZE, STAMP_OFFSET)
        if stamp == self.stamp or (stamp == self._doubtful and writer_present(self.disk)):
            return
        slots = read_slots(self.disk)
        if slots.uninitialised:
            if seen.txid:
                raise self.replaced()
            return
        found = visible(self.disk, slots)
        if found is None:
            if seen.txid and slots.stamp:
                raise self.replaced()
            newest(self.disk, slots)  # says what is wrong
            return
        meta, slot, certain = found
        if not seen.txid:
            self.load_from(slots)
            return
        if slots.stamp:  # else a slot is being written, and may be the newest one
            self.compare(slots)
        if meta.txid > seen.txid:
            self.install(State.make(meta, slot, self.pager), None)
        self.stamp, self._doubtful = (slots.stamp, UNKNOWN_STAMP) if certain else (UNKNOWN_STAMP, slots.stamp)

    def compare(self, slots: Slots) -> None:
        """Raise if the file holds something that cannot have followed the state by commits alone."""
        seen = self.state.meta
        if seen.txid:
            meta = max((meta for meta in slots.metas if meta is not None), key=lambda meta: meta.txid)
            if meta.database_id != seen.database_id or not may_follow(meta, seen):
                raise self.replaced(meta)

    def _load(self) -> None:
        """Decide what the file holds, when it is opened."""
        for _ in range(100):
            slots = read_slots(self.disk)
            if slots.uninitialised:
                return
            try:
                self.load_from(slots)
            except CorruptionError:
                if read_slots(self.disk).metas == slots.metas:
                    raise
                # else a writer was faster: what it overwrote meanwhile was not missing
            else:
                return
        raise error(f"{self.path}: the file changes too fast to be read")

    def load_from(self, slots: Slots) -> None:
        found = visible(self.disk, slots)
        if found is not None and not found.certain:
            meta, slot = found.meta, found.slot
            self.stamp, self._doubtful = UNKNOWN_STAMP, slots.stamp
        else:
            meta, slot = newest(self.disk, slots)
            self.stamp = slots.stamp
        if meta.page_size != self.pager.page_size:
            self.pager = self._new_pager(meta.page_size)
        self.install(State.make(meta, slot, self.pager), None)

    def _new_pager(self, page_size: int) -> Pager:
        pager = Pager(self.disk, page_size, self._cache_size)
        pager.mend = partial(_mend, weakref.ref(self))  # weakly: handles that are dropped are freed at once
        return pager

    def _uninitialised(self) -> State:
        """The state of a file that was not initialised yet."""
        return State.make(Meta(0, self.page_size, bytes(16), first_page(self.page_size)), 0, self.pager)

    def install(self, state: State, changes: Mapping[bytes, object] | None) -> None:
        """Make `state` current. What it changes leaves the row cache first, and cannot be put back meanwhile."""
        old = self.state.meta
        with self.rows.lock:
            same_trees = state.meta.root == old.root and state.meta.tables_root == old.tables_root
            if changes is None and same_trees and state.meta.txid > old.txid > 0:
                changes = {**old.changes, **state.meta.changes}
            if changes is None or len(changes) > _FORESEEN:
                self.rows.clear()
            else:
                self.rows.drop(changes)
            self.state = state

    def fetch(self, key: bytes, *, whole: bool = True) -> bytes | None:
        """The value of `key` in the current state, or None. If it is asked for often, it becomes a row.

        Unless it is to be `whole`, an `Overflow` stands for a large value, which is not read.

        Raises `error` also if the pages of that state have been reused meanwhile: then there is a newer one.
        """
        state, rows = self.state, self.rows
        if (value := rows.old.get(key)) is not None and self.state is state:
            self._keep_row(state, key, value)
            return value
        view = state.view
        for layer in view.layers:
            if key in layer:
                return layer[key]
        pager = self.pager
        misses = pager.misses
        value = view.tree_of(key).find(key)
        if pager.misses == misses:
            self.hits += 1
        if type(value) is Overflow:
            return pager.value(value, key) if whole else value
        self._fetched += 1
        if value is not None and not (rows.old and self._fetched % _ROW_RARITY):
            self._keep_row(state, key, value)
        return value

    def lookup(self, key: bytes, *, whole: bool = True) -> bytes | None:
        """The same, of a key that may be a row already."""
        return self.rows.young.get(key) or self.fetch(key, whole=whole)

    def _keep_row(self, state: State, key: bytes, value: bytes) -> None:
        if held_here(self.rows.lock):
            return  # interrupted while it was put in order
        with self.rows.lock:
            if self.state is state:  # else a commit may just have taken out what would be put in
                self.rows.keep(key, value)

    # -- the file and its name ---------------------------------------------------------------------

    def in_place(self) -> bool:
        """Whether the open file still is this handle's, and has its name."""
        return self.disk.held() and self.disk.linked()

    def check_name(self) -> None:
        """Raise `error` if the file was moved, removed or replaced, unless nothing was ever written to it."""
        self.stamps, self._glances = iter(()), 0
        if self.state.meta.txid and not self.disk.linked():
            raise displaced(self.path)

    def replaced(self, meta: Meta | None = None) -> error:
        """The error for a file that something else has written to; `meta` is what it holds, if anything."""
        return self._refuse(partial(overwritten, self.path, meta, self.state.meta))

    def _refuse(self, refusal: Callable[[], error]) -> error:
        """Nothing can be done with this handle any more but to close it."""
        self._refusal = refusal
        self.stamp, self._doubtful = UNKNOWN_STAMP, UNKNOWN_STAMP
        self.lost = self.lost or self.unsynced is not None
        self.failure = refusal()
        return refusal()

    def attend(self) -> None:
        """See to it that the open file is this handle's."""
        if not self.disk.held():
            self._regain()

    def _regain(self) -> None:
        """Another part of the program has closed the file's descriptor, or it could not be opened again after a fork.
        Open the file by its name, and lock what was locked. What was open is not closed: its number is another file's.
        """
        with self.mutex:
            if self.closed or self.disk.held():
                return
            try:
                self.disk.regain()
            except FileNotFoundError as exc:
                raise displaced(self.path) from exc
            except OSError as exc:
                raise unavailable(self.path, exc) from exc
            self.read, self.stamps = self.disk.read, iter(())
            writing = self.writer.is_current
            unchanged = self.read(STAMP_SIZE, STAMP_OFFSET) == self.stamp
            if not self.writer.regain() or (writing and not unchanged):
                self.writer.doubt()
                self._refuse(partial(overtaken, self.path))
            for txid in self.pins.locked:
                pin(self.disk, txid)
            if self.pins.locked and not unchanged:
                self._set_aside(min(self.pins.locked), INTERRUPTED, [])
        self.check()

    def _set_aside(self, txid: int, reason: str, readers: list[Reader]) -> None:
        """Readers of commit `txid` or a later one go on with the present pager, all others with a new one.

        `readers` are pinned as soon as one of them reads a page. Nothing is left in the memory of their pager, so that
        is when they first look something up, but for the few entries that stand in the meta page.
        """
        old, this = self.pager, weakref.ref(self)
        self.pager = old.successor()
        guard = Unpinned(
            old, self.disk, txid, readers, reason, partial(_adopt, this),
            lambda: 0 if (store := this()) is None else store.state.meta.txid,
        )  # fmt: skip
        self._set_aside_readers = [ref for ref in self._set_aside_readers if ref() is not None] + [weakref.ref(guard)]
        self.state = State.make(self.state.meta, self.state.slot, self.pager)

    # -- pins --------------------------------------------------------------------------------------

    def pin(self, reader: Reader, *, displaced: bool = False) -> State:
        """Pin the current state for `reader` and return it: its pages stay until `unpin`.

        If the file has lost its name, this raises `error`, unless `displaced` is true.
        """
        self.check()
        if held_here(self.mutex) or held_here(self.rows.lock):
            return self._pin_apart(reader)
        self.attend()
        if not displaced:
            self.check_name()
        try:
            return self._pin(reader)
        finally:
            self._released()

    def _pin(self, reader: Reader) -> State:
        with self.mutex:
            while True:
                self._drain()
                state = self.state
                txid = state.meta.txid
                fresh = txid and txid not in self.pins.locked
                if txid:
                    # Recorded before it is locked (see `threads`).
                    self.pins.add(reader, txid)
                # The lock must be there before the next commit but one can look for it: so look for commits afterwards.
                if fresh and not pin(self.disk, txid):
                    raise pin_refused(self.disk, txid)
                self._look_again()
                if self.state is state:
                    if fresh:
                        self.pins.locked.add(txid)
                    return state
                if txid:
                    self.pins.ended.append((reader, txid))

    def _pin_apart(self, reader: Reader) -> State:
        """Pin a state for a call that has interrupted its own thread amid the bookkeeping of pins.

        That is left alone: the pin is a lock of an open file of its own, which ends with it.
        """
        disk = reader.disk = self.disk.reopen()
        while True:
            # While changes are deferred no other handle commits, and they build on the state installed here.
            slots = None if self.writer.reserved else read_slots(disk)
            found = None if slots is None else visible(disk, slots)
            state = self.state if found is None else State.make(found.meta, found.slot, self.pager)
            txid = state.meta.txid
            if not txid:
                return state
            if not pin(disk, txid):
                raise pin_refused(disk, txid)
            if slots is None or read_slots(disk).metas == slots.metas:
                return state
            unpin(disk, txid)

    def hold(self) -> Hold:
        """Keep the pages of the current state. The writer lock must be held, so the file needs no lock for it."""
        with self.mutex:
            return Hold(self.pins, self.state.meta.txid, self.unpin_dropped)

    def unpin(self, reader: Reader) -> None:
        """End a `pin`, if it began. May be called at any moment, also by the garbage collector; it never waits."""
        if reader.disk is not None:
            reader.disk.close()
        if not reader.txid:
            return
        self.pins.ended.append((reader, reader.txid))
        reader.txid = 0
        self._released()

    def unpin_dropped(self, reader: Reader) -> None:
        """`unpin` in a finalizer. An interrupt would be lost there; the thread's next use of the handle raises it."""
        try:
            self.unpin(reader)
        except BaseException as exc:
            self._refusal = Late(exc, self._refusal)
            self.unpin(reader)  # its traceback would keep it, till it is raised

    def _released(self) -> None:
        """The mutex was let go of: see to what came in meanwhile from those who could not wait for it."""
        while self.pins.ended and not self.inside.holds_lock():
            try:
                try:
                    if self.mutex.acquire(blocking=False):
                        self._drain()
                finally:
                    self.mutex.release()  # the first thing in the `finally`: no interrupt comes before it
            except RuntimeError as exc:
                if is_from_handler(exc):
                    raise
                break  # another thread has it, and comes here, too
        if self.inside.postponed:
            self.inside.came_out()

    def _drain(self) -> None:
        """Release the locks of pins that have ended. The mutex must be held."""
        for txid in self.pins.drain():
            if not self.closed:
                unpin(self.disk, txid)

    def oldest_pin(self) -> Pins | None:
        """The oldest commit that any handle of any process has pinned."""
        if self.inside.holds_lock():
            return self.pins.oldest(self.disk)
        try:
            with self.mutex:
                self._drain()
                return self.pins.oldest(self.disk)
        finally:
            self._released()

    def oldest_txid(self) -> int | None:
        """The oldest commit that any handle of any process has pinned, or None."""
        pins = self.oldest_pin()
        return None if pins is None else pins.txid

    # -- ends --------------------------------------------------------------------------------------

    def successor(self) -> Disk | None:
        """The file that the name leads to, if it is another one by now.

        Before anything was committed here, a program that puts a database in place of the empty file may expect that it
        is used, and a file that was removed must not be written. Raises `FileNotFoundError` if it was.
        """
        return None if self.disk.linked() else self.volume.open(self.path, writable=not self.readonly)

    def go_on_with(self, successor: Disk) -> None:
        """Leave the empty file for its successor. The mutex must be held."""
        self._use(successor)
        self.file = self.inside.file = successor.identity()
        self.writer = WriterLock(self.file)

    def check(self) -> None:
        """Raise if the handle is not usable any more."""
        refused = None if self._refusal is None else self._refusal()
        if refused is not None and not (self.closed and isinstance(refused, error)):
            raise refused
        if self.closed:
            raise ClosedError
        if self.failure is not None:
            what = "an earlier write failed; close the handle and open the file again to see what is on the disk"
            raise error.because(self.failure, what, self.path) from self.failure

    def check_writable(self) -> None:
        """Raise if the handle may not write."""
        self.check()
        if self.readonly:
            raise ReadOnlyError(f"{self.path}: the database is opened for reading only")

    def poison(self, cause: BaseException) -> None:
        """After a failed write nothing may be assumed about the disk: the next open decides."""
        self.failure, self.phase = cause, Phase.POISONED

    def keep(self) -> None:
        """Keep the disk open until `close`: in a reference cycle it might be finalized before the handle is."""
        _kept.add(self.disk)

    def _use(self, disk: Disk) -> None:
        """Go on with another `Disk`: another file of the same name, or the same file after a fork."""
        old, self.disk = self.disk, disk
        if old in _kept:
            _kept.add(disk)
            _kept.discard(old)
        self.read, self.stamps = disk.read, iter(())
        self.pager.use(disk)
        old.close()

    def after_fork(self) -> None:
        """In a child process. The disk has become an open file of its own (see `disk`). The parent's threads keep their
        locks, so they are made anew here, and what the parent has pinned is pinned here when it is read.
        """
        if self.closed:
            return
        self._make_locks()
        self.writer.forget()
        self.writer = WriterLock(self.file)
        if self.phase is not Phase.POISONED:
            self.phase = Phase.IDLE
        self.unsynced = None
        # If the disk could not open the file again, `read` raises until `attend` does. So does the iterator of stamps.
        self.stamp, self.stamps, self.read = UNKNOWN_STAMP, iter(()), self.disk.read
        for reference in self._set_aside_readers:
            if (guard := reference()) is not None:
                guard.part()
        readers = self.pins.part()
        if readers:
            self._set_aside(min(reader.txid for reader in readers), INHERITED, readers)

    def close(self) -> None:
        """Release the file. No thread may be writing."""
        with self.mutex:
            self._drain()
            self.closed = True
            _kept.discard(self.disk)
            self.disk.close()
            self.read, self.stamps = self.disk.read, iter(())
            self.pager.clear()
            self.rows.clear()


def _mend(store: weakref.ref[Store], cause: error) -> bool:
    """As `Pager.mend`: open the file again if that is the matter, and raise what is wrong if more is known."""
    this = store()
    if this is None or this.closed:
        return False
    lost = not this.disk.held()
    this.refresh()
    return lost


def _adopt(store: weakref.ref[Store], readers: list[Reader]) -> None:
    """Pin what `readers` read, as far as they still read."""
    this = store()
    if this is None:
        raise ClosedError
    this.check()
    this.attend()
    with this.mutex:
        for reader in readers:
            this.pins.pin_again(this.disk, reader)
