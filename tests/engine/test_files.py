"""How a file becomes a database: in place, whole or not at all, however many do it at once."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from children import open_directory, unprivileged
from simdisk import Operation, SimVolume, disk_error
from systems import needs_immediate_removal, needs_mode, needs_replacing_open, needs_root, needs_symlinks, only_posix

import durabledbm
from durabledbm._engine.disk import FileVolume
from durabledbm._engine.files import initialise, replace, temporary_name
from durabledbm._engine.meta import META_AREA, META_SIZE, SECTOR, UNFINISHED, decode_meta, is_uninitialised
from durabledbm.database import open_on

ROOT = Path(__file__).parent.parent.parent


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def initialised(page_size: int = 4096) -> SimVolume:
    """A volume with a file that has just been initialised."""
    volume = SimVolume({"/db": b""})
    initialise(volume, volume.open("/db", writable=True), page_size)
    return volume


# -- what is created -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_a_new_database_is_a_meta_and_its_steady_copy(page_size: int) -> None:
    content = initialised(page_size).content("/db")
    assert len(content) == META_AREA
    copy, first = (decode_meta(content[at : at + META_SIZE]) for at in (0, META_SIZE))
    assert first is not None
    assert copy == first._replace(steady=True)
    assert (first.txid, first.steady, first.entry_count, first.depth) == (1, False, 0, 0)
    assert first.page_size == page_size


def test_no_two_files_have_the_same_id() -> None:
    ids = set()
    for _ in range(20):
        meta = decode_meta(initialised().content("/db")[:META_SIZE])
        assert meta is not None
        ids.add(meta.database_id)
    assert len(ids) == 20


def test_the_name_is_durable_before_the_file_is_a_database_and_anything_can_be_acknowledged() -> None:
    volume = SimVolume()
    with open_on(volume, "/dir/db", "c") as db:
        kinds = [operation.kind for operation in volume.log]
        assert kinds == ["create", "sync_directory", "resize", "write", "sync", "write", "sync", "write"]
        db["key"] = "value"
    assert volume.paths() == ["/dir/db"]
    for crash in volume.crash_states(limit=50):
        with open_on(crash, "/dir/db", "r") as db:
            assert dict(db.items()) == {b"key": b"value"}


@pytest.mark.parametrize("page_size", [4096, 65536])
@pytest.mark.parametrize("there", ["missing", "empty"])
def test_whatever_a_crash_leaves_of_an_initialisation_is_an_empty_database(there: str, page_size: int) -> None:
    volume = SimVolume({} if there == "missing" else {"/db": b""})
    trace = volume.record()
    with open_on(volume, "/db", "c", page_size=page_size) as db, db.transaction():
        pass
    seen = set()
    for crash in [*trace.crashes(limit=4096), *trace.kills()]:
        if "/db" in crash.volume.paths():
            content = crash.volume.content("/db")
            seen.add(is_uninitialised(content[:META_AREA], len(content)))
            with open_on(crash.volume, "/db", "r") as reader:
                assert list(reader) == []
            assert crash.volume.content("/db") == content
        with open_on(crash.volume, "/db", "c", page_size=page_size) as db:
            assert list(db) == []
            db["key"] = "value"
            assert db.check() == []
    assert seen == {True, False}


def test_who_looks_at_any_moment_of_an_initialisation_sees_an_empty_database() -> None:
    volume = SimVolume({"/db": b""})
    early = open_on(volume, "/db", "r")
    readers = []

    def look(operation: Operation) -> None:
        if operation.kind in ("resize", "write", "sync", "sync_directory"):
            volume.before = None
            readers.append(open_on(volume, "/db", "r"))
            for reader in (early, *readers):
                assert (len(reader), list(reader), reader.get("key")) == (0, [], None)
            with open_on(volume, "/db", "w", timeout=0) as other, pytest.raises(durabledbm.BusyError):
                other["key"] = "other"
            volume.before = look

    volume.before = look
    with open_on(volume, "/db", "w") as db:
        db["key"] = "value"
        volume.before = None
        assert len(readers) > 6
        for reader in (early, *readers):
            assert dict(reader.items()) == {b"key": b"value"}
            reader.close()


def test_a_kill_in_the_middle_of_an_initialisation_leaves_no_damage() -> None:
    volume = SimVolume({"/db": b""})
    trace = volume.record()
    initialise(volume, volume.open("/db", writable=True), 4096)
    for crash in trace.kills():
        with open_on(crash.volume, "/db") as db:
            assert db.check() == []


def test_a_read_that_comes_short_does_not_make_a_database_an_empty_file() -> None:
    volume = initialised()
    content = volume.content("/db")
    for length in (0, SECTOR, META_SIZE, META_AREA - 1):
        assert not is_uninitialised(content[:length], META_AREA)
        assert not is_uninitialised(UNFINISHED.ljust(META_AREA, b"x")[:length], META_AREA)
    assert not is_uninitialised(b"", SECTOR)
    assert not is_uninitialised(bytes(SECTOR), META_AREA)


@pytest.mark.parametrize("content", [bytes(1), bytes(SECTOR - 1), bytes(SECTOR + 1), bytes(META_AREA), UNFINISHED[:-1]])
def test_zeros_are_no_database(content: bytes) -> None:
    """Not even those of a database that lost its meta pages: only what an initialisation leaves is begun again."""
    volume = SimVolume({"/db": content})
    for flag in ("r", "w", "c"):
        with pytest.raises(durabledbm.error):
            open_on(volume, "/db", flag)
    assert volume.content("/db") == content


def test_only_the_one_file_is_left(tmp_path: Path) -> None:
    for flag in ("c", "n"):
        with durabledbm.open(tmp_path / flag, flag) as db:
            db["key"] = "value"
            assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted({"c", flag})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c", "n"]


def test_a_temporary_name_is_in_the_same_directory_and_no_dbm_module_looks_for_it() -> None:
    names = {temporary_name("/some/dir/file.db") for _ in range(50)}
    assert len(names) == 50
    for name in names:
        assert os.path.dirname(name) == "/some/dir"
        assert not name.endswith((".db", ".dir", ".pag", ".dat", ".bak"))
    assert os.path.dirname(temporary_name("plain")) == ""


@needs_mode
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
def test_the_mode_is_that_asked_for_less_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        durabledbm.open(tmp_path / "default", "c").close()
        durabledbm.open(tmp_path / "private", "c", 0o640).close()
    finally:
        os.umask(old)
    assert mode_of(tmp_path / "default") == 0o666 & ~mask
    assert mode_of(tmp_path / "private") == 0o640 & ~mask


@needs_mode
def test_the_mode_of_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "db"
    durabledbm.open(path, "c", 0o600).close()
    for flag in ("c", "w", "n"):
        with durabledbm.open(path, flag, 0o666) as db:
            db["key"] = "value"
        assert mode_of(path) == 0o600


@needs_mode
@pytest.mark.parametrize("flag", ["c", "w", "n"])
def test_the_mode_of_an_empty_file_stays(tmp_path: Path, flag: str) -> None:
    """As of one from tempfile.mkstemp(), which nobody else may read."""
    path = tmp_path / "db"
    path.touch(0o600)
    with durabledbm.open(path, flag) as db:
        db["secret"] = "value"
    assert mode_of(path) == 0o600


@needs_mode
def test_the_mode_of_a_foreign_file_stays_when_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_text("text")
    path.chmod(0o600)
    with durabledbm.open(path, "n") as db:
        db["secret"] = "value"
    assert mode_of(path) == 0o600


# -- who is there already ------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"somebody else's")
    for flag in ("r", "w", "c"):
        with pytest.raises(durabledbm.error, match="not a durabledbm database"):
            durabledbm.open(path, flag)
    assert path.read_bytes() == b"somebody else's"
    assert [entry.name for entry in tmp_path.iterdir()] == ["db"]


@needs_symlinks
def test_a_planted_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody guessed the temporary name, and made it a link to a file of theirs or ours."""
    victim, path = tmp_path / "victim", tmp_path / "db"
    victim.write_text("precious")
    path.write_text("foreign")
    planted = tmp_path / ".durabledbm-guessed"
    planted.symlink_to(victim)
    monkeypatch.setattr("durabledbm._engine.files.temporary_name", lambda path: str(planted))
    with pytest.raises(durabledbm.error, match="exists") as caught:
        durabledbm.open(path, "n")
    assert caught.value.errno == errno.EEXIST
    assert victim.read_text() == "precious"
    assert planted.is_symlink()
    assert path.read_text() == "foreign"


