"""Tests of the instruments: the simulated disk and the model."""

from __future__ import annotations

import errno
import itertools
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from model import Model
from simdisk import BLOCK, CHANGES, EVERY, SECTOR, Fault, SimVolume, disk_error

from durabledbm import ClosedError
from durabledbm._engine.disk import FileVolume
from durabledbm._engine.disk.protocol import Disk, Volume

pytestmark = pytest.mark.no_cover  # tracing would take longer than the search; other tests cover the same lines

OLD, NEW, NEWER = (letter * BLOCK for letter in (b"o", b"n", b"N"))


def contents(volume: SimVolume, path: str = "/f") -> set[bytes | None]:
    """What a power failure now may leave of one file; None if it has no name."""
    states = volume.crash_states()
    return {state.content(path) if path in state.paths() else None for state in states}


# -- the same as the operating system


def attempt(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except OSError as exc:
        return type(exc), exc.errno


def operations(volume: Volume, disk: Disk, names: list[str], rng: random.Random) -> list[Callable[[], Any]]:
    """Things to do, good and bad ones, with arguments drawn anew."""
    name, other = rng.choice(names), rng.choice(names)
    offset, length = rng.randrange(3 * BLOCK), rng.choice((0, 1, 100, BLOCK, 2 * BLOCK + 5))
    parts, byte = [rng.randbytes(length), b"", b"xy"], (1 << 62) + rng.randrange(3)
    exclusive = rng.random() < 0.5
    return [
        lambda: disk.write(offset, parts), lambda: disk.read(length, offset), lambda: disk.read(1 << 20, 0),
        lambda: disk.resize(offset), disk.size, disk.sync, disk.forget, disk.linked,
        lambda: disk.lock(byte, exclusive=exclusive), lambda: disk.lock(byte, exclusive=exclusive),
        lambda: disk.unlock(byte), lambda: disk.lowest_lock(1 << 62, (1 << 62) + 2),
        lambda: volume.link(name, other), lambda: volume.replace(name, other), lambda: volume.remove(name),
        lambda: volume.sync_directory(name), lambda: disk.identity() == disk.reopen().identity(),
    ]  # fmt: skip


def script(volume: Volume, directory: str, seed: int) -> Iterator[Any]:
    """The results of some hundred random operations."""
    rng = random.Random(seed)
    names = [f"{directory}/{letter}" for letter in "abc"]
    disks: list[Disk] = []
    for _ in range(500):
        name, writable, chance = rng.choice(names), rng.random() < 0.8, rng.random()
        opened = None
        if not disks or chance < 0.1:
            opened = attempt(partial(volume.create, name, 0o600))
        elif chance < 0.2:
            opened = attempt(partial(volume.open, name, writable=writable))
        elif chance < 0.25:
            opened = attempt(rng.choice(disks).reopen)
        elif chance < 0.35:
            disks.pop(rng.randrange(len(disks))).close()
        else:
            yield attempt(rng.choice(operations(volume, rng.choice(disks), names, rng)))
        if isinstance(opened, tuple):
            yield opened
        elif opened is not None:
            disks.append(opened)
    for disk in disks:
        disk.close()
        disk.close()


@pytest.mark.parametrize("seed", range(8))
def test_simulated_and_real_files_behave_the_same(tmp_path: Path, seed: int) -> None:
    real = list(script(FileVolume(), str(tmp_path), seed))
    assert list(script(SimVolume(), "/sim", seed)) == real
    assert len(real) > 100


def test_a_closed_disk_raises_what_the_real_one_does() -> None:
    volume = SimVolume({"/f": OLD})
    disk = volume.open("/f", writable=True)
    read = disk.read
    disk.close()
    with pytest.raises(ClosedError):
        read(1, 0)
    with pytest.raises(OSError, match="Bad file"):
        disk.write(0, [b"x"])


def test_dropping_a_disk_releases_its_locks() -> None:
    volume = SimVolume({"/f": OLD})
    disk, other = volume.open("/f", writable=True), volume.open("/f", writable=True)
    assert disk.lock(5, exclusive=True)
    assert not other.lock(5, exclusive=False)
    del disk
    assert other.lock(5, exclusive=True)


# -- power failures


def test_a_write_arrives_or_not_or_torn_at_any_of_its_sectors() -> None:
    volume = SimVolume({"/f": OLD})
    volume.open("/f", writable=True).write(0, [NEW])
    sectors = [(OLD[:SECTOR], NEW[:SECTOR])] * 8
    assert contents(volume) == {b"".join(chosen) for chosen in itertools.product(*sectors)}


def test_any_subset_of_unsynced_writes_arrives() -> None:
    volume = SimVolume({"/f": OLD * 10})
    disk = volume.open("/f", writable=True)
    for i in range(0, 10, 2):
        disk.write(i * BLOCK, [NEW])
    expected = {b"".join(chosen) for chosen in itertools.product(*[(OLD, NEW), (OLD,)] * 5)}
    assert len(expected) == 32
    assert expected <= contents(volume)


def test_a_long_write_is_torn_between_its_blocks() -> None:
    volume = SimVolume({"/f": OLD * 3})
    volume.open("/f", writable=True).write(0, [NEW * 3])
    found = contents(volume)
    assert {OLD + NEW + OLD, NEW + OLD + NEW, NEW + NEW + OLD, OLD * 3, NEW * 3} <= found
    assert NEW + NEW[:SECTOR] + OLD[SECTOR:] + OLD in found


def test_an_earlier_version_of_a_block_may_be_what_arrived() -> None:
    volume = SimVolume({"/f": OLD})
    disk = volume.open("/f", writable=True)
    disk.write(0, [NEW])
    disk.write(0, [NEWER])
    assert {OLD, NEW, NEWER, NEWER[:SECTOR] + NEW[SECTOR:], NEW[:SECTOR] + OLD[SECTOR:]} <= contents(volume)


def test_size_and_data_arrive_independently_and_the_gap_holds_zeros_or_garbage() -> None:
    volume = SimVolume({"/f": OLD})
    volume.open("/f", writable=True).write(BLOCK, [NEW])
    found = contents(volume)
    assert {OLD, OLD + NEW, OLD + bytes(BLOCK)} <= found
    garbage = {state for state in found if len(state) == 2 * BLOCK and not set(state[BLOCK:]) <= set(b"\0n")}
    assert garbage
    assert all(state.startswith(OLD) for state in found)


def test_a_cut_arrives_or_not_and_what_it_cut_off_does_not_come_back_by_growing() -> None:
    volume = SimVolume({"/f": OLD * 3})
    disk = volume.open("/f", writable=True)
    disk.resize(BLOCK)
    assert contents(volume) == {OLD * 3, OLD}
    disk.resize(2 * BLOCK)
    assert disk.read(2 * BLOCK, 0) == OLD + bytes(BLOCK)
    found = contents(volume)
    assert {OLD * 3, OLD, OLD + bytes(BLOCK)} <= found
    assert OLD * 2 not in found


def test_sync_leaves_one_state() -> None:
    volume = SimVolume({"/f": OLD})
    disk = volume.open("/f", writable=True)
    disk.write(100, [b"x" * 5000])
    disk.resize(4500)
    disk.sync()
    assert contents(volume) == {volume.content("/f")} == {volume.medium("/f")} == {OLD[:100] + b"x" * 4400}
    assert (volume.writes, volume.syncs, volume.reads) == (1, 1, 0)
    assert [operation.kind for operation in volume.log] == ["write", "resize", "sync"]


def test_names_arrive_each_or_not_until_the_directory_is_synced() -> None:
    volume = SimVolume()
    disk = volume.create("/d/temporary", 0o600)
    disk.write(0, [NEW])
    disk.sync()
    assert {tuple(state.paths()) for state in volume.crash_states()} == {(), ("/d/temporary",)}
    volume.link("/d/temporary", "/d/f")
    volume.remove("/d/temporary")
    volume.sync_directory("/elsewhere/f")
    expected = {(), ("/d/f",), ("/d/temporary",), ("/d/f", "/d/temporary")}
    assert {tuple(state.paths()) for state in volume.crash_states()} == expected
    volume.sync_directory("/d/f")
    assert contents(volume, "/d/f") == {NEW}
    assert [state.paths() for state in volume.crash_states()] == [["/d/f"]]


def test_a_replaced_file_is_the_old_one_or_the_new_one_with_what_arrived_of_it() -> None:
    volume = SimVolume({"/f": OLD})
    disk = volume.create("/t", 0o600)
    volume.sync_directory("/t")
    disk.write(0, [NEW])
    volume.replace("/t", "/f")
    assert {OLD, NEW, b"", bytes(BLOCK)} <= contents(volume)
    disk.sync()
    assert contents(volume) == {OLD, NEW}
    for state in volume.crash_states():
        assert ("/t" in state.paths()) == (state.content("/f") == OLD)


def test_crash_states_are_fresh_distinct_and_reproducible() -> None:
    volume = SimVolume({"/f": OLD * 60})
    disk = volume.open("/f", writable=True)
    for i in range(60):
        disk.write(i * BLOCK, [NEW])
    first, again, other = (
        [state.fingerprint() for state in volume.crash_states(limit=700, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len(set(first)) == len(first) == 700
    states = list(volume.crash_states(limit=0))
    for state in states:
        state.open("/f", writable=True).write(0, [NEWER])
    assert volume.content("/f") == NEW * 60
    assert all(state.content("/f").count(b"N") == BLOCK for state in states)
    assert all(b"N" not in state.medium("/f") for state in states)


def test_each_alone_all_but_each_and_each_prefix_come_whatever_the_limit() -> None:
    volume = SimVolume({"/f": OLD * 40})
    disk = volume.open("/f", writable=True)
    for i in range(40):
        disk.write(i * BLOCK, [NEW])
    found = {state.content("/f")[::BLOCK] for state in volume.crash_states(limit=0)}
    for i in range(40):
        assert b"o" * i + b"n" + b"o" * (39 - i) in found
        assert b"n" * i + b"o" + b"n" * (39 - i) in found
        assert b"n" * i + b"o" * (40 - i) in found
    assert b"n" * 40 in found


def test_states_seen_before_are_left_out_only_in_the_same_epoch() -> None:
    volume = SimVolume({"/f": OLD})
    volume.open("/f", writable=True).write(0, [NEW])
    seen: set[int] = set()
    count = len(list(volume.crash_states(seen=seen, epoch=1)))
    assert count == 256
    assert not list(volume.crash_states(seen=seen, epoch=1))
    assert len(list(volume.crash_states(seen=seen, epoch=2))) == count


# -- failed syncs, kills, faults


def test_what_a_failed_sync_lost_is_read_from_the_cache_but_never_arrives() -> None:
    volume = SimVolume({"/f": OLD * 2})
    disk = volume.open("/f", writable=True)
    disk.write(0, [NEW])
    volume.fail_at(0, disk_error(errno.EIO), ("sync",))
    with pytest.raises(OSError, match="Input/output") as caught:
        disk.sync()
    assert (caught.value.errno, volume.fired) == (errno.EIO, 1)
    disk.sync()
    assert disk.read(BLOCK, 0) == NEW
    assert contents(volume) == {OLD * 2}
    disk.write(BLOCK, [NEWER])
    disk.forget()
    assert disk.read(2 * BLOCK, 0) == OLD + NEWER  # clean blocks are dropped, dirty ones are not
    disk.write(0, [NEW])
    disk.sync()
    assert contents(volume) == {NEW + NEWER}


def test_a_failed_sync_may_bring_a_part_or_leave_all_dirty() -> None:
    for effect, count in (("none", 16), ("all", 1), ("lost", 1)):
        volume = SimVolume({"/f": OLD * 4})
        disk = volume.open("/f", writable=True)
        for i in range(4):
            disk.write(i * BLOCK, [NEW])
        volume.fail_at(0, disk_error(errno.EIO, effect))
        assert attempt(disk.sync) == (OSError, errno.EIO)
        assert len({state[::BLOCK] for state in contents(volume)}) == count, effect
    parts = set()
    for seed in range(20):
        volume = SimVolume({"/f": OLD * 4})
        disk = volume.open("/f", writable=True)
        disk.write(0, [NEW * 4])
        volume.fail_at(0, disk_error(errno.EIO, "part", seed=seed))
        assert attempt(disk.sync) == (OSError, errno.EIO)
        disk.sync()
        parts.add(volume.medium("/f")[::BLOCK])
    assert len(parts) > 5


def test_a_fault_comes_at_the_operation_that_was_asked_for() -> None:
    volume = SimVolume({"/f": OLD})
    disk = volume.open("/f", writable=True)
    volume.fail_at(2, Fault(KeyboardInterrupt), ("write",))
    disk.write(0, [b"1"])
    disk.sync()
    disk.write(0, [b"2"])
    with pytest.raises(KeyboardInterrupt):
        disk.write(0, [b"3"])
    disk.write(1, [b"4"])
    assert disk.read(2, 0) == b"24"
    volume.fail_at(0, disk_error(errno.ENOSPC, "part", times=2), ("write",))
    for _ in range(2):
        assert attempt(lambda: disk.write(0, [b"abcd"])) == (OSError, errno.ENOSPC)
        assert disk.read(4, 0) == b"aboo"
    volume.fail_at(0, Fault(MemoryError, "all", times=None), ("write",))
    for _ in range(3):
        with pytest.raises(MemoryError):
            disk.write(0, [b"wxyz"])
    assert disk.read(4, 0) == b"wxyz"
    volume.heal()
    disk.write(0, [b"ok"])
    assert volume.fired == 6


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_of_operation_can_fail(kind: str) -> None:
    volume = SimVolume({"/f": OLD, "/g": OLD})
    disk = volume.open("/f", writable=True)
    actions: dict[str, Callable[[], Any]] = {
        "write": lambda: disk.write(0, [NEW]),
        "resize": lambda: disk.resize(5),
        "sync": disk.sync,
        "create": lambda: volume.create("/h", 0o600), "link": lambda: volume.link("/f", "/h"),
        "replace": lambda: volume.replace("/f", "/g"), "remove": lambda: volume.remove("/f"),
        "sync_directory": lambda: volume.sync_directory("/f"), "read": lambda: disk.read(1, 0),
        "open": lambda: volume.open("/f", writable=False), "lock": lambda: disk.lock(1, exclusive=True),
    }  # fmt: skip
    before = volume.fingerprint()
    volume.fail_at(0, disk_error(errno.EIO), (kind,))
    for other, action in actions.items():
        if other == kind:
            assert attempt(action) == (OSError, errno.EIO)
    assert volume.fingerprint() == before
    assert [operation.kind for operation in volume.log] == (["sync"] if kind == "sync" else [])
    met = []
    volume.before = lambda operation: met.append(operation.kind)
    actions[kind]()
    assert met == [kind]
    assert (kind in CHANGES) == (bool(volume.log) and volume.log[-1].kind == kind)


def test_a_read_may_come_short() -> None:
    volume = SimVolume({"/f": OLD})
    disk = volume.open("/f", writable=False)
    volume.fail_at(0, Fault(None, "part"), ("read",))
    volume.fail_at(1, Fault(None, "none"), ("read",))
    assert [len(disk.read(100, 0)) for _ in range(3)] == [50, 0, 100]


def test_after_a_kill_the_cache_is_live_the_locks_are_gone_and_power_may_still_fail() -> None:
    volume = SimVolume({"/f": OLD})
    disk = volume.open("/f", writable=True)
    assert disk.lock(7, exclusive=True)
    disk.write(0, [NEW])
    killed = volume.kill_state()
    assert killed.content("/f") == NEW
    assert {OLD, NEW} <= contents(killed)
    successor = killed.open("/f", writable=True)
    assert successor.lock(7, exclusive=True)
    assert successor.identity() != disk.identity()
    successor.write(0, [NEWER])
    assert volume.content("/f") == NEW


def test_a_trace_replays_every_point() -> None:
    volume = SimVolume({"/f": OLD})
    disk = volume.open("/f", writable=True)
    disk.write(0, [b"before the trace"])
    trace = volume.record()
    images, mediums = [volume.content("/f")], [volume.medium("/f")]
    volume.fail_at(1, disk_error(errno.EIO), ("sync",))
    steps: list[Callable[[], Any]] = [
        lambda: disk.write(BLOCK, [NEW * 2]), disk.sync, lambda: disk.write(0, [NEWER]),
        lambda: attempt(disk.sync), disk.forget, lambda: disk.resize(100), lambda: volume.replace("/f", "/g"),
        lambda: volume.create("/f", 0o600), lambda: volume.sync_directory("/f"),
    ]  # fmt: skip
    for step in steps:
        step()
        images.append(volume.content("/f" if "/f" in volume.paths() else "/g"))
        mediums.append(volume.medium("/f"))
    replayed = [
        (at.index, now.content("/f" if "/f" in now.paths() else "/g"), now.medium("/f"))
        for at in trace.replay()
        for now in [at.volume]
    ]
    assert replayed == list(zip(range(1, len(steps) + 2), images, mediums, strict=True))
    for index in range(trace.first, len(volume.log) + 1):
        at_index = [state.fingerprint() for state in trace.states_at(index, limit=50)]
        crashes = [crash.volume for crash in trace.crashes(limit=50) if crash.index == index]
        assert at_index == [state.fingerprint() for state in crashes]


def test_a_kill_in_the_middle_of_a_write_leaves_its_first_blocks() -> None:
    volume = SimVolume({"/f": OLD * 3})
    trace = volume.record()
    volume.open("/f", writable=True).write(100, [b"n" * 2 * BLOCK])
    texts = [crash.volume.content("/f") for crash in trace.kills()]
    lengths = [text.count(b"n") for text in texts]
    assert lengths == [0, BLOCK - 100, 2 * BLOCK - 100, 2 * BLOCK]


# -- planted bugs: a store of one value, in a block of its own, with two headers, as small as can be

_HEADER = struct.Struct(f"<Q{SECTOR - 8}xII")
"""txid, and in the next sector the CRCs of the value and of the header."""


class Toy:
    """Writes a value to a free block, then its header, then syncs. `bug` is what it does wrong."""

    def __init__(self, volume: SimVolume, bug: str = "") -> None:
        self.volume, self.bug = volume, bug
        if "/toy" not in volume.paths():
            disk = volume.create("/toy", 0o600)
            disk.write(0, [bytes(4 * BLOCK)])
            disk.sync()
            if bug != "no directory sync":
                volume.sync_directory("/toy")
        self.disk = volume.open("/toy", writable=True)
        headers = sorted(filter(None, (self._header(slot) for slot in (0, 1))), reverse=True)
        self.txid, self.slot, value = headers[0] if headers else (0, 1, b"")
        self.value = value.rstrip(b"\0")

    def _header(self, slot: int) -> tuple[int, int, bytes] | None:
        head = self.disk.read(_HEADER.size, slot * BLOCK).ljust(_HEADER.size, b"\0")
        txid, crc, own = _HEADER.unpack(head)
        if zlib.crc32(head[:-4]) != own and self.bug != "header unchecked":
            return None
        value = self.disk.read(BLOCK, (2 + slot) * BLOCK)
        if zlib.crc32(value) != crc and self.bug != "value unchecked":
            return None
        return txid, slot, value

    def put(self, value: bytes) -> None:
        slot = self.slot if self.bug == "in place" else 1 - self.slot
        block = value.ljust(BLOCK, b"\0")
        head = _HEADER.pack(self.txid + 1, zlib.crc32(block), 0)[:-4]
        self.disk.write((2 + slot) * BLOCK, [block])
        self.disk.write(slot * BLOCK, [head, zlib.crc32(head).to_bytes(4, "little")])
        if self.bug != "no sync":
            self.disk.sync()
        self.txid, self.slot, self.value = self.txid + 1, slot, value


def violations(bug: str) -> list[str]:
    """What is wrong with what crashes leave of the toy, two deep."""
    volume, found = SimVolume(), []
    trace = volume.record()
    model = Model(clock=lambda: len(volume.log), seed=bug)
    toy = Toy(volume, bug)
    model.acknowledged()
    for number in range(3):
        model.will_commit({b"": b"%d" % number * 1000})
        toy.put(b"%d" % number * 1000)
        model.acknowledged()
    for crash in trace.crashes(limit=60, epoch=model.epoch):
        second = crash.volume.record()
        recovered = Toy(crash.volume, bug)
        content = {b"": recovered.value} if recovered.txid else {}
        try:
            model.check(content, at=crash.index)
            then = model.after(content, clock=lambda log=crash.volume.log: len(log))
            then.will_commit({b"": b"after"})
            recovered.put(b"after")
            then.acknowledged()
            for later in second.crashes(limit=10, epoch=then.epoch):
                last = Toy(later.volume, bug)
                then.check({b"": last.value} if last.txid else {}, at=later.index)
        except AssertionError as exc:
            found.append(str(exc))
    return found


def test_a_sound_store_survives_all_crashes() -> None:
    assert violations("") == []


BUGS = ["no sync", "value unchecked", "header unchecked", "in place", "no directory sync"]


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    found = violations(bug)
    assert found
    assert bug in found[0]


# -- the model


def test_the_model_allows_what_the_mode_promises() -> None:
    expected = {
        "full": {"power": [3, 4], "kill": [3, 4]},
        "process": {"power": [1, 2, 3, 4], "kill": [3, 4]},
        "interval": {"power": [1, 2, 3, 4], "kill": [1, 2, 3, 4]},
        "manual": {"power": [1, 2, 3, 4], "kill": [1, 2, 3, 4]},
    }
    for mode, events in expected.items():
        model = Model(mode)
        for number in range(1, 5):
            assert model.will_commit({b"n": b"%d" % number}) == number
            if number < 4:
                model.acknowledged()
            if number == 1:
                model.synced()
        for event, numbers in events.items():
            assert model.allowed(event) == [{b"n": b"%d" % number} for number in numbers]
            for number in range(1, 5):
                if number in numbers:
                    assert model.check({b"n": b"%d" % number}, event) == number
                else:
                    with pytest.raises(AssertionError):
                        model.check({b"n": b"%d" % number}, event)


def test_the_model_knows_what_was_allowed_at_any_moment() -> None:
    now = 0
    model = Model(clock=lambda: now)
    model.will_commit({b"a": b"1"})  # begun at 0
    now = 3
    model.acknowledged()
    now = 5
    model.will_commit({b"a": None, b"b": b"2"})
    now = 8
    model.will_commit({b"c": b"3"}, clear=True)
    one, two, three = {b"a": b"1"}, {b"b": b"2"}, {b"c": b"3"}
    expected = {0: [{}], 1: [{}, one], 2: [{}, one], 3: [one], 5: [one], 6: [one, two]}
    expected[9] = [one, two, three]
    for at, versions in expected.items():
        assert model.allowed(at=at) == versions, at
    assert [model.epoch(at) for at in (0, 1, 3, 6)] == [(0, 0), (0, 1), (1, 1), (1, 2)]
    later = model.after(two)
    assert later.allowed() == [two]


def test_a_commit_that_did_nothing_counts_once_it_is_acknowledged() -> None:
    model = Model(clock=lambda: 7)
    model.will_commit({b"a": b"1"})
    assert model.allowed(at=7) == [{}]
    model.acknowledged()
    assert model.allowed(at=7) == [{b"a": b"1"}]


def test_the_model_says_what_is_wrong() -> None:
    model = Model(seed=42)
    for number in range(3):
        model.will_commit({b"k%d" % number: b"v" * 100, b"n": b"%d" % number})
        model.acknowledged()
    lost = r"(?s)seed 42.*version 1: 2 commits are lost.*missing \(2\).*b'k1'"
    with pytest.raises(AssertionError, match=lost):
        model.check(model.versions[1])
    strange = r"(?s)no version.*not expected \(1\).*b'x': b'y'.*different \(1\).*b'n'"
    with pytest.raises(AssertionError, match=strange):
        model.check({**model.content, b"x": b"y", b"n": b"9"})
