"""Databases of other kinds: finding the one that a name means, and reading and writing them all.

What may live here: the calls on other modules, and their errors turned into ours. Everything is read through the module
that wrote it, except for dbm.dumb, which `_dumb` reads, and for dbm.sqlite3's files, which are read and written by
`sqlite3` itself: so they can be on every Python, and in one query or one transaction instead of one per entry.

A source does not stop at damage by itself. It tells what it cannot read to the function `damaged` that it was given,
which may raise; if it returns, the source leaves that out and goes on with what can be read.
"""

from __future__ import annotations

import errno
import importlib
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from ._dumb import DumbSource
from ._engine.native import FileVolume
from ._kinds import FILES, OURS, Found, kind_of, located
from ._tempfiles import new_directory
from .errors import CorruptionError, error

__all__ = ["KINDS_TO_WRITE", "Damaged", "Entry", "Source", "locate", "open_source", "write_all"]

Entry = tuple[bytes, bytes]
Damaged = Callable[[str], None]

_LMDB_HEAD = 152
_LMDB_PAGE_SIZES = [512 << shift for shift in range(8)]
_LMDB_RECORD_SIZE = 48  # what LMDB keeps in the main database about a named one
_GDBM_ENTRY = 16  # fewer bytes than any entry takes
_LAST_ROW = 2**63 - 1


class Source(Protocol):
    """A database that is read. Everything raises `error`."""

    ordered: bool
    """Whether `entries()` come in the order of their keys."""

    def count(self) -> int | None:
        """The number of entries, or None if it takes a scan to know."""

    def entries(self) -> Generator[Entry, None, None]:
        """All entries. May be called again."""

    def close(self) -> None:
        """Release the files."""


