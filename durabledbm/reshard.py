"""reshard: copy a sharded database into a new directory, with another number of shards.

The shards are read side by side in key order, so each new shard receives its keys in order and is built in one pass,
compact and with little memory. Nothing should write meanwhile; if something does, that is noticed at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial

from ._engine.bulkload import Builder
from ._engine.disk import FileVolume
from ._engine.meta import Meta, first_page, now_ns
from ._files.arguments import Meter, Path, Progress
from ._files.publish import permissions_of
from .errors import error
from .sharded import ShardedDatabase, open_sharded
from .sharded.manifest import SHARDS_MAX, make_whole, place, shard_path

__all__ = ["reshard"]

Entry = tuple[bytes, bytes]

_BATCH = 64
_SYNC_BYTES = 16 * 2**20


def reshard(directory: Path, target: Path | None = None, *, shards: int, progress: Progress | None = None) -> str:
    """Copy a sharded database to the new directory `target`, with `shards` shards, and return its name.

    Without `target` the name is `directory` + "-" + the number of shards. It must not exist; it appears complete or not
    at all, and the old directory stays. `progress(done, total)` counts entries.

    Raises `error` if the target exists, or if the database was written to meanwhile.
    """
    if not isinstance(shards, int) or not 0 < shards <= SHARDS_MAX:
        raise ValueError(f"shards must be a number from 1 to {SHARDS_MAX}, not {shards!r}")
    path = os.path.abspath(os.fsdecode(directory))
    destination = f"{path}-{shards}" if target is None else os.path.abspath(os.fsdecode(target))
    if os.path.lexists(destination):
        raise error(f"{destination}: exists already")
    with open_sharded(path, "r") as source:
        make_whole(destination, shards, lambda fresh: _fill(source, fresh, shards, progress))
    return destination


def _fill(source: ShardedDatabase, directory: str, shards: int, progress: Progress | None) -> None:
    meta = source._shards[0]._store.state.meta
    like = permissions_of(source._shards[0]._store.disk.status())
    volume = FileVolume()
    with ExitStack() as stack, source.snapshot() as snapshot:
        builders = []
        for number in range(shards):
            disk = volume.create(shard_path(directory, number, shards), 0o600)
            stack.callback(disk.close)
            disk.take_owner(like)
            fresh = Meta(1, meta.page_size, os.urandom(16), first_page(meta.page_size), time_ns=now_ns())
            builders.append(Builder(disk, fresh))
        tables = [(name, snapshot.table(name)) for name in snapshot.tables()]
        meter = Meter(progress, len(snapshot) + sum(len(table) for _, table in tables))
        _spread(meter.watch(snapshot.items()), builders, [builder.add for builder in builders])
        for name, table in tables:
            _spread(meter.watch(table.items()), builders, [partial(builder.add_to_table, name) for builder in builders])
        for builder in builders:
            builder.finish()
        if [shard._store.refresh().meta.txid for shard in source._shards] != snapshot.txids:
            raise error(f"{source.path}: was written to while it was copied")
        meter.finish()


def _spread(entries: Iterable[Entry], builders: list[Builder], adds: list[Callable[[list[Entry]], None]]) -> None:
    """Add each entry to the shard where it is to be."""
    batches: list[list[Entry]] = [[] for _ in builders]
    for entry in entries:
        number = place(entry[0], len(builders))
        batch = batches[number]
        if len(batch) >= _BATCH:
            adds[number](batch)
            builders[number].sync_at(_SYNC_BYTES)
            batch.clear()
        batch.append(entry)
    for add, batch in zip(adds, batches, strict=True):
        add(batch)
