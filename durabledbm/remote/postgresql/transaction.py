"""The steps of a transaction on a PostgreSQL server, on a session of its own.

The server's transactions are serializable. It lets them run concurrently where possible, and refuses one whose result
is not serializable. That is a `BusyError`, from any statement or from the end of the block. Nothing was committed then,
and the whole block may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from psycopg import Error

from ...errors import BusyError, error
from ..blocks import ServerTransaction
from ..faces import KeyRange, Operation
from ..waiting import Scope
from .scan import Scan, begin_scan
from .session import Session

__all__ = ["PostgresTransaction"]

T = TypeVar("T")

_IN_FAILED_TRANSACTION = "25P02"


class PostgresTransaction(ServerTransaction):
    """A transaction that has begun on `session`, which `give` takes back."""

    def __init__(self, session: Session, give: Callable[[Session], None], owner: object) -> None:
        super().__init__()
        self.session = session
        self._lent: Session | None = session
        """To be returned once: after that it belongs to others."""
        self._give = give
        self._owner = owner
        self._failure: error | None = None

    @property
    def failure(self) -> error | None:
        """After a failed statement the server accepts nothing but the way back."""
        return (self._failure or error("the server gave up")) if self.session.failed else None

    def do(self, statement: str) -> None:
        """Carry out a statement. The lock is held."""
        self.carry_out(None, lambda _, session: session.once(statement))

    def carry_out(self, table: Any, operation: Operation[T]) -> T:
        try:
            return operation(table, self.session)
        except Error as exc:
            raise self.noted(exc) from exc

    def noted(self, exc: Error) -> error:
        """`exc`, which a statement raised, as one of ours, kept as the reason why the transaction has failed."""
        if exc.sqlstate == _IN_FAILED_TRANSACTION and self._failure is not None:
            text = f"the transaction can only be rolled back: an earlier operation in it failed ({self._failure})"
            return BusyError(text) if isinstance(self._failure, BusyError) else error(text)
        self._failure = self.session.failure(exc)
        return self._failure

    def scan(self, table: Any, keys: KeyRange, scope: Scope, *, values: bool) -> Iterator[Any]:
        session = self.session
        begun = self.carry_out(table, lambda _, session: begin_scan(session, table, keys, values=values))
        return Scan(session, self.lock, begun, scope, session.leave, values=values, owner=self._owner)

    def save(self, number: int) -> None:
        self.do(f"SAVEPOINT s{number}")

    def undo(self, number: int) -> None:
        self.do(f"ROLLBACK TO s{number}")

    def release(self, number: int) -> None:
        self.do(f"RELEASE s{number}")

    def restart(self) -> None:
        self.do("ROLLBACK")
        self.do("BEGIN")

    def commit(self) -> None:
        session = self.session
        committed: bool | None = False
        try:
            if session.stale:  # as far as can be known before it is asked for: then nothing was committed
                session.once("SELECT 1")
            committed = None
            session.do("COMMIT")
        except Error as exc:
            raise session.failure(exc, committed=committed) from exc

    def finish(self) -> None:
        session, self._lent = self._lent, None
        if session is not None:
            if not session.idle:
                session.roll_back()
            self._give(session)

    def __del__(self) -> None:
        try:
            self.abandon()
            if self._lent is not None:
                self._give(self._lent)  # not idle, so it is closed: nothing is waited for
        except Exception:  # it was never complete, or the interpreter ends
            pass
