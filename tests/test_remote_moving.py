"""Moving: dumps to servers and back, and a file in use that is followed until the switch."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from servers import Postgres, Redis

import durabledbm
from durabledbm import BusyError, CorruptionError, error, remote
from durabledbm.changelog import ChangeLog, Commit
from durabledbm.cli.app import main
from durabledbm.dump import dump, load
from durabledbm.remote import ConnectionLostError
from durabledbm.remote.mirror import Mirror


@pytest.fixture(params=["postgres", "redis"])
def server(request: pytest.FixtureRequest) -> Postgres | Redis:
    return request.getfixturevalue("postgres" if request.param == "postgres" else "redis_server")  # type: ignore[no-any-return]


@pytest.fixture
def there(server: Postgres | Redis) -> Iterator[Any]:
    """An empty table."""
    with remote.open(server.url, "n", table="moved") as there:
        yield there


ENTRIES = {
    **{b"%05d" % number: b"%d" % number for number in range(2500)}, b"": b"empty", b"\xff\0|\n": b"any bytes",
    b"long" * 600: b"", b"long" * 600 + b"er": b"x", b"large": b"v" * 300_000,
}  # fmt: skip


# -- dump and load -------------------------------------------------------------------------------------------------


def test_a_dump_is_loaded_and_dumped_again(there: Any, db: durabledbm.Database, tmp_path: Path) -> None:
    db.update(ENTRIES)
    dump(db, tmp_path / "dump")
    there.update({"other": "stays", b"00000": b"replaced"})
    calls: list[tuple[int, int | None]] = []
    loaded = load(tmp_path / "dump", there, progress=lambda done, total: calls.append((done, total)))
    assert loaded.changes == len(ENTRIES)
    assert dict(there) == {**ENTRIES, b"other": b"stays"}
    assert calls
    del there["other"]
    dump(there, tmp_path / "back", max_file_size=2**20)
    with durabledbm.open(tmp_path / "again", "c") as again:
        load(tmp_path / "back", again)
        assert again == db == there


def test_of_a_log_the_last_change_of_a_key_counts(there: Any, tmp_path: Path) -> None:
    model: dict[bytes, bytes] = {b"stays": b"1", b"1": b"before"}
    there.update(model)
    rng = random.Random(2)
    with ChangeLog(tmp_path / "log", 10_000) as log:
        for number in range(1, 60):
            changes: dict[bytes, bytes | None] = {
                b"%d" % rng.randrange(40): rng.choice((None, b"%d" % number)) for _ in range(10)
            }
            log.commit(changes.items(), number)
            for key, value in changes.items():
                if value is None:
                    model.pop(key, None)
                else:
                    model[key] = value
    assert load(tmp_path / "log", there).changes > 400
    assert dict(there) == model


def test_what_is_not_complete_changes_nothing(postgres: Postgres, db: durabledbm.Database) -> None:
    db.update(ENTRIES)
    whole = io.BytesIO()
    dump(db, whole)
    with remote.open(postgres.url, "n", table="moved") as there:
        there["a"] = "1"
        for data in (whole.getvalue()[:-10], whole.getvalue()[:50_000], whole.getvalue()[:5000] + b"garbage" * 100):
            with pytest.raises((error, CorruptionError)):
                load(io.BytesIO(data), there)
            assert dict(there) == {b"a": b"1"}
        assert load(io.BytesIO(whole.getvalue()), there).changes == len(ENTRIES)


@pytest.mark.parametrize("change", ["set_byte(NEW.value, 0, 7)", "NEW.value || 'x'"])
def test_what_was_loaded_is_compared_with_what_is_there(postgres: Postgres, tmp_path: Path, change: str) -> None:
    """A trigger, of all things, changes what is written."""
    with ChangeLog(tmp_path / "log") as log:
        log.put("a", "value")
    with remote.open(postgres.url, "n", table="moved") as there:
        postgres.run(
            "CREATE OR REPLACE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN NEW.value := {change}; RETURN NEW; END $$"
        )
        postgres.run("CREATE TRIGGER meddle BEFORE INSERT ON moved FOR EACH ROW EXECUTE FUNCTION meddle()")
        try:
            with pytest.raises(error, match="not what was written; nothing was loaded"):
                load(tmp_path / "log", there)
            assert len(there) == 0
        finally:
            postgres.run("DROP TRIGGER meddle ON moved")


def test_loading_into_a_table_and_in_a_block(there: Any, tmp_path: Path) -> None:
    with ChangeLog(tmp_path / "log") as log:
        log.put("a", "1")
        log.delete("b")
    table = there.table("further")
    table["b"] = "gone"
    assert load(tmp_path / "log", table).changes == 2
    assert dict(table) == {b"a": b"1"}
    assert len(there) == 0
    with suppress(ZeroDivisionError), there.transaction():
        there["c"] = "2"
        load(tmp_path / "log", there)
        assert dict(there) == {b"a": b"1", b"c": b"2"}
        raise ZeroDivisionError
    assert len(there) == 0


def test_while_something_is_loaded_others_read_and_the_loader_does_not_write_beside_it(postgres: Postgres) -> None:
    with remote.open(postgres.url, "n", table="moved", timeout=0.1) as there, there.loading() as loader:
        loader.change(b"a", b"1")
        with remote.open(postgres.url, table="moved", timeout=0.1) as other:
            assert dict(other) == {}
            with pytest.raises(BusyError):
                other["b"] = "2"
        with pytest.raises(BusyError, match="another operation"):
            there["c"] = "3"
        assert dict(there) == {}, "what is committed"
    with remote.open(postgres.url, table="moved") as there:
        assert dict(there) == {b"a": b"1"}


def test_an_engine_that_knows_no_temporary_tables_is_loaded_in_batches(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, db: durabledbm.Database, tmp_path: Path
) -> None:
    from durabledbm.remote.postgresql.session import Session

    original = Session.once

    def once(self: Any, statement: str, *args: Any) -> Any:
        return original(self, statement.replace("CREATE TEMPORARY TABLE", "CREATE NO SUCH TABLE"), *args)

    monkeypatch.setattr(Session, "once", once)
    db.update(ENTRIES)
    dump(db, tmp_path / "dump")
    with remote.open(postgres.url, "n", table="moved") as there:
        load(tmp_path / "dump", there)
        assert there == db


# -- mirror --------------------------------------------------------------------------------------------------------


def write_something(db: Any, rng: random.Random) -> None:
    action = rng.randrange(6)
    if action < 3:
        db[b"%d" % rng.randrange(100)] = rng.randbytes(rng.choice((0, 10, 5000)))
    elif action == 3:
        db.pop(b"%d" % rng.randrange(100), None)
    elif action == 4:
        db.update({b"%d" % rng.randrange(3000): b"x" for _ in range(rng.randrange(300))})
    elif rng.random() < 0.2:
        db.clear()


def test_a_file_in_use_is_followed_until_the_switch(there: Any, db_path: str) -> None:
    begun, stop = threading.Event(), threading.Event()

    def serve() -> None:
        """The program whose file it is."""
        rng = random.Random(3)
        with durabledbm.open(db_path, "w", durability="process") as db:
            db["served"] = "1"
            begun.set()
            while not stop.is_set():
                write_something(db, rng)
            db["last"] = "word"

    with durabledbm.open(db_path, "c") as db:
        db.update(ENTRIES)
    service = threading.Thread(target=serve)
    service.start()
    begun.wait()
    with Mirror(db_path, there) as mirror:
        assert mirror.commit is None
        mirror.load()
        seen = set()
        while len(seen) < 3:
            commit = mirror.catch_up()
            if commit is not None:
                assert commit == mirror.commit
                seen.add(commit.txid)
        stop.set()
        service.join()
        last = mirror.finish()
        assert mirror.verify() == len(there)
        assert mirror.catch_up() is None
    with durabledbm.open(db_path) as db:
        assert last.txid == db.stats().txid
        assert there == db
        assert there["last"] == b"word"


def test_every_step_leads_from_one_commit_to_another(there: Any, db: durabledbm.Database) -> None:
    """Seen from beside, the target is never between two commits."""
    db.update({"a": "0", "b": "0"})
    with Mirror(db.path, there) as mirror:
        with pytest.raises(error, match="comes before"):
            mirror.catch_up()
        mirror.load()
        for number in range(1, 5):
            db.update({"a": str(number), "b": str(number)})
            commit = mirror.catch_up()
            assert commit is not None
            assert commit.txid == db.stats().txid
            assert there.get_many(["a", "b"]) == {b"a": b"%d" % number, b"b": b"%d" % number}
        assert mirror.catch_up() is None


def test_a_file_whose_program_logs_its_changes_is_followed_as_well(
    there: Any, db: durabledbm.Database, tmp_path: Path
) -> None:
    with ChangeLog(tmp_path / "log") as log, db.attach(log):
        db["a"] = "1"
        with Mirror(db.path, there) as mirror:
            mirror.load()
            db["b"] = "2"
            mirror.finish()
    assert there == db


def test_a_connection_that_breaks_on_the_way_is_no_end(
    there: Any, server: Postgres | Redis, db: durabledbm.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.update(ENTRIES)
    with Mirror(db.path, there) as mirror:
        mirror.load()
        db.update({"new": "1", "large": "2"})
        original = there._table.apply
        broken: list[object] = []

        def apply(session: Any, changes: Any) -> Any:
            if not broken:
                broken.append(server.kill_connections())
            return original(session, changes)

        monkeypatch.setattr(there._table, "apply", apply)
        with pytest.raises(ConnectionLostError):
            mirror.catch_up()
        assert isinstance(mirror.catch_up(), Commit)
        mirror.finish()
        assert there == db


def test_a_target_that_holds_something_is_left_alone_unless_it_is_to_be_replaced(
    there: Any, db: durabledbm.Database
) -> None:
    db["a"] = "1"
    there["b"] = "2"
    with Mirror(db.path, there) as mirror, pytest.raises(error, match="not empty"):
        mirror.load()
    assert dict(there) == {b"b": b"2"}
    with Mirror(db.path, there, replace=True) as mirror:
        assert mirror.load() == 1
        mirror.finish()
    assert dict(there) == {b"a": b"1"}


def test_the_switch_is_refused_while_somebody_writes_here_or_there(there: Any, db: durabledbm.Database) -> None:
    db.update(ENTRIES)
    with Mirror(db.path, there, timeout=0.05) as mirror:
        mirror.load()
        go_on, begun = threading.Event(), threading.Event()

        def write() -> None:
            with db.transaction():
                begun.set()
                go_on.wait()
                db["late"] = "1"

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait()
        with pytest.raises(BusyError):
            mirror.finish()
        go_on.set()
        thread.join()
        there["somebody"] = "else"
        with pytest.raises(error, match="does not match the file"):
            mirror.finish()
        there["late"] = there.pop("somebody")
        mirror.finish()
        with pytest.raises(error, match="late"):
            mirror.verify()
        there["late"] = "1"
        assert mirror.verify() == len(ENTRIES) + 1
        there["zzz"] = "more"
        with pytest.raises(error):
            mirror.verify()


# -- the command line ----------------------------------------------------------------------------------------------


class Commands:
    """Runs commands in this process."""

    def __init__(self, capture: pytest.CaptureFixture[bytes]) -> None:
        self._capture = capture

    def __call__(self, *args: str) -> tuple[int, str, str]:
        """Exit status, and what was written to standard output and to standard error."""
        status = main(args)
        output, errors = self._capture.readouterr()
        return status, output.decode(), errors.decode()


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Commands:
    return Commands(capfdbinary)


def test_commands_to_a_server_and_back(
    there: Any, server: Postgres | Redis, db: durabledbm.Database, tmp_path: Path, run: Commands
) -> None:
    db.update(a="1", b="2")
    dump(db, tmp_path / "dump")
    status, output, errors = run("load", "--to", server.url, "--table", "moved", str(tmp_path / "dump"))
    assert (status, output) == (0, "")
    assert errors.startswith("table moved: 2 changes loaded, as of commit ")
    assert dict(there) == {b"a": b"1", b"b": b"2"}
    back = str(tmp_path / "back")
    assert run("dump", "--from", server.url, "--table", "moved", back) == (0, "", f"{back}: 2 entries\n")
    text = run("dump", "--from", server.url, "--table", "moved", "--codec", "text")
    assert text == (0, "P|a|1\nP|b|2\n", "")
    status, _, errors = run("dump", "--from", server.url, "--table", "missing")
    assert status == 2
    assert errors == f"durabledbm dump: {there.location}: there is no table 'missing'\n"


@pytest.mark.parametrize(("args", "said"), [
    (["load", "--to", "mysql://host", "x"], "must begin with postgresql://"),
    (["load", "--to", "redis://host", "x", "y"], "a SOURCE, but no FILE"),
    (["load", "--to", "redis://host", "x", "--log", "y"], "does not go with --to"),
    (["load"], "name a FILE"),
    (["dump"], "name a FILE"),
    (["dump", "--from", "redis://host", "x", "y"], "a TARGET, but no FILE"),
    (["mirror", "none.db", "unix:///no/such/socket"], "unix:///no/such/socket?db=0: cannot connect"),
])  # fmt: skip
def test_commands_that_make_no_sense(run: Commands, args: list[str], said: str) -> None:
    pytest.importorskip("redis")
    status, output, errors = run(*args)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert said in errors


def test_mirror_once(there: Any, server: Postgres | Redis, db: durabledbm.Database, run: Commands) -> None:
    db["a"] = "1"
    command = ["mirror", db.path, server.url, "--table", "moved", "--once"]
    status, output, errors = run(*command)
    assert status == 0
    assert output.startswith(f"table moved: the same as {db.path}, as of commit {db.stats().txid} ")
    assert errors.startswith(f"{db.path}: 1 entry loaded into table moved")
    status, _, errors = run(*command)
    assert (status, errors) == (2, f"durabledbm mirror: {there.location}: the table 'moved' is not empty\n")
    status, output, _ = run(*command, "--force", "--verify")
    assert (status, "each entry compared" in output) == (0, True)
    assert there == db


def test_mirror_on_the_command_line_follows_until_it_is_interrupted(
    postgres: Postgres, db: durabledbm.Database
) -> None:
    db.update(ENTRIES)
    command = [sys.executable, "-m", "durabledbm", "mirror", db.path, postgres.url, "--table", "moved", "--force"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"{len(ENTRIES):,} entries loaded" in process.stderr.readline()
        assert "press Ctrl-C" in process.stderr.readline()
        for number in range(20):
            db[b"new %d" % number] = os.urandom(20)
        postgres.kill_connections()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.startswith(f"table moved: the same as {db.path}, as of commit {db.stats().txid}")
    with remote.open(postgres.url, table="moved") as there:
        assert there == db
