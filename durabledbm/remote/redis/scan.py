"""Iterators over a table on a Redis server: a page at a time, as of the instant at which a reader began."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..waiting import Scope
from .table import Bounds, Page

__all__ = ["Scan"]


class Scan(Iterator[Any]):
    """Pairs of key and value or, without `values`, keys.

    `turn(bounds)` returns a further page. `done()` is called once, at the end or when the iterator is freed; so it may
    be called at any moment, and must not wait. `owner` exists as long as the iterator is used.
    """

    __slots__ = ("_bounds", "_done", "_entries", "_owner", "_scope", "_turn", "_values")

    def __init__(
        self, first: Page, bounds: Bounds, turn: Callable[[Bounds], Page], scope: Scope, done: Callable[[], object], *,
        values: bool, owner: object,
    ) -> None:  # fmt: skip
        self._bounds: Bounds | None = bounds
        self._done: Callable[[], object] | None = done
        self._turn = turn
        self._scope = scope
        self._owner = owner
        self._values = values
        self._take(first)

    def _take(self, page: Page) -> None:
        assert self._bounds is not None
        self._entries = iter(page.entries)
        self._bounds = None if page.bound is None else self._bounds.behind(page.bound)

    def __next__(self) -> Any:
        while True:
            if self._scope.ended:
                self.close()
                self._scope.check()
            for entry in self._entries:
                return entry if self._values else entry[0]
            if self._bounds is None:
                self.close()
                raise StopIteration
            self._take(self._turn(self._bounds))

    def close(self) -> None:
        """No more are wanted. Doing it twice is harmless."""
        done, self._done = self._done, None
        self._bounds = None
        if done is not None:
            self._entries = iter(())
            done()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # it was never complete, or the interpreter ends
            pass
