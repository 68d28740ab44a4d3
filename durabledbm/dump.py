"""dump and load: a database as a stream of records, and back.

A dump is a log of changes that consists of puts, in the order of the keys, with one commit record at its end,
which names the commit that it is a copy of. So it has the same codecs, it may be one file, a directory of
files of limited size, or a pipe, and whatever reads a log reads a dump. Without its commit record a dump is
not complete, and nothing of it is loaded. (The text codec has no commits: there a dump that lost whole lines
at its end is not noticed.)

Memory does not grow with the database.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

from ._engine.creation import temporary_name
from ._engine.meta import now_ns
from ._engine.native import FileVolume
from ._streams import Label, Readable, StreamReader, StreamWriter, codec_of
from .backup import mode_of
from .changelog import ChangeLog, Commit, Tail
from .database import Database
from .errors import error
from .records import CODECS, COMMIT, DELETE, FIRST, GROUPED, NO_IDENTITY, PUT, UNDATED, Record
from .snapshot import Snapshot

__all__ = ["Loaded", "dump", "load", "open_log"]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Progress = Callable[[int, "int | None"], None]

_REPORT_EVERY = 1024
_SYNC_BYTES = 16 * 2**20
_BATCH_BYTES = 2**20
_BATCH_ENTRIES = 1000
_NEW_FILE = 0o600


class Writable(Protocol):
    """What is asked of a file object."""

    def write(self, data: bytes, /) -> object: ...


class Loaded(NamedTuple):
    """How many changes were loaded, the newest commit (None: there is none), and where a log was torn."""

    changes: int
    commit: Commit | None
    tail: Tail | None


# -- dump ------------------------------------------------------------------------------------------


def dump(
    source: Mapping[bytes, bytes],
    target: Path | Writable,
    *,
    codec: str = "binary",
    max_file_size: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write all entries of `source` to `target`, and return their number.

    `source` is a `Database` (of which the last commit is dumped, while others write), a `Snapshot`, or any
    other mapping of bytes. `target` is a file object open for writing bytes, or a name: of a file, or, with
    `max_file_size` in bytes, of a directory of files no larger than that. A file or directory of that name
    appears whole or not at all; a file that is there is replaced, a directory is not. `progress(done, total)`
    is called with numbers of entries.

    Raises `ValueError` if the codec ("binary" or "text") cannot hold an entry, or a file of that size cannot.
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be 'binary' or 'text', not {codec!r}")
    with _dumpable(source) as (mapping, label, mode):
        entries = _Counted(mapping, progress)
        try:
            if not isinstance(target, (str, bytes, os.PathLike)):
                if max_file_size is not None:
                    raise ValueError("max_file_size is for a directory, not for a file object")
                _write_stream(entries, target.write, codec, label)
            elif max_file_size is None:
                _write_file(entries, os.path.realpath(os.fsdecode(target)), codec, label, mode)
            else:
                path = os.path.abspath(os.fsdecode(target))
                _write_directory(entries, path, codec, label, mode=mode, max_file_size=max_file_size)
        except OSError as exc:
            raise error.wrap(exc) from exc
    entries.finish()
    return entries.count


@contextmanager
def _dumpable(source: Mapping[bytes, bytes]) -> Iterator[tuple[Mapping[bytes, bytes], Label, int]]:
    """A mapping that does not change meanwhile, what it is, and the permissions that its copies get."""
    if isinstance(source, Database):
        if not source.readonly and not source._transactions:
            source.sync()
        with Snapshot(source._pin()) as snapshot:
            yield snapshot, _label(snapshot), mode_of(source._store.path)
    elif isinstance(source, Snapshot):
        yield source, _label(source), _NEW_FILE
    else:
        yield source, Label(NO_IDENTITY, 1, now_ns()), _NEW_FILE


def _label(snapshot: Snapshot) -> Label:
    meta = snapshot._state.meta
    return Label(meta.database_id, max(meta.txid, 1), meta.time_ns)


class _Counted:
    """The entries of a mapping, counted, with `progress` told about some of them."""

    def __init__(self, mapping: Mapping[bytes, bytes], progress: Progress | None) -> None:
        self._mapping = mapping
        self._progress = progress
        self._total = len(mapping)
        self.count = 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for entry in self._mapping.items():
            yield entry
            self.count += 1
            if self._progress is not None and self.count % _REPORT_EVERY == 0:
                self._progress(self.count, self._total)

    def finish(self) -> None:
        """Report the end."""
        if self._progress is not None:
            self._progress(self.count, self.count)


def _write_stream(
    entries: Iterable[tuple[bytes, bytes]], write: Callable[[bytes], object], codec: str, label: Label
) -> None:
    writer = StreamWriter(write, codec, label)
    for key, value in entries:
        writer.put(key, value)
    writer.finish()


def _write_file(
    entries: Iterable[tuple[bytes, bytes]], path: str, codec: str, label: Label, mode: int
) -> None:
    volume = FileVolume()
    temporary = temporary_name(path)
    disk = volume.create(temporary, _NEW_FILE)
    end = synced = 0

    def write(data: bytes) -> None:
        nonlocal end, synced
        disk.write(end, (data,))
        end += len(data)
        if end - synced > _SYNC_BYTES:
            disk.sync()
            synced = end

    try:
        _write_stream(entries, write, codec, label)
        disk.sync()
        os.chmod(temporary, mode)
        disk.close()
        volume.replace(temporary, path)
    except BaseException:
        disk.close()
        volume.remove(temporary)
        raise
    volume.sync_directory(path)


def _write_directory(
    entries: Iterable[tuple[bytes, bytes]],
    path: str,
    codec: str,
    label: Label,
    *,
    mode: int,
    max_file_size: int,
) -> None:
    if os.path.isdir(path) and os.listdir(path):
        raise error(f"{path}: the directory is not empty; a dump needs a new one")
    temporary = temporary_name(path)
    os.mkdir(temporary, 0o700)
    try:
        with ChangeLog(temporary, max_file_size, codec, sync="manual") as log:
            if codec == "text":
                for key, value in entries:
                    log.put(key, value)
            else:
                if label.identity != NO_IDENTITY:
                    log.bind(label.identity, 0)
                log.commit(entries, label.txid, label.time_ns)
        os.chmod(temporary, mode | (mode & 0o444) >> 2)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    FileVolume().sync_directory(path)


# -- load ------------------------------------------------------------------------------------------


def load(
    source: Path | Readable,
    db: MutableMapping[bytes, bytes],
    *,
    until_txid: int | None = None,
    until_time_ns: int | None = None,
    codec: str | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Apply the changes of a dump or a log to `db`: entries that it does not mention stay.

    `source` is a directory, a file, or a file object open for reading bytes; the codec is recognized unless given. Into
    a `Database` this is one transaction, so if anything raises, it is as before; any other mapping gets the changes in
    batches. `until_txid` and `until_time_ns` stop before the first commit beyond (of a file: only into a `Database`).
    `progress(done, total)` is called with numbers of changes, total None.

    Raises `CorruptionError` for a dump that is damaged or incomplete, `error` if it holds no commit to stop at. A log
    in a directory may be torn at its end, as a crash leaves it; `Loaded.tail` tells.
    """
    with ExitStack() as stack:
        if isinstance(db, Database):
            stack.enter_context(db.transaction())
        if isinstance(source, (str, bytes, os.PathLike)) and os.path.isdir(source):
            log = stack.enter_context(open_log(source, codec))
            loading = _Loading(db, progress)
            for item in log.records(until_txid=until_txid, until_time_ns=until_time_ns):
                if isinstance(item, Commit):
                    loading.commit = item
                else:
                    loading.apply(item.key, item.value)
            if log.tail is not None and not loading.count:
                raise error(f"{log.tail.file}: is not complete: {log.tail.reason}")
            loaded = loading.finish(log.tail)
        else:
            reader = stack.enter_context(_reader(source, codec))
            loaded = _load_stream(reader, db, until_txid, until_time_ns, progress)
        if loaded.commit is None and (until_txid is not None or until_time_ns is not None):
            raise error("it holds no commit of that time or before")
        return loaded


