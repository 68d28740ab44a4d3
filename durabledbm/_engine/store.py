"""The store: one open file, its current state, and who may read and write it.

Readers take the current state and need nobody's leave. `current` notices commits of other processes by one small read.
A look-up that is overtaken, because its pages were reused before it read them, finds that out by their checksums and is
tried again on the newer state; whoever reads for longer pins the state first (see `locks`).

Writers take turns: `begin` waits for the writer lock and makes sure that what the file holds is on the disk,
`commit` makes one commit, `end` lets the next writer in.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping
from secrets import token_bytes

from ..errors import ClosedError, CorruptionError, ReadOnlyError, error
from .commit import Committer
from .creation import initialise, replace
from .disk import Disk, Volume
from .locks import WriterLock, pin, unpin, writer_present
from .merge import Touch
from .meta import LOOK_OFFSET, LOOK_SIZE, META_SIZE, Meta, first_page, steady_copy
from .observer import Observer
from .pager import Pager
from .pins import Pins, PinTable
from .recovery import Slots, newest, read_slots, visible
from .rows import RowCache
from .state import State
from .work import Work

__all__ = ["Store"]

_DEFAULT_MODE = 0o666
_NEVER = b""
_LARGE = 256
"""A commit of more pages looks whether it has left the file much larger than it must be."""

_PATIENCE = 4
"""How many commits that move pages may fail to make the file smaller before it is left as it is."""

_FORESEEN = 1000
"""Commits with more changes than this empty the row cache instead of being taken out of it one by one."""


class Store:
    """One open database file. Everything but `begin`, `commit` and `end` may be called by any thread at any time."""

    def __init__(self, volume: Volume, disk: Disk, *, page_size: int, cache_size: int) -> None:
        self._volume = volume
        self._page_size = page_size
        self.disk = disk
        self.path = disk.path
        self.readonly = not disk.writable
        self.mutex = threading.Lock()
        self.file = disk.identity()
        self.writer = WriterLock(self.file)
        self.pins = PinTable()
        self.rows = RowCache(cache_size // 4)
        self.failure: BaseException | None = None
        self.closed = False
        self.lost = False
        """Acknowledged commits, not synced yet when a write failed, may be gone."""
        self.writing = False
        """This handle has the writer lock, and its state is the newest: there is no need to look for commits."""
        self.observer: Observer | None = None
        self._settled = False
        self._forked = False
        self._doubtful = _NEVER
        """The look of a commit that is written, not yet synced: it is not shown till it is, or its writer is gone."""
        self._cache_size = cache_size - cache_size // 4
        self.read = disk.read
        self.look = _NEVER
        self.pager = Pager(disk, page_size, self._cache_size)
        self.state = self._unborn()
        self._load()
        self.committer = Committer(disk, self.pager)

    # -- the current state -------------------------------------------------------------------------

    def current(self) -> State:
        """The newest commit of any process."""
        if self.read(LOOK_SIZE, LOOK_OFFSET) != self.look or not self.look:
            self.refresh()
        return self.state

    def refresh(self) -> State:
        """Look again for newer commits. While this handle writes, nobody else can have committed."""
        self.check()
        if self._forked:
            self._reopen()
        with self.mutex:
            self._drain()
            if not self.writing:
                self._refresh()
            return self.state

    def _refresh(self) -> None:
        if not self.state.meta.txid and not self.disk.linked():
            self._use(self._volume.open(self.path, writable=not self.readonly))
            self.file = self.disk.identity()
            self.writer = WriterLock(self.file)
        look = self.read(LOOK_SIZE, LOOK_OFFSET)
        if look == self.look or (look == self._doubtful and writer_present(self.disk)):
            return
        slots = read_slots(self.disk)
        if not slots.size:
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
        self.look, self._doubtful = (slots.look, _NEVER) if certain else (_NEVER, slots.look)

    def _load(self) -> None:
        """Decide what the file holds, when it is opened."""
        for _ in range(100):
            slots = read_slots(self.disk)
            if not slots.size:
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
            self.look, self._doubtful = _NEVER, slots.look
        else:
            meta, slot = newest(self.disk, slots)
            self.look = slots.look
        if meta.page_size != self.pager.page_size:
            self.pager = Pager(self.disk, meta.page_size, self._cache_size)
            if hasattr(self, "committer"):
                self.committer = Committer(self.disk, self.pager)
        self._install(State.make(meta, slot, self.pager), None)

    def _unborn(self) -> State:
        """The state of a file of 0 bytes."""
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

    def remember(self, state: State, key: bytes, value: bytes) -> None:
        """Put a row that was read from `state` into the row cache, if that is still the current state."""
        rows = self.rows
        with rows.lock:
            if self.state is state:
                rows.keep(key, value)

    # -- pins --------------------------------------------------------------------------------------

    def pin(self) -> State:
        """Pin the current state and return it: its pages stay until `unpin`."""
        self.check()
        if self._forked:
            self._reopen()
        with self.mutex:
            self._drain()
            while True:
                if not self.writing:
                    self._refresh()
                state = self.state
                txid = state.meta.txid
                if not txid or txid in self.pins.counts:
                    break
                # The lock must be there before the next commit but one can look for it: so look again afterwards.
                if not pin(self.disk, txid):
                    raise error(errno.ENOLCK, "the file system refuses locks", self.path)
                if not self.writing:
                    self._refresh()
                if self.state is state:
                    break
                unpin(self.disk, txid)
            if txid:
                self.pins.add(txid)
            return state

    def unpin(self, state: State) -> None:
        """End a `pin`. May be called at any moment, also by the garbage collector in a thread that has the mutex."""
        self.pins.ended.append(state.meta.txid)
        if self.mutex.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self.mutex.release()

    def _drain(self) -> None:
        """Release the locks of pins that have ended. The mutex must be held."""
        for txid in self.pins.drain():
            if not self.closed and not self._forked:
                unpin(self.disk, txid)

    def oldest_pin(self) -> Pins | None:
        """The oldest commit that any handle of any process has pinned."""
        with self.mutex:
            self._drain()
            return self.pins.oldest(self.disk)

    def oldest_txid(self) -> int | None:
        """The oldest commit that any handle of any process has pinned, or None."""
        pins = self.oldest_pin()
        return None if pins is None else pins.txid

    # -- writing -----------------------------------------------------------------------------------

    def begin(self, timeout: float | None) -> State:
        """Take the writer lock and return the newest state, known to be on the disk.

        Waits at most `timeout` seconds, then raises `BusyError`.
        """
        self.check_writable()
        if self._forked:
            self._reopen()
        self.writer.acquire(self.disk, timeout)
        try:
            self.check_writable()
            if self.writing:
                return self.state
            if not self.state.meta.txid and not self._born():
                self.writer.release(self.disk)
                self._follow()
                return self.begin(timeout)
            with self.mutex:
                if not self._settled or self.read(LOOK_SIZE, LOOK_OFFSET) != self.look:
                    self._settle()
                self.writing = True
        except OSError as exc:
            self.end()
            raise error.wrap(exc, self.path) from exc
        except BaseException:
            self.end()
            raise
        return self.state

    def _born(self) -> bool:
        """Make a file of 0 bytes a database; False if the name leads to another file now, which is to be used."""
        if not self.disk.size():
            if not self.disk.linked():
                return False
            try:
                replace(self._volume, self.path, _DEFAULT_MODE, self._page_size)
                return False
            except PermissionError:
                initialise(self.disk, self._page_size)
        with self.mutex:
            self._load_from(read_slots(self.disk))
        return True

    def _follow(self) -> None:
        """Go on with the file that has the name now."""
        with self.mutex:
            self._use(self._volume.open(self.path, writable=True))
            self.file = self.disk.identity()
            self.writer = WriterLock(self.file)
            self._load_from(read_slots(self.disk))

    def _settle(self) -> None:
        """Make sure that the newest commit in the file is on the disk, whoever made it and however it ended."""
        slots = read_slots(self.disk)
        meta, slot = newest(self.disk, slots)
        first, second = slots.metas
        twins = first is not None and second is not None and first.txid == second.txid
        if not (twins and (first.steady or second.steady)):  # type: ignore[union-attr]
            # It may be in memory only; after a sync that failed unseen, it may even never reach the disk. What the
            # medium holds is what counts.
            self._sync()
            self.disk.forget()
            self.pager.clear()
            slots = read_slots(self.disk)
            meta, slot = newest(self.disk, slots)
            other = slots.metas[1 - slot]
            if other is None or other.txid > meta.txid:
                # A commit stands there of which something is missing. What is written from now on, even half of it,
                # could complete it, so nothing of it may be left: noise agrees with no sector of anything.
                self.disk.write((1 - slot) * META_SIZE, (token_bytes(META_SIZE),))
                self._sync()
            page = self.read(META_SIZE, slot * META_SIZE)
            self.disk.write((1 - slot) * META_SIZE, (steady_copy(page),))
        if self.state.meta.txid and meta.database_id != self.state.meta.database_id:
            raise CorruptionError("the file was replaced by another database while it was open", path=self.path)
        if meta.txid != self.state.meta.txid or slot != self.state.slot:
            self._install(State.make(meta, slot, self.pager), None)
        self.look = self.read(LOOK_SIZE, LOOK_OFFSET)
        self.committer.settled(meta)
        self._settled = True

    def _sync(self) -> None:
        try:
            self.committer.sync()
        except OSError as exc:
            self.poison(exc)
            raise

    def commit(self, work: Work, *, sync: bool = True, shrink: bool = True) -> State:
        """Commit the changes of `work` on top of the current state. The writer lock must be held.

        After a large commit, unless `shrink` is false, more commits may follow that give back space.
        """
        changes, cleared = work.changes(), work.cleared
        if not changes and not cleared:
            return self.state
        if self.observer is not None:
            self.observer.admit(changes)
        before = self.committer.pages_written
        state = self.guarded(
            lambda: self.committer.commit(
                self.state, changes, pinned=self.oldest_txid, sync=sync, cleared=cleared
            ),
            None if cleared else changes,
        )
        written = self.committer.pages_written - before
        if written > _LARGE and sync and shrink:
            state = self.shrink(2 * written)
        return state

    def shrink(self, budget: int) -> State:
        """After commits that left much of the file free, move what stands at its end, about `budget` runs at most.

        Small commits do this on their way; a large one would leave a large file behind it.
        """
        smallest, patience = self.state.meta.page_count, _PATIENCE
        while budget > 0 and patience:
            touches = self.committer.to_move(self.state, self.oldest_txid(), budget)
            if touches is None:
                break
            budget -= len(touches) + 1
            if self.rewrite(touches, packing=False).meta.page_count < smallest:
                smallest, patience = self.state.meta.page_count, _PATIENCE
            else:
                patience -= 1
        return self.state

    def rewrite(self, touches: Mapping[bytes, Touch], *, packing: bool) -> State:
        """Commit the same content in other pages (see `Committer.rewrite`)."""
        return self.guarded(
            lambda: self.committer.rewrite(self.state, touches, pinned=self.oldest_txid, packing=packing), {}
        )

    def guarded(self, step: Callable[[], State], changes: Mapping[bytes, object] | None) -> State:
        """Run a step that makes a commit, and make its result current. Whatever it raises leaves the handle sound."""
        assert self.writer.kept
        self.check()
        try:
            state = step()
            with self.mutex:
                # Nobody sees the commit sooner or later than others: other processes by what is written here, threads
                # of this one by what is installed.
                self.committer.publish(state)
                self._install(state, changes)
                self.look = self.read(LOOK_SIZE, LOOK_OFFSET)
        except BaseException as exc:
            self._failed(exc)
            if isinstance(exc, OSError):
                raise error.wrap(exc, self.path) from exc
            raise
        if self.observer is not None:
            self.observer.committed(changes)
        return state

    def _failed(self, cause: BaseException) -> None:
        """A commit was given up half-way. What it did is found out, from the file, before the next one."""
        committer = self.committer
        self.lost = self.lost or committer.is_loose
        if committer.sync_failed or (committer.in_doubt and isinstance(cause, OSError)):
            self.poison(cause)
        with self.mutex:
            self._settled = False
            self.writing = False
            self.look = _NEVER
        committer.give_up()

    def harden(self) -> None:
        """Sync what was committed with `sync=False`. The writer lock must be held."""
        if self.committer.is_loose:
            self.guarded(lambda: self._hardened(self.state), {})

    def _hardened(self, state: State) -> State:
        self.committer.harden(state)
        return state

    def end(self, *, keep: bool = False) -> None:
        """Let the next writer in; with `keep`, only writers of this handle."""
        if not keep:
            with self.mutex:
                self.writing = False
        self.writer.release(self.disk, keep=keep and self.writing)

    # -- ends --------------------------------------------------------------------------------------

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

    def _use(self, disk: Disk) -> None:
        """Go on with another `Disk`: another file of the same name, or the same file after a fork."""
        self.disk.close()
        self.disk = disk
        self.read = disk.read
        self.pager.use(disk)
        if hasattr(self, "committer"):
            self.committer.disk = disk

    def after_fork(self) -> None:
        """In a child process: stop sharing the parent's open file, whose locks would be shared too.

        The file is opened again when it is first used, or now if something is pinned. Locks that other threads of the
        parent held at that moment have nobody to release them here, so they are made anew.
        """
        if self.closed:
            return
        self.mutex = threading.Lock()
        self.rows.lock = threading.Lock()
        self.writer = WriterLock(self.file)
        self._settled = self.writing = False
        self._forked = True
        self.look = _NEVER
        self.read = self._read_reopened
        self.committer.give_up()
        if self.pins.counts:
            self._reopen()

    def _reopen(self) -> None:
        with self.mutex:
            if self._forked:
                self._use(self.disk.reopen())
                self._forked = False
                for txid in self.pins.counts:
                    pin(self.disk, txid)

    def _read_reopened(self, length: int, offset: int) -> bytes:
        self._reopen()
        return self.disk.read(length, offset)

    def close(self) -> None:
        """Release the file. No thread may be writing."""
        with self.mutex:
            self.closed = True
            self.disk.close()
            self.read = self.disk.read
            self.pager.clear()
            self.rows.clear()
