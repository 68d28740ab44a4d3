"""Who else has a database file open, as far as /proc tells: which process to wait for, or to end.

The locks themselves are the engine's (docs/format.md): one byte that a writer locks, and one byte for each
commit that is still read. The kernel does not say whose such a lock is, but it lists each open file's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from .._engine.disk import FileVolume
from .._engine.disk.protocol import LockOwner
from .._engine.locks import PINS_OFFSET, WRITER_OFFSET

__all__ = ["Holder", "files_of", "holders", "obstacle"]

_LOCK = re.compile(r"^lock:.* (?:READ|WRITE) .* (\d+) (?:\d+|EOF)$", re.MULTILINE)


class Holder(NamedTuple):
    """A process that has the file open."""

    pid: int
    command: str
    """How it was started, shortened."""
    writing: bool
    oldest: int | None
    """The oldest commit that it reads."""


def files_of(path: str) -> list[str]:
    """The file, or those in the directory of a sharded database."""
    if os.path.isdir(path):
        return [entry.path for entry in os.scandir(path) if entry.is_file()]
    return [path]


def holders(path: str) -> list[Holder]:
    """The processes, this one left out, that have the file open. Empty where the system does not tell."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        files = _identities(path)
    except OSError:
        return []
    found = (_holder(pid, files) for pid in pids if pid != os.getpid())
    return [holder for holder in found if holder is not None]


def obstacle(path: str) -> str | None:
    """Which other process keeps this one from writing, and how: "process 7 (python app.py) is writing to it".

    "another process" where the system does not tell which. None if there is none.
    """
    try:
        owner = _lock_owner(path)
        if owner is None:
            return None
        if owner.pid is not None:  # the system names only the owners of other locks than ours
            return f"process {owner.pid} ({_command(owner.pid)}) has locked the file, with lockf() or fcntl()"
        this = _holder(os.getpid(), _identities(path))
    except OSError:
        return None
    if this is not None and this.writing:
        return None
    who = next((holder for holder in holders(path) if holder.writing), None)
    if who is None and _lock_owner(path) is None:
        return None  # it was this process, which has let go of it meanwhile
    return f"{'another process' if who is None else f'process {who.pid} ({who.command})'} is writing to it"


def _lock_owner(path: str) -> LockOwner | None:
    """Who has a lock where the writer lock of a file is, if anybody has."""
    for file in files_of(path):
        disk = FileVolume().open(file, writable=False)
        try:
            owner = disk.lowest_lock(WRITER_OFFSET, WRITER_OFFSET + 1)
        finally:
            disk.close()
        if owner is not None:
            return owner
    return None


def _identities(path: str) -> set[tuple[int, int]]:
    return {(status.st_dev, status.st_ino) for status in map(os.stat, files_of(path))}


def _holder(pid: int, files: set[tuple[int, int]]) -> Holder | None:
    if os.name == "nt":
        return None  # where there may be a /proc all the same, of the system below
    try:
        locks = [list(_locks(pid, fd)) for fd in _descriptors(pid, files)]
        if not locks:
            return None
        offsets = [offset for one in locks for offset in one]
        pins = [offset - PINS_OFFSET for offset in offsets if offset >= PINS_OFFSET]
        return Holder(pid, _command(pid), WRITER_OFFSET in offsets, min(pins, default=None))
    except OSError:
        return None  # another user's process, or one that has ended


def _descriptors(pid: int, files: set[tuple[int, int]]) -> Iterator[str]:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            status = os.stat(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in files:
            yield fd


def _locks(pid: int, fd: str) -> Iterator[int]:
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
        yield from (int(match[1]) for match in _LOCK.finditer(file.read()))


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(300).decode("utf-8", "replace").split("\0")
    except OSError:
        return "unknown"
    text = " ".join(" ".join(words).split())
    return text if len(text) <= 50 else text[:49] + "…"
