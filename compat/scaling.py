"""The measurements behind docs/scaling.md: what one file does, what shards add, what a backup costs, and 11 GB.

    python -m compat.scaling writers [--seconds 3]       durable puts by processes and threads, for numbers of shards
    python -m compat.scaling device [--seconds 3]        what the disk does without us: 4 KiB writes with fdatasync
    python -m compat.scaling backup [--entries 1000000]  a writer's rate alone and during a backup of 1 GB
    python -m compat.scaling large [--entries 10000000]  all kinds of work on 11 GB, with memory limited to 1 GB
    python -m compat.scaling amplification               pages written per put, by the size of the database

Each prints one JSON object per line. `--directory` says where the files go; they are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import durabledbm
from compat.bench.machine import describe
from durabledbm.sharded import open_sharded

GIB = 2**30


def show(**figures: Any) -> None:
    """Print one line of results."""
    print(json.dumps(figures), flush=True)


# -- several writers ---------------------------------------------------------------------------------------------


def _write(path: str, shards: int, number: int, seconds: float, *, barrier: Any, results: Any) -> None:
    rng = random.Random(number)
    keys = [b"%016x" % rng.getrandbits(64) for _ in range(20_000)]
    value = bytes(100)
    with open_sharded(path, "w", shards=shards) as db:
        barrier.wait()
        count, end = 0, time.perf_counter() + seconds
        start = time.perf_counter()
        while time.perf_counter() < end:
            db[keys[count % len(keys)]] = value
            count += 1
        results.put(count / (time.perf_counter() - start))


def writers(directory: str, seconds: float, rounds: int) -> None:
    """Durable puts of 100 bytes per second, all writers together."""
    context = multiprocessing.get_context("spawn")
    for kind in ("processes", "threads"):
        for count in (1, 2, 4):
            for shards in (1, 2, 4, 8):
                rates = []
                for _ in range(rounds):
                    path = os.path.join(directory, "sharded")
                    with open_sharded(path, "n", shards=shards) as db:
                        db.update({b"%016x" % random.getrandbits(64): bytes(100) for _ in range(50_000)})
                        if kind == "threads":
                            rates.append(puts_by_threads(db, count, seconds))
                    if kind == "processes":
                        results, barrier = context.Queue(), context.Barrier(count)
                        together = {"barrier": barrier, "results": results}
                        workers = [
                            context.Process(target=_write, args=(path, shards, n, seconds), kwargs=together)
                            for n in range(count)
                        ]
                        for worker in workers:
                            worker.start()
                        rates.append(sum(results.get(timeout=60 + 10 * seconds) for _ in workers))
                        for worker in workers:
                            worker.join()
                    shutil.rmtree(path)
                show(what="writers", kind=kind, writers=count, shards=shards, puts_per_s=_median(rates), all=rates)


def puts_by_threads(db: Any, count: int, seconds: float) -> float:
    """Durable puts of 16 + 100 bytes per second, by all of so many threads together."""
    counts = [0] * count
    end = time.perf_counter() + seconds

    def write(number: int) -> None:
        rng = random.Random(f"{number} {end}")
        while time.perf_counter() < end:
            db[rng.randbytes(16)] = rng.randbytes(100)
            counts[number] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def _sync_file(path: str, number: int, seconds: float, *, shared: bool, barrier: Any, results: Any) -> None:
    fd = os.open(path if shared else f"{path}{number}", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(8 << 20), 0)
    os.fsync(fd)
    page = os.urandom(4096)
    barrier.wait()
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        os.pwrite(fd, page, 4096 * (1 + number))
        os.fdatasync(fd)
        count += 1
    os.close(fd)
    results.put(count / seconds)


def device(directory: str, seconds: float, rounds: int) -> None:
    """4 KiB written and synced, per second: by processes with a file each, and all with the same one."""
    context = multiprocessing.get_context("spawn")
    for shared in (False, True):
        for count in (1, 2, 4, 8):
            rates = []
            for _ in range(rounds):
                results, barrier = context.Queue(), context.Barrier(count)
                path = os.path.join(directory, "device")
                together = {"shared": shared, "barrier": barrier, "results": results}
                workers = [
                    context.Process(target=_sync_file, args=(path, n, seconds), kwargs=together) for n in range(count)
                ]
                for worker in workers:
                    worker.start()
                rates.append(sum(results.get(timeout=60 + 10 * seconds) for _ in workers))
                for worker in workers:
                    worker.join()
            show(what="device", same_file=shared, writers=count, syncs_per_s=_median(rates), all=rates)


# -- backup ------------------------------------------------------------------------------------------------------


def backup(directory: str, entries: int, seconds: float, rounds: int) -> None:
    """A writer's durable puts of 1 KB per second, alone and while a backup runs in a thread or in another process."""
    path, target = os.path.join(directory, "db"), os.path.join(directory, "copy")
    _load(path, entries)
    for kind in ("thread", "process"):
        for _ in range(rounds):
            with durabledbm.open(path, "w") as db:
                stop, count = threading.Event(), [0]

                def write(db: Any = db, stop: threading.Event = stop, count: list[int] = count) -> None:
                    rng = random.Random(1)
                    while not stop.is_set():
                        db[b"%016x" % rng.randrange(entries)] = bytes(1000)
                        count[0] += 1

                writer = threading.Thread(target=write)
                writer.start()
                time.sleep(seconds / 5)
                alone = _rate(count, lambda: time.sleep(seconds))[0]
                during, elapsed = _rate(count, lambda db=db, kind=kind: _back_up(db, directory, kind))  # type: ignore[misc]
                again = _rate(count, lambda: time.sleep(seconds))[0]
                stop.set()
                writer.join()
            with durabledbm.open(target) as copy:
                problems = len(copy.check())
                assert len(copy) == entries
            show(
                what="backup", by=kind, bytes=os.path.getsize(path), seconds=elapsed, alone=alone, during=during,
                afterwards=again, ratio=during / statistics.mean((alone, again)), problems=problems,
                copy_bytes=os.path.getsize(target),
            )  # fmt: skip


