"""restore: a database as it was after any commit, from a snapshot and the log that was attached.

The snapshot's entries are in key order. The log's changes are sorted into the same order, keeping the newest of each
key. Both are merged and built into a new file, in one pass and bounded memory. The result is the database as of the
wanted commit, with its identity, number and time: restored up to the log's end, it can be opened and the same log
attached again as if nothing had happened.

It is never silently wrong. A commit that the log does not contain by itself, because the log was completed late (see
`durabledbm.attach`), is refused as a target.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from ._engine.bulkload import Builder
from ._engine.disk import FileVolume
from ._engine.meta import Meta, first_page, has_magic
from ._files.arguments import Meter, Path, Progress
from ._files.opening import DEFAULT_PAGE_SIZE
from ._files.publish import real_target
from ._log.overlay import folded, laid_over
from ._log.records import COMMIT, GROUPED, NO_IDENTITY, PUT, packed_key, unpacked_key
from ._log.streams import Label, StreamReader
from .changelog import Change, ChangeLog, Commit, Moment
from .database import open as open_database
from .dump import open_log
from .errors import CorruptionError, error
from .maintenance.backup import write_whole
from .snapshot import Snapshot

__all__ = ["Restored", "restore"]


class _Base(NamedTuple):
    """What the log's changes are applied to."""

    label: Label
    entries: Callable[[], Iterator[tuple[bytes, bytes]]]
    """In the order of their keys, which are `packed_key`s."""
    total: int
    page_size: int
    file: os.stat_result | None
    """What says who may read the result; None if only its owner may."""


class Restored(Commit):
    """The commit that was restored."""

    explanation: str = ""
    """Why this one, where the times in the log are not in order: a sentence for people. Empty otherwise."""


