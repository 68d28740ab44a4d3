"""Signals, forks, finalizers, spills and kills, all at once: what was acknowledged is there afterwards.

What the processes do, and how they tell what was acknowledged, is in support/stress.py. By default a second or two in
each mode; `DURABLEDBM_SECONDS=600 python -m pytest -m long tests/test_stress.py` for as long as it says.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stress
from model import MODES

import durabledbm

pytestmark = [
    pytest.mark.no_cover,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks"),
]


class Witness:
    """What the log of a process says."""

    def __init__(self, log: Path, *, synced_only: bool) -> None:
        lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
        covered = 0
        if synced_only:
            covered = max((int(line.split()[1]) for line in lines if line.startswith(b"s")), default=0)
        self.promised: dict[bytes, int] = {}
        """For each key the number that it has been set to at least."""
        self.begun: dict[bytes, set[int]] = {}
        position = 0
        for line in lines:
            kind, number, *keys = line.split()
            position += len(line) + 1
            for key in keys:
                if kind == b"b":
                    self.begun.setdefault(key, set()).add(int(number))
                elif kind == b"a" and (not synced_only or position <= covered):
                    self.promised[key] = int(number)


def verify(db: durabledbm.Database, witness: Witness) -> int:
    """Compare a database with what was acknowledged. Returns how many keys were."""
    assert db.check() == []
    for key, begun in witness.begun.items():
        value, promised = db.get(key), witness.promised.get(key, 0)
        found = 0 if value is None else stress.number_of(value)
        assert found >= promised, (key, found, promised)
        assert found == 0 or found in begun, (key, found)
    return len(witness.promised)


def stress_for(seconds: float, tmp_path: Path, mode: str, seed: int) -> tuple[int, int]:
    """Let processes run and kill them, again and again. Returns how many were killed, and how many keys verified."""
    rng = random.Random(seed)
    path, kills, keys = str(tmp_path / mode), 0, 0
    deadline = time.monotonic() + seconds
    relaxed = mode in ("interval", "manual")
    while time.monotonic() < deadline or not kills:
        logs = [tmp_path / f"log {kills + number}" for number in range(1 if relaxed else 2)]
        processes = [
            subprocess.Popen(
                [
                    sys.executable, "-W", "ignore::DeprecationWarning",  # 3.12 warns of forks beside threads
                    stress.__file__, path, str(log), mode, str(seed * 100_000 + kills + number),
                ],
                stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            for number, log in enumerate(logs)
        ]
        started = time.monotonic()
        while not all(log.exists() and log.stat().st_size for log in logs) and time.monotonic() < started + 60:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.2, 1.5))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
            assert process.returncode == -signal.SIGKILL, errors.decode()
            assert not errors, errors.decode()
        kills += len(processes)
        with durabledbm.open(path, "c") as db:
            for log in logs:
                keys += verify(db, Witness(log, synced_only=relaxed))
            db.clear()
    return kills, keys


@pytest.mark.parametrize("mode", MODES)
def test_nothing_acknowledged_is_lost_in_the_lives_of_processes(tmp_path: Path, mode: str) -> None:
    _, keys = stress_for(1.5, tmp_path, mode, 1)
    assert keys


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_nothing_acknowledged_is_lost_in_ten_minutes(tmp_path: Path, mode: str) -> None:
    seconds = float(os.environ.get("DURABLEDBM_SECONDS", "600")) / len(MODES)
    kills, keys = stress_for(seconds, tmp_path, mode, int(os.environ.get("DURABLEDBM_SEED", "2")))
    print(f"{mode}: {kills} processes killed, {keys} keys verified")
    assert keys
