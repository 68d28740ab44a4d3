"""The log of changes: what replay gives back after writing, reopening, cutting, failing and crashing."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from systems import KILL, WINDOWS, needs_fork, needs_immediate_removal

import durabledbm
from durabledbm import changelog
from durabledbm._engine.disk import FileDisk, FileVolume
from durabledbm._engine.disk.protocol import LockOwner, Writes
from durabledbm._log import files as log_files
from durabledbm._log.records import BINARY, FILE_HEADER, FileHeader
from durabledbm.changelog import Change, ChangeLog, Commit, Span, Tail
from durabledbm.errors import BusyError, ClosedError, CorruptionError, error

IDENTITY = b"0123456789abcdef"
HEADER, RECORD = 60, 22  # bytes in front of a binary file's records, and in front of a record's key
CODECS = ["binary", "text"]


class WatchedDisk:
    """A `FileDisk` that tells its volume of each change first. It syncs nothing: these tests pull no plug."""

    def __init__(self, disk: FileDisk, volume: WatchedVolume) -> None:
        self.disk, self.volume = disk, volume
        self.path, self.writable, self.read = disk.path, disk.writable, disk.read
        self.size, self.linked, self.identity = disk.size, disk.linked, disk.identity
        self.unlock, self.close, self.held, self.regain = disk.unlock, disk.close, disk.held, disk.regain
        self.data = disk.data
        self.status, self.take_owner = disk.status, disk.take_owner

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        data = b"".join(parts)
        kept = self.volume.step("write", self.path, offset, data)
        if kept is not None:
            self.disk.write(offset, (data[:kept],))
            raise OSError(errno.ENOSPC, "no space left in this test")
        self.disk.write(offset, (data,))

    def resize(self, size: int) -> None:
        self.volume.step("resize", self.path, size)
        self.disk.resize(size)

    def writes(self) -> Writes:
        return Writes(self.write, self.resize)

    def sync(self) -> None:
        self.volume.step("sync", self.path)

    def forget(self) -> None:
        self.volume.step("forget", self.path)

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        return self.disk.lock(offset, exclusive=exclusive)

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        return self.disk.lowest_lock(start, stop)

    def reopen(self) -> WatchedDisk:
        return WatchedDisk(self.disk.reopen(), self.volume)


class WatchedVolume(FileVolume):
    """The real directory; `steps` lists every change, and the one with the number `fail_at` fails.

    A failing write leaves `short` bytes of what it was given (as many as there are).
    """

    def __init__(self, fail_at: int = -1, short: int = 0) -> None:
        super().__init__()
        self.steps: list[tuple[Any, ...]] = []
        self.fail_at, self.short = fail_at, short

    def step(self, name: str, path: str, *details: Any) -> int | None:
        self.steps.append((name, os.path.basename(path), *details))
        if len(self.steps) - 1 != self.fail_at:
            return None
        if name == "write":
            return self.short
        raise OSError(errno.EIO, "a fault in this test")

    def count(self, name: str) -> int:
        return sum(step[0] == name for step in self.steps)

    def open(self, path: str, *, writable: bool) -> Any:
        return WatchedDisk(super().open(path, writable=writable), self)

    def create(self, path: str, mode: int) -> Any:
        self.step("create", path)
        return WatchedDisk(super().create(path, mode), self)

    def sync_directory(self, path: str) -> None:
        self.step("sync_directory", path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "log"


def files(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def fill(place: Path, contents: dict[str, bytes]) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, data in contents.items():
        (place / name).write_bytes(data)
    return place


def replayed(place: Path, codec: str = "binary") -> list[Change]:
    with ChangeLog(place, codec=codec) as log:
        return list(log.replay())


def damaged(place: Path, codec: str = "binary") -> str:
    with ChangeLog(place, codec=codec) as log, pytest.raises(CorruptionError) as caught:
        list(log.replay())
    assert caught.value.path is not None
    return str(caught.value)


def put(key: str, value: str) -> Change:
    return Change("put", key.encode(), value.encode())


def delete(key: str) -> Change:
    return Change("delete", key.encode(), None)


def apply(changes: Sequence[Change], target: dict[bytes, bytes]) -> dict[bytes, bytes]:
    for op, key, value in changes:
        if op == "put":
            assert value is not None
            target[key] = value
        else:
            target.pop(key, None)
    return target


def changes_of(changes: Sequence[Change]) -> list[tuple[bytes, bytes | None]]:
    return [(change.key, change.value) for change in changes]


def append(log: ChangeLog, change: Change) -> None:
    if change.value is None:
        log.delete(change.key)
    else:
        log.put(change.key, change.value)


def random_changes(rng: random.Random, codec: str, count: int, longest: int = 12) -> list[Change]:
    def some() -> bytes:
        data = rng.randbytes(rng.randrange(longest))
        return data if codec == "binary" else data.translate(None, b"|\n")

    keys = [some() for _ in range(4)]
    changes = []
    for _ in range(count):
        key = rng.choice(keys)
        changes.append(Change("put", key, some()) if rng.random() < 0.7 else Change("delete", key, None))
    return changes


# --- what is written --------------------------------------------------------------------------------------


def test_the_example_of_the_text_codec_leaves_exactly_these_files(place: Path) -> None:
    log = ChangeLog(place, max_file_size=10, codec="text")
    log.put("a", "1")
    log.put("bb", "2")
    log.close()
    log = ChangeLog(place, max_file_size=10, codec="text")
    log.delete("a")
    log.put("c", "3")
    log.close()
    assert files(place) == {
        "00000001.log": b"P|a|1\n",
        "00000002.log": b"P|bb|2\n",
        "00000003.log": b"D|a\nP|c|3\n",
    }
    assert replayed(place, "text") == [put("a", "1"), put("bb", "2"), delete("a"), put("c", "3")]


def test_a_binary_file_is_a_header_the_records_and_a_mark_left_by_close(place: Path) -> None:
    with ChangeLog(place) as log:
        log.put("a", b"\x00|\n")
        log.delete(b"a")
    data = files(place)["00000001.log"]
    header = FileHeader.unpack(data)
    assert header is not None
    assert header == FileHeader(number=1, salt=header.salt)
    expected = header.pack()
    for kind, key, value in [(1, b"a", b"\x00|\n"), (2, b"a", b""), (4, b"", b"")]:
        expected += BINARY.encode(header.pack(), len(expected), kind, key, value, flags=1)
    assert data == expected


def test_two_files_of_a_log_have_different_salts(place: Path) -> None:
    with ChangeLog(place, max_file_size=HEADER + RECORD + 1) as log:
        for _ in range(8):
            log.put("", "x")
    headers = [FileHeader.unpack(data) for data in files(place).values()]
    assert len({header.salt for header in headers if header is not None}) == 8


@pytest.mark.parametrize("data", ["é", b"\xc3\xa9", bytearray(b"\xc3\xa9"), memoryview(b"\xc3\xa9")])
@pytest.mark.parametrize("codec", CODECS)
def test_keys_and_values_are_any_bytes_and_str_is_utf_8(place: Path, codec: str, data: Any) -> None:
    with ChangeLog(place, codec=codec) as log:
        log.put(data, data)
        log.delete(data)
        assert list(log) == [("put", b"\xc3\xa9", b"\xc3\xa9"), ("delete", b"\xc3\xa9", None)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda log: log.put(1, "v"), r"^key must be .* not int$"),
        (lambda log: log.put("k", None), r"^value must be .* not NoneType$"),
        (lambda log: log.delete(None), r"^key must be .* not NoneType$"),
        (lambda log: log.commit([("k", 1.5)], 1), r"^value must be .* not float$"),
        (lambda log: log.check(1), r"^key must be .* not int$"),
    ],
)
def test_other_types_are_a_type_error_naming_role_and_type(
    place: Path, call: Callable[[Any], None], message: str
) -> None:
    with ChangeLog(place) as log:
        with pytest.raises(TypeError, match=message):
            call(log)
        assert list(log) == []


@pytest.mark.parametrize(("key", "value"), [("a|b", ""), ("a\nb", ""), ("", "|"), ("", "\n")])
def test_text_refuses_a_bar_or_newline_before_anything_is_written(place: Path, key: str, value: str) -> None:
    with ChangeLog(place, codec="text") as log:
        for call in (log.put, log.check):
            with pytest.raises(ValueError, match="cannot hold"):
                call(key, value)
        assert files(place) == {}
        log.put("a", "1")
        with pytest.raises(ValueError, match="cannot hold"):
            log.put(key, value)
    assert files(place) == {"00000001.log": b"P|a|1\n"}


@pytest.mark.parametrize(
    "arguments", [{"codec": "xml"}, {"sync": "never"}, {"max_file_size": 0}, {"interval": -1}]
)
def test_arguments_out_of_range_are_a_value_error(place: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ChangeLog(place, **arguments)
    assert not place.exists()


def test_the_directory_may_be_given_as_bytes_and_only_its_last_part_is_created(tmp_path: Path) -> None:
    with ChangeLog(os.fsencode(tmp_path / "new")) as log:
        log.put("a", "1")
    assert replayed(tmp_path / "new") == [put("a", "1")]
    with pytest.raises(error) as caught:
        ChangeLog(tmp_path / "missing" / "new")
    assert caught.value.errno == errno.ENOENT
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(error) as caught:
        ChangeLog(tmp_path / "file")
    assert caught.value.errno == errno.ENOTDIR


def test_other_names_in_the_directory_are_left_alone(place: Path) -> None:
    names = ["1.log", "000000001.log", "00000000.log", "00000001.log.bak", "README"]
    if not WINDOWS:
        names.append("00000001.LOG")  # the same name there: see below
    strangers = dict.fromkeys(names, b"x")
    fill(place, strangers)
    with ChangeLog(place) as log:
        log.put("a", "1")
    assert replayed(place) == [put("a", "1")]
    assert files(place).items() >= strangers.items()


def test_a_name_that_is_taken_and_cannot_be_opened_is_an_error_and_not_waited_for(place: Path) -> None:
    """A link to nothing; where names in capitals are the same, also a file in capitals."""
    fill(place, {"00000001.LOG": b"x"} if WINDOWS else {})
    if not WINDOWS:
        (place / "00000001.log").symlink_to("nowhere")
    with ChangeLog(place) as log, pytest.raises(error) as caught:
        log.put("a", "1")
    assert caught.value.errno == errno.EEXIST
    assert caught.value.filename == str(place / "00000001.log")


# --- the size of files ------------------------------------------------------------------------------------


def test_a_text_file_is_filled_to_the_byte_and_no_further(place: Path) -> None:
    line = len(b"P|a|1\n")
    for limit, sizes in [(2 * line, [2 * line, line]), (2 * line - 1, [line] * 3), (3 * line, [3 * line])]:
        fill(place, {})
        with ChangeLog(place, max_file_size=limit, codec="text") as log:
            for _ in range(3):
                log.put("a", "1")
        assert [len(data) for data in files(place).values()] == sizes


def test_a_binary_file_is_filled_to_the_byte_and_no_further(place: Path) -> None:
    one = RECORD + 2
    for limit, sizes in [
        (HEADER + one, [HEADER + one] * 3),
        (HEADER + 2 * one - 1, [HEADER + one] * 3),
        (HEADER + 2 * one, [HEADER + 2 * one, HEADER + one]),
        (HEADER + 3 * one, [HEADER + 3 * one]),
        (HEADER + 3 * one + RECORD - 1, [HEADER + 3 * one]),  # no room for the mark of close()
        (HEADER + 3 * one + RECORD, [HEADER + 3 * one + RECORD]),
    ]:
        fill(place, {})
        with ChangeLog(place, max_file_size=limit) as log:
            for _ in range(3):
                log.put("a", "1")
        actual = [len(data) for data in files(place).values()]
        last = actual[-1] - (RECORD if actual[-1] > sizes[-1] else 0)
        assert [*actual[:-1], last] == sizes
        assert max(actual) <= limit
        assert replayed(place) == [put("a", "1")] * 3


@pytest.mark.parametrize(("codec", "around"), [("binary", HEADER + RECORD), ("text", len(b"P||\n"))])
def test_a_record_that_fits_to_the_byte_is_taken_and_one_byte_more_is_a_value_error(
    place: Path, codec: str, around: int
) -> None:
    with ChangeLog(place, max_file_size=100, codec=codec) as log:
        for call in (log.put, log.check):
            with pytest.raises(ValueError, match="needs a file of 101 bytes, the limit is 100"):
                call("k", b"v" * (100 - around))
        assert files(place) == {}
        log.check("k", b"v" * (99 - around))
        log.put("k", b"v" * (99 - around))
        before = files(place)
        with pytest.raises(ValueError, match="needs a file of"):
            log.put("k", b"v" * (100 - around))
        with pytest.raises(ValueError, match="needs a file of"):
            log.delete("k" * 100)
        assert files(place) == before
        assert len(before["00000001.log"]) == 100


@pytest.mark.parametrize("codec", CODECS)
def test_appending_goes_on_in_the_last_file_after_a_reopen_while_there_is_space(
    place: Path, codec: str
) -> None:
    for number in range(40):
        with ChangeLog(place, max_file_size=400, codec=codec) as log:
            log.put("key", str(number))
    assert replayed(place, codec) == [put("key", str(number)) for number in range(40)]
    sizes = [len(data) for data in files(place).values()]
    assert all(400 - 50 < size <= 400 for size in sizes[:-1])


def test_a_smaller_limit_after_a_reopen_begins_a_new_file(place: Path) -> None:
    with ChangeLog(place, max_file_size=1000) as log:
        log.put("a", "1" * 500)
    with ChangeLog(place, max_file_size=100) as log:
        log.put("b", "2")
    assert sorted(files(place)) == ["00000001.log", "00000002.log"]
    assert replayed(place) == [put("a", "1" * 500), put("b", "2")]


def test_more_files_than_eight_digits_can_number_are_read_in_numeric_order(place: Path) -> None:
    fill(place, {"100000000.log": b"P|b|2\n", "99999999.log": b"P|a|1\n"})
    with ChangeLog(place, codec="text", max_file_size=6) as log:
        log.put("c", "3")
    assert sorted(files(place)) == ["100000000.log", "100000001.log", "99999999.log"]
    assert replayed(place, "text") == [put("a", "1"), put("b", "2"), put("c", "3")]


# --- replay equals what was written -----------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seeds", [range(200), pytest.param(range(200, 2000), marks=pytest.mark.long)], ids=str)
def test_replay_of_random_logs_equals_the_stores_they_were_written_from(
    tmp_path: Path, codec: str, seeds: range
) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        changes = random_changes(rng, codec, rng.randrange(1, 25))
        limit = rng.choice((HEADER + RECORD + 24, 150, 400))
        place, store = tmp_path / str(seed), dict[bytes, bytes]()
        log = None
        for seen, change in enumerate(changes, 1):
            if log is None or rng.random() < 0.15:
                if log is not None:
                    if rng.random() < 0.7:
                        log.close()
                    else:
                        del log  # as a process that dies does: nothing is synced, marked or unlocked by hand
                mode = rng.choice(("record", "interval", "manual"))
                log = ChangeLog(place, limit, codec, mode, volume=WatchedVolume())
            append(log, change)
            apply([change], store)
            if rng.random() < 0.1:
                log.sync()
            if rng.random() < 0.1:
                assert list(log.replay()) == changes[:seen], f"seed {seed}"
        assert log is not None
        del log
        assert all(len(data) <= limit for data in files(place).values()), f"seed {seed}"
        assert replayed(place, codec) == changes, f"seed {seed}"
        assert apply(replayed(place, codec), {}) == store, f"seed {seed}"
        shutil.rmtree(place)


class Store(dict[bytes, bytes]):
    """The part of a database that `load_into` uses, with transactions that roll back."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        before = dict(self)
        try:
            yield
        except BaseException:
            self.clear()
            super().update(before)
            raise


