"""Checkpoints: against copies of a dict of dicts, and in everything that handles a file."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest
from model import mapping_of
from simdisk import SimVolume

import durabledbm
from durabledbm import salvage
from durabledbm._engine.catalog import checkpoint_key
from durabledbm._engine.checkpoints import checkpoints
from durabledbm._engine.merge import TOUCH
from durabledbm._engine.meta import Meta
from durabledbm._engine.page import ref_parts
from durabledbm._engine.prepare import Batch, Preparer
from durabledbm._engine.view import State
from durabledbm.checkpoint import Change
from durabledbm.database import Database, open_on

Model = dict[str, dict[bytes, bytes]]
NAMES = ["", "a", "b"]


def content_of(db: Any) -> Model:
    return {name: dict(mapping_of(db, name).items()) for name in NAMES}


def copied(model: Model) -> Model:
    return {name: dict(entries) for name, entries in model.items()}


def test_a_checkpoint_keeps_the_last_commit(db: Database) -> None:
    db.update({b"%04d" % n: b"before" for n in range(500)})
    db.table("a")["k"] = "before"
    before = content_of(db)
    txid = db.stats().txid
    db.checkpoint("first")
    db.update({b"%04d" % n: b"after" for n in range(0, 500, 3)})
    db.table("a").clear()
    with db.at("first") as kept:
        assert content_of(kept) == before
        assert len(kept) == 500
        assert kept.txid in (txid, txid + 1), "what waited in the meta page was merged"
    (checkpoint,) = db.checkpoints()
    assert (checkpoint.name, checkpoint.txid, checkpoint.entries) == ("first", kept.txid, 500)
    assert 0 < checkpoint.pinned_bytes <= 100_000
    assert db.check() == []
    db.drop_checkpoint("first")
    assert db.checkpoints() == []
    assert db.check() == []


def test_an_empty_database_can_be_kept(db: Database) -> None:
    db.checkpoint("empty")
    db["k"] = "v"
    with db.at("empty") as kept:
        assert dict(kept) == {}
    db.restore("empty")
    assert dict(db) == {}
    assert db.check() == []


def test_names(db: Database) -> None:
    db["k"] = "1"
    db.checkpoint("x")
    db["k"] = "2"
    with pytest.raises(durabledbm.error, match="there is a checkpoint 'x' already"):
        db.checkpoint("x")
    db.checkpoint("x", replace=True)
    db["k"] = "3"
    assert db.at("x")["k"] == b"2"
    assert [checkpoint.name for checkpoint in db.checkpoints()] == ["x"]
    for call in (db.at, db.drop_checkpoint, db.restore):
        with pytest.raises(KeyError):
            call("none")
        with pytest.raises(ValueError, match="of a checkpoint must not be empty"):
            call("")
        with pytest.raises(TypeError, match="of a checkpoint must be str, not bytes"):
            call(b"x")
    with pytest.raises(durabledbm.error, match="outside of a transaction"), db.transaction():
        db.checkpoint("y")
    assert db.check() == []


def test_a_read_only_handle_reads_checkpoints(db: Database) -> None:
    db["k"] = "1"
    db.checkpoint("x")
    db["k"] = "2"
    with durabledbm.open(db.path) as reader:
        assert reader.at("x")["k"] == b"1"
        assert [tuple(change) for change in reader.diff("x")] == [("", b"k", b"1", b"2")]
        with pytest.raises(durabledbm.ReadOnlyError):
            reader.checkpoint("y")
        with pytest.raises(durabledbm.ReadOnlyError):
            reader.restore("x")


def test_diff(db: Database) -> None:
    db.update({b"%04d" % n: b"x" * 50 for n in range(2000)}, gone="1", changed="1")
    db.table("a").update(k="1", same="2")
    db.table("b")["k"] = "1"
    db.checkpoint("x")
    del db["gone"]
    db["changed"] = "2"
    db["new"] = "3"
    db.table("a").clear()
    db.table("a").update(same="2", new="3")
    db.drop_table("b")
    expected = [
        Change("", b"changed", b"1", b"2"), Change("", b"gone", b"1", None), Change("", b"new", None, b"3"),
        Change("a", b"k", b"1", None), Change("a", b"new", None, b"3"), Change("b", b"k", b"1", None),
    ]  # fmt: skip
    assert sorted(db.diff("x")) == expected
    db.checkpoint("y")
    with db.snapshot() as snapshot:
        db.clear()
        assert sorted(db.diff("x", "y")) == sorted(db.diff("x", snapshot)) == expected
    assert sorted(db.diff("y", "x")) == [Change(table, key, new, old) for table, key, old, new in expected]
    assert list(db.diff("x", "x")) == []
    with db.snapshot() as empty:
        db["new"] = "1"
        assert list(db.diff(empty, empty)) == []
        assert Change("", b"new", b"1", None) not in db.diff("x", empty)
    with pytest.raises(ValueError, match="empty"):
        db.diff("x", "")


def test_diff_reads_only_what_differs(db: Database) -> None:
    db.update({b"%06d" % n: b"x" * 100 for n in range(20_000)})
    db.checkpoint("x")
    db.update({b"000000": b"y", b"019999": b"y"})
    db.checkpoint("y")
    with durabledbm.open(db.path, cache_size=0) as reader:
        before = reader.stats().cache_misses
        assert len(list(reader.diff("x", "y"))) == 2
        assert reader.stats().cache_misses - before < 60


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_restoring_is_one_commit_that_can_be_undone(db_path: str, durability: Any) -> None:
    with durabledbm.open(db_path, "c", durability=durability) as db:
        db.update({b"%03d" % n: b"1" for n in range(300)})
        db.table("a")["k"] = "1"
        db.checkpoint("x")
        db.update({b"%03d" % n: b"2" for n in range(0, 300, 7)})
        db.drop_table("a")
        db.table("b")["k"] = "2"
        now = content_of(db)
        db.checkpoint("now")
        db.restore("x")
        assert content_of(db) == {"": {b"%03d" % n: b"1" for n in range(300)}, "a": {b"k": b"1"}, "b": {}}
        assert db.tables() == ["a"]
        db.restore("now")
        assert content_of(db) == now
        assert len(db.checkpoints()) == 2
        assert db.check() == []
    with durabledbm.open(db_path) as db:
        assert content_of(db) == now


def step(db: Database, model: Model, rng: random.Random) -> None:
    name = rng.choice(NAMES)
    mapping, entries = mapping_of(db, name), model[name]
    with db.transaction():
        for _ in range(rng.choice((1, 1, 5, 60))):
            key, choice = b"%03d" % rng.randrange(400), rng.random()
            if choice < 0.7:
                mapping[key] = entries[key] = rng.randbytes(rng.choice((3, 50, 3000)))
            elif choice < 0.97:
                assert mapping.pop(key, None) == entries.pop(key, None)
            else:
                mapping.clear()
                entries.clear()


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_everything(db_path: str, seed: int) -> None:
    rng, model = random.Random(seed), {name: {} for name in NAMES}
    kept: dict[str, Model] = {}
    db = durabledbm.open(db_path, "c")
    for number in range(150):
        step(db, model, rng)
        name = rng.choice(list(kept) or [""])
        choice = rng.randrange(40)
        if choice < 5:
            db.checkpoint(str(number))
            kept[str(number)] = copied(model)
        elif choice < 7 and len(kept) > 3:
            db.drop_checkpoint(name)
            del kept[name]
        elif choice == 8 and kept:
            db.restore(name)
            model = copied(kept[name])
        elif choice == 9:
            db.reorganize()
        elif choice == 10:
            db.close()
            db = durabledbm.open(db_path, "w")
        if number % 50 == 49:
            assert db.check() == []
            assert content_of(db) == model
            for name, content in kept.items():
                with db.at(name) as snapshot:
                    assert content_of(snapshot) == content
    for name in rng.sample(list(kept), len(kept)):
        db.drop_checkpoint(name)
        assert db.check() == []
    db.reorganize()
    stats = db.stats()
    assert stats.file_bytes < 1.15 * stats.live_bytes + 60_000, "nothing is left of them"
    db.close()


def test_a_backup_has_the_checkpoints(db: Database, tmp_path: Path) -> None:
    rng, model = random.Random(3), {name: {} for name in NAMES}
    kept = {}
    for number in range(30):
        step(db, model, rng)
        if number % 6 == 5:
            db.checkpoint(str(number))
            kept[str(number)] = copied(model)
    db["large"] = b"x" * 3_000_000
    db.backup(tmp_path / "copy")
    with durabledbm.open(tmp_path / "copy", "w") as copy:
        assert copy.check() == []
        assert content_of(copy) == content_of(db)
        for name, content in kept.items():
            assert content_of(copy.at(name)) == content
        for name in list(kept)[1:3]:
            copy.drop_checkpoint(name)
        copy["new"] = b"y" * 5000
        assert copy.check() == []
        assert copy.stats().file_bytes < 1.1 * db.stats().file_bytes


def test_making_one_takes_a_few_pages_however_large_the_database(db: Database) -> None:
    db.update({b"%06d" % n: b"x" * 100 for n in range(20_000)})
    before = db.stats()
    db.checkpoint("x")
    after = db.stats()
    assert after.pages_written - before.pages_written < 12
    assert after.file_bytes - before.file_bytes < 100_000
    assert (after.checkpoints, after.kept_pages) == (1, 0), "the present is all that it needs"


def test_flag_n_drops_them(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.update({b"%04d" % n: b"x" * 100 for n in range(1000)})
        db.checkpoint("x")
    with durabledbm.open(db_path, "n") as db:
        assert db.checkpoints() == []
        assert db.check() == []
        assert db.stats().live_bytes < 40_000


@pytest.mark.leaves_damage
def test_a_damaged_map_of_free_space_is_made_anew(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.update({b"%04d" % n: b"x" * 100 for n in range(1000)})
        db.checkpoint("x")
        db.update({b"%04d" % n: b"y" * 100 for n in range(0, 1000, 2)})
        before = content_of(db.at("x"))
        db.update({b"%04d" % n: b"z" * 100 for n in range(0, 1000, 3)})
        space = int.from_bytes(db._store.state.meta.space[:8], "little")
    content = bytearray(Path(db_path).read_bytes())
    content[space * 4096 + 50] ^= 1
    Path(db_path).write_bytes(content)
    with durabledbm.open(db_path, "w") as db:
        for number in range(5):
            db.update({b"%04d" % n: b"%d" % number * 100 for n in range(0, 1000, 2)})
        assert content_of(db.at("x")) == before
        assert db.check() == []


def test_salvage_leaves_checkpoints_out(db: Database, tmp_path: Path) -> None:
    db["k"] = "1"
    db.checkpoint("x")
    db["k"] = "2"
    db.sync()
    salvage.salvage(db.path, tmp_path / "saved")
    with durabledbm.open(tmp_path / "saved") as saved:
        assert dict(saved) == {b"k": b"2"}
        assert saved.tables() == []


def test_a_commit_beside_a_checkpoint_is_one_sync_and_dropping_one() -> None:
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        db.update({b"%04d" % n: b"x" * 100 for n in range(1000)})
        db.checkpoint("x")
        db.update({b"%04d" % n: b"y" * 100 for n in range(0, 1000, 50)})
        before = volume.syncs
        db["k"] = "v"
        assert volume.syncs == before + 1
        db.drop_checkpoint("x")
        assert volume.syncs == before + 2


def test_a_snapshot_may_be_ended_when_its_pages_are_needed(db: Database) -> None:
    db.update({b"%04d" % n: b"x" * 100 for n in range(1000)})
    young, old, unlimited = db.snapshot(max_age=1000), db.snapshot(max_age=0), db.snapshot()
    iterator = iter(old.items())
    next(iterator)
    db["small"] = "in the meta page: no pages are needed"
    assert len(old) == 1000
    db.update({b"%04d" % n: b"y" * 100 for n in range(1000)})
    for read in (lambda: old["0000"], lambda: len(old), lambda: list(iterator), lambda: old.table("t")):
        with pytest.raises(durabledbm.error, match="older than its max_age"):
            read()
    assert old.closed
    for snapshot in (young, unlimited):
        assert dict(snapshot) == {b"%04d" % n: b"x" * 100 for n in range(1000)}
        snapshot.close()


def test_moving_the_catalog_drops_nothing(db: Database) -> None:
    """To move the leaf that begins with a checkpoint's record, that key is touched."""
    db.update({b"%04d" % n: b"x" * 100 for n in range(500)})
    db.checkpoint("x")
    db.update({b"%04d" % n: b"y" * 100 for n in range(500)})
    committer = db._pipeline.committer
    with db._pipeline.writing():
        committer.rewrite({checkpoint_key("x"): TOUCH}, packing=False)
        committer.rewrite({checkpoint_key("x"): TOUCH}, packing=True)
    db.update({b"%04d" % n: b"z" * 100 for n in range(500)})
    assert db.check() == []
    assert dict(db.at("x")) == {b"%04d" % n: b"x" * 100 for n in range(500)}


