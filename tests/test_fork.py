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
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from children import Child
from crew import Crew, Gate, wait_until
from model import MODES
from simdisk import SimDisk, SimVolume

import durabledbm
from durabledbm._engine import group_commit as group
from durabledbm._engine.deferred_commit import DeferredCommit
from durabledbm._engine.group_commit import GroupCommit
from durabledbm._engine.locks import forget_owners
from durabledbm._engine.threads import Lease
from durabledbm.changelog import ChangeLog
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
            durabledbm._process.handles._at_exit()

    db.sync()
    with durabledbm.open(db_path, "w", timeout=0) as other, db.transaction():
        db["k"] = "parent"
        Fork(end).result()
        failure = Crew().start(other.__setitem__, "k", "other").failure()
        assert isinstance(failure, durabledbm.BusyError), "the child's end released the parent's lock"
    db.sync()
    assert db["k"] == b"parent"


def test_a_snapshot_goes_on_in_parent_and_child(db: durabledbm.Database) -> None:
    """Each has a pin of its own, the child as soon as it has read: that the parent ends its own is no matter then."""
    old = {b"%03d" % number: b"old" * 30 for number in range(500)}
    db.update(old)
    ready, go = os.pipe(), os.pipe()
    snapshot = db.snapshot()
    iterators = [iter(snapshot.items())]
    next(iterators[0])

    def read() -> bool:
        assert snapshot["001"] == b"old" * 30
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
            wait_until(lambda: store.durable_txid == store.state.meta.txid)
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


def test_a_child_is_told_of_a_file_that_was_renamed_or_removed_like_its_parent(
    db: durabledbm.Database, db_path: str
) -> None:
    db["k"] = "v"

    def use() -> str:
        try:
            return str(dict(db))
        except durabledbm.error as exc:
            return str(exc)

    os.rename(db_path, db_path + ".renamed")
    assert "moved or removed" in Fork(use).result()
    os.rename(db_path + ".renamed", db_path)
    assert Fork(use).result() == str({b"k": b"v"})
    os.unlink(db_path)
    assert "moved or removed" in Fork(use).result()


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


# -- a child that never touches the handle, and a parent that is killed


class Idle:
    """A process that does nothing, until `end` is called: by all the ways to fork that Python has."""

    def __init__(self) -> None:
        self._alive, self._end = os.pipe()
        self._there = os.pipe()

    def wait(self) -> None:
        """In the idle process, which says so when what is to be done after a fork is done."""
        os.write(self._there[1], b"x")
        os.close(self._end)
        os.read(self._alive, 1)
        os._exit(0)

    def fork(self) -> None:
        if not os.fork():
            self.wait()
        os.read(self._there[0], 1)

    def forkpty(self) -> None:
        pid, terminal = os.forkpty()
        if not pid:
            self.wait()
        os.set_inheritable(terminal, False)  # it stays open: else the child were told to hang up
        os.read(self._there[0], 1)

    def multiprocessing(self) -> None:
        multiprocessing.get_context("fork").Process(target=self.wait).start()
        os.read(self._there[0], 1)

    def subprocess(self) -> None:
        """Forked, and not another program yet. The parent waits for that, so it must be killed from elsewhere."""
        threading.Thread(
            target=subprocess.Popen, args=(["true"],), kwargs={"preexec_fn": self.wait, "pass_fds": (self._alive,)},
        ).start()
        os.read(self._there[0], 1)

    def end(self) -> None:
        for end in (self._alive, self._end, *self._there):
            os.close(end)


def hold_transaction(db: durabledbm.Database) -> object:
    transaction = db.transaction()
    transaction.__enter__()
    db["b"] = "not committed"
    return transaction


def hold_snapshot(db: durabledbm.Database) -> object:
    return db.snapshot()


def hold_iterator(db: durabledbm.Database) -> object:
    iterator = iter(db.items())
    next(iterator)
    return iterator


@pytest.mark.parametrize("how", ["fork", "forkpty", "multiprocessing", "subprocess"])
@pytest.mark.parametrize("hold", [hold_transaction, hold_snapshot, hold_iterator])
def test_a_child_that_never_touches_the_handle_keeps_nothing_of_a_parent_that_is_killed(
    db_path: str, how: str, hold: Callable[[durabledbm.Database], object]
) -> None:
    old = {b"%03d" % number: b"old" * 30 for number in range(300)}
    with durabledbm.open(db_path, "c") as db:
        db.update(old)
    idle = Idle()
    ready = os.pipe()

    def parent() -> None:
        with durabledbm.open(db_path, "w") as handle:
            kept = hold(handle)
            getattr(idle, how)()
            os.write(ready[1], b"x")
            time.sleep(PATIENCE)
            del kept

    fork = Fork(parent)
    os.read(ready[0], 1)
    os.kill(fork.pid, signal.SIGKILL)
    os.waitpid(fork.pid, 0)
    os.close(fork._pipe)
    with durabledbm.open(db_path, "w", timeout=5) as db:
        assert dict(db) == old
        assert db.stats().oldest_snapshot is None
        sizes = []
        for number in range(10):
            db.update(dict.fromkeys(old, b"new %d" % number * 10))
            sizes.append(os.path.getsize(db_path))
        assert sizes[4] == sizes[-1]
    idle.end()
    for end in ready:
        os.close(end)


