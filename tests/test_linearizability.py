"""The checker of histories itself: what it must accept and reject, and that it agrees with trying all
orders.
"""

from __future__ import annotations

import itertools
import random
import threading

import pytest
from linearizability import UNKNOWN_STAMP, Operation, Recorder, apply, check, unexplained


def op(
    kind: str, argument: bytes | None, result: object, start: int, end: int, *, key: bytes = b"k"
) -> Operation:
    return Operation(key, kind, argument, result, start, end)


def accepted(*history: Operation) -> bool:
    return not unexplained(history)


def test_an_empty_history_is_accepted() -> None:
    assert accepted()


def test_a_read_after_a_write_must_see_it() -> None:
    assert accepted(op("put", b"1", None, 0, 1), op("get", None, b"1", 2, 3))
    assert not accepted(op("put", b"1", None, 0, 1), op("get", None, None, 2, 3))


def test_a_read_beside_a_write_may_see_it_or_not() -> None:
    assert accepted(op("put", b"1", None, 0, 9), op("get", None, b"1", 2, 3))
    assert accepted(op("put", b"1", None, 0, 9), op("get", None, None, 2, 3))


def test_what_one_reader_has_seen_no_later_reader_may_miss() -> None:
    write = op("put", b"1", None, 0, 9)
    assert accepted(write, op("get", None, None, 1, 2), op("get", None, b"1", 3, 4))
    assert not accepted(write, op("get", None, b"1", 1, 2), op("get", None, None, 3, 4))


def test_a_value_that_nobody_wrote_is_rejected() -> None:
    assert not accepted(op("put", b"1", None, 0, 1), op("get", None, b"2", 0, 9))


def test_of_two_pops_one_gets_the_value() -> None:
    write = op("put", b"1", None, 0, 1)
    assert accepted(write, op("pop", None, b"1", 2, 9), op("pop", None, None, 2, 9))
    assert not accepted(write, op("pop", None, b"1", 2, 9), op("pop", None, b"1", 2, 9))
    assert not accepted(write, op("pop", None, None, 2, 9), op("pop", None, None, 2, 9))


def test_of_two_setdefaults_both_return_the_same() -> None:
    assert accepted(op("setdefault", b"1", b"1", 0, 9), op("setdefault", b"2", b"1", 0, 9))
    assert not accepted(op("setdefault", b"1", b"1", 0, 9), op("setdefault", b"2", b"2", 0, 9))


def test_a_delete_says_whether_there_was_something() -> None:
    write = op("put", b"1", None, 0, 1)
    assert accepted(write, op("delete", None, True, 2, 3), op("delete", None, False, 4, 5))
    assert not accepted(write, op("delete", None, False, 2, 3))
    assert not accepted(op("delete", None, True, 2, 3))


def test_an_operation_that_never_returned_may_have_happened_or_not() -> None:
    lost = op("put", b"1", None, 0, UNKNOWN_STAMP)
    assert accepted(lost, op("get", None, None, 5, 6))
    assert accepted(lost, op("get", None, b"1", 5, 6))
    assert accepted(lost, op("get", None, None, 5, 6), op("get", None, b"1", 7, 8))
    assert not accepted(lost, op("get", None, b"1", 5, 6), op("get", None, None, 7, 8))
    assert not accepted(op("put", b"1", None, 9, UNKNOWN_STAMP), op("get", None, b"1", 5, 6))


def test_what_was_there_before_counts() -> None:
    read = op("get", None, b"0", 0, 1)
    assert unexplained([read])
    assert not unexplained([read], {b"k": b"0"})


def test_keys_are_independent() -> None:
    good = [op("put", b"1", None, 0, 1), op("get", None, b"1", 2, 3)]
    bad = [op("put", b"1", None, 0, 1, key=b"z"), op("get", None, None, 2, 3, key=b"z")]
    assert unexplained(good + bad) == [bad]
    with pytest.raises(AssertionError, match="no order"):
        check(good + bad)


def explained_by_trying_all(history: list[Operation]) -> bool:
    """By definition: some subset that holds all operations that returned, in some order."""
    returned = [o for o in history if o.end != UNKNOWN_STAMP]
    lost = [o for o in history if o.end == UNKNOWN_STAMP]
    for count in range(len(lost) + 1):
        for happened in itertools.combinations(lost, count):
            if any(legal(order) for order in itertools.permutations(returned + list(happened))):
                return True
    return False


def legal(order: tuple[Operation, ...]) -> bool:
    value = None
    for index, operation in enumerate(order):
        if any(later.end < operation.start for later in order[index + 1 :]):
            return False
        value, result = apply(value, operation.kind, operation.argument)
        if operation.end != UNKNOWN_STAMP and result != operation.result:
            return False
    return True


def random_history(rng: random.Random) -> list[Operation]:
    """Operations that overlap at random, with results that are sometimes right and sometimes invented."""
    history = []
    value = None
    now = 0
    for _ in range(rng.randrange(1, 7)):
        kind = rng.choice(["get", "get", "put", "delete", "pop", "setdefault"])
        argument = rng.choice([b"1", b"2"]) if kind in ("put", "setdefault") else None
        value, result = apply(value, kind, argument)
        if rng.random() < 0.15:
            result = apply(rng.choice([None, b"1", b"2"]), kind, argument)[1]
        start = now + rng.randrange(-6, 3)
        end = UNKNOWN_STAMP if rng.random() < 0.1 else max(start, now + rng.randrange(0, 6))
        history.append(op(kind, argument, result, start, end))
        now += 2
    return history


def test_it_agrees_with_trying_all_orders() -> None:
    rng = random.Random(5)
    verdicts = set()
    for number in range(3000):
        history = random_history(rng)
        expected = explained_by_trying_all(history)
        verdicts.add(expected)
        assert accepted(*history) == expected, (number, history)
    assert verdicts == {True, False}


def test_it_rejects_a_dict_whose_operations_are_not_atomic() -> None:
    class Sloppy(dict):  # type: ignore[type-arg]
        """A dict whose `setdefault` looks and writes in two steps, and both threads meet in between."""

        meeting = threading.Barrier(2)

        def setdefault(self, key: object, default: object = None) -> object:
            missing = key not in self
            self.meeting.wait(10)
            if missing:
                self[key] = default
                return default
            return self[key]

    mapping = Sloppy()
    recorders = [Recorder(mapping), Recorder(mapping)]
    threads = [
        threading.Thread(target=recorder.perform, args=("setdefault", b"k", b"%d" % number))
        for number, recorder in enumerate(recorders)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unexplained(recorders[0].history + recorders[1].history)


def test_a_recorded_history_of_a_dict_is_accepted() -> None:
    rng = random.Random(6)
    recorder = Recorder({})
    for _ in range(2000):
        kind = rng.choice(["get", "put", "delete", "pop", "setdefault"])
        recorder.perform(kind, rng.choice([b"a", b"b"]), b"%d" % rng.randrange(5))
    check(recorder.history)


def test_long_histories_of_many_at_once_are_checked_quickly() -> None:
    """8 clients whose operations overlap throughout: each round, all start before any returns."""
    rng = random.Random(7)
    history = []
    value = None
    for number in range(1000):
        base = number * 100
        for client in rng.sample(range(8), 8):
            kind, argument = ("put", b"%d-%d" % (number, client)) if client % 2 else ("get", None)
            value, result = apply(value, kind, argument)
            history.append(op(kind, argument, result, base + client, base + 50 + client))
    check(history)
