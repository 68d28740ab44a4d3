"""The two locks of a database file, both kept by the kernel, so that a killed process leaves nothing behind.

The *writer lock* is one byte, held by whoever writes, threads and processes alike. A second byte is the gate in front
of it: a writer passes the gate before it waits for the lock, so one that has just released the lock and wants it again
queues behind the one that already waits there, and nobody starves.

A *pin* is a shared lock on the byte that belongs to a txid: some snapshot still reads that commit. The bytes lie beyond
every possible end of the file. The writer asks for the lowest one: what was freed by later commits must stay.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial

from ..errors import BusyError, error
from .disk import Disk, LockOwner
from .patience import Patience

__all__ = [
    "FairLock", "Turn", "WriterLock", "forget_owners", "locks_work", "oldest_pin", "pin", "pin_refused",
    "someone_waits", "unpin", "writer_present",
]  # fmt: skip

_TEST = (1 << 62) - 3
_WRITER = (1 << 62) - 2
_GATE = (1 << 62) - 1
_PINS = 1 << 62
_PINS_END = (1 << 63) - 1

_FIRST_NAP = 20e-6
_LONGEST_NAP = 2e-3

_LOOK = 0.2
"""Seconds after which a thread that waits for its turn looks by itself whether it has come."""

_proved: set[int] = set()
"""The devices whose locks have been seen to work."""


def locks_work(disk: Disk) -> bool:
    """Whether locks keep two open files apart where this file is: some network file systems refuse, some pretend.

    Found out once for each device and process, by locking a byte of this very file that is used for nothing else, and
    trying to lock it through another open file. Locks that hold on this machine but not on others, as on NFS mounted
    with `nolock` or `local_lock`, cannot be told from good ones. Raises `BusyError` if this process's own guard is in
    the way.
    """
    try:
        _check_guard(disk, _TEST)
    except BusyError:
        raise
    except OSError:
        return False  # it does not even know the question
    device = disk.identity()[0]
    if device in _proved:
        return True
    try:
        twin = disk.reopen()
    except OSError:
        return True  # removed or replaced meanwhile: not for us to say
    try:
        if disk.lock(_TEST, exclusive=True):
            try:
                if twin.lock(_TEST, exclusive=True) or twin.lowest_lock(_TEST, _TEST + 1) is None:
                    return False
            finally:
                disk.unlock(_TEST)
        _proved.add(device)  # if the byte was locked, somebody else is trying the same: so locks work
        return True
    except OSError:
        return False
    finally:
        twin.close()


def pin(disk: Disk, txid: int) -> bool:
    """Keep the pages of commit `txid` from being reused, in all processes."""
    return disk.lock(_PINS + txid, exclusive=False)


def pin_refused(disk: Disk, txid: int) -> error:
    """Why `pin` could not be done."""
    _check_guard(disk, _PINS + txid)
    owner = disk.lowest_lock(_PINS + txid, _PINS + txid + 1)
    if owner is None or owner.pid is None:
        return error(errno.ENOLCK, "the file system refuses locks", disk.path)
    return BusyError(f"{disk.path}: process {owner.pid} keeps everybody out, with a lock on the whole file")


def _check_guard(disk: Disk, offset: int) -> None:
    """Raise if what is in the way of a lock is a guard that this very process has put on the file.

    The standard library's documentation suggests such a guard for dbm and shelve. With it, a program would lock itself
    out: for as long as it waits, nobody lets go of it.
    """
    owner = disk.lowest_lock(offset, offset + 1)
    if owner is not None and owner.own:
        raise BusyError(
            f"{disk.path}: this process has locked the file itself, with lockf() or fcntl(), and so keeps durabledbm's "
            "locks out, which make such a guard unnecessary: leave it out, or lock another file"
        )


def unpin(disk: Disk, txid: int) -> None:
    """End a pin."""
    disk.unlock(_PINS + txid)


def oldest_pin(disk: Disk) -> LockOwner | None:
    """The oldest commit that another handle has pinned (`offset` is its txid), and by which process."""
    owner = disk.lowest_lock(_PINS, _PINS_END)
    return None if owner is None else LockOwner(owner.offset - _PINS, owner.pid)


def writer_present(disk: Disk) -> bool:
    """Whether another handle holds the writer lock at this moment. A guard on the file as a whole is no writer."""
    owner = disk.lowest_lock(_WRITER, _WRITER + 1)
    return owner is not None and owner.pid is None


def someone_waits(disk: Disk) -> bool:
    """Whether another handle waits for the writer lock."""
    return disk.lowest_lock(_GATE, _GATE + 1) is not None


class Turn:
    """One writer's turn. It is made before it is asked for, so it can be ended whatever happened since.

    Ending it puts right whatever an interrupt left half done, and may be done twice. A turn that nobody ended ends when
    nobody refers to it any more: whoever is interrupted even on the way out leaves nothing locked.
    """

    __slots__ = ("__weakref__", "gate", "lock", "place", "stuck", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        """The thread that made it."""
        self.stuck: Callable[[], bool] | None = None
        """Tells whether the turn can never end while the calling thread waits for it. None: it was taken and is ended
        by one thread without a pause, so that holds for this thread and for no other."""
        self.lock: WriterLock | None = None
        self.place: weakref.ref[Turn] | None = None
        """What stands for it in the queue, without keeping it alive."""
        self.gate: threading.Lock | None = None
        """What it waits for, if it has to wait."""

    def left_over(self) -> bool:
        """Whether it is of an earlier operation of this thread, amid whose end an interrupt struck."""
        return self.stuck is None and self.thread == threading.get_ident()

    def end(self) -> None:
        """Let the next writer in."""
        lock = self.lock
        if lock is not None:
            lock.release(self.place)
            self.lock = self.place = None


class FairLock:
    """A lock of this process that is handed over in the order of asking: a queue, whose first has it.

    There is nothing else that says whose it is, and each change of the queue is one step, so an interrupt may strike
    anywhere: `leave` leaves the queue, from whatever place in it.
    """

    __slots__ = ("queue",)

    def __init__(self) -> None:
        self.queue: deque[weakref.ref[Turn]] = deque()

    def acquire(self, turn: Turn, patience: Patience, dropped: Callable[[weakref.ref[Turn]], None]) -> bool:
        """Wait for as long as there is patience. False if it was not to be had.

        `dropped` is called if nobody refers to the turn any more before it has left.
        """
        place = turn.place = weakref.ref(turn, dropped)
        queue = self.queue
        queue.append(place)
        if queue[0] is place:
            return True
        gate = turn.gate = threading.Lock()
        gate.acquire()
        while (first := queue[0]) is not place:
            holder = first()
            if holder is None:
                self.leave(first)
                continue
            if holder.left_over():
                holder.end()
                self.leave(first)  # whatever became of it before: what is still first here next time is not asked again
                continue
            if patience.over:
                self.leave(place)
                return False
            patience.acquire(gate, min(patience.left, _LOOK))
        return True

    def leave(self, place: weakref.ref[Turn] | None) -> None:
        """Make room, and wake the first, who may have been the second till now."""
        queue = self.queue
        try:
            queue.remove(place)  # type: ignore[arg-type]
        except ValueError:
            pass
        try:
            if queue and (first := queue[0]()) is not None and first.gate is not None:
                first.gate.release()
        except (IndexError, RuntimeError):
            pass  # there is nobody any more, or it is awake


_owners: dict[tuple[int, int], Callable[[], bool]] = {}
"""For each file that this process writes to: whether the calling thread would wait for itself, and so for ever."""


def _is_this_thread(ident: int) -> bool:
    return threading.get_ident() == ident


_keepers: dict[tuple[int, int], WriterLock] = {}
"""Handles that keep the lock of a file until a call of the program: for what `WriterLock.thread` has pending."""


def forget_owners() -> None:
    """In a child process: no thread of the parent is here."""
    _owners.clear()
    _keepers.clear()


class WriterLock:
    """The right to write to one file, for one handle: a turn among its threads, and the lock in the file.

    What is taken is noted before it is taken, and what is given back after it was given back. So wherever an interrupt
    strikes, too much is given back, never too little.
    """

    __slots__ = ("_asked", "_at_gate", "_disk", "_file", "_turns", "kept", "lasting", "reserved", "thread", "writing")

    def __init__(self, file: tuple[int, int]) -> None:
        self._turns = FairLock()
        self._file = file
        self._disk: Disk | None = None
        self._asked = self._at_gate = False
        """The lock in the file, or the one in front of it, may be this handle's."""
        self.kept = False
        """The lock in the file is this handle's, whether or not a thread has its turn."""
        self.reserved = False
        """It stays when a turn ends: the handle has something in memory that is to come before what others write."""
        self.thread = 0
        """The last that wrote."""
        self.lasting = False
        """What it is reserved for stays until a call of the program: no thread flushes it."""
        self.writing = False
        """It is this handle's, whose state is the newest: there is no need to look for commits."""

    @property
    def held(self) -> bool:
        """Whether a thread has its turn, and the lock in the file."""
        return self.kept and bool(self._turns.queue)

    def check_self(self, path: str) -> None:
        """Raise `BusyError` if the caller has the lock itself, through whatever handle: it would wait for ever.

        It has it, too, while another handle keeps it for what this thread has written there.
        """
        keeper = _keepers.get(self._file)
        pending = keeper is not None and keeper is not self and keeper.thread == threading.get_ident()
        if pending or (self.is_callers() and not self._ends_leftover()):
            raise BusyError(
                f"{path}: this thread already writes to the file, or its context does: in a transaction that is still "
                "open, or through another handle that has not been synced"
            )

    def is_callers(self) -> bool:
        """Whether the lock, through whatever handle, cannot be let go of while the calling thread waits for it."""
        stuck = _owners.get(self._file)
        return stuck is not None and stuck()

    def _ends_leftover(self) -> bool:
        """End the turn of an operation of this thread that was interrupted amid its end. False if there is none."""
        place = next(iter(self._turns.queue), None)
        if place is None:
            return False
        holder = place()
        if holder is None:
            self.release(place)
        elif holder.left_over():
            holder.end()
        else:
            return False
        return True

    def take_turn(self, turn: Turn, path: str, timeout: float | None) -> None:
        """Wait until no thread writes through this handle. The lock in the file is not asked for."""
        if self._turns.queue:
            self.check_self(path)
        turn.lock = self
        if not self._turns.acquire(turn, Patience(timeout), self._dropped):
            raise BusyError(f"{path}: another thread has this handle's turn for more than {_seconds(timeout)}")

    def acquire(self, turn: Turn, disk: Disk, timeout: float | None) -> None:
        """Wait for the lock, at most `timeout` seconds (None: for ever), then raise `BusyError`."""
        self.check_self(disk.path)
        patience = Patience(timeout)
        turn.lock = self
        try:
            if not self._turns.acquire(turn, patience, self._dropped):
                raise _busy(disk, timeout)
            if not self.kept:
                self._disk = disk
                self._asked = self._at_gate = True
                if not disk.lock(_GATE, exclusive=True):
                    _wait(disk, _GATE, patience, timeout)
                if not disk.lock(_WRITER, exclusive=True):
                    _wait(disk, _WRITER, patience, timeout)
                self._leave_gate()
                self.kept = True
        except BaseException:
            turn.end()
            raise
        self.thread = threading.get_ident()
        _owners[self._file] = turn.stuck or partial(_is_this_thread, self.thread)

    def release(self, place: weakref.ref[Turn] | None) -> None:
        """Let the next writer in: any, or only one of this handle if the lock is reserved."""
        queue = self._turns.queue
        if queue and queue[0] is place:
            if self.kept:
                _owners.pop(self._file, None)
                if self.reserved and self.lasting:
                    _keepers[self._file] = self
            try:
                if not self.reserved:
                    self._unlock()
            except OSError:
                self._turns.leave(place)
                raise
        self._turns.leave(place)

    def _dropped(self, place: weakref.ref[Turn]) -> None:
        """Nobody refers to a turn any more, and nobody has ended it."""
        self.release(place)

    def _unlock(self) -> None:
        if _keepers.get(self._file) is self:
            del _keepers[self._file]
        self.writing = self.kept = False
        if self._asked:
            assert self._disk is not None
            self._leave_gate()
            self._disk.unlock(_WRITER)
            self._asked = False

    def _leave_gate(self) -> None:
        if self._at_gate:
            assert self._disk is not None
            self._disk.unlock(_GATE)
            self._at_gate = False

    def regain(self) -> bool:
        """The file was opened again, and the lock has gone with what was open before. Take it once more, if it may be
        this handle's; False if another handle has it by now.
        """
        if self._asked:
            assert self._disk is not None
            self._at_gate = False
            self._asked = self.kept = self._disk.lock(_WRITER, exclusive=True)
            self.writing = self.writing and self.kept
            return self.kept
        return True

    def forget(self) -> None:
        """In a child process: the lock is the parent's, and so are the turns that end here."""
        self._turns.queue.clear()


def _busy(disk: Disk, timeout: float | None) -> BusyError:
    return BusyError(f"{disk.path}: another writer held the file for more than {_seconds(timeout)}")


def _seconds(timeout: float | None) -> str:
    return f"{timeout:g} second{'' if timeout == 1 else 's'}"


def _wait(disk: Disk, offset: int, patience: Patience, timeout: float | None) -> None:
    """Ask again and again, ever more slowly: the kernel's own waiting could not be bounded in time."""
    nap = _FIRST_NAP
    while True:
        _check_guard(disk, offset)
        patience.nap(nap)
        if disk.lock(offset, exclusive=True):
            return
        if patience.over:
            raise _busy(disk, timeout)
        nap = min(nap * 1.5, _LONGEST_NAP)
