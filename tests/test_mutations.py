"""The crash tests find planted bugs: each mutation of the engine below makes some of them fail.

A mutation replaces one piece of the source in a copy of the package; a process of its own then runs a few crash
workloads, or faults, on it. A mutation that nothing notices is a hole in the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import durabledbm

PACKAGE = Path(durabledbm.__file__).parent
TESTS = Path(__file__).parent
PURE = {**os.environ, "DURABLEDBM_PURE": "1"}


class Mutation(NamedTuple):
    """One bug: in `file`, `old`, which occurs exactly once, becomes `new`; `probe` is what finds it."""

    file: str
    old: str
    new: str
    probe: str


CRASH = """
import crashes
from crashes import Options, explore
for seed in {seeds}:
    for name in {names!r}.split():
        options = Options(limit=60, again={again}, deeper={deeper}, below=12)
        explore(getattr(crashes, name), {mode!r}, seed, options=options, enough={enough})
"""
USUAL = {"seeds": (1,), "again": 0.2, "deeper": 0.01, "enough": 40}
FULL = CRASH.format(**USUAL, mode="full", names="creation one_leaf tree_commits large_values shrinking")
RELAXED = CRASH.format(**{**USUAL, "seeds": (1, 2)}, mode="process", names="tree_commits large_values two_writers")
DEEP = CRASH.format(**USUAL, mode="full", names="pinned small_commits two_writers")
DAMAGE = """
import random
import damage
rng = random.Random(1)
for _ in range(400):
    bit = rng.randrange(16 * 4096 * 8)
    assert not damage.bad_flips(range(bit, bit + 1)), bit
"""
METAS = """
import damage
for slot in (0, 4096):
    assert not damage.bad_flips(range(slot * 8, (slot + 400) * 8, 13))
"""
GIVEN_UP = CRASH.format(seeds=(2,), names="small_commits", mode="full", again=1, deeper=0.5, enough=40)
GIVEN_UP = GIVEN_UP.replace(", below=12", "")  # what it shows needs a crash of a recovery of a recovery
LISTED = """
from engine import test_commit as t
from engine.pieces import PATH, empty_file
for seed in range(3):
    t.test_what_a_commit_lists_is_not_overwritten_by_the_next(t.SimVolume({PATH: empty_file()}), seed)
"""
FAULTS = """
from test_faults import FAULTS, test_an_operation_that_fails_loses_nothing_acknowledged as test
for name in FAULTS:
    if "sync" in name:
        test(name, "full")
"""

FAILED_SYNC = """
from test_faults import test_pages_that_a_failed_sync_lost_are_not_believed_because_the_cache_still_shows_them as test
test()
"""
OVERTAKEN = """
from simdisk import SimVolume
from durabledbm.database import open_on
volume = SimVolume()
with open_on(volume, "/db", "c", cache_size=0) as writer, open_on(volume, "/db", "r", cache_size=0) as reader:
    content = {b"%03d" % n: b"old" * 30 for n in range(300)}
    writer.update(content)
    assert reader[b"001"]
    def overtake(operation):
        volume.before = None
        for n in range(3):
            writer.update(dict.fromkeys(content, b"%d" % n * 90))
    volume.before = lambda operation: operation.kind == "lock" and overtake(operation)
    with reader.snapshot() as snapshot:
        seen = dict(snapshot.items())
        assert seen in (content, dict(reader.items())), "the snapshot shows neither what was nor what is"
        for n in range(5):
            writer.update(dict.fromkeys(content, b"new %d" % n * 20))
        assert dict(snapshot.items()) == seen
"""
INTERRUPTS = """
import test_interrupts as t
for operation in (t.put, t.transaction):
    for mode in ("full", "manual"):
        t.interrupt(mode, operation, KeyboardInterrupt, 1, 9)
for kind in ("lock", "sync"):
    for at in range(2, t.grouped(kind, 0) + 1, 9):
        t.grouped(kind, at)
"""
MOMENT = """
import test_interrupts as t
for at in (0, 0, *range(1, 1000)):  # up to the first moment at which something is wrong
    t.Case({mode!r}, t.{operation}).run(KeyboardInterrupt, at)
