"""Blocks of transactions on a server: what happens at their beginning and end, on any engine.

The outermost block is a transaction of the server (`ServerTransaction`); a block inside it is a savepoint. An engine
begins the transaction (`RemoteDatabase._begin_on_server`) and implements its steps; this module calls them in order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, TypeVar

from .._files.arguments import Progress
from .._process.caller_context import CallerContext
from ..errors import BusyError, ClosedError, error
from .context import Block, enter, innermost, leave
from .faces import KeyRange, Operation, TableOperations, WritableTable
from .loading import Loader
from .snapshots import Snapshot
from .waiting import OwnedLock, Scope

__all__ = ["ServerTransaction", "Table", "Transaction"]

T = TypeVar("T")

_BLOCK_OVER = "the block of the transaction is over, or was undone"


class ServerTransaction:
    """What an outermost block and those nested in it share. If it is freed before its end, it is rolled back."""

    def __init__(self) -> None:
        self.caller = CallerContext()
        self._pid = os.getpid()
        self.lock = OwnedLock()
        """Held during each operation."""
        self.open: list[int] = []
        """The blocks that are open, by number, innermost last."""
        self.scopes: list[Scope] = []
        """The scopes of iterators: one per block that was ever begun, and per part of a block between rollbacks."""
        self._numbers = 0

    # What an engine provides. The lock is held.

    @property
    def failure(self) -> error | None:
        """Why the transaction, or its innermost open block, can only be undone; None if it can continue."""
        return None

    def carry_out(self, table: TableOperations, operation: Operation[T]) -> T:
        """Run `operation` in the transaction and return its result."""
        raise NotImplementedError

    def scan(self, table: TableOperations, keys: KeyRange, scope: Scope, *, values: bool) -> Iterator[Any]:
        """An iterator over the present content in the transaction."""
        raise NotImplementedError

    def save(self, number: int) -> None:
        """Set a savepoint."""
        raise NotImplementedError

    def undo(self, number: int) -> None:
        """Return to a savepoint, which stays."""
        raise NotImplementedError

    def release(self, number: int) -> None:
        """Remove a savepoint and all after it."""
        raise NotImplementedError

    def commit(self) -> None:
        """Make everything durable, or raise."""
        raise NotImplementedError

    def restart(self) -> None:
        """Undo everything, and continue."""
        raise NotImplementedError

    def finish(self) -> None:
        """Undo what is not committed, and release everything. Calling it twice is harmless."""
        raise NotImplementedError

    # What follows.

    @property
    def is_ours(self) -> bool:
        """Whether it was begun in this process."""
        return self._pid == os.getpid()

    def check(self) -> None:
        """Raise if it was begun before a fork."""
        if not self.is_ours:
            raise error("the transaction was begun before a fork: it belongs to the parent process")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A block of operations of an open transaction, which nothing else uses meanwhile."""
        with self.lock:
            try:
                yield
            finally:
                if not self.open:  # `close()` came in the middle, on this thread, and could not wait
                    self.finish()

    def new_number(self) -> int:
        """The number of a new block."""
        self._numbers += 1
        return self._numbers

    def begin_scope(self) -> Scope:
        """The scope of iterators that begin from now on."""
        self.scopes.append(Scope(_BLOCK_OVER))
        return self.scopes[-1]

    def end_scopes(self, first: int) -> None:
        """End all iterators that were begun in those blocks."""
        for scope in self.scopes[first:]:
            scope.end()

    def undone(self) -> error:
        """The error for a block that was to be kept, although something in it had failed."""
        text = f"the transaction was rolled back: an operation in it failed ({self.failure})"
        return BusyError(text) if isinstance(self.failure, BusyError) else error(text)

    def abandon(self) -> None:
        """End all blocks. What is not committed never will be."""
        self.open.clear()
        self.end_scopes(0)

    def end(self) -> None:
        """The outermost block is over."""
        self.abandon()
        self.finish()

    def close(self) -> None:
        """The database is being closed inside a block: roll back now, or when the operation in progress has ended."""
        self.abandon()
        if not self.lock.held_here():
            with self.lock:
                self.finish()


