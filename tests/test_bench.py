"""The benchmark runs: tiny workloads on a dict and on durabledbm, through the real runner and processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import durabledbm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compat.bench import catalogue, data, report, runner, syncs, targets, timing, workloads

STORES, WORKLOADS, ROUNDS = ["durabledbm", "dict"], ["get_small"], 2


def _options(directory: Path, stores: list[str], workloads: list[str], rounds: int = 1) -> runner.Options:
    return runner.Options(stores, workloads, rounds, scale="tiny", directory=str(directory), say=lambda text: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def found(place: Path) -> report.Report:
    if not hasattr(durabledbm, "open"):
        pytest.skip("there is no engine yet")
    return runner.Bench(_options(place, STORES, WORKLOADS, ROUNDS)).run()


def test_every_cell_is_measured_in_every_round(found: report.Report) -> None:
    assert found["failures"] == []
    assert found["missing"] == {}
    cells = {(row["store"], row["workload"], row["round"]) for row in found["rows"]}
    assert cells == {(store, work, n) for store in STORES for work in WORKLOADS for n in range(1, ROUNDS + 1)}
    assert all(row["value"] > 0 and row["ops"] > 0 and row["rss_peak"] > 0 for row in found["rows"])


def test_rounds_are_interleaved_over_the_stores(found: report.Report) -> None:
    order = [row["store"] for row in found["rows"] if row["workload"] == "get_small"]
    assert order == STORES * ROUNDS


def test_everything_prepared_is_removed_at_the_end(found: report.Report, place: Path) -> None:
    assert found["rows"]
    assert list(place.iterdir()) == []


def test_the_report_is_plain_data_and_shows_every_cell(found: report.Report) -> None:
    text = report.markdown(json.loads(json.dumps(found)))
    for name in (*STORES, *WORKLOADS):
        assert name in text
    assert "Ratios, durabledbm / peer" in text


def test_a_missing_store_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCH_PYTHON_DICT", str(tmp_path / "no-such-python"))
    found = runner.Bench(_options(tmp_path, ["dict"], ["get_small"])).run()
    assert list(found["missing"]) == ["dict"]
    assert found["rows"] == []
    assert "no-such-python" in report.markdown(found)


def test_a_failing_worker_is_reported_and_gives_no_figure(tmp_path: Path) -> None:
    bench = runner.Bench(_options(tmp_path, ["dict"], ["get_small"]))
    bench.workloads = {"get_small": workloads.Workload("no_such", "read", "none", "get", print, "small")}
    found = bench.run()
    assert found["rows"] == []
    assert "no_such" in found["failures"][0]["reason"]


def test_a_wrong_value_is_an_error_not_a_figure() -> None:
    store = catalogue.all_stores()["dict"]("")
    dataset = data.Dataset("x", 100, 100)
    execution = timing.Run(store, dataset, data.TINY, "seed")
    execution.check_reads(dict(data.pairs(dataset)).__getitem__)
    with pytest.raises(AssertionError, match="wrong value"):
        execution.check_reads(lambda key: bytes(100))


def test_values_are_the_same_whenever_they_are_made() -> None:
    dataset = data.Dataset("x", 200, 100)
    assert list(data.pairs(dataset)) == list(data.pairs(dataset))
    assert len({key for key, _ in data.pairs(dataset)}) == 200
    assert all(len(value) == 100 for _, value in data.pairs(dataset))
    assert len(data.value_of(3, 3 << 20)) == 3 << 20


def test_a_ratio_above_one_is_ahead_for_rates_and_for_sizes() -> None:
    fast = report.Figure(20.0, 20.0, 20.0, 0, {1: 20.0}, ())
    slow = report.Figure(10.0, 10.0, 10.0, 0, {1: 10.0}, ())
    assert report.ratio(fast, slow, "more") == (2.0, 2.0, 2.0)
    assert report.ratio(fast, slow, "less") == (0.5, 0.5, 0.5)


def test_every_target_names_known_workloads_and_stores() -> None:
    known, works = catalogue.all_stores(), catalogue.all_workloads()
    for target in targets.targets():
        assert {target.own, *target.peers} <= set(known)
        assert {target.workload, target.peer_workload or target.workload} <= set(works)
        assert target.peers


def test_syncs_are_counted_as_the_kernel_sees_them() -> None:
    trace = [
        '12 openat(AT_FDCWD, "a", O_RDWR|O_CREAT|O_DSYNC, 0666) = 7',
        "12 pwrite64(7, ..., 4096, 0) = 4096",
        "12 pwrite64(5, ..., 100, 0) = 100",
        "13 fdatasync(5 <unfinished ...>",
        "13 <... fdatasync resumed>) = 0",
        "12 msync(0x7f, 4096, MS_ASYNC) = 0",
        "12 msync(0x7f, 4096, MS_SYNC) = 0",
        "12 write(5, ... <unfinished ...>",
        "12 <... write resumed>) = 50",
    ]
    counts = syncs.parse(trace)
    assert (counts["fdatasync"], counts["msync"], counts["synchronous writes"]) == (1, 1, 1)
    assert (counts["writes"], counts["bytes written"]) == (3, 4246)


@pytest.mark.parametrize(
    ("module", "arguments", "kinds"),
    [
        ("concurrency", ["threads", "--entries", "500", "--seconds", "0.05", "--rounds", "1"], ["threads, median"]),
        ("concurrency", ["notice", "--rounds", "1"], ["notice"]),
        ("scaling", ["backup", "--entries", "500", "--rounds", "1", "--seconds", "0.2"], ["backup"]),
    ],
)
def test_the_other_measurements_run_small(module: str, arguments: list[str], kinds: list[str], tmp_path: Path) -> None:
    """Each ends, checks what it wrote, and prints its figures as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", f"compat.{module}", *arguments, "--directory", str(tmp_path)],
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    shown = [json.loads(line)["what"] for line in done.stdout.splitlines()]
    assert shown[0] == "machine"
    assert set(kinds) <= set(shown)
