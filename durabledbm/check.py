"""check: verify every page of a database, while others read and write it.

The invariants are those of docs/format.md, and a `Problem` carries the number of the one that is broken:

1. Each page after the meta pages belongs to the tree exactly once, or to the free-space map, or is free, or was freed
   and may still be read; no page is two of these, and none is missing.
2. Keys ascend strictly within a node and across the tree and lie between their parent's separators; all leaves are at
   the depth that the meta page says.
3. A run's checksum, page id, type and length are those that its parent holds, and it was not written after its parent.
4. What the meta pages refer to is inside the file, and the older meta is the commit before or a copy of the newer.
5. The entry counts in the meta page are the numbers of entries.

Everything is read from the disk anew; the cache is not asked. A check pins the commit that it looks at, so it sees one
state, and never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ._engine.meta import first_page
from ._engine.node import Overflow, decode_leaf
from ._engine.page import BRANCH, HEADER, LEAF, NO_REF, REF
from ._engine.pager import MALFORMED, Pager
from ._engine.recovery import read_slots
from ._engine.space import Space
from ._engine.state import State
from ._engine.store import Store
from ._words import plural
from .errors import CorruptionError, error

__all__ = ["Problem", "Progress", "check_state"]

Progress = Callable[[int, int], None]
"""Called with (pages done, pages in all)."""

_USED, _MAP, _FREE, _PENDING = 1, 2, 3, 4
_WORDS = {_USED: "in the tree", _MAP: "in the free-space map", _FREE: "free", _PENDING: "freed lately"}


class Problem(NamedTuple):
    """Something in the file that should not be so."""

    invariant: int
    """The number of the invariant that is broken."""
    message: str
    page_id: int | None = None

    def __str__(self) -> str:
        where = "" if self.page_id is None else f"page {self.page_id}: "
        return f"[{self.invariant}] {where}{self.message}"


def check_state(store: Store, state: State, progress: Progress | None = None) -> list[Problem]:
    """Verify everything that `state`, which must be pinned, refers to. An empty list: all is well."""
    return list(_Check(store, state, progress).run())


class _Check:
    def __init__(self, store: Store, state: State, progress: Progress | None) -> None:
        self._store = store
        self._state = state
        self._meta = state.meta
        self._pager = Pager(store.disk, state.meta.page_size, 0)
        self._first_page = first_page(state.meta.page_size)
        self._owner = bytearray(state.meta.page_count)
        self._entries = 0
        self._done = 0
        self._last_key: bytes | None = None
        self._progress = progress

    def run(self) -> Iterator[Problem]:
        yield from self._metas()
        if self._meta.depth:
            yield from self._node(self._meta.root, self._meta.depth, None, None, self._meta.txid)
        elif self._meta.root != NO_REF:
            yield Problem(2, "the tree has a root but no depth")
        yield from self._counts()
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

    # -- invariants 2 and 3 ------------------------------------------------------------------------

    def _node(
        self, ref: bytes, level: int, low: bytes | None, high: bytes | None, parent_txid: int
    ) -> Iterator[Problem]:
        problem = self._claim(ref, _USED)
        if problem is not None:
            yield problem
            return
        page_id = REF.unpack(ref)[0]
        try:
            run = self._pager.read(ref, BRANCH if level > 1 else LEAF)
            txid = HEADER.unpack_from(run)[5]
            if txid > parent_txid:
                yield Problem(3, f"written by commit {txid}, after its parent, by {parent_txid}", page_id)
            if level > 1:
                yield from self._branch(ref, page_id, level, low, high, txid)
            else:
                yield from self._leaf(run, page_id, low, high, txid)
        except CorruptionError as exc:
            yield Problem(3, exc.message, exc.page_id)
        except MALFORMED as exc:
            yield Problem(3, f"the content makes no sense: {exc}", page_id)

    def _branch(
        self, ref: bytes, page_id: int, level: int, low: bytes | None, high: bytes | None, txid: int
    ) -> Iterator[Problem]:
        branch = self._pager.branch(ref)
        bounds = [low, *branch.separators, high]
        for left, right in zip(bounds, bounds[1:], strict=False):
            if left is not None and right is not None and left >= right:
                yield Problem(2, "the separators are out of order", page_id)
        for at, child in enumerate(branch.refs):
            yield from self._node(child, level - 1, bounds[at], bounds[at + 1], txid)

    def _leaf(
        self, run: bytes, page_id: int, low: bytes | None, high: bytes | None, txid: int
    ) -> Iterator[Problem]:
        keys, values = decode_leaf(run)
        if not keys:
            yield Problem(2, "an empty leaf", page_id)
            return
        last = self._last_key
        for key in keys:
            if last is not None and key <= last:
                yield Problem(2, f"key {key[:40]!r} is out of order", page_id)
            last = key
        self._last_key = last
        if (low is not None and keys[0] < low) or (high is not None and keys[-1] >= high):
            yield Problem(2, "keys lie outside of the parent's separators", page_id)
        self._entries += len(keys)
        for key, value in zip(keys, values, strict=True):
            if type(value) is Overflow:
                yield from self._value(key, value, txid)

    def _value(self, key: bytes, value: Overflow, parent_txid: int) -> Iterator[Problem]:
        problem = self._claim(value.ref, _USED)
        if problem is not None:
            yield problem
            return
        page_id = REF.unpack(value.ref)[0]
        try:
            self._pager.value(value)
            offset = page_id * self._meta.page_size
            head = self._store.disk.read(HEADER.size + len(key), offset)
            if head[HEADER.size :] != key:
                yield Problem(3, f"the large value belongs to another key than {key[:40]!r}", page_id)
            if HEADER.unpack_from(head)[5] > parent_txid:
                yield Problem(3, "written after its parent", page_id)
        except CorruptionError as exc:
            yield Problem(3, exc.message, exc.page_id)

    # -- invariant 5 -------------------------------------------------------------------------------

    def _counts(self) -> Iterator[Problem]:
        meta = self._meta
        if self._entries != meta.tree_count:
            yield Problem(5, f"the tree has {self._entries} entries, the meta page says {meta.tree_count}")
        try:
            tree = self._state.view.tree
            growth = sum((value is not None) - (key in tree) for key, value in meta.changes.items())
        except error:
            return  # said already
        if meta.tree_count + growth != meta.entry_count:
            yield Problem(5, f"there are {meta.tree_count + growth} entries, the meta page says {meta.entry_count}")

    # -- invariant 1 -------------------------------------------------------------------------------

    def _space(self) -> Iterator[Problem]:
        meta = self._meta
        try:
            space = Space.load(meta.space, meta.page_size, self._first_page, meta.page_count, self._pager.read)
        except CorruptionError as exc:
            yield Problem(3, f"the free-space map is damaged: {exc.message}", exc.page_id)
            return
        except MALFORMED as exc:
            yield Problem(3, f"the free-space map makes no sense: {exc}")
            return
        for ref in space.own_runs():
            problem = self._claim(ref, _MAP)
            if problem is not None:
                yield problem
        for page_id, page_count in space.free_runs():
            yield from self._claim_pages(page_id, page_count, _FREE)
        for _, (page_id, page_count) in space.pending_runs():
            yield from self._claim_pages(page_id, page_count, _PENDING)
        at = self._owner.find(0, self._first_page)
        while at >= 0:
            end = at
            while end < len(self._owner) and not self._owner[end]:
                end += 1
            yield Problem(1, f"{plural(end - at, 'page')} neither in use nor free", at)
            at = self._owner.find(0, end)

    def _claim(self, ref: bytes, owner: int) -> Problem | None:
        page_id, page_count, _ = REF.unpack(ref)
        return next(self._claim_pages(page_id, page_count, owner), None)

    def _claim_pages(self, page_id: int, page_count: int, owner: int) -> Iterator[Problem]:
        if page_id < self._first_page or page_count < 1 or page_id + page_count > self._meta.page_count:
            yield Problem(4, f"{plural(page_count, 'page')} {_WORDS[owner]}, but not inside the file", page_id)
            return
        for page in range(page_id, page_id + page_count):
            before = self._owner[page]
            if before:
                yield Problem(1, f"both {_WORDS[before]} and {_WORDS[owner]}", page)
            self._owner[page] = owner
        self._done += page_count
        if self._progress is not None:
            self._progress(self._done, self._meta.page_count - self._first_page)
