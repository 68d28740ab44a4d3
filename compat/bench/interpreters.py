"""Which interpreter runs which store.

dbm.gnu, dbm.ndbm and dbm.sqlite3 are part of some builds and versions of Python only, so a store may run in
another interpreter than the benchmark. The one that runs the benchmark is tried first: its stores compare
best."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
WORKER = ["-m", "compat.bench.worker"]


@dataclass(frozen=True)
class Interpreter:
    """An interpreter that has a store: its executable, its version and that of the store's library."""

    executable: str
    python: str
    version: str


def find(store: str) -> Interpreter | str:
    """The first interpreter that can run the store, or why none can."""
    reason = ""
    for executable in _candidates(store):
        answer = _ask(executable, store)
        if isinstance(answer, Interpreter):
            return answer
        reason = reason or answer
    return reason


def variable(store: str) -> str:
    """The environment variable that names the interpreter for a store: BENCH_PYTHON_DBM_GNU for dbm.gnu."""
    return "BENCH_PYTHON_" + store.upper().replace(".", "_")


def _candidates(store: str) -> list[str]:
    chosen = os.environ.get(variable(store))
    if chosen:
        return [chosen]
    found = [sys.executable]
    if store.startswith("dbm."):  # third-party packages are wanted where the benchmark runs, nowhere else
        names = ("python3", "python3.14", "python3.13", "python3.12", "python3.11")
        found += [path for name in names if (path := shutil.which(name))]
        found += ["/usr/bin/python3"]
        pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
        found += sorted(glob.glob(os.path.join(pyenv, "versions", "3.1[0-9]*", "bin", "python")), reverse=True)
    return [path for path in dict.fromkeys(found) if os.path.exists(path)]


def _ask(executable: str, store: str) -> Interpreter | str:
    spec = json.dumps({"action": "describe", "store": store})
    try:
        done = subprocess.run(
            [executable, *WORKER, spec],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    if done.returncode:
        return last_line(done.stderr)
    answer = json.loads(done.stdout)
    return Interpreter(executable, answer["python"], answer["version"])


def environment() -> dict[str, str]:
    """The environment of a worker: the same for all, and nothing that would send imports elsewhere."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def last_line(text: str) -> str:
    """The last line of an error output: of a traceback, the exception."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"
