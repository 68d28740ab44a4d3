"""Transactions: many changes as one atomic commit, or none of them.

A transaction is a dict over an immutable tree, and it holds the file's writer lock from start to end. A use of the
database belongs to the transaction that was begun in the same context (see `_process.caller_context`). So threads and
tasks never use each other's transactions, and a request keeps its own on whatever thread it continues.

Blocks of one context nest. Each inner block has a savepoint, and only the innermost block may write. When a block ends,
the blocks still open inside it end too, as with COMMIT and ROLLBACK TO in SQL. After that they can neither read nor
write, and their own end raises if their changes were kept or undone against what it asks for. So every write either
counts, or is refused, or is undone with its block, and the end of the block says so.
"""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ._engine.changeset import ChangeSet
from ._engine.pager import Pager
from ._engine.pipeline import Pipeline
from ._engine.spill import Spill
from ._engine.store import Store
from ._engine.threads import Lease
from ._engine.view import Scope, View
from ._process.caller_context import CallerContext
from ._transaction_context import BLOCK_OVER, Block, Fate, TransactionContext, Use
from ._value_stream import put_in_pieces
from .errors import BusyError, ClosedError, error
from .mapping import Key, Value, as_bytes
from .streams import Source, opened
from .table import TransactionTable, WithTables

__all__ = ["Transaction", "own_transaction", "stream_into"]

_active: ContextVar[tuple[weakref.ref[Transaction], ...]] = ContextVar("durabledbm_transactions", default=())
"""The transactions whose blocks were begun in this context and not left yet, innermost last. Others keep them alive."""

_OUTLASTED = "a block around it ended first"
_DROPPED = "a block in it was dropped before its end"

SPILL_SIZE = 448 * 2**20
"""Bytes of memory that a transaction's changes may take before they are written to pages of their own."""


T = TypeVar("T")


class Owner(Protocol):
    """What a transaction uses of the database that it belongs to."""

    path: str
    _store: Store
    _pipeline: Pipeline

    def _raise_background_failure(self) -> None: ...

    def _put(self, key: bytes, value: bytes) -> None: ...

    def _join(self, transaction: weakref.ref[Transaction]) -> None:
        """Record an open transaction."""

    def _forget(self, transaction: Transaction | None) -> None:
        """Remove an ended transaction, and any that no longer exist."""


def own_transaction(database: Owner, *, to_write: bool = False) -> Transaction | None:
    """The innermost open transaction of `database` that the caller is in.

    If the caller is in a block that ended with the block around it, `to_write` raises.
    """
    for reference in reversed(_active.get()):
        transaction = reference()
        if transaction is not None and transaction.database is database and transaction.mine():
            if transaction._block.fate is Fate.OPEN:
                return transaction
            if to_write:
                raise transaction._outlasted()
    return None


def stream_into(database: Owner, key: bytes, source: Source) -> None:
    """Set the value of `key` to what `source` gives, in the caller's transaction, or else as a commit of its own."""
    if (transaction := own_transaction(database, to_write=True)) is not None:
        transaction._put_stream(key, source)
        return
    database._store.check_writable()
    if (value := source.whole()) is not None:
        database._put(key, value)
        return
    with Transaction(database) as transaction:
        transaction._put_stream(key, source)


class _Exit:
    """What a `with` statement calls at the end of its block.

    Each statement gets an object of its own, and nothing else refers to it. If that object is freed before the block
    has ended, an interrupt came just before the end: there is no other way to notice.
    """

    def __get__(self, transaction: Transaction | None, kind: type[Transaction]) -> Callable[..., None]:
        if transaction is None:
            return kind._leave
        leave = partial(transaction._leave)
        if transaction._context is None:
            transaction._statement = weakref.ref(leave, partial(_statement_left, weakref.ref(transaction)))
        return leave


def _still_in() -> tuple[weakref.ref[Transaction], ...]:
    """The transactions that `_active` should list."""
    return tuple(ref for ref in _active.get() if (it := ref()) is not None and it._block.fate is not Fate.ENDED)


