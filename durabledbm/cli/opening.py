"""Opening what a command is given: a file, or the directory of a sharded database."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from .. import open as open_database
from ..errors import error

if TYPE_CHECKING:
    from ..database import Flag
    from ..handle import Database
    from ..sharded import ShardedDatabase

__all__ = ["is_sharded", "open_store", "refuse_beside", "size_of"]


def is_sharded(file: str) -> bool:
    """Whether this is the directory of a sharded database."""
    if not os.path.isdir(file):
        return False
    from .._manifest import NAME

    return os.path.exists(os.path.join(file, NAME))


def open_store(file: str, flag: Flag, timeout: float | None = 30.0) -> Database | ShardedDatabase:
    """Open it. Raises what `durabledbm.open` raises."""
    options: dict[str, Any] = {"timeout": timeout}
    if is_sharded(file):
        from ..sharded import open_sharded

        return open_sharded(file, flag, **options)
    if flag == "c":
        refuse_beside(file)
    return open_database(file, flag, **options)


def refuse_beside(file: str) -> None:
    """Do not create a file whose name another module's files go by: to its user the database would seem empty."""
    from .._foreign import identify

    if not os.path.lexists(file):
        try:
            identify(file)
        except OSError:
            return
        raise error(errno.ENOENT, os.strerror(errno.ENOENT), file)


def size_of(file: str) -> int:
    """Bytes of the file, or of all files of the directory; -1 if it is not there."""
    if os.path.isdir(file):
        return sum(entry.stat().st_size for entry in os.scandir(file) if entry.is_file())
    return os.path.getsize(file) if os.path.exists(file) else -1
