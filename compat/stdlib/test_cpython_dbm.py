"""CPython's own tests of dbm modules, taken from the running interpreter and pointed at durabledbm.

The classes are CPython's, unmodified; only the module that they test is ours. What can't pass is skipped by
name, with the reason, in `SKIPPED`, and a test sees to it that the list names nothing that does not exist.
"""

from __future__ import annotations

import dbm
import os
import subprocess
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import durabledbm
import durabledbm.stdlib

test_dbm = pytest.importorskip("test.test_dbm", reason="this Python comes without its tests")
mapping_tests = pytest.importorskip("test.mapping_tests", reason="this Python comes without its tests")
try:
    from test import test_dbm_sqlite3
except Exception:  # unittest.SkipTest without sqlite3, ImportError before 3.13
    test_dbm_sqlite3 = None

NO_NUMBERS = "int and float are a TypeError: no other dbm module takes them, as text"
NOT_AN_ERROR_OF_THE_FILE = "None is a TypeError, as in dbm.gnu and dbm.dumb, not an error of the file"
STORES_AN_INT = "stores an int; test_iterators_end_when_the_database_is_closed, below, says the same with str"
PRIVATE = "tests a private function that makes SQLite URIs"
SQLITE_FILE = "damages the file by way of sqlite3"
SKIPPED = {
    "CorruptDatabase.test_corrupt_force_new": SQLITE_FILE,
    "CorruptDatabase.test_corrupt_readwrite": SQLITE_FILE,
    "DataTypes.test_datatypes_keys": NO_NUMBERS,
    "DataTypes.test_datatypes_replace_coerced": NO_NUMBERS,
    "DataTypes.test_datatypes_values": NO_NUMBERS,
    "Misuse.test_misuse_iter_close1": STORES_AN_INT,
    "Misuse.test_misuse_iter_close2": STORES_AN_INT,
    "ReadWrite.test_readwrite_null_key": NOT_AN_ERROR_OF_THE_FILE,
    "ReadWrite.test_readwrite_null_value": NOT_AN_ERROR_OF_THE_FILE,
    "URI.test_uri_substitutions": PRIVATE,
    "URI.test_uri_windows": PRIVATE,
}
"""Those of CPython's tests for dbm.sqlite3 that do not apply. Of the tests for all dbm modules, all do."""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with durabledbm.stdlib.install():
        yield


class TestAnyDBM(test_dbm.AnyDBMTestCase, unittest.TestCase):  # type: ignore[misc,name-defined]
    """What CPython expects of every dbm module."""

    module = durabledbm


class TestWhichDB(test_dbm.WhichDBTestCase):  # type: ignore[misc,name-defined]
    """CPython's tests of dbm.whichdb, with our files among the others."""

    def setUp(self) -> None:
        super().setUp()
        self.dbm = dbm  # CPython takes a fresh copy of the module, on which nothing is installed

    @pytest.fixture(autouse=True)
    def with_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        others = test_dbm.dbm_iterator
        monkeypatch.setattr(test_dbm, "dbm_iterator", lambda: [durabledbm, *others()])


class TestMappingProtocol(mapping_tests.BasicTestMappingProtocol):  # type: ignore[misc,name-defined]
    """CPython's tests of mappings, on bytes."""

    type2test = durabledbm.Database

    def _reference(self) -> dict[bytes, bytes]:
        return {b"1": b"2", b"key1": b"value1", b"key2": b"value2"}

    def _empty_mapping(self) -> durabledbm.Database:
        self.count = getattr(self, "count", 0) + 1
        db = durabledbm.open(f"mapping{self.count}", "n")
        self.addCleanup(db.close)
        return db


def sqlite_cases() -> Iterator[tuple[str, type]]:
    for name, case in sorted(vars(test_dbm_sqlite3).items() if test_dbm_sqlite3 else ()):
        if isinstance(case, type) and issubclass(case, unittest.TestCase) and not name.startswith("_"):
            yield name, case


def pointed_at_us(name: str, case: Any) -> type:
    """A subclass of one of the classes of test_dbm_sqlite3, which reach their module by a global name."""

    def db_content(self: Any) -> tuple[list[bytes], list[bytes]]:
        with durabledbm.open(self.filename) as other:
            return list(other), list(other.values())

    def patched(self: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(test_dbm_sqlite3, "dbm_sqlite3", durabledbm)

    members = {"db_content": db_content, "patched": pytest.fixture(autouse=True)(patched)}
    for method in dir(case):
        reason = SKIPPED.get(f"{name}.{method}")
        if reason is not None:
            members[method] = unittest.skip(reason)(getattr(case, method))
    return type(f"TestSqlite{name}", (case,), members)


for _name, _case in sqlite_cases():
    globals()[f"TestSqlite{_name}"] = pointed_at_us(_name, _case)


@pytest.mark.skipif(test_dbm_sqlite3 is None, reason="CPython has tests for dbm.sqlite3 since 3.13")
def test_the_list_of_skipped_tests_names_existing_ones() -> None:
    existing = {f"{name}.{method}" for name, case in sqlite_cases() for method in dir(case)}
    assert set(SKIPPED) <= existing


def test_the_document_names_every_skipped_test() -> None:
    text = (Path(__file__).parents[2] / "docs" / "compat.md").read_text()
    assert all(f"`{name}`" in text for name in SKIPPED)


def test_iterators_end_when_the_database_is_closed() -> None:
    with durabledbm.open("file", "c") as db:
        db.update({"1": "1", "2": "2"})
        fresh, begun = iter(db), iter(db)
        next(begun)
    for iterator in (fresh, begun):
        with pytest.raises(durabledbm.error):
            next(iterator)


MODULES = ["test_dbm", "test_dbm_dumb", "test_dbm_gnu", "test_dbm_ndbm", "test_dbm_sqlite3", "test_shelve"]


@pytest.mark.parametrize("module", MODULES)
def test_cpythons_tests_of_its_own_modules_pass_while_durabledbm_is_installed(module: str) -> None:
    program = (
        "import unittest, durabledbm.stdlib as stdlib\n"
        "stdlib.install()\n"
        f"result = unittest.main('test.{module}', argv=['test'], exit=False, verbosity=0).result\n"
        "assert result.wasSuccessful() and result.testsRun > 0\n"
    )
    path = os.path.dirname(os.path.dirname(durabledbm.__file__))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "ModuleNotFoundError: No module named 'test." in result.stderr or "SkipTest" in result.stderr:
        pytest.skip(f"this Python has no {module}, or not what it tests")
    assert result.returncode == 0, result.stderr
