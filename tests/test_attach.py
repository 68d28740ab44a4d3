"""A log that is attached: it holds every commit, and whatever it missed it gets, or attaching says that it cannot."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from systems import KILL, WINDOWS, needs_fork, needs_immediate_removal

import durabledbm
import durabledbm.attach as attach_module
from durabledbm._engine.view import View
from durabledbm._files.tree_diff import tree_differences
from durabledbm.attach import attach
from durabledbm.changelog import Change, ChangeLog, Commit
from durabledbm.errors import BusyError, error


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ChangeLog]:
    with ChangeLog(tmp_path / "log", max_file_size=5000) as log:
        yield log


def replayed(log: ChangeLog) -> dict[bytes, bytes]:
    content: dict[bytes, bytes] = {}
    for op, key, value in log.replay():
        if op == "put":
            assert value is not None
            content[key] = value
        else:
            content.pop(key, None)
    return content


def commits(log: ChangeLog) -> list[int]:
    return [item.txid for item in log.records() if isinstance(item, Commit)]


def miss(db: durabledbm.Database) -> None:
    """Stop following, as a kill between a commit and its record would."""
    observer = db._store.observer
    assert observer is not None
    observer.close()


def write_at_random(db: durabledbm.Database, rng: random.Random, count: int) -> None:
    """Commits of every kind and size."""
    for _ in range(count):
        key = b"key %d" % rng.randrange(400)
        choice = rng.random()
        if choice < 0.5:
            db[key] = rng.randbytes(rng.choice((0, 3, 30, 90)))
        elif choice < 0.7:
            db.pop(key, None)
        elif choice < 0.8:
            db[key] = rng.randbytes(rng.choice((2500, 3500)))
        elif choice < 0.9:
            db.update({b"key %d" % rng.randrange(400): b"u" * rng.randrange(40) for _ in range(rng.randrange(60))})
        elif choice < 0.95:
            with db.transaction():
                db[key] = b"gone again"
                del db[key]
                db[key + b"!"] = b"1"
        elif choice < 0.96:
            db.clear()
        else:
            stop = db.range(key)
            for other, _ in list(stop)[: rng.randrange(30)]:
                del db[other]


# -- following ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_replaying_the_log_gives_the_database(db: durabledbm.Database, log: ChangeLog, seed: int) -> None:
    rng = random.Random(seed)
    if seed % 3 == 0:
        db.attach(log)
        write_at_random(db, rng, 60)
        assert replayed(log) == dict(db.items())
        return
    write_at_random(db, rng, 30)
    before = dict(db.items())
    db.attach(log)
    write_at_random(db, rng, 40)
    for op, key, value in log.replay():
        if op == "put":
            assert value is not None
            before[key] = value
        else:
            before.pop(key, None)
    assert before == dict(db.items())


def test_each_commit_is_in_the_log_with_its_number_and_time(db: durabledbm.Database, log: ChangeLog) -> None:
    db.attach(log)
    db["a"] = "1"
    with db.transaction():
        db["b"] = "2"
        del db["a"]
    items = list(log.records())
    times = [item.time_ns for item in items if isinstance(item, Commit)]
    assert [item if isinstance(item, Change) else item.txid for item in items] == [
        Change("put", b"a", b"1"), 2, Change("put", b"b", b"2"), Change("delete", b"a", None), 3,
    ]  # fmt: skip
    assert times == sorted(times)
    assert times[-1] == db._store.state.meta.time_ns


def test_deleting_an_absent_key_appends_nothing(db: durabledbm.Database, log: ChangeLog) -> None:
    db.attach(log)
    with pytest.raises(KeyError):
        del db["absent"]
    db.pop("absent", None)
    with db.transaction():
        db["fleeting"] = "1"
        del db["fleeting"]
    assert list(log.replay()) == []


def test_every_commit_is_synced_in_the_database_before_it_is_in_the_log(
    db: durabledbm.Database, log: ChangeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: list[bool] = []
    commit = log.commit

    def watched(changes: Any, txid: int, *rest: Any, **more: Any) -> None:
        durable.append(db._store.durable_txid >= txid)
        commit(changes, txid, *rest, **more)

    db.attach(log)
    monkeypatch.setattr(log, "commit", watched)
    write_at_random(db, random.Random(3), 20)
    assert durable
    assert all(durable)


@pytest.mark.parametrize("durability", ["process", "interval", "manual"])
def test_the_relaxed_modes_are_logged_when_they_are_on_the_disk(
    tmp_path: Path, log: ChangeLog, durability: str
) -> None:
    with durabledbm.open(tmp_path / "db", "c", durability=durability, interval=1000.0) as db:
        db.attach(log)
        for number in range(50):
            db[b"%d" % number] = b"x"
        assert replayed(log) == {}
        db.sync()
        assert replayed(log) == dict(db.items())
        for number in range(0, 50, 2):
            del db[b"%d" % number]
        expected = dict(db.items())
    assert replayed(log) == expected
    if durability == "process":
        assert commits(log) == list(range(2, 77)), "each commit by itself"


def test_more_unsynced_changes_than_are_held_are_found_by_comparing(tmp_path: Path, log: ChangeLog) -> None:
    with durabledbm.open(tmp_path / "db", "c", durability="process", interval=1000.0) as db:
        db.attach(log)
        for start in range(0, 6000, 1000):
            db.update({b"%d" % number: b"x" for number in range(start, start + 1000)})
        db.sync()
        assert replayed(log) == dict(db.items())
        assert len(commits(log)) == 1


def test_a_transaction_larger_than_memory_is_logged(
    db: durabledbm.Database, log: ChangeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durabledbm.transaction.SPILL_SIZE", 100_000)
    db.update({b"old %d" % number: b"x" * 30 for number in range(500)})
    db.attach(log)
    with db.transaction():
        for number in range(3000):
            db[b"new %d" % number] = b"y" * 30
        for number in range(0, 500, 3):
            del db[b"old %d" % number]
    changes = list(log.replay())
    assert len(changes) == 3000 + 167
    assert len(commits(log)) == 1


def test_reorganizing_changes_nothing_in_the_log(db: durabledbm.Database, log: ChangeLog) -> None:
    db.update({b"%05d" % number: b"x" * 50 for number in range(3000)})
    db.attach(log)
    for start in range(0, 3000, 300):
        with db.transaction():
            for number in range(start, start + 300, 2):
                del db[b"%05d" % number]
    count = len(list(log.replay()))
    db.reorganize()
    assert len(list(log.replay())) == count
    assert log.span().last_txid == db.stats().txid


def test_threads_share_the_log(db: durabledbm.Database, log: ChangeLog) -> None:
    db.attach(log)

    def write(name: int) -> None:
        for number in range(40):
            db[b"%d %d" % (name, number)] = b"x"

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replayed(log)) == 160
    assert commits(log) == list(range(2, db.stats().txid + 1))


def test_what_other_handles_commit_is_appended_with_the_next_commit(
    db: durabledbm.Database, db_path: str, log: ChangeLog
) -> None:
    db.attach(log)
    with durabledbm.open(db_path, "w") as other:
        write_at_random(other, random.Random(5), 60)
    assert replayed(log) == {}
    db["mine"] = "1"
    assert replayed(log) == dict(db.items())


def test_catch_up_appends_what_other_handles_committed(
    db: durabledbm.Database, db_path: str, log: ChangeLog
) -> None:
    attachment = attach(db._pipeline.committer, db._pipeline.writing, log)
    with durabledbm.open(db_path, "w") as other:
        write_at_random(other, random.Random(6), 60)
    attachment.catch_up()
    assert replayed(log) == dict(db.items())
    attachment.detach()
    attachment.detach()
    db["unlogged"] = "1"
    assert b"unlogged" not in replayed(log)
    attachment.catch_up()
    assert b"unlogged" not in replayed(log)


@needs_fork
def test_a_forked_childs_commits_are_logged_by_the_parent(
    db: durabledbm.Database, log: ChangeLog
) -> None:
    db.attach(log)
    db["parent"] = "1"
    pid = os.fork()
    if not pid:
        try:
            db["child"] = "2"
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    db["parent"] = "3"
    assert replayed(log) == {b"child": b"2", b"parent": b"3"}


def test_a_dropped_handle_is_freed_although_a_log_is_attached(tmp_path: Path, log: ChangeLog) -> None:
    db = durabledbm.open(tmp_path / "db", "c")
    db.attach(log)
    db["a"] = "1"
    disk = db._store.disk
    del db
    with pytest.raises(error):
        disk.read(1, 0)


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
@pytest.mark.parametrize("then", ["catch up", "commit", "close"])
def test_a_commit_that_was_interrupted_before_its_note_is_in_the_log(
    tmp_path: Path, log: ChangeLog, monkeypatch: pytest.MonkeyPatch, durability: str, then: str
) -> None:
    db = durabledbm.open(tmp_path / "db", "c", durability=durability, interval=3600.0)
    attachment = db.attach(log)
    db["noted"] = "1"
    db.sync()

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(attachment), "committed", interrupted)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - in some modes only the second commits
        db["balance"] = "100"
        db.sync()
    if then == "catch up":
        attachment.catch_up()
        assert replayed(log) == dict(db.items())
    elif then == "commit":
        db["other"] = "x"
        db.sync()
        assert replayed(log) == dict(db.items())
    content = dict(db.items())
    db.close()
    assert replayed(log) == content
    assert content[b"balance"] == b"100"


# -- attaching again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_one_commit_that_the_log_missed_is_completed(
    db: durabledbm.Database, log: ChangeLog, seed: int
) -> None:
    rng = random.Random(seed)
    if seed % 2:
        write_at_random(db, rng, 25)
        before = dict(db.items())
    else:
        before = {}
    db.attach(log)
    for _ in range(12):
        write_at_random(db, rng, rng.randrange(4))
        miss(db)
        txid = db.stats().txid
        while db.stats().txid == txid:
            write_at_random(db, rng, 1)
        db.attach(log)
        content = dict(before)
        for op, key, value in log.replay():
            if op == "put":
                assert value is not None
                content[key] = value
            else:
                content.pop(key, None)
        assert content == dict(db.items())


@pytest.mark.parametrize("seed", range(6))
def test_many_missed_commits_are_completed_by_comparing_when_the_log_begins_with_an_empty_database(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    path = tmp_path / "db"
    for _ in range(3):
        with durabledbm.open(path, "c") as db, ChangeLog(tmp_path / "log", max_file_size=5000) as log:
            db.attach(log)
            write_at_random(db, rng, 10)
        with durabledbm.open(path, "w", durability="process") as db:
            write_at_random(db, rng, 60)
    with durabledbm.open(path, "w") as db, ChangeLog(tmp_path / "log", max_file_size=5000) as log:
        db.attach(log)
        assert replayed(log) == dict(db.items())


def test_missed_commits_that_cannot_be_completed_need_a_new_snapshot(
    tmp_path: Path, log: ChangeLog
) -> None:
    with durabledbm.open(tmp_path / "db", "c") as db:
        db.update({b"%05d" % number: b"x" * 60 for number in range(2000)})
        db.attach(log)
        db["a"] = "1"
    before = list(log.records())
    with durabledbm.open(tmp_path / "db", "w") as db:
        for start in range(100):
            db.update({b"%05d" % number: b"y" * 60 for number in range(start, 2000, 100)})
        with pytest.raises(error, match="new snapshot"):
            db.attach(log)
        db["not followed"] = "1"
    assert list(log.records()) == before


def test_a_log_that_missed_nothing_gets_nothing(tmp_path: Path) -> None:
    for number in range(3):
        with durabledbm.open(tmp_path / "db", "c") as db, ChangeLog(tmp_path / "log") as log:
            db.attach(log)
            db["a"] = str(number)
    with ChangeLog(tmp_path / "log") as log:
        assert commits(log) == [2, 3, 4]


@needs_immediate_removal
def test_the_oldest_files_of_the_log_may_be_removed(db: durabledbm.Database, tmp_path: Path, log: ChangeLog) -> None:
    db.attach(log)
    for number in range(60):
        db["the same key"] = "x" * 290 + str(number)  # never leaves the meta page
    miss(db)
    for name in sorted(os.listdir(log.directory))[:-1]:
        os.unlink(os.path.join(log.directory, name))
    db["the same key"] = "missed"
    db.attach(log)
    assert replayed(log) == {b"the same key": b"missed"}


def test_an_older_copy_of_the_database_is_refused(tmp_path: Path, log: ChangeLog) -> None:
    with durabledbm.open(tmp_path / "db", "c") as db:
        db.attach(log)
        db["a"] = "1"
        db.sync()
        shutil.copy(tmp_path / "db", tmp_path / "copy")
        db["a"] = "2"
    with durabledbm.open(tmp_path / "copy", "w") as db:
        with pytest.raises(error, match="begin a new log"):
            db.attach(log)
        db["a"] = "another commit of the same number"
        with pytest.raises(error, match="begin a new log"):
            db.attach(log)
        db["a"] = "and one that the log lacks"
        db.attach(log)  # what the trees hold is what counts, and these can be compared
        assert replayed(log) == dict(db.items())


def test_the_log_of_another_database_is_refused(tmp_path: Path, log: ChangeLog) -> None:
    for name in "one", "two":
        with durabledbm.open(tmp_path / name, "c") as db:
            if name == "one":
                db.attach(log)
            else:
                with pytest.raises(error, match="another database"):
                    db.attach(log)
            db[name] = "1"
    assert replayed(log) == {b"one": b"1"}


def test_a_log_with_changes_of_no_database_is_refused(db: durabledbm.Database, log: ChangeLog) -> None:
    log.put("a", "1")
    with pytest.raises(error, match="no database"):
        db.attach(log)


def test_a_second_log_is_refused(db: durabledbm.Database, tmp_path: Path, log: ChangeLog) -> None:
    db.attach(log)
    with ChangeLog(tmp_path / "second") as second, pytest.raises(error, match="attached already"):
        db.attach(second)
    db["a"] = "1"
    assert replayed(log) == {b"a": b"1"}


def test_a_log_that_somebody_else_writes_is_refused(db: durabledbm.Database, log: ChangeLog) -> None:
    with ChangeLog(log.directory) as other:
        other.put("a", "1")
        with pytest.raises(BusyError):
            db.attach(log)
        db["b"] = "1"


def test_a_read_only_handle_has_no_log(tmp_path: Path, log: ChangeLog) -> None:
    durabledbm.open(tmp_path / "db", "c").close()
    with durabledbm.open(tmp_path / "db", "r") as db, pytest.raises(durabledbm.ReadOnlyError):
        db.attach(log)


def test_attaching_within_a_transaction_is_refused(db: durabledbm.Database, log: ChangeLog) -> None:
    with db.transaction(), pytest.raises(BusyError):
        db.attach(log)
    db.attach(log)


@pytest.mark.parametrize("codec", ["binary", "text"])
def test_others_may_write_while_all_of_the_log_is_compared(
    db: durabledbm.Database, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.update({b"%05d" % number: b"0" for number in range(1000)})
    with ChangeLog(tmp_path / "compared", codec=codec) as log:
        if codec == "binary":  # a log from the beginning, without a note, and behind
            log.bind(db._store.state.meta.database_id, 0)
        compared = attach_module._compared

        def disturbed(*args: Any) -> Iterator[tuple[bytes, bytes | None]]:
            for number, change in enumerate(compared(*args)):
                if number % 200 == 0:
                    thread = threading.Thread(target=write, args=(number,))
                    thread.start()
                    thread.join()
                yield change

        def write(number: int) -> None:
            db.update({b"%05d" % n: b"1" for n in range(number, number + 150)})
            del db[b"%05d" % (number + 20)]

        monkeypatch.setattr(attach_module, "_compared", disturbed)
        db.attach(log)
        db["last"] = "1"
        assert replayed(log) == dict(db.items())
        assert len(db) == 996


# -- what the log cannot do --------------------------------------------------------------------------------------


def test_a_change_that_the_log_cannot_hold_is_not_made(db: durabledbm.Database, log: ChangeLog) -> None:
    db.attach(log)
    db["a"] = "1"
    with pytest.raises(ValueError, match="needs a file of"):
        db["b"] = b"x" * 5000
    with pytest.raises(ValueError, match="needs a file of"):
        db.update({"c": "1", "d": b"x" * 5000})
    assert dict(db.items()) == replayed(log) == {b"a": b"1"}


def test_only_a_log_can_be_attached(db: durabledbm.Database) -> None:
    with pytest.raises(TypeError, match="needs a ChangeLog, not str"):
        db.attach("log")  # type: ignore[arg-type]


def test_a_log_whose_files_are_too_small_for_a_commit_is_refused(db: durabledbm.Database, tmp_path: Path) -> None:
    with ChangeLog(tmp_path / "small", max_file_size=97) as log, pytest.raises(ValueError, match="cannot hold"):
        db.attach(log)


def test_a_log_that_cannot_be_written_is_reported_and_completed_later(
    db: durabledbm.Database, tmp_path: Path
) -> None:
    with ChangeLog(tmp_path / "log") as log:
        db.attach(log)
        db["a"] = "1"
    with pytest.raises(error, match="committed, but not logged"):
        db["b"] = "2"
    with pytest.raises(error, match="committed, but not logged"):
        db["b"] = "3"
    assert db["b"] == b"3"
    miss(db)
    with ChangeLog(tmp_path / "log") as log:
        db.attach(log)
        assert replayed(log) == dict(db.items()) == {b"a": b"1", b"b": b"3"}


# -- the text codec ----------------------------------------------------------------------------------------------


def content_of_files(directory: str) -> list[str]:
    files = []
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), encoding="ascii") as file:
            files.append(file.read())
    return files


def test_a_text_log_follows_line_by_line_and_goes_on_after_a_reopen(tmp_path: Path) -> None:
    for step in range(2):
        with (
            durabledbm.open(tmp_path / "db", "c") as db,
            ChangeLog(tmp_path / "text", max_file_size=10, codec="text") as log,
        ):
            db.attach(log)
            if step:
                del db["a"]
                db.pop("absent", None)
                db["c"] = "3"
            else:
                db["a"] = "1"
                db["bb"] = "2"
    assert content_of_files(str(tmp_path / "text")) == ["P|a|1\n", "P|bb|2\n", "D|a\nP|c|3\n"]


@pytest.mark.parametrize("durability", ["process", "manual"])
def test_a_text_log_follows_commits_that_become_durable_together(tmp_path: Path, durability: str) -> None:
    with (
        durabledbm.open(tmp_path / "db", "c", durability=durability, interval=3600.0) as db,
        ChangeLog(tmp_path / "text", codec="text") as log,
    ):
        db.attach(log)
        for number in range(3):
            db["k"] = str(number)
        del db["k"]
        db["last"] = "1"
        db.sync()
        assert replayed(log) == {b"last": b"1"}


def test_a_text_log_is_completed_by_comparing_all_of_it(db: durabledbm.Database, tmp_path: Path) -> None:
    db.update({"kept": "1", "changed": "1", "deleted": "1"})
    with ChangeLog(tmp_path / "text", codec="text") as log:
        log.put("never", "there")
        db.attach(log)
        assert replayed(log) == dict(db.items())
        miss(db)
        db.update({"changed": "2", "new": "3"})
        del db["deleted"]
        count = len(list(log.replay()))
        db.attach(log)
        assert len(list(log.replay())) == count + 3
        assert replayed(log) == dict(db.items())


def test_a_text_log_keeps_what_it_cannot_hold_out_of_the_database(db: durabledbm.Database, tmp_path: Path) -> None:
    with ChangeLog(tmp_path / "text", codec="text") as log:
        db.attach(log)
        for key, value in (("a|b", "1"), ("a", "1\n2")):
            with pytest.raises(ValueError, match="text codec"):
                db[key] = value
        assert len(db) == 0


# -- kills -------------------------------------------------------------------------------------------------------

VICTIM = """
import os, random, signal, sys
import durabledbm
from durabledbm.attach import Attachment
from durabledbm.changelog import ChangeLog
from tests.test_attach import write_at_random

path, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
left = rng.randrange(40)
append = Attachment._append

def killed(self, state, changes):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    append(self, state, changes)

db = durabledbm.open(path + "/db", "c", durability=sys.argv[3], interval=0.005)
db.attach(ChangeLog(path + "/log", max_file_size=20000))
Attachment._append = killed
while True:
    write_at_random(db, rng, 10)
"""


def kill_and_attach(directory: Path, seeds: range, durability: str) -> None:
    before: dict[bytes, bytes] = {}
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "support")])}
    with durabledbm.open(directory / "db", "c") as db:
        write_at_random(db, random.Random(seeds.start), 20)
        before = dict(db.items())
        with ChangeLog(directory / "log", max_file_size=20_000) as log:
            db.attach(log)
    for seed in seeds:
        command = [sys.executable, "-c", VICTIM, str(directory), str(seed), durability]
        assert subprocess.run(command, env=environment, check=False).returncode == (KILL if WINDOWS else -KILL)
        with durabledbm.open(directory / "db", "w") as db, ChangeLog(directory / "log", max_file_size=20_000) as log:
            txid = db.stats().txid
            assert log.span().last_txid < txid, "killed between commit and append"
            db.attach(log)
            assert log.span().last_txid == txid
            content = dict(before)
            for op, key, value in log.replay():
                if op == "put":
                    assert value is not None
                    content[key] = value
                else:
                    content.pop(key, None)
            assert content == dict(db.items()), f"seed {seed}"
            assert not db.check()


@pytest.mark.parametrize("durability", ["full", "process", "interval"])
def test_nothing_is_missing_after_a_kill_between_commit_and_append(tmp_path: Path, durability: str) -> None:
    kill_and_attach(tmp_path, range(2), durability)


@pytest.mark.long
@pytest.mark.parametrize("durability", ["full", "process", "interval"])
def test_nothing_is_missing_after_200_kills_between_commit_and_append(tmp_path: Path, durability: str) -> None:
    kill_and_attach(tmp_path, range(1000, 1200), durability)


# -- comparing trees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [2, 30, 4096])
@pytest.mark.parametrize("seed", range(8))
def test_comparing_two_trees_finds_every_difference(
    db: durabledbm.Database, monkeypatch: pytest.MonkeyPatch, seed: int, group: int
) -> None:
    monkeypatch.setattr("durabledbm._files.tree_diff._GROUP", group)
    rng = random.Random(seed)
    universe = [b"%06d" % number for number in range(3000)]
    db.update({key: b"x" * rng.randrange(120) for key in rng.sample(universe, rng.choice((0, 10, 2000)))})
    for _ in range(6):
        with db.snapshot() as before:
            start, length = rng.randrange(3000), rng.choice((1, 100, 2900))
            part = universe[start : start + length]
            some = rng.sample(part, min(rng.choice((1, 40, 500)), len(part)))
            with db.transaction():
                for key in some:
                    if rng.random() < 0.6:
                        db[key] = rng.randbytes(rng.choice((0, 50, 120, 2100)))
                    else:
                        db.pop(key, None)
                db.update({b"%06d" % rng.randrange(3000): b"y" * 2000 for _ in range(3)})
            with db.snapshot() as after:
                found = dict(tree_differences(before._state.view.tree, after._state.view.tree))
                old, new = dict(before.items()), dict(after.items())
                different = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
                assert not after._state.meta.changes, "all of it is in the tree"
                behind = set(before._state.meta.changes)
                assert different <= found.keys() | behind
                assert all((found[key] is None) == (key not in new) for key in found)


def test_a_leaf_that_only_one_of_two_trees_has(db: durabledbm.Database) -> None:
    keys = [b"%03d" % number + b"k" * 900 for number in range(60)]
    differing = 0
    for start in range(12, 20):
        db.update(dict.fromkeys(keys, b"v" * 100))
        with db.snapshot() as before:
            with db.transaction():
                for key in keys[start : start + 8]:
                    del db[key]
            with db.snapshot() as after:
                old, new = (snapshot._state.view.tree for snapshot in (before, after))
                different = {*View(old).keys()} ^ {*View(new).keys()}
                assert dict(tree_differences(old, new)) == dict.fromkeys(different)
                differing += len(different)
    assert differing
