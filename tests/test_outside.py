"""What happens to an open file from outside: its name is taken away, another copy is put in its place, its descriptor
is closed and given to others.

None of it goes through the library, and none of it obeys a lock. What counts: nothing is acknowledged that nobody will
find, nobody's acknowledged commit is overwritten, nothing is written to a descriptor that has become another file's,
and whoever goes on is told what happened, every time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crew import Crew
from simdisk import SimVolume
from systems import IS_ROOT, needs_immediate_removal, needs_replacing_open

import durabledbm
from durabledbm._engine.disk import FileDisk, FileVolume
from durabledbm._engine.store import UNKNOWN_STAMP
from durabledbm.changelog import ChangeLog
from durabledbm.database import open_on

MODES = ["full", "process", "interval", "manual"]
OLD = {b"%04d" % number: b"old" * 30 for number in range(300)}

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="descriptors of POSIX")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def any_db(mode: str, tmp_path: Path) -> Iterator[durabledbm.Database]:
    """A database of some pages, of which the handle has something in memory, in each mode."""
    with durabledbm.open(tmp_path / "db", "c", durability=mode, interval=3600) as db:
        db.update(OLD)
        db.sync()
        assert db["0001"] == OLD[b"0001"]
        yield db
        with contextlib.suppress(durabledbm.error):  # there may be something that cannot be written
            db.close()
        assert db.closed


def put_and_sync(db: durabledbm.Database, key: str) -> None:
    """In some modes a write is on the disk when it returns, in others after `sync`."""
    db[key] = "v"
    db.sync()


# -- the name is taken away ----------------------------------------------------------------------------------------


def remove(path: str) -> None:
    os.unlink(path)


def move(path: str) -> None:
    os.rename(path, path + ".moved")


def move_over(path: str) -> None:
    shutil.copyfile(path, path + ".copy")
    os.replace(path + ".copy", path)


def write_over(path: str) -> None:
    """Another database takes the name."""
    with durabledbm.open(path + ".other", "c") as db:
        db["other"] = "v"
    os.replace(path + ".other", path)


AWAY = [
    pytest.param(remove, marks=needs_immediate_removal),
    move,
    pytest.param(move_over, marks=needs_replacing_open),
    pytest.param(write_over, marks=needs_replacing_open),
]

READS: list[Callable[[durabledbm.Database], object]] = [
    lambda db: db["0001"],
    lambda db: db.get("0002"),
    lambda db: "missing" in db,
    len,
    dict,
    lambda db: list(db.range(prefix="01")),
    lambda db: db.snapshot().close(),
    lambda db: db.first(),
    lambda db: db.check(),
    lambda db: db.stats(),
]
WRITES: list[Callable[[durabledbm.Database], object]] = [
    lambda db: db.__setitem__("k", "v"),
    lambda db: db.__delitem__("0003"),
    lambda db: db.update({"a": "1", "b": "2"}),
    lambda db: db.pop("0004"),
    lambda db: db.clear(),
    lambda db: db.transaction().__enter__(),
    lambda db: db.reorganize(),
]


@pytest.mark.parametrize("away", AWAY)
def test_a_file_without_its_name_is_neither_written_nor_read_any_more(
    any_db: durabledbm.Database, away: Callable[[str], None], tmp_path: Path
) -> None:
    db, path = any_db, str(tmp_path / "db")
    moved = FileVolume().open(path, writable=False)
    before = moved.read(1 << 20, 0)
    away(path)
    for use in [*READS, *WRITES, *READS]:
        with pytest.raises(durabledbm.error, match=r"moved or removed while.*open the file again") as caught:
            use(db)
        assert caught.value.errno == errno.ESTALE
    db.close()
    assert moved.read(1 << 20, 0) == before
    moved.close()


def test_a_write_is_refused_at_once(any_db: durabledbm.Database, tmp_path: Path, mode: str) -> None:
    """Without waiting until somebody looks: what was acknowledged is where its name leads."""
    db = any_db
    os.rename(tmp_path / "db", tmp_path / "elsewhere")
    with pytest.raises(durabledbm.error, match="moved or removed"):
        put_and_sync(db, "lost")
    with durabledbm.open(tmp_path / "elsewhere") as elsewhere:
        assert dict(elsewhere) == OLD


def test_a_commit_during_which_the_name_goes_away_is_not_acknowledged() -> None:
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        db["k"] = "v"

        def move_away(operation: Any) -> None:
            if operation.kind == "sync":
                volume.before = None
                volume.replace("/db", "/elsewhere")

        volume.before = move_away
        with pytest.raises(durabledbm.error, match="moved or removed"):
            db["lost"] = "v"


def test_a_file_that_is_put_back_is_used_on(any_db: durabledbm.Database, tmp_path: Path) -> None:
    db = any_db
    os.rename(tmp_path / "db", tmp_path / "elsewhere")
    with pytest.raises(durabledbm.error):
        db["k"] = "v"
    os.rename(tmp_path / "elsewhere", tmp_path / "db")
    db["k"] = "v"
    db.sync()
    assert dict(db) == {**OLD, b"k": b"v"}
    with durabledbm.open(tmp_path / "db") as other:
        assert dict(other) == {**OLD, b"k": b"v"}


@needs_immediate_removal
def test_what_is_pending_for_a_file_that_is_gone_is_an_error_when_it_is_closed(mode: str, tmp_path: Path) -> None:
    """Unless it was on the disk when the write returned."""
    db = durabledbm.open(tmp_path / "db", "c", durability=mode, interval=3600)
    db["k"] = "v"
    os.unlink(tmp_path / "db")
    if mode == "full":
        db.close()
    else:
        for end in (db.sync, db.close):
            with pytest.raises(durabledbm.error, match="moved or removed"):
                end()
    assert db.closed


@pytest.mark.parametrize("away", AWAY[:3])
def test_what_a_removed_file_held_can_be_saved(
    any_db: durabledbm.Database, away: Callable[[str], None], tmp_path: Path
) -> None:
    with any_db.snapshot() as snapshot:
        away(str(tmp_path / "db"))
        any_db.backup(tmp_path / "saved")
        assert dict(snapshot) == OLD
    with durabledbm.open(tmp_path / "saved") as saved:
        assert dict(saved) == OLD


@pytest.mark.skipif(not IS_ROOT, reason="only root can change the root directory")
def test_a_process_that_changes_its_root_goes_on(any_db: durabledbm.Database, tmp_path: Path) -> None:
    """Below the new root the name leads nowhere, or to another file; the file is where it was."""
    db = any_db
    (tmp_path / "root").mkdir()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.chroot(tmp_path / "root")
            os.makedirs(tmp_path)
            for _ in range(2):
                db["child"] = "v"
                db.sync()
                assert len(db) == len(OLD) + 1
                (tmp_path / "db").write_bytes(b"another file of that name")
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert db["child"] == b"v"


# -- another copy is put in its place ------------------------------------------------------------------------------


def copy_in_place(source: Path, target: Path) -> None:
    """As `cp` does it: the same file with other content."""
    content = source.read_bytes()
    with target.open("r+b") as file:
        file.truncate(0)
        for at in range(0, len(content), 1 << 17):
            file.write(content[at : at + (1 << 17)])
            file.flush()


@pytest.mark.parametrize("others", [0, 1, 2, 3, 4, 5, 20])
@pytest.mark.parametrize("durability", ["full", "process"])
def test_an_older_copy_with_any_number_of_commits_on_top_is_noticed_and_not_overwritten(
    tmp_path: Path, durability: str, others: int
) -> None:
    """Commit numbers are given out a second time then; the numbers alone would say nothing, or the wrong thing."""
    path, old = tmp_path / "db", tmp_path / "old"
    with durabledbm.open(path, "c", durability=durability, interval=3600) as db:
        db.update(OLD)
        db.sync()
        shutil.copyfile(path, old)
        for number in range(3):
            db[f"newer {number}"] = "v"
        assert db["0001"] == OLD[b"0001"]
        copy_in_place(old, path)
        with durabledbm.open(path, "w", durability=durability, interval=3600) as other:
            for number in range(others):
                other[f"other {number}"] = "v"
        for use in [*READS, *WRITES, *READS]:
            with pytest.raises(durabledbm.CorruptionError, match=r"replaced by another copy.*open the file again"):
                use(db)
        with contextlib.suppress(durabledbm.error):
            db.close()  # in "process" there is something that was never synced, and is gone
    with durabledbm.open(path) as after:
        assert dict(after) == {**OLD, **{b"other %d" % number: b"v" for number in range(others)}}
        assert after.check() == []


def test_a_handle_that_has_not_looked_since_does_not_overwrite_either(tmp_path: Path) -> None:
    """Its first look is that for the turn to write."""
    path, old = tmp_path / "db", tmp_path / "old"
    with durabledbm.open(path, "c") as db:
        db["k"] = "v"
        shutil.copyfile(path, old)
        db["k"] = "w"
        copy_in_place(old, path)
        with durabledbm.open(path, "w") as other:
            other["acknowledged"] = "v"
        with pytest.raises(durabledbm.CorruptionError, match="of another history than commit 3"):
            db["k"] = "x"
    with durabledbm.open(path) as after:
        assert dict(after) == {b"k": b"v", b"acknowledged": b"v"}


def test_other_handles_that_commit_are_not_taken_for_another_copy(mode: str, tmp_path: Path) -> None:
    """Whoever commits first begins a generation; those that look seldom find that several were begun."""
    path = tmp_path / "db"
    durabledbm.open(path, "c").close()
    with durabledbm.open(path) as reader, durabledbm.open(path, "w", durability=mode) as writer:
        expected = {}
        for number in range(30):
            if number % 3 == 0:
                writer["own"] = str(number)
                writer.sync()
                expected[b"own"] = b"%d" % number
            with durabledbm.open(path, "w", durability=mode) as other:
                other[f"{number}"] = "v"
                expected[b"%d" % number] = b"v"
            if number % 7 == 0:
                assert dict(reader) == dict(writer) == expected
        assert dict(reader) == dict(writer) == expected


@pytest.mark.leaves_damage
@pytest.mark.parametrize("what", ["copy", "another", "nothing", "zeros"])
def test_a_file_that_is_written_over_in_a_transaction_is_left_as_it_is(mode: str, tmp_path: Path, what: str) -> None:
    """The handle has the writer lock, so it looks for no commits. But it looks before it writes."""
    path, source = tmp_path / "db", tmp_path / "source"
    with durabledbm.open(path, "c", durability=mode, interval=3600) as db:
        db.update(OLD)
        db.sync()
        shutil.copyfile(path, source)
        if what == "another":
            with durabledbm.open(source, "n", page_size=8192) as other:
                other.update(OLD)
        db["newer"] = "v"
        db.sync()
        written = b""

        def write_over() -> None:
            nonlocal written
            with db.transaction():
                db["in memory"] = "v"
                if what in ("copy", "another"):
                    copy_in_place(source, path)
                else:
                    path.write_bytes(bytes(8192 if what == "zeros" else 0))
                written = path.read_bytes()
            db.sync()  # in the modes in which the end of the block writes nothing yet

        with pytest.raises(durabledbm.error, match=r"something else has written to the file.*open the file again"):
            write_over()
        with contextlib.suppress(durabledbm.error):
            db.close()  # what is pending is lost
        assert path.read_bytes() == written


def test_a_transaction_that_spills_does_not_write_into_another_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durabledbm.transaction.SPILL_SIZE", 50_000)
    path, source = tmp_path / "db", tmp_path / "source"
    with durabledbm.open(path, "c") as db:
        db.update(OLD)
        shutil.copyfile(path, source)
        db.clear()
        db.update({b"only": b"v" * 100})
        transaction = db.transaction()
        transaction.__enter__()
        copy_in_place(source, path)
        with pytest.raises(durabledbm.error, match="something else has written"):
            transaction.update({f"{number}": "x" * 200 for number in range(1000)})
        with pytest.raises(durabledbm.error, match="something else has written"):
            transaction.__exit__(None, None, None)
    assert path.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("slot", [0, 1])
def test_a_file_that_is_written_over_during_a_commit_is_not_taken_for_its_result(slot: int) -> None:
    """Between the writes of one commit. What came too late for the look before is seen by the one after."""
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        for _ in range(slot + 1):
            db["k"] = "v"
        image = volume.content("/db")
        db["k"] = "w"

        def write_over(operation: Any) -> None:
            if operation.kind == "sync":
                volume.before = None
                volume.put("/db", image)

        volume.before = write_over
        with pytest.raises(durabledbm.CorruptionError, match="something else has written"):
            db["k"] = "x"
        with pytest.raises(durabledbm.CorruptionError, match="something else has written"):
            db["k"]


@pytest.mark.leaves_damage
def test_a_snapshot_of_what_was_overwritten_says_that_it_was(tmp_path: Path) -> None:
    path, source = tmp_path / "db", tmp_path / "source"
    with durabledbm.open(path, "c", cache_size=0) as db:
        db["k"] = "v"
        shutil.copyfile(path, source)
        db.update(OLD)
        with db.snapshot() as snapshot:
            copy_in_place(source, path)
            with pytest.raises(durabledbm.CorruptionError, match="replaced by another copy"):
                dict(snapshot)


def test_a_reader_beside_writers_that_are_killed_sees_one_history(tmp_path: Path) -> None:
    """A commit that was seen before it was synced stays, or is an error; here nothing is lost, so it stays."""
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        db["k"] = "0"
    with open_on(volume, "/db") as reader:
        for number in range(1, 20):
            writer = open_on(volume, "/db", "w")
            volume.before = _killer(writer, "sync")
            with pytest.raises(_KilledError):
                writer["k"] = str(number)
            volume.before = None
            assert reader["k"] == b"%d" % number
            with open_on(volume, "/db", "w") as other:
                other["other"] = str(number)
            assert reader["k"] == b"%d" % number
            assert reader._store.stamp != UNKNOWN_STAMP


class _KilledError(BaseException):
    pass


def _killer(writer: durabledbm.Database, kind: str) -> Callable[[Any], None]:
    def kill(operation: Any) -> None:
        if operation.kind == kind:
            writer._store.disk.close()
            raise _KilledError

    return kill


# -- descriptors ---------------------------------------------------------------------------------------------------


def descriptor(db: durabledbm.Database) -> int:
    disk = db._store.disk
    assert isinstance(disk, FileDisk)
    return disk._fd


class Thief:
    """Closes descriptors, as daemons do, and takes their numbers for files of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: list[tuple[int, Path]] = []

    def take(self, *fds: int) -> None:
        for fd in fds:
            os.close(fd)
        for fd in sorted(fds):
            path = self.directory / f"log {len(self.files)}"
            new = os.open(path, os.O_RDWR | os.O_CREAT)
            if new != fd:
                os.dup2(new, fd, inheritable=False)
                os.close(new)
            os.write(fd, b"a log of something else")
            self.files.append((fd, path))

    def check(self) -> None:
        """They are open, and hold what was written here, and it goes on where it was."""
        for fd, path in self.files:
            os.write(fd, b", and more")
            os.close(fd)
            assert path.read_bytes() == b"a log of something else, and more"