@pytest.mark.parametrize("codec", CODECS)
def test_load_into_leaves_what_replaying_by_hand_leaves(place: Path, codec: str) -> None:
    rng = random.Random(1)
    changes = random_changes(rng, codec, 300)
    changes += [put(str(rng.randrange(9000)), str(number)) for number in range(10_000)]
    changes += [delete(str(rng.randrange(9000))) for number in range(3000)]
    with ChangeLog(place, codec=codec, max_file_size=20_000, sync="manual", volume=WatchedVolume()) as log:
        for change in changes:
            append(log, change)
        db = Store({b"old": b"1"})
        assert log.load_into(db) == len(changes)
    assert db == apply(changes, {b"old": b"1"})


def test_load_into_of_a_damaged_log_leaves_the_database_as_it_was(place: Path) -> None:
    with ChangeLog(place, max_file_size=HEADER + RECORD + 2) as log:
        log.put("a", "1")
        log.put("b", "2")
    (place / "00000001.log").write_bytes(b"")
    db = Store({b"a": b"0"})
    with ChangeLog(place) as log, pytest.raises(CorruptionError):
        log.load_into(db)
    assert db == {b"a": b"0"}


@pytest.mark.skipif(not hasattr(durabledbm, "open"), reason="the engine is not there yet")
def test_load_into_a_database_is_one_commit(tmp_path: Path) -> None:
    with ChangeLog(tmp_path / "log") as log, durabledbm.open(tmp_path / "db", "c") as db:
        db["gone"] = "1"
        log.put("a", "1")
        log.put("b", "2")
        log.delete("gone")
        log.delete("never there")
        log.put("a", "3")
        with db.snapshot() as before:
            assert log.load_into(db) == 5
            assert dict(before.items()) == {b"gone": b"1"}
        assert dict(db.items()) == {b"a": b"3", b"b": b"2"}


