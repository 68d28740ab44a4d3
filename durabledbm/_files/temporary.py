"""Temporary files and directories beside a target. Their names cannot be guessed, and none stays behind.

A name is `.durabledbm-`, 64 random bits, `.tmp`, in the directory of the target: short enough for any file system, and
unknown until it exists. The file is created exclusively, so a planted link is never followed.

The process that creates one holds a lock on it, at a byte that the engine uses for nothing else. The kernel releases
the lock when the process ends, in whatever container it ran. So the next run in the same directory can tell files in
use from files of a killed run, and removes the latter (`sweep`). Where a file system keeps no locks, nothing is swept.

While there are temporary files, SIGTERM and SIGHUP, and SIGBREAK on Windows (Ctrl-Break, or a console that is closed),
remove them before they end the process, unless the program handles or ignores the signal itself. Python installs
handlers only in the main thread; if other threads created all temporary files, the next run removes what a signal left.

Modules that take time to import are not imported here: every open handle imports this module, for `backup`.
"""

from __future__ import annotations

import atexit
import errno
import os
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, ModuleType, TracebackType

from .._engine.disk import FileDisk, FileVolume, take_owner
from .._engine.disk.protocol import Disk
from .._engine.files import temporary_name
from .._engine.locks import TEMPORARY_OFFSET
from ..errors import error

__all__ = ["Temporary", "blame_target", "new_directory", "new_file", "sweep"]

_DIGITS = frozenset("0123456789abcdef")
_LOCK_FILE = "lock"
_ATTEMPTS = 100
_SIGNALS = ("SIGTERM", "SIGHUP", "SIGBREAK")

_living: dict[str, Temporary] = {}
"""The temporary files of this process. Each is recorded before it exists, and forgotten after it is gone."""
_process = os.getpid()
"""The process whose they are: not a child that was just forked."""


class Temporary:
    """A temporary file or directory. Made by `new_file` and `new_directory`.

    `remove()` and the end of a `with` block remove it. To keep a file, link it to its target or rename it: a file that
    no longer has the temporary name is not removed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._disk: Disk | None = None

    @property
    def disk(self) -> Disk:
        """The file, open for writing; of a directory, the lock file in it. `remove()` closes it."""
        assert self._disk is not None
        return self._disk

    def __enter__(self) -> Temporary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def take_owner(self, like: os.stat_result) -> None:
        """Give a file the owner, group and permissions of another before it gets its name, and sync them.

        Raises what the operating system raises, also if the file no longer exists.
        """
        if sys.platform == "win32":
            return
        fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self.disk.identity():
                raise FileNotFoundError(errno.ENOENT, "a temporary file was replaced by another one", self.path)
            take_owner(fd, like)
            os.fsync(fd)
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove it, with everything in a directory, and release the lock. Removing twice is harmless.

        What cannot be removed now is left to the next `sweep`. In a child after `fork` nothing happens: the file is the
        parent's.
        """
        if self.path in _living:
            _remove(self.path, self._disk)
            _living.pop(self.path, None)
            _release_signals()


def new_file(target: str, mode: int = 0o600, like: os.stat_result | None = None) -> Temporary:
    """Create an empty file beside `target`, open and locked, after sweeping the directory.

    It has the permissions `mode`, less the umask. With `like` it has exactly the owner, group and permissions of that
    file instead. Raises what the operating system raises.
    """
    sweep(target)
    return _locked(target, lambda path: _create_file(path, mode, like))


def new_directory(target: str) -> Temporary:
    """Create a directory beside `target` that only its owner can open, after sweeping the directory around it.

    It may be filled with any files; one named "lock" exists already. For a directory that becomes `target` itself, make
    one inside. Raises what the operating system raises.
    """
    sweep(target)
    return _locked(target, _create_directory)


def sweep(target: str) -> None:
    """Remove this user's temporary files in the directory of `target` whose processes have ended. Raises no OSError."""
    directory = os.path.dirname(target)
    with suppress(OSError):
        for name in os.listdir(directory or "."):
            path = os.path.join(directory, name)
            if _is_temporary(name) and path not in _living:
                with suppress(OSError):
                    _remove_if_dead(path)


def _is_temporary(name: str) -> bool:
    """Whether a file of that name is one of ours: `temporary_name` of the engine makes them."""
    digits = name.removeprefix(".durabledbm-").removesuffix(".tmp")
    return name == f".durabledbm-{digits}.tmp" and len(digits) == 16 and _DIGITS.issuperset(digits)


def blame_target(exc: OSError, target: str) -> None:
    """Change an error about a temporary file into one about its target, whose name the user knows."""
    if isinstance(exc.filename, str) and any(map(_is_temporary, exc.filename.split(os.sep))):
        exc.filename = target


# -- making --------------------------------------------------------------------------------------------------------


