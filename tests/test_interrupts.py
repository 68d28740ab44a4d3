"""Interrupted anywhere: the handle is usable, its locks are free, and nothing acknowledged is lost.

An operation is run once for each *moment* at which the interpreter may raise something that nobody asked for: when a
function begins, after a call, and when a loop goes on: there it looks for signals. So between two of them nothing can
be interrupted. At once, while the exception is still being handled and its traceback
keeps every frame alive, another handle must be able to write, and then the interrupted one.

The long search does this for every moment, the default run for some of each operation. At the end real signals
interrupt a real process that writes.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import errno
import io
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import IO, Any

import pytest
from crashes import is_torn_slot
from model import MODES
from simdisk import Operation, SimDisk, SimVolume
from systems import WINDOWS, alarm, only_posix

import durabledbm
from durabledbm import streams
from durabledbm._engine import large_value
from durabledbm.database import Database, open_on

pytestmark = pytest.mark.no_cover  # these tests trace themselves


@pytest.fixture(autouse=True)
def _interrupts_of_finalizers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python prints them, and has nobody to raise them to. Whoever keeps them keeps what they met, too."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large values are short, so that one in pieces takes no longer."""
    monkeypatch.setattr(large_value, "_RUN", 8192)
    monkeypatch.setattr(streams, "_HEAD", 1)


PATH = "/db"
PACKAGE = os.path.dirname(durabledbm.__file__)
TRACED = (PACKAGE, contextlib.__file__)
UNRAISABLE = ("__del__", "_statement_left", "_dropped", "tell")
"""What is raised in these, and below, the interpreter prints and forgets, or only forgets: `io.BufferedReader` asks for
the position when it is made, and takes any exception for a file that has none."""

CALLBACKS = ("_given_up", "_abandoned")
"""The same is true of these. They are traced all the same."""

Content = dict[bytes, bytes]

