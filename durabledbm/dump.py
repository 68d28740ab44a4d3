"""dump and load: a database as a stream of records, and back.

A dump is a change log that consists of puts in key order and one commit record at its end, which names the commit that
it is a copy of. So it has the same codecs, can be one file, a directory of files of limited size, or a pipe, and
everything that reads a log reads a dump. A dump without its commit record is incomplete, and nothing of it is loaded.
(The text codec has no commits: a text dump that lost whole lines at its end is not noticed.)

Memory does not grow with the database.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, closing, contextmanager
from io import SEEK_END, BufferedReader
from typing import Any, NamedTuple, Protocol

from ._engine.disk import FileVolume
from ._engine.meta import now_ns
from ._files.arguments import Meter, Path, Progress
from ._files.publish import publishing_directory, real_target, replacing
from ._log.records import (
    CODECS,
    COMMIT,
    DELETE,
    FIRST,
    GROUPED,
    NO_IDENTITY,
    PUT,
    TABLE,
    UNDATED,
    Change,
    Record,
    TableChange,
    packed_key,
    unpacked_key,
)  # fmt: skip
from ._log.streams import InputStream, Label, LargePut, StreamReader, StreamWriter, codec_of, open_stream
from .changelog import ChangeLog, Commit, Tail
from .database import Database
from .errors import CorruptionError, error
from .maintenance.backup import check_target
from .mapping import Readable, Writable
from .snapshot import Snapshot

__all__ = ["Loaded", "dump", "load", "open_log"]


_SYNC_BYTES = 16 * 2**20
_BATCH_BYTES = 2**20
_BATCH_ENTRIES = 1000


class OutputStream(Protocol):
    """What is used of a file object."""

    def write(self, data: bytes, /) -> object: ...


class Loaded(NamedTuple):
    """How many changes were loaded, the newest commit (None if there is none), and where a log was torn."""

    changes: int
    commit: Commit | None
    tail: Tail | None
    explanation: str = ""
    """Why this commit, where a time was given and those in the log are not in order: a sentence for people."""


# -- dump ------------------------------------------------------------------------------------------


def dump(
    source: Mapping[bytes, bytes],
    target: Path | OutputStream,
    *,
    codec: str = "binary",
    max_file_size: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write all entries of `source`, of all its tables, to `target`, and return their number.

    `source` is a `Database` (its last commit is dumped, while others may write), a `Snapshot`, or any other mapping of
    bytes. `target` is a file object open for writing bytes, or a name: of a file or, with `max_file_size` in bytes, of
    a directory of files no larger than that. A file or directory appears complete or not at all. An existing file is
    replaced, an existing directory is not. New files have the permissions of the database's file; without one, only
    their owner may read them. `progress(done, total)` counts entries.

    Raises `ValueError` if the codec ("binary" or "text") or a file of that size cannot hold an entry, and `error` if
    the target cannot be written, is not a regular file, or is the database itself.
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be 'binary' or 'text', not {codec!r}")
    with _dumpable(source) as (mapping, label, file):
        tables = _tables(mapping)
        meter = Meter(progress, sum(map(len, tables.values())))
        entries = meter.watch(_entries(tables))
        try:
            if not isinstance(target, (str, bytes, os.PathLike)):
                if max_file_size is not None:
                    raise ValueError("max_file_size is for a directory, not for a file object")
                _write_stream(entries, target.write, codec, label)
            elif max_file_size is None:
                path = real_target(target)
                check_target(path, _identity(source))
                _write_file(entries, path, codec, label, file)
            else:
                path = os.path.abspath(os.fsdecode(target))
                parts = _whole(entries, max_file_size)
                _write_directory(parts, path, codec, label, source=file, max_file_size=max_file_size)
        except OSError as exc:
            raise error.wrap(exc) from exc
    meter.finish()
    return meter.done


@contextmanager
def _dumpable(source: Mapping[bytes, bytes]) -> Iterator[tuple[Mapping[bytes, bytes], Label, os.stat_result | None]]:
    """An unchanging mapping, what it is, and the file that it is in, if any."""
    if isinstance(source, Database):
        if not source.readonly and not source._transactions:
            source.sync()
        with Snapshot(source._pin()) as snapshot:
            yield snapshot, _label(snapshot), source._store.disk.status()
    elif isinstance(source, Snapshot):
        owner = source._owner
        yield source, _label(source), owner._store.disk.status() if isinstance(owner, Database) else None
    else:
        yield source, Label(NO_IDENTITY, 1, now_ns()), None


def _identity(source: Mapping[bytes, bytes]) -> tuple[int, int] | None:
    """The file that is dumped, if it is one."""
    if isinstance(source, Database):
        return source._store.disk.identity()
    store = source._pin._store if isinstance(source, Snapshot) else None
    return None if store is None else store.disk.identity()


def _label(snapshot: Snapshot) -> Label:
    meta = snapshot._state.meta
    return Label(meta.database_id, max(meta.txid, 1), meta.time_ns)


def _tables(mapping: Mapping[bytes, bytes]) -> dict[str, Mapping[bytes, bytes]]:
    """The tables of a mapping, the main one ("") first, in the order in which keys of a log have them."""
    others = mapping.tables() if isinstance(mapping, Snapshot) else []
    tables: dict[str, Mapping[bytes, bytes]] = {"": mapping}
    for name in sorted(others, key=lambda name: packed_key(name, b"")):
        tables[name] = mapping.table(name)  # type: ignore[attr-defined]
    return tables


def _entries(tables: Mapping[str, Mapping[bytes, bytes]]) -> Iterator[tuple[str, bytes, Any]]:
    """All entries. A file stands for a value that need not be in memory as a whole."""
    for name, table in tables.items():
        for key, value in table._parted_items() if isinstance(table, Readable) else table.items():
            yield name, key, value


def _write_stream(
    entries: Iterable[tuple[str, bytes, Any]], write: Callable[[bytes], object], codec: str, label: Label
) -> None:
    writer = StreamWriter(write, codec, label)
    for table, key, value in entries:
        if isinstance(value, BufferedReader):
            with value:
                writer.put_file(table, key, value)
        else:
            writer.put(table, key, value)
    writer.finish()


def _whole(entries: Iterable[tuple[str, bytes, Any]], most: int) -> Iterator[tuple[str, bytes, bytes]]:
    """The entries with all values in memory, of which none may have more than `most` bytes."""
    for table, key, value in entries:
        if isinstance(value, BufferedReader):
            if (size := value.seek(0, SEEK_END)) > most:
                raise ValueError(f"a value of {size} bytes is too long: the limit of a file is {most}")
            value.seek(0)
            yield table, key, value.read()
        else:
            yield table, key, value


def _write_file(
    entries: Iterable[tuple[str, bytes, bytes]], path: str, codec: str, label: Label, source: os.stat_result | None
) -> None:
    with replacing(path, source) as disk:
        end = synced = 0

        def write(data: bytes) -> None:
            nonlocal end, synced
            disk.write(end, (data,))
            end += len(data)
            if end - synced > _SYNC_BYTES:
                disk.sync()
                synced = end

        _write_stream(entries, write, codec, label)


def _write_directory(
    entries: Iterable[tuple[str, bytes, bytes]],
    path: str,
    codec: str,
    label: Label,
    *,
    source: os.stat_result | None,
    max_file_size: int,
) -> None:
    if os.path.isdir(path) and os.listdir(path):
        raise error(f"{path}: the directory is not empty; a dump needs a new one")
    with (
        publishing_directory(path) as whole,
        ChangeLog(whole, max_file_size, codec, sync="manual") as log,
    ):
        log._make_like(source)
        if codec == "text":
            for table, key, value in entries:
                log.put(key, value, table=table)
        else:
            if label.identity != NO_IDENTITY:
                log.bind(label.identity, 0)
            changes = (((table, key) if table else key, value) for table, key, value in entries)
            log.commit(changes, label.txid, label.time_ns)


# -- load ------------------------------------------------------------------------------------------


def load(
    source: Path | InputStream,
    db: MutableMapping[bytes, bytes],
    *,
    until_txid: int | None = None,
    until_time_ns: int | None = None,
    codec: str | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Apply the changes of a dump or a log to `db`. Entries that it does not mention stay.

    `source` is a directory, a file, or a file object open for reading bytes. The codec is recognized unless given. Into
    a `Database`, or a database of `durabledbm.remote` on PostgreSQL, this is one transaction: if anything raises, the
    database is unchanged. Any other mapping receives the changes in batches. `until_txid` and `until_time_ns` stop
    after the commit with that number, or after the last commit whose time is not later (from a file: only into a
    `Database`). See `Loaded.explanation` for clocks that were set back. `progress(done, total)` counts changes; total
    is None.

    Raises `CorruptionError` for a damaged or incomplete dump, and `error` if it has no commit to stop at. A log in a
    directory may be torn at its end, as a crash leaves it; `Loaded.tail` says where.
    """
    with ExitStack() as stack:
        if isinstance(db, Database):
            stack.enter_context(db.transaction())
        loader = stack.enter_context(db.loading(progress)) if hasattr(db, "loading") else None
        if isinstance(source, (str, bytes, os.PathLike)) and os.path.isdir(source):
            log = stack.enter_context(open_log(source, codec))
            explanation = "" if until_time_ns is None else log.at(until_time_ns).explanation()
            loading = _Loading(db, loader, progress)
            for item in log.records(until_txid=until_txid, until_time_ns=until_time_ns):
                if isinstance(item, Commit):
                    loading.commit = item
                else:
                    loading.apply(item)
            if log.tail is not None and not loading.meter.done:
                raise error(f"{log.tail.file}: is not complete: {log.tail.reason}")
            loaded = loading.finish(log.tail)._replace(explanation=explanation)
        else:
            reader = stack.enter_context(_reader(source, codec))
            loaded = _load_stream(reader, db, _Loading(db, loader, progress), until_txid, until_time_ns)
        if loaded.commit is None and (until_txid is not None or until_time_ns is not None):
            raise error("it contains no commit at or before that point")
        return loaded


