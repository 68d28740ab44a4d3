"""Workloads that write: puts, batches, mixes, bulk loads, churn, shelves, large values."""

from __future__ import annotations

import random
from time import perf_counter

from .data import KEY_SIZE, Dataset, Keys, Record, missing, pairs, record_of, shelf_key, value_of, values
from .parallel import puts_of_processes, puts_of_threads
from .stores import DURABLE, LOAD, READ, RELAXED, disk_bytes
from .timing import Result, Run, mixer, reader, writer
from .workloads import register

_BATCH = 1000
_KEPT = 50  # how many of the last writes are looked up again after closing


def _per_second(result: Result, weight: float = 1) -> Result:
    return {**result, "value": result["ops"] * weight / result["seconds"]}


class _Writes:
    """Makes pairs to write, half of them over existing keys, and remembers the last ones for the check."""

    def __init__(self, run: Run) -> None:
        assert run.dataset is not None
        self._run, self._size = run, run.dataset.value_size
        self.last: list[tuple[bytes, bytes]] = []

    def pairs(self, size: int) -> list[tuple[bytes, bytes]]:
        keys = self._run.keys.mixed(self._run.rng, size)
        made = list(zip(keys, values(self._run.rng, size, self._size), strict=True))
        self.last = (self.last + made)[-_KEPT:]
        return made

    def batches(self, size: int) -> list[list[tuple[bytes, bytes]]]:
        return [self.pairs(_BATCH) for _ in range(size)]


def single_puts(run: Run) -> Result:
    made = _Writes(run)
    with run.opened(DURABLE) as store:
        result = run.rate(writer(store), made.pairs, first=16)
    run.check_writes(dict(made.last))
    return _per_second(result)


def put_durable_16(run: Run) -> Result:
    return puts_of_threads(run, 16)


def put_durable_64(run: Run) -> Result:
    return puts_of_threads(run, 64)


def put_durable_4p(run: Run) -> Result:
    return puts_of_processes(run, 4)


def update_1000(run: Run) -> Result:
    made = _Writes(run)
    with run.opened(DURABLE) as store:
        batch = store.batch

        def step(batches: list[list[tuple[bytes, bytes]]]) -> None:
            for entries in batches:
                batch(entries)

        result = run.rate(step, made.batches, first=1)
    run.check_writes(dict(made.last))
    return _per_second(result, _BATCH)


def put_relaxed(run: Run) -> Result:
    made = _Writes(run)
    with run.opened(RELAXED) as store:
        result = run.rate(writer(store), made.pairs, seconds=2 * run.scale.seconds, finish=store.flush)
    run.check_writes(dict(made.last))
    return _per_second(result)


# -- mixes


def _mix(run: Run, updates: float, mode: str) -> Result:
    """Zipfian reads and updates of existing entries, as in YCSB's workloads A and B."""
    assert run.dataset is not None
    size = run.dataset.value_size

    def make(count: int) -> list[tuple[bytes, bytes | None]]:
        rng = run.rng
        keys = run.keys.zipfian(rng, count)
        new = values(rng, count, size)
        return [(key, value if rng.random() < updates else None) for key, value in zip(keys, new, strict=True)]

    with run.opened(mode) as store:
        run.check_reads(reader(store)[1])
        many = reader(store)[0]
        run.warm(many, lambda count: run.keys.zipfian(run.rng, count))
        last: dict[bytes, bytes] = {}

        def make_and_keep(count: int) -> list[tuple[bytes, bytes | None]]:
            items = make(count)
            last.update((key, value) for key, value in items if value is not None)
            return items

        seconds = run.scale.seconds * (2 if mode == RELAXED else 1)
        finish = store.flush if mode == RELAXED else None
        result = run.rate(mixer(store), make_and_keep, seconds=seconds, finish=finish, first=16)
    run.check_writes(dict(list(last.items())[-_KEPT:]))
    return _per_second(result)


def mix_95_durable(run: Run) -> Result:
    return _mix(run, 0.05, DURABLE)


def mix_50_durable(run: Run) -> Result:
    return _mix(run, 0.5, DURABLE)


