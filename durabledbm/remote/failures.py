"""Errors of servers and drivers, as one of ours.

The drivers' exceptions are recognized by their attributes (`sqlstate`, the package of their class), so nothing here
imports a driver.
"""

from __future__ import annotations

import errno
import os

from ..errors import BusyError, ReadOnlyError, error

__all__ = ["ConnectionLostError", "as_error", "is_conflict", "not_installed"]

_CONFLICTS = {
    "40001": "another transaction changed what this one read or wrote",
    "40P01": "a deadlock with another transaction",
}
"""SQLSTATEs after which nothing was changed, and the same work may succeed when it is done again."""

_LOCK_TIMEOUT = "55P03"
_READ_ONLY = "25006"
_DISK_FULL = "53100"
_UNKNOWN = "40003"
_NO_TABLE = "42P01"


class ConnectionLostError(error):
    """The server cannot be reached, or the connection to it broke.

    `committed` says what became of the write or transaction in progress. False: nothing of it was written. None:
    unknown; read to find out. After a read it is False.
    """

    def __init__(self, message: str, *, committed: bool | None = False) -> None:
        super().__init__(message)
        self.committed = committed


def is_conflict(exc: BaseException) -> bool:
    """Whether `exc` says that the work was undone and may be repeated."""
    return getattr(exc, "sqlstate", None) in _CONFLICTS


def as_error(exc: BaseException, where: str, *, lost: bool = False, committed: bool | None = False) -> error:
    """An exception of psycopg as one of ours. `where` names the server and the table.

    lost: the connection is broken.
    committed: see `ConnectionLostError`.
    """
    code = getattr(exc, "sqlstate", None)
    said = " ".join(str(exc).split()) or type(exc).__name__
    if code in _CONFLICTS:
        return BusyError(f"{where}: {_CONFLICTS[code]}; nothing was written; try again")
    if code == _LOCK_TIMEOUT:
        return BusyError(f"{where}: another transaction holds what is to be written; nothing was written; try again")
    if lost or code == _UNKNOWN:
        outcome = "" if committed is False else "; whether the last write was committed is not known: read to find out"
        return ConnectionLostError(f"{where}: the connection was lost ({said}){outcome}", committed=committed)
    if code == _READ_ONLY:
        return ReadOnlyError(f"{where}: the server or this user is read-only")
    if code == _DISK_FULL:
        return error(errno.ENOSPC, os.strerror(errno.ENOSPC), where)
    if code == _NO_TABLE:
        return error(f"{where}: the table no longer exists; open it again to create a new one")
    return error(f"{where}: {said}")


def not_installed(package: str, extra: str, exc: ImportError) -> error:
    """The error for a driver that cannot be imported."""
    if exc.name == package:
        return error(f"the package '{package}' is not installed: pip install durabledbm[{extra}]")
    return error(f"the package '{package}' cannot be used: {exc}")
