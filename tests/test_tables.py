"""Tables: against a dict of dicts and LMDB's named databases, and in everything that handles a file."""

from __future__ import annotations

import os
import random
import shelve as stdlib_shelve
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import mapping_of
from simdisk import SimVolume

import durabledbm
from durabledbm import changelog, dump, restore, salvage, shelve, transaction
from durabledbm._engine.catalog import CATALOG, NAMES, TableKey, name_key, prefix_of
from durabledbm.database import Database, open_on
from durabledbm.export import export
from durabledbm.maintenance.inspect import inspect
from durabledbm.reshard import reshard

Model = dict[str, dict[bytes, bytes]]


def content_of(db: Any) -> Model:
    """Everything, without tables that hold nothing. Each number of entries must be right."""
    content = {}
    for name in ["", *db.tables()]:
        content[name] = dict(mapping_of(db, name).items())
        assert len(mapping_of(db, name)) == len(content[name])
    return filled(content)


def filled(model: Model) -> Model:
    return {name: entries for name, entries in model.items() if entries or not name}


def fill(db: Any, seed: int = 1) -> Model:
    """Tables of different sizes, some of several leaves, with large values."""
    rng = random.Random(seed)
    model: Model = {"": {b"main": b"1"}, "n\u00e4me|\n": {b"": b"", b"\xff" * 7: b"\xff"}}
    for number in range(12):
        model[f"table {number}"] = {
            b"%03d" % n: rng.randbytes(rng.choice((0, 9, 80, 3000))) for n in range(rng.choice((1, 5, 200)))
        }
    for name, entries in model.items():
        mapping_of(db, name).update(entries)
    return model


class Undo(Exception):
    """Rolls back a transaction."""


@contextmanager
def undone(db: Any) -> Iterator[Any]:
    """A transaction that is rolled back in the end."""
    with suppress(Undo), db.transaction() as tx:
        yield tx
        raise Undo


# -- the mapping -----------------------------------------------------------------------------------


def test_a_table_is_made_by_its_first_write(db: Database) -> None:
    users = db.table("users")
    assert db.tables() == []
    assert dict(users) == {}
    assert len(users) == 0
    assert users.get("ada") is None
    assert "ada" not in users
    with pytest.raises(KeyError):
        del users["ada"]
    assert users.pop("ada", None) is None
    users.clear()
    assert db.tables() == []
    users["ada"] = "Lovelace"
    assert db.tables() == ["users"]
    assert db.table("users")["ada"] == b"Lovelace"


def test_tables_have_key_spaces_of_their_own(db: Database) -> None:
    db["key"] = "main"
    db.table("a")["key"] = "a"
    db.table("b")["key"] = "b"
    assert (dict(db), dict(db.table("a")), dict(db.table("b"))) == ({b"key": b"main"}, {b"key": b"a"}, {b"key": b"b"})
    db.clear()
    assert (dict(db), dict(db.table("a"))) == ({}, {b"key": b"a"})
    db.table("a").clear()
    assert (dict(db.table("a")), dict(db.table("b"))) == ({}, {b"key": b"b"})
    assert db.check() == []


def test_all_of_a_mapping(db: Database) -> None:
    table = db.table("t")
    db["a"] = db["z"] = "not of the table"
    table.update({b"%02d" % n: b"%d" % n for n in range(50)}, more="50")
    assert len(table) == 51
    assert table.first() == (b"00", b"0")
    assert table.last() == (b"more", b"50")
    assert list(table.range("10", "13")) == [(b"10", b"10"), (b"11", b"11"), (b"12", b"12")]
    assert next(table.range(prefix="4", reverse=True)) == (b"49", b"49")
    assert list(reversed(table))[:2] == [b"more", b"49"]
    assert table.get_many(["01", "none"]) == {b"01": b"1"}
    assert table.setdefault("01", "x") == b"1"
    assert table.setdefault("new", "x") == b"x"
    assert table.popitem() == (b"new", b"x")
    assert table.pop("more") == b"50"
    assert table.nextkey("48") == b"49"
    assert table.nextkey("49") is None
    assert table.keys() == [b"%02d" % n for n in range(50)]
    assert list(table.values())[-1] == b"49"
    assert table == {b"%02d" % n: b"%d" % n for n in range(50)}
    iterator = iter(table.items())
    table.clear()
    assert dict(iterator) == {b"%02d" % n: b"%d" % n for n in range(50)}, "the state at its start"
    assert not table
    assert db.check() == []


