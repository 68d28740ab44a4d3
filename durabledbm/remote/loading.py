"""Loading many changes: what `dump.load` and `Mirror` use where a server has no faster way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from ..errors import error
from .faces import WritableTable

__all__ = ["Batches", "Loader", "batched"]


_ENTRIES = 1000
_BYTES = 2**20
"""What is changed at a time."""


class Loader(Protocol):
    """Takes the changes. They are visible when the block has ended."""

    def change(self, key: bytes, value: bytes | None) -> None:
        """Set a key, or delete it if the value is None. The last change of a key counts."""


class Batches:
    """Changes in batches, each an atomic change that is read back and compared."""

    def __init__(self, face: WritableTable, where: str) -> None:
        self._face = face
        self._where = where
        self._batch: dict[bytes, bytes | None] = {}
        self._size = 0

    def change(self, key: bytes, value: bytes | None) -> None:
        """See `Loader`."""
        self._batch[key] = value
        self._size += len(key) + len(value or b"")
        if self._size >= _BYTES or len(self._batch) >= _ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Make the pending changes."""
        batch, self._batch, self._size = self._batch, {}, 0
        if batch:
            self._face._apply(batch)
            found = self._face.get_many(batch)
            if found != {key: value for key, value in batch.items() if value is not None}:
                raise error(f"{self._where}: what was read back is not what was written")


def batched(changes: Iterable[tuple[bytes, bytes | None]]) -> Iterator[dict[bytes, bytes | None]]:
    """The changes in dicts of limited size, in which the last change of a key counts."""
    batch: dict[bytes, bytes | None] = {}
    size = 0
    for key, value in changes:
        batch[key] = value
        size += len(key) + len(value or b"")
        if size >= _BYTES or len(batch) >= _ENTRIES:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch
