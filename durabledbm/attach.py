"""attach: a change log that follows a database, commit by commit.

This module appends commits to the log, and makes log and database agree when they do not. They may differ after a crash
between the two, after commits of processes without the log, or after a failure of the log's disk. Then the log is
*completed*: one more commit is appended that contains everything that changed since the log's last one.

How the changes are found: after a commit that changed the tree, the log contains a *note* with the tree's root and the
keys whose newest values were in the meta page instead of the tree. Whatever happened since,

    every key whose value may differ from what replaying the log gives is
        in a leaf that the noted tree and the present one do not share, or
        in a commit of the log after the note, or among the note's keys, or in the present meta page,

and appending the present values of these keys makes log and database agree. The noted tree is read through its root's
checksum, so reuse of one of its pages is noticed. In that case the log can only be completed by comparing all of it
with the database, which works if the log begins with an empty database. Otherwise `attach` raises, and a new snapshot
and a new log are needed. While a log is attached, the newest state that it contains is pinned; so completing always
works within the life of a handle and after a crash of it.

A commit that was completed late is in the log as one with the commits before it; `durabledbm.restore` does not restore
to the commits in between.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import chain
from typing import Protocol, cast

from ._engine.catalog import CATALOG, NAMES, PREFIX_SIZE, Record, TableKey, prefix_of
from ._engine.commit import Committer
from ._engine.meta import MAX_DEPTH
from ._engine.page import REF
from ._engine.pager import Pager
from ._engine.tables import drops_table, names, table_view
from ._engine.tree import Tree
from ._engine.view import State, TableView, View
from ._files.tree_diff import differences, table_differences
from ._log.overlay import folded
from ._log.records import BINARY, COMMIT, COMMIT_FIELDS, MARK, PUT, Change, Commit, packed_key, unpacked_key
from .errors import CorruptionError, error
from .mapping import Key
from .snapshot import Pin

__all__ = ["Attachment", "Log", "Writing", "attach"]

_NOTE = struct.Struct(f"<{REF.size}sI{REF.size}sI")
"""Of both trees, the ref of the root and the depth; then for each key in the meta page its size and `packed_key`."""

_KEY = struct.Struct("<I")

_HELD_MAX = 4096
"""So many changes of commits that are not durable yet are held; for more, the trees are compared instead."""

Writing = Callable[[], AbstractContextManager[object]]
"""Makes a block in which only this process writes."""

Changes = Iterable[tuple[bytes, "bytes | None"]]
"""Keys of the main table, and `TableKey`s."""

Named = Iterable[tuple["bytes | tuple[str, Key]", "bytes | None"]]
"""The same as a log has them: keys of the main table, and tables with keys."""


class Log(Protocol):
    """What an attachment uses of a `changelog.ChangeLog`, which documents these methods."""

    directory: str
    max_file_size: int
    codec: str

    def put(self, key: bytes, value: bytes, /, *, table: str = "") -> None: ...
    def delete(self, key: bytes, /, *, table: str = "") -> None: ...
    def commit(self, changes: Named, txid: int, time_ns: int, /, *, note: bytes) -> None: ...
    def note(self, note: bytes, /) -> None: ...
    def check(self, key: bytes, value: bytes | None, /, *, table: str = "") -> None: ...
    def bind(self, identity: bytes, txid: int, /) -> int: ...
    def last_note(self) -> tuple[bytes, set[tuple[str, bytes]]] | None: ...
    def newest(self) -> tuple[int, Commit]: ...
    def base_txid(self) -> int: ...
    def replay(self) -> Iterator[Change]: ...


def attach(committer: Committer, writing: Writing, log: Log) -> Attachment:
    """Let `log` follow the database of `store`, after completing it if it lacks commits.

    `writing()` is a block in which nothing is pending and no other process writes. An empty binary log is bound to the
    database and contains the commits from now on, so take the backup after this, not before. A log in the text codec
    has no commit numbers; every attach compares all of it with the database.

    Raises `error` if the log belongs to another database, is newer than the database or cannot be completed, or if a
    log is attached already; `ValueError` if the text codec cannot hold the database's content; `BusyError` if another
    writer appends to the log.
    """
    store = committer.store
    store.check_writable()
    if store.observer is not None:
        raise error(f"{store.path}: a log is attached already")
    kind = _TextAttachment if log.codec == "text" else Attachment
    attachment = kind(committer, writing, log)
    try:
        attachment.start()
    except BaseException:
        attachment.close()
        raise
    return attachment


class Attachment:
    """An attached log. Made by `Database.attach`; a context manager that ends with `detach()`.

    If the log cannot be written, the call that committed raises `error` although its change is committed and durable.
    The next commit completes the log, if it can be written again.
    """

    def __init__(self, committer: Committer, writing: Writing, log: Log) -> None:
        self.log = log
        self._committer = committer
        self._store = committer.store
        self._writing = writing
        self._pid = os.getpid()
        self._pin: Pin | None = None
        """Of the newest state that the log holds."""
        self._noted: tuple[int, bytes, bytes] | None = None
        """File number and roots of the last note."""
        self._seen: State | None = None
        self._names = _Names()
        self._held: list[tuple[Commit, list[tuple[bytes | tuple[str, Key], bytes | None]]]] | None = []
        """Commits after the pinned one that are not appended yet; None: compare the trees instead."""
        self._held_count = 0
        self._expected: object = None
        """The state that a commit was begun on, which was perhaps interrupted when it was made and not noted here."""

    # -- for users ---------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Append what processes without the log have committed. Every commit through this handle also does so.

        Until then, the space that their commits freed is not reused.
        """
        if self._is_mine():
            with self._writing():
                self._committer.make_durable()
                self._follow()

    def detach(self) -> None:
        """Complete the log and release it. The log stays open. Detaching twice is harmless."""
        if self._store.observer is self:
            try:
                self.catch_up()
            finally:
                self.close()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()

    # -- for the store -----------------------------------------------------------------------------

    def admit(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Raise `ValueError` if the log cannot hold these changes, before they are made."""
        room = self.log.max_file_size - BINARY.header_size - BINARY.size(PUT, b"", b"")
        made = _made_by(changes)
        for key, value in changes.items():
            if type(key) is TableKey:
                self._check_table(key, value, made)
            elif len(key) + (0 if value is None else len(value)) > room:
                self.log.check(key, value)

    def admit_large(self, key: bytes, length: int, value: Callable[[], bytes] | None = None) -> None:
        """The same for a value that is not in memory."""
        size = BINARY.header_size + BINARY.size(PUT, key, b"") + length
        if size > self.log.max_file_size:
            raise ValueError(f"the record needs a file of {size} bytes, the limit is {self.log.max_file_size}")

    def _check_table(self, key: bytes, value: bytes | None, made: dict[bytes, str | None]) -> None:
        """The same of one change in another table, which may be among those that are `made` with it. If the table
        neither is there nor will be, it was made and dropped again: nothing of that comes into the log.
        """
        prefix = prefix_of(key)
        if prefix == CATALOG:
            return
        if prefix not in made:
            made[prefix] = self._names.find(prefix, self._store.state.view)
        if (table := made[prefix]) is not None:
            self.log.check(key[PREFIX_SIZE:], value, table=table)

    def expect(self, before: object) -> None:
        """The store is about to commit on top of the state `before`."""
        self._expected = before

    def committed(self, changes: Mapping[bytes, object] | None) -> None:
        """The store has made a commit, or its state has become durable. The writer lock is held.

        `changes` led from the state before to this one; None means that they are not known.
        """
        if not self._is_mine():
            return
        state = self._store.state
        try:
            if state is not self._seen:
                self._hold(state, changes)
            if state.meta.txid <= self._store.durable_txid:
                self._follow()
        except Exception:
            self._expected = None  # the call that committed raises it
            raise
        self._expected = None

    def _hold(self, state: State, changes: Mapping[bytes, object] | None) -> None:
        """Hold the changes that led to `state` until they are durable.

        If they do not follow on the held ones (an earlier commit was interrupted before it came here, or others have
        committed), or if they are too many, nothing is held any more: the trees will be compared.
        """
        seen, held = self._seen, self._held
        self._held = None  # so an interrupt in what follows loses no commit
        few = changes is not None and self._held_count + len(changes) <= _HELD_MAX and not drops_table(changes)
        if held is not None and seen is not None and self._expected is seen and changes is not None and few:
            commit = Commit(state.meta.txid, state.meta.time_ns)
            real = _real(cast("Changes", changes.items()), seen)
            held.append((commit, list(self._names.named(real, state.view, seen.view))))
            self._held_count += len(changes)
        else:
            held = None
        self._seen, self._held = state, held

    def finish(self) -> None:
        """The handle is about to close: append what an interrupt kept from being appended."""
        if self._expected is not None:
            self.catch_up()

    def close(self) -> None:
        """End without appending anything."""
        if self._store.observer is self:
            self._store.observer = None
        pin, self._pin, self._seen = self._pin, None, None
        if pin is not None:
            pin.release()

    def _is_mine(self) -> bool:
        """False in a child process: the parent owns the log, and completes it with what the child commits."""
        if os.getpid() == self._pid:
            return self._pin is not None
        self.close()
        return False

    # -- the way into the log ----------------------------------------------------------------------

    def start(self) -> None:
        """Make log and database agree, and follow from there."""
        with self._writing():
            self._committer.make_durable()
            state = self._advance()
            if self._agree(state):
                self._begin()
                return
        # Everything must be compared. Others may write meanwhile: this state is pinned.
        self._append(state, _compared(self.log, state))
        with self._writing():
            self._committer.make_durable()
            self._follow()
            self._begin()

    def _begin(self) -> None:
        if self._store.observer is not None:
            raise error(f"{self._store.path}: a log is attached already")
        self._store.observer = self

    def _agree(self, state: State) -> bool:
        """Bind the log and complete it. False if everything must be compared."""
        if self.log.max_file_size < BINARY.header_size + BINARY.size(COMMIT, bytes(COMMIT_FIELDS.size), b""):
            raise ValueError(f"max_file_size={self.log.max_file_size}: a file cannot hold a commit")
        meta = state.meta
        base = meta.txid if meta.entry_count or any(True for _ in names(state.view)) else 0
        self.log.bind(meta.database_id, base)
        number, last = self.log.newest()
        if last.txid > meta.txid or (last.txid == meta.txid and last.time_ns not in (0, meta.time_ns)):
            history = f"the log ends with commit {last.txid}, the database with another commit {meta.txid}"
            raise error(f"{self.log.directory}: {history}: take a new snapshot and begin a new log")
        if last.txid != meta.txid and (last.txid or base):
            return self._append_noted(state, last)
        note = self._note(state, number)
        if note:
            self.log.note(note)
        return True

    def _append_noted(self, state: State, last: Commit) -> bool:
        """Complete the log from its last note. False if everything must be compared."""
        note = self.log.last_note()
        problem = "it does not say where the database stood then"
        if note is not None:
            try:
                trees, suspects = _unpacked_note(note[0], self._store.pager)
                self._append(state, self._changed_since(trees, suspects | note[1], state))
            except CorruptionError as exc:
                problem = f"what changed since has been overwritten in part ({exc.message})"
            else:
                return True
        if self.log.base_txid():
            gap = f"the log ends with commit {last.txid}, the database with {state.meta.txid}, and {problem}"
            raise error(f"{self.log.directory}: {gap}: take a new snapshot and begin a new log")
        return False

    def _changed_since(self, trees: View, suspects: set[tuple[str, bytes]], state: State) -> Named:
        """What differs between noted trees and a state, and the suspects of any table."""
        yield from differences(trees.tree, state, (key for table, key in suspects if not table))
        inside: list[bytes] = []
        for table, key in sorted(suspects):
            found = table_view(state.view, table) if table else None
            if found is not None:
                inside.append(found.key(key))
            elif table:
                yield (table, key), None
        yield from self._names.named(table_differences(trees, state, inside), state.view, trees)

    def _follow(self) -> None:
        """Append everything that the log lacks of the present state, which is durable."""
        assert self._pin is not None
        store, before = self._store, self._pin.state
        state = store.state
        if state.meta.txid == before.meta.txid:
            return
        held, self._held = self._held, None  # if appending fails, comparing the trees will tell
        try:
            if self.log.newest()[1].txid == state.meta.txid:
                pass  # it was appended, and then interrupted
            elif held and held[-1][0].txid == state.meta.txid:
                for commit, changes in held[:-1]:
                    self._append_commit(commit, changes)
                self._append(state, held[-1][1])
            else:
                suspects = before.meta.changes
                main = differences(before.view.tree, state, suspects)
                real = _real(chain(main, table_differences(before.view, state, suspects)), before)
                self._append(state, self._names.named(real, state.view, before.view))
        except ValueError as exc:
            raise error(f"{store.path}: committed, but the log cannot hold it: {exc}") from exc
        except OSError as exc:
            raise error(f"{store.path}: committed, but not logged: {exc}") from exc
        self._advance()

    def _advance(self) -> State:
        """The log contains the present state: pin it in place of the one before."""
        pin, old = Pin(self._store), self._pin
        self._pin, self._seen, self._held, self._held_count = pin, pin.state, [], 0
        if old is not None:
            old.release()
        return pin.state

    def _append(self, state: State, changes: Named) -> None:
        """Append the commit that leads to `state`, with a note if one is due."""
        number, _ = self.log.newest()
        same = self._noted == (number, state.meta.root, state.meta.tables_root)
        note = b"" if same else self._note(state, number)
        self._append_commit(Commit(state.meta.txid, state.meta.time_ns), changes, note)

    def _append_commit(self, commit: Commit, changes: Named, note: bytes = b"") -> None:
        self.log.commit(changes, commit.txid, commit.time_ns, note=note)

    def _packed_note(self, state: State) -> bytes:
        meta, view = state.meta, state.view
        parts = [_NOTE.pack(meta.root, view.tree.depth, meta.tables_root, view.tables.depth)]
        for key in meta.changes:
            if type(key) is TableKey and prefix_of(key) == CATALOG:
                continue
            packed = packed_key(*(self._names.of(key, view) if type(key) is TableKey else ("", key)))
            parts += (_KEY.pack(len(packed)), packed)
        return b"".join(parts)

    def _note(self, state: State, number: int) -> bytes:
        """The note for `state`, to be left in file `number` or the next; empty if it is too large for a file."""
        self._noted = number, state.meta.root, state.meta.tables_root
        note = self._packed_note(state)
        return note if BINARY.header_size + BINARY.size(MARK, note, b"") <= self.log.max_file_size else b""


class _TextAttachment(Attachment):
    """A log without commit numbers, notes and a database identity. All of it is compared."""

    def _agree(self, state: State) -> bool:
        self.log.newest()
        return False

    def admit(self, changes: Mapping[bytes, bytes | None]) -> None:
        made = _made_by(changes)
        for key, value in changes.items():
            if type(key) is TableKey:
                self._check_table(key, value, made)
            else:
                self.log.check(key, value)

    def admit_large(self, key: bytes, length: int, value: Callable[[], bytes] | None = None) -> None:
        super().admit_large(key, length)
        if value is not None:
            self.log.check(key, value())

    def _follow(self) -> None:
        if self._held is not None:  # one by one: what is atomic in the database is not in such a log
            self._held = [(commit, changes) for commit, changes in self._held if changes]
        super()._follow()

    def _append_commit(self, commit: Commit, changes: Named, note: bytes = b"") -> None:
        for where, value in changes:
            table, key = where if isinstance(where, tuple) else ("", where)
            if value is None:
                self.log.delete(key, table=table)  # type: ignore[arg-type]
            else:
                self.log.put(key, value, table=table)  # type: ignore[arg-type]


class _Names:
    """The names of tables, by their prefixes. An id is never used twice, so what is known stays right."""

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def find(self, prefix: bytes, *views: View) -> str | None:
        """The name of the table with this prefix, if it is in one of the views."""
        for view in views:
            if prefix in self._known:
                break
            self._known.update((record.prefix, name) for name, record in names(view))
        return self._known.get(prefix)

    def of(self, key: bytes, *views: View) -> tuple[str, bytes]:
        """The table and the key in it that a `TableKey` stands for: the table is in one of the views."""
        name = self.find(prefix_of(key), *views)
        if name is None:
            raise views[0].tree.pager.malformed(views[0].tables.root, "an entry of a table that does not exist")
        return name, key[PREFIX_SIZE:]

    def named(self, changes: Changes, *views: View) -> Named:
        """The changes as a log has them. The catalog is left out."""
        for key, value in changes:
            if type(key) is not TableKey:
                yield key, value
            elif prefix_of(key) != CATALOG:
                yield self.of(key, *views), value


def _made_by(changes: Mapping[bytes, bytes | None]) -> dict[bytes, str | None]:
    """The tables whose records are among the changes: their prefixes and names."""
    return {
        Record.unpack(value).prefix: key[len(NAMES) :].decode()
        for key, value in changes.items()
        if type(key) is TableKey and value is not None and key.startswith(NAMES)
    }


def _real(changes: Changes, before: State) -> Iterator[tuple[bytes, bytes | None]]:
    """The changes without deletions of keys that did not exist."""
    for key, value in changes:
        if value is not None or before.view.find(key) is not None:
            yield key, value


def _unpacked_note(note: bytes, pager: Pager) -> tuple[View, set[tuple[str, bytes]]]:
    """The content of a note. Raises `CorruptionError` if it is malformed: the log may come from elsewhere."""
    keys = set()
    at = _NOTE.size
    try:
        root, depth, tables_root, tables_depth = _NOTE.unpack_from(note)
        while at < len(note):
            (size,) = _KEY.unpack_from(note, at)
            at += _KEY.size + size
            keys.add(unpacked_key(note[at - size : at]))
    except (struct.error, ValueError) as exc:
        raise CorruptionError("the note in the log is malformed") from exc
    if at != len(note) or max(depth, tables_depth) > MAX_DEPTH:
        raise CorruptionError("the note in the log is malformed")
    return View(Tree(pager, root, depth), tables=Tree(pager, tables_root, tables_depth)), keys


def _compared(log: Log, state: State) -> Named:
    """The changes that turn what replaying the whole log gives into `state`."""
    changes = ((packed_key(change.table, change.key), change.value) for change in log.replay())
    for packed, value in _turning(folded(changes, log.directory), _content(state)):
        table, key = unpacked_key(packed)
        yield (table, key) if table else key, value


def _content(state: State) -> Iterator[tuple[bytes, bytes]]:
    """All entries of a state, by their `packed_key`s."""
    for key, value in state.view.items():
        yield packed_key("", key), value
    tables = {packed_key(name, b""): record for name, record in names(state.view)}
    for stem in sorted(tables):
        for key, value in TableView(state.view, tables[stem].prefix).items():
            yield stem + key, value


def _turning(
    logged: Iterator[tuple[bytes, bytes | None]], present: Iterator[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes | None]]:
    theirs = next(logged, None)
    for key, value in present:
        while theirs is not None and theirs[0] < key:
            if theirs[1] is not None:
                yield theirs[0], None
            theirs = next(logged, None)
        if theirs is None or theirs != (key, value):
            yield key, value
        if theirs is not None and theirs[0] == key:
            theirs = next(logged, None)
    while theirs is not None:
        if theirs[1] is not None:
            yield theirs[0], None
        theirs = next(logged, None)