def test_a_value_in_pieces_is_kept_and_freed(db: Database) -> None:
    before = db.stats().live_bytes
    first, second = b"1" * 2_000_000, b"2" * 3_000_000
    db["large"] = first
    db.checkpoint("x")
    db["large"] = second
    assert db.check() == []
    with db.at("x") as kept:
        assert kept["large"] == first
    (checkpoint,) = db.checkpoints()
    assert 2_000_000 < checkpoint.pinned_bytes < 2_100_000
    del db["large"]
    db.drop_checkpoint("x")
    assert db.check() == []
    assert db.stats().live_bytes < before + 50_000


@pytest.mark.parametrize("spill_size", [1500, 10**9])
def test_restoring_inside_a_transaction_replaces_what_it_has_changed(
    db: Database, monkeypatch: pytest.MonkeyPatch, spill_size: int
) -> None:
    monkeypatch.setattr("durabledbm.transaction.SPILL_SIZE", spill_size)
    db.update({b"%03d" % n: b"1" for n in range(100)})
    db.table("a")["k"] = "1"
    kept = content_of(db)
    db.checkpoint("x")
    db["000"] = "2"
    with db.transaction():
        db.update({b"%03d" % n: b"3" for n in range(0, 200, 3)})
        db["000"] = "1"
        db.table("b")["k"] = "3"
        db.drop_table("a")
        with db.transaction() as inner:
            db.restore("x")
            inner.rollback()
        assert (len(db), db.tables()) == (133, ["b"])
        db.restore("x")
        db.restore("x")
        assert content_of(db) == kept
    assert content_of(db) == kept
    assert db.check() == []


