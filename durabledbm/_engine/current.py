"""The current state of one open file, and who reads it.

Readers take the current state and need nobody's leave. `current` notices commits of other processes by one small read.
A look-up that is overtaken, because its pages were reused before it read them, finds that out by their checksums and is
tried again on the newer state; whoever reads for longer pins the state first (see `locks`). `Store` adds writing.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping

from ..errors import ClosedError, CorruptionError, ReadOnlyError, error
from .commit import Committer
from .disk import Disk, Volume
from .locks import WriterLock, pin, unpin, writer_present
from .meta import LOOK_OFFSET, LOOK_SIZE, Meta, first_page
from .node import Overflow
from .observer import Observer
from .pager import Pager
from .pins import Pins, PinTable, Reader
from .recovery import Slots, newest, read_slots, visible
from .reentry import Inside, held_here
from .rows import RowCache
from .state import State

__all__ = ["NEVER", "Current", "Hold"]

NEVER = b"never"
"""A look that no read can equal: the file must be asked."""

_FORESEEN = 1000
"""Commits with more changes than this empty the row cache instead of being taken out of it one by one."""


_ROW_RARITY = 4
"""One look-up in so many puts what it found into the row cache, once that is full. What is asked for often gets there
soon enough, and what is asked for once does not push out the rest."""


_kept: set[Disk] = set()
"""The disks of open handles."""


class Hold:
    """Keeps the pages of a handle's current state from being reused by the handle's own commits, while it exists."""

    __slots__ = ("_reader", "_store")

    def __init__(self, store: Current) -> None:
        self._reader = Reader()
        self._store = store
        store.pins.add(self._reader, store.state.meta.txid)

    def __del__(self) -> None:
        if hasattr(self, "_store"):
            self._store.unpin(self._reader)


class Current:
    """One open database file, as readers see it. Any thread may call anything here at any time, but `close`."""

    def __init__(self, volume: Volume, disk: Disk, *, page_size: int, cache_size: int) -> None:
        self._volume = volume
        self._page_size = page_size
        self.disk = disk
        self.path = disk.path
        self.readonly = not disk.writable
        self.file = disk.identity()
        self.inside = Inside(disk.path, self.file)
        self.rows = RowCache(cache_size // 2)
        self._make_locks()
        self.writer = WriterLock(self.file)
        self.pins = PinTable()
        self.failure: BaseException | None = None
        self.closed = False
        self.lost = False
        """Acknowledged commits, not synced yet when a write failed, may be gone."""
        self.underway = False
        """A commit was begun, and what became of it is not known yet."""
        self.observer: Observer | None = None
        self._fetched = 0
        self.hits = 0
        """Look-ups that found all pages in memory, about."""
        self._settled = False
        self._forked = False
        self._doubtful = NEVER
        """The look of a commit that is written, not yet synced: it is not shown till it is, or its writer is gone."""
        self._cache_size = cache_size - cache_size // 2
        self.read = disk.read
        self.look = NEVER
        self.pager = Pager(disk, page_size, self._cache_size)
        self.state = self._uninitialised()
        self._load()
        self.committer = Committer(disk, self.pager)

    def _make_locks(self) -> None:
        self.mutex = threading.RLock()
        self._committing = threading.RLock()
        """Held while a commit is under way; so if one is when nobody holds this, it was interrupted."""
        self.rows.lock = threading.RLock()
        self.inside.locks = self.mutex, self._committing, self.rows.lock

    # -- the current state -------------------------------------------------------------------------

    def current(self) -> State:
        """The newest commit of any process."""
        if self.read(LOOK_SIZE, LOOK_OFFSET) != self.look:
            self.refresh()
        return self.state

    def refresh(self) -> State:
        """Look again for newer commits. While this handle writes, nobody else can have committed."""
        self.check()
        if self.inside.holds_lock():
            return self.state  # the newest that is installed: this call has interrupted one that was looking
        if self._forked:
            self._reopen()
        try:
            with self.mutex:
                self._drain()
                if not self.writer.writing:
                    self._refresh()
                return self.state
        finally:
            self._released()

    def _refresh(self) -> None:
        if not self.state.meta.txid and (successor := self._successor()) is not None:
            self._go_on_with(successor)
        look = self.read(LOOK_SIZE, LOOK_OFFSET)
        if look == self.look or (look == self._doubtful and writer_present(self.disk)):
            return
        slots = read_slots(self.disk)
        if slots.uninitialised:
            self.check_not_emptied()
            return
        found = visible(self.disk, slots)
        if found is None:
            newest(self.disk, slots)  # says what is wrong
            return
        meta, slot, certain = found
        if meta.database_id != self.state.meta.database_id:
            if self.state.meta.txid:
                raise CorruptionError("the file was replaced by another database while it was open", path=self.path)
            self._load_from(slots)
            return
        if meta.txid > self.state.meta.txid:
            self._settled = False
            self._install(State.make(meta, slot, self.pager), None)
        self.look, self._doubtful = (slots.look, NEVER) if certain else (NEVER, slots.look)

    def _load(self) -> None:
        """Decide what the file holds, when it is opened."""
        for _ in range(100):
            slots = read_slots(self.disk)
            if slots.uninitialised:
                return
            try:
                self._load_from(slots)
            except CorruptionError:
                if read_slots(self.disk).metas == slots.metas:
                    raise
                continue  # a writer was faster: what it overwrote meanwhile was not missing
            return
        raise error(f"{self.path}: the file changes too fast to be read")

    def _load_from(self, slots: Slots) -> None:
        found = visible(self.disk, slots)
        if found is not None and not found.certain:
            meta, slot = found.meta, found.slot
            self.look, self._doubtful = NEVER, slots.look
        else:
            meta, slot = newest(self.disk, slots)
            self.look = slots.look
        if meta.page_size != self.pager.page_size:
            self.pager = Pager(self.disk, meta.page_size, self._cache_size)
            if hasattr(self, "committer"):
                self.committer = Committer(self.disk, self.pager)
        self._install(State.make(meta, slot, self.pager), None)

    def check_not_emptied(self) -> None:
        """Raise if there was a database in the file, which has none now: what was committed must not seem undone."""
        if self.state.meta.txid:
            raise CorruptionError("the file was emptied while it was open", path=self.path)

    def _uninitialised(self) -> State:
        """The state of a file that was not initialised yet."""
        meta = Meta(0, self._page_size, bytes(16), first_page(self._page_size))
        return State.make(meta, 0, self.pager)

    def _install(self, state: State, changes: Mapping[bytes, object] | None) -> None:
        """Make `state` current. What it changes leaves the row cache first, and nobody may put it back meanwhile."""
        old = self.state.meta
        with self.rows.lock:
            if changes is None and state.meta.root == old.root and state.meta.txid > old.txid > 0:
                changes = {**old.changes, **state.meta.changes}
            if changes is None or len(changes) > _FORESEEN:
                self.rows.clear()
            else:
                self.rows.drop(changes)
            self.state = state

    def fetch(self, key: bytes) -> bytes | None:
        """The value of `key` in the current state, or None. If it is asked for often, it becomes a row.

        Raises `error` also if the pages of that state have been reused meanwhile: then there is a newer one.
        """
        state = self.state
        rows = self.rows
        value = rows.aged.get(key)
        if value is not None and self.state is state:
            self._keep_row(state, key, value)
            return value
        view = state.view
        for layer in view.layers:
            if key in layer:
                return layer[key]
        pager = self.pager
        misses = pager.misses
        value = view.tree.find(key)
        if pager.misses == misses:
            self.hits += 1
        if type(value) is Overflow:
            return pager.value(value)
        self._fetched += 1
        if value is not None and not (rows.aged and self._fetched % _ROW_RARITY):
            self._keep_row(state, key, value)
        return value

    def lookup(self, key: bytes) -> bytes | None:
        """The same, of a key that may be a row already."""
        return self.rows.young.get(key) or self.fetch(key)

    def _keep_row(self, state: State, key: bytes, value: bytes) -> None:
        if held_here(self.rows.lock):
            return  # interrupted while it was put in order
        with self.rows.lock:
            if self.state is state:  # else a commit may just have taken out what would be put in
                self.rows.keep(key, value)

    # -- pins --------------------------------------------------------------------------------------

    def pin(self, reader: Reader) -> State:
        """Pin the current state for `reader` and return it: its pages stay until `unpin`."""
        self.check()
        if held_here(self.mutex) or held_here(self.rows.lock):
            return self._pin_apart(reader)
        if self._forked:
            self._reopen()
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
                    # What is pinned is noted first: then an interrupt leaves no lock of which nobody knows.
                    self.pins.add(reader, txid)
                # The lock must be there before the next commit but one can look for it: so look for commits afterwards.
                if fresh and not pin(self.disk, txid):
                    raise error(errno.ENOLCK, "the file system refuses locks", self.path)
                if not self.writer.writing:
                    self._refresh()
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
            # While something is pending nobody else commits, and what is pending builds on the state installed here.
            slots = None if self.writer.reserved else read_slots(disk)
            found = None if slots is None else visible(disk, slots)
            state = self.state if found is None else State.make(found.meta, found.slot, self.pager)
            txid = state.meta.txid
            if not txid:
                return state
            if not pin(disk, txid):
                raise error(errno.ENOLCK, "the file system refuses locks", self.path)
            if slots is None or read_slots(disk).metas == slots.metas:
                return state
            unpin(disk, txid)

    def hold(self) -> Hold:
        """Keep the pages of the current state. The writer lock must be held, so the file needs no lock for it."""
        with self.mutex:
            return Hold(self)

    def unpin(self, reader: Reader) -> None:
        """End a `pin`, if it began. May be called at any moment, also by the garbage collector; it never waits."""
        if reader.disk is not None:
            reader.disk.close()
        if not reader.txid:
            return
        self.pins.ended.append((reader, reader.txid))
        self._released()

    def _released(self) -> None:
        """The mutex was let go of: see to what came in meanwhile from those who could not wait for it."""
        while self.pins.ended and not self.inside.holds_lock():
            try:
                try:
                    if self.mutex.acquire(blocking=False):
                        self._drain()
                finally:
                    self.mutex.release()  # the first thing in the `finally`: no interrupt comes before it
            except RuntimeError:
                break  # it was not to be had: whoever has it comes here, too
        if self.inside.postponed:
            self.inside.came_out()

    def _drain(self) -> None:
        """Release the locks of pins that have ended. The mutex must be held."""
        for txid in self.pins.drain():
            if not self.closed and not self._forked:
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

    def _successor(self) -> Disk | None:
        """The file that the name leads to, if it is another one by now.

        Before anything was committed here, whoever puts a database in place of the empty file may expect that it is
        used, and a file that was removed must not be written. Raises `FileNotFoundError` if it was.
        """
        return None if self.disk.linked() else self._volume.open(self.path, writable=not self.readonly)

    def _go_on_with(self, successor: Disk) -> None:
        """Leave the empty file for its successor. The mutex must be held."""
        self._use(successor)
        self.file = self.inside.file = successor.identity()
        self.writer = WriterLock(self.file)

    def check(self) -> None:
        """Raise if the handle is not usable any more."""
        if self.closed:
            raise ClosedError
        if self.failure is not None:
            raise error(
                f"{self.path}: an earlier write failed ({self.failure}), so it is not known what is on the disk; "
                "close the handle and open the file again"
            ) from self.failure

    def check_writable(self) -> None:
        """Raise if the handle may not write."""
        self.check()
        if self.readonly:
            raise ReadOnlyError("The database is opened for reading only")

    def poison(self, cause: BaseException) -> None:
        """After a failed write nothing may be assumed about the disk: the next open decides."""
        self.failure = cause

    def keep(self) -> None:
        """Keep the disk open until `close`, whatever the garbage collector does. In a reference cycle it would
        finalize the disk before the handle, which may have something left to write to it.
        """
        _kept.add(self.disk)

    def _use(self, disk: Disk) -> None:
        """Go on with another `Disk`: another file of the same name, or the same file after a fork."""
        old, self.disk = self.disk, disk
        if old in _kept:
            _kept.add(disk)
            _kept.discard(old)
        self.read = disk.read
        self.pager.use(disk)
        if hasattr(self, "committer"):
            self.committer.disk = disk
        old.close()

    def after_fork(self) -> None:
        """In a child process: stop sharing the parent's open file, whose locks would be shared too.

        The file is opened again when it is first used, or now if something is pinned. Locks that other threads of the
        parent held at that moment have nobody to release them here, so they are made anew.
        """
        if self.closed:
            return
        self._make_locks()
        self.writer.forget()
        self.writer = WriterLock(self.file)
        self._settled = self.underway = False
        self._forked = True
        self.look = NEVER
        self.read = self._read_reopened
        self.committer.give_up()
        if self.pins.readers:
            self._reopen()

    def _reopen(self) -> None:
        with self.mutex:
            if self._forked:
                self._use(self.disk.reopen())
                self._forked = False
                for txid in self.pins.readers:
                    pin(self.disk, txid)

    def _read_reopened(self, length: int, offset: int) -> bytes:
        self._reopen()
        return self.disk.read(length, offset)

    def close(self) -> None:
        """Release the file. No thread may be writing."""
        with self.mutex:
            self._drain()
            self.closed = True
            _kept.discard(self.disk)
            self.disk.close()
            self.read = self.disk.read
            self.pager.clear()
            self.rows.clear()
