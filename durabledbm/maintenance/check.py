"""check: verify every page of a database, while others read and write it.

The invariants are those of docs/format.md; a `Problem` carries the number of the violated one:

1. Each page after the meta pages belongs to one of the present trees exactly once, or else to trees that checkpoints
   keep, or to the free-space map, or is free, or was freed and may still be read; no page is two of these, and none is
   missing.
2. Keys ascend strictly within a node and across the tree and lie between their parent's separators; all leaves are at
   the depth that the meta page says.
3. A run's checksum, page id, type and length are those that its parent holds, it was not written after its parent, and
   it names the tree that it belongs to.
4. What the meta pages refer to is inside the file, and the older meta is the commit before or a copy of the newer.
5. The entry counts in the meta page, and in the catalog of tables, are the numbers of entries; no two tables have the
   same id, and every entry in the tree of tables belongs to a table.

Everything is read from the disk, not from the cache. A check pins the commit that it verifies, so it sees one state and
never waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from operator import lt
from typing import NamedTuple

from .._engine.catalog import CATALOG, CHECKPOINTS, LAST_ID, NAMES, Kept, Record, TableKey, prefix_of
from .._engine.checkpoints import checkpoints, trees_of
from .._engine.page import NO_REF, read_header, ref_parts
from .._engine.pager import MALFORMED, Pager
from .._engine.recovery import read_slots
from .._engine.store import Store
from .._engine.tree import Tree, Visit, walk
from .._engine.view import State, TableView
from .._files.arguments import CountedProgress
from .._messages import plural
from ..errors import CorruptionError, error

__all__ = ["Problem", "check_state"]

_USED, _MAP, _FREE, _PENDING = 1, 2, 3, 4
_WORDS = {_USED: "in a tree", _MAP: "in the free-space map", _FREE: "free", _PENDING: "freed lately"}


class Problem(NamedTuple):
    """A violation of an invariant of the file."""

    invariant: int
    """The number of the invariant that is broken."""
    message: str
    page_id: int | None = None

    def __str__(self) -> str:
        where = "" if self.page_id is None else f"page {self.page_id}: "
        return f"[{self.invariant}] {where}{self.message}"


def check_state(store: Store, state: State, progress: CountedProgress | None = None) -> list[Problem]:
    """Verify everything that `state`, which must be pinned, refers to. An empty list means no problem."""
    return list(_Check(store, state, progress).run())


class _Check:
    def __init__(self, store: Store, state: State, progress: CountedProgress | None) -> None:
        self._store = store
        self._state = state
        self._meta = state.meta
        self._pager = Pager(store.disk, state.meta.page_size, 0)
        self._pages = state.pages()
        self._done = 0
        self._progress = progress

    def run(self) -> Iterator[Problem]:
        yield from self._metas()
        meta, pager = self._meta, self._pager
        main, tables = _Entries(0), _Entries(1)
        for tree, entries in (
            (Tree(pager, meta.root, meta.depth), main),
            (Tree(pager, meta.tables_root, meta.tables_depth), tables),
        ):
            if not tree.depth and tree.root != NO_REF:
                yield Problem(2, "a tree has a root but no depth")
            yield from self._tree(tree, entries)
        yield from self._counts(main, tables)
        yield from self._checkpoints()
        yield from self._space()

    # -- invariant 4 -------------------------------------------------------------------------------

    def _metas(self) -> Iterator[Problem]:
        meta = self._meta
        slots = read_slots(self._store.disk)
        for slot, other in enumerate(slots.metas):
            if other is None and not slots.uninitialised:
                yield Problem(4, f"meta page {slot} is damaged")
            elif other is not None and other.database_id != meta.database_id:
                yield Problem(4, f"meta page {slot} belongs to another database")
        if meta.steady_txid > meta.txid:
            yield Problem(4, "the meta page names a durable commit newer than itself")
        first, second = slots.metas
        if first is not None and second is not None:
            older, newer = sorted((first, second), key=lambda m: m.txid)
            if older.txid < newer.steady_txid:
                yield Problem(4, f"the older meta page is of commit {older.txid}, not {newer.steady_txid}")

    # -- invariants 1 to 4, in the trees -----------------------------------------------------------

    def _tree(self, tree: Tree, entries: _Entries, *, shared: bool = False) -> Iterator[Problem]:
        for visit in walk(tree, self._pages, tolerated=CorruptionError, shared=shared):
            if visit.flaw is not None:
                yield Problem(*visit.flaw, visit.page_id)
            elif not visit.level:
                yield from self._value(visit)
            else:
                yield from self._age(visit, visit.txid)
                if read_header(visit.run).tree != entries.tree:
                    yield Problem(3, "it says that it belongs to the other tree", visit.page_id)
                if visit.level == 1:
                    yield from entries.add(visit)
            self._tell(visit.page_count)

    def _value(self, visit: Visit) -> Iterator[Problem]:
        try:
            yield from self._age(visit, visit.check_value(self._pager))
        except CorruptionError as exc:
            yield Problem(3, exc.message, visit.page_id)

    def _age(self, visit: Visit, txid: int) -> Iterator[Problem]:
        parent = self._meta.txid if visit.parent is None else visit.parent.txid
        if txid > parent:
            yield Problem(3, f"written by commit {txid}, after its parent, by {parent}", visit.page_id)

    # -- invariant 5 -------------------------------------------------------------------------------

    def _counts(self, main: _Entries, tables: _Entries) -> Iterator[Problem]:
        meta, view = self._meta, self._state.view
        if main.count != meta.tree_count:
            yield Problem(5, f"the tree has {main.count} entries, the meta page says {meta.tree_count}")
        if tables.count != meta.tables_count:
            yield Problem(5, f"the tree of tables has {tables.count} entries, the meta page says {meta.tables_count}")
        count, counts = meta.tree_count, tables.of_table
        try:
            for key, value in meta.changes.items():
                growth = (value is not None) - (key in view.tree_of(key))
                if type(key) is TableKey:
                    counts[prefix_of(key)] += growth
                else:
                    count += growth
            records = dict(TableView(view, CATALOG).items())
        except error:
            return  # said already
        if count != meta.entry_count:
            yield Problem(5, f"there are {count} entries, the meta page says {meta.entry_count}")
        yield from _catalog(records, counts)

    # -- checkpoints -------------------------------------------------------------------------------

    def _checkpoints(self) -> Iterator[Problem]:
        """Verify what checkpoints keep, and the trees of this commit have not."""
        meta = self._meta
        try:
            found = checkpoints(self._state.view)
        except error as exc:
            yield Problem(5, f"the checkpoints cannot be read: {exc}")
            return
        newest = max((kept.txid for kept in found.values()), default=0)
        if newest != meta.checkpoint_txid:
            yield Problem(5, f"the newest checkpoint is of commit {newest}, the meta page says {meta.checkpoint_txid}")
        for kept in reversed(found.values()):
            for number, tree in enumerate(trees_of(kept, self._pager)):
                yield from self._tree(tree, _Entries(number), shared=True)

    # -- invariant 1 -------------------------------------------------------------------------------

    def _space(self) -> Iterator[Problem]:
        try:
            space = self._state.free_map(self._pager)
        except CorruptionError as exc:
            yield Problem(3, f"the free-space map is damaged: {exc.message}", exc.page_id)
            return
        for ref in space.own_runs():
            yield from self._claim(*ref_parts(ref)[:2], _MAP)
        for page_id, page_count in space.pages.free_runs():
            yield from self._claim(page_id, page_count, _FREE)
        for _, (page_id, page_count) in space.pending_runs():
            yield from self._claim(page_id, page_count, _PENDING)
        for page_id, page_count in self._pages.gaps(self._pages.first_page, self._pages.page_count):
            yield Problem(1, f"{plural(page_count, 'page')} neither in use nor free", page_id)

    def _claim(self, page_id: int, page_count: int, owner: int) -> Iterator[Problem]:
        pages = self._pages
        taken = pages.claim(page_id, page_count, owner)
        if taken is not None:
            yield Problem(1, f"both {_WORDS[pages.owner(taken)]} and {_WORDS[owner]}", taken)
            for gap in list(pages.gaps(page_id, page_id + page_count)):
                pages.claim(*gap, owner)
        self._tell(page_count)

    def _tell(self, page_count: int) -> None:
        self._done += page_count
        if self._progress is not None:
            self._progress(self._done, self._pages.page_count - self._pages.first_page)


class _Entries:
    """The entries of one tree, leaf by leaf: whether their keys are right, and how many there are."""

    def __init__(self, tree: int) -> None:
        self.tree = tree
        """Its number, as the headers of its runs have it."""
        self._last_key: bytes | None = None
        self.count = 0
        self.of_table: Counter[bytes] = Counter()
        """By the prefix of a table."""

    def add(self, visit: Visit) -> Iterator[Problem]:
        """Verify the keys of a leaf, and count them."""
        keys, _ = visit.entries()
        if not keys:
            yield Problem(2, "an empty leaf", visit.page_id)
            return
        last = self._last_key
        if (last is not None and keys[0] <= last) or not all(map(lt, keys, islice(keys, 1, None))):
            for key in keys:
                if last is not None and key <= last:
                    yield Problem(2, f"key {key[:40]!r} is out of order", visit.page_id)
                last = key
        self._last_key = keys[-1]
        if keys[0] < visit.low or (visit.high is not None and keys[-1] >= visit.high):
            yield Problem(2, "keys lie outside of the parent's separators", visit.page_id)
        self.count += len(keys)
        if self.tree:
            self.of_table.update(map(prefix_of, keys))


def _catalog(records: dict[bytes, bytes], counts: Counter[bytes]) -> Iterator[Problem]:
    """What is wrong with the catalog, given the number of entries under each prefix."""
    last = records.pop(bytes(LAST_ID[len(CATALOG) :]), bytes(len(CATALOG)))
    owners: dict[bytes, str] = {}
    kind = NAMES[len(CATALOG) :]
    for key, value in records.items():
        try:
            if key.startswith(CHECKPOINTS[len(CATALOG) :]):
                Kept.unpack(value)
                continue
            if not key.startswith(kind):
                raise ValueError("something else than a table")
            name, record = key[len(kind) :].decode(), Record.unpack(value)
        except MALFORMED as exc:
            yield Problem(5, f"the catalog of tables makes no sense: {exc}: {key[:40]!r}")
            continue
        if record.prefix in owners:
            yield Problem(5, f"the tables {owners[record.prefix]!r} and {name!r} have the same id")
        elif counts[record.prefix] != record.entries:
            found = f"has {counts[record.prefix]} entries, the catalog says {record.entries}"
            yield Problem(5, f"the table {name!r} {found}")
        if record.prefix > last:
            yield Problem(5, f"the table {name!r} has an id that was never given out")
        owners[record.prefix] = name
    for prefix, count in sorted(counts.items()):
        if count and prefix != CATALOG and prefix not in owners:
            yield Problem(5, f"{plural(count, 'entry')} of a table that does not exist")
