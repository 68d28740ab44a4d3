"""The readers of other databases' files: right about what gdbm, Berkeley DB and LMDB wrote, and safe from damage.

These libraries wrote tests/data/old.gdbm.gz and old.db.gz (see support/make_old.py). Where this Python has the modules,
random databases that they write are compared, too.
"""

from __future__ import annotations

import gzip
import importlib
import random
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from make_old import DATA, ENTRIES

import durabledbm
from durabledbm._foreign.berkeley import BerkeleySource
from durabledbm._foreign.dumb import DumbSource
from durabledbm._foreign.gnu import GnuSource
from durabledbm._foreign.kinds import Found
from durabledbm._foreign.lmdb import LmdbSource
from durabledbm._foreign.sources import open_source

Entries = dict[bytes, bytes]


def put_gdbm(directory: Path) -> str:
    (directory / "old").write_bytes(gzip.decompress((DATA / "old.gdbm.gz").read_bytes()))
    return str(directory / "old")


def put_berkeley(directory: Path) -> str:
    (directory / "old.db").write_bytes(gzip.decompress((DATA / "old.db.gz").read_bytes()))
    return str(directory / "old.db")


def put_lmdb(directory: Path) -> str:
    lmdb = pytest.importorskip("lmdb")
    path = str(directory / "old")
    with lmdb.open(path, subdir=False, lock=False, map_size=2**24) as environment:
        for part in (ENTRIES, dict(list(ENTRIES.items())[::2])):
            with environment.begin(write=True) as transaction:
                for key, value in part.items():
                    transaction.put(key[:500], value)
    return path


def put_dumb(directory: Path) -> str:
    dumb: Any = importlib.import_module("dbm.dumb")
    with dumb.open(str(directory / "old"), "n") as db:
        for key, value in ENTRIES.items():
            db[key] = value
    return str(directory / "old")


PUT: dict[type, Callable[[Path], str]] = {
    GnuSource: put_gdbm,
    BerkeleySource: put_berkeley,
    LmdbSource: put_lmdb,
    DumbSource: put_dumb,
}
HELD: dict[type, Entries] = {LmdbSource: {key[:500]: value for key, value in ENTRIES.items()}}


@pytest.fixture(params=PUT, ids=lambda reader: reader.__name__)
def reader(request: pytest.FixtureRequest) -> Any:
    return request.param


def read(reader: Any, path: str) -> tuple[list[tuple[bytes, bytes]], list[str]]:
    """All entries, and what was said of damage."""
    said: list[str] = []
    with closing(reader(path, said.append)) as source:
        return list(source.entries()), said


def test_every_entry_is_read_once(reader: Any, tmp_path: Path) -> None:
    entries, said = read(reader, PUT[reader](tmp_path))
    assert said == []
    assert len(entries) == len(dict(entries))
    assert dict(entries) == HELD.get(reader, ENTRIES)


def test_entries_may_be_read_again(reader: Any, tmp_path: Path) -> None:
    with closing(reader(PUT[reader](tmp_path), pytest.fail)) as source:
        first = list(source.entries())
        assert list(source.entries()) == first
        if source.ordered:
            assert first == sorted(first)


@pytest.mark.parametrize("seed", range(25))
def test_damage_is_told_or_raised_and_never_more_than_an_error(reader: Any, tmp_path: Path, seed: int) -> None:
    numbers = random.Random(seed)
    path = PUT[reader](tmp_path)
    victim = numbers.choice(sorted(tmp_path.iterdir()))
    data = bytearray(victim.read_bytes())
    for _ in range(numbers.choice((1, 1, 5, 50))):
        at = numbers.choice((numbers.randrange(len(data)), numbers.randrange(min(len(data), 300))))
        match numbers.randrange(4):
            case 0:
                data[at] = numbers.randrange(256)
            case 1:
                piece = min(numbers.randrange(1, 5000), len(data) - at)
                data[at : at + piece] = bytes(piece)
            case 2:
                data[at : at + 4] = numbers.choice((b"\xff" * 4, b"\0\0\0\x80", b"\x01\0\0\0", b"((((", b"'\\x'"))
            case 3:
                del data[max(at, 1) :]
    victim.write_bytes(data)
    try:
        entries, _ = read(reader, path)
    except durabledbm.error:
        return
    assert sum(len(key) + len(value) for key, value in entries) < 2**26


