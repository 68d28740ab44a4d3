"""The sharded database: the same mapping over several files."""

from __future__ import annotations

import errno
import json
import os
import random
import shelve
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from children import Child
from mapping_spec import CLOSING, KEYED, READ_ONLY, READING, WRITING
from systems import KILL, WINDOWS, needs_fork, needs_immediate_removal, needs_mode

import durabledbm
import durabledbm.shelve
from durabledbm._engine.changeset import ChangeSet
from durabledbm._engine.group_commit import GroupCommit
from durabledbm.errors import BusyError, ClosedError, CorruptionError, ReadOnlyError, error
from durabledbm.reshard import reshard
from durabledbm.sharded import ShardedDatabase, open_sharded
from durabledbm.sharded import manifest as shards_manifest
from durabledbm.sharded.manifest import place

ENTRIES = {b"key %d" % number: b"value %d" % number for number in range(500)}


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "sharded")


@pytest.fixture
def db(directory: str) -> Iterator[ShardedDatabase]:
    with open_sharded(directory, "c", shards=4) as db:
        yield db


def content(directory: str | Path) -> dict[bytes, bytes]:
    with open_sharded(directory) as db:
        return dict(db.items())


# -- placement ---------------------------------------------------------------------------------------------------

VECTORS = [
    # key, CRC-32, its shard of 2, 3, 4, 8, 16, 1000
    (b"", 0x00000000, [0, 0, 0, 0, 0, 0]),
    (b"a", 0xE8B7BE43, [1, 2, 3, 7, 15, 977]),
    (b"123456789", 0xCBF43926, [0, 0, 0, 1, 2, 179]),
    (b"key", 0x8A90ABA9, [0, 1, 1, 2, 5, 369]),
    (b"gr\xc3\xb6\xc3\x9fe", 0x5BD3A989, [1, 1, 2, 4, 8, 511]),
    (b"\xff\xff\xff\xff\xff\xff\xff\xff", 0x2144DF1C, [1, 2, 3, 6, 12, 769]),
]


