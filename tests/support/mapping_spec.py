"""One specification, for everything that claims to be a mapping of bytes to bytes as API.md describes it.

Each specification is a function that takes `make`: `make(entries)` returns a new mapping, independent of all
others, that holds the entries of the dict. Closing what it opened is the caller's business. Lists of (name,
function), for `pytest.mark.parametrize(("name", "spec"), READING)` or the like:

    READING     every mapping, a Snapshot too WRITING     every mapping that can be written: Database,
    Transaction, ShardedDatabase KEYED       what only databases have besides: keys() as a list, get_many,
    firstkey, nextkey, no content in repr READ_ONLY   `make` returns databases opened with flag "r" CLOSING
    `make` returns databases, which the specification closes (closing them again must be harmless)

    check_mapping(make)     all of READING and WRITING at once, for a quick look
"""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import shelve
from collections import ChainMap, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from types import MappingProxyType
from typing import Any

import pytest

from durabledbm import ClosedError, ReadOnlyError, error

Make = Callable[[dict[bytes, bytes]], Any]
Specification = tuple[str, Callable[[Make], None]]

READING: list[Specification] = []
WRITING: list[Specification] = []
KEYED: list[Specification] = []
READ_ONLY: list[Specification] = []
CLOSING: list[Specification] = []

ABC = {b"a": b"1", b"b": b"2", b"c": b"3"}
LARGE = 1 << 20
LONG = 100_000
CLOSED_TEXT = "DBM object has already been closed"


def check_mapping(make: Make) -> None:
    """Everything that holds of every mapping that can be written."""
    for _, function in READING + WRITING:
        function(make)


def _belongs(group: list[Specification]) -> Callable[[Callable[[Make], None]], Callable[[Make], None]]:
    def add(function: Callable[[Make], None]) -> Callable[[Make], None]:
        group.append((function.__name__, function))
        return function

    return add


reading, writing, keyed = _belongs(READING), _belongs(WRITING), _belongs(KEYED)
read_only, closing = _belongs(READ_ONLY), _belongs(CLOSING)


def random_entries(seed: int, count: int) -> dict[bytes, bytes]:
    """Binary keys that share prefixes, of 0 to 40 bytes, with values of 0 to 300 bytes."""
    rng = random.Random(seed)
    stems = [b"", b"\x00", b"\xff", b"\xff\xff", b"user:", b"user;", rng.randbytes(20)]
    return {
        rng.choice(stems) + rng.randbytes(rng.choice((0, 1, 1, 2, 3, 20))): rng.randbytes(rng.randrange(300))
        for _ in range(count)
    }


def _all_bytes(things: Any) -> bool:
    return all(type(thing) is bytes for thing in things)


# -- look-ups


@reading
def bytes_come_out(make: Make) -> None:
    m = make(ABC)
    assert m[b"a"] == b"1"
    assert _all_bytes([m[b"a"], m["a"], m.get("a"), *m, *m.values(), *reversed(m), *m.first(), *m.last()])
    assert _all_bytes(itertools.chain.from_iterable(m.items()))
    assert _all_bytes(itertools.chain.from_iterable(m.range()))


@reading
def keys_are_str_bytes_bytearray_or_memoryview(make: Make) -> None:
    m = make({"ä€".encode(): b"1"})
    raw = "ä€".encode()
    every_other = memoryview(bytes(byte for pair in zip(raw, raw, strict=True) for byte in pair))[::2]
    for key in ("ä€", raw, bytearray(raw), memoryview(raw), every_other):
        assert m[key] == b"1"
        assert m.get(key) == b"1"
        assert key in m
    for key in ("ä", bytearray(b"x"), memoryview(b"y")):
        assert key not in m
        assert m.get(key) is None


@reading
def a_missing_key_is_a_key_error_with_the_key_as_passed(make: Make) -> None:
    m = make(ABC)
    for key in ("missing", b"missing", bytearray(b"missing"), memoryview(b"missing"), "", b""):
        with pytest.raises(KeyError) as caught:
            m[key]
        assert caught.value.args[0] is key


