"""What users may rely on, statement by statement: opening, errors, durability's arguments, transactions, snapshots."""

from __future__ import annotations

import dbm
import errno
import gc
import os
import pickle
import random
import stat
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mapping_spec import CLOSING, KEYED, READ_ONLY, READING, WRITING
from simdisk import Operation, SimVolume, disk_error
from systems import needs_pipe_files, only_posix

import durabledbm
from durabledbm import BusyError, ClosedError, CorruptionError, ReadOnlyError, error
from durabledbm.database import open_on

DURABILITIES = ["full", "process", "interval", "manual"]
FILE = "/db"


@pytest.fixture
def volume() -> SimVolume:
    return SimVolume()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A function that makes databases with given entries, closed in the end."""
    made: list[durabledbm.Database] = []

    def make_one(entries: dict[bytes, bytes], **options: Any) -> durabledbm.Database:
        made.append(durabledbm.open(tmp_path / f"{len(made)}.db", "c", **options))
        made[-1].update(entries)
        return made[-1]

    yield make_one
    for database in made:
        database.close()


# -- the mapping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize(("name", "spec"), READING + WRITING + KEYED + CLOSING)
def test_a_database_is_a_mapping(make: Any, name: str, spec: Any, durability: str) -> None:
    spec(lambda entries: make(entries, durability=durability))


@pytest.mark.parametrize(("name", "spec"), READING + WRITING)
def test_a_database_of_large_pages_and_without_a_cache_is_a_mapping(make: Any, name: str, spec: Any) -> None:
    spec(lambda entries: make(entries, page_size=65536, cache_size=0))


@pytest.mark.parametrize(("name", "spec"), READ_ONLY)
def test_a_read_only_database_refuses_writes(make: Any, name: str, spec: Any) -> None:
    opened = []

    def make_read_only(entries: dict[bytes, bytes]) -> durabledbm.Database:
        writer = make(entries)
        opened.append(durabledbm.open(writer.path, "r"))
        return opened[-1]

    spec(make_read_only)
    for database in opened:
        database.close()


@pytest.mark.parametrize(("name", "spec"), READING)
def test_a_read_only_database_is_a_mapping(make: Any, name: str, spec: Any) -> None:
    opened = []

    def make_read_only(entries: dict[bytes, bytes]) -> durabledbm.Database:
        opened.append(durabledbm.open(make(entries).path))
        return opened[-1]

    spec(make_read_only)
    for database in opened:
        database.close()


@pytest.mark.parametrize(("name", "spec"), READING + WRITING)
def test_a_transaction_is_a_mapping(make: Any, name: str, spec: Any) -> None:
    begun = []

    def make_transaction(entries: dict[bytes, bytes]) -> durabledbm.Transaction:
        transaction = make({}).transaction()
        begun.append(transaction)
        transaction.__enter__().update(entries)
        return transaction  # type: ignore[no-any-return]

    spec(make_transaction)
    for transaction in begun:
        transaction.__exit__(None, None, None)


@pytest.mark.parametrize("durability", ["full", "manual"])
@pytest.mark.parametrize(("name", "spec"), READING)
def test_a_snapshot_is_a_mapping(make: Any, name: str, spec: Any, durability: str) -> None:
    spec(lambda entries: make(entries, durability=durability).snapshot())


# -- opening: the file's name --------------------------------------------------------------------------------------


class PathLike:
    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


@pytest.mark.parametrize(
    "convert",
    [str, os.fsencode, Path, lambda path: PathLike(str(path)), lambda path: PathLike(os.fsencode(path))],
    ids=["str", "bytes", "Path", "PathLike of str", "PathLike of bytes"],
)
def test_a_file_name_may_be_of_any_type_that_names_files(tmp_path: Path, convert: Any) -> None:
    path = tmp_path / "file.db"
    with durabledbm.open(convert(path), "c") as db:
        db["key"] = "value"
        assert db.path == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.db"]
    with durabledbm.open(convert(path)) as db:
        assert db["key"] == b"value"


@pytest.mark.parametrize("name", ["plain", "with.db", "sp ace", "ünïcode-\N{SNOWMAN}", "a" * 200, ".hidden", "-r"])
def test_a_file_name_is_used_as_it_is(tmp_path: Path, name: str) -> None:
    with durabledbm.open(tmp_path / name, "c") as db:
        assert [entry.name for entry in tmp_path.iterdir()] == [name]
        db.update({b"%d" % n: b"x" * 100 for n in range(500)})
        assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@only_posix("names are text there")
def test_a_file_name_need_not_be_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    with durabledbm.open(path, "c") as db:
        db["key"] = "value"
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff\xfe"]


NO_FILE = ["new/", "new/.", "f/", "f/.", "f/..", "missing/../f", "f/../f", "folder/../new/"]


@only_posix("the system strips the end of such a name")
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", NO_FILE)
def test_what_the_system_opens_no_file_under_is_the_name_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, absolute: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    durabledbm.open("f", "c").close()
    for flag in "rwcn":
        with pytest.raises(error) as caught:
            durabledbm.open(f"{tmp_path}/{name}" if absolute else name, flag)
        assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    assert sorted(os.listdir()) == ["f", "folder"]


def test_a_relative_name_means_the_same_file_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with durabledbm.open("db", "c") as db:
        monkeypatch.chdir(tmp_path / "b")
        db["key"] = "value"
        db.reorganize()
        assert db["key"] == b"value"
    assert [path.name for path in (tmp_path / "b").iterdir()] == []
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["db"]


@pytest.mark.parametrize("name", [5, None, 1.5, ["name"], object()])
def test_what_names_no_file_is_a_type_error(name: Any) -> None:
    with pytest.raises(TypeError):
        durabledbm.open(name, "c")


@pytest.mark.parametrize("name", ["nul\0byte", b"nul\0byte"])
def test_a_nul_in_the_name_is_a_value_error(name: Any) -> None:
    with pytest.raises(ValueError, match="null"):
        durabledbm.open(name, "c")


# -- opening: flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["r", "w", "ru", "wf"])
def test_a_missing_file_is_enoent_unless_it_is_to_be_created(tmp_path: Path, flag: str) -> None:
    path = tmp_path / "missing"
    with pytest.raises(error) as caught:
        durabledbm.open(path, flag)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))
    assert list(tmp_path.iterdir()) == []


def test_the_flag_is_r_if_none_is_given(db_path: str) -> None:
    with pytest.raises(error):
        durabledbm.open(db_path)
    durabledbm.open(db_path, "c").close()
    with durabledbm.open(db_path) as db:
        assert db.readonly


def test_flags_tell_what_becomes_of_what_is_live(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        assert not db.readonly
        db["key"] = "value"
    for flag, kept in (("r", True), ("w", True), ("c", True), ("n", False)):
        with durabledbm.open(db_path, flag) as db:
            assert ("key" in db) == kept


@pytest.mark.parametrize("suffixes", ["", "u", "f", "s", "fs", "sf", "fsu", "uf", "su"])
@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
def test_gdbms_suffixes_are_accepted(db_path: str, flag: str, suffixes: str) -> None:
    durabledbm.open(db_path, "c").close()
    with durabledbm.open(db_path, flag + suffixes) as db:
        if flag != "r":
            db["key"] = "value"


@pytest.mark.parametrize(
    ("flag", "deferred"), [("c", False), ("cu", False), ("cf", True), ("cs", False), ("cfs", False), ("csf", True)]
)
def test_suffix_f_is_manual_and_s_is_full(db_path: str, flag: str, deferred: bool) -> None:
    for durability in DURABILITIES:
        with durabledbm.open(db_path, flag, durability=durability) as db, durabledbm.open(db_path) as reader:
            db[durability] = "value"
            expected = deferred or (flag in ("c", "cu") and durability in ("interval", "manual"))
            assert (durability not in reader) == expected


@pytest.mark.parametrize("flag", ["", "x", "rw", "cc", "C", "f", "sr", "r+", "n ", None, 5, b"c", ["c"]])
def test_anything_else_is_a_value_error(tmp_path: Path, flag: Any) -> None:
    with pytest.raises(ValueError, match="Flag must be one of"):
        durabledbm.open(tmp_path / "db", flag)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("durability", "fast"), ("durability", ""), ("durability", None), ("durability", 1),
        ("interval", 0), ("interval", -1), ("interval", float("nan")),
        ("timeout", -1), ("timeout", float("nan")),
        ("page_size", 0), ("page_size", 1), ("page_size", 2048), ("page_size", 5000), ("page_size", 131072),
        ("page_size", -4096), ("cache_size", -1),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_is_a_value_error(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        durabledbm.open(tmp_path / "db", "c", **{option: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("interval", "1"),
        ("timeout", "1"),
        ("page_size", "4096"),
        ("page_size", 4096.0),
        ("cache_size", "1"),
        ("mode", "rw"),
    ],
)
def test_an_option_of_a_wrong_type_is_a_type_error(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(TypeError):
        durabledbm.open(tmp_path / "db", "c", **{option: value})
    assert list(tmp_path.iterdir()) == []


def test_options_are_given_by_name_and_only_those_that_exist(db_path: str) -> None:
    with pytest.raises(TypeError):
        durabledbm.open(db_path, "c", 0o666, "full")  # type: ignore[misc]
    with pytest.raises(TypeError):
        durabledbm.open(db_path, "c", sync=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("page_size", [4096, 8192, 16384, 32768, 65536])
def test_the_page_size_is_chosen_when_the_file_is_created(db_path: str, page_size: int) -> None:
    entries = {b"%d" % n: b"x" * n for n in range(800)}
    with durabledbm.open(db_path, "c", page_size=page_size) as db:
        db.update(entries)
        assert db.stats().page_size == page_size
    with durabledbm.open(db_path, "w", page_size=4096) as db:
        assert db.stats().page_size == page_size
        assert dict(db.items()) == entries


def test_reading_writes_nothing(volume: SimVolume) -> None:
    with open_on(volume, FILE, "c") as db:
        db.update({b"%d" % n: b"x" * 100 for n in range(500)})
        db["last"] = "change"
    before = len(volume.log)
    with open_on(volume, FILE, "r") as db:
        assert len(db) == 501
        assert dict(db.items())
        assert db.snapshot()
        assert db.check() == []
        assert db.stats()
        db.sync()
    assert len(volume.log) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everything")
def test_a_file_and_a_directory_that_cannot_be_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with durabledbm.open(path, "c") as db:
        db["key"] = "value"
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        with durabledbm.open(path) as db:
            assert db["key"] == b"value"
        for flag in ("w", "c", "n"):
            with pytest.raises(error) as caught:
                durabledbm.open(path, flag)
            assert caught.value.errno == errno.EACCES
    finally:
        tmp_path.chmod(0o755)


def test_a_disk_that_may_not_be_written_is_opened_for_reading_only(volume: SimVolume) -> None:
    with open_on(volume, FILE, "c") as db:
        db["key"] = "value"
    volume.fail_at(0, disk_error(errno.EROFS, "none", times=None), kinds=("write", "create", "sync", "resize"))
    with open_on(volume, FILE, "r") as db:
        assert db["key"] == b"value"
        assert db.check() == []


# -- opening: what is not ours -------------------------------------------------------------------------------------

FOREIGN = {
    "text": b"key=value\n" * 1000,
    "one byte": b"\0",
    "15 bytes": b"\x8bdurabledbm\r\n\x1a\n",
    "zeros": bytes(10_000),
    "sqlite": b"SQLite format 3\0" + bytes(5000),
    "gdbm": b"\xcf\x9a\x57\x13" + bytes(5000),
    "noise": random.Random(1).randbytes(20_000),
    "copied as text": b"\x8bdurabledbm\n\x1a\n\0" + bytes(8176),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_a_file_that_is_not_ours_is_an_error_and_left_untouched(tmp_path: Path, name: str, flag: str) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(FOREIGN[name])
    os.utime(path, (1, 1))
    with pytest.raises(error, match="not a durabledbm database"):
        durabledbm.open(path, flag)
    assert path.read_bytes() == FOREIGN[name]
    assert path.stat().st_mtime == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["foreign"]


@pytest.mark.parametrize("name", FOREIGN)
def test_flag_n_makes_an_empty_database_of_whatever_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(FOREIGN[name])
    with durabledbm.open(path, "n") as db:
        assert len(db) == 0
        db["key"] = "value"
    with durabledbm.open(path) as db:
        assert dict(db.items()) == {b"key": b"value"}


@pytest.mark.leaves_damage
@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_a_file_of_ours_without_a_whole_meta_page_is_damage(tmp_path: Path, flag: str) -> None:
    path = tmp_path / "db"
    durabledbm.open(path, "c").close()
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError) as caught:
        durabledbm.open(path, flag)
    assert caught.value.path == str(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
@pytest.mark.parametrize(
    "kind",
    [
        "directory",
        "device",
        pytest.param("pipe", marks=needs_pipe_files),
        pytest.param("socket", marks=only_posix("Windows gives Python no sockets with names in a directory")),
    ],
)
def test_what_is_no_regular_file_is_an_error_at_once(tmp_path: Path, flag: str, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(os.devnull)
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    before = path.lstat().st_mode
    outcome: list[BaseException] = []

    def attempt() -> None:
        try:
            durabledbm.open(path, flag).close()
        except BaseException as exc:
            outcome.append(exc)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    if thread.is_alive():  # let it go on, or it is there for ever
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        thread.join()
        pytest.fail("it waits for somebody at the other end of the pipe")
    assert [type(exc) for exc in outcome] == [error]
    assert path.lstat().st_mode == before


SIZES = [1, 100, 4095, 4096, 5000, 8191, 8192, 8193, 12288, 20000, 40960, 100_000]


@pytest.mark.leaves_damage
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flag", ["r", "w"])
def test_a_file_cut_short_is_an_error_or_has_the_right_content(tmp_path: Path, size: int, flag: str) -> None:
    path = tmp_path / "db"
    entries = {b"%04d" % n: b"x" * 200 for n in range(600)}
    with durabledbm.open(path, "c") as db:
        db.update(entries)
        db["last"] = "change"
    content = path.read_bytes()
    assert len(content) > max(SIZES)
    path.write_bytes(content[:size])
    entries[b"last"] = b"change"
    try:
        db = durabledbm.open(path, flag)
    except error:
        assert path.read_bytes() == content[:size]
        return
    with db:
        for key, value in entries.items():
            try:
                assert db[key] == value
            except CorruptionError:
                continue
        with pytest.raises(CorruptionError):
            dict(db.items())
        assert db.check() != []


def test_a_file_that_was_cut_short_while_open_is_an_error(volume: SimVolume) -> None:
    with open_on(volume, FILE, "c", cache_size=0) as db:
        db.update({b"%04d" % n: b"x" * 200 for n in range(600)})
        whole = volume.content(FILE)
        volume.put(FILE, whole[:10_000])
        with pytest.raises(CorruptionError):
            dict(db.items())
        volume.put(FILE, whole)
        assert len(dict(db.items())) == 600


def test_a_file_with_something_behind_its_end_is_read(db_path: str) -> None:
    """As after a commit that never came to its end."""
    entries = {b"%04d" % n: b"x" * 200 for n in range(600)}
    with durabledbm.open(db_path, "c") as db:
        db.update(entries)
    with open(db_path, "ab") as file:
        file.write(b"left over" * 5000)
    with durabledbm.open(db_path, "w") as db:
        assert dict(db.items()) == entries
        assert db.check() == []
        db.update({b"more": b"y" * 50_000})
        assert db.check() == []


def test_a_copy_is_a_database_of_its_own(tmp_path: Path) -> None:
    with durabledbm.open(tmp_path / "a", "c") as first:
        first["key"] = "value"
        (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes())
        with durabledbm.open(tmp_path / "b", "w", timeout=0) as second, first.transaction():
            first["key"] = "first"
            second["key"] = "second"
        assert first["key"] == b"first"


# -- several handles -----------------------------------------------------------------------------------------------


def test_opening_never_fails_because_others_have_the_file_open(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as first, first.transaction():
        first["key"] = "not committed yet"
        for flag in ("r", "w", "c"):
            with durabledbm.open(db_path, flag, timeout=0) as other:
                assert "key" not in other


def test_a_write_is_seen_by_every_other_handle_at_once(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as first, durabledbm.open(db_path, "w") as second:
        for n in range(50):
            first["key"] = b"%d" % n
            assert second["key"] == b"%d" % n
            second["key"] = b"%d again" % n
            assert first["key"] == b"%d again" % n
            assert first.pop("key") == b"%d again" % n
            assert "key" not in second
            assert len(second) == 0


@pytest.mark.parametrize("durability", ["interval", "manual"])
def test_only_writers_wait_and_at_most_timeout_seconds(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c", durability=durability, interval=3600) as first:
        first["key"] = "value"
        if durability == "interval":
            return  # it hands over: tests/engine/test_pipeline.py
        with durabledbm.open(db_path, "w", timeout=0.01) as second:
            assert len(second) == 0
            with pytest.raises(BusyError) as caught:
                second["key"] = "mine"
            assert str(db_path) in str(caught.value)
            with pytest.raises(BusyError), second.transaction():
                pytest.fail("the transaction began")
        first.sync()
        with durabledbm.open(db_path, "w", timeout=0) as second:
            second["key"] = "mine"
        assert first["key"] == b"mine"


# -- errors --------------------------------------------------------------------------------------------------------


def test_all_errors_are_errors_of_dbm() -> None:
    """`except dbm.error` catches all of ours."""
    for kind in (BusyError, CorruptionError, ReadOnlyError, ClosedError):
        assert issubclass(kind, error)
    assert issubclass(error, OSError)
    with pytest.raises(dbm.error):  # type: ignore[arg-type]
        raise BusyError("busy")
    assert durabledbm.error is error


def test_an_error_of_damage_names_file_and_page() -> None:
    caught = CorruptionError("what", path="/file", page_id=7)
    assert (caught.path, caught.page_id) == ("/file", 7)
    assert str(caught) == "/file: what (page 7)"
    twin = pickle.loads(pickle.dumps(caught))
    assert (type(twin), str(twin), twin.path, twin.page_id) == (CorruptionError, str(caught), "/file", 7)
    assert str(CorruptionError("what")) == "what"


def test_an_error_of_the_system_is_wrapped_with_its_number_and_the_file() -> None:
    wrapped = error.wrap(OSError(errno.ENOSPC, "no space"), "/file")
    assert type(wrapped) is error
    assert (wrapped.errno, wrapped.filename) == (errno.ENOSPC, "/file")
    with pytest.raises(error) as caught:
        raise error.wrap(wrapped) from wrapped
    assert caught.value is wrapped
    assert wrapped.__cause__ is None
    assert str(error.wrap(OSError("without a number"))) == "without a number"


def test_a_closed_error_says_what_dbm_says() -> None:
    assert str(ClosedError()) == "DBM object has already been closed"


@pytest.mark.parametrize("call", [lambda db: db["x"], lambda db: db.pop("x"), lambda db: db.__delitem__("x")])
def test_a_missing_key_is_a_key_error_with_the_key_as_passed(db: durabledbm.Database, call: Any) -> None:
    with pytest.raises(KeyError) as caught:
        call(db)
    assert caught.value.args == ("x",)


def page_of_damage(db: durabledbm.Database, key: bytes, value: bytes) -> int | None:
    """Which page is to blame if the value cannot be read; None if it can."""
    try:
        assert db[key] == value
    except CorruptionError as exc:
        return exc.page_id
    return None


@pytest.mark.leaves_damage
def test_reading_a_damaged_page_names_it_and_leaves_the_rest_readable(tmp_path: Path) -> None:
    path = tmp_path / "db"
    entries = {b"%05d" % n: b"x" * 100 for n in range(2000)}
    with durabledbm.open(path, "c") as db:
        db.update(entries)
    content = bytearray(path.read_bytes())
    at = content.index(b"00500" + b"x" * 100)
    content[at + 7] = ord("y")
    path.write_bytes(content)
    with durabledbm.open(path, "w") as db:
        with pytest.raises(CorruptionError) as caught:
            db["00500"]
        assert (caught.value.path, caught.value.page_id) == (str(path), at // 4096)
        blamed = [page_of_damage(db, key, value) for key, value in entries.items()]
        assert set(blamed) == {None, at // 4096}
        assert blamed.count(None) > 1900
        problems = db.check()
        assert [problem.page_id for problem in problems if problem.invariant == 3] == [at // 4096]
        assert str(at // 4096) in str(problems[0])
        db["01900"] = "elsewhere it can be written"
        with pytest.raises(CorruptionError):
            db.update({b"%05d" % n: b"" for n in range(0, 2000, 10)})
        assert db["01900"] == b"elsewhere it can be written"


@pytest.mark.parametrize("kind", ["read", "open"])
def test_errors_of_the_disk_while_reading_are_ours(volume: SimVolume, kind: str) -> None:
    with open_on(volume, FILE, "c") as db:
        db.update({b"%04d" % n: b"x" * 200 for n in range(600)})
    volume.fail_at(0, disk_error(errno.EIO), kinds=(kind,))
    with pytest.raises(error) as caught:
        open_on(volume, FILE, "r")
    assert caught.value.errno == errno.EIO
    with open_on(volume, FILE, "r", cache_size=0) as db:
        for use in (
            lambda: db["0001"], lambda: db.get("0001"), lambda: "0001" in db, lambda: len(db), lambda: list(db),
            lambda: list(db.items()), db.keys, db.first, db.snapshot, db.check, db.stats, lambda: db.nextkey("0001"),
        ):  # fmt: skip
            volume.fail_at(0, disk_error(errno.EIO), kinds=("read",))
            with pytest.raises(error) as caught:
                use()
            assert caught.value.errno == errno.EIO
            assert db["0001"] == b"x" * 200


# -- size, order, cost ---------------------------------------------------------------------------------------------


def test_keys_of_16_mib_are_kept_in_order(db_path: str) -> None:
    size = 16 * 2**20
    entries = {b"k" * size + b"%d" % n: b"%d" % n for n in range(2)} | {b"k": b"short"}
    with durabledbm.open(db_path, "c") as db:
        for key, value in entries.items():
            db[key] = value
    with durabledbm.open(db_path, "w") as db:
        assert db.keys() == sorted(entries)
        for key, value in entries.items():
            assert db[key] == value
        assert b"k" * size not in db
        assert db.nextkey(b"k" * size) == b"k" * size + b"0"
        for key in entries:
            del db[key]
        assert len(db) == 0


def test_values_of_8_mib(db_path: str) -> None:
    draw = random.Random(8)
    values = [draw.randbytes(8 * 2**20 + n) for n in (-1, 0, 1)]
    with durabledbm.open(db_path, "c", cache_size=0) as db:
        for n, value in enumerate(values):
            db[str(n)] = value
        db["0"] = values[2]
    with durabledbm.open(db_path) as db:
        assert [db["0"], db["1"], db["2"]] == [values[2], values[1], values[2]]
        assert [value for _, value in db.items()] == [values[2], values[1], values[2]]


@pytest.mark.long
def test_a_value_of_1_gib(db_path: str) -> None:
    value = random.Random(1).randbytes(2**20) * 1024
    with durabledbm.open(db_path, "c") as db:
        db["key"] = value
        db["small"] = "beside it"
        assert db.check() == []
    with durabledbm.open(db_path, "w") as db:
        assert db["key"] == value
        del db["key"]
        assert dict(db.items()) == {b"small": b"beside it"}


@pytest.mark.parametrize("durability", DURABILITIES)
def test_keys_are_in_the_order_of_bytes(db_path: str, durability: str) -> None:
    draw = random.Random(4)
    keys = [draw.randbytes(draw.randrange(5)) for _ in range(2000)]
    with durabledbm.open(db_path, "c", durability=durability) as db:
        db.update(dict.fromkeys(keys[200:], b""))
        for key in keys[:200]:
            db[key] = key
        assert list(db) == sorted(set(keys))
        assert list(reversed(db)) == sorted(set(keys), reverse=True)


def test_len_and_bool_read_no_pages(volume: SimVolume) -> None:
    with open_on(volume, FILE, "c") as db:
        db.update({b"%05d" % n: b"x" * 100 for n in range(5000)})
    with open_on(volume, FILE, "r", cache_size=0) as db:
        before = volume.reads
        for _ in range(10):
            assert len(db) == 5000
            assert bool(db)
        assert volume.reads <= before + 20


def test_clearing_costs_the_same_however_much_there_is(volume: SimVolume) -> None:
    written = []
    for count in (500, 20_000):
        with open_on(volume, FILE, "n") as db:
            db.update({b"%05d" % n: b"x" * 100 for n in range(count)})
            before = len(volume.log)
            db.clear()
            written.append(sum(len(operation.data) for operation in volume.log[before:]))
            assert len(db) == 0
            assert list(db) == []
            assert db.check() == []
    assert written[1] < written[0] + 4 * 4096


def test_update_is_one_commit_however_large(db: durabledbm.Database, db_path: str) -> None:
    with durabledbm.open(db_path) as reader:
        before = db.stats().txid
        seen = []

        def entries() -> Iterator[tuple[bytes, bytes]]:
            for n in range(3000):
                seen.append(len(reader))
                yield b"%05d" % n, b"x" * 100

        db.update(entries())
        assert set(seen) == {0}
        assert len(reader) == 3000
        assert db.stats().commits >= 1
        assert db.stats().txid == before + 1


def churned(db: durabledbm.Database, count: int, step: int, rounds: int) -> int:
    """Overwrite `count` values of 100 B to 2 KB and delete half of them, again and again; bytes that are left."""
    draw = random.Random(6)
    for _ in range(rounds):
        order = list(range(count))
        draw.shuffle(order)
        for start in range(0, count, step):
            db.update({b"%06d" % n: draw.randbytes(draw.randrange(100, 2000)) for n in order[start : start + step]})
        for start in range(0, count // 2, step):
            with db.transaction():
                for n in order[start : start + step]:
                    del db[b"%06d" % n]
    return sum(len(key) + len(value) for key, value in db.items())


def test_space_is_used_again_and_given_back(volume: SimVolume) -> None:
    """However often it is overwritten, a file does not grow without bound. (The exact bound: the long test below.)"""
    with open_on(volume, FILE, "c") as db:
        live = churned(db, 3000, 500, rounds=3)
        assert len(volume.content(FILE)) <= 2.2 * live
        db.reorganize()
        assert len(volume.content(FILE)) <= 1.15 * live
        assert db.check() == []
        assert db.stats().file_bytes == len(volume.content(FILE))


def test_reorganize_gives_back_what_the_newest_changes_deleted(volume: SimVolume) -> None:
    """Also if these are in the meta page, and the tree does not know of them yet."""
    with open_on(volume, FILE, "c") as db:
        db.update({f"{n}": bytes(1 << 20) for n in range(8)})
        for n in range(7):
            del db[f"{n}"]
        db["7"] = "small"
        db.reorganize()
        assert len(volume.content(FILE)) < 100_000
        assert dict(db) == {b"7": b"small"}


@pytest.mark.long
def test_space_is_used_again_and_given_back_at_full_size(db_path: str) -> None:
    """The same with 100,000 values and 10 rounds: at most 1.6 times the live data, and 1.1 times after reorganize()."""
    with durabledbm.open(db_path, "c") as db:
        live = churned(db, 100_000, 1000, rounds=10)
        assert os.path.getsize(db_path) <= 1.6 * live
        db.reorganize()
        assert os.path.getsize(db_path) <= 1.1 * live


def test_a_file_that_was_emptied_is_small_again(volume: SimVolume) -> None:
    with open_on(volume, FILE, "c") as db:
        db.update({b"%05d" % n: b"x" * 1000 for n in range(3000)})
        assert len(volume.content(FILE)) > 3_000_000
        for key in db:
            del db[key]
    assert len(volume.content(FILE)) < 600_000


# -- transactions --------------------------------------------------------------------------------------------------


class Undo(Exception):
    pass


def failing(db: durabledbm.Database, change: Callable[[], object], undo: Undo) -> None:
    """A transaction that makes a change, and fails."""
    with db.transaction():
        change()
        raise undo


def test_nothing_can_be_written_in_a_block_inside_one_that_was_rolled_back(db: durabledbm.Database) -> None:
    db["a"] = "1"
    with db.transaction() as outer:
        db["a"] = "2"
        outer.rollback()
        with db.transaction() as inner:
            assert db["a"] == inner["a"] == b"1"
            with pytest.raises(error, match="was rolled back"):
                db["lost"] = "1"
            inner.rollback()
        with pytest.raises(error, match="was rolled back"), db.transaction():
            db["lost"] = "1"
        assert "lost" not in db
    assert dict(db) == {b"a": b"1"}


def test_a_transaction_begun_without_with_ends_when_it_is_dropped(db_path: str) -> None:
    db = durabledbm.open(db_path, "c", timeout=0)
    db["a"] = "1"
    transaction = db.transaction()
    transaction.__enter__()
    db["a"] = "2"
    iterator = iter(transaction)
    del transaction
    with pytest.raises(ClosedError):
        next(iterator)
    assert db["a"] == b"1"
    with durabledbm.open(db_path, "w", timeout=0) as other:
        other["a"] = "3"
    db.transaction().__enter__()
    db["b"] = "4"
    assert dict(db) == {b"a": b"3", b"b": b"4"}
    handle = weakref.ref(db)
    del db
    assert handle() is None


def test_a_transaction_of_a_thread_that_has_ended_does_not_keep_the_lock(db_path: str) -> None:
    with durabledbm.open(db_path, "c", timeout=0) as db:
        thread = threading.Thread(target=lambda: db.transaction().__enter__())
        thread.start()
        thread.join()
        db["a"] = "1"
    with durabledbm.open(db_path) as db:
        assert dict(db) == {b"a": b"1"}


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_transaction_commits_all_or_nothing(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c", durability=durability) as db:
        db["kept"] = "1"
        with db.transaction():
            db["a"] = "1"
            del db["kept"]
        assert dict(db.items()) == {b"a": b"1"}
        undo = Undo()
        with pytest.raises(Undo) as caught:
            failing(db, lambda: db.update({"a": "2", "b": "2"}), undo)
        assert caught.value is undo
        assert dict(db.items()) == {b"a": b"1"}


def test_the_same_threads_use_of_the_handle_is_part_of_the_transaction(db: durabledbm.Database) -> None:
    with db.transaction() as tx:
        db["a"] = "1"
        tx["b"] = "2"
        assert dict(db.items()) == dict(tx.items()) == {b"a": b"1", b"b": b"2"}
        assert (len(db), len(tx)) == (2, 2)
        assert db.pop("a") == b"1"
        assert "a" not in tx
        db.update({"c": "3"})
        assert tx.setdefault("c", "4") == b"3"
        assert db.popitem() == (b"c", b"3")
        db.clear()
        assert not tx
        tx["last"] = "one"
    assert dict(db.items()) == {b"last": b"one"}


def test_other_threads_read_the_last_commit_meanwhile(db: durabledbm.Database) -> None:
    db["key"] = "old"
    seen: list[Any] = []
    with db.transaction():
        db["key"] = "new"
        thread = threading.Thread(target=lambda: seen.extend([db["key"], len(db), dict(db.items())]))
        thread.start()
        thread.join()
    assert seen == [b"old", 1, {b"key": b"old"}]
    assert db["key"] == b"new"


def test_a_nested_transaction_is_a_savepoint(db: durabledbm.Database) -> None:
    with db.transaction():
        db["a"] = "1"
        with db.transaction():
            db["b"] = "2"
            with pytest.raises(Undo):
                failing(db, lambda: (db.pop("a"), db.update(c="3")), Undo())
            assert dict(db.items()) == {b"a": b"1", b"b": b"2"}

        def released_then_undone() -> None:
            with db.transaction():
                db["d"] = "4"
            assert len(db) == 3

        with pytest.raises(Undo):
            failing(db, released_then_undone, Undo())
        assert dict(db.items()) == {b"a": b"1", b"b": b"2"}
    assert dict(db.items()) == {b"a": b"1", b"b": b"2"}


def test_an_outer_failure_undoes_what_inner_blocks_did(db: durabledbm.Database) -> None:
    def fail_late() -> None:
        with db.transaction():
            with db.transaction():
                db["a"] = "1"
            assert len(db) == 1
            raise Undo

    with pytest.raises(Undo):
        fail_late()
    assert len(db) == 0


def test_rolling_back_leaves_a_block_that_reads(db: durabledbm.Database) -> None:
    db["key"] = "old"
    with db.transaction() as tx:
        tx["key"] = "new"
        tx.rollback()
        assert tx["key"] == db["key"] == b"old"
        assert dict(tx.items()) == {b"key": b"old"}
        for write in (
            lambda: tx.__setitem__("a", "1"), lambda: db.__setitem__("a", "1"), lambda: db.pop("key"),
            lambda: tx.update({"a": "1"}), tx.clear, tx.popitem, lambda: tx.__delitem__("key"),
        ):  # fmt: skip
            with pytest.raises(error, match="rolled back"):
                write()
        tx.rollback()
    assert dict(db.items()) == {b"key": b"old"}
    db["key"] = "newer"


def test_rolling_back_an_inner_block_leaves_the_outer_one(db: durabledbm.Database) -> None:
    with db.transaction() as outer:
        outer["a"] = "1"
        with db.transaction() as inner:
            inner["b"] = "2"
            with pytest.raises(error, match="nested"):
                outer.rollback()
            inner.rollback()
            assert dict(inner.items()) == {b"a": b"1"}
        outer["c"] = "3"
    assert dict(db.items()) == {b"a": b"1", b"c": b"3"}


def test_a_transaction_is_used_once_and_lives_in_its_block(db: durabledbm.Database) -> None:
    tx = db.transaction()
    for use in (
        lambda: tx["key"],
        lambda: tx.__setitem__("key", "value"),
        lambda: len(tx),
        tx.rollback,
        lambda: list(tx),
    ):
        with pytest.raises(ClosedError):
            use()
    with tx:
        tx["key"] = "value"
        with pytest.raises(error, match="used once"):
            tx.__enter__()
    for use in (
        lambda: tx["key"],
        lambda: tx.__setitem__("key", "value"),
        lambda: len(tx),
        tx.rollback,
        lambda: list(tx),
    ):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(error, match="used once"), tx:
        pytest.fail("it began again")
    assert "ended" in repr(tx)


def test_an_iterator_of_a_transaction_ends_with_it(db: durabledbm.Database) -> None:
    db.update({b"%04d" % n: b"x" * 100 for n in range(500)})
    with db.transaction() as tx:
        tx["0250x"] = "new"
        iterators = [iter(tx), iter(tx.items()), tx.range(reverse=True), iter(tx)]
        for iterator in iterators[:3]:
            next(iterator)
        assert len(list(iterators[0])) == 500
    for iterator in iterators[1:]:
        with pytest.raises(ClosedError):
            next(iterator)


def test_a_transaction_that_changes_nothing_is_no_commit(db: durabledbm.Database) -> None:
    before = db.stats().txid
    with db.transaction():
        pass
    with db.transaction() as tx:
        assert len(tx) == 0
    assert db.stats().txid == before


def test_a_read_only_handle_has_no_transactions(db: durabledbm.Database, db_path: str) -> None:
    with durabledbm.open(db_path) as reader, pytest.raises(ReadOnlyError), reader.transaction():
        pytest.fail("it began")


def test_transactions_of_two_databases_do_not_mix(tmp_path: Path) -> None:
    with durabledbm.open(tmp_path / "a", "c") as a, durabledbm.open(tmp_path / "b", "c") as b:
        with a.transaction():
            a["key"] = "1"
            b["key"] = "2"
            with pytest.raises(Undo):
                failing(b, lambda: (a.update(other="kept"), b.update(other="undone")), Undo())
        assert dict(a.items()) == {b"key": b"1", b"other": b"kept"}
        assert dict(b.items()) == {b"key": b"2"}


def test_what_needs_the_file_for_itself_is_refused_in_a_transaction(db: durabledbm.Database) -> None:
    db["key"] = "value"
    with db.transaction():
        db["key"] = "new"
        with pytest.raises(error):
            db.reorganize()
        assert db["key"] == b"new"
    assert db["key"] == b"new"


def test_reading_and_looking_after_the_file_is_allowed_in_a_transaction(db: durabledbm.Database) -> None:
    db["key"] = "value"
    with db.transaction():
        db["key"] = "new"
        assert db.check() == []
        assert db.stats().entries == 1
        db.sync()
        with db.snapshot() as snapshot:
            assert snapshot["key"] == b"value", "the last commit"
    assert db["key"] == b"new"


# -- snapshots -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_snapshot_shows_one_instant(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c", durability=durability, interval=3600) as db:
        entries = {b"%04d" % n: b"old" for n in range(1000)}
        db.update(entries)
        with db.snapshot() as snapshot:
            for n in range(10):
                db.update({b"%04d" % key: b"new %d" % n for key in range(0, 1200, 3)})
                db.sync()
                assert dict(snapshot.items()) == entries
                assert (len(snapshot), snapshot["0003"], snapshot.get("1002")) == (1000, b"old", None)
            assert list(snapshot.range(prefix="00", reverse=True)) == [(b"%04d" % n, b"old") for n in range(99, -1, -1)]
            assert (snapshot.first(), snapshot.last()) == ((b"0000", b"old"), (b"0999", b"old"))


def test_a_snapshot_is_read_only(db: durabledbm.Database) -> None:
    with db.snapshot() as snapshot:
        for name in ("__setitem__", "__delitem__", "update", "pop", "clear", "transaction"):
            assert not hasattr(snapshot, name)


def test_a_snapshot_ends_when_it_is_closed_and_with_its_database(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db["key"] = "value"
        first, second, third = db.snapshot(), db.snapshot(), db.snapshot()
        assert first["key"] == b"value"
        iterators = iter(first.items()), iter(third)
        first.close()
        first.close()
        assert (first.closed, second.closed) == (True, False)
        with pytest.raises(ClosedError):
            first["key"]
        with pytest.raises(ClosedError):
            next(iterators[0])
        with pytest.raises(ClosedError), first:
            pytest.fail("it was entered")
        with second:
            assert second["key"] == b"value"
        assert second.closed
    assert third.closed
    for use in (lambda: third["key"], lambda: len(third), lambda: list(third), lambda: next(iterators[1])):
        with pytest.raises(ClosedError):
            use()
    assert "closed" in repr(third)


def test_a_snapshot_remembers_few_rows_and_those_that_are_asked_for_again(
    db: durabledbm.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durabledbm.snapshot._ROWS_MAX", 10)
    db.update({b"%04d" % n: b"%d" % n for n in range(1000)})
    db["large"] = b"x" * 513
    with db.snapshot() as snapshot:
        for n in range(1000):
            assert snapshot[b"%04d" % n] == b"%d" % n
            assert snapshot["0000"] == b"0"
            assert snapshot.get("1000") is None
            assert len(snapshot["large"]) == 513
            assert len(snapshot._rows) + len(snapshot._rows._old) <= 20
        assert b"0000" in {**snapshot._rows, **snapshot._rows._old}
        assert b"large" not in {**snapshot._rows, **snapshot._rows._old}


def test_snapshots_of_different_commits_live_side_by_side(db: durabledbm.Database) -> None:
    snapshots = []
    for n in range(20):
        db.update({b"%d" % key: b"%d" % n * 50 for key in range(30)})
        snapshots.append(db.snapshot())
    order = list(range(20))
    random.Random(3).shuffle(order)
    for n in order:
        assert set(snapshots[n].values()) == {b"%d" % n * 50}
        snapshots[n].close()
        db.update({b"%d" % key: b"after" for key in range(30)})
    assert [snapshot.txid for snapshot in snapshots] == sorted({snapshot.txid for snapshot in snapshots})


def test_stats_name_the_oldest_snapshot_and_what_it_costs(db: durabledbm.Database) -> None:
    db.update({b"%04d" % n: b"x" * 100 for n in range(1000)})
    assert db.stats().oldest_snapshot is None
    with db.snapshot() as snapshot:
        for _ in range(3):
            db.update({b"%04d" % n: b"y" * 100 for n in range(1000)})
        stats = db.stats()
        assert stats.oldest_snapshot is not None
        assert stats.oldest_snapshot.txid == snapshot.txid
        assert stats.oldest_snapshot.age is not None
        assert stats.pinned_bytes > 100_000
    assert db.stats().oldest_snapshot is None


# -- iterating and the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", DURABILITIES)
def test_iterating_while_writing_is_always_legal(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c", durability=durability) as db:
        entries = {b"%04d" % n: b"x" * 100 for n in range(200)}
        db.update(entries)
        seen = []
        for key, value in db.items():
            seen.append((key, value))
            del db[key]
            db[b"new " + key] = b"y"
        assert seen == sorted(entries.items())
        assert db.keys() == [b"new " + key for key in sorted(entries)]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_an_iterator_is_as_of_its_making_not_of_its_first_step(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c", durability=durability) as db:
        db["a"] = "1"
        iterators = [iter(db), iter(db.items()), db.range(), reversed(db)]
        db["b"] = "2"
        db.sync()
        assert [len(list(iterator)) for iterator in iterators] == [1, 1, 1, 1]


def test_an_iterator_of_a_closed_database_raises(db_path: str) -> None:
    db = durabledbm.open(db_path, "c")
    db.update({b"%d" % n: b"" for n in range(2000)})
    begun, fresh = iter(db), iter(db.items())
    next(begun)
    db.close()
    for iterator in (begun, fresh):
        with pytest.raises(ClosedError):
            next(iterator)


@pytest.mark.leaves_damage
def test_an_iterator_that_met_damage_pins_nothing_any_more(db_path: str) -> None:
    """No reference cycles in exceptions either: they would keep the iterator, and with it the pages it reads."""
    with durabledbm.open(db_path, "c") as db:
        db["large"] = b"x" * 100_000
    content = Path(db_path).read_bytes()
    Path(db_path).write_bytes(content.replace(b"x" * 1000, b"y" * 1000, 1))
    gc.disable()
    try:
        with durabledbm.open(db_path) as db:
            message = ""
            try:
                list(db.items())
            except CorruptionError as exc:
                message = exc.message
            assert "checksum" in message
            assert db.stats().oldest_snapshot is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:.*had unflushed writes:ResourceWarning")
@pytest.mark.parametrize("durability", DURABILITIES)
def test_dropping_the_last_reference_frees_file_and_locks_at_once(db_path: str, durability: str) -> None:
    """No reference cycles: the next line may open the file anew."""
    gc.disable()
    try:
        for _ in range(3):
            db = durabledbm.open(db_path, "c", durability=durability, timeout=0)
            db["key"] = "value"
            with db.transaction():
                db["other"] = "value"
            db.snapshot()
            list(db.items())
            gone = weakref.ref(db)
            del db
            assert gone() is None
            with durabledbm.open(db_path, "w", timeout=0) as other:
                assert len(other) == 2
                assert other.stats().oldest_snapshot is None
                other["key"] = "again"
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "look",
    [
        iter,
        lambda db: iter(db.items()),
        lambda db: db.range(b"1"),
        reversed,
        lambda db: db.snapshot(),
        lambda db: iter(db.snapshot()),
        lambda db: db.transaction(),
    ],
    ids=["iter", "items", "range", "reversed", "snapshot", "iterator of a snapshot", "transaction"],
)
def test_a_handle_without_a_name_is_open_for_as_long_as_it_is_used(db_path: str, look: Callable[[Any], Any]) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.update({b"%d" % n: b"" for n in range(2000)})
    db = durabledbm.open(db_path, "w")
    handle = weakref.ref(db)
    use = look(db)
    del db
    if isinstance(use, durabledbm.Transaction):
        with use:
            use["a"] = "1"
    else:
        assert len(list(use)) >= 1800
    del use
    assert handle() is None


def test_an_iteration_over_an_unnamed_handle_is_like_one_over_a_named(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.update({b"%04d" % n: b"" for n in range(2000)})
    assert [key for key in durabledbm.open(db_path)] == [b"%04d" % n for n in range(2000)]  # noqa: C416
    with durabledbm.open(db_path).snapshot() as snapshot:
        assert len(snapshot) == 2000


def test_a_database_has_attributes_and_weak_references(db: durabledbm.Database, db_path: str) -> None:
    db.anything = 5  # type: ignore[attr-defined]
    assert weakref.ref(db)() is db
    assert (db.path, db.readonly, db.closed) == (db_path, False, False)


def test_repr_shows_path_entries_and_state(db_path: str) -> None:
    with durabledbm.open(db_path, "c", durability="manual") as db:
        assert repr(db).endswith(f"Database {db_path!r}, 0 entries, open>")
        db["a"] = "1"
        assert repr(db).endswith(f"Database {db_path!r}, 0 entries and unflushed writes, open>")
        db.sync()
        assert repr(db).endswith(f"Database {db_path!r}, 1 entry, open>")
    assert repr(db).endswith(f"Database {db_path!r}, closed>")
    with durabledbm.open(db_path) as db:
        assert repr(db).endswith(f"Database {db_path!r}, 1 entry, read-only>")


def test_what_a_shell_completes_is_typed_as_it_is_read(db: durabledbm.Database) -> None:
    db.update({"b": "", "a": "", b"\xff": "", "\u00e4": ""})
    assert db._ipython_key_completions_() == ["a", "b", "\u00e4", b"\xff"]
    db.update({f"{n:05}": "" for n in range(3000)})
    assert db._ipython_key_completions_() == [f"{n:05}" for n in range(1000)]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_handle_is_dropped_without_a_warning_if_nothing_is_lost_by_a_crash(db_path: str, durability: str) -> None:
    """Only writes that are in no file yet are worth one: a synced handle, a reader, or a closed one is not."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        db = durabledbm.open(db_path, "c", durability=durability)
        db["k"] = "v"
        db.sync()
        del db
        db = durabledbm.open(db_path, durability=durability)
        assert db["k"] == b"v"
        del db
        db = durabledbm.open(db_path, "w", durability=durability)
        db["k"] = "w"
        db.close()
        del db
        assert told == []
        db = durabledbm.open(db_path, "w", durability=durability)
        db["k"] = "x"
        del db
        gc.collect()
    deferred = durability in ("interval", "manual")
    assert [(warning.category, Path(warning.filename).name) for warning in told] == (
        [(ResourceWarning, "test_database.py")] if deferred else []
    )
    with durabledbm.open(db_path) as db:
        assert db["k"] == b"x"


