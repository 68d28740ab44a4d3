"""Who else has a database file open, as far as /proc tells: which process to wait for, or to end.

The locks themselves are the engine's (docs/format.md): one byte that a writer locks, and one byte for each
commit that is still read. The kernel does not say whose such a lock is, but it lists each open file's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Holder", "holders"]

_WRITER = (1 << 62) - 2
_PINS = 1 << 62
_LOCK = re.compile(r"^lock:.* (?:READ|WRITE) .* (\d+) (?:\d+|EOF)$", re.MULTILINE)


class Holder(NamedTuple):
    """A process that has the file open."""

    pid: int
    command: str
    """How it was started, shortened."""
    writing: bool
    oldest: int | None
    """The oldest commit that it reads."""


def holders(path: str) -> list[Holder]:
    """The processes, this one left out, that have the file open. Empty where the system does not tell."""
    try:
        status = os.stat(path)
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    found = []
    for pid in pids:
        if pid == os.getpid():
            continue
        try:
            locks = [list(_locks(pid, fd)) for fd in _descriptors(pid, (status.st_dev, status.st_ino))]
            if locks:
                offsets = [offset for one in locks for offset in one]
                pins = [offset - _PINS for offset in offsets if offset >= _PINS]
                found.append(Holder(pid, _command(pid), _WRITER in offsets, min(pins, default=None)))
        except OSError:
            continue  # somebody else's process, or one that has ended
    return found


def _descriptors(pid: int, identity: tuple[int, int]) -> Iterator[str]:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            status = os.stat(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == identity:
            yield fd


def _locks(pid: int, fd: str) -> Iterator[int]:
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
        yield from (int(match[1]) for match in _LOCK.finditer(file.read()))


def _command(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(300).decode("utf-8", "replace").split("\0")
    text = " ".join(" ".join(words).split())
    return text if len(text) <= 50 else text[:49] + "…"
