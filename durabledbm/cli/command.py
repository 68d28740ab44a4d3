"""What a command is, and how it presents itself.

One description, from which parsing, `--help`, the reference in docs/cli.md and shell completion are made.

`argparse` parses; the help is laid out here, so that it is the same on every Python version, has examples and
exit statuses, and can be turned into Markdown.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

from .console import complain
from .text import terminal_width

__all__ = [
    "PROGRAM",
    "Command",
    "Entry",
    "Parser",
    "exit_lines",
    "file_argument",
    "help_text",
    "help_width",
    "key_bytes",
    "table_option",
    "timeout_option",
    "usage_of",
    "wrapped",
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
    """A parser whose errors are one line, and whose help is `help_text`.

    Options may stand before, between and behind the other words, until a `--`. argparse is given the options alone:
    what it does with a mixture differs between versions of Python, and it gives no hints.
    """

    def __init__(self, command: Command) -> None:
        super().__init__(prog=f"{PROGRAM} {command.name}", add_help=False, allow_abbrev=False)
        self.command = command
        self.entries: list[Entry] = []
        """What the help says about arguments and options. Noted early: parsing changes them."""

    def format_help(self) -> str:
        return help_text(self.command, self, help_width())

    def error(self, message: str) -> NoReturn:
        complain(self.prog, f"{message}; see '{self.prog} --help'")
        raise SystemExit(2)

    def understand(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse. Raises `SystemExit` with status 2, after saying what is wrong, or 0 after printing help."""
        options, words = self._sorted(argv)
        arguments = [action for action in self._actions if not action.option_strings]
        self._actions[:] = [action for action in self._actions if action.option_strings]
        args = self.parse_args(options)
        if self.command.rest:
            args.program = words
            words = words[:1]
        self._assign(arguments, words, args)
        args.command = self.command.name
        return args

    def _sorted(self, argv: Sequence[str]) -> tuple[list[str], list[str]]:
        """The options, each in one word with its value, and the other words."""
        options: list[str] = []
        words: list[str] = []
        left = iter(argv)
        for word in left:
            if word == "--":
                return options, words + list(left)
            if not self._is_option(word):
                words.append(word)
            elif word.startswith("--"):
                name, equals, value = word.partition("=")
                if self._option(name, argv).nargs == 0:
                    options.append(word)
                else:
                    options += _with_value(name, "=", value if equals else next(left, None))
            else:
                for at, letter in enumerate(word[1:], 2):
                    if self._option(f"-{letter}", argv).nargs != 0:
                        options += _with_value(f"-{letter}", "", word[at:] or next(left, None))
                        break
                    options.append(f"-{letter}")
            if self.command.rest and words:
                return options, words + list(left)
        return options, words

    def _is_option(self, word: str) -> bool:
        """Whether it is meant to be an option: a number with a minus sign is not."""
        if not word.startswith("-") or word == "-":
            return False
        if self.command.rest:  # options of one letter are the program's
            return word.startswith("--") or word == "-h"
        return word[:2] in self._option_string_actions or not word[1:].replace(".", "", 1).isdecimal()

    def _option(self, name: str, argv: Sequence[str]) -> argparse.Action:
        if name not in self._option_string_actions:
            self.error(f"there is no option '{name}'{self._hint(name, argv)}")
        return self._option_string_actions[name]

    def _hint(self, name: str, argv: Sequence[str]) -> str:
        """What may have been meant by an option that there is not."""
        close = get_close_matches(name, self._option_string_actions, 1) if name.startswith("--") else []
        hint = f"; did you mean '{close[0]}'?" if close else ""
        arguments = [action.metavar for action in self._actions if not action.option_strings]
        if "KEY" in arguments:
            return f"{hint} (before a key or value that begins with a hyphen, write --)"
        if any(word.startswith(name) and os.path.lexists(word) for word in argv):
            return f"{hint} (before a file whose name begins with a hyphen, write --)"
        return hint

    def _assign(self, arguments: list[argparse.Action], words: list[str], args: argparse.Namespace) -> None:
        """Give each argument its words: one, one if there is one ("?"), or all that are left ("+", "...")."""
        left = list(words)
        missing = [_name_of(action) for action in arguments[len(left) :] if action.nargs in (None, "+")]
        if missing:
            self.error(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        for action in arguments:
            several = action.nargs in ("+", "...")
            taken, left = (left, []) if several else (left[:1], left[1:])
            values = [self._value(action, word) for word in taken]
            setattr(args, action.dest, values if several else values[0] if values else action.default)
        if left:
            self.error(f"there are too many arguments: {' '.join(map(shlex.quote, left))}")

    def _value(self, action: argparse.Action, word: str) -> Any:
        if action.choices is not None and word not in action.choices:
            self.error(f"'{word}' is not one of {', '.join(action.choices)}")
        if action.type is None:
            return word
        assert callable(action.type)
        try:
            return action.type(word)
        except argparse.ArgumentTypeError as exc:
            self.error(str(exc))


def _with_value(name: str, glue: str, value: str | None) -> list[str]:
    """An option in the form in which argparse takes any value; without one, argparse complains."""
    return [name] if value is None else [f"{name}{glue}{value}"] if value else [name, ""]


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


def table_option(parser: Parser) -> None:
    """`--table`: a table of the file in place of the main one."""
    parser.add_argument("-t", "--table", metavar="NAME", type=_table_name, help="a table of the file, not the main one")


def _table_name(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the name of a table is text") from None
    if not text:
        raise argparse.ArgumentTypeError("the name of a table is not empty")
    return text


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


def _name_of(action: argparse.Action) -> str:
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "|".join(map(str, action.choices))
    name = _name_of(action)
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
    lines.append("2  it failed, or the arguments are wrong")
    return lines


def help_width() -> int:
    """Columns for help: those of the terminal, but neither too few for words nor too many for reading."""
    return min(max(terminal_width(), 40), 100)


def wrapped(text: str, width: int, lead: str = "") -> list[str]:
    """`text` behind `lead`, in lines of at most `width` columns, the others under the beginning of the text."""
    return textwrap.wrap(
        text, max(width, len(lead) + 20), initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False
    )


def help_text(command: Command, parser: Parser, width: int) -> str:
    """What `--help` prints."""
    lines = [*wrapped(command.summary, width, f"{parser.prog}: "), "", *wrapped(usage_of(parser), width, "usage: ")]
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
            lines += [f"  {line}", *wrapped(meaning, width, " " * 6)]
    if not command.rest:
        lines += ["", "exit status:"]
        for line in exit_lines(command):
            lines += wrapped(line[3:], width, f"  {line[:3]}")
    return "\n".join(lines) + "\n"


def _paragraph(paragraph: str, width: int) -> list[str]:
    """A paragraph, wrapped; one that is indented is left as it is."""
    dedented = textwrap.dedent(paragraph)
    if paragraph.startswith("    "):
        return textwrap.indent(dedented, "    ").splitlines()
    return wrapped(" ".join(dedented.split()), width)


def _entry(entry: Entry, width: int) -> list[str]:
    text = wrapped(entry.help, width - _OPTION_WIDTH - 2)
    names = f"  {entry.names}"
    pad = " " * (_OPTION_WIDTH + 2)
    if len(names) > _OPTION_WIDTH:
        return [names, *(pad + line for line in text)]
    first, *others = text or [""]
    return [f"{names:<{_OPTION_WIDTH + 2}}{first}".rstrip(), *(pad + line for line in others)]
