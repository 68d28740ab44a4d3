"""What a few operations cost, here and now, beside the standard library; docs/performance.md is thorough."""

from __future__ import annotations

import importlib
import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ... import open as open_database
from .stage import speed_of

__all__ = ["Contender", "contenders", "measure"]

_COUNT = 20_000
_VALUE = 100
_LONGEST = 1.0
"""Seconds after which the loading of a slow store is stopped."""


class Contender(NamedTuple):
    """A store that is measured."""

    name: str
    create: Callable[[str], Any]
    """Opens a new file."""
    open: Callable[[str], Any]
    """Opens an existing one to read."""
    has_update: bool


def contenders(backends: list[str]) -> list[Contender]:
    """durabledbm, and the modules named."""
    ours = open_database
    found = [
        Contender("durabledbm", partial(ours, flag="n"), ours, True),
        Contender("manual mode", partial(ours, flag="n", durability="manual"), ours, True),
    ]
    for name in backends:
        theirs: Any = importlib.import_module(name).open
        found.append(Contender(name, partial(_opened, theirs, "n"), partial(_opened, theirs, "r"), False))
    return found


def _opened(module_open: Any, flag: str, path: str) -> Any:
    return module_open(path, flag)


def measure(store: Contender, directory: str, budget: float) -> list[str]:
    """The store's column: put, load, look-up, scan, open and close. `budget` is in seconds, for each."""
    rng = random.Random(1)
    path = os.path.join(directory, f"speed-{store.name.replace(' ', '-')}")
    entries = {b"key:%08d" % number: rng.randbytes(_VALUE) for number in rng.sample(range(10**8), _COUNT)}
    keys = list(entries)
    with store.create(path) as db:
        put = _per_call(lambda number: db.__setitem__(b"put:%08d" % (number % 5000), b"x" * _VALUE), budget)
        loaded, load = _load(db, store, entries)
        chosen = [keys[rng.randrange(loaded)] for _ in range(5000)]
        get = _per_call(lambda number: db[chosen[number % 5000]], budget)
        start = time.perf_counter()
        read = sum(1 for key in list(db.keys()) if db[key]) if not store.has_update else sum(1 for _ in db.range())
        scan = (time.perf_counter() - start) / max(read, 1)

    def visit(number: int) -> None:
        with store.open(path) as again:
            again[chosen[number % 5000]]

    return [speed_of(seconds) for seconds in (put, load, get, scan, _per_call(visit, budget))]


def _load(db: Any, store: Contender, entries: dict[bytes, bytes]) -> tuple[int, float]:
    """How many entries were loaded, and the time for each."""
    start = time.perf_counter()
    if store.has_update:
        db.update(entries)
        if hasattr(db, "sync"):
            db.sync()
        return len(entries), (time.perf_counter() - start) / len(entries)
    done = 0
    for key, value in entries.items():
        db[key] = value
        done += 1
        if done % 100 == 0 and time.perf_counter() - start > _LONGEST:
            break
    return done, (time.perf_counter() - start) / done


def _per_call(call: Callable[[int], object], budget: float) -> float:
    """Seconds that a call takes: the best of five rounds that take the budget together."""
    number, best = 0, float("inf")
    end = time.perf_counter() + budget
    batch = 1
    while True:
        start = time.perf_counter()
        for at in range(number, number + batch):
            call(at)
        took = time.perf_counter() - start
        number += batch
        if took < budget / 10:
            batch *= 2
        best = min(best, took / batch) if took >= budget / 10 else best
        if time.perf_counter() > end:
            return best if best < float("inf") else took / batch
