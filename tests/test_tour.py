"""The tour: it runs on a few files, tells the truth, notices what is wrong, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from systems import needs_sources

import durabledbm
from durabledbm.cli.app import main
from durabledbm.cli.tour import killing, tour
from durabledbm.cli.tour.rivals import default_backend, in_memory, on_disk, sources
from durabledbm.cli.tour.speed import contenders, measure
from durabledbm.cli.tour.stage import Stage, speed_of
from durabledbm.cli.tour.steps import Tour, _told, kill


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files go where the test can look for them."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    monkeypatch.setattr("durabledbm.cli.tour.speed._COUNT", 500)
    return directory


@needs_sources
def test_the_tour_ends_well_and_leaves_nothing_behind(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert tour(files=60, colour=False, width=80, budget=0.01)
    shown = capsysbinary.readouterr().out.decode()
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "\x1b" not in shown
    assert re.findall(r"^(\d)  ", shown, re.MULTILINE) == list("1234567")
    assert "60 source files" in shown
    assert "5 kills" in shown
    assert default_backend() in shown
    assert os.listdir(here) == []


@needs_sources
def test_the_files_can_be_kept_and_looked_at(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    directory = str(tmp_path / "kept")
    assert tour(keep=directory, files=30, colour=True, budget=0.01)
    assert "\x1b[" in capsysbinary.readouterr().out.decode()
    with durabledbm.open(os.path.join(directory, "tour.db")) as db:
        assert dict(db.items()) == sources(30)
    assert main(["tour", "--keep", directory]) == 2
    assert "not empty" in capsysbinary.readouterr().err.decode()
    assert main(["tour", "--files", "0"]) == 2


@needs_sources
def test_the_data_are_the_sources_of_this_python() -> None:
    files = sources()
    assert len(files) > 100
    assert files[b"os.py"] == Path(os.__file__).read_bytes()
    assert not any(b"site-packages" in name for name in files)


# -- killing -----------------------------------------------------------------------------------------


def test_no_acknowledged_write_is_lost_with_a_killed_process(tmp_path: Path) -> None:
    path = str(tmp_path / "killed.db")
    first = killing.kill_while_writing("durabledbm", path, at_least=30)
    assert first.acknowledged >= 30
    second = killing.kill_while_writing("durabledbm", path, start=first.acknowledged, at_least=5)
    assert second.acknowledged >= first.acknowledged + 5
    for result in (first, second):
        assert (result.missing, result.wrong, result.failure) == (0, 0, "")


def test_what_is_missing_or_wrong_after_a_kill_is_noticed(tmp_path: Path) -> None:
    path = str(tmp_path / "written.db")
    with durabledbm.open(path, "c") as db:
        for number in range(70):
            db[killing.key_of(number)] = killing.value_of(number)
    assert killing._compared("durabledbm", path, 70)[:3] == (70, 0, 0)
    assert killing._compared("durabledbm", path, 69)[:3] == (69, 0, 0), (
        "the write that was interrupted may have happened"
    )
    assert killing._compared("durabledbm", path, 68)[:3] == (68, 0, 1)
    assert killing._compared("durabledbm", path, 71)[:3] == (71, 0, 1), "an old value is a lost write"
    with durabledbm.open(path, "w") as db:
        del db[killing.key_of(69)]
        db[killing.key_of(30)] = b"garbage"
    assert killing._compared("durabledbm", path, 70)[:3] == (70, 1, 1)
    os.unlink(path)
    gone = killing._compared("durabledbm", path, 70)
    assert gone.missing == killing.KEYS
    assert gone.failure


def test_a_child_that_writes_nothing_is_a_failure(tmp_path: Path) -> None:
    result = killing.kill_while_writing("durabledbm", str(tmp_path / "no" / "directory"))
    assert (result.acknowledged, bool(result.failure)) == (0, True)


def test_a_loss_of_ours_makes_the_tour_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    lost = killing.Aftermath(100, 1, 2, "")
    monkeypatch.setattr("durabledbm.cli.tour.steps.kill_while_writing", lambda *args, **options: lost)
    durabledbm.open(tmp_path / "killed.db", "c").close()
    tour = Tour(Stage(colour=False, width=80), str(tmp_path), {}, "dbm.dumb", 0.01)
    kill(tour)
    assert tour.failures
    tour.stage.end(tour.failures, kept=None, path=tour.path)
    shown = capsysbinary.readouterr().out.decode()
    assert "Not as it should be: after a kill: 5 missing, 10 wrong" in shown
    assert "found as they should be" not in shown


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (killing.Aftermath(9, 0, 0, ""), "no key missing, none wrong"),
        (killing.Aftermath(9, 2, 1, ""), "2 missing, 1 with an old or broken value"),
        (killing.Aftermath(9, 9, 0, "error: broken"), "can't be read (error: broken)"),
    ],
)
def test_the_standard_library_is_told_of_as_it_was_found(result: killing.Aftermath, words: str) -> None:
    assert words in _told(result)


# -- speed -------------------------------------------------------------------------------------------


def test_every_contender_gets_a_figure_for_each_operation(tmp_path: Path) -> None:
    for store in contenders(["dbm.dumb"])[:2]:
        figures = measure(store, str(tmp_path), 0.01)
        assert len(figures) == 5
        assert all(re.fullmatch(r"[\d.,]+ (µs|ms)", figure) for figure in figures)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.2e-7, "0.42 µs"), (8.51e-6, "8.5 µs"), (1.23e-4, "123 µs"), (2e-3, "2.0 ms"), (1.5, "1,500 ms")],
)
def test_times_are_told_in_the_unit_that_suits(seconds: float, text: str) -> None:
    assert speed_of(seconds) == text


# -- where -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell what is in memory")
def test_a_directory_in_memory_is_told_from_one_on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_memory(os.path.dirname(sys.executable))
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    found = [where for where, kind in mounts if kind == "tmpfs"]
    for where in found:
        assert in_memory(where)
    if found:
        monkeypatch.setattr("tempfile.tempdir", found[0])
        assert not in_memory(on_disk()) or not os.access("/var/tmp", os.W_OK) or in_memory("/var/tmp")