_LOOKS = ("RESUME", "CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "JUMP_ABSOLUTE")
"""With these instructions the interpreter looks for signals (see its `ceval.c`). So it does not between a `with` and
its block, nor between the block and what ends it, if both are written in C, as they are for locks."""


@cache
def handlers(code: CodeType) -> dict[int, int]:
    """Where an exception at an instruction goes, by its offset."""
    result = {}
    for start, end, target, *_ in getattr(dis.Bytecode(code), "exception_entries", ()):
        result.update(dict.fromkeys(range(start, end, 2), target))
    return result


class Interrupter:
    """Calls `strike`, which may raise, at the `at`-th moment.

    From Python 3.13 on, a function is traced by instructions only from its second call on. There `rehearse` is called
    first, which does the same on something else.
    """

    def __init__(self, strike: Callable[[], None], at: int, rehearse: Callable[[], object] | None = None) -> None:
        self.strike, self.at, self.moments = strike, at, 0
        self.rehearse = rehearse
        self.where = ""
        self.has_caller = False
        """Something was raised where it cannot get lost."""
        self._before: dict[FrameType, int] = {}

    def __enter__(self) -> Interrupter:
        self._old = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # else Python 3.12 does not expect it of other frames
        sys.settrace(self._call)
        if self.rehearse is not None and sys.version_info >= (3, 13):
            at, self.at = self.at, 0
            self.rehearse()
            self.at, self.moments = at, 0
            self._before.clear()
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._old)
        self._before.clear()

    def _call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if not code.co_filename.startswith(TRACED) or code.co_name in UNRAISABLE or self._below(frame, UNRAISABLE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._before[frame] = 0
        return self._opcode

    def _below(self, frame: FrameType, names: tuple[str, ...]) -> bool:
        back = frame.f_back
        while back is not None and back.f_code.co_name not in names:
            back = back.f_back
        return back is not None

    def _opcode(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        code = frame.f_code
        if event == "opcode":
            before, now = self._before[frame], frame.f_lasti
            self._before[frame] = now
            looks = not before or dis.opname[code.co_code[before]].startswith(_LOOKS)
            # What an instruction raises belongs to it, although here it can only be raised at the next one.
            looks = looks and frame.f_lineno is not None  # a generator that is only being made
            if looks and handlers(code).get(before) == handlers(code).get(now):
                self.moments += 1
                if self.moments == self.at:
                    sys.settrace(None)
                    self.has_caller = code.co_name not in CALLBACKS and not self._below(frame, CALLBACKS)
                    self.where = f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"
                    self.strike()
        elif event == "return":
            del self._before[frame]
        return self._opcode


def raise_interrupt() -> None:
    raise KeyboardInterrupt


# -- what no moment shows


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _guarded(tree: ast.AST) -> Iterator[range]:
    """The lines of each block whose end cleans something up, whatever ends it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            cleans_up = not all(ast.unparse(item.context_expr).startswith("suppress(") for item in node.items)
        elif isinstance(node, ast.Try):
            caught = [handler.type for handler in node.handlers]
            cleans_up = bool(node.finalbody) or any(
                kind is None or ast.unparse(kind) == "BaseException" for kind in caught
            )
        else:
            continue
        if cleans_up:
            yield range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1)


def _escapes(path: Path) -> Iterator[str]:
    """Where a loop in such a block jumps back outside of it."""
    source = path.read_text("utf-8")
    blocks = list(_guarded(ast.parse(source)))
    for code in _codes(compile(source, str(path), "exec")) if blocks else ():
        covered = handlers(code)
        if not covered or code.co_name == "<genexpr>":
            continue
        instructions = list(dis.get_instructions(code))
        lines = {each.offset: each.positions.lineno for each in instructions if each.positions is not None}
        for jump in instructions:
            if jump.opname == "JUMP_BACKWARD" and jump.offset not in covered:
                ends = lines.get(jump.offset), lines.get(jump.argval)
                if any(ends[0] in block and ends[1] in block for block in blocks):
                    yield f"{path.relative_to(PACKAGE)}, line {ends[0]}"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="older ones have no such jumps")
def test_no_loop_jumps_back_outside_of_the_block_that_it_is_in() -> None:
    """Some jumps to the start of a loop belong to no `try` (see `threads`). An interrupt there skips the cleanup.

    The command line ends after an interrupt, and other formats are only read.
    """
    left_out = "cli", "_foreign"
    paths = [path for path in Path(PACKAGE).rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in left_out]
    assert not [place for path in paths for place in _escapes(path)]


# -- what is interrupted

OLD = {b"%03d" % n: b"old" * 20 for n in range(0, 100, 2)}


def put(db: Any) -> None:
    db[b"003"] = b"new" * 30


def put_large(db: Any) -> None:
    db[b"003"] = b"new" * 3000


STREAMED = b"streamed" * 1250


def put_stream(db: Any) -> None:
    if isinstance(db, dict):
        db[b"003"] = STREAMED
    else:
        db.put_stream(b"003", io.BytesIO(STREAMED))


def stream_in_a_block(db: Any) -> None:
    if isinstance(db, dict):
        db[b"new"] = b"1"
        return
    with db.transaction() as tx:
        tx[b"new"] = b"1"
        with contextlib.suppress(ValueError):
            tx.put_stream(b"003", io.BytesIO(STREAMED), size=10**6)


def open_value(db: Any) -> None:
    if not isinstance(db, dict):
        with db.open_value(b"008") as file:
            assert file.read() == OLD[b"008"]


def delete(db: Any) -> None:
    del db[b"004"]


def pop(db: Any) -> None:
    assert db.pop(b"004") == OLD[b"004"]


def update(db: Any) -> None:
    db.update({b"%03d" % n: b"x" * 90 for n in range(0, 100, 3)})


def clear(db: Any) -> None:
    db.clear()


def transaction(db: Any) -> None:
    with db.transaction() if hasattr(db, "transaction") else contextlib.nullcontext():
        db[b"new"] = b"1"
        del db[b"006"]


def nested(db: Any) -> None:
    if isinstance(db, dict):
        db[b"outer"] = b"1"
        db.pop(b"006")
        return
    with db.transaction() as tx:
        tx[b"outer"] = b"1"
        with contextlib.suppress(ZeroDivisionError), db.transaction() as inner:
            inner[b"inner"] = b"2"
            raise ZeroDivisionError
        with db.transaction():
            del db[b"006"]


def sync(db: Any) -> None:
    if not isinstance(db, dict):
        db.sync()


def reorganize(db: Any) -> None:
    if not isinstance(db, dict):
        db.reorganize()


def get(db: Any) -> None:
    assert db[b"008"] == OLD[b"008"]
    assert db.get(b"none") is None
    assert b"010" in db


def iterate(db: Any) -> None:
    assert next(iter(db.items()))[0] == b"000"
    assert len(list(db)) == len(db)


def snapshot(db: Any) -> None:
    if not isinstance(db, dict):
        with db.snapshot() as seen:
            assert seen[b"008"] == OLD[b"008"]


WRITES = (put, put_large, put_stream, stream_in_a_block, delete, pop, update, clear, transaction, nested)
OPERATIONS = (*WRITES, sync, reorganize, get, open_value, iterate, snapshot)


class Case:
    """One operation, interrupted once, with what was acknowledged before it."""

    def __init__(self, mode: str, operation: Callable[[Any], None]) -> None:
        self.mode, self.operation = mode, operation
        self.volume = SimVolume({PATH: image()})
        self.db: Database = open_on(self.volume, PATH, "w", durability=mode, interval=3600, timeout=0.2)
        self.other = open_on(self.volume, PATH, "w", timeout=0)
        self.before = dict(OLD)
        for key in (b"one", b"two"):
            self.db[key] = self.before[key] = b"acknowledged"
        self.after = dict(self.before)
        operation(self.after)
        self.possible = [self.before, self.after]

    def run(self, error: type[BaseException], at: int) -> int:
        """Interrupt it at the `at`-th moment. How many there were till then."""
        def strike() -> None:
            raise error

        twin = Case(self.mode, self.operation) if sys.version_info >= (3, 13) else self
        raised = False
        with Interrupter(strike, at, lambda: self.operation(twin.db)) as interrupter:
            try:
                self.operation(self.db)
            except error:
                sys.settrace(None)
                raised = True
                try:
                    self.look()
                except Exception as exc:
                    raise AssertionError(f"interrupted at {interrupter.where}: {type(exc).__name__}: {exc}") from exc
        if twin is not self:
            twin.db.close()
            twin.other.close()
        assert raised or not interrupter.has_caller, f"what was raised at {interrupter.where} got lost"
        try:
            self.end()
        except Exception as exc:
            raise AssertionError(f"interrupted at {interrupter.where}, later: {type(exc).__name__}: {exc}") from exc
        return interrupter.moments

    def look(self) -> None:
        """While the exception is handled."""
        db = self.db
        found = dict(db.items())
        assert found in self.possible
        assert len(db) == len(found)
        if self.mode in ("full", "process"):  # in the others the handle may keep the file for itself
            self.write(self.other, b"other")
        self.write(db, b"again")

    def write(self, db: Database, key: bytes) -> None:
        db[key] = b"1"
        self.possible = [{**content, key: b"1"} for content in self.possible]

    def end(self) -> None:
        content = dict(self.db.items())
        assert content in self.possible
        with self.db.transaction():
            self.write(self.db, b"last")
        self.db.sync()
        assert dict(self.db.items()) in self.possible
        self.write(self.other, b"other again")
        assert dict(self.db.items()) in self.possible
        for state in self.volume.crash_states(limit=4):
            with open_on(state, PATH, "r") as survivor:
                assert dict(survivor.items()) in self.possible
                assert [problem for problem in survivor.check() if not is_torn_slot(problem)] == []
        self.db.close()
        assert not self.db._store.pins.readers
        assert self.db._store.closed
        self.other.close()
        assert not any(self.volume._named(PATH).locks.values()), "locks are left"


_image: list[bytes] = []


def image() -> bytes:
    """A database with `OLD` in it."""
    if not _image:
        volume = SimVolume()
        with open_on(volume, PATH, "c") as db:
            db.update(OLD)
        _image.append(volume.content(PATH))
    return _image[0]


class WaitsForEver(BaseException):
    """Somebody waits for what never comes."""


@pytest.fixture(autouse=True)
def _no_waiting_for_ever() -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise WaitsForEver

    if WINDOWS:
        yield
        return
    before = signal.signal(signal.SIGALRM, too_long)
    alarm(120)
    yield
    alarm(0)
    signal.signal(signal.SIGALRM, before)


traced = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="since Python 3.13 a function is traced from its second call on (Interrupter)"
)
"""For tests that rehearse nothing."""


def interrupt(mode: str, operation: Callable[[Any], None], error: type[BaseException], first: int, stride: int) -> int:
    """Interrupt the operation at every `stride`-th moment. How many moments there are."""
    count, failures = Case(mode, operation).run(error, 0), []
    for at in range(first, count + 1, stride):
        try:
            Case(mode, operation).run(error, at)
        except AssertionError as exc:
            failures.append(f"moment {at}: {exc}")
    assert not failures, f"{len(failures)} of {count} moments:\n" + "\n".join(failures[:40])
    return count


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_interrupt_leaves_a_usable_handle_and_free_locks(operation: Callable[[Any], None], mode: str) -> None:
    stride = 19 if mode == "full" else 53 if mode == "manual" else 79
    count = interrupt(mode, operation, KeyboardInterrupt, 1 + len(operation.__name__), stride)
    assert count


@pytest.mark.parametrize("operation", [put, transaction, update], ids=lambda operation: operation.__name__)
def test_memory_that_runs_out_leaves_a_usable_handle_and_free_locks(operation: Callable[[Any], None]) -> None:
    assert interrupt("full", operation, MemoryError, 3, 29) > 100


class TooSlow(TimeoutError):
    """What a handler may raise that has set itself a limit."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "too slow")


class Refused(durabledbm.BusyError):
    """What a handler may let pass that has tried to write."""

    def __init__(self) -> None:
        super().__init__("refused")


class Malformed(ValueError):
    """What a handler may raise that was given something wrong."""


FAMILIAR = (TooSlow, Refused, Malformed, RuntimeError)
"""Exceptions of handlers that look like those of a disk, of another writer, of damage and of a lock."""


@pytest.mark.parametrize("error", FAMILIAR)
@pytest.mark.parametrize("mode", ["full", "interval"])
@pytest.mark.parametrize("operation", [put, transaction, sync, get], ids=lambda operation: operation.__name__)
def test_what_a_handler_raises_is_taken_for_nothing_else(
    operation: Callable[[Any], None], mode: str, error: type[Exception]
) -> None:
    interrupt(mode, operation, error, 1 + FAMILIAR.index(error), 149 if operation in (put, transaction) else 83)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, *FAMILIAR])
