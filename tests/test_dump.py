"""dump, load and restore: what comes back is what was there, or there is an error and nothing has changed."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from systems import HAS_SYMLINKS, needs_mode, needs_pipe_files
from test_attach import write_at_random

import durabledbm
import durabledbm.streams
from durabledbm._engine import large_value
from durabledbm._log import streams
from durabledbm.changelog import Change, ChangeLog, Commit
from durabledbm.cli.point_in_time import parse_until
from durabledbm.dump import Loaded, dump, load
from durabledbm.errors import error
from durabledbm.restore import restore

TEXT = {b"%d" % number: b"value %d" % number for number in range(200)}
ANY = {
    b"": b"", b"\0": b"|\n", b"key|\n": b"x" * 70_000, b"k" * 3000: b"1",
    **{os.urandom(12): os.urandom(n) for n in range(300)},
}  # fmt: skip


@pytest.fixture
def other(tmp_path: Path) -> Iterator[durabledbm.Database]:
    with durabledbm.open(tmp_path / "other", "c") as db:
        yield db


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "target")


def content(path: str | Path) -> dict[bytes, bytes]:
    with durabledbm.open(path, "r") as db:
        return dict(db.items())


# -- dump and load -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_file_size", [None, 100_000, 2**20])
@pytest.mark.parametrize("codec", ["binary", "text"])
def test_a_loaded_dump_equals_the_database(
    db: durabledbm.Database, other: durabledbm.Database, target: str, codec: str, max_file_size: int | None
) -> None:
    entries = TEXT if codec == "text" else ANY
    db.update(entries)
    assert dump(db, target, codec=codec, max_file_size=max_file_size) == len(entries)
    assert load(target, other).changes == len(entries)
    assert other == db
    assert os.path.isdir(target) == (max_file_size is not None)


def test_an_empty_database_can_be_dumped(db: durabledbm.Database, other: durabledbm.Database, target: str) -> None:
    assert dump(db, target) == 0
    assert load(target, other) == Loaded(0, Commit(1, db._store.state.meta.time_ns), None)


def test_a_dump_goes_through_a_pipe(db: durabledbm.Database, other: durabledbm.Database) -> None:
    db.update(ANY)
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb", buffering=0) as pipe:
            dump(db, pipe)

    thread = threading.Thread(target=write)
    thread.start()
    with open(reading, "rb", buffering=0) as pipe:
        load(pipe, other)
    thread.join()
    assert other == db


def test_the_commit_record_of_a_dump_names_the_commit(db: durabledbm.Database, target: str) -> None:
    db["a"] = "1"
    db["a"] = "2"
    dump(db, target, max_file_size=1000)
    with ChangeLog(target) as log:
        assert list(log.records()) == [Change("put", b"a", b"2"), Commit(3, db._store.state.meta.time_ns)]
        assert log.span() == (db._store.state.meta.database_id, 0, 3)


def test_a_file_of_a_dump_is_byte_for_byte_a_file_of_a_log(db: durabledbm.Database, target: str) -> None:
    db.update(TEXT)
    dump(db, target, codec="text")
    lines = b"".join(b"P|%b|%b\n" % entry for entry in sorted(TEXT.items()))
    assert Path(target).read_bytes() == lines
    os.mkdir(target + ".log")
    dump(db, target + ".log/00000001.log")
    with ChangeLog(target + ".log") as log:
        assert dict(change[1:] for change in log.replay()) == TEXT  # type: ignore[comparison-overlap]
        log.commit([("b", "appended")], 10)
        assert log.span().last_txid == 10


def test_a_dump_shows_one_commit_while_others_write(db: durabledbm.Database, other: durabledbm.Database) -> None:
    db.update({b"%05d" % number: b"0" for number in range(5000)})
    written = []

    def write(data: bytes) -> None:
        written.append(data)
        db.update({b"%05d" % number: b"1" for number in range(5000)})

    sink = io.BytesIO()
    sink.write = write  # type: ignore[assignment, method-assign]
    dump(db, sink)
    load(io.BytesIO(b"".join(written)), other)
    assert set(other.values()) == {b"0"}


def test_a_snapshot_and_any_mapping_can_be_dumped(db: durabledbm.Database, other: durabledbm.Database) -> None:
    db.update(TEXT)
    with db.snapshot() as snapshot:
        del db["1"]
        stream = io.BytesIO()
        dump(snapshot, stream)
        load(io.BytesIO(stream.getvalue()), other)
        assert other == snapshot
    loaded: dict[bytes, bytes] = {}
    stream = io.BytesIO()
    dump(TEXT, stream)
    load(io.BytesIO(stream.getvalue()), loaded)
    assert loaded == TEXT


def test_deferred_changes_are_in_the_dump(tmp_path: Path, other: durabledbm.Database, target: str) -> None:
    with durabledbm.open(tmp_path / "deferred", "c", durability="manual") as db:
        db["a"] = "1"
        dump(db, target)
    load(target, other)
    assert other["a"] == b"1"


@needs_pipe_files
@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_a_named_pipe_is_read_if_somebody_writes_to_it(
    db: durabledbm.Database, other: durabledbm.Database, target: str, tmp_path: Path, pause: float
) -> None:
    db.update(ANY)
    dump(db, target)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        time.sleep(pause / 2)
        with open(pipe, "wb", buffering=0) as file:
            time.sleep(pause)
            file.write(Path(target).read_bytes())

    thread = threading.Thread(target=write)
    thread.start()
    assert load(pipe, other).changes == len(ANY)
    thread.join()
    assert other == db


@needs_pipe_files
def test_nobody_waits_for_a_pipe_that_nobody_writes_to(
    other: durabledbm.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_PATIENCE", 0.05)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match="a pipe without a writer"):
        load(tmp_path / "pipe", other)
    (tmp_path / "log").mkdir()
    os.mkfifo(tmp_path / "log" / "00000001.log")
    with pytest.raises(error, match="not a regular file"):
        load(tmp_path / "log", other)
    for snapshot in ("pipe", "log"):
        with pytest.raises(error, match="not a regular file"):
            restore(tmp_path / "new", tmp_path / snapshot)


def test_loading_keeps_what_the_dump_does_not_mention(db: durabledbm.Database, other: durabledbm.Database) -> None:
    db["a"] = "new"
    other.update({"a": "old", "b": "kept"})
    stream = io.BytesIO()
    dump(db, stream)
    load(io.BytesIO(stream.getvalue()), other)
    assert dict(other.items()) == {b"a": b"new", b"b": b"kept"}


def test_progress_is_told(db: durabledbm.Database, other: durabledbm.Database, target: str) -> None:
    db.update({b"%05d" % number: b"" for number in range(3000)})
    calls: list[tuple[int, int | None]] = []
    dump(db, target, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1024, 3000), (2048, 3000), (3000, 3000)]
    calls.clear()
    load(target, other, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1024, None), (2048, None), (3000, 3000)]


def test_memory_does_not_grow_with_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durabledbm.transaction.SPILL_SIZE", 2 * 2**20)
    with durabledbm.open(tmp_path / "db", "c", cache_size=2**20) as db:
        for start in range(0, 5000, 1000):
            db.update({b"%08d" % number: bytes(2000) for number in range(start, start + 1000)})
    peaks = []
    tracemalloc.start()
    for step in ("dump", "directory", "load", "restore"):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        if step in ("dump", "directory"):
            with durabledbm.open(tmp_path / "db", "r", cache_size=2**20) as db:
                dump(db, tmp_path / step, max_file_size=2**20 if step == "directory" else None)
        elif step == "load":
            with durabledbm.open(tmp_path / "loaded", "c", cache_size=2**20) as db:
                load(tmp_path / "dump", db)
                assert len(db) == 5000
        else:
            restore(tmp_path / "restored", tmp_path / "dump")
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert max(peaks) < 5 * 2**20, f"of 10 MB: {peaks}"


# -- whole or not at all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["binary", "text"])
def test_every_cut_of_a_binary_dump_is_noticed_and_nothing_of_it_is_loaded(
    db: durabledbm.Database, other: durabledbm.Database, codec: str
) -> None:
    db.update({"a": "1", "bb": "22", "ccc": "333"})
    other["b"] = "kept"
    stream = io.BytesIO()
    dump(db, stream, codec=codec)
    whole = stream.getvalue()
    for size in range(len(whole)):
        if codec == "text" and whole[:size].endswith(b"\n"):
            continue  # whole lines are missing: not to be noticed in this codec, which docs say
        with pytest.raises(error, match=r"offset|complete|empty"):
            load(io.BytesIO(whole[:size]), other)
        assert dict(other.items()) == {b"b": b"kept"}


def test_every_changed_byte_of_a_binary_dump_is_noticed(db: durabledbm.Database, other: durabledbm.Database) -> None:
    db.update({"a": "1", "bb": "22"})
    stream = io.BytesIO()
    dump(db, stream)
    whole = stream.getvalue()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        with pytest.raises(error):
            load(io.BytesIO(damaged), other)
        assert len(other) == 0


def test_an_incomplete_directory_is_not_loaded(
    db: durabledbm.Database, other: durabledbm.Database, target: str
) -> None:
    db.update(ANY)
    dump(db, target, max_file_size=100_000)
    last = sorted(os.listdir(target))[-1]
    with open(os.path.join(target, last), "r+b") as file:
        file.truncate(os.path.getsize(file.name) - 23)  # a mark of 22 bytes is behind the commit
    with pytest.raises(error, match="not complete"):
        load(target, other)
    os.unlink(os.path.join(target, last))
    with pytest.raises(error, match="not complete"):
        load(target, other)
    assert len(other) == 0


@pytest.mark.parametrize("max_file_size", [None, 1000])
def test_a_dump_that_fails_leaves_nothing(db: durabledbm.Database, tmp_path: Path, max_file_size: int | None) -> None:
    db.update({"a": "1", "b|": "not for text"})
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match="text codec"):
        dump(db, tmp_path / "target", codec="text", max_file_size=max_file_size)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_of_that_name_is_replaced_at_the_end(db: durabledbm.Database, target: str) -> None:
    Path(target).write_text("before")
    with pytest.raises(ZeroDivisionError):
        dump(_Failing(), target)
    assert Path(target).read_text() == "before"
    dump(db, target)
    assert Path(target).read_bytes() != b"before"


class _Failing(dict[bytes, bytes]):
    def items(self) -> Iterator[tuple[bytes, bytes]]:  # type: ignore[override]
        yield b"a", b"1"
        raise ZeroDivisionError


def test_the_database_itself_is_not_replaced_under_any_name_nor_is_a_device(
    db: durabledbm.Database, db_path: str, tmp_path: Path
) -> None:
    (os.symlink if HAS_SYMLINKS else os.link)(db_path, tmp_path / "alias")
    os.link(db_path, tmp_path / "twin")
    db["k"] = "v"
    before = Path(db_path).read_bytes()
    with db.snapshot() as snapshot:
        for source in (db, snapshot):
            for name in (db_path, tmp_path / "alias", tmp_path / "twin"):
                with pytest.raises(durabledbm.error, match="is the database itself"):
                    dump(source, name)
            with pytest.raises(durabledbm.error, match="is not a regular file"):
                dump(source, os.devnull)
    assert Path(db_path).read_bytes() == before


def test_a_directory_of_that_name_is_not_replaced(db: durabledbm.Database, tmp_path: Path) -> None:
    os.mkdir(tmp_path / "target")
    (tmp_path / "target" / "file").touch()
    with pytest.raises(error):
        dump(db, tmp_path / "target", max_file_size=1000)
    with pytest.raises(error):
        dump(db, tmp_path / "target")
    assert os.listdir(tmp_path / "target") == ["file"]


@needs_mode
def test_a_dump_has_the_permissions_of_the_database(db: durabledbm.Database, db_path: str, target: str) -> None:
    os.chmod(db_path, 0o640)
    dump(db, target)
    dump(db, target + "s", max_file_size=1000)
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o640
    assert stat.S_IMODE(os.stat(target + "s").st_mode) == 0o750


def test_what_is_no_dump_is_refused(db: durabledbm.Database, db_path: str, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(b"no dump at all\n")
    (tmp_path / "empty").touch()
    os.mkdir(tmp_path / "directory")
    for name in (db_path, tmp_path / "garbage", tmp_path / "empty", tmp_path / "directory", tmp_path / "missing"):
        with pytest.raises(error):
            load(name, db)
    assert len(db) == 0
    load(tmp_path / "empty", db, codec="text")


def test_an_unknown_codec_is_refused(db: durabledbm.Database, target: str) -> None:
    with pytest.raises(ValueError, match="codec"):
        dump(db, target, codec="yaml")


# -- logs --------------------------------------------------------------------------------------------------------


History = tuple[Path, dict[int, dict[bytes, bytes]], dict[int, int]]


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A log that was attached to `tmp_path/live` from its beginning; content and time of each of its commits."""
    states: dict[int, dict[bytes, bytes]] = {1: {}}
    times: dict[int, int] = {}
    rng = random.Random(11)
    with durabledbm.open(tmp_path / "live", "c") as db, ChangeLog(tmp_path / "log", max_file_size=9000) as log:
        db.attach(log)
        for _ in range(60):
            write_at_random(db, rng, 1)
            meta = db._store.state.meta
            states[meta.txid], times[meta.txid] = dict(db.items()), meta.time_ns
            if meta.txid == 30:
                db.backup(tmp_path / "backup")
                dump(db, tmp_path / "dump")
                dump(db, tmp_path / "dumps", max_file_size=9000)
            time.sleep(0.001)
    return tmp_path / "log", states, times


