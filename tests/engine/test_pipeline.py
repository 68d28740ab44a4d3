"""The ways of a write to the disk: in groups, at once, or later; and the thread that sees to "later"."""

from __future__ import annotations

import contextlib
import errno
import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crew import Crew, Gate, Task
from simdisk import Fault, Operation, SimVolume, disk_error

import durabledbm
from durabledbm import transaction as transaction_module
from durabledbm._engine import deferred_commit as deferred_module
from durabledbm._engine import group_commit as group_module
from durabledbm._engine.changeset import ChangeSet
from durabledbm._engine.commit import Committer
from durabledbm._engine.deferred_commit import DeferredCommit
from durabledbm._engine.durability import make_pipeline
from durabledbm._engine.flusher import Flusher
from durabledbm._engine.group_commit import GroupCommit
from durabledbm._engine.store import Store
from durabledbm._engine.threads import Lease
from durabledbm.database import open_on

from .pieces import PATH, empty_file

ENOUGH = 30.0
"""Seconds that no test should ever need."""


@pytest.fixture
def volume() -> SimVolume:
    return SimVolume({PATH: empty_file()})


@pytest.fixture
def store(volume: SimVolume) -> Iterator[Store]:
    store = Store(volume, volume.open(PATH, writable=True), page_size=4096, cache_size=1 << 20)
    yield store
    store.close()


def content(volume: SimVolume) -> dict[bytes, bytes]:
    """What others see."""
    with open_on(volume, PATH, "r") as db:
        return dict(db.items())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENOUGH
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def flushers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "durabledbm-flusher"]


def putting(key: bytes, value: bytes = b"value") -> Callable[[ChangeSet], None]:
    return lambda work: work.put(key, value)


class Slow:
    """Makes every sync wait until it is let go on, or for a moment."""

    def __init__(self, volume: SimVolume, seconds: float = 0.02) -> None:
        self.seconds = seconds
        volume.before = self.wait

    def wait(self, operation: Operation) -> None:
        if operation.kind == "sync":
            time.sleep(self.seconds)


