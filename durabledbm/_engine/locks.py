"""The two locks of a database file, both kept by the kernel, so that a killed process leaves nothing behind.

The *writer lock* is one byte, held by the one that writes, thread or process. A second byte is the gate in front of it:
a writer passes the gate before it waits for the lock, so one that has just released the lock and wants it again queues
behind the one that already waits there, and none starves. The gate costs two system calls, and handing over costs much
more; so a handle that has passed it may take the lock again without it, for a few turns and a few milliseconds.

A *pin* is a shared lock on the byte that belongs to a txid: some snapshot still reads that commit. The writer asks for
the lowest one: what later commits freed must stay.

All these bytes lie beyond every possible end of the file. Their offsets are defined here and nowhere else.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections.abc import Callable
from enum import IntEnum
from time import monotonic

from .._interrupts import is_from_handler
from ..errors import BusyError, error
from .disk.protocol import PARENTS, Disk, LockOwner, Writes
from .threads import FairLock, Lease, Patience

__all__ = [
    "PINS_OFFSET", "TEMPORARY_OFFSET", "TEST_OFFSET", "WRITER_OFFSET", "Stage", "WriterLock", "forget_owners",
    "locks_work", "oldest_pin", "pin", "pin_refused", "someone_waits", "unpin", "writer_present",
]  # fmt: skip

TEMPORARY_OFFSET = (1 << 62) - 4
"""Locked in a temporary file while it is being made: one without this lock is left over from a killed run."""

TEST_OFFSET = (1 << 62) - 3
"""Locked to find out whether locks work at all."""

WRITER_OFFSET = (1 << 62) - 2
GATE_OFFSET = (1 << 62) - 1

PINS_OFFSET = 1 << 62
"""Plus a txid: the byte of that commit's pins."""

_PINS_END = (1 << 63) - 1

_FIRST_NAP = 20e-6
_LONGEST_NAP = 2e-3

_REENTRIES = 16
"""How often the writer lock may be taken again without passing the gate..."""

_REENTRY_TIME = 0.005
"""...and for how many seconds after it was passed."""

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
        _check_guard(disk, TEST_OFFSET)
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
        if disk.lock(TEST_OFFSET, exclusive=True):
            try:
                if twin.lock(TEST_OFFSET, exclusive=True) or twin.lowest_lock(TEST_OFFSET, TEST_OFFSET + 1) is None:
                    return False
            finally:
                disk.unlock(TEST_OFFSET)
        _proved.add(device)  # if the byte was locked, another process is trying the same: so locks work
        return True
    except OSError:
        return False
    finally:
        twin.close()


def pin(disk: Disk, txid: int) -> bool:
    """Keep the pages of commit `txid` from being reused, in all processes."""
    return disk.lock(PINS_OFFSET + txid, exclusive=False)


def pin_refused(disk: Disk, txid: int) -> error:
    """Why `pin` could not be done."""
    _check_guard(disk, PINS_OFFSET + txid)
    owner = disk.lowest_lock(PINS_OFFSET + txid, PINS_OFFSET + txid + 1)
    if owner is None or owner.pid is None:
        return error(errno.ENOLCK, "the file system refuses locks", disk.path)
    return BusyError(f"{disk.path}: process {owner.pid} keeps everybody out, with a lock on the whole file")


def _check_guard(disk: Disk, offset: int) -> None:
    """Raise if what is in the way of a lock is a guard that this very process has put on the file.

    The standard library's documentation suggests such a guard for dbm and shelve. With it, a program would lock itself
    out: the guard stays for as long as it waits.
    """
    owner = disk.lowest_lock(offset, offset + 1)
    if owner is not None and owner.own:
        raise BusyError(
            f"{disk.path}: this process has locked the file itself, with lockf() or fcntl(), and so keeps durabledbm's "
            "locks out, which make such a guard unnecessary: leave it out, or lock another file"
        )


def unpin(disk: Disk, txid: int) -> None:
    """End a pin."""
    disk.unlock(PINS_OFFSET + txid)


def oldest_pin(disk: Disk) -> LockOwner | None:
    """The oldest commit that another handle has pinned (`offset` is its txid), and by which process."""
    owner = disk.lowest_lock(PINS_OFFSET, _PINS_END)
    return None if owner is None else LockOwner(owner.offset - PINS_OFFSET, owner.pid)


