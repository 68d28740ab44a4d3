"""The crash tests find planted bugs: each mutation of the engine below makes some of them fail.

A mutation replaces one piece of the source in a copy of the package; a process of its own then runs a few crash
workloads, or faults, on it. A mutation that nothing notices is a hole in the tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import durabledbm

PACKAGE = Path(durabledbm.__file__).parent
TESTS = Path(__file__).parent


class Mutation(NamedTuple):
    """One bug: in `file`, `old`, which occurs exactly once, becomes `new`; `probe` is what finds it."""

    file: str
    old: str
    new: str
    probe: str


CRASH = """
import crashes
from crashes import Options, explore
for seed in (1, 2):
    for name in {names!r}.split():
        explore(getattr(crashes, name), {mode!r}, seed, options=Options(limit=60, again=0.2, deeper=0.01), enough=100)
"""
FULL = CRASH.format(names="creation one_leaf tree_commits large_values shrinking", mode="full")
RELAXED = CRASH.format(names="tree_commits large_values two_writers", mode="process")
DEEP = CRASH.format(names="pinned small_commits two_writers", mode="full")
DAMAGE = """
import random
import damage
rng = random.Random(1)
for number in range(1500):
    bit = rng.randrange(16 * 4096 * 8)
    assert not damage.bad_flips(range(bit, bit + 1)), bit
"""
METAS = """
import damage
for slot in (0, 4096):
    assert not damage.bad_flips(range(slot * 8, (slot + 400) * 8))
"""
FAULTS = """
from test_faults import FAULTS, test_an_operation_that_fails_loses_nothing_acknowledged as test
for name in FAULTS:
    if "sync" in name:
        test(name, "full")
"""

MUTATIONS = {
    "skip the sync of a commit": Mutation(
        "_engine/commit.py", "        try:\n            self.disk.sync()\n", "        try:\n            pass\n", FULL
    ),
    "believe a commit without looking at its list": Mutation(
        "_engine/recovery.py",
        "    if steady or all(extent_arrived(disk, extent, meta.page_size) for extent in meta.extents):\n",
        "    if True:\n",
        FULL,
    ),
    "write the meta over the last durable one": Mutation(
        "_engine/commit.py", "slot = 1 - state.slot if durable else state.slot", "slot = state.slot", FULL
    ),
    "leave the list out": Mutation(
        "_engine/commit.py", "        extents = writer.finish()\n", "        extents = writer.finish() and ()\n", FULL
    ),
    "reuse a page one commit too early": Mutation(
        "_engine/commit.py",
        "space.release(self._reusable if pinned is None else min(pinned, self._reusable))",
        "space.release(1 << 60)",
        RELAXED,
    ),
    "take pages that a relaxed chain's list needs": Mutation(
        "_engine/commit.py", "meta.txid if alone else meta.steady_txid", "meta.txid", RELAXED
    ),
    "forget the directory sync at creation": Mutation(
        "_engine/creation.py", "        volume.remove(temporary)\n    volume.sync_directory(path)\n", "        volume.remove(temporary)\n", FULL  # noqa: E501
    ),
    "forget the sync of a new file": Mutation(
        "_engine/creation.py", "    disk.write(0, (empty_database(page_size),))\n    disk.sync()\n", "    disk.write(0, (empty_database(page_size),))\n", FULL  # noqa: E501
    ),
    "believe a meta page without its checksum": Mutation(
        "_engine/meta.py", "or not slot.startswith(MAGIC) or not self_consistent(slot)", "or not slot.startswith(MAGIC)", METAS  # noqa: E501
    ),
    "believe a page without its checksum": Mutation(
        "_engine/page.py", "    if crc32c(run) != _RESIDUE:\n", "    if False:\n", DAMAGE
    ),
    "believe a large value without its checksum": Mutation(
        "_engine/pager.py", "if checksum != crc or tail[-CRC_SIZE:] != ref[-CRC_SIZE:] or", "if", DAMAGE
    ),
    "go on after a failed sync": Mutation(
        "_engine/commit.py", "            self.sync_failed = True\n            raise\n", "            pass\n", FAULTS
    ),
    "mark a commit steady before it is synced": Mutation(
        "_engine/commit.py", "            steady=False,\n", "            steady=True,\n", FULL
    ),
}  # fmt: skip


def verdict(package: Path, probe: str) -> subprocess.CompletedProcess[str]:
    """Run the probe on a copy of the package."""
    code = f"import sys; sys.path[:0] = [{str(package)!r}, {str(TESTS)!r}]\n{probe}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def test_there_are_at_least_twelve_mutations() -> None:
    assert len(MUTATIONS) >= 12


@pytest.mark.parametrize("probe", [FULL, RELAXED, DEEP, DAMAGE, FAULTS, METAS], ids=["full", "relaxed", "deep", "damage", "faults", "metas"])  # noqa: E501
def test_without_a_mutation_nothing_is_found(probe: str) -> None:
    result = verdict(PACKAGE.parent, probe)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    mutation = MUTATIONS[name]
    shutil.copytree(PACKAGE, tmp_path / "durabledbm", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "durabledbm" / mutation.file
    source = path.read_text()
    assert source.count(mutation.old) == 1, f"{mutation.file} has changed: the mutation must be written anew"
    path.write_text(source.replace(mutation.old, mutation.new))
    result = verdict(tmp_path, mutation.probe)
    assert result.returncode != 0, "nothing noticed it"
    assert "Error" in result.stderr
    assert "SyntaxError" not in result.stderr
    assert "ImportError" not in result.stderr
