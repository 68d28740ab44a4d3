"""Leaves and branches: encoded, searched, edited and decoded, against plain lists."""

from __future__ import annotations

import itertools
import struct
from bisect import bisect_right

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durabledbm._engine import node
from durabledbm._engine.kernels import PYTHON
from durabledbm._engine.node import (
    BRANCH_OVERHEAD,
    LEAF_OVERHEAD,
    Overflow,
    capacity,
    decode_branch,
    decode_leaf,
    edit_leaf,
    encode_branch,
    encode_leaf,
    find_child,
    find_value,
    grown_tail,
    has_overflow,
    leaf_keys,
    separator,
)
from durabledbm._engine.page import BRANCH, HEADER, LEAF, REF, pages_for, seal
from durabledbm._engine.pager import MALFORMED

PAGE_SIZE = 4096

cells = st.builds(Overflow.make, st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1))
small_keys = st.binary(max_size=6)
keys = st.one_of(small_keys, small_keys, st.integers(0, 300).map(lambda size: b"x" * size))
values = st.one_of(st.binary(max_size=12), st.integers(0, 2000).map(lambda size: b"v" * size))
entries = st.dictionaries(keys, st.one_of(values, values, cells), max_size=60)
small_entries = st.dictionaries(keys, values, max_size=60)


def sealed(flags: int, count: int, payload: bytes, page_size: int = PAGE_SIZE) -> bytes:
    return seal(LEAF, flags, count, 5, 6, page_size, payload)


def leaf_of(content: dict[bytes, bytes], page_size: int = PAGE_SIZE) -> bytes:
    order = sorted(content)
    flags, payload = encode_leaf(order, [content[key] for key in order], page_size)
    return sealed(flags, len(order), payload, page_size)


# -- leaves ----------------------------------------------------------------------------------------------------


@given(content=entries, page_size=st.sampled_from([4096, 16384, 65536]))
@example({}, 4096)
@example({b"": b""}, 4096)
@example({b"big": b"x" * 70_000}, 4096)
@example({b"k" * 70_000: b"", b"l": Overflow.make(bytes(16), 1)}, 4096)
@example({b"k": b"x" * (65536 - 36 - 7 - 1)}, 65536)
@example({b"k": b"x" * (65536 - 36 - 7)}, 65536)
def test_a_leaf_gives_back_its_entries(content: dict[bytes, bytes], page_size: int) -> None:
    leaf = leaf_of(content, page_size)
    order = sorted(content)
    assert leaf_keys(leaf) == order
    found_keys, found_values = decode_leaf(leaf)
    assert found_keys == order
    assert found_values == [content[key] for key in order]
    assert [type(value) for value in found_values] == [type(content[key]) for key in order]


@given(
    key_size=st.integers(0, 5), value_size=st.integers(0, 30), count=st.integers(0, 40), odd=st.binary(max_size=40),
    page_size=st.sampled_from([4096, 65536]), tail=st.sampled_from([0, 70_000]),
)  # fmt: skip
@example(key_size=0, value_size=0, count=1, odd=b"", page_size=4096, tail=0)
@example(key_size=3, value_size=70_000, count=2, odd=b"", page_size=4096, tail=0)
@example(key_size=0, value_size=24, count=3, odd=b"\xff", page_size=4096, tail=0)
def test_leaves_of_equal_entries_give_back_theirs_and_so_do_those_of_nearly_equal_ones(
    *, key_size: int, value_size: int, count: int, odd: bytes, page_size: int, tail: int
) -> None:
    equal = {n.to_bytes(key_size, "big"): bytes([n]) * value_size for n in range(count) if n < 256**key_size}
    for content in (equal, {**equal, b"\xff" * 6: odd}, {**equal, b"\xff" * 6: odd + bytes(tail)}):
        for _ in range(2):  # the second time its layout is known
            leaf = leaf_of(content, page_size)
            assert decode_leaf(leaf) == (list(content), list(content.values()))
            assert leaf_keys(leaf) == list(content)


def test_large_values_among_equal_entries_are_told_from_small_ones() -> None:
    large = Overflow.make(bytes(16), 1)
    content = {b"a": bytes(large), b"b": large, b"c": bytes(large)}
    assert [type(value) for value in decode_leaf(leaf_of(content))[1]] == [bytes, Overflow, bytes]
    assert has_overflow(leaf_of(content))
    assert not has_overflow(leaf_of({b"a": bytes(large)}))