@reading
def get_gives_the_default(make: Make) -> None:
    m = make({b"empty": b""})
    assert m.get(b"missing") is None
    default = object()
    assert m.get(b"missing", default) is default
    assert m.get(b"empty", default) == b""


@reading
def a_key_of_a_wrong_type_is_a_type_error_that_names_key_and_type(make: Make) -> None:
    m = make(ABC)
    for key, name in ((1, "int"), (None, "NoneType"), (1.5, "float"), ((b"a",), "tuple"), ([b"a"], "list")):
        for look_up in (lambda k: m[k], lambda k: k in m, m.get, lambda k: m.get(k, b"")):
            with pytest.raises(TypeError, match=rf"key.*\b{name}\b"):
                look_up(key)


@reading
def a_lone_surrogate_is_a_unicode_error(make: Make) -> None:
    m = make(ABC)
    with pytest.raises(UnicodeEncodeError):
        m["\udc80"]
    with pytest.raises(UnicodeEncodeError):
        m.get("\udc80")


@reading
def length_and_truth(make: Make) -> None:
    assert len(make({})) == 0
    assert not make({})
    assert len(make(ABC)) == 3
    assert make(ABC)
    assert make({b"": b""})


@reading
def it_is_a_mapping_that_equals_a_dict_with_the_same_entries(make: Make) -> None:
    m = make(ABC)
    assert isinstance(m, Mapping)
    assert m == ABC
    assert dict(reversed(ABC.items())) == m
    assert not m != ABC  # noqa: SIM202 - `!=` is what is tested
    other_key = {b"a": b"1", b"b": b"2", b"d": b"3"}
    for other in ({}, {b"a": b"1"}, {**ABC, b"c": b"x"}, {**ABC, b"d": b"4"}, other_key):
        assert m != other
        assert other != m
    assert m != list(ABC)
    assert make(ABC) == m
    assert make({}) == {}
    assert make({}) != m


@reading
def a_comparison_asks_any_mapping_and_changes_none(make: Make) -> None:
    m = make(ABC)
    for kind in (OrderedDict, ChainMap, MappingProxyType, UserDict, partial(defaultdict, bytes)):
        assert m == kind(dict(ABC))
        lacking = kind({b"a": b"1", b"b": b"2", b"none": None})
        assert m != lacking
        assert lacking != m
        assert len(lacking) == 3
    shelf = shelve.Shelf({}, keyencoding="ascii")
    shelf.update(a="1", b="2", c="3")
    assert m != shelf
    assert shelf != m
    assert make({}) == shelve.Shelf({})


@reading
def it_is_not_hashable(make: Make) -> None:
    with pytest.raises(TypeError):
        hash(make({}))


# -- order


@reading
def keys_come_in_the_order_of_bytes(make: Make) -> None:
    entries = random_entries(1, 3000)
    m = make(entries)
    keys = sorted(entries)
    assert len(m) == len(keys)
    assert list(m) == keys
    assert list(m.keys()) == keys
    assert list(reversed(m)) == keys[::-1]
    assert list(m.items()) == sorted(entries.items())
    assert list(m.values()) == [entries[key] for key in keys]
    assert all(m[key] == value for key, value in entries.items())


@reading
def an_empty_mapping_has_nothing_to_iterate(make: Make) -> None:
    m = make({})
    for nothing in (m, m.keys(), m.items(), m.values(), reversed(m), m.range(), m.range(reverse=True)):
        assert list(nothing) == []


@reading
def items_and_values_are_views(make: Make) -> None:
    m = make(ABC)
    items, values = m.items(), m.values()
    for _ in range(2):  # a view is not used up
        assert list(items) == list(ABC.items())
        assert list(values) == list(ABC.values())
    assert len(items) == len(values) == 3
    assert (b"b", b"2") in items
    assert (b"b", b"3") not in items
    assert (b"x", b"2") not in items
    assert b"2" in values
    assert b"x" not in values


