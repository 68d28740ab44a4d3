"""Whose transaction it is: contexts that go from thread to thread, and blocks that end in any order."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import random
import sys
import threading
import types
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from crew import Crew, wait_until

import durabledbm
from durabledbm import BusyError, ClosedError, Database, Transaction, error
from durabledbm._engine.group_commit import GroupCommit
from durabledbm._process.caller_context import CallerContext

PATIENCE = 60
SEEDS = range(12)


class Pool:
    """Threads of a pool, which run whatever they are given, each in the context that it is to run in."""

    def __init__(self, count: int) -> None:
        self._threads = [ThreadPoolExecutor(1) for _ in range(count)]

    def start(
        self, number: int, context: contextvars.Context | None, call: Callable[..., Any], *args: Any
    ) -> Future[Any]:
        """In thread `number`. Without a context, in that of the thread."""
        run = (call, *args) if context is None else (context.run, call, *args)
        return self._threads[number].submit(*run)

    def run(self, number: int, context: contextvars.Context | None, call: Callable[..., Any], *args: Any) -> Any:
        return self.start(number, context, call, *args).result(PATIENCE)

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(3)
    yield pool
    pool.close()


def begin(db: Database) -> Transaction:
    return db.transaction().__enter__()


def end(transaction: Transaction, failure: BaseException | None = None) -> None:
    transaction.__exit__(None if failure is None else type(failure), failure, None)


def request() -> contextvars.Context:
    """What a framework makes for each request, or for each step of one."""
    return contextvars.copy_context()


# -- from thread to thread


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_a_transaction_goes_from_thread_to_thread_and_others_wait_their_turn(
    db_path: str, pool: Pool, durability: str
) -> None:
    with durabledbm.open(db_path, "c", durability=durability, timeout=PATIENCE) as db:
        tx = pool.run(0, request(), begin, db)
        pool.run(1, request(), tx.__setitem__, "in", "1")
        waiting = pool.start(0, request(), db.__setitem__, "other", "1")
        wait_until(lambda: len(db._store.writer._leases.queue) == 2)
        assert not waiting.done()
        assert pool.run(1, request(), dict, db) == {}
        assert pool.run(2, request(), dict, tx) == {b"in": b"1"}
        pool.run(2, request(), end, tx)
        waiting.result(PATIENCE)
        assert dict(db) == {b"in": b"1", b"other": b"1"}


def test_what_waits_on_the_thread_that_began_a_transaction_waits_no_longer_than_its_timeout(
    db_path: str, pool: Pool
) -> None:
    with durabledbm.open(db_path, "c", timeout=0.02) as db:
        tx = pool.run(0, request(), begin, db)
        for write in (lambda: db.update(k="other"), lambda: begin(db), db.reorganize, db.close):
            with pytest.raises(BusyError, match=r"than 0\.02 seconds"):
                pool.run(0, request(), write)
        pool.run(1, request(), tx.__setitem__, "k", "1")
        pool.run(2, request(), end, tx)
        assert dict(db) == {b"k": b"1"}


def test_a_context_has_its_transaction_on_whatever_thread_it_goes_on(db: Database, pool: Pool) -> None:
    one = request()
    tx = pool.run(0, one, begin, db)
    pool.run(1, one, db.__setitem__, "k", "1")
    assert pool.run(2, one, db.get, "k") == b"1"
    assert pool.run(2, request(), db.get, "k") is None
    inner = pool.run(2, one, begin, db)
    pool.run(0, one, db.__setitem__, "inner", "1")
    pool.run(1, request(), end, inner, ZeroDivisionError())
    assert pool.run(2, one, dict, db) == {b"k": b"1"}
    pool.run(1, one, end, tx)
    assert dict(db) == {b"k": b"1"}
    pool.run(0, one, db.__setitem__, "after", "1")
    assert dict(db) == {b"k": b"1", b"after": b"1"}


@pytest.mark.parametrize("timeout", [None, 3600.0])
def test_a_context_that_would_wait_for_itself_is_told_so_at_once_on_whatever_thread(
    db: Database, db_path: str, pool: Pool, timeout: float | None
) -> None:
    one = request()
    with durabledbm.open(db_path, "w", timeout=timeout) as other:
        tx = pool.run(0, one, begin, db)
        for number in range(3):
            for wait in (lambda: other.update(k="1"), lambda: begin(other), other.reorganize):
                with pytest.raises(BusyError, match="its context"):
                    pool.run(number, one, wait)
            with pytest.raises(BusyError):  # also what it calls in another context
                pool.run(number, one, lambda: contextvars.Context().run(other.update, k="1"))
        pool.run(0, one, end, tx)
        other["k"] = "2"
    assert dict(db) == {b"k": b"2"}


def test_threads_without_contexts_of_their_own_are_told_at_once_too(db: Database, db_path: str, pool: Pool) -> None:
    with durabledbm.open(db_path, "w", timeout=None) as other:
        tx = pool.run(0, None, begin, db)
        pool.run(0, None, db.__setitem__, "mine", "1")
        with pytest.raises(BusyError, match="this thread"):
            pool.run(0, None, other.__setitem__, "k", "1")
        waiting = pool.start(1, None, other.__setitem__, "k", "1")
        pool.run(2, None, end, tx)
        waiting.result(PATIENCE)
        assert dict(db) == {b"mine": b"1", b"k": b"1"}
        pool.run(0, None, db.__setitem__, "after", "1")


def test_a_context_that_begins_transactions_and_never_ends_them_itself_keeps_nothing(db: Database, pool: Pool) -> None:
    for _ in range(50):
        pool.run(1, None, end, pool.run(0, None, begin, db))
    left = pool.run(0, None, durabledbm.transaction._active.get)  # type: ignore[attr-defined]
    assert len(left) <= 1


def test_a_copy_that_is_called_in_the_block_is_in_it_and_one_in_another_thread_is_not(db: Database) -> None:
    with db.transaction():
        db["k"] = "1"
        copy = contextvars.copy_context()
        copy.run(db.__setitem__, "copy", "1")
        assert copy.run(dict, db) == {b"k": b"1", b"copy": b"1"}
        assert Crew().start(copy.run, dict, db).result() == {}
        with db.transaction() as inner:
            contextvars.copy_context().run(db.__setitem__, "undone", "1")
            inner.rollback()
    assert dict(db) == {b"k": b"1", b"copy": b"1"}


def test_a_copy_that_is_called_is_in_the_block_on_whatever_thread_its_context_uses_the_handle(
    db: Database, pool: Pool
) -> None:
    def use() -> None:
        db["k"] = "1"
        contextvars.copy_context().run(db.__setitem__, "copy", "1")

    one = request()
    tx = pool.run(0, one, begin, db)
    pool.run(1, one, use)
    later = pool.run(1, one, contextvars.copy_context)
    assert pool.run(1, later, dict, db) == {}, "the context was left before its copy was entered"
    pool.run(2, one, end, tx)
    assert dict(db) == {b"k": b"1", b"copy": b"1"}


def test_a_transaction_keeps_nothing_of_its_context_alive(db: Database) -> None:
    class Request:
        pass

    variable: contextvars.ContextVar[object] = contextvars.ContextVar("request")

    def serve() -> tuple[Transaction, weakref.ref[Request]]:
        current = Request()
        variable.set(current)
        return begin(db), weakref.ref(current)

    gc.disable()
    try:
        tx, reference = request().run(serve)
        assert reference() is None
        tx["k"] = "1"
        end(tx)
        owned = request()
        owned.run(lambda: variable.set(begin(db)))
        del owned  # the transaction with it
        db["after"] = "1"
    finally:
        gc.enable()
    assert dict(db) == {b"k": b"1", b"after": b"1"}


def test_closing_rolls_back_the_transaction_of_the_callers_context(db_path: str, pool: Pool) -> None:
    one = request()
    db = durabledbm.open(db_path, "c")
    tx = pool.run(0, one, begin, db)
    pool.run(1, one, db.__setitem__, "k", "1")
    pool.run(2, one, db.close)
    with pytest.raises(ClosedError):
        end(tx)
    with durabledbm.open(db_path) as db:
        assert dict(db) == {}


# -- event loops


def run(main: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="each task has a context of its own")
def test_tasks_that_share_a_context_share_its_transaction(db: Database) -> None:
    """As a test's fixtures and its body do in some frameworks."""

    async def fixture() -> Transaction:
        return begin(db)

    async def body() -> None:
        db["k"] = "1"

    async def main() -> None:
        loop, shared = asyncio.get_running_loop(), request()
        tx = await loop.create_task(fixture(), context=shared)
        await loop.create_task(body(), context=shared)
        with pytest.raises(BusyError):
            await loop.create_task(body())
        assert dict(db) == {}
        end(tx)

    run(main)
    assert dict(db) == {b"k": b"1"}