def test_few_layouts_of_leaves_are_remembered() -> None:
    for size in range(2000):
        PYTHON["decode_leaf"](leaf_of({b"k": b"v" * size}))
    assert 0 < len(node._EQUAL) <= 512


@pytest.mark.parametrize(
    "offsets", [(0, 1, 3, 2, 4), (1, 2, 3, 4, 5), (0, 5, 2, 3, 4), (0, 1, 2, 3, 9999), (9, 7, 5, 3, 1)]
)
def test_cells_that_are_not_side_by_side_are_refused(offsets: tuple[int, ...]) -> None:
    payload = b"fp" + struct.pack("<5H", *offsets) + b"abcdefghij"
    for read in (decode_leaf, leaf_keys):
        with pytest.raises(MALFORMED):
            read(sealed(0, 2, payload))


@given(content=entries, others=st.lists(keys, max_size=20))
@example({b"k" * 70_000: b"v", b"l": b"w"}, [b"k", b"k" * 69_999, b"l" * 2])
def test_a_key_is_found_in_a_leaf_exactly_if_it_is_live(content: dict[bytes, bytes], others: list[bytes]) -> None:
    leaf = leaf_of(content)
    for key in [*content, *others]:
        found = find_value(leaf, key)
        assert found == content.get(key)
        if found is not None:
            assert type(found) is type(content[key])


def test_keys_with_the_same_fingerprint_are_told_apart() -> None:
    alike: dict[int, list[bytes]] = {}
    for n in range(20_000):
        key = b"%d" % n
        alike.setdefault(node._fingerprints([key])[0], []).append(key)
    crowd = sorted(max(alike.values(), key=len)[:40])
    leaf = leaf_of({key: b"value of " + key for key in crowd})
    for key in crowd:
        assert find_value(leaf, key) == b"value of " + key
    assert find_value(leaf, crowd[0] + b"!") is None


def test_a_key_that_stands_where_another_begins_is_not_found() -> None:
    """Not by its bytes in the leaf: only if an entry says that a key begins and ends there."""
    leaf = leaf_of({b"abc": b"def", b"abd": b"abc"})
    for text in (b"a", b"ab", b"bc", b"abcd", b"def", b"abcdef"):
        assert find_value(leaf, text) is None


@given(content=small_entries)
def test_capacity_tells_what_fits_in_a_page(content: dict[bytes, bytes]) -> None:
    """With the overhead of each entry, and not a byte more."""
    content.pop(b"filler", None)
    used = sum(len(key) + len(value) + LEAF_OVERHEAD for key, value in content.items())
    room = capacity(1, PAGE_SIZE) - used - LEAF_OVERHEAD - len(b"filler")
    if room < 0:
        return
    order = sorted([*content, b"filler"])
    for extra, page_count in ((0, 1), (1, 2)):
        full = {**content, b"filler": b"x" * (room + extra)}
        payload = encode_leaf(order, [full[key] for key in order], PAGE_SIZE)[1]
        assert pages_for(len(payload), PAGE_SIZE) == page_count


def test_a_large_value_is_named_by_its_ref_and_length() -> None:
    ref = REF.pack(77, 3, 99)
    cell = Overflow.make(ref, 2**40)
    assert (cell.ref, cell.length, len(cell)) == (ref, 2**40, Overflow.SIZE)


# -- editing a leaf in its bytes ---------------------------------------------------------------------------------


@given(
    content=small_entries,
    changes=st.dictionaries(keys, st.one_of(st.none(), values), min_size=1, max_size=6),
)
def test_an_edited_leaf_is_the_leaf_with_the_changes(
    content: dict[bytes, bytes], changes: dict[bytes, bytes | None]
) -> None:
    edited = edit_leaf(leaf_of(content), changes, sorted(changes), (0, 30_000, 10**6))
    if pages_for(len(encode_leaf(sorted(content), [content[k] for k in sorted(content)], 4096)[1]), 4096) > 8:
        assert edited is None
        return
    assert edited is not None
    count, growth, parts = edited
    expected = {**content, **changes}
    left = {key: value for key, value in expected.items() if value is not None}
    assert sealed(0, count, b"".join(parts)) == leaf_of(left)
    assert (count, growth) == (len(left), len(left) - len(content))


