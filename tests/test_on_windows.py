"""What only Windows itself can show: who shares a file with whom, its names, its consoles, and programs that are ended
there. The engine's part for Windows runs everywhere, on a model: see `test_windows_disk`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from children import Child
from systems import WINDOWS

import durabledbm
from durabledbm._engine.disk import windows
from durabledbm._foreign.kinds import shell_word

if not WINDOWS:
    pytest.skip("for Windows", allow_module_level=True)

import ctypes

READ, WRITE, DELETE = 1, 2, 4
"""What others may do with a file that is open: FILE_SHARE_READ, _WRITE, _DELETE."""


@contextmanager
def opened_by_another(path: Path, share: int) -> Iterator[None]:
    """Another program, like a virus scanner, reads the file, and lets others do what `share` says meanwhile."""
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel32.CreateFileW.restype = ctypes.c_void_p
    handle = kernel32.CreateFileW(str(path), 0x80000000, share, None, 3, 0x80, None)
    assert handle not in (None, ctypes.c_void_p(-1).value), ctypes.get_last_error()
    try:
        yield
    finally:
        kernel32.CloseHandle(ctypes.c_void_p(handle))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with durabledbm.open(tmp_path / "db", "c") as db:
        db["key"] = "value"
    return tmp_path / "db"


# -- other programs ------------------------------------------------------------------------------------------------


def test_others_read_and_copy_a_file_that_is_being_written(path: Path, tmp_path: Path) -> None:
    """Locks are mandatory here: nobody could read bytes that are locked. Ours are beyond the end."""
    with durabledbm.open(path, "w") as db, db.transaction() as transaction, db.snapshot():
        transaction["other"] = "value"
        shutil.copyfile(path, tmp_path / "copy")
        assert path.read_bytes() == (tmp_path / "copy").read_bytes()
    with durabledbm.open(tmp_path / "copy") as copy:
        assert dict(copy) == {b"key": b"value"}


@pytest.mark.parametrize("share", [READ | WRITE, READ | WRITE | DELETE])
def test_a_file_that_others_read_and_share_is_used_as_ever(path: Path, share: int) -> None:
    with opened_by_another(path, share):
        with durabledbm.open(path, "w") as db:
            db.update({f"{number}": "v" * 1000 for number in range(100)})
            db.reorganize()
            db.clear()
        with durabledbm.open(path, "n") as db:
            db["new"] = "value"


@pytest.mark.parametrize("share", [0, READ])
def test_a_file_that_another_has_for_itself_is_an_error_after_a_second_at_most(
    path: Path, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_IN_USE_PATIENCE", 0.05)
    with opened_by_another(path, share), pytest.raises(durabledbm.error):
        durabledbm.open(path, "w")
    with durabledbm.open(path, "w") as db:
        assert dict(db) == {b"key": b"value"}


def test_a_file_that_another_had_for_itself_for_a_moment_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_IN_USE_PATIENCE", 60.0)
    let_go = threading.Event()

    def scan() -> None:
        with opened_by_another(path, 0):
            let_go.set()
            time.sleep(0.2)

    scanner = threading.Thread(target=scan)
    scanner.start()
    let_go.wait()
    with durabledbm.open(path, "w") as db:
        db["more"] = "value"
    scanner.join()


def test_a_copy_does_not_take_the_name_of_a_file_that_is_open(path: Path, tmp_path: Path) -> None:
    """The system refuses it: the copy fails, and leaves both files as they were and nothing beside them."""
    with durabledbm.open(tmp_path / "other", "c") as other, durabledbm.open(path) as db:
        other["old"] = "value"
        with pytest.raises(durabledbm.error):
            db.backup(tmp_path / "other")
        assert dict(other) == {b"old": b"value"}
    assert sorted(os.listdir(tmp_path)) == ["db", "other"]


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nul", "NUL", "con", "aux", "prn", "com1", "nul.db", "a?b", "a*b", "a<b", "a|b"])
def test_a_name_that_leads_to_no_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(durabledbm.error):
        durabledbm.open(tmp_path / name, "c")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
def test_a_stream_beside_the_content_of_a_file_is_refused(path: Path, flag: str) -> None:
    with pytest.raises(durabledbm.error, match="stream"):
        durabledbm.open(f"{path}:stream", flag)


def test_a_file_is_the_same_in_capitals_and_under_its_other_names(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file, so there is one writer lock, and a thread that would wait for itself is told so."""
    monkeypatch.chdir(path.parent)
    with (
        durabledbm.open(path, "w") as db,
        durabledbm.open("DB", "w") as shouting,
        durabledbm.open(".\\db", "w") as dotted,
    ):
        with db.transaction():
            for other in (shouting, dotted):
                with pytest.raises(durabledbm.BusyError, match="this thread"):
                    other["key"] = "other"
        shouting["key"] = "loud"
        assert db["key"] == dotted["key"] == b"loud"
        assert db.stats() is not None
    with pytest.raises(durabledbm.error, match="itself"), durabledbm.open(path) as db:
        db.backup("DB")


