"""migrate() and export(): every entry arrives, and whatever happens on the way, nothing is lost."""

from __future__ import annotations

import contextlib
import dbm
import dbm.dumb
import errno
import gzip
import importlib
import os
import pickle
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import open_directory, run_apart, unprivileged
from make_old import DATA
from make_old import ENTRIES as OLD_ENTRIES
from systems import KILL, WINDOWS, needs_mode, needs_pipe_files, needs_root, needs_symlinks, only_posix

import durabledbm
import durabledbm.shelve
from durabledbm._engine.disk import FileDisk
from durabledbm._files import temporary
from durabledbm._files.sorting import in_key_order
from durabledbm._foreign import sources
from durabledbm._foreign.kinds import FILES, Found
from durabledbm._foreign.sources import Entry, locate, open_source
from durabledbm.cli.app import main
from durabledbm.export import export
from durabledbm.migration import convert, migrate
from durabledbm.stdlib import whichdb

ENTRIES = {b"": b"empty key", b"empty value": b"", b"\0\xff\n'\"": bytes(range(256)), b"large": b"x" * 10**5}
ENTRIES |= {f"key {i}".encode(): f"value {i}".encode() * (i % 7) for i in range(500)}


def write_dbm(name: str) -> Callable[[str, dict[bytes, bytes]], None]:
    def write(path: str, entries: dict[bytes, bytes]) -> None:
        with importlib.import_module(name).open(path, "c") as db:
            for key, value in entries.items():
                db[key] = value

    return write


def write_sqlite(path: str, entries: dict[bytes, bytes]) -> None:
    """As dbm.sqlite3 does, also where there is no such module."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = wal")
    db.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
    db.executemany("REPLACE INTO Dict VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", entries.items())
    db.commit()
    db.close()


def write_lmdb(path: str, entries: dict[bytes, bytes], subdir: bool = True) -> None:
    lmdb = pytest.importorskip("lmdb")
    environment = lmdb.open(path, subdir=subdir, map_size=2**26)
    with environment.begin(write=True) as transaction:
        for key, value in entries.items():
            if key:
                transaction.put(key, value)
    environment.close()


WRITERS: dict[str, Callable[[str, dict[bytes, bytes]], None]] = {
    "dbm.dumb": write_dbm("dbm.dumb"),
    "dbm.gnu": write_dbm("dbm.gnu"),
    "dbm.ndbm": write_dbm("dbm.ndbm"),
    "dbm.sqlite3": write_sqlite,
    "lmdb": write_lmdb,
}
NEEDS = {"dbm.gnu": "dbm.gnu", "dbm.ndbm": "dbm.ndbm", "lmdb": "lmdb"}


@pytest.fixture(params=WRITERS)
def kind(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"this Python has no {NEEDS[name]}", exc_type=ImportError)
    return name


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "old")


def content_of(path: str, kind: str) -> dict[bytes, bytes]:
    source = open_source(Found(kind, path))
    try:
        return dict(source.entries())
    finally:
        source.close()


def ours(path: str) -> dict[bytes, bytes]:
    with durabledbm.open(path) as db:
        assert db.check() == []
        return dict(db.items())


def expected(kind: str) -> dict[bytes, bytes]:
    """The entries that a database of this kind can hold."""
    if kind == "dbm.ndbm":  # Berkeley DB's
        return {key: value for key, value in ENTRIES.items() if key and value}
    return {key: value for key, value in ENTRIES.items() if key or kind != "lmdb"}


# All kinds


def test_a_new_file_gets_every_entry(kind: str, path: str, tmp_path: Path) -> None:
    entries = expected(kind)
    WRITERS[kind](path, entries)
    before = {entry.name for entry in tmp_path.iterdir()}
    assert locate(path) == (kind, path)
    target = str(tmp_path / "new")
    assert migrate(path, target) == len(entries)
    assert ours(target) == entries
    assert content_of(path, kind) == entries
    assert {entry.name for entry in tmp_path.iterdir()} == before | {"new"}


@needs_mode
def test_what_may_not_be_looked_at_is_not_called_missing() -> None:
    with open_directory() as directory:
        directory.chmod(0o777)
        (directory / "closed").mkdir(0o700)
        (directory / "closed" / "old").write_bytes(b"x")
        unprivileged("""
for names in (["closed/old"], ["closed/old", "new"], ["closed"], ["closed", "new"]):
    try:
        durabledbm.migration.migrate(*names)
    except durabledbm.error as exc:
        assert exc.errno == 13, (names, exc)
    else:
        assert False
