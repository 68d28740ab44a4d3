"""Operations that are one write: functions of a `Work`, which a pipeline or a transaction runs."""

from __future__ import annotations

from .work import CHANGE_MEMORY, Work

__all__ = ["delete", "pop", "pop_end", "set_default", "update"]


def delete(work: Work, key: bytes) -> bool:
    """Delete `key`; False if it is not there."""
    if work.find(key) is None:
        return False
    work.delete(key)
    return True


def pop(work: Work, key: bytes) -> bytes | None:
    """Delete `key` and return its value, or None if it is not there."""
    value = work.get(key)
    if value is not None:
        work.delete(key)
    return value


def pop_end(work: Work) -> tuple[bytes, bytes] | None:
    """Delete the entry with the greatest key and return it, or None if there is none."""
    entry = next(work.view().items(reverse=True), None)
    if entry is not None:
        work.delete(entry[0])
    return entry


def set_default(work: Work, key: bytes, default: bytes) -> bytes:
    """The value of `key`, after setting it to `default` if it is not there."""
    value = work.get(key)
    if value is None:
        work.put(key, default)
        return default
    return value


def update(work: Work, changes: dict[bytes, bytes]) -> None:
    """Set all these values."""
    size = sum(map(len, changes)) + sum(map(len, changes.values())) + CHANGE_MEMORY * len(changes)
    work.update(changes, size)  # type: ignore[arg-type]
