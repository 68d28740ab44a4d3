"""The commit: in which order it writes and syncs, how often, and what it never touches."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simdisk import Operation, SimVolume, disk_error

import durabledbm
from durabledbm._engine import commit as commit_module
from durabledbm._engine import prepare as prepare_module
from durabledbm._engine.freemap import FreeMap
from durabledbm._engine.meta import META_AREA, META_SIZE, Meta, decode_meta, first_page
from durabledbm._engine.page import REF, read_header
from durabledbm._engine.pager import Pager
from durabledbm._engine.prepare import MOST_PAGES
from durabledbm._engine.store import Phase
from durabledbm._engine.tree import PageSet, Tree, walk
from durabledbm.database import open_on

from .pieces import PATH, empty_file


@pytest.fixture
def volume() -> SimVolume:
    return SimVolume({PATH: empty_file()})


def opened(volume: SimVolume, **options: Any) -> durabledbm.Database:
    return open_on(volume, PATH, "w", **{"interval": 3600, **options})


def steps(operations: list[Operation]) -> list[str]:
    """What was done, in words: where was written, and when was synced."""
    words = {0: "slot 0", META_SIZE: "slot 1"}
    result = []
    for operation in operations:
        if operation.kind == "write":
            word = words.get(operation.offset, "pages")
            if word != "pages":
                meta = decode_meta(operation.data)
                assert meta is not None
                word += " steady" if meta.steady else ""
            if not result or result[-1] != word or word != "pages":
                result.append(word)
        else:
            result.append(operation.kind)
    return result


class Watch:
    """What happens on the disk from now on."""

    def __init__(self, volume: SimVolume) -> None:
        self.volume = volume
        self.at = len(volume.log)
        self.before = volume.syncs

    @property
    def syncs(self) -> int:
        return self.volume.syncs - self.before

    @property
    def steps(self) -> list[str]:
        return steps(self.volume.log[self.at :])


SMALL = {b"%03d" % n: b"x" * 100 for n in range(60)}
LARGE = {b"%05d" % n: b"x" * 1000 for n in range(3000)}


# -- order, and number of syncs ------------------------------------------------------------------------------------


def test_a_small_commit_is_one_write_and_one_sync(volume: SimVolume) -> None:
    """And then a copy for the other slot, which nobody waits for."""
    with opened(volume) as db:
        watch = Watch(volume)
        db["key"] = "value"
        assert watch.steps == ["slot 1", "sync", "slot 0 steady"]
        watch = Watch(volume)
        del db["key"]
        assert watch.steps in (["slot 0", "sync", "slot 1 steady"], ["slot 1", "sync", "slot 0 steady"])


def test_every_small_commit_is_one_sync(volume: SimVolume) -> None:
    with opened(volume) as db:
        for n in range(300):
            watch = Watch(volume)
            db[b"%d" % (n % 90)] = b"x" * (n % 120)
            assert watch.syncs == 1


def test_a_commit_into_the_tree_is_its_pages_a_meta_and_one_sync(volume: SimVolume) -> None:
    with opened(volume) as db:
        watch = Watch(volume)
        db.update(SMALL)
        assert watch.steps[0] == "pages"
        assert watch.steps[-3:-1] in (["slot 1", "sync"], ["slot 0", "sync"])
        assert watch.steps[-1] in ("slot 0 steady", "slot 1 steady")
        assert watch.syncs == 1


def test_a_big_commit_syncs_its_pages_before_its_meta(volume: SimVolume) -> None:
    with opened(volume) as db:
        watch = Watch(volume)
        db.update(LARGE)
        assert watch.steps[:3] in (["pages", "sync", "slot 1"], ["pages", "sync", "slot 0"])
        assert watch.steps[3] == "sync"
        assert watch.syncs == 2


@pytest.mark.parametrize(("pages", "syncs"), [(200, 1), (300, 2)])
def test_one_sync_is_enough_for_as_many_pages_as_a_meta_lists(volume: SimVolume, pages: int, syncs: int) -> None:
    assert 200 < MOST_PAGES < 300
    with opened(volume) as db:
        watch = Watch(volume)
        db["value"] = b"x" * (4096 * pages)
        assert watch.syncs == syncs
        written = [operation.offset for operation in volume.log if operation.kind == "write"]
        assert max(written) >= META_AREA


def test_a_transaction_is_one_commit(volume: SimVolume) -> None:
    with opened(volume) as db:
        watch = Watch(volume)
        with db.transaction():
            for n in range(50):
                db[b"%d" % n] = b"x"
                del db[b"%d" % n]
                db[b"%d" % n] = b"y"
            assert watch.steps == []
        assert watch.syncs == 1


@pytest.mark.parametrize("seed", range(8))
def test_what_a_commit_lists_is_not_overwritten_by_the_next(volume: SimVolume, seed: int) -> None:
    """Not even what it did not keep: till the next one is durable, a crash believes this one if its list verifies."""
    draw = random.Random(seed)
    with opened(volume) as db:
        db.update({b"%05d" % n: draw.randbytes(draw.randrange(60)) for n in range(1500)})
        for _ in range(60):
            keys = draw.sample(sorted(db), min(len(db), draw.choice([5, 30, 90])))
            with db.transaction():
                for key in keys:
                    del db[key]
                db.update({b"%05d" % draw.randrange(2000): draw.randbytes(draw.randrange(150)) for _ in keys})
            state = db._store.state
            space = db._pipeline.committer.preparer.free_map()
            for page_id, count, _ in state.meta.extents:
                assert not [page for page in range(page_id, page_id + count) if space.pages.is_free(page)]


def rolled_back(db: durabledbm.Database) -> None:
    with db.transaction() as tx:
        tx.rollback()


@pytest.mark.parametrize(
    "what",
    [
        lambda db: db.update({}),
        lambda db: db.pop("absent", None),
        lambda db: db.setdefault("present", "other"),
        rolled_back,
        lambda db: list(db.items()),
        lambda db: db.sync(),
        lambda db: db.snapshot().close(),
    ],
    ids=["update", "pop", "setdefault", "rollback", "iterate", "sync", "snapshot"],
)
def test_what_changes_nothing_writes_nothing(volume: SimVolume, what: Any) -> None:
    with opened(volume) as db:
        db["present"] = "value"
        watch = Watch(volume)
        what(db)
        assert watch.steps == []


def test_opening_and_closing_write_nothing(volume: SimVolume) -> None:
    before = volume.content(PATH)
    for flag in ("r", "w", "c"):
        watch = Watch(volume)
        open_on(volume, PATH, flag).close()
        assert watch.steps == []
    assert volume.content(PATH) == before


def test_durability_process_does_not_sync_until_it_is_time(volume: SimVolume) -> None:
    with opened(volume, durability="process") as db:
        watch = Watch(volume)
        for n in range(100):
            db[b"%d" % n] = b"x" * 50
        assert watch.syncs == 0
        assert "slot 0" in watch.steps or "slot 1" in watch.steps
        db.sync()
        assert watch.syncs == 1
        db.sync()
        assert watch.syncs == 1
        db["one"] = "more"
    assert watch.syncs == 2, "closing syncs"


def test_durability_process_syncs_when_the_list_of_pages_is_full(volume: SimVolume) -> None:
    with opened(volume, durability="process") as db:
        watch = Watch(volume)
        for n in range(200):
            db[b"%d" % n] = b"x" * 20_000
        assert 1 <= watch.syncs <= 20, "twice in 20 commits: what was not durable, and then all"


@pytest.mark.parametrize("durability", ["interval", "manual"])
def test_deferred_durabilities_write_nothing_until_it_is_time(volume: SimVolume, durability: str) -> None:
    with opened(volume, durability=durability) as db:
        watch = Watch(volume)
        for n in range(100):
            db[b"%d" % n] = b"x" * 50
        assert watch.steps == []
        db.sync()
        assert watch.syncs == 1


# -- which slot ----------------------------------------------------------------------------------------------------


def slots(volume: SimVolume) -> list[Any]:
    content = volume.content(PATH)
    return [decode_meta(content[:META_SIZE]), decode_meta(content[META_SIZE:META_AREA])]


def test_after_a_commit_both_slots_hold_it_and_one_is_steady(volume: SimVolume) -> None:
    with opened(volume) as db:
        for n in range(5):
            db["key"] = b"%d" % n
            first, second = slots(volume)
            assert first.txid == second.txid == n + 2
            assert first.steady != second.steady
            assert first.steady_txid == second.steady_txid == n + 1
            assert not first.relaxed
            assert not second.relaxed


def test_relaxed_commits_keep_to_one_slot_and_leave_the_last_durable_one(volume: SimVolume) -> None:
    with opened(volume, durability="process") as db:
        db["key"] = "durable"
        db.sync()
        durable = max(slot.txid for slot in slots(volume))
        used = set()
        for n in range(20):
            db[b"%d" % n] = b"x" * 500
            first, second = slots(volume)
            newest, other = (first, second) if first.txid > second.txid else (second, first)
            assert other.txid == newest.steady_txid == durable
            assert newest.relaxed
            used.add(first.txid > second.txid)
        assert len(used) == 1
        db.sync()
        first, second = slots(volume)
        assert first.txid == second.txid
        assert first.steady != second.steady


def test_relaxed_commits_list_all_pages_since_the_last_durable_one(volume: SimVolume) -> None:
    with opened(volume, durability="process") as db:
        counts = []
        for n in range(10):
            db[b"%d" % n] = b"x" * 5000
            newest = max(slots(volume), key=lambda slot: slot.txid)
            counts.append(sum(extent.page_count for extent in newest.extents))
        assert counts == sorted(set(counts))


# -- in the meta page or in the tree -------------------------------------------------------------------------------


def test_small_changes_wait_in_the_meta_page_until_it_is_full(volume: SimVolume) -> None:
    with opened(volume) as db:
        kinds = []
        for n in range(200):
            watch = Watch(volume)
            db[b"%03d" % n] = b"x" * 100
            kinds.append("pages" in watch.steps)
            assert db.check() == []
        assert kinds[:30] == [False] * 30
        assert 3 <= sum(kinds) <= 8
        assert db._store.state.meta.tree_count + len(db._store.state.meta.changes) == 200


def test_a_deletion_of_what_is_only_in_the_meta_page_leaves_no_trace(volume: SimVolume) -> None:
    with opened(volume) as db:
        db["key"] = "value"
        del db["key"]
        assert db._store.state.meta.changes == {}
        assert len(db) == 0


def test_counts_are_right_however_changes_are_made(volume: SimVolume) -> None:
    with opened(volume) as db:
        db.update(SMALL)
        model = dict(SMALL)
        draw = random.Random(2)
        for _ in range(300):
            key = b"%03d" % draw.randrange(90)
            if draw.random() < 0.5:
                db[key] = model[key] = b"y" * draw.randrange(100)
            else:
                assert db.pop(key, None) == model.pop(key, None)
            assert len(db) == len(model)
        assert dict(db.items()) == model
        assert db.check() == []


# -- what is never written -----------------------------------------------------------------------------------------


def reachable(volume: SimVolume, meta: Meta) -> set[int]:
    """Every page that a reader of this commit, or a writer that goes on from it, may read."""
    pager = Pager(volume.open(PATH, writable=False), 4096, 0)
    space = FreeMap.load(meta.space, 4096, 2, meta.page_count, pager.read)
    tree = Tree(pager, meta.root, meta.depth)
    refs = [*space.own_runs(), *(visit.ref for visit in walk(tree, PageSet(2, meta.page_count)))]
    parts = [REF.unpack(ref) for ref in refs]
    return {page for page_id, count, _ in parts for page in range(page_id, page_id + count)}


class Guard:
    """Sees every write before it happens, and knows which pages must stay as they are."""

    def __init__(self, volume: SimVolume) -> None:
        self.volume = volume
        self.durable: set[int] = set()
        self.pinned: dict[int, set[int]] = {}
        self.writes = 0
        volume.before = self.look

    def look(self, operation: Operation) -> None:
        if operation.kind == "write" and operation.offset < META_AREA:
            meta = decode_meta(operation.data)
            if meta is not None and meta.steady:
                self.durable = reachable(self.volume, meta)
            return
        if operation.kind == "write":
            first = operation.offset // 4096
            written = set(range(first, first + len(operation.data) // 4096))
        elif operation.kind == "resize":
            written = set(range(operation.size // 4096, 10**6))
        else:
            return
        self.writes += 1
        assert not written & self.durable, "a page that a crash may lead back to is written"
        for pages in self.pinned.values():
            assert not written & pages, "a page that a snapshot reads is written"


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), durability=st.sampled_from(["full", "process", "manual"]))
def test_no_page_that_a_crash_or_a_snapshot_may_lead_to_is_ever_written(seed: int, durability: str) -> None:
    """Invariant: no page reachable from the steady meta or from a locked snapshot is ever written."""
    draw = random.Random(seed)
    volume = SimVolume({PATH: empty_file()})
    guard = Guard(volume)
    snapshots: list[durabledbm.Snapshot] = []
    with opened(volume, durability=durability) as db:
        for _ in range(60):
            choice = draw.random()
            if choice < 0.1:
                snapshot = db.snapshot()
                snapshots.append(snapshot)
                guard.pinned[id(snapshot)] = reachable(volume, snapshot._state.meta)
            elif choice < 0.2 and snapshots:
                snapshot = snapshots.pop(draw.randrange(len(snapshots)))
                del guard.pinned[id(snapshot)]
                snapshot.close()
            elif choice < 0.3:
                db.sync()
            elif choice < 0.33:
                db.clear()
            elif choice < 0.36:
                db.reorganize()
            else:
                keys = [b"%04d" % draw.randrange(600) for _ in range(draw.choice([1, 1, 3, 60]))]
                with db.transaction():
                    for key in keys:
                        if draw.random() < 0.4:
                            db.pop(key, None)
                        else:
                            db[key] = draw.randbytes(draw.choice([0, 40, 400, 3000]))
        for snapshot in snapshots:
            snapshot.close()
        guard.pinned.clear()
        assert db.check() == []
    assert guard.writes > 0


def test_a_file_is_cut_off_only_when_the_shorter_one_is_durable(volume: SimVolume) -> None:
    with opened(volume) as db:
        db.update(LARGE)
        watch = Watch(volume)
        db.clear()
        for n in range(5):
            db[b"key"] = b"%d" % n
            db.update(SMALL)
        done = watch.steps
        assert "resize" in done
        for at, step in enumerate(done):
            if step == "resize":
                assert "sync" in done[:at]
                assert done[at - 1].endswith("steady")
        assert len(volume.content(PATH)) < 100 * 4096


def test_a_file_that_cannot_be_cut_off_now_is_cut_off_by_the_next_commit(volume: SimVolume) -> None:
    """Windows refuses it while another program has the file mapped. The commit is done all the same."""
    with opened(volume) as db:
        db.update(LARGE)
        size = len(volume.content(PATH))
        volume.fail_at(0, disk_error(errno.EACCES, "none", times=None), kinds=("resize",))
        db.clear()
        for n in range(5):
            db[b"key"] = b"%d" % n
            db.update(SMALL)
        assert volume.fired > 0
        assert len(volume.content(PATH)) >= size
        volume.heal()
        db[b"key"] = b"last"
        assert len(volume.content(PATH)) < 100 * 4096
        assert dict(db) == {**SMALL, b"key": b"last"}
        assert db.check() == []


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
def test_after_a_failed_sync_a_handle_writes_no_more(volume: SimVolume, number: int) -> None:
    with opened(volume) as db:
        db["key"] = "old"
        volume.fail_at(number, disk_error(errno.EIO), kinds=("sync",))
        with pytest.raises(durabledbm.error) as caught:
            db.update(LARGE)
        assert caught.value.errno == errno.EIO
        for attempt in range(3):
            with pytest.raises(durabledbm.error, match="an earlier write failed"):
                db[b"%d" % attempt] = "new"
    with opened(volume) as db:
        assert dict(db.items()) in ({b"key": b"old"}, {b"key": b"old", **LARGE})
        db["key"] = "new"
        assert db["key"] == b"new"
        assert db.check() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("effect", ["none", "part"])
def test_a_commit_whose_pages_cannot_be_written_never_was(volume: SimVolume, code: int, effect: str) -> None:
    """A full disk: the handle goes on, with what it had, and commits again when there is room."""
    with opened(volume) as db:
        db.update(SMALL)
        volume.fail_at(0, disk_error(code, effect), kinds=("write",))
        with pytest.raises(durabledbm.error) as caught:
            db.update(LARGE)
        assert caught.value.errno == code
        assert caught.value.filename == PATH
        assert dict(db.items()) == SMALL
        assert db.check() == []
        db["key"] = "value"
        db.update(LARGE)
        assert dict(db.items()) == {**SMALL, **LARGE, b"key": b"value"}
        assert db.check() == []


def test_a_failure_to_write_the_meta_page_leaves_it_to_the_file(volume: SimVolume) -> None:
    with opened(volume) as db:
        db["key"] = "old"
        volume.fail_at(0, disk_error(errno.EIO, "part"), kinds=("write",))
        with pytest.raises(durabledbm.error):
            db["key"] = "new"
        with pytest.raises(durabledbm.error):
            db["other"] = "value"
    with opened(volume) as db:
        assert db["key"] in (b"old", b"new")
        assert db.check() in ([], [(4, "meta page 0 is damaged", None)], [(4, "meta page 1 is damaged", None)])
        db["key"] = "newer"
        assert db.check() == []


def test_a_failure_of_our_own_in_a_commit_leaves_the_handle_sound(
    volume: SimVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as KeyboardInterrupt, or no memory: what the commit has done so far is not there."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with opened(volume) as db:
        db.update(SMALL)
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, "merge_trees", interrupted)
            with pytest.raises(KeyboardInterrupt):
                db.update(LARGE)
        assert dict(db.items()) == SMALL
        db.update(LARGE)
        assert dict(db.items()) == {**SMALL, **LARGE}
        assert db.check() == []


def test_damaged_free_space_is_rebuilt_from_the_tree(volume: SimVolume) -> None:
    with opened(volume) as db:
        db.update(LARGE)
        for n in range(0, 3000, 7):
            del db[b"%05d" % n]
        model = dict(db.items())
    content = bytearray(volume.content(PATH))
    meta = decode_meta(bytes(content[:META_SIZE]))
    assert meta is not None
    content[REF.unpack(meta.space)[0] * 4096 + 50] ^= 1
    volume.put(PATH, bytes(content))
    with opened(volume) as db:
        assert [problem.invariant for problem in db.check()] == [3]
        assert dict(db.items()) == model
        db.update(SMALL)
        assert dict(db.items()) == {**model, **SMALL}
        assert db.check() == []
    with opened(volume) as db:
        assert db.check() == []


def test_a_handle_that_finds_an_unsteady_commit_syncs_before_its_own(volume: SimVolume) -> None:
    """What it found may still be only in memory."""
    with opened(volume, durability="process") as first:
        first["key"] = "value"
        left = volume.kill_state()
    with opened(left) as db:
        assert db["key"] == b"value"
        watch = Watch(left)
        db["other"] = "value"
        assert watch.steps[0] == "sync"
        assert watch.syncs == 2
        watch = Watch(left)
        db["other"] = "again"
        assert watch.syncs == 1


def test_commits_are_numbered_one_by_one(volume: SimVolume) -> None:
    def txids() -> Iterator[int]:
        with opened(volume) as db:
            for n in range(5):
                db["key"] = b"%d" % n
                yield db.stats().txid
            db.update(LARGE)
            yield db.stats().txid

    found = list(txids())
    assert found[:5] == [2, 3, 4, 5, 6]
    assert found[5] >= 7
    assert first_page(4096) == 2


# -- phases --------------------------------------------------------------------------------------------------------


def test_the_table_of_phases_is_what_the_code_reads() -> None:
    table = (commit_module.__doc__ or "").split("a crash leaves\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    rows = {row.split()[0]: row.split()[1:3] for row in table}
    assert list(rows) == [phase.name for phase in Phase]
    for phase in Phase:
        io_error, interrupt = rows[phase.name]
        if phase is not Phase.IDLE:
            assert io_error == commit_module._AFTER_IO_ERROR[phase].name
            assert interrupt == ("POISONED" if phase is Phase.POISONED else "UNKNOWN")


@pytest.mark.parametrize("cause", [OSError(errno.EIO, "no"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.IDLE], ids=lambda phase: phase.name)
def test_a_commit_that_fails_leaves_the_phase_of_the_table(
    volume: SimVolume, phase: Phase, cause: BaseException
) -> None:
    """And but for POISONED the handle goes on: the next commit finds out from the file what there is."""
    with opened(volume) as db:
        db["before"] = b"1"
        committer, store = db._pipeline.committer, db._store
        with db._pipeline.writing():
            store.phase = phase
            committer._abandon(cause)
        poisoned = phase is Phase.POISONED or (
            isinstance(cause, OSError) and commit_module._AFTER_IO_ERROR[phase] is Phase.POISONED
        )
        assert store.phase is (Phase.POISONED if poisoned else Phase.UNKNOWN)
        if not poisoned:
            db["after"] = b"2"
            assert store.phase is Phase.IDLE
            assert dict(db) == {b"before": b"1", b"after": b"2"}
        store.phase = Phase.IDLE
        store.failure = None


def test_a_durable_commit_on_top_of_relaxed_ones_lists_its_own_pages_only(volume: SimVolume) -> None:
    """What the relaxed ones have written and freed again may be reused next: then the list would not verify."""
    with open_on(volume, PATH, "c", durability="process", interval=3600) as db:
        for number in range(3):
            db.update({b"%03d" % n: b"%d" % number * 100 for n in range(300)})
        assert db._store.state.meta.txid > db._store.durable_txid
        with db._pipeline.writing():
            meta = db._pipeline.committer.rewrite({}, packing=False).meta
        assert meta.extents
        for extent in meta.extents:
            header = read_header(volume.content(PATH)[extent.page_id * 4096 :])
            assert header.txid == meta.txid
