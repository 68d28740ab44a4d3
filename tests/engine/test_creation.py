"""How a file comes into being: whole or not at all, however many create it at once."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from simdisk import SimVolume, disk_error

import durabledbm
from durabledbm._engine.creation import create, empty_database, initialise, replace, temporary_name
from durabledbm._engine.meta import META_AREA, META_SIZE, decode_meta
from durabledbm._engine.native import FileVolume
from durabledbm.database import open_on

ROOT = Path(__file__).parent.parent.parent


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- what is created -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_a_new_file_is_two_equal_steady_metas(page_size: int) -> None:
    content = empty_database(page_size)
    assert len(content) == META_AREA
    first, second = (decode_meta(content[at : at + META_SIZE]) for at in (0, META_SIZE))
    assert first == second
    assert first is not None
    assert (first.txid, first.steady, first.entry_count, first.depth) == (1, True, 0, 0)
    assert first.page_size == page_size


def test_no_two_files_have_the_same_id() -> None:
    ids = set()
    for _ in range(20):
        meta = decode_meta(empty_database(4096)[:META_SIZE])
        assert meta is not None
        ids.add(meta.database_id)
    assert len(ids) == 20


def test_the_file_is_complete_and_durable_before_it_has_its_name() -> None:
    volume = SimVolume()
    create(volume, "/dir/db", 0o666, 4096)
    assert [operation.kind for operation in volume.log] == [
        "create",
        "write",
        "sync",
        "link",
        "remove",
        "sync_directory",
    ]
    assert volume.paths() == ["/dir/db"]


def test_the_name_is_durable_before_anything_is_acknowledged() -> None:
    volume = SimVolume()
    with open_on(volume, "/dir/db", "c") as db:
        kinds = [operation.kind for operation in volume.log]
        assert kinds[-1] == "sync_directory"
        db["key"] = "value"
    for crash in volume.crash_states(limit=50):
        with open_on(crash, "/dir/db", "r") as db:
            assert dict(db.items()) == {b"key": b"value"}


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


def test_the_mode_of_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "db"
    durabledbm.open(path, "c", 0o600).close()
    for flag in ("c", "w", "n"):
        with durabledbm.open(path, flag, 0o666) as db:
            db["key"] = "value"
        assert mode_of(path) == 0o600


@pytest.mark.parametrize("flag", ["c", "w", "n"])
def test_the_mode_of_an_empty_file_stays(tmp_path: Path, flag: str) -> None:
    """As of one from tempfile.mkstemp(), which nobody else may read."""
    path = tmp_path / "db"
    path.touch(0o600)
    with durabledbm.open(path, flag) as db:
        db["secret"] = "value"
    assert mode_of(path) == 0o600


def test_the_mode_of_a_foreign_file_stays_when_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_text("text")
    path.chmod(0o600)
    with durabledbm.open(path, "n") as db:
        db["secret"] = "value"
    assert mode_of(path) == 0o600


# -- who is there already ------------------------------------------------------------------------------------------


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"somebody else's")
    create(FileVolume(), str(path), 0o666, 4096)
    assert path.read_bytes() == b"somebody else's"
    assert [entry.name for entry in tmp_path.iterdir()] == ["db"]


def test_a_leftover_of_an_interrupted_creation_is_in_nobodys_way(tmp_path: Path) -> None:
    leftover = Path(temporary_name(str(tmp_path / "db")))
    leftover.write_bytes(empty_database(4096)[:5000])
    with durabledbm.open(tmp_path / "db", "c") as db:
        db["key"] = "value"
    assert sorted(tmp_path.iterdir()) == sorted([leftover, tmp_path / "db"])
    leftover.unlink()


def test_a_planted_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody guessed the temporary name, and made it a link to a file of theirs or ours."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = tmp_path / ".durabledbm-guessed"
    planted.symlink_to(victim)
    monkeypatch.setattr("durabledbm._engine.creation.temporary_name", lambda path: str(planted))
    with pytest.raises(OSError, match="exists") as caught:
        create(FileVolume(), str(tmp_path / "db"), 0o666, 4096)
    assert caught.value.errno == errno.EEXIST
    assert victim.read_text() == "precious"
    assert planted.is_symlink()
    assert not (tmp_path / "db").exists()


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


def test_a_file_in_a_linked_directory_is_written_and_replaced_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for flag in ("c", "w", "n"):
        with durabledbm.open(tmp_path / "link" / "db", flag) as db:
            db[flag] = "value"
    assert [entry.name for entry in (tmp_path / "real").iterdir()] == ["db"]
    with durabledbm.open(tmp_path / "real" / "db") as db:
        assert list(db) == [b"n"]


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


def test_an_empty_file_in_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """It cannot be replaced: so it is made a database in place."""
    volume = SimVolume({"/db": b""})
    volume.fail_at(0, disk_error(errno.EACCES, times=None), kinds=("create",))
    with open_on(volume, "/db", "w") as db:
        db["key"] = "value"
        assert db["key"] == b"value"
    with open_on(volume, "/db", "r") as db:
        assert dict(db.items()) == {b"key": b"value"}


def test_a_file_can_be_initialised_in_place() -> None:
    volume = SimVolume({"/db": b""})
    initialise(volume.open("/db", writable=True), 4096)
    assert len(volume.medium("/db")) == META_AREA


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["create", "write", "sync", "link", "sync_directory"])
def test_a_failed_creation_leaves_nothing_half_done(kind: str) -> None:
    volume = SimVolume()
    volume.fail_at(0, disk_error(errno.EIO), kinds=(kind,))
    with pytest.raises(durabledbm.error) as caught:
        open_on(volume, "/db", "c")
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == "/db"
    assert volume.paths() in ([], ["/db"])
    with open_on(volume, "/db", "c") as db:
        assert len(db) == 0


@pytest.mark.parametrize("kind", ["create", "write", "sync", "replace"])
def test_a_failed_replacement_leaves_what_was_there(kind: str) -> None:
    volume = SimVolume({"/db": b"foreign" * 2000})
    volume.fail_at(0, disk_error(errno.EIO), kinds=(kind,))
    with pytest.raises(durabledbm.error):
        open_on(volume, "/db", "n")
    assert volume.paths() == ["/db"]
    assert volume.content("/db") == b"foreign" * 2000
    replace(volume, "/db", 0o666, 4096)
    assert len(volume.content("/db")) == META_AREA


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_where_there_are_no_links_a_file_is_created_in_place(code: int) -> None:
    volume = SimVolume()
    volume.fail_at(0, disk_error(code, times=None), kinds=("link",))
    with open_on(volume, "/db", "c") as db:
        db["key"] = "value"
    assert volume.paths() == ["/db"]
    with open_on(volume, "/db", "c") as db:
        assert db["key"] == b"value"


def test_where_there_are_no_links_an_existing_file_is_left_alone() -> None:
    volume = SimVolume({"/db": b"somebody else's"})
    volume.fail_at(0, disk_error(errno.EPERM, times=None), kinds=("link",))
    create(volume, "/db", 0o666, 4096)
    assert volume.content("/db") == b"somebody else's"
    assert volume.paths() == ["/db"]


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
        assert child.stdout.readline() == b"ready\n"
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