def test_every_interrupt_leaves_a_usable_handle_and_free_locks(
    operation: Callable[[Any], None], mode: str, error: type[BaseException]
) -> None:
    alarm(3000)
    interrupt(mode, operation, error, 1, 1)


# -- interrupts of finalizers


class InFinalizers(Interrupter):
    """Strikes in what the interpreter calls when something is freed."""

    def _call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        code, names = frame.f_code, (*UNRAISABLE, *CALLBACKS)
        if not code.co_filename.startswith(TRACED) or not (code.co_name in names or self._below(frame, names)):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._before[frame] = 0
        return self._opcode


def drop_transaction(db: Database) -> None:
    block = db.transaction()
    block.__enter__()
    block[b"lost"] = b"1"


def drop_nested(db: Database) -> None:
    with contextlib.suppress(durabledbm.error), db.transaction():
        drop_transaction(db)


def fail(db: Database) -> None:
    with db.transaction():
        db[b"lost"] = b"1"
        raise ZeroDivisionError


def drop_snapshot(db: Database) -> None:
    assert db.snapshot()[b"008"] == OLD[b"008"]


def drop_iterator(db: Database) -> None:
    next(iter(db.items()))
    with db.transaction():
        next(iter(db.items()))


DROPS = (drop_transaction, drop_nested, fail, drop_snapshot, drop_iterator)