def test_loading_a_log_until_a_commit_or_a_time(history: History, tmp_path: Path) -> None:
    log, states, times = history
    for txid in times:
        for number, until in enumerate((parse_until(str(txid)), {"until_time_ns": times[txid] + 1})):
            with durabledbm.open(tmp_path / "copy", "n") as db:
                loaded = load(log, db, **until)  # type: ignore[arg-type]
                assert dict(db.items()) == states[txid], (txid, number)
                assert loaded.commit == Commit(txid, times[txid])


def test_a_stream_of_a_log_is_loaded_until_a_commit(tmp_path: Path, other: durabledbm.Database) -> None:
    with durabledbm.open(tmp_path / "live", "c") as db, ChangeLog(tmp_path / "log") as log:
        db.attach(log)
        db["a"] = "1"
        db.update({"a": "2", "b": "2"})
        db["c"] = "3"
    data = (tmp_path / "log" / "00000001.log").read_bytes()
    assert load(io.BytesIO(data), other, until_txid=3).changes == 3
    assert dict(other.items()) == {b"a": b"2", b"b": b"2"}
    with pytest.raises(ValueError, match="Database"):
        load(io.BytesIO(data), {}, until_txid=3)


@pytest.mark.parametrize("codec", ["text", "binary"])
def test_changes_of_no_commit_cannot_be_loaded_until_one(
    codec: str, tmp_path: Path, other: durabledbm.Database
) -> None:
    with ChangeLog(tmp_path / "log", codec=codec) as log:  # type: ignore[arg-type]
        log.put("a", "1")
        log.put("b", "2")
    data = (tmp_path / "log" / "00000001.log").read_bytes()
    for source in (tmp_path / "log", io.BytesIO(data)):
        with pytest.raises(error, match="belong to no commit"):
            load(source, other, until_time_ns=1)
    with ChangeLog(tmp_path / "log", codec=codec) as log, pytest.raises(error, match="belong to no commit"):  # type: ignore[arg-type]
        log.load_into(other, until_txid=1)
    assert dict(other) == {}


