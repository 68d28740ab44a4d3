"""Recognizing databases of other kinds by their names and first bytes, and saying in one line how to convert them.

This needs none of the modules that wrote them: a Python without dbm.ndbm still recognizes a Berkeley DB file.
`_foreign.sources` reads them. All files are read through the given volume, which refuses directories, pipes and
devices.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from .._engine.disk.protocol import Volume
from .._engine.meta import META_AREA, META_SIZE, has_magic, is_uninitialised
from ..errors import CorruptionError, error

__all__ = [
    "FILES", "OURS", "SHARDS_MANIFEST", "Found", "OtherKindError", "beside", "foreign", "has_our_pages", "kind_of",
    "located", "migrate_command", "refuse_beside", "refuse_for_shards", "shell_word",
]  # fmt: skip

OURS = "durabledbm"

SHARDS_MANIFEST = "durabledbm.shards"
"""The file by which a directory of shards is known (see `durabledbm.sharded.manifest`)."""

FILES = {
    "dbm.dumb": (".dir", ".dat", ".bak"),
    "dbm.gnu": ("",),
    "dbm.ndbm": (".dir", ".pag", ".db"),
    "dbm.sqlite3": ("", "-wal", "-shm", "-journal"),
    "dbhash": ("",),
    "lmdb": ("", "-lock"),
}
"""The kinds, and what is appended to a database's name to get its files. Without the first one it is none any more.

