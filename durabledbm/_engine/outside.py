"""What can happen to an open file from outside, as errors that say what happened and what to do.

None of it goes through this package, and none of it obeys a lock: the file is moved or removed, another copy is written
into it, or another part of the program closes its descriptor. `current` notices.
"""

from __future__ import annotations

import errno

from ..errors import CorruptionError, error
from .disk import ELSEWHERE
from .meta import Meta

__all__ = ["INHERITED", "INTERRUPTED", "displaced", "overtaken", "overwritten", "unavailable"]

_END = "close this handle and open the file again"

INHERITED = (
    "this snapshot or iterator is from before the fork, and its pages were reused before this process first read them: "
    "take a snapshot in the process that reads it, or read it there before the parent ends its own"
)
"""Why a page that a forked child reads is not there any more."""

INTERRUPTED = (
    "another part of the program closed the descriptor of the file, and pages of this snapshot or iterator were reused "
    "before the file was opened again"
)
"""Why a page is not there any more that was pinned."""


def displaced(path: str) -> error:
    """The name does not lead to the open file any more. That is no damage: nobody has touched what the file holds."""
    return error(errno.ESTALE, f"{ELSEWHERE}: what it held can be saved with backup(); then {_END}", path)


def unavailable(path: str, cause: OSError) -> error:
    """There is no open file, and the name cannot be opened."""
    what = "the file must be opened again, after a fork or because its descriptor was closed, and cannot be"
    return error(cause.errno, f"{what}: {cause.strerror}", path)


def overtaken(path: str) -> error:
    """The lock was lost with the descriptor, and another writer was faster."""
    what = "another part of the program closed the file's descriptor, and its lock with it, and others have written"
    return error(f"{path}: {what}: {_END}")


def overwritten(path: str, meta: Meta | None, seen: Meta) -> CorruptionError:
    """The file was `seen` to hold one commit. Its newest is `meta` now, which does not follow; or it is no database."""
    if meta is None:
        what = "something else has written to the file while it was open"
    elif meta.database_id != seen.database_id:
        what = "the file was replaced by another database while it was open"
    else:
        age = "older" if meta.txid < seen.txid else "of another history"
        what = "the file was replaced by another copy of it while it was open, or its disk has lost commits: "
        what += f"it holds commit {meta.txid}, which is {age} than commit {seen.txid}"
    return CorruptionError(f"{what}; {_END}", path=path)
