"""Threads: readers that never wait, writers that take turns and share syncs, transactions that are
serializable.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import pickle
import random
import threading
from collections.abc import Iterator

import pytest
from children import WithdrawnError, amount_of, move, random_operations
from crew import Crew, Gate, wait_until
from linearizability import Recorder, check
from simdisk import SimVolume, disk_error

import durabledbm
from durabledbm._engine.threads import FairLock, Lease, Patience
from durabledbm.database import open_on


@pytest.fixture
def volume() -> SimVolume:
    return SimVolume()


@pytest.fixture
def sim(volume: SimVolume) -> Iterator[durabledbm.Database]:
    """A database on a simulated disk."""
    with open_on(volume, "/db", "c") as database:
        yield database


def read_in_every_way(db: durabledbm.Database) -> list[dict[bytes, bytes]]:
    """The content, as each way of reading shows it."""
    with db.snapshot() as snapshot:
        return [
            dict(db.items()),
            {key: db[key] for key in db.keys()},  # noqa: SIM118 - keys() is what is tested
            dict(reversed(list(db.range(reverse=True)))),
            dict(zip(db, db.values(), strict=True)),
            dict(snapshot),
            {key: db[key] for key in db if key in db and len(db)},
        ]


# -- readers


def test_readers_do_not_wait_for_a_writer(db: durabledbm.Database, db_path: str) -> None:
    db.update({str(number): "old" for number in range(1000)})
    before = dict(db)
    with durabledbm.open(db_path, "r") as other, db.transaction() as tx:
        tx.update({str(number): "new" for number in range(1000)})
        crew = Crew()
        for handle in (db, other, db, other):
            crew.start(read_in_every_way, handle)
        # The transaction is open until all of them have read.
        assert crew.join() == [[before] * 6] * 4
    assert set(db.values()) == {b"new"}


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_readers_do_not_wait_for_a_sync(volume: SimVolume, durability: str) -> None:
    gate = Gate(volume, "sync")
    with (
        open_on(volume, "/db", "c", durability=durability, interval=3600.0) as db,
        open_on(volume, "/db", "r") as other,
    ):
        db["k"] = "old"
        db.sync()
        gate.shut()
        crew = Crew()
        writers = [crew.start(db.__setitem__, "k", "new")]
        if durability != "full":
            writers[0].result()
            writers.append(crew.start(db.sync))
        gate.reached.wait()
        readers = [crew.start(read_in_every_way, handle) for handle in (db, other, db)]
        for reader in readers:
            reader.thread.join(10)
        waited = [not reader.done for reader in readers]
        assert not writers[-1].done
        gate.open()
        crew.join()
        assert waited == [False] * 3
        assert db["k"] == other["k"] == b"new"


def test_a_writer_does_not_wait_for_readers(db: durabledbm.Database) -> None:
    db.update({str(number): "old" for number in range(3000)})
    with db.snapshot() as snapshot:
        iterators = [iter(db.items()), iter(snapshot), db.range(reverse=True)]
        for iterator in iterators:
            next(iterator)
        crew = Crew()
        crew.start(db.update, {str(number): "new" for number in range(3000)})
        crew.start(db.__setitem__, "k", "v")
        crew.join()
        assert len(list(iterators[0])) == len(list(iterators[1])) == len(list(iterators[2])) == 2999
        assert set(snapshot.values()) == {b"old"}


def test_all_handles_agree_on_whether_a_commit_has_happened(
    volume: SimVolume, sim: durabledbm.Database
) -> None:
    """While the sync of a commit is under way the commit may be visible or not: for all, or for nobody."""
    sim["k"] = "old"
    gate = Gate(volume, "sync")
    with open_on(volume, "/db", "r") as other:
        gate.shut()
        crew = Crew()
        crew.start(sim.__setitem__, "k", "new")
        gate.reached.wait()
        first = other["k"], sim["k"], dict(other)[b"k"], dict(sim)[b"k"]
        with open_on(volume, "/db", "r") as third:
            second = other["k"], sim["k"], third["k"]
        gate.open()
        crew.join()
        assert other["k"] == sim["k"] == b"new"
    assert len(set(first + second)) == 1


# -- snapshots


def commit_randomly(db: durabledbm.Database, model: dict[bytes, bytes], rng: random.Random) -> None:
    """One commit of some changes, small or large."""
    changes = {}
    for _ in range(rng.choice((1, 1, 1, 3, 30))):
        size = 20_000 if rng.random() < 0.01 else rng.randrange(100)
        changes[b"%03d" % rng.randrange(500)] = rng.randbytes(size)
    gone = [key for key in changes if rng.random() < 0.3]
    with db.transaction():
        db.update(changes)
        for key in gone:
            del db[key]
    model.update(changes)
    for key in gone:
        del model[key]


def snapshots_beside_commits(db: durabledbm.Database, commits: int, seed: int) -> None:
    """Commit, pin snapshots now and then, and compare each with the model of its moment until it ends."""
    rng = random.Random(seed)
    model: dict[bytes, bytes] = {}
    pinned: list[tuple[durabledbm.Snapshot, dict[bytes, bytes]]] = []
    first = db.snapshot()
    for number in range(commits):
        commit_randomly(db, model, rng)
        if number % (commits // 20) == 0:
            pinned.append((db.snapshot(), dict(model)))
            snapshot, expected = rng.choice(pinned)
            assert dict(snapshot) == expected, (seed, number)
            if len(pinned) > 5:
                pinned.pop(rng.randrange(len(pinned)))[0].close()
    for snapshot, expected in pinned:
        assert dict(snapshot) == expected, seed
        assert [snapshot.get(key) for key in expected] == list(expected.values())
        snapshot.close()
    assert dict(first) == {}
    first.close()
    assert dict(db) == model


def test_snapshots_stay_whole_while_2000_commits_are_made(db_path: str) -> None:
    with durabledbm.open(db_path, "c", durability="process", cache_size=100_000) as db:
        snapshots_beside_commits(db, 2000, seed=1)


@pytest.mark.long
def test_snapshots_stay_whole_while_100000_commits_are_made(db_path: str) -> None:
    with durabledbm.open(db_path, "c", cache_size=1_000_000) as db:
        snapshots_beside_commits(db, 100_000, seed=2)


def test_snapshots_of_many_threads_show_one_commit_each(db_path: str) -> None:
    """Every commit sets all keys to one number: whoever sees two numbers saw half of a commit."""
    keys = [b"%02d" % number for number in range(50)]
    seed = 3
    with durabledbm.open(db_path, "c", durability="process", cache_size=50_000) as db:
        db.update(dict.fromkeys(keys, b"0" * 100))
        end = threading.Event()

        def read(client: int) -> int:
            rng, rounds = random.Random(f"{seed} {client}"), 0
            newest = b""
            while not end.is_set():
                with db.snapshot() as snapshot:
                    whole = set(snapshot.values()) | {snapshot[key] for key in rng.sample(keys, 5)}
                    assert len(whole) == 1, f"seed {seed}: a snapshot of {sorted(whole)}"
                    assert whole.pop() >= newest
                    newest = snapshot[keys[0]]
                    assert len(snapshot) == len(keys)
                assert len(set(db.values())) == 1
                rounds += 1
            return rounds

        crew = Crew()
        for client in range(3):
            crew.start(read, client)
        for number in range(150):
            db.update(dict.fromkeys(keys, b"%0100d" % number))
        end.set()
        assert min(crew.join()) > 0


def test_space_that_a_snapshot_pinned_is_given_back_after_its_end(db: durabledbm.Database) -> None:
    def rewrite(times: int) -> int:
        for number in range(times):
            db.update({b"%03d" % key: b"%d" % number + bytes(1000) for key in range(200)})
        return db.stats().file_bytes

    usual = rewrite(10)
    snapshot = db.snapshot()
    assert rewrite(20) > 5 * usual
    stats = db.stats()
    assert stats.oldest_snapshot is not None
    assert stats.oldest_snapshot.txid == snapshot.txid
    assert stats.oldest_snapshot.age is not None
    assert stats.pinned_bytes > 4 * usual
    snapshot.close()
    assert db.stats().oldest_snapshot is None
    assert db.stats().pinned_bytes == 0
    assert rewrite(3) <= 2 * usual


def test_dropping_a_snapshot_or_an_iterator_ends_its_pin(db: durabledbm.Database) -> None:
    db.update({str(number): "v" for number in range(1000)})
    snapshot, iterator, unstarted = db.snapshot(), iter(db.items()), db.range()
    next(iterator)
    db["k"] = "v"
    assert db.stats().oldest_snapshot is not None
    del snapshot
    assert db.stats().oldest_snapshot is not None
    del iterator
    assert db.stats().oldest_snapshot is not None
    del unstarted
    assert db.stats().oldest_snapshot is None


def test_a_snapshot_that_the_garbage_collector_ends_does_not_deadlock(
    volume: SimVolume, sim: durabledbm.Database
) -> None:
    """The collector may run anywhere, also in the middle of `snapshot()` of the same handle."""
    sim["k"] = "1"
    cycle: list[object] = [sim.snapshot()]
    cycle.append(cycle)
    sim["k"] = "2"
    gc.disable()
    try:
        del cycle
        collected = []
        volume.before = lambda operation: collected.append(gc.collect()) if operation.kind == "lock" else None
        crew = Crew()
        crew.start(sim.snapshot).result().close()
        assert collected, "the test did not reach the place that it is about"
        volume.before = None
        assert sim.stats().oldest_snapshot is None
    finally:
        gc.enable()


# -- writers


def test_each_of_many_threads_finds_all_that_it_wrote(db_path: str) -> None:
    def write(client: int) -> None:
        rng = random.Random(client)
        model = {}
        for number in range(60):
            key = b"%d %d" % (client, rng.randrange(20))
            model[key] = db[key] = b"%d" % number
            assert db[key] == model[key]
            if rng.random() < 0.2:
                del db[key], model[key]
                assert key not in db
        mine = dict(db.range(prefix=b"%d " % client))
        assert mine == model

    with durabledbm.open(db_path, "c") as db:
        crew = Crew()
        for client in range(8):
            crew.start(write, client)
        crew.join()


def test_writes_that_wait_together_share_one_sync(volume: SimVolume, sim: durabledbm.Database) -> None:
    sim["k"] = "v"
    gate = Gate(volume, "sync")
    gate.shut()
    before = volume.syncs
    crew = Crew()
    crew.start(sim.__setitem__, "first", "v")
    gate.reached.wait()
    for number in range(20):
        crew.start(sim.__setitem__, f"put {number}", "v")
    for number in range(20):
        crew.start(sim.update, {f"update {number}": "v", f"more {number}": "v"})
    crew.start(sim.pop, "k")
    wait_until(lambda: waiting(sim) == 41)
    gate.open()
    crew.join()
    assert volume.syncs - before == 2
    assert len(sim) == 61


def waiting(db: durabledbm.Database) -> int:
    """How many writes wait for the commit under way to end."""
    batch = db._pipeline._open  # type: ignore[union-attr]
    return 0 if batch is None else len(batch.requests)


def test_each_write_returns_only_when_it_is_on_the_disk(volume: SimVolume, sim: durabledbm.Database) -> None:
    def write(client: int) -> None:
        for number in range(10):
            key = f"{client} {number}"
            if number % 2:
                sim[key] = "v"
            else:
                with sim.transaction():
                    sim[key] = "v"
                    sim[key + " too"] = "v" * 500
            with open_on(SimVolume({"/db": volume.medium("/db")}), "/db", "r") as after_power_failure:
                assert key in after_power_failure

    crew = Crew()
    for client in range(8):
        crew.start(write, client)
    crew.join()


@pytest.mark.leaves_damage
def test_an_error_in_one_write_does_not_fail_those_that_wait_with_it(
    volume: SimVolume, sim: durabledbm.Database
) -> None:
    """`pop` has to read the value that it deletes, and finds it damaged. The others are not its affair."""
    sim.update({"damaged": "D" * 50_000, "sound": "S" * 50_000})
    image = bytearray(volume.content("/db"))
    image[image.index(b"D" * 5000) + 2000] ^= 1
    volume.put("/db", bytes(image))
    gate = Gate(volume, "sync")
    gate.shut()
    crew = Crew()
    crew.start(sim.__setitem__, "first", "v")
    gate.reached.wait()
    puts = [crew.start(sim.__setitem__, f"{number}", "v") for number in range(5)]
    wait_until(lambda: waiting(sim) == 5)
    popping = crew.start(sim.pop, "damaged")
    missing = crew.start(sim.__delitem__, "missing")
    wait_until(lambda: waiting(sim) == 7)
    puts += [crew.start(sim.__setitem__, f"{number}", "v") for number in range(5, 10)]
    sound = crew.start(sim.pop, "sound")
    wait_until(lambda: waiting(sim) == 13)
    gate.open()
    assert isinstance(popping.failure(), durabledbm.CorruptionError)
    assert isinstance(missing.failure(), KeyError)
    assert sound.result() == b"S" * 50_000
    for put in puts:
        put.result()
    assert sorted(sim) == sorted([b"damaged", b"first"] + [b"%d" % number for number in range(10)])


def test_a_failed_sync_fails_all_writes_that_shared_it(volume: SimVolume) -> None:
    db = open_on(volume, "/db", "c")
    db["k"] = "v"
    gate = Gate(volume, "sync")
    gate.shut()
    crew = Crew()
    crew.start(db.__setitem__, "first", "v")
    gate.reached.wait()
    shared = [crew.start(db.__setitem__, f"{number}", "v") for number in range(10)]
    wait_until(lambda: waiting(db) == 10)
    volume.fail_at(1, disk_error(errno.EIO), kinds=("sync",))
    gate.open()
    failures = [task.failure() for task in shared]
    assert all(isinstance(failure, durabledbm.error) for failure in failures), failures
    assert {failure.errno for failure in failures if isinstance(failure, OSError)} == {errno.EIO}
    assert len(set(map(id, failures))) == 10, "each caller raises an exception of its own"
    # Nothing may be assumed about the disk any more: the handle says so, until the file is opened again.
    with pytest.raises(durabledbm.error, match="open the file again"):
        db["later"] = "v"
    with pytest.raises(durabledbm.error):
        db.sync()
    with contextlib.suppress(durabledbm.error):
        db.close()
    assert db.closed
    volume.before = None
    with open_on(volume, "/db", "w") as fresh:
        assert {b"k", b"first"} <= set(fresh)
        fresh["later"] = "v"
        assert fresh.check() == []


def test_of_each_shared_commit_a_power_failure_leaves_all_or_nothing(volume: SimVolume) -> None:
    """A failed commit of several writes is one commit: what survives of it is whole."""
    with open_on(volume, "/db", "c") as db:
        gate = Gate(volume, "sync")
        gate.shut()
        crew = Crew()
        crew.start(db.__setitem__, "first", "v")
        gate.reached.wait()
        for number in range(5):
            crew.start(db.__setitem__, f"{number}", "v" * 900)
        wait_until(lambda: waiting(db) == 5)
        gate.open()
        wait_until(lambda: len(db) > 0)
        gate.shut()
        wait_until(lambda: gate.reached.is_set() or len(db) == 6)
        left = set()
        for crash in volume.crash_states(limit=300, seed=1):
            with open_on(crash, "/db", "r") as survivor:
                left.add(frozenset(survivor))
        gate.open()
        crew.join()
    assert left <= {frozenset({b"first"}), frozenset({b"first", b"0", b"1", b"2", b"3", b"4"})}


def test_the_lock_among_threads_is_handed_over_in_the_order_of_asking() -> None:
    lock, first = FairLock(), Lease()
    first.stuck = lambda: False  # it is held, and not left over from an operation that was interrupted
    assert lock.acquire(first, Patience(None), lock.leave)
    order: list[int] = []
    crew = Crew()

    def ask(number: int) -> None:
        turn = Lease()
        assert lock.acquire(turn, Patience(None), lock.leave)
        order.append(number)
        lock.leave(turn.entry)

    for number in range(10):
        crew.start(ask, number)
        wait_until(lambda: len(lock.queue) == number + 2)  # noqa: B023 - called before the loop goes on
    lock.leave(first.entry)
    crew.join()
    assert order == list(range(10))
    assert lock.acquire(first, Patience(0), lock.leave)
    assert not lock.acquire(Lease(), Patience(0), lock.leave)


def test_a_writer_that_waits_longer_than_its_timeout_gives_up(db: durabledbm.Database, db_path: str) -> None:
    for timeout in (0, 0.05):
        with durabledbm.open(db_path, "w", timeout=timeout) as other:
            with db.transaction():
                db["k"] = "mine"
                crew = Crew()
                attempts = [
                    crew.start(other.__setitem__, "k", "theirs"),
                    crew.start(other.update, {"k": "theirs"}),
                    crew.start(other.transaction().__enter__),
                    crew.start(other.pop, "k"),
                    crew.start(other.clear),
                ]
                for attempt in attempts:
                    assert isinstance(attempt.failure(), durabledbm.BusyError)
            assert db["k"] == other["k"] == b"mine"
            other["k"] = "theirs"
            assert db["k"] == b"theirs"


def test_threads_of_the_handle_that_writes_wait_no_longer_than_its_timeout(db_path: str) -> None:
    with durabledbm.open(db_path, "c", timeout=0.05) as db, db.transaction():
        db["k"] = "mine"
        for operation in (lambda: db.__setitem__("k", "theirs"), db.transaction().__enter__):
            assert isinstance(Crew().start(operation).failure(), durabledbm.BusyError)


def test_a_write_that_joined_others_has_its_own_timeout(db: durabledbm.Database, db_path: str) -> None:
    """The first of those who wait together gives up; the second has still half of its time."""
    with durabledbm.open(db_path, "w", timeout=1.0) as other:
        crew = Crew()
        with db.transaction():
            first = crew.start(other.__setitem__, "first", "v")
            first.thread.join(0.5)
            second = crew.start(other.__setitem__, "second", "v")
            assert isinstance(first.failure(), durabledbm.BusyError)
        second.result()
        assert dict(db) == {b"second": b"v"}


@pytest.mark.parametrize("flag", ["w", "c"])
def test_closing_and_syncing_a_handle_that_wrote_nothing_waits_for_nobody(
    db: durabledbm.Database, db_path: str, flag: str
) -> None:
    db["k"] = "v"
    idle, seen = (durabledbm.open(db_path, flag, timeout=0) for _ in range(2))
    db["k"] = "w"
    assert seen["k"] == b"w"
    with db.transaction():
        db["k"] = "x"
        crew = Crew()
        for handle in (idle, seen):
            crew.start(handle.sync).result()
            crew.start(handle.close).result()


@pytest.mark.parametrize("timeout", [None, 3600.0])
def test_a_thread_that_would_wait_for_itself_gets_an_error(
    db: durabledbm.Database, db_path: str, timeout: float | None
) -> None:
    def wait_for_oneself() -> None:
        with durabledbm.open(db_path, "w", timeout=timeout) as other, db.transaction():
            db["k"] = "mine"
            for operation in (
                lambda: other.__setitem__("k", "theirs"),
                lambda: other.update(k="theirs"),
                other.transaction().__enter__,
            ):
                with pytest.raises(durabledbm.BusyError, match="this thread"):
                    operation()
            assert other.get("k") is None

    Crew().start(wait_for_oneself).result()
    assert db["k"] == b"mine"


def test_a_transaction_that_ends_by_an_exception_lets_the_next_writer_in(
    db: durabledbm.Database, db_path: str
) -> None:
    def fail() -> None:
        with db.transaction():
            db["k"] = "never"
            raise ZeroDivisionError

    with durabledbm.open(db_path, "w", timeout=0) as other:
        assert isinstance(Crew().start(fail).failure(), ZeroDivisionError)
        other["x"] = "y"
        assert dict(db) == {b"x": b"y"}


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_closing_waits_for_the_transaction_of_another_thread(db_path: str, durability: str) -> None:
    db = durabledbm.open(db_path, "c", durability=durability, interval=3600.0)
    db["before"] = "v"
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with db.transaction():
            db["inside"] = "v"
            begun.set()
            assert go_on.wait(60)

    crew = Crew()
    crew.start(write)
    begun.wait()
    closing = crew.start(db.close)
    closing.thread.join(0.05)
    assert not closing.done
    go_on.set()
    crew.join()
    assert db.closed
    with durabledbm.open(db_path, "w", timeout=0) as again:
        assert dict(again) == {b"before": b"v", b"inside": b"v"}
        again["after"] = "v"


def test_closing_gives_up_after_the_timeout_and_leaves_the_handle_open(db_path: str) -> None:
    with durabledbm.open(db_path, "c", timeout=0.05) as db:
        db["before"] = "v"
        with db.transaction():
            db["inside"] = "v"
            assert isinstance(Crew().start(db.close).failure(), durabledbm.BusyError)
            assert not db.closed
            assert db["inside"] == b"v"
        assert dict(db) == {b"before": b"v", b"inside": b"v"}


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_closing_inside_ones_own_transaction_rolls_it_back_and_says_so(db_path: str, durability: str) -> None:
    db = durabledbm.open(db_path, "c", durability=durability, interval=3600.0)
    db["before"] = "v"
    with pytest.raises(durabledbm.ClosedError), db.transaction() as tx:  # noqa: PT012 - leaving it is what raises
        tx["inside"] = "v"
        db.close()
        with pytest.raises(durabledbm.ClosedError):
            tx["inside"]
    with durabledbm.open(db_path, "w", timeout=0) as again:
        assert dict(again) == {b"before": b"v"}
        again["after"] = "v"


def test_closing_while_a_write_is_under_way_waits_for_it(volume: SimVolume) -> None:
    """Else the write would go on with a file descriptor that may be another file's by then."""
    db = open_on(volume, "/db", "c")
    gate = Gate(volume, "sync")
    gate.shut()
    crew = Crew()
    crew.start(db.__setitem__, "k", "v")
    gate.reached.wait()
    closing = crew.start(db.close)
    closing.thread.join(0.05)
    assert not closing.done
    gate.open()
    crew.join()
    with open_on(SimVolume({"/db": volume.medium("/db")}), "/db", "r") as after_power_failure:
        assert dict(after_power_failure) == {b"k": b"v"}


