"""The keys of the second tree, which holds all tables but the main one, and its catalog.

A database has two trees. The main table has one to itself, with its keys as they are. The other tables share one: each
has a number, its id, and a key there is the id in 6 bytes (its *prefix*) and then the user's key. So a thousand small
tables take no more pages than one large one, and one commit, one merge and one list of waiting changes serve them all.

The catalog is a table, too, the one with the greatest id, so that a copy can write it when it has written all others.
It holds, by name, each table's id and number of entries. The number is changed together with the entries, in one step,
so it is part of every state that can be read, rolled back to or found after a crash. Ids are never used twice: a table
that is emptied or dropped leaves its id, and the entries under it are garbage that the same commit removes (see
`tables`). So what is found under an id belongs to the one table that ever had it.

In memory, a key of this tree is a `TableKey`. It is not equal to a key of the main tree with the same bytes, so changes
to both trees stand in one dict. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

__all__ = [
    "CATALOG",
    "CHECKPOINTS",
    "LAST_ID",
    "MAX_DEPTH",
    "MAX_ID",
    "NAMES",
    "PREFIX_SIZE",
    "Kept",
    "Record",
    "TableKey",
    "checkpoint_key",
    "dropped_prefix",
    "dropping_key",
    "has_table_keys",
    "name_key",
    "next_prefix",
    "pack_id",
    "prefix_of",
    "split",
    "unpack_id",
]  # fmt: skip

PREFIX_SIZE = 6
"""Bytes of a table's id before each of its keys."""

MAX_DEPTH = 64
"""Levels of the deepest tree that is believed: far more than any disk could hold."""

MAX_ID = 2 ** (8 * PREFIX_SIZE) - 2

_RECORD = struct.Struct("<QQ")

_CHECKPOINT = struct.Struct("<QQ16sIQ16sIQQ")

V = TypeVar("V")


class TableKey(bytes):
    """A key of the tree of tables: the prefix, and the user's key."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is TableKey and bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return type(other) is not TableKey or bytes.__ne__(self, other)

    def __hash__(self) -> int:
        return ~bytes.__hash__(self)


CATALOG = b"\xff" * PREFIX_SIZE
"""The prefix of the catalog: the greatest."""

_NAME, _LAST_ID, _DROPPED, _CHECKPOINT_NAME = b"t", b"n", b"x", b"c"
"""What a key of the catalog begins with, behind the prefix."""

NAMES = CATALOG + _NAME
"""What the key of a table's record begins with; the name follows, as UTF-8."""

LAST_ID = TableKey(CATALOG + _LAST_ID)
"""The key of the greatest id that was ever given out."""

_DROPPING = CATALOG + _DROPPED

CHECKPOINTS = CATALOG + _CHECKPOINT_NAME
"""What the key of a checkpoint's record begins with; the name follows, as UTF-8."""


class Record(NamedTuple):
    """What the catalog says of a table."""

    table_id: int
    entries: int
    """How many it has."""

    @property
    def prefix(self) -> bytes:
        """What the table's keys begin with."""
        return pack_id(self.table_id)

    def pack(self) -> bytes:
        """The value that stands in the catalog."""
        return _RECORD.pack(*self)

    @classmethod
    def unpack(cls, value: bytes) -> Record:
        """The record that a value in the catalog is. Raises `ValueError` if it is none."""
        if len(value) != _RECORD.size:
            raise ValueError("the catalog of tables makes no sense")
        record = cls(*_RECORD.unpack(value))
        if not 0 < record.table_id <= MAX_ID:
            raise ValueError("the catalog of tables makes no sense")
        return record


class Kept(NamedTuple):
    """What a checkpoint keeps: a commit, and its trees."""

    txid: int
    time_ns: int
    root: bytes
    depth: int
    tree_count: int
    tables_root: bytes
    tables_depth: int
    tables_count: int

    def pack(self) -> bytes:
        """The value that stands in the catalog."""
        return _CHECKPOINT.pack(*self, 0)

    @classmethod
    def unpack(cls, value: bytes) -> Kept:
        """What a value in the catalog says. Raises `ValueError` if it cannot be."""
        if len(value) != _CHECKPOINT.size:
            raise ValueError("the catalog of checkpoints makes no sense")
        kept = cls(*_CHECKPOINT.unpack(value)[:-1])
        if max(kept.depth, kept.tables_depth) > MAX_DEPTH:
            raise ValueError("the catalog of checkpoints makes no sense")
        return kept


def checkpoint_key(name: str) -> TableKey:
    """The key of the record of a checkpoint."""
    return TableKey(CHECKPOINTS + name.encode())


def pack_id(table_id: int) -> bytes:
    """A table's id as it stands in keys."""
    return table_id.to_bytes(PREFIX_SIZE, "big")


def unpack_id(value: bytes) -> int:
    """The same back. Raises `ValueError` if it cannot be one."""
    table_id = int.from_bytes(value, "big")
    if len(value) != PREFIX_SIZE or table_id > MAX_ID:
        raise ValueError("the catalog of tables makes no sense")
    return table_id


def name_key(name: str) -> TableKey:
    """The key of the record of a table."""
    return TableKey(NAMES + name.encode())


def dropping_key(prefix: bytes) -> TableKey:
    """Set under this key, in a commit, anything means: the entries with this prefix go."""
    return TableKey(_DROPPING + prefix)


def dropped_prefix(key: bytes) -> bytes | None:
    """The prefix that a `dropping_key` was made of; None if the key is another one."""
    return key[len(_DROPPING) :] if key.startswith(_DROPPING) else None


def prefix_of(key: bytes) -> bytes:
    """The prefix of the table that a key of the tree belongs to."""
    return key[:PREFIX_SIZE]


def next_prefix(prefix: bytes) -> bytes | None:
    """The first key behind those of a table; None: there is none, or no prefix."""
    if prefix == CATALOG or not prefix:
        return None
    return (int.from_bytes(prefix, "big") + 1).to_bytes(len(prefix), "big")


def split(changes: Mapping[bytes, V]) -> tuple[Mapping[bytes, V], dict[bytes, V]]:
    """The changes of the main tree, and those of the tree of tables with their keys as they stand there."""
    if not has_table_keys(changes):
        return changes, {}
    main: dict[bytes, V] = {}
    tables: dict[bytes, V] = {}
    for key, value in changes.items():
        if type(key) is TableKey:
            tables[bytes(key)] = value
        else:
            main[key] = value
    return main, tables


def of_tables(changes: Mapping[bytes, V]) -> dict[bytes, V]:
    """The changes without those of the main tree."""
    return {key: value for key, value in changes.items() if type(key) is TableKey}


def has_table_keys(keys: Iterable[bytes]) -> bool:
    """Whether there is a `TableKey` among the keys."""
    return TableKey in set(map(type, keys))
