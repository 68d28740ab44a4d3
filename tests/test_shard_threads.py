"""Calls made at the same time: with threads, without, interrupted."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crew import Crew, wait_until
from systems import only_posix

from durabledbm.sharded import threads as shard_threads
from durabledbm.sharded.threads import Call, Cancelled, Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("test-parallel")
    yield threads
    threads.close()


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "test-parallel"]


def noting(notes: list[Any], what: object) -> Callable[[Call], None]:
    return lambda _: notes.append((what, threading.get_ident()))


def test_calls_are_made_at_the_same_time_and_some_of_them_here(threads: Threads) -> None:
    meeting = threading.Barrier(4)
    notes: list[Any] = []

    def meet(what: object) -> Callable[[Call], None]:
        def call(_: Call) -> None:
            meeting.wait(60)
            notes.append((what, threading.get_ident()))

        return call

    threads.make([meet("here")], map(meet, range(3)))
    assert {what for what, _ in notes} == {"here", 0, 1, 2}
    assert len({thread for _, thread in notes}) == 4
    assert dict(notes)["here"] == threading.get_ident()


def test_threads_are_used_again_and_end_when_they_are_not_needed_any_more(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[Any] = []
    monkeypatch.setattr(shard_threads, "_IDLE", 0.05)
    for _ in range(5):
        threads.make((), [lambda _: time.sleep(0.005)] * 3)
        wait_until(lambda: len(threads._idle) == len(ours()))
        assert len(ours()) <= 2
    wait_until(lambda: not ours())
    threads.make((), [noting(notes, 1)] * 3)
    assert len(notes) == 3
    threads.close()
    wait_until(lambda: not ours())


def test_threads_that_are_dropped_end_and_keep_nothing_alive() -> None:
    class Thing:
        pass

    gc.disable()
    try:
        threads, thing = Threads("test-parallel"), Thing()
        gone = weakref.ref(thing)
        threads.make((), [lambda _, thing=thing: time.sleep(0.01)] * 3)  # type: ignore[misc]
        idle = threads._idle
        wait_until(lambda: len(idle) == len(ours()))
        del thing
        assert gone() is None
        del threads
        wait_until(lambda: not ours())
    finally:
        gc.enable()


def test_the_first_failure_is_raised_when_all_have_ended(threads: Threads) -> None:
    notes: list[Any] = []

    def fail(_: Call) -> None:
        raise ZeroDivisionError

    gc.disable()
    try:
        for here, anywhere in (([fail], []), ([], [fail]), ([noting(notes, 0)], [fail, fail])):
            with pytest.raises(ZeroDivisionError):
                threads.make(here, [*anywhere, noting(notes, 1), noting(notes, 2)])
        assert sorted(what for what, _ in notes) == [0, 1, 1, 1, 2, 2, 2]
        failures = [thing for thing in gc.get_objects() if type(thing) is ZeroDivisionError]
        assert not failures, "it is kept alive by its own traceback"
    finally:
        gc.enable()


@pytest.mark.parametrize("why", ["limit", "finalizing", "busy"])
def test_what_no_thread_makes_the_caller_makes(threads: Threads, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """No thread may be started, or the threads that there are do not come."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(shard_threads.sys, "is_finalizing", lambda: why == "finalizing")
    monkeypatch.setattr(threading.Thread, "start", (lambda _: None) if why == "busy" else refuse)
    notes: list[Any] = []
    threads.make([noting(notes, "here")], (noting(notes, number) for number in range(3)))
    assert notes == [(what, threading.get_ident()) for what in ("here", 0, 1, 2)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own(threads: Threads) -> None:
    threads.make((), [lambda _: time.sleep(0.01)] * 3)
    wait_until(lambda: len(threads._idle) > 0)
    pid = os.fork()
    if not pid:
        try:
            meeting = threading.Barrier(3)
            threads.make((), [lambda _: bool(meeting.wait(20))] * 3)  # type: ignore[list-item,func-returns-value]
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def sleep() -> None:
    """Until an interrupt. One that comes just before a system call is raised after it, so this makes many."""
    while True:
        time.sleep(0.005)


def interrupt_when(condition: Callable[[], bool]) -> None:
    def wait() -> None:
        wait_until(condition)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def _interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@only_posix("there no signal interrupts a thread that waits for a lock")
@pytest.mark.usefixtures("_interrupts")
def test_what_has_not_begun_when_the_caller_is_interrupted_does_not_begin_any_more(threads: Threads) -> None:
    waits, go_on, cancelled = threading.Event(), threading.Event(), threading.Event()

    def call(call: Call) -> None:
        if threading.current_thread() is threading.main_thread():
            sleep()
        waits.set()
        go_on.wait(60)
        try:
            call.begin()
        except Cancelled:
            cancelled.set()
            raise

    interrupt_when(waits.is_set)
    with pytest.raises(KeyboardInterrupt):
        threads.make((), [call] * 2)
    assert not cancelled.is_set()
    go_on.set()
    assert cancelled.wait(60)
    notes: list[Any] = []
    threads.make((), [noting(notes, 1)] * 4)
    assert len(notes) == 4


@only_posix("there no signal interrupts a thread that waits for a lock")
@pytest.mark.usefixtures("_interrupts")
def test_what_has_begun_when_the_caller_is_interrupted_is_waited_for(threads: Threads) -> None:
    begun, ended = threading.Event(), threading.Event()

    def call(call: Call) -> None:
        if threading.current_thread() is threading.main_thread():
            sleep()
        call.begin()
        begun.set()
        time.sleep(0.05)
        ended.set()

    interrupt_when(begun.is_set)
    with pytest.raises(KeyboardInterrupt):
        threads.make((), [call] * 2)
    assert ended.is_set()


def test_many_callers_share_the_threads(threads: Threads) -> None:
    def work() -> int:
        count = [0]
        lock = threading.Lock()

        def call(_: Call) -> None:
            with lock:
                count[0] += 1

        for _ in range(100):
            threads.make([call], [call] * 3)
        return count[0]

    crew = Crew()
    for _ in range(4):
        crew.start(work)
    assert crew.join() == [400] * 4


AT_EXIT = """
atexit.register(make)
"""
AT_FINALIZATION = """
class Last:
    def __del__(self, make=make):
        make()
last = Last()
"""


@pytest.mark.parametrize("when", [AT_EXIT, AT_FINALIZATION], ids=["exit", "finalization"])
def test_calls_are_made_when_the_interpreter_ends(when: str) -> None:
    program = f"""
import atexit, os
from durabledbm.sharded.threads import Threads

def make(threads=Threads("shard"), made=[], write=os.write):
    threads.make((), [lambda _: made.append(1)] * 4)
    write(1, b"%d" % len(made))
{when}"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("4", "")
