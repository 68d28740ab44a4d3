"""The stations of the tour: each does something with durabledbm, checks it, and does it with the stdlib."""

from __future__ import annotations

import os
import shelve
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ... import open as open_database
from ...maintenance.inspect import inspect
from ...shelve import open as open_shelf
from ..pictures.terminal import draw
from ..progress import duration
from ..text import plural
from .killing import KEYS, Aftermath, kill_while_writing
from .rivals import SYNCS, backend
from .speed import contenders, measure
from .stage import Stage

__all__ = ["STEPS", "Tour"]

_PATIENCE = 2.0
"""Seconds after which the standard library's writing is stopped: the rest would be the same."""

_PREFIX = b"json/"
_KILLS = 5


class _Refused(Exception):
    """Raised in the middle of the transaction that is to be rolled back."""


class Tour:
    """What the steps share."""

    def __init__(self, stage: Stage, directory: str, files: dict[bytes, bytes], default: str, budget: float) -> None:
        self.stage = stage
        self.files = files
        self.default = default
        self.budget = budget
        self.directory = directory
        self.path = os.path.join(directory, "tour.db")
        self.their_path = os.path.join(directory, "stdlib")
        self.theirs_complete = True
        self.failures: list[str] = []

    def expect(self, holds: bool, failure: str) -> bool:
        """Note what is not as it should be."""
        if not holds:
            self.failures.append(failure)
        return holds

    def open_theirs(self, flag: str) -> Any:
        """The standard library's database."""
        return backend(self.default).open(self.their_path, flag)


def write(tour: Tour) -> None:
    """All files in one commit."""
    stage, files = tour.stage, tour.files
    size = sum(map(len, files.values()))
    stage.step(f"Write {len(files):,} files, all or nothing")
    stage.code('with durabledbm.open("tour.db", "c") as db: db.update(files)')
    start = time.perf_counter()
    with open_database(tour.path, "n") as db:
        db.update(files)
    took = time.perf_counter() - start
    stage.ours(
        f"{duration(took)}, {size / took / 1e6:,.0f} MB/s: one atomic commit, synced to the disk. "
        f"{_files_of(tour.path)}."
    )
    start = time.perf_counter()
    done = done_size = 0
    with tour.open_theirs("n") as db:
        for key, value in files.items():
            db[key] = value
            done += 1
            done_size += len(value)
            if time.perf_counter() - start > _PATIENCE:
                tour.theirs_complete = done == len(files)
                break
    took = time.perf_counter() - start
    all_of = f"{duration(took)}" if done == len(files) else f"{done:,} of the files in {duration(took)}, then stopped"
    synced = "each with a commit of its own" if tour.default in SYNCS else "nothing of it synced"
    stage.theirs(
        tour.default,
        f"{all_of}, {done_size / took / 1e6:,.0f} MB/s: {done:,} separate writes, {synced}. "
        f"{_files_of(tour.their_path)}.",
    )


def _files_of(path: str) -> str:
    folder, name = os.path.split(path)
    names = sorted(other for other in os.listdir(folder) if other.startswith(name))
    return f"{plural(len(names), 'file')}: {', '.join(names)}"


class _Reading(NamedTuple):
    seconds: float
    differing: int


def _read_all(db: Any, files: Mapping[bytes, bytes], names: list[bytes]) -> _Reading:
    start = time.perf_counter()
    contents = [db[name] for name in names]
    took = time.perf_counter() - start
    return _Reading(took, sum(content != files[name] for name, content in zip(names, contents, strict=True)))


def read(tour: Tour) -> None:
    """All files back, compared; and those of one package."""
    stage, files = tour.stage, tour.files
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in files) else next(iter(files))[:1]
    wanted = {name for name in files if name.startswith(prefix)}
    stage.step("Read them back, and look some up by their prefix")
    stage.code(f'for name, content in db.range(prefix="{prefix.decode()}"): ...')
    with open_database(tour.path) as db:
        reading = _read_all(db, files, list(files))
        start = time.perf_counter()
        found = dict(db.range(prefix=prefix))
        took = time.perf_counter() - start
    good = tour.expect(not reading.differing and found.keys() == wanted, "files differ after they were read back")
    stage.ours(
        f"{plural(len(files), 'file')} in {duration(reading.seconds)}, "
        f"{'all' if good else 'NOT all'} equal to their source; the {len(found)} below {prefix.decode()} in "
        f"order in {duration(took)}.",
        good=good,
    )
    with tour.open_theirs("r") as db:
        names = list(db.keys())
        reading = _read_all(db, files, names)
        start = time.perf_counter()
        matching = {name: db[name] for name in sorted(db.keys()) if name.startswith(prefix)}
        took = time.perf_counter() - start
    stage.theirs(
        tour.default,
        f"{plural(len(names), 'file')} in {duration(reading.seconds)}, {reading.differing} differ; keys have "
        "no order, so all of "
        f"them are fetched and searched: {len(matching)} in {duration(took)}.",
    )


