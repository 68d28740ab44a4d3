"""inspect: a database file as a map of its pages: what each is, how full, how old, and how a key is found.

What may live here: reading a file, damaged or not, into a `FileMap`, which `durabledbm._picture` draws. Nothing is
believed before its checksum is verified, nothing is changed, and whatever cannot be read is part of the map, not an
error: only a file that is not ours raises one.

The map is of one commit, which is pinned meanwhile, so others may read and write.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ._engine.disk import Disk, FileVolume
from ._engine.locks import oldest_pin
from ._engine.meta import META_SIZE, Meta, first_page
from ._engine.node import Overflow, decode_branch, decode_leaf
from ._engine.page import BRANCH, CRC_SIZE, HEADER, LEAF, MIN_PAGE_SIZE, NO_REF, OVERFLOW, REF, TYPE_NAMES
from ._engine.pager import MALFORMED, Pager
from ._engine.recovery import read_slots
from ._engine.space import Space
from ._engine.state import State
from ._engine.store import Store
from ._pages import guess_page_size, intact_run, run_is_whole
from .errors import CorruptionError, error
from .snapshot import Pin

__all__ = ["KINDS", "FileMap", "Run", "Step", "inspect"]

KINDS = ("meta", "branch", "leaf", "overflow", "space", "free", "pending", "pinned", "unreachable", "damaged")
"""What a page can be. "space": the free-space map. "pending": freed by the last commits, reusable soon. "pinned": freed,
but an open snapshot reads it. "unreachable": nothing points at it. "damaged": it should hold something, and does not."""

_KEY_SHOWN = 48
"""Bytes of a key that the map keeps."""


class Run(NamedTuple):
    """Consecutive pages that are one thing."""

    page_id: int
    page_count: int
    kind: str
    """One of `KINDS`."""
    txid: int = 0
    """The commit that wrote it; for freed pages, the one that freed them. 0: not known, or none."""
    entries: int = 0
    """Entries of a leaf, children of a branch."""
    used: int = 0
    """Bytes of its pages that are in use."""
    parent: int = 0
    """Page id of the branch above, or of the leaf that a large value belongs to; 0: none."""
    first_key: bytes = b""
    """The beginning of its first key, or of the key that a large value belongs to."""
    note: str = ""
    """What is wrong with it, or remarkable."""


class Step(NamedTuple):
    """A step on the way to a key."""

    page_id: int
    page_count: int
    what: str


class FileMap(NamedTuple):
    """A file, page by page."""

    path: str
    page_size: int
    page_count: int
    file_size: int
    """Bytes."""
    txid: int
    time_ns: int
    entry_count: int
    waiting_count: int
    """Changes that stand in the meta page and are not in the tree yet."""
    depth: int
    oldest_snapshot: int | None
    """The oldest commit that another handle reads."""
    runs: list[Run]
    """All pages, ascending."""
    problems: list[str]
    steps: list[Step]
    """The way to the key that was asked for."""
    found: bool
    """Whether that key is there."""


Progress = Callable[[int, "int | None"], None]


def inspect(
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, key: bytes | None = None, progress: Progress | None = None
) -> FileMap:
    """Map the pages of a file, and with `key` the way to its value.

    Reads and verifies every page in use. Raises `error` for a missing file and for one that is not ours; damage does not
    raise, it is on the map. `progress(done, total)` is called with numbers of pages.
    """
    name = os.fsdecode(file)
    try:
        disk = FileVolume().open(name, writable=False)
    except OSError as exc:
        raise error.wrap(exc, name) from exc
    try:
        if not disk.size():
            return FileMap(name, MIN_PAGE_SIZE, 0, 0, 0, 0, 0, 0, 0, None, [], [], [], False)
        try:
            store = Store(FileVolume(), disk, page_size=MIN_PAGE_SIZE, cache_size=0)
        except CorruptionError as exc:
            return _without_tree(name, disk, exc)
        pin = Pin(store)
        try:
            survey = _Survey(store, pin.state.meta, progress)
            survey.run()
            steps, found = ([], False) if key is None else _way(store, pin.state, key)
            return survey.map(name, steps, found)
        finally:
            pin.release()
    except error:
        raise
    except OSError as exc:
        raise error.wrap(exc, name) from exc
    finally:
        disk.close()


class _Survey:
    """Walks everything that one commit refers to, then looks at what is left."""

    def __init__(self, store: Store, meta: Meta, progress: Progress | None) -> None:
        self._disk = store.disk
        self._meta = meta
        self._page_size = meta.page_size
        self._pager = Pager(store.disk, meta.page_size, 0)
        self._progress = progress
        self._file_pages = -(-store.disk.size() // meta.page_size)
        self._taken = bytearray(max(meta.page_count, self._file_pages))
        self._done = 0
        self._runs: list[Run] = []
        self._problems: list[str] = []
        foreign = oldest_pin(store.disk)
        self._oldest = None if foreign is None else foreign.offset

    def run(self) -> None:
        """Find out what every page is."""
        self._metas()
        if self._meta.depth:
            self._node(self._meta.root, self._meta.depth, 0)
        self._space()
        self._rest()
        self._runs.sort()

    def map(self, name: str, steps: list[Step], found: bool) -> FileMap:
        """The result."""
        meta = self._meta
        return FileMap(
            name, meta.page_size, len(self._taken), self._disk.size(), meta.txid, meta.time_ns, meta.entry_count,
            len(meta.changes), meta.depth, self._oldest, self._runs, self._problems, steps, found,
        )  # fmt: skip

    # -- what the commit refers to -------------------------------------------------------------------------------

    def _metas(self) -> None:
        slots = read_slots(self._disk)
        for slot, meta in enumerate(slots.metas):
            if meta is None:
                self._problems.append(f"meta page {slot} is damaged")
        self._runs += _meta_runs(slots.metas, self._page_size)
        first = first_page(self._page_size)
        self._taken[:first] = b"\1" * first

    def _node(self, ref: bytes, level: int, parent: int) -> None:
        page_id, page_count, _ = REF.unpack(ref)
        kind = BRANCH if level > 1 else LEAF
        if not self._claim(page_id, page_count, TYPE_NAMES[kind]):
            return
        try:
            run = self._pager.read(ref, kind)
            header = HEADER.unpack_from(run)
            if level > 1:
                branch = decode_branch(run)
                self._add(page_id, page_count, "branch", header, parent, branch.separators[0] if branch.separators else b"")
                for child in branch.refs:
                    self._node(child, level - 1, page_id)
            else:
                keys, values = decode_leaf(run)
                self._add(page_id, page_count, "leaf", header, parent, keys[0] if keys else b"")
                for key, value in zip(keys, values, strict=True):
                    if type(value) is Overflow:
                        self._value(key, value, page_id)
        except CorruptionError as exc:
            self._damage(page_id, page_count, f"{TYPE_NAMES[kind]}: {exc.message}", parent)
        except MALFORMED as exc:
            self._damage(page_id, page_count, f"{TYPE_NAMES[kind]} that makes no sense: {exc}", parent)

    def _value(self, key: bytes, value: Overflow, parent: int) -> None:
        page_id, page_count, crc = REF.unpack(value.ref)
        if not self._claim(page_id, page_count, "overflow"):
            return
        offset, size = page_id * self._page_size, page_count * self._page_size
        head = self._disk.read(HEADER.size, offset)
        if run_is_whole(self._disk, offset, size) != crc.to_bytes(CRC_SIZE, "little"):
            self._damage(page_id, page_count, "overflow: the checksum does not match the content", parent, key)
        else:
            header = HEADER.unpack(head)
            if header[0] != OVERFLOW or header[4] != page_id:
                self._damage(page_id, page_count, "overflow: not the large value that its parent points at", parent, key)
            else:
                self._add(page_id, page_count, "overflow", (*header[:3], 0, *header[4:]), parent, key)

    def _space(self) -> None:
        meta = self._meta
        try:
            space = Space.load(meta.space, meta.page_size, first_page(meta.page_size), meta.page_count, self._pager.read)
            for ref in space.own_runs():
                page_id, page_count, _ = REF.unpack(ref)
                if self._claim(page_id, page_count, "space"):
                    header = HEADER.unpack(self._disk.read(HEADER.size, page_id * self._page_size))
                    self._runs.append(Run(page_id, page_count, "space", header[5], used=page_count * self._page_size))
        except (CorruptionError, *MALFORMED) as exc:
            page_id, page_count, _ = REF.unpack(meta.space)
            if isinstance(exc, CorruptionError) and exc.page_id is not None:
                page_id, page_count = exc.page_id, 1
            said = exc.message if isinstance(exc, CorruptionError) else str(exc)
            if meta.space != NO_REF and self._claim(page_id, page_count, "space"):
                self._damage(page_id, page_count, f"free-space map: {said}", 0)
            return
        for page_id, page_count in space.free_runs():
            if self._claim(page_id, page_count, "free"):
                self._runs.append(Run(page_id, page_count, "free"))
        for txid, (page_id, page_count) in space.pending_runs():
            if self._claim(page_id, page_count, "pending"):
                pinned = self._oldest is not None and txid > self._oldest
                self._runs.append(Run(page_id, page_count, "pinned" if pinned else "pending", txid))

    # -- what is left --------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Pages that nothing refers to: what a damaged branch led to, or what is behind the end of the database."""
        taken = self._taken
        start = taken.find(0)
        while start >= 0:
            stop = taken.find(1, start)
            stop = len(taken) if stop < 0 else stop
            for run in _unreachable(self._disk, self._page_size, start, stop):
                self._runs.append(run)
            start = taken.find(0, stop)
        inside = [run for run in self._runs if run.page_id < self._meta.page_count]
        self._problems += _cut_off(inside)

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _claim(self, page_id: int, page_count: int, what: str) -> bool:
        """Mark pages as accounted for; False, and a problem, if they cannot be."""
        if page_id < first_page(self._page_size) or page_count < 1 or page_id + page_count > self._meta.page_count:
            self._problems.append(f"{what}: {page_count} page(s) from page {page_id} on are outside of the file")
            return False
        if self._taken.find(1, page_id, page_id + page_count) >= 0:
            self._problems.append(f"page {page_id} is in use twice, as {what} and as something else")
            return False
        self._taken[page_id : page_id + page_count] = b"\1" * page_count
        self._done += page_count
        if self._progress is not None:
            self._progress(self._done, len(self._taken))
        return True

    def _add(
        self, page_id: int, page_count: int, kind: str, header: tuple[int, ...], parent: int, key: bytes
    ) -> None:
        used = HEADER.size + header[7] + CRC_SIZE
        self._runs.append(Run(page_id, page_count, kind, header[5], header[3], used, parent, key[:_KEY_SHOWN]))

    def _damage(self, page_id: int, page_count: int, note: str, parent: int, key: bytes = b"") -> None:
        self._problems.append(f"page {page_id}: {note}")
        self._runs.append(Run(page_id, page_count, "damaged", parent=parent, first_key=key[:_KEY_SHOWN], note=note))


