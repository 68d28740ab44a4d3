"""Iterators over a table: lazy, over one state, in bounded memory.

The first page is fetched immediately, and is usually all: one round trip, and no session is kept. Otherwise a cursor is
opened on the server before the call that made the iterator returns, in a transaction that sees one state: its own, or
the snapshot or block that the iterator belongs to. Later writes in a block do not reach its cursors, because
PostgreSQL's are insensitive.

A page has at most `PAGE` rows of at most `WHOLE_MAX` bytes each. Larger entries are left out of it and come from a
second cursor over the same state, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from psycopg import Error

from ..faces import KeyRange
from ..waiting import OwnedLock, Scope
from .session import Session
from .sqltable import SqlTable

__all__ = ["PAGE", "Cursors", "Scan", "begin_scan"]

PAGE = 500
"""Rows that are asked for at a time: at most 16 MiB."""


class Cursors(NamedTuple):
    """Names of cursors that are open: over all rows of a range, and over the large ones alone."""

    all: str
    large: str


Row = tuple[bytes, "bytes | None", "bytes | None"]


def begin_scan(session: Session, table: SqlTable, keys: KeyRange, *, values: bool) -> tuple[list[Row], Cursors | None]:
    """All rows of the range, if they fit into a page; or cursors over them, in a transaction."""
    session.close_unused()
    rows, large, parameters = table.entries_of(keys, values=values)
    page: list[Row] = session.rows(f"{rows} LIMIT {PAGE}", parameters)
    if len(page) < PAGE and all(rest is not None for _, rest, _ in page):
        return page, None
    if session.idle:
        session.do("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    cursors = Cursors(session.new_name(), session.new_name())
    session.once(f"DECLARE {cursors.all} NO SCROLL CURSOR FOR {rows}", parameters)
    session.once(f"DECLARE {cursors.large} NO SCROLL CURSOR FOR {large}", parameters)
    return [], cursors


class Scan(Iterator[Any]):
    """What iterates: pairs of key and value, or, without `values`, keys.

    `lock` is held while `session` is used.
    `done(scope, cursors)` is called once, when nothing more is wanted of the cursors: at the end, or when nobody
    refers to the iterator any more. So it may be called at any moment, and must not wait for a lock. `owner` exists as
    long as the iterator is used.
    """

    __slots__ = ("_cursors", "_done", "_lock", "_more", "_owner", "_rows", "_scope", "_session", "_values")

    def __init__(
        self, session: Session, lock: OwnedLock, begun: tuple[list[Row], Cursors | None], scope: Scope,
        done: Callable[[Scope, Cursors], object], *, values: bool, owner: object,
    ) -> None:  # fmt: skip
        rows, self._cursors = begun
        self._rows = iter(rows)
        self._more = self._cursors is not None
        self._session = session
        self._lock = lock
        self._scope = scope
        self._done = done
        self._values = values
        self._owner = owner

    def __next__(self) -> Any:
        scope = self._scope
        while True:
            if scope.ended:
                self.close()
                scope.check()
            for key, rest, value in self._rows:
                if rest is None:
                    key, rest, value = self._large()  # noqa: PLW2901 - the same row, whole
                if rest:
                    key += rest  # noqa: PLW2901
                return (key, value) if self._values else key
            if not self._more:
                self.close()
                raise StopIteration
            assert self._cursors is not None
            rows = self._fetch(self._cursors.all, PAGE)
            self._more = len(rows) == PAGE
            self._rows = iter(rows)

    def _large(self) -> Row:
        assert self._cursors is not None
        (row,) = self._fetch(self._cursors.large, 1)
        return row

    def _fetch(self, cursor: str, count: int) -> list[Row]:
        session = self._session
        session.check()
        with self._lock:
            self._scope.check()
            try:
                return session.once(f"FETCH {count} FROM {cursor}")
            except Error as exc:
                raise session.failure(exc) from exc

    def close(self) -> None:
        """Nothing more is wanted. Doing it twice is harmless."""
        cursors, self._cursors, self._more = self._cursors, None, False
        if cursors is not None:
            self._rows = iter(())
            self._done(self._scope, cursors)

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # it was never complete, or the interpreter ends
            pass
