"""Called again on its own stack: a handle never waits for the thread that it has interrupted.

A signal handler, a finalizer, a weak reference's callback and a trace function all run between two instructions of
whatever a thread is doing. So an operation is run once for each moment at which the interpreter may run one, and the
handle is used there: reads answer, writes work or raise `BusyError`, `close()` returns and takes effect when the
interrupted operation has unwound. At the end real signals and real finalizers do the same in processes of their own.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model import MODES
from simdisk import SimVolume
from systems import only_posix
from test_interrupts import (
    OPERATIONS,
    WRITES,
    Case,
    Interrupter,
    clear,
    iterate,
    nested,
    traced,
)

import durabledbm
from durabledbm.database import open_on

pytestmark = pytest.mark.no_cover  # these tests trace themselves

HANDLER = b"written by the handler"
PATH = "/db"


def use(case: Case) -> bool:
    """What a handler may do with the handle; whether its write was acknowledged."""
    db = case.db
    found = dict(db.items())
    assert {key: value for key, value in found.items() if key != HANDLER} in intermediate(case)
    assert db.get(b"008") in (case.before.get(b"008"), case.after.get(b"008"))
    assert len(db) in map(len, intermediate(case))  # a commit that is being published may be seen by one of them only
    with db.snapshot() as seen:
        seen.get(b"008")
        next(iter(seen), None)
    with contextlib.suppress(durabledbm.BusyError):
        db.sync()
    with contextlib.suppress(durabledbm.BusyError), db.transaction():
        db[b"in a transaction"] = b"1"
        raise_undo()
    if case.operation is iterate:
        return False  # which compares what it has read with what is there
    try:
        db[HANDLER] = b"1"
    except durabledbm.BusyError:
        return False
    return True


class Undo(durabledbm.BusyError):
    """Rolls a transaction back."""


def raise_undo() -> None:
    raise Undo


def intermediate(case: Case) -> list[dict[bytes, bytes]]:
    """What may be seen amid the operation: also what a transaction has done so far."""
    states = [case.before, case.after]
    if case.operation.__name__ == "transaction":
        states.append({**case.before, b"new": b"1"})
    if case.operation is nested:
        outer = {**case.before, b"outer": b"1"}
        states += [outer, {**outer, b"inner": b"2"}]
    return states


def moments(mode: str, operation: Callable[[Any], None]) -> int:
    case = Case(mode, operation)
    with Interrupter(lambda: None, 0) as interrupter:
        operation(case.db)
    case.db.close()
    case.other.close()
    return interrupter.moments


@traced
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_handler_may_read_and_write_at_any_moment(operation: Callable[[Any], None], mode: str) -> None:
    for at in range(1 + len(operation.__name__), moments(mode, operation) + 1, 97 if mode == "full" else 211):
        case = Case(mode, operation)
        case.other.close()
        written = []
        with Interrupter(lambda case=case, written=written: written.append(use(case)), at) as interrupter:
            operation(case.db)
        case.db.sync()
        found = dict(case.db.items())
        kept = found.pop(HANDLER, None) == b"1"
        assert found == case.after, interrupter.where
        assert kept or not written[0] or operation in (clear, nested), interrupter.where
        assert len(case.db) == len(found) + kept, interrupter.where
        assert case.db.check() == []
        case.db.close()
        assert not any(case.volume._named(PATH).locks.values()), interrupter.where


@traced
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_handler_may_close_at_any_moment(operation: Callable[[Any], None], mode: str) -> None:
    """What was acknowledged is there, and the file is released as soon as the operation has unwound."""
    for leave in (None, SystemExit):
        for at in range(2 + len(operation.__name__), moments(mode, operation) + 1, 173 if mode == "full" else 307):
            case = Case(mode, operation)
            case.other.close()
            returned = False

            def strike(case: Case = case, leave: type[BaseException] | None = leave) -> None:
                case.db.close()
                if leave is not None:
                    raise leave

            with Interrupter(strike, at) as interrupter:
                try:
                    operation(case.db)
                    returned = True
                except (durabledbm.ClosedError, SystemExit):
                    pass
            assert case.db.closed, interrupter.where
            assert not any(case.volume._named(PATH).locks.values()), interrupter.where
            with open_on(case.volume, PATH) as again:
                found = dict(again.items())
                assert again.check() == []
            allowed = [case.after] if returned and operation in WRITES else [case.before, case.after]
            assert found in allowed, interrupter.where


@pytest.mark.parametrize("mode", MODES)
def test_a_handler_may_close_and_exit_when_a_transaction_just_has_its_lease(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_on(SimVolume(), PATH, "c", durability=mode, timeout=None) as db:
        begin = db._pipeline.begin

        def interrupted(lease: Any) -> None:
            begin(lease)
            db.close()
            raise SystemExit

        monkeypatch.setattr(db._pipeline, "begin", interrupted)
        with pytest.raises(SystemExit), db.transaction():
            pass
        assert db.closed


def test_a_write_that_interrupts_the_beginning_of_a_block_inside_is_refused_as_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_on(SimVolume(), PATH, "c", timeout=None) as db, db.transaction():
        inner = db.transaction()
        take_hold = type(inner)._take_hold

        def interrupted(self: Any) -> None:
            take_hold(self)
            with pytest.raises(durabledbm.BusyError):
                db[HANDLER] = b"1"

        monkeypatch.setattr(type(inner), "_take_hold", interrupted)
        with inner:
            db[b"k"] = b"v"
        assert dict(db) == {b"k": b"v"}


# -- in processes of their own


def run(tmp_path: Path, code: str, *, timeout: float = 60) -> str:
    """Run a program in an empty directory; what it printed, after a good end."""
    head = "import gc, os, signal, sys, threading, time, weakref\nimport durabledbm\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@only_posix("Windows has no timers that send signals")
def test_a_second_handle_of_the_file_does_not_wait_for_its_own_thread_either(tmp_path: Path) -> None:
    """Amid a write of one handle, and while the first has something pending that only its thread can flush."""
    out = run(
        tmp_path,
        """
        a = durabledbm.open("x", "c", durability="manual"); b = durabledbm.open("x", "w", timeout=None)
        a["k"] = "pending"
        try: b["k"] = "other"
        except durabledbm.BusyError: print("busy")
        a.sync(); b["k"] = "other"; assert a["k"] == b"other"
        def handler(*_):
            try: c["handler"] = "1"
            except durabledbm.BusyError: refused.append(1)
        c = durabledbm.open("x", "w", timeout=None); refused = []
        signal.signal(signal.SIGALRM, handler); signal.setitimer(signal.ITIMER_REAL, .003, .003)
        for i in range(400): b[str(i % 7)] = "x" * 50
        signal.setitimer(signal.ITIMER_REAL, 0); print("end")
        """,
    )
    assert out.split() == ["busy", "end"]


@pytest.mark.parametrize("mode", MODES)
def test_finalizers_that_the_collector_runs_amid_an_operation_wait_for_nothing(tmp_path: Path, mode: str) -> None:
    out = run(
        tmp_path,
        f"""
        db = durabledbm.open("x", "c", durability={mode!r}, timeout=None, interval=0.01); db["k"] = "v"; ran = []
        class Node:
            def __init__(self): self.me = self
            def __del__(self):
                assert db["k"] == b"v"; len(db); next(iter(db.items()))
                try: db["from a finalizer"] = "1"
                except durabledbm.BusyError: pass
                ran.append(1)
        gc.set_threshold(40, 2, 2)
        for i in range(300): Node(); db[str(i % 50)] = "w" * 40; db.get("none"); len(db)
        del i
        while len(ran) < 300: gc.collect(); time.sleep(0.01)  # the flusher's thread may be collecting, too
        db.close(); print("end")
        """,
    )
    assert out == "end\n"


@pytest.mark.parametrize("mode", ["process", "interval"])
def test_a_handle_in_a_cycle_is_finalized_wherever_the_collector_runs(tmp_path: Path, mode: str) -> None:
    """Also in its own flusher's thread, amid a flush: nothing is lost, and the file is free at once."""
    run(
        tmp_path,
        f"""
        class Holder: pass
        gc.set_threshold(15, 1, 1)
        for i in range(60):
            h = Holder(); h.me = h; h.db = durabledbm.open("x", "c", durability={mode!r}, interval=0.004, timeout=10)
            h.db[str(i)] = "v"; time.sleep(0.001 * (i % 6)); h.db["last"] = str(i)
            gone = weakref.ref(h); del h
        gc.collect(); time.sleep(0.05)
        with durabledbm.open("x", "w", timeout=5) as db:
            assert db["last"] == b"59" and len(db) == 61; db["later"] = "1"
        """,
    )


