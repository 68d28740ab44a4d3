"""Caches in two generations: of nodes, by `pager`, and of rows, by `store`.

New and used entries go to the young generation; when that is full, the old one is dropped and the young one becomes the
old. So an entry that is used once in a generation stays, and a hit in the young generation, the common case, costs one
dict look-up and no bookkeeping.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import islice
from typing import Generic, TypeVar

__all__ = ["Generations", "RowCache"]

_ROW_OVERHEAD = 160
"""Bytes of memory, about, that a row takes beside its key and value."""

_ROW_MAX = 4096
"""Larger values are not worth keeping twice."""

V = TypeVar("V")


class Generations(Generic[V]):
    """At most about `limit` bytes of values, by key. Any thread may read both generations directly.

    Any number of threads may also `put` at once: every step is a single dict operation, and a lost update costs no more
    than finding the value again.
    """

    __slots__ = ("_half", "_room", "old", "young")

    def __init__(self, limit: int) -> None:
        self._half = self._room = limit // 2
        self.old: dict[bytes, V] = {}
        self.young: dict[bytes, V] = {}

    @property
    def limit(self) -> int:
        """Bytes."""
        return 2 * self._half

    def put(self, key: bytes, value: V, size: int) -> None:
        """Put in a value that takes `size` bytes, unless that is more than a generation."""
        self._room -= size
        if self._room < 0:
            self._age()
        if size <= self._half:
            self.young[key] = value

    def _age(self) -> None:
        self.old, self.young = self.young, {}
        self._room = self._half

    def clear(self) -> None:
        """Take everything out."""
        self.young, self.old, self._room = {}, {}, self._half


class RowCache(Generations[bytes]):
    """Values of keys that were read lately, so that reading them again is one dict look-up.

    The first generation may fill all the room, so what fits is found at the first look. The user keeps the cache in
    agreement with the current state: everything but reading is done under `lock`, and what a commit changes is taken
    out under it before the commit becomes visible.
    """

    __slots__ = ("lock",)

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.lock = threading.RLock()
        self._room = limit

    def keep(self, key: bytes, value: bytes) -> None:
        """Put a row in."""
        size = len(key) + len(value)
        if size <= _ROW_MAX and self._half:
            self.put(key, value, size + _ROW_OVERHEAD)

    def _age(self) -> None:
        if not self.old:  # all the room was young
            self.young = dict(islice(self.young.items(), len(self.young) // 2, None))
        super()._age()

    def drop(self, keys: Iterable[bytes]) -> None:
        """Take rows out."""
        young, old = self.young, self.old
        if young or old:
            for key in keys:
                young.pop(key, None)
                old.pop(key, None)

    def clear(self) -> None:
        """Take all rows out."""
        super().clear()
        self._room = self.limit
