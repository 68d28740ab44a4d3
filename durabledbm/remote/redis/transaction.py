"""The steps of a transaction on a Redis server.

Redis has no transactions that read. So a block reads a snapshot, and keeps its changes, and the keys that it has read,
in this process. At its end one script checks whether others have changed what it has read since the snapshot, which the
snapshot's own record tells (see `scripts`), and if not makes all its changes. So transactions are serializable and
never wait for each other; one that conflicts ends with `BusyError`, and nothing of it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import BusyError
from ..blocks import ServerTransaction
from ..faces import KeyRange, Operation
from ..waiting import Scope
from .readers import Readers
from .scan import Scan
from .scripts import COMMIT, CONFLICT, packed_changes, packed_strings
from .snapshot import RedisSnapshot
from .table import ENTRY_MAX, PAGE_ENTRIES, Bounds, Page, RedisTable, is_behind

if TYPE_CHECKING:
    from .session import Session

__all__ = ["RedisTransaction"]

T = TypeVar("T")

_FEW = 10
"""Entries that are asked for to find the first that the block has not deleted."""

_Changes = dict[bytes, "bytes | None"]


class _Reads:
    """What a transaction has read of one table: keys, and ranges as pairs of an upper and a lower bound."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.ranges: list[Bounds] = []


class RedisTransaction(ServerTransaction):
    """A transaction over a snapshot of the database."""

    def __init__(self, owner: object, readers: Readers, table: RedisTable) -> None:
        super().__init__()
        self._owner = owner
        self._readers = readers
        self._database = table.database
        self._snapshot = RedisSnapshot(owner, readers, table)
        self._layers: list[dict[bytes, _Changes]] = [{}]
        """Changes by table and key: those of the outermost block, then those behind each savepoint."""
        self._saved: list[int] = []
        """The savepoints, by number: one for each layer but the first."""
        self._reads: dict[bytes, _Reads] = {}

    def carry_out(self, table: Any, operation: Operation[T]) -> T:
        return operation(_TableInBlock(self, table), None)

    def scan(self, table: Any, keys: KeyRange, scope: Scope, *, values: bool) -> Iterator[Any]:
        return self.scan_by(PAGE_ENTRIES, table, keys, scope, values=values)

    def scan_by(self, limit: int, table: RedisTable, keys: KeyRange, scope: Scope, *, values: bool) -> Iterator[Any]:
        """The same, so many entries at a time."""
        own = self.changes_in(table, keys)
        bounds = Bounds.of(keys)
        reads = self.reads_of(table).ranges
        place = len(reads)
        reads.append(bounds)

        def turn(rest: Bounds) -> Page:
            page = self.read(table, lambda seen, session: seen.page(session, rest, values=values, limit=limit))
            # What was read so far is one range, from where the iterator began to the end of this page.
            reads[place] = bounds if page.bound is None else bounds.up_to(page.bound)
            return _laid_over(page, own, keys.reverse)

        return Scan(turn(bounds), bounds, turn, scope, lambda: None, values=values, owner=self._owner)

    def save(self, number: int) -> None:
        self._saved.append(number)
        self._layers.append({})

    def undo(self, number: int) -> None:
        place = self._saved.index(number) + 1
        del self._layers[place:], self._saved[place:]
        self._layers.append({})

    def release(self, number: int) -> None:
        place = self._saved.index(number) + 1
        for layer in self._layers[place:]:
            for where, changes in layer.items():
                self._layers[place - 1].setdefault(where, {}).update(changes)
        del self._layers[place:], self._saved[place - 1 :]

    def restart(self) -> None:
        self._layers = [{}]

    def commit(self) -> None:
        tables = {where for layer in self._layers for where in layer}  # several if the outermost block ends first
        changes = {where: packed_changes(merged) for where in tables if (merged := self._merged(where))}
        if not changes:
            return  # what was read was all of one instant
        sections: list[bytes | str | int] = []
        for where in {**changes, **self._reads}:
            reads, blobs = self._reads.get(where, _Reads()), changes.get(where, [])
            ranges = [bound for part in reads.ranges for bound in part.ascending()]
            sections += (where, packed_strings(reads.keys), packed_strings(ranges), len(blobs), *blobs)

        def send(session: Session) -> Any:
            return session.script(COMMIT, self._database, self._snapshot.reader, *sections)

        if self._readers.run(send, harmless=False) == CONFLICT:
            raise BusyError(
                f"{self._readers.server}: another transaction changed what this one read; nothing was written; "
                "try again"
            )

    def finish(self) -> None:
        self._snapshot.close()

    # -- for its tables ------------------------------------------------------------------------------------------

    def read(self, table: RedisTable, operation: Callable[[RedisTable, Session], T]) -> T:
        """The result of an operation on the table as the snapshot shows it."""
        seen: Any = operation  # on what the snapshot shows, which is a table of the same kind
        result: T = self._snapshot._read(table.as_of(self._snapshot.reader), seen)
        return result

    def reads_of(self, table: RedisTable) -> _Reads:
        """What was read of a table: to be added to before it is read."""
        return self._reads.setdefault(table.where, _Reads())

    def own(self, table: RedisTable) -> _Changes:
        """The changes of the innermost block, to be added to."""
        return self._layers[-1].setdefault(table.where, {})

    def all_changes(self, table: RedisTable) -> _Changes:
        """The changes of all blocks to a table, as of now."""
        return self._merged(table.where)

    def _merged(self, where: bytes) -> _Changes:
        merged: _Changes = {}
        for layer in self._layers:
            merged.update(layer.get(where, {}))
        return merged

    def changes_in(self, table: RedisTable, keys: KeyRange) -> list[tuple[bytes, bytes | None]]:
        """The changes within a range, in its order."""
        start, stop, reverse = keys
        inside = [
            (key, value)
            for key, value in self.all_changes(table).items()
            if (start is None or key >= start) and (stop is None or key < stop)
        ]
        return sorted(inside, key=lambda change: change[0], reverse=reverse)

    def changed(self, table: RedisTable, key: bytes) -> tuple[bytes | None] | None:
        """The value that a key was set to (None: it was deleted), if it was changed."""
        for layer in reversed(self._layers):
            changes = layer.get(table.where)
            if changes is not None and key in changes:
                return (changes[key],)
        return None


