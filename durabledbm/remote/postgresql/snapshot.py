"""Snapshots: a table at one instant, for as long as it is needed.

A snapshot is a read-only transaction of the server that sees one state ("repeatable read"). It never waits, and nothing
waits for it. It costs space on the server: rows that are replaced meanwhile cannot be cleaned up.

It has one session, and more when several threads read at the same time: the first one exports what it sees, and the
others import it. Where a server cannot do that, threads take turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

from psycopg import Error

from ...errors import BusyError
from ..faces import KeyRange, Operation, TableOperations
from ..pool import Pool
from ..snapshots import Snapshot
from .scan import Scan, begin_scan
from .session import READING, Session
from .sqltable import SqlTable

__all__ = ["PostgresSnapshot"]

T = TypeVar("T")

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


_NAME = re.compile(r"[\w-]+")
"""What names of exported snapshots look like: they stand in a statement as they are."""


def _begin_first(session: Session) -> str | None:
    """Begin to see one state, and return the name under which others may see it, if the server gives one."""
    session.do(_BEGIN)
    try:
        row = session.row("SELECT pg_export_snapshot()", ())
    except Error:
        if session.lost:
            raise
        session.roll_back()
        session.do(_BEGIN)
        session.row("SELECT 1", ())  # from now on it sees this instant
        return None
    return str(row[0]) if row is not None and _NAME.fullmatch(str(row[0])) else None


class PostgresSnapshot(Snapshot):
    """A snapshot that has one session, and more when several threads read at once."""

    __slots__ = ("_exported", "_pool", "_sessions")

    def __init__(self, database: object, pool: Pool[Session], table: SqlTable) -> None:
        super().__init__(database, table)
        self._pool = pool
        session, self._exported = pool.borrow(READING, _begin_first, harmless=True)
        self._sessions: list[Session] = [session]

    def close(self) -> None:
        self._scope.end()
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            if session.lock.is_free():
                session.roll_back()
                self._pool.give(session)
            # else an operation is under way, and the session is closed when that is over and drops it

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # it was never complete, or the interpreter ends
            pass

    def _read(self, table: TableOperations, operation: Operation[T]) -> T:
        self._scope.check()
        session = self._free_session()
        session.check()
        with session.lock:
            self._scope.check()
            try:
                return operation(table, session)
            except Error as exc:
                raise session.failure(exc) from exc

    def _free_session(self) -> Session:
        """A session that is not in use, or a further one; or one that will soon be free."""
        sessions = self._sessions.copy()
        for session in sessions:
            if session.lock.is_free():
                return session
        self._scope.check()
        if self._exported is None or sessions[0].orphaned:
            return sessions[0]
        try:
            further, _ = self._pool.borrow(READING, self._import, harmless=True)
        except BusyError:
            return sessions[0]
        self._sessions.append(further)
        return self._sessions[-1]

    def _import(self, session: Session) -> None:
        session.do(_BEGIN)
        session.once(f"SET TRANSACTION SNAPSHOT '{self._exported}'")

    def _scan(self, table: Any, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        session, begun = self._read(
            table, lambda _, session: (session, begin_scan(session, table, keys, values=values))
        )
        return Scan(session, session.lock, begun, self._scope, session.leave, values=values, owner=self)
