"""A sharded database whose caller is interrupted anywhere: it can be used on, and what was given up does not come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crew import Crew, wait_until
from simdisk import SimVolume
from systems import WINDOWS, alarm, needs_fork, only_posix
from test_interrupts import Interrupter, raise_interrupt, traced

import durabledbm
from durabledbm import BusyError, ClosedError, error
from durabledbm.database import open_on
from durabledbm.sharded import ShardedDatabase, open_sharded
from durabledbm.sharded import threads as shard_threads
from durabledbm.sharded.manifest import place

pytestmark = pytest.mark.no_cover  # these tests trace themselves

SHARDS = 3
OLD = {b"%02d" % number: b"old" for number in range(40)}
NEW = dict.fromkeys(OLD, b"new")


@pytest.fixture(autouse=True)
def _interrupts_of_finalizers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)


@pytest.fixture(autouse=True)
def _threads_do_not_wait_for_work_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of which an interrupt has left nobody to know ends when it has had nothing to do for a while."""
    monkeypatch.setattr(shard_threads, "_IDLE", 0.1)


@pytest.fixture(autouse=True)
def _no_waiting_for_ever() -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise BaseException("somebody waits for what never comes")

    if WINDOWS:
        yield
        return
    before = signal.signal(signal.SIGALRM, too_long)
    alarm(60)
    yield
    alarm(0)
    signal.signal(signal.SIGALRM, before)


def opened(volume: SimVolume, durability: str, timeout: float | None = 5.0) -> ShardedDatabase:
    shards = [
        open_on(volume, f"/shard{number}", "c", durability=durability, interval=3600.0, timeout=timeout)
        for number in range(SHARDS)
    ]
    return ShardedDatabase("/", shards)


def update(db: ShardedDatabase) -> None:
    db.update(NEW)


def clear(db: ShardedDatabase) -> None:
    db.clear()


def sync(db: ShardedDatabase) -> None:
    db.sync()


def close(db: ShardedDatabase) -> None:
    db.close()


def iterate(db: ShardedDatabase) -> None:
    assert list(db.items()) == sorted(OLD.items())
    assert list(db.range(reverse=True)) == sorted(OLD.items(), reverse=True)


def popitem(db: ShardedDatabase) -> None:
    assert db.popitem() == (b"39", b"old")


def transaction(db: ShardedDatabase) -> None:
    with db.transaction(b"00") as tx:
        tx[b"00"] = "new"
        db.update(NEW)


RESULTS: dict[Callable[[ShardedDatabase], None], dict[bytes, bytes]] = {
    update: NEW,
    clear: {},
    sync: OLD,
    close: OLD,
    iterate: OLD,
    popitem: {key: value for key, value in OLD.items() if key != b"39"},
    transaction: NEW,
}


def part(content: dict[bytes, bytes], number: int) -> dict[bytes, bytes]:
    return {key: value for key, value in content.items() if place(key, SHARDS) == number}


def interrupted(operation: Callable[[ShardedDatabase], None], durability: str, at: int) -> tuple[int, bool]:
    """Interrupt it at the `at`-th moment, and use the database on. How many moments there were, and whether it was."""
    volume = SimVolume()
    db, struck = opened(volume, durability), False
    db.update(OLD)
    with Interrupter(raise_interrupt, at) as interrupter:
        try:
            operation(db)
        except KeyboardInterrupt:
            sys.settrace(None)
            struck = True
            use_on(db, operation)  # while the traceback keeps everything alive
    db.close()
    assert db.closed
    for number in range(SHARDS):
        with open_on(volume, f"/shard{number}", "w", timeout=0) as shard:
            shard[b"free"] = b"1"
            assert shard.check() == []
        assert not any(volume._named(f"/shard{number}").locks.values())
    return interrupter.moments, struck


