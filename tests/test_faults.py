"""Whatever fails, and whenever: the answer is right or an error of ours, and nothing acknowledged is lost.

A workload is run once for each of its operations on the disk, and that operation fails. Then the handle is usable or
refuses everything, its locks are released when it is closed, and what the next open finds holds all that was
acknowledged, whole. Interrupts are in `test_interrupts`.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crashes import is_torn_slot
from model import MODES
from simdisk import CHANGES, Fault, SimVolume, disk_error

import durabledbm
from durabledbm.database import Database, open_on

pytestmark = pytest.mark.no_cover  # tracing would take longer than the search; other tests cover the same lines

PATH = "/db"
Content = dict[bytes, bytes]


def steps(seed: int) -> list[Callable[[Any], None]]:
    """Changes of all kinds, each an atomic commit; for a database and for the dict that is its model."""
    rng = random.Random(seed)
    some = {b"%03d" % n: rng.randbytes(90) for n in range(60)}
    more = {b"%03d" % n: rng.randbytes(120) for n in range(0, 60, 5)}
    large, first = rng.randbytes(9000), rng.randbytes(10)

    def put(key: bytes, value: bytes) -> Callable[[Any], None]:
        return lambda db: db.__setitem__(key, value)

    return [
        put(b"first", first), lambda db: db.update(some), put(b"large", large), lambda db: db.pop(b"007"),
        lambda db: db.update(more), put(b"small", b"x"), lambda db: db.pop(b"large"), lambda db: db.clear(),
        lambda db: db.update(more),
    ]  # fmt: skip


def base() -> tuple[SimVolume, Content]:
    """A volume with a database that was closed long ago."""
    volume = SimVolume()
    content = {b"%03d" % n: b"old" * 20 for n in range(0, 100, 2)}
    with open_on(volume, PATH, "c") as db:
        db.update(content)
    for path in volume.paths():
        volume.put(path, volume.content(path))
    return volume, content


class Run:
    """The workload on a volume, up to the first failure; then what is left is verified."""

    def __init__(self, volume: SimVolume, content: Content, mode: str) -> None:
        self.volume, self.mode = volume, mode
        self.acknowledged = content
        self.possible: list[Content] = [content]
        self.db: Database | None = None
        self.failure: BaseException | None = None

    def go(self, seed: int) -> None:
        try:
            self.db = open_on(self.volume, PATH, "c", durability=self.mode, interval=3600, timeout=0.2)
            for step in steps(seed):
                after = dict(self.possible[-1])
                step(after)
                self.possible.append(after)
                step(self.db)
                if self.mode != "full":
                    self.db.sync()
                self.acknowledged, self.possible = after, [after]
                assert dict(self.db.items()) == after
            self.close()
        except (durabledbm.error, MemoryError, KeyboardInterrupt) as exc:
            self.failure = exc

    def close(self) -> None:
        if self.db is not None:
            self.db.close()

    def verify(self) -> None:
        """The handle works or refuses; the locks are free in the end; nothing acknowledged is lost."""
        self.volume.heal()
        self._probe()
        for _ in range(2):
            try:
                self.close()
            except durabledbm.error:
                pass
        self.db = None
        if PATH not in self.volume.paths():
            assert {} in self.possible
            return
        assert not any(self.volume._named(PATH).locks.values()), "locks are left"
        for state in (self.volume.kill_state(), *self.volume.crash_states(limit=6)):
            with open_on(state, PATH, "c", timeout=0) as db:
                found = dict(db.items())
                assert found in self.possible, f"{len(found)} entries"
                db[b"goes"] = b"on"
                assert db.check() == []

    def _probe(self) -> None:
        """If the handle still reads, it reads what may be; if it still writes, that counts."""
        if self.db is None or self.db.closed:
            return
        try:
            content = dict(self.db.items())
            assert content in self.possible
            self.db[b"probe"] = b"1"
            self.db.sync()
        except durabledbm.error:
            self.possible += [{**content, b"probe": b"1"} for content in self.possible]
            return
        self.possible = [{**content, b"probe": b"1"}]
        assert dict(self.db.items()) == self.possible[0]


FAULTS: dict[str, tuple[Callable[[int], Fault], tuple[str, ...]]] = {
    "EIO on read": (lambda seed: disk_error(errno.EIO), ("read",)),
    "short read": (lambda seed: Fault(None, "part"), ("read",)),
    "EIO on write": (lambda seed: disk_error(errno.EIO, "none"), ("write",)),
    "EIO on every write": (lambda seed: disk_error(errno.EIO, "none", times=None), ("write",)),
    "short write": (lambda seed: disk_error(errno.EIO, "part"), ("write",)),
    "disk full": (lambda seed: disk_error(errno.ENOSPC, "part", times=None, seed=seed), ("write", "resize", "create")),
    "error after the write": (lambda seed: disk_error(errno.EIO, "all"), ("write",)),
    "sync fails once and loses all": (lambda seed: disk_error(errno.EIO, "lost"), ("sync",)),
    "sync fails once and loses some": (lambda seed: disk_error(errno.EIO, "part", seed=seed), ("sync",)),
    "sync fails but has synced": (lambda seed: disk_error(errno.EIO, "all"), ("sync",)),
    "anything fails": (lambda seed: disk_error(errno.EIO), CHANGES),
    "locks fail": (lambda seed: disk_error(errno.ENOLCK), ("lock",)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAULTS)
def test_an_operation_that_fails_loses_nothing_acknowledged(name: str, mode: str) -> None:
    fault, kinds = FAULTS[name]
    stride = 3 if kinds in (("read",), ("lock",)) else 1  # there are many of them; each mode has others
    failed = 0
    for k in range(MODES.index(mode) % stride, 400, stride):
        volume, content = base()
        volume.fail_at(k, fault(k), kinds)
        run = Run(volume, content, mode)
        run.go(k)
        if not volume.fired:
            assert run.failure is None
            break
        failed += 1
        try:
            run.verify()
        except BaseException as exc:
            raise AssertionError(f"{name}, mode {mode}, operation {k}: {type(exc).__name__}: {exc}") from exc
    assert 0 < failed < 400


@pytest.mark.parametrize("kind", ["create", "resize", "write", "sync", "sync_directory"])
def test_a_creation_that_fails_leaves_nothing_or_an_empty_database(kind: str) -> None:
    volume = SimVolume()
    volume.fail_at(0, disk_error(errno.EIO, "none"), (kind,))
    with pytest.raises(durabledbm.error):
        open_on(volume, PATH, "c")
    assert volume.fired == 1
    volume.heal()
    with open_on(volume, PATH, "c") as db:
        assert dict(db) == {}
        assert db.check() == []


def test_a_handle_whose_sync_failed_refuses_everything_until_the_file_is_opened_again() -> None:
    volume, content = base()
    db = open_on(volume, PATH, "w")
    db[b"a"] = b"1"
    volume.fail_at(0, disk_error(errno.EIO, "lost"), ("sync",))
    with pytest.raises(durabledbm.error):
        db[b"a"] = b"2"
    for attempt in (lambda: db.__setitem__(b"a", b"3"), db.sync):
        with pytest.raises(durabledbm.error):
            attempt()
    db.close()
    survivors = [dict(open_on(state, PATH).items()) for state in volume.crash_states()]
    assert all(found in ({**content, b"a": b"1"}, {**content, b"a": b"2"}) for found in survivors)
    with open_on(volume, PATH, "w") as fresh:  # the cache still shows what the disk has not
        fresh[b"b"] = b"1"
        seen = dict(fresh.items())
    for state in volume.crash_states():
        with open_on(state, PATH) as db:
            assert dict(db.items()) == seen


def test_pages_that_a_failed_sync_lost_are_not_believed_because_the_cache_still_shows_them() -> None:
    volume, content = base()
    with open_on(volume, PATH, "w") as db:
        volume.fail_at(0, disk_error(errno.EIO, "lost"), ("sync",))
        with pytest.raises(durabledbm.error):
            db.update({b"lost %03d" % n: b"x" * 90 for n in range(99)})
    with open_on(volume, PATH, "w") as fresh:
        fresh[b"small"] = b"1"
        seen = dict(fresh.items())
    assert seen == {**content, b"small": b"1"}
    for state in volume.crash_states():
        with open_on(state, PATH) as survivor:
            assert dict(survivor.items()) == seen
            assert [problem for problem in survivor.check() if not is_torn_slot(problem)] == []


# -- somebody else's hands


def attempts(db: Database, expected: Content) -> None:
    """Reads give the right answer or our error."""
    for key in [*expected, b"none"]:
        try:
            assert db.get(key) == expected.get(key)
        except durabledbm.error:
            pass
    try:
        assert dict(db.items()) == expected
    except durabledbm.error:
        pass


@pytest.mark.leaves_damage
@pytest.mark.parametrize("size", [0, 100, 4096, 8192, 20_000])
def test_a_file_truncated_by_somebody_else_gives_right_answers_or_errors(tmp_path: Path, size: int) -> None:
    path, expected = tmp_path / "db", {b"%04d" % n: b"x" * 100 for n in range(1000)}
    with durabledbm.open(path, "c") as db:
        db.update(expected)
    with durabledbm.open(path, "w", cache_size=0) as db:
        os.truncate(path, size)
        attempts(db, expected)
        try:
            db["new"] = "1"
        except durabledbm.error:
            pass
        try:
            db.close()
        except durabledbm.error:
            pass


def test_a_file_extended_by_somebody_else_is_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with durabledbm.open(path, "c") as db:
        db["a"] = "1"
        with path.open("ab") as file:
            file.write(b"\xa5" * 50_000)
        db["b"] = "x" * 10_000
        assert dict(db.items()) == {b"a": b"1", b"b": b"x" * 10_000}
        assert db.check() == []


@pytest.mark.leaves_damage
def test_a_file_overwritten_with_another_database_is_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "db", tmp_path / "other"
    for name in (path, other):
        with durabledbm.open(name, "c") as db:
            db.update({b"%s %d" % (name.name.encode(), n): b"x" * 100 for n in range(100)})
    with durabledbm.open(path, "w", cache_size=0) as db:
        path.write_bytes(other.read_bytes())
        with pytest.raises(durabledbm.error):
            db[b"db 5"]
        with pytest.raises(durabledbm.error):
            db["new"] = "1"