def put_through_another_handle(path: Path) -> None:
    with durabledbm.open(path, "w", timeout=0) as other:
        other["acknowledged"] = "v"


@pytest.fixture
def thief(tmp_path: Path) -> Thief:
    return Thief(tmp_path)


@posix_only
@pytest.mark.parametrize("use", [*READS, *WRITES[:5], lambda db: db.sync(), lambda db: db.close()])
def test_a_handle_whose_descriptor_became_another_files_goes_on_and_leaves_that_alone(
    any_db: durabledbm.Database, thief: Thief, use: Callable[[durabledbm.Database], object]
) -> None:
    db = any_db
    thief.take(descriptor(db))
    use(db)
    if not db.closed:
        db["k"] = "v"
        db.sync()
        assert db["k"] == b"v"
        assert db.check() == []
        db.close()
    thief.check()


@posix_only
@pytest.mark.parametrize("new", ["closed", "pipe", "directory", "the same file", "the same file, for writing"])
def test_whatever_the_descriptor_became_it_is_not_the_handles(
    any_db: durabledbm.Database, tmp_path: Path, new: str
) -> None:
    """Also if it is the same file: it is another open file, without the locks, and somebody else closes it."""
    db = any_db
    fd = descriptor(db)
    os.close(fd)
    mine = []
    if new == "pipe":
        mine = list(os.pipe())
    elif new == "directory":
        mine = [os.open(tmp_path, os.O_RDONLY)]
    elif new != "closed":
        mine = [os.open(tmp_path / "db", os.O_RDWR if new.endswith("writing") else os.O_RDONLY)]
    assert (fd in mine) == (new != "closed")
    with db.snapshot() as snapshot:
        db["k"] = "v"
        db.sync()
        assert dict(snapshot) == OLD
    assert db["k"] == b"v"
    db.close()
    for own in mine:
        os.close(own)