@needs_symlinks
def test_a_link_to_a_database_is_followed(tmp_path: Path) -> None:
    with durabledbm.open(tmp_path / "real", "c") as db:
        db["key"] = "value"
    (tmp_path / "link").symlink_to("real")
    for flag in ("r", "w", "c"):
        with durabledbm.open(tmp_path / "link", flag) as db:
            assert db["key"] == b"value"
    with durabledbm.open(tmp_path / "link", "n") as db:
        assert len(db) == 0
    assert (tmp_path / "link").is_symlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "real"]


@needs_symlinks
def test_a_link_to_an_empty_file_stays_a_link_when_that_becomes_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "real").touch()
    (tmp_path / "link").symlink_to("dir/real")
    monkeypatch.chdir(tmp_path)
    with durabledbm.open("link", "w") as db:
        db["key"] = "value"
    assert (tmp_path / "link").is_symlink()
    for name in ("link", "dir/real", "dir/../dir/real", os.path.join("dir", "..", "link"), tmp_path / "link"):
        with durabledbm.open(name, "r") as db:
            assert db["key"] == b"value"


@needs_symlinks
def test_a_file_in_a_linked_directory_is_written_and_replaced_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for flag in ("c", "w", "n"):
        with durabledbm.open(tmp_path / "link" / "db", flag) as db:
            db[flag] = "value"
    assert [entry.name for entry in (tmp_path / "real").iterdir()] == ["db"]
    with durabledbm.open(tmp_path / "real" / "db") as db:
        assert list(db) == [b"n"]


