"""How a file becomes a database, in place, so that a crash at any moment leaves an empty one or a whole one.

A new file begins empty, and an empty file is a database that was not initialised yet: it reads as empty, and whoever
has the writer lock may initialise it. Its owner, its permissions, its other names, and what other programs have done
with it (opened, locked, mounted it) stay as they are. `initialise` goes in steps:

1. sync the directory: whoever finds a database may acknowledge commits, so its name must be durable before it is one;
2. make the file one sector of zeros long, write `UNFINISHED` into it, and sync;
3. write the meta of an empty database into slot 1, and sync;
4. write its steady copy over `UNFINISHED`, into slot 0.

What a crash leaves. In step 2: an empty file, a sector of zeros, or the mark. In step 3: the mark, and behind it
anything. Each of these reads as an uninitialised database (`meta.is_uninitialised`), with which the next writer begins
again. After step 3 slot 1 is whole, and step 4 is the same as after any commit: the copy may arrive, or be torn, or
not. Why not both slots at once: a file that grew may hold garbage where nothing arrived, and then it could not be told
from a file of someone else's; and zeros where meta pages should be could be those of a database that lost them.

A file that is no database, and is to become one (flag "n"), is replaced by one that was made under a temporary name;
where the directory does not let us, its content is cut off instead.
"""

from __future__ import annotations

import errno
import os

from ..errors import error
from .disk import Disk, Volume
from .locks import Turn, WriterLock
from .meta import META_SIZE, SECTOR, UNFINISHED, Meta, encode_meta, first_page, now_ns, steady_copy
from .recovery import newest, read_slots

__all__ = ["TEMPORARY_LOCK", "first_meta", "initialise", "random_bytes", "replace", "temporary_name"]

TEMPORARY_LOCK = (1 << 62) - 4
"""The byte that whoever makes a temporary file locks in it: a file without that lock is left over from a killed run."""

_FIXED_IN_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV}
"""What says that a name cannot be given to another file: the directory is read-only, or the name is a mount."""

_PATIENCE = 30.0
"""Seconds to wait for another process that is replacing the same file."""


def initialise(volume: Volume, disk: Disk, page_size: int) -> None:
    """Make an uninitialised file an empty database. The writer lock must be held, and no one else may hold it."""
    volume.sync_directory(disk.path)
    if disk.size() < SECTOR:
        disk.resize(SECTOR)
    disk.write(0, (UNFINISHED,))
    disk.sync()
    slot = encode_meta(first_meta(page_size))
    disk.write(META_SIZE, (slot,))
    disk.sync()
    disk.write(0, (steady_copy(slot),))


def first_meta(page_size: int) -> Meta:
    """The meta of a new, empty database."""
    return Meta(
        txid=1, page_size=page_size, database_id=os.urandom(16), page_count=first_page(page_size),
        time_ns=now_ns(),
    )  # fmt: skip


def random_bytes(size: int) -> bytes:
    """Random bytes, which agree with no sector of anything that was ever written."""
    return os.urandom(size)


def temporary_name(path: str) -> str:
    """A name in the same directory that nobody can guess, and that no dbm module takes for one of its own."""
    return os.path.join(os.path.dirname(path), f".durabledbm-{os.urandom(8).hex()}.tmp")


def replace(volume: Volume, old: Disk, page_size: int) -> None:
    """Put an empty database in place of the file that is open as `old`, which is no database.

    It takes over owner, group and permissions. If another process does the same at once, one of them does it. Raises
    `BusyError` if that takes longer than 30 seconds.
    """
    turn = Turn()
    try:
        WriterLock(old.identity()).acquire(turn, old, _PATIENCE)
        if not old.linked() or _is_database(old):
            return  # someone was faster
        try:
            _replace_name(volume, old, page_size)
        except OSError as exc:
            if exc.errno not in _FIXED_IN_PLACE:
                raise
            old.resize(0)
            old.sync()
    finally:
        turn.end()


def _is_database(disk: Disk) -> bool:
    try:
        slots = read_slots(disk)
        return slots.uninitialised or bool(newest(disk, slots))
    except error:
        return False


def _replace_name(volume: Volume, old: Disk, page_size: int) -> None:
    fresh = _temporary(volume, old)
    try:
        initialise(volume, fresh, page_size)
        volume.replace(fresh.path, old.path)
    except BaseException:
        volume.remove(fresh.path)
        raise
    finally:
        fresh.close()
    volume.sync_directory(old.path)


def _temporary(volume: Volume, old: Disk) -> Disk:
    """A new file beside `old`, locked: those that are not locked may be removed by anyone at any moment."""
    while True:
        fresh = volume.create(temporary_name(old.path), 0o600)
        fresh.take_owner(old.status())
        fresh.lock(TEMPORARY_LOCK, exclusive=True)
        if fresh.linked():
            return fresh
        fresh.close()
