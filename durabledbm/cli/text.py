"""Bytes as text and back, and output on the terminal.

This module writes to standard output, escapes keys and values for display and parses the escapes, and colours text.
Output is UTF-8 in any locale: the bytes of a database do not depend on it.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import sys
from typing import Any, ClassVar, TextIO
from unicodedata import combining, east_asian_width

from .._messages import plural
from ..errors import error

__all__ = [
    "OutputError",
    "StandardOutput",
    "Style",
    "as_json",
    "beginning",
    "columns",
    "escape",
    "plural",
    "printable",
    "raw",
    "shorten",
    "style",
    "terminal_width",
    "unescape",
    "write",
]

_NAMED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPE = re.compile(rb"\\(\\|n|r|t|x[0-9a-fA-F]{2}|)")
_SPECIAL = re.compile(r"[^ -\[\]-~]")
_VALUES = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class _Escapes(dict[int, str]):
    """What each character is printed as, found out when it is first met: a table for `str.translate`."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if char in _NAMED:
            shown = _NAMED[char]
        elif char.isprintable():
            shown = char
        else:
            errors = "surrogateescape" if 0xDC80 <= code <= 0xDCFF else "surrogatepass"
            shown = "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", errors))
        self[code] = shown
        return shown


_escapes = _Escapes()


def escape(data: bytes) -> str:
    """`data` as one line of text: UTF-8 unchanged except for unprintable characters, other bytes one by one.

    Escapes are `\\xNN`, `\\n`, `\\r`, `\\t`, and two backslashes for one. No two values look the same, nothing in the
    text moves the cursor, and `unescape` reverses it.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        # Python's own notation is the same, but for quotes: with a double one in front, single ones are escaped.
        return repr(b'"' + data)[3:-1].replace("\\'", "'")
    return text if text.isprintable() and "\\" not in text else _SPECIAL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return _escapes[ord(match[0])]


def printable(text: str) -> str:
    """A text for people, on one line: unprintable characters are escaped, backslashes stay single."""
    if text.isprintable():
        return text
    return "\\".join(part.translate(_escapes) for part in text.split("\\"))


def unescape(text: bytes) -> bytes:
    """The bytes that `escape` shows as `text`. Raises `ValueError` for text that it never produces."""

    def value(match: re.Match[bytes]) -> bytes:
        name = match[1]
        if not name:
            raise ValueError(
                f"a backslash that begins no escape in {text!r}: write two for one, or \\n, \\r, \\t, \\xNN"
            )
        return _VALUES.get(name) or bytes([int(name[1:], 16)])

    return _ESCAPE.sub(value, text)


def as_json(data: bytes) -> Any:
    """What stands for `data` in JSON: a string if it is UTF-8, else `{"base64": "..."}`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def columns(text: str) -> int:
    """The terminal columns of a text: two for a wide character, none for a combining one."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(char: str) -> int:
    return 0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1


def shorten(text: str, width: int, *, cut: bool = False) -> str:
    """`text`, or as much of its beginning as fits into `width` columns, with an ellipsis.

    With `cut` the text is itself only a beginning, so it always gets the ellipsis.
    """
    if not cut and columns(text) <= width:
        return text
    room, end = width - 1, 0
    while end < len(text) and (room := room - _columns(text[end])) >= 0:
        end += 1
    return text[:end] + "\N{HORIZONTAL ELLIPSIS}"


def beginning(data: bytes, size: int) -> bytes:
    """The first `size` bytes, or a few less to avoid cutting a UTF-8 character."""
    part = data[:size]
    try:
        part.decode("utf-8")
    except UnicodeDecodeError as exc:
        if exc.end == len(part) < len(data) and exc.reason == "unexpected end of data":
            return part[: exc.start]
    return part


# -- standard output -------------------------------------------------------------------------------


class OutputError(error):
    """Standard output accepts no more: its reader has closed it (EPIPE), or its disk is full."""


class StandardOutput:
    """Standard output, for what wants a file to write to."""

    def write(self, data: bytes) -> None:
        raw(data)


def write(text: str = "", *, end: str = "\n") -> None:
    """Write a line to standard output."""
    raw(f"{text}{end}".encode("utf-8", "surrogateescape"))


def raw(data: bytes) -> None:
    """Write bytes to standard output."""
    buffer = getattr(sys.stdout, "buffer", None)
    try:
        if buffer is None:  # it was replaced by a stream of text
            sys.stdout.write(data.decode("utf-8", "replace"))
        else:
            buffer.write(data)
    except OSError as exc:
        raise OutputError(exc.errno, exc.strerror) from exc


def terminal_width(default: int = 80) -> int:
    """Columns of the terminal, or of what $COLUMNS says."""
    return shutil.get_terminal_size((default, 24)).columns


# -- colours ---------------------------------------------------------------------------------------


class Style:
    """Colours, or none. Calling it wraps a text: `style("done", "green")`."""

    CODES: ClassVar = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "magenta": 35, "cyan": 36}

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __call__(self, text: str, *names: str) -> str:
        if not self.enabled or not text:
            return text
        return f"\x1b[{';'.join(str(self.CODES[name]) for name in names)}m{text}\x1b[0m"


def style(when: str = "auto", stream: TextIO | None = None) -> Style:
    """The colours for `stream` (standard output): "always", "never", or "auto", which heeds $NO_COLOR."""
    stream = sys.stdout if stream is None else stream
    if when == "auto":
        if os.environ.get("FORCE_COLOR"):
            return Style(True)
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        return Style(terminal and not os.environ.get("NO_COLOR") and _obeys_escapes(stream))
    return Style(when == "always")


_ENABLE_VIRTUAL_TERMINAL_PROCESSING = 4


def _obeys_escapes(terminal: TextIO) -> bool:
    """Whether a terminal takes escapes for colours. Consoles of Windows do when they are told to, old ones never."""
    if sys.platform != "win32":
        return True
    import ctypes
    import msvcrt

    try:
        console = ctypes.c_void_p(msvcrt.get_osfhandle(terminal.fileno()))
    except (OSError, ValueError):
        return True  # no console, but something that says it is a terminal
    mode = ctypes.c_uint32()
    kernel32 = ctypes.WinDLL("kernel32")
    return bool(
        kernel32.GetConsoleMode(console, ctypes.byref(mode))
        and kernel32.SetConsoleMode(console, mode.value | _ENABLE_VIRTUAL_TERMINAL_PROCESSING)
    )
