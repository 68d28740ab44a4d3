"""asyncio: calls from threads, tasks that do not slip into each other's transactions, and the documented pattern."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

import durabledbm


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_many_tasks_read_and_write_through_threads(db: durabledbm.Database) -> None:
    async def work(number: int) -> bytes:
        await asyncio.to_thread(db.__setitem__, f"{number}", f"value {number}")
        return await asyncio.to_thread(db.__getitem__, f"{number}")

    async def main() -> list[bytes]:
        return await asyncio.gather(*map(work, range(50)))

    assert run(main()) == [b"value %d" % number for number in range(50)]
    assert len(db) == 50


def test_the_event_loop_goes_on_while_a_thread_waits_for_a_writer(db: durabledbm.Database, db_path: str) -> None:
    turns = []

    async def tick() -> None:
        for number in range(5):
            turns.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        with durabledbm.open(db_path, "w") as other:
            with db.transaction():
                db["k"] = "mine"
                waiting = asyncio.create_task(asyncio.to_thread(other.__setitem__, "k", "theirs"))
                await tick()
                assert not waiting.done()
                assert other["k"] == b"before"
            await waiting
            assert db["k"] == b"theirs"

    db["k"] = "before"
    run(main())
    assert turns == list(range(5))


def test_a_task_does_not_slip_into_the_transaction_of_another(db: durabledbm.Database) -> None:
    """Both run on one thread. The second reads what is committed, and gets an error when it wants to write."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        with db.transaction() as tx:
            db["k"] = "first"
            inside.set()
            await go_on.wait()
            assert db["k"] == tx["k"] == b"first"
            db["end"] = "first"

    async def second() -> None:
        await inside.wait()
        assert db["k"] == b"before"
        assert dict(db) == {b"k": b"before"}
        assert len(db) == 1
        with pytest.raises(durabledbm.BusyError, match="this thread"):
            db["k"] = "second"
        with pytest.raises(durabledbm.BusyError, match="this thread"):
            db.transaction().__enter__()
        go_on.set()

    async def main() -> None:
        await asyncio.gather(first(), second())

    db["k"] = "before"
    run(main())
    assert dict(db) == {b"k": b"first", b"end": b"first"}


def test_a_task_that_was_started_in_a_transaction_is_not_in_it(db: durabledbm.Database) -> None:
    """It inherits the context of its parent, but it is another task."""

    async def child() -> bytes | None:
        with pytest.raises(durabledbm.BusyError):
            db["child"] = "v"
        return db.get("k")

    async def main() -> None:
        with db.transaction():
            db["k"] = "v"
            assert await asyncio.create_task(child()) is None
            assert await asyncio.gather(child(), child()) == [None, None]
        assert db["k"] == b"v"

    run(main())


def test_a_child_task_that_outlives_the_transaction_writes_for_itself(db: durabledbm.Database) -> None:
    async def child(ended: asyncio.Event) -> None:
        await ended.wait()
        db["child"] = "v"
        with db.transaction():
            db["child too"] = "v"

    async def main() -> None:
        ended = asyncio.Event()
        with db.transaction() as tx:
            db["k"] = "v"
            task = asyncio.create_task(child(ended))
            await asyncio.sleep(0)
            tx.rollback()
        ended.set()
        await task

    run(main())
    assert set(db) == {b"child", b"child too"}


def test_a_thread_that_was_started_in_a_transaction_is_not_in_it(db: durabledbm.Database) -> None:
    """`asyncio.to_thread` takes the context along, and the thread is another all the same."""

    async def main() -> None:
        with db.transaction():
            db["k"] = "v"
            assert await asyncio.to_thread(db.get, "k") is None
            assert await asyncio.to_thread(len, db) == 0

    run(main())
    assert db["k"] == b"v"


def test_a_callback_of_the_loop_is_not_in_the_transaction_that_scheduled_it(db: durabledbm.Database) -> None:
    seen = []

    async def main() -> None:
        with db.transaction():
            db["k"] = "v"
            asyncio.get_running_loop().call_soon(lambda: seen.append(db.get("k")))
            await asyncio.sleep(0)
        assert db["k"] == b"v"

    run(main())
    assert seen == [None]


def test_a_transaction_may_be_held_across_awaits(db: durabledbm.Database) -> None:
    async def main() -> None:
        with db.transaction():
            for number in range(5):
                db[f"{number}"] = "v"
                await asyncio.sleep(0)
                with db.transaction() as inner:
                    db["inner"] = "v"
                    await asyncio.sleep(0)
                    inner.rollback()
            assert len(db) == 5

    run(main())
    assert len(db) == 5


def test_transactions_in_threads_of_many_tasks_take_turns(db: durabledbm.Database) -> None:
    db["n"] = "0"

    def increment() -> None:
        with db.transaction():
            db["n"] = str(int(db["n"]) + 1)

    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(increment) for _ in range(50)))

    run(main())
    assert db["n"] == b"50"


def test_a_cancelled_task_rolls_its_transaction_back(db: durabledbm.Database) -> None:
    async def write(begun: asyncio.Event) -> None:
        with db.transaction():
            db["k"] = "never"
            begun.set()
            await asyncio.sleep(3600)

    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(write(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        db["after"] = "v"

    run(main())
    assert dict(db) == {b"after": b"v"}


def test_a_context_of_its_own_on_the_same_thread_is_not_in_the_transaction(db: durabledbm.Database) -> None:
    """The context decides, not the thread alone: what frameworks other than asyncio run side by side."""
    fresh = contextvars.Context()
    with db.transaction():
        db["k"] = "v"
        assert fresh.run(db.get, "k") is None
        with pytest.raises(durabledbm.BusyError):
            fresh.run(db.__setitem__, "k", "other")
        assert db["k"] == b"v"


def test_a_generator_shares_the_transaction_of_whoever_runs_it(db: durabledbm.Database) -> None:
    def write() -> Any:
        for number in range(3):
            db[f"{number}"] = "v"
            yield len(db)

    with db.transaction() as tx:
        assert list(write()) == [1, 2, 3]
        tx.rollback()
    assert len(db) == 0


def test_loops_in_two_threads_do_not_meet(db: durabledbm.Database) -> None:
    errors = []

    async def increment() -> None:
        for _ in range(20):
            with db.transaction():
                db["n"] = str(int(db["n"]) + 1)
            await asyncio.sleep(0)

    def loop() -> None:
        try:
            run(increment())
        except BaseException as exc:
            errors.append(exc)
            raise

    db["n"] = "0"
    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert db["n"] == b"40"
