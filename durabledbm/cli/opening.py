"""Opening what a command is given: a file, or the directory of a sharded database."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from .. import open as open_database
from .console import message
from .holders import obstacle

if TYPE_CHECKING:
    from ..database import Database, Flag
    from ..remote.database import RemoteDatabase
    from ..sharded import ShardedDatabase

__all__ = ["is_sharded", "open_remote", "open_store", "size_of"]

_SILENT = 1.0
"""Seconds of waiting for another writer that are not worth a word."""


def is_sharded(file: str) -> bool:
    """Whether this is the directory of a sharded database."""
    if not os.path.isdir(file):
        return False
    from .._foreign.kinds import SHARDS_MANIFEST

    return os.path.exists(os.path.join(file, SHARDS_MANIFEST))


@contextmanager
def open_store(file: str, flag: Flag, timeout: float | None = 30.0) -> Iterator[Database | ShardedDatabase]:
    """Open it for the length of a block. Raises what `durabledbm.open` raises.

    A block that has waited for a second to write, or for longer, is told on standard error who writes.
    """
    with nullcontext() if flag == "r" else _waiting_told(file, timeout), _opened(file, flag, timeout) as db:
        yield db


def _opened(file: str, flag: Flag, timeout: float | None) -> Database | ShardedDatabase:
    options: dict[str, Any] = {"timeout": timeout}
    if is_sharded(file):
        from ..sharded import open_sharded

        return open_sharded(file, flag, **options)
    return open_database(file, flag, **options)


def open_remote(url: str, table: str, timeout: float | None = 30.0, flag: str = "c") -> RemoteDatabase:
    """Open a table on a server. Raises what `durabledbm.remote.open` raises."""
    from ..remote import open as open_url

    return open_url(url, flag, table=table, timeout=timeout)


@contextmanager
def _waiting_told(file: str, timeout: float | None) -> Iterator[None]:
    """Look from time to time, until the block ends, whether another process keeps it from writing. Say so once."""
    if timeout is not None and timeout <= _SILENT:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        pause = _SILENT
        while not done.wait(pause):
            why = obstacle(file)
            if why is not None:
                limit = "" if timeout is None else f" for at most {timeout:g} second{'s' * (timeout != 1)}"
                message(f"{file}: {why}; waiting{limit}")
                return
            pause *= 2

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()



def size_of(file: str) -> int:
    """Bytes of the file, or of all files of the directory; -1 if it is not there."""
    if os.path.isdir(file):
        return sum(entry.stat().st_size for entry in os.scandir(file) if entry.is_file())
    return os.path.getsize(file) if os.path.exists(file) else -1
