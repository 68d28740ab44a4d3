"""docs/format.md against the code, bytes written out by hand, and files of other versions."""

from __future__ import annotations

import ast
import dbm
import importlib
import itertools
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import make_golden
import pytest
from crc32c import crc32c

import durabledbm
from durabledbm._engine import large_value, locks, meta, node, page
from durabledbm._engine.catalog import TableKey
from durabledbm._engine.meta import META_AREA, META_SIZE, Meta, decode_meta, encode_meta
from durabledbm._engine.node import Overflow
from durabledbm._engine.page import BRANCH, LEAF, NO_REF, REF, seal
from durabledbm.maintenance import check

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "format.md").read_text("utf-8")
GOLDEN = Path(__file__).parent / "data" / "golden-v2.db"


# -- the document against the code ---------------------------------------------------------------------------


class Layout(NamedTuple):
    """A table of docs/format.md that lays out a structure of the code."""

    module: str
    name: str
    size: int
    rows: list[list[str]]


def tables(header: str) -> Iterator[list[list[str]]]:
    """The rows of each table of the document with this header line."""
    lines = DOCUMENT.splitlines()
    for at, line in enumerate(lines):
        if line == header:
            assert re.fullmatch(r"\|(---\|)+", lines[at + 1])
            rows = []
            for row in lines[at + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in row.strip("|").split("|")])
            yield rows


def layouts() -> list[Layout]:
    headings = re.findall(r"^`(_engine/\w+)\.py`, `([\w.]+)`, (\d+) bytes:$", DOCUMENT, re.MULTILINE)
    contents = list(tables("| offset | size | type | name | meaning |"))
    assert len(headings) == len(contents) > 0
    return [
        Layout(f"durabledbm.{module.replace('/', '.')}", name, int(size), rows)
        for (module, name, size), rows in zip(headings, contents, strict=True)
    ]


LAYOUTS = layouts()
TYPES = {"Q": "u64", "I": "u32", "H": "u16", "B": "u8", "i": "i32", "s": "bytes"}


def struct_of(layout: Layout) -> struct.Struct:
    thing: object = importlib.import_module(layout.module)
    for name in layout.name.split("."):
        thing = getattr(thing, name)
    assert isinstance(thing, struct.Struct)
    return thing


def fields_of(layout: struct.Struct) -> list[list[str]]:
    """Offset, size and type of each field, in the words of the document."""
    assert layout.format[0] == "<"  # little-endian, and nothing is aligned
    fields = []
    offset = 0
    for count, code in re.findall(r"(\d*)([A-Za-z])", layout.format[1:]):
        for size in [int(count)] if code == "s" else [struct.calcsize("<" + code)] * int(count or 1):
            fields.append([str(offset), str(size), TYPES[code]])
            offset += size
    assert offset == layout.size
    return fields


@pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda layout: f"{layout.module.rsplit('.', 1)[1]}.{layout.name}"
)
def test_offsets_sizes_and_types_are_those_of_the_code(layout: Layout) -> None:
    code = struct_of(layout)
    assert layout.size == code.size
    assert [row[:3] for row in layout.rows] == fields_of(code)


def test_every_structure_of_the_code_is_in_the_document() -> None:
    documented = {id(struct_of(layout)) for layout in LAYOUTS}
    missing = []
    for path in sorted((ROOT / "durabledbm" / "_engine").glob("*.py")):
        if path.stem in ("posix", "windows", "kernel32"):
            continue  # their structures are the operating system's
        module = importlib.import_module(f"durabledbm._engine.{path.stem}")
        for name, thing in vars(module).items():
            if isinstance(thing, struct.Struct) and thing.size > 4 and id(thing) not in documented:
                missing.append(f"{path.stem}.{name}")
    assert not missing


@pytest.mark.parametrize(
    ("module", "name", "fields"),
    [
        (page, "HEADER", [field.replace("_", " ") for field in page.Header._fields]),
        (meta, "_EXTENT", [field.replace("_", " ") for field in meta.Extent._fields]),
        (meta, "_FIXED", None),
        (importlib.import_module("durabledbm._engine.freemap"), "_FIXED", None),
    ],
    ids=["page.HEADER", "meta._EXTENT", "meta._FIXED", "freemap._FIXED"],
)
def test_names_are_those_of_the_code(module: object, name: str, fields: list[str] | None) -> None:
    """Where the code names the fields: in a tuple, or in the string below the structure."""
    assert hasattr(module, "__file__")
    if fields is None:
        body = ast.parse(Path(str(module.__file__)).read_text("utf-8")).body
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
                text = ast.literal_eval(ast.unparse(following))
                fields = [field.strip() for field in text.rstrip(".").split(",")]
    (layout,) = [
        entry for entry in LAYOUTS if entry.name == name and struct_of(entry) is getattr(module, name)
    ]
    assert [row[3] for row in layout.rows] == fields


