"""The pager: what it returns is what was written, or it raises; and it reads no more than it must."""

from __future__ import annotations

import errno

import pytest
from simdisk import Fault, disk_error

from durabledbm._engine import pager as pager_module
from durabledbm._engine.checksum import crc32c
from durabledbm._engine.large_value import INDEX, PIECE, PLACE, room
from durabledbm._engine.node import Branch, Overflow, decode_leaf
from durabledbm._engine.page import BRANCH, HEADER, LEAF, OVERFLOW, REF, seal
from durabledbm._engine.pager import Pager
from durabledbm._engine.value_writer import moved, stored
from durabledbm.errors import CorruptionError, error

from .pieces import PATH, Engine, leaf_refs


def leaf(engine: Engine, key: bytes = b"key", value: bytes = b"value") -> bytes:
    """The ref of a leaf that is on the disk and in no cache."""
    writer = engine.writer()
    ref = writer.leaf([key], [value])
    writer.finish()
    engine.pager.clear()
    return ref


def large(engine: Engine, size: int, key: bytes = b"key") -> tuple[Overflow, bytes]:
    value = b"".join(n.to_bytes(4, "little") for n in range(size // 4 + 1))[:size]
    writer = engine.writer()
    cell = stored(writer, key, value)
    writer.finish()
    return cell, value


def damage(engine: Engine, offset: int, data: bytes = b"\xff") -> None:
    content = bytearray(engine.volume.content(PATH))
    assert content[offset : offset + len(data)] != data
    content[offset : offset + len(data)] = data
    engine.volume.put(PATH, bytes(content))


# -- reading -----------------------------------------------------------------------------------------------------


def test_a_leaf_is_read_once_and_then_comes_from_memory() -> None:
    engine = Engine()
    ref = leaf(engine)
    before = engine.volume.reads
    for _ in range(3):
        assert decode_leaf(engine.pager.leaf(ref)) == ([b"key"], [b"value"])
    assert engine.volume.reads == before + 1
    assert engine.pager.misses == 1


def test_a_scan_leaves_the_cache_alone() -> None:
    engine = Engine()
    ref = leaf(engine)
    before = engine.volume.reads
    engine.pager.leaf(ref, keep=False)
    engine.pager.leaf(ref, keep=False)
    assert engine.volume.reads == before + 2


def test_what_was_just_written_needs_no_reading() -> None:
    engine = Engine()
    writer = engine.writer()
    child = writer.leaf([b"a"], [b"1"])
    ref = writer.branch([b"m"], [child, child])
    writer.finish()
    before = engine.volume.reads
    assert engine.pager.branch(ref).separators == [b"m"]
    assert decode_leaf(engine.pager.leaf(child)) == ([b"a"], [b"1"])
    assert engine.volume.reads == before


def test_a_branch_is_decoded_once() -> None:
    engine = Engine()
    writer = engine.writer()
    child = writer.leaf([b"a"], [b"1"])
    ref = writer.branch([b"m"], [child, child])
    writer.finish()
    engine.pager.clear()
    branch = engine.pager.branch(ref)
    assert (branch.separators, branch.refs) == ([b"m"], [child, child])
    assert engine.pager.branch(ref) is branch


def test_a_leaf_is_no_branch_and_a_branch_no_leaf() -> None:
    engine = Engine()
    writer = engine.writer()
    child = writer.leaf([b"a"], [b"1"])
    ref = writer.branch([], [child])
    writer.finish()
    for cached in (True, False):
        if not cached:
            engine.pager.clear()
        with pytest.raises(CorruptionError):
            engine.pager.branch(child)
        with pytest.raises(CorruptionError):
            engine.pager.leaf(ref)


@pytest.mark.parametrize("offset", [0, 4, 8, 16, 24, 28, 40, 2000, 4092])
def test_a_damaged_run_is_refused(offset: int) -> None:
    engine = Engine()
    page_id = REF.unpack(ref := leaf(engine))[0]
    damage(engine, page_id * 4096 + offset)
    with pytest.raises(CorruptionError) as caught:
        engine.pager.leaf(ref)
    assert (caught.value.path, caught.value.page_id) == (PATH, page_id)


def test_a_run_that_was_replaced_is_refused_and_not_kept() -> None:
    """A reader that was overtaken: its page holds something newer, which is as whole as the old one."""
    engine = Engine()
    ref = leaf(engine)
    page_id = REF.unpack(ref)[0]
    newer = seal(LEAF, 0, 0, page_id, 99, 4096, b"")
    damage(engine, page_id * 4096, newer)
    with pytest.raises(CorruptionError, match="not the version"):
        engine.pager.leaf(ref)
    assert ref not in engine.pager.nodes.young


def test_a_run_that_was_cut_off_is_refused() -> None:
    engine = Engine()
    ref = leaf(engine)
    for size in (REF.unpack(ref)[0] * 4096 + 100, REF.unpack(ref)[0] * 4096, 100, 0):
        engine.disk.resize(size)
        with pytest.raises(CorruptionError, match="beyond the file's end"):
            engine.pager.leaf(ref)


@pytest.mark.parametrize("page_count", [0, 1, 2**20, 2**32 - 1])
@pytest.mark.parametrize("page_id", [0, 10**9, 2**51, 2**63, 2**64 - 1])
def test_a_ref_to_nowhere_is_refused_at_once(page_id: int, page_count: int) -> None:
    """Whatever it says of its size: no memory is taken for that."""
    engine = Engine()
    ref = REF.pack(page_id, page_count, 5)
    for read in (engine.pager.leaf, engine.pager.branch):
        with pytest.raises((CorruptionError, OverflowError)):
            read(ref)
    with pytest.raises((CorruptionError, OverflowError)):
        engine.pager.value(Overflow.make(ref, 2**40), b"key")


def test_reads_that_stop_short_are_continued() -> None:
    engine = Engine()
    ref = leaf(engine, value=b"x" * 30_000)
    engine.volume.fail_at(0, Fault(None, "part", times=3), kinds=("read",))
    assert decode_leaf(engine.pager.leaf(ref))[1] == [b"x" * 30_000]
    assert engine.volume.fired == 3


def test_an_error_of_the_disk_is_an_error_of_ours() -> None:
    engine = Engine()
    ref = leaf(engine)
    cell, _ = large(engine, 50_000)
    for call in (lambda: engine.pager.leaf(ref), lambda: engine.pager.value(cell, b"key")):
        engine.volume.fail_at(0, disk_error(errno.EIO), kinds=("read",))
        with pytest.raises(error) as caught:
            call()
        assert caught.value.errno == errno.EIO
        assert caught.value.filename == PATH
        call()


# -- the cache ---------------------------------------------------------------------------------------------------


def test_the_cache_keeps_to_its_limit() -> None:
    engine = Engine(cache_size=100_000)
    refs = [leaf(engine, b"%d" % n) for n in range(200)]
    for ref in refs:
        engine.pager.leaf(ref)
    kept = {**engine.pager.nodes.old, **engine.pager.nodes.young}
    assert sum(len(node) for node in kept.values() if isinstance(node, bytes)) <= 100_000
    assert refs[-1] in kept
    assert refs[0] not in kept


def test_what_is_used_once_in_a_generation_stays() -> None:
    engine = Engine(cache_size=100_000)
    refs = [leaf(engine, b"%d" % n) for n in range(200)]
    engine.pager.leaf(refs[0])
    for ref in refs[1:]:
        engine.pager.leaf(ref)
        before = engine.pager.misses
        engine.pager.leaf(refs[0])
        assert engine.pager.misses == before


def test_without_a_cache_everything_is_read_anew() -> None:
    engine = Engine(cache_size=0)
    ref = leaf(engine)
    before = engine.volume.reads
    for _ in range(3):
        engine.pager.leaf(ref)
    assert engine.volume.reads == before + 3


def test_what_is_larger_than_the_cache_does_not_empty_it_for_good() -> None:
    engine = Engine(cache_size=20_000)
    big, small = leaf(engine, value=b"x" * 50_000), leaf(engine)
    engine.pager.leaf(big)
    assert big not in engine.pager.nodes.young
    engine.pager.leaf(small)
    before = engine.pager.misses
    engine.pager.leaf(small)
    assert engine.pager.misses == before


def test_clearing() -> None:
    engine = Engine()
    refs = [leaf(engine, b"a"), leaf(engine, b"b")]

    def misses() -> int:
        before = engine.pager.misses
        for ref in refs:
            engine.pager.leaf(ref)
        return engine.pager.misses - before

    assert misses() == 2
    assert misses() == 0
    engine.pager.clear()
    assert misses() == 2


def test_a_pager_can_go_on_with_another_disk() -> None:
    engine = Engine()
    ref = leaf(engine)
    twin = engine.disk.reopen()
    engine.disk.close()
    engine.pager.use(twin)
    assert decode_leaf(engine.pager.leaf(ref))[0] == [b"key"]


# -- large values ------------------------------------------------------------------------------------------------

EDGES = [0, 1, 4096 - 36 - 3, 4096 - 36 - 2, 3 * 4096 - 36 - 3, 3 * 4096, 100_000]


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("key", [b"", b"key", b"k" * 5000], ids=["no key", "short key", "long key"])
def test_a_large_value_is_read_as_it_was_written(size: int, key: bytes) -> None:
    engine = Engine()
    cell, value = large(engine, size, key)
    assert engine.pager.value(cell, key) == value
    assert cell.length == size
    assert engine.pager.check_value(cell, key) == engine.txid


@pytest.mark.parametrize("size", [size for size in EDGES if size != 1])  # half of one byte would be none: the end
def test_a_large_value_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(pager_module, "_CHUNK", 1000)
    engine = Engine()
    cell, value = large(engine, size)
    for number in (1, 2, 3):
        engine.volume.fail_at(number, Fault(None, "part"), kinds=("read",))
        assert engine.pager.value(cell, b"key") == value


def test_every_kind_of_damage_to_a_large_value_is_noticed() -> None:
    engine = Engine()
    cell, _ = large(engine, 10_000)
    page_id, page_count, _ = REF.unpack(cell.ref)
    start, end = page_id * 4096, (page_id + page_count) * 4096
    intact = engine.volume.content(PATH)
    for offset in [
        *range(start, start + 40),
        start + 4096,
        start + 9000,
        start + 10_040,
        end - 5,
        *range(end - 4, end),
    ]:
        damage(engine, offset, bytes([intact[offset] ^ 0x10]))
        with pytest.raises(CorruptionError) as caught:
            engine.pager.value(cell, b"key")
        assert caught.value.page_id == page_id
        engine.volume.put(PATH, intact)
    engine.pager.value(cell, b"key")


def test_a_large_value_whose_length_is_wrong_is_refused() -> None:
    engine = Engine()
    cell, _ = large(engine, 10_000)
    page_count = REF.unpack(cell.ref)[1]
    for length in (0, 9_999, 10_001, page_count * 4096, 2**40, 2**64 - 1):
        for use in (engine.pager.value, engine.pager.check_value):
            with pytest.raises(CorruptionError):
                use(Overflow.make(cell.ref, length), b"key")


def test_a_leaf_is_no_large_value() -> None:
    engine = Engine()
    ref = leaf(engine)
    with pytest.raises(CorruptionError, match="not the large value"):
        engine.pager.value(Overflow.make(ref, 5), b"key")


@pytest.mark.parametrize("size", [10_000, 200_000])
@pytest.mark.parametrize("key", [b"", b"kez", b"keys", b"ke"])
def test_a_large_value_of_another_key_is_refused(key: bytes, size: int) -> None:
    """A value stands beside its key. So no two keys have one in common, and no scan comes to it twice."""
    engine = Engine()
    cell, _ = large(engine, size)
    for use in (engine.pager.value, engine.pager.check_value):
        with pytest.raises(CorruptionError, match=r"another key|not the large value"):
            use(cell, key)


def test_a_large_value_that_was_cut_off_is_refused() -> None:
    engine = Engine()
    cell, _ = large(engine, 10_000)
    page_id = REF.unpack(cell.ref)[0]
    for size in ((page_id + 1) * 4096, page_id * 4096 + 10, page_id * 4096):
        engine.disk.resize(size)
        with pytest.raises(CorruptionError, match="beyond the file's end"):
            engine.pager.value(cell, b"key")


def test_a_branch_whose_content_makes_no_sense_is_damage() -> None:
    engine = Engine()
    run = seal(BRANCH, 0, 2**31, 2, 5, 4096, b"")
    engine.disk.write(2 * 4096, [run])
    ref = REF.pack(2, 1, int.from_bytes(run[-4:], "little"))
    with pytest.raises(CorruptionError):
        engine.pager.branch(ref)


def test_a_pager_holds_decoded_branches_and_encoded_leaves() -> None:
    engine = Engine()
    engine.merge({b"%05d" % n: b"x" * 50 for n in range(500)})
    pager = Pager(engine.disk, 4096, 1 << 20)
    pager.branch(engine.tree.root)
    pager.leaf(next(leaf_refs(engine.tree)))
    assert sorted(type(node).__name__ for node in pager.nodes.young.values()) == [Branch.__name__, "bytes"]


def test_a_branch_is_decoded_when_it_is_searched_for_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pager_module, "RUNNING", False)
    engine = Engine()
    engine.merge({b"%05d" % n: b"x" * 50 for n in range(500)})
    root = engine.tree.root
    pager = Pager(engine.disk, 4096, 1 << 20)
    first = pager.child(root, b"00300")
    assert (list(pager.nodes.young), pager.misses) == ([], 1)
    assert pager.child(root, b"00300") == first
    assert (list(pager.nodes.young), pager.misses) == ([root], 1)
    assert pager.child(root, b"00300") == first
    assert pager.child(root, b"") == pager.branch(root).refs[0]
    assert pager.child(root, b"1") == pager.branch(root).refs[-1]


def test_with_kernels_a_branch_is_decoded_when_a_merge_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pager_module, "RUNNING", True)
    engine = Engine()
    engine.merge({b"%05d" % n: b"x" * 50 for n in range(500)})
    root = engine.tree.root
    pager = Pager(engine.disk, 4096, 1 << 20)
    first = pager.child(root, b"00300")
    assert pager.child(root, b"00300") == first
    assert type(pager.nodes.young[root]) is bytes
    with pytest.raises(CorruptionError):
        pager.leaf(root)
    assert pager.branch(root).refs[0] == pager.child(root, b"")
    assert type(pager.nodes.young[root]) is Branch
    assert pager.child(root, b"00300") == first
    assert pager.misses == 1