@contextmanager
def _reader(source: Path | Readable, codec: str | None) -> Iterator[StreamReader]:
    name = "<stream>"
    try:
        if isinstance(source, (str, bytes, os.PathLike)):
            name = os.fsdecode(source)
            with open(source, "rb", buffering=0) as file:
                yield StreamReader(file, name, codec)
        else:
            yield StreamReader(source, name, codec)
    except OSError as exc:
        raise error.wrap(exc, name) from exc


def open_log(directory: Path, codec: str | None = None) -> ChangeLog:
    """The log in a directory that exists, with its codec recognized. Raises `error` if there is none."""
    path = os.fsdecode(directory)
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(".log"))
        if not names:
            raise error(f"{path}: holds no log")
        if codec is None:
            with open(os.path.join(path, names[0]), "rb") as file:
                codec = codec_of(file.read(16), path)
    except OSError as exc:
        raise error.wrap(exc, path) from exc
    return ChangeLog(path, codec=codec)


class _Loading:
    """Changes on their way into a mapping."""

    def __init__(self, db: MutableMapping[bytes, bytes], progress: Progress | None) -> None:
        self._db: Any = db
        self._progress = progress
        self._batch: dict[bytes, bytes] | None = None if isinstance(db, Database) else {}
        self._batch_size = 0
        self.count = 0
        self.commit: Commit | None = None

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Make one change."""
        if value is None:
            self._flush()
            self._db.pop(key, None)
        elif self._batch is None:
            self._db[key] = value
        else:
            self._batch[key] = value
            self._batch_size += len(key) + len(value)
            if self._batch_size > _BATCH_BYTES or len(self._batch) >= _BATCH_ENTRIES:
                self._flush()
        self.count += 1
        if self._progress is not None and self.count % _REPORT_EVERY == 0:
            self._progress(self.count, None)

    def _flush(self) -> None:
        """Elsewhere than in a transaction each write costs a sync or a round trip: so they go in batches."""
        if self._batch:
            self._db.update(self._batch)
            self._batch, self._batch_size = {}, 0

    def finish(self, tail: Tail | None = None) -> Loaded:
        """Report the end."""
        self._flush()
        if self._progress is not None:
            self._progress(self.count, self.count)
        return Loaded(self.count, self.commit, tail)


class _Beyond(Exception):
    """The commit that is being loaded is not wanted: it lies beyond the limit."""


def _load_stream(
    reader: StreamReader,
    db: MutableMapping[bytes, bytes],
    until_txid: int | None,
    until_time_ns: int | None,
    progress: Progress | None,
) -> Loaded:
    """A stream tells a commit's number behind its changes: they are made first, and undone if need be."""
    limited = until_txid is not None or until_time_ns is not None
    if limited and not isinstance(db, Database):
        raise ValueError("from a stream, 'until' needs a Database to load into, which can roll back")
    last = Commit(
        2**64 if until_txid is None else until_txid, 2**64 if until_time_ns is None else until_time_ns
    )
    loading = _Loading(db, progress)
    records = iter(reader)
    record = next(records, None)
    if record is None and reader.codec == "binary":
        raise error("the dump or log is not complete: it holds no record")
    while record is not None:
        if not record.flags & GROUPED:
            if record.kind in (PUT, DELETE):
                if limited:
                    raise error(UNDATED)
                loading.apply(*record.change()[1:])
            record = next(records, None)
            continue
        count = loading.count
        try:
            with ExitStack() as stack:
                if limited:
                    assert isinstance(db, Database)
                    stack.enter_context(db.transaction())
                _load_commit(record, records, loading, last)
        except _Beyond:
            loading.count = count
            break
        record = next(records, None)
    return loading.finish()


def _load_commit(record: Record, records: Iterator[Record], loading: _Loading, last: Commit) -> None:
    """The commit that begins with `record`, up to its end."""
    following: Record | None = record
    if not record.flags & FIRST:
        raise error("the stream begins within a commit: load the directory of the log instead")
    while following is not None:
        if following.kind == COMMIT:
            commit = following.commit()
            if commit.txid > last.txid or commit.time_ns > last.time_ns:
                raise _Beyond
            loading.commit = commit
            return
        loading.apply(*following.change()[1:])
        following = next(records, None)
        if following is not None and (not following.flags & GROUPED or following.flags & FIRST):
            break
    raise error("the dump or log is not complete: it ends within a commit")
