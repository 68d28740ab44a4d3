"""Reading a commit whose pin was lost: what a forked child inherits of snapshots and iterators, for one.

Nothing keeps the pages of such a commit from being reused until it is pinned again. That is done when the first page
is read, not before: a child that never looks at what it has inherited shall not make the file grow. Pages that were
reused by then do not have the checksums that their parents hold, so nothing wrong is ever read; but that is no damage,
and the error says what it is.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import CorruptionError, error
from .disk import Disk

__all__ = ["Unpinned"]


class Unpinned:
    """The file, as those read it whose pins were lost, of commit `txid` or later ones. A pager reads from it.

    `pin` pins what is read, if that was not done yet, and returns the disk. `mend` is what mends the file for others,
    `newest` the number of the newest commit. `reason` says why the pins were lost.
    """

    def __init__(
        self, path: str, txid: int, reason: str, *, pin: Callable[[], Disk], mend: Callable[[error], bool],
        newest: Callable[[], int],
    ) -> None:  # fmt: skip
        self.path = path
        self._txid = txid
        self._reason = reason
        self._pin = pin
        self._mend = mend
        self._newest = newest

    def read(self, length: int, offset: int) -> bytes:
        """As `Disk.read`."""
        return self._pin().read(length, offset)

    def size(self) -> int:
        """As `Disk.size`."""
        return self._pin().size()

    def mend(self, cause: error) -> bool:
        """As `Pager.mend`."""
        if self._mend(cause):
            return True
        if isinstance(cause, CorruptionError) and self._newest() > self._txid:
            raise error(f"{self.path}: {self._reason}") from cause
        return False
