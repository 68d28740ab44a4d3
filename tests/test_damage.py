"""A damaged file gives the right data or our error: never wrong data, a hang, or somebody else's exception."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import struct
from collections.abc import Iterator

import damage
import pytest
from damage import PAGE, claiming, forge, images, outcome, pinned_checksum, runs, with_metas
from systems import WINDOWS

from durabledbm import CorruptionError, error
from durabledbm._engine.meta import META_AREA, META_SIZE
from durabledbm._engine.page import BRANCH, HEADER, LEAF, REF, SPACE, crc_of

pytestmark = pytest.mark.no_cover  # tracing would take longer than the search; other tests cover the same lines

PAGES = 16
BITS = 8 * PAGES * PAGE


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """A gigabyte at most may be taken: claims of billions must not be believed. Windows has no such limit."""
    if WINDOWS:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def page(image: bytes, number: int) -> bytes:
    return image[number * PAGE : number * PAGE + PAGE]


def replaced(image: bytes, number: int, content: bytes) -> bytes:
    return image[: number * PAGE] + content + image[number * PAGE + PAGE :]


def assert_right(image: bytes, what: object) -> None:
    found = outcome(image)
    assert isinstance(found, error) or found == images()[2], what


def test_the_image_has_64_kib_and_everything_that_a_file_can_hold() -> None:
    image, before, content = images()
    assert len(image) == len(before) == 64 * 1024
    assert outcome(image) == content
    assert outcome(before) != content
    assert {read.type for read in (damage.read_header(run) for _, run in runs(image))} >= {1, 2, 3, 4}


def test_flipped_bits_are_answered_rightly_or_detected() -> None:
    """A sample of all bits, and the first and the last bytes of each page."""
    rng = random.Random(0)
    bits = {page * PAGE * 8 + rng.randrange(PAGE * 8) for page in range(PAGES) for _ in range(80)}
    for number in range(PAGES):
        start, end = number * PAGE * 8, (number + 1) * PAGE * 8
        bits.update(range(start, start + 32 * 8, 11))
        bits.update(range(end - 32, end))
    assert len(bits) > 2000
    assert [bit for bit in sorted(bits) if damage.bad_flips(range(bit, bit + 1))] == []


@pytest.mark.long
def test_every_flipped_bit_is_answered_rightly_or_detected() -> None:
    parts = [range(start, min(start + 4096, BITS)) for start in range(0, BITS, 4096)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        bad = [bit for found in pool.imap_unordered(damage.bad_flips, parts) for bit in found]
    assert sum(map(len, parts)) == BITS
    assert bad == []


def test_a_flipped_bit_in_a_page_of_the_tree_is_reported_by_check() -> None:
    image = images()[0]
    in_use = [page_id for page_id, run in runs(image) if damage.problems(replaced(image, page_id, bytes(PAGE)))]
    assert len(in_use) > 5
    for page_id in in_use:
        for bit in (0, 77, 8 * PAGE - 1):
            assert damage.problems(damage.flipped(page_id * PAGE * 8 + bit)), (page_id, bit)


@pytest.mark.parametrize("content", [bytes(PAGE), b"\xff" * PAGE, random.Random(1).randbytes(PAGE)])
def test_overwritten_pages_are_detected(content: bytes) -> None:
    for number in range(PAGES):
        assert_right(replaced(images()[0], number, content), number)


def test_swapped_duplicated_and_spliced_pages_are_detected() -> None:
    image = images()[0]
    for a, b in itertools.permutations(range(PAGES), 2):
        assert_right(replaced(replaced(image, a, page(image, b)), b, page(image, a)), f"{a} and {b} swapped")
        assert_right(replaced(image, a, page(image, b)), f"{b} over {a}")
        for cut in (512, 2048, PAGE - 4):
            assert_right(replaced(image, a, page(image, a)[:cut] + page(image, b)[cut:]), f"{a} then {b} at {cut}")


def test_pages_of_an_older_version_are_detected() -> None:
    """Also more than one of them, as after a restore that stopped half-way; but not all: that is the old version."""
    image, before, _ = images()
    rng = random.Random(2)
    for number in range(2, PAGES):
        assert_right(replaced(image, number, page(before, number)), number)
    for _ in range(300):
        old = set(rng.sample(range(2, PAGES), rng.randrange(1, PAGES - 2)))
        mixed = b"".join(page(before if number in old else image, number) for number in range(PAGES))
        assert_right(mixed, old)


def test_truncated_files_are_detected() -> None:
    image = images()[0]
    sizes = {*range(PAGE, len(image), PAGE), *random.Random(3).sample(range(1, len(image)), 200), 1, 15, 16, 4095, 8191}
    for size in sorted(sizes):
        assert_right(image[:size], size)


def test_extended_files_are_read() -> None:
    image, _, content = images()
    for extra in (b"\0", bytes(PAGE), random.Random(4).randbytes(3 * PAGE + 7)):
        assert outcome(image + extra) == content


# -- right checksums


def assert_bounded(image: bytes, what: object) -> None:
    """Whatever the content: an answer or our error, in bounded work; also when it is checked or written to."""
    try:
        outcome(image, forged=True)
        outcome(image, write=True, forged=True)
        damage.problems(image)
    except BaseException as exc:
        raise AssertionError(f"{what}: {type(exc).__name__}: {exc}") from exc


HUGE = (0, 1, 3, 17, 2**16, 2**31, 2**32 - 1, 2**40, 2**62, 2**64 - 1)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("field", ["page_count", "entry_count", "tree_count", "depth", "txid", "steady_txid"])
def test_huge_numbers_in_the_meta_page_are_not_believed(field: str) -> None:
    for number in HUGE:
        if number < 2**32 or field != "depth":
            assert_bounded(claiming(images()[0], **{field: number}), (field, number))


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("field", ["root", "space"])
def test_refs_in_the_meta_page_are_not_believed(field: str) -> None:
    image = images()[0]
    crcs = {page_id: crc_of(run) for page_id, run in runs(image)}
    for page_id, count in itertools.product((*crcs, 0, 1, 2**62, 2**64 - 1), (0, 1, 2, 2**31, 2**32 - 1)):
        crc = int.from_bytes(crcs.get(page_id, b"abcd"), "little")
        assert_bounded(claiming(image, **{field: REF.pack(page_id, count, crc)}), (field, page_id, count))


def test_a_meta_page_with_counts_that_do_not_fit_is_refused() -> None:
    image = images()[0]
    for at, size in ((136, 4), (140, 2), (142, 2), (32, 4)):
        for number in (0, 1, 255, 2 ** (8 * size) - 1):
            data = number.to_bytes(size, "little")
            changed = with_metas(image, lambda slot, at=at, data=data: slot[:at] + data + slot[at + len(data) :])
            assert_bounded(changed, (at, number))


def test_a_branch_that_is_its_own_child_ends() -> None:
    image = images()[0]
    page_id, run = next((page_id, run) for page_id, run in runs(image) if run[0] == BRANCH)
    children = [
        REF.pack(other, len(child) // PAGE, int.from_bytes(crc_of(child), "little")) for other, child in runs(image)
    ]
    own = REF.pack(page_id, 1, 0x12345678)
    body = run
    for ref in children:
        body = body.replace(ref, own)
    assert own in body
    body = pinned_checksum(body[:-4], PAGE - 40, 0x12345678) + struct.pack("<I", 0x12345678)
    for depth in (2, 3, 40, 2**32 - 1):
        looped = claiming(replaced(image, page_id, body), root=own, depth=depth)
        assert_bounded(looped, depth)
        assert damage.problems(looped)


def test_tables_of_leaves_and_branches_are_not_believed() -> None:
    """Each byte of header and table of one run of each kind becomes something else, with right checksums."""
    image = images()[0]
    rng = random.Random(5)
    for kind in (LEAF, BRANCH, SPACE):
        page_id, run = next((page_id, run) for page_id, run in runs(image) if run[0] == kind)
        for at in (*range(HEADER.size), *rng.sample(range(HEADER.size, 400), 25)):
            for value in (0, 255, run[at] ^ 1):
                changed = run[:at] + bytes([value]) + run[at + 1 :]
                assert_bounded(forge(image, page_id, changed), (kind, at, value))


def fuzzed(image: bytes, rng: random.Random) -> bytes:
    """Some runs changed here and there, checksums right."""
    for _ in range(rng.randrange(1, 4)):
        choices = list(runs(image))
        page_id, run = rng.choice(choices)
        body = bytearray(run)
        for _ in range(rng.randrange(1, 6)):
            at = rng.choice((rng.randrange(32), rng.randrange(200), rng.randrange(len(body) - 8)))
            number = struct.pack("<Q", rng.choice(choices)[0])
            value = rng.choice((rng.randbytes(1), rng.randbytes(4), b"\xff" * 8, bytes(8), number))
            body[at : at + len(value)] = value
        image = forge(image, page_id, bytes(body[: len(run)]))
        if rng.random() < 0.3:
            at = rng.randrange(16, META_SIZE - 12)
            data = rng.choice((rng.randbytes(1), b"\xff" * 4, bytes(4)))
            image = with_metas(image, lambda slot, at=at, data=data: slot[:at] + data + slot[at + len(data) :])
    return image


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("seed", range(8))
def test_random_structures_with_right_checksums_are_survived(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(40):
        assert_bounded(fuzzed(images()[0], rng), (seed, number))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1040))
def test_many_random_structures_with_right_checksums_are_survived(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(500):
        assert_bounded(fuzzed(images()[0], rng), (seed, number))


def test_both_metas_damaged_is_a_corruption_that_names_salvage() -> None:
    image = images()[0]
    with_magic = image[:16] + bytes(META_AREA - 16) + image[META_AREA:]
    for damaged in (with_magic, bytes(META_AREA) + image[META_AREA:]):
        told = outcome(damaged)
        assert isinstance(told, CorruptionError)
        assert "salvage" in str(told)
