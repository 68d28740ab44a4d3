"""The result of `inspect`: plain data, which `cli.pictures` draws."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KINDS", "FileMap", "Run", "Step"]

KINDS = ("meta", "branch", "leaf", "overflow", "space", "free", "pending", "pinned", "unreachable", "damaged")
"""What a page can be.

"space": the free-space map. "pending": freed by the last commits, reusable soon. "pinned": freed, but a snapshot or a
checkpoint needs it. "unreachable": nothing points at it. "damaged": it should hold something, and does not.
"""


class Run(NamedTuple):
    """Consecutive pages that are one thing."""

    page_id: int
    page_count: int
    kind: str
    """One of `KINDS`."""
    txid: int = 0
    """The commit that wrote it; for freed pages, the one that freed them. 0: not known, or none."""
    entries: int = 0
    """Entries of a leaf, children of a branch."""
    used: int = 0
    """Bytes of its pages that are in use."""
    parent: int = 0
    """Page id of the branch above, or of the leaf that a large value belongs to; 0: none."""
    first_key: bytes = b""
    """The beginning of its first key, or of the key that a large value belongs to."""
    note: str = ""
    """What is wrong with it, or remarkable."""


class Step(NamedTuple):
    """One step of the way to a key."""

    page_id: int
    page_count: int
    what: str


class FileMap(NamedTuple):
    """A file, page by page."""

    path: str
    page_size: int
    page_count: int
    file_size: int
    """Bytes."""
    txid: int
    time_ns: int
    entry_count: int
    waiting_count: int
    """Changes that stand in the meta page and are not in the tree yet."""
    depth: int
    oldest_snapshot: int | None
    """The oldest commit that another handle reads."""
    runs: list[Run]
    """All pages, ascending."""
    problems: list[str]
    steps: list[Step]
    """The way to the key that was asked for."""
    found: bool
    """Whether that key is there."""
