"""remote: the same mapping on a server, for programs that have outgrown one machine.

    db = durabledbm.remote.open("postgresql://host/database", table="app")

It works with servers that speak PostgreSQL's protocol, and with Redis. The drivers are extras: `pip install
durabledbm[postgresql]` or `durabledbm[redis]`. They are imported when a database is opened.

The interface is that of `durabledbm.Database`; docs/scaling.md says which promises a server changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .failures import ConnectionLostError, not_installed

if TYPE_CHECKING:
    from .database import RemoteDatabase

__all__ = ["ConnectionLostError", "open"]

_POSTGRESQL = ("postgresql", "postgres")
_REDIS = ("redis", "rediss", "unix")


def open(
    url: str, flag: str = "c", *, table: str = "durabledbm", timeout: float | None = 30.0, max_connections: int = 16,
    **options: Any,
) -> RemoteDatabase:  # fmt: skip
    """Connect to a server and return a database there.

    url: `postgresql://user@host:port/database` or `redis://host:port/number`, with any parameter that the driver
        accepts. `PGPASSWORD` and `~/.pgpass`, which PostgreSQL's driver reads, are better than a password in the url.
    flag: "r" opens an existing table and writes nothing; "w" opens an existing table for reading and writing; "c"
        creates it if it is missing; "n" empties it.
    table: the table's name, used as it is. On Redis all keys begin with it.
    timeout: seconds to wait for a free connection of this handle or for another writer before `BusyError`; None waits
        for ever.
    max_connections: the largest number of connections that this handle uses at a time. A thread uses one while it reads
        or writes; a transaction, a snapshot, and an iterator over more than 500 entries use one as long as they exist.
    options: further parameters of the connection: libpq's, or those of `redis.Redis.from_url`.

    Raises `error` if the driver is not installed, `ConnectionLostError` if the server cannot be reached, `error` with
    errno ENOENT if the table is missing and the flag does not create it, `error` if a table of that name was not made
    by durabledbm, and `ValueError` for an invalid argument.
    """
    scheme = url.partition("://")[0]
    if scheme not in _POSTGRESQL + _REDIS:
        raise ValueError("the address must begin with postgresql://, redis://, rediss:// or unix://")
    if flag not in ("r", "w", "c", "n"):
        raise ValueError(f"Flag must be one of 'r', 'w', 'c', or 'n', not {flag!r}")
    if timeout is not None and not timeout >= 0:
        raise ValueError("timeout must be None or not negative")
    if max_connections < 1:
        raise ValueError("max_connections must be positive")
    if scheme in _REDIS:
        try:
            from .redis.database import open_redis
        except ImportError as exc:
            raise not_installed("redis", "redis", exc) from exc
        return open_redis(url, flag, table, timeout, max_connections, options)
    try:
        from .postgresql.database import open_postgresql
    except ImportError as exc:
        raise not_installed("psycopg", "postgresql", exc) from exc
    return open_postgresql(url, flag, table, timeout, max_connections, options)