def _abandoned(database: weakref.ref[Owner], lease: Lease, context: TransactionContext, _: object) -> None:
    """A transaction was freed before it ended: it was begun without `with` and dropped."""
    context.end_scopes()
    owner = database()
    if owner is not None:
        owner._forget(None)
        _leave_block(context, context.outermost, owner)
    lease.end()


def _given_up(context: weakref.ref[TransactionContext], owner: weakref.ref[Transaction]) -> None:
    """The same for a nested transaction. Whether to keep or undo its changes is unknown, so the outer one is doomed."""
    living = context()
    if living is None or living.top is None:
        return
    for block in living.inside(living.outermost):
        if block.owner is owner:
            living.doomed = living.doomed or error(_DROPPED)
            living.leave(block)


def _leave_block(context: TransactionContext, block: Block, database: Owner) -> None:
    """Mark a block and all blocks inside it as ended, so that writes through the database are refused in them."""
    for inner in context.leave(block):
        if inner.owner is not None:
            database._join(inner.owner)


def _statement_left(transaction: weakref.ref[Transaction], _: object) -> None:
    """A `with` statement has ended, but its block has not."""
    left = transaction()
    if left is not None and left._block.fate is not Fate.ENDED and (left._context or left.lease.holder is not None):
        if left._block.outer is not None and left._context is not None:
            left._context.doomed = error("the end of a block in it was interrupted")
        left._drop()