def test_an_empty_log_replays_nothing_and_appends_nothing(place: Path) -> None:
    with ChangeLog(place) as log:
        assert list(log) == list(log.records()) == []
        assert log.span() == Span(None, 0, 0)
        log.sync()
    assert files(place) == {}


# --- where a log ends -------------------------------------------------------------------------------------


def small_log(
    place: Path, codec: str, seed: int, *, close: bool = True
) -> tuple[list[Change], dict[str, bytes]]:
    """A log of two or three files written with one sync per record: its changes, and its files."""
    rng = random.Random(seed)
    changes = random_changes(rng, codec, 9, 8)
    limit = 190 if codec == "binary" else 40
    with ChangeLog(fill(place, {}), limit, codec, volume=WatchedVolume()) as log:
        for change in changes:
            append(log, change)
        if not close:
            return changes, files(place)
    return changes, files(place)


@pytest.mark.parametrize("codec", CODECS)
def test_a_log_cut_at_any_byte_replays_a_prefix_and_appending_goes_on_from_there(
    place: Path, codec: str
) -> None:
    shorter = 0
    for seed in range(2):
        changes, whole = small_log(place, codec, seed)
        names = sorted(whole)
        for last, name in enumerate(names):
            for size in range(len(whole[name])):
                contents = {other: whole[other] for other in names[:last]} | {name: whole[name][:size]}
                fill(place, contents)
                with ChangeLog(place, 1000, codec, volume=WatchedVolume()) as log:
                    found = list(log.replay())
                    assert found == changes[: len(found)]
                    assert len(found) < len(changes) or last == len(names) - 1
                    tail = log.tail
                    if tail is None:
                        assert codec == "binary" or contents[name] == b"" or contents[name].endswith(b"\n")
                    else:
                        shorter += 1
                        assert tail.file == str(place / name)
                        assert tail.offset < size
                    log.put("new", "1")
                    assert log.tail == tail
                    assert list(log.replay()) == [*found, put("new", "1")]
                    assert log.tail is None
                if tail is not None and tail.offset:
                    assert files(place)[name].startswith(whole[name][: tail.offset])
    assert shorter > 50


def test_a_cut_tells_where_the_torn_record_begins(place: Path) -> None:
    with ChangeLog(place) as log:
        log.put("a", "1")
        log.put("b", "2")
    name, data = "00000001.log", files(place)["00000001.log"]
    second = HEADER + RECORD + 2
    for size in range(second + 1, second + RECORD + 2):
        fill(place, {name: data[:size]})
        with ChangeLog(place) as log:
            assert list(log) == [put("a", "1")]
            assert log.tail == Tail(str(place / name), second, "the file ends within a record")


@pytest.mark.parametrize("codec", CODECS)
def test_a_cut_in_any_file_but_the_last_is_corruption(place: Path, codec: str) -> None:
    _, whole = small_log(place, codec, 3)
    name = sorted(whole)[0]
    for size in range(len(whole[name])):
        fill(place, whole | {name: whole[name][:size]})
        if codec == "text" and (size == 0 or whole[name][size - 1 : size] == b"\n"):
            continue  # lines that are missing whole cannot be noticed in this codec, as the document says
        assert str(place / name) in damaged(place, codec)


def flips(whole: dict[str, bytes]) -> Iterator[tuple[str, int, dict[str, bytes]]]:
    """Three bits of eight, in each byte others."""
    for name, data in whole.items():
        for bit in range(0, len(data) * 8, 3):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            yield name, bit // 8, whole | {name: bytes(flipped)}


def test_a_flipped_bit_of_a_closed_log_is_corruption_or_in_the_mark_and_loses_nothing(place: Path) -> None:
    changes, whole = small_log(place, "binary", 4)
    last = sorted(whole)[-1]
    assert len(whole) >= 2
    assert len(whole[last]) < 190 - RECORD, "the last file has room for a mark"
    mark = len(whole[last]) - RECORD
    for name, position, contents in flips(whole):
        (place / name).write_bytes(contents[name])
        with ChangeLog(place, volume=WatchedVolume()) as log:
            if name == last and position >= mark:
                assert list(log) == changes
                assert log.tail is not None
                assert log.tail.offset == mark
            else:
                with pytest.raises(CorruptionError):
                    list(log)
                if name == last:  # the only one that is read before appending
                    with pytest.raises(CorruptionError):
                        log.put("more", "1")
        assert (place / name).read_bytes() == contents[name]
        (place / name).write_bytes(whole[name])


