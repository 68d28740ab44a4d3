"""Fixtures that every test shares: a database, and what must be true after each test.

After a test that passed, `check()` must find nothing wrong with any database file that it left in its
`tmp_path`, and it must have left no file open and no thread running. A test that damages a file on purpose
says so: `@pytest.mark.leaves_damage`.
"""

from __future__ import annotations

import gc
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import servers

import durabledbm
from durabledbm._engine.meta import META_SIZE, has_magic

_passed = pytest.StashKey[bool]()

if sys.platform == "win32":
    from durabledbm._engine.disk.windows import WindowsDisk

    _windows_disks: weakref.WeakSet[WindowsDisk] = weakref.WeakSet()

    def _noted(disk: WindowsDisk, *args: Any, **options: Any) -> None:
        _make_disk(disk, *args, **options)
        _windows_disks.add(disk)

    _make_disk, WindowsDisk.__init__ = WindowsDisk.__init__, _noted  # type: ignore[method-assign]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaves_damage: damages a database file on purpose; it is not checked")
    if sys.dont_write_bytecode and "PYTHONPYCACHEPREFIX" not in os.environ:
        # Tests start hundreds of processes. Each would compile the package; so they share a directory for bytecode.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = bytecode = tempfile.mkdtemp(prefix="durabledbm-bytecode-")
        config.add_cleanup(partial(shutil.rmtree, bytecode, ignore_errors=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.fixture
def db_path(tmp_path: Path) -> str:
    """The name of a file that does not exist yet."""
    return str(tmp_path / "test.db")


@pytest.fixture
def db(db_path: str) -> Iterator[durabledbm.Database]:
    """A new, empty database, closed after the test."""
    with durabledbm.open(db_path, "c") as database:
        yield database


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """A PostgreSQL server for all tests of this process."""
    if (reason := servers.postgres_skipped()) is not None:
        pytest.skip(reason)
    with servers.Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    """A Redis server for all tests of this process."""
    if (reason := servers.redis_skipped()) is not None:
        pytest.skip(reason)
    with servers.Redis() as server:
        yield server


@pytest.fixture(autouse=True)
def _sound_databases(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test, every database file that it left is as it should be."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    directory: Path = request.getfixturevalue("tmp_path")
    yield
    if not request.node.stash.get(_passed, False) or request.node.get_closest_marker("leaves_damage"):
        return
    for path in database_files(directory):
        problems = problems_of(path)
        assert not problems, f"{path}: {problems[:5]}"


@pytest.fixture(autouse=True)
def _nothing_leaked(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test, no file is open and no thread runs that was not before it."""
    files, threads = open_files(), set(threading.enumerate())
    yield
    if not request.node.stash.get(_passed, False):
        return  # the traceback of a failure keeps its variables alive
    leaked = open_files() - files
    if leaked:
        gc.collect()  # exceptions that the test caught may have made cycles with its variables
        leaked = open_files() - files
    assert not leaked, f"left open: {sorted(leaked)}"
    deadline = time.monotonic() + 5
    for thread in set(threading.enumerate()) - threads:
        thread.join(max(0, deadline - time.monotonic()))
        assert not thread.is_alive(), f"left running: {thread.name}"


def database_files(directory: Path) -> Iterator[str]:
    """All files below `directory` that claim to be databases of ours."""
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            try:
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    continue
                with open(path, "rb") as file:
                    head = file.read(2 * META_SIZE)
            except OSError:
                continue
            if has_magic(head) or has_magic(head[META_SIZE:]):
                yield path


def problems_of(path: str) -> list[object]:
    """What `check()` finds, or why the file cannot be opened."""
    try:
        with durabledbm.open(path, "r") as database:
            return list(database.check())
    except durabledbm.error as exc:
        return [exc]


def open_files() -> set[tuple[int, str]]:
    """The regular files that this process has open, by descriptor; on Windows, the disks that it has open."""
    result = set()
    if sys.platform == "win32":
        return {(disk._handle, disk.path) for disk in list(_windows_disks) if disk._handle is not None}
    for name in os.listdir("/dev/fd"):
        link = f"/dev/fd/{name}"
        try:
            if stat.S_ISREG(os.fstat(int(name)).st_mode):
                result.add((int(name), os.readlink(link) if os.path.islink(link) else ""))
        except OSError:
            continue
    return result
