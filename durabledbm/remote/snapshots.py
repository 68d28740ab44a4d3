"""Snapshots: what they have in common, on whatever server."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar

from .faces import KeyRange, Operation, ReadableTable, TableOperations
from .waiting import Scope

__all__ = ["Snapshot", "SnapshotTable"]

T = TypeVar("T")


class Snapshot(ReadableTable):
    """A read-only mapping of one instant, made by `snapshot()` of a database on a server. A context manager; `close()`
    ends it.

    Any thread may use it. On PostgreSQL it ends with its connection: after the connection breaks, every use raises
    `ConnectionLostError`. On Redis it ends by itself (`ClosedError`) after ten minutes without use.
    """

    __slots__ = ("__weakref__", "_scope", "_table", "database")

    def __init__(self, database: Any, table: TableOperations) -> None:
        self._scope = Scope("the snapshot has been closed")
        self._table = table
        self.database = database
        """The handle that it was taken of, which stays open for as long as the snapshot is used."""

    @property
    def closed(self) -> bool:
        """Whether the snapshot has ended."""
        return self._scope.ended

    def table(self, name: str) -> SnapshotTable:
        """Another table of the database, as of the same instant."""
        return SnapshotTable(self, self._seen(self.database._made(name)))

    def close(self) -> None:
        """End the snapshot. Iterators over it end with `ClosedError`. Closing twice is harmless."""
        raise NotImplementedError

    def _seen(self, table: TableOperations) -> TableOperations:
        """The table as it is to be read in the snapshot."""
        return table

    def _check(self) -> None:
        self._scope.check()

    def __enter__(self: Self) -> Self:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} of {self._table.name!r} at {self.database.location!r}, {state}>"


Self = TypeVar("Self", bound=Snapshot)


class SnapshotTable(ReadableTable):
    """A table as of the instant of a snapshot. Made by `table()` of the snapshot, and over when that is."""

    __slots__ = ("_snapshot", "_table")

    def __init__(self, snapshot: Snapshot, table: TableOperations) -> None:
        self._snapshot = snapshot
        self._table = table

    def _check(self) -> None:
        self._snapshot._check()

    def _read(self, table: TableOperations, operation: Operation[T]) -> T:
        return self._snapshot._read(table, operation)

    def _scan(self, table: TableOperations, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        return self._snapshot._scan(table, keys, values=values)
