"""Records: how one change becomes bytes and back, in the two codecs of a change log.

This module is pure: bytes in, bytes out, no file, no clock. `durabledbm.changelog` puts these records into numbered
files; a dump sends the same bytes to a file or a pipe. docs/changelog-format.md documents the layout, and
tests/test_records.py compares the two.

Two decisions matter most:

* A binary record's header has a checksum of its own, which depends on the file's header and the record's offset. So a
  length is verified before it is used, and bytes that look like a record (a value may contain a whole log) are a record
  only in the file and at the place where they were written.
* A record says with `SYNCED` that everything before it in its file was on the medium when it was written. This
  distinguishes rot from a torn tail: damage before a `SYNCED` record affects bytes that had arrived, so it is rot.
  Damage without such a record after it is in what the last sync did not cover, where a power failure may leave any part
  unwritten.

A decoder takes bytes as they come (`feed`) and stops permanently at the first byte that cannot belong to a record: then
`offset` says where and `problem` why. Remaining bytes without a problem are the beginning of a record.
"""

from __future__ import annotations

import re
import struct
from typing import Literal, NamedTuple, Protocol

from .._engine.checksum import crc32c
from ..errors import error

__all__ = [
    "BINARY", "CODECS", "COMMIT", "COMMIT_FIELDS", "CRC", "DELETE", "FILE_HEADER", "FIRST", "GROUPED",
    "KINDS", "MAGIC", "MARK", "NO_IDENTITY", "PUT", "RECORD_HEADER", "SYNCED", "TABLE", "TEXT", "UNDATED", "VERSION",
    "Begun", "BinaryCodec", "BinaryDecoder", "Change", "Codec", "Commit", "Decoder", "FileHeader", "Record",
    "TableChange", "TextCodec", "TextDecoder", "packed_key", "unpacked_key",
]  # fmt: skip

MAGIC = b"\x8dDLOG\r\n\x1a"
"""Not text, not a database of durabledbm or of any dbm module; a copy in text mode breaks the line ending."""

VERSION = 1

FILE_HEADER = struct.Struct("<8sIIQQQ16s")
"""magic, version, salt, file number, base txid, size of the previous file, identity; their CRC32C follows."""

RECORD_HEADER = struct.Struct("<IIBBIQ")
"""CRC32C of the header, CRC32C of key and value, kind, flags, size of the key, size of the value."""

COMMIT_FIELDS = struct.Struct("<QQ")
"""txid, time in nanoseconds since 1970: what a commit record has in place of a key."""

CRC = struct.Struct("<I")

PUT, DELETE, COMMIT, MARK = 1, 2, 3, 4
KINDS = {PUT: "put", DELETE: "delete", COMMIT: "commit", MARK: "mark"}

UNDATED = "there are changes that belong to no commit, so it is not known which of them came by then"

SYNCED = 1
"""All before this record in its file was on the medium when it was written."""
GROUPED = 2
"""Part of a commit: a change counts only if the commit record follows with nothing but `GROUPED` between."""
FIRST = 4
"""The first record of a commit: an unfinished commit before it is void."""
TABLE = 8
"""A put or a delete in another table than the main one: the key is a `packed_key`."""

NO_IDENTITY = bytes(16)

_SIZE = FILE_HEADER.size + CRC.size
_KEY_MAX = 2**32 - 1
_OFFSET = struct.Struct("<Q")
_NAME_SIZE = struct.Struct(">I")
_SYNCED_KIND = re.compile(rb"[\x01-\x04](?=[\x01\x03\x05\x07\x09\x0b\x0d\x0f].{9}\0{3})", re.DOTALL)
"""The second half of a header: kind, flags, size of the key, size of the value, which is below a terabyte."""
_KIND_AT = 8  # where the kind stands in RECORD_HEADER


