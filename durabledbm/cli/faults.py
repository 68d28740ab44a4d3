"""Failures as one line: which file, what is wrong with it, and what to do next.

What may live here: words. What went wrong is decided by the library; here it only gets a face.
"""

from __future__ import annotations

import errno
import os

from ..errors import BusyError, CorruptionError, ReadOnlyError, error
from .holders import holders
from .text import escape_text

__all__ = ["No", "Usage", "explain"]

_NEXT = {
    errno.ENOENT: "no such file or directory",
    errno.EACCES: "permission denied: ask its owner, or copy it to where you may read and write",
    errno.EPERM: "not permitted: ask its owner, or copy it to where you may read and write",
    errno.EROFS: "on a read-only file system: copy it to where it can be written",
    errno.EISDIR: "a directory, not a database file",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.EEXIST: "exists already: choose another name, or remove it first",
    errno.ENOSPC: "no space left on the device: make room, and do it again",
    errno.EDQUOT: "disk quota exceeded: make room, and do it again",
    errno.EMFILE: "too many open files in this process: raise 'ulimit -n'",
    errno.ENAMETOOLONG: "the name is too long",
}


class Usage(Exception):
    """The arguments make no sense together."""


class No(Exception):
    """The answer is no: exit status 1. The text, if any, says what is not there."""


def explain(exc: BaseException, file: str | None) -> str:
    """One line about `exc`, which befell a command on `file`."""
    path = file
    if isinstance(exc, OSError) and isinstance(exc.filename, (str, bytes)):
        path = os.fsdecode(exc.filename)
    text = _said(exc, path)
    prefix = "" if path is None or text.startswith((f"{path}: ", f"{path} ")) else f"{path}: "
    return escape_text(prefix + " ".join(text.split()))


def _said(exc: BaseException, path: str | None) -> str:
    if isinstance(exc, CorruptionError):
        return _damaged(exc, path)
    if isinstance(exc, BusyError):
        return _busy(path, exc)
    if isinstance(exc, ReadOnlyError):
        return "read-only"
    if isinstance(exc, OSError) and exc.errno is not None:
        return _of_system(exc, path)
    if isinstance(exc, error):
        text = str(exc)
        return _foreign(path, text) if text.endswith("not a durabledbm database") and path else text
    if isinstance(exc, (Usage, No)):
        return str(exc)
    if isinstance(exc, (ValueError, ModuleNotFoundError)):
        return str(exc) or type(exc).__name__
    if isinstance(exc, MemoryError):
        return "not enough memory"
    return f"{type(exc).__name__}: {exc}; this is a bug in durabledbm: please report it with what --debug shows"


def _of_system(exc: OSError, path: str | None) -> str:
    number = exc.errno
    if number == errno.ENOENT and path is not None:
        return _missing(path)
    if number == errno.EINVAL and path is not None and os.path.isdir(path):
        return _NEXT[errno.EISDIR]
    known = _NEXT.get(number or 0)
    said = exc.strerror or str(exc)
    if known is not None and said == os.strerror(number or 0):
        return known
    return said if known is None or number != errno.EEXIST else f"{said}: choose another name, or remove it first"


def _missing(path: str) -> str:
    kind = _kind_of(path)
    if kind:
        return f"a {kind} database, not one of durabledbm: 'durabledbm migrate {path}' converts it"
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"there is no directory {folder}"
    return f"no such file; 'durabledbm put {path} KEY VALUE' creates a database"


def _foreign(path: str, text: str) -> str:
    kind = _kind_of(path)
    if kind and kind != "durabledbm":
        return f"a {kind} database, not one of durabledbm: 'durabledbm migrate {path}' converts it"
    return "not a durabledbm database, and of no kind that 'durabledbm migrate' knows; it was left as it is"


def _kind_of(path: str) -> str | None:
    from .._foreign import identify

    try:
        return identify(path)
    except (OSError, ImportError):
        return None


def _damaged(exc: CorruptionError, path: str | None) -> str:
    where = "" if exc.page_id is None else f" (page {exc.page_id})"
    name = path or "FILE"
    advice = f"'durabledbm check {name}' shows how much, 'durabledbm salvage {name} NEW' saves what is readable"
    return f"damaged: {exc.message.split('; ')[0]}{where}; {advice}"


def _busy(path: str | None, exc: BusyError) -> str:
    who = next((holder for holder in holders(path) if holder.writing), None) if path else None
    text = str(exc)
    waited = text.rsplit(" for more than ", 1)[-1] if " for more than " in text else ""
    writer = "another process" if who is None else f"process {who.pid} ({who.command})"
    return (
        f"{writer} is writing to it{f', and was not done within {waited}' if waited else ''}; "
        "wait for it to finish, or wait longer with --timeout"
    )
