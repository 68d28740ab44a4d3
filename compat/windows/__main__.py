"""Run the tests on CPython for Windows under Wine: `python -m compat.windows [--python 3.11] [ARGUMENT...]`.

The arguments are pytest's. Without any, a selection runs that takes a few minutes: see `SELECTION`. `-m long` runs all
tests, the long ones included. Where Wine or the packages cannot be had, it says so in a line, and the exit code is 0.

What passes here is evidence about the package and about Python's Windows build, not about the kernel and NTFS of
Microsoft: see docs/concurrency.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from compat.windows.interpreter import VERSIONS, Unavailable, drive, environment, prepare

ROOT = Path(__file__).resolve().parents[2]

SELECTION: list[str] = []


def run(python: Path, arguments: list[str]) -> int:
    """Run that interpreter, here; its exit code.

    Its standard streams must be pipes: under Wine it does not start with a file or the null device. The repository is a
    drive of its own, so that no name like /proc or /dev leads out of what Windows would have.
    """
    drive("r", ROOT)
    inside = {**environment(), "PYTHONPATH": "R:\\", "PYTHONPYCACHEPREFIX": "C:\\bytecode", "PYTHONUNBUFFERED": "1"}
    for name in ("PYTHONDONTWRITEBYTECODE", "TMPDIR", "HOME"):
        inside.pop(name, None)
    with subprocess.Popen(
        ["wine", str(python), *arguments], cwd=ROOT, env=inside,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        while chunk := process.stdout.read1(1 << 16):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return process.returncode


def main(arguments: list[str]) -> int:
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
    return run(python, ["-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-q", *(arguments or SELECTION)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
