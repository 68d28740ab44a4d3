"""Free space: what may be written, and how the file remembers it, against plain sets of pages."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabledbm._engine.freemap import FreeMap, Run
from durabledbm._engine.page import MAP, NO_REF, PENDING, REF, SPACE, crc_of, mismatch, read_header, seal

FIRST = 2
TINY = 256
"""A page size that no file has: so small that maps, logs and lists soon take more than one page."""


class Runs:
    """The runs that a space has written, as the disk of one."""

    def __init__(self) -> None:
        self.by_page: dict[int, bytes] = {}
        self.written = 0

    def write(self, run: bytes, page_id: int) -> bytes:
        header = read_header(run)
        assert header.page_id == page_id
        self.by_page[page_id] = run
        self.written += header.page_count
        return REF.pack(page_id, header.page_count, int.from_bytes(crc_of(run), "little"))

    def read(self, ref: bytes, kind: int) -> bytes:
        run = self.by_page[REF.unpack(ref)[0]]
        assert mismatch(run, ref, (kind,)) is None
        return run


def pages(runs: Iterable[Run]) -> set[int]:
    result: set[int] = set()
    for page_id, page_count in runs:
        fresh = set(range(page_id, page_id + page_count))
        assert page_count > 0
        assert not fresh & result
        result |= fresh
    return result


def own(space: FreeMap) -> set[int]:
    return pages(REF.unpack(ref)[:2] for ref in space.own_runs())


def pending(space: FreeMap) -> dict[int, int]:
    """The txid for each page that waits."""
    result = {}
    for txid, run in space.pending_runs():
        for page in pages([run]):
            assert page not in result
            result[page] = txid
    return result


def reloaded(space: FreeMap, runs: Runs, page_size: int) -> FreeMap:
    return FreeMap.load(space.ref, page_size, FIRST, space.pages.page_count, runs.read)


# -- taking and freeing ------------------------------------------------------------------------------------------


def test_a_new_space_has_nothing_free_and_grows() -> None:
    space = FreeMap(4096, FIRST, FIRST)
    assert space.pages.take(1) == [(2, 1)]
    assert space.pages.take_run(5) == (3, 5)
    assert space.pages.page_count == 8
    assert space.pages.used_count == 8
    assert list(space.pages.free_runs()) == []


def freed(runs: list[Run], page_count: int = 100) -> FreeMap:
    """A space in which exactly these pages may be written."""
    space = FreeMap(4096, FIRST, page_count)
    runs_on_disk = Runs()
    for page_id, count in runs:
        space.free(page_id, count)
    space.save(2, runs_on_disk.write)
    space.release(2)
    assert list(space.pages.free_runs()) == sorted(runs)
    return space


def test_a_free_run_that_is_long_enough_is_taken_before_the_file_grows() -> None:
    space = freed([(10, 3), (20, 8), (40, 20)])
    assert space.pages.take_run(5) == (20, 5)
    assert space.pages.take_run(4) == (40, 4)
    assert space.pages.take_run(3) == (10, 3)
    assert space.pages.take_run(3) == (25, 3)
    before = space.pages.page_count
    assert space.pages.take_run(17) == (before, 17)


def test_a_small_file_grows_rather_than_to_be_scattered() -> None:
    space = freed([(10, 3), (20, 3)])
    before = space.pages.page_count
    assert space.pages.take(8) == [(before, 8)]


def test_a_file_that_must_not_grow_is_filled_going_around_it() -> None:
    space = freed([(10, 3), (20, 5), (40, 1), (50, 3)])
    before = space.pages.page_count
    assert space.pages.take(6, grow=False) == [(10, 3), (20, 3)]
    space.pages.give_back(10, 2)
    assert space.pages.take(7, grow=False) == [(23, 2), (40, 1), (50, 3)], "the front has its turn later"
    assert space.pages.take(7, grow=False) == [(10, 2)]
    assert space.pages.page_count == before
    assert space.pages.take(8, grow=False) == [(before, 8)], "nothing is free: there is no other way"


def test_a_run_that_is_long_enough_is_taken_before_scattered_pages() -> None:
    space = freed([(10, 3), (20, 8), (40, 1)])
    assert space.pages.take(7, grow=False) == [(20, 8)]


def test_a_hole_is_a_single_free_page() -> None:
    space = freed([(10, 2), (20, 1), (30, 3), (40, 1)])
    assert (space.pages.take_hole(), space.pages.take_hole(), space.pages.take_hole()) == (20, 40, 0)
    assert list(space.pages.free_runs()) == [(10, 2), (30, 3)]
    space.pages.give_back(20, 1)
    assert space.pages.take_hole() == 20
    assert space.pages.free_count == 5


def test_what_is_closed_is_not_given_out_and_free_again_afterwards() -> None:
    space = freed([(10, 2), (20, 1), (30, 3), (40, 1)])
    space.pages.close_from(31)
    assert space.pages.free_count == 4
    assert [space.pages.take(1, grow=False) for _ in range(4)] == [[(at, 1)] for at in (10, 11, 20, 30)]
    assert space.pages.take(1, grow=False)[0][0] >= 100, "nothing else is open: the file grows"
    space.pages.reopen()
    assert list(space.pages.free_runs()) == [(31, 2), (40, 1)]
    assert space.pages.take_run(2) == (31, 2)
    assert space.pages.take_hole() == 40


def test_a_large_file_with_much_free_space_does_not_grow_for_a_long_run() -> None:
    holes = [(at, 2) for at in range(10, 9000, 4)]
    space = freed(holes, 10_000)
    before = space.pages.page_count
    assert space.pages.take(64) == [(at, 2) for at in range(10, 138, 4)]
    assert space.pages.page_count == before


def test_pages_that_are_freed_next_to_each_other_are_found_as_one_run() -> None:
    """That there was no run of that length before is not remembered for longer than it is true."""
    space = freed([(at, 1) for at in range(10, 90, 2)])
    assert {count for _, count in space.pages.take(8, grow=False)} == {1}
    for page_id in range(31, 39, 2):
        space.pages.give_back(page_id, 1)
    assert space.pages.take(8, grow=False) == [(30, 8)]


def test_pages_freed_by_a_commit_wait_for_their_release() -> None:
    space, runs = FreeMap(4096, FIRST, 50), Runs()
    space.free(10, 2)
    assert not space.pages.is_free(10)
    assert space.pages.pending_count == 2
    space.save(5, runs.write)
    assert next(txid for txid, _ in space.pending_runs()) == 5
    space.release(4)
    assert not space.pages.is_free(10)
    space.release(5)
    assert space.pages.is_free(10)
    assert space.pages.is_free(11)
    assert list(space.pending_runs()) == []
    assert (space.pages.free_count, space.pages.pending_count) == (2, 0)


def test_what_is_given_back_may_be_taken_again_at_once() -> None:
    space = freed([(10, 8)])
    assert space.pages.take_run(8) == (10, 8)
    space.pages.give_back(13, 5)
    assert list(space.pages.free_runs()) == [(13, 5)]
    assert space.pages.take_run(5) == (13, 5)


def test_what_is_given_back_at_the_end_of_a_file_that_grew_is_cut_off() -> None:
    space = FreeMap(4096, FIRST, 20)
    page_id, _ = space.pages.take_run(16)
    space.pages.give_back(page_id + 4, 12)
    assert space.pages.page_count == page_id + 4
    assert list(space.pages.free_runs()) == []


def test_freeing_can_be_taken_back() -> None:
    space = FreeMap(4096, FIRST, 50)
    space.free(10, 2)
    mark = space.freed_mark()
    space.free(20, 3)
    space.unfree(mark)
    assert space.pages.pending_count == 2
    space.save(5, Runs().write)
    assert set(pending(space)) == {10, 11}


def test_a_long_free_tail_is_cut_off_and_a_short_one_stays() -> None:
    space = freed([(80, 20)])
    before = space.pages.page_count
    space.pages.cut_tail()
    assert space.pages.page_count == before, "the log stands behind it"
    space = FreeMap(4096, FIRST, 100)
    space.pages.reuse(90, 10)
    space.pages.cut_tail()
    assert space.pages.page_count == 100
    space.pages.reuse(50, 40)
    space.pages.cut_tail()
    assert (space.pages.page_count, space.pages.free_count) == (50, 0)
    assert space.pages.take_run(3) == (50, 3)


def test_starting_from_an_empty_tree_frees_all_that_is_in_use() -> None:
    space, runs = FreeMap(4096, FIRST, 50), Runs()
    space.free(10, 5)
    space.save(3, runs.write)
    space.release(3)
    space.free(20, 5)
    space.save(4, runs.write)
    kept = own(space)
    space.free_all()
    space.save(5, runs.write)
    waiting = pending(space)
    assert {page for page, txid in waiting.items() if txid == 4} >= set(range(20, 25))
    everything = set(range(FIRST, space.pages.page_count))
    assert everything == set(waiting) | pages(space.pages.free_runs()) | own(space)
    assert not kept & own(space), "the old records of free space are needed by the old commit"


# -- what the file remembers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [False, True])
def test_a_saved_space_is_loaded_as_it_was(fold: bool) -> None:
    space, runs = FreeMap(4096, FIRST, 100), Runs()
    space.free(10, 5)
    space.save(3, runs.write)
    space.release(3)
    space.free(20, 5)
    space.pages.take_run(2)
    space.save(4, runs.write, fold=fold)
    loaded = reloaded(space, runs, 4096)
    before = pages(space.pages.free_runs()) | set(pending(space))
    assert pages(loaded.pages.free_runs()) | set(pending(loaded)) == before
    loaded.release(3)  # a log does not say what of it was released: whoever loads it looks who reads what
    assert list(loaded.pages.free_runs()) == list(space.pages.free_runs()) != []
    assert pending(loaded) == pending(space) != {}
    assert (loaded.pages.free_count, loaded.pages.pending_count) == (space.pages.free_count, space.pages.pending_count)
    assert own(loaded) == own(space)
    assert loaded.ref == space.ref


def test_an_empty_ref_is_a_space_with_nothing_free() -> None:
    space = FreeMap.load(NO_REF, 4096, FIRST, 30, Runs().read)
    assert (space.pages.page_count, space.pages.free_count, space.pages.pending_count) == (30, 0, 0)


class Model:
    """A space, and plain sets that say what must be in it."""

    def __init__(self, seed: int, page_size: int) -> None:
        self.random = random.Random(seed)
        self.page_size = page_size
        self.runs = Runs()
        self.space = FreeMap(page_size, FIRST, FIRST)
        self.txid = 1
        self.used: set[int] = set()
        self.freed_by: dict[int, int] = {}
        self.released = 0

    def commit(self) -> None:
        draw = self.random
        self.txid += 1
        if draw.random() < 0.5:
            self.released = draw.randint(self.released, self.txid - 1)
            self.space.release(self.released)
        fresh: set[int] = set()
        end = closed_from = self.space.pages.page_count
        if draw.random() < 0.3:
            closed_from = draw.randint(FIRST, end)
            self.space.pages.close_from(closed_from)
        for _ in range(draw.choice([0, 1, 3, 20])):
            want = draw.choice([1, 1, 2, 3, 7, 40])
            exactly = draw.random() < 0.5
            if want == 1 and (hole := self.space.pages.take_hole()):
                runs = [(hole, 1)]
            elif exactly:
                runs = [self.space.pages.take_run(want)]
            else:
                runs = self.space.pages.take(want, grow=draw.random() < 0.7)
            assert runs == sorted(runs)
            assert not exactly or runs[0][1] == want
            for page_id, count in runs:
                assert count >= 1
                taken = set(range(page_id, page_id + count))
                assert page_id >= FIRST
                assert not taken & set(range(closed_from, end))
                assert not taken & (self.used | fresh)
                assert all(self.freed_by.pop(page, 0) <= self.released for page in taken)
                if draw.random() < 0.3:
                    keep = draw.randint(0, count - 1)
                    self.space.pages.give_back(page_id + keep, count - keep)
                    taken = set(range(page_id, page_id + keep))
                fresh |= taken
        for page in draw.sample(sorted(self.used), min(len(self.used), draw.choice([0, 1, 5, 60]))):
            self.space.free(page, 1)
            self.used.remove(page)
            self.freed_by[page] = self.txid
        self.used |= fresh
        self.space.pages.reopen()
        if draw.random() < 0.3:
            self.space.pages.cut_tail()
        before = own(self.space)
        self.space.save(self.txid, self.runs.write, fold=draw.random() < 0.1)
        after = own(self.space)
        self.freed_by.update(dict.fromkeys(before - after, self.txid))
        for page in [page for page in self.freed_by if page >= self.space.pages.page_count or page in after]:
            assert self.freed_by.pop(page) <= self.released
        self.check(self.space)
        loaded = reloaded(self.space, self.runs, self.page_size)
        self.check(loaded)
        loaded.release(self.released)
        self.check(loaded)
        if draw.random() < 0.2:
            self.space = loaded

    def check(self, space: FreeMap) -> None:
        free, waiting, map_pages = pages(space.pages.free_runs()), pending(space), own(space)
        everything = set(range(FIRST, space.pages.page_count))
        assert free | set(waiting) | map_pages | self.used == everything
        assert len(free) + len(waiting) + len(map_pages) + len(self.used) == len(everything)
        assert (space.pages.free_count, space.pages.pending_count) == (len(free), len(waiting))
        assert space.pages.used_count == FIRST + len(self.used) + len(map_pages)
        for page, txid in waiting.items():
            assert txid >= self.freed_by.get(page, 0), "pages may wait longer than they must, never shorter"
        for page in free:
            assert self.freed_by.get(page, 0) <= self.released


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), page_size=st.sampled_from([TINY, 4096]), commits=st.integers(1, 60))
def test_no_page_is_ever_lost_or_given_out_twice(seed: int, page_size: int, commits: int) -> None:
    model = Model(seed, page_size)
    for _ in range(commits):
        model.commit()


@pytest.mark.long
@settings(max_examples=3000, deadline=None)
@given(seed=st.integers(0, 2**32), page_size=st.sampled_from([TINY, 512, 4096]), commits=st.integers(1, 300))
def test_no_page_is_ever_lost_or_given_out_twice_in_a_long_search(seed: int, page_size: int, commits: int) -> None:
    model = Model(seed, page_size)
    for _ in range(commits):
        model.commit()


def test_a_commit_costs_what_it_changed_however_much_is_free() -> None:
    """Single pages written per commit, with 10 and with a million free pages: the same."""
    costs = {}
    for free_count in (10, 1_000_000):
        space, runs = FreeMap(4096, FIRST, 2 * free_count + 100), Runs()
        space.pages.flags[FIRST : FIRST + 2 * free_count : 2] = b"\1" * free_count
        space.pages.free_count = free_count
        space.pages.touch(FIRST, 2 * free_count)
        space.save(2, runs.write, fold=True)
        space.release(2)
        runs.written = 0
        for txid in range(3, 203):
            page_id, _ = space.pages.take_run(1)
            space.save(txid, runs.write)
            space.release(txid)
            space.free(page_id, 1)
        costs[free_count] = runs.written / 200
    assert costs[1_000_000] < 2
    assert costs[1_000_000] < costs[10] + 0.5


def test_pages_that_a_snapshot_pins_are_not_written_anew_by_every_commit() -> None:
    space, runs = FreeMap(4096, FIRST, 100_000), Runs()
    for txid in range(2, 402):
        for page in range(100 * txid, 100 * txid + 100, 2):
            space.free(page, 1)
        space.save(txid, runs.write)
    assert space.pages.pending_count >= 400 * 50
    runs.written = 0
    for txid in range(402, 502):
        space.free(50_000 + txid, 1)
        space.save(txid, runs.write)
    assert runs.written < 300
    assert set(pending(reloaded(space, runs, 4096))) == set(pending(space))


def test_a_space_can_be_rebuilt_from_what_is_in_use() -> None:
    space = FreeMap.rebuilt(4096, FIRST, 50, [(5, 3), (20, 1)], 7)
    assert (space.pages.free_count, space.pages.used_count) == (0, FIRST + 4)
    space.release(6)
    assert space.pages.free_count == 0
    space.release(7)
    assert pages(space.pages.free_runs()) == set(range(FIRST, 50)) - {5, 6, 7, 20}
    runs = Runs()
    space.save(8, runs.write)
    loaded = reloaded(space, runs, 4096)
    loaded.release(7)
    assert list(loaded.pages.free_runs()) == list(space.pages.free_runs())


# -- damage ------------------------------------------------------------------------------------------------------


def space_run(payload: bytes) -> tuple[bytes, Runs]:
    runs = Runs()
    return runs.write(seal(SPACE, 0, 0, 9, 5, 4096, payload), 9), runs


@pytest.mark.parametrize(
    "counts",
    [(1000, 0, 0), (0, 1000, 0), (0, 0, 1000), (2**32 - 1, 2**32 - 1, 2**32 - 1)],
    ids=["maps", "chunks", "log", "all"],
)
def test_counts_that_do_not_fit_are_refused(counts: tuple[int, int, int]) -> None:
    payload = (50).to_bytes(8, "little") + b"".join(n.to_bytes(4, "little") for n in (*counts, 0))
    ref, runs = space_run(payload)
    with pytest.raises(ValueError, match="larger than its page"):
        FreeMap.load(ref, 4096, FIRST, 50, runs.read)


@pytest.mark.parametrize(("page_id", "count"), [(0, 1), (1, 5), (10, 0)])
def test_a_record_of_pages_that_cannot_be_free_is_refused(page_id: int, count: int) -> None:
    record = page_id.to_bytes(8, "little") + count.to_bytes(4, "little") + (3).to_bytes(8, "little")
    payload = (50).to_bytes(8, "little") + b"".join(n.to_bytes(4, "little") for n in (0, 0, 1, 0)) + record
    ref, runs = space_run(payload)
    with pytest.raises(ValueError, match="cannot be free"):
        FreeMap.load(ref, 4096, FIRST, 50, runs.read)


def test_a_record_beyond_the_end_of_the_file_is_ignored() -> None:
    """The file was cut off after the record was made."""
    record = (40).to_bytes(8, "little") + (20).to_bytes(4, "little") + (3).to_bytes(8, "little")
    payload = (50).to_bytes(8, "little") + b"".join(n.to_bytes(4, "little") for n in (0, 0, 1, 0)) + record
    ref, runs = space_run(payload)
    assert set(pending(FreeMap.load(ref, 4096, FIRST, 45, runs.read))) == set(range(40, 45))
    assert pending(FreeMap.load(ref, 4096, FIRST, 30, runs.read)) == {}


def test_a_list_longer_than_its_page_is_refused() -> None:
    runs = Runs()
    chunk = runs.write(seal(PENDING, 0, 1000, 12, 4, 4096, b""), 12)
    payload = (50).to_bytes(8, "little") + b"".join(n.to_bytes(4, "little") for n in (0, 1, 0, 0)) + chunk + bytes(8)
    ref = runs.write(seal(SPACE, 0, 0, 9, 5, 4096, payload), 9)
    with pytest.raises(ValueError, match="larger than its page"):
        FreeMap.load(ref, 4096, FIRST, 50, runs.read)


def test_the_meta_pages_are_never_free_whatever_a_map_says() -> None:
    runs = Runs()
    ones = runs.write(seal(MAP, 0, 0, 12, 4, 4096, b"\xff" * 1000), 12)
    payload = (50).to_bytes(8, "little") + b"".join(n.to_bytes(4, "little") for n in (1, 0, 0, 0)) + ones
    ref = runs.write(seal(SPACE, 0, 0, 9, 5, 4096, payload), 9)
    space = FreeMap.load(ref, 4096, FIRST, 50, runs.read)
    assert pages(space.pages.free_runs()) == set(range(FIRST, 50))
