"""From arguments to an exit status: find the command, run it, and report an error in one line.

Exit statuses: 0 done; 1 the answer is no (a key is missing, a check found problems); 2 it failed, or the arguments are
wrong. A command that Ctrl-C or a closed pipe ended prints nothing: 130 and 141, as shells have it.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from .command import PROGRAM, Command, help_width, wrapped
from .console import complain
from .faults import NegativeResult, Usage, explain
from .text import OutputError

__all__ = ["CTRL_C", "GROUPS", "NO_READER", "all_commands", "find", "main", "overview"]

CTRL_C = 130
NO_READER = 141

GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("data", "Reading and writing", ("get", "put", "del", "list", "tables")),
    ("care", "Looking after a file", ("stat", "check", "salvage", "compact")),
    ("checkpoints", "Checkpoints", ("checkpoint", "checkpoints", "diff", "restore-checkpoint")),
    ("copies", "Copies and other formats", ("backup", "dump", "load", "migrate", "export")),
    ("moving", "Moving to a server", ("mirror",)),
    ("programs", "Programs and pictures", ("exec", "inspect", "tour", "completion")),
)
"""Modules, what their commands have in common, and their commands. A module is imported when it is needed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own if None) and return its exit status.

    `exec` does not return: the process becomes the program.
    """
    _have_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return CTRL_C
    except OSError as exc:
        return _output_failed(exc)
    except ImportError as exc:
        if exc.name != "crc32c":
            raise
        return _failed(PROGRAM, str(exc))
    return status


def _failed(who: str, text: str) -> int:
    complain(who, text)
    return 2


def _have_streams() -> None:
    """A shell may have closed some (`>&-`). Then no file may get their numbers, least of all a database."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for good


def _dispatch(arguments: list[str]) -> int:
    debug = False
    while arguments and arguments[0] == "--debug":
        debug = True
        del arguments[0]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _help(arguments)
    if arguments[0] in ("-V", "--version"):
        from .. import __version__
        from .._engine.kernels import RUNNING

        print(f"{PROGRAM} {__version__} (Python {sys.version.split()[0]}, {'with' if RUNNING else 'without'} kernels)")
        return 0
    command = find(arguments[0])
    if command is None:
        return _failed(PROGRAM, _no_such_command(arguments[0]))
    try:
        args = command.parser().understand(arguments[1:])
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 2
    try:
        return command.run(args)
    except KeyboardInterrupt:
        raise
    except Exception as exc:
        if isinstance(exc, OutputError):
            raise
        if debug or args.debug:
            traceback.print_exc()
        names = [] if isinstance(exc, Usage) else _names(args)
        text = explain(exc, command.name, names, may_wait=hasattr(args, "timeout"))
        if not isinstance(exc, NegativeResult) or str(exc):
            complain(f"{PROGRAM} {command.name}", text)
        return 1 if isinstance(exc, NegativeResult) else 2


def _names(args: argparse.Namespace) -> list[str]:
    """The files that the command was given, the one that it is about first."""
    values = [getattr(args, name, None) for name in ("file", "target", "source", "log", "input", "output")]
    several = getattr(args, "files", None)
    return [value for value in values + (several if isinstance(several, list) else []) if isinstance(value, str)]


def _output_failed(exc: OSError) -> int:
    """Standard output is gone. Python must not try again at its end, so it gets another."""
    try:
        lost = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, lost)
        os.close(null)
    except (OSError, ValueError):
        pass
    # Windows says EINVAL of a pipe that nobody reads.
    if exc.errno == errno.EPIPE or (os.name == "nt" and exc.errno == errno.EINVAL):
        return NO_READER
    return _failed(PROGRAM, f"standard output: {exc.strerror or exc}")


# -- the commands ----------------------------------------------------------------------------------


def find(name: str) -> Command | None:
    """The command of that name."""
    for module, _, names in GROUPS:
        if name in names:
            commands: dict[str, Command] = importlib.import_module(f".{module}", __package__).COMMANDS
            return commands[name]
    return None


def all_commands() -> list[Command]:
    """All commands, in the order of the overview."""
    found = (find(name) for _, _, names in GROUPS for name in names)
    return [command for command in found if command is not None]


def _no_such_command(name: str) -> str:
    import difflib

    names = [name for _, _, names in GROUPS for name in names]
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean '{close[0]}'?" if close else f"; see '{PROGRAM} --help'"
    return f"there is no command {name!r}{hint}"


def _help(arguments: list[str]) -> int:
    """`--help`, `help`, `help COMMAND`, and the overview on standard error for a call without arguments."""
    if len(arguments) > 1 and arguments[0] == "help":
        command = find(arguments[1])
        if command is None:
            return _failed(PROGRAM, _no_such_command(arguments[1]))
        sys.stdout.write(command.parser().format_help())
        return 0
    stream = sys.stdout if arguments else sys.stderr
    stream.write(overview(help_width()))
    return 0 if arguments else 2


def overview(width: int) -> str:
    """The commands, a line each where `width` columns are enough."""
    lines = [
        f"{PROGRAM}: a dict that lasts, in one file",
        "",
        f"usage: {PROGRAM} COMMAND [OPTION...] FILE ...",
        f"       {PROGRAM} COMMAND --help",
    ]
    for _, title, names in GROUPS:
        lines += ["", f"{title}:"]
        for name in names:
            command = find(name)
            assert command is not None
            lines += wrapped(command.summary, width, f"  {name:<11} ")
    last = f"Start with '{PROGRAM} tour'. Options of all commands: --help, --debug; of the program: --version."
    lines += ["", *wrapped(last, width)]
    return "\n".join(lines) + "\n"
