"""Errors as one line that says what to do next. The library decides what went wrong; this module only words it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from ..errors import BusyError, CorruptionError, error
from .holders import obstacle
from .text import printable

__all__ = ["NegativeResult", "Usage", "explain", "quoted"]

_NEXT = {
    errno.ENOENT: "no such file or directory",
    errno.EACCES: "permission denied: ask its owner, or copy it to where you may read and write",
    errno.EPERM: "not permitted: ask its owner, or copy it to where you may read and write",
    errno.EROFS: "on a read-only file system: copy it to where it can be written",
    errno.EISDIR: "a directory, not a database file",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.EEXIST: "exists already: choose another name, or remove it first",
    errno.ENOSPC: "no space left on the device: free some space and try again",
    errno.EDQUOT: "disk quota exceeded: free some space and try again",
    errno.EMFILE: "too many open files in this process: raise 'ulimit -n'",
    errno.ENAMETOOLONG: "the name is too long",
}

_BEGINNERS = {"get", "del", "list", "stat"}
"""Commands that a user may try first, before there is a database."""


_TEMPORARY = ".durabledbm-"
"""What names of files begin with that are not complete."""


class Usage(Exception):
    """The arguments make no sense together."""


class NegativeResult(Exception):
    """The command ran, and its answer is no (exit status 1): a key is missing, or a file is damaged."""


def quoted(path: str) -> str:
    """A file's name as a word of a command line."""
    from .._foreign.kinds import shell_word  # it needs the package crc32c, whose absence is told here

    return shell_word(path)


def explain(exc: BaseException, command: str, names: Sequence[str], *, may_wait: bool = False) -> str:
    """One line about `exc`, which befell `command` on the files `names`, the one that it is about first.

    `may_wait`: the command has the option --timeout.
    """
    path = names[0] if names else None
    if isinstance(exc, OSError) and _is_address(exc.filename or str(exc)):  # of a server, not of a file
        said = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)
        return printable(" ".join(said.split()))
    if isinstance(exc, CorruptionError) and exc.path is not None:
        path = _as_given(exc.path, names)
    elif isinstance(exc, OSError) and isinstance(exc.filename, (str, bytes)):
        path = _as_given(os.fsdecode(exc.filename), names)
    text = _busy(path, exc, may_wait=may_wait) if isinstance(exc, BusyError) else _said(exc, command, path)
    head, colon, rest = text.partition(": ")
    if colon and (head == path or _as_given(head, names) != head or head in names):
        path, text = _as_given(head, names), rest  # it begins with a name of its own
    return printable((f"{path}: " if path else "") + " ".join(text.split()))


def _is_address(text: object) -> bool:
    return isinstance(text, str) and "://" in text.partition(" ")[0]


def _as_given(path: str, names: Sequence[str]) -> str:
    """The name that the user knows the file by."""
    if os.path.basename(path).startswith(_TEMPORARY):
        # A file gets its name when it is complete: what is not there yet is one of those that were given.
        folder = os.path.realpath(os.path.dirname(path))
        missing = [name for name in names if not os.path.lexists(name)] or list(names)
        return next((name for name in missing if os.path.dirname(os.path.realpath(name)) == folder), path)
    real = os.path.realpath(path)
    for name in names:
        if os.path.realpath(name) == real:
            return name
        if os.path.isabs(path) and real.startswith(os.path.join(os.path.realpath(name), "")) and os.path.isdir(name):
            return os.path.join(name, os.path.relpath(real, os.path.realpath(name)))
    return path


def _said(exc: BaseException, command: str, path: str | None) -> str:
    if isinstance(exc, CorruptionError):
        return _damaged(exc, path)
    if isinstance(exc, OSError) and type(exc).__name__ == "OtherKindError":
        return exc.strerror or str(exc)
    if type(exc).__name__ == "UnknownVersionError":
        return f"{exc}; a newer durabledbm reads it"
    if isinstance(exc, OSError) and exc.errno is not None:
        return _of_system(exc, command, path)
    if isinstance(exc, error):
        text = str(exc)
        return _foreign(path) if text.endswith("not a durabledbm database") and path else text
    if isinstance(exc, (Usage, NegativeResult)):
        return str(exc)
    if isinstance(exc, (ValueError, ModuleNotFoundError)):
        return str(exc) or type(exc).__name__
    if isinstance(exc, MemoryError):
        return "not enough memory"
    return f"{type(exc).__name__}: {exc}; this is a bug in durabledbm: please report it with what --debug shows"


def _of_system(exc: OSError, command: str, path: str | None) -> str:
    number = exc.errno or 0
    if number == errno.ENOENT and path is not None:
        return _missing(path, command)
    if number == errno.EINVAL and path is not None and os.path.isdir(path):
        return _NEXT[errno.EISDIR]
    if path is not None and number in (errno.EACCES, errno.EPERM, errno.EROFS) and not os.path.lexists(path):
        folder = os.path.dirname(path)
        if not _can_enter(folder):
            return f"permission denied: you may not enter the directory {folder}"
        why = "a read-only file system" if number == errno.EROFS else "permission denied"
        return f"{why}: no file can be created in {folder or 'this directory'}"
    known = _NEXT.get(number)
    said = exc.strerror or str(exc)
    if known is None or said == os.strerror(number):
        return known or said
    return f"{said}; choose another name, or remove it first" if number == errno.EEXIST else said


def _can_enter(folder: str) -> bool:
    try:
        os.stat(os.path.join(folder, "."))
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def _missing(path: str, command: str) -> str:
    from .._engine.disk import FileVolume
    from .._foreign.kinds import OtherKindError, refuse_beside

    if not path:
        return "the name of the file is empty"
    try:
        refuse_beside(FileVolume(), path)
    except OtherKindError as exc:
        return exc.strerror or str(exc)
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"there is no directory {folder}"
    if command not in _BEGINNERS:
        return "no such file"
    return f"no such file; 'durabledbm put {quoted(path)} KEY VALUE' creates a database"


def _foreign(path: str) -> str:
    from .._engine.disk import FileVolume
    from .._foreign.kinds import foreign

    known = foreign(FileVolume(), path, path)
    if isinstance(known, CorruptionError):
        return _damaged(known, path)
    return known.strerror or f"{str(known).removeprefix(f'{path}: ')}; it was left as it is"


def _damaged(exc: CorruptionError, path: str | None) -> str:
    where = "" if exc.page_id is None else f" (page {exc.page_id})"
    what, _, advice = exc.message.partition("; ")
    said = f"damaged: {what}{where}"
    if exc.message.startswith("at offset 0: "):
        said = f"neither a dump nor a log, or {said}"
    if path is None or not _is_ours(path):
        return f"{said}; {advice}" if "'durabledbm " in advice else said
    name = quoted(path)
    return f"{said}; 'durabledbm check {name}' shows how much, 'durabledbm salvage {name} NEW' saves what is readable"


def _is_ours(path: str) -> bool:
    from .._engine.disk import FileVolume
    from .._foreign.kinds import OURS, has_our_pages, kind_of

    return kind_of(FileVolume(), path) == OURS or has_our_pages(FileVolume(), path)


def _busy(path: str | None, exc: BusyError, *, may_wait: bool) -> str:
    why = (obstacle(path) if path else None) or "another process is writing to it"
    text = str(exc)
    waited = text.rsplit(" for more than ", 1)[-1] if " for more than " in text else ""
    done = f", and was not done within {waited}" if waited else ""
    return f"{why}{done}; wait for it to finish{', or wait longer with --timeout' if may_wait else ''}"