def use_on(db: ShardedDatabase, operation: Callable[[ShardedDatabase], None]) -> None:
    if any(shard.closed for shard in db._shards):
        with pytest.raises(ClosedError):
            dict(db.items())
        return
    for number in range(SHARDS):
        found = part(dict(db.items()), number)
        assert found in (part(OLD, number), part(RESULTS[operation], number), part({b"again": b"1"}, number))
    db.update({b"%02d" % number: b"again" for number in range(40)})
    assert set(db.values()) == {b"again"}
    db.sync()
    db.clear()
    db[b"again"] = b"1"
    assert dict(db.items()) == {b"again": b"1"}


def search(operation: Callable[[ShardedDatabase], None], durability: str, first: int, stride: int) -> None:
    count, failures = interrupted(operation, durability, 0)[0], []
    struck = 0
    for at in range(first, count + 1, stride):
        try:
            struck += interrupted(operation, durability, at)[1]
        except Exception as exc:
            failures.append(f"moment {at} of {count}: {type(exc).__name__}: {exc}")
    assert not failures, "\n".join(failures[:20])
    assert struck


@traced
@pytest.mark.parametrize("durability", ["full", "manual"])
@pytest.mark.parametrize("operation", RESULTS, ids=lambda operation: operation.__name__)
def test_an_interrupt_leaves_a_usable_sharded_database(
    operation: Callable[[ShardedDatabase], None], durability: str
) -> None:
    search(operation, durability, 1 + len(operation.__name__), 59 if operation in (update, clear, close) else 157)


@traced
@pytest.mark.long
@pytest.mark.parametrize("durability", ["full", "process", "manual"])
@pytest.mark.parametrize("operation", RESULTS, ids=lambda operation: operation.__name__)
def test_every_interrupt_leaves_a_usable_sharded_database(
    operation: Callable[[ShardedDatabase], None], durability: str
) -> None:
    alarm(3000)
    search(operation, durability, 1, 1)


@needs_fork
@traced
@pytest.mark.parametrize("flag", ["c", "n"])
def test_an_interrupted_opening_can_be_done_again(tmp_path: Any, flag: str) -> None:
    """In a child, since a descriptor may be left open: an interrupt may come before anybody has noted it."""
    pid = os.fork()
    if not pid:
        try:
            moments = at = 0
            while at <= moments:
                moments = max(moments, interrupted_opening(f"{tmp_path}/{at}", flag, at))
                at += 211
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def interrupted_opening(directory: str, flag: str, at: int) -> int:
    content: dict[bytes, bytes] = {}
    if flag == "n":
        with open_sharded(directory, "c", shards=3) as db:
            db.update(OLD)
    with Interrupter(raise_interrupt, at) as interrupter:
        try:
            open_sharded(directory, flag, shards=2).close()
        except KeyboardInterrupt:
            sys.settrace(None)
            content = NEW
            with open_sharded(directory, flag, shards=2) as db:
                db.update(content)
    with open_sharded(directory, "c") as db:
        assert dict(db.items()) == content
        assert db.shards == 2
        assert db.check() == []
    return interrupter.moments


# -- a shard that is busy


@pytest.fixture
def _interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_when(condition: Callable[[], bool]) -> None:
    def wait() -> None:
        wait_until(condition)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    threading.Thread(target=wait, daemon=True).start()


class Busy:
    """A transaction of another thread in one shard."""

    def __init__(self, db: ShardedDatabase, key: bytes) -> None:
        self._begun, self._go_on = threading.Event(), threading.Event()
        self._task = Crew().start(self._hold, db, key)
        assert self._begun.wait(60)

    def _hold(self, db: ShardedDatabase, key: bytes) -> None:
        with db.transaction(key) as tx:
            tx[b"" + key] = "busy"
            self._begun.set()
            assert self._go_on.wait(60)

    def end(self) -> None:
        self._go_on.set()
        self._task.result()


def keys_of(number: int) -> list[bytes]:
    return [key for key in OLD if place(key, SHARDS) == number]


