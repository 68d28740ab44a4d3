"""The row cache: values of keys that were read lately, so that reading them again is one dict look-up.

Two generations, as in the pager. Its user sees to it that it agrees with the current state: rows are put in only under
`lock`, and what a commit changes is taken out under the same lock before the commit becomes visible.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

__all__ = ["RowCache"]

_ROW_OVERHEAD = 160
"""Bytes of memory, about, that a row takes beside its key and value."""

_ROW_MAX = 4096
"""Larger values are not worth keeping twice."""


class RowCache:
    """At most about `limit` bytes of rows."""

    __slots__ = ("_half", "_room", "aged", "lock", "young")

    def __init__(self, limit: int) -> None:
        self.lock = threading.Lock()
        self._half = self._room = limit // 2
        self.aged: dict[bytes, bytes] = {}
        self.young: dict[bytes, bytes] = {}
        """Both generations are read directly, by any thread; everything else needs the lock."""

    def keep(self, key: bytes, value: bytes) -> None:
        """Put a row in."""
        size = len(key) + len(value)
        if size > _ROW_MAX or not self._half:
            return
        self._room -= size + _ROW_OVERHEAD
        if self._room < 0:
            self.aged, self.young = self.young, {}
            self._room = self._half
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
        self._room = self._half
