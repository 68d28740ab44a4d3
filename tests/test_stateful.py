"""The whole public API against a model: sequences of operations that Hypothesis invents.

The model is a plain dict per commit. What the handle under test says must agree with the newest one after
every step; what the *file* holds, seen through a second handle, or after a kill (a copy of the file's bytes
at that moment), must be one of them: the newest for durability "full" and "process", and otherwise none
older than the last that was synced. Where keys have 1 to 511 bytes, the same operations run on LMDB, and
must have the same result there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import lmdb
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from model import mapping_of

import durabledbm
from durabledbm import transaction

pytestmark = pytest.mark.no_cover  # tracing would take longer than the search; other tests cover the same lines

PAGE_SIZES = (4096, 4096, 4096, 8192, 65536)
CACHE_SIZES = (0, 50_000, 64 * 2**20)
SPILL_SIZES = (1500, 20_000, 320 * 2**20)
DURABILITIES = ("full", "process", "interval", "manual")
LMDB_KEY_MAX = 511


def pattern(size: int, salt: int) -> bytes:
    """`size` bytes that look like those of no other salt."""
    return (b"%d," % salt * (size // 2 + 1))[:size]


numbered_keys = st.integers(0, 99).map(lambda n: b"k%02d" % n)
long_keys = st.builds(lambda size, n: b"L" * size + b"%d" % n, st.integers(0, 9000), st.integers(0, 9))
keys = st.one_of(numbered_keys, numbered_keys, numbered_keys, st.binary(max_size=3), long_keys)
values = st.one_of(
    st.binary(max_size=20),
    st.builds(pattern, st.integers(0, 400), st.integers(0, 999)),
    st.builds(pattern, st.integers(0, 9000), st.integers(0, 999)),
    st.builds(pattern, st.integers(0, 100_000), st.integers(0, 999)),
)
bulks = st.builds(
    lambda count, step, size, salt: {
        b"b%05d" % (n * step % 4001): pattern((n * size) % (size + 1), salt + n) for n in range(count)
    },
    st.integers(1, 300),
    st.integers(1, 4000),
    st.sampled_from([0, 10, 100, 700, 3000]),
    st.integers(0, 10**6),
)
bounds = st.one_of(st.none(), keys, st.integers(0, 4001).map(lambda n: b"b%05d" % n))


class Undo(Exception):
    """Leaves a transaction's block, and rolls it back."""


class Part:
    """What was done in a block, up to its end or until it was rolled back."""

    def __init__(self, outer: Part | None) -> None:
        self.outer = outer
        self.undone = False

    @property
    def certain(self) -> bool:
        """Neither this nor what it is a part of was undone."""
        return not self.undone and (self.outer is None or self.outer.certain)


class Level:
    """An open transaction: ours, LMDB's, and the model to return to."""

    def __init__(
        self,
        ours: durabledbm.Transaction,
        theirs: lmdb.Transaction | None,
        before: dict[bytes, bytes],
        outer: Part | None,
    ) -> None:
        self.ours = ours
        self.theirs = theirs
        self.before = before
        self.rolled_back = False
        self.part = Part(outer)


class Cursor:
    """An iterator that was begun, and what it has yet to give."""

    def __init__(self, iterator: Iterator[Any], expected: list[Any], transaction: object, part: Part | None) -> None:
        self.iterator = iterator
        self.expected = expected
        self.at = 0
        self.transaction = transaction
        """The outermost transaction in which it was begun: it ends with that."""
        self.part = part
        """If what this block did is undone, the iterator may end early."""


