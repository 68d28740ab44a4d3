"""Reading and writing entries: get, put, del, list."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from ..database import Database
from ..mapping import Writable, prefix_range
from .command import Command, Parser, file_argument, key_bytes, table_option, timeout_option
from .console import message
from .faults import NegativeResult, Usage
from .opening import open_store
from .progress import quantity
from .targets import check_target, force_option, write_file
from .text import (
    as_json,
    beginning,
    columns,
    escape,
    plural,
    raw,
    shorten,
    style,
    terminal_width,
    unescape,
    write,
)
from .values import PICKLE_HELP, dumps, looks_pickled, pickled, warn_of_pickles

if TYPE_CHECKING:
    from ..sharded import ShardedDatabase

__all__ = ["COMMANDS"]

_PART = 2**18
"""Bytes of a value that are copied at a time."""

_WORDS = """
Keys and values are bytes. On the command line they are what the shell passes, UTF-8 for text. In printed
text, bytes that are not printable UTF-8 appear as \\n, \\t, \\r or \\xNN, and a backslash as two, so nothing is
ambiguous; with -e such escapes are understood. Write -- before a key that begins with a hyphen.
"""


def _escaped_option(parser: Parser) -> None:
    parser.add_argument(
        "-e", "--escaped", action="store_true", help="KEY is written as 'list' prints it, with \\xNN escapes"
    )


def _mapping(db: Database | ShardedDatabase, args: argparse.Namespace) -> Writable:
    """What the command is about: the main table, or the one that --table names."""
    return db if args.table is None else db.table(args.table)


def _key(args: argparse.Namespace, key: bytes) -> bytes:
    return unescape(key) if args.escaped else key


# -- get -------------------------------------------------------------------------------------------


def _get_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("key", metavar="KEY", type=key_bytes, help="the key")
    table_option(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write the value to FILE instead of standard output")
    force_option(parser, "the FILE of -o")
    _escaped_option(parser)
    parser.add_argument("--pickle", action="store_true", help=PICKLE_HELP)
    parser.add_argument(
        "--json", action="store_true", help='print the value as JSON; other bytes than UTF-8 as {"base64": "..."}'
    )


def _get(args: argparse.Namespace) -> int:
    key = _key(args, args.key)
    if args.output is not None:
        check_target(args.output, args.file, force=args.force)
    as_is = not args.pickle and not args.json and not (args.output is None and sys.stdout.isatty())
    with open_store(args.file, "r") as db:
        try:
            file = _mapping(db, args).open_value(key)
        except KeyError:
            raise NegativeResult(f"there is no key '{escape(key)}'") from None
        with file:
            if as_is:
                _copy(file, args)
                return 0
            value = file.read()
    if args.pickle:
        warn_of_pickles(args.file)
        data = (pickled(value, in_json=args.json) + "\n").encode("utf-8", "backslashreplace")
    elif args.json:
        data = (dumps(as_json(value)) + "\n").encode()
    else:
        data = value
    if args.output is not None:
        write_file(args.output, (data,), args.file, force=args.force)
    elif data is value:
        _show(value)
    else:
        raw(data)
    return 0


def _copy(value: BinaryIO, args: argparse.Namespace) -> None:
    """Write a value of any length, without having all of it in memory."""
    parts = iter(partial(value.read, _PART), b"")
    if args.output is not None:
        write_file(args.output, parts, args.file, force=args.force)
    else:
        for part in parts:
            raw(part)


def _show(value: bytes) -> None:
    """A value on a terminal, which must not be made to do things, and whose next line is the prompt's."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if (value and not all(char.isprintable() or char in "\n\t" for char in text)) or (value and not text):
        what = "a pickle: --pickle loads it" if looks_pickled(value) else "no plain text"
        write(escape(value))
        size = plural(len(value), "byte")
        message(f"({what}; shown with escapes. In a pipe and with -o the {size} come as they are)")
    else:
        write(text, end="" if text.endswith("\n") else "\n")


# -- put -------------------------------------------------------------------------------------------


def _put_arguments(parser: Parser) -> None:
    file_argument(parser, "the database file; it is created if it is missing")
    parser.add_argument("key", metavar="KEY", type=key_bytes, help="the key")
    parser.add_argument(
        "value", metavar="VALUE", nargs="?", type=key_bytes,
        help="the value; without it and without --file, everything that standard input holds",
    )  # fmt: skip
    parser.add_argument(
        "-i", "--file", "--input", dest="input", metavar="FILE",
        help="the value is the content of FILE, of any size; - for standard input",
    )  # fmt: skip
    table_option(parser)
    parser.add_argument(
        "-e",
        "--escaped",
        action="store_true",
        help="KEY and VALUE are written with \\xNN escapes, as 'list' prints them",
    )
    timeout_option(parser)


