"""`Database`: a dict in a file.

Here the public behaviour is put together from the engine's parts: the store (one file, its current state), a pipeline
(how writes get to the disk, by durability mode), and the mapping face. `database.open` makes one.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from . import lifetime
from ._engine.changeset import ChangeSet
from ._engine.pipeline import Pipeline
from ._engine.spill import Spill
from ._engine.store import Store
from ._engine.threads import Lease
from ._engine.view import Scope, State, View
from .errors import BusyError, error
from .mapping import Key, Writable, as_bytes, counted, represented
from .snapshot import Pin, Snapshot
from .transaction import Transaction, own_transaction
from .upkeep import Upkeep

__all__ = ["Database"]

_FAREWELL = 5.0
"""Seconds to wait for a flusher that is amid a flush to end, at most."""

_RETRIES = 20
"""How often a look-up that was overtaken by writers is tried again before it pins what it reads."""

T = TypeVar("T")


class Database(Upkeep, Writable):
    """A dict of bytes to bytes in one file, in the order of the keys. Made by `open`.

    Each single write is an atomic commit; `transaction()` makes many writes one. A handle may be used by any thread,
    and by a child process after `fork`. All methods raise `ClosedError` after `close()`, and `error` (or one of its
    subclasses) when the file or the disk fails.
    """

    __slots__ = (
        "__dict__", "__weakref__", "_life", "_pipeline", "_plain", "_snapshots", "_store", "_transactions", "path",
    )  # fmt: skip

    def __init__(self, *args: Any, **options: Any) -> None:
        if hasattr(self, "_store"):
            raise error("DBM object does not support reinitialization")
        self._build(*args, **options)

    def _build(self, store: Store, path: str, pipeline: Pipeline) -> None:
        self._store = store
        self.path = path
        self._pipeline = pipeline
        self._transactions: list[weakref.ref[Transaction]] = []
        """Those that are open, the outermost ones only."""
        self._snapshots: lifetime.Living[Snapshot] = lifetime.Living()
        self._life = Scope()
        self._plain = not pipeline.defers
        """Nothing stands between a look-up and the committed state: no open transaction, nothing deferred."""
        store.keep()
        lifetime.began(self)

    # -- what it is --------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._life.ended

    def __repr__(self) -> str:
        return represented(self, *self._said())

    def _said(self) -> tuple[str, ...]:
        """For `repr`, also in the middle of a call: nothing is read from the file, and no lock is waited for."""
        if self._life.ended:
            return repr(self.path), "closed"
        entries = counted(self._store.state.meta.entry_count, unflushed=self._unflushed())
        return repr(self.path), entries, "read-only" if self.readonly else "open"

    def _unflushed(self) -> bool:
        """Whether something was written that is in this handle only."""
        return not self._life.ended and self._pipeline.deferred() is not None

    # -- reading -----------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> bytes:
        store = self._store
        if self._plain and type(key) is bytes:
            # The common case, in as few steps as can be: nobody has committed, and the row was read before.
            try:
                if next(store.stamps, b"") == store.stamp or store.glance():
                    value = store.rows.young.get(key) or store.fetch(key)
                    if value is not None:
                        return value
                    raise KeyError(key)
            except OSError as exc:
                if not store.may_pass(exc):  # else the long way tells
                    raise self._error(exc) from exc
        value = self._find(key if type(key) is bytes else as_bytes(key, "key"))
        if value is None:
            raise KeyError(key)
        return value

    def _has(self, key: bytes) -> bool:
        return self._find(key, whole=False) is not None

    def _find(self, key: bytes, *, whole: bool = True) -> bytes | None:
        store = self._store
        if self._plain:
            try:
                if next(store.stamps, b"") == store.stamp or store.glance():
                    return store.rows.young.get(key) or store.fetch(key, whole=whole)
            except OSError as exc:
                if not store.may_pass(exc):
                    raise self._error(exc) from exc
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._find(key, whole=whole)
        while (work := self._pipeline.deferred()) is not None:
            self._raise_background_failure()
            store.check()
            try:
                return work.get(key, store.lookup if work.builds_on(store.state) else None, whole=whole)
            except error:
                store.check()
                if self._pipeline.deferred() is work:
                    raise  # else it was committed meanwhile, and what it builds on has been reused
        return self._committed(key, whole=whole)

    def _committed(self, key: bytes, *, whole: bool) -> bytes | None:
        """The value of `key` in the newest commit."""
        self._raise_background_failure()
        store = self._store
        for _ in range(_RETRIES):
            state = self._current()
            try:
                return store.fetch(key, whole=whole)
            except error:
                if self._refreshed() is state:
                    raise
                # else writers were faster: the pages have been reused
        pin = Pin(store)
        try:
            return pin.state.view.get(key) if whole else pin.state.view.find(key)
        finally:
            pin.release()

    def _current(self) -> State:
        try:
            return self._store.current()
        except OSError as exc:
            raise self._error(exc) from exc

    def _refreshed(self) -> State:
        try:
            return self._store.refresh()
        except OSError as exc:
            raise self._error(exc) from exc

    def __len__(self) -> int:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return len(transaction)
        self._raise_background_failure()
        work = self._pipeline.deferred()
        if work is not None:
            self._store.check()
            return self._pipeline.count()
        return self._current().meta.entry_count

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._items(start, stop, reverse)
        view, pin = self._pinned()
        return view.items(start, stop, reverse=reverse, scope=self._life, pin=(pin, self))

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._keys(start, stop, reverse)
        view, pin = self._pinned()
        return view.keys(start, stop, reverse=reverse, scope=self._life, pin=(pin, self))

    def _pinned(self) -> tuple[View, Pin]:
        """What there is now, as a view that stays, and the pin that keeps it."""
        self._raise_background_failure()
        try:
            while True:
                pin = Pin(self._store)
                pending = self._pipeline.view()
                if pending is not None and pending[1].meta.txid == pin.state.meta.txid:
                    return pending[0], pin
                # Nothing is pending: unless it was committed since the pin was made, that is all there is.
                if pending is None and (self._plain or self._store.state.meta.txid <= pin.state.meta.txid):
                    return pin.state.view, pin
        except OSError as exc:
            raise self._error(exc) from exc

    # -- writing -----------------------------------------------------------------------------------

    def _run(self, operation: Callable[[ChangeSet], T]) -> T:
        self._store.check_writable()
        self._raise_background_failure()
        try:
            result: T = self._store.inside.call(self._pipeline.apply, operation)
            return result
        except OSError as exc:
            raise self._error(exc) from exc

    def _writable(self) -> bool:
        return not self._store.readonly

    def _put(self, key: bytes, value: bytes) -> None:
        if self._transactions and (transaction := own_transaction(self, to_write=True)) is not None:
            transaction._put(key, value)
        elif not self._pipeline.put(key, value):
            self._run(lambda work: work.put(key, value))

    def _delete(self, key: bytes) -> bool:
        if self._transactions and (transaction := own_transaction(self, to_write=True)) is not None:
            return transaction._delete(key)
        return self._run(lambda work: work.discard(key))

    def _pop(self, key: bytes) -> bytes | None:
        if self._transactions and (transaction := own_transaction(self, to_write=True)) is not None:
            return transaction._pop(key)
        return self._run(lambda work: work.pop(key))

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        if self._transactions and (transaction := own_transaction(self, to_write=True)) is not None:
            return transaction._pop_end()
        return self._run(ChangeSet.pop_last)

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        if self._transactions and (transaction := own_transaction(self, to_write=True)) is not None:
            return transaction._set_default(key, default)
        return self._run(lambda work: work.set_default(key, default))

    def _update(self, changes: dict[bytes, bytes]) -> None:
        if self._transactions and (transaction := own_transaction(self, to_write=True)) is not None:
            transaction._update(changes)
        else:
            self._run(lambda work: work.update(changes))

    def clear(self) -> None:
        """Delete all entries in one atomic commit."""
        if self._transactions and (transaction := own_transaction(self, to_write=True)) is not None:
            transaction.clear()
        else:
            self._run(ChangeSet.clear)

    def transaction(self) -> Transaction:
        """A block of writes that is one atomic commit: `with db.transaction(): ...` (see `Transaction`)."""
        return Transaction(self)

    def snapshot(self) -> Snapshot:
        """The database as of now, read-only, for as long as wanted (see `Snapshot`).

        Inside a transaction it shows the last commit, without the transaction's own changes.
        """
        view, pin = self._pinned()
        snapshot = Snapshot(pin, view, self)
        self._snapshots.add(snapshot)
        return snapshot

    # -- for transactions --------------------------------------------------------------------------

    def _begin(self, lease: Lease) -> ChangeSet:
        self._store.check_writable()
        self._raise_background_failure()
        return self._pipeline.begin(lease)

    def _join(self, transaction: weakref.ref[Transaction]) -> None:
        self._transactions.append(transaction)
        self._plain = False

    def _end(self, transaction: Transaction, changes: ChangeSet | None, spill: Spill | None = None) -> None:
        self._forget(transaction)
        self._pipeline.finish(transaction.lease, changes, spill)

    def _forget(self, transaction: Transaction | None) -> None:
        """The transaction has ended; so have those that are not there any more."""
        self._transactions = [ref for ref in self._transactions if (it := ref()) is not None and it is not transaction]
        self._plain = not self._transactions and not self._pipeline.defers and not self._life.ended

    def _spill(self, work: ChangeSet) -> Spill:
        return self._pipeline.spill(work)

    def _pin(self, *, displaced: bool = False) -> Pin:
        self._raise_background_failure()
        try:
            return Pin(self._store, displaced=displaced)
        except OSError as exc:
            raise self._error(exc) from exc

    # -- ends --------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything written through this handle is on the disk, whatever the durability mode."""
        self._store.check()
        self._raise_background_failure()
        try:
            self._store.inside.call(self._pipeline.flush)
        except OSError as exc:
            raise self._error(exc) from exc

    def close(self) -> None:
        """Write what is not yet on the disk, and release the file. Closing twice is harmless.

        A transaction that this context has open is rolled back. If the final flush fails, the file is released and the
        error raised. If another thread's transaction does not finish within `timeout`, raises `BusyError` and the
        handle stays open. Called from a signal handler or a finalizer that has interrupted an operation of the handle,
        it returns at once, and takes effect when that operation has unwound.
        """
        if self._store.inside.here():
            self._store.inside.postpone(self.close)
        else:
            try:
                self._store.inside.call(self._close, True)
            finally:
                if self._life.ended and self._pipeline.flusher is not None:
                    self._pipeline.flusher.join(_FAREWELL)

    def _close(self, tidy: bool) -> None:
        if self._life.ended:
            self._store.close()  # closing may have been interrupted
            return
        for reference in reversed(self._transactions):
            if (transaction := reference()) is not None and transaction.mine():
                transaction.abandon()
        try:
            if self._store.failure is None:
                self._pipeline.flush()
                if tidy:
                    self._pipeline.tidy()
                    if self._store.observer is not None:
                        self._store.observer.finish()
        except BusyError:
            raise
        except BaseException as exc:
            self._release(flushed=False)
            if isinstance(exc, OSError):
                raise error.wrap(exc, self.path) from exc
            raise
        failure = self._store.failure
        self._release(flushed=failure is None)
        self._raise_background_failure()
        if failure is not None and (self._store.lost or self._pipeline.deferred() is not None):
            raise error.because(failure, "closed, but what was pending could not be written", self.path) from failure

    def _release(self, *, flushed: bool) -> None:
        """Close the file, but not while a thread writes: its number may be another file's a moment later."""
        writer, lease = self._store.writer, Lease()
        try:
            writer.take_lease(lease, self.path, self._pipeline.timeout)
            while flushed and self._pipeline.deferred() is not None:  # left by a transaction that ended only now
                lease.end()
                self._pipeline.flush()
                writer.take_lease(lease, self.path, self._pipeline.timeout)
            self._close_files()
        finally:
            lease.end()

    def _close_files(self) -> None:
        if self._pipeline.flusher is not None:
            self._pipeline.flusher.stop()
        self._life.end()
        self._plain = False
        for snapshot in self._snapshots.all():
            snapshot.close()
        if self._store.observer is not None:
            self._store.observer.close()
        self._store.writer.reserved = False
        self._store.close()
        lifetime.ended(self)

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _finish(self) -> None:
        """The interpreter ends: write what is pending, but wait for nobody for long, and end the flusher."""
        self._pipeline.hurry()
        try:
            self.sync()
        finally:
            if self._pipeline.flusher is not None:
                self._pipeline.flusher.stop()
                self._pipeline.flusher.join(_FAREWELL)

    def _before_fork(self) -> None:
        """Write what is pending if that is possible at once: a child sees only what is in the file."""
        if not self._store.inside.here():
            self._store.inside.call(self._pipeline.before_fork)

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        life = getattr(self, "_life", None)
        if life is None or life.ended or _finalizing():
            return  # at the end of the interpreter everything was flushed, and the system releases the file
        unflushed = self._unflushed()
        # A finalizer must not wait. Nobody but the flusher can be inside now; if it is, it closes on its way out.
        self._pipeline.timeout = 0.0
        inside = self._store.inside
        inside.postpone(self._let_go, by_any=True)
        if not inside.occupied:
            inside.came_out()
        if unflushed:
            warnings.warn(f"{self.path!r} was not closed, and had unflushed writes", ResourceWarning, stacklevel=2)

    def _let_go(self) -> None:
        try:
            self._store.inside.call(self._close, False)
        except Exception:
            pass  # as with files that are dropped, nobody is there to be told

    def _after_fork(self) -> None:
        """In a child process: begin anew, with a file of our own; the parent's transactions are not ours."""
        for reference in self._transactions.copy():
            if (transaction := reference()) is not None:
                transaction.orphan()
                if not transaction.mine():
                    self._forget(transaction)
        for snapshot in self._snapshots.all():
            snapshot.after_fork()
        self._store.after_fork()
        self._pipeline.after_fork()

    def _raise_background_failure(self) -> None:
        flusher = self._pipeline.flusher
        if flusher is not None and flusher.failure is not None:
            failure, flusher.failure = flusher.failure, None
            raise error.because(failure, "writing in the background failed", self.path) from failure
