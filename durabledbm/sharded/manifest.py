"""The manifest of a sharded database: how many shards its directory holds, and which shard holds which key.

The placement of keys is as fixed as a file format: docs/scaling.md documents it, with test vectors.

The manifest gets its name only when all shards exist on the disk. So a directory with a manifest is a complete
database, two processes that create the same one both succeed, and a crash before that leaves no manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from typing import Any
from zlib import crc32

from .._engine.disk import FileVolume
from .._files.publish import own_directory, permissions_of, publishing, publishing_directory
from .._foreign.kinds import SHARDS_MANIFEST
from ..errors import CorruptionError, error

__all__ = ["GOLDEN", "SHARDS_MAX", "make_whole", "place", "read", "shard_path", "write"]

GOLDEN = 0x9E3779B1
"""The odd number next to 2**32 divided by the golden ratio: multiplying by it mixes low bits into the high ones."""
SHARDS_MAX = 4096

_FORMAT = "durabledbm-sharded"
_VERSION = 1
_PLACEMENT = "crc32-golden"


def place(key: bytes, shards: int) -> int:
    """The number of the shard that holds `key`, from 0.

    CRC-32 is fast and the same everywhere, but linear: similar keys may all fall into half of the shards. Multiplied by
    a constant it is as even as a cryptographic hash, for few keys and many, at a third of the cost. The product is
    scaled, not divided, so its high bits decide. Leaves find keys by the low byte of the same CRC, which therefore
    stays as even within a shard as in a whole database.
    """
    return (crc32(key) * GOLDEN & 0xFFFFFFFF) * shards >> 32


def shard_path(directory: str, number: int, shards: int) -> str:
    """The file of a shard."""
    return os.path.join(directory, f"shard-{number:04d}-of-{shards:04d}")


def read(directory: str) -> int | None:
    """The number of shards in the directory; None if it has no manifest or does not exist."""
    path = os.path.join(directory, SHARDS_MANIFEST)
    try:
        with closing(FileVolume().open(path, writable=False)) as disk:  # which does not wait for the end of a pipe
            content = disk.read(10_000, 0)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise error.wrap(exc, path) from exc
    try:
        manifest: Any = json.loads(content)
        form, version, shards = manifest["format"], manifest["version"], manifest["shards"]
        placement = manifest["placement"]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:  # the last of many brackets inside each other
        raise CorruptionError("the manifest is damaged", path=path) from exc
    if form != _FORMAT or type(shards) is not int or not 0 < shards <= SHARDS_MAX:
        raise CorruptionError("the manifest is damaged", path=path)
    if version != _VERSION or placement != _PLACEMENT:
        raise error(f"{path}: version {version}, placement {placement!r}: not supported by this version of durabledbm")
    return shards


def write(directory: str, shards: int, *, replace: bool = False) -> None:
    """Record that the directory holds `shards` shards, which all exist.

    Without `replace` an existing manifest stays.
    """
    path = os.path.join(directory, SHARDS_MANIFEST)
    manifest = {"format": _FORMAT, "version": _VERSION, "shards": shards, "placement": _PLACEMENT}
    try:
        like = permissions_of(_first_shard(directory, shards))
        with publishing(path, like=like, replace=replace) as temporary:
            temporary.disk.write(0, (json.dumps(manifest).encode() + b"\n",))
            FileVolume().sync_directory(path)  # the shards' names, before the one that says that they are there
    except FileExistsError:
        pass  # another process was faster
    except OSError as exc:
        raise error.wrap(exc, path) from exc


def _first_shard(directory: str, shards: int) -> os.stat_result:
    """The permissions of the shards, which the manifest gets too."""
    return os.stat(shard_path(directory, 0, shards))


def make_whole(path: str, shards: int, fill: Callable[[str], None]) -> None:
    """Let `fill` create all shards in a directory, which gets the name `path` when it is complete and on the disk.

    Users who may read the shards may list the directory.
    """
    try:
        with publishing_directory(path) as whole:
            os.mkdir(whole, 0o700)
            fill(whole)
            write(whole, shards)
            own_directory(whole, _first_shard(whole, shards))
    except OSError as exc:
        raise error.wrap(exc, path) from exc
