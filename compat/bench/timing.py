"""What a workload is handed: one store in one process, with bounded timing, equal warming, checks and
memory figures.

Rules of timing: only the calls into the store are timed, in chunks long enough that the clock costs
nothing; keys and values are made between chunks; what a store deferred (a final sync or commit) is timed
with the writes that caused it."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from .data import Dataset, Keys, Scale, pairs, value_of
from .stores import READ, Store

_CHUNK_SECONDS = 0.02
_CHUNK_MAX = 1 << 14
_WALL_FACTOR = 8  # making keys may take this many times as long as the timed part before it is cut short

Result = dict[str, Any]


class Run:
    """One execution of one workload on one store."""

    def __init__(self, store: Store, dataset: Dataset | None, scale: Scale, seed: str) -> None:
        self.store = store
        self.dataset = dataset
        self.scale = scale
        self.rng = random.Random(seed)
        self.keys = Keys(dataset.count) if dataset is not None and dataset.kind == "bytes" else Keys(0)
        self._base = rss()

    # -- opening

    @contextmanager
    def opened(self, mode: str) -> Iterator[Store]:
        """The store, opened over the data set, its files in the page cache; memory is counted from here."""
        store = self.store
        read_files(store.directory)
        self.start_memory()
        store.open(mode)
        try:
            if not store.persistent and self.dataset is not None:
                store.fill(pairs(self.dataset))  # type: ignore[attr-defined]
            yield store
        finally:
            store.close()

    # -- memory

    def start_memory(self) -> None:
        """Forget the peak so far, and take what is resident now as the harness's own."""
        gc.collect()
        gc.freeze()
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            pass
        self._base = rss()

    def memory(self) -> Result:
        """Peak resident bytes, and how many of them came since `start_memory`."""
        peak = max(peak_rss(), self._base)
        return {"rss_peak": peak, "rss_store": peak - self._base}

    # -- checking

    def check_reads(self, one: Callable[[bytes], bytes], samples: int = 50) -> None:
        """Some entries of the data set are what they should be: a fast wrong answer is not a result."""
        assert self.dataset is not None
        for _ in range(samples):
            index = self.rng.randrange(self.dataset.count)
            if one(self.keys[index]) != value_of(index, self.dataset.value_size):
                raise AssertionError(f"{self.store.name}: entry {index} has a wrong value")

    def check_writes(self, written: dict[bytes, bytes]) -> None:
        """What was written last is there after closing and opening again."""
        store = self.store
        if not store.persistent or "limit" in store.traits:
            return
        store.open(READ)
        try:
            for key, value in written.items():
                if reader(store)[1](key) != value:
                    raise AssertionError(f"{store.name}: a value written before close() is not there")
        finally:
            store.close()

    # -- timing

    def rate(
        self,
        step: Callable[[list[Any]], Any],
        make: Callable[[int], list[Any]],
        *,
        seconds: float | None = None,
        finish: Callable[[], Any] | None = None,
        first: int = 64,
    ) -> Result:
        """Time `step` over lists from `make` for `seconds`, then `finish`; return operations and seconds."""
        limit = self.scale.seconds if seconds is None else seconds
        give_up = perf_counter() + limit * _WALL_FACTOR
        size, done, elapsed = first, 0, 0.0
        gc.collect()
        while elapsed < limit and perf_counter() < give_up:
            items = make(size)
            start = perf_counter()
            step(items)
            took = perf_counter() - start
            elapsed += took
            done += len(items)
            if took < _CHUNK_SECONDS and size < _CHUNK_MAX:
                size *= 2
        if finish is not None:
            start = perf_counter()
            finish()
            elapsed += perf_counter() - start
        return {"ops": done, "seconds": elapsed}

    def warm(self, step: Callable[[list[Any]], Any], make: Callable[[int], list[Any]]) -> None:
        """Run `step` untimed until three times as many operations as entries, or twice the timed part, have passed."""
        assert self.dataset is not None
        done, deadline = 0, perf_counter() + 2 * self.scale.seconds
        size = 64
        while done < 3 * self.dataset.count and perf_counter() < deadline:
            items = make(size)
            start = perf_counter()
            step(items)
            done += len(items)
            if perf_counter() - start < _CHUNK_SECONDS and size < _CHUNK_MAX:
                size *= 2


# The loops. One function per idiom, so that each is specialised by the interpreter for the store at hand.


def reader(store: Store, view: Any = None, get: Callable[[bytes], bytes] | None = None) -> tuple[Any, Any]:
    """(read a list of keys, read one key) in the store's idiom, or through a snapshot's `view` or `get`."""
    mapping = view if view is not None or get is not None else store.face
    one = get if get is not None else store.get
    if mapping is None:

        def many_calls(keys: list[bytes]) -> None:
            for key in keys:
                one(key)

        return many_calls, one

    def many(keys: list[bytes]) -> None:
        for key in keys:
            mapping[key]

    return many, mapping.__getitem__


def writer(store: Store) -> Callable[[list[tuple[bytes, bytes]]], None]:
    """Write a list of pairs one by one in the store's idiom."""
    if store.direct:
        mapping = store.face

        def assign(items: list[tuple[bytes, bytes]]) -> None:
            for key, value in items:
                mapping[key] = value

        return assign
    put = store.put

    def call(items: list[tuple[bytes, bytes]]) -> None:
        for key, value in items:
            put(key, value)

    return call


def mixer(store: Store) -> Callable[[list[tuple[bytes, bytes | None]]], None]:
    """Read where the value is None, else write, one by one in the store's idiom."""
    mapping, get, put = store.face, store.get, store.put
    if mapping is None:

        def calls(items: list[tuple[bytes, bytes | None]]) -> None:
            for key, value in items:
                if value is None:
                    get(key)
                else:
                    put(key, value)

        return calls
    if not store.direct:

        def half(items: list[tuple[bytes, bytes | None]]) -> None:
            for key, value in items:
                if value is None:
                    mapping[key]
                else:
                    put(key, value)

        return half

    def subscripts(items: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in items:
            if value is None:
                mapping[key]
            else:
                mapping[key] = value

    return subscripts


# The machine's side.


def read_files(directory: str) -> None:
    """Bring every file below a directory into the page cache."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(parent, name), "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


def evict_files(directory: str) -> None:
    """Put every file below a directory out of the page cache."""
    for parent, _, names in os.walk(directory):
        for name in names:
            fd = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fdatasync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def disk_read() -> int:
    """Bytes that this process has had read from the disk."""
    return _proc_field("/proc/self/io", "read_bytes", 1)


def rss() -> int:
    """Bytes resident now, mapped files included."""
    return _proc_field("/proc/self/status", "VmRSS", 1024)


def peak_rss() -> int:
    """The most bytes that were resident since `Run.start_memory`."""
    return _proc_field("/proc/self/status", "VmHWM", 1024)


def _proc_field(path: str, name: str, unit: int) -> int:
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * unit
    except OSError:
        pass
    return 0