def test_a_flipped_bit_of_a_log_that_was_not_closed_is_a_tail_only_in_the_last_record(place: Path) -> None:
    changes, whole = small_log(place, "binary", 5, close=False)
    last = sorted(whole)[-1]
    _, key, value = changes[-1]
    begin = len(whole[last]) - RECORD - len(key) - len(value or b"")
    tails = 0
    for name, position, contents in flips(whole):
        fill(place, whole | {name: contents[name]})
        with ChangeLog(place, volume=WatchedVolume()) as log:
            if name == last and position >= begin:
                assert list(log) == changes[:-1]
                assert log.tail is not None
                assert log.tail.offset == begin
                tails += 1
            else:
                with pytest.raises(CorruptionError):
                    list(log)
    assert tails > 2 * (len(whole[last]) - begin)


@pytest.mark.parametrize("close", [False, True])
def test_damage_in_what_no_sync_covered_is_a_tail_and_before_a_sync_it_is_corruption(
    place: Path, close: bool
) -> None:
    with ChangeLog(place, sync="manual") as log:
        for number in range(4):
            log.put(str(number), "x")
        if not close:
            whole = files(place)
    if close:
        whole = files(place)
    data = bytearray(whole["00000001.log"])
    data[HEADER + RECORD + 2 + 5] ^= 1  # in the header of the second of the four
    fill(place, {"00000001.log": bytes(data)})
    if close:
        assert "at offset 84" in damaged(place)
    else:
        with ChangeLog(place) as log:
            assert list(log) == [put("0", "x")]
            assert log.tail is not None
            assert log.tail.offset == 84


def test_a_file_missing_in_the_middle_is_corruption_and_missing_oldest_files_are_not(place: Path) -> None:
    with ChangeLog(place, max_file_size=HEADER + RECORD + 2) as log:
        for number in range(4):
            log.put(str(number), "x")
    (place / "00000003.log").rename(place / "elsewhere")
    assert "00000003.log" in damaged(place)
    (place / "elsewhere").rename(place / "00000003.log")
    (place / "00000001.log").unlink()
    (place / "00000002.log").unlink()
    assert replayed(place) == [put("2", "x"), put("3", "x")]


def test_files_that_changed_places_are_corruption(place: Path) -> None:
    with ChangeLog(place, max_file_size=HEADER + RECORD + 2) as log:
        for number in range(3):
            log.put(str(number), "x")
    whole = files(place)
    first, second, third = sorted(whole)
    fill(place, {first: whole[second], second: whole[first], third: whole[third]})
    assert "number 2" in damaged(place)


def test_a_file_that_does_not_continue_at_the_commit_before_it_is_corruption(place: Path) -> None:
    with ChangeLog(place) as log:
        log.commit([("a", "1")], 3, 0)
    following = FileHeader(number=2, salt=1, base_txid=3, previous_size=len(files(place)["00000001.log"]))
    (place / "00000002.log").write_bytes(following.pack())
    assert replayed(place) == [put("a", "1")]
    (place / "00000002.log").write_bytes(following._replace(base_txid=4).pack())
    assert "follows commit 4, the one before ends with commit 3" in damaged(place)


def test_a_directory_that_is_gone_is_an_error(place: Path) -> None:
    with ChangeLog(place) as log:
        place.rmdir()
        for call in (lambda: list(log), lambda: log.put("a", "1"), log.span):
            with pytest.raises(error) as caught:
                call()
            assert caught.value.errno == errno.ENOENT


def test_a_file_of_another_log_is_corruption(place: Path, tmp_path: Path) -> None:
    for directory, identity in ((place, IDENTITY), (tmp_path / "other", IDENTITY[::-1])):
        with ChangeLog(directory, max_file_size=HEADER + 2 * RECORD + 18) as log:
            log.bind(identity, 7)
            log.commit([("a", "1")], 8)
            log.commit([("b", "2")], 9)
    shutil.copy(tmp_path / "other" / "00000002.log", place / "00000002.log")
    assert "another database" in damaged(place)


@pytest.mark.parametrize(("codec", "other"), [("binary", "text"), ("text", "binary")])
def test_a_log_of_the_other_codec_is_refused_and_left_untouched(place: Path, codec: str, other: str) -> None:
    with ChangeLog(place, codec=other) as log:
        log.put("a", "1")
    before = files(place)
    damaged(place, codec)
    with ChangeLog(place, codec=codec) as log, pytest.raises(CorruptionError):
        log.put("b", "2")
    assert files(place) == before


def test_a_file_that_is_no_log_is_refused_and_left_untouched(place: Path) -> None:
    for content in (b"hello", b"SQLite format 3\x00" + bytes(100), b"\x89PNG\r\n\x1a\n", bytes(61)):
        fill(place, {"00000001.log": content})
        with ChangeLog(place) as log, pytest.raises(CorruptionError):
            log.put("b", "2")
        assert files(place) == {"00000001.log": content}


def test_a_newer_format_version_is_refused_and_left_untouched(place: Path) -> None:
    content = FileHeader(number=1, salt=3, version=2).pack() + b"something new"
    fill(place, {"00000001.log": content})
    with ChangeLog(place) as log:
        with pytest.raises(error, match="format version 2"):
            list(log)
        with pytest.raises(error, match="format version 2"):
            log.put("a", "1")
    assert files(place) == {"00000001.log": content}


@pytest.mark.parametrize("rest", [b"", bytes(HEADER), bytes(7), b"\x8dDLOG"])
def test_a_last_file_whose_creation_was_cut_short_is_begun_again(place: Path, rest: bytes) -> None:
    with ChangeLog(place, max_file_size=HEADER + RECORD + 2) as log:
        log.put("a", "1")
    (place / "00000002.log").write_bytes(rest)
    with ChangeLog(place) as log:
        assert list(log) == [put("a", "1")]
        assert (log.tail is None) == (rest == b"")
        log.put("b", "2")
        assert list(log) == [put("a", "1"), put("b", "2")]
    header = FileHeader.unpack(files(place)["00000002.log"])
    assert header is not None
    assert (header.number, header.previous_size) == (2, HEADER + RECORD + 2)


def test_a_torn_record_whose_value_holds_a_whole_log_is_still_a_tail(place: Path, tmp_path: Path) -> None:
    with ChangeLog(tmp_path / "inner") as log:
        for number in range(5):
            log.put(str(number), "x")
    inner = files(tmp_path / "inner")["00000001.log"]
    with ChangeLog(place) as log:
        log.put("a", "1")
        log.put("inner", inner * 3)
        log.put("c", "3")
        whole = files(place)["00000001.log"]
    second = HEADER + RECORD + 2
    end = second + RECORD + 5 + 3 * len(inner)
    for size in range(second + 1, end, 7):
        fill(place, {"00000001.log": whole[:size]})
        assert replayed(place) == [put("a", "1")]
    torn = bytearray(whole[:end])
    torn[second + RECORD] ^= 1  # a page of the value did not arrive, the copies of records behind it did
    fill(place, {"00000001.log": bytes(torn)})
    assert replayed(place) == [put("a", "1")]


def test_large_values_and_long_damage_are_read_in_pieces(place: Path) -> None:
    big = random.Random(3).randbytes(1_000_000)
    with ChangeLog(place) as log:
        log.put("a", big)
        log.put("b", big[::-1])
        log.put("c", "3")
    whole = bytearray(files(place)["00000001.log"])
    assert [change.value for change in replayed(place)] == [big, big[::-1], b"3"]
    whole[HEADER + 2] ^= 1  # the next record's header is a megabyte away
    fill(place, {"00000001.log": bytes(whole)})
    assert "at offset 60" in damaged(place)


