"""The survey behind `inspect`: what every page of a file is, for one commit, damaged or not.

It walks all that the commit refers to, then looks at what is left. Nothing is believed before its checksum
is verified, and whatever cannot be read is part of the result, not an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ._engine.disk import Disk
from ._engine.locks import oldest_pin
from ._engine.meta import META_SIZE, Meta, first_page
from ._engine.node import Overflow, decode_branch, decode_leaf
from ._engine.page import BRANCH, CRC_SIZE, HEADER, LEAF, NO_REF, OVERFLOW, REF, TYPE_NAMES
from ._engine.pager import MALFORMED, Pager
from ._engine.recovery import crc_if_whole, read_slots
from ._engine.space import Space
from ._engine.store import Store
from ._filemap import FileMap, Run, Step
from ._pages import intact_run
from ._words import plural
from .errors import CorruptionError

__all__ = ["Survey", "cut_off", "meta_runs", "unreachable"]

_KEY_SHOWN = 48
"""Bytes of a key that the map keeps."""

_GROWTH_MAX, _PAGES_MAX = 100, 1 << 20
"""A file may have lost its end. But if the meta page claims more than both of these, it was made to hurt."""

_DEPTH_MAX = 100
"""Levels that no tree has, whatever a file made to hurt says."""

Progress = Callable[[int, "int | None"], None]


class Survey:
    """Walks everything that one commit refers to, then looks at what is left."""

    def __init__(self, store: Store, meta: Meta, progress: Progress | None) -> None:
        self._disk = store.disk
        self._meta = meta
        self._page_size = meta.page_size
        self._pager = Pager(store.disk, meta.page_size, 0)
        self._progress = progress
        self._file_pages = -(-store.disk.size() // meta.page_size)
        credible = meta.page_count <= max(_GROWTH_MAX * self._file_pages, _PAGES_MAX)
        self._page_count = meta.page_count if credible else self._file_pages
        """Pages of the database, as far as the meta page can be believed."""
        self._taken = bytearray(max(self._page_count, self._file_pages))
        self._done = 0
        self._runs: list[Run] = []
        self._problems: list[str] = []
        foreign = oldest_pin(store.disk)
        self._oldest = None if foreign is None else foreign.offset

    def run(self) -> None:
        """Find out what every page is."""
        self._metas()
        if self._meta.depth > _DEPTH_MAX:
            self._problems.append(f"the meta page says that the tree has {self._meta.depth} levels")
        elif self._meta.depth:
            self._node(self._meta.root, self._meta.depth, 0)
        self._space()
        self._rest()
        self._runs.sort()
        self._problems.sort(key=_place)

    def map(self, name: str, steps: list[Step], found: bool) -> FileMap:
        """The result."""
        meta = self._meta
        return FileMap(
            name, meta.page_size, len(self._taken), self._disk.size(), meta.txid, meta.time_ns,
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
        first = first_page(self._page_size)
        self._taken[:first] = b"\1" * first

    def _node(self, ref: bytes, level: int, parent: int) -> None:
        page_id, page_count, _ = REF.unpack(ref)
        kind = BRANCH if level > 1 else LEAF
        if not self._claim(page_id, page_count, TYPE_NAMES[kind]):
            return
        try:
            run = self._pager.read(ref, kind)
            first_key, children, values = _content(run, kind)
        except CorruptionError as exc:
            self._damage(ref, f"{TYPE_NAMES[kind]}: {exc.message}", parent)
            return
        except MALFORMED as exc:
            self._damage(ref, f"{TYPE_NAMES[kind]} that makes no sense: {exc}", parent)
            return
        self._add(TYPE_NAMES[kind], ref, HEADER.unpack_from(run), parent, first_key)
        for child in children:
            self._node(child, level - 1, page_id)
        for key, value_ref in values:
            self._value(key, value_ref, page_id)

    def _value(self, key: bytes, ref: bytes, parent: int) -> None:
        page_id, page_count, _ = REF.unpack(ref)
        if not self._claim(page_id, page_count, "overflow"):
            return
        offset, size = page_id * self._page_size, page_count * self._page_size
        head = self._disk.read(HEADER.size, offset)
        if crc_if_whole(self._disk, offset, size) != ref[-CRC_SIZE:]:
            self._damage(ref, "overflow: the checksum does not match the content", parent, key)
            return
        header = HEADER.unpack(head)
        if header[0] != OVERFLOW or header[4] != page_id:
            self._damage(ref, "overflow: not the large value that its parent points at", parent, key)
            return
        self._add("overflow", ref, header, parent, key)

    def _space(self) -> None:
        meta = self._meta
        try:
            space = Space.load(
                meta.space, meta.page_size, first_page(meta.page_size), self._page_count, self._pager.read
            )
            for ref in space.own_runs():
                page_id, page_count, _ = REF.unpack(ref)
                if self._claim(page_id, page_count, "space"):
                    header = HEADER.unpack(self._disk.read(HEADER.size, page_id * self._page_size))
                    self._runs.append(Run(page_id, page_count, "space", header[5], used=page_count * self._page_size))
        except (CorruptionError, *MALFORMED) as exc:
            ref = meta.space
            if isinstance(exc, CorruptionError) and exc.page_id is not None:
                ref = REF.pack(exc.page_id, 1, 0)
            said = exc.message if isinstance(exc, CorruptionError) else str(exc)
            page_id, page_count, _ = REF.unpack(ref)
            if ref != NO_REF and self._claim(page_id, page_count, "space"):
                self._damage(ref, f"free-space map: {said}", 0)
            return
        for page_id, page_count in space.free_runs():
            if self._claim(page_id, page_count, "free"):
                self._runs.append(Run(page_id, page_count, "free"))
        for txid, (page_id, page_count) in space.pending_runs():
            if self._claim(page_id, page_count, "pending"):
                pinned = self._oldest is not None and txid > self._oldest
                self._runs.append(Run(page_id, page_count, "pinned" if pinned else "pending", txid))

    # -- what is left ------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Pages that nothing refers to: what a damaged branch led to, or what is behind the end."""
        taken = self._taken
        start = taken.find(0)
        while start >= 0:
            stop = taken.find(1, start)
            stop = len(taken) if stop < 0 else stop
            for run in unreachable(self._disk, self._page_size, start, stop):
                self._runs.append(run)
            start = taken.find(0, stop)
        inside = [run for run in self._runs if run.page_id < self._page_count]
        self._problems += cut_off(inside)
        if self._file_pages < self._meta.page_count:
            self._problems.append(
                f"the file ends at page {self._file_pages:,}, before its {self._meta.page_count:,} pages"
            )

    # -- bookkeeping -------------------------------------------------------------------------------

    def _claim(self, page_id: int, page_count: int, what: str) -> bool:
        """Mark pages as accounted for; False, and a problem, if they cannot be."""
        if page_id < first_page(self._page_size) or page_count < 1 or page_id + page_count > self._page_count:
            self._problems.append(f"{what}: {plural(page_count, 'page')} from page {page_id} on, outside of the file")
            return False
        if self._taken.find(1, page_id, page_id + page_count) >= 0:
            self._problems.append(f"page {page_id} is in use twice, as {what} and as something else")
            return False
        self._taken[page_id : page_id + page_count] = b"\1" * page_count
        self._done += page_count
        if self._progress is not None:
            self._progress(self._done, len(self._taken))
        return True

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


