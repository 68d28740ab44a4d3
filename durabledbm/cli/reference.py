"""docs/cli.md, made from the same descriptions as the help.

To write it anew: `python -m durabledbm.cli.reference > docs/cli.md`.
A test holds the file to what this makes.
"""

from __future__ import annotations

import sys
import textwrap

from .app import CTRL_C, GROUPS, NO_READER, find
from .command import Command, Parser, exit_lines, usage_of

__all__ = ["markdown"]

_HEAD = """# The command line

`durabledbm COMMAND …`, or `python -m durabledbm COMMAND …`. This page is what `durabledbm COMMAND --help`
says, made from the same source; a test holds the two together.

Every command ends with status 0 if it is done, 1 if the answer is no (a key is missing, a check found
problems), and 2 if it failed or the arguments are wrong; what is wrong is one line on standard
error, which names the file and says what to do next, and `--debug` adds the Python traceback. What was asked for
goes to standard output; what is said about it (what was done, what is waited for) to standard error. Ctrl-C ends a
command quietly (status {ctrl_c} for the shell), and so does a reader that goes away, as in `durabledbm list
app.db | head` (status {no_reader}). Long work shows its progress on a terminal, with
[tqdm](https://tqdm.github.io/) if it is installed (`pip install tqdm`), and nothing in a pipe.
"""


_NOT_RUN = {
    "tour": "it takes its time; tests/test_tour.py runs it",
    "completion": "for interactive shells; tests/test_cli.py asks bash for completions",
}
"""Examples that the tests of the documentation leave out, and why: the page says it in a comment."""


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD.format(ctrl_c=CTRL_C, no_reader=NO_READER)]
    for _, title, names in GROUPS:
        parts.append(f"## {title}\n")
        for name in names:
            command = find(name)
            assert command is not None
            parts.append(_section(command))
    return "\n".join(parts)


def _section(command: Command) -> str:
    parser = command.parser()
    lines = [
        f"### {command.name}",
        "",
        f"{command.summary[0].upper()}{command.summary[1:]}.",
        "",
        "```text",
        usage_of(parser),
        "```",
        "",
    ]
    for paragraph in command.description.strip().split("\n\n"):
        lines += [*textwrap.wrap(_prose(" ".join(paragraph.split())), 110, break_on_hyphens=False), ""]
    lines += _table(parser)
    if command.examples:
        if command.name in _NOT_RUN:
            lines.append(f"<!-- not run: {_NOT_RUN[command.name]} -->")
        lines += ["```sh", *(f"{line}  # {meaning}" for line, meaning in command.examples), "```", ""]
    if command.no:
        lines += [
            f"Exit status: {'; '.join(line.replace('  ', ': ', 1) for line in exit_lines(command))}.",
            "",
        ]
    return "\n".join(lines)


def _table(parser: Parser) -> list[str]:
    lines = ["| argument | meaning |", "|---|---|"]
    lines += [f"| `{_cell(entry.names)}` | {_prose(_cell(entry.help))} |" for entry in parser.entries]
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _prose(text: str) -> str:
    """Text in which Markdown would see something else than meant."""
    for char in "*_<":
        text = text.replace(char, "\\" + char)
    return text


if __name__ == "__main__":
    sys.stdout.write(markdown())
