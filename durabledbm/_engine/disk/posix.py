"""The disk on POSIX systems: positioned reads and writes, and open-file-description locks.

Such a lock belongs to the open file, not to the process: two handles of one process keep each other out, closing some
other descriptor of the same file releases nothing, and what a killed process held is released by the kernel.

A forked child inherits open files together with their locks, and a lock ends only when the last process has closed the
open file. So a child that never uses a handle would keep the locks of a parent that was killed. Therefore every disk of
a child changes to an open file of its own, directly after the fork and under the same number.

A write of the parent's that such a child goes on with, since a signal handler has forked, must not get there. It has
the mark of the open file that it was begun for (see below), and compares it directly before the system call, so that no
handler runs in between. During the call one may, if the file system lets signals interrupt it; then the call is made
once more. So a child that is forked during it leaves the number to an open file that cannot be written, and takes
another.

A number may be taken away from us (see `disk`). To tell, each open file gets a mark that no other has: its position,
which positioned reads and writes neither use nor move. Asking for it is the cheapest of all system calls, and unlike
device and inode it tells two open files of the same file apart.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

from ..._interrupts import is_interrupt
from ...errors import ClosedError, error
from .protocol import ELSEWHERE, PARENTS, LockOwner, Writes

assert sys.platform != "win32", "see windows"

__all__ = ["NO_LOCKS", "FileDisk", "FileVolume", "take_owner"]

# Where a system has none, a number that no kernel knows: seeking fails with EINVAL, and all bytes count as kept.
_SEEK_DATA, _SEEK_HOLE = getattr(os, "SEEK_DATA", -1), getattr(os, "SEEK_HOLE", -1)

_VECTOR_MAX = 512  # buffers in one writev: below every platform's IOV_MAX

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
"""What a file system or a kernel says that does not keep locks of this kind."""


_STANDARD = 3
"""Numbers below this are those of the standard streams."""

_LOST, _CLOSED = -1, -2
"""In place of a descriptor: another part of the program has closed it, or we have."""

_TAKEN = "another part of the program has closed the file's descriptor"

_marks = itertools.count(int.from_bytes(os.urandom(3), "little"))
_MARK = 1 << 30
"""Positions from here to twice this are marks: a file system that has 31 bits for a position can keep them."""

_disks: dict[int, weakref.ref[FileDisk]] = {}
"""All that are open, by descriptor: for fork."""
_NO_SYNC = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS, errno.EACCES, errno.EPERM}
)
"""What a system says that does not sync directories, or not this one: network and shared folders, or no permission."""


class FileDisk:
    """A file of the operating system, through positioned reads and writes and open-file-description locks."""

    __slots__ = (
        "__weakref__", "_fd", "_identity", "_mark", "_root", "_seeking", "_writing", "path", "read", "writable",
    )  # fmt: skip

    def __init__(self, fd: int, path: str, *, writable: bool) -> None:
        self._identity = _identity(fd, path)
        self._seeking: list[int] = []
        """One item for each thread that looks for holes: they move the position by which `held` tells the file."""
        self._writing: list[int] = []
        """The threads that are writing."""
        self._root = _root()
        self.path = path
        self.writable = writable
        self._hold(fd)

    def size(self) -> int:
        return os.fstat(self._own()).st_size

    def data(self, start: int, stop: int) -> tuple[int, int]:
        fd = self._own()
        try:
            self._seeking.append(fd)  # the position is no mark meanwhile
            first = os.lseek(fd, start, _SEEK_DATA)
            return (first, min(os.lseek(fd, first, _SEEK_HOLE), stop)) if first < stop else (stop, stop)
        except OSError as exc:
            if is_interrupt(exc):
                raise
            return (stop, stop) if exc.errno == errno.ENXIO else (start, stop)
        finally:
            os.lseek(fd, self._mark, os.SEEK_SET)
            if self._seeking:
                self._seeking.pop()

    def write(self, offset: int, parts: Sequence[bytes | memoryview]) -> None:
        self._write(self._mark, offset, parts)

    def resize(self, size: int) -> None:
        self._resize(self._mark, size)

    def writes(self) -> Writes:
        return Writes(partial(self._write, self._mark), partial(self._resize, self._mark))

    def _write(self, mark: int, offset: int, parts: Sequence[bytes | memoryview]) -> None:
        """Write to the open file that has the mark."""
        fd = self._own()
        try:
            self._writing.append(threading.get_ident())
            pending: Sequence[bytes | memoryview] = parts
            while True:
                if not pending:
                    break
                call: Callable[..., int] = os.pwrite if len(pending) == 1 else _write_vector
                what = pending[0] if len(pending) == 1 else pending[:_VECTOR_MAX]
                # The good way leads to the call without a jump, at which Python 3.10 may call a signal handler.
                if self._mark == mark:
                    written = call(fd, what, offset)
                else:
                    raise error(f"{self.path}: {PARENTS}")
                if len(parts) == 1 and written == len(parts[0]):
                    return  # as nearly always
                offset += written
                pending = _rest(pending, written)
        except OSError as exc:
            if self._mark == mark or is_interrupt(exc):
                raise
            raise error(f"{self.path}: {PARENTS}") from exc
        finally:
            if self._writing:
                self._writing.pop()

    def _resize(self, mark: int, size: int) -> None:
        fd = self._own()
        try:
            self._writing.append(threading.get_ident())
            if self._mark == mark:  # as in `_write`
                os.ftruncate(fd, size)
            else:
                raise error(f"{self.path}: {PARENTS}")
        except OSError as exc:
            if self._mark == mark or is_interrupt(exc):
                raise
            raise error(f"{self.path}: {PARENTS}") from exc
        finally:
            if self._writing:
                self._writing.pop()

    def sync(self) -> None:
        _sync(self._own())

    def forget(self) -> None:
        if sys.platform != "darwin" and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._own(), 0, 0, os.POSIX_FADV_DONTNEED)

    def identity(self) -> tuple[int, int]:
        return self._identity

    def linked(self) -> bool:
        try:
            status = os.stat(self.path)
            if (status.st_dev, status.st_ino) == self._identity:
                return True
        except OSError as exc:
            if is_interrupt(exc):
                raise
            if not isinstance(exc, (FileNotFoundError, NotADirectoryError)):
                return True  # a directory on the way has become unreadable to this process, or a server is away
        # Below another root the name means another file, or none. Then all that can be told is whether there is a name.
        return self._root != _root() and os.fstat(self._own()).st_nlink > 0

    # -- whose the descriptor is -----------------------------------------------------------------------------------

    def _hold(self, fd: int) -> None:
        """From now on `fd` is ours."""
        self._mark = _marked(fd)
        self._fd = fd
        # A partial, not a method: this is the hottest call of all, and a Python frame would cost as much as the read.
        self.read: Callable[[int, int], bytes] = partial(os.pread, fd)
        _disks[fd] = weakref.ref(self)

    def held(self) -> bool:
        try:
            if self._fd < 0:
                return False
            if os.lseek(self._fd, 0, 1) == self._mark:
                return True
            # More than one look: another thread that seeks puts the position back before it is taken off the list, and
            # may have done both between the two questions.
            return any(self._seeking or os.lseek(self._fd, 0, 1) == self._mark for _ in range(4))
        except OSError as exc:
            if is_interrupt(exc):
                raise
            return False  # closed, or a pipe by now

    def _let_go(self, fd: int) -> None:
        """The descriptor is not ours any more."""
        old, self._fd = self._fd, fd
        self.read = self._read_nothing
        reference = _disks.get(old)
        if reference is not None and reference() is self:
            del _disks[old]

    def _own(self) -> int:
        """The descriptor, if it is still ours."""
        if not self.held():
            raise self._why_not()
        return self._fd

    def _why_not(self) -> OSError:
        return ClosedError() if self._fd == _CLOSED else OSError(errno.EBADF, _TAKEN, self.path)

    def _read_nothing(self, length: int, offset: int) -> bytes:
        raise self._why_not()

    def regain(self) -> None:
        if self._fd == _CLOSED:
            raise ClosedError
        if not self.held():
            fd = self._opened_again()
            self._let_go(_LOST)
            self._hold(fd)

    def reopen(self) -> FileDisk:
        return FileDisk(self._opened_again(), self.path, writable=self.writable)

    def _opened_again(self) -> int:
        """Another descriptor for the file, with an open file of its own."""
        flags = _flags(self.writable)
        if self.held():
            try:
                return _open(f"/proc/self/fd/{self._fd}", flags)
            except OSError as exc:
                if is_interrupt(exc):
                    raise
        fd = _open(self.path, flags)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self._identity:
                raise FileNotFoundError(errno.ENOENT, ELSEWHERE, self.path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def part(self) -> None:
        """In a forked child: change to an open file of our own, which shares no lock with the parent.

        The number stays. Where the file cannot be opened again (no descriptor is left, or it has no name and there is
        no /proc, or the process may not open it any more), the descriptor is closed all the same, and the next user of
        the disk next tries again.
        """
        inherited = self._fd
        if not self.held():
            return
        try:
            fresh = self._opened_again()
        except OSError:
            self._let_go(_LOST)
            os.close(inherited)
            return
        if threading.get_ident() in self._writing:
            self._leave(inherited)
            self._hold(fresh)
        else:
            os.dup2(fresh, inherited, inheritable=False)
            os.close(fresh)
            self._mark = _marked(inherited)
        self._writing = []

    def _leave(self, inherited: int) -> None:
        """In a child that goes on with a system call of the parent's: reading may go on, and writing fails."""
        self._let_go(_LOST)
        try:
            powerless = _open(f"/proc/self/fd/{inherited}", _flags(False))
        except OSError:
            powerless = _open(os.devnull, _flags(False))
        os.dup2(powerless, inherited, inheritable=False)
        os.close(powerless)

    def close(self) -> None:
        fd, ours = self._fd, self.held()
        self._let_go(_CLOSED)
        if ours:
            os.close(fd)

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if getattr(self, "_fd", -1) >= 0 and not _finalizing():  # at the end modules are empty, and the system closes
            self.close()

    # -- locks -----------------------------------------------------------------------------------------------------

    def status(self) -> os.stat_result:
        return os.fstat(self._own())

    def take_owner(self, like: os.stat_result) -> None:
        take_owner(self._own(), like)

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        try:
            fcntl.fcntl(self._own(), _SETLK, _flock(kind, offset, 1))
        except OSError as exc:
            if is_interrupt(exc):
                raise
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            # Where there are no locks files are not opened for writing (see `locks.locks_work`), so readers need none.
            if exc.errno not in NO_LOCKS or self.writable:
                raise
        return True

    def unlock(self, offset: int) -> None:
        if not self.held():
            return  # the lock has gone with the open file
        try:
            fcntl.fcntl(self._fd, _SETLK, _flock(fcntl.F_UNLCK, offset, 1))
        except OSError as exc:
            if exc.errno not in NO_LOCKS or self.writable or is_interrupt(exc):
                raise

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        # The kernel names one lock in the way, not the lowest: narrow the question until there is none.
        fd = self._own()
        lowest = None
        while stop > start:
            try:
                answer = fcntl.fcntl(fd, _GETLK, _flock(fcntl.F_WRLCK, start, stop - start))
            except OSError as exc:
                if exc.errno not in NO_LOCKS or self.writable or is_interrupt(exc):
                    raise
                return None
            kind, _, offset, _, pid = _FLOCK.unpack(answer)
            if kind == fcntl.F_UNLCK:
                break
            lowest = LockOwner(max(offset, start), pid if pid > 0 else None, pid == os.getpid())
            stop = lowest.offset
        return lowest


