"""Workloads on a simulated disk, and what must be true of every state that a crash of them leaves.

A workload is a function of a `Bench`, which does to a database what it is told and tells a `Model`. `explore`
runs one and verifies every crash state of it: the file opens, holds a version that the model allows, `check()`
finds nothing, and writing goes on; then the recovery and the writes after it are crashed too, to depth 3.

    python tests/support/crashes.py 1000000 7       # so many distinct states, from seed 7, on all processors

Whatever fails prints the workload, the mode, the seed and the moment, which is all that it takes to see it again.
"""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple, cast

from model import MODES, Model
from simdisk import Crash, SimVolume, Trace

import durabledbm.transaction
from durabledbm import streams
from durabledbm._engine import large_value
from durabledbm.database import Database, open_on
from durabledbm.maintenance.check import Problem
from durabledbm.snapshot import Snapshot
from durabledbm.transaction import Transaction

PATH = "/db"
FOREVER = 3600.0  # the seconds of an interval that nobody waits for: flushing is the workload's business

Changes = Mapping[bytes, "bytes | None"]

TABLES = b"\xfetable "
"""What begins a key of the model that stands for a key of a table."""


def in_table(name: str, key: bytes) -> bytes:
    """The model's key for a key of a table."""
    return TABLES + name.encode() + b"\xfe" + key


KEPT = b"\xfdcheckpoint "
"""What begins a key of the model that stands for an entry of a checkpoint."""


