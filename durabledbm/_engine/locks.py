"""The two locks of a database file, both kept by the kernel, so that a killed process leaves nothing behind.

The *writer lock* is one byte, held by whoever writes, threads and processes alike. A second byte is the gate in front
of it: a writer passes the gate before it waits for the lock, so one that has just released the lock and wants it again
queues behind the one that already waits there, and nobody starves.

A *pin* is a shared lock on the byte that belongs to a txid: some snapshot still reads that commit. The bytes lie beyond
every possible end of the file. The writer asks for the lowest one: what was freed by later commits must stay.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from ..errors import BusyError
from .disk import Disk, LockOwner

__all__ = [
    "FairLock", "WriterLock", "forget_owners", "locks_work", "oldest_pin", "pin", "someone_waits", "unpin",
    "writer_present",
]  # fmt: skip

_TEST = (1 << 62) - 3
_WRITER = (1 << 62) - 2
_GATE = (1 << 62) - 1
_PINS = 1 << 62
_PINS_END = (1 << 63) - 1

_FIRST_NAP = 20e-6
_LONGEST_NAP = 2e-3


_proved: set[int] = set()
"""The devices whose locks have been seen to work."""


def locks_work(disk: Disk) -> bool:
    """Whether locks keep two open files apart where this file is: some network file systems refuse, some pretend.

    Found out once for each device and process, by locking a byte of this very file that is used for nothing else, and
    trying to lock it through another open file. Locks that hold on this machine but not on others, as on NFS mounted
    with `nolock` or `local_lock`, cannot be told from good ones.
    """
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


def unpin(disk: Disk, txid: int) -> None:
    """End a pin."""
    disk.unlock(_PINS + txid)


def oldest_pin(disk: Disk) -> LockOwner | None:
    """The oldest commit that another handle has pinned (`offset` is its txid), and by which process."""
    owner = disk.lowest_lock(_PINS, _PINS_END)
    return None if owner is None else LockOwner(owner.offset - _PINS, owner.pid)


def writer_present(disk: Disk) -> bool:
    """Whether another handle holds the writer lock at this moment."""
    return disk.lowest_lock(_WRITER, _WRITER + 1) is not None


def someone_waits(disk: Disk) -> bool:
    """Whether another handle waits for the writer lock."""
    return disk.lowest_lock(_GATE, _GATE + 1) is not None


class FairLock:
    """A lock of this process that is handed over in the order of asking. May be released by any thread."""

    __slots__ = ("_held", "_mutex", "_waiters")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held = False
        self._waiters: deque[threading.Lock] = deque()

    def acquire(self, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds, None for ever. False if it was not to be had."""
        with self._mutex:
            if not self._held:
                self._held = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiters.append(turn)
        try:
            if turn.acquire(timeout=-1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)):
                return True
        except BaseException:
            self._give_up(turn)
            raise
        return not self._give_up(turn, keep=True)

    def _give_up(self, turn: threading.Lock, *, keep: bool = False) -> bool:
        """Leave the queue. If the lock was handed over meanwhile, keep it or pass it on; True if out of the queue."""
        with self._mutex:
            if turn in self._waiters:
                self._waiters.remove(turn)
                return True
        if not keep:
            self.release()
        return False

    def release(self) -> None:
        """Hand the lock to whoever has waited longest."""
        with self._mutex:
            assert self._held
            if self._waiters:
                self._waiters.popleft().release()
            else:
                self._held = False


_owners: dict[tuple[int, int], int] = {}
"""Which thread of this process writes to which file: a thread that waits for itself would wait for ever."""


def forget_owners() -> None:
    """In a child process: no thread of the parent is here."""
    _owners.clear()


class WriterLock:
    """The right to write to one file, for one handle: a turn among its threads, and the lock in the file.

    Between turns the handle may keep the lock in the file (`release(keep=True)`), so that nobody else writes while it
    has something in memory that is to come first.
    """

    __slots__ = ("_file", "_turn", "held", "kept")

    def __init__(self, file: tuple[int, int]) -> None:
        self._turn = FairLock()
        self._file = file
        self.held = False
        """A thread has its turn, and the lock in the file."""
        self.kept = False
        """The lock in the file is this handle's, whether or not a thread has its turn."""

    def check_self(self, path: str) -> None:
        """Raise `BusyError` if this very thread has the lock, through whatever handle: it would wait for itself."""
        if _owners and _owners.get(self._file) == threading.get_ident():
            raise BusyError(f"{path}: this thread already writes to the file, in a transaction that is still open")

    def take_turn(self, path: str, timeout: float | None) -> None:
        """Wait until no thread writes through this handle. The lock in the file is not asked for."""
        if not self._turn.acquire(timeout):
            raise BusyError(f"{path}: another thread writes for more than {timeout:g} seconds")

    def end_turn(self) -> None:
        """The end of `take_turn`."""
        self._turn.release()

    def acquire(self, disk: Disk, timeout: float | None) -> None:
        """Wait for the lock, at most `timeout` seconds (None: for ever), then raise `BusyError`."""
        self.check_self(disk.path)
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._turn.acquire(timeout):
            raise _busy(disk, timeout)
        if not self.kept:
            try:
                if not disk.lock(_GATE, exclusive=True):
                    _wait(disk, _GATE, deadline, timeout)
                try:
                    if not disk.lock(_WRITER, exclusive=True):
                        _wait(disk, _WRITER, deadline, timeout)
                finally:
                    disk.unlock(_GATE)
            except BaseException:
                self._turn.release()
                raise
            self.kept = True
        self.held = True
        _owners[self._file] = threading.get_ident()

    def release(self, disk: Disk, *, keep: bool = False) -> None:
        """Let the next writer in: any, or with `keep` only one of this handle."""
        assert self.held
        _owners.pop(self._file, None)
        self.held = False
        try:
            if not keep:
                self.kept = False
                disk.unlock(_WRITER)
        finally:
            self._turn.release()


def _busy(disk: Disk, timeout: float | None) -> BusyError:
    return BusyError(f"{disk.path}: another writer held the file for more than {timeout:g} seconds")


def _wait(disk: Disk, offset: int, deadline: float | None, timeout: float | None) -> None:
    """Ask again and again, ever more slowly: the kernel's own waiting could not be bounded in time."""
    nap = _FIRST_NAP
    while True:
        time.sleep(nap)
        if disk.lock(offset, exclusive=True):
            return
        if deadline is not None and time.monotonic() >= deadline:
            raise _busy(disk, timeout)
        nap = min(nap * 1.5, _LONGEST_NAP)
