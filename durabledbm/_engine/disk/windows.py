"""The disk on Windows: the interfaces of `disk`, in terms of a few system calls that are handed in.

`Kernel` is these calls, as Windows defines them; `kernel32` makes them, and the tests hand in a model of them, so the
logic here is tested everywhere. Nothing in this module needs Windows to be imported.

Locks are the hard part. `LockFileEx` keeps other open files out, also those of the same process, and the system
releases what a killed process held: that is what pins and the writer lock need. (They are mandatory, so locked bytes
cannot be read or written; ours lie beyond the end of the file, where nothing is read or written.) But no call tells
who holds a lock. So `lowest_lock` tries to lock a range for itself, exclusively, and lets go at once: if that succeeds,
no other lock was in the range at that moment. Such an attempt, a *probe*, is in the way of others for as long as
it takes, some microseconds, which has two consequences:

* `lock` may fail because of a probe and not of a lock. It tries again: a shared lock for as long as `_PATIENCE`, since
  the engine never locks exclusively what it pins, so only a probe can be in the way; an exclusive one a few times, for
  a holder of the writer lock may really be there, and then the waiting writer asks again anyway.
* A probe may fail because of another probe. Then `lowest_lock` takes for locked what is not. The engine may be told
  too much, never too little: a pin that does not exist keeps pages from being reused until the next look; a writer who
  does not exist makes a reader look again.

That it is never told too little: `low`, in `_lowest`, starts at the beginning of the range and moves only past ranges
that a probe has just found free. A lock that is held from before the call until after it makes every probe of a range
that contains it fail, so `low` never moves past it, and the answer is not above it. A lock set during the call may be
missed, as it may with the question that POSIX kernels answer: who pins a commit locks first and then looks whether the
commit is still the newest, and who reuses pages asks after a newer commit has become visible, so one of the two sees
the other (see `locks`).

What this handle has locked itself is left out of the probes: its own lock would be in the way. So a byte that it shares
with others is not reported; the store counts its own pins itself, and takes the lower of the two.

Threads use one handle at once, and no lock keeps them apart: the garbage collector may run a finalizer anywhere, also
in here, and that may wait for another thread, which would wait for such a lock. Nor is there need of one. A probe of
another thread of this handle is in the way like that of another handle, but it is known (`_probes`), and `lock` does
not count attempts meanwhile. What another thread locks during a probe is taken for someone else's: too much again. And
no two threads lock or unlock the same byte at once: callers see to that, for pins and for the writer lock.
"""

from __future__ import annotations

import errno
import ntpath
import operator
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NewType, Protocol, TypeVar

from ...errors import ClosedError
from ..threads import Patience
from .protocol import ELSEWHERE, LockOwner, Writes

__all__ = ["Handle", "InUse", "Kernel", "WindowsDisk", "WindowsVolume", "take_owner"]

Handle = NewType("Handle", int)
"""An open file, as Windows knows it."""

_Result = TypeVar("_Result")

_PATIENCE = 5.0
"""Seconds for which a shared lock is tried. A probe takes microseconds."""

_ATTEMPTS = 4
"""How often an exclusive lock is tried."""

_NAP = 50e-6

_IN_USE_PATIENCE = 1.0
"""Seconds for which a name is tried that is in use: virus scanners and indexers open each new file, for a moment."""

_IN_USE_NAP = 10e-3
_WRITE_MAX = 1 << 26
"""Bytes in one write: the parts of a larger one are not all joined in memory at once."""


class InUse(PermissionError):
    """A sharing violation: another program has the file open, and does not share it (ERROR_SHARING_VIOLATION)."""


