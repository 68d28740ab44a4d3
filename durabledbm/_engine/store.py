"""The store: one open file, its current state, and who may read and write it.

What readers see of it is in `current`. Writers take turns: `begin` waits for the writer lock and makes sure that what
the file holds is on the disk, `commit` makes one commit, `end` lets the next writer in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import inf

from ..errors import BusyError, error
from .creation import initialise, random_bytes
from .current import NEVER, Current
from .locks import Turn
from .merge import Touch
from .meta import LOOK_OFFSET, LOOK_SIZE, META_SIZE, look_with, steady_copy
from .recovery import Slots, newest, read_slots
from .state import State
from .work import Work

__all__ = ["Store"]

_LARGE = 256
"""A commit of more pages looks whether it has left the file much larger than it must be."""

_PATIENCE = 4
"""How many commits that move pages may fail to make the file smaller before it is left as it is."""


class Store(Current):
    """One open database file. Everything but writing may be done by any thread at any time."""

    def begin(self, turn: Turn, timeout: float | None) -> State:
        """Take the writer lock and return the newest state, known to be on the disk. `turn.end()` lets go of it.

        Waits at most `timeout` seconds, then raises `BusyError`.
        """
        self.check_writable()
        self.inside.check_file()
        try:
            self.writer.acquire(turn, self.disk, timeout)
        except OSError:
            if self.closed or self.disk.held():
                raise
            self.attend()
            self.writer.acquire(turn, self.disk, timeout)
        try:
            self.check_writable()
            if not self.writer.writing or self.underway:
                if not self.state.meta.txid and (successor := self._successor()) is not None:
                    turn.end()
                    with self.mutex:
                        self._go_on_with(successor)
                    return self.begin(turn, timeout)
                self.settle()
            self.check_name()
        except BaseException as exc:
            turn.end()
            if isinstance(exc, OSError):
                raise error.wrap(exc, self.path) from exc
            raise
        return self.state

    def initialise(self) -> None:
        """Make the file, which was just created, a database. If somebody else holds the writer lock, they do it.

        If that fails the file is removed again. Others may have opened it meanwhile: they find out before they write.
        """
        turn = Turn()
        try:
            self.inside.check_file()
            self.writer.acquire(turn, self.disk, 0.0)
            self.settle()
        except BusyError:
            pass
        except BaseException:
            if read_slots(self.disk).uninitialised:
                self._volume.remove(self.path)
            raise
        finally:
            turn.end()

    def settle(self) -> None:
        """Make sure that the newest commit in the file is on the disk, whoever made it and however it ended.

        The writer lock must be held. Afterwards the state is the newest, and stays so until the lock is let go.
        """
        with self._committing, self.mutex:
            if self.underway:
                self._give_up(error("interrupted"))
                self.check()
            if not self._settled or self.read(LOOK_SIZE, LOOK_OFFSET) != self.look:
                self._settle()
            self.lost = self.underway = False
            self.writer.writing = True

    def _settle(self) -> None:
        slots = self._initialised()
        meta, slot = newest(self.disk, slots)
        self._compare(slots)
        look = slots.look or self.read(LOOK_SIZE, LOOK_OFFSET)
        first, second = slots.metas
        twins = first is not None and second is not None and first.txid == second.txid
        if not (twins and (first.steady or second.steady)):  # type: ignore[union-attr]
            # It may be in memory only; after a sync that failed unseen, it may even never reach the disk. What the
            # medium holds is what counts.
            self._sync()
            self.disk.forget()
            self.pager.clear()
            slots = self._initialised()
            meta, slot = newest(self.disk, slots)
            look, other = slots.look or self.read(LOOK_SIZE, LOOK_OFFSET), slots.metas[1 - slot]
            if other is None or other.txid > meta.txid:
                # A commit stands there of which something is missing. What is written from now on, even half of it,
                # could complete it, so nothing of it may be left: noise agrees with no sector of anything.
                self.disk.write((1 - slot) * META_SIZE, (random_bytes(META_SIZE),))
                self._sync()
            page = steady_copy(self.read(META_SIZE, slot * META_SIZE))
            self.disk.write((1 - slot) * META_SIZE, (page,))
            look = look_with(look, 1 - slot, page)
        if meta.txid != self.state.meta.txid or slot != self.state.slot:
            self._install(State.make(meta, slot, self.pager), None)
        self.look = look
        self.committer.settled(meta)
        self._settled = True

    def _initialised(self) -> Slots:
        """The two slots, of a file that is a database afterwards."""
        slots = read_slots(self.disk)
        if slots.uninitialised:
            if self.state.meta.txid > 1:
                raise self._replaced()  # emptied: what was committed must not seem undone
            initialise(self._volume, self.disk, self._page_size)
            slots = read_slots(self.disk)
            self._load_from(slots)
        elif not self.state.meta.txid:
            self._load_from(slots)
        return slots

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
        if written > _LARGE and sync and shrink and self.committer.leaves_waste(written):
            state = self.shrink(2 * written, 0 if self.committer.has_shrunk else written)
        return state

    def shrink(self, budget: int, room: int = 0, *, seconds: float = inf) -> State:
        """After commits that left much of the file free, move what stands at its end, about `budget` runs at most.

        Small commits do this on their way; a large one would leave a large file behind it. `room` pages may stay free.
        """
        smallest, patience = self.state.meta.page_count, _PATIENCE
        deadline = time.monotonic() + seconds
        while budget > 0 and patience and time.monotonic() < deadline:
            touches = self.committer.to_move(self.state, self.oldest_txid(), budget, room)
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
        observer, before = self.observer, self.state
        if observer is not None:
            observer.expect()
        with self._committing:
            self.committer.note_synced(self.state.meta)
            if self.underway:
                raise error(f"{self.path}: an earlier commit was interrupted; this one was to build on it")
            self.underway = True
            try:
                self.check_place()
                state = step()
                self._publish(state, changes)
                self.underway = False
            except BaseException as exc:
                with self.mutex:
                    self._give_up(exc)
                if isinstance(exc, OSError):
                    raise error.wrap(exc, self.path) from exc
                raise
        if observer is not None:
            observer.committed(before, changes)
        self.check_name()  # what nobody will find is not acknowledged
        return state

    def check_place(self) -> None:
        """Raise if something that knows no locks has written to the file since this handle has the writer lock: pages
        that are free here may be in use there.
        """
        try:
            same = self.read(LOOK_SIZE, LOOK_OFFSET) == self.look
        except OSError as exc:
            if not self.may_pass(exc):
                raise
            same = False
        if not same:
            if self.disk.held():
                raise self._replaced()
            self.attend()

    def _publish(self, state: State, changes: Mapping[bytes, object] | None) -> None:
        """Show the commit to all at once: other processes see what is written here, threads of this one what is
        installed. Were this interrupted, whoever looks would find out from the file what there is.
        """
        with self.mutex:
            look = self.look
            self.writer.writing, self.look = False, NEVER
            for slot, page in self.committer.publish(state):
                look = look_with(look, slot, page)
            self._install(state, changes)
            if self.read(LOOK_SIZE, LOOK_OFFSET) != look:
                raise self._replaced()
            self.look = look
            self.writer.writing = True

    def _give_up(self, cause: BaseException) -> None:
        """A commit was given up half-way. What it did is found out, from the file, before the next one."""
        committer = self.committer
        self.writer.writing, self._settled, self.look = False, False, NEVER
        self.lost = self.lost or committer.is_loose
        if committer.sync_failed or (committer.in_doubt and isinstance(cause, OSError)):
            self.poison(cause)
        committer.give_up()

    @property
    def unsynced(self) -> bool:
        """Whether something that was committed here may not be on the disk."""
        return self.underway or (self.committer.is_loose and self.committer.synced_txid < self.state.meta.txid)

    def sync_file(self) -> None:
        """Sync what was committed here, waiting for no other writer: the writer lock need not be held.

        That is all that a relaxed commit lacks to survive anything. Its meta is not marked steady by this, which
        `harden` does, so whoever writes next verifies it once more, or syncs again.
        """
        self.attend()
        txid = self.state.meta.txid
        self._sync()
        self.check_name()
        self.committer.synced_txid = max(self.committer.synced_txid, txid)

    def harden(self) -> None:
        """Sync what was committed with `sync=False`. The writer lock must be held."""
        if self.committer.is_loose:
            self.guarded(lambda: self._hardened(self.state), {})

    def _hardened(self, state: State) -> State:
        self.committer.harden(state)
        return state