@posix_only
@pytest.mark.parametrize("mode", ["manual", "interval"])
@pytest.mark.parametrize("writable", [False, True])
def test_what_is_pending_is_written_though_the_descriptor_became_another_of_the_same_file(
    tmp_path: Path, mode: Any, *, writable: bool
) -> None:
    path = tmp_path / "db"
    db = durabledbm.open(path, "c", durability=mode, interval=3600, timeout=0)
    db["a"] = "pending"
    fd = descriptor(db)
    os.close(fd)
    assert os.open(path, os.O_RDWR if writable else os.O_RDONLY) == fd
    db["b"] = "pending too"
    db.sync()
    assert len(db) == 2
    db.close()
    os.close(fd)


@posix_only
def test_two_handles_of_which_one_got_the_number_of_the_other(tmp_path: Path) -> None:
    path = tmp_path / "db"
    first = durabledbm.open(path, "c", timeout=0)
    first["k"] = "v"
    fd = descriptor(first)
    os.close(fd)
    second = durabledbm.open(path, "w", timeout=0)
    assert descriptor(second) == fd
    with second.transaction():
        second["k"] = "w"
        with pytest.raises(durabledbm.BusyError):
            first["k"] = "x"
        first.close()
    assert second["k"] == b"w"
    second["k"] = "y"
    second.close()