def _meta_runs(metas: tuple[Meta | None, Meta | None], page_size: int) -> Iterator[Run]:
    """The meta area. Where pages are large, both metas are in one page."""
    if page_size == META_SIZE:
        for slot, meta in enumerate(metas):
            yield _meta_run(slot, meta)
        return
    newest = max((meta for meta in metas if meta is not None), key=lambda meta: meta.txid, default=None)
    run = _meta_run(0, newest)
    yield run._replace(kind="damaged" if None in metas else "meta", note="a meta page is damaged" if None in metas else run.note)


def _meta_run(slot: int, meta: Meta | None) -> Run:
    if meta is None:
        return Run(slot, 1, "damaged", note="the meta page does not match its checksum")
    changes = sum(len(key) + len(value or b"") + 8 for key, value in meta.changes.items())
    note = f"{'steady, ' if meta.steady else ''}{len(meta.changes)} change(s) not in the tree yet"
    return Run(slot, 1, "meta", meta.txid, len(meta.changes), 160 + changes, note=note)


def _unreachable(disk: Disk, page_size: int, start: int, stop: int) -> Iterator[Run]:
    """The pages from `start` up to `stop` as runs: each that is intact by itself, and what lies between."""
    page_id = blank = start
    while page_id < stop:
        found = intact_run(disk, page_size, page_id, stop)
        if found is None:
            page_id += 1
            continue
        if page_id > blank:
            yield Run(blank, page_id - blank, "unreachable", note="no intact page of a database")
        kind, entries, txid, page_count, used, key = found
        what = {"leaf": f" with {entries} entries", "branch": f" with {entries} children"}.get(kind, "")
        note = f"an intact {kind}{what}, written by commit {txid}, that nothing points at"
        entries = entries if kind in ("leaf", "branch") else 0
        yield Run(page_id, page_count, "unreachable", txid, entries, used, first_key=key[:_KEY_SHOWN], note=note)
        page_id = blank = page_id + page_count
    if stop > blank:
        yield Run(blank, stop - blank, "unreachable", note="no intact page of a database")