def test_a_thread_started_by_a_task_in_a_transaction_waits_its_turn(db: Database) -> None:
    async def main() -> None:
        with db.transaction():
            db["k"] = "task"
            assert await asyncio.to_thread(dict, db) == {}
            waiting = asyncio.create_task(asyncio.to_thread(db.__setitem__, "k", "thread"))
            while len(db._store.writer._leases.queue) < 2:
                await asyncio.sleep(0.001)
        await waiting

    run(main)
    assert dict(db) == {b"k": b"thread"}


def test_a_task_may_hand_its_transaction_to_threads(db: Database) -> None:
    async def main() -> None:
        with db.transaction() as tx:
            await asyncio.to_thread(tx.__setitem__, "thread", "1")
            db["task"] = "1"
        tx = db.transaction()
        tx.__enter__()
        tx["both"] = "1"
        await asyncio.to_thread(end, tx)
        db["after"] = "1"

    run(main)
    assert set(db) == {b"thread", b"task", b"both", b"after"}


@pytest.mark.parametrize("timeout", [None, 3600.0])
def test_nothing_in_the_event_loop_of_a_transaction_waits_for_it(db_path: str, timeout: float | None) -> None:
    """It would stop the loop, and with it the task that it waits for."""
    seen: list[object] = []
    with durabledbm.open(db_path, "c", timeout=timeout) as db, durabledbm.open(db_path, "w", timeout=timeout) as other:

        def write(handle: Database) -> None:
            try:
                handle["k"] = "other"
            except error as exc:
                seen.append(type(exc))

        async def task() -> None:
            write(db)
            write(other)
            with pytest.raises(BusyError):
                db.close()

        async def main() -> None:
            with db.transaction():
                db["k"] = "1"
                await asyncio.create_task(task())
                asyncio.get_running_loop().call_soon(write, other)
                asyncio.get_running_loop().call_soon(write, db, context=contextvars.Context())
                await asyncio.sleep(0.01)

        run(main)
        assert seen == [BusyError] * 4
        assert dict(db) == {b"k": b"1"}


