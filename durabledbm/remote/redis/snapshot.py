"""Snapshots of a database on a Redis server. `scripts` tells how they are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import error
from ..faces import KeyRange, Operation, TableOperations
from ..snapshots import Snapshot
from .scan import Scan
from .scripts import ENTER
from .table import Bounds, RedisTable, TableAsOf

if TYPE_CHECKING:
    from .database import RedisDatabase

__all__ = ["RedisSnapshot", "new_reader"]

T = TypeVar("T")


def new_reader() -> bytes:
    """A name that no other reader has."""
    return os.urandom(12).hex().encode()


class RedisSnapshot(Snapshot):
    """A snapshot that is a reader on the server."""

    __slots__ = ("_pid", "reader")

    def __init__(self, database: RedisDatabase, table: RedisTable) -> None:
        self.reader = new_reader()
        self._pid = os.getpid()
        super().__init__(database, table.as_of(self.reader))
        database._enter(self.reader)
        database._run(lambda session: session.script(ENTER, table.database, self.reader), harmless=True)

    def close(self) -> None:
        if not self._life.ended:
            self._life.end()
            self.database._leave(self.reader)
            try:
                self.database._say_goodbyes()
            except error:
                pass  # a server that is away will give the reader up by itself

    def __del__(self) -> None:
        try:
            if not self._life.ended:
                self._life.end()
                self.database._leave(self.reader)
        except Exception:  # it was never complete, or the interpreter ends
            pass

    def _seen(self, table: Any) -> TableAsOf:
        seen: TableAsOf = table.as_of(self.reader)
        return seen

    def _check(self) -> None:
        super()._check()
        if self._pid != os.getpid():
            raise error(f"{self.database.location}: what was begun before a fork belongs to the parent process")

    def _read(self, table: TableOperations, operation: Operation[T]) -> T:
        self._check()
        result: T = self.database._run(partial(operation, table), harmless=True)
        return result

    def _scan(self, table: Any, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        seen = self._seen(table)

        def turn(rest: Bounds) -> Any:
            return self._read(table, lambda _, session: seen.page(session, rest, values=values))

        bounds = Bounds.of(keys)
        return Scan(turn(bounds), bounds, turn, self._life, lambda: None, values=values, owner=self)
