"""A session: one connection to a Redis server, and how commands and scripts are sent over it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha1
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ...errors import ClosedError, ReadOnlyError, error
from ..failures import ConnectionLostError
from ..pool import sessions
from .scripts import GONE, IDLE

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

__all__ = ["Session", "connect", "connections"]

_LOST = (redis.ConnectionError, redis.TimeoutError)


class Session:
    """A connection. Used by one thread at a time."""

    __slots__ = ("__weakref__", "_connection", "_in_order", "kind", "orphaned", "returned", "where")

    def __init__(self, connection: Any, where: str) -> None:
        self._connection = connection
        self._in_order = True
        """Every command that was sent has been answered."""
        self.kind = ""
        self.where = where
        self.orphaned = False
        """The process forked: the connection is the parent's."""
        self.returned: Callable[[], None] | None = None
        """While it is lent: to be called at the end of that."""
        sessions.add(self)

    def command(self, *parts: bytes | str | int) -> Any:
        """What the server answers to a command."""
        self._in_order = False
        self._connection.send_command(*parts)
        try:
            answer = self._connection.read_response()
        except redis.ResponseError:
            self._in_order = True
            raise
        self._in_order = True
        return answer

    def script(self, script: str, database: bytes, *parts: bytes | str | int) -> Any:
        """What a script of `scripts` returns. The server keeps scripts; it is told one when it does not know it."""
        arguments = (1, database + b":readers", database, IDLE, *parts)
        try:
            return self.command("EVALSHA", _digest(script), *arguments)
        except redis.exceptions.NoScriptError:
            return self.command("EVAL", script, *arguments)

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return self._in_order

    @property
    def lost(self) -> bool:
        """Whether the connection is known to be broken, or an answer is missing."""
        return not self._in_order

    @property
    def stale(self) -> bool:
        """Whether the server has said something, or hung up, while nothing was asked."""
        try:
            return bool(self._connection.can_read(0))
        except (redis.RedisError, OSError):
            return True

    def become(self, kind: str) -> bool:
        """All sessions are of one kind."""
        return kind == self.kind

    def failure(self, exc: BaseException, *, committed: bool | None = False) -> error:
        """`exc`, an exception of redis-py that a command raised, as one of ours. `committed`: if it is lost."""
        said = " ".join(str(exc).split())
        if isinstance(exc, _LOST):
            outcome = "" if committed is False else "; whether the last write was done is not known: read to find out"
            return ConnectionLostError(f"{self.where}: the connection was lost ({said}){outcome}", committed=committed)
        if said.startswith(GONE):
            minutes = IDLE // 60
            return ClosedError(f"{self.where}: given up by the server, since it was not used for {minutes} minutes")
        if isinstance(exc, redis.exceptions.ReadOnlyError):
            return ReadOnlyError(f"{self.where}: the server is a replica, which may only be read")
        return error(f"{self.where}: {said}")

    def close(self) -> None:
        """Close the connection. Doing it twice is harmless."""
        self._in_order = False
        self._connection.disconnect()

    def __del__(self) -> None:
        try:
            self.close()
            if self.returned is not None:
                self.returned()
        except Exception:  # it was never complete, or the interpreter ends
            pass

    def orphan(self) -> None:
        """In a child process, after a fork: let go of the connection, which is the parent's, without using it."""
        self.orphaned = True
        self.close()


@cache
def _digest(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


def connections(url: str, options: dict[str, Any]) -> ConnectionPool:
    """What makes connections. Raises `ValueError` for an address or an option that cannot be."""
    try:
        # The driver would send a command again whose connection broke. Whether that is right is for the pool to say.
        made: ConnectionPool = redis.ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        _new(made)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"the address or an option is wrong: {exc}") from None
    if made.connection_kwargs.get("decode_responses"):
        raise ValueError("decode_responses must not be set: keys and values are bytes")
    return made


def _new(made: ConnectionPool) -> Any:
    """A connection that the driver's pool knows nothing of: it would count it for ever."""
    return made.connection_class(**made.connection_kwargs)


def connect(made: ConnectionPool, where: str) -> Session:
    """A new session."""
    connection = _new(made)
    try:
        connection.connect()
    except redis.RedisError as exc:
        raise ConnectionLostError(f"{where}: cannot connect: {' '.join(str(exc).split())}") from exc
    return Session(connection, where)
