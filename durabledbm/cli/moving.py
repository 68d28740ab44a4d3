"""Moving to a server while the file is in use: mirror."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import BusyError
from .command import Command, Parser, file_argument, timeout_option
from .opening import open_remote
from .progress import shown
from .text import plural, write

if TYPE_CHECKING:
    from ..changelog import Commit
    from ..remote.mirror import Mirror

__all__ = ["COMMANDS"]

_POLL = 0.2
"""Seconds between two looks at the file."""

_LONGEST_PAUSE = 5.0
"""Seconds between two tries while the server is away."""


def _mirror_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("url", metavar="URL", help="the server and the database there: postgresql://... or redis://...")
    parser.add_argument(
        "--table", metavar="NAME", default="durabledbm",
        help="the table there, which must be empty (default: durabledbm)",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="do not wait for Ctrl-C: end when everything is copied")
    parser.add_argument("--verify", action="store_true", help="at the end, compare every entry with FILE's")
    parser.add_argument("--force", action="store_true", help="delete what the table holds")
    timeout_option(parser)


def _mirror(args: argparse.Namespace) -> int:
    from ..remote.mirror import Mirror

    with (
        open_remote(args.url, args.table, args.timeout) as target,
        Mirror(args.file, target, replace=args.force, timeout=args.timeout) as mirror,
    ):
        with shown("mirror", "entries") as meter:
            count = mirror.load(meter)
        _say(f"{args.file}: {plural(count, 'entry')} loaded into table {args.table}{_as_of(mirror.commit)}")
        with _told_to_stop() as stop:
            if args.once:
                stop.set()
            else:
                _say("following; press Ctrl-C when the program has stopped writing to the file")
            _follow(mirror, stop)
        commit = mirror.finish()
        if args.verify:
            with shown("compare", "entries") as meter:
                mirror.verify(meter)
        compared = ", each entry compared" if args.verify else ""
        write(f"table {args.table}: the same as {args.file}{_as_of(commit)}{compared}")
    return 0


def _follow(mirror: Mirror, stop: threading.Event) -> None:
    """Bring over what is committed, until it is time to stop. A server that goes away is waited for."""
    from ..remote import ConnectionLostError

    pause = _POLL
    while True:
        last = stop.is_set()
        try:
            if mirror.catch_up() is not None:
                pause = 0.0  # there may be more already
            elif last:
                return
            else:
                pause = _POLL
        except (ConnectionLostError, BusyError) as exc:
            if last:
                raise
            if pause <= _POLL:
                _say(f"{exc}; trying again")
            pause = min(max(2 * pause, _POLL), _LONGEST_PAUSE)
        stop.wait(pause)


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a SIGTERM sets in the block, instead of ending the program."""
    stop = threading.Event()

    def note(number: int, frame: Any) -> None:
        stop.set()

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _as_of(commit: Commit | None) -> str:
    if commit is None:
        return ""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(commit.time_ns / 1e9))
    return f", as of commit {commit.txid:,} ({when})"


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "mirror", "bring a file in use to a server, and follow it until the switch",
            "Loads one state of FILE into a table on a server, then brings over what is committed to FILE meanwhile, "
            "by whatever program, until Ctrl-C. So a service moves with a pause of seconds: stop it, press Ctrl-C, "
            "wait for the line that says that the table is the same, and start the service on the server's table."
            "\n\n"
            "At the end FILE is locked against writers for a moment. A broken connection is replaced.",
            _mirror_arguments, _mirror,
            [
                ("durabledbm mirror app.db postgresql:///postgres --table app --once", "bring it over, and end"),
                ("durabledbm mirror app.db postgresql:///postgres --table app --once --force --verify", "again"),
            ],
        ),
    )
}  # fmt: skip
