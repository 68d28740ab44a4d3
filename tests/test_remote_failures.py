"""Servers that go away, connections that break, processes that fork: what is lost, and that it is said."""

from __future__ import annotations

import os
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from linearizability import Operation, Recorder, check
from servers import Postgres, Redis

from durabledbm import BusyError, error, remote
from durabledbm.remote import ConnectionLostError

Open = Callable[..., Any]


@pytest.fixture(params=["postgres", "redis"])
def server(request: pytest.FixtureRequest) -> Postgres | Redis:
    return request.getfixturevalue("postgres" if request.param == "postgres" else "redis_server")  # type: ignore[no-any-return]


@pytest.fixture
def make(server: Postgres | Redis) -> Iterator[Open]:
    """Opens handles on one table, which is empty at first."""
    with ExitStack() as stack:

        def make(flag: str = "c", **options: Any) -> Any:
            return stack.enter_context(remote.open(server.url, flag, table="failures", **options))

        make("n").close()
        yield make


@pytest.fixture
def db(make: Open) -> Any:
    return make()


def before(monkeypatch: pytest.MonkeyPatch, db: Any, method: str, act: Callable[[], object], times: int = 1) -> None:
    """Have `act` done before an operation on the table of `db`, the first `times` times."""
    original = getattr(db._table, method)
    left = times

    def replaced(session: Any, *args: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            act()
        return original(session, *args)

    monkeypatch.setattr(db._table, method, replaced)


# -- connections ---------------------------------------------------------------------------------------------------


def test_connections_that_broke_while_they_were_idle_are_replaced_and_nothing_is_lost(
    db: Any, server: Postgres | Redis
) -> None:
    db["a"] = "1"
    server.kill_connections()
    db["b"] = "2"
    server.kill_connections()
    assert db["b"] == b"2"
    server.kill_connections()
    with db.transaction():
        db["c"] = "3"
    assert len(db) == 3
    assert db.stats().reconnects >= 3


def test_a_read_whose_connection_breaks_is_done_once_more(
    db: Any, server: Postgres | Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    db["a"] = "1"
    before(monkeypatch, db, "find", server.kill_connections)
    assert db["a"] == b"1"
    before(monkeypatch, db, "find", server.kill_connections, times=5)
    with pytest.raises(ConnectionLostError) as caught:
        db["a"]
    assert caught.value.committed is False


def test_a_write_whose_connection_breaks_is_not_repeated_and_says_that_its_outcome_is_not_known(
    db: Any, server: Postgres | Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, db, "put", server.kill_connections)
    with pytest.raises(ConnectionLostError, match="not known: read to find out") as caught:
        db["a"] = "1"
    assert caught.value.committed is None
    db["a"] = "2"
    assert db["a"] == b"2"


def test_a_block_whose_connection_breaks_is_rolled_back(postgres: Postgres) -> None:
    with remote.open(postgres.url, "n", table="failures") as db:

        def simple() -> None:
            with db.transaction():
                db["a"] = "1"
                postgres.kill_connections()
                db["b"] = "2"

        def nested() -> None:
            with db.transaction():
                db["a"] = "1"
                postgres.kill_connections()
                with suppress(ConnectionLostError), db.transaction():
                    db["b"] = "2"

        def at_the_end() -> None:
            with db.transaction():
                db["a"] = "1"
                postgres.kill_connections()

        for block in (simple, nested, at_the_end):
            with pytest.raises(ConnectionLostError) as caught:
                block()
            assert caught.value.committed is False, "it is known that nothing was"
            assert dict(db) == {}


def test_it_is_not_known_if_the_connection_breaks_at_the_end_of_the_block(
    db: Any, server: Postgres | Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(server, Postgres):
        from durabledbm.remote.postgresql.session import Session

        original = Session.do

        def do(self: Any, statement: str, *args: Any) -> Any:
            if statement == "COMMIT":
                server.kill_connections()
            return original(self, statement, *args)

        monkeypatch.setattr(Session, "do", do)
    else:
        from durabledbm.remote.redis.scripts import COMMIT
        from durabledbm.remote.redis.session import Session as RedisSession

        script = RedisSession.script

        def run(self: Any, text: str, *args: Any) -> Any:
            if text == COMMIT:
                server.kill_connections()
            return script(self, text, *args)

        monkeypatch.setattr(RedisSession, "script", run)
    with pytest.raises(ConnectionLostError, match="not known") as caught, db.transaction():
        db["a"] = "1"
    assert caught.value.committed is None


def test_an_iterator_goes_on_or_says_that_what_it_saw_is_lost(db: Any, server: Postgres | Redis) -> None:
    entries = {b"%04d" % number: b"x" for number in range(1200)}
    db.update(entries)
    with db.snapshot() as snapshot:
        iterators = [iter(db), iter(snapshot), db.range(b"0000", b"0010")]
        for iterator in iterators:
            next(iterator)
        server.kill_connections()
        db["0000a"] = "new"
        assert len(list(iterators[2])) == 9, "it had all that it needs"
        for iterator in iterators[:2]:
            if isinstance(server, Redis):  # the server keeps what they see, not a connection
                assert len(list(iterator)) == 1199
            else:
                with pytest.raises(ConnectionLostError):
                    list(iterator)
    assert len(db) == 1201


def test_threads_go_on_while_connections_are_killed_and_every_result_can_be_explained(
    db: Any, server: Postgres | Redis
) -> None:
    """Writes that returned are there, those that raised are there or not, and nothing happened twice."""
    histories: list[list[Operation]] = []
    stop = threading.Event()

    def work(seed: int) -> None:
        rng, recorder = random.Random(seed), Recorder(db)
        for number in range(60):
            kind = rng.choice(("get", "put", "put", "pop", "setdefault", "delete"))
            value = b"%d %d" % (seed, number) if kind in ("put", "setdefault") else None
            with suppress(ConnectionLostError):
                recorder.perform(kind, b"%d" % rng.randrange(4), value)
        histories.append(recorder.history)

    def kill() -> None:
        while not stop.wait(0.02):
            server.kill_connections()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    killer = threading.Thread(target=kill)
    for thread in (killer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    killer.join()
    assert len(histories) == 4
    check(operation for history in histories for operation in history)


# -- servers -------------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there(make: Open, server: Postgres | Redis) -> None:
    db = make()
    db["a"] = "1"
    server.stop()
    try:
        for use in (lambda: db["a"], lambda: db.update(a="2"), lambda: list(db), db.snapshot, make,
                    db.transaction().__enter__):  # fmt: skip
            with pytest.raises(ConnectionLostError, match="connect") as caught:
                use()
            assert caught.value.committed is False, "nothing was sent"
    finally:
        server.start()
    db["b"] = "2"
    assert db["b"] == b"2"


def test_what_was_acknowledged_is_there_after_a_crash_of_the_server(postgres: Postgres) -> None:
    with remote.open(postgres.url, "n", table="crash") as db:
        db.update({b"%d" % number: b"x" for number in range(100)})
        del db["7"]

        def block() -> None:
            with db.transaction():
                db["8"] = "not committed"
                postgres.restart()

        with pytest.raises(ConnectionLostError):
            block()
        assert len(db) == 99
        assert db["8"] == b"x"


def test_a_server_of_redis_that_keeps_what_it_has_comes_back_with_it(redis_server: Redis) -> None:
    with Redis(keep=True) as server, remote.open(server.url, table="kept") as db:
        db.update({b"%d" % number: b"x" for number in range(100)})
        iterator = iter(db)
        server.restart()
        assert len(db) == len(list(iterator)) == 100


# -- the limit of connections --------------------------------------------------------------------------------------


def test_more_uses_at_a_time_than_connections_wait_and_then_say_what_is_wrong(postgres: Postgres) -> None:
    with remote.open(postgres.url, "n", table="limit", max_connections=2, timeout=0.1) as db:
        db.update({b"%04d" % number: b"x" for number in range(1200)})
        first, second = iter(db), db.snapshot()
        with pytest.raises(BusyError, match=r"all 2 connections.*max_connections"):
            db["0000"]
        second.close()
        assert db["0000"] == b"x"
        del first
        db["0000"] = "y"
        stats = db.stats()
        assert stats.connections + stats.idle_connections <= 2 + 1


def test_one_connection_is_enough_to_read_and_write_in_turn(postgres: Postgres) -> None:
    with remote.open(postgres.url, "n", table="limit", max_connections=1, timeout=5) as db:
        for number in range(5):
            db["a"] = str(number)
            assert db["a"] == str(number).encode()
        assert sum(db.stats()[3:5]) == 1
        results: list[bytes] = []
        threads = [threading.Thread(target=lambda: results.append(db["a"])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [b"4"] * 8


# -- writers in each other's way -----------------------------------------------------------------------------------


def hold(db: Any, go_on: threading.Event) -> threading.Thread:
    """A thread with a block in which "a" was written."""
    begun = threading.Event()

    def work() -> None:
        with db.transaction() as tx:
            tx["a"] = "block"
            begun.set()
            go_on.wait()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    return thread


def test_a_write_that_meets_a_block_waits_and_is_done_again(postgres: Postgres) -> None:
    with remote.open(postgres.url, "n", table="met") as db:
        db["a"] = "0"
        go_on = threading.Event()
        thread = hold(db, go_on)

        def let_go() -> None:
            while postgres.run("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == [(0,)]:
                time.sleep(0.01)
            go_on.set()

        helper = threading.Thread(target=let_go)
        helper.start()
        db.update(a="1", b="2")
        helper.join()
        thread.join()
        assert dict(db) == {b"a": b"1", b"b": b"2"}
        assert db.stats().retries >= 1


def test_a_write_waits_for_a_block_no_longer_than_timeout(postgres: Postgres) -> None:
    with remote.open(postgres.url, "n", table="met", timeout=0.1) as db:
        db["a"] = "0"
        go_on = threading.Event()
        thread = hold(db, go_on)
        with pytest.raises(BusyError, match="another transaction holds"):
            db["a"] = "1"
        db["b"] = "others go on"
        go_on.set()
        thread.join()
        assert db["a"] == b"block"


# -- fork ----------------------------------------------------------------------------------------------------------


def in_child(function: Callable[[], object]) -> None:
    """Do it in a forked process, which must end well."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_handle_goes_on_in_both_processes_after_a_fork(db: Any) -> None:
    entries = {b"%04d" % number: b"x" for number in range(1200)}
    db.update(entries)
    with db.snapshot() as snapshot, db.transaction() as tx:
        tx["parent"] = "1"
        iterator, of_block = iter(snapshot), tx.range("0", "1")
        for one in (iterator, of_block):
            next(one)

        def child() -> None:
            for use in (lambda: tx["parent"], lambda: tx.update(a="1"), lambda: snapshot["0000"],
                        lambda: list(of_block)):  # fmt: skip
                with pytest.raises(error, match="parent process"):
                    use()
            assert "parent" not in in_context(lambda: dict(db))
            in_context(lambda: db.__setitem__("child", "1"))
            snapshot.close()
            db.close()

        in_child(child)
        assert len(list(iterator)) == 1199
        assert len(list(of_block)) == 999
        assert tx["parent"] == b"1"
    assert db["child"] == db["parent"] == b"1"


def in_context(function: Callable[[], Any]) -> Any:
    """Call it outside of the block that the caller is in."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


def test_children_count_without_losing_one(db: Any) -> None:
    db["n"] = "0"

    def count() -> None:
        for _ in range(8):
            while True:
                try:
                    with db.transaction():
                        db["n"] = str(int(db["n"]) + 1)
                except BusyError:
                    time.sleep(random.uniform(0, 0.01))
                    continue
                break

    children = [threading.Thread(target=in_child, args=(count,)) for _ in range(3)]
    for child in children:
        child.start()
    count()
    for child in children:
        child.join()
    assert db["n"] == b"32"