class Kernel(Protocol):
    """The system calls. Failures are `OSError`s, of the class that belongs to the error. No offset is kept anywhere."""

    def open(self, path: str, *, writable: bool) -> Handle:
        """CreateFileW: an existing regular file, which others may open, rename and remove meanwhile."""

    def reopen(self, handle: Handle, *, writable: bool) -> Handle:
        """ReOpenFile: another open file for the same file, whatever its name is now."""

    def create(self, path: str) -> Handle:
        """The same for a new file: `FileExistsError` if the name is taken."""

    def close(self, handle: Handle) -> None:
        """CloseHandle. Releases all locks that were taken through the handle."""

    def size(self, handle: Handle) -> int:
        """GetFileSizeEx."""

    def read(self, handle: Handle, length: int, offset: int) -> bytes:
        """ReadFile at an offset: at most `length` bytes, none at the end of the file."""

    def write(self, handle: Handle, data: bytes, offset: int) -> int:
        """WriteFile at an offset; how many bytes were written."""

    def resize(self, handle: Handle, size: int) -> None:
        """SetFileInformationByHandle with FileEndOfFileInfo."""

    def flush(self, handle: Handle) -> None:
        """FlushFileBuffers: through the cache of the system and that of the drive."""

    def identity(self, handle: Handle) -> tuple[int, int]:
        """FileIdInfo: the serial number of the volume and the identifier of the file on it."""

    def identity_of(self, path: str) -> tuple[int, int]:
        """The same for the file or directory of that name."""

    def lock(self, handle: Handle, offset: int, length: int, *, exclusive: bool) -> bool:
        """LockFileEx with LOCKFILE_FAIL_IMMEDIATELY; False if another lock is in the way."""

    def unlock(self, handle: Handle, offset: int, length: int) -> None:
        """UnlockFileEx, for exactly what was locked."""

    def link(self, source: str, target: str) -> None:
        """CreateHardLinkW; `FileExistsError` if the name is taken."""

    def replace(self, source: str, target: str) -> None:
        """MoveFileExW with MOVEFILE_REPLACE_EXISTING and MOVEFILE_WRITE_THROUGH."""

    def remove(self, path: str) -> None:
        """DeleteFileW."""

    def flush_directory(self, path: str) -> bool:
        """FlushFileBuffers on a handle of a directory; False if the system does not let us."""


