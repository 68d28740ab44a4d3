"""The colours and signs of the kinds of pages: Okabe and Ito's, which nearly everybody can tell apart.

Damage also has a sign of its own, so that it can be seen without colours.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KINDS", "RAMP", "Look", "ramp"]


class Look(NamedTuple):
    """How a kind of page appears."""

    name: str
    """For the legend."""
    colour: str
    """Of what is used of a page."""
    ground: str
    """Of what is not."""
    letter: str
    """Where there are no colours."""


KINDS: dict[str, Look] = {
    "meta": Look("meta", "#8f5bd7", "#d9c8f3", "M"),
    "branch": Look("branch", "#0072b2", "#a9cfe6", "B"),
    "leaf": Look("leaf", "#009e73", "#a6dccb", "L"),
    "overflow": Look("overflow (large values)", "#56b4e9", "#cfe8f8", "o"),
    "space": Look("free-space map", "#7a7f87", "#c9ccd1", "s"),
    "free": Look("free", "#e6e8eb", "#e6e8eb", "."),
    "pending": Look("freed lately", "#f0e442", "#f0e442", "-"),
    "pinned": Look("pinned by a snapshot", "#e69f00", "#e69f00", "+"),
    "unreachable": Look("nothing refers to it", "#cc79a7", "#cc79a7", "?"),
    "damaged": Look("damaged", "#d5281e", "#d5281e", "X"),
}

RAMP = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""Viridis in nine steps: little to much, old to new."""


def ramp(part: float) -> str:
    """The colour of a part between 0 and 1."""
    return RAMP[min(int(part * len(RAMP)), len(RAMP) - 1)]
