"""Large values: how one is cut into pieces, so that a part of it can be read and verified without the rest.

A value that does not fit in its leaf has an overflow run of its own, unless that would be too long to be read for a few
bytes of it. Then it is cut into *pieces*, each an overflow run with a checksum of its own, and an *index*, the run that
the leaf points at, holds their refs. Every piece but the last is full, so the place of a byte follows from its number.
All of these runs name the key, so that each can be moved without the others.

Pure: numbers and bytes. The layout is documented in docs/format.md.
"""

from __future__ import annotations

import struct

from .node import Overflow
from .page import CRC_SIZE, HEADER

__all__ = ["INDEX", "KEY_MAX", "PIECE", "PLACE", "WHOLE_VALUE", "is_indexed", "piece_count", "room", "size_of_piece"]

WHOLE_VALUE, INDEX, PIECE = 0, 1, 2
"""What an overflow run holds behind the key, as its header's flags say: a value, an index, a piece."""

PLACE = struct.Struct("<Q")
"""The number of a piece, from 0. It stands between the key and the bytes."""

_RUN = 1 << 18
"""Bytes of the longest run of a value: what is read and verified for one byte of it. If the key takes more than half of
that, the run is longer by as much."""

KEY_MAX = 2**31 - 2**20
"""Bytes of the longest key: a run is described in 32 bits, and no run of a value is longer than two keys and `_RUN`."""


def room(key_size: int) -> int:
    """Bytes of a value that one run holds beside a key of that size."""
    run = _RUN * (1 + 2 * key_size // _RUN)
    return run - HEADER.size - CRC_SIZE - PLACE.size - key_size


def is_indexed(value: Overflow, key: bytes) -> bool:
    """Whether a large value, of that key, is cut into pieces."""
    return value.length > room(len(key))


def piece_count(length: int, key_size: int) -> int:
    """How many pieces a value of that length has."""
    return -(-length // room(key_size))


def size_of_piece(number: int, length: int, key_size: int) -> int:
    """Bytes of the value in piece `number`."""
    full = room(key_size)
    return min(full, length - number * full)