def test_a_file_that_was_cut_off_is_damaged_and_the_rest_is_read(reader: Any, tmp_path: Path) -> None:
    path = PUT[reader](tmp_path)
    victim = Path(path + ".dat") if reader is DumbSource else Path(path)
    data = victim.read_bytes().rstrip(b"\0")  # LMDB's file is as long as its map on Windows
    victim.write_bytes(data[: 2 * len(data) // 3])
    entries, said = read(reader, path)
    assert said
    assert set(entries) < set(HELD.get(reader, ENTRIES).items())


# -- single kinds ----------------------------------------------------------------------------------------------------


def test_a_key_of_gdbm_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = Path(put_gdbm(tmp_path))
    data = path.read_bytes()
    at = data.rindex(b"bytes beyond ASCII") - 1  # the last byte of its key
    path.write_bytes(data[:at] + b"?" + data[at + 1 :])
    entries, said = read(GnuSource, str(path))
    assert len(said) == 1
    assert len(entries) == len(ENTRIES) - 1


def test_a_key_of_gdbm_from_a_machine_with_another_char_is_the_same_key(tmp_path: Path) -> None:
    """The hash of bytes from 128 up is another one on ARM. It is computed here as C does it there."""
    key = bytes(range(120, 140))
    value = 0x238F13AF * len(key) % 2**32
    for at, byte in enumerate(key):
        value = (value + (byte << (at * 5 % 24))) & 0x7FFFFFFF
    value = (1103515243 * value + 12345) & 0x7FFFFFFF
    path = Path(put_gdbm(tmp_path))
    data = path.read_bytes()
    at = data.index(struct.pack("<4s", key[:4]) + struct.pack("<Q", data.rindex(key))) - 4
    path.write_bytes(data[:at] + struct.pack("<I", value) + data[at + 4 :])
    entries, said = read(GnuSource, str(path))
    assert said == []
    assert dict(entries) == ENTRIES


def test_a_gdbm_file_that_a_program_writes_is_busy(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = put_gdbm(tmp_path)
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(durabledbm.BusyError):
            GnuSource(path, pytest.fail)
    assert dict(read(GnuSource, path)[0]) == ENTRIES


def test_a_circle_of_overflow_pages_ends(tmp_path: Path) -> None:
    path = Path(put_berkeley(tmp_path))
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 4096):
        if data[at + 25] == 7:  # an overflow page: let it be followed by itself
            data[at + 16 : at + 20] = data[at + 8 : at + 12]
    path.write_bytes(data)
    entries, said = read(BerkeleySource, str(path))
    assert said
    assert set(entries) < set(ENTRIES.items())


@pytest.mark.parametrize("page", [0, 1])
def test_one_meta_page_of_lmdb_will_do(tmp_path: Path, page: int) -> None:
    path = Path(put_lmdb(tmp_path))
    data = bytearray(path.read_bytes())
    data[4096 * page : 4096 * page + 200] = bytes(200)
    path.write_bytes(data)
    entries, _ = read(LmdbSource, str(path))
    assert set(entries) <= set(HELD[LmdbSource].items())
    assert len(entries) > 100


def test_a_circle_in_the_tree_of_lmdb_ends(tmp_path: Path) -> None:
    path = Path(put_lmdb(tmp_path))
    data = bytearray(path.read_bytes())
    root = max(int.from_bytes(data[at + 128 : at + 136], "little") for at in (0, 4096))
    children = int.from_bytes(data[root * 4096 + 12 : root * 4096 + 14], "little") - 16 >> 1
    assert children > 1
    for at in range(children):
        node = root * 4096 + int.from_bytes(data[root * 4096 + 16 + 2 * at : root * 4096 + 18 + 2 * at], "little")
        data[node : node + 6] = root.to_bytes(6, "little")
    path.write_bytes(data)
    entries, said = read(LmdbSource, str(path))
    assert entries == []
    assert len(said) == children + 1


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("'a', (0, 3)", b"a"),
        ("'it\\'s', (0, 3)", b"it's"),
        ('"it\'s", (0, 3)', b"it's"),
        ("'\\\\', (0, 3)", b"\\"),
        ("'\\n\\t\\x00\\xff', (0, 3)", b"\n\t\0\xff"),
        ("'\xe9', (0, 3L)", b"\xe9"),
        ("  b'a' , ( 0,3 ) ", b"a"),
        ("'a', (0, 3", None),
        ("'a', (-1, 3)", None),
        ("'a', (0, 10 ** 9)", None),
        ("'\u20ac\\u20ac', (0, 3)".encode("utf-8").decode("latin-1"), None),
        ("'\\x', (0, 3)", None),
        ("__import__('os').abort(), (0, 3)", None),
        ("(" * 100_000, None),
        ("-" * 100_000 + "1", None),
        ("'" + "\\" * 99_999, None),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_a_line_of_dumbs_index_is_matched_and_never_evaluated(tmp_path: Path, line: str, key: bytes | None) -> None:
    (tmp_path / "old.dir").write_bytes(line.encode("latin-1") + b"\n'z', (512, 0)\n")
    (tmp_path / "old.dat").write_bytes(b"val" + bytes(509))
    entries, said = read(DumbSource, str(tmp_path / "old"))
    assert dict(entries) == ({b"z": b""} if key is None else {key: b"val", b"z": b""})
    assert len(said) == (key is None)


def test_a_line_without_end_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dumb = importlib.import_module("durabledbm._foreign.dumb")
    monkeypatch.setattr(dumb, "_LINE_MAX", 1000)
    monkeypatch.setattr(dumb, "_CHUNK", 100)
    (tmp_path / "old.dir").write_bytes(b"'" + b"x" * 100_000 + b"', (0, 3)\n'z', (0, 3)\n")
    (tmp_path / "old.dat").write_bytes(b"val")
    with (tmp_path / "old.dir").open("rb") as file, closing(dumb.OldFile(file.name)) as old:
        assert max(map(len, dumb._lines(old))) < 1200
    assert read(DumbSource, str(tmp_path / "old"))[0] == [(b"z", b"val")]


# -- against the modules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dbm.dumb", "dbm.gnu", "dbm.ndbm"])
def test_what_the_module_writes_at_random_is_what_is_read(name: str, tmp_path: Path) -> None:
    module: Any = pytest.importorskip(name, reason=f"this Python has no {name}", exc_type=ImportError)
    numbers = random.Random(name)
    path = str(tmp_path / "old")
    expected: Entries = {}
    with module.open(path, "n") as db:
        for _ in range(3000):
            key = numbers.randbytes(numbers.randrange(1, 30 if numbers.random() < 0.99 else 6000))
            expected[key] = db[key] = numbers.randbytes(numbers.randrange(1, 300 if numbers.random() < 0.98 else 9000))
            if numbers.random() < 0.01:
                key = numbers.choice(list(expected))
                del expected[key], db[key]
    with closing(open_source(Found(name, path))) as source:
        assert dict(source.entries()) == expected
