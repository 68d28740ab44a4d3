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
from typing import NamedTuple, Protocol

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
    FileHeader,
    Record,
    packed_key,
)

__all__ = ["InputStream", "Label", "StreamReader", "StreamWriter", "codec_of", "open_stream"]

_PIECE = 1 << 18
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
        decoder = self._decoder
        file = self._stream if isinstance(self._stream, _File) else None
        piece: bytes | None = self._first
        while piece:
            self.offset += len(piece)
            yield from decoder.feed(piece)
            if decoder.problem is not None:
                break
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
