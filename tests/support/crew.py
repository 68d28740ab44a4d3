"""Threads for tests: what they raise is raised in the test, and one that hangs fails the test instead of
hanging it.

    crew = Crew()
    task = crew.start(function, argument)
    task.done                       # whether it has ended
    task.result()                   # waits for it: what it returned or raised
    crew.join()                     # waits for all

`Gate` holds back operations of a simulated volume, so that a test decides what happens in the middle of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from simdisk import Operation, SimVolume

PATIENCE = 60.0
"""Seconds after which a thread counts as hanging: far more than it needs on a busy machine."""


class Task:
    """A function that runs in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._function: Callable[..., Any] | None = function
        self._args = args
        self._result: Any = None
        self._failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        assert self._function is not None
        try:
            self._result = self._function(*self._args)
        except BaseException as exc:
            self._failure = exc
        finally:
            self._function, self._args = None, ()

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()

    def failure(self) -> BaseException | None:
        """What it raised, if it did, after its end."""
        self.thread.join(PATIENCE)
        assert self.done, "the thread hangs"
        return self._failure

    def result(self) -> Any:
        failure, self._failure = self.failure(), None
        if failure is not None:
            raise failure
        return self._result


class Crew:
    """Some tasks."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def start(self, function: Callable[..., Any], *args: Any) -> Task:
        self.tasks.append(Task(function, *args))
        return self.tasks[-1]

    def join(self) -> list[Any]:
        """Wait for all; what they returned, in the order of their start."""
        tasks, self.tasks = self.tasks, []
        for task in tasks:
            task.failure()
        return [task.result() for task in tasks]


class Gate:
    """Stops whoever performs an operation of `kind` on the volume, while it is shut."""

    def __init__(self, volume: SimVolume, kind: str) -> None:
        self._kind = kind
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()
        volume.before = self._pass

    def _pass(self, operation: Operation) -> None:
        if operation.kind == self._kind and not self._open.is_set():
            self.reached.set()
            assert self._open.wait(PATIENCE), "nobody opens the gate"

    def shut(self) -> None:
        self._open.clear()
        self.reached.clear()

    def open(self) -> None:
        self._open.set()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread or process is about to do."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.001)
