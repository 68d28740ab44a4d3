"""What `import durabledbm` costs, told by what it imports: time is not the same on two machines, this is."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from systems import IS_ROOT, only_posix
from test_tidy import imported as imported_by
from test_tidy import tree

import durabledbm

ROOT = Path(__file__).parent.parent
MODULES = ("dump", "errors", "export", "remote", "reshard", "restore", "salvage", "shelve")
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
    assert {name for name in modules if name.startswith("durabledbm.cli")} == set()


@pytest.mark.parametrize("name", [*durabledbm.__all__, *MODULES])
def test_every_name_is_live_when_it_is_asked_for(name: str) -> None:
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


# Without crc32c: `-S` leaves out the packages that are installed.


def without_packages(*words: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = str(ROOT) if packages is None else f"{packages}{os.pathsep}{ROOT}"
    command = [sys.executable, "-S", *words]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    "words", [("get", "x", "k"), ("--help",), ("list", "-h"), ("exec", "x.py"), ("tour",), ("completion", "bash"), ()]
)
def test_without_crc32c_a_command_is_one_line_with_the_way_to_install_it(words: tuple[str, ...]) -> None:
    for program in (["-m", "durabledbm"], ["-c", "from durabledbm.__main__ import main; main()"]):
        done = without_packages(*program, *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert f"'{sys.executable} -m pip install crc32c'" in done.stderr


@pytest.mark.parametrize("code", ["durabledbm.open('x', 'c')", "from durabledbm import whichdb", "durabledbm.shelve"])
def test_without_crc32c_the_first_use_says_how_to_install_it_and_shows_next_to_no_traceback(code: str) -> None:
    done = without_packages("-c", f"import durabledbm; {code}")
    assert done.returncode == 1
    assert done.stderr.count("  File ") == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: the package crc32c is missing")
    assert f"'{sys.executable} -m pip install crc32c'" in last


def test_a_crc32c_that_cannot_be_imported_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "crc32c.py").write_text("raise ImportError('undefined symbol')")
    done = without_packages("-m", "durabledbm", "list", "x", packages=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "(undefined symbol)" in done.stderr
    assert "pip install crc32c --force-reinstall" in done.stderr
USES = """
import os, sys
import durabledbm
db = durabledbm.open("db", "c", durability=sys.argv[1])
log = durabledbm.changelog.ChangeLog("log")
LOST
assert db.stats().entries == 0
db.update({b"%d" % number: bytes(1000) for number in range(300)})
with db.transaction():
    db["a"] = "1"
    del db["1"]
with db.snapshot() as snapshot:
    assert len(list(snapshot)) == len(list(db.items())) == 300
assert db.check() == []
db.reorganize()
db.sync()
for name in ("whichdb", "migrate"):
    try:
        getattr(durabledbm, name)
    except durabledbm.error as exc:
        assert f"durabledbm.{name} cannot be imported" in str(exc), exc
    else:
        raise AssertionError("it can be imported")
"""

FILES = """
with durabledbm.changelog.ChangeLog("log in the new root") as log, db.attach(log):
    db["b"] = "2"
db.backup("copy")
assert durabledbm.open("copy").stats().entries == len(db) == 301
db.close()
"""

WITHOUT_DESCRIPTORS = """
for use in (lambda: db.attach(log), lambda: db.backup("copy"), lambda: durabledbm.open("db")):
    try:
        use()
    except durabledbm.error as exc:
        assert exc.errno == 24, exc
    else:
        raise AssertionError("there are descriptors")
db.close()
"""


def run(program: str, place: Path, *arguments: str) -> None:
    site = [path for path in sys.path if path.endswith("-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *site])}
    subprocess.run([sys.executable, "-S", "-c", program, *arguments], check=True, cwd=place, env=environment)


@pytest.mark.parametrize("durability", ["full", "interval"])
@pytest.mark.skipif(not IS_ROOT, reason="only root can change the root directory")
def test_an_open_handle_needs_no_python_from_the_file_system(tmp_path: Path, durability: str) -> None:
    run(USES.replace("LOST", "os.chroot('.')") + FILES, tmp_path, durability)


@only_posix("Windows does not limit descriptors of files")
@pytest.mark.parametrize("durability", ["full", "interval"])
def test_an_open_handle_needs_no_descriptors_but_for_other_files(tmp_path: Path, durability: str) -> None:
    lost = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/dev/fd')) - 1,) * 2)"
    run(USES.replace("LOST", lost) + WITHOUT_DESCRIPTORS, tmp_path, durability)


def test_what_a_handle_offers_is_imported_with_it() -> None:
    """The same, said of the source: none of the modules that a handle or a log needs imports anything later."""
    late = {("_files.temporary", "signal"): "if it cannot be imported any more, the next run cleans up",
            ("_engine.checksum", "crc32c"): "at once, if the extension is not found by itself"}  # fmt: skip
    needed, found = {"changelog", "database"}, set()
    before = {"_files.opening"}  # its work is done when there is a handle
    while more := {other for module in needed for other in imported_by(module)} - needed - before:
        needed |= more
    for module in needed:
        for function in ast.walk(tree(module)):
            if isinstance(function, (ast.FunctionDef, ast.Lambda)):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import):
                        found |= {(module, alias.name) for alias in node.names}
                    elif isinstance(node, ast.ImportFrom):
                        found.add((module, node.module or ""))
    assert found == set(late)