@reading
def several_iterators_do_not_disturb_each_other(make: Make) -> None:
    entries = random_entries(2, 200)
    m = make(entries)
    keys = sorted(entries)
    assert list(zip(m, reversed(m), m.values(), strict=True)) == [
        (key, back, entries[key]) for key, back in zip(keys, keys[::-1], strict=True)
    ]
    abandoned = iter(m)
    assert next(abandoned) == keys[0]
    assert list(m) == keys


@reading
def first_and_last(make: Make) -> None:
    m = make(ABC)
    assert m.first() == (b"a", b"1")
    assert m.last() == (b"c", b"3")
    for ask in (make({}).first, make({}).last):
        with pytest.raises(KeyError):
            ask()


# -- range

_BOUNDS = [None, b"", b"\x00", b"a", b"a\x00", b"ab", b"b", b"bb", b"c", b"\xff", b"\xff\xff", b"\xff" * 3]
_PREFIXES = [None, b"", b"a", b"ab", b"b", b"zz", b"\x00", b"\xfe", b"\xff", b"\xff\xff", b"a\xff"]
_RANGED = {
    key: b"<" + key + b">"
    for key in (
        b"", b"\x00", b"\x00\x00", b"a", b"a\x00", b"a\xff", b"a\xff\xff", b"a\xff\xff\x00", b"ab", b"abc",
        b"b", b"ba", b"c", b"\xfe\xff", b"\xff", b"\xff\x00", b"\xff\xff", b"\xff\xff\x00", b"\xff" * 4,
    )
}  # fmt: skip


def in_range(
    entries: Mapping[bytes, bytes],
    start: bytes | None = None,
    stop: bytes | None = None,
    prefix: bytes | None = None,
    reverse: bool = False,
) -> list[tuple[bytes, bytes]]:
    """What `range` with these arguments must give."""
    return [
        (key, entries[key])
        for key in sorted(entries, reverse=reverse)
        if (start is None or key >= start)
        and (stop is None or key < stop)
        and (prefix is None or key.startswith(prefix))
    ]


@reading
def range_with_every_combination_of_arguments(make: Make) -> None:
    m = make(_RANGED)
    for start, stop, prefix, reverse in itertools.product(_BOUNDS, _BOUNDS, _PREFIXES, (False, True)):
        arguments = {"start": start, "stop": stop, "prefix": prefix, "reverse": reverse}
        found = list(m.range(start, stop, prefix=prefix, reverse=reverse))
        assert found == in_range(_RANGED, start, stop, prefix, reverse), arguments


@reading
def range_over_many_entries(make: Make) -> None:
    entries = random_entries(3, 3000)
    m = make(entries)
    rng = random.Random(4)
    keys = sorted(entries)
    for _ in range(60):
        start, stop = (rng.choice((None, rng.choice(keys), rng.choice(keys) + b"\x00")) for _ in range(2))
        prefix = rng.choice((None, None, rng.choice(keys)[: rng.randrange(4)], b"user:", b"\xff"))
        reverse = rng.random() < 0.5
        arguments = {"start": start, "stop": stop, "prefix": prefix, "reverse": reverse}
        found = list(m.range(start, stop, prefix=prefix, reverse=reverse))
        assert found == in_range(entries, start, stop, prefix, reverse), arguments


@reading
def range_takes_bounds_by_position_or_name_and_of_every_type(make: Make) -> None:
    m = make(ABC)
    expected = [(b"b", b"2")]
    assert list(m.range("b", "c")) == expected
    assert list(m.range(start=bytearray(b"b"), stop=memoryview(b"c"))) == expected
    for prefix in ("b", bytearray(b"b"), memoryview(b"b")):
        assert list(m.range(prefix=prefix)) == expected
    with pytest.raises(TypeError):
        m.range(None, None, b"b")  # prefix only by name
    for wrong in ({"start": 1}, {"stop": 1}, {"prefix": 1}):
        with pytest.raises(TypeError, match=r"\bint\b"):
            list(m.range(**wrong))