def interrupt_finalizers(mode: str, drop: Callable[[Database], None], first: int, stride: int) -> None:
    """Nobody may see the interrupt but `sys.unraisablehook`: what was freed is let go of all the same."""
    at = first
    while True:
        case, twin = Case(mode, lambda db: None), Case(mode, lambda db: None)
        with InFinalizers(raise_interrupt, at, lambda twin=twin: forgiving(drop, twin.db)) as interrupter:  # type: ignore[misc]
            forgiving(drop, case.db)
        twin.db.close()
        twin.other.close()
        forgiving(Database.stats, case.db)  # raises what a finalizer could not
        case.look()
        case.end()
        if interrupter.moments < at:
            break
        at += stride


def forgiving(operation: Callable[[Any], None], db: Database) -> None:
    with contextlib.suppress(KeyboardInterrupt, ZeroDivisionError):
        operation(db)


@pytest.mark.parametrize("mode", ["full", "interval"])
@pytest.mark.parametrize("drop", DROPS, ids=lambda drop: drop.__name__)
def test_an_interrupted_finalizer_lets_go_of_what_was_dropped(drop: Callable[[Database], None], mode: str) -> None:
    interrupt_finalizers(mode, drop, 1 + DROPS.index(drop), 11)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("drop", DROPS, ids=lambda drop: drop.__name__)
