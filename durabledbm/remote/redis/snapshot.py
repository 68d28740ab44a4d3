"""Snapshots of a database on a Redis server. `scripts` tells how they are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import error
from ..faces import KeyRange, Operation, ReadableTable, SnapshotTable, TableOperations
from ..waiting import Life
from .scan import Scan
from .scripts import ENTER
from .table import Bounds, RedisTable, TableAsOf

if TYPE_CHECKING:
    from .database import RedisDatabase

__all__ = ["Snapshot", "new_reader"]

T = TypeVar("T")


def new_reader() -> bytes:
    """A name that no other reader has."""
    return os.urandom(12).hex().encode()


class Snapshot(ReadableTable):
    """A read-only mapping of one instant, made by `RedisDatabase.snapshot()`. `close()` ends it, or `with`.

    Any thread may use it. It ends by itself (`ClosedError`) when it has not been used for ten minutes.
    """

    __slots__ = ("__weakref__", "_life", "_pid", "_table", "database", "reader")

    _table: TableAsOf

    def __init__(self, database: RedisDatabase, table: RedisTable) -> None:
        self._life = Life("the snapshot has been closed")
        self.reader = new_reader()
        self._pid = os.getpid()
        self._table = table.as_of(self.reader)
        self.database = database
        """The handle that it was taken of, which stays open for as long as the snapshot is used."""
        database._enter(self.reader)
        database._run(lambda session: session.script(ENTER, table.database, self.reader), harmless=True)

    @property
    def closed(self) -> bool:
        """Whether the snapshot has ended."""
        return self._life.ended

    def table(self, name: str) -> SnapshotTable:
        """Another table of the database, as of the same instant."""
        table: Any = self.database._made(name)
        return SnapshotTable(self, table.as_of(self.reader))

    def close(self) -> None:
        """End the snapshot. Iterators over it end with `ClosedError`. Closing twice is harmless."""
        if not self._life.ended:
            self._life.end()
            self.database._leave(self.reader)
            try:
                self.database._say_goodbyes()
            except error:
                pass  # a server that is away will give the reader up by itself

    def __enter__(self) -> Snapshot:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            if not self._life.ended:
                self._life.end()
                self.database._leave(self.reader)
        except Exception:  # it was never complete, or the interpreter ends
            pass

    def _check(self) -> None:
        self._life.check()
        if self._pid != os.getpid():
            raise error(f"{self.database.location}: what was begun before a fork belongs to the parent process")

    def _read(self, table: TableOperations, operation: Operation[T]) -> T:
        self._check()
        return self.database._run(partial(operation, table), harmless=True)

    def _scan(self, table: Any, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        seen = table.as_of(self.reader)

        def turn(rest: Bounds) -> Any:
            return self._read(table, lambda _, session: seen.page(session, rest, values=values))

        bounds = Bounds.of(keys)
        return Scan(turn(bounds), bounds, turn, self._life, lambda: None, values=values, owner=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.database.location!r}, {'closed' if self.closed else 'open'}>"