""", directory)


def test_a_name_that_leads_through_a_file_is_told_so(path: str) -> None:
    Path(path).write_text("a file")
    with pytest.raises(durabledbm.error) as caught:
        migrate(os.path.join(path, "old"))
    assert caught.value.errno == (errno.ENOENT if WINDOWS else errno.ENOTDIR)


def test_in_place_the_old_database_is_kept_as_bak(kind: str, path: str, tmp_path: Path) -> None:
    entries = expected(kind)
    WRITERS[kind](path, entries)
    if kind == "lmdb":
        with pytest.raises(durabledbm.error, match="give a target"):
            migrate(path)
        return
    assert migrate(path) == len(entries)
    assert ours(path) == entries
    assert whichdb(path) == "durabledbm"
    assert dbm.whichdb(path) == ""  # and not what any of the old names would make it
    assert locate(path + ".bak") == (kind, path + ".bak")
    assert content_of(path + ".bak", kind) == entries
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names == {"old"} | {"old.bak" + suffix for suffix in FILES[kind] if "old.bak" + suffix in names}


def test_an_empty_database_stays_empty(kind: str, path: str, tmp_path: Path) -> None:
    WRITERS[kind](path, {})
    assert migrate(path, tmp_path / "new") == 0
    assert ours(str(tmp_path / "new")) == {}


def test_progress_counts_each_entry_twice_and_ends_at_the_total(kind: str, path: str, tmp_path: Path) -> None:
    WRITERS[kind](path, {f"{i}".encode(): b"v" for i in range(3000)})
    calls: list[tuple[int, int | None]] = []
    migrate(path, tmp_path / "new", progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (1024, 6000)
    assert calls[-1] == (6000, 6000)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@needs_mode
def test_the_new_file_has_the_permissions_of_the_old_one(kind: str, path: str, tmp_path: Path) -> None:
    WRITERS[kind](path, {b"k": b"v"})
    for entry in tmp_path.rglob("*"):
        if entry.is_file():
            entry.chmod(0o640)
    old = os.umask(0o077)
    try:
        migrate(path, tmp_path / "new")
    finally:
        os.umask(old)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_names_may_be_bytes_and_paths_and_hold_any_character(kind: str, tmp_path: Path) -> None:
    name = str(tmp_path / "żółw %41?[x]*#")
    if WINDOWS:  # no name has a question mark or an asterisk there, and py-lmdb takes ASCII only
        name = str(tmp_path / ("fish %41[x]#" if kind == "lmdb" else "żółw %41[x]#"))
    WRITERS[kind](name, {b"k": b"v"})
    assert migrate(Path(name), os.fsencode(name + "new")) == 1
    assert ours(name + "new") == {b"k": b"v"}


def test_a_read_only_source_in_a_read_only_directory_is_enough(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / "ro"
    directory.mkdir()
    path = str(directory / "old")
    WRITERS[kind](path, {b"k": b"v"})
    everything = [*directory.rglob("*"), directory]
    for entry in everything:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    try:
        migrate(path, tmp_path / "new")
    finally:
        for entry in reversed(everything):
            entry.chmod(0o755)
    assert ours(str(tmp_path / "new")) == {b"k": b"v"}


# Single kinds


def test_an_lmdb_file_without_a_directory_is_replaced_in_place(path: str) -> None:
    write_lmdb(path, ENTRIES, subdir=False)
    assert migrate(path) == len(ENTRIES) - 1
    assert ours(path) == expected("lmdb")
    assert content_of(path + ".bak", "lmdb") == expected("lmdb")


def test_the_named_databases_of_lmdb_become_tables(path: str, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    expected = {"n\u00e4med": {b"%04d" % n: b"v" * (n % 3000) for n in range(500)}, "other": {b"k": b""}, "empty": {}}
    write_lmdb(path, {b"a": b"v" * 48, b"b": b"v"})
    with lmdb.open(path, max_dbs=4, map_size=2**26) as environment:
        for name, entries in expected.items():
            named = environment.open_db(name.encode())
            with environment.begin(write=True, db=named) as writing:
                for key, value in entries.items():
                    writing.put(key, value)
    assert migrate(path, tmp_path / "new") == 503
    with durabledbm.open(tmp_path / "new") as db:
        assert dict(db.items()) == {b"a": b"v" * 48, b"b": b"v"}
        assert db.tables() == ["n\u00e4med", "other"]
        for name, entries in expected.items():
            assert dict(db.table(name)) == entries
        assert db.check() == []


def test_a_named_database_of_lmdb_with_duplicate_keys_is_refused(path: str, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(path, max_dbs=1) as environment:
        environment.open_db(b"several", dupsort=True)
    with pytest.raises(durabledbm.error, match="several values"):
        migrate(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_tables_of_sqlitedict_become_tables(path: str) -> None:
    """Written as sqlitedict 2.1 writes them, with pickled values."""
    expected = {"unnamed": {"k": 1}, 'quoted "name"': {"\u00e4": {}}, "third": {str(n): n for n in range(100)}}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for name, entries in expected.items():
            quoted = name.replace('"', '""')
            connection.execute(f'CREATE TABLE "{quoted}" (key TEXT PRIMARY KEY, value BLOB)')
            rows = [(key, pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)) for key, value in entries.items()]
            connection.executemany(f'REPLACE INTO "{quoted}" (key, value) VALUES (?, ?)', rows)
        connection.execute("CREATE TABLE another (id INTEGER PRIMARY KEY, value BLOB)")
        connection.commit()
    assert migrate(path) == 102
    with durabledbm.shelve.open(path, "r") as shelf:
        assert dict(shelf) == {"k": 1}
    for name in sorted(expected.keys() - {"unnamed"}):
        with durabledbm.shelve.open(path, "r", table=name) as shelf:
            assert dict(shelf) == expected[name]


def test_an_lmdb_database_with_duplicate_keys_is_refused(path: str, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    lmdb.open(path).close()
    with open(path + "/data.mdb", "r+b") as file:  # py-lmdb does not set the flag, LMDB's other users may
        for page in (0, 4096):
            file.seek(page + 92)
            file.write(b"\x04")
    with pytest.raises(durabledbm.error, match="several values"):
        migrate(path, tmp_path / "new")


def test_what_sqlite_has_only_in_its_log_is_migrated_too(path: str, tmp_path: Path) -> None:
    write_sqlite(path, {b"a": b"1"})
    db = sqlite3.connect(path)
    db.execute("INSERT INTO Dict VALUES (CAST('b' AS BLOB), CAST('2' AS BLOB))")
    db.commit()
    assert Path(path + "-wal").stat().st_size > 0
    assert migrate(path, tmp_path / "new") == 2
    db.close()
    assert ours(str(tmp_path / "new")) == {b"a": b"1", b"b": b"2"}


def test_an_sqlite_database_that_is_no_dbm_is_refused_and_left_alone(path: str) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE Other (x)")
    db.commit()
    db.close()
    before = Path(path).read_bytes()
    with pytest.raises(durabledbm.error, match="an SQLite database, but not one"):
        migrate(path)
    assert Path(path).read_bytes() == before


def test_a_missing_module_is_named(path: str) -> None:
    if importlib.util.find_spec("_dbm") is not None:
        pytest.skip("this Python has dbm.ndbm")
    for suffix in (".pag", ".dir"):  # of Unix's own dbm.ndbm
        Path(path + suffix).write_bytes(bytes(1000))
    with pytest.raises(durabledbm.error, match=r"needs the module dbm\.ndbm"):
        migrate(path)


# The names that people see


def put(path: str, name: str) -> None:
    Path(path).write_bytes(gzip.decompress((DATA / name).read_bytes()))


@pytest.mark.parametrize("suffix", ["", ".dat", ".dir"])
def test_a_database_of_dumb_may_be_called_by_its_files(path: str, suffix: str) -> None:
    write_dbm("dbm.dumb")(path, ENTRIES)
    assert migrate(path + suffix) == len(ENTRIES)
    assert ours(path) == ENTRIES
    assert content_of(path + ".bak", "dbm.dumb") == ENTRIES


@pytest.mark.parametrize("suffix", ["", ".db"])
def test_a_berkeley_file_may_be_called_with_and_without_its_suffix(path: str, tmp_path: Path, suffix: str) -> None:
    put(path + ".db", "old.db.gz")
    assert migrate(path + suffix) == len(OLD_ENTRIES)
    assert ours(path) == OLD_ENTRIES
    assert sorted(os.listdir(tmp_path)) == ["old", "old.bak.db"]


@pytest.mark.parametrize("suffix", ["", ".pag", ".dir"])
def test_gdbms_own_ndbm_is_read_as_what_it_is(path: str, tmp_path: Path, suffix: str) -> None:
    put(path + ".pag", "old.gdbm.gz")
    Path(path + ".dir").touch()
    assert migrate(path + suffix) == len(OLD_ENTRIES)
    assert ours(path) == OLD_ENTRIES
    assert sorted(os.listdir(tmp_path)) == ["old", "old.bak.dir", "old.bak.pag"]


@pytest.mark.parametrize("name", ["old.db.gz", "old.gdbm.gz"])
def test_a_file_without_a_suffix_is_replaced(path: str, tmp_path: Path, name: str) -> None:
    put(path, name)
    assert migrate(path) == len(OLD_ENTRIES)
    assert ours(path) == OLD_ENTRIES
    assert sorted(os.listdir(tmp_path)) == ["old", "old.bak"]


def test_what_was_converted_is_told(path: str) -> None:
    write_dbm("dbm.dumb")(path, ENTRIES)
    assert convert(path + ".dat", path + ".new") == (len(ENTRIES), path + ".new", None)
    assert convert(path + ".dat") == (len(ENTRIES), path, path + ".bak")


def test_a_target_that_would_hide_another_old_database_is_refused(path: str, tmp_path: Path) -> None:
    write_sqlite(path, ENTRIES)
    write_dbm("dbm.dumb")(str(tmp_path / "new"), ENTRIES)
    with pytest.raises(durabledbm.error, match=r"an old dbm\.dumb database"):
        migrate(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Over a database of ours that was made there by mistake


@pytest.mark.parametrize("size", ["0 bytes", "no commit"])
@pytest.mark.parametrize("suffix", ["", ".dat"])
def test_an_empty_database_of_ours_gives_way(path: str, tmp_path: Path, size: str, suffix: str) -> None:
    hidden(path, size)
    assert migrate(path + suffix) == len(ENTRIES)
    assert ours(path) == ENTRIES
    assert content_of(path + ".bak", "dbm.dumb") == ENTRIES
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def hidden(path: str, size: str) -> None:
    """A database of dbm.dumb, and an empty one of ours in front of it."""
    if size == "0 bytes":
        Path(path).touch()
    else:
        durabledbm.open(path, "c").close()
    write_dbm("dbm.dumb")(path, ENTRIES)


@pytest.mark.parametrize("size", ["0 bytes", "no commit"])
def test_a_program_that_has_the_empty_one_open_loses_no_write_without_knowing(path: str, size: str) -> None:
    if size == "0 bytes":
        Path(path).touch()
    with durabledbm.open(path, "c") as early:
        write_dbm("dbm.dumb")(path, ENTRIES)
        migrate(path)
        try:
            early["k"] = "v"
        except durabledbm.error:
            assert ours(path) == ENTRIES
        else:
            assert ours(path) == ENTRIES | {b"k": b"v"}


@pytest.mark.parametrize("size", ["0 bytes", "no commit"])
def test_a_program_that_reads_the_empty_one_does_not_take_it_for_empty_any_more(path: str, size: str) -> None:
    hidden(path, size)
    os.rename(path + ".dat", path + ".away")
    with durabledbm.open(path) as early:
        os.rename(path + ".away", path + ".dat")
        assert len(early) == 0
        migrate(path)
        try:
            assert len(early) == len(ENTRIES)
        except durabledbm.error as exc:
            assert "while it was open" in str(exc)  # noqa: PT017 - the other outcome is as good


def test_one_that_was_written_to_does_not_give_way(path: str, tmp_path: Path) -> None:
    with durabledbm.open(path, "c") as db:
        db["k"] = "v"
    write_dbm("dbm.dumb")(path, ENTRIES)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(durabledbm.error, match=r"a durabledbm file already; 'durabledbm migrate .*\.dir NEW' converts"):
        migrate(path)
    with pytest.raises(durabledbm.error) as info:
        migrate(path + ".dat")
    assert info.value.errno == errno.EEXIST
    assert migrate(path + ".dat", tmp_path / "new") == len(ENTRIES)
    assert ours(path) == {b"k": b"v"}
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "new"])


def test_one_that_is_written_to_meanwhile_does_not_give_way(path: str, tmp_path: Path) -> None:
    with durabledbm.open(path, "c") as early:
        write_dbm("dbm.dumb")(path, ENTRIES)
        calls = []

        def progress(done: int, total: int | None) -> None:
            calls.append(done)
            early["k"] = "v"

        before = sorted(os.listdir(tmp_path))
        with pytest.raises(durabledbm.error) as info:
            migrate(path, progress=progress)
        assert calls
        assert info.value.errno == errno.EEXIST
        assert sorted(os.listdir(tmp_path)) == before
    assert ours(path) == {b"k": b"v"}
    assert content_of(path, "dbm.dumb") == ENTRIES


def test_an_old_name_that_cannot_be_removed_is_told_and_the_new_file_is_live(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a directory with the sticky bit, whose old files are another user's."""
    write_dbm("dbm.dumb")(path, ENTRIES)
    unlink = os.unlink

    def refuse(name: str) -> None:
        if name == path + ".dat":
            raise PermissionError(errno.EPERM, "Operation not permitted", name)
        unlink(name)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(durabledbm.error, match="the new file is complete") as info:
            migrate(path)
        assert info.value.filename == path + ".dat"
    assert ours(path) == ENTRIES
    assert migrate(path) == len(ENTRIES)  # done again when it may be removed
    assert content_of(path + ".bak", "dbm.dumb") == ENTRIES
    assert not os.path.exists(path + ".dat")


