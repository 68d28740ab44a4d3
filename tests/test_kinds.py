"""A database of another kind is told by its name, and never hidden by a new file of ours."""

from __future__ import annotations

import contextlib
import dbm
import errno
import gzip
import importlib
import os
import shelve as stdlib_shelve
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_old import DATA
from systems import needs_pipe_files, needs_symlinks, only_posix

import durabledbm
from durabledbm import shelve
from durabledbm._engine.disk import FileVolume
from durabledbm._foreign import kinds
from durabledbm._foreign.kinds import beside, kind_of, located, shell_word
from durabledbm.changelog import ChangeLog
from durabledbm.dump import dump


def put_dumb(path: str) -> None:
    with importlib.import_module("dbm.dumb").open(path, "c") as db:
        db["k"] = "v"


def put_berkeley(path: str) -> None:
    Path(path + ".db").write_bytes(gzip.decompress((DATA / "old.db.gz").read_bytes()))


def put_gdbm_as_ndbm(path: str) -> None:
    Path(path + ".pag").write_bytes(gzip.decompress((DATA / "old.gdbm.gz").read_bytes()))
    Path(path + ".dir").touch()


def put_ndbm(path: str) -> None:
    Path(path + ".pag").write_bytes(bytes(1024))
    Path(path + ".dir").touch()


def put_cut_off_dumb(path: str) -> None:
    """dbm.dumb was killed between the rename of its index and writing the new one."""
    put_dumb(path)
    os.replace(path + ".dir", path + ".bak")


BESIDE: dict[str, Callable[[str], None]] = {
    "dbm.dumb": put_dumb,
    "dbm.dumb, cut off": put_cut_off_dumb,
    "dbm.ndbm, Berkeley DB": put_berkeley,
    "dbm.ndbm, gdbm": put_gdbm_as_ndbm,
    "dbm.ndbm": put_ndbm,
}


