"""Looking after a file: stat, check, salvage, compact."""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import open as open_database
from ..errors import CorruptionError, error
from .command import PROGRAM, Command, Parser, file_argument, timeout_option
from .console import complain, message
from .faults import Usage, explain, quoted
from .holders import Holder, holders
from .opening import is_sharded, open_store, size_of
from .progress import quantity, shown
from .text import OutputError, plural, printable, style, write
from .values import looks_pickled

if TYPE_CHECKING:
    from ..database import Database
    from ..maintenance.stats import OldestSnapshot, Stats

__all__ = ["COMMANDS"]

_SAMPLE = 20
"""Values that are looked at to tell whether a file is a shelf."""

_OF_HANDLE = {"commits", "syncs", "pages_written", "cache_hits", "cache_misses"}
"""Figures of the handle, not of the file: they are this command's own, and of no interest."""


def _size(size: int) -> str:
    return quantity(size, "bytes")


# -- stat ------------------------------------------------------------------------------------------


class _About(NamedTuple):
    """What `stat` finds out."""

    file: str
    stats: Stats
    others: list[Holder]
    is_shelf: bool
    damage: str
    """What was met by chance; empty if nothing was."""


def _stat_arguments(parser: Parser) -> None:
    file_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, sizes in bytes")


def _stat(args: argparse.Namespace) -> int:
    if is_sharded(args.file):
        return _stat_sharded(args)
    with open_database(args.file, "r") as db:
        stats, others = db.stats(), holders(args.file)  # before this command itself reads anything for long
        about = _About(args.file, stats, others, *_is_shelf(db))
    if args.json:
        write(json.dumps(_figures(about), indent=2))
        return 0
    colour = style()
    write(colour(printable(args.file), "bold"))
    for name, text in _lines(about):
        write(f"  {colour(f'{name:<10}', 'cyan')} {text}")
    return 0


def _is_shelf(db: Database) -> tuple[bool, str]:
    """Whether the first values look like objects, and the damage that stands in the way of finding out."""
    try:
        values = [value for _, value in itertools.islice(db.range(), _SAMPLE)]
    except CorruptionError as exc:
        return False, exc.message + ("" if exc.page_id is None else f" (page {exc.page_id})")
    return bool(values) and all(map(looks_pickled, values)), ""


def _stat_sharded(args: argparse.Namespace) -> int:
    from ..sharded import open_sharded

    with open_sharded(args.file, "r") as db:
        stats = db.stats()
    if args.json:
        figures = {name: value for name, value in stats._asdict().items() if name not in _OF_HANDLE}
        shards = [
            {name: value for name, value in shard._asdict().items() if name not in _OF_HANDLE} for shard in stats.shards
        ]
        write(json.dumps({"file": args.file, **figures, "shards": shards}, indent=2))
        return 0
    colour = style()
    write(colour(printable(args.file), "bold"))
    lines = [
        ("entries", f"{stats.entries:,}, in {plural(len(stats.shards), 'shard')}"),
        ("files", _size(stats.file_bytes)),
        ("in use", _size(stats.live_bytes)),
        ("free", _size(stats.free_bytes)),
    ]
    lines += [(f"shard {at}", f"{shard.entries:,}, {_size(shard.file_bytes)}") for at, shard in enumerate(stats.shards)]
    for name, text in lines:
        write(f"  {colour(f'{name:<10}', 'cyan')} {text}")
    return 0