class Transaction(WritableTable, Block):
    """Made by `transaction()` of a database on a server, used with `with`. Inside another transaction it is a savepoint
    of that.

    Leaving the block commits; an exception rolls back what the block did, and propagates. Any operation in the block,
    and its end, may raise `BusyError`: another transaction conflicts, nothing of the outermost block was committed, and
    it may be repeated. If the connection breaks within the block, nothing was committed; if it breaks at the end,
    `ConnectionLostError.committed` is None.
    """

    __slots__ = (
        "__weakref__",
        "_caller",
        "_first_scope",
        "_number",
        "_rolled_back",
        "_scope",
        "_shared",
        "_table",
        "database",
    )  # fmt: skip

    def __init__(self, database: Any, table: TableOperations) -> None:
        self.database = database
        self._table = table
        self._shared: ServerTransaction | None = None
        self._caller: CallerContext | None = None
        self._number = 0
        self._rolled_back = False
        self._first_scope = 0
        self._scope = Scope(_BLOCK_OVER)

    # -- the block -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Transaction:
        if self._shared is not None:
            raise error("a transaction is used once; call transaction() again")
        self.database._check_writable()
        outer = innermost(Transaction, self.database)
        if outer is None:
            shared: ServerTransaction = self.database._begin_on_server()
        else:
            shared = outer._open()
            self._rolled_back = outer._rolled_back
        self._shared, self._caller, self._number = shared, shared.caller, shared.new_number()
        if outer is not None:
            with shared.in_use():
                shared.save(self._number)
        self._first_scope = len(shared.scopes)
        self._scope = shared.begin_scope()
        shared.open.append(self._number)
        enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shared = self._shared
        assert shared is not None
        try:
            if self._number in shared.open:
                self._end(shared, keep=kind is None)
            elif kind is None:
                raise ClosedError("the block has ended already: by close(), or with the block around it")
        except error:
            if kind is None:
                raise
            # else the exception that ends the block says more, and nothing of the block was kept
        finally:
            leave()

    def _end(self, shared: ServerTransaction, *, keep: bool) -> None:
        place = shared.open.index(self._number)
        del shared.open[place:]  # those within it end with it
        if place == 0:
            try:
                shared.check()
                if keep and not self._rolled_back:
                    with shared.lock:
                        if shared.failure is not None:
                            raise shared.undone()
                        shared.commit()
            finally:
                shared.end()
            return
        with shared.in_use():
            failed = shared.undone() if shared.failure is not None else None
            if failed is not None or not keep or self._rolled_back:
                shared.end_scopes(self._first_scope)
                shared.undo(self._number)
            shared.release(self._number)
        if failed is not None and keep:
            raise failed

    def rollback(self) -> None:
        """Undo everything that was done in this block, now. The rest of the block can read but not write.

        Raises `error` while a nested transaction is open.
        """
        shared = self._open()
        if shared.open[-1] != self._number:
            raise error("a transaction can be rolled back only when those nested in it have ended")
        if self._rolled_back:
            return
        self._rolled_back = True
        shared.end_scopes(self._first_scope)
        self._scope = shared.begin_scope()
        with shared.in_use():
            if len(shared.open) > 1:
                shared.undo(self._number)
            else:
                shared.restart()

    @property
    def is_open(self) -> bool:
        """Whether the block has begun and not ended."""
        return self._shared is not None and self._number in self._shared.open

    def in_use_here(self) -> bool:
        """Whether the caller interrupted an operation of the transaction on its own thread."""
        return self._shared is not None and self._shared.lock.held_here()

    def abandon(self) -> None:
        """Roll the whole transaction back, because the caller closes the database inside the block."""
        if self._shared is not None:
            self._shared.close()

    def _open(self) -> ServerTransaction:
        shared = self._shared
        if shared is None or self._number not in shared.open:
            raise ClosedError("the transaction is not open: use it inside its 'with' block")
        shared.check()
        return shared

    # -- the mapping ---------------------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """Another table of the database, in this transaction."""
        return Table(self, self.database, self.database._made(name), name)

    def _check(self) -> None:
        self._open()

    def _read(self, table: TableOperations, operation: Operation[T]) -> T:
        shared = self._open()
        with shared.in_use():
            return shared.carry_out(table, operation)

    def _write(self, table: TableOperations, operation: Operation[T]) -> T:
        if self._open() is not None and self._rolled_back:
            raise error("the transaction was rolled back: nothing can be written in the rest of its block")
        return self._read(table, operation)

    def _scan(self, table: TableOperations, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        shared = self._open()
        with shared.in_use():
            return shared.scan(table, keys, self._scope, values=values)

    def _writable(self) -> bool:
        return True

    def __repr__(self) -> str:
        state = "not begun" if self._shared is None else "open" if self.is_open else "ended"
        return f"<{type(self).__name__} on {self.database.location!r}, {state}>"


class Table(WritableTable):
    """A mapping over a further table. Made by `table()` of a database or transaction, and ends with it."""

    __slots__ = ("_database", "_owner", "_table", "name")

    def __init__(self, owner: WritableTable, database: Any, table: TableOperations, name: str) -> None:
        self._owner = owner
        self._database = database
        self._table = table
        self.name = name

    def _check(self) -> None:
        self._owner._check()

    def _read(self, table: TableOperations, operation: Operation[T]) -> T:
        return self._owner._read(table, operation)

    def _write(self, table: TableOperations, operation: Operation[T]) -> T:
        return self._owner._write(table, operation)

    def _scan(self, table: TableOperations, keys: KeyRange, *, values: bool) -> Iterator[Any]:
        return self._owner._scan(table, keys, values=values)

    def _writable(self) -> bool:
        return self._owner._writable()

    def transaction(self) -> Transaction:
        """A transaction of the database. Writes through it go to this table."""
        return Transaction(self._database, self._table)

    def snapshot(self) -> Snapshot:
        """A read-only view of this table that does not change."""
        snapshot: Snapshot = self._database._snapshot_of(self._table)
        return snapshot

    def loading(self, progress: Progress | None = None, *, replace: bool = False) -> AbstractContextManager[Loader]:
        """As that of the database, into this table."""
        loading: AbstractContextManager[Loader] = self._database._loading_into(self, progress, replace=replace)
        return loading

    def sync(self) -> None:
        """As that of the database."""
        self._database.sync()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._database!r}>"
