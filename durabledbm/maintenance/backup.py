"""backup: a consistent, compact copy of a database in use, as of one commit; it appears complete or not at all.

The commit is pinned and read in key order, and a new file is built from it (see `_engine.bulkload`) under a temporary
name, synced, and renamed to the target. The copy is the same database as of the same commit: it keeps its identity and
commit number, so an attached log can be applied after it (`durabledbm.restore`).

Others read and write meanwhile. A committing thread of the same process would have to wait for Python's interpreter
lock each time it comes back from the disk, which happens several times per commit; so while this handle commits, the
copying pauses most of the time. The copy is synced as it grows: a disk with gigabytes to write makes every sync wait.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any

from .._engine.bulkload import Builder, finish_copy
from .._engine.checkpoints import walk_all
from .._engine.disk import FileVolume
from .._engine.disk.protocol import Disk, Writes
from .._engine.files import first_meta
from .._engine.freemap import FreeMap
from .._engine.meta import Meta, first_page
from .._engine.page_writer import PageWriter
from .._engine.pager import Pager
from .._engine.store import Store
from .._engine.tables import names
from .._engine.view import State, TableView
from .._files.arguments import CountedProgress, Path
from .._files.publish import check_not_mounted, real_target, replacing
from ..errors import error

__all__ = ["Pace", "backup", "check_target", "write_whole"]

_SLICE_BYTES = 16 * 2**10
_SLICE_ENTRIES = 50
"""So much is copied between two looks at whether others want to get on."""

_SYNC_BYTES = 16 * 2**20

_PIECE = 1 << 20
"""Bytes of a large value that are copied at a time."""

_REST = 3.0
"""How long to rest, as a multiple of the processor time used, while this handle commits."""

_ACTIVE = 0.1
"""Seconds for which a handle that committed counts as committing."""


def backup(
    store: Store,
    state: State,
    target: Path,
    progress: CountedProgress | None = None,
) -> None:
    """Write a copy of `state`, which must be pinned, to the file `target`.

    An existing file is replaced at the end, and keeps its owner, group and permissions; a new one has the permissions
    of the database's file. `progress(done, total)` counts entries; if it raises, there is no copy. Raises `error` if
    the target cannot be written or is the database itself, and `CorruptionError` if the database is damaged.
    """
    path = real_target(target)
    check_target(path, store.disk.identity())
    meta = state.meta if state.meta.txid else first_meta(state.meta.page_size)  # it was not initialised yet
    if meta.checkpoint_txid:
        _copy_with_checkpoints(store, state, path, progress)
    else:
        write_whole(path, meta, store.disk.status(), lambda builder: _copy(store, state, builder, progress))


def write_whole(path: str, meta: Meta, source: os.stat_result | None, fill: Callable[[Builder], None]) -> None:
    """Let `fill` build a database file, which gets the name `path` when it is complete and on the disk.

    `meta` gives the database's identity and commit. `source` is the file that it is made from, whose permissions it
    gets (None: only its owner may read it).
    """
    try:
        with replacing(path, source) as disk:
            builder = Builder(disk, meta)
            fill(builder)
            builder.finish()
    except OSError as exc:
        raise error.wrap(exc, path) from exc


def _copy(store: Store, state: State, builder: Builder, progress: CountedProgress | None) -> None:
    """Append all entries of `state`, of all tables, slice by slice, pausing for others."""
    view, pace = state.view, Pace(store)
    tables = sorted(names(view), key=itemgetter(1))
    total = state.meta.entry_count + sum(record.entries for _, record in tables)
    add_main = partial(builder.add, source=view.tree.pager)
    parts: list[tuple[Iterator[tuple[bytes, Any]], Callable[[Iterable[tuple[bytes, bytes]]], None]]]
    parts = [(view.items(in_pieces=lambda _, value: value), add_main)]
    for name, record in tables:
        parts.append((TableView(view, record.prefix).items(), partial(builder.add_to_table, name)))
    for entries, add in parts:
        add(())  # an empty table is one, too
        while entries_of_slice := list(_slice(entries)):
            add(entries_of_slice)
            pace.rest()
            builder.sync_at(_SYNC_BYTES)
            if progress is not None:
                progress(builder.count, total)


def _copy_run(disk: Disk, writes: Writes, run: bytes, start: int, end: int) -> None:
    """Write what stands at these bytes of `disk`: `run`, if it is in memory."""
    if run:
        writes.write(start, (run,))
        return
    for at in range(start, end, _PIECE):
        writes.write(at, (disk.read(min(_PIECE, end - at), at),))


def _copy_with_checkpoints(store: Store, state: State, path: str, progress: CountedProgress | None) -> None:
    """Copy the pages of all trees, each to the same place: what checkpoints share stays shared, and gaps stay."""
    meta, pager, pace = state.meta, Pager(store.disk, state.meta.page_size, 0), Pace(store)
    page_size, first = meta.page_size, first_page(meta.page_size)
    whole = State.make(meta, state.slot, pager)
    used: list[tuple[int, int]] = []
    done = synced = 0
    try:
        with replacing(path, store.disk.status()) as disk:
            writes = disk.writes()
            for visit in walk_all(whole):
                offset, end = visit.page_id * page_size, (visit.page_id + visit.page_count) * page_size
                if visit.value is not None:
                    visit.check_value(pager)
                _copy_run(store.disk, writes, visit.run, offset, end)
                done += len(visit.entries()[0]) if visit.level == 1 else 0
                if (end - offset) + synced > _SYNC_BYTES:
                    disk.sync()
                    synced = 0
                synced += end - offset
                if progress is not None:
                    progress(min(done, meta.entry_count), meta.entry_count)
                pace.rest()
                used.append((visit.page_id, visit.page_count))
            free_map = FreeMap.rebuilt(page_size, first, meta.page_count, used, meta.txid)
            free_map.release(meta.txid)
            writer = PageWriter(writes, Pager(disk, page_size, 0), free_map, meta.txid)
            free_map.pages.cut_tail(all_of_it=True)
            ref = free_map.save(meta.txid, writer.write)
            writer.finish()
            finish_copy(disk, writes, meta._replace(space=ref, page_count=free_map.pages.page_count))
    except OSError as exc:
        raise error.wrap(exc, path) from exc


def _slice(entries: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    size = 0
    for entry in islice(entries, _SLICE_ENTRIES):
        yield entry
        size += len(entry[0]) + len(entry[1])
        if size > _SLICE_BYTES:
            return


class Pace:
    """Alternates work and pauses: `rest()` is called after each piece of work."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._commits = store.commits
        self._active_until = 0.0
        self._worked = time.thread_time()

    def rest(self) -> None:
        """Pause if this handle commits."""
        commits = self._store.commits
        now, worked = time.monotonic(), time.thread_time()
        if commits != self._commits:
            self._commits = commits
            self._active_until = now + _ACTIVE
        if now < self._active_until:
            time.sleep(_REST * (worked - self._worked))
        self._worked = worked


def check_target(path: str, source: tuple[int, int] | None) -> None:
    """Raise if the target must not be replaced: a directory, a device, or the database itself.

    `source` is the database's `Disk.identity()`, or None if what is copied is in no file.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return
    if source is not None and FileVolume().identity_of(path) == source:
        raise error(errno.EINVAL, "is the database itself", path)
    if not stat.S_ISREG(status.st_mode):
        raise error(errno.EINVAL, "is not a regular file", path)
    check_not_mounted(path)
