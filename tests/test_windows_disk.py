"""The disk on Windows, on a model of the system calls: the contract of `Disk`, its locks above all, and the
engine on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from children import random_operations
from crew import Crew, wait_until
from fakekernel import FakeKernel
from linearizability import Recorder, check

import durabledbm
from durabledbm._engine.disk import FileVolume, windows
from durabledbm._engine.disk.kernel32 import ByHandleFileInformation, Overlapped
from durabledbm._engine.disk.protocol import Disk, LockOwner, Volume
from durabledbm._engine.disk.windows import InUse, WindowsDisk, WindowsVolume
from durabledbm._engine.locks import oldest_pin, pin, unpin, writer_present
from durabledbm._engine.threads import Lease
from durabledbm.database import open_on

PINS = 1 << 62
PINS_END = (1 << 63) - 1


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def disk(kernel: FakeKernel) -> Iterator[WindowsDisk]:
    created = WindowsVolume(kernel).create("/file", 0o666)
    yield created
    created.close()


def another(disk: WindowsDisk) -> WindowsDisk:
    return disk.reopen()


# -- the contract, on this system and on the model of Windows


@pytest.fixture(params=["this system", "model of Windows"])
def volume(request: pytest.FixtureRequest) -> Volume:
    return FileVolume() if request.param == "this system" else WindowsVolume(FakeKernel())


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "file")


def test_what_is_written_is_read_by_all(volume: Volume, path: str) -> None:
    disk = volume.create(path, 0o666)
    other = volume.open(path, writable=False)
    disk.write(0, (b"hello ", b"", b"world"))
    assert other.read(11, 0) == b"hello world"
    assert other.read(100, 6) == b"world"
    assert other.read(5, 11) == b""
    assert disk.size() == other.size() == 11
    disk.write(20, (b"!",))
    assert other.read(100, 9) == b"ld" + bytes(9) + b"!"
    disk.resize(5)
    assert other.read(100, 0) == b"hello"
    disk.resize(8)
    assert other.read(100, 0) == b"hello\0\0\0"
    disk.sync()
    disk.forget()
    with pytest.raises(OSError):
        other.write(0, (b"no",))
    disk.close()
    other.close()


def test_names_are_created_linked_replaced_and_removed(volume: Volume, path: str) -> None:
    disk = volume.create(path, 0o666)
    with pytest.raises(FileExistsError):
        volume.create(path, 0o666)
    with pytest.raises(FileNotFoundError):
        volume.open(path + ".other", writable=True)
    volume.link(path, path + ".link")
    with pytest.raises(FileExistsError):
        volume.link(path, path + ".link")
    assert disk.linked()
    linked = volume.open(path + ".link", writable=True)
    assert linked.identity() == disk.identity()
    linked.close()
    volume.replace(path, path + ".moved")
    assert not disk.linked()
    fresh = volume.create(path, 0o666)
    assert fresh.identity() != disk.identity()
    assert not disk.linked()
    disk.close()
    volume.replace(path, path + ".moved")  # what is renamed may be open, what is replaced may not: see below
    volume.sync_directory(path)
    fresh.close()
    with closing(volume.open(path + ".moved", writable=False)) as moved:
        assert moved.identity() == fresh.identity()
    with pytest.raises(FileNotFoundError):
        volume.open(path, writable=False)
    volume.remove(path + ".moved")
    volume.sync_directory(path)
    with pytest.raises(FileNotFoundError):
        volume.remove(path + ".moved")


# -- threads and interrupts


def test_no_thread_waits_for_one_that_looks_for_locks(kernel: FakeKernel, disk: WindowsDisk) -> None:
    """A finalizer may run anywhere in there, and may wait for the thread that writes."""
    assert disk.lock(3, exclusive=True)

    def write() -> None:
        disk.unlock(3)
        assert disk.lock(3, exclusive=True)
        assert disk.lock(4, exclusive=False)

    def finalizer(name: str) -> None:
        kernel.before = None
        crew = Crew()
        crew.start(write)
        crew.join()

    kernel.before = finalizer
    disk.lowest_lock(0, 100)
    assert sorted(lock.start for lock in kernel.locks) == [3, 4]


def test_a_probe_of_ones_own_handle_refuses_no_lock(kernel: FakeKernel, disk: WindowsDisk) -> None:
    """However long it takes: the thread that is at it may have to wait for the interpreter."""
    probing, tries = threading.Event(), []

    def look() -> None:
        disk.lowest_lock(0, 100)

    def amid(name: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            probing.set()
            wait_until(lambda: len(tries) > 20)
        else:
            tries.append(name)

    kernel.after = amid
    crew = Crew()
    crew.start(look)
    assert probing.wait(20)
    assert disk.lock(50, exclusive=True)
    crew.join()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(12))
def test_after_an_interrupt_what_is_locked_is_what_is_noted(kernel: FakeKernel, moment: str, number: int) -> None:
    disk = WindowsVolume(kernel).create("/file", 0o666)
    other = another(disk)
    assert other.lock(70, exclusive=False)
    calls = 0

    def strike(name: str) -> None:
        nonlocal calls
        if calls == number:
            calls += 1
            raise KeyboardInterrupt
        calls += 1

    setattr(kernel, moment, strike)
    with contextlib.suppress(KeyboardInterrupt):
        disk.lock(5, exclusive=True)
        disk.lock(6, exclusive=False)
        disk.lowest_lock(0, 100)
        disk.unlock(5)
        disk.unlock(6)
    setattr(kernel, moment, None)
    mine = {lock.start for lock in kernel.locks if lock.start != 70}
    assert mine == set(disk._held)
    assert disk._probes == []
    for offset in (5, 6):
        disk.unlock(offset)
        assert disk.lock(offset, exclusive=True)
    disk.close()
    other.close()


# -- names on Windows


def test_an_open_file_is_not_replaced_and_stays_as_it_was(kernel: FakeKernel) -> None:
    volume = WindowsVolume(kernel)
    with closing(volume.create("/file", 0o666)) as disk, closing(volume.create("/fresh", 0o666)):
        with pytest.raises(PermissionError):
            volume.replace("/fresh", "/file")
        assert disk.linked()


@pytest.mark.parametrize("call", ["open", "replace", "remove"])
def test_a_file_that_a_virus_scanner_has_open_is_waited_for(kernel: FakeKernel, call: str) -> None:
    volume = WindowsVolume(kernel)
    volume.create("/file", 0o666).close()
    kernel.in_use = {"/file"}

    def let_go(name: str) -> None:
        if kernel.calls.get(call, 0) == 2:
            kernel.in_use = set()

    kernel.before = let_go
    calls: dict[str, Callable[[], object]] = {
        "open": lambda: volume.open("/file", writable=True).close(),
        "replace": lambda: volume.replace("/file", "/other"),
        "remove": lambda: volume.remove("/file"),
    }
    calls[call]()
    assert kernel.calls[call] == 3


def test_a_file_that_stays_in_use_is_an_error(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_IN_USE_PATIENCE", 0.03)
    volume = WindowsVolume(kernel)
    volume.create("/file", 0o666).close()
    kernel.in_use = {"/file"}
    with pytest.raises(InUse):
        volume.open("/file", writable=True)
    assert kernel.calls["open"] > 1


@pytest.mark.parametrize("name", ["db:stream", "C:\\folder\\db:stream", "\\\\?\\C:\\db:stream:$DATA", "a:b:c"])
def test_a_stream_beside_the_content_of_a_file_is_no_file(kernel: FakeKernel, name: str) -> None:
    """It has the identity of the file, and other content."""
    volume = WindowsVolume(kernel)
    for use in (lambda: volume.open(name, writable=True), lambda: volume.create(name, 0o666)):
        with pytest.raises(OSError, match="stream"):
            use()
    assert not kernel.calls


@pytest.mark.parametrize("name", ["C:\\db", "c:db", "\\\\?\\C:\\db", "\\\\server\\share\\db", "db"])
def test_a_drive_is_no_stream(kernel: FakeKernel, name: str) -> None:
    WindowsVolume(kernel).create(name, 0o666).close()


def test_closing_twice_is_harmless_and_ends_everything(volume: Volume, path: str) -> None:
    disk = volume.create(path, 0o666)
    other = volume.open(path, writable=True)
    assert disk.lock(5, exclusive=True)
    disk.close()
    disk.close()
    with pytest.raises(durabledbm.ClosedError):
        disk.read(1, 0)
    assert other.lock(5, exclusive=True)
    other.close()


def test_exclusive_and_shared_locks_keep_others_out(volume: Volume, path: str) -> None:
    first, second, third = volume.create(path, 0o666), *(volume.open(path, writable=True) for _ in range(2))
    assert first.lock(PINS, exclusive=True)
    assert not second.lock(PINS, exclusive=True)
    assert second.lock(PINS + 1, exclusive=True)
    first.unlock(PINS)
    assert second.lock(PINS, exclusive=True)
    second.unlock(PINS)
    second.unlock(PINS + 1)
    assert first.lock(PINS, exclusive=False)
    assert second.lock(PINS, exclusive=False)
    assert not third.lock(PINS, exclusive=True)
    first.unlock(PINS)
    assert not third.lock(PINS, exclusive=True)
    second.unlock(PINS)
    assert third.lock(PINS, exclusive=True)
    for disk in (first, second, third):
        disk.close()


def lowest(disk: Disk, start: int = PINS, stop: int = PINS_END) -> int | None:
    owner = disk.lowest_lock(start, stop)
    return None if owner is None else owner.offset


def test_the_lowest_lock_of_others_is_found(volume: Volume, path: str) -> None:
    first, second = volume.create(path, 0o666), volume.open(path, writable=False)
    assert lowest(first) is None
    for txid in (1000, 5, 123456789, 5000):
        assert pin(second, txid)
    assert lowest(first) == PINS + 5
    assert lowest(second) is None, "its own locks do not count"
    assert lowest(first, PINS + 6) == PINS + 1000
    assert lowest(first, PINS + 6, PINS + 1000) is None
    assert lowest(first, PINS + 1001, PINS + 5001) == PINS + 5000
    unpin(second, 5)
    assert lowest(first) == PINS + 1000
    assert pin(first, 7)
    assert lowest(first) == PINS + 1000
    assert lowest(second) == PINS + 7
    second.close()
    assert lowest(first) is None
    first.close()


def test_random_locks_are_answered_as_posix_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step the same on both. But who shares a byte with others is not told of it on Windows."""
    monkeypatch.setattr(windows, "_PATIENCE", 0)  # here shared locks do meet exclusive ones, not only probes
    rng = random.Random(21)
    posix_volume, windows_volume = FileVolume(), WindowsVolume(FakeKernel())
    name = str(tmp_path / "file")
    posix: list[Disk] = [posix_volume.create(name, 0o666)]
    others: list[Disk] = [windows_volume.create(name, 0o666)]
    for _ in range(2):
        posix.append(posix_volume.open(name, writable=True))
        others.append(windows_volume.open(name, writable=True))
    held: dict[tuple[int, int], bool] = {}
    for step in range(3000):
        who = rng.randrange(3)
        offset = rng.choice((PINS, PINS + 1, PINS + 2, PINS + 70, PINS + 1000, PINS_END - 1))
        action = rng.choice(("lock", "lock", "unlock", "lowest"))
        if action == "lock" and (who, offset) not in held:
            exclusive = rng.random() < 0.4
            taken = posix[who].lock(offset, exclusive=exclusive)
            assert others[who].lock(offset, exclusive=exclusive) == taken, step
            if taken:
                held[who, offset] = exclusive
        elif action == "unlock":
            posix[who].unlock(offset)
            others[who].unlock(offset)
            held.pop((who, offset), None)
        elif action == "lowest":
            start = rng.choice((PINS, PINS + 1, PINS + 3))
            stop = rng.choice((PINS + 1001, PINS_END))
            expected = lowest(posix[who], start, stop)
            if (who, expected) in held:  # shared with others: the next that it has not locked itself
                shared = {at for other, at in held if other != who and start <= at < stop and (who, at) not in held}
                expected = min(shared, default=None)
            assert lowest(others[who], start, stop) == expected, step
    for disk in posix + others:
        disk.close()