@pytest.mark.parametrize(("key", "crc", "shards"), VECTORS)
def test_placement_is_the_mixed_crc_32_scaled_to_the_number_of_shards(key: bytes, crc: int, shards: list[int]) -> None:
    counts = (2, 3, 4, 8, 16, 1000)
    mixed = crc * 0x9E3779B1 % 2**32
    assert [mixed * count // 2**32 for count in counts] == shards
    assert [place(key, count) for count in counts] == shards
    assert place(key, 1) == 0


@pytest.mark.parametrize("shards", [2, 3, 8, 64])
@pytest.mark.parametrize("form", ["%d", "user:%08d", "%x", "/img/%05d.jpg"])
def test_keys_spread_evenly(form: str, shards: int) -> None:
    counts = Counter(place((form % number).encode(), shards) for number in range(40_000))
    mean = 40_000 / shards
    assert all(abs(counts[number] - mean) < 5 * mean**0.5 for number in range(shards)), "as even as random numbers"


def test_a_few_similar_keys_are_not_all_in_the_same_shards() -> None:
    """With a plain CRC the 40 keys "0 1" to "39 1" are in 2 shards of 4."""
    for number in range(7):
        counts = Counter(place(f"{n} {number}".encode(), 4) for n in range(40))
        assert min(counts[shard] for shard in range(4)) >= 4


def test_the_vectors_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text()
    for key, crc, shards in VECTORS:
        row = f"| `{key!r}` | `{crc:08X}` | {' | '.join(map(str, shards))} |"
        assert row in text


def test_each_key_is_in_the_file_that_placement_says(db: ShardedDatabase, directory: str) -> None:
    db.update(ENTRIES)
    for number in range(4):
        with durabledbm.open(os.path.join(directory, f"shard-{number:04d}-of-0004")) as shard:
            assert {place(key, 4) for key in shard} == {number}
            assert all(db.shard_of(key) == number for key in shard)


# -- the mapping -------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes sharded databases with given content."""
    opened: list[ShardedDatabase] = []

    def make(entries: Mapping[bytes, bytes], flag: str = "w", **options: Any) -> ShardedDatabase:
        path = tmp_path / f"made {len(opened)}"
        with open_sharded(path, "c", shards=3) as db:
            db.update(entries)
        opened.append(open_sharded(path, flag, **options))
        return opened[-1]

    yield make
    for db in opened:
        db.close()


@pytest.mark.parametrize(("name", "spec"), READING + WRITING + KEYED + CLOSING)
def test_a_sharded_database_is_the_mapping_that_the_contract_describes(
    make: Callable[..., Any], name: str, spec: Callable[[Any], None]
) -> None:
    if name == "the_other_methods_of_a_closed_handle_raise_too":
        db = make({})
        db.close()
        for call in (db.snapshot, db.check, db.stats, db.reorganize, lambda: db.transaction("key").__enter__()):
            with pytest.raises(ClosedError):
                call()
    else:
        spec(make)


@pytest.mark.parametrize(("name", "spec"), READING)
def test_a_snapshot_of_it_is_such_a_mapping_too(
    make: Callable[..., Any], name: str, spec: Callable[[Any], None]
) -> None:
    snapshots = []

    def snapshot(entries: Mapping[bytes, bytes]) -> Any:
        db = make(entries)
        snapshots.append(db.snapshot())
        db.clear()
        return snapshots[-1]

    spec(snapshot)
    for taken in snapshots:
        taken.close()


@pytest.mark.parametrize(("name", "spec"), READ_ONLY)
def test_a_read_only_one_refuses_writes(make: Callable[..., Any], name: str, spec: Callable[[Any], None]) -> None:
    if name == "a_transaction_is_refused":
        with pytest.raises(ReadOnlyError), make({}, "r").transaction("key"):
            pass
    else:
        spec(lambda entries: make(entries, "r"))


@pytest.mark.parametrize("durability", ["full", "process", "interval", "manual"])
def test_every_durability_mode_is_passed_on(make: Callable[..., Any], durability: str) -> None:
    db = make({}, durability=durability, interval=0.05)
    rng = random.Random(7)
    model: dict[bytes, bytes] = {}
    for _ in range(300):
        key = b"%d" % rng.randrange(60)
        if rng.random() < 0.3:
            assert db.pop(key, None) == model.pop(key, None)
        else:
            db[key] = model[key] = rng.randbytes(5)
        assert len(db) == len(model)
    db.update({b"u": b"1", b"v": b"2", b"w": b"3"})
    model |= {b"u": b"1", b"v": b"2", b"w": b"3"}
    assert list(db.items()) == sorted(model.items())
    db.sync()
    with open_sharded(db.path) as other:
        assert other == model


def test_manual_writes_are_not_visible_to_others_before_sync(db: ShardedDatabase, directory: str) -> None:
    with open_sharded(directory, "w", durability="manual") as manual:
        manual.update(ENTRIES)
        assert len(manual) == 500
        assert len(db) == 0
        manual.sync()
        assert len(db) == 500


def test_length_does_not_iterate(db: ShardedDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    db.update(ENTRIES)
    monkeypatch.setattr(durabledbm.Database, "_keys", None)
    monkeypatch.setattr(durabledbm.Database, "_items", None)
    assert len(db) == 500


def test_an_iterator_sees_each_shard_as_of_its_start(db: ShardedDatabase) -> None:
    db.update(ENTRIES)
    entries = db.items()
    iterator = iter(entries)
    first = next(iterator)
    db.clear()
    assert [first, *iterator] == sorted(ENTRIES.items())
    assert list(entries) == []


def test_a_stdlib_shelf_works_on_it(db: ShardedDatabase) -> None:
    shelf = shelve.Shelf(db)
    for number in range(50):
        shelf[str(number)] = [number]
    del shelf["7"]
    assert shelf["8"] == [8]
    assert len(shelf) == 49
    assert "7" not in shelf
    assert sorted(shelf) == sorted(str(number) for number in range(50) if number != 7)
    shelf.sync()
    shelf.close()


def test_our_shelf_works_on_it(db: ShardedDatabase) -> None:
    with durabledbm.shelve.Shelf(db, writeback=True) as shelf:
        shelf["list"] = []
        shelf["list"].append(1)
    with open_sharded(db.path) as again, durabledbm.shelve.Shelf(again) as shelf:
        assert shelf["list"] == [1]


# -- transactions ------------------------------------------------------------------------------------------------


def keys_of(number: int, shards: int = 4) -> Iterator[bytes]:
    return (key for key in ENTRIES if place(key, shards) == number)


def test_a_transaction_is_one_commit_of_the_keys_shard(db: ShardedDatabase) -> None:
    one, two, *_ = keys_of(2)
    before = [part.txid for part in db.stats().shards]
    with db.transaction(one) as tx:
        tx[one] = "1"
        db[two] = "2"
        assert db[one] == b"1"
        with open_sharded(db.path) as other:
            assert one not in other
    after = [part.txid for part in db.stats().shards]
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, 0, 1, 0]
    with pytest.raises(ZeroDivisionError):
        change_and_fail(db, one, two)
    assert dict(db.items()) == {one: b"1", two: b"2"}


def change_and_fail(db: ShardedDatabase, one: bytes, two: bytes) -> None:
    with db.transaction(one) as tx:
        del tx[one]
        tx[two] = "3"
        raise ZeroDivisionError


def test_a_transaction_refuses_keys_of_other_shards(db: ShardedDatabase) -> None:
    one, other = next(keys_of(1)), next(keys_of(2))
    db[other] = "there"
    with db.transaction(one) as tx:
        for use in (
            lambda: tx[other], lambda: tx.get(other), lambda: other in tx, lambda: tx.pop(other),
            lambda: tx.update({one: "1", other: "2"}), lambda: tx.setdefault(other, "1"), lambda: tx.get_many([other]),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="another shard"):
                use()
        with pytest.raises(ValueError, match="another shard"):
            tx[other] = "1"
        with pytest.raises(ValueError, match="another shard"):
            del tx[other]
        tx.rollback()
    assert dict(db.items()) == {other: b"there"}


def test_all_shards_can_be_written_within_a_transaction_of_one(db: ShardedDatabase) -> None:
    one = next(keys_of(3))
    with db.transaction(one) as tx:
        tx[one] = "1"
        db.update(ENTRIES)
        with open_sharded(db.path) as other:
            assert {place(key, 4) for key in other} == {0, 1, 2}
    assert dict(db.items()) == ENTRIES


def test_an_update_is_atomic_in_each_shard_and_tells_of_a_failure(db: ShardedDatabase) -> None:
    held = next(keys_of(1))
    with open_sharded(db.path, "w", timeout=0.05) as impatient:
        with db.transaction(held), pytest.raises(BusyError):
            run_in_thread(lambda: impatient.update(ENTRIES))
        assert {place(key, 4) for key in db} == {0, 2, 3}
        assert len(db) == sum(place(key, 4) != 1 for key in ENTRIES)


def run_in_thread(call: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_popitem_takes_each_entry_once_among_threads(db: ShardedDatabase) -> None:
    db.update(ENTRIES)
    taken: list[bytes] = []

    def take() -> None:
        while True:
            try:
                taken.append(db.popitem()[0])
            except KeyError:
                return

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ENTRIES)


# -- the directory -----------------------------------------------------------------------------------------------


def test_a_wrong_number_of_shards_is_an_error(db: ShardedDatabase, directory: str) -> None:
    db["a"] = "1"
    for flag in "rwc":
        with pytest.raises(error, match="has 4 shards, not 8"):
            open_sharded(directory, flag, shards=8)
        with open_sharded(directory, flag, shards=4) as given, open_sharded(directory, flag) as not_given:
            assert given == not_given == {b"a": b"1"}
    assert sorted(os.listdir(directory)) == ["durabledbm.shards", *(f"shard-000{n}-of-0004" for n in range(4))]


def test_the_default_is_eight(directory: str) -> None:
    with open_sharded(directory, "c") as db:
        assert db.shards == 8


@needs_immediate_removal
def test_flag_n_makes_an_empty_one_of_any_number(db: ShardedDatabase, directory: str) -> None:
    db.update(ENTRIES)
    with open_sharded(directory, "n", shards=4) as again:
        assert len(again) == 0
        again.update(ENTRIES)
    with open_sharded(directory, "n", shards=2) as again:
        assert len(again) == 0
        again.update(ENTRIES)
    assert content(directory) == ENTRIES
    assert sorted(os.listdir(directory)) == ["durabledbm.shards", *(f"shard-000{n}-of-0002" for n in range(2))]


def test_a_missing_database_is_enoent(directory: str, tmp_path: Path) -> None:
    for flag in "rw":
        with pytest.raises(error) as caught:
            open_sharded(directory, flag)
        assert caught.value.errno == 2
    with pytest.raises(error) as caught:
        open_sharded(tmp_path / "missing" / "below", "c")
    assert caught.value.errno == 2
    assert os.listdir(tmp_path) == []


def test_wrong_arguments_create_nothing(tmp_path: Path) -> None:
    for shards in (0, -1, 5000, 2.5, "8"):
        with pytest.raises(ValueError, match="shards"):
            open_sharded(tmp_path / "new", "c", shards=shards)  # type: ignore[arg-type]
    for flag in ("x", "", None):
        with pytest.raises(ValueError, match="lag"):
            open_sharded(tmp_path / "new", flag)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="durability"):
        open_sharded(tmp_path / "new", "c", durability="none")
    assert os.listdir(tmp_path) == []


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for flag in "rwcn":
        with pytest.raises(error):
            open_sharded(tmp_path / "file", flag)
    assert (tmp_path / "file").read_text() == "text"


