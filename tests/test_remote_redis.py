"""What is particular about databases on Redis: what is kept on the server, and for how long."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from typing import Any

import pytest
from servers import Redis

from durabledbm import ClosedError, ReadOnlyError, error, remote


@pytest.fixture
def db(redis_server: Redis) -> Iterator[Any]:
    with remote.open(redis_server.url, "n", table="app") as db:
        for name in db.tables():
            db.drop_table(name)
        yield db


@pytest.fixture
def client(redis_server: Redis) -> Iterator[Any]:
    """A client of somebody else."""
    redis = pytest.importorskip("redis")
    client = redis.Redis.from_url(redis_server.url)
    yield client
    client.close()


def many(db: Any) -> dict[bytes, bytes]:
    """Put more entries into `db` than a page has."""
    entries = {b"%04d" % number: b"%d" % number for number in range(1200)}
    db.update(entries)
    return entries


# -- what is kept --------------------------------------------------------------------------------------------------


def test_other_programs_find_a_hash_and_its_order(db: Any, client: Any) -> None:
    db.update(b="2", a="1")
    db.table("users")["ada"] = "3"
    assert client.hgetall("{app}:entries") == {b"a": b"1", b"b": b"2"}
    assert client.zrange("{app}:order", 0, -1) == [b"a", b"b"]
    assert client.hget("{app}/users:entries", "ada") == b"3"
    db.clear()
    assert not client.exists("{app}:entries", "{app}:order")


def test_what_was_stored_before_there_were_tables_is_found(client: Any, redis_server: Redis) -> None:
    client.hset("{old}:entries", mapping={"a": "1", "b": "2"})
    client.zadd("{old}:order", {"a": 0, "b": 0})
    with remote.open(redis_server.url, "r", table="old") as db:
        assert list(db.items()) == [(b"a", b"1"), (b"b", b"2")]


def test_names_are_on_one_node_of_a_cluster(redis_server: Redis, client: Any) -> None:
    """A cluster places a name by what stands between the first braces."""
    client.flushdb()
    with remote.open(redis_server.url, table="or}de{rs") as db:
        many(db.table("x"))
        with db.snapshot():
            db.table("x").clear()
            db["a"] = "1"
            names = client.keys("*")
            assert len(names) > 6
    assert {name.partition(b"{")[2].partition(b"}")[0] for name in names} == {b"or"}
    for wrong in ("", "}x"):
        with pytest.raises(ValueError, match="name"):
            remote.open(redis_server.url, table=wrong)


def test_readers_leave_nothing_behind(db: Any, client: Any) -> None:
    entries = many(db)
    before = set(client.keys("*"))
    snapshot, iterator, abandoned = db.snapshot(), iter(db), iter(db)
    assert next(abandoned) == next(iterator) == b"0000"
    block = db.transaction()
    block.__enter__()
    assert client.zcard("{app}:readers") == 4
    db.table("further")["x"] = "y"
    db.update(dict.fromkeys(entries, b"new"))
    block.__exit__(None, None, None)
    assert dict(snapshot) == entries
    assert len(list(iterator)) == 1199
    snapshot.close()
    del abandoned, iterator
    gc.collect()
    db["0000"] = "the next operation tells the server"
    assert set(client.keys("*")) - before == {b"{app}/further:entries", b"{app}/further:order"}


def test_a_handle_that_is_closed_takes_its_readers_with_it(redis_server: Redis, client: Any) -> None:
    db = remote.open(redis_server.url, table="app")
    many(db)
    iterator, snapshot = iter(db), db.snapshot()
    next(iterator)
    assert client.zcard("{app}:readers") == 2
    db.close()
    assert client.zcard("{app}:readers") == 0
    with pytest.raises(ClosedError):
        list(iterator)
    assert snapshot.closed


def test_short_iterators_are_no_readers(db: Any, client: Any) -> None:
    db.update(a="1", b="2")
    iterator = iter(db)
    assert client.zcard("{app}:readers") == 0
    del db["b"]
    assert list(iterator) == [b"a", b"b"]


def test_a_reader_that_does_nothing_for_long_is_given_up(
    db: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from durabledbm.remote.redis import session

    many(db)
    monkeypatch.setattr(session, "IDLE", -1)
    snapshot = db.snapshot()
    assert snapshot["0001"] == b"1", "nobody has written since"
    monkeypatch.setattr(session, "IDLE", 600)
    db["0001"] = "new"
    for use in (lambda: snapshot["0001"], lambda: list(snapshot), lambda: len(snapshot)):
        with pytest.raises(ClosedError, match="given up by the server"):
            use()
    assert client.zcard("{app}:readers") == 0

    def block() -> None:
        with db.transaction():
            db["a"] = db["0002"]
            client.zadd("{app}:readers", {client.zrange("{app}:readers", 0, 0)[0]: 1})  # long ago
            db.table("b")["x"] = db.get("c", b"in the block")
            client.zadd("{app}:readers", {client.zrange("{app}:readers", 0, 0)[0]: 1})
            with remote.open(db.location, table="app") as other:
                other["d"] = "x"

    with pytest.raises(ClosedError, match="given up"):
        block()
    assert client.keys("*:changed:*") == client.keys("*:touched:*") == client.keys("*:old:*") == []
    assert "a" not in db


def test_a_reader_sees_what_was_there_whatever_becomes_of_it(db: Any) -> None:
    """Changed, deleted, deleted and made anew, new, dropped with its table: at the front, in the middle, at the end."""
    entries = many(db)
    table = db.table("dropped")
    table["x"] = "y"
    with db.snapshot() as snapshot:
        for key in (b"0000", b"0599", b"1199"):
            db[key] = "changed"
        for key in (b"0001", b"0600", b"1198"):
            del db[key]
        for key in (b"0002", b"0601", b"1197"):
            db[key] = db.pop(key) + b" again"
        db.update({b"": b"new", b"0600a": b"new", b"9": b"new"})
        db.drop_table("dropped")
        assert dict(snapshot.items()) == entries
        assert dict(snapshot.range(reverse=True)) == entries
        assert list(snapshot) == sorted(entries)
        assert (snapshot.first(), snapshot.last()) == ((b"0000", b"0"), (b"1199", b"1199"))
        assert len(snapshot) == 1200
        assert snapshot.get_many(entries) == entries
        assert b"9" not in snapshot
        assert snapshot.nextkey(b"0599") == b"0600"
        assert dict(snapshot.table("dropped")) == {b"x": b"y"}
        db.clear()
        assert dict(snapshot.items()) == entries
        assert bool(snapshot)


def test_an_update_that_is_larger_than_a_command_should_be(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from durabledbm.remote.redis import scripts, table

    monkeypatch.setattr(scripts, "_BLOB", 1000)
    monkeypatch.setattr(table, "PAGE_BYTES", 1000)
    entries = {b"%03d" % number: b"x" * (number % 50) for number in range(300)} | {b"large": b"y" * 5000}
    db.update(entries)
    assert dict(db.items()) == dict(db.range(reverse=True)) == entries
    with db.transaction() as tx:
        tx.update(dict.fromkeys(entries, b"new"))
        del tx["large"]
    assert dict(db.items()) == {key: b"new" for key in entries if key != b"large"}


# -- the server ----------------------------------------------------------------------------------------------------


def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(db: Any, client: Any) -> None:
    db["a"] = "1"
    client.script_flush()
    db["b"] = "2"
    assert list(db) == [b"a", b"b"]


def test_flags_and_names(redis_server: Redis, client: Any) -> None:
    client.flushdb()
    for flag in "rw":
        with pytest.raises(error) as caught:
            remote.open(redis_server.url, flag, table="flags")
        assert caught.value.errno == errno.ENOENT
    remote.open(redis_server.url, table="flags").close()
    with remote.open(redis_server.url, "r", table="flags") as db:
        assert db.stats().server.startswith("Redis ")
        assert repr(db) == f"<RedisDatabase 'flags' at {db.location!r}, read-only>"
        for write in (lambda: db.update(a="1"), lambda: db.table("new"), lambda: db.drop_table("x")):
            with pytest.raises(ReadOnlyError):
                write()
        db.sync()
    with pytest.raises(ValueError, match="decode_responses"):
        remote.open(f"{redis_server.url}?decode_responses=True", table="flags")
    with pytest.raises(ValueError, match="option"):
        remote.open(redis_server.url, table="flags", no_such_option=1)


def test_a_name_that_holds_something_else_is_our_error(db: Any, client: Any) -> None:
    client.set("{app}:entries", "text")
    try:
        for use in (lambda: db["a"], lambda: db.update(a="1"), lambda: len(db)):
            with pytest.raises(error, match="WRONGTYPE"):
                use()
    finally:
        client.delete("{app}:entries")
    db["a"] = "1"


def test_an_entry_that_is_too_large_is_a_value_error(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(db._table), "entry_max", 100)
    with pytest.raises(ValueError, match="the limit is 100"):
        db["a"] = "x" * 100


def test_a_secret_is_in_no_message(redis_server: Redis) -> None:
    pytest.importorskip("redis")
    with pytest.raises(error) as caught:
        remote.open("unix://ada:s3cret@/no/such/socket?db=1", table="app")
    assert "s3cret" not in str(caught.value)
    assert str(caught.value).startswith("unix:///no/such/socket?db=1: cannot connect")
