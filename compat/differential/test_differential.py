"""The same operations on the standard library's dbm modules and on durabledbm: only known differences."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import durabledbm
from compat.differential.differences import DIFFERENCES, EXPECTED, markdown
from compat.differential.operations import OPERATIONS

KNOWN = {
    (operation, module): answers
    for difference in DIFFERENCES
    for operation, others in difference.operations.items()
    for module, answers in others.items()
}
MODULES = ["dbm.dumb", "dbm.gnu", "dbm.ndbm", "dbm.sqlite3"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "compat.md"


if sys.platform == "win32":  # where files have no modes
    EXPECTED = {**EXPECTED, "open_positional_mode": "0o666"}
    KNOWN["open_positional_mode", "dbm.dumb"] = ("0o666 0o666",)
    # It drops its handle without closing it, and an open file of SQLite cannot be removed there.
    KNOWN["dropped_handle_frees_the_file", "dbm.sqlite3"] = ("OSError that is not the module's error: PermissionError",)


def answer(operation: str, module: Any, tmp_path: Path) -> str:
    try:
        return OPERATIONS[operation](module, str(tmp_path / "db"))
    except module.error:
        return "error"
    except TypeError:
        return "TypeError"


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> Any:
    name = str(request.param)
    found = pytest.importorskip(name, reason=f"this Python has no {name}", exc_type=ImportError)
    if name == "dbm.ndbm" and found.library != "Berkeley DB":
        pytest.skip(f"dbm.ndbm is {found.library} here; its answers are known for Berkeley DB")
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_durabledbm_answers_as_expected(operation: str, tmp_path: Path) -> None:
    assert answer(operation, durabledbm, tmp_path) == EXPECTED[operation]


@pytest.mark.filterwarnings("ignore")  # dbm.dumb and dbm.sqlite3 complain in __del__ where opening failed
def test_another_module_answers_the_same_or_the_difference_is_known(module: Any, tmp_path: Path) -> None:
    unknown = {}
    for operation, expected in EXPECTED.items():
        directory = tmp_path / operation
        directory.mkdir()
        found = answer(operation, module, directory)
        if found not in KNOWN.get((operation, module.__name__), (expected,)):
            unknown[operation] = found
    gc.collect()  # so that they do it here
    assert unknown == {}


def test_the_tables_speak_of_existing_operations_and_true_differences() -> None:
    assert set(EXPECTED) == set(OPERATIONS)
    for (operation, name), answers in KNOWN.items():
        assert name in MODULES
        assert any(found != EXPECTED[operation] for found in answers), f"{operation} is no difference"
    assert all(difference.reason for difference in DIFFERENCES)


def test_the_document_has_the_same_table() -> None:
    text = DOCUMENT.read_text("utf-8")
    found = re.search(r"<!-- differences -->\n(.*)<!-- /differences -->", text, re.DOTALL)
    assert found is not None
    assert found[1].strip() == markdown().strip()