# -- Windows alone


def test_a_short_write_is_gone_on_with() -> None:
    disk = WindowsVolume(FakeKernel(short=7)).create("/file", 0o666)
    disk.write(3, (b"0123456789" * 5, b"", b"abc"))
    assert disk.read(100, 0) == bytes(3) + b"0123456789" * 5 + b"abc"
    disk.close()


def test_a_disk_that_takes_no_bytes_is_an_error(kernel: FakeKernel, disk: WindowsDisk) -> None:
    kernel.write = lambda handle, data, offset: 0  # type: ignore[method-assign]
    with pytest.raises(OSError, match="took no bytes"):
        disk.write(0, (b"x",))


def test_many_parts_become_few_writes(kernel: FakeKernel, disk: WindowsDisk) -> None:
    disk.write(0, [bytes([number]) * 4096 for number in range(200)])
    assert kernel.calls["write"] == 1
    assert disk.size() == 200 * 4096
    assert disk.read(4096, 199 * 4096) == bytes([199]) * 4096


def test_where_a_directory_cannot_be_flushed_the_file_is(kernel: FakeKernel) -> None:
    kernel.directories_refused = True
    volume = WindowsVolume(kernel)
    disk = volume.create("/file", 0o666)
    disk.write(0, (b"x",))
    volume.sync_directory("/file")
    assert kernel.calls["flush"] == 1
    volume.remove("/file")
    volume.sync_directory("/file")
    disk.close()
    assert kernel.handles == 0