def test_a_synced_record_proves_rot_wherever_the_pieces_that_are_searched_begin_and_end(place: Path) -> None:
    for before_the_cut in (0, 1, RECORD - 1, RECORD):
        size = log_files._CHUNK + 1 - before_the_cut - RECORD - 1
        with ChangeLog(fill(place, {}), volume=WatchedVolume()) as log:
            log.put("a", b"\x00" * size)
            log.put("b", "2")
            whole = bytearray(files(place)["00000001.log"])
        whole[HEADER] ^= 1  # the search begins at the next byte
        fill(place, {"00000001.log": bytes(whole)})
        assert "at offset 60" in damaged(place)


def test_a_long_line_of_text_is_read_in_pieces(place: Path) -> None:
    with ChangeLog(place, codec="text") as log:
        log.put("a", "x" * 3_000_000)
        log.delete("a")
    assert replayed(place, "text") == [put("a", "x" * 3_000_000), delete("a")]


# --- commits ----------------------------------------------------------------------------------------------


def test_a_commit_is_its_changes_then_one_record_with_txid_and_time(place: Path) -> None:
    volume = WatchedVolume()
    with ChangeLog(place, volume=volume) as log:
        log.commit({"a": "1", "b": None}.items(), 5, 123)
        before = len(volume.steps)
        log.commit([(b"c", b"2")], 6, 124)
        assert [step[0] for step in volume.steps[before:]] == ["write", "sync"]
        log.put("d", "4")
        log.commit([], 9, 125)
        assert list(log.records()) == [
            *(put("a", "1"), delete("b"), Commit(5, 123)),
            *(put("c", "2"), Commit(6, 124)),
            put("d", "4"),
            Commit(9, 125),
        ]
        assert list(log) == [put("a", "1"), delete("b"), put("c", "2"), put("d", "4")]
        assert log.span() == Span(None, 0, 9)


def test_the_time_of_a_commit_is_now_unless_given(place: Path) -> None:
    with ChangeLog(place) as log:
        log.commit([], 1)
        (commit,) = log.records()
    assert isinstance(commit, Commit)
    assert abs(commit.time_ns - os.stat(place / "00000001.log").st_mtime_ns) < 3600 * 10**9


def test_a_commit_cut_at_any_byte_counts_as_a_whole_or_not_at_all(place: Path) -> None:
    with ChangeLog(place, max_file_size=160) as log:  # the second commit lies in several files
        log.commit([("a", "1"), ("b", "1")], 1, 0)
        log.commit([(str(number), "2" * 9) for number in range(6)], 2, 0)
        whole, all_items = files(place), list(log.records())
    names = sorted(whole)
    assert len(names) >= 4
    seen = set()
    for last, name in enumerate(names):
        for size in range(len(whole[name]) + 1):
            fill(place, {other: whole[other] for other in names[:last]} | {name: whole[name][:size]})
            with ChangeLog(place, 400, volume=WatchedVolume()) as log:
                found = list(log.records())
                assert found in (all_items, all_items[:3], [])
                seen.add(len(found))
                txid = log.span().last_txid
                assert txid == len([item for item in found if isinstance(item, Commit)])
                log.commit([("new", "3")], txid + 1, 0)
                assert list(log.records()) == [*found, put("new", "3"), Commit(txid + 1, 0)]
    assert seen == {0, 3, len(all_items)}


def test_an_unfinished_commit_is_reported_and_void_whatever_follows(place: Path) -> None:
    with ChangeLog(place) as log:
        log.commit([("a", "1")], 1, 0)
        begin = files(place)["00000001.log"]
        log.commit([("b", "2"), ("c", "3")], 2, 0)
        whole = files(place)["00000001.log"]
    for follow in ("put", "commit", "sync"):
        fill(place, {"00000001.log": whole[: len(whole) - RECORD - 16]})
        with ChangeLog(place, sync="manual") as log:
            assert list(log) == [put("a", "1")]
            reason = "the commit that begins here was not finished"
            assert log.tail == Tail(str(place / "00000001.log"), len(begin), reason)
            if follow == "put":
                log.put("d", "4")
            elif follow == "commit":
                log.commit([("d", "4")], 2, 0)
            if follow != "sync":
                assert list(log) == [put("a", "1"), put("d", "4")]
                assert log.tail is None


def test_a_commit_that_raises_is_not_recorded_and_the_log_goes_on(place: Path) -> None:
    def broken(count: int) -> Iterator[tuple[str, str]]:
        for number in range(count):
            yield str(number), "x" * 1000
        raise RuntimeError("stop")

    with ChangeLog(place, max_file_size=500_000) as log:
        log.commit([("a", "1")], 1, 0)
        before = files(place)
        with pytest.raises(RuntimeError):
            log.commit(broken(5), 2)
        with pytest.raises(ValueError, match="needs a file of"):
            log.commit([("b", "1"), ("c", "x" * 500_000)], 2)
        with pytest.raises(TypeError):
            log.commit([("b", "1"), (3, "4")], 2)  # type: ignore[list-item]
        assert files(place) == before
        log.put("b", "1")
        assert len(files(place)["00000001.log"]) == len(before["00000001.log"]) + RECORD + 2
        with pytest.raises(RuntimeError):
            log.commit(broken(3000), 2)  # long enough that much of it has been written by then
        assert len(files(place)) > 3
        assert list(log) == [put("a", "1"), put("b", "1")]
        log.commit([("d", "2")], 2, 0)
        expected = [put("a", "1"), Commit(1, 0), put("b", "1"), put("d", "2"), Commit(2, 0)]
        assert list(log.records()) == expected
        assert log.span() == Span(None, 0, 2)
    assert replayed(place) == [put("a", "1"), put("b", "1"), put("d", "2")]


@pytest.mark.parametrize("txid", [-1, 0, 3, 4, 2**64])
def test_a_txid_that_is_not_above_the_last_one_or_too_large_is_a_value_error(place: Path, txid: int) -> None:
    with ChangeLog(place) as log:
        log.commit([], 4, 0)
    with ChangeLog(place) as log:
        with pytest.raises(ValueError):
            log.commit([("a", "1")], txid)
        with pytest.raises(ValueError):
            log.commit([("a", "1")], 5, -1)
        assert list(log.records()) == [Commit(4, 0)]


def test_text_has_neither_commits_nor_identity(place: Path) -> None:
    with ChangeLog(place, codec="text") as log:
        with pytest.raises(ValueError, match="no commit record"):
            log.commit([("a", "1")], 1)
        with pytest.raises(ValueError, match="which database"):
            log.bind(IDENTITY, 1)
        log.put("a", "1")
        assert log.span() == Span(None, 0, 0)
    assert files(place) == {"00000001.log": b"P|a|1\n"}


def test_a_window_of_commits_can_be_replayed(place: Path) -> None:
    with ChangeLog(place, max_file_size=200) as log:
        assert log.bind(IDENTITY, 4) == 4
        for txid in range(5, 10):
            log.commit([("k", str(txid)), (str(txid), "x")], txid, txid * 100)

        def txids(**window: int) -> list[int]:
            return [item.txid for item in log.records(**window) if isinstance(item, Commit)]

        assert txids() == [5, 6, 7, 8, 9]
        assert txids(after_txid=4) == [5, 6, 7, 8, 9]
        assert txids(after_txid=7) == [8, 9]
        assert txids(until_txid=7) == [5, 6, 7]
        assert txids(until_time_ns=750) == [5, 6, 7]
        assert txids(after_txid=5, until_txid=8, until_time_ns=700) == [6, 7]
        assert txids(after_txid=9) == []
        assert txids(until_txid=4) == []
        with pytest.raises(error, match="begins after commit 4, not after 3"):
            list(log.records(after_txid=3))
        db = Store({b"k": b"6", b"6": b"x"})
        assert log.load_into(db, after_txid=6, until_txid=8) == 4
        assert db == {b"k": b"8", b"6": b"x", b"7": b"x", b"8": b"x"}


