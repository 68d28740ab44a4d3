"""Single pages of a file whose tree cannot be trusted: which of them are intact, and what they are.

For what looks at files from outside of the tree, such as `inspect`. Reads only, and believes a page only
after its checksum.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from ._engine.disk import Disk
from ._engine.node import leaf_keys
from ._engine.page import (
    CRC_SIZE,
    HEADER,
    LEAF,
    MAX_PAGE_SIZE,
    MIN_PAGE_SIZE,
    OVERFLOW,
    TYPE_NAMES,
)  # fmt: skip
from ._engine.pager import MALFORMED
from ._engine.recovery import crc_if_whole

__all__ = ["IntactRun", "guess_page_size", "intact_run"]

_KEY_MAX = 64
"""Bytes of a large value's key that are of interest."""

_GUESS_PAGES = 4096
"""Pages that are looked at to find out the page size."""


class IntactRun(NamedTuple):
    """A run that is whole by its own checksum."""

    kind: str
    entries: int
    txid: int
    page_count: int
    used: int
    first_key: bytes


def intact_run(disk: Disk, page_size: int, page_id: int, stop: int) -> IntactRun | None:
    """The run that begins at `page_id` and ends before `stop`, if there is an intact one."""
    offset = page_id * page_size
    head = disk.read(HEADER.size, offset)
    if len(head) < HEADER.size:
        return None
    kind, _, _, entries, own_id, txid, page_count, payload = HEADER.unpack(head)
    if kind not in TYPE_NAMES or own_id != page_id or not 0 < page_count <= stop - page_id:
        return None
    if crc_if_whole(disk, offset, page_count * page_size) is None:
        return None
    key = b""
    if kind == LEAF:
        try:
            key = next(iter(leaf_keys(disk.read(page_count * page_size, offset))), b"")
        except MALFORMED:
            return None
    elif kind == OVERFLOW:
        key = disk.read(min(entries, _KEY_MAX), offset + HEADER.size)
    return IntactRun(TYPE_NAMES[kind], entries, txid, page_count, HEADER.size + payload + CRC_SIZE, key)


def guess_page_size(disk: Disk) -> int:
    """The page size of a file without a usable meta page: what most pages, by the ids they bear, agree on."""
    votes: Counter[int] = Counter()
    for at in range(1, min(disk.size() // MIN_PAGE_SIZE, _GUESS_PAGES)):
        offset = at * MIN_PAGE_SIZE
        head = disk.read(HEADER.size, offset)
        if len(head) < HEADER.size:
            break
        kind, own_id = head[0], HEADER.unpack(head)[4]
        if kind in TYPE_NAMES and own_id and offset % own_id == 0:
            size = offset // own_id
            if MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE and not size & (size - 1):
                votes[size] += 1
    return votes.most_common(1)[0][0] if votes else MIN_PAGE_SIZE
