"""The examples of a Markdown page, and running them as a reader would: one after another, in an empty directory.

* A block of Python is run, in names that all blocks of a page share. If its first line is a comment with the name of
  a file (`# worker.py`), it is saved under that name instead, for a block of shell to run.
* A block of shell is run by bash, and stops at the first command that fails. `durabledbm` and `python` are what the
  tests run with.
* A block of text that follows directly is what must have been printed; `...` in it stands for anything.
* A block that is not to be run says so, and why, in a comment before it: `<!-- not run: needs a network -->`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "Example", "Reader", "examples", "pages"]

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_FILE = re.compile(r"# ([\w.-]+\.py)\n")

LANGUAGES = {"python", "sh", "text"}
"""The only ones that there are, so that no example goes by another name."""


class Example(NamedTuple):
    """A block of code of a page."""

    page: str
    line: int
    language: str
    code: str
    output: str | None
    """What it must print, if the page says it."""
    reason: str | None
    """Why it is not run."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """The names of all pages, as seen from the root of the repository."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found]


def examples(page: str) -> list[Example]:
    """The blocks of a page that are Python or shell."""
    text = (ROOT / page).read_text("utf-8")
    found = list(_BLOCK.finditer(text))
    result = []
    for number, match in enumerate(found, 1):
        following = found[number] if number < len(found) else None
        language = match["language"]
        if language not in LANGUAGES:
            raise ValueError(f"{page}: a block in the language {language!r}")
        if language == "text":
            continue
        output = None
        if following is not None and following["language"] == "text":
            between = text[match.end() : following.start()]
            output = following["code"] if not between.strip() else None
        line = text.count("\n", 0, match.start("code"))
        code = textwrap.dedent(match["code"])
        result.append(Example(page, line, language, code, output, match["reason"]))
    return result


class Reader:
    """Somebody who follows a page in `directory`, which is empty at first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "work"
        self.names: dict[str, object] = {"__name__": "__main__"}
        programs = directory / "programs"
        self.directory.mkdir()
        programs.mkdir()
        for name, command in (("durabledbm", "-m durabledbm"), ("python", "")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
            program.chmod(0o755)
        self.programs = programs
        self.environment = {
            **os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "COLUMNS": "80", "PYTHONIOENCODING": "utf-8",
        }  # fmt: skip

    def follow(self, example: Example) -> None:
        """Run it. What it prints must be what the page says, if it says so."""
        if example.language == "python":
            printed = self._python(example)
        else:
            printed = self.shell(example.code, example.place)
        if example.output is not None:
            parts = map(re.escape, example.output.strip().split("..."))
            assert re.fullmatch(".*".join(parts), printed.strip(), re.DOTALL), (
                f"{example.place} prints\n{printed}and not\n{example.output}"
            )

    def _python(self, example: Example) -> str:
        name = _FILE.match(example.code)
        if name is not None:
            (self.directory / name[1]).write_text(example.code, "utf-8")
            return ""
        printed = io.StringIO()
        code = compile("\n" * example.line + example.code, str(ROOT / example.page), "exec")
        with _in(self.directory), contextlib.redirect_stdout(printed):
            exec(code, self.names)
        return printed.getvalue()

    def shell(self, code: str, place: str) -> str:
        """What a block of shell prints on both streams."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code], cwd=self.directory, env=self.environment, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", errors="backslashreplace",
        )  # fmt: skip
        assert done.returncode == 0, f"{place} ends with status {done.returncode}:\n{done.stdout}"
        return done.stdout


@contextlib.contextmanager
def _in(directory: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
