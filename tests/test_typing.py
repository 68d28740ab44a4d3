"""What type checkers say about users' code: see the programs in `clients`, and what each is for.

mypy always checks them; pyright does where it is installed (`.ci/run` installs it).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLIENTS = Path(__file__).parent / "clients"
IN_PLACE = {"import dbm\n": "import durabledbm as dbm\n", "import shelve\n": "import durabledbm.shelve as shelve\n"}
"""The change that README asks for."""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The programs in a directory of their own, and that for the standard library with ours in its place."""
    source = (CLIENTS / "of_dbm.py").read_text("utf-8")
    (tmp_path / "of_dbm.py").write_text(source, "utf-8")
    for old, new in IN_PLACE.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    (tmp_path / "in_place.py").write_text(source, "utf-8")
    (tmp_path / "of_durabledbm.py").write_text((CLIENTS / "of_durabledbm.py").read_text("utf-8"), "utf-8")
    return tmp_path


def said(*command: str, directory: Path) -> str:
    """What a type checker complains of."""
    environment = {**os.environ, "MYPYPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_programs_that_pass_mypy_with_the_standard_library_pass_with_ours(programs: Path) -> None:
    pytest.importorskip("mypy")
    options = ("--strict", "--config-file=", "--cache-dir=cache", "--follow-imports=silent")
    names = ("of_dbm.py", "in_place.py", "of_durabledbm.py")
    assert said(sys.executable, "-m", "mypy", *options, *names, directory=programs) == ""


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
@pytest.mark.parametrize("mode", ["standard", "strict"])
def test_programs_that_pass_pyright_with_the_standard_library_pass_with_ours(programs: Path, mode: str) -> None:
    source = (programs / "of_durabledbm.py").read_text("utf-8")
    # The rules that mypy names are mypy's. Where pyright finds nothing to ignore it says so.
    source = re.sub(r"# type: ignore\[[a-z-]+\]", "# pyright: ignore", source)
    (programs / "of_durabledbm.py").write_text(source, "utf-8")
    settings = {
        "typeCheckingMode": mode, "extraPaths": [str(ROOT)], "reportUnnecessaryTypeIgnoreComment": "error",
        "reportPrivateUsage": "none",  # typeshed gives what `dbm.open` returns a private name
    }  # fmt: skip
    (programs / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    assert said(sys.executable, "-m", "pyright", directory=programs) == ""
