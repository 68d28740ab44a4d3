"""What databases on servers share: connections, tables, transactions, closing."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from .._files.arguments import Progress
from .._messages import read_only
from ..errors import BusyError, error
from .blocks import ServerTransaction, Table, Transaction
from .context import innermost
from .faces import KeyRange, Operation, TableOperations, WritableTable
from .loading import Batches, Loader, batched
from .pool import Pool
from .snapshots import Snapshot
from .waiting import Backoff, Scope

__all__ = ["RemoteDatabase", "Stats"]

T = TypeVar("T")


class Stats(NamedTuple):
    """Figures of one database on a server, and of this handle."""

    entries: int
    bytes: int
    """What they take on the server; 0 if it does not tell."""
    server: str
    """What the server calls itself."""
    connections: int
    """In use by operations, iterators, snapshots and transactions of this handle."""
    idle_connections: int
    max_connections: int
    retries: int
    """How often a write met another one, and was done again."""
    reconnects: int
    """How often a connection was found broken, and replaced."""


class RemoteDatabase(WritableTable):
    """A dict of bytes to bytes in a table on a server, ordered by key. Made by `remote.open`.

    Each write is an atomic commit, as durable as the server makes it. Any thread may use a handle, and so may a child
    process after `fork`.
    """

    __slots__ = ("__weakref__", "_pool", "_scope", "_snapshots", "_table", "_transactions", "readonly")

    _READING = ""
    _WRITING = ""
    """Kinds of sessions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        if hasattr(self, "_pool"):
            raise error("DBM object does not support reinitialization")
        self._build(*args, **options)

    def _build(self, pool: Pool[Any], table: TableOperations, readonly: bool) -> None:
        self._table = table
        self.readonly = readonly
        self._transactions: weakref.WeakSet[Any] = weakref.WeakSet()
        """What blocks have in common that are nested in each other; `open` tells whether they are."""
        self._snapshots: weakref.WeakValueDictionary[int, Snapshot] = weakref.WeakValueDictionary()
        self._scope = Scope()
        self._pool = pool

    def _opened(self: Self, flag: str, exists: Callable[[], bool]) -> Self:
        """Check, create or empty the table, as `flag` says, and return this handle. If that fails, close it."""
        try:
            if flag in ("r", "w") and not exists():
                raise error(errno.ENOENT, f"there is no table {self.name!r}", self.location)
            self._made("")
            if flag == "n":
                self.clear()
        except BaseException:
            self.close()
            raise
        return self

    # What a subclass provides.

    def _table_named(self, name: str) -> TableOperations:
        """The table `name`, which need not exist; "" is the main one. Raises `ValueError` for an unusable name."""
        raise NotImplementedError

    def _make(self, table: TableOperations) -> None:
        """Create the table on the server if it does not exist. Transactions are not involved."""
        raise NotImplementedError

    def _begin_scan(self, table: TableOperations, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        raise NotImplementedError

    def _begin_on_server(self) -> ServerTransaction:
        """Begin a transaction on the server, and record it in `_transactions`."""
        raise NotImplementedError

    def _new_snapshot(self, table: TableOperations) -> Snapshot:
        raise NotImplementedError

    def tables(self) -> list[str]:
        raise NotImplementedError

    def drop_table(self, name: str) -> None:
        raise NotImplementedError

    def stats(self) -> Stats:
        raise NotImplementedError

    def sync(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        """What to do before the last connection is closed."""

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def location(self) -> str:
        """The server and the database on it, as an address without user and password."""
        return self._pool.where

    @property
    def name(self) -> str:
        """The name of the table."""
        return self._table.name

    @property
    def closed(self) -> bool:
        """Whether the handle is closed."""
        return self._pool.closed

    def _stats(self, entries: int, size: int, server: str) -> Stats:
        lent, idle = self._pool.counts()
        pool = self._pool
        return Stats(entries, size, server, lent, idle, pool.limit, pool.retries, pool.reconnects)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "read-only" if self.readonly else "open"
        return f"<{type(self).__name__} {self.name!r} at {self.location!r}, {state}>"

    # -- the mapping ---------------------------------------------------------------------------------------------

    def _check(self) -> None:
        self._pool.check()

    def _writable(self) -> bool:
        return not self.readonly

    def _check_writable(self) -> None:
        self._check()
        if self.readonly:
            raise read_only(self.location)

    def _block(self) -> Transaction | None:
        """The block that the caller is in."""
        return innermost(Transaction, self)

    def _block_to_read(self) -> Transaction | None:
        """The block that the caller is in and can read in. A call from a signal handler that interrupted an operation
        of the block cannot: it reads what is committed.
        """
        self._check()
        block = self._block()
        return None if block is None or block.in_use_here() else block

    def _read(self, table: TableOperations, operation: Operation[T]) -> T:
        block = self._block_to_read()
        if block is not None:
            return block._read(table, operation)
        return self._run(partial(operation, table), harmless=True)

    def _write(self, table: TableOperations, operation: Operation[T]) -> T:
        self._check_writable()
        block = self._block()
        if block is not None:
            return block._write(table, operation)
        return self._run(partial(operation, table), harmless=False)

    def _run(self, operation: Callable[[Any], T], *, harmless: bool) -> T:
        """The result of an operation outside of transactions. `harmless`: it only reads, so it may be repeated."""
        return self._pool.run(self._READING if harmless else self._WRITING, operation, harmless=harmless)

    def _scan(self, table: TableOperations, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        block = self._block_to_read()
        owner = self._begin_scan if block is None else block._scan
        return owner(table, keys, values=values)

    # -- blocks, snapshots, tables -------------------------------------------------------------------------------

    def transaction(self) -> Transaction:
        """A block of writes that is one atomic commit: `with db.transaction(): ...` (see `Transaction`)."""
        return Transaction(self, self._table)

    def snapshot(self) -> Snapshot:
        """A read-only view of the present content that does not change (see `Snapshot`).

        Inside a transaction it shows the last commit, without the transaction's own changes.
        """
        return self._snapshot_of(self._table)

    def _snapshot_of(self, table: TableOperations) -> Snapshot:
        self._check()
        snapshot = self._new_snapshot(table)
        self._snapshots[id(snapshot)] = snapshot
        return snapshot

    def table(self, name: str) -> Table:
        """A mapping over another key space, which is named after this one. It is created if it does not exist.

        On PostgreSQL both names together may have 62 bytes (`ValueError`).
        """
        return Table(self, self, self._made(name), name)

    def _made(self, name: str) -> TableOperations:
        """The table `name`, which exists when this returns."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a table must be str, not {type(name).__name__}")
        table = self._table_named(name)
        self._check()
        self._make(table)
        return table

    def loading(self, progress: Progress | None = None, *, replace: bool = False) -> AbstractContextManager[Loader]:
        """A block that takes many changes, in bounded memory, and verifies that they have arrived (see `Loader`).

        On PostgreSQL it is one atomic commit; on Redis the changes are made in batches. With `replace`, the earlier
        content is deleted. `progress(done, total)` is called while the changes are read back. `durabledbm.dump.load`
        uses this.
        """
        return self._loading_into(self, progress, replace=replace)

    @contextmanager
    def _loading_into(self, face: WritableTable, progress: Progress | None, *, replace: bool) -> Iterator[Loader]:
        if replace:
            face.clear()
        batches = Batches(face, self.location)
        yield batches
        batches.flush()

    def _apply_all(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Make changes in bounded memory: as one change where the server can, otherwise in batches."""
        for batch in batched(changes):
            self._apply(batch)

    # -- ends ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections. Closing twice is harmless.

        The transaction that the caller is in is rolled back; snapshots and iterators end. A transaction of another
        thread or task is waited for: if it does not end within `timeout`, raises `BusyError` and the handle stays open.
        """
        if self.closed:
            return
        while (block := self._block()) is not None:
            block.abandon()
        backoff = Backoff(self._pool.timeout)
        while any(transaction.open and transaction.is_ours for transaction in list(self._transactions)):
            if not backoff.pause():
                raise BusyError(f"{self.location}: a transaction of another thread is open")
        self._scope.end()
        for snapshot in list(self._snapshots.values()):
            snapshot.close()
        self._end()
        self._pool.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self._pool.close()
        except Exception:  # it was never complete, or the interpreter ends
            pass


Self = TypeVar("Self", bound=RemoteDatabase)
