"""Reading a commit whose pin was lost: what a forked child inherits of snapshots and iterators, for one.

Nothing keeps the pages of such a commit from being reused until it is pinned again. That is done when the first page
is read, not before: a child that never looks at what it has inherited shall not make the file grow. Pages that were
reused by then do not have the checksums that their parents hold, so nothing wrong is ever read; but that is no damage,
and the error says what it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from ..errors import CorruptionError, error
from .disk import Disk
from .pager import Pager
from .pins import Reader

__all__ = ["Unpinned"]


class Unpinned:
    """The file, as `pager` reads it from now on: for `readers`, of commit `txid` or later ones.

    `pin` pins them; `newest` tells the number of the newest commit. `reason` says why the pins were lost.
    """

    __slots__ = (
        "__weakref__", "_disk", "_mend", "_newest", "_pager", "_pin", "_readers", "_reason", "_txid", "_unpinned",
    )  # fmt: skip

    def __init__(
        self, pager: Pager, disk: Disk, txid: int, readers: list[Reader], reason: str,
        pin: Callable[[list[Reader]], None], newest: Callable[[], int],
    ) -> None:  # fmt: skip
        self._disk = disk
        self._txid = txid
        self._readers = readers
        self._unpinned = True
        self._reason = reason
        self._pin = pin
        self._newest = newest
        self._mend = pager.mend
        self._pager = weakref.ref(pager)
        pager.use(self)
        pager.mend = self.mend

    @property
    def path(self) -> str:
        """As `Disk.path`."""
        return self._disk.path

    def read(self, length: int, offset: int) -> bytes:
        """As `Disk.read`."""
        if self._unpinned:
            self._pin(self._readers)
            self._unpinned = False
        return self._disk.read(length, offset)

    def size(self) -> int:
        """As `Disk.size`."""
        return self._disk.size()

    def data(self, start: int, stop: int) -> tuple[int, int]:
        """As `Disk.data`."""
        return self._disk.data(start, stop)

    def part(self) -> None:
        """In a child process: what was pinned is pinned by the parent. Nothing stays in memory, so that who reads on
        reads from here.
        """
        self._unpinned = True
        if (pager := self._pager()) is not None:
            pager.clear()

    def mend(self, cause: error) -> bool:
        """As `Pager.mend`."""
        if self._mend(cause):
            return True
        if isinstance(cause, CorruptionError) and self._newest() > self._txid:
            raise error(f"{self.path}: {self._reason}") from cause
        return False