@posix_only
def test_a_transaction_goes_on_if_nobody_has_written_meanwhile(any_db: durabledbm.Database, thief: Thief) -> None:
    db = any_db
    with db.transaction():
        db["k"] = "v"
        thief.take(descriptor(db))
        db["k too"] = "v"
        assert db["0007"] == OLD[b"0007"]
    db.sync()
    assert dict(db) == {**OLD, b"k": b"v", b"k too": b"v"}
    db.close()
    thief.check()


@posix_only
def test_a_transaction_whose_lock_another_took_meanwhile_is_not_committed(
    any_db: durabledbm.Database, thief: Thief, tmp_path: Path
) -> None:
    db = any_db

    def overtaken() -> None:
        with db.transaction():
            db["k"] = "v"
            thief.take(descriptor(db))
            Crew().start(put_through_another_handle, tmp_path / "db").result()
        db.sync()

    with pytest.raises(durabledbm.error, match=r"closed the file's descriptor.*others have written"):
        overtaken()
    with contextlib.suppress(durabledbm.error):
        db.close()
    thief.check()
    with durabledbm.open(tmp_path / "db") as after:
        assert dict(after) == {**OLD, b"acknowledged": b"v"}


@posix_only
def test_what_was_pending_when_another_took_the_lock_is_reported_as_lost(thief: Thief, tmp_path: Path) -> None:
    db = durabledbm.open(tmp_path / "db", "c", durability="manual")
    db["k"] = "v"
    db.sync()
    db["pending"] = "v"
    thief.take(descriptor(db))
    Crew().start(put_through_another_handle, tmp_path / "db").result()
    with pytest.raises(durabledbm.error, match="closed the file's descriptor"):
        db.sync()
    with pytest.raises(durabledbm.error, match="pending writes could not be written"):
        db.close()
    thief.check()
    with durabledbm.open(tmp_path / "db") as after:
        assert dict(after) == {b"k": b"v", b"acknowledged": b"v"}


