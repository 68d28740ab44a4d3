"""The interface of somebody who is told of every commit made through a handle, such as an attached log of changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Observer"]


class Observer(Protocol):
    """Somebody who is told of every commit made through a handle."""

    def admit(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Raise `ValueError` to keep these changes from being committed."""

    def expect(self) -> None:
        """A commit is about to be made. If it is interrupted, `committed` may not be called although it was made."""

    def committed(self, before: object, changes: Mapping[bytes, object] | None) -> None:
        """A commit was made on the state `before`: with these changes, or (None) with changes that are not known one
        by one. Or it has become durable: then there are none.
        """

    def finish(self) -> None:
        """The handle is about to be closed. All it has committed is durable."""

    def close(self) -> None:
        """The handle is being closed."""