def in_threads(count: int, work: Callable[[int], object]) -> list[BaseException]:
    """Run `work(number)` in so many threads at once; return what they raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait(ENOUGH)
            work(number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH)
        assert not thread.is_alive()
    return failures


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_a_reader_defers_nothing_and_has_no_thread(volume: SimVolume, store: Store, durability: str) -> None:
    reader = Store(volume, volume.open(PATH, writable=False), page_size=4096, cache_size=1 << 20)
    pipeline = make_pipeline(reader, durability, 1.0, 1.0)
    assert type(pipeline) is GroupCommit
    assert pipeline.flusher is None
    assert pipeline.deferred() is None
    reader.close()


@pytest.mark.parametrize(
    ("durability", "kind", "flushes"),
    [
        ("full", GroupCommit, False), ("process", GroupCommit, True), ("interval", DeferredCommit, True),
        ("manual", DeferredCommit, False),
    ],
)
def test_every_durability_has_its_pipeline(store: Store, durability: str, kind: type, flushes: bool) -> None:
    pipeline = make_pipeline(store, durability, 1.0, 1.0)
    assert type(pipeline) is kind
    assert (pipeline.flusher is not None) == flushes


# -- groups --------------------------------------------------------------------------------------------------------


def test_writes_of_threads_that_wait_share_a_sync(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as db:
        Slow(volume)
        before = volume.syncs
        assert in_threads(16, lambda n: db.__setitem__(b"%d" % n, b"value")) == []
        assert volume.syncs - before <= 6
        volume.before = None
        assert len(db) == 16
    assert content(volume) == {b"%d" % n: b"value" for n in range(16)}


def test_every_thread_gets_the_result_of_its_own_operation(store: Store, volume: SimVolume) -> None:
    pipeline = GroupCommit(Committer(store), ENOUGH, sync=True)
    Slow(volume, 0.005)
    results = {}

    def work(number: int) -> None:
        for turn in range(10):
            results[number, turn] = pipeline.apply(lambda work, turn=turn: (number, turn))  # type: ignore[misc]

    assert in_threads(8, work) == []
    assert all(result == key for key, result in results.items())
    assert len(results) == 80


def test_operations_of_a_group_see_each_other_in_order(store: Store, volume: SimVolume) -> None:
    """A counter that every thread reads and writes: none of the increments is lost."""
    pipeline = GroupCommit(Committer(store), ENOUGH, sync=True)
    Slow(volume, 0.002)

    def increment(work: ChangeSet) -> None:
        work.put(b"counter", b"%d" % (int(work.get(b"counter") or 0) + 1))

    assert in_threads(8, lambda _: [pipeline.apply(increment) for _ in range(10)]) == []
    assert store.state.view.get(b"counter") == b"80"
    assert store.syncs < 80


def test_one_operation_that_fails_fails_alone(store: Store, volume: SimVolume) -> None:
    pipeline = GroupCommit(Committer(store), ENOUGH, sync=True)
    Slow(volume)

    def work(number: int) -> None:
        def operation(work: ChangeSet) -> None:
            if number % 4 == 0:
                raise LookupError(number)
            work.put(b"%d" % number, b"")

        pipeline.apply(operation)

    failures = in_threads(12, work)
    assert sorted(exc.args[0] for exc in failures if isinstance(exc, LookupError)) == [0, 4, 8]
    assert len(failures) == 3
    volume.before = None
    assert sorted(content(volume)) == sorted(b"%d" % n for n in range(12) if n % 4)


def test_a_commit_that_fails_fails_for_all_who_share_it(store: Store, volume: SimVolume) -> None:
    pipeline = GroupCommit(Committer(store), ENOUGH, sync=True)
    pipeline.apply(putting(b"before"))
    Slow(volume)
    volume.fail_at(0, disk_error(errno.EIO, times=None), kinds=("sync",))
    failures = in_threads(8, lambda n: pipeline.apply(putting(b"%d" % n)))
    assert len(failures) == 8
    assert all(isinstance(exc, durabledbm.error) for exc in failures)
    assert len({id(exc) for exc in failures}) == 8, "each caller gets an exception of its own"


def test_who_waits_too_long_gets_busy_and_nothing_is_written(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as first, open_on(volume, PATH, "w", timeout=0.05) as second:
        with first.transaction():
            first["key"] = "value"
            failures = in_threads(3, lambda n: second.__setitem__(b"%d" % n, b""))
            assert [type(exc) for exc in failures] == [durabledbm.BusyError] * 3
        second["other"] = "value"
    assert content(volume) == {b"key": b"value", b"other": b"value"}


def test_a_relaxed_group_is_synced_by_flushing(store: Store, volume: SimVolume) -> None:
    pipeline = GroupCommit(Committer(store), ENOUGH, sync=False)
    before = volume.syncs
    for n in range(10):
        pipeline.apply(putting(b"%d" % n))
    assert volume.syncs == before
    assert len(content(volume)) == 10
    for _ in range(2):
        pipeline.flush()
        assert volume.syncs == before + 1


class Interrupting:
    """Holds the first sync back until `go` is set; then raises Ctrl-C at the first operation of a kind that follows."""

    def __init__(self, volume: SimVolume, kind: str) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._volume, self._kind = volume, kind
        volume.before = self._hold

    def _hold(self, operation: Operation) -> None:
        if operation.kind == "sync":
            self._volume.before = self._interrupt
            self.reached.set()
            assert self.go.wait(ENOUGH)

    def _interrupt(self, operation: Operation) -> None:
        if operation.kind == self._kind:
            self._volume.before = None
            raise KeyboardInterrupt


def behind_a_sync(pipeline: GroupCommit, crew: Crew, reached: threading.Event, keys: list[bytes]) -> list[Task]:
    """One write that is in its sync, and those of `keys` in the next batch, in this order."""
    tasks = [crew.start(pipeline.apply, putting(b"first"))]
    assert reached.wait(ENOUGH)
    for number, key in enumerate(keys, 1):
        tasks.append(crew.start(pipeline.apply, putting(key)))
        wait_until(lambda number=number: pipeline._open is not None and len(pipeline._open.requests) == number)  # type: ignore[misc]
    return tasks


def test_an_interrupt_in_a_commit_is_nothing_to_those_who_share_it(store: Store, volume: SimVolume) -> None:
    """The leader finds out what became of the commit before it lets go of the writer lock."""
    pipeline, crew = GroupCommit(Committer(store), ENOUGH, sync=True), Crew()
    interrupting = Interrupting(volume, "sync")
    first, leader, *others = behind_a_sync(pipeline, crew, interrupting.reached, [b"leader", b"a", b"b"])
    interrupting.go.set()
    assert first.failure() is None
    assert type(leader.failure()) is KeyboardInterrupt
    assert [other.failure() for other in others] == [None, None]
    pipeline.apply(putting(b"later"))
    assert set(content(volume)) - {b"leader"} == {b"first", b"a", b"b", b"later"}


def test_when_a_leader_is_interrupted_before_it_began_the_others_are_committed_all_the_same(
    store: Store, volume: SimVolume
) -> None:
    pipeline, crew = GroupCommit(Committer(store), ENOUGH, sync=True), Crew()
    interrupting = Interrupting(volume, "lock")
    first, leader, *others = behind_a_sync(pipeline, crew, interrupting.reached, [b"leader", b"a", b"b"])
    interrupting.go.set()
    assert type(leader.failure()) is KeyboardInterrupt
    assert [task.failure() for task in (first, *others)] == [None] * 3
    assert set(content(volume)) == {b"first", b"a", b"b"}


def test_an_interrupt_in_the_operation_of_another_is_nothing_to_those_who_share_the_commit(
    store: Store, volume: SimVolume
) -> None:
    """It is raised in the thread that runs the operations of all. What it struck is done again, by its own thread."""
    pipeline, crew = GroupCommit(Committer(store), ENOUGH, sync=True), Crew()
    interrupting = Interrupting(volume, "never")
    first, leader, other = behind_a_sync(pipeline, crew, interrupting.reached, [b"leader", b"other"])
    ran = []

    def struck(work: ChangeSet) -> str:
        ran.append(threading.get_ident())
        if len(ran) == 1:
            raise KeyboardInterrupt
        work.put(b"struck", b"")
        return "its own result"

    victim = crew.start(pipeline.apply, struck)
    wait_until(lambda: pipeline._open is not None and len(pipeline._open.requests) == 3)
    interrupting.go.set()
    assert type(leader.failure()) is KeyboardInterrupt
    assert (first.failure(), other.failure()) == (None, None)
    assert victim.result() == "its own result"
    assert ran[0] == leader.thread.ident
    assert set(content(volume)) == {b"first", b"other", b"struck"}


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="a thread cannot be interrupted here")
def test_one_that_is_interrupted_while_it_waits_holds_nobody_up(store: Store, volume: SimVolume) -> None:
    """What it asked for may be done all the same."""
    pipeline, crew = GroupCommit(Committer(store), ENOUGH, sync=True), Crew()
    interrupting = Interrupting(volume, "never")
    tasks = behind_a_sync(pipeline, crew, interrupting.reached, [b"leader"])
    batch, here = pipeline._open, threading.get_ident()
    assert batch is not None

    def interrupt() -> None:
        wait_until(lambda: len(batch.requests) == 2)
        signal.pthread_kill(here, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        crew.start(interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline.apply(putting(b"interrupted"))
    finally:
        signal.signal(signal.SIGINT, before)
    tasks += [crew.start(pipeline.apply, putting(key)) for key in (b"a", b"b")]
    wait_until(lambda: len(batch.requests) == 4)
    interrupting.go.set()
    assert [task.failure() for task in tasks] == [None] * 4
    assert set(content(volume)) - {b"interrupted"} == {b"first", b"leader", b"a", b"b"}


def test_who_waits_for_a_leader_that_is_gone_finds_out(
    store: Store, volume: SimVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was interrupted again while it ended its batch."""
    monkeypatch.setattr(group_module, "_LOOK", 0.01)
    pipeline, lease = GroupCommit(Committer(store), ENOUGH, sync=True), Lease()
    pipeline._open = group_module._Batch(lease)
    follower = Crew().start(pipeline.apply, putting(b"lost"))
    time.sleep(0.05)
    assert not follower.done, "its leader may still come"
    del lease
    failure = follower.failure()
    assert type(failure) is durabledbm.error
    assert "was interrupted" in str(failure)
    pipeline.apply(putting(b"later"))
    assert set(content(volume)) == {b"later"}