def test_sync_and_close_of_what_wrote_nothing_do_nothing(volume: SimVolume) -> None:
    open_on(volume, FILE, "c").close()
    before = len(volume.log)
    for flag in ("r", "w", "c"):
        for durability in DURABILITIES:
            with open_on(volume, FILE, flag, durability=durability) as db:
                db.sync()
                assert len(db) == 0
    assert len(volume.log) == before


# -- looking after it ----------------------------------------------------------------------------------------------


def test_check_reports_its_progress_and_sees_one_state(db: durabledbm.Database) -> None:
    db.update({b"%05d" % n: b"x" * 100 for n in range(3000)})
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))
        if len(steps) % 20 == 0:
            db.update({b"%05d" % n: b"y" * 100 for n in range(0, 3000, 50)})

    assert db.check(progress=progress) == []
    assert len(steps) > 50
    assert all(0 < done <= total for done, total in steps)
    assert steps[-1][0] == steps[-1][1]


def test_check_reads_from_the_disk_and_not_from_memory(volume: SimVolume) -> None:
    with open_on(volume, FILE, "c") as db:
        db.update({b"%05d" % n: b"x" * 100 for n in range(1000)})
        assert dict(db.items())
        content = bytearray(volume.content(FILE))
        content[content.index(b"00500" + b"x" * 100) + 9] ^= 1
        volume.put(FILE, bytes(content))
        problems = db.check()
        assert {problem.invariant for problem in problems} >= {3}


