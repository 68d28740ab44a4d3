"""The checksum function: what it computes, and that it is the same wherever it comes from."""

from __future__ import annotations

import sys
from pathlib import Path

import crc32c as package
import pytest

from durabledbm._engine import checksum

VECTORS = {b"": 0, b"a": 0xC1D04330, b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43}
"""RFC 3720, B.4, and others that are widely published."""


@pytest.mark.parametrize("data", VECTORS)
def test_it_is_crc32c(data: bytes) -> None:
    assert checksum.crc32c(data) == VECTORS[data]
    assert checksum.crc32c(memoryview(bytearray(data))) == VECTORS[data]


def test_pieces_give_what_the_whole_gives() -> None:
    data = bytes(range(256)) * 40
    for cut in (0, 1, 100, len(data)):
        assert checksum.crc32c(data[cut:], checksum.crc32c(data[:cut])) == checksum.crc32c(data)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 255, 4096, 70_000])
@pytest.mark.parametrize("before", [b"", b"a", bytes(range(256))])
def test_zeros_need_not_be_read(before: bytes, size: int) -> None:
    expected = checksum.crc32c(before + bytes(size))
    assert checksum.with_zeros(checksum.crc32c(before), size) == expected


def test_any_number_of_zeros_costs_little() -> None:
    half = checksum.with_zeros(checksum.crc32c(b"a"), 1 << 50)
    assert checksum.with_zeros(half, 1 << 50) == checksum.with_zeros(checksum.crc32c(b"a"), 1 << 51)


def test_the_checksum_of_an_end_follows_from_those_of_the_whole_and_the_front() -> None:
    data = bytes(range(256)) * 20
    for cut in (0, 1, 100, len(data)):
        whole, front = checksum.crc32c(data), checksum.crc32c(data[:cut])
        assert checksum.of_the_end(whole, front, len(data) - cut) == checksum.crc32c(data[cut:])


def test_it_is_the_function_of_the_package() -> None:
    found = checksum.from_extension("crc32c")
    data = bytes(range(256)) * 999
    assert checksum.crc32c(data) == package.crc32c(data)
    assert found is None or found(data, 7) == package.crc32c(data, 7)


def test_where_there_is_no_extension_module_the_package_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert checksum.from_extension("no_such_package") is None
    (tmp_path / "one_module.py").write_text("crc32c = print\n")
    assert checksum.from_extension("one_module") is None
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "__init__.py").write_text("raise AssertionError\n")
    assert checksum.from_extension("without") is None
    (tmp_path / "without" / "_crc32c.py").write_text("def crc32c(data): return 1\n")
    assert checksum.from_extension("without") is None
    assert checksum._imported() is package.crc32c
