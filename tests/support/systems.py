"""Which system the tests run on, and marks for what only some systems have.

A test that is skipped on Windows says which fact of Windows it cannot be shown on: `@only_posix("Windows has no ...")`.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile

import pytest

from durabledbm._engine.disk import FileVolume

WINDOWS = sys.platform == "win32"

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
"""Whether permissions mean nothing to this process, and it can give files away."""


TELLS_HOLDERS = not WINDOWS and os.path.exists("/proc/self/fdinfo")
"""Whether the system tells which process has a file open. Under Wine there is a /proc, of the system below it."""


def only_posix(reason: str) -> pytest.MarkDecorator:
    """Skip the test on Windows. `reason`: the fact of Windows because of which it cannot hold there."""
    return pytest.mark.skipif(WINDOWS, reason=reason)


KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""What ends a process without its knowledge. On Windows one process can send another nothing else."""

ENDINGS = [KILL] if WINDOWS else [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
"""The signals that end a process that does nothing about them."""


def alarm(seconds: int) -> None:
    """Have SIGALRM come after so many seconds; 0: no more. Windows has none: there the runner limits each test."""
    if sys.platform != "win32":
        signal.alarm(seconds)


needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_mode = only_posix("Windows has access control lists, which a new file inherits, and no mode")
needs_pipe_files = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in directories")


def _removal_is_immediate() -> bool:
    """Whether a file that is open, by a disk of ours, loses its name when it is removed. Elsewhere it keeps it until it
    is closed; real Windows then lets nobody open it, but Wine does, and nothing tells that the file was removed.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "file")
        disk = FileVolume().create(path, 0o600)
        try:
            os.unlink(path)
            return not disk.linked()
        finally:
            disk.close()


def _has_symlinks() -> bool:
    with tempfile.TemporaryDirectory() as directory:
        link = os.path.join(directory, "link")
        try:
            os.symlink("target", link)
        except OSError:
            return False
        return os.path.islink(link)


needs_immediate_removal = pytest.mark.skipif(
    not _removal_is_immediate(), reason="a removed file can be opened here until it is closed: so does Wine"
)
HAS_SYMLINKS = _has_symlinks()
needs_symlinks = pytest.mark.skipif(not HAS_SYMLINKS, reason="this system or this user makes no symbolic links")
needs_sources = pytest.mark.skipif(
    not os.path.exists(os.__file__), reason="this Python comes without the sources of its standard library"
)
needs_replacing_open = only_posix("Windows lets no file take the name of one that is open")
