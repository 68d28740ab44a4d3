"""ChangeSet: changes in memory, savepoints and views, against copies of a dict."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabledbm._engine.changeset import CHANGE_MEMORY, ChangeSet, Savepoint
from durabledbm._engine.view import Layer, View

from .pieces import Engine

IN_TREE = {b"%02d" % n: b"tree" for n in range(0, 60, 2)} | {b"30": b"large" * 1000}


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine()
    engine.merge(IN_TREE)
    return engine


def base_of(engine: Engine, layer: dict[bytes, bytes | None] | None = None) -> View:
    return View(engine.tree, () if layer is None else (Layer(layer),))


def work_on(engine: Engine) -> ChangeSet:
    return ChangeSet(base_of(engine), lambda: len(IN_TREE))


def applied(work: ChangeSet, base: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """What committing the work would give."""
    result: dict[bytes, bytes | None] = {} if work.cleared else dict(base)
    result.update(work.as_dict())
    return {key: value for key, value in result.items() if value is not None}


@dataclass
class Model:
    """ChangeSet, and what it must say."""

    draw: random.Random
    work: ChangeSet
    base: dict[bytes, bytes]
    now: dict[bytes, bytes]
    points: list[tuple[Savepoint, dict[bytes, bytes], bool]] = field(default_factory=list)
    views: list[tuple[View, dict[bytes, bytes]]] = field(default_factory=list)
    iterators: list[tuple[object, list[tuple[bytes, bytes]]]] = field(default_factory=list)

    def key(self) -> bytes:
        return b"%02d" % self.draw.randrange(64)

    def step(self) -> None:
        draw, work, now = self.draw, self.work, self.now
        choice = draw.random()
        if choice < 0.3:
            key, value = self.key(), b"%d" % draw.randrange(1000)
            work.put(key, value)
            now[key] = value
        elif choice < 0.5:
            key = self.key()
            work.delete(key)
            now.pop(key, None)
        elif choice < 0.55:
            batch: dict[bytes, bytes | None] = {
                self.key(): draw.choice([None, b"%d" % draw.randrange(1000)]) for _ in range(draw.randrange(8))
            }
            work.add(batch, 10)
            for key, change in batch.items():
                if change is None:
                    now.pop(key, None)
                else:
                    now[key] = change
        elif choice < 0.57:
            work.clear()
            now.clear()
        elif choice < 0.65:
            assert work.count() == len(now)
        elif choice < 0.72:
            self.views.append((work.view(), dict(now)))
        elif choice < 0.78:
            view, items = work.view(), sorted(now.items())
            iterator = view.items()
            for _ in range(min(draw.randrange(4), len(items))):
                assert next(iterator) == items.pop(0)
            self.iterators.append((iterator, items))
        elif choice < 0.86:
            self.points.append((work.savepoint(), dict(now), work.cleared))
        elif choice < 0.95 and self.points:
            point, before, cleared = self.points.pop()
            if draw.random() < 0.5:
                work.release(point)
            else:
                work.roll_back(point)
                now.clear()
                now.update(before)
                assert work.cleared == cleared
        elif choice > 0.98 and not self.points:
            work.reset()
            now.clear()
            now.update(self.base)
            assert work.size == 0
        self.check()

    def check(self) -> None:
        for number in range(64):
            key = b"%02d" % number
            assert self.work.get(key) == self.now.get(key)
        assert applied(self.work, self.base) == self.now
        assert self.work.has_savepoints == bool(self.points)

    def finish(self) -> None:
        while self.points:
            self.work.release(self.points.pop()[0])
        self.check()
        assert self.work.count() == len(self.now)
        assert dict(self.work.view().items()) == self.now
        for view, expected in self.views:
            assert dict(view.items()) == expected
        for iterator, expected_rest in self.iterators:
            assert list(iterator) == expected_rest  # type: ignore[call-overload]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 80), layered=st.booleans())
def test_work_says_what_a_dict_says(engine: Engine, *, seed: int, steps: int, layered: bool) -> None:
    draw = random.Random(seed)
    layer: dict[bytes, bytes | None] | None = {b"05": b"meta", b"04": None, b"62": b"meta"} if layered else None
    base = {**IN_TREE, b"05": b"meta", b"62": b"meta"} if layered else dict(IN_TREE)
    if layered:
        del base[b"04"]
    model = Model(draw, ChangeSet(base_of(engine, layer), lambda: len(base)), base, dict(base))
    for _ in range(steps):
        model.step()
    model.finish()


def test_a_view_that_was_handed_out_does_not_change(engine: Engine) -> None:
    work = work_on(engine)
    work.put(b"00", b"first")
    view = work.view()
    work.put(b"00", b"second")
    work.delete(b"02")
    assert view.get(b"00") == b"first"
    assert view.get(b"02") == b"tree"
    assert work.get(b"00") == b"second"


def test_an_unchanged_work_has_no_changes(engine: Engine) -> None:
    work = work_on(engine)
    assert work.as_dict() == {}
    assert work.size == 0
    assert work.count() == len(IN_TREE)
    assert dict(work.view().items()) == IN_TREE


def test_layers_stay_few_however_often_a_view_is_handed_out(engine: Engine) -> None:
    """Else every look-up would get slower with every iteration that was begun."""
    work = work_on(engine)
    for n in range(2000):
        work.put(b"%04d" % n, b"")
        work.view()
    assert len(work.layers) < 20
    assert work.count() == len(IN_TREE) + 2000


def test_size_counts_what_changes_take(engine: Engine) -> None:
    work = work_on(engine)
    work.put(b"key", b"value")
    assert work.size == len(b"keyvalue") + CHANGE_MEMORY
    point = work.savepoint()
    work.delete(b"other")
    assert work.size == len(b"keyvalueother") + 2 * CHANGE_MEMORY
    work.roll_back(point)
    assert work.size == len(b"keyvalue") + CHANGE_MEMORY


def test_going_on_from_a_base_that_contains_the_changes(engine: Engine) -> None:
    """What a spill does: the changes are in a tree now, and savepoints taken before can still be returned to."""
    work = work_on(engine)
    work.put(b"99", b"one")
    point = work.savepoint()
    work.delete(b"00")
    changed = Engine()
    content = {**IN_TREE, b"99": b"one"}
    del content[b"00"]
    changed.merge(content)
    work.rebase(View(changed.tree), len(content))
    assert (work.size, work.as_dict()) == (0, {})
    assert dict(work.view().items()) == content
    assert work.count() == len(content)
    work.put(b"98", b"two")
    assert work.count() == len(content) + 1
    work.roll_back(point)
    assert dict(work.view().items()) == {**IN_TREE, b"99": b"one"}
    assert work.count() == len(IN_TREE) + 1


def test_clearing_and_rolling_back(engine: Engine) -> None:
    work = work_on(engine)
    work.put(b"99", b"one")
    point = work.savepoint()
    work.clear()
    assert work.count() == 0
    assert work.cleared
    work.put(b"98", b"two")
    assert dict(work.view().items()) == {b"98": b"two"}
    work.roll_back(point)
    assert not work.cleared
    assert dict(work.view().items()) == {**IN_TREE, b"99": b"one"}


def test_clearing_and_releasing(engine: Engine) -> None:
    work = work_on(engine)
    point = work.savepoint()
    work.clear()
    work.put(b"98", b"two")
    work.release(point)
    assert work.cleared
    assert work.as_dict() == {b"98": b"two"}


def test_resetting_forgets_savepoints_that_nobody_released(engine: Engine) -> None:
    work = work_on(engine)
    work.put(b"99", b"one")
    work.savepoint()
    work.put(b"98", b"two")
    work.reset()
    assert not work.has_savepoints
    assert dict(work.view().items()) == IN_TREE


def test_releasing_or_returning_to_a_savepoint_ends_those_made_after_it(engine: Engine) -> None:
    for back in (False, True):
        work = work_on(engine)
        work.put(b"99", b"one")
        outer = work.savepoint()
        assert work.unchanged_since(outer)
        work.put(b"98", b"two")
        point = work.savepoint()
        work.put(b"97", b"three")
        inner = work.savepoint()
        work.view()
        work.put(b"96", b"four")
        work.savepoint()
        assert not work.unchanged_since(inner)
        if back:
            work.roll_back(point)
        else:
            work.release(point)
        left = {b"99": b"one", b"98": b"two"} | ({} if back else {b"97": b"three", b"96": b"four"})
        assert dict(work.view().items()) == {**IN_TREE, **left}
        assert work.has_savepoints
        work.put(b"95", b"five")
        work.roll_back(outer)
        assert dict(work.view().items()) == {**IN_TREE, b"99": b"one"}
        assert not work.has_savepoints
