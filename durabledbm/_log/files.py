"""The files of a change log: reading a directory of them as one log, and finding its end.

`_log.writer` appends, and `_log.records` defines the bytes. Reading relies on what the writer ensures:

1. A file is complete and synced before the next one is created. So only the last file can have a torn tail, and damage
   in any other is rot.
2. A file's header is synced before its first record is written.
3. A torn tail is cut off, and the file synced, before anything is appended.

Reading takes no lock. While it is read, a file may grow, and a torn tail may be replaced by complete records.
"""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from .._engine.disk.protocol import Disk, Volume
from .._engine.sparse import LONG, checksum_of, is_sparse, stretches
from .._files.publish import own_directory, permissions_of
from ..errors import CorruptionError, error
from .records import (
    COMMIT,
    DELETE,
    MARK,
    NO_IDENTITY,
    PUT,
    RECORD_HEADER,
    Codec,
    Decoder,
    FileHeader,
    Record,
)

__all__ = ["BATCH", "Files", "Reading", "Tail", "last_note", "may_go_on", "read_end"]

BATCH = 1 << 20
"""Bytes of a commit that are held: by the writer before they are written, by a reader until the end comes."""

_NAME = re.compile(r"([0-9]{8}|[1-9][0-9]{8,})\.log")
_CHUNK = 1 << 18  # bytes in one read
_READ_MAX = 1 << 30  # what a Disk reads at most at once


class Tail(NamedTuple):
    """Where and why a log ends before its bytes do: path, first byte that is not replayed, reason."""

    file: str
    offset: int
    reason: str


class Files:
    """The numbered files of one directory."""

    def __init__(self, directory: str, volume: Volume) -> None:
        self.directory = directory
        self.volume = volume
        self._is_new = False
        """The directory was made here."""
        self._like: os.stat_result | None = None

    def make_like(self, source: os.stat_result | None) -> None:
        """Give new files the permissions of the file `source`, from which their content comes (None: only the owner may
        read them).

        If the directory was created here, it gets them, too.
        """
        self._like = permissions_of(source)
        if self._is_new:
            try:
                own_directory(self.directory, source)
            except OSError as exc:
                raise error.wrap(exc, self.directory) from exc

    def make_directory(self) -> None:
        """Create the directory, durably, if it is missing."""
        try:
            os.mkdir(self.directory)
            self._is_new = True
            self.volume.sync_directory(self.directory)
        except FileExistsError as exc:
            if not os.path.isdir(self.directory):
                raise error(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.directory) from exc
        except OSError as exc:
            raise error.wrap(exc, self.directory) from exc

    def path(self, number: int) -> str:
        return os.path.join(self.directory, f"{number:08d}.log")

    def numbers(self) -> list[int]:
        """The numbers of the files, ascending. `CorruptionError` if one is missing between two others."""
        for _ in range(2):  # a listing made while files are added may show one without the one before it
            numbers = self._listed()
            if not numbers or numbers[-1] - numbers[0] == len(numbers) - 1:
                return numbers
        missing = next(number for number, found in enumerate(numbers, numbers[0]) if number != found)
        raise CorruptionError("a file in the middle of the log is missing", path=self.path(missing))

    def _listed(self) -> list[int]:
        try:
            names = os.listdir(self.directory)
        except OSError as exc:
            raise error.wrap(exc, self.directory) from exc
        numbers = [int(name[:-4]) for name in names if _NAME.fullmatch(name)]
        return sorted(number for number in numbers if number)

    def open(self, number: int, *, writable: bool) -> Disk:
        return self.volume.open(self.path(number), writable=writable)

    def create(self, number: int) -> Disk:
        """Create a file. Without `make_like` it gets the permissions of the one before it."""
        like = self._like or self._before(number)
        if like is None:
            return self.volume.create(self.path(number), 0o666)
        disk = self.volume.create(self.path(number), 0o600)
        disk.take_owner(like)
        return disk

    def _before(self, number: int) -> os.stat_result | None:
        try:
            return os.stat(self.path(number - 1))
        except OSError:
            return None