@pytest.fixture
def set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Times of a history in whose middle the clock was set back. There is a log, and a backup of its second commit."""
    minute = 60 * 10**9
    noon = int(datetime(2026, 5, 1, 12, tzinfo=timezone.utc).timestamp()) * 10**9
    times = {"a": noon, "b": noon + 10 * minute, "c": noon - 45 * minute, "d": noon - 30 * minute}
    with durabledbm.open(tmp_path / "live", "c") as db, ChangeLog(tmp_path / "log") as log:
        db.attach(log)
        for name, moment in times.items():
            monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment)
            db[name] = "1"
            if name == "b":
                db.backup(tmp_path / "backup")
    monkeypatch.undo()
    return times


def test_where_the_clock_was_set_back_a_restore_goes_by_the_order_of_the_log_and_says_so(
    set_back: dict[str, int], tmp_path: Path
) -> None:
    log, backup = tmp_path / "log", tmp_path / "backup"
    for number, (base, moment, expected, explained) in enumerate((
        (None, set_back["c"] + 1, "abc", True),
        (backup, set_back["c"] + 1, "abc", True),
        (None, set_back["d"], "abcd", True),
        (None, set_back["a"], "abcd", True),
        (None, set_back["b"], "abcd", False),
        (backup, set_back["b"], "abcd", False),
    )):  # fmt: skip
        restored = restore(tmp_path / str(number), base, log, until_time_ns=moment)
        assert "".join(key.decode() for key in content(tmp_path / str(number))) == expected
        assert restored == Commit(len(expected) + 1, set_back[expected[-1]])
        assert ("the clock was set back" in restored.explanation) == explained
        with durabledbm.open(tmp_path / "loaded", "n") as db:
            loaded = load(log, db, until_time_ns=moment)
            assert b"".join(db).decode() == expected
            assert ("the clock was set back" in loaded.explanation) == explained
    assert restore(tmp_path / "by number", None, log, until_txid=2).explanation == ""
    with pytest.raises(error, match="newer"):
        restore(tmp_path / "too early", backup, log, until_time_ns=set_back["c"] - 1)
    with pytest.raises(error, match="newer"):
        restore(tmp_path / "too early", backup, until_time_ns=set_back["a"])
    assert not (tmp_path / "too early").exists()


def test_a_stream_cannot_be_loaded_until_a_time_that_comes_twice(
    set_back: dict[str, int], tmp_path: Path, other: durabledbm.Database
) -> None:
    data = (tmp_path / "log" / "00000001.log").read_bytes()
    with pytest.raises(error, match="set back: commit 4 follows commits with later times"):
        load(io.BytesIO(data), other, until_time_ns=set_back["c"])
    assert len(other) == 0
    assert load(io.BytesIO(data), other, until_txid=3).changes == 2
    assert load(io.BytesIO(data), other, until_time_ns=set_back["b"]).changes == 4
    assert load(io.BytesIO(data[:-5]), other, until_txid=3).changes == 2


def test_a_time_before_the_first_commit_is_an_error(history: History, other: durabledbm.Database) -> None:
    log, _, times = history
    with pytest.raises(error, match="no commit at or before that point"):
        load(log, other, until_time_ns=min(times.values()) - 1)
    assert dict(other) == {}


def test_a_dump_into_a_directory_that_holds_something_names_it(tmp_path: Path, other: durabledbm.Database) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    with pytest.raises(error, match="full: the directory is not empty"):
        dump(other, tmp_path / "full", max_file_size=10_000)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_times_are_iso_8601_and_numbers_are_commits() -> None:
    assert parse_until("17") == {"until_txid": 17}
    moment = datetime(2026, 5, 1, 12, 30, tzinfo=timezone.utc)
    expected = {"until_time_ns": int(moment.timestamp()) * 10**9}
    assert parse_until("2026-05-01T12:30:00Z") == expected
    assert parse_until("2026-05-01 14:30:00+02:00") == expected
    assert parse_until("2026-05-01T12:30:00.5Z") == {"until_time_ns": expected["until_time_ns"] + 5 * 10**8}
    assert parse_until("2026-05-01")["until_time_ns"] == int(datetime(2026, 5, 1).timestamp()) * 10**9
    for wrong in ("", "yesterday", "-3", "12:30", "2026-13-01"):
        with pytest.raises(ValueError, match="neither"):
            parse_until(wrong)


# -- restore -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", ["backup", "dump", "dumps", None])
def test_snapshot_and_log_restore_every_commit(history: History, tmp_path: Path, snapshot: str | None) -> None:
    log, states, times = history
    base = None if snapshot is None else tmp_path / snapshot
    first = 30 if snapshot else 2
    wanted = [txid for txid in times if txid >= first]
    for txid in [*random.Random(1).sample(wanted, 12), wanted[-1]]:
        restored = tmp_path / f"restored {txid}"
        assert restore(restored, base, log, until_txid=txid) == Commit(txid, times[txid])
        assert content(restored) == states[txid]
        at_time = tmp_path / f"at time {txid}"
        restore(at_time, base, log, until_time_ns=times[txid])
        assert content(at_time) == states[txid]
    whole = tmp_path / "whole"
    restore(whole, base, log)
    assert content(whole) == content(tmp_path / "live")


def test_a_restored_database_goes_on_with_the_same_log(history: History, tmp_path: Path) -> None:
    log, _, _ = history
    restore(tmp_path / "restored", tmp_path / "backup", log)
    with durabledbm.open(tmp_path / "restored", "w") as db:
        with ChangeLog(log, max_file_size=9000) as attached:
            db.attach(attached)
            write_at_random(db, random.Random(3), 40)
        expected = dict(db.items())
    restore(tmp_path / "again", tmp_path / "dump", log)
    assert content(tmp_path / "again") == expected


def test_a_database_restored_to_an_earlier_commit_does_not_go_on_with_the_log(
    history: History, tmp_path: Path
) -> None:
    log, _, _ = history
    restore(tmp_path / "restored", tmp_path / "backup", log, until_txid=40)
    with (
        durabledbm.open(tmp_path / "restored", "w") as db,
        ChangeLog(log) as attached,
        pytest.raises(error, match="new log"),
    ):
        db.attach(attached)


def test_a_snapshot_that_is_not_of_the_log_is_refused(history: History, tmp_path: Path) -> None:
    log, _, times = history
    with durabledbm.open(tmp_path / "stranger", "c") as db:
        db["a"] = "1"
    with pytest.raises(error, match="not a log of the database"):
        restore(tmp_path / "restored", tmp_path / "stranger", log)
    restore(tmp_path / "earlier", tmp_path / "backup", log, until_txid=31)
    with durabledbm.open(tmp_path / "earlier", "w") as db:
        db["another"] = "history"
    with pytest.raises(error, match="another commit 32"):
        restore(tmp_path / "restored", tmp_path / "earlier", log)
    with pytest.raises(error, match="newer"):
        restore(tmp_path / "restored", tmp_path / "backup", log, until_txid=29)
    with pytest.raises(error, match="newer"):
        restore(tmp_path / "restored", tmp_path / "backup", log, until_time_ns=times[29])
    with pytest.raises(error, match="ends with commit"):
        restore(tmp_path / "restored", tmp_path / "backup", log, until_txid=10_000)
    os.unlink(log / "00000001.log")
    with pytest.raises(error, match="begins after"):
        restore(tmp_path / "restored", None, log)
    assert not os.path.exists(tmp_path / "restored")


def test_commits_that_stand_in_the_log_as_one_cannot_be_told_apart(tmp_path: Path) -> None:
    path, log_path = tmp_path / "live", tmp_path / "log"
    times = []
    with durabledbm.open(path, "c") as db, ChangeLog(log_path) as log:
        db.attach(log)
        db["a"] = "2"
        db.backup(tmp_path / "backup")
        with durabledbm.open(path, "w") as unlogged:
            unlogged["a"] = "3"
            times.append(unlogged._store.state.meta.time_ns)
            time.sleep(0.001)
            unlogged["a"] = "4"
        db["a"] = "5"
    for until in ({"until_txid": 3}, {"until_txid": 4}, {"until_time_ns": times[0]}):
        with pytest.raises(error, match="commits 3 to 5 stand in the log as one"):
            restore(tmp_path / "restored", tmp_path / "backup", log_path, **until)
    assert restore(tmp_path / "restored", tmp_path / "backup", log_path, until_txid=5).txid == 5


def test_a_target_that_exists_is_not_replaced(history: History, tmp_path: Path) -> None:
    (tmp_path / "exists").write_text("something")
    with pytest.raises(error, match="exists"):
        restore(tmp_path / "exists", tmp_path / "backup", history[0])
    assert (tmp_path / "exists").read_text() == "something"


def test_a_snapshot_alone_can_be_restored(history: History, tmp_path: Path) -> None:
    states = history[1]
    for name in ("backup", "dump", "dumps"):
        restore(tmp_path / f"from {name}", tmp_path / name)
        assert content(tmp_path / f"from {name}") == states[30]
    with pytest.raises(error, match="there is no log"):
        restore(tmp_path / "restored", tmp_path / "dump", until_txid=31)
    with pytest.raises(ValueError, match="nothing to restore from"):
        restore(tmp_path / "restored", None)


def test_a_log_is_no_snapshot(history: History, tmp_path: Path) -> None:
    log = history[0]
    for snapshot in (log, log / "00000001.log"):
        with pytest.raises(error, match="not a dump"):
            restore(tmp_path / "restored", snapshot)


# -- kills -------------------------------------------------------------------------------------------------------

DUMPER = """
import sys, durabledbm
from durabledbm.dump import dump
with durabledbm.open(sys.argv[1], "r") as db:
    sys.stdout.write("ready\\n"); sys.stdout.flush()
    dump(db, sys.argv[2], max_file_size=int(sys.argv[3]) or None)
