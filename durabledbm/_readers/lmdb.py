"""LMDB's file, read without its library, which ends the whole process when it meets a damaged page.

The file is a B+tree of pages of one size, all numbers little-endian. Pages 0 and 1 are meta pages; the one with the
larger transaction number tells the root. A page begins with its number, its flags and, in the tree, where the table of
its nodes ends; overflow pages hold large values. Nothing in a page is believed before it is checked, no page is read
twice, and keys must ascend. So a damaged file ends neither the process nor in a loop.

Only databases written on 64-bit machines in LMDB's format 1 (all 0.9 versions) are read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Generator, Iterator
from typing import NamedTuple

from ..errors import CorruptionError, error
from .file import Damaged, OldFile

__all__ = ["LmdbSource"]

_META = struct.Struct("<16xIIQQ 48x IHHQQQQQ QQ")
"""Behind the page's header: magic, version, address, size of the map; the list of free pages, which is skipped; of the
main database: a pad, flags, depth, branch, leaf and overflow pages, entries, root; last page, transaction number."""
_PAGE_SIZE = struct.Struct("<40xI")
_HEADER = struct.Struct("<Q2xHHH")
"""Page number, flags, and the ends of the table of nodes and of the free space."""
_OVERFLOW_HEADER = struct.Struct("<Q2xHI")
"""Page number, flags, and the number of pages."""
_NODE = struct.Struct("<HHHH")
"""Size of the value, or number of the child page, in two or three parts; flags; size of the key."""
_NUMBER = struct.Struct("<Q")

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_KINDS = _BRANCH | _LEAF | _OVERFLOW
_SEVERAL_VALUES = 4
_BIG_VALUE, _NAMED_DATABASE = 1, 2
_DATABASE_SIZE = 48
_NO_PAGE = 2**64 - 1
_PAGE_SIZES = [512 << shift for shift in range(8)]
_DEPTH_MAX = 32
_PIECE = 4096


class _Database(NamedTuple):
    """The main database, as a meta page tells it."""

    flags: int
    depth: int
    entries: int
    root: int
    last_page: int


class _Node(NamedTuple):
    """A node of a page of the tree: what its header says, its key, and where its value begins."""

    low: int
    high: int
    flags: int
    key: bytes
    at: int


class LmdbSource:
    """The entries of an LMDB environment without named databases. `damaged` is told what cannot be read.

    Raises `error` for one with named databases or several values for a key, `CorruptionError` if nothing can be read.
    """

    def __init__(self, path: str, damaged: Damaged) -> None:
        self._path = os.path.join(path, "data.mdb") if os.path.isdir(path) else path
        self._damaged = damaged
        self._file = OldFile(self._path)
        try:
            self._page_size, self._database = _find(self._file)
            if self._database.flags & _SEVERAL_VALUES:
                raise error(f"{path}: an LMDB database with several values for one key can't be migrated")
        except BaseException:
            self._file.close()
            raise
        self.ordered = not self._database.flags  # some of them mean another order
        self._pages = min(self._file.size // self._page_size, self._database.last_page + 1)
        self._last = b""
        self._seen: dict[int, bytearray] = {}
        """Which pages were met: a byte a page, in pieces, since the file may have large holes."""

    def count(self) -> int | None:
        """The number of entries, as the file says."""
        return self._database.entries

    def entries(self) -> Generator[tuple[bytes, bytes], None, None]:
        """All entries."""
        self._last, self._seen = b"", {}
        count = 0
        if self._database.root != _NO_PAGE:
            for entry in self._below(self._database.root, self._database.depth):
                yield entry
                count += 1
        if count != self._database.entries:
            self._damaged(f"{self._path}: of {self._database.entries} entries {count} could be read")

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _below(self, number: int, depth: int) -> Generator[tuple[bytes, bytes], None, None]:
        """The entries under a page of the tree. `depth` counts down to 1 at the leaves."""
        page = self._page(number, _LEAF if depth == 1 else _BRANCH)
        if page is None:
            self._damaged(f"{self._path}: page {number} is damaged, or is none of the tree")
            return
        for node in _nodes(page):
            if node is None:
                self._damaged(f"{self._path}: an entry in page {number} is damaged")
            elif depth > 1:
                yield from self._below(node.low | node.high << 16 | node.flags << 32, depth - 1)
            else:
                value = self._value(page, node)
                if value is None or not node.key or (self.ordered and node.key <= self._last):
                    self._damaged(f"{self._path}: the entry {node.key[:50]!r} is damaged")
                else:
                    self._last = node.key
                    yield node.key, value

    def _page(self, number: int, kind: int) -> bytes | None:
        """A page of the tree, if it is one of this kind, and was not met before."""
        if not 1 < number < self._pages or self._was_met(number):
            return None
        page = self._file.read(number * self._page_size, self._page_size)
        if page is None:
            return None
        own_number, flags, lower, upper = _HEADER.unpack_from(page)
        return page if own_number == number and flags & _KINDS == kind and lower <= upper <= len(page) else None

    def _was_met(self, number: int) -> bool:
        piece, at = divmod(number, _PIECE)
        if piece not in self._seen:
            self._seen[piece] = bytearray(_PIECE)
        met = bool(self._seen[piece][at])
        self._seen[piece][at] = 1
        return met

    def _value(self, page: bytes, node: _Node) -> bytes | None:
        size = node.low | node.high << 16
        if node.flags & _NAMED_DATABASE:
            if size == _DATABASE_SIZE:
                raise error(f"{self._path}: an LMDB environment with named databases can't be migrated")
            return None
        if not node.flags & _BIG_VALUE:
            value = page[node.at : node.at + size]
            return value if len(value) == size else None
        if node.at + _NUMBER.size > len(page):
            return None
        (number,) = _NUMBER.unpack_from(page, node.at)
        if not 1 < number < self._pages:
            return None
        offset = number * self._page_size
        head = self._file.read(offset, _OVERFLOW_HEADER.size)
        if head is None:
            return None
        own_number, flags, pages = _OVERFLOW_HEADER.unpack(head)
        room = pages * self._page_size - _OVERFLOW_HEADER.size
        if own_number != number or flags & _KINDS != _OVERFLOW or size > room:
            return None
        return self._file.read(offset + _OVERFLOW_HEADER.size, size)


def _find(file: OldFile) -> tuple[int, _Database]:
    """The page size, and the newest state of the main database that is whole."""
    path = file.path
    first = file.read(0, _META.size) or bytes(_META.size)
    (page_size,) = _PAGE_SIZE.unpack_from(first)
    if page_size not in _PAGE_SIZES:
        raise CorruptionError("the first meta page is damaged, or of a machine of another kind", path=path)
    states = []
    for meta in (first, file.read(page_size, _META.size) or bytes(_META.size)):
        magic, version, _, _, _, flags, depth, _, _, _, entries, root, last_page, txid = _META.unpack(meta)
        if magic != _MAGIC:
            continue
        if version & 0xFFFF != _VERSION:
            raise error(f"{path}: LMDB's format {version & 0xFFFF}; only format {_VERSION} can be migrated")
        states.append((txid, _Database(flags, depth, entries, root, last_page)))
    if not states:
        raise CorruptionError("both meta pages are damaged", path=path)
    _, database = max(states)
    if database.root != _NO_PAGE and not 0 < database.depth <= _DEPTH_MAX:
        raise CorruptionError(f"its tree cannot be {database.depth} pages deep", path=path)
    return page_size, database


def _nodes(page: bytes) -> Iterator[_Node | None]:
    """The nodes of a page, in order. None for one that is damaged."""
    table_end = _HEADER.unpack_from(page)[2]
    for at in range(_HEADER.size, table_end - 1, 2):
        start = int.from_bytes(page[at : at + 2], "little")
        if not table_end <= start <= len(page) - _NODE.size:
            yield None
            continue
        low, high, flags, key_size = _NODE.unpack_from(page, start)
        start += _NODE.size
        end = start + key_size
        yield _Node(low, high, flags, page[start:end], end) if end <= len(page) else None