def test_where_the_clock_was_set_back_the_last_commit_that_is_not_later_counts(place: Path) -> None:
    times = {1: 1200, 2: 1210, 3: 1115, 4: 1130, 5: 1201}
    with ChangeLog(place) as log:
        for txid, moment in times.items():
            log.commit([("k", str(txid))], txid, moment)

        def txids(time_ns: int) -> list[int]:
            return [item.txid for item in log.records(until_time_ns=time_ns) if isinstance(item, Commit)]

        assert log.at(1100) == (Commit(0, 0), None)
        assert log.at(1120) == (Commit(3, 1115), Commit(1, 1200))
        assert log.at(1200) == (Commit(4, 1130), Commit(2, 1210))
        assert log.at(1205) == (Commit(5, 1201), Commit(2, 1210))
        assert log.at(1210) == (Commit(5, 1201), None)
        assert [txids(moment) for moment in (1100, 1120, 1200, 1205)] == [
            [], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]
        ]  # fmt: skip
        db = Store()
        log.load_into(db, until_time_ns=1120)
        assert db == {b"k": b"3"}
        assert log.at(1210).explanation() == ""
        assert "set back: commit 3 of" in log.at(1120).explanation()
        assert "from 1 on" in log.at(1120).explanation()


def test_a_commit_larger_than_memory_allows_is_replayed_within_bounds(place: Path) -> None:
    count, value = 4000, b"v" * 5000
    with ChangeLog(place, max_file_size=2**21) as log:
        tracemalloc.start()
        try:
            log.commit([("before", "1")], 1, 0)
            log.commit(((str(number), value) for number in range(count)), 2, 0)
            wrote = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            expected = 0
            for item in log.records(after_txid=1):
                if isinstance(item, Change):
                    assert item == ("put", str(expected).encode(), value)
                    expected += 1
            read = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert expected == count
    assert max(wrote, read) < 6 * 2**20 < count * len(value)


def test_a_log_that_lost_the_beginning_of_a_commit_says_so_unless_it_is_not_asked_for(place: Path) -> None:
    with ChangeLog(place, max_file_size=200) as log:
        log.bind(IDENTITY, 0)
        log.commit([(str(number), "x" * 50) for number in range(6)], 1, 0)
        log.commit([("b", "2")], 2, 0)
    (place / "00000001.log").unlink()
    assert "beginning of commit 1" in damaged(place)
    with ChangeLog(place) as log:
        assert list(log.records(after_txid=1)) == [put("b", "2"), Commit(2, 0)]


# --- whose log it is --------------------------------------------------------------------------------------


def test_binding_an_empty_log_is_durable_and_lasts(place: Path) -> None:
    with ChangeLog(place, max_file_size=HEADER + RECORD + 20) as log:
        assert log.bind(IDENTITY, 7) == 7
        assert log.span() == Span(IDENTITY, 7, 7)
    assert FILE_HEADER.unpack_from(files(place)["00000001.log"])[-1] == IDENTITY
    with ChangeLog(place, max_file_size=HEADER + RECORD + 20) as log:
        assert log.bind(IDENTITY, 9) == 7  # commits 8 and 9 are missing: the caller must know
        log.commit([("a", "1")], 8, 0)
        log.commit([("b", "1")], 9, 0)
    assert len(files(place)) == 4
    for data in files(place).values():
        header = FileHeader.unpack(data)
        assert header is not None
        assert header.identity == IDENTITY
    with ChangeLog(place) as log:
        assert log.bind(IDENTITY, 9) == 9
        assert log.span() == Span(IDENTITY, 7, 9)
        with pytest.raises(error, match="of another database"):
            log.bind(IDENTITY[::-1], 9)


def test_a_log_with_changes_of_no_database_cannot_be_bound(place: Path) -> None:
    with ChangeLog(place) as log:
        log.put("a", "1")
        with pytest.raises(error, match="of no database"):
            log.bind(IDENTITY, 1)
        log.put("b", "2")
        assert list(log) == [put("a", "1"), put("b", "2")]


@pytest.mark.parametrize("identity", [b"", bytes(16), b"short", b"x" * 17])
def test_an_identity_is_16_bytes_and_not_all_zero(place: Path, identity: bytes) -> None:
    with ChangeLog(place) as log, pytest.raises(ValueError, match="16 bytes"):
        log.bind(identity, 1)


# --- when it is synced ------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_sync_record_syncs_once_in_every_append(place: Path, codec: str) -> None:
    volume = WatchedVolume()
    with ChangeLog(place, codec=codec, volume=volume) as log:
        log.put("a", "1")
        for call in (lambda: log.put("b", "2"), lambda: log.delete("b")):
            before = len(volume.steps)
            call()
            assert [step[0] for step in volume.steps[before:]] == ["write", "sync"]
        before = volume.count("sync")
        log.sync()
    assert volume.count("sync") == before


def test_sync_interval_syncs_in_the_append_that_finds_something_too_old(place: Path) -> None:
    volume = WatchedVolume()
    with ChangeLog(place, sync="interval", interval=3600, volume=volume) as log:
        log.put("a", "1")
        before = volume.count("sync")
        log.put("b", "2")
        assert volume.count("sync") == before
        log.sync()
        assert volume.count("sync") == before + 1
        log.put("b", "2")
    assert volume.count("sync") == before + 2
    with ChangeLog(place, sync="interval", interval=0, volume=volume) as log:
        log.put("a", "1")
        before = volume.count("sync")
        log.put("b", "2")
        assert volume.count("sync") == before + 1


def test_sync_manual_syncs_in_sync_and_close_and_before_a_new_file(place: Path) -> None:
    volume = WatchedVolume()
    with ChangeLog(place, max_file_size=HEADER + 3 * (RECORD + 2), sync="manual", volume=volume) as log:
        log.put("a", "1")
        before = len(volume.steps)
        log.put("b", "2")
        log.put("c", "3")
        log.put("d", "4")
        assert [step[:2] for step in volume.steps[before:]] == [
            ("write", "00000001.log"),
            ("write", "00000001.log"),
            ("sync", "00000001.log"),
            ("create", "00000002.log"),
            ("write", "00000002.log"),
            ("sync", "00000002.log"),
            ("sync_directory", "00000002.log"),
            ("write", "00000002.log"),
        ]
        before = len(volume.steps)
        log.sync()
        log.sync()
        log.put("e", "5")
    names = [step[0] for step in volume.steps[before:]]
    assert names == ["sync", "write", "write", "sync"]  # sync(), its mark, the put, close() without room


def test_a_reopened_log_is_synced_before_anything_is_appended(place: Path) -> None:
    with ChangeLog(place) as log:
        log.put("a", "1")
    with open(place / "00000001.log", "ab") as stream:
        stream.write(b"torn")
    volume = WatchedVolume()
    with ChangeLog(place, volume=volume) as log:
        log.put("b", "2")
        steps = [step[0] for step in volume.steps]
        assert steps == ["forget", "resize", "sync", "sync_directory", "write", "sync"]
        assert log.tail is not None
        assert log.tail.reason == "the file ends within a record"


# --- faults -----------------------------------------------------------------------------------------------


