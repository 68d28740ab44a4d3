"""The two codecs of the log of changes: literal bytes, what is refused, and the document about them."""

from __future__ import annotations

import dbm
import random
import re
import struct
from pathlib import Path

import pytest

from durabledbm._log import records
from durabledbm._log.records import (
    BINARY,
    COMMIT,
    COMMIT_FIELDS,
    CRC,
    DELETE,
    FILE_HEADER,
    FIRST,
    GROUPED,
    MARK,
    PUT,
    RECORD_HEADER,
    SYNCED,
    TABLE,
    TEXT,
    BinaryDecoder,
    Change,
    Commit,
    FileHeader,
    Record,
    TextDecoder,
)
from durabledbm.errors import CorruptionError, error

FORMAT = Path(__file__).parent.parent / "docs" / "changelog-format.md"

HEADER = FileHeader(number=2, salt=0x01020304, base_txid=5, previous_size=99, identity=b"0123456789abcdef")
HEADER_HEX = (
    "8d444c4f470d0a1a" "01000000" "04030201" "0200000000000000" "0500000000000000" "6300000000000000"
    "30313233343536373839616263646566"
)  # fmt: skip

GOLDEN = (
    "3c687b7e1100d7a001010100000001000000000000006131"
    "b3f90a2b3043d0c1020001000000000000000000000061"
    "98b83abd935fc3a90106010000000100000000000000ff78"
    "baa699f364f3a08d0302100000000000000000000000060000000000000000002a36fe9c9717"
    "e4958ce8000000000401000000000000000000000000"
)


