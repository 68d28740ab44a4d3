"""Numbers with their nouns, for messages. Unlike `cli.text` it imports nothing that takes time."""

from __future__ import annotations

__all__ = ["plural"]


def plural(count: int, noun: str) -> str:
    """ "1 entry", "2 entries", "1,234 pages", "3 leaves"."""
    if count != 1 and noun.endswith("leaf"):
        noun = noun[:-1] + "ves"
    elif count != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") and noun != "key" else noun + "s"
    return f"{count:,} {noun}"
