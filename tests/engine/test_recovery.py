"""Which commit a file holds, for every way in which its two slots may have been left."""

from __future__ import annotations

import itertools

import pytest
from simdisk import SimVolume

from durabledbm._engine import sparse
from durabledbm._engine.disk.protocol import Disk
from durabledbm._engine.locks import WriterLock
from durabledbm._engine.meta import META_AREA, META_SIZE, Extent, Meta, decode_meta, encode_meta
from durabledbm._engine.page import self_consistent
from durabledbm._engine.recovery import extent_arrived, newest, read_slots, visible
from durabledbm._engine.threads import Lease
from durabledbm.errors import CorruptionError, error

from .pieces import DATABASE_ID, PATH, Engine

TORN = b"\x8bdurabledbm\r\n\x1a\n\0" + b"torn" * 1020


def meta(txid: int, **fields: object) -> Meta:
    return Meta(txid, 4096, DATABASE_ID, 40, **{"steady_txid": txid - 1, **fields})  # type: ignore[arg-type]


def disk_with(*slots: Meta | bytes, rest: bytes = b"") -> Disk:
    content = b"".join(slot if isinstance(slot, bytes) else encode_meta(slot) for slot in slots)
    return SimVolume({PATH: content + rest}).open(PATH, writable=True)


def chosen(disk: Disk) -> tuple[int, int]:
    found, slot = newest(disk, read_slots(disk))
    return found.txid, slot


# -- two slots -----------------------------------------------------------------------------------------------------


def test_the_newer_commit_is_the_database() -> None:
    assert chosen(disk_with(meta(7), meta(8))) == (8, 1)
    assert chosen(disk_with(meta(8), meta(7))) == (8, 0)


@pytest.mark.parametrize("slot", [0, 1])
def test_a_torn_slot_leaves_the_other(slot: int) -> None:
    slots: list[Meta | bytes] = [TORN, TORN]
    slots[slot] = meta(8)
    assert chosen(disk_with(*slots)) == (8, slot)


def test_a_slot_that_never_arrived_leaves_the_other() -> None:
    assert chosen(disk_with(bytes(META_SIZE), meta(8))) == (8, 1)
    assert chosen(disk_with(meta(8))) == (8, 0)
    assert chosen(disk_with(meta(8), b"\0" * 100)) == (8, 0)


def test_of_two_copies_either_will_do() -> None:
    steady, plain = meta(8, steady=True), meta(8)
    for pair in itertools.product((steady, plain), repeat=2):
        assert chosen(disk_with(*pair))[0] == 8


def test_two_damaged_slots_are_damage() -> None:
    disk = disk_with(TORN, TORN)
    with pytest.raises(CorruptionError, match="both meta pages") as caught:
        newest(disk, read_slots(disk))
    assert caught.value.path == PATH


@pytest.mark.parametrize("content", [b"x", b"SQLite format 3\0" + bytes(5000), bytes(META_AREA), b"text\n" * 5000])
def test_a_file_of_others_is_not_damage(content: bytes) -> None:
    disk = disk_with(content)
    with pytest.raises(error, match="not a durabledbm database") as caught:
        newest(disk, read_slots(disk))
    assert not isinstance(caught.value, CorruptionError)


def test_an_empty_file_has_no_slots() -> None:
    slots = read_slots(disk_with(b""))
    assert slots.uninitialised
    assert slots.metas == (None, None)


# -- a commit that may not have arrived --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> tuple[bytes, tuple[Extent, ...]]:
    """Pages of a commit, and the list of them."""
    engine = Engine()
    engine.merge({b"%04d" % n: b"x" * 60 for n in range(700)} | {b"large": b"y" * 30_000})
    return engine.volume.content(PATH)[META_AREA:], engine.extents


def test_a_commit_whose_pages_all_arrived_is_the_database(written: tuple[bytes, tuple[Extent, ...]]) -> None:
    pages, extents = written
    assert chosen(disk_with(meta(7), meta(8, extents=extents), rest=pages)) == (8, 1)