@reading
def range_is_lazy(make: Make) -> None:
    pairs = make(ABC).range()
    assert iter(pairs) is pairs
    assert next(pairs) == (b"a", b"1")
    assert list(pairs) == [(b"b", b"2"), (b"c", b"3")]
    assert list(pairs) == []


# -- writing


def _same(m: Any, expected: Mapping[bytes, bytes]) -> None:
    """Every way of looking at `m` shows these entries."""
    assert dict(m.items()) == expected
    assert list(m) == sorted(expected)
    assert len(m) == len(expected)
    assert m == expected
    assert bool(m) is bool(expected)


@writing
def it_is_a_mutable_mapping(make: Make) -> None:
    assert isinstance(make({}), MutableMapping)


@writing
def set_replace_and_delete(make: Make) -> None:
    m = make({})
    m[b"k"] = b"1"
    _same(m, {b"k": b"1"})
    m["k"] = "2"
    _same(m, {b"k": b"2"})
    m[b"a"] = b""
    _same(m, {b"a": b"", b"k": b"2"})
    del m["k"]
    _same(m, {b"a": b""})
    assert b"k" not in m
    del m[b"a"]
    _same(m, {})


@writing
def keys_and_values_go_in_as_str_bytes_bytearray_or_memoryview(make: Make) -> None:
    m = make({})
    kinds: list[Callable[[bytes], Any]] = [bytes.decode, bytes, bytearray, memoryview]
    for i, (to_key, to_value) in enumerate(itertools.product(kinds, kinds)):
        key, value = f"ä{i}".encode(), f"€{i}".encode()
        m[to_key(key)] = to_value(value)
        assert m[key] == value
        assert m.setdefault(to_key(key + b"d"), to_value(value)) == value
        m.update({key + b"u": to_value(value)})
        assert m.pop(key.decode() + "u") == value
        assert type(m[key + b"d"]) is bytes
    m[b"strided"] = memoryview(b"a-b-c-")[::2]
    assert m[b"strided"] == b"abc"


@writing
def update_takes_pairs_of_any_kind_and_the_last_of_a_key_counts(make: Make) -> None:
    for pairs in (
        [("a", "1"), (b"a", "2"), ("a", "3")],
        [(b"a", b"1"), (b"a", b"3")],
        ((b"a", b"2"), (bytearray(b"a"), memoryview(b"3"))),
        iter([(b"a", b"2"), ("a", b"3")]),
        [iter((b"a", b"2")), iter((b"a", b"3"))],
        ["xy", [b"a", b"3"]],
    ):
        mapping = make({})
        mapping.update(pairs)
        mapping.pop("x", None)
        assert dict(mapping.items()) == {b"a": b"3"}
    mapping = make(ABC)
    mapping.update([])
    for wrong in ([(b"a",)], [7], [(b"a", 7)], [(7, b"a")]):
        with pytest.raises((TypeError, ValueError)):
            mapping.update(wrong)
    assert dict(mapping.items()) == ABC


@writing
def what_was_stored_does_not_change_with_its_buffer(make: Make) -> None:
    m = make({})
    key, value = bytearray(b"key"), bytearray(b"value")
    m[key] = value
    m.update({memoryview(b"k2").tobytes(): value})
    key[:], value[:] = b"xxx", b"xxxxx"
    _same(m, {b"key": b"value", b"k2": b"value"})


@writing
def a_subclass_of_bytes_comes_out_as_bytes(make: Make) -> None:
    class Special(bytes):
        pass

    m = make({})
    m[Special(b"k")] = Special(b"v")
    assert type(m[b"k"]) is bytes
    assert _all_bytes(m)


