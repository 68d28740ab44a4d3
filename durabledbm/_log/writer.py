"""The writer of a change log: who may append, and what is synced before what.

Everything that changes a log's files is here. Reading relies on this order:

1. A file is complete and synced before the next one is created.
2. A file's header and its name are synced before its first record is written.
3. The torn tail of a crash is cut off, and the file synced, before anything is appended.
4. After a failed write or sync nothing more is appended; the next opening decides what the log contains.

The writer locks one byte of the oldest file, about which no two writers can disagree, and of the file to which it
appends. So the oldest files may be removed at any time.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from .._engine.disk.protocol import Disk
from ..errors import BusyError, error
from .files import BATCH, Files, read_end
from .records import MARK, NO_IDENTITY, RECORD_HEADER, SYNCED, Codec, FileHeader

__all__ = ["LogWriter"]

_ATTEMPTS = 100
"""How often the oldest file is looked for, while others create and remove files."""

_LOCK_BYTE = 2**62  # far behind any content, where no other program's lock is in the way


class LogWriter:
    """Appends to a log. Records gather in memory until `flush`. After a failed write or sync the writer is unusable."""

    def __init__(self, files: Files, codec: Codec, max_file_size: int) -> None:
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._files = files
        self._codec = codec
        self._max_file_size = max_file_size
        self._failed: str | None = None
        self._interrupted = False
        """Whether that was by something else than an error of the disk."""
        self._unsynced_since: float | None = None  # the oldest record that is not known to be on the disk
        self._unmarked = False  # records were written that no later record vouches for
        self._guard = self._disk = _lock_oldest(files)
        try:
            self._open_last()
        except BaseException as exc:
            self.release()
            _raise_ours(exc, files.directory)
            raise

    def _open_last(self) -> None:
        numbers = self._files.numbers()
        if len(numbers) > 1:
            self._disk = self._files.open(numbers[-1], writable=True)
            _lock(self._disk, self._files.directory)
        self._disk.forget()  # an earlier writer may have failed to sync: what counts is on the medium
        reading = read_end(self._files, self._codec, numbers)
        self.tail = reading.tail
        self.txid = reading.txid
        self.time_ns = reading.time_ns
        self._end = reading.end
        if self.tail is not None:
            self._disk.resize(self._end)
        self._disk.sync()  # what a killed process left may be in memory only, and so may the file's name
        self._files.volume.sync_directory(self._disk.path)
        self._clean = True
        self._header = reading.header or FileHeader(
            numbers[-1], _salt(), reading.txid, reading.previous_size, reading.identity
        )
        self._packed = self._codec.pack_header(self._header)

    @property
    def number(self) -> int:
        """The number of the file that is appended to."""
        return self._header.number

    @property
    def lost(self) -> bool:
        """Whether another part of the program has closed the files, and with them the lock."""
        return self._failed is None and not (self._disk.held() and self._guard.held())

    def bind(self, identity: bytes, txid: int) -> int:
        """See `ChangeLog.bind`."""
        if self._header.identity != identity:
            empty = self._header.number == 1 and self._end <= self._codec.header_size
            if not empty or self._header.identity != NO_IDENTITY:
                whose = "no database" if self._header.identity == NO_IDENTITY else "another database"
                raise error(f"{self._files.directory}: the log holds the changes of {whose}")
            self._header = self._header._replace(identity=identity, base_txid=txid)
            self._do(self._begin)
            self.txid = txid
        return self.txid

    def append(self, kind: int, flags: int, key: bytes, value: bytes) -> None:
        """Take a record that fits into an empty file. It is written by the next `flush`, if not before."""
        size = self._codec.size(kind, key, value, flags=flags)
        used = self._end + self._pending_size
        if used < self._codec.header_size:
            self._do(self._begin)
        elif used + size > self._max_file_size:
            self.flush()
            self._do(self._begin_next)
        if self._clean and not self._pending:
            flags |= SYNCED
        offset = self._end + self._pending_size
        self._pending.append(self._codec.encode(self._packed, offset, kind, key, value, flags=flags))
        self._pending_size += size
        if self._pending_size >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what was appended."""
        if self._pending:
            data = b"".join(self._pending)
            self.drop()
            self._do(self._write, data)
            self._unmarked = True
            if self._unsynced_since is None:
                self._unsynced_since = time.perf_counter()

    def drop(self) -> None:
        """Forget what was appended and not written yet."""
        self._pending, self._pending_size = [], 0  # at once: with one and not the other, offsets would be wrong

    def sync(self, after: float | None) -> bool:
        """Sync if something is unsynced for `after` seconds or longer (None: never). Whether it did."""
        self._check_usable()
        since = self._unsynced_since
        # A clock that stands still or goes back does not tell how long it has been: long enough, then.
        if since is None or after is None or 0 < time.perf_counter() - since < after:
            return False
        self._do(self._disk.sync)
        self._clean, self._unsynced_since = True, None
        return True

    def mark(self) -> None:
        """Leave a record that says that all before it is synced, if none says so and there is room."""
        room = self._max_file_size - self._end >= RECORD_HEADER.size
        if self._unmarked and room and self._codec.header_size:
            record = self._codec.encode(self._packed, self._end, MARK, b"", b"", flags=SYNCED)
            self._unmarked = False
            try:
                self._do(self._write, record)
            except error:
                pass  # it was evidence, not data: what is promised is kept, and the next append will raise

    def close(self) -> None:
        """Sync, mark, and release. Raises if something acknowledged could not be synced."""
        try:
            if self._unsynced_since is not None and self._interrupted:
                self._disk.sync()  # what came before the interrupt can still be kept
            elif self._unsynced_since is not None or self._failed is None:
                self.sync(0.0)
                self.mark()
        finally:
            self.release()

    def release(self) -> None:
        """Let go of files and locks without writing anything."""
        self._disk.close()
        self._guard.close()

    def _write(self, data: bytes) -> None:
        self._clean = False
        self._disk.write(self._end, (data,))
        self._end += len(data)

    def _begin_next(self) -> None:
        """Complete the file and create the next one."""
        if not self._clean:
            self._disk.sync()
            self._clean, self._unsynced_since = True, None
        header = self._header._replace(
            number=self._header.number + 1, salt=_salt(), base_txid=self.txid, previous_size=self._end
        )
        disk = self._files.create(header.number)
        if self._disk is not self._guard:
            self._disk.close()
        self._disk, self._header, self._end, self._unmarked = disk, header, 0, False
        _lock(disk, self._files.directory)
        self._begin()

    def _begin(self) -> None:
        """Write the header of a file that has no records; afterwards file and name are on the disk."""
        self._packed = self._codec.pack_header(self._header)
        if self._packed:
            self._disk.write(0, (self._packed,))
            self._disk.sync()
        self._files.volume.sync_directory(self._disk.path)
        self._end = len(self._packed)

    def _do(self, call: Callable[..., None], *args: object) -> None:
        """Change something on the disk. If that fails in any way, nothing more is changed."""
        self._check_usable()
        try:
            call(*args)
        except BaseException as exc:
            self._failed, self._interrupted = str(exc) or type(exc).__name__, not isinstance(exc, OSError)
            _raise_ours(exc, self._disk.path)
            raise

    def _check_usable(self) -> None:
        if self._failed is not None:
            again = "close it and open it again to append"
            raise error(f"{self._files.directory}: the log of changes has failed ({self._failed}); {again}")


