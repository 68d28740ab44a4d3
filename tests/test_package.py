"""What pyproject.toml says of the package: one version, the Pythons that are tested, what package indexes show."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest

import durabledbm

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="it is there since Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))  # type: ignore[no-any-return]


def test_there_is_one_version_number(project: dict[str, Any]) -> None:
    assert "version" in project["project"]["dynamic"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text("utf-8")
    assert re.findall(r'^__version__ = "(.*)"$', source, re.MULTILINE) == [durabledbm.__version__]
    try:
        installed = importlib.metadata.version("durabledbm")
    except importlib.metadata.PackageNotFoundError:
        return
    assert installed == durabledbm.__version__


def test_the_versions_of_python_that_are_named_are_those_that_are_run(project: dict[str, Any]) -> None:
    prefix = "Programming Language :: Python :: "
    named = [line.removeprefix(prefix) for line in project["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]
    run = re.search(r"^for version in (.*); do$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert run is not None
    assert named == run[1].split()
    assert project["project"]["requires-python"] == f">={named[0]}"


def test_on_a_package_index_no_link_leads_nowhere(project: dict[str, Any]) -> None:
    """What README says there, as the build makes it: paths of the repository are named, and no links."""
    text = (ROOT / "README.md").read_text("utf-8")
    pages = re.findall(r"\]\((docs/[^)#]*)", text)
    assert pages
    for substitution in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    assert re.findall(r"\]\((?!https?://)", text) == []
    assert all(f"`{page}`" in text for page in pages)
