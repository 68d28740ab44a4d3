"""The disk on POSIX systems: positioned reads and writes, and open-file-description locks.

Such a lock belongs to the open file, not to the process: two handles of one process keep each other out, closing some
other descriptor of the same file releases nothing, and what a killed process held is released by the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Callable, Sequence
from functools import partial

from ..errors import ClosedError
from .disk import LockOwner

assert sys.platform != "win32", "see windows"

__all__ = ["NO_LOCKS", "FileDisk", "FileVolume"]

# Where a system has none, a number that no kernel knows: seeking fails with EINVAL, and all bytes count as kept.
_SEEK_DATA, _SEEK_HOLE = getattr(os, "SEEK_DATA", -1), getattr(os, "SEEK_HOLE", -1)

_VECTOR_MAX = 512  # buffers in one writev: below every platform's IOV_MAX

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
"""What a file system or a kernel says that does not keep locks of this kind."""


class FileDisk:
    """A file of the operating system, through positioned reads and writes and open-file-description locks."""

    __slots__ = ("__weakref__", "_fd", "_identity", "path", "read", "writable")

    def __init__(self, fd: int, path: str, *, writable: bool) -> None:
        self._identity = _identity(fd, path)
        self._fd = fd
        self.path = path
        self.writable = writable
        # A partial, not a method: this is the hottest call of all, and a Python frame would cost as much as the read.
        self.read: Callable[[int, int], bytes] = partial(os.pread, fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def data(self, start: int, stop: int) -> tuple[int, int]:
        if self._fd < 0:
            raise ClosedError
        try:  # these seeks move an offset that nothing else here uses
            first = os.lseek(self._fd, start, _SEEK_DATA)
            return (first, min(os.lseek(self._fd, first, _SEEK_HOLE), stop)) if first < stop else (stop, stop)
        except OSError as exc:
            return (stop, stop) if exc.errno == errno.ENXIO else (start, stop)

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        if len(parts) == 1 and os.pwrite(self._fd, parts[0], offset) == len(parts[0]):
            return
        _write_all(self._fd, offset, parts)

    def resize(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def sync(self) -> None:
        _sync(self._fd)

    def forget(self) -> None:
        if sys.platform != "darwin" and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def identity(self) -> tuple[int, int]:
        return self._identity

    def linked(self) -> bool:
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        if self._fd < 0:
            raise ClosedError
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        try:
            fcntl.fcntl(self._fd, _SETLK, _flock(kind, offset, 1))
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            # Where there are no locks nobody opens for writing (see `locks.locks_work`), so readers need none.
            if exc.errno not in NO_LOCKS or self.writable:
                raise
        return True

    def unlock(self, offset: int) -> None:
        if self._fd < 0:
            return  # closing has released it
        try:
            fcntl.fcntl(self._fd, _SETLK, _flock(fcntl.F_UNLCK, offset, 1))
        except OSError as exc:
            if exc.errno not in NO_LOCKS or self.writable:
                raise

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        # The kernel names one lock in the way, not the lowest: narrow the question until nobody answers.
        if self._fd < 0:
            raise ClosedError
        lowest = None
        while stop > start:
            try:
                answer = fcntl.fcntl(self._fd, _GETLK, _flock(fcntl.F_WRLCK, start, stop - start))
            except OSError as exc:
                if exc.errno not in NO_LOCKS or self.writable:
                    raise
                return None
            kind, _, offset, _, pid = _FLOCK.unpack(answer)
            if kind == fcntl.F_UNLCK:
                break
            lowest = LockOwner(max(offset, start), pid if pid > 0 else None)
            stop = lowest.offset
        return lowest

    def reopen(self) -> FileDisk:
        flags = (os.O_RDWR if self.writable else os.O_RDONLY) | os.O_CLOEXEC
        try:
            fd = os.open(f"/proc/self/fd/{self._fd}", flags)
        except OSError:
            fd = os.open(self.path, flags)
        fresh = FileDisk(fd, self.path, writable=self.writable)
        if fresh.identity() != self.identity():
            fresh.close()
            raise FileNotFoundError(errno.ENOENT, "the file was replaced while it was open", self.path)
        return fresh

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        self.read = _read_closed
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class FileVolume:
    """The file system of the operating system."""

    def open(self, path: str, *, writable: bool) -> FileDisk:
        # Not to wait for the other end of a pipe, which is no database anyway; for files it makes no difference.
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
        return FileDisk(os.open(path, flags), path, writable=writable)

    def create(self, path: str, mode: int) -> FileDisk:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        return FileDisk(os.open(path, flags, mode), path, writable=True)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def replace(self, source: str, target: str) -> None:
        try:
            os.chmod(source, stat.S_IMODE(os.stat(target).st_mode))
        except FileNotFoundError:
            pass
        os.replace(source, target)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _identity(fd: int, path: str) -> tuple[int, int]:
    """Which file it is. A directory, a pipe or a device is refused, and closed, before it is touched."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return status.st_dev, status.st_ino


def _write_all(fd: int, offset: int, parts: Sequence[bytes]) -> None:
    pending = [memoryview(part) for part in parts if part]
    start = 0
    while start < len(pending):
        written = os.pwritev(fd, pending[start : start + _VECTOR_MAX], offset)
        if written == 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        offset += written
        while written and written >= len(pending[start]):
            written -= len(pending[start])
            start += 1
        if written:
            pending[start] = pending[start][written:]


def _read_closed(length: int, offset: int) -> bytes:
    raise ClosedError


# struct flock on 64-bit systems: Linux and most others have {short type, whence; long start, len; int pid}, macOS has
# {long start, len; int pid; short type, whence}. macOS knows these locks since 10.11; its Python does not name them.
# Where a system has none, the command is one that no kernel knows: locking fails with EINVAL, see NO_LOCKS.

if sys.platform == "darwin":
    _SETLK, _GETLK = 90, 92
    _DARWIN_FLOCK = struct.Struct("qqihh")

    class _FLOCK:
        @staticmethod
        def unpack(data: bytes) -> tuple[int, int, int, int, int]:
            start, length, pid, kind, whence = _DARWIN_FLOCK.unpack(data)
            return kind, whence, start, length, pid

    def _flock(kind: int, start: int, length: int) -> bytes:
        return _DARWIN_FLOCK.pack(start, length, 0, kind, os.SEEK_SET)

    def _sync(fd: int) -> None:
        # fsync on macOS leaves the bytes in the drive's own cache; only this reaches the medium. Network and some
        # foreign file systems do not know it, and have no cache of a drive to care for.
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError as exc:
            if exc.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY, errno.ENODEV):
                raise
            os.fsync(fd)

else:
    _SETLK, _GETLK = getattr(fcntl, "F_OFD_SETLK", -1), getattr(fcntl, "F_OFD_GETLK", -1)
    _FLOCK = struct.Struct("hhqqi4x")

    def _flock(kind: int, start: int, length: int) -> bytes:
        return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)

    _sync = os.fdatasync
