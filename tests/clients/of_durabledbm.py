"""A program for durabledbm, and what a type checker must say about it: each `type: ignore` is needed.

`test_typing` checks it. It is never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Reversible
from typing import TYPE_CHECKING, Any

import durabledbm
import durabledbm.shelve

if TYPE_CHECKING:
    from typing_extensions import assert_type


def one_way_or_the_other(db: durabledbm.Database) -> None:
    """A database is what `dbm.open` returns, of which the keys are `str | bytes`, and a mapping of bytes."""
    given: MutableMapping[str | bytes, bytes] = db
    taken: MutableMapping[bytes, bytes] = db
    read: Mapping[bytes, bytes] = db
    names: Iterable[bytes] = db
    backwards: Reversible[bytes] = db
    print(given, taken, read, names, backwards)


def what_comes_out(db: durabledbm.Database) -> None:
    assert_type(db["k"], bytes)
    assert_type(db.get("k"), bytes | None)
    assert_type(db.get("k", 0), bytes | int)
    assert_type(db.pop("k"), bytes)
    assert_type(db.pop("k", None), bytes | None)
    assert_type(db.setdefault("k", "v"), bytes)
    assert_type(db.popitem(), tuple[bytes, bytes])
    assert_type(db.keys(), list[bytes])
    assert_type(list(db), list[bytes])
    assert_type(max(db), bytes)
    assert_type(list(reversed(db)), list[bytes])
    assert_type(dict(db), dict[bytes, bytes])
    assert_type(next(db.range(prefix="k")), tuple[bytes, bytes])
    assert_type(db.check(), list[durabledbm.Problem])
    assert_type(db.stats(), durabledbm.Stats)
    with db.transaction() as tx, db.snapshot() as snapshot:
        assert_type(tx.pop("k", b""), bytes)
        assert_type(snapshot.get(memoryview(b"k")), bytes | None)
        if "k" in tx and "k" in snapshot:
            tx["k"] = "v"


def what_goes_in(path: str, db: durabledbm.Database) -> None:
    db[1] = b"v"  # type: ignore[index]
    db["k"] = 1  # type: ignore[assignment]
    db.get(None)  # type: ignore[call-overload]
    db.pop(1)  # type: ignore[call-overload]
    durabledbm.open(path, "x")  # type: ignore[arg-type]
    durabledbm.open(path, durability="ful")  # type: ignore[arg-type]
    durabledbm.open(path, durabilty="full")  # type: ignore[call-arg]
    durabledbm.install(durability="ful")  # type: ignore[arg-type]


def opened(path: str, flag: durabledbm.Flag, durability: durabledbm.Durability, **options: Any) -> None:
    durabledbm.open(path, flag, durability=durability, timeout=None).close()
    durabledbm.open(path, flag, **options).close()
    durabledbm.open(path, "n" if options else "c").close()
    with durabledbm.open_sharded(path, "c", shards=3, durability="process") as sharded:
        assert_type(sharded, durabledbm.ShardedDatabase)
        assert_type(sharded.pop("k", None), bytes | None)
    durabledbm.open_sharded(path, durability="ful")  # type: ignore[arg-type]
    durabledbm.open_sharded(path, **options).close()


def shelves(path: str, db: durabledbm.Database, **options: Any) -> None:
    with durabledbm.shelve.open(path, durability="process", writeback=True, timeout=1, mode=0o600) as shelf:
        shelf["k"] = object()
    numbers: durabledbm.shelve.Shelf[int] = durabledbm.shelve.Shelf(db)
    assert_type(numbers.get("k"), int | None)
    assert_type(numbers.get("k", 0), int)
    assert_type(numbers.get("k", "none"), int | str)
    assert_type(dict(numbers.items()), dict[str, int])
    with numbers.transaction(), numbers.snapshot() as snapshot:
        assert_type(snapshot["k"], int)
    numbers["k"] = "no number"  # type: ignore[assignment]
    durabledbm.shelve.open(path, "x")  # type: ignore[arg-type]
    durabledbm.shelve.open(path, durability="ful")  # type: ignore[arg-type]
    durabledbm.shelve.open(path, "c", **options).close()


def modules(path: str) -> None:
    """Those that are imported when they are used first."""
    durabledbm.restore.restore(path, path)
    durabledbm.dump.dump(durabledbm.open(path), path)
    durabledbm.changelog.ChangeLog(path).close()