def test_the_magic_is_that_of_the_code() -> None:
    (magic,) = re.findall(r"\| 16 \| bytes \| magic \| `([0-9A-F ]+)` \|", DOCUMENT)
    assert bytes.fromhex(magic) == meta.MAGIC


def test_the_types_of_runs_are_those_of_the_code() -> None:
    (rows,) = tables("| type | name | entry count |")
    assert {int(row[0]): row[1] for row in rows} == page.TYPE_NAMES


def test_the_flags_are_those_of_the_code() -> None:
    of_metas, of_leaves = tables("| flag | name | meaning |")
    assert [row[:2] for row in of_metas] == [[str(meta._STEADY), "steady"], [str(meta._RELAXED), "relaxed"]]
    assert [row[:2] for row in of_leaves] == [[str(node.HAS_OVERFLOW), "has overflow"]]


def test_the_locks_are_those_of_the_code() -> None:
    (rows,) = tables("| offset | name | kind | held by |")
    assert [row[:2] for row in rows] == [["2^62 - 2", "writer"], ["2^62 - 1", "gate"], ["2^62 + *t*", "pin"]]
    assert (locks.WRITER_OFFSET, locks.GATE_OFFSET, locks.PINS_OFFSET) == (2**62 - 2, 2**62 - 1, 2**62)


def test_the_mark_of_an_unfinished_initialisation_and_the_other_locks_are_those_of_the_code() -> None:
    text, size = re.findall(r"The mark: the magic, then `(.*?)`, a newline, and zeros up to (\d+) bytes", DOCUMENT)[0]
    assert (meta.MAGIC + text.encode() + b"\n").ljust(int(size), b"\0") == meta.UNFINISHED
    assert "all of them zero" in DOCUMENT.split(f"it has {meta.SECTOR} bytes, ")[1]
    assert "Byte 2^62 - 3 is locked for a moment" in DOCUMENT
    assert "is locked at 2^62 - 4" in DOCUMENT
    assert (locks.TEST_OFFSET, locks.TEMPORARY_OFFSET) == (2**62 - 3, 2**62 - 4)


def test_the_sizes_in_the_text_are_those_of_the_code() -> None:
    assert (META_SIZE, META_AREA, meta.SLOTS) == (4096, 8192, 2)
    assert (page.MIN_PAGE_SIZE, page.MAX_PAGE_SIZE) == (4096, 65536)
    assert (meta.STAMP_OFFSET, meta.STAMP_SIZE) == (4084, 204)
    assert (meta.MAX_TXID, meta.MAX_DEPTH) == (2**62, 64)
    assert page.CRC_SIZE == 4
    assert page.HEADER.size + page.CRC_SIZE == 36


def test_the_newest_version_is_that_of_the_code() -> None:
    (rows,) = tables("| version | since | what |")
    assert int(rows[-1][0]) == meta.FORMAT_VERSION


