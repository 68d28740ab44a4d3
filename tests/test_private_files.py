"""What is made from a database is as private as that, what replaces a file stays its owner's, no kill leaves traces."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import open_directory, unprivileged
from systems import ENDINGS, KILL, WINDOWS, needs_mode, needs_root, only_posix

import durabledbm
from durabledbm.changelog import ChangeLog
from durabledbm.cli.app import main
from durabledbm.dump import dump
from durabledbm.restore import restore
from durabledbm.salvage import salvage

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _common_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def make(path: Path, mode: int) -> None:
    with durabledbm.open(path, "c") as db:
        db["key"] = "value"
    path.chmod(mode)


def backed_up(path: Path, target: Path) -> None:
    with durabledbm.open(path) as db:
        db.backup(target)


def dumped(path: Path, target: Path) -> None:
    with durabledbm.open(path) as db:
        dump(db, target)


def dumped_from_a_snapshot(path: Path, target: Path) -> None:
    with durabledbm.open(path) as db, db.snapshot() as snapshot:
        dump(snapshot, target)


def dumped_into_a_directory(path: Path, target: Path) -> None:
    with durabledbm.open(path) as db:
        dump(db, target, max_file_size=4096)


def logged(path: Path, target: Path) -> None:
    with (
        durabledbm.open(path, "w") as db,
        ChangeLog(target, max_file_size=4096) as log,
        db.attach(log),
    ):
        for number in range(20):
            db[str(number)] = "x" * 1000
    assert len(os.listdir(target)) > 1


def restored(path: Path, target: Path) -> None:
    restore(target, path)


def pictured(path: Path, target: Path) -> None:
    assert main(["inspect", str(path), "--svg", str(target), "--force"]) == 0


def explorable(path: Path, target: Path) -> None:
    assert main(["inspect", str(path), "--html", str(target), "--force"]) == 0


def written_out(path: Path, target: Path) -> None:
    assert main(["get", str(path), "key", "-o", str(target), "--force"]) == 0


MAKERS: dict[str, Callable[[Path, Path], object]] = {
    "backup": backed_up, "dump": dumped, "dump of a snapshot": dumped_from_a_snapshot,
    "directory of a dump": dumped_into_a_directory, "log": logged, "restore": restored, "salvage": salvage,
    "picture": pictured, "page": explorable, "value": written_out,
}  # fmt: skip


@needs_mode
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664])
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_made_from_a_database_has_its_permissions(tmp_path: Path, name: str, mode: int) -> None:
    path, target = tmp_path / "db", tmp_path / "made"
    make(path, mode)
    MAKERS[name](path, target)
    if target.is_dir():
        assert {mode_of(entry) for entry in target.iterdir()} == {mode}
        assert mode_of(target) == mode | (mode & 0o444) >> 2
    else:
        assert mode_of(target) == mode
    assert sorted(os.listdir(tmp_path)) == ["db", "made"]


@needs_mode
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444])
@pytest.mark.parametrize("name", ["dump", "directory of a dump", "log"])
def test_what_is_loaded_is_as_private_as_what_it_is_loaded_from(tmp_path: Path, name: str, mode: int) -> None:
    make(tmp_path / "db", 0o644)
    MAKERS[name](tmp_path / "db", tmp_path / "made")
    for file in [tmp_path / "made"] if (tmp_path / "made").is_file() else (tmp_path / "made").iterdir():
        file.chmod(mode)
    assert main(["load", str(tmp_path / "new"), str(tmp_path / "made")]) == 0
    assert mode_of(tmp_path / "new") == mode | 0o200
    (tmp_path / "new").chmod(0o666)
    assert main(["load", str(tmp_path / "new"), str(tmp_path / "made")]) == 0
    assert mode_of(tmp_path / "new") == 0o666


@needs_mode
@pytest.mark.parametrize("name", ["backup", "dump", "picture", "page", "value"])
def test_what_is_replaced_keeps_its_permissions(tmp_path: Path, name: str) -> None:
    path, target = tmp_path / "db", tmp_path / "made"
    make(path, 0o600)
    target.write_text("older")
    target.chmod(0o640)
    MAKERS[name](path, target)
    assert mode_of(target) == 0o640


@needs_root
@pytest.mark.parametrize("name", ["backup", "dump", "picture"])
def test_what_is_replaced_keeps_its_owner_and_group_and_what_is_new_is_ones_own(tmp_path: Path, name: str) -> None:
    path, target = tmp_path / "db", tmp_path / "made"
    make(path, 0o640)
    os.chown(path, 65533, 65532)
    MAKERS[name](path, target)
    assert (target.stat().st_uid, target.stat().st_gid, mode_of(target)) == (os.geteuid(), 65532, 0o640)
    os.chown(target, 65534, 65531)
    MAKERS[name](path, target)
    assert (target.stat().st_uid, target.stat().st_gid) == (65534, 65531)


@needs_mode
def test_a_log_goes_on_with_the_permissions_that_it_has(tmp_path: Path) -> None:
    """Also without the database, by whoever appends to it."""
    make(tmp_path / "db", 0o600)
    logged(tmp_path / "db", tmp_path / "log")
    before = len(os.listdir(tmp_path / "log"))
    with ChangeLog(tmp_path / "log", max_file_size=4096) as log:
        log.put("key", "x" * 4000)
        log.put("key", "y" * 4000)
    assert len(os.listdir(tmp_path / "log")) > before
    assert {mode_of(entry) for entry in (tmp_path / "log").iterdir()} == {0o600}


@needs_mode
def test_the_directory_of_a_log_that_was_there_is_left_as_it_is(tmp_path: Path) -> None:
    make(tmp_path / "db", 0o600)
    (tmp_path / "log").mkdir()
    logged(tmp_path / "db", tmp_path / "log")
    assert mode_of(tmp_path / "log") == 0o755
    assert {mode_of(entry) for entry in (tmp_path / "log").iterdir()} == {0o600}


@needs_mode
def test_what_nobody_may_write_can_be_copied_in_every_way() -> None:
    """The copy is filled before it gets the permissions of the original, which would be in the way."""
    with open_directory() as directory:
        directory.chmod(0o777)
        make(directory / "db", 0o444)
        with durabledbm.open_sharded(directory / "shards", "c", shards=2) as db:
            db["key"] = "value"
        for shard in (directory / "shards").glob("shard-*"):
            shard.chmod(0o444)
        unprivileged("""