def _cut_off(runs: list[Run]) -> list[str]:
    """What to say of pages that nothing refers to."""
    lost = [run for run in runs if run.kind == "unreachable"]
    if not lost:
        return []
    leaves = [run for run in lost if run.note.startswith("an intact leaf")]
    pages, entries = sum(run.page_count for run in lost), sum(run.entries for run in leaves)
    return [f"{pages:,} page(s) that nothing refers to, among them {len(leaves):,} intact leaves with {entries:,} entries"]


def _without_tree(name: str, disk: Disk, exc: CorruptionError) -> FileMap:
    """The map of a file of which no meta page can be used: every page speaks for itself."""
    slots = read_slots(disk)
    known = next((meta for meta in slots.metas if meta is not None), None)
    page_size = known.page_size if known is not None else guess_page_size(disk)
    page_count = -(-disk.size() // page_size)
    first = min(first_page(page_size), page_count)
    runs = [run for run in _meta_runs(slots.metas, page_size) if run.page_id < page_count]
    runs += _unreachable(disk, page_size, first, page_count)
    txid = max((run.txid for run in runs), default=0)
    problems = [exc.message.split("; ")[0], *_cut_off(runs)]
    return FileMap(name, page_size, page_count, disk.size(), txid, 0, 0, 0, 0, None, runs, problems, [], False)


# -- the way to a key --------------------------------------------------------------------------------------------


def _way(store: Store, state: State, key: bytes) -> tuple[list[Step], bool]:
    """The pages that a look-up of `key` goes through, and whether it is found."""
    meta = state.meta
    page = state.slot if meta.page_size == META_SIZE else 0
    if key in meta.changes:
        value = meta.changes[key]
        what = "deleted" if value is None else f"{len(value)} bytes"
        return [Step(page, 1, f"meta page of commit {meta.txid}: {what}, a change that is not in the tree yet")], value is not None
    root = f"the root is page {REF.unpack(meta.root)[0]}" if meta.depth else "the tree is empty"
    steps = [Step(page, 1, f"meta page of commit {meta.txid}: {root}")]
    pager = Pager(store.disk, meta.page_size, 0)
    ref = meta.root
    try:
        for level in range(meta.depth, 1, -1):
            branch = pager.branch(ref)
            at = bisect_right(branch.separators, key)
            steps.append(_step(ref, f"branch, level {level}: child {at + 1} of {len(branch.refs)}"))
            ref = branch.refs[at]
        if not meta.depth:
            return steps, False
        keys, values = decode_leaf(pager.read(ref, LEAF))
        at = bisect_left(keys, key)
        if at == len(keys) or keys[at] != key:
            steps.append(_step(ref, f"leaf: not among its {len(keys)} entries"))
            return steps, False
        value = values[at]
        if type(value) is not Overflow:
            steps.append(_step(ref, f"leaf: entry {at + 1} of {len(keys)}, {len(value)} bytes"))
            return steps, True
        steps.append(_step(ref, f"leaf: entry {at + 1} of {len(keys)}, a large value"))
        steps.append(_step(value.ref, f"overflow: {value.length:,} bytes"))
        ref = value.ref
        if run_is_whole(store.disk, *(part * meta.page_size for part in REF.unpack(ref)[:2])) != ref[-CRC_SIZE:]:
            raise pager.malformed(ref, "the checksum does not match the content")
    except (CorruptionError, *MALFORMED) as exc:
        said = exc.message if isinstance(exc, CorruptionError) else str(exc)
        steps.append(_step(ref, f"damaged: {said}"))
        return steps, False
    return steps, True


def _step(ref: bytes, what: str) -> Step:
    page_id, page_count, _ = REF.unpack(ref)
    return Step(page_id, page_count, what)
