"""Sharded: one mapping over several database files, so that several writers commit at once.

A file has one writer at a time, and one sync after the other. Here keys are placed in N files by a hash (see
`_manifest`), and N threads or processes that write to different ones do not meet. What may live here:
routing, merging what is ordered, and doing to all shards what is done to the whole.

What is atomic is atomic in a shard: a single write, and each shard's part of `update()`. There is no commit
across shards, and an iterator or snapshot shows each shard as of its start, not all as of one instant.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from zlib import crc32

from . import _manifest
from ._engine.group import Group
from ._engine.native import FileVolume
from ._manifest import GOLDEN, make_whole, place, shard_path
from ._shardparts import ShardedSnapshot, ShardedStats, ShardTransaction, merged
from .check import Problem
from .database import DEFAULT_CACHE_SIZE, Database, Flag, OpenOptions
from .database import open as open_database
from .errors import ClosedError, error
from .mapping import Key, Writable, as_bytes, counted, read_only, represented
from .transaction import own_transaction

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ShardTransaction", "ShardedDatabase", "ShardedSnapshot", "ShardedStats", "open_sharded"]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Progress = Callable[[int, int], None]
T = TypeVar("T")


class _Default(int):
    """A number that tells whether it was given: an existing database is opened with the shards that it has."""


DEFAULT_SHARDS = _Default(8)


def open_sharded(
    directory: Path, flag: Flag = "r", mode: int = 0o666, *, shards: int = DEFAULT_SHARDS,
    **open_options: Unpack[OpenOptions],
) -> ShardedDatabase:  # fmt: skip
    """Open a sharded database, and return it as a `ShardedDatabase`.

    directory: the directory that holds its files and nothing else. It is created if only its parent exists.
    flag, mode: as for `open`. "n" empties all shards, and makes as many as are asked for.
    shards: how many, when the database is created. For one that exists it may be left out, and must be right otherwise.
    open_options: those of `open`. `timeout` and `interval` hold for each shard, `cache_size` is for all together.

    Raises what `open` raises, and `error` if the directory holds another number of shards, or holds none.
    """
    if not isinstance(shards, int) or not 0 < shards <= _manifest.SHARDS_MAX:
        raise ValueError(f"shards must be a number from 1 to {_manifest.SHARDS_MAX}, not {shards!r}")
    if not isinstance(flag, str) or flag[:1] not in ("r", "w", "c", "n"):
        raise ValueError(f"Flag must be 'r', 'w', 'c', or 'n', perhaps followed by 'f', 's' or 'u', not {flag!r}")
    path = os.path.abspath(os.fsdecode(directory))
    there, kind = _manifest.read(path), flag[0]
    if there is None and kind in ("r", "w"):
        raise error(errno.ENOENT, "no sharded database is there; flag 'c' creates one", path)
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
            _manifest.write(path, shards, replace=there is not None)
        if there is None and (now := _manifest.read(path)) != shards:
            raise error(f"{path}: has {now} shards, not {shards}")  # another process was faster
        if there is not None and there != shards:
            _remove_shards(path, there)
    except BaseException:
        for shard in opened:
            shard.close()
        raise
    return ShardedDatabase(path, opened)


def _make_directory(path: str) -> bool:
    """Make the directory if it is missing, and tell whether it was."""
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
    """A dict of bytes to bytes in several files, in the order of the keys. Made by `open_sharded`.

    What `Database` offers, for the whole, except for transactions: `transaction(key)` is one of the key's shard; and
    without `attach()`, whose log has one order of commits. It may be used by any thread, and by a child after `fork`.
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
        self._syncs = type(pipeline) is Group and pipeline.flusher is None
        """A write waits for the disk, so writes to several shards are worth several threads."""
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def shards(self) -> int:
        """The number of shards."""
        return self._count

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._shards[0].closed

    @property
    def readonly(self) -> bool:
        """Whether it was opened with flag "r"."""
        return self._shards[0].readonly

    def shard_of(self, key: Key) -> int:
        """The number of the shard that `key` belongs to, from 0. Keys of one shard share transactions."""
        return place(as_bytes(key, "key"), self._count)

    def __repr__(self) -> str:
        return represented(self, *self._said())

    def _said(self) -> tuple[str, ...]:
        """For `repr`: see `Database._said`."""
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
        """A transaction of the shard that `key` belongs to: `with db.transaction(key) as tx: ...`.

        The same thread's use of keys of that shard through this object is part of it, too; of other keys it
        is not. Whoever begins transactions of two shards, one inside the other, should always do so in the
        same order.
        """
        return ShardTransaction(self._shard(as_bytes(key, "key")), self.shard_of(key), self._count)

    # -- all -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def _items(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        parts = [shard._items(start, stop, reverse) for shard in self._shards]
        return merged(parts, self, reverse=reverse)

    def _keys(self, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
        parts = [shard._keys(start, stop, reverse) for shard in self._shards]
        return merged(parts, self, reverse=reverse)

    def _pop_end(self) -> tuple[bytes, bytes] | None:
        if self.readonly:
            raise read_only()
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
        if self._syncs:
            self._each(lambda number, shard: shard._update(parts[number]), list(parts))
        else:
            for number, part in parts.items():
                self._shards[number]._update(part)

    def clear(self) -> None:
        """Delete all entries, in one atomic commit of each shard."""
        self._each(lambda _, shard: shard.clear())

    def snapshot(self) -> ShardedSnapshot:
        """All shards as of now, one after another, read-only, for as long as wanted."""
        return ShardedSnapshot([shard.snapshot() for shard in self._shards])

    def _check(self) -> None:
        if self.closed:
            raise ClosedError

    def _each(self, call: Callable[[int, Database], T], numbers: list[int] | None = None) -> list[T]:
        """Call for all shards, or those, at once: their syncs overlap. Raises when all have ended."""
        self._check()
        if numbers is None:
            numbers = list(range(self._count))
        # A shard with an open transaction of the caller's can be written by the caller's own thread only.
        mine = [n for n in numbers if own_transaction(self._shards[n]) is not None]
        theirs = [n for n in numbers if n not in mine]
        if theirs:
            mine.append(theirs.pop())
        futures = {n: self._threads().submit(call, n, self._shards[n]) for n in theirs}
        results: dict[int, T] = {}
        failure: BaseException | None = None
        for number in (*mine, *theirs):
            try:
                future = futures.get(number)
                results[number] = call(number, self._shards[number]) if future is None else future.result()
            except BaseException as exc:
                failure = failure or exc
        if failure is not None:
            raise failure
        return [results[number] for number in numbers]

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pid != os.getpid():  # after a fork the threads are the parent's
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="durabledbm-shard")
            self._pid = os.getpid()
        return self._pool

    # -- looking after it ------------------------------------------------------------------------------------

    def check(self, *, progress: Progress | None = None) -> list[Problem]:
        """Verify every page of every shard, as `Database.check` does. The messages name the shard's file."""
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
        """Figures of the whole, and of each shard."""
        parts = [shard.stats() for shard in self._shards]
        names = ("file_bytes", "live_bytes", "free_bytes", "pinned_bytes", "commits", "syncs", "pages_written")
        sums = {name: sum(getattr(part, name) for part in parts) for name in names}
        depth = max(part.depth for part in parts)
        return ShardedStats(entries=sum(part.entries for part in parts), depth=depth, shards=parts, **sums)

    def reorganize(self, *, progress: Progress | None = None) -> None:
        """Make each file as small as its content allows."""
        total = self._count * 1000
        for number, shard in enumerate(self._shards):
            shard.reorganize(progress=_thousandths(progress, number * 1000, total))

    def backup(self, target: Path, *, progress: Progress | None = None) -> None:
        """Write a copy to the directory `target`, which must not exist, and appears whole or not at all.

        Each shard is copied as of one commit, one after another: what is written meanwhile may be in the
        copies of some and not of others. `progress(done, total)` is called with numbers of entries.
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
        self._each(lambda _, shard: shard.sync())

    def close(self) -> None:
        """Write what is not yet on the disk, and release the files. Closing twice is harmless."""
        if self.closed:
            return
        try:
            self._each(lambda _, shard: shard.close())
        finally:
            pool, self._pool = self._pool, None
            if pool is not None and self._pid == os.getpid():
                pool.shutdown()

    def __enter__(self) -> ShardedDatabase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _share(progress: Progress | None, done: int, total: int) -> Progress | None:
    """The `progress` of one shard, of whose predecessors `done` are done, as part of the whole."""
    return None if progress is None else lambda here, _: progress(min(done + here, total), total)


def _thousandths(progress: Progress | None, done: int, total: int) -> Progress | None:
    """The same, for work of which only the shard knows the total."""
    if progress is None:
        return None
    return lambda here, of: progress(done + 1000 * here // max(of, 1), total)
