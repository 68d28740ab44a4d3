"""Many writers at once: threads of one process, and processes."""

from __future__ import annotations

import json
import os
import random
import threading
import traceback
from collections.abc import Callable
from time import perf_counter
from typing import Any

from .data import values
from .stores import DURABLE, Store
from .timing import Result, Run

_ITEMS = 4000  # pairs made for each writer; it starts over if it gets through them


def _items(run: Run, seed: str) -> list[tuple[bytes, bytes]]:
    assert run.dataset is not None
    rng = random.Random(seed)
    return list(zip(run.keys.mixed(rng, _ITEMS), values(rng, _ITEMS, run.dataset.value_size), strict=True))


def _put_until(put: Callable[[bytes, bytes], Any], items: list[tuple[bytes, bytes]], deadline: float) -> int:
    """Put until the deadline and count what returned before it, so that no wait for a lock adds a tail."""
    done = 0
    while True:
        for key, value in items:
            put(key, value)
            if perf_counter() >= deadline:
                return done
            done += 1


def puts_of_threads(run: Run, threads: int) -> Result:
    """Durable puts by `threads` threads of this process, each as fast as it can."""
    lists = [_items(run, f"{run.rng.random()} {n}") for n in range(threads)]
    counts = [0] * threads
    failures: list[BaseException] = []
    barrier = threading.Barrier(threads + 1)
    deadline = 0.0

    def work(number: int, store: Store) -> None:
        try:
            put, done = store.thread_put()
            try:
                barrier.wait()
                barrier.wait()
                counts[number] = _put_until(put, lists[number], deadline)
            finally:
                done()
        except BaseException as exc:
            failures.append(exc)
            barrier.abort()

    with run.opened(DURABLE) as store:
        workers = [threading.Thread(target=work, args=(n, store)) for n in range(threads)]
        for worker in workers:
            worker.start()
        try:
            barrier.wait()
            deadline = perf_counter() + run.scale.seconds
            barrier.wait()
        except threading.BrokenBarrierError:
            pass  # a thread failed; `failures` says how
        for worker in workers:
            worker.join()
    if failures:
        raise failures[0]
    run.check_writes(_newest(lists, counts))
    return _rate(run, counts)


def _rate(run: Run, counts: list[int]) -> Result:
    return {"ops": sum(counts), "seconds": run.scale.seconds, "value": sum(counts) / run.scale.seconds}


def _newest(lists: list[list[tuple[bytes, bytes]]], counts: list[int]) -> dict[bytes, bytes]:
    """The last put of each writer, as far as no other writer can have overwritten it: only new keys."""
    written: dict[bytes, bytes] = {}
    for items, count in zip(lists, counts, strict=True):
        new = [item for index, item in enumerate(items[: min(count, _ITEMS)]) if not index & 1]
        written.update(new[-1:])
    return written


def puts_of_processes(run: Run, processes: int) -> Result:
    """Durable puts by `processes` processes, each with a handle of its own."""
    lists = [_items(run, f"{run.rng.random()} {n}") for n in range(processes)]
    run.start_memory()
    children = [_Child(run, items) for items in lists]
    try:
        for child in children:
            child.expect("ready")
        begin = perf_counter()
        for child in children:
            child.go(begin + run.scale.seconds)
        answers = [child.expect("done") for child in children]
    finally:
        for child in children:
            child.end()
    counts = [int(answer["count"]) for answer in answers]
    run.check_writes(_newest(lists, counts))
    return {**_rate(run, counts), "rss_store": sum(answer["rss_store"] for answer in answers)}


class _Child:
    """A forked writer, and the two pipes by which it is told the deadline and tells its count."""

    def __init__(self, run: Run, items: list[tuple[bytes, bytes]]) -> None:
        down_read, self._down = os.pipe()
        self._up, up_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._down)
            os.close(self._up)
            _child(run, items, down_read, up_write)
        os.close(down_read)
        os.close(up_write)
        self._lines = os.fdopen(self._up)

    def expect(self, word: str) -> dict[str, Any]:
        line = self._lines.readline()
        answer = json.loads(line) if line else {"word": "died"}
        if answer["word"] != word:
            raise RuntimeError(f"a writer process failed: {answer}")
        return answer  # type: ignore[no-any-return]

    def go(self, deadline: float) -> None:
        os.write(self._down, f"{deadline!r}\n".encode())

    def end(self) -> None:
        os.close(self._down)
        self._lines.close()
        os.waitpid(self.pid, 0)


def _child(run: Run, items: list[tuple[bytes, bytes]], down: int, up: int) -> None:
    """The writer process: open, say so, be told the deadline, put until then, say how many. Never returns."""

    def say(**answer: Any) -> None:
        os.write(up, json.dumps(answer).encode() + b"\n")

    store = run.store
    try:
        run.start_memory()
        store.open(DURABLE)
        say(word="ready")
        # perf_counter is the system's monotonic clock, the same in every process of the machine.
        deadline = os.read(down, 100)
        if deadline:
            put, done = store.thread_put()
            count = _put_until(put, items, float(deadline))
            done()
            store.close()
            say(word="done", count=count, rss_store=run.memory()["rss_store"])
    except BaseException:
        say(word="failed", why=traceback.format_exc()[-500:])
    finally:
        os._exit(0)
