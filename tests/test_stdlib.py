"""install(), uninstall(), whichdb(), the runner: old code uses durabledbm, old files stay what they are."""

from __future__ import annotations

import dbm
import dbm.dumb
import importlib
import os
import shelve
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from systems import WINDOWS

import durabledbm
from durabledbm._engine.meta import META_SIZE
from durabledbm.stdlib import install, uninstall, whichdb

_dbm: Any = dbm


def backends() -> list[Any]:
    found = []
    for name in _dbm._names:
        try:
            found.append(importlib.import_module(name))
        except ImportError:
            continue
    return found


def state() -> tuple[Any, ...]:
    names, default, modules = _dbm._names, _dbm._defaultmod, _dbm._modules
    return list(names), default, dict(modules), dbm.whichdb, dbm.open, shelve.open


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    default, modules, which = _dbm._defaultmod, dict(_dbm._modules), dbm.whichdb
    yield
    uninstall()
    _dbm._defaultmod, dbm.whichdb = default, which
    _dbm._modules.clear()
    _dbm._modules.update(modules)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "file")


def is_ours(path: str) -> bool:
    with durabledbm.open(path):
        return True


# What install() changes


def test_dbm_open_makes_our_files(path: str) -> None:
    install()
    with dbm.open(path, "c") as db:
        assert isinstance(db, durabledbm.Database)
        db["k"] = "v"
    assert is_ours(path)
    with dbm.open(path) as db:
        assert db["k"] == b"v"
        assert db.readonly


def test_shelve_open_makes_our_files_and_opens_them_again(path: str) -> None:
    install()
    for n in range(3):
        with shelve.open(path, writeback=True) as shelf:
            assert shelf.setdefault("k", []) == list(range(n))
            shelf["k"].append(n)
    assert is_ours(path)


def test_options_go_to_every_file_that_is_opened(path: str) -> None:
    install(durability="no such")
    with pytest.raises(ValueError, match="no such"):
        dbm.open(path, "c")  # noqa: SIM115
    install(page_size=8192)
    dbm.open(path, "n", 0o600).close()
    assert WINDOWS or Path(path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("module", backends(), ids=lambda module: module.__name__)
def test_existing_files_of_other_formats_open_with_their_own_module(module: Any, path: str) -> None:
    with module.open(path, "c") as db:
        db[b"k"] = b"v"
    install()
    assert dbm.whichdb(path) == module.__name__
    for flag in "rwc":
        with dbm.open(path, flag) as db:
            assert type(db).__module__ != "durabledbm.database"
            assert db[b"k"] == b"v"
    with dbm.open(path, "w") as db:
        db[b"k"] = b"new"
    uninstall()
    with module.open(path, "r") as db:
        assert db[b"k"] == b"new"


def test_dbm_error_catches_everything(path: str) -> None:
    install()
    with pytest.raises(dbm.error):
        dbm.open(path)  # noqa: SIM115
    with dbm.open(path, "c") as db:
        pass
    with pytest.raises(dbm.error):
        db["k"]


def test_the_list_of_names_is_left_alone() -> None:
    before = list(_dbm._names)
    install()
    assert _dbm._names == before


# Early, late, repeated, undone


def run(program: str, *args: str) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *args]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("early", [True, False])
def test_installing_works_before_and_after_the_first_use_of_dbm(path: str, early: bool) -> None:
    run(
        """
        import sys
        import durabledbm.stdlib as stdlib
        path, early = sys.argv[1], sys.argv[2] == "True"
        import dbm, dbm.dumb
        from dbm import open as kept
        dbm.dumb.open(path + "-old", "c").close()
        if not early:
            dbm.open(path + "-first", "n").close()
        before = dbm._defaultmod, dict(dbm._modules), dbm.whichdb
        stdlib.install()
        kept(path, "c").close()
        assert stdlib.whichdb(path) == dbm.whichdb(path) == "durabledbm"
        kept(path + "-old", "w").close()
        stdlib.uninstall()
        assert before == (dbm._defaultmod, dict(dbm._modules), dbm.whichdb)
        kept(path + "-old", "w").close()
        kept(path + "-after", "n").close()
        assert stdlib.whichdb(path + "-after") not in ("durabledbm", "", None)
        assert dbm.whichdb(path) == ""
        """,
        path,
        str(early),
    )


