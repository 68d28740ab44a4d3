"""What is particular about databases on PostgreSQL: tables and names, what is in them, memory, settings."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Postgres

from durabledbm import ReadOnlyError, error, remote
from durabledbm.remote import ConnectionLostError
from durabledbm.shelve import Shelf


@pytest.fixture
def db(postgres: Postgres) -> Iterator[Any]:
    with remote.open(postgres.url, "n", table="app") as db:
        for name in db.tables():
            db.drop_table(name)
        yield db


# -- tables and names ----------------------------------------------------------------------------------------------


def test_other_programs_find_a_plain_table(db: Any, postgres: Postgres) -> None:
    db["user:1"] = "Ada"
    assert postgres.run("SELECT value FROM app WHERE key = 'user:1'") == [(b"Ada",)]
    postgres.run("INSERT INTO app (key, value) VALUES ('user:2', 'Grace')")
    assert db["user:2"] == b"Grace"
    assert list(db) == [b"user:1", b"user:2"]


def test_the_table_that_the_guide_shows_is_the_one_that_is_made() -> None:
    from durabledbm.remote.postgresql.sqltable import SqlTable

    class Noted:
        def do(self, statement: str) -> None:
            self.statement = statement

    noted: Any = Noted()
    SqlTable("app").create(noted)
    guide = (Path(__file__).parent.parent / "docs" / "guide" / "server.md").read_text("utf-8")
    shown = " ".join(guide.partition("    CREATE TABLE")[2].partition("\n\n")[0].split())
    assert "".join(f"CREATE TABLE {shown}".split()) == "".join(noted.statement.split())


def test_what_could_not_be_found_again_is_refused_by_the_table(db: Any, postgres: Postgres) -> None:
    for columns in ("repeat('x', 2001)::bytea, '', ''", "'x', 'rest', ''", "repeat('x', 2000)::bytea, 'rest', ''"):
        with pytest.raises(Exception, match="check constraint"):
            postgres.run(f"INSERT INTO app (key, rest, digest, value) VALUES ({columns}, 'v')")


@pytest.mark.parametrize("name", ['a"b', "100%", "ä€", "%s", "select", "a.b", "x" * 63, "'; DROP TABLE app; --"])
def test_a_table_may_have_any_name(postgres: Postgres, name: str) -> None:
    with remote.open(postgres.url, "n", table=name) as db:
        db["a"] = "1"
        assert list(db.items()) == [(b"a", b"1")]
        assert db.name == name
        assert postgres.run("SELECT count(*) FROM pg_tables WHERE tablename = %s", name) == [(1,)]
        assert db.stats().bytes > 0


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 64, "ä" * 32])
def test_a_name_that_no_table_can_have_is_a_value_error(postgres: Postgres, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        remote.open(postgres.url, table=name)


def test_a_table_of_somebody_else_is_left_alone(postgres: Postgres) -> None:
    postgres.run("DROP TABLE IF EXISTS theirs")
    postgres.run("CREATE TABLE theirs (key text, value text)")
    for flag in "rwcn":
        with pytest.raises(error, match="not one of durabledbm's"):
            remote.open(postgres.url, flag, table="theirs")
    postgres.run("DROP TABLE theirs")
    postgres.run("CREATE TABLE theirs (key text, rest text, digest text, value text)")
    with pytest.raises(error, match="not one of durabledbm's"):
        remote.open(postgres.url, table="theirs")


def test_flags(postgres: Postgres) -> None:
    postgres.run("DROP TABLE IF EXISTS flags")
    for flag in "rw":
        with pytest.raises(error) as caught:
            remote.open(postgres.url, flag, table="flags")
        assert caught.value.errno == errno.ENOENT
    with remote.open(postgres.url, table="flags") as db:
        db["a"] = "1"
    with remote.open(postgres.url, "w", table="flags") as db:
        db["b"] = "2"
    with remote.open(postgres.url, "r", table="flags") as db:
        assert len(db) == 2
    with remote.open(postgres.url, "n", table="flags") as db:
        assert len(db) == 0
    for wrong in ("x", "", "cf"):
        with pytest.raises(ValueError, match="Flag"):
            remote.open(postgres.url, wrong, table="flags")


def test_arguments_that_cannot_be(postgres: Postgres) -> None:
    for wrong in ({"timeout": -1}, {"max_connections": 0}, {"table": 7}, {"no_such_option": 1}):
        with pytest.raises((ValueError, TypeError)):
            remote.open(postgres.url, **wrong)
    for url in ("mysql://host", "app.db", "", "postgresql:///x?no_such=1"):
        with pytest.raises(ValueError, match="address"):
            remote.open(url)


def test_further_tables(db: Any, postgres: Postgres) -> None:
    assert db.tables() == []
    users = db.table("users")
    users["a"] = "1"
    db.table("ä % \"'")["b"] = "2"
    with remote.open(postgres.url, table="app.users") as same:
        assert dict(same) == {b"a": b"1"}
    with remote.open(postgres.url, "n", table="apparently another") as other:
        other.table("x")
    assert db.tables() == ["users", "ä % \"'"]
    assert "users" in repr(users)
    db.drop_table("users")
    assert db.tables() == ["ä % \"'"]
    for name in ("users", "never", ""):
        with pytest.raises(KeyError):
            db.drop_table(name)
    with pytest.raises(error, match="no longer exists"):
        users["a"]
    assert dict(db.table("users")) == {}
    with pytest.raises(ValueError, match="name"):
        db.table("x" * 60)
    with pytest.raises(TypeError, match="int"):
        db.table(7)


def test_a_table_is_dropped_with_the_block_or_not_at_all(db: Any) -> None:
    db.table("users")["a"] = "1"

    def block() -> None:
        with db.transaction():
            db.drop_table("users")
            assert db.tables() == []
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert dict(db.table("users")) == {b"a": b"1"}


def test_several_who_make_a_table_at_the_same_time_all_succeed(postgres: Postgres) -> None:
    postgres.run("DROP TABLE IF EXISTS race")
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with remote.open(postgres.url, table="race") as db:
                db["a"] = "1"
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_shelf_stands_on_a_table(db: Any) -> None:
    shelf: Shelf[Any] = Shelf(db.table("shelf"), writeback=True)
    shelf["list"] = [1]
    shelf["list"].append(2)

    def block() -> None:
        with shelf.transaction():
            shelf["other"] = {"a": 1}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    with shelf.snapshot() as then:
        shelf["list"] = []
        assert dict(then) == {"list": [1, 2]}
    shelf.close()
    with Shelf(db.table("shelf")) as shelf:
        assert dict(shelf) == {"list": []}
    with Shelf(db) as shelf:
        shelf["x"] = 1
    assert db.closed


# -- what is in them -----------------------------------------------------------------------------------------------


def test_keys_that_begin_with_the_same_2000_bytes_are_in_order(db: Any) -> None:
    stem = b"\xff" * 2000
    keys = [stem[:-1], stem, *(stem + bytes([a, b]) for a in (0, 128, 255) for b in (1, 200)), stem + b"\xff\xff\0"]
    db.update(dict.fromkeys(reversed(keys), b"v"))
    assert list(db) == keys
    assert list(reversed(db)) == keys[::-1]
    for key in keys:
        assert [k for k, _ in db.range(key)] == [k for k in keys if k >= key]
        assert [k for k, _ in db.range(None, key, reverse=True)] == [k for k in keys if k < key][::-1]
    assert db.nextkey(keys[3]) == keys[4]
    assert db.popitem()[0] == keys[-1]
    with db.transaction():
        assert db.setdefault(keys[4], "new") == b"v"
        del db[keys[4]]
    assert list(db) == [key for key in keys[:-1] if key != keys[4]]


def test_an_entry_that_is_too_large_is_a_value_error(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(db._table), "entry_max", 100)
    for write in (lambda: db.update(a=b"x" * 100), lambda: db.__setitem__(b"k" * 101, b""),
                  lambda: db.setdefault("a", "x" * 100)):  # fmt: skip
        with pytest.raises(ValueError, match="101 bytes, the limit is 100"):
            write()
    db["a"] = "x" * 99
    assert len(db) == 1


def test_large_values_go_another_way(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from durabledbm.remote.postgresql import sqltable

    monkeypatch.setattr(sqltable, "_LARGE", 1000)
    large = [bytes([number]) * 1000 for number in range(6)]
    db["a"] = large[0]
    db.update({"a": large[1], "b": large[2], "c": "small", "long" * 1000: large[3]})
    assert db.setdefault("d", large[4]) == db["d"] == large[4]
    assert db.setdefault("d", large[5]) == large[4]
    with db.transaction():
        db["a"] = large[5]
        assert db.setdefault("e", large[0]) == large[0]
    assert dict(db) == {
        b"a": large[5], b"b": large[2], b"c": b"small", b"d": large[4], b"e": large[0], b"long" * 1000: large[3],
    }  # fmt: skip


def test_an_iterator_fetches_little_at_a_time(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sizes of the entries: a page of small ones, or a large one."""
    from durabledbm.remote.postgresql.session import Session

    sizes: list[int] = []
    entries = {b"%04d" % number: b"x" * (10 if number % 50 else 200_000) for number in range(1500)}
    for name in ("rows", "once"):
        original = getattr(Session, name)

        def spy(self: Any, *args: Any, original: Callable[..., Any] = original) -> Any:
            rows = original(self, *args)
            sizes.append(sum(len(part) for row in rows for part in row if type(part) is bytes))
            return rows

        monkeypatch.setattr(Session, name, spy)
    db.update(entries)
    del sizes[:]
    assert dict(db.items()) == entries
    assert dict(db.range(reverse=True)) == entries
    assert list(db) == sorted(entries)
    assert max(sizes) < 201_000
    with db.snapshot() as snapshot:
        assert dict(snapshot.items()) == entries