def roll_back(tour: Tour) -> None:
    """An exception in the middle of many deletions."""
    stage, files = tour.stage, tour.files
    stage.step("Change your mind: delete everything, then fail in the middle")
    stage.code("with db.transaction(): ... ; raise SomethingWentWrong")
    with open_database(tour.path, "w") as db:
        start = time.perf_counter()
        try:
            with db.transaction():
                for name in list(files)[: len(files) * 3 // 4]:
                    del db[name]
                inside = len(db)
                with open_database(tour.path) as other:
                    outside = len(other)
                raise _Refused
        except _Refused:
            pass
        took = time.perf_counter() - start
        intact = tour.expect(
            outside == len(db) == len(files) and _read_all(db, files, list(files)).differing == 0,
            "the rollback lost something",
        )
    stage.ours(
        f"{inside:,} of {len(files):,} files were left inside the transaction; after it failed, "
        f"{'all are there' if intact else 'some are gone'}"
        f" ({duration(took)}). A second reader saw {outside:,} all the time.",
        good=intact,
    )
    with tour.open_theirs("w") as their:
        before = len(their.keys())
        start = time.perf_counter()
        try:
            for name in their.keys()[: before * 3 // 4]:
                del their[name]
                if time.perf_counter() - start > _PATIENCE:
                    break
            raise _Refused
        except _Refused:
            pass
    with tour.open_theirs("r") as their:
        left = len(their.keys())
    stage.theirs(tour.default, f"no transactions: {before - left:,} of {before:,} files are gone for good.")


def kill(tour: Tour) -> None:
    """Processes killed in the middle of writing."""
    stage = tour.stage
    stage.step("Kill the writer: SIGKILL to a process in the middle of writing")
    stage.note(
        f"The child sets {KEYS} keys in turn, again and again, and says when each write has returned. After "
        "the kill every key must have the "
        "value that was acknowledged last."
    )
    path = os.path.join(tour.directory, "killed.db")
    acknowledged = missing = wrong = 0
    failure = ""
    for _ in range(_KILLS):
        result = kill_while_writing("durabledbm", path, start=acknowledged, at_least=60)
        acknowledged, missing, wrong = result.acknowledged, missing + result.missing, wrong + result.wrong
        failure = failure or result.failure
    problems: list[Any] = []
    if not failure:
        with open_database(path) as db:
            problems = db.check()
    good = tour.expect(
        not (missing or wrong or failure or problems),
        f"after a kill: {missing} missing, {wrong} wrong, {problems[:3]} {failure}",
    )
    stage.ours(
        f"{_KILLS} kills, {acknowledged:,} acknowledged writes: {missing} keys missing, {wrong} wrong. Each "
        "time the file opened at once, "
        f"with nothing to repair; check() read every page and found {plural(len(problems), 'problem')}.",
        good=good,
    )
    for name in dict.fromkeys((tour.default, "dbm.dumb")):
        stage.theirs(
            name,
            _told(kill_while_writing(name, os.path.join(tour.directory, f"killed-{name}"), at_least=60)),
        )


def _told(result: Aftermath) -> str:
    if result.failure:
        return f"1 kill, {result.acknowledged:,} acknowledged writes: the file can't be read ({result.failure})."
    if not result.missing and not result.wrong:
        return f"1 kill, {result.acknowledged:,} acknowledged writes: no key missing, none wrong."
    return (
        f"1 kill, {result.acknowledged:,} acknowledged writes: of {KEYS} keys {result.missing} missing, "
        f"{result.wrong} with an old or broken value, "
        "and no error that says so."
    )


def shelf(tour: Tour) -> None:
    """Objects, and a second user of the same file."""
    stage, files = tour.stage, tour.files
    packages: dict[str, dict[str, int]] = {}
    for name, content in files.items():
        entry = packages.setdefault(name.decode().partition("/")[0], {"files": 0, "bytes": 0, "lines": 0})
        entry["files"] += 1
        entry["bytes"] += len(content)
        entry["lines"] += content.count(b"\n")
    stage.step("Keep objects in a shelf, while others have it open")
    stage.code('import durabledbm.shelve as shelve; shelf = shelve.open("packages")')
    path = os.path.join(tour.directory, "packages.db")
    with open_shelf(path) as ours:
        ours.update(packages)
        most = max(packages, key=lambda name: packages[name]["lines"])
        with open_shelf(path, "r") as reader:
            ours["added"] = {"files": 1}
            sees = tour.expect(
                reader.get("added") == {"files": 1} and dict(reader)[most] == packages[most],
                "the second reader of the shelf",
            )
        thread = _in_thread(lambda: ours[most] == packages[most])
        tour.expect(thread == "reads it as well", "the shelf in another thread")
    stage.ours(
        f"{len(packages):,} dicts; the largest is {most}, {packages[most]}. A second reader "
        f"{'sees the change at once' if sees else 'does NOT see the change'}; another thread {thread}.",
        good=sees,
    )
    stage.theirs(tour.default, _two_users(os.path.join(tour.directory, "stdlib-shelf")))


def _two_users(path: str) -> str:
    with shelve.open(path, "n") as first:
        first["before"] = {"files": 0}
        try:
            with shelve.open(path, "r") as second:
                first["added"] = {"files": 1}
                seen = second.get("added")
            reader = (
                "a second reader can open it, and sees the change"
                if seen
                else "a second reader can open it, but never sees the change"
            )
        except Exception as exc:  # each backend has errors of its own
            reader = f"a second reader fails with {type(exc).__name__}: {exc}"
        return f"{reader}; another thread {_in_thread(lambda: first['before'] == {'files': 0})}."


def _first_sentence(exc: Exception) -> str:
    """What an exception says, without a full stop, and without what follows it."""
    return " ".join(str(exc).split()).partition(". ")[0].rstrip(".")


def _in_thread(look: Callable[[], bool]) -> str:
    """What becomes of a look into the same shelf from another thread."""
    outcome: list[str] = []

    def run() -> None:
        try:
            outcome.append("reads it as well" if look() else "reads something else")
        except Exception as exc:
            outcome.append(f"fails with {type(exc).__name__}: {_first_sentence(exc)}")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


def speed(tour: Tour) -> None:
    """A table."""
    stage = tour.stage
    stage.step("How fast? 20,000 entries of 100 bytes, time per operation")
    stores = contenders(list(dict.fromkeys((tour.default, "dbm.dumb"))))
    columns = [measure(store, tour.directory, tour.budget) for store in stores]
    names = ("put", "load, per entry", "get, random", "scan, per entry", "open + get + close")
    rows = [[name, *(column[at] for column in columns)] for at, name in enumerate(names)]
    stage.table(["", *(store.name for store in stores)], rows)
    unsynced = [name for name in dict.fromkeys((tour.default, "dbm.dumb")) if name not in SYNCS]
    stage.note(
        'A put of durabledbm is on the disk when it returns; with durability="manual" it waits in memory for '
        "sync()"
        + (
            f", as with {' and '.join(unsynced)}, which never sync{'s' if len(unsynced) == 1 else ''} a write."
            if unsynced
            else "."
        )
    )


def look_inside(tour: Tour) -> None:
    """The check and the map."""
    stage = tour.stage
    stage.step("Look inside")
    start = time.perf_counter()
    with open_database(tour.path) as db:
        problems = db.check()
    took = time.perf_counter() - start
    tour.expect(not problems, f"check() found {problems[:3]}")
    size = os.path.getsize(tour.path)
    content = sum(len(name) + len(data) for name, data in tour.files.items())
    stage.ours(
        f"check() verified every page in {duration(took)}: {plural(len(problems), 'problem')}. The file "
        f"takes {size / 1e6:.1f} MB for "
        f"{content / 1e6:.1f} MB of names and contents.",
        good=not problems,
    )
    stage.note("The file as durabledbm inspect draws it:")
    picture = inspect(tour.path)
    stage.lines(draw(picture, width=min(stage.width - 3, 80), rows=5, colour=stage.has_colour, only_map=True))


STEPS: tuple[Callable[[Tour], None], ...] = (write, read, roll_back, kill, shelf, speed, look_inside)