def test_once_the_cache_is_full_one_leaf_of_four_is_kept() -> None:
    engine = Engine()
    engine.merge({b"%05d" % n: b"x" * 350 for n in range(1000)})
    pager = Pager(engine.disk, 4096, 2 * 20 * 4200)
    refs = list(leaf_refs(engine.tree))[:80]
    assert len(refs) == 80
    for ref in refs[:21]:
        pager.leaf(ref)
    assert len(pager.nodes.old) == 20
    for ref in refs[21:77]:
        pager.leaf(ref)
    assert len(pager.nodes.young) == 1 + 56 // 4
    assert pager.misses == 77


def test_few_branches_are_kept_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pager_module, "RUNNING", False)
    engine = Engine()
    pager = Pager(engine.disk, 4096, 0)
    for page in range(2, 202):
        run = seal(BRANCH, 0, 1, page, 5, 4096, bytes(18))
        engine.disk.write(page * 4096, [run])
        ref = REF.pack(page, 1, int.from_bytes(run[-4:], "little"))
        assert pager.child(ref, b"key") == bytes(16)
    assert 0 < len(pager._raw) <= 64
    pager.clear()
    assert not pager._raw


def test_a_leaf_where_a_branch_should_be_is_damage_to_a_search_too() -> None:
    engine = Engine()
    engine.merge({b"key": b"value"})
    engine.pager.leaf(engine.tree.root)
    for pager in (engine.pager, Pager(engine.disk, 4096, 1 << 20)):
        with pytest.raises(CorruptionError):
            pager.child(engine.tree.root, b"key")


