"""dbm.dumb's files, read without its module: NAME.dir, an index of one line a key, and NAME.dat, where the values are.

The module itself evaluates each line as Python, takes a value that is cut off for a short one, and gives up the whole
database for one bad line. Here a line is matched, never evaluated; what is damaged is reported, and the rest is read.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import closing

from .file import Damaged, OldFile

__all__ = ["DumbSource"]

_ENTRY = re.compile(
    rb"""\s* [bu]? (?: '([^'\\]*(?:\\.[^'\\]*)*)' | "([^"\\]*(?:\\.[^"\\]*)*)" ) \s*,\s*
    \( \s* (\d{1,19}) L? \s*,\s* (\d{1,19}) L? \s* \) \s*""",
    re.VERBOSE | re.DOTALL,
)
"""A line of the index: a string literal, and a pair of offset and size. Python 2 wrote an L behind large numbers."""

_LINE_MAX = 2**24
_CHUNK = 2**20


class DumbSource:
    """The entries of a database of dbm.dumb. `damaged` is told what cannot be read."""

    ordered = False

    def __init__(self, name: str, damaged: Damaged) -> None:
        self._damaged = damaged
        self._values = OldFile(name + ".dat")
        try:
            self._index = _read_index(name, damaged)
        except BaseException:
            self._values.close()
            raise

    def count(self) -> int | None:
        """The number of entries in the index."""
        return len(self._index)

    def entries(self) -> Generator[tuple[bytes, bytes], None, None]:
        """All entries, in the order of the index."""
        for key, (offset, length) in self._index.items():
            value = self._values.read(offset, length)
            if value is None:
                self._damaged(f"{self._values.path}: the value of {key[:50]!r} lies beyond the end of the file")
            else:
                yield key, value

    def close(self) -> None:
        """Release the files."""
        self._values.close()


def _read_index(name: str, damaged: Damaged) -> dict[bytes, tuple[int, int]]:
    """Where the value of each key is. Of lines that name the same key the last one counts."""
    index: dict[bytes, tuple[int, int]] = {}
    bad = first_bad = 0
    path = name + ".dir"
    try:
        file = OldFile(path)
    except FileNotFoundError:
        path = name + ".bak"  # the index before the last one; dbm.dumb was killed when it was about to write that
        file = OldFile(path)
    with closing(file):
        for number, line in enumerate(_lines(file), 1):
            entry = _decode_line(line)
            if entry is not None:
                index[entry[0]] = entry[1:]
            elif line.strip():
                bad += 1
                first_bad = first_bad or number
    if bad:
        lines = f"line {first_bad}" if bad == 1 else f"{bad} lines, from line {first_bad} on,"
        damaged(f"{path}: {lines} of the index cannot be read; entries that can: {len(index)}")
    if path.endswith(".bak"):
        damaged(f"{name}.dir: the index is missing; entries in the one before it, {path}: {len(index)}")
    return index


def _lines(file: OldFile) -> Iterator[bytes]:
    """The lines of a file. In place of the beginning of a line that is too long comes what begins no line."""
    offset, rest = 0, b""
    while chunk := file.read_some(offset, _CHUNK):
        offset += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > _LINE_MAX:
            rest = b"?"
    yield rest


def _decode_line(line: bytes) -> tuple[bytes, int, int] | None:
    """Key, offset and size; None if the line is not one of an index."""
    match = _ENTRY.fullmatch(line)
    if match is None:
        return None
    key = match[1] if match[2] is None else match[2]
    if b"\\" in key:
        try:
            key = key.decode("unicode_escape").encode("latin-1")
        except (ValueError, Warning):  # an escape that means nothing is a warning, which may have been made an error
            return None
    return key, int(match[3]), int(match[4])
