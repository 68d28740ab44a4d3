"""The sessions of a handle: shared by all its threads, made when needed, replaced when broken.

A session is a connection to a server. It is *lent* for an operation and comes back idle. A session whose server has
gone away while it was idle is noticed before anything is sent, so replacing it loses nothing. If the connection breaks
during a read, the read is repeated once on a new one. A write is not repeated: whether it was committed is unknown, and
the caller is told so.

Finalizers also return sessions, at any moment and in the middle of any function of this module on the same thread. So
there is no lock: the shared objects are a set, deques and a `SimpleQueue`, whose single operations are atomic.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from ..errors import BusyError, ClosedError, error
from .failures import is_conflict
from .waiting import Backoff

__all__ = ["Pool", "PooledSession", "sessions"]

_LOOK_AGAIN = 0.1
"""Seconds after which a thread that waits for a session looks again, in case a wake-up was lost."""


class PooledSession(Protocol):
    """What is asked of a session."""

    kind: str
    """What it is for. Sessions of different kinds are not exchanged."""
    orphaned: bool
    """The process forked: the connection is the parent's."""
    returned: Callable[[], None] | None
    """While it is lent: to be called at the end of that."""

    @property
    def idle(self) -> bool:
        """Whether nothing was begun on it that has not ended."""

    @property
    def stale(self) -> bool:
        """Whether it is broken, or the server has said something while nothing was asked. Only if it is idle."""

    @property
    def lost(self) -> bool:
        """Whether it is known to be broken."""

    def become(self, kind: str) -> bool:
        """Be of another kind from now on, if that is possible."""

    def failure(self, exc: BaseException, *, committed: bool | None) -> error:
        """What the driver raised, as one of ours. `committed`: if the connection is lost."""

    def close(self) -> None:
        """End the connection. Doing it twice is harmless."""

    def orphan(self) -> None:
        """In a child process, after a fork: let go of the connection without a word to the server."""


S = TypeVar("S", bound=PooledSession)
T = TypeVar("T")


class Pool(Generic[S]):
    """Sessions with one server, at most `limit` of them lent at a time.

    make: makes a session of a kind, or raises one of our errors.
    failures: what the driver raises.
    where: the server, in messages.
    timeout: seconds to wait for a session, and to do a write again that met others; None is for ever.
    """

    def __init__(
        self, make: Callable[[str], S], failures: type[Exception], where: str, limit: int, timeout: float | None
    ) -> None:
        self._make = make
        self._failures = failures
        self.where = where
        self.limit = limit
        self.timeout = timeout
        self.closed = False
        self.retries = 0
        """How often a write met another one, and was done again."""
        self.reconnects = 0
        """How often a session was found broken, and replaced."""
        self._begin_empty()
        _pools.add(self)

    def _begin_empty(self) -> None:
        self._idle: dict[str, deque[S]] = {}
        self._lent: set[object] = set()
        """Tickets: one for each session that is lent, and for each that a thread is about to get."""
        self._waiting: set[object] = set()
        self._freed: SimpleQueue[None] = SimpleQueue()

    # -- work ----------------------------------------------------------------------------------------------------

    def run(self, kind: str, operation: Callable[[S], T], *, harmless: bool) -> T:
        """The result of `operation`, which is atomic, on a session of that kind. See `borrow`."""
        session, result = self.borrow(kind, operation, harmless=harmless)
        self.give(session)
        return result

    def borrow(self, kind: str, operation: Callable[[S], T], *, harmless: bool) -> tuple[S, T]:
        """A session, to be given back, and what `operation` returned as the first thing done on it.

        It is done again while it meets others, and, if it is `harmless`, once if the connection breaks.
        """
        backoff = Backoff(self.timeout)
        broken = False
        while True:
            session = self.take(kind)
            try:
                return session, operation(session)
            except self._failures as exc:
                lost, failure = session.lost, session.failure(exc, committed=False if harmless else None)
                self.give(session)
                if lost and harmless and not broken:
                    broken = True
                    self.reconnects += 1
                    continue
                if is_conflict(exc) and backoff.pause():
                    self.retries += 1
                    continue
                raise failure from exc
            except BaseException:
                self.give(session)
                raise

    # -- sessions ------------------------------------------------------------------------------------------------

    def take(self, kind: str) -> S:
        """An idle session. Raises `BusyError` if all are lent for `timeout` seconds."""
        backoff = Backoff(self.timeout)
        ticket = object()
        try:
            while True:
                self.check()
                # A thread records its ticket first and counts then, so there are never more sessions than the limit,
                # however many threads come at the same time. Those that are too many withdraw.
                self._lent.add(ticket)
                if len(self._lent) <= self.limit:
                    session = self._ready(kind)
                    session.returned = partial(self._lent.discard, ticket)
                    return session
                self._lent.discard(ticket)
                self._wait(ticket, backoff.left())
        except BaseException:
            self._lent.discard(ticket)
            raise

    def _wait(self, ticket: object, left: float | None) -> None:
        """Wait until a session may be free. `left` are the seconds that are left."""
        if left is not None and left <= 0:
            raise BusyError(
                f"{self.where}: all {self.limit} connections of this handle are in use, by iterators, snapshots and "
                "transactions that are open; max_connections sets how many there may be"
            )
        self._waiting.add(ticket)
        try:
            self._freed.get(timeout=_LOOK_AGAIN if left is None else min(left, _LOOK_AGAIN))
        except Empty:
            pass
        finally:
            self._waiting.discard(ticket)

    def give(self, session: S) -> None:
        """Take a session back. One that is not idle is closed. Giving it back twice is harmless."""
        returned, session.returned = session.returned, None
        if returned is None:
            return
        try:
            if self.closed or session.orphaned or not session.idle:
                session.close()
            else:
                self._idle.setdefault(session.kind, deque()).append(session)
                if self.closed:  # meanwhile, by another thread
                    self._close_idle()
        finally:
            returned()
            if self._waiting:
                self._freed.put(None)

    def _ready(self, kind: str) -> S:
        """An idle session, or a new one; or one of another kind, if there are as many as there may be."""
        session = self._idle_one(kind)
        if session is not None:
            return session
        for other, idle in list(self._idle.items()):
            if other != kind and len(self._lent) + len(idle) > self.limit:
                session = self._idle_one(other)
                if session is not None and session.become(kind):
                    return session
                if session is not None:
                    session.close()
        return self._make(kind)

    def _idle_one(self, kind: str) -> S | None:
        idle = self._idle.get(kind)
        while idle:
            try:
                session = idle.pop()
            except IndexError:
                break  # another thread was faster
            if not session.stale:
                return session
            session.close()
            self.reconnects += 1
        return None

    def counts(self) -> tuple[int, int]:
        """How many sessions are lent, and how many are idle."""
        return len(self._lent), sum(map(len, self._idle.values()))

    # -- ends ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `ClosedError` after `close()`."""
        if self.closed:
            raise ClosedError

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back. Closing twice is harmless."""
        self.closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        for idle in list(self._idle.values()):
            while idle:
                try:
                    idle.pop().close()
                except IndexError:
                    break  # another thread was faster

    def after_fork(self) -> None:
        """In a child process: begin anew, without the sessions of the parent."""
        self._begin_empty()


_pools: weakref.WeakSet[Pool[Any]] = weakref.WeakSet()
sessions: weakref.WeakSet[Any] = weakref.WeakSet()
"""All that there are. Each adds itself when it is made."""


def _after_fork() -> None:
    for session in list(sessions):  # first of all: a session that is dropped before would say goodbye for the parent
        session.orphan()
    for pool in list(_pools):
        pool.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
