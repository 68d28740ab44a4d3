"""Objects that are listed for as long as they live; handles, when their process ends or forks."""

from __future__ import annotations

import gc
import multiprocessing.process
import multiprocessing.util
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from durabledbm._process import handles as process_handles
from durabledbm._process.handles import Registry


class Thing:
    """Something that can be referred to weakly."""


def test_what_lives_is_listed_and_what_does_not_is_not() -> None:
    registry: Registry[Thing] = Registry()
    first, second = Thing(), Thing()
    registry.add(first)
    registry.add(second)
    assert registry.all() == [first, second]
    del first
    assert registry.all() == [second]
    registry.discard(second)
    assert registry.all() == []
    registry.discard(second)


def test_a_thing_that_was_discarded_and_listed_again_is_listed_once() -> None:
    registry: Registry[Thing] = Registry()
    thing = Thing()
    for _ in range(3):
        registry.add(thing)
        registry.discard(thing)
    registry.add(thing)
    registry.add(thing)
    assert registry.all() == [thing]


def test_nothing_is_left_of_what_is_gone_and_nothing_is_held() -> None:
    gc.disable()
    try:
        registry: Registry[Thing] = Registry()
        for _ in range(100):
            registry.add(Thing())
        assert registry._references == set()
    finally:
        gc.enable()


def test_removing_what_is_gone_runs_no_python_code_that_a_signal_could_interrupt() -> None:
    registry: Registry[Thing] = Registry()
    thing = Thing()
    registry.add(thing)
    called: list[str] = []
    sys.setprofile(lambda frame, event, _: called.append(event))
    del thing
    sys.setprofile(None)
    assert "call" not in called
    assert registry.all() == []


def test_a_thing_may_outlive_its_list() -> None:
    registry: Registry[Thing] = Registry()
    thing = Thing()
    registry.add(thing)
    del registry
    gc.collect()
    del thing


# -- handles


class Told:
    """A handle that notes what it is told, and may fail at it."""

    def __init__(self, notes: list[str], name: str, failure: BaseException | None = None) -> None:
        self._notes, self._name, self._failure = notes, name, failure

    def _note(self, what: str) -> None:
        self._notes.append(f"{self._name} {what}")
        if self._failure is not None:
            raise self._failure

    def _finish(self) -> None:
        self._note("ends")

    def _before_fork(self) -> None:
        self._note("forks")

    def _after_fork(self) -> None:
        self._notes.append(f"{self._name} is a child's")


class Interrupted(Told):
    """One that a signal interrupts the first time."""

    interrupts = 1

    def _finish(self) -> None:
        if self.interrupts:
            self.interrupts = 0
            raise SystemExit(3)
        super()._finish()


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the handles of a test are told, and no others."""
    monkeypatch.setattr(process_handles, "_handles", Registry())
    monkeypatch.setattr("durabledbm._engine.flusher._threads_end", False)  # set by the end of the interpreter
    return []


def test_every_open_handle_is_told_of_the_end_whatever_happens_to_the_others(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "first", "second", "third"
    handles = [Told(notes, name, OSError("full") if name == "second" else None) for name in names]
    closed, dropped = Told(notes, "closed"), Told(notes, "dropped")
    for handle in (*handles, closed, dropped):
        process_handles.began(handle)
    process_handles.ended(closed)
    del dropped, handle
    told: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    process_handles._at_exit()
    assert notes == ["first ends", "second ends", "third ends"]
    assert [type(unraisable.exc_value) for unraisable in told] == [OSError], "a loss is told"


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_a_second_signal_at_the_end_loses_nothing(notes: list[str], name: str) -> None:
    """The handle that it interrupts is finished all the same, and so are the others; then it is raised."""
    handles = [Interrupted(notes, each) if each == name else Told(notes, each) for each in ("first", "second", "third")]
    for handle in handles:
        process_handles.began(handle)
    with pytest.raises(SystemExit):
        process_handles._at_exit()
    assert notes == ["first ends", "second ends", "third ends"]


def test_a_handle_that_is_interrupted_for_ever_does_not_keep_the_process(notes: list[str]) -> None:
    handles = [Told(notes, "first", KeyboardInterrupt()), Told(notes, "second")]
    for handle in handles:
        process_handles.began(handle)
    with pytest.raises(KeyboardInterrupt):
        process_handles._at_exit()
    assert notes[-2:] == ["first ends", "second ends"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_every_open_handle_is_told_of_a_fork_before_and_after_it(notes: list[str]) -> None:
    handles = [Told(notes, name, OSError("full") if name == "first" else None) for name in ("first", "second")]
    for handle in handles:
        process_handles.began(handle)
    process_handles._before_fork()
    assert notes == ["first forks", "second forks"]
    del notes[:]
    process_handles._after_fork()
    assert notes == ["first is a child's", "second is a child's"]


def test_a_failure_that_is_not_the_disks_is_not_hidden(notes: list[str]) -> None:
    handle = Told(notes, "only", ZeroDivisionError())
    process_handles.began(handle)
    for step in (process_handles._at_exit, process_handles._before_fork):
        with pytest.raises(ZeroDivisionError):
            step()


@pytest.fixture
def farewells(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Any]]]:
    """What multiprocessing has been asked since the test began to call at the end of this process."""
    monkeypatch.setattr(process_handles, "_promised", set())
    registry: dict[Any, Any] = multiprocessing.util._finalizer_registry  # type: ignore[attr-defined]
    before = set(registry)

    def made() -> list[Any]:
        return [registry[key] for key in registry if key not in before]

    yield made
    for finalizer in made():
        finalizer.cancel()


def test_a_child_of_multiprocessing_says_farewell_once(
    notes: list[str], farewells: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a process ends without the interpreter's own farewell."""
    handles = [Told(notes, "here")]
    process_handles.began(handles[0])
    assert farewells() == [], "the process that began it all has the interpreter's"
    monkeypatch.setattr(multiprocessing.process, "_parent_process", object())
    for name in ("first", "second"):
        handles.append(Told(notes, name))
        process_handles.began(handles[-1])
    (farewell,) = farewells()
    farewell()
    assert notes == ["here ends", "first ends", "second ends"]
    process_handles._after_fork()
    process_handles._finish_with("multiprocessing")
    assert len(farewells()) == 1, "what its parent had asked for is not done in a child's child"