def test_reorganize_reports_its_progress_and_can_be_given_up(volume: SimVolume) -> None:
    with open_on(volume, FILE, "c") as db:
        db.update({b"%05d" % n: b"x" * 300 for n in range(4000)})
        with db.snapshot():
            for n in range(0, 4000, 2):
                del db[b"%05d" % n]
        expected = dict(db.items())
        before = len(volume.content(FILE))

        def give_up(done: int, total: int) -> None:
            raise Undo

        with pytest.raises(Undo):
            db.reorganize(progress=give_up)
        assert dict(db.items()) == expected
        assert db.check() == []
        steps: list[tuple[int, int]] = []
        db.reorganize(progress=lambda done, total: steps.append((done, total)))
        assert steps[-1][0] == steps[-1][1]
        assert len(volume.content(FILE)) < before
        assert dict(db.items()) == expected
        assert db.check() == []


def test_stats_count_what_is_live(volume: SimVolume) -> None:
    with open_on(volume, FILE, "c") as db:
        assert db.stats()[:3] == (0, 1, 0)
        db.update({b"%05d" % n: b"x" * 100 for n in range(3000)} | {b"large": b"y" * 50_000})
        stats = db.stats()
        assert (stats.entries, stats.depth, stats.page_size) == (3001, 2, 4096)
        assert stats.overflow_pages == 13
        assert stats.leaf_pages > 70
        assert stats.branch_pages == 1
        assert stats.file_bytes == len(volume.content(FILE)) == stats.page_count * 4096
        assert stats.live_bytes <= stats.file_bytes
        assert stats.commits == 1
        assert stats.syncs == volume.syncs - 2  # two are of the creation


