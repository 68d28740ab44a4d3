"""Words for messages: numbers with their nouns, names as a shell takes them. Needs nothing that takes time to import,
unlike `cli.text`.
"""

from __future__ import annotations

import os

__all__ = ["plural", "shell_word"]

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\\/:._-")
"""What the shells of Windows take as it is."""


def plural(count: int, noun: str) -> str:
    """ "1 entry", "2 entries", "1,234 pages", "3 leaves"."""
    if count != 1 and noun.endswith("leaf"):
        noun = noun[:-1] + "ves"
    elif count != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") and noun != "key" else noun + "s"
    return f"{count:,} {noun}"


def shell_word(name: str) -> str:
    """A file's name as this system's shell, and then the command line, takes it."""
    if name.startswith("-"):
        name = os.path.join(".", name)
    if os.name == "nt":
        return name if _PLAIN.issuperset(name) else f'"{name}"'
    from shlex import quote

    return quote(name)
