"""Locks: who writes, who waits, and what is being read; between handles of one process and between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simdisk import SimVolume

from durabledbm._engine import locks as locks_module
from durabledbm._engine.disk import FileVolume
from durabledbm._engine.disk.protocol import Disk
from durabledbm._engine.locks import (
    _REENTRIES,
    GATE_OFFSET,
    WRITER_OFFSET,
    FairLock,
    Lease,
    WriterLock,
    forget_owners,
    oldest_pin,
    pin,
    someone_waits,
    unpin,
    writer_present,
)
from durabledbm._engine.threads import Patience
from durabledbm.errors import BusyError

ENOUGH = 30.0
"""Seconds that no test should ever need."""


@pytest.fixture(params=["file", "simulated"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Disk]]:
    """A function that opens the same file once more."""
    disks: list[Disk] = []
    if request.param == "file":
        path = tmp_path / "file"
        path.touch()

        def open_again() -> Disk:
            disks.append(FileVolume().open(str(path), writable=True))
            return disks[-1]
    else:
        volume = SimVolume({"/file": b""})

        def open_again() -> Disk:
            disks.append(volume.open("/file", writable=True))
            return disks[-1]

    yield open_again
    for disk in disks:
        disk.close()


def held(lock: WriterLock) -> bool:
    """Whether a thread has its lease, and the lock in the file."""
    return lock.kept and bool(lock._leases.queue)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENOUGH
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# -- pins ----------------------------------------------------------------------------------------------------------


def test_the_oldest_pin_of_others_is_found(opened: Callable[[], Disk]) -> None:
    writer, first, second = opened(), opened(), opened()
    assert oldest_pin(writer) is None
    for disk, txid in ((first, 90), (second, 50), (first, 70), (second, 60)):
        assert pin(disk, txid)
    oldest = oldest_pin(writer)
    assert oldest is not None
    assert oldest.offset == 50
    unpin(second, 50)
    assert oldest_pin(writer) == oldest._replace(offset=60)
    second.close()
    assert oldest_pin(writer) == oldest._replace(offset=70)
    first.close()
    assert oldest_pin(writer) is None


def test_many_may_pin_the_same_commit(opened: Callable[[], Disk]) -> None:
    writer, first, second = opened(), opened(), opened()
    assert pin(first, 5)
    assert pin(second, 5)
    unpin(first, 5)
    oldest = oldest_pin(writer)
    assert oldest is not None
    assert oldest.offset == 5


def test_ones_own_pins_are_not_seen_as_those_of_others(opened: Callable[[], Disk]) -> None:
    writer = opened()
    pin(writer, 5)
    assert oldest_pin(writer) is None


@pytest.mark.parametrize("txid", [1, 2**32, 2**62 - 2])
def test_any_commit_can_be_pinned(opened: Callable[[], Disk], txid: int) -> None:
    writer, reader = opened(), opened()
    assert pin(reader, txid)
    oldest = oldest_pin(writer)
    assert oldest is not None
    assert oldest.offset == txid


def test_the_pin_of_a_killed_process_vanishes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    program = (
        "import sys; from durabledbm._engine.disk import FileVolume; from durabledbm._engine.locks import pin\n"
        f"disk = FileVolume().open({str(path)!r}, writable=True); pin(disk, 7); print('pinned', flush=True)\n"
        "sys.stdin.read()"
    )
    root = Path(__file__).parent.parent.parent
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    disk = FileVolume().open(str(path), writable=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline().split() == [b"pinned"]
        oldest = oldest_pin(disk)
        assert oldest is not None
        assert oldest.offset == 7
    finally:
        child.kill()
        child.communicate()
    assert oldest_pin(disk) is None
    disk.close()


# -- the writer lock -----------------------------------------------------------------------------------------------


def test_one_handle_writes_at_a_time(opened: Callable[[], Disk]) -> None:
    disks = opened(), opened()
    locks, turns = [WriterLock((n, n)) for n in range(2)], [Lease(), Lease()]
    locks[0].acquire(turns[0], disks[0], 0)
    assert held(locks[0])
    assert writer_present(disks[1])
    assert not writer_present(disks[0])
    for timeout in (0, 0.05):
        with pytest.raises(BusyError, match="held the file"):
            locks[1].acquire(turns[1], disks[1], timeout)
    assert not held(locks[1])
    turns[0].end()
    assert not writer_present(disks[1])
    locks[1].acquire(turns[1], disks[1], 0)
    turns[1].end()


def test_a_writer_gets_the_lock_when_it_is_released(opened: Callable[[], Disk]) -> None:
    disks = opened(), opened()
    locks, turns = [WriterLock((n, n)) for n in range(2)], [Lease(), Lease()]
    locks[0].acquire(turns[0], disks[0], 0)
    got = threading.Event()

    def wait_for_it() -> None:
        locks[1].acquire(turns[1], disks[1], None)
        got.set()
        turns[1].end()

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    wait_until(lambda: someone_waits(disks[0]))
    assert not got.is_set()
    turns[0].end()
    assert got.wait(ENOUGH)
    thread.join(ENOUGH)
    assert not someone_waits(disks[0])


def test_who_waits_goes_before_who_asks_again(opened: Callable[[], Disk]) -> None:
    """A handle that writes all the time lets the others in: it may take the lock again just a few times."""
    disks = opened(), opened()
    locks, turns = [WriterLock((n, n)) for n in range(2)], [Lease(), Lease()]
    order = []
    locks[0].acquire(turns[0], disks[0], 0)

    def other() -> None:
        locks[1].acquire(turns[1], disks[1], None)
        order.append("other")
        turns[1].end()

    thread = threading.Thread(target=other)
    thread.start()
    wait_until(lambda: someone_waits(disks[0]))
    for _ in range(_REENTRIES + 1):
        turns[0].end()
        locks[0].acquire(turns[0], disks[0], ENOUGH)
        order.append("again")
    turns[0].end()
    thread.join(ENOUGH)
    assert order.count("other") == 1
    assert order[-1] == "again"


def test_who_has_waited_for_a_moment_goes_before_who_asks_again(
    opened: Callable[[], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few times that was."""
    disk, lock, lease = opened(), WriterLock((0, 0)), Lease()
    locked = []
    take = disk.lock
    monkeypatch.setattr(type(disk), "lock", lambda self, offset, **kind: locked.append(offset) or take(offset, **kind))
    now = 100.0
    monkeypatch.setattr(locks_module, "monotonic", lambda: now)
    for wait in (0, 0.001, 0.003, 0.002):
        now += wait
        lock.acquire(lease, disk, 0)
        lease.end()
    passed = [GATE_OFFSET, WRITER_OFFSET]
    assert locked == [*passed, WRITER_OFFSET, WRITER_OFFSET, *passed]


