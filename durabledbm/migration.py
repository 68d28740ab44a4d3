"""`migrate()`: convert databases of other kinds into durabledbm files, in place or under a new name.

This module copies, verifies, and decides in which order files get and lose their names, and so what a crash or kill
leaves. The steps are:

1. All entries are copied into a temporary file beside the target (see `_files.temporary`), and that file is closed.
2. It is opened again, and every entry of the source is compared with it.
3. *New name*: the file gets the target's name, which must still be free. Done.
3. *In place*: the old files get second names (`old` becomes `old.bak`, `old.dat` becomes `old.bak.dat`: a database
   named `old.bak` for its own module). Then the new file takes the name `old`, in one step where `old` is itself a
   file. Then the old files lose their old names. A migration that was killed between these steps is completed by
   running it again.

Until step 3 nothing but the new file has been touched.

In place, the name `old` may belong to a database of ours that was created there by mistake and never written to. It is
replaced while its writer lock is held, and truncated first, so that a program that has it open gets an error when it
writes, instead of writing to a file without a name.
"""

from __future__ import annotations

import errno
import filecmp
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

from ._engine.disk import FileVolume
from ._engine.disk.protocol import Disk
from ._engine.files import initialise, temporary_name
from ._engine.locks import WriterLock
from ._engine.recovery import newest, read_slots
from ._engine.threads import Lease
from ._files.arguments import Meter, Path, Progress
from ._files.opening import DEFAULT_PAGE_SIZE
from ._files.publish import check_not_mounted, mounts_told, publishing, real_target, take_name
from ._files.sorting import in_key_order
from ._files.temporary import Temporary, blame_target, new_file, sweep
from ._foreign.kinds import FILES, OURS, Found, beside, migrate_command, refuse_beside, shell_word
from ._foreign.sources import Damaged, Entry, Source, TableSource, locate, open_source
from .database import open as open_database
from .errors import CorruptionError, error

__all__ = ["BACKUP", "Migrated", "convert", "migrate"]

BACKUP = ".bak"
"""What a database that was migrated in place has after its name."""

_BATCH_SIZE = 4 * 2**20
_CACHE_SIZE = 8 * 2**20  # entries are written, and read again, in their order: little is looked at twice
_PIECE = 2**20
_GROWTH = {"dbm.sqlite3": 10}
"""How many times as large as a file its entries may be: a number takes up to 9 bytes there, and more as text."""
_TIMEOUT = 30.0


def migrate(
    source: Path,
    target: Path | None = None,
    *,
    progress: Progress | None = None,
    on_damage: Callable[[str], None] | None = None,
) -> int:
    """Copy a database of another kind into a durabledbm file, verify every entry, and return their number.

    `source` is the name that the other module was given, or one of the database's files: dbm.dumb, dbm.gnu, dbm.ndbm,
    dbm.sqlite3, sqlitedict, LMDB (a directory or a file) or a hash file of Berkeley DB. `target` is a new name. Without
    it the new file takes the name that the other module was given, and the old database is kept under that name +
    ".bak". The new file gets the permissions of the source and, if the system permits, its owner and group. Memory does
    not grow with the number of entries, except where all keys are in memory at once (dbm.dumb, dbm.ndbm).

    LMDB's named databases and sqlitedict's tables become tables of the same names (see `Database.table`). sqlitedict's
    default table, "unnamed", becomes the main table.

    `progress(done, total)` is called now and then; each entry counts twice, for copying and verifying. `total` is None
    if it is not known. An exception from `progress` ends the migration.

    A damaged source raises `CorruptionError`, and nothing is created. With `on_damage`, that function is called with a
    line about each damaged place instead, and everything readable is copied.

    After any end, by an error, a kill or a power failure, the old database is complete under its name or as ".bak", and
    the target is complete or absent. Nothing else should write to the source meanwhile; if it does, that is noticed.
    Raises `error` if there is no such database or its kind is unknown, the target or the backup exists, a module is
    missing, or the source changed.
    """
    target = None if target is None else os.fsdecode(target)
    return convert(os.fsdecode(source), target, progress=progress, on_damage=on_damage).entries


