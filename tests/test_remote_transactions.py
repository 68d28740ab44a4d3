"""Blocks and snapshots on servers: all or nothing, one after another, and whose they are."""

from __future__ import annotations

import asyncio
import contextvars
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from servers import Postgres, Redis

from durabledbm import BusyError, ClosedError, ReadOnlyError, error, remote

Open = Callable[..., Any]


@pytest.fixture(params=["postgres", "redis"])
def server(request: pytest.FixtureRequest) -> Postgres | Redis:
    return request.getfixturevalue("postgres" if request.param == "postgres" else "redis_server")  # type: ignore[no-any-return]


@pytest.fixture
def make(server: Postgres | Redis) -> Iterator[Open]:
    """Opens handles on one table, which is empty at first."""
    with ExitStack() as stack:

        def make(flag: str = "c", **options: Any) -> Any:
            return stack.enter_context(remote.open(server.url, flag, table="transactions", **options))

        db = make("n")
        for name in db.tables():
            db.drop_table(name)
        yield make


@pytest.fixture
def db(make: Open) -> Any:
    return make()


def in_thread(function: Callable[[], Any]) -> Any:
    """What the function returns in a thread of its own. Its exception is raised here."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((True, function()))
        except BaseException as exc:
            result.append((False, exc))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    done, value = result[0]
    if not done:
        raise value
    return value


# -- all or nothing ------------------------------------------------------------------------------------------------


def test_a_block_is_one_commit(db: Any, make: Open) -> None:
    other = make()
    with db.transaction() as tx:
        tx["a"] = "1"
        db["b"] = "2"
        assert dict(db) == dict(tx) == {b"a": b"1", b"b": b"2"}
        assert dict(other) == {}
        assert in_thread(lambda: dict(db)) == {}
    assert dict(other) == {b"a": b"1", b"b": b"2"}


def test_an_exception_undoes_the_block(db: Any) -> None:
    db["a"] = "old"

    def block() -> None:
        with db.transaction():
            db["a"] = "new"
            del db["a"]
            db.update(b="1", c="2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert dict(db) == {b"a": b"old"}


def test_a_block_in_a_block_is_undone_alone(db: Any) -> None:
    with db.transaction():
        db["a"] = "1"

        def block() -> None:
            with db.transaction():
                db.update(a="2", b="2")
                with db.transaction():
                    db["c"] = "3"
                assert dict(db) == {b"a": b"2", b"b": b"2", b"c": b"3"}
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            block()
        assert dict(db) == {b"a": b"1"}
        with db.transaction():
            db["d"] = "4"
    assert dict(db) == {b"a": b"1", b"d": b"4"}


def test_rollback_undoes_now_and_the_block_goes_on_reading(db: Any) -> None:
    db["a"] = "1"
    with db.transaction() as tx:
        tx["a"] = "2"
        iterator = iter(tx)
        tx.rollback()
        assert tx["a"] == b"1"
        with pytest.raises(ClosedError):
            next(iterator)
        with pytest.raises(error, match="rolled back"):
            tx["a"] = "3"
        with db.transaction(), pytest.raises(error, match="rolled back"):
            db["a"] = "4"
        tx.rollback()
    with db.transaction() as tx:
        db["b"] = "kept"
        with db.transaction() as inner:
            with pytest.raises(error, match="nested"):
                tx.rollback()
            db["c"] = "gone"
            inner.rollback()
            assert dict(db) == {b"a": b"1", b"b": b"kept"}
    assert dict(db) == {b"a": b"1", b"b": b"kept"}


def test_a_block_is_of_all_tables(db: Any, make: Open) -> None:
    users, carts = db.table("users"), db.table("carts")

    def block() -> None:
        with db.transaction() as tx:
            users["ada"] = "1"
            tx.table("carts")["ada"] = "2"
            tx["main"] = "3"
            assert (dict(users), dict(carts), dict(db)) == ({b"ada": b"1"}, {b"ada": b"2"}, {b"main": b"3"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert (dict(users), dict(carts), dict(db)) == ({}, {}, {})
    with users.transaction() as tx:
        tx["ada"] = "1"
        carts["ada"] = "2"
    other = make()
    assert other.tables() == ["carts", "users"]
    with other.snapshot() as snapshot:
        carts.clear()
        assert dict(snapshot.table("users")) == {b"ada": b"1"}
        assert dict(snapshot.table("carts")) == {b"ada": b"2"}
        assert len(snapshot.table("carts")) == 1
        assert dict(snapshot) == {}


def test_a_block_that_nobody_ends_is_rolled_back(db: Any) -> None:
    block = db.transaction()
    block.__enter__()["a"] = "1"
    del block
    assert dict(db) == {}
    db["a"] = "2"
    assert db.stats().connections == 0


def test_a_block_is_used_once_and_only_while_it_is_open(db: Any) -> None:
    block = db.transaction()
    with pytest.raises(ClosedError):
        block["a"]
    with block:
        assert "open" in repr(block)
    for use in (lambda: block["a"], lambda: block.update(a="1"), lambda: list(block), lambda: len(block)):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(error, match="once"):
        block.__enter__()
    assert "ended" in repr(block)


def test_a_read_only_handle_begins_no_block(make: Open) -> None:
    reader = make("r")
    with pytest.raises(ReadOnlyError), reader.transaction():
        pass
    with pytest.raises(ReadOnlyError):
        reader.table("new")


def test_iterators_of_a_block_end_with_it(db: Any) -> None:
    db.update({b"%04d" % number: b"x" for number in range(1200)})
    with db.transaction() as tx:
        short, long = tx.range(b"0000", b"0010"), iter(tx)
        assert (next(short)[0], next(long)) == (b"0000", b"0000")
        with suppress(ZeroDivisionError), db.transaction():
            inner = iter(db.items())
            next(inner)
            raise ZeroDivisionError
        with pytest.raises(ClosedError):
            next(inner)
        assert len(list(long)) == 1199
        long = iter(tx)
    for iterator in (short, long):
        with pytest.raises(ClosedError):
            next(iterator)


def test_an_iterator_of_a_block_does_not_see_what_the_block_writes_later(db: Any) -> None:
    """Entries of a page, entries of later pages, and entries so large that they come by themselves."""
    entries = {b"%04d" % number: b"%d" % number for number in range(1200)}
    entries |= {b"0600": b"x" * 100_000, b"1190": b"y" * 100_000}
    db.update(entries)
    with db.transaction():
        forth, back = iter(db.items()), db.range(reverse=True)
        first, last = next(forth), next(back)
        db.update(dict.fromkeys(entries, b"new"))
        del db["1000"]
        db["0500a"] = "new"
        assert dict([first, *forth]) == dict([last, *back]) == entries
        for _ in range(70):  # so many cursors are begun, and given up, that they are closed
            next(iter(db))
        assert len(list(db)) == 1200


# -- one after another ---------------------------------------------------------------------------------------------


def test_of_two_blocks_that_read_what_the_other_writes_one_is_refused(db: Any, make: Open) -> None:
    """Neither is allowed to take the last doctor from duty, though each writes another key."""
    db.update(ada="on", grace="on")
    other = make()
    first, second = db.transaction(), other.transaction()

    def block() -> None:
        with ExitStack() as stack:
            stack.enter_context(first)
            stack.enter_context(second)
            for tx, name in ((first, "ada"), (second, "grace")):
                if list(tx.values()).count(b"on") > 1:
                    tx[name] = "off"

    with pytest.raises(BusyError, match="try again"):
        block()
    assert sorted(db.values()) == [b"off", b"on"]


@pytest.mark.parametrize("read", [
    lambda tx: tx.get("new"), len, lambda tx: tx.firstkey(), lambda tx: list(tx.range("n", "o")),
    lambda tx: "new" in tx, lambda tx: tx.get_many(["new"]), lambda tx: tx.nextkey("a"), bool,
])  # fmt: skip
def test_what_a_block_has_read_in_whatever_way_is_not_changed_before_it_commits(
    db: Any, make: Open, read: Callable[[Any], object]
) -> None:
    """Not even by somebody who writes a key that was not there."""
    other = make()

    def block() -> None:
        with db.transaction() as tx:
            read(tx)
            with other.transaction() as theirs:
                theirs.get("result")
                theirs["new"] = "1"
            tx["result"] = "1"

    with pytest.raises(BusyError):
        block()
    assert dict(db) == {b"new": b"1"}


def test_blocks_that_read_other_things_do_not_disturb_each_other(db: Any, make: Open) -> None:
    db.update({b"%03d" % number: b"x" for number in range(100)})
    other = make()
    with db.transaction() as tx:
        tx["000"]
        with other.transaction() as theirs:
            theirs["099"] = "theirs"
        tx["000"] = "mine"
        tx["new"] = "blind"
    assert (db["000"], db["099"], db["new"]) == (b"mine", b"theirs", b"blind")


def test_a_block_that_has_met_another_can_be_run_again(db: Any, make: Open) -> None:
    other = make()
    db["n"] = "0"
    tries = 0

    def add() -> None:
        nonlocal tries
        with db.transaction():
            tries += 1
            value = int(db["n"])
            if tries == 1:
                in_thread(lambda: other.__setitem__("n", "10"))
            db["n"] = str(value + 1)

    with pytest.raises(BusyError):
        add()
    add()
    assert db["n"] == b"11"


def test_threads_count_without_losing_one(db: Any) -> None:
    db["n"] = "0"

    def count() -> None:
        for _ in range(10):
            while True:
                try:
                    with db.transaction():
                        db["n"] = str(int(db["n"]) + 1)
                except BusyError:
                    continue
                break

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db["n"] == b"40"


def test_random_blocks_match_a_dict(db: Any) -> None:
    rng = random.Random(19)
    model: dict[bytes, bytes] = {}
    keys = [b"%d" % number for number in range(30)]

    def act(depth: int) -> None:
        nonlocal model
        for _ in range(rng.randrange(1, 6)):
            key, value = rng.choice(keys), b"%d" % rng.randrange(1000)
            action = rng.randrange(9)
            if action < 3:
                db[key] = model[key] = value
            elif action == 3:
                assert db.pop(key, None) == model.pop(key, None)
            elif action == 4:
                assert db.setdefault(key, value) == model.setdefault(key, value)
            elif action == 5 and model:
                assert db.popitem() == (max(model), model.pop(max(model)))
            elif action == 6 and rng.random() < 0.2:
                db.clear()
                model.clear()
            elif depth < 3:
                before = dict(model)
                try:
                    with db.transaction() as tx:
                        act(depth + 1)
                        if rng.random() < 0.2:
                            tx.rollback()
                            model = dict(before)
                        if rng.random() < 0.3:
                            raise ZeroDivisionError
                except ZeroDivisionError:
                    model = before
                except error:  # something was written after a rollback
                    model = before
            assert list(db.items()) == sorted(model.items())
            assert len(db) == len(model)

    for _ in range(25):
        act(0)


# -- whose it is ---------------------------------------------------------------------------------------------------


def test_other_tasks_do_not_slip_into_a_block(db: Any) -> None:
    async def other() -> dict[bytes, bytes]:
        db["other"] = "1"  # a commit of its own
        return dict(db)

    async def main() -> None:
        with suppress(ZeroDivisionError), db.transaction():
            db["mine"] = "1"
            seen = await asyncio.create_task(other())
            assert seen == {b"other": b"1"}
            raise ZeroDivisionError

    asyncio.run(main())
    assert dict(db) == {b"other": b"1"}


def test_a_block_goes_with_its_context_from_thread_to_thread(db: Any) -> None:
    """As web frameworks do it: begun on one thread of a pool, used on another, ended on a third."""
    context = contextvars.copy_context()
    block = db.transaction()
    in_thread(lambda: context.run(block.__enter__))
    in_thread(lambda: context.run(db.__setitem__, "a", "1"))
    in_thread(lambda: db.__setitem__("b", "not in it"))
    assert context.run(lambda: db.get("a")) == b"1"
    assert dict(db) == {b"b": b"not in it"}
    in_thread(lambda: context.run(block.__exit__, None, None, None))
    assert dict(db) == {b"a": b"1", b"b": b"not in it"}


def test_what_is_written_after_the_outer_block_has_ended_first_is_not_lost_in_silence(db: Any) -> None:
    outer, inner = db.transaction(), db.transaction()
    outer.__enter__()
    inner.__enter__()
    inner["a"] = "1"
    outer.__exit__(None, None, None)
    assert dict(db) == {b"a": b"1"}
    with pytest.raises(ClosedError):
        inner["b"] = "2"
    db["c"] = "3"
    with pytest.raises(ClosedError, match="has ended already"):
        inner.__exit__(None, None, None)
    assert dict(db) == {b"a": b"1", b"c": b"3"}


def test_a_block_can_be_used_by_other_threads_through_its_object(db: Any) -> None:
    with db.transaction() as tx:
        in_thread(lambda: tx.update(a="1"))
        assert in_thread(lambda: dict(tx)) == {b"a": b"1"}
        assert in_thread(lambda: dict(db)) == {}
    assert dict(db) == {b"a": b"1"}


# -- snapshots -----------------------------------------------------------------------------------------------------


def test_a_snapshot_in_a_block_shows_the_last_commit(db: Any) -> None:
    db["a"] = "1"
    with db.transaction():
        db["a"] = "2"
        with db.snapshot() as snapshot:
            assert dict(snapshot) == {b"a": b"1"}


def test_a_snapshot_is_of_one_instant_for_all_threads(db: Any) -> None:
    entries = {b"%04d" % number: b"%d" % number for number in range(1200)}
    db.update(entries)
    with db.snapshot() as snapshot:
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                with db.transaction():
                    db.update({b"%04d" % (number % 1200): b"new", b"new %d" % number: b"x"})
                    db.pop(b"%04d" % (7 * number % 1200), None)

        results: list[object] = []
        readers = [threading.Thread(target=lambda: results.append(dict(snapshot.items()))) for _ in range(4)]
        writer = threading.Thread(target=write)
        for thread in (writer, *readers):
            thread.start()
        for thread in readers:
            thread.join()
        assert [result == entries for result in results] == [True] * 4
        assert len(snapshot) == 1200
        assert dict(snapshot.range(reverse=True)) == entries
        stop.set()
        writer.join()
    assert db != entries


def test_a_snapshot_that_is_closed_says_so(db: Any) -> None:
    db.update({b"%04d" % number: b"x" for number in range(1200)})
    snapshot = db.snapshot()
    iterator = iter(snapshot)
    next(iterator)
    assert not snapshot.closed
    snapshot.close()
    snapshot.close()
    for use in (lambda: snapshot["0000"], lambda: next(iterator), lambda: len(snapshot), snapshot.__enter__,
                lambda: snapshot.table("x").get("y")):  # fmt: skip
        with pytest.raises(ClosedError):
            use()
    assert db.stats().connections == 0


# -- the end of the handle -----------------------------------------------------------------------------------------


def test_close_rolls_the_callers_block_back(make: Open) -> None:
    db, other = make(), make()

    def inner() -> None:
        with db.transaction():
            db["b"] = "2"
            db.close()

    def outer() -> None:
        with db.transaction():
            db["a"] = "1"
            with pytest.raises(ClosedError, match="has ended already"):
                inner()
            with pytest.raises(ClosedError):
                db["c"] = "3"

    with pytest.raises(ClosedError, match="has ended already"):
        outer()
    assert dict(other) == {}


def test_close_waits_for_the_blocks_of_other_threads(make: Open) -> None:
    db, other = make(timeout=0.05), make()
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with db.transaction() as tx:
            tx["a"] = "1"
            begun.set()
            go_on.wait()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    with pytest.raises(BusyError, match="another thread"):
        db.close()
    assert not db.closed
    go_on.set()
    thread.join()
    db.close()
    assert dict(other) == {b"a": b"1"}


def test_a_signal_handler_reads_in_the_middle_of_a_block_and_does_not_wait_for_itself(make: Open) -> None:
    """Whatever it asks for, and whenever it comes: also in the middle of an operation of the same block."""
    db = make(timeout=5)
    db["a"] = "1"
    seen: list[object] = []

    def handler(*_: object) -> None:
        seen.append(db.get("a"))
        seen.append(len(db))
        try:
            db["handler"] = "1"
        except BusyError as exc:
            seen.append(exc)
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.003))

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        with suppress(BusyError), db.transaction():
            while not any(isinstance(one, BusyError) for one in seen):
                db["b"] = db["a"]
                list(db.items())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert b"1" in seen
    db["c"] = "the handle goes on"


def test_a_signal_handler_closes_in_the_middle_of_a_block(make: Open) -> None:
    db, other = make(timeout=5), make()
    previous = signal.signal(signal.SIGALRM, lambda *_: db.close())
    try:
        def block() -> None:
            with db.transaction():
                db["a"] = "1"
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                while True:
                    db["b"] = db["a"]

        with pytest.raises(ClosedError):
            block()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert db.closed
    assert dict(other) == {}
