"""A file system that is really full: a small one in memory, where mounting is permitted."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from model import MODES

import durabledbm

SIZE = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory that holds a megabyte."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(directory)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"a file system cannot be mounted here: {exc}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def fill_up(directory: Path, *, leave: int = 0) -> Path:
    """Take all space but `leave` bytes."""
    ballast, status = directory / "ballast", os.statvfs(directory)
    ballast.write_bytes(bytes(status.f_bavail * status.f_frsize - leave))
    return ballast


def assert_full(exc: durabledbm.error) -> None:
    assert exc.errno == errno.ENOSPC
    assert "space" in str(exc)


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_loses_nothing_and_when_there_is_space_again_writing_goes_on(mode: str, small: Path) -> None:
    path, model = small / "db", {}
    db = durabledbm.open(path, "c", durability=mode, interval=3600)
    try:
        for n in range(5000):
            db[b"%04d" % n] = b"x" * 1000
            if mode != "full" and n % 50 == 49:
                db.sync()
            model[b"%04d" % n] = b"x" * 1000
    except durabledbm.error as exc:
        assert_full(exc)
    assert len(model) < 5000
    try:
        db.close()
    except durabledbm.error as exc:
        assert mode != "full"
        assert_full(exc)
    with durabledbm.open(path, "w") as db:
        found = dict(db.items())
        synced = model if mode == "full" else dict(list(model.items())[: len(model) // 50 * 50])
        assert synced.items() <= found.items()
        assert all(value == b"x" * 1000 for value in found.values())
        assert db.check() == []
        with pytest.raises(durabledbm.error):
            db.update({b"more %03d" % n: os.urandom(3000) for n in range(400)})
        assert dict(db.items()) == found
        for key in list(found)[: len(found) // 2]:
            try:
                del db[key]
            except durabledbm.error as exc:  # copy-on-write needs some pages even to delete
                assert_full(exc)
                break
        assert db.check() == []
    with durabledbm.open(path, "r") as db:
        assert found.items() >= dict(db.items()).items()


def test_a_handle_that_met_a_full_disk_goes_on_when_there_is_space(small: Path) -> None:
    ballast = fill_up(small, leave=100_000)
    with durabledbm.open(small / "db", "c") as db:
        db.update({b"%03d" % n: b"x" * 50 for n in range(100)})
        before = dict(db.items())
        with pytest.raises(durabledbm.error) as caught:
            db.update({b"large %d" % n: os.urandom(20_000) for n in range(20)})
        assert_full(caught.value)
        assert dict(db.items()) == before
        ballast.unlink()
        db[b"again"] = b"1"
        db.update({b"large %d" % n: os.urandom(20_000) for n in range(20)})
        assert len(db) == 121
        assert db.check() == []


def test_a_database_that_finds_no_space_to_be_created_leaves_nothing(small: Path) -> None:
    ballast = fill_up(small)
    with pytest.raises(durabledbm.error) as caught:
        durabledbm.open(small / "db", "c")
    assert_full(caught.value)
    assert os.listdir(small) == ["ballast"]
    ballast.unlink()
    with durabledbm.open(small / "db", "c") as db:
        db["a"] = "1"


def test_a_backup_that_finds_no_space_leaves_nothing(small: Path, tmp_path: Path) -> None:
    fill_up(small, leave=50_000)
    with durabledbm.open(tmp_path / "db", "c") as db:
        db.update({b"%03d" % n: os.urandom(500) for n in range(1000)})
        with pytest.raises(durabledbm.error) as caught:
            db.backup(small / "copy")
        assert_full(caught.value)
        assert os.listdir(small) == ["ballast"]


def test_a_migration_that_finds_no_space_leaves_the_source_and_nothing_else(small: Path, tmp_path: Path) -> None:
    import dbm.dumb

    with dbm.dumb.open(str(tmp_path / "old"), "c") as old:
        for n in range(300):
            old[b"%03d" % n] = os.urandom(500)
    fill_up(small, leave=50_000)
    with pytest.raises(durabledbm.error) as caught:
        durabledbm.migrate(tmp_path / "old", small / "new")
    assert_full(caught.value)
    assert os.listdir(small) == ["ballast"]
    with dbm.dumb.open(str(tmp_path / "old"), "r") as old:
        assert len(old) == 300


def test_a_file_on_a_full_disk_can_be_read_checked_and_reorganized_or_says_why_not(small: Path) -> None:
    with durabledbm.open(small / "db", "c") as db:
        content = {b"%03d" % n: b"%03d" % n * 200 for n in range(300)}
        db.update(content)
        for n in range(0, 300, 2):
            del db[b"%03d" % n], content[b"%03d" % n]
        fill_up(small)
        assert dict(db.items()) == content
        try:
            db.reorganize()
        except durabledbm.error as exc:
            assert_full(exc)
        assert dict(db.items()) == content
        assert db.check() == []
