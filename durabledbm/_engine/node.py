"""Nodes: what a leaf and a branch of the tree look like as bytes, and how they are searched.

Pure functions, bytes in and lists out, no I/O. A leaf is kept in memory as the bytes read, because finding one key in
it costs less than decoding it: the leaf starts with one *fingerprint* byte per key, and searching for that byte is a
single C call. A branch is searched far more often than it is read, so it is decoded into a `Branch`; one that is
searched only once need not be (`find_child`).

Entries stand in ascending order of their keys. A *cell* is a key followed by its value; `Overflow` takes the value's
place when the value is too large and lives in a run of its own. A table of offsets says where cells begin and end; its
numbers have 16 or 32 bits ("H" or "I"). Slicing cells out one by one would be most of the cost of a scan. So C does it:
one `unpack` for all keys of a leaf and one for all values if their sizes are equal (`equal_cells`), else one `read` for
each cell, as if from a file (`cut`). The layout is documented in docs/format.md.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from itertools import accumulate, chain, repeat
from operator import add
from typing import Any, NamedTuple
from zlib import crc32

from .kernels import introduce, twin
from .page import CRC_SIZE, HEADER, REF

__all__ = [
    "BIG_ENDIAN", "BRANCH_OVERHEAD", "LEAF_OVERHEAD", "WIDTH", "Branch", "Equal", "Overflow", "capacity", "cut",
    "decode_branch", "decode_leaf", "edit_leaf", "encode_branch", "encode_leaf", "equal_cells", "find_child",
    "find_value", "grown_tail", "has_overflow", "leaf_ends", "leaf_keys", "pack_numbers", "pieces", "separator",
    "unpack_numbers",
]  # fmt: skip

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


HAS_OVERFLOW = 1
"""Flag of a leaf in which at least one value is an `Overflow`: then a kind byte per cell tells which."""

_START = HEADER.size
_U16, _U32 = ("H", "I")
_ONE_NARROW = struct.Struct("<H").unpack_from
_TWO_NARROW = struct.Struct("<2H").unpack_from
_THREE_NARROW = struct.Struct("<3H").unpack_from
_THREE_WIDE = struct.Struct("<3I").unpack_from
_NARROW_MAX = 65536
"""Runs up to this many bytes hold 16-bit offsets, longer ones 32-bit."""


class Overflow(bytes):
    """Stands in a leaf for a large value: the ref of its run and its length, as the bytes that the cell holds."""

    __slots__ = ()
    _LAYOUT = struct.Struct("<16sQ")
    SIZE = _LAYOUT.size

    @classmethod
    def make(cls, ref: bytes, length: int) -> Overflow:
        return cls(cls._LAYOUT.pack(ref, length))

    @classmethod
    def of(cls, cell: bytes) -> Overflow:
        """What a cell holds. Raises `ValueError` if it does not have the size that it should have."""
        if len(cell) != cls.SIZE:
            raise ValueError("a large value's place does not have the size that it should have")
        return cls(cell)

    @property
    def ref(self) -> bytes:
        return self[: REF.size]

    @property
    def length(self) -> int:
        size: int = self._LAYOUT.unpack(self)[1]
        return size


introduce(Overflow)


class Branch(NamedTuple):
    """A decoded branch: `refs[i]` leads to the keys from `separators[i - 1]` up to, not including, `separators[i]`."""

    separators: list[bytes]
    refs: list[bytes]
    tail: bytes
    """The payload after the refs, which stays the same when only refs change."""


# -- leaves ----------------------------------------------------------------------------------------


LEAF_OVERHEAD = 5
"""Bytes that an entry takes in a leaf beside its key and value: a fingerprint and two offsets."""

BRANCH_OVERHEAD = REF.size + 2
"""Bytes that a child takes in a branch beside its separator: a ref and an offset."""


def capacity(page_count: int, page_size: int) -> int:
    """Bytes of entries, overheads included, that a node of so many pages holds."""
    return page_count * page_size - HEADER.size - CRC_SIZE - 2


@twin
def leaf_ends(keys: list[bytes], values: list[bytes]) -> list[int]:
    """For each entry, the bytes that it and those before it take in a leaf, overheads included."""
    overhead = LEAF_OVERHEAD + (Overflow in set(map(type, values)))
    return list(accumulate(map(add, map(overhead.__add__, map(len, keys)), map(len, values))))


@twin
def encode_leaf(keys: list[bytes], values: list[bytes], page_size: int) -> tuple[int, bytes]:
    """The flags and the payload of a leaf with these entries."""
    count = len(keys)
    cells: list[bytes] = [b""] * (2 * count)
    cells[::2] = keys
    cells[1::2] = values
    body = b"".join(cells)
    kinds = b""
    flags = 0
    if Overflow in set(map(type, values)):
        flags = HAS_OVERFLOW
        kinds = bytes([type(value) is Overflow for value in values])
    code = _code_for(_START + count + 2 * (2 * count + 1) + len(kinds) + len(body) + CRC_SIZE, page_size)
    offsets = pack_numbers(code, accumulate(map(len, cells), initial=0))
    return flags, b"".join((_fingerprints(keys), offsets, kinds, body))


@twin
def find_value(leaf: bytes, key: bytes) -> bytes | None:
    """The value of `key` in a sealed leaf: bytes, an `Overflow`, or None if the key is not there."""
    if len(leaf) > _NARROW_MAX or leaf[1]:
        return _find_any(leaf, key)
    table = _START + (leaf[4] | leaf[5] << 8)
    fingerprint = crc32(key) & 0xFF
    at = leaf.find(fingerprint, _START, table)
    while at >= 0:
        start, middle, end = _THREE_NARROW(leaf, table + (at - _START) * 4)
        cells = table + 4 * (table - _START) + 2
        if middle - start == len(key) and leaf.startswith(key, cells + start):
            return leaf[cells + middle : cells + end]
        at = leaf.find(fingerprint, at + 1, table)
    return None


def _find_any(leaf: bytes, key: bytes) -> bytes | None:
    """`find_value` for a leaf of any size, with or without large values."""
    count = int.from_bytes(leaf[4:8], "little")
    table = _START + count
    width, unpack = (2, _THREE_NARROW) if len(leaf) <= _NARROW_MAX else (4, _THREE_WIDE)
    cells = table + width * (2 * count + 1)
    if leaf[1] & HAS_OVERFLOW:
        cells += count
    fingerprint = crc32(key) & 0xFF
    at = leaf.find(fingerprint, _START, table)
    while at >= 0:
        start, middle, end = unpack(leaf, table + (at - _START) * 2 * width)
        if middle - start == len(key) and leaf.startswith(key, cells + start):
            value = leaf[cells + middle : cells + end]
            if leaf[1] & HAS_OVERFLOW and leaf[cells - count + at - _START]:
                return Overflow.of(value)
            return value
        at = leaf.find(fingerprint, at + 1, table)
    return None


@twin
def leaf_keys(leaf: bytes) -> list[bytes]:
    """The keys of a sealed leaf, ascending."""
    code, offsets, start = _offsets(leaf)
    equal = equal_cells(code, offsets)
    return cut(code, offsets, leaf, start)[::2] if equal is None else list(equal.keys(leaf, start))


@twin
def decode_leaf(leaf: bytes) -> tuple[list[bytes], list[bytes]]:
    """The keys and the values (bytes or `Overflow`) of a sealed leaf."""
    code, offsets, start = _offsets(leaf)
    equal = equal_cells(code, offsets)
    if equal is None:
        cells = cut(code, offsets, leaf, start)
        keys, values = cells[::2], cells[1::2]
    else:
        keys, values = list(equal.keys(leaf, start)), list(equal.values(leaf, start))
    if leaf[1] & HAS_OVERFLOW:
        kinds = leaf[start - len(keys) : start]
        values = [Overflow.of(value) if kind else value for value, kind in zip(values, kinds, strict=True)]
    return keys, values


def has_overflow(leaf: bytes) -> bool:
    """Whether a sealed leaf has an `Overflow` among its values."""
    return bool(leaf[1] & HAS_OVERFLOW)


@twin
def edit_leaf(
    leaf: bytes, changes: Mapping[bytes, Any], keys: list[bytes], limits: tuple[int, int, int]
) -> tuple[int, int, tuple[bytes, ...]] | None:
    """A few changes to a leaf of small values, made in its bytes: what is between them is copied, not decoded.

    The changes are those of `keys`, which ascend; None deletes. Returns the new entry count, by how many entries it
    grew, and the parts of the new payload. None if it would shrink below the first of the `limits` or grow beyond the
    second, if a value is longer than the third, or if there are large values already.
    """
    if leaf[1] or len(leaf) > _NARROW_MAX // 2:
        return None
    if len(keys) == 1:
        return _edited_once(leaf, keys[0], changes[keys[0]], limits)
    # Three tables: fingerprints of the keys, the offsets of keys, values and the end, the cells. Each change is made to
    # all three, and moves the offsets behind it.
    before, payload_size = _COUNT_AND_PAYLOAD(leaf)
    cells = (table := _START + before) + 4 * before + 2
    offsets = unpack_numbers(_U16, leaf, table, 2 * before + 1)
    fingerprints, numbers, body = leaf[_START:table], leaf[table:cells], leaf[cells : _START + payload_size]
    count = at = before
    for key in reversed(keys):  # from the back, so that the offsets before stay right
        value = changes[key]
        low, high, there = 0, at, False  # bisected in the leaf as it was: below the last change its offsets are right
        while low < high:
            middle = (low + high) >> 1
            other = leaf[cells + offsets[2 * middle] : cells + offsets[2 * middle + 1]]
            if other < key:
                low = middle + 1
            else:
                high = middle
                there = other == key
        a = offsets[2 * (at := low)]
        if value is None:
            if there:
                c = offsets[2 * at + 2]
                body = body[:a] + body[c:]  # and with the cell go two offsets: where its key and its value begin
                numbers = numbers[: 4 * at] + _shifted(numbers[4 * at + 4 :], a - c)
                fingerprints = fingerprints[:at] + fingerprints[at + 1 :]
                count -= 1
        elif type(value) is not bytes or len(value) > limits[2]:
            return None
        elif there:
            b, c = offsets[2 * at + 1 : 2 * at + 3]  # of the old value, which the new one replaces
            body = b"".join((body[:b], value, body[c:]))
            if b + len(value) != c:
                numbers = numbers[: 4 * at + 4] + _shifted(numbers[4 * at + 4 :], b + len(value) - c)
        else:
            # The next cell's offset becomes the new key's. Behind it: the new value's, then the next cell's, moved.
            size = len(key)
            body = b"".join((body[:a], key, value, body[a:]))
            if len(body) > limits[1]:
                return None
            new = _TWO.pack(a + size, a + size + len(value))
            numbers = b"".join((numbers[: 4 * at + 2], new, _shifted(numbers[4 * at + 2 :], size + len(value))))
            fingerprints = b"".join((fingerprints[:at], _BYTES[crc32(key) & 0xFF], fingerprints[at:]))
            count += 1
    size = len(fingerprints) + len(numbers) + len(body)
    if size > limits[1] or size < min(limits[0], payload_size):
        return None
    return count, count - before, (fingerprints, numbers, body)


def _edited_once(
    leaf: bytes, key: bytes, value: Any, limits: tuple[int, int, int]
) -> tuple[int, int, tuple[bytes, ...]] | None:
    """`edit_leaf` for a single change: most of them, where keys are spread. Nothing is cut out that stays as it is."""
    count, payload_size = _COUNT_AND_PAYLOAD(leaf)
    table = _START + count
    cells = table + 4 * count + 2
    stop = _START + payload_size
    low, high, there = 0, count, False
    while low < high:
        middle = (low + high) >> 1
        start, end = _TWO_NARROW(leaf, table + 4 * middle)
        other = leaf[cells + start : cells + end]
        if other < key:
            low = middle + 1
        else:
            high = middle
            there = other == key
    at = table + 4 * low
    parts: tuple[bytes, ...]
    if value is not None and (type(value) is not bytes or len(value) > limits[2]):
        return None
    if there:
        a, b, c = _THREE_NARROW(leaf, at)
        if value is None:
            delta = a - c
            parts = leaf[_START : _START + low], leaf[_START + low + 1 : at], _shifted(leaf[at + 4 : cells], delta)
            parts += leaf[cells : cells + a], leaf[cells + c : stop]
            growth = -1
        else:
            delta = b + len(value) - c
            parts = leaf[_START : at + 4], _shifted(leaf[at + 4 : cells], delta)
            parts += leaf[cells : cells + b], value, leaf[cells + c : stop]
            growth = 0
    elif value is None:
        parts, growth = (leaf[_START:stop],), 0
    else:
        (a,) = _ONE_NARROW(leaf, at)
        middle, delta = a + len(key), len(key) + len(value)
        if payload_size + delta > limits[1]:
            return None
        parts = leaf[_START : _START + low], _BYTES[crc32(key) & 0xFF], leaf[_START + low : at + 2]
        parts += _TWO.pack(middle, a + delta), _shifted(leaf[at + 2 : cells], delta)
        parts += leaf[cells : cells + a], key, value, leaf[cells + a : stop]
        growth = 1
    size = sum(map(len, parts))
    if size > limits[1] or size < min(limits[0], payload_size):
        return None
    return count + growth, growth, parts


def _shifted(numbers: bytes, delta: int) -> bytes:
    """16-bit numbers, each increased by `delta`: one addition of long integers does them all."""
    # Read as one long integer, the numbers are digits in base 65536; `delta` times 0x...0001_0001 adds `delta` to each.
    # No digit carries into the next: offsets stay below 65536, and a negative `delta` never exceeds what it shortens.
    size = len(numbers)
    if not size or not delta:
        return numbers
    ones = _ONES[size] if size < len(_ONES) else int.from_bytes(b"\1\0" * (size // 2), "little")
    return (int.from_bytes(numbers, "little") + delta * ones).to_bytes(size, "little")


_ONES = [int.from_bytes(b"\1\0" * (size // 2), "little") for size in range(1024)]
_BYTES = [bytes([byte]) for byte in range(256)]
_TWO = struct.Struct("<2H")
_TWO_WIDE = struct.Struct("<2I").unpack_from
_COUNT_AND_PAYLOAD = struct.Struct("<4xI16x4xI").unpack_from


def _offsets(leaf: bytes) -> tuple[str, bytes, int]:
    """The code of the offset table's numbers, its bytes, and where the cells start."""
    count = int.from_bytes(leaf[4:8], "little")
    code, width = (_U16, 2) if len(leaf) <= _NARROW_MAX else (_U32, 4)
    table = _START + count
    end = table + width * (2 * count + 1)
    if end > len(leaf):  # checksums do not keep out a file that was made to hurt
        raise ValueError("an entry count larger than the page")
    return code, leaf[table:end], end + count if leaf[1] & HAS_OVERFLOW else end


