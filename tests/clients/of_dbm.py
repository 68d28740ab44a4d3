"""A program for dbm and shelve that passes `mypy --strict` and pyright: with durabledbm in their place it must, too.

`test_typing` checks it both ways. It is never run.
"""

# ruff: noqa: C416, SIM115, SIM118 - it is written as programs are
from __future__ import annotations

import dbm
import shelve
from collections.abc import (
    Callable,
    Collection,
    Container,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    ValuesView,
)
from contextlib import closing
from pathlib import Path
from typing import Any, Literal


def flags(path: Path, flag: Literal["r", "w", "c", "n"]) -> None:
    dbm.open(str(path), flag).close()
    dbm.open(str(path), "cf", 0o600).close()
    dbm.open(str(path), flag="nusf", mode=0o600).close()


def opened(path: str) -> MutableMapping[str | bytes, bytes]:
    return dbm.open(path, "c")


def count(db: Mapping[str | bytes, bytes]) -> int:
    return sum(map(len, db.values()))


def change(db: MutableMapping[str | bytes, bytes], key: str | bytes) -> bytes:
    db[key] = b"1"
    del db[key]
    return db.pop(key, b"")


def see(whole: Iterable[str | bytes], some: Container[str | bytes], both: Collection[str | bytes]) -> None: ...


def use(path: str, key: str | bytes) -> dict[str | bytes, bytes]:
    with dbm.open(path, "c") as db:
        db["a"] = b"1"
        db[b"a"] = "1"
        db[key] = bytearray(b"1")
        value: bytes = db["a"]
        found: bytes | None = db.get("a")
        found = db.get(key, None)
        value = db.get(b"a", b"")
        text: bytes | str = db.get("a", "none")
        number: bytes | int = db.pop("a", 0)
        value = db.pop("a")
        value = db.pop(key, b"")
        found = db.pop("a", None)
        value = db.setdefault("a", b"1")
        _, value = db.popitem()
        db.update({"a": b"1"})
        db.update({b"a": b"1"})
        db.update([("a", b"1"), (b"b", b"2")])
        db.update(a=b"1", b=b"2")
        db.update({"a": b"1"}, b=b"2")
        if "a" in db and b"a" in db and key in db and "b" not in db:
            del db["a"]
        for name in db:
            print(name.decode())
        for name_ in db.keys():
            print(name_)
        for name_, value in db.items():
            print(name_, value.decode())
        for value in db.values():
            print(value.hex())
        items: ItemsView[str | bytes, bytes] = db.items()
        values: ValuesView[bytes] = db.values()
        names: list[str | bytes] = list(db)
        names = list(db.keys())
        names = [name for name in db]
        lookup: Callable[[str | bytes], bytes] = db.__getitem__
        iterator: Iterator[str | bytes] = iter(db)
        print(items, values, text, number, names, lookup, iterator, len(db), bool(db), db == {}, found)
        print(sorted(db.values()), max(db.values()), count(db), change(db, key), {**db})
        see(db, db, db)
        db.clear()
        copied: dict[str | bytes, bytes] = dict(db)
        copied.update(db)
        return dict(db)


def fail(path: str) -> str | None:
    try:
        with closing(dbm.open(path)) as db:
            db["a"]
    except KeyError:
        return None
    except dbm.error as exc:
        print(exc, exc.args)
    return dbm.whichdb(path)


class Store:
    db: dbm._Database | None = None

    def __init__(self, path: str) -> None:
        self.db = dbm.open(path, "c")

    def get(self, key: str) -> str | None:
        if self.db is None or key not in self.db:
            return None
        return self.db[key].decode()


def shelves(path: str, flag: Literal["c", "n"]) -> shelve.Shelf[Any]:
    with shelve.open(path, flag, 4, True) as shelf:
        shelf["a"] = [1]
        shelf["a"].append(2)
        if "a" in shelf:
            del shelf["a"]
    numbers: shelve.Shelf[int] = shelve.open(path, flag="c", protocol=None, writeback=False)
    number: int = numbers["a"]
    number = numbers.get("a", 0)
    number = numbers.pop("a")
    number = numbers.pop("a", 1)
    number = numbers.setdefault("a", 1)
    maybe: int | None = numbers.get("a")
    maybe = numbers.get("a", None)
    maybe = numbers.pop("a", None)
    text: int | str = numbers.get("a", "none")
    numbers.update({"a": 1})
    numbers.update([("a", 1)])
    numbers.update(a=1)
    for key in numbers:
        print(key.upper())
    for key, number in numbers.items():
        print(key.upper(), number + 1)
    total: int = sum(numbers.values())
    names: list[str] = list(numbers)
    names = list(numbers.keys())
    mapping: MutableMapping[str, int] = numbers
    print(maybe, text, names, mapping, dict(numbers), len(numbers), number, total)
    numbers.sync()
    numbers.clear()
    numbers.close()
    stored: dict[bytes, bytes] = {}
    print(total_of(shelve.Shelf(stored, protocol=4, writeback=True, keyencoding="ascii")))
    print(total_of(shelve.DbfilenameShelf(path, "r", 4, False)))
    with closing(shelve.open(path)) as closed:
        print(closed["a"])
    return shelve.open(path)


def total_of(shelf: shelve.Shelf[int]) -> int:
    return shelf.get("a", 0) + sum(shelf.values())


class Counted(shelve.DbfilenameShelf[int]):
    def __init__(self, path: str) -> None:
        super().__init__(path, flag="c")
        self.writes = 0

    def __getitem__(self, key: str) -> int:
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: int) -> None:
        self.writes += 1
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def items(self) -> ItemsView[str, int]:
        return super().items()

    def values(self) -> ValuesView[int]:
        return super().values()

    def sync(self) -> None:
        super().sync()

    def close(self) -> None:
        super().close()

    def clear(self) -> None:
        super().clear()