"""


@pytest.mark.parametrize("max_file_size", [0, 50_000])
def test_a_killed_dump_leaves_no_target(
    db: durabledbm.Database, db_path: str, tmp_path: Path, max_file_size: int
) -> None:
    db.update({b"%06d" % number: bytes(100) for number in range(20_000)})
    rng = random.Random(1)
    for number in range(4):
        target = tmp_path / f"target {number}"
        command = [sys.executable, "-c", DUMPER, db_path, str(target), str(max_file_size)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.random() * 0.2)
            process.kill()
        if target.exists():
            loaded: dict[bytes, bytes] = {}
            load(target, loaded)
            assert len(loaded) == 20_000


# -- large values --------------------------------------------------------------------------------------------


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a large value is short."""
    monkeypatch.setattr(large_value, "_RUN", 8192)
    monkeypatch.setattr(durabledbm.streams, "_HEAD", 1)
    monkeypatch.setattr(streams, "_LARGE", 10_000)
    monkeypatch.setattr(streams, "_PIECE", 1000)


LARGE = {b"%d" % n: random.Random(n).randbytes(n) for n in (0, 100, 9_999, 10_000, 20_000, 70_000)}


@pytest.mark.leaves_damage  # only where pieces are short
@pytest.mark.parametrize("codec", ["binary", "text"])
def test_large_values_are_dumped_and_loaded_in_pieces(db_path: str, short_pieces: None, codec: str) -> None:
    entries = LARGE if codec == "binary" else {key: b"v" * len(value) for key, value in LARGE.items()}
    stream, whole = io.BytesIO(), io.BytesIO()
    with durabledbm.open(db_path, "n") as db:
        db.update(entries)
        assert dump(db, stream, codec=codec) == len(entries)
        dump(dict(db), whole, codec=codec)
        db.clear()
        db["100"] = "replaced"
        stream.seek(0)
        assert load(stream, db).changes == len(entries)
        assert dict(db) == entries
        assert db.check() == []
        other: dict[bytes, bytes] = {}
        whole.seek(0)
        load(whole, other)
        assert other == entries
        stream.seek(0)
        other.clear()
        load(stream, other)
        assert other == entries


