"""The four durability modes: what each promises of an acknowledged write, after a kill and after a power
failure.

Kills are real: SIGKILL at random moments, with acknowledgements that come through a pipe, each with its
time. Power failures are those of the simulated disk.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import random
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
from children import ACK, Child
from crew import Crew, Gate, wait_until
from simdisk import SimVolume, disk_error

import durabledbm
from durabledbm.database import open_on

pytestmark = pytest.mark.no_cover  # tracing would take longer than the search; other tests cover the same lines

MODES = ("full", "process", "interval", "manual")
RELAXED = MODES[1:]


def flushers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "durabledbm-flusher"]


# -- kill -9


def kill_once(db_path: str, durability: str, seed: str, interval: float) -> int:
    """Start a writer, kill it, look at what is left. Returns how many acknowledged writes were lost."""
    rng = random.Random(seed)
    sync_every = rng.choice((7, 100, 1000)) if durability == "manual" else 0
    with Child("write_numbers", db_path, {"durability": durability, "interval": interval}, sync_every) as child:
        child.hear("ready")
        child.drain(rng.uniform(0, 3 * interval))
        killed = child.kill()
        said = child.rest()
    acknowledged = list(ACK.iter_unpack(said[: len(said) // ACK.size * ACK.size]))
    with durabledbm.open(db_path, "w", timeout=0) as db:
        keys = list(db)
        assert db.check() == []
    assert keys == [b"%010d" % number for number in range(1, len(keys) + 1)], f"{seed}: not a prefix"
    last = acknowledged[-1][0] if acknowledged else 0
    if durability == "interval":
        promised = max([number for number, when in acknowledged if when <= killed - interval * 1e9], default=0)
    else:
        promised = last
    assert len(keys) >= promised, f"{seed}: {promised} were promised, {len(keys)} are left of {last}"
    if not sync_every and durability != "interval":
        assert len(keys) <= last + 1, seed
    return max(0, last - len(keys))


def kill_often(db_path: str, durability: str, trials: int) -> list[int]:
    """The losses of some trials, each on a new file."""
    return [
        kill_once(f"{db_path}.{trial}", durability, f"{durability} {trial}", 0.3 if trial % 2 else 0.1)
        for trial in range(trials)
    ]


@pytest.mark.parametrize("durability", MODES)
def test_a_kill_loses_no_more_than_the_mode_says(db_path: str, durability: str) -> None:
    losses = kill_often(db_path, durability, 4)
    if durability != "interval":
        assert max(losses) == 0


@pytest.mark.long
@pytest.mark.parametrize("durability", MODES)
def test_250_kills_lose_no_more_than_the_mode_says(db_path: str, durability: str) -> None:
    losses = kill_often(db_path, durability, 250)
    print(f"{durability}: {sum(map(bool, losses))} of {len(losses)} kills lost something, {max(losses)} writes at most")
    if durability != "interval":
        assert max(losses) == 0


# -- power failures


def power_failures(durability: str, seed: str, interval: float) -> None:
    """Write for a while, and at some moments look at what a power failure may leave."""
    rng = random.Random(seed)
    volume = SimVolume()
    acknowledged: list[tuple[int, float]] = []
    end = threading.Event()

    def write(db: durabledbm.Database) -> None:
        number = 0
        while not end.is_set():
            number += 1
            db[b"%06d" % number] = bytes(rng.randrange(300))
            if durability != "manual":
                acknowledged.append((number, time.monotonic()))
            elif rng.random() < 0.05:
                db.sync()
                acknowledged.append((number, time.monotonic()))
            time.sleep(rng.choice((0.0005, 0.002)))  # each write on its way doubles what may be left

    crew = Crew()
    moments = []
    with open_on(volume, "/db", "c", durability=durability, interval=interval) as db:
        crew.start(write, db)
        for _ in range(3):
            time.sleep(rng.uniform(0, interval))
            promised = len(acknowledged)
            moments.append((time.monotonic(), promised, volume.kill_state()))
        end.set()
        crew.join()
    window = interval if durability in ("process", "interval") else 0.0
    for now, count, left in moments:
        promised = max([number for number, when in acknowledged[:count] if when <= now - window], default=0)
        states = list(left.crash_states(limit=6, seed=seed))
        for state in rng.sample(states, min(len(states), 40)):
            if "/db" not in state.paths():
                assert not promised, seed
                continue
            with open_on(state, "/db", "w", timeout=0) as db:
                keys = list(db)
                db["the next commit"] = "v"
                assert db.check() == [], seed
            assert keys == [b"%06d" % number for number in range(1, len(keys) + 1)], f"{seed}: not a prefix"
            assert len(keys) >= promised, f"{seed}: {promised} were promised, {len(keys)} are left"


@pytest.mark.parametrize("durability", MODES)
def test_a_power_failure_loses_no_more_than_the_mode_says(durability: str) -> None:
    for trial in range(2):
        power_failures(durability, f"{durability} {trial}", 0.4)


@pytest.mark.long
@pytest.mark.parametrize("durability", MODES)
def test_750_power_failures_lose_no_more_than_the_mode_says(durability: str) -> None:
    for trial in range(250):  # three moments each
        power_failures(durability, f"long {durability} {trial}", 0.2)


def on_the_medium(volume: SimVolume) -> dict[bytes, bytes]:
    """What is certain to survive a power failure now."""
    with open_on(SimVolume({"/db": volume.medium("/db")}), "/db", "r") as db:
        return dict(db)


@pytest.mark.parametrize("durability", MODES)
def test_what_sync_and_close_return_from_is_on_the_disk(durability: str) -> None:
    volume = SimVolume()
    with open_on(volume, "/db", "c", durability=durability, interval=3600.0) as db:
        for number in range(5):
            db[f"{number}"] = "v" * 2000
            with db.transaction():
                db["n"] = str(number)
                db.update({f"{number} {key}": "v" for key in range(number)})
            db.sync()
            assert on_the_medium(volume) == dict(db)
        db["last"] = "v"
        expected = dict(db)
    assert on_the_medium(volume) == expected


@pytest.mark.parametrize("durability", RELAXED)
def test_a_sync_with_nothing_to_write_writes_and_syncs_nothing(durability: str) -> None:
    volume = SimVolume()
    with open_on(volume, "/db", "c", durability=durability, interval=3600.0) as db:
        db["k"] = "v"
        db.sync()
        before = len(volume.log)
        db.sync()
        db.sync()
        assert len(volume.log) == before
    assert not [operation for operation in volume.log[before:] if operation.kind == "sync"]


@pytest.mark.parametrize("durability", RELAXED)
def test_a_write_of_a_relaxed_mode_does_not_wait_for_the_disk(durability: str) -> None:
    volume = SimVolume()
    gate = Gate(volume, "sync")
    with open_on(volume, "/db", "c", durability=durability, interval=3600.0) as db:
        db["k"] = "v"  # the first commit of a handle syncs what it found
        gate.shut()
        crew = Crew()
        crew.start(db.__setitem__, "k", "w")
        crew.start(db.update, {"a": "b"})
        crew.join()
        assert not gate.reached.is_set()
        gate.open()


def test_a_durable_write_makes_relaxed_ones_before_it_durable() -> None:
    """Through another handle: what survives is always a prefix of what was acknowledged."""
    volume = SimVolume()
    with open_on(volume, "/db", "c", durability="process", interval=3600.0) as relaxed:
        relaxed["relaxed"] = "v"
        with open_on(volume, "/db", "w") as durable:
            durable["durable"] = "v"
        assert set(on_the_medium(volume)) == {b"relaxed", b"durable"}


@pytest.mark.parametrize("durability", MODES)
def test_who_sees_a_write_when_it_returns(db_path: str, durability: str) -> None:
    """"process" writes are in the file at once, deferred ones only in this handle, until they are committed.
    """
    with (
        durabledbm.open(db_path, "c", durability=durability, interval=3600.0) as db,
        durabledbm.open(db_path) as other,
    ):
        db["k"] = "v"
        with db.transaction():
            db["t"] = "v"
        assert dict(db) == {b"k": b"v", b"t": b"v"}
        assert len(db) == 2
        assert Crew().start(dict, db).result() == dict(db)
        assert dict(other) == (dict(db) if durability in ("full", "process") else {})
        db.sync()
        assert dict(other) == dict(db)


# -- the flusher


@pytest.mark.parametrize("durability", ["process", "interval"])
def test_an_idle_handle_is_flushed_in_time(durability: str) -> None:
    volume = SimVolume()
    with open_on(volume, "/db", "c", durability=durability, interval=0.01) as db:
        for value in (b"1", b"2"):
            db["k"] = value
            wait_until(lambda: on_the_medium(volume).get(b"k") == value)  # noqa: B023 - called at once


@pytest.mark.parametrize(("durability", "count"), [("full", 0), ("process", 1), ("interval", 1), ("manual", 0)])
def test_a_thread_runs_only_where_a_mode_needs_one(db_path: str, durability: str, count: int) -> None:
    with durabledbm.open(db_path, "c", durability=durability) as db:
        assert not flushers(), "not before the first write"
        for number in range(10):
            db[f"{number}"] = "v"
        assert len(flushers()) == count
        assert all(thread.daemon for thread in flushers())
    assert not flushers()
    with durabledbm.open(db_path, "r", durability=durability) as db:
        assert db["1"] == b"v"
        assert not flushers()


@pytest.mark.filterwarnings("ignore:.*had unflushed writes:ResourceWarning")
@pytest.mark.parametrize("durability", ["process", "interval"])
def test_a_flusher_dies_with_a_handle_that_is_dropped(db_path: str, durability: str) -> None:
    """Though its interval is an hour, and nobody closes: what was written is in the file."""
    db = durabledbm.open(db_path, "c", durability=durability, interval=3600.0)
    db["k"] = "v"
    (thread,) = flushers()
    gone = weakref.ref(db)
    gc.disable()
    try:
        del db
        assert gone() is None, "a reference cycle keeps the handle alive"
    finally:
        gc.enable()
    thread.join(60)
    assert not thread.is_alive()
    with durabledbm.open(db_path, "w", timeout=0) as again:
        assert dict(again) == {b"k": b"v"}


def failing(durability: str, interval: float) -> tuple[SimVolume, durabledbm.Database]:
    """A handle whose disk cannot sync any more; its flusher has met that when this returns."""
    while True:
        volume = SimVolume()
        db = open_on(volume, "/db", "c", durability=durability, interval=interval)
        db["k"] = "v"
        db.sync()
        assert db["k"] == b"v"
        volume.fail_at(0, disk_error(errno.EIO, times=None), kinds=("sync",))
        try:
            db["k"] = "w"
        except durabledbm.error:  # the machine is so busy that the write had to sync in the flusher's place
            with contextlib.suppress(durabledbm.error):
                db.close()
            continue
        wait_until(lambda: db._pipeline.flusher.failure is not None)  # type: ignore[union-attr]  # noqa: B023
        return volume, db


CALLS = {
    "get a value that is cached": lambda db: db[b"k"],
    "get": lambda db: db.get("k"),
    "contains": lambda db: "k" in db,
    "len": len,
    "iterate": list,
    "items": lambda db: dict(db.items()),
    "put": lambda db: db.update(k="x"),
    "delete": lambda db: db.pop("k"),
    "transaction": lambda db: db.transaction().__enter__(),
    "snapshot": lambda db: db.snapshot(),
    "sync": lambda db: db.sync(),
    "check": lambda db: db.check(),
    "close": lambda db: db.close(),
}


@pytest.mark.parametrize("durability", ["process", "interval"])
@pytest.mark.parametrize("call", CALLS)
def test_an_error_in_the_background_is_raised_by_the_next_call(durability: str, call: str) -> None:
    _, db = failing(durability, 0.01)
    with pytest.raises(durabledbm.error, match="failed"):
        CALLS[call](db)
    with contextlib.suppress(durabledbm.error):
        db.close()
    assert db.closed
    assert not flushers()


@pytest.mark.parametrize("durability", ["process", "interval"])
def test_after_an_error_in_the_background_nothing_more_is_acknowledged(durability: str) -> None:
    volume, db = failing(durability, 0.01)
    for _ in range(3):
        with pytest.raises(durabledbm.error):
            db["later"] = "v"
        with pytest.raises(durabledbm.error):
            db.sync()
    with pytest.raises(durabledbm.error):
        db.close()
    volume.heal()
    with open_on(volume, "/db", "w") as again:
        assert again["k"] in (b"v", b"w")
        assert "later" not in again
        again["k"] = "x"
        assert again.check() == []


def test_a_full_disk_in_the_background_loses_nothing_that_can_be_written_later() -> None:
    """No meta page was written, so nothing is in doubt: the error is told, and the changes are still pending."""
    volume = SimVolume()
    with open_on(volume, "/db", "c", durability="interval", interval=0.01) as db:
        volume.fail_at(0, disk_error(errno.ENOSPC, "none", times=None), kinds=("write", "resize"))
        db["k"] = b"w" * 50_000
        wait_until(lambda: db._pipeline.flusher.failure is not None)  # type: ignore[union-attr]
        with pytest.raises(durabledbm.error, match="No space left"):
            db["k"] = "x"
        volume.heal()
        assert db["k"] == b"w" * 50_000
        db.sync()
        assert on_the_medium(volume) == {b"k": b"w" * 50_000}


@pytest.mark.parametrize("durability", RELAXED)
def test_an_error_of_close_is_raised_and_the_file_released_all_the_same(durability: str) -> None:
    volume = SimVolume()
    db = open_on(volume, "/db", "c", durability=durability, interval=3600.0)
    db["k"] = "v"
    db.sync()
    db["k"] = "w"
    volume.fail_at(0, disk_error(errno.EIO, times=None), kinds=("sync",))
    with pytest.raises(durabledbm.error):
        db.close()
    assert db.closed
    db.close()
    volume.heal()
    with open_on(volume, "/db", "w", timeout=0) as again:
        again["after"] = "v"
        assert again["k"] in (b"v", b"w")


@pytest.fixture
def deferred(db_path: str) -> Iterator[durabledbm.Database]:
    with durabledbm.open(db_path, "c", durability="interval", interval=0.002, cache_size=20_000) as db:
        yield db


def test_reading_beside_the_flusher_misses_nothing(deferred: durabledbm.Database) -> None:
    """However the flusher's commits fall between the steps of a call, each call shows all that was written.
    """
    db = deferred
    db.update({b"%04d" % number: bytes(100) for number in range(2000)})
    for number in range(1500):
        value = b"%d" % number
        db[b"%04d" % (number % 2000)] = value
        db["k"] = value
        assert db["k"] == value
        assert next(db.range("k")) == (b"k", value)
        assert db.last() == (b"k", value)
        assert len(db) == 2001
        assert db.setdefault("k", "other") == value
        if number % 50 == 0:
            with db.snapshot() as snapshot:
                assert snapshot["k"] == value


def test_transactions_beside_the_flusher_read_what_they_began_with(deferred: durabledbm.Database) -> None:
    db = deferred
    for number in range(40):
        db.update({b"%04d" % key: b"%d" % number * 30 for key in range(500)})
        with db.transaction() as tx:
            for key in range(0, 500, 7):
                assert tx[b"%04d" % key] == b"%d" % number * 30
            assert set(tx.values()) == {b"%d" % number * 30}
            tx["n"] = str(number)
            del tx["n"]
    assert db.check() == []


def test_a_flusher_that_has_committed_lets_other_writers_in(deferred: durabledbm.Database, db_path: str) -> None:
    """The writer lock is kept for what is pending, and no longer, however writes and flushes interleave."""
    db = deferred
    with durabledbm.open(db_path, "w", timeout=30) as other:
        for number in range(60):
            for _ in range(20):
                db["k"] = str(number)
            Crew().start(other.__setitem__, "other", str(number)).result()
            assert db["other"] == str(number).encode()