def test_look_ups_of_pages_in_memory_are_counted(volume: SimVolume) -> None:
    keys = [b"%05d" % n for n in range(3000)]
    with open_on(volume, FILE, "c") as db:
        db.update(dict.fromkeys(keys, b"x" * 100))
    with open_on(volume, FILE, "r") as db:
        for _ in range(2):
            for key in keys[:1000]:
                db[key]
        stats = db.stats()
    assert stats.cache_misses + stats.cache_hits >= 1000
    assert 900 < stats.cache_hits < 2000


def test_closed_handles_say_so_even_if_there_is_nothing_to_do(db: durabledbm.Database) -> None:
    db.close()
    for nothing in (db.update, lambda: db.update({}), lambda: db.get_many([])):
        with pytest.raises(ClosedError):
            nothing()


def test_the_empty_name_is_nobodys() -> None:
    for flag in ("r", "w", "c", "n"):
        with pytest.raises(error) as caught:
            durabledbm.open("", flag)
        assert caught.value.errno == errno.ENOENT


def test_the_module_has_what_it_promises() -> None:
    for name in (
        "open", "error", "whichdb", "install", "uninstall", "migrate", "open_sharded", "Database", "Transaction",
        "Snapshot", "BusyError", "CorruptionError", "ReadOnlyError", "ClosedError", "__version__",
    ):  # fmt: skip
        assert hasattr(durabledbm, name), name
    for name in ("shelve", "changelog"):
        __import__(f"durabledbm.{name}")
        assert getattr(durabledbm, name) is sys.modules[f"durabledbm.{name}"]
    assert stat.S_ISREG(os.stat(durabledbm.__file__).st_mode)
    assert Operation("write", FILE).kind == "write"