def _put(args: argparse.Namespace) -> int:
    if args.value is not None and args.input is not None:
        raise Usage("the value is given twice, as an argument and with --file")
    key = _key(args, args.key)
    with _value(args) as file, open_store(args.file, "c", args.timeout) as db:
        _mapping(db, args).put_stream(key, file)
    return 0


def _value(args: argparse.Namespace) -> AbstractContextManager[BinaryIO]:
    """The value, as a file."""
    if args.value is not None:
        return BytesIO(_key(args, args.value))
    if args.input not in (None, "-"):
        return open(args.input, "rb")
    if sys.stdin.isatty():
        message("(the value comes from the keyboard; Ctrl-D at the start of a line ends it)")
        return BytesIO(sys.stdin.buffer.read())
    return nullcontext(sys.stdin.buffer)


# -- del -------------------------------------------------------------------------------------------


def _del_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("keys", metavar="KEY", nargs="+", type=key_bytes, help="the keys")
    table_option(parser)
    _escaped_option(parser)
    timeout_option(parser)


def _del(args: argparse.Namespace) -> int:
    keys = list(dict.fromkeys(_key(args, key) for key in args.keys))
    missing = []
    with open_store(args.file, "w", args.timeout) as db:
        entries = _mapping(db, args)
        if not any(key in entries for key in keys):
            missing = keys  # then nothing is written, and no other writer waited for
        else:
            with db.transaction() if isinstance(db, Database) else nullcontext():
                missing = [key for key in keys if entries.pop(key, None) is None]
    if missing:
        named = ", ".join(f"'{escape(key)}'" for key in missing[:5])
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        others = "; the others were deleted" if len(missing) < len(keys) else ""
        raise NegativeResult(f"there is no key {named}{more}{others}")
    return 0


# -- list ------------------------------------------------------------------------------------------


def _list_arguments(parser: Parser) -> None:
    file_argument(parser)
    table_option(parser)
    parser.add_argument("--prefix", metavar="KEY", type=key_bytes, help="only keys that begin with KEY")
    parser.add_argument("--start", metavar="KEY", type=key_bytes, help="only keys from KEY on")
    parser.add_argument("--stop", metavar="KEY", type=key_bytes, help="only keys before KEY")
    parser.add_argument("-r", "--reverse", action="store_true", help="the greatest key first")
    parser.add_argument("-n", "--limit", metavar="N", type=_count, help="at most N entries")
    parser.add_argument("-k", "--keys", action="store_true", help="print keys only")
    parser.add_argument("-v", "--values", action="store_true", help="print values only")
    parser.add_argument("--json", action="store_true", help="print each entry as a line of JSON")
    parser.add_argument(
        "-0",
        "--null",
        action="store_true",
        help="print the bytes as they are, each key and each value followed by a NUL",
    )
    parser.add_argument(
        "-l",
        "--full",
        action="store_true",
        help="on a terminal, do not shorten values to the width of the window",
    )
    _escaped_option(parser)
    parser.add_argument("--pickle", action="store_true", help=PICKLE_HELP)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _list(args: argparse.Namespace) -> int:
    if args.keys and args.values:
        raise Usage("--keys and --values exclude each other; without either, both are printed")
    if args.null and (args.json or args.pickle):
        raise Usage("--null prints bytes as they are: it goes with neither --json nor --pickle")
    if args.pickle:
        warn_of_pickles(args.file)
    printer = _printer(args)
    with open_store(args.file, "r") as db:
        for key, value in itertools.islice(_entries(_mapping(db, args), args), args.limit):
            printer.entry(key, value)
    printer.end()
    return 0


def _entries(db: Writable, args: argparse.Namespace) -> Iterator[tuple[bytes, bytes]]:
    prefix, start, stop = (None if key is None else _key(args, key) for key in (args.prefix, args.start, args.stop))
    if not args.keys:
        return db.range(start, stop, prefix=prefix, reverse=args.reverse)
    # Large values need not be read for their keys.
    if prefix is not None:
        low, high = prefix_range(prefix)
        start = low if start is None else max(start, low)
        stop = high if stop is None else stop if high is None else min(stop, high)
    return ((key, b"") for key in db._keys(start, stop, args.reverse))


# -- tables ----------------------------------------------------------------------------------------


def _tables_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object of names and numbers of entries")


def _tables(args: argparse.Namespace) -> int:
    with open_store(args.file, "r") as db:
        counts = {name: len(db.table(name)) for name in db.tables()}
    if args.json:
        write(dumps(counts))
        return 0
    colour, separator = style(), "  " if sys.stdout.isatty() else "\t"
    for name, count in counts.items():
        shown = f"{count:,}" if sys.stdout.isatty() else str(count)
        write(f"{colour(escape(name.encode()), 'cyan')}{separator}{shown}")
    return 0


