"""Snapshots of a database on a Redis server. `scripts` describes how they are stored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeVar

from ...errors import error
from ..faces import KeyRange, Operation, TableOperations
from ..snapshots import Snapshot
from .readers import Readers
from .scan import Scan
from .scripts import ENTER
from .table import Bounds, RedisTable, TableAsOf

__all__ = ["RedisSnapshot"]

T = TypeVar("T")


class RedisSnapshot(Snapshot):
    """A snapshot that is a reader on the server."""

    __slots__ = ("_pid", "_readers", "reader")

    def __init__(self, database: object, readers: Readers, table: RedisTable) -> None:
        self._readers = readers
        self._pid = os.getpid()
        self.reader = readers.begin()
        super().__init__(database, table.as_of(self.reader))
        readers.run(lambda session: session.script(ENTER, table.database, self.reader), harmless=True)

    def close(self) -> None:
        if not self._scope.ended:
            self._scope.end()
            self._readers.end(self.reader)
            self._readers.tell_server_if_possible()

    def __del__(self) -> None:
        try:
            if not self._scope.ended:
                self._scope.end()
                self._readers.end(self.reader)
        except Exception:  # it was never complete, or the interpreter ends
            pass

    def _seen(self, table: Any) -> TableAsOf:
        seen: TableAsOf = table.as_of(self.reader)
        return seen

    def _check(self) -> None:
        super()._check()
        if self._pid != os.getpid():
            raise error(f"{self._readers.server}: what was begun before a fork belongs to the parent process")

    def _read(self, table: TableOperations, operation: Operation[T]) -> T:
        self._check()
        return self._readers.run(partial(operation, table), harmless=True)

    def _scan(self, table: Any, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        seen = self._seen(table)

        def turn(rest: Bounds) -> Any:
            return self._read(table, lambda _, session: seen.page(session, rest, values=values))

        bounds = Bounds.of(keys)
        return Scan(turn(bounds), bounds, turn, self._scope, lambda: None, values=values, owner=self)
