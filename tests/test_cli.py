"""The command line, as its users and their scripts see it: output, exit status, and what is left in the file."""

from __future__ import annotations

import base64
import datetime
import errno
import io
import json
import os
import pickle
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import TELLS_HOLDERS, WINDOWS, only_posix

import durabledbm
import durabledbm.maintenance.inspect
import durabledbm.shelve
from durabledbm._engine import kernels
from durabledbm.cli.app import GROUPS, all_commands, find, main
from durabledbm.cli.reference import markdown
from durabledbm.cli.text import OutputError, columns, escape, printable, unescape

ROOT = Path(__file__).parent.parent


class Result(NamedTuple):
    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


Run = Callable[..., Result]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line in this process."""

    def run(*argv: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        status = main([os.fspath(part) if isinstance(part, Path) else str(part) for part in argv])
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        return Result(status, out, err.decode())

    return run


def process(*argv: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs a command line in a process of its own."""
    options.setdefault("capture_output", True)
    return subprocess.run(
        [sys.executable, "-m", "durabledbm", *map(str, argv)], check=False, env=environment(), **options
    )


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


ENTRIES = {
    b"a": b"1",
    b"b": b"",
    "ä".encode(): "über".encode(),
    b"c\xff": b"\x00\xfe",
    b"tab\t": b"line\n",
    b"back\\": b"\\x",
}


@pytest.fixture
def path(db_path: str) -> str:
    """A file with `ENTRIES`."""
    with durabledbm.open(db_path, "c") as db:
        db.update(ENTRIES)
    return db_path


def content(path: str) -> dict[bytes, bytes]:
    with durabledbm.open(path) as db:
        return dict(db.items())


# -- escapes -----------------------------------------------------------------------------------------


@given(st.binary())
def test_escapes_can_be_undone_and_are_one_line_that_can_be_printed(data: bytes) -> None:
    text = escape(data)
    assert unescape(text.encode()) == data
    assert text.isprintable()


@given(st.text().filter(lambda text: text.isprintable() and "\\" not in text))
def test_text_is_shown_as_it_is(text: str) -> None:
    assert escape(text.encode()) == text


@pytest.mark.parametrize("text", [b"\\", b"\\q", b"\\x", b"\\xg0", b"a\\"])
def test_an_escape_that_is_never_printed_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError, match="backslash"):
        unescape(text)


@given(st.text(st.characters(codec=None)))
def test_messages_are_one_line_whatever_is_in_them(text: str) -> None:
    assert printable(text).isprintable()


# -- get ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ENTRIES)
def test_get_prints_the_bytes_of_the_value_and_nothing_else(run: Run, path: str, key: bytes) -> None:
    assert run("get", path, "-e", escape(key)) == (0, ENTRIES[key], "")
    if not WINDOWS or key != b"c\xff":  # arguments are text there
        assert run("get", path, os.fsdecode(key)) == (0, ENTRIES[key], "")


def test_get_of_a_missing_key_is_a_no_and_says_so_in_one_line(run: Run, path: str) -> None:
    assert run("get", path, "nope") == (1, b"", f"durabledbm get: {path}: there is no key 'nope'\n")


def test_get_saves_a_value_in_a_file(run: Run, path: str, tmp_path: Path) -> None:
    target = tmp_path / "value"
    assert run("get", path, "ä", "-o", target) == (0, b"", "")
    assert target.read_text("utf-8") == "über"
    assert run("get", path, "nope", "-o", target, "--force").status == 1
    assert target.read_text("utf-8") == "über", "a missing key must not empty the file"


def test_get_as_json(run: Run, path: str) -> None:
    assert json.loads(run("get", path, "ä", "--json").out) == "über"
    value = json.loads(run("get", path, "-e", r"c\xff", "--json").out)
    assert base64.b64decode(value["base64"]) == b"\x00\xfe"


# -- put ---------------------------------------------------------------------------------------------


def test_put_takes_the_value_from_an_argument_a_file_or_standard_input(run: Run, db_path: str, tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"\x00file\n")
    assert run("put", db_path, "argument", "värde") == (0, b"", "")
    assert run("put", db_path, "file", "--input", tmp_path / "value") == (0, b"", "")
    assert run("put", db_path, "stdin", stdin=b"\xffpipe\n") == (0, b"", "")
    assert run("put", db_path, "-e", r"esc\xff", r"a\nb") == (0, b"", "")
    assert content(db_path) == {
        b"argument": "värde".encode(), b"file": b"\x00file\n", b"stdin": b"\xffpipe\n", b"esc\xff": b"a\nb",
    }  # fmt: skip


def test_put_understands_options_between_its_arguments_and_keys_with_hyphens(run: Run, db_path: str) -> None:
    assert run("put", db_path, "k", "--timeout", "3", "v").status == 0
    assert run("put", db_path, "--", "-k", "-v").status == 0
    assert run("put", db_path, "n", "-5").status == 0
    assert content(db_path) == {b"k": b"v", b"-k": b"-v", b"n": b"-5"}


@pytest.mark.parametrize("argv", [("k", "v", "-i", "x"), ("-e", "k\\", "v"), ("k", "-i", "nothing there"), ()])
def test_a_put_that_makes_no_sense_creates_nothing(run: Run, db_path: str, argv: tuple[str, ...]) -> None:
    result = run("put", db_path, *argv)
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert not os.path.exists(db_path)


# -- del ---------------------------------------------------------------------------------------------


def test_del_deletes_in_one_commit(run: Run, path: str) -> None:
    with durabledbm.open(path) as db, db.snapshot() as snapshot:
        before = snapshot.txid
    assert run("del", path, "a", "b", "ä") == (0, b"", "")
    with durabledbm.open(path) as db, db.snapshot() as snapshot:
        assert snapshot.txid == before + 1
        assert set(db) == ENTRIES.keys() - {b"a", b"b", "ä".encode()}


def test_del_deletes_what_is_live_and_says_what_is_not(run: Run, path: str) -> None:
    result = run("del", path, "nope", "a", "neither")
    assert result.status == 1
    assert "'nope', 'neither'" in result.err
    assert b"a" not in content(path)


# -- list --------------------------------------------------------------------------------------------