def test_every_interrupted_finalizer_lets_go_of_what_was_dropped(drop: Callable[[Database], None], mode: str) -> None:
    interrupt_finalizers(mode, drop, 1, 1)


# -- threads that wait for somebody who is interrupted


def grouped(kind: str, at: int) -> int:
    """Two threads join while one is at an operation of this kind, which is then interrupted. Its moments till then."""
    volume = SimVolume({PATH: image()})
    with open_on(volume, PATH, "w", timeout=None) as db:
        db[b"warm"] = b"1"
        done: list[bytes] = []

        def follow(key: bytes) -> None:
            try:
                db[key] = b"1"
            except durabledbm.error:  # the commit was under way when it was interrupted
                done.append(key)
            else:
                done.append(key)
                assert db[key] == b"1"

        def gone_on() -> None:
            volume.before = None  # else closing could begin what was not begun before
            for thread in followers:
                if thread.ident is not None:
                    thread.join(20)
                    assert not thread.is_alive(), interrupter.where
            assert not followers[0].ident or len(done) == 2, interrupter.where

        followers = [threading.Thread(target=follow, args=(b"%d" % n,), daemon=True) for n in range(2)]
        group, queue = db._pipeline, db._store.writer._leases.queue
        group._crowd = 2  # as if several threads had written lately: a put that is alone makes no batch

        def join(operation: Operation) -> None:
            if operation.kind != kind or followers[0].ident is not None:
                return
            for thread in followers:
                thread.start()
            while len(group._open.requests if group._open else ()) < (3 if kind == "lock" else 2) or not queue:
                if kind != "lock" and len(queue) == 2 and not group._open:
                    break
                time.sleep(0.0002)

        volume.before = join
        with Interrupter(raise_interrupt, at) as interrupter:
            try:
                put(db)
            except KeyboardInterrupt:
                sys.settrace(None)
                gone_on()  # while the traceback keeps everything alive that the interrupted thread had
        gone_on()
    return interrupter.moments


@traced
@pytest.mark.parametrize("kind", ["lock", "sync"])
def test_threads_go_on_when_the_one_that_they_wait_for_is_interrupted(kind: str) -> None:
    for at in range(2, grouped(kind, 0) + 1, 7):
        grouped(kind, at)


# -- a with statement, and who else has the transaction


def test_a_block_whose_end_is_interrupted_is_over_whoever_still_has_the_transaction() -> None:
    """Not even its first line was executed, and the variable is still there."""
    volume = SimVolume({PATH: image()})
    with open_on(volume, PATH, "w", timeout=0) as db, open_on(volume, PATH, "w", timeout=0) as other:
        tracing = 0

        def interrupt_the_end(frame: FrameType, event: str, argument: object) -> None:
            nonlocal tracing
            if frame.f_code.co_name == "_leave":
                tracing += 1
                sys.settrace(None)
                raise KeyboardInterrupt

        try:
            with db.transaction() as tx:
                tx[b"lost"] = b"1"
                sys.settrace(interrupt_the_end)
        except KeyboardInterrupt:
            other[b"other"] = b"1"
            db[b"kept"] = b"1"
            with pytest.raises(durabledbm.error):
                tx[b"late"] = b"1"
        assert tracing == 1
        assert b"lost" not in db
        assert db[b"kept"] == other[b"kept"] == b"1"