@posix_only
@pytest.mark.parametrize("overtaken", [False, True])
def test_a_snapshot_is_pinned_again(thief: Thief, tmp_path: Path, overtaken: bool) -> None:
    """If its pages were reused before anybody noticed, it says so."""
    with (
        durabledbm.open(tmp_path / "db", "c", cache_size=0) as db,
        durabledbm.open(tmp_path / "db", "w", timeout=0) as other,
    ):
        db.update(OLD)
        with db.snapshot() as snapshot:
            iterator = iter(snapshot.items())
            next(iterator)
            thief.take(descriptor(db))
            if not overtaken:
                assert db["0001"] == OLD[b"0001"]
            for number in range(5):
                other.update(dict.fromkeys(OLD, b"new %d" % number * 10))
            if overtaken:
                assert db["0001"] == b"new 4" * 10
                for read in (lambda: dict(snapshot), lambda: list(iterator)):
                    with pytest.raises(durabledbm.error, match=r"closed the descriptor.*reused") as caught:
                        read()
                    assert not isinstance(caught.value, durabledbm.CorruptionError)
            else:
                assert dict(snapshot) == OLD
                assert len(list(iterator)) == 299
        assert db["0001"] == b"new 4" * 10
    thief.check()


@posix_only
def test_without_its_descriptor_and_its_name_a_file_is_out_of_reach(
    any_db: durabledbm.Database, thief: Thief, tmp_path: Path
) -> None:
    db = any_db
    thief.take(descriptor(db))
    os.rename(tmp_path / "db", tmp_path / "elsewhere")
    for use in (*READS, *WRITES):
        with pytest.raises(durabledbm.error, match="moved or removed"):
            use(db)
    os.rename(tmp_path / "elsewhere", tmp_path / "db")
    assert dict(db) == OLD
    db.close()
    thief.check()