def test_the_invariants_are_those_that_check_verifies() -> None:
    def numbered(text: str) -> list[str]:
        parts = re.findall(r"^\d\. (.*?)(?=^\d\. |\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        return [" ".join(part.split()) for part in parts]

    section = DOCUMENT.split("## Invariants")[1].split("And of the file over time")[0]
    assert check.__doc__ is not None
    assert numbered(section) == numbered(check.__doc__)
    assert len(numbered(section)) == 5


# -- bytes written out by hand -------------------------------------------------------------------------------


def crc(data: bytes) -> bytes:
    return crc32c(data).to_bytes(4, "little")


def u(size: int, value: int) -> bytes:
    return value.to_bytes(size, "little")


def test_a_meta_page() -> None:
    written = encode_meta(
        Meta(
            txid=0x1122334455667788,
            page_size=8192,
            database_id=b"0123456789abcdef",
            page_count=77,
            entry_count=12,
            tree_count=10,
            root=REF.pack(5, 1, 0xAABBCCDD),
            depth=1,
            tables_count=7,
            tables_root=REF.pack(8, 1, 0x01020304),
            tables_depth=2,
            space=REF.pack(6, 2, 0x01020304),
            steady_txid=3,
            steady=True,
            time_ns=9,
            generation=b"ABCDEFGH",
            generation_txid=0x1122334455667000,
            extents=(meta.Extent(5, 3, 0xDEADBEEF),),
            changes={b"key": b"value", b"gone": None, b"": b"", TableKey(b"\0\0\0\0\0\x01k"): b"vvv"},
        )
    )
    body = b"".join(
        (
            b"\x8bdurabledbm\r\n\x1a\n\0",
            b"\x88\x77\x66\x55\x44\x33\x22\x11",
            u(4, 2),
            u(4, 0),
            u(4, 8192),
            u(4, 1),
            u(8, 77),
            u(8, 12),
            u(8, 10),
            u(8, 5) + u(4, 1) + b"\xdd\xcc\xbb\xaa",
            u(4, 1),
            u(4, 2),
            u(8, 6) + u(4, 2) + b"\x04\x03\x02\x01",
            u(8, 3),
            u(8, 9),
            b"0123456789abcdef",
            b"ABCDEFGH",
            b"\x00\x70\x66\x55\x44\x33\x22\x11",
            u(4, 54),
            u(2, 1),
            u(2, 4),
            u(8, 7),
            u(8, 8) + u(4, 1) + b"\x04\x03\x02\x01",
            u(8, 0),
            u(8, 5) + u(4, 3) + b"\xef\xbe\xad\xde",
            u(4, 3) + u(4, 5) + b"keyvalue",
            u(4, 4) + b"\xff\xff\xff\xff" + b"gone",
            u(4, 0) + u(4, 0),
            b"\x07\0\0\x80" + u(4, 3) + b"\0\0\0\0\0\x01kvvv",
        )
    )
    body = body.ljust(4084, b"\0") + b"\x88\x77\x66\x55\x44\x33\x22\x11"
    assert written == body + crc(body)
    assert len(written) == 4096


def run(kind: int, flags: int, count: int, payload: bytes, size: int = 4096) -> bytes:
    """The run on page 9, written by commit 7."""
    body = (
        bytes((kind, flags, 0, 0))
        + u(4, count)
        + u(8, 9)
        + u(8, 7)
        + u(4, size // 4096)
        + u(4, len(payload))
        + payload
    )
    body = body.ljust(size - 4, b"\0")
    return body + crc(body)


def test_a_leaf() -> None:
    flags, payload = node.encode_leaf([b"", b"ab", b"b"], [b"empty", b"", b"xyz"], 4096)
    prints = bytes(zlib.crc32(key) & 255 for key in (b"", b"ab", b"b"))
    offsets = b"".join(u(2, at) for at in (0, 0, 5, 7, 7, 8, 11))
    assert seal(LEAF, flags, 3, 9, 7, 4096, payload) == run(
        1, 0, 3, prints + offsets + b"empty" + b"ab" + b"" + b"b" + b"xyz"
    )


def test_a_leaf_with_a_large_value() -> None:
    cell = Overflow.make(u(8, 11) + u(4, 5) + b"\1\2\3\4", 20000)
    flags, payload = node.encode_leaf([b"k", b"l"], [cell, b"v"], 4096)
    prints = bytes(zlib.crc32(key) & 255 for key in (b"k", b"l"))
    offsets = b"".join(u(2, at) for at in (0, 1, 25, 26, 27))
    expected = (
        prints + offsets + b"\1\0" + b"k" + u(8, 11) + u(4, 5) + b"\1\2\3\4" + u(8, 20000) + b"l" + b"v"
    )
    assert seal(LEAF, flags, 2, 9, 7, 4096, payload) == run(1, 1, 2, expected)


def test_the_flags_of_overflow_runs_are_those_of_the_code() -> None:
    (rows,) = tables("| flags | name | behind the key |")
    assert [(int(row[0]), row[1]) for row in rows] == [
        (large_value.WHOLE_VALUE, "value"), (large_value.INDEX, "index"), (large_value.PIECE, "piece")
    ]  # fmt: skip


@pytest.mark.parametrize("key_size", [0, 1, 1000, 2**17 - 1, 2**17, 2**20, 2**31 - 2**20])
def test_the_size_of_a_piece_is_what_the_document_says(key_size: int) -> None:
    assert "- 44 - *k* bytes, where *R* is 2^18 * (1 + floor(2 *k* / 2^18))" in DOCUMENT
    size = 2**18 * (1 + 2 * key_size // 2**18)
    assert large_value.room(key_size) == size - 44 - key_size > 0
    assert size % page.MAX_PAGE_SIZE == 0
    assert key_size + large_value.PLACE.size + large_value.room(key_size) < 2**32
    assert large_value.KEY_MAX == 2**31 - 2**20
    assert "at most 2^31 - 2^20 bytes" in DOCUMENT


def test_a_value_in_pieces(db_path: str) -> None:
    """Two pieces, then the index, then the leaf that leads there."""
    size = 2**18 - 44 - 3
    first, last = b"1" * size, b"2" * 100
    with durabledbm.open(db_path, "c") as db:
        db["key"] = first + last
    content = Path(db_path).read_bytes()

    def sealed(place: int, flags: int, payload: bytes, pages: int) -> bytes:
        head = bytes([3, flags, 0, 0]) + u(4, 3) + u(8, place) + u(8, 2) + u(4, pages) + u(4, len(payload))
        body = (head + payload).ljust(pages * 4096 - 4, b"\0")
        return body + crc(body)

    one = sealed(2, 2, b"key" + u(8, 0) + first, 64)
    two = sealed(66, 2, b"key" + u(8, 1) + last, 1)
    index = sealed(67, 1, b"key" + u(8, 2) + u(4, 64) + one[-4:] + u(8, 66) + u(4, 1) + two[-4:], 1)
    assert content[2 * 4096 : 68 * 4096] == one + two + index
    assert u(8, 67) + u(4, 1) + index[-4:] + u(8, size + 100) in content[68 * 4096 : 69 * 4096]


def test_a_leaf_of_many_pages_has_wide_offsets() -> None:
    key = b"k" * 70000
    flags, payload = node.encode_leaf([key], [b"v"], 4096)
    offsets = b"".join(u(4, at) for at in (0, 70000, 70001))
    expected = bytes([zlib.crc32(key) & 255]) + offsets + key + b"v"
    assert seal(LEAF, flags, 1, 9, 7, 4096, payload) == run(1, 0, 1, expected, 18 * 4096)


def test_a_branch() -> None:
    refs = [REF.pack(3, 1, 10), REF.pack(4, 1, 20), REF.pack(5, 2, 30)]
    payload = b"".join(refs) + node.encode_branch([b"m", b"st"], 4096)
    expected = b"".join(
        (
            u(8, 3) + u(4, 1) + u(4, 10),
            u(8, 4) + u(4, 1) + u(4, 20),
            u(8, 5) + u(4, 2) + u(4, 30),
            u(2, 0),
            u(2, 1),
            u(2, 3),
            b"m",
            b"st",
        )
    )
    assert seal(BRANCH, 0, 3, 9, 7, 4096, payload) == run(2, 0, 3, expected)


def test_a_file_with_one_entry(db_path: str) -> None:
    """Two copies of the meta page, and nothing else: the entry stands in it."""
    with durabledbm.open(db_path, "c") as db:
        db["key"] = "value"
    content = Path(db_path).read_bytes()
    assert len(content) == META_AREA
    for slot in (content[:META_SIZE], content[META_SIZE:]):
        decoded = decode_meta(slot)
        assert decoded is not None
        assert (decoded.txid, decoded.entry_count, decoded.tree_count, decoded.root) == (2, 1, 0, NO_REF)
        assert decoded.changes == {b"key": b"value"}
        assert decoded.generation_txid == 2
        assert decoded.generation != bytes(8)
        assert slot[192:208] == u(4, 3) + u(4, 5) + b"keyvalue"


# -- a file of version 2 -------------------------------------------------------------------------------------


def test_the_golden_file_is_read() -> None:
    before = GOLDEN.read_bytes()
    with durabledbm.open(GOLDEN) as db:
        assert dict(db.items()) == make_golden.contents()
        assert len(db) == len(make_golden.contents())
        assert list(db) == sorted(make_golden.contents())
        assert list(reversed(db)) == sorted(make_golden.contents(), reverse=True)
        for key, value in make_golden.contents().items():
            assert db[key] == value
        assert db.tables() == sorted(make_golden.tables())
        for name, entries in make_golden.tables().items():
            table = db.table(name)
            assert dict(table.items()) == entries
            assert len(table) == len(entries)
        assert db.check() == []
    assert GOLDEN.read_bytes() == before


def test_the_golden_file_holds_every_structure() -> None:
    content = GOLDEN.read_bytes()
    kinds, of_values = set(), set()
    at = META_AREA
    while at < len(content):
        header = page.read_header(content[at : at + 32])
        size = max(header.page_count, 1) * 4096
        if header.page_id == at // 4096 and page.self_consistent(content[at : at + size]):
            kinds.add(header.type)
            if header.type == page.OVERFLOW:
                of_values.add(header.flags)
            at += size
        else:
            at += 4096
    assert kinds == set(page.TYPE_NAMES)
    assert of_values == {large_value.WHOLE_VALUE, large_value.INDEX, large_value.PIECE}
    newest = decode_meta(content[:META_SIZE])
    assert newest is not None
    assert newest.depth == 3
    assert set(newest.changes.values()) >= {None, b"changed", b"added last"}
    assert (newest.database_id, newest.time_ns) == (make_golden.DATABASE_ID, make_golden.TIME_NS)
    assert (newest.generation, newest.generation_txid) == (make_golden.GENERATION, 2)


def test_the_golden_file_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "golden.db"
    shutil.copyfile(GOLDEN, path)
    expected = make_golden.contents()
    with durabledbm.open(path, "w") as db:
        db["added"] = "now"
        db.update(dict.fromkeys(list(expected)[::2], b"again"))
        expected |= dict.fromkeys(list(expected)[::2], b"again") | {b"added": b"now"}
        db.table("small")["added"] = "now"
        db.drop_table("n\u00e4me")
        assert db.check() == []
        db.reorganize()
    with durabledbm.open(path) as db:
        assert dict(db.items()) == expected
        assert dict(db.table("small")) == make_golden.tables()["small"] | {b"added": b"now"}
        assert db.tables() == ["small"]


def test_what_the_golden_file_holds_is_what_its_script_writes() -> None:
    """The script still runs. (Where it puts the pages may change: the engine may learn.)"""
    path = "/golden.db"
    volume = make_golden.SimVolume({path: make_golden.make()})
    with make_golden.open_on(volume, path, "r") as db:
        assert dict(db.items()) == make_golden.contents()


def test_dbm_takes_our_files_for_none_of_its_own(tmp_path: Path) -> None:
    """The empty string: a file is there, but of no format that it knows."""
    assert dbm.whichdb(str(GOLDEN)) == ""
    for name in ("plain", "with.db", "with.dat", "with.dir"):
        path = tmp_path / name
        durabledbm.open(path, "c").close()
        assert dbm.whichdb(str(path)) == ""


def test_no_byte_order_makes_the_magic_one_of_gdbm() -> None:
    for order in ("little", "big"):
        assert int.from_bytes(meta.MAGIC[:4], order) not in (0x13579ACE, 0x13579ACD, 0x13579ACF)
        assert int.from_bytes(meta.MAGIC[12:16], order) != 0x61561  # Berkeley DB's hash
    assert not meta.MAGIC.startswith(b"SQLite format 3\0")


# -- files of other versions ---------------------------------------------------------------------------------


def altered(slot: bytes, offset: int, value: int) -> bytes:
    """The slot with another u32 at `offset`, and a CRC that is right."""
    body = slot[:offset] + u(4, value) + slot[offset + 4 : -4]
    return body + crc(body)


VERSION, FEATURES = 24, 28


@pytest.mark.leaves_damage
@pytest.mark.parametrize("flag", ["r", "w", "c"])
@pytest.mark.parametrize("slots", [(0, 1), (0,), (1,)], ids=["both slots", "slot 0", "slot 1"])
@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (VERSION, 3, "version 3"),
        (VERSION, 1, "version 1"),
        (VERSION, 0, "version 0"),
        (FEATURES, 0x80000000, "0x80000000"),
        (FEATURES, 1, "0x1"),
    ],
)
def test_a_file_of_another_version_is_refused_and_left_as_it_is(
    *, tmp_path: Path, flag: str, slots: tuple[int, ...], offset: int, value: int, message: str
) -> None:
    content = bytearray(GOLDEN.read_bytes())
    for slot in slots:
        start = slot * META_SIZE
        content[start : start + META_SIZE] = altered(bytes(content[start : start + META_SIZE]), offset, value)
    path = tmp_path / "other.db"
    path.write_bytes(content)
    with pytest.raises(durabledbm.error, match=message) as caught:
        durabledbm.open(path, flag)
    assert not isinstance(caught.value, durabledbm.CorruptionError)
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.db"]


def test_flag_n_replaces_a_file_of_another_version(tmp_path: Path) -> None:
    content = GOLDEN.read_bytes()
    path = tmp_path / "other.db"
    path.write_bytes(b"".join(altered(content[at : at + META_SIZE], VERSION, 3) for at in (0, META_SIZE)))
    with durabledbm.open(path, "n") as db:
        assert len(db) == 0


@pytest.mark.leaves_damage
@pytest.mark.parametrize("size", [0, 512, 4095, 5000, 131072, 2**31])
def test_a_meta_page_with_an_impossible_page_size_is_no_meta_page(tmp_path: Path, size: int) -> None:
    content = GOLDEN.read_bytes()
    path = tmp_path / "odd.db"
    path.write_bytes(b"".join(altered(content[at : at + META_SIZE], 32, size) for at in (0, META_SIZE)))
    with pytest.raises(durabledbm.CorruptionError):
        durabledbm.open(path)
