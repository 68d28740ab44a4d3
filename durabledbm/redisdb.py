"""RedisDatabase: the mapping face of a database, over a Redis server. For programs that have outgrown one machine.

    durabledbm.dump.load("dump", durabledbm.redisdb.open("redis://host", "orders"))

What may live here: a thin adapter, which needs the `redis` package (`pip install durabledbm[redis]`). The entries are
in one hash, and their keys in a sorted set in which all scores are equal, so that Redis keeps them in the order of
bytes. Both names hold the same hash tag, so in a cluster both are on the same node, and each write is one MULTI.

What differs from a `Database`: an iterator shows what is there when it gets there, not the state at its start; there
are no transactions and snapshots; durability is what the server is configured for (`appendfsync always` is "full").
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .errors import ClosedError, error
from .mapping import Writable

__all__ = ["RedisDatabase", "open"]

_PAGE = 1000
"""Keys that are asked for at a time when iterating."""


def open(url: str, name: str, **options: Any) -> RedisDatabase:
    """Connect to a server, and return the database `name` there. `options` are those of `redis.Redis.from_url`.

    Raises `error` if the `redis` package is missing or the server does not answer.
    """
    try:
        import redis  # type: ignore[import-not-found, unused-ignore]
    except ImportError as exc:
        raise error("the package 'redis' is not installed: pip install durabledbm[redis]") from exc
    database = RedisDatabase(redis.Redis.from_url(url, **options), name)
    try:
        len(database)
    except BaseException:
        database.close()
        raise
    return database


class RedisDatabase(Writable):
    """A dict of bytes to bytes on a Redis server, in the order of the keys.

    `client` is a `redis.Redis` that does not decode responses. Failures of Redis are raised as `error`.
    """

    def __init__(self, client: Any, name: str) -> None:
        self.name = name
        self.closed = False
        self._client = client
        self._entries = b"{%b}:entries" % name.encode()
        self._order = b"{%b}:order" % name.encode()

    @contextmanager
    def _redis(self) -> Iterator[Any]:
        if self.closed:
            raise ClosedError
        try:
            yield self._client
        except Exception as exc:
            if type(exc).__module__.partition(".")[0] != "redis":
                raise
            raise error(f"{self.name}: {exc}") from exc

    @contextmanager
    def _multi(self) -> Iterator[Any]:
        """A pipeline that is one atomic change; `execute()` it."""
        with self._redis() as redis, redis.pipeline(transaction=True) as pipeline:
            yield pipeline

    # -- one key -------------------------------------------------------------------------------------------------

    def _find(self, key: bytes) -> bytes | None:
        with self._redis() as redis:
            value: bytes | None = redis.hget(self._entries, key)
            return value

    def _put(self, key: bytes, value: bytes) -> None:
        self._update({key: value})

    def _delete(self, key: bytes) -> bool:
        return self._pop(key) is not None

    def _pop(self, key: bytes) -> bytes | None:
        with self._multi() as pipeline:
            pipeline.hget(self._entries, key)
            pipeline.hdel(self._entries, key)
            pipeline.zrem(self._order, key)
            value: bytes | None = pipeline.execute()[0]
            return value

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        with self._multi() as pipeline:
            pipeline.hsetnx(self._entries, key, default)
            pipeline.zadd(self._order, {key: 0})
            pipeline.hget(self._entries, key)
            value: bytes = pipeline.execute()[2]
            return value

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        while (key := next(self._keys(None, None, True), None)) is not None:
            value = self._pop(key)
            if value is not None:
                return key, value
        return None

    def _writable(self) -> bool:
        return True

    # -- all -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._redis() as redis:
            count: int = redis.hlen(self._entries)
            return count

    def _update(self, changes: dict[bytes, bytes]) -> None:
        with self._multi() as pipeline:
            pipeline.hset(self._entries, mapping=changes)
            pipeline.zadd(self._order, dict.fromkeys(changes, 0))
            pipeline.execute()

    def clear(self) -> None:
        """Delete all entries."""
        with self._redis() as redis:
            redis.delete(self._entries, self._order)

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        for keys in self._pages(start, stop, reverse):
            with self._redis() as redis:
                values = redis.hmget(self._entries, keys)
            yield from ((key, value) for key, value in zip(keys, values, strict=True) if value is not None)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        for keys in self._pages(start, stop, reverse):
            yield from keys

    def _pages(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[list[bytes]]:
        low = b"-" if start is None else b"[" + start
        high = b"+" if stop is None else b"(" + stop
        while True:
            with self._redis() as redis:
                if reverse:
                    keys: list[bytes] = redis.zrevrangebylex(self._order, high, low, start=0, num=_PAGE)
                else:
                    keys = redis.zrangebylex(self._order, low, high, start=0, num=_PAGE)
            if keys:
                yield keys
            if len(keys) < _PAGE:
                return
            if reverse:
                high = b"(" + keys[-1]
            else:
                low = b"(" + keys[-1]

    def sync(self) -> None:
        """There is nothing to do: the server has every write, and keeps it as it is configured to."""
        if self.closed:
            raise ClosedError

    def close(self) -> None:
        """Close the connection. Closing twice is harmless."""
        if not self.closed:
            self.closed = True
            self._client.close()

    def __enter__(self) -> RedisDatabase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {'closed' if self.closed else 'open'}>"