# Damage


def test_a_truncated_index_of_dumb_is_damage_and_what_can_be_read_is_offered(path: str, tmp_path: Path) -> None:
    Path(path + ".dir").write_text("'a', (0, 3)\n'b', (51")
    Path(path + ".dat").write_bytes(b"one" + bytes(4093))
    with pytest.raises(durabledbm.CorruptionError, match=r"line 2 of the index.*'durabledbm migrate --salvage .*old'"):
        migrate(path)
    assert sorted(os.listdir(tmp_path)) == ["old.dat", "old.dir"]
    said: list[str] = []
    assert migrate(path, tmp_path / "new", on_damage=said.append) == 1
    assert len(said) == 1
    assert ours(str(tmp_path / "new")) == {b"a": b"one"}


def test_a_value_beyond_the_end_is_damage_and_not_an_empty_value(path: str) -> None:
    Path(path + ".dir").write_text("'a', (0, 3)\n'b', (512, 100)\n'c', (2, 2)\n")
    Path(path + ".dat").write_bytes(b"one")
    said: list[str] = []
    with pytest.raises(durabledbm.CorruptionError, match="beyond the end"):
        migrate(path)
    assert migrate(path, on_damage=said.append) == 1
    assert len(said) == 2
    assert ours(path) == {b"a": b"one"}


