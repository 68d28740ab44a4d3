"""Files that were made to hurt cost no more than what is really there: an answer or an error of ours, and soon.

Each file is used in a process with limits of memory and processor time; see `forging`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forging import NAMED, OPERATIONS
from systems import only_posix

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.no_cover,  # limits of time and tracing do not go together
    only_posix("the files are holes for the most part, which are not told on Windows: reading all of them takes hours"),
]


def used(tmp_path: Path, *arguments: str) -> list[str]:
    """Use forged files as `forging` is told to. What was done, a line each."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, str(HERE / "support" / "forging.py"), *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=3000,
    )  # fmt: skip
    assert result.returncode == 0, (result.stdout[-6000:], result.stderr[-3000:])
    return result.stdout.splitlines()


@pytest.mark.parametrize("name", NAMED)
def test_a_file_of_a_kind_that_once_hurt_is_survived(tmp_path: Path, name: str) -> None:
    lines = used(tmp_path, "named", name)
    assert lines == [*(f"{name}: {operation.name}" for operation in OPERATIONS), "all is well"]


def test_random_files_are_survived(tmp_path: Path) -> None:
    assert used(tmp_path, "0", "25")[-1] == "all is well"


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 5000, 100))
def test_thousands_of_random_files_are_survived_by_all_operations(tmp_path: Path, first: int) -> None:
    assert used(tmp_path, str(first), str(first + 100), "all")[-1] == "all is well"
