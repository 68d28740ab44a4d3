"""Records as one stream of bytes, to and from files and pipes whose size is unknown.

This is a thin layer over `_log.records`: it recognizes the codec, reads and writes in pieces, and reports a stream that
ends too early. A stream contains what one file of a change log contains.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import BinaryIO, NamedTuple, Protocol

from .._engine.checksum import crc32c
from .._engine.disk import FileVolume
from .._engine.disk.protocol import Disk
from .._engine.meta import MAGIC as DATABASE_MAGIC
from ..errors import CorruptionError, error
from .files import may_go_on
from .records import (
    CODECS,
    COMMIT,
    COMMIT_FIELDS,
    FIRST,
    GROUPED,
    MAGIC,
    NO_IDENTITY,
    PUT,
    TABLE,
    Begun,
    BinaryDecoder,
    FileHeader,
    Record,
    packed_key,
)

__all__ = ["InputStream", "Label", "LargePut", "StreamReader", "StreamWriter", "codec_of", "open_stream"]

_PIECE = 1 << 18
_LARGE = 1 << 22
"""Bytes of a record from which on it may be handed out before its value was read."""

_PATIENCE = 3.0
"""Seconds to wait for a writer of a pipe."""


class Label(NamedTuple):
    """Of which database and commit something is a copy."""

    identity: bytes
    txid: int
    time_ns: int


class InputStream(Protocol):
    """What is used of a file object."""

    def read(self, size: int, /) -> bytes | None: ...


@contextmanager
def open_stream(path: str) -> Iterator[InputStream]:
    """Open a file, or a pipe that a program writes to. Raises what the operating system raises.

    Reading from a named pipe without a writer would wait for ever: after some seconds that is an `error`.
    """
    # Opening without waiting makes no difference to a file.
    flags = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))
    fd = os.open(path, flags)
    with os.fdopen(fd, "rb", buffering=0) as file:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode):
            yield _Pipe(file, _first_byte(fd, path))
        elif stat.S_ISREG(mode):
            with closing(FileVolume().open(path, writable=False)) as disk:
                yield _File(disk)
        else:
            yield file


def _first_byte(fd: int, path: str) -> bytes:
    """The first byte of a pipe; empty if there is a writer that has not written yet. From then on reading waits."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            first = os.read(fd, 1)
        except BlockingIOError:
            first = b""
            break
        if first:
            break
        if time.monotonic() > deadline:
            raise error(f"{path}: a pipe without a writer")
        time.sleep(0.01)
    if sys.platform != "win32":
        os.set_blocking(fd, True)
    return first


class _Pipe:
    """A pipe whose first byte was read already."""

    def __init__(self, file: InputStream, first: bytes) -> None:
        self._file = file
        self._first = first

    def read(self, size: int, /) -> bytes | None:
        """As a file does: at most `size` bytes, none at the end."""
        first, self._first = self._first, b""
        return first or self._file.read(size)


class _File:
    """A file, read from its start."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._position = 0

    def read(self, size: int, /) -> bytes | None:
        """At most `size` bytes, none at the end."""
        data = self.disk.read(size, self._position)
        self._position += len(data)
        return data


class StreamWriter:
    """Writes a dump: puts, then the commit that they are a copy of."""

    def __init__(self, write: Callable[[bytes], object], codec: str, label: Label) -> None:
        self._write = write
        self._codec = CODECS[codec]
        self._label = label
        salt = int.from_bytes(os.urandom(4), "little")
        self._header = self._codec.pack_header(FileHeader(1, salt, identity=label.identity))
        self._parts = [self._header]
        self._pending = self._end = len(self._header)
        self._flags = GROUPED | FIRST

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Append an entry of a table ("": the main one). Raises `ValueError` if the codec cannot hold it."""
        if table:
            self._flags |= TABLE
            key = packed_key(table, key)
        self._append(PUT, key, value)

    def put_file(self, table: str, key: bytes, file: BinaryIO) -> None:
        """Append an entry whose value is in a file, which is read twice: its checksum stands before it."""
        if table:
            self._flags |= TABLE
            key = packed_key(table, key)
        size, crc = 0, crc32c(key)
        for part in _parts(file):
            self._codec.size(PUT, key, part, flags=self._flags)
            crc = crc32c(part, crc)
            size += len(part)
        before, behind = self._codec.around(self._header, self._end, key, size, crc, flags=self._flags)
        self._parts.append(before)
        self._flush()
        for part in _parts(file):
            self._write(part)
        self._write(behind)
        self._flags = GROUPED
        self._end += len(before) + size + len(behind)

    def finish(self) -> None:
        """Append the commit, and write what is left."""
        if self._codec.header_size:
            self._append(COMMIT, COMMIT_FIELDS.pack(self._label.txid, self._label.time_ns), b"")
        self._flush()

    def _append(self, kind: int, key: bytes, value: bytes) -> None:
        size = self._codec.size(kind, key, value, flags=self._flags)
        self._parts.append(self._codec.encode(self._header, self._end, kind, key, value, flags=self._flags))
        self._flags = GROUPED
        self._end += size
        self._pending += size
        if self._pending >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        self._write(b"".join(self._parts))
        self._parts, self._pending = [], 0