class FileVolume:
    """The file system of the operating system."""

    def open(self, path: str, *, writable: bool) -> FileDisk:
        return FileDisk(_open(path, _flags(writable)), path, writable=writable)

    def create(self, path: str, mode: int) -> FileDisk:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        return FileDisk(_open(path, flags, mode), path, writable=True)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def replace(self, source: str, target: str) -> None:
        try:
            like = os.stat(target)
        except FileNotFoundError:
            pass
        else:
            _give_name_owner(source, like)
        os.replace(source, target)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        try:
            _sync_names(os.path.dirname(path) or ".")
        except OSError as exc:
            if exc.errno not in _NO_SYNC or is_interrupt(exc):
                raise
            # A journal has the names of a file, too, when it has the file.
            try:
                _sync_names(path)
            except OSError as exc:
                if is_interrupt(exc):
                    raise

    def identity_of(self, path: str) -> tuple[int, int]:
        """`Disk.identity` of the file of that name, which may also be a directory."""
        status = os.stat(path)
        return status.st_dev, status.st_ino


def take_owner(fd: int, like: os.stat_result) -> None:
    """See `Disk.take_owner`."""
    mode = like.st_mode & 0o777
    for owner in (like.st_uid, -1):
        try:
            os.fchown(fd, owner, like.st_gid)
            break
        except OSError:
            continue  # only root may give files away; a group must be one of our own
    if os.fstat(fd).st_gid != like.st_gid:
        mode = mode & 0o707 | (mode & 0o007) << 3
    try:
        os.fchmod(fd, mode)
    except OSError:
        pass  # a file system without permissions


