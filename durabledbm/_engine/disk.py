"""The disk: everything that the engine asks of an operating system, as two small interfaces that are handed in.

`Disk` is one open file: read, write, resize, sync, and byte locks. `Volume` is the directory operations that
creating and replacing a file need. The real ones are in `posix` and `windows`, and `native` picks; tests hand in
simulated ones that can lose, tear and reorder whatever was not synced. No other module of the engine touches the
operating system.

The contract that durability rests on:

* `write` returns when the operating system has the bytes: other processes see them, and a killed process does not
  take them back. Nothing is promised about a power failure.
* `sync` returns when everything written to this file before, by whatever process, is on the medium, the file's size
  included. If it raises, nothing may be assumed about any of these writes, nor about a later `sync` that succeeds.
* A name created, linked or replaced in a directory is on the medium when `sync_directory` has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

__all__ = ["Disk", "LockOwner", "Volume"]


class LockOwner(NamedTuple):
    """A byte that someone else has locked. `pid` is None where the kernel does not tell whose lock it is."""

    offset: int
    pid: int | None


class Disk(Protocol):
    """One open file."""

    path: str
    writable: bool
    read: Callable[[int, int], bytes]
    """`read(length, offset)`: the bytes there, fewer only where the file ends. `length` is at most 2**30."""

    def size(self) -> int:
        """Length of the file in bytes."""

    def data(self, start: int, stop: int) -> tuple[int, int]:
        """The first stretch of the bytes in [start, stop) that the file system really keeps; `(stop, stop)` if there is
        none. The bytes before it are a hole: zeros that take no space. Where the platform does not tell, it keeps all.
        """

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        """Write the concatenation of `parts` at `offset`, all of it, growing the file if needed."""

    def resize(self, size: int) -> None:
        """Cut the file off at `size` bytes, or extend it with zeros."""

    def sync(self) -> None:
        """Return when everything written to the file is on the medium."""

    def forget(self) -> None:
        """Let following reads come from the medium, not from memory, where the platform can."""

    def identity(self) -> tuple[int, int]:
        """What tells this file from every other on the machine, whatever its name: device and inode."""

    def linked(self) -> bool:
        """Whether `path` still names this file."""

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        """Try to lock the one byte at `offset`; False if someone else's lock is in the way. Never waits for one.

        A lock belongs to this `Disk`: it keeps out every other, also of this process, and it ends with
        `unlock`, with `close`, or with the process.
        """

    def unlock(self, offset: int) -> None:
        """Release the byte at `offset`."""

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        """The lowest byte in [start, stop) that another `Disk` has locked, in whatever process, or None.

        Never an offset above a lock that is held throughout the call. It may be below, where nobody has a lock, if
        others ask at the same time; and a byte that this `Disk` has locked too may be left out (both: see `windows`).
        """

    def reopen(self) -> Disk:
        """The same file, whatever its name is now, as a `Disk` of its own: for a child process after `fork`."""

    def close(self) -> None:
        """Release file and locks. Closing twice is harmless."""


class Volume(Protocol):
    """The directory operations behind creating, replacing and opening a file. Paths are absolute or relative."""

    def open(self, path: str, *, writable: bool) -> Disk:
        """Open an existing file; `FileNotFoundError` if there is none."""

    def create(self, path: str, mode: int) -> Disk:
        """Create a file that must not exist yet (nor be a symbolic link), with `mode` less the umask."""

    def link(self, source: str, target: str) -> None:
        """Give the file `source` the second name `target`; `FileExistsError` if that is taken."""

    def replace(self, source: str, target: str) -> None:
        """Rename `source` to `target`, in place of whatever had that name, whose permissions it takes over."""

    def remove(self, path: str) -> None:
        """Remove a name."""

    def sync_directory(self, path: str) -> None:
        """Return when the names in the directory that holds `path` are on the medium."""
