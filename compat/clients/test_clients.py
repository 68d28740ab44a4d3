"""Real programs with their data in durabledbm files: each flow twice, the second time from what was stored.

Each program runs in an environment of its own (see `venvs.py`), and is skipped where that was not made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import durabledbm
from compat.clients.venvs import REQUIREMENTS, python_of

FLOWS = Path(__file__).parent / "flows"
ROOT = Path(durabledbm.__file__).parents[1]


def interpreter(name: str) -> str:
    assert name in REQUIREMENTS
    python = python_of(name)
    if python is None:
        pytest.skip(f"{name} is not installed: python -m compat.clients.venvs {name}")
    return str(python)


def run(command: list[str], directory: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=directory, env=environment, check=False, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_flow(name: str, directory: Path, *args: str) -> Any:
    return json.loads(run([interpreter(name), str(FLOWS / f"{name}_flow.py"), *args], directory))


def verified(path: Path) -> int:
    """Check a file as `durabledbm check` does, and return its number of entries."""
    command = [sys.executable, "-m", "durabledbm", "check", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    with durabledbm.open(path) as db:
        return len(db)


# Scrapy


@pytest.fixture
def site() -> Iterator[tuple[str, list[str]]]:
    """A web site of 20 pages, and the list of what was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            number = int(self.path.strip("/") or 0)
            links = "".join(f'<a href="/{n}">{n}</a>' for n in range(number + 1, min(number + 3, 20)))
            body = f"<html><body>{links}{'x' * number * 1000}</body></html>".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()
        thread.join()


def test_scrapy_crawls_from_its_cache_the_second_time(tmp_path: Path, site: tuple[str, list[str]]) -> None:
    url, asked = site
    cache = tmp_path / "cache"
    first = run_flow("scrapy", tmp_path, url, str(cache))
    assert len(first["pages"]) == first["stored"] == len(asked) == 20
    assert first["errors"] == 0
    second = run_flow("scrapy", tmp_path, url, str(cache))
    assert second == {"pages": first["pages"], "stored": 0, "from the cache": 20, "errors": 0}
    assert len(asked) == 20
    assert [entry.name for entry in cache.iterdir()] == ["site.db"]
    assert verified(cache / "site.db") == 40


# Beaker


def test_beaker_finds_its_values_and_sessions_the_second_time(tmp_path: Path) -> None:
    first = run_flow("beaker", tmp_path, str(tmp_path / "data"))
    assert (first["made"], first["visits"]) == (20, 1)
    second = run_flow("beaker", tmp_path, str(tmp_path / "data"))
    assert (second["made"], second["visits"]) == (0, 2)
    assert second["values"] == first["values"]
    files = [path for path in (tmp_path / "data").rglob("*.dbm*") if path.is_file()]
    assert [path.suffix for path in files] == [".dbm", ".dbm"]
    assert sorted(map(verified, files)) == [1, 20]


# zarr


def test_zarr_goes_on_with_its_arrays_the_second_time(tmp_path: Path) -> None:
    total = sum(range(10_000))
    first = run_flow("zarr", tmp_path, "arrays", "1")
    assert first["sum before"] == total
    assert first["shape"] == [110, 100]
    second = run_flow("zarr", tmp_path, "arrays", "2")
    assert second["sum before"] == total - sum(range(100, 200)) - 100 + 1000 * 1
    assert second == {
        "sum before": second["sum before"],
        "shape": [120, 100],
        "attributes": {"made by": "the first run"},
        "arrays": ["b", "run 1", "run 2"],
        "chunks": 120,
    }
    assert verified(tmp_path / "arrays") > 120


# doit


def test_doit_has_nothing_to_do_the_second_time(tmp_path: Path) -> None:
    python = interpreter("doit")
    (tmp_path / "input").write_text("some text\n")
    (tmp_path / "dodo.py").write_text((FLOWS / "dodo.py").read_text())

    def doit(*args: str) -> list[str]:
        command = [python, "-m", "durabledbm", "exec", str(Path(python).with_name("doit")), *args]
        return run(command, tmp_path).split("\n")

    assert doit() == [".  first", ".  second", ""]
    assert (tmp_path / "output").read_text() == "SOME TEXT\nSOME TEXT\n"
    assert verified(tmp_path / "state") == 2
    assert doit() == ["-- first", "-- second", ""]
    (tmp_path / "input").write_text("another text\n")
    assert doit() == [".  first", ".  second", ""]
    doit("forget", "--all")  # deletes its handle and at once opens the file anew with "n"
    assert verified(tmp_path / "state") == 0
    assert doit() == [".  first", ".  second", ""]
    assert verified(tmp_path / "state") == 2


# SCons


def test_scons_finds_everything_up_to_date_the_second_time(tmp_path: Path) -> None:
    python = interpreter("scons")
    (tmp_path / "input").write_text("some text\n")
    (tmp_path / "SConstruct").write_text((FLOWS / "SConstruct").read_text())

    def scons() -> list[str]:
        return run([python, str(Path(python).with_name("scons")), "-Q"], tmp_path).split("\n")

    assert scons() == ["tr a-z A-Z < input > middle", "cat middle middle > output", ""]
    assert (tmp_path / "output").read_text() == "SOME TEXT\nSOME TEXT\n"
    assert verified(tmp_path / "signatures") > 0
    assert scons() == ["scons: `.' is up to date.", ""]
    (tmp_path / "input").write_text("another text\n")
    assert len(scons()) == 3
    assert scons() == ["scons: `.' is up to date.", ""]
    assert verified(tmp_path / "signatures") > 0
