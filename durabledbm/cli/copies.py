"""Copies of a database, and other formats: backup, dump, load, migrate, export."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any

from .command import Command, Parser, file_argument, timeout_option
from .console import message
from .faults import Usage
from .holders import files_of
from .opening import is_sharded, open_remote, open_store, size_of
from .progress import quantity, shown
from .targets import check_directory, check_target, force_option, is_stream
from .text import StandardOutput, plural

if TYPE_CHECKING:
    from ..changelog import Commit
    from ..dump import Loaded
    from .point_in_time import Until

__all__ = ["COMMANDS"]

_STREAM = "-"
_DAMAGE_SHOWN = 20

_REMOTE_TABLE = "durabledbm"

_FACTORS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


# -- backup ------------------------------------------------------------------------------------------


def _backup_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("target", metavar="TARGET", help="the copy")
    force_option(parser)


def _backup(args: argparse.Namespace) -> int:
    if is_sharded(args.file):
        check_directory(args.target)
    else:
        check_target(args.target, args.file, force=args.force)
    with open_store(args.file, "r") as db, shown("backup", "entries") as meter:
        db.backup(args.target, progress=meter)
    with open_store(args.target, "r") as copy:
        count = len(copy)
    message(f"{args.target}: {plural(count, 'entry')}, {quantity(size_of(args.target), 'bytes')}")
    return 0


# -- dump --------------------------------------------------------------------------------------------


def _dump_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="the database file, unless there is --from")
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="a file, or with --max-file-size a directory; standard output without it, or for -",
    )
    parser.add_argument("--from", dest="origin", metavar="URL", help="dump a table on a server in the place of FILE")
    _table_option(parser, "with --from: the table there")
    _codec_option(parser, "binary (the default): any bytes, with checksums; text: a line for each entry")
    parser.add_argument(
        "--max-file-size",
        metavar="SIZE",
        type=_size,
        help="write a directory of files no larger than SIZE bytes; K, M and G are understood",
    )
    force_option(parser)


def _table_option(parser: Parser, help: str) -> None:
    parser.add_argument("--table", metavar="NAME", help=f"{help} (default: {_REMOTE_TABLE})")


def _remote_table(args: argparse.Namespace) -> str:
    """The table on the server."""
    return _REMOTE_TABLE if args.table is None else args.table


def _codec_option(parser: Parser, help: str) -> None:
    parser.add_argument("--codec", choices=("binary", "text"), help=help)


def _size(text: str) -> int:
    number = text.rstrip("kmgKMG")
    factor = _FACTORS.get(text[len(number) :].lower())
    if factor is None or not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 1000000, 64M or 2G")
    return int(number) * factor


def _dump(args: argparse.Namespace) -> int:
    from ..dump import dump

    if args.origin is not None:
        if args.target is not None:
            raise Usage("--from takes a TARGET, but no FILE")
        args.file, args.target = None, args.file
    elif args.file is None:
        raise Usage("nothing to dump: name a FILE, or give --from URL")
    elif args.table is not None:
        raise Usage("--table goes with --from: the dump of a FILE holds all its tables")
    with _dump_target(args) as target, _dump_source(args) as db, shown("dump", "entries") as meter:
        try:
            count = dump(
                db, target, codec=args.codec or "binary", max_file_size=args.max_file_size, progress=meter,
            )  # fmt: skip
        except ValueError as exc:
            raise Usage(f"{exc}{'; without --codec text any entry can be dumped' * (args.codec == 'text')}") from exc
    if args.target not in (None, _STREAM):
        message(f"{args.target}: {plural(count, 'entry')}")
    return 0


def _dump_source(args: argparse.Namespace) -> Any:
    if args.origin is None:
        return open_store(args.file, "r")
    return open_remote(args.origin, _remote_table(args), flag="r")


@contextmanager
def _dump_target(args: argparse.Namespace) -> Iterator[Any]:
    """What the dump is written to: a name, or a stream."""
    if args.target in (None, _STREAM):
        if args.max_file_size is not None:
            raise Usage("--max-file-size is for a directory: name a TARGET")
        if sys.stdout.isatty() and args.codec != "text":
            raise Usage("a binary dump is not for a terminal: name a TARGET, use a pipe, or --codec text")
        yield StandardOutput()
    elif args.max_file_size is not None:
        yield args.target
    else:
        if args.file is not None:
            check_target(args.target, args.file, force=args.force)
        if is_stream(args.target):
            with open(args.target, "wb") as stream:
                yield stream
        else:
            yield args.target


# -- load --------------------------------------------------------------------------------------------


def _load_arguments(parser: Parser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?",
        help="the database file, unless there is --to; it is created if it is missing",
    )  # fmt: skip
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="a dump, a log of changes, or, for a new FILE, a backup; - for standard input",
    )
    parser.add_argument("--to", metavar="URL", help="load into a table on a server in the place of FILE")
    _table_option(parser, "with --to: the table there, which is created if it is missing")
    parser.add_argument(
        "--log",
        metavar="DIRECTORY",
        help="restore: a new FILE from SOURCE, a backup or dump, and the log that was attached",
    )
    parser.add_argument(
        "--until",
        metavar="TXID|TIME",
        type=_until,
        help="stop behind the commit of that number, or the last one not later than 2026-05-01T12:00",
    )
    _codec_option(parser, "how SOURCE is written (default: it is recognized)")
    timeout_option(parser)


def _until(text: str) -> Until:
    from .point_in_time import parse_until

    try:
        return parse_until(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _load(args: argparse.Namespace) -> int:
    from ..stdlib import whichdb

    until: Until = {} if args.until is None else args.until
    if args.to is not None:
        return _load_remote(args, until)
    if args.file is None:
        raise Usage("no target: name a FILE, or give --to URL")
    if args.table is not None:
        raise Usage("--table goes with --to: what is loaded into a FILE goes into the tables that it names")
    if args.log is not None or (
        args.source not in (None, _STREAM) and os.path.isfile(args.source) and whichdb(args.source) == "durabledbm"
    ):
        return _restore(args, until)
    source = _stream_or_name(args.source)
    with _target(args.file, None if source is sys.stdin.buffer else source) as file:
        loaded = _loaded(args, open_store(file, "c", args.timeout), source, until)
    _report_loaded(args.file, loaded)
    return 0


def _stream_or_name(source: str | None) -> Any:
    """What to load: standard input, or what has that name."""
    if source is None and sys.stdin.isatty():
        raise Usage("no source: name a SOURCE, or use a pipe")
    return sys.stdin.buffer if source in (None, _STREAM) else source


def _loaded(args: argparse.Namespace, target: Any, source: Any, until: Until) -> Loaded:
    from ..dump import load

    with target as db, shown("load", "changes") as meter:
        return load(source, db, codec=args.codec, progress=meter, **until)


def _report_loaded(name: str, loaded: Loaded) -> None:
    message(f"{name}: {plural(loaded.changes, 'change')} loaded{_as_of(loaded.commit)}")
    _explain(name, loaded.explanation)
    if loaded.tail is not None:
        message(f"{loaded.tail.file}: the log ends in a torn record at byte {loaded.tail.offset}, as after a crash")


def _load_remote(args: argparse.Namespace, until: Until) -> int:
    if args.source is not None:
        raise Usage("--to takes a SOURCE, but no FILE")
    if args.log is not None:
        raise Usage("--log restores a FILE: it does not go with --to")
    source, args.file = _stream_or_name(args.file), None
    table = _remote_table(args)
    loaded = _loaded(args, open_remote(args.to, table, args.timeout), source, until)
    _report_loaded(f"table {table}", loaded)
    return 0


@contextmanager
def _target(file: str, source: str | None) -> Iterator[str]:
    """The file to load into. A new one gets its name when all is in it: a failure leaves none.

    It is as private as `source`, the dump or log that it is made from.
    """
    if os.path.lexists(file):
        yield file
        return
    from .._engine.disk import FileVolume
    from .._engine.files import initialise
    from .._files.opening import DEFAULT_PAGE_SIZE
    from .._files.publish import publishing, real_target
    from .._foreign.kinds import refuse_beside

    refuse_beside(FileVolume(), file)
    path = real_target(file)
    with publishing(path, 0o666 if source is None else _mode(source)) as fresh:
        initialise(FileVolume(), fresh.disk, DEFAULT_PAGE_SIZE)
        yield fresh.path


def _mode(source: str) -> int:
    """The permissions for a file that is made from a dump or the files of a log. Its owner may always write it."""
    files = [source, *files_of(source)] if os.path.exists(source) else []
    return reduce(and_, (os.stat(file).st_mode for file in files), 0o666) | 0o600


def _restore(args: argparse.Namespace, until: Until) -> int:
    from ..restore import restore

    if args.source == _STREAM:
        raise Usage("--log needs a SOURCE that is a file, not a pipe")
    with shown("load", "entries") as meter:
        commit = restore(args.file, args.source, args.log, progress=meter, **until)
    message(f"{args.file}: restored{_as_of(commit)}")
    _explain(args.file, commit.explanation)
    return 0


def _explain(file: str, explanation: str) -> None:
    if explanation:
        message(f"{file}: {explanation}; to end before one, give --until the number of a commit")


def _as_of(commit: Commit | None) -> str:
    if commit is None:
        return ""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(commit.time_ns / 1e9))
    return f", as of commit {commit.txid:,} ({when})"


# -- migrate, export ---------------------------------------------------------------------------------


def _migrate_arguments(parser: Parser) -> None:
    parser.add_argument(
        "file",
        metavar="SOURCE",
        help="a database of dbm.dumb, dbm.gnu, dbm.ndbm, dbm.sqlite3 (as it was opened, or one of its files), LMDB, "
        "or Berkeley DB (a hash file)",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="the new file; without it, the new file takes the place of SOURCE",
    )
    parser.add_argument("--salvage", action="store_true", help="if SOURCE is damaged, copy what can be read")


def _migrate(args: argparse.Namespace) -> int:
    from ..migration import convert

    damage: list[str] = []
    with shown("migrate", "steps") as meter:
        done = convert(args.file, args.target, progress=meter, on_damage=damage.append if args.salvage else None)
    for line in damage[:_DAMAGE_SHOWN]:
        message(line)
    lost = f", {plural(len(damage), 'damaged place')} left out" if damage else ""
    kept = "" if done.backup is None else f"; the old database is now {done.backup}"
    message(f"{done.path}: {plural(done.entries, 'entry')}, each compared{lost}{kept}")
    return 0


def _export_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("target", metavar="TARGET", help="the new database, as its module will be given it")
    parser.add_argument(
        "--to", choices=("dbm.gnu", "dbm.sqlite3", "dbm.dumb"), required=True, help="the kind of TARGET"
    )


def _export(args: argparse.Namespace) -> int:
    from ..export import export

    if args.to == "dbm.gnu":
        try:
            importlib.import_module(args.to)
        except ImportError:
            raise Usage(f"this Python has no {args.to}: choose another --to") from None
    with shown("export", "steps") as meter:
        count = export(args.file, args.target, args.to, progress=meter)
    message(f"{args.target}: {plural(count, 'entry')}, each compared")
    return 0


# ----------------------------------------------------------------------------------------------------

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "backup", "make a consistent copy of a file that is in use",
            "Copies one state of the database, while others read and write. The copy is compact and appears complete "
            "or not at all: a failure leaves TARGET as it was, also with --force.",
            _backup_arguments, _backup,
            [("durabledbm backup app.db app.backup", "copy it")],
        ),
        Command(
            "dump", "write all entries as a stream of records",
            "Writes one state of the database, in the order of the keys, as docs/changelog-format.md "
            "describes: to standard "
            "output, a file, or a directory of files of limited size. Files appear whole or not at all.",
            _dump_arguments, _dump,
            [
                ("durabledbm dump app.db app.dump --force", "into a file, in place of an older one"),
                ("durabledbm dump app.db | zstd > app.dump.zst", "compressed"),
                ("durabledbm dump app.db --codec text | grep user:", "to read"),
                ("durabledbm dump app.db dumps --max-file-size 64M", "into a directory"),
                ("durabledbm dump --from postgresql:///postgres --table app app.back", "from a server"),
            ],
        ),
        Command(
            "load", "load a dump or a log of changes; restore a backup",
            "Applies what SOURCE holds to FILE, in one transaction: other entries stay, and a failure "
            "changes nothing. With --to it goes to a server: to PostgreSQL by COPY, in one transaction, too, to Redis "
            "in batches. What has arrived there is read back and compared.\n\n"
            "With --log a new FILE is made of SOURCE, a backup or a dump, and of the log that was attached "
            "to the "
            "database: as of the log's last commit, or any other with --until.",
            _load_arguments, _load,
            [
                ("durabledbm load new.db app.dump", "load a dump"),
                ("zstd -dc app.dump.zst | durabledbm load new.db", "from a pipe"),
                ("durabledbm dump app.db | durabledbm load --to postgresql:///postgres --table app", "to a server"),
                ("durabledbm load new.db backup.db --log app.log", "a backup, and what came after it"),
                ("durabledbm load new.db backup.db --log app.log --until 2026-05-01T12:00", "as it was at noon"),
            ],
        ),
        Command(
            "migrate", "convert a database of another kind",
            "Copies every entry, closes the new file, opens it again and compares every entry. Without "
            "TARGET the new file "
            "takes the name of the old database, which is kept with .bak behind its name. Whenever it ends, "
            "by a kill or a "
            "power failure, too, the old database is whole. A migration that was interrupted is finished by "
            "running it again.",
            _migrate_arguments, _migrate,
            [
                ("durabledbm migrate sessions", "in place: programs find the same name"),
                ("durabledbm migrate old.gdbm new.db", "under a new name"),
                ("durabledbm migrate --salvage sessions saved.db", "what can be read, if it is damaged"),
            ],
        ),
        Command(
            "export", "copy a file into a database of another kind",
            "The way back: copies one state of the database for another dbm module, and compares every "
            "entry.",
            _export_arguments, _export,
            [("durabledbm export app.db app.gdbm --to dbm.gnu", "for a program that insists on it")],
        ),
    )
}  # fmt: skip
