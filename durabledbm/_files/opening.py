"""Opening or creating the file of a database: what flags and options mean, and which file a name stands for.

`open_store` is the part of `durabledbm.open` below the handle. It leaves a file that is not a database unchanged,
unless flag "n" says to replace it, and it never creates a file that would hide an old database.
"""

from __future__ import annotations

import errno
import os
from typing import Literal, TypedDict, get_args

from .._engine.commit import Committer
from .._engine.disk.protocol import Disk, Volume
from .._engine.files import replace
from .._engine.locks import locks_work
from .._engine.meta import ForeignFileError, UnknownVersionError
from .._engine.page import MAX_PAGE_SIZE, MIN_PAGE_SIZE
from .._engine.store import Store
from .._foreign.kinds import OtherKindError, foreign, refuse_beside
from ..errors import error
from .arguments import Path

__all__ = [
    "DEFAULT_CACHE_SIZE", "DEFAULT_PAGE_SIZE", "DURABILITIES", "Durability", "Flag", "OpenOptions", "checked",
    "open_store",
]  # fmt: skip

Flag = Literal[
    "r", "rf", "rs", "ru", "rfs", "rfu", "rsf", "rsu", "ruf", "rus", "rfsu", "rfus", "rsfu", "rsuf", "rufs", "rusf",
    "w", "wf", "ws", "wu", "wfs", "wfu", "wsf", "wsu", "wuf", "wus", "wfsu", "wfus", "wsfu", "wsuf", "wufs", "wusf",
    "c", "cf", "cs", "cu", "cfs", "cfu", "csf", "csu", "cuf", "cus", "cfsu", "cfus", "csfu", "csuf", "cufs", "cusf",
    "n", "nf", "ns", "nu", "nfs", "nfu", "nsf", "nsu", "nuf", "nus", "nfsu", "nfus", "nsfu", "nsuf", "nufs", "nusf",
]  # fmt: skip
"""The flags that `dbm.open` takes, for type checkers: each of r, w, c and n, and dbm.gnu's suffixes in any order."""

Durability = Literal["full", "process", "interval", "manual"]
"""What a write that has returned survives."""


class OpenOptions(TypedDict, total=False):
    """The keyword arguments of `open`, for functions that pass them on."""

    durability: Durability
    interval: float
    timeout: float | None
    page_size: int | None
    cache_size: int


DURABILITIES: tuple[Durability, ...] = get_args(Durability)
DEFAULT_PAGE_SIZE = 4096
DEFAULT_CACHE_SIZE = 64 * 2**20

_FLAGS = "rwcn"
_SUFFIXES = "fsu"


def checked(
    file: Path, flag: str, durability: str, *, interval: float, timeout: float | None, page_size: int | None,
    cache_size: int,
) -> tuple[str, str, str]:  # fmt: skip
    """The file's name, the flag without dbm.gnu's suffixes, and the durability that they ask for.

    Raises `error` for an empty name, and `ValueError` for an argument that is out of range.
    """
    name = os.fsdecode(file)
    if not name:
        raise error(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if "\0" in name:
        raise ValueError("embedded null character in the file name")
    if durability not in DURABILITIES:
        raise ValueError(f"durability must be one of {', '.join(map(repr, DURABILITIES))}, not {durability!r}")
    if not isinstance(flag, str) or flag[:1] not in _FLAGS or not flag or set(flag[1:]) - set(_SUFFIXES):
        raise ValueError(f"Flag must be one of 'r', 'w', 'c', or 'n', not {flag!r}")
    for suffix in flag[1:]:
        durability = {"f": "manual", "s": "full"}.get(suffix, durability)
    if page_size is not None and (page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE):
        raise ValueError(f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}, not {page_size}")
    if not interval > 0:
        raise ValueError("interval must be positive")
    if timeout is not None and not timeout >= 0:
        raise ValueError("timeout must be None or not negative")
    if cache_size < 0:
        raise ValueError("cache_size must not be negative")
    return name, flag[0], durability


def _real_path(name: str) -> str:
    """The file's absolute path, independent of later changes of the working directory. Links are followed.

    What the system opens under no name it gets no other name for: "file/", "missing/../file".
    """
    directory, base = os.path.split(name)
    if os.path.isabs(name):
        path = name
    elif directory and os.path.isdir(directory):
        path = os.path.join(os.path.realpath(directory), base)
    else:
        path = os.path.join(os.getcwd(), name)
    # Resolving every directory on the way takes longer than all else that opening the file needs of the system.
    return os.path.realpath(path) if os.path.islink(path) else path


def _refuse_hiding(volume: Volume, name: str, path: str, number: int = errno.EEXIST) -> None:
    """Raise if a new file would hide an old database of its name or, for a link, of the name that it leads to."""
    refuse_beside(volume, name, number)
    if os.path.islink(name):
        refuse_beside(volume, path, number)


def open_store(volume: Volume, name: str, flag: str, mode: int, page_size: int, cache_size: int) -> Store:
    """Open the file `name` as `flag` ("r", "w", "c" or "n") says, and return its store.

    Raises `error` for a file that is missing or is no database, and for a name that an old database has.
    """
    path = _real_path(name)
    try:
        for _ in range(100):
            try:
                disk, created = volume.open(path, writable=flag != "r"), False
            except FileNotFoundError:
                _refuse_hiding(volume, name, path, errno.ENOENT if flag in "rw" else errno.EEXIST)
                if flag in "rw":
                    raise
                try:
                    disk, created = volume.create(path, mode), True
                except FileExistsError:
                    continue  # another process was faster
            try:
                if disk.writable and not locks_work(disk):
                    raise error(
                        errno.ENOLCK, "the file system keeps no locks, so writers could not be kept apart; "
                        "copy the file to a local disk, or open it with flag 'r'", name,
                    )  # fmt: skip
                store = _store(volume, disk, name, flag, page_size, cache_size)
                if store is not None:
                    if created:
                        Committer(store).initialise()
                    elif store.state.meta.txid <= 1:
                        # Nothing was ever written to it: perhaps it was made, by mistake, beside an old database.
                        _refuse_hiding(volume, name, path)
                    return store
            except BaseException:
                disk.close()
                raise
            disk.close()
    except OSError as exc:
        if isinstance(exc, error):
            raise
        if exc.errno in (errno.EISDIR, errno.EINVAL, errno.EACCES):  # a directory, perhaps
            known = foreign(volume, path, name)
            if type(known) is OtherKindError:
                raise known from exc
        raise error.wrap(exc, name) from exc
    raise error(f"{name}: other processes keep creating and removing the file")


def _store(volume: Volume, disk: Disk, name: str, flag: str, page_size: int, cache_size: int) -> Store | None:
    """The store of an open file. None if it was not a database and has been replaced by one, as flag "n" says."""
    try:
        return Store(volume, disk, page_size=page_size, cache_size=cache_size)
    except error as exc:
        if flag == "n":
            _refuse_hiding(volume, name, disk.path)
            replace(volume, disk, page_size)
            return None
        if type(exc) is UnknownVersionError:
            raise UnknownVersionError(f"{name}: {exc}") from None
        if type(exc) is ForeignFileError:
            raise foreign(volume, disk.path, name) from None
        raise