@contextmanager
def _reader(source: Path | InputStream, codec: str | None) -> Iterator[StreamReader]:
    name = "<stream>"
    try:
        if isinstance(source, (str, bytes, os.PathLike)):
            name = os.fsdecode(source)
            with open_stream(name) as file:
                yield StreamReader(file, name, codec)
        else:
            yield StreamReader(source, name, codec)
    except OSError as exc:
        raise error.wrap(exc, name) from exc


def open_log(directory: Path, codec: str | None = None) -> ChangeLog:
    """The log in an existing directory, with its codec recognized. Raises `error` if there is none."""
    path = os.fsdecode(directory)
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(".log"))
        if not names:
            raise error(f"{path}: holds no log")
        if codec is None:
            with closing(FileVolume().open(os.path.join(path, names[0]), writable=False)) as disk:
                codec = codec_of(disk.read(16, 0), path)
    except OSError as exc:
        raise error.wrap(exc, path if exc.filename is None else None) from exc
    return ChangeLog(path, codec=codec)


class _Loading:
    """Applies changes to a mapping."""

    def __init__(self, db: MutableMapping[bytes, bytes], loader: Any, progress: Progress | None) -> None:
        self._db: Any = db
        self._loader = loader
        """What takes the changes in the place of the mapping, if the mapping has it so."""
        self._tables = {"": self._db}
        self._batch: dict[bytes, bytes] | None = None if isinstance(db, Database) else {}
        self._batch_size = 0
        self._batch_table = ""
        self.meter = Meter(progress)
        self.commit: Commit | None = None

    def apply(self, change: Change) -> None:
        """Make one change."""
        _, key, value = change
        table = self._table(change.table)
        if self._loader is not None:
            self._loader.change(key, value)
        elif value is None:
            self._flush()
            table.pop(key, None)
        elif self._batch is None:
            table[key] = value
        else:
            if change.table != self._batch_table:
                self._flush()
                self._batch_table = change.table
            self._batch[key] = value
            self._batch_size += len(key) + len(value)
            if self._batch_size > _BATCH_BYTES or len(self._batch) >= _BATCH_ENTRIES:
                self._flush()
        self.meter.count()

    def apply_record(self, record: Record | LargePut) -> None:
        """Make the change that a record is."""
        if isinstance(record, Record):
            self.apply(record.change())
            return
        name, key = unpacked_key(record.key) if record.flags & TABLE else ("", record.key)
        table = self._table(name)
        if self._loader is None and isinstance(table, Writable):
            self._flush()
            table.put_stream(key, record, size=record.size)
            self.meter.count()
        else:
            parts = []
            while part := record.read(record.size):
                parts.append(part)
            value = b"".join(parts)
            self.apply(TableChange.of(name, Change("put", key, value)) if name else Change("put", key, value))

    def _table(self, name: str) -> Any:
        """The mapping that changes of a table go to."""
        table = self._tables.get(name)
        if table is None:
            if not hasattr(self._db, "table") or self._loader is not None:
                kind = type(self._db).__name__
                raise error(f"the table {name!r} cannot be loaded: a {kind} object has no tables")
            table = self._tables[name] = self._db.table(name)
        return table

    def _flush(self) -> None:
        """Outside a transaction each write costs a sync or a round trip, so writes go in batches."""
        if self._batch:
            self._table(self._batch_table).update(self._batch)
            self._batch, self._batch_size = {}, 0

    def finish(self, tail: Tail | None = None) -> Loaded:
        """Report the end."""
        self._flush()
        self.meter.finish()
        return Loaded(self.meter.done, self.commit, tail)


