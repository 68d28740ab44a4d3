"""The measurements behind docs/concurrency.md: what threads gain, what noticing costs, and how long a writer waits.

    python -m compat.concurrency threads [--entries 1000000] [--seconds 3]   durable puts by 1, 4, 16 and 64 threads
    python -m compat.concurrency notice                      what a look for other processes' commits costs a get
    python -m compat.concurrency waiting [--seconds 20]      how long the unluckiest of 16 writers in 4 processes waits

Each prints one JSON object per line. `--directory` says where the files go; they are removed at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from typing import Any

import durabledbm
from compat.bench.machine import describe
from compat.scaling import puts_by_threads, show
from durabledbm._engine.meta import STAMP_OFFSET, STAMP_SIZE


def threads(path: str, entries: int, seconds: float, rounds: int) -> None:
    """Durable puts of 16 + 100 bytes per second into one file, by numbers of threads in turn."""
    rng = random.Random(1)
    rates: dict[int, list[float]] = {1: [], 4: [], 16: [], 64: []}
    with durabledbm.open(path, "n") as db:
        db.update((rng.randbytes(16), rng.randbytes(100)) for _ in range(entries))
        for _ in range(rounds):
            for count, measured in rates.items():
                before = db.stats()
                measured.append(puts_by_threads(db, count, seconds))
                syncs = db.stats().syncs - before.syncs
                rate = measured[-1]
                show(what="threads", threads=count, puts_per_s=rate, puts_per_sync=rate * seconds / syncs)
    single = statistics.median(rates[1])
    for count, measured in rates.items():
        middle = statistics.median(measured)
        show(what="threads, median", threads=count, puts_per_s=middle, times_one_thread=middle / single)


def notice(path: str, rounds: int) -> None:
    """The look by itself, and a get of a value in memory with it, and without it (in a snapshot)."""
    keys = [b"%016d" % n for n in range(1000)]
    with durabledbm.open(path, "n") as db:
        db.update(dict.fromkeys(keys, bytes(100)))
    with durabledbm.open(path) as db, db.snapshot() as snapshot:
        fd = os.open(path, os.O_RDONLY)
        found = os.pread(fd, STAMP_SIZE, STAMP_OFFSET)
        for _ in range(rounds):
            for mapping in (db, snapshot):
                _per_key(mapping, keys)  # into memory
            looks = _looks(fd, found)
            gets, still = _per_key(db, keys), _per_key(snapshot, keys)
            show(what="notice", ns_look=looks, ns_get=gets, ns_get_in_snapshot=still)
        os.close(fd)


def _looks(fd: int, found: bytes) -> float:
    read = os.pread
    start = time.perf_counter()
    for _ in range(200_000):
        if read(fd, STAMP_SIZE, STAMP_OFFSET) != found:
            raise AssertionError("nobody has written")
    looked = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(200_000):
        pass
    return (looked - (time.perf_counter() - start)) / 200_000 * 1e9


def _per_key(mapping: Any, keys: list[bytes]) -> float:
    start = time.perf_counter()
    for _ in range(100):
        for key in keys:
            mapping[key]
    return (time.perf_counter() - start) / 100 / len(keys) * 1e9


def waiting(path: str, seconds: float) -> None:
    """Four threads in each of four processes put durably, as fast as they can; what single puts took."""
    context = multiprocessing.get_context("spawn")
    with durabledbm.open(path, "n") as db:
        db.update({b"%016d" % n: bytes(100) for n in range(100_000)})
    results, barrier = context.Queue(), context.Barrier(4)
    workers = [context.Process(target=_wait_for_turns, args=(path, seconds, barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    took = sorted(each for _ in range(16) for each in results.get(timeout=60 + 10 * seconds))
    for worker in workers:
        worker.join()
    at = {f"ms_{share}": took[int(len(took) * share / 100)] * 1e3 for share in (50, 99, 99.9)}
    show(what="waiting", puts=len(took), **at, ms_longest=took[-1] * 1e3)


def _wait_for_turns(path: str, seconds: float, barrier: Any, results: Any) -> None:
    with durabledbm.open(path, "w", timeout=None) as db:
        barrier.wait()

        def write() -> None:
            rng, took = random.Random(), []
            end = time.perf_counter() + seconds
            while (start := time.perf_counter()) < end:
                db[b"%016d" % rng.randrange(100_000)] = bytes(100)
                took.append(time.perf_counter() - start)
            results.put(took)

        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("threads", "notice", "waiting"))
    parser.add_argument("--directory")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="durabledbm-concurrency-", dir=args.directory) as directory:
        path = os.path.join(directory, "db")
        show(what="machine", **describe(directory))
        if args.what == "threads":
            threads(path, args.entries, args.seconds or 3.0, args.rounds)
        elif args.what == "notice":
            notice(path, args.rounds)
        else:
            waiting(path, args.seconds or 20.0)


if __name__ == "__main__":
    main()