def _give_name_owner(path: str, like: os.stat_result) -> None:
    """`take_owner` of a file that is not open. Other users of the directory must not divert it to another file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            take_owner(fd, like)
    finally:
        os.close(fd)


def _sync_names(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _flags(writable: bool) -> int:
    """How to open an existing file: not to wait for the other end of a pipe, which is no database anyway."""
    return (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)


def _open(path: str, flags: int, mode: int = 0o777) -> int:
    """`os.open`, but never with the number of a standard stream.

    A program that has closed its standard error would get the file under that number, and overwrite it with what it
    prints there. So the free ones among these numbers are taken for as long as the file is being opened.
    """
    stopgaps: list[int] = []
    try:
        if not all(map(_is_open, range(_STANDARD))):
            while True:
                if stopgaps and stopgaps[-1] >= _STANDARD:
                    break
                stopgaps.append(os.open(os.sep, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC))
        fd = os.open(path, flags, mode)
    finally:
        for stopgap in stopgaps:
            os.close(stopgap)
    if fd >= _STANDARD:
        return fd
    try:  # another thread has closed a standard stream just now
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD)
    finally:
        os.close(fd)


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _marked(fd: int) -> int:
    """Give an open file its mark."""
    return os.lseek(fd, _MARK | next(_marks) % _MARK, os.SEEK_SET)


def _root() -> tuple[int, int]:
    """Where absolute names begin for this process."""
    status = os.stat(os.sep)
    return status.st_dev, status.st_ino


def _part_from_parent() -> None:
    for reference in list(_disks.values()):
        if (disk := reference()) is not None:
            disk.part()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_part_from_parent)


def _identity(fd: int, path: str) -> tuple[int, int]:
    """Which file it is. A directory, a pipe or a device is refused, and closed, before it is touched."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return status.st_dev, status.st_ino


if hasattr(os, "pwritev"):
    _write_vector = os.pwritev
else:  # macOS before version 11

    def _write_vector(fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:  # type: ignore[misc]
        return os.pwrite(fd, b"".join(parts), offset)


def _rest(parts: Sequence[bytes | memoryview], written: int) -> Sequence[bytes | memoryview]:
    """What is left of the parts when so many bytes of them were written."""
    if written == 0 and any(parts):
        raise OSError(errno.EIO, "the disk took no bytes")
    for number, part in enumerate(parts):
        if written < len(part):
            return [memoryview(part)[written:], *parts[number + 1 :]]
        written -= len(part)
    return ()


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
