"""Child processes of one in which `install()` or `durabledbm exec` is in effect: which use durabledbm, and how."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from systems import HAS_SYMLINKS, WINDOWS, needs_symlinks

from durabledbm._process import children
from durabledbm._process.children import environment, options_from_parent
from durabledbm._process.children.sitecustomize import VARIABLE, announce
from durabledbm.cli.app import main
from durabledbm.stdlib import inherit, install, uninstall, whichdb

ROOT = Path(__file__).parent.parent

Run = Callable[..., str]

CREATE = "import dbm, sys; dbm.open(sys.argv[1], 'c').close()"
"""A program that makes a file, of whatever kind `dbm` makes in it."""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv(VARIABLE, raising=False)
    yield
    uninstall()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a program in an interpreter of its own, in an empty directory; what it prints."""

    def run(program: str, *words: str, options: tuple[str, ...] = (), env: dict[str, str] | None = None) -> str:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(program))
        command = [sys.executable, *options, "program.py", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


def kind(path: Path) -> str | None:
    found = whichdb(path)
    for name in path.parent.glob(path.name + "*"):  # as dbm.dumb, the other module that a file may be of
        name.unlink()
    return found


# -- the environment ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "", "/a", "/a:/b", ":/a"])
def test_the_environment_is_changed_and_put_back(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    if path is None:
        monkeypatch.delenv("PYTHONPATH")
    else:
        monkeypatch.setenv("PYTHONPATH", path)
    before = dict(os.environ)
    with install(durability="process"):
        with install(timeout=None):
            assert options_from_parent() == {"timeout": None}
        assert options_from_parent() == {"durability": "process"}
        entries = os.environ["PYTHONPATH"].split(os.pathsep)
        assert entries[1:] == (path.split(os.pathsep) if path else [])
    assert {"PYTHONPATH": "", **os.environ} == {"PYTHONPATH": "", **before}


def test_what_others_add_to_the_path_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with install():
        os.environ["PYTHONPATH"] = "/new" + os.pathsep + os.environ["PYTHONPATH"]
    assert os.environ["PYTHONPATH"].split(os.pathsep) == ["/new", str(ROOT)]


def test_an_option_that_no_child_could_be_told_is_refused() -> None:
    before = dict(os.environ)
    with pytest.raises(TypeError, match="child processes"):
        install(timeout=object())
    assert dict(os.environ) == before


def test_a_garbled_message_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "{", "[]", "{}", '{"options": 3}'):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.warns(RuntimeWarning, match="not heard"):
            inherit()


# -- subprocess --------------------------------------------------------------------------------------


def child(path: Path, *options: str, program: str = CREATE, env: dict[str, str] | None = None) -> str:
    """What a child that makes the file `path` writes to standard error."""
    done = subprocess.run(
        [sys.executable, *options, "-c", program, str(path)], capture_output=True, text=True, check=True, env=env,
        cwd=path.parent,
    )  # fmt: skip
    return done.stderr


def test_a_child_has_the_same_options_until_they_are_undone(tmp_path: Path) -> None:
    told = "import dbm, sys; db = dbm.open(sys.argv[1], 'c'); print(db._pipeline.timeout, file=sys.stderr)"
    with install(timeout=7.0):
        assert child(tmp_path / "one", program=told) == "7.0\n"
        nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {told!r}, sys.argv[1]])"
        if not WINDOWS:  # where it does not put the words of a command line in quotation marks
            nested = f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', {told!r}, sys.argv[1]])"
        assert child(tmp_path / "two", program=nested) == "7.0\n"
    assert kind(tmp_path / "one") == kind(tmp_path / "two") == "durabledbm"
    assert child(tmp_path / "three") == ""
    assert kind(tmp_path / "three") != "durabledbm"


def test_a_child_that_does_not_use_dbm_imports_nothing_and_is_as_without_us(tmp_path: Path) -> None:
    program = "import sys; print(sys.path, sorted(sys.modules), sys.argv, file=sys.stderr)"
    plain = child(tmp_path, program=program)
    with install():
        assert child(tmp_path, program=program) == plain


def test_a_child_that_only_looks_for_dbm_finds_what_there_is(tmp_path: Path) -> None:
    program = """if True:
        import importlib.util, sys
        spec = importlib.util.find_spec("dbm")
        print(spec.name, spec.origin, len(spec.loader.get_source("dbm") or ""), "dbm" in sys.modules, file=sys.stderr)
        import dbm
        print(dbm.__loader__, dbm.__spec__.loader is dbm.__loader__, file=sys.stderr)
        print([finder.name for finder in sys.meta_path if hasattr(finder, "action")][:-1], file=sys.stderr)
        """
    plain = child(tmp_path / "file", program=program)
    with install():
        assert hidden(child(tmp_path / "file", program=program)) == hidden(plain)