def test_an_index_that_is_damaged_from_its_first_byte_is_named(path: str) -> None:
    Path(path + ".dir").write_bytes(b"\xff" * 100)
    Path(path + ".dat").write_bytes(b"x")
    with pytest.raises(durabledbm.CorruptionError, match=r"\.dir: line 1 of the index"):
        migrate(path)


def execute(path: str, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def test_a_text_and_a_blob_of_the_same_name_are_told_and_the_blob_is_kept(path: str) -> None:
    write_sqlite(path, {b"a": b"blob", b"b": b"other"})
    execute(path, "INSERT INTO Dict VALUES ('a', 'text')", "INSERT INTO Dict VALUES ('t', 'only text')")
    with pytest.raises(durabledbm.CorruptionError, match=r"the key b'a' is there as a blob and as another type"):
        migrate(path)
    said: list[str] = []
    assert migrate(path, on_damage=said.append) == 3
    assert len(said) == 1
    assert ours(path) == {b"a": b"blob", b"b": b"other", b"t": b"only text"}


def test_keys_that_become_the_same_are_told(path: str) -> None:
    write_sqlite(path, {})
    execute(path, "INSERT INTO Dict VALUES ('5', 'text')", "INSERT INTO Dict VALUES (5, 'number')")
    with pytest.raises(durabledbm.CorruptionError, match=r"several entries have the key b'5'"):
        migrate(path)
    said: list[str] = []
    assert migrate(path, on_damage=said.append) == 1
    assert len(said) == 1


def test_a_row_without_a_value_is_told(path: str) -> None:
    execute(path, "CREATE TABLE Dict (key BLOB, value BLOB)", "INSERT INTO Dict VALUES ('a', 'b'), ('c', NULL)")
    with pytest.raises(durabledbm.CorruptionError, match="row 2 has no value"):
        migrate(path)
    assert migrate(path, on_damage=lambda text: None) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW Dict AS WITH RECURSIVE n(key, value) AS (SELECT 1, 1 UNION ALL SELECT key + 1, 1 FROM n) "
        "SELECT * FROM n",
        "CREATE TABLE Dict (key BLOB, value AS (zeroblob(900000000)))",
        "CREATE TABLE Dict (key BLOB)",
        "CREATE TABLE dict_of_words (key BLOB, value BLOB)",
    ],
)
def test_an_sqlite_database_that_computes_its_entries_is_none_of_dbms(path: str, statement: str) -> None:
    execute(path, statement)
    with pytest.raises(durabledbm.error, match=r"not one that dbm\.sqlite3 or sqlitedict made"):
        migrate(path)


def test_of_a_damaged_sqlite_database_the_rest_is_read(path: str) -> None:
    entries = {b"%05d" % i: b"v" * 100 for i in range(2000)}
    write_sqlite(path, entries)
    data = bytearray(Path(path).read_bytes())
    at = data.index(b"01000" + b"v" * 100) // 4096 * 4096
    data[at : at + 100] = b"\xff" * 100
    Path(path).write_bytes(data)
    with pytest.raises(durabledbm.CorruptionError, match="--salvage"):
        migrate(path)
    said: list[str] = []
    assert 1500 < migrate(path, on_damage=said.append) < 2000
    assert said
    assert set(ours(path).items()) < set(entries.items())


def test_a_file_that_claims_more_than_it_holds_ends(path: str) -> None:
    Path(path + ".dir").write_text("".join(f"'{i}', (0, 1000000)\n" for i in range(100)))
    Path(path + ".dat").write_bytes(bytes(1000000))
    with pytest.raises(durabledbm.CorruptionError, match="more data than its files"):
        migrate(path)


class Odd(Exception):
    """What nobody expects."""


