"""How values are shown: bytes as text, and the objects of shelves, which are loaded only on demand.

Loading a pickle runs code that the file names. So a pickle is recognized by its bytes alone and described as
such; `--pickle` loads it, after a warning.
"""

from __future__ import annotations

import json
from typing import Any

from .console import complain
from .text import as_json, escape, printable

__all__ = ["PICKLE_HELP", "looks_pickled", "pickled", "warn_of_pickles"]

PICKLE_HELP = "values are objects of a shelf: load and show them. It runs their code: trust the file"

_PROTOCOLS = range(2, 6)


def looks_pickled(value: bytes) -> bool:
    """Whether the bytes begin and end as every pickle since protocol 2 does."""
    return len(value) > 3 and value[0] == 0x80 and value[1] in _PROTOCOLS and value[-1:] == b"."


def warn_of_pickles(file: str) -> None:
    """Say it before the first object is loaded."""
    complain("warning", f"--pickle runs code that {file} may contain; use it on files that you trust", "yellow")


def pickled(value: bytes, *, in_json: bool) -> str:
    """The object in a pickle: its repr, or what is nearest to it in JSON. What is no pickle is said so."""
    import pickle

    try:
        obj = pickle.loads(value)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # whatever the code in the file raises
        reason = f"{type(exc).__name__}: {exc}"
        return dumps({"error": reason}) if in_json else f"<no object: {printable(reason)}> {escape(value)}"
    return dumps(obj) if in_json else printable(repr(obj))


def dumps(obj: Any) -> str:
    """`obj` as a line of JSON. What JSON lacks becomes text, and what cannot be printed is written as \\uXXXX."""
    try:
        text = json.dumps(obj, ensure_ascii=False, default=_substitute)
    except (TypeError, ValueError):  # keys that JSON cannot have, or circles
        text = json.dumps(repr(obj), ensure_ascii=False)
    # JSON itself asks for this only below U+0020: a terminal obeys U+0080 to U+009F, too.
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    """A character of a JSON text: what cannot be printed stands in a string, where it may be an escape."""
    return char if char.isprintable() else json.dumps(char)[1:-1]


def _substitute(obj: object) -> Any:
    if isinstance(obj, (bytes, bytearray)):
        return as_json(bytes(obj))
    if isinstance(obj, (set, frozenset)):
        return list(obj)
    return repr(obj)