class Migrated(NamedTuple):
    """What `convert` did."""

    entries: int
    path: str
    """The new file."""
    backup: str | None
    """The name under which the old database is kept, if it was replaced."""


def convert(
    source: str, target: str | None = None, *, progress: Progress | None = None, on_damage: Damaged | None = None
) -> Migrated:
    """As `migrate()`, and say what became of the names."""
    try:
        if target is None and os.path.islink(source):
            source = os.path.realpath(source)
        sweep(source if target is None else target)  # also if a run that was killed has left nothing else to do
        old = locate(source)
        if old.kind == OURS:
            hidden = _hidden(old.name)
            if hidden is None:
                return _finish(old.name, target)
            old = hidden
        _check_names(old, target)
        damaged = on_damage or _refusal(source, target)
        with new_file(old.name if target is None else target) as fresh:
            count = _Copying(old, fresh, Meter(progress), damaged).run()
            if target is None:
                _swap(old, fresh)
                return Migrated(count, old.name, old.name + BACKUP)
            take_name(fresh.path, target)
            return Migrated(count, target, None)
    except OSError as exc:
        blame_target(exc, source if target is None else target)
        raise error.wrap(exc) from exc


def _check_names(old: Found, target: str | None) -> None:
    """Raise before the copying if the new file or the backup cannot get its name."""
    if target is None:
        if os.path.isdir(old.name):
            raise error(errno.EISDIR, "a directory can't be replaced in one step: give a target", old.name)
        for file in _files(old):
            check_not_mounted(file)
        _check_backup(old)
        if "" in _present(old) or _is_unwritten(old.name):
            return
        target = old.name
    else:
        real_target(target)
        refuse_beside(FileVolume(), target)
    if os.path.lexists(target):
        raise error(errno.EEXIST, os.strerror(errno.EEXIST), target)


def _refusal(source: str, target: str | None) -> Damaged:
    """The reaction to damage without `on_damage`."""

    def refuse(text: str) -> None:
        names = " ".join(shell_word(name) for name in (source, target) if name is not None)
        raise CorruptionError(f"{text}; 'durabledbm migrate --salvage {names}' copies what can be read")

    return refuse


# -- copying -----------------------------------------------------------------------------------------------------------


class _Copying:
    """Copies one database. `damaged` is called about what cannot be read."""

    def __init__(self, old: Found, fresh: Temporary, meter: Meter, damaged: Damaged) -> None:
        self._old, self._fresh = old, fresh
        self._meter = meter
        self._report = damaged
        self._verifying = False
        self._size = sum(os.path.getsize(name) for name in _files(old)) * _GROWTH.get(old.kind, 1)

    def run(self) -> int:
        """Copy and verify; return the number of entries."""
        with closing(open_source(self._old, self._damaged)) as source:
            expected = source.count()
            self._meter.total = None if expected is None else 2 * expected
            initialise(FileVolume(), self._fresh.disk, DEFAULT_PAGE_SIZE)
            with open_database(self._fresh.path, "w", cache_size=_CACHE_SIZE) as db:
                for table, read in _parts(source):
                    target = db.table(table) if table else db
                    with closing(self._ordered(read(), ordered=source.ordered)) as entries:
                        for batch in _batches(entries):
                            target.update(batch)
            count = self._verify(source)
        self._fresh.take_owner(os.stat(_main_file(self._old)))
        self._meter.finish()
        return count

    def _damaged(self, text: str) -> None:
        if not self._verifying:  # which meets the same damage again
            self._report(text)

    def _ordered(
        self, source: Generator[Entry, None, None], *, ordered: bool
    ) -> Generator[Entry, None, None]:
        """The entries in key order, only the first of several with the same key."""
        entries = self._meter.watch(self._bounded(source))
        if not ordered:
            entries = in_key_order(entries, os.path.dirname(os.path.abspath(self._fresh.path)))
        last: bytes | None = None
        with closing(entries):
            for entry in entries:
                if entry[0] == last:
                    self._damaged(f"{self._old.name}: several entries have the key {entry[0][:50]!r}")
                else:
                    last = entry[0]
                    yield entry

    def _bounded(self, entries: Generator[Entry, None, None]) -> Generator[Entry, None, None]:
        """The entries, as long as they are not larger than the files: damage can make the same bytes appear again and
        again.
        """
        left = self._size
        with closing(entries):
            for entry in entries:
                left -= len(entry[0]) + len(entry[1]) + 1
                if left < 0:
                    self._damaged(f"{self._old.name}: it claims to hold more data than its files")
                    return
                yield entry

    def _verify(self, source: Source) -> int:
        """Compare all entries in a newly opened file: what counts is what can be read back."""
        self._verifying = True
        count = 0
        with open_database(self._fresh.path, "r", cache_size=_CACHE_SIZE) as db:
            for table, read in _parts(source):
                target = db.table(table) if table else db
                with closing(self._ordered(read(), ordered=source.ordered)) as entries:
                    for theirs, ours in zip_longest(entries, target.items()):
                        if theirs != ours:
                            key = (theirs or ours)[0]
                            raise error(f"{self._old.name}: the entry {key[:50]!r} changed while it was copied")
                        count += 1
        return count


