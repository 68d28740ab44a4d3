"""README.md and docs/: every example runs, every link leads somewhere, and what is made from the code is up to date.

How examples are written is in `examples`.
"""

from __future__ import annotations

import codeop
import inspect
import re
import shelve
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import make_reference
import pytest
import test_tidy
from examples import ROOT, Reader, examples, pages
from systems import only_posix

import durabledbm
import durabledbm.shelve
from durabledbm import remote, transaction
from durabledbm._engine import allocator, balance, locks, meta, prepare, store
from durabledbm._files.opening import DEFAULT_CACHE_SIZE

COMMANDS = "docs/cli.md"
"""Its examples stand for themselves: none needs what one before it did."""


@pytest.fixture
def serve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has `postgresql:///postgres` lead to a server, if that stands in the text."""

    def serve(text: str) -> None:
        if "postgresql:///" in text:
            server = request.getfixturevalue("postgres")
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)

    return serve


@only_posix("the examples are for a POSIX shell, and print what such a system says")
@pytest.mark.parametrize("page", [page for page in pages() if page != COMMANDS and examples(page)])
@pytest.mark.leaves_damage
def test_every_example_of_a_page_runs_in_the_order_of_the_page(
    page: str, tmp_path: Path, serve: Callable[[str], None]
) -> None:
    serve("".join(example.code for example in examples(page) if example.reason is None))
    reader = Reader(tmp_path)
    try:
        for example in examples(page):
            if example.reason is None:
                reader.follow(example)
    finally:
        durabledbm.uninstall()


@pytest.mark.parametrize("page", [page for page in pages() if examples(page)])
def test_every_example_in_python_can_be_pasted_into_the_interactive_interpreter(page: str) -> None:
    for example in examples(page):
        if example.language != "python" or example.reason is not None:
            continue
        pending: list[str] = []
        for line in [*example.code.split("\n"), ""]:
            pending.append(line)
            if codeop.compile_command("\n".join(pending), example.place, "single") is not None:
                pending = []
        assert not any(pending), example.place


# -- the examples of the command line ----------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all the files that the examples of the help speak of."""
    place = tmp_path_factory.mktemp("files")
    (place / "logo.png").write_bytes(b"\x89PNG")
    (place / "crawler.py").write_text("import dbm\ndbm.open('pages', 'c').close()\n")
    with durabledbm.open(place / "app.db", "c") as db:
        db.update({"user:1": "Ada", "user:2": "Grace", "logo": b"\x89PNG", b"caf\xe9": "latin"})
        log = durabledbm.changelog.ChangeLog(place / "app.log")
        with db.attach(log), mock.patch("time.time_ns", return_value=in_ns("2026-05-01T11:00")):
            db["user:3"] = "before the backup"
            db.backup(place / "backup.db")
            db["user:4"] = "before noon"
        log.close()
        db.checkpoint("before")
        db.checkpoint("after")
        db.backup(place / "app.back")
    with durabledbm.shelve.open(place / "shelf.db") as shelf:
        shelf["list"] = [1, 2]
    shutil.copy(place / "app.db", place / "broken.db")
    make_others(place)
    return place


def in_ns(moment: str) -> int:
    return int(time.mktime(time.strptime(moment, "%Y-%m-%dT%H:%M"))) * 10**9


def make_others(place: Path) -> None:
    """Files of other kinds, and a dump in the form in which one goes through a pipe."""
    from dbm import dumb

    from durabledbm.dump import dump

    with dumb.open(str(place / "sessions"), "c") as sessions:
        sessions["1"] = "x"
    with dumb.open(str(place / "old.gdbm"), "c") as old:
        old["1"] = "x"
    with durabledbm.open(place / "app.db") as db:
        dump(db, place / "app.dump")
        dump(db, place / "app.dump.zst")


STAND_INS = {"jq": 'cat', "mail": "cat", "zstd": 'if [ "$1" = -dc ]; then cat "$2"; else cat; fi'}
"""Programs that the examples use and that a machine may lack: what they must be for the example to go on."""

LINES = [
    pytest.param(line, id=line)
    for example in examples(COMMANDS)
    if example.reason is None
    for line in example.code.splitlines()
]


@only_posix("the examples are for a POSIX shell, and print what such a system says")
@pytest.mark.parametrize("line", LINES)
def test_every_example_of_the_command_line_runs(
    line: str, files: Path, tmp_path: Path, serve: Callable[[str], None]
) -> None:
    serve(line)
    if "postgresql:///" in line:
        with durabledbm.remote.open("postgresql:///postgres", "n", table="app") as db:
            db.update({"user:1": "Ada"} if "--from" in line else {})
    reader = Reader(tmp_path)
    shutil.copytree(files, reader.directory, dirs_exist_ok=True)
    for name, code in STAND_INS.items():
        program = reader.programs / name
        program.write_text(f"#!/bin/sh\n{code}\n")
        program.chmod(0o755)
    if "dbm.gnu" in line:
        pytest.importorskip("dbm.gnu")
    reader.shell(line, line)


# -- pages and what they speak of ---------------------------------------------------------------------