def test_reopening_finds_the_file_or_says_that_it_was_replaced(kernel: FakeKernel, disk: WindowsDisk) -> None:
    volume = WindowsVolume(kernel)
    volume.replace("/file", "/moved")
    with closing(disk.reopen()) as again:
        assert again.identity() == disk.identity()
    kernel.reopening_refused = True  # then by its name, where that leads to it
    with pytest.raises(FileNotFoundError):
        disk.reopen()
    volume.create("/file", 0o666).close()
    with pytest.raises(FileNotFoundError):
        disk.reopen()
    assert kernel.handles == 1


def test_a_dropped_disk_closes_its_file(kernel: FakeKernel) -> None:
    disk = WindowsVolume(kernel).create("/file", 0o666)
    assert disk.lock(7, exclusive=True)
    gc.disable()
    try:
        del disk
        assert kernel.handles == 0
    finally:
        gc.enable()


def test_probes_leave_no_lock_behind(kernel: FakeKernel, disk: WindowsDisk) -> None:
    other = another(disk)
    assert pin(other, 77)
    assert pin(disk, 99)
    for _ in range(3):
        assert lowest(disk) == PINS + 77
        assert not writer_present(disk)
    assert len(set(kernel.locks)) == 2
    other.close()


def test_asking_costs_little_when_nothing_is_pinned_or_nothing_has_changed(
    kernel: FakeKernel, disk: WindowsDisk
) -> None:
    def cost() -> int:
        before = kernel.calls.get("lock", 0)
        oldest_pin(disk)
        return kernel.calls["lock"] - before

    assert cost() == 1
    other = another(disk)
    assert pin(other, 1_000_000)
    assert cost() < 60
    assert cost() == 4
    assert pin(other, 1_000_001)
    unpin(other, 1_000_000)
    assert cost() < 10
    other.close()


