"""The disk: everything that the engine asks of an operating system, as two small interfaces that are handed in.

`Disk` is one open file: read, write, resize, sync, and byte locks. `Volume` is the directory operations that
creating and replacing a file need. `FileDisk` and `FileVolume` are the real ones, for POSIX; tests hand in simulated
ones that can lose, tear and reorder whatever was not synced. No other module of the engine touches the operating
system.

The contract that durability rests on:

* `write` returns when the operating system has the bytes: other processes see them, and a killed process does not
  take them back. Nothing is promised about a power failure.
* `sync` returns when everything written to this file before, by whatever process, is on the medium, the file's size
  included. If it raises, nothing may be assumed about any of these writes, nor about a later `sync` that succeeds.
* A name created, linked or replaced in a directory is on the medium when `sync_directory` has returned.
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
from typing import NamedTuple, Protocol

from ..errors import ClosedError

__all__ = ["Disk", "FileDisk", "FileVolume", "LockOwner", "Volume"]

_VECTOR_MAX = 512  # buffers in one writev: below every platform's IOV_MAX
_CHUNK_MAX = 1 << 30  # bytes in one read: Linux moves at most 2**31 - 4096 at once


class LockOwner(NamedTuple):
    """A byte that someone else has locked. `pid` is None where the kernel does not tell whose lock it is."""

    offset: int
    pid: int | None


class Disk(Protocol):
    """One open file."""

    path: str
    writable: bool
    read: Callable[[int, int], bytes]
    """`read(length, offset)`: the bytes there, fewer only where the file ends. `length` is at most 2**30."""

    def size(self) -> int:
        """Length of the file in bytes."""

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        """Write the concatenation of `parts` at `offset`, all of it, growing the file if needed."""

    def resize(self, size: int) -> None:
        """Cut the file off at `size` bytes, or extend it with zeros."""

    def sync(self) -> None:
        """Return when everything written to the file is on the medium."""

    def forget(self) -> None:
        """Let following reads come from the medium, not from memory, where the platform can."""

    def identity(self) -> tuple[int, int]:
        """What tells this file from every other on the machine, whatever its name: device and inode."""

    def linked(self) -> bool:
        """Whether `path` still names this file."""

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        """Try to lock the one byte at `offset`; False if someone else's lock is in the way. Never waits.

        A lock belongs to this `Disk`: it keeps out every other, also of this process, and it ends with
        `unlock`, with `close`, or with the process.
        """

    def unlock(self, offset: int) -> None:
        """Release the byte at `offset`."""

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        """The lowest byte in [start, stop) that another `Disk` has locked, in whatever process, or None."""

    def reopen(self) -> Disk:
        """The same file, whatever its name is now, as a `Disk` of its own: for a child process after `fork`."""

    def close(self) -> None:
        """Release file and locks. Closing twice is harmless."""


class Volume(Protocol):
    """The directory operations behind creating, replacing and opening a file. Paths are absolute or relative."""

    def open(self, path: str, *, writable: bool) -> Disk:
        """Open an existing file; `FileNotFoundError` if there is none."""

    def create(self, path: str, mode: int) -> Disk:
        """Create a file that must not exist yet (nor be a symbolic link), with `mode` less the umask."""

    def link(self, source: str, target: str) -> None:
        """Give the file `source` the second name `target`; `FileExistsError` if that is taken."""

    def replace(self, source: str, target: str) -> None:
        """Rename `source` to `target`, in place of whatever had that name, whose permissions it takes over."""

    def remove(self, path: str) -> None:
        """Remove a name."""

    def sync_directory(self, path: str) -> None:
        """Return when the names in the directory that holds `path` are on the medium."""


class FileDisk:
    """A file of the operating system, through positioned reads and writes and open-file-description locks."""

    __slots__ = ("__weakref__", "_fd", "path", "read", "writable")

    def __init__(self, fd: int, path: str, *, writable: bool) -> None:
        self._fd = fd
        self.path = path
        self.writable = writable
        # A partial, not a method: this is the hottest call of all, and a Python frame would cost as much as the read.
        self.read: Callable[[int, int], bytes] = partial(os.pread, fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        if len(parts) == 1 and os.pwrite(self._fd, parts[0], offset) == len(parts[0]):
            return
        _write_all(self._fd, offset, parts)

    def resize(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def sync(self) -> None:
        _sync(self._fd)

    def forget(self) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def identity(self) -> tuple[int, int]:
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def linked(self) -> bool:
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.identity()

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        if self._fd < 0:
            raise ClosedError
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        try:
            fcntl.fcntl(self._fd, _SETLK, _flock(kind, offset, 1))
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def unlock(self, offset: int) -> None:
        if self._fd < 0:
            return  # closing has released it
        fcntl.fcntl(self._fd, _SETLK, _flock(fcntl.F_UNLCK, offset, 1))

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        # The kernel names one lock in the way, not the lowest: narrow the question until nobody answers.
        if self._fd < 0:
            raise ClosedError
        lowest = None
        while stop > start:
            answer = fcntl.fcntl(self._fd, _GETLK, _flock(fcntl.F_WRLCK, start, stop - start))
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
        return FileDisk(_regular(os.open(path, flags), path), path, writable=writable)

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


def _regular(fd: int, path: str) -> int:
    """Pass `fd` through if it is a regular file: a directory, a pipe or a device is refused before it is touched."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


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


# Locks: open-file-description locks belong to the open file, not to the process, so two handles of one process keep
# each other out and closing some other descriptor of the same file releases nothing. struct flock on 64-bit systems:
# Linux has {short type, whence; long start, len; int pid}, macOS {long start, len; int pid; short type, whence}.

if sys.platform == "darwin":
    _SETLK, _GETLK = 90, 92
    _DARWIN_FLOCK = struct.Struct("qqihh")

    class _FLOCK:
        size = _DARWIN_FLOCK.size

        @staticmethod
        def unpack(data: bytes) -> tuple[int, int, int, int, int]:
            start, length, pid, kind, whence = _DARWIN_FLOCK.unpack(data)
            return kind, whence, start, length, pid

    def _flock(kind: int, start: int, length: int) -> bytes:
        return _DARWIN_FLOCK.pack(start, length, 0, kind, os.SEEK_SET)

    def _sync(fd: int) -> None:
        # fsync on macOS leaves the bytes in the drive's own cache; only this reaches the medium.
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

else:
    _SETLK, _GETLK = fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK
    _FLOCK = struct.Struct("hhqqi4x")

    def _flock(kind: int, start: int, length: int) -> bytes:
        return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)

    _sync = os.fdatasync