def test_an_operation_that_failed_by_itself_keeps_its_failure_when_the_commit_fails(
    store: Store, volume: SimVolume
) -> None:
    pipeline, crew = GroupCommit(Committer(store), ENOUGH, sync=True), Crew()
    interrupting = Interrupting(volume, "never")
    first, leader, other = behind_a_sync(pipeline, crew, interrupting.reached, [b"leader", b"other"])

    def fail(work: ChangeSet) -> None:
        raise LookupError

    failing = crew.start(pipeline.apply, fail)
    wait_until(lambda: pipeline._open is not None and len(pipeline._open.requests) == 3)
    volume.fail_at(1, disk_error(errno.EIO), kinds=("sync",))
    interrupting.go.set()
    assert first.failure() is None
    assert type(failing.failure()) is LookupError
    for task in (leader, other):
        failure = task.failure()
        assert isinstance(failure, durabledbm.error)
        assert failure.errno == errno.EIO


def test_a_batch_may_be_woken_twice() -> None:
    """By its leader, and by one that was interrupted while it waited: one of those who wait goes on."""
    lease = Lease()
    batch = group_module._Batch(lease)
    batch.wake()
    batch.wake()
    assert batch.done.acquire(timeout=0)
    assert not batch.done.acquire(timeout=0)


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_every_pipeline_counts_what_it_has_taken(store: Store, volume: SimVolume, durability: str) -> None:
    pipeline = make_pipeline(store, durability, 3600.0, 1.0)
    assert pipeline.count() == 0
    for number, key in enumerate((b"a", b"b", b"c"), 1):
        pipeline.apply(putting(key))
        assert pipeline.count() == number
    pipeline.flush()
    assert pipeline.count() == len(content(volume)) == 3
    if pipeline.flusher is not None:
        pipeline.flusher.stop()