def scenario(log: ChangeLog, done: list[Change]) -> None:
    """Appends of all kinds, over several files; `done` has those that returned."""
    for number in range(9):
        change = delete("k") if number % 4 == 3 else put("k", str(number) * number)
        append(log, change)
        done.append(change)
    log.commit([("x", "1"), ("y", "2")], 1, 0)
    done += [put("x", "1"), put("y", "2")]
    log.sync()


OPENING = 4  # steps that becoming the writer takes: create, forget, sync, sync_directory


def faults(place: Path) -> int:
    volume = WatchedVolume()
    with ChangeLog(fill(place, {}), 220, volume=volume) as log:
        scenario(log, [])
    return len(volume.steps)


@pytest.mark.parametrize("sync", ["record", "manual"])
def test_after_any_failed_write_or_sync_nothing_is_appended_and_a_reopen_finds_a_prefix(
    place: Path, sync: str
) -> None:
    failures = 0
    for fail_at in range(faults(place)):
        for short in (0, 1, 25, 10_000):
            volume, done = WatchedVolume(fail_at, short), list[Change]()
            log = ChangeLog(fill(place, {}), 220, "binary", sync, volume=volume)
            try:
                scenario(log, done)
            except error:
                failures += 1
                if fail_at >= OPENING:  # not while opening, which is simply tried again
                    before = files(place)
                    for call in (partial(log.put, "z", "9"), log.sync, partial(log.commit, [], 99)):
                        with pytest.raises(error, match="has failed"):
                            call()
                    assert files(place) == before
                with suppress(error):  # raised again if something acknowledged was not synced
                    log.close()
            else:
                log.close()
            with ChangeLog(place, 220) as log:
                found = list(log)
                assert found[: len(done)] == done
                assert len(found) <= len(done) + 2  # the one that raised may have arrived
                log.put("z", "9")
                assert list(log) == [*found, put("z", "9")]
    assert failures > 60


def test_a_failure_while_opening_is_forgotten_by_the_next_append(place: Path) -> None:
    with ChangeLog(place, volume=WatchedVolume()) as log:
        log.put("a", "1")
    with ChangeLog(place, volume=WatchedVolume(fail_at=0)) as log:
        with pytest.raises(error) as caught:
            log.put("b", "2")
        assert caught.value.errno == errno.EIO
        log.put("c", "3")
        assert list(log) == [put("a", "1"), put("c", "3")]


def test_close_raises_if_it_cannot_sync_and_has_let_go_all_the_same(place: Path) -> None:
    volume = WatchedVolume()
    log = ChangeLog(place, sync="manual", volume=volume)
    log.put("a", "1")
    volume.fail_at = len(volume.steps)
    with pytest.raises(error) as caught:
        log.close()
    assert caught.value.errno == errno.EIO
    log.close()
    with ChangeLog(place) as other:
        other.put("b", "2")


def test_a_mark_that_cannot_be_written_is_no_failure_of_close(place: Path) -> None:
    volume = WatchedVolume(short=5)
    log = ChangeLog(place, volume=volume)
    log.put("a", "1")
    volume.fail_at = len(volume.steps)
    log.close()
    assert volume.steps[-1][0] == "write"
    assert replayed(place) == [put("a", "1")]


def test_a_read_error_is_one_of_ours_with_errno_and_path(place: Path) -> None:
    with ChangeLog(place) as log:
        log.put("a", "1")

    class Broken(FileVolume):
        def open(self, path: str, *, writable: bool) -> FileDisk:
            disk = super().open(path, writable=writable)

            def read(length: int, offset: int) -> bytes:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            disk.read = read
            return disk

    with ChangeLog(place, volume=Broken()) as log:
        for call in (lambda: list(log), lambda: log.put("b", "2"), log.span):
            with pytest.raises(error) as caught:
                call()
            assert caught.value.errno == errno.EIO
            assert caught.value.filename == str(place / "00000001.log")


def images(steps: Sequence[tuple[Any, ...]], rng: random.Random, block: int) -> dict[str, bytes]:
    """A directory as a power failure after `steps` may leave it.

    What was synced is there. Of every write since, each block of `block` bytes has arrived or not, and the
    file's size is any between the synced one and the last; a file whose name was not synced may be missing.
    """
    synced: dict[str, bytes] = {}
    now: dict[str, bytearray] = {}
    named: set[str] = set()
    for name, path, *details in steps:
        if name == "create":
            now[path], synced[path] = bytearray(), b""
        elif name == "write":
            offset, data = details
            now[path].extend(bytes(max(0, offset - len(now[path]))))
            now[path][offset : offset + len(data)] = data
        elif name == "resize":
            del now[path][details[0] :]
        elif name == "sync":
            synced[path] = bytes(now[path])
        elif name == "sync_directory":
            named |= set(now)
    result = {}
    for path, data in now.items():
        size = rng.randint(min(len(synced[path]), len(data)), len(data))
        image = bytearray(synced[path][:size].ljust(size, b"\x00"))
        for start in range(0, size, block):
            if rng.random() < 0.5:
                image[start : start + block] = data[start : min(start + block, size)]
        if path in named or rng.random() < 0.5:
            result[path] = bytes(image)
    return result


@pytest.mark.parametrize("sync", ["record", "interval", "manual"])
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 1000), marks=pytest.mark.long)], ids=str)
def test_after_a_power_failure_at_any_step_a_prefix_is_left_that_has_all_that_was_synced(
    place: Path, sync: str, seeds: range
) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        volume, states, synced = WatchedVolume(), [list[Change]()], [(0, 0)]
        log = ChangeLog(fill(place, {}), 260, "binary", sync, 3600, volume=volume)
        for txid in range(1, 10):
            changes = random_changes(rng, "binary", rng.choice((1, 1, 2, 4)))
            if len(changes) > 1 or rng.random() < 0.3:
                log.commit(changes_of(changes), txid)
            else:
                append(log, changes[0])
            states.append(states[-1] + changes)
            if sync != "record" and rng.random() < 0.2:
                log.sync()
                synced.append((len(volume.steps), txid))
            elif sync == "record":
                synced.append((len(volume.steps), txid))
        log.close()
        synced.append((len(volume.steps), len(states) - 1))
        for stop in range(1, len(volume.steps) + 1):
            fill(place, images(volume.steps[:stop], rng, rng.choice((8, 16, 64))))
            safe = max(count for steps, count in synced if steps <= stop)
            with ChangeLog(place, 260, volume=WatchedVolume()) as log:
                found = list(log)
                assert found in states[safe:], f"seed {seed}, step {stop}"
                log.put("more", "1")
                assert list(log) == [*found, put("more", "1")], f"seed {seed}, step {stop}"


# --- one writer, many readers -----------------------------------------------------------------------------


def test_a_second_writer_is_busy_until_the_first_one_closes_and_readers_never_wait(place: Path) -> None:
    first, second = ChangeLog(place), ChangeLog(place)
    first.put("a", "1")
    with pytest.raises(BusyError, match="another writer"):
        second.put("b", "2")
    with pytest.raises(BusyError, match="another writer"):
        second.bind(IDENTITY, 1)
    assert list(second) == [put("a", "1")]
    first.close()
    second.put("b", "2")
    with ChangeLog(place) as third:
        with pytest.raises(BusyError):
            third.put("c", "3")
        assert list(third) == [put("a", "1"), put("b", "2")]
    del second  # dropped, not closed: its lock goes with it
    with ChangeLog(place) as fourth:
        fourth.put("c", "3")