@pytest.mark.parametrize(
    "exc", [Odd("odd"), KeyError("key"), MemoryError(), SystemError("bad"), OSError("text"), OSError(5, "io")]
)
@pytest.mark.parametrize("where", ["open", "keys", "value"])
def test_whatever_a_foreign_module_raises_is_one_of_our_errors(
    path: str, monkeypatch: pytest.MonkeyPatch, exc: Exception, where: str
) -> None:
    def fails(moment: str) -> None:
        if moment == where:
            raise exc

    class Db:
        def keys(self) -> list[bytes]:
            fails("keys")
            return [b"k"]

        def __getitem__(self, key: bytes) -> bytes:
            fails("value")
            return b"v"

        def close(self) -> None:
            raise Odd

    class Module:
        @staticmethod
        def open(path: str, flag: str) -> Db:
            fails("open")
            return Db()

    monkeypatch.setattr(sources, "_module", lambda name, path: Module)
    for suffix in (".pag", ".dir"):
        Path(path + suffix).write_bytes(bytes(1000))
    with pytest.raises(durabledbm.error):
        migrate(path)
    assert not os.path.exists(path)


# What can go wrong


def test_what_is_no_database_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(durabledbm.error) as info:
        migrate(path)
    assert info.value.errno == 2
    with pytest.raises(durabledbm.error, match="a directory"):
        migrate(tmp_path)
    Path(path).write_bytes(b"some text")
    with pytest.raises(durabledbm.error, match="not a database"):
        migrate(path)
    assert Path(path).read_bytes() == b"some text"


def test_a_file_that_is_ours_already_is_refused(path: str, tmp_path: Path) -> None:
    durabledbm.open(path, "c").close()
    for target in (None, tmp_path / "new"):
        with pytest.raises(durabledbm.error, match="already"):
            migrate(path, target)


def test_an_existing_target_is_not_touched(path: str, tmp_path: Path) -> None:
    write_sqlite(path, ENTRIES)
    target = tmp_path / "new"
    target.write_bytes(b"precious")
    with pytest.raises(durabledbm.error) as info:
        migrate(path, target)
    assert info.value.errno == 17
    assert target.read_bytes() == b"precious"
    assert ours_or_none(path) is None


def test_an_existing_backup_is_not_touched(path: str) -> None:
    write_sqlite(path, ENTRIES)
    backup = Path(path + ".bak")
    backup.write_bytes(b"precious")
    with pytest.raises(durabledbm.error, match="in the way"):
        migrate(path)
    assert backup.read_bytes() == b"precious"
    assert content_of(path, "dbm.sqlite3") == ENTRIES


def test_a_file_of_the_new_name_is_not_replaced_by_an_old_database_with_suffixes(path: str) -> None:
    write_dbm("dbm.dumb")(path, ENTRIES)
    Path(path).write_bytes(b"precious")
    with pytest.raises(durabledbm.error) as info:
        migrate(path)
    assert info.value.errno == 17
    assert Path(path).read_bytes() == b"precious"
    assert content_of(path, "dbm.dumb") == ENTRIES