def hidden(text: str) -> str:
    """Without addresses."""
    return re.sub("0x[0-9a-f]+", "", text)


def test_a_child_may_undo_it_for_itself_and_its_children(tmp_path: Path) -> None:
    program = f"""
        import subprocess, sys, durabledbm
        durabledbm.uninstall()
        exec({CREATE!r})
        subprocess.run([sys.executable, "-c", {CREATE!r}, sys.argv[1] + "-child"], check=True)
        durabledbm.install()
        subprocess.run([sys.executable, "-c", {CREATE!r}, sys.argv[1] + "-again"], check=True)
        """
    with install():
        assert child(tmp_path / "file", program=textwrap.dedent(program)) == ""
    assert kind(tmp_path / "file-again") == "durabledbm"
    assert "durabledbm" not in (kind(tmp_path / "file-child"), kind(tmp_path / "file"))


def test_a_child_with_another_environment_or_one_that_ignores_it_has_plain_dbm(tmp_path: Path) -> None:
    other = {**os.environ}
    with install():
        for options in (["-E"], ["-I"], ["-S"]):
            assert child(tmp_path / "file", *options) == ""
            assert kind(tmp_path / "file") != "durabledbm"
        assert child(tmp_path / "file", env=other) == ""
        assert kind(tmp_path / "file") != "durabledbm"


def test_the_environments_own_sitecustomize_is_imported_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import sys; sys.own = __file__, __name__\n")
    monkeypatch.setenv("PYTHONPATH", f"{own}{os.pathsep}{ROOT}")
    program = f"{CREATE}; import sitecustomize; print(sys.own, sitecustomize.__file__, file=sys.stderr)"
    plain = child(tmp_path / "file", program=program)
    assert kind(tmp_path / "file") != "durabledbm"
    with install():
        assert child(tmp_path / "file", program=program) == plain != ""
    assert kind(tmp_path / "file") == "durabledbm"
    (own / "sitecustomize.py").write_text("import no_such_module\n")
    plain = child(tmp_path, program="")
    assert "no_such_module" in plain
    with install():
        assert child(tmp_path, program="") == plain


@pytest.mark.skipif(
    bool(list(importlib.metadata.distributions(name="durabledbm"))), reason="every child of this interpreter has it"
)
def test_a_child_that_has_no_durabledbm_takes_the_parents_or_warns(tmp_path: Path) -> None:
    """As the interpreter of another environment, started from this one."""
    copied = tmp_path / "elsewhere" / "durabledbm" / "_process" / "children"
    copied.mkdir(parents=True)
    for name in ("__init__.py", "sitecustomize.py"):
        shutil.copy(ROOT / "durabledbm" / "_process" / "children" / name, copied)
    env = {**environment({}), "PYTHONPATH": str(copied), "PYTHONWARNINGS": "default"}
    assert child(tmp_path / "file", env=env) == ""
    assert kind(tmp_path / "file") == "durabledbm"
    told = json.loads(env[VARIABLE])
    (copied.parents[1] / "stdlib.py").write_text("no syntax of this Python\n")
    elsewhere = str(copied.parents[2])
    for change in ({"python": "cpython-27"}, {"path": [str(tmp_path)]}, {"path": 3}, {"path": [elsewhere]}):
        env[VARIABLE] = json.dumps({**told, **change})
        said = child(tmp_path / "file", env=env)
        assert "RuntimeWarning: dbm and shelve do not use durabledbm in this process" in said
        assert kind(tmp_path / "file") != "durabledbm"


def test_announcing_twice_is_as_announcing_once() -> None:
    environ = {"PYTHONPATH": "/a"}
    announce(environ, "x")
    once = dict(environ)
    announce(environ, "x")
    assert environ == once
    announce(environ, None)
    assert environ == {"PYTHONPATH": "/a"}


# -- multiprocessing ---------------------------------------------------------------------------------


POOL = """
    import multiprocessing, os, shelve, sys, durabledbm

    def put(name):
        with shelve.open(name) as shelf:
            shelf["pid"] = os.getpid()
            return getattr(getattr(shelf.dict, "_pipeline", None), "timeout", None)

    if __name__ == "__main__":
        method, order = sys.argv[1:]
        context = multiprocessing.get_context(method)
        for number, step in enumerate(order):
            if step == "i":
                durabledbm.install(timeout=float(number))
            elif step == "u":
                durabledbm.uninstall()
            else:
                with context.Pool(1) as pool:
                    print(pool.apply(put, [f"file{number}"]))
    """
"""A program that does what the letters say: i, install; u, uninstall; p, a process that opens a shelf."""


