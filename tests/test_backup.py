"""A backup: a copy of one commit, made while others write, whole or not there."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from systems import HAS_SYMLINKS, needs_mode, needs_symlinks
from test_attach import write_at_random

import durabledbm
from durabledbm._engine.bulkload import Builder
from durabledbm._engine.disk import FileVolume
from durabledbm._engine.meta import Meta, first_page
from durabledbm.errors import CorruptionError, error
from durabledbm.maintenance.backup import Pace


def content(path: str | Path) -> dict[bytes, bytes]:
    with durabledbm.open(path, "r") as db:
        assert not db.check()
        return dict(db.items())


@pytest.mark.parametrize("seed", range(6))
def test_a_backup_is_the_same_database_as_of_the_same_commit(
    db: durabledbm.Database, tmp_path: Path, seed: int
) -> None:
    write_at_random(db, random.Random(seed), 40)
    db.backup(tmp_path / "copy")
    with durabledbm.open(tmp_path / "copy", "r") as copy:
        assert copy == db
        ours, theirs = db._store.state.meta, copy._store.state.meta
        assert (theirs.txid, theirs.database_id, theirs.time_ns) == (ours.txid, ours.database_id, ours.time_ns)
    with durabledbm.open(tmp_path / "copy", "w") as copy:
        write_at_random(copy, random.Random(seed + 100), 40)
        assert not copy.check()


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_entries_of_every_size_are_copied(tmp_path: Path, page_size: int) -> None:
    sizes = [0, 1, 40, 500, page_size // 2 - 1, page_size // 2, page_size // 2 + 1, page_size, 3 * page_size, 10**6]
    entries = {b"%d %d" % (size, number): os.urandom(size) for size in sizes for number in range(5)}
    entries |= {b"k" * size: b"long key" for size in (1000, 5000, 100_000)}
    with durabledbm.open(tmp_path / "db", "c", page_size=page_size) as db:
        db.update(entries)
        db.backup(tmp_path / "copy")
    assert content(tmp_path / "copy") == entries


@pytest.mark.parametrize("flag", ["r", "w"])
def test_a_database_that_is_not_initialised_yet_is_copied(tmp_path: Path, flag: str) -> None:
    (tmp_path / "empty").touch()
    with durabledbm.open(tmp_path / "empty", flag) as db:
        db.backup(tmp_path / "copy")
    assert (tmp_path / "empty").stat().st_size == 0
    with durabledbm.open(tmp_path / "copy", "w") as copy:
        assert copy.check() == []
        copy["key"] = "value"
        assert dict(copy.items()) == {b"key": b"value"}


def test_an_empty_database_is_copied(db: durabledbm.Database, tmp_path: Path) -> None:
    db.backup(tmp_path / "copy")
    assert content(tmp_path / "copy") == {}
    db["a"] = "1"
    del db["a"]
    db.backup(tmp_path / "copy")
    assert content(tmp_path / "copy") == {}


def test_a_backup_is_compact(db: durabledbm.Database, db_path: str, tmp_path: Path) -> None:
    order = list(range(20_000))
    random.Random(1).shuffle(order)
    for start in range(0, 20_000, 1000):
        db.update({b"%08d" % number: bytes(90) for number in order[start : start + 1000]})
    with db.transaction():
        for number in order[::2]:
            db.pop(b"%08d" % number)
    db.backup(tmp_path / "copy")
    entries = len(db) * (8 + 90 + 5)
    assert os.path.getsize(tmp_path / "copy") < 1.12 * entries
    with durabledbm.open(tmp_path / "copy") as copy:
        assert copy.stats().free_pages <= 1


def test_a_backup_shows_one_commit_while_others_write(db: durabledbm.Database, tmp_path: Path) -> None:
    """Every commit sets all entries to the same value, and the copy is compared at every report of progress."""
    keys = [b"%05d" % number for number in range(2000)]
    db.update(dict.fromkeys(keys, b"0" * 100))
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            db.update(dict.fromkeys(keys, b"%d" % number * 20))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            db.backup(tmp_path / f"copy {number}")
    finally:
        stop.set()
        thread.join()
    for number in range(5):
        copied = content(tmp_path / f"copy {number}")
        assert len(copied) == 2000
        assert len(set(copied.values())) == 1


def test_deferred_changes_are_in_the_backup(tmp_path: Path) -> None:
    with durabledbm.open(tmp_path / "db", "c", durability="manual") as db:
        db["a"] = "1"
        db.backup(tmp_path / "copy")
    assert content(tmp_path / "copy") == {b"a": b"1"}


def test_a_read_only_handle_makes_backups(db: durabledbm.Database, db_path: str, tmp_path: Path) -> None:
    db["a"] = "1"
    with durabledbm.open(db_path, "r") as reader:
        reader.backup(tmp_path / "copy")
    assert content(tmp_path / "copy") == {b"a": b"1"}


def test_progress_counts_entries(db: durabledbm.Database, tmp_path: Path) -> None:
    db.update({b"%05d" % number: b"" for number in range(1000)})
    calls: list[tuple[int, int]] = []
    db.backup(tmp_path / "copy", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (1000, 1000)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert {total for _, total in calls} == {1000}


# -- whole or not at all -----------------------------------------------------------------------------------------


def test_a_backup_that_fails_leaves_nothing_and_keeps_what_was_there(db: durabledbm.Database, tmp_path: Path) -> None:
    db.update({b"%05d" % number: b"" for number in range(1000)})
    (tmp_path / "copy").write_text("before")
    names = sorted(os.listdir(tmp_path))

    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        db.backup(tmp_path / "copy", progress=fail)
    assert sorted(os.listdir(tmp_path)) == names
    assert (tmp_path / "copy").read_text() == "before"
    db.backup(tmp_path / "copy")
    assert len(content(tmp_path / "copy")) == 1000
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.leaves_damage
def test_a_damaged_database_is_not_copied(db: durabledbm.Database, db_path: str, tmp_path: Path) -> None:
    db.update({b"%05d" % number: bytes(100) for number in range(1000)})
    with open(db_path, "r+b") as file:
        file.seek(db.stats().page_size * 10)
        file.write(b"rot" * 100)
    with durabledbm.open(db_path, "r") as fresh, pytest.raises(CorruptionError):
        fresh.backup(tmp_path / "copy")
    assert os.listdir(tmp_path) == ["test.db"]


def test_the_database_itself_is_no_target(db: durabledbm.Database, db_path: str, tmp_path: Path) -> None:
    db["a"] = "1"
    (os.symlink if HAS_SYMLINKS else os.link)(db_path, tmp_path / "link")
    os.link(db_path, tmp_path / "second name")
    for target in (db_path, tmp_path / "link", tmp_path / "second name"):
        with pytest.raises(error, match="itself"):
            db.backup(target)
    os.mkdir(tmp_path / "directory")
    with pytest.raises(error, match="regular file"):
        db.backup(tmp_path / "directory")
    with pytest.raises(error) as caught:
        db.backup(tmp_path / "missing" / "copy")
    assert isinstance(caught.value.errno, int)
    assert db["a"] == b"1"


@needs_symlinks
def test_a_symbolic_link_stays_and_its_target_is_replaced(db: durabledbm.Database, tmp_path: Path) -> None:
    db["a"] = "1"
    os.symlink(tmp_path / "real", tmp_path / "link")
    db.backup(tmp_path / "link")
    assert os.path.islink(tmp_path / "link")
    assert content(tmp_path / "real") == {b"a": b"1"}


@needs_mode
def test_the_copy_has_the_permissions_of_the_database(db: durabledbm.Database, db_path: str, tmp_path: Path) -> None:
    os.chmod(db_path, 0o604)
    db.backup(tmp_path / "copy")
    assert stat.S_IMODE(os.stat(tmp_path / "copy").st_mode) == 0o604


def test_names_of_every_type_are_taken(db: durabledbm.Database, tmp_path: Path) -> None:
    for target in (str(tmp_path / "a"), os.fsencode(tmp_path / "b"), tmp_path / "c"):
        db.backup(target)  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "test.db"]


KILLED = """
import sys, durabledbm
db = durabledbm.open(sys.argv[1], "r")
sys.stdout.write("ready\\n"); sys.stdout.flush()
db.backup(sys.argv[2])
"""


def test_a_killed_backup_leaves_no_target(db: durabledbm.Database, db_path: str, tmp_path: Path) -> None:
    db.update({b"%06d" % number: bytes(100) for number in range(20_000)})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    rng = random.Random(2)
    for number in range(5):
        target = tmp_path / f"copy {number}"
        command = [sys.executable, "-c", KILLED, db_path, str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.random() * 0.15)
            process.kill()
        if target.exists():
            assert len(content(target)) == 20_000


# -- building ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 39, 40, 41, 170 * 39, 171 * 39 + 1, 30_000])
def test_a_built_tree_is_sound_at_every_number_of_leaves(tmp_path: Path, count: int) -> None:
    path = str(tmp_path / "built")
    disk = FileVolume().create(path, 0o600)
    builder = Builder(disk, Meta(7, 4096, b"i" * 16, first_page(4096)))
    entries = {b"%012d" % number: bytes(83) for number in range(count)}
    builder.add(entries.items())
    builder.finish()
    disk.close()
    with durabledbm.open(path) as db:
        assert not db.check()
        assert dict(db.items()) == entries
        assert len(db) == count
        for number in range(0, count, 997):
            assert db[b"%012d" % number] == bytes(83)


class Clock:
    """Time that passes when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = self.worked = 0.0
        self.slept: list[float] = []

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.worked += seconds

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(round(seconds, 6))

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.worked


def test_copying_rests_three_times_as_long_as_it_works_while_the_handle_commits(
    db: durabledbm.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("durabledbm.maintenance.backup.time", clock)
    pace = Pace(db._store)
    for _ in range(3):
        clock.work(0.001)
        pace.rest()
    assert clock.slept == [], "nobody commits"
    db["a"] = "1"
    clock.work(0.002)
    pace.rest()
    clock.work(0.001)
    clock.now += 0.005  # waiting for the disk is no work
    pace.rest()
    assert clock.slept == [0.006, 0.003]
    clock.now += 0.2
    clock.work(0.001)
    pace.rest()
    assert clock.slept == [0.006, 0.003], "the last commit was long ago"
