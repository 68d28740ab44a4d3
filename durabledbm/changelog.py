"""The change log: puts and deletes in numbered files of limited size, to be replayed on any database.

::

    log = ChangeLog("changes")                      # 00000001.log, 00000002.log, ... in this directory
    log.put("a", "1"); log.delete("a"); log.close()
    for op, key, value in log.replay(): ...         # oldest first
    log.load_into(db)                               # newest wins, one commit

This module is the public interface. `_log.files` reads a directory of files as one log, `_log.writer` appends to it and
decides what is synced before what, and `_log.records` defines a record's bytes (see docs/changelog-format.md).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from ._engine.disk import FileVolume
from ._engine.disk.protocol import Volume
from ._engine.meta import now_ns
from ._engine.threads import Inside
from ._files.arguments import Path
from ._log.files import BATCH, Files, Reading, Tail, last_note, read_end
from ._log.records import (
    CODECS,
    COMMIT,
    COMMIT_FIELDS,
    DELETE,
    FIRST,
    GROUPED,
    MARK,
    NO_IDENTITY,
    PUT,
    TABLE,
    UNDATED,
    Change,
    Codec,
    Commit,
    Record,
    packed_key,
)
from ._log.writer import LogWriter
from ._messages import not_copied, represented
from .attach import Attachment, Writing, attach
from .errors import ClosedError, CorruptionError, error
from .mapping import Key, Value, as_bytes
from .table import checked_name

if TYPE_CHECKING:
    from ._engine.commit import Committer

__all__ = ["Change", "ChangeLog", "Commit", "Moment", "Span", "Tail"]

T = TypeVar("T")


class Span(NamedTuple):
    """What a log contains: the commits after `base_txid` up to `last_txid` of a database. `identity` is None if it
    belongs to no database.
    """

    identity: bytes | None
    base_txid: int
    last_txid: int


class Moment(NamedTuple):
    """What a log says about a moment. Commit times need not ascend: clocks are set back."""

    last: Commit
    """The last commit whose time is not later; 0, 0 if there is none. It contains all commits before it."""
    ahead: Commit | None
    """The first of these whose time is later, if there is one."""

    def explanation(self) -> str:
        """A sentence for people about the choice of `last`; empty if nothing needs explaining."""
        last, ahead = self
        if ahead is None:
            return ""
        return (
            f"the clock was set back: commit {last.txid} of {_date(last)} contains the commits before it, also those "
            f"from {ahead.txid} on, although that bears a later time, {_date(ahead)}"
        )


def _date(commit: Commit) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(commit.time_ns / 1e9))


class _Store(Protocol):
    """What `load_into` uses of a database."""

    def transaction(self) -> AbstractContextManager[Any]: ...
    def table(self, name: str, /) -> Any: ...
    def update(self, other: Any, /) -> None: ...
    def pop(self, key: Any, default: Any, /) -> Any: ...


class ChangeLog:
    """A log of changes in the files of `directory`, which is created if its parent exists.

    No file grows beyond `max_file_size` bytes. `codec` is "binary" (any bytes, checksums) or "text" (`P|key|value` and
    `D|key` lines, or `TP|table|key|value` and `TD|table|key`). `sync` says when appended records are forced to the
    disk, and so what a power failure can lose. The death of the process loses nothing in any mode.

    * "record" (default): before `put`, `delete` or `commit` returns. Nothing is lost.
    * "interval": by an append that finds a record unsynced for more than `interval` seconds. At most what was appended
      since the last sync is lost: `interval` seconds' worth while appends continue. No thread syncs an idle log.
    * "manual": by `sync()` and `close()`. At most what was appended since is lost.

    Every mode also syncs in `sync()`, in `close()`, and before a new file begins. After a crash the log contains a
    prefix of what was appended, with each commit complete or absent.

    Appending makes this object the only writer of the directory until `close()`; `BusyError` if there is another.
    Reading needs no lock and may happen anywhere at the same time. Any thread may use the object. A signal handler or
    finalizer that interrupts a call of it gets `BusyError` from any other but those that read and `close()`. In a child
    after `fork` it can read, and append once the parent has closed it. Errors are `durabledbm.error`s.
    """

    tail: Tail | None = None
    """Where the last finished replay, or the first append, found the log to end before its bytes do."""

    def __init__(
        self,
        directory: Path,
        max_file_size: int = 64 * 2**20,
        codec: str = "binary",
        sync: str = "record",
        interval: float = 1.0,
        *,
        volume: Volume | None = None,
    ) -> None:
        if codec not in CODECS:
            raise ValueError(f"codec must be 'binary' or 'text', not {codec!r}")
        if sync not in ("record", "interval", "manual"):
            raise ValueError(f"sync must be 'record', 'interval' or 'manual', not {sync!r}")
        if max_file_size < 1 or interval < 0:
            raise ValueError("max_file_size must be positive and interval not negative")
        self.directory = os.path.abspath(os.fsdecode(directory))
        self.max_file_size = max_file_size
        self.codec = codec
        self.closed = False
        self._codec = CODECS[codec]
        self._sync_after = {"record": 0.0, "interval": interval, "manual": None}[sync]
        self._files = Files(self.directory, FileVolume() if volume is None else volume)
        self._files.make_directory()
        self._writer: LogWriter | None = None
        self._renew()

    def __repr__(self) -> str:
        return represented(self, repr(self.directory), self.codec, "closed" if self.closed else "open")

    def __reduce__(self) -> Any:
        raise not_copied(self)

    def put(self, key: Key, value: Value, *, table: str = "") -> None:
        """Append that `key` now has `value`, in the main table or another. Raises `ValueError` and writes nothing if
        the log cannot hold it.
        """
        self._append(PUT, *_key_in(table, key), as_bytes(value, "value"))

    def delete(self, key: Key, *, table: str = "") -> None:
        """Append that `key` was deleted. Raises `ValueError` and writes nothing if the log cannot hold it."""
        self._append(DELETE, *_key_in(table, key), b"")

    def commit(
        self,
        changes: Iterable[tuple[Key | tuple[str, Key], Value | None]],
        txid: int,
        time_ns: int | None = None,
        *,
        note: bytes = b"",
    ) -> None:
        """Append the commit `txid` with its changes (None deletes), all or nothing. Binary codec only.

        A change of another table than the main one has `(table, key)` in place of its key.
        A small commit takes one write and one sync. `txid` must be greater than that of the commit before; `time_ns` is
        in nanoseconds since 1970 (default: now). If a change cannot be recorded (`ValueError`) or `changes` raises, the
        commit is not recorded and the log remains usable. A `note` is stored in a mark after the commit, for the next
        attachment of the log to its database.
        """
        moment = now_ns() if time_ns is None else time_ns
        if not (0 < txid < 2**64 and 0 <= moment < 2**64):
            raise ValueError("txid and time_ns must fit into 64 bits, and txid be positive")
        end = COMMIT_FIELDS.pack(txid, moment)
        self._check(COMMIT, 0, end, b"")
        if note:
            self._check(MARK, 0, note, b"")
        self._alone(self._commit, changes, txid, moment, end, note)

    def note(self, note: bytes) -> None:
        """Append a mark that holds `note`. Replaying ignores it. Binary codec only."""
        self._append(MARK, 0, note, b"")

    def check(self, key: Key, value: Value | None = None, *, table: str = "") -> None:
        """Raise the `ValueError` or `TypeError` that appending this would raise. Writes nothing."""
        flags, name = _key_in(table, key)
        if value is None:
            self._check(DELETE, flags, name, b"")
        else:
            self._check(PUT, flags, name, as_bytes(value, "value"))

    def bind(self, identity: bytes, txid: int) -> int:
        """Become the writer for the database `identity` (16 bytes); return the log's newest txid.

        An empty log is bound to the database permanently and durably, as containing the commits after `txid`. Raises
        `error` if the log belongs to another database or contains changes without a database. Binary codec only
        (`ValueError`).
        """
        if len(identity) != len(NO_IDENTITY) or identity == NO_IDENTITY:
            raise ValueError("an identity is 16 bytes, not all zero")
        if not self._codec.header_size:
            raise ValueError(f"the {self._codec.name} codec cannot say which database a log is of")
        return self._alone(lambda: self._ready().bind(identity, txid))

    def last_note(self) -> tuple[bytes, set[tuple[str, bytes]]] | None:
        """The newest note, and the tables and keys of all changes after it; None if there is no note."""
        self._check_open()
        return last_note(self._files, self._codec)

    def newest(self) -> tuple[int, Commit]:
        """Become the writer; return the number of the last file, and the newest commit.

        Its time is 0 if the last file contains no commit; its txid is 0 if there never was one.
        """
        return self._alone(self._newest)

    def _newest(self) -> tuple[int, Commit]:
        writer = self._ready()
        return writer.number, Commit(writer.txid, writer.time_ns)

    def sync(self) -> None:
        """Return when everything that was appended is on the disk."""
        self._alone(self._sync)

    def _sync(self) -> None:
        self._check_open()
        writer = self._kept()
        if writer is not None and writer.sync(0.0):
            writer.mark()

    def close(self) -> None:
        """Sync, and let others append. Closing twice is harmless. If the sync raises, the log is closed all the same.

        A call from a signal handler or finalizer that interrupted another call of this object returns immediately, and
        takes effect when that one has ended.
        """
        if self._inside.here():
            self._inside.postpone(self.close)
        else:
            self._alone(self._close)

    def _close(self) -> None:
        self.closed = True
        writer, self._writer = self._kept(), None
        if writer is not None:
            writer.close()

    def replay(self) -> Iterator[Change]:
        """Each change `(op, key, value)`, oldest first: `op` is "put" or "delete", `value` is None for a delete. Its
        attribute `table` is the name of the table, empty for the main one.

        Ends where the log ends: at a torn tail, which `tail` then describes, or before an unfinished commit. Raises
        `CorruptionError` for damage that no crash can cause. Records appended meanwhile may or may not be included.
        """
        return (item for item in self.records() if isinstance(item, Change))

    __iter__ = replay

    def records(
        self,
        *,
        after_txid: int | None = None,
        until_txid: int | None = None,
        until_time_ns: int | None = None,
    ) -> Iterator[Change | Commit]:
        """As `replay`, with a `Commit` after the changes of each commit. Uses bounded memory.

        Commits up to `after_txid` are left out: a snapshot of that commit contains them. Raises `error` if the log
        begins later than that, because then some commits are in neither. Ends after commit `until_txid`, or after the
        last commit whose time is not later than `until_time_ns` (see `at`); then a change that belongs to no commit
        raises `error`.
        """
        self._check_open()
        return self._records(after_txid, until_txid, until_time_ns)

    def at(self, time_ns: int) -> Moment:
        """The last commit whose time is not later than `time_ns`, in nanoseconds since 1970.

        "Last" follows the order of the log, in which the commits were made. If the clock was set back, earlier commits
        may have later times: `Moment.ahead` names the first of them.
        """
        self._check_open()
        return self._at(self._files.numbers(), time_ns)

    def base_txid(self) -> int:
        """The commit after which the log begins; 0 if it begins with an empty database."""
        self._check_open()
        return self._base_txid(self._files.numbers())

    def span(self) -> Span:
        """Which commits of which database the log contains."""
        self._check_open()
        numbers = self._files.numbers()
        last = read_end(self._files, self._codec, numbers)
        identity = None if last.identity == NO_IDENTITY else last.identity
        return Span(identity, self._base_txid(numbers), last.txid)

    def load_into(
        self,
        db: _Store,
        *,
        after_txid: int | None = None,
        until_txid: int | None = None,
        until_time_ns: int | None = None,
    ) -> int:
        """Apply the changes to `db` (any `Database`) in one transaction; return their number.

        The arguments and errors are those of `records`. If anything raises, `db` is unchanged.
        """
        count = size = 0
        batch: dict[tuple[str, bytes], bytes | None] = {}
        with db.transaction():
            window = self.records(after_txid=after_txid, until_txid=until_txid, until_time_ns=until_time_ns)
            for item in window:
                if isinstance(item, Commit):
                    continue
                if size > BATCH or len(batch) > 4096:
                    _apply(batch, db)
                    size = 0
                batch[item.table, item.key] = item.value
                count += 1
                size += len(item.key) + len(item.value or b"")
            _apply(batch, db)
        return count

    def _attach_to(self, committer: Committer, writing: Writing) -> Attachment:
        """Follow a database: see `Database.attach`.

        This is a method of the log, so that a program that has a log has imported everything that attaching needs:
        nothing is imported after the process has changed its root directory.
        """
        self._make_like(committer.store.disk.status())
        return attach(committer, writing, self)

    def _make_like(self, source: os.stat_result | None) -> None:
        """Give new files the permissions of the file that their content comes from (None: only the owner may read
        them).
        """
        self._files.make_like(source)

    def __enter__(self) -> ChangeLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _append(self, kind: int, flags: int, key: bytes, value: bytes) -> None:
        self._check(kind, flags, key, value)
        self._alone(self._append_one, kind, flags, key, value)

    def _append_one(self, kind: int, flags: int, key: bytes, value: bytes) -> None:
        writer = self._ready()
        try:
            writer.append(kind, flags, key, value)
            writer.flush()
        except BaseException:
            writer.drop()
            raise
        writer.sync(self._sync_after)

    def _commit(
        self, changes: Iterable[tuple[Key | tuple[str, Key], Value | None]], txid: int, moment: int, end: bytes,
        note: bytes,
    ) -> None:  # fmt: skip
        writer = self._ready()
        if txid <= writer.txid:
            raise ValueError(f"commit {txid} cannot follow commit {writer.txid}")
        flags = GROUPED | FIRST
        try:
            for key, value in changes:
                kind, data = (DELETE, b"") if value is None else (PUT, as_bytes(value, "value"))
                table, name = _key_in(*key) if type(key) is tuple else (0, as_bytes(key, "key"))
                self._check(kind, table, name, data)
                writer.append(kind, flags | table, name, data)
                flags = GROUPED
            writer.append(COMMIT, flags, end, b"")
            writer.flush()
            writer.txid, writer.time_ns = txid, moment
            if note:
                writer.append(MARK, 0, note, b"")
                writer.flush()
        except BaseException:
            writer.drop()
            raise
        writer.sync(self._sync_after)

    def _check(self, kind: int, flags: int, key: bytes, value: bytes) -> None:
        size = self._codec.size(kind, key, value, flags=flags)
        if (total := self._codec.header_size + size) > self.max_file_size:
            raise ValueError(f"the record needs a file of {total} bytes, the limit is {self.max_file_size}")

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the log of changes has already been closed")

    def _alone(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Call `operation(*arguments)` while no other thread uses `_writer`. Raises `BusyError` if this thread does.

        A forked child starts anew, and releases its copy of the parent's writer.
        """
        if self._pid != os.getpid():
            if self._writer is not None:
                self._writer.release()
                self._writer = None
            self._renew()
        result: T = self._inside.call(self._with_lock, operation, *arguments)
        return result

    def _with_lock(self, operation: Callable[..., T], *arguments: Any) -> T:
        with self._lock:
            return operation(*arguments)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._inside = Inside(self.directory, None)
        self._pid = os.getpid()

    def _ready(self) -> LogWriter:
        self._check_open()
        writer = self._kept()
        if writer is None:
            writer = self._writer = LogWriter(self._files, self._codec, self.max_file_size)
            self.tail = writer.tail
        return writer

    def _kept(self) -> LogWriter | None:
        """The writer, if there is one. If its files were closed from outside, it is replaced by a new one, which has
        synced what was written.
        """
        if self._writer is not None and self._writer.lost:
            self._writer.release()
            self._writer = None
            self._writer = LogWriter(self._files, self._codec, self.max_file_size)
        return self._writer

    def _base_txid(self, numbers: list[int]) -> int:
        reading = Reading(self._files, self._codec, numbers)
        next(iter(reading), None)
        return reading.base_txid

    def _at(self, numbers: list[int], time_ns: int) -> Moment:
        last, ahead, later = Commit(0, 0), None, None
        for _, record in Reading(self._files, self._codec, numbers):
            if record.kind == COMMIT:
                commit = record.commit()
                if commit.time_ns <= time_ns:
                    last, ahead = commit, later
                elif later is None:
                    later = commit
        return Moment(last, ahead)

    def _records(
        self, after_txid: int | None, until_txid: int | None, until_time_ns: int | None
    ) -> Iterator[Change | Commit]:
        numbers = self._files.numbers()
        last_txid = 2**64 if until_txid is None else until_txid
        if until_time_ns is not None:
            last_txid = min(last_txid, self._at(numbers, until_time_ns).last.txid)
        if after_txid is not None and after_txid < (base_txid := self._base_txid(numbers)):
            gap = f"{self.directory}: the log begins after commit {base_txid}, not after {after_txid}"
            raise error(gap)
        reading = Reading(self._files, self._codec, numbers)
        group: _Group | None = None
        for number, record in reading:
            if not record.flags & GROUPED:
                group = None
                if record.kind in (PUT, DELETE):
                    if last_txid < 2**64:
                        raise error(f"{self.directory}: {UNDATED}")
                    yield record.change()
                    continue
            elif record.flags & FIRST:
                group = _Group(number, record.offset)
            if record.kind == COMMIT:
                commit = record.commit()
                if commit.txid > last_txid:
                    return
                if after_txid is None or commit.txid > after_txid:
                    if group is not None:
                        yield from group.changes(self._files, self._codec, number, record.offset)
                    elif record.flags & GROUPED:
                        lost = f"the beginning of commit {commit.txid} is missing"
                        raise CorruptionError(lost, path=self._files.path(number))
                    yield commit
                group = None
            elif group is not None:
                group.add(record)
        self.tail = reading.tail
        if group is not None and self.tail is None:
            path = self._files.path(group.number)
            self.tail = Tail(path, group.offset, "the commit that begins here was not finished")


