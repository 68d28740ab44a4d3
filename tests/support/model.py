"""The reference: what a database may hold after a crash, given what was asked of it and what it acknowledged.

    model = Model("full", clock=lambda: len(volume.log), seed=seed)
    model.will_commit({b"key": b"value", b"gone": None})    # before; None deletes; clear=True empties first
    db.update(...)
    model.acknowledged()              # after: the commit returned, and with it all that were begun before
    db.sync(); model.synced()         # relaxed modes: what was acknowledged before is on the disk now
    model.content                     # what the database shows now: all that was begun

    model.check(dict(db), "power", at=crash.index)    # the version's number, or AssertionError
    model.allowed("kill")             # the versions that may be left, oldest first
    model.after(dict(db))             # a new model that begins with this content: for what follows a recovery
    model.epoch                       # for `Trace.crashes`: changes whenever something else is allowed

`event` is "power" (a power failure) or "kill" (the process was killed). `at` is a moment on the clock, None
is now. Versions are numbered by commit, 0 is the content at the beginning. Allowed are all from the last that
must not be lost up to the last that was begun:

    mode                      power                 kill
    "full"                    last acknowledged     last acknowledged
    "process"                 last synced           last acknowledged
    "interval", "manual"      last synced           last synced

A commit that raised counts as begun and not acknowledged: it is there or not. Once it is seen what became of
it, go on with `model.after(what was seen)`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from typing import Any

MODES = ("full", "process", "interval", "manual")

_SHOWN = 5  # keys of a difference that are shown
_WIDTH = 40  # bytes of a key or value that are shown


class Model:
    """Versions of one database, one for each commit."""

    def __init__(
        self,
        mode: str = "full",
        content: Mapping[bytes, bytes] | None = None,
        *,
        clock: Callable[[], int] | None = None,
        seed: object = None,
    ) -> None:
        assert mode in MODES
        self.mode = mode
        self.versions: list[dict[bytes, bytes]] = [dict(content or {})]
        self.seed = seed
        self._clock = (lambda: 0) if clock is None else clock
        self._begun: list[int] = []  # when version i + 1 was begun
        self._acknowledged: list[tuple[int, int]] = []  # when, and up to which version
        self._synced: list[tuple[int, int]] = []

    @property
    def content(self) -> dict[bytes, bytes]:
        """The newest version."""
        return self.versions[-1]

    def will_commit(self, changes: Mapping[bytes, bytes | None], *, clear: bool = False) -> int:
        """A commit of these changes begins. Returns the number of the version that it makes."""
        version = {} if clear else dict(self.content)
        for key, value in changes.items():
            if value is None:
                version.pop(key, None)
            else:
                version[key] = value
        self.versions.append(version)
        self._begun.append(self._clock())
        return len(self.versions) - 1

    def acknowledged(self) -> None:
        """All commits that were begun have returned."""
        self._acknowledged.append((self._clock(), len(self.versions) - 1))

    def synced(self) -> None:
        """All acknowledged commits are on the disk, whatever the mode: `sync` or `close` returned."""
        self._synced.append((self._clock(), self._last(self._acknowledged, None)))

    def after(self, content: Mapping[bytes, bytes], *, clock: Callable[[], int] | None = None) -> Model:
        """A model of what follows, in which `content` must not be lost any more."""
        return Model(self.mode, content, clock=clock, seed=self.seed)

    def allowed(self, event: str = "power", at: int | None = None) -> list[dict[bytes, bytes]]:
        """The versions that a crash may leave, oldest first."""
        return self.versions[self.floor(event, at) : self.newest(at) + 1]

    def floor(self, event: str = "power", at: int | None = None) -> int:
        """The number of the oldest version that a crash may leave."""
        assert event in ("power", "kill")
        synced = self._last(self._synced, at)
        if self.mode == "full" or (self.mode == "process" and event == "kill"):
            return max(self._last(self._acknowledged, at), synced)
        return synced

    def newest(self, at: int | None = None) -> int:
        """The number of the newest version that may be there: what begins at `at` has done nothing yet."""
        if at is None:
            return len(self._begun)
        return max(bisect_left(self._begun, at), self._last(self._acknowledged, at))

    def epoch(self, at: int) -> tuple[int, int]:
        """What `allowed("power", at)` depends on."""
        return self.floor("power", at), self.newest(at)

    def check(self, content: Mapping[bytes, bytes], event: str = "power", at: int | None = None) -> int:
        """The number of the version that `content` is; `AssertionError` if it is not allowed."""
        floor, newest = self.floor(event, at), self.newest(at)
        for number in range(newest, floor - 1, -1):
            if self.versions[number] == content:
                return number
        raise AssertionError(self._complaint(dict(content), event, at, floor, newest))

    @staticmethod
    def _last(marks: list[tuple[int, int]], at: int | None) -> int:
        if at is not None:
            marks = marks[: bisect_right(marks, (at, 1 << 62))]
        return marks[-1][1] if marks else 0

    def _complaint(
        self, content: dict[bytes, bytes], event: str, at: int | None, floor: int, newest: int
    ) -> str:
        equal = [number for number, version in enumerate(self.versions) if version == content]
        older = [number for number in equal if number < floor]
        if older:
            what = f"it is version {older[-1]}: {floor - older[-1]} commits are lost that must not be"
        elif equal:
            what = f"it is version {equal[0]}, which was not even begun"
        else:
            what = "it is no version that ever was"
        nearest = min(range(floor, newest + 1), key=lambda number: -_alike(self.versions[number], content))
        moment = "" if at is None else f" after {at} operations"
        lines = [
            f"seed {self.seed!r}, mode {self.mode!r}, {event}{moment}:",
            f"versions {floor} to {newest} are allowed, and {what}",
            f"compared with version {nearest}:",
            *difference(self.versions[nearest], content),
        ]
        return "\n".join(lines)


def mapping_of(place: Any, name: str) -> Any:
    """The table of that name of a database, a transaction or a snapshot; without a name, the main one."""
    return place.table(name) if name else place


def difference(expected: Mapping[bytes, bytes], found: Mapping[bytes, bytes]) -> list[str]:
    """Lines that say how two mappings differ."""
    missing = [f"{_short(key)}: {_short(expected[key])}" for key in sorted(expected.keys() - found.keys())]
    extra = [f"{_short(key)}: {_short(found[key])}" for key in sorted(found.keys() - expected.keys())]
    changed = [
        f"{_short(key)}: {_short(found[key])} instead of {_short(expected[key])}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key] != found[key]
    ]
    lines = []
    for title, entries in (("missing", missing), ("not expected", extra), ("different", changed)):
        if entries:
            lines.append(f"  {title} ({len(entries)}):")
            lines += [f"    {entry}" for entry in entries[:_SHOWN]]
            lines += ["    ..."] if len(entries) > _SHOWN else []
    return lines or ["  no difference"]


def _alike(version: Mapping[bytes, bytes], content: Mapping[bytes, bytes]) -> int:
    """How much two mappings have in common, less what they have not."""
    return 2 * len(version.items() & content.items()) - len(version)


def _short(data: bytes) -> str:
    return repr(data) if len(data) <= _WIDTH else f"{data[:_WIDTH]!r}... ({len(data)} B)"
