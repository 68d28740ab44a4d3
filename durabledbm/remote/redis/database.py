"""A database on a Redis server: what `remote.open("redis://...")` returns. `scripts` describes how it is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from ..database import RemoteDatabase, Stats
from ..faces import KeyRange
from ..pool import Pool
from .readers import Readers
from .scan import Scan
from .scripts import DROP
from .session import Session, connect, connections
from .snapshot import RedisSnapshot
from .table import Bounds, RedisTable
from .transaction import RedisTransaction

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

__all__ = ["RedisDatabase", "open_redis"]

T = TypeVar("T")


def open_redis(
    url: str, flag: str, table: str, timeout: float | None, max_connections: int, options: dict[str, Any]
) -> RedisDatabase:
    """See `remote.open`."""
    if not table or table.startswith("}"):
        raise ValueError(f"a table cannot have the name {table!r}")
    made = connections(url, options)
    where = _location(made)
    pool: Pool[Session] = Pool(lambda _: connect(made, where), redis.RedisError, where, max_connections, timeout)
    place = b"{%b}" % table.encode()
    main = RedisTable(place, place, table)
    database = RedisDatabase(pool, main, flag == "r")
    return database._opened(flag, lambda: database._exists(main))


def _location(made: ConnectionPool) -> str:
    """The address without what is secret in it."""
    options = made.connection_kwargs
    number = options.get("db") or 0
    if "path" in options:
        return f"unix://{options['path']}?db={number}"
    return f"redis://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{number}"


class RedisDatabase(RemoteDatabase):
    """A database on a Redis server, in whose memory it must fit.

    Each write is atomic, and as durable as the server is configured (`appendfsync always` waits for the disk). Writes
    and transactions are serializable. What a transaction has read and written is kept in this process until its end.
    """

    __slots__ = ("_readers",)

    _table: RedisTable

    def _build(self, pool: Pool[Any], table: Any, readonly: bool) -> None:
        self._readers = Readers(pool, table.database)
        super()._build(pool, table, readonly)

    def _run(self, operation: Callable[[Any], T], *, harmless: bool) -> T:
        return self._readers.run(operation, harmless=harmless)

    # -- blocks and snapshots ------------------------------------------------------------------------------------

    def _begin_on_server(self) -> RedisTransaction:
        shared = RedisTransaction(self, self._readers, self._table)
        self._transactions.add(shared)
        return shared

    def _new_snapshot(self, table: Any) -> RedisSnapshot:
        return RedisSnapshot(self, self._readers, table)

    def _begin_scan(self, table: Any, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        readers, bounds = self._readers, Bounds.of(keys)
        reader = readers.begin()
        first = self._run(lambda session: table.page_and_enter(session, bounds, reader, values=values), harmless=True)
        if first.bound is None:  # that was all, so the reader did not begin
            readers.cancel(reader)
        seen = table.as_of(reader)

        def turn(rest: Bounds) -> Any:
            return self._run(lambda session: seen.page(session, rest, values=values), harmless=True)

        return Scan(first, bounds, turn, self._scope, lambda: readers.end(reader), values=values, owner=self)

    def _end(self) -> None:
        self._readers.end_all()

    # -- tables --------------------------------------------------------------------------------------------------

    def _table_named(self, name: str) -> RedisTable:
        if not name:
            return self._table
        return RedisTable(self._table.database, self._table.where + b"/" + name.encode(), f"{self.name}/{name}")

    def _names(self) -> bytes:
        return self._table.database + b":tables"

    def _own_name(self, table: RedisTable) -> bytes:
        return table.where[len(self._table.where) + 1 :]

    def _exists(self, table: RedisTable) -> bool:
        def ask(session: Session) -> bool:
            return bool(session.command("SISMEMBER", self._names(), self._own_name(table))) or table.has_any(session)

        return self._run(ask, harmless=True)

    def _make(self, table: Any) -> None:
        if not self._exists(table):
            self._check_writable()
            self._run(lambda session: session.command("SADD", self._names(), self._own_name(table)), harmless=True)

    def tables(self) -> list[str]:
        """The names of the further tables."""
        self._check()
        names = self._run(lambda session: session.command("SMEMBERS", self._names()), harmless=True)
        return sorted(name.decode() for name in names if name)

    def drop_table(self, name: str) -> None:
        """Remove a further table and all its entries, as one change. Raises `KeyError` if it does not exist.

        Inside a transaction it takes effect immediately and is not part of it.
        """
        table = self._table_named(name)
        self._check_writable()
        dropped = name and self._run(
            lambda session: session.script(DROP, table.database, table.where, name.encode()), harmless=False
        )
        if not dropped:
            raise KeyError(name)

    # -- the rest ------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Figures of the database."""

        def ask(session: Session) -> tuple[int, int, str]:
            names = (self._table.where + b":entries", self._table.where + b":order")
            size = sum(session.command("MEMORY", "USAGE", name) or 0 for name in names)
            about = session.command("INFO", "server").decode()
            version = next((line for line in about.splitlines() if line.startswith("redis_version:")), "")
            return self._table.count(session), size, f"Redis {version.partition(':')[2]}"

        self._check()
        return self._stats(*self._run(ask, harmless=True))

    def sync(self) -> None:
        """Does nothing: the server has every write, and keeps it as it is configured to."""
        self._check()