def test_a_reader_pins_though_a_writer_asks_in_the_middle(kernel: FakeKernel, disk: WindowsDisk) -> None:
    """The probe covers all pins. `pin` tries again until it is over."""
    other = another(disk)
    assert kernel.lock(disk._handle, PINS, PINS_END - PINS, exclusive=True)  # type: ignore[arg-type]
    crew = Crew()
    pinning = crew.start(pin, other, 5)
    pinning.thread.join(0.05)
    assert not pinning.done
    kernel.unlock(disk._handle, PINS, PINS_END - PINS)  # type: ignore[arg-type]
    assert pinning.result() is True
    assert lowest(disk) == PINS + 5
    other.close()


def test_an_exclusive_lock_is_not_lost_to_a_look_at_it(kernel: FakeKernel, disk: WindowsDisk) -> None:
    other = another(disk)
    handle = disk._handle
    assert handle is not None
    looks = []

    def look(call: str) -> None:
        """Another process asks whether there is a writer, just before this one takes the lock."""
        if call == "lock" and len(looks) < 4:
            looks.append(call)
            if len(looks) == 1:
                assert kernel.lock(handle, 9, 1, exclusive=True)
            elif len(looks) == 4:
                kernel.unlock(handle, 9, 1)

    kernel.before = look
    assert other.lock(9, exclusive=True)
    kernel.before = None
    assert len(looks) == 4
    other.close()


