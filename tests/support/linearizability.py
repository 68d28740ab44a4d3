"""A checker of recorded histories: could operations that overlapped have happened one after another?

A history is a list of `Operation`s on single keys, each with the moment before it was called and the moment
after it returned. It is *linearizable* if every operation can be given one instant between these two so
that, in the order of the instants, each returned what a dict would have returned. Keys are independent, so
each is checked alone, by the search of Wing and Gong with Lowe's memory of configurations that are known to
lead nowhere. It is exact: it rejects every history that cannot be explained and no other.
tests/test_linearizability.py compares it with trying all orders.

An operation that never returned, since its process was killed, has `end=UNKNOWN_STAMP`: it may have happened at any
time after its start, or not at all.

Times are integers of one clock. `time.monotonic_ns` is one clock for all processes of a Linux machine.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, NamedTuple

__all__ = ["UNKNOWN_STAMP", "Operation", "Recorder", "apply", "check", "unexplained"]

UNKNOWN_STAMP = 1 << 63
"""The end of an operation that did not return."""

ABSENT = None


class Operation(NamedTuple):
    """One call. `kind` is "get", "put", "delete", "pop" or "setdefault"; `result` is what it returned."""

    key: bytes
    kind: str
    argument: bytes | None
    result: object
    start: int
    end: int


def apply(value: bytes | None, kind: str, argument: bytes | None) -> tuple[bytes | None, object]:
    """What a dict does to a key with `value`: its value after the operation, and what the operation returns.
    """
    if kind == "get":
        return value, value
    if kind == "put":
        return argument, None
    if kind == "delete":
        return ABSENT, value is not None
    if kind == "pop":
        return ABSENT, value
    if kind == "setdefault":
        return (argument, argument) if value is None else (value, value)
    raise ValueError(f"no such operation: {kind}")


def unexplained(
    history: Iterable[Operation], initial: MutableMapping[bytes, bytes] | None = None
) -> list[list[Operation]]:
    """The histories of the keys that no order explains. `initial` is what was there before."""
    by_key: defaultdict[bytes, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    return [
        sorted(operations, key=lambda operation: operation.start)
        for key, operations in by_key.items()
        if not _explained(operations, (initial or {}).get(key))
    ]


def check(history: Iterable[Operation], initial: MutableMapping[bytes, bytes] | None = None) -> None:
    """Assert that the history is linearizable."""
    for operations in unexplained(history, initial):
        lines = "\n".join(map(str, operations[:200]))
        raise AssertionError(f"no order of {len(operations)} operations explains their results:\n{lines}")


def _reads_only(operation: Operation) -> bool:
    """Whether the result shows that the operation changed nothing, whenever it happened."""
    if operation.end == UNKNOWN_STAMP:
        return False
    kind, result = operation.kind, operation.result
    return (
        kind == "get"
        or (kind == "delete" and result is False)
        or (kind == "pop" and result is None)
        or (kind == "setdefault" and result != operation.argument)
    )


def _explained(operations: list[Operation], value: bytes | None) -> bool:
    """Whether some order explains the operations on one key."""
    order = sorted(operations, key=lambda operation: (operation.start, operation.end))
    reads = [_reads_only(operation) for operation in order]
    # A configuration: all operations before `first` have happened, of the others those in the bits of
    # `more`, and the key has `value`. A configuration that was tried before leads nowhere again.
    seen: set[tuple[int, int, bytes | None]] = set()
    stack = [_settle(order, reads, 0, 0, value)]
    while stack:
        configuration = stack.pop()
        if configuration in seen:
            continue
        seen.add(configuration)
        first, more, value = configuration
        candidates = _candidates(order, first, more)
        if all(order[index].end == UNKNOWN_STAMP for index in candidates):
            # None is left that returned: one of those would be a candidate. The others need not have
            # happened.
            return True
        for index in candidates:
            operation = order[index]
            after, result = apply(value, operation.kind, operation.argument)
            if operation.end == UNKNOWN_STAMP or result == operation.result:
                stack.append(_settle(order, reads, first, more | 1 << (index - first), after))
    return False


def _candidates(order: list[Operation], first: int, more: int) -> list[int]:
    """The operations that may happen next: those that no other, still to happen, had returned before."""
    found = []
    earliest_end = UNKNOWN_STAMP
    for index in range(first, len(order)):
        operation = order[index]
        if operation.start > earliest_end:
            break
        if not more >> (index - first) & 1:
            found.append(index)
            earliest_end = min(earliest_end, operation.end)
    return [index for index in found if order[index].start <= earliest_end]


def _settle(
    order: list[Operation], reads: list[bool], first: int, more: int, value: bytes | None
) -> tuple[int, int, bytes | None]:
    """The configuration after all reads that may happen now and fit: they stand in nobody's way."""
    while True:
        while more & 1:
            more >>= 1
            first += 1
        before = more
        for index in _candidates(order, first, more):
            operation = order[index]
            if reads[index] and apply(value, operation.kind, operation.argument)[1] == operation.result:
                more |= 1 << (index - first)
        if more == before:
            return first, more, value


class Recorder:
    """Performs operations on a mapping for one thread, and notes what happened when.

    `note`, if given, is called with each operation before it is performed (with `end=UNKNOWN_STAMP`) and after, so
    that a process can tell what it did before it is killed.
    """

    def __init__(
        self, mapping: MutableMapping[Any, Any], note: Callable[[Operation], object] | None = None
    ) -> None:
        self._mapping = mapping
        self._note = note
        self.history: list[Operation] = []

    def perform(self, kind: str, key: bytes, argument: bytes | None = None) -> object:
        """Perform one operation; what it raises propagates, and it counts as one that never returned."""
        if self._note is not None:
            self._note(Operation(key, kind, argument, None, time.monotonic_ns(), UNKNOWN_STAMP))
        start = time.monotonic_ns()
        try:
            result = self._perform(kind, key, argument)
        except BaseException:
            self.history.append(Operation(key, kind, argument, None, start, UNKNOWN_STAMP))
            raise
        operation = Operation(key, kind, argument, result, start, time.monotonic_ns())
        self.history.append(operation)
        if self._note is not None:
            self._note(operation)
        return result

    def _perform(self, kind: str, key: bytes, argument: bytes | None) -> object:
        mapping = self._mapping
        if kind == "get":
            return mapping.get(key)
        if kind == "put":
            mapping[key] = argument
            return None
        if kind == "delete":
            try:
                del mapping[key]
            except KeyError:
                return False
            return True
        if kind == "pop":
            return mapping.pop(key, None)
        assert kind == "setdefault"
        return mapping.setdefault(key, argument)