def test_a_commit_that_lacks_a_page_never_was(written: tuple[bytes, tuple[Extent, ...]]) -> None:
    pages, extents = written
    for page in range(len(pages) // 4096):
        for lost in (bytes(4096), b"\xff" * 4096, pages[:4096] if page else pages[4096:8192]):
            rest = pages[: page * 4096] + lost + pages[(page + 1) * 4096 :]
            assert chosen(disk_with(meta(7), meta(8, extents=extents), rest=rest)) == (7, 0)


@pytest.mark.parametrize("sector", range(8))
def test_a_commit_with_a_torn_page_never_was(written: tuple[bytes, tuple[Extent, ...]], sector: int) -> None:
    pages, extents = written
    page = bytearray(pages)
    at = 3 * 4096 + sector * 512
    page[at : at + 512] = bytes(512) if any(page[at : at + 512]) else b"\1" * 512
    assert chosen(disk_with(meta(7), meta(8, extents=extents), rest=bytes(page))) == (7, 0)


def test_a_commit_whose_file_is_too_short_never_was(written: tuple[bytes, tuple[Extent, ...]]) -> None:
    pages, extents = written
    for size in (0, 100, 4096, len(pages) - 4096, len(pages) - 1):
        assert chosen(disk_with(meta(7), meta(8, extents=extents), rest=pages[:size])) == (7, 0)


def test_an_older_version_of_a_page_is_not_the_page(written: tuple[bytes, tuple[Extent, ...]]) -> None:
    """It is whole in itself; but the list tells which one was meant."""
    pages, extents = written
    other = Engine()
    other.merge({b"%04d" % n: b"z" * 60 for n in range(700)} | {b"large": b"y" * 30_000})
    old = other.volume.content(PATH)[META_AREA:]
    assert len(old) == len(pages)
    at = next(at for at in range(4096, len(old), 4096) if self_consistent(old[at : at + 4096]))
    rest = pages[:at] + old[at : at + 4096] + pages[at + 4096 :]
    assert chosen(disk_with(meta(7), meta(8, extents=extents), rest=rest)) == (7, 0)


def test_what_is_missing_from_a_steady_commit_is_damage_and_never_falls_back(
    written: tuple[bytes, tuple[Extent, ...]],
) -> None:
    """Rot must not look like a torn commit: the commit stands, and reading the page says what is wrong."""
    _, extents = written
    assert chosen(disk_with(meta(7), meta(8, extents=extents, steady=True))) == (8, 1)
    assert chosen(disk_with(meta(8, extents=extents, steady=True), meta(8, extents=extents)))[0] == 8


def test_without_the_commit_before_an_incomplete_one_is_damage(written: tuple[bytes, tuple[Extent, ...]]) -> None:
    _, extents = written
    for other in (TORN, bytes(META_SIZE), meta(5), meta(6)):
        disk = disk_with(other, meta(8, extents=extents))
        with pytest.raises(CorruptionError, match="the one before it is damaged"):
            newest(disk, read_slots(disk))


@pytest.mark.parametrize(
    "extent",
    [Extent(2, 0, 0), Extent(2**40, 1, 5), Extent(2**63, 2**31, 5), Extent(2**64 - 1, 2**32 - 1, 5), Extent(0, 2, 5)],
)
def test_an_extent_that_makes_no_sense_has_not_arrived(
    written: tuple[bytes, tuple[Extent, ...]], extent: Extent
) -> None:
    disk = disk_with(meta(7), meta(8), rest=written[0])
    assert extent_arrived(disk, extent, 4096) == (extent.page_count == 0 and extent.digest == 0)


def test_a_long_run_is_verified_in_pieces(
    written: tuple[bytes, tuple[Extent, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "LONG", 4096)
    monkeypatch.setattr(sparse, "_PIECE", 5000)
    pages, extents = written
    assert chosen(disk_with(meta(7), meta(8, extents=extents), rest=pages)) == (8, 1)
    for at in (10, 4096 + 7, 9 * 4096, len(pages) - 5, len(pages) - 2):
        rest = pages[:at] + bytes([pages[at] ^ 1]) + pages[at + 1 :]
        assert chosen(disk_with(meta(7), meta(8, extents=extents), rest=rest)) == (7, 0)


# -- while somebody writes -----------------------------------------------------------------------------------------


def locked(disk: Disk) -> None:
    """Somebody else holds the writer lock."""
    other = disk.reopen()
    lease = Lease()
    WriterLock(other.identity()).acquire(lease, other, 0)
    LOCKED.append((other, lease))


LOCKED: list[tuple[Disk, Lease]] = []


@pytest.fixture(autouse=True)
def _no_locks_left() -> None:
    LOCKED.clear()


def seen(disk: Disk) -> tuple[int, bool]:
    found = visible(disk, read_slots(disk))
    assert found is not None
    return found.meta.txid, found.certain


def test_a_commit_that_is_not_synced_yet_is_not_seen() -> None:
    disk = disk_with(meta(7, steady=True), meta(8))
    locked(disk)
    assert seen(disk) == (7, False)


def test_a_commit_whose_writer_is_gone_is_seen() -> None:
    """Nobody will sync it: it is as good as what a fresh open would find."""
    assert seen(disk_with(meta(7, steady=True), meta(8))) == (8, True)


@pytest.mark.parametrize("flag", ["steady", "relaxed"])
def test_a_steady_or_relaxed_commit_is_seen_at_once(flag: str) -> None:
    disk = disk_with(meta(7, steady=True), meta(8, **{flag: True}))
    locked(disk)
    assert seen(disk)[0] == 8


def test_while_the_older_slot_is_unknown_the_newest_is_seen() -> None:
    disk = disk_with(meta(5), meta(8))
    locked(disk)
    assert seen(disk)[0] == 8


def test_no_slot_no_commit() -> None:
    disk = disk_with(TORN, TORN)
    assert visible(disk, read_slots(disk)) is None


class SlowWriter:
    """Has the writer lock of a file with that content, and writes the rest at the `count`-th operation of a reader."""

    def __init__(self, content: bytes, count: int, offset: int, rest: bytes) -> None:
        self.volume = SimVolume({PATH: content})
        self.disk = self.volume.open(PATH, writable=True)
        locked(self.disk)
        self.left, self._offset, self._rest = count, offset, rest
        self.volume.before = self._step

    def _step(self, operation: object) -> None:
        self.left -= 1
        if not self.left:
            self.volume.before = None
            self.disk.write(self._offset, [self._rest])


def test_a_slot_read_in_the_middle_of_being_written_is_read_again() -> None:
    writer = SlowWriter(encode_meta(meta(7)) + TORN, 4, META_SIZE, encode_meta(meta(8)))
    slots = read_slots(writer.disk)
    assert [decoded.txid for decoded in slots.metas if decoded is not None] == [7, 8]
    assert slots.stamp
    assert writer.left == 0


def test_a_file_that_is_being_made_a_database_is_waited_for_longer() -> None:
    """Its writer may get no processor for a while. To say meanwhile that the file is of another kind would be wrong."""
    writer = SlowWriter(b"half made" * 1000, 1000, 0, encode_meta(meta(1)) * 2)
    assert chosen(writer.disk)[0] == 1


def test_a_slot_that_stays_torn_while_somebody_writes_is_not_trusted_to_stay() -> None:
    """No look is remembered, so the next reader looks again."""
    disk = disk_with(meta(7), TORN)
    locked(disk)
    slots = read_slots(disk)
    assert slots.metas[1] is None
    assert slots.stamp == b""
    assert decode_meta(TORN) is None
