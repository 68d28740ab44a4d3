"""The disk on POSIX systems: what only a real file can show. The contract that it shares with the one on Windows is in
tests/test_windows_disk.py.
"""

from __future__ import annotations

import errno
import gc
import importlib.util
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from children import open_directory, unprivileged
from systems import WINDOWS, needs_root

from durabledbm.errors import ClosedError

if WINDOWS:
    pytest.skip("the disk of POSIX systems", allow_module_level=True)

import fcntl

from durabledbm._engine.disk import posix
from durabledbm._engine.disk.posix import FileDisk, FileVolume

BEFORE_THE_FILE = -1
"""A place where the kernel refuses to lock, with the words of one that does not know locks at all: EINVAL."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "file")


@pytest.fixture
def disk(path: str) -> Iterator[FileDisk]:
    disk = FileVolume().create(path, 0o600)
    yield disk
    disk.close()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size`: the write that would is cut short, the next one fails."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


# -- reading and writing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1500])
def test_any_number_of_parts_is_written_in_order(disk: FileDisk, count: int) -> None:
    parts = [b"%d," % number * (number % 4) for number in range(count)]
    disk.write(7, parts)
    written = b"".join(parts)
    assert disk.read(1 << 20, 7) == written
    assert disk.size() == (len(written) + 7 if written else 0)


@pytest.mark.parametrize("parts", [1, 3, 30, 700])
def test_a_write_that_was_cut_short_is_gone_on_with_and_what_stops_it_is_raised(disk: FileDisk, parts: int) -> None:
    content = os.urandom(10_000)
    step = -(-len(content) // parts)
    pieces = [content[at : at + step] for at in range(0, len(content), step)]
    with room_for(9_001), pytest.raises(OSError) as caught:
        disk.write(0, pieces)
    assert caught.value.errno == errno.EFBIG
    assert disk.read(20_000, 0) == content[:9_001]
    disk.write(0, pieces)
    assert disk.read(20_000, 0) == content


def cached(fd: int) -> bool:
    """Whether a read of the first page needs no medium."""
    try:
        os.preadv(fd, [bytearray(4096)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not tell what it has in memory")
def test_what_is_forgotten_is_read_from_the_medium(disk: FileDisk) -> None:
    content = os.urandom(4096)
    disk.write(0, (content,))
    disk.sync()
    try:
        assert cached(disk._fd)
        os.posix_fadvise(disk._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        forgets = not cached(disk._fd)
    except OSError:
        forgets = False
    if not forgets:
        pytest.skip("this file system keeps everything in memory, or does not tell")
    assert disk.read(4096, 0) == content
    assert cached(disk._fd)
    disk.forget()
    assert not cached(disk._fd)
    assert disk.read(4096, 0) == content


# -- which file it is ----------------------------------------------------------------------------------------------


def test_a_file_is_linked_until_its_name_is_gone_or_is_anothers(disk: FileDisk, path: str) -> None:
    assert disk.linked()
    os.rename(path, path + ".old")
    assert not disk.linked()
    Path(path).touch()
    assert not disk.linked()
    os.rename(path + ".old", path)
    assert disk.linked()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_a_file_without_a_name_is_opened_again(disk: FileDisk, path: str) -> None:
    disk.write(0, (b"content",))
    os.unlink(path)
    again = disk.reopen()
    assert again.read(100, 0) == b"content"
    assert again.identity() == disk.identity()
    assert disk.lock(5, exclusive=True)
    assert not again.lock(5, exclusive=True), "it is an open file of its own"
    again.close()


def test_where_only_the_name_tells_the_file_another_of_that_name_is_refused(disk: FileDisk, path: str) -> None:
    """As where there is no /proc: a descriptor that is closed has no entry there."""
    disk.write(0, (b"content",))
    disk.close()
    again = disk.reopen()
    assert again.read(100, 0) == b"content"
    again.close()
    os.rename(path, path + ".old")
    Path(path).write_bytes(b"other")
    with pytest.raises(FileNotFoundError, match="moved or removed while it was open"):
        disk.reopen()
    assert Path(path).read_bytes() == b"other"


def test_what_is_no_file_is_refused_without_waiting_and_closed(path: str, tmp_path: Path) -> None:
    os.mkfifo(path)
    free = os.open(tmp_path, os.O_RDONLY)
    os.close(free)
    for place in (path, str(tmp_path), os.devnull):
        with pytest.raises(OSError, match="not a regular file") as caught:
            FileVolume().open(place, writable=False)
        assert caught.value.filename == place
    following = os.open(tmp_path, os.O_RDONLY)
    os.close(following)
    assert following == free, "no descriptor was left open"


def test_a_file_takes_over_the_permissions_of_the_one_that_it_replaces(path: str) -> None:
    volume = FileVolume()
    for name, mode in ((path, 0o604), (path + ".new", 0o600)):
        volume.create(name, mode).close()
        os.chmod(name, mode)
    volume.replace(path + ".new", path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o604
    volume.replace(path, path + ".nobody")
    assert stat.S_IMODE(os.stat(path + ".nobody").st_mode) == 0o604
    assert not os.path.exists(path)


@needs_root
def test_a_file_takes_over_the_owner_and_group_of_the_one_that_it_replaces(path: str) -> None:
    volume = FileVolume()
    for name, owner, group in (("old", 65534, 65533), ("new", 0, 0)):
        volume.create(path + name, 0o600).close()
        os.chown(path + name, owner, group)
    volume.replace(path + "new", path + "old")
    status = os.stat(path + "old")
    assert (status.st_uid, status.st_gid) == (65534, 65533)


def test_what_the_system_does_not_permit_is_left_as_it_is_and_never_wider(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = FileVolume()
    old = volume.create(path, 0o600)
    os.chmod(path, 0o664)
    status = old.status()
    like = os.stat_result((status.st_mode, 0, 0, 1, status.st_uid, status.st_gid + 1, 0, 0, 0, 0))
    old.close()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with closing(volume.create(path + "2", 0o600)) as disk:
        disk.take_owner(like)
    assert stat.S_IMODE(os.stat(path + "2").st_mode) == 0o644, "the permissions of another group"
    monkeypatch.setattr(os, "fchmod", refuse)
    with closing(volume.create(path + "3", 0o600)) as disk:
        disk.take_owner(like)
    assert stat.S_IMODE(os.stat(path + "3").st_mode) == 0o600


@pytest.mark.parametrize("divert", [os.symlink, os.link])
def test_a_replacement_that_is_diverted_gives_nobody_anything(
    path: str, tmp_path: Path, divert: Callable[[str, str], None]
) -> None:
    """Whoever may write the directory may put a link to a victim in place of the new file."""
    victim = str(tmp_path / "victim")
    volume = FileVolume()
    for name, mode in ((path, 0o666), (victim, 0o600)):
        volume.create(name, 0o600).close()
        os.chmod(name, mode)
    divert(victim, path + ".new")
    try:
        volume.replace(path + ".new", path)
    except OSError as exc:
        assert exc.errno == errno.ELOOP  # noqa: PT017
    assert stat.S_IMODE(os.stat(victim).st_mode) == 0o600


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES])
def test_where_a_directory_cannot_be_synced_the_file_is(
    disk: FileDisk, path: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def fsync(fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(code, os.strerror(code))
        synced.append(status.st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    FileVolume().sync_directory(path)
    assert synced == [os.stat(path).st_ino]
    FileVolume().sync_directory(path + " that is not there")


def test_a_sync_of_a_directory_that_fails_is_told(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        FileVolume().sync_directory(path)


def test_a_directory_that_may_be_searched_but_not_read_is_no_obstacle() -> None:
    """One in which everybody may put files, and nobody may look around."""
    with open_directory() as directory:
        directory.chmod(0o1733)
        unprivileged("""
