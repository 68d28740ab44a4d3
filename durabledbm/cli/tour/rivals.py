"""The standard library's side: which backend it would use, and the data that both sides get."""

from __future__ import annotations

import dbm
import importlib
import os
import sysconfig
import tempfile
from types import ModuleType

from ..._files.temporary import new_directory

__all__ = ["SYNCS", "backend", "default_backend", "in_memory", "on_disk", "sources"]

SYNCS = {"dbm.sqlite3"}
"""Backends whose every write is one transaction of a database engine that syncs."""

_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "node_modules"}


def default_backend() -> str:
    """The module that `dbm.open` uses for a new file, found out by letting it make one."""
    with new_directory(os.path.join(tempfile.gettempdir(), "rival")) as directory:
        path = os.path.join(directory.path, "file")
        dbm.open(path, "n").close()
        return dbm.whichdb(path) or "dbm.dumb"


def backend(name: str) -> ModuleType:
    """The module of that name."""
    return importlib.import_module(name)


def on_disk() -> str:
    """The directory for temporary files; /var/tmp if that is in memory, where syncs cost nothing."""
    directory = tempfile.gettempdir()
    if in_memory(directory) and os.access("/var/tmp", os.W_OK) and not in_memory("/var/tmp"):
        return "/var/tmp"
    return directory


def in_memory(directory: str) -> bool:
    """Whether the directory is on a file system in memory, as far as the system tells."""
    try:
        with open("/proc/mounts", encoding="utf-8", errors="replace") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return False
    path = os.path.realpath(directory) + "/"
    holding = [(where, kind) for where, kind in mounts if path.startswith(where.rstrip("/") + "/")]
    return bool(holding) and max(holding, key=lambda mount: len(mount[0]))[1] in ("tmpfs", "ramfs")


def sources(limit: int | None = None) -> dict[bytes, bytes]:
    """The standard library's source files: names, relative to its directory, and contents."""
    root = sysconfig.get_paths()["stdlib"]
    found: dict[bytes, bytes] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED)
        for name in sorted(names):
            if not name.endswith(".py"):
                continue
            path = os.path.join(folder, name)
            try:
                with open(path, "rb") as file:
                    content = file.read()
            except OSError:
                continue
            found[os.fsencode(os.path.relpath(path, root).replace(os.sep, "/"))] = content
            if limit is not None and len(found) >= limit:
                return found
    return found