# -- later ---------------------------------------------------------------------------------------------------------


def test_what_is_deferred_is_seen_here_and_nowhere_else(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w", durability="manual") as db:
        db["key"] = "value"
        db["other"] = "value"
        del db["other"]
        assert dict(db.items()) == {b"key": b"value"}
        assert (db["key"], "other" in db, len(db)) == (b"value", False, 1)
        assert content(volume) == {}
        with pytest.raises(durabledbm.BusyError), open_on(volume, PATH, "w", timeout=0) as other:
            other["key"] = "mine"
        db.sync()
        assert content(volume) == {b"key": b"value"}
        with open_on(volume, PATH, "w", timeout=0) as other:
            other["more"] = "value"
        assert dict(db.items()) == {b"key": b"value", b"more": b"value"}


def test_closing_commits_what_is_deferred(volume: SimVolume) -> None:
    for durability in ("interval", "manual"):
        with open_on(volume, PATH, "w", durability=durability, interval=3600) as db:
            db[durability] = "value"
    assert sorted(content(volume)) == [b"interval", b"manual"]


def test_an_operation_without_effect_keeps_nobody_out(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w", durability="manual") as db, open_on(volume, PATH, "w", timeout=0) as other:
        assert db.pop("absent", None) is None
        other["key"] = "value"
        assert db["key"] == b"value"
        assert db.setdefault("key", "other") == b"value"
        other["key"] = "again"
        assert db["key"] == b"again"
        assert len(db) == 1


def test_too_much_is_committed_early(volume: SimVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_module, "_DEFERRED_MAX", 10_000)
    with open_on(volume, PATH, "w", durability="manual") as db:
        for n in range(100):
            db[b"%d" % n] = b"x" * 100
        assert 50 < len(content(volume)) < 100
        assert len(db) == 100


def test_transactions_on_top_of_what_is_deferred(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w", durability="manual") as db:
        db["a"] = "1"
        with db.transaction() as tx:
            assert dict(tx.items()) == {b"a": b"1"}
            tx["b"] = "2"
        with db.transaction() as tx:
            tx.clear()
            tx["c"] = "3"
            tx.rollback()
        assert dict(db.items()) == {b"a": b"1", b"b": b"2"}
        with db.transaction() as tx:
            tx.clear()
            tx["c"] = "3"
        assert dict(db.items()) == {b"c": b"3"}
        assert content(volume) == {}
    assert content(volume) == {b"c": b"3"}


def test_clearing_what_is_deferred(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as db:
        db.update({b"%d" % n: b"" for n in range(500)})
    with open_on(volume, PATH, "w", durability="manual") as db:
        db["a"] = "1"
        db.clear()
        assert len(db) == 0
        assert list(db) == []
        db["b"] = "2"
        assert dict(db.items()) == {b"b": b"2"}
        db.sync()
        assert db.check() == []
    assert content(volume) == {b"b": b"2"}


def test_a_failed_flush_keeps_what_it_could_not_write(volume: SimVolume) -> None:
    """A full disk: sync raises, and once there is room, everything is written."""
    with open_on(volume, PATH, "w", durability="manual") as db:
        entries = {b"%03d" % n: b"x" * 100 for n in range(200)}
        db.update(entries)
        volume.fail_at(0, disk_error(errno.ENOSPC, "none"), kinds=("write",))
        with pytest.raises(durabledbm.error) as caught:
            db.sync()
        assert caught.value.errno == errno.ENOSPC
        assert dict(db.items()) == entries
        db["more"] = "value"
        db.sync()
    assert content(volume) == {**entries, b"more": b"value"}


def test_an_operation_that_fails_defers_nothing_and_keeps_nobody_out(store: Store, volume: SimVolume) -> None:
    pipeline = DeferredCommit(Committer(store), ENOUGH)

    def fail(work: ChangeSet) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        pipeline.apply(fail)
    assert pipeline.deferred() is None
    with open_on(volume, PATH, "w", timeout=0) as other:
        other["key"] = "value"
    pipeline.apply(putting(b"mine"))
    with pytest.raises(LookupError):
        pipeline.apply(fail)
    pipeline.flush()
    assert set(content(volume)) == {b"key", b"mine"}


def test_nothing_more_is_deferred_by_a_handle_that_is_done_for(store: Store) -> None:
    pipeline = DeferredCommit(Committer(store), ENOUGH)
    assert not pipeline.put(b"first", b""), "it takes a turn to defer something when nothing is"
    pipeline.apply(putting(b"first"))
    assert pipeline.put(b"second", b"")
    store.poison(OSError(errno.EIO, "the cause"))
    assert not pipeline.put(b"third", b"")
    with pytest.raises(durabledbm.error, match="the cause"):
        pipeline.apply(putting(b"third"))
    work = pipeline.deferred()
    assert work is not None
    assert set(work.as_dict()) == {b"first", b"second"}
    store.writer.reserved = False


def interrupted(volume: SimVolume, kind: str, number: int) -> None:
    """Raise Ctrl-C at one of the operations of a kind that follow."""
    volume.fail_at(number, Fault(KeyboardInterrupt, "none"), kinds=(kind,))


@pytest.mark.parametrize("then", ["sync", "put", "update", "transaction", "close"])
@pytest.mark.parametrize(("kind", "number"), [("write", 0), ("sync", 0), ("write", 1)])
def test_a_flush_that_is_interrupted_is_made_up_for_by_whatever_comes_next(
    volume: SimVolume, kind: str, number: int, then: str
) -> None:
    """Whether or not it was committed: what is pending is written once, and nothing of it is lost."""
    with open_on(volume, PATH, "w", durability="manual") as db:
        db.update({"a": "1", "b": "2"})
        interrupted(volume, kind, number)
        with pytest.raises(KeyboardInterrupt):
            db.sync()
        assert volume.fired == 1
        assert dict(db) == {b"a": b"1", b"b": b"2"}
        if then == "put":
            db["c"] = "3"
        elif then == "update":
            db.update({"c": "3"})
        elif then == "transaction":
            with db.transaction() as tx:
                assert dict(tx) == {b"a": b"1", b"b": b"2"}
                tx["c"] = "3"
        if then != "close":
            db.sync()
            assert dict(db) == content(volume)
            assert db.check() == []
    expected = {b"a": b"1", b"b": b"2", b"c": b"3"}
    if then in ("sync", "close"):
        del expected[b"c"]
    assert content(volume) == expected


@pytest.mark.parametrize(("kind", "number"), [("write", 0), ("sync", 0), ("write", 1)])
@pytest.mark.parametrize("keep", [True, False])
def test_a_flush_that_is_interrupted_beside_a_transaction_leaves_it_what_it_builds_on(
    volume: SimVolume, kind: str, number: int, keep: bool
) -> None:
    with open_on(volume, PATH, "w", durability="manual") as db:
        db["before"] = "1"
        with db.transaction() as tx:
            tx["inside"] = "2"
            interrupted(volume, kind, number)
            with pytest.raises(KeyboardInterrupt):
                db.sync()
            assert dict(tx) == {b"before": b"1", b"inside": b"2"}
            if not keep:
                tx.rollback()
        expected = {b"before": b"1", b"inside": b"2"} if keep else {b"before": b"1"}
        assert dict(db) == expected
        db.sync()
        assert db.check() == []
        assert content(volume) == expected


def test_a_transaction_that_clears_what_is_deferred(volume: SimVolume) -> None:
    """Both are one commit: nobody sees the state between them."""
    with open_on(volume, PATH, "w") as db:
        db["old"] = "0"
    with open_on(volume, PATH, "w", durability="manual") as db:
        db["deferred"] = "1"
        with db.transaction() as tx:
            tx.clear()
            tx["new"] = "2"
        assert dict(db) == {b"new": b"2"}
        assert len(db) == 1
        assert content(volume) == {b"old": b"0"}
        db.sync()
        assert content(volume) == {b"new": b"2"}


def test_a_fork_beside_a_transaction_that_has_spilled_waits_for_nobody(
    volume: SimVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was pending was committed before the transaction spilled, so there is nothing to write before its end."""
    monkeypatch.setattr(transaction_module, "SPILL_SIZE", 1000)
    with open_on(volume, PATH, "w", durability="manual", timeout=ENOUGH) as db:
        db["pending"] = "1"
        with db.transaction() as tx:
            for number in range(20):
                tx[b"%d" % number] = b"x" * 100
            started = time.monotonic()
            db._before_fork()
            assert time.monotonic() - started < ENOUGH / 2
            assert db._pipeline.timeout == ENOUGH
            assert content(volume) == {b"pending": b"1"}
        db.sync()
        assert len(db) == 21
    assert len(content(volume)) == 21


def test_threads_that_write_and_flush_lose_nothing(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w", durability="manual") as db:

        def work(number: int) -> None:
            for turn in range(60):
                db[b"%d %d" % (number, turn)] = b"value"
                if turn % 7 == number:
                    db.sync()

        assert in_threads(6, work) == []
        assert len(db) == 360
    assert len(content(volume)) == 360


# -- commits that are made by hand ---------------------------------------------------------------------------------


def wasteful(volume: SimVolume, durability: str, timeout: float) -> durabledbm.Database:
    """A handle of a file of which most is free."""
    with open_on(volume, PATH, "w") as db:
        db.update({b"%05d" % number: b"x" * 500 for number in range(2000)})
    db = open_on(volume, PATH, "w", durability=durability, timeout=timeout, interval=3600.0)
    with db.transaction():
        for number in range(100, 2000):
            del db[b"%05d" % number]
    db.sync()
    return db


@pytest.mark.parametrize("durability", ["process", "manual"])
def test_a_sync_beside_a_commit_by_hand_waits_for_it_as_long_as_told(volume: SimVolume, durability: str) -> None:
    """And a fork does not wait at all."""
    with wasteful(volume, durability, 0.1) as db:
        before = len(volume.content(PATH))
        gate, crew = Gate(volume, "sync"), Crew()
        gate.shut()
        task = crew.start(db.reorganize)
        assert gate.reached.wait(ENOUGH)
        db._before_fork()
        with pytest.raises(durabledbm.BusyError):
            db.sync()
        with pytest.raises(durabledbm.BusyError):
            db.update({"key": "value"})
        gate.open()
        task.result()
        db.update({"key": "value"})
        assert len(volume.content(PATH)) < before
        assert db.check() == []
    assert len(content(volume)) == 101


def test_a_failure_after_a_commit_by_hand_that_was_interrupted_lets_others_write(volume: SimVolume) -> None:
    db = wasteful(volume, "manual", ENOUGH)
    interrupted(volume, "sync", 0)
    with pytest.raises(KeyboardInterrupt):
        db.reorganize()
    volume.heal()
    volume.fail_at(0, disk_error(errno.EIO), kinds=("sync",))
    with pytest.raises(durabledbm.error) as caught:
        db.sync()
    assert caught.value.errno == errno.EIO
    with open_on(volume, PATH, "w", timeout=0) as other:
        other["key"] = "value"
        assert len(other) == 101
    with pytest.raises(durabledbm.error, match="open the file again"):
        db["key"] = "mine"
    with contextlib.suppress(durabledbm.error):
        db.close()
    assert db.closed


# -- the flusher ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "interval"])
def test_what_was_written_is_synced_in_time(volume: SimVolume, durability: str) -> None:
    with open_on(volume, PATH, "w", durability=durability, interval=0.05) as db:
        for turn in range(3):
            before = volume.syncs
            db["key"] = b"%d" % turn
            wait_until(lambda before=before: volume.syncs > before)  # type: ignore[misc]
            wait_until(lambda turn=turn: content(volume) == {b"key": b"%d" % turn})  # type: ignore[misc]


def test_without_writes_there_is_no_thread_and_without_more_of_them_no_work(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w", durability="process", interval=0.01) as db:
        assert flushers() == []
        db["key"] = "value"
        wait_until(lambda: volume.syncs >= 1)
        before = len(volume.log)
        time.sleep(0.1)
        assert len(volume.log) <= before + 1, "the steady copy may still have been under way"
    assert flushers() == []


@pytest.mark.parametrize("durability", ["full", "manual"])
def test_other_durabilities_have_no_thread(volume: SimVolume, durability: str) -> None:
    with open_on(volume, PATH, "w", durability=durability) as db:
        db["key"] = "value"
        assert flushers() == []


def test_a_handle_that_holds_changes_back_lets_go_when_another_waits(volume: SimVolume) -> None:
    """Long before its interval is over."""
    with (
        open_on(volume, PATH, "w", durability="interval", interval=3600) as db,
        open_on(volume, PATH, "w", timeout=ENOUGH) as other,
    ):
        for turn in range(3):
            db["mine"] = b"%d" % turn
            other["theirs"] = b"%d" % turn
            assert dict(db.items()) == {b"mine": b"%d" % turn, b"theirs": b"%d" % turn}


@pytest.mark.parametrize("durability", ["process", "interval"])
def test_what_fails_in_the_background_is_raised_by_the_next_call(volume: SimVolume, durability: str) -> None:
    db = open_on(volume, PATH, "w", durability=durability, interval=0.02)
    volume.fail_at(0, disk_error(errno.EIO, times=None), kinds=("sync",))
    db["key"] = "value"
    wait_until(lambda: db._pipeline.flusher is not None and db._pipeline.flusher.failure is not None)
    with pytest.raises(durabledbm.error, match="background failed") as caught:
        db["other"]
    assert isinstance(caught.value.__cause__, OSError)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, PATH) == (caught.value.__cause__.errno, PATH)
    with pytest.raises(durabledbm.error) as later:
        db["other"] = "value"
    assert (later.value.errno, later.value.filename) == (errno.EIO, PATH)
    with contextlib.suppress(durabledbm.error):  # it has been told already
        db.close()
    assert db.closed
    assert flushers() == []


@pytest.mark.parametrize("durability", ["process", "interval"])
def test_what_fails_in_the_background_is_raised_by_close(volume: SimVolume, durability: str) -> None:
    db = open_on(volume, PATH, "w", durability=durability, interval=0.02)
    volume.fail_at(0, disk_error(errno.EIO, times=None), kinds=("sync",))
    db["key"] = "value"
    wait_until(lambda: db._pipeline.flusher is not None and db._pipeline.flusher.failure is not None)
    with pytest.raises(durabledbm.error):
        db.close()
    assert db.closed
    assert flushers() == []


@pytest.mark.filterwarnings("ignore:.*had unflushed writes:ResourceWarning")
@pytest.mark.parametrize("durability", ["process", "interval"])
def test_a_handle_that_is_dropped_takes_its_thread_with_it(volume: SimVolume, durability: str) -> None:
    """And what was deferred is committed: nothing keeps the handle alive, and no collector is needed."""
    gc.disable()
    try:
        db = open_on(volume, PATH, "w", durability=durability, interval=3600)
        db["key"] = "value"
        assert len(flushers()) == 1
        gone = weakref.ref(db)
        del db
        assert gone() is None
        wait_until(lambda: flushers() == [])
    finally:
        gc.enable()
    assert content(volume) == {b"key": b"value"}


@pytest.mark.parametrize("durability", ["process", "interval"])
def test_who_writes_flushes_what_the_flusher_did_not_get_to(volume: SimVolume, durability: str) -> None:
    """The system may give its thread no time. What was written before counts, not only what is written now."""
    with open_on(volume, PATH, "c", durability=durability, interval=3600.0) as db:
        db["first"] = "1"
        assert content(SimVolume({PATH: volume.medium(PATH)})) == {}
        flusher = db._pipeline.flusher
        assert flusher is not None
        assert not flusher.overdue
        flusher.due = 0.0  # as if the thread had been asleep
        db["second"] = "2"
        assert content(SimVolume({PATH: volume.medium(PATH)})) == {b"first": b"1", b"second": b"2"}
        assert not flusher.overdue
        db["third"] = "3"
        assert content(SimVolume({PATH: volume.medium(PATH)})) == {b"first": b"1", b"second": b"2"}


def test_a_flusher_whose_pipeline_is_gone_ends() -> None:
    class Pipeline:
        store: Any = None

        def flush(self) -> None:
            raise AssertionError

    pipeline = Pipeline()
    flusher = Flusher(pipeline, 0.01)
    del pipeline
    flusher.wake()
    wait_until(lambda: flushers() == [])
    flusher.stop()
