"""The survey behind `inspect`: what every page of a file is, for one commit, damaged or not.

It walks everything that the commit refers to, and then looks at the remaining pages. Nothing is trusted before its
checksum is verified. What cannot be read is part of the result, not an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from .._engine.checkpoints import checkpoints, trees_of
from .._engine.disk.protocol import Disk
from .._engine.locks import oldest_pin
from .._engine.meta import META_SIZE, Meta
from .._engine.node import leaf_keys
from .._engine.page import CRC_SIZE, HEADER, NO_REF, REF, TYPE_NAMES, ref_parts
from .._engine.pager import MALFORMED, Pager
from .._engine.recovery import read_slots
from .._engine.sparse import LONG
from .._engine.store import Store
from .._engine.tree import Tree, Visit, walk
from .._engine.view import State
from .._files.arguments import Progress
from .._files.intact_pages import IntactRun, intact_runs
from .._messages import plural
from ..errors import CorruptionError, error
from .file_map import FileMap, Run, Step

__all__ = ["Survey", "cut_off", "meta_runs", "unreachable"]

_KEY_SHOWN = 48
"""Bytes of a key that the map keeps."""

_NOT_CLAIMED = (1, 4)
"""What is wrong with a run of which no page is this run's: the invariants (see `walk`)."""


