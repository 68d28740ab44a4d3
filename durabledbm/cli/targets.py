"""Files that a command writes to because it was told their names.

None of them is the database that the command reads, whatever name it goes by, and none is another file that is there
already unless `--force` says so. Devices and pipes hold nothing that could be lost: they are written to as they are.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from .._files.publish import real_target, replacing
from ..errors import error
from .command import Parser
from .faults import Usage
from .holders import files_of

__all__ = ["check_directory", "check_target", "force_option", "is_stream", "write_file"]

_IN_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY}
"""What says that no other file can take the name: the directory is read-only, or the name is a mount."""


def force_option(parser: Parser, name: str = "TARGET") -> None:
    """--force, an option of all commands that write a file."""
    parser.add_argument("--force", action="store_true", help=f"replace {name} if it exists already")


def check_target(target: str, source: str, *, force: bool) -> None:
    """Raise unless `target` may be written, by a command that reads the database `source`."""
    if not os.path.exists(target):
        return
    if any(os.path.exists(file) and os.path.samefile(target, file) for file in [source, *files_of(source)]):
        same = "" if target == source else f" ({source})"
        raise Usage(f"{target}: is the database itself{same}, and would be overwritten; choose another name")
    if os.path.isdir(target):
        raise error(errno.EISDIR, "a directory: choose a name in it", target)
    if not force and not is_stream(target):
        raise Usage(f"{target}: exists already: choose another name, or give --force to replace it")


def check_directory(target: str) -> None:
    """Raise unless there is room for a new directory: none is ever replaced."""
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise error(errno.EEXIST, os.strerror(errno.EEXIST), target)


def is_stream(target: str) -> bool:
    """Whether it is a device, a pipe or a socket, which can be written to and not be replaced."""
    try:
        return not stat.S_ISREG(os.stat(target).st_mode)
    except OSError:
        return False


def write_file(target: str, parts: Iterable[bytes], source: str, *, force: bool) -> None:
    """Write `parts`, made from the database `source`, to a file, which appears or changes as a whole.

    A new file gets the permissions of the database, one that is replaced keeps its own.
    """
    check_target(target, source, force=force)
    begun = False
    if not is_stream(target):
        try:
            with replacing(real_target(target), os.stat(files_of(source)[0])) as disk:
                end, begun = 0, True
                for part in parts:
                    disk.write(end, (part,))
                    end += len(part)
            return
        except OSError as exc:
            if begun or exc.errno not in _IN_PLACE or not os.path.exists(target):
                raise error.wrap(exc, target) from exc
    with open(target, "wb") as file:
        file.writelines(parts)