class Reading:
    """One pass over the files `numbers`, oldest first, as pairs of file number and record.

    With `start` it begins at the record at that offset of the first file. The attributes describe what has been read so
    far: the newest file's header and the end of its records; the database; the newest commit and its time (0: not
    read), and the newest commit before the first file. `tail` is set if the last file has a torn tail.
    """

    def __init__(self, files: Files, codec: Codec, numbers: list[int], start: int = 0) -> None:
        self.header: FileHeader | None = None
        self.end = 0
        self.previous_size = 0
        self.identity = NO_IDENTITY
        self.base_txid = 0
        self.txid = 0
        self.time_ns = 0
        self.tail: Tail | None = None
        self._files = files
        self._codec = codec
        self._numbers = numbers
        self._start = start

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        for number in self._numbers:
            path = self._files.path(number)
            self.header, self.previous_size = None, self.end
            try:
                disk = self._files.open(number, writable=False)
                try:
                    for record in self._records(disk, number):
                        if record.kind == COMMIT:
                            self.txid, self.time_ns = record.commit()
                        yield number, record
                finally:
                    disk.close()
            except OSError as exc:
                if isinstance(exc, error):
                    raise
                raise error.wrap(exc, path) from exc

    def _records(self, disk: Disk, number: int) -> Iterator[Record]:
        decoder = self._codec.decoder(disk.path)
        position, suspect = 0, -1
        if self._start and number == self._numbers[0]:
            decoder.feed(disk.read(self._codec.header_size, 0))
            decoder.seek(self._start)
            position = self._start
        while True:
            while may_go_on(disk, decoder, position) and (data := _read_on(disk, decoder, position)):
                position += len(data)
                records = decoder.feed(data)
                if self.header is None and decoder.header is not None:
                    self._follow(decoder.header, number)
                yield from records
            self.end = decoder.offset
            if decoder.problem is None and position == decoder.offset:
                return
            reason = decoder.problem or "the file ends within a record"
            if decoder.offset == suspect:
                raise CorruptionError(f"at offset {suspect}: {reason}", path=disk.path)
            if number == self._numbers[-1] and (not _is_rot(disk, decoder) or self._is_torn_header(disk, number)):
                self.tail = Tail(disk.path, decoder.offset, reason)
                return
            # What was being written there while it was read is complete by now: look again.
            position = suspect = decoder.offset
            decoder.seek(suspect)

    def _is_torn_header(self, disk: Disk, number: int) -> bool:
        """Whether a crash interrupted the creation of this file, which may then contain anything of its size.

        The file before it must belong to this log, so another program's file is never taken for one.
        """
        size = self._codec.header_size
        if not size or disk.size() > size or self.header is not None:
            return False
        try:
            before = self._files.open(number - 1, writable=False)
        except FileNotFoundError:
            return False
        with closing(before):
            data = before.read(size, 0)
            return len(data) == size and FileHeader.unpack(data) is not None

    def _follow(self, header: FileHeader, number: int) -> None:
        """Check that a file's header continues the file before."""
        path = self._files.path(number)
        if header.number != number:
            raise CorruptionError(f"the file says that it is number {header.number} of its log", path=path)
        if number == self._numbers[0]:
            self.identity = header.identity
            self.base_txid = self.txid = header.base_txid
        elif header.previous_size != self.previous_size:
            sizes = f"the file has {self.previous_size} bytes, it was completed with {header.previous_size}"
            raise CorruptionError(sizes, path=self._files.path(number - 1))
        elif header.identity != self.identity:
            raise CorruptionError("the file is of another database than the one before", path=path)
        elif not self._start and header.base_txid != self.txid:
            gap = f"the file follows commit {header.base_txid}, the one before ends with commit {self.txid}"
            raise CorruptionError(gap, path=path)
        self.header = header


def _read_on(disk: Disk, decoder: Decoder, position: int) -> bytes:
    return disk.read(max(0, min(max(_CHUNK, decoder.wanted), disk.size() - position, _READ_MAX)), position)


def _is_rot(disk: Disk, decoder: Decoder) -> bool:
    """Whether no crash can have left the bytes at the decoder's offset in the last file."""
    if decoder.problem is None or decoder.final:
        return decoder.problem is not None
    for start, end in stretches(disk, decoder.offset + 1, disk.size()):
        position = max(start - RECORD_HEADER.size, decoder.offset + 1)  # a header may begin in the hole before
        while position < end and len(data := disk.read(_CHUNK, position)) >= RECORD_HEADER.size:
            if decoder.proves_rot(data, position):
                return True
            position += len(data) - (RECORD_HEADER.size - 1)
    return False


def may_go_on(disk: Disk, decoder: Decoder, position: int) -> bool:
    """Whether reading may continue at `position`. A long record must exist before memory is taken for it. Where the
    file is sparse, it is verified first, because a hole can have any size.
    """
    if decoder.problem is None and decoder.wanted > LONG:
        if decoder.content is not None:
            start, stop, crc = decoder.content
            if stop > disk.size():
                return False
            if is_sparse(disk, start, stop) and checksum_of(disk, start, stop) != crc:
                decoder.problem = "a record's key and value do not match their checksum"
        elif is_sparse(disk, position, min(position + decoder.wanted, disk.size())):
            decoder.problem = "a line with a hole in it"
    return decoder.problem is None


def read_end(files: Files, codec: Codec, numbers: list[int]) -> Reading:
    """Read the last file, and the one before it if the creation of the last one was interrupted."""
    reading = Reading(files, codec, numbers[-1:])
    deque(reading, maxlen=0)
    if reading.header is None and codec.header_size and len(numbers) > 1:
        reading = Reading(files, codec, numbers[-2:])
        deque(reading, maxlen=0)
    return reading


def last_note(files: Files, codec: Codec) -> tuple[bytes, set[tuple[str, bytes]]] | None:
    """The newest note, and what was changed after it, tables and keys; None if there is no note."""
    behind: set[tuple[str, bytes]] = set()
    for number in reversed(files.numbers()):
        note, keys = b"", set[tuple[str, bytes]]()
        for _, record in Reading(files, codec, [number]):
            if record.kind == MARK and record.key:
                note, keys = record.key, set()
            elif record.kind in (PUT, DELETE):
                change = record.change()
                keys.add((change.table, change.key))
        behind |= keys
        if note:
            return note, behind
    return None