def test_a_large_update_is_one_commit(db: Any, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    from durabledbm.remote.postgresql import sqltable
    from durabledbm.remote.postgresql.session import Session

    monkeypatch.setattr(sqltable, "_BATCH_ENTRIES", 100)
    changes = {b"%04d" % number: b"x" for number in range(450)}
    db.update(changes)
    assert dict(db) == changes
    count, original = 0, Session.do

    def do(self: Any, statement: str, *args: Any) -> int:
        nonlocal count
        if "unnest" in statement:
            count += 1
            if count == 3:
                postgres.kill_connections()
        return original(self, statement, *args)

    monkeypatch.setattr(Session, "do", do)
    with pytest.raises(ConnectionLostError):
        db.update(dict.fromkeys(changes, b"y"))
    assert dict(db) == changes


def test_puts_and_deletes_in_one_change(db: Any) -> None:
    db.update({b"%d" % number: b"old" for number in range(10)})
    db._apply({b"1": b"new", b"2": None, b"x": b"new", b"never": None})
    assert dict(db) == {**{b"%d" % n: b"old" for n in range(10) if n not in (1, 2)}, b"1": b"new", b"x": b"new"}
    db._apply({b"x": None})
    assert "x" not in db


# -- settings ------------------------------------------------------------------------------------------------------


def test_a_secret_is_in_no_message(postgres: Postgres) -> None:
    url = postgres.url.replace("durabledbm@", "durabledbm:s3cret@")
    with remote.open(url, table="app") as db:
        assert "s3cret" not in db.location + repr(db)
        assert remote.open(db.location, table="app", user="durabledbm").close() is None

        def block() -> None:
            with db.transaction():
                postgres.kill_connections()
                db["a"]

        with pytest.raises(error) as caught:
            block()
        assert "s3cret" not in str(caught.value)
    with pytest.raises(ConnectionLostError) as caught:
        remote.open("postgresql://ada:s3cret@/none?host=/no/such/directory", table="app")
    assert "s3cret" not in str(caught.value)


def test_a_user_who_may_only_read(db: Any, postgres: Postgres) -> None:
    db["a"] = "1"
    with remote.open(postgres.url, "w", table="app", options="-c default_transaction_read_only=on") as reader:
        assert reader["a"] == b"1"
        for write in (lambda: reader.update(a="2"), lambda: reader.pop("a"), reader.clear):
            with pytest.raises(ReadOnlyError):
                write()
        with pytest.raises(ReadOnlyError), reader.transaction():
            reader["a"] = "2"


def test_where_snapshots_cannot_be_exported_threads_take_turns(db: Any, postgres: Postgres) -> None:
    db["a"] = "1"
    postgres.run("REVOKE EXECUTE ON FUNCTION pg_export_snapshot() FROM PUBLIC")
    postgres.run("DROP ROLE IF EXISTS plain")
    postgres.run("CREATE ROLE plain LOGIN")
    postgres.run("GRANT SELECT ON app TO plain")
    try:
        with remote.open(postgres.url, "r", table="app", user="plain") as reader, reader.snapshot() as snapshot:
            db["a"] = "2"
            results: list[bytes] = []
            threads = [
                threading.Thread(target=lambda: results.extend(snapshot["a"] for _ in range(20))) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results == [b"1"] * 80
            assert reader.stats().connections == 1, "no thread needed another one"
    finally:
        postgres.run("REVOKE ALL ON app FROM plain")
        postgres.run("DROP ROLE plain")
        postgres.run("GRANT EXECUTE ON FUNCTION pg_export_snapshot() TO PUBLIC")


def test_sync_waits_for_the_disk_where_writes_do_not(
    db: Any, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    from durabledbm.remote.postgresql.session import Session

    statements: list[str] = []
    original = Session.once

    def once(self: Any, statement: str, *args: Any) -> Any:
        statements.append(statement)
        return original(self, statement, *args)

    monkeypatch.setattr(Session, "once", once)
    with remote.open(postgres.url, table="app", options="-c synchronous_commit=off") as relaxed:
        relaxed["a"] = "1"
        ((written,),) = postgres.run("SELECT pg_current_wal_insert_lsn()")
        relaxed.sync()
        assert postgres.run("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", written) == [(True,)]
    assert any("synchronous_commit = on" in statement for statement in statements)
    del statements[:]
    db["b"] = "2"
    db.sync()
    assert not any("synchronous_commit" in statement for statement in statements), "it is on the disk already"


@pytest.mark.parametrize(("package", "url"), [("psycopg", "postgresql:///x"), ("redis", "redis://localhost")])
def test_without_the_driver_the_error_says_how_to_get_it(package: str, url: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import durabledbm\n"
        f"try: durabledbm.remote.open({url!r})\n"
        "except durabledbm.error as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install durabledbm[" in done.stdout
