"""Snapshots: the content of a database at one instant, for as long as it is needed.

A snapshot pins the commit that it reads, so later commits do not reuse its pages. It never waits, and nothing waits for
it. It costs space: pages that later commits replace are not reused before the snapshot ends.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from ._engine import tables
from ._engine.pager import Pager
from ._engine.readers import Reader
from ._engine.store import Store
from ._engine.view import Scope, State, View
from .mapping import Key, Readable, as_bytes
from .streams import opened, parted_items
from .table import TableSnapshot

__all__ = ["Pin", "Snapshot"]

_ROWS_MAX = 100_000
"""Entries of a generation that a snapshot keeps in memory to find them again quickly. There are two."""

_VALUE_MAX = 512
"""Larger values are not kept."""


class Pin:
    """Keeps one commit's pages from being reused until it is released or dropped."""

    __slots__ = ("_reader", "_store", "state")

    def __init__(self, store: Store, *, displaced: bool = False) -> None:
        self._reader = Reader()
        self._store: Store | None = store
        self.state: State = store.pin(self._reader, displaced=displaced)

    def release(self) -> None:
        """End the pin. Releasing twice is harmless."""
        if self._store is not None:
            self._store.unpin(self._reader)
            self._store = None

    def __del__(self) -> None:
        if hasattr(self, "_store") and self._store is not None:  # else it was interrupted before it began, or released
            self._store.unpin_dropped(self._reader)


class _Rows(dict[bytes, bytes | None]):
    """The values that a snapshot has read. `rows[key]` is the value or None; only a missing key runs Python code."""

    __slots__ = ("_old", "_scope", "_view")

    def __init__(self, view: View, scope: Scope) -> None:
        super().__init__()
        self._old: dict[bytes, bytes | None] = {}
        self._view = view
        self._scope = scope

    def __missing__(self, key: bytes) -> bytes | None:
        if self._scope.ended:
            raise self._scope.closed_error()
        value = self._old.get(key)
        if value is None:
            value = self._view.get(key)
        if value is not None and len(value) <= _VALUE_MAX:
            if len(self) >= _ROWS_MAX:  # what is used again comes back from the old ones, the rest goes with them
                self._old = dict(self)
                self.clear()
            self[key] = value
        return value


class Snapshot(Readable):
    """A read-only mapping of one instant, made by `Database.snapshot()`. A context manager; `close()` ends it."""

    __slots__ = ("__weakref__", "_owner", "_pin", "_rows", "_scope", "_state", "_view")

    def __init__(
        self, pin: Pin, view: View | None = None, owner: object = None, state: State | None = None
    ) -> None:
        self._pin = pin
        self._owner = owner
        """The handle that it was taken of, which stays open for as long as the snapshot is used."""
        self._state = pin.state if state is None else state
        self._view = self._state.view if view is None else view
        self._scope = Scope("the snapshot has been closed")
        self._rows = _Rows(self._view, self._scope)

    @property
    def txid(self) -> int:
        """The number of the commit that the snapshot shows."""
        return self._state.meta.txid

    @property
    def closed(self) -> bool:
        """Whether the snapshot has ended."""
        return self._scope.ended

    def after_fork(self) -> None:
        """In a child process: the next look-up reads the file, and so pins it for the child."""
        self._rows = _Rows(self._view, self._scope)

    def close(self) -> None:
        """End the snapshot, so that its pages can be reused. Iterators over it end with `ClosedError`."""
        self._scope.end()
        self._rows = _Rows(self._view, self._scope)  # a thread may be about to put something into the old ones
        self._pin.release()
        self._owner = None

    def end_overdue(self) -> None:
        """A commit needs its pages, and it is older than it may be."""
        self._scope.end_because("the snapshot was ended: it was older than its max_age when a commit needed its pages")
        self.close()

    def __enter__(self) -> Snapshot:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self) -> None:
        if self._scope.ended:
            raise self._scope.closed_error()

    def __getitem__(self, key: Key) -> bytes:
        value = self._rows[key if type(key) is bytes else as_bytes(key, "key")]
        if value is None:
            raise KeyError(key)
        return value

    def _has(self, key: bytes) -> bool:
        self._check()
        return key in self._rows or self._view.find(key) is not None

    def _find(self, key: bytes, *, whole: bool = True) -> bytes | None:
        if not whole:
            self._check()
            return self._view.find(key)
        return self._rows[key]

    def _value_reader(self, key: bytes) -> io.BufferedReader | None:
        self._check()
        return opened(key, self._view, self._scope, self)

    def table(self, name: str) -> TableSnapshot:
        """The table of that name, as it was at this instant."""
        self._check()
        return TableSnapshot(self, name)

    def tables(self) -> list[str]:
        """The names of the tables that there were, ascending."""
        self._check()
        return [name for name, _ in tables.names(self._view)]

    def _scoped_view(self) -> tuple[View, Scope, object]:
        self._check()
        return self._view, self._scope, self

    @property
    def _pager(self) -> Pager:
        return self._view.tree.pager

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        self._check()
        return self._view.items(start, stop, reverse=reverse, scope=self._scope, pin=self)

    def _parted_items(self) -> Iterator[tuple[bytes, Any]]:
        self._check()
        return parted_items(self._view, self._scope, self)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        self._check()
        return self._view.keys(start, stop, reverse=reverse, scope=self._scope, pin=self)

    def __len__(self) -> int:
        self._check()
        if self._view is self._state.view:
            return self._state.meta.entry_count
        return sum(1 for _ in self._view.keys())  # noqa: SIM118 - a view is no dict

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of commit {self.txid}{', closed' if self._scope.ended else ''}>"
