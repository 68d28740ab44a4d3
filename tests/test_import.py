"""What `import durabledbm` costs, told by what it imports: time is not the same on two machines, this is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import durabledbm

ROOT = Path(__file__).parent.parent
MODULES = ("dump", "errors", "export", "redisdb", "reshard", "restore", "salvage", "shelve")
"""Public modules that are no names of `__all__`: `from durabledbm import *` must not hide the stdlib's `shelve`."""


def imported(code: str) -> set[str]:
    """The modules that `code` brings into a new interpreter."""
    program = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return set(done.stdout.split())


def test_an_import_imports_next_to_nothing() -> None:
    assert imported("import durabledbm") <= {"durabledbm", "durabledbm.errors", "__future__"}


def test_opening_a_file_needs_neither_the_command_line_nor_what_costs_time(db_path: str) -> None:
    site = [path for path in sys.path if path.endswith("-packages")]
    code = f"import sys; sys.path += {site!r}; import durabledbm; durabledbm.open({db_path!r}, 'c').close()"
    modules = imported(code)
    slow = {"argparse", "crc32c", "email", "hashlib", "importlib.metadata", "inspect", "pickle", "secrets", "shutil",
            "socket", "subprocess", "tempfile"}  # fmt: skip
    assert modules & slow == set()
    assert {name for name in modules if name.startswith(("durabledbm.cli", "durabledbm.tour"))} == set()


@pytest.mark.parametrize("name", [*durabledbm.__all__, *MODULES])
def test_every_name_is_there_when_it_is_asked_for(name: str) -> None:
    assert getattr(durabledbm, name) is getattr(durabledbm, name)
    assert name in dir(durabledbm)
    namespace: dict[str, object] = {}
    exec(f"from durabledbm import {name}", namespace)
    assert namespace[name] is getattr(durabledbm, name)


def test_dir_shows_what_is_public_and_nothing_else() -> None:
    shown = {name for name in dir(durabledbm) if not name.startswith("__")}
    assert shown == {name for name in (*durabledbm.__all__, *MODULES) if not name.startswith("__")}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'opne'"):
        durabledbm.opne  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from durabledbm import opne")