class _Beyond(Exception):
    """The commit being loaded is not wanted: it is beyond the limit."""


def _load_stream(
    reader: StreamReader,
    db: MutableMapping[bytes, bytes],
    loading: _Loading,
    until_txid: int | None,
    until_time_ns: int | None,
) -> Loaded:
    """A stream gives a commit's number after its changes: they are made first, and undone if necessary."""
    limited = until_txid is not None or until_time_ns is not None
    if limited and not isinstance(db, Database):
        raise ValueError("from a stream, 'until' needs a Database to load into, which can roll back")
    last = Commit(
        2**64 if until_txid is None else until_txid, 2**64 if until_time_ns is None else until_time_ns
    )
    records = reader.parted()
    record = next(records, None)
    if record is None and reader.codec == "binary":
        raise error("the dump or log is not complete: it holds no record")
    while record is not None:
        if not record.flags & GROUPED:
            if record.kind in (PUT, DELETE):
                if limited:
                    raise error(UNDATED)
                loading.apply_record(record)
            record = next(records, None)
            continue
        count = loading.meter.done
        try:
            with ExitStack() as stack:
                if limited:
                    assert isinstance(db, Database)
                    stack.enter_context(db.transaction())
                _load_commit(record, records, loading, last)
        except _Beyond:
            loading.meter.done = count
            if until_time_ns is not None:
                _refuse_what_follows(records, last)
            break
        record = next(records, None)
    return loading.finish()