def _fingerprints(keys: Sequence[bytes]) -> bytes:
    codes = array("I", map(crc32, keys)).tobytes()
    return codes[3::4] if BIG_ENDIAN else codes[::4]


# -- branches --------------------------------------------------------------------------------------


def encode_branch(separators: Sequence[bytes], page_size: int) -> bytes:
    """The payload of a branch after its refs. There is one separator less than there are refs."""
    count = len(separators) + 1
    body = b"".join(separators)
    code = _code_for(_START + count * (REF.size + 2) + len(body) + CRC_SIZE, page_size)
    return pack_numbers(code, accumulate(map(len, separators), initial=0)) + body


def grown_tail(tail: bytes, count: int, at: int, separator: bytes) -> bytes:
    """`tail`, of a branch of `count` children in one page, with one more separator in front of separator `at`."""
    numbers, body = tail[: 2 * count], tail[2 * count :]
    offset = numbers[2 * at] | numbers[2 * at + 1] << 8
    shifted = _shifted(numbers[2 * at :], len(separator))
    return b"".join((numbers[: 2 * at + 2], shifted, body[:offset], separator, body[offset:]))


def decode_branch(run: bytes) -> Branch:
    """The separators and refs of a sealed branch."""
    count, payload_size = _COUNT_AND_PAYLOAD(run)
    table = _START + count * REF.size
    code, width = (_U16, 2) if len(run) <= _NARROW_MAX else (_U32, 4)
    body, end = table + width * count, _START + payload_size
    # Checksums do not keep out a file that was made to hurt.
    if not count or not body <= end <= len(run) or run[body - width : body] != (end - body).to_bytes(width, "little"):
        raise ValueError("a count of children that cannot be")
    refs = pieces(run[_START:table], REF.size)
    return Branch(cut(code, run[table:body], run, body), refs, run[table:end])


