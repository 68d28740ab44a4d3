"""Sealed runs: what was written is recognized, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabledbm._engine.page import (
    BRANCH,
    CRC_SIZE,
    HEADER,
    LEAF,
    NO_REF,
    OVERFLOW,
    REF,
    TYPE_NAMES,
    crc_of,
    mismatch,
    pages_for,
    read_header,
    ref_parts,
    seal,
    self_consistent,
)

OVERHEAD = HEADER.size + CRC_SIZE
PAGE_SIZES = [4096, 8192, 65536]


def ref_of(run: bytes, page_id: int | None = None) -> bytes:
    header = read_header(run)
    own_id = header.page_id if page_id is None else page_id
    return REF.pack(own_id, header.page_count, int.from_bytes(crc_of(run), "little"))


@given(
    kind=st.sampled_from(list(TYPE_NAMES)),
    flags=st.integers(0, 255),
    entry_count=st.integers(0, 2**32 - 1),
    page_id=st.integers(0, 2**64 - 1),
    txid=st.integers(0, 2**64 - 1),
    page_size=st.sampled_from(PAGE_SIZES),
    size=st.integers(0, 20_000),
)
def test_a_sealed_run_says_what_it_is(**given: int) -> None:
    payload = bytes(range(1, 256)) * (given["size"] // 255 + 1)
    payload = payload[: given["size"]]
    names = ("kind", "flags", "entry_count", "page_id", "txid", "page_size")
    run = seal(*(given[name] for name in names), payload)
    header = read_header(run)
    assert len(run) == header.page_count * given["page_size"]
    assert header.page_count == pages_for(len(payload), given["page_size"])
    assert (header.type, header.flags, header.tree) == (given["kind"], given["flags"], 0)
    assert (header.entry_count, header.page_id, header.txid) == tuple(given[name] for name in names[2:5])
    assert header.payload_size == len(payload)
    assert run[HEADER.size : HEADER.size + len(payload)] == payload
    assert not any(run[HEADER.size + len(payload) : -CRC_SIZE])
    assert self_consistent(run)
    assert mismatch(run, ref_of(run), (given["kind"],)) is None


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_run_takes_as_many_pages_as_its_payload_needs(page_size: int) -> None:
    one = page_size - OVERHEAD
    assert [pages_for(size, page_size) for size in (0, 1, one)] == [1, 1, 1]
    assert [pages_for(size, page_size) for size in (one + 1, one + page_size, one + page_size + 1)] == [2, 2, 3]


def test_every_flipped_bit_is_noticed() -> None:
    run = bytearray(seal(LEAF, 0, 3, 7, 9, 4096, bytes(range(200))))
    ref = ref_of(bytes(run))
    for at in range(len(run)):
        run[at] ^= 1 << at % 8
        assert not self_consistent(bytes(run))
        assert mismatch(bytes(run), ref, (LEAF,)) is not None
        run[at] ^= 1 << at % 8
    assert self_consistent(bytes(run))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 512, 4095])
def test_a_run_cut_short_is_noticed(size: int) -> None:
    run = seal(LEAF, 0, 3, 7, 9, 4096, b"payload")
    assert not self_consistent(run[:size])


def test_an_older_version_of_a_page_is_noticed() -> None:
    old, new = (seal(LEAF, 0, 1, 7, txid, 4096, b"payload") for txid in (8, 9))
    assert mismatch(old, ref_of(new), (LEAF,)) == "the page is not the version that its parent points at"


def test_a_page_in_the_wrong_place_is_noticed() -> None:
    run = seal(LEAF, 0, 1, 7, 9, 4096, b"payload")
    assert mismatch(run, ref_of(run, page_id=8), (LEAF,)) == "the page says that it is page 7"


def test_a_page_of_the_wrong_type_is_noticed() -> None:
    run = seal(LEAF, 0, 1, 7, 9, 4096, b"payload")
    assert mismatch(run, ref_of(run), (BRANCH,)) == "the page is of type 1, not branch"
    assert mismatch(run, ref_of(run), (BRANCH, OVERFLOW)) == "the page is of type 1, not branch or overflow"
    assert mismatch(run, ref_of(run), (BRANCH, LEAF)) is None


def test_zeros_are_not_a_run() -> None:
    """A page that never arrived in a file that grew."""
    assert not self_consistent(bytes(4096))


def test_a_ref_has_three_parts() -> None:
    ref = REF.pack(2**40, 2**20, 0xDEADBEEF)
    assert ref_parts(ref) == (2**40, 2**20, 0xDEADBEEF)
    assert len(ref) == len(NO_REF)
    assert ref_parts(NO_REF) == (0, 0, 0)