def _salt() -> int:
    return int.from_bytes(os.urandom(4), "little")


def _lock(disk: Disk, directory: str) -> None:
    if not disk.lock(_LOCK_BYTE, exclusive=True):
        raise BusyError(f"{directory}: another writer is appending to this log of changes")


def _lock_oldest(files: Files) -> Disk:
    """The oldest file, created if there is none, locked for this writer."""
    for _ in range(_ATTEMPTS):
        numbers = files.numbers()
        try:
            disk = files.open(numbers[0], writable=True) if numbers else files.create(1)
        except (FileExistsError, FileNotFoundError):
            continue  # the first file was created, or the oldest one removed, just now
        except OSError as exc:
            raise error.wrap(exc, files.directory) from exc
        try:
            _lock(disk, files.directory)
            if disk.linked():
                return disk
        except BaseException as exc:
            disk.close()
            _raise_ours(exc, files.directory)
            raise
        disk.close()
    # Not others who are at work, but a link to nothing, or, where capitals make no difference, a name in capitals.
    path = files.path(numbers[0] if numbers else 1)
    raise error(errno.EEXIST, "has the name of a file of the log, and is none", path)


def _raise_ours(exc: BaseException, path: str) -> None:
    """Raise an operating system error as one of ours. Does nothing for other exceptions."""
    if isinstance(exc, OSError) and not isinstance(exc, error):
        raise error.wrap(exc, path) from exc
