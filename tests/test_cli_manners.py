"""What a command does with what it was not asked for: files that are there, words that make no sense, other writers.

The commands themselves are tested in `test_cli`.
"""

from __future__ import annotations

import dbm.dumb
import errno
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import HAS_SYMLINKS, TELLS_HOLDERS, WINDOWS, needs_symlinks, only_posix

import durabledbm
import durabledbm.cli.opening
from durabledbm._engine.disk import FileDisk
from durabledbm._engine.locks import _seconds
from durabledbm.cli.app import all_commands, main
from durabledbm.cli.command import help_width
from durabledbm.cli.faults import explain
from durabledbm.cli.text import beginning, columns, shorten

ROOT = Path(__file__).parent.parent

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process: its status, and what it wrote to standard output and to standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main([str(word) for word in argv])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a database `n` and a sharded one, `shards`."""
    monkeypatch.chdir(tmp_path)
    with durabledbm.open("n", "c") as db:
        db["k"] = "v"
    with durabledbm.open_sharded("shards", "c", shards=2) as sharded:
        sharded["k"] = "v"
    return tmp_path


WRITING = [
    ["dump", "F", "T"], ["dump", "F", "T", "--codec", "text"], ["get", "F", "k", "-o", "T"], ["backup", "F", "T"],
    ["inspect", "F", "--svg", "T"], ["inspect", "F", "--html", "T"],
]  # fmt: skip
"""Commands that read the database F and write the file T."""


def with_names(words: list[str], file: str, target: str) -> list[str]:
    return [{"F": file, "T": target}.get(word, word) for word in words]


# -- files that are there ----------------------------------------------------------------------------


CREATING = [
    ["salvage", "F", "T"], ["load", "T", "F"], ["load", "T", "dump"], ["migrate", "old", "T"], ["put", "T", "a", "b"],
]  # fmt: skip
"""Commands that create the file T."""


@only_posix("the system strips the end of such a name")
@pytest.mark.parametrize("target", ["new/", "new/.", "f/", "missing/../new", "f/../new"])
@pytest.mark.parametrize("words", [*WRITING, *CREATING], ids=" ".join)
def test_a_name_that_no_file_can_have_is_not_changed_into_one(
    run: Run, place: Path, words: list[str], target: str
) -> None:
    Path("f").write_text("other")
    with dbm.dumb.open("old", "n") as old:
        old["k"] = "v"
    run("dump", "n", "dump")
    before = sorted(os.listdir())
    status, out, err = run(*with_names(words, "n", target))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert target in err
    assert sorted(os.listdir()) == before
    assert Path("f").read_text() == "other"


@pytest.mark.parametrize("words", [*WRITING, ["salvage", "F", "T"]], ids=" ".join)
def test_no_command_overwrites_its_own_database_under_any_name(run: Run, place: Path, words: list[str]) -> None:
    (os.symlink if HAS_SYMLINKS else os.link)("n", "alias")
    os.link("n", "twin")
    os.mkdir("sub")
    before = Path("n").read_bytes()
    for file, target in (("n", "n"), ("n", "./n"), ("n", "alias"), ("alias", "n"), ("n", "twin"), ("n", "sub/../n")):
        for force in ([], ["--force"] if words[0] != "salvage" else []):
            status, out, err = run(*with_names(words, file, target), *force)
            assert (status, out, err.count("\n")) == (2, "", 1), err
            assert words[0] == "salvage" or "is the database itself" in err
            assert Path("n").read_bytes() == before
            assert os.path.islink("alias")


@pytest.mark.parametrize("words", WRITING[:4], ids=" ".join)
def test_no_command_overwrites_a_shard_of_its_own_database(run: Run, place: Path, words: list[str]) -> None:
    for shard in Path("shards").iterdir():
        before = shard.read_bytes()
        assert run(*with_names(words, "shards", str(shard)), "--force")[0] == 2
        assert shard.read_bytes() == before


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
def test_another_file_is_replaced_only_if_that_is_forced(run: Run, place: Path, words: list[str]) -> None:
    target = Path("other")
    target.write_text("precious")
    status, out, err = run(*with_names(words, "n", "other"))
    assert (status, out) == (2, "")
    assert err.startswith(f"durabledbm {words[0]}: other: exists already")
    assert "--force" in err
    assert err.count("\n") == 1
    assert target.read_text() == "precious"
    assert run(*with_names(words, "n", "other"), "--force")[0] == 0
    assert target.read_bytes() != b"precious"


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
def test_a_directory_is_not_replaced_and_what_is_made_has_the_databases_permissions(
    run: Run, place: Path, words: list[str]
) -> None:
    os.chmod("n", 0o600)
    status, _, err = run(*with_names(words, "n", "shards"), "--force")
    assert status == 2
    assert "directory" in err
    assert run(*with_names(words, "n", "new"))[0] == 0
    assert WINDOWS or stat.S_IMODE(os.stat("new").st_mode) == 0o600


def test_a_device_is_written_to_and_stays_what_it_is(run: Run, place: Path) -> None:
    before = os.stat(os.devnull)
    for words in WRITING:
        status, _, err = run(*with_names(words, "n", os.devnull))
        assert status == 0 or (words[0] == "backup" and "not a regular file" in err), err
    after = os.stat(os.devnull)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_a_value_that_cannot_be_saved_leaves_no_file(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_full_disk(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FileDisk, "write", on_a_full_disk)
    before = os.listdir(place)
    status, _, err = run("get", "n", "k", "-o", "new")
    assert status == 2
    assert err.startswith("durabledbm get: new: no space left")
    assert os.listdir(place) == before


# -- words that make no sense ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("put n -k v", "there is no option '-k' (before a key or value that begins with a hyphen, write --)"),
        ("put n --kex v", "write --)"),
        ("list n --prefx a", "there is no option '--prefx'; did you mean '--prefix'?"),
        ("check -n", "there is no option '-n'"),
        ("list n --prefix", "--prefix"),
        ("list n -n x", "'x' is not a number"),
        ("list n --keys=3", "--keys"),
        ("get n", "KEY is missing"),
        ("put", "FILE and KEY are missing"),
        ("del n", "KEY is missing"),
        ("get n a b 'c d'", "there are too many arguments: b 'c d'"),
        ("completion sh", "'sh' is not one of bash, zsh, fish"),
        ("exec", "PROGRAM is missing"),
        ("exec --time 3 x.py", "there is no option '--time'; did you mean '--timeout'?"),
        ("lisst n", "did you mean 'list'?"),
        ("-x", "there is no command '-x'"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_one_line_with_a_hint(run: Run, place: Path, line: str, said: str) -> None:
    status, out, err = run(*shlex.split(line))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_before_a_file_that_begins_with_a_hyphen_two_are_asked_for(run: Run, place: Path) -> None:
    os.link("n", "-rf")
    assert "before a file whose name begins with a hyphen, write --" in run("check", "-rf")[2]
    assert run("check", "--", "-rf") == (0, "-rf: sound, 1 entry, every page of 8 KiB verified\n", "")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("put n -- -k v", "-k"), ("put -- n -k v", "-k"), ("put n -5 v", "-5"), ("put n -1.5 v", "-1.5"),
        ("put n --timeout 3 - v", "-"), ("put n -- -- v", "--"), ("put --timeout=3 n x v", "x"), ("put n '' v", ""),
    ],
)  # fmt: skip
def test_words_that_begin_with_a_hyphen_can_be_keys(run: Run, place: Path, line: str, key: str) -> None:
    assert run(*shlex.split(line)) == (0, "", "")
    with durabledbm.open("n") as db:
        assert db[key] == b"v"


@pytest.mark.parametrize("line", ["list -kn3 n", "list n -k -n 3", "list -k --limit=3 n", "list -rkn 3 n"])
def test_options_may_stand_anywhere_and_together(run: Run, place: Path, line: str) -> None:
    assert run(*line.split()) == (0, "k\n", "")


def test_a_value_of_an_option_may_begin_with_a_hyphen(run: Run, place: Path) -> None:
    assert run("put", "n", "--", "-x1", "v")[0] == 0
    for words in (["--prefix", "-x"], ["--prefix=-x"]):
        assert run("list", "n", "-k", *words) == (0, "-x1\n", "")
    assert run("list", "n", "-k", "--prefix", "") == (0, "-x1\nk\n", "")


@pytest.mark.parametrize("width", [10, 60, 80])
def test_no_help_cuts_a_word(run: Run, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    overview = run("--help")[1]
    for command in all_commands():
        assert command.summary.split()[-1] in overview.split()
    for text in (overview, *(command.parser().format_help() for command in all_commands())):
        prose = [line for line in text.splitlines() if "durabledbm" not in line]
        assert max(map(len, prose)) <= help_width() + 6


# -- other writers -----------------------------------------------------------------------------------


@contextmanager
def writing(*paths: str) -> Iterator[int]:
    """Another process is inside of a transaction; its number."""
    code = (
        "import sys, durabledbm\n"
        "open_ = lambda path: durabledbm.open_sharded(path, 'w').transaction('k') if path == 'shards' else "
        "durabledbm.open(path, 'w').transaction()\n"
        "for path in sys.argv[1:]: transaction = open_(path); transaction.__enter__()\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, *paths]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate()


@pytest.mark.skipif(not TELLS_HOLDERS, reason="the system does not tell who has a file open")
@pytest.mark.parametrize("path", ["n", "shards"])
def test_whoever_waits_is_told_for_whom(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(durabledbm.cli.opening, "_SILENT", 0.01)
    with writing(path) as pid:
        status, out, err = run("put", path, "k", "v", "--timeout", "0.3")
        assert (status, out) == (2, "")
        told, failed = err.splitlines()
        assert told.startswith(f"{path}: process {pid} (")
        assert told.endswith(" is writing to it; waiting for at most 0.3 seconds")
        assert f"process {pid} (" in failed
        assert "not done within 0.3 seconds; wait" in failed
    assert (_seconds(1.0), _seconds(1.5)) == ("1 second", "1.5 seconds")


def test_whoever_need_not_wait_is_told_nothing(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of its own lock either."""
    monkeypatch.setattr(durabledbm.cli.opening, "_SILENT", 0.001)
    for words in (["put", "n", "k", "v"], ["put", "shards", "k", "v"], ["del", "n", "k"]):
        assert run(*words) == (0, "", "")