@pytest.mark.parametrize("name", [b"bytes", None, 3])
def test_names_are_text(db: Database, name: Any) -> None:
    with pytest.raises(TypeError, match="must be str"):
        db.table(name)


@pytest.mark.parametrize("name", ["", "\ud800"])
def test_what_is_no_name(db: Database, name: str) -> None:
    with pytest.raises(ValueError, match=r"empty|surrogates"):
        db.table(name)
    with pytest.raises(ValueError, match=r"empty|surrogates"):
        db.drop_table(name)


@pytest.mark.parametrize("name", ["x", "\0", "\u00e4\U0001f600", "n" * 10_000, "t", "a\nb|c"])
def test_any_other_text_is_a_name(db_path: str, name: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.table(name)["k"] = "v"
    with durabledbm.open(db_path, "w") as db:
        assert db.tables() == [name]
        assert dict(db.table(name)) == {b"k": b"v"}
        assert db.check() == []
        db.drop_table(name)
        assert db.tables() == []


def test_a_member_of_an_enum_of_names_is_the_name_that_it_stands_for(db: Database) -> None:
    class Names(str, Enum):
        USERS = "users"

    db.table(Names.USERS)["k"] = "v"
    assert db.tables() == ["users"]
    assert type(db.table(Names.USERS).name) is str
    db.drop_table(Names.USERS)
    assert db.tables() == []


def test_a_table_that_does_not_exist_is_not_dropped(db: Database) -> None:
    with pytest.raises(KeyError):
        db.drop_table("none")
    with db.transaction() as tx, pytest.raises(KeyError):
        tx.drop_table("none")


def test_a_read_only_handle(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.table("t")["k"] = "v"
    with durabledbm.open(db_path) as db:
        table = db.table("t")
        assert table["k"] == b"v"
        for change in (lambda: table.update(a="b"), table.clear, lambda: db.drop_table("t")):
            with pytest.raises(durabledbm.ReadOnlyError):
                change()
    with pytest.raises(durabledbm.ClosedError):
        table["k"]
    with pytest.raises(durabledbm.ClosedError):
        db.table("t")


def test_flag_n_empties_all_tables(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        fill(db)
    with durabledbm.open(db_path, "n") as db:
        assert db.tables() == []
        assert dict(db) == {}
        assert db.check() == []


# -- transactions, snapshots, commits --------------------------------------------------------------


def test_a_transaction_covers_all_tables(db: Database) -> None:
    db.table("a")["k"] = "before"
    with undone(db) as tx:
        tx.table("a")["k"] = "in it"
        db.table("b")["k"] = tx["k"] = "in it"
        assert tx.tables() == db.tables() == ["a", "b"]
        assert dict(db.table("a")) == {b"k": b"in it"}
        assert len(tx.table("b")) == 1
        tx.drop_table("a")
        assert tx.tables() == ["b"]
        assert dict(tx.table("a")) == {}
        tx.table("a")["new"] = "x"
        assert dict(tx.table("a")) == {b"new": b"x"}
    assert content_of(db) == {"": {}, "a": {b"k": b"before"}}
    with db.transaction() as tx:
        tx["k"] = tx.table("a")["k"] = "both"
    assert content_of(db) == {"": {b"k": b"both"}, "a": {b"k": b"both"}}


@pytest.mark.parametrize("durability", ["full", "manual"])
def test_writing_to_a_table_does_not_count_in_the_main_one(db_path: str, durability: Any) -> None:
    with durabledbm.open(db_path, "c", durability=durability) as db:
        db["main"] = "1"
        with db.transaction() as tx:
            assert len(tx) == 1
            for value in ("1", "2"):  # the second replaces what was added in the same transaction
                tx.table("t")["k"] = value
            assert (len(tx), len(tx.table("t"))) == (1, 1)
        assert len(db) == 1
        for value in ("1", "2"):
            db.table("u")["k"] = value
        assert (len(db), len(db.table("u"))) == (1, 1)


def test_a_savepoint_undoes_what_was_done_to_tables(db: Database) -> None:
    table = db.table("t")
    with db.transaction():
        table["kept"] = "1"
        with undone(db):
            table["undone"] = "2"
            table.clear()
            db.table("other")["x"] = "y"
            db.clear()
        assert dict(table) == {b"kept": b"1"}
        assert len(table) == 1
        table["more"] = "3"
    assert content_of(db) == {"": {}, "t": {b"kept": b"1", b"more": b"3"}}


def test_clearing_the_main_table_in_a_transaction_leaves_the_others(db: Database) -> None:
    db.update(a="1", b="2")
    db.table("t").update(a="1")
    with db.transaction() as tx:
        tx.table("t")["b"] = "2"
        tx.clear()
        tx["c"] = "3"
        tx.table("t")["c"] = "3"
        assert len(tx) == 1
        assert len(tx.table("t")) == 3
    assert content_of(db) == {"": {b"c": b"3"}, "t": {b"a": b"1", b"b": b"2", b"c": b"3"}}
    assert db.check() == []


def test_a_snapshot_shows_all_tables_at_one_instant(db: Database) -> None:
    before = fill(db)
    with db.snapshot() as snapshot:
        db.drop_table("table 1")
        db.table("new")["k"] = db["k"] = "v"
        db.table("table 2").clear()
        assert content_of(snapshot) == filled(before)
        assert snapshot.tables() == sorted(before.keys() - {""})
        table = snapshot.table("table 1")
    with pytest.raises(durabledbm.ClosedError):
        len(table)
    with db.table("new").snapshot() as one:
        db.table("new")["k"] = "changed"
        assert dict(one) == {b"k": b"v"}
    assert one.closed


def test_a_small_commit_to_any_table_is_one_write_and_one_sync() -> None:
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        fill(db)
        names = [f"table {number}" for number in range(4)]
        for name in names:
            db.table(name)["k"] = "v"  # may be the one for which the meta page is full
        before, pages = volume.syncs, db.stats().pages_written
        for name in names:
            db.table(name)["k"] = "changed"
        assert volume.syncs - before == len(names)
        assert db.stats().pages_written == pages


def test_dropping_a_table_frees_its_pages_in_one_commit(db: Database) -> None:
    db.table("small")["k"] = "v"
    db.update({b"%05d" % n: b"x" * 50 for n in range(1000)})
    before = db.stats()
    db.table("large").update({b"%06d" % n: b"x" * 100 for n in range(20_000)} | {b"value": b"v" * 100_000})
    grown = db.stats()
    assert grown.live_bytes > before.live_bytes + 2_000_000
    txid = grown.txid
    db.drop_table("large")
    after = db.stats()
    assert after.live_bytes < before.live_bytes + 50_000
    with durabledbm.open(db.path) as other:
        assert other.stats().txid <= txid + 1 + 20, "the commits that cut off the end of the file"
    assert db.check() == []
    assert db.tables() == ["small"]


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_every_durability(db_path: str, durability: Any) -> None:
    with durabledbm.open(db_path, "c", durability=durability) as db:
        model = fill(db)
        db.table("table 3")["k"] = "v"
        model["table 3"][b"k"] = b"v"
        db.drop_table("table 4")
        del model["table 4"]
        assert content_of(db) == filled(model)
        with db.snapshot() as snapshot:
            assert content_of(snapshot) == filled(model)
    with durabledbm.open(db_path) as db:
        assert content_of(db) == filled(model)
        assert db.check() == []


def test_a_transaction_that_outgrows_its_memory(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fill(db)
    monkeypatch.setattr(transaction, "SPILL_SIZE", 5000)
    with db.transaction() as tx:
        for number in range(300):
            name = f"table {number % 5}"
            tx.table(name)[b"new %d" % number] = model[name][b"new %d" % number] = b"x" * 100
            tx[b"%d" % number] = model[""][b"%d" % number] = b"y" * 50
        tx.drop_table("table 1")
        model["table 1"] = {}
        with undone(db):
            tx_table = db.table("table 2")
            tx_table.update({b"undone %d" % n: b"x" * 100 for n in range(100)})
            db.drop_table("table 3")
        assert content_of(tx) == filled(model)
    assert content_of(db) == filled(model)
    assert db.check() == []


def test_clearing_the_main_table_after_a_spill_leaves_the_others(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "SPILL_SIZE", 2000)
    db.table("before")["k"] = "v"
    with db.transaction() as tx:
        tx["main"] = "1"
        tx.table("t")["large"] = b"v" * 3000
        tx.clear()
        tx["main"] = "2"
        assert content_of(tx) == {"": {b"main": b"2"}, "before": {b"k": b"v"}, "t": {b"large": b"v" * 3000}}
    assert content_of(db) == {"": {b"main": b"2"}, "before": {b"k": b"v"}, "t": {b"large": b"v" * 3000}}
    assert db.check() == []


def test_threads_that_write_to_different_tables(db: Database) -> None:
    def write(thread: int) -> None:
        table = db.table(f"table {thread % 2}")
        for number in range(20):
            table[b"%d %d" % (thread, number)] = b"v"
            if number % 4 == 3:
                del table[b"%d %d" % (thread, number - 1)]

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: len(db.table(name)) for name in db.tables()} == {"table 0": 30, "table 1": 30}
    assert db.check() == []


def test_an_interrupt_leaves_the_number_of_entries_right(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception before the changes are made in one step, and a user who goes on with the transaction."""
    from durabledbm._engine.changeset import ChangeSet

    table = db.table("t")
    table["k"] = "v"
    with db.transaction():
        with monkeypatch.context() as patch:
            patch.setattr(ChangeSet, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                table["new"] = "v"
        assert len(table) == 1
        table["another"] = "v"
    assert (len(table), dict(table)) == (2, {b"k": b"v", b"another": b"v"})
    assert db.check() == []


def test_a_table_that_is_emptied_and_filled_again_is_never_seen_empty(db_path: str) -> None:
    """A look-up finds the id, then the entry: between the two, another handle gives the table another id."""
    with durabledbm.open(db_path, "c") as db, durabledbm.open(db_path, "w") as other:
        db.table("t")["k"] = "1"
        table = other.table("t")
        assert table["k"] == b"1"
        find = other._find

        def overtaken(key: bytes, *, whole: bool = True) -> bytes | None:
            if key.startswith(NAMES):
                return find(key, whole=whole)
            monkey.undo()
            with db.transaction() as tx:
                tx.table("t").clear()
                tx.table("t")["k"] = "2"
            return find(key, whole=whole)

        monkey = pytest.MonkeyPatch()
        monkey.setattr(Database, "_find", lambda self, key, *, whole=True: overtaken(key, whole=whole))
        try:
            assert table["k"] == b"2"
        finally:
            monkey.undo()


# -- against LMDB's named databases ----------------------------------------------------------------

NAMED = ["", "a", "b", "long name " * 20]
names = st.sampled_from(NAMED)
keys = st.one_of(st.integers(0, 60).map(lambda n: b"%03d" % n), st.binary(min_size=1, max_size=3))
values = st.one_of(st.binary(max_size=30), st.integers(0, 9000).map(lambda size: b"v" * size))
steps = st.one_of(
    st.tuples(st.just("put"), names, keys, values),
    st.tuples(st.just("delete"), names, keys),
    st.tuples(st.just("update"), names, st.dictionaries(keys, values, max_size=40)),
    st.tuples(st.just("clear"), names),
    st.tuples(st.just("drop"), names),
    st.tuples(st.just("undo"), names, st.dictionaries(keys, values, max_size=10)),
    st.tuples(st.just("reopen"), names),
    st.tuples(st.just("reorganize"), names),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(steps, min_size=1, max_size=4), max_size=12))
def test_a_dict_of_dicts_and_lmdb_say_the_same(tmp_path_factory: pytest.TempPathFactory, commits: list[Any]) -> None:
    directory = tmp_path_factory.mktemp("tables")
    path = directory / "db"
    model: Model = {"": {}}
    db = durabledbm.open(path, "c")
    with lmdb.open(str(directory / "lmdb"), max_dbs=9, map_size=2**26, sync=False) as environment:
        named = {name: environment.open_db(name.encode() or b"main") for name in NAMED}
        for commit in commits:
            with db.transaction(), environment.begin(write=True) as writing:
                for step, name, *arguments in commit:
                    apply(step, mapping_of(db, name), model.setdefault(name, {}), arguments)
                    if step == "drop" and name in db.tables():
                        db.drop_table(name)
                    if step in ("clear", "drop"):
                        writing.drop(named[name], delete=False)
                    mirror(step, writing, named[name], arguments)
            if commit[0][0] == "reopen":
                db.close()
                db = durabledbm.open(path, "w")
            elif commit[0][0] == "reorganize":
                db.reorganize()
            assert content_of(db) == filled(model)
            with environment.begin() as reading:
                for name, entries in model.items():
                    assert list(reading.cursor(named[name])) == sorted(entries.items())
                    assert list(mapping_of(db, name).range()) == sorted(entries.items())
        assert db.check() == []
        db.close()
    with durabledbm.open(path) as db:
        assert content_of(db) == filled(model)


def apply(step: str, mapping: Any, entries: dict[bytes, bytes], arguments: list[Any]) -> None:
    if step == "put":
        mapping[arguments[0]] = entries[arguments[0]] = arguments[1]
    elif step == "delete":
        assert mapping.pop(arguments[0], None) == entries.pop(arguments[0], None)
    elif step == "update":
        mapping.update(arguments[0])
        entries.update(arguments[0])
    elif step in ("clear", "drop"):
        mapping.clear()
        entries.clear()
    elif step == "undo":
        database = mapping if isinstance(mapping, Database) else mapping._source
        with undone(database):
            mapping.clear()
            mapping.update(arguments[0])
            assert len(mapping) == len(arguments[0])


def mirror(step: str, writing: Any, database: Any, arguments: list[Any]) -> None:
    if step == "put":
        writing.put(arguments[0], arguments[1], db=database)
    elif step == "delete":
        writing.delete(arguments[0], db=database)
    elif step == "update":
        for key, value in arguments[0].items():
            writing.put(key, value, db=database)


# -- what handles a file handles its tables --------------------------------------------------------


def test_backup(db: Database, tmp_path: Path) -> None:
    model = fill(db)
    db.table("emptied")["k"] = "v"
    db.table("emptied").clear()
    told: list[tuple[int, int | None]] = []
    db.backup(tmp_path / "copy", progress=lambda done, total: told.append((done, total)))
    with durabledbm.open(tmp_path / "copy", "w") as copy:
        assert content_of(copy) == filled(model)
        assert copy.check() == []
        copy.table("new")["k"] = "v"
        assert len(copy.table("new")) == 1
        assert copy.check() == []
    count = sum(map(len, model.values()))
    assert told[-1] == (count, count)


def test_reorganize_moves_what_tables_hold(db: Database) -> None:
    model = fill(db)
    db.table("gone").update({b"%05d" % n: b"x" * 300 for n in range(3000)})
    db.update({b"%05d" % n: b"x" for n in range(100)})
    model[""].update({b"%05d" % n: b"x" for n in range(100)})
    for number in range(0, 12, 2):
        db.table(f"table {number}")["last"] = model[f"table {number}"][b"last"] = b"y" * 5000
    db.drop_table("gone")
    db.reorganize()
    stats = db.stats()
    assert stats.file_bytes < 1.15 * stats.live_bytes + 30_000
    assert content_of(db) == filled(model)
    assert db.check() == []


@pytest.mark.parametrize("max_file_size", [None, 50_000])
def test_dump_and_load(db: Database, tmp_path: Path, max_file_size: int | None) -> None:
    model = fill(db)
    assert dump.dump(db, tmp_path / "dump", max_file_size=max_file_size) == sum(map(len, model.values()))
    with durabledbm.open(tmp_path / "new", "c") as new:
        dump.load(tmp_path / "dump", new)
        assert content_of(new) == filled(model)
        assert new.check() == []
    with durabledbm.open_sharded(tmp_path / "shards", "c", shards=3) as shards:
        dump.load(tmp_path / "dump", shards)
        assert content_of(shards) == filled(model)
    with pytest.raises(durabledbm.error, match="has no tables"):
        dump.load(tmp_path / "dump", {})


def test_a_text_dump(db: Database, tmp_path: Path) -> None:
    db["k"] = "v"
    db.table("users")["ada"] = "Lovelace"
    dump.dump(db, tmp_path / "dump", codec="text")
    assert (tmp_path / "dump").read_bytes() == b"P|k|v\nTP|users|ada|Lovelace\n"
    with durabledbm.open(tmp_path / "new", "c") as new:
        dump.load(tmp_path / "dump", new)
        assert content_of(new) == content_of(db)
    db.table("a|b")["k"] = "v"
    with pytest.raises(ValueError, match="cannot hold a table"):
        dump.dump(db, tmp_path / "again", codec="text")


@pytest.mark.parametrize("codec", ["binary", "text"])
def test_a_log_of_changes(db: Database, tmp_path: Path, codec: str) -> None:
    db["k"] = "v"
    with changelog.ChangeLog(tmp_path / "log", codec=codec) as log:
        if codec == "binary":
            db.clear()
        db.attach(log)
        db.table("t")["a"] = "1"
        with db.transaction() as tx:
            tx["k"] = "2"
            tx.table("t").clear()
            tx.table("t")["b"] = "2"
        db.table("u").update(x="1", y="2")
        db.drop_table("u")
        del db.table("t")["b"]
        db.table("t")["c"] = "3"
        assert [(change.op, change.table, change.key, change.value) for change in log.replay()][-3:] == [
            ("delete", "u", b"y", None), ("delete", "t", b"b", None), ("put", "t", b"c", b"3"),
        ]  # fmt: skip
        with durabledbm.open(tmp_path / "new", "c") as new:
            log.load_into(new)
            assert content_of(new) == content_of(db) == {"": {b"k": b"2"}, "t": {b"c": b"3"}}


@pytest.mark.parametrize("codec", ["binary", "text"])
def test_what_a_transaction_makes_and_drops_is_not_logged(db: Database, tmp_path: Path, codec: str) -> None:
    with changelog.ChangeLog(tmp_path / "log", codec=codec) as log:
        db.attach(log)
        for empty in (False, True):
            with db.transaction() as tx:
                tx["k"] = "v"
                tx.table("made")["a"] = "1"
                if empty:
                    del tx.table("made")["a"]
                tx.drop_table("made")
                tx.table("emptied")["a"] = "1"
                tx.table("emptied").clear()
                tx.table("emptied")["b"] = "2"
            assert content_of(db) == {"": {b"k": b"v"}, "emptied": {b"b": b"2"}}
            db.drop_table("emptied")
        assert {(change.table, change.key) for change in log.replay()} == {("", b"k"), ("emptied", b"b")}


def test_a_log_is_attached_after_a_table_was_emptied_and_dropped(db: Database, tmp_path: Path) -> None:
    table = db.table("t")
    table.update({b"%d" % n: b"v" * 300 for n in range(50)})
    for key in table:
        del table[key]
    assert db._store.state.meta.changes, "the deletions wait in the meta page"
    assert db._store.state.meta.tables_count >= 50, "and the tree still has the keys"
    db.drop_table("t")
    with changelog.ChangeLog(tmp_path / "log") as log:
        db.attach(log)
        db["k"] = "v"
        assert [(change.table, change.key) for change in log.replay()] == [("", b"k")]


def test_restoring_from_a_backup_and_a_log(db: Database, tmp_path: Path) -> None:
    model = fill(db)
    with changelog.ChangeLog(tmp_path / "log", max_file_size=20_000) as log:
        db.attach(log)
        db.backup(tmp_path / "backup")
        rng = random.Random(2)
        for _ in range(40):
            name = rng.choice(sorted(model))
            changes = {b"%03d" % rng.randrange(300): rng.randbytes(40) for _ in range(rng.choice((1, 20)))}
            mapping_of(db, name).update(changes)
            model[name].update(changes)
        db.drop_table("table 5")
        db.table("table 6").clear()
        model["table 5"], model["table 6"] = {}, {b"": b"again"}
        db.table("table 6")[""] = "again"
    restore.restore(tmp_path / "restored", tmp_path / "backup", tmp_path / "log")
    with durabledbm.open(tmp_path / "restored") as restored:
        assert content_of(restored) == filled(model)
        assert restored.check() == []


def test_a_log_that_missed_commits_is_completed(db_path: str, tmp_path: Path) -> None:
    with durabledbm.open(db_path, "c") as db, changelog.ChangeLog(tmp_path / "log") as log:
        db.attach(log)
        model = fill(db)
    with durabledbm.open(db_path, "w") as db:
        db.table("table 1")["missed"] = model["table 1"][b"missed"] = b"1"
        db.table("new")["missed"] = "2"
        model["new"] = {b"missed": b"2"}
        db.drop_table("table 2")
        model["table 2"] = {}
        db.table("table 3").clear()
        db.table("table 3")["000"] = "3"
        model["table 3"] = {b"000": b"3"}
    with durabledbm.open(db_path, "w") as db, changelog.ChangeLog(tmp_path / "log") as log:
        db.attach(log)
        with durabledbm.open(tmp_path / "new", "c") as new:
            log.load_into(new)
            assert content_of(new) == content_of(db) == filled(model)


@pytest.mark.leaves_damage
def test_salvage_finds_tables_and_their_names(db_path: str, tmp_path: Path) -> None:
    with durabledbm.open(db_path, "c") as db:
        model = fill(db)
        db.reorganize()
    salvage.salvage(db_path, tmp_path / "sound")
    with durabledbm.open(tmp_path / "sound") as db:
        assert content_of(db) == filled(model)
    content = bytearray(Path(db_path).read_bytes())
    content[:8192] = bytes(8192)
    Path(db_path).write_bytes(content)
    report = salvage.salvage(db_path, tmp_path / "without metas")
    assert report.from_lost_pages == report.entries
    with durabledbm.open(tmp_path / "without metas") as db:
        found = content_of(db)
        assert {name: found.get(name) for name in model} == model
        assert db.check() == []


@pytest.mark.leaves_damage
def test_a_table_whose_name_is_lost_gets_another(db_path: str, tmp_path: Path) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.table("lost").update({b"%04d" % n: b"x" * 100 for n in range(300)})
        db.reorganize()
        page = db._store.state.view.tables.leaf_ref(bytes(name_key("lost")))
        content = bytearray(Path(db_path).read_bytes())
    at = int.from_bytes(page[:8], "little") * 4096
    content[at + 100 : at + 110] = b"damage    "
    Path(db_path).write_bytes(content)
    report = salvage.salvage(db_path, tmp_path / "saved")
    assert any("the name of a table, which is 'table 1' now" in loss for loss in report.losses)
    with durabledbm.open(tmp_path / "saved") as db:
        assert db.tables() == ["table 1"]
        assert len(db.table("table 1")) > 200


def test_check_counts_the_entries_of_tables(db: Database) -> None:
    table = db.table("t")
    table.update(a="1", b="2")
    record = db._find(name_key("t"))
    assert record is not None
    db._run(lambda changes: changes.put(name_key("t"), record[:8] + (5).to_bytes(8, "little")))
    assert [str(problem) for problem in db.check()] == ["[5] the table 't' has 2 entries, the catalog says 5"]
    db._run(lambda changes: changes.delete(name_key("t")))
    assert [str(problem) for problem in db.check()] == ["[5] 2 entries of a table that does not exist"]
    db._run(lambda changes: changes.put(name_key("t"), b"nonsense"))
    with pytest.raises(durabledbm.CorruptionError):
        len(table)
    with pytest.raises(durabledbm.CorruptionError):
        db.tables()
    assert "the catalog of tables makes no sense" in str(db.check()[0])
    db._run(lambda changes: changes.delete(name_key("t")))
    for key in table_keys(db):
        db._run(lambda changes, key=key: changes.delete(key))
    assert db.check() == []


def table_keys(db: Database) -> list[TableKey]:
    changes = db._store.state.meta.changes
    return [key for key in changes if type(key) is TableKey and prefix_of(key) != CATALOG]


def test_inspect_shows_the_way_to_a_key_of_a_table(db: Database) -> None:
    fill(db)
    db.reorganize()
    picture = inspect(db.path, key=b"003", table="table 1")
    assert picture.found is (b"003" in db.table("table 1"))
    assert picture.problems == []
    assert not inspect(db.path, key=b"003", table="none").found


def test_stats(db: Database) -> None:
    model = fill(db)
    stats = db.stats()
    assert (stats.entries, stats.tables) == (1, len(model) - 1)
    assert stats.table_entries == sum(map(len, model.values())) - 1


# -- shelves and shards ----------------------------------------------------------------------------


def test_shelves(db_path: str) -> None:
    with shelve.open(db_path, table="users") as users:
        users["ada"] = {"born": 1815}
        with undone(users):
            users["ada"] = None
        with users.snapshot() as before:
            users["grace"] = [1906]
            assert list(before) == ["ada"]
        assert "table 'users'" in repr(users)
    with pytest.raises(ValueError, match="closed"):
        users["ada"]
    with shelve.open(db_path, table="users", writeback=True) as users:
        users["grace"].append(1992)
    with durabledbm.open(db_path, "w") as db:
        assert (db.tables(), len(db)) == (["users"], 0)
        with stdlib_shelve.Shelf(db.table("users")) as shelf:
            assert dict(shelf) == {"ada": {"born": 1815}, "grace": [1906, 1992]}
        assert not db.closed
    with pytest.raises(TypeError, match="must be str"):
        shelve.open(db_path, table=b"users")  # type: ignore[arg-type]


def test_shards(tmp_path: Path) -> None:
    with durabledbm.open_sharded(tmp_path / "db", "c", shards=3) as db:
        model = fill(db)
        table = db.table("table 1")
        table["new"] = model["table 1"][b"new"] = b"v"
        assert table.popitem() == (b"new", model["table 1"].pop(b"new"))
        assert content_of(db) == filled(model)
        with db.snapshot() as snapshot:
            db.drop_table("table 2")
            assert content_of(snapshot) == filled(model)
        del model["table 2"]
        with pytest.raises(KeyError):
            db.drop_table("table 2")
        others = (b"%d" % n for n in range(100))
        other = next(key for key in others if db.shard_of(key) != db.shard_of("k"))
        with db.transaction("k") as tx:
            tx.table("one")["k"] = "v"
            for write in (lambda: tx.table("one").update({other: b""}), lambda: tx.table("one").get(other)):
                with pytest.raises(ValueError, match="another shard"):
                    write()
        model["one"] = {b"k": b"v"}
        assert content_of(db) == filled(model)
    with durabledbm.open_sharded(reshard(tmp_path / "db", shards=2)) as db:
        assert content_of(db) == filled(model)
        assert db.check() == []


def test_two_processes_see_each_others_tables(db_path: str) -> None:
    with durabledbm.open(db_path, "c") as db:
        db.table("t")["k"] = "parent"
        pid = os.fork() if hasattr(os, "fork") else 0
        if not pid:
            if not hasattr(os, "fork"):
                return
            status = 1
            try:
                db.table("t")["k"] = "child"
                db.table("new")["k"] = "child"
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert content_of(db) == {"": {}, "t": {b"k": b"child"}, "new": {b"k": b"child"}}


def test_what_holds_one_dict_refuses_a_file_with_tables(db: Database, tmp_path: Path) -> None:
    db["k"] = "v"
    db.table("t")["k"] = "v"
    with pytest.raises(durabledbm.error, match="holds tables beside the main one"):
        export(db.path, tmp_path / "new", "dbm.dumb")
    assert sorted(os.listdir(tmp_path)) == [os.path.basename(db.path)]