@posix_only
def test_a_log_whose_descriptors_became_other_files_goes_on_and_leaves_them_alone(
    thief: Thief, tmp_path: Path
) -> None:
    log = ChangeLog(tmp_path / "log", max_file_size=300)
    with durabledbm.open(tmp_path / "db", "c") as db, db.attach(log):
        for number in range(40):
            db[f"{number}"] = "v"
            if number % 10 == 5:
                writer = log._writer
                assert writer is not None
                disks = {writer._guard, writer._disk}
                thief.take(*(disk._fd for disk in disks if isinstance(disk, FileDisk)), descriptor(db))
        assert {key: value for _, key, value in log.replay()} == dict(db)
    log.close()
    thief.check()


CLOSED_STREAMS = """
import os, sys
closed = [int(number) for number in sys.argv[1].split()]
for number in closed:
    os.close(number)
import durabledbm
from durabledbm.changelog import ChangeLog
db = durabledbm.open("db", "c", durability=sys.argv[2])
log = ChangeLog("log")
attachment = db.attach(log)
def shout():
    for number in closed:
        try:
            os.write(number, b"a message " * 1000)
        except OSError:
            pass
for number in range(5):
    db[str(number)] = "v"
    db.sync()
    shout()
db.backup("copy")
shout()
files = {os.fstat(fd).st_ino for fd in range(3) if fd not in closed}
attachment.detach()
log.close()
db.close()
"""


@posix_only
@pytest.mark.parametrize("streams", ["0", "1", "2", "0 2", "1 2", "0 1 2"])
def test_what_is_printed_to_a_closed_stream_does_not_get_into_the_file(tmp_path: Path, streams: str) -> None:
    subprocess.run([sys.executable, "-c", CLOSED_STREAMS, streams, "full"], cwd=tmp_path, check=True, timeout=60)
    for name in ("db", "copy"):
        with durabledbm.open(tmp_path / name) as db:
            assert dict(db) == {b"%d" % number: b"v" for number in range(5)}
    assert len(list(ChangeLog(tmp_path / "log").replay())) == 5


@posix_only
def test_a_file_that_another_thread_gives_a_standard_number_to_is_moved_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look whether the standard streams are open and the opening itself."""
    from durabledbm._engine.disk import posix

    saved = os.dup(0)
    os.close(0)
    try:
        monkeypatch.setattr(posix, "_is_open", lambda fd: True)
        disk = FileVolume().create(str(tmp_path / "file"), 0o600)
        assert disk._fd > 2
        with pytest.raises(OSError):
            os.fstat(0)
        disk.close()
    finally:
        os.dup2(saved, 0)
        os.close(saved)