def test_a_kept_lock_keeps_others_out_and_ones_own_threads_not(opened: Callable[[], Disk]) -> None:
    disks = opened(), opened()
    locks, turns = [WriterLock((n, n)) for n in range(2)], [Lease(), Lease()]
    locks[0].acquire(turns[0], disks[0], 0)
    locks[0].reserved = True
    turns[0].end()
    assert (held(locks[0]), locks[0].kept) == (False, True)
    with pytest.raises(BusyError):
        locks[1].acquire(turns[1], disks[1], 0)
    locks[0].acquire(turns[0], disks[0], 0)
    locks[0].reserved = False
    turns[0].end()
    assert not locks[0].kept
    locks[1].acquire(turns[1], disks[1], 0)
    turns[1].end()


def test_a_thread_that_waits_for_itself_is_told_so_at_once(opened: Callable[[], Disk]) -> None:
    """Through whatever handle: it would wait for ever."""
    disks = opened(), opened()
    locks, turns = [WriterLock((5, 5)) for _ in range(2)], [Lease(), Lease()]
    turns[0].stuck = lambda: True
    locks[0].acquire(turns[0], disks[0], 0)
    for lock, disk in zip(locks, disks, strict=True):
        with pytest.raises(BusyError, match="this thread already writes"):
            lock.acquire(Lease(), disk, None)
    turns[0].end()
    locks[1].acquire(turns[1], disks[1], 0)
    turns[1].end()


def test_a_turn_that_an_interrupted_operation_of_this_thread_has_left_is_ended(opened: Callable[[], Disk]) -> None:
    disk, lock, left = opened(), WriterLock((5, 5)), Lease()
    lock.acquire(left, disk, 0)
    lease = Lease()
    lock.acquire(lease, disk, None)
    assert left.holder is None
    lease.end()


def test_another_thread_does_not_count_as_oneself(opened: Callable[[], Disk]) -> None:
    disk = opened()
    lock, lease = WriterLock((6, 6)), Lease()
    lock.acquire(lease, disk, 0)
    outcome: list[str] = []

    def ask() -> None:
        try:
            lock.acquire(Lease(), disk, 0.01)
        except BusyError as exc:
            outcome.append(str(exc))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(ENOUGH)
    assert len(outcome) == 1
    assert "this thread already" not in outcome[0]
    lease.end()


def test_in_a_forked_child_no_thread_writes(opened: Callable[[], Disk]) -> None:
    disk = opened()
    lock, lease = WriterLock((7, 7)), Lease()
    lock.acquire(lease, disk, 0)
    forget_owners()
    lock.check_self("path")
    lease.end()


