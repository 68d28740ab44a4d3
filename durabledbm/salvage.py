"""salvage: copy everything that can still be read of a broken database into a new one.

The source is opened read-only and never changed. Every run of pages carries its own checksum, page id, type and commit
number, so entries can be found without the tree, and even without the meta pages.

First the trees of the newest usable meta page are walked; the entries that they still reach are final. Where one of
their pages cannot be read, a range of keys is open. All intact leaves and large values of the file, including old
versions, are searched for keys in that range, and the newest version of each key is taken. Without a usable meta page
all keys are open. Entries that were deleted shortly before the damage may then reappear; the report says so.

Entries of tables are collected as they are in their tree, by ids, with the catalog. In the end they go to tables of the
names that the catalog has for the ids. A table whose name is lost gets a new one.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count, groupby

from ._engine.catalog import CATALOG, NAMES, PREFIX_SIZE, Record, TableKey, prefix_of
from ._engine.disk import FileVolume
from ._engine.disk.protocol import Disk
from ._engine.files import initialise
from ._engine.large_value import INDEX, PIECE, PLACE, room
from ._engine.meta import META_AREA, META_SIZE, Meta, UnknownVersionError, decode_meta, first_page, has_magic
from ._engine.node import Overflow, decode_leaf
from ._engine.page import CRC_SIZE, HEADER, REF, TYPE_NAMES, read_header
from ._engine.pager import MALFORMED, Pager
from ._engine.tree import PageSet, Tree, walk
from ._files.arguments import Path, Progress
from ._files.intact_pages import IntactRun, guess_page_size, intact_runs
from ._files.publish import permissions_of, publishing, real_target
from ._files.temporary import blame_target, new_file
from ._messages import plural
from .database import Database
from .database import open as open_database
from .errors import CorruptionError, error
from .table import checked_name

__all__ = ["Report", "salvage"]

_BATCH = 8 * 2**20
"""Bytes of entries that are collected before they are written."""

_PIECE = 1 << 24
"""Bytes that are read at a time."""

_KEYS = bytes, TableKey
"""What keys are made of, by the number of their tree."""

_SHOWN = 1000
"""Losses that a report lists one by one."""


@dataclass
class Report:
    """What was saved, and what was not."""

    entries: int = 0
    """Entries in the new database, in all its tables."""
    from_tree: int = 0
    """Of these, how many were read through the trees of the newest usable commit."""
    from_lost_pages: int = 0
    """How many were found in pages that the trees do not lead to any more."""
    commit: int | None = None
    """The commit that the tree belongs to; None if no meta page was usable."""
    page_size: int = 0
    deleted_may_reappear: bool = False
    """Some entries come from pages of which it is not known whether they are still in force."""
    unreadable: int = 0
    """Pages and values that could not be read."""
    losses: list[str] = field(default_factory=list)
    """What they were: the first thousand."""

    def lost(self, what: str) -> None:
        """Record something that could not be read."""
        self.unreadable += 1
        if len(self.losses) < _SHOWN:
            self.losses.append(what)

    def __str__(self) -> str:
        saved = plural(self.entries, "entry")
        lines = [f"{saved} saved, {self.from_lost_pages:,} of them from pages outside of the tree"]
        if self.commit is None:
            lines.append("no meta page was usable: the newest small changes, which stood there, are lost")
        if self.deleted_may_reappear:
            lines.append("what was deleted or changed shortly before the damage may be there in an older version")
        lines += self.losses
        if self.unreadable > len(self.losses):
            lines.append(f"... and {self.unreadable - len(self.losses):,} more that could not be read")
        return "\n".join(lines)


def salvage(
    source: Path,
    target: Path,
    *,
    progress: Progress | None = None,
) -> Report:
    """Copy every readable entry of the broken database `source` into the new database `target`.

    `target` must not exist; it appears complete or not at all, with the permissions of `source`. The source is only
    read; nothing should write to it meanwhile. `progress(done, total)` counts pages.

    Raises `error` with errno ENOENT or EEXIST for the files, and `error` if `source` contains nothing of durabledbm's.
    """
    source, target = os.fsdecode(source), os.fsdecode(target)
    if os.path.lexists(target):
        raise error(errno.EEXIST, os.strerror(errno.EEXIST), target)
    try:
        with closing(FileVolume().open(source, writable=False)) as disk:
            return _salvaged(disk, real_target(target), progress)
    except OSError as exc:
        blame_target(exc, target)
        raise error.wrap(exc, source if exc.filename is None else None) from exc


def _salvaged(disk: Disk, target: str, progress: Progress | None) -> Report:
    with publishing(target) as fresh, new_file(target) as ranks:
        initialise(FileVolume(), fresh.disk, _page_size(disk))
        with (
            open_database(fresh.path, "w", durability="manual") as entries,
            open_database(ranks.path, "w", durability="manual") as versions,
        ):
            report = _Salvage(disk, _Sink(entries, versions), progress).run()
        # Only now: permissions that let nobody write would have kept this process from opening the file by its name.
        fresh.disk.take_owner(permissions_of(disk.status()))
    return report


def _metas(disk: Disk) -> list[Meta]:
    """The usable metas, newest first."""
    area = disk.read(META_AREA, 0)
    found = []
    for slot in (area[:META_SIZE], area[META_SIZE:]):
        try:
            meta = decode_meta(slot)
        except UnknownVersionError:
            raise
        except MALFORMED:
            meta = None
        if meta is not None:
            found.append(meta)
    return sorted(found, key=lambda meta: (meta.txid, meta.steady), reverse=True)


def _page_size(disk: Disk) -> int:
    metas = _metas(disk)
    return metas[0].page_size if metas else guess_page_size(disk)


class _Ranges:
    """Ranges of keys, ascending and disjoint, added in ascending order."""

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._stops: list[bytes | None] = []

    def add(self, low: bytes | None, high: bytes | None) -> None:
        """Add `low` <= key < `high`, with None for no limit."""
        if self._starts and self._stops[-1] == (low or b""):
            self._stops[-1] = high
        else:
            self._starts.append(low or b"")
            self._stops.append(high)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __contains__(self, key: bytes) -> bool:
        at = bisect_right(self._starts, key) - 1
        if at < 0:
            return False
        stop = self._stops[at]
        return stop is None or key < stop


class _Sink:
    """Receives entries, those of the tree of tables by `TableKey`s. Of competing versions of a key, the one with the
    highest rank stays.
    """

    def __init__(self, entries: Database, versions: Database) -> None:
        self._main = entries
        self._staged = versions.table("entries")
        """What was found of the tree of tables."""
        self._parts = [(bytes, entries, versions), (TableKey, self._staged, versions.table("versions"))]
        self._batch: dict[bytes, tuple[int, bytes]] = {}
        self._size = 0

    @property
    def count(self) -> int:
        """Entries so far, without those of the catalog."""
        catalog = sum(1 for _ in self._staged.range(prefix=CATALOG))
        return len(self._main) + len(self._staged) - catalog

    def put(self, key: bytes, value: bytes, rank: int) -> None:
        """Add a version of an entry."""
        known = self._batch.get(key)
        if known is not None and known[0] >= rank:
            return
        self._batch[key] = rank, value
        self._size += len(key) + len(value) + 200
        if self._size > _BATCH:
            self.flush()

    def discard(self, key: bytes) -> None:
        """Remove an entry that was deleted. Everything was flushed."""
        for kind, entries, _ in self._parts:
            if type(key) is kind:
                entries.pop(key, None)

    def flush(self) -> None:
        """Write what was collected."""
        for kind, entries, versions in self._parts:
            batch = {key: version for key, version in self._batch.items() if type(key) is kind}
            known = versions.get_many(batch)
            better = {
                bytes(key): (rank, value)
                for key, (rank, value) in batch.items()
                if rank > int.from_bytes(known.get(bytes(key), b""), "big")
            }
            entries.update({key: value for key, (_, value) in better.items()})
            versions.update({key: rank.to_bytes(9, "big") for key, (rank, _) in better.items() if rank > 1})
        self._main.sync()
        self._batch, self._size = {}, 0

    def name_tables(self) -> Iterator[str]:
        """Give the entries of tables to tables of their names. Yields the new name of each whose name is lost."""
        names: dict[bytes, str] = {}
        for key, value in self._staged.range(prefix=NAMES):
            try:
                names[Record.unpack(value).prefix] = checked_name(key[len(NAMES) :].decode())
            except ValueError:
                continue
        taken = set(names.values())
        for prefix, group in groupby(self._staged.range(stop=CATALOG), key=lambda entry: prefix_of(entry[0])):
            name = names.get(prefix)
            if name is None:
                numbers = (f"table {number}" for number in count(int.from_bytes(prefix, "big")))
                name = next(name for name in numbers if name not in taken)
                taken.add(name)
                yield name
            table = self._main.table(name)
            while batch := dict(_slice(group)):
                table.update(batch)
        self._main.sync()


def _slice(entries: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Some of the entries, without the prefixes of their keys."""
    size = 0
    while size <= _BATCH and (entry := next(entries, None)) is not None:
        yield entry[0][PREFIX_SIZE:], entry[1]
        size += len(entry[0]) + len(entry[1]) + 200