def test_closing_while_other_threads_read_and_write_gives_them_an_error(db_path: str) -> None:
    for seed in range(10):
        with contextlib.ExitStack() as stack:
            db = durabledbm.open(db_path, "c", durability="process", cache_size=20_000)
            stack.callback(db.close)
            db.update({b"%d" % number: bytes(100) for number in range(500)})

            def work(client: int, db: durabledbm.Database = db, seed: int = seed) -> None:
                rng = random.Random(f"{seed} {client}")
                while True:
                    key = b"%d" % rng.randrange(500)
                    if client:
                        db.get(key)
                        sum(map(len, db.range(key, prefix=b"1")))
                    else:
                        db[key] = rng.randbytes(100)

            crew = Crew()
            tasks = [crew.start(work, client) for client in range(3)]
            tasks[0].thread.join(0.02)
            db.close()
            for task in tasks:
                assert isinstance(task.failure(), durabledbm.ClosedError), task.failure()


# -- transactions


def test_money_is_neither_made_nor_lost_by_transfers(db_path: str) -> None:
    accounts, seed = 10, 4
    with durabledbm.open(db_path, "c", durability="process") as db:
        db.update({b"account %03d" % number: amount_of(100) for number in range(accounts)})

        def transfer(client: int) -> None:
            rng = random.Random(f"{seed} {client}")
            for _ in range(150):
                move(db, rng, accounts)

        def audit() -> int:
            rounds = 0
            while not end.is_set():
                with db.snapshot() as snapshot:
                    assert sum(map(int, snapshot.values())) == 100 * accounts
                assert sum(int(value) for _, value in db.items()) == 100 * accounts
                with db.transaction() as tx:
                    assert sum(map(int, tx.values())) == 100 * accounts
                rounds += 1
            return rounds

        end = threading.Event()
        crew = Crew()
        auditor = Crew().start(audit)
        for client in range(4):
            crew.start(transfer, client)
        crew.join()
        end.set()
        assert auditor.result() > 0
        assert sum(map(int, db.values())) == 100 * accounts