def test_list_prints_keys_and_values_in_order_and_unambiguously(run: Run, path: str) -> None:
    result = run("list", path)
    assert result.text == "".join(f"{escape(key)}\t{escape(value)}\n" for key, value in sorted(ENTRIES.items()))
    pairs = (line.split(b"\t") for line in result.out.splitlines())
    assert {unescape(key): unescape(value) for key, value in pairs} == ENTRIES


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        (["--prefix", "b"], {"prefix": b"b"}),
        (["--start", "b"], {"start": b"b"}),
        (["--stop", "b"], {"stop": b"b"}),
        (["--start", "b", "--stop", "c"], {"start": b"b", "stop": b"c"}),
        (
            ["--prefix", "b", "--start", "ba", "--stop", "bb", "-r"],
            {"prefix": b"b", "start": b"ba", "stop": b"bb", "reverse": True},
        ),
        (["--prefix", r"c\xff", "-e"], {"prefix": b"c\xff"}),
        (["--reverse"], {"reverse": True}),
    ],
)
def test_list_takes_the_bounds_of_range(run: Run, path: str, options: list[str], bounds: dict[str, Any]) -> None:
    with durabledbm.open(path) as db:
        expected = list(db.range(**bounds))
    listed = [
        (unescape(key), unescape(value))
        for key, value in (line.split(b"\t") for line in run("list", path, *options).out.splitlines())
    ]
    assert listed == expected
    keys = [unescape(line) for line in run("list", path, "-k", *options).out.splitlines()]
    assert keys == [key for key, _ in expected]
    limited = [unescape(line) for line in run("list", path, "-k", "-n", 2, *options).out.splitlines()]
    assert limited == keys[:2]


def test_list_prints_values_only(run: Run, path: str) -> None:
    assert [unescape(line) for line in run("list", path, "-v").out.splitlines()] == [
        value for _, value in sorted(ENTRIES.items())
    ]


def test_list_as_json_keeps_every_byte(run: Run, path: str) -> None:
    def back(value: Any) -> bytes:
        return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])

    lines = [json.loads(line) for line in run("list", path, "--json").out.splitlines()]
    assert {back(line["key"]): back(line["value"]) for line in lines} == ENTRIES
    keys = [back(json.loads(line)) for line in run("list", path, "--json", "-k").out.splitlines()]
    assert keys == sorted(ENTRIES)


def test_list_with_nul_prints_the_bytes_as_they_are(run: Run, path: str) -> None:
    assert run("list", path, "-0", "-k").out == b"".join(key + b"\0" for key in sorted(ENTRIES))
    assert run("list", path, "--null", "-n", 1).out == b"a\x001\x00"


def test_json_moves_no_cursor_and_still_says_the_same(run: Run, path: str) -> None:
    """Not by escape sequences, nor by the control characters of ISO 6429 beyond ASCII, nor by the direction of text."""
    odd = "a\x1b]0;title\x07\x7f\x9b31m\u202e\u2028\ud7ff\U000e0001é中\n"
    with durabledbm.open(path, "n") as db:
        db[odd] = odd
    for arguments in (("list", path, "--json"), ("list", path, "--json", "-k"), ("get", path, odd, "--json")):
        (line,) = run(*arguments).text.splitlines()
        assert line.isprintable()
        assert "é中" in line
        assert json.loads(line) in (odd, {"key": odd, "value": odd})
    with durabledbm.open(path, "n") as db:
        db["object"] = pickle.dumps({"a": [odd, b"\x9b"], (1,): "\ud800"})
    (line,) = run("list", path, "--json", "--pickle").text.splitlines()
    assert line.isprintable()
    assert json.loads(line)["key"] == "object"


@pytest.mark.parametrize("options", [["-k", "-v"], ["-0", "--json"], ["-n", "-1"], ["-n", "x"]])
def test_options_that_exclude_each_other_are_refused(run: Run, path: str, options: list[str]) -> None:
    result = run("list", path, *options)
    assert (result.status, result.out) == (2, b"")


# -- shelves -----------------------------------------------------------------------------------------


class Trap:
    """An object whose loading leaves a trace."""

    trace = ""

    def __reduce__(self) -> Any:
        return os.mkdir, (self.trace,)


@pytest.fixture
def shelf(db_path: str) -> str:
    with durabledbm.shelve.open(db_path) as shelf:
        shelf.update({"list": [1, "two"], "dict": {"three": (4, b"\xff")}, "odd": {1: {2}}})
    return db_path


def test_objects_of_a_shelf_are_shown_when_asked_for_with_a_warning(run: Run, shelf: str) -> None:
    result = run("list", shelf, "--pickle")
    assert result.text == "dict\t{'three': (4, b'\\xff')}\nlist\t[1, 'two']\nodd\t{1: {2}}\n"
    assert "warning" in result.err
    assert shelf in result.err
    lines = [json.loads(line) for line in run("list", shelf, "--pickle", "--json").out.splitlines()]
    assert lines[:2] == [
        {"key": "dict", "value": {"three": [4, {"base64": "/w=="}]}},
        {"key": "list", "value": [1, "two"]},
    ]
    assert run("get", shelf, "list", "--pickle").text == "[1, 'two']\n"
    assert json.loads(run("get", shelf, "list", "--pickle", "--json").out) == [1, "two"]


def test_objects_that_json_does_not_have_become_the_nearest_that_it_has(run: Run, db_path: str) -> None:
    circle: list[object] = []
    circle.append(circle)
    objects = {"circle": circle, "keys": {(1, 2): 3}, "other": 1 + 2j, "set": {5}, "bytes": bytearray(b"text")}
    with durabledbm.shelve.open(db_path) as shelf:
        shelf.update(objects)
    result = run("list", db_path, "--pickle", "--json")
    assert {line["key"]: line["value"] for line in map(json.loads, result.out.splitlines())} == {
        "circle": "[[...]]", "keys": "{(1, 2): 3}", "other": "(1+2j)", "set": [5], "bytes": "text",
    }  # fmt: skip