@needs_symlinks
def test_a_link_to_nothing_is_created_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir/real")
    with pytest.raises(durabledbm.error):
        durabledbm.open(tmp_path / "link", "w")
    with durabledbm.open(tmp_path / "link", "c") as db:
        db["key"] = "value"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dir" / "real").stat().st_size > 0


# -- an empty file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_an_empty_file_is_an_empty_database(tmp_path: Path, flag: str) -> None:
    path = tmp_path / "db"
    path.touch()
    with durabledbm.open(path, flag) as db:
        assert len(db) == 0
        assert list(db) == []
        assert db.get("key") is None
        assert db.check() == []
    assert path.stat().st_size == 0, "nobody wrote"


def test_an_empty_file_becomes_a_database_with_the_first_write(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch()
    with durabledbm.open(path, "r") as reader, durabledbm.open(path, "w") as writer:
        assert len(reader) == 0
        writer["key"] = "value"
        assert reader["key"] == b"value"
        assert writer["key"] == b"value"
        writer.update({b"%d" % n: b"x" * 100 for n in range(200)})
        assert len(reader) == 201
    with durabledbm.open(path) as db:
        assert db.check() == []
        assert len(db) == 201
    assert [entry.name for entry in tmp_path.iterdir()] == ["db"]


def test_two_handles_of_an_empty_file_both_write(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch()
    with durabledbm.open(path, "w") as first, durabledbm.open(path, "w") as second:
        first["a"] = "1"
        second["b"] = "2"
        first["c"] = "3"
        assert dict(first.items()) == dict(second.items()) == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_a_transaction_on_an_empty_file_that_is_rolled_back(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch()
    with durabledbm.open(path, "w") as db:
        with db.transaction() as transaction:
            db["key"] = "value"
            transaction.rollback()
        assert len(db) == 0
        db["other"] = "value"
    with durabledbm.open(path) as db:
        assert dict(db.items()) == {b"other": b"value"}


@only_posix("Windows has no flock")
def test_an_empty_file_stays_the_same_file(tmp_path: Path) -> None:
    """Its other names, who has it open and who has locked it: all that would be lost if another file took its name."""
    import fcntl

    with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
        os.link(file.name, tmp_path / "other name")
        fcntl.flock(file, fcntl.LOCK_EX)
        before = os.fstat(file.fileno())
        with durabledbm.open(file.name, "c") as db:
            db["key"] = "value"
        after = os.stat(file.name)
        assert (after.st_ino, after.st_nlink) == (before.st_ino, 2)
        assert file.read(len(UNFINISHED)) != b""
        with open(tmp_path / "other name", "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with durabledbm.open(tmp_path / "other name") as db:
            assert dict(db.items()) == {b"key": b"value"}


@needs_root
def test_an_empty_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch()
    os.chown(path, 65534, 65533)
    with durabledbm.open(path, "c") as db:
        db["key"] = "value"
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


@pytest.mark.parametrize("content", [b"", b"foreign"])
def test_a_file_becomes_a_database_in_a_directory_that_cannot_be_written(content: bytes) -> None:
    with open_directory() as directory:
        path = directory / "db"
        path.write_bytes(content)
        path.chmod(0o666)
        directory.chmod(0o555)
        inode = path.stat().st_ino
        unprivileged(f"""
with durabledbm.open("db", {"n" if content else "c"!r}) as db:
    db["key"] = "value"
""", directory)
        assert path.stat().st_ino == inode
        with durabledbm.open(path) as db:
            assert dict(db.items()) == {b"key": b"value"}


@needs_immediate_removal
def test_an_empty_file_that_was_renamed_or_removed_is_not_written(tmp_path: Path) -> None:
    """What is acknowledged must be found under the name that was opened."""
    for number, move in enumerate((lambda path: path.rename(tmp_path / "moved"), Path.unlink)):
        path = tmp_path / f"db {number}"
        path.touch()
        with durabledbm.open(path, "w") as db:
            move(path)
            with pytest.raises(durabledbm.error) as caught:
                db["key"] = "value"
            assert caught.value.errno == errno.ENOENT
    assert (tmp_path / "moved").stat().st_size == 0


def test_a_creation_that_fails_removes_its_file_and_who_opened_it_meanwhile_is_told() -> None:
    volume = SimVolume()
    others = []

    def join(operation: Operation) -> None:
        if operation.kind == "resize":
            volume.before = None
            others.append(open_on(volume, "/db", "c"))
            volume.fail_at(0, disk_error(errno.ENOSPC), kinds=("resize",))

    volume.before = join
    with pytest.raises(durabledbm.error) as caught:
        open_on(volume, "/db", "c")
    assert caught.value.errno == errno.ENOSPC
    assert volume.paths() == []
    with others[0] as db, pytest.raises(durabledbm.error) as caught:
        db["key"] = "value"
    assert caught.value.errno == errno.ENOENT


@needs_replacing_open
def test_an_empty_file_in_whose_place_a_database_was_put_is_left_for_that(tmp_path: Path) -> None:
    path = tmp_path / "db"
    for flag in ("r", "w"):
        path.unlink(missing_ok=True)
        path.touch()
        with durabledbm.open(path, flag) as db:
            assert len(db) == 0
            with durabledbm.open(tmp_path / "other", "n", page_size=8192) as other:
                other["key"] = "value"
            (tmp_path / "other").rename(path)
            if flag == "w":
                db["more"] = "value"
            assert db["key"] == b"value"


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["create", "resize", "write", "sync", "sync_directory"])
@pytest.mark.parametrize("effect", ["none", "part", "lost"])
def test_a_failed_creation_leaves_nothing_or_an_empty_database(kind: str, effect: str) -> None:
    for at in range(3):
        volume = SimVolume()
        volume.fail_at(at, disk_error(errno.EIO, effect), kinds=(kind,))
        try:
            open_on(volume, "/db", "c").close()
        except durabledbm.error as exc:
            assert (exc.errno, exc.filename) == (errno.EIO, "/db")  # noqa: PT017
        else:
            assert not volume.fired
            break
        assert volume.paths() in ([], ["/db"])
        with open_on(volume, "/db", "c") as db:
            assert len(db) == 0
            db["key"] = "value"
        for state in volume.crash_states(limit=50):
            with open_on(state, "/db") as db:
                assert dict(db.items()) == {b"key": b"value"}


# -- flag "n" over what is no database -----------------------------------------------------------------------------

FOREIGN = b"foreign" * 2000


@pytest.mark.parametrize("kind", ["create", "write", "sync", "replace"])
def test_a_failed_replacement_leaves_what_was_there(kind: str) -> None:
    volume = SimVolume({"/db": FOREIGN})
    volume.fail_at(0, disk_error(errno.EIO), kinds=(kind,))
    with pytest.raises(durabledbm.error):
        open_on(volume, "/db", "n")
    assert volume.paths() == ["/db"]
    assert volume.content("/db") == FOREIGN
    replace(volume, volume.open("/db", writable=True), 4096)
    assert len(volume.content("/db")) == META_AREA


@pytest.mark.parametrize(
    ("kind", "code"), [("", 0), ("create", errno.EACCES), ("create", errno.EROFS), ("replace", errno.EBUSY)]
)
def test_whatever_a_crash_leaves_of_a_replacement_is_the_old_file_or_a_database(kind: str, code: int) -> None:
    """The name of a mount cannot be given to another file, and a directory may be closed."""
    volume = SimVolume({"/db": FOREIGN})
    trace = volume.record()
    if kind:
        volume.fail_at(0, disk_error(code, times=None), kinds=(kind,))
    file = volume.open("/db", writable=False).identity()
    with open_on(volume, "/db", "n") as db:
        assert len(db) == 0
        db["key"] = "value"
    assert volume.paths() == ["/db"]
    assert (volume.open("/db", writable=False).identity() == file) == bool(kind)
    for crash in [*trace.crashes(limit=200), *trace.kills()]:
        if crash.volume.content("/db") != FOREIGN:
            with open_on(crash.volume, "/db", "w") as db:
                assert dict(db.items()) in ({}, {b"key": b"value"})
                db["more"] = "value"


def test_two_who_replace_the_same_file_at_once_write_to_one_database() -> None:
    volume = SimVolume({"/db": FOREIGN})
    first, second = (volume.open("/db", writable=True) for _ in range(2))
    replace(volume, first, 4096)
    with open_on(volume, "/db", "w") as db:
        db["key"] = "value"
        replace(volume, second, 4096)
        assert db["key"] == b"value"
    with open_on(volume, "/db") as db:
        assert dict(db.items()) == {b"key": b"value"}


@needs_root
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_text("foreign")
    path.chmod(0o640)
    os.chown(path, 65534, 65533)
    durabledbm.open(path, "n").close()
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 65533, 0o640)


def test_what_a_killed_replacement_left_can_be_told_by_its_lock(tmp_path: Path) -> None:
    """So `_tempfiles.sweep` removes it, and leaves alone one that is under way."""
    path = tmp_path / "db"
    path.write_text("foreign")
    locked = []

    class Volume(FileVolume):
        def replace(self, source: str, target: str) -> None:
            disk = self.open(source, writable=False)
            locked.append(disk.lowest_lock(0, 1 << 62))
            disk.close()
            super().replace(source, target)

    old = FileVolume().open(str(path), writable=True)
    replace(Volume(), old, 4096)
    old.close()
    assert [lock and lock.offset for lock in locked] == [(1 << 62) - 4]


# -- missing -------------------------------------------------------------------------------------------------------


def test_a_missing_directory_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "db"
    with pytest.raises(durabledbm.error) as caught:
        durabledbm.open(path, "c")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))


# -- at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["c", "n"])
def test_threads_that_create_the_same_file_at_once_all_succeed(tmp_path: Path, flag: str) -> None:
    path = tmp_path / "db"
    start = threading.Barrier(8)
    failures = []

    def work(number: int) -> None:
        try:
            start.wait()
            with durabledbm.open(path, "c" if number else flag) as db:
                db[b"%d" % number] = b"x"
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["db"]
    if flag == "c":
        with durabledbm.open(path) as db:
            assert len(db) == 8


@pytest.mark.parametrize("there", ["missing", "empty"])
def test_processes_that_create_the_same_file_at_once_all_succeed(tmp_path: Path, there: str) -> None:
    path = tmp_path / "db"
    if there == "empty":
        path.touch()
    program = (
        "import sys, durabledbm\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        f"with durabledbm.open({str(path)!r}, 'c') as db:\n"
        "    db[sys.argv[1]] = 'value'\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for number in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline().split() == [b"ready"]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
        child.stdin = None
    for child in children:
        _, complaint = child.communicate()
        assert (child.returncode, complaint) == (0, b"")
    with durabledbm.open(path) as db:
        assert db.keys() == [b"0", b"1", b"2", b"3"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["db"]
