"""The meta page: what was encoded is decoded, and nothing else passes for it."""

from __future__ import annotations

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from durabledbm._engine.meta import (
    CHANGE_OVERHEAD,
    MAGIC,
    MAX_DEPTH,
    MAX_LISTED,
    MAX_TXID,
    META_AREA,
    META_SIZE,
    STAMP_OFFSET,
    STAMP_SIZE,
    Extent,
    Meta,
    UnknownVersionError,
    decode_meta,
    encode_meta,
    first_page,
    has_magic,
    may_follow,
    room_for,
    stamp_of,
    stamp_with,
    steady_copy,
)
from durabledbm._engine.page import REF
from durabledbm.errors import CorruptionError, error

ID = bytes(range(16))
PLAIN = Meta(txid=1, page_size=4096, database_id=ID, page_count=2)

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
changes = st.dictionaries(st.binary(max_size=20), st.one_of(st.none(), st.binary(max_size=60)), max_size=20)


@st.composite
def metas(draw: st.DrawFn) -> Meta:
    """Any meta that can be."""
    page_size = draw(st.sampled_from([4096, 8192, 16384, 32768, 65536]))
    page_count = draw(st.integers(2, 2**40))
    counts = st.integers(0, page_count * page_size)
    refs = st.binary(min_size=REF.size, max_size=REF.size)
    return Meta(
        txid=draw(st.integers(1, MAX_TXID - 1)),
        page_size=page_size,
        database_id=draw(st.binary(min_size=16, max_size=16)),
        page_count=page_count,
        entry_count=draw(counts),
        tree_count=draw(counts),
        root=draw(refs),
        depth=draw(st.integers(0, MAX_DEPTH)),
        space=draw(refs),
        steady_txid=draw(u64),
        steady=draw(st.booleans()),
        relaxed=draw(st.booleans()),
        time_ns=draw(u64),
        generation=draw(st.binary(min_size=8, max_size=8)),
        generation_txid=draw(u64),
        extents=tuple(draw(st.lists(st.builds(Extent, u64, st.integers(0, MAX_LISTED // 64), u32), max_size=64))),
        changes=draw(changes),
    )


def sealed(body: bytes) -> bytes:
    assert len(body) == META_SIZE - 4
    return body + crc32c(body).to_bytes(4, "little")


def patched(slot: bytes, offset: int, value: bytes) -> bytes:
    """The slot with other bytes at `offset`, and a CRC that is right."""
    return sealed((slot[:offset] + value + slot[offset + len(value) :])[:-4])


@given(meta=metas())
def test_a_meta_gives_back_what_it_was_made_of(meta: Meta) -> None:
    slot = encode_meta(meta)
    assert len(slot) == META_SIZE
    assert has_magic(slot)
    decoded = decode_meta(slot)
    assert decoded == meta
    assert decoded is not None
    assert list(decoded.changes) == list(meta.changes)


def test_every_changed_byte_is_noticed() -> None:
    slot = bytearray(encode_meta(PLAIN._replace(changes={b"key": b"value"}, extents=(Extent(2, 1, 5),))))
    for at in range(META_SIZE):
        slot[at] ^= 1 << at % 8
        assert decode_meta(bytes(slot)) is None
        slot[at] ^= 1 << at % 8
    assert decode_meta(bytes(slot)) is not None


@pytest.mark.parametrize("sectors", range(1, 8))
def test_a_torn_meta_is_noticed(sectors: int) -> None:
    """Some sectors of the new one arrived, the others still hold the old one."""
    old = encode_meta(PLAIN._replace(txid=7, changes={b"k%03d" % n: b"old" for n in range(100)}))
    new = encode_meta(PLAIN._replace(txid=8, changes={b"k%03d" % n: b"new" for n in range(100)}))
    assert decode_meta(new[: sectors * 512] + old[sectors * 512 :]) is None
    assert decode_meta(old[: sectors * 512] + new[sectors * 512 :]) is None


@pytest.mark.parametrize("slot", [b"", b"\0" * META_SIZE, MAGIC, b"x" * META_SIZE, encode_meta(PLAIN)[:-1]])
def test_what_is_not_a_meta_page_is_not_decoded(slot: bytes) -> None:
    assert decode_meta(slot) is None


def test_a_page_with_another_magic_is_not_decoded() -> None:
    assert decode_meta(patched(encode_meta(PLAIN), 0, b"\x8ddurabledbm\r\n\x1a\n\0")) is None


@pytest.mark.parametrize("offset", [24, 28])
def test_another_version_and_unknown_features_are_told_from_damage(offset: int) -> None:
    slot = patched(encode_meta(PLAIN), offset, (77).to_bytes(4, "little"))
    with pytest.raises(UnknownVersionError, match="77" if offset == 24 else "0x4d") as caught:
        decode_meta(slot)
    assert isinstance(caught.value, error)
    assert not isinstance(caught.value, CorruptionError)


@pytest.mark.parametrize("page_size", [0, 1, 4095, 4097, 2048, 6144, 131072, 2**31])
def test_an_impossible_page_size_is_damage(page_size: int) -> None:
    assert decode_meta(patched(encode_meta(PLAIN), 32, page_size.to_bytes(4, "little"))) is None


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (16, 0), (16, MAX_TXID), (16, 2**64 - 1), (80, MAX_DEPTH + 1), (40, 0), (40, 1), (48, 2 * 4096 + 1),
        (48, 2**64 - 1), (56, 2**63),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_damage(offset: int, value: int) -> None:
    size = 4 if offset == 80 else 8
    assert decode_meta(patched(encode_meta(PLAIN), offset, value.to_bytes(size, "little"))) is None


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (152, (META_SIZE - 192 - 12 + 1).to_bytes(4, "little")),  # more bytes of changes than there are
        (152, b"\xff\xff\xff\xff"),
        (156, (300).to_bytes(2, "little")),  # more extents than there is room for
        (156, b"\xff\xff"),
        (158, (2).to_bytes(2, "little")),  # more changes than their bytes
        (158, b"\xff\xff"),
        (192, (100).to_bytes(4, "little")),  # a key longer than the changes
        (192, b"\xff\xff\xff\xff"),
        (196, (100).to_bytes(4, "little")),  # a value longer than the changes
        (196, b"\xff\xff\xff\x7f"),
    ],
)
def test_lists_that_do_not_fit_are_damage(offset: int, value: bytes) -> None:
    """With a checksum that is right: a file that was made to hurt."""
    slot = encode_meta(PLAIN._replace(changes={b"key": b"value"}))
    assert decode_meta(patched(slot, offset, value)) is None


@pytest.mark.parametrize("page_counts", [(MAX_LISTED + 1,), (2**31,), (2**32 - 1,) * 10, (MAX_LISTED // 2,) * 3])
def test_extents_of_too_many_pages_are_damage(page_counts: tuple[int, ...]) -> None:
    """Nobody lists them, and verifying them would take long."""
    extents = tuple(Extent(3, page_count, 5) for page_count in page_counts)
    assert decode_meta(encode_meta(PLAIN._replace(extents=extents))) is None
    assert decode_meta(encode_meta(PLAIN._replace(extents=(Extent(3, MAX_LISTED, 5),)))) is not None


@given(extent_count=st.integers(0, 100), spare=st.integers(0, 1))
def test_room_for_tells_how_much_fits(extent_count: int, spare: int) -> None:
    extents = (Extent(2, 1, 3),) * extent_count
    room = room_for(extent_count) - CHANGE_OVERHEAD - len(b"key")
    meta = PLAIN._replace(extents=extents, changes={b"key": b"v" * (room - spare)})
    assert decode_meta(encode_meta(meta)) == meta


def test_more_than_fits_is_a_bug_of_ours() -> None:
    room = room_for(0) - CHANGE_OVERHEAD - len(b"key")
    with pytest.raises(AssertionError):
        encode_meta(PLAIN._replace(changes={b"key": b"v" * (room + 1)}))


def test_a_change_of_a_value_and_a_deletion_are_told_apart() -> None:
    meta = PLAIN._replace(changes={b"empty": b"", b"gone": None, b"": None})
    assert decode_meta(encode_meta(meta)) == meta


@given(meta=metas())
def test_a_steady_copy_says_the_same_and_is_steady(meta: Meta) -> None:
    copy = steady_copy(encode_meta(meta))
    decoded = decode_meta(copy)
    assert decoded is not None
    assert decoded.steady
    assert decoded._replace(steady=meta.steady, relaxed=meta.relaxed) == meta


def test_the_look_is_what_stands_at_the_border_of_the_slots() -> None:
    slots = [encode_meta(PLAIN._replace(txid=txid)) for txid in (5, 6)]
    area = b"".join(slots)
    assert stamp_of(*slots) == area[STAMP_OFFSET : STAMP_OFFSET + STAMP_SIZE]


def test_the_look_changes_with_every_commit_in_either_slot() -> None:
    slots = [encode_meta(PLAIN._replace(txid=txid)) for txid in (5, 6, 7)]
    looks = {stamp_of(a, b) for a in slots for b in slots}
    assert len(looks) == 9


@pytest.mark.parametrize("slot", [0, 1])
def test_the_look_after_a_slot_was_written_is_known_without_reading(slot: int) -> None:
    slots = [encode_meta(PLAIN._replace(txid=txid)) for txid in (5, 6)]
    before = stamp_of(*slots)
    slots[slot] = encode_meta(PLAIN._replace(txid=7, generation=b"12345678"))
    assert stamp_with(before, slot, slots[slot]) == stamp_of(*slots)


@pytest.mark.parametrize("slot", [0, 1])
def test_the_look_tells_generations_apart(slot: int) -> None:
    """Two commits of the same number and the same moment, which differ in what they changed."""
    metas = [
        PLAIN._replace(txid=6, generation=name, generation_txid=6, changes={b"key": value})
        for name, value in ((b"one     ", b"1"), (b"two     ", b"2"))
    ]
    slots = [[encode_meta(PLAIN._replace(txid=5))] * 2 for _ in metas]
    for own, meta in zip(slots, metas, strict=True):
        own[slot] = encode_meta(meta)
    assert stamp_of(*slots[0]) != stamp_of(*slots[1])


SEEN = PLAIN._replace(txid=120, generation=b"A" * 8, generation_txid=90)


@pytest.mark.parametrize(
    ("meta", "follows"),
    [
        (SEEN, True),
        (SEEN._replace(steady=True), True),
        (SEEN._replace(time_ns=1), False),
        (SEEN._replace(changes={b"k": b"v"}), False),
        (SEEN._replace(txid=119), False),
        (SEEN._replace(txid=121), True),
        (SEEN._replace(txid=500), True),
        (SEEN._replace(txid=121, generation=b"B" * 8, generation_txid=121), True),
        (SEEN._replace(txid=500, generation=b"B" * 8, generation_txid=300), True),
        (SEEN._replace(txid=121, generation=b"B" * 8, generation_txid=101), False),
        (SEEN._replace(txid=121, generation=b"B" * 8, generation_txid=120), False),
        (SEEN._replace(txid=500, generation=bytes(8), generation_txid=0), False),
    ],
)
def test_a_meta_tells_whether_what_was_seen_may_be_part_of_its_past(meta: Meta, follows: bool) -> None:
    assert may_follow(meta, SEEN) == follows


def test_the_meta_area_takes_whole_pages() -> None:
    assert [first_page(size) for size in (4096, 8192, 16384, 65536)] == [2, 1, 1, 1]
    assert META_AREA == 2 * META_SIZE