with durabledbm.open("db", "c") as db:
    db["key"] = "value"
    db.backup("copy")
with durabledbm.open("copy") as db:
    assert dict(db.items()) == {b"key": b"value"}
""", directory)


def test_the_directory_of_a_bare_name_is_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FileVolume().create("bare", 0o600).close()
    FileVolume().sync_directory("bare")
    with pytest.raises(FileNotFoundError):
        FileVolume().sync_directory("missing/bare")


# -- ends ----------------------------------------------------------------------------------------------------------


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_closed_disk_reads_and_locks_nothing(disk: FileDisk) -> None:
    disk.write(0, (b"content",))
    disk.close()
    disk.close()
    for use in (
        lambda: disk.read(1, 0),
        lambda: disk.lock(0, exclusive=False),
        lambda: disk.lock(0, exclusive=True),
        lambda: disk.lowest_lock(0, 10),
    ):
        with pytest.raises(ClosedError):
            use()
    disk.unlock(0)


def test_a_disk_that_is_dropped_closes_its_file(path: str) -> None:
    disk = FileVolume().create(path, 0o600)
    fd = disk._fd
    assert is_open(fd)
    gc.disable()
    try:
        del disk
        assert not is_open(fd)
    finally:
        gc.enable()


# -- locks that the kernel refuses ---------------------------------------------------------------------------------


def test_readers_need_no_locks_where_there_are_none_and_writers_are_told(disk: FileDisk, path: str) -> None:
    reader = FileVolume().open(path, writable=False)
    assert reader.lock(BEFORE_THE_FILE, exclusive=False)
    reader.unlock(BEFORE_THE_FILE)
    assert reader.lowest_lock(BEFORE_THE_FILE, 10) is None
    for use in (
        lambda: disk.lock(BEFORE_THE_FILE, exclusive=False),
        lambda: disk.unlock(BEFORE_THE_FILE),
        lambda: disk.lowest_lock(BEFORE_THE_FILE, 10),
    ):
        with pytest.raises(OSError) as caught:
            use()
        assert caught.value.errno in posix.NO_LOCKS
    reader.close()


def test_a_reader_is_told_of_other_failures(disk: FileDisk, path: str) -> None:
    """An exclusive lock of a file that is open for reading is a bug, not a system without locks."""
    reader = FileVolume().open(path, writable=False)
    with pytest.raises(OSError) as caught:
        reader.lock(5, exclusive=True)
    assert caught.value.errno == errno.EBADF
    reader.close()


# -- macOS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def darwin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as macOS has it, but for the calls, which are those of this system."""
    specification = importlib.util.spec_from_file_location("durabledbm._engine.disk.posix_of_macos", posix.__file__)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        patch.delattr(os, "pwritev", raising=False)  # which it has from version 11 on
        specification.loader.exec_module(module)
    return module


