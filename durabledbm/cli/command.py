"""What a command is, and how it presents itself.

One description, from which parsing, `--help`, the reference in docs/cli.md and shell completion are made.

`argparse` parses; the help is laid out here, so that it is the same on every Python version, has examples and
exit statuses, and can be turned into Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from .._text import terminal_width

__all__ = [
    "PROGRAM",
    "Command",
    "Entry",
    "Parser",
    "exit_lines",
    "file_argument",
    "help_text",
    "key_bytes",
    "timeout_option",
    "usage_of",
]

PROGRAM = "durabledbm"

_OPTION_WIDTH = 24
"""Columns for the names of arguments and options in the help."""


class Command(NamedTuple):
    """A command of the program."""

    name: str
    summary: str
    """What it does, in one line."""
    description: str
    """Paragraphs, separated by empty lines."""
    arguments: Callable[[Parser], None]
    """Adds its arguments to a parser."""
    run: Callable[[argparse.Namespace], int]
    """Does it, and returns the exit status."""
    examples: Sequence[tuple[str, str]] = ()
    """Command lines, and what they do."""
    no: str = ""
    """What exit status 1 means; empty if there is no such answer."""
    rest: bool = False
    """Everything behind the command's own options is a program with its arguments: `args.program`, a list."""

    def parser(self) -> Parser:
        """A parser of its arguments."""
        parser = Parser(self)
        self.arguments(parser)
        _add_common(parser)
        parser.entries = list(_entries_of(parser))
        return parser


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help is `help_text`."""

    def __init__(self, command: Command) -> None:
        super().__init__(prog=f"{PROGRAM} {command.name}", add_help=False, allow_abbrev=False)
        self.command = command
        self.entries: list[Entry] = []
        """What the help says about arguments and options. Noted early: parsing changes them."""

    def format_help(self) -> str:
        return help_text(self.command, self, min(terminal_width(), 100))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")

    def understand(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse. Raises `SystemExit` with status 2, after saying what is wrong, or 0 after printing help."""
        if self.command.rest:
            count = self._leading_options(argv)
            program = argv[count + 1 :] if argv[count : count + 1] == ["--"] else argv[count:]
            args = self.parse_args([*argv[:count], *("PROGRAM" for _ in program[:1])])
            args.program = program
        else:
            args = self.parse_intermixed_args(argv)
        args.command = self.command.name
        return args

    def _leading_options(self, argv: Sequence[str]) -> int:
        """How many of the first arguments are options of this command, and their values."""
        count = 0
        while count < len(argv) and argv[count] != "--" and argv[count].startswith(("--", "-h")):
            action = self._option_string_actions.get(argv[count])
            count += 1 if action is None or action.nargs == 0 else 2
        return count


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        text = parser.format_help()
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            sys.stdout.write(text.encode("ascii", "replace").decode("ascii"))
        parser.exit()


def _add_common(parser: Parser) -> None:
    """The options that every command has."""
    parser.add_argument("--debug", action="store_true", help="on failure, show the Python traceback")
    parser.add_argument("-h", "--help", action=_Help, nargs=0, dest=argparse.SUPPRESS, help="show this help")


def file_argument(parser: Parser, help: str = "the database file") -> None:
    """FILE, an argument of nearly all commands."""
    parser.add_argument("file", metavar="FILE", help=help)


def timeout_option(parser: Parser) -> None:
    """--timeout, an option of all commands that write."""
    parser.add_argument(
        "--timeout", type=_seconds, default=30.0, metavar="SECONDS",
        help="how long to wait while another process writes to the file (default: 30; 'none' waits for ever)",
    )  # fmt: skip


def _seconds(text: str) -> float | None:
    """The type of --timeout."""
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def key_bytes(text: str) -> bytes:
    """The type of keys: the bytes that the shell passed."""
    return os.fsencode(text)


# -- the help --------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A line of the help: an argument or an option."""

    names: str
    help: str
    is_option: bool


def _entries_of(parser: Parser) -> Iterator[Entry]:
    """The arguments, then the options, as the help names them."""
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    for action in actions:
        if not action.option_strings:
            yield Entry(_metavar(action), action.help or "", False)
    for action in actions:
        if action.option_strings:
            value = f" {_metavar(action)}" if action.nargs != 0 else ""
            yield Entry(", ".join(action.option_strings) + value, action.help or "", True)


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "|".join(map(str, action.choices))
    name = action.metavar if isinstance(action.metavar, str) else (action.dest or "").upper()
    if action.option_strings or action.nargs is None:
        return name
    return {"?": f"[{name}]", "*": f"[{name}...]", "+": f"{name}...", "...": f"[{name}...]"}[str(action.nargs)]


def usage_of(parser: Parser) -> str:
    """The usage, in one line."""
    arguments = " ".join(entry.names for entry in parser.entries if not entry.is_option)
    return f"{parser.prog} [OPTION...] {arguments}".rstrip()


def exit_lines(command: Command) -> list[str]:
    """What the exit statuses mean."""
    lines = ["0  done"]
    if command.no:
        lines.append(f"1  {command.no}")
    lines.append("2  it failed, or was asked in a way that makes no sense")
    return lines


def help_text(command: Command, parser: Parser, width: int) -> str:
    """What `--help` prints."""
    lines = [f"{parser.prog}: {command.summary}", "", f"usage: {usage_of(parser)}"]
    for paragraph in command.description.strip().split("\n\n"):
        lines += ["", *_paragraph(paragraph, width)]
    for title, wanted in (("arguments", False), ("options", True)):
        chosen = [entry for entry in parser.entries if entry.is_option is wanted]
        if chosen:
            lines += ["", f"{title}:"]
            for entry in chosen:
                lines += _entry(entry, width)
    if command.examples:
        lines += ["", "examples:"]
        for line, meaning in command.examples:
            lines += [
                f"  {line}",
                *textwrap.wrap(meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6),
            ]
    if not command.rest:
        lines += ["", "exit status:", *(f"  {line}" for line in exit_lines(command))]
    return "\n".join(lines) + "\n"


def _paragraph(paragraph: str, width: int) -> list[str]:
    """A paragraph, wrapped; one that is indented is left as it is."""
    dedented = textwrap.dedent(paragraph)
    if paragraph.startswith("    "):
        return textwrap.indent(dedented, "    ").splitlines()
    return textwrap.wrap(" ".join(dedented.split()), width, break_on_hyphens=False)


def _entry(entry: Entry, width: int) -> list[str]:
    text = textwrap.wrap(entry.help, max(width - _OPTION_WIDTH - 2, 20), break_on_hyphens=False)
    names = f"  {entry.names}"
    pad = " " * (_OPTION_WIDTH + 2)
    if len(names) > _OPTION_WIDTH:
        return [names, *(pad + line for line in text)]
    first, *others = text or [""]
    return [f"{names:<{_OPTION_WIDTH + 2}}{first}".rstrip(), *(pad + line for line in others)]