def leaves_of(engine: Engine) -> tuple[list[bytes], list[bytes]]:
    """A hundred leaves, one after the other in the file: their refs, and what they hold."""
    engine.merge({b"%05d" % n: b"x" * 350 for n in range(1000)})
    refs = list(leaf_refs(engine.tree))
    places = [REF.unpack(ref)[0] for ref in refs]
    assert len(refs) > 60
    assert places == list(range(places[0], places[0] + len(refs)))
    return refs, [engine.pager.leaf(ref, keep=False) for ref in refs]


@pytest.mark.parametrize("step", [1, -1])
def test_leaves_that_are_neighbours_are_read_together(step: int) -> None:
    engine = Engine(cache_size=0)
    refs, leaves = leaves_of(engine)
    before = engine.volume.reads
    assert list(engine.pager.leaves(refs[::step])) == leaves[::step]
    assert engine.volume.reads - before == -(-len(refs) // 16)
    assert engine.pager.nodes.young == {}


def test_leaves_anywhere_are_read_one_by_one_and_those_in_the_cache_not_at_all() -> None:
    engine = Engine(cache_size=0)
    refs, leaves = leaves_of(engine)
    pager = Pager(engine.disk, 4096, 1 << 24)
    for ref in refs[:20]:
        pager.leaf(ref)
    before = engine.volume.reads
    assert list(pager.leaves(refs[:20])) == leaves[:20]
    assert engine.volume.reads == before
    scattered = [20, 23, 22, 60, 25, 24, 26, 59, 3, 27]
    assert list(pager.leaves([refs[n] for n in scattered])) == [leaves[n] for n in scattered]
    assert engine.volume.reads - before == 6  # 20, 23 and 22, 60, 25 with 24 and 26, 59, 27


@pytest.mark.parametrize("damage", ["changed", "cut off"])
def test_leaves_before_a_damaged_one_are_given_although_they_are_read_with_it(damage: str) -> None:
    engine = Engine(cache_size=0)
    refs, leaves = leaves_of(engine)
    at = REF.unpack(refs[5])[0] * 4096
    content = engine.volume.content(PATH)
    engine.volume.put(PATH, content[:at] + (b"" if damage == "cut off" else b"\xff" + content[at + 1 :]))
    found: list[bytes] = []
    with pytest.raises(CorruptionError) as caught:
        found.extend(engine.pager.leaves(refs))
    assert found == leaves[:5]
    assert caught.value.page_id == REF.unpack(refs[5])[0]


def test_a_ref_to_very_many_pages_is_read_for_itself() -> None:
    engine = Engine(cache_size=0)
    refs, leaves = leaves_of(engine)
    page_id, _, crc = REF.unpack(refs[1])
    wrong = REF.pack(page_id, 2**32 - 1, crc)
    leaf_by_leaf = engine.pager.leaves([refs[0], wrong])
    assert next(leaf_by_leaf) == leaves[0]
    with pytest.raises(CorruptionError):
        next(leaf_by_leaf)


# -- values in pieces ------------------------------------------------------------------------------------------


def test_a_value_in_pieces_is_read_whole_and_by_the_piece() -> None:
    engine = Engine()
    full = room(len(b"key"))
    cell, value = large(engine, 2 * full + 5)
    assert engine.pager.value(cell, b"key") == value
    refs = engine.pager.index(cell, b"key")
    parts = [bytes(engine.pager.piece(cell, b"key", number, ref)) for number, ref in enumerate(refs)]
    assert parts == [value[:full], value[full : 2 * full], value[2 * full :]]
    assert engine.pager.check_value(cell, b"key") == engine.pager.check_piece(cell, b"key", 1, refs[1]) == engine.txid
    for number, ref in ((0, refs[1]), (1, refs[0]), (2, refs[1]), (0, cell.ref)):
        with pytest.raises(CorruptionError):
            engine.pager.piece(cell, b"key", number, ref)
    with pytest.raises(CorruptionError, match="another key"):
        engine.pager.index(cell, b"kez")
    for length in (full, full + 1, len(value) - 5, len(value) + full, 2**63, 2**64 - 1):
        with pytest.raises(CorruptionError):
            engine.pager.value(Overflow.make(cell.ref, length), b"key")


@pytest.mark.parametrize("flags", [INDEX, PIECE])
def test_a_part_of_a_value_that_claims_more_than_its_pages_hold(flags: int) -> None:
    """Its checksum is right: the file was made to hurt."""
    engine = Engine()
    full = room(len(b"key"))
    count = 1000
    size = count * REF.size if flags == INDEX else PLACE.size + full
    page_id = engine.space.pages.take_run(1)[0]
    head = HEADER.pack(OVERFLOW, flags, 0, 3, page_id, 1, 1, 3 + size)
    body = (head + b"key").ljust(4092, b"\0")
    run = body + crc32c(body).to_bytes(4, "little")
    engine.disk.write(page_id * 4096, (run,))
    ref = REF.pack(page_id, 1, int.from_bytes(run[-4:], "little"))
    cell = Overflow.make(ref, count * full)
    with pytest.raises(CorruptionError, match="not the large value"):
        engine.pager.index(cell, b"key") if flags == INDEX else engine.pager.piece(cell, b"key", 0, ref)


def test_moving_some_pieces_leaves_the_others_where_they_are() -> None:
    engine = Engine()
    cell, value = large(engine, 5 * room(3) + 5)
    before = engine.pager.index(cell, b"key")
    writer = engine.writer()
    new = moved(writer, engine.pager, b"key", cell, {REF.unpack(before[ref])[0] for ref in (1, 4)})
    writer.finish()
    after = engine.pager.index(new, b"key")
    assert [number for number in range(6) if before[number] != after[number]] == [1, 4]
    assert new.ref != cell.ref
    assert engine.pager.value(new, b"key") == value
