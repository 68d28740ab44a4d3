"""`migrate()`: databases of other kinds become durabledbm files, in place or under a new name.

What may live here: copying, verifying, and the order in which files get and lose their names. It decides
what a crash or a kill at any moment leaves, so the steps are:

1. All entries are copied into a new file beside the target, and that file is closed.
2. It is opened again, and every entry of the source is compared with it.
3. *New name*: the file gets the target's name, which must still be free. Done.
3. *In place*: the old files get second names (`old` becomes `old.bak`, `old.dat` becomes `old.bak.dat`: a
   database named `old.bak` for its own module); then the new file takes the name `old`, in one step where
   `old` is itself a file; then the old files lose their old names. A migration that was killed between
   these steps is completed by running it again.

Until step 3 nothing but the new file has been touched. It is called `TARGET.migrating-PID`; the next
migration to the same target removes those of processes that are gone.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from itertools import zip_longest
from typing import TYPE_CHECKING

from ._engine.native import FileVolume
from ._foreign import FILES, Entry, Source, identify, open_source
from ._sorting import in_key_order
from .database import open as open_database
from .errors import error
from .stdlib import NAME

if TYPE_CHECKING:
    from os import PathLike

    _Path = str | bytes | PathLike[str] | PathLike[bytes]

__all__ = ["BACKUP", "Meter", "migrate", "remove_stale", "take_name"]

BACKUP = ".bak"
"""What a database that was migrated in place has after its name."""

_REPORT_EVERY = 1024
_BATCH_SIZE = 4 * 2**20
_CACHE_SIZE = 8 * 2**20  # entries are written, and read again, in their order: little is looked at twice

Progress = Callable[[int, "int | None"], None]


def migrate(source: _Path, target: _Path | None = None, *, progress: Progress | None = None) -> int:
    """Copy a database of another kind into a durabledbm file, verify every entry, and return their number.

    `source` is the name that the other module was given: of dbm.dumb, dbm.gnu, dbm.ndbm, dbm.sqlite3, or
    LMDB (a directory or a file). `target` is a new name; without it the new file takes the place of
    `source`, and the old database is kept as `source` + ".bak". The file gets the permissions of the
    source. Memory does not grow with the number of entries, except where the other module keeps all keys in
    memory (dbm.dumb, dbm.ndbm).

    `progress(done, total)` is called now and then; each entry counts twice, for copying and verifying.
    `total` is None if it is not known. An exception of `progress` ends the migration.

    Whenever it ends, by an error, a kill or a power failure: the old database is whole, under its name or
    as ".bak", and the target is whole or absent. Nobody else should write to the source meanwhile; if
    somebody did, that is noticed. Raises `error`: no such database, of no known kind, the target or the
    backup exists, a module is missing, the source changed.
    """
    try:
        return _migrate(os.fsdecode(source), None if target is None else os.fsdecode(target), Meter(progress))
    except OSError as exc:
        raise error.wrap(exc) from exc


def _migrate(path: str, target: str | None, meter: Meter) -> int:
    if target is None and os.path.islink(path):
        path = os.path.realpath(path)
    destination = path if target is None else target
    fresh = f"{destination}.migrating-"
    remove_stale(fresh)
    kind = identify(path)
    if kind == NAME:
        leftover = [] if target is not None else _unfinished(path)
        if not leftover:
            raise error(errno.EINVAL, "is a durabledbm file already", path)
        return _finish(path, leftover)
    if target is None:
        if os.path.isdir(path):
            raise error(errno.EISDIR, "a directory can't be replaced in one step: give a target", path)
        _check_backup(path, kind)
    replaces = target is None and "" in _present(path, kind)
    if not replaces and os.path.lexists(destination):
        raise error(errno.EEXIST, os.strerror(errno.EEXIST), destination)
    fresh += str(os.getpid())
    try:
        count = _copy_and_verify(path, kind, fresh, meter)
        if target is None:
            _swap(path, kind, fresh)
        else:
            take_name(fresh, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(fresh)
    return count


class Meter:
    """Counts entries, and tells `progress` about every thousandth and the last."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.total: int | None = None
        self.done = 0

    def watch(self, entries: Generator[Entry, None, None]) -> Generator[Entry, None, None]:
        """The same entries, counted."""
        with closing(entries):
            for entry in entries:
                yield entry
                self.done += 1
                if self._progress is not None and self.done % _REPORT_EVERY == 0:
                    self._progress(self.done, self.total)

    def finish(self) -> None:
        """Report the end."""
        if self._progress is not None:
            self._progress(self.done, self.done)


