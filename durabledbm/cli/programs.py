"""Programs and pictures: exec, inspect, tour, completion."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys

from ..errors import error
from .command import Command, Parser, file_argument, key_bytes, table_option, timeout_option
from .console import message
from .faults import NegativeResult, Usage, quoted
from .opening import is_sharded
from .progress import quantity, shown
from .targets import check_target, force_option, write_file
from .text import escape, style, terminal_width, unescape, write

__all__ = ["COMMANDS"]

_COLOUR = ("auto", "always", "never")


def _colour_option(parser: Parser) -> None:
    parser.add_argument(
        "--color",
        choices=_COLOUR,
        default="auto",
        help="colours: on a terminal (auto, the default), always, or never",
    )


# -- exec ------------------------------------------------------------------------------------------


def _exec_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--durability", choices=("full", "process", "interval", "manual"), default="full",
        help="what an acknowledged write survives, for the files that the program creates or opens (default: "
        "full)",
    )  # fmt: skip
    timeout_option(parser)
    parser.add_argument("first", metavar="PROGRAM", help="a script, a directory or a .pyz, -m MODULE, or -c CODE")
    parser.add_argument("others", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="its arguments")


def _exec(args: argparse.Namespace) -> int:
    """Become `python PROGRAM ARGUMENT...`, in which `sitecustomize` of `_children` does the rest."""
    from .._process.children import environment

    script = _script_of(args.program)
    if script is not None and not os.path.lexists(script):
        raise error(errno.ENOENT, os.strerror(errno.ENOENT), script)
    if not sys.executable:
        raise Usage("the path of the running Python is unknown, so it cannot be started again")
    environ = environment({"durability": args.durability, "timeout": args.timeout})
    command = [sys.executable, *args.program]
    sys.stdout.flush()
    if os.name != "nt":  # a shell of Windows would not wait for what takes the place of a process
        os.execve(sys.executable, command, environ)
    for name in ("SIGINT", "SIGBREAK"):  # the console sends them to the program, too: what they do there is its affair
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    return subprocess.call(command, env=environ)


def _script_of(words: list[str]) -> str | None:
    """The script among the arguments of `python`, or None if it is to run something else."""
    left = iter(words)
    for word in left:
        if word == "-" or not word.startswith("-"):
            return None if word == "-" else word
        for at, option in enumerate(word[1:], 1):
            if option in "EIS":
                raise Usage(f"python -{option} would ignore what makes dbm and shelve use durabledbm: leave it out")
            if option in "cm":
                return None
            if option in "WX":  # its value is the rest of the word, or the next one
                if not word[at + 1 :]:
                    next(left, None)
                break
    return None


# -- inspect ---------------------------------------------------------------------------------------


def _inspect_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument(
        "--by", choices=("kind", "fill", "age"), default="kind", help="what the colours show (default: kind)"
    )
    parser.add_argument("--key", metavar="KEY", type=key_bytes, help="mark the pages on the way to KEY, and list them")
    parser.add_argument(
        "-e", "--escaped", action="store_true", help="KEY is written as 'list' prints it, with \\xNN escapes"
    )
    table_option(parser)
    parser.add_argument("--svg", metavar="FILE", help="write the map as an SVG image")
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write the map as an HTML page that tells more about the page under the pointer",
    )
    force_option(parser, "the FILE of --svg or --html")
    parser.add_argument(
        "--pages",
        metavar="A-B",
        type=_page_range,
        default=(0, None),
        help="in the terminal, only the pages from A to B",
    )
    parser.add_argument(
        "-l",
        "--full",
        action="store_true",
        help="in the terminal, a character for each page, however many there are",
    )
    _colour_option(parser)


def _page_range(text: str) -> tuple[int, int | None]:
    first, _, last = text.partition("-")
    if first.isdecimal() and (last.isdecimal() or not last):
        start, stop = int(first), int(last) + 1 if last else None
        if stop is None or stop > start:
            return start, stop
    raise argparse.ArgumentTypeError(f"{text!r} is not a range of pages, such as 100-199 or 100-")


def _inspect(args: argparse.Namespace) -> int:
    from ..maintenance.inspect import inspect

    if is_sharded(args.file):
        raise Usage(f"{args.file}: is the directory of a sharded database: inspect one of its files")
    key = None if args.key is None else unescape(args.key) if args.escaped else args.key
    for target in (args.svg, args.html):
        if target is not None:
            check_target(target, args.file, force=args.force)
    if args.table is not None and key is None:
        raise Usage("--table is for --key: the map shows all tables")
    with shown("inspect") as meter:
        picture = inspect(args.file, key=key, table=args.table, progress=meter)
    start, stop = args.pages
    if start and start >= picture.page_count:
        raise Usage(f"--pages: the file has {picture.page_count:,} pages, the last is page {picture.page_count - 1:,}")
    if args.svg is not None:
        from .pictures.svg import svg

        _save(args.svg, svg(picture, mode=args.by), args)
    if args.html is not None:
        from .pictures.html import html

        _save(args.html, html(picture, mode=args.by), args)
    if args.svg is None and args.html is None:
        from .pictures.terminal import draw

        colour = style(args.color)
        lines = draw(
            picture, width=terminal_width(), rows=None if args.full else 24, mode=args.by,
            colour=colour.enabled, encoding=sys.stdout.encoding or "ascii", start=start, stop=stop,
        )  # fmt: skip
        write("\n".join(lines))
        if args.key is not None:
            write(f"\n{colour(escape(key or b''), 'bold')}")
            for step in picture.steps:
                write(f"  page {step.page_id:,}: {step.what}")
    if key is not None and not picture.found:
        raise NegativeResult(
            f"there is no key '{escape(key)}'"
            if not any("damaged" in step.what for step in picture.steps)
            else "the way to the key is damaged"
        )
    if picture.problems:
        raise NegativeResult(f"the file is damaged; 'durabledbm check {quoted(args.file)}' lists what is wrong with it")
    return 0


def _save(name: str, text: str, args: argparse.Namespace) -> None:
    write_file(name, [text.encode("utf-8", "backslashreplace")], args.file, force=args.force)
    message(f"{name}: {quantity(len(text), 'bytes')}")


# -- tour ------------------------------------------------------------------------------------------


def _tour_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--keep", metavar="DIRECTORY", help="work in DIRECTORY, created if need be, and leave the files there"
    )
    parser.add_argument("--files", metavar="N", type=_number, help="use N source files at most; fewer are faster")
    _colour_option(parser)


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of files: at least one is needed")
    return int(text)


def _tour(args: argparse.Namespace) -> int:
    from .tour import tour

    return (
        0
        if tour(
            keep=args.keep,
            files=args.files,
            colour=style(args.color).enabled,
            width=min(terminal_width(), 100),
        )
        else 1
    )


# -- completion ------------------------------------------------------------------------------------


def _completion_arguments(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def _completion(args: argparse.Namespace) -> int:
    from .completion import script

    write(script(args.shell), end="")
    return 0


# ------------------------------------------------------------------------------------------------------------

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "exec", "run a Python program whose dbm and shelve use durabledbm",
            "Runs 'python PROGRAM ARGUMENT...', whatever python understands there: a script, a directory or "
            "an archive with a __main__, -m MODULE, -c CODE, options of python's own. But dbm.open() and "
            "shelve.open() create durabledbm files in it, and in the Python processes that it starts "
            "(see durabledbm.install()). Files of other kinds that exist already are opened by their own "
            "modules. The exit status is the program's.",
            _exec_arguments, _exec,
            [
                ("durabledbm exec crawler.py --depth 3", "a program as it is, with files that last"),
                ("durabledbm exec --durability process -m crawler", "faster: it survives kills"),
            ],
            rest=True,
        ),
        Command(
            "inspect", "draw a file as a map of its pages",
            "Shows what each page of the file is (meta, branch, leaf, overflow, free, pinned by a snapshot), "
            "how full it is, when it "
            "was written, and where the file is damaged. Reads and verifies everything; nothing is changed, "
            "and others may read and "
            "write meanwhile.\n\n"
            "In a file with more pages than fit, a character or square stands for several; it shows what "
            "most of them are, but "
            "damage always shows.",
            _inspect_arguments, _inspect,
            [
                ("durabledbm inspect app.db", "the map, in the terminal"),
                ("durabledbm inspect app.db --by age", "which pages the last commits wrote"),
                ("durabledbm inspect app.db --key user:1", "the way to a key"),
                ("durabledbm inspect app.db --html app.html", "a page to explore in a browser"),
            ],
            "the key is not there, or something is damaged",
        ),
        Command(
            "tour", "see on real data what durabledbm does",
            "A demonstration of about half a minute: the source files of this Python's standard library go "
            "into a database in a "
            "temporary directory. It writes, reads, looks up, rolls back, kills a writing process and looks "
            "what is left, uses a "
            "shelf, and measures, each time beside what the standard library does with the same.",
            _tour_arguments, _tour,
            [
                ("durabledbm tour", "all of it"),
                ("durabledbm tour --keep /tmp/tour", "and keep the files, to look at them"),
            ],
            "something was not as it should be",
        ),
        Command(
            "completion", "print the script with which a shell completes commands and keys",
            "Prints a completion script. Commands, options, file names and, where a command takes a key, the "
            "keys of the "
            "file are completed.",
            _completion_arguments, _completion,
            [
                ("source <(durabledbm completion bash)", "in ~/.bashrc"),
                ("source <(durabledbm completion zsh)", "in ~/.zshrc, after compinit"),
                ("durabledbm completion fish | source", "in ~/.config/fish/config.fish"),
            ],
        ),
    )
}  # fmt: skip
