"""What a command says beside its result. Results are written to standard output, by `_text.write`; this is the rest.

Messages go to standard error: what was done, what is being waited for, what went wrong. Each is one line, in which
nothing moves the cursor. If standard error takes no more, they are lost, and nothing else is.
"""

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
