"""Tables: more than one mapping in a file. Made by `table(name)` of a database, a transaction or a snapshot.

A table is its owner's content under a prefix (see `_engine.catalog`); everything else, from finding the newest commit
to the caller's transaction, is the owner's. A look-up first asks the catalog for the table's id. If it then finds
nothing under that id, the table may have been emptied or dropped in between; so it asks again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ._engine import tables
from ._engine.catalog import Record, TableKey, name_key
from ._engine.pager import Pager
from ._engine.view import Scope, View
from .mapping import Readable, Writable
from .streams import opened

__all__ = ["Table", "TableSnapshot", "TransactionTable", "WithTables", "checked_name"]

T = TypeVar("T")


class Source(Protocol):
    """What a table uses of its owner to read."""

    def _find(self, key: bytes, *, whole: bool = True) -> bytes | None: ...

    def _scoped_view(self) -> tuple[View, Scope, object]: ...

    @property
    def _pager(self) -> Pager: ...

    def _check(self) -> None: ...


class Owner(Source, Protocol):
    """What a table uses of its owner to read and write."""

    @property
    def path(self) -> str: ...

    def _change_table(self, operation: Callable[..., T], name: str, *arguments: Any) -> T: ...

    def _writable(self) -> bool: ...


def checked_name(name: object, of: str = "table") -> str:
    """The name of a table, or a checkpoint, if it is one. Raises `TypeError` or `ValueError`."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a {of} must be str, not {type(name).__name__}")
    name = str.__str__(name)  # the text itself: a subclass, such as an enum of names, may show itself as another one
    if not name:
        reason = ": the main table is the database itself" if of == "table" else ""
        raise ValueError(f"the name of a {of} must not be empty{reason}")
    name.encode()  # raises `UnicodeEncodeError`, which is a `ValueError`, for what is no text
    return name


class WithTables(Writable):
    """What a database and a transaction have in common beside being a mapping, which is the main table."""

    __slots__ = ()

    def _change_table(self, operation: Callable[..., T], name: str, *arguments: Any) -> T:
        """Make an atomic change to a table: `operation(changes, name, *arguments)`."""
        raise NotImplementedError

    def _scoped_view(self) -> tuple[View, Scope, object]:
        """The present content, what ends iterators over it, and what they must keep alive."""
        raise NotImplementedError

    def tables(self) -> list[str]:
        """The names of all tables, ascending. The main table has no name, and is not listed."""
        view, _, pin = self._scoped_view()
        try:
            return [name for name, _ in tables.names(view)]
        finally:
            del pin

    def drop_table(self, name: str) -> None:
        """Delete a table and all its entries in one atomic change, whose commit frees their pages.

        Raises `KeyError` if there is no table of that name.
        """
        if not self._change_table(tables.drop, checked_name(name)):
            raise KeyError(name)


class ReadableTable(Readable):
    """A read-only mapping: one table."""

    __slots__ = ("_key", "_source", "name")

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self.name = checked_name(name)
        """The name of the table."""
        self._key = name_key(self.name)

    def _check(self) -> None:
        self._source._check()

    def _record(self) -> Record | None:
        return tables.record_of(self._source._find(self._key), self._source._pager)

    def _find(self, key: bytes, *, whole: bool = True) -> bytes | None:
        record = self._record()
        while record is not None:
            value = self._source._find(TableKey(record.prefix + key), whole=whole)
            if value is not None:
                return value
            before, record = record, self._record()
            if record is not None and record.table_id == before.table_id:
                return None
        return None

    def _has(self, key: bytes) -> bool:
        return self._find(key, whole=False) is not None

    def _value_reader(self, key: bytes) -> io.BufferedReader | None:
        view, scope, pin = self._source._scoped_view()
        table = tables.table_view(view, self.name)
        return None if table is None else opened(table.key(key), table, scope, pin)

    def __len__(self) -> int:
        record = self._record()
        return 0 if record is None else record.entries

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        view, scope, pin = self._source._scoped_view()
        table = tables.table_view(view, self.name)
        return iter(()) if table is None else table.items(start, stop, reverse=reverse, scope=scope, pin=pin)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        view, scope, pin = self._source._scoped_view()
        table = tables.table_view(view, self.name)
        return iter(()) if table is None else table.keys(start, stop, reverse=reverse, scope=scope, pin=pin)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._source!r}>"


