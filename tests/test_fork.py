"""Fork with an open handle: parent and child both go on working, and neither gets in the way of the other.

A child runs a function of the test and tells its result through a pipe; it never returns into pytest.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from children import Child
from crew import Crew, Gate, wait_until
from simdisk import SimVolume

import durabledbm
from durabledbm._engine import group
from durabledbm._engine.deferred import Deferred
from durabledbm._engine.group import Group
from durabledbm._engine.locks import Turn, forget_owners
from durabledbm.database import open_on

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    # Forking beside threads is what some of these tests are about.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

PATIENCE = 60.0


class Fork:
    """A forked child that runs a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._pipe, pipe = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._run(pipe, function, args)
        os.close(pipe)

    @staticmethod
    def _run(pipe: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """In the child."""
        try:
            signal.alarm(int(PATIENCE))
            try:
                answer = function(*args), None
            except BaseException as exc:  # the parent gets it
                answer = None, "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
            data = pickle.dumps(answer)
            while data:
                data = data[os.write(pipe, data) :]
        finally:
            os._exit(0)

    def result(self) -> Any:
        """What the function returned."""
        data = b""
        try:
            while True:
                assert select.select([self._pipe], [], [], PATIENCE)[0], "the child hangs"
                if not (more := os.read(self._pipe, 1 << 16)):
                    break
                data += more
        finally:
            os.close(self._pipe)
            with contextlib.suppress(ProcessLookupError):
                if not data:
                    os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
        assert data, f"the child ended with status {status}"
        value, failure = pickle.loads(data)
        assert failure is None, f"in the child:\n{failure}"
        return value


@pytest.fixture(params=["full", "process", "interval", "manual"])
def any_db(request: pytest.FixtureRequest, db_path: str) -> Iterator[durabledbm.Database]:
    """A database in each durability mode."""
    with durabledbm.open(db_path, "c", durability=request.param, interval=0.05, timeout=30) as database:
        yield database


def test_parent_and_child_both_go_on_reading_and_writing(any_db: durabledbm.Database) -> None:
    db = any_db
    db["before"] = "v"

    def work() -> dict[bytes, bytes]:
        assert db["before"] == b"v"
        db["child"] = "v"
        with db.transaction():
            db["child too"] = db["child"]
        db.sync()
        assert not db.check()
        seen = dict(db)
        db.close()
        return seen

    db.sync()
    child = Fork(work)
    seen = child.result()
    db["parent"] = "v"
    db.sync()
    assert set(seen) == {b"before", b"child", b"child too"}
    assert set(db) == {b"before", b"child", b"child too", b"parent"}
    assert db["child too"] == b"v"


def test_parent_and_children_write_at_the_same_time(any_db: durabledbm.Database) -> None:
    """Each waits for the others as if they had opened the file themselves."""
    db = any_db
    db["n"] = "0"

    def increment() -> None:
        for _ in range(20):
            with db.transaction():
                db["n"] = str(int(db["n"]) + 1)
            db.sync()
        db.close()

    children = [Fork(increment) for _ in range(2)]
    for _ in range(20):
        with db.transaction():
            db["n"] = str(int(db["n"]) + 1)
        db.sync()
    for child in children:
        child.result()
    assert db["n"] == b"60"


def test_a_child_sees_what_the_parent_commits_later_and_the_other_way_round(db: durabledbm.Database) -> None:
    to_child, to_parent = os.pipe(), os.pipe()
    db["k"] = "1"

    def work() -> bytes:
        os.write(to_parent[1], b"x")
        os.read(to_child[0], 1)
        seen = db["k"]
        db["k"] = "3"
        return seen

    child = Fork(work)
    os.read(to_parent[0], 1)
    db["k"] = "2"
    os.write(to_child[1], b"x")
    assert child.result() == b"2"
    assert db["k"] == b"3"
    for end in (*to_child, *to_parent):
        os.close(end)


def test_a_transaction_open_across_a_fork_raises_in_the_child_and_goes_on_in_the_parent(
    db: durabledbm.Database, db_path: str
) -> None:
    db["k"] = "before"

    def use(tx: durabledbm.Transaction) -> list[str]:
        said = []
        uses: list[Callable[[], Any]] = [
            lambda: tx["k"],
            lambda: tx.__setitem__("k", "child"),
            lambda: tx.pop("k"),
            lambda: dict(tx),
            tx.rollback,
            lambda: db["k"],
            lambda: db.__setitem__("k", "child"),
            db.transaction().__enter__,
        ]
        for use in uses:
            try:
                said.append(f"returned {use()!r}")
            except durabledbm.error as exc:
                said.append(type(exc).__name__)
        try:
            tx.__exit__(None, None, None)
        except durabledbm.error as exc:
            said.append(type(exc).__name__)
        # The block is left: the handle is the child's own again, and shows what is committed.
        said.append(db["k"].decode())
        with durabledbm.open(db_path) as other:
            said.append(other["k"].decode())
        return said

    with db.transaction() as tx:
        tx["k"] = "parent"
        assert Fork(use, tx).result() == ["error"] * 9 + ["before", "before"]
        assert tx["k"] == b"parent"
    assert db["k"] == b"parent"
    assert db.check() == []


def test_leaving_the_block_of_a_transaction_in_the_child_by_an_exception_shows_the_exception(
    db: durabledbm.Database,
) -> None:
    def leave() -> str:
        try:
            tx.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        except BaseException as exc:
            return repr(exc)
        return "the block does not hide it"

    with db.transaction() as tx:
        tx["k"] = "parent"
        assert Fork(leave).result() == "the block does not hide it"
    assert db["k"] == b"parent"


@pytest.mark.parametrize("how", ["at once", "after reading", "after close", "by the interpreter"])
def test_the_end_of_a_child_leaves_the_parent_its_writer_lock(
    any_db: durabledbm.Database, db_path: str, how: str
) -> None:
    db = any_db
    db["k"] = "before"

    def end() -> None:
        if how == "after reading":
            assert durabledbm.open(db_path)["k"] == b"before"
        elif how == "after close":
            # Nothing of the parent's is the child's business: it waits for nobody.
            db.close()
        elif how == "by the interpreter":
            durabledbm.lifetime._at_exit()

    db.sync()
    with durabledbm.open(db_path, "w", timeout=0) as other, db.transaction():
        db["k"] = "parent"
        Fork(end).result()
        failure = Crew().start(other.__setitem__, "k", "other").failure()
        assert isinstance(failure, durabledbm.BusyError), "the child's end released the parent's lock"
    db.sync()
    assert db["k"] == b"parent"


def test_a_snapshot_goes_on_in_parent_and_child(db: durabledbm.Database) -> None:
    """Each has a pin of its own: the parent's end of it does not unpin the child's."""
    old = {b"%03d" % number: b"old" * 30 for number in range(500)}
    db.update(old)
    ready, go = os.pipe(), os.pipe()
    snapshot = db.snapshot()
    iterators = [iter(snapshot.items())]
    next(iterators[0])

    def read() -> bool:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        assert len(list(iterators[0])) == 499
        return dict(snapshot) == old and db["001"] == b"new 9" * 10

    child = Fork(read)
    os.read(ready[0], 1)
    assert dict(snapshot) == old
    snapshot.close()
    iterators.clear()
    for number in range(10):
        db.update(dict.fromkeys(old, b"new %d" % number * 10))
    os.write(go[1], b"x")
    assert child.result()
    assert db.stats().oldest_snapshot is None
    for end in (*ready, *go):
        os.close(end)


def test_a_child_that_ends_its_copy_of_a_snapshot_leaves_the_parent_its_pin(db: durabledbm.Database) -> None:
    old = {b"%03d" % number: b"old" * 30 for number in range(500)}
    db.update(old)
    with db.snapshot() as snapshot:
        Fork(snapshot.close).result()
        for number in range(10):
            db.update(dict.fromkeys(old, b"new %d" % number * 10))
        assert db.stats().oldest_snapshot is not None
        assert dict(snapshot) == old


@pytest.mark.parametrize("durability", ["interval", "manual"])
def test_what_is_pending_at_a_fork_is_written_once_and_by_the_parent(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c", durability=durability, interval=3600.0) as db:
        db["n"] = "1"

        def work() -> bytes:
            seen = db.get("n", b"nothing")
            db["child"] = "v"
            db.close()
            return seen

        child = Fork(work)
        assert child.result() == b"1", "what the parent could write before the fork is seen by the child"
        db["n"] = "2"
        db.sync()
        assert dict(db) == {b"n": b"2", b"child": b"v"}


def test_what_is_pending_in_an_open_transaction_at_a_fork_stays_the_parents(db_path: str) -> None:
    with durabledbm.open(db_path, "c", durability="manual") as db:
        db["pending"] = "v"

        def work() -> None:
            tx.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
            db.close()

        with db.transaction() as tx:
            tx["inside"] = "v"
            Fork(work).result()
        assert dict(db) == {b"pending": b"v", b"inside": b"v"}
    with durabledbm.open(db_path) as db:
        assert dict(db) == {b"pending": b"v", b"inside": b"v"}


@pytest.mark.parametrize("durability", ["process", "interval"])
def test_the_child_has_a_flusher_of_its_own(db_path: str, durability: str) -> None:
    with durabledbm.open(db_path, "c", durability=durability, interval=0.05) as db:
        db["parent"] = "v"  # the parent's flusher runs

        def work() -> list[str]:
            names = [thread.name for thread in threading.enumerate() if thread.daemon]
            db["child"] = "v"
            with durabledbm.open(db_path) as other:
                wait_until(lambda: "child" in other)
            store = db._store
            wait_until(lambda: store.committer.durable_txid == store.state.meta.txid)
            names += [thread.name for thread in threading.enumerate() if thread.daemon]
            db.close()
            return names

        db.sync()
        names = Fork(work).result()
        assert len(names) == 1, "threads of the parent are not in the child; it starts one when it writes"
        assert set(db) == {b"parent", b"child"}


def test_closing_in_the_child_leaves_the_parents_handle_open(any_db: durabledbm.Database) -> None:
    db = any_db
    db["k"] = "v"
    Fork(db.close).result()
    assert not db.closed
    db["k"] = "w"
    assert db["k"] == b"w"


def test_closing_in_the_parent_leaves_the_childs_handle_open(db_path: str) -> None:
    ready, go = os.pipe(), os.pipe()
    db = durabledbm.open(db_path, "c")
    db["k"] = "v"

    def work() -> dict[bytes, bytes]:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        db["child"] = "v"
        return dict(db)

    child = Fork(work)
    os.read(ready[0], 1)
    db.close()
    os.write(go[1], b"x")
    assert child.result() == {b"k": b"v", b"child": b"v"}
    for end in (*ready, *go):
        os.close(end)


def test_a_child_finds_the_file_though_it_was_renamed_or_removed(db: durabledbm.Database, db_path: str) -> None:
    db["k"] = "v"
    for rename in (True, False):
        if rename:
            os.rename(db_path, db_path + ".renamed")
        else:
            os.unlink(db_path + ".renamed")
        assert Fork(lambda: dict(db)).result() == {b"k": b"v"}


def test_a_grandchild_works_like_a_child(db: durabledbm.Database) -> None:
    db["k"] = "v"

    def work(depth: int) -> list[bytes]:
        db[f"depth {depth}"] = "v"
        return Fork(work, depth - 1).result() if depth else list(db)

    assert Fork(work, 3).result() == [b"depth 0", b"depth 1", b"depth 2", b"depth 3", b"k"]
    assert len(db) == 5


def test_a_child_that_never_uses_the_handle_costs_and_changes_nothing(db: durabledbm.Database, db_path: str) -> None:
    db["k"] = "v"
    with open(db_path, "rb") as file:
        before = file.read()
    assert Fork(lambda: None).result() is None
    with open(db_path, "rb") as file:
        assert file.read() == before


def test_a_fork_beside_threads_that_read_and_write_leaves_a_child_that_can(db: durabledbm.Database) -> None:
    """Whatever lock a thread of the parent holds at that moment, nobody in the child would ever release it.
    """
    db.update({str(number): "v" for number in range(200)})
    end = threading.Event()

    def write(client: int) -> None:
        number = 0
        while not end.is_set():
            number += 1
            db[f"{client}"] = str(number)
            if number % 3 == 0:
                with db.transaction():
                    db[f"{client} too"] = str(number)

    def read() -> None:
        while not end.is_set():
            with db.snapshot() as snapshot:
                assert len(snapshot) >= 200
            assert len(list(db.range("1", "2"))) > 100

    def work(number: int) -> int:
        db[f"child {number}"] = "v"
        with db.transaction():
            db[f"child {number} too"] = "v"
        with db.snapshot() as snapshot:
            assert f"child {number}" in snapshot
        db.close()
        return 1

    crew = Crew()
    for client in range(2):
        crew.start(write, client)
    crew.start(read)
    try:
        assert sum(Fork(work, number).result() for number in range(15)) == 15
        # A thread may fork, too.
        forks = [crew.start(lambda number: Fork(work, number).result(), number) for number in range(15, 20)]
        assert sum(fork.result() for fork in forks) == 5
    finally:
        end.set()
    crew.join()
    assert len(list(db.range(prefix="child"))) == 40
    assert db.check() == []


def test_a_child_forked_beside_a_transaction_of_another_thread_can_close_with_its_own_writes(db_path: str) -> None:
    with durabledbm.open(db_path, "c", durability="manual") as db:
        begun, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with db.transaction():
                db["thread"] = "v"
                begun.set()
                assert go_on.wait(PATIENCE)

        def work() -> None:
            os.write(ready[1], b"x")
            db["child"] = "v"  # waits for the parent's transaction
            assert db["child"] == b"v"
            db.close()

        ready = os.pipe()
        crew = Crew()
        crew.start(hold)
        begun.wait()
        child = Fork(work)
        os.read(ready[0], 1)
        go_on.set()
        crew.join()
        db.sync()
        child.result()
        assert dict(db) == {b"thread": b"v", b"child": b"v"}
    for end in ready:
        os.close(end)


def test_a_fork_in_the_middle_of_a_commit_of_another_thread(db_path: str) -> None:
    """The commit belongs to the parent. The child waits for its end like any other process would.

    The disk is a simulated one, which a child shares only as a copy, so here the child only looks at its own
    bookkeeping: it must not think that the commit under way is its own.
    """
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        db["k"] = "old"
        gate = Gate(volume, "sync")
        gate.shut()
        crew = Crew()
        crew.start(db.__setitem__, "k", "new")
        gate.reached.wait()

        def work() -> tuple[bool, list[Any]]:
            store = db._store
            return store.writer.writing or store.writer.held or store.writer.kept, db._pipeline.pending() or []

        assert Fork(work).result() == (False, [])
        gate.open()
        crew.join()
        assert db["k"] == b"new"


# -- what a child does with what it inherits, without a process: on a simulated disk, whose file is the parent's, too


class Twin:
    """A handle at the moment at which its process forks, and what the parent goes on with."""

    def __init__(self, volume: SimVolume, durability: str) -> None:
        self.child = open_on(volume, "/db", "c", durability=durability, interval=3600.0)
        self.parent = open_on(volume, "/db", "w", timeout=0.0)

    def fork(self) -> None:
        """What the system's own hooks do, in the child. The parent's threads are not in it."""
        if self.child._pipeline.flusher is not None:
            self.child._pipeline.flusher.stop()
        forget_owners()
        self.child._after_fork()


@pytest.fixture(params=["full", "process", "interval", "manual"])
def twin(request: pytest.FixtureRequest) -> Iterator[Twin]:
    twin = Twin(SimVolume(), request.param)
    yield twin
    twin.child.close()
    twin.parent.close()


def flushers() -> int:
    return sum(thread.name == "durabledbm-flusher" for thread in threading.enumerate())


def test_locks_that_threads_of_the_parent_held_are_free_in_the_child(twin: Twin) -> None:
    db, store, pipeline = twin.child, twin.child._store, twin.child._pipeline
    db["before"] = "v"
    db.sync()
    turn, leader = Turn(), Turn()
    pipeline.begin(turn)
    for lock in (store.mutex, store._committing, store.rows.lock, pipeline._mutex):
        lock.acquire()
    if isinstance(pipeline, Group):
        pipeline._open = group._Batch(leader)  # a thread of the parent was about to commit for others
    else:
        pipeline._glance.acquire()
    twin.fork()
    task = Crew().start(db.update, {"child": "v", "more": "v"})
    assert task.failure() is None
    db.sync()
    turn.end()
    assert dict(db) == dict(twin.parent) == dict.fromkeys((b"before", b"child", b"more"), b"v")
    assert not db.check()


def test_a_child_writes_with_a_thread_of_its_own(twin: Twin) -> None:
    flusher = twin.child._pipeline.flusher
    twin.child["parent"] = "v"
    twin.child.sync()
    twin.fork()
    own = twin.child._pipeline.flusher
    assert (own is None) == (flusher is None)
    assert own is None or own is not flusher
    assert flushers() == 0
    twin.child["child"] = "v"
    assert flushers() == (own is not None)


def test_what_a_child_inherits_of_snapshots_it_pins_itself(twin: Twin) -> None:
    old = {b"%03d" % number: b"old" * 30 for number in range(300)}
    twin.child.update(old)
    twin.child.sync()
    with twin.child.snapshot() as snapshot:
        pinned = twin.parent._store.oldest_txid()
        assert pinned is not None
        disk = twin.child._store.disk
        twin.fork()
        disk.close()  # the process that has forked ends
        assert twin.parent._store.oldest_txid() == pinned
        for number in range(5):
            twin.parent.update(dict.fromkeys(old, b"new %d" % number * 10))
        assert dict(snapshot) == old
        assert twin.child[b"000"] == b"new 4" * 10
    assert twin.parent._store.oldest_txid() is None


def test_a_child_without_snapshots_opens_the_file_when_it_first_uses_it(twin: Twin) -> None:
    for use in (
        lambda db: db["k"],
        lambda db: db.get("k"),
        len,
        list,
        lambda db: db.__setitem__("other", "v"),
        lambda db: db.snapshot().close(),
        lambda db: db.sync(),
    ):
        twin.child["k"] = "v"
        twin.child.sync()
        disk = twin.child._store.disk
        twin.fork()
        assert twin.child._store.disk is disk
        use(twin.child)
        assert twin.child["k"] == b"v"
        assert twin.child._store.disk is not disk


def test_what_was_pending_at_a_fork_is_not_the_childs(twin: Twin) -> None:
    """If it could not be written before, the parent will: it still has it, and the lock that goes with it."""
    db = twin.child
    db["before"] = "v"
    db._before_fork()
    assert dict(twin.parent) == {b"before": b"v"}
    with db.transaction() as tx:
        tx["inside"] = "v"
        db._before_fork()  # it is not written yet, and not waited for
    deferred = db._pipeline.pending() is not None
    assert deferred == isinstance(db._pipeline, Deferred)
    twin.fork()
    assert db._pipeline.pending() is None
    committed = {b"before": b"v"} if deferred else {b"before": b"v", b"inside": b"v"}
    assert dict(db) == dict(twin.parent) == committed
    db["child"] = "v"
    db.sync()
    assert dict(twin.parent) == {**committed, b"child": b"v"}


def test_a_transaction_of_the_parents_is_over_in_the_child_when_its_block_is(twin: Twin) -> None:
    db = twin.child
    outer, kept, undone = db.transaction(), db.transaction(), db.transaction()
    for block in (outer, kept, undone):
        block.__enter__()
        block["k"] = "parent"
    twin.fork()
    uses: list[Callable[[], object]] = [
        lambda: undone["k"], lambda: kept["k"], lambda: outer["k"], lambda: outer.update(k="child"), outer.rollback,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(durabledbm.error, match="belongs to the parent"):
            use()
    undone.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # what the block raises is not hidden
    for block in (kept, outer):
        with pytest.raises(durabledbm.error, match="belongs to the parent"):
            block.__exit__(None, None, None)
    db["k"] = "child"
    db.sync()
    assert dict(db) == dict(twin.parent) == {b"k": b"child"}


def test_a_closed_handle_stays_closed_in_a_child(twin: Twin) -> None:
    twin.child["k"] = "v"
    twin.child.close()
    twin.fork()
    for read in (lambda: twin.child["k"], lambda: twin.child._store.read(1, 0)):
        with pytest.raises(durabledbm.ClosedError):
            read()
    assert dict(twin.parent) == {b"k": b"v"}


# -- multiprocessing


def put(db_or_path: Any, key: str) -> None:
    """In a process of multiprocessing: through a handle that came by fork, or a file opened here."""
    if isinstance(db_or_path, str):
        with durabledbm.open(db_or_path, "w") as db:
            db[key] = "v"
    else:
        db_or_path[key] = "v"


def run(context: Any, *args: Any) -> None:
    process = context.Process(target=put, args=args)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    process.close()


def test_multiprocessing_by_fork_shares_handles(any_db: durabledbm.Database) -> None:
    any_db["parent"] = "v"
    any_db.sync()
    context = multiprocessing.get_context("fork")
    for number in range(3):
        run(context, any_db, f"child {number}")
    any_db["parent"] = "w"
    any_db.sync()
    assert len(any_db) == 4, "what a child wrote is in the file when it has ended, also if it did not close"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing_by_spawn_opens_the_file_again(db: durabledbm.Database, db_path: str, method: str) -> None:
    """In an interpreter of its own, since a fork server lives as long as the process that started it."""
    with Child("multiprocessing_by", method, db_path) as child:
        assert "open the file again" in child.hear("refused")
        child.finish()
    assert dict(db) == {b"child": b"v"}


@pytest.mark.skipif(sys.platform != "linux", reason="the list of open files is read from /proc")
def test_a_forked_child_that_used_the_handle_has_the_file_open_once(db: durabledbm.Database, db_path: str) -> None:
    db["k"] = "v"

    def work() -> int:
        db["child"] = "v"
        places = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return sum(os.path.exists(place) and os.path.realpath(place) == db_path for place in places)

    assert Fork(work).result() == 1
