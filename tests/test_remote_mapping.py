"""What is opened on a server is the mapping that the contract describes: databases, blocks, snapshots and tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from mapping_spec import CLOSING, KEYED, READ_ONLY, READING, WRITING, Specification
from servers import Postgres, Redis

from durabledbm import ClosedError, remote

Make = Callable[[Mapping[bytes, bytes]], Any]

FOR_FILES = {"the_other_methods_of_a_closed_handle_raise_too", "reorganize_is_refused"}
"""They speak of what a file needs and a table does not: `check` and `reorganize`."""

LONG = {
    "range_with_every_combination_of_arguments", "range_over_many_entries", "keys_come_in_the_order_of_bytes",
    "many_random_writes_match_a_dict", "values_of_a_megabyte",
}  # fmt: skip
"""Done where it matters most, and not everywhere: each round trip to a server takes its time."""


def short(specs: list[Specification]) -> list[Specification]:
    return [spec for spec in specs if spec[0] not in LONG]


def some(*names: str) -> list[Specification]:
    return [spec for spec in READING + WRITING if spec[0] in names]


KINDS = {
    "database": READING + WRITING + KEYED + CLOSING,
    "read_only": READ_ONLY,
    "block": short(READING + WRITING) + some("many_random_writes_match_a_dict"),
    "nested": some("set_replace_and_delete", "clear_empties", "an_iterator_sees_the_state_at_its_start"),
    "snapshot": short(READING),
    "table": some("set_replace_and_delete", "first_and_last", "update_takes_what_dict_update_takes",
                  "an_iterator_sees_the_state_at_its_start"),
}  # fmt: skip


@pytest.fixture(params=["postgres", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    server: Postgres | Redis = request.getfixturevalue("postgres" if request.param == "postgres" else "redis_server")
    return server.url


class Maker:
    """Makes mappings of several kinds on a server, and ends them."""

    numbers = itertools.count()

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url = url
        self.stack = stack

    def database(self, entries: Mapping[bytes, bytes]) -> Any:
        db = self.stack.enter_context(remote.open(self.url, table=f"made {next(self.numbers)}"))
        if entries:
            db.update(entries)
        return db

    def read_only(self, entries: Mapping[bytes, bytes]) -> Any:
        return self.stack.enter_context(remote.open(self.url, "r", table=self.database(entries).name))

    def block(self, entries: Mapping[bytes, bytes]) -> Any:
        return self.stack.enter_context(self.database(entries).transaction())

    def nested(self, entries: Mapping[bytes, bytes]) -> Any:
        db = self.database({})
        self.stack.enter_context(db.transaction()).update(entries)
        return self.stack.enter_context(db.transaction())

    def snapshot(self, entries: Mapping[bytes, bytes]) -> Any:
        db = self.database(entries)
        snapshot = self.stack.enter_context(db.snapshot())
        db.clear()
        db["other"] = "x"
        return snapshot

    def table(self, entries: Mapping[bytes, bytes]) -> Any:
        db = self.database({b"main": b"1"})
        table = db.table("tä.b/le")
        table.update(entries)
        return table


@pytest.fixture
def maker(url: str) -> Iterator[Maker]:
    with ExitStack() as stack:
        yield Maker(url, stack)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        pytest.param(kind, spec, id=f"{kind}-{name}")
        for kind, specs in KINDS.items()
        for name, spec in specs
        if name not in FOR_FILES
    ],
)
def test_it_is_the_mapping_that_the_contract_describes(maker: Maker, kind: str, spec: Callable[[Make], None]) -> None:
    spec(getattr(maker, kind))


def test_what_is_not_of_the_mapping_ends_with_the_handle_too(maker: Maker) -> None:
    db = maker.database({b"a": b"1"})
    table, snapshot, block = db.table("other"), db.snapshot(), db.transaction()
    db.close()
    for use in (db.snapshot, db.stats, db.sync, db.tables, lambda: db.table("new"), lambda: db.drop_table("other"),
                lambda: table["a"], lambda: snapshot[b"a"], block.__enter__):  # fmt: skip
        with pytest.raises(ClosedError):
            use()
    assert snapshot.closed