@pytest.mark.leaves_damage
def test_text_that_a_large_value_does_not_hold(db_path: str, short_pieces: None) -> None:
    with durabledbm.open(db_path, "n") as db:
        db["k"] = b"v" * 50_000 + b"|" + b"v" * 50_000
        with pytest.raises(ValueError, match="cannot hold a value"):
            dump(db, io.BytesIO(), codec="text")


@pytest.mark.leaves_damage
def test_a_large_value_that_no_file_of_a_directory_holds(db_path: str, tmp_path: Path, short_pieces: None) -> None:
    with durabledbm.open(db_path, "n") as db:
        db["k"] = b"v" * 20_000
        dump(db, tmp_path / "files", max_file_size=30_000)
        db["k"] = b"v" * 50_000
        with pytest.raises(ValueError, match="50000 bytes is too long"):
            dump(db, tmp_path / "more", max_file_size=30_000)
        assert not (tmp_path / "more").exists()
        load(tmp_path / "files", db)
        assert db["k"] == b"v" * 20_000


@pytest.mark.leaves_damage
@pytest.mark.parametrize("where", [-1, 30_000, 70_050, 71_000])
@pytest.mark.parametrize("kind", ["flipped", "cut off"])
def test_a_damaged_large_value_loads_nothing(db_path: str, short_pieces: None, where: int, kind: str) -> None:
    stream = io.BytesIO()
    with durabledbm.open(db_path, "n") as db:
        db.update({b"a": b"1", b"k": b"v" * 70_000, b"z": b"v" * 20_000})
        dump(db, stream)
        data = bytearray(stream.getvalue())
        if kind == "flipped":
            data[where] ^= 1
        else:
            del data[where:]
        db.clear()
        db["old"] = "1"
        with pytest.raises(error):
            load(io.BytesIO(data), db)
        assert dict(db) == {b"old": b"1"}
        assert db.check() == []


@pytest.mark.leaves_damage
def test_a_commit_of_large_values_beyond_the_limit_is_undone(db_path: str, short_pieces: None) -> None:
    stream = io.BytesIO()
    with durabledbm.open(db_path, "n") as db:
        db["k"] = b"v" * 70_000
        dump(db, stream)
        txid = db.stats().txid
        db.clear()
        stream.seek(0)
        with pytest.raises(error, match="no commit"):
            load(stream, db, until_txid=txid - 1)
        assert len(db) == 0
        stream.seek(0)
        load(stream, db, until_txid=txid)
        assert db["k"] == b"v" * 70_000
