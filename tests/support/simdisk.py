"""A disk in memory that can fail, and can show everything that a crash at any moment may leave of it.

How to use it:

    volume = SimVolume()                 # or SimVolume({"/db": image}): files that are safely on the medium
    trace = volume.record()              # optional: what follows can be replayed, step by step
    db = open_on(volume, "/db", "c")     # a `Volume` whose files are `Disk`s, see durabledbm/_engine/disk/protocol.py
    ...
    volume.log                           # the operations that changed something, in order
    volume.syncs, .writes, .reads        # counters
    volume.content("/db"), .paths()      # what processes see
    volume.medium("/db")                 # what is certain to survive a power failure
    volume.put("/db", image)             # damage: other content in memory and on the medium

    volume.crash_states(limit=5000, seed=0)    # power failure now: everything it may leave, each a SimVolume
    volume.kill_state()                        # kill -9 now: processes are gone, unsynced data stays unsynced
    for crash in trace.crashes(limit=200, seed=0, epoch=model.epoch):    # power failure at every point
        crash.index, crash.volume              # how many operations of volume.log were done, and what is left
    trace.kills()                              # kill -9 at every point, also in the middle of each write
    trace.states_at(index, limit=.., seed=..)  # `crash_states` after that many operations

    volume.fail_at(3, disk_error(errno.EIO), kinds=("sync",))    # the 4th sync from now; volume.fired counts
    volume.before = function             # called with each `Operation` before it happens; may raise

What is modelled. A file has a cache (what processes read, and what survives a killed process) and a medium
(what survives a power failure). A write changes blocks of 4096 B of the cache and makes them dirty; `sync`
brings them to the medium. A power failure leaves any subset of the dirty blocks, in any of their versions
since the last sync, any of them torn at its sectors of 512 B; any of the sizes that the file had since then,
whatever became of the data; and where a write made it grow but no data arrived, zeros or garbage (where a
resize did, zeros). Names (create, link, replace, remove) arrive, each or not, until `sync_directory`; a
file's own sync does not bring its name.
A failed sync with effect "lost" does as Linux does: what was dirty is clean afterwards, readable from the
cache, and will never be on the medium unless it is written again; `forget` lets reads see the medium. A size
is metadata and stays on its way.

Which states `crash_states` yields. Always, whatever the limit: everything arrived, nothing, each write (or
name) alone, all but each, each prefix, with the size old, new, or just large enough. Then, until `limit`
states were found: the same for single blocks; all combinations of blocks, or else of writes, with sizes and
names, if they are at most 4096 (and `limit`); torn blocks among neighbours that arrived or did not;
combinations drawn with `seed`. Equal states come once. A crash in the middle of an operation leaves nothing
that one before or after it could not leave: a write under way is one of the unsynced ones, and a sync half
done has brought a subset.

With `seen`, a set that is kept between calls, states that an earlier call gave are left out. What must hold
of a state may change in between (an acknowledgement!), so states are told apart by `epoch` too.
`Trace.crashes` sees to that by itself, and skips points whose states the next point, in the same epoch, gives
as well.
"""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
import random
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from durabledbm._engine.disk.protocol import ELSEWHERE, PARENTS, LockOwner, Writes
from durabledbm.errors import ClosedError, error

BLOCK = 4096
SECTOR = 512
CHANGES = ("write", "resize", "sync", "create", "link", "replace", "remove", "sync_directory")
EVERY = (*CHANGES, "read", "open", "lock")