def test_a_pin_that_is_held_throughout_is_never_overlooked(kernel: FakeKernel, disk: WindowsDisk) -> None:
    """Whatever others probe, pin and unpin meanwhile, the answer is not above it."""
    rng = random.Random(22)
    steady, restless, prober = another(disk), another(disk), another(disk)
    probing: list[tuple[int, int]] = []
    mine = threading.get_ident()

    def interfere(call: str) -> None:
        """In the middle of `lowest_lock`, before one of its attempts to lock."""
        if call != "lock" or threading.get_ident() != mine or kernel.before is None:
            return
        kernel.before = None
        handle = prober._handle
        assert handle is not None
        if probing and rng.random() < 0.7:
            kernel.unlock(handle, *probing.pop())
        elif not probing and rng.random() < 0.5:
            start = PINS + rng.randrange(2000)
            extent = start, rng.choice((1, 10, 1000, PINS_END - start))
            if kernel.lock(handle, *extent, exclusive=True):
                probing.append(extent)
        if rng.random() < 0.3:
            txid = rng.randrange(2000)
            if txid in restless._held:
                unpin(restless, txid)
            elif kernel.lock(restless._handle, PINS + txid, 1, exclusive=False):  # type: ignore[arg-type]
                restless._held[PINS + txid] = False
        kernel.before = interfere

    for round_number in range(400):
        txid = rng.randrange(2000)
        while probing:
            kernel.unlock(prober._handle, *probing.pop())  # type: ignore[arg-type]
        assert pin(steady, txid)
        kernel.before = interfere
        found = lowest(disk)
        kernel.before = None
        assert found is not None, round_number
        assert found <= PINS + txid, round_number
        unpin(steady, txid)
    for other in (steady, restless, prober):
        other.close()


def test_phantoms_vanish_with_the_next_look(kernel: FakeKernel, disk: WindowsDisk) -> None:
    """Another's probe may be taken for a lock; when it is over, nothing is there."""
    other = another(disk)
    handle = other._handle
    assert handle is not None
    assert kernel.lock(handle, PINS, PINS_END - PINS, exclusive=True)
    assert lowest(disk) == PINS
    kernel.unlock(handle, PINS, PINS_END - PINS)
    assert lowest(disk) is None
    other.close()


