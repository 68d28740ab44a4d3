"""Temporary files: their names, who may have planted them, and that none stays behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from systems import (
    KILL,
    WINDOWS,
    needs_fork,
    needs_immediate_removal,
    needs_mode,
    needs_root,
    needs_symlinks,
    only_posix,
)

from durabledbm._files import temporary
from durabledbm._files.temporary import new_directory, new_file, sweep, take_owner

MAKERS = {"file": new_file, "directory": new_directory}

CHILD = """
import os, signal, sys, time
from durabledbm._files.temporary import new_directory, new_file
made = [new_file("target"), new_directory("target")]
open(os.path.join(made[1].path, "inside"), "w").close()
os.mkdir(os.path.join(made[1].path, "folder"))
open(os.path.join(made[1].path, "folder", "deep"), "w").close()
"""


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def child(directory: Path, code: str, *, wait: bool = True) -> subprocess.Popen[str]:
    """Start a process that makes a temporary file and a directory, then runs `code`; come back when it says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD + code], cwd=directory, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))},
    )  # fmt: skip
    if wait:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    return process


READY = "print('ready', flush=True); "
SLEEP = READY + "any(time.sleep(0.01) for _ in range(6000))"
"""Not one long call: a signal that comes just before a system call is handled after it."""


def end(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    return process.wait(30)


@pytest.mark.parametrize("maker", MAKERS)
def test_it_stands_beside_its_target_and_goes_with_the_block(tmp_path: Path, maker: str) -> None:
    with MAKERS[maker](str(tmp_path / "target")) as made:
        assert os.path.dirname(made.path) == str(tmp_path)
        assert names(tmp_path) == [os.path.basename(made.path)]
        assert WINDOWS or stat.S_IMODE(os.stat(made.path).st_mode) & 0o077 == 0
    assert names(tmp_path) == []
    made.remove()


@pytest.mark.parametrize("maker", MAKERS)
def test_a_name_of_255_bytes_has_room_for_one(tmp_path: Path, maker: str) -> None:
    target = tmp_path / ("x" * 255)
    target.touch()
    with MAKERS[maker](str(target)):
        assert len(names(tmp_path)) == 2


def test_what_was_renamed_or_linked_is_kept(tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    with new_file(target) as renamed:
        os.rename(renamed.path, target)
    with new_file(target) as linked:
        os.link(linked.path, target + "2")
    assert names(tmp_path) == ["target", "target2"]


@needs_symlinks
@pytest.mark.parametrize("maker", MAKERS)
def test_a_planted_link_is_not_followed(tmp_path: Path, maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by someone who knew the random name."""
    (tmp_path / "victim").write_text("precious")
    planted = tmp_path / f".durabledbm-{'0' * 16}.tmp"
    monkeypatch.setattr(temporary, "temporary_name", lambda target: str(planted))
    planted.symlink_to("victim")
    with pytest.raises(FileExistsError):
        MAKERS[maker](str(tmp_path / "target"))
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_sweep_removes_what_a_killed_process_left_and_nothing_that_is_in_use(tmp_path: Path) -> None:
    living = child(tmp_path, SLEEP)
    try:
        in_use = names(tmp_path)
        dead = child(tmp_path, READY + f"os.kill(os.getpid(), {KILL:d})")
        end(dead)
        assert len(names(tmp_path)) == 4
        sweep(str(tmp_path / "another target"))
        assert names(tmp_path) == in_use
    finally:
        living.kill()
        end(living)
    with new_file(str(tmp_path / "target")) as made:
        assert names(tmp_path) == [os.path.basename(made.path)]


@needs_symlinks
def test_a_sweep_leaves_alone_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("precious")
    hexadecimal = "0123456789abcde"
    os.symlink("victim", tmp_path / f".durabledbm-{hexadecimal}0.tmp")
    os.symlink("victim/file", tmp_path / f".durabledbm-{hexadecimal}1.tmp")
    if not WINDOWS:
        os.mkfifo(tmp_path / f".durabledbm-{hexadecimal}2.tmp")
    (tmp_path / f".durabledbm-{hexadecimal}3").touch()
    (tmp_path / ".durabledbm-short.tmp").touch()
    (tmp_path / f".durabledbm-{hexadecimal}4.tmp").mkdir()
    (tmp_path / f".durabledbm-{hexadecimal}4.tmp" / "made without a lock").touch()
    before = names(tmp_path)
    sweep(str(tmp_path / "target"))
    assert names(tmp_path) == before
    assert (tmp_path / "victim" / "file").read_text() == "precious"


def test_what_links_lead_to_stays_when_a_directory_is_removed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    with new_directory(str(tmp_path / "target")) as made:
        deep = Path(made.path) / "a" / "b"
        deep.mkdir(parents=True)
        (deep / "link").symlink_to(victim)
        (deep / "file").hardlink_to(victim / "file")
        (Path(made.path) / "link").symlink_to(victim)
    assert names(tmp_path) == ["victim"]
    assert (victim / "file").read_text() == "precious"


@pytest.mark.parametrize("maker", MAKERS)
def test_a_directory_that_was_exchanged_for_a_link_is_not_emptied(tmp_path: Path, maker: str) -> None:
    """Whoever may write the directory around it may do that at any moment."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    with MAKERS[maker](str(tmp_path / "target")) as made:
        os.rename(made.path, tmp_path / "moved")
        os.symlink(victim, made.path)
    assert (victim / "file").read_text() == "precious"


@needs_root
@pytest.mark.parametrize("maker", MAKERS)
def test_a_sweep_leaves_alone_what_other_users_left(tmp_path: Path, maker: str) -> None:
    made = MAKERS[maker](str(tmp_path / "target"))
    kept = made.path
    os.rename(kept, tmp_path / "kept")
    made.remove()
    os.rename(tmp_path / "kept", kept)
    os.chown(kept, 65534, 65534)
    sweep(str(tmp_path / "target"))
    assert names(tmp_path) == [os.path.basename(kept)]
    os.chown(kept, os.geteuid(), os.getegid())
    sweep(str(tmp_path / "target"))
    assert names(tmp_path) == []


def test_where_locks_pretend_or_fail_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end(child(tmp_path, READY + f"os.kill(os.getpid(), {KILL:d})"))
    before = names(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(temporary.FileDisk, "lowest_lock", lambda *_: None)
        sweep(str(tmp_path / "target"))
        assert names(tmp_path) == before

    def refuse(*args: object, **options: object) -> bool:
        raise OSError(37, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(temporary.FileDisk, "lock", refuse)
        with new_file(str(tmp_path / "target")):
            assert len(names(tmp_path)) == len(before) + 1
    sweep(str(tmp_path / "target"))
    assert names(tmp_path) == []


@needs_immediate_removal
@pytest.mark.parametrize("maker", MAKERS)
def test_what_a_sweep_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, maker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep of another process comes between creating and locking, several times."""
    lock = temporary._lock
    swept = 0

    def late(disk: temporary.Disk, *, exclusive: bool = True) -> bool:
        nonlocal swept
        if exclusive and swept < 3:
            swept += 1
            with monkeypatch.context() as patch:
                patch.setattr(temporary, "_living", {})
                sweep(str(tmp_path / "target"))
            assert names(tmp_path) == []
        return lock(disk, exclusive=exclusive)

    monkeypatch.setattr(temporary, "_lock", late)
    with MAKERS[maker](str(tmp_path / "target")) as made:
        assert swept == 3
        assert names(tmp_path) == [os.path.basename(made.path)]


@only_posix("Windows has no signals between processes")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_the_process_removes_them(tmp_path: Path, number: str) -> None:
    process = child(tmp_path, SLEEP)
    assert len(names(tmp_path)) == 2
    process.send_signal(signal.Signals[number])
    assert end(process) == -signal.Signals[number]
    assert names(tmp_path) == []


@only_posix("Windows has no signals between processes")
def test_a_program_keeps_its_own_handlers(tmp_path: Path) -> None:
    code = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
for temporary in made: temporary.remove()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
signal.signal(signal.SIGTERM, lambda *_: (print(len(os.listdir())), os._exit(7)))
made = new_file("target")
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
"""
    process = child(tmp_path, code + SLEEP)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    assert end(process) == 7


@pytest.mark.parametrize("code", ["sys.exit(1)", "made = None", "raise KeyboardInterrupt"])
def test_the_end_of_the_interpreter_removes_them(tmp_path: Path, code: str) -> None:
    process = child(tmp_path, READY + f"sys.stderr = open(os.devnull, 'w'); {code}")
    end(process)
    assert names(tmp_path) == []


@needs_fork
def test_a_forked_child_leaves_them_to_its_parent(tmp_path: Path) -> None:
    code = """
pid = os.fork()
if not pid:
    for temporary in made: temporary.remove()
    os.kill(os.getpid(), signal.SIGTERM)
assert os.waitpid(pid, 0)[1] == signal.SIGTERM
if not os.fork():
    sys.exit()
os.wait()
child = os.fork()
if not child:
    print("child", os.getpid(), flush=True)
time.sleep(60)
"""
    process = child(tmp_path, code, wait=False)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline().split()[1])
    try:
        assert len(names(tmp_path)) == 2
        process.kill()
        process.wait(30)
        sweep(str(tmp_path / "target"))  # although the child lives, which got copies of the open files
        assert names(tmp_path) == []
    finally:
        os.kill(grandchild, signal.SIGKILL)
        end(process)


def test_another_thread_can_make_and_remove_them(tmp_path: Path) -> None:
    def work() -> None:
        with new_file(str(tmp_path / "target")):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert names(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_missing_or_closed_directory_is_what_the_system_says(tmp_path: Path) -> None:
    for make in MAKERS.values():
        with pytest.raises(FileNotFoundError):
            make(str(tmp_path / "nowhere" / "target"))
    sweep(str(tmp_path / "nowhere" / "target"))


# -- owner, group, permissions ---------------------------------------------------------------------------------------


@needs_mode
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444, 0o400])
def test_a_file_has_exactly_the_permissions_of_another(tmp_path: Path, mode: int) -> None:
    (tmp_path / "source").touch()
    os.chmod(tmp_path / "source", mode)
    umask = os.umask(0o077)
    try:
        with new_file(str(tmp_path / "target"), like=os.stat(tmp_path / "source")) as made:
            assert stat.S_IMODE(os.stat(made.path).st_mode) == mode
    finally:
        os.umask(umask)


@needs_root
def test_a_file_has_the_owner_and_group_of_another(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    os.chown(tmp_path / "source", 65534, 65533)
    with new_file(str(tmp_path / "target"), like=os.stat(tmp_path / "source")) as made:
        status = os.stat(made.path)
        assert (status.st_uid, status.st_gid) == (65534, 65533)


@needs_mode
def test_another_group_does_not_get_the_permissions_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.touch()
    os.chmod(source, 0o664)
    status = list(os.stat(source))
    status[stat.ST_GID] += 1

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    with source.open("rb") as file:
        take_owner(file.fileno(), os.stat_result(status))
    assert stat.S_IMODE(os.stat(source).st_mode) == 0o644
