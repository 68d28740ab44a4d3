"""One table on a Redis server: its operations, now or as of the instant at which a reader began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..faces import KeyRange
from .scripts import (
    APPLY,
    CLEAR,
    COUNT,
    LOOK,
    PAGE,
    POP,
    POP_END,
    SET_DEFAULT,
    packed_changes,
)

if TYPE_CHECKING:
    from .session import Session

__all__ = ["ENTRY_MAX", "PAGE_ENTRIES", "Bounds", "Page", "RedisTable", "TableAsOf", "is_behind"]

PAGE_ENTRIES = 500
PAGE_BYTES = 2**22
"""What a page has at most, and one entry more."""

ENTRY_MAX = 2**29 - 2**20
"""Bytes of a key and its value: a string of Redis has less than 512 MiB."""

_LOWEST, _HIGHEST = b"-", b"+"


class Bounds(NamedTuple):
    """A range of keys as Redis takes it: `first` is where to begin, whatever the direction."""

    first: bytes
    last: bytes
    reverse: bool

    @classmethod
    def of(cls, keys: KeyRange) -> Bounds:
        """The bounds of a range."""
        low = _LOWEST if keys.start is None else b"[" + keys.start
        high = _HIGHEST if keys.stop is None else b"(" + keys.stop
        return cls(high, low, True) if keys.reverse else cls(low, high, False)

    def behind(self, key: bytes) -> Bounds:
        """What is left of the range behind `key`."""
        return self._replace(first=b"(" + key)

    def up_to(self, key: bytes) -> Bounds:
        """The part of the range up to `key`, with it."""
        return self._replace(last=b"[" + key)

    def ascending(self) -> tuple[bytes, bytes]:
        """The lower and the upper bound."""
        return (self.last, self.first) if self.reverse else (self.first, self.last)


class Page(NamedTuple):
    """Entries in the order that was asked for, and the key behind which there may be more (None: there are none)."""

    entries: list[tuple[bytes, bytes]]
    bound: bytes | None


def is_behind(key: bytes, bound: bytes, reverse: bool) -> bool:
    """Whether `key` comes behind `bound` in that direction."""
    return key < bound if reverse else key > bound


class RedisTable:
    """A table as it is. `where` is what the names of its keys begin with; `database` what those of the readers do."""

    entry_max = ENTRY_MAX

    def __init__(self, database: bytes, where: bytes, name: str) -> None:
        self.database = database
        self.where = where
        self.name = name
        self._entries = where + b":entries"
        self._order = where + b":order"

    def as_of(self, reader: bytes) -> TableAsOf:
        """The table as it was when the reader began."""
        return TableAsOf(self.database, self.where, self.name, reader)

    # -- reading -------------------------------------------------------------------------------------------------

    def find(self, session: Session, key: bytes) -> bytes | None:
        """The value of `key`."""
        value: bytes | None = session.command("HGET", self._entries, key)
        return value

    def has(self, session: Session, key: bytes) -> bool:
        """Whether `key` is there."""
        return bool(session.command("HEXISTS", self._entries, key))

    def find_many(self, session: Session, keys: list[bytes]) -> dict[bytes, bytes]:
        """Those of `keys` that are there, with their values."""
        values = session.command("HMGET", self._entries, *keys)
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    def count(self, session: Session) -> int:
        """The number of entries."""
        return int(session.command("HLEN", self._entries))

    def has_any(self, session: Session) -> bool:
        """Whether there is an entry."""
        return bool(session.command("EXISTS", self._entries))

    def first_of(self, session: Session, keys: KeyRange) -> tuple[bytes, bytes] | None:
        """The first entry of a range."""
        return self._first(session, keys, values=True)

    def first_key_of(self, session: Session, keys: KeyRange) -> bytes | None:
        """The first key of a range."""
        entry = self._first(session, keys, values=False)
        return None if entry is None else entry[0]

    def _first(self, session: Session, keys: KeyRange, *, values: bool) -> tuple[bytes, bytes] | None:
        bounds = Bounds.of(keys)
        while True:
            page = self.page(session, bounds, values=values, limit=1)
            if page.entries:
                return page.entries[0]
            if page.bound is None:
                return None
            bounds = bounds.behind(page.bound)  # a key that is there no more, or was not there yet

    def page(self, session: Session, bounds: Bounds, *, values: bool, limit: int = PAGE_ENTRIES) -> Page:
        """The first entries of what the bounds leave."""
        return self._page(session, "live", b"", bounds, values=values, limit=limit)

    def page_and_enter(self, session: Session, bounds: Bounds, reader: bytes, *, values: bool) -> Page:
        """The same. If there may be more, `reader` begins at this instant."""
        return self._page(session, "enter", reader, bounds, values=values, limit=PAGE_ENTRIES)

    def _page(
        self, session: Session, mode: str, reader: bytes, bounds: Bounds, *, values: bool, limit: int
    ) -> Page:
        found, bound, kept, kept_bound = session.script(
            PAGE, self.database, self.where, mode, reader, bounds.first, bounds.last, int(bounds.reverse), limit,
            int(values), PAGE_BYTES,
        )  # fmt: skip
        entries = list(zip(found[::2], found[1::2], strict=True))
        if kept:
            entries += zip(kept[::2], kept[1::2], strict=True)
            entries.sort(reverse=bounds.reverse)  # no key comes twice, so values are not compared
        both = [one for one in (bound, kept_bound) if one is not None]
        if not both:
            return Page(entries, None)
        # Up to the nearer bound all is known, of what has changed and of what has not.
        near = max(both) if bounds.reverse else min(both)
        return Page([entry for entry in entries if not is_behind(entry[0], near, bounds.reverse)], near)

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, session: Session, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self.apply(session, {key: value})

    def delete(self, session: Session, key: bytes) -> bool:
        """Delete `key`; False if it is not there."""
        return self.pop(session, key) is not None

    def pop(self, session: Session, key: bytes) -> bytes | None:
        """Delete `key` and return its value."""
        value: bytes | None = session.script(POP, self.database, self.where, key)
        return value

    def pop_end(self, session: Session) -> tuple[bytes, bytes] | None:
        """Delete the last entry and return it."""
        entry = session.script(POP_END, self.database, self.where)
        return None if entry is None else (entry[0], entry[1])

    def set_default(self, session: Session, key: bytes, default: bytes) -> bytes:
        """The value of `key`, which is set to `default` if it is not there."""
        value: bytes = session.script(SET_DEFAULT, self.database, self.where, key, default)
        return value

    def apply(self, session: Session, changes: Mapping[bytes, bytes | None]) -> None:
        """Make many changes as one; None deletes."""
        session.script(APPLY, self.database, self.where, *packed_changes(changes))

    def clear(self, session: Session) -> None:
        """Delete all entries."""
        session.script(CLEAR, self.database, self.where)


class TableAsOf(RedisTable):
    """A table as it was when a reader began. It is not written."""

    def __init__(self, database: bytes, where: bytes, name: str, reader: bytes) -> None:
        super().__init__(database, where, name)
        self.reader = reader

    def find(self, session: Session, key: bytes) -> bytes | None:
        return self.find_many(session, [key]).get(key)

    def has(self, session: Session, key: bytes) -> bool:
        return self.find(session, key) is not None

    def find_many(self, session: Session, keys: list[bytes]) -> dict[bytes, bytes]:
        values = session.script(LOOK, self.database, self.where, self.reader, *keys)
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    def count(self, session: Session) -> int:
        return int(session.script(COUNT, self.database, self.where, self.reader))

    def has_any(self, session: Session) -> bool:
        return self._first(session, KeyRange(), values=False) is not None

    def page(self, session: Session, bounds: Bounds, *, values: bool, limit: int = PAGE_ENTRIES) -> Page:
        return self._page(session, "as of", self.reader, bounds, values=values, limit=limit)
