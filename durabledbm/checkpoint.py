"""Checkpoints: commits that are kept under names, in the file, until they are dropped.

`Database.checkpoint` and its companions. The rules by which pages are kept are in `_engine.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from ._engine.catalog import CATALOG, Kept, TableKey, checkpoint_key, prefix_of
from ._engine.checkpoints import checkpoints, runs_not_in_newer
from ._engine.commit import Committer
from ._engine.page import ref_parts
from ._engine.store import Store
from ._engine.tables import names
from ._engine.view import State, TableView, View
from ._files.tree_diff import tree_differences
from .errors import error
from .mapping import Writable
from .snapshot import Pin, Snapshot
from .table import checked_name
from .transaction import Transaction

__all__ = ["Change", "Checkpoint", "at", "differences", "drop", "listed", "make", "turn"]


class Checkpoint(NamedTuple):
    """A commit that is kept under a name."""

    name: str
    txid: int
    """The number of the commit."""
    time: float
    """When it was made, in seconds since 1970."""
    entries: int
    """Entries of the main table."""
    pinned_bytes: int
    """Bytes of pages that no newer or older checkpoint needs, nor the present: dropping it frees so much."""


class Change(NamedTuple):
    """What differs between two states."""

    table: str
    """The name of the table; empty for the main one."""
    key: bytes
    old: bytes | None
    """The value before; None if there was none."""
    new: bytes | None
    """The value after; None if there is none."""


def make(
    committer: Committer, writing: Callable[[], AbstractContextManager[object]], name: str, replace: bool
) -> None:
    """Keep the last commit under a name. What waits in its meta page is merged into the trees before."""
    key = checkpoint_key(checked_name(name, "checkpoint"))
    store = committer.store
    with writing():
        if not replace and store.state.view.find(key) is not None:
            raise error(f"{store.path}: there is a checkpoint {name!r} already")
        if store.state.meta.changes:
            committer.rewrite({}, packing=False)
        meta = store.state.meta
        assert not meta.changes
        kept = Kept(
            meta.txid, meta.time_ns, meta.root, meta.depth, meta.tree_count, meta.tables_root, meta.tables_depth,
            meta.tables_count,
        )  # fmt: skip
        committer.commit({key: kept.pack()})


def drop(committer: Committer, writing: Callable[[], AbstractContextManager[object]], name: str) -> None:
    """Drop a checkpoint, in one commit that frees what only it needs. Raises `KeyError` if there is none."""
    key = checkpoint_key(checked_name(name, "checkpoint"))
    with writing():
        if committer.store.state.view.find(key) is None:
            raise KeyError(name)
        committer.commit({key: None})


def listed(_: Store, state: State, view: View) -> list[Checkpoint]:
    """All checkpoints that a view of a state knows, the oldest first. The state must be pinned."""
    found = list(checkpoints(view).items())
    result = []
    older_txid = 0
    for name, kept in found:
        pages = sum(ref_parts(ref)[1] for ref in runs_not_in_newer(state, name, older_txid))
        pinned = pages * state.meta.page_size
        result.append(Checkpoint(name, kept.txid, kept.time_ns / 1e9, kept.tree_count, pinned))
        older_txid = kept.txid
    return result


def at(pin: Pin, view: View, name: str, owner: object) -> Snapshot:
    """The snapshot of a checkpoint. Raises `KeyError` if the view, of the pinned state, knows none of that name."""
    present = pin.state
    kept = checkpoints(view).get(checked_name(name, "checkpoint"))
    if kept is None:
        pin.release()
        raise KeyError(name)
    meta = present.meta._replace(
        txid=kept.txid, time_ns=kept.time_ns, entry_count=kept.tree_count, changes={}, extents=(),
        **{field: getattr(kept, field) for field in Kept._fields[2:]},
    )  # fmt: skip
    state = State.make(meta, present.slot, present.view.tree.pager)
    return Snapshot(pin, state.view, owner, state)


def differences(before: Snapshot | Transaction, after: Snapshot) -> Iterator[Change]:
    """What differs: first in the main table, then in the others. Reads only pages that are not shared."""
    (old, _, pin), (new, _, other_pin) = before._scoped_view(), after._scoped_view()
    if before._pager is not after._pager:  # of two files, in which the same pages may hold other things
        for table in ["", *sorted({*before.tables(), *after.tables()})]:
            yield from _compared(table, _table(old, table), _table(new, table))
        return
    for key in _changed(old, new):
        if (value := old.get(key)) != (now := new.get(key)):
            yield Change("", key, value, now)
    befores = {name: record.table_id for name, record in names(old)}
    afters = {name: record.table_id for name, record in names(new)}
    same = {record.prefix: name for name, record in names(new) if befores.get(name) == record.table_id}
    for key in _changed_in_tables(old, new):
        name = same.get(prefix_of(key))
        if name is not None and (value := old.get(TableKey(key))) != (now := new.get(TableKey(key))):
            yield Change(name, key[len(CATALOG) :], value, now)
    for name in sorted(befores.keys() | afters.keys()):
        if befores.get(name) != afters.get(name):
            yield from _compared(name, _table(old, name), _table(new, name))
    del pin, other_pin


def turn(tx: Transaction, kept: Snapshot) -> None:
    """Make the changes in a transaction that lead from what it holds now to another state."""
    for name in {*tx.tables()} - {*kept.tables()}:
        tx.drop_table(name)
    for table, key, _, value in differences(tx, kept):
        target: Writable = tx.table(table) if table else tx
        if value is not None:
            target[key] = value
        else:
            del target[key]


def _changed(old: View, new: View) -> Iterator[bytes]:
    """The keys of the main table that may differ, each once."""
    named = {key for view in (old, new) for layer in view.layers for key in layer if type(key) is bytes}
    yield from sorted(named)
    yield from (key for key, _ in tree_differences(old.tree, new.tree) if key not in named)


def _changed_in_tables(old: View, new: View) -> Iterator[bytes]:
    named = {bytes(key) for view in (old, new) for layer in view.layers for key in layer if type(key) is TableKey}
    yield from sorted(named)
    yield from (key for key, _ in tree_differences(old.tables, new.tables) if key not in named)


def _table(view: View, name: str) -> Iterator[tuple[bytes, bytes]]:
    if not name:
        return view.items()
    record = dict(names(view)).get(name)
    return iter(()) if record is None else TableView(view, record.prefix).items()


def _compared(
    name: str, olds: Iterator[tuple[bytes, bytes]], news: Iterator[tuple[bytes, bytes]]
) -> Iterator[Change]:
    """What differs between two tables that share nothing."""
    nothing: tuple[Any, Any] = (None, None)
    old, new = next(olds, nothing), next(news, nothing)
    while old[0] is not None or new[0] is not None:
        key = min(key for key in (old[0], new[0]) if key is not None)
        before, after = old[1] if old[0] == key else None, new[1] if new[0] == key else None
        if before != after:
            yield Change(name, key, before, after)
        old = next(olds, nothing) if old[0] == key else old
        new = next(news, nothing) if new[0] == key else new