def put_sqlite(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
        db.execute("INSERT INTO Dict VALUES (CAST('k' AS BLOB), CAST('v' AS BLOB))")
        db.commit()


def put_gdbm(path: str) -> None:
    Path(path).write_bytes(gzip.decompress((DATA / "old.gdbm.gz").read_bytes()))


def put_hash(path: str) -> None:
    Path(path).write_bytes(gzip.decompress((DATA / "old.db.gz").read_bytes()))


def put_lmdb(path: str) -> None:
    pytest.importorskip("lmdb").open(path, subdir=False, lock=False).close()


def put_lmdb_directory(path: str) -> None:
    pytest.importorskip("lmdb").open(path, lock=False).close()


ITSELF: dict[str, Callable[[str], None]] = {
    "dbm.sqlite3": put_sqlite,
    "dbm.gnu": put_gdbm,
    "Berkeley DB": put_hash,
    "LMDB": put_lmdb,
    "LMDB ": put_lmdb_directory,
}


@pytest.fixture(params=BESIDE)
def old(request: pytest.FixtureRequest, db_path: str) -> tuple[str, str]:
    """The name of a database whose files have suffixes, and its kind."""
    BESIDE[request.param](db_path)
    return db_path, request.param.partition(",")[0]


def names(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


OPENERS: dict[str, Callable[[str, str], Any]] = {
    "open": durabledbm.open,
    "shelve.open": shelve.open,
    "open_sharded": durabledbm.open_sharded,
}


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
@pytest.mark.parametrize("opener", OPENERS)
def test_no_new_file_hides_an_old_database(old: tuple[str, str], opener: str, flag: str) -> None:
    path, kind = old
    before = names(path)
    with pytest.raises(durabledbm.error, match=f"an old {kind} database") as caught:
        OPENERS[opener](path, flag)
    assert f"'durabledbm migrate {shell_word(path)}'" in str(caught.value)
    assert caught.value.errno == (errno.ENOENT if flag in "rw" else errno.EEXIST)
    assert caught.value.filename == path
    assert names(path) == before


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
def test_a_file_of_ours_that_nothing_was_written_to_hides_it_no_better(old: tuple[str, str], flag: str) -> None:
    path, kind = old
    Path(path).touch()
    with pytest.raises(durabledbm.error, match=f"an old {kind} database"):
        durabledbm.open(path, flag)
    os.unlink(path)
    shutil.copy(empty_database(path), path)
    with pytest.raises(durabledbm.error, match=f"an old {kind} database"):
        durabledbm.open(path, flag)
    os.unlink(path)


def empty_database(path: str) -> str:
    durabledbm.open(path + ".empty", "c").close()
    return path + ".empty"


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
def test_a_database_of_ours_that_was_written_to_is_opened_whatever_stands_beside_it(
    old: tuple[str, str], flag: str
) -> None:
    path, _ = old
    with durabledbm.open(path + "x", "n") as db:
        db["k"] = "v"
        del db["k"]
    os.rename(path + "x", path)
    with durabledbm.open(path, flag) as db:
        assert not db


def test_a_foreign_file_of_the_name_is_not_replaced_beside_an_old_database(old: tuple[str, str]) -> None:
    path, kind = old
    Path(path).write_text("foreign")
    with pytest.raises(durabledbm.error, match=f"an old {kind} database"):
        durabledbm.open(path, "n")
    assert Path(path).read_text() == "foreign"


def test_the_command_that_is_named_converts_it(old: tuple[str, str], tmp_path: Path) -> None:
    path, kind = old
    if kind == "dbm.ndbm" and Path(path + ".pag").exists() and not Path(path + ".pag").read_bytes().strip(b"\0"):
        return  # only dbm.ndbm itself could read this one, which is not one
    with pytest.raises(durabledbm.error) as caught:
        durabledbm.open(path, "c")
    command = str(caught.value).split("'")[1]
    assert command.startswith("durabledbm migrate ")
    if Path(path + ".bak").exists() and not Path(path + ".dir").exists():
        command = command.replace(" migrate", " migrate --salvage")
    program = "import sys; from durabledbm.cli.app import main; sys.exit(main())"
    arguments = [sys.executable, "-c", program, *shlex.split(command)[1:]]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("bug")) == (0, 0), done.stderr
    with durabledbm.open(path, "c") as db:
        assert len(db)


@pytest.mark.parametrize("kind", ITSELF)
def test_a_file_of_another_kind_is_told_with_its_kind_and_the_command(tmp_path: Path, kind: str) -> None:
    db_path = str(tmp_path / "old")
    ITSELF[kind](db_path)
    for flag in ("r", "w", "c"):
        with pytest.raises(durabledbm.error) as caught:
            durabledbm.open(db_path, flag)
        assert kind.strip() in str(caught.value)
        assert f"'durabledbm migrate {shell_word(db_path)}" in str(caught.value)
    with pytest.raises(durabledbm.error, match=kind.strip()):
        durabledbm.open_sharded(db_path, "c")


def test_a_berkeley_file_under_its_own_name_is_told_too(db_path: str) -> None:
    put_berkeley(db_path)
    with pytest.raises(durabledbm.error, match=r"a file of a dbm\.ndbm.*db\.db' converts that into 'test\.db'"):
        durabledbm.open(db_path + ".db", "c")


def test_an_sqlite_database_of_some_program_is_not_said_to_be_dbms(db_path: str) -> None:
    with contextlib.closing(sqlite3.connect(db_path)) as db:
        db.execute("CREATE TABLE t (a)")
    with pytest.raises(durabledbm.error, match=r"an SQLite database.*if dbm\.sqlite3 made it"):
        durabledbm.open(db_path)


@pytest.mark.leaves_damage
def test_a_database_without_both_meta_pages_is_one_to_salvage(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.update({f"{i}": "v" * 100 for i in range(1000)})
    with open(db_path, "r+b") as file:
        file.write(bytes(8192))
    with pytest.raises(durabledbm.CorruptionError, match=f"'durabledbm salvage {shell_word(db_path)} NEW'"):
        durabledbm.open(db_path)


def test_what_else_the_name_may_belong_to_is_told_with_what_opens_it(db_path: str) -> None:
    durabledbm.open_sharded(db_path, "c").close()
    for flag in ("r", "c"):
        with pytest.raises(durabledbm.error, match=r"a sharded database; durabledbm\.open_sharded"):
            durabledbm.open(db_path, flag)
    single = db_path + "1"
    with durabledbm.open(single, "c") as db:
        db["k"] = "v"
        dump(db, single + ".dump")
    for flag in ("r", "c"):
        with pytest.raises(durabledbm.error, match=r"in one file, not a sharded one; durabledbm\.open"):
            durabledbm.open_sharded(single, flag)
    with pytest.raises(durabledbm.error, match=r"a dump or a log of changes.*'durabledbm load NEW "):
        durabledbm.open(single + ".dump")
    with ChangeLog(db_path + "log") as log:
        log.put(b"k", b"v")
    with pytest.raises(durabledbm.error, match="a dump or a log of changes"):
        durabledbm.open(log._files.path(1))


# -- what is not an old database -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffixes",
    [
        {".db": b"SQLite format 3\0" + bytes(4000)},
        {".db": b""},
        {".db": b"text"},
        {".dat": b"data"},
        {".dir": b"'a', (0, 1)\n"},
        {".dat": b"data", ".dir": b"something else"},
        {".dat": b"data", ".bak": b""},
        {".pag": b"pages"},
        {"-wal": b"x", ".bak": b"'a', (0, 1)\n"},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("flag", ["c", "n"])
def test_what_dbm_would_not_open_under_the_name_is_no_reason_to_refuse_it(
    db_path: str, suffixes: dict[str, bytes], flag: str
) -> None:
    for suffix, content in suffixes.items():
        Path(db_path + suffix).write_bytes(content)
    with durabledbm.open(db_path, flag) as db:
        db["k"] = "v"


def test_databases_of_ours_may_be_called_like_old_ones(db_path: str) -> None:
    for suffix in (".db", ".dat", ".pag", ".dir", ""):
        with durabledbm.open(db_path + suffix, "c") as db:
            db["k"] = "v"
    durabledbm.open(db_path + ".db.db", "c").close()


@needs_pipe_files
def test_directories_and_pipes_are_no_old_databases_and_nobody_waits_for_them(db_path: str) -> None:
    for suffix in (".dat", ".db"):
        os.mkfifo(db_path + suffix)
    for suffix in (".pag", ".dir"):
        os.mkdir(db_path + suffix)
    durabledbm.open(db_path, "c").close()
    for other in (db_path + ".dat", db_path + ".pag"):
        with pytest.raises(durabledbm.error):
            durabledbm.open(other, "r")
    assert durabledbm.whichdb(db_path) == "durabledbm"
    os.unlink(db_path)
    assert durabledbm.whichdb(db_path) is None
    assert durabledbm.whichdb(db_path + ".db") == ""


@needs_pipe_files
def test_a_sharded_database_whose_manifest_is_a_pipe_is_an_error(db_path: str) -> None:
    os.mkdir(db_path)
    os.mkfifo(os.path.join(db_path, "durabledbm.shards"))
    with pytest.raises(durabledbm.error):
        durabledbm.open_sharded(db_path)


# -- under install() -------------------------------------------------------------------------------------------------


def test_under_install_old_files_are_opened_by_their_own_module(db_path: str) -> None:
    put_dumb(db_path)
    with durabledbm.install():
        for flag in ("r", "w", "c"):
            with dbm.open(db_path, flag) as db:
                assert db["k"] == b"v"
        with stdlib_shelve.open(db_path) as shelf:
            assert list(shelf) == ["k"]
        with pytest.raises(durabledbm.error, match="migrate"):
            dbm.open(db_path, "n").close()
    assert not os.path.exists(db_path)


def test_under_install_what_this_python_cannot_open_is_not_hidden(db_path: str) -> None:
    if importlib.util.find_spec("_dbm") is not None:
        pytest.skip("this Python has dbm.ndbm")
    put_berkeley(db_path)
    with durabledbm.install():
        for opener in (dbm.open, stdlib_shelve.open):
            with pytest.raises(durabledbm.error, match=r"an old dbm\.ndbm database"):
                opener(db_path, "c")
    assert not os.path.exists(db_path)


# -- details ---------------------------------------------------------------------------------------------------------


def test_no_file_is_looked_for_beside_a_database_that_is_there(
    db_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with durabledbm.open(db_path, "c") as db:
        db["k"] = "v"
    monkeypatch.setattr(kinds, "_read", lambda *_: pytest.fail("a file was looked for"))
    for flag in ("r", "w", "c", "n"):
        durabledbm.open(db_path, flag).close()


@needs_symlinks
def test_a_link_is_judged_by_its_own_name_and_by_that_of_its_target(tmp_path: Path) -> None:
    os.symlink("real", tmp_path / "link")
    put_dumb(str(tmp_path / "real"))
    with pytest.raises(durabledbm.error, match=r"an old dbm\.dumb database"):
        durabledbm.open(tmp_path / "link", "c")
    os.symlink("other", tmp_path / "link2")
    put_dumb(str(tmp_path / "link2"))
    with pytest.raises(durabledbm.error, match=r"an old dbm\.dumb database"):
        durabledbm.open(tmp_path / "link2", "c")


@only_posix("its shell is another: see test_on_windows")
@pytest.mark.parametrize("name", ["plain", "with space", "-dash", "quote's", "new\nline", "$HOME", "ż"])
def test_a_name_is_quoted_as_a_shell_and_the_command_line_take_it(tmp_path: Path, name: str) -> None:
    done = subprocess.run(f"printf %s {shell_word(name)}", shell=True, capture_output=True, check=True)
    assert os.path.normpath(os.fsdecode(done.stdout)) == name
    assert not os.fsdecode(done.stdout).startswith("-")


def test_kinds_are_told_by_bytes(tmp_path: Path) -> None:
    volume = FileVolume()
    path = tmp_path / "file"

    def kind(content: bytes) -> str | None:
        path.write_bytes(content)
        return kind_of(volume, str(path))

    assert kind(b"") == "durabledbm"
    assert kind((0x13579ACE).to_bytes(4, "little")) == kind((0x13579ACF).to_bytes(4, "big")) == "dbm.gnu"
    assert kind(bytes(12) + (0x061561).to_bytes(4, "big")) == kind((0x061561).to_bytes(4, "little")) == "dbhash"
    assert kind(bytes(12) + (0x053162).to_bytes(4, "little")) is None  # a B-tree of Berkeley DB's
    assert kind(b"\0") is None
    assert kind_of(volume, str(tmp_path)) is None
    assert kind_of(volume, str(tmp_path / "missing")) is None


@pytest.mark.parametrize("kind", BESIDE)
def test_an_old_database_is_found_by_its_name_and_by_the_names_of_its_files(db_path: str, kind: str) -> None:
    BESIDE[kind](db_path)
    volume = FileVolume()
    expected = (kind.partition(",")[0], db_path)
    assert beside(volume, db_path) == expected
    for name in names(db_path):
        assert located(volume, os.path.join(os.path.dirname(db_path), name)) == expected