def writer_present(disk: Disk) -> bool:
    """Whether another handle holds the writer lock at this moment. A guard on the file as a whole is no writer."""
    owner = disk.lowest_lock(WRITER_OFFSET, WRITER_OFFSET + 1)
    return owner is not None and owner.pid is None


def someone_waits(disk: Disk) -> bool:
    """Whether another handle waits for the writer lock."""
    return disk.lowest_lock(GATE_OFFSET, GATE_OFFSET + 1) is not None


_owners: dict[tuple[int, int], Callable[[], bool] | int] = {}
"""For each file that this process writes to: the thread that does, or what tells whether the calling thread would wait
for itself, and so for ever."""


_keepers: dict[tuple[int, int], WriterLock] = {}
"""Handles that keep the lock of a file until a call of the program: for what `WriterLock.thread` has deferred."""


def forget_owners() -> None:
    """In a child process: no thread of the parent is here."""
    _owners.clear()
    _keepers.clear()


class Stage(IntEnum):
    """How far a handle has got with the lock in the file. The stage tells what an interrupt may have left locked."""

    FREE = 0
    """Neither byte is locked."""
    RELEASING = 1
    """The writer's byte may still be locked."""
    ASKING = 2
    """The gate, the writer's byte, both or none may be locked."""
    HELD = 3
    """The writer's byte is locked. What others have committed before has not been looked at yet."""
    CURRENT = 4
    """It is locked, and the handle's state is the newest: there is no need to look for commits."""