def _back_up(db: Any, directory: str, kind: str) -> None:
    if kind == "thread":
        db.backup(os.path.join(directory, "copy"))
    else:
        subprocess.run([sys.executable, "-m", "compat.scaling", "copy", "--directory", directory], check=True)


def copy(directory: str) -> None:
    """One backup, in a process of its own."""
    with durabledbm.open(os.path.join(directory, "db")) as db:
        db.backup(os.path.join(directory, "copy"))


def _rate(count: list[int], job: Callable[[], object]) -> tuple[float, float]:
    before, start = count[0], time.perf_counter()
    job()
    elapsed = time.perf_counter() - start
    return (count[0] - before) / elapsed, elapsed


def _load(path: str, entries: int, step: int = 10_000) -> None:
    rng = random.Random(0)
    with durabledbm.open(path, "c") as db:
        for start in range(0, entries, step):
            db.update({b"%016x" % n: rng.randbytes(1000) for n in range(start, min(start + step, entries))})


# -- 11 GB -------------------------------------------------------------------------------------------------------


def large(directory: str, entries: int) -> None:
    """Everything with a database far larger than the process may be."""
    resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))
    path = os.path.join(directory, "db")
    with _timed("load", entries=entries):
        _load(path, entries)
    for _ in range(3):
        with _timed("open, get one, close"), durabledbm.open(path) as db:
            assert len(db[b"%016x" % (entries // 2)]) == 1000
    rng = random.Random(2)
    keys = [b"%016x" % rng.randrange(entries) for _ in range(100_000)]
    with durabledbm.open(path, "w") as db:
        stats = db.stats()
        show(what="file", **{name: getattr(stats, name) for name in ("entries", "depth", "file_bytes", "live_bytes")})
        for label in ("get, first time", "get, again"):
            with _timed(label, keys[:20_000]):
                for key in keys[:20_000]:
                    assert len(db[key]) == 1000
        pages = db.stats().pages_written
        with _timed("put, durable", keys[:5000]):
            for key in keys[:5000]:
                db[key] = bytes(1000)
        show(what="pages written per put", pages=(db.stats().pages_written - pages) / 5000)
        with _timed("update of 1000", keys[:100_000]):
            for start in range(0, 100_000, 1000):
                db.update({key: bytes(1000) for key in keys[start : start + 1000]})
        with _timed("range of 100", keys[:1000]):
            for key in keys[:1000]:
                assert sum(1 for _, entry in zip(range(100), db.range(key), strict=False)) <= 100
        with _timed("len"):
            assert len(db) == entries
        with _timed("backup"):
            db.backup(os.path.join(directory, "copy"))
        with _timed("check"):
            assert db.check() == []


class _timed:
    """Shows what a block took, for each of `items` where there are many, and the process's memory."""

    def __init__(self, what: str, items: Any = None, **more: Any) -> None:
        self._what, self._count, self._more = what, None if items is None else len(items), more

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is None:
            elapsed = time.perf_counter() - self._start
            each = {} if self._count is None else {"microseconds_each": elapsed / self._count * 1e6}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            show(what=self._what, seconds=elapsed, **each, **self._more, peak_memory_mb=peak // 1024)


# -- write amplification -----------------------------------------------------------------------------------------


def amplification(directory: str) -> None:
    """Pages written per put, by the number of entries and the size of the commit. Meta pages come on top."""
    for entries, size in ((10_000, 100), (1_000_000, 100), (10_000, 1000), (500_000, 1000)):
        path = os.path.join(directory, f"db {entries} {size}")
        with durabledbm.open(path, "c") as db:
            for start in range(0, entries, 10_000):
                db.update({b"%016x" % n: bytes(size) for n in range(start, start + 10_000)})
            rng = random.Random(3)
            for batch in (1, 10, 100, 1000, 10_000):
                commits = max(3, min(1000, 20_000 // batch))
                before = db.stats()
                for _ in range(commits):
                    db.update({b"%016x" % rng.randrange(entries): rng.randbytes(size) for _ in range(batch)})
                after = db.stats()
                pages = (after.pages_written - before.pages_written) / commits / batch
                show(
                    what="amplification", entries=entries, value=size, puts_per_commit=batch, pages_per_put=pages,
                    bytes_per_byte=(pages * 4096 + 2 * 4096 / batch) / (16 + size),
                    syncs_per_commit=(after.syncs - before.syncs) / commits, depth=after.depth,
                )  # fmt: skip
        os.unlink(path)


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _directory(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="durabledbm-scaling-") as directory:
        yield directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("writers", "device", "backup", "large", "amplification", "copy"))
    parser.add_argument("--directory")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int)
    args = parser.parse_args()
    for directory in _directory(args.directory):
        if args.what == "copy":
            copy(directory)
            return
        show(what="machine", **describe(directory))
        if args.what in ("writers", "device"):
            {"writers": writers, "device": device}[args.what](directory, args.seconds, args.rounds)
        elif args.what == "backup":
            backup(directory, args.entries or 1_000_000, args.seconds, args.rounds)
        elif args.what == "large":
            large(directory, args.entries or 10_000_000)
        else:
            amplification(directory)


if __name__ == "__main__":
    main()