# -- real signals

def test_an_interrupt_of_a_finalizer_waits_for_the_thread_that_it_was_meant_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would be a failure of the flusher's thread, or of another thread that happens to come first."""
    with open_on(SimVolume(), PATH, "c") as db:
        db[b"a"] = b"1"
        snapshot = db.snapshot()
        with monkeypatch.context() as patch:

            def interrupted(self: SimDisk, offset: int) -> None:
                raise KeyboardInterrupt

            patch.setattr(SimDisk, "unlock", interrupted)
            del snapshot
        thread = threading.Thread(target=lambda: db.update(b=b"2"))
        thread.start()
        thread.join()
        assert db[b"b"] == b"2"
        with pytest.raises(KeyboardInterrupt):
            db[b"a"] = b"3"
        db[b"a"] = b"4"
        assert dict(db) == {b"a": b"4", b"b": b"2"}


WRITER = """
import random, signal, sys
import durabledbm
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what runs in its background
path, mode, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
model, changed, interrupts = {}, {}, 0

def step(db):
    global changed
    kind, key = rng.randrange(8), b"%d" % rng.randrange(50)
    changed = dict(model)
    if kind < 4:
        changed[key] = b"x" * rng.randrange(400)
        db[key] = changed[key]
    elif kind == 4:
        changed.pop(key, None)
        db.pop(key, None)
    elif kind == 5:
        new = {b"%d" % rng.randrange(50): b"y" * rng.randrange(3000) for _ in range(9)}
        changed.update(new)
        db.update(new)
    elif kind == 6:
        changed[key] = changed[b"two"] = b"z"
        with db.transaction() as tx:
            tx[key] = b"z"
            db[b"two"] = b"z"
    else:
        assert dict(db.items()) == model
        db.sync()

with durabledbm.open(path, "c", durability=mode, interval=0.01, timeout=5) as db, \
        durabledbm.open(path, "w", timeout=5) as other:
    while interrupts < count:
        try:
            if not interrupts:
                db[b"begun"] = model[b"begun"] = b"1"
            print("go", flush=True)
            while True:
                step(db)
                model = changed
        except KeyboardInterrupt:
            interrupts += 1
            found = dict(db.items())
            assert found in (model, changed), (model, changed, found)
            model = found
            if mode in ("full", "process"):
                other[b"other"] = model[b"other"] = b"%d" % interrupts
        assert dict(db.items()) == model
    db.sync()
with durabledbm.open(path) as db:
    assert dict(db.items()) == model
    assert db.check() == []
print("done", interrupts)
"""


def interrupted(path: Path, mode: str, count: int, seed: int) -> None:
    """Send SIGINT to a process that writes, again whenever it goes on."""
    rng = random.Random(seed)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), mode, str(count), str(seed)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.path.dirname(PACKAGE)},
    )  # fmt: skip
    assert process.stdout is not None
    said: queue.Queue[bytes] = queue.Queue()

    def listen(lines: IO[bytes]) -> None:
        for line in lines:
            said.put(line)
        said.put(b"")

    reader = threading.Thread(target=listen, args=(process.stdout,), daemon=True)
    reader.start()
    line = said.get(timeout=60)
    while line == b"go\n":
        time.sleep(rng.random() * 0.004)
        process.send_signal(signal.SIGINT)
        try:
            line = said.get(timeout=2)
        except queue.Empty:
            continue  # it came while a destructor ran, and was printed and forgotten
    reader.join()
    process.stdout.close()
    assert process.stderr is not None
    told = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0, told
    assert line == b"done %d\n" % count, told


@only_posix("Windows has no signals between processes")
@pytest.mark.parametrize("mode", MODES)
def test_a_process_that_is_interrupted_again_and_again_goes_on_writing(mode: str, tmp_path: Path) -> None:
    interrupted(tmp_path / "db", mode, 40, 1)


@only_posix("Windows has no signals between processes")
@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_thousands_of_interrupts(mode: str, tmp_path: Path) -> None:
    alarm(3000)
    for seed in range(10):
        interrupted(tmp_path / f"db{seed}", mode, 300, seed)