@pytest.mark.parametrize("mode", ["process", "interval"])
@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "t = threading.Thread(target=db.get, args=['k']); t.start()"])
def test_a_program_that_does_not_close_its_handle_ends_and_loses_nothing(
    tmp_path: Path, mode: str, ending: str
) -> None:
    started = time.monotonic()
    run(
        tmp_path,
        f"""
        import atexit
        atexit.register(lambda: late())
        db = durabledbm.open("x", "c", durability={mode!r}, interval=3600)
        db["k"] = "v"
        never = durabledbm.open("y", "c", durability={mode!r}, interval=3600)
        def late():
            db["late"] = "1"; never["first"] = "1"
            durabledbm.open("z", "c", durability={mode!r})["opened late"] = "1"
        class Last:
            def __init__(self): self.db = db
            def __del__(self): self.db["in a finalizer"] = "1"
        sys.last = Last()
        {ending}
        """,
    )
    assert time.monotonic() - started < 50
    with durabledbm.open(str(tmp_path / "x")) as db:
        assert db["k"] == b"v"
        assert db["late"] == b"1"
    with durabledbm.open(str(tmp_path / "y")) as db:
        assert db["first"] == b"1"
    with durabledbm.open(str(tmp_path / "z")) as db:
        assert db["opened late"] == b"1"


