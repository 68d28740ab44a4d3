"""Databases of other kinds: which kind a file is, which files it consists of, and how to read and write
them all.

What may live here: the calls on other modules, and their errors turned into ours. Everything is read
through the module that wrote it, except that dbm.sqlite3's files are read and written by `sqlite3` itself:
so they can be on every Python, and in one query or one transaction instead of one per entry.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from .errors import error
from .stdlib import NAME, whichdb

__all__ = ["FILES", "KINDS_TO_WRITE", "Entry", "Source", "identify", "open_source", "write_all"]

Entry = tuple[bytes, bytes]

FILES = {
    "dbm.dumb": (".dir", ".dat", ".bak"),
    "dbm.gnu": ("",),
    "dbm.ndbm": (".dir", ".pag", ".db"),
    "dbm.sqlite3": ("", "-wal", "-shm", "-journal"),
    "lmdb": ("", "-lock"),
}
"""What is appended to a database's name to get its files. Without the first one it is none any more."""

_SQLITE_MAGIC = b"SQLite format 3\0"
_LMDB_MAGIC = b"\xde\xc0\xef\xbe"
_LMDB_MAGIC_OFFSET = 16
_LMDB_RECORD_SIZE = 48  # what LMDB keeps in the main database about a named one


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


def identify(path: str) -> str:
    """The kind of the database named `path`: a key of `FILES`, or "durabledbm".

    Raises `error` if there is none, or none that is known.
    """
    if os.path.isdir(path):
        if os.path.exists(os.path.join(path, "data.mdb")):
            return "lmdb"
        raise error(errno.EISDIR, "a directory, and not one of LMDB's", path)
    kind = whichdb(path)
    if kind:
        return kind
    if kind is None:
        if os.path.exists(path + ".db"):
            raise error(f"{path}.db exists, but this Python has no module dbm.ndbm to read it with")
        raise error(errno.ENOENT, os.strerror(errno.ENOENT), path)
    with open(path, "rb") as file:
        head = file.read(_LMDB_MAGIC_OFFSET + len(_LMDB_MAGIC))
    if head.startswith(_SQLITE_MAGIC):
        return "dbm.sqlite3"  # which dbm itself knows since Python 3.13
    if head[_LMDB_MAGIC_OFFSET:] == _LMDB_MAGIC:
        return "lmdb"
    raise error(f"{path}: not a database of a kind that durabledbm can read")


def open_source(path: str, kind: str) -> Source:
    """Open a database for reading. Raises `error`, also if the module that its kind needs is missing."""
    opener: Callable[[str], Source] = _SOURCES[kind]
    return opener(path)


