"""Sorting more entries than fit in memory: sorted runs in a temporary file, then a merge of the runs.

Entries in key order are written into a B+tree in one pass, each page once. In any other order, every commit would
rewrite most of the tree. The temporary file has no name, so the system removes it with the process.
"""

from __future__ import annotations

import heapq
import marshal
import tempfile
from collections.abc import Generator, Iterable, Iterator
from typing import IO

__all__ = ["RUN_SIZE", "in_key_order"]

Entry = tuple[bytes, bytes]

RUN_SIZE = 8 * 2**20
"""Bytes of memory, about, that entries may take before they are sorted and written out."""

_ENTRY_COST = 200  # of a pair, two bytes objects and their places in lists, beside the content
_BLOCK_SIZE = 2**16  # bytes of entries that are read back at a time, for each run


def in_key_order(
    entries: Iterable[Entry], directory: str, run_size: int = RUN_SIZE
) -> Generator[Entry, None, None]:
    """The same entries, sorted by key. What does not fit in memory goes to a file in `directory`."""
    run: list[Entry] = []
    size = 0
    with tempfile.TemporaryFile(dir=directory) as file:
        runs: list[list[int]] = []
        for entry in entries:
            if size > run_size:
                run.sort()
                runs.append(_write(run, file))
                run, size = [], 0
            run.append(entry)
            size += len(entry[0]) + len(entry[1]) + _ENTRY_COST
        run.sort()
        if not runs:
            yield from run
            return
        yield from heapq.merge(run, *(_read(offsets, file) for offsets in runs))


def _write(run: list[Entry], file: IO[bytes]) -> list[int]:
    """Append a run in blocks, and return their offsets."""
    offsets = []
    block: list[Entry] = []
    size = 0
    for entry in run:
        block.append(entry)
        size += len(entry[0]) + len(entry[1])
        if size >= _BLOCK_SIZE:
            offsets.append(_append(block, file))
            block, size = [], 0
    if block:
        offsets.append(_append(block, file))
    return offsets


def _append(block: list[Entry], file: IO[bytes]) -> int:
    offset = file.seek(0, 2)
    file.write(marshal.dumps(block))
    return offset


def _read(offsets: list[int], file: IO[bytes]) -> Iterator[Entry]:
    for offset in offsets:
        file.seek(offset)
        yield from marshal.load(file)
