"""One table on a PostgreSQL server: its SQL, and the effect of each statement.

Nothing here begins a transaction or retries. Each method is one statement, or says that it must be atomic
(`Session.atomic`).

The table is as plain as possible, so that other programs can use it: `SELECT value FROM app WHERE key = 'user:1'`.
`keys` explains the columns `rest` and `digest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

from psycopg import Error

from ...errors import error
from ..faces import KeyRange
from .keys import KEY_MAX, bound, split

if TYPE_CHECKING:
    from .session import Session

__all__ = ["ENTRY_MAX", "NAME_MAX", "WHOLE_MAX", "SqlTable", "quoted"]

NAME_MAX = 63
"""Bytes of a name. PostgreSQL would cut off what is longer, and take two names for one."""

ENTRY_MAX = 2**30 - 2**16
"""Bytes of a key and its value: a row, and a message that carries it, must be smaller than 1 GiB."""

WHOLE_MAX = 2**15
"""Bytes of an entry that comes with its page when iterating. Larger ones come one by one."""

_BATCH_ENTRIES = 5000
_BATCH_BYTES = 4 * 2**20
"""What one statement of a large update takes."""

_LARGE = 2**24
"""Bytes of a value that is not sent as a parameter."""

_REPLACING = "ON CONFLICT (key, digest) DO UPDATE SET value = excluded.value"

_BYTEA = 17
"""The object id of the type, which is the same everywhere."""


def quoted(name: str) -> str:
    """The name as SQL, for a statement with parameters. Raises `ValueError` if no table can have it."""
    if not name or "\0" in name:
        raise ValueError(f"a table cannot have the name {name!r}")
    if len(name.encode()) > NAME_MAX:
        raise ValueError(f"the name of a table has at most {NAME_MAX} bytes, not {len(name.encode())}: {name!r}")
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


class _Clauses:
    """A range of keys as parts of a SELECT."""

    __slots__ = ("order", "parameters", "where")

    def __init__(self, keys: KeyRange) -> None:
        conditions: list[str] = []
        parameters: list[bytes] = []
        for key, sign in ((keys.start, ">="), (keys.stop, "<")):
            if key is None:
                continue
            if len(key) <= KEY_MAX:  # no `rest` is smaller than none
                conditions.append(f"t.key {sign} %b")
                parameters.append(key)
            else:
                conditions.append(f"(t.key, t.rest) {sign} (%b, %b)")
                parameters += bound(key)
        self.where = " AND ".join(conditions) or "true"
        self.parameters = tuple(parameters)
        self.order = "t.key DESC, t.rest DESC" if keys.reverse else "t.key, t.rest"


class SqlTable:
    """The statements of the table `name`. Keys and values are bytes."""

    entry_max = ENTRY_MAX

    def __init__(self, name: str) -> None:
        self.name = name
        table = quoted(name)
        self.sql_name = table
        """The name as it stands in statements with parameters."""
        here = "WHERE key = %b AND digest = %b"
        target = f"INSERT INTO {table} (key, rest, digest, value)"
        self._find = f"SELECT value FROM {table} {here}"
        self._has = f"SELECT 1 FROM {table} {here}"
        self._find_many = (
            "SELECT t.key, t.rest, t.value FROM unnest(%b::bytea[], %b::bytea[]) AS wanted (key, digest) "
            f"JOIN {table} AS t ON t.key = wanted.key AND t.digest = wanted.digest"
        )
        self._put = f"{target} VALUES (%b, %b, %b, %b) {_REPLACING}"
        columns = ", ".join(["%b::bytea[]"] * 4)
        self._put_many = f"{target} SELECT * FROM unnest({columns}) {_REPLACING}"
        self._put_new = f"{target} VALUES (%b, %b, %b, %b) ON CONFLICT (key, digest) DO NOTHING"
        self._delete = f"DELETE FROM {table} {here}"
        self._delete_many = (
            f"DELETE FROM {table} AS t USING unnest(%b::bytea[], %b::bytea[]) AS unwanted (key, digest) "
            "WHERE t.key = unwanted.key AND t.digest = unwanted.digest"
        )
        self._pop = f"{self._delete} RETURNING value"
        self._pop_end = (
            f"DELETE FROM {table} WHERE (key, digest) = "
            f"(SELECT t.key, t.digest FROM {table} AS t ORDER BY t.key DESC, t.rest DESC LIMIT 1) "
            "RETURNING key, rest, value"
        )

    # -- the table itself ----------------------------------------------------------------------------------------

    def exists(self, session: Session) -> bool:
        """Whether there is such a table. Raises `error` if it is not one of ours."""
        row = session.row("SELECT to_regclass(%s)::text", (self.sql_name.replace("%%", "%"),))
        if row is None or row[0] is None:
            return False
        try:
            types = session.types(f"SELECT key, rest, digest, value FROM {self.sql_name} LIMIT 0")
        except Error as exc:
            if exc.sqlstate != "42703":  # a column is missing
                raise
            types = []
        if types != [_BYTEA] * 4:
            raise error(f"{session.where}: the table {self.name!r} is not one of durabledbm's, and was left as it is")
        return True

    def create(self, session: Session) -> None:
        """Make the table, unless it is there."""
        session.do(
            f"CREATE TABLE IF NOT EXISTS {self.sql_name} ("
            "key bytea NOT NULL, rest bytea NOT NULL DEFAULT '', digest bytea NOT NULL DEFAULT '', "
            "value bytea NOT NULL, PRIMARY KEY (key, digest), "
            f"CHECK (octet_length(key) < {KEY_MAX} AND rest = '' AND digest = '' "
            f"OR octet_length(key) = {KEY_MAX} AND (rest = '') = (digest = '')))"
        )

    def drop(self, session: Session) -> None:
        """Remove the table."""
        session.do(f"DROP TABLE {self.sql_name}")

    def bytes_on_disk(self, session: Session) -> int:
        """The size of the table and its index, as far as the server tells; else 0."""
        try:
            row = session.row("SELECT pg_total_relation_size(%s::regclass)", (self.sql_name.replace("%%", "%"),))
        except Error:
            if session.lost:
                raise
            return 0
        return 0 if row is None or row[0] is None else int(row[0])

    # -- reading -------------------------------------------------------------------------------------------------

    def find(self, session: Session, key: bytes) -> bytes | None:
        """The value of `key`."""
        head, _, digest = split(key)
        row = session.row(self._find, (head, digest))
        return None if row is None else row[0]

    def has(self, session: Session, key: bytes) -> bool:
        """Whether `key` is there."""
        head, _, digest = split(key)
        return session.row(self._has, (head, digest)) is not None

    def find_many(self, session: Session, keys: list[bytes]) -> dict[bytes, bytes]:
        """Those of `keys` that are there, with their values."""
        columns = [split(key) for key in keys]
        rows = session.rows(self._find_many, ([head for head, _, _ in columns], [digest for _, _, digest in columns]))
        return {head + rest: value for head, rest, value in rows}

    def count(self, session: Session) -> int:
        """The number of entries. The server counts them: this takes longer the more there are."""
        row = session.row(f"SELECT count(*) FROM {self.sql_name}", ())
        assert row is not None
        return int(row[0])

    def has_any(self, session: Session) -> bool:
        """Whether there is an entry."""
        return session.row(f"SELECT 1 FROM {self.sql_name} LIMIT 1", ()) is not None

    def first_of(self, session: Session, keys: KeyRange) -> tuple[bytes, bytes] | None:
        """The first entry of the range."""
        row = session.row(*self._first("t.key, t.rest, t.value", keys))
        return None if row is None else (row[0] + row[1], row[2])

    def first_key_of(self, session: Session, keys: KeyRange) -> bytes | None:
        """The first key of the range."""
        row = session.row(*self._first("t.key, t.rest", keys))
        return None if row is None else row[0] + row[1]

    def _first(self, columns: str, keys: KeyRange) -> tuple[str, tuple[bytes, ...]]:
        part = _Clauses(keys)
        query = f"SELECT {columns} FROM {self.sql_name} AS t WHERE {part.where} ORDER BY {part.order} LIMIT 1"
        return query, part.parameters

    def entries_of(self, keys: KeyRange, *, values: bool) -> tuple[str, str, tuple[bytes, ...]]:
        """Two SELECTs of key, rest and value (NULL without `values`), and the parameters of both.

        The first one gives all rows of the range, and NULL in place of rest and value where they are larger than
        `WHOLE_MAX`. The second one gives those rows alone, in the same order, whole.
        """
        part = _Clauses(keys)
        size = "octet_length(t.rest) + octet_length(t.value)" if values else "octet_length(t.rest)"
        small = f"{size} <= {WHOLE_MAX}"
        value = "t.value" if values else "NULL"
        behind = f"FROM {self.sql_name} AS t WHERE {part.where}"
        rows = f"SELECT t.key, CASE WHEN {small} THEN t.rest END, CASE WHEN {small} THEN {value} END {behind}"
        large = f"SELECT t.key, t.rest, {value} {behind} AND {size} > {WHOLE_MAX}"
        return f"{rows} ORDER BY {part.order}", f"{large} ORDER BY {part.order}", part.parameters

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, session: Session, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self._put_columns((*split(key), value), session)

    def delete(self, session: Session, key: bytes) -> bool:
        """Delete `key`; False if it is not there."""
        head, _, digest = split(key)
        return session.do(self._delete, (head, digest)) > 0

    def pop(self, session: Session, key: bytes) -> bytes | None:
        """Delete `key` and return its value."""
        head, _, digest = split(key)
        row = session.row(self._pop, (head, digest))
        return None if row is None else row[0]

    def pop_end(self, session: Session) -> tuple[bytes, bytes] | None:
        """Delete the last entry and return it."""
        row = session.row(self._pop_end, ())
        return None if row is None else (row[0] + row[1], row[2])

    def set_default(self, session: Session, key: bytes, default: bytes) -> bytes:
        """The value of `key`, which is set to `default` if it is not there."""
        if len(default) >= _LARGE:
            with session.atomic():
                value = self.find(session, key)
                if value is None:
                    self.put(session, key, default)
            return default if value is None else value
        while not session.do(self._put_new, (*split(key), default)):
            value = self.find(session, key)
            if value is not None:
                return value
            # It was deleted in between.
        return default

    def apply(self, session: Session, changes: Mapping[bytes, bytes | None]) -> None:
        """Make many changes as one; None deletes. In the order of the keys, so that two cannot block each other."""
        steps = self._steps(changes)
        begun = [*islice(steps, 2)]
        if len(begun) < 2:
            for step in begun:  # atomic by itself
                step(session)
        else:
            with session.atomic():
                for step in chain(begun, steps):
                    step(session)

    def _steps(self, changes: Mapping[bytes, bytes | None]) -> Iterator[Callable[[Session], object]]:
        """What makes the changes, each of limited size."""
        for batch in _batches(changes):
            puts = [(*split(key), value) for key, value in batch if value is not None]
            gone = [split(key) for key, value in batch if value is None]
            if len(puts) == 1:
                yield partial(self._put_columns, puts[0])
            elif puts:
                yield partial(_do, self._put_many, tuple(map(list, zip(*puts, strict=True))))
            if gone:
                yield partial(_do, self._delete_many, ([one[0] for one in gone], [one[2] for one in gone]))

    def _put_columns(self, columns: tuple[bytes, bytes, bytes, bytes], session: Session) -> None:
        """Set a row. Large ones go by COPY: libpq sends a large parameter in a time that grows with its square."""
        if len(columns[3]) < _LARGE:
            session.do(self._put, columns)
            return
        with session.atomic():
            session.once(
                "CREATE TEMPORARY TABLE durabledbm_large "
                "(key bytea, rest bytea, digest bytea, value bytea) ON COMMIT DROP"
            )
            with session.copy_in("COPY pg_temp.durabledbm_large FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["bytea"] * 4)
                copy.write_row(columns)
            session.once(
                f"INSERT INTO {self.sql_name} (key, rest, digest, value) "
                f"SELECT * FROM pg_temp.durabledbm_large {_REPLACING}"
            )
            session.once("DROP TABLE pg_temp.durabledbm_large")

    def clear(self, session: Session) -> None:
        """Delete all entries. (TRUNCATE would be faster, and empty the snapshots of others.)"""
        session.do(f"DELETE FROM {self.sql_name}")


def _do(statement: str, parameters: tuple[object, ...], session: Session) -> None:
    session.do(statement, parameters)


def _batches(changes: Mapping[bytes, bytes | None]) -> Iterator[list[tuple[bytes, bytes | None]]]:
    """The changes in the order of their keys, cut into lists of limited size, with a large one by itself."""
    batch: list[tuple[bytes, bytes | None]] = []
    size = 0
    for key in sorted(changes):
        value = changes[key]
        length = len(key) + len(value or b"")
        if batch and (len(batch) == _BATCH_ENTRIES or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((key, value))
        size += length
    if batch:
        yield batch