@needs_immediate_removal
def test_removing_the_oldest_files_under_a_writer_lets_no_second_one_in(place: Path) -> None:
    with ChangeLog(place, max_file_size=HEADER + RECORD + 2) as first, ChangeLog(place) as second:
        for number in range(4):
            first.put(str(number), "x")
        (place / "00000001.log").unlink()
        (place / "00000002.log").unlink()
        with pytest.raises(BusyError):
            second.put("z", "9")
        first.put("4", "x")
        with pytest.raises(BusyError):
            second.put("z", "9")
        assert list(second) == [put("2", "x"), put("3", "x"), put("4", "x")]


def test_after_close_everything_but_close_raises_closed_error(place: Path) -> None:
    log = ChangeLog(place)
    log.put("a", "1")
    begun = log.replay()
    log.close()
    log.close()
    assert log.closed
    calls: list[Callable[[], Any]] = [
        lambda: log.put("a", "1"),
        lambda: log.delete("a"),
        lambda: log.commit([], 1),
        lambda: log.bind(IDENTITY, 1),
        log.sync,
        log.replay,
        log.records,
        log.span,
        lambda: log.load_into(Store()),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="log of changes"):
            call()
    assert list(begun) == [put("a", "1")]


def test_threads_may_append_through_one_log(place: Path) -> None:
    with ChangeLog(place, max_file_size=2000, volume=WatchedVolume()) as log:

        def work(name: str) -> None:
            for number in range(100):
                log.put(name, str(number))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = list(log)
    assert len(found) == 400
    for name in "abcd":
        mine = [change for change in found if change.key == name.encode()]
        assert mine == [put(name, str(number)) for number in range(100)]


def test_a_reader_beside_a_writer_always_sees_a_prefix(place: Path) -> None:
    expected = [put("key", str(number) * 20) for number in range(1500)]
    with ChangeLog(place, max_file_size=3000, volume=WatchedVolume()) as log, ChangeLog(place) as reader:

        def work() -> None:
            for change in expected:
                append(log, change)

        thread = threading.Thread(target=work)
        thread.start()
        lengths = []
        while thread.is_alive() or not lengths:
            found = list(reader)
            assert found == expected[: len(found)]
            lengths.append(len(found))
        thread.join()
        assert list(reader) == expected
    assert lengths == sorted(lengths)


def test_a_torn_tail_that_gives_way_to_records_while_it_is_read_is_no_corruption(place: Path) -> None:
    with ChangeLog(place) as log:
        log.put("a", "1")
        log.put("b", "2")
        log.put("c", "3")
        whole = files(place)["00000001.log"]
    second = HEADER + RECORD + 2
    torn = whole[:second] + bytes(RECORD + 2) + whole[second + RECORD + 2 :]
    fill(place, {"00000001.log": torn})
    assert "at offset 84" in damaged(place)

    class Late(FileVolume):
        """A reader that sees torn bytes at its first look, and then what a writer has put there since."""

        def open(self, path: str, *, writable: bool) -> FileDisk:
            disk = super().open(path, writable=writable)
            reads, read = [], disk.read

            def late(length: int, offset: int) -> bytes:
                reads.append(offset)
                if len(reads) == 2:
                    (place / "00000001.log").write_bytes(whole)
                return read(length, offset)

            disk.read = late
            return disk

    with ChangeLog(place, volume=Late()) as log:
        assert list(log) == [put("a", "1"), put("b", "2"), put("c", "3")]
        assert log.tail is None


WRITER = """
import sys
from durabledbm.changelog import ChangeLog
log = ChangeLog(sys.argv[1], max_file_size=500, codec=sys.argv[2], sync=sys.argv[3])
number = int(sys.argv[4])
while True:
    log.put("key", str(number))
    number += 1
    print(number, flush=True)
"""


@pytest.mark.parametrize(
    ("codec", "sync"), [("binary", "record"), ("binary", "manual"), ("text", "interval")]
)
def test_a_killed_process_loses_nothing_that_was_acknowledged_and_leaves_no_lock(
    place: Path, codec: str, sync: str
) -> None:
    count = 0
    for kill_after in (1, 7, 30):
        command = [sys.executable, "-c", WRITER, str(place), codec, sync, str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(kill_after):
                acknowledged = int(process.stdout.readline())
            process.send_signal(KILL)
            acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
        found = replayed(place, codec)
        count = len(found)
        assert found == [put("key", str(number)) for number in range(count)]
        assert count >= acknowledged


FORKER = """
import os, sys
from durabledbm.changelog import ChangeLog
from durabledbm.errors import BusyError
log = ChangeLog(sys.argv[1], sync="manual")
log.put("a", "1")
size = os.stat(sys.argv[1] + "/00000001.log").st_size
pid = os.fork()
if pid == 0:
    assert [tuple(change) for change in log] == [("put", b"a", b"1")]
    try:
        log.put("b", "2")
    except BusyError:
        log.close()
        os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert os.stat(sys.argv[1] + "/00000001.log").st_size == size
log.put("c", "3")
log.close()
"""


@needs_fork
def test_a_forked_child_is_a_reader_while_its_parent_writes(place: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKER, str(place)], check=True, timeout=60)
    assert replayed(place) == [put("a", "1"), put("c", "3")]


def test_every_public_name_is_exported_and_documented() -> None:
    for name in changelog.__all__:
        assert getattr(changelog, name).__doc__
    names = [name for name in dir(ChangeLog) if not name.startswith("_") and name != "tail"]
    assert all(getattr(ChangeLog, name).__doc__ for name in names)


# -- closed by a signal handler


@pytest.mark.parametrize("call", ["put", "commit", "sync", "bind"])
def test_a_log_does_not_wait_for_its_own_thread(
    place: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What interrupts a call of it is told so; it may close the log, which happens when the call has ended."""
    log = ChangeLog(place, sync="manual")
    if call == "sync":
        log.put("first", "1")
    name = "sync" if call == "sync" else "write"
    original, seen = getattr(FileDisk, name), []

    def interrupted(*args: Any) -> Any:
        monkeypatch.undo()
        for use in (lambda: log.put("k", "2"), log.sync, log.newest, lambda: log.note(b"n")):
            with pytest.raises(BusyError, match="inside an operation"):
                use()
        log.close()
        seen.append(log.closed)
        return original(*args)

    monkeypatch.setattr(FileDisk, name, interrupted)
    {
        "put": lambda: log.put("k", "1"), "commit": lambda: log.commit([("k", "1")], 1), "sync": log.sync,
        "bind": lambda: log.bind(bytes(range(16)), 5),
    }[call]()  # fmt: skip
    assert (seen, log.closed) == ([False], True)
    with ChangeLog(place) as again:
        found = [(change.key, change.value) for change in again.replay()]
    assert found == {"put": [(b"k", b"1")], "commit": [(b"k", b"1")], "sync": [(b"first", b"1")], "bind": []}[call]


def test_a_log_that_was_interrupted_is_closed_without_a_complaint(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was appended before is synced: nothing is wrong with the disk."""
    log = ChangeLog(place, sync="manual")
    log.put("k", "1")
    write, sync, synced = FileDisk.write, FileDisk.sync, []

    def interrupted(*_: Any) -> None:
        monkeypatch.setattr(FileDisk, "write", write)
        monkeypatch.setattr(FileDisk, "sync", lambda disk: (synced.append(disk), sync(disk)))
        log.close()
        raise SystemExit

    monkeypatch.setattr(FileDisk, "write", interrupted)
    monkeypatch.setattr(sys, "unraisablehook", lambda report: pytest.fail(f"{report.exc_value}"))
    with pytest.raises(SystemExit):
        log.put("k", "2")
    assert log.closed
    assert synced
    with ChangeLog(place) as again:
        assert [change.value for change in again.replay()] == [b"1"]
