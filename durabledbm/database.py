"""`Database`, a dict in a file, and `open`, which makes one.

Here the public behaviour is put together from the engine's parts: the store (one file, its current state), a pipeline
(how writes get to the disk, by durability mode), and the mapping face.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ._engine.creation import create, replace
from ._engine.disk import FileVolume, Volume
from ._engine.locks import forget_owners
from ._engine.meta import LOOK_OFFSET, LOOK_SIZE
from ._engine.page import MAX_PAGE_SIZE, MIN_PAGE_SIZE
from ._engine.pipeline import Deferred, Group, make_pipeline
from ._engine.spill import Spill
from ._engine.state import State
from ._engine.store import Store
from ._engine.view import Life, View
from ._engine.work import CHANGE_MEMORY, Work
from .check import Problem, Progress, check_state
from .errors import BusyError, ClosedError, CorruptionError, error
from .mapping import Key, Writable, as_bytes
from .reorganize import reorganize
from .snapshot import Pin, Snapshot
from .stats import Stats, gather
from .transaction import Transaction, own_transaction

if TYPE_CHECKING:
    from .changelog import ChangeLog

__all__ = ["DEFAULT_CACHE_SIZE", "DEFAULT_PAGE_SIZE", "DURABILITIES", "Database", "open", "open_on"]

DEFAULT_PAGE_SIZE = 4096
DEFAULT_CACHE_SIZE = 64 * 2**20
DURABILITIES = ("full", "process", "interval", "manual")

_FLAGS = "rwcn"
_SUFFIXES = "fsu"
_RETRIES = 20
"""How often a look-up that was overtaken by writers is tried again before it pins what it reads."""

T = TypeVar("T")


def open(  # noqa: A001
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    flag: str = "r",
    mode: int = 0o666,
    *,
    durability: str = "full",
    interval: float = 1.0,
    timeout: float | None = 30.0,
    page_size: int | None = None,
    cache_size: int = DEFAULT_CACHE_SIZE,
) -> Database:
    """Open a database file, and return it as a `Database`.

    file: the file's name, used as it is: exactly one file of exactly that name.
    flag: "r" read an existing file, writing nothing; "w" read and write an existing file; "c" create it if it is
        missing; "n" always begin with an empty database. dbm.gnu's suffixes may follow: "f" is durability="manual",
        "s" is durability="full", "u" does nothing, since locks never stand in the way of opening.
    mode: permissions of a new file, less the umask.
    durability: what an acknowledged write survives: "full", "process", "interval" or "manual" (see the guide).
    interval: seconds, the window of "process" and "interval".
    timeout: seconds to wait for another writer before `BusyError`; None waits for ever.
    page_size: bytes of a page of a new file, a power of two from 4096 to 65536.
    cache_size: bytes of memory for caching.

    Raises `error` with errno ENOENT if the file is missing and the flag does not create it, `error` for a file that is
    not a durabledbm database, which is left as it is, `CorruptionError` for one that is damaged, and `ValueError` or
    `TypeError` for an argument that cannot be.
    """
    return open_on(
        FileVolume(), file, flag, mode, durability=durability, interval=interval, timeout=timeout,
        page_size=page_size, cache_size=cache_size,
    )  # fmt: skip


def open_on(
    volume: Volume,
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    flag: str = "r",
    mode: int = 0o666,
    *,
    durability: str = "full",
    interval: float = 1.0,
    timeout: float | None = 30.0,
    page_size: int | None = None,
    cache_size: int = DEFAULT_CACHE_SIZE,
) -> Database:
    """`open`, on a file system that is handed in: tests pass simulated ones."""
    name = os.fsdecode(file)
    if "\0" in name:
        raise ValueError("embedded null character in the file name")
    flag, durability = _parsed(flag, durability)
    if page_size is not None and (page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE):
        raise ValueError(f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}, not {page_size}")
    if not interval > 0:
        raise ValueError("interval must be positive")
    if timeout is not None and not timeout >= 0:
        raise ValueError("timeout must be None or not negative")
    if cache_size < 0:
        raise ValueError("cache_size must not be negative")
    store = _opened(volume, name, flag, mode, page_size or DEFAULT_PAGE_SIZE, cache_size)
    database = Database(store, name, make_pipeline(store, durability, interval, timeout))
    if flag == "n" and store.state.meta.txid > 1:
        try:
            database.clear()
        except BaseException:
            database.close()
            raise
    return database


def _parsed(flag: str, durability: str) -> tuple[str, str]:
    """The flag without dbm.gnu's suffixes, and the durability that they ask for."""
    if durability not in DURABILITIES:
        raise ValueError(f"durability must be one of {', '.join(map(repr, DURABILITIES))}, not {durability!r}")
    if not isinstance(flag, str) or flag[:1] not in _FLAGS or not flag or set(flag[1:]) - set(_SUFFIXES):
        raise ValueError(f"Flag must be one of 'r', 'w', 'c', or 'n', not {flag!r}")
    for suffix in flag[1:]:
        durability = {"f": "manual", "s": "full"}.get(suffix, durability)
    return flag[0], durability