class _Salvage:
    """One salvage."""

    def __init__(self, disk: Disk, sink: _Sink, progress: Progress | None) -> None:
        metas = _metas(disk)
        self._disk, self._sink, self._progress = disk, sink, progress
        self._meta = metas[0] if metas else None
        self._certain = len(metas) == 2
        self._page_size = self._meta.page_size if self._meta else guess_page_size(disk)
        self._first_page = first_page(self._page_size)
        self._page_count = -(-disk.size() // self._page_size)
        self._pager = Pager(disk, self._page_size, 0)
        self._open = _Ranges(), _Ranges()
        """Of each tree, the keys of which not all is known."""
        self._large: dict[tuple[bytes, Overflow], int] = {}
        """Large values that lost leaves refer to, with their keys and the highest rank of one."""
        self._report = Report(page_size=self._page_size)

    def run(self) -> Report:
        """Save everything, and return the report."""
        report, sink, meta = self._report, self._sink, self._meta
        if meta is None:
            for keys in self._open:
                keys.add(None, None)
        else:
            report.commit = meta.txid
            self._trees(meta)
        sink.flush()
        report.from_tree = sink.count
        if any(self._open) or not self._certain:
            found = self._scan()
            if not found and meta is None and not has_magic(self._disk.read(16, 0)):
                raise error(f"{self._disk.path}: not a durabledbm database")
        sink.flush()
        report.entries = sink.count
        for name in sink.name_tables():
            report.lost(f"the name of a table, which is {name!r} now")
        report.from_lost_pages = report.entries - report.from_tree
        return report

    # -- through the tree --------------------------------------------------------------------------

    def _trees(self, meta: Meta) -> None:
        pages = PageSet(self._first_page, self._page_count)
        self._tree(Tree(self._pager, meta.root, meta.depth), 0, pages)
        self._tree(Tree(self._pager, meta.tables_root, meta.tables_depth), 1, pages)
        for key, value in meta.changes.items():
            if value is not None:
                self._sink.put(key, value, 2)
        self._sink.flush()
        for key, value in meta.changes.items():
            if value is None:
                self._sink.discard(key)

    def _tree(self, tree: Tree, number: int, pages: PageSet) -> None:
        kind = _KEYS[number]
        for done, visit in enumerate(walk(tree, pages, tolerated=error), 1):
            if visit.flaw is not None:
                what = f"page {visit.page_id}, a {TYPE_NAMES[visit.kind]}: {visit.flaw.message}"
                if visit.piece is None:  # else the value, which comes before its pieces, was lost already
                    self._lose(what, number, visit.low, visit.high if visit.level else visit.low + b"\0")
            elif visit.level == 1:
                for key, content in zip(*visit.entries(), strict=True):
                    if type(content) is not Overflow:
                        self._sink.put(kind(key), content, 1)
            elif visit.value is not None and visit.piece is None:
                try:
                    self._sink.put(kind(visit.low), self._pager.value(visit.value, visit.low), 1)
                except error as exc:
                    self._lose(f"the value of {visit.low[:40]!r}: {_said(exc)}", number, visit.low, visit.low + b"\0")
            self._tell(min(done, self._page_count))

    def _lose(self, what: str, tree: int, low: bytes, high: bytes | None) -> None:
        self._report.lost(what)
        self._open[tree].add(low, high)

    # -- without the tree --------------------------------------------------------------------------

    def _scan(self) -> int:
        """Look at every page of the file; return the number of intact runs."""
        newest = self._meta.txid if self._meta is not None and self._certain else None
        found = 0
        for page_id, run in intact_runs(self._disk, self._page_size, self._first_page, self._page_count):
            if run is None:
                if self._meta is None:
                    self._report.lost(f"page {page_id}: not intact")
            elif newest is None or run.txid <= newest:
                found += 1
                if run.tree in (0, 1) and run.kind == "leaf":
                    self._lost_leaf(run, _KEYS[run.tree])
                elif run.tree in (0, 1) and run.kind == "overflow" and run.flags != PIECE:
                    (self._lost_index if run.flags == INDEX else self._lost_value)(run, _KEYS[run.tree])
            self._tell(page_id)
        self._tell(self._page_count)
        for (key, place), rank in self._large.items():
            try:
                self._candidate(key, self._pager.value(place, key), rank)
            except error:
                pass  # if an older version is intact, the scan has found it
        return found

    def _lost_leaf(self, run: IntactRun, kind: type[bytes]) -> None:
        try:
            keys, values = decode_leaf(self._read(run.page_id * self._page_size, run.page_count * self._page_size))
        except MALFORMED:
            self._report.lost("a malformed leaf")
            return
        rank = 2 * run.txid + 3
        for key, value in zip(map(kind, keys), values, strict=True):
            if not self._wanted(key, run.txid):
                continue
            if type(value) is Overflow:  # many versions of a leaf may refer to it: it is read once, in the end
                self._large[key, value] = max(rank, self._large.get((key, value), 0))
            else:
                self._candidate(key, value, rank)

    def _lost_value(self, run: IntactRun, kind: type[bytes]) -> None:
        offset = run.page_id * self._page_size + HEADER.size
        key = kind(self._read(offset, run.entries))
        if self._wanted(key, run.txid):
            self._candidate(key, self._read(offset + run.entries, run.payload - run.entries), 2 * run.txid + 2)

    def _lost_index(self, run: IntactRun, kind: type[bytes]) -> None:
        """The index of a value in pieces, of which all but the last are full. It is read in the end, as above."""
        offset, size = run.page_id * self._page_size, run.payload - run.entries
        key = kind(self._read(offset + HEADER.size, run.entries))
        if size < REF.size or not self._wanted(key, run.txid):
            return
        last = REF.unpack(self._read(offset + HEADER.size + run.payload - REF.size, REF.size))[0]
        head = self._read(min(last, self._page_count) * self._page_size, HEADER.size)
        if len(head) == HEADER.size:
            in_last = read_header(head).payload_size - len(key) - PLACE.size
            crc = self._read(offset + run.page_count * self._page_size - CRC_SIZE, CRC_SIZE)
            ref = REF.pack(run.page_id, run.page_count, int.from_bytes(crc, "little"))
            length = (size // REF.size - 1) * room(len(key)) + in_last
            if length > room(len(key)):
                place = Overflow.make(ref, length)
                self._large[key, place] = max(2 * run.txid + 2, self._large.get((key, place), 0))

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size and (piece := self._disk.read(min(size, _PIECE), offset)):
            parts.append(piece)
            offset += len(piece)
            size -= len(piece)
        return b"".join(parts)

    def _wanted(self, key: bytes, txid: int) -> bool:
        """Whether a version of this key, written by this commit, may be a missing one."""
        meta = self._meta
        if meta is not None and not self._certain and txid > meta.txid:
            return True  # of a commit whose meta page is lost
        return key in self._open[type(key) is TableKey] and (meta is None or key not in meta.changes)

    def _candidate(self, key: bytes, value: bytes, rank: int) -> None:
        self._report.deleted_may_reappear = True
        self._sink.put(key, value, rank)

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._page_count)


def _said(exc: error) -> str:
    return exc.message if isinstance(exc, CorruptionError) else str(exc)