def test_a_shard_that_is_missing_is_an_error_and_not_created_empty(directory: str) -> None:
    with open_sharded(directory, "c", shards=3) as db:
        db.update(ENTRIES)
    os.unlink(os.path.join(directory, "shard-0001-of-0003"))
    for flag in "rwc":
        with pytest.raises(error) as caught:
            open_sharded(directory, flag)
        assert caught.value.errno == 2
    with open_sharded(directory, "n", shards=3) as db:
        assert len(db) == 0


def test_repr_shows_path_shards_entries_and_state(directory: str) -> None:
    with open_sharded(directory, "c", shards=2, durability="interval", interval=3600) as db:
        db["a"] = "1"
        assert repr(db).endswith(f"ShardedDatabase {directory!r}, 2 shards, 0 entries and unflushed writes, open>")
        db.sync()
        assert repr(db).endswith(f"ShardedDatabase {directory!r}, 2 shards, 1 entry, open>")
    assert repr(db).endswith(f"ShardedDatabase {directory!r}, closed>")
    with open_sharded(directory) as db:
        assert repr(db).endswith(f"ShardedDatabase {directory!r}, 2 shards, 1 entry, read-only>")
        assert db._ipython_key_completions_() == ["a"]


def manifest(**changes: object) -> bytes:
    fields = {"format": "durabledbm-sharded", "version": 1, "shards": 4, "placement": "crc32-golden"}
    return json.dumps(fields | changes).encode()


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (b"", CorruptionError), (b"no json", CorruptionError), (b"[]", CorruptionError), (b"{}", CorruptionError),
        (b"[" * 9999, CorruptionError), (b'{"format":' * 999, CorruptionError), (b"9" * 9999, CorruptionError),
        (manifest(format="x"), CorruptionError), (manifest(shards=0), CorruptionError),
        (manifest(shards="4"), CorruptionError), (manifest(version=2), error), (manifest(placement="sha1"), error),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_a_manifest_that_is_damaged_or_unknown_is_an_error(directory: str, written: bytes, kind: type[error]) -> None:
    open_sharded(directory, "c", shards=4).close()
    Path(directory, "durabledbm.shards").write_bytes(written)
    for flag in "rwc":
        with pytest.raises(kind):
            open_sharded(directory, flag)