def _parts(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while part := file.read(_PIECE):
        yield part


class LargePut:
    """A put whose value has not been read yet: `read` gives it. The checksum is verified before the last byte comes."""

    kind = PUT

    def __init__(self, begun: Begun, read: Callable[[int], bytes | None], name: str, offset: int) -> None:
        self.flags = begun.flags
        self.key = begun.key
        self.size = len(begun.value) + begun.missing
        """Bytes of the value."""
        self._ahead = begun.value
        self._missing = begun.missing
        self._crc, self._expected = crc32c(begun.value, crc32c(begun.key)), begun.crc
        self._read = read
        self._damage = partial(CorruptionError, path=name)
        self._offset = offset

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at the end. Raises `CorruptionError` for a value that is damaged or cut off."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        if not self._missing or not size:
            return b""
        data = self._read(min(size, self._missing, _PIECE)) or b""
        if not data:
            raise self._damage(f"at offset {self._offset}: it ends within a record")
        self._crc = crc32c(data, self._crc)
        self._missing -= len(data)
        if not self._missing and self._crc != self._expected:
            raise self._damage(f"at offset {self._offset}: a record's key and value do not match their checksum")
        return data

    def finish(self) -> None:
        """Read what is left."""
        while self.read(_PIECE):
            pass


class StreamReader:
    """The records of a stream. Iterating raises `CorruptionError` where it is damaged or ends too early."""

    def __init__(self, stream: InputStream, name: str, codec: str | None = None) -> None:
        self._stream = stream
        self._name = name
        self._first = b""
        while len(self._first) < len(DATABASE_MAGIC) and (more := stream.read(_PIECE)):
            self._first += more
        if not self._first and codec is None:
            raise error(f"{name}: is empty, neither a dump nor a log")
        self.codec = codec or codec_of(self._first, name)
        self._decoder = CODECS[self.codec].decoder(name)
        self.offset = 0
        """Bytes read so far."""

    @property
    def identity(self) -> bytes:
        """The database of the stream: known when the first record has been read."""
        header = self._decoder.header
        return NO_IDENTITY if header is None else header.identity

    def __iter__(self) -> Iterator[Record]:
        return self._records(apart=False)  # type: ignore[return-value]

    def parted(self) -> Iterator[Record | LargePut]:
        """The same, but a large value of the binary codec has not been read when its record comes. What is left of it
        is read before the next record.
        """
        return self._records(apart=True)

    def _records(self, *, apart: bool) -> Iterator[Record | LargePut]:
        decoder = self._decoder
        file = self._stream if isinstance(self._stream, _File) else None
        piece: bytes | None = self._first
        while piece:
            self.offset += len(piece)
            yield from decoder.feed(piece)
            if decoder.problem is not None:
                break
            if apart and decoder.wanted > _LARGE and isinstance(decoder, BinaryDecoder) and (begun := decoder.begun()):
                large = LargePut(begun, self._stream.read, self._name, decoder.offset)
                yield large
                large.finish()
                self.offset += begun.missing
                decoder.seek(self.offset)
                piece = self._stream.read(_PIECE)
                continue
            if file is not None and not may_go_on(file.disk, decoder, self.offset):
                break
            piece = self._stream.read(max(_PIECE, min(decoder.wanted, 1 << 30)))
        if decoder.problem is not None:
            raise CorruptionError(f"at offset {decoder.offset}: {decoder.problem}", path=self._name)
        if self.offset != decoder.offset:
            raise CorruptionError(f"at offset {decoder.offset}: it ends within a record", path=self._name)


def codec_of(first: bytes, name: str) -> str:
    """The codec of a stream that begins with these bytes."""
    if first.startswith(DATABASE_MAGIC):
        raise error(f"{name}: is a database, neither a dump nor a log")
    return "binary" if first.startswith(MAGIC[: len(first)]) else "text"
