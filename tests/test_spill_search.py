"""Transactions that spill, beside everything that other threads may do meanwhile: nothing acknowledged is touched.

One thread is in a transaction whose memory is tiny, with savepoints, iterators and rollbacks; between its steps other
threads sync, flush, take snapshots, read, check, and fork. After each step every page is verified, and what the medium
and a killed process would leave is compared with what was acknowledged. The steps are random and repeatable.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from crashes import is_torn_slot
from crew import Crew
from model import MODES
from simdisk import SimVolume

import durabledbm
from durabledbm import transaction
from durabledbm.database import open_on

PATH = "/db"

Content = dict[bytes, bytes]


class Undo(Exception):
    """Rolls a block back."""


class Search:
    """One handle, what it must hold, and what must be on the medium."""

    def __init__(self, mode: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.mode = mode
        self.volume = SimVolume()
        cache_size = self.rng.choice([0, 1 << 16, 1 << 20])
        self.db = open_on(
            self.volume, PATH, "c", durability=mode, interval=3600.0, timeout=5.0, cache_size=cache_size
        )
        self.committed: Content = {}
        """What was acknowledged."""
        self.synced: list[Content] = [{}]
        """What the medium may hold: the last that was synced, and whatever was acknowledged after it."""
        self.snapshots: list[tuple[durabledbm.Snapshot, Content]] = []

    def close(self) -> None:
        for snapshot, content in self.snapshots:
            assert dict(snapshot.items()) == content
            snapshot.close()
        self.db.close()
        with open_on(self.volume, PATH) as again:
            assert dict(again.items()) == self.committed
            assert again.check() == []

    def acknowledge(self, content: Content) -> None:
        self.committed = dict(content)
        self.synced = [self.committed] if self.mode == "full" else [*self.synced, self.committed]

    def entries(self) -> Content:
        rng = self.rng
        count = rng.choice([1, 3, 40])
        return {b"%03d" % rng.randrange(300): rng.randbytes(rng.choice([5, 60, 300, 5000])) for _ in range(count)}

    # -- what other threads do

    def aside(self) -> None:
        """Something that another thread does between two steps of the transaction."""
        act = self.rng.choice([self.sync, self.sync, self.read, self.snapshot, self.drop, self.verify, self.survive])
        Crew().start(act).result()

    def sync(self) -> None:
        before = self.committed
        self.db.sync()
        self.synced = self.synced[self.synced.index(before) :]

    def read(self) -> None:
        assert dict(self.db.items()) == self.committed
        assert len(self.db) == len(self.committed)

    def snapshot(self) -> None:
        self.snapshots.append((self.db.snapshot(), self.committed))

    def drop(self) -> None:
        if self.snapshots:
            snapshot, content = self.snapshots.pop(self.rng.randrange(len(self.snapshots)))
            assert dict(snapshot.items()) == content
            snapshot.close()

    def verify(self) -> None:
        assert self.db.check() == []

    def survive(self) -> None:
        """A power failure now, with or without what was not synced, and a kill."""
        for state in islice(self.volume.crash_states(limit=3), 3):
            with open_on(state, PATH) as survivor:
                assert dict(survivor.items()) in self.synced
                assert [problem for problem in survivor.check() if not is_torn_slot(problem)] == []
        if self.mode in ("full", "process"):
            with open_on(self.volume.kill_state(), PATH) as survivor:
                assert dict(survivor.items()) == self.committed

    # -- what the thread itself does

    def commit(self) -> None:
        content = dict(self.committed)
        with contextlib.suppress(Undo), self.db.transaction():
            self.block(content, 0)
            self.acknowledge(content)

    def block(self, content: Content, depth: int) -> None:
        """Some steps of a block, then perhaps its end by an exception."""
        iterators: list[tuple[Iterator[Any], list[Any]]] = []
        for _ in range(self.rng.choice([2, 6, 15])):
            choice = self.rng.random()
            if choice < 0.45:
                changes = self.entries()
                self.db.update(changes)
                content.update(changes)
            elif choice < 0.55:
                key = b"%03d" % self.rng.randrange(300)
                assert self.db.pop(key, None) == content.pop(key, None)
            elif choice < 0.57:
                self.db.clear()
                content.clear()
            elif choice < 0.65 and depth < 3:
                inner = dict(content)
                with contextlib.suppress(Undo), self.db.transaction():
                    self.block(inner, depth + 1)
                    content.clear()
                    content.update(inner)
            elif choice < 0.7:
                iterator = iter(self.db.items())
                iterators.append((iterator, sorted(content.items())))
            elif choice < 0.75 and iterators:
                iterator, expected = iterators.pop()
                assert list(iterator) == expected
            else:
                self.aside()
        for iterator, expected in iterators:
            assert list(iterator) == expected
        assert dict(self.db.items()) == content
        if self.rng.random() < 0.35:
            raise Undo

    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.5:
            self.commit()
        elif choice < 0.75:
            changes = self.entries()
            self.db.update(changes)
            self.acknowledge({**self.committed, **changes})
        elif choice < 0.8:
            self.db.reorganize()
        elif choice < 0.85:
            self.db.clear()
            self.acknowledge({})
        else:
            self.aside()
        assert dict(self.db.items()) == self.committed
        self.verify()


def search(mode: str, seed: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Search(mode, seed)
    monkeypatch.setattr(transaction, "SPILL_SIZE", made.rng.choice([700, 4000, 30_000]))
    for _ in range(steps):
        made.step()
    made.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_spills_beside_other_threads(mode: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    search(mode, seed, 12, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(100, 400))
def test_many_spills_beside_other_threads(mode: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    search(mode, seed, 25, monkeypatch)
