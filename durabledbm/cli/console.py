"""What a command prints besides its result. `text.write` prints results; this module prints the rest."""

from __future__ import annotations

import sys

from .text import printable, style

__all__ = ["complain", "flush", "message"]


def message(text: str) -> None:
    """Say it on standard error, behind what was printed so far."""
    _say(printable(text))


def complain(who: str, text: str, colour: str = "bold") -> None:
    """Say what is wrong, and in which command."""
    _say(f"{style(stream=sys.stderr)(f'{who}:', colour)} {printable(text)}")


def flush() -> None:
    """Write out what was printed. A failure here is met again at the end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        pass


def _say(line: str) -> None:
    flush()
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
