"""Database files: how one is created, how one is replaced, and what may happen to an open one from outside.

A file becomes a database in place, so that a crash at any moment leaves an empty one or a whole one. A new file begins
empty, and an empty file is a database that is not initialised yet: it reads as empty, and the holder of the writer lock
may initialise it. Its owner, its permissions, its other names, and what other programs have done with it (opened,
locked, mounted it) stay as they are. `initialise` goes in steps:

1. sync the directory: the finder of a database may acknowledge commits, so its name must be durable before it is one;
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

What happens to an open file from outside obeys no lock: it is moved or removed, another copy is written into it, or
another part of the program closes its descriptor. The store notices; the errors here say what happened and what to do.
"""

from __future__ import annotations

import errno
import os

from .._interrupts import is_interrupt
from ..errors import CorruptionError, error
from .disk.protocol import ELSEWHERE, Disk, Volume, Writes
from .locks import TEMPORARY_OFFSET, WriterLock
from .meta import META_SIZE, SECTOR, UNFINISHED, Meta, encode_meta, first_page, now_ns, steady_copy
from .recovery import newest, read_slots
from .threads import Lease

__all__ = [
    "INHERITED", "INTERRUPTED", "displaced", "first_meta", "initialise", "overtaken", "overwritten", "random_bytes",
    "replace", "temporary_name", "unavailable",
]  # fmt: skip

_FIXED_IN_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV}
"""What says that a name cannot be given to another file: the directory is read-only, or the name is a mount."""

_PATIENCE = 30.0
"""Seconds to wait for another process that is replacing the same file."""


def initialise(volume: Volume, disk: Disk, page_size: int, writes: Writes | None = None) -> None:
    """Make an uninitialised file an empty database. The writer lock must be held, and no one else may hold it.

    `writes`: what writes to the file, for who has the lock (None: it is a file that no other process knows of).
    """
    write, resize = writes or disk.writes()
    volume.sync_directory(disk.path)
    if disk.size() < SECTOR:
        resize(SECTOR)
    write(0, (UNFINISHED,))
    disk.sync()
    slot = encode_meta(first_meta(page_size))
    write(META_SIZE, (slot,))
    disk.sync()
    write(0, (steady_copy(slot),))


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
    """A name in the same directory that cannot be guessed, and that no dbm module takes for one of its own."""
    return os.path.join(os.path.dirname(path), f".durabledbm-{os.urandom(8).hex()}.tmp")


def replace(volume: Volume, old: Disk, page_size: int) -> None:
    """Put an empty database in place of the file that is open as `old`, which is no database.

    It takes over owner, group and permissions. If another process does the same at once, one of them does it. Raises
    `BusyError` if that takes longer than 30 seconds.
    """
    turn = Lease()
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
        fresh.lock(TEMPORARY_OFFSET, exclusive=True)
        if fresh.linked():
            return fresh
        fresh.close()


_END = "close this handle and open the file again"

INHERITED = (
    "this snapshot or iterator is from before the fork, and its pages were reused before this process first read them: "
    "take a snapshot in the process that reads it, or read it there before the parent ends its own"
)
"""Why a page that a forked child reads is not there any more."""

INTERRUPTED = (
    "another part of the program closed the descriptor of the file, and pages of this snapshot or iterator were reused "
    "before the file was opened again"
)
"""Why a page is not there any more that was pinned."""


def displaced(path: str) -> error:
    """The name does not lead to the open file any more. That is no damage: what the file holds is untouched."""
    return error(errno.ESTALE, f"{ELSEWHERE}: what it held can be saved with backup(); then {_END}", path)


def unavailable(path: str, cause: OSError) -> error:
    """There is no open file, and the name cannot be opened. If `cause` is an interrupt, it is raised."""
    if is_interrupt(cause):
        raise cause
    what = "the file must be opened again, after a fork or because its descriptor was closed, and cannot be"
    return error(cause.errno, f"{what}: {cause.strerror}", path)


def overtaken(path: str) -> error:
    """The lock was lost with the descriptor, and another writer was faster."""
    what = "another part of the program closed the file's descriptor, and its lock with it, and others have written"
    return error(f"{path}: {what}: {_END}")


def overwritten(path: str, meta: Meta | None, seen: Meta) -> CorruptionError:
    """The file was `seen` to hold one commit. Its newest is `meta` now, which does not follow; or it is no database."""
    if meta is None:
        what = "something else has written to the file while it was open"
    elif meta.database_id != seen.database_id:
        what = "the file was replaced by another database while it was open"
    else:
        age = "older" if meta.txid < seen.txid else "of another history"
        what = "the file was replaced by another copy of it while it was open, or its disk has lost commits: "
        what += f"it holds commit {meta.txid}, which is {age} than commit {seen.txid}"
    return CorruptionError(f"{what}; {_END}", path=path)