class Change(NamedTuple):
    """One change. `op` is "put" or "delete"; `value` is None for a delete."""

    op: Literal["put", "delete"]
    key: bytes
    value: bytes | None

    @property
    def table(self) -> str:
        """The name of the table that was changed; empty for the main table."""
        return ""


class TableChange(Change):
    """A change of another table than the main one."""

    _table: str

    @classmethod
    def of(cls, table: str, change: Change) -> TableChange:
        """The same change, of a table."""
        it = cls(*change)
        it._table = table
        return it

    @property
    def table(self) -> str:
        """The name of the table that was changed."""
        return self._table

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, table={self._table!r})"


def packed_key(table: str, key: bytes) -> bytes:
    """The name of a table and a key in it as one key. They order by table, those of the main one ("") first, and then
    by key.
    """
    name = table.encode()
    return _NAME_SIZE.pack(len(name)) + name + key


def unpacked_key(packed: bytes) -> tuple[str, bytes]:
    """The table and the key. Raises `ValueError` if they make no sense."""
    if len(packed) < _NAME_SIZE.size:
        raise ValueError("a key without a table")
    end = _NAME_SIZE.size + _NAME_SIZE.unpack_from(packed)[0]
    if end > len(packed):
        raise ValueError("a table's name is longer than its record")
    return packed[_NAME_SIZE.size : end].decode(), packed[end:]


class Commit(NamedTuple):
    """The end of a commit: its number, and its time in nanoseconds since 1970-01-01 UTC."""

    txid: int
    time_ns: int


class Record(NamedTuple):
    """One decoded record: `offset` is the place of its first byte in its file, `size` its length there."""

    kind: int
    flags: int
    key: bytes
    value: bytes
    offset: int
    size: int

    def change(self) -> Change:
        """The change that a put or a delete records."""
        if not self.flags & TABLE:
            return Change("put", self.key, self.value) if self.kind == PUT else Change("delete", self.key, None)
        table, key = unpacked_key(self.key)
        return TableChange.of(table, self._replace(flags=0, key=key).change())

    def commit(self) -> Commit:
        """The commit that a commit record records."""
        return Commit._make(COMMIT_FIELDS.unpack(self.key))


class Begun(NamedTuple):
    """A put whose value is still to come, for the most part: so many bytes are `missing` after those of `value`."""

    flags: int
    key: bytes
    value: bytes
    missing: int
    crc: int
    """Of key and value."""


class FileHeader(NamedTuple):
    """The contents of a binary file's header.

    `base_txid` is the newest commit before this file (0: none, the file continues an empty database), `previous_size`
    the final size of the file before it in bytes (0: there is none), `identity` the 16 bytes that name the database,
    `salt` a number that other files are unlikely to have.
    """

    number: int
    salt: int
    base_txid: int = 0
    previous_size: int = 0
    identity: bytes = NO_IDENTITY
    version: int = VERSION

    def pack(self) -> bytes:
        """The header's bytes, checksum included."""
        fields = (self.version, self.salt, self.number, self.base_txid, self.previous_size, self.identity)
        body = FILE_HEADER.pack(MAGIC, *fields)
        return body + CRC.pack(crc32c(body))

    @classmethod
    def unpack(cls, data: bytes) -> FileHeader | None:
        """The header at the start of `data`, or None if it is not intact."""
        (crc,) = CRC.unpack_from(data, FILE_HEADER.size)
        if not data.startswith(MAGIC) or crc != crc32c(data[: FILE_HEADER.size]):
            return None
        _, version, salt, number, base_txid, previous_size, identity = FILE_HEADER.unpack_from(data)
        return cls(number, salt, base_txid, previous_size, identity, version)


