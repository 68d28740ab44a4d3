"""One file of another database, open for reading."""

from __future__ import annotations

from collections.abc import Callable

from .._engine.disk import FileVolume

__all__ = ["Damaged", "OldFile"]

Damaged = Callable[[str], None]
"""Called with a line about what cannot be read."""

_READ_MAX = 2**30


class OldFile:
    """A regular file: opening anything else is an `OSError`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._disk = FileVolume().open(path, writable=False)
        self.size = self._disk.size()

    def read(self, offset: int, length: int) -> bytes | None:
        """Exactly `length` bytes. None, without using memory, if the file does not have as many there."""
        if not 0 <= offset <= offset + length <= self.size:
            return None
        if length <= _READ_MAX:
            data = self._disk.read(length, offset)
        else:
            starts = range(0, length, _READ_MAX)
            data = b"".join(self._disk.read(min(_READ_MAX, length - at), offset + at) for at in starts)
        return data if len(data) == length else None

    def read_some(self, offset: int, length: int) -> bytes:
        """At most `length` bytes, fewer only at the end of the file."""
        return self._disk.read(length, offset)

    def close(self) -> None:
        """Release the file."""
        self._disk.close()
