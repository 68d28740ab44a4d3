"""Transactions: many changes as one atomic commit, or as none.

A transaction is a dict over an immutable tree (see `_engine.work`); it holds the file's writer lock from start to end.
Which transaction a use of the database belongs to is decided by the context that began it: the same thread and the
same asyncio task, so neither threads nor tasks that run in turn slip into each other's transactions.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from ._blocks import BLOCK_OVER, Root, Use, task
from ._engine import operations
from ._engine.locks import Turn
from ._engine.view import ENDLESS, Life, View
from ._engine.work import Savepoint, Work
from .errors import BusyError, ClosedError, error
from .mapping import Key, Value, Writable, as_bytes

if TYPE_CHECKING:
    from .handle import Database

__all__ = ["Transaction", "own_transaction"]

_active: ContextVar[tuple[weakref.ref[Transaction], ...]] = ContextVar("durabledbm_transactions", default=())
"""The transactions that were begun in this context and are still open, innermost last. Who began them keeps them."""

SPILL_SIZE = 448 * 2**20
"""Bytes of memory that a transaction's changes may take before they are written to pages of their own."""


def own_transaction(database: Database) -> Transaction | None:
    """The innermost open transaction of `database` that the caller is in."""
    for reference in reversed(_active.get()):
        transaction = reference()
        if transaction is not None and transaction.database is database and transaction.mine():
            return transaction
    return None


class _Exit:
    """What a `with` statement calls at the end of its block.

    Each statement gets an object of its own, to which nobody else refers. If that goes away although the block has not
    ended, an interrupt came just before the end: there is no other way to learn of it.
    """

    def __get__(self, transaction: Transaction | None, kind: type[Transaction]) -> Callable[..., None]:
        if transaction is None:
            return kind._leave
        leave = partial(transaction._leave)
        if transaction._root_ is None:
            transaction._statement = weakref.ref(leave, partial(_statement_left, weakref.ref(transaction)))
        return leave


def _abandoned(database: weakref.ref[Database], turn: Turn, lives: list[Life], _: object) -> None:
    """Nobody refers to a transaction any more, and nobody has ended it: it was begun without `with`, and given up."""
    for life in lives:
        life.end()
    owner = database()
    if owner is not None:
        owner._forget(None)
    turn.end()


def _statement_left(transaction: weakref.ref[Transaction], _: object) -> None:
    """A `with` statement is over, and its block is not."""
    left = transaction()
    if left is not None and not left._ended and (left._root_ is not None or left.turn.lock is not None):
        if left._point is not None and left._root_ is not None:
            left._root_.doomed = error("the end of a block in it was interrupted")
        left._drop()