class Decoder(Protocol):
    """Turns one file's bytes into records, from its start."""

    header: FileHeader | None
    offset: int
    """Where the first byte stands that is not part of a record (nor of the file's header) yet."""
    wanted: int
    """How many bytes more the record at `offset` needs, as far as is known; 0 or less: not known."""
    content: tuple[int, int, int] | None
    """Of the record at `offset`, if its header is known: where key and value begin and end, and their checksum."""
    problem: str | None
    """Why the bytes at `offset` are no record, however many more come."""
    final: bool
    """Whether the problem cannot come from a write that was cut short."""

    def feed(self, data: bytes) -> list[Record]:
        """Take the next bytes and return the records that are now complete."""

    def seek(self, offset: int) -> None:
        """Continue at `offset`, the start of a record: the next bytes fed are those at that offset."""

    def proves_rot(self, data: bytes, offset: int) -> bool:
        """Whether `data`, which is at `offset`, contains the header of a `SYNCED` record."""


class Codec(Protocol):
    """How records of one kind of file are written. The functions are pure."""

    name: str
    header_size: int
    """Bytes before the first record of a file."""

    def pack_header(self, header: FileHeader) -> bytes:
        """The first `header_size` bytes of a file."""

    def size(self, kind: int, key: bytes, value: bytes, *, flags: int = 0) -> int:
        """The record's size in bytes; `ValueError` if the codec cannot hold it."""

    def encode(
        self, header: bytes, offset: int, kind: int, key: bytes, value: bytes, *, flags: int = 0
    ) -> bytes:
        """The record at `offset` of the file that begins with `header`. `size` has accepted it."""

    def around(self, header: bytes, offset: int, key: bytes, size: int, crc: int, *, flags: int) -> tuple[bytes, bytes]:
        """Of the put at `offset`, what stands before and behind its value of `size` bytes. `crc`: of key and value."""

    def decoder(self, name: str) -> Decoder:
        """A decoder at the start of the file `name`."""


class BinaryCodec:
    """Any bytes, each covered by a checksum."""

    name = "binary"
    header_size = _SIZE

    def pack_header(self, header: FileHeader) -> bytes:
        return header.pack()

    def size(self, kind: int, key: bytes, value: bytes, *, flags: int = 0) -> int:
        if len(key) > _KEY_MAX:
            raise ValueError(f"a key of {len(key)} bytes is too long for a record: the limit is {_KEY_MAX}")
        return RECORD_HEADER.size + len(key) + len(value)

    def encode(
        self, header: bytes, offset: int, kind: int, key: bytes, value: bytes, *, flags: int = 0
    ) -> bytes:
        content = key + value
        return self._head(header, offset, kind, flags, len(key), len(value), crc32c(content)) + content

    def around(self, header: bytes, offset: int, key: bytes, size: int, crc: int, *, flags: int) -> tuple[bytes, bytes]:
        return self._head(header, offset, PUT, flags, len(key), size, crc) + key, b""

    def _head(
        self, header: bytes, offset: int, kind: int, flags: int, key_size: int, value_size: int, crc: int
    ) -> bytes:
        fields = RECORD_HEADER.pack(0, crc, kind, flags, key_size, value_size)[CRC.size :]
        return CRC.pack(_header_crc(_seed(header), offset, fields)) + fields

    def decoder(self, name: str) -> BinaryDecoder:
        return BinaryDecoder(name)


class TextCodec:
    """One line per change, for any editor. No `|` or newline in keys and values; no checksum."""

    name = "text"
    header_size = 0

    def pack_header(self, header: FileHeader) -> bytes:
        return b""

    def size(self, kind: int, key: bytes, value: bytes, *, flags: int = 0) -> int:
        if kind not in (PUT, DELETE):
            raise ValueError(f"the text codec has no {KINDS[kind]} record")
        table, key = unpacked_key(key) if flags & TABLE else ("", key)
        name = table.encode()
        for what, data in (("table", name), ("key", key), ("value", value)):
            if b"|" in data or b"\n" in data:
                raise ValueError(f"the text codec cannot hold a {what} with '|' or a newline in it")
        return (len(name) + 2 if name else 0) + len(key) + (len(value) + 4 if kind == PUT else 3)

    def encode(
        self, header: bytes, offset: int, kind: int, key: bytes, value: bytes, *, flags: int = 0
    ) -> bytes:
        start = b""
        if flags & TABLE:
            table, key = unpacked_key(key)
            start, key = b"T", table.encode() + b"|" + key
        return start + (b"P|%b|%b\n" % (key, value) if kind == PUT else b"D|%b\n" % key)

    def around(self, header: bytes, offset: int, key: bytes, size: int, crc: int, *, flags: int) -> tuple[bytes, bytes]:
        if flags & TABLE:
            table, key = unpacked_key(key)
            return b"TP|%b|%b|" % (table.encode(), key), b"\n"
        return b"P|%b|" % key, b"\n"

    def decoder(self, name: str) -> TextDecoder:
        return TextDecoder(name)


