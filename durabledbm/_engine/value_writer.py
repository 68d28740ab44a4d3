"""Writing large values: as a run of their own, or in pieces, of which only one need be in memory (see `large_value`).

The runs are those of a commit that is being made, or of a transaction that has spilled: nothing leads to them yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .large_value import INDEX, PIECE, PLACE, WHOLE_VALUE, is_indexed, room
from .node import Overflow
from .page import REF
from .page_writer import PageWriter
from .pager import Pager

__all__ = ["ValueWriter", "copied", "free_value", "moved", "stored"]

_PLACE = 1024
"""Free pages that are looked for at a time, for a value whose length is not known."""


class ValueWriter:
    """Writes a value that is longer than one run, piece by piece: `add` each, then `finish`, or `abandon`."""

    def __init__(self, writer: PageWriter, key: bytes) -> None:
        self._writer = writer
        self._key = key
        self._tree = writer.tree
        self._refs: list[bytes] = []
        self.length = 0
        """Bytes so far."""

    def add(self, piece: bytes | memoryview) -> None:
        """Write the next piece. It must have `room` bytes, unless it is the last one."""
        assert self.length == len(self._refs) * room(len(self._key)), "a piece follows one that was not full"
        self._writer.tree = self._tree
        self._refs.append(self._writer.overflow(self._key, PIECE, PLACE.pack(len(self._refs)), piece))
        self.length += len(piece)

    def finish(self) -> Overflow:
        """Write the index; what the leaf is to hold."""
        assert self.length > room(len(self._key)), "a value of one piece has no index"
        index = self._writer.overflow(self._key, INDEX, b"".join(self._refs))
        self._refs.append(index)
        return Overflow.make(index, self.length)

    def abandon(self) -> None:
        """The value is not wanted after all: its pages are free."""
        while self._refs:
            self._writer.free(self._refs[-1])
            del self._refs[-1]


def stored(writer: PageWriter, key: bytes, value: bytes) -> Overflow:
    """Write a large value that is in memory; what the leaf is to hold."""
    full = room(len(key))
    if len(value) <= full:
        return Overflow.make(writer.overflow(key, WHOLE_VALUE, value), len(value))
    view = memoryview(value)
    return _in_pieces(writer, key, (view[at : at + full] for at in range(0, len(value), full)))


def copied(writer: PageWriter, pager: Pager, key: bytes, value: Overflow) -> Overflow:
    """Write a large value anew that `pager` reads; what the leaf is to hold."""
    if not is_indexed(value, key):
        return stored(writer, key, pager.value(value, key))
    refs = pager.index(value, key)
    return _in_pieces(writer, key, (pager.piece(value, key, number, ref) for number, ref in enumerate(refs)))


def _in_pieces(writer: PageWriter, key: bytes, pieces: Iterable[bytes | memoryview]) -> Overflow:
    value = ValueWriter(writer, key)
    for piece in pieces:
        value.add(piece)
    return value.finish()


def moved(
    writer: PageWriter, pager: Pager, key: bytes, value: Overflow, page_ids: Collection[int] | None
) -> Overflow:
    """Write the runs of a large value that begin at `page_ids` (None: all) anew, and free the old ones.

    Of a value in pieces the others stay where they are, so moving one takes no longer, however large the value is.
    """
    if not is_indexed(value, key):
        copy = stored(writer, key, pager.value(value, key))
    else:
        refs = pager.index(value, key)
        for number, ref in enumerate(refs):
            if page_ids is None or REF.unpack(ref)[0] in page_ids:
                piece = pager.piece(value, key, number, ref)
                refs[number] = writer.overflow(key, PIECE, PLACE.pack(number), piece)
                writer.free(ref)
        copy = Overflow.make(writer.overflow(key, INDEX, b"".join(refs)), value.length)
    writer.free(value.ref)
    return copy


def free_value(writer: PageWriter, pager: Pager, key: bytes, value: Overflow) -> None:
    """The commit no longer needs a large value. Raises `CorruptionError` if its index is damaged."""
    if is_indexed(value, key):
        for ref in pager.index(value, key):
            writer.free(ref)
    writer.free(value.ref)
