"""Views: layers of changes over a tree, against dicts."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabledbm._engine.node import Overflow
from durabledbm._engine.view import Layer, Scope, View
from durabledbm.errors import ClosedError, CorruptionError

from .pieces import PATH, Engine

IN_TREE = {b"%03d" % (2 * n): b"tree" for n in range(400)} | {b"100": b"large" * 2000}


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine()
    engine.merge(IN_TREE)
    return engine


keys = st.one_of(st.integers(0, 820).map(lambda n: b"%03d" % n), st.binary(max_size=2))
layers = st.lists(st.dictionaries(keys, st.one_of(st.none(), st.binary(max_size=5)), max_size=30), max_size=4)
bounds = st.one_of(st.none(), keys)


def content(changes: list[Mapping[bytes, bytes | None]], tree: Mapping[bytes, bytes] = IN_TREE) -> dict[bytes, bytes]:
    """What a view of these layers, newest first, holds."""
    result: dict[bytes, bytes | None] = dict(tree)
    for layer in reversed(changes):
        result.update(layer)
    return {key: value for key, value in result.items() if value is not None}


@settings(max_examples=80, deadline=None)
@given(changes=layers, start=bounds, stop=bounds, reverse=st.booleans())
def test_a_view_is_the_dict_of_its_tree_and_layers(
    engine: Engine, *, changes: list[dict[bytes, bytes | None]], start: bytes | None, stop: bytes | None, reverse: bool
) -> None:
    view = View(engine.tree, tuple(map(Layer, changes)))
    expected = content(changes)
    for key in [*expected, *IN_TREE, b"", b"\xff"]:
        assert view.get(key) == expected.get(key)
    order = sorted(key for key in expected if (start or b"") <= key and (stop is None or key < stop))
    if reverse:
        order.reverse()
    assert list(view.keys(start, stop, reverse=reverse)) == order
    assert list(view.items(start, stop, reverse=reverse)) == [(key, expected[key]) for key in order]


def test_layers_that_delete_everything_leave_nothing(engine: Engine) -> None:
    view = View(engine.tree, (Layer(dict.fromkeys(IN_TREE)),))
    assert list(view.keys()) == list(view.items()) == list(view.items(reverse=True)) == []
    over = View(engine.tree, (Layer({b"100": b"again"}), Layer(dict.fromkeys(IN_TREE))))
    assert list(over.items()) == [(b"100", b"again")]


def test_changes_before_between_and_after_all_leaves_are_seen(engine: Engine) -> None:
    changes = {b"": b"first", b"\xff": b"last", b"401": b"between"}
    view = View(engine.tree, (Layer(changes),))
    for reverse in (False, True):
        found = list(view.items(reverse=reverse))
        assert found == sorted(content([changes]).items(), reverse=reverse)


def test_a_view_without_a_tree_is_its_layers() -> None:
    view = View(Engine().tree, (Layer({b"b": None, b"c": b"3"}), Layer({b"b": b"2", b"a": b"1"})))
    assert list(view.items()) == [(b"a", b"1"), (b"c", b"3")]
    assert list(view.items(reverse=True)) == [(b"c", b"3"), (b"a", b"1")]
    assert (view.find(b"a"), view.find(b"b"), view.find(b"d")) == (b"1", None, None)


def test_a_large_value_is_found_as_a_cell_and_read_as_a_value(engine: Engine) -> None:
    view = View(engine.tree, (Layer({b"other": b""}),))
    assert isinstance(view.find(b"100"), Overflow)
    assert view.get(b"100") == dict(view.items())[b"100"] == b"large" * 2000


def test_a_scan_of_keys_reads_no_large_value(engine: Engine) -> None:
    list(View(engine.tree).items())
    with_values = engine.volume.reads
    list(View(engine.tree).items())
    cost_of_items = engine.volume.reads - with_values
    list(View(engine.tree).keys())
    assert engine.volume.reads - with_values - cost_of_items < cost_of_items


def test_the_keys_of_a_layer_are_sorted_once() -> None:
    layer = Layer({b"b": b"", b"a": None})
    assert layer.sorted_keys() == [b"a", b"b"]
    assert layer.sorted_keys() is layer.sorted_keys()


@pytest.mark.parametrize("method", ["items", "keys"])
@pytest.mark.parametrize("started", [0, 1, 150])
def test_an_iteration_ends_when_what_it_depends_on_has_ended(engine: Engine, method: str, started: int) -> None:
    life = Scope()
    iterator = getattr(View(engine.tree, (Layer({b"000": b"x"}),)), method)(scope=life)
    for _ in range(started):
        next(iterator)
    life.end()
    with pytest.raises(ClosedError):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def test_after_the_end_damage_is_nobodys_business() -> None:
    """The pages of a transaction that is over may hold anything."""
    for ended in (False, True):
        engine = Engine(cache_size=0)
        engine.merge(IN_TREE)
        life = Scope()
        iterator = View(engine.tree).items(scope=life)
        engine.volume.put(PATH, bytes(len(engine.volume.content(PATH))))
        if ended:
            life.end()
        with pytest.raises(ClosedError if ended else CorruptionError):
            next(iterator)


class Pin:
    """Counts how many of its kind are gone."""

    released = 0

    def __del__(self) -> None:
        Pin.released += 1


@pytest.mark.parametrize("method", ["items", "keys"])
def test_an_iterator_keeps_its_pin_for_as_long_as_it_is(engine: Engine, method: str) -> None:
    for advance in (0, 1, 150):
        before = Pin.released
        iterator = getattr(View(engine.tree), method)(pin=Pin())
        for _ in range(advance):
            next(iterator)
        assert Pin.released == before
        del iterator
        assert Pin.released == before + 1


@pytest.mark.parametrize("method", ["items", "keys"])
def test_an_iterator_that_is_through_or_has_failed_lets_go_of_its_pin(method: str) -> None:
    engine = Engine(cache_size=0)
    engine.merge(IN_TREE)
    before = Pin.released
    iterator = getattr(View(engine.tree), method)(pin=Pin())
    list(iterator)
    assert Pin.released == before + 1
    life = Scope()
    ended = getattr(View(engine.tree), method)(scope=life, pin=Pin())
    next(ended)
    life.end()
    with pytest.raises(ClosedError) as closed:
        next(ended)
    assert Pin.released == before + 2
    damaged = getattr(View(engine.tree), method)(pin=Pin())
    engine.volume.put(PATH, bytes(len(engine.volume.content(PATH))))
    with pytest.raises(CorruptionError) as corrupt:
        next(damaged)
    assert Pin.released == before + 3
    assert closed.value.__traceback__ is not None  # it is still there, and so are the frames that it passed
    assert corrupt.value.__traceback__ is not None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ["items", "keys"])
def test_wherever_an_iterator_is_when_life_ends_it_hands_out_nothing_more(
    engine: Engine, method: str, reverse: bool
) -> None:
    changes = {b"000": b"x", b"100": None, b"9": b"after all leaves"}
    view = View(engine.tree, (Layer(changes),))
    for started in range(len(content([changes])) + 1):
        life = Scope()
        iterator = getattr(view, method)(reverse=reverse, scope=life)
        for _ in range(started):
            next(iterator)
        life.end()
        with pytest.raises(ClosedError):
            next(iterator)
        assert list(iterator) == []


def test_the_iterators_of_one_life_end_together_and_those_of_another_go_on(engine: Engine) -> None:
    lives = Scope(), Scope()
    mine = [View(engine.tree).items(scope=lives[0]), View(engine.tree).keys(b"300", scope=lives[0])]
    other = View(engine.tree).keys(scope=lives[1])
    for iterator in (*mine, other):
        next(iterator)
    lives[0].end()
    for iterator in mine:
        with pytest.raises(ClosedError):
            next(iterator)
    assert list(other) == sorted(IN_TREE)[1:]


def test_life_holds_on_to_nothing_of_an_iterator_that_is_gone(engine: Engine) -> None:
    life = Scope()
    for advance in (0, 1, 150, len(IN_TREE) + 1):
        iterator = View(engine.tree).items(scope=life)
        for _ in range(advance):
            next(iterator, None)
        del iterator
        assert life._lists == set()


def test_large_values_are_read_one_at_a_time_when_it_is_their_turn() -> None:
    engine = Engine()
    engine.merge({b"%d" % n: b"large" * 2000 for n in range(5)})
    list(View(engine.tree).keys())
    reads = []
    for _ in View(engine.tree).items():
        reads.append(engine.volume.reads)
    assert len(set(reads)) == 5
    assert len({after - before for before, after in zip(reads, reads[1:], strict=False)}) == 1


def test_an_iterator_gives_the_entries_themselves_not_one_that_changes(engine: Engine) -> None:
    entries = list(View(engine.tree).items())
    assert len({id(entry) for entry in entries}) == len(IN_TREE)
    iterator = View(engine.tree).items()
    first = next(iterator)
    kept = tuple(first)
    next(iterator)
    assert first == kept


def test_many_layers_agree_with_one() -> None:
    draw = random.Random(1)
    engine = Engine()
    engine.merge(IN_TREE)
    changes = [
        Layer({b"%03d" % draw.randrange(820): draw.choice([None, b"%d" % n]) for _ in range(draw.randrange(60))})
        for n in range(20)
    ]
    folded = Layer()
    for layer in reversed(changes):
        folded.update(layer)
    many, one = View(engine.tree, tuple(changes)), View(engine.tree, (folded,))
    assert list(many.items()) == list(one.items())
    assert list(many.items(b"100", b"300", reverse=True)) == list(one.items(b"100", b"300", reverse=True))