def test_what_is_pending_in_a_parent_that_is_killed_keeps_nobody_out(db_path: str) -> None:
    idle, ready = Idle(), os.pipe()

    def parent() -> None:
        with durabledbm.open(db_path, "c", durability="manual") as handle:
            handle["a"] = "v"
            handle.sync()
            with handle.transaction():
                idle.fork()  # what is pending cannot be written before the fork
            handle["pending"] = "v"
            os.write(ready[1], b"x")
            time.sleep(PATIENCE)

    fork = Fork(parent)
    os.read(ready[0], 1)
    with pytest.raises(durabledbm.BusyError):
        durabledbm.open(db_path, "w", timeout=0)["b"] = "v"
    os.kill(fork.pid, signal.SIGKILL)
    os.waitpid(fork.pid, 0)
    os.close(fork._pipe)
    with durabledbm.open(db_path, "w", timeout=5) as db:
        db["b"] = "v"
        assert dict(db) == {b"a": b"v", b"b": b"v"}
    idle.end()
    for end in ready:
        os.close(end)


def test_a_log_of_changes_is_let_go_of_by_a_child_that_never_touches_it(tmp_path: Path) -> None:
    idle, ready = Idle(), os.pipe()

    def parent() -> None:
        log = ChangeLog(tmp_path / "log", max_file_size=200)
        for number in range(20):
            log.put(f"{number}", "v")
        idle.fork()
        os.write(ready[1], b"x")
        time.sleep(PATIENCE)

    fork = Fork(parent)
    os.read(ready[0], 1)
    with ChangeLog(tmp_path / "log") as log:
        with pytest.raises(durabledbm.BusyError):
            log.put("other", "v")
        os.kill(fork.pid, signal.SIGKILL)
        os.waitpid(fork.pid, 0)
        log.put("other", "v")
        assert len(list(log.replay())) == 21
    os.close(fork._pipe)
    idle.end()
    for end in ready:
        os.close(end)


