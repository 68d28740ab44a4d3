"""dbm.gnu's file: a hash table whose directory doubles when a bucket overflows.

The header tells where the directory is. The directory lists the offsets of buckets, the same one several times in a row
while it has not been split. A bucket is a table of elements, each of which tells where a key with its value stands, and
the key's hash. Numbers are in the byte order of the machine that wrote the file, offsets are 4 or 8 bytes.

gdbm's own library does not tell the end of the keys from a failure; here the hash of every key is verified.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Generator, Iterator, Sequence
from itertools import cycle
from operator import mul
from typing import NamedTuple

from ..errors import BusyError, CorruptionError
from .file import Damaged, OldFile

__all__ = ["GnuSource"]

_MAGICS = frozenset({0x13579ACD, 0x13579ACE, 0x13579ACF, 0x13579AD0, 0x13579AD1})
_AVAILABLE = 6
"""Places for free blocks in a bucket, which stand before its elements."""
_HASH_SEED, _HASH_FACTOR, _HASH_TERM, _HASH_MASK = 0x238F13AF, 1103515243, 12345, 0x7FFFFFFF
_WEIGHTS = [1 << at * 5 % 24 for at in range(24)]
_BITS_MAX = 31
_UNUSED = 0xFFFFFFFF
_PIECE = 2**20


class _Header(NamedTuple):
    """Where the directory is, and how the file is laid out."""

    order: str
    """Of bytes, as `struct` has it."""
    offset_size: int
    directory: int
    directory_size: int
    bucket_size: int
    bucket_elements: int

    @property
    def offset_code(self) -> str:
        return "Q" if self.offset_size == 8 else "I"


class GnuSource:
    """The entries of a database of dbm.gnu. `damaged` is told what cannot be read.

    Raises `BusyError` while a program has it open for writing, `CorruptionError` if its header makes no sense.
    """

    ordered = False

    def __init__(self, name: str, damaged: Damaged) -> None:
        self._damaged = damaged
        self._file = OldFile(name)
        self._lock = -1
        self._verified = False
        try:
            self._lock = _shared_lock(name)
            self._header = _read_header(self._file)
            # In a bucket stand the count of free blocks, these, the bits of the bucket, and the count of its elements.
            self._count_at = self._header.offset_size + _AVAILABLE * 2 * self._header.offset_size + 4
        except BaseException:
            self.close()
            raise

    def count(self) -> int | None:
        """The sum of what the buckets say; None if one cannot be read."""
        total = 0
        for number in self._buckets():
            count = self._file.read(number + self._count_at, 4)
            if count is None:
                return None
            total += int.from_bytes(count, "little" if self._header.order == "<" else "big")
        return total

    def entries(self) -> Generator[tuple[bytes, bytes], None, None]:
        """All entries, bucket by bucket."""
        header = self._header
        element = struct.Struct(f"{header.order}I4s{header.offset_code}II")
        table_at = self._count_at + 4
        table_end = table_at + element.size * header.bucket_elements
        sound = True
        for number in self._buckets():
            bucket = self._file.read(number, header.bucket_size)
            if bucket is None:
                sound = False
                self._damaged(f"{self._file.path}: the bucket at {number} cannot be read")
                continue
            found = 0
            for hash_value, start, offset, key_size, value_size in element.iter_unpack(bucket[table_at:table_end]):
                if hash_value == _UNUSED:
                    continue
                found += 1
                data = self._file.read(offset, key_size + value_size)
                if data is None or not self._is_key(data[:key_size], start, hash_value):
                    sound = False
                    self._damaged(f"{self._file.path}: the entry at {offset} cannot be read")
                else:
                    yield data[:key_size], data[key_size:]
            (expected,) = struct.unpack_from(f"{header.order}I", bucket, self._count_at)
            if found != expected:
                self._damaged(f"{self._file.path}: the bucket at {number} has {found} entries instead of {expected}")
        self._verified = sound

    def _is_key(self, key: bytes, start: bytes, hash_value: int) -> bool:
        """Whether the key begins so and has this hash, which is computed in one pass only, since that takes long."""
        return key[:4] == start[: len(key)] and (self._verified or _has_hash(key, hash_value))

    def _buckets(self) -> Iterator[int]:
        """The offsets of the buckets, each once."""
        header, seen = self._header, set()
        for at in range(header.directory, header.directory + header.directory_size, _PIECE):
            piece = self._file.read(at, min(_PIECE, header.directory + header.directory_size - at))
            if piece is None:
                raise CorruptionError("its directory cannot be read", path=self._file.path)
            for (offset,) in struct.iter_unpack(f"{header.order}{header.offset_code}", piece):
                if offset not in seen:
                    seen.add(offset)
                    yield offset

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def _read_header(file: OldFile) -> _Header:
    """The header, in whatever order and size its numbers are. Its fields agree only in the right ones."""
    head = file.read(0, 48) or b""
    for order in "<>":
        for size, layout in ((8, "IIQIIII"), (4, "IIIIIII")):
            shape = struct.Struct(order + layout)
            if len(head) < shape.size:
                continue
            magic, block, directory, length, bits, bucket_size, elements = shape.unpack_from(head)
            if (
                magic in _MAGICS
                and bits <= _BITS_MAX
                and length == size << bits
                and 0 < block <= directory < directory + length <= file.size
                and 0 < bucket_size <= file.size
                and 0 < elements <= (bucket_size - _AVAILABLE * 2 * size - size - 8) // (16 + size)
            ):
                return _Header(order, size, directory, length, bucket_size, elements)
    raise CorruptionError("its header is damaged", path=file.path)


def _shared_lock(path: str) -> int:
    """The lock that keeps dbm.gnu's writers out, as a descriptor; -1 where there are no such locks."""
    if sys.platform == "win32":
        return -1
    try:
        import fcntl
    except ImportError:
        return -1
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise BusyError(errno.EAGAIN, "a program has it open for writing", path) from None
    except OSError:
        pass  # a file system without locks
    return fd


def _has_hash(key: bytes, hash_value: int) -> bool:
    """Whether the key has this hash. Bytes from 128 up count as negative where C's char is signed, as on x86."""
    return _hash(key) == hash_value or (not key.isascii() and _hash(memoryview(key).cast("b")) == hash_value)


def _hash(numbers: Sequence[int] | memoryview) -> int:
    value: int = _HASH_SEED * len(numbers) + sum(map(mul, numbers, cycle(_WEIGHTS)))
    return _HASH_FACTOR * (value & _HASH_MASK) + _HASH_TERM & _HASH_MASK