class WriterLock:
    """The right to write to one file, for one handle: a lease among its threads, and the lock in the file.

    It keeps the interrupt discipline (see `threads`): `stage` says that a byte may be locked before it is, and says so
    until it was unlocked.
    """

    __slots__ = (
        "_disk", "_file", "_leases", "_parents", "_passed", "_reentries", "_writes", "lasting", "reserved", "stage",
        "thread",
    )  # fmt: skip

    def __init__(self, file: tuple[int, int]) -> None:
        self._leases = FairLock()
        self._file = file
        self._disk: Disk | None = None
        self._reentries = 0
        """How often the lock may still be taken without passing the gate."""
        self._passed = 0.0
        """When the gate was passed, by the monotonic clock."""
        self._writes: Writes | None = None
        self._parents = False
        """This is a child process, and the lock was the parent's."""
        self.stage = Stage.FREE
        self.reserved = False
        """The lock in the file stays when a lease ends: the handle has changes in memory that come before others'."""
        self.lasting = False
        """It is reserved until a call of the program, since no thread flushes those changes."""
        self.thread = 0
        """The last that wrote."""

    @property
    def kept(self) -> bool:
        """Whether the lock in the file is this handle's, with or without a lease."""
        return self.stage >= Stage.HELD

    @property
    def busy(self) -> bool:
        """Whether a thread has a lease, or waits for one."""
        return bool(self._leases.queue)

    @property
    def is_current(self) -> bool:
        """Whether it is, and the handle's state is the newest."""
        return self.stage is Stage.CURRENT

    def writes(self, path: str) -> Writes:
        """What writes to the file, for who has the lock.

        Raises `error` in the child of a signal handler that has forked amid a commit, which is the parent's.
        """
        if self._writes is None or self._parents or not self.kept:
            raise error(f"{path}: {PARENTS}")
        return self._writes

    def check_self(self, path: str) -> None:
        """Raise `BusyError` if the caller has the lock itself, through whatever handle: it would wait for ever.

        It has it, too, while another handle keeps it for what this thread has written there.
        """
        keeper = _keepers.get(self._file)
        deferred = keeper is not None and keeper is not self and keeper.thread == threading.get_ident()
        if deferred or (self.is_callers() and not self._ends_leftover()):
            raise BusyError(
                f"{path}: this thread already writes to the file, or its context does: in a transaction that is still "
                "open, or through another handle that has not been synced"
            )

    def is_callers(self) -> bool:
        """Whether the lock, through whatever handle, cannot be released while the calling thread waits for it."""
        owner = _owners.get(self._file)
        return owner is not None and (owner() if callable(owner) else owner == threading.get_ident())

    def _ends_leftover(self) -> bool:
        """End the lease of an operation of this thread whose end was interrupted. False if there is none."""
        entry = next(iter(self._leases.queue), None)
        if entry is None:
            return False
        lease = entry()
        if lease is None:
            self.release(entry)
        elif lease.left_over():
            lease.end()
        else:
            return False
        return True

    def take_lease(self, lease: Lease, path: str, timeout: float | None) -> None:
        """Wait until no thread writes through this handle. The lock in the file is not asked for."""
        if self._leases.queue:
            self.check_self(path)
        lease.holder = self
        if not self._leases.acquire(lease, Patience(timeout), self.release):
            raise BusyError(f"{path}: another thread has this handle's turn for more than {_seconds(timeout)}")

    def acquire(self, lease: Lease, disk: Disk, timeout: float | None) -> None:
        """Wait for the lock, at most `timeout` seconds (None: for ever), then raise `BusyError`."""
        self.check_self(disk.path)
        patience = Patience(timeout)
        lease.holder = self
        try:
            if not self._leases.acquire(lease, patience, self.release):
                raise _busy(disk, timeout)
            if self.stage < Stage.HELD:
                self._disk = disk
                self.stage = Stage.ASKING
                self._lock(patience, timeout)
            self.thread = threading.get_ident()
            _owners[self._file] = lease.stuck or self.thread
            if self._parents:  # the process was forked meanwhile: what was locked is this child's, who asked is not
                raise error(f"{disk.path}: {PARENTS}")
        except BaseException:
            lease.end()
            if self._parents:
                _owners.pop(self._file, None)
                self._unlock()
            raise

    def _lock(self, patience: Patience, timeout: float | None) -> None:
        disk = self._disk
        assert disk is not None
        if not self._reenter(disk):
            if not disk.lock(GATE_OFFSET, exclusive=True):
                _wait(disk, GATE_OFFSET, patience, timeout)
            if not disk.lock(WRITER_OFFSET, exclusive=True):
                _wait(disk, WRITER_OFFSET, patience, timeout)
            disk.unlock(GATE_OFFSET)
            self._reentries, self._passed = _REENTRIES, monotonic()
        self._writes = disk.writes()
        self.stage = Stage.HELD

    def _reenter(self, disk: Disk) -> bool:
        """Take the lock in the file without passing the gate, if this handle may and no other has it."""
        if not self._reentries or monotonic() - self._passed > _REENTRY_TIME:
            return False
        self._reentries -= 1
        return disk.lock(WRITER_OFFSET, exclusive=True)

    def release(self, entry: weakref.ref[Lease] | None) -> None:
        """Let the next writer in: any, or only one of this handle if the lock is reserved.

        Also called when the last reference to a lease goes away that was not ended.
        """
        queue = self._leases.queue
        if queue and queue[0] is entry:
            if self.stage >= Stage.HELD:
                _owners.pop(self._file, None)
                if self.reserved and self.lasting:
                    _keepers[self._file] = self
            try:
                if not self.reserved:
                    self._unlock()
            except OSError as exc:
                if not is_from_handler(exc):  # else the lease is ended again
                    self._leases.leave(entry)
                raise
        self._leases.leave(entry)

    def _unlock(self) -> None:
        if _keepers.get(self._file) is self:
            del _keepers[self._file]
        disk, stage = self._disk, self.stage
        if disk is None or stage is Stage.FREE:
            return
        if stage is Stage.ASKING:
            disk.unlock(GATE_OFFSET)
        self.stage = Stage.RELEASING
        disk.unlock(WRITER_OFFSET)
        self.stage = Stage.FREE

    def confirm(self) -> None:
        """The handle's state is the newest: while the lock is kept, no other handle can commit."""
        if self.stage is Stage.HELD:
            self.stage = Stage.CURRENT

    def doubt(self) -> None:
        """The handle's state may not be the newest any more: the file tells."""
        if self.stage is Stage.CURRENT:
            self.stage = Stage.HELD

    def regain(self) -> bool:
        """The file was opened again, and the lock has gone with the old descriptor. Take it once more, if it may be
        this handle's; False if another handle has it by now.
        """
        stage = self.stage
        if stage is Stage.FREE:
            return True
        assert self._disk is not None
        locked = self._disk.lock(WRITER_OFFSET, exclusive=True)
        self._writes = self._disk.writes()
        self.stage = max(stage, Stage.HELD) if locked else Stage.FREE
        return locked

    def forget(self) -> None:
        """In a child process: the lock is the parent's, and so are the leases that end here."""
        self._parents = True
        self._leases.queue.clear()


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
