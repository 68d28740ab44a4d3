"""Bulk load: a database file built from entries that come in the order of their keys, each page written once, and full.

A merge makes a tree the successor of another; a copy has no predecessor. So entries fill a leaf, leaves fill a branch,
branches fill the next one, and what is held in memory is one node of each level. The file is one that no one else can
see yet; writing its meta pages makes it a database.
"""

from __future__ import annotations

from collections.abc import Iterable

from .balance import MIN_BRANCH, Splitter, inline_max
from .catalog import LAST_ID, Record, name_key, pack_id
from .disk.protocol import Disk, Writes
from .freemap import FreeMap
from .meta import SLOTS, Meta, encode_meta, first_page
from .node import BRANCH_OVERHEAD, LEAF_OVERHEAD, Overflow, separator
from .page import NO_REF
from .page_writer import PageWriter
from .pager import Pager
from .value_writer import copied, stored

__all__ = ["Builder", "finish_copy"]

_PLACE = 1024
"""Free pages that are taken at a time."""


class _Level:
    """The branch of one level that is being filled."""

    __slots__ = ("lows", "refs", "size")

    def __init__(self) -> None:
        self.lows: list[bytes] = []
        self.refs: list[bytes] = []
        self.size = 0


class _TreeBuilder:
    """One tree that is being built. `tree` is its number in the headers of its runs."""

    def __init__(self, writer: PageWriter, tree: int) -> None:
        self._writer = writer
        self._tree = tree
        self._inline_max = inline_max(writer.page_size)
        self._splitter = Splitter(writer.page_size, packing=False)
        self._keys: list[bytes] = []
        self._values: list[bytes] = []
        self._size = 0
        self._last_key: bytes | None = None
        self._levels: list[_Level] = []
        self.count = 0
        """Entries so far."""

    def add(self, entries: Iterable[tuple[bytes, bytes]], source: Pager | None = None) -> None:
        """Append entries. Their keys must ascend, and be greater than all before.

        With `source`, an `Overflow` stands for a large value that is to be copied from there.
        """
        for key, value in entries:
            cell = value
            if type(value) is Overflow:
                assert source is not None
                self._take_place()
                cell = copied(self._writer, source, key, value)
            elif len(value) > self._inline_max:
                self._take_place()
                cell = stored(self._writer, key, value)
            size = len(key) + len(cell) + LEAF_OVERHEAD + 1
            if self._keys and self._size + size > self._splitter.leaf_limit(self._size + size, len(self._keys) + 1):
                self._end_leaf()
            self._keys.append(key)
            self._values.append(cell)
            self._size += size
            self.count += 1

    def _take_place(self) -> None:
        self._writer.expected, self._writer.tree = _PLACE, self._tree

    def _end_leaf(self) -> None:
        low = b"" if self._last_key is None else separator(self._last_key, self._keys[0])
        self._take_place()
        ref = self._writer.leaf(self._keys, self._values)
        self._last_key = self._keys[-1]
        self._keys, self._values, self._size = [], [], 0
        self._add_child(0, low, ref)

    def _add_child(self, number: int, low: bytes, ref: bytes) -> None:
        if number == len(self._levels):
            self._levels.append(_Level())
        level = self._levels[number]
        size = len(low) + BRANCH_OVERHEAD
        if level.size + size > self._splitter.one_page and len(level.refs) > MIN_BRANCH:
            self._end_branch(number, len(level.refs) - 1)  # one stays: no branch has a single child
        level.lows.append(low)
        level.refs.append(ref)
        level.size += size

    def _end_branch(self, number: int, count: int) -> None:
        level = self._levels[number]
        self._take_place()
        ref = self._writer.branch(level.lows[1:count], level.refs[:count])
        low = level.lows[0]
        del level.lows[:count], level.refs[:count]
        level.size = sum(map(len, level.lows)) + BRANCH_OVERHEAD * len(level.lows)
        self._add_child(number + 1, low, ref)

    def finish(self) -> tuple[bytes, int]:
        """Write the remaining nodes; the root and the depth."""
        if self._keys:
            self._end_leaf()
        number = 0
        while number < len(self._levels):
            level = self._levels[number]
            if number == len(self._levels) - 1 and len(level.refs) == 1:
                return level.refs[0], number + 1
            self._end_branch(number, len(level.refs))
            number += 1
        return NO_REF, 0


class Builder:
    """Writes a database into the empty file `disk`, as it was after one of its commits.

    `meta` is that commit: its number, time and the database's identity are kept; entries, pages and roots are the
    copy's.
    """

    def __init__(self, disk: Disk, meta: Meta) -> None:
        self._disk = disk
        self._meta = meta
        page_size = meta.page_size
        self._free_map = FreeMap(page_size, first_page(page_size), first_page(page_size))
        self._writes = disk.writes()
        self._writer = PageWriter(self._writes, Pager(disk, page_size, 0), self._free_map, meta.txid)
        self._main, self._tables = _TreeBuilder(self._writer, 0), _TreeBuilder(self._writer, 1)
        self._synced = 0
        self._records: dict[str, Record] = {}
        """The catalog so far."""

    @property
    def count(self) -> int:
        """Entries so far, of all tables."""
        return self._main.count + self._tables.count

    def add(self, entries: Iterable[tuple[bytes, bytes]], source: Pager | None = None) -> None:
        """Append entries to the main table. Their keys must ascend, and be greater than all before.

        With `source`, an `Overflow` stands for a large value that is to be copied from there.
        """
        self._main.add(entries, source)

    def add_to_table(self, name: str, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """The same for another table. Tables are built one after the other."""
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = Record(len(self._records) + 1, 0)
        assert record.table_id == len(self._records), "tables are not built one after the other"
        prefix, before = record.prefix, self._tables.count
        self._tables.add((prefix + key, value) for key, value in entries)
        self._records[name] = record._replace(entries=record.entries + self._tables.count - before)

    def sync_at(self, size: int) -> None:
        """Sync if more than `size` bytes were written since the last sync."""
        pages = self._writer.pages_written
        if (pages - self._synced) * self._meta.page_size > size:
            self._synced = pages
            self._disk.sync()

    def finish(self) -> Meta:
        """Write the remaining nodes, sync, and write the meta pages. Returns the meta."""
        main, tables = self._main, self._tables
        if self._records:
            catalog = {name_key(name): record.pack() for name, record in self._records.items()}
            catalog[LAST_ID] = pack_id(len(self._records))
            tables.add((bytes(key), value) for key, value in sorted(catalog.items()))
        root, depth = main.finish()
        tables_root, tables_depth = tables.finish()
        free_map, writer, old = self._free_map, self._writer, self._meta
        writer.release_place()
        free_map.pages.cut_tail()
        ref = free_map.save(writer.txid, writer.write) if depth or tables_depth else NO_REF
        writer.finish()
        meta = Meta(
            old.txid, old.page_size, old.database_id, free_map.pages.page_count, entry_count=main.count,
            tree_count=main.count, root=root, depth=depth, tables_count=tables.count, tables_root=tables_root,
            tables_depth=tables_depth, space=ref, steady_txid=old.txid, steady=True, time_ns=old.time_ns,
        )  # fmt: skip
        return finish_copy(self._disk, self._writes, meta)


def finish_copy(disk: Disk, writes: Writes, meta: Meta) -> Meta:
    """Make a database of a file whose pages are written: write the meta pages, and sync."""
    meta = meta._replace(steady=True, relaxed=False, steady_txid=meta.txid, extents=())
    writes.write(0, (encode_meta(meta) * SLOTS,))
    writes.resize(meta.page_count * meta.page_size)
    disk.sync()
    return meta
