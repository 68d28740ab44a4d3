"""A model of the part of Windows that `durabledbm._engine.disk.windows` is built on: files, names, and
LockFileEx's locks.

It follows the documentation of the calls, to the letter where that is inconvenient:

* Locks belong to one open file. An exclusive lock excludes every other lock, also one of the same open file;
  a shared
  one excludes exclusive ones, except that it may overlap an exclusive lock of the same open file.
* Locking twice locks twice. Unlocking takes exactly the range that was locked; an exclusive lock goes first.
* Locks are mandatory: bytes that another open file has locked can be neither read nor written.
* A range that ends beyond 2**63 - 1 cannot be locked.
* Closing the open file releases its locks; an open file can be removed, and renamed, but none can take its name.
* A file in `in_use` is open in a program that shares it with nobody.

`before`, if set, is called with the name of each call before it happens: a test may do something in between
there. `after` is called when a lock was asked for or let go of.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from durabledbm._engine.disk.windows import Handle, InUse


class FakeLock(NamedTuple):
    handle: Handle
    start: int
    stop: int
    exclusive: bool


class FakeFile:
    def __init__(self, number: int) -> None:
        self.number = number
        self.data = bytearray()
        self.flushed = b""
        self.locks: list[FakeLock] = []


class FakeKernel:
    """A `Kernel`. `short`, if not 0, is how many bytes a write takes at most."""

    def __init__(self, *, short: int = 0) -> None:
        self._numbers = itertools.count(100)
        self._mutex = threading.RLock()
        self._names: dict[str, FakeFile] = {}
        self._open: dict[Handle, tuple[FakeFile, bool]] = {}
        self._short = short
        self.before: Callable[[str], None] | None = None
        self.after: Callable[[str], None] | None = None
        self.calls: dict[str, int] = {}
        self.directories_refused = False
        self.reopening_refused = False
        self.in_use: set[str] = set()

    def _call(self, name: str) -> None:
        if self.before is not None:
            self.before(name)
        with self._mutex:
            self.calls[name] = self.calls.get(name, 0) + 1

    @property
    def handles(self) -> int:
        return len(self._open)

    @property
    def locks(self) -> list[FakeLock]:
        return [lock for file, _ in self._open.values() for lock in file.locks]

    def _file(self, handle: Handle, *, write: bool = False) -> FakeFile:
        file, writable = self._open.get(handle, (None, False))
        if file is None:
            raise OSError(errno.EBADF, "the handle is invalid")
        if write and not writable:
            raise PermissionError(errno.EACCES, "access is denied")
        return file

    def _opened(self, file: FakeFile, *, writable: bool) -> Handle:
        handle = Handle(next(self._numbers))
        self._open[handle] = file, writable
        return handle

    def open(self, path: str, *, writable: bool) -> Handle:
        self._call("open")
        with self._mutex:
            self._check_use(path)
            if path not in self._names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return self._opened(self._names[path], writable=writable)

    def reopen(self, handle: Handle, *, writable: bool) -> Handle:
        self._call("reopen")
        with self._mutex:
            if self.reopening_refused:
                raise OSError(errno.EINVAL, "the request is not supported")
            return self._opened(self._file(handle), writable=writable)

    def create(self, path: str) -> Handle:
        self._call("create")
        with self._mutex:
            self._free(path)
            self._names[path] = file = FakeFile(next(self._numbers))
            return self._opened(file, writable=True)

    def _free(self, path: str) -> None:
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    def close(self, handle: Handle) -> None:
        self._call("close")
        with self._mutex:
            file = self._file(handle)
            file.locks = [lock for lock in file.locks if lock.handle != handle]
            del self._open[handle]

    def size(self, handle: Handle) -> int:
        return len(self._file(handle).data)

    def read(self, handle: Handle, length: int, offset: int) -> bytes:
        self._call("read")
        with self._mutex:
            file = self._file(handle)
            self._refuse(file, handle, offset, offset + length, write=False)
            return bytes(file.data[offset : offset + length])

    def write(self, handle: Handle, data: bytes, offset: int) -> int:
        self._call("write")
        with self._mutex:
            file = self._file(handle, write=True)
            self._refuse(file, handle, offset, offset + len(data), write=True)
            if self._short:
                data = data[: self._short]
            file.data += bytes(max(0, offset + len(data) - len(file.data)))
            file.data[offset : offset + len(data)] = data
            return len(data)

    @staticmethod
    def _refuse(file: FakeFile, handle: Handle, start: int, stop: int, *, write: bool) -> None:
        for lock in file.locks:
            denied = lock.handle != handle if lock.exclusive else write
            if lock.start < stop and start < lock.stop and denied:
                raise PermissionError(errno.EACCES, "another process has locked a portion of the file")

    def resize(self, handle: Handle, size: int) -> None:
        self._call("resize")
        with self._mutex:
            file = self._file(handle, write=True)
            del file.data[size:]
            file.data += bytes(size - len(file.data))

    def flush(self, handle: Handle) -> None:
        self._call("flush")
        with self._mutex:
            file = self._file(handle, write=True)
            file.flushed = bytes(file.data)

    def identity(self, handle: Handle) -> tuple[int, int]:
        return 1, self._file(handle).number

    def identity_of(self, path: str) -> tuple[int, int]:
        with self._mutex:
            return 1, self._named(path).number

    def lock(self, handle: Handle, offset: int, length: int, *, exclusive: bool) -> bool:
        self._call("lock")
        locked = self._lock(handle, offset, length, exclusive=exclusive)
        if self.after is not None:
            self.after("lock")
        return locked

    def _lock(self, handle: Handle, offset: int, length: int, *, exclusive: bool) -> bool:
        with self._mutex:
            assert offset >= 0
            assert length > 0
            if offset + length > 2**63 - 1:
                raise OSError(errno.EINVAL, "an invalid file range was supplied")
            file = self._file(handle)
            for lock in file.locks:
                excluded = exclusive or (lock.exclusive and lock.handle != handle)
                if lock.start < offset + length and offset < lock.stop and excluded:
                    return False
            file.locks.append(FakeLock(handle, offset, offset + length, exclusive))
            return True

    def unlock(self, handle: Handle, offset: int, length: int) -> None:
        self._call("unlock")
        self._unlock(handle, offset, length)
        if self.after is not None:
            self.after("unlock")

    def _unlock(self, handle: Handle, offset: int, length: int) -> None:
        with self._mutex:
            file = self._file(handle)
            for exclusive in (True, False):
                lock = FakeLock(handle, offset, offset + length, exclusive)
                if lock in file.locks:
                    file.locks.remove(lock)
                    return
            raise OSError(errno.EINVAL, "the segment is already unlocked")

    def link(self, source: str, target: str) -> None:
        with self._mutex:
            self._free(target)
            self._names[target] = self._named(source)

    def replace(self, source: str, target: str) -> None:
        self._call("replace")
        with self._mutex:
            self._check_use(source)
            replaced = self._names.get(target)
            if replaced is not None and source != target and any(file is replaced for file, _ in self._open.values()):
                raise PermissionError(errno.EACCES, "access is denied", target)
            self._names[target] = self._named(source)
            if source != target:
                del self._names[source]

    def remove(self, path: str) -> None:
        self._call("remove")
        with self._mutex:
            self._check_use(path)
            self._named(path)
            del self._names[path]

    def _check_use(self, path: str) -> None:
        if path in self.in_use:
            raise InUse(errno.EACCES, "another program uses the file", path)

    def _named(self, path: str) -> FakeFile:
        try:
            return self._names[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def flush_directory(self, path: str) -> bool:
        self._call("flush_directory")
        return not self.directories_refused
