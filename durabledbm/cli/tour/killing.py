"""A process that writes, and is killed meanwhile: what does the file contain afterwards?

The child does what a store of sessions or counters does: it sets some keys again and again. It acknowledges each write
through a pipe after the write has returned, as a server would answer its client. The parent kills it with SIGKILL at a
random moment, for which no program can prepare, and then compares the file with what was acknowledged.
"""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["KEYS", "Aftermath", "kill_while_writing"]

_CHILD = """
import importlib, os, sys
root, name, path, start = sys.argv[1:]
sys.path.insert(0, root)
from durabledbm.cli.tour.killing import key_of, value_of
db = importlib.import_module(name).open(path, "c")
number = int(start)
while True:
    db[key_of(number)] = value_of(number)
    os.write(1, b"%d\\n" % number)
    number += 1
"""

_PATIENCE = 20.0
"""Seconds in which the child must have acknowledged something."""


KEYS = 50
"""Keys that are written, in turn."""


class Aftermath(NamedTuple):
    """What was found after a kill."""

    acknowledged: int
    """Writes."""
    missing: int
    """Keys that were written and are not there."""
    wrong: int
    """Keys whose value is not the last one that was acknowledged, nor the one that was being written."""
    failure: str
    """Why the file could not be opened or read, if so."""


def key_of(number: int) -> bytes:
    """The key of the child's write number `number`: the keys take turns."""
    return b"session-%03d" % (number % KEYS)


def value_of(number: int) -> bytes:
    """Its value, up to 2 KB."""
    return b"%d," % number * (number * 37 % 300 + 1)


def kill_while_writing(module: str, path: str, *, start: int = 0, at_least: int = 20) -> Aftermath:
    """Let a process write to `path` through `module`, kill it after some writes, and look at the file."""
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-c", _CHILD, root, module, path, str(start)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    output = b""
    deadline = time.monotonic() + _PATIENCE
    try:
        while output.count(b"\n") < at_least and time.monotonic() < deadline:
            piece = os.read(child.stdout.fileno(), 65536)
            if not piece:
                break
            output += piece
        time.sleep(random.uniform(0, 0.05))
        child.kill()  # SIGKILL; on Windows TerminateProcess, which is the same
        output += child.stdout.read()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    # A last line without its end was cut off by the kill: the child may not have known yet that it wrote it.
    acknowledged = start + output.count(b"\n")
    if acknowledged == start:
        return Aftermath(0, 0, 0, f"the process wrote nothing within {_PATIENCE:.0f} seconds")
    return _compared(module, path, acknowledged)


def _compared(module: str, path: str, acknowledged: int) -> Aftermath:
    opened: Any = importlib.import_module(module)
    missing = wrong = 0
    try:
        with opened.open(path, "r") as db:
            for number in range(max(acknowledged - KEYS, 0), acknowledged):
                # The interrupted write may have happened, too: it was not acknowledged.
                right = {value_of(number)} | (
                    {value_of(acknowledged)} if key_of(acknowledged) == key_of(number) else set()
                )
                value = db.get(key_of(number))
                missing += value is None
                wrong += value is not None and value not in right
    except Exception as exc:  # each backend has errors of its own
        return Aftermath(acknowledged, min(acknowledged, KEYS), 0, f"{type(exc).__name__}: {exc}")
    return Aftermath(acknowledged, missing, wrong, "")
