"""Coverage-guided fuzzing, if atheris is installed. See `fuzz`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_files_with_right_checksums_that_a_fuzzer_draws_are_survived(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    seconds = os.environ.get("DURABLEDBM_FUZZ_SECONDS", "300")
    result = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "support" / "fuzz.py"),
         f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-len_control=0", "-max_len=400",
         f"-artifact_prefix={tmp_path}/", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
