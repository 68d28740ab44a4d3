"""The readers of one handle: snapshots and long iterators, for which the server keeps the values that others replace.

The server learns at the next operation which readers have ended, because a finalizer cannot tell it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from ...errors import error
from ..pool import Pool
from .scripts import LEAVE
from .session import Session

__all__ = ["Readers"]

T = TypeVar("T")


class Readers:
    """The open readers of a handle, and the way of every operation to the server."""

    def __init__(self, pool: Pool[Session], database: bytes) -> None:
        self._pool = pool
        self._database = database
        self._open: dict[bytes, int] = {}
        """Each open reader, and the process that began it."""
        self._ended: deque[bytes] = deque()
        """Readers that have ended, and the server does not know it yet."""

    @property
    def server(self) -> str:
        """The address of the server, for messages."""
        return self._pool.where

    def run(self, operation: Callable[[Session], T], *, harmless: bool) -> T:
        """Run an operation on the server, after telling it which readers have ended. `harmless`: see `Pool.run`."""
        if self._ended:
            self.tell_server()
        return self._pool.run("", operation, harmless=harmless)

    def begin(self) -> bytes:
        """Record a reader that is about to begin, and return its name, which no other reader has."""
        reader = os.urandom(12).hex().encode()
        self._open[reader] = os.getpid()
        return reader

    def cancel(self, reader: bytes) -> None:
        """Forget a reader that did not begin on the server."""
        self._open.pop(reader)

    def end(self, reader: bytes) -> None:
        """Record that a reader has ended. Finalizers may call this at any moment."""
        if self._open.pop(reader, None) == os.getpid():  # else it is the parent's
            self._ended.append(reader)

    def end_all(self) -> None:
        """End all readers, as far as the server can be reached."""
        for reader in list(self._open):
            self.end(reader)
        self.tell_server_if_possible()

    def tell_server(self) -> None:
        """Tell the server which readers have ended."""
        ended = []
        while self._ended:
            try:
                ended.append(self._ended.popleft())
            except IndexError:
                break  # another thread was faster
        if ended:
            self._pool.run("", lambda session: session.script(LEAVE, self._database, *ended), harmless=True)

    def tell_server_if_possible(self) -> None:
        """The same; a server that is away gives the readers up by itself."""
        try:
            self.tell_server()
        except error:
            pass