@writing
def wrong_types_are_type_errors_and_change_nothing(make: Make) -> None:
    m = make(ABC)

    def delete(key: Any) -> None:
        del m[key]

    for wrong, name in ((1, "int"), (None, "NoneType"), (1.5, "float"), ([], "list"), (object(), "object")):
        for write in (lambda k: m.__setitem__(k, b""), delete, m.pop, lambda k: m.pop(k, b""),
                      lambda k: m.setdefault(k, b""), lambda k: m.update([(k, b"")])):  # fmt: skip
            with pytest.raises(TypeError, match=rf"key.*\b{name}\b"):
                write(wrong)
        for write in (lambda v: m.__setitem__(b"new", v), lambda v: m.setdefault(b"new", v),
                      lambda v: m.update({b"new": v}), lambda v: m.update(new=v)):  # fmt: skip
            with pytest.raises(TypeError, match=rf"value.*\b{name}\b"):
                write(wrong)
    with pytest.raises(UnicodeEncodeError):
        m["new"] = "\udc80"
    _same(m, ABC)


@writing
def deleting_a_missing_key_is_a_key_error_with_the_key_as_passed(make: Make) -> None:
    m = make(ABC)
    for key in ("missing", b"missing", bytearray(b"missing")):
        with pytest.raises(KeyError) as caught:
            del m[key]
        assert caught.value.args[0] is key
        with pytest.raises(KeyError) as caught:
            m.pop(key)
        assert caught.value.args[0] is key
    _same(m, ABC)


@writing
def setdefault_returns_the_stored_bytes(make: Make) -> None:
    m = make({b"a": b"", b"b": b"2"})
    assert m.setdefault("a", b"x") == b""
    assert m.setdefault(b"b", None) == b"2"  # the default is not needed
    assert m.setdefault(b"b") == b"2"
    stored = m.setdefault("new", "text")
    assert (stored, type(stored)) == (b"text", bytes)
    with pytest.raises(TypeError, match="value"):
        m.setdefault(b"other")
    _same(m, {b"a": b"", b"b": b"2", b"new": b"text"})


@writing
def pop_returns_the_value_or_the_default(make: Make) -> None:
    m = make({**ABC, b"empty": b""})
    assert m.pop("b") == b"2"
    assert m.pop(b"empty", b"x") == b""
    default = object()
    assert m.pop(b"b", default) is default
    assert m.pop(b"b", None) is None
    with pytest.raises(KeyError):
        m.pop(b"b")
    _same(m, {b"a": b"1", b"c": b"3"})


@writing
def popitem_takes_one_entry_after_the_other(make: Make) -> None:
    m = make(ABC)
    left = dict(ABC)
    while left:
        key, value = m.popitem()
        assert left.pop(key) == value
        _same(m, left)
    with pytest.raises(KeyError):
        m.popitem()


@writing
def update_takes_what_dict_update_takes(make: Make) -> None:
    class OnlyKeys:
        def keys(self) -> list[str]:
            return ["only"]

        def __getitem__(self, key: str) -> str:
            return key * 2

    m = make({b"a": b"0"})
    m.update({"a": "1", b"b": bytearray(b"2")})
    m.update([("c", "3"), (b"c", b"4")])  # the last one wins
    m.update((key, value) for key, value in [(b"d", b"5")])
    m.update({b"e": b"6"}, f="7", other="8", self="9")
    m.update(OnlyKeys())
    m.update(make({b"m": b"10"}))
    m.update()
    m.update({})
    _same(m, {b"a": b"1", b"b": b"2", b"c": b"4", b"d": b"5", b"e": b"6", b"f": b"7", b"other": b"8",
              b"self": b"9", b"only": b"onlyonly", b"m": b"10"})  # fmt: skip


@writing
def update_that_raises_changes_nothing(make: Make) -> None:
    def broken() -> Iterator[tuple[bytes, bytes]]:
        yield b"new", b"1"
        raise LookupError

    m = make(ABC)
    with pytest.raises(LookupError):
        m.update(broken())
    with pytest.raises(TypeError):
        m.update({b"new": b"1", b"newer": 2})
    with pytest.raises((TypeError, ValueError)):
        m.update([(b"new", b"1"), b"no pair"])
    _same(m, ABC)


@writing
def clear_empties(make: Make) -> None:
    m = make(random_entries(5, 500))
    m.clear()
    _same(m, {})
    m.clear()
    m[b"k"] = b"v"
    _same(m, {b"k": b"v"})