def locate(path: str) -> Found:
    """The database that `path` names: by its name as its module opens it, or as one of its files is called.

    Raises `error` if there is none, or none of a kind that is known.
    """
    volume = FileVolume()
    found = located(volume, path)
    if found is not None:
        return found
    for stem in (path, os.path.splitext(path)[0]):
        if os.path.isfile(stem + ".dat") and os.path.isfile(stem + ".dir"):
            return Found("dbm.dumb", stem)  # with an index that is damaged from its first byte on
    if os.path.isdir(path):
        raise error(errno.EISDIR, "a directory, and not one of LMDB's", path)
    if not os.path.lexists(path):
        raise error(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if not os.path.isfile(path):
        raise error(errno.EINVAL, "not a regular file", path)
    with _ours(path, "reading"):
        volume.open(path, writable=False).close()
    raise error(f"{path}: not a database of a kind that durabledbm can read")


def refuse(text: str) -> None:
    """The usual answer to damage: `CorruptionError`."""
    raise CorruptionError(text)


def open_source(found: Found, damaged: Damaged = refuse) -> Source:
    """Open a database for reading. Raises `error`, also if the module that its kind needs is missing."""
    opener: Callable[[str, Damaged], Source] = _SOURCES[found.kind]
    with _ours(found.name, found.kind):
        return opener(found.name, damaged)


def _module(name: str, path: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise error(f"{path} needs the module {name}, which this Python does not have") from exc


@contextmanager
def _ours(path: str, who: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """Turn what another module raises into one of our errors. When a damaged file is read it may be anything."""
    try:
        yield
    except error:
        raise
    except OSError as exc:
        if exc.errno:
            raise error(exc.errno, exc.strerror or os.strerror(exc.errno), path) from exc
        raise error(f"{path}: {exc}") from exc
    except MemoryError as exc:
        raise error(errno.ENOMEM, os.strerror(errno.ENOMEM), path) from exc
    except kind as exc:
        raise CorruptionError(f"{who} fails: {_said(exc)}", path=path) from exc


def _said(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


# -- reading: dbm.ndbm, dbm.gnu ----------------------------------------------------------------------------------------


class _NdbmSource:
    """dbm.ndbm, which knows all keys only at once."""

    ordered = False
    module = "dbm.ndbm"

    def __init__(self, name: str, damaged: Damaged, alias: str | None = None) -> None:
        module = _module(self.module, name)
        if (alias or os.path.isfile(name + ".db")) and "GNU" in getattr(module, "library", ""):
            raise error(f"{name}: needs a dbm.ndbm that is made with Berkeley DB; this Python's is made with gdbm")
        self._name, self._damaged = name, damaged
        self._db = module.open(alias or name, "r")

    def count(self) -> int | None:
        with _ours(self._name, self.module):
            return len(self._db)

    def entries(self) -> Generator[Entry, None, None]:
        with _ours(self._name, self.module):
            for key in self._db.keys():  # noqa: SIM118 - dbm.ndbm has nothing else
                value = self._value(key)
                if value is not None:
                    yield key, value

    def _value(self, key: bytes) -> bytes | None:
        try:
            value: bytes = self._db[key]
        except Exception as exc:
            self._damaged(f"{self._name}: the value of {key[:50]!r} cannot be read: {_said(exc)}")
            return None
        return value

    def close(self) -> None:
        with suppress(Exception):
            self._db.close()


class _GnuSource(_NdbmSource):
    """dbm.gnu, walked from key to key."""

    module = "dbm.gnu"

    def __init__(self, name: str, damaged: Damaged) -> None:
        super().__init__(name, damaged)
        self._keys_max = os.path.getsize(name) // _GDBM_ENTRY

    def entries(self) -> Generator[Entry, None, None]:
        with _ours(self._name, self.module):
            key, walked = self._next(None, 0), 0
            while key is not None:
                value = self._value(key)
                if value is not None:
                    yield key, value
                walked += 1
                key = self._next(key, walked)

    def _next(self, key: bytes | None, walked: int) -> bytes | None:
        if walked > self._keys_max:
            self._damaged(f"{self._name}: its keys come again and again")
            return None
        try:
            following: bytes | None = self._db.firstkey() if key is None else self._db.nextkey(key)
        except Exception as exc:
            self._damaged(f"{self._name}: after {walked} entries no more keys can be read: {_said(exc)}")
            return None
        return following


def _ndbm(name: str, damaged: Damaged) -> Source:
    """gdbm's dbm.ndbm keeps everything in a file of dbm.gnu's, which reads it whatever dbm.ndbm this Python has."""
    if kind_of(FileVolume(), name + ".pag") == "dbm.gnu":
        return _GnuSource(name + ".pag", damaged)
    return _NdbmSource(name, damaged)


def _berkeley(name: str, damaged: Damaged) -> Source:
    """dbm.ndbm insists on the suffix: so it is given a link that has it."""
    with new_directory(os.path.join(tempfile.gettempdir(), "link")) as directory:
        alias = os.path.join(directory.path, "link")
        os.symlink(os.path.abspath(name), alias + ".db")
        return _NdbmSource(name, damaged, alias)


# -- reading: dbm.sqlite3 ----------------------------------------------------------------------------------------------


class _SqliteSource:
    """dbm.sqlite3."""

    ordered = False  # asking for the order would read the values all over the file

    def __init__(self, path: str, damaged: Damaged) -> None:
        self._path, self._damaged = path, damaged
        self._sqlite = _module("sqlite3", path)
        # A connection that may write removes, when it is closed, the files beside the database that reading creates.
        directory = os.path.dirname(os.path.abspath(path))
        writable = os.access(path, os.W_OK) and os.access(directory, os.W_OK)
        uri = _sqlite_uri(path, "rw" if writable else "ro")
        self._db = self._sqlite.connect(uri, uri=True, isolation_level=None)
        try:
            self._db.execute("PRAGMA query_only = 1")
            self._db.execute("PRAGMA trusted_schema = 0")
            if not self._is_of_dbm():
                raise error(f"{path}: an SQLite database, but not one that dbm.sqlite3 made")
        except BaseException:
            self._db.close()
            raise

    def _is_of_dbm(self) -> bool:
        """Whether it has the table. A view, or columns that are computed, could be anything, also without end."""
        kind = self._db.execute("SELECT type FROM sqlite_master WHERE name = 'Dict' AND rootpage > 0").fetchone()
        columns = {row[1]: row[6] for row in self._db.execute("PRAGMA table_xinfo(Dict)")}
        return kind == ("table",) and columns.get("key") == columns.get("value") == 0

    def count(self) -> int | None:
        try:
            return int(self._db.execute("SELECT count(*) FROM Dict").fetchone()[0])
        except self._sqlite.DatabaseError:
            return None  # reading the entries tells what is wrong

    def entries(self) -> Generator[Entry, None, None]:
        with _ours(self._path, "sqlite3"):
            for row, kind, key, value in self._rows():
                if key is None or value is None:
                    self._damaged(f"{self._path}: row {row} has no {'key' if key is None else 'value'}")
                elif kind != "blob" and self._has_blob(key):
                    what = f"the key {key[:50]!r} is there as a blob and as another type"
                    self._damaged(f"{self._path}: {what}; dbm.sqlite3 finds the blob")
                else:
                    yield key, value

    def _rows(self) -> Iterator[tuple[int, str, bytes | None, bytes | None]]:
        """All rows. Where the table is damaged, go on behind the damage, in ever larger steps."""
        query = (
            "SELECT rowid, typeof(key), CAST(key AS BLOB), CAST(value AS BLOB) FROM Dict WHERE rowid > ? ORDER BY rowid"
        )
        row, step = -_LAST_ROW, 1
        while row < _LAST_ROW:
            try:
                for found in self._db.execute(query, (row,)):
                    row, step = found[0], 1
                    yield found
                return
            except self._sqlite.DatabaseError as exc:
                if type(exc) is not self._sqlite.DatabaseError:  # busy, or an error of the disk
                    raise
                if step == 1:
                    self._damaged(f"{self._path}: rows behind number {max(row, 0)} cannot be read: {exc}")
                row, step = max(row, 0) + step, 2 * step

    def _has_blob(self, key: bytes) -> bool:
        return self._db.execute("SELECT 1 FROM Dict WHERE key = ?", (key,)).fetchone() is not None

    def close(self) -> None:
        self._db.close()


# -- reading: LMDB -----------------------------------------------------------------------------------------------------


class _LmdbSource:
    """LMDB, without named databases."""

    def __init__(self, path: str, damaged: Damaged) -> None:
        self._path = path
        self._lmdb = _module("lmdb", path)
        _check_lmdb_size(os.path.join(path, "data.mdb") if os.path.isdir(path) else path)
        self._env = self._lmdb.open(path, subdir=os.path.isdir(path), readonly=True, max_dbs=1)
        try:
            with self._env.begin() as txn:
                flags = self._env.open_db(txn=txn).flags(txn)
            self.ordered = not any(flags.values())  # some of them mean another order
            if flags.get("dupsort"):
                raise error(f"{path}: an LMDB database with several values for one key can't be migrated")
        except BaseException:
            self._env.close()
            raise

    def count(self) -> int | None:
        with _ours(self._path, "lmdb"):
            return int(self._env.stat()["entries"])

    def entries(self) -> Generator[Entry, None, None]:
        with _ours(self._path, "lmdb"), self._env.begin() as txn:
            for key, value in txn.cursor():
                if len(value) == _LMDB_RECORD_SIZE and self._is_named(key, txn):
                    raise error(f"{self._path}: an LMDB environment with named databases can't be migrated")
                yield key, value

    def _is_named(self, key: bytes, txn: Any) -> bool:
        try:
            self._env.open_db(key, txn=txn, create=False)
        except self._lmdb.Error:
            return False
        return True

    def close(self) -> None:
        self._env.close()


def _check_lmdb_size(path: str) -> None:
    """LMDB maps its file into memory: to read behind the end of one that was cut off would kill the interpreter."""
    with open(path, "rb") as file:
        first = file.read(_LMDB_HEAD)
        page_size = int.from_bytes(first[40:44], "little")
        file.seek(page_size)
        metas = [first, file.read(_LMDB_HEAD)]
    # Of the two meta pages the one with the larger transaction number, at 144, tells the last page, at 136.
    meta = max(metas, key=lambda meta: int.from_bytes(meta[144:152], "little"))
    pages = int.from_bytes(meta[136:144], "little") + 1
    if page_size not in _LMDB_PAGE_SIZES or os.path.getsize(path) < pages * page_size:
        raise CorruptionError(f"it was cut off: it should have {pages} pages of {page_size} bytes", path=path)


_SOURCES: dict[str, Callable[[str, Damaged], Source]] = {
    "dbm.dumb": DumbSource,
    "dbm.gnu": _GnuSource,
    "dbm.ndbm": _ndbm,
    "dbm.sqlite3": _SqliteSource,
    "dbhash": _berkeley,
    "lmdb": _LmdbSource,
}


# -- writing -----------------------------------------------------------------------------------------------------------


def write_all(path: str, kind: str, entries: Iterable[Entry]) -> None:
    """Create a database of a kind in `KINDS_TO_WRITE` that holds `entries`, for its owner to read and write.

    No file of it may exist. What iterating over `entries` raises comes out as it is.
    """
    _WRITERS[kind](path, entries)


def _write_dbm(name: str, flag: str, path: str, entries: Iterable[Entry]) -> None:
    with _ours(path, name, OSError):
        db = _module(name, path).open(path, flag, 0o600)
        try:
            for key, value in entries:
                db[key] = value
        finally:
            db.close()


def _write_gnu(path: str, entries: Iterable[Entry]) -> None:
    # "f": nothing is synced on the way; whoever calls this syncs the files in the end.
    _write_dbm("dbm.gnu", "nf", path, entries)


def _write_dumb(path: str, entries: Iterable[Entry]) -> None:
    _write_dbm("dbm.dumb", "n", path, entries)


def _write_sqlite(path: str, entries: Iterable[Entry]) -> None:
    sqlite = _module("sqlite3", path)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with _ours(path, "sqlite3", sqlite.Error):
        db = sqlite.connect(_sqlite_uri(path, "rw"), uri=True, isolation_level=None)
        try:
            # The table of dbm.sqlite3; it turns on the write-ahead log itself when it opens the file.
            db.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
            db.execute("BEGIN")
            db.executemany("INSERT INTO Dict VALUES (?, ?)", entries)
            db.execute("COMMIT")
        finally:
            db.close()


_WRITERS: dict[str, Callable[[str, Iterable[Entry]], None]] = {
    "dbm.dumb": _write_dumb,
    "dbm.gnu": _write_gnu,
    "dbm.sqlite3": _write_sqlite,
}

KINDS_TO_WRITE = tuple(_WRITERS)
"""The kinds that `write_all` knows."""


def _sqlite_uri(path: str, mode: str) -> str:
    from urllib.parse import quote

    # Two slashes at the start would make the first name a host.
    return f"file:/{quote(os.fsencode(os.path.abspath(path)).lstrip(b'/'))}?mode={mode}"


assert OURS not in FILES
