"""Tests of the mapping specification: a stand-in that is right meets it, one that is wrong does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import pytest
from mapping_spec import CLOSING, KEYED, READ_ONLY, READING, WRITING, check_mapping

from durabledbm import ClosedError, ReadOnlyError, error


class Standin(MutableMapping[bytes, bytes]):
    """A dict that does what API.md says, in the simplest way."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, entries: Mapping[bytes, bytes] | None = None, readonly: bool = False) -> None:
        if hasattr(self, "entries"):
            raise error("no reinitialization")
        self.entries, self.readonly, self.closed = dict(entries or {}), readonly, False

    @staticmethod
    def bytes_of(data: object, what: str = "key") -> bytes:
        if isinstance(data, str):
            return data.encode()
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"{what} must not be {type(data).__name__}")
        return bytes(data)

    def open(self, *, write: bool = False) -> None:
        if self.closed:
            raise ClosedError
        if write and self.readonly:
            raise ReadOnlyError("read only")

    def __getitem__(self, key: Any) -> bytes:
        self.open()
        try:
            return self.entries[self.bytes_of(key)]
        except KeyError:
            raise KeyError(key) from None

    def __setitem__(self, key: Any, value: Any) -> None:
        key, value = self.bytes_of(key), self.bytes_of(value, "value")
        self.open(write=True)
        self.entries[key] = value

    def __delitem__(self, key: Any) -> None:
        self.open(write=True)
        if self.bytes_of(key) not in self.entries:
            raise KeyError(key)
        del self.entries[self.bytes_of(key)]

    def __contains__(self, key: object) -> bool:
        self.open()
        return self.bytes_of(key) in self.entries

    def __len__(self) -> int:
        self.open()
        return len(self.entries)

    def __iter__(self) -> Iterator[bytes]:
        return (key for key, _ in self.range())

    def __reversed__(self) -> Iterator[bytes]:
        return (key for key, _ in self.range(reverse=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.range()) == dict(other.items())

    def range(self, start: Any = None, stop: Any = None, *, prefix: Any = b"", reverse: bool = False) -> Any:
        self.open()
        low = b"" if start is None else self.bytes_of(start)
        high = None if stop is None else self.bytes_of(stop)
        stem = b"" if prefix is None else self.bytes_of(prefix)
        chosen = [
            (key, self.entries[key])
            for key in sorted(self.entries, reverse=reverse)
            if key >= low and (high is None or key < high) and key.startswith(stem)
        ]
        return self.while_open(chosen)

    def while_open(self, chosen: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for entry in chosen:
            self.open()
            yield entry

    def items(self) -> Any:
        return ItemsOf(self)

    def values(self) -> Any:
        return ValuesOf(self)

    def keys(self) -> Any:
        return list(self)

    def setdefault(self, key: Any, default: Any = None) -> bytes:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        if not self.readonly or key in self:
            self.open(write=True)
        if key not in self:
            if default:
                return default[0]
            raise KeyError(key)
        return self.entries.pop(self.bytes_of(key))

    def popitem(self) -> tuple[bytes, bytes]:
        self.open(write=True)
        return self.entries.popitem()

    def update(self, other: Any = (), /, **more: Any) -> None:
        names = other.keys() if hasattr(other, "keys") else None
        pairs = list(other) if names is None else [(key, other[key]) for key in names]
        pairs += more.items()
        changes = {self.bytes_of(key): self.bytes_of(value, "value") for key, value in pairs}
        if changes:
            self.open(write=True)
            self.entries.update(changes)

    def clear(self) -> None:
        self.open(write=True)
        self.entries.clear()

    def first(self) -> tuple[bytes, bytes]:
        for entry in self.range():
            return entry
        raise KeyError("empty")

    def last(self) -> tuple[bytes, bytes]:
        for entry in self.range(reverse=True):
            return entry
        raise KeyError("empty")

    def firstkey(self) -> bytes | None:
        return next(iter(self), None)

    def nextkey(self, key: Any) -> bytes | None:
        return next(self.range(self.bytes_of(key) + b"\0"), (None,))[0]

    def get_many(self, keys: Any) -> dict[bytes, bytes]:
        self.open()
        return {self.bytes_of(key): self[key] for key in keys if key in self}

    def sync(self) -> None:
        self.open()

    def reorganize(self) -> None:
        self.open(write=True)

    snapshot = check = stats = sync

    def transaction(self) -> Any:
        self.open(write=True)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Standin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot copy or pickle a {type(self).__name__}: but open the file again")


class View:
    """What is iterated is what there is when iteration starts."""

    def __init__(self, mapping: Standin) -> None:
        self.mapping = mapping

    def __len__(self) -> int:
        return len(self.mapping)


class ItemsOf(View):
    def __iter__(self) -> Iterator[Any]:
        return self.mapping.range()

    def __contains__(self, entry: Any) -> bool:
        return self.mapping.get(entry[0]) == entry[1]


class ValuesOf(View):
    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self.mapping.range())


ALL = READING + WRITING + KEYED + READ_ONLY + CLOSING


@pytest.mark.parametrize(("name", "spec"), ALL, ids=[name for name, _ in ALL])
def test_the_standin_meets_the_specification(name: str, spec: Callable[[Any], None]) -> None:
    spec(lambda entries: Standin(entries, readonly=(name, spec) in READ_ONLY))


def test_the_specification_has_no_name_twice() -> None:
    assert len({name for name, _ in ALL}) == len(ALL)


# Wrong in one way each, and the specification that must find it


class EncodedKeyError(Standin):
    def __getitem__(self, key: Any) -> bytes:
        return self.entries[self.bytes_of(key)]


class NamesNoType(Standin):
    @staticmethod
    def bytes_of(data: object, what: str = "key") -> bytes:
        return memoryview(data.encode() if isinstance(data, str) else data).tobytes()  # type: ignore[arg-type]


class StopIncluded(Standin):
    def range(self, start: Any = None, stop: Any = None, **options: Any) -> Any:
        return super().range(start, None if stop is None else self.bytes_of(stop) + b"\0", **options)


class StopIgnoredWithAPrefix(Standin):
    def range(self, start: Any = None, stop: Any = None, *, prefix: Any = None, reverse: bool = False) -> Any:
        return super().range(start, stop if prefix is None else None, prefix=prefix, reverse=reverse)


class StartsWhenFirstAsked(Standin):
    def range(self, start: Any = None, stop: Any = None, *, prefix: Any = None, reverse: bool = False) -> Any:
        yield from super().range(start, stop, prefix=prefix, reverse=reverse)


class ViewAtItsCreation(Standin):
    def items(self) -> Any:
        return ItemsOf(Standin(self.entries))


class UpdateOneByOne(Standin):
    def update(self, other: Any = (), /, **more: Any) -> None:
        MutableMapping.update(self, other, **more)


class NoEmptyKeys(Standin):
    def __setitem__(self, key: Any, value: Any) -> None:
        if self.bytes_of(key):
            super().__setitem__(key, value)


class ShortKeys(Standin):
    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(self.bytes_of(key)[:65535], value)


class DefaultAsPassed(Standin):
    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key in self:
            return self[key]
        self[key] = default
        return default


class KeepsBuffers(Standin):
    @staticmethod
    def bytes_of(data: object, what: str = "key") -> Any:
        return data if what == "value" and isinstance(data, bytearray) else Standin.bytes_of(data, what)


class LazyKeys(Standin):
    def keys(self) -> Any:
        return iter(self)


class NextOfPresentKeysOnly(Standin):
    def nextkey(self, key: Any) -> bytes | None:
        return super().nextkey(key) if key in self else None


class WritesThroughReaders(Standin):
    def popitem(self) -> tuple[bytes, bytes]:
        return self.entries.popitem()


class DeletesNothingQuietly(Standin):
    def __delitem__(self, key: Any) -> None:
        if key in self:
            super().__delitem__(key)


class IteratesOnAfterClose(Standin):
    def while_open(self, chosen: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        return iter(chosen)


WRONG = {
    EncodedKeyError: "a_missing_key_is_a_key_error_with_the_key_as_passed",
    NamesNoType: "wrong_types_are_type_errors_and_change_nothing",
    StopIncluded: "range_with_every_combination_of_arguments",
    StopIgnoredWithAPrefix: "range_with_every_combination_of_arguments",
    StartsWhenFirstAsked: "an_iterator_sees_the_state_at_its_start",
    ViewAtItsCreation: "a_view_shows_the_state_when_it_is_iterated",
    UpdateOneByOne: "update_that_raises_changes_nothing",
    NoEmptyKeys: "empty_keys_empty_values_and_nul_bytes_are_ordinary",
    ShortKeys: "keys_of_every_length",
    DefaultAsPassed: "setdefault_returns_the_stored_bytes",
    KeepsBuffers: "what_was_stored_does_not_change_with_its_buffer",
    LazyKeys: "keys_are_a_list_of_bytes",
    NextOfPresentKeysOnly: "nextkey_takes_keys_that_are_missing_and_of_every_type",
    WritesThroughReaders: "every_write_is_refused",
    DeletesNothingQuietly: "deleting_a_missing_key_is_a_key_error_with_the_key_as_passed",
    IteratesOnAfterClose: "every_use_of_a_closed_handle_is_a_closed_error",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_mapping_does_not_meet_the_specification(kind: type[Standin]) -> None:
    spec = dict(ALL)[WRONG[kind]]
    with pytest.raises((AssertionError, LookupError, TypeError, pytest.fail.Exception)):
        spec(lambda entries: kind(entries, readonly=WRONG[kind] in dict(READ_ONLY)))


def test_check_mapping_runs_everything() -> None:
    check_mapping(Standin)
    with pytest.raises(AssertionError):
        check_mapping(StopIncluded)
    with pytest.raises(AssertionError):
        check_mapping(DefaultAsPassed)
