"""Run the tests on CPython for Windows under Wine: `python -m compat.windows [--python 3.11] [ARGUMENT...]`.

The arguments are for pytest. Without any, a selection runs that takes a few minutes: see `SELECTION`. With `-m long`
and no files, all long tests run; with `-m "long or not long"`, all. `--run ARGUMENT...` runs the interpreter itself.
Where Wine or the packages cannot be had, that is told in a line, and the exit status is 0.

What passes here is evidence about the package and Python's build for Windows, not about the kernel and the file systems
of Microsoft: see docs/concurrency.md.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

from compat.windows.interpreter import VERSIONS, Unavailable, drive, environment, prepare

ROOT = Path(__file__).resolve().parents[2]

SELECTION = [
    "tests/engine", "tests/test_windows_disk.py", "tests/test_on_windows.py", "tests/test_portability.py",
    "tests/test_database.py", "tests/test_mapping_spec.py", "tests/test_shelve.py", "tests/test_stdlib.py",
    "tests/test_processes.py", "tests/test_threads.py", "tests/test_kill.py", "tests/test_outside.py",
    "tests/test_cli.py", "tests/test_migration.py", "compat/differential",
]  # fmt: skip
"""What can differ between systems, as far as a few minutes suffice for it."""

LIMIT = 300
"""Seconds that one test may take: a test that hangs must not hang the rest."""

_PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--timeout", str(LIMIT)]


def run(python: Path, arguments: list[str]) -> int:
    """Run that interpreter in the repository; its exit status.

    Its standard streams must be pipes: under Wine it does not start with a file or the null device. The repository is a
    drive of its own, so that names of files are like those on Windows.
    """
    drive("r", ROOT)
    inside = {**environment(), "PYTHONPATH": "R:\\", "PYTHONPYCACHEPREFIX": "C:\\bytecode", "PYTHONUNBUFFERED": "1"}
    for name in ("PYTHONDONTWRITEBYTECODE", "TMPDIR", "HOME"):
        inside.pop(name, None)
    process = subprocess.Popen(
        ["wine", str(python), *arguments], cwd=ROOT, env=inside,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    # Not until the end of the pipe: Wine's own services may have it, too, and live on.
    output = process.stdout.fileno()
    while select.select([output], [], [], 0.2)[0] or process.poll() is None:
        if select.select([output], [], [], 0)[0]:
            chunk = os.read(output, 1 << 16)
            if not chunk:
                break
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return process.wait()


def main(arguments: list[str]) -> int:
    """Carry out a command line; its exit status."""
    version = "3.11"
    if arguments[:1] == ["--python"]:
        version, arguments = arguments[1], arguments[2:]
    if version not in VERSIONS:
        sys.exit(f"--python takes one of {', '.join(VERSIONS)}")
    try:
        python = prepare(version)
    except Unavailable as exc:
        print(f"no test ran on Windows: {exc}")
        return 0
    if arguments[:1] == ["--run"]:
        return run(python, arguments[1:])
    return run(python, [*_PYTEST, *(arguments or SELECTION)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
