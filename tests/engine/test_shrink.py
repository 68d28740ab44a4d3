"""Finding what stands at the end of a file: all of it, and nothing that only looks like it."""

from __future__ import annotations

import random

import pytest
from crew import Crew

from durabledbm._engine.merge import MOVE, TOUCH, Touch, merge
from durabledbm._engine.meta import first_page
from durabledbm._engine.node import Overflow, decode_branch, encode_branch
from durabledbm._engine.page import BRANCH, REF, seal
from durabledbm._engine.pager import Pager
from durabledbm._engine.shrink import tail_runs
from durabledbm._engine.tree import Tree

from .pieces import PATH, Engine, leaf_refs

EVERYTHING = 1 << 30


@pytest.fixture
def engine() -> Engine:
    """A tree of three levels and large values, in a file whose front is largely free."""
    engine = Engine(cache_size=0)
    rng = random.Random(5)
    entries = {b"%06d" % number: rng.randbytes(150) for number in range(20_000)}
    engine.merge(entries | {b"%06d large" % number: rng.randbytes(9_000) for number in range(0, 20_000, 500)})
    engine.merge({b"%06d" % number: None for number in range(15_000)})
    assert engine.tree.depth == 3
    return engine


def way(tree: Tree, key: bytes) -> set[int]:
    """The first pages of the runs on the way to `key`, its value included."""
    pages, ref = set(), tree.root
    for level in range(tree.depth, 0, -1):
        pages.add(REF.unpack(ref)[0])
        if level > 1:
            ref = tree.pager.child(ref, key)
    value = tree.find(key)
    if type(value) is Overflow:
        pages.add(REF.unpack(value.ref)[0])
    return pages


def found(engine: Engine, limit: int = EVERYTHING) -> dict[bytes, Touch]:
    return tail_runs(engine.disk, (engine.tree, Tree(engine.tree.pager)), engine.space, limit)[0]


def at_end(engine: Engine) -> set[int]:
    """The first pages of the runs that stand where the file could have ended."""
    return {visit.page_id for visit in engine.walk() if visit.page_id >= engine.space.pages.used_count}


def large(engine: Engine) -> set[int]:
    """The first pages of the large values."""
    return {visit.page_id for visit in engine.walk() if not visit.level}


def reached(engine: Engine, touches: dict[bytes, Touch]) -> set[int]:
    return set().union(*(way(engine.tree, key) for key in touches))


def damage(engine: Engine, pages: set[int]) -> None:
    """Flip a bit in each of the pages."""
    image = bytearray(engine.volume.content(PATH))
    for page in pages:
        image[page * engine.page_size + engine.page_size // 2] ^= 1
    engine.volume.put(PATH, bytes(image))
    engine.pager = Pager(engine.disk, engine.page_size, 0)
    engine.tree = Tree(engine.pager, engine.tree.root, engine.tree.depth)


def test_every_run_at_the_end_is_led_to_and_what_leads_there_is_in_the_tree(engine: Engine) -> None:
    touches, wanted = found(engine), at_end(engine)
    assert len(touches) <= len(wanted)
    assert len(wanted) > 100
    assert wanted <= reached(engine, touches)
    branches = wanted - {REF.unpack(ref)[0] for ref in leaf_refs(engine.tree)} - large(engine)
    assert branches, "they are led to as well"
    assert {touch.moves_value for touch in touches.values()} == {TOUCH.moves_value, MOVE.moves_value}
    assert all(way(engine.tree, key) & wanted for key in touches)


def test_the_last_ones_come_first_and_no_more_than_asked_for(engine: Engine) -> None:
    last = sorted(at_end(engine))[-10:]
    touches = found(engine, 10)
    assert len(touches) <= 10
    assert set(last) <= reached(engine, touches)


def replaced(engine: Engine) -> set[int]:
    """Move what stands at the end; where it stood till now, and may not be overwritten yet."""
    before = at_end(engine)
    writer = engine.writer()
    merged = merge(engine.pager, writer, engine.tree.root, engine.tree.depth, found(engine))
    writer.release_place()
    engine.space.save(engine.txid, writer.write)
    writer.finish()
    engine.tree = Tree(engine.pager, merged.root, merged.depth)
    return before - at_end(engine)


def test_what_the_tree_has_replaced_is_not_taken_for_a_part_of_it(engine: Engine) -> None:
    """It stands there whole, with keys that the tree still has."""
    assert len(replaced(engine)) > 100
    assert len(found(engine)) <= len(at_end(engine)) < 10


def test_damage_at_the_end_is_passed_over(engine: Engine) -> None:
    """It is not for a commit of something else to find."""
    leaves = {REF.unpack(ref)[0] for ref in leaf_refs(engine.tree)}
    wanted = at_end(engine)
    hurt = set(sorted(wanted & leaves)[-5:])
    damage(engine, hurt)
    touches = found(engine)
    ways = reached(engine, touches)
    assert not ways & hurt
    assert (wanted & leaves) - hurt <= ways


def test_what_a_damaged_branch_leads_to_is_passed_over(engine: Engine) -> None:
    root = REF.unpack(engine.tree.root)[0]
    damage(engine, {root})
    assert set(found(engine)) <= {b""}, "there is no way to anything"


@pytest.mark.parametrize("page_count", [1, 2**32 - 1])
def test_a_forged_branch_that_leads_to_itself_or_to_too_much_is_passed_over(engine: Engine, page_count: int) -> None:
    """The checksum of a page that its parent does not vouch for says nothing of who made it."""
    branches = at_end(engine) - {REF.unpack(ref)[0] for ref in leaf_refs(engine.tree)} - large(engine)
    page, size = max(branches - {REF.unpack(engine.tree.root)[0]}), engine.page_size
    touches = found(engine)
    image = bytearray(engine.volume.content(PATH))
    place = slice(page * size, (page + 1) * size)
    separators, refs, _ = decode_branch(bytes(image[place]))
    payload = b"".join((REF.pack(page, page_count, 0), *refs[1:], encode_branch(separators, size)))
    image[place] = seal(BRANCH, 0, len(refs), page, engine.txid, size, payload)
    engine.volume.put(PATH, bytes(image))
    reads: list[int] = []
    engine.volume.before = lambda operation: reads.append(operation.size)
    damage(engine, set())
    left = Crew().start(found, engine).result()
    assert left.keys() < touches.keys(), "there is no way any more to what is below it"
    assert max(reads) < len(image)
    engine.volume.before = None


def test_pages_that_the_file_has_lost_are_passed_over(engine: Engine) -> None:
    whole = found(engine)
    wanted = at_end(engine)
    cut = sorted(wanted)[-20]
    engine.disk.resize(cut * engine.page_size + 100)
    engine.pager = Pager(engine.disk, engine.page_size, 0)
    engine.tree = Tree(engine.pager, engine.tree.root, engine.tree.depth)
    touches = found(engine)
    assert len(touches) < len(whole)
    assert not {page for key in touches for page in way(engine.tree, key)} & {page for page in wanted if page >= cut}


def test_in_a_file_that_is_full_nothing_stands_too_far_back() -> None:
    engine = Engine()
    engine.merge({b"%06d" % number: b"x" * 50 for number in range(500)})
    assert engine.space.pages.used_count + first_page(engine.page_size) >= engine.space.pages.page_count
    assert found(engine) == {}