def _module(name: str, path: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise error(f"{path} needs the module {name}, which this Python does not have") from exc


@contextmanager
def _translated(path: str, kind: type[Exception] = OSError) -> Iterator[None]:
    """Turn exceptions of other modules into ours."""
    try:
        yield
    except error:
        raise
    except (OSError, kind) as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise error(exc.errno, exc.strerror or os.strerror(exc.errno), path) from exc
        raise error(f"{path}: {exc}") from exc


class _DbmSource:
    """dbm.dumb and dbm.ndbm, which know all keys only at once; dbm.dumb has them in memory anyway."""

    ordered = False

    def __init__(self, name: str, path: str) -> None:
        self._path = path
        module = _module(name, path)
        with _translated(path):
            self._db = module.open(path, "r")

    def count(self) -> int | None:
        with _translated(self._path):
            return len(self._db)

    def entries(self) -> Generator[Entry, None, None]:
        with _translated(self._path):
            for key in self._db.keys():  # noqa: SIM118 - dbm.ndbm has nothing else
                yield key, self._db[key]

    def close(self) -> None:
        self._db.close()


class _GnuSource(_DbmSource):
    """dbm.gnu, walked from key to key."""

    def entries(self) -> Generator[Entry, None, None]:
        with _translated(self._path):
            key = self._db.firstkey()
            while key is not None:
                yield key, self._db[key]
                key = self._db.nextkey(key)


class _SqliteSource:
    """dbm.sqlite3."""

    ordered = False  # asking for the order would read the values all over the file

    def __init__(self, path: str) -> None:
        self._path = path
        self._sqlite = _module("sqlite3", path)
        # A connection that may write removes, when it is closed, the files beside the database that reading
        # creates.
        directory = os.path.dirname(os.path.abspath(path))
        writable = os.access(path, os.W_OK) and os.access(directory, os.W_OK)
        with _translated(path, self._sqlite.Error):
            uri = _sqlite_uri(path, "rw" if writable else "ro")
            self._db = self._sqlite.connect(uri, uri=True, isolation_level=None)
            try:
                self._db.execute("PRAGMA query_only = 1")
                self._db.execute("SELECT key, value FROM Dict LIMIT 0")
            except self._sqlite.Error as exc:
                self._db.close()
                if str(exc).startswith(("no such table", "no such column")):
                    raise error(f"{path}: an SQLite database, but not one that dbm.sqlite3 made") from exc
                raise

    def count(self) -> int | None:
        with _translated(self._path, self._sqlite.Error):
            return int(self._db.execute("SELECT count(*) FROM Dict").fetchone()[0])

    def entries(self) -> Generator[Entry, None, None]:
        query = "SELECT CAST(key AS BLOB), CAST(value AS BLOB) FROM Dict"
        with _translated(self._path, self._sqlite.Error):
            yield from self._db.execute(query)

    def close(self) -> None:
        self._db.close()


class _LmdbSource:
    """LMDB, without named databases."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lmdb = _module("lmdb", path)
        with _translated(path, self._lmdb.Error):
            self._env = self._lmdb.open(path, subdir=os.path.isdir(path), readonly=True, max_dbs=1)
            with self._env.begin() as txn:
                flags = self._env.open_db(txn=txn).flags(txn)
            self.ordered = not any(flags.values())  # some of them mean another order
            if flags.get("dupsort"):
                self._env.close()
                raise error(f"{path}: an LMDB database with several values for one key can't be migrated")

    def count(self) -> int | None:
        return int(self._env.stat()["entries"])

    def entries(self) -> Generator[Entry, None, None]:
        with _translated(self._path, self._lmdb.Error), self._env.begin() as txn:
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


_SOURCES: dict[str, Callable[[str], Source]] = {
    "dbm.dumb": lambda path: _DbmSource("dbm.dumb", path),
    "dbm.gnu": lambda path: _GnuSource("dbm.gnu", path),
    "dbm.ndbm": lambda path: _DbmSource("dbm.ndbm", path),
    "dbm.sqlite3": _SqliteSource,
    "lmdb": _LmdbSource,
}


def write_all(path: str, kind: str, mode: int, entries: Iterable[Entry]) -> None:
    """Create a database of a kind in `KINDS_TO_WRITE` that holds `entries`. No file of it may exist."""
    _WRITERS[kind](path, mode, entries)


def _write_dbm(module: Any, flag: str, path: str, mode: int, entries: Iterable[Entry]) -> None:
    with _translated(path):
        db = module.open(path, flag, mode)
        try:
            for key, value in entries:
                db[key] = value
        finally:
            db.close()


def _write_gnu(path: str, mode: int, entries: Iterable[Entry]) -> None:
    # "f": nothing is synced on the way; whoever calls this syncs the files in the end.
    _write_dbm(_module("dbm.gnu", path), "nf", path, mode, entries)


def _write_dumb(path: str, mode: int, entries: Iterable[Entry]) -> None:
    _write_dbm(_module("dbm.dumb", path), "n", path, mode, entries)


def _write_sqlite(path: str, mode: int, entries: Iterable[Entry]) -> None:
    sqlite = _module("sqlite3", path)
    with _translated(path, sqlite.Error):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode))
        db = sqlite.connect(_sqlite_uri(path, "rw"), uri=True, isolation_level=None)
        try:
            # The table of dbm.sqlite3; it turns on the write-ahead log itself when it opens the file.
            db.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
            db.execute("BEGIN")
            db.executemany("INSERT INTO Dict VALUES (?, ?)", entries)
            db.execute("COMMIT")
        finally:
            db.close()


_WRITERS: dict[str, Callable[[str, int, Iterable[Entry]], None]] = {
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


assert NAME not in FILES