def mix_95_relaxed(run: Run) -> Result:
    return _mix(run, 0.05, RELAXED)


def mix_50_relaxed(run: Run) -> Result:
    return _mix(run, 0.5, RELAXED)


# -- bulk loads


def _load(run: Run, *, in_order: bool) -> Result:
    """From an empty store to a closed one. A slow store is stopped, and its rate so far given."""
    entries = list(pairs(Dataset("load", run.scale.large, 100)))
    if in_order:
        entries.sort()
    store = run.store
    run.start_memory()
    store.open(LOAD)
    begin = perf_counter()
    done = store.load(entries, begin + run.scale.load_seconds, in_order=in_order)
    size = len(store.face) if not store.persistent else 0
    store.close()
    took = perf_counter() - begin
    if store.persistent:
        run.check_writes(dict(entries[: min(done, _KEPT)] + entries[max(done - _KEPT, 0) : done]))
    elif size != len(entries):
        raise AssertionError("entries are missing")
    result: Result = {
        "ops": done,
        "seconds": took,
        "value": done / took,
        "disk_bytes": disk_bytes(store.directory),
    }
    if done < len(entries):
        result["note"] = f"stopped after {done:,} entries"
    return result


def load_random(run: Run) -> Result:
    return _load(run, in_order=False)


def load_sorted(run: Run) -> Result:
    return _load(run, in_order=True)


# -- churn