def test_a_key_that_is_not_there_is_not_deleted_and_not_waited_for(run: Run, place: Path) -> None:
    Path("empty").touch()
    assert run("del", "empty", "a", "b") == (1, "", "durabledbm del: empty: there is no key 'a', 'b'\n")
    assert os.path.getsize("empty") == 0
    before = Path("n").read_bytes()
    with writing("n"):
        assert run("del", "n", "x") == (1, "", "durabledbm del: n: there is no key 'x'\n")
    assert Path("n").read_bytes() == before
    assert run("del", "n", "x", "k") == (1, "", "durabledbm del: n: there is no key 'x'; the others were deleted\n")


@only_posix("Windows has no such names")
@pytest.mark.parametrize("name", ["pipe", "/dev/null"])
@pytest.mark.parametrize("words", ["compact F", "salvage F T", "check F", "stat F", "migrate F T"])
def test_pipes_and_devices_are_no_empty_files(run: Run, place: Path, words: str, name: str) -> None:
    os.mkfifo("pipe")
    status, out, err = run(*with_names(words.split(), name, "new"))
    assert (status, out) == (2, "")
    assert err == f"durabledbm {words.partition(' ')[0]}: {name}: not a regular file\n"


GUARD = """
import fcntl, sys
with open("n", "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""


@only_posix("Windows does not tell who has locked a file")
def test_a_program_that_has_locked_the_file_is_named_and_no_option_that_is_not_there(run: Run, place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GUARD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        for words in ("stat n", "list n", "check n", "backup n copy", "put n a b --timeout 0.1"):
            status, _, err = run(*words.split())
            assert status == 2
            assert f"n: process {process.pid} (" in err
            assert ") has locked the file, with lockf() or fcntl()" in err
            assert ("--timeout" in err) is ("--timeout" in words)
        process.communicate()


# -- several files, and names ------------------------------------------------------------------------


@pytest.mark.leaves_damage
def test_check_takes_several_files_and_answers_with_the_worst(run: Run, place: Path) -> None:
    with durabledbm.open("bad", "c") as db:
        db.update({str(number): "x" * 100 for number in range(1000)})
    with open("bad", "r+b") as file:
        file.seek(3 * 4096)
        file.write(b"damage")
    status, out, err = run("check", "n", "bad", "shards")
    assert status == 1
    assert [line.split(":")[0] for line in out.splitlines()][::len(out.splitlines()) - 1] == ["n", "shards"]
    assert "bad: " in out
    assert err == "bad: 'durabledbm salvage bad NEW' saves what is readable\n"
    status, out, err = run("check", "missing", "bad", "n")
    assert status == 2
    assert "n: sound" in out
    assert err.splitlines()[0] == "durabledbm check: missing: no such file"
    assert run("check", "-q", "n", "bad") == (1, "", "")
    assert run("check", "-q", "n", "shards") == (0, "", "")


@needs_symlinks
def test_a_name_stands_once_in_an_error_and_as_it_was_given(run: Run, place: Path, tmp_path: Path) -> None:
    os.mkdir("real")
    os.symlink("real", "linked")
    (tmp_path / "real" / "x").write_text("something else")
    for command in (["get", "linked/x", "k"], ["check", "./real/../linked/x"], ["load", "m", "linked/x"]):
        name = command[2] if command[0] == "load" else command[1]
        err = run(*command)[2]
        assert err.startswith(f"durabledbm {command[0]}: {name}: ")
        assert err.count("x: ") == 1
    assert run("salvage", "real", "new")[2] == "durabledbm salvage: real: a directory, not a database file\n"
    assert run("get", "", "k")[2] == "durabledbm get: the name of the file is empty\n"
    assert run("load", "nowhere/new", "n.dump")[2] == "durabledbm load: nowhere/new: there is no directory nowhere\n"
    unfinished = durabledbm.error(errno.EACCES, "Permission denied", f"{tmp_path}/.durabledbm-0123.tmp")
    assert explain(unfinished, "load", ["new", "n.dump"]).startswith("new: permission denied: no file can be created")


def test_a_name_in_a_hint_is_a_word_of_a_command_line(run: Run, place: Path) -> None:
    assert f"'durabledbm put .{os.sep}-x KEY VALUE'" in run("get", "--", "-x", "k")[2]
    name = '"a b"' if WINDOWS else "'a b'"
    assert f"'durabledbm put {name} KEY VALUE'" in run("get", "a b", "k")[2]


@only_posix("no name has control characters there")
def test_names_of_files_move_no_cursor(run: Run, place: Path) -> None:
    evil = "new\nline\x1b[31m\x9b"
    os.rename("n", evil)
    Path("dump").write_text("P|a|b\n")
    for words in (
        ["check", evil], ["stat", evil], ["inspect", evil], ["compact", evil], ["load", evil, "dump"],
        ["get", evil, "x"], ["check", evil + "1"], ["backup", evil, evil + "2"], ["dump", evil, evil + "3"],
        ["salvage", evil, evil + "4"], ["inspect", evil, "--svg", evil + "5"], ["load", evil + "6", "dump"],
        ["export", evil, evil + "7", "--to", "dbm.dumb"],
    ):  # fmt: skip
        _, out, err = run(*words)
        for line in (out + err).split("\n"):
            assert line.isprintable(), (words, line)
            assert not line.startswith("line"), (words, line)


@pytest.mark.skipif(os.name == "nt", reason="permissions of directories")
def test_a_directory_that_may_not_be_entered_is_told(run: Run, place: Path) -> None:
    os.mkdir("private", 0o700)
    os.rename("n", "private/n")
    if os.getuid() == 0:
        os.chmod(place, 0o755)
        os.seteuid(65534)
    else:
        os.chmod("private", 0)
    try:
        said = explain(PermissionError(errno.EACCES, "Permission denied", "private/n"), "get", ["private/n"])
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        os.chmod("private", 0o700)
    assert said == "private/n: permission denied: you may not enter the directory private"


def test_a_write_through_a_handle_that_only_reads_names_the_file(place: Path) -> None:
    with durabledbm.open("n") as db, pytest.raises(durabledbm.ReadOnlyError, match=r"n: .* opened for reading only"):
        db["k"] = "v"
    with durabledbm.open_sharded("shards") as db2, pytest.raises(durabledbm.ReadOnlyError, match=r"shards: .*reading"):
        db2.popitem()


# -- columns -----------------------------------------------------------------------------------------


@given(st.text(), st.integers(1, 30))
def test_what_is_shortened_fits_and_is_a_beginning(text: str, width: int) -> None:
    short = shorten(text, width)
    assert columns(short) <= width
    assert short == text or (text.startswith(short[:-1]) and columns(text) > width)
    assert shorten(text, width, cut=True)[-1] == "\N{HORIZONTAL ELLIPSIS}"


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert columns("abc") == 3
    assert columns("\u65e5\u672c") == 4
    assert columns("e\u0301") == 1
    assert shorten("\u65e5\u672c\u8a9e", 4) == "\u65e5\N{HORIZONTAL ELLIPSIS}"


@given(st.text(), st.integers(0, 20))
def test_no_character_is_cut_in_two(text: str, size: int) -> None:
    data = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    part = beginning(data, size)
    assert data.startswith(part)
    assert part.decode("utf-8") is not None
    assert min(size, len(data)) - len(part) < 4


@given(st.binary(), st.integers(0, 20))
def test_bytes_that_are_no_text_are_cut_anywhere(data: bytes, size: int) -> None:
    part = beginning(data, size)
    assert data.startswith(part)
    assert min(size, len(data)) - len(part) < 4