"""
BLOCK = """
import test_interrupts as t
t.test_a_block_whose_end_is_interrupted_is_over_whoever_still_has_the_transaction()
"""

MUTATIONS = {
    "skip the sync of a commit": Mutation(
        "_engine/commit.py", "        try:\n            self.store.disk.sync()\n", "        try:\n            pass\n", FULL  # noqa: E501
    ),
    "believe a commit without looking at its list": Mutation(
        "_engine/recovery.py",
        "    if steady or all(extent_arrived(disk, extent, meta.page_size) for extent in meta.extents):\n",
        "    if True:\n",
        FULL,
    ),
    "write the meta over the last durable one": Mutation(
        "_engine/commit.py", "slot = 1 - old.slot if durable else old.slot", "slot = old.slot", FULL
    ),
    "leave the list out": Mutation(
        "_engine/prepare.py", "        extents = writer.finish()\n", "        extents = writer.finish() and ()\n", FULL
    ),
    "reuse a page one commit too early": Mutation(
        "_engine/prepare.py",
        "free_map.release(self._reusable_txid if pinned is None else min(pinned, self._reusable_txid))",
        "free_map.release(1 << 60)",
        RELAXED,
    ),
    "reuse at once what a commit has written in vain": Mutation(
        "_engine/page_writer.py", "self._free_map.drop(page_id, page_count)", "self._free_map.free(page_id, page_count)", LISTED  # noqa: E501
    ),
    "take pages that a relaxed chain's list needs": Mutation(
        "_engine/prepare.py", "meta.txid if alone else meta.steady_txid", "meta.txid", RELAXED
    ),
    "forget the directory sync at creation": Mutation(
        "_engine/files.py", "    volume.sync_directory(disk.path)\n", "", FULL
    ),
    "forget the sync of a new file": Mutation(
        "_engine/files.py", "    write(META_SIZE, (slot,))\n    disk.sync()\n", "    write(META_SIZE, (slot,))\n", FULL
    ),
    "initialise a file without its mark": Mutation(
        "_engine/files.py", "    write(0, (UNFINISHED,))\n    disk.sync()\n", "", FULL
    ),
    "believe a meta page without its checksum": Mutation(
        "_engine/meta.py", "or not slot.startswith(MAGIC) or not self_consistent(slot)", "or not slot.startswith(MAGIC)", METAS  # noqa: E501
    ),
    "believe a page without its checksum": Mutation(
        "_engine/page.py", "crc32c(run) == WHOLE and run.endswith", "run.endswith", DAMAGE
    ),
    "believe a large value without its checksum": Mutation(
        "_engine/pager.py", "            if not matches(run, ref, OVERFLOW):\n", "            if False:\n", DAMAGE
    ),
    "go on after a failed sync": Mutation(
        "_engine/commit.py", "            self.store.poison(exc)\n            raise\n", "            pass\n", FAULTS
    ),
    "mark a commit steady before it is synced": Mutation(
        "_engine/meta.py", "steady_txid, False, relaxed, time_ns", "steady_txid, True, relaxed, time_ns", FULL
    ),
    "show a commit before it is synced": Mutation(
        "_engine/commit.py",
        "                    self.sync()\n                    self._note_durable(meta)\n",
        "                    store.disk.write((1 - slot) * META_SIZE, (steady_copy(page),))\n                    self.sync()\n                    self._note_durable(meta)\n", FULL,  # noqa: E501
    ),
    "trust the cache after a failed sync": Mutation(
        "_engine/commit.py", "            store.disk.forget()\n            store.pager.clear()\n", "", FAILED_SYNC
    ),
    "forget that a sync failed": Mutation(
        "_engine/store.py", "        self.failure, self.phase = cause, Phase.POISONED\n", "        pass\n", FAULTS,
    ),
    "leave a commit that was given up as it is": Mutation(
        "_engine/commit.py", "                store.disk.write((1 - slot) * META_SIZE, (random_bytes(META_SIZE),))\n", "                pass\n", GIVEN_UP,  # noqa: E501
    ),
    "reuse pages that a snapshot still reads": Mutation(
        "_engine/prepare.py", "self._reusable_txid if pinned is None else min(pinned, self._reusable_txid)", "self._reusable_txid", DEEP  # noqa: E501
    ),
    "do not look again after pinning": Mutation(
        "_engine/store.py", "                if self.state is state:\n", "                if True:\n", OVERTAKEN
    ),
    "acknowledge what an interrupted leader has not done": Mutation(
        "_engine/group_commit.py", "                if batch.committed:\n", "                if True:\n",
        MOMENT.format(mode="full", operation="clear"),
    ),
    "let the next writer in before the file is unlocked": Mutation(
        "_engine/locks.py", "        queue = self._leases.queue\n        if queue and", "        queue = self._leases.queue\n        self._leases.leave(entry)\n        if queue and", INTERRUPTS,  # noqa: E501
    ),
    "believe that every block ends": Mutation(
        "transaction.py", "        if transaction._context is None:\n            transaction._statement", "        if False:\n            transaction._statement", BLOCK,  # noqa: E501
    ),
}  # fmt: skip


def verdict(package: Path, probe: str) -> subprocess.CompletedProcess[str]:
    """Run the probe on a copy of the package, without kernels: these bugs are planted in Python."""
    code = f"import sys; sys.path[:0] = [{str(package)!r}, {str(TESTS)!r}, {str(TESTS / 'support')!r}]\n{probe}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=PURE)


PROBES = {
    "full": FULL, "relaxed": RELAXED, "deep": DEEP, "damage": DAMAGE, "faults": FAULTS, "metas": METAS,
    "overtaken": OVERTAKEN, "given up": GIVEN_UP, "interrupts": INTERRUPTS, "block": BLOCK, "failed sync": FAILED_SYNC,
}  # fmt: skip


def test_there_are_at_least_twelve_mutations() -> None:
    assert len(MUTATIONS) >= 12


LONG = {GIVEN_UP}
"""Probes that take many seconds."""


def marked(name: str, probe: str) -> Any:
    return pytest.param(name, marks=pytest.mark.long) if probe in LONG else name


@pytest.mark.parametrize("probe", [marked(name, probe) for name, probe in PROBES.items()])
def test_without_a_mutation_nothing_is_found(probe: str) -> None:
    result = verdict(PACKAGE.parent, PROBES[probe])
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("name", [marked(name, mutation.probe) for name, mutation in MUTATIONS.items()])
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    mutation = MUTATIONS[name]
    shutil.copytree(PACKAGE, tmp_path / "durabledbm")
    path = tmp_path / "durabledbm" / mutation.file
    source = path.read_text()
    assert source.count(mutation.old) == 1, f"{mutation.file} has changed: the mutation must be written anew"
    path.write_text(source.replace(mutation.old, mutation.new))
    result = verdict(tmp_path, mutation.probe)
    assert result.returncode != 0, "nothing noticed it"
    assert "Error" in result.stderr or "errors.error" in result.stderr
    assert "SyntaxError" not in result.stderr
    assert "ImportError" not in result.stderr
