"""Progress of long work on a terminal: a tqdm bar if tqdm is installed, otherwise a plain line.

The library's long operations call `progress(done, total)`; total is None if it is not known. This module decides
whether and how that is shown: only if standard error is a terminal, and only for work that takes longer than half a
second.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    Meter = Callable[[int, "int | None"], None]

__all__ = ["duration", "quantity", "shown"]

_DELAY = 0.5
"""Seconds of work before anything appears: a bar that flashes by is of no use."""

_INTERVAL = 0.1
"""Seconds between two looks of the line."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class _Display(Protocol):
    def update(self, done: int, total: int | None) -> None: ...

    def close(self) -> None: ...


@contextmanager
def shown(label: str, unit: str = "pages", *, stream: TextIO | None = None) -> Iterator[Meter]:
    """`with shown("check") as meter:` yields the `progress` argument for a long operation.

    `unit` names what is counted: "pages", "entries" or "bytes". `stream` is standard error unless given.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield _silent
        return
    display = _display(label, unit, stream)
    try:
        yield display.update
    finally:
        display.close()


def _silent(done: int, total: int | None) -> None:
    """What is shown in a pipe."""


def _display(label: str, unit: str, stream: TextIO) -> _Display:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return _Line(label, unit, stream)
    return _Bar(tqdm, label, unit, stream)


class _Bar:
    """A bar of tqdm's."""

    def __init__(self, tqdm: Any, label: str, unit: str, stream: TextIO) -> None:
        scaled = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
        # Its watching thread would be for bars that do not move by themselves.
        still = type("Bar", (tqdm,), {"monitor_interval": 0})
        self._bar = still(
            desc=label, file=stream, leave=False, delay=_DELAY, mininterval=_INTERVAL, dynamic_ncols=True,
            **(scaled if unit == "bytes" else {"unit": f" {unit}"}),
        )  # fmt: skip

    def update(self, done: int, total: int | None) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Line:
    """One line that is written over: what part is done, how fast, and how long it will take."""

    def __init__(self, label: str, unit: str, stream: TextIO) -> None:
        self._label = label
        self._unit = unit
        self._stream = stream
        self._start = time.monotonic()
        self._next = self._start + _DELAY
        self._shown = 0
        """Columns of what is on the line."""

    def update(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _INTERVAL
        width = shutil.get_terminal_size().columns - 1
        self._write(_status(self._label, self._unit, done, total, now - self._start)[:width])

    def close(self) -> None:
        if self._shown:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    def _write(self, line: str) -> None:
        """Over what is there: with blanks, since not every console knows the code that clears the rest of a line."""
        self._stream.write(f"\r{line.ljust(self._shown)}")
        self._stream.flush()
        self._shown = len(line)


def _status(label: str, unit: str, done: int, total: int | None, elapsed: float) -> str:
    rate = done / elapsed if elapsed > 0 else 0.0
    if total is None:
        return f"{label}: {quantity(done, unit)}, {quantity(rate, unit)}/s"
    parts = [
        f"{label}: {100 * done // max(total, 1):3d} %",
        f"{quantity(done, unit) if unit == 'bytes' else f'{done:,}'} of {quantity(total, unit)}",
    ]
    parts.append(f"{quantity(rate, unit)}/s")
    if rate > 0 and done < total:
        parts.append(f"{duration((total - done) / rate)} left")
    return ", ".join(parts)


def quantity(count: float, unit: str) -> str:
    """`count` of something for people: "1,234 pages", or bytes in the unit that suits: "4 KiB", "1.2 MiB"."""
    if unit != "bytes":
        return f"{round(count):,} {unit}"
    power = 0
    while count >= 1024 and power < len(_UNITS) - 1:
        count /= 1024
        power += 1
    number = f"{count:.0f}" if power == 0 else f"{count:.1f}".removesuffix(".0")
    return f"{number} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """A length of time for people: "350 µs", "12 ms", "4.5 s", "2 min 5 s", "3 h 20 min", "5 d 3 h"."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
