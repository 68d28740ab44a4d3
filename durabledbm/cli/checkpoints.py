"""Commits that are kept under names: checkpoint, checkpoints, diff, restore-checkpoint."""

from __future__ import annotations

import argparse
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .. import open as open_database
from ..checkpoint import differences
from .command import Command, Parser, file_argument, timeout_option
from .console import message
from .faults import NegativeResult, Usage
from .opening import is_sharded
from .progress import quantity
from .text import as_json, escape, plural, style, write
from .values import dumps

if TYPE_CHECKING:
    from ..checkpoint import Change
    from ..database import Database, Flag
    from ..snapshot import Snapshot

__all__ = ["COMMANDS"]


def _open(file: str, flag: Flag, timeout: float | None = 30.0) -> Database:
    if is_sharded(file):
        raise Usage(f"{file}: is the directory of a sharded database: checkpoints are of one file")
    return open_database(file, flag, timeout=timeout)


# -- checkpoint ------------------------------------------------------------------------------------


def _checkpoint_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("name", metavar="NAME", help="the name of the checkpoint")
    parser.add_argument("--replace", action="store_true", help="in place of a checkpoint of that name")
    parser.add_argument("--drop", action="store_true", help="drop the checkpoint of that name")
    timeout_option(parser)


def _checkpoint(args: argparse.Namespace) -> int:
    with _open(args.file, "w", args.timeout) as db:
        if not args.drop:
            db.checkpoint(args.name, replace=args.replace)
            return 0
        try:
            db.drop_checkpoint(args.name)
        except KeyError:
            raise _missing(args.name) from None
    return 0


def _missing(name: str) -> NegativeResult:
    return NegativeResult(f"there is no checkpoint '{name}'")


# -- checkpoints -----------------------------------------------------------------------------------


def _checkpoints_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("--json", action="store_true", help="print each checkpoint as a line of JSON")


def _checkpoints(args: argparse.Namespace) -> int:
    colour = style()
    with _open(args.file, "r") as db:
        for checkpoint in db.checkpoints():
            if args.json:
                write(dumps(checkpoint._asdict()))
                continue
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(checkpoint.time))
            pinned = f"{quantity(checkpoint.pinned_bytes, 'bytes')} of its own"
            name = colour(escape(checkpoint.name.encode()), "cyan")
            write(f"{name}  commit {checkpoint.txid:,} of {when}, {plural(checkpoint.entries, 'entry')}, {pinned}")
    return 0


# -- diff ------------------------------------------------------------------------------------------


def _diff_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("a", metavar="A", help="a checkpoint, or another database file")
    parser.add_argument("b", metavar="B", nargs="?", help="another checkpoint; without it, the present")
    parser.add_argument("--json", action="store_true", help="print each change as a line of JSON")


def _diff(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        db = stack.enter_context(_open(args.file, "r"))
        names = {checkpoint.name for checkpoint in db.checkpoints()}

        def state(name: str | None) -> Snapshot:
            if name is None:
                return stack.enter_context(db.snapshot())
            if name in names:
                return stack.enter_context(db.at(name))
            if not os.path.exists(name):
                raise _missing(name)
            return stack.enter_context(stack.enter_context(_open(name, "r")).snapshot())

        status = 0
        for change in differences(state(args.a), state(args.b)):
            write(_json(change) if args.json else _line(change))
            status = 1
    return status


def _line(change: Change) -> str:
    where = f"{escape(change.table.encode())}: " if change.table else ""
    sign = "-" if change.new is None else "+" if change.old is None else "~"
    value = "" if change.new is None else f"\t{escape(change.new)}"
    return f"{sign} {where}{escape(change.key)}{value}"


def _json(change: Change) -> str:
    old, new = (None if value is None else as_json(value) for value in (change.old, change.new))
    return dumps({"table": change.table, "key": as_json(change.key), "old": old, "new": new})


# -- restore-checkpoint ----------------------------------------------------------------------------


def _restore_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("name", metavar="NAME", help="the name of the checkpoint")
    timeout_option(parser)


def _restore(args: argparse.Namespace) -> int:
    with _open(args.file, "w", args.timeout) as db:
        try:
            db.restore(args.name)
        except KeyError:
            raise _missing(args.name) from None
        message(f"{args.file}: {plural(len(db), 'entry')}, as at the checkpoint {args.name}")
    return 0


# ------------------------------------------------------------------------------------------------------------

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "checkpoint", "keep the present state of a file under a name",
            "A checkpoint stays until it is dropped, whatever is written after it. Making one takes no longer for a "
            "large file; pages that later commits replace are not reused while a checkpoint needs them.",
            _checkpoint_arguments, _checkpoint,
            [
                ("durabledbm checkpoint app.db monday", "keep the present state"),
                ("durabledbm checkpoint app.db before --replace", "or a later one, under the same name"),
                ("durabledbm checkpoint app.db before --drop", "drop it"),
            ],
            "with --drop: there is no such checkpoint",
        ),
        Command(
            "checkpoints", "list what is kept",
            "Prints a checkpoint a line: its name, commit, time and number of entries, and how much dropping it frees.",
            _checkpoints_arguments, _checkpoints,
            [
                ("durabledbm checkpoints app.db", "for people"),
                ("durabledbm checkpoints app.db --json | jq -r .name", "for other programs"),
            ],
        ),
        Command(
            "diff", "print what has changed since a checkpoint",
            "Prints a change a line: '+' and a new key, '-' and one that is gone, '~' and one whose value is another, "
            "with the new value behind a tab. Reads only the pages that differ. A may also be the name of another "
            "file, of a backup for example: then both are read.",
            _diff_arguments, _diff,
            [
                ("durabledbm diff app.db before", "from the checkpoint to the present"),
                ("durabledbm diff app.db before after", "from one checkpoint to another"),
                ("durabledbm diff app.db app.back", "from a backup to the present"),
            ],
            "there are differences",
        ),
        Command(
            "restore-checkpoint", "go back to a checkpoint",
            "One commit gives all tables the content that they had. Checkpoints stay, so it can be undone: make one "
            "before.",
            _restore_arguments, _restore,
            [("durabledbm restore-checkpoint app.db before", "go back")],
            "there is no such checkpoint",
        ),
    )
}  # fmt: skip
