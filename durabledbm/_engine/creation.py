"""How a database file comes into being: whole, or not at all.

A new file is written under a name of its own, synced, and only then linked to its place; the directory is synced before
anything can be acknowledged. So whoever finds the name finds a complete, empty database, two processes that create the
same file at once both find one, and a crash leaves at most a stray temporary file.
"""

from __future__ import annotations

import errno
import os

from .disk import Disk, Volume
from .meta import Meta, encode_meta, first_page, now_ns

__all__ = ["create", "empty_database", "initialise", "replace", "temporary_name"]

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EMLINK, errno.EINVAL}


def empty_database(page_size: int) -> bytes:
    """The content of a new file: two equal, steady metas."""
    meta = Meta(
        txid=1, page_size=page_size, database_id=os.urandom(16), page_count=first_page(page_size),
        steady_txid=1, steady=True, time_ns=now_ns(),
    )  # fmt: skip
    return encode_meta(meta) * 2


def temporary_name(path: str) -> str:
    """A name in the same directory that nobody else uses, and that no dbm module takes for one of its own."""
    return os.path.join(os.path.dirname(path), f".durabledbm-{os.urandom(8).hex()}")


def create(volume: Volume, path: str, mode: int, page_size: int) -> None:
    """Create an empty database at `path`, unless there is a file already, which is then left alone."""
    temporary = _written(volume, path, mode, page_size)
    try:
        try:
            volume.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            _create_in_place(volume, path, mode, page_size)
    finally:
        volume.remove(temporary)
    volume.sync_directory(path)


def replace(volume: Volume, path: str, mode: int, page_size: int) -> None:
    """Put an empty database in place of whatever is at `path`."""
    temporary = _written(volume, path, mode, page_size)
    try:
        volume.replace(temporary, path)
    except BaseException:
        volume.remove(temporary)
        raise
    volume.sync_directory(path)


def initialise(disk: Disk, page_size: int) -> None:
    """Make an empty file a database without touching its directory."""
    disk.write(0, (empty_database(page_size),))
    disk.sync()


def _written(volume: Volume, path: str, mode: int, page_size: int) -> str:
    """The name of a new, complete, synced file beside `path`."""
    temporary = temporary_name(path)
    disk = volume.create(temporary, mode)
    try:
        initialise(disk, page_size)
    except BaseException:
        disk.close()
        volume.remove(temporary)
        raise
    disk.close()
    return temporary


def _create_in_place(volume: Volume, path: str, mode: int, page_size: int) -> None:
    """Where the file system knows no links: not atomic, but still nobody's file is overwritten."""
    try:
        disk = volume.create(path, mode)
    except FileExistsError:
        return
    try:
        initialise(disk, page_size)
    finally:
        disk.close()
