"""The row cache: values of keys that were read lately, so that reading them again is one dict look-up.

Two generations, as in the pager; but the first may fill all the room, so that what fits is found at the first look.
Its user sees to it that it agrees with the current state: rows are put in only under `lock`, and what a commit changes
is taken out under the same lock before the commit becomes visible.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import islice

__all__ = ["RowCache"]

_ROW_OVERHEAD = 160
"""Bytes of memory, about, that a row takes beside its key and value."""

_ROW_MAX = 4096
"""Larger values are not worth keeping twice."""


class RowCache:
    """At most about `limit` bytes of rows."""

    __slots__ = ("_limit", "_room", "aged", "lock", "young")

    def __init__(self, limit: int) -> None:
        self.lock = threading.RLock()
        self._limit = self._room = limit
        self.aged: dict[bytes, bytes] = {}
        self.young: dict[bytes, bytes] = {}
        """Both generations are read directly, by any thread; everything else needs the lock."""

    def keep(self, key: bytes, value: bytes) -> None:
        """Put a row in."""
        size = len(key) + len(value)
        if size > _ROW_MAX or not self._limit:
            return
        self._room -= size + _ROW_OVERHEAD
        if self._room < 0:
            if not self.aged:  # all the room was young
                self.young = dict(islice(self.young.items(), len(self.young) // 2, None))
            self.aged, self.young = self.young, {}
            self._room = self._limit // 2
        self.young[key] = value

    def drop(self, keys: Iterable[bytes]) -> None:
        """Take rows out."""
        young, aged = self.young, self.aged
        if young or aged:
            for key in keys:
                young.pop(key, None)
                aged.pop(key, None)

    def clear(self) -> None:
        """Take all rows out."""
        self.young, self.aged = {}, {}
        self._room = self._limit
