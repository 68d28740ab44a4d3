"""How the tour looks: headings, results and a table, wrapped to the width of the terminal."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Sequence

from ..text import Style, write

__all__ = ["Stage", "speed_of"]

_LABEL_WIDTH = 13


class Stage:
    """Prints. What it prints appears at once, also in a pipe."""

    def __init__(self, *, colour: bool, width: int) -> None:
        self._style = Style(colour)
        self._width = max(width, 60)
        self._number = 0
        self._start = time.monotonic()

    def _print(self, text: str = "") -> None:
        write(text)
        sys.stdout.flush()

    def title(self, text: str) -> None:
        """What the whole thing is."""
        self._print()
        self._print(self._style(text, "bold"))

    def say(self, text: str, indent: int = 0) -> None:
        """A paragraph."""
        for line in textwrap.wrap(text, self._width - indent, break_on_hyphens=False):
            self._print(" " * indent + line)

    def step(self, text: str) -> None:
        """The heading of the next step."""
        self._number += 1
        self._print()
        self._print(self._style(f"{self._number}  {text}", "bold", "cyan"))

    def ours(self, text: str, *, good: bool = True) -> None:
        """What durabledbm did."""
        self._result("durabledbm", text, "green" if good else "red")

    def theirs(self, name: str, text: str) -> None:
        """What the standard library did."""
        self._result(name, text, "yellow")

    def _result(self, name: str, text: str, colour: str) -> None:
        room = self._width - _LABEL_WIDTH - 3
        first, *others = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
        self._print(f"   {self._style(f'{name:<{_LABEL_WIDTH}}', colour)}{first}")
        for line in others:
            self._print(" " * (_LABEL_WIDTH + 3) + line)

    def note(self, text: str) -> None:
        """A remark."""
        for line in textwrap.wrap(text, self._width - 3, break_on_hyphens=False):
            self._print(f"   {self._style(line, 'dim')}")

    def code(self, text: str) -> None:
        """A line of Python, as the reader would write it."""
        self._print(f"   {self._style('>>> ' + text, 'magenta')}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first column to the left, figures to the right."""
        table = [head, *rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        for at, row in enumerate(table):
            cells = [
                f"{row[0]:<{widths[0]}}",
                *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            if at == 0:
                self._print("   " + self._style("   ".join(cells), "dim"))
            else:
                self._print(f"   {cells[0]}   {self._style(cells[1], 'green')}   {'   '.join(cells[2:])}".rstrip())

    def lines(self, lines: Sequence[str]) -> None:
        """Lines as they are, indented."""
        for line in lines:
            self._print(f"   {line}")

    @property
    def has_colour(self) -> bool:
        """Whether there is colour."""
        return self._style.enabled

    @property
    def width(self) -> int:
        """Columns."""
        return self._width

    def end(self, failures: Sequence[str], *, kept: str | None, path: str) -> None:
        """The last words."""
        self._print()
        for failure in failures:
            self._print(self._style(f"Not as it should be: {failure}", "bold", "red"))
        took = time.monotonic() - self._start
        if not failures:
            self.say(
                "All contents and all acknowledged writes were compared and found as they should be. "
                f"{took:.0f} seconds."
            )
        if kept is None:
            self.say("To keep the files and look at them: durabledbm tour --keep DIRECTORY")
        else:
            self._print(f"Now try:  durabledbm list {path} --prefix json/")
            self._print(f"          durabledbm inspect {path}")


def speed_of(seconds: float) -> str:
    """Time per operation: "0.42 µs", "85 µs", "1.2 ms"."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        value = seconds * factor
        if value < 1000 or unit == "ms":
            digits = 2 if value < 1 else 1 if value < 10 else 0
            return f"{value:,.{digits}f} {unit}"
    raise AssertionError