def test_uninstalling_undoes_any_number_of_installs(path: str) -> None:
    before = state()
    for _ in range(3):
        install()
    uninstall()
    assert state() == before
    uninstall()
    assert state() == before
    with pytest.raises(dbm.error):
        dbm.open(path)  # noqa: SIM115


def test_with_undoes_one_install_at_its_end(path: str) -> None:
    before = state()
    with install(page_size=8192):
        with install(durability="no such"), pytest.raises(ValueError, match="no such"):
            dbm.open(path, "c")  # noqa: SIM115
        dbm.open(path, "c").close()
        assert is_ours(path)
    assert state() == before


def test_with_undoes_its_install_when_the_block_fails() -> None:
    before = state()
    with pytest.raises(ZeroDivisionError), install():
        raise ZeroDivisionError
    assert state() == before


def test_what_others_changed_meanwhile_is_not_put_back(path: str) -> None:
    install()
    ours = dbm.whichdb

    def theirs(filename: Any) -> Any:
        return ours(filename)

    dbm.whichdb, _dbm._defaultmod = theirs, dbm.dumb
    durabledbm.open(path, "c").close()
    assert dbm.whichdb(path) == "durabledbm"
    uninstall()
    assert dbm.whichdb is theirs
    assert _dbm._defaultmod is dbm.dumb
    assert dbm.whichdb(path) == ""  # our function, still called by theirs, has no effect any more


def test_an_open_database_stays_open_when_uninstalled(path: str) -> None:
    install()
    with dbm.open(path, "c") as db:
        uninstall()
        db["k"] = "v"
        assert db["k"] == b"v"


# whichdb


def test_whichdb_knows_our_files_under_every_kind_of_name(path: str) -> None:
    durabledbm.open(path, "c").close()
    for name in (path, os.fsencode(path), Path(path)):
        assert whichdb(name) == "durabledbm"


def test_whichdb_takes_every_kind_of_name_of_other_files_and_of_none(path: str) -> None:
    dumb = path + "-dumb"
    with dbm.dumb.open(dumb, "c") as db:
        db["k"] = "v"
    with install():
        for name, answer in ((path, None), (dumb, "dbm.dumb")):
            for kind in (str, os.fsencode, Path):
                assert whichdb(kind(name)) == answer
                assert dbm.whichdb(kind(name)) == answer


def test_whichdb_says_what_dbm_says_about_other_files(path: str) -> None:
    assert whichdb(path) is None
    assert whichdb(os.path.dirname(path)) is None
    Path(path).write_bytes(b"something else")
    assert whichdb(path) == ""
    for module in backends():
        with module.open(path + module.__name__, "c") as db:
            db[b"k"] = b"v"
        assert whichdb(path + module.__name__) == module.__name__
    with pytest.raises(TypeError):
        whichdb(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="null"):
        whichdb(path + "\0")


def test_an_empty_file_is_one_of_ours_that_is_not_initialised_yet(path: str) -> None:
    Path(path).touch()
    assert whichdb(path) == "durabledbm"
    assert dbm.whichdb(path) == ""
    install()
    with dbm.open(path, "w") as db:
        db["k"] = "v"
    assert is_ours(path)


def test_an_old_database_wins_over_an_empty_file_of_its_name(path: str) -> None:
    with dbm.dumb.open(path, "c") as db:
        db["k"] = "v"
    Path(path).touch()
    assert whichdb(path) == "dbm.dumb"


@pytest.mark.leaves_damage
def test_a_file_whose_first_page_is_damaged_is_still_recognized(path: str) -> None:
    with durabledbm.open(path, "c") as db:
        db["k"] = "v"
    with open(path, "r+b") as file:
        file.write(bytes(META_SIZE))
    assert whichdb(path) == "durabledbm"