@writing
def empty_keys_empty_values_and_nul_bytes_are_ordinary(make: Make) -> None:
    m = make({})
    entries = {b"": b"", b"\x00": b"\x00\x00", b"\x00\x00": b"", b"a\x00b": b"c\x00d", b"a\x00": b"x"}
    entries[b"\xff" * 9] = b""
    for count, (key, value) in enumerate(entries.items(), 1):
        m[key] = value
        assert len(m) == count
    _same(m, entries)
    assert m.first() == (b"", b"")
    for key in list(entries):
        del m[key]
        del entries[key]
        _same(m, entries)


@writing
def values_of_a_megabyte(make: Make) -> None:
    rng = random.Random(6)
    m = make({})
    entries = {b"%d" % i: rng.randbytes(LARGE + i) for i in range(3)}
    for key, value in entries.items():
        m[key] = value
    assert all(m[key] == value for key, value in entries.items())
    m[b"1"] = entries[b"1"] = entries[b"1"][::-1]
    m[b"0"] = entries[b"0"] = b"small"
    del m[b"2"], entries[b"2"]
    _same(m, entries)


@writing
def keys_of_every_length(make: Make) -> None:
    m = make({})
    stem = random.Random(7).randbytes(LONG)
    lengths = (1, 255, 256, 510, 511, 512, 2000, 4095, 4096, 4097, 65535, 65536, LONG)
    entries = {stem[:length]: b"%d" % length for length in lengths}
    entries |= {stem[: length - 1] + bytes([stem[length - 1] ^ 1]): b"twin" for length in lengths}
    for key, value in entries.items():
        m[key] = value
    _same(m, entries)
    assert all(m[key] == value for key, value in entries.items())
    assert m.get(stem[:-2]) is None
    assert list(m.range(prefix=stem[:65536])) == in_range(entries, prefix=stem[:65536])
    for key in sorted(entries)[::2]:
        del m[key], entries[key]
    _same(m, entries)


@writing
def many_random_writes_match_a_dict(make: Make) -> None:
    rng = random.Random(8)
    m, model = make({}), dict[bytes, bytes]()
    keys = sorted(random_entries(9, 150))
    for step in range(600):
        key, value = rng.choice(keys), rng.randbytes(rng.choice((0, 1, 50, 400)))
        action = rng.randrange(8)
        if action < 4:
            m[key] = model[key] = value
        elif action == 4:
            assert m.pop(key, None) == model.pop(key, None), step
        elif action == 5:
            assert m.setdefault(key, value) == model.setdefault(key, value), step
        elif action == 6:
            batch = {rng.choice(keys): value for _ in range(rng.randrange(5))}
            m.update(batch)
            model.update(batch)
        else:
            start, reverse = rng.choice(keys), rng.random() < 0.5
            assert list(m.range(start, reverse=reverse)) == in_range(model, start, reverse=reverse), step
        assert (len(m), m.get(key)) == (len(model), model.get(key)), step
    _same(m, model)


# -- writing while iterating


@writing
def an_iterator_sees_the_state_at_its_start(make: Make) -> None:
    entries = {b"%04d" % i: b"%d" % i for i in range(300)}
    m = make(entries)
    ways: list[Callable[[], Iterator[Any]]] = [
        lambda: iter(m), lambda: reversed(m), lambda: iter(m.items()), lambda: iter(m.values()), m.range,
        lambda: m.range(b"0100", b"0200", reverse=True), lambda: m.range(prefix=b"01"),
    ]  # fmt: skip
    expected = [list(way()) for way in ways]
    unstarted, started = [way() for way in ways], [way() for way in ways]
    begun = [next(iterator) for iterator in started]
    m[b"0000"] = b"changed"
    m[b"00005"] = b"new"
    m[b"01555"] = b"new"
    del m[b"0150"], m[b"0299"]
    m.update({b"0151": b"changed", b"9": b"new"})
    for i, (first, late) in enumerate(zip(begun, started, strict=True)):
        assert [first, *late] == expected[i], i
        assert list(unstarted[i]) == expected[i], i
    m.clear()
    assert [list(way()) for way in ways] == [[] for _ in ways]


