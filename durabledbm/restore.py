"""restore: a database as it was after any commit, from a snapshot and the log that was attached.

The snapshot's entries come in the order of the keys; the log's changes are sorted into the same order, the
newest of each key kept; both are laid over each other and built into a new file, in one pass and in bounded
memory. The result is the database as of the wanted commit, with its identity, number and time: restored up to
the log's end, it can be opened and the same log attached again as if nothing had happened.

Never silently wrong: a commit that is not in the log by itself, because the log was completed late (see
`durabledbm.attach`), cannot be restored to, and is refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import NamedTuple

from ._engine.meta import Meta, first_page, has_magic
from ._engine.native import FileVolume
from ._folding import folded, laid_over
from ._streams import Label, StreamReader
from .backup import write_whole
from .changelog import Change, ChangeLog, Commit
from .database import DEFAULT_PAGE_SIZE
from .database import open as open_database
from .dump import Path, Progress, open_log
from .errors import CorruptionError, error
from .records import COMMIT, GROUPED, NO_IDENTITY, PUT

__all__ = ["restore"]

_REPORT_EVERY = 1024


class _Base(NamedTuple):
    """What the log is laid over."""

    label: Label
    entries: Callable[[], Iterator[tuple[bytes, bytes]]]
    total: int
    page_size: int
    file: os.stat_result | None
    """What says who may read the result; None if only its owner may."""


def restore(
    target: Path,
    snapshot: Path | None,
    log: Path | None = None,
    *,
    until_txid: int | None = None,
    until_time_ns: int | None = None,
    progress: Progress | None = None,
) -> Commit:
    """Make the new file `target` the database as of a commit, and return that commit.

    `snapshot` is a backup (a database file) or a dump (a file or a directory); None if the log begins with an
    empty database. `log` is the directory of the log that was attached; without it the result is the
    snapshot. Which commit: `until_txid`, or the last one not later than `until_time_ns` (nanoseconds since
    1970), or the log's last.

    The target appears whole or not at all. `progress(done, total)` is called with numbers of entries (total:
    of the snapshot). Raises `error` if the target exists, if snapshot and log are of different databases, if
    the log does not continue the snapshot, or if it does not tell what the database was at that commit or
    time; `CorruptionError` for damage.
    """
    path = os.path.abspath(os.fsdecode(target))
    if os.path.lexists(path):
        raise error(errno.EEXIST, os.strerror(errno.EEXIST), path)
    if snapshot is None and log is None:
        raise ValueError("there is nothing to restore from: neither a snapshot nor a log")
    limit = _Limit(until_txid, until_time_ns)
    with ExitStack() as stack:
        base = _open_base(snapshot, stack)
        limit.check_not_before(base)
        changes: Iterator[tuple[bytes, bytes | None]] = iter(())
        label = base.label
        if log is not None:
            source = stack.enter_context(open_log(log, "binary"))
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
        entries = _reported(laid_over(base.entries(), changes), base.total, progress)
        write_whole(path, meta, base.file, lambda builder: builder.add(entries))
    return Commit(label.txid, label.time_ns)


class _Limit:
    """Up to where."""

    def __init__(self, txid: int | None, time_ns: int | None) -> None:
        self.txid = txid
        self.time_ns = time_ns

    def check_not_before(self, base: _Base) -> None:
        """Raise if the snapshot is newer than what is wanted."""
        label = base.label
        if (self.txid is not None and label.txid > self.txid) or (
            self.time_ns is not None and label.time_ns > self.time_ns
        ):
            raise error(f"the snapshot, of commit {label.txid}, is newer than what is to be restored")


class _Window:
    """The log's changes behind the snapshot and up to the limit; then `end()` tells the last commit."""

    def __init__(self, log: ChangeLog, base: Label, limit: _Limit) -> None:
        self._log = log
        self._limit = limit
        self._last = Commit(base.txid, base.time_ns)

    def __iter__(self) -> Iterator[tuple[bytes, bytes | None]]:
        window = self._log.records(
            after_txid=self._last.txid, until_txid=self._limit.txid, until_time_ns=self._limit.time_ns
        )
        for item in window:
            if isinstance(item, Change):
                yield item.key, item.value
            else:
                self._last = item

    def end(self) -> tuple[int, int]:
        """Raises `error` if the log does not tell that this is the state that was asked for."""
        last, txid, time_ns = self._last, self._limit.txid, self._limit.time_ns
        if (txid is None or last.txid == txid) and time_ns is None:
            return last
        following = self._following()
        if txid is not None and last.txid != txid:
            if following is None:
                raise error(f"{self._log.directory}: the log ends with commit {last.txid}")
            raise error(self._lumped(following))
        if time_ns is not None and following is not None and following.txid != last.txid + 1:
            raise error(self._lumped(following))
        return last

    def _following(self) -> Commit | None:
        after = self._log.records(after_txid=self._last.txid)
        return next((item for item in after if isinstance(item, Commit)), None)

    def _lumped(self, following: Commit) -> str:
        span = f"commits {self._last.txid + 1} to {following.txid} stand in the log as one"
        return f"{self._log.directory}: {span}: restore up to {self._last.txid} or {following.txid}"


def _check_continues(log: ChangeLog, label: Label) -> None:
    """Raise if the log has another commit of the snapshot's number: then they are of different histories."""
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
    return _Base(label, lambda: iter(view.items()), len(view), meta.page_size, status)


def _directory(log: ChangeLog) -> _Base:
    """A dump in a directory. That its keys ascend is seen when it is read."""
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
            if record.kind == COMMIT:
                commit = record.commit()
        if commit is None:
            raise CorruptionError("the dump is not complete: its end is missing", path=path)
        label = Label(reader.identity, *commit)
    return _Base(label, lambda: _puts(_changes(path), path), count - 1, DEFAULT_PAGE_SIZE, status)


def _changes(path: str) -> Iterator[Change]:
    with open(path, "rb", buffering=0) as file:
        for record in StreamReader(file, path):
            if record.kind == PUT:
                yield record.change()


def _puts(changes: Iterator[Change], name: str) -> Iterator[tuple[bytes, bytes]]:
    last: bytes | None = None
    for _, key, value in changes:
        if value is None or (last is not None and key <= last):
            raise error(f"{name}: is not a dump: its keys do not ascend")
        yield key, value
        last = key


def _chained(
    first: tuple[bytes, bytes | None], rest: Iterator[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes | None]]:
    yield first
    yield from rest


def _reported(
    entries: Iterator[tuple[bytes, bytes]], total: int, progress: Progress | None
) -> Iterator[tuple[bytes, bytes]]:
    count = 0
    for entry in entries:
        yield entry
        count += 1
        if progress is not None and count % _REPORT_EVERY == 0:
            progress(count, max(total, count))
    if progress is not None:
        progress(count, count)