def test_a_failure_to_lock_leaves_the_turn_to_others(opened: Callable[[], Disk]) -> None:
    disks = opened(), opened()
    blocker, lock = WriterLock((8, 8)), WriterLock((9, 9))
    blocking, lease = Lease(), Lease()
    blocker.acquire(blocking, disks[0], 0)
    with pytest.raises(BusyError):
        lock.acquire(lease, disks[1], 0)
    blocking.end()
    lock.acquire(lease, disks[1], 0)
    lease.end()


# -- what interrupts leave behind


def test_a_turn_that_nobody_ends_ends_with_the_last_reference_to_it(opened: Callable[[], Disk]) -> None:
    disks, lock = (opened(), opened()), WriterLock((10, 10))
    for kept in (True, False):
        lease = Lease()
        lock.reserved = kept
        lock.acquire(lease, disks[0], 0)
        del lease
        assert writer_present(disks[1]) is kept
    lock.check_self("path")


def test_a_turn_may_be_ended_twice_and_before_it_begins(opened: Callable[[], Disk]) -> None:
    disk, lock, lease, next_turn = opened(), WriterLock((11, 11)), Lease(), Lease()
    lease.end()
    lock.acquire(lease, disk, 0)
    place = lease.entry
    lease.end()
    lock.acquire(next_turn, disk, 0)
    lease.end()
    lock.release(place)
    assert held(lock)
    next_turn.end()
    assert not held(lock)


def test_who_waits_finds_out_by_itself_that_its_turn_has_come() -> None:
    """The one before it was interrupted between leaving the queue and waking it."""
    lock, first, second = FairLock(), Lease(), Lease()
    assert take(lock, first, 0)
    thread = threading.Thread(target=take, args=(lock, second, ENOUGH))
    thread.start()
    wait_until(lambda: len(lock.queue) == 2)
    lock.queue.popleft()
    thread.join(ENOUGH)
    assert not thread.is_alive()


def test_who_waits_passes_over_a_turn_that_does_not_exist_any_more() -> None:
    lock, first, second = FairLock(), Lease(), Lease()
    assert lock.acquire(first, Patience(0), lambda place: None)
    del first
    assert take(lock, second, 1)


# -- turns of one process --------------------------------------------------------------------------------------------


def take(lock: FairLock, lease: Lease, timeout: float | None) -> bool:
    return lock.acquire(lease, Patience(timeout), lock.leave)


def test_turns_are_given_in_the_order_of_asking() -> None:
    lock, first = FairLock(), Lease()
    assert take(lock, first, 0)
    order: list[int] = []
    threads = []
    for number in range(10):

        def ask(number: int = number) -> None:
            lease = Lease()
            assert take(lock, lease, ENOUGH)
            order.append(number)
            lock.leave(lease.entry)

        threads.append(threading.Thread(target=ask))
        threads[-1].start()
        wait_until(lambda count=number + 2: len(lock.queue) == count)  # type: ignore[misc]
    lock.leave(first.entry)
    for thread in threads:
        thread.join(ENOUGH)
    assert order == list(range(10))
    assert take(lock, first, 0)


def test_a_turn_that_does_not_come_in_time_is_given_up() -> None:
    lock, first = FairLock(), Lease()
    first.stuck = lambda: False  # it is held, and not left over from an operation that was interrupted
    assert take(lock, first, None)
    for timeout in (0, 0.02, -5):
        assert not take(lock, Lease(), timeout)
    assert len(lock.queue) == 1
    lock.leave(first.entry)
    assert take(lock, Lease(), 0)


def test_what_an_interrupted_operation_left_of_this_thread_does_not_hold_up_the_next() -> None:
    lock, left_over = FairLock(), Lease()
    assert take(lock, left_over, 0)
    assert take(lock, Lease(), 0)


def test_one_who_gave_up_is_passed_over() -> None:
    lock, first, second = FairLock(), Lease(), Lease()
    assert take(lock, first, 0)
    results: list[bool] = []
    patient = threading.Thread(target=lambda: results.append(take(lock, second, ENOUGH)))
    impatient = threading.Thread(target=lambda: take(lock, Lease(), 0.02))
    impatient.start()
    wait_until(lambda: len(lock.queue) == 2)
    patient.start()
    impatient.join(ENOUGH)
    lock.leave(first.entry)
    patient.join(ENOUGH)
    assert results == [True]


def test_only_one_thread_at_a_time_is_inside() -> None:
    lock = FairLock()
    inside = 0
    worst = 0

    def work() -> None:
        nonlocal inside, worst
        for _ in range(300):
            lease = Lease()
            while not take(lock, lease, 0.0001):
                pass
            inside += 1
            worst = max(worst, inside)
            inside -= 1
            lock.leave(lease.entry)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH)
        assert not thread.is_alive()
    assert worst == 1
