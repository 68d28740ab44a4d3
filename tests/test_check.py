"""check(): every invariant, broken on purpose in an otherwise whole file, is reported by its number and place."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from engine.pieces import DATABASE_ID, PATH, Engine, empty_file
from simdisk import SimVolume, disk_error

import durabledbm
from durabledbm._engine.meta import META_SIZE, Meta, encode_meta
from durabledbm._engine.node import Overflow
from durabledbm._engine.page import BRANCH, LEAF, REF, SPACE, seal
from durabledbm._engine.page_writer import PageWriter
from durabledbm._engine.value_writer import stored
from durabledbm.database import open_on
from durabledbm.maintenance.check import Problem


class Forger(Engine):
    """Makes files that no writer of ours would."""

    def __init__(self) -> None:
        super().__init__()
        self.pen: PageWriter = self.writer()

    def leaf(self, *keys: bytes, value: bytes = b"") -> bytes:
        """A leaf with these keys, in this order, each with the same value."""
        return self.pen.leaf(list(keys), [value] * len(keys))

    def branch(self, separators: list[bytes], *refs: bytes) -> bytes:
        return self.pen.branch(separators, list(refs))

    def finish(self, root: bytes, depth: int, count: int, *, older: Meta | None = None, **fields: Any) -> list[Problem]:
        """Make the file a database with this tree, and check it."""
        self.pen.release_place()
        self.space.save(self.txid, self.pen.write)
        self.pen.finish()
        values: dict[str, Any] = {
            "txid": self.txid, "page_size": 4096, "database_id": DATABASE_ID, "page_count": self.space.pages.page_count,
            "entry_count": count, "tree_count": count, "root": root, "depth": depth, "space": self.space.ref,
            "steady_txid": self.txid, "steady": True, **fields,
        }  # fmt: skip
        newest = Meta(**values)
        self.disk.write(0, [encode_meta(newest), encode_meta(newest if older is None else older)])
        return check(self.volume)


def check(volume: SimVolume) -> list[Problem]:
    with open_on(volume, PATH, "r") as db:
        return db.check()


def numbers(problems: list[Problem]) -> set[int]:
    return {problem.invariant for problem in problems}


def page_of(ref: bytes) -> int:
    return int(REF.unpack(ref)[0])


@pytest.fixture
def forger() -> Forger:
    return Forger()


def test_a_forged_file_without_a_flaw_has_no_problems(forger: Forger) -> None:
    leaves = forger.leaf(b"a", b"b"), forger.leaf(b"m", b"n"), forger.leaf(b"y")
    assert forger.finish(forger.branch([b"c", b"x"], *leaves), 2, 5) == []


def test_a_new_and_an_empty_file_have_no_problems() -> None:
    assert check(SimVolume({PATH: empty_file()})) == []
    assert check(SimVolume({PATH: b""})) == []


# -- 1: every page has one owner ---------------------------------------------------------------------------------


def test_a_page_that_nobody_knows_of_is_reported(forger: Forger) -> None:
    root = forger.leaf(b"a")
    lost = forger.leaf(b"lost")
    problems = forger.finish(root, 1, 1)
    assert problems == [Problem(1, "1 page neither in use nor free", page_of(lost))]


def test_a_page_in_use_that_is_listed_as_free_is_reported(forger: Forger) -> None:
    root = forger.leaf(b"a")
    forger.pen.release_place()
    forger.space.free(page_of(root), 1)
    problems = forger.finish(root, 1, 1)
    assert [problem[::2] for problem in problems] == [(1, page_of(root))]


def test_a_run_that_two_parents_point_at_is_reported(forger: Forger) -> None:
    large = stored(forger.pen, b"a", b"x" * 5000)
    root = forger.pen.leaf([b"a", b"b"], [large, large])
    problems = forger.finish(root, 1, 2)
    assert (1, page_of(large.ref)) in [problem[::2] for problem in problems]


# -- 2: order and depth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(b"b", b"a"), (b"a", b"a"), (b"a", b"c", b"b")])
def test_keys_out_of_order_in_a_leaf_are_reported(forger: Forger, keys: tuple[bytes, ...]) -> None:
    root = forger.leaf(*keys)
    problems = forger.finish(root, 1, len(keys))
    assert [problem[::2] for problem in problems] == [(2, page_of(root))]


def test_keys_out_of_order_between_leaves_are_reported(forger: Forger) -> None:
    leaves = forger.leaf(b"a", b"n"), forger.leaf(b"m", b"z")
    problems = forger.finish(forger.branch([b"m"], *leaves), 2, 4)
    assert numbers(problems) == {2}
    assert {problem.page_id for problem in problems} == set(map(page_of, leaves))


def test_keys_beyond_their_separators_are_reported(forger: Forger) -> None:
    leaves = forger.leaf(b"a"), forger.leaf(b"m")
    problems = forger.finish(forger.branch([b"n"], *leaves), 2, 2)
    assert problems == [Problem(2, "keys lie outside of the parent's separators", page_of(leaves[1]))]


def test_separators_out_of_order_are_reported(forger: Forger) -> None:
    leaves = forger.leaf(b"a"), forger.leaf(b"m"), forger.leaf(b"z")
    root = forger.branch([b"n", b"c"], *leaves)
    problems = forger.finish(root, 2, 3)
    assert (2, page_of(root)) in [problem[::2] for problem in problems]


def test_an_empty_leaf_is_reported(forger: Forger) -> None:
    leaves = forger.leaf(b"a"), forger.leaf()
    problems = forger.finish(forger.branch([b"m"], *leaves), 2, 1)
    assert problems == [Problem(2, "an empty leaf", page_of(leaves[1]))]


def test_a_root_without_depth_is_reported(forger: Forger) -> None:
    root = forger.leaf(b"a")
    problems = forger.finish(root, 0, 0)
    assert 2 in numbers(problems)


def test_leaves_at_different_depths_are_reported(forger: Forger) -> None:
    leaf = forger.leaf(b"z")
    problems = forger.finish(forger.branch([b"m"], forger.branch([], forger.leaf(b"a")), leaf), 3, 2)
    assert (3, page_of(leaf)) in [problem[::2] for problem in problems]


# -- 3: what a parent says of a run ------------------------------------------------------------------------------


def damaged(forger: Forger, page_id: int, offset: int = 500) -> list[Problem]:
    content = bytearray(forger.volume.content(PATH))
    content[page_id * 4096 + offset] ^= 1
    forger.volume.put(PATH, bytes(content))
    return check(forger.volume)


@pytest.mark.parametrize("kind", ["leaf", "branch", "large value", "space"])
def test_a_damaged_run_is_reported(forger: Forger, kind: str) -> None:
    large = stored(forger.pen, b"large", b"x" * 20_000)
    leaves = forger.leaf(b"a", b"b"), forger.pen.leaf([b"large", b"n"], [large, b""])
    root = forger.branch([b"c"], *leaves)
    assert forger.finish(root, 2, 4) == []
    places = {"leaf": leaves[0], "branch": root, "large value": large.ref, "space": forger.space.ref}
    page = page_of(places[kind])
    problems = damaged(forger, page, 4096 + 7 if kind == "large value" else 500)
    assert (3, page) in [problem[::2] for problem in problems]


def test_a_damaged_map_is_reported(forger: Forger) -> None:
    """The run that says which pages are free, not the one that points at it."""
    root = forger.leaf(b"a")
    forger.space.pages.take_run(20)
    forger.space.free(10, 5)
    forger.space.save(1, forger.pen.write, fold=True)
    forger.finish(root, 1, 1)
    maps = [ref for ref in forger.space.own_runs() if ref != forger.space.ref]
    problems = damaged(forger, page_of(maps[0]))
    assert (3, page_of(maps[0])) in [problem[::2] for problem in problems]


def test_a_run_that_was_written_after_its_parent_is_reported(forger: Forger) -> None:
    forger.pen.txid += 1
    leaf, large = forger.leaf(b"a"), stored(forger.pen, b"large", b"x" * 5000)
    forger.pen.txid -= 1
    root = forger.branch([b"b"], leaf, forger.pen.leaf([b"large"], [large]))
    problems = forger.finish(root, 2, 2)
    assert {problem[::2] for problem in problems} == {(3, page_of(leaf)), (3, page_of(large.ref))}


def test_a_large_value_of_another_key_is_reported(forger: Forger) -> None:
    large = stored(forger.pen, b"one key", b"x" * 5000)
    problems = forger.finish(forger.pen.leaf([b"another"], [large]), 1, 1)
    assert [problem[::2] for problem in problems] == [(3, page_of(large.ref))]


def written(forger: Forger, kind: int, count: int, payload: bytes) -> bytes:
    """The ref of a run whose checksum is right, and whose content makes no sense."""
    forger.pen.release_place()
    page_id, _ = forger.space.pages.take_run(1)
    return forger.pen.write(seal(kind, 0, count, page_id, forger.pen.txid, 4096, payload), page_id)


@pytest.mark.parametrize("count", [1, 100, 2**31])
@pytest.mark.parametrize("payload", [b"", b"\xff" * 1000])
@pytest.mark.parametrize(("kind", "depth"), [(LEAF, 1), (BRANCH, 2)])
def test_a_node_that_makes_no_sense_is_reported(
    *, forger: Forger, kind: int, depth: int, payload: bytes, count: int
) -> None:
    root = written(forger, kind, count, payload)
    problems = forger.finish(root, depth, 0)
    assert numbers(problems) & {2, 3, 4, 5}


def test_free_space_that_makes_no_sense_is_reported(forger: Forger) -> None:
    root = forger.leaf(b"a")
    problems = forger.finish(root, 1, 1, space=written(forger, SPACE, 0, b"\xff" * 1000))
    assert 3 in numbers(problems)


# -- 4: the meta pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 1])
def test_a_damaged_meta_page_is_reported(slot: int) -> None:
    volume = SimVolume({PATH: empty_file()})
    content = bytearray(volume.content(PATH))
    content[slot * META_SIZE + 100] ^= 1
    volume.put(PATH, bytes(content))
    assert check(volume) == [Problem(4, f"meta page {slot} is damaged")]


def test_a_meta_page_of_another_database_is_reported(forger: Forger) -> None:
    other = Meta(1, 4096, b"another database", 2, steady_txid=1, steady=True)
    problems = forger.finish(forger.leaf(b"a"), 1, 1, older=other)
    assert Problem(4, "meta page 1 belongs to another database") in problems


def test_an_older_meta_page_than_the_commit_before_is_reported(forger: Forger) -> None:
    forger.txid = 9
    other = Meta(5, 4096, DATABASE_ID, 2, steady_txid=5, steady=True)
    problems = forger.finish(forger.leaf(b"a"), 1, 1, older=other, steady_txid=8)
    assert problems == [Problem(4, "the older meta page is of commit 5, not 8")]


def test_a_durable_commit_newer_than_the_newest_is_reported(forger: Forger) -> None:
    problems = forger.finish(forger.leaf(b"a"), 1, 1, steady_txid=50)
    assert "the meta page names a durable commit newer than itself" in [problem.message for problem in problems]
    assert numbers(problems) == {4}


@pytest.mark.parametrize("page_id", [0, 1, 10**6, 2**62])
def test_a_ref_to_outside_of_the_file_is_reported(forger: Forger, page_id: int) -> None:
    outside = REF.pack(page_id, 1, 5)
    problems = forger.finish(forger.branch([b"m"], forger.leaf(b"a"), outside), 2, 1)
    assert [problem[::2] for problem in problems] == [(4, page_id)]


def test_a_large_value_outside_of_the_file_is_reported(forger: Forger) -> None:
    cell = Overflow.make(REF.pack(10**6, 5, 5), 10_000)
    problems = forger.finish(forger.pen.leaf([b"a"], [cell]), 1, 1)
    assert [problem[::2] for problem in problems] == [(4, 10**6)]


# -- 5: counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"tree_count": 3}, 2),
        ({"entry_count": 3}, 1),
        ({"changes": {b"new": b""}}, 1),
        ({"changes": {b"a": None}}, 1),
        ({"changes": {b"new": b"", b"a": None}}, 0),
        ({"changes": {b"new": b""}, "entry_count": 3}, 0),
        ({"changes": {b"absent": None}}, 0),
    ],
)
def test_counts_that_are_wrong_are_reported(forger: Forger, fields: dict[str, Any], messages: int) -> None:
    """The entries of the tree, and those of the database: with the changes in the meta page."""
    problems = forger.finish(forger.leaf(b"a", b"b"), 1, 2, **fields)
    assert len(problems) == messages
    assert numbers(problems) <= {5}


def test_what_cannot_be_counted_is_said_once(forger: Forger) -> None:
    root = forger.leaf(b"a", b"b")
    forger.finish(root, 1, 2, changes={b"a": b"again"})
    problems = damaged(forger, page_of(root))
    assert [problem.page_id for problem in problems if problem.invariant == 3] == [page_of(root)]


# -- the rest ----------------------------------------------------------------------------------------------------


def test_a_problem_reads_well() -> None:
    assert str(Problem(3, "what is wrong", 7)) == "[3] page 7: what is wrong"
    assert str(Problem(5, "what is wrong")) == "[5] what is wrong"


def test_many_problems_are_all_reported(forger: Forger) -> None:
    leaves = [forger.leaf(b"%02d" % n) for n in range(20)]
    root = forger.branch([b"%02d" % n for n in range(1, 20)], *leaves)
    assert forger.finish(root, 2, 20) == []
    content = bytearray(forger.volume.content(PATH))
    for ref in leaves[::2]:
        content[page_of(ref) * 4096 + 100] ^= 1
    forger.volume.put(PATH, bytes(content))
    reported = {problem.page_id for problem in check(forger.volume) if problem.invariant == 3}
    assert reported == set(map(page_of, leaves[::2]))


def test_checking_changes_nothing_and_needs_no_lock(forger: Forger) -> None:
    assert forger.finish(forger.leaf(b"a"), 1, 1) == []
    before = len(forger.volume.log)
    with open_on(forger.volume, PATH, "w") as writer, open_on(forger.volume, PATH, "r") as reader, writer.transaction():
        writer["b"] = "2"
        uses: list[Callable[[], list[Problem]]] = [reader.check, writer.check]
        assert [use() for use in uses] == [[], []]
        assert len(forger.volume.log) == before
        writer._transactions[0]().rollback()


def test_an_error_of_the_disk_is_an_error_of_ours(forger: Forger) -> None:
    """Whichever read it is that fails."""
    assert forger.finish(forger.branch([b"b"], forger.leaf(b"a"), forger.leaf(b"m")), 2, 2) == []
    failures = 0
    for number in range(12):
        with open_on(forger.volume, PATH, "r", cache_size=0) as db:
            forger.volume.fail_at(number, disk_error(errno.EIO), kinds=("read",))
            fired = forger.volume.fired
            found = code_of(db.check)
            if forger.volume.fired > fired:
                assert found == errno.EIO
                failures += 1
            forger.volume.heal()
    assert failures >= 5


def code_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except durabledbm.error as exc:
        return exc.errno
    return None