def test_an_exception_of_progress_ends_it_and_leaves_nothing_behind(path: str, tmp_path: Path) -> None:
    write_sqlite(path, {f"{i}".encode(): b"v" for i in range(5000)})
    before = {entry.name for entry in tmp_path.iterdir()}

    def interrupt(when: int, done: int) -> None:
        if done > when:
            raise KeyboardInterrupt

    for when in (0, 4000, 6000, 9999):
        with pytest.raises(KeyboardInterrupt):
            migrate(path, tmp_path / "new", progress=lambda done, total, when=when: interrupt(when, done))
        assert {entry.name for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", ["changed", "added", "deleted"])
def test_a_source_that_changes_meanwhile_is_noticed(path: str, tmp_path: Path, change: str) -> None:
    write_sqlite(path, {f"{i:05}".encode(): b"v" for i in range(3000)})
    statement = {
        "changed": "UPDATE Dict SET value = CAST('w' AS BLOB) WHERE key = CAST('02999' AS BLOB)",
        "added": "INSERT INTO Dict VALUES (CAST('x' AS BLOB), CAST('v' AS BLOB))",
        "deleted": "DELETE FROM Dict WHERE key = CAST('00000' AS BLOB)",
    }[change]

    def progress(done: int, total: int | None) -> None:
        if done == 3 * 1024:  # in the middle of verifying
            db = sqlite3.connect(path)
            db.execute(statement)
            db.commit()
            db.close()

    def verify_again(done: int, total: int | None) -> None:
        if done == 2 * 1024:  # still copying: nothing of what comes later is read yet
            progress(3 * 1024, total)

    with pytest.raises(durabledbm.error, match="while it was copied"):
        migrate(path, tmp_path / "new", progress=verify_again)
    assert not (tmp_path / "new").exists()


@needs_symlinks
def test_a_symbolic_link_is_followed(path: str, tmp_path: Path) -> None:
    write_sqlite(str(tmp_path / "real"), ENTRIES)
    os.symlink("real", path)
    migrate(path)
    assert os.path.islink(path)
    assert ours(path) == ours(str(tmp_path / "real")) == ENTRIES
    assert content_of(str(tmp_path / "real.bak"), "dbm.sqlite3") == ENTRIES


def test_values_of_many_megabytes_are_copied(path: str, tmp_path: Path) -> None:
    entries = {b"%d" % i: bytes([i]) * (3 * 2**20 + i) for i in range(8)}
    write_sqlite(path, entries)
    assert migrate(path, tmp_path / "new") == 8
    assert ours(str(tmp_path / "new")) == entries


def without_links(event: str, args: tuple[Any, ...]) -> None:
    if event == "os.link":
        raise OSError(1, "this file system has no hard links")


def migrate_without_links(path: str, target: str | None) -> None:
    sys.addaudithook(without_links)
    migrate(path, target)


@pytest.mark.parametrize("kind", ["dbm.dumb", "dbm.sqlite3"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_system_without_hard_links_will_do(path: str, tmp_path: Path, kind: str, in_place: bool) -> None:
    WRITERS[kind](path, ENTRIES)
    target = None if in_place else str(tmp_path / "new")
    assert run_apart(migrate_without_links, path, target) == 0
    assert ours(target or path) == ENTRIES
    assert content_of(path + ".bak" if in_place else path, kind) == ENTRIES
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".durabledbm-")]


# Temporary files


@only_posix("Windows limits paths, not names")
@pytest.mark.parametrize("name", ["n" * 255, "\u017c" * 127])
def test_a_name_as_long_as_can_be_is_long_enough(tmp_path: Path, name: str) -> None:
    write_dbm("dbm.dumb")(str(tmp_path / "old"), ENTRIES)
    target = str(tmp_path / name)
    assert migrate(tmp_path / "old", target) == len(ENTRIES)
    assert ours(target) == ENTRIES
    os.rename(target, tmp_path / "ours")
    put(target, "old.gdbm.gz")
    with pytest.raises(durabledbm.error, match="give a target") as info:
        migrate(target)  # there is no room for ".bak"
    assert info.value.errno == errno.ENAMETOOLONG
    assert content_of(target, "dbm.gnu") == OLD_ENTRIES
    os.unlink(target)
    assert export(tmp_path / "ours", target, "dbm.sqlite3") == len(ENTRIES)
    os.rename(target, tmp_path / "exported")  # SQLite has no room for its own files beside such a name
    assert content_of(str(tmp_path / "exported"), "dbm.sqlite3") == ENTRIES


@needs_symlinks
def test_links_that_somebody_planted_are_not_followed(path: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    write_dbm("dbm.dumb")(path, ENTRIES)
    for name in (f"new.migrating-{os.getpid()}", f"out.exporting-{os.getpid()}.dat", f"loaded.loading-{os.getpid()}"):
        os.symlink("victim", tmp_path / name)
    migrate(path, tmp_path / "new")
    export(tmp_path / "new", tmp_path / "out", "dbm.dumb")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "new").is_symlink()


@only_posix("Windows has no signals between processes")
@pytest.mark.parametrize("work", ["migrate('old', 'new', ", "export('ours', 'new', 'dbm.dumb', "])
def test_a_signal_leaves_nothing_behind(path: str, tmp_path: Path, work: str) -> None:
    write_dbm("dbm.dumb")(path, {b"%d" % i: b"v" for i in range(2000)})
    migrate(path, tmp_path / "ours")
    before = sorted(os.listdir(tmp_path))
    program = f"""
import os, signal, time
from durabledbm.export import export
from durabledbm.migration import migrate
def progress(done, total):
    assert len(os.listdir()) == {len(before) + 1}
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
{work}progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGTERM
    assert sorted(os.listdir(tmp_path)) == before


def test_two_at_once_do_not_take_each_others_files_for_leftovers(path: str, tmp_path: Path) -> None:
    write_dbm("dbm.dumb")(path, ENTRIES)

    def progress(done: int, total: int | None) -> None:
        if not os.path.exists(tmp_path / "other"):
            subprocess.run([sys.executable, "-c", PROGRAM, path, str(tmp_path / "other")], check=True)

    assert migrate(path, tmp_path / "new", progress=progress) == len(ENTRIES)
    assert ours(str(tmp_path / "new")) == ours(str(tmp_path / "other")) == ENTRIES
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@needs_root
@pytest.mark.parametrize("kind", ["dbm.dumb", "dbm.sqlite3"])
@pytest.mark.parametrize("in_place", [True, False])
def test_owner_and_group_are_those_of_the_old_database(path: str, tmp_path: Path, kind: str, in_place: bool) -> None:
    WRITERS[kind](path, ENTRIES)
    for entry in tmp_path.iterdir():
        os.chown(entry, 65534, 65533)
        entry.chmod(0o640)
    target = path if in_place else str(tmp_path / "new")
    migrate(path, None if in_place else target)
    export(target, tmp_path / "back", "dbm.sqlite3")
    for name in (target, tmp_path / "back"):
        status = os.stat(name)
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (65534, 65533, 0o640)


@needs_mode
def test_what_is_made_from_a_private_database_is_private_from_the_start(path: str, tmp_path: Path) -> None:
    write_sqlite(path, {b"%d" % i: b"v" for i in range(2000)})
    os.chmod(path, 0o400)
    modes = set()

    def progress(done: int, total: int | None) -> None:
        modes.update(entry.stat().st_mode & 0o077 for entry in tmp_path.iterdir() if entry.name.startswith("."))

    migrate(path, tmp_path / "new", progress=progress)
    export(tmp_path / "new", tmp_path / "out", "dbm.dumb", progress=progress)
    assert modes == {0}
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "out.dat", "out.dir")} == {0o400}


@needs_pipe_files
@pytest.mark.parametrize("name", ["pipe", "pipe.dat", "lmdb"])
def test_nobody_waits_for_the_other_end_of_a_pipe(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.dat")
    (tmp_path / "pipe.dir").touch()
    (tmp_path / "lmdb").mkdir()
    os.mkfifo(tmp_path / "lmdb" / "data.mdb")
    for target in (None, tmp_path / "new"):
        with pytest.raises(durabledbm.error):
            migrate(tmp_path / name, target)
    with pytest.raises(durabledbm.error):
        export(tmp_path / name, tmp_path / "new", "dbm.dumb")


# The command


def test_the_command_says_what_became_of_the_names(path: str, capsysbinary: Any) -> None:
    write_dbm("dbm.dumb")(path, {b"a": b"1", b"b": b"2"})
    assert main(["migrate", path + ".dat"]) == 0
    said = f"{path}: 2 entries, each compared; the old database is now {path}.bak\n"
    assert capsysbinary.readouterr() == (b"", said.encode())


def test_the_command_salvages_when_it_is_asked_to(path: str, capsysbinary: Any) -> None:
    Path(path + ".dir").write_text("'a', (0, 3)\n'b', (51")
    Path(path + ".dat").write_bytes(b"one")
    assert main(["migrate", path]) == 2
    out, err = capsysbinary.readouterr()
    assert (out, err.count(b"\n")) == (b"", 1)
    assert err.endswith(f"'durabledbm migrate --salvage {path}' copies what can be read\n".encode())
    assert main(["migrate", "--salvage", path]) == 0
    out, err = capsysbinary.readouterr()
    damage, done = err.decode().splitlines()
    assert out == b""
    assert damage == f"{path}.dir: line 2 of the index cannot be read; entries that can: 1"
    assert done.startswith(f"{path}: 1 entry, each compared, 1 damaged place left out; ")


@only_posix("no name has control characters there")
def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path: Path, capsysbinary: Any) -> None:
    path = str(tmp_path / "a\x1b[31m\n\x9bb")
    write_dbm("dbm.dumb")(path, {b"a": b"1"})
    assert main(["get", path, "a"]) == 2
    assert main(["migrate", path]) == 0
    assert main(["migrate", path]) == 2
    assert not {*b"".join(capsysbinary.readouterr()).decode()} & {"\x1b", "\x9b"}


def test_an_error_names_the_target_and_not_a_temporary_file(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dbm("dbm.dumb")(path, {b"a": b"1"})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", next(iter(temporary._living)))

    migrate(path, tmp_path / "ours")
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(FileDisk, "sync", full)
    for work in (migrate, lambda source, target: export(tmp_path / "ours", target, "dbm.dumb")):
        with pytest.raises(durabledbm.error) as info:
            work(path, tmp_path / "new")
        assert (info.value.errno, info.value.filename) == (errno.ENOSPC, str(tmp_path / "new"))


# Killed at any moment


def ours_or_none(path: str) -> dict[bytes, bytes] | None:
    """What our file holds, or None if there is no such file under this name."""
    return ours(path) if whichdb(path) == "durabledbm" else None


class Steps:
    """Kills the process before the n-th of its operations that change files in a directory."""

    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def __init__(self, directory: str, count: int) -> None:
        self.directory = directory
        self.left = count

    def trace(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.link", "os.remove", "os.rename", "os.chmod", "os.mkdir", "open"):
            if not str(args[0]).startswith(self.directory) or (event == "open" and not args[2] & self.WRITING):
                return
            if self.left == 0:
                os.kill(os.getpid(), KILL)
            self.left -= 1


def migrate_and_die(path: str, target: str | None, step: int) -> bool:
    """Run a migration in a process that is killed before its step `step`. True if it was completed."""
    status = run_apart(_migrate_and_die, path, target, step)
    assert status in (0, 15 if WINDOWS else -KILL)
    return status == 0


def _migrate_and_die(path: str, target: str | None, step: int) -> None:
    sys.addaudithook(Steps(os.path.dirname(path), step).trace)
    migrate(path, target)


def check_after_a_kill(path: str, kind: str, target: str | None, entries: dict[bytes, bytes]) -> None:
    """The source is whole, under one of its names, and the target is whole or absent."""
    found = ours_or_none(path if target is None else target)
    assert found is None or found == entries
    if locate(path) == (kind, path):
        assert content_of(path, kind) == entries
        assert target is not None or found is None
    else:
        assert found == entries
        assert content_of(path + ".bak", kind) == entries


@pytest.mark.parametrize("kind", ["dbm.dumb", "dbm.sqlite3"])
@pytest.mark.parametrize("in_place", [True, False])
def test_killed_before_any_of_its_steps_it_loses_nothing_and_can_be_repeated(
    tmp_path: Path, kind: str, in_place: bool
) -> None:
    step, completed = 0, False
    entries = {key: ENTRIES[key] for key in list(ENTRIES)[:40]}
    while not completed:
        directory = tmp_path / str(step)
        directory.mkdir()
        path = str(directory / "old")
        target = None if in_place else str(directory / "new")
        WRITERS[kind](path, entries)
        completed = migrate_and_die(path, target, step)
        check_after_a_kill(path, kind, target, entries)
        with contextlib.suppress(durabledbm.error):
            migrate(path, target)  # completes what was begun, or refuses because it was complete
        assert ours_or_none(target or path) == entries
        old = path + ".bak" if in_place else path
        assert content_of(old, kind) == entries
        leftover = [name for name in os.listdir(directory) if name.startswith(".durabledbm-")]
        assert leftover == []
        step += 1
    assert step > (5 if WINDOWS else 8)  # the package's own calls of Windows raise no audit events


PROGRAM = "import sys; from durabledbm.migration import migrate; migrate(sys.argv[1], *sys.argv[2:])"


def kill_after(seconds: float, path: str, target: str | None) -> bool:
    """Start a migration and kill it. True if it was completed before that."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, path, *([target] if target else [])])
    time.sleep(seconds)
    process.kill()
    return process.wait() == 0


def duration_of(path: str, target: str) -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", PROGRAM, path, target], check=True)
    os.unlink(target)
    return time.monotonic() - start


@pytest.mark.parametrize("in_place", [True, False])
def test_killed_at_random_a_migration_loses_nothing(tmp_path: Path, in_place: bool) -> None:
    entries = {b"%d" % i: b"value %d" % i for i in range(20_000)}
    numbers = random.Random(7)
    duration = 0.0
    for attempt in range(3):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        path = str(directory / "old")
        write_sqlite(path, entries)
        duration = duration or duration_of(path, str(directory / "timing"))
        target = None if in_place else str(directory / "new")
        kill_after(numbers.uniform(0, duration), path, target)
        check_after_a_kill(path, "dbm.sqlite3", target, entries)


# Back


@pytest.mark.parametrize("to", ["dbm.gnu", "dbm.sqlite3", "dbm.dumb"])
def test_export_writes_a_database_that_the_other_module_reads(path: str, tmp_path: Path, to: str) -> None:
    if to == "dbm.gnu":
        pytest.importorskip("dbm.gnu", reason="this Python has no dbm.gnu", exc_type=ImportError)
    with durabledbm.open(path, "c", 0o640) as db:
        db.update(ENTRIES)
    calls: list[tuple[int, int | None]] = []
    target = str(tmp_path / "new")
    assert export(path, target, to, progress=lambda done, total: calls.append((done, total))) == len(ENTRIES)
    assert calls[-1] == (2 * len(ENTRIES), 2 * len(ENTRIES))
    assert dbm.whichdb(target) == to or (to == "dbm.sqlite3" and sys.version_info < (3, 13))
    assert content_of(target, to) == ENTRIES
    if to != "dbm.sqlite3" or sys.version_info >= (3, 13):
        with importlib.import_module(to).open(target, "r") as db:
            assert {key: db[key] for key in db.keys()} == ENTRIES  # noqa: SIM118 - dbm.gnu's
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".durabledbm-")]
    assert migrate(target, tmp_path / "again") == len(ENTRIES)
    assert ours(str(tmp_path / "again")) == ENTRIES
    for suffix in FILES[to]:
        if os.path.exists(target + suffix):
            assert WINDOWS or os.stat(target + suffix).st_mode & 0o777 == 0o640


