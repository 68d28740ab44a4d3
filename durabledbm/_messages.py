"""Wording that messages and `repr` share. Unlike `cli.text` it imports nothing that takes time."""

from __future__ import annotations

from .errors import ReadOnlyError

__all__ = ["counted", "not_copied", "plural", "read_only", "represented"]


def plural(count: int, noun: str) -> str:
    """ "1 entry", "2 entries", "1,234 pages", "3 leaves"."""
    if count != 1 and noun.endswith("leaf"):
        noun = noun[:-1] + "ves"
    elif count != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") and noun != "key" else noun + "s"
    return f"{count:,} {noun}"


def represented(thing: object, *parts: str) -> str:
    """The `repr` of a handle: its class and `parts`."""
    return f"<{type(thing).__module__}.{type(thing).__qualname__} {', '.join(parts)}>"


def counted(entries: int, *, unflushed: bool) -> str:
    """For `repr`: the number of entries in the file, and whether the handle holds unflushed writes."""
    return plural(entries, "entry") + (" and unflushed writes" if unflushed else "")


def not_copied(thing: object) -> TypeError:
    """The error for `pickle` and `copy`: a copy would be a second handle on the same file."""
    return TypeError(
        f"cannot copy or pickle a {type(thing).__name__}: it stands for an open file. "
        "Pass the path on and open the file again; dict() copies the entries"
    )


def read_only(path: str) -> ReadOnlyError:
    """The error for a write through a read-only handle, with the text that users of dbm know."""
    return ReadOnlyError(f"{path}: the database is opened for reading only")