def test_a_child_without_descriptors_tries_again_when_it_uses_the_handle(db: durabledbm.Database) -> None:
    """The fork itself never fails for it, and the parent's locks are not kept for want of a number."""
    resource = pytest.importorskip("resource")
    db["k"] = "v"
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/dev/fd")))

    def work(scarce: bool) -> list[str]:
        said = []
        disk = db._store.disk
        assert disk.held() is not scarce
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            said.append(db["k"].decode())
        except durabledbm.error as exc:
            said.append(f"{type(exc).__name__}: {exc}")
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        db["child"] = "v"
        return [*said, db["k"].decode()]

    assert Fork(work, False).result() == ["v", "v"]
    spare = [os.dup(0) for _ in range(5)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(highest, *spare) + 3, limits[1]))  # `Fork` makes a pipe
    fillers = []
    try:
        child = None
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        for _ in range(2):
            os.close(fillers.pop())
        child = Fork(work, True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in (*spare, *fillers):
            os.close(fd)
    first, second = child.result()
    assert first.startswith("error: [Errno 24] the file must be opened again, after a fork")
    assert second == "v"
    assert db["child"] == b"v"


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="needs to drop privileges")
def test_a_child_that_drops_its_privileges_goes_on_with_what_it_opened_at_the_fork(
    db: durabledbm.Database, db_path: str
) -> None:
    db["k"] = "v"
    os.chmod(db_path, 0o600)

    def work() -> bytes:
        os.setuid(65534)
        db["child"] = "v"
        return db["k"]

    assert Fork(work).result() == b"v"
    assert db["child"] == b"v"


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="needs to drop privileges")
def test_a_child_that_may_not_open_the_file_says_so_and_keeps_no_lock(db: durabledbm.Database, db_path: str) -> None:
    db["k"] = "v"
    os.chmod(db_path, 0o600)
    os.chmod(os.path.dirname(db_path), 0o755)

    def work() -> list[str]:
        said = []
        for use in (lambda: db["k"], lambda: db.__setitem__("k", "v"), lambda: dict(db)):
            try:
                said.append(repr(use()))
            except durabledbm.error as exc:
                said.append(f"{type(exc).__name__}: {exc}")
        return said

    os.seteuid(65534)
    try:
        assert db["k"] == b"v"
        child = Fork(work)
    finally:
        os.seteuid(0)
    for what in child.result():
        assert what.startswith("error: [Errno 13] the file must be opened again, after a fork"), what


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
            return store.writer.kept, db._pipeline.deferred() or []

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

    def fork(self, *, ends: bool = True) -> None:
        """What the system's own hooks do, in the child. The parent's threads are not in it.

        The process that forked ends at once, and so do its locks, or else when `end_of_the_forked` is called.
        """
        if self.child._pipeline.flusher is not None:
            self.child._pipeline.flusher.stop()
            self.child._pipeline.flusher.join(60)
        forget_owners()
        disk = self.child._store.disk
        assert isinstance(disk, SimDisk)
        self.end_of_the_forked = disk.part()
        self.child._after_fork()
        if ends:
            self.end_of_the_forked()


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
    lease, leader = Lease(), Lease()
    pipeline.begin(lease)
    for lock in (store.mutex, store.committing, store.rows.lock, pipeline._mutex):
        lock.acquire()
    if isinstance(pipeline, GroupCommit):
        pipeline._open = group._Batch(leader)  # a thread of the parent was about to commit for others
    else:
        pipeline._changing.acquire()
    twin.fork()
    task = Crew().start(db.update, {"child": "v", "more": "v"})
    assert task.failure() is None
    db.sync()
    lease.end()
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
        twin.fork(ends=False)
        assert snapshot["001"] == b"old" * 30
        twin.end_of_the_forked()
        assert twin.parent._store.oldest_txid() == pinned
        for number in range(5):
            twin.parent.update(dict.fromkeys(old, b"new %d" % number * 10))
        assert dict(snapshot) == old
        assert twin.child[b"000"] == b"new 4" * 10
    assert twin.parent._store.oldest_txid() is None