def _opened(volume: Volume, name: str, flag: str, mode: int, page_size: int, cache_size: int) -> Store:
    path = os.path.realpath(name)
    try:
        for _ in range(100):
            try:
                disk = volume.open(path, writable=flag != "r")
            except FileNotFoundError:
                if flag in "rw":
                    raise
                create(volume, path, mode, page_size)
                continue
            try:
                return Store(volume, disk, page_size=page_size, cache_size=cache_size)
            except error:
                disk.close()
                if flag != "n":
                    raise
                # Whatever it is, flag "n" means that it is not wanted any more.
                replace(volume, path, mode, page_size)
            except BaseException:
                disk.close()
                raise
    except OSError as exc:
        if isinstance(exc, error):
            raise
        raise error.wrap(exc, name) from exc
    raise error(f"{name}: the file is created and removed again and again")


_databases: weakref.WeakValueDictionary[int, Database] = weakref.WeakValueDictionary()
"""All open handles: for fork, and for the end of the interpreter."""


class Database(Writable):
    """A dict of bytes to bytes in one file, in the order of the keys. Made by `open`.

    Each single write is an atomic commit; `transaction()` makes many writes one. A handle may be used by any thread,
    and by a child process after `fork`. All methods raise `ClosedError` after `close()`, and `error` (or one of its
    subclasses) when the file or the disk fails.
    """

    __slots__ = ("__dict__", "__weakref__", "_life", "_pipeline", "_plain", "_snapshots", "_store", "_transactions", "path")

    def __init__(self, *args: Any, **options: Any) -> None:
        if hasattr(self, "_store"):
            raise error("DBM object does not support reinitialization")
        self._build(*args, **options)

    def _build(self, store: Store, path: str, pipeline: Group | Deferred) -> None:
        self._store = store
        self.path = path
        self._pipeline = pipeline
        self._transactions: list[Transaction] = []
        self._snapshots: weakref.WeakValueDictionary[int, Snapshot] = weakref.WeakValueDictionary()
        self._life = Life()
        self._plain = type(pipeline) is Group
        """Nothing stands between a look-up and the committed state: no open transaction, nothing deferred."""
        _databases[id(self)] = self

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._life.ended

    @property
    def readonly(self) -> bool:
        """Whether the handle was opened with flag "r"."""
        return self._store.readonly

    def __repr__(self) -> str:
        state = "closed" if self._life.ended else "read-only" if self.readonly else "open"
        return f"<{type(self).__module__}.{type(self).__qualname__} {self.path!r}, {state}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r}: open the file again in the other process")

    # -- reading -------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> bytes:
        store = self._store
        if self._plain and type(key) is bytes:
            # The common case, in as few steps as can be: nobody committed, and the row was read before.
            try:
                if store.read(LOOK_SIZE, LOOK_OFFSET) == store.look:
                    value = store.rows.young.get(key)
                    if value is not None:
                        return value
            except OSError as exc:
                raise error.wrap(exc, self.path) from exc
        value = self._find(key if type(key) is bytes else as_bytes(key, "key"))
        if value is None:
            raise KeyError(key)
        return value

    def _find(self, key: bytes) -> bytes | None:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._find(key)
        while (work := self._pipeline.pending()) is not None:
            self._raise_background_failure()
            self._store.check()
            try:
                return work.get(key)
            except CorruptionError:
                if self._pipeline.pending() is work:
                    raise  # else it was committed meanwhile, and what it builds on has been reused
        return self._committed(key)

    def _committed(self, key: bytes) -> bytes | None:
        """The value of `key` in the newest commit."""
        self._raise_background_failure()
        store = self._store
        for _ in range(_RETRIES):
            state = self._current()
            value = store.rows.young.get(key)
            if value is None:
                value = store.rows.old(key)
            elif self._store.state is state:
                return value
            try:
                if value is None or store.state is not state:
                    value = state.view.get(key)
            except CorruptionError:
                if self._refreshed() is state:
                    raise
                continue  # writers were faster: the pages have been reused
            if value is not None:
                store.remember(state, key, value)
            return value
        pin = Pin(store)
        try:
            return pin.state.view.get(key)
        finally:
            pin.release()

    def _current(self) -> State:
        try:
            return self._store.current()
        except OSError as exc:
            raise error.wrap(exc, self.path) from exc

    def _refreshed(self) -> State:
        try:
            return self._store.refresh()
        except OSError as exc:
            raise error.wrap(exc, self.path) from exc

    def __len__(self) -> int:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return len(transaction)
        self._raise_background_failure()
        work = self._pipeline.pending()
        if work is not None:
            self._store.check()
            return self._pipeline.count()
        return self._current().meta.entry_count

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._items(start, stop, reverse)
        view, pin = self._pinned()
        return view.items(start, stop, reverse=reverse, life=self._life, pin=pin)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._keys(start, stop, reverse)
        view, pin = self._pinned()
        return view.keys(start, stop, reverse=reverse, life=self._life, pin=pin)

    def _pinned(self) -> tuple[View, Pin]:
        """What there is now, as a view that stays, and the pin that keeps it."""
        self._raise_background_failure()
        try:
            while True:
                pin = Pin(self._store)
                pending = self._pipeline.view()
                if pending is not None and pending[1] is pin.state:
                    return pending[0], pin
                # Nothing is pending: unless it was committed since the pin was made, that is all there is.
                if pending is None and (type(self._pipeline) is Group or self._store.state is pin.state):
                    return pin.state.view, pin
        except OSError as exc:
            raise error.wrap(exc, self.path) from exc

    # -- writing -------------------------------------------------------------------------------------------------

    def _run(self, operation: Callable[[Work], T]) -> T:
        self._store.check_writable()
        self._raise_background_failure()
        try:
            return self._pipeline.run(operation)
        except OSError as exc:
            if isinstance(exc, error):
                raise
            raise error.wrap(exc, self.path) from exc

    def _writable(self) -> bool:
        return not self._store.readonly

    def _put(self, key: bytes, value: bytes) -> None:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            transaction._put(key, value)
        else:
            self._run(lambda work: work.put(key, value))

    def _delete(self, key: bytes) -> bool:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._delete(key)
        return self._run(lambda work: _delete(work, key))

    def _pop(self, key: bytes) -> bytes | None:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._pop(key)
        return self._run(lambda work: _pop(work, key))

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._pop_end()
        return self._run(_pop_end)

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            return transaction._set_default(key, default)
        return self._run(lambda work: _set_default(work, key, default))

    def _update(self, changes: dict[bytes, bytes]) -> None:
        if self._transactions and (transaction := own_transaction(self)) is not None:
            transaction._update(changes)
        else:
            size = sum(map(len, changes)) + sum(map(len, changes.values())) + CHANGE_MEMORY * len(changes)
            self._run(lambda work: work.update(changes, size))  # type: ignore[arg-type]

    def clear(self) -> None:
        """Delete all entries in one atomic commit."""
        if self._transactions and (transaction := own_transaction(self)) is not None:
            transaction.clear()
        else:
            self._run(Work.clear)

    def transaction(self) -> Transaction:
        """A block of writes that is one atomic commit: `with db.transaction(): ...` (see `Transaction`)."""
        return Transaction(self)

    def snapshot(self) -> Snapshot:
        """The database as of now, read-only, for as long as wanted (see `Snapshot`).

        Inside a transaction it shows the last commit, without the transaction's own changes.
        """
        view, pin = self._pinned()
        snapshot = Snapshot(pin, view)
        self._snapshots[id(snapshot)] = snapshot
        return snapshot

    # -- for transactions ----------------------------------------------------------------------------------------

    def _begin(self, transaction: Transaction) -> Work:
        self._store.check_writable()
        self._raise_background_failure()
        work = self._pipeline.begin()
        self._transactions.append(transaction)
        self._plain = False
        return work

    def _end(
        self, transaction: Transaction, work: Work | None, commit: Callable[[bool], State] | None = None
    ) -> None:
        self._transactions = [other for other in self._transactions if other is not transaction]
        self._plain = not self._transactions and type(self._pipeline) is Group and not self._life.ended
        self._pipeline.finish(work, commit)

    def _spill(self, work: Work) -> Spill:
        store = self._store
        pins = store.oldest_pin()
        pending = self._pipeline.pending()
        cleared = work.cleared or (pending is not None and pending.cleared)
        oldest = None if pins is None else pins.txid
        spill = Spill(store.committer, store.pager, store.state, oldest, cleared=cleared)
        self._pipeline.spilling = True
        if pending is not None and not work.cleared:
            spill.add(pending.changes(), reuse=True)
        return spill

    # -- looking after it ----------------------------------------------------------------------------------------

    def check(self, *, progress: Progress | None = None) -> list[Problem]:
        """Verify every page of the newest commit, from the disk. An empty list means that all is well.

        Others may read and write meanwhile. `progress(done, total)` is called with numbers of pages.
        """
        pin = self._pin()
        try:
            return check_state(self._store, pin.state, progress)
        except OSError as exc:
            raise error.wrap(exc, self.path) from exc
        finally:
            pin.release()

    def stats(self) -> Stats:
        """Figures of the newest commit and of this handle (see `Stats`). Reads the branches of the tree, no leaf."""
        pin = self._pin()
        try:
            return gather(self._store, pin.state)
        except OSError as exc:
            raise error.wrap(exc, self.path) from exc
        finally:
            pin.release()

    def reorganize(self, *, progress: Progress | None = None) -> None:
        """Make the file as small as its content allows, by ordinary commits, while others read and write.

        Needs free disk space of about a megabyte. What a snapshot pins stays. `progress(done, total)` is called now
        and then.
        """
        self._store.check_writable()
        self._raise_background_failure()
        try:
            reorganize(self._store, self._pipeline.turn, progress)
        except OSError as exc:
            raise error.wrap(exc, self.path) from exc

    def backup(self, target: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
        """Write a consistent, compact copy to `target`, which appears whole or not at all.

        Others may read and write meanwhile. `progress(done, total)` is called with numbers of entries.
        """
        from .backup import backup

        if not self.readonly and not self._transactions:
            self.sync()
        pin = self._pin()
        try:
            backup(self._store, pin.state, target, progress)
        except OSError as exc:
            raise error.wrap(exc, self.path) from exc
        finally:
            pin.release()

    def attach(self, log: ChangeLog) -> None:
        """Append every commit from now on to `log`, too, in order, after it is durable: an incremental backup.

        What the log lacks is added first. Raises `error` if it belongs to another database.
        """
        from .attach import attach

        self._store.check_writable()
        attach(self._store, self._pipeline.turn, log)

    def _pin(self) -> Pin:
        self._raise_background_failure()
        try:
            return Pin(self._store)
        except OSError as exc:
            raise error.wrap(exc, self.path) from exc

    # -- ends ----------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything written through this handle is on the disk, whatever the durability mode."""
        if self._life.ended:
            raise ClosedError
        self._raise_background_failure()
        try:
            self._pipeline.flush()
        except OSError as exc:
            raise error.wrap(exc, self.path) from exc

    def close(self) -> None:
        """Write what is not yet on the disk, and release the file. Closing twice is harmless.

        A transaction that is open is rolled back. Raises what the last write raises, after releasing the file all the
        same; but `BusyError`, if a transaction of another thread does not end within `timeout`, leaves it open.
        """
        if self._life.ended:
            return
        for transaction in reversed(self._transactions):
            if transaction.mine():
                transaction.abandon()
        try:
            if self._store.failure is None:
                self._flush_and_tidy()
        except BusyError:
            raise
        except OSError as exc:
            self._release()
            raise error.wrap(exc, self.path) from exc
        except BaseException:
            self._release()
            raise
        self._release()
        self._raise_background_failure()

    def _flush_and_tidy(self) -> None:
        if self._transactions:
            with self._pipeline.turn():
                pass
        self._pipeline.flush()
        self._pipeline.tidy()

    def _release(self) -> None:
        if self._pipeline.flusher is not None:
            self._pipeline.flusher.stop()
        self._life.ended = True
        self._plain = False
        for snapshot in list(self._snapshots.values()):
            snapshot.close()
        if self._store.observer is not None:
            self._store.observer.close()
        self._store.close()
        _databases.pop(id(self), None)

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        life = getattr(self, "_life", None)
        if life is not None and not life.ended:
            try:
                self._pipeline.hurry()
                self.close()
            except Exception:  # noqa: BLE001, S110 - nobody is left to be told; close() is there to be told
                pass

    def _after_fork(self) -> None:
        """In a child process: begin anew, with a file of our own; the parent's transactions are not ours."""
        for transaction in self._transactions:
            transaction.orphan()
        self._pipeline.after_fork()
        self._store.after_fork()

    def _raise_background_failure(self) -> None:
        flusher = self._pipeline.flusher
        if flusher is not None and flusher.failure is not None:
            failure, flusher.failure = flusher.failure, None
            raise error(f"{self.path}: writing in the background failed: {failure}") from failure


# Operations of single writes: functions of a `Work`, which a pipeline runs.


def _delete(work: Work, key: bytes) -> bool:
    if work.find(key) is None:
        return False
    work.delete(key)
    return True


def _pop(work: Work, key: bytes) -> bytes | None:
    value = work.get(key)
    if value is not None:
        work.delete(key)
    return value


def _pop_end(work: Work) -> tuple[bytes, bytes] | None:
    entry = next(work.view().items(reverse=True), None)
    if entry is not None:
        work.delete(entry[0])
    return entry


def _set_default(work: Work, key: bytes, default: bytes) -> bytes:
    value = work.get(key)
    if value is None:
        work.put(key, default)
        return default
    return value


# The end of the interpreter, and fork


def _sync_all() -> None:
    """What was deferred must not be lost with the process. Closing is left to the handles: others may still use them."""
    for database in list(_databases.values()):
        database._pipeline.hurry()
        try:
            database.sync()
        except OSError:
            pass


def _before_fork() -> None:
    for database in list(_databases.values()):
        try:
            database._pipeline.before_fork()
        except OSError:
            pass  # the next call, or close(), meets the same trouble and says so


def _after_fork() -> None:
    forget_owners()
    for database in list(_databases.values()):
        database._after_fork()


atexit.register(_sync_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
