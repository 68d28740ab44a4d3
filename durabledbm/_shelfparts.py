"""What a shelf hands out and what it ends as: the lazy views of its objects, and the mapping of a closed
shelf.

What may live here: small classes that know of a shelf only the one method that they call.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from .shelve import Shelf

__all__ = ["ClosedMapping", "ShelfItems", "ShelfValues"]

_V = TypeVar("_V")


class ShelfValues(ValuesView[_V]):
    """The view that `Shelf.values()` returns."""

    _mapping: Shelf[_V]

    def __iter__(self) -> Iterator[_V]:
        for _, value in self._mapping._pairs():
            yield value


class ShelfItems(ItemsView[str, _V]):
    """The view that `Shelf.items()` returns."""

    _mapping: Shelf[_V]

    def __iter__(self) -> Iterator[tuple[str, _V]]:
        return self._mapping._pairs()


class ClosedMapping(MutableMapping[bytes, bytes]):
    """What a closed shelf has for a mapping: every use is a ValueError, as in the standard library."""

    def _refuse(self, *args: object, **options: object) -> NoReturn:
        raise ValueError("invalid operation on closed shelf")

    __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = __contains__ = _refuse
    keys = get = clear = update = transaction = snapshot = first = last = range = _refuse