def churn(run: Run) -> Result:
    """Fill with values of 20 to 400 B, then change twice as many in 200 batches."""
    rng, store, count = random.Random("churn"), run.store, run.scale.churn
    keys = list(Keys(count))
    sizes = {key: rng.randint(20, 400) for key in keys}
    initial = [(key, value_of(n, size)) for n, (key, size) in enumerate(sizes.items())]
    run.start_memory()
    store.prepare(initial)
    store.open(DURABLE if store.durable else RELAXED)
    begin = perf_counter()
    peak = 0
    step = max(count // 100, 3)
    for round_ in range(2 * count // step):
        puts, deletes = _churn_batch(rng, keys, step)
        store.batch(puts, deletes)
        for key in deletes:
            del sizes[key]
        sizes.update((key, len(value)) for key, value in puts)
        if round_ % 10 == 0:
            peak = max(peak, disk_bytes(store.directory))
    store.close()
    took = perf_counter() - begin
    size = disk_bytes(store.directory)
    stored = sum(sizes.values()) + KEY_SIZE * len(sizes)
    _check_churn(run, sizes, dict(puts))
    return {
        "ops": 2 * count, "seconds": took, "value": size / stored, "disk_bytes": size, "stored_bytes": stored,
        "disk_bytes_peak": max(peak, size),
    }  # fmt: skip


def _churn_batch(rng: random.Random, keys: list[bytes], size: int) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """A third of `size` changes overwrites, a third deletes, a third inserts; `keys` is kept up to date."""
    third = size // 3
    touched = rng.sample(range(len(keys)), 2 * third)
    puts = [(keys[index], value_of(rng.getrandbits(40), rng.randint(20, 400))) for index in touched[:third]]
    new = missing(rng, third)
    deletes = []
    for index, key in zip(touched[third:], new, strict=True):
        deletes.append(keys[index])
        keys[index] = key
        puts.append((key, value_of(rng.getrandbits(40), rng.randint(20, 400))))
    return puts, deletes


def _check_churn(run: Run, sizes: dict[bytes, int], newest: dict[bytes, bytes]) -> None:
    run.check_writes(newest)
    run.store.open(READ)
    try:
        found = set(run.store.keys())
    finally:
        run.store.close()
    if found != set(sizes):
        raise AssertionError(f"{run.store.name}: {len(found)} keys after churn, not {len(sizes)}")


# -- shelves and large values


def shelf_put(run: Run) -> Result:
    assert run.dataset is not None
    count = run.dataset.count
    run.start_memory()
    store = run.store
    shelf = store.shelf(RELAXED)
    last: list[tuple[str, Record]] = []

    def make(size: int) -> list[tuple[str, Record]]:
        nonlocal last
        indexes = run.rng.choices(range(2 * count), k=size)
        last = [(shelf_key(index), record_of(index + 1)) for index in indexes]
        return last

    def step(items: list[tuple[str, Record]]) -> None:
        for key, record in items:
            shelf[key] = record

    try:
        result = run.rate(step, make, seconds=2 * run.scale.seconds, finish=store.flush)
        if any(shelf[key] != record for key, record in dict(last).items()):
            raise AssertionError(f"{store.name}: wrong record")
    finally:
        store.close_shelf(shelf)
    return _per_second(result)


def big_puts(run: Run) -> Result:
    """Durable puts (relaxed ones where the store has no others) over the entries of the data set."""
    assert run.dataset is not None
    count, size = run.dataset.count, run.dataset.value_size
    last: dict[bytes, bytes] = {}

    def make(number: int) -> list[tuple[bytes, bytes]]:
        items = []
        for _ in range(min(number, 4)):
            index = run.rng.randrange(count)
            items.append((run.keys[index], value_of(run.rng.getrandbits(40), size)))
        last.clear()
        last.update(items)
        return items

    with run.opened(DURABLE if run.store.durable else RELAXED) as store:
        result = run.rate(writer(store), make, finish=None if store.durable else store.flush, first=1)
    run.check_writes(last)
    return _per_second(result, size / 1e6)


_SMALL, _LARGE = "{small} entries", "{large} x 100 B"


def _register_durable() -> None:
    for name, writers, function, needs in (
        ("put_durable_1", "1 thread", single_puts, "durable"),
        ("put_durable_16", "16 threads", put_durable_16, "threads"),
        ("put_durable_64", "64 threads", put_durable_64, "threads"),
        ("put_durable_4p", "4 processes", put_durable_4p, "processes"),
    ):
        title = f"durable put, {writers}, {_SMALL}"
        register(name, "durable", title, function, needs, dataset="small", data="copy")
    for size, data in (("tiny", "copy"), ("large", "copy"), ("huge", "own")):
        title = f"durable put into {{{size}}} entries"
        register(f"put_at_{size}", "durable", title, single_puts, "durable", dataset=size, data=data)
    title = f"durable update() of 1,000 random keys into {_LARGE}"
    more = {"dataset": "large", "data": "copy", "unit": "entries/s"}
    register("update_1000", "durable", title, update_1000, "durable", **more)


def _register_others() -> None:
    large = {"dataset": "large", "data": "copy"}
    title = f"relaxed put, {_LARGE}, final sync included"
    register("put_relaxed", "relaxed", title, put_relaxed, "relaxed", **large)
    for share, mode, function, needs in (
        (5, "durable", mix_95_durable, "mix_durable"),
        (50, "durable", mix_50_durable, "mix_durable"),
        (5, "relaxed", mix_95_relaxed, "mix"),
        (50, "relaxed", mix_50_relaxed, "mix"),
    ):
        title = f"{100 - share} % Zipfian gets, {share} % {mode} updates, {_LARGE}"
        register(f"mix_{100 - share}_{mode}", "mix", title, function, needs, **large)
    empty = {"data": "empty", "unit": "entries/s"}
    register("load_random", "bulk", f"bulk load of {_LARGE}, random order", load_random, "load", **empty)
    register("load_sorted", "bulk", f"bulk load of {_LARGE}, sorted", load_sorted, "load", **empty)
    title = "shelf put of a small dataclass, relaxed, {shelf} entries, final sync included"
    register("shelf_put", "shelf", title, shelf_put, "shelf", dataset="shelf", data="copy")
    for name, size in (("big_1m_put", "mebi"), ("big_64m_put", "vast")):
        title = f"put of values of {{{size}_size}}, durable where the store can"
        register(name, "big", title, big_puts, "big", dataset=size, data="copy", unit="MB/s")
    title = "file size after churn, bytes on disk per byte stored, no compaction asked for"
    register("churn", "size", title, churn, "churn", data="empty", unit="x", better="less")


_register_durable()
_register_others()