def test_another_event_loop_in_another_thread_waits_its_turn(db: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def first() -> None:
        with db.transaction():
            begun.set()
            await asyncio.to_thread(go_on.wait, PATIENCE)
            db["k"] = "first"

    async def second() -> None:
        db["k"] = "second"

    crew = Crew()
    crew.start(run, first)
    assert begun.wait(PATIENCE)
    crew.start(run, second)
    wait_until(lambda: len(db._store.writer._leases.queue) == 2)
    go_on.set()
    crew.join()
    assert db["k"] == b"second"


def test_the_loop_of_trio_is_an_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `trio.run` has a token; outside of it, asking for that raises."""

    class Token:
        pass

    token: list[Token] = []

    def current_trio_token() -> Token:
        if not token:
            raise RuntimeError
        return token[0]

    trio = types.ModuleType("trio")
    trio.lowlevel = types.SimpleNamespace(current_trio_token=current_trio_token)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trio", trio)
    assert not request().run(CallerContext).is_stuck()
    token.append(Token())
    caller = request().run(CallerContext)
    assert caller.is_stuck()
    assert not caller.is_me()
    token[0] = Token()
    assert not caller.is_stuck()


# -- blocks that end in any order


def load(db: Database, name: str, count: int) -> Iterator[None]:
    with db.transaction() as tx:
        for number in range(count):
            tx[f"{name}{number}"] = "x"
            yield


def test_a_block_that_is_open_around_another_writes_nothing_before_that_has_ended(db: Database) -> None:
    """The inner block may still be undone, and would take it along."""
    with db.transaction() as outer:
        outer["k"] = "1"
        with db.transaction() as inner:
            inner["k"] = "2"
            assert outer["k"] == b"2"
            for write in (lambda: outer.update(a="1"), lambda: outer.pop("k"), outer.clear, outer.popitem):
                with pytest.raises(error, match="block inside it is open"):
                    write()
        outer["after"] = "1"
    assert dict(db) == {b"k": b"2", b"after": b"1"}


def test_generators_that_take_leases_with_their_blocks_lose_nothing(db: Database) -> None:
    first, second = load(db, "a", 2), load(db, "b", 2)
    next(first)
    next(second)
    with pytest.raises(error, match="block inside it is open"):
        next(first)
    with pytest.raises(error, match="a block around it ended first"):
        next(second)
    assert dict(db) == {}, "the first block failed"


def test_what_a_block_wrote_before_the_one_around_it_ended_counts(db: Database) -> None:
    outer, inner = begin(db), begin(db)
    inner["before"] = "1"
    end(outer)
    assert dict(db) == {b"before": b"1"}
    for late in (
        lambda: inner.update(late="1"), lambda: inner.pop("before"), inner.clear, inner.rollback, lambda: list(inner),
        lambda: inner["before"], lambda: db.update(late="1"), lambda: db.pop("before"), db.clear, lambda: begin(db),
    ):  # fmt: skip
        with pytest.raises(ClosedError, match="what was written in it was kept"):
            late()
    assert db["before"] == b"1"
    end(inner)
    db["after"] = "1"
    assert dict(db) == {b"before": b"1", b"after": b"1"}
    assert db._plain


def test_a_block_that_fails_after_the_one_around_it_was_kept_says_that_it_is_not_undone(db: Database) -> None:
    outer, inner, idle = begin(db), begin(db), begin(db)
    end(idle)
    inner["k"] = "1"
    idle = begin(db)
    end(outer)
    end(idle, ZeroDivisionError())  # nothing to undo
    failure = ZeroDivisionError()
    with pytest.raises(error, match="cannot be undone") as caught:
        end(inner, failure)
    assert caught.value.__cause__ is failure
    assert dict(db) == {b"k": b"1"}
    with pytest.raises(ClosedError):
        end(inner)


def test_a_block_ends_with_an_error_if_the_one_around_it_was_undone_before(db: Database) -> None:
    outer, inner, idle = begin(db), begin(db), begin(db)
    end(idle)
    inner["k"] = "1"
    idle = begin(db)
    end(outer, ZeroDivisionError())
    with pytest.raises(ClosedError, match="was undone"):
        inner["late"] = "1"
    with pytest.raises(ClosedError, match="was undone"):
        db["late"] = "1"
    end(idle)
    with pytest.raises(error, match="the writes of the block were undone"):
        end(inner)
    outer, inner = begin(db), begin(db)
    inner["k"] = "1"
    end(outer, ZeroDivisionError())
    end(inner, ZeroDivisionError())  # it wanted that
    assert dict(db) == {}


def test_a_commit_that_fails_is_told_to_the_blocks_that_outlast_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer, inner = begin(db), begin(db)
    inner["k"] = "1"

    def fail(*_: object, **__: object) -> None:
        raise error("no")

    monkeypatch.setattr(type(db._pipeline.committer), "commit", fail)
    with pytest.raises(error, match="no"):
        end(outer)
    monkeypatch.undo()
    with pytest.raises(error, match="the writes of the block were undone"):
        end(inner)
    db["after"] = "1"
    assert dict(db) == {b"after": b"1"}


def test_of_three_blocks_the_middle_one_takes_the_innermost_along(db: Database) -> None:
    for failure in (None, ZeroDivisionError()):
        outer, middle, inner = begin(db), begin(db), begin(db)
        inner["k"] = "1"
        end(middle, failure)
        assert dict(outer) == ({b"k": b"1"} if failure is None else {})
        outer["outer"] = "1"
        with pytest.raises(ClosedError):
            inner["late"] = "1"
        with pytest.raises(ClosedError):
            db["late"] = "1"
        end(inner, failure)
        db["again"] = "1"
        end(outer)
        assert dict(db) == {b"outer": b"1", b"again": b"1"} | ({b"k": b"1"} if failure is None else {})
        db.clear()


def test_a_block_that_fails_too_late_dooms_what_is_still_to_be_committed(db: Database) -> None:
    outer, middle, inner = begin(db), begin(db), begin(db)
    inner["k"] = "1"
    end(middle)
    with pytest.raises(error, match="cannot be undone"):
        end(inner, ZeroDivisionError())
    with pytest.raises(error, match="too late"):
        outer["more"] = "1"
    with pytest.raises(error, match="too late"):
        end(outer)
    assert dict(db) == {}


def test_stacks_of_blocks_may_be_closed_in_the_wrong_order(db: Database) -> None:
    with contextlib.ExitStack() as second:
        with contextlib.ExitStack() as first:
            first.enter_context(db.transaction())["a"] = "1"
            second.enter_context(db.transaction())["b"] = "1"
        assert dict(db) == {b"a": b"1", b"b": b"1"}
    assert dict(db) == {b"a": b"1", b"b": b"1"}


def test_an_async_generator_that_is_left_in_a_block_loses_nothing(db: Database) -> None:
    async def rows(name: str) -> AsyncIterator[str]:
        with db.transaction() as tx:
            for number in range(3):
                tx[f"{name}{number}"] = "x"
                yield name

    async def main() -> None:
        with db.transaction():
            left = rows("a")
            async for _ in left:
                break
        with pytest.raises(ClosedError):
            db["late"] = "1"
        with pytest.raises(error, match="cannot be undone"):
            await left.aclose()  # type: ignore[attr-defined]
        db["after"] = "1"

    run(main)
    assert set(db) == {b"a0", b"after"}


def test_a_block_inside_one_that_is_given_up_is_undone_with_it_and_says_so(db: Database) -> None:
    outer, inner = begin(db), begin(db)
    inner["k"] = "1"
    del outer
    for write in (lambda: inner.update(late="1"), lambda: db.update(late="1")):
        with pytest.raises(ClosedError):
            write()
    with pytest.raises(error, match="the writes of the block were undone"):
        end(inner)
    db["after"] = "1"
    assert dict(db) == {b"after": b"1"}


def test_a_block_that_is_given_up_inside_another_dooms_that(db: Database) -> None:
    outer, inner = begin(db), begin(db)
    inner["k"] = "1"
    innermost = begin(db)
    innermost["k"] = "2"
    del inner
    with pytest.raises(error, match="dropped before its end"):
        outer["k"] = "3"
    with pytest.raises(ClosedError):
        innermost["k"] = "3"
    with pytest.raises(error, match="dropped before its end"):
        end(outer)
    end(innermost, ZeroDivisionError())
    assert dict(db) == {}
    outer, inner = begin(db), begin(db)
    del inner
    outer.rollback()
    end(outer)


def test_a_block_left_open_when_the_handle_is_closed_can_do_nothing_more(db_path: str) -> None:
    db = durabledbm.open(db_path, "c")
    outer, inner = begin(db), begin(db)
    inner["k"] = "1"
    db.close()
    for tx in (inner, outer):
        with pytest.raises(ClosedError):
            tx["late"] = "1"
        with pytest.raises(ClosedError):
            end(tx)


def test_closing_beside_a_block_that_has_outlasted_its_transaction(db_path: str) -> None:
    db = durabledbm.open(db_path, "c")
    outer, inner = begin(db), begin(db)
    inner["k"] = "1"
    end(outer)
    db.close()
    with pytest.raises(ClosedError):
        end(inner)
    with durabledbm.open(db_path) as db:
        assert dict(db) == {b"k": b"1"}


def test_a_spilled_block_that_outlasts_another_counts_or_is_undone(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durabledbm.transaction, "SPILL_SIZE", 2000)  # type: ignore[attr-defined]
    for failure in (None, ZeroDivisionError()):
        outer, middle = begin(db), begin(db)
        middle.update({b"m%d" % number: bytes(100) for number in range(50)})
        inner = begin(db)
        inner.update({b"i%d" % number: bytes(100) for number in range(50)})
        end(middle, failure)
        with pytest.raises(ClosedError):
            inner["late"] = "1"
        outer["outer"] = "1"
        assert len(outer) == (1 if failure else 101)
        end(inner, failure)
        end(outer)
        assert len(db) == (1 if failure else 101)
        assert db.check() == []
        db.clear()


# -- any number of blocks, in any order, on any thread


class Block:
    """What is known of one block."""

    def __init__(self, tx: Transaction, around: list[Block], before: dict[bytes, bytes]) -> None:
        self.tx = tx
        self.outermost = around[0] if around else self
        self.before = before
        self.changed_before = [(block, block.changed) for block in around]
        self.fate = "open"
        self.changed = False


class Blocks:
    """Blocks of one context, and a dict that knows what each leaves."""

    def __init__(self, db: Database, pool: Pool, draw: random.Random) -> None:
        self.db, self.pool, self.draw = db, pool, draw
        self.context = request()
        self.committed: dict[bytes, bytes] = {}
        self.content: dict[bytes, bytes] = {}
        """What the open blocks see."""
        self.open: list[Block] = []
        """Outermost first."""
        self.doomed = False
        self.entered: list[Block] = []
        """Those that were not left, open or not."""

    def anywhere(self, call: Callable[..., Any], *args: Any) -> Any:
        """In a context of its own, by any thread."""
        return self.pool.run(self.draw.randrange(3), request(), call, *args)

    def inside(self, call: Callable[..., Any], *args: Any) -> Any:
        return self.pool.run(self.draw.randrange(3), self.context, call, *args)

    def may_write(self, block: Block | None) -> bool:
        """Whether `block` may; None: the handle, in the context."""
        block = block or (self.entered[-1] if self.entered else None)
        return block is None or (block is (self.open[-1] if self.open else None) and not self.doomed)

    def begin(self) -> None:
        if self.entered and self.entered[-1].fate != "open":
            with pytest.raises(ClosedError):
                self.inside(begin, self.db)
            return
        block = Block(self.inside(begin, self.db), self.open, dict(self.content))
        self.open.append(block)
        self.entered.append(block)

    def write(self) -> None:
        block = self.draw.choice([None, *self.entered, *self.open[-1:]])
        run, target = (self.inside, self.db) if block is None else (self.anywhere, block.tx)
        if not self.may_write(block):
            with pytest.raises(error):
                run(target.__setitem__, b"refused", b"")
            return
        key, value = b"%d" % self.draw.randrange(8), b"%d" % self.draw.randrange(100)
        run(target.__setitem__, key, value)
        self.content[key] = value
        for around in self.open:
            around.changed = True
        if not self.open:
            self.committed = dict(self.content)

    def leave(self) -> None:
        block = self.draw.choice(self.entered)
        failure = self.draw.choice([None, ZeroDivisionError()])
        self.entered.remove(block)
        if block.fate == "open":
            self.leave_open(block, failure)
        elif block.changed and (block.fate == "kept") is not (failure is None):
            with pytest.raises(error):
                self.anywhere(end, block.tx, failure)
            if block.fate == "kept" and self.open and block.outermost is self.open[0]:
                self.doomed = True
        else:
            self.anywhere(end, block.tx, failure)

    def leave_open(self, block: Block, failure: BaseException | None) -> None:
        lost = self.doomed and block is block.outermost
        if lost and failure is None:
            with pytest.raises(error, match="too late"):
                self.anywhere(end, block.tx)
        else:
            self.anywhere(end, block.tx, failure)
        at = self.open.index(block)
        for inner in self.open[at + 1 :]:
            inner.fate = "undone" if failure or lost else "kept"
        del self.open[at:]
        if failure or lost:
            self.content = dict(block.before)
            for around, changed in block.changed_before:
                around.changed = changed
        if not self.open:
            self.committed, self.doomed = dict(self.content), False

    def step(self) -> None:
        self.draw.choice([self.begin, self.write, self.write, *([self.leave] if self.entered else [])])()
        if not self.doomed:
            assert self.inside(lambda: dict(self.db.items())) == self.content
        assert dict(self.db.items()) == self.committed

    def finish(self) -> None:
        while self.entered:
            self.leave()
        assert dict(self.db.items()) == self.committed
        assert self.db._plain is isinstance(self.db._pipeline, GroupCommit)


@pytest.mark.parametrize("spilled", [False, True])
def test_blocks_in_any_order_on_any_thread_lose_nothing_in_silence(
    db_path: str, pool: Pool, monkeypatch: pytest.MonkeyPatch, *, spilled: bool
) -> None:
    if spilled:
        monkeypatch.setattr(durabledbm.transaction, "SPILL_SIZE", 600)  # type: ignore[attr-defined]
    for seed in SEEDS:
        draw = random.Random(seed)
        durability = draw.choice(["process", "manual"])
        with durabledbm.open(db_path, "n", durability=durability, timeout=None) as db:
            blocks = Blocks(db, pool, draw)
            try:
                for _ in range(40):
                    blocks.step()
                blocks.finish()
            except BaseException as exc:
                raise AssertionError(f"seed {seed}") from exc
            assert db.check() == []