class Store(RuleBasedStateMachine):
    """One file, the handles on it, the model, and the oracle."""

    table = ""
    """The table that is compared; empty: the main one."""

    snapshots: Bundle[tuple[durabledbm.Snapshot, dict[bytes, bytes]]] = Bundle("snapshots")
    cursors: Bundle[Cursor] = Bundle("cursors")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="durabledbm-test-")
        self.path = os.path.join(self.directory, "ours.db")
        self.env = lmdb.open(
            os.path.join(self.directory, "theirs"),
            map_size=2**28,
            subdir=False,
            sync=False,
            metasync=False,
            lib_version=0,
        )
        self.spill_size = transaction.SPILL_SIZE
        self.model: dict[bytes, bytes] = {}
        self.history: list[dict[bytes, bytes]] = [{}]
        self.synced = 0
        """The index in `history` of the oldest model that the file may hold."""
        self.levels: list[Level] = []
        self.opened: list[durabledbm.Snapshot] = []
        self.db: durabledbm.Database
        self.reader: durabledbm.Database

    # -- opening and closing
    # ------------------------------------------------------------------------------------

    @initialize(
        page_size=st.sampled_from(PAGE_SIZES),
        spill_size=st.sampled_from(SPILL_SIZES),
        durability=st.sampled_from(DURABILITIES),
        cache_size=st.sampled_from(CACHE_SIZES),
        first=st.one_of(st.just({}), bulks),
    )
    def create(
        self, page_size: int, spill_size: int, durability: str, cache_size: int, first: dict[bytes, bytes]
    ) -> None:
        transaction.SPILL_SIZE = spill_size
        durabledbm.open(self.path, "c", page_size=page_size).close()
        self.reader = durabledbm.open(self.path, "r", cache_size=50_000)
        self._open(durability, cache_size)
        if first:
            self.update(first)

    def _open(self, durability: str, cache_size: int) -> None:
        self.durability = durability
        self.db = durabledbm.open(
            self.path, "w", durability=durability, cache_size=cache_size, interval=3600, timeout=0
        )
        self._synced()

    @precondition(lambda self: not self.levels)
    @rule(durability=st.sampled_from(DURABILITIES), cache_size=st.sampled_from(CACHE_SIZES))
    def reopen(self, durability: str, cache_size: int) -> None:
        old = [snapshot for snapshot in self.opened if not snapshot.closed]
        self.db.close()
        assert self.db.closed
        assert all(snapshot.closed for snapshot in old)
        with pytest.raises(durabledbm.ClosedError):
            self._in(self.db)[b"k00"]
        self._open(durability, cache_size)
        assert self.db.check() == []

    @precondition(lambda self: not self.levels)
    @rule()
    def reopen_the_reader(self) -> None:
        self.reader.close()
        self.reader = durabledbm.open(self.path, "r", cache_size=50_000)

    @precondition(lambda self: not self.levels)
    @rule()
    def sync(self) -> None:
        self.db.sync()
        self._synced()

    @rule()
    def kill(self) -> None:
        """What a process would find that opens the file after this one was killed."""
        copy = os.path.join(self.directory, "copy.db")
        shutil.copyfile(self.path, copy)
        with durabledbm.open(copy, "w") as db:
            assert db.check() == []
            found = dict(self._in(db).items())
            assert found in self.history[self.synced :]
            self._in(db)[b"after"] = b"the kill"
            assert db.check() == []
            assert dict(self._in(db).items()) == {**found, b"after": b"the kill"}

    # -- writing
    # ------------------------------------------------------------------------------------------------

    def _in(self, whole: Any) -> Any:
        """What is compared: a database, transaction or snapshot, or a table of it."""
        return mapping_of(whole, self.table)

    @property
    def _target(self) -> Any:
        """Through the handle and through the transaction it must be the same."""
        if not self.levels or len(self.model) % 2:
            return self._in(self.db)
        return self._in(self.levels[-1].ours)

    def _writable(self) -> bool:
        return not self.levels or not self.levels[-1].rolled_back

    def _mirror(self, changes: dict[bytes, bytes | None]) -> None:
        """The change was made on ours: make it in the model and in LMDB."""
        for key, value in changes.items():
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value
        theirs = self.levels[-1].theirs if self.levels else self.env.begin(write=True)
        assert theirs is not None
        for key, value in changes.items():
            if 1 <= len(key) <= LMDB_KEY_MAX:
                if value is None:
                    theirs.delete(key)
                else:
                    theirs.put(key, value)
        if not self.levels:
            theirs.commit()
            self._committed()

    def _committed(self) -> None:
        if self.history[-1] != self.model:
            self.history.append(dict(self.model))
        if self.durability in ("full", "process"):
            self._synced()

    def _synced(self) -> None:
        """The file holds the newest commit."""
        del self.history[: len(self.history) - 1]
        self.synced = 0

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        if self._writable():
            self._target[key] = value
            self._mirror({key: value})
        else:
            with pytest.raises(durabledbm.error):
                self._target[key] = value

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        if not self._writable():
            with pytest.raises(durabledbm.error):
                del self._target[key]
        elif key in self.model:
            del self._target[key]
            self._mirror({key: None})
        else:
            with pytest.raises(KeyError) as caught:
                del self._target[key]
            assert caught.value.args == (key,)

    @precondition(lambda self: self.model and self._writable())
    @rule(data=st.data())
    def delete_what_is_live(self, data: st.DataObject) -> None:
        self.delete(data.draw(st.sampled_from(sorted(self.model))))

    @precondition(lambda self: self.model and self._writable())
    @rule(start=bounds, stop=bounds)
    def delete_a_range(self, start: bytes | None, stop: bytes | None) -> None:
        """While iterating over it; in one commit."""
        doomed = [key for key in sorted(self.model) if (start or b"") <= key and (stop is None or key < stop)]
        with self.db.transaction() as tx:
            for key, _ in self._in(self.db).range(start, stop):
                del self._in(tx)[key]
        self._mirror(dict.fromkeys(doomed))

    @precondition(lambda self: self._writable())
    @rule(key=keys, default=st.one_of(st.none(), st.just(b"default")))
    def pop(self, key: bytes, default: bytes | None) -> None:
        assert self._target.pop(key, default) == self.model.get(key, default)
        if key in self.model:
            self._mirror({key: None})

    @precondition(lambda self: self._writable())
    @rule()
    def popitem(self) -> None:
        if self.model:
            last = max(self.model)
            assert self._target.popitem() == (last, self.model[last])
            self._mirror({last: None})
        else:
            with pytest.raises(KeyError):
                self._target.popitem()

    @precondition(lambda self: self._writable())
    @rule(key=keys, value=values)
    def setdefault(self, key: bytes, value: bytes) -> None:
        assert self._target.setdefault(key, value) == self.model.get(key, value)
        if key not in self.model:
            self._mirror({key: value})

    @precondition(lambda self: self._writable())
    @rule(entries=st.one_of(bulks, st.dictionaries(keys, values, max_size=8)))
    def update(self, entries: dict[bytes, bytes]) -> None:
        self._target.update(entries)
        self._mirror(dict(entries))

    @precondition(lambda self: self._writable())
    @rule(sure=st.integers(0, 4))
    def clear(self, sure: int) -> None:
        if not sure:
            self._target.clear()
            self._mirror(dict.fromkeys(self.model))

    @precondition(lambda self: not self.levels and self.durability != "interval")
    @rule(key=keys, value=values)
    def write_through_another_handle(self, key: bytes, value: bytes) -> None:
        """Nothing but a handle that holds changes back stands in the way. (With "interval" it depends on the
        moment.)
        """
        with durabledbm.open(self.path, "w", timeout=0) as other:
            try:
                self._in(other)[key] = value
            except durabledbm.BusyError:
                assert self.durability == "manual"
                return
            assert self._in(other)[key] == value
        self._synced()  # nothing was held back, so the file held the newest commit
        self._mirror({key: value})
        self._synced()

    # -- transactions
    # -------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.levels) < 4 and self._writable())
    @rule()
    def begin(self) -> None:
        outer = self.levels[-1].theirs if self.levels else None
        ours = self.db.transaction()
        assert ours.__enter__() is ours
        theirs = self.env.begin(write=True, parent=outer)
        outer_part = self.levels[-1].part if self.levels else None
        self.levels.append(Level(ours, theirs, dict(self.model), outer_part))

    @precondition(lambda self: self.levels)
    @rule()
    def commit(self) -> None:
        level = self.levels.pop()
        level.ours.__exit__(None, None, None)
        if level.theirs is not None:
            level.theirs.commit()
        if not self.levels:
            self._committed()

    @precondition(lambda self: self.levels)
    @rule()
    def fail(self) -> None:
        level = self.levels.pop()
        assert not level.ours.__exit__(Undo, Undo(), None)
        level.part.undone = True
        if level.theirs is not None:
            level.theirs.abort()
        self.model = level.before

    @precondition(lambda self: self.levels)
    @rule(sure=st.integers(0, 2))
    def roll_back(self, sure: int) -> None:
        """And the block goes on, only to read."""
        level = self.levels[-1]
        if sure or level.rolled_back:
            return
        level.ours.rollback()
        assert level.theirs is not None
        level.theirs.abort()
        level.theirs = None
        level.rolled_back = True
        level.part.undone = True
        level.part = Part(level.part.outer)
        self.model = dict(level.before)

    # -- reading
    # ------------------------------------------------------------------------------------------------

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        assert self._target.get(key) == self.model.get(key)
        assert (key in self._target) == (key in self.model)
        if key in self.model:
            assert self._target[key] == self.model[key]
        else:
            with pytest.raises(KeyError) as caught:
                self._target[key]
            assert caught.value.args == (key,)

    @rule(some=st.lists(keys, max_size=5), step=st.integers(1, 50))
    def get_many(self, some: list[bytes], step: int) -> None:
        some = [*some, *sorted(self.model)[::step]]
        assert self._target.get_many(some) == {key: self.model[key] for key in some if key in self.model}

    @rule(
        start=bounds,
        stop=bounds,
        prefix=st.sampled_from([None, b"", b"b", b"b0", b"k", b"L", b"\xff"]),
        reverse=st.booleans(),
    )
    def scan_a_range(self, start: bytes | None, stop: bytes | None, prefix: bytes | None, reverse: bool) -> None:
        expected = [
            (key, self.model[key])
            for key in sorted(self.model, reverse=reverse)
            if (start is None or start <= key) and (stop is None or key < stop) and key.startswith(prefix or b"")
        ]
        assert list(self._target.range(start, stop, prefix=prefix, reverse=reverse)) == expected

    @rule()
    def ends(self) -> None:
        if self.model:
            first, last = min(self.model), max(self.model)
            assert self._target.first() == (first, self.model[first])
            assert self._target.last() == (last, self.model[last])
            assert self._target.firstkey() == first
        else:
            for call in (self._target.first, self._target.last):
                with pytest.raises(KeyError):
                    call()
            assert self._target.firstkey() is None

    @rule(key=keys)
    def nextkey(self, key: bytes) -> None:
        assert self._target.nextkey(key) == min((other for other in self.model if other > key), default=None)

    # -- what lasts longer than a step
    # --------------------------------------------------------------------------

    @precondition(lambda self: not self.levels)
    @rule(target=snapshots)
    def snapshot(self) -> tuple[durabledbm.Snapshot, dict[bytes, bytes]]:
        snapshot = self.db.snapshot()
        self.opened.append(snapshot)
        return snapshot, dict(self.model)

    @rule(pair=snapshots, key=keys, reverse=st.booleans())
    def read_a_snapshot(self, pair: tuple[durabledbm.Snapshot, dict[bytes, bytes]], key: bytes, reverse: bool) -> None:
        snapshot: Any = pair[0]
        model = pair[1]
        if snapshot.closed:
            with pytest.raises(durabledbm.ClosedError):
                self._in(snapshot).get(b"never asked")
            return
        snapshot = self._in(snapshot)
        assert snapshot.get(key) == model.get(key)
        assert len(snapshot) == len(model)
        assert list(snapshot.range(reverse=reverse)) == sorted(model.items(), reverse=reverse)

    @rule(pair=consumes(snapshots))
    def end_a_snapshot(self, pair: tuple[durabledbm.Snapshot, dict[bytes, bytes]]) -> None:
        pair[0].close()
        assert pair[0].closed

    @rule(target=cursors, kind=st.sampled_from(["keys", "items", "reversed"]))
    def iterate(self, kind: str) -> Cursor:
        order = sorted(self.model)
        iterator: Iterator[Any]
        expected: list[Any]
        if kind == "keys":
            iterator, expected = iter(self._target), order
        elif kind == "items":
            iterator, expected = iter(self._target.items()), [(key, self.model[key]) for key in order]
        else:
            iterator, expected = reversed(self._target), order[::-1]
        if not self.levels:
            return Cursor(iterator, expected, self.db, None)
        return Cursor(iterator, expected, self.levels[0].ours, self.levels[-1].part)

    @rule(cursor=cursors, steps=st.integers(1, 200))
    def advance(self, cursor: Cursor, steps: int) -> None:
        """However much was written meanwhile, an iterator gives what there was when it was made."""
        alive = cursor.transaction is self.db or any(cursor.transaction is level.ours for level in self.levels)
        for _ in range(steps):
            try:
                entry = next(cursor.iterator)
            except StopIteration:
                assert cursor.at == len(cursor.expected)
                return
            except durabledbm.ClosedError:
                assert not alive or (cursor.part is not None and not cursor.part.certain)
                cursor.expected = cursor.expected[: cursor.at]
                return
            assert alive
            assert entry == cursor.expected[cursor.at]
            cursor.at += 1

    @rule(cursor=consumes(cursors))
    def drop_an_iterator(self, cursor: Cursor) -> None:
        del cursor.iterator

    # -- what is always true
    # ------------------------------------------------------------------------------------

    @invariant()
    def the_count_is_right(self) -> None:
        assert len(self._in(self.db)) == len(self.model)
        assert bool(self._in(self.db)) == bool(self.model)

    @precondition(lambda self: len(self.model) < 40)
    @invariant()
    def the_content_is_right(self) -> None:
        assert dict(self._in(self.db).items()) == self.model

    @rule()
    def everything(self) -> None:
        """The content, three times: ours, LMDB's, and what others can see of ours."""
        entries = sorted(self.model.items())
        assert list(self._in(self.db).items()) == entries
        assert self._in(self.db).keys() == [key for key, _ in entries]
        theirs = self.levels[-1].theirs if self.levels else self.env.begin()
        if theirs is not None:
            known = [(key, value) for key, value in entries if 1 <= len(key) <= LMDB_KEY_MAX]
            assert list(theirs.cursor()) == known
            if not self.levels:
                theirs.abort()
        self.what_others_see()

    @rule()
    def what_others_see(self) -> None:
        seen = dict(self._in(self.reader).items())
        assert seen in self.history
        assert len(self._in(self.reader)) == len(seen)

    @rule()
    def check(self) -> None:
        assert self.db.check() == []

    def teardown(self) -> None:
        transaction.SPILL_SIZE = self.spill_size
        try:
            if hasattr(self, "db"):
                while self.levels:
                    self.commit()
                self.db.close()
                self.reader.close()
                with durabledbm.open(self.path, "r") as db:
                    assert db.check() == []
                    assert dict(self._in(db).items()) == self.model
        finally:
            self.env.close()
            shutil.rmtree(self.directory)


