"""CPython's own tests of shelve, from the running interpreter: its shelves over our files, and our shelves.

`test.test_shelve` builds its classes for each pickle protocol and each dbm module; here the same is done for
durabledbm, once with the standard library's `shelve` and once with `durabledbm.shelve`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import durabledbm
import durabledbm.shelve
import durabledbm.stdlib

test_shelve = pytest.importorskip("test.test_shelve", reason="this Python comes without its tests")
mapping_tests = pytest.importorskip("test.mapping_tests", reason="this Python comes without its tests")


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with durabledbm.stdlib.install():
        yield


class OurModule:
    """Mixed into a class of test_shelve: the name `shelve` there means ours."""

    @pytest.fixture(autouse=True)
    def patched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(test_shelve, "shelve", durabledbm.shelve)


class TestStdlibShelve(test_shelve.TestCase):  # type: ignore[misc,name-defined]
    """The standard library's shelves, over our files."""


class TestOurShelve(OurModule, test_shelve.TestCase):  # type: ignore[misc,name-defined]
    """Our shelves."""


def build() -> Iterator[tuple[str, type]]:
    file, memory = test_shelve.TestShelveFileBase, test_shelve.TestShelveInMemBase
    basic = mapping_tests.BasicTestMappingProtocol
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for writeback in (False, True):
            members: dict[str, Any] = {
                "_args": {"protocol": protocol, "writeback": writeback},
                "dbm_mod": durabledbm,
            }
            name = f"Protocol{protocol}{'Writeback' if writeback else ''}"
            yield f"Test{name}Stdlib", type(f"Test{name}Stdlib", (file, basic), dict(members))
            yield f"Test{name}File", type(f"Test{name}File", (OurModule, file, basic), dict(members))
            yield f"Test{name}Memory", type(f"Test{name}Memory", (OurModule, memory, basic), dict(members))


globals().update(build())