def test_macos_before_version_11_writes_many_parts_without_the_call_for_it(darwin: ModuleType, path: str) -> None:
    parts = [b"%d," % number * (number % 100) for number in range(2000)]
    disk = darwin.FileVolume().create(path, 0o600)
    disk.write(0, parts)
    assert disk.read(10**6, 0) == b"".join(parts)
    disk.close()


def test_the_lock_structure_of_macos_has_the_layout_of_its_header(darwin: ModuleType) -> None:
    """off_t l_start, l_len; pid_t l_pid; short l_type, l_whence."""
    start, length, pid, kind, whence = 2**62 + 5, 1, 4711, fcntl.F_WRLCK, os.SEEK_SET
    expected = struct.pack("=qqihh", start, length, 0, kind, whence)
    assert darwin._flock(kind, start, length) == expected
    answer = struct.pack("=qqihh", start, length, pid, kind, whence)
    assert darwin._FLOCK.unpack(answer) == (kind, whence, start, length, pid)
    assert (darwin._SETLK, darwin._GETLK) == (90, 92)


@pytest.mark.skipif(sys.platform == "darwin", reason="the command is known here")
def test_macos_syncs_a_file_system_that_does_not_know_its_own_command(
    darwin: ModuleType, disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says EINVAL; any other failure is one of the sync."""
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", -1, raising=False)
    darwin._sync(disk._fd)
    fd = disk._fd
    disk.close()
    with pytest.raises(OSError) as caught:
        darwin._sync(fd)
    assert caught.value.errno == errno.EBADF