@only_posix("there no signal interrupts a thread that waits for a lock")
@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize("busy", range(SHARDS))
def test_an_update_that_was_interrupted_while_it_waited_for_a_shard_does_not_come_later(busy: int) -> None:
    """Else it would undo what is written after it."""
    with opened(SimVolume(), "full", timeout=None) as db:
        db.update(OLD)
        key = keys_of(busy)[0]
        other = Busy(db, key)
        shard: Any = db._shards[busy]
        queue = shard._store.writer._leases.queue

        def waiting() -> int:
            batch = shard._pipeline._open
            return 0 if batch is None else len(batch.requests)

        def interrupt(operation: Callable[[ShardedDatabase], None]) -> None:
            before = waiting()
            interrupt_when(lambda: waiting() > before)
            with pytest.raises(KeyboardInterrupt):
                operation(db)

        interrupt(update)
        interrupt(clear)
        assert set(part(dict(db.items()), busy).values()) == {b"old"}
        other.end()
        wait_until(lambda: not queue)
        assert part(dict(db.items()), busy) == {**part(OLD, busy), key: b"busy"}
        db.update(NEW)
        assert dict(db.items()) == NEW


@pytest.mark.parametrize("durability", ["full", "process", "manual"])
def test_a_busy_shard_leaves_all_open_and_closing_can_be_done_again(durability: str) -> None:
    volume = SimVolume()
    db = opened(volume, durability, timeout=0.02)
    db.update(OLD)
    other = Busy(db, keys_of(1)[0])
    for value in (b"1", b"2"):
        with pytest.raises(BusyError):
            db.close()
        assert not db.closed
        db[keys_of(0)[0]] = value
        assert dict(db.items()) == {**OLD, keys_of(0)[0]: value}
    other.end()
    db.close()
    db.close()
    assert db.closed
    with pytest.raises(ClosedError):
        db.update(NEW)
    with opened(volume, durability) as again:
        assert dict(again.items()) == {**OLD, keys_of(1)[0]: b"busy", keys_of(0)[0]: b"2"}


def test_closing_rolls_back_the_callers_transactions_and_closes_all() -> None:
    volume = SimVolume()
    db = opened(volume, "manual")
    db.update(OLD)
    with pytest.raises(ClosedError), db.transaction(keys_of(1)[0]) as tx:  # noqa: PT012 - leaving it is what raises
        tx[keys_of(1)[0]] = "lost"
        db.close()
        assert db.closed
    with opened(volume, "full") as again:
        assert dict(again.items()) == OLD


def test_a_shard_that_cannot_write_does_not_keep_the_others_open() -> None:
    volume = SimVolume()
    db = opened(volume, "manual")
    db.update(OLD)
    db._shards[1]._store.poison(OSError("no"))
    with pytest.raises(error, match="could not be written"):
        db.close()
    assert db.closed
    with opened(volume, "full") as again:
        assert dict(again.items()) == {**part(OLD, 0), **part(OLD, 2)}


def test_what_the_callers_own_transaction_holds_is_not_waited_for(db_of_two_handles: tuple[Any, Any]) -> None:
    db, other = db_of_two_handles
    key = keys_of(1)[0]
    with db.transaction(key) as tx:
        tx[key] = "1"
        for write in (lambda: other.update(OLD), other.clear):
            with pytest.raises(BusyError, match="this thread"):
                write()
        assert key not in other
    other.update(OLD)
    assert dict(db.items()) == OLD


@pytest.fixture
def db_of_two_handles() -> Iterator[tuple[ShardedDatabase, ShardedDatabase]]:
    volume = SimVolume()
    with opened(volume, "full", timeout=None) as db, opened(volume, "full", timeout=None) as other:
        yield db, other


def test_an_update_in_a_block_that_has_outlasted_another_writes_to_no_shard() -> None:
    with opened(SimVolume(), "full") as db:
        key = keys_of(1)[0]
        outer, inner = db.transaction(key).__enter__(), db.transaction(key).__enter__()
        inner[key] = "1"
        outer.__exit__(None, None, None)
        for write in (lambda: db.update(OLD), db.clear):
            with pytest.raises(ClosedError):
                write()
        assert dict(db.items()) == {key: b"1"}
        inner.__exit__(None, None, None)
        db.update(OLD)
        assert dict(db.items()) == OLD


# -- real signals