def test_a_path_of_more_than_260_characters(tmp_path: Path) -> None:
    """As far as Python itself can use it, which is a setting of the system."""
    deep = tmp_path
    while len(str(deep)) < 300:
        deep /= "d" * 50
    try:
        deep.mkdir(parents=True)
        (deep / "try").touch()
        os.path.realpath(deep / "copy")
    except OSError:
        pytest.skip("this Windows is not set up for long paths")
    with durabledbm.open(deep / "db", "c") as db:
        db["key"] = "value"
        db.backup(deep / "copy")
    with durabledbm.open(deep / "copy") as copy:
        assert dict(copy) == {b"key": b"value"}


# -- renamed and removed -------------------------------------------------------------------------------------------


def test_a_file_that_was_renamed_while_it_was_open_is_told_from_a_new_one_of_its_name(path: Path) -> None:
    with durabledbm.open(path, "w") as db:
        os.rename(path, path.with_name("moved"))
        with pytest.raises(durabledbm.error, match="moved or removed"):
            db["lost"] = "value"
        with durabledbm.open(path, "c") as fresh:
            fresh["new"] = "value"
        with pytest.raises(durabledbm.error, match="moved or removed"):
            db["lost"] = "value"
    with durabledbm.open(path.with_name("moved")) as moved:
        assert dict(moved) == {b"key": b"value"}


# -- consoles and streams ------------------------------------------------------------------------------------------


def command(*arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "durabledbm", *arguments], input=given, stdout=subprocess.PIPE, check=True
    )
    return done.stdout


def test_values_pass_through_the_command_line_byte_by_byte(path: Path) -> None:
    """No line end is translated, and Ctrl-Z is no end of file."""
    value = b"a\nb\r\nc\x1ad\0e\xff"
    command("put", str(path), "key", given=value)
    assert command("get", str(path), "key") == value
    with durabledbm.open(path) as db:
        assert db["key"] == value


def test_what_is_printed_is_utf8_whatever_the_code_page_is(path: Path) -> None:
    with durabledbm.open(path, "w") as db:
        db.clear()
        db["größe"] = "\N{SNOWMAN}"
    assert "größe" in command("list", str(path)).decode()


WORKER = """
import signal, sys, durabledbm
db = durabledbm.open(sys.argv[1], "c", durability="manual")
def work(*_):
    print("at work", flush=True)
    sys.stdin.read()
db.update({b"%06d" % key: b"x" for key in range(3000)})
db.sync()
db.backup(sys.argv[1] + ".copy", progress=work)
"""


def test_ctrl_break_removes_temporary_files(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"at work"
        assert len(os.listdir(path.parent)) == 2
        try:
            process.send_signal(signal.CTRL_BREAK_EVENT)
        except (OSError, SystemError):  # the second is how Python reports the first
            process.kill()
            pytest.skip("there is no console here, and so no keys")
        process.wait(60)
    assert os.listdir(path.parent) == ["db"]


# -- programs that are ended ---------------------------------------------------------------------------------------


def test_a_program_that_is_ended_leaves_no_lock(path: Path) -> None:
    with durabledbm.open(path, "w", timeout=30) as db:
        for _ in range(5):
            with Child("hold_transaction", str(path), "k", {}) as writer, Child("hold_snapshot", str(path)) as reader:
                writer.hear("holding")
                reader.hear("pinned")
                writer.kill()
                reader.kill()
            db["key"] = "value"
            assert db.stats().oldest_snapshot is None
        assert dict(db) == {b"key": b"value"}


@pytest.mark.parametrize("name", ["plain", "C:\\folder\\db", "a b", "a&b", "a'b", "100%", "(1)", "^", "größe", "-x"])
def test_a_name_is_a_word_of_a_command_line(name: str) -> None:
    code = "import sys; sys.stdout.buffer.write(ascii(sys.argv[1]).encode())"
    line = f'"{sys.executable}" -c "{code}" {shell_word(name)}'
    said = subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert said == ascii(name if not name.startswith("-") else ".\\" + name)
    assert " " not in shell_word(name) or shell_word(name) == f'"{name}"'