@twin
def find_child(run: bytes, key: bytes) -> bytes:
    """The ref of the child that `key` belongs to in a sealed branch: bisection in its bytes, nothing is decoded."""
    count = int.from_bytes(run[4:8], "little")
    table = _START + count * REF.size
    width, unpack = (2, _TWO_NARROW) if len(run) <= _NARROW_MAX else (4, _TWO_WIDE)
    body = table + width * count
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) >> 1
        start, end = unpack(run, table + width * middle)
        if key < run[body + start : body + end]:
            high = middle
        else:
            low = middle + 1
    at = _START + low * REF.size
    return run[at : at + REF.size]


def separator(left: bytes, right: bytes) -> bytes:
    """The shortest bytes that are greater than `left` and not greater than `right`, where `left < right`."""
    a, b = left[:_SHORT], right[:_SHORT]
    if a != b:
        differing = int.from_bytes(a.ljust(_SHORT, b"\0"), "big") ^ int.from_bytes(b.ljust(_SHORT, b"\0"), "big")
        return right[: min(_SHORT - (differing.bit_length() + 7) // 8, len(left)) + 1]
    low, high = _SHORT, len(right)
    while low < high:  # the longest common prefix is shorter than the answer, and bisected because keys may be long
        middle = (low + high) // 2
        if left[low : middle + 1] == right[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return right[: low + 1]


_SHORT = 8
"""Bytes of a key that are compared as one integer."""


# -- both ------------------------------------------------------------------------------------------


def _code_for(size: int, page_size: int) -> str:
    """16-bit offsets where the whole run, rounded up to pages, stays within their reach."""
    return _U16 if -(-size // page_size) * page_size <= _NARROW_MAX else _U32