def test_transactions_that_read_what_another_writes_do_not_skew(db: durabledbm.Database) -> None:
    """Each of two doctors may go if the other stays. Both look, both go: what serializable rules out."""
    for _ in range(50):
        db.update(ann="on call", bob="on call")
        start = threading.Barrier(2)

        def leave(me: str, other: str, start: threading.Barrier = start) -> None:
            start.wait(60)
            with db.transaction():
                if db[other] == b"on call":
                    db[me] = "gone"

        crew = Crew()
        crew.start(leave, "ann", "bob")
        crew.start(leave, "bob", "ann")
        crew.join()
        assert sorted(db.values()) == [b"gone", b"on call"]


def test_counters_count_every_increment(db: durabledbm.Database) -> None:
    db["n"] = "0"

    def increment() -> None:
        for _ in range(40):
            with db.transaction() as tx:
                tx["n"] = str(int(tx["n"]) + 1)

    crew = Crew()
    for _ in range(5):
        crew.start(increment)
    crew.join()
    assert db["n"] == b"200"


def test_what_a_thread_does_beside_a_transaction_is_not_in_it(db_path: str) -> None:
    with durabledbm.open(db_path, "c", timeout=0) as db:
        db["k"] = "committed"
        with contextlib.suppress(WithdrawnError), db.transaction() as tx:
            tx["k"] = "uncommitted"
            assert Crew().start(db.get, "k").result() == b"committed"
            assert Crew().start(len, db).result() == 1
            assert Crew().start(dict, db).result() == {b"k": b"committed"}
            assert isinstance(Crew().start(db.__setitem__, "x", "y").failure(), durabledbm.BusyError)
            raise WithdrawnError
        assert dict(db) == {b"k": b"committed"}