class TableSnapshot(ReadableTable):
    """A read-only mapping: one table at one instant. Made by `Snapshot.table()` and `Table.snapshot()`."""

    __slots__ = ()

    if TYPE_CHECKING:
        _source: Any

    @property
    def txid(self) -> int:
        """The number of the commit that it shows."""
        return self._source.txid  # type: ignore[no-any-return]

    @property
    def closed(self) -> bool:
        """Whether the snapshot has ended."""
        return self._source.closed  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the snapshot, with all its tables."""
        self._source.close()

    def __enter__(self) -> TableSnapshot:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class TransactionTable(ReadableTable, Writable):
    """A dict of bytes to bytes, ordered by key: one table in a transaction. Made by `Transaction.table()`."""

    __slots__ = ()

    if TYPE_CHECKING:
        _source: Owner

        def __init__(self, source: Owner, name: str) -> None: ...

    def _change(self, operation: Callable[..., T], *arguments: Any) -> T:
        return self._source._change_table(operation, self.name, *arguments)

    def _writable(self) -> bool:
        return self._source._writable()

    def _put(self, key: bytes, value: bytes) -> None:
        self._change(tables.put, key, value)

    def _delete(self, key: bytes) -> bool:
        return self._change(tables.discard, key)

    def _pop(self, key: bytes) -> bytes | None:
        return self._change(tables.pop, key)

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        return self._change(tables.pop_last)

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        return self._change(tables.set_default, key, default)

    def _update(self, changes: dict[bytes, bytes]) -> None:
        self._change(tables.update, changes)

    def clear(self) -> None:
        """Delete all entries in one atomic change. The table stays."""
        self._change(tables.clear)


class Table(TransactionTable):
    """A dict of bytes to bytes, ordered by key: one table. Made by `Database.table()`.

    Each single write is an atomic commit, as those to the database itself are; inside a transaction it is part of that.
    The table exists from its first write on, until `Database.drop_table`; a write after that makes it anew. `len()`
    takes no longer for a large table. The table keeps its database open for as long as it is used.
    """

    __slots__ = ("_known",)

    if TYPE_CHECKING:
        _source: Any

    def __init__(self, source: Any, name: str) -> None:
        super().__init__(source, name)
        self._known: tuple[object, bytes] = None, b""
        """A committed state, and the prefix that the table's keys have in it."""

    def _find(self, key: bytes, *, whole: bool = True) -> bytes | None:
        source, known = self._source, self._known
        state = source._store.state
        if source._plain:
            if known[0] is state:
                value: bytes | None = source._find(TableKey(known[1] + key), whole=whole)
                if value is not None or source._store.state is state:
                    return value  # as it is in that state; or in a later one, where the table still has the prefix
            elif (record := self._record()) is not None and source._store.state is state and source._plain:
                self._known = state, record.prefix
        return super()._find(key, whole=whole)

    @property
    def path(self) -> str:
        """The name of the file."""
        return self._source.path  # type: ignore[no-any-return]

    @property
    def closed(self) -> bool:
        """Whether the database is closed."""
        return self._source.closed  # type: ignore[no-any-return]

    @property
    def readonly(self) -> bool:
        """Whether the database was opened with flag "r"."""
        return self._source.readonly  # type: ignore[no-any-return]

    def transaction(self) -> Any:
        """A transaction of the database, which covers all tables (see `Database.transaction`)."""
        return self._source.transaction()

    def snapshot(self) -> TableSnapshot:
        """This table in a snapshot of the database."""
        return self._source.snapshot().table(self.name)  # type: ignore[no-any-return]

    def sync(self) -> None:
        """Return when everything written through the database is on the disk."""
        self._source.sync()

    def _unflushed(self) -> bool:
        return self._source._unflushed()  # type: ignore[no-any-return]

    def _said(self) -> tuple[str, ...]:
        """The parts of `repr`; as `Database._said`, it reads and waits for nothing."""
        return (*self._source._said()[:1], f"table {self.name!r}", *self._source._said()[2:])
