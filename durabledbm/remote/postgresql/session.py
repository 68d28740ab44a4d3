"""A session: one connection to a PostgreSQL server, and how statements are sent over it.

Results come in binary form. Exceptions of psycopg propagate unchanged: the caller knows what they mean.
"""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import Error
from psycopg.pq import TransactionStatus

from ...errors import error
from ..failures import ConnectionLostError, as_error
from ..pool import sessions
from ..waiting import OwnedLock, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection, Cursor

__all__ = ["READING", "WRITING", "Session", "connect"]

READING = "read committed"
"""The kind of sessions that only read, and their isolation: each statement sees all that was committed before it.

Gets and scans need no more. As serializable transactions they would make the server keep track of what they have
read, and end transactions of others because of it.
"""

WRITING = "serializable"
"""The kind of sessions that write, and their isolation: what they do is as if it had been done one after another."""

_UNUSED_MAX = 50
"""So many abandoned cursors are left open on the server."""

_KEPT_ROWS = 100
_KEPT_BYTES = 2**16
"""A result larger than this is not kept until the next statement."""


class Session:
    """A connection. Used by one thread at a time: `lock` is for sessions that several threads know of."""

    __slots__ = (
        "__weakref__", "_connection", "_cursor", "_has_input", "_names", "_unused", "kind", "lock", "orphaned",
        "returned", "where",
    )  # fmt: skip

    def __init__(self, connection: Connection[Any], kind: str, where: str) -> None:
        self._connection = connection
        self._cursor: Cursor[Any] = connection.cursor(binary=True)
        self._has_input = _input_of(connection.fileno())
        self._names = 0
        self._unused: deque[tuple[Scope, Iterable[str]]] = deque()
        self.kind = kind
        self.where = where
        self.lock = OwnedLock()
        self.orphaned = False
        """The process forked: the connection is the parent's."""
        self.returned: Callable[[], None] | None = None
        """While it is lent: to be called at the end of that."""
        sessions.add(self)

    def prepare(self, timeout: float | None) -> None:
        """Settings that hold as long as the connection. `timeout`: seconds to wait for the locks of others."""
        limit = 0 if timeout is None else max(1, round(timeout * 1000))
        self.once(
            "SELECT set_config('default_transaction_isolation', %s, false), set_config('lock_timeout', %s, false)",
            (self.kind, str(limit)),
        )

    def become(self, kind: str) -> bool:
        """Be of another kind from now on, if that is possible."""
        try:
            self.once("SELECT set_config('default_transaction_isolation', %s, false)", (kind,))
        except Error:
            return False
        self.kind = kind
        return True

    # -- statements ----------------------------------------------------------------------------------------------

    def do(self, statement: str, parameters: Sequence[object] = ()) -> int:
        """Carry out a statement, and return the number of rows that it changed."""
        return self._cursor.execute(statement.encode(), parameters).rowcount

    def row(self, query: str, parameters: Sequence[object]) -> tuple[Any, ...] | None:
        """The only row of a result, or None."""
        row: tuple[Any, ...] | None = self._cursor.execute(query.encode(), parameters).fetchone()
        if row is not None and type(row[-1]) is bytes and len(row[-1]) > _KEPT_BYTES:
            self._let_go()
        return row

    def rows(self, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """All rows of a result."""
        rows: list[tuple[Any, ...]] = self._cursor.execute(query.encode(), parameters).fetchall()
        if len(rows) > _KEPT_ROWS:
            self._let_go()
        return rows

    def types(self, query: str) -> list[int]:
        """The object ids of the types of a result's columns."""
        return [column.type_code for column in self._cursor.execute(query.encode(), ()).description or ()]

    def once(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """As `do` or `rows`, for a statement that is not to be prepared, since it will not come again."""
        cursor = self._cursor.execute(statement.encode(), parameters, prepare=False)
        rows: list[tuple[Any, ...]] = [] if cursor.description is None else cursor.fetchall()
        self._let_go()
        return rows

    def copy_in(self, statement: str) -> Any:
        """The block of a COPY to the server."""
        return self._cursor.copy(statement.encode())

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """A block whose statements are one: a transaction, or part of the one that is open."""
        if not self.idle:
            yield
            return
        self.do("BEGIN")
        try:
            yield
        except BaseException:
            self.roll_back()
            raise
        self.do("COMMIT")

    def roll_back(self) -> None:
        """End the transaction, if that is possible. A session that could not end it is not idle, or lost."""
        try:
            if not (self.lost or self.orphaned):
                self.once("ROLLBACK")
        except Error:
            pass

    def leave(self, scope: Scope, cursors: Iterable[str]) -> None:
        """Have cursors closed some time, unless `scope` has ended with them. This may be called at any moment."""
        self._unused.append((scope, cursors))

    def close_unused(self) -> None:
        """Close the cursors that were left, if they are many: all of them at once."""
        if len(self._unused) < _UNUSED_MAX or self.failed:
            return
        names: list[str] = []
        while self._unused:
            scope, cursors = self._unused.popleft()
            if not scope.ended:
                names += cursors
        if names:
            self._cursor.execute("; ".join(f"CLOSE {name}" for name in names).encode(), binary=False)

    def new_name(self) -> str:
        """A name for a cursor."""
        self._names += 1
        return f"c{self._names}"

    def _let_go(self) -> None:
        """Forget the last result: a session may be idle for long."""
        self._cursor.close()
        self._cursor = self._connection.cursor(binary=True)

    # -- what state it is in -------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no transaction is open."""
        return self._connection.pgconn.transaction_status == TransactionStatus.IDLE

    @property
    def failed(self) -> bool:
        """Whether a statement failed in a transaction, of which the server accepts only the end now."""
        return self._connection.pgconn.transaction_status == TransactionStatus.INERROR

    @property
    def lost(self) -> bool:
        """Whether the connection is known to be broken, or closed."""
        return self._connection.closed

    @property
    def stale(self) -> bool:
        """Whether the server has said something, or hung up, while nothing was asked. Only for idle sessions."""
        return self._connection.closed or self._has_input()

    def check(self) -> None:
        """Raise if it cannot be used because of a fork."""
        if self.orphaned:
            raise error(f"{self.where}: what was begun before a fork belongs to the parent process")

    def failure(self, exc: BaseException, *, committed: bool | None = False) -> error:
        """`exc`, an exception of psycopg that a statement raised, as one of ours. `committed`: if it is lost."""
        return as_error(exc, self.where, lost=self.lost, committed=committed)

    def close(self) -> None:
        """Close the connection. The server rolls back what is open. Doing it twice is harmless."""
        if not self.orphaned:
            self._connection.close()

    def __del__(self) -> None:
        try:
            self.close()
            if self.returned is not None:
                self.returned()
        except Exception:  # it was never complete, or the interpreter ends
            pass

    def orphan(self) -> None:
        """In a child process, after a fork: let go of the connection without a word to the server.

        Its socket is the parent's, too. So nothing may be written to it, not even the goodbye that closing sends:
        what the driver still writes goes nowhere.
        """
        self.orphaned = True
        if not self._connection.closed:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._connection.fileno())
            os.close(nowhere)
            _inherited.append(self._connection)  # a thread of the parent may have been in the middle of using it


def connect(parameters: dict[str, Any], kind: str, where: str, timeout: float | None) -> Session:
    """A new session. `parameters` are those of `psycopg.connect`."""
    try:
        session = Session(psycopg.connect(**parameters, autocommit=True), kind, where)
    except psycopg.ProgrammingError as exc:
        raise ValueError(f"the address or an option is wrong: {' '.join(str(exc).split())}") from None
    except Error as exc:
        raise ConnectionLostError(f"{where}: cannot connect: {' '.join(str(exc).split())}") from exc
    try:
        session.prepare(timeout)
    except Error as exc:
        failure = session.failure(exc)
        session.close()
        raise failure from exc
    return session


def _input_of(descriptor: int) -> Callable[[], bool]:
    """A function that tells whether there is something to be read, without waiting."""
    if sys.platform == "win32" or not hasattr(select, "poll"):
        return lambda: bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))


_inherited: list[object] = []
