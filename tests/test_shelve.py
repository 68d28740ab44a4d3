"""Shelves: what the standard library's do, and what these do better."""

from __future__ import annotations

import array
import asyncio
import collections
import contextvars
import copy
import dataclasses
import datetime
import enum
import gc
import itertools
import json
import os
import pickle
import random
import shelve as stdlib_shelve
import signal
import subprocess
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from crew import Crew
from systems import WINDOWS

import durabledbm
from durabledbm import shelve
from durabledbm._engine.changeset import ChangeSet
from durabledbm.shelve import writeback as writeback_module
from durabledbm.shelve.writeback import WriteBackCache, is_held


@dataclasses.dataclass
class Person:
    name: str
    age: int
    tags: list[Any] = dataclasses.field(default_factory=list)


class Colour(enum.Enum):
    RED = 1


class Recorder(MutableMapping[bytes, bytes]):
    """A database that notes what is asked of it."""

    def __init__(self, db: durabledbm.Database) -> None:
        self.db = db
        self.calls: list[str] = []
        self.written: list[list[bytes]] = []

    def __getitem__(self, key: bytes) -> bytes:
        self.calls.append("get")
        return self.db[key]

    def get(self, key: bytes, default: Any = None) -> Any:
        self.calls.append("get")
        return self.db.get(key, default)

    def __contains__(self, key: object) -> bool:
        self.calls.append("in")
        return key in self.db

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.written.append([key])
        self.db[key] = value

    def __delitem__(self, key: bytes) -> None:
        del self.db[key]

    def __iter__(self) -> Iterator[bytes]:
        self.calls.append("iter")
        return iter(self.db)

    def __len__(self) -> int:
        return len(self.db)

    def keys(self) -> list[bytes]:  # type: ignore[override]
        self.calls.append("keys")
        return self.db.keys()

    def items(self) -> Any:
        return self.db.items()

    def range(self, *args: Any, **options: Any) -> Any:
        return self.db.range(*args, **options)

    def update(self, changes: dict[bytes, bytes]) -> None:  # type: ignore[override]
        self.written.append(sorted(changes))
        self.db.update(changes)

    def transaction(self) -> Any:
        return self.db.transaction()

    def close(self) -> None:
        self.db.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "shelf")


@pytest.fixture
def recorder(path: str) -> Iterator[Recorder]:
    with durabledbm.open(path, "c") as db:
        yield Recorder(db)


def commits(shelf: shelve.Shelf[Any]) -> int:
    """A number that grows by one with each commit."""
    with shelf.dict.snapshot() as snapshot:
        return int(snapshot.txid)


# The standard library's shelf


def test_a_shelf_is_an_instance_of_the_standard_librarys_classes(path: str) -> None:
    with shelve.open(path) as shelf:
        assert isinstance(shelf, stdlib_shelve.Shelf)
        assert isinstance(shelf, stdlib_shelve.DbfilenameShelf)
        assert isinstance(shelf, shelve.Shelf)


