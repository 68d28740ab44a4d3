"""The row cache: it holds what was put in and not taken out, within its limit."""

from __future__ import annotations

from durabledbm._engine.cache import RowCache


def found(rows: RowCache, key: bytes) -> bytes | None:
    value = rows.young.get(key)
    return rows.old.get(key) if value is None else value


def test_a_row_is_found_until_it_is_dropped() -> None:
    rows = RowCache(100_000)
    rows.keep(b"a", b"1")
    rows.keep(b"b", b"2")
    assert (found(rows, b"a"), found(rows, b"b"), found(rows, b"c")) == (b"1", b"2", None)
    rows.drop([b"a", b"c"])
    assert (found(rows, b"a"), found(rows, b"b")) == (None, b"2")


def test_a_row_is_dropped_from_both_generations() -> None:
    rows = RowCache(10_000)
    while not rows.old:
        rows.keep(b"%d" % len(rows.young), b"x")
    rows.keep(b"a", b"old")
    while b"a" in rows.young:
        rows.keep(b"%d" % len(rows.young), b"x")
    assert rows.old.get(b"a") == b"old"
    rows.keep(b"a", b"new")
    rows.drop([b"a"])
    assert found(rows, b"a") is None


def test_the_limit_is_kept() -> None:
    rows = RowCache(100_000)
    for n in range(5000):
        rows.keep(b"%d" % n, b"x" * 100)
    kept = [n for n in range(5000) if found(rows, b"%d" % n) is not None]
    assert 0 < sum(100 + len(b"%d" % n) + 200 for n in kept) <= 100_000
    assert kept[-1] == 4999
    assert kept == list(range(kept[0], 5000))


def test_what_fits_is_young() -> None:
    rows = RowCache(100_000)
    for n in range(350):
        rows.keep(b"%04d" % n, b"x" * 100)
    assert list(rows.young) == [b"%04d" % n for n in range(350)]
    assert not rows.old


def test_when_the_room_is_full_the_newer_half_stays() -> None:
    rows = RowCache(100_000)
    count = 0
    while not rows.old:
        rows.keep(b"%04d" % count, b"x" * 100)
        count += 1
    assert list(rows.old) == [b"%04d" % n for n in range((count - 1) // 2, count - 1)]
    assert list(rows.young) == [b"%04d" % (count - 1)]


def test_a_large_row_is_not_kept() -> None:
    rows = RowCache(100_000)
    rows.keep(b"a", b"x" * 4096)
    assert found(rows, b"a") is None
    rows.keep(b"a", b"x" * 4095)
    assert found(rows, b"a") is not None


def test_without_a_limit_nothing_is_kept() -> None:
    rows = RowCache(0)
    rows.keep(b"a", b"1")
    assert found(rows, b"a") is None


def test_clearing_takes_all_rows_out() -> None:
    rows = RowCache(2000)
    for n in range(20):
        rows.keep(b"%d" % n, b"x")
    rows.clear()
    assert not any(found(rows, b"%d" % n) for n in range(20))
    rows.keep(b"a", b"1")
    assert found(rows, b"a") == b"1"