def _lines(about: _About) -> list[tuple[str, str]]:
    stats = about.stats
    if not stats.txid:
        return [("entries", "0"), ("file", f"{_size(stats.file_bytes)}: a database that nothing was written to yet")]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stats.time_ns / 1e9))
    kinds = [
        plural(stats.depth, "level"),
        plural(stats.leaf_pages, "leaf page"),
        plural(stats.branch_pages, "branch page"),
        f"{plural(stats.overflow_pages, 'page')} of large values",
    ]
    lines = [
        (
            "entries",
            f"{stats.entries:,}{'; the values look like objects of a shelf' if about.is_shelf else ''}",
        ),
        ("commits", f"{stats.txid:,}, the last one at {when}"),
        (
            "file",
            f"{_size(stats.file_bytes)}: {plural(stats.page_count, 'page')} of {_size(stats.page_size)}",
        ),
        ("tree", ", ".join(kinds)),
        ("in use", _size(stats.live_bytes)),
        ("free", _size(stats.free_bytes) + _reclaimable(stats)),
    ]
    if stats.tables:
        lines.insert(1, ("tables", f"{stats.tables:,}, with {plural(stats.table_entries, 'entry')} besides"))
    if stats.checkpoints:
        kept = f"{plural(stats.checkpoints, 'checkpoint')}, for which alone {_size(stats.kept_pages * stats.page_size)}"
        lines.append(("kept", f"{kept} are needed; 'durabledbm checkpoints' lists them"))
    if stats.pending_pages:
        waiting = f"{_size(stats.pending_pages * stats.page_size)} freed by the last commits, reusable soon"
        if stats.pinned_bytes:
            waiting += f", but for {_size(stats.pinned_bytes)} that an open snapshot reads"
        lines.append(("waiting", waiting))
    if about.damage:
        lines.append(("damaged", f"{about.damage}; 'durabledbm check' shows how much"))
    if stats.oldest_snapshot is not None:
        lines.append(("snapshot", _oldest(about, stats.oldest_snapshot)))
    return lines + [("opened by", _holder(holder)) for holder in about.others]


def _reclaimable(stats: Stats) -> str:
    if stats.free_bytes > 0.2 * stats.file_bytes and stats.free_bytes > 1 << 20:
        return "; 'durabledbm compact' makes the file smaller"
    return ""


def _oldest(about: _About, oldest: OldestSnapshot) -> str:
    who = [holder.pid for holder in about.others if holder.oldest == oldest.txid]
    reader = f", by process {who[0]}" if who else ""
    behind = plural(about.stats.txid - oldest.txid, "commit")
    return f"the oldest that is read is commit {oldest.txid:,}, {behind} ago{reader}"


def _holder(holder: Holder) -> str:
    doing = ["writes now"] if holder.writing else []
    doing += ["reads a snapshot"] if holder.oldest is not None else []
    return f"process {holder.pid} ({holder.command}){': ' if doing else ''}{', '.join(doing)}"


def _figures(about: _About) -> dict[str, Any]:
    stats = about.stats
    figures: dict[str, Any] = {"file": about.file}
    figures |= {name: value for name, value in stats._asdict().items() if name not in _OF_HANDLE}
    oldest = stats.oldest_snapshot
    figures["oldest_snapshot"] = None if oldest is None else oldest.txid
    figures["looks_like_shelf"] = about.is_shelf
    figures["damage"] = about.damage or None
    figures["opened_by"] = [holder._asdict() for holder in about.others]
    return figures


# -- check -----------------------------------------------------------------------------------------


def _check_arguments(parser: Parser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="the database files")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing: the exit status is the answer")


def _check(args: argparse.Namespace) -> int:
    """The worst answer: a file that could not be read at all counts more than one with problems."""
    if len(args.files) == 1:
        return _check_one(args.files[0], args.quiet)
    worst = 0
    for file in args.files:
        try:
            status = _check_one(file, args.quiet)
        except (OSError, ValueError) as exc:
            if isinstance(exc, OutputError):
                raise
            complain(f"{PROGRAM} check", explain(exc, "check", [file]))
            status = 2
        worst = max(worst, status)
    return worst


def _check_one(file: str, quiet: bool) -> int:
    entries = 0
    try:
        with open_store(file, "r") as db, shown("check") as meter:
            problems = [str(problem) for problem in db.check(progress=meter)]
            entries = len(db)
    except CorruptionError as exc:
        problems = [exc.message.split("; ")[0] + ("" if exc.page_id is None else f" (page {exc.page_id})")]
    if quiet:
        return 1 if problems else 0
    colour, name = style(), printable(file)
    for problem in problems:
        write(f"{name}: {colour(printable(problem), 'red')}")
    if problems:
        write(f"{name}: {plural(len(problems), 'problem')}")
        which = f"{file}/SHARD" if is_sharded(file) else file
        message(f"{file}: 'durabledbm salvage {quoted(which)} NEW' saves what is readable")
        return 1
    size = _size(size_of(file))
    write(f"{name}: {colour('sound', 'green')}, {plural(entries, 'entry')}, every page of {size} verified")
    return 0


