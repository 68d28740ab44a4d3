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
* A file that `resize` makes longer holds zeros there, also after a power failure, until something is written.
* A name created, linked or replaced in a directory is on the medium when `sync_directory` has returned; where a system
  cannot do that, it does what it can (see docs/durability.md).

A `Disk` refers to its file through a number of the operating system, and others can take that number away: a daemon
closes every descriptor that it does not know, and opens its logs. So a `Disk` never writes to, syncs, locks or closes
a number that has become another file's; those calls raise `OSError` instead. `held` tells, and `regain` opens the file
again by its name. Reading does not ask each time, since that would cost half as much as the read: the user
of the bytes verifies them, and asks `held` when they are not what they should be.

After a fork a `Disk` of the child refers to an open file of its own, so that the child shares no lock with its parent.
A signal handler may fork amid a commit, and the child return from it into that commit, which is the parent's. So what
writes a commit is asked for once, when the writer lock is taken (`Disk.writes`), and belongs to the open file of then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import os

__all__ = ["ELSEWHERE", "PARENTS", "Disk", "LockOwner", "Readable", "Volume", "Writes"]

ELSEWHERE = "the file was moved or removed while it was open, or another was put in its place"
"""What is said of a name that does not lead to the open file any more."""


PARENTS = "the process was forked amid this operation, which is the parent's"
"""What is said to a child that goes on with it."""


class Writes(NamedTuple):
    """`Disk.write` and `Disk.resize` of one open file. In a child that was forked since, they raise `error`."""

    write: Callable[[int, Sequence[bytes | memoryview]], None]
    resize: Callable[[int], None]


class LockOwner(NamedTuple):
    """A byte that someone else has locked.

    `pid` is None where the kernel does not tell whose lock it is: it does not for the locks of a `Disk`, and it may for
    those of another kind, which belong to a process, and which programs use to guard a file as a whole. `own`: it is
    one of these, of this very process. Waiting for it would be waiting for itself.
    """

    offset: int
    pid: int | None
    own: bool = False


class Readable(Protocol):
    """What reading alone needs of a `Disk`."""

    @property
    def path(self) -> str:
        """The file's name."""

    @property
    def read(self) -> Callable[[int, int], bytes]:
        """`read(length, offset)`, as `Disk.read`."""

    def size(self) -> int:
        """Length of the file in bytes."""

    def data(self, start: int, stop: int) -> tuple[int, int]:
        """As `Disk.data`."""


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

    def write(self, offset: int, parts: Sequence[bytes | memoryview]) -> None:
        """Write the concatenation of `parts` at `offset`, all of it, growing the file if needed."""

    def resize(self, size: int) -> None:
        """Cut the file off at `size` bytes, or extend it with zeros."""

    def writes(self) -> Writes:
        """What writes to this very open file, and in a forked child to none."""

    def sync(self) -> None:
        """Return when everything written to the file is on the medium."""

    def forget(self) -> None:
        """Let following reads come from the medium, not from memory, where the platform can."""

    def identity(self) -> tuple[int, int]:
        """What tells this file from every other on the machine, whatever its name: device and inode."""

    def linked(self) -> bool:
        """Whether `path` still names this file. True also where that cannot be told, as after a change of the root."""

    def held(self) -> bool:
        """Whether the open file is still this `Disk`'s. If not, its locks are gone; see `regain`."""

    def regain(self) -> None:
        """Open the file again, after `held` has said no. `read` is another then.

        Raises `OSError` if `path` does not lead to the file, or it cannot be opened.
        """

    def status(self) -> os.stat_result:
        """Owner, group and permissions, among other things."""

    def take_owner(self, like: os.stat_result) -> None:
        """Take over the owner, the group and the permissions of another file, as far as the system permits.

        If the group cannot be had, another group must not get its permissions: it gets those of others.
        """

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        """Try to lock the one byte at `offset`; False if someone else's lock is in the way. Never waits for one.

        A lock belongs to this `Disk`: it keeps out every other, also of this process, and it ends with
        `unlock`, with `close`, or with the process.
        """

    def unlock(self, offset: int) -> None:
        """Release the byte at `offset`, if it is locked."""

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        """The lowest byte in [start, stop) that another `Disk` has locked, in whatever process, or None.

        Never an offset above a lock that is held throughout the call. It may be below, where there is no lock, if
        others ask at the same time; and a byte that this `Disk` has locked too may be left out (both: see `windows`).
        """

    def reopen(self) -> Disk:
        """The same file, whatever its name is now, as a `Disk` of its own."""

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
        """Rename `source` to `target`, in place of whatever had that name.

        It takes over owner, group and permissions of that (see `Disk.take_owner`).
        """

    def remove(self, path: str) -> None:
        """Remove a name."""

    def sync_directory(self, path: str) -> None:
        """Return when the names in the directory that holds `path` are on the medium.

        Where the directory cannot be synced, the file at `path` is, which on most file systems does the same.
        """
