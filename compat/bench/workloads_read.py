"""Workloads that read: gets, misses, snapshots, scans, ranges, opening, shelves and large values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from time import perf_counter
from typing import Any

from .data import missing, record_of, shelf_key
from .stores import READ
from .timing import Result, Run, disk_read, evict_files, reader
from .workloads import register

_PASS_FACTOR = 5  # keys() of some stores makes a list first: a pass cut short early would say nothing of them


def _per_second(result: Result, weight: float = 1) -> Result:
    return {**result, "value": result["ops"] * weight / result["seconds"]}


def _gets(run: Run, choose: Callable[[Any, int], list[bytes]], *, snapshot: bool) -> Result:
    with run.opened(READ) as store:
        many, one = reader(store, *store.snapshot()) if snapshot else reader(store)
        run.check_reads(one)

        def make(size: int) -> list[bytes]:
            return choose(run.rng, size)

        run.warm(many, make)
        return _per_second(run.rate(many, make))


def uniform_gets(run: Run) -> Result:
    return _gets(run, run.keys.uniform, snapshot=False)


def zipfian_gets(run: Run) -> Result:
    return _gets(run, run.keys.zipfian, snapshot=False)


def uniform_gets_in_snapshot(run: Run) -> Result:
    return _gets(run, run.keys.uniform, snapshot=True)


def zipfian_gets_in_snapshot(run: Run) -> Result:
    return _gets(run, run.keys.zipfian, snapshot=True)


def _misses(run: Run, step: Callable[[list[bytes]], None]) -> Result:
    def make(size: int) -> list[bytes]:
        return missing(run.rng, size)

    run.warm(step, make)
    return _per_second(run.rate(step, make))


def miss_in(run: Run) -> Result:
    with run.opened(READ) as store:
        mapping, find = store.face, store.find
        run.check_reads(reader(store)[1])

        def contains(keys: list[bytes]) -> None:
            for key in keys:
                key in mapping  # noqa: B015 - the look-up is what is measured

        def finds(keys: list[bytes]) -> None:
            for key in keys:
                find(key)

        absent = missing(run.rng, 1)[0]
        assert find(absent) is None if mapping is None else absent not in mapping
        return _misses(run, finds if mapping is None else contains)


def miss_get(run: Run) -> Result:
    with run.opened(READ) as store:
        find = store.find if store.face is None else store.face.get
        run.check_reads(reader(store)[1])
        assert find(missing(run.rng, 1)[0]) is None

        def finds(keys: list[bytes]) -> None:
            for key in keys:
                find(key)

        return _misses(run, finds)


# -- scans


def _scan(run: Run, start: Callable[[], Iterable[Any]]) -> Result:
    """Whole passes, or as much of one as a slow store gets through in several times the timed part."""
    assert run.dataset is not None
    limit = _PASS_FACTOR * run.scale.seconds
    done, elapsed, ended = _partial(start, limit)  # the warming pass
    if not ended:
        done, elapsed, _ = _partial(start, limit)
        return {"ops": done, "seconds": elapsed, "value": done / elapsed, "note": "part of one pass"}
    if done != run.dataset.count:
        raise AssertionError(f"{run.store.name}: a scan found {done} entries")
    done, elapsed = 0, 0.0
    while elapsed < run.scale.seconds:
        begin = perf_counter()
        for _ in start():
            pass
        elapsed += perf_counter() - begin
        done += run.dataset.count
    return {"ops": done, "seconds": elapsed, "value": done / elapsed}


def _partial(start: Callable[[], Iterable[Any]], seconds: float) -> tuple[int, float, bool]:
    """Entries seen within `seconds`, the seconds it took, and whether the pass came to its end."""
    begin = perf_counter()
    feed = iter(start())
    done = 0
    while perf_counter() - begin < seconds:
        before = done
        for _ in islice(feed, 5000):
            done += 1
        if done - before < 5000:
            return done, perf_counter() - begin, True
    return done, perf_counter() - begin, False


def scan_keys(run: Run) -> Result:
    with run.opened(READ) as store:
        return _scan(run, store.keys)


def scan_items(run: Run) -> Result:
    with run.opened(READ) as store:
        return _scan(run, store.items)


def range_100(run: Run) -> Result:
    with run.opened(READ) as store:
        take = store.range
        found = take(b"\x40", 100)
        if len(found) != 100 or found != sorted(found) or found[0][0] < b"\x40":
            raise AssertionError(f"{store.name}: the range is wrong")

        def step(starts: list[bytes]) -> None:
            for start in starts:
                take(start, 100)

        def make(size: int) -> list[bytes]:
            return [key[:-8] for key in run.keys.uniform(run.rng, size)]

        run.warm(step, make)
        return _per_second(run.rate(step, make, first=4))


def length(run: Run) -> Result:
    assert run.dataset is not None
    with run.opened(READ) as store:
        sized = store.face if hasattr(store.face, "__len__") else store
        if len(sized) != run.dataset.count:
            raise AssertionError(f"{store.name}: len() is {len(sized)}")

        def step(times: list[None]) -> None:
            for _ in times:
                len(sized)

        return _per_second(run.rate(step, lambda size: [None] * size, first=1))


# -- opening


def open_warm(run: Run) -> Result:
    store = run.store
    with run.opened(READ):
        run.check_reads(reader(store)[1])

    def step(keys: list[bytes]) -> None:
        for key in keys:
            store.open(READ)
            if store.face is None:
                store.get(key)
            else:
                store.face[key]
            store.close()

    return _per_second(run.rate(step, lambda size: run.keys.uniform(run.rng, size), first=1))


def open_cold(run: Run) -> Result:
    store, key = run.store, run.keys.uniform(run.rng, 1)[0]
    run.start_memory()
    evict_files(store.directory)
    before = disk_read()
    begin = perf_counter()
    store.open(READ)
    value = store.get(key) if store.face is None else store.face[key]
    took = perf_counter() - begin
    read = disk_read() - before
    store.close()
    if len(value) != store.value_size:
        raise AssertionError(f"{store.name}: wrong value")
    return {"ops": 1, "seconds": took, "value": took * 1000, "disk_read": read}


# -- shelves


def shelf_get(run: Run) -> Result:
    assert run.dataset is not None
    count = run.dataset.count
    run.start_memory()
    store = run.store
    shelf = store.shelf(READ)
    try:
        if not store.persistent:
            for index in range(count):
                shelf[shelf_key(index)] = record_of(index)
        if shelf[shelf_key(7)] != record_of(7):
            raise AssertionError(f"{store.name}: wrong record")

        def step(keys: list[str]) -> None:
            for key in keys:
                shelf[key]

        def make(size: int) -> list[str]:
            return [shelf_key(index) for index in run.rng.choices(range(count), k=size)]

        run.warm(step, make)
        return _per_second(run.rate(step, make))
    finally:
        store.close_shelf(shelf)


# -- large values


def big_gets(run: Run) -> Result:
    assert run.dataset is not None
    with run.opened(READ) as store:
        many, one = reader(store)
        run.check_reads(one, samples=2)
        result = run.rate(many, lambda size: run.keys.uniform(run.rng, size), first=1)
        return _per_second(result, run.dataset.value_size / 1e6)


def _register() -> None:
    small, large, wide = "{small} x 100 B", "{large} x 100 B", "{wide} x 1 KiB"
    register("get_small", "read", f"random get, {small}", uniform_gets, "get", dataset="small")
    register("get_large", "read", f"random get, {large}", uniform_gets, "get", dataset="large")
    register("get_wide", "read", f"random get, {wide}", uniform_gets, "get", dataset="wide")
    over = {"dataset": "large"}
    register("get_zipf", "read", f"Zipfian get, {large}", zipfian_gets, "get", **over)
    within = f"get within one snapshot, {large}"
    register("snap_large", "read", f"random {within}", uniform_gets_in_snapshot, "snapshot", **over)
    register("snap_zipf", "read", f"Zipfian {within}", zipfian_gets_in_snapshot, "snapshot", **over)
    register("miss_in", "read", f"`in`, misses, {large}", miss_in, "contains", **over)
    register("miss_get", "read", f"`get`, misses, {large}", miss_get, "miss", **over)
    register("scan_keys", "scan", f"full scan, keys, {large}", scan_keys, "scan", unit="entries/s", **over)
    register("scan_items", "scan", f"full scan, items, {large}", scan_items, "scan", unit="entries/s", **over)
    register("range_100", "scan", f"range of 100 from a random start, {large}", range_100, "range", **over)
    register("len", "scan", f"`len()`, {large}", length, "len", **over)
    over = {"dataset": "wide"}
    register("open_warm", "open", f"open + one get + close, {wide}, in the page cache", open_warm, "cold", **over)
    title = f"open + first get, {wide}, not in the page cache"
    register("open_cold", "open", title, open_cold, "cold", unit="ms", better="less", **over)
    title = "shelf get of a small dataclass, {shelf} entries"
    register("shelf_get", "shelf", title, shelf_get, "shelf", dataset="shelf")
    register("big_1m_get", "big", "get of values of {mebi_size}", big_gets, "big", dataset="mebi", unit="MB/s")
    register("big_64m_get", "big", "get of values of {vast_size}", big_gets, "big", dataset="vast", unit="MB/s")


_register()
