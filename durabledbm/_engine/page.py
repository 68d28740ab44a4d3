"""Pages: how a run of pages is sealed on the way to the disk and verified on the way back.

Everything after the two meta pages is a *run*: one or more consecutive pages that hold one thing (a leaf, a branch,
a large value, a piece of the free-space map). A run starts with a header that says what it is, where it belongs and
which commit wrote it, and ends with the CRC32C of everything before. What points at a run is a *ref*: its page
id, its length and its CRC. So a run vouches for all runs below it, the meta page vouches for the root, and a write
that was lost, torn or went to the wrong place is found on reading, not believed.

This module is pure: bytes in, bytes out. The layout is documented in docs/format.md, and tests/test_format.py holds
the two together.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .checksum import crc32c
from .kernels import twin

__all__ = [
    "BRANCH", "CRC_SIZE", "HEADER", "LEAF", "MAP", "MAX_PAGE_SIZE", "MIN_PAGE_SIZE", "NO_REF", "OVERFLOW", "PENDING",
    "REF", "SPACE", "TYPE_NAMES", "WHOLE", "Header", "crc_of", "matches", "mismatch", "pages_for", "read_header",
    "ref_parts", "seal", "self_consistent",
]  # fmt: skip

MIN_PAGE_SIZE = 4096
MAX_PAGE_SIZE = 65536

LEAF, BRANCH, OVERFLOW, SPACE, MAP, PENDING = 1, 2, 3, 4, 5, 6
TYPE_NAMES = {LEAF: "leaf", BRANCH: "branch", OVERFLOW: "overflow", SPACE: "space", MAP: "map", PENDING: "pending"}

HEADER = struct.Struct("<BBHIQQII")
"""type, flags, tree, entry count, page id, txid, page count, payload size."""

REF = struct.Struct("<QII")
"""page id, page count, CRC32C: what a parent knows of a run. Kept as 16 bytes everywhere; unpacked only to read."""

NO_REF = bytes(REF.size)
"""The ref of nothing: an empty tree has no root."""

CRC_SIZE = 4
_CRC = struct.Struct("<I")

WHOLE = crc32c(_CRC.pack(crc32c(b"")))
"""CRC32C over any bytes followed by their own CRC32C is this constant: a run is verified in one call, no slice."""


class Header(NamedTuple):
    """The fields of a run's header."""

    type: int
    flags: int
    tree: int
    """Which tree it belongs to: 0 is the main tree, 1 the tree of tables."""
    entry_count: int
    page_id: int
    txid: int
    page_count: int
    payload_size: int


def pages_for(payload_size: int, page_size: int) -> int:
    """How many pages a run with `payload_size` bytes of payload takes."""
    return -(-(HEADER.size + payload_size + CRC_SIZE) // page_size)


@twin
def seal(
    kind: int, flags: int, entry_count: int, page_id: int, txid: int, page_size: int, *payload: bytes, tree: int = 0
) -> bytes:
    """Return the run: header, the parts of the payload, zeros up to the end of its last page, CRC."""
    size = sum(map(len, payload))
    page_count = pages_for(size, page_size)
    header = HEADER.pack(kind, flags, tree, entry_count, page_id, txid, page_count, size)
    body = b"".join((header, *payload, bytes(page_count * page_size - HEADER.size - size - CRC_SIZE)))
    return body + _CRC.pack(crc32c(body))


def crc_of(run: bytes) -> bytes:
    """The CRC field of a sealed run, as it stands in refs."""
    return run[-CRC_SIZE:]


def ref_parts(ref: bytes) -> tuple[int, int, int]:
    """Page id, page count and CRC of a ref."""
    page_id, page_count, crc = REF.unpack(ref)
    return page_id, page_count, crc


def read_header(run: bytes) -> Header:
    """The header of a run of at least `HEADER.size` bytes. Nothing in it may be believed before the CRC is."""
    return Header._make(HEADER.unpack_from(run))


def self_consistent(run: bytes) -> bool:
    """Whether the bytes end in their own CRC."""
    return crc32c(run) == WHOLE


@twin
def matches(run: bytes, ref: bytes, kind: int) -> bool:
    """Whether `run` is what `ref` points at, and of this type."""
    return (
        crc32c(run) == WHOLE and run.endswith(ref[-CRC_SIZE:]) and run[8:16] == ref[:8] and run[24:28] == ref[8:12]
        and run[0] == kind
    )  # fmt: skip


def mismatch(run: bytes, ref: bytes, kinds: tuple[int, ...]) -> str | None:
    """Why `run` is not what `ref` points at, or None if it is."""
    if run and run[0] in kinds and matches(run, ref, run[0]):
        return None
    page_id, page_count, _ = REF.unpack(ref)
    if crc32c(run) != WHOLE:
        return "the checksum does not match the content"
    if not run.endswith(ref[-CRC_SIZE:]):
        return "the page is not the version that its parent points at"
    header = Header._make(HEADER.unpack_from(run))
    if header.page_id != page_id:
        return f"the page says that it is page {header.page_id}"
    if header.page_count != page_count:
        return f"the page says that it is one of {header.page_count}, not of {page_count}"
    if header.type not in kinds:
        return f"the page is of type {header.type}, not {' or '.join(TYPE_NAMES[kind] for kind in kinds)}"
    return None