@needs_mode
@pytest.mark.parametrize("to", ["dbm.dumb", "dbm.sqlite3"])
def test_export_of_a_file_that_nobody_may_write(path: str, to: str) -> None:
    directory = tempfile.mkdtemp()  # where somebody who is not root gets to
    try:
        os.chmod(directory, 0o777)
        source = os.path.join(directory, "source")
        with durabledbm.open(source, "c") as db:
            db["a"] = "b"
        os.chmod(source, 0o444)
        export(source, os.path.join(directory, "first"), to)  # imports what nobody else may be able to read
        if os.getuid() == 0:
            os.seteuid(65534)
        try:
            assert export(source, os.path.join(directory, "target"), to) == 1
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
        made = [name for name in os.listdir(directory) if name.startswith("target")]
        assert made
        assert {stat.S_IMODE(os.stat(os.path.join(directory, name)).st_mode) for name in made} == {0o444}
    finally:
        shutil.rmtree(directory)


def test_export_refuses_what_it_can_not_do(path: str, tmp_path: Path) -> None:
    durabledbm.open(path, "c").close()
    with pytest.raises(ValueError, match=r"dbm\.ndbm"):
        export(path, tmp_path / "new", "dbm.ndbm")
    (tmp_path / "new.dat").write_bytes(b"precious")
    with pytest.raises(durabledbm.error) as info:
        export(path, tmp_path / "new", "dbm.dumb")
    assert info.value.errno == 17
    assert (tmp_path / "new.dat").read_bytes() == b"precious"
    with pytest.raises(durabledbm.error) as info:
        export(tmp_path / "missing", tmp_path / "new", "dbm.sqlite3")
    assert info.value.errno == 2
    assert not (tmp_path / "new").exists()


