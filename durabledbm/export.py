"""`export()`: convert a durabledbm file into a database of another kind.

The files are written in a temporary directory beside the target, read back and compared. Then they get their
permissions, are synced, and get their names; the file that makes them a database is named last. So the target is
complete or absent, whenever the export ends.
"""

from __future__ import annotations

import errno
import os
from contextlib import closing

from ._engine.disk import take_owner
from ._files.arguments import Meter, Path, Progress
from ._files.publish import take_name
from ._files.temporary import blame_target, new_directory, sweep
from ._foreign.kinds import FILES, Found
from ._foreign.sources import KINDS_TO_WRITE, open_source, write_all
from .database import open as open_database
from .errors import error

__all__ = ["export"]


def export(source: Path, target: Path, to: str, *, progress: Progress | None = None) -> int:
    """Copy the durabledbm file `source` into a database of kind `to`, verify it, and return the number of entries.

    `to` is "dbm.gnu", "dbm.sqlite3" or "dbm.dumb". `target` is the name for that module's `open`; none of its files may
    exist. The source is read in one snapshot, so others may go on writing. The files get its permissions and, if the
    system permits, its owner and group. `progress(done, total)`: as for `migrate()`.

    Raises `error` if a file exists, the source has other tables, this Python lacks the module, or what was read back
    differs; ValueError for another kind.
    """
    if to not in KINDS_TO_WRITE:
        raise ValueError(f"can export to {', '.join(KINDS_TO_WRITE)}, not {to!r}")
    path, destination = os.fsdecode(source), os.fsdecode(target)
    sweep(destination)
    for suffix in FILES[to]:
        if os.path.lexists(destination + suffix):
            raise error(errno.EEXIST, os.strerror(errno.EEXIST), destination + suffix)
    meter = Meter(progress)
    try:
        with open_database(path, "r") as db, db.snapshot() as snapshot, new_directory(destination) as directory:
            if snapshot.tables():
                raise error(f"{path}: holds tables beside the main one, and a {to} database has none")
            fresh = os.path.join(directory.path, "copy")
            meter.total = 2 * len(snapshot)
            write_all(fresh, to, meter.watch(snapshot.items()))
            with closing(open_source(Found(to, fresh))) as copy:
                count = 0
                for key, value in meter.watch(copy.entries()):
                    if snapshot.get(key) != value:
                        raise error(f"{destination}: the entry {key[:50]!r} differs after it was written")
                    count += 1
            if count != len(snapshot):
                raise error(f"{destination}: {count} entries of {len(snapshot)} could be read back")
            _name(fresh, destination, to, os.stat(path))
    except OSError as exc:
        blame_target(exc, destination)
        raise error.wrap(exc) from exc
    meter.finish()
    return count


def _name(fresh: str, target: str, kind: str, like: os.stat_result) -> None:
    """Give the files their permissions and names."""
    present = [suffix for suffix in FILES[kind] if os.path.isfile(fresh + suffix)]
    for suffix in present:
        fd = os.open(fresh + suffix, os.O_RDWR)  # Windows syncs only what may be written
        try:
            take_owner(fd, like)
            os.fsync(fd)
        finally:
            os.close(fd)
    for suffix in reversed(present):  # the first is the one that makes it a database
        take_name(fresh + suffix, target + suffix)