def test_a_manifest_that_cannot_be_read_or_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    name = tmp_path / "durabledbm.shards"
    with pytest.raises(error) as caught:
        shards_manifest.write(str(tmp_path / "missing"), 3)
    assert (caught.value.errno, caught.value.filename) == (2, str(tmp_path / "missing" / "durabledbm.shards"))
    name.mkdir()
    with pytest.raises(error) as caught:
        shards_manifest.read(str(tmp_path))
    assert caught.value.filename == str(name)
    assert not isinstance(caught.value, CorruptionError)


@pytest.mark.parametrize("faster", [True, False])
def test_where_there_are_no_links_the_manifest_gets_its_name_all_the_same(
    tmp_path: Path, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless another process was faster: then its manifest stays."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for shards in (2, 3):
        (tmp_path / f"shard-0000-of-{shards:04}").touch()
    if faster:
        shards_manifest.write(str(tmp_path), 3)
    monkeypatch.setattr(os, "link", refuse)
    shards_manifest.write(str(tmp_path), 2)
    assert shards_manifest.read(str(tmp_path)) == (3 if faster else 2)
    assert len(os.listdir(tmp_path)) == 3, "no temporary file is left"


@needs_mode
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_what_stands_beside_the_shards_and_all_copies_have_their_permissions(directory: str, mode: int) -> None:
    umask = os.umask(0)
    try:
        with open_sharded(directory, "c", mode, shards=2) as db:
            db["key"] = "value"
            db.backup(f"{directory}.copy")
        reshard(directory, f"{directory}.3", shards=3)
    finally:
        os.umask(umask)
    for made in (directory, f"{directory}.copy", f"{directory}.3"):
        assert {stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(made)} == {mode}
        if made != directory:
            assert stat.S_IMODE(os.stat(made).st_mode) == mode | (mode & 0o444) >> 2


def test_the_cache_is_shared_out(directory: str) -> None:
    with open_sharded(directory, "c", shards=4, cache_size=4 * 2**20) as db:
        assert {2 * shard._store._cache_size for shard in db._shards} == {2**20}


def test_processes_that_create_the_same_one_at_once_all_succeed(tmp_path: Path) -> None:
    attempts = 8
    paths = [str(tmp_path / str(number)) for number in range(attempts)]
    with ExitStack() as stack:
        children = []
        for shards in (2, 3, 2, 3):
            wanted = [(path, 3 if at % 2 else shards) for at, path in enumerate(paths)]
            children.append(stack.enter_context(Child("create_sharded", wanted)))
        for at, path in enumerate(paths):
            for child in children:
                child.hear("ready")
            for child in children:
                child.tell("go")
            results = Counter(child.hear("made") for child in children)
            with open_sharded(path) as db:
                refused = f"{path}: has {db.shards} shards, not {5 - db.shards}"
                assert results == ({"has 3": 4} if at % 2 else {f"has {db.shards}": 2, refused: 2})
                assert len(db) == results[f"has {db.shards}"]


WRITER = """
import sys
from durabledbm.sharded import open_sharded
with open_sharded(sys.argv[1], "w", durability=sys.argv[3]) as db:
    for number in range(200):
        db[f"{sys.argv[2]} {number}"] = "x"
"""


@pytest.mark.parametrize("durability", ["full", "process"])
def test_many_processes_write_at_once(db: ShardedDatabase, durability: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, db.path, str(name), durability], env=environment)
        for name in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(db) == 600
    assert not db.check()