def test_a_leaf_is_edited_only_if_the_result_is_within_the_limits() -> None:
    leaf = leaf_of({b"a": b"1" * 100, b"b": b"2" * 100})
    size = len(encode_leaf([b"a", b"b"], [b"1" * 100, b"2" * 100], PAGE_SIZE)[1])
    assert edit_leaf(leaf, {b"a": b"3" * 100}, [b"a"], (size, size, 4096)) is not None
    assert edit_leaf(leaf, {b"a": b"3" * 101}, [b"a"], (size, size, 4096)) is None
    assert edit_leaf(leaf, {b"a": b"3" * 99}, [b"a"], (size, size, 4096)) is None
    assert edit_leaf(leaf, {b"c": b""}, [b"c"], (0, size, 4096)) is None
    assert edit_leaf(leaf, {b"a": None}, [b"a"], (size, 2 * size, 4096)) is None


@pytest.mark.parametrize("changes", [{b"b" * 70_000: b"2"}, {b"b" * 70_000: b"2", b"c": b"3"}])
def test_a_key_that_no_offset_reaches_over_is_not_edited_in(changes: dict[bytes, bytes]) -> None:
    assert edit_leaf(leaf_of({b"a": b"1", b"d": b"4"}), changes, sorted(changes), (0, 4000, 2048)) is None


def test_a_leaf_is_not_edited_to_hold_a_value_that_belongs_in_a_run_of_its_own() -> None:
    leaf = leaf_of({b"a": b"1"})
    assert edit_leaf(leaf, {b"a": b"2" * 2048}, [b"a"], (0, 4000, 2048)) is not None
    assert edit_leaf(leaf, {b"a": b"2" * 2049}, [b"a"], (0, 4000, 2048)) is None


def test_a_leaf_with_large_values_is_not_edited_in_its_bytes() -> None:
    cell = Overflow.make(bytes(16), 5)
    limits = (0, 4000, 4096)
    assert edit_leaf(leaf_of({b"a": b"1", b"b": cell}), {b"a": b"2"}, [b"a"], limits) is None
    assert edit_leaf(leaf_of({b"a": b"1"}), {b"b": cell}, [b"b"], limits) is None


@given(numbers=st.lists(st.integers(0, 40_000), max_size=700), delta=st.integers(-40_000, 25_000))
@example([0] * 600, 65535)
@example([65535] * 600, -65535)
def test_shifting_offsets_adds_to_each(numbers: list[int], delta: int) -> None:
    numbers = [number for number in numbers if 0 <= number + delta < 65536]
    layout = f"<{len(numbers)}H"
    shifted = node._shifted(struct.pack(layout, *numbers), delta)
    assert shifted == struct.pack(layout, *(number + delta for number in numbers))


# -- branches ----------------------------------------------------------------------------------------------------


def branch_of(separators: list[bytes], refs: list[bytes], page_size: int = PAGE_SIZE) -> bytes:
    payload = b"".join(refs) + encode_branch(separators, page_size)
    return seal(BRANCH, 0, len(refs), 5, 6, page_size, payload)


@given(
    separators=st.lists(keys, max_size=60, unique=True).map(sorted),
    page_size=st.sampled_from([4096, 65536]),
    salt=st.binary(min_size=8, max_size=8),
)
@example([b"s" * 30_000, b"t" * 40_000], 4096, b"12345678")
@example([b"s"] * 3600, 65536, b"12345678")
def test_a_branch_gives_back_its_children(separators: list[bytes], page_size: int, salt: bytes) -> None:
    refs = [salt + n.to_bytes(8, "little") for n in range(len(separators) + 1)]
    run = branch_of(separators, refs, page_size)
    branch = decode_branch(run)
    assert branch.separators == separators
    assert branch.refs == refs
    assert b"".join(branch.refs) + branch.tail == run[HEADER.size : -4][: len(b"".join(refs)) + len(branch.tail)]


@given(separators=st.lists(keys, min_size=1, max_size=60, unique=True).map(sorted), at=st.integers(0, 59))
def test_a_separator_is_added_to_a_branch_without_decoding_it(separators: list[bytes], at: int) -> None:
    at %= len(separators)
    new = separators.pop(at)
    tail = encode_branch(separators, 65536)
    expected = encode_branch([*separators[:at], new, *separators[at:]], 65536)
    assert grown_tail(tail, len(separators) + 1, at, new) == expected


