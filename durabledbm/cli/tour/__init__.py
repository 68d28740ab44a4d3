"""tour: half a minute that shows what durabledbm does, compared with the standard library.

The data are the source files of the running Python's own standard library: names as keys, contents as values. Every
figure is measured while the tour runs, and every claim is checked against the data. What the standard library does is
found out by doing it, with the backend that `dbm.open` chooses here. If something is not as it should be, the tour says
so and fails.

`steps` are the stations, `rivals` the standard library's side, `killing` the process that is killed, `speed` the table
at the end, and `stage` the output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..._files.temporary import new_directory
from ...errors import error
from .rivals import default_backend, in_memory, on_disk, sources
from .stage import Stage
from .steps import STEPS, Tour

__all__ = ["tour"]


def tour(
    *,
    keep: str | None = None,
    files: int | None = None,
    colour: bool = True,
    width: int = 80,
    budget: float = 0.25,
) -> bool:
    """Run the tour, printing to standard output; False if anything was not as it should be.

    `keep` is a directory in which the files stay. `files` limits how many source files are used. `budget` is
    the time in seconds for each measurement of the table of speeds.
    """
    stage = Stage(colour=colour, width=width)
    found = sources(files)
    if not found:
        raise error("this Python has no source files of its standard library to work with")
    with _place(keep) as directory:
        default = default_backend()
        state = Tour(stage, directory, found, default, budget)
        size = sum(map(len, found.values()))
        stage.title("durabledbm: a dict that lasts, in one file")
        stage.say(
            f"Python {sys.version.split()[0]}. The data: {len(found):,} source files of its standard "
            f"library, {size / 1e6:.1f} MB, "
            f"{min(map(len, found.values())):,} bytes to {max(map(len, found.values())) / 1e3:,.0f} KB each. "
            f"Beside it: {default}, "
            "which is what dbm.open and shelve.open use here. All figures are measured now."
        )
        if in_memory(directory):
            stage.note(
                "The files are in memory here (tmpfs), where syncing costs nothing: with --keep DIRECTORY on "
                "a disk the figures are real."
            )
        for step in STEPS:
            step(state)
        stage.end(state.failures, kept=keep, path=state.path)
        return not state.failures


@contextmanager
def _place(keep: str | None) -> Iterator[str]:
    """The directory to work in: `keep`, or one that is removed afterwards."""
    if keep is None:
        with new_directory(os.path.join(on_disk(), "tour")) as temporary:
            directory = os.path.join(temporary.path, "tour")
            os.mkdir(directory)
            yield directory
        return
    os.makedirs(keep, exist_ok=True)
    if os.listdir(keep):
        raise error(f"{keep}: not empty; choose another directory to keep the files in")
    yield keep