def _parts(source: Source) -> Iterator[tuple[str, Callable[[], Generator[Entry, None, None]]]]:
    """The tables of a source, the main one ("") first, and what reads each."""
    yield "", source.entries
    if isinstance(source, TableSource):
        for table in source.tables():
            yield table, partial(source.entries_of, table)


def _batches(entries: Iterator[Entry]) -> Iterator[dict[bytes, bytes]]:
    """The entries in dicts that are committed one by one: no other process sees the file before it is complete."""
    batch: dict[bytes, bytes] = {}
    size = 0
    for key, value in entries:
        batch[key] = value
        size += len(key) + len(value)
        if size > _BATCH_SIZE:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


# -- names -------------------------------------------------------------------------------------------------------------


def _main_file(old: Found) -> str:
    """The file with the values, whose owner and permissions the new file gets."""
    files = _files(old)
    return next((file for file in files if file.endswith((".dat", ".pag"))), files[0])


def _files(old: Found) -> list[str]:
    if os.path.isdir(old.name):
        return [os.path.join(old.name, "data.mdb")]
    return [old.name + suffix for suffix in _present(old)]


def _present(old: Found) -> list[str]:
    """The suffixes of those files of this kind of database that exist."""
    return [suffix for suffix in FILES[old.kind] if os.path.isfile(old.name + suffix)]


def _check_backup(old: Found) -> None:
    for suffix in _present(old):
        backup = old.name + BACKUP + suffix
        try:
            os.lstat(backup)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise error(exc.errno, f"{exc.strerror}: give a target", backup) from exc
        if not _same_content(backup, old.name + suffix):
            raise error(errno.EEXIST, "in the way of the backup", backup)


def _swap(old: Found, fresh: Temporary) -> None:
    """Step 3 in place."""
    volume = FileVolume()
    suffixes = _present(old)
    with ExitStack() as undo:
        for backup in _backups(old.name, suffixes):
            undo.callback(_unlink, backup)
        volume.sync_directory(old.name)
        if "" in suffixes:
            with mounts_told(old.name):
                os.replace(fresh.path, old.name)
        elif os.path.lexists(old.name):
            with _unwritten(old.name) as disk:
                disk.resize(0)
                _replace_open(fresh.path, old.name)
        else:
            take_name(fresh.path, old.name)
        undo.pop_all()
    volume.sync_directory(old.name)
    _remove_old_names(old.name, suffixes)