@writing
def a_view_shows_the_state_when_it_is_iterated(make: Make) -> None:
    m = make(ABC)
    items, values = m.items(), m.values()
    m[b"d"] = b"4"
    del m[b"a"]
    assert list(items) == [(b"b", b"2"), (b"c", b"3"), (b"d", b"4")]
    assert list(values) == [b"2", b"3", b"4"]
    assert len(items) == len(values) == 3


@writing
def every_mutation_is_legal_during_iteration(make: Make) -> None:
    entries = {b"%03d" % i: b"v" for i in range(100)}
    m = make(entries)
    seen = []
    for key in m:
        seen.append(key)
        del m[key]
        m[key + b"x"] = b"new"
    assert seen == sorted(entries)
    _same(m, {key + b"x": b"new" for key in entries})
    for i, (key, _) in enumerate(m.items()):
        m[key] = b"%d" % i
    assert sorted(map(int, m.values())) == list(range(100))
    for _ in m.values():
        m.popitem()
    _same(m, {})
    m[b"a"] = b"1"
    for _ in m.range():
        m.clear()
    _same(m, {})


# -- what only databases have


@keyed
def keys_are_a_list_of_bytes(make: Make) -> None:
    assert make({}).keys() == []
    m = make({b"b": b"", b"a": b""})
    keys = m.keys()
    assert type(keys) is list
    assert keys == [b"a", b"b"]
    assert _all_bytes(keys)
    for key in m.keys():  # noqa: SIM118 - a list, whatever is deleted
        del m[key]
    assert m.keys() == []
    assert keys == [b"a", b"b"]


@keyed
def get_many_returns_what_is_live(make: Make) -> None:
    m = make({**ABC, b"empty": b""})
    found = m.get_many(["a", bytearray(b"c"), b"missing", memoryview(b"empty"), b"a"])
    assert type(found) is dict
    assert found == {b"a": b"1", b"c": b"3", b"empty": b""}
    assert _all_bytes(found)
    assert m.get_many(iter([b"b"])) == {b"b": b"2"}
    assert m.get_many([]) == {}
    assert make({}).get_many([b"a"]) == {}
    with pytest.raises(TypeError, match=r"key.*\bint\b"):
        m.get_many([b"a", 1])


@keyed
def firstkey_and_nextkey_walk_over_all_keys(make: Make) -> None:
    entries = random_entries(10, 200) | {b"": b"", b"\x00": b"", b"\xff": b""}
    m = make(entries)
    walked = []
    key = m.firstkey()
    while key is not None:
        walked.append(key)
        key = m.nextkey(key)
    assert walked == sorted(entries)
    assert make({}).firstkey() is None


@keyed
def nextkey_takes_keys_that_are_missing_and_of_every_type(make: Make) -> None:
    m = make(ABC)
    assert m.nextkey(b"") == b"a"
    assert m.nextkey("a") == b"b"
    assert m.nextkey(bytearray(b"aa")) == b"b"
    assert m.nextkey(memoryview(b"b")) == b"c"
    assert m.nextkey(b"c") is None
    assert m.nextkey(b"z") is None
    with pytest.raises(TypeError, match=r"\bint\b"):
        m.nextkey(1)


@keyed
def repr_shows_no_content(make: Make) -> None:
    text = repr(make({b"secret key": b"secret value"}))
    assert "secret" not in text
    assert len(text) < 500


@keyed
def a_handle_can_be_neither_pickled_nor_copied(make: Make) -> None:
    m = make({})
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=f"cannot copy or pickle a {type(m).__name__}: .* open the file again"):
            way(m)


# -- read only


