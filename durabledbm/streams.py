"""Values as streams: reading one a piece at a time, and taking one from a file object without holding it in memory.

`Readable.open_value` returns a `ValueReader` in a buffer; `Writable.put_stream` reads through a `Source`.
`_engine.large_value` says how a value is cut into pieces, so that each can be verified alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from operator import index
from typing import TYPE_CHECKING, Any, Protocol

from ._engine.large_value import is_indexed, room
from ._engine.node import Overflow
from ._engine.view import Scope, View
from .errors import error

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["InputFile", "Source", "ValueReader", "opened", "parted_items"]

_HEAD = 4 * 2**20
"""Bytes of a file that are read before the writer lock is taken. If that is all, they are written like any value."""


class InputFile(Protocol):
    """What `put_stream` reads from: a file object that is open for reading bytes."""

    def read(self, size: int, /) -> bytes | None:
        """At most `size` bytes; none at the end."""


# -- reading a value -------------------------------------------------------------------------------


def opened(key: bytes, view: View, scope: Scope, hold: object) -> io.BufferedReader | None:
    """A reader of the value of `key` in `view`; None if there is none.

    `hold` keeps the pages of the view: the reader lets go of it when it is closed or dropped. When `scope` has ended,
    reading raises `ClosedError`.
    """
    value = view.find(key)
    return None if value is None else io.BufferedReader(ValueReader(view, key, value, scope, hold))


def parted_items(view: View, scope: Scope, hold: object) -> Iterator[tuple[bytes, Any]]:
    """All entries of `view`, with a reader in place of each that is cut into pieces. `scope`, `hold`: see `opened`."""

    def reader(key: bytes, value: Overflow) -> io.BufferedReader:
        return io.BufferedReader(ValueReader(view, key, value, scope, hold))

    return view.items(scope=scope, pin=hold, in_pieces=reader)


class ValueReader(io.RawIOBase):
    """A value as a file that can be read and sought in. One piece of it at a time is read, verified and in memory."""

    def __init__(self, view: View, key: bytes, value: bytes, scope: Scope, hold: object) -> None:
        super().__init__()
        self._pager = view.tree.pager
        self._key = key
        self._value = value
        self._scope = scope
        self._hold = hold
        self._position = 0
        self._refs: list[bytes] = []
        if type(value) is Overflow:
            self._size, self._room = value.length, room(len(key))
            if is_indexed(value, key):
                self._refs = self._pager.index(value, key)
        else:
            self._size = self._room = len(value)
        self._piece = -1, memoryview(b"")
        """The number of the piece that was read last, and its bytes."""

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        self._check()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a byte of the value. Behind its end nothing is read."""
        self._check()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}.get(whence)
        if base is None:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence!r}")
        position = base + index(offset)
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read bytes of one piece into the buffer; how many. A piece behind it that is damaged does not matter yet."""
        self._check()
        target = memoryview(buffer).cast("B")
        part = self._next(len(target))
        target[: len(part)] = part
        self._position += len(part)
        return len(part)

    def readall(self) -> bytes:
        """All bytes from here on."""
        self._check()
        parts = []
        while part := self._next(self._size):
            parts.append(part)
            self._position += len(part)
        return b"".join(parts)

    def _next(self, size: int) -> memoryview:
        """At most so many of the next bytes, all of one piece."""
        if self._position >= self._size:
            return memoryview(b"")
        number, start = divmod(self._position, self._room)
        if self._piece[0] != number:
            try:
                self._piece = number, self._read(number)
            except error:
                self._check()  # what was closed meanwhile needs no other reason
                raise
        self._check()
        return self._piece[1][start : start + size]

    def _read(self, number: int) -> memoryview:
        value = self._value
        if type(value) is not Overflow:
            return memoryview(value)
        if not self._refs:
            return memoryview(self._pager.value(value, self._key))
        return self._pager.piece(value, self._key, number, self._refs[number])

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self._scope.ended:
            raise self._scope.closed_error()

    def close(self) -> None:
        """End the reader, so that the pages that it reads can be reused. Closing twice is harmless."""
        if not self.closed:
            self._hold = self._piece = None  # type: ignore[assignment]
        super().close()


# -- taking a value from a file --------------------------------------------------------------------


class Source:
    """A file that a value is read from, in parts of `room` bytes, which all but the last one have."""

    def __init__(self, file: InputFile, size: Any, key: bytes) -> None:
        if not callable(getattr(file, "read", None)):
            raise TypeError(f"put_stream() needs a file object to read from, not {type(file).__name__}")
        if size is not None and (size := index(size)) < 0:
            raise ValueError(f"size must not be negative: {size}")
        self._file = file
        self._size: int | None = size
        self._room = room(len(key))
        self._key_size = len(key)
        self.length = 0
        """Bytes that were read so far."""
        self.ended = False
        """All of it was read."""
        self.head: list[bytes] = []
        """The first parts, if they were read."""

    def whole(self) -> bytes | None:
        """All of it, if it is so short that it may be in memory. Else None, and it has more than one part."""
        while not self.ended and (self.length < _HEAD or len(self.head) < 2):
            self.head.append(self.read())
        return b"".join(self.head) if self.ended else None

    def parts(self) -> Iterator[bytes]:
        """All parts, of which the last one may be empty."""
        while self.head:
            yield self.head.pop(0)
        while not self.ended:
            yield self.read()

    def read(self) -> bytes:
        """The next part; fewer bytes than others, or none, at the end.

        Raises what the file raises, `TypeError` if it does not return bytes, and `ValueError` if it ends before the
        size that was given.
        """
        parts: list[bytes] = []
        missing = self._room if self._size is None else min(self._room, self._size - self.length)
        while missing:
            data = self._bytes(self._file.read(missing), missing)
            if not data:
                if self._size is not None:
                    raise ValueError(f"the file ends after {self.length} bytes, not after the {self._size} of size=")
                break
            parts.append(data)
            missing -= len(data)
            self.length += len(data)
        self.ended = bool(missing) or self.length == self._size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @staticmethod
    def _bytes(data: object, most: int) -> bytes:
        if isinstance(data, str):
            raise TypeError("put_stream() needs a file object that is open for reading bytes, not text")
        if data is None:
            raise ValueError("the file object has no bytes at the moment: it must wait for them (a blocking file)")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"the file object's read() must return bytes, not {type(data).__name__}")
        if len(data := bytes(data)) > most:
            raise ValueError(f"the file object's read({most}) returned {len(data)} bytes")
        return data
