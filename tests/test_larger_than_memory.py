"""A value that is larger than the memory of the process that puts, gets, dumps and loads it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from systems import only_posix

import durabledbm

pytestmark = [only_posix("Windows cannot limit the memory of a process this way"), pytest.mark.no_cover]

_LIMITED = """
import resource, sys
import durabledbm, durabledbm.dump, durabledbm.mapping, durabledbm.database
from durabledbm.cli.app import main
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), now + int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""

_PART = 2**20


def content(size: int) -> Iterator[bytes]:
    """Bytes of which no two parts are alike."""
    for number in range(size // _PART):
        yield number.to_bytes(8, "big") * (_PART // 8)
    yield b"the end"


def assert_content(path: Path, size: int) -> None:
    with open(path, "rb") as file:
        for part in content(size):
            assert file.read(len(part)) == part
        assert not file.read(1)


def limited(growth: int, *arguments: object, output: Path | None = None) -> None:
    """Run a command in a process whose address space may grow by so many bytes."""
    command = [sys.executable, "-c", _LIMITED, str(growth), *map(str, arguments)]
    if output is None:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    else:
        with open(output, "wb") as file:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=file)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not tell how much memory is used")
@pytest.mark.parametrize(
    ("size", "growth"),
    [(96 * 2**20, 48 * 2**20), pytest.param(3 * 10**9 // _PART * _PART, 200 * 2**20, marks=pytest.mark.long)],
    ids=["96 MiB", "3 GB"],
)
def test_a_value_passes_through_a_process_that_is_smaller(tmp_path: Path, size: int, growth: int) -> None:
    source, db, target, dump, copy = (tmp_path / name for name in ("source", "db", "target", "dump", "copy"))
    with open(source, "wb") as file:
        file.writelines(content(size))
    limited(growth, "put", db, "key", "--file", source)
    source.unlink()
    limited(growth, "get", db, "key", "-o", target)
    assert_content(target, size)
    target.unlink()
    limited(growth, "dump", db, dump)
    db.unlink()
    limited(growth, "load", copy, dump)
    dump.unlink()
    limited(growth, "check", copy)
    limited(growth, "backup", copy, db)
    copy.unlink()
    limited(growth, "get", db, "key", output=target)
    assert_content(target, size)


@pytest.mark.long
@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**32 - 1, 2**32 + 1])
def test_lengths_that_32_bits_do_not_hold(tmp_path: Path, size: int) -> None:
    class Pattern:
        left = size

        def read(self, count: int) -> bytes:
            count = min(count, self.left, 2**18)
            at = size - self.left
            self.left -= count
            return (at.to_bytes(8, "big") * (count // 8 + 1))[:count]

    with durabledbm.open(tmp_path / "db", "c") as db:
        db.put_stream("key", Pattern(), size=size)
        with db.open_value("key") as file:
            assert file.seek(0, os.SEEK_END) == size
            file.seek(size - 10)
            assert len(file.read()) == 10
            file.seek(2**30)
            assert len(file.read(2**20)) == 2**20
        assert db.check() == []