@only_posix("Windows removes no file that is open")
@pytest.mark.parametrize("mode", MODES)
def test_a_flush_that_fails_at_the_end_is_told_if_something_is_lost(tmp_path: Path, mode: str) -> None:
    run(
        tmp_path,
        f"""
        told = []
        sys.unraisablehook = lambda unraisable: told.append(type(unraisable.exc_value))
        x, y = (durabledbm.open(name, "c", durability={mode!r}, interval=3600) for name in "xy")
        x["a"] = "1"; x.sync(); y["a"] = "1"
        os.unlink("x"); os.unlink("y")
        durabledbm._process.handles._at_exit()
        assert told == [durabledbm.error] * ({mode!r} != "full"), told
        os._exit(0)
        """,
    )


def test_closing_that_was_put_off_and_fails_is_told(tmp_path: Path) -> None:
    """By the hook that Python has for that, whichever one is in place."""
    done = subprocess.run(
        [
            sys.executable, "-c",
            "from durabledbm._engine.threads import Inside\n"
            "def fail(): raise OSError('the disk is full')\n"
            "inside = Inside('/db', 1); inside.postpone(fail); inside.call(int); print('went on')",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "went on\n"
    assert "/db: closing was put off, and failed" in done.stderr
    assert done.stderr.endswith("OSError: the disk is full\n")


@pytest.mark.parametrize("mode", ["process", "interval"])
def test_a_write_does_not_fail_for_want_of_a_thread(tmp_path: Path, mode: str) -> None:
    run(
        tmp_path,
        f"""
        def refuse(self): raise RuntimeError("can't start new thread")
        start, threading.Thread.start = threading.Thread.start, refuse
        db = durabledbm.open("x", "c", durability={mode!r}, interval=3600)
        db["k"] = "v"; synced = db.stats().syncs; db["l"] = "w"
        assert db.stats().syncs > synced, "flushed at once"
        threading.Thread.start = start
        os._exit(0)
        """,
    )
    with durabledbm.open(str(tmp_path / "x")) as db:
        assert dict(db) == {b"k": b"v", b"l": b"w"}
