"""`open` and `Database`: a dict in a file.

A handle puts the engine's parts together: the store (one file and its committed state), a pipeline (how writes reach
the disk, by durability mode) and the methods of a mapping. `_files.opening` finds or creates the file. `transaction`
and `snapshot` define what a handle returns. The modules of `maintenance` implement `check`, `stats`, `reorganize` and
`backup`, and are imported here: at first use a process may have no file descriptor left, or another root directory.
"""

from __future__ import annotations

import io
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from . import checkpoint, closing
from ._engine.changeset import ChangeSet
from ._engine.commit import Committer
from ._engine.disk import FileVolume
from ._engine.disk.protocol import Volume
from ._engine.durability import make_pipeline
from ._engine.pager import Pager
from ._engine.pipeline import Pipeline
from ._engine.store import Store
from ._engine.threads import Lease
from ._engine.view import Scope, View
from ._files.arguments import CountedProgress, Path
from ._files.opening import DEFAULT_CACHE_SIZE, DEFAULT_PAGE_SIZE, Durability, Flag, checked, open_store
from ._interrupts import is_interrupt
from ._messages import counted, represented
from ._process.handles import Registry, began
from .checkpoint import Change, Checkpoint
from .errors import ClosedError, error
from .maintenance.backup import backup
from .maintenance.check import Problem, check_state
from .maintenance.reorganize import reorganize
from .maintenance.stats import Stats, gather
from .mapping import Key, as_bytes
from .snapshot import Pin, Snapshot
from .streams import Source, opened
from .table import Table, WithTables
from .transaction import Transaction, own_transaction, stream_into

if TYPE_CHECKING:
    from .attach import Attachment
    from .changelog import ChangeLog

__all__ = ["Database", "Durability", "Flag", "open", "open_on"]

_FAREWELL = 5.0
"""Seconds to wait for a flusher that is amid a flush to end, at most."""

_RETRIES = 20
"""How often a look-up that was overtaken by writers is tried again before it pins what it reads."""

T = TypeVar("T")


def open(
    file: Path,
    flag: Flag = "r",
    mode: int = 0o666,
    *,
    durability: Durability = "full",
    interval: float = 1.0,
    timeout: float | None = 30.0,
    page_size: int | None = None,
    cache_size: int = DEFAULT_CACHE_SIZE,
) -> Database:
    """Open a database file and return it as a `Database`.

    file: the file's name, used as it is: exactly one file of exactly that name.
    flag: "r" opens an existing file and writes nothing; "w" opens an existing file for reading and writing; "c" creates
        it if it is missing; "n" always starts with an empty database. One or more of dbm.gnu's suffixes may follow: "f"
        means durability="manual", "s" means durability="full", "u" has no effect, because locks never prevent opening.
    mode: permissions of a new file, less the umask.
    durability: what survives once a write has returned. "full": everything; it is on the disk. "process": everything if
        the process is killed; a power failure may lose the last `interval` seconds. "interval": either may lose the
        last `interval` seconds. "manual": either may lose what was written since the last `sync()`.
    interval: seconds, see `durability`.
    timeout: seconds to wait for another writer before `BusyError`; None waits for ever.
    page_size: page size of a new file in bytes, a power of two from 4096 to 65536. A durabledbm database that "n"
        empties keeps its own.
    cache_size: bytes of memory for caching.

    In every mode, after any crash the file opens immediately and contains a prefix of the commits, each complete.

    Raises `error` with errno ENOENT if the file is missing and the flag does not create it. Raises `error` if the file
    is not a durabledbm database, and leaves it unchanged. Raises `error` if an old database of `dbm` has this name
    (NAME.dat and NAME.dir, NAME.db or NAME.pag), because a new file would hide it; the message names its kind and the
    command that converts it. Raises `CorruptionError` if the file is damaged, and `ValueError` or `TypeError` for an
    invalid argument.
    """
    return open_on(
        FileVolume(), file, flag, mode, durability=durability, interval=interval, timeout=timeout,
        page_size=page_size, cache_size=cache_size,
    )  # fmt: skip


