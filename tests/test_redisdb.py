"""The way out: a dump loaded into a Redis server, and the mapping face kept. Skipped where there is no Redis."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mapping_spec import READING, WRITING

import durabledbm
from durabledbm import redisdb
from durabledbm.dump import dump, load
from durabledbm.errors import ClosedError, error

SERVER = shutil.which("redis-server")
LIVE = ("an_iterator_sees_the_state_at_its_start", "every_mutation_is_legal_during_iteration")
"""What a server does not give: iterators over one state."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own, that keeps nothing."""
    pytest.importorskip("redis")
    if SERVER is None:
        pytest.skip("there is no redis-server")
    socket = os.path.join(tmp_path_factory.mktemp("redis"), "socket")
    command = [SERVER, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=os.path.dirname(socket)) as process:
        deadline = time.monotonic() + 30
        while not os.path.exists(socket):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"unix://{socket}"
        process.terminate()


@pytest.fixture
def make(url: str) -> Iterator[Callable[..., Any]]:
    opened: list[redisdb.RedisDatabase] = []

    def make(entries: Mapping[bytes, bytes]) -> redisdb.RedisDatabase:
        opened.append(redisdb.open(url, f"made {len(opened)}"))
        opened[-1].clear()
        if entries:
            opened[-1].update(entries)
        return opened[-1]

    yield make
    for db in opened:
        if not db.closed:
            db.clear()
        db.close()


@pytest.mark.parametrize(("name", "spec"), [entry for entry in READING + WRITING if entry[0] not in LIVE])
def test_redis_is_the_mapping_that_the_contract_describes(
    make: Callable[..., Any], name: str, spec: Callable[[Any], None]
) -> None:
    spec(make)


def test_a_dump_is_loaded_and_dumped_again(
    make: Callable[..., Any], db: durabledbm.Database, tmp_path: Path
) -> None:
    db.update({b"%06d" % number: os.urandom(50) for number in range(5000)})
    db.update({b"": b"empty", b"\xff\0|\n": b"any bytes"})
    dump(db, tmp_path / "dump")
    there = make({})
    assert load(tmp_path / "dump", there).changes == 5002
    assert there == db
    assert list(there.range(b"000100", b"000103", reverse=True)) == list(db.range(b"000100", b"000103", reverse=True))
    dump(there, tmp_path / "back")
    with durabledbm.open(tmp_path / "again", "c") as again:
        load(tmp_path / "back", again)
        assert again == db


def test_two_names_are_two_databases(make: Callable[..., Any]) -> None:
    one, two = make({b"a": b"1"}), make({})
    assert len(one) == 1
    assert len(two) == 0


def test_a_server_that_is_not_there_is_our_error(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    with pytest.raises(error):
        redisdb.open(f"unix://{tmp_path}/none", "name")


def test_a_closed_one_raises(make: Callable[..., Any]) -> None:
    db = make({b"a": b"1"})
    db.clear()
    db.close()
    db.close()
    for use in (lambda: db[b"a"], lambda: len(db), lambda: list(db), lambda: db.update({"a": "1"}), db.clear, db.sync):
        with pytest.raises(ClosedError):
            use()