class Transaction(WithTables):
    """Made by `Database.transaction()`, used with `with`. Inside another transaction it is a savepoint of that.

    Leaving the block commits. An exception rolls back what the block did, and propagates. Raises what a commit may
    raise, and `BusyError` on entering if another writer holds the file for longer than the handle's `timeout`.
    """

    __slots__ = ("__weakref__", "_block", "_context", "_statement", "database", "lease")

    def __init__(self, database: Owner) -> None:
        self.database = database
        self._context: TransactionContext | None = None
        self._block = Block()
        self.lease = Lease()
        """Of the outermost block."""
        self._statement: weakref.ref[Callable[..., None]] | None = None

    # -- the block ---------------------------------------------------------------------------------

    def __enter__(self) -> Transaction:
        if self._block.fate is not Fate.NEW:
            raise error("a transaction is used once; call transaction() again")
        try:
            self.database._store.inside.call(self._begin)
        except BaseException:
            self._drop()
            raise
        return self

    def _begin(self) -> None:
        try:
            self._take_hold()
            _active.set((*_still_in(), weakref.ref(self)))
        except BaseException:
            self._drop()  # still inside: closing that was put off comes next, and waits for the lease
            raise

    def _take_hold(self) -> None:
        database, block = self.database, self._block
        outer = own_transaction(database, to_write=True)
        if outer is None:
            caller = CallerContext()
            self.lease.stuck = caller.is_stuck
            database._store.check_writable()
            database._raise_background_failure()
            context = self._context = TransactionContext(database._pipeline.begin(self.lease), caller, block)
            database._join(weakref.ref(self, partial(_abandoned, weakref.ref(database), self.lease, context)))
            block.fate = Fate.OPEN
            return
        context = outer._open_context()
        assert context.top is not None
        if context.busy:
            raise outer._interrupted()
        block.outer, block.rolled_back, block.outer_scope = context.top, context.top.rolled_back, context.scope
        block.owner = weakref.ref(self, partial(_given_up, weakref.ref(context)))
        self._context = context
        block.point, block.first_scope = context.work.savepoint(), len(context.scopes)
        block.mark = None if context.spill is None else context.spill.mark()
        context.scope = Scope(BLOCK_OVER)
        context.scopes.append(context.scope)
        context.top, block.fate = block, Fate.OPEN

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
        ) -> None: ...

    else:
        __exit__ = _Exit()

    def _leave(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.database._store.inside.call(self._end, kind, value)
        finally:
            self._drop()  # if this has interrupted another operation, it could not even begin

    def _end(self, kind: type[BaseException] | None, value: BaseException | None) -> None:
        context = self._context
        try:
            if self._block.fate is not Fate.OPEN:
                self._end_late(kind, value)
                return
            assert context is not None
            context.busy = True
            self._end_block(context, kind)
        finally:
            if context is not None:
                context.busy = False
            self._drop()

    def _end_block(self, context: TransactionContext, kind: type[BaseException] | None) -> None:
        block = self._block
        if context.orphaned:
            if kind is None:
                raise error("the transaction belongs to the parent process and cannot be used after a fork")
            return
        inside = context.inside(block)
        if any(inner.owner is not None and inner.owner() is None for inner in inside):  # and its callback interrupted
            context.doomed = context.doomed or error(_DROPPED)
        for inner in inside:
            inner.untouched = inner.point is not None and context.work.unchanged_since(inner.point)
        keep = kind is None and not block.rolled_back
        if block.point is None:
            self._finish(context, keep=keep and context.doomed is None)
            if keep and context.doomed is not None:
                raise error(f"the transaction was rolled back: a write in it failed ({context.doomed})")
        else:
            try:
                if keep:
                    context.work.release(block.point)
                else:
                    self._undo(context)
            except BaseException as exc:
                context.doomed = exc  # what this block did is neither kept nor undone
                raise
        for inner in inside:
            inner.fate = Fate.KEPT if keep else Fate.UNDONE

    def _end_late(self, kind: type[BaseException] | None, value: BaseException | None) -> None:
        """The block is over: it ended before, or with the block around it, which kept or undid its changes."""
        context, block = self._context, self._block
        if block.fate is Fate.ENDED:
            if kind is None:
                raise ClosedError
        elif block.untouched or context is None or (block.fate is Fate.KEPT) is (kind is None):
            pass
        elif kind is None:
            raise error(f"the writes of the block were undone: {_OUTLASTED} and was rolled back")
        else:
            context.doomed = context.doomed or error("a block in it failed too late to be undone")
            raise error(f"the writes of the block cannot be undone: {_OUTLASTED} and was committed") from value

    def _drop(self) -> None:
        """End the block in any case: nothing can be written in it any more, and the lock is free."""
        context, block, database = self._context, self._block, self.database
        if block.outer is None:
            if context is not None and block.fate is not Fate.ENDED:
                context.work.hold = None  # what went wrong in the transaction may keep it alive in a circle
                context.end_scopes()
                _leave_block(context, block, database)
            self.lease.end()
        elif context is not None and block.fate is Fate.OPEN:
            context.scope = block.outer_scope
            _leave_block(context, block, database)
        database._forget(self)
        block.fate, self._statement = Fate.ENDED, None
        _active.set(_still_in())

    def _finish(self, context: TransactionContext, *, keep: bool) -> None:
        self.database._forget(self)
        finish = self.database._pipeline.finish
        if not keep:
            finish(self.lease, None)
        else:
            finish(self.lease, context.work, context.spill)

    def _undo(self, context: TransactionContext) -> None:
        """Return to the savepoint."""
        block = self._block
        assert block.point is not None
        context.work.roll_back(block.point)
        if context.doomed is not None:
            return
        if context.spill is not None:
            if block.mark is None:
                # The pages of the spill are anybody's now: iterators over them end.
                for scope in context.scopes[block.first_scope :]:
                    scope.end()
                context.scope = Scope(BLOCK_OVER)
                context.scopes.append(context.scope)
                context.spill = None
            else:
                context.spill.reset(block.mark, reuse=not context.uses)

    def rollback(self) -> None:
        """Undo everything that was done in this block, now. The rest of the block can read but not write.

        Raises `error` while a nested transaction is open.
        """
        context, block = self._open_context(), self._block
        if context.top is not block:
            raise error("a transaction can be rolled back only when those nested in it have ended")
        if block.rolled_back:
            return
        if block.outer is None:
            context.work.reset()
            context.doomed = None
            if context.spill is not None:
                context.spill = None
        else:
            self._undo(context)
            block.point = context.work.savepoint()
            block.mark = None if context.spill is None else context.spill.mark()
        block.rolled_back = True

    def abandon(self) -> None:
        """Roll back and release the writer lock, because the handle is being closed."""
        context, block = self._context, self._block
        self.database._forget(self)
        if context is not None and block.outer is None and block.fate is Fate.OPEN:
            for inner in context.leave(block):
                inner.fate = Fate.ENDED
            if not context.orphaned:
                context.end_scopes()
                self._finish(context, keep=False)
        block.fate = Fate.ENDED

    # -- whose it is -------------------------------------------------------------------------------

    def mine(self) -> bool:
        """Whether the caller is in the context that began the transaction, and the block has not ended."""
        context = self._context
        return context is not None and self._block.fate is not Fate.ENDED and context.caller.is_me()

    def orphan(self) -> None:
        """In a child process after a fork: the transaction belongs to the parent."""
        if self._context is not None:
            self._context.orphaned = True
            for scope in self._context.scopes:
                scope.end()  # nothing keeps the pages that its iterators read

    def _open_context(self) -> TransactionContext:
        context, fate = self._context, self._block.fate
        if context is None or fate is not Fate.OPEN:
            if fate is Fate.KEPT or fate is Fate.UNDONE:
                raise self._outlasted()
            raise ClosedError("the transaction is not open: use it inside its 'with' block")
        if context.orphaned:
            raise error("the transaction belongs to the parent process and cannot be used after a fork")
        return context

    def _outlasted(self) -> ClosedError:
        kept = "was kept" if self._block.fate is Fate.KEPT else "was undone"
        return ClosedError(f"this block has ended: {_OUTLASTED}; what was written in it {kept}")

    def _interrupted(self) -> BusyError:
        return BusyError(
            f"{self.database.path}: this call has interrupted the transaction amid an operation of its own, "
            "so nothing can be written in it now"
        )

    def _writing(self) -> ChangeSet:
        context = self._open_context()
        if context.busy:
            raise self._interrupted()
        if context.doomed is not None:
            raise error(f"the transaction can only be rolled back: an earlier write in it failed ({context.doomed})")
        if self._block.rolled_back:
            raise error("the transaction was rolled back: nothing can be written in the rest of its block")
        if context.top is not self._block:
            if self.database._store.inside.here():
                raise self._interrupted()  # amid the beginning or the end of the block inside
            self._open_context()  # which a handler may have ended since
            raise error("nothing can be written in this block while a block inside it is open")
        return context.work

    # -- the mapping -------------------------------------------------------------------------------

    def _check(self) -> None:
        self._open_context()

    def _find(self, key: bytes, *, whole: bool = True) -> bytes | None:
        return self._open_context().work.get(key, whole=whole)

    def _has(self, key: bytes) -> bool:
        return self._find(key, whole=False) is not None

    def _scoped_view(self) -> tuple[View, Scope, Use]:
        context = self._open_context()
        return context.work.view(), context.scope, Use(context)

    def _value_reader(self, key: bytes) -> io.BufferedReader | None:
        return opened(key, *self._scoped_view())

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        view, scope, use = self._scoped_view()
        return view.items(start, stop, reverse=reverse, scope=scope, pin=use)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        view, scope, use = self._scoped_view()
        return view.keys(start, stop, reverse=reverse, scope=scope, pin=use)

    def __len__(self) -> int:
        return self._open_context().work.count()

    def _writable(self) -> bool:
        return True

    def __setitem__(self, key: Key, value: Value) -> None:
        # As `Writable` does it, in fewer steps: loading many entries is nothing but this.
        if type(key) is not bytes:
            key = as_bytes(key, "key")
        if type(value) is not bytes:
            value = as_bytes(value, "value")
        context, block = self._context, self._block
        if (
            context is None or context.top is not block or block.rolled_back or context.busy
            or context.doomed is not None or context.orphaned
        ):  # fmt: skip
            self._writing()  # says what is wrong
        work = context.work  # type: ignore[union-attr]
        work.put(key, value)
        if work.size > SPILL_SIZE:
            self._spill()

    def _put(self, key: bytes, value: bytes) -> None:
        Transaction.__setitem__(self, key, value)

    def _pop(self, key: bytes) -> bytes | None:
        return self.change(ChangeSet.pop, key)

    def _delete(self, key: bytes) -> bool:
        return self.change(ChangeSet.discard, key)

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        return self.change(ChangeSet.pop_last)

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        return self.change(ChangeSet.set_default, key, default)

    def _update(self, changes: dict[bytes, bytes]) -> None:
        self.change(ChangeSet.update, changes)  # in one step: an interrupt comes before it or after it

    def change(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Make a change, `operation(changes, *arguments)`, as part of the transaction."""
        work = self._writing()
        result = operation(work, *arguments)
        if work.size > SPILL_SIZE:
            self._spill()
        return result

    def table(self, name: str) -> TransactionTable:
        """The table of that name, in this transaction (see `Database.table`)."""
        self._check()
        return TransactionTable(self, name)

    def _change_table(self, operation: Callable[..., T], name: str, *arguments: Any) -> T:
        """Make a change to a table, `operation(changes, name, *arguments)`, which no other write comes between."""
        work, context = self._writing(), self._open_context()
        context.busy = True
        try:
            result = operation(work, name, *arguments)
        finally:
            context.busy = False
        if work.size > SPILL_SIZE:
            self._spill()
        return result

    @property
    def path(self) -> str:
        """The name of the file."""
        return self.database.path

    @property
    def _pager(self) -> Pager:
        return self.database._store.pager

    def clear(self) -> None:
        """Delete all entries of the main table. Other tables stay."""
        work, context = self._writing(), self._open_context()
        if context.spill is None or not (work.has_savepoints or context.uses):
            work.clear()
            if context.spill is not None:
                context.spill = None
            return
        for key in self:
            work.delete(key)
            if work.size > SPILL_SIZE:
                self._spill()

    # -- outgrowing memory -------------------------------------------------------------------------

    def _spill(self) -> None:
        """Move the changes from memory to pages that no meta refers to yet."""
        self._exclusively(self._open_context(), self._move)

    def _exclusively(self, context: TransactionContext, write: Callable[..., T], *arguments: Any) -> T:
        """Let `write(spill, *arguments)` write pages, which a call that interrupts it must not come between.

        If it fails, the transaction can only be rolled back.
        """
        context.busy = True
        try:
            result: T = self.database._store.inside.call(self._written, context, write, *arguments)
        finally:
            context.busy = False
        return result

    def _written(self, context: TransactionContext, write: Callable[..., T], *arguments: Any) -> T:
        work = context.work
        if context.spill is None:
            context.spill = self.database._pipeline.spill(work)
        context.spill.reuse = not work.has_savepoints and not context.uses
        try:
            self.database._pipeline.committer.check_place()
            return write(context.spill, *arguments)
        except BaseException as exc:
            context.doomed = exc
            if isinstance(exc, OSError):
                raise error.wrap(exc, self.database.path) from exc
            raise

    def _move(self, spill: Spill, more: Mapping[bytes, bytes] | None = None) -> None:
        """Merge the changes, and `more`, into the trees of the spill."""
        work = self._open_context().work
        work.rebase(*spill.add({**work.as_dict(), **(more or {})}))

    def _put_stream(self, key: bytes, source: Source) -> None:
        self._writing()
        if (value := source.whole()) is not None:
            self._put(key, value)
            return
        put_in_pieces(self, key, source, self.database._store.observer)

    def __repr__(self) -> str:
        fate = self._block.fate
        state = "not begun" if fate is Fate.NEW else "open" if fate is Fate.OPEN else "ended"
        return f"<{type(self).__name__} on {self.database.path!r}, {state}>"
