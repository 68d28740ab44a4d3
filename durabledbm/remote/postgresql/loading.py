"""Loading many changes into a table on a PostgreSQL server: by COPY, in bounded memory, verified, as one commit.

The changes go to a temporary table first, numbered as they come, so a stream may change a key several times. From
there the server brings them into the table. Then what arrived is read back, and must have the digest of what was sent;
and each key's last change must be what the table holds. If anything fails nothing has happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from psycopg import Error

from ..._files.arguments import Progress
from ...errors import error
from ..faces import WritableTable
from .keys import split
from .session import Session
from .sqltable import SqlTable

if TYPE_CHECKING:
    from .transaction import PostgresTransaction

__all__ = ["can_load", "loading"]

_UNSUPPORTED = ("0A000", "42601")
"""What an engine says to a statement of PostgreSQL's that it does not know."""

_MODULUS = 2**256

_FETCH_ROWS = 500
_FETCH_BYTES = 2**24
"""What is read back at a time."""

_ARRIVED = "pg_temp.durabledbm_arrived"

_TYPES = ("int8", "bytea", "bytea", "bytea", "bytea")


class _Digest:
    """A digest of changes, each with its number, in whatever order they are added."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0

    def add(self, number: int, key: bytes, value: bytes | None) -> None:
        digest = sha256(b"%d %d %d\n" % (number, len(key), -1 if value is None else len(value)))
        digest.update(key)
        if value is not None:
            digest.update(value)
        self.count += 1
        self.total = (self.total + int.from_bytes(digest.digest(), "big")) % _MODULUS

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Digest) and (self.count, self.total) == (other.count, other.total)

    __hash__ = None  # type: ignore[assignment]


class _Copying:
    """A COPY that is under way: a `Loader`."""

    def __init__(self, copy: Any, check_size: Any) -> None:
        self._copy = copy
        self._check_size = check_size
        self._last: bytes | None = None
        self.sent = _Digest()
        self.largest = 1
        """Bytes of the largest change."""
        self.once_each = True
        """The keys came in ascending order, so none twice, and none was deleted: as in a dump."""

    def change(self, key: bytes, value: bytes | None) -> None:
        """See `Loader`."""
        self._check_size(key, value or b"")
        if value is None or (self._last is not None and key <= self._last):
            self.once_each = False
        self._last = key
        self.largest = max(self.largest, len(key) + len(value or b""))
        self._copy.write_row((self.sent.count, *split(key), value))
        self.sent.add(self.sent.count, key, value)


def can_load(shared: PostgresTransaction, table: SqlTable) -> bool:
    """Prepare the transaction for `loading`. False if the server cannot do it: then the transaction has failed."""
    try:
        with shared.lock:
            shared.do(f"LOCK TABLE {table.sql_name} IN SHARE ROW EXCLUSIVE MODE")  # writers wait, readers do not
            shared.do(
                "CREATE TEMPORARY TABLE durabledbm_arrived "
                "(number int8, key bytea, rest bytea, digest bytea, value bytea) ON COMMIT DROP"
            )
    except error as exc:
        if getattr(exc.__cause__, "sqlstate", None) not in _UNSUPPORTED:
            raise
        return False
    return True


@contextmanager
def loading(
    face: WritableTable, shared: PostgresTransaction, table: SqlTable, progress: Progress | None, *, replace: bool
) -> Iterator[_Copying]:
    """A block that takes changes, in the transaction `shared`. They are there when it ends."""
    session = shared.session
    with shared.lock:
        try:
            with session.copy_in(f"COPY {_ARRIVED} FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(_TYPES)
                copying = _Copying(copy, face._check_size)
                yield copying
            session.once(f"ANALYZE {_ARRIVED}")
            if replace:
                table.clear(session)
            _merge(session, table, once_each=copying.once_each)
            _verify(session, table, copying, progress)
            session.once(f"DROP TABLE {_ARRIVED}")
        except Error as exc:
            raise shared.noted(exc) from exc


def _latest(*, once_each: bool) -> str:
    """The last change of each key."""
    if once_each:
        return _ARRIVED
    return f"(SELECT DISTINCT ON (key, digest) * FROM {_ARRIVED} ORDER BY key, digest, number DESC)"


def _merge(session: Session, table: SqlTable, *, once_each: bool) -> None:
    latest, name = _latest(once_each=once_each), table.sql_name
    if not once_each:
        session.once(
            f"DELETE FROM {name} AS t USING {latest} AS one "
            "WHERE one.value IS NULL AND t.key = one.key AND t.digest = one.digest"
        )
    session.once(
        f"INSERT INTO {name} (key, rest, digest, value) "
        f"SELECT key, rest, digest, value FROM {latest} AS one WHERE value IS NOT NULL "
        "ON CONFLICT (key, digest) DO UPDATE SET value = excluded.value"
    )


def _verify(session: Session, table: SqlTable, copying: _Copying, progress: Progress | None) -> None:
    """Raise `error` unless the table holds what was sent."""
    found, sent = _Digest(), copying.sent
    name = session.new_name()
    session.once(f"DECLARE {name} NO SCROLL CURSOR FOR SELECT number, key, rest, value FROM {_ARRIVED}")
    count = max(1, min(_FETCH_ROWS, _FETCH_BYTES // copying.largest))
    while rows := session.once(f"FETCH {count} FROM {name}"):
        for number, key, rest, value in rows:
            found.add(number, key + rest, value)
        if progress is not None:
            progress(sent.count + found.count, 2 * sent.count)
    session.once(f"CLOSE {name}")
    ((different,),) = session.once(
        f"SELECT count(*) FROM {_latest(once_each=copying.once_each)} AS one "
        f"LEFT JOIN {table.sql_name} AS t ON t.key = one.key AND t.digest = one.digest "
        "WHERE t.value IS DISTINCT FROM one.value"
    )
    if found != sent or different:
        raise error(f"{session.where}: what was read back is not what was written; nothing was loaded")