@pytest.mark.parametrize(
    ("method", "order", "timeouts"),
    [
        ("spawn", "ipupip", "0.0 None 4.0"),
        ("forkserver", "pipuipup", "None 1.0 4.0 None"),
        ("fork", "ipup", "0.0 None"),
    ],
)
def test_children_of_multiprocessing_do_what_was_last_said(
    run: Run, method: str, order: str, timeouts: str
) -> None:
    """Also those of a fork server that was started before."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    assert run(POOL, method, order).split() == timeouts.split()


@pytest.mark.parametrize("option", ["-E", "-I", "-S"])
def test_children_of_multiprocessing_are_reached_where_the_environment_is_ignored(run: Run, option: str) -> None:
    program = "import sys; sys.path[:0] = " + repr([str(ROOT), *sys.path]) + "\n" + textwrap.dedent(POOL)
    assert run(program, "spawn", "ip", options=(option,)).split() == ["0.0"]


def test_multiprocessing_is_as_it_was_when_all_is_undone(run: Run) -> None:
    program = """
        import durabledbm, sys
        durabledbm.install()
        assert "multiprocessing.spawn" not in sys.modules
        durabledbm.uninstall()
        assert [type(f) for f in sys.meta_path if not hasattr(f, "invalidate_caches")] == before
        durabledbm.install()
        from multiprocessing import spawn
        changed = spawn.get_preparation_data
        durabledbm.install()
        assert spawn.get_preparation_data is changed
        assert "durabledbm" in changed("name")
        durabledbm.uninstall()
        assert spawn.get_preparation_data is changed.original
        assert [type(finder) for finder in sys.meta_path if not hasattr(finder, "invalidate_caches")] == before
        """
    run("import sys\nbefore = [type(f) for f in sys.meta_path if not hasattr(f, 'invalidate_caches')]\n"
        + textwrap.dedent(program))


# -- exec --------------------------------------------------------------------------------------------


def test_exec_reaches_children(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(POOL))
    command = [sys.executable, "-m", "durabledbm", "exec", "--timeout", "9", "program.py", "spawn", "p"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("9.0\n", "")
    assert kind(tmp_path / "file0") == "durabledbm"


SHOW = """
import sys
main = sys.modules["__main__"]
shown = {name: type(value) if name in ("__loader__", "__builtins__") else getattr(value, "name", value)
         for name, value in vars(main).items() if name.startswith("__")}
print(shown, sys.argv, sys.path, sys.flags, sys.orig_argv, sorted(sys.modules), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a script, a link to it, a package, a directory and an archive that can be run."""
    place = tmp_path_factory.mktemp("programs")
    (place / "script.py").write_text(SHOW)
    if HAS_SYMLINKS:
        (place / "link.py").symlink_to("script.py")
    for name in ("package", "directory"):
        (place / name).mkdir()
        (place / name / "__main__.py").write_text(SHOW)
    (place / "package" / "__init__.py").touch()
    shutil.make_archive(str(place / "archive"), "zip", place / "directory")
    (place / "archive.zip").rename(place / "archive.pyz")
    return place


@pytest.mark.parametrize(
    "words",
    [
        "script.py a --timeout -x", pytest.param("link.py", marks=needs_symlinks),
        "./script.py -- a", "directory a", "archive.pyz a", "-m package a -c",
        "-m script", "-c import\tsys,script; a", "- a", "-uX dev -W error -O script.py -m", "directory/nothing.py",
        "-m nothing", ".", "-c 1/0", "-c import\tsys;\tsys.exit(7)",
    ],
)  # fmt: skip
def test_exec_takes_what_python_takes_and_is_as_python(programs: Path, words: str) -> None:
    argv = [word.replace("\t", " ") for word in words.split(" ")]
    python, ours = (
        subprocess.run(
            [sys.executable, *prefix, *argv], capture_output=True, text=True, check=False, cwd=programs, input=SHOW,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        for prefix in ([], ["-m", "durabledbm", "exec"])
    )  # fmt: skip
    if words == "directory/nothing.py":  # in our own words
        assert ours.stderr == "durabledbm exec: directory/nothing.py: no such file\n"
    else:
        assert ours.stderr == python.stderr
    assert (ours.returncode, ours.stdout) == (python.returncode, python.stdout)


@pytest.mark.parametrize("words", ["-E a.py", "-uI -m x", "-W error -S a.py", "-X dev -XI -sE -c x"])
def test_exec_refuses_what_would_make_python_ignore_it(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", *words.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("durabledbm exec: python -")
    assert said.count("\n") == 1


def test_exec_from_a_directory_that_cannot_stand_in_a_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_FILE", f"/a{os.pathsep}b/sitecustomize.py")
    with pytest.raises(ValueError, match="PYTHONPATH"):
        environment({})


@pytest.mark.parametrize("words", ["", "--timeout 3", "--", "--timeout", "--no-such-option x.py"])
def test_exec_without_a_program_is_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", *words.split()]) == 2
    assert capsys.readouterr().err.count("\n") == 1
