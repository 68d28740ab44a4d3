"""The merge: any batch on any tree gives the tree of the merged dict, and every page is accounted for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabledbm._engine.balance import inline_max
from durabledbm._engine.merge import MOVE, TOUCH, Change
from durabledbm._engine.node import Overflow, decode_leaf
from durabledbm._engine.page import NO_REF, REF
from durabledbm.errors import CorruptionError

from .pieces import PATH, Engine, leaf_refs

KINDS = ["small", "values", "keys", "large", "mixed"]


def key_of(draw: random.Random, kind: str) -> bytes:
    number = b"%d" % draw.randrange(draw.choice([5, 300, 3000]))
    if kind == "keys" or (kind == "mixed" and draw.random() < 0.2):
        return b"k" * draw.choice([0, 100, 900, 5000]) + number
    return draw.choice([b"", b"x"]) + number if draw.random() < 0.9 else draw.randbytes(draw.randrange(3))


def value_of(draw: random.Random, kind: str) -> bytes:
    if kind == "large" or (kind == "mixed" and draw.random() < 0.1):
        return draw.randbytes(draw.choice([2047, 2048, 2049, 5000, 40_000]))
    if kind == "values" or (kind == "mixed" and draw.random() < 0.3):
        return draw.randbytes(draw.randrange(2048))
    return draw.randbytes(draw.randrange(30))


def batch_of(draw: random.Random, kind: str, model: dict[bytes, bytes]) -> dict[bytes, Change]:
    """Changes of one of several characters: few or many, scattered or together, adding or deleting."""
    size = draw.choice([1, 1, 2, 3, 5, 40, 400])
    batch: dict[bytes, Change] = {}
    if draw.random() < 0.3 and model:
        order = sorted(model)
        at = draw.randrange(len(order))
        batch.update(dict.fromkeys(order[at : at + size]))
    deleting = draw.choice([0.1, 0.5, 0.9])
    for _ in range(size):
        key = draw.choice(sorted(model)) if model and draw.random() < 0.4 else key_of(draw, kind)
        batch[key] = None if draw.random() < deleting else value_of(draw, kind)
    if draw.random() < 0.2:
        batch.update((key, draw.choice([TOUCH, MOVE])) for key in draw.sample(sorted(batch), len(batch) // 4))
    return batch


def applied(model: dict[bytes, bytes], batch: dict[bytes, Change]) -> dict[bytes, bytes]:
    result = dict(model)
    for key, change in batch.items():
        if change is None:
            result.pop(key, None)
        elif isinstance(change, bytes):
            result[key] = change
    return result


def run(seed: int, kind: str, page_size: int, rounds: int) -> None:
    draw = random.Random(seed)
    engine = Engine(page_size, cache_size=draw.choice([0, 50_000, 1 << 24]))
    model: dict[bytes, bytes] = {}
    for _ in range(rounds):
        batch = batch_of(draw, kind, model)
        before = len(model)
        model = applied(model, batch)
        merged = engine.merge(batch, packing=draw.random() < 0.1)
        assert merged.growth == len(model) - before
        engine.assert_sound()
        assert engine.entries() == model
    assert engine.merge(dict.fromkeys(model)).growth == -len(model)
    assert (engine.tree.root, engine.tree.depth) == (NO_REF, 0)
    engine.assert_sound()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), page_size=st.sampled_from([4096, 4096, 8192, 65536]), rounds=st.integers(1, 12))
def test_a_merged_tree_holds_what_a_merged_dict_holds(kind: str, seed: int, page_size: int, rounds: int) -> None:
    run(seed, kind, page_size, rounds)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=1000, deadline=None)
@given(seed=st.integers(0, 2**32), page_size=st.sampled_from([4096, 4096, 8192, 65536]), rounds=st.integers(1, 60))
def test_a_merged_tree_holds_what_a_merged_dict_holds_in_a_long_search(
    *, kind: str, seed: int, page_size: int, rounds: int
) -> None:
    run(seed, kind, page_size, rounds)


# -- shape -------------------------------------------------------------------------------------------------------


def test_an_empty_batch_leaves_the_tree_as_it_is() -> None:
    engine = Engine()
    assert engine.merge({}) == (NO_REF, 0, 0)
    engine.merge({b"key": b"value"})
    root = engine.tree.root
    assert engine.merge({}) == (root, 1, 0)


def test_deleting_from_an_empty_tree_gives_an_empty_tree() -> None:
    engine = Engine()
    assert engine.merge({b"a": None, b"b": None}) == (NO_REF, 0, 0)


def test_one_entry_makes_one_leaf() -> None:
    engine = Engine()
    assert engine.merge({b"key": b"value"}).depth == 1
    assert engine.leaves() == [[b"key"]]


def test_a_tree_grows_and_shrinks_by_levels() -> None:
    engine = Engine()
    depths = [
        engine.merge({b"%06d" % n: b"x" * 30 for n in range(start, start + 10_000)}).depth for start in (0, 10_000)
    ]
    assert depths[-1] >= 3
    for keep in (100, 10, 1):
        engine.merge({b"%06d" % n: None for n in range(20_000) if n % (20_000 // keep)})
        engine.assert_sound()
    assert engine.tree.depth == 1
    assert engine.leaves() == [[b"000000"]]


def test_a_million_changes_may_come_at_once() -> None:
    """Fifty thousand will do here: many times what a node holds, on several levels."""
    engine = Engine()
    content = {b"%07d" % (n * 7919 % 50_000): b"value %d" % n for n in range(50_000)}
    assert engine.merge(content).growth == 50_000
    assert engine.entries() == content
    engine.assert_sound()
    assert engine.merge({key: None if int(key) % 2 else b"new" for key in content}).growth == -25_000
    engine.assert_sound()


def fill(engine: Engine) -> float:
    """How full the leaves are, of one page each."""
    leaves = engine.leaves()
    used = sum(len(key) + 5 + 20 for keys in leaves for key in keys)
    return used / (len(leaves) * 4096)


def test_leaves_are_full_after_appending_in_order() -> None:
    engine = Engine()
    for start in range(0, 20_000, 50):
        engine.merge({b"%06d" % n: b"v" * 20 for n in range(start, start + 50)})
    assert fill(engine) > 0.9


def test_leaves_are_well_filled_after_one_large_batch() -> None:
    engine = Engine()
    engine.merge({b"%06d" % n: b"v" * 20 for n in range(20_000)})
    assert fill(engine) > 0.9


def test_leaves_are_more_than_half_full_after_random_changes() -> None:
    engine = Engine()
    draw = random.Random(5)
    for _ in range(400):
        engine.merge({b"%06d" % draw.randrange(10**6): b"v" * 20 for _ in range(25)})
    assert fill(engine) > 0.5


def test_leaves_are_joined_when_their_entries_are_deleted() -> None:
    engine = Engine()
    engine.merge({b"%06d" % n: b"v" * 20 for n in range(6000)})
    draw = random.Random(5)
    doomed = draw.sample(range(6000), 5400)
    for start in range(0, 5400, 20):
        engine.merge({b"%06d" % n: None for n in doomed[start : start + 20]})
    engine.assert_sound()
    assert fill(engine) > 0.35


def test_packing_leaves_no_room() -> None:
    engine = Engine()
    draw = random.Random(5)
    for _ in range(100):
        engine.merge({b"%06d" % draw.randrange(10**6): b"v" * 20 for _ in range(50)})
    before = engine.entries()
    engine.merge(dict.fromkeys([keys[0] for keys in engine.leaves()], TOUCH), packing=True)
    assert engine.entries() == before
    engine.assert_sound()
    assert fill(engine) > 0.93


# -- large things ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_a_value_longer_than_half_a_page_has_a_run_of_its_own(page_size: int) -> None:
    engine = Engine(page_size)
    limit = inline_max(page_size)
    assert limit == page_size // 2
    engine.merge({b"at": b"x" * limit, b"over": b"y" * (limit + 1)})
    leaf = engine.pager.leaf(engine.tree.root)
    keys, values = decode_leaf(leaf)
    assert dict(zip(keys, map(type, values), strict=True)) == {b"at": bytes, b"over": Overflow}


def test_replacing_or_deleting_a_large_value_frees_its_pages() -> None:
    engine = Engine()
    engine.merge({b"a": b"x" * 100_000, b"b": b"y" * 100_000})
    engine.merge({b"a": b"z" * 100_000})
    engine.assert_sound()
    engine.merge({b"a": b"small", b"b": None})
    engine.assert_sound()
    assert len(engine.tree_pages()) == 1


@pytest.mark.parametrize("size", [5000, 70_000, 1_000_000])
def test_keys_of_any_length_are_kept_in_order(size: int) -> None:
    engine = Engine()
    content = {b"k" * size + b"%02d" % n: b"%d" % n for n in range(20)} | {b"short": b""}
    for key, value in content.items():
        engine.merge({key: value})
    engine.assert_sound()
    assert list(engine.entries().items()) == sorted(content.items())
    for key in content:
        assert engine.tree.get(key) == content[key]
    engine.merge(dict.fromkeys(list(content)[::2]))
    engine.assert_sound()


def test_a_tree_of_long_keys_does_not_become_a_list() -> None:
    """However long the separators: a branch has at least four children."""
    engine = Engine()
    engine.merge({b"k" * 6000 + b"%04d" % n: b"" for n in range(300)})
    engine.assert_sound()
    assert engine.tree.depth <= 6


# -- touching ----------------------------------------------------------------------------------------------------


def test_touching_moves_a_leaf_and_changes_nothing() -> None:
    engine = Engine()
    engine.merge({b"%04d" % n: b"v" * 20 for n in range(2000)})
    before, leaves = engine.entries(), list(leaf_refs(engine.tree))
    engine.merge({b"0700": TOUCH})
    after = list(leaf_refs(engine.tree))
    assert len([ref for ref in leaves if ref not in after]) == 1
    assert engine.entries() == before
    engine.assert_sound()


def test_touching_an_absent_key_moves_the_leaf_where_it_would_be() -> None:
    engine = Engine()
    engine.merge({b"%04d" % n: b"v" * 20 for n in range(2000)})
    before, leaves = engine.entries(), list(leaf_refs(engine.tree))
    assert engine.merge({b"0700x": TOUCH, b"0700y": MOVE}).growth == 0
    assert engine.entries() == before
    assert set(leaf_refs(engine.tree)) != set(leaves)


@pytest.mark.parametrize("others", [0, 100])
def test_moving_moves_a_large_value_and_touching_does_not(others: int) -> None:
    engine = Engine()
    engine.merge({b"large": b"x" * 50_000} | {b"%03d" % n: b"" for n in range(others)})

    def place() -> bytes:
        cell = engine.tree.find(b"large")
        assert isinstance(cell, Overflow)
        return cell.ref

    first = place()
    engine.merge({b"large": TOUCH})
    assert place() == first
    engine.merge({b"large": MOVE})
    assert REF.unpack(place())[0] != REF.unpack(first)[0]
    assert engine.tree.get(b"large") == b"x" * 50_000
    engine.assert_sound()


# -- damage ------------------------------------------------------------------------------------------------------


def test_merging_into_a_damaged_tree_is_refused() -> None:
    engine = Engine(cache_size=0)
    engine.merge({b"%04d" % n: b"v" * 20 for n in range(2000)})
    content = bytearray(engine.volume.content(PATH))
    for ref in (engine.tree.root, next(leaf_refs(engine.tree))):
        page_id = REF.unpack(ref)[0]
        content[page_id * 4096 + 100] ^= 1
        engine.volume.put(PATH, bytes(content))
        with pytest.raises(CorruptionError) as caught:
            engine.merge({b"0000": b"new"})
        assert caught.value.page_id == page_id
        content[page_id * 4096 + 100] ^= 1
