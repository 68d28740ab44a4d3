"""How a database handle ends: by `close()`, with the interpreter, or as a copy in a child process."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Protocol

from ._engine.pipeline import Pipeline
from ._engine.store import Store
from ._engine.threads import Lease
from ._engine.view import Scope
from ._interrupts import is_interrupt
from ._process.handles import OpenHandle, Registry, ended
from .errors import BusyError, error
from .snapshot import Snapshot
from .transaction import Transaction

__all__ = ["close", "close_files", "finalize", "finish", "start_again"]


class Handle(OpenHandle, Protocol):
    """What is used of a database handle."""

    path: str
    _store: Store
    _pipeline: Pipeline
    _scope: Scope
    _snapshots: Registry[Snapshot]
    _transactions: list[weakref.ref[Transaction]]

    def sync(self) -> None: ...

    def _forget(self, transaction: Transaction | None) -> None: ...

    def _close_files(self) -> None: ...

    def _unflushed(self) -> bool: ...

    def _raise_background_failure(self) -> None: ...


def close(handle: Handle, *, tidy: bool) -> None:
    """Write what is not yet on the disk, and release the file. `tidy` gives back space before. See `Database.close`."""
    if handle._scope.ended:
        handle._store.close()  # closing may have been interrupted
        return
    for reference in reversed(handle._transactions):
        if (transaction := reference()) is not None and transaction.mine():
            transaction.abandon()
    try:
        if handle._store.failure is None:
            handle._pipeline.flush()
            if tidy:
                handle._pipeline.tidy()
                if handle._store.observer is not None:
                    handle._store.observer.finish()
    except BusyError:
        raise
    except BaseException as exc:
        _release(handle, flushed=False)
        if isinstance(exc, OSError):
            raise error.wrap(exc, handle.path) from exc
        raise
    failure = handle._store.failure
    _release(handle, flushed=failure is None)
    handle._raise_background_failure()
    if failure is not None and (handle._store.lost or handle._pipeline.deferred() is not None):
        raise error.because(failure, "closed, but pending writes could not be written", handle.path) from failure


def _release(handle: Handle, *, flushed: bool) -> None:
    """Close the file, but not while a thread writes: its descriptor could be another file's a moment later."""
    writer, lease = handle._store.writer, Lease()
    try:
        writer.take_lease(lease, handle.path, handle._pipeline.timeout)
        while True:
            if not flushed or handle._pipeline.deferred() is None:
                break
            lease.end()  # what is deferred was left by a transaction that ended only now
            handle._pipeline.flush()
            writer.take_lease(lease, handle.path, handle._pipeline.timeout)
        handle._close_files()
    finally:
        lease.end()


def close_files(handle: Handle) -> None:
    """Release the file without flushing anything."""
    if handle._pipeline.flusher is not None:
        handle._pipeline.flusher.stop()
    handle._scope.end()
    for snapshot in handle._snapshots.all():
        snapshot.close()
    if handle._store.observer is not None:
        handle._store.observer.close()
    handle._store.writer.reserved = False
    handle._store.close()
    ended(handle)


def finalize(handle: Handle, let_go: Callable[[], None]) -> None:
    """A handle that was not closed is freed: `let_go` closes it, unless the flusher is inside, which then does it."""
    unflushed = handle._unflushed()
    # A finalizer must not wait. Only the flusher can be inside now; if it is, it closes on its way out.
    handle._pipeline.timeout = 0.0
    inside = handle._store.inside
    inside.postpone(let_go, by_any=True)
    if not inside.occupied:
        inside.came_out()
    if unflushed:
        warnings.warn(f"{handle.path!r} was not closed, and had unflushed writes", ResourceWarning, stacklevel=3)


def finish(handle: Handle, farewell: float) -> None:
    """At the end of the interpreter: write what is pending, wait only briefly for others, and stop the flusher, for
    which to wait `farewell` seconds at most.
    """
    flusher, store = handle._pipeline.flusher, handle._store
    pending = store.lost or store.unsynced is not None or handle._pipeline.deferred() is not None
    try:
        handle._pipeline.hurry()
        if flusher is not None:
            flusher.failure = None  # this flush tells whether it still matters
        handle.sync()
    except OSError as exc:
        if is_interrupt(exc) or (pending and not handle._scope.ended):
            raise
    finally:
        if flusher is not None:
            flusher.stop()
            flusher.join(farewell)


def start_again(handle: Handle) -> None:
    """In a child process: start again with a file of its own. The parent's transactions are not the child's."""
    for reference in handle._transactions.copy():
        if (transaction := reference()) is not None:
            transaction.orphan()
            if not transaction.mine():
                handle._forget(transaction)
    for snapshot in handle._snapshots.all():
        snapshot.after_fork()
    handle._store.after_fork()
    handle._pipeline.after_fork()