def test_what_a_child_inherits_of_snapshots_pins_nothing_until_it_is_read(twin: Twin) -> None:
    """An idle child does not make the file grow. What it could not pin in time, it is told of."""
    old = {b"%03d" % number: b"old" * 30 for number in range(300)}
    twin.child.update(old)
    twin.child.sync()
    read, never_begun, closed = twin.child.snapshot(), twin.child.snapshot(), twin.child.snapshot()
    iterators = [iter(read.items()), iter(twin.child.items())]
    next(iterators[0])
    twin.fork()
    assert twin.parent._store.oldest_txid() is None
    closed.close()
    sizes = []
    for number in range(20):
        twin.parent.update(dict.fromkeys(old, b"new %d" % number * 10))
        sizes.append(twin.parent._store.disk.size())
    assert sizes[-1] == sizes[len(sizes) // 2]
    for read_on in (lambda: dict(read), lambda: never_begun["001"], *(partial(list, each) for each in iterators)):
        with pytest.raises(durabledbm.error, match="from before the fork") as caught:
            read_on()
        assert not isinstance(caught.value, durabledbm.CorruptionError)
    assert twin.child[b"000"] == b"new 19" * 10
    assert len(list(twin.child.items())) == 300
    for snapshot in (read, never_begun):
        snapshot.close()
    assert twin.parent._store.oldest_txid() is None


def test_damage_in_what_a_child_inherits_is_called_damage(twin: Twin) -> None:
    twin.child.update({b"%03d" % number: b"old" * 30 for number in range(300)})
    twin.child.sync()
    with twin.child.snapshot() as snapshot:
        twin.fork()
        volume = twin.child._store.volume
        assert isinstance(volume, SimVolume)
        content = volume.content("/db")
        volume.put("/db", content[:8192] + bytes(len(content) - 8192))
        with pytest.raises(durabledbm.CorruptionError, match="checksum"):
            dict(snapshot)


def test_a_grandchild_pins_what_it_reads_of_its_grandparents_snapshot(twin: Twin) -> None:
    old = {b"%03d" % number: b"old" * 30 for number in range(300)}
    twin.child.update(old)
    twin.child.sync()
    with twin.child.snapshot() as snapshot:
        pinned = twin.parent._store.oldest_txid()
        for _ in range(3):
            twin.fork(ends=False)
            assert dict(snapshot) == old
            twin.end_of_the_forked()
            assert twin.parent._store.oldest_txid() == pinned
            for number in range(5):
                twin.parent.update(dict.fromkeys(old, b"new %d" % number * 10))
        assert dict(snapshot.items()) == old
    assert twin.parent._store.oldest_txid() is None


def test_what_was_pending_at_a_fork_is_not_the_childs(twin: Twin) -> None:
    """If it could not be written before, the parent will: it still has it, and the lock that goes with it."""
    db = twin.child
    db["before"] = "v"
    db._before_fork()
    assert dict(twin.parent) == {b"before": b"v"}
    with db.transaction() as tx:
        tx["inside"] = "v"
        db._before_fork()  # it is not written yet, and not waited for
    deferred = db._pipeline.deferred() is not None
    assert deferred == isinstance(db._pipeline, DeferredCommit)
    twin.fork()
    assert db._pipeline.deferred() is None
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


# -- a fork by a signal handler

FORKING = """
import os, sys, durabledbm
from durabledbm import transaction
import durabledbm._engine.disk.posix as posix
transaction.SPILL_SIZE = 20_000  # bytes
directory, mode, kind, first, stride = *sys.argv[1:4], *map(int, sys.argv[4:])

def values(mark):
    return {b"%03d" % n: mark * 60 for n in range(150)}

def change(db):
    if kind == "meta":
        db["amid"] = "x"
    elif kind == "large":
        db["amid"] = "x" * 9000
    elif kind == "many":
        db.update(values(b"new "))
    elif kind == "spill":
        with db.transaction():
            for mark in (b"one ", b"two ", b"six "):
                db.update(values(mark))
    elif kind == "reorganize":
        db.reorganize()
    db.sync()

def forked_amid(turn):  # whether there was such a system call that writes
    number, before = divmod(turn, 2)
    path = os.path.join(directory, str(turn))
    db = durabledbm.open(path, "c", durability=mode, interval=3600, timeout=5)
    db.update(values(b"old "))
    if kind == "reorganize":
        for third in range(0, 150, 50):
            with db.transaction():
                for n in range(third, third + 49): del db[b"%03d" % n]
            db.sync()
    db["before"] = "1"; db.sync()
    calls, child, (gone_on, go_on) = 0, None, os.pipe()

    def forking(way):  # as a handler does, of a signal that comes during this system call
        def call(*arguments):
            nonlocal calls, child
            done = None if before else way(*arguments)
            calls += 1
            if calls == number:
                child = os.fork()
                if not child:
                    os.read(gone_on, 1)  # meanwhile the parent goes on, and its pages are used again
            return way(*arguments) if before else done
        return call

    ways = os.pwrite, posix._write_vector, os.ftruncate
    os.pwrite, posix._write_vector, os.ftruncate = map(forking, ways)
    try:
        change(db)
        told = "nothing"
    except durabledbm.error as exc:
        told = str(exc)
    os.pwrite, posix._write_vector, os.ftruncate = ways
    if child == 0:
        try:
            assert "the parent" in told or (not before and told == "nothing"), told
            assert db["before"] == b"1" and db["after"] == b"9"
            db["child"] = "1"; db.sync()
            assert db["child"] == b"1" and db["after"] == b"9" and not db.check()
            with db.transaction(): db["child"] = "2"
            db.close()
            os._exit(0)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    assert told == "nothing", told
    for turn in range(10):
        db["after"] = str(turn); db["large"] = str(turn) * 3000; db.sync()
    content = dict(db)
    os.write(go_on, b"x")
    if child:
        assert os.waitpid(child, 0)[1] == 0, f"call {number}, forked {'before' if before else 'after'} it"
        content[b"child"] = b"2"
    assert dict(db) == content
    db.close()
    with durabledbm.open(path) as db:
        assert dict(db) == content and db.check() == []
    return child is not None

turn = first
while forked_amid(turn):
    turn += 1 if turn < 6 else stride
print(turn)
"""


def forked_amid(directory: Path, mode: str, kind: str, first: int, stride: int) -> None:
    """Fork before and after the system calls that write, all or some of them, until there is no such call any more."""
    numbers = str(first), str(stride)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, str(directory), mode, kind, *numbers],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > first


KINDS = ["meta", "large", "many", "spill", "reorganize"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_child_of_a_fork_amid_a_commit_of_its_own_thread_does_not_go_on_with_it(
    tmp_path: Path, mode: str, kind: str
) -> None:
    """Whatever system call the handler has interrupted, also if the child goes back into it. The parent's commit is
    whole, none of its pages is written by the child, and the child's handle works like any.
    """
    forked_amid(tmp_path, mode, kind, 2 + MODES.index(mode), 7)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_no_child_of_a_fork_amid_a_commit_goes_on_with_it(tmp_path: Path, mode: str, kind: str) -> None:
    forked_amid(tmp_path, mode, kind, 2, 1)