def _replace_open(path: str, name: str) -> None:
    """Give a file the name of an empty one that is open, here and perhaps in other programs."""
    if os.name != "nt":
        os.replace(path, name)
        return
    # Windows lets no file take the name of an open one, but that may be renamed. A kill in between leaves the name to
    # no file, and the old database as it was.
    aside = temporary_name(name)
    os.rename(name, aside)
    try:
        os.rename(path, name)
    except OSError:
        os.rename(aside, name)
        raise
    _unlink(aside)


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _remove_old_names(path: str, suffixes: list[str]) -> None:
    for suffix in filter(None, suffixes):
        try:
            os.unlink(path + suffix)
        except OSError as exc:
            text = f"{exc.strerror}: the new file is complete, but this name of the old one cannot be removed"
            raise error(exc.errno, text, path + suffix) from exc
    FileVolume().sync_directory(path)


def _hidden(path: str) -> Found | None:
    """The old database that our file `path` hides, if our file was never written to; otherwise None."""
    found = beside(FileVolume(), path)
    return found if found is not None and _is_unwritten(path) else None


def _is_unwritten(path: str) -> bool:
    try:
        with closing(FileVolume().open(path, writable=False)) as disk:
            return _has_no_commit(disk)
    except OSError:
        return False


def _has_no_commit(disk: Disk) -> bool:
    slots = read_slots(disk)
    return slots.uninitialised or newest(disk, slots)[0].txid <= 1


@contextmanager
def _unwritten(path: str) -> Iterator[Disk]:
    """Our database at `path`, locked against writers. Raises EEXIST if it was written to."""
    lease = Lease()
    with closing(FileVolume().open(path, writable=True)) as disk:
        try:
            WriterLock(disk.identity()).acquire(lease, disk, _TIMEOUT)
            if not disk.linked() or not _has_no_commit(disk):
                raise error(errno.EEXIST, os.strerror(errno.EEXIST), path)
            yield disk
        finally:
            lease.end()


def _finish(path: str, target: str | None) -> Migrated:
    """Complete a migration in place that was killed after the new file took its name."""
    leftover = [] if target is not None else _unfinished(path)
    if not leftover:
        raise error(errno.EINVAL, f"is a durabledbm file already{_advice(path)}", path)
    _remove_old_names(path, leftover)
    with open_database(path, "r") as db:
        return Migrated(len(db), path, path + BACKUP)


def _advice(path: str) -> str:
    """What to do about an old database beside a database of ours, if there is one."""
    old = beside(FileVolume(), path)
    if old is None:
        return ""
    return f"; {migrate_command(path + _present(old)[0], 'NEW')} converts the old database beside it"


def _unfinished(path: str) -> list[str]:
    """The old names that such a migration left."""
    suffixes = dict.fromkeys(suffix for kind in FILES.values() for suffix in kind if suffix)
    return [suffix for suffix in suffixes if _same_content(path + suffix, path + BACKUP + suffix)]


def _same_content(one: str, other: str) -> bool:
    if not os.path.isfile(one) or not os.path.isfile(other):
        return False
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def _second_name(path: str, name: str) -> bool:
    """Give a file a second name; False if it has it already."""
    try:
        os.link(path, name)
    except FileExistsError:
        if not _same_content(path, name):
            raise
        return False
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL):
            raise
        _copy(path, name)
    return True


def _backups(name: str, suffixes: Iterable[str]) -> Iterator[str]:
    """Give these files of the old database names for the backup; those that did not have them yet."""
    for suffix in suffixes:
        backup = name + BACKUP + suffix
        if _second_name(name + suffix, backup):
            yield backup


def _copy(path: str, name: str) -> None:
    """A complete copy, in place of a second name, on a file system without hard links."""
    with open(path, "rb") as file, publishing(name, like=os.stat(path), replace=True) as copy:
        offset = 0
        for piece in iter(partial(file.read, _PIECE), b""):
            copy.disk.write(offset, (piece,))
            offset += len(piece)
