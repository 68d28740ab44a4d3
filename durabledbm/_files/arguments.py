"""Types of arguments that many functions take, and `Meter`, which reports progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

__all__ = ["CountedProgress", "Meter", "Path", "Progress"]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""The name of a file."""

Progress = Callable[[int, "int | None"], None]
"""Called with (done, total) now and then during long work; total is None if it is not known."""

CountedProgress = Callable[[int, int], None]
"""The same, for work whose total is known."""

_REPORT_EVERY = 1024

E = TypeVar("E")


class Meter:
    """Counts entries, and calls `progress` at every 1024th and at the end."""

    def __init__(self, progress: Progress | None, total: int | None = None) -> None:
        self._progress = progress
        self.total = total
        self.done = 0

    def count(self) -> None:
        """Count one entry."""
        self.done += 1
        if self._progress is not None and self.done % _REPORT_EVERY == 0:
            self._progress(self.done, self.total)

    def watch(self, entries: Iterable[E]) -> Generator[E, None, None]:
        """The same entries, each counted after it was used. A generator is closed at the end."""
        try:
            for entry in entries:
                yield entry
                self.count()
        finally:
            if isinstance(entries, Generator):
                entries.close()

    def finish(self) -> None:
        """Report the end: all that was counted is all there is."""
        if self._progress is not None:
            self._progress(self.done, self.done)