def restore(
    target: Path,
    snapshot: Path | None,
    log: Path | None = None,
    *,
    until_txid: int | None = None,
    until_time_ns: int | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Create the file `target` as the database was after a commit, and return that commit.

    `snapshot` is a backup (a database file) or a dump (a file or directory); None if the log begins with an empty
    database. `log` is the directory of the log that was attached; without it the result is the snapshot. The commit is
    `until_txid`, or the last one whose time is not later than `until_time_ns` (nanoseconds since 1970), or the log's
    last. The result contains all commits before it, including any with later times because the clock was set back;
    `Restored.explanation` says so.

    The target appears complete or not at all. `progress(done, total)` counts entries; total is that of the snapshot.
    Raises `error` if the target exists, if snapshot and log belong to different databases, if the log does not continue
    the snapshot, or if it does not say what the database was at that commit or time; `CorruptionError` for damage.
    """
    path = real_target(target)
    if os.path.lexists(os.fsdecode(target)):
        raise error(errno.EEXIST, os.strerror(errno.EEXIST), path)
    if snapshot is None and log is None:
        raise ValueError("there is nothing to restore from: neither a snapshot nor a log")
    with ExitStack() as stack:
        base = _open_base(snapshot, stack)
        source = None if log is None else stack.enter_context(open_log(log, "binary"))
        limit = _limit(source, base.label, until_txid, until_time_ns)
        changes: Iterator[tuple[bytes, bytes | None]] = iter(())
        label = base.label
        if source is not None:
            identity = source.span().identity
            if identity is None or base.label.identity not in (identity, NO_IDENTITY):
                raise error(f"{source.directory}: is not a log of the database that the snapshot is of")
            _check_continues(source, base.label)
            window = _Window(source, base.label, limit)
            changes = folded(window, os.path.dirname(path))
            first = next(changes, None)  # now the log has been read
            changes = changes if first is None else _chained(first, changes)
            label = Label(identity, *window.end())
        elif until_txid is not None and until_txid != label.txid:
            raise error(f"the snapshot is of commit {label.txid}, and there is no log")
        pages = first_page(base.page_size)
        meta = Meta(max(label.txid, 1), base.page_size, label.identity, pages, time_ns=label.time_ns)
        meter = Meter(progress, base.total)
        entries = meter.watch(laid_over(base.entries(), changes))
        write_whole(path, meta, base.file, lambda builder: _fill(builder, entries))
        meter.finish()
    restored = Restored(label.txid, label.time_ns)
    restored.explanation = "" if limit.moment is None else limit.moment.explanation()
    return restored


class _Limit(NamedTuple):
    """The commit to stop at."""

    txid: int | None
    """The last commit that is wanted; None: all."""
    moment: Moment | None
    """What a time was turned into, if that was asked for."""


def _limit(log: ChangeLog | None, base: Label, until_txid: int | None, until_time_ns: int | None) -> _Limit:
    """Raises `error` if the snapshot is newer than the limit."""
    moment = None
    if until_time_ns is not None:
        moment = _moment(log, Commit(base.txid, base.time_ns), until_time_ns)
        until_txid = moment.last.txid if until_txid is None else min(until_txid, moment.last.txid)
    if until_txid is not None and base.txid > until_txid:
        raise error(f"the snapshot, of commit {base.txid}, is newer than what is to be restored")
    return _Limit(until_txid, moment)


def _moment(log: ChangeLog | None, base: Commit, time_ns: int) -> Moment:
    """What snapshot and log together say about a moment."""
    moment = Moment(Commit(0, 0), None) if log is None else log.at(time_ns)
    if moment.last.txid <= base.txid:
        return Moment(base, None) if base.time_ns <= time_ns else moment
    if base.time_ns > time_ns and (moment.ahead is None or moment.ahead.txid > base.txid):
        return Moment(moment.last, base)
    return moment


class _Window:
    """The log's changes after the snapshot and up to the limit; then `end()` returns the last commit."""

    def __init__(self, log: ChangeLog, base: Label, limit: _Limit) -> None:
        self._log = log
        self._limit = limit
        self._last = Commit(base.txid, base.time_ns)

    def __iter__(self) -> Iterator[tuple[bytes, bytes | None]]:
        for item in self._log.records(after_txid=self._last.txid, until_txid=self._limit.txid):
            if isinstance(item, Change):
                yield packed_key(item.table, item.key), item.value
            else:
                self._last = item

    def end(self) -> tuple[int, int]:
        """Raises `error` if the log does not show that this is the wanted state."""
        last, (txid, moment) = self._last, self._limit
        if txid is None or (last.txid == txid and moment is None):
            return last
        following = self._following()
        if last.txid != txid:
            if following is None:
                raise error(f"{self._log.directory}: the log ends with commit {last.txid}")
            raise error(self._lumped(following))
        if following is not None and following.txid != last.txid + 1:
            raise error(self._lumped(following))
        return last

    def _following(self) -> Commit | None:
        after = self._log.records(after_txid=self._last.txid)
        return next((item for item in after if isinstance(item, Commit)), None)

    def _lumped(self, following: Commit) -> str:
        span = f"commits {self._last.txid + 1} to {following.txid} stand in the log as one"
        return f"{self._log.directory}: {span}: restore up to {self._last.txid} or {following.txid}"


def _check_continues(log: ChangeLog, label: Label) -> None:
    """Raise if the log has another commit with the snapshot's number: then their histories differ."""
    if label.txid > log.span().base_txid:
        for item in log.records(after_txid=label.txid - 1, until_txid=label.txid):
            if isinstance(item, Commit) and item.txid == label.txid and item.time_ns != label.time_ns:
                raise error(f"{log.directory}: has another commit {label.txid} than the snapshot")


def _open_base(snapshot: Path | None, stack: ExitStack) -> _Base:
    if snapshot is None:
        return _Base(Label(NO_IDENTITY, 0, 0), lambda: iter(()), 0, DEFAULT_PAGE_SIZE, None)
    path = os.fsdecode(snapshot)
    try:
        if os.path.isdir(path):
            return _directory(stack.enter_context(open_log(path, "binary")))
        with closing(FileVolume().open(path, writable=False)) as disk:
            is_database = has_magic(disk.read(16, 0))
            status = disk.status()
    except OSError as exc:
        raise error.wrap(exc, path) from exc
    if not is_database:
        return _file(path, status)
    db = stack.enter_context(open_database(path, "r"))
    view = stack.enter_context(db.snapshot())
    meta = view._state.meta
    label = Label(meta.database_id, meta.txid, meta.time_ns)
    tables = sorted(view.tables(), key=lambda name: packed_key(name, b""))
    total = len(view) + sum(len(view.table(name)) for name in tables)
    return _Base(label, lambda: _content(view, tables), total, meta.page_size, status)


def _content(view: Snapshot, tables: list[str]) -> Iterator[tuple[bytes, bytes]]:
    for name in ["", *tables]:
        for key, value in (view.table(name) if name else view).items():
            yield packed_key(name, key), value


def _fill(builder: Builder, entries: Iterator[tuple[bytes, bytes]]) -> None:
    for name, group in groupby(((*unpacked_key(packed), value) for packed, value in entries), key=itemgetter(0)):
        part = ((key, value) for _, key, value in group)
        if name:
            builder.add_to_table(name, part)
        else:
            builder.add(part)


def _directory(log: ChangeLog) -> _Base:
    """A dump in a directory. Reading it shows whether its keys ascend."""
    commits = [item for item in log.records() if isinstance(item, Commit)]
    span = log.span()
    if len(commits) != 1 or span.base_txid:
        raise error(f"{log.directory}: is not a dump")
    label = Label(span.identity or NO_IDENTITY, *commits[0])
    return _Base(label, lambda: _puts(log.replay(), log.directory), 0, DEFAULT_PAGE_SIZE, None)


def _file(path: str, status: os.stat_result) -> _Base:
    """A dump in a file, read once to see that it is complete."""
    commit, count = None, 0
    with open(path, "rb", buffering=0) as file:
        reader = StreamReader(file, path)
        for record in reader:
            if commit is not None or not record.flags & GROUPED or record.kind not in (PUT, COMMIT):
                raise error(f"{path}: is not a dump")
            count += 1
            commit = record.commit() if record.kind == COMMIT else None
        if commit is None:
            raise CorruptionError("the dump is not complete: its end is missing", path=path)
        label = Label(reader.identity, *commit)
    return _Base(label, lambda: _puts(_changes(path), path), count - 1, DEFAULT_PAGE_SIZE, status)


def _changes(path: str) -> Iterator[Change]:
    with open(path, "rb", buffering=0) as file:
        yield from (record.change() for record in StreamReader(file, path) if record.kind == PUT)


def _puts(changes: Iterator[Change], name: str) -> Iterator[tuple[bytes, bytes]]:
    last: bytes | None = None
    for change in changes:
        key, value = packed_key(change.table, change.key), change.value
        if value is None or (last is not None and key <= last):
            raise error(f"{name}: is not a dump: its keys do not ascend")
        yield key, value
        last = key


def _chained(
    first: tuple[bytes, bytes | None], rest: Iterator[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes | None]]:
    yield first
    yield from rest
