"""The writer: everything it was given is on the disk, in few writes, and its extents say where."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabledbm._engine.disk.protocol import Disk
from durabledbm._engine.meta import Extent
from durabledbm._engine.node import decode_leaf
from durabledbm._engine.page import MAP, REF, read_header, seal
from durabledbm._engine.page_writer import PageWriter
from durabledbm._engine.recovery import extent_arrived
from durabledbm._engine.value_writer import stored

from .pieces import PATH, Engine


def pages(refs: list[bytes]) -> set[int]:
    result: set[int] = set()
    for ref in refs:
        page_id, page_count, _ = REF.unpack(ref)
        assert not result & set(range(page_id, page_id + page_count))
        result |= set(range(page_id, page_id + page_count))
    return result


def all_arrived(disk: Disk, extents: tuple[Extent, ...]) -> bool:
    return all(extent_arrived(disk, extent, 4096) for extent in extents)


def test_runs_are_written_next_to_each_other_and_in_one_write() -> None:
    engine = Engine()
    writer = engine.writer()
    before = engine.volume.writes
    refs = [writer.leaf([b"%d" % n], [b"x" * n]) for n in range(50)]
    extents = writer.finish()
    assert [REF.unpack(ref)[0] for ref in refs] == list(range(2, 52))
    assert engine.volume.writes == before + 1
    assert [(extent.page_id, extent.page_count) for extent in extents] == [(2, 50)]
    assert all_arrived(engine.disk, extents)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_extents_name_exactly_what_was_written(seed: int) -> None:
    draw = random.Random(seed)
    engine = Engine(cache_size=0)
    occupied = engine.space.pages.take_run(60)[0]
    for page in range(occupied, occupied + 60):
        if draw.random() < 0.5:
            engine.space.free(page, 1)
    engine.space.save(1, lambda run, page_id: engine.writer().write(run, page_id))
    engine.space.release(1)
    writer = engine.writer()
    writer.expected = draw.choice([1, 10, 100])
    refs = []
    for n in range(draw.randrange(1, 30)):
        size = draw.choice([0, 100, 5000, 30_000])
        if draw.random() < 0.3:
            refs.append(stored(writer, b"key", bytes([n]) * size).ref)
        else:
            refs.append(writer.leaf([b"%d" % n], [bytes([n]) * size]))
    if draw.random() < 0.5:
        place = engine.space.pages.take_run(1)[0]
        refs.append(writer.write(seal(MAP, 0, 0, place, writer.txid, 4096, b"bits"), place))
    extents = writer.finish()
    assert pages([REF.pack(extent.page_id, extent.page_count, 0) for extent in extents]) == pages(refs)
    assert writer.pages_written == len(pages(refs))
    assert all_arrived(engine.disk, extents)
    content = bytearray(engine.volume.content(PATH))
    victim = draw.choice(sorted(pages(refs))) * 4096 + draw.randrange(4096)
    content[victim] ^= 1
    engine.volume.put(PATH, bytes(content))
    assert not all_arrived(engine.disk, extents)


def test_a_run_names_its_place_and_its_commit() -> None:
    engine = Engine()
    writer = engine.writer()
    ref = writer.leaf([b"key"], [b"value"])
    writer.finish()
    header = read_header(engine.disk.read(4096, REF.unpack(ref)[0] * 4096))
    assert (header.page_id, header.txid, header.entry_count) == (REF.unpack(ref)[0], writer.txid, 1)


def test_a_large_value_stands_behind_its_key() -> None:
    engine = Engine()
    writer = engine.writer()
    cell = stored(writer, b"the key", b"value" * 3000)
    writer.finish()
    page_id, page_count, _ = REF.unpack(cell.ref)
    run = engine.disk.read(page_count * 4096, page_id * 4096)
    header = read_header(run)
    assert run[32 : 32 + header.payload_size] == b"the key" + b"value" * 3000
    assert header.entry_count == len(b"the key")


def test_much_is_written_before_the_end() -> None:
    """What is collected has a limit: a large commit does not take its size in memory."""
    engine = Engine(cache_size=0)
    writer = engine.writer()
    for n in range(1000):
        writer.leaf([b"%d" % n], [b"x" * 2000])
        assert sum(map(len, writer._buffer)) <= 1 << 20
    assert engine.volume.writes >= 3
    writer.finish()


def test_a_place_that_was_not_used_is_given_back() -> None:
    engine = Engine()
    writer = engine.writer()
    writer.expected = 64
    writer.leaf([b"key"], [b""])
    writer.finish()
    assert engine.space.pages.page_count == 3
    assert list(engine.space.pages.free_runs()) == []


def test_a_commit_goes_into_one_run_of_free_pages_if_there_is_one() -> None:
    engine = Engine()
    start, _ = engine.space.pages.take_run(2000)
    for at, count in ((start, 1), (start + 10, 3), (start + 100, 40), (start + 200, 5)):
        engine.space.free(at, count)
    engine.space.save(1, engine.writer().write)
    engine.space.release(1)
    writer = engine.writer()
    writer.expected = 20
    refs = [writer.leaf([b"%d" % n], [b""]) for n in range(20)]
    writer.finish()
    assert pages(refs) == set(range(start + 100, start + 120))


def test_what_is_written_is_kept_in_memory() -> None:
    engine = Engine()
    writer = engine.writer()
    ref = writer.leaf([b"key"], [b"value"])
    writer.finish()
    before = engine.volume.reads
    assert decode_leaf(engine.pager.leaf(ref)) == ([b"key"], [b"value"])
    assert engine.volume.reads == before


# -- pages that only a transaction knows --------------------------------------------------------------------------


def spilling(engine: Engine) -> PageWriter:
    writer = engine.writer()
    writer.own = set()
    return writer


def test_pages_of_ones_own_are_used_again_at_once() -> None:
    engine = Engine()
    writer = spilling(engine)
    first = writer.leaf([b"key"], [b"old"])
    writer.release_place()
    writer.free(first)
    assert engine.space.pages.pending_count == 0
    assert REF.unpack(writer.leaf([b"key"], [b"new"]))[0] == REF.unpack(first)[0]


def test_pages_of_others_are_not() -> None:
    engine = Engine()
    engine.merge({b"key": b"value"})
    writer = spilling(engine)
    before = engine.space.pages.pending_count
    writer.free(engine.tree.root)
    assert engine.space.pages.pending_count == before + 1
    assert not engine.space.pages.is_free(REF.unpack(engine.tree.root)[0])


@pytest.mark.parametrize("end", ["give back", "reset"])
def test_pages_that_somebody_may_return_to_are_used_again_only_then(end: str) -> None:
    engine = Engine()
    writer = spilling(engine)
    first = writer.leaf([b"key"], [b"first"])
    writer.release_place()
    writer.flush()
    mark = writer.mark()
    writer.reuse = False
    second = writer.leaf([b"key"], [b"second"])
    writer.free(first)
    writer.release_place()
    writer.flush()
    places = {REF.unpack(ref)[0] for ref in (first, second)}
    assert len(places) == 2
    assert not any(map(engine.space.pages.is_free, places & set(range(engine.space.pages.page_count))))
    if end == "reset":
        writer.reset(mark)
        assert decode_leaf(engine.pager.read(first, 1)) == ([b"key"], [b"first"])
        kept, given = first, second
    else:
        writer.give_back_deferred()
        kept, given = second, first
    page = REF.unpack(given)[0]
    assert page >= engine.space.pages.page_count or engine.space.pages.is_free(page)
    assert not engine.space.pages.is_free(REF.unpack(kept)[0])


def test_a_reset_takes_back_what_was_freed_of_others() -> None:
    engine = Engine()
    engine.merge({b"key": b"value"})
    before = engine.space.pages.pending_count
    writer = spilling(engine)
    mark = writer.mark()
    writer.reuse = False
    writer.free(engine.tree.root)
    writer.reset(mark)
    assert engine.space.pages.pending_count == before
