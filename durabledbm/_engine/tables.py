"""Tables: what is done to one table within a change set, and how the tree of tables gets a successor.

Each operation looks up what the catalog says of the table, and makes its changes and the new record of the catalog in
one step. So an interrupt comes before all of it or after it, and the number of entries is always right (see `catalog`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from .._interrupts import is_from_handler
from ..errors import error
from .catalog import (
    LAST_ID,
    MAX_ID,
    NAMES,
    PREFIX_SIZE,
    Record,
    TableKey,
    dropped_prefix,
    dropping_key,
    name_key,
    next_prefix,
    pack_id,
    split,
    unpack_id,
)  # fmt: skip
from .changeset import CHANGE_MEMORY, ChangeSet
from .freemap import FreeMap
from .merge import Change, Merged, merge
from .meta import Meta
from .node import leaf_keys
from .page import NO_REF
from .page_writer import PageWriter
from .pager import MALFORMED, Pager
from .tree import PageSet, Tree, walk
from .view import TableView, View

__all__ = [
    "Trees", "clear", "discard", "drop", "drops_table", "merge_trees", "names", "pop", "pop_last", "put",
    "record_of", "set_default", "table_view", "update",
]  # fmt: skip

_FEW = 16
"""If a batch has one change or fewer for so many entries of a table, each is looked up; else the keys are listed."""


class Found(Protocol):
    """What looks up a key: a `View`, a `ChangeSet`."""

    def find(self, key: bytes, /) -> bytes | None:
        """The value of the key, or None."""


# -- reading ---------------------------------------------------------------------------------------


def record_of(value: bytes | None, pager: Pager) -> Record | None:
    """The record of a table that stands in the catalog as `value`. Raises `CorruptionError` if that is none."""
    if value is None:
        return None
    try:
        return Record.unpack(value)
    except MALFORMED as exc:
        if is_from_handler(exc):
            raise
        raise pager.malformed(NO_REF, exc) from exc


def table_view(view: View, name: str) -> TableView | None:
    """The table of that name in a view, or None."""
    record = record_of(view.find(name_key(name)), view.tree.pager)
    return None if record is None else TableView(view, record.prefix)


def names(view: View) -> Iterator[tuple[str, Record]]:
    """All tables by name, ascending, with what the catalog says of them."""
    catalog = TableView(view, NAMES[:PREFIX_SIZE])
    kind = NAMES[PREFIX_SIZE:]
    for key, value in catalog.items(kind, bytes([kind[0] + 1])):
        record = record_of(value, view.tree.pager)
        assert record is not None
        try:
            yield key[len(kind) :].decode(), record
        except UnicodeDecodeError as exc:
            raise view.tree.pager.malformed(NO_REF, exc) from exc


# -- writing ---------------------------------------------------------------------------------------


def _record(changes: ChangeSet, name: str) -> Record | None:
    return record_of(changes.find(name_key(name)), changes.base.tree.pager)


def _opened(changes: ChangeSet, name: str) -> tuple[Record, dict[bytes, bytes | None]]:
    """The record of a table, and what making it changes if it does not exist."""
    record = _record(changes, name)
    return (record, {}) if record is not None else _numbered(changes)


def _numbered(changes: ChangeSet) -> tuple[Record, dict[bytes, bytes | None]]:
    """The record of a new and empty table, and what making it changes, but for the record itself."""
    pager = changes.base.tree.pager
    last = changes.find(LAST_ID)
    try:
        table_id = 1 if last is None else unpack_id(last) + 1
    except ValueError as exc:
        raise pager.malformed(NO_REF, exc) from exc
    if table_id > MAX_ID:
        raise error("no more tables can be made in this file")
    return Record(table_id, 0), {LAST_ID: pack_id(table_id)}


def _make(changes: ChangeSet, made: dict[bytes, bytes | None], name: str, record: Record) -> None:
    """Make changes to a table, and the record that it has after them, in one step."""
    made[name_key(name)] = record.pack()
    size = sum(len(key) + len(value or b"") for key, value in made.items()) + CHANGE_MEMORY * len(made)
    changes.add(made, size)


def put(changes: ChangeSet, name: str, key: bytes, value: bytes) -> None:
    """Set the value of `key` in the table."""
    record, made = _opened(changes, name)
    at = TableKey(record.prefix + key)
    if not made and changes.find(at) is not None:
        changes.put(at, value)
        return
    made[at] = value
    _make(changes, made, name, record._replace(entries=record.entries + 1))


def update(changes: ChangeSet, name: str, values: Mapping[bytes, bytes]) -> None:
    """Set all these values in the table."""
    record, made = _opened(changes, name)
    prefix = record.prefix
    for key, value in values.items():
        made[TableKey(prefix + key)] = value
    count = record.entries + len(values) - _number_present(changes, record, values)
    _make(changes, made, name, record._replace(entries=count))


def _number_present(changes: ChangeSet, record: Record, keys: Mapping[bytes, object]) -> int:
    """How many of the keys the table has."""
    if not record.entries:
        return 0
    if len(keys) * _FEW < record.entries:
        return sum(changes.find(TableKey(record.prefix + key)) is not None for key in keys)
    present = TableView(changes.view(), record.prefix).keys(min(keys), max(keys) + b"\0")
    return sum(key in keys for key in present)


def discard(changes: ChangeSet, name: str, key: bytes) -> bool:
    """Delete `key` from the table; False if it is not there."""
    record = _record(changes, name)
    if record is None or changes.find(at := TableKey(record.prefix + key)) is None:
        return False
    _make(changes, {at: None}, name, record._replace(entries=record.entries - 1))
    return True


def pop(changes: ChangeSet, name: str, key: bytes) -> bytes | None:
    """Delete `key` from the table and return its value, or None if it is not there."""
    record = _record(changes, name)
    value = None if record is None else changes.get(TableKey(record.prefix + key))
    if value is not None:
        discard(changes, name, key)
    return value


def pop_last(changes: ChangeSet, name: str) -> tuple[bytes, bytes] | None:
    """Delete the entry of the table with the greatest key and return it, or None if there is none."""
    record = _record(changes, name)
    if record is None:
        return None
    entry = next(TableView(changes.view(), record.prefix).items(reverse=True), None)
    if entry is not None:
        discard(changes, name, entry[0])
    return entry


def set_default(changes: ChangeSet, name: str, key: bytes, default: bytes) -> bytes:
    """The value of `key` in the table, after setting it to `default` if it is not there."""
    record = _record(changes, name)
    value = None if record is None else changes.get(TableKey(record.prefix + key))
    if value is not None:
        return value
    put(changes, name, key, default)
    return default


def clear(changes: ChangeSet, name: str) -> None:
    """Delete everything in the table. It gets a new id, and what is under the old one goes with the commit."""
    record = _record(changes, name)
    if record is not None and record.entries:
        emptied, made = _numbered(changes)
        made[dropping_key(record.prefix)] = b""
        _make(changes, made, name, emptied)


def drop(changes: ChangeSet, name: str) -> bool:
    """Delete the table; False if there is none."""
    record = _record(changes, name)
    if record is None:
        return False
    gone: dict[bytes, bytes | None] = {name_key(name): None}
    if record.entries or _leaves_keys(changes.base, record):
        gone[dropping_key(record.prefix)] = b""
    changes.add(gone, sum(map(len, gone)) + CHANGE_MEMORY * len(gone))
    return True


def _leaves_keys(base: View, record: Record) -> bool:
    """Whether the tree still holds keys of a table that was emptied key by key: the deletions may wait elsewhere."""
    in_tree = TableView(View(base.tree, (), base.tables), record.prefix)
    return next(in_tree.keys(), None) is not None


# -- the trees -------------------------------------------------------------------------------------


class Trees(NamedTuple):
    """Both trees of a state: refs of their roots, their depths, and how many entries they hold."""

    root: bytes = NO_REF
    depth: int = 0
    tree_count: int = 0
    tables_root: bytes = NO_REF
    tables_depth: int = 0
    tables_count: int = 0

    @classmethod
    def of(cls, meta: Meta) -> Trees:
        """Those that a meta page names."""
        return cls(*(getattr(meta, name) for name in cls._fields))

    def view(self, pager: Pager) -> View:
        """They can be read as this."""
        return View(
            Tree(pager, self.root, self.depth), tables=Tree(pager, self.tables_root, self.tables_depth)
        )

    def without_main(self, pager: Pager, free_map: FreeMap, writer: PageWriter) -> Trees:
        """The same with an empty main tree, whose pages are freed. Nothing was taken or freed before."""
        if not self.tables_depth and not writer.kept_txid:
            free_map.free_all()
        else:
            for visit in walk(Tree(pager, self.root, self.depth), PageSet(0, free_map.pages.page_count)):
                writer.free(visit.ref)
        return Trees()._replace(
            tables_root=self.tables_root, tables_depth=self.tables_depth, tables_count=self.tables_count
        )


def merge_trees(
    pager: Pager, writer: PageWriter, trees: Trees, changes: Mapping[bytes, Change], *, packing: bool = False
) -> Trees:
    """Merge changes into both trees (see `merge`)."""
    main, of_tables = split(changes)
    writer.expect(changes, max(trees.depth, trees.tables_depth))
    merged = merge(pager, writer, trees.root, trees.depth, main, packing=packing)
    writer.tree = 1
    tables = _merge_tables(pager, writer, trees.tables_root, trees.tables_depth, of_tables, packing=packing)
    writer.tree = 0
    return Trees(
        merged.root, merged.depth, trees.tree_count + merged.growth,
        tables.root, tables.depth, trees.tables_count + tables.growth,
    )  # fmt: skip


def drops_table(changes: Mapping[bytes, object]) -> bool:
    """Whether these changes leave entries behind that must be removed from the tree."""
    return any(type(key) is TableKey and dropped_prefix(key) is not None for key in changes)


def _merge_tables(
    pager: Pager, writer: PageWriter, root: bytes, depth: int, changes: Mapping[bytes, Change], *, packing: bool
) -> Merged:
    """Merge changes into the tree of tables, and remove what was dropped."""
    gone = sorted(prefix for key in changes if (prefix := dropped_prefix(key)) is not None)
    if not gone:
        return merge(pager, writer, root, depth, changes, packing=packing)
    prefixes = set(gone)
    kept: dict[bytes, Change] = {
        key: change
        for key, change in changes.items()
        if key[:PREFIX_SIZE] not in prefixes and dropped_prefix(key) is None
    }
    cut: dict[bytes, int] = {}
    tree = Tree(pager, root, depth)
    for prefix in gone:
        _mark(tree, prefix, kept, cut)
    return merge(pager, writer, root, depth, kept, packing=packing, cut=cut)


def _mark(tree: Tree, prefix: bytes, changes: dict[bytes, Change], cut: dict[bytes, int]) -> None:
    """Have everything with this prefix removed: subtrees that hold nothing else as wholes, and what is left in the two
    leaves at their ends key by key. Only the branches above those are read.
    """
    low, high = prefix, next_prefix(prefix)
    if high is None:
        raise tree.pager.malformed(tree.root, "the catalog of tables makes no sense")
    pager = tree.pager
    nodes: list[tuple[bytes, int, bytes, bytes | None]] = [(tree.root, tree.depth, b"", None)] if tree.depth else []
    while nodes:
        ref, level, first, end = nodes.pop()
        if first >= low and end is not None and end <= high:
            changes[first] = None
            cut[first] = level - 1
        elif level > 1:
            separators, refs, _ = pager.branch(ref)
            start, stop = bisect_right(separators, low), bisect_left(separators, high)
            lows, highs = [first, *separators], [*separators, end]
            nodes += [(refs[at], level - 1, lows[at], highs[at]) for at in range(start, stop + 1)]
        else:
            keys = leaf_keys(pager.leaf(ref, keep=False))
            changes.update(dict.fromkeys(keys[bisect_left(keys, low) : bisect_left(keys, high)]))