class WindowsDisk:
    """A file of Windows."""

    __slots__ = (
        "__weakref__", "_handle", "_held", "_hint", "_identity", "_kernel", "_probes", "path", "read", "writable",
    )  # fmt: skip

    def __init__(self, kernel: Kernel, handle: Handle, path: str, *, writable: bool) -> None:
        self._kernel = kernel
        self._handle: Handle | None = handle
        self._identity = kernel.identity(handle)
        self.path = path
        self.writable = writable
        self.read: Callable[[int, int], bytes] = partial(kernel.read, handle)
        self._held: dict[int, bool] = {}
        """What this disk has locked: offset, and whether exclusively."""
        self._hint = 0
        """Where the lowest lock was the last time: it probably is still there."""
        self._probes: list[int] = []
        """One item for each probe that a thread is at."""

    def _open_handle(self) -> Handle:
        if self._handle is None:
            raise ClosedError
        return self._handle

    # -- content -------------------------------------------------------------------------------------------------

    def size(self) -> int:
        return self._kernel.size(self._open_handle())

    def data(self, start: int, stop: int) -> tuple[int, int]:
        self._open_handle()
        return start, stop

    def write(self, offset: int, parts: Sequence[bytes | memoryview]) -> None:
        handle = self._open_handle()
        for data in _joined(parts):
            view = data
            while view:
                written = self._kernel.write(handle, view, offset)
                if written <= 0:
                    raise OSError(errno.EIO, "the disk took no bytes")
                offset += written
                view = view[written:]

    def resize(self, size: int) -> None:
        self._kernel.resize(self._open_handle(), size)

    def writes(self) -> Writes:
        return Writes(self.write, self.resize)  # Windows does not fork

    def sync(self) -> None:
        self._kernel.flush(self._open_handle())

    def forget(self) -> None:
        """Windows has no way to drop cached pages of a file that others may have open."""

    def identity(self) -> tuple[int, int]:
        return self._identity

    def status(self) -> os.stat_result:
        try:
            return os.stat(self.path)
        except FileNotFoundError:  # it was moved; and nothing that is taken over from it means anything here
            return os.stat_result((stat.S_IFREG | 0o600, *[0] * 9))

    def take_owner(self, like: os.stat_result) -> None:
        """Nothing: see `WindowsVolume.create`."""

    def linked(self) -> bool:
        # A removed file keeps its name on some file systems until it is closed everywhere, and then nobody can open it.
        try:
            return self._kernel.identity_of(self.path) == self._identity
        except OSError:
            return False

    def held(self) -> bool:
        """Programs on Windows do not close handles that they do not know. If it happens, this tells."""
        try:  # by the file's number alone: Wine does not tell the volume of a file that was renamed while it was open
            return self._handle is not None and self._kernel.identity(self._handle)[1] == self._identity[1]
        except OSError:
            return False

    def regain(self) -> None:
        self._open_handle()
        if not self.held():
            fresh = self._opened_again()
            self._handle, self._held, self.read = fresh, {}, partial(self._kernel.read, fresh)

    # -- locks ---------------------------------------------------------------------------------------------------

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        handle = self._open_handle()
        if offset in self._held:
            assert self._held[offset] == exclusive, "a lock is not converted"
            return True
        patience = Patience(_PATIENCE)
        attempt = 0
        while not self._lock(handle, offset, exclusive=exclusive):
            if not self._probes:
                attempt += 1
            if patience.over or (exclusive and attempt >= _ATTEMPTS):
                return False
            patience.nap(0 if attempt < _ATTEMPTS else _NAP)
        return True

    def _lock(self, handle: Handle, offset: int, *, exclusive: bool) -> bool:
        """Try once, and note it. After an interrupt it is neither locked nor noted."""
        got: bool | None = None
        try:
            got = self._kernel.lock(handle, offset, 1, exclusive=exclusive)
            if got:
                self._held[offset] = exclusive
            return got
        except BaseException:
            if got is None:
                self._let_go(handle, offset, 1)
            raise

    def unlock(self, offset: int) -> None:
        handle = self._open_handle()
        if offset in self._held:
            try:
                self._kernel.unlock(handle, offset, 1)
            except BaseException:
                self._let_go(handle, offset, 1)
                raise
            finally:
                self._held.pop(offset, None)

    def _let_go(self, handle: Handle, offset: int, length: int) -> None:
        """Unlock what an interrupt has left locked, or not."""
        try:
            self._kernel.unlock(handle, offset, length)
        except OSError:
            pass  # it was not

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        self._open_handle()
        taken = list(self._held)  # one step, while other threads lock and unlock
        taken.sort()
        for first, end in _gaps(start, stop, taken):
            found = self._lowest(first, end)
            if found is not None:
                return LockOwner(found, None)
        return None

    def _lowest(self, start: int, stop: int) -> int | None:
        """An offset in [start, stop) that is not above any lock held throughout; None if there is none.

        First all at once, since mostly there is nothing. Then ranges of growing size, from where the last answer was
        or from the start, until one is not free; then halves of that.
        """
        if self._is_free(start, stop):
            return None
        low, step, hint = start, 1, self._hint
        if start < hint < stop and self._is_free(start, hint):
            low = hint
        while low < stop:
            high = min(low + step, stop)
            if self._is_free(low, high):
                low, step = high, 2 * step
                continue
            while high - low > 1:
                middle = (low + high) // 2
                if self._is_free(low, middle):
                    low = middle
                else:
                    high = middle
            if not self._is_free(low, high):
                self._hint = low
                return low
            low, step = high, 1  # another's probe was in the way, and is not any more: there is nothing here
        return None

    def _is_free(self, start: int, stop: int) -> bool:
        """Whether, at a moment during this call, there was no other lock in [start, stop). May say no for no reason."""
        handle = self._open_handle()
        free: bool | None = None
        try:
            self._probes.append(start)
            free = self._kernel.lock(handle, start, stop - start, exclusive=True)
            if free:
                self._kernel.unlock(handle, start, stop - start)
            return free
        except BaseException:
            if free is not False:
                self._let_go(handle, start, stop - start)
            raise
        finally:
            if self._probes:
                self._probes.pop()

    # -- ends ----------------------------------------------------------------------------------------------------

    def reopen(self) -> WindowsDisk:
        return WindowsDisk(self._kernel, self._opened_again(), self.path, writable=self.writable)

    def _opened_again(self) -> Handle:
        if self.held():
            try:
                return self._kernel.reopen(self._open_handle(), writable=self.writable)
            except OSError:
                pass  # not every file system can
        handle = _patiently(lambda: self._kernel.open(self.path, writable=self.writable))
        if self._kernel.identity(handle) != self._identity:
            self._kernel.close(handle)
            raise FileNotFoundError(errno.ENOENT, ELSEWHERE, self.path)
        return handle

    def close(self) -> None:
        ours = self.held()
        handle, self._handle = self._handle, None
        self.read = _read_closed
        self._held = {}
        if handle is not None and ours:
            self._kernel.close(handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


class WindowsVolume:
    """The file system of Windows."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def open(self, path: str, *, writable: bool) -> WindowsDisk:
        _check_name(path)
        handle = _patiently(lambda: self._kernel.open(path, writable=writable))
        return WindowsDisk(self._kernel, handle, path, writable=writable)

    def create(self, path: str, mode: int) -> WindowsDisk:
        """`mode` has no counterpart: a new file has the permissions that its directory gives it."""
        _check_name(path)
        operator.index(mode)  # what is no number is a TypeError here, too
        return WindowsDisk(self._kernel, self._kernel.create(path), path, writable=True)

    def link(self, source: str, target: str) -> None:
        _patiently(lambda: self._kernel.link(source, target))

    def replace(self, source: str, target: str) -> None:
        """A target that is open, by whatever program, may be refused with `PermissionError`: then it is as it was."""
        _patiently(lambda: self._kernel.replace(source, target))

    def remove(self, path: str) -> None:
        _patiently(lambda: self._kernel.remove(path))

    def sync_directory(self, path: str) -> None:
        """Flush the directory or, where that is not allowed, the file itself, if it is there.

        NTFS keeps names in one log with all other metadata. Flushing a file writes that log as far as it goes, so
        whatever was done to names before, in order, is on the medium then too.
        """
        if self._kernel.flush_directory(os.path.dirname(path) or "."):
            return
        try:
            handle = self._kernel.open(path, writable=True)
        except FileNotFoundError:
            return
        try:
            self._kernel.flush(handle)
        finally:
            self._kernel.close(handle)


    def identity_of(self, path: str) -> tuple[int, int]:
        """`Disk.identity` of the file of that name, which may also be a directory. What `os.stat` says differs."""
        return self._kernel.identity_of(path)


def take_owner(fd: int, like: os.stat_result) -> None:
    """Nothing: see `WindowsVolume.create`."""


def _patiently(call: Callable[[], _Result]) -> _Result:
    """What `call` returns, tried again for a while if the file is in use."""
    patience = Patience(_IN_USE_PATIENCE)
    while True:
        try:
            return call()
        except InUse:
            if patience.over:
                raise
            patience.nap(_IN_USE_NAP)


def _check_name(path: str) -> None:
    """Refuse the name of a stream beside a file's content: `identity` would take it for the file."""
    if ":" in ntpath.splitdrive(path)[1]:
        raise OSError(errno.EINVAL, "the name of a stream, not of a file: it has a colon", path)


def _read_closed(length: int, offset: int) -> bytes:
    raise ClosedError


def _joined(parts: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    """The parts in few pieces: one write is better than many, but need not hold everything twice."""
    pending: list[bytes | memoryview] = []
    size = 0
    for part in parts:
        if pending and size + len(part) > _WRITE_MAX:
            yield b"".join(pending)
            pending, size = [], 0
        pending.append(part)
        size += len(part)
    if size:
        yield b"".join(pending)


def _gaps(start: int, stop: int, taken: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ranges that are left of [start, stop) without the offsets in `taken`, which ascend."""
    for offset in taken:
        if start <= offset < stop:
            if start < offset:
                yield start, offset
            start = offset + 1
    if start < stop:
        yield start, stop
