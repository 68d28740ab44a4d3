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

_META = struct.Struct("<16xIIQQ I44x 4xHHQQQQQ QQ")
"""Behind the page's header: magic, version, address, size of the map; page size, and the list of free pages, which is
skipped; of the main database: flags, depth, branch, leaf and overflow pages, entries, root; last page, transaction."""
_HEADER = struct.Struct("<Q2xHHH")
"""Page number, flags, and the ends of the table of nodes and of the free space."""
_OVERFLOW_HEADER = struct.Struct("<Q2xHI")
"""Page number, flags, and the number of pages."""
_NODE = struct.Struct("<HHHH")
"""Size of the value, or number of the child page, in two or three parts; flags; size of the key."""
_NUMBER = struct.Struct("<Q")
_DATABASE = struct.Struct("<4xHH24xQQ")
"""Of a named database, what is used: flags, depth, entries, root."""

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
    """The main database, as a meta page tells it, or a named one."""

    flags: int
    depth: int
    entries: int
    root: int
    last_page: int


class LmdbSource:
    """The entries of an LMDB environment, and of its named databases. `damaged` is told what cannot be read.

    Raises `error` if one has several values for a key, or a name that is no text; `CorruptionError` if nothing can be
    read.
    """

    def __init__(self, path: str, damaged: Damaged) -> None:
        self._damaged = damaged
        self._file = OldFile(os.path.join(path, "data.mdb") if os.path.isdir(path) else path)
        try:
            self._page_size, self._database = _find(self._file)
            if self._database.flags & _SEVERAL_VALUES:
                raise error(f"{path}: an LMDB database with several values for one key can't be migrated")
        except BaseException:
            self._file.close()
            raise
        self._pages = min(self._file.size // self._page_size, self._database.last_page + 1)
        self._seen: dict[int, bytearray] = {}
        """Which pages were met: a byte a page, in pieces, since the file may have large holes."""
        try:
            self._named = dict(self._named_databases())
        except BaseException:
            self._file.close()
            raise
        # Some flags mean another order.
        self.ordered = not self._database.flags and not any(database.flags for database in self._named.values())

    def tables(self) -> list[str]:
        """The names of the named databases."""
        return list(self._named)

    def count(self) -> int | None:
        """The number of entries, as the file says."""
        named = self._named.values()
        return self._database.entries - len(named) + sum(database.entries for database in named)

    def entries(self) -> Generator[tuple[bytes, bytes], None, None]:
        """All entries of the main database."""
        return self._entries(self._database, len(self._named))

    def entries_of(self, table: str) -> Generator[tuple[bytes, bytes], None, None]:
        """All entries of a named database."""
        return self._entries(self._named[table], 0)

    def _named_databases(self) -> Iterator[tuple[str, _Database]]:
        """The named databases, which are entries of the main one."""
        path = self._file.path
        for page in self._leaves(self._database.root, self._database.depth, told=False):
            for low, high, kind, key, at in self._nodes(page, told=False):
                if kind != _NAMED_DATABASE or low | high << 16 != _DATABASE_SIZE or at + _DATABASE_SIZE > len(page):
                    continue
                flags, depth, entries, root = _DATABASE.unpack_from(page, at)
                if flags & _SEVERAL_VALUES:
                    raise error(f"{path}: an LMDB database with several values for one key can't be migrated")
                if root != _NO_PAGE and not 0 < depth <= _DEPTH_MAX:
                    raise CorruptionError(f"the tree of {key[:50]!r} cannot be {depth} pages deep", path=path)
                try:
                    name = key.decode()
                except UnicodeDecodeError as exc:
                    raise error(f"{path}: the name {key[:50]!r} of an LMDB database is no text") from exc
                yield name, _Database(flags, depth, entries, root, self._database.last_page)

    def _entries(self, database: _Database, named: int) -> Generator[tuple[bytes, bytes], None, None]:
        """All entries of a database, of which so many are named databases."""
        self._seen = {}
        count, last = named, b""
        for page in self._leaves(database.root, database.depth):
            for low, high, flags, key, at in self._nodes(page):
                if named and flags == _NAMED_DATABASE:
                    continue
                value = self._value(page, low | high << 16, flags, at)
                if value is None or not key or (self.ordered and key <= last):
                    self._damaged(f"{self._file.path}: the entry {key[:50]!r} is damaged")
                else:
                    yield key, value
                    last = key
                    count += 1
        if count != database.entries:
            self._damaged(f"{self._file.path}: of {database.entries} entries {count} could be read")

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _leaves(self, number: int, depth: int, *, told: bool = True) -> Iterator[bytes]:
        """The leaves under a page of the tree, in order. `depth` counts down to 1 there. If damage is not to be `told`,
        it is told at another time.
        """
        if number == _NO_PAGE:
            return
        page = self._page(number, _LEAF if depth == 1 else _BRANCH)
        if page is None:
            if told:
                self._damaged(f"{self._file.path}: page {number} is damaged, or does not belong to the tree")
        elif depth == 1:
            yield page
        else:
            for low, middle, high, _, _ in self._nodes(page, told=told):
                yield from self._leaves(low | middle << 16 | high << 32, depth - 1, told=told)

    def _nodes(self, page: bytes, *, told: bool = True) -> Iterator[tuple[int, int, int, bytes, int]]:
        """The nodes of a page, in order: three numbers of its header, the key, and where the value begins."""
        number, _, table_end, _ = _HEADER.unpack_from(page)
        for at in range(_HEADER.size, table_end - 1, 2):
            start = page[at] | page[at + 1] << 8
            if table_end <= start <= len(page) - _NODE.size:
                low, high, flags, key_size = _NODE.unpack_from(page, start)
                start += _NODE.size
                end = start + key_size
                if end <= len(page):
                    yield low, high, flags, page[start:end], end
                    continue
            if told:
                self._damaged(f"{self._file.path}: an entry in page {number} is damaged")

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

    def _value(self, page: bytes, size: int, flags: int, at: int) -> bytes | None:
        if not flags:
            value = page[at : at + size]
            return value if len(value) == size else None
        if flags != _BIG_VALUE or at + _NUMBER.size > len(page):
            return None
        (number,) = _NUMBER.unpack_from(page, at)
        if not 1 < number < self._pages:
            return None
        offset = number * self._page_size
        head = self._file.read(offset, _OVERFLOW_HEADER.size)
        if head is None:
            return None
        own_number, kind, pages = _OVERFLOW_HEADER.unpack(head)
        room = pages * self._page_size - _OVERFLOW_HEADER.size
        if own_number != number or kind & _KINDS != _OVERFLOW or size > room:
            return None
        return self._file.read(offset + _OVERFLOW_HEADER.size, size)


def _find(file: OldFile) -> tuple[int, _Database]:
    """The page size, and the newest state of the main database that is told by a meta page."""
    states = []
    for at in (0, *_PAGE_SIZES):  # the second one begins where the first page ends
        meta = file.read(at, _META.size)
        if meta is None:
            break
        magic, version, _, _, page_size, flags, depth, _, _, _, entries, root, last_page, txid = _META.unpack(meta)
        if magic != _MAGIC or page_size not in _PAGE_SIZES or at not in (0, page_size):
            continue
        if version & 0xFFFF != _VERSION:
            raise error(f"{file.path}: LMDB's format {version & 0xFFFF}; only format {_VERSION} can be migrated")
        states.append((txid, page_size, _Database(flags, depth, entries, root, last_page)))
    if not states:
        raise CorruptionError("both meta pages are damaged, or were written by another kind of machine", path=file.path)
    _, page_size, database = max(states)
    if database.root != _NO_PAGE and not 0 < database.depth <= _DEPTH_MAX:
        raise CorruptionError(f"its tree cannot be {database.depth} pages deep", path=file.path)
    return page_size, database