@pytest.mark.parametrize("page_size", [4096, 65536 * 2])
def test_a_branch_of_another_length_than_its_table_tells_is_refused(page_size: int) -> None:
    separators, refs = [b"b", b"dd"], [b"%016d" % n for n in range(3)]
    payload = b"".join(refs) + encode_branch(separators, page_size)
    run = seal(BRANCH, 0, 3, 7, 1, page_size, payload)
    assert decode_branch(run).separators == separators
    for forged in (payload[:-1], payload + b"x", payload[:48], payload[:10]):
        with pytest.raises(ValueError, match="cannot be"):
            decode_branch(seal(BRANCH, 0, 3, 7, 1, page_size, forged))


@given(separators=st.lists(keys, max_size=60, unique=True).map(sorted))
def test_capacity_tells_what_fits_in_a_branch(separators: list[bytes]) -> None:
    used = sum(map(len, separators)) + BRANCH_OVERHEAD * (len(separators) + 1)
    size = len(encode_branch(separators, PAGE_SIZE)) + REF.size * (len(separators) + 1)
    if used <= capacity(1, PAGE_SIZE):
        assert pages_for(size, PAGE_SIZE) == 1
    assert used == size or pages_for(size, PAGE_SIZE) > 16


ALPHABET = (0, 1, 2, 254, 255)
SHORT = sorted(bytes(text) for n in range(4) for text in itertools.product(ALPHABET, repeat=n))


@given(separators=st.lists(st.binary(max_size=6), max_size=60, unique=True), key=st.binary(max_size=6))
@example([b"k" * 70_000, b"l" * 4], b"l")
@example([], b"")
def test_a_child_is_found_in_the_bytes_of_a_branch_as_in_the_decoded_one(separators: list[bytes], key: bytes) -> None:
    separators.sort()
    refs = [bytes([n]) * 16 for n in range(len(separators) + 1)]
    payload = b"".join(refs) + encode_branch(separators, PAGE_SIZE)
    run = seal(BRANCH, 0, len(refs), 5, 6, PAGE_SIZE, payload)
    for wanted in (key, *separators, *(low + b"\0" for low in separators)):
        assert find_child(run, wanted) == refs[bisect_right(separators, wanted)]


@pytest.mark.parametrize("count", [0, 1, 10**6, 2**32 - 1])
def test_looking_for_a_child_in_nonsense_raises_nothing_unforeseen(count: int) -> None:
    for filling in (b"\0", b"\xff"):
        try:
            find_child(seal(BRANCH, 0, count, 5, 6, PAGE_SIZE, filling * 4000), b"key")
        except MALFORMED:
            pass


def test_a_separator_is_the_shortest_that_separates() -> None:
    for at, left in enumerate(SHORT):
        for right in SHORT[at + 1 :]:
            found = separator(left, right)
            assert left < found <= right
            assert all(not left < found[:size] <= right for size in range(len(found)))


@given(stem=st.integers(0, 5000), left=st.binary(max_size=3), right=st.binary(max_size=3))
def test_a_separator_of_long_keys_is_the_shortest_that_separates(stem: int, left: bytes, right: bytes) -> None:
    left, right = sorted((b"s" * stem + left, b"s" * stem + right))
    if left == right:
        return
    found = separator(left, right)
    assert left < found <= right
    assert right.startswith(found)
    assert not left < found[:-1]


# -- what is not a node ------------------------------------------------------------------------------------------


@given(
    count=st.integers(0, 2**32 - 1),
    flags=st.sampled_from([0, 1]),
    payload=st.binary(max_size=300),
    key=small_keys,
)
@example(2**32 - 1, 0, b"", b"")
@example(2**31, 1, b"\xff" * 300, b"x")
@example(10, 1, b"\xff" * 300, b"x")
def test_content_that_makes_no_sense_raises_nothing_unforeseen(
    count: int, flags: int, payload: bytes, key: bytes
) -> None:
    """A checksum is right and the content is nonsense: a file that was made to hurt."""
    run = sealed(flags, count, payload)
    for read in (leaf_keys, decode_leaf, decode_branch, lambda run: find_value(run, key)):
        try:
            read(run)
        except MALFORMED:
            pass


@pytest.mark.parametrize("count", [2**32 - 1, 2**31, 10**6])
def test_no_memory_is_taken_for_a_count_that_cannot_be(count: int) -> None:
    with pytest.raises(MALFORMED):
        decode_leaf(sealed(0, count, b""))
    with pytest.raises(MALFORMED):
        decode_branch(sealed(0, count, b""))