def test_an_interrupted_export_leaves_nothing_behind(path: str, tmp_path: Path) -> None:
    with durabledbm.open(path, "c") as db:
        db.update({b"%d" % i: b"v" for i in range(3000)})

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    for to in ("dbm.dumb", "dbm.sqlite3"):
        with pytest.raises(KeyboardInterrupt):
            export(path, tmp_path / "new", to, progress=interrupt)
        assert os.listdir(tmp_path) == ["old"]


# Sorting


@pytest.mark.parametrize("run_size", [0, 1000, 50_000, 2**30])
def test_entries_are_sorted_whatever_fits_in_memory(tmp_path: Path, run_size: int) -> None:
    numbers = random.Random(run_size)
    keys = [numbers.randbytes(numbers.randrange(20)) for _ in range(2000)]
    entries = list({key: numbers.randbytes(numbers.randrange(300)) for key in keys}.items())
    assert list(in_key_order(entries, str(tmp_path), run_size)) == sorted(entries)
    assert os.listdir(tmp_path) == []


# A million entries


@pytest.fixture
def million() -> Callable[[], Iterator[Entry]]:
    def entries() -> Iterator[Entry]:
        for i in range(1_000_000):
            yield b"%016x" % (i * 0x9E3779B97F4A7C15 % 2**64), b"%0100d" % i

    return entries


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of the memory")
@pytest.mark.parametrize("kind", ["dbm.gnu", "dbm.sqlite3"])
def test_a_million_entries_migrate_in_less_than_300_mb(
    kind: str, path: str, tmp_path: Path, million: Callable[[], Iterator[Entry]]
) -> None:
    if kind == "dbm.gnu":
        pytest.importorskip("dbm.gnu", reason="this Python has no dbm.gnu", exc_type=ImportError)
        with importlib.import_module("dbm.gnu").open(path, "nf") as db:
            for key, value in million():
                db[key] = value
    else:
        write_sqlite(path, dict(million()))
    # What a process took itself: wait4's figure counts what its parent had before exec, too.
    program = PROGRAM + "; print(open('/proc/self/status').read())"
    start = time.monotonic()
    command = [sys.executable, "-c", program, path, str(tmp_path / "new")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    peak = 1024 * int(result.stdout.split("VmHWM:")[1].split()[0])
    print(f"\n{kind}: {time.monotonic() - start:.1f} s, peak memory {peak / 1e6:.0f} MB")
    assert peak < 300e6
    with durabledbm.open(tmp_path / "new") as db:
        assert len(db) == 1_000_000
        assert all(theirs == mine for theirs, mine in zip(sorted(million()), db.items(), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dbm.gnu", "dbm.sqlite3", "dbm.dumb"])
def test_killed_50_times_at_random_a_migration_loses_nothing(kind: str, tmp_path: Path) -> None:
    if kind == "dbm.gnu":
        pytest.importorskip("dbm.gnu", reason="this Python has no dbm.gnu", exc_type=ImportError)
    numbers = random.Random(3)
    durations: dict[int, float] = {}
    completed = 0
    for attempt in range(50):
        count = 200_000 if attempt % 5 == 0 and kind != "dbm.dumb" else 2000
        entries = {b"%d" % i: b"value %d" % i for i in range(count)}
        directory = tmp_path / str(attempt)
        directory.mkdir()
        path = str(directory / "old")
        WRITERS[kind](path, entries)
        if count not in durations:
            durations[count] = duration_of(path, str(directory / "timing"))
        target = None if attempt % 2 else str(directory / "new")
        completed += kill_after(numbers.uniform(0, 1.1 * durations[count]), path, target)
        check_after_a_kill(path, kind, target, entries)
    print(f"\n{kind}: {50 - completed} migrations killed, {completed} were completed before")
    assert completed < 40


