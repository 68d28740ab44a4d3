"""A database on a PostgreSQL server: what `remote.open("postgresql://...")` returns.

The entries are the rows of one table (`sqltable`), and further tables of the database are tables named after it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..._files.arguments import Progress
from ...errors import error
from ..blocks import Transaction
from ..database import RemoteDatabase, Stats
from ..faces import KeyRange, WritableTable
from ..loading import Loader
from ..pool import Pool
from .loading import can_load, loading
from .scan import Scan, begin_scan
from .session import READING, WRITING, Session, connect
from .snapshot import PostgresSnapshot
from .sqltable import SqlTable
from .transaction import PostgresTransaction

__all__ = ["PostgresDatabase", "open_postgresql"]

_MADE_BY_ANOTHER = ("23505", "42710", "42P07")
"""What the server says to one of two who make a table at the same time."""


def open_postgresql(
    url: str, flag: str, table: str, timeout: float | None, max_connections: int, options: dict[str, Any]
) -> PostgresDatabase:
    """See `remote.open`."""
    try:
        parameters = conninfo_to_dict(url, **options)
    except psycopg.ProgrammingError as exc:
        raise ValueError(f"the address or an option is wrong: {' '.join(str(exc).split())}") from None
    parameters.setdefault("application_name", "durabledbm")
    parameters["client_encoding"] = "utf8"  # the names of tables are sent so
    sql_table = SqlTable(table)
    where = _location(parameters)
    pool: Pool[Session] = Pool(
        lambda kind: connect(parameters, kind, where, timeout), psycopg.Error, where, max_connections, timeout
    )
    database = PostgresDatabase(pool, sql_table, flag == "r")
    return database._opened(flag, lambda: pool.run(READING, sql_table.exists, harmless=True))


def _location(parameters: dict[str, Any]) -> str:
    """The address without what is secret in it."""
    host = parameters.get("host") or os.environ.get("PGHOST", "")
    port = parameters.get("port") or os.environ.get("PGPORT", "")
    name = parameters.get("dbname") or os.environ.get("PGDATABASE", "")
    return f"postgresql://{quote(host, safe=',:')}{f':{port}' if port else ''}/{quote(name)}"


class PostgresDatabase(RemoteDatabase):
    """A database on a server that speaks PostgreSQL's protocol.

    Writes and transactions are serializable: the result is as if they had run one after another. They may have any
    size.
    """

    __slots__ = ()

    _READING = READING
    _WRITING = WRITING
    _table: SqlTable

    # -- blocks and snapshots ------------------------------------------------------------------------------------

    def _begin_on_server(self) -> PostgresTransaction:
        session, _ = self._pool.borrow(WRITING, lambda session: session.do("BEGIN"), harmless=True)
        shared = PostgresTransaction(session, self._pool.give, self)
        self._transactions.add(shared)
        return shared

    def _new_snapshot(self, table: Any) -> PostgresSnapshot:
        return PostgresSnapshot(self, self._pool, table)

    def _begin_scan(self, table: Any, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        pool = self._pool
        session, begun = pool.borrow(READING, lambda one: begin_scan(one, table, keys, values=values), harmless=True)
        if begun[1] is None:
            pool.give(session)

        def done(*_: object) -> None:
            session.roll_back()
            pool.give(session)

        return Scan(session, session.lock, begun, self._scope, done, values=values, owner=self)

    @contextmanager
    def _loading_into(self, face: WritableTable, progress: Progress | None, *, replace: bool) -> Iterator[Loader]:
        table: Any = face._table
        block = Transaction(self, table)
        with block:
            shared: Any = block._open()
            if can_load(shared, table):
                with loading(face, shared, table, progress, replace=replace) as copying:
                    yield copying
                return
            block.rollback()
        with super()._loading_into(face, progress, replace=replace) as batches:
            yield batches

    def _apply_all(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        with self.transaction():
            super()._apply_all(changes)

    # -- tables --------------------------------------------------------------------------------------------------

    def _table_named(self, name: str) -> SqlTable:
        return SqlTable(f"{self.name}.{name}") if name else self._table

    def _make(self, table: Any) -> None:
        for tries in range(3):
            if self._pool.run(READING, table.exists, harmless=True):
                return
            self._check_writable()
            try:
                self._pool.run(WRITING, table.create, harmless=False)
            except error as exc:
                if tries == 2 or getattr(exc.__cause__, "sqlstate", None) not in _MADE_BY_ANOTHER:
                    raise

    def tables(self) -> list[str]:
        """The names of the further tables."""
        prefix = f"{self.name}."
        rows = self._read(self._table, lambda _, session: session.once(_TABLES, (prefix, prefix)))
        return sorted(name.removeprefix(prefix) for (name,) in rows)

    def drop_table(self, name: str) -> None:
        """Remove a further table and all its entries, as one change. Raises `KeyError` if it does not exist."""
        table = self._table_named(name)
        self._check_writable()
        if table is self._table or not self._read(table, lambda _, session: table.exists(session)):
            raise KeyError(name)
        self._write(table, lambda _, session: table.drop(session))

    # -- the rest ------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Figures of the database. The server counts the entries."""

        def ask(session: Session) -> tuple[int, int, str]:
            version = session.row("SELECT version()", ())
            return self._table.count(session), self._table.bytes_on_disk(session), "" if version is None else version[0]

        return self._stats(*self._pool.run(READING, ask, harmless=True))

    def sync(self) -> None:
        """Return when everything written through this handle is on the server's disk.

        That is so when a write returns, unless the server or the user is configured with `synchronous_commit=off`.
        """
        self._check()
        if not self.readonly:
            self._pool.run(WRITING, _sync, harmless=False)


_TABLES = """
SELECT table_name::text FROM information_schema.columns
WHERE table_schema = current_schema() AND left(table_name, length(%s)) = %s
GROUP BY table_name
HAVING count(*) = 4
AND count(CASE WHEN column_name IN ('key', 'rest', 'digest', 'value') AND data_type = 'bytea' THEN 1 END) = 4
"""


def _sync(session: Session) -> None:
    """Where commits do not wait for the disk: one that does, and with it all before it."""
    row = session.row("SELECT current_setting('synchronous_commit')", ())
    if row is not None and row[0] == "off":
        with session.atomic():
            session.once("SET LOCAL synchronous_commit = on")
            session.once("SELECT pg_logical_emit_message(true, 'durabledbm', 'sync')")