class Survey:
    """Walks everything that one commit refers to, then looks at the remaining pages."""

    def __init__(self, store: Store, state: State, progress: Progress | None) -> None:
        self._disk = store.disk
        self._state = state
        self._meta = meta = state.meta
        self._page_size = meta.page_size
        self._pager = Pager(store.disk, meta.page_size, 0)
        self._progress = progress
        self._file_pages = -(-store.disk.size() // meta.page_size)
        self._page_count = max(meta.page_count, self._file_pages)
        self._pages = state.pages()
        self._done = 0
        self._runs: list[Run] = []
        self._problems: list[str] = []
        foreign = oldest_pin(store.disk)
        self._oldest = None if foreign is None else foreign.offset

    def run(self) -> None:
        """Find out what every page is."""
        self._metas()
        self._tree()
        self._space()
        self._rest()
        self._runs.sort()
        self._problems.sort(key=_place)

    def map(self, name: str, steps: list[Step], found: bool) -> FileMap:
        """The result."""
        meta = self._meta
        return FileMap(
            name, meta.page_size, self._page_count, self._disk.size(), meta.txid, meta.time_ns,
            meta.entry_count, len(meta.changes), meta.depth, self._oldest, self._runs, self._problems,
            steps, found,
        )  # fmt: skip

    # -- what the commit refers to -----------------------------------------------------------------

    def _metas(self) -> None:
        slots = read_slots(self._disk)
        for slot, meta in enumerate(slots.metas):
            if meta is None:
                self._problems.append(f"meta page {slot} is damaged")
        self._runs += meta_runs(slots.metas, self._page_size)

    def _tree(self) -> None:
        meta, pager = self._meta, self._pager
        main, tables = Tree(pager, meta.root, meta.depth), Tree(pager, meta.tables_root, meta.tables_depth)
        present = chain.from_iterable(walk(tree, self._pages, tolerated=CorruptionError) for tree in (main, tables))
        for visit, kept in chain(((visit, "") for visit in present), self._kept()):
            kind = TYPE_NAMES[visit.kind]
            if visit.flaw is not None and visit.flaw.invariant in _NOT_CLAIMED:
                self._problems.append(f"page {visit.page_id}: {kind}: {visit.flaw.message}")
                continue
            self._tell(visit.page_count)
            parent = 0 if visit.parent is None else visit.parent.page_id
            flaw = self._flaw_of(visit)
            if flaw is not None:
                self._damage(visit.ref, f"{kind}: {flaw}", parent, b"" if visit.level else visit.low)
                continue
            if kept:
                note = f"a {kind} that only a checkpoint needs, {kept!r} for one"
                self._runs.append(Run(visit.page_id, visit.page_count, "pinned", parent=parent, note=note))
                continue
            head = visit.run or self._disk.read(HEADER.size, visit.page_id * self._page_size)
            self._add(kind, visit.ref, HEADER.unpack_from(head), parent, _first_key(visit))

    def _kept(self) -> Iterator[tuple[Visit, str]]:
        """What checkpoints have beside that, and the name of the newest that has it."""
        try:
            found = checkpoints(self._state.view)
        except error as exc:
            self._problems.append(f"the checkpoints cannot be read: {exc}")
            return
        for name, kept in reversed(found.items()):
            for tree in trees_of(kept, self._pager):
                for visit in walk(tree, self._pages, tolerated=CorruptionError, shared=True):
                    yield visit, name

    def _flaw_of(self, visit: Visit) -> str | None:
        """What is wrong with a run, if anything is."""
        if visit.flaw is not None:
            return visit.flaw.message
        if visit.value is not None:
            try:
                visit.check_value(self._pager)
            except CorruptionError as exc:
                return exc.message
        return None

    def _space(self) -> None:
        try:
            space = self._state.free_map(self._pager)
            heads = {
                ref: HEADER.unpack(self._disk.read(HEADER.size, ref_parts(ref)[0] * self._page_size))
                for ref in space.own_runs()
            }
        except CorruptionError as exc:
            ref = self._meta.space if exc.page_id is None else REF.pack(exc.page_id, 1, 0)
            page_id, page_count, _ = REF.unpack(ref)
            if ref != NO_REF and self._claim(page_id, page_count, "space"):
                self._damage(ref, f"free-space map: {exc.message}", 0)
            return
        for ref, header in heads.items():
            page_id, page_count, _ = REF.unpack(ref)
            if self._claim(page_id, page_count, "space"):
                self._runs.append(Run(page_id, page_count, "space", header[5], used=page_count * self._page_size))
        for page_id, page_count in space.pages.free_runs():
            if self._claim(page_id, page_count, "free"):
                self._runs.append(Run(page_id, page_count, "free"))
        for txid, (page_id, page_count) in space.pending_runs():
            if self._claim(page_id, page_count, "pending"):
                pinned = self._oldest is not None and txid > self._oldest
                self._runs.append(Run(page_id, page_count, "pinned" if pinned else "pending", txid))

    # -- what is left ------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Pages that nothing refers to: below a damaged branch, or behind the end of the database."""
        for start, count in self._pages.gaps(self._pages.first_page, self._page_count):
            self._runs += unreachable(self._disk, self._page_size, start, start + count)
        inside = [run for run in self._runs if run.page_id < self._meta.page_count]
        self._problems += cut_off(inside)
        if self._file_pages < self._meta.page_count:
            self._problems.append(
                f"the file ends at page {self._file_pages:,}, before its {self._meta.page_count:,} pages"
            )

    # -- bookkeeping -------------------------------------------------------------------------------

    def _claim(self, page_id: int, page_count: int, what: str) -> bool:
        """Mark pages as accounted for; False, with a problem, if that is not possible."""
        if not self._pages.holds(page_id, page_count):
            self._problems.append(f"{what}: {plural(page_count, 'page')} from page {page_id} on, outside of the file")
            return False
        if self._pages.claim(page_id, page_count) is not None:
            self._problems.append(f"page {page_id} is in use twice, as {what} and as something else")
            return False
        self._tell(page_count)
        return True

    def _tell(self, page_count: int) -> None:
        self._done += page_count
        if self._progress is not None:
            self._progress(self._done, self._page_count)

    def _add(self, kind: str, ref: bytes, header: tuple[int, ...], parent: int, key: bytes) -> None:
        """Add a verified run."""
        page_id, page_count, _ = REF.unpack(ref)
        _, _, _, entries, _, txid, _, payload = header
        used = HEADER.size + payload + CRC_SIZE
        entries = 0 if kind == "overflow" else entries  # there it is the length of the key
        self._runs.append(Run(page_id, page_count, kind, txid, entries, used, parent, key[:_KEY_SHOWN]))

    def _damage(self, ref: bytes, note: str, parent: int, key: bytes = b"") -> None:
        page_id, page_count, _ = REF.unpack(ref)
        self._problems.append(f"page {page_id}: {note}")
        run = Run(page_id, page_count, "damaged", parent=parent, first_key=key[:_KEY_SHOWN], note=note)
        self._runs.append(run)


def _first_key(visit: Visit) -> bytes:
    """The first separator or key of a node; the key of a large value."""
    if visit.branch is not None:
        return next(iter(visit.branch.separators), b"")
    return next(iter(visit.entries()[0]), b"") if visit.level else visit.low


def meta_runs(metas: tuple[Meta | None, Meta | None], page_size: int) -> Iterator[Run]:
    """The meta area. With large pages both metas are in one page."""
    if page_size == META_SIZE:
        for slot, meta in enumerate(metas):
            yield _meta_run(slot, meta)
        return
    newest = max((meta for meta in metas if meta is not None), key=lambda meta: meta.txid, default=None)
    run = _meta_run(0, newest)
    yield run._replace(
        kind="damaged" if None in metas else "meta",
        note="a meta page is damaged" if None in metas else run.note,
    )


def _place(problem: str) -> int:
    """The page that a problem names; -1 for problems of the whole file, which come first."""
    found = re.match(r"page (\d+)", problem)
    return -1 if found is None else int(found[1])


def _meta_run(slot: int, meta: Meta | None) -> Run:
    if meta is None:
        return Run(slot, 1, "damaged", note="the meta page does not match its checksum")
    changes = sum(len(key) + len(value or b"") + 8 for key, value in meta.changes.items())
    note = f"{'steady, ' if meta.steady else ''}{plural(len(meta.changes), 'change')} not in the tree yet"
    return Run(slot, 1, "meta", meta.txid, len(meta.changes), 192 + changes, note=note)


def unreachable(disk: Disk, page_size: int, start: int, stop: int) -> Iterator[Run]:
    """The pages from `start` up to `stop` as runs: each intact run, and what lies between."""
    blank = start
    for _, found in intact_runs(disk, page_size, start, stop):
        if found is None:
            continue
        yield from _blank(disk, page_size, blank, found.page_id)
        entries = found.entries if found.kind in ("leaf", "branch") else 0
        what = f" with {entries} {'entries' if found.kind == 'leaf' else 'children'}" if entries else ""
        note = f"an intact {found.kind}{what}, written by commit {found.txid}, that nothing points at"
        yield Run(
            found.page_id, found.page_count, "unreachable", found.txid, entries, found.used,
            first_key=_key_of(disk, page_size, found), note=note,
        )  # fmt: skip
        blank = found.page_id + found.page_count
    yield from _blank(disk, page_size, blank, stop)


def _key_of(disk: Disk, page_size: int, run: IntactRun) -> bytes:
    """The beginning of a run's first key, where that can be read cheaply."""
    offset = run.page_id * page_size
    if run.kind == "overflow":
        return disk.read(min(run.entries, _KEY_SHOWN), offset + HEADER.size)
    if run.kind != "leaf" or run.page_count * page_size > LONG:
        return b""
    try:
        return next(iter(leaf_keys(disk.read(run.page_count * page_size, offset))), b"")[:_KEY_SHOWN]
    except MALFORMED:
        return b""


def _blank(disk: Disk, page_size: int, start: int, stop: int) -> Iterator[Run]:
    """Pages without usable content, or behind the end of the file."""
    end = min(max(-(-disk.size() // page_size), start), stop)
    if end > start:
        yield Run(start, end - start, "unreachable", note="no intact page of a database")
    if stop > end:
        yield Run(end, stop - end, "damaged", note="beyond the end of the file")


def cut_off(runs: list[Run]) -> list[str]:
    """The problem text for pages that nothing refers to."""
    lost = [run for run in runs if run.kind == "unreachable"]
    if not lost:
        return []
    leaves = [run for run in lost if run.note.startswith("an intact leaf")]
    pages, entries = sum(run.page_count for run in lost), sum(run.entries for run in leaves)
    return [
        f"{plural(pages, 'page')} that nothing refers to, among them {plural(len(leaves), 'intact leaf')} "
        f"with {plural(entries, 'entry')}"
    ]
