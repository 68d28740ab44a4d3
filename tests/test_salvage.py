"""salvage: what is saved of a broken file, and that the file itself is left as it is."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

import durabledbm
from durabledbm._engine.meta import META_AREA
from durabledbm._engine.page import LEAF, TYPE_NAMES, read_header
from durabledbm.salvage import Report, salvage

pytestmark = pytest.mark.leaves_damage


def content(rng: random.Random, count: int = 400) -> dict[bytes, bytes]:
    entries = {b"key %05d" % n: rng.randbytes(rng.randrange(150)) for n in range(count)}
    return {**entries, b"large": rng.randbytes(50_000), b"larger": rng.randbytes(200_000)}


def build(path: Path, page_size: int = 4096) -> dict[bytes, bytes]:
    """A database with a tree of some levels, a few large values, and changes in its meta page."""
    rng = random.Random(page_size)
    expected = content(rng)
    with durabledbm.open(path, "c", page_size=page_size) as db:
        db.update(expected)
        for key in [b"key %05d" % n for n in range(0, 40, 10)]:
            del db[key]
            del expected[key]
        db[b"key 00001"] = expected[b"key 00001"] = b"changed"
    return expected


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def saved(source: Path, target: Path) -> tuple[dict[bytes, bytes], Report]:
    """What `salvage` makes of the file; the file is the same afterwards, and the new one is sound."""
    before = hashlib.sha256(source.read_bytes()).digest()
    report = salvage(source, target)
    assert hashlib.sha256(source.read_bytes()).digest() == before
    assert sorted(path.name for path in target.parent.iterdir()) == sorted({source.name, target.name})
    with durabledbm.open(target) as db:
        assert db.check() == []
        assert len(db) == report.entries == report.from_tree + report.from_lost_pages
        return dict(db.items()), report


def pages_of(path: Path, kind: int, page_size: int = 4096) -> list[int]:
    data = path.read_bytes()
    ids = range(-(-META_AREA // page_size), len(data) // page_size)
    heads = ((page_id, read_header(data[page_id * page_size :])) for page_id in ids)
    return [page_id for page_id, head in heads if head.type == kind and head.page_id == page_id]


def test_an_intact_file_is_saved_completely_and_exactly(tmp_path: Path) -> None:
    expected = build(tmp_path / "a")
    found, report = saved(tmp_path / "a", tmp_path / "b")
    assert found == expected
    assert report.losses == []
    assert not report.deleted_may_reappear
    assert str(report) == f"{len(expected)} entries saved, 0 of them from pages outside of the tree"


@pytest.mark.parametrize("page_size", [4096, 8192, 65536])
def test_with_both_metas_lost_every_entry_of_the_tree_is_saved(tmp_path: Path, page_size: int) -> None:
    expected = content(random.Random(5))
    with durabledbm.open(tmp_path / "a", "c", page_size=page_size) as db:
        db.update(expected)
    damage(tmp_path / "a", 0, bytes(META_AREA))
    found, report = saved(tmp_path / "a", tmp_path / "b")
    assert found == expected
    assert report.commit is None
    assert report.page_size == page_size
    assert report.deleted_may_reappear
    assert "meta page" in str(report)


def test_without_metas_the_newest_version_of_each_key_is_taken(tmp_path: Path) -> None:
    rng = random.Random(1)
    expected: dict[bytes, bytes] = {}
    with durabledbm.open(tmp_path / "a", "c") as db:
        for version in range(6):
            changes = {b"key %03d" % n: b"%d " % version + rng.randbytes(100) for n in rng.sample(range(200), 120)}
            changes[b"large"] = b"%d" % version + rng.randbytes(9000)
            db.update(changes)
            expected.update(changes)
    damage(tmp_path / "a", 0, rng.randbytes(META_AREA))
    found, _ = saved(tmp_path / "a", tmp_path / "b")
    assert found == expected


@pytest.mark.parametrize("slot", [0, 1])
def test_with_one_meta_lost_everything_is_saved(tmp_path: Path, slot: int) -> None:
    expected = build(tmp_path / "a")
    damage(tmp_path / "a", slot * 4096 + 100, b"\xff" * 8)
    found, report = saved(tmp_path / "a", tmp_path / "b")
    assert found == expected
    assert report.commit is not None


@pytest.mark.parametrize("kind", [1, 2, 3], ids=TYPE_NAMES.get)
def test_a_lost_page_costs_no_entry_that_is_readable_elsewhere(tmp_path: Path, kind: int) -> None:
    expected = build(tmp_path / "a")
    pristine = (tmp_path / "a").read_bytes()
    for number, page_id in enumerate(pages_of(tmp_path / "a", kind)[:12]):
        (tmp_path / "a").write_bytes(pristine)
        damage(tmp_path / "a", page_id * 4096 + 2000, b"damage")
        found, report = saved(tmp_path / "a", tmp_path / f"b{number}")
        (tmp_path / f"b{number}").unlink()
        missing = expected.keys() - found.keys()
        wrong = {key for key in found if found[key] != expected.get(key)}
        assert len(missing) + len(wrong) < 60
        assert not wrong or report.deleted_may_reappear
        if kind == 2:
            assert not missing  # the leaves below are found without it
        if missing:
            assert report.unreadable


def test_deleted_entries_do_not_reappear_where_the_tree_is_readable(tmp_path: Path) -> None:
    with durabledbm.open(tmp_path / "a", "c") as db:
        db.update({b"%04d" % n: b"x" * 100 for n in range(1000)})
        with db.transaction():
            for n in range(0, 1000, 2):
                del db[b"%04d" % n]
        expected = dict(db.items())
    leaf = pages_of(tmp_path / "a", LEAF)[-1]
    damage(tmp_path / "a", leaf * 4096 + 1000, b"damage")
    found, _ = saved(tmp_path / "a", tmp_path / "b")
    assert len(found.keys() - expected.keys()) < 50


def test_a_truncated_file_gives_what_is_left(tmp_path: Path) -> None:
    expected = {b"key %05d" % n: b"%d" % n * 30 for n in range(2000)}
    with durabledbm.open(tmp_path / "a", "c") as db:
        db.update(expected)
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[: len(data) // 2 + 77])
    found, report = saved(tmp_path / "a", tmp_path / "b")
    assert found.items() <= expected.items()
    assert len(found) > 800
    assert report.unreadable


def test_the_target_must_not_exist_and_the_source_must(tmp_path: Path) -> None:
    build(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(durabledbm.error, match=r"(?i)exists"):
        salvage(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"mine"
    with pytest.raises(durabledbm.error, match=r"(?i)no such file|file not found|cannot find"):
        salvage(tmp_path / "none", tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(random.Random(3).randbytes(100_000))
    with pytest.raises(durabledbm.error, match="not a durabledbm database"):
        salvage(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_garbage_with_our_magic_saves_nothing_and_says_so(tmp_path: Path) -> None:
    build(tmp_path / "a")
    damage(tmp_path / "a", 16, random.Random(3).randbytes((tmp_path / "a").stat().st_size - 16))
    found, report = saved(tmp_path / "a", tmp_path / "b")
    assert found == {}
    assert report.unreadable


def test_progress_ends_at_the_number_of_pages(tmp_path: Path) -> None:
    build(tmp_path / "a")
    damage(tmp_path / "a", 0, bytes(META_AREA))
    calls: list[tuple[int, int | None]] = []
    salvage(tmp_path / "a", tmp_path / "b", progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