def _content(run: bytes, kind: int) -> tuple[bytes, list[bytes], list[tuple[bytes, bytes]]]:
    """Of a node: its first key, the refs of its children, and keys and refs of its large values.

    Raises what is in `MALFORMED`.
    """
    if kind == BRANCH:
        branch = decode_branch(run)
        return branch.separators[0] if branch.separators else b"", list(branch.refs), []
    keys, values = decode_leaf(run)
    large = [(key, value) for key, value in zip(keys, values, strict=True) if type(value) is Overflow]
    if any(len(value) != Overflow.SIZE for _, value in large):
        raise ValueError("a large value without its place")
    return keys[0] if keys else b"", [], [(key, value.ref) for key, value in large]


def meta_runs(metas: tuple[Meta | None, Meta | None], page_size: int) -> Iterator[Run]:
    """The meta area. Where pages are large, both metas are in one page."""
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
    """The page that a problem begins with; what is said of the file as a whole comes first."""
    found = re.match(r"page (\d+)", problem)
    return -1 if found is None else int(found[1])


def _meta_run(slot: int, meta: Meta | None) -> Run:
    if meta is None:
        return Run(slot, 1, "damaged", note="the meta page does not match its checksum")
    changes = sum(len(key) + len(value or b"") + 8 for key, value in meta.changes.items())
    note = f"{'steady, ' if meta.steady else ''}{plural(len(meta.changes), 'change')} not in the tree yet"
    return Run(slot, 1, "meta", meta.txid, len(meta.changes), 160 + changes, note=note)


def unreachable(disk: Disk, page_size: int, start: int, stop: int) -> Iterator[Run]:
    """The pages from `start` up to `stop` as runs: each that is intact by itself, and what lies between."""
    page_id = blank = start
    while page_id < stop:
        found = intact_run(disk, page_size, page_id, stop)
        if found is None:
            page_id += 1
            continue
        yield from _blank(disk, page_size, blank, page_id)
        kind, entries, txid, page_count, used, key = found
        what = {"leaf": f" with {entries} entries", "branch": f" with {entries} children"}.get(kind, "")
        note = f"an intact {kind}{what}, written by commit {txid}, that nothing points at"
        entries = entries if kind in ("leaf", "branch") else 0
        yield Run(page_id, page_count, "unreachable", txid, entries, used, first_key=key[:_KEY_SHOWN], note=note)
        page_id = blank = page_id + page_count
    yield from _blank(disk, page_size, blank, stop)


def _blank(disk: Disk, page_size: int, start: int, stop: int) -> Iterator[Run]:
    """Pages that hold nothing that could be used, or that the file has lost."""
    end = min(max(-(-disk.size() // page_size), start), stop)
    if end > start:
        yield Run(start, end - start, "unreachable", note="no intact page of a database")
    if stop > end:
        yield Run(end, stop - end, "damaged", note="beyond the end of the file")


def cut_off(runs: list[Run]) -> list[str]:
    """What to say of pages that nothing refers to."""
    lost = [run for run in runs if run.kind == "unreachable"]
    if not lost:
        return []
    leaves = [run for run in lost if run.note.startswith("an intact leaf")]
    pages, entries = sum(run.page_count for run in lost), sum(run.entries for run in leaves)
    return [
        f"{plural(pages, 'page')} that nothing refers to, among them {plural(len(leaves), 'intact leaf')} "
        f"with {plural(entries, 'entry')}"
    ]