class Transaction(Writable):
    """Made by `Database.transaction()`, used with `with`. Inside another transaction it is a savepoint of that.

    Leaving the block commits; an exception rolls back what was done in the block, and propagates. Raises what a commit
    may raise: `BusyError` on entering if another writer holds the file for longer than the handle's `timeout`.
    """

    __slots__ = (
        "__weakref__", "_ended", "_first_life", "_mark", "_outer_life", "_point", "_rolled_back", "_root_",
        "_statement", "database", "turn",
    )  # fmt: skip

    def __init__(self, database: Database) -> None:
        self.database = database
        self._root_: Root | None = None
        self._point: Savepoint | None = None
        self._mark: object = None
        self._outer_life, self._first_life = ENDLESS, 0
        self._ended = False
        self._rolled_back = False
        self.turn = Turn(transaction=True)
        """Of the outermost block."""
        self._statement: weakref.ref[Callable[..., None]] | None = None

    # -- the block ---------------------------------------------------------------------------------

    def __enter__(self) -> Transaction:
        if self._root_ is not None:
            raise error("a transaction is used once; call transaction() again")
        try:
            self.database._store.inside.run(self._begin)
        except BaseException:
            self._drop()
            raise
        return self

    def _begin(self) -> None:
        self._take_hold()
        _active.set((*_active.get(), weakref.ref(self)))

    def _take_hold(self) -> None:
        outer = own_transaction(self.database)
        database = self.database
        if outer is None:
            root = self._root_ = Root(database._begin(self.turn))
            database._join(weakref.ref(self, partial(_abandoned, weakref.ref(database), self.turn, root.lives)))
            return
        root = outer._root()
        if root.busy:
            raise self._interrupted()
        self._rolled_back = outer._rolled_back
        self._root_ = root
        self._point = root.work.savepoint()
        self._mark = None if root.spill is None else root.spill.mark()
        self._outer_life, self._first_life = root.life, len(root.lives)
        root.life = Life(BLOCK_OVER)
        root.lives.append(root.life)

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
            self.database._store.inside.run(self._end, kind)
        finally:
            self._drop()  # if this has interrupted another operation, it could not even begin

    def _end(self, kind: type[BaseException] | None) -> None:
        try:
            self._end_block(kind)
        except BaseException as exc:
            if self._root_ is not None and self._point is not None:
                self._root_.doomed = exc  # what this block did is neither kept nor undone
            raise
        finally:
            self._drop()

    def _end_block(self, kind: type[BaseException] | None) -> None:
        root = self._root_
        assert root is not None
        if self._ended:
            if kind is None:
                raise ClosedError
            return
        root.busy = True
        try:
            self._end_open_block(root, kind)
        finally:
            root.busy = False

    def _end_open_block(self, root: Root, kind: type[BaseException] | None) -> None:
        if root.orphaned:
            if kind is None:
                raise error("the transaction belongs to the parent process: it does not go across a fork")
        elif self._point is not None:
            if kind is not None or self._rolled_back:
                self._undo(root)
            else:
                root.work.release(self._point)
        else:
            keep = kind is None and not self._rolled_back
            self._finish(root, keep=keep and root.doomed is None)
            if keep and root.doomed is not None:
                raise error(f"the transaction was rolled back: a write in it failed ({root.doomed})")

    def _drop(self) -> None:
        """The block is over, however it ended: nothing can be written in it, and the lock is free."""
        self._statement, self._ended = None, True
        root = self._root_
        if self._point is None:
            if root is not None:
                root.work.hold = None  # what went wrong in the transaction may keep it alive in a circle
                for life in root.lives:
                    life.end()
            self.database._forget(self)
            self.turn.end()
        elif root is not None:
            root.life = self._outer_life
        _active.set(tuple(other for other in _active.get() if (open_ := other()) is not None and not open_._ended))

    def _finish(self, root: Root, *, keep: bool) -> None:
        database, work, spill = self.database, root.work, root.spill
        if not keep:
            database._end(self, None)
        elif spill is not None:
            changes = work.changes()
            database._end(self, None, lambda sync: spill.commit(changes, sync=sync))
        else:
            database._end(self, work)

    def _undo(self, root: Root) -> None:
        """Return to the savepoint."""
        assert self._point is not None
        root.work.roll_back(self._point)
        if root.doomed is not None:
            return
        if root.spill is not None:
            if self._mark is None:
                # The pages of the spill are anybody's now: iterators over them end.
                for life in root.lives[self._first_life :]:
                    life.end()
                root.life = Life(BLOCK_OVER)
                root.lives.append(root.life)
                root.spill = None
                self.database._store.committer.forget_space()
            else:
                root.spill.reset(self._mark, reuse=not root.uses)  # type: ignore[arg-type]

    def rollback(self) -> None:
        """Undo everything that was done in this block, now. The block goes on, and can read but not write any more.

        Raises `error` while a transaction nested in this one is open.
        """
        root = self._root()
        if own_transaction(self.database) is not self:
            raise error("a transaction can be rolled back only when those nested in it have ended")
        if self._rolled_back:
            return
        if self._point is None:
            root.work.reset()
            root.doomed = None
            if root.spill is not None:
                root.spill = None
                self.database._store.committer.forget_space()
        else:
            self._undo(root)
            self._point = root.work.savepoint()
            self._mark = None if root.spill is None else root.spill.mark()
        self._rolled_back = True

    def abandon(self) -> None:
        """The handle is being closed: roll back, and let go of the writer lock."""
        root = self._root_
        self._ended = True
        self.database._forget(self)
        if root is not None and self._point is None and not root.orphaned:
            for life in root.lives:
                life.end()
            self._finish(root, keep=False)

    # -- whose it is -------------------------------------------------------------------------------

    def mine(self) -> bool:
        """Whether the caller is in the thread and the task that began the transaction."""
        root = self._root_
        return (
            root is not None and not self._ended and root.thread == threading.get_ident() and root.task is task()
        )

    def orphan(self) -> None:
        """The process forked, and this is the child."""
        if self._root_ is not None:
            self._root_.orphaned = True

    def _root(self) -> Root:
        root = self._root_
        if root is None or self._ended:
            raise ClosedError("the transaction is not open: it lives in its 'with' block")
        if root.orphaned:
            raise error("the transaction belongs to the parent process: it does not go across a fork")
        return root

    def _interrupted(self) -> BusyError:
        return BusyError(
            f"{self.database.path}: this call has interrupted the transaction amid an operation of its own, "
            "so nothing can be written in it now"
        )

    def _writing(self) -> Work:
        root = self._root()
        if root.busy:
            raise self._interrupted()
        if root.doomed is not None:
            raise error(f"the transaction can only be rolled back: an earlier write in it failed ({root.doomed})")
        if self._rolled_back:
            raise error("the transaction was rolled back: nothing can be written in the rest of its block")
        return root.work

    # -- the mapping -------------------------------------------------------------------------------

    def _check(self) -> None:
        self._root()

    def _find(self, key: bytes) -> bytes | None:
        return self._root().work.get(key)

    def _view(self) -> tuple[View, Life, Use]:
        root = self._root()
        return root.work.view(), root.life, Use(root)

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        view, life, use = self._view()
        return view.items(start, stop, reverse=reverse, life=life, pin=use)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        view, life, use = self._view()
        return view.keys(start, stop, reverse=reverse, life=life, pin=use)

    def __len__(self) -> int:
        return self._root().work.count()

    def _writable(self) -> bool:
        return True

    def __setitem__(self, key: Key, value: Value) -> None:
        # As `Writable` does it, in fewer steps: loading many entries is nothing but this.
        if type(key) is not bytes:
            key = as_bytes(key, "key")
        if type(value) is not bytes:
            value = as_bytes(value, "value")
        root = self._root_
        if root is None or self._ended or self._rolled_back or root.busy or root.doomed is not None or root.orphaned:
            self._writing()  # says what is wrong
        work = root.work  # type: ignore[union-attr]
        work.put(key, value)
        if work.size > SPILL_SIZE:
            self._spill()

    def _put(self, key: bytes, value: bytes) -> None:
        Transaction.__setitem__(self, key, value)

    def _pop(self, key: bytes) -> bytes | None:
        return operations.pop(self._writing(), key)

    def _delete(self, key: bytes) -> bool:
        return operations.delete(self._writing(), key)

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        return operations.pop_end(self._writing())

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        self._put(key, default)
        return default

    def _update(self, changes: dict[bytes, bytes]) -> None:
        for key, value in changes.items():
            self._put(key, value)

    def clear(self) -> None:
        """Delete all entries."""
        work, root = self._writing(), self._root()
        if root.spill is None or not (work.has_savepoints or root.uses):
            work.clear()
            if root.spill is not None:
                root.spill = None
                self.database._store.committer.forget_space()
            return
        for key in self:
            work.delete(key)
            if work.size > SPILL_SIZE:
                self._spill()

    # -- outgrowing memory -------------------------------------------------------------------------

    def _spill(self) -> None:
        """Move the changes from memory to pages that no meta names yet."""
        root = self._root()
        root.busy = True
        try:
            self.database._store.inside.run(self._move, root)
        finally:
            root.busy = False

    def _move(self, root: Root) -> None:
        work = root.work
        if root.spill is None:
            root.spill = self.database._spill(work)
        reuse = not work.has_savepoints and not root.uses
        try:
            tree, count = root.spill.add(work.changes(), reuse=reuse)
        except BaseException as exc:
            root.doomed = exc
            if isinstance(exc, OSError):
                raise error.wrap(exc, self.database.path) from exc
            raise
        work.rebase(View(tree), count)

    def __repr__(self) -> str:
        state = "not begun" if self._root_ is None else "ended" if self._ended else "open"
        return f"<{type(self).__name__} on {self.database.path!r}, {state}>"