def test_flag_n_drops_them_before_it_is_flushed(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db["k"] = "v"
        db.checkpoint("x")
    with durabledbm.open(db_path, "n", durability="manual") as db:
        assert db.checkpoints() == []
        with pytest.raises(KeyError):
            db.at("x")
        db.checkpoint("x")
        assert dict(db.at("x")) == {}


@pytest.mark.leaves_damage
@pytest.mark.parametrize("durability", ["full", "manual"])
@pytest.mark.parametrize("tree", [0, 1])
def test_flag_n_empties_a_damaged_file(db_path: str, tree: int, durability: Any) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.update({b"%04d" % n: b"x" * 100 for n in range(500)})
        db.table("a").update({b"%04d" % n: b"x" * 100 for n in range(500)})
        db.checkpoint("x")
        db.update({b"%04d" % n: b"y" * 100 for n in range(500)})
        root = db._store.state.view.trees()[tree].root
    content = bytearray(Path(db_path).read_bytes())
    content[ref_parts(root)[0] * 4096 + 50] ^= 1
    Path(db_path).write_bytes(content)
    with durabledbm.open(db_path, "n", durability=durability) as db:
        assert (len(db), db.tables(), db.checkpoints()) == (0, [], [])
        db["k"] = "v"
    with durabledbm.open(db_path, "w") as db:
        assert db.check() == []
        db.table("a")["k"] = "v"
        assert content_of(db) == {"": {b"k": b"v"}, "a": {b"k": b"v"}, "b": {}}


@pytest.mark.parametrize("record_merged", [False, True])
def test_dropping_one_while_the_disk_is_full_frees_its_pages(
    db: Database, monkeypatch: pytest.MonkeyPatch, record_merged: bool
) -> None:
    model = {b"%04d" % n: b"y" * 100 for n in range(1000)}
    if record_merged:
        db.update(dict.fromkeys(model, b"x"))
    else:
        db.update(model)
    db.checkpoint("x")
    db.update(model if record_merged else {})
    for key in (b"0000", b"0500"):
        db[key] = model[key] = b"z" * 1200
    in_tree = Preparer._in_tree

    def full(self: Preparer, old: State, batch: Batch, *, sync: bool) -> Meta:
        if not batch.sparing:
            raise OSError(errno.ENOSPC, "no space")
        return in_tree(self, old, batch, sync=sync)

    with monkeypatch.context() as patched:
        patched.setattr(Preparer, "_in_tree", full)
        db.drop_checkpoint("x")
    assert db.checkpoints() == []
    assert db.check() == []
    db[b"0001"] = model[b"0001"] = b"w" * 5000
    assert db.check() == []
    assert dict(db) == model


@pytest.mark.leaves_damage
@pytest.mark.parametrize("replace", [False, True])
def test_a_damaged_one_can_be_dropped(db_path: str, replace: bool) -> None:
    def filled(value: bytes) -> dict[bytes, bytes]:
        return {b"%04d" % n: value * 100 for n in range(1000)}

    with durabledbm.open(db_path, "c") as db:
        for value in (b"x", b"y", b"z"):
            db.update(filled(value))
            db.checkpoint(value.decode())
        db.update(filled(b"w"))
        page_id = ref_parts(checkpoints(db._store.state.view)["y"].root)[0]
    content = bytearray(Path(db_path).read_bytes())
    content[page_id * 4096 + 50] ^= 1
    Path(db_path).write_bytes(content)
    with durabledbm.open(db_path, "w") as db:
        with pytest.raises(durabledbm.CorruptionError):
            db.at("y")["0000"]
        assert db.check() != []
        if replace:
            db.checkpoint("y", replace=True)
            assert dict(db.at("y")) == filled(b"w")
        else:
            db.drop_checkpoint("y")
        assert db.check() == []
        db.update(filled(b"v"))
        assert (dict(db.at("x")), dict(db.at("z"))) == (filled(b"x"), filled(b"z"))
        for checkpoint in db.checkpoints():
            db.drop_checkpoint(checkpoint.name)
        db.reorganize()
        assert db.check() == []
        assert db.stats().file_bytes < 1.2 * db.stats().live_bytes + 60_000