def crc32c(data: bytes) -> int:
    """CRC32C bit by bit, from its definition, so that the literals do not rest on the library under test."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def packed_header() -> bytes:
    body = bytes.fromhex(HEADER_HEX)
    return body + u32(crc32c(body))


def decode(data: bytes) -> list[Record]:
    decoder = BinaryDecoder("test")
    found = decoder.feed(data)
    assert decoder.problem is None
    assert decoder.offset == len(data)
    return found


def test_the_checksum_of_the_literals_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_a_file_header_is_these_60_bytes() -> None:
    assert len(packed_header()) == BINARY.header_size == 60
    assert BINARY.pack_header(HEADER) == packed_header()
    assert packed_header()[56:].hex() == "c109da19"
    assert FileHeader.unpack(packed_header() + b"more") == HEADER


@pytest.mark.parametrize(
    ("kind", "flags", "key", "value", "fields"),
    [
        (PUT, 0, b"k\x00|", b"v\n", "01" "00" "03000000" "0200000000000000"),
        (PUT, SYNCED, b"", b"", "01" "01" "00000000" "0000000000000000"),
        (DELETE, SYNCED | GROUPED | FIRST, b"key", b"", "02" "07" "03000000" "0000000000000000"),
        (COMMIT, GROUPED, COMMIT_FIELDS.pack(9, 10), b"", "03" "02" "10000000" "0000000000000000"),
        (MARK, SYNCED, b"", b"", "04" "01" "00000000" "0000000000000000"),
    ],
)  # fmt: skip
def test_a_binary_record_is_a_22_byte_header_then_key_and_value(
    kind: int, flags: int, key: bytes, value: bytes, fields: str
) -> None:
    checked = u32(crc32c(key + value)) + bytes.fromhex(fields)
    place = (60).to_bytes(8, "little")
    expected = u32(crc32c(packed_header()[:56] + place + checked)) + checked + key + value
    assert BINARY.encode(packed_header(), 60, kind, key, value, flags=flags) == expected
    assert BINARY.size(kind, key, value) == len(expected) == 22 + len(key) + len(value)
    assert decode(packed_header() + expected) == [Record(kind, flags, key, value, 60, len(expected))]


def test_golden_bytes_of_a_whole_binary_file_do_not_change() -> None:
    data = packed_header()
    for kind, key, value, flags in [
        (PUT, b"a", b"1", SYNCED),
        (DELETE, b"a", b"", 0),
        (PUT, b"\xff", b"x", GROUPED | FIRST),
        (COMMIT, COMMIT_FIELDS.pack(6, 1_700_000_000_000_000_000), b"", GROUPED),
        (MARK, b"", b"", SYNCED),
    ]:
        data += BINARY.encode(packed_header(), len(data), kind, key, value, flags=flags)
    assert data[60:].hex() == GOLDEN
    assert [record.kind for record in decode(data)] == [PUT, DELETE, PUT, COMMIT, MARK]
    assert decode(data)[0].change() == Change("put", b"a", b"1") == ("put", b"a", b"1")
    assert decode(data)[1].change() == ("delete", b"a", None)
    assert decode(data)[3].commit() == Commit(6, 1_700_000_000_000_000_000)


@pytest.mark.parametrize(
    ("kind", "key", "value", "line"),
    [
        (PUT, b"a", b"1", b"P|a|1\n"),
        (PUT, b"", b"", b"P||\n"),
        (PUT, b"\x00\xff\r", b"\xfe", b"P|\x00\xff\r|\xfe\n"),
        (DELETE, b"a", b"", b"D|a\n"),
        (DELETE, b"", b"", b"D|\n"),
    ],
)
def test_a_text_record_is_exactly_one_line(kind: int, key: bytes, value: bytes, line: bytes) -> None:
    assert TEXT.encode(b"", 0, kind, key, value) == line
    assert TEXT.size(kind, key, value) == len(line)
    assert TextDecoder("test").feed(line) == [Record(kind, 0, key, value, 0, len(line))]


@pytest.mark.parametrize(("key", "value"), [(b"|", b""), (b"\n", b""), (b"", b"a|b"), (b"", b"a\nb")])
def test_text_refuses_a_bar_and_a_newline(key: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match=r"cannot hold a (key|value)"):
        TEXT.size(PUT, key, value)


@pytest.mark.parametrize("kind", [COMMIT, MARK])
def test_text_has_only_puts_and_deletes(kind: int) -> None:
    with pytest.raises(ValueError, match="text codec has no"):
        TEXT.size(kind, b"", b"")


def test_binary_refuses_a_key_whose_size_does_not_fit_the_field() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(ValueError, match="too long"):
        BINARY.size(PUT, Long(), b"")


@pytest.mark.parametrize("codec", [BINARY, TEXT], ids=["binary", "text"])
def test_a_decoder_gives_the_same_records_however_the_bytes_are_cut_up(codec: records.Codec) -> None:
    rng = random.Random(7)
    data = header = codec.pack_header(HEADER)
    for _ in range(60):
        kind, key = rng.choice((PUT, DELETE)), rng.randbytes(rng.randrange(9)).translate(None, b"|\n")
        value = b"v" * rng.randrange(50) if kind == PUT else b""
        data += codec.encode(header, len(data), kind, key, value)
    whole = codec.decoder("test").feed(data)
    assert len(whole) == 60
    for _ in range(50):
        decoder, found, position = codec.decoder("test"), [], 0
        while position < len(data):
            step = rng.choice((1, 3, 30, 300))
            found += decoder.feed(data[position : position + step])
            position += step
        assert found == whole
        assert decoder.problem is None
        assert decoder.offset == len(data)


def test_wanted_says_how_many_bytes_a_record_still_needs() -> None:
    data = packed_header()
    record = BINARY.encode(data, 60, PUT, b"key", b"v" * 1000)
    decoder = BinaryDecoder("test")
    assert decoder.wanted == 60
    decoder.feed(data[:10])
    assert decoder.wanted == 50
    decoder.feed(data[10:] + record[:2])
    assert decoder.wanted == 20
    decoder.feed(record[2:100])
    assert decoder.wanted == len(record) - 100
    assert decoder.feed(record[100:]) == [Record(PUT, 0, b"key", b"v" * 1000, 60, len(record))]


def test_a_record_is_one_only_at_its_own_place_in_its_own_file() -> None:
    header = packed_header()
    record = BINARY.encode(header, 60, PUT, b"k", b"v")
    elsewhere = BinaryDecoder("test")
    assert elsewhere.feed(header + record + record) == decode(header + record)
    assert elsewhere.problem is not None
    assert elsewhere.offset == 60 + len(record)
    other = BinaryDecoder("test")
    assert other.feed(BINARY.pack_header(HEADER._replace(salt=1)) + record) == []
    assert other.problem is not None


def test_bytes_after_damage_are_not_decoded_until_the_decoder_is_told_where_to_go_on() -> None:
    header = packed_header()
    first = BINARY.encode(header, 60, PUT, b"k", b"1")
    second = BINARY.encode(header, 60 + len(first), PUT, b"k", b"2")
    decoder = BinaryDecoder("test")
    assert decoder.feed(header + b"\x00" * len(first)) == []
    assert decoder.problem == "a record's header does not match its checksum"
    assert decoder.feed(second) == []
    decoder.seek(60)
    assert [record.value for record in decoder.feed(first + second)] == [b"1", b"2"]


def test_only_a_synced_record_proves_that_what_stands_before_it_is_rotten() -> None:
    header = packed_header()
    plain = BINARY.encode(header, 80, PUT, b"k", b"v", flags=GROUPED | FIRST)
    synced = BINARY.encode(header, 80, PUT, b"k", b"v", flags=GROUPED | SYNCED)
    decoder = BinaryDecoder("test")
    decoder.feed(header)
    rest = bytes(range(20)) * 3
    assert not decoder.proves_rot(rest[:20] + plain + rest, 60)
    assert decoder.proves_rot(rest[:20] + synced + rest, 60)
    assert not decoder.proves_rot(rest[:20] + synced + rest, 61)  # the same bytes one place further
    assert not decoder.proves_rot(rest[:20] + synced[:21], 60)  # a header that is not all there
    assert decoder.proves_rot(rest[:20] + synced[:22], 60)


@pytest.mark.parametrize(
    "fields",
    [
        RECORD_HEADER.pack(0, 0, 0, 0, 0, 0),  # no such kind
        RECORD_HEADER.pack(0, 0, 5, 0, 0, 0),
        RECORD_HEADER.pack(0, 0, PUT, 8, 0, 0),  # no such flag
        RECORD_HEADER.pack(0, 0, DELETE, 0, 0, 1),  # a delete with a value
        RECORD_HEADER.pack(0, 0, COMMIT, 0, 15, 0),  # a commit of another length
    ],
)
def test_a_record_that_no_writer_writes_is_refused_even_if_its_checksum_is_right(fields: bytes) -> None:
    crc = crc32c(packed_header()[:56] + (60).to_bytes(8, "little") + fields[4:])
    decoder = BinaryDecoder("test")
    assert decoder.feed(packed_header() + u32(crc) + fields[4:] + bytes(16)) == []
    assert decoder.problem is not None


@pytest.mark.parametrize(
    "line", [b"", b"P", b"P|a", b"P|a|b|c", b"D", b"D|a|b", b"X|a", b"p|a|b", b"P|a|b\nQ"]
)
def test_a_whole_line_of_another_form_is_a_final_problem_in_text(line: bytes) -> None:
    decoder = TextDecoder("test")
    good = decoder.feed(b"P|a|1\n" + line + b"\nD|a\n")
    assert good[0].change() == ("put", b"a", b"1")
    assert len(good) == 1 + line.startswith(b"P|a|b\n")
    assert decoder.problem is not None
    assert decoder.final
    assert decoder.feed(b"D|a\n") == []


def test_an_unknown_format_version_is_an_error_but_not_corruption() -> None:
    with pytest.raises(error, match=r"^the\.log: format version 2, this library reads 1") as caught:
        BinaryDecoder("the.log").feed(HEADER._replace(version=2).pack())
    assert not isinstance(caught.value, CorruptionError)


def test_every_flipped_bit_of_a_file_header_is_noticed() -> None:
    header = packed_header()
    for bit in range(len(header) * 8):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        assert FileHeader.unpack(bytes(flipped)) is None


def test_no_dbm_module_takes_a_log_for_its_own(tmp_path: Path) -> None:
    path = tmp_path / "00000001.log"
    path.write_bytes(packed_header())
    assert dbm.whichdb(str(path)) == ""
    path.write_bytes(b"P|a|1\nD|a\nP|bb|22222222\n")
    assert dbm.whichdb(str(path)) == ""


def layout(form: struct.Struct, *extra: struct.Struct) -> list[tuple[int, int]]:
    """Offset and size of each field of `form`, then of `extra`."""
    items = re.findall(r"\d*s|[A-Z]", form.format[1:])
    sizes = [struct.calcsize("<" + item) for item in items] + [part.size for part in extra]
    return [(sum(sizes[:number]), size) for number, size in enumerate(sizes)]


def table(title: str) -> list[list[str]]:
    """The rows of the first table under the heading `title`."""
    section = FORMAT.read_text(encoding="utf-8").split(f"### {title}\n")[1]
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.group().splitlines()[2:]]


def test_the_document_gives_the_file_header_as_the_struct_does() -> None:
    rows = table("File header")
    assert [(int(row[0]), int(row[1])) for row in rows] == layout(FILE_HEADER, CRC)
    names = [row[2] for row in rows]
    assert set(names) - {"magic", "crc"} == set(FileHeader._fields)
    assert bytes.fromhex(re.findall(r"`([0-9A-F ]+)`", rows[0][3])[0]) == records.MAGIC
    packed = HEADER.pack()
    for offset, size, name in ((int(row[0]), int(row[1]), row[2]) for row in rows):
        field = packed[offset : offset + size]
        if name == "identity":
            assert field == HEADER.identity
        elif name not in ("magic", "crc"):
            assert int.from_bytes(field, "little") == getattr(HEADER, name)
    assert f"Size: {BINARY.header_size} bytes." in FORMAT.read_text(encoding="utf-8")


def test_the_document_gives_the_record_header_as_the_struct_does() -> None:
    rows = table("Record")
    assert [(int(row[0]), int(row[1])) for row in rows] == layout(RECORD_HEADER)
    record = BINARY.encode(packed_header(), 60, DELETE, b"abc", b"", flags=SYNCED)
    places = {row[2]: slice(int(row[0]), int(row[0]) + int(row[1])) for row in rows}
    fields = {name: int.from_bytes(record[place], "little") for name, place in places.items()}
    assert fields["content_crc"] == crc32c(b"abc")
    assert (fields["kind"], fields["flags"]) == (DELETE, SYNCED)
    assert (fields["key_size"], fields["value_size"]) == (3, 0)
    assert f"Size: {RECORD_HEADER.size} bytes." in FORMAT.read_text(encoding="utf-8")


def test_the_document_names_every_kind_and_flag_with_its_value() -> None:
    text = FORMAT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z]+) \| (\d+) \|", text, re.MULTILINE)
    kinds = {name: number for number, name in records.KINDS.items()}
    flags = {"synced": SYNCED, "grouped": GROUPED, "first": FIRST, "table": TABLE}
    assert {name: int(number) for name, number in rows} == {**kinds, **flags}