class _Lines:
    """Text: a key, a tab, the value. On a terminal, colours, and no line longer than the window."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        terminal = sys.stdout.isatty()
        self._width = terminal_width() if terminal and not args.full else 0
        self._colour = style()
        self._pickles = 0

    def entry(self, key: bytes, value: bytes) -> None:
        args = self._args
        left = "" if args.values else escape(key)
        right = "" if args.keys else self._value(value, columns(left))
        separator = "" if args.keys or args.values else "  " if self._width else "\t"
        write(f"{self._colour(left, 'cyan')}{separator}{right}")

    def _value(self, value: bytes, used: int) -> str:
        if self._args.pickle:
            text = pickled(value, in_json=False)
        else:
            self._pickles += looks_pickled(value)
            if not self._width:
                return escape(value)
            # What does not fit need not be made readable, and may be large.
            text = escape(beginning(value, 4 * self._width))
        room = max(self._width - used - 2, 20) if self._width else 0
        if not room or (columns(text) <= room and (self._args.pickle or len(value) <= 4 * self._width)):
            return text
        size = f" ({quantity(len(value), 'bytes')})"
        return shorten(text, room - len(size), cut=True) + self._colour(size, "dim")

    def end(self) -> None:
        if self._pickles and self._width:
            message(
                f"({plural(self._pickles, 'value')} look like objects of a shelf; --pickle loads them, if you trust "
                "the file)"
            )


class _Json:
    """A JSON document a line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    def entry(self, key: bytes, value: bytes) -> None:
        args = self._args
        left = dumps(as_json(key))
        if args.keys:
            write(left)
            return
        right = pickled(value, in_json=True) if args.pickle else dumps(as_json(value))
        write(right if args.values else f'{{"key": {left}, "value": {right}}}')

    def end(self) -> None:
        pass


class _Null:
    """The bytes, with a NUL behind each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    def entry(self, key: bytes, value: bytes) -> None:
        parts = [] if self._args.values else [key, b"\0"]
        if not self._args.keys:
            parts += [value, b"\0"]
        raw(b"".join(parts))

    def end(self) -> None:
        pass


def _printer(args: argparse.Namespace) -> _Lines | _Json | _Null:
    return _Null(args) if args.null else _Json(args) if args.json else _Lines(args)


# ------------------------------------------------------------------------------------------------------------

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "get", "print the value of a key",
            "Writes the value's bytes, no more and no less, to standard output; on a terminal what is no "
            "plain text is "
            "shown with escapes instead.\n\n" + _WORDS,
            _get_arguments, _get,
            [
                ("durabledbm get app.db user:1", "print the value of the key user:1"),
                ("durabledbm get app.db logo -o copy.png", "save a value in a file"),
                ("durabledbm get app.db 'caf\\xe9' -e", "a key that is not UTF-8"),
            ],
            "there is no such key",
        ),
        Command(
            "put", "set a key to a value",
            "The value is an argument, the content of a file (--file), or else what standard input holds, byte "
            "for byte. It may be larger than memory: from 4 MiB on it is written as it is read, and other "
            "writers wait for that. When the command ends the value is on the disk.\n\n" + _WORDS,
            _put_arguments, _put,
            [
                ("durabledbm put app.db user:1 Ada", "set user:1 to Ada"),
                ("durabledbm put app.db logo --file logo.png", "store a file"),
                ("date | durabledbm put app.db now", "store what another program prints"),
                ("durabledbm put app.db ada Lovelace --table users", "in a table; its first entry makes it"),
            ],
        ),
        Command(
            "del", "delete keys",
            "Deletes the keys in one atomic commit. Those that are not there are reported.\n\n" + _WORDS,
            _del_arguments, _del,
            [("durabledbm del app.db user:1 user:2", "delete two keys at once")],
            "a key was not there",
        ),
        Command(
            "list", "print keys and values in the order of the keys",
            "Prints an entry a line: the key, a tab, the value. In a pipe every byte can be told from the "
            "text; on a "
            "terminal values are shortened to the width of the window (--full prints all). It shows one "
            "state of the file, even while others write.\n\n" + _WORDS,
            _list_arguments, _list,
            [
                ("durabledbm list app.db", "print everything"),
                ("durabledbm list app.db --prefix user: -n 10", "the first ten keys that begin with user:"),
                ("durabledbm list app.db -k -r -n 1", "the greatest key"),
                ("durabledbm list app.db --json | jq .", "for other programs"),
                ("durabledbm list app.db -k -0 | xargs -0 -n 1 durabledbm get app.db", "for programs"),
                ("durabledbm list shelf.db --pickle", "the objects of a shelf"),
                ("durabledbm list app.db --table users", "a table of the file"),
            ],
        ),
        Command(
            "tables", "print the names of the tables in a file",
            "Prints a table a line: its name, a tab, its number of entries. The main table, which has no name, is not "
            "among them. get, put, del, list and inspect take --table NAME.",
            _tables_arguments, _tables,
            [
                ("durabledbm tables app.db", "print them"),
                ("durabledbm tables app.db --json | jq .users", "the number of entries of one, for other programs"),
            ],
        ),
    )
}  # fmt: skip