@needs_fork
def test_a_forked_child_uses_it(db: ShardedDatabase) -> None:
    db.update(ENTRIES)  # the threads are the parent's
    pid = os.fork()
    if not pid:
        try:
            db.update(dict.fromkeys(ENTRIES, b"child"))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert set(db.values()) == {b"child"}
    db.update(ENTRIES)
    assert db == ENTRIES


KILLED = """
import sys
from durabledbm.sharded import open_sharded
db = open_sharded(sys.argv[1], "w")
number = int(sys.argv[2])
while True:
    number += 1
    db.update({f"{n} {number % 7}": str(number) for n in range(40)})
    sys.stdout.write(f"{number}\\n"); sys.stdout.flush()
"""


def kill_updates(db: ShardedDatabase, rng: random.Random, rounds: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    acknowledged = 0
    for _ in range(rounds):
        command = [sys.executable, "-c", KILLED, db.path, str(acknowledged)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.random() * 0.1)
            process.kill()
            lines = process.stdout.read().split(b"\n")
            assert process.wait() == (1 if WINDOWS else -KILL)
        acknowledged = max([acknowledged + 1, *(int(line) for line in lines[:-1] if line)])
        last = {}
        for shard in range(4):
            newest = {int(value) for key, value in db.items() if place(key, 4) == shard}
            last[shard] = max(newest)
            complete = [key for key, value in db.items() if place(key, 4) == shard and int(value) == last[shard]]
            assert len(complete) == sum(place(f"{n} {last[shard] % 7}".encode(), 4) == shard for n in range(40))
        assert all(acknowledged <= number <= acknowledged + 1 for number in last.values())
        acknowledged = max(last.values())
    assert not db.check()


def test_after_a_kill_each_shard_holds_each_update_whole_or_not_at_all(db: ShardedDatabase) -> None:
    kill_updates(db, random.Random(1), 3)


@pytest.mark.long
def test_after_100_kills_each_shard_holds_each_update_whole_or_not_at_all(db: ShardedDatabase) -> None:
    kill_updates(db, random.Random(2), 100)


# -- the whole ---------------------------------------------------------------------------------------------------


def test_check_reports_progress(db: ShardedDatabase) -> None:
    db.update({b"%d" % number: bytes(100) for number in range(4000)})
    calls: list[tuple[int, int]] = []
    assert db.check(progress=lambda done, total: calls.append((done, total))) == []
    assert calls == sorted(calls)
    assert calls[-1][0] <= calls[-1][1]


@pytest.mark.leaves_damage
def test_check_finds_damage_in_any_shard(directory: str) -> None:
    with open_sharded(directory, "c", shards=3) as db:
        db.update({key: value * 20 for key, value in ENTRIES.items()})
    path = os.path.join(directory, "shard-0002-of-0003")
    with open(path, "r+b") as file:
        file.seek(3 * 4096 + 100)
        file.write(b"rot")
    with open_sharded(directory) as db:
        problems = db.check()
        assert problems
        assert all(problem.message.startswith("shard-0002-of-0003: ") for problem in problems)


def test_stats_add_up(db: ShardedDatabase, directory: str) -> None:
    db.update(ENTRIES)
    stats = db.stats()
    assert stats.entries == 500
    assert len(stats.shards) == 4
    files = [os.path.join(directory, name) for name in os.listdir(directory) if name.startswith("shard")]
    assert stats.file_bytes == sum(map(os.path.getsize, files))
    assert stats.commits == 4


def test_reorganize_makes_all_files_smaller(db: ShardedDatabase) -> None:
    db.update({b"%d" % number: bytes(500) for number in range(4000)})
    db.update(dict.fromkeys((b"%d" % number for number in range(4000)), b""))
    size = db.stats().file_bytes
    calls: list[tuple[int, int]] = []
    db.reorganize(progress=lambda done, total: calls.append((done, total)))
    assert db.stats().file_bytes <= size
    assert calls == sorted(calls)
    assert len(db) == 4000


def test_a_backup_is_a_sharded_database(db: ShardedDatabase, tmp_path: Path) -> None:
    db.update(ENTRIES)
    calls: list[tuple[int, int]] = []
    db.backup(tmp_path / "copy", progress=lambda done, total: calls.append((done, total)))
    assert content(tmp_path / "copy") == ENTRIES
    assert calls[-1] == (500, 500)
    with pytest.raises(error):
        db.backup(tmp_path / "copy")
    with pytest.raises(ZeroDivisionError):
        db.backup(tmp_path / "second", progress=lambda done, total: 1 // 0)
    assert sorted(os.listdir(tmp_path)) == ["copy", "sharded"]


def test_dropping_the_last_reference_frees_files_and_threads(directory: str) -> None:
    db = open_sharded(directory, "c", shards=2)
    db.update(ENTRIES)
    disks = [shard._store.disk for shard in db._shards]
    del db
    for disk in disks:
        with pytest.raises(ClosedError):
            disk.read(1, 0)


# -- resharding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 4, 7, 32])
def test_resharding_copies_everything(db: ShardedDatabase, tmp_path: Path, shards: int) -> None:
    entries = ENTRIES | {b"": b"", b"large": bytes(300_000), b"k" * 10_000: b"long"}
    db.update(entries)
    calls: list[tuple[int, int]] = []
    target = tmp_path / "new"
    assert reshard(db.path, target, shards=shards, progress=lambda *call: calls.append(call)) == str(target)
    with open_sharded(target, "w", shards=shards) as copy:
        assert dict(copy.items()) == entries
        assert all(place(key, shards) == number for number, part in enumerate(copy._shards) for key in part)
        assert not copy.check()
        copy.update(dict.fromkeys(ENTRIES, b"written"))
        assert not copy.check()
    assert calls[-1] == (503, 503)
    assert dict(db.items()) == entries


def test_without_a_target_the_new_directory_is_named_after_the_number(db: ShardedDatabase, directory: str) -> None:
    db.update(ENTRIES)
    assert reshard(directory, shards=2) == directory + "-2"
    assert content(directory + "-2") == ENTRIES
    with pytest.raises(error, match="exists"):
        reshard(directory, shards=2)
    for shards in (0, "2"):
        with pytest.raises(ValueError, match="shards"):
            reshard(directory, shards=shards)  # type: ignore[arg-type]


def test_a_database_that_is_written_to_meanwhile_is_not_resharded(db: ShardedDatabase, tmp_path: Path) -> None:
    db.update({b"%d" % number: b"" for number in range(3000)})

    def write(done: int, total: int) -> None:
        db["a"] = str(done)

    with pytest.raises(error, match="written to"):
        reshard(db.path, tmp_path / "new", shards=2, progress=write)
    assert os.listdir(tmp_path) == ["sharded"]


def test_an_empty_database_is_resharded(db: ShardedDatabase, tmp_path: Path) -> None:
    reshard(db.path, tmp_path / "new", shards=2)
    assert content(tmp_path / "new") == {}


def test_the_old_directory_may_be_replaced_by_the_new_one(directory: str) -> None:
    with open_sharded(directory, "c", shards=2) as db:
        db.update(ENTRIES)
    new = reshard(directory, shards=5)
    shutil.rmtree(directory)
    os.rename(new, directory)
    with open_sharded(directory) as db:
        assert db.shards == 5
        assert db == ENTRIES


@pytest.mark.parametrize("durability", ["full", "interval"])
def test_a_handler_may_close_it_amid_an_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any
) -> None:
    """It is closed when the operation has ended, which counts."""
    db = durabledbm.open_sharded(tmp_path / "db", "c", shards=2, durability=durability)
    db.update({str(number): "before" for number in range(8)})
    where: Any = GroupCommit if durability == "full" else ChangeSet
    original = where.put

    def interrupted(*args: Any) -> Any:
        monkeypatch.undo()
        db.close()
        assert not db.closed
        return original(*args)

    monkeypatch.setattr(where, "put", interrupted)
    db["k"] = "v"
    assert db.closed
    with durabledbm.open_sharded(tmp_path / "db") as again:
        assert (again["k"], len(again)) == (b"v", 9)
