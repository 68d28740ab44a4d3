"""The tree as a reader sees it, against a sorted list; and trees that no writer of ours has made."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from durabledbm._engine.node import Overflow
from durabledbm._engine.page import LEAF, REF, seal
from durabledbm._engine.pager import Pager
from durabledbm._engine.tree import PageSet, Tree, walk
from durabledbm.errors import CorruptionError

from .pieces import Engine, leaf_refs

CONTENT = {b"%05d" % (3 * n): b"value %d" % n for n in range(5000)} | {b"00300": b"large" * 5000}


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A tree of three levels or more."""
    engine = Engine()
    engine.merge(CONTENT)
    long_keys = {b"1" * 700 + b"%d" % n: b"" for n in range(200)}
    engine.merge(long_keys)
    engine.merge(dict.fromkeys(long_keys))
    assert engine.tree.depth >= 2
    return engine


def scan(tree: Tree, start: bytes | None, stop: bytes | None, *, reverse: bool) -> list[tuple[bytes, bytes]]:
    found = []
    for keys, values, _ in tree.chunks(start, stop, reverse=reverse, with_values=True):
        assert keys
        found += zip(keys, values, strict=True)
    return found


def test_every_key_is_found_and_no_other(engine: Engine) -> None:
    for key, value in CONTENT.items():
        assert engine.tree.get(key) == value
        assert key in engine.tree
        for other in (key + b"\0", key[:-1], key[:-1] + bytes([key[-1] + 1])):
            assert (engine.tree.get(other) is not None) == (other in CONTENT)
            assert (other in engine.tree) == (other in CONTENT)


def test_a_large_value_is_found_by_its_cell(engine: Engine) -> None:
    cell = engine.tree.find(b"00300")
    assert isinstance(cell, Overflow)
    assert cell.length == 25_000


def test_an_empty_tree_holds_nothing(engine: Engine) -> None:
    tree = Tree(engine.pager)
    assert tree.find(b"") is None
    assert tree.get(b"key") is None
    assert b"key" not in tree
    assert list(leaf_refs(tree)) == []
    assert scan(tree, None, None, reverse=False) == []
    assert list(walk(tree, PageSet(2, 100))) == []


@pytest.mark.parametrize("reverse", [False, True])
def test_any_range_is_what_it_is_in_a_sorted_list(engine: Engine, reverse: bool) -> None:
    order = sorted(CONTENT)
    draw = random.Random(3)
    bounds = [
        None,
        b"",
        b"0",
        b"99999",
        b"\xff",
        *draw.sample(order, 12),
        *(key + b"\0" for key in draw.sample(order, 5)),
    ]
    for start in bounds:
        for stop in bounds:
            expected = [key for key in order if (start or b"") <= key and (stop is None or key < stop)]
            found = scan(engine.tree, start, stop, reverse=reverse)
            assert [key for key, _ in found] == (expected[::-1] if reverse else expected)
            assert all(value == CONTENT[key] for key, value in found if type(value) is not Overflow)


def test_keys_alone_are_the_same_keys(engine: Engine) -> None:
    for reverse in (False, True):
        chunks = engine.tree.chunks(b"00100", b"10000", reverse=reverse, with_values=False)
        found = [key for keys, _, _ in chunks for key in keys]
        assert found == [key for key, _ in scan(engine.tree, b"00100", b"10000", reverse=reverse)]


def test_a_range_reads_only_the_leaves_that_it_needs(engine: Engine) -> None:
    everything = len(list(leaf_refs(engine.tree)))
    assert len(list(leaf_refs(engine.tree, b"00300", b"00301"))) == 1
    assert len(list(leaf_refs(engine.tree, b"00300", b"00600"))) < 5 < everything
    for separator in engine.pager.branch(engine.tree.root).separators:
        assert len(list(leaf_refs(engine.tree, separator, separator + b"\0"))) == 1
    assert list(leaf_refs(engine.tree, reverse=True)) == list(leaf_refs(engine.tree))[::-1]


def test_a_short_scan_leaves_its_pages_in_the_cache_and_a_long_one_few(engine: Engine) -> None:
    tree = Tree(Pager(engine.disk, 4096, 1 << 24), engine.tree.root, engine.tree.depth)
    leaves = len(list(leaf_refs(tree)))
    scan(tree, None, None, reverse=False)
    assert leaves > 20
    assert sum(type(run) is bytes for run in tree.pager.nodes.young.values()) == 8
    before = tree.pager.misses
    next(tree.chunks(None, None, reverse=False, with_values=True))
    assert tree.pager.misses == before


