"""Whatever a crash leaves, at whatever moment: the database holds whole commits, and none that it promised is lost.

The workloads, and what is verified of each state, are in `crashes`. Small workloads are enumerated completely
as far as `simdisk` says; mixed ones are drawn with a seed. The long search is `python tests/crashes.py`.
"""

from __future__ import annotations

import os

import crashes
import pytest
from crashes import Options, Tally, explore
from model import MODES

pytestmark = pytest.mark.no_cover  # tracing would take longer than the search; other tests cover the same lines

TALLY = Tally()
QUICK = Options(limit=24, below=12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workload", crashes.ALL, ids=lambda workload: workload.__name__)
def test_every_crash_leaves_whole_commits_and_all_that_were_promised(
    workload: crashes.Workload, mode: str
) -> None:
    explore(workload, mode, 1 + MODES.index(mode), options=QUICK, tally=TALLY, enough=70)


@pytest.mark.parametrize(
    "workload", [crashes.creation, crashes.empty_file, crashes.one_leaf], ids=lambda workload: workload.__name__
)
def test_small_workloads_survive_every_combination_of_lost_writes(workload: crashes.Workload) -> None:
    options = Options(limit=4096, deeper=0.001, again=0.02, below=100)
    explore(workload, "full", 2, options=options, tally=TALLY, enough=3000)


@pytest.mark.parametrize("page_size", [8192, 65536])
def test_larger_pages_are_torn_at_blocks_and_sectors_too(page_size: int) -> None:
    explore(crashes.tree_commits, "full", 3, options=QUICK, page_size=page_size, tally=TALLY, enough=120)
    explore(crashes.large_values, "process", 3, options=QUICK, page_size=page_size, tally=TALLY, enough=120)


@pytest.mark.parametrize("seed", range(4))
def test_mixed_workloads_survive_crashes(seed: int) -> None:
    explore(crashes.mixture, MODES[seed % 4], 100 + seed, options=QUICK, tally=TALLY, enough=70)


def test_crashes_during_recovery_and_the_writes_after_it_lose_nothing_more() -> None:
    options = Options(limit=20, deeper=0.1, again=1.0, below=15)
    tally = explore(crashes.small_commits, "full", 4, options=options, enough=100)
    assert tally.by_depth[3] > 20


@pytest.mark.long
def test_a_million_crash_states() -> None:
    wanted = int(os.environ.get("DURABLEDBM_CRASH_STATES", "1000000"))
    states, by_depth = crashes.search_in_parallel(wanted, int(os.environ.get("DURABLEDBM_SEED", "0")))
    assert states >= wanted
    assert by_depth[3] > wanted // 1000
