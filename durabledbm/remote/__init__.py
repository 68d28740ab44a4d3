"""remote: the same mapping on a server, for programs that have outgrown one machine.

    db = durabledbm.remote.open("postgresql://host/database", table="app")

What speaks PostgreSQL's protocol, and Redis. The drivers are extras: `pip install durabledbm[postgresql]`, or
`durabledbm[redis]`. They are imported when a database is opened.

The faces are those of `durabledbm.Database`; docs/scaling.md tells what a server changes in the promises.
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
    """Connect to a server, and return a database there.

    url: `postgresql://user@host:port/database` or `redis://host:port/number`, with what else the driver understands.
        Better than a password in it are `PGPASSWORD` and `~/.pgpass`, which PostgreSQL's driver reads.
    flag: "r" read an existing table, writing nothing; "w" read and write an existing table; "c" create it if it is
        missing; "n" empty it.
    table: the table's name, used as it is. On Redis the names of all keys begin with it.
    timeout: seconds to wait for others (a connection of this handle that is free, a writer) before `BusyError`; None
        waits for ever.
    max_connections: how many connections this handle uses at most at a time. Threads use one each while they read or
        write; a transaction, a snapshot, and an iterator over more than 500 entries use one for as long as they last.
    options: further parameters of the connection: libpq's, or those of `redis.Redis.from_url`.

    Raises `error` if the driver is not installed, `ConnectionLostError` if the server cannot be reached, `error` with
    errno ENOENT if the table is missing and the flag does not create it, `error` if a table of that name is not
    durabledbm's, and `ValueError` for an argument that cannot be.
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
