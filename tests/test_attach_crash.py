"""Power failures and interrupts while a log is attached: afterwards log and database agree, or a call says that not.

Both are on one simulated volume, and every point of a workload is a crash point with states that the unsynced writes
of either may leave.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from simdisk import Crash, SimVolume
from test_attach import write_at_random
from test_interrupts import PATH, Interrupter, image, put, raise_interrupt, traced, transaction, update

from durabledbm._log import files as log_files
from durabledbm.changelog import ChangeLog
from durabledbm.database import open_on
from durabledbm.errors import error

DB = "/db"

pytestmark = pytest.mark.no_cover  # tracing would take longer than the search; other tests cover the same lines


@pytest.fixture(autouse=True)
def _names_of_the_simulated_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's directory is listed on the volume that its files are on."""

    def listed(files: log_files.Files) -> list[int]:
        volume = files.volume
        assert isinstance(volume, SimVolume)
        inside = [path for path in volume.paths() if path.startswith(files.directory + "/")]
        return sorted(int(os.path.basename(path)[:-4]) for path in inside)

    monkeypatch.setattr(log_files.Files, "_listed", listed)


def folded(before: dict[bytes, bytes], log: ChangeLog) -> dict[bytes, bytes]:
    content = dict(before)
    for _, key, value in log.replay():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    return content


class Workload:
    """Commits with a log attached, recorded; `before` is what the log does not hold."""

    def __init__(self, directory: Path, durability: str, sync: str, *, empty: bool, seed: int, count: int) -> None:
        self.directory = str(directory)
        self.sync = sync
        self.volume = SimVolume()
        rng = random.Random(seed)
        with open_on(self.volume, DB, "c") as db:
            if not empty:
                write_at_random(db, rng, 25)
            self.before = dict(db.items())
        with self.log(self.volume) as log, open_on(self.volume, DB, "w", durability=durability, interval=1000.0) as db:
            db.attach(log)
            log.sync()
            self.trace = self.volume.record()
            for number in range(count):
                write_at_random(db, rng, 1)
                if durability != "full" and number % 4 == 3:
                    db.sync()

    def log(self, volume: SimVolume) -> ChangeLog:
        return ChangeLog(self.directory, max_file_size=6000, sync=self.sync, interval=1000.0, volume=volume)

    def survives(self, crash: Crash) -> bool:
        """Attach after the crash. False if that was refused; asserts that it is right otherwise."""
        with self.log(crash.volume) as log, open_on(crash.volume, DB, "w") as db:
            content = dict(db.items())
            refusal = ""
            try:
                db.attach(log)
            except error as exc:
                refusal = str(exc)
            if refusal:
                assert "new log" in refusal, crash.index
                return False
            assert dict(db.items()) == content
            assert folded(self.before, log) == content, crash.index
            db["afterwards"] = "1"
            del db["afterwards"]
            assert folded(self.before, log) == content, crash.index
        return True

    def tried(self, crashes: Iterable[Crash], *, share: float = 1.0) -> Iterator[bool]:
        """What became of the crashes, or of a share of them."""
        rng = random.Random(1)
        return (self.survives(crash) for crash in crashes if share == 1.0 or rng.random() < share)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(("durability", "sync"), [("full", "record"), ("process", "record"), ("manual", "record")])
def test_with_a_synced_log_attaching_always_completes(tmp_path: Path, durability: str, sync: str, empty: bool) -> None:
    work = Workload(tmp_path, durability, sync, empty=empty, seed=1, count=12)
    assert all(work.tried(work.trace.crashes(limit=10, seed=0, epoch=lambda index: index), share=0.25))


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("durability", ["full", "process"])
def test_with_an_unsynced_log_attaching_completes_or_refuses(tmp_path: Path, durability: str, empty: bool) -> None:
    work = Workload(tmp_path, durability, "manual", empty=empty, seed=2, count=12)
    results = list(work.tried(work.trace.crashes(limit=2, seed=0, epoch=lambda index: index), share=0.1))
    assert results.count(True) > len(results) // 3
    if empty:
        assert all(results), "a log from the beginning can always be compared with the database"


@pytest.mark.parametrize("durability", ["full", "process", "manual"])
def test_after_a_kill_at_any_point_attaching_completes(tmp_path: Path, durability: str) -> None:
    work = Workload(tmp_path, durability, "manual", empty=False, seed=3, count=12)
    assert all(work.tried(work.trace.kills()))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("durability", ["full", "process", "manual"])
@pytest.mark.parametrize("sync", ["record", "manual"])
def test_many_power_failures(tmp_path: Path, durability: str, sync: str, seed: int) -> None:
    work = Workload(tmp_path, durability, sync, empty=seed % 2 == 0, seed=seed + 100, count=30)
    results = list(work.tried(work.trace.crashes(limit=40, seed=seed, epoch=lambda index: index)))
    if sync == "record" or seed % 2 == 0:
        assert all(results)
    assert all(work.tried(work.trace.kills()))


# -- interrupts


def interrupted(
    directory: Path, operation: Callable[[Any], None], durability: str, codec: str, at: int, *, close: bool
) -> tuple[int, bool]:
    """Interrupt the operation at its `at`-th moment. How many there were, and whether a later call complained."""
    volume = SimVolume({PATH: image()})
    log = ChangeLog(str(directory), codec=codec, sync="manual", volume=volume)
    before = dict(open_on(volume, PATH, "r").items())
    db = open_on(volume, PATH, "w", durability=durability, interval=3600.0, timeout=0.2)
    attachment = db.attach(log)
    db.update({b"one": b"1", b"two": b"2"})
    with Interrupter(raise_interrupt, at) as interrupter:
        try:
            operation(db)
        except KeyboardInterrupt:
            sys.settrace(None)
    complained = False
    try:
        if not close:
            attachment.catch_up()
            db[b"other"] = b"1"
            attachment.catch_up()
        db.close()
        log.close()
    except error:
        complained = True
    with open_on(volume, PATH, "r") as reader, ChangeLog(str(directory), codec=codec, volume=volume) as again:
        assert complained or folded(before, again) == dict(reader.items()), interrupter.where
    return interrupter.moments, complained


@traced
@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("durability", ["full", "process", "manual"])
@pytest.mark.parametrize("operation", [put, update, transaction], ids=lambda operation: operation.__name__)
def test_an_interrupt_loses_no_commit_in_silence(
    tmp_path: Path, operation: Callable[[Any], None], durability: str, *, close: bool
) -> None:
    search(tmp_path, operation, durability, "binary", close=close, stride=67)


@traced
@pytest.mark.long
@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("codec", ["binary", "text"])
@pytest.mark.parametrize("durability", ["full", "process", "manual"])
@pytest.mark.parametrize("operation", [put, update, transaction], ids=lambda operation: operation.__name__)
def test_every_interrupt_loses_no_commit_in_silence(
    tmp_path: Path, operation: Callable[[Any], None], durability: str, codec: str, *, close: bool
) -> None:
    search(tmp_path, operation, durability, codec, close=close, stride=1)


def search(
    directory: Path, operation: Callable[[Any], None], durability: str, codec: str, *, close: bool, stride: int
) -> None:
    count, _ = interrupted(directory, operation, durability, codec, 0, close=close)
    complaints = [
        interrupted(directory, operation, durability, codec, at, close=close)[1]
        for at in range(1 + len(operation.__name__), count + 1, stride)
    ]
    assert sum(complaints) < 2 + len(complaints) // 20, "only a write of the log itself that was interrupted spoils it"
