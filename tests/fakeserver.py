"""A model of the part of a Redis server, and of its client `redis.Redis`, that `durabledbm.redisdb` is built on.

It follows the documentation of the commands, to the letter where that is inconvenient:

* A command of a pipeline is not run before `execute`, which runs all of them, with nothing of others in between.
* What the real client refuses to send is refused: a hash or a sorted set of no members, a field of another type.
* A command for the one kind of value fails on the other. A hash or a sorted set without members does not exist.
* The bounds of a range by bytes are "-", "+", "[" or "(" with bytes, and a limit; the members must have equal scores.

`before`, if set, is called with the name of each command before it happens: a test may do something in between there,
or raise. Its errors are told as the real ones are: by the package in which their class is defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar


class RedisError(Exception):
    """What every failure of Redis is."""

    __module__ = "redis.exceptions"


class FakeServer:
    """The server at one address, for as many clients as there are."""

    def __init__(self) -> None:
        self.data: dict[bytes, Any] = {}
        self.before: Callable[[str], None] | None = None
        self.commands: list[str] = []
        """Names in the order in which they were run; those of one transaction stand in one string."""

    def meet(self, name: str) -> None:
        if self.before is not None:
            self.before(name)
        self.commands.append(name)

    def run(self, name: str, *args: Any, **options: Any) -> Any:
        return getattr(self, f"_{name}")(*args, **options)

    def _hash(self, name: bytes) -> dict[bytes, bytes]:
        return self._value(name, _Hash)  # type: ignore[no-any-return]

    def _value(self, name: bytes, kind: type) -> Any:
        value = self.data.get(name)
        if value is None:
            return kind()
        if type(value) is not kind:
            raise RedisError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _keep(self, name: bytes, value: Any) -> None:
        if value:
            self.data[name] = value
        else:
            self.data.pop(name, None)

    def _hget(self, name: bytes, field: bytes) -> bytes | None:
        return self._hash(name).get(_sent(field))

    def _hmget(self, name: bytes, fields: Iterable[bytes]) -> list[bytes | None]:
        wanted = [_sent(field) for field in fields]
        if not wanted:
            raise RedisError("wrong number of arguments for 'hmget' command")
        held = self._hash(name)
        return [held.get(field) for field in wanted]

    def _hlen(self, name: bytes) -> int:
        return len(self._hash(name))

    def _hset(self, name: bytes, *, mapping: Mapping[bytes, bytes]) -> int:
        if not mapping:
            raise RedisError("'hset' with no key value pairs")
        held = self._hash(name)
        before = len(held)
        held.update({_sent(field): _sent(value) for field, value in mapping.items()})
        self._keep(name, held)
        return len(held) - before

    def _hsetnx(self, name: bytes, field: bytes, value: bytes) -> int:
        held = self._hash(name)
        before = len(held)
        held.setdefault(_sent(field), _sent(value))
        self._keep(name, held)
        return len(held) - before

    def _hdel(self, name: bytes, *fields: bytes) -> int:
        held = self._hash(name)
        gone = sum(held.pop(_sent(field), None) is not None for field in fields)
        self._keep(name, held)
        return gone

    def _zadd(self, name: bytes, scores: Mapping[bytes, float]) -> int:
        if not scores:
            raise RedisError("ZADD requires at least one element/score pair")
        held = self._value(name, _Sorted)
        before = len(held)
        held.update({_sent(member): score for member, score in scores.items()})
        self._keep(name, held)
        return len(held) - before

    def _zrem(self, name: bytes, *members: bytes) -> int:
        held = self._value(name, _Sorted)
        gone = sum(held.pop(_sent(member), None) is not None for member in members)
        self._keep(name, held)
        return gone

    def _zrangebylex(self, name: bytes, low: bytes, high: bytes, *, start: int, num: int) -> list[bytes]:
        return self._between(name, low, high)[start : start + num]

    def _zrevrangebylex(self, name: bytes, high: bytes, low: bytes, *, start: int, num: int) -> list[bytes]:
        return self._between(name, low, high)[::-1][start : start + num]

    def _between(self, name: bytes, low: bytes, high: bytes) -> list[bytes]:
        held = self._value(name, _Sorted)
        assert len(set(held.values())) <= 1, "with different scores the answer is unspecified"
        return [member for member in sorted(held) if _above(member, low) and _below(member, high)]

    def _delete(self, *names: bytes) -> int:
        return sum(self.data.pop(name, None) is not None for name in names)


class _Hash(dict[bytes, bytes]):
    """A value of the one kind."""


class _Sorted(dict[bytes, float]):
    """A value of the other kind: scores by member."""


def _sent(value: Any) -> bytes:
    """What the client sends: bytes here, since nothing else is ever given to it."""
    if type(value) is not bytes:
        raise RedisError(f"Invalid input of type: '{type(value).__name__}'")
    return value


def _above(member: bytes, bound: bytes) -> bool:
    if bound in (b"-", b"+"):
        return bound == b"-"
    return member >= bound[1:] if _inclusive(bound) else member > bound[1:]


def _below(member: bytes, bound: bytes) -> bool:
    if bound in (b"-", b"+"):
        return bound == b"+"
    return member <= bound[1:] if _inclusive(bound) else member < bound[1:]


def _inclusive(bound: bytes) -> bool:
    if bound[:1] not in (b"[", b"("):
        raise RedisError("min or max not valid string range item")
    return bound[:1] == b"["


class Redis:
    """A client. `servers` are the addresses where somebody answers."""

    servers: ClassVar[dict[str, FakeServer]] = {}
    opened: ClassVar[list[Redis]] = []
    """Every client that was made, for tests to look at."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url, self.options = url, options
        self.closed = False
        Redis.opened.append(self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Redis:
        return cls(url, options)

    def _server(self) -> FakeServer:
        assert not self.closed
        if self.url not in self.servers:
            raise RedisError(f"Error 111 connecting to {self.url}. Connection refused.")
        return self.servers[self.url]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not hasattr(FakeServer, f"_{name}"):
            raise AttributeError(name)

        def command(*args: Any, **options: Any) -> Any:
            server = self._server()
            server.meet(name)
            return server.run(name, *args, **options)

        return command

    def pipeline(self, *, transaction: bool) -> _Pipeline:
        assert transaction, "without it, commands of others may come in between"
        return _Pipeline(self._server())

    def close(self) -> None:
        self.closed = True


class _Pipeline:
    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._queue: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not hasattr(FakeServer, f"_{name}"):
            raise AttributeError(name)
        return lambda *args, **options: self._queue.append((name, args, options))

    def execute(self) -> list[Any]:
        self._server.meet(" ".join(name for name, _, _ in self._queue))
        return [self._server.run(name, *args, **options) for name, args, options in self._queue]

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._queue = []