def _locked(target: str, create: Callable[[str], Disk | None]) -> Temporary:
    """Create something with `create`, and return it when the lock on it is held."""
    for _ in range(_ATTEMPTS):
        made = Temporary(temporary_name(target))
        _living[made.path] = made
        try:
            _watch_signals()
            made._disk = create(made.path)
            if made._disk is not None and _lock(made._disk) and made._disk.linked():
                return made
        except BaseException:
            made.remove()
            raise
        made.remove()  # between creating and locking it, another process's sweep took it for a leftover
    raise error(f"{target}: another process keeps removing temporary files beside it")


def _create_file(path: str, mode: int, like: os.stat_result | None) -> Disk:
    disk = FileVolume().create(path, mode if like is None else 0o600)
    if like is not None:
        disk.take_owner(like)
    return disk


def _create_directory(path: str) -> Disk | None:
    """Make the directory; return its lock file, or None if a sweep was faster."""
    os.mkdir(path, 0o700)
    try:
        return FileVolume().create(os.path.join(path, _LOCK_FILE), 0o600)
    except FileNotFoundError:
        return None


def _lock(disk: Disk, *, exclusive: bool = True) -> bool:
    try:
        return disk.lock(TEMPORARY_OFFSET, exclusive=exclusive)
    except OSError:
        return exclusive  # without locks the owner goes on, and a sweep leaves everything alone


# -- removing ------------------------------------------------------------------------------------------------------


def _remove(path: str, disk: Disk | None) -> None:
    """Remove what exists, as far as possible, and close `disk`."""
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            _empty(path)
        else:
            os.unlink(path)
    if disk is not None:
        disk.close()  # Windows removes an open file, and lets its directory be removed, only then
    with suppress(OSError):
        os.rmdir(path)


def _empty(directory: str, parent: int | None = None) -> None:
    """Remove all files in a directory, the lock file last: after a kill in between, a sweep can continue.

    The directory and each directory in it are held open meanwhile, so no process can replace them with a link.
    """
    if sys.platform == "win32":
        _empty_by_name(directory)
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for name in sorted(os.listdir(fd), key=lambda name: name == _LOCK_FILE):
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                _empty(name, fd)
                os.rmdir(name, dir_fd=fd)
            else:
                os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)


def _empty_by_name(directory: str) -> None:
    for name in sorted(os.listdir(directory), key=lambda name: name == _LOCK_FILE):
        path = os.path.join(directory, name)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            _empty_by_name(path)
            os.rmdir(path)
        else:
            os.unlink(path)


def _remove_if_dead(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        return  # a link or a pipe: none of ours
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        return  # another user's, who may have put it there to see what becomes of it
    lock_path = os.path.join(path, _LOCK_FILE) if stat.S_ISDIR(status.st_mode) else path
    try:
        disk = _open(lock_path)
    except FileNotFoundError:
        os.rmdir(path)  # made or removed at this moment, or left by a kill at such a moment: if it is empty
        return
    try:
        # A shared lock will do: it keeps out an owner that has yet to lock the file, and needs no permission to write.
        if _lock(disk, exclusive=False) and _shows(lock_path):
            _remove(path, disk)
    finally:
        disk.close()


def _shows(lock_path: str) -> bool:
    """Whether another open file sees the lock that was just taken: some file systems pretend."""
    twin = _open(lock_path)
    try:
        return twin.lowest_lock(TEMPORARY_OFFSET, TEMPORARY_OFFSET + 1) is not None
    finally:
        twin.close()


def _open(path: str) -> FileDisk:
    if sys.platform == "win32":
        return FileVolume().open(path, writable=False)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return FileDisk(fd, path, writable=True)  # "writable": to be told where the file system keeps no locks


# -- the end of the process ----------------------------------------------------------------------------------------


def _remove_all() -> None:
    if os.getpid() == _process:
        for temporary in list(_living.values()):
            _remove(temporary.path, temporary._disk)


def _on_signal(number: int, frame: FrameType | None) -> None:
    _remove_all()
    signal = _signal_module()
    assert signal is not None
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)  # ends the process as if this handler had never been


def _watch_signals() -> None:
    """Handle the signals that would end the process."""
    signal = _signal_module()
    if signal is not None and threading.current_thread() is threading.main_thread():
        for number in _numbers(signal):
            if signal.getsignal(number) is signal.SIG_DFL:
                with suppress(ValueError):  # not in the main interpreter
                    signal.signal(number, _on_signal)


def _release_signals() -> None:
    """Undo `_watch_signals` when there is no temporary file any more."""
    signal = _signal_module()
    if signal is not None and not _living and threading.current_thread() is threading.main_thread():
        for number in _numbers(signal):
            if signal.getsignal(number) is _on_signal:
                signal.signal(number, signal.SIG_DFL)


def _numbers(signal: ModuleType) -> list[int]:
    return [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]


def _signal_module() -> ModuleType | None:
    """The module `signal`, or None if it cannot be imported any more, as after `chroot`: then the next run cleans up.
    """
    try:
        import signal
    except (ImportError, OSError):
        return None
    return signal


def _after_fork() -> None:
    """The child owns no temporary files. It closes its copies of the open files, so the locks end with the parent."""
    global _process
    _process = os.getpid()
    for temporary in _living.values():
        if temporary._disk is not None:
            temporary._disk.close()
    _living.clear()


atexit.register(_remove_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
