"""What is opened on a server is the mapping that the contract describes: databases, blocks, snapshots and tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from mapping_spec import CLOSING, KEYED, READ_ONLY, READING, WRITING
from servers import Postgres, Redis

from durabledbm import remote

Make = Callable[[Mapping[bytes, bytes]], Any]

MORE = {"the_other_methods_of_a_closed_handle_raise_too", "reorganize_is_refused"}
"""They speak of what a file needs and a table does not: `check` and `reorganize`."""


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

    def database(self, entries: Mapping[bytes, bytes], flag: str = "c") -> Any:
        table = f"made {next(self.numbers)}"
        with remote.open(self.url, "n", table=table) as db:
            db.update(entries)
        return self.stack.enter_context(remote.open(self.url, flag, table=table))

    def read_only(self, entries: Mapping[bytes, bytes]) -> Any:
        return self.database(entries, "r")

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


def cases(kinds: dict[str, list[Any]]) -> Any:
    return pytest.mark.parametrize(
        ("kind", "spec"),
        [
            pytest.param(kind, spec, id=f"{kind}-{name}")
            for kind, specs in kinds.items()
            for name, spec in specs
            if name not in MORE
        ],
    )


@cases({
    "database": READING + WRITING + KEYED + CLOSING, "read_only": READING + READ_ONLY, "block": READING + WRITING,
    "nested": WRITING, "snapshot": READING, "table": READING + WRITING,
})  # fmt: skip
def test_it_is_the_mapping_that_the_contract_describes(maker: Maker, kind: str, spec: Callable[[Make], None]) -> None:
    spec(getattr(maker, kind))