def test_a_walk_names_every_run_once_and_parents_first(engine: Engine) -> None:
    seen = [visit.ref for visit in engine.walk()]
    assert len(seen) == len(set(seen))
    assert seen[0] == engine.tree.root
    assert engine.tree_pages()
    assert len([visit for visit in engine.walk() if visit.kind == LEAF]) == len(list(leaf_refs(engine.tree)))


# -- trees that no writer of ours has made ---------------------------------------------------------------------------


def test_a_tree_that_is_less_deep_than_said_is_refused(engine: Engine) -> None:
    tree = Tree(engine.pager, engine.tree.root, engine.tree.depth + 1)
    with pytest.raises(CorruptionError):
        tree.find(b"00300")
    with pytest.raises(CorruptionError):
        scan(tree, None, None, reverse=False)


def test_a_tree_that_is_deeper_than_said_is_refused(engine: Engine) -> None:
    tree = Tree(engine.pager, engine.tree.root, engine.tree.depth - 1)
    with pytest.raises(CorruptionError):
        tree.find(b"00300")
    with pytest.raises(CorruptionError):
        scan(tree, None, None, reverse=False)
    with pytest.raises(CorruptionError):
        list(walk(tree, PageSet(2, 100)))


def made(*leaves: dict[bytes, bytes], separators: list[bytes]) -> Tree:
    """A tree with these leaves, in this order, whatever their keys."""
    engine = Engine()
    writer = engine.writer()
    refs = [writer.leaf(sorted(leaf), [leaf[key] for key in sorted(leaf)]) for leaf in leaves]
    root = writer.branch(separators, refs)
    writer.finish()
    return Tree(engine.pager, root, 2)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_over_leaves_out_of_order_is_refused(reverse: bool) -> None:
    leaves = {b"a": b"", b"b": b""}, {b"y": b"", b"z": b""}, {b"m": b"", b"n": b""}
    tree = made(*leaves, separators=[b"c", b"za"])
    with pytest.raises(CorruptionError, match="out of order"):
        scan(tree, None, None, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_does_not_go_in_circles(reverse: bool) -> None:
    """The same leaf a thousand times, as a forged file might say: it is an error after the second."""
    engine = Engine()
    writer = engine.writer()
    leaf = writer.leaf([b"a", b"b"], [b"", b""])
    root = writer.branch([b"%04d" % n for n in range(999)], [leaf] * 1000)
    writer.finish()
    before = engine.volume.reads
    with pytest.raises(CorruptionError, match="out of order"):
        scan(Tree(engine.pager, root, 2), None, None, reverse=reverse)
    assert engine.volume.reads <= before + 3


def test_an_empty_leaf_is_refused() -> None:
    tree = made({b"a": b""}, {}, separators=[b"b"])
    with pytest.raises(CorruptionError, match="empty leaf"):
        scan(tree, None, None, reverse=False)


def test_a_branch_that_is_its_own_child_is_refused() -> None:
    """It cannot hold its own checksum; but if it could, the descent would end where the meta says."""
    engine = Engine()
    writer = engine.writer()
    leaf = writer.leaf([b"a"], [b""])
    ref = leaf
    for _ in range(5):
        ref = writer.branch([], [ref])
    writer.finish()
    for depth in (2, 3, 4, 5, 7, 1000):
        with pytest.raises(CorruptionError):
            Tree(engine.pager, ref, depth).find(b"a")
    assert Tree(engine.pager, ref, 6).find(b"a") == b""


@pytest.mark.parametrize("payload", [b"", b"\xff" * 400])
@pytest.mark.parametrize("count", [1, 50, 2**31])
def test_a_leaf_that_makes_no_sense_is_damage(payload: bytes, count: int) -> None:
    engine = Engine()
    run = seal(LEAF, 1, count, 2, 5, 4096, payload)
    engine.disk.write(2 * 4096, [run])
    tree = Tree(engine.pager, REF.pack(2, 1, int.from_bytes(run[-4:], "little")), 1)
    for use in (
        lambda: [tree.find(b"%d" % n) for n in range(256)],
        lambda: scan(tree, None, None, reverse=False),
        lambda: list(walk(tree, PageSet(2, 100))),
    ):
        assert outcome(use) in ("nothing raised", "CorruptionError on page 2")


def outcome(use: Callable[[], object]) -> str:
    try:
        use()
    except CorruptionError as exc:
        return f"CorruptionError on page {exc.page_id}"
    return "nothing raised"