@read_only
def every_write_is_refused(make: Make) -> None:
    m = make(ABC)

    def delete(key: bytes) -> None:
        del m[key]

    writes: list[Callable[[], object]] = [
        lambda: m.__setitem__(b"a", b"x"), lambda: m.__setitem__("new", "x"), lambda: delete(b"a"),
        lambda: delete(b"missing"), lambda: m.setdefault(b"new", b"x"), lambda: m.pop(b"a"),
        lambda: m.pop(b"a", None), m.popitem, lambda: m.update({b"a": b"x"}), m.clear,
    ]  # fmt: skip
    for write in writes:
        with pytest.raises(ReadOnlyError):
            write()
    assert m == ABC
    with pytest.raises(ReadOnlyError):
        make({}).clear()


@read_only
def a_transaction_is_refused(make: Make) -> None:
    with pytest.raises(ReadOnlyError), make(ABC).transaction():
        pytest.fail("a transaction began on a read-only handle")


@read_only
def reorganize_is_refused(make: Make) -> None:
    with pytest.raises(ReadOnlyError):
        make(ABC).reorganize()


@read_only
def what_writes_nothing_is_allowed(make: Make) -> None:
    m = make(ABC)
    assert m.readonly
    m.sync()
    m.update({})
    m.update()
    assert m.setdefault(b"a", b"x") == b"1"
    assert m.pop(b"missing", None) is None
    assert m.pop(b"missing", b"default") == b"default"
    assert m == ABC


@read_only
def wrong_types_are_type_errors_here_too(make: Make) -> None:
    m = make(ABC)
    with pytest.raises(TypeError, match=r"key.*\bint\b"):
        m[1] = b"x"
    with pytest.raises(TypeError, match=r"value.*\bint\b"):
        m[b"a"] = 1


# -- closing


@closing
def every_use_of_a_closed_handle_is_a_closed_error(make: Make) -> None:
    m = make(ABC)
    items, values, iterator, pairs = m.items(), m.values(), iter(m), m.range()
    next(iterator), next(pairs)
    m.close()

    def delete(key: bytes) -> None:
        del m[key]

    uses: list[Callable[[], object]] = [
        lambda: m[b"a"], lambda: m[b"missing"], lambda: m["a"], lambda: m.get(b"a"), lambda: b"a" in m,
        lambda: len(m), lambda: bool(m), lambda: list(m), lambda: list(reversed(m)), m.keys,
        lambda: list(m.items()), lambda: list(m.values()), lambda: list(items), lambda: list(values),
        lambda: next(iterator), lambda: next(pairs), lambda: list(m.range()), m.first, m.last, m.firstkey,
        lambda: m.nextkey(b"a"), lambda: m.get_many([b"a"]), lambda: m == {},
        lambda: m.__setitem__(b"a", b"x"), lambda: delete(b"a"), lambda: m.setdefault(b"a", b"x"),
        lambda: m.pop(b"a"), lambda: m.pop(b"missing", None), m.popitem, lambda: m.update({b"a": b"x"}),
        m.clear, m.sync,
    ]  # fmt: skip
    for i, use in enumerate(uses):
        with pytest.raises(ClosedError) as caught:
            use()
        assert CLOSED_TEXT in str(caught.value), i
        assert isinstance(caught.value, error)


@closing
def the_other_methods_of_a_closed_handle_raise_too(make: Make) -> None:
    m = make(ABC)
    m.close()
    for name in ("snapshot", "check", "stats", "reorganize"):
        with pytest.raises(ClosedError):
            getattr(m, name)()
    with pytest.raises(ClosedError), m.transaction():
        pytest.fail("a transaction began on a closed handle")


@closing
def closing_twice_is_harmless(make: Make) -> None:
    m = make(ABC)
    assert not m.closed
    m.close()
    assert m.closed
    m.close()
    assert m.closed
    repr(m)


@closing
def the_with_statement_closes(make: Make) -> None:
    m = make(ABC)
    with m as entered:
        assert entered is m
        assert m[b"a"] == b"1"
    assert m.closed
    m = make(ABC)
    with pytest.raises(LookupError), m:
        raise LookupError
    assert m.closed


@closing
def a_handle_is_not_initialised_twice(make: Make) -> None:
    m = make(ABC)
    with pytest.raises(error, match="reinitialization"):
        m.__init__()
    assert m[b"a"] == b"1"