# -- what fails below


LOOKS: dict[str, Callable[[durabledbm.Database], object]] = {
    "[]": lambda db: db[b"k"],
    "[] of a str": lambda db: db["k"],
    "get": lambda db: db.get(b"k"),
    "in": lambda db: b"k" in db,
    "len": len,
    "iteration": list,
    "range": lambda db: list(db.range()),
    "snapshot": lambda db: db.snapshot(),
    "stats": lambda db: db.stats(),
    "check": lambda db: db.check(),
}


@pytest.mark.parametrize("durability", ["full", "manual"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_read_that_fails_is_an_error_that_names_the_file_and_may_be_tried_again(look: str, durability: str) -> None:
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        db.update({b"%04d" % number: b"x" * 100 for number in range(500)})
        db["k"] = "v"
    with open_on(volume, "/db", "w", durability=durability) as db:
        volume.fail_at(0, disk_error(errno.EIO), kinds=("read",))
        with pytest.raises(error) as caught:
            LOOKS[look](db)
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, "/db")
        assert volume.fired == 1
        LOOKS[look](db)
        assert db["k"] == b"v"


def test_a_handle_that_is_dropped_and_cannot_write_what_is_pending_lets_go_of_the_file() -> None:
    """Nobody is there to be told, as with files. What was never written is lost."""
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        db["k"] = "old"
    db = open_on(volume, "/db", "w", durability="manual")
    db["k"] = "new"
    volume.fail_at(0, disk_error(errno.ENOSPC, "none"), kinds=("write",))
    gone = weakref.ref(db)
    with pytest.warns(ResourceWarning, match="'/db' was not closed, and had unflushed writes"):
        del db
    gc.collect()
    assert gone() is None
    assert volume.fired == 1
    with open_on(volume, "/db", "w", timeout=0) as other:
        assert other["k"] == b"old"
        other["k"] = "other"


# -- `with` statements that go away without ending their block: an interrupt came just before its end


def left(transaction: durabledbm.Transaction) -> object:
    """Enter a block as `with` does. Dropping the result is all that becomes of its end."""
    end = transaction.__exit__
    transaction.__enter__()
    return end


def test_a_block_whose_end_never_comes_is_rolled_back(db: durabledbm.Database) -> None:
    db["k"] = "old"
    tx = db.transaction()
    end = left(tx)
    tx["k"] = "new"
    rows = iter(tx.items())
    with pytest.raises(BusyError), durabledbm.open(db.path, "w", timeout=0) as other:
        other["k"] = "other"
    del end
    for use in (lambda: tx["k"], lambda: tx.update(k="more"), lambda: next(rows)):
        with pytest.raises(ClosedError):
            use()
    assert db["k"] == b"old"
    with durabledbm.open(db.path, "w", timeout=0) as other:
        other["k"] = "other"
    assert db["k"] == b"other"
    with db.transaction() as tx:
        tx["k"] = "again"
    assert db["k"] == b"again"


def test_a_block_in_another_whose_end_never_comes_dooms_the_other(db: durabledbm.Database) -> None:
    """Whether it was to be kept or undone is not known any more."""
    db["k"] = "old"
    outer, inner = db.transaction(), db.transaction()
    outer.__enter__()
    outer["k"] = "outer"
    end = left(inner)
    inner["k"] = "inner"
    del end
    with pytest.raises(error, match="only be rolled back"):
        outer["k"] = "more"
    with pytest.raises(error, match="the end of a block in it was interrupted"):
        outer.__exit__(None, None, None)
    assert db["k"] == b"old"


def test_a_block_that_was_ended_is_not_ended_again_when_its_statement_goes(db: durabledbm.Database) -> None:
    tx = db.transaction()
    end: Any = left(tx)
    tx["k"] = "v"
    end(None, None, None)
    with db.transaction() as later:
        later["other"] = "v"
        del end
        later["more"] = "v"
    assert set(db) == {b"k", b"other", b"more"}


@pytest.mark.parametrize("clock", [-1, -(10**18), 2**64])
def test_a_clock_that_shows_an_impossible_time_stops_nothing(
    tmp_path: Path, clock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: clock)
    path = str(tmp_path / "db")
    with durabledbm.open(path, "c") as db, durabledbm.changelog.ChangeLog(tmp_path / "log") as log, db.attach(log):
        db["k"] = "v"
        db.backup(tmp_path / "backup")
        durabledbm.dump.dump({b"k": b"v"}, tmp_path / "dump")
        assert db.stats().time_ns in (0, 2**64 - 1)
    with durabledbm.open_sharded(tmp_path / "sharded", "c", shards=2) as sharded:
        sharded["k"] = "v"
    durabledbm.reshard.reshard(tmp_path / "sharded", tmp_path / "resharded", shards=3)
    with durabledbm.changelog.ChangeLog(tmp_path / "log") as log:
        log.commit([("k", "w")], 100)
    durabledbm.restore.restore(tmp_path / "restored", tmp_path / "dump")
    for name in (path, tmp_path / "backup", tmp_path / "restored"):
        with durabledbm.open(name) as found:
            assert dict(found) == {b"k": b"v"}