BINARY = BinaryCodec()
TEXT = TextCodec()
CODECS: dict[str, Codec] = {"binary": BINARY, "text": TEXT}


class BinaryDecoder:
    """See `Decoder`. `feed` raises `error` for a format version that this library does not read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.header: FileHeader | None = None
        self.offset = 0
        self.wanted = _SIZE
        self.content: tuple[int, int, int] | None = None
        self.problem: str | None = None
        self.final = False
        self._seed = 0
        self._buffer = b""

    def feed(self, data: bytes) -> list[Record]:
        records: list[Record] = []
        if self.problem is not None:
            return records
        buffer = self._buffer + data if self._buffer else data
        start = 0
        if self.header is None:
            self._read_header(buffer)
            start = self.offset
        if self.header is not None:
            while (record := self._next(buffer, start)) is not None:
                records.append(record)
                start += record.size
                self.offset += record.size
        self._buffer = buffer[start:]
        return records

    def seek(self, offset: int) -> None:
        self.offset, self._buffer, self.problem, self.wanted = offset, b"", None, 0

    def begun(self) -> Begun | None:
        """The put at `offset`, of which header and key have come. Its value may be read by others; then `seek`."""
        if self.content is None:
            return None
        _, crc, kind, flags, key_size, value_size = RECORD_HEADER.unpack_from(self._buffer)
        start = RECORD_HEADER.size + key_size
        if kind != PUT or len(self._buffer) < start:
            return None
        key, value = self._buffer[RECORD_HEADER.size : start], self._buffer[start:]
        return Begun(flags, key, value, value_size - len(value), crc)

    def proves_rot(self, data: bytes, offset: int) -> bool:
        for found in _SYNCED_KIND.finditer(data):
            start = found.start() - _KIND_AT
            if 0 <= start <= len(data) - RECORD_HEADER.size and self._header_at(data, start, offset + start):
                return True
        return False

    def _read_header(self, buffer: bytes) -> None:
        start = buffer[: len(MAGIC)]
        if not MAGIC.startswith(start) and any(start):  # zeros: the size arrived, the bytes did not
            self._stop("the file does not begin as a log of changes in the binary codec does", final=True)
        elif len(buffer) < _SIZE:
            self.wanted = _SIZE - len(buffer)
        elif (header := FileHeader.unpack(buffer)) is None:
            # Records follow a file's header only once it is synced: with any behind it, this one had arrived.
            self._stop("the file's header does not match its checksum", final=len(buffer) > _SIZE)
        elif header.version != VERSION:
            raise error(f"{self.name}: format version {header.version}, this library reads {VERSION}")
        else:
            self.header, self.offset, self._seed = header, _SIZE, _seed(buffer)

    def _next(self, buffer: bytes, start: int) -> Record | None:
        content = start + RECORD_HEADER.size
        self.content = None
        if content > len(buffer):
            self.wanted = content - len(buffer)
            return None
        fields = self._header_at(buffer, start, self.offset)
        if fields is None:
            self._stop("a record's header does not match its checksum")
            return None
        _, crc, kind, flags, key_size, value_size = fields
        stop = content + key_size + value_size
        if stop > len(buffer):
            self.wanted = stop - len(buffer)
            place = self.offset + RECORD_HEADER.size
            self.content = place, place + key_size + value_size, crc
            return None
        if crc32c(buffer[content:stop]) != crc:
            self._stop("a record's key and value do not match their checksum")
            return None
        middle = content + key_size
        if flags & TABLE and not _is_packed(buffer[content:middle]):
            self._stop("a record's table makes no sense", final=True)
            return None
        return Record(kind, flags, buffer[content:middle], buffer[middle:stop], self.offset, stop - start)

    def _header_at(self, data: bytes, start: int, offset: int) -> tuple[int, int, int, int, int, int] | None:
        """The header fields at `start` of `data`, which is `offset` in the file, if they are intact."""
        fields = RECORD_HEADER.unpack_from(data, start)
        crc, _, kind, flags, key_size, value_size = fields
        if crc != _header_crc(self._seed, offset, data[start + CRC.size : start + RECORD_HEADER.size]):
            return None
        if kind not in KINDS or flags > SYNCED | GROUPED | FIRST | TABLE:
            return None
        if kind != PUT and (value_size or (kind == COMMIT and key_size != COMMIT_FIELDS.size)):
            return None
        return fields

    def _stop(self, problem: str, *, final: bool = False) -> None:
        self.problem, self.final = problem, final


class TextDecoder:
    """See `Decoder`. A line without its newline was cut short; a line that is not a change is damage."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.header: FileHeader | None = None
        self.offset = 0
        self.wanted = 0
        self.content: tuple[int, int, int] | None = None
        self.problem: str | None = None
        self.final = True
        self._buffer = b""

    def feed(self, data: bytes) -> list[Record]:
        records: list[Record] = []
        if self.problem is not None:
            return records
        buffer = self._buffer + data if self._buffer else data
        *lines, self._buffer = buffer.split(b"\n")
        self.wanted = len(self._buffer)  # the line's end is nowhere in sight: look twice as far
        for line in lines:
            fields = line.split(b"|")
            if fields[0] == b"P" and len(fields) == 3:
                record = Record(PUT, 0, fields[1], fields[2], self.offset, len(line) + 1)
            elif fields[0] == b"D" and len(fields) == 2:
                record = Record(DELETE, 0, fields[1], b"", self.offset, len(line) + 1)
            elif (fields[0], len(fields)) in ((b"TP", 4), (b"TD", 3)) and _is_name(fields[1]):
                key, value = packed_key(fields[1].decode(), fields[2]), fields[3] if len(fields) == 4 else b""
                record = Record(PUT if len(fields) == 4 else DELETE, TABLE, key, value, self.offset, len(line) + 1)
            else:
                self.problem = f"a line that is neither P|key|value nor D|key: {line[:40]!r}"
                break
            records.append(record)
            self.offset += record.size
        return records

    def seek(self, offset: int) -> None:
        self.offset, self._buffer, self.problem, self.wanted = offset, b"", None, 0

    def proves_rot(self, data: bytes, offset: int) -> bool:
        return False


def _is_packed(key: bytes) -> bool:
    """Whether a key is a `packed_key` of a table."""
    try:
        return unpacked_key(key)[0] != ""
    except ValueError:
        return False


def _is_name(name: bytes) -> bool:
    """Whether this is the name of a table."""
    return _is_packed(_NAME_SIZE.pack(len(name)) + name)


def _seed(header: bytes) -> int:
    """The start value of the checksums of a file's records: the file header's own checksum.

    Not a checksum over all 60 bytes: data followed by its CRC has the same CRC whatever the data.
    """
    seed: int = CRC.unpack_from(header, FILE_HEADER.size)[0]
    return seed


def _header_crc(seed: int, offset: int, fields: bytes) -> int:
    return crc32c(fields, crc32c(_OFFSET.pack(offset), seed))