class Interrupt:
    """An object during whose loading somebody presses Ctrl-C."""

    def __reduce__(self) -> Any:
        return _interrupt, ()


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_an_object_is_loaded_is_no_property_of_the_object(run: Run, db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db["k"] = pickle.dumps(Interrupt())
    result = run("list", db_path, "--pickle")
    assert result.status == 130
    assert b"no object" not in result.out


def test_no_object_is_loaded_unless_asked_for(
    run: Run, db_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    monkeypatch.setattr(Trap, "trace", str(trace))
    with durabledbm.open(db_path, "c") as db:
        db["trap"] = pickle.dumps(Trap())
    for argv in (
        ["list"],
        ["list", "--json"],
        ["get", "trap"],
        ["stat"],
        ["check"],
        ["inspect"],
        ["dump", "--codec", "binary"],
    ):
        assert run(argv[0], db_path, *argv[1:]).status == 0
        assert not trace.exists(), argv
    run("list", db_path, "--pickle")
    assert trace.exists()


def test_a_value_that_is_no_pickle_is_said_to_be_none(run: Run, path: str) -> None:
    result = run("get", path, "a", "--pickle")
    assert result.status == 0
    assert "no object" in result.text
    assert "error" in json.loads(run("get", path, "a", "--pickle", "--json").out)


# -- stat, check, compact ----------------------------------------------------------------------------


def test_stat_for_programs_and_for_people(run: Run, path: str) -> None:
    figures = json.loads(run("stat", path, "--json").out)
    assert figures["entries"] == len(ENTRIES)
    assert figures["file_bytes"] == os.path.getsize(path)
    assert figures["looks_like_shelf"] is False
    assert f"entries    {len(ENTRIES)}\n" in run("stat", path).text


def test_stat_tells_when_the_last_commit_was_made_not_when_the_file_was(run: Run, path: str) -> None:
    before = run("stat", path).text
    os.utime(path, (10**9, 10**9))
    assert run("stat", path).text == before
    made = json.loads(run("stat", path, "--json").out)["time_ns"] / 1e9
    assert 0 <= time.time() - made < 600


def test_stat_tells_a_shelf(run: Run, shelf: str) -> None:
    assert json.loads(run("stat", shelf, "--json").out)["looks_like_shelf"] is True
    assert "shelf" in run("stat", shelf).text


def test_stat_names_the_process_that_writes_and_the_one_that_reads_an_old_state(run: Run, path: str) -> None:
    with (
        other_process(path, "snapshot = db.snapshot(); next(iter(snapshot))") as reader,
        durabledbm.open(path, "w") as db,
    ):
        for number in range(3):
            db["x"] = str(number) * 5000
        with other_process(path, "tx = db.transaction(); tx.__enter__()") as writer:
            result = run("stat", path)
    if not TELLS_HOLDERS:
        pytest.skip("this system does not tell whose locks there are")
    assert re.search(rf"opened by  process {reader} \(.*\): reads a snapshot\n", result.text)
    assert re.search(rf"opened by  process {writer} \(.*\): writes now\n", result.text)
    assert re.search(
        rf"snapshot   the oldest that is read is commit \d+, 3 commits ago, by process {reader}\n", result.text
    )


class other_process:
    """A process that has `path` open for writing and did `action`, until the end of the block."""

    def __init__(self, path: str, action: str) -> None:
        code = f"import durabledbm; db = durabledbm.open({path!r}, 'w'); {action}; print('ready', flush=True); input()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
        )

    def __enter__(self) -> int:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().split() == [b"ready"]
        return self._process.pid

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_check_of_a_sound_file(run: Run, path: str) -> None:
    result = run("check", path)
    assert result.status == 0
    assert f"{path}: sound, {len(ENTRIES)} entries" in result.text
    assert run("check", "-q", path) == (0, b"", "")


@pytest.mark.leaves_damage
def test_check_of_a_damaged_file_is_a_no_and_says_what_to_do(run: Run, large: str) -> None:
    damage(large, page_id=5)
    result = run("check", large)
    assert result.status == 1
    assert "page 5:" in result.text
    assert "durabledbm salvage" in result.err
    assert run("check", "-q", large) == (1, b"", "")


@pytest.mark.leaves_damage
def test_check_of_a_file_without_usable_meta_pages_is_a_no(run: Run, path: str) -> None:
    damage(path, page_id=0)
    damage(path, page_id=1)
    result = run("check", path)
    assert result.status == 1
    assert "both meta pages are damaged" in result.text


@pytest.fixture
def large(db_path: str) -> str:
    """A file with some hundred pages, many of which were used more than once."""
    with durabledbm.open(db_path, "c") as db:
        for round_ in range(3):
            db.update({f"key{number:04}": os.urandom(300 + round_) for number in range(1000)})
    return db_path


def damage(path: str, page_id: int) -> None:
    with open(path, "r+b") as file:
        file.seek(page_id * 4096 + 1000)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def test_compact_makes_the_file_smaller_and_changes_nothing_else(run: Run, large: str) -> None:
    with durabledbm.open(large, "w") as db:
        for key in list(db)[::2]:
            del db[key]
    before, entries = os.path.getsize(large), content(large)
    result = run("compact", large)
    assert result.status == 0
    assert os.path.getsize(large) < before
    assert content(large) == entries


# -- copies ------------------------------------------------------------------------------------------


def test_backup_makes_an_equal_file(run: Run, large: str, tmp_path: Path) -> None:
    target = str(tmp_path / "copy.db")
    result = run("backup", large, target)
    assert (result.status, result.out) == (0, b"")
    assert "1,000 entries" in result.err
    assert content(target) == content(large)


def test_backup_onto_itself_is_refused(run: Run, path: str) -> None:
    before = Path(path).read_bytes()
    result = run("backup", path, path)
    assert result.status == 2
    assert path in result.err
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("options", [[], ["--codec", "binary"], ["--max-file-size", "64K"]])
def test_what_was_dumped_can_be_loaded(run: Run, large: str, tmp_path: Path, options: list[str]) -> None:
    target, fresh = tmp_path / "dump", str(tmp_path / "fresh.db")
    assert "1,000 entries" in run("dump", large, target, *options).err
    result = run("load", fresh, target)
    assert (result.status, result.out) == (0, b"")
    assert "1,000 changes loaded" in result.err
    assert content(fresh) == content(large)


@pytest.mark.parametrize("command", ["dump", "load"])
def test_a_table_on_a_server_is_not_one_of_the_file(run: Run, path: str, tmp_path: Path, command: str) -> None:
    result = run(command, path, tmp_path / "dump", "--table", "users")
    assert (result.status, result.out) == (2, b"")
    assert "--table goes with" in result.err
    assert not (tmp_path / "dump").exists()


def test_dump_and_load_through_a_pipe(run: Run, path: str, tmp_path: Path) -> None:
    fresh = str(tmp_path / "fresh.db")
    dumped = run("dump", path)
    assert (dumped.status, dumped.err) == (0, "")
    assert run("load", fresh, stdin=dumped.out).status == 0
    assert content(fresh) == ENTRIES


def test_a_dump_as_text_is_lines(run: Run, db_path: str) -> None:
    run("put", db_path, "a", "1")
    assert run("dump", db_path, "--codec", "text").out == b"P|a|1\n"


def test_load_adds_to_what_is_live(run: Run, path: str) -> None:
    assert run("load", path, "--codec", "text", stdin=b"P|a|2\nP|new|3\nD|b\n").status == 0
    expected = {**ENTRIES, b"a": b"2", b"new": b"3"}
    del expected[b"b"]
    assert content(path) == expected


def test_a_load_that_fails_changes_nothing_and_creates_nothing(run: Run, path: str, tmp_path: Path) -> None:
    dumped = run("dump", path).out
    fresh = tmp_path / "fresh.db"
    for broken in (dumped[:-5], dumped[: len(dumped) // 2], dumped.replace(b"\\x", b"\\y"), b"rubbish\n"):
        for target in (path, str(fresh)):
            result = run("load", target, stdin=broken)
            assert result.status == 2
            assert result.err.count("\n") == 1
    assert content(path) == ENTRIES
    assert sorted(os.listdir(tmp_path)) == ["test.db"]


def test_load_restores_a_backup_and_a_log_until_a_commit(run: Run, path: str, tmp_path: Path) -> None:
    backup, log = str(tmp_path / "backup.db"), str(tmp_path / "log")
    states = {}
    with durabledbm.open(path, "w") as db, log_of(log) as changes:
        db.attach(changes)
        db.backup(backup)
        for number in range(5):
            db[f"new{number}"] = "x"
            with db.snapshot() as snapshot:
                states[snapshot.txid] = dict(snapshot.items())
    for txid, state in states.items():
        target = str(tmp_path / f"at-{txid}.db")
        result = run("load", target, backup, "--log", log, "--until", txid)
        assert result.status == 0, result.err
        assert f"commit {txid}" in result.err
        assert content(target) == state
    assert run("load", str(tmp_path / "last.db"), backup, "--log", log).status == 0
    assert content(str(tmp_path / "last.db")) == content(path)
    assert run("load", str(tmp_path / "copy.db"), backup).status == 0
    assert content(str(tmp_path / "copy.db")) == ENTRIES
    result = run("load", path, backup, "--log", log)
    assert result.status == 2
    assert "exists" in result.err


def test_load_says_how_it_chose_where_the_clock_was_set_back(
    run: Run, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, target = str(tmp_path / "log"), str(tmp_path / "new.db")
    with durabledbm.open(tmp_path / "live", "c") as db, log_of(log) as changes:
        db.attach(changes)
        for key, hour in (("a", 12), ("b", 10)):
            monkeypatch.setattr(time, "time_ns", lambda hour=hour: hour * 3600 * 10**9 + 10**18)
            db[key] = "1"
    monkeypatch.undo()
    until = datetime.datetime.fromtimestamp(11 * 3600 + 10**9).isoformat()
    for arguments in (("--log", log), (log,)):
        result = run("load", target, *arguments, "--until", until)
        assert (result.status, content(target)) == (0, {b"a": b"1", b"b": b"1"})
        assert "the clock was set back: commit 3" in result.err
        assert "give --until the number of a commit" in result.err
        os.unlink(target)


def log_of(directory: str) -> Any:
    from durabledbm.changelog import ChangeLog

    return ChangeLog(directory)


def test_migrate_and_export_are_ways_there_and_back(run: Run, path: str, tmp_path: Path) -> None:
    old, fresh = str(tmp_path / "old"), str(tmp_path / "fresh.db")
    assert f"{len(ENTRIES)} entries" in run("export", path, old, "--to", "dbm.dumb").err
    assert run("migrate", old, fresh).status == 0
    assert content(fresh) == ENTRIES
    result = run("migrate", old)
    assert result.status == 0
    assert f"{old}.bak" in result.err
    assert content(old) == ENTRIES
    assert run("migrate", old).status == 2


@pytest.mark.leaves_damage
def test_salvage_saves_what_is_readable_and_says_if_something_is_not(run: Run, large: str, tmp_path: Path) -> None:
    entries = content(large)
    whole, part = str(tmp_path / "whole.db"), str(tmp_path / "part.db")
    result = run("salvage", large, whole)
    assert result.status == 0
    assert "1,000 entries saved" in result.err
    assert content(whole) == entries
    leaf = next(run.page_id for run in durabledbm.maintenance.inspect.inspect(large).runs if run.kind == "leaf")
    damage(large, leaf)
    before = Path(large).read_bytes()
    result = run("salvage", large, part)
    assert result.status == 1
    assert f"page {leaf}" in result.err
    saved = content(part)
    assert 900 < len(saved) <= 1000
    assert saved.items() <= entries.items() or "older version" in result.err
    assert run("salvage", "-q", large, str(tmp_path / "again.db")).err.count("\n") == 1
    assert run("salvage", large, part).status == 2, "an existing file is not replaced"
    assert Path(large).read_bytes() == before


# -- sharded databases -------------------------------------------------------------------------------


def test_commands_take_the_directory_of_a_sharded_database(run: Run, tmp_path: Path) -> None:
    path, copy = str(tmp_path / "sharded"), str(tmp_path / "copy")
    with durabledbm.open_sharded(path, "c", shards=3) as db:
        db.update(ENTRIES)
    assert run("put", path, "new", "value").status == 0
    assert run("get", path, "new") == (0, b"value", "")
    assert run("del", path, "new", "nope").status == 1
    assert [unescape(line) for line in run("list", path, "-k").out.splitlines()] == sorted(ENTRIES)
    assert "in 3 shards" in run("stat", path).text
    assert len(json.loads(run("stat", path, "--json").out)["shards"]) == 3
    assert f"{len(ENTRIES)} entries" in run("check", path).text
    assert run("compact", path).status == 0
    assert run("backup", path, copy).status == 0
    with durabledbm.open_sharded(copy) as db:
        assert dict(db.items()) == ENTRIES
    assert run("load", str(tmp_path / "one.db"), stdin=run("dump", path).out).status == 0
    assert content(str(tmp_path / "one.db")) == ENTRIES
    for argv in (["inspect", path], ["salvage", path, str(tmp_path / "x")]):
        result = run(*argv)
        assert result.status == 2
        assert "one of its files" in result.err


# -- what a file may be ------------------------------------------------------------------------------

READING = [("get", "a"), ("list",), ("stat",), ("check",), ("inspect", "--color", "never"), ("dump",)]
WRITING = [("put", "a", "2"), ("del", "a"), ("compact",)]


def state_of(path: str) -> object:
    if os.path.isdir(path):
        return sorted(os.listdir(path))
    return Path(path).read_bytes() if os.path.exists(path) else None


def assert_one_line_about(result: Result, command: str, path: str) -> None:
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith(f"durabledbm {command}: {path}")
    assert "Traceback" not in result.err


@pytest.mark.parametrize("argv", [*READING, ("del", "a"), ("compact",)], ids=" ".join)
def test_a_missing_file_is_a_failure_and_is_not_created(run: Run, db_path: str, argv: tuple[str, ...]) -> None:
    result = run(argv[0], db_path, *argv[1:])
    assert (result.status, result.out) == (2, b"")
    assert_one_line_about(result, argv[0], db_path)
    assert "no such file" in result.err
    assert not os.path.exists(db_path)


@pytest.mark.parametrize("argv", READING + WRITING, ids=" ".join)
def test_a_file_of_another_kind_is_left_as_it_is(run: Run, tmp_path: Path, argv: tuple[str, ...]) -> None:
    path = str(tmp_path / "foreign")
    Path(path).write_bytes(b"something else\n" * 1000)
    before = state_of(path)
    result = run(argv[0], path, *argv[1:])
    assert (result.status, result.out) == (2, b"")
    assert_one_line_about(result, argv[0], path)
    assert "not a durabledbm database" in result.err
    assert state_of(path) == before


@pytest.mark.parametrize("name", ["dbm.dumb", "dbm.gnu", "dbm.sqlite3"])
def test_a_database_of_another_module_is_told_with_the_way_to_convert_it(run: Run, tmp_path: Path, name: str) -> None:
    module = pytest.importorskip(name)
    path = str(tmp_path / "old")
    with module.open(path, "c") as db:
        db["a"] = "b"
    result = run("get", path, "a")
    assert result.status == 2
    assert name in result.err
    assert f"'durabledbm migrate {path}'" in result.err


@pytest.mark.parametrize("argv", READING + WRITING, ids=" ".join)
def test_a_directory_is_not_a_database(run: Run, tmp_path: Path, argv: tuple[str, ...]) -> None:
    result = run(argv[0], tmp_path, *argv[1:])
    assert (result.status, result.out) == (2, b"")
    assert_one_line_about(result, argv[0], str(tmp_path))
    assert "directory" in result.err


@pytest.mark.parametrize(
    ("argv", "status"), [(("get", "a"), 1), (("del", "a"), 1), *((argv, 0) for argv in READING[1:]), (("compact",), 0)]
)
def test_an_empty_file_is_an_empty_database_and_reading_leaves_it_empty(
    run: Run, db_path: str, argv: tuple[str, ...], status: int
) -> None:
    Path(db_path).touch()
    result = run(argv[0], db_path, *argv[1:])
    assert result.status == status, result.err
    if argv[0] != "del":
        assert os.path.getsize(db_path) == 0


@pytest.mark.leaves_damage
@pytest.mark.parametrize(
    "argv", [argv for argv in READING + WRITING if argv[0] not in ("check", "inspect")], ids=" ".join
)
def test_a_damaged_file_is_a_failure_with_the_way_out(run: Run, path: str, argv: tuple[str, ...]) -> None:
    damage(path, page_id=0)
    damage(path, page_id=1)
    before = state_of(path)
    result = run(argv[0], path, *argv[1:])
    assert (result.status, result.out) == (2, b"")
    assert_one_line_about(result, argv[0], path)
    assert f"'durabledbm salvage {path} NEW'" in result.err
    assert state_of(path) == before


@pytest.mark.parametrize("argv", READING, ids=" ".join)
def test_reading_a_file_that_somebody_writes_to_does_not_wait(run: Run, path: str, argv: tuple[str, ...]) -> None:
    with other_process(path, "tx = db.transaction(); tx.__enter__(); tx['a'] = 'not yet'"):
        result = run(argv[0], path, *argv[1:])
    assert result.status == 0, result.err
    assert b"not yet" not in result.out


@pytest.mark.parametrize("argv", WRITING, ids=" ".join)
def test_writing_a_file_that_somebody_writes_to_waits_as_long_as_told(
    run: Run, path: str, argv: tuple[str, ...]
) -> None:
    before = content(path)
    with other_process(path, "tx = db.transaction(); tx.__enter__()") as pid:
        result = run(argv[0], path, *argv[1:], "--timeout", "0.05")
    assert result.status == 2
    assert_one_line_about(result, argv[0], path)
    assert "--timeout" in result.err
    if TELLS_HOLDERS:
        assert f"process {pid} " in result.err
    assert content(path) == before


class as_nobody:
    """A block in which permissions count, also for root."""

    def __enter__(self) -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)

    def __exit__(self, *exc_info: object) -> None:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.fixture
def public() -> Iterator[str]:
    """A file that everybody may read and nobody may write."""
    if WINDOWS:
        pytest.skip("Windows keeps files from users by access control lists, not by modes")
    directory = tempfile.mkdtemp()
    path = os.path.join(directory, "public.db")
    with durabledbm.open(path, "c") as db:
        db.update(ENTRIES)
    os.chmod(path, 0o444)
    os.chmod(directory, 0o555)
    yield path
    os.chmod(directory, 0o755)
    shutil.rmtree(directory)


def test_a_read_only_file_can_be_read_and_not_written(run: Run, public: str) -> None:
    for argv in READING + WRITING:  # everything that is imported on demand is imported now
        run(argv[0], "/nonexistent/x", *argv[1:])
    with as_nobody():
        for argv in READING:
            assert run(argv[0], public, *argv[1:]).status == 0
        for argv in WRITING:
            result = run(argv[0], public, *argv[1:])
            assert result.status == 2
            assert_one_line_about(result, argv[0], public)
            assert "permission" in result.err
    assert content(public) == ENTRIES


def test_a_file_of_a_future_version_asks_for_a_newer_durabledbm(run: Run, path: str) -> None:
    from crc32c import crc32c

    data = bytearray(Path(path).read_bytes())
    for slot in (0, 4096):
        data[slot + 24 : slot + 28] = (99).to_bytes(4, "little")
        data[slot + 4092 : slot + 4096] = crc32c(bytes(data[slot : slot + 4092])).to_bytes(4, "little")
    future = path + "-future"
    Path(future).write_bytes(data)
    result = run("get", future, "a")
    os.unlink(future)
    assert result.status == 2
    assert "version 99" in result.err
    assert "newer" in result.err


# -- what a new user stumbles over -------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ("put", "FILE", "k", "v", "--timeout", "soon"), ("put", "FILE", "k", "v", "--timeout", "-1"),
        ("list", "FILE", "--limit", "many"), ("list", "FILE", "-n=-3"), ("inspect", "FILE", "--pages", "9-3"),
        ("inspect", "FILE", "--pages", "x"), ("dump", "FILE", "d", "--max-file-size", "1X"),
        ("dump", "FILE", "d", "--max-file-size", "0"), ("load", "FILE", "--until", "yesterday"),
        ("tour", "--files", "0"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_value_that_an_option_cannot_have_is_told_in_words(run: Run, path: str, argv: tuple[str, ...]) -> None:
    result = run(*(path if part == "FILE" else part for part in argv))
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert f"{argv[-1].removeprefix('-n=')}' is not" in result.err or "neither" in result.err
    assert not re.search(r"invalid _?\w+ value", result.err)


@pytest.mark.parametrize("argv", [("put", "FILE", "k", "v"), ("load", "FILE")], ids=lambda argv: argv[0])
def test_no_file_is_created_beside_a_database_of_another_module(
    run: Run, db_path: str, argv: tuple[str, ...]
) -> None:
    from dbm import dumb

    with dumb.open(db_path, "c") as old:
        old["k"] = "old"
    result = run(*(db_path if part == "FILE" else part for part in argv), stdin=b"")
    assert result.status == 2
    assert f"{db_path}: an old dbm.dumb database has this name (test.db.dir, test.db.dat" in result.err
    assert result.err.endswith(f"; 'durabledbm migrate {db_path}' converts it, or move it away\n")
    assert not os.path.exists(db_path)


def test_an_sqlite_database_is_not_taken_for_one_of_dbm_sqlite3(run: Run, db_path: str, tmp_path: Path) -> None:
    import sqlite3

    other = sqlite3.connect(db_path)
    other.execute("CREATE TABLE t (a)")
    other.commit()
    other.close()
    assert "if dbm.sqlite3 made it" in run("stat", db_path).err
    result = run("migrate", db_path, tmp_path / "new.db")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "not one that dbm.sqlite3 or sqlitedict made" in result.err


def test_compact_of_a_compact_file_writes_nothing(run: Run, path: str, large: str) -> None:
    for file in (path, large):
        run("compact", file)
        before = state_of(file)
        result = run("compact", file)
        assert (result.status, result.out) == (0, b"")
        assert result.err.endswith(", already compact\n")
        assert state_of(file) == before


def test_a_new_small_file_does_not_grow_by_being_compacted(run: Run, path: str) -> None:
    size = os.path.getsize(path)
    assert "already compact" in run("compact", path).err
    assert os.path.getsize(path) == size


@pytest.mark.leaves_damage
def test_salvage_without_a_meta_page_is_a_no_since_small_changes_may_be_lost(run: Run, large: str) -> None:
    damage(large, page_id=0)
    damage(large, page_id=1)
    result = run("salvage", large, large + ".saved")
    assert result.status == 1
    assert "no meta page" in result.err


def test_salvage_of_an_empty_file_says_that_it_is_empty(run: Run, db_path: str) -> None:
    Path(db_path).touch()
    result = run("salvage", db_path, db_path + ".saved")
    assert result.status == 2
    assert "is empty" in result.err
    assert not os.path.exists(db_path + ".saved")


@pytest.mark.leaves_damage
def test_stat_survives_a_damaged_value(run: Run, db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db["big"] = b"x" * 50_000
        pages = db.stats().overflow_pages
    assert pages > 1
    content = Path(db_path).read_bytes()
    Path(db_path).write_bytes(content.replace(b"x" * 1000, b"y" * 1000, 1))
    result = run("stat", db_path)
    assert (result.status, result.err) == (0, "")
    assert "damaged" in result.text
    assert json.loads(run("stat", db_path, "--json").out)["damage"]


def test_a_failure_names_the_file_that_was_asked_for_and_not_a_temporary_one(run: Run, public: str) -> None:
    folder = os.path.dirname(public)
    run("dump", public, "/nonexistent/x")
    run("salvage", public, "/nonexistent/x")
    with as_nobody():
        for command in ("dump", "salvage", "backup"):
            target = os.path.join(folder, "target")
            result = run(command, public, target)
            assert result.status == 2
            assert result.err == (
                f"durabledbm {command}: {target}: permission denied: no file can be created in {folder}\n"
            )


def test_a_dump_as_text_that_cannot_be_says_what_can(run: Run, path: str) -> None:
    result = run("dump", path, "--codec", "text")
    assert result.status == 2
    assert "without --codec text" in result.err


def test_what_is_no_dump_is_not_only_called_damaged(run: Run, db_path: str, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("Dear reader,\n")
    result = run("load", db_path, tmp_path / "letter")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "neither a dump nor a log" in result.err
    assert not os.path.exists(db_path)


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_do_no_harm(path: str, closed: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m durabledbm"
    name = shlex.quote(path)
    line = f"{command} list {name} {closed} && {command} put {name} a b {closed} && {command} check -q {name} {closed}"
    done = subprocess.run(["sh", "-c", line], env=environment(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert content(path)[b"a"] == b"b"


def test_the_overview_fits_into_eighty_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = run("--help").text
    for command in all_commands():
        assert f"  {command.name:<11} {command.summary}\n" in text


# -- ends --------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_ends_the_command_quietly(large: str) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-m", "durabledbm", "list", large],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert writer.stdout is not None
    assert writer.stdout.readline().startswith(b"key0000\t")
    writer.stdout.close()
    assert writer.stderr is not None
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_a_failure(path: str) -> None:
    with open("/dev/full", "wb") as full:
        result = process("list", path, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert result.returncode == 2
    assert result.stderr.startswith(b"durabledbm: standard output: ")
    assert result.stderr.count(b"\n") == 1


@only_posix("Windows has Ctrl-C for consoles, not between processes")
def test_ctrl_c_ends_the_command_quietly_and_as_the_shell_expects(path: str) -> None:
    loader = subprocess.Popen(
        [sys.executable, "-c", LOAD_AND_SAY, path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert loader.stdin is not None
    assert loader.stdout is not None
    loader.stdin.write(b"P|new|1\n")
    loader.stdin.flush()
    assert loader.stdout.readline() == b"begun\n"
    loader.send_signal(signal.SIGINT)
    out, err = loader.communicate()
    assert (loader.returncode, out, err) == (-signal.SIGINT, b"", b"")
    assert content(path) == ENTRIES


LOAD_AND_SAY = """
import signal, sys, durabledbm.__main__, durabledbm.dump
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what runs in its background
load = durabledbm.dump.load
def say(*args, **options):
    print("begun", flush=True)
    return load(*args, **options)
durabledbm.dump.load = say
sys.argv = ["durabledbm", "load", sys.argv[1]]
durabledbm.__main__.main()
"""


CTRL_C_STATUS = 0xC000013A if WINDOWS else -signal.SIGINT
"""How a shell knows a program that Ctrl-C has ended."""


def test_ctrl_c_is_quiet_already_while_the_program_is_imported() -> None:
    code = """
        import sys, durabledbm.__main__
        class Interrupt:
            def find_spec(self, name, path=None, target=None):
                if name == "durabledbm.cli.command":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupt())
        durabledbm.__main__.main()
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, env=environment(), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (CTRL_C_STATUS, b"", b"")


@pytest.mark.parametrize("words", [("get", "none", "k"), ("nonsense",), ("exec", "none")])
def test_messages_that_nobody_reads_change_nothing(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process(*words, capture_output=False, stdout=subprocess.PIPE, stderr=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stdout) == (2, b"")


def test_ctrl_c_and_lost_output_have_their_statuses(run: Run, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for raised, status in (
        (KeyboardInterrupt(), 130),
        (OutputError(errno.EPIPE, "gone"), 141),
        (OutputError(errno.ENOSPC, "full"), 2),
    ):

        def fail(*_: object, raised: BaseException = raised) -> None:
            raise raised

        monkeypatch.setattr("durabledbm.cli.data.raw", fail)
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        result = run("get", path, "a")
        assert result.status == status
        assert result.err == ("durabledbm: standard output: full\n" if status == 2 else "")


def test_debug_shows_the_traceback(run: Run, db_path: str) -> None:
    for argv in (["--debug", "get", db_path, "x"], ["get", db_path, "x", "--debug"]):
        result = run(*argv)
        assert result.status == 2
        assert "Traceback" in result.err


def test_a_bug_is_one_line_that_asks_for_a_report(run: Run, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durabledbm.cli.data.dumps", None)
    result = run("get", path, "a", "--json")
    assert result.status == 2
    assert "bug in durabledbm" in result.err
    assert result.err.count("\n") == 1


# -- help --------------------------------------------------------------------------------------------

NAMES = [name for _, _, names in GROUPS for name in names]


def test_without_arguments_the_overview_is_shown_and_that_is_a_failure(run: Run) -> None:
    result = run()
    assert (result.status, result.out) == (2, b"")
    assert "durabledbm COMMAND" in result.err
    asked = run("--help")
    assert (asked.status, asked.err) == (0, "")
    assert asked.text == result.err


def test_the_version_is_told(run: Run) -> None:
    with_kernels = "with" if kernels.RUNNING else "without"
    version = f"durabledbm {durabledbm.__version__} (Python {sys.version.split()[0]}, {with_kernels} kernels)\n"
    assert run("--version").text == version


def test_the_module_is_the_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for argv, status in ((["--version"], 0), (["no-such-command"], 2)):
        monkeypatch.setattr(sys, "argv", ["durabledbm", *argv])
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("durabledbm", run_name="__main__")
        assert caught.value.code == status
    shown = capsys.readouterr()
    assert shown.out.startswith(f"durabledbm {durabledbm.__version__} ")
    assert "no-such-command" in shown.err


def test_a_command_that_does_not_exist_is_refused_with_a_guess(run: Run) -> None:
    result = run("lst", "x")
    assert (result.status, result.out) == (2, b"")
    assert result.err == "durabledbm: there is no command 'lst'; did you mean 'list'?\n"
    assert run("qqq").err.count("\n") == 1
    assert run("help", "qqq").status == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = find(name)
    assert command is not None
    text = run(name, "--help").text
    assert text == run("help", name).text
    assert all(len(line) <= 80 or "durabledbm" in line for line in text.splitlines())
    assert command.examples
    for entry in command.parser().entries:
        assert entry.names in text
        assert entry.help, entry.names
    assert f"  {name} " in run("--help").text


@pytest.mark.parametrize("name", NAMES)
def test_every_example_in_the_help_is_one_that_works(name: str) -> None:
    command = find(name)
    assert command is not None
    for line, _ in command.examples:
        own = re.search(rf"durabledbm {name}\b[^|>)]*", line)
        assert own is not None, line
        words = shlex.split(own[0].split(" || ")[0])
        command.parser().understand(words[2:])


def test_too_few_arguments_are_one_line(run: Run) -> None:
    result = run("get")
    assert result.status == 2
    assert result.err == "durabledbm get: FILE and KEY are missing; see 'durabledbm get --help'\n"


def test_the_reference_is_what_the_commands_say() -> None:
    written = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert written == markdown(), "write it anew: python -m durabledbm.cli.reference > docs/cli.md"
    for command in all_commands():
        assert f"### {command.name}\n" in written


# -- exec --------------------------------------------------------------------------------------------


def script(tmp_path: Path, code: str) -> str:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(code))
    return str(path)


def test_exec_runs_a_program_whose_dbm_and_shelve_are_ours(tmp_path: Path) -> None:
    code = """
        import dbm, shelve, sys
        with dbm.open(sys.argv[1], "c") as db: db["a"] = "b"
        with shelve.open(sys.argv[2]) as shelf: shelf["list"] = [1]
        print(__name__, sys.argv[3:])
        sys.exit(3)
    """
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    result = process("exec", script(tmp_path, code), one, two, "--json", "-h")
    assert (result.returncode, result.stdout.rstrip(), result.stderr) == (3, b"__main__ ['--json', '-h']", b"")
    assert content(one) == {b"a": b"b"}
    assert list(content(two)) == [b"list"]


def test_exec_shows_the_traceback_of_the_program_and_not_its_own(tmp_path: Path) -> None:
    result = process("exec", script(tmp_path, "def f(): 1 / 0\nf()\n"))
    assert result.returncode == 1
    assert b"ZeroDivisionError" in result.stderr
    assert b"durabledbm" not in result.stderr.replace(str(tmp_path).encode(), b"")


def test_exec_of_a_missing_program_is_one_line(tmp_path: Path) -> None:
    result = process("exec", tmp_path / "nothing.py")
    assert result.returncode == 2
    assert result.stderr.rstrip().endswith(b"nothing.py: no such file")
    assert result.stderr.count(b"\n") == 1


# -- completion --------------------------------------------------------------------------------------


def bash(words: list[str], directory: Path) -> list[str]:
    """What bash would offer for the last of the words."""
    program = directory / "durabledbm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m durabledbm "$@"\n')
    program.chmod(0o755)
    code = f"""
        source <(durabledbm completion bash)
        COMP_WORDS=({" ".join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}
        _durabledbm; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    env = environment(PATH=f"{directory}:{os.environ['PATH']}")
    result = subprocess.run(["bash", "-c", code], capture_output=True, check=True, env=env, cwd=directory)
    assert result.stderr == b""
    return sorted(result.stdout.decode().split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_choices_files_and_keys(path: str, tmp_path: Path) -> None:
    assert bash(["durabledbm", "co"], tmp_path) == ["compact", "completion"]
    assert bash(["durabledbm", "list", "--re"], tmp_path) == ["--reverse"]
    assert bash(["durabledbm", "inspect", "x", "--by", ""], tmp_path) == ["age", "fill", "kind"]
    assert bash(["durabledbm", "completion", ""], tmp_path) == ["bash", "fish", "zsh"]
    assert bash(["durabledbm", "stat", "te"], tmp_path) == ["test.db"]
    with durabledbm.open(path, "w") as db:
        db.update({"user:1": "x", "user:2": "y", "user 3": "z", "$(touch oops)": "!"})
    assert bash(["durabledbm", "get", "test.db", "user"], tmp_path) == ["user:1", "user:2"]
    assert bash(["durabledbm", "get", "test.db", ""], tmp_path) == ["a", "b", "user:1", "user:2"]
    assert bash(["durabledbm", "get", "test.db", "user", ":"], tmp_path) == ["1", "2"]
    assert bash(["durabledbm", "get", "test.db", "user", ":", "1"], tmp_path) == ["1"]
    assert bash(["durabledbm", "del", "test.db", "user", ":", "1", "us"], tmp_path) == ["user:1", "user:2"]
    assert not (tmp_path / "oops").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_every_command_and_are_understood_by_their_shell(
    run: Run, shell: str, tmp_path: Path
) -> None:
    text = run("completion", shell).text
    assert all(re.search(rf"\b{name}\b", text) for name in NAMES)
    if shutil.which(shell) is not None:
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


# -- the terminal ------------------------------------------------------------------------------------


Show = Callable[..., str]


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Show:
    """What a command line shows on a terminal 60 columns wide: standard output and error."""
    pty = pytest.importorskip("pty")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def show(*argv: object, stdin: bytes = b"") -> str:
        leader, follower = pty.openpty()
        shown: list[bytes] = []
        with ExitStack() as stack:
            streams = stack.enter_context(monkeypatch.context())
            for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
                stream = stack.enter_context(open(follower, mode, encoding="utf-8", closefd=False))
                streams.setattr(sys, name, stream)
            os.write(leader, stdin)
            reader = threading.Thread(target=read_all, args=(leader, shown))
            reader.start()
            main(list(map(str, argv)))
        os.close(follower)
        reader.join()
        os.close(leader)
        return b"".join(shown).decode()

    return show


def read_all(fd: int, into: list[bytes]) -> None:
    while True:
        try:
            piece = os.read(fd, 65536)
        except OSError:  # the terminal is gone with its last user
            return
        if not piece:
            return
        into.append(piece)


def test_on_a_terminal_values_are_shortened_to_its_width(on_terminal: Show, db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db["long"] = "x" * 10_000
        db["evil"] = b"\x1b]0;title\x07\x1b[2J"
    shown = on_terminal("list", db_path)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert all(len(line) <= 60 for line in plain.split("\r\n"))
    assert "x… (9.8 KiB)" in plain
    assert "\x1b]" not in shown
    assert "\\x1b]0;title\\x07" in plain
    assert "x" * 10_000 in on_terminal("list", db_path, "--full")


@pytest.mark.parametrize("text", ["\u65e5\u672c\u8a9e", "\xe4\xf6\xfc", "e\u0301", "\U0001f600x"])
def test_on_a_terminal_text_is_shortened_between_characters_and_by_columns(
    on_terminal: Show, db_path: str, text: str
) -> None:
    """Whatever byte the limit falls on, also if a value is so long that not all of it is looked at."""
    with durabledbm.open(db_path, "c") as db:
        for shift in range(4):
            db[str(shift)] = "x" * shift + text * 300
    plain = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal("list", db_path))
    assert "\\x" not in plain
    for line in plain.split("\r\n")[:-1]:
        assert 57 <= columns(line) <= 60
        assert line.split("  ", 1)[1].lstrip("x").startswith(text)


def test_on_a_terminal_get_shows_binary_values_with_escapes(on_terminal: Show, path: str) -> None:
    shown = on_terminal("get", path, "-e", r"c\xff")
    assert shown.startswith("\\x00\\xfe\r\n")
    assert "no plain text" in shown
    assert on_terminal("get", path, "a") == "1\r\n"


def test_on_a_terminal_objects_of_a_shelf_are_pointed_out(on_terminal: Show, shelf: str) -> None:
    assert "--pickle" in on_terminal("list", shelf)
    assert "a pickle" in on_terminal("get", shelf, "list")


def test_on_a_terminal_a_value_can_be_typed(on_terminal: Show, path: str) -> None:
    assert "Ctrl-D" in on_terminal("put", path, "typed", stdin=b"by hand\n\x04")
    assert content(path)[b"typed"] == b"by hand\n"


def test_on_a_terminal_a_load_without_a_source_is_refused(on_terminal: Show, path: str) -> None:
    assert "name a SOURCE" in on_terminal("load", path)


def test_on_a_terminal_a_binary_dump_is_refused(on_terminal: Show, path: str) -> None:
    assert "name a TARGET" in on_terminal("dump", path)


def test_colours_are_for_terminals_and_can_be_switched_off(
    on_terminal: Show, run: Run, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b[" in on_terminal("stat", path)
    assert "\x1b[" not in run("stat", path).text
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in run("stat", path).text


# -- imports -----------------------------------------------------------------------------------------


def test_importing_durabledbm_imports_neither_the_command_line_nor_what_it_needs() -> None:
    code = "import sys, durabledbm; print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment()).stdout
    modules = set(out.decode().split())
    unwanted = {"durabledbm.cli", "durabledbm.maintenance.inspect", "tqdm", "dbm", "shelve", "pickle"}
    assert not modules & unwanted


def test_tables(run: Run, db_path: str) -> None:
    assert run("put", db_path, "k", "main").status == 0
    assert run("put", db_path, "-t", "users", "ada", "Lovelace").status == 0
    assert run("put", db_path, "grace", "Hopper", "--table=users").status == 0
    assert run("tables", db_path).out == b"users\t2\n"
    assert json.loads(run("tables", db_path, "--json").out) == {"users": 2}
    assert run("get", db_path, "ada", "--table", "users").out == b"Lovelace"
    assert run("get", db_path, "ada").status == 1
    assert run("list", db_path, "--table", "users", "-k").out == b"ada\ngrace\n"
    assert run("list", db_path, "--table", "none").out == b""
    assert run("del", db_path, "ada", "--table", "users").status == 0
    assert run("del", db_path, "ada", "--table", "users").status == 1
    assert "1, with 1 entry besides" in run("stat", db_path).out.decode()
    assert run("inspect", db_path, "--key", "grace", "--table", "users").status == 0
    assert run("inspect", db_path, "--table", "users").status == 2
    assert run("list", db_path, "--table", "").status == 2


def test_checkpoints(run: Run, db_path: str, tmp_path: Path) -> None:
    run("put", db_path, "k", "1")
    run("put", db_path, "-t", "users", "ada", "x")
    assert run("checkpoint", db_path, "before").status == 0
    assert "already" in run("checkpoint", db_path, "before").err
    assert run("diff", db_path, "before").status == 0
    run("backup", db_path, tmp_path / "copy")
    run("put", db_path, "k", "2")
    run("put", db_path, "new", "3")
    run("del", db_path, "-t", "users", "ada")
    result = run("diff", db_path, "before")
    assert (result.status, result.out) == (1, b"~ k\t2\n+ new\t3\n- users: ada\n")
    assert run("diff", db_path, tmp_path / "copy").out == result.out
    assert json.loads(run("diff", db_path, "before", "--json").out.splitlines()[0]) == {
        "table": "", "key": "k", "old": "1", "new": "2",
    }  # fmt: skip
    assert run("diff", db_path, "none").status == 1
    assert run("restore-checkpoint", db_path, "none").status == 1
    assert run("restore-checkpoint", db_path, "before").status == 0
    assert run("list", db_path).out == b"k\t1\n"
    assert json.loads(run("checkpoints", db_path, "--json").out)["name"] == "before"
    assert b"1 checkpoint" in run("stat", db_path).out
    assert run("checkpoint", db_path, "before", "--replace").status == 0
    assert run("checkpoint", db_path, "before", "--drop").status == 0
    assert run("checkpoint", db_path, "before", "--drop").status == 1
    assert run("checkpoints", db_path).out == b""