def test_the_reference_of_the_python_interface_is_what_the_docstrings_say() -> None:
    assert make_reference.PAGE.read_text("utf-8") == make_reference.markdown(), "python tests/support/make_reference.py"
    assert make_reference.undocumented() == []


def test_every_public_name_is_in_the_reference() -> None:
    text = make_reference.markdown()
    missing = [name for name in durabledbm.__all__ if f"durabledbm.{name}" not in text and name != "__version__"]
    assert missing == []


def test_what_dir_shows_of_a_handle_is_in_the_reference(tmp_path: Path) -> None:
    documented = set(re.findall(r"^#### `\w+\.(\w+)`", make_reference.markdown(), re.MULTILINE))
    with (
        durabledbm.open(tmp_path / "db", "c") as db, db.snapshot() as snapshot,
        durabledbm.open_sharded(tmp_path / "sharded", "c", shards=2) as sharded,
        durabledbm.shelve.open(tmp_path / "shelf") as shelf,
    ):  # fmt: skip
        for handle in (db, snapshot, sharded, shelf):
            public = {name for name in dir(handle) if not name.startswith("_")}
            stdlib = {*dir(shelve.Shelf), *vars(shelve.Shelf({})), "serializer", "deserializer"}  # these since 3.15
            known = stdlib if handle is shelf else {"path"}
            assert public - documented - known == set()


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_to_a_file_and_to_a_heading(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.is_file(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@only_posix("the names of the pages are as on POSIX systems")
def test_every_page_is_in_the_site_and_can_be_reached() -> None:
    navigation = (ROOT / ".mkdocs.yml").read_text("utf-8")
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    guide = (ROOT / "docs" / "guide" / "index.md").read_text("utf-8")
    for page in pages():
        name = page.removeprefix("docs/")
        if page == "README.md":
            continue
        assert name in navigation, page
        assert name == "index.md" or name in index or name.removeprefix("guide/") in guide, page


def test_a_block_that_is_not_run_says_why() -> None:
    reasons = [example.reason for page in pages() for example in examples(page)]
    assert all(reason is None or len(reason) > 10 or reason == "a signature" for reason in reasons)
    assert reasons.count(None) > 60


def test_the_readme_has_its_two_commands_on_one_line_each() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"^python3 -m venv .*$", text, re.MULTILINE)
    assert [command.rpartition("/")[2] for command in commands] == ["durabledbm tour", "python -m pytest"]


# -- figures -----------------------------------------------------------------------------------------


def default(function: Callable[..., object], name: str) -> object:
    return inspect.signature(function).parameters[name].default


FIGURES = {
    ("docs/reference.md", r"take more than (\d+) MiB of memory"): transaction.SPILL_SIZE / 2**20,
    ("docs/guide/transactions.md", r"take more than (\d+) MiB"): transaction.SPILL_SIZE / 2**20,
    ("docs/guide/processes.md", r"`timeout` seconds \((\d+) by\s+default\)"): default(durabledbm.open, "timeout"),
    ("docs/guide/server.md", r"`max_connections` \((\d+)\)"): default(remote.open, "max_connections"),
    ("docs/reference.md", r"timeout=([\d.]+), page_size"): default(durabledbm.open, "timeout"),
    ("docs/reference.md", r"interval=([\d.]+), timeout"): default(durabledbm.open, "interval"),
    ("docs/reference.md", r"cache_size=(\d+) \* 2\*\*20"): DEFAULT_CACHE_SIZE / 2**20,
    ("docs/design.md", r"reading (\d+) bytes at the border of the two slots"): meta.STAMP_SIZE,
    ("docs/design.md", r"A commit of more than (\d+) pages"): prepare.MOST_PAGES,
    ("docs/design.md", r"at most (\d+) look-ups in a row skip it"): store._MOST_STAMPS,
    ("docs/concurrency.md", r"look-ups at least once in (\d+)"): store._MOST_STAMPS,
    ("docs/design.md", r"grows the file up to ([\d.]+) times what is in use"): allocator._SLACK,
    ("docs/design.md", r"Below (\d+) % a leaf merges"): 100 * balance._UNDERFULL_BELOW,
    ("docs/design.md", r"below (\d+) % it always merges"): 100 * balance._JOIN_BELOW,
    ("docs/concurrency.md", r"take it again (\d+) times without the gate"): locks._REENTRIES,
    ("docs/concurrency.md", r"for (\d+) milliseconds"): 1000 * locks._REENTRY_TIME,
    ("docs/contributing.md", r"(\d+) lines a file"): test_tidy.LINES_OF_A_FILE,
    ("docs/contributing.md", r"(\d+) a function"): test_tidy.LINES_OF_A_FUNCTION,
}
"""Limits and defaults that pages name, and where the code defines them."""


@pytest.mark.parametrize(("page", "pattern"), FIGURES)
def test_a_figure_in_a_page_is_that_of_the_code(page: str, pattern: str) -> None:
    (figure,) = re.findall(pattern, (ROOT / page).read_text("utf-8"))
    assert float(figure) == FIGURES[page, pattern]