dbhash is Python 2's module for Berkeley DB's hash files: what dbm.ndbm makes where it is Berkeley DB's, but without the
suffix.
"""

_HEAD = 32
_SQLITE = b"SQLite format 3\0"
_SQLITE_FIRST_PAGE = 65536
_LMDB = b"\xde\xc0\xef\xbe"  # at 16
_GDBM = {0x13579ACD, 0x13579ACE, 0x13579ACF, 0x13579AD0, 0x13579AD1}
_BERKELEY_HASH = 0x061561  # at 12, in Berkeley DB 1.85 at 0
_OUR_PAGES = 1024
"""How many pages of a file without a meta page are looked at."""


class Found(NamedTuple):
    """A database: its kind, a key of `FILES` or `OURS`, and the name by which the module of that kind opens it."""

    kind: str
    name: str


class OtherKindError(error):
    """The name belongs to a database of another kind. It was left unchanged; the message says what it is and how to
    convert it.
    """


# -- recognising -----------------------------------------------------------------------------------------------------


def kind_of(volume: Volume, path: str) -> str | None:
    """The kind of one file, by its content. None if the kind is unknown or the file cannot be read.

    A file that is not initialised yet, such as one of 0 bytes, is a database of ours.
    """
    head = _read(volume, path, META_AREA)
    if head is None:
        return None
    # Either meta page will do: a crash may have damaged one of them.
    if has_magic(head) or has_magic(head[META_SIZE:]) or is_uninitialised(head, len(head)):
        return OURS
    if head.startswith(_SQLITE):
        return "dbm.sqlite3"  # which dbm itself knows since Python 3.13
    if _is_gdbm(head):
        return "dbm.gnu"
    if head[16:20] == _LMDB:
        return "lmdb"
    return "dbhash" if _is_berkeley_hash(head) else None


def beside(volume: Volume, name: str) -> Found | None:
    """The old database that the standard library would open as `name`, although no file has exactly that name."""
    pag = _read(volume, name + ".pag")
    if pag is not None and (_is_gdbm(pag) or (_read(volume, name + ".dir") is not None and not _is_other(pag))):
        return Found("dbm.ndbm", name)
    if _is_berkeley_hash(_read(volume, name + ".db") or b""):
        return Found("dbm.ndbm", name)
    dat = _read(volume, name + ".dat")
    if dat is not None and not _is_other(dat):
        index = _read(volume, name + ".dir")
        if index is None:
            index = _read(volume, name + ".bak") or b"none"  # between a rename and a write dbm.dumb was killed
        if index[:1] in (b"", b"'", b'"'):
            return Found("dbm.dumb", name)
    return None


def located(volume: Volume, path: str) -> Found | None:
    """The database that `path` names: by its own content, by the name for its module, or by one of its files."""
    kind = kind_of(volume, path)
    stem, suffix = os.path.splitext(path)
    if (kind, suffix) in (("dbhash", ".db"), ("dbm.gnu", ".pag")):
        return Found("dbm.ndbm", stem)
    if suffix in (".dat", ".dir", ".bak", ".pag") and (kind is None or not _read(volume, path)):
        found = beside(volume, stem)
        if found is not None and _read(volume, path) is not None:
            return found
    if kind is not None:
        return Found(kind, path)
    if (_read(volume, os.path.join(path, "data.mdb")) or b"")[16:20] == _LMDB:
        return Found("lmdb", path)
    return beside(volume, path)


def has_our_pages(volume: Volume, path: str) -> bool:
    """Whether a file holds pages of ours, although neither of its meta pages is usable."""
    from .._files.intact_pages import guess_page_size, intact_runs

    try:
        disk = volume.open(path, writable=False)
    except OSError:
        return False
    try:
        page_size = guess_page_size(disk)
        pages = min(disk.size() // page_size, _OUR_PAGES)
        return any(run is not None for _, run in intact_runs(disk, page_size, 1, pages))
    except OSError:
        return False
    finally:
        disk.close()


def _read(volume: Volume, path: str, length: int = _HEAD) -> bytes | None:
    """The first bytes of a file; None if it is missing, cannot be read, or is no regular file."""
    try:
        disk = volume.open(path, writable=False)
    except OSError:
        return None
    try:
        return disk.read(length, 0)
    except OSError:
        return None
    finally:
        disk.close()


def _is_other(head: bytes) -> bool:
    """Whether a file is known to be of a kind other than dbm.dumb and dbm.ndbm, whose files have no signature."""
    return has_magic(head) or head.startswith(_SQLITE)


def _is_gdbm(head: bytes) -> bool:
    return not _GDBM.isdisjoint(_numbers(head[:4]))


def _is_berkeley_hash(head: bytes) -> bool:
    return _BERKELEY_HASH in _numbers(head[:4]) | _numbers(head[12:16])


def _numbers(field: bytes) -> set[int]:
    """The value of four bytes in either byte order."""
    return {int.from_bytes(field, "little"), int.from_bytes(field, "big")}


# -- saying so -------------------------------------------------------------------------------------------------------


def refuse_beside(volume: Volume, name: str, number: int = errno.EEXIST) -> None:
    """Raise `OtherKindError`, with this errno, if files of an old database are named `name` plus a suffix.

    A new file of that name would hide it: the old database would seem empty.
    """
    found = beside(volume, name)
    if found is not None:
        base = os.path.basename(name)
        there = [base + suffix for suffix in FILES[found.kind] if _read(volume, name + suffix) is not None]
        text = f"an old {found.kind} database has this name ({', '.join(there)})"
        raise OtherKindError(number, f"{text}; {migrate_command(name)} converts it, or move it away", name)


def foreign(volume: Volume, path: str, name: str) -> error:
    """The error for the file or directory at `path`, which is not a database of ours and was given as `name`."""
    found = located(volume, path)
    if found is None or found.kind == OURS:
        return _unknown(volume, path, name)
    what = "a Berkeley DB database" if found.kind == "dbhash" else f"a {found.kind} database"
    how = f"{migrate_command(name)} converts it"
    if found.name != path:
        whole = name.removesuffix(path.removeprefix(found.name))
        what, how = f"a file of {what}", f"{migrate_command(name)} converts that into {os.path.basename(whole)!r}"
    elif found.kind == "dbm.sqlite3" and b"Dict" not in (_read(volume, path, _SQLITE_FIRST_PAGE) or b""):
        what, how = "an SQLite database", f"if dbm.sqlite3 made it, {how}"
    elif found.kind == "lmdb":
        what = "an LMDB database"
        if kind_of(volume, path) is None:
            how = f"{migrate_command(name, 'NEW')} converts it"
    return OtherKindError(errno.EINVAL, f"{what}, not a durabledbm database; {how}", name)


def refuse_for_shards(volume: Volume, path: str, name: str, number: int) -> None:
    """Raise if `path` is something that a directory of shards must not hide or replace. `number`: see `refuse_beside`.
    """
    refuse_beside(volume, name, number)
    found = located(volume, path)
    if found is not None:
        if found.kind != OURS:
            raise foreign(volume, path, name)
        raise OtherKindError(errno.ENOTDIR, "a database in one file, not a sharded one; durabledbm.open opens it", name)


def _unknown(volume: Volume, path: str, name: str) -> error:
    from .._log.records import MAGIC as LOG_MAGIC

    if _read(volume, os.path.join(path, SHARDS_MANIFEST)) is not None:
        return OtherKindError(errno.EISDIR, "a sharded database; durabledbm.open_sharded opens it", name)
    if (_read(volume, path) or b"").startswith(LOG_MAGIC):
        how = f"'durabledbm load NEW {shell_word(name)}' makes a database of it"
        return OtherKindError(errno.EINVAL, f"a dump or a log of changes, not a durabledbm database; {how}", name)
    if has_our_pages(volume, path):
        how = f"'durabledbm salvage {shell_word(name)} NEW' saves what is readable"
        return CorruptionError(f"both meta pages are damaged; {how}", path=name)
    return error(f"{name}: not a durabledbm database, and not of a kind that 'durabledbm migrate' can read")


def migrate_command(name: str, target: str = "") -> str:
    """The command that converts an old database, in quotation marks."""
    return f"'durabledbm migrate {shell_word(name)}{target and ' '}{target}'"


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\\/:._-")
"""What the shells of Windows take as it is."""


def shell_word(name: str) -> str:
    """A file name, quoted for this system's shell and for the command line."""
    if name.startswith("-"):
        name = os.path.join(".", name)
    if os.name == "nt":
        return name if _PLAIN.issuperset(name) else f'"{name}"'
    from shlex import quote

    return quote(name)