class _Group:
    """The changes of a commit: held in memory while they are few, otherwise read a second time."""

    def __init__(self, number: int, offset: int) -> None:
        self.number, self.offset = number, offset
        self._held: list[Change] | None = []
        self._size = 0

    def add(self, record: Record) -> None:
        self._size += record.size
        if self._size > BATCH:
            self._held = None
        elif self._held is not None:
            self._held.append(record.change())

    def changes(self, files: Files, codec: Codec, number: int, offset: int) -> Iterator[Change]:
        """All changes up to the commit record at `offset` of file `number`."""
        if self._held is not None:
            yield from self._held
            return
        for place in Reading(files, codec, list(range(self.number, number + 1)), self.offset):
            if (place[0], place[1].offset) == (number, offset):
                return
            yield place[1].change()


def _apply(batch: dict[tuple[str, bytes], bytes | None], db: _Store) -> None:
    parts: dict[str, dict[bytes, bytes | None]] = {}
    for (table, key), value in batch.items():
        parts.setdefault(table, {})[key] = value
    for name, changes in parts.items():
        target = db.table(name) if name else db
        target.update({key: value for key, value in changes.items() if value is not None})
        for key, value in changes.items():
            if value is None:
                target.pop(key, None)
    batch.clear()


def _key_in(table: str, key: Key) -> tuple[int, bytes]:
    """The flag of a record, and its key."""
    name = as_bytes(key, "key")
    return (TABLE, packed_key(checked_name(table), name)) if table != "" else (0, name)