def _laid_over(page: Page, own: list[tuple[bytes, bytes | None]], reverse: bool) -> Page:
    """A page, with the block's own changes in it. What it takes of `own`, which is in order, is removed from there."""
    bound = page.bound
    count = len(own)
    if bound is not None:
        count = next((place for place, (key, _) in enumerate(own) if is_behind(key, bound, reverse)), count)
    taken, own[:count] = own[:count], []
    if not taken:
        return page
    merged: dict[bytes, bytes | None] = dict(page.entries)
    merged.update(taken)
    entries = [(key, value) for key, value in merged.items() if value is not None]
    return Page(sorted(entries, reverse=reverse), bound)


class _TableInBlock:
    """What can be done to a table in a block: `TableOperations` that need no session."""

    entry_max = ENTRY_MAX

    def __init__(self, shared: RedisTransaction, table: RedisTable) -> None:
        self._shared = shared
        self._table = table
        self.name = table.name

    def find(self, _: object, key: bytes) -> bytes | None:
        return self.find_many(_, [key]).get(key)

    def has(self, _: object, key: bytes) -> bool:
        return self.find(_, key) is not None

    def find_many(self, _: object, keys: list[bytes]) -> dict[bytes, bytes]:
        shared, table = self._shared, self._table
        found: dict[bytes, bytes] = {}
        unchanged = []
        for key in keys:
            own = shared.changed(table, key)
            if own is None:
                unchanged.append(key)
            elif own[0] is not None:
                found[key] = own[0]
        if unchanged:
            shared.reads_of(table).keys.update(unchanged)
            found |= shared.read(table, lambda seen, session: seen.find_many(session, unchanged))
        return found

    def count(self, _: object) -> int:
        shared, table = self._shared, self._table
        shared.reads_of(table).ranges.append(Bounds.of(KeyRange()))
        count = shared.read(table, lambda seen, session: seen.count(session))
        changes = shared.all_changes(table)
        if changes:
            before = shared.read(table, lambda seen, session: seen.find_many(session, list(changes)))
            count += sum(value is not None for value in changes.values()) - len(before)
        return count

    def has_any(self, _: object) -> bool:
        return self.first_key_of(_, KeyRange()) is not None

    def first_of(self, _: object, keys: KeyRange) -> tuple[bytes, bytes] | None:
        return next(self._shared.scan_by(_FEW, self._table, keys, Scope(), values=True), None)

    def first_key_of(self, _: object, keys: KeyRange) -> bytes | None:
        return next(self._shared.scan_by(_FEW, self._table, keys, Scope(), values=False), None)

    def put(self, _: object, key: bytes, value: bytes) -> None:
        self._shared.own(self._table)[key] = value

    def delete(self, _: object, key: bytes) -> bool:
        return self.pop(_, key) is not None

    def pop(self, _: object, key: bytes) -> bytes | None:
        value = self.find(_, key)
        if value is not None:
            self._shared.own(self._table)[key] = None
        return value

    def pop_end(self, _: object) -> tuple[bytes, bytes] | None:
        entry = self.first_of(_, KeyRange(reverse=True))
        if entry is not None:
            self._shared.own(self._table)[entry[0]] = None
        return entry

    def set_default(self, _: object, key: bytes, default: bytes) -> bytes:
        value = self.find(_, key)
        if value is None:
            self._shared.own(self._table)[key] = value = default
        return value

    def apply(self, _: object, changes: Mapping[bytes, bytes | None]) -> None:
        self._shared.own(self._table).update(changes)

    def clear(self, _: object) -> None:
        keys = list(self._shared.scan(self._table, KeyRange(), Scope(), values=False))
        self._shared.own(self._table).update(dict.fromkeys(keys))