def open_on(
    volume: Volume, file: Path, flag: str = "r", mode: int = 0o666, *, durability: str = "full", interval: float = 1.0,
    timeout: float | None = 30.0, page_size: int | None = None, cache_size: int = DEFAULT_CACHE_SIZE,
) -> Database:  # fmt: skip
    """`open` on a given file system: tests pass simulated ones."""
    name, flag, durability = checked(
        file, flag, durability, interval=interval, timeout=timeout, page_size=page_size, cache_size=cache_size
    )
    store = open_store(volume, name, flag, mode, page_size or DEFAULT_PAGE_SIZE, cache_size)
    database = Database(store, name, make_pipeline(store, durability, interval, timeout))
    if flag == "n" and store.state.meta.txid > 1:
        try:
            database._writing(Committer.erase)
        except BaseException:
            database.close()
            raise
    return database


class Database(WithTables):
    """A dict of bytes to bytes in one file, ordered by key. Made by `open`.

    Each single write is an atomic commit; `transaction()` combines many writes into one. Any thread may use a handle,
    and so may a child process after `fork`. Every method raises `ClosedError` after `close()`, and `error` or a
    subclass of it when the file or the disk fails.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_pipeline",
        "_plain",
        "_scope",
        "_snapshots",
        "_store",
        "_transactions",
        "path",
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
        self._snapshots: Registry[Snapshot] = Registry()
        self._scope = Scope()
        self._plain = not pipeline.defers
        """Nothing stands between a look-up and the committed state: no open transaction, nothing deferred."""
        store.keep()
        began(self)

    # -- what it is --------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the handle is closed."""
        return self._scope.ended

    @property
    def readonly(self) -> bool:
        """Whether the handle was opened with flag "r"."""
        return self._store.readonly

    def _check(self) -> None:
        self._store.check()

    def __repr__(self) -> str:
        return represented(self, *self._said())

    def _said(self) -> tuple[str, ...]:
        """The parts of `repr`: nothing is read from the file, no lock is waited for, so it works at any moment."""
        if self._scope.ended:
            return repr(self.path), "closed"
        entries = counted(self._store.state.meta.entry_count, unflushed=self._unflushed())
        return repr(self.path), entries, "read-only" if self.readonly else "open"

    def _unflushed(self) -> bool:
        """Whether this handle holds writes that are not in the file."""
        return not self._scope.ended and self._pipeline.deferred() is not None

    # -- reading -----------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> bytes:
        store = self._store
        if self._plain and type(key) is bytes:
            # The common case, in as few steps as possible: no new commit, and the row was read before.
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
            state = self._guarded(store.current)
            try:
                return store.fetch(key, whole=whole)
            except error:
                if self._guarded(store.refresh) is state:
                    raise
                # else writers were faster: the pages have been reused
        pin = Pin(store)
        try:
            return pin.state.view.get(key) if whole else pin.state.view.find(key)
        finally:
            pin.release()

    def _value_reader(self, key: bytes) -> io.BufferedReader | None:
        return opened(key, *self._scoped_view())

    def __len__(self) -> int:
        if (transaction := self._own_transaction()) is not None:
            return len(transaction)
        self._raise_background_failure()
        work = self._pipeline.deferred()
        if work is not None:
            self._store.check()
            return self._pipeline.count()
        return self._guarded(self._store.current).meta.entry_count

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        view, scope, pin = self._scoped_view()
        return view.items(start, stop, reverse=reverse, scope=scope, pin=pin)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        view, scope, pin = self._scoped_view()
        return view.keys(start, stop, reverse=reverse, scope=scope, pin=pin)

    def _scoped_view(self) -> tuple[View, Scope, object]:
        if (transaction := self._own_transaction()) is not None:
            return transaction._scoped_view()
        view, pin = self._pinned()
        return view, self._scope, (pin, self)

    def _pinned(self) -> tuple[View, Pin]:
        """The present content without the caller's transaction, as an unchanging view, and its pin."""
        self._raise_background_failure()
        return self._guarded(self._pin_with_pending)

    def _pin_with_pending(self) -> tuple[View, Pin]:
        while True:
            pin = Pin(self._store)
            pending = self._pipeline.view()
            if pending is not None and pending[1].meta.txid == pin.state.meta.txid:
                return pending[0], pin
            # Nothing is pending: unless it was committed since the pin was made, that is all there is.
            if pending is None and (self._plain or self._store.state.meta.txid <= pin.state.meta.txid):
                return pin.state.view, pin

    def _guarded(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call the engine, and raise its operating system errors as ours."""
        try:
            return call(*arguments)
        except OSError as exc:
            raise self._error(exc) from exc

    def _error(self, cause: OSError) -> error:
        """What to raise for an operating system error: `ClosedError` if the handle was closed meanwhile."""
        try:
            return error.wrap(cause, self.path) if is_interrupt(cause) or not self._store.closed else ClosedError()
        finally:
            del cause  # see `wrap`

    # -- writing -----------------------------------------------------------------------------------

    def _own_transaction(self, *, to_write: bool = False) -> Transaction | None:
        """The transaction that this call belongs to, if any (see `own_transaction`)."""
        return own_transaction(self, to_write=to_write) if self._transactions else None

    def _change(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Make an atomic change, `operation(changes, *arguments)`: in the caller's transaction, or else as a commit."""
        if (transaction := self._own_transaction(to_write=True)) is not None:
            return transaction.change(operation, *arguments)
        return self._run(lambda changes: operation(changes, *arguments))

    def _run(self, operation: Callable[[ChangeSet], T]) -> T:
        """Run an operation as a commit of its own."""
        self._store.check_writable()
        self._raise_background_failure()
        result: T = self._guarded(self._store.inside.call, self._pipeline.apply, operation)
        return result

    def _writable(self) -> bool:
        return not self._store.readonly

    def _put(self, key: bytes, value: bytes) -> None:
        if self._transactions and (transaction := own_transaction(self, to_write=True)) is not None:
            transaction._put(key, value)
        elif not (self._pipeline.put(key, value) if self._pipeline.defers else self._put_alone(key, value)):
            self._run(lambda changes: changes.put(key, value))

    def _put_stream(self, key: bytes, source: Source) -> None:
        stream_into(self, key, source)

    def _put_alone(self, key: bytes, value: bytes) -> bool:
        self._store.check_writable()
        self._raise_background_failure()
        done: bool = self._guarded(self._store.inside.call, self._pipeline.put, key, value)
        return done

    def _delete(self, key: bytes) -> bool:
        return self._change(ChangeSet.discard, key)

    def _pop(self, key: bytes) -> bytes | None:
        return self._change(ChangeSet.pop, key)

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        return self._change(ChangeSet.pop_last)

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        return self._change(ChangeSet.set_default, key, default)

    def _update(self, changes: dict[bytes, bytes]) -> None:
        self._change(ChangeSet.update, changes)

    def clear(self) -> None:
        """Delete all entries of the main table in one atomic commit. Other tables stay."""
        if (transaction := self._own_transaction(to_write=True)) is not None:
            transaction.clear()
        else:
            self._run(ChangeSet.clear)

    def transaction(self) -> Transaction:
        """A block of writes that is one atomic commit: `with db.transaction(): ...` (see `Transaction`)."""
        return Transaction(self)

    def snapshot(self, max_age: float | None = None) -> Snapshot:
        """A read-only view of the present content that does not change (see `Snapshot`).

        Inside a transaction it shows the last commit, without the transaction's own changes. After `max_age` seconds a
        commit of this handle that needs pages may end the snapshot; then reading raises `error`. None: never.
        """
        view, pin = self._pinned()
        snapshot = Snapshot(pin, view, self)
        if max_age is not None:
            self._store.limited.add(max_age, weakref.ref(snapshot))
        self._snapshots.add(snapshot)
        return snapshot

    # -- other tables ------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """The table of that name: a mapping with keys of its own in the file. Its first write makes it (see `Table`).

        Any text but the empty one is a name: anything else raises `TypeError` or `ValueError`.
        """
        self._store.check()
        return Table(self, name)

    def _change_table(self, operation: Callable[..., T], name: str, *arguments: Any) -> T:
        if (transaction := self._own_transaction(to_write=True)) is not None:
            return transaction._change_table(operation, name, *arguments)
        return self._run(lambda changes: operation(changes, name, *arguments))

    @property
    def _pager(self) -> Pager:
        return self._store.pager

    # -- checkpoints -------------------------------------------------------------------------------

    def checkpoint(self, name: str, *, replace: bool = False) -> None:
        """Keep the last commit under a name, durably, until `drop_checkpoint`. Takes no longer for a large database.

        The pages that later commits replace are not reused. Raises `error` inside a transaction, and if there is a
        checkpoint of that name, unless `replace`.
        """
        self._check_no_transaction()
        self._writing(checkpoint.make, name, replace)

    def drop_checkpoint(self, name: str) -> None:
        """Drop a checkpoint. One commit frees the pages that only it needs. Raises `KeyError` if there is none."""
        self._check_no_transaction()
        self._writing(checkpoint.drop, name)

    def _check_no_transaction(self) -> None:
        if self._own_transaction() is not None:
            raise error(f"{self.path}: checkpoints are made and dropped outside of a transaction")

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints, the oldest first."""
        view, pin = self._pinned()
        return self._with_pin(pin, checkpoint.listed, view)

    def at(self, name: str) -> Snapshot:
        """A snapshot of a checkpoint. Raises `KeyError` if there is none."""
        view, pin = self._pinned()
        snapshot = self._guarded(checkpoint.at, pin, view, name, self)
        self._snapshots.add(snapshot)
        return snapshot

    def diff(self, a: str | Snapshot, b: str | Snapshot | None = None) -> Iterator[Change]:
        """What changed from `a` to `b`, checkpoints by name or snapshots (None: the present). Reads what differs."""
        parts = a, self.snapshot() if b is None else b  # an empty snapshot is false, too
        return checkpoint.differences(*(part if isinstance(part, Snapshot) else self.at(part) for part in parts))

    def restore(self, name: str) -> None:
        """Make the content of a checkpoint, all tables, the present, in one commit. Checkpoints stay.

        It writes what differs. In a transaction it replaces the changes so far. Raises `KeyError` if there is none.
        """
        with self.transaction() as tx, self.at(name) as kept:
            checkpoint.turn(tx, kept)

    # -- for transactions --------------------------------------------------------------------------

    def _join(self, transaction: weakref.ref[Transaction]) -> None:
        self._transactions.append(transaction)
        self._plain = False

    def _forget(self, transaction: Transaction | None) -> None:
        """Remove an ended transaction from the list of open ones, and any that no longer exist."""
        self._transactions = [ref for ref in self._transactions if (it := ref()) is not None and it is not transaction]
        self._plain = not self._transactions and not self._pipeline.defers and not self._scope.ended

    def _pin(self, *, displaced: bool = False) -> Pin:
        self._raise_background_failure()
        return self._guarded(partial(Pin, self._store, displaced=displaced))

    # -- looking after the file --------------------------------------------------------------------

    def check(self, *, progress: CountedProgress | None = None) -> list[Problem]:
        """Verify every page of the newest commit, read from the disk. An empty list means that no problem was found.

        Other threads and processes may read and write meanwhile. `progress(done, total)` counts pages. Damage is
        reported, not raised. Raises `error` if the file cannot be read at all.
        """
        return self._with_pin(self._pin(), check_state, progress)

    def stats(self) -> Stats:
        """Figures of the newest commit and of this handle (see `Stats`). Reads only the branches of the tree.

        Raises `CorruptionError` if what it reads is damaged.
        """
        return self._with_pin(self._pin(), gather)

    def reorganize(self, *, progress: CountedProgress | None = None) -> None:
        """Make the file as small as its content allows, by ordinary commits, while others read and write.

        It needs about a megabyte of free disk space. Pages that a snapshot pins stay. `progress(done, total)` is called
        now and then. A crash, or an exception from `progress`, stops the work and loses nothing. Raises
        `ReadOnlyError`, `BusyError` if another writer holds the file for longer than `timeout`, and what a commit
        raises.
        """
        self._writing(reorganize, progress)

    def _writing(self, operation: Callable[..., None], *arguments: Any) -> None:
        """Call `operation(committer, writing, *arguments)`, which commits in blocks `with writing()`."""
        self._store.check_writable()
        self._raise_background_failure()
        lease = Lease()
        writing = partial(self._pipeline.writing, lease)
        try:
            self._guarded(self._store.inside.call, operation, self._pipeline.committer, writing, *arguments)
        finally:
            lease.end()

    def backup(self, target: Path, *, progress: CountedProgress | None = None) -> None:
        """Write a consistent, compact, synced copy to the file `target`, which appears complete or not at all.

        An existing file is replaced. The copy has the database's identity, permissions and commit number. Others may
        read and write meanwhile. `progress(done, total)` counts entries. Raises `error` if the target cannot be written
        or is the database itself, and `CorruptionError` if the database is damaged.

        If the open file was moved or removed, its last commit is copied: no other use of the handle is possible then.
        """
        if not self.readonly and not self._transactions and self._store.in_place():
            self.sync()
        self._with_pin(self._pin(displaced=True), backup, target, progress)

    def attach(self, log: ChangeLog) -> Attachment:
        """Append every later commit to `log`, in order, after it is durable: an incremental backup.

        Commits that the log lacks are added first. An empty log is bound to this database and begins with the present
        commit, so take the backup after this call, not before. Raises `error` if the log belongs to another database,
        cannot be completed, or if a log is attached already; `BusyError` if another writer appends to the log;
        `ReadOnlyError`.
        """
        if not hasattr(log, "_attach_to"):
            raise TypeError(f"attach() needs a ChangeLog, not {type(log).__name__}")
        self._store.check_writable()
        return self._store.inside.call(log._attach_to, self._pipeline.committer, self._pipeline.writing)

    def _with_pin(self, pin: Pin, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function(store, state, *arguments)` with the pinned state."""
        try:
            return self._guarded(function, self._store, pin.state, *arguments)
        finally:
            pin.release()

    # -- ends --------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything written through this handle is on the disk, in any durability mode."""
        self._store.check()
        self._raise_background_failure()
        self._guarded(self._store.inside.call, self._pipeline.flush)

    def close(self) -> None:
        """Write what is not yet on the disk, and release the file. Closing twice is harmless.

        A transaction that this context has open is rolled back. If the final flush fails, the file is released and the
        error raised. If another thread's transaction does not finish within `timeout`, raises `BusyError` and the
        handle stays open. A call from a signal handler or finalizer that interrupted an operation of this handle
        returns immediately, and takes effect when that operation has ended.
        """
        if self._postpone(self.close):
            return
        try:
            self._store.inside.call(self._close, True)
        finally:
            if self._scope.ended and self._pipeline.flusher is not None:
                self._pipeline.flusher.join(_FAREWELL)

    def _postpone(self, action: Callable[[], None]) -> bool:
        """If this thread is inside an operation of the handle, have `action` called after it. Whether it is."""
        return self._store.inside.put_off(action)

    def _close(self, tidy: bool) -> None:
        closing.close(self, tidy=tidy)

    def _close_files(self) -> None:
        self._plain = False
        closing.close_files(self)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _finish(self) -> None:
        closing.finish(self, _FAREWELL)

    def _before_fork(self) -> None:
        """Write what is pending if that is possible without waiting: a child sees only what is in the file."""
        if not self._store.inside.here():
            self._store.inside.call(self._pipeline.before_fork)

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        scope = getattr(self, "_scope", None)
        if scope is not None and not scope.ended and not _finalizing():
            closing.finalize(self, self._let_go)  # else everything was flushed, and the system releases the file

    def _let_go(self) -> None:
        try:
            self._store.inside.call(self._close, False)
        except Exception:
            pass  # as with files that are dropped, no caller is left to receive it

    def _after_fork(self) -> None:
        closing.start_again(self)

    def _raise_background_failure(self) -> None:
        flusher = self._pipeline.flusher
        if flusher is not None and flusher.failure is not None:
            failure, flusher.failure = flusher.failure, None
            raise error.because(failure, "writing in the background failed", self.path) from failure
