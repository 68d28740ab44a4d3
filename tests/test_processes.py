"""Processes: the same promises as among threads, and nothing left behind by one that is killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from children import Child, amount_of
from crew import wait_until
from linearizability import UNKNOWN_STAMP, Operation, check

import durabledbm
from durabledbm._engine.locks import someone_waits


def locks_on(path: str) -> set[str]:
    """The kernel's locks on the file, of all processes. It may list one twice, if the list changes meanwhile."""
    inode = str(os.stat(path).st_ino)
    with open("/proc/locks", encoding="ascii") as file:
        lines = (line.partition(":")[2].strip() for line in file)
        return {line for line in lines if line.split()[4 if "->" not in line else 5].split(":")[2] == inode}


_LISTED = sys.platform == "linux" and os.path.exists("/proc/locks")

needs_lock_list = pytest.mark.skipif(
    not _LISTED, reason="the kernel does not list its locks"
)


@pytest.fixture(autouse=True)
def _no_lock_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test, no lock is left on any file in its directory."""
    directory: Path = request.getfixturevalue("tmp_path")
    yield
    if _LISTED:
        for path in directory.iterdir():
            assert not locks_on(str(path))


def shown(entries: list[list[str]]) -> dict[bytes, bytes]:
    return {key.encode("latin-1"): value.encode("latin-1") for key, value in entries}


# -- readers


def test_readers_in_other_processes_do_not_wait_for_a_writer(
    db: durabledbm.Database, db_path: str
) -> None:
    db.update({str(number): "old" for number in range(500)})
    before = dict(db)
    with db.transaction() as tx:
        tx.update({str(number): "new" for number in range(500)})
        with Child("read_all", db_path) as child:
            count, *views = child.hear("read")
            child.finish()
    assert count == 500
    assert [shown(view) for view in views] == [before] * 3
    with Child("read_all", db_path) as child:
        assert [shown(view) for view in child.hear("read")[1:]] == [dict(db)] * 3


def test_a_reader_does_not_wait_for_a_writer_in_another_process(db: durabledbm.Database, db_path: str) -> None:
    db["k"] = "old"
    with Child("hold_transaction", db_path, "k", {}) as child:
        child.hear("holding")
        assert db["k"] == b"old"
        assert dict(db) == dict(db.snapshot()) == {b"k": b"old"}
        child.tell("commit")
        child.hear("done")
        assert db["k"] == b"held"
        child.finish()


def test_a_snapshot_in_another_process_stays_whole_while_2000_commits_are_made(db_path: str) -> None:
    rng = random.Random(11)
    with durabledbm.open(db_path, "c", durability="process") as db:
        keys = [b"%03d" % number for number in range(300)]
        db.update({key: rng.randbytes(50) for key in keys})
        before = dict(db)
        with Child("hold_snapshot", db_path) as child:
            child.hear("pinned")
            for _ in range(4):
                for _ in range(500):
                    db.update({key: rng.randbytes(50) for key in rng.sample(keys, 5)})
                child.tell("show")
                assert shown(child.hear("content")) == before
            assert dict(db) != before
            child.tell("end")
            child.finish()


def test_stats_name_the_oldest_snapshot_of_any_process(db: durabledbm.Database, db_path: str) -> None:
    db["k"] = "1"
    with Child("hold_snapshot", db_path) as child:
        txid = child.hear("pinned")
        db["k"] = "2"
        with db.snapshot() as younger:
            assert younger.txid > txid
            oldest = db.stats().oldest_snapshot
            assert oldest is not None
            assert oldest.txid == txid
            assert oldest.pid in (None, child.pid)
            child.tell("end")
            child.finish()
            oldest = db.stats().oldest_snapshot
            assert oldest is None or oldest.txid == younger.txid
    assert db.stats().oldest_snapshot is None


def test_a_killed_reader_leaves_nothing(db: durabledbm.Database, db_path: str) -> None:
    def rewrite(times: int) -> int:
        for number in range(times):
            db.update({b"%03d" % key: b"%d" % number + bytes(1000) for key in range(200)})
        return db.stats().file_bytes

    usual = rewrite(10)
    with Child("hold_snapshot", db_path) as child:
        child.hear("pinned")
        assert rewrite(10) > 3 * usual
        assert db.stats().oldest_snapshot is not None
        child.kill()
        assert db.stats().oldest_snapshot is None
        assert rewrite(3) <= 2 * usual
    assert os.listdir(os.path.dirname(db_path)) == ["test.db"]


@needs_lock_list
def test_a_stopped_reader_holds_up_nobody(db: durabledbm.Database, db_path: str) -> None:
    with Child("hold_snapshot", db_path) as child:
        child.hear("pinned")
        child.stop()
        assert len(locks_on(db_path)) == 1
        for number in range(100):
            db[f"{number}"] = "v"
        assert len(db) == 100


# -- writers


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_a_killed_writer_leaves_nothing_to_repair(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c", timeout=0) as db:
        db["k"] = "before"
        options = {"durability": durability, "interval": 3600.0}
        with Child("hold_transaction", db_path, "k", options) as child:
            child.hear("holding")
            with pytest.raises(durabledbm.BusyError):
                db["k"] = "mine"
            child.kill()
            assert db["k"] == b"before"
            db["k"] = "after"  # at once: timeout is 0
        assert db.check() == []
    assert os.listdir(os.path.dirname(db_path)) == ["test.db"]


def test_writers_killed_at_any_moment_leave_a_sound_file(db_path: str) -> None:
    """Killed in the middle of commits; the next writer goes on at once, and finds everything that was
    acknowledged.
    """
    rng = random.Random(12)
    number = 0
    for _ in range(8):
        with Child("write_numbers", db_path, {"timeout": 0}, 0) as child:
            child.hear("ready")
            child.drain(rng.uniform(0, 0.03))
            child.kill()
            acknowledged = [entry[0] for entry in struct.iter_unpack("<qq", whole(child.rest()))]
        with durabledbm.open(db_path, "w", timeout=0) as db:
            assert list(db) == [b"%010d" % n for n in range(1, len(db) + 1)]
            assert len(db) >= (acknowledged[-1] if acknowledged else number)
            number = len(db)
            assert db.check() == []


def whole(records: bytes) -> bytes:
    """Without a record that was cut off."""
    return records[: len(records) // 16 * 16]


def test_a_writer_in_another_process_is_waited_for_at_most_timeout(db_path: str) -> None:
    holder = Child("hold_transaction", db_path, "k", {})
    with durabledbm.open(db_path, "c", timeout=0.05) as db, holder as child:
        child.hear("holding")
        for write in (lambda: db.update(k="mine"), db.clear, db.transaction().__enter__, db.reorganize):
            with pytest.raises(durabledbm.BusyError):
                write()
        assert dict(db) == {}
        child.tell("commit")
        child.hear("done")
        db["mine"] = "v"
        assert dict(db) == {b"k": b"held", b"mine": b"v"}
        child.finish()


def test_a_write_waits_for_the_end_of_a_transaction_in_another_process(
    db: durabledbm.Database, db_path: str
) -> None:
    for end in ("commit", "roll back"):
        with Child("hold_transaction", db_path, "k", {}) as child:
            child.hear("holding")
            child.tell(end)
            db["mine"] = end  # waits, or comes late: both are fine
            child.finish()
    assert dict(db) == {b"k": b"held", b"mine": b"roll back"}


@pytest.mark.parametrize("durability", ["interval", "manual"])
def test_a_handle_that_defers_keeps_other_processes_waiting_until_it_has_committed(
    db_path: str, durability: str
) -> None:
    with durabledbm.open(db_path, "c", durability=durability, interval=0.5) as db:
        db["k"] = "mine"
        with Child("hold_transaction", db_path, "k", {"timeout": 60}) as child:
            if durability == "manual":
                wait_until(lambda: someone_waits(db._store.disk))
                db.sync()
            child.hear("holding")
            child.tell("commit")
            child.finish()
        assert db["k"] == b"held"
        db["k"] = "mine again"
    with durabledbm.open(db_path, "r") as db:
        assert db["k"] == b"mine again"


def test_processes_that_create_the_same_file_at_once_all_succeed(tmp_path: Path) -> None:
    for attempt in range(2):
        path = str(tmp_path / f"{attempt}.db")
        with ExitStack() as stack:
            children = [stack.enter_context(Child("create", path, f"key {number}")) for number in range(3)]
            for child in children:
                child.hear("ready")
            for child in children:
                child.tell("go")
            for child in children:
                child.hear("done")
                child.finish()
        with durabledbm.open(path) as db:
            assert list(db) == [b"key 0", b"key 1", b"key 2"]


def fairness(db_path: str, seconds: float, processes: int) -> list[tuple[int, float]]:
    """How often each of some processes wrote, and for how long one of its writes took at most."""
    durabledbm.open(db_path, "c").close()
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child("put_for", db_path, f"{number}", seconds, 30.0))
            for number in range(processes)
        ]
        for child in children:
            child.hear("ready")
        for child in children:
            child.tell("go")
        results = []
        for child in children:
            results.append(tuple(child.hear("waited")))
            child.finish()
    return results  # type: ignore[return-value]


def test_none_of_four_processes_starves(db_path: str, record_property: Any) -> None:
    """The longest wait is reported, with `--junit-xml` or `-rP`. What is asserted: nobody ran into its
    timeout.
    """
    results = fairness(db_path, 0.5, 4)
    record_property("writes of each process", [count for count, _ in results])
    record_property("longest wait, seconds", max(longest for _, longest in results))
    print("writes and longest wait of each process:", results)
    assert min(count for count, _ in results) > 0


# -- transactions and histories


def test_money_is_neither_made_nor_lost_by_processes_some_of_which_are_killed(db_path: str) -> None:
    accounts, total = 10, 1000
    with durabledbm.open(db_path, "c", durability="process") as db:
        db.update({b"account %03d" % number: amount_of(100) for number in range(accounts)})
        with ExitStack() as stack:
            children = [
                stack.enter_context(Child("transfer", db_path, seed, 60 if seed else 1_000_000, accounts))
                for seed in range(3)
            ]
            for child in children:
                child.hear("ready")
            for _ in range(2):
                children[0].hear("sum")
            children[0].drain(0.2)
            children[0].kill()
            for child in children[1:]:
                for line in child.rest().splitlines():
                    assert json.loads(line) in (["sum", total], ["done"])
                child.finish()
            said = children[0].rest().splitlines()
            assert all(json.loads(line) == ["sum", total] for line in said[:-1])
        assert sum(map(int, db.values())) == total
        assert db.check() == []


def histories(db_path: str, seed: int, clients: int, count: int, *, kill: bool) -> list[Operation]:
    """What processes recorded of random operations. With `kill`, one of them is killed in the middle."""
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child("perform", db_path, client, seed, count, {"cache_size": 20_000}))
            for client in range(clients)
        ]
        for child in children:
            child.hear("ready")
        for child in children:
            child.tell("go")
        if kill:
            children[0].drain(random.Random(seed).uniform(0.02, 0.1))
            children[0].kill()
        said = [child.rest() for child in children]
        for child in children[kill:]:
            child.finish()
    return [operation for lines in said for operation in recorded(lines)]


def recorded(lines: bytes) -> list[Operation]:
    """The operations that one process reported: those that it began and did not end have `end=UNKNOWN_STAMP`."""
    operations: dict[int, list[Operation]] = {}
    for line in lines.split(b"\n")[:-1]:
        word, *items = json.loads(line)
        if word != "operation":
            continue
        client, key, kind, argument, result, start, end = items
        operation = Operation(key.encode(), kind, encoded(argument), encoded(result), start, end)
        mine = operations.setdefault(client, [])
        if end != UNKNOWN_STAMP and mine and mine[-1].end == UNKNOWN_STAMP:
            mine.pop()
        mine.append(operation)
    return list(itertools.chain.from_iterable(operations.values()))


def encoded(value: object) -> Any:
    return value.encode() if isinstance(value, str) else value


@pytest.mark.skipif(sys.platform != "linux", reason="the clock must be one for all processes")
@pytest.mark.parametrize("kill", [False, True])
def test_histories_of_many_processes_are_linearizable(db_path: str, kill: bool) -> None:
    durabledbm.open(db_path, "c").close()
    history = histories(db_path, 13, 3, 150, kill=kill)
    assert len(history) > 500
    check(history)


# -- the end of the interpreter


@pytest.mark.parametrize(
    ("durability", "how"),
    [("full", "return"), ("process", "return"), ("interval", "return"), ("manual", "return"), ("interval", "sys.exit"),
     ("manual", "exception")],
)  # fmt: skip
def test_what_is_pending_is_written_when_the_interpreter_exits(db_path: str, durability: str, how: str) -> None:
    with Child("write_and_end", db_path, {"durability": durability, "interval": 3600.0}, how) as child:
        child.hear("written")
        child.finish(1 if how == "exception" else 0)
    with durabledbm.open(db_path, "w", timeout=0) as db:
        assert list(db) == [b"%03d" % number for number in range(100)]


@pytest.mark.parametrize(
    ("durability", "count"), [("full", 100), ("process", 100), ("interval", 0), ("manual", 0)]
)
def test_leaving_by_os_exit_is_like_being_killed(db_path: str, durability: str, count: int) -> None:
    with Child("write_and_end", db_path, {"durability": durability, "interval": 3600.0}, "os._exit") as child:
        child.hear("written")
        child.finish()
    with durabledbm.open(db_path, "w", timeout=0) as db:
        assert len(db) == count
        assert db.check() == []


def test_a_flusher_does_not_keep_the_process_alive(db_path: str) -> None:
    """Its interval is an hour. The handle is not closed, and what it deferred is written all the same."""
    with Child("idle_flusher", db_path) as child:
        assert len(child.hear("threads")) == 1
        child.finish()
    with durabledbm.open(db_path) as db:
        assert dict(db) == {b"k": b"v"}


def test_the_end_of_the_interpreter_does_not_wait_for_a_transaction_of_another_thread(db_path: str) -> None:
    """A daemon thread holds it, and would for ever; `timeout` is None."""
    with Child("end_beside_a_transaction", db_path) as child:
        child.hear("ending")
        child.finish()
    with durabledbm.open(db_path, "w", timeout=0) as db:
        assert dict(db) == {b"before": b"v"}


# -- all of it together


@pytest.mark.long
def test_ten_minutes_of_readers_writers_and_kills(db_path: str, record_property: Any) -> None:
    """4 processes with 4 threads that write and 4 that read; every second one of them is killed and replaced.

    `DURABLEDBM_STRESS_SECONDS` sets another time. No reader may ever wait for more than 2 seconds.
    """
    seconds = float(os.environ.get("DURABLEDBM_STRESS_SECONDS", "600"))
    rng = random.Random(14)
    accounts = 500
    with durabledbm.open(db_path, "c") as db:
        db.update({b"account %03d" % number: amount_of(100) for number in range(accounts)})
        size = longest = 0.0
        transfers = kills = 0
        with ExitStack() as stack:
            children = [Child("stress", db_path, number, accounts) for number in range(4)]
            stack.callback(lambda: [child.__exit__() for child in children])
            for child in children:
                child.hear("ready")
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                for child in children:
                    child.drain(1 / len(children))
                victim = rng.randrange(len(children))
                children[victim].kill()
                kills += 1
                said = [json.loads(line) for line in children[victim].rest().split(b"\n")[:-1]]
                children[victim].__exit__()
                assert {entry[0] for entry in said} <= {"round"}, said
                transfers += sum(entry[1] for entry in said)
                longest = max([longest, *(entry[2] for entry in said)])
                assert db.check() == []
                assert sum(map(int, db.values())) == 100 * accounts
                size = max(size, os.path.getsize(db_path))
                children[victim] = Child("stress", db_path, 100 + kills, accounts)
                children[victim].hear("ready")
    figures = {"kills": kills, "transfers seen": transfers, "longest read, s": longest, "largest file": size}
    for name, figure in figures.items():
        record_property(name, figure)
    print(figures)
    assert longest < 2.0
    assert size < 8 * 2**20
