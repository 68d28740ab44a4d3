"""Sharded databases: one mapping over several database files, so that several writers commit at the same time.

A file has one writer at a time, and its syncs follow one another. Here a hash places each key in one of N files (see
`sharded.manifest`), and threads or processes that write to different files do not wait for each other.

Atomicity is per shard: a single write, and each shard's part of `update()`. No commit spans shards, and an iterator or
snapshot shows each shard at its own start, not all of them at one instant.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any
from zlib import crc32

from .._engine.changeset import ChangeSet
from .._engine.disk import FileVolume
from .._engine.tables import drop
from .._engine.threads import Lease
from .._files.arguments import CountedProgress, Path
from .._files.opening import DEFAULT_CACHE_SIZE, Flag, OpenOptions
from .._foreign.kinds import refuse_for_shards
from .._messages import counted, read_only, represented
from ..database import Database
from ..database import open as open_database
from ..errors import BusyError, ClosedError, error
from ..maintenance.check import Problem
from ..mapping import Key, Writable, as_bytes
from ..streams import Source
from ..table import Table, checked_name
from ..transaction import own_transaction
from . import manifest
from .manifest import GOLDEN, make_whole, place, shard_path
from .tables import ShardedTable
from .threads import Call, Threads
from .views import MergedIterator, ShardedSnapshot, ShardedStats, ShardTransaction

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ShardTransaction", "ShardedDatabase", "ShardedSnapshot", "ShardedStats", "open_sharded"]



class _Default(int):
    """A number that tells whether it was given: an existing database is opened with the shards that it has."""


DEFAULT_SHARDS = _Default(8)


def open_sharded(
    directory: Path, flag: Flag = "r", mode: int = 0o666, *, shards: int = DEFAULT_SHARDS,
    **open_options: Unpack[OpenOptions],
) -> ShardedDatabase:  # fmt: skip
    """Open a sharded database and return it as a `ShardedDatabase`.

    directory: the directory that holds its files and nothing else. It is created if its parent exists.
    flag, mode: as for `open`. "n" empties all shards and creates as many as `shards` says.
    shards: number of shards of a new database. For an existing database it may be omitted, or must be right.
    open_options: those of `open`. `timeout` and `interval` apply to each shard; the shards share `cache_size`.

    Raises what `open` raises, and `error` if the directory holds another number of shards, or no shards, or if
    something else has its name.
    """
    if not isinstance(shards, int) or not 0 < shards <= manifest.SHARDS_MAX:
        raise ValueError(f"shards must be a number from 1 to {manifest.SHARDS_MAX}, not {shards!r}")
    if not isinstance(flag, str) or flag[:1] not in ("r", "w", "c", "n"):
        raise ValueError(f"Flag must be 'r', 'w', 'c', or 'n', perhaps followed by 'f', 's' or 'u', not {flag!r}")
    path = os.path.abspath(os.fsdecode(directory))
    there, kind = manifest.read(path), flag[0]
    if there is None:
        number = errno.ENOENT if kind in ("r", "w") else errno.EEXIST
        refuse_for_shards(FileVolume(), path, os.fsdecode(directory), number)
    if there is None and kind in ("r", "w"):
        raise error(errno.ENOENT, "there is no sharded database; flag 'c' creates one", path)
    if there is not None and there != shards and kind != "n":
        if shards is not DEFAULT_SHARDS:
            raise error(f"{path}: has {there} shards, not {shards}")
        shards = there
    made = there is None and _make_directory(path)
    # Where there is a manifest all shards must be there: a missing one is not to be created empty.
    shard_flag = "w" + flag[1:] if kind == "c" and there is not None else flag
    try:
        opened = _open_shards(path, shard_flag, mode, int(shards), open_options)
    except BaseException:
        if made and not os.listdir(path):
            os.rmdir(path)
        raise
    try:
        if there != shards:
            manifest.write(path, shards, replace=there is not None)
        if there is None and (now := manifest.read(path)) != shards:
            raise error(f"{path}: has {now} shards, not {shards}")  # another process was faster
        if there is not None and there != shards:
            _remove_shards(path, there)
    except BaseException:
        for shard in opened:
            shard.close()
        raise
    return ShardedDatabase(path, opened)


def _make_directory(path: str) -> bool:
    """Create the directory if it is missing; return whether it was."""
    try:
        os.mkdir(path)
        FileVolume().sync_directory(path)
    except FileExistsError:
        return False
    except OSError as exc:
        raise error.wrap(exc, path) from exc
    return True


def _open_shards(path: str, flag: Any, mode: int, shards: int, options: OpenOptions) -> list[Database]:
    options = {**options, "cache_size": options.get("cache_size", DEFAULT_CACHE_SIZE) // shards}
    opened: list[Database] = []
    try:
        for number in range(shards):
            opened.append(open_database(shard_path(path, number, shards), flag, mode, **options))
    except BaseException:
        for shard in opened:
            shard.close()
        raise
    return opened


def _remove_shards(path: str, shards: int) -> None:
    for number in range(shards):
        try:
            os.unlink(shard_path(path, number, shards))
        except FileNotFoundError:
            pass


class ShardedDatabase(Writable):
    """A dict of bytes to bytes in several files, ordered by key. Made by `open_sharded`.

    It offers what `Database` offers, with two exceptions: `transaction(key)` covers the key's shard only, and there is
    no `attach()`, whose log needs a single order of commits. Any thread may use it, and so may a child process after
    `fork`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        if hasattr(self, "_shards"):
            raise error("DBM object does not support reinitialization")
        self._build(*args, **options)

    def _build(self, path: str, shards: list[Database]) -> None:
        self.path = path
        self._shards = shards
        self._count = len(shards)
        pipeline = shards[0]._pipeline
        self._syncs = pipeline.waits_for_the_disk
        """A write waits for the disk, so writes to several shards are worth several threads."""
        self._threads = Threads("durabledbm-shard")
        self._closed = False

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def shards(self) -> int:
        """The number of shards."""
        return self._count

    @property
    def closed(self) -> bool:
        """Whether `close()` has closed all shards."""
        return self._closed

    @property
    def readonly(self) -> bool:
        """Whether it was opened with flag "r"."""
        return self._shards[0].readonly

    def shard_of(self, key: Key) -> int:
        """The number of the shard that holds `key`, from 0. Keys of one shard share transactions."""
        return place(as_bytes(key, "key"), self._count)

    def __repr__(self) -> str:
        return represented(self, *self._said())

    def _said(self) -> tuple[str, ...]:
        """The parts of `repr`: see `Database._said`."""
        if self.closed:
            return repr(self.path), "closed"
        entries = sum(shard._store.state.meta.entry_count for shard in self._shards)
        shown = counted(entries, unflushed=self._unflushed())
        return repr(self.path), f"{self._count} shards", shown, "read-only" if self.readonly else "open"

    def _unflushed(self) -> bool:
        return any(shard._unflushed() for shard in self._shards)

    # -- one key ---------------------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> bytes:
        data = key if type(key) is bytes else as_bytes(key, "key")
        try:
            return self._shards[(crc32(data) * GOLDEN & 0xFFFFFFFF) * self._count >> 32][data]  # see place
        except KeyError:
            raise KeyError(key) from None

    def _shard(self, key: bytes) -> Database:
        return self._shards[place(key, self._count)]

    def _find(self, key: bytes) -> bytes | None:
        return self._shard(key)._find(key)

    def _has(self, key: bytes) -> bool:
        return self._shard(key)._has(key)

    def _value_reader(self, key: bytes) -> io.BufferedReader | None:
        return self._shard(key)._value_reader(key)

    def _put_stream(self, key: bytes, source: Source) -> None:
        self._shard(key)._put_stream(key, source)

    def _put(self, key: bytes, value: bytes) -> None:
        self._shard(key)._put(key, value)

    def _delete(self, key: bytes) -> bool:
        return self._shard(key)._delete(key)

    def _pop(self, key: bytes) -> bytes | None:
        return self._shard(key)._pop(key)

    def _set_default(self, key: bytes, default: bytes) -> bytes:
        return self._shard(key)._set_default(key, default)

    def _writable(self) -> bool:
        return not self.readonly

    def transaction(self, key: Key) -> ShardTransaction:
        """A transaction of the shard that holds `key`: `with db.transaction(key) as tx: ...`.

        The same thread's use of that shard's keys through this object belongs to the transaction; its use of other keys
        does not. Code that nests transactions of two shards should always begin them in the same order.
        """
        return ShardTransaction(self._shard(as_bytes(key, "key")), self.shard_of(key), self._count)

    # -- all -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        parts = [shard._items(start, stop, reverse) for shard in self._shards]
        return MergedIterator(parts, self, reverse=reverse)

    def _parted_items(self) -> Iterator[tuple[bytes, Any]]:
        return self.snapshot()._parted_items()

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        parts = [shard._keys(start, stop, reverse) for shard in self._shards]
        return MergedIterator(parts, self, reverse=reverse)

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        if self.readonly:
            raise read_only(self.path)
        while (key := next(self._keys(None, None, True), None)) is not None:
            with self.transaction(key) as tx:
                if next(tx._keys(None, None, True), None) == key:
                    value = tx._pop(key)
                    assert value is not None
                    return key, value
        return None

    def _update(self, changes: dict[bytes, bytes]) -> None:
        parts: dict[int, dict[bytes, bytes]] = {}
        count = self._count
        for key, value in changes.items():
            parts.setdefault(place(key, count), {})[key] = value
        for number in parts:
            own_transaction(self._shards[number], to_write=True)  # raises before anything is written

        def write(number: int, call: Call) -> None:
            shard = self._shards[number]
            if own_transaction(shard) is None:
                shard._run(_unless_cancelled(call, ChangeSet.update, parts[number]))
            else:
                shard._update(parts[number])

        if self._syncs:
            self._each(write, list(parts))
        else:
            for number, part in parts.items():
                self._shards[number]._update(part)

    def clear(self) -> None:
        """Delete all entries, in one atomic commit per shard."""
        for shard in self._shards:
            own_transaction(shard, to_write=True)

        def write(number: int, call: Call) -> None:
            shard = self._shards[number]
            if own_transaction(shard) is None:
                shard._run(_unless_cancelled(call, ChangeSet.clear))
            else:
                shard.clear()

        self._each(write, range(self._count))

    def table(self, name: str) -> ShardedTable:
        """The table of that name: its keys are placed in the shards as those of the main table are."""
        self._check()
        return ShardedTable(self, name)

    def _tables(self, name: str) -> list[Table]:
        return [shard.table(name) for shard in self._shards]

    def tables(self) -> list[str]:
        """The names of all tables, ascending."""
        return sorted({name for shard in self._shards for name in shard.tables()})

    def drop_table(self, name: str) -> None:
        """Delete a table and all its entries, in one atomic commit per shard. Raises `KeyError` if there is none."""
        checked_name(name)
        dropped = [shard._change_table(drop, name) for shard in self._shards]
        if not any(dropped):
            raise KeyError(name)

    def snapshot(self) -> ShardedSnapshot:
        """Read-only snapshots of all shards, taken one after another."""
        return ShardedSnapshot([shard.snapshot() for shard in self._shards])

    def _check(self) -> None:
        if self.closed:
            raise ClosedError

    def _each(self, make: Callable[[int, Call], None], numbers: Iterable[int]) -> None:
        """Call `make` for these shards at the same time, so that their syncs overlap. Raises when all have ended."""
        self._check()
        # What the caller has begun itself it has to go on with: others would wait for it, and it for them.
        here = [number for number in numbers if self._is_callers(number)]
        anywhere = [number for number in numbers if number not in here]
        self._threads.make((partial(make, number) for number in here), (partial(make, number) for number in anywhere))

    def _is_callers(self, number: int) -> bool:
        shard = self._shards[number]
        return own_transaction(shard) is not None or shard._store.writer.is_callers()

    # -- looking after it ------------------------------------------------------------------------------------

    def check(self, *, progress: CountedProgress | None = None) -> list[Problem]:
        """Verify every page of every shard, as `Database.check` does. Messages name the shard's file."""
        total = sum(shard._store.state.meta.page_count for shard in self._shards)
        problems: list[Problem] = []
        done = 0
        for shard in self._shards:
            found = shard.check(progress=_share(progress, done, total))
            name = os.path.basename(shard.path)
            problems += [problem._replace(message=f"{name}: {problem.message}") for problem in found]
            done += shard._store.state.meta.page_count
        return problems

    def stats(self) -> ShardedStats:
        """Figures of all shards together, and of each."""
        parts = [shard.stats() for shard in self._shards]
        names = ("file_bytes", "live_bytes", "free_bytes", "pinned_bytes", "commits", "syncs", "pages_written")
        sums = {name: sum(getattr(part, name) for part in parts) for name in names}
        depth = max(part.depth for part in parts)
        return ShardedStats(entries=sum(part.entries for part in parts), depth=depth, shards=parts, **sums)

    def reorganize(self, *, progress: CountedProgress | None = None) -> None:
        """Make each file as small as its content allows."""
        total = self._count * 1000
        for number, shard in enumerate(self._shards):
            shard.reorganize(progress=_thousandths(progress, number * 1000, total))

    def backup(self, target: Path, *, progress: CountedProgress | None = None) -> None:
        """Write a copy to the new directory `target`, which appears complete or not at all.

        Each shard is copied as of one commit, one shard after another. A write during the copying may be in some
        shards' copies and not in others. `progress(done, total)` counts entries.
        """
        path = os.path.abspath(os.fsdecode(target))
        total = len(self)

        def fill(directory: str) -> None:
            done = 0
            for number, shard in enumerate(self._shards):
                shard.backup(
                    shard_path(directory, number, self._count), progress=_share(progress, done, total)
                )
                done += len(shard)

        make_whole(path, self._count, fill)

    def sync(self) -> None:
        """Return when everything written through this object is on the disk."""
        self._each(self._flush, range(self._count))

    def _flush(self, number: int, _: Call) -> None:
        self._shards[number].sync()

    def close(self) -> None:
        """Write what is not yet on the disk, and release the files. Closing twice is harmless.

        The caller's open transactions are rolled back. If a final flush fails, the files are released and the error
        raised. If another thread's transaction does not finish within `timeout`, raises `BusyError` and at least that
        shard stays open: call `close()` again. A call from a signal handler or finalizer that interrupted an operation
        of a shard returns immediately, and takes effect when that operation has ended.
        """
        if self._postpone(self.close):
            return
        others = [n for n in range(self._count) if not (self._shards[n].closed or self._is_callers(n))]
        try:
            self._threads.make((), (partial(self._flush, number) for number in others))
        except BusyError:
            raise
        except error:
            pass  # to close the shard raises it again
        for number in others:
            _wait_for_writers(self._shards[number])  # so that as a rule all are closed or none
        failure: Exception | None = None
        for shard in self._shards:
            try:
                shard.close()
            except Exception as exc:
                failure = failure or exc
        self._closed = all(shard.closed for shard in self._shards)
        if self._closed:
            self._threads.close()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    def _postpone(self, action: Callable[[], None]) -> bool:
        """If this thread is inside an operation of a shard, have `action` called after it. Whether it is."""
        return any(shard._postpone(action) for shard in self._shards)

    def __enter__(self) -> ShardedDatabase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _unless_cancelled(call: Call, operation: Callable[..., None], *arguments: object) -> Callable[[ChangeSet], None]:
    """The operation, which runs on the writer's turn and only if it is still wanted."""

    def run(work: ChangeSet) -> None:
        call.begin()
        operation(work, *arguments)

    return run


def _wait_for_writers(shard: Database) -> None:
    """Wait until no thread writes through this handle. Raises `BusyError` after its `timeout`."""
    lease = Lease()
    try:
        shard._store.writer.take_lease(lease, shard.path, shard._pipeline.timeout)
        lease.end()
    except BaseException:
        lease.end()  # again: an interrupt may have come in the middle of it
        raise


def _share(progress: CountedProgress | None, done: int, total: int) -> CountedProgress | None:
    """The `progress` of one shard as part of the whole; `done` counts the shards before it."""
    return None if progress is None else lambda here, _: progress(min(done + here, total), total)


def _thousandths(progress: CountedProgress | None, done: int, total: int) -> CountedProgress | None:
    """The same, for work whose total only the shard knows."""
    if progress is None:
        return None
    return lambda here, of: progress(done + 1000 * here // max(of, 1), total)