with durabledbm.open("db") as db:
    db.backup("backup")
    durabledbm.dump.dump(db, "dump")
    durabledbm.dump.dump(db, "log", max_file_size=4096)
durabledbm.restore.restore("restored", "db")
durabledbm.salvage.salvage("db", "salvaged")
durabledbm.reshard.reshard("shards", "resharded", shards=3)
""", directory)
        made = ["backup", "dump", "log/00000001.log", "restored", "salvaged"]
        files = [directory / name for name in made] + list((directory / "resharded").glob("shard-*"))
        assert {path.name: oct(mode_of(path)) for path in files} == {path.name: "0o444" for path in files}
        with durabledbm.open(directory / "salvaged") as db:
            assert dict(db.items()) == {b"key": b"value"}


def test_a_file_that_cannot_be_replaced_is_written_where_it_is() -> None:
    with open_directory() as directory:
        make(directory / "db", 0o644)
        (directory / "out").write_text("older")
        (directory / "out").chmod(0o666)
        directory.chmod(0o555)
        unprivileged("""
durabledbm.cli.targets.write_file("out", [b"value"], "db", force=True)
""", directory)
        assert (directory / "out").read_text() == "value"


# -- mounts --------------------------------------------------------------------------------------------------------


@only_posix("only there can a file be a mount point")
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("name", ["backup", "dump", "migrate"])
def test_a_mount_point_cannot_be_replaced_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, early: bool
) -> None:
    """Before the work. Where second names are not to be had anyway, at its end."""
    path, target = tmp_path / "db", tmp_path / "mounted"
    make(path, 0o600)
    target.write_bytes(b"older")
    if name == "migrate":
        sqlite3.connect(target.with_name("old")).execute("CREATE TABLE Dict (key BLOB, value BLOB)").connection.close()
        target = target.rename(tmp_path / "unused").with_name("old")
    before = target.read_bytes()

    def refuse(number: int) -> Callable[..., None]:
        def refused(source: object, destination: object, **_: object) -> None:
            if str(target) in (source, destination):
                raise OSError(number, os.strerror(number), source, None, destination)

        return refused

    progress: list[object] = []
    monkeypatch.setattr(os, "link", refuse(errno.EXDEV if early else errno.EPERM))
    monkeypatch.setattr(os, "replace", refuse(errno.EBUSY))
    make_one = MAKERS.get(name, lambda _, target: durabledbm.migrate(target, progress=lambda *_: progress.append(1)))
    with pytest.raises(durabledbm.error, match="mount point, which cannot be replaced") as caught:
        make_one(path, target)
    assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, str(target))
    assert not progress or not early
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".durabledbm-*"))


# -- killed --------------------------------------------------------------------------------------------------------

SLOW = """
import os, sys
import durabledbm, durabledbm.dump, durabledbm.salvage
def wait(*_):
    print("at work", flush=True)
    sys.stdin.read()
with durabledbm.open("db") as db:
    {work}
"""
WORKS = {
    "backup": "db.backup('made', progress=wait)",
    "dump": "durabledbm.dump.dump(db, 'made', progress=wait)",
    "directory of a dump": "durabledbm.dump.dump(db, 'made', max_file_size=4096, progress=wait)",
    "salvage": "durabledbm.salvage.salvage('db', 'made', progress=wait)",
}


@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize("name", WORKS)
def test_what_is_killed_leaves_nothing_or_what_the_next_run_removes(
    tmp_path: Path, name: str, number: signal.Signals
) -> None:
    with durabledbm.open(tmp_path / "db", "c", durability="manual") as db:
        db.update({b"%06d" % key: b"x" for key in range(3000)})
    with subprocess.Popen(
        [sys.executable, "-c", SLOW.format(work=WORKS[name])], cwd=tmp_path, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"at work"
        assert len(os.listdir(tmp_path)) > 1
        process.send_signal(number)
        assert process.wait(60) == (1 if WINDOWS else -number)
    if number == KILL:
        assert len(os.listdir(tmp_path)) > 1
        backed_up(tmp_path / "db", tmp_path / "next")
        os.unlink(tmp_path / "next")
    assert os.listdir(tmp_path) == ["db"]


@pytest.mark.parametrize("name", MAKERS)
def test_a_target_may_have_a_name_of_255_bytes(tmp_path: Path, name: str) -> None:
    make(tmp_path / "db", 0o600)
    target = tmp_path / ("n" * 255)
    MAKERS[name](tmp_path / "db", target)
    assert sorted(os.listdir(tmp_path)) == ["db", target.name]
