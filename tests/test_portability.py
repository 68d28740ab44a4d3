"""What differs between systems: locks that do not work, systems without them, modules that need the other one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from simdisk import Fault, SimDisk, SimVolume

import durabledbm
from durabledbm._engine import locks
from durabledbm._engine.disk import FileDisk, FileVolume
from durabledbm._engine.disk.protocol import LockOwner
from durabledbm.database import open_on


@pytest.fixture(autouse=True)
def _nothing_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_proved", set())


class DeafDisk(SimDisk):
    """A file whose locks are granted to everybody, as on some network file systems."""

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        return True

    def unlock(self, offset: int) -> None:
        pass

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        return None


class DeafVolume(SimVolume):
    def open(self, path: str, *, writable: bool) -> SimDisk:
        disk = super().open(path, writable=writable)
        disk.__class__ = DeafDisk
        return disk


def refusing(code: int) -> SimVolume:
    volume = SimVolume()
    volume.fail_at(0, Fault(lambda: OSError(code, os.strerror(code)), times=None), kinds=("lock",))
    return volume


@pytest.mark.parametrize("flag", ["c", "w", "n"])
@pytest.mark.parametrize(
    "volume", [DeafVolume(), refusing(errno.ENOLCK), refusing(errno.EOPNOTSUPP), refusing(errno.EINVAL)],
    ids=["granted to all", "ENOLCK", "EOPNOTSUPP", "EINVAL"],
)  # fmt: skip
def test_where_locks_do_not_work_opening_for_writing_says_so(volume: SimVolume, flag: str) -> None:
    with open_on(SimVolume(), "/db", "c") as db:
        db["k"] = "v"
        image = db._store.disk._volume.content("/db")  # type: ignore[attr-defined]
    volume.put("/db", image)
    with pytest.raises(durabledbm.error, match="keeps no locks") as caught:
        open_on(volume, "/db", flag)
    assert caught.value.errno == errno.ENOLCK
    assert volume.content("/db") == image, "it was left alone"


def test_where_locks_work_it_is_found_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    original = FileDisk.reopen
    monkeypatch.setattr(FileDisk, "reopen", lambda self: (tries.append(self.path), original(self))[1])
    for name in ("a", "b", "a"):
        durabledbm.open(tmp_path / name, "c").close()
    assert len(tries) == 1
    durabledbm.open(tmp_path / "a", "r").close()
    assert len(tries) == 1


def test_two_that_find_it_out_at_once_both_open(tmp_path: Path) -> None:
    name = str(tmp_path / "a")
    durabledbm.open(name, "c").close()
    locks._proved.clear()
    trying = FileVolume().open(name, writable=True)
    assert trying.lock(locks.TEST_OFFSET, exclusive=True)
    durabledbm.open(name, "w").close()
    trying.close()


@pytest.fixture
def lockless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file on a system that does not know the commands for locks: the kernel says EINVAL."""
    name = str(tmp_path / "test.db")
    with durabledbm.open(name, "c") as db:
        db.update({f"{number}": "v" for number in range(1000)})
    from durabledbm._engine.disk import posix

    with monkeypatch.context() as patch:
        patch.setattr(posix, "_SETLK", -1)
        patch.setattr(posix, "_GETLK", -1)
        locks._proved.clear()
        yield name


@pytest.mark.skipif(sys.platform == "win32", reason="for POSIX")
def test_a_system_without_such_locks_can_read_but_not_write(lockless: str) -> None:
    with pytest.raises(durabledbm.error, match="keeps no locks"):
        durabledbm.open(lockless, "w")
    with durabledbm.open(lockless, "r") as db, db.snapshot() as snapshot:
        assert db["1"] == b"v"
        assert len(dict(db)) == len(dict(snapshot)) == 1000
        assert db.check() == []


def test_the_lock_structure_of_this_system_is_understood(tmp_path: Path) -> None:
    """Whoever holds a lock is found at the very byte, up to the last that there is."""
    volume = FileVolume()
    first = volume.create(str(tmp_path / "file"), 0o600)
    second = volume.open(str(tmp_path / "file"), writable=False)
    for offset in (0, 1, 2**31, 2**32 + 5, 2**62 + 2**40, 2**63 - 2):
        assert second.lock(offset, exclusive=False)
        owner = first.lowest_lock(0, 2**63 - 1)
        assert owner is not None
        assert owner.offset == offset
        second.unlock(offset)
        assert first.lowest_lock(0, 2**63 - 1) is None
    first.close()
    second.close()


def test_the_windows_modules_can_be_imported_without_the_posix_ones() -> None:
    """And the engine imports fcntl only through `disk`, which picks the modules of the system."""
    code = (
        "import sys; sys.modules['fcntl'] = None; import importlib.util as u, types, os\n"
        "root = os.path.dirname(u.find_spec('durabledbm').origin)\n"
        "for name in ('durabledbm', 'durabledbm._engine', 'durabledbm._engine.disk'):\n"
        "    package = sys.modules[name] = types.ModuleType(name)\n"
        "    package.__path__ = [os.path.join(root, *name.split('.')[1:])]\n"
        "import durabledbm._engine.disk.windows, durabledbm._engine.disk.kernel32, durabledbm._engine.locks\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
