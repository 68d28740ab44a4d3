"""Berkeley DB's hash file: what dbm.ndbm makes where it is Berkeley DB's, and what Python 2's dbhash made.

Pages of one size begin with a header: their number, the next one, how many items they hold, and their type. A hash page
holds keys and values in turn, packed from its end; a table behind the header tells where each begins. A large key or
value stands on a chain of overflow pages. Every hash page in the file belongs to the table, so they are read in the
order of the file; which bucket each belongs to does not matter. Numbers are in the byte order of the machine that wrote
the file.

The files of Berkeley DB 2 and later are read. Those of 1.85, which macOS and BSD have in their C library, are not.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from ..errors import CorruptionError, error
from .file import Damaged, OldFile

__all__ = ["BerkeleySource", "is_berkeley_2"]

_MAGIC = 0x061561
_META = "12xIIIBxBx4xI12xI"
"""Behind a log number and the page's own: magic, version, page size, whether it is encrypted, whether there are
checksums; after the list of free pages the last page; after three counts the flags."""
_META_SIZE = 52
_SEVERAL_VALUES = 1
_HEADER = "8xIIIHHBB"
"""Behind a log number: page number, the one before, the next one, items, where the items begin, level, type."""
_HEADER_SIZE = 26
_UNSORTED, _OVERFLOW, _HASH = 2, 7, 13
_PLAIN, _ELSEWHERE = 1, 3
_PLACE = "4xII"
"""Behind the type of an item: the first page of a chain, and the size of what stands there."""
_PAGE_SIZES = [512 << shift for shift in range(8)]


def is_berkeley_2(head: bytes) -> bool:
    """Whether a hash file that begins so is of Berkeley DB 2 or later."""
    return _MAGIC in (int.from_bytes(head[12:16], "little"), int.from_bytes(head[12:16], "big"))


class BerkeleySource:
    """The entries of a hash file of Berkeley DB. `damaged` is told what cannot be read.

    Raises `error` for one that has several values for a key, is encrypted or has checksums, and `CorruptionError` if
    nothing can be read.
    """

    ordered = False

    def __init__(self, path: str, damaged: Damaged) -> None:
        self._damaged = damaged
        self._file = OldFile(path)
        try:
            self._read_meta()
        except BaseException:
            self._file.close()
            raise

    def _read_meta(self) -> None:
        path = self._file.path
        head = self._file.read(0, _META_SIZE) or bytes(_META_SIZE)
        order = "<" if int.from_bytes(head[12:16], "little") == _MAGIC else ">"
        self._header = struct.Struct(order + _HEADER)
        self._place = struct.Struct(order + _PLACE)
        self._number = struct.Struct(order + "H")
        fields: tuple[int, ...] = struct.unpack_from(order + _META, head)
        magic, _, self._page_size, encrypted, checksums, last_page, flags = fields
        if magic != _MAGIC or self._page_size not in _PAGE_SIZES:
            raise CorruptionError("its meta page is damaged, or of Berkeley DB 1.85", path=path)
        if encrypted or checksums:
            raise error(f"{path}: a Berkeley DB file that is encrypted or has checksums can't be migrated")
        if flags & _SEVERAL_VALUES:
            raise error(f"{path}: a Berkeley DB file with several values for one key can't be migrated")
        self._pages = min(last_page + 1, self._file.size // self._page_size)
        self._is_cut = self._pages <= last_page

    def count(self) -> int | None:
        """The sum of what the pages say. The meta page has a count too, but Berkeley DB does not keep it exact."""
        total = 0
        for number in range(1, self._pages):
            header = self._file.read(number * self._page_size, _HEADER_SIZE)
            if header is not None and (fields := self._header.unpack(header))[6] in (_HASH, _UNSORTED):
                total += fields[3] // 2
        return total

    def entries(self) -> Generator[tuple[bytes, bytes], None, None]:
        """All entries, page by page."""
        if self._is_cut:
            self._damaged(f"{self._file.path}: it was cut off; pages that are there: {self._pages}")
        for number in range(1, self._pages):
            page = self._file.read(number * self._page_size, self._page_size)
            if page is None or self._header.unpack_from(page)[6] not in (_HASH, _UNSORTED):
                continue
            items = self._items(page, number)
            for key, value in zip(items[::2], items[1::2], strict=False):
                if key is None or value is None:
                    self._damaged(f"{self._file.path}: an entry in page {number} cannot be read")
                else:
                    yield key, value

    def _items(self, page: bytes, number: int) -> list[bytes | None]:
        """The keys and values of a hash page, None for what cannot be read."""
        own_number, _, _, count, _, _, _ = self._header.unpack_from(page)
        table_end = _HEADER_SIZE + 2 * count
        if own_number != number or count % 2 or table_end > self._page_size:
            self._damaged(f"{self._file.path}: page {number} cannot be read")
            return []
        items: list[bytes | None] = []
        end = self._page_size
        for at in range(_HEADER_SIZE, table_end, 2):
            (start,) = self._number.unpack_from(page, at)
            if not table_end <= start < end:
                self._damaged(f"{self._file.path}: the table of page {number} is damaged")
                break
            items.append(self._item(page[start:end]))
            end = start
        return items

    def _item(self, item: bytes) -> bytes | None:
        if item[0] == _PLAIN:
            return item[1:]
        if item[0] != _ELSEWHERE or len(item) != self._place.size:
            return None
        number, size = self._place.unpack(item)
        return self._chain(number, size)

    def _chain(self, number: int, size: int) -> bytes | None:
        """What stands on a chain of overflow pages."""
        if size > self._file.size:
            return None
        parts: list[bytes] = []
        left = size
        while left > 0 and number:
            page = self._file.read(number * self._page_size, self._page_size)
            if page is None:
                return None
            own_number, _, following, _, length, _, kind = self._header.unpack_from(page)
            if own_number != number or kind != _OVERFLOW or not 0 < length <= self._page_size - _HEADER_SIZE:
                return None
            parts.append(page[_HEADER_SIZE : _HEADER_SIZE + length])
            left -= length
            number = following
        return b"".join(parts) if left == 0 and not number else None

    def close(self) -> None:
        """Release the file."""
        self._file.close()