class TableStore(Store):
    """The same of a table, beside others that are changed in the same commits."""

    table = "compared"

    @precondition(lambda self: self._writable())
    @rule(key=keys, value=values, name=st.sampled_from(["", "another", "a third"]))
    def put_elsewhere(self, key: bytes, value: bytes, name: str) -> None:
        mapping_of(self.db, name)[key] = value
        if not self.levels:
            self._committed()

    @precondition(lambda self: self._writable())
    @rule(name=st.sampled_from(["", "another", "a third", "compared"]), sure=st.integers(0, 2))
    def remove(self, name: str, sure: int) -> None:
        if sure:
            return
        if not name:
            self.db.clear()
        elif name in self.db.tables():
            self.db.drop_table(name)
        if name == self.table:
            self._mirror(dict.fromkeys(self.model))
        elif not self.levels:
            self._committed()


class TestStateful(Store.TestCase):  # type: ignore[misc, name-defined]
    """The same search at every run: a failure here is a failure everywhere."""

    settings = settings(
        max_examples=40,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )


class TestTables(TableStore.TestCase):  # type: ignore[misc, name-defined]
    """The same search for tables."""

    settings = settings(TestStateful.settings, max_examples=25)


@pytest.mark.long
class TestStatefulLong(Store.TestCase):  # type: ignore[misc, name-defined]
    """A new search at every run. A failure is kept in Hypothesis's database and tried first the next time.

    Making a failure smaller may take many minutes; with DURABLEDBM_SHRINK=0 it is shown as it was found.
    """

    settings = settings(
        max_examples=int(os.environ.get("DURABLEDBM_EXAMPLES", "3000")),
        stateful_step_count=100,
        deadline=None,
        phases=[p for p in Phase if p is not Phase.shrink or os.environ.get("DURABLEDBM_SHRINK") != "0"],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.long
class TestTablesLong(TableStore.TestCase):  # type: ignore[misc, name-defined]
    """A new search at every run, for tables."""

    settings = TestStatefulLong.settings