@pytest.mark.parametrize("protocol", [None, *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_the_standard_librarys_shelf_reads_ours_and_back(path: str, protocol: int | None) -> None:
    value = {"a": [1, 2.5, None], "b": Person("x", 3, ["y"])}
    with shelve.open(path, protocol=protocol) as shelf:
        shelf["ours"] = value
    with stdlib_shelve.Shelf(durabledbm.open(path, "w"), protocol) as other:
        assert other["ours"] == value
        other["theirs"] = value
    with shelve.open(path) as shelf:
        assert shelf["theirs"] == value
    with durabledbm.open(path) as db:
        assert db["ours"] == db["theirs"] == pickle.dumps(value, protocol)


def test_a_shelf_works_over_a_plain_dict() -> None:
    mapping: dict[bytes, bytes] = {}
    with shelve.Shelf(mapping) as shelf:
        shelf["k"] = [1]
        assert mapping == {b"k": pickle.dumps([1])}
        assert list(shelf.items()) == [("k", [1])]
        shelf.update(a=2)
        assert sorted(shelf) == ["a", "k"]
        shelf.clear()
        assert mapping == {}
        with pytest.raises(TypeError, match="dict object has no transactions"), shelf.transaction():
            pass
        with pytest.raises(TypeError, match="dict object has no snapshots"):
            shelf.snapshot()


def test_a_missing_key_is_a_key_error_with_the_key_as_passed(path: str) -> None:
    for writeback in (False, True):
        with shelve.open(path, writeback=writeback) as shelf:
            for use in (shelf.__getitem__, shelf.__delitem__, shelf.pop):
                with pytest.raises(KeyError) as info:
                    use("missing")
                assert info.value.args == ("missing",)


def test_a_closed_shelf_raises_value_error(path: str) -> None:
    shelf = shelve.open(path, writeback=True)
    shelf["k"] = 1
    shelf.close()
    uses = [
        lambda: shelf["k"], lambda: shelf.get("k"), lambda: "k" in shelf, lambda: len(shelf),
        lambda: list(shelf), lambda: list(shelf.items()), lambda: list(shelf.values()),
        lambda: shelf.__setitem__("k", 1),
        lambda: shelf.__delitem__("k"), lambda: shelf.update(k=1), shelf.clear, shelf.snapshot,
        lambda: shelf.transaction().__enter__(), shelf.popitem,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ValueError, match="closed shelf"):
            use()
    shelf.sync()
    shelf.close()


def test_leaving_with_closes_and_an_exception_does_not_undo_writes(path: str) -> None:
    with pytest.raises(RuntimeError), shelve.open(path) as shelf:  # noqa: PT012
        shelf["k"] = 1
        raise RuntimeError
    with shelve.open(path, "r") as shelf:
        assert shelf["k"] == 1


def test_dropping_the_last_reference_closes_the_file_without_the_garbage_collector(path: str) -> None:
    gc.disable()
    try:
        shelf = shelve.open(path, writeback=True)
        shelf["k"] = [1]
        shelf["k"].append(2)
        with shelf.transaction():
            shelf["k"].append(3)
        list(shelf.items())
        database = weakref.ref(shelf.dict)
        del shelf
        assert database() is None
    finally:
        gc.enable()
    with shelve.open(path, "r") as shelf:
        assert shelf["k"] == [1, 2, 3]


def test_dropping_a_shelf_with_unflushed_writes_is_worth_a_warning(path: str) -> None:
    shelf = shelve.open(path, durability="manual")
    shelf["k"] = 1
    with pytest.warns(ResourceWarning, match="test.*was not closed, and had unflushed writes"):
        del shelf
    shelf = shelve.open(path, durability="manual")
    assert shelf["k"] == 1
    del shelf  # a warning would be an error
    del_after_failing_to_be_made = shelve.Shelf.__new__(shelve.Shelf)
    del del_after_failing_to_be_made


def test_repr_shows_path_entries_and_state(path: str) -> None:
    with shelve.open(path, durability="manual") as shelf:
        assert repr(shelf) == f"<durabledbm.shelve.DbfilenameShelf {path!r}, 0 entries, open>"
        shelf["k"] = "secret"
        assert repr(shelf) == f"<durabledbm.shelve.DbfilenameShelf {path!r}, 0 entries and unflushed writes, open>"
        shelf.sync()
        with shelf.snapshot() as snapshot:
            assert repr(snapshot).startswith("<durabledbm.shelve.Shelf over <Snapshot of commit ")
    assert repr(shelf) == f"<durabledbm.shelve.DbfilenameShelf {path!r}, closed>"
    with shelve.open(path, "r") as shelf:
        assert repr(shelf) == f"<durabledbm.shelve.DbfilenameShelf {path!r}, 1 entry, read-only>"
        assert shelf._ipython_key_completions_() == ["k"]
    assert repr(shelve.Shelf({})) == "<durabledbm.shelve.Shelf over a dict, open>"


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_shelf_can_be_neither_pickled_nor_copied(path: str, way: Callable[[object], object]) -> None:
    with shelve.open(path) as shelf, pytest.raises(TypeError, match="cannot copy or pickle a DbfilenameShelf"):
        way(shelf)


@pytest.mark.parametrize("module", ["shelve", "durabledbm.shelve"])
def test_a_shelf_that_is_left_open_at_the_end_of_a_program_is_written(path: str, module: str) -> None:
    program = (
        f"import durabledbm, {module} as shelve\n"
        f"shelf = shelve.Shelf(durabledbm.open({path!r}, 'c'), writeback=True)\n"
        "shelf['k'] = [1]\n"
        "shelf['k'].append(2)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    with shelve.open(path, "r") as shelf:
        assert shelf["k"] == [1, 2]


@pytest.mark.parametrize("kind", [str, str.encode, Path])
def test_a_new_shelf_may_have_every_kind_of_name(path: str, kind: Any) -> None:
    with shelve.open(kind(path)) as shelf:
        shelf["k"] = 1
    with shelve.open(path, "r") as shelf:
        assert shelf["k"] == 1


def test_open_passes_its_options_on(path: str) -> None:
    with shelve.open(path, "n", mode=0o600, timeout=0) as shelf, durabledbm.open(path, "w") as other:
        assert WINDOWS or Path(path).stat().st_mode & 0o777 == 0o600
        with other.transaction(), ThreadPoolExecutor() as pool, pytest.raises(durabledbm.BusyError):
            pool.submit(shelf.__setitem__, "k", 1).result()
    with pytest.raises(TypeError):
        shelve.open(path, no_such_option=1)


@pytest.mark.parametrize("suffixes", [(".dat", ".dir"), (".pag", ".dir")])
def test_an_old_database_whose_files_have_suffixes_is_not_shadowed_by_an_empty_shelf(
    path: str, suffixes: tuple[str, ...]
) -> None:
    for suffix in suffixes:
        Path(path + suffix).touch()
    with pytest.raises(durabledbm.error, match=r"an old dbm\.n?du?m?bm? database.*migrate"):
        shelve.open(path)
    assert not Path(path).exists()


# Serializers


def test_serializer_and_deserializer_replace_pickle(path: str) -> None:
    def serializer(value: Any, protocol: int) -> bytearray:
        assert protocol == pickle.DEFAULT_PROTOCOL
        return bytearray(json.dumps(value).encode())

    codec: dict[str, Any] = {"serializer": serializer, "deserializer": json.loads}
    with shelve.open(path, **codec, writeback=True) as shelf:
        shelf["k"] = [1, "x"]
        shelf["k"].append(None)
    with durabledbm.open(path) as db:
        assert db["k"] == b'[1, "x", null]'
    with shelve.open(path, "r", **codec) as shelf, shelf.snapshot() as snapshot:
        assert shelf["k"] == snapshot["k"] == [1, "x", None]


@pytest.mark.parametrize("name", ["serializer", "deserializer"])
def test_one_codec_function_without_the_other_is_refused_before_a_file_is_made(path: str, name: str) -> None:
    with pytest.raises(shelve.ShelveError):
        shelve.open(path, **{name: pickle.loads})
    with pytest.raises(shelve.ShelveError):
        shelve.Shelf({}, **{name: pickle.loads})
    assert not Path(path).exists()


def test_a_serializer_that_returns_nothing_is_a_type_error_about_the_value(path: str) -> None:
    codec: dict[str, Any] = {"serializer": lambda value, protocol: None, "deserializer": pickle.loads}
    with shelve.open(path, **codec) as shelf, pytest.raises(TypeError, match=r"value.*NoneType"):
        shelf["k"] = 1


# Look-ups and iteration


def test_get_looks_up_once(recorder: Recorder) -> None:
    shelf = shelve.Shelf(recorder)
    shelf["k"] = 1
    recorder.calls.clear()
    assert shelf.get("k") == 1
    assert shelf.get("missing", 2) == 2
    assert recorder.calls == ["get", "get"]


class Raises:
    def __reduce__(self) -> Any:
        return _raise_key_error, ()


def _raise_key_error() -> None:
    raise KeyError("from the object's own code")


@pytest.mark.parametrize("writeback", [False, True])
def test_get_does_not_take_an_error_of_the_object_for_a_missing_key(path: str, writeback: bool) -> None:
    with shelve.open(path) as shelf:
        shelf["k"] = Raises()
    with shelve.open(path, writeback=writeback) as shelf:
        uses = [lambda: shelf.get("k", "default"), lambda: list(shelf.items()), lambda: list(shelf.values())]
        for use in uses:
            with pytest.raises(KeyError, match="own code"):
                use()


def test_a_subclass_with_its_own_getitem_is_asked_for_every_value(path: str) -> None:
    class Doubling(shelve.DbfilenameShelf[int]):
        def __getitem__(self, key: str) -> int:
            return 2 * super().__getitem__(key)

    with Doubling(path) as shelf:
        shelf["k"] = 4
        assert shelf["k"] == shelf.get("k") == next(iter(shelf.values())) == dict(shelf.items())["k"] == 8


def test_iteration_loads_one_object_at_a_time_and_never_all_keys(recorder: Recorder) -> None:
    loaded = []

    def load(raw: bytes) -> Any:
        loaded.append(raw)
        return pickle.loads(raw)

    shelf = shelve.Shelf(recorder, serializer=pickle.dumps, deserializer=load)
    shelf.update({f"k{i:04}": i for i in range(1000)})
    values, items, keys = iter(shelf.values()), iter(shelf.items()), iter(shelf)
    assert (next(values), next(items), next(keys)) == (0, ("k0000", 0), "k0000")
    assert len(loaded) == 2
    assert "keys" not in recorder.calls
    assert list(values) == list(range(1, 1000))
    assert len(shelf.values()) == len(shelf.items()) == 1000
    assert 999 in shelf.values()
    assert ("k0999", 999) in shelf.items()


def test_a_shelf_may_be_changed_while_it_is_iterated_over(path: str) -> None:
    with shelve.open(path) as shelf:
        shelf.update({str(i): i for i in range(100)})
        for key in shelf:
            del shelf[key]
            shelf["new" + key] = 0
        assert len(shelf) == 100


def test_in_a_write_back_shelf_objects_from_values_are_the_cached_ones(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf.update({str(i): [i] for i in range(10)})
        for value in shelf.values():
            value.append("x")
        for key, value in shelf.items():
            assert shelf[key] is value  # noqa: PLR1733
    with shelve.open(path) as shelf:
        assert dict(shelf) == {str(i): [i, "x"] for i in range(10)}


def test_deleting_while_iterating_over_a_write_back_shelf_skips_what_is_gone(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf.update({str(i): i for i in range(10)})
        seen = []
        for key, value in shelf.items():
            seen.append(value)
            shelf.pop(str(value + 1), None)
            assert key == str(value)
        assert seen == [0, 2, 4, 6, 8]


# Transactions and snapshots


@pytest.mark.parametrize("writeback", [False, True])
def test_a_transaction_is_one_commit_or_nothing(path: str, writeback: bool) -> None:
    with shelve.open(path, writeback=writeback) as shelf:
        before = commits(shelf)
        with shelf.transaction() as same:
            assert same is shelf
            shelf["a"] = [1]
            shelf["b"] = [2]
        assert commits(shelf) == before + 1
        with pytest.raises(ZeroDivisionError), shelf.transaction():  # noqa: PT012
            shelf["a"] = "other"
            del shelf["b"]
            shelf["c"] = 3
            raise ZeroDivisionError
        assert dict(shelf) == {"a": [1], "b": [2]}


def test_an_inner_transaction_that_fails_is_undone_alone(path: str) -> None:
    for writeback in (False, True):
        with shelve.open(path, "n", writeback=writeback) as shelf:
            with shelf.transaction():
                shelf["outer"] = [1]
                with pytest.raises(ZeroDivisionError), shelf.transaction():  # noqa: PT012
                    shelf["outer"] = [2]
                    shelf["inner"] = [3]
                    raise ZeroDivisionError
                assert dict(shelf) == {"outer": [1]}
            assert dict(shelf) == {"outer": [1]}


def test_rollback_gives_up_and_the_block_goes_on(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["a"] = [1]
        with shelf.transaction():
            shelf["a"].append(2)
            shelf["b"] = 1
            shelf.rollback()
            assert dict(shelf) == {"a": [1]}
        assert dict(shelf) == {"a": [1]}
        with pytest.raises(ValueError, match="no transaction"):
            shelf.rollback()


def test_update_is_one_commit_or_nothing(path: str) -> None:
    def entries() -> Iterator[tuple[str, int]]:
        yield "a", 1
        raise ZeroDivisionError

    for writeback in (False, True):
        with shelve.open(path, "n", writeback=writeback) as shelf:
            before = commits(shelf)
            shelf.update({str(i): i for i in range(100)}, more=1)
            assert commits(shelf) == before + 1
            with pytest.raises(ZeroDivisionError):
                shelf.update(entries())
            assert "a" not in shelf
            assert len(shelf) == 101


def test_a_subclass_with_its_own_setitem_is_asked_to_write_every_value(path: str) -> None:
    class Doubling(shelve.DbfilenameShelf[int]):
        def __setitem__(self, key: str, value: int) -> None:
            super().__setitem__(key, 2 * value)

    with Doubling(path) as shelf:
        shelf.update({"a": 1}, b=2)
        assert dict(shelf) == {"a": 2, "b": 4}


@pytest.mark.parametrize("writeback", [False, True])
def test_a_shelf_works_over_a_sharded_database(tmp_path: Path, writeback: bool) -> None:
    sharded = durabledbm.open_sharded(tmp_path / "shards", "c", shards=3)
    with shelve.Shelf(sharded, writeback=writeback) as shelf:
        shelf.update({str(i): [i] for i in range(20)})
        with pytest.raises(ZeroDivisionError), shelf.transaction("7"):  # noqa: PT012
            shelf["7"] = "other"
            raise ZeroDivisionError
        with shelf.transaction("8"):
            shelf["8"] = [*shelf["8"], "more"]
        with shelf.snapshot() as snapshot:
            assert snapshot["7"] == [7]
        if writeback:
            shelf["9"].append("more")
    with durabledbm.open_sharded(tmp_path / "shards") as db:
        found = [pickle.loads(db[key]) for key in ("7", "8", "9")]
        assert found == [[7], [8, "more"], [9, "more"] if writeback else [9]]
        assert len(db) == 20


def test_changes_to_cached_objects_belong_to_the_transaction_around_them(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf.update(before=[1], inside=[1], kept=[1])
        before, kept = shelf["before"], shelf["kept"]
        before.append("before the block")
        with pytest.raises(ZeroDivisionError), shelf.transaction():  # noqa: PT012
            shelf["inside"].append("inside the block")
            raise ZeroDivisionError
        assert shelf["inside"] == [1]
        assert shelf["before"] is before
        assert shelf["kept"] is kept
        kept.append("after the block")
    with shelve.open(path) as shelf:
        assert dict(shelf) == {
            "before": [1, "before the block"],
            "inside": [1],
            "kept": [1, "after the block"],
        }


def test_changes_to_cached_objects_are_committed_with_their_transaction(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf, shelve.open(path, "r") as other:
        shelf.update(a=[1], b=[1])
        before = commits(shelf)
        with shelf.transaction():
            shelf["a"].append(2)
            shelf["b"].append(2)
            shelf["c"] = 3
        assert dict(other) == {"a": [1, 2], "b": [1, 2], "c": 3}
        assert commits(shelf) == before + 1


# Transactions and contexts


def begin(shelf: Any) -> Any:
    block = shelf.transaction()
    block.__enter__()
    return block


def end(block: Any) -> None:
    block.__exit__(None, None, None)


def test_a_write_back_transaction_goes_with_its_context_from_thread_to_thread(path: str) -> None:
    with shelve.open(path, writeback=True, timeout=60) as shelf, ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        shelf["k"] = [0]
        one = contextvars.copy_context()
        block = threads[0].submit(one.run, begin, shelf).result(60)
        threads[1].submit(one.run, lambda: shelf["k"].append(1)).result(60)
        waiting = threads[0].submit(lambda: shelf["k"].append(2))
        with pytest.raises(FutureTimeoutError):
            waiting.result(0.02)
        assert threads[2].submit(one.run, lambda: list(shelf["k"])).result(60) == [0, 1]
        threads[2].submit(one.run, end, block).result(60)
        waiting.result(60)
        assert shelf["k"] == [0, 1, 2]


def test_nobody_waits_for_a_write_back_transaction_for_ever(path: str) -> None:
    async def task() -> None:
        with pytest.raises(durabledbm.BusyError, match="cannot end"):
            shelf["k"]

    async def main() -> None:
        with shelf.transaction():
            await asyncio.create_task(task())
            with pytest.raises(durabledbm.BusyError, match=r"than 0\.02 seconds"):
                await asyncio.to_thread(shelf.__getitem__, "k")
            assert shelf["k"] == [0]

    with shelve.open(path, writeback=True, timeout=0.02) as shelf:
        shelf["k"] = [0]
        asyncio.run(main())
        assert shelf["k"] == [0]


def test_rollback_undoes_the_transaction_of_the_caller_and_of_nobody_else(tmp_path: Path) -> None:
    with shelve.Shelf(durabledbm.open_sharded(tmp_path / "db", "c", shards=4)) as shelf:
        here = "here"
        there = next(str(n) for n in range(99) if shelf.dict.shard_of(str(n)) != shelf.dict.shard_of(here))
        begun, go_on = threading.Event(), threading.Event()

        def other() -> None:
            with shelf.transaction(there):
                shelf[there] = "kept"
                begun.set()
                assert go_on.wait(60)

        crew = Crew()
        with shelf.transaction(here):
            shelf[here] = "undone"
            crew.start(other)
            assert begun.wait(60)
            shelf.rollback()
        with pytest.raises(ValueError, match="no transaction"):
            shelf.rollback()
        go_on.set()
        crew.join()
        assert dict(shelf) == {there: "kept"}


def test_a_transaction_that_does_not_begin_forgets_no_change(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["k"] = [0]
        held = shelf["k"]

        def wait_in_vain(_: object) -> None:
            held.append(1)  # another thread does, meanwhile
            raise durabledbm.BusyError("busy")

        monkeypatch.setattr(durabledbm.Database, "transaction", wait_in_vain)
        with pytest.raises(durabledbm.BusyError):
            begin(shelf)
        monkeypatch.undo()
        held.append(2)
    with shelve.open(path) as shelf:
        assert shelf["k"] == [0, 1, 2]


def test_a_busy_mapping_leaves_the_shelf_open_with_its_changes(path: str) -> None:
    shelf = shelve.open(path, writeback=True, timeout=0.02)
    shelf["k"] = [0]
    held = shelf["k"]
    held.append(1)
    with durabledbm.open(path, "w") as other, other.transaction():
        assert isinstance(Crew().start(shelf.close).failure(), durabledbm.BusyError)
    held.append(2)
    shelf.close()
    with pytest.raises(ValueError, match="closed shelf"):
        shelf["k"]
    with shelve.open(path) as shelf:
        assert shelf["k"] == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_does_not_wait_for_a_thread_of_its_parent(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["k"] = [0]
        begun, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with shelf._lock:
                begun.set()
                assert go_on.wait(60)

        crew = Crew()
        crew.start(hold)
        assert begun.wait(60)
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            try:
                os._exit(0 if shelf["k"] == [0] else 1)
            finally:
                os._exit(1)
        go_on.set()
        crew.join()
        assert os.waitpid(pid, 0)[1] == 0


def test_a_snapshot_stays_as_it_was_and_holds_what_was_changed_before(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["k"] = [1]
        shelf["k"].append(2)
        with shelf.snapshot() as snapshot:
            shelf["k"].append(3)
            shelf["new"] = 1
            assert dict(snapshot) == {"k": [1, 2]}
            with pytest.raises(TypeError):
                snapshot["k"] = 1
        with pytest.raises(ValueError, match="closed shelf"):
            snapshot["k"]
        assert shelf["k"] == [1, 2, 3]


def test_clear_is_one_commit(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf.update({str(i): [i] for i in range(1000)})
        before = commits(shelf)
        shelf["5"].append(1)
        shelf.clear()
        assert commits(shelf) == before + 1
        assert dict(shelf) == {}
    with shelve.open(path) as shelf:
        assert len(shelf) == 0


def test_clear_works_over_a_mapping_without_it() -> None:
    class Old(dict):  # type: ignore[type-arg]
        clear = None

    mapping = Old({b"a": b"1", b"b": b"2"})
    del Old.clear
    Old.__getattribute__ = _without_clear  # type: ignore[method-assign,assignment]
    shelve.Shelf(mapping).clear()
    assert not mapping


def _without_clear(self: object, name: str) -> Any:
    if name == "clear":
        raise AttributeError(name)
    return object.__getattribute__(self, name)


# Write-back


def test_closing_after_touching_10_of_20_000_dataclasses_writes_10(path: str) -> None:
    with durabledbm.open(path, "c", durability="manual") as db:
        db.update({f"p{i}": pickle.dumps(Person(f"name{i}", i, [i])) for i in range(20_000)})
        recorder = Recorder(db)
        shelf = shelve.Shelf(recorder, writeback=True)
        for person in shelf.values():
            assert person.age >= 0
        assert len(shelf.cache) == 20_000
        touched = random.Random(1).sample(range(20_000), 10)
        for i in touched:
            shelf[f"p{i}"].tags.append("touched")
        shelf.close()
        assert recorder.written == [sorted(b"p%d" % i for i in touched)]
    with shelve.open(path) as shelf:
        assert shelf[f"p{touched[3]}"] == Person(f"name{touched[3]}", touched[3], [touched[3], "touched"])


def test_sync_writes_changes_in_one_commit_and_again_only_what_changed_since(recorder: Recorder) -> None:
    shelf = shelve.Shelf(recorder, writeback=True)
    shelf.update({k: [k] for k in "abcdef"})
    recorder.written.clear()
    held = shelf["a"]
    shelf["b"].append(1)
    held.append(1)
    shelf.sync()
    shelf.sync()
    assert recorder.written == [[b"a", b"b"]]
    held.append(2)
    shelf.sync()
    assert recorder.written == [[b"a", b"b"], [b"a"]]


def test_an_assignment_is_written_at_once_and_not_again(recorder: Recorder) -> None:
    shelf = shelve.Shelf(recorder, writeback=True)
    shelf["k"] = [1]
    assert recorder.db["k"] == pickle.dumps([1])
    shelf.close()
    assert recorder.written == [[b"k"]]


def test_an_object_stored_with_another_protocol_has_not_changed(recorder: Recorder) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        recorder.db[f"p{protocol}"] = pickle.dumps(Person("x", protocol, ["x"]), protocol)
    shelf = shelve.Shelf(recorder, writeback=True)
    assert len(list(shelf.values())) == pickle.HIGHEST_PROTOCOL + 1
    shelf["p0"].age += 1
    shelf.close()
    assert recorder.written == [[b"p0"]]


def test_an_object_the_program_holds_stays_attached_after_sync(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf.update(held={"part": [1]}, free=[1])
        part = shelf["held"]["part"]
        shelf.sync()
        assert set(shelf.cache) == {"held"}
        part.append(2)
    with shelve.open(path) as shelf:
        assert shelf["held"] == {"part": [1, 2]}


def test_sync_lets_others_writes_be_seen(path: str) -> None:
    with shelve.open(path, writeback=True) as one, shelve.open(path, writeback=True) as two:
        one["k"] = 1
        assert two["k"] == 1
        one["k"] = 2
        two.sync()
        assert two["k"] == 2


def test_what_nobody_changed_does_not_overwrite_what_others_wrote(path: str) -> None:
    with shelve.open(path, writeback=True) as one, shelve.open(path) as two:
        one["k"] = [1]
        two["k"] = [2]
    with shelve.open(path) as shelf:
        assert shelf["k"] == [2]


def test_sync_that_can_not_serialize_one_object_writes_nothing_and_loses_nothing(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf.update(a=[1], b=[1])
        shelf["a"].append(2)
        shelf["b"].append(lambda: None)
        with pytest.raises((pickle.PicklingError, AttributeError)):
            shelf.sync()
        with durabledbm.open(path) as db:
            assert db["a"] == pickle.dumps([1])
        shelf["b"].pop()
        shelf.sync()
        with durabledbm.open(path) as db:
            assert db["a"] == pickle.dumps([1, 2])


def test_a_close_that_fails_closes_all_the_same(path: str) -> None:
    shelf = shelve.open(path, writeback=True)
    shelf["k"] = [1]
    shelf["k"].append(lambda: None)
    database = shelf.dict
    with pytest.raises((pickle.PicklingError, AttributeError)):
        shelf.close()
    assert database.closed
    shelf.close()


def test_a_read_only_write_back_shelf_complains_only_about_changes(path: str) -> None:
    with shelve.open(path) as shelf:
        shelf["k"] = [1]
    with shelve.open(path, "r", writeback=True) as shelf:
        assert shelf["k"] == [1]
    shelf = shelve.open(path, "r", writeback=True)
    shelf["k"].append(2)
    with pytest.raises(durabledbm.ReadOnlyError):
        shelf.sync()
    with pytest.raises(durabledbm.ReadOnlyError):
        shelf.close()


def test_a_deleted_entry_is_not_written_back(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["k"] = [1]
        shelf["k"].append(2)
        del shelf["k"]
    with shelve.open(path) as shelf:
        assert "k" not in shelf


def test_programs_may_handle_the_cache_as_the_dict_it_always_was(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["k"] = [1]
        shelf["k"].append("dropped")
        del shelf.cache["k"]
        assert shelf["k"] == [1]
        shelf.cache["by hand"] = [2]
    with shelve.open(path) as shelf:
        assert dict(shelf) == {"k": [1], "by hand": [2]}


def test_many_threads_may_use_one_write_back_shelf(path: str) -> None:
    with shelve.open(path, writeback=True, writeback_size=4000, durability="process") as shelf:
        for i in range(100):
            shelf[str(i)] = []

        def work(worker: int) -> None:
            numbers = random.Random(worker)
            for n in range(200):
                shelf[str(numbers.randrange(100))].append((worker, n))

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with shelve.open(path) as shelf:
        found = sorted(entry for value in shelf.values() for entry in value)
    assert found == [(worker, n) for worker in range(4) for n in range(200)]


class Racer:
    """Another thread, as it might run at the worst moment: it holds a part of an object, changes it and lets go."""

    def __init__(self) -> None:
        self.held: list[int] | None = None

    def strike(self) -> None:
        held, self.held = self.held, None
        if held is not None:
            held.append(5)


def test_what_a_thread_appends_while_an_object_is_written_is_not_lost(path: str) -> None:
    racer = Racer()

    def dump(value: object, protocol: int) -> bytes:
        raw = pickle.dumps(value, protocol)
        racer.strike()
        return raw

    options: dict[str, Any] = {"serializer": dump, "deserializer": pickle.loads, "durability": "manual"}
    for let_go in ("shrink", "sync"):
        with shelve.open(path, "n", writeback=True, writeback_size=2000, **options) as shelf:
            shelf["k"] = [[1]]
            racer.held = shelf["k"][0]
            if let_go == "sync":
                shelf.sync()
            else:
                shelf.update({str(i): "x" * 100 for i in range(20)})
            assert racer.held is None
        with shelve.open(path, **options) as shelf:
            assert shelf["k"] == [[1, 5]]


def test_what_a_thread_hands_on_while_references_are_counted_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`shelf["cart"].setdefault("items", []).append(5)`: it holds the cart when that is looked through, and only the
    new list when references to the cart are counted.
    """
    cache: dict[str, Any] = {"cart": {}}
    held: list[Any] = [cache["cart"]]
    any_held = writeback_module._any_held

    def count_later(parts: list[Any], inside: dict[int, int]) -> bool:
        held[0] = held[0].setdefault("items", [])
        return any_held(parts, inside)

    monkeypatch.setattr(writeback_module, "_any_held", count_later)
    assert is_held(cache, "cart")
    monkeypatch.undo()
    assert is_held(cache, "cart")
    held.clear()
    assert not is_held(cache, "cart")


def test_threads_that_change_objects_as_they_are_let_go_lose_nothing(path: str) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(4):
            with shelve.open(path, "n", writeback=True, writeback_size=2000, durability="manual") as shelf:
                for key in range(6):
                    shelf[str(key)] = {}

                def work(worker: int, shelf: Any = shelf) -> None:
                    for number in range(40):
                        shelf[str(number % 6)].setdefault(worker, []).append(number)

                crew = Crew()
                for worker in range(3):
                    crew.start(work, worker)
                crew.join()
            with shelve.open(path) as shelf:
                found = [shelf[str(number % 6)][worker].count(number) for worker in range(3) for number in range(40)]
                assert found == [1] * 120
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_what_a_signal_handler_appends_while_objects_are_let_go_is_not_lost(path: str) -> None:
    numbers = itertools.count()  # a handler may interrupt itself

    def append(*_: object) -> None:
        number = next(numbers)
        shelf[str(number % 5)].append(number)

    before = signal.signal(signal.SIGALRM, append)
    try:
        with shelve.open(path, writeback=True, writeback_size=2500, durability="manual") as shelf:
            for i in range(60):
                shelf[str(i)] = []
            shelf.sync()
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0003)
            end = time.monotonic() + 0.4
            while time.monotonic() < end:
                for i in range(60):
                    shelf[str(i)].append("x")
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    count = next(numbers)
    assert count > 5
    with shelve.open(path) as shelf:
        assert sorted(n for i in range(5) for n in shelf[str(i)] if n != "x") == list(range(count))


def test_write_back_works_over_a_plain_dict() -> None:
    mapping: dict[bytes, bytes] = {}
    with shelve.Shelf(mapping, writeback=True, writeback_size=1000) as shelf:
        for i in range(20):
            shelf[str(i)] = [i]
            shelf[str(i)].append("x")
        assert len(shelf.cache) < 10
    assert {key: pickle.loads(raw) for key, raw in mapping.items()} == {b"%d" % i: [i, "x"] for i in range(20)}


def test_reorganize_writes_what_changed_first(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["k"] = [1]
        shelf["k"].append(2)
        shelf.reorganize()
        assert pickle.loads(shelf.dict["k"]) == [1, 2]
    shelve.Shelf({}).reorganize()


def test_a_rollback_forgets_an_object_that_can_not_be_serialized(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["k"] = [1]
        with pytest.raises(ZeroDivisionError), shelf.transaction():  # noqa: PT012
            shelf["k"].append(lambda: None)
            raise ZeroDivisionError
        assert shelf["k"] == [1]


def test_a_transaction_whose_objects_can_not_be_serialized_is_undone(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["k"] = [1]
        with pytest.raises((pickle.PicklingError, AttributeError)), shelf.transaction():  # noqa: PT012
            shelf["other"] = 1
            shelf["k"].append(lambda: None)
        assert dict(shelf) == {"k": [1]}


class Moody:
    """Raises KeyError when it is serialized in a bad mood."""

    bad = False

    def __getstate__(self) -> Any:
        return {}["mood"] if self.bad else {"bad": False}


def test_an_error_of_an_object_that_is_serialized_comes_out(path: str) -> None:
    with shelve.open(path, writeback=True) as shelf:
        shelf["k"] = Moody()
        shelf["k"].bad = True
        with pytest.raises(KeyError, match="mood"):
            shelf.sync()
        shelf["k"].bad = False


def test_a_changed_object_whose_old_form_does_not_load_any_more_is_written(path: str) -> None:
    loads = iter([pickle.loads])

    def load(raw: bytes) -> Any:
        return next(loads)(raw)

    with shelve.open(path) as shelf:
        shelf["k"] = [1]
    with shelve.open(path, writeback=True, serializer=pickle.dumps, deserializer=load) as shelf:
        shelf["k"].append(2)
    with shelve.open(path) as shelf:
        assert shelf["k"] == [1, 2]


# The bound of the cache


def test_the_cache_does_not_outgrow_its_bound(path: str) -> None:
    with shelve.open(path, writeback=True, writeback_size=100_000, durability="manual") as shelf:
        for i in range(5000):
            shelf[str(i)] = ["x" * 100]
            shelf[str(i)].append(i)
            assert shelf.cache.size <= 100_000 + 1000
        assert shelf.cache.size > 50_000
        assert shelf.cache.size == sum(len(raw) + 256 for raw in shelf.cache.stored.values())
    with shelve.open(path) as shelf:
        assert all(shelf[str(i)] == ["x" * 100, i] for i in range(5000))


def test_an_object_of_which_the_program_holds_a_part_outlives_the_bound(path: str) -> None:
    with shelve.open(path, writeback=True, writeback_size=20_000, durability="manual") as shelf:
        shelf["cart"] = {"items": [1]}
        held = shelf["cart"]["items"]
        for i in range(1000):
            shelf[str(i)] = "x" * 100
        held.append(2)
        assert len(shelf.cache) < 200
    with shelve.open(path) as shelf:
        assert shelf["cart"] == {"items": [1, 2]}


def test_objects_that_are_held_are_looked_at_last_the_next_time(path: str) -> None:
    with shelve.open(path, writeback=True, writeback_size=2000, durability="manual") as shelf:
        shelf["held"] = [1]
        held = shelf["held"]
        for i in range(10):
            shelf[str(i)] = "x" * 100
        assert next(iter(shelf.cache)) != "held"
        assert shelf["held"] is held


def test_looking_up_stays_cheap_when_everything_is_held(path: str) -> None:
    with shelve.open(path, writeback=True, writeback_size=20_000, durability="manual") as shelf:
        held = []
        examined = 0
        release = WriteBackCache.release

        def counted(cache: WriteBackCache, keys: Any = None) -> None:
            nonlocal examined
            keys = list(cache) if keys is None else list(keys)
            examined += len(keys)
            release(cache, keys)

        WriteBackCache.release = counted  # type: ignore[method-assign]
        try:
            for i in range(3000):
                shelf[str(i)] = [i]
                held.append(shelf[str(i)])
        finally:
            WriteBackCache.release = release  # type: ignore[method-assign]
        assert len(shelf.cache) == 3000
        assert examined < 10 * 3000
        for value in held:
            value.append("late")
    with shelve.open(path) as shelf:
        assert all(shelf[str(i)] == [i, "late"] for i in range(3000))


def test_an_object_that_can_not_be_written_stays_until_sync_says_so(path: str) -> None:
    shelf = shelve.open(path, writeback=True, writeback_size=10_000, durability="manual")
    shelf["bad"] = [1]
    shelf["bad"].append(lambda: None)
    for i in range(300):
        shelf[str(i)] = "x" * 100
    assert "bad" in shelf.cache
    with pytest.raises((pickle.PicklingError, AttributeError)):
        shelf.sync()
    shelf["bad"].pop()
    shelf.close()


@pytest.mark.parametrize("seed", range(10))
def test_random_use_with_a_tiny_cache_never_loses_a_change(path: str, seed: int) -> None:
    numbers = random.Random(seed)
    model: dict[str, dict[str, list[int]]] = {}
    held: list[tuple[str, list[int]]] = []  # parts of objects that the "program" keeps
    size = numbers.choice([0, 3000, 20_000])
    shelf = shelve.open(path, writeback=True, writeback_size=size, durability="manual")
    for step in range(1200):
        key = str(numbers.randrange(60))
        action = numbers.random()
        if key not in model or action < 0.05:
            held = [entry for entry in held if entry[0] != key]  # the old object is not in the shelf any more
            shelf[key] = {"n": [step], "m": []}
            model[key] = {"n": [step], "m": []}
        elif action < 0.1:
            held = [entry for entry in held if entry[0] != key]
            del shelf[key], model[key]
        elif action < 0.5:
            shelf[key]["n"].append(step)
            model[key]["n"].append(step)
        elif action < 0.6:
            held.append((key, shelf[key]["m"]))
        elif action < 0.8 and held:
            name, part = held.pop(numbers.randrange(len(held)))
            part.append(step)
            model[name]["m"].append(step)
        elif action < 0.82:
            shelf.sync()
        elif action < 0.84:
            with pytest.raises(ZeroDivisionError), shelf.transaction():  # noqa: PT012
                shelf["gone"] = {}
                raise ZeroDivisionError
        elif action < 0.85:
            assert dict(shelf) == model, f"seed {seed}, step {step}"
    shelf.close()
    with shelve.open(path) as shelf:
        assert dict(shelf) == model, f"seed {seed}"


# Who holds what


def _cases() -> dict[str, tuple[Any, Any]]:
    cycle: list[Any] = [[1]]
    cycle.append(cycle)
    plain = types.SimpleNamespace(x=[1], y={"z": [2]})
    return {
        "dataclass": (Person("a", 1, [[2]]), lambda value: value),
        "attribute of a dataclass": (Person("a", 1, [[2]]), lambda value: value.tags),
        "deep inside": (Person("a", 1, [{"x": [2]}]), lambda value: value.tags[0]["x"]),
        "its __dict__": (Person("a", 1, [2]), lambda value: value.__dict__),
        "iterator": (Person("a", 1, [2]), lambda value: iter(value.tags)),
        "bound method": (Person("a", 1, [2]), lambda value: value.tags.append),
        "dict view": ({"a": [1]}, lambda value: value.values()),
        "namespace": (plain, lambda value: value.y["z"]),
        "cycle": (cycle, lambda value: value[0]),
        "deque": (collections.deque([[1]]), lambda value: value[0]),
        "ordered dict": (collections.OrderedDict(a=[1]), lambda value: value["a"]),
        "defaultdict": (collections.defaultdict(list, a=[1]), lambda value: value["a"]),
        "array": ([array.array("i", [1])], lambda value: value[0]),
        "bytearray through a view": ([bytearray(b"x")], lambda value: memoryview(value[0])),
        "tuple with a list": ((1, (2, [3])), lambda value: value[1]),
        "set": ({1, 2}, lambda value: value),
        "exception": (ValueError([1]), lambda value: value.args[0]),
    }


@pytest.mark.parametrize("name", _cases())
def test_whoever_holds_an_object_or_a_part_of_it_is_noticed(name: str) -> None:
    value, part = _cases()[name]
    cache = {"k": pickle.loads(pickle.dumps(value))}
    pickle.dumps(cache["k"])  # as the shelf does before it asks; it may materialize what was not there before
    held = part(cache["k"])
    assert is_held(cache, "k")
    del held
    assert not is_held(cache, "k")


def test_shared_immutable_things_do_not_keep_an_object_in_the_cache() -> None:
    constant = (1, "x", 2.5)
    moment = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)
    cache = {"k": [constant, Colour.RED, Person, len, moment, (), frozenset([1]), "a string", 10**30]}
    assert not is_held(cache, "k")
    cache["k"] = constant
    assert not is_held(cache, "k")


# A shelf with a position


def test_a_bsddb_shelf_walks_over_an_ordered_database(path: str) -> None:
    for writeback in (False, True):
        with shelve.BsdDbShelf(durabledbm.open(path, "n"), writeback=writeback) as shelf:
            for use in (shelf.first, shelf.last, shelf.next, shelf.previous):
                with pytest.raises(KeyError):
                    use()
            shelf.update({"a": [1], "c": [3], "e": [5]})
            assert [shelf.first(), shelf.next(), shelf.next()] == [("a", [1]), ("c", [3]), ("e", [5])]
            with pytest.raises(KeyError):
                shelf.next()
            assert [shelf.last(), shelf.previous(), shelf.previous()] == [("e", [5]), ("c", [3]), ("a", [1])]
            with pytest.raises(KeyError):
                shelf.previous()
            assert shelf.set_location("b") == ("c", [3])
            assert shelf.next() == ("e", [5])
            with pytest.raises(KeyError):
                shelf.set_location("f")


def test_a_bsddb_shelf_uses_the_cursor_methods_of_a_mapping_that_has_them() -> None:
    class Cursor(dict):  # type: ignore[type-arg]
        first = last = previous = lambda self: (b"k", pickle.dumps(1))

        def __next__(self) -> tuple[bytes, bytes]:
            return b"n", pickle.dumps(2)

        def set_location(self, key: bytes) -> tuple[bytes, bytes]:
            return key, pickle.dumps(3)

    shelf = shelve.BsdDbShelf(Cursor())
    assert shelf.first() == shelf.last() == shelf.previous() == ("k", 1)
    assert shelf.next() == ("n", 2)
    assert shelf.set_location("x") == ("x", 3)


def test_dir_shows_what_is_for_users(path: str) -> None:
    with shelve.open(path) as shelf, stdlib_shelve.Shelf({}) as other:
        more = {name for name in set(dir(shelf)) - set(dir(other)) if not name.startswith("_")}
        known = {"transaction", "rollback", "snapshot", "reorganize", "serializer", "deserializer"}
        assert more <= known


# -- closed by a signal handler


def closed(shelf: Any) -> bool:
    try:
        len(shelf)
    except ValueError:
        return True
    return False


AMID: dict[str, Callable[[Any], object]] = {
    "put": lambda shelf: shelf.__setitem__("a", [1]), "discard": lambda shelf: shelf.__delitem__("a"),
    "clear": lambda shelf: shelf.clear(), "update": lambda shelf: shelf.update({"a": [1]}),
    "flush": lambda shelf: shelf.sync(),
}  # fmt: skip
"""Operations of a shelf, by the method that one calls in the engine."""


@pytest.mark.parametrize("durability", ["full", "interval", "manual"])
@pytest.mark.parametrize("writeback", [False, True])
@pytest.mark.parametrize("name", AMID)
def test_a_handler_may_close_a_shelf_amid_an_operation(
    path: str, monkeypatch: pytest.MonkeyPatch, name: str, writeback: bool, durability: Any
) -> None:
    """It is closed when the operation has ended: what that did stays done, and what was changed before is written."""
    shelf = shelve.open(path, writeback=writeback, durability=durability)
    shelf.update({"a": [0], "b": [0], "c": [0]})
    shelf.sync()
    shelf["c"] = [1]
    held = [shelf["a"], shelf["b"]]
    for value in held:
        value.append("changed")
    at_once = name == "put" and durability == "full"
    where = type(shelf.dict._pipeline) if name == "flush" or at_once else ChangeSet
    original = getattr(where, name)

    def interrupted(*args: Any) -> Any:
        monkeypatch.undo()
        shelf.close()
        assert shelf.dict is not None
        assert not closed(shelf)
        return original(*args)

    monkeypatch.setattr(where, name, interrupted)
    AMID[name](shelf)
    assert closed(shelf)
    kept = [0, "changed"] if writeback else [0]
    after = {"a": kept, "b": kept, "c": [1]}
    change: dict[str, Any] = {"put": {**after, "a": [1]}, "discard": {"b": kept, "c": [1]}, "clear": {}}
    change["update"] = change["put"]
    with shelve.open(path) as again:
        assert dict(again) == change.get(name, after)


def test_a_handler_may_close_a_shelf_while_its_cache_is_written(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = shelve.open(path, writeback=True)
    shelf["k"] = [0]
    held = shelf["k"]
    held.append(1)

    def serializer(value: object, protocol: int) -> bytes:
        shelf.serializer = pickle.dumps
        shelf.close()
        assert not closed(shelf)
        return pickle.dumps(value, protocol)

    shelf.serializer = serializer
    shelf.sync()
    assert closed(shelf)
    with shelve.open(path) as again:
        assert dict(again) == {"k": [0, 1]}