# -- salvage ---------------------------------------------------------------------------------------


def _salvage_arguments(parser: Parser) -> None:
    file_argument(parser, "the broken database file; it is only read")
    parser.add_argument("target", metavar="TARGET", help="the new database file; it must not exist")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not list what could not be read")


def _salvage(args: argparse.Namespace) -> int:
    from ..salvage import salvage

    if is_sharded(args.file):
        raise Usage(f"{args.file}: is the directory of a sharded database: salvage the broken one of its files")
    if os.path.isdir(args.file):
        raise error(errno.EISDIR, os.strerror(errno.EISDIR), args.file)
    if _is_empty(args.file):
        raise Usage(f"{args.file}: is empty: a database that nothing was written to, or a file that lost everything")
    with shown("salvage") as meter:
        report = salvage(args.file, args.target, progress=meter)
    for line in str(report).splitlines()[: 1 if args.quiet else None]:
        message(f"{args.target}: {line}")
    return 1 if report.unreadable or report.commit is None else 0


def _is_empty(file: str) -> bool:
    """Whether it is a file without content. Pipes and devices have no size, and are no files."""
    return os.path.isfile(file) and not os.path.getsize(file)


# -- compact ---------------------------------------------------------------------------------------


def _compact_arguments(parser: Parser) -> None:
    file_argument(parser)
    timeout_option(parser)


def _compact(args: argparse.Namespace) -> int:
    before = size_of(args.file)
    if _is_empty(args.file):
        message(f"{args.file}: empty, it can't be smaller")
        return 0
    with open_store(args.file, "w", args.timeout) as db:
        with shown("compact") as meter:
            db.reorganize(progress=meter)
        stats = db.stats()
    after = size_of(args.file)
    if after == before:
        message(f"{args.file}: {_size(after)}, already compact")
    else:
        message(f"{args.file}: {_size(before)} before, {_size(after)} now")
    if stats.pinned_bytes:
        message(f"{args.file}: an open snapshot keeps {_size(stats.pinned_bytes)}; compact again when it is closed")
    return 0


# ------------------------------------------------------------------------------------------------------------

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "stat", "what is in a file, how large it is, and who uses it",
            "Entries, commits, pages by kind, bytes in use, free and pinned by snapshots, and the processes "
            "that have the "
            "file open (where the system tells). Reads the meta pages and the branches of the tree, not the "
            "values.",
            _stat_arguments, _stat,
            [
                ("durabledbm stat app.db", "for people"),
                ("durabledbm stat app.db --json | jq .entries", "for other programs"),
            ],
        ),
        Command(
            "check", "verify every page of a file, or of several",
            "Reads the whole file and verifies every page: its checksum, its place, the order of the keys, "
            "that each page is in "
            "use exactly once or free, and the counts. Others may read and write meanwhile; nothing is "
            "changed.\n\n"
            "A number in brackets says which invariant of docs/format.md is broken.",
            _check_arguments, _check,
            [
                ("durabledbm check app.db", "verify"),
                ("durabledbm check *.db", "several files, one after the other"),
                ("durabledbm check -q app.db || mail -s 'app.db is damaged' root", "in a script"),
            ],
            "problems were found",
        ),
        Command(
            "salvage", "save what is readable of a broken file into a new one",
            "Reads every page that is intact by its own checksum: first what the tree leads to, then, for keys that it "
            "has lost, the newest version that is found anywhere in the file. The broken file is not changed; TARGET "
            "appears when it is complete.\n\n"
            "What was deleted shortly before the damage may be there again; if so, that is said.",
            _salvage_arguments, _salvage,
            [("durabledbm salvage broken.db saved.db", "save it, then use saved.db in its place")],
            "something could not be read, and is not in TARGET",
        ),
        Command(
            "compact", "make a file as small as its content allows",
            "Moves pages to the front of the file and cuts off its end, by ordinary commits: others may read "
            "and write "
            "meanwhile, and it may be interrupted at any moment, by Ctrl-C or by a power failure, with "
            "nothing lost.",
            _compact_arguments, _compact,
            [("durabledbm compact app.db", "give unused space back")],
        ),
    )
}  # fmt: skip
