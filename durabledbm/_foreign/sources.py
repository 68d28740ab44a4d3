"""Opening databases of other kinds for reading, and writing them.

This module calls other modules and turns their errors into ours. Most files are read by the readers in this folder, and
those of dbm.sqlite3 by `sqlite3`: so they can be read on every Python, in one query or one pass instead of one call per
entry. Only the remaining formats of dbm.ndbm are read through that module. Files are written through the module of
their kind, those of dbm.sqlite3 by `sqlite3`.

A source does not stop at damage by itself. It reports what it cannot read to the function `damaged`, which may raise;
if that returns, the source continues with what can be read.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

from .._engine.disk import FileVolume
from ..errors import CorruptionError, error
from .berkeley import BerkeleySource, is_berkeley_2
from .dumb import DumbSource
from .file import Damaged
from .gnu import GnuSource
from .kinds import FILES, OURS, Found, kind_of, located
from .lmdb import LmdbSource

__all__ = ["KINDS_TO_WRITE", "Damaged", "Entry", "Source", "TableSource", "locate", "open_source", "write_all"]

Entry = tuple[bytes, bytes]

_LAST_ROW = 2**63 - 1

_DICT = "Dict"
"""The table of dbm.sqlite3."""

_UNNAMED = "unnamed"
"""The table that sqlitedict uses by default."""


class Source(Protocol):
    """A database that is read. Its methods raise `error`."""

    ordered: bool
    """Whether `entries()` come in the order of their keys."""

    def count(self) -> int | None:
        """The number of entries, or None if only a scan would tell."""

    def entries(self) -> Generator[Entry, None, None]:
        """All entries. May be called again."""

    def close(self) -> None:
        """Release the files."""


@runtime_checkable
class TableSource(Source, Protocol):
    """A database that may have tables beside the main one, which `entries()` are of."""

    def tables(self) -> list[str]:
        """The names of the other tables."""

    def entries_of(self, table: str) -> Generator[Entry, None, None]:
        """All entries of one. May be called again."""


def locate(path: str) -> Found:
    """The database that `path` names: by the name for its module, or by one of its files.

    Raises `error` if there is none, or none of a known kind.
    """
    volume = FileVolume()
    found = located(volume, path)
    if found is not None:
        return found
    for stem in (path, os.path.splitext(path)[0]):
        if os.path.isfile(stem + ".dat") and os.path.isfile(stem + ".dir"):
            return Found("dbm.dumb", stem)  # with an index that is damaged from its first byte on
    try:
        os.lstat(path)  # unlike `os.path.exists` it tells what is missing from what may not be looked at
        if os.path.isdir(path):
            with suppress(FileNotFoundError):
                os.stat(os.path.join(path, "data.mdb"))
    except OSError as exc:
        raise error.wrap(exc, path) from exc
    if os.path.isdir(path):
        raise error(errno.EISDIR, "a directory, but not an LMDB database", path)
    if not os.path.isfile(path):
        raise error(errno.EINVAL, "not a regular file", path)
    with _ours(path, "reading"):
        volume.open(path, writable=False).close()
    raise error(f"{path}: not a database of a kind that durabledbm can read")


def refuse(text: str) -> None:
    """The default reaction to damage: `CorruptionError`."""
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
    """Turn what another module raises into one of our errors. With a damaged file it may be any exception."""
    try:
        yield
    except error:
        raise
    except OSError as exc:
        if exc.errno:
            name = exc.filename if isinstance(exc.filename, str) else path
            raise error(exc.errno, exc.strerror or os.strerror(exc.errno), name) from exc
        raise error(f"{path}: {exc}") from exc
    except MemoryError as exc:
        raise error(errno.ENOMEM, os.strerror(errno.ENOMEM), path) from exc
    except kind as exc:
        raise CorruptionError(f"{who} fails: {_said(exc)}", path=path) from exc


def _said(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


# -- reading: dbm.ndbm -------------------------------------------------------------------------------------------------


def _ndbm(name: str, damaged: Damaged) -> Source:
    """The files of dbm.ndbm have the format of the library that it is built with; only that module knows its own
    format.
    """
    volume = FileVolume()
    if kind_of(volume, name + ".pag") == "dbm.gnu":
        return GnuSource(name + ".pag", damaged)
    if os.path.isfile(name + ".db"):
        with closing(volume.open(name + ".db", writable=False)) as disk:
            head = disk.read(16, 0)
        if is_berkeley_2(head):
            return BerkeleySource(name + ".db", damaged)
    return _NdbmSource(name, damaged)


class _NdbmSource:
    """dbm.ndbm, which returns all keys at once."""

    ordered = False

    def __init__(self, name: str, damaged: Damaged) -> None:
        self._name, self._damaged = name, damaged
        self._db = _module("dbm.ndbm", name).open(name, "r")

    def count(self) -> int | None:
        try:
            return len(self._db)
        except Exception:
            return None  # reading the entries tells what is wrong

    def entries(self) -> Generator[Entry, None, None]:
        with _ours(self._name, "dbm.ndbm"):
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


# -- reading: dbm.sqlite3 ----------------------------------------------------------------------------------------------


class _SqliteSource:
    """dbm.sqlite3, and sqlitedict, whose default table becomes the main one."""

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
            self._main = _DICT if self._is_of_dbm() else _UNNAMED
            self._others = [] if self._main == _DICT else self._tables_of_sqlitedict()
            if self._main == _UNNAMED and not self._others:
                raise error(f"{path}: an SQLite database, but not one that dbm.sqlite3 or sqlitedict made")
            self._has_main = self._main == _DICT or _UNNAMED in self._others
            self._others = [name for name in self._others if name != _UNNAMED]
        except BaseException:
            self._db.close()
            raise

    def _is_of_dbm(self) -> bool:
        """Whether it has the right table. A view, or computed columns, could be anything, even endless."""
        kind = self._db.execute("SELECT type FROM sqlite_master WHERE name = 'Dict' AND rootpage > 0").fetchone()
        columns = {row[1]: row[6] for row in self._db.execute("PRAGMA table_xinfo(Dict)")}
        return kind == ("table",) and columns.get("key") == columns.get("value") == 0

    def _tables_of_sqlitedict(self) -> list[str]:
        """The tables that have a text as their primary key and a value, and nothing else."""
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
        found = []
        for (name,) in self._db.execute(query).fetchall():
            columns = [row[1:4] + row[5:] for row in self._db.execute(f"PRAGMA table_xinfo({_quoted(name)})")]
            if columns == [("key", "TEXT", 0, 1, 0), ("value", "BLOB", 0, 0, 0)]:
                found.append(name)
        return sorted(found)

    def tables(self) -> list[str]:
        return self._others

    def count(self) -> int | None:
        names = [self._main] * self._has_main + self._others
        try:
            return sum(int(self._db.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()[0]) for name in names)
        except self._sqlite.DatabaseError:
            return None  # reading the entries tells what is wrong

    def entries(self) -> Generator[Entry, None, None]:
        if self._has_main:
            yield from self.entries_of(self._main)

    def entries_of(self, table: str) -> Generator[Entry, None, None]:
        with _ours(self._path, "sqlite3"):
            for row, kind, key, value in self._rows(table):
                if key is None or value is None:
                    self._damaged(f"{self._path}: row {row} has no {'key' if key is None else 'value'}")
                elif table == _DICT and kind != "blob" and self._has_blob(key):
                    what = f"the key {key[:50]!r} is there as a blob and as another type"
                    self._damaged(f"{self._path}: {what}; dbm.sqlite3 finds the blob")
                else:
                    yield key, value

    def _rows(self, table: str) -> Iterator[tuple[int, str, bytes | None, bytes | None]]:
        """All rows. Where the table is damaged, continue behind the damage, in growing steps."""
        query = (
            "SELECT rowid, typeof(key), CAST(key AS BLOB), CAST(value AS BLOB) "
            f"FROM {_quoted(table)} WHERE rowid > ? ORDER BY rowid"
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


_SOURCES: dict[str, Callable[[str, Damaged], Source]] = {
    "dbm.dumb": DumbSource,
    "dbm.gnu": GnuSource,
    "dbm.ndbm": _ndbm,
    "dbm.sqlite3": _SqliteSource,
    "dbhash": BerkeleySource,
    "lmdb": LmdbSource,
}


# -- writing -----------------------------------------------------------------------------------------------------------


def write_all(path: str, kind: str, entries: Iterable[Entry]) -> None:
    """Create a database of a kind in `KINDS_TO_WRITE` that holds `entries`, readable and writable by its owner only.

    None of its files may exist. Exceptions from iterating over `entries` propagate unchanged.
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
    # "f": nothing is synced here; the caller syncs the files at the end.
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


def _quoted(table: str) -> str:
    """The name of a table in SQL."""
    return '"' + table.replace('"', '""') + '"'


def _sqlite_uri(path: str, mode: str) -> str:
    from urllib.parse import quote

    # Two slashes at the start would make the first name a host.
    return f"file:/{quote(os.fsencode(os.path.abspath(path)).lstrip(b'/'))}?mode={mode}"


assert OURS not in FILES