def test_an_own_lock_may_be_dropped_by_the_garbage_collector_while_locks_are_tried(
    kernel: FakeKernel, disk: WindowsDisk
) -> None:
    assert pin(disk, 5)
    assert pin(disk, 6)
    kernel.before = lambda call: disk.unlock(PINS + 5) if call == "lock" else None
    crew = Crew()
    assert crew.start(disk.lowest_lock, PINS, PINS_END).result() is None
    kernel.before = None
    assert {lock.start for lock in kernel.locks} == {PINS + 6}


def test_the_structures_have_the_layout_of_windows() -> None:
    assert ctypes.sizeof(Overlapped) == 2 * ctypes.sizeof(ctypes.c_void_p) + 8 + ctypes.sizeof(ctypes.c_void_p)
    assert Overlapped.Offset.offset == 2 * ctypes.sizeof(ctypes.c_void_p)
    where = Overlapped.at(PINS + 0x1_2345_6789)
    assert (where.OffsetHigh << 32 | where.Offset) == PINS + 0x1_2345_6789
    assert ctypes.sizeof(ByHandleFileInformation) == 52
    assert ByHandleFileInformation.dwVolumeSerialNumber.offset == 28
    assert ByHandleFileInformation.nFileIndexLow.offset == 48


# -- the engine on it


Opener = Callable[..., durabledbm.Database]


@pytest.fixture
def opener(kernel: FakeKernel) -> Iterator[Opener]:
    volume = WindowsVolume(kernel)
    yield lambda flag="c", **options: open_on(volume, "/db", flag, **options)
    assert kernel.handles == 0
    assert kernel.locks == []


def test_a_database_works(opener: Opener, kernel: FakeKernel) -> None:
    rng = random.Random(23)
    model: dict[bytes, bytes] = {}
    for durability in ("full", "process", "interval", "manual"):
        with opener(durability=durability, interval=0.01) as db:
            for _ in range(25):
                keys = (b"%04d" % rng.randrange(2000) for _ in range(30))
                changes = {key: rng.randbytes(rng.choice((0, 10, 300, 9000))) for key in keys}
                with db.transaction():
                    db.update(changes)
                model.update(changes)
                for key in rng.sample(sorted(model), 5):
                    del db[key], model[key]
            assert dict(db) == model
            assert db.check() == []
        with opener("r") as db:
            assert dict(db) == model
    assert kernel.calls["flush"] > 40


def test_snapshots_of_another_handle_are_respected(opener: Opener) -> None:
    with opener() as db, opener("r") as reader:
        db.update({b"%03d" % number: b"old" * 100 for number in range(300)})
        with reader.snapshot() as snapshot:
            for number in range(20):
                db.update({b"%03d" % key: b"%d" % number * 100 for key in range(300)})
            assert db._store.oldest_pin() is not None
            assert set(snapshot.values()) == {b"old" * 100}
        assert db._store.oldest_pin() is None


def test_writers_of_two_handles_take_leases(opener: Opener) -> None:
    with opener() as db, opener("w", timeout=0.05) as other:
        with db.transaction():
            db["k"] = "mine"
            with pytest.raises(durabledbm.BusyError):
                other._pipeline.begin(Lease())
            assert isinstance(Crew().start(other.__setitem__, "k", "theirs").failure(), durabledbm.BusyError)
        other["k"] = "theirs"
        assert db["k"] == b"theirs"


def test_histories_of_many_threads_and_handles_are_linearizable(opener: Opener) -> None:
    handles = [opener() for _ in range(3)]
    recorders = [Recorder(handles[client % 3]) for client in range(6)]
    crew = Crew()
    for client, recorder in enumerate(recorders):
        crew.start(random_operations, recorder, client, 24, 60)
    crew.join()
    for handle in handles:
        handle.close()
    check(operation for recorder in recorders for operation in recorder.history)


def test_a_lock_owner_is_not_named(disk: WindowsDisk) -> None:
    other = another(disk)
    assert pin(other, 3)
    assert oldest_pin(disk) == LockOwner(3, None)
    other.close()
