"""The rates in docs/scaling.md: the same work on a file, on PostgreSQL and on Redis.

    python -m compat.remote [--entries 100000] [--seconds 2] [--rounds 3]
    python -m compat.remote --url postgresql://...     the same work on a server that is there

Without `--url` it starts servers of its own on sockets, as the tests do, but with their data on the disk: PostgreSQL as
it comes, Redis with `appendfsync always`. Each row is one JSON object: the median of the rates per second, and the
processor time of this process for one, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import durabledbm
from compat.bench.machine import describe
from durabledbm import remote

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import servers

TABLE = "durabledbm bench"


def work(db: Any, entries: int) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """What is done, how many of its unit one call does, and the call."""
    rng = random.Random(1)
    keys = [b"%016d" % number for number in range(entries)]
    value = rng.randbytes(100)

    def block() -> None:
        with db.transaction():
            key = rng.choice(keys)
            db[key] = db[key]

    def update() -> None:
        db.update(dict.fromkeys(rng.sample(keys, 1000), value))

    def span() -> None:
        start = rng.randrange(entries - 100)
        assert len(list(db.range(keys[start], keys[start + 100]))) == 100

    def snapshot() -> None:
        with db.snapshot() as one:
            one.get(keys[0])

    yield "get", 1, lambda: db[rng.choice(keys)]
    yield "get_many of 100, keys", 100, lambda: db.get_many(rng.sample(keys, 100))
    yield "range of 100, entries", 100, span
    yield "all items", entries, lambda: sum(1 for _ in db.items())
    yield "put", 1, lambda: db.__setitem__(rng.choice(keys), value)
    yield "update() of 1000, entries", 1000, update
    yield "block of a get and a put", 1, block
    yield "snapshot, a get in it", 1, snapshot


def rate(call: Callable[[], object], units: int, seconds: float, rounds: int) -> dict[str, float]:
    """Units per second, and microseconds of this process's processor time for one."""
    call()
    rates, costs = [], []
    for _ in range(rounds):
        count, start, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            call()
            count += units
        rates.append(count / (time.perf_counter() - start))
        costs.append(1e6 * (time.process_time() - used) / count)
    return {"per_second": round(statistics.median(rates)), "cpu_us": round(statistics.median(costs), 1)}


def puts_by_threads(db: Any, entries: int, count: int, seconds: float) -> float:
    """Puts per second, by all of so many threads together."""
    counts = [0] * count
    end = time.perf_counter() + seconds

    def write(number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() < end:
            db[b"%016d" % rng.randrange(entries)] = bytes(100)
            counts[number] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(sum(counts) / seconds)


def measure(name: str, db: Any, entries: int, seconds: float, rounds: int) -> None:
    """All rows of one engine."""
    loaded = {b"%016d" % number: os.urandom(100) for number in range(entries)}
    start = time.perf_counter()
    if hasattr(db, "loading"):
        with db.loading(replace=True) as loader:
            for key, value in loaded.items():
                loader.change(key, value)
    else:
        db.update(loaded)
    took = time.perf_counter() - start
    print(json.dumps({"engine": name, "what": "load, verified", "per_second": round(entries / took)}), flush=True)
    for what, units, call in work(db, entries):
        print(json.dumps({"engine": name, "what": what, **rate(call, units, seconds, rounds)}), flush=True)
    for threads in (8, 64):
        per_second = statistics.median(puts_by_threads(db, entries, threads, seconds) for _ in range(rounds))
        print(json.dumps({"engine": name, "what": f"puts, {threads} threads", "per_second": per_second}), flush=True)


def engines(url: str | None) -> Iterator[tuple[str, Any]]:
    """The databases to be measured, each open until the next one is asked for."""
    if url is not None:
        with remote.open(url, "n", table=TABLE) as db:
            yield url.partition(":")[0], db
        return
    with tempfile.TemporaryDirectory() as directory, durabledbm.open(f"{directory}/file", "n") as db:
        yield "file", db
    if (reason := servers.postgres_skipped()) is not None:
        print(reason, file=sys.stderr)
    else:
        with servers.Postgres(fsync="on", shared_buffers="128MB") as server, remote.open(server.url) as db:
            yield "postgresql", db
    if (reason := servers.redis_skipped()) is not None:
        print(reason, file=sys.stderr)
    else:
        with servers.Redis(keep=True) as server, remote.open(server.url) as db:
            yield "redis", db


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--url")
    args = parser.parse_args()
    print(json.dumps({"machine": describe(tempfile.gettempdir())}), flush=True)
    for name, db in engines(args.url):
        measure(name, db, args.entries, args.seconds, args.rounds)


if __name__ == "__main__":
    main()