_COMPLETE = 4096  # this many combinations are tried completely
_WIDE = 256  # of so many blocks each is tried alone; of more only each write is
_PATIENCE = 100  # so many drawn states in a row that are known already: there are hardly any others
_ALL = (1 << BLOCK // SECTOR) - 1
_ZERO = bytes(BLOCK)
_numbers = itertools.count(1)


class Operation(NamedTuple):
    """One operation. `size` is of a resize or a read, `target` is the new name of a link or replace."""

    kind: str
    path: str
    file: int = 0
    offset: int = 0
    data: bytes = b""
    size: int = 0
    target: str = ""
    effect: str = "all"
    seed: int = 0


@dataclass(frozen=True)
class Fault:
    """What happens instead of an operation: `effect` first, then `error()` is raised, if there is one.

    Effects: "none"; "all", the whole operation; "part", the first half of a write or read, or a sync that
    loses all but a subset, drawn with `seed`, which stays dirty; "lost", a sync that loses everything (see
    above), and nothing for any other operation. Without an error, "none" makes a read find the end of the
    file, and a lock taken. It happens `times` times in a row, or for ever (None).
    """

    error: Callable[[], BaseException] | None = None
    effect: str = "none"
    times: int | None = 1
    seed: int = 0


def disk_error(code: int, effect: str = "lost", *, times: int | None = 1, seed: int = 0) -> Fault:
    """The fault that raises `OSError` with errno `code`."""
    return Fault(lambda: OSError(code, os.strerror(code)), effect, times, seed)


class _Change(NamedTuple):
    """An unsynced change of a file: the blocks it made dirty, as they then were; size before and after."""

    at: int
    blocks: dict[int, bytes]
    before: int
    size: int


class _File:
    """An inode: cache, medium, and the changes that are in the one and not certainly on the other."""

    __slots__ = ("blocks", "locks", "medium", "medium_size", "number", "pending", "size")

    def __init__(self, number: int, blocks: Sequence[bytes] = (), size: int = 0) -> None:
        self.number = number
        self.blocks, self.size = list(blocks), size
        self.medium, self.medium_size = list(blocks), size
        self.pending: list[_Change] = []
        self.locks: dict[int, dict[int, bool]] = {}

    def copy(self) -> _File:
        twin = _File(self.number, self.blocks, self.size)
        twin.medium, twin.medium_size, twin.pending = list(self.medium), self.medium_size, list(self.pending)
        return twin

    def read(self, length: int, offset: int) -> bytes:
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        first, start = divmod(offset, BLOCK)
        last = (end - 1) // BLOCK
        data = self.blocks[first] if first == last else b"".join(self.blocks[first : last + 1])
        return data if not start and len(data) == end - offset else data[start : start + end - offset]

    def write(self, offset: int, data: bytes) -> None:
        if not data:
            return
        before, end = self.size, offset + len(data)
        if end > before:
            _fit(self.blocks, before, end)
            self.size = end
        dirty = {}
        for index in range(offset // BLOCK, (end - 1) // BLOCK + 1):
            base = index * BLOCK
            start, stop = max(offset, base), min(end, base + BLOCK)
            content = data[start - offset : stop - offset]
            if stop - start < BLOCK:
                old = self.blocks[index]
                content = old[: start - base] + content + old[stop - base :]
            dirty[index] = self.blocks[index] = content
        self.pending.append(_Change(next(_numbers), dirty, before, self.size))

    def resize(self, size: int) -> None:
        if size != self.size:
            self.pending.append(_Change(next(_numbers), {}, self.size, size))
            _fit(self.blocks, self.size, size)
            self.size = size

    def sync(self) -> None:
        _land(self.medium, self.pending)
        self.medium_size, self.pending = self.size, []

    def lose(self, keep: Callable[[], bool]) -> None:
        """What was dirty is taken for clean, except the blocks that `keep` keeps; sizes stay on their way."""
        left = [
            change._replace(blocks={index: block for index, block in change.blocks.items() if keep()})
            for change in self.pending
        ]
        self.pending = [change for change in left if change.blocks or change.size != change.before]

    def forget(self) -> bool:
        """Drop clean blocks from the cache. Whether that made a difference."""
        blocks = list(self.medium)
        _land(blocks, self.pending)
        changed, self.blocks = blocks != self.blocks, blocks
        return changed


def _fit(blocks: list[bytes], before: int, size: int) -> None:
    """Cut or extend with zeros, in place."""
    count = -(-size // BLOCK)
    if size < before:
        del blocks[count:]
        if size % BLOCK:
            blocks[-1] = blocks[-1][: size % BLOCK] + _ZERO[size % BLOCK :]
    else:
        blocks.extend([_ZERO] * (count - len(blocks)))


def _land(blocks: list[bytes], changes: Sequence[_Change]) -> None:
    for change in changes:
        _fit(blocks, change.before, change.size)
        for index, block in change.blocks.items():
            blocks[index] = block


class SimDisk:
    """One open file of a `SimVolume`."""

    def __init__(self, volume: SimVolume, file: _File, path: str, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._volume = volume
        self._file = file
        self._token = next(_numbers)
        self._closed = self._lost = False

    def read(self, length: int, offset: int) -> bytes:
        if self._closed:
            raise ClosedError
        if self._lost:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        volume = self._volume
        volume.reads += 1
        if volume._armed or volume.before is not None:
            fault = volume._meet(Operation("read", self.path, self._file.number, offset, size=length))
            if fault is not None and fault.error is not None:
                raise fault.error()
            if fault is not None and fault.effect != "all":
                length = length // 2 if fault.effect == "part" else 0
        return self._file.read(length, offset)

    def size(self) -> int:
        return self._open().size

    def data(self, start: int, stop: int) -> tuple[int, int]:
        self._open()
        return start, stop

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        self._write(self._token, offset, parts)

    def resize(self, size: int) -> None:
        self._resize(self._token, size)

    def writes(self) -> Writes:
        return Writes(partial(self._write, self._token), partial(self._resize, self._token))

    def _write(self, token: int, offset: int, parts: Sequence[bytes]) -> None:
        file = self._open(write=True)
        self._check_parent(token)
        self._volume._do(Operation("write", self.path, file.number, offset, b"".join(parts)))

    def _check_parent(self, token: int) -> None:
        if token != self._token:
            raise error(f"{self.path}: {PARENTS}")

    def _resize(self, token: int, size: int) -> None:
        file = self._open()
        self._check_parent(token)
        if not self.writable:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._volume._do(Operation("resize", self.path, file.number, size=size))

    def sync(self) -> None:
        self._volume._do(Operation("sync", self.path, self._open().number))

    def forget(self) -> None:
        file = self._open()
        with self._volume._mutex:
            if file.forget():
                self._volume.log.append(Operation("forget", self.path, file.number))

    def identity(self) -> tuple[int, int]:
        return self._volume.device, self._file.number

    def status(self) -> os.stat_result:
        return os.stat_result((0o100600, *[0] * 9))

    def take_owner(self, like: os.stat_result) -> None:
        self._open()

    def linked(self) -> bool:
        return self._volume._names.get(posixpath.normpath(self.path)) is self._file

    def lock(self, offset: int, *, exclusive: bool) -> bool:
        file, volume = self._open(write=exclusive), self._volume
        if volume._armed or volume.before is not None:
            fault = volume._meet(Operation("lock", self.path, file.number, offset))
            if fault is not None and fault.error is not None:
                raise fault.error()
            if fault is not None and fault.effect != "all":
                return False
        with volume._mutex:
            for token, held in file.locks.items():
                if token != self._token and offset in held and (exclusive or held[offset]):
                    return False
            file.locks.setdefault(self._token, {})[offset] = exclusive
        return True

    def unlock(self, offset: int) -> None:
        with self._volume._mutex:
            self._file.locks.get(self._token, {}).pop(offset, None)

    def lowest_lock(self, start: int, stop: int) -> LockOwner | None:
        with self._volume._mutex:
            others = [held for token, held in self._open().locks.items() if token != self._token]
            offsets = [offset for held in others for offset in held if start <= offset < stop]
        return LockOwner(min(offsets), None) if offsets else None

    def reopen(self) -> SimDisk:
        return SimDisk(self._volume, self._open(), self.path, writable=self.writable)

    def lose(self) -> None:
        """Somebody else closes the descriptor."""
        self._lost = True
        self._file.locks.pop(self._token, None)

    def held(self) -> bool:
        return not (self._lost or self._closed)

    def regain(self) -> None:
        if self._closed:
            raise ClosedError
        if self._volume._names.get(posixpath.normpath(self.path)) is not self._file:
            raise FileNotFoundError(errno.ENOENT, ELSEWHERE, self.path)
        self._lost = False

    def part(self) -> Callable[[], None]:
        """What a fork does to the child's disk, and what ends the parent's."""
        token, self._token = self._token, next(_numbers)
        return lambda: self._file.locks.pop(token, None) and None

    def close(self) -> None:
        self._closed = True
        self._file.locks.pop(self._token, None)

    def __del__(self) -> None:
        self.close()

    def _open(self, *, write: bool = False) -> _File:
        if self._closed or self._lost or (write and not self.writable):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._file


class _Renaming(NamedTuple):
    """An unsynced change of a directory: `gone` is no name any more, and `target` is one of `file`."""

    at: int
    gone: str | None
    target: str | None
    file: _File | None

    def apply(self, names: dict[str, _File]) -> None:
        if self.gone is not None:
            names.pop(self.gone, None)
        if self.target is not None and self.file is not None:
            names[self.target] = self.file

    def directories(self) -> set[str]:
        return {posixpath.dirname(name) for name in (self.gone, self.target) if name is not None}


class SimVolume:
    """A file system in memory: a `Volume`. Directories need not be made; paths are compared as text."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.device = next(_numbers)
        self.log: list[Operation] = []
        self.syncs = self.writes = self.reads = self.fired = 0
        self.before: Callable[[Operation], None] | None = None
        self._armed: list[tuple[list[int], Fault, Sequence[str]]] = []
        self._mutex = threading.RLock()
        self._names: dict[str, _File] = {}
        self._medium_names: dict[str, _File] = {}
        self._renamings: list[_Renaming] = []
        self._files: dict[int, _File] = {}
        for path, content in (files or {}).items():
            self.put(path, content)

    # -- looking, and damage

    def paths(self) -> list[str]:
        return sorted(self._names)

    def content(self, path: str) -> bytes:
        file = self._named(path)
        return file.read(file.size, 0)

    def medium(self, path: str) -> bytes:
        file = self._medium_names[posixpath.normpath(path)]
        return b"".join(file.medium)[: file.medium_size]

    def put(self, path: str, content: bytes) -> None:
        """Make `content` what `path` holds, in memory and on the medium, also for those who have it open."""
        name = posixpath.normpath(path)
        file = self._names.get(name) or self._file(next(_numbers))
        file.pending = []
        file.blocks, file.size = [], 0
        file.write(0, content)
        file.medium, file.medium_size = [], 0
        file.sync()
        self._names[name] = self._medium_names[name] = file

    def fingerprint(self) -> int:
        """The same for volumes that hold the same, in this process."""
        files = ((path, self._names[path]) for path in self.paths())
        return hash(tuple((path, file.size, tuple(file.blocks)) for path, file in files))

    # -- the Volume protocol

    def open(self, path: str, *, writable: bool) -> SimDisk:
        if self._armed or self.before is not None:
            fault = self._meet(Operation("open", path))
            if fault is not None and fault.error is not None:
                raise fault.error()
        return SimDisk(self, self._named(path), path, writable=writable)

    def create(self, path: str, mode: int) -> SimDisk:
        name = self._free(path)
        number = next(_numbers)
        self._do(Operation("create", name, number))
        return SimDisk(self, self._files[number], path, writable=True)

    def link(self, source: str, target: str) -> None:
        file, name = self._named(source), self._free(target)
        self._do(Operation("link", posixpath.normpath(source), file.number, target=name))

    def replace(self, source: str, target: str) -> None:
        file, name = self._named(source), posixpath.normpath(target)
        self._do(Operation("replace", posixpath.normpath(source), file.number, target=name))

    def remove(self, path: str) -> None:
        self._do(Operation("remove", posixpath.normpath(path), self._named(path).number))

    def sync_directory(self, path: str) -> None:
        self._do(Operation("sync_directory", posixpath.normpath(path)))

    # -- crashes

    def record(self) -> Trace:
        """From now on, what happens can be replayed."""
        return Trace(self)

    def kill_state(self) -> SimVolume:
        """What the next process finds if all are killed now. A power failure after that is another crash."""
        twin = SimVolume()
        with self._mutex:
            files = {number: file.copy() for number, file in self._files.items()}
            twin._files = files
            twin._names = {name: files[file.number] for name, file in self._names.items()}
            twin._medium_names = {name: files[file.number] for name, file in self._medium_names.items()}
            twin._renamings = [
                renaming._replace(file=None if renaming.file is None else files[renaming.file.number])
                for renaming in self._renamings
            ]
        return twin

    def crash_states(
        self, *, limit: int = 5000, seed: object = 0, seen: set[int] | None = None, epoch: Hashable = None
    ) -> Iterator[SimVolume]:
        """Every file system that a power failure now may leave (see above), each new and independent.

        `limit` does not hold for the states that are always tried.
        """
        outcomes = _Outcomes(self, random.Random(repr(seed)))
        seen = set() if seen is None else seen
        found = stale = 0
        for stage, selection in outcomes.selections(limit):
            if stage > _ALWAYS and (found >= limit or stale >= _PATIENCE):
                return
            state = outcomes.state(*selection)
            key = hash((epoch, state))
            if key in seen:
                stale += stage == _DRAWN
                continue
            seen.add(key)
            found += 1
            stale = 0
            yield _restored(state)

    # -- faults

    def fail_at(self, k: int, fault: Fault, kinds: Sequence[str] = CHANGES) -> None:
        """Let `fault` happen to the operation of these kinds that comes after `k` others from now on."""
        self._armed.append(([k, -1 if fault.times is None else fault.times], fault, kinds))

    def heal(self) -> None:
        """No more faults."""
        self._armed = []

    def _meet(self, operation: Operation) -> Fault | None:
        """What happens instead of the operation, if anything does."""
        if self.before is not None:
            self.before(operation)
        met = None
        with self._mutex:
            for counts, fault, kinds in self._armed:
                if operation.kind in kinds:
                    if counts[0] > 0:
                        counts[0] -= 1
                    elif counts[1] and met is None:
                        counts[1] -= 1
                        met = fault
                        self.fired += 1
        return met

    def _do(self, operation: Operation) -> None:
        """Every change comes through here."""
        fault = self._meet(operation) if self._armed or self.before is not None else None
        if fault is not None:
            operation = _affected(operation, fault)
        if operation.effect != "none":
            with self._mutex:
                self._apply(operation)
                self.log.append(operation)
        if fault is not None and fault.error is not None:
            raise fault.error()

    def _apply(self, operation: Operation) -> None:
        kind, name, target = operation.kind, operation.path, operation.target
        if kind == "write":
            self.writes += 1
            self._files[operation.file].write(operation.offset, operation.data)
        elif kind == "resize":
            self._files[operation.file].resize(operation.size)
        elif kind == "sync":
            self.syncs += 1
            if operation.effect == "all":
                self._files[operation.file].sync()
            else:
                share = 0.5 if operation.effect == "part" else 0.0
                draw = random.Random(operation.seed).random
                self._files[operation.file].lose(lambda: draw() < share)
        elif kind == "forget":
            self._files[operation.file].forget()
        elif kind == "create":
            self._rename(None, name, self._file(operation.file))
        elif kind == "link":
            self._rename(None, target, self._files[operation.file])
        elif kind == "replace":
            if self._names[name] is not self._names.get(target):  # else POSIX does nothing
                self._rename(name, target, self._files[operation.file])
        elif kind == "remove":
            self._rename(name, None, None)
        elif kind == "sync_directory":
            directory = posixpath.dirname(name)
            for renaming in self._renamings:
                if directory in renaming.directories():
                    renaming.apply(self._medium_names)
            self._renamings = [other for other in self._renamings if directory not in other.directories()]

    def _rename(self, gone: str | None, target: str | None, file: _File | None) -> None:
        renaming = _Renaming(next(_numbers), gone, target, file)
        renaming.apply(self._names)
        self._renamings.append(renaming)

    def _file(self, number: int) -> _File:
        self._files[number] = file = _File(number)
        return file

    def _named(self, path: str) -> _File:
        try:
            return self._names[posixpath.normpath(path)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def _free(self, path: str) -> str:
        name = posixpath.normpath(path)
        if name in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return name


def _affected(operation: Operation, fault: Fault) -> Operation:
    """What the fault leaves of the operation: its effect is "none" if nothing."""
    effect = fault.effect
    if operation.kind == "write" and effect == "part":
        return operation._replace(data=operation.data[: len(operation.data) // 2])
    if operation.kind != "sync" and effect in ("part", "lost"):
        effect = "none"
    return operation._replace(effect=effect, seed=fault.seed)


_State = tuple[tuple[str, int, int, tuple[bytes, ...]], ...]
"""Name, number of the file, size, blocks: for each name."""

_Selection = tuple[list[int], list[int], int]
"""The sectors of each dirty block, and 0 or not for a renaming; the size of each file, filler."""

_ALWAYS, _BUDGETED, _DRAWN = range(3)


def _restored(state: _State) -> SimVolume:
    """The volume that holds `state`, in memory and on the medium."""
    volume = SimVolume()
    for name, number, size, blocks in state:
        if number not in volume._files:
            volume._files[number] = _File(number, blocks, size)
        volume._names[name] = volume._files[number]
    volume._medium_names = dict(volume._names)
    return volume


class _FileOutcomes:
    """What one file may be after a power failure."""

    def __init__(self, file: _File) -> None:
        pending = file.pending
        self.file = file
        self.units = [(i, block) for i, change in enumerate(pending) for block in change.blocks]
        self.sizes = [(-1, file.medium_size)]
        self.sizes += [(i, change.size) for i, change in enumerate(pending) if change.size != change.before]
        self.lowest = min(size for _, size in self.sizes)
        self.grows = max(size for _, size in self.sizes) > self.lowest
        self._touched: dict[int, list[int]] = {}
        for unit, (_, block) in enumerate(self.units):
            self._touched.setdefault(block, []).append(unit)
        self._blocks: dict[object, bytes] = {}
        self._empty: dict[tuple[int, int], list[bytes]] = {}

    def build(self, masks: Sequence[int], step: int, filler: int) -> tuple[int, tuple[bytes, ...]]:
        size = self.sizes[step][1]
        count = -(-size // BLOCK)
        blocks = self._empty.get((step, filler))
        if blocks is None:
            blocks = [self._block(index, (), step, filler) for index in range(count)]
            self._empty[step, filler] = blocks
        blocks = blocks.copy()
        for index, units in self._touched.items():
            if index < count:
                blocks[index] = self._block(index, tuple([masks[unit] for unit in units]), step, filler)
        if size % BLOCK:
            blocks[-1] = blocks[-1][: size % BLOCK] + _ZERO[size % BLOCK :]
        return size, tuple(blocks)

    def _block(self, index: int, masks: tuple[int, ...], step: int, filler: int) -> bytes:
        """The block, where `masks` says which sectors arrived of each of its versions."""
        stays = (index + 1) * BLOCK <= self.lowest
        key = (index, masks) if stays else (index, masks, step, filler)
        content = self._blocks.get(key)
        if content is not None:
            return content
        file = self.file
        void = _ZERO if not filler else self._garbage(filler, index)
        content = file.medium[index] if index < len(file.medium) else void
        content = _cut(content, file.medium_size - index * BLOCK, void)
        arrived = iter(masks)
        for i, change in enumerate(file.pending):
            if i <= self.sizes[step][0]:
                if change.size < change.before:
                    content = _cut(content, change.size - index * BLOCK, void)
                elif not change.blocks:  # a resize: where it made the file longer there are zeros
                    content = _zeroed(content, change.before - index * BLOCK, change.size - index * BLOCK)
            if index in change.blocks:
                content = _mixed(content, change.blocks[index], next(arrived, 0))
        self._blocks[key] = content
        return content

    def _garbage(self, filler: int, index: int) -> bytes:
        key = ("garbage", filler, index)
        if key not in self._blocks:
            self._blocks[key] = random.Random(filler << 32 | index).randbytes(BLOCK)
        return self._blocks[key]


def _cut(content: bytes, size: int, void: bytes) -> bytes:
    """`content` with `void` from byte `size` on."""
    if size >= BLOCK:
        return content
    return content[:size] + void[size:] if size > 0 else void


def _zeroed(content: bytes, start: int, stop: int) -> bytes:
    """`content` with zeros from byte `start` to `stop`, as far as these are inside of the block."""
    start, stop = max(start, 0), min(stop, BLOCK)
    return content[:start] + _ZERO[start:stop] + content[stop:] if start < stop else content


def _mixed(old: bytes, new: bytes, mask: int) -> bytes:
    """`old` with those sectors of `new` that are in the mask."""
    if mask in (0, _ALL):
        return new if mask else old
    sectors = ((new if mask >> i & 1 else old, i * SECTOR) for i in range(BLOCK // SECTOR))
    return b"".join(content[start : start + SECTOR] for content, start in sectors)


class _Outcomes:
    """What a volume may be after a power failure now."""

    def __init__(self, volume: SimVolume, rng: random.Random) -> None:
        self._rng = rng
        self._names = volume._medium_names
        self._renamings = volume._renamings
        reachable = [*self._names.values(), *(r.file for r in self._renamings if r.file is not None)]
        self._files = [_FileOutcomes(file) for file in dict.fromkeys(reachable)]
        self._bounds = [0, *itertools.accumulate(len(file.units) for file in self._files)]
        self._length = self._bounds[-1] + len(self._renamings)
        self._fillers = (0, 1) if any(file.grows for file in self._files) else (0,)
        by_write: dict[int, list[int]] = {}  # positions in the selection, by the time of the change
        for file, bound in zip(self._files, self._bounds, strict=False):
            for unit, (i, _) in enumerate(file.units):
                by_write.setdefault(file.file.pending[i].at, []).append(bound + unit)
        for position, renaming in enumerate(self._renamings, self._bounds[-1]):
            by_write[renaming.at] = [position]
        self._writes = [positions for _, positions in sorted(by_write.items())]
        self._blocks = [[position] for positions in self._writes for position in positions]

    def state(self, vector: list[int], steps: list[int], filler: int) -> _State:
        """The file system that this selection leaves."""
        names = self._names
        if self._renamings:
            names = dict(names)
            for arrived, renaming in zip(vector[self._bounds[-1] :], self._renamings, strict=True):
                if arrived:
                    renaming.apply(names)
        built = {}
        for file, step, bound in zip(self._files, steps, self._bounds, strict=False):
            masks = vector[bound : bound + len(file.units)]
            built[file.file.number] = file.file.number, *file.build(masks, step, filler)
        return tuple((name, *built[file.number]) for name, file in sorted(names.items()))

    def selections(self, limit: int) -> Iterator[tuple[int, _Selection]]:
        """All selections to be tried, each with its stage."""
        for groups, stage in ((self._writes, _ALWAYS), (self._blocks, _BUDGETED)):
            if stage == _ALWAYS or len(self._writes) < len(groups) <= _WIDE:
                for vector in self._patterns(groups):
                    yield from ((stage, selection) for selection in self._sized(vector))
        for groups in (self._blocks, self._writes):
            if self._combinations(groups) <= min(limit, _COMPLETE):
                yield from ((_BUDGETED, selection) for selection in self._product(groups))
                break
        if self._bounds[-1]:
            yield from ((_BUDGETED, selection) for selection in self._torn(limit // 2))
        while self._length or any(len(file.sizes) > 1 for file in self._files):
            yield _DRAWN, self._drawn()

    def _vector(self, groups: Sequence[Sequence[int]]) -> list[int]:
        vector = [0] * self._length
        for positions in groups:
            for position in positions:
                vector[position] = _ALL
        return vector

    def _patterns(self, groups: list[list[int]]) -> Iterator[list[int]]:
        """All, none, each prefix; each alone, all but each."""
        for i in range(len(groups) + 1):
            yield self._vector(groups[:i])
        for i in range(len(groups)):
            yield self._vector(groups[i : i + 1])
            yield self._vector(groups[:i] + groups[i + 1 :])

    def _sized(self, vector: list[int]) -> Iterator[_Selection]:
        """With the sizes old, new, or those of the last write that arrived at all."""
        for steps in (self._fitting(vector), self._newest(), [0] * len(self._files)):
            for filler in self._fillers:
                yield vector, steps, filler

    def _newest(self) -> list[int]:
        return [len(file.sizes) - 1 for file in self._files]

    def _fitting(self, vector: list[int]) -> list[int]:
        steps = []
        for file, bound in zip(self._files, self._bounds, strict=False):
            last = max((i for unit, (i, _) in enumerate(file.units) if vector[bound + unit]), default=-1)
            steps.append(sum(i <= last for i, _ in file.sizes) - 1)
        return steps

    def _combinations(self, groups: list[list[int]]) -> int:
        count = len(self._fillers) << len(groups)
        for file in self._files:
            count *= len(file.sizes)
        return count

    def _product(self, groups: list[list[int]]) -> Iterator[_Selection]:
        sizes = [range(len(file.sizes)) for file in self._files]
        for chosen in itertools.product((False, True), repeat=len(groups)):
            vector = self._vector(list(itertools.compress(groups, chosen)))
            for *steps, filler in itertools.product(*sizes, self._fillers):
                yield vector, steps, filler

    def _torn(self, count: int) -> Iterator[_Selection]:
        """Each block torn, the others all there, all missing, or only those before or after it there."""
        rng, data = self._rng, [positions for positions in self._blocks if positions[0] < self._bounds[-1]]
        sectors = BLOCK // SECTOR
        masks: set[int] = set(range(1, _ALL)) if len(data) <= 2 else set()
        for i in range(sectors):
            head = (1 << i) - 1
            masks |= {head, _ALL ^ head, 1 << i, _ALL ^ 1 << i, rng.randrange(1, _ALL)}
        last = len(data) - 1
        contexts = [1 if not last else 4 if 0 < i < last else 2 for i in range(last + 1)]
        choices = [
            (i, mask, context)
            for i, mask in itertools.product(range(last + 1), sorted(masks - {0, _ALL}))
            for context in range(contexts[i])
        ]
        if len(choices) > count:
            choices = rng.sample(choices, count)
        for i, mask, context in choices:
            vector = self._vector((data, [], data[:i], data[i + 1 :])[context])
            vector[self._bounds[-1] :] = [_ALL] * len(self._renamings)
            vector[data[i][0]] = mask
            yield vector, self._newest(), rng.choice(self._fillers)

    def _drawn(self) -> _Selection:
        rng = self._rng
        share = rng.choice((0.1, 0.3, 0.5, 0.7, 0.9))
        groups = rng.choice((self._writes, self._blocks))
        vector = self._vector([positions for positions in groups if rng.random() < share])
        if self._bounds[-1]:
            for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
                vector[rng.randrange(self._bounds[-1])] = rng.randrange(_ALL + 1)
        steps = [rng.randrange(len(file.sizes)) for file in self._files]
        return vector, rng.choice((steps, self._newest(), self._fitting(vector))), rng.choice(self._fillers)


class Crash(NamedTuple):
    """What a crash left after the first `index` operations of the log."""

    index: int
    volume: SimVolume


class Trace:
    """The operations on a volume since `record()`, to be stopped anywhere. Indexes are those of its log."""

    def __init__(self, volume: SimVolume) -> None:
        self._volume = volume
        self._start = volume.kill_state()
        self.first = len(volume.log)

    def replay(self) -> Iterator[Crash]:
        """The volume after none, one, two ... operations: one volume that goes on, only to be looked at."""
        volume = self._start.kill_state()
        operations = self._volume.log[self.first :]
        for index, operation in enumerate(operations, self.first):
            yield Crash(index, volume)
            volume._apply(operation)
        yield Crash(self.first + len(operations), volume)

    def states_at(self, index: int, *, limit: int = 5000, seed: object = 0) -> Iterator[SimVolume]:
        """Every file system that a power failure after the first `index` operations of the log may leave."""
        for at, volume in self.replay():
            if at == index:
                yield from volume.crash_states(limit=limit, seed=(seed, index))

    def crashes(
        self, *, limit: int = 5000, seed: object = 0, epoch: Callable[[int], Hashable] | None = None
    ) -> Iterator[Crash]:
        """Every file system that a power failure at any point may leave, about `limit` for each point.

        `epoch(index)` tells what must hold after `index` operations (see `Model.epoch`): while it is the
        same, equal states come once, and a point is skipped if the next operation only adds to what may
        arrive.
        """
        log, seen = self._volume.log, set[int]()
        end = len(log)
        for index, volume in self.replay():
            now: Hashable = index if epoch is None else epoch(index)
            adds = index < end and log[index].kind not in ("sync", "sync_directory")
            if adds and epoch is not None and epoch(index + 1) == now:
                continue
            for state in volume.crash_states(limit=limit, seed=(seed, index), seen=seen, epoch=now):
                yield Crash(index, state)

    def kills(self) -> Iterator[Crash]:
        """What the next process finds after kill -9 at each point, and after each block of each write."""
        log = self._volume.log
        for index, volume in self.replay():
            yield Crash(index, volume.kill_state())
            if index < len(log) and log[index].kind == "write":
                operation = log[index]
                first = BLOCK - operation.offset % BLOCK
                for length in range(first, len(operation.data), BLOCK):
                    state = volume.kill_state()
                    state._apply(operation._replace(data=operation.data[:length]))
                    yield Crash(index, state)