def _copy_and_verify(path: str, kind: str, fresh: str, meter: Meter) -> int:
    with closing(open_source(path, kind)) as source:
        expected = source.count()
        meter.total = None if expected is None else 2 * expected
        mode = stat.S_IMODE(os.stat(_main_file(path, kind)).st_mode)
        with open_database(fresh, "n", mode, cache_size=_CACHE_SIZE) as db:
            os.chmod(fresh, mode)  # whatever the umask is: who could read the entries can, nobody else
            with closing(_ordered(source, fresh, meter)) as entries:
                for batch in _batches(entries):
                    db.update(batch)
        count = _verify(source, fresh, path, meter)
    meter.finish()
    return count


def _ordered(source: Source, fresh: str, meter: Meter) -> Generator[Entry, None, None]:
    entries = meter.watch(source.entries())
    return entries if source.ordered else in_key_order(entries, os.path.dirname(os.path.abspath(fresh)))


def _batches(entries: Iterator[Entry]) -> Iterator[dict[bytes, bytes]]:
    """The entries in dicts that are committed one by one: nobody sees the file before it is complete."""
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


def _verify(source: Source, fresh: str, path: str, meter: Meter) -> int:
    """Compare all entries, in a file opened anew: what counts is what can be read back."""
    count = 0
    ordered = _ordered(source, fresh, meter)
    with open_database(fresh, "r", cache_size=_CACHE_SIZE) as db, closing(ordered) as entries:
        for theirs, ours in zip_longest(entries, db.items()):
            if theirs != ours:
                key = (theirs or ours)[0]
                raise error(f"{path}: the entry {key[:50]!r} changed while it was copied")
            count += 1
    return count


def _main_file(path: str, kind: str) -> str:
    if os.path.isdir(path):
        return os.path.join(path, "data.mdb")
    return path + _present(path, kind)[0]


def _present(path: str, kind: str) -> list[str]:
    """Which of the files that a database of this kind may have are there, as suffixes."""
    return [suffix for suffix in FILES[kind] if os.path.isfile(path + suffix)]


def _check_backup(path: str, kind: str) -> None:
    for suffix in _present(path, kind):
        backup = path + BACKUP + suffix
        if os.path.lexists(backup) and not os.path.samefile(backup, path + suffix):
            raise error(errno.EEXIST, "in the way of the backup", backup)


def _swap(path: str, kind: str, fresh: str) -> None:
    """Step 3 in place."""
    volume = FileVolume()
    suffixes = _present(path, kind)
    for suffix in suffixes:
        _second_name(path + suffix, path + BACKUP + suffix)
    volume.sync_directory(path)
    if "" in suffixes:
        volume.replace(fresh, path)
        volume.sync_directory(path)
    else:
        take_name(fresh, path)
    _remove_old_names(path, suffixes)


def _remove_old_names(path: str, suffixes: list[str]) -> None:
    for suffix in suffixes:
        if suffix:
            os.unlink(path + suffix)
    FileVolume().sync_directory(path)


def _unfinished(path: str) -> list[str]:
    """The old names that a migration in place left, if it was killed after the new file took its name."""
    suffixes = dict.fromkeys(suffix for kind in FILES.values() for suffix in kind if suffix)
    return [suffix for suffix in suffixes if _same_file(path + suffix, path + BACKUP + suffix)]


def _finish(path: str, leftover: list[str]) -> int:
    _remove_old_names(path, leftover)
    with open_database(path, "r") as db:
        return len(db)


def _same_file(one: str, other: str) -> bool:
    return os.path.isfile(one) and os.path.isfile(other) and os.path.samefile(one, other)


def _second_name(path: str, name: str) -> None:
    try:
        os.link(path, name)
    except FileExistsError:
        if not os.path.samefile(path, name):
            raise
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links. The copy gets its name when it is complete.
        part = f"{name}.{os.getpid()}"
        shutil.copy2(path, part)
        _sync_file(part)
        os.rename(part, name)


def take_name(fresh: str, target: str) -> None:
    """Give the file `fresh` the name `target`, which must be free. Raises FileExistsError if it is not."""
    volume = FileVolume()
    try:
        volume.link(fresh, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise
        volume.replace(fresh, target)
    volume.sync_directory(target)


def _sync_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_stale(prefix: str) -> None:
    """Remove files called `prefix` and the number of a process that is gone: a kill left them."""
    for leftover in glob.glob(glob.escape(prefix) + "[0-9]*"):
        pid = re.match("[0-9]+", leftover[len(prefix) :])
        if pid is not None and not _is_running(int(pid[0])):
            with suppress(FileNotFoundError):
                os.unlink(leftover)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True
