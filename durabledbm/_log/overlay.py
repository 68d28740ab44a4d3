"""The newest change of each key, in key order and bounded memory, and applying it to sorted entries.

Of many changes to one key only the newest counts. Changes are sorted by key and age, on the disk if they are many; the
result can be merged with entries that are in key order themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

from .._files.sorting import in_key_order

__all__ = ["folded", "laid_over"]

_Entry = tuple[bytes, bytes]
_Fold = tuple[bytes, "bytes | None"]


def folded(changes: Iterable[tuple[bytes, bytes | None]], directory: str) -> Iterator[_Fold]:
    """The newest value of each key (None: deleted), ascending. Temporary files go to `directory`."""
    numbered = (
        (key, number.to_bytes(8, "big") + (b"" if value is None else b"=" + value))
        for number, (key, value) in enumerate(changes)
    )
    for key, group in groupby(in_key_order(numbered, directory), key=itemgetter(0)):
        newest = max(change for _, change in group)
        yield key, newest[9:] if len(newest) > 8 else None


def laid_over(entries: Iterable[_Entry], changes: Iterator[_Fold]) -> Iterator[_Entry]:
    """The entries after the changes. Both are in key order, and so is the result."""
    change = next(changes, None)
    for entry in entries:
        while change is not None and change[0] < entry[0]:
            if change[1] is not None:
                yield change[0], change[1]
            change = next(changes, None)
        if change is None or change[0] != entry[0]:
            yield entry
        else:
            if change[1] is not None:
                yield change[0], change[1]
            change = next(changes, None)
    while change is not None:
        if change[1] is not None:
            yield change[0], change[1]
        change = next(changes, None)