def _refuse_what_follows(records: Iterator[Record | LargePut], last: Commit) -> None:
    """Raise if a wanted commit follows an unwanted one: the unwanted one would have to be loaded, too."""
    try:
        commits = (it.commit() for it in records if isinstance(it, Record) and it.kind == COMMIT)
        found = next((it for it in commits if it.txid <= last.txid and it.time_ns <= last.time_ns), None)
    except CorruptionError:
        return  # what cannot be read is not wanted
    if found is not None:
        raise error(
            f"the clock was set back: commit {found.txid} follows commits with later times; "
            "give the number of the last commit to load, or load the directory of the log"
        )


def _load_commit(
    record: Record | LargePut, records: Iterator[Record | LargePut], loading: _Loading, last: Commit
) -> None:
    """Load the commit that begins with `record`, up to its end."""
    following: Record | LargePut | None = record
    if not record.flags & FIRST:
        raise error("the stream begins within a commit: load the directory of the log instead")
    while following is not None:
        if isinstance(following, Record) and following.kind == COMMIT:
            commit = following.commit()
            if commit.txid > last.txid or commit.time_ns > last.time_ns:
                raise _Beyond
            loading.commit = commit
            return
        loading.apply_record(following)
        following = next(records, None)
        if following is not None and (not following.flags & GROUPED or following.flags & FIRST):
            break
    raise error("the dump or log is not complete: it ends within a commit")