WRITER = """
import random, signal, sys, time
from durabledbm.sharded import open_sharded
directory, durability, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
db = open_sharded(directory, "c", shards=4, timeout=20, durability=durability)
keys = [b"%d" % number for number in range(24)]
signal.signal(signal.SIGALRM, signal.default_int_handler)
draw, end, interrupts, number = random.Random(seed), time.monotonic() + seconds, 0, 0
known = [{b"0"} for _ in range(4)]
db.update(dict.fromkeys(keys, b"0"))

def look():
    found = [set() for _ in range(4)]
    for key, value in db.items():
        found[db.shard_of(key)].add(value)
    return found

while time.monotonic() < end or not interrupts:
    number += 1
    value, interrupted = b"%d" % number, False
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.00002 * 1000 ** draw.random())
            db.update(dict.fromkeys(keys, value))
            db.sync()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        known = [{value}] * 4
    except KeyboardInterrupt:
        interrupted = True
    if interrupted:  # and the exception has been handled: till then a commit that it struck may not be seen yet
        interrupts += 1
        now = look()
        assert all(new in (old, {value}) for old, new in zip(known, now)), (value, known, now)
        known = now
    assert look() == known, (known, look())
db.close()
print(interrupts)
"""


@only_posix("Windows has no signals between processes")
@pytest.mark.parametrize("durability", ["full", "manual"])
def test_signals_between_and_in_updates_leave_each_shard_with_one_of_them(tmp_path: Any, durability: str) -> None:
    signals(f"{tmp_path}/db", durability, 0.4, 1)


@only_posix("Windows has no signals between processes")
@pytest.mark.long
@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_thousands_of_signals(tmp_path: Any, durability: str) -> None:
    alarm(3000)
    for seed in range(4):
        signals(f"{tmp_path}/{seed}", durability, 15, seed)


def signals(directory: str, durability: str, seconds: float, seed: int) -> None:
    package = os.path.dirname(os.path.dirname(durabledbm.__file__))
    done = subprocess.run(
        [sys.executable, "-c", WRITER, directory, durability, str(seconds), str(seed)], capture_output=True, text=True,
        check=False, timeout=seconds + 60, env={**os.environ, "PYTHONPATH": package},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    with open_sharded(directory) as db:
        assert db.check() == []


AT_EXIT = """
import atexit, sys
from durabledbm.sharded import open_sharded
db = open_sharded(sys.argv[1], "c", shards=4, durability=sys.argv[2])

def last():
    db.clear()
    db.update({str(number): "x" for number in range(9)})
    db.sync()
    db.close()

atexit.register(last)
db.update({str(number): "old" for number in range(20)})
"""


@pytest.mark.parametrize("durability", ["full", "manual"])
def test_at_the_end_of_the_interpreter_it_can_be_written_and_closed(tmp_path: Any, durability: str) -> None:
    package = os.path.dirname(os.path.dirname(durabledbm.__file__))
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, f"{tmp_path}/db", durability], capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, "PYTHONPATH": package},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    with open_sharded(f"{tmp_path}/db") as db:
        assert dict(db.items()) == {b"%d" % number: b"x" for number in range(9)}


# -- iterators


@traced
def test_an_iteration_that_was_interrupted_does_not_seem_to_be_complete() -> None:
    """It goes on where it was, or says that it cannot."""
    with opened(SimVolume(), "full") as db:
        db.update({b"%05d" % number: b"x" for number in range(200)})
        expected = sorted(db)
        moments, at, broken = 0, 0, 0
        while at <= moments:
            seen: list[bytes] = []
            iterator = iter(db)
            with Interrupter(raise_interrupt, at) as interrupter:
                try:
                    collect(iterator, seen)
                except KeyboardInterrupt:
                    sys.settrace(None)
                    try:
                        collect(iterator, seen)
                    except error:
                        broken += 1
                        seen = expected
            assert seen == expected
            moments, at = max(moments, interrupter.moments), at + 23
        assert broken


def collect(iterator: Iterator[bytes], seen: list[bytes]) -> None:
    for item in iterator:
        seen.append(item)
