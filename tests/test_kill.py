"""kill -9 of real processes that tell over a pipe what was acknowledged: no more is lost than the mode says."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from model import MODES

import durabledbm

WRITER = """
import sys, durabledbm
path, mode, start = sys.argv[1], sys.argv[2], int(sys.argv[3])
say = sys.stdout.buffer.raw.write
with durabledbm.open(path, "c", durability=mode, interval=0.01) as db:
    for n in range(start, start + 100_000):
        say(b"b%d\\n" % n)
        with db.transaction():
            db["last"] = str(n)
            db[str(n % 50)] = str(n) * (n % 400)
        say(b"a%d\\n" % n)
        if n % 7 == 0:
            db.sync()
            say(b"s%d\\n" % n)
        if n % 40 == 39:
            db.reorganize()
"""


def last(said: bytes, kind: bytes, default: int) -> int:
    numbers = [int(line[1:]) for line in said.split(b"\n")[:-1] if line.startswith(kind)]
    return numbers[-1] if numbers else default


def kill_and_look(path: Path, mode: str, start: int, rng: random.Random) -> int:
    """Start a writer, kill it after a while, and verify what it left. Returns the number of the last commit."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), mode, str(start + 1)], stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdout is not None
    said = b"" if rng.random() < 0.1 else process.stdout.read(rng.randrange(1, 2000))
    process.kill()
    said += process.stdout.read()
    process.stdout.close()
    process.wait()
    promised = last(said, b"a" if mode in ("full", "process") else b"s", start)
    with durabledbm.open(path, "c") as db:
        found = int(db.get("last", b"%d" % start))
        assert promised <= found <= last(said, b"b", start), (mode, said[-40:])
        for slot in range(50):
            newest = next((n for n in range(found, max(found - 50, 0), -1) if n % 50 == slot), None)
            if newest is not None:
                assert db[str(slot)] == str(newest).encode() * (newest % 400)
        assert db.check() == []
    return found


def kills(path: Path, mode: str, count: int, seed: int) -> None:
    rng = random.Random(seed)
    newest = 0
    for _ in range(count):
        if rng.random() < 0.1:
            path.unlink(missing_ok=True)  # the next one is killed during creation, perhaps
            newest = 0
        newest = kill_and_look(path, mode, newest, rng)


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_process_loses_no_more_than_its_mode_says(mode: str, tmp_path: Path) -> None:
    kills(tmp_path / "db", mode, 8, 1)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_two_thousand_kills(mode: str, tmp_path: Path) -> None:
    kills(tmp_path / "db", mode, 500, 2)