# -- histories


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_histories_of_many_threads_are_linearizable(db_path: str, durability: str) -> None:
    """Two handles where the mode lets both write; few keys, so that all get in each other's way."""
    seed = 5
    shared = durability in ("full", "process")
    with contextlib.ExitStack() as stack:
        options = {"durability": durability, "interval": 0.005, "cache_size": 10_000}
        handles = [
            stack.enter_context(durabledbm.open(db_path, "c", **options))  # type: ignore[arg-type]
            for _ in range(2 if shared else 1)
        ]
        recorders = [Recorder(handles[client % len(handles)]) for client in range(6)]
        crew = Crew()
        for client, recorder in enumerate(recorders):
            crew.start(random_operations, recorder, client, seed, 150)
        if durability == "manual":
            for _ in range(50):
                crew.start(handles[0].sync).result()
        crew.join()
    check(operation for recorder in recorders for operation in recorder.history)


# -- what does not travel


def test_handles_do_not_pickle_and_say_what_to_do(db: durabledbm.Database) -> None:
    db["k"] = "v"
    with db.snapshot() as snapshot, db.transaction() as tx:
        for thing in (db, snapshot, tx):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                with pytest.raises(TypeError, match="open the file again"):
                    pickle.dumps(thing, protocol)
            with pytest.raises(TypeError):
                copy.copy(thing)
            with pytest.raises(TypeError):
                copy.deepcopy(thing)
