"""The interface of somebody who is told of every commit made through a handle, such as an attached log of changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Observer"]


class Observer(Protocol):
    """Somebody who is told of every commit made through a handle."""

    def admit(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Raise `ValueError` to keep these changes from being committed."""

    def committed(self, changes: Mapping[bytes, object] | None) -> None:
        """A commit was made: with these changes, or (None) with changes that are not known one by one."""

    def close(self) -> None:
        """The handle is being closed."""
