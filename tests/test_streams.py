"""Values as streams: `open_value` and `put_stream`."""

from __future__ import annotations

import errno
import gc
import io
import os
import random
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simdisk import Operation, SimVolume
from systems import only_posix

import durabledbm
from durabledbm import streams
from durabledbm._engine import large_value
from durabledbm._engine.page import HEADER, OVERFLOW
from durabledbm.database import open_on
from durabledbm.errors import BusyError, ClosedError, CorruptionError, error
from durabledbm.salvage import salvage

FORKS = only_posix("Windows has no fork")

pytestmark = pytest.mark.leaves_damage
"""Where pieces have their real length, these files make no sense: so each test looks for itself whether all is well."""

MODES = ["full", "process", "interval", "manual"]

PIECE = 8192 - 44 - 1
"""Bytes of a piece of the value of a key of one byte, where pieces are as short as they are made here."""


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bytes are many pieces, and too many for memory."""
    monkeypatch.setattr(large_value, "_RUN", 8192)
    monkeypatch.setattr(streams, "_HEAD", 1)


def some(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Failing:
    """A file that calls `then` when it has given so many bytes."""

    def __init__(self, size: int, then: Callable[[], Any]) -> None:
        self._left = size
        self._then = then

    def read(self, size: int) -> Any:
        if not self._left:
            return self._then()
        size = min(size, self._left)
        self._left -= size
        return b"n" * size


class Trouble(Exception):
    pass


def trouble() -> None:
    raise Trouble


def interrupt() -> None:
    raise KeyboardInterrupt


def pinned(db: durabledbm.Database) -> bool:
    """Whether anything but this look reads an older commit."""
    db["later"] = str(db.stats().txid)
    db["later"] = str(db.stats().txid)
    return db.stats().oldest_snapshot is not None


# -- what was put is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 5 * PIECE + 17])
def test_a_stream_of_any_length_is_the_value(db: durabledbm.Database, size: int) -> None:
    value = some(size)
    db.put_stream("k", io.BytesIO(value))
    assert db["k"] == value
    with db.open_value("k") as file:
        assert file.read() == value
        assert file.read() == b""
    db["l"] = value  # in memory, and cut into the same pieces
    assert db.open_value(b"l").read() == value
    assert db.check() == []


def test_lengths_given_as_size(db: durabledbm.Database) -> None:
    """No more than `size` bytes are asked for: what follows is another's."""
    value = some(4 * PIECE)
    for size in (0, 1, PIECE, PIECE + 1, 3 * PIECE, 4 * PIECE):
        file = io.BytesIO(value)
        db.put_stream("k", file, size=size)
        assert db["k"] == value[:size]
        assert file.tell() == size


def test_a_reader_is_a_file(db: durabledbm.Database) -> None:
    rng = random.Random(3)
    for size in (0, 10, 3000, 4 * PIECE + 5):
        value = some(size)
        db["k"] = value
        mine, model = db.open_value("k"), io.BytesIO(value)
        assert (mine.readable(), mine.seekable(), mine.writable()) == (True, True, False)
        for _ in range(200):
            where, whence = rng.choice([(rng.randrange(size + 10), 0), (0, 1), (-rng.randrange(size + 1), 2)])
            assert mine.seek(where, whence) == model.seek(where, whence)
            count = rng.choice([-1, 0, 1, 100, PIECE, 3 * PIECE])
            assert mine.read(count) == model.read(count)
            assert mine.tell() == model.tell()
        with pytest.raises(ValueError, match="negative"):
            mine.raw.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            mine.raw.seek(0, 7)


