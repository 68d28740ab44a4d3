"""Cells: how keys and values that stand side by side in a node are cut out of it, all of them at once.

Pure functions. A table of offsets says where cells begin and end; its numbers are of 16 or of 32 bits ("H" or "I").
Slicing cells out one by one was most of the cost of a scan. So C does it: one `unpack` for all keys of a leaf and one
for all values if their sizes are equal (`equal_cells`), else one `read` for each cell, as if from a file (`cut`).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterable
from io import BytesIO
from itertools import accumulate, chain, repeat
from typing import Any, NamedTuple

__all__ = ["BIG_ENDIAN", "WIDTH", "Equal", "cut", "equal_cells", "pack_numbers", "pieces", "unpack_numbers"]

BIG_ENDIAN = sys.byteorder == "big"
WIDTH = {"H": 2, "I": 4}

_UNPACKERS: dict[tuple[str, int], Any] = {}
_UNPACKERS_MAX = 1024


def pack_numbers(code: str, numbers: Iterable[int]) -> bytes:
    """Numbers as they stand in a file."""
    packed = array(code, numbers)
    if BIG_ENDIAN:
        packed.byteswap()
    return packed.tobytes()


def unpack_numbers(code: str, run: bytes, offset: int, count: int) -> tuple[int, ...]:
    """So many numbers that stand at `offset`."""
    unpacker = _UNPACKERS.get((code, count))
    if unpacker is None:
        if count > len(run):  # checksums do not keep out a file that was made to hurt
            raise ValueError("an entry count larger than the page")
        unpacker = struct.Struct(f"<{count}{code}").unpack_from
        if len(_UNPACKERS) < _UNPACKERS_MAX:
            _UNPACKERS[code, count] = unpacker
    result: tuple[int, ...] = unpacker(run, offset)
    return result


def cut(code: str, offsets: bytes, run: bytes, start: int) -> list[bytes]:
    """The cells in `run` that these offsets, counted from `start`, are the borders of."""
    width = WIDTH[code]
    size = len(offsets) - width
    # One subtraction of long integers takes each offset from the next.
    differences = int.from_bytes(offsets[width:], "little") - int.from_bytes(offsets[:size], "little")
    sizes = unpack_numbers(code, differences.to_bytes(size, "little"), 0, size // width)
    stream = BytesIO(run)
    stream.seek(start)
    cells = list(map(stream.read, sizes))
    if stream.tell() != start + int.from_bytes(offsets[size:], "little"):
        raise ValueError("the offsets in the page make no sense")
    return cells


def pieces(data: bytes, size: int) -> list[bytes]:
    """The data in pieces of so many bytes."""
    return list(map(BytesIO(data).read, repeat(size, len(data) // size)))


class Equal(NamedTuple):
    """What gives the keys or the values of a leaf from its bytes and the place where its cells start."""

    keys: Callable[[bytes, int], tuple[bytes, ...]]
    values: Callable[[bytes, int], tuple[bytes, ...]]


_EQUAL: dict[bytes, Equal] = {}
"""By the bytes of the offset table, which says it all: the number of entries and the sizes."""

_EQUAL_MAX = 512


def equal_cells(code: str, offsets: bytes) -> Equal | None:
    """How to cut up a leaf with this offset table if its keys are of one size, and its values; else None."""
    return _EQUAL.get(offsets) or _learnt(code, offsets)


def _learnt(code: str, offsets: bytes) -> Equal | None:
    """What belongs in `_EQUAL` for this table, and now is there; None if sizes differ."""
    width = WIDTH[code]
    count = len(offsets) // (2 * width)
    if not count:
        return None
    _, key_size, size = unpack_numbers(code, offsets, 0, 3)
    if int.from_bytes(offsets[-width:], "little") != count * size or key_size > size:
        return None
    if offsets != pack_numbers(code, accumulate(chain(*repeat((key_size, size - key_size), count)), initial=0)):
        return None
    keys, values = f"{key_size}s{size - key_size}x", f"{key_size}x{size - key_size}s"
    equal = Equal(struct.Struct(keys * count).unpack_from, struct.Struct(values * count).unpack_from)
    if len(_EQUAL) >= _EQUAL_MAX:
        _EQUAL.clear()
    _EQUAL[offsets] = equal
    return equal
