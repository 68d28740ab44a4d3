"""Publishing: a file or directory gets its name when it is complete and on the disk, or the target is as before.

It is filled under a temporary name beside the target (see `temporary`), synced, and renamed; then the directory is
synced. A crash, a kill or an error at any moment leaves the target whole or untouched.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .._engine.disk import FileVolume, take_owner
from .._engine.disk.protocol import Disk
from .._engine.files import temporary_name
from ..errors import error
from .arguments import Path
from .temporary import Temporary, blame_target, new_directory, new_file

__all__ = [
    "check_not_mounted", "mounts_told", "own_directory", "permissions_of", "publishing", "publishing_directory",
    "real_target", "replacing", "take_name",
]  # fmt: skip


_MOUNTED = "a mount point, which cannot be replaced: give another name for the new file"


@contextmanager
def publishing(
    target: str, mode: int = 0o600, *, like: os.stat_result | None = None, replace: bool = False
) -> Iterator[Temporary]:
    """A block that fills a new file, which has the name `target` when the block is done.

    `mode` and `like` give its permissions, as for `new_file`. Raises FileExistsError if the target exists, unless
    `replace` is true, and what the operating system raises, with the target's name.
    """
    try:
        with new_file(target, mode, like) as temporary:
            yield temporary
            temporary.disk.sync()
            if replace:
                with mounts_told(target):
                    FileVolume().replace(temporary.path, target)
            else:
                take_name(temporary.path, target)
        if replace:
            FileVolume().sync_directory(target)
    except OSError as exc:
        blame_target(exc, target)
        raise


@contextmanager
def replacing(target: str, source: os.stat_result | None = None) -> Iterator[Disk]:
    """A block that fills a new file, which takes the place of the file `target`, if there is one.

    It has the owner, group and permissions of the old file. Without an old file it has the permissions of `source`,
    which its content comes from; without a source, only its owner may read it.
    """
    try:
        like = os.stat(target)
    except FileNotFoundError:
        like = permissions_of(source)
    with publishing(target, like=like, replace=True) as temporary:
        yield temporary.disk


@contextmanager
def publishing_directory(target: str) -> Iterator[str]:
    """A block that makes and fills a directory of the name that it is given, which is `target` when the block is done.

    The block syncs what it writes. An empty directory of that name is replaced.
    """
    try:
        with new_directory(target) as temporary:
            whole = os.path.join(temporary.path, "whole")
            yield whole
            os.rename(whole, target)
        FileVolume().sync_directory(target)
    except OSError as exc:
        blame_target(exc, target)
        raise


def check_not_mounted(path: str) -> None:
    """Raise `error` if the file, which exists, is a mount point, as in a container: no other file can take its name.

    It can have no second name either, and that can be tried without changing anything.
    """
    if sys.platform == "win32":
        return
    probe = temporary_name(path)
    try:
        os.link(path, probe)
    except OSError as exc:
        if exc.errno == errno.EXDEV:
            raise error(errno.EBUSY, _MOUNTED, path) from exc
    else:
        os.unlink(probe)


@contextmanager
def mounts_told(target: str) -> Iterator[None]:
    """A block that lets another file take the name `target`. Says so if that is a mount point."""
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        raise error(errno.EBUSY, _MOUNTED, target) from exc


def real_target(target: Path) -> str:
    """The absolute path of a file that is to be made or replaced. Links are followed.

    Raises `error` if the name can only be a directory's, or leads through what is no directory.
    """
    name = os.fsdecode(target)
    directory, base = os.path.split(name)
    if base in ("", ".", ".."):
        if not name:
            raise error(errno.ENOENT, os.strerror(errno.ENOENT), name)
        raise error(errno.EISDIR, "only a directory can have this name", name)
    try:
        os.stat(os.path.join(directory, "."))  # `realpath` knows only names: to it "missing/.." is this directory
    except OSError as exc:
        raise error.wrap(exc, name) from exc
    return os.path.realpath(name)


def take_name(fresh: str, target: str) -> None:
    """Give the file `fresh` the name `target`, durably. Raises FileExistsError if the name is not free."""
    volume = FileVolume()
    try:
        volume.link(fresh, target)
    except FileExistsError:
        raise
    except OSError as exc:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from exc
        volume.replace(fresh, target)
    volume.sync_directory(target)


def permissions_of(source: os.stat_result | None) -> os.stat_result:
    """The permissions for a new file made from the file `source`: not less private, and owned by this process.

    Without a source, only this process's user may read and write it.
    """
    if sys.platform == "win32":
        owner = group = 0
    else:
        owner, group = os.geteuid(), os.getegid()
    if source is None:
        return os.stat_result((0o600, 0, 0, 0, owner, group, 0, 0, 0, 0))
    return os.stat_result((source.st_mode, 0, 0, 0, owner, source.st_gid, 0, 0, 0, 0))


def own_directory(path: str, source: os.stat_result | None) -> None:
    """Give a new directory the permissions of the file `source`: who may read that may list the directory.

    Its owner may always change it: files are still to be made in it.
    """
    if sys.platform == "win32":
        return
    like = permissions_of(source)
    mode = like.st_mode | (like.st_mode & 0o444) >> 2 | 0o700
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        take_owner(fd, os.stat_result((mode, 0, 0, 0, like.st_uid, like.st_gid, 0, 0, 0, 0)))
    finally:
        os.close(fd)