def as_kept(name: str, content: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What the model has of a checkpoint with this content."""
    return {KEPT + name.encode() + b"\xfe" + key: value for key, value in content.items() if not key.startswith(KEPT)}


def content_of(database: Database) -> dict[bytes, bytes]:
    """Everything in the database, and in its checkpoints, as the model has it. The counts must be right."""
    content = _present(database)
    for checkpoint in database.checkpoints():
        with database.at(checkpoint.name) as kept:
            content |= as_kept(checkpoint.name, _present(kept))
    return content


def _present(database: Database | Snapshot) -> dict[bytes, bytes]:
    content = dict(database.items())
    assert len(database) == len(content)
    for name in database.tables():
        table = database.table(name)
        entries = dict(table.items())
        assert len(table) == len(entries)
        content |= {in_table(name, key): value for key, value in entries.items()}
    return content


def make(place: Database | Transaction, changes: Changes) -> None:
    """Make changes, which are the model's, to a database or in a transaction."""
    for place_and_key, value in changes.items():
        key, target = place_and_key, cast("Any", place)
        if place_and_key.startswith(TABLES):
            name, key = place_and_key[len(TABLES) :].split(b"\xfe", 1)
            target = place.table(name.decode())
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value


class Bench:
    """One database on a simulated volume, and the model of what it must hold."""

    def __init__(self, mode: str, seed: int, *, page_size: int = 4096, volume: SimVolume | None = None) -> None:
        self.volume = SimVolume() if volume is None else volume
        self.mode, self.seed, self.page_size = mode, seed, page_size
        self.cache_size = 1 << 20
        self.rng = random.Random(seed)
        self.trace = self.volume.record()
        self.model = Model(mode, clock=lambda: len(self.volume.log), seed=seed)
        self.database: Database | None = None

    @property
    def db(self) -> Database:
        """The handle, opened when it is first needed."""
        if self.database is None:
            self.open("c")
        assert self.database is not None
        return self.database

    def open(self, flag: str = "w") -> None:
        if flag == "n":
            self.model.will_commit({}, clear=True)
        self.database = open_on(
            self.volume, PATH, flag, durability=self.mode, interval=FOREVER, page_size=self.page_size,
            cache_size=self.cache_size,
        )
        if flag == "n":
            self.model.acknowledged()

    def begin_here(self) -> None:
        """What follows is what will be crashed; what is there now is safely on the disk."""
        self.sync()
        self.model = self.model.after(self.model.content, clock=lambda: len(self.volume.log))
        for path in self.volume.paths():
            self.volume.put(path, self.volume.content(path))
        self.trace = self.volume.record()

    def put(self, key: bytes, value: bytes) -> None:
        self.model.will_commit({key: value})
        make(self.db, {key: value})
        self.model.acknowledged()

    def delete(self, key: bytes) -> None:
        self.model.will_commit({key: None})
        make(self.db, {key: None})
        self.model.acknowledged()

    def commit(self, changes: Changes) -> None:
        """One atomic commit of puts and deletions."""
        self.model.will_commit(changes)
        with self.db.transaction() as tx:
            make(tx, changes)
        self.model.acknowledged()
        if self.mode in ("interval", "manual") and self.rng.random() < 0.7:
            self.sync()  # else nothing would be written

    def clear(self) -> None:
        self.model.will_commit({key: None for key in self.model.content if not key.startswith((TABLES, KEPT))})
        self.db.clear()
        self.model.acknowledged()

    def drop(self, name: str) -> None:
        """Drop a table."""
        self.model.will_commit({key: None for key in self.model.content if key.startswith(in_table(name, b""))})
        self.db.drop_table(name)
        self.model.acknowledged()

    def checkpoint(self, name: str) -> None:
        """Make a checkpoint, which is synced in every mode."""
        self.model.will_commit(as_kept(name, self.model.content))
        self.db.checkpoint(name)
        self.model.acknowledged()
        self.model.synced()

    def drop_checkpoint(self, name: str) -> None:
        """Drop a checkpoint."""
        stem = KEPT + name.encode() + b"\xfe"
        self.model.will_commit({key: None for key in self.model.content if key.startswith(stem)})
        self.db.drop_checkpoint(name)
        self.model.acknowledged()
        self.model.synced()

    def restore(self, name: str) -> None:
        """Make a checkpoint the present."""
        stem = KEPT + name.encode() + b"\xfe"
        kept = {key[len(stem) :]: value for key, value in self.model.content.items() if key.startswith(stem)}
        gone = dict.fromkeys(key for key in self.model.content if not key.startswith(KEPT))
        self.model.will_commit({**gone, **kept})
        self.db.restore(name)
        self.model.acknowledged()

    def sync(self) -> None:
        self.db.sync()
        self.model.synced()

    def close(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None
            self.model.synced()

    def reorganize(self) -> None:
        self.db.reorganize()

    def leave(self) -> None:
        """The process is gone: nothing more is written."""
        if self.database is not None:
            self.database._close_files()
            self.database = None

    def entries(self, count: int, size: int, *, prefix: bytes = b"k", span: int = 1000) -> dict[bytes, bytes]:
        """Random entries; the keys are from `span` different ones."""
        rng = self.rng
        keys = (b"%s%05d" % (prefix, rng.randrange(span)) for _ in range(count))
        return {key: rng.randbytes(rng.randrange(size // 2, size + 1)) for key in keys}


Workload = Callable[[Bench], None]


# -- workloads: each shows one way in which a commit writes


def creation(bench: Bench) -> None:
    """A database comes into being, and gets its first entries."""
    bench.open("c")
    bench.put(b"a", b"1")
    bench.put(b"b", b"2" * 100)
    bench.close()
    bench.open("w")
    bench.delete(b"a")
    bench.close()


def empty_file(bench: Bench) -> None:
    """An empty file, which two handles have open, becomes a database in place."""
    bench.volume.put(PATH, b"")
    bench.trace = bench.volume.record()
    bench.open("w")
    second = bench.database
    bench.open("c")
    try:
        bench.put(b"a", b"1")
        bench.sync()
        bench.database, second = second, bench.database
        bench.put(b"b", b"2" * 100)
    finally:
        assert second is not None
        second.close()


def small_commits(bench: Bench) -> None:
    """Commits that stand in the meta page, until it is full and they go into the tree."""
    for n in range(9):
        bench.put(b"key %d" % (n % 6), bench.rng.randbytes(700))
        if n % 4 == 3:
            bench.delete(b"key %d" % (n % 3))
    bench.sync()
    bench.put(b"last", b"")


def one_leaf(bench: Bench) -> None:
    """Commits into a tree of a page or two, completely enumerated."""
    bench.commit(bench.entries(8, 500))
    bench.commit(bench.entries(8, 700))
    bench.sync()
    bench.commit(dict.fromkeys(list(bench.model.content)[::2]))
    bench.commit(bench.entries(8, 500))


def tree_commits(bench: Bench) -> None:
    """Commits that replace pages all over a tree of two levels, and reuse those that were freed before."""
    bench.commit(bench.entries(300, 100))
    bench.begin_here()
    for _ in range(4):
        bench.commit({**bench.entries(40, 150), **dict.fromkeys(bench.rng.sample(sorted(bench.model.content), 20))})
    bench.sync()
    bench.commit(bench.entries(60, 100))


def joining(bench: Bench) -> None:
    """Commits that delete so much that leaves are joined with neighbours, some of which they have written just now."""
    rng = bench.rng
    bench.commit({b"%05d" % n: rng.randbytes(rng.randrange(60)) for n in range(1500)})
    bench.begin_here()
    for _ in range(6):
        gone = rng.sample(sorted(bench.model.content), rng.choice((10, 30, 90)))
        bench.commit({**dict.fromkeys(gone), **{b"%05d" % rng.randrange(2000): rng.randbytes(99) for _ in gone}})
        bench.sync()


def many_pages(bench: Bench) -> None:
    """Commits of so many pages that they are not listed: two syncs each."""
    bench.commit(bench.entries(100, 100))
    bench.begin_here()
    bench.commit({b"%d" % n: bench.rng.randbytes(3500) for n in range(300)})
    bench.put(b"after", b"it")


def large_values(bench: Bench) -> None:
    """Values in runs of their own, replaced and deleted."""
    rng = bench.rng
    bench.put(b"first", rng.randbytes(9000))
    bench.commit({b"second": rng.randbytes(50_000), b"third": rng.randbytes(5000), b"small": b"x"})
    bench.put(b"first", rng.randbytes(20_000))
    bench.sync()
    bench.commit({b"second": None, b"fourth": rng.randbytes(30_000)})
    bench.put(b"K" * 6000, b"a long key")


def clearing(bench: Bench) -> None:
    """An atomic clear, and what is written after it into the pages that it freed."""
    bench.commit(bench.entries(200, 100))
    bench.begin_here()
    bench.clear()
    bench.put(b"new", b"1")
    bench.commit(bench.entries(50, 200))
    bench.sync()
    bench.clear()
    bench.commit(bench.entries(50, 200))


def begun_anew(bench: Bench) -> None:
    """Flag "n" on a database that holds something."""
    bench.commit(bench.entries(40, 100))
    bench.begin_here()
    bench.close()
    bench.open("n")
    bench.put(b"new", b"1")


def shrinking(bench: Bench) -> None:
    """The file grows, and its end is cut off again while it is in use."""
    bench.commit({b"%04d" % n: bench.rng.randbytes(1500) for n in range(160)})
    bench.begin_here()
    keys = sorted(bench.model.content)
    for part in range(5):
        bench.commit(dict.fromkeys(keys[part * 30 : part * 30 + 30]))
    bench.commit(bench.entries(60, 2000))
    bench.close()
    bench.open("w")
    bench.put(b"x", b"y")


def reorganizing(bench: Bench) -> None:
    """Every page moves, in ordinary commits."""
    bench.commit({b"%04d" % n: bench.rng.randbytes(900) for n in range(120)})
    bench.commit({b"%04d" % n: None for n in range(0, 120) if n % 4})
    bench.put(b"big", bench.rng.randbytes(20_000))
    bench.begin_here()
    bench.reorganize()
    bench.sync()
    bench.put(b"x", b"y")


def spilling(bench: Bench) -> None:
    """A transaction that outgrows its memory writes pages before it commits; savepoints in it are undone."""
    bench.commit(bench.entries(60, 100))
    bench.begin_here()
    with spill_size(6000):
        bench.commit(bench.entries(120, 200))
        changes = bench.entries(60, 200, prefix=b"s")
        bench.model.will_commit(changes)
        with bench.db.transaction() as tx:
            tx.update(dict(list(changes.items())[:30]))
            try:
                with bench.db.transaction() as inner:
                    inner.update(bench.entries(40, 200, prefix=b"undone"))
                    raise _Undo
            except _Undo:
                pass
            tx.update(dict(list(changes.items())[30:]))
        bench.model.acknowledged()
    bench.commit(bench.entries(20, 100))


def streaming(bench: Bench) -> None:
    """Values in pieces come from files, which may fail, alone and in transactions. They are replaced and deleted."""
    rng = bench.rng
    bench.commit(bench.entries(30, 100))
    bench.begin_here()

    def put(mapping: Any, key: bytes, value: bytes) -> None:
        mapping.put_stream(key, io.BytesIO(value))

    with patched(streams, "_HEAD", 1):
        for size in (9_000, 40_000):
            value = rng.randbytes(size)
            bench.model.will_commit({b"streamed": value})
            put(bench.db, b"streamed", value)
            bench.model.acknowledged()
        with suppress(_Undo):
            bench.db.put_stream(b"streamed", _Failing())
        bench.put(b"small", b"1")
        changes = {**bench.entries(20, 200), b"streamed": rng.randbytes(30_000), b"other": rng.randbytes(17_000)}
        bench.model.will_commit(changes)
        with bench.db.transaction() as tx:
            put(tx, b"streamed", b"replaced in the same transaction" * 900)
            with suppress(_Undo), bench.db.transaction() as inner:
                put(inner, b"streamed", rng.randbytes(9_000))
                inner.put_stream(b"other", _Failing())
            for key, value in changes.items():
                if len(value) > 1000:
                    put(tx, key, value)
                else:
                    tx[key] = value
        bench.model.acknowledged()
    bench.delete(b"streamed")
    bench.put(b"other", rng.randbytes(9_000))
    bench.commit(bench.entries(20, 100))


def two_writers(bench: Bench) -> None:
    """Two handles, as of two processes, in turn: each builds on what the other left."""
    first, second = None, None
    try:
        for turn in range(6):
            first, second = second, first
            bench.database = first
            bench.commit(bench.entries(12, 150))
            bench.sync()
            bench.put(b"turn", b"%d" % turn)
            if bench.mode != "full":
                bench.sync()
            first, bench.database = bench.database, None
    finally:
        for database in (first, second):
            if database is not None:
                database.close()


def pinned(bench: Bench) -> None:
    """Snapshots keep old pages from being reused, and let them go again."""
    bench.cache_size = 0  # so that they are read from the file
    bench.commit(bench.entries(100, 100))
    bench.begin_here()
    snapshots = []
    for _ in range(4):
        snapshots.append((bench.db.snapshot(), dict(bench.db.items())))
        bench.commit(bench.entries(25, 150))
        bench.put(b"x", bench.rng.randbytes(10))
        if len(snapshots) > 2:
            snapshot, content = snapshots.pop(0)
            assert dict(snapshot.items()) == content
            snapshot.close()
    for snapshot, content in snapshots:
        assert dict(snapshot.items()) == content
        snapshot.close()
    bench.sync()


def several_tables(bench: Bench) -> None:
    """Commits that change the main table and others: in the meta page, in the trees, and with whole tables that go."""
    rng = bench.rng

    def entries(count: int, size: int) -> dict[bytes, bytes]:
        found = bench.entries(count, size, span=200)
        return {in_table(f"table {key[-1] % 3}", key) if key[-1] % 4 else key: value for key, value in found.items()}

    bench.commit(entries(12, 60))
    bench.commit(entries(200, 100))
    bench.begin_here()
    bench.put(in_table("table 1", b"small"), b"1")
    bench.commit({**entries(30, 300), **dict.fromkeys(rng.sample(sorted(bench.model.content), 30))})
    bench.put(in_table("table 2", b"large"), rng.randbytes(9000))
    bench.drop("table 1")
    bench.sync()
    bench.commit({in_table("table 1", b"again"): b"2", b"main": b"3"})
    bench.clear()
    with spill_size(6000):
        bench.commit(entries(60, 200))
    bench.reorganize()
    bench.drop("table 2")


def checkpoints(bench: Bench) -> None:
    """Checkpoints are made, outlive what replaces their pages, are restored and dropped."""
    rng = bench.rng
    bench.commit(bench.entries(120, 100))
    bench.begin_here()
    bench.put(in_table("t", b"small"), b"1")
    bench.checkpoint("first")
    bench.commit(bench.entries(40, 200))
    bench.put(b"large", rng.randbytes(9000))
    bench.checkpoint("second")
    bench.clear()
    bench.commit(bench.entries(30, 150))
    bench.drop_checkpoint("first")
    bench.commit(bench.entries(30, 150))
    bench.reorganize()
    bench.restore("second")
    bench.drop_checkpoint("second")
    bench.commit(bench.entries(30, 150))


def mixture(bench: Bench) -> None:
    """Anything, in an order drawn with the seed."""
    rng = bench.rng
    for _ in range(rng.randrange(6, 14)):
        keys = sorted(bench.model.content) or [b"none"]
        action = rng.randrange(15)
        if action > 12:
            key = in_table(f"table {rng.randrange(2)}", b"%d" % rng.randrange(100))
            bench.put(key, rng.randbytes(rng.choice((0, 5, 100, 1000))))
        elif action < 4:
            bench.put(rng.choice([*keys, b"new %d" % rng.randrange(100)]), rng.randbytes(rng.choice((0, 5, 100, 1000))))
        elif action < 8:
            size = rng.choice((50, 200, 1500))
            bench.commit({**bench.entries(rng.randrange(1, 50), size, span=100), rng.choice(keys): None})
        elif action == 8:
            bench.commit(dict.fromkeys(rng.sample(keys, len(keys) // 2 + 1)))
        elif action == 9:
            bench.put(b"big %d" % rng.randrange(3), rng.randbytes(rng.randrange(3000, 40_000)))
        elif action == 10:
            bench.sync()
        elif action == 11:
            bench.close()
            bench.open("c")
        else:
            rng.choice((bench.clear, bench.reorganize, bench.sync))()


ALL: tuple[Workload, ...] = (
    creation, empty_file, small_commits, one_leaf, tree_commits, joining, many_pages, large_values, clearing,
    begun_anew, shrinking, reorganizing, spilling, streaming, two_writers, pinned, several_tables, checkpoints,
    mixture,
)  # fmt: skip


class _Undo(Exception):
    pass


def spill_size(size: int) -> AbstractContextManager[None]:
    """Let transactions that take more than `size` bytes of memory write pages before they commit."""
    return patched(durabledbm.transaction, "SPILL_SIZE", size)


class _Failing:
    """A file that fails after a while."""

    def __init__(self) -> None:
        self._parts = 3

    def read(self, size: int) -> bytes:
        self._parts -= 1
        if not self._parts:
            raise _Undo
        return b"f" * size


@contextmanager
def patched(module: Any, name: str, value: int) -> Iterator[None]:
    """Let a number of the package be another one."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


# -- what must be true


class Options(NamedTuple):
    """How thoroughly."""

    limit: int = 60
    """States of each moment, about; what `crash_states` always yields comes on top."""
    again: float = 0.1
    """The share of states in which writing goes on."""
    deeper: float = 0.02
    """The share of states of which the recovery is crashed, too; there, everything is written on."""
    depth: int = 3
    below: int | None = None
    """At most so many states of each recovery that is crashed are verified, of all its moments alike."""


class Tally:
    """How many distinct states were verified, by depth of recovery."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.by_depth: Counter[int] = Counter()

    def add(self, volume: SimVolume, depth: int) -> None:
        mark = hash((volume.fingerprint(), depth))
        if mark not in self.seen:
            self.seen.add(mark)
            self.by_depth[depth] += 1

    @property
    def states(self) -> int:
        return len(self.seen)


def explore(
    workload: Workload, mode: str, seed: int, *, options: Options | None = None, page_size: int = 4096,
    tally: Tally | None = None, enough: int | None = None,
) -> Tally:  # fmt: skip
    """Run the workload and verify every crash of it, or about `enough` states, of all its moments alike."""
    tally = Tally() if tally is None else tally
    options = Options() if options is None else options
    with patched(large_value, "_RUN", 8192) if workload is streaming else nullcontext():  # else there is much to copy
        return _explore(workload, mode, seed, options, page_size, tally, enough)


def _explore(
    workload: Workload, mode: str, seed: int, options: Options, page_size: int, tally: Tally, enough: int | None
) -> Tally:
    bench = Bench(mode, seed, page_size=page_size)
    try:
        workload(bench)
        bench.sync()
        bench.leave()
        rng = random.Random(seed)
        states = bench.trace.crashes(limit=options.limit, seed=seed, epoch=bench.model.epoch)
        for crash in _chosen(states, enough, _moments(bench.volume, bench.trace), rng):
            _verify(crash, bench.model, rng, options, tally, 1)
        for crash in bench.trace.kills():
            recovered(crash.volume, bench.model, "kill", crash.index)[0].close()
    except BaseException as exc:
        _tell(exc, f"workload {workload.__name__}, mode {mode}, seed {seed}, page size {page_size}, {options}")
        raise
    finally:
        bench.leave()
    return tally


def _moments(volume: SimVolume, trace: Trace) -> int:
    """How many moments since the beginning of the trace differ in what a crash may leave, about."""
    log = volume.log[trace.first :]
    return sum(operation.kind in ("sync", "sync_directory") for operation in log) + 1


def _chosen(states: Iterator[Crash], enough: int | None, moments: int, rng: random.Random) -> Iterator[Crash]:
    """All states, or about `enough` of them, of all moments alike."""
    if enough is None:
        yield from states
        return
    for _, moment in itertools.groupby(states, key=lambda crash: crash.index):
        found = list(moment)
        yield from rng.sample(found, min(len(found), -(-enough // moments)))


def _verify(
    crash: Crash, model: Model, rng: random.Random, options: Options, tally: Tally, depth: int
) -> None:
    tally.add(crash.volume, depth)
    deeper = depth < options.depth and rng.random() < (options.deeper if depth == 1 else 0.05)
    if deeper:
        _go_deeper(crash, model, rng, options, tally, depth)
    elif rng.random() < options.again:
        database, after = recovered(crash.volume, model, "power", crash.index)
        _write_on(crash.volume, database, after, rng)
    else:
        recovered(crash.volume, model, "power", crash.index)[0].close()


def _go_deeper(
    crash: Crash, model: Model, rng: random.Random, options: Options, tally: Tally, depth: int
) -> None:
    volume = crash.volume
    trace = volume.record()
    database, after = recovered(volume, model, "power", crash.index)
    _write_on(volume, database, after, rng)
    states = trace.crashes(limit=12, seed=rng.random(), epoch=after.epoch)
    for again in _chosen(states, options.below, _moments(volume, trace), rng):
        _verify(again, after, rng, options, tally, depth + 1)


def recovered(volume: SimVolume, model: Model, event: str, at: int | None) -> tuple[Database, Model]:
    """Open what a crash left: the content must be allowed and sound. Returns a model of what follows."""
    if PATH not in volume.paths():
        model.check({}, event, at)  # nothing was acknowledged yet
    database = open_on(volume, PATH, "c", durability=model.mode, interval=FOREVER)
    try:
        content = content_of(database)
        model.check(content, event, at)
        problems = [problem for problem in database.check() if not is_torn_slot(problem)]
        assert not problems, problems
    except BaseException:
        database.close()
        raise
    return database, model.after(content, clock=lambda: len(volume.log))


def is_torn_slot(problem: Problem) -> bool:
    """A crash may tear one of the two meta pages: that is what the other is for. The first write mends it."""
    return problem.invariant == 4 and problem.message.startswith("meta page")


def _write_on(volume: SimVolume, database: Database, model: Model, rng: random.Random) -> None:
    """A small commit, a larger one, and what deletes; then all must be there, for others too."""
    keys = [key for key in sorted(model.content) if not key.startswith(KEPT)]
    steps: list[Changes] = [
        {b"on": rng.randbytes(20), in_table("on", b"on"): rng.randbytes(20)},
        {**{rng.choice(keys): None for _ in keys[:3]}, **{b"more %d" % n: rng.randbytes(900) for n in range(8)}},
    ]
    try:
        for changes in steps:
            model.will_commit(changes)
            with database.transaction() as tx:
                make(tx, changes)
            model.acknowledged()
        database.sync()
        model.synced()
        assert content_of(database) == model.content
        assert database.check() == []
    finally:
        database.close()
    with open_on(volume, PATH, "r") as reader:
        assert content_of(reader) == model.content
        assert reader.check() == []


def _tell(exc: BaseException, what: str) -> None:
    """Add to the exception what it takes to see it again."""
    exc.args = (f"{exc.args[0] if exc.args else ''}\n{what}", *exc.args[1:])


# -- the long search


def search(wanted: int, seed: int) -> Tally:
    """Verify `wanted` distinct states, of all workloads in turn, in all modes, with seeds from `seed` on."""
    tally = Tally()
    while tally.states < wanted:
        for workload in ALL:
            mode = MODES[seed % len(MODES)] if workload is not mixture else random.Random(seed).choice(MODES)
            options = Options(limit=400, again=0.05, deeper=0.01)
            page_size = 4096 if seed % 5 else 8192
            explore(workload, mode, seed, options=options, page_size=page_size, tally=tally, enough=4000)
            if tally.states >= wanted:
                break
        seed += 1
    return tally


def _worker(job: tuple[int, int]) -> tuple[int, dict[int, int]]:
    tally = search(*job)
    return tally.states, dict(tally.by_depth)


def search_in_parallel(wanted: int, seed: int) -> tuple[int, Counter[int]]:
    """`search`, in parts of its own seeds, on all processors. How many states, and how many by depth."""
    part = 10_000
    jobs = [(min(part, wanted - begun), seed + 1000 * at) for at, begun in enumerate(range(0, wanted, part))]
    states, by_depth, started = 0, Counter[int](), time.monotonic()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for found, depths in pool.imap_unordered(_worker, jobs):
            states += found
            by_depth.update(depths)
            print(f"{states:,} states, {time.monotonic() - started:,.0f} s, by depth {dict(by_depth)}", flush=True)
    return states, by_depth


if __name__ == "__main__":
    search_in_parallel(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
