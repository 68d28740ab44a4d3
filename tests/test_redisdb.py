"""The way out: a dump loaded into a Redis server, and the mapping face kept. On a model of the server and its client
(`fakeserver`), and on a real one where there is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import fakeserver
import pytest
from fakeserver import FakeServer, RedisError
from mapping_spec import READING, WRITING

import durabledbm
from durabledbm import redisdb
from durabledbm.dump import dump, load
from durabledbm.errors import ClosedError, error

SERVER = shutil.which("redis-server")
LIVE = ("an_iterator_sees_the_state_at_its_start", "every_mutation_is_legal_during_iteration")
"""What a server does not give: iterators over one state."""
URL = "redis://model"
PAGE = redisdb._PAGE


@pytest.fixture(scope="module")
def real_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
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
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """The model, in the place of the package `redis`, which need not be installed."""
    server = FakeServer()
    package = ModuleType("redis")
    package.Redis = fakeserver.Redis  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "redis", package)
    monkeypatch.setattr(fakeserver.Redis, "servers", {URL: server})
    monkeypatch.setattr(fakeserver.Redis, "opened", [])
    return server


@pytest.fixture(params=["model", "server"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "server":
        return str(request.getfixturevalue("real_url"))
    request.getfixturevalue("server")
    return URL


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


def test_a_real_server_that_is_not_there_is_our_error(tmp_path: Path) -> None:
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


# -- on the model: what others do at the same time, and what goes wrong


def names(db: redisdb.RedisDatabase) -> tuple[bytes, bytes]:
    """What the database is called on the server: its entries, and their order."""
    return b"{%b}:entries" % db.name.encode(), b"{%b}:order" % db.name.encode()


def agree(server: FakeServer, db: redisdb.RedisDatabase) -> bool:
    """Whether the sorted set names exactly the keys that the hash has."""
    entries, order = names(db)
    return set(server.data.get(entries, ())) == set(server.data.get(order, ()))


def test_an_address_and_options_are_handed_to_the_client(server: FakeServer) -> None:
    db = redisdb.open(URL, "orders", socket_timeout=3)
    client = fakeserver.Redis.opened[-1]
    assert (client.url, client.options) == (URL, {"socket_timeout": 3})
    assert repr(db) == "<RedisDatabase 'orders', open>"
    with db:
        db["key"] = "value"
    assert client.closed
    assert repr(db) == "<RedisDatabase 'orders', closed>"
    assert server.data[b"{orders}:entries"] == {b"key": b"value"}


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(error, match=r"pip install durabledbm\[redis\]"):
        redisdb.open(URL, "name")


def test_a_client_that_nobody_answers_is_closed(server: FakeServer) -> None:
    with pytest.raises(error, match=r"name: .*refused"):
        redisdb.open("redis://elsewhere", "name")
    assert [client.closed for client in fakeserver.Redis.opened] == [True]


def test_both_names_are_on_the_same_node_of_a_cluster(server: FakeServer) -> None:
    """A cluster places a name by what stands between the first braces."""
    with redisdb.open(URL, "or}de{rs") as db:
        db["key"] = "value"
        assert sorted(server.data) == sorted(names(db))
    tags = {name.partition(b"{")[2].partition(b"}")[0] for name in server.data}
    assert tags == {b"or"}


@pytest.mark.parametrize(
    ("write", "commands"),
    [
        (lambda db: db.__setitem__("b", "2"), "hset zadd"),
        (lambda db: db.update({"b": "2", "c": "3"}), "hset zadd"),
        (lambda db: db.__delitem__("a"), "hget hdel zrem"),
        (lambda db: db.pop("a"), "hget hdel zrem"),
        (lambda db: db.popitem(), "hget hdel zrem"),
        (lambda db: db.setdefault("b", "2"), "hsetnx zadd hget"),
        (lambda db: db.clear(), "delete"),
    ],
)
def test_each_write_is_one_transaction_and_if_it_fails_nothing_is_changed(
    server: FakeServer, write: Callable[[redisdb.RedisDatabase], object], commands: str
) -> None:
    def refuse(name: str) -> None:
        if name == commands:
            raise RedisError("OOM command not allowed")

    with redisdb.open(URL, "name") as db:
        db["a"] = "1"
        server.before = refuse
        with pytest.raises(error, match="name: OOM command not allowed") as caught:
            write(db)
        assert type(caught.value.__cause__) is RedisError
        server.before = None
        assert dict(db) == {b"a": b"1"}
        assert agree(server, db)
        del server.commands[:]
        write(db)
        assert [name for name in server.commands if name not in ("hget", "zrevrangebylex")] == [commands]
        assert dict(db) != {b"a": b"1"}
        assert agree(server, db)


def test_an_empty_change_is_not_sent(server: FakeServer) -> None:
    with redisdb.open(URL, "name") as db:
        del server.commands[:]
        db.update({})
        assert server.commands == []


@pytest.mark.parametrize("count", [PAGE - 1, PAGE, PAGE + 1, 2 * PAGE])
def test_every_page_is_asked_for_once(server: FakeServer, count: int) -> None:
    entries = {b"%05d" % number: b"%d" % number for number in range(count)}
    with redisdb.open(URL, "name") as db:
        db.update(entries)
        for reverse, command in ((False, "zrangebylex"), (True, "zrevrangebylex")):
            del server.commands[:]
            assert list(db.range(reverse=reverse)) == sorted(entries.items(), reverse=reverse)
            assert server.commands.count(command) == count // PAGE + 1
        del server.commands[:]
        assert list(db) == sorted(entries)
        assert "hmget" not in server.commands, "keys need no values"


def test_an_iterator_goes_on_behind_what_it_has_seen_whatever_others_do(server: FakeServer) -> None:
    with redisdb.open(URL, "name") as db, redisdb.open(URL, "name") as other:
        db.update({b"%05d" % number: b"old" for number in range(PAGE + 10)})
        items = iter(db.items())
        assert next(items) == (b"00000", b"old")
        other[b"%05d" % PAGE] = b"new"
        del other[b"%05d" % (PAGE + 1)]
        del other[b"00000"]
        other[b"00000 more"] = b"behind"
        rest = dict(items)
        assert list(rest) == [b"%05d" % number for number in range(1, PAGE + 10) if number != PAGE + 1]
        assert rest[b"%05d" % PAGE] == b"new"


def test_an_entry_that_goes_between_its_key_and_its_value_is_left_out(server: FakeServer) -> None:
    with redisdb.open(URL, "name") as db, redisdb.open(URL, "name") as other:
        db.update({"a": "1", "b": "2", "c": "3"})

        def interfere(name: str) -> None:
            if name == "hmget":
                server.before = None
                del other["b"]

        server.before = interfere
        assert list(db.items()) == [(b"a", b"1"), (b"c", b"3")]


def test_an_entry_that_another_takes_first_is_not_taken_twice(server: FakeServer) -> None:
    with redisdb.open(URL, "name") as db, redisdb.open(URL, "name") as other:
        db.update({"a": "1", "b": "2"})
        taken = []

        def interfere(name: str) -> None:
            if name.startswith("hget"):
                server.before = None
                taken.append(other.popitem())

        server.before = interfere
        assert db.popitem() == (b"a", b"1")
        assert taken == [(b"b", b"2")]
        with pytest.raises(KeyError):
            db.popitem()


def test_only_failures_of_redis_become_our_error(server: FakeServer) -> None:
    """A bug stays what it is, and so does Ctrl-C."""
    with redisdb.open(URL, "name") as db:
        for raised in (ZeroDivisionError, KeyboardInterrupt):

            def fail(_: str, raised: type[BaseException] = raised) -> None:
                raise raised

            server.before = fail
            with pytest.raises(raised):
                db["key"]
            with pytest.raises(raised):
                db["key"] = "value"
        server.before = None


def test_a_name_that_holds_something_else_is_our_error(server: FakeServer) -> None:
    with redisdb.open(URL, "name") as db:
        db["key"] = "value"
        entries, order = names(db)
        server.data[entries] = server.data[order]
        with pytest.raises(error, match="name: WRONGTYPE"):
            db["key"]
