"""Waiting that is bounded by what was really waited, whatever the clock says."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crew import Crew, wait_until

import durabledbm
from durabledbm._engine import threads
from durabledbm._engine.threads import Patience
from durabledbm.changelog import ChangeLog

CLOCKS = ("monotonic", "time", "perf_counter", "monotonic_ns", "time_ns", "perf_counter_ns")


def standing() -> Callable[[], float]:
    return lambda: 12345.0


def back_and_forth() -> Callable[[], float]:
    """Hours ahead, and hours back."""
    steps = itertools.cycle((0.0, 7200.0, -3600.0))
    return lambda: 50_000.0 + next(steps)


def running_away() -> Callable[[], float]:
    steps = itertools.count()
    return lambda: 50_000.0 + 3600.0 * next(steps)


@pytest.fixture(params=[standing, back_and_forth, running_away])
def odd_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clocks are replaced as libraries for tests do it: in `time`, and wherever a module has imported them."""
    import durabledbm._engine.flusher  # noqa: F401 - what is imported later would be spared

    clock: Callable[[], float] = request.param()
    for name in CLOCKS:
        real = getattr(time, name)
        fake = clock if not name.endswith("_ns") else lambda: int(clock() * 1e9)
        for module in [module for key, module in sys.modules.items() if key.startswith("durabledbm")]:
            for attribute, value in list(vars(module).items()):
                if value is real:
                    monkeypatch.setattr(module, attribute, fake)
        monkeypatch.setattr(time, name, fake)
    yield
    monkeypatch.undo()


class Naps:
    """What is slept, without sleeping, and a clock that tells so, times a factor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, factor: float = 1.0) -> None:
        self.slept: list[float] = []
        self.factor = factor
        monkeypatch.setattr(threads, "sleep", self.slept.append)
        monkeypatch.setattr(threads, "monotonic", lambda: 100.0 + self.factor * sum(self.slept))


@pytest.mark.parametrize("factor", [1.0, 0.0, -5.0, 1000.0])
def test_naps_are_added_up(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Where the clock stands still, goes back or runs away, a nap counts as long as it was to be."""
    naps = Naps(monkeypatch, factor=factor)
    patience = Patience(10.0)
    while not patience.over:
        patience.nap(3.0)
    assert naps.slept == [3.0, 3.0, 3.0, 1.0]


def test_a_nap_that_took_longer_counts_as_long_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    naps = Naps(monkeypatch, factor=1.25)
    patience = Patience(10.0)
    while not patience.over:
        patience.nap(3.0)
    assert naps.slept == [3.0, 3.0, 2.5]


def test_patience_without_a_limit_is_never_over(monkeypatch: pytest.MonkeyPatch) -> None:
    Naps(monkeypatch)
    patience = Patience(None)
    for _ in range(100):
        patience.nap(1e6)
    assert not patience.over


def test_no_time_is_over_at_once() -> None:
    patience = Patience(0.0)
    assert patience.over
    patience.nap(5.0)  # of which nothing is left


def test_waiting_for_a_gate_counts_as_long_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [True, False, False]

    class Gate:
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            answer = answers.pop(0)
            naps.slept.append(0.5 if answer else timeout)
            return answer

    naps, patience, gate = Naps(monkeypatch), Patience(10.0), Gate()
    assert patience.acquire(gate, 4.0)
    assert patience.left == 9.5
    assert not patience.acquire(gate, 4.0)
    assert patience.left == 5.5
    naps.factor = 0.0
    assert not patience.acquire(gate, 4.0)
    assert patience.left == 1.5


# -- with clocks that are replaced


@pytest.mark.usefixtures("odd_clock")
@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_a_write_gives_up_after_its_timeout(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c") as holder, holder.transaction():
        holder["k"] = "v"

        def write() -> None:
            with durabledbm.open(db_path, "w", durability=durability, timeout=0.1) as other:
                other["k"] = "w"

        failures = [Crew().start(write).failure() for _ in range(2)]
    assert [type(failure) for failure in failures] == [durabledbm.BusyError] * 2


@pytest.mark.usefixtures("odd_clock")
def test_a_write_through_the_same_handle_gives_up_after_its_timeout(db_path: str) -> None:
    with durabledbm.open(db_path, "c", timeout=0.1) as db, db.transaction():
        db["k"] = "v"
        crew = Crew()
        tasks = [crew.start(db.__setitem__, "k", f"{number}") for number in range(3)]
        tasks.append(crew.start(db.update, {"k": "w", "l": "w"}))
        assert [type(task.failure()) for task in tasks] == [durabledbm.BusyError] * 4


@pytest.mark.usefixtures("odd_clock")
def test_a_wait_is_not_given_up_because_a_clock_has_jumped(db_path: str) -> None:
    """What is waited for comes soon, and by far in time."""
    begun, go_on = threading.Event(), threading.Event()
    with durabledbm.open(db_path, "c") as holder, durabledbm.open(db_path, "w", timeout=30) as other:

        def hold() -> None:
            with holder.transaction():
                begun.set()
                assert go_on.wait(30)

        crew = Crew()
        crew.start(hold)
        begun.wait()
        tasks = [crew.start(other.__setitem__, f"{number}", "v") for number in range(3)]
        tasks += [crew.start(holder.__setitem__, f"{number}", "v") for number in range(3, 6)]
        crew.start(lambda: threading.Event().wait(0.3) or go_on.set())
        for task in tasks:
            task.result()
        crew.join()
        assert len(holder) == 6


@pytest.mark.usefixtures("odd_clock")
@pytest.mark.parametrize("durability", ["process", "interval"])
def test_what_is_to_be_flushed_within_an_interval_is(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c", durability=durability, interval=0.1) as db:
        for number in range(3):
            db[f"{number}"] = "v"
            with durabledbm.open(db_path) as other:
                eventually(lambda: not db._pipeline.committer.has_unsynced and f"{number}" in other)  # noqa: B023 - called at once


def eventually(reached: Callable[[], bool]) -> None:
    """`wait_until`, where the clocks are replaced."""
    for _ in range(1000):
        if reached():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it does not happen")


@pytest.mark.usefixtures("odd_clock")
def test_a_log_is_synced_where_the_clock_does_not_tell_how_long_ago_it_was(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with ChangeLog(tmp_path / "log", sync="interval", interval=3600) as log:
        for number in range(6):
            log.put(f"{number}", "v")
        writer = log._writer
        assert writer is not None
        assert writer._unsynced_since is None or "back_and_forth" in request.node.name


@pytest.mark.usefixtures("odd_clock")
def test_reading_and_closing_need_no_clock(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.update({f"{number}": "v" * 500 for number in range(300)})
        db.clear()
        with db.snapshot() as snapshot:
            db["k"] = "v"
            assert (db["k"], len(snapshot), len(db)) == (b"v", 0, 1)
        db.backup(db_path + ".copy")


def test_the_clock_is_put_back() -> None:
    """What the tests above replace is not left replaced."""
    first = time.monotonic()
    wait_until(lambda: time.monotonic() > first)