def test_a_missing_key_is_a_key_error_with_the_key_as_passed(db: durabledbm.Database) -> None:
    with db.snapshot() as snapshot, db.transaction() as tx:
        for mapping in (db, snapshot, tx):
            with pytest.raises(KeyError) as caught:
                mapping.open_value("no such key")
            assert caught.value.args == ("no such key",)
    with pytest.raises(TypeError, match="key must be"):
        db.open_value(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_a_history_of_streams_is_that_of_a_dict(db_path: str, mode: Any) -> None:
    rng = random.Random(mode)
    model: dict[bytes, bytes] = {}
    with durabledbm.open(db_path, "c", durability=mode, interval=3600.0) as db:

        def change(mapping: Any, model: dict[bytes, bytes]) -> None:
            key = b"%d" % rng.randrange(6)
            value = rng.randbytes(rng.choice([0, 100, 3000, PIECE, 3 * PIECE, 9 * PIECE]))
            kind = rng.randrange(6)
            if kind == 0:
                mapping.pop(key, None)
                model.pop(key, None)
            elif kind == 1:
                mapping[key] = model[key] = value
            elif kind == 2 and key in model:
                mapping.put_stream(b"0", mapping.open_value(key))
                model[b"0"] = model[key]
            elif kind == 3:
                with pytest.raises(Trouble):
                    mapping.put_stream(key, Failing(rng.randrange(6 * PIECE), trouble))
            else:
                mapping.put_stream(key, io.BytesIO(value))
                model[key] = value

        for _ in range(60):
            kind = rng.randrange(3)
            if not kind:
                change(db, model)
                continue
            try:
                with db.transaction() as tx:
                    outer = dict(model)
                    for _ in range(rng.randrange(4)):
                        change(tx, outer)
                    inner = dict(outer)
                    try:
                        with db.transaction():
                            for _ in range(rng.randrange(3)):
                                change(db, inner)
                            if rng.random() < 0.5:
                                raise Trouble
                        outer = inner
                    except Trouble:
                        pass
                    assert dict(tx) == outer
                    if kind == 1:
                        raise Trouble
                model = outer
            except Trouble:
                pass
            assert dict(db) == model
            assert {key: db.open_value(key).read() for key in db} == model
        assert db.check() == []
        db.reorganize()
        assert dict(db) == model
    with durabledbm.open(db_path) as db:
        assert dict(db) == model
        assert db.check() == []


def test_real_pieces_take_little_memory(db: durabledbm.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    size = 24 * 2**20
    part = some(2**20)

    class Long:
        left = size

        def read(self, count: int) -> bytes:
            count = min(count, self.left, len(part))
            self.left -= count
            return part[:count]

    tracemalloc.start()
    try:
        db.put_stream("k", Long())
        with db.open_value("k") as file:
            while chunk := file.read(2**16):
                size -= len(chunk)
        db.put_stream("l", db.open_value("k"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 0
    assert peak < 14 * 2**20
    assert db["k"] == db["l"]


# -- one commit ----------------------------------------------------------------------------------------------


def test_a_reader_shows_its_commit_whatever_is_written_later(db: durabledbm.Database) -> None:
    value = some(6 * PIECE)
    db["k"] = value
    file = db.open_value("k")
    assert file.read(10) == value[:10]
    for number in range(5):
        db.put_stream("k", io.BytesIO(some(6 * PIECE, number)))
    del db["k"]
    db.reorganize()
    assert file.read() == value[10:]
    assert db.check() == []


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_reader_keeps_pages_until_it_is_closed_or_dropped(db: durabledbm.Database, end: str) -> None:
    db["k"] = some(6 * PIECE)
    file: Any = db.open_value("k")
    assert pinned(db)
    if end == "close":
        file.close()
        with pytest.raises(ValueError, match="closed file"):
            file.read()
    else:
        del file
    assert not pinned(db)


def test_a_dropped_reader_is_freed_without_the_garbage_collector(db: durabledbm.Database) -> None:
    db["k"] = some(3 * PIECE)
    gc.disable()
    try:
        db.open_value("k").read(1)
        assert not pinned(db)
    finally:
        gc.enable()


def test_after_the_end_of_what_it_reads_a_reader_raises(db_path: str) -> None:
    value = some(3 * PIECE)
    db = durabledbm.open(db_path, "c")
    db["k"] = value
    snapshot = db.snapshot()
    of_snapshot = snapshot.open_value("k")
    assert of_snapshot.read(1) == value[:1]
    snapshot.close()
    with db.transaction() as tx:
        of_block = tx.open_value("k")
        assert of_block.read(1) == value[:1]
    of_handle = db.open_value("k")
    db.close()
    for file in (of_snapshot, of_block, of_handle):
        with pytest.raises(ClosedError):
            file.raw.read(1)
        with pytest.raises(ClosedError):
            file.seek(2 * PIECE)
        file.close()


def test_a_snapshot_opens_its_own_values(db: durabledbm.Database) -> None:
    db["k"] = before = some(3 * PIECE)
    with db.snapshot() as snapshot:
        db["k"] = b"after"
        assert snapshot.open_value("k").read() == before
        assert db.open_value("k").read() == b"after"


# -- a file in trouble ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE, 7 * PIECE + 3])
@pytest.mark.parametrize("then", [trouble, interrupt])
def test_a_file_that_raises_leaves_the_old_value(
    db: durabledbm.Database, size: int, then: Callable[[], None]
) -> None:
    db["k"] = value = some(5 * PIECE)
    db["waits in the meta page"] = "1"
    with pytest.raises((Trouble, KeyboardInterrupt)):
        db.put_stream("k", Failing(size, then))
    with db.transaction() as tx:
        tx["other"] = "2"
        with pytest.raises((Trouble, KeyboardInterrupt)):
            tx.put_stream("k", Failing(size, then))
    assert dict(db) == {b"k": value, b"other": b"2", b"waits in the meta page": b"1"}
    assert db.check() == []


def test_a_value_that_failed_in_a_transaction_leaves_no_pages_behind(db: durabledbm.Database) -> None:
    db["k"] = some(3 * PIECE)
    with db.transaction() as tx:
        tx.put_stream("l", io.BytesIO(some(3 * PIECE)))
        for _ in range(20):
            with pytest.raises(Trouble):
                tx.put_stream("k", Failing(30 * PIECE, trouble))
    assert db.check() == []
    assert db.stats().page_count < 120


@pytest.mark.parametrize(
    ("file", "size", "expected", "message"),
    [
        (io.StringIO("text" * 9999), None, TypeError, "not text"),
        (Failing(9999, lambda: 5), None, TypeError, "must return bytes, not int"),
        (Failing(9999, lambda: None), None, ValueError, "blocking"),
        (Failing(9999, lambda: b"x" * 10**6), None, ValueError, "returned 1000000 bytes"),
        (io.BytesIO(b"x" * 9999), 10_000, ValueError, "ends after 9999 bytes, not after the 10000"),
        (io.BytesIO(b"x" * 99), 100, ValueError, "ends after 99 bytes"),
        (io.BytesIO(), -1, ValueError, "negative"),
        (io.BytesIO(), "1", TypeError, "integer"),
        (b"bytes", None, TypeError, "needs a file object"),
    ],
)
def test_what_is_no_file_of_bytes_is_an_error(
    db: durabledbm.Database, file: Any, size: Any, expected: type[Exception], message: str
) -> None:
    db["k"] = "old"
    with pytest.raises(expected, match=message):
        db.put_stream("k", file, size=size)
    assert db["k"] == b"old"
    assert db.check() == []


def test_reads_of_any_kind_and_length_are_taken(db: durabledbm.Database) -> None:
    value = some(3 * PIECE + 11)
    for kind in (bytes, bytearray, memoryview):

        class Bits(io.BytesIO):
            def read(self, size: Any = -1) -> Any:
                return kind(super().read(min(size, 1000)))  # noqa: B023 - used at once

        db.put_stream("k", Bits(value))
        assert db["k"] == value


def test_a_read_only_handle_reads_no_file(db_path: str) -> None:
    durabledbm.open(db_path, "c").close()
    with durabledbm.open(db_path) as db, pytest.raises(durabledbm.errors.ReadOnlyError):
        db.put_stream("k", Failing(1, trouble))


def test_a_full_disk_leaves_the_old_value() -> None:
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        db["k"] = value = some(3 * PIECE)
        left = [3]

        def full(operation: Operation) -> None:
            if operation.kind == "write":
                left[0] -= 1
                if left[0] <= 0:
                    raise OSError(errno.ENOSPC, "no space")

        volume.before = full
        with pytest.raises(error) as caught:
            db.put_stream("k", io.BytesIO(some(2**22)))
        volume.before = None
        assert caught.value.errno == errno.ENOSPC
        assert db["k"] == value
        db.put_stream("k", io.BytesIO(b"new" * PIECE))
        assert db["k"] == b"new" * PIECE
        assert db.check() == []


def test_tables_have_values_of_any_length(db: durabledbm.Database, tmp_path: Path) -> None:
    table = db.table("t")
    table.put_stream("k", io.BytesIO(some(4 * PIECE)))
    db.put_stream("k", io.BytesIO(some(3 * PIECE, 2)))
    with table.open_value("k") as file, db.snapshot() as snapshot:
        table["k"] = "new"
        assert file.read() == some(4 * PIECE)
        assert snapshot.table("t").open_value("k").read() == some(4 * PIECE)
        with pytest.raises(KeyError, match="missing"):
            table.open_value("missing")
    table["k"] = some(5 * PIECE, 3)
    db.backup(tmp_path / "copy")
    with durabledbm.open(tmp_path / "copy") as copy:
        assert dict(copy.table("t")) == {b"k": some(5 * PIECE, 3)}
        assert copy.check() == []
    with db.transaction() as tx:
        tx.table("t")["l"] = "1"
        tx.put_stream("k", Meddling(lambda: tx.table("t").update({"m": some(9999)})))
    assert dict(table) == {b"k": some(5 * PIECE, 3), b"l": b"1", b"m": some(9999)}
    db.reorganize()
    db.drop_table("t")
    assert db["k"] == b"m" * (6 * PIECE)
    assert db.check() == []


# -- what the file does with the database --------------------------------------------------------------------


class Meddling:
    """A file that calls `act` with each read."""

    def __init__(self, act: Callable[[], object], parts: int = 6) -> None:
        self._act = act
        self._left = parts

    def read(self, size: int) -> bytes:
        if self._left:
            self._left -= 1
            self._act()
            return b"m" * size
        return b""


def test_nothing_shows_a_value_before_it_is_complete(db: durabledbm.Database, db_path: str) -> None:
    db["k"] = "old"
    with durabledbm.open(db_path) as other:
        seen: set[bytes] = set()
        db.put_stream("k", Meddling(lambda: seen.add(other["k"]) or seen.add(db["k"])))  # type: ignore[func-returns-value]
        assert seen == {b"old"}
        assert other["k"] == b"m" * (6 * PIECE)


def test_what_a_file_writes_belongs_to_the_same_commit(db: durabledbm.Database) -> None:
    numbers = iter(range(99))

    def write() -> None:
        number = next(numbers)
        db[f"n{number}"] = "x" * 100
        db.put_stream(f"s{number}", io.BytesIO(some(3 * PIECE, number)))

    before = db.stats().txid
    db.put_stream("k", Meddling(write))
    assert db["k"] == b"m" * (6 * PIECE)
    assert all(db[f"s{number}"] == some(3 * PIECE, number) for number in range(6))
    assert db.check() == []
    assert db.stats().txid <= before + 6  # those that came while the first part was read were committed alone

    def undone() -> None:
        with db.transaction() as tx:
            tx.put_stream("k", Meddling(lambda: tx.update({"t": b"1" * 9999})))
            raise Trouble

    with pytest.raises(Trouble):
        undone()
    assert "t" not in db


def test_a_transaction_that_is_taken_back_while_a_file_is_read(db: durabledbm.Database) -> None:
    db["k"] = "old"
    for act in ("rollback", "clear"):
        steps = iter(range(9))

        def meddle(tx: Any) -> None:
            if next(steps) == 4:  # noqa: B023 - used at once
                getattr(tx, act)()  # noqa: B023

        with pytest.raises(error, match="rolled back"), db.transaction() as tx:
            tx.put_stream("k", Meddling(lambda: meddle(tx)))
        assert dict(db) == {b"k": b"old"}
    assert db.check() == []


def test_a_block_that_a_file_leaves_open_is_an_error(db: durabledbm.Database) -> None:
    db["k"] = "old"
    with pytest.raises(error), db.transaction() as tx:
        tx.put_stream("k", Meddling(lambda: db.transaction().__enter__()))
    assert dict(db) == {b"k": b"old"}
    assert db.check() == []


def test_other_writers_wait_from_the_second_part_on(db: durabledbm.Database, db_path: str) -> None:
    answers: list[str] = []
    with durabledbm.open(db_path, "w", timeout=0.0) as other:

        def ask() -> None:
            try:
                other["o"] = "1"
                answers.append("written")
            except BusyError:
                answers.append("busy")

        db.put_stream("k", Meddling(ask))
    assert answers == ["written"] * 2 + ["busy"] * 4


def test_threads_stream_at_the_same_time(db: durabledbm.Database) -> None:
    def work(number: int) -> None:
        for round in range(5):
            db.put_stream(f"{number}", io.BytesIO(some(5 * PIECE, 10 * number + round)))
            assert db.open_value(f"{number}").read() == some(5 * PIECE, 10 * number + round)

    crew = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert dict(db) == {
        b"%d" % number: some(5 * PIECE, 10 * number + 4) for number in range(4)
    }
    assert db.check() == []


@FORKS
def test_a_fork_while_a_file_is_read(db: durabledbm.Database, tmp_path: Path) -> None:
    """The value is the parent's. The child is told, and writes nothing."""
    db["k"] = "old"
    children: list[int] = []

    def fork() -> None:
        if len(children) < 5:
            children.append(os.fork())

    try:
        db.put_stream("k", Meddling(fork))
    except error as exc:
        if 0 in children:
            text = str(exc)
            os._exit(0 if "parent" in text or "fork" in text else 3)
        raise
    if 0 in children:
        os._exit(4 if 0 in children[2:] else 0)  # before the lock is taken a child may go on by itself
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 5
    assert db["k"] == b"m" * (6 * PIECE)
    assert db.check() == []


@FORKS
def test_a_child_reads_on_what_it_has_inherited(db: durabledbm.Database) -> None:
    db["k"] = value = some(8 * PIECE)
    file = db.open_value("k")
    assert file.read(5) == value[:5]
    child = os.fork()
    if not child:
        os._exit(0 if file.read() == value[5:] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.read() == value[5:]


# -- an attached log, shards ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["binary", "text"])
def test_an_attached_log_follows(db: durabledbm.Database, tmp_path: Path, codec: Any) -> None:
    log = durabledbm.changelog.ChangeLog(tmp_path / "log", max_file_size=10 * PIECE, codec=codec)
    with db.attach(log):
        db.put_stream("k", io.BytesIO(b"1" * 5 * PIECE))
        for file in (io.BytesIO(b"2" * 10 * PIECE), Meddling(lambda: None, 99), Failing(3 * PIECE, trouble)):
            with pytest.raises((ValueError, Trouble)):
                db.put_stream("k", file)  # type: ignore[arg-type]
        if codec == "text":
            with pytest.raises(ValueError, match="newline"):
                db.put_stream("k", io.BytesIO(b"|" * 5 * PIECE))
        assert db["k"] == b"1" * 5 * PIECE
        db["l"] = "2"
    assert [change.key for change in log.replay()] == [b"k", b"l"]
    copy: dict[bytes, bytes] = {}
    for change in log.replay():
        copy[change.key] = change.value or b""
    log.close()
    assert copy == dict(db)
    assert db.check() == []


def test_shards(tmp_path: Path) -> None:
    with durabledbm.open_sharded(tmp_path / "shards", "c", shards=3) as db:
        for number in range(6):
            db.put_stream(f"{number}", io.BytesIO(some(3 * PIECE, number)))
        with db.transaction("1") as tx, db.snapshot() as snapshot:
            tx.put_stream("1", io.BytesIO(b"new" * 3 * PIECE))
            assert tx.open_value("1").read() == b"new" * 3 * PIECE
            assert snapshot.open_value("1").read() == some(3 * PIECE, 1)
            other = next(key for key in "23450" if db.shard_of(key) != db.shard_of("1"))
            with pytest.raises(ValueError, match="another shard"):
                tx.put_stream(other, io.BytesIO(b"x" * 3 * PIECE))
            with pytest.raises(ValueError, match="another shard"):
                tx.open_value(other)
        for number in (0, 2, 3, 4, 5):
            assert db.open_value(f"{number}").read() == some(3 * PIECE, number)
        with pytest.raises(KeyError, match="missing"):
            db.open_value("missing")
        assert db.check() == []


# -- damage, and moving --------------------------------------------------------------------------------------


def runs(path: str) -> dict[tuple[int, int], int]:
    """Where the overflow runs of the file are, in bytes, by their flags and, of pieces, their number."""
    content = Path(path).read_bytes()
    found = {}
    for at in range(8192, len(content), 4096):
        kind, flags, _, key_size, page_id, _, _, _ = HEADER.unpack_from(content, at)
        if kind == OVERFLOW and page_id == at // 4096:
            number = int.from_bytes(content[at + 32 + key_size : at + 40 + key_size], "little")
            found[flags, number if flags == large_value.PIECE else 0] = at
    return found


def flip(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_damage_in_the_middle_is_met_where_it_is(db_path: str, tmp_path: Path) -> None:
    value = some(6 * PIECE)
    with durabledbm.open(db_path, "c") as db:
        db.put_stream("k", io.BytesIO(value))
        db["l"] = "intact"
    place = runs(db_path)[large_value.PIECE, 3]
    flip(db_path, place + 5000)
    with durabledbm.open(db_path) as db:
        with db.open_value("k") as file:
            assert file.read(3 * PIECE) == value[: 3 * PIECE]
            with pytest.raises(CorruptionError) as caught:
                file.read(1)
            assert caught.value.page_id == place // 4096
            file.seek(4 * PIECE)
            assert file.read() == value[4 * PIECE :]
        with pytest.raises(CorruptionError):
            db["k"]
        assert [problem.page_id for problem in db.check()] == [place // 4096]
    report = salvage(db_path, tmp_path / "saved")
    assert len(report.losses) == 1
    with durabledbm.open(tmp_path / "saved") as saved:
        assert dict(saved) == {b"l": b"intact"}


def test_a_damaged_index_is_met_at_once(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db["k"] = some(6 * PIECE)
    place = runs(db_path)[large_value.INDEX, 0]
    flip(db_path, place + 60)
    with durabledbm.open(db_path, "w") as db:
        with pytest.raises(CorruptionError):
            db.open_value("k")
        assert (3, place // 4096) in {(problem.invariant, problem.page_id) for problem in db.check()}
        assert "k" in db


@pytest.mark.parametrize("what", ["another piece", "another key", "a short piece"])
def test_a_forged_index_gives_no_wrong_bytes(
    db: durabledbm.Database, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from durabledbm._engine import value_writer

    pack = value_writer.PLACE.pack
    if what == "another piece":
        monkeypatch.setattr(value_writer, "PLACE", type("Place", (), {"pack": staticmethod(lambda number: pack(0))}))
    elif what == "a short piece":
        monkeypatch.setattr(value_writer, "room", lambda size: PIECE - 1)
    else:
        monkeypatch.setattr(value_writer.ValueWriter, "add", _of_another_key)
    db["k"] = some(3 * PIECE)
    with pytest.raises(CorruptionError):
        db["k"]
    with pytest.raises(CorruptionError):
        db.open_value("k").read()
    assert db.check() != []


def test_values_in_pieces_are_salvaged_without_their_leaves(db_path: str, tmp_path: Path) -> None:
    values = {b"%d" % number: some(number * PIECE + 5, number) for number in range(1, 5)}
    with durabledbm.open(db_path, "c") as db:
        for key, value in values.items():
            db.put_stream(key, io.BytesIO(value))
    flip(db_path, 9)  # the root, in both meta pages, is not known any more
    flip(db_path, 4105)
    salvage(db_path, tmp_path / "saved")
    with durabledbm.open(tmp_path / "saved") as saved:
        assert dict(saved) == values


def _of_another_key(writer: Any, piece: bytes) -> None:
    place = large_value.PLACE.pack(len(writer._refs))
    writer._refs.append(writer._writer.overflow(b"j", large_value.PIECE, place, piece))
    writer.length += len(piece)


def test_space_is_given_back_without_moving_all_of_a_value(db: durabledbm.Database) -> None:
    """Of a value that stands at the end of the file, only the pieces go to the front for which there is room."""
    for number in range(30):
        db[f"{number:02}"] = some(3000, number)
    db.put_stream("k", io.BytesIO(some(200 * PIECE)))
    for number in range(30):
        db[f"{number:02}"] = "short"
    before = db.stats()
    db.reorganize()
    after = db.stats()
    assert after.page_count < before.page_count
    assert after.pages_written - before.pages_written < 200
    assert db["k"] == some(200 * PIECE)
    assert db.check() == []


def test_a_file_gets_small_again(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        for number in range(20):
            db.put_stream(f"{number:02}", io.BytesIO(some(20 * PIECE, number)))
        for number in range(19):
            del db[f"{number:02}"]
        db.reorganize()
        assert os.path.getsize(db_path) < 30 * 8192
        assert db["19"] == some(20 * PIECE, 19)


def test_a_backup_has_the_pieces(db: durabledbm.Database, tmp_path: Path) -> None:
    for number in range(5):
        db.put_stream(f"{number}", io.BytesIO(some(number * 7 * PIECE, number)))
    db.backup(tmp_path / "copy.db")
    with durabledbm.open(tmp_path / "copy.db") as copy:
        assert dict(copy) == dict(db)
        assert copy.check() == []


@pytest.mark.parametrize("going_on", ["a commit", "reorganize", "another handle"])
def test_a_file_that_fails_leaves_the_database_no_larger(db_path: str, going_on: str) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() == 6_000_000:
                raise ZeroDivisionError
            return super().read(size)

    with durabledbm.open(db_path, "c") as db:
        db["k"] = b"x" * 9000
        before = os.path.getsize(db_path)
        with pytest.raises(ZeroDivisionError):
            db.put_stream("large", Failing(bytes(6_000_000)))
        if going_on == "reorganize":
            db.reorganize()
        elif going_on == "a commit":
            db["k"] = b"y" * 9000
        else:
            with durabledbm.open(db_path, "w") as other:
                other["k"] = b"y" * 9000
        assert os.path.getsize(db_path) < 2 * before + 100_000
        assert db.check() == []
