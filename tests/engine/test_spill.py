"""Transactions that outgrow memory: what they write early is theirs alone until they commit."""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simdisk import Operation, SimVolume, disk_error

import durabledbm
from durabledbm import transaction
from durabledbm._engine.commit import Committer
from durabledbm._engine.meta import Meta, encode_meta
from durabledbm._engine.spill import Spill
from durabledbm._engine.store import Store
from durabledbm._engine.threads import Lease
from durabledbm.database import open_on

from .pieces import DATABASE_ID, PATH, empty_file

BEFORE = {b"%04d" % n: b"before" for n in range(0, 600, 2)}


class Undo(Exception):
    pass


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dozen changes are too many for memory."""
    monkeypatch.setattr(transaction, "SPILL_SIZE", 3000)


@pytest.fixture
def volume() -> SimVolume:
    volume = SimVolume({PATH: empty_file()})
    with open_on(volume, PATH, "w") as db:
        db.update(BEFORE)
    return volume


def spilled(db: durabledbm.Database) -> bool:
    (reference,) = db._transactions
    return reference()._open_context().spill is not None  # type: ignore[union-attr]


pytestmark = pytest.mark.usefixtures("tiny")


def test_a_spilled_transaction_is_read_like_any_other(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as db, open_on(volume, PATH, "r") as reader:
        model = dict(BEFORE)
        with db.transaction() as tx:
            assert not spilled(db)
            for n in range(1000):
                key = b"%04d" % (n * 7 % 600)
                if n % 3:
                    tx[key] = model[key] = b"%d" % n
                else:
                    assert tx.pop(key, None) == model.pop(key, None)
            assert spilled(db)
            assert dict(tx.items()) == model
            assert list(reversed(tx)) == sorted(model, reverse=True)
            assert len(tx) == len(model)
            assert all(tx.get(b"%04d" % n) == model.get(b"%04d" % n) for n in range(600))
            assert dict(reader.items()) == BEFORE
        assert dict(db.items()) == dict(reader.items()) == model
        assert db.check() == []


def test_a_spilled_transaction_that_fails_leaves_no_trace(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as db:
        before = db.stats()
        for _ in range(5):
            with pytest.raises(Undo):
                spill_and_fail(db)
            assert dict(db.items()) == BEFORE
            assert len(db) == len(BEFORE)
            assert db.check() == []
            assert db.stats()[:10] == before[:10]
        db[b"key"] = b"value"
        db.update({b"%04d" % n: b"after" for n in range(600)})
        assert db.check() == []
        assert db.stats().page_count < before.page_count + 60


def spill_and_fail(db: durabledbm.Database) -> None:
    with db.transaction():
        for n in range(2000):
            db[b"%05d" % n] = b"x" * 50
        assert spilled(db)
        raise Undo


def test_a_spilled_transaction_syncs_its_pages_before_its_meta(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as db:
        before = volume.syncs
        with db.transaction():
            for n in range(500):
                db[b"%04d" % n] = b"x"
            assert volume.syncs == before
        assert volume.syncs == before + 2


@pytest.mark.parametrize("event", ["kill", "power"])
def test_a_crash_in_the_middle_leaves_what_was_before(volume: SimVolume, event: str) -> None:
    with open_on(volume, PATH, "w") as db, db.transaction():
        for n in range(500):
            db[b"%04d" % n] = b"x"
        assert spilled(db)
        crashes = [volume.kill_state()] if event == "kill" else list(volume.crash_states(limit=40))
        for crash in crashes:
            with open_on(crash, PATH, "w") as survivor:
                assert dict(survivor.items()) == BEFORE
                assert survivor.check() == []
                survivor["key"] = "value"
                assert survivor.check() == []


def test_pages_that_a_spill_replaces_are_used_again(volume: SimVolume) -> None:
    """Ten times the same keys: the file does not grow ten times."""
    with open_on(volume, PATH, "w") as db:
        sizes = []
        for rounds in (1, 10):
            with pytest.raises(Undo), db.transaction():
                rewrite_and_fail(db, rounds)
            sizes.append(len(volume.content(PATH)))
        assert sizes[1] < 2 * sizes[0]


def rewrite_and_fail(db: durabledbm.Database, rounds: int) -> None:
    for n in range(rounds):
        for key in range(2000):
            db[b"%05d" % key] = b"%d" % n * 30
    raise Undo


def test_a_savepoint_before_the_spill_can_be_returned_to(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as db, db.transaction():
        db[b"outer"] = b"1"
        with pytest.raises(Undo), db.transaction():
            rewrite_and_fail(db, 1)
        assert dict(db.items()) == {**BEFORE, b"outer": b"1"}
        db[b"more"] = b"2"
    with open_on(volume, PATH, "r") as db:
        assert dict(db.items()) == {**BEFORE, b"outer": b"1", b"more": b"2"}
        assert db.check() == []


def test_a_savepoint_after_the_spill_can_be_returned_to(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as db:
        with db.transaction():
            for n in range(300):
                db[b"%04d" % n] = b"outer"
            assert spilled(db)
            expected = dict(db.items())
            for _ in range(3):
                with pytest.raises(Undo), db.transaction():
                    rewrite_and_fail(db, 1)
                assert dict(db.items()) == expected
        assert dict(db.items()) == expected
        assert db.check() == []


def test_an_iterator_of_the_transaction_sees_the_state_at_its_start(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w", cache_size=0) as db, db.transaction() as tx:
        for n in range(300):
            tx[b"%04d" % n] = b"first"
        expected = sorted(tx.items())
        iterator = iter(tx.items())
        found = [next(iterator)]
        for n in range(600):
            tx[b"%04d" % n] = b"second" * 20
            if n % 100 == 0:
                found.append(next(iterator))
        found += iterator
        assert found == expected


def outcome(iterator: Iterator[Any], expected: list[Any]) -> str:
    """What becomes of an iterator over what was undone: it goes on, or it ends with an error that says so."""
    try:
        assert list(iterator) == expected
    except durabledbm.ClosedError:
        return "ended"
    return "went on"


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("started", [0, 1])
@pytest.mark.parametrize("spilled_before", [False, True])
def test_an_iterator_over_what_was_undone_goes_on_or_ends_but_is_never_wrong(
    *, volume: SimVolume, spilled_before: bool, started: int, depth: int
) -> None:
    with open_on(volume, PATH, "w", cache_size=0) as db, db.transaction():
        if spilled_before:
            db.update({b"%04d" % n: b"outer" for n in range(300)})
        with db.transaction() as middle:
            with db.transaction() if depth == 2 else contextlib.nullcontext():
                db.update({b"%04d" % n: b"inner" * 20 for n in range(600)})
                expected = sorted(db.items())
                iterator = iter(db.items())
                for _ in range(started):
                    assert next(iterator) == expected.pop(0)
            middle.rollback()
        for n in range(3):
            db.update({b"%04d" % key: b"after %d" % n * 20 for key in range(600)})
        assert outcome(iterator, expected) in ("ended", "went on")


@pytest.mark.parametrize("spilled_before", [False, True])
def test_a_block_that_was_rolled_back_goes_on_reading(volume: SimVolume, spilled_before: bool) -> None:
    with open_on(volume, PATH, "w", cache_size=0) as db, db.transaction() as outer:
        if spilled_before:
            db.update({b"%04d" % n: b"outer" for n in range(300)})
        expected = dict(db.items())
        with db.transaction() as inner:
            db.update({b"%04d" % n: b"inner" * 20 for n in range(600)})
            inner.rollback()
            assert dict(inner.items()) == dict(db.items()) == expected
            assert len(inner) == len(expected)
        assert dict(outer.items()) == expected
        outer.rollback()
        assert dict(outer.items()) == BEFORE


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_every_durability_commits_a_spilled_transaction(volume: SimVolume, durability: str) -> None:
    options = {"durability": durability, "interval": 3600.0}
    with open_on(volume, PATH, "w", **options) as db:  # type: ignore[arg-type]
        db[b"pending"] = b"1"
        with db.transaction():
            for n in range(500):
                db[b"%04d" % n] = b"x"
            assert spilled(db)
        expected = {**BEFORE, **{b"%04d" % n: b"x" for n in range(500)}, b"pending": b"1"}
        assert dict(db.items()) == expected
        db[b"after"] = b"2"
    with open_on(volume, PATH, "r") as db:
        assert dict(db.items()) == {**expected, b"after": b"2"}
        assert db.check() == []


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_full_disk_in_the_middle_rolls_back(volume: SimVolume, number: int) -> None:
    with open_on(volume, PATH, "w") as db:
        volume.fail_at(number, disk_error(errno.ENOSPC, "part"), kinds=("write",))
        with pytest.raises(durabledbm.error) as caught, db.transaction():
            fill(db)
        assert caught.value.errno == errno.ENOSPC
        assert dict(db.items()) == BEFORE
        fill(db)
        assert len(db) == 3000
        assert db.check() == []


def fill(db: durabledbm.Database) -> None:
    with db.transaction():
        for n in range(3000):
            db[b"%04d" % n] = b"x" * 200


@pytest.mark.parametrize("number", range(6))
def test_after_a_failure_that_the_program_caught_a_transaction_can_only_be_rolled_back(
    volume: SimVolume, number: int
) -> None:
    """The pages of the spill are half written: nothing may be built on them."""
    with open_on(volume, PATH, "w") as db:
        volume.fail_at(number, disk_error(errno.ENOSPC, "part"), kinds=("write",))
        with pytest.raises(durabledbm.error, match="was rolled back"):
            go_on_after_a_failure(db)
        assert dict(db.items()) == BEFORE
        assert db.check() == []
        fill(db)
        assert len(db) == 3000
        assert db.check() == []


def go_on_after_a_failure(db: durabledbm.Database) -> None:
    with db.transaction() as tx:
        assert failures(lambda n: db.__setitem__(b"%04d" % n, b"x" * 200)) == {"error": errno.ENOSPC, "": None}
        with pytest.raises(durabledbm.error, match="can only be rolled back"):
            tx["other"] = "value"


def failures(write: Callable[[int], object]) -> dict[str, int | None]:
    """Write until that fails, and then a few times more: the error of the first failure, and of the others."""
    found: dict[str, int | None] = {}
    for n in range(1000):
        try:
            write(n)
        except durabledbm.error as exc:
            found["" if found else "error"] = exc.errno
            if len(found) == 2:
                break
    return found


def test_an_interrupted_spill_is_rolled_back(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as db:
        for number in range(0, 30, 5):
            left = [number]

            def interrupt(operation: Operation, left: list[int] = left) -> None:
                if operation.kind == "write":
                    left[0] -= 1
                    if left[0] < 0:
                        volume.before = None
                        raise KeyboardInterrupt

            volume.before = interrupt
            with pytest.raises(KeyboardInterrupt):
                fill(db)
            assert dict(db.items()) == BEFORE
            assert db.check() == []


def test_clearing_in_a_spilled_transaction(volume: SimVolume) -> None:
    with open_on(volume, PATH, "w") as db:
        with db.transaction():
            for n in range(300):
                db[b"%04d" % n] = b"x"
            assert spilled(db)
            db.clear()
            assert len(db) == 0
            for n in range(300):
                db[b"a%04d" % n] = b"y"
        assert db.keys() == [b"a%04d" % n for n in range(300)]
        assert db.check() == []


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_spilling_changes_nothing_but_memory(seed: int) -> None:
    """Merged early or late, with savepoints kept and undone: the same entries, and every page accounted for."""
    draw = random.Random(seed)
    transaction.SPILL_SIZE = draw.choice([600, 3000])
    volume = SimVolume({PATH: empty_file()})
    with open_on(volume, PATH, "w") as db:
        db.update(BEFORE)
        model = dict(BEFORE)
        for _ in range(3):
            changes(db, model, draw, 0)
            assert dict(db.items()) == model
            assert len(db) == len(model)
            assert db.check() == []


def changes(db: durabledbm.Database, model: dict[bytes, bytes], draw: random.Random, depth: int) -> None:
    before = dict(model)
    iterators = []
    try:
        with db.transaction():
            for _ in range(draw.choice([5, 40])):
                choice = draw.random()
                key = b"%04d" % draw.randrange(600)
                if choice < 0.5:
                    db[key] = model[key] = draw.randbytes(draw.choice([0, 30, 200, 3000]))
                elif choice < 0.7:
                    assert db.pop(key, None) == model.pop(key, None)
                elif choice < 0.8 and depth < 3:
                    changes(db, model, draw, depth + 1)
                elif choice < 0.85:
                    iterators.append((iter(db.items()), sorted(model.items())))
                elif choice < 0.9 and iterators:
                    iterator, expected = iterators.pop()
                    assert list(iterator) == expected
                elif choice < 0.92:
                    db.clear()
                    model.clear()
            for iterator, expected in iterators:
                assert list(iterator) == expected
            if draw.random() < 0.4:
                raise Undo
    except Undo:
        model.clear()
        model.update(before)


# -- the spill itself ----------------------------------------------------------------------------------------------


def new_spill(
    volume: SimVolume, waiting: dict[bytes, bytes | None], *, cleared: bool = False
) -> tuple[Spill, Committer, Lease]:
    """On a file whose tree is empty, and whose newest changes stand in its meta page."""
    meta = Meta(1, 4096, DATABASE_ID, 2, entry_count=len(waiting), steady_txid=1, steady=True, changes=waiting)
    volume.put(PATH, encode_meta(meta) * 2)
    store = Store(volume, volume.open(PATH, writable=True), page_size=4096, cache_size=1 << 20)
    committer = Committer(store)
    lease = Lease()
    committer.begin(lease, 0)
    return Spill(committer.writes(), store.state, committer.preparer.take_free_map(), cleared=cleared), committer, lease


def test_what_waits_in_the_meta_page_goes_into_the_first_spill() -> None:
    spill, _, _ = new_spill(SimVolume({PATH: empty_file()}), {b"a": b"1", b"b": b"2"})
    tree, count = spill.add({b"b": b"3", b"c": b"4"})
    assert count == 3
    assert [tree.get(key) for key in (b"a", b"b", b"c")] == [b"1", b"3", b"4"]


def test_a_spill_that_starts_from_nothing_ignores_what_waits() -> None:
    spill, _, _ = new_spill(SimVolume({PATH: empty_file()}), {b"a": b"1"}, cleared=True)
    tree, count = spill.add({b"c": b"4"})
    assert count == 1
    assert tree.get(b"a") is None


def test_a_spill_returns_to_its_mark() -> None:
    spill, committer, _lease = new_spill(SimVolume({PATH: empty_file()}), {})
    spill.add({b"%d" % n: b"x" * 500 for n in range(100)})
    mark, before = spill.mark(), spill.view.tree
    spill.reuse = False
    spill.add({b"%d" % n: b"y" * 500 for n in range(50, 200)})
    assert spill.view.tree.get(b"70") == b"y" * 500
    spill.reset(mark)
    assert spill.view.tree.root == before.root
    committer.store.pager.clear()
    assert all(spill.view.tree.get(b"%d" % n) == b"x" * 500 for n in range(100))
    assert spill.view.tree.get(b"150") is None
    successor = committer.commit_spill(spill, {b"last": b"z"}, sync=True)
    assert successor.meta.entry_count == 101
    assert successor.view.get(b"last") == b"z"


@pytest.mark.long
def test_ten_million_puts_in_one_transaction_stay_within_memory(tmp_path: object) -> None:
    """Under 1 GiB, in a process of its own, since memory once taken is not given back."""
    import subprocess
    import sys
    from pathlib import Path

    program = f"""
import random, resource, durabledbm
db = durabledbm.open({str(tmp_path) + "/db"!r}, "c")
draw = random.Random(1)
with db.transaction():
    for _ in range(10_000_000):
        db[b"%016d" % draw.randrange(10**15)] = b"x" * 20
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak // 1024, len(db))
db.close()
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    megabytes, count = map(int, done.stdout.split())
    assert count > 9_900_000
    assert megabytes < 1024
