"""The command line of the benchmark: `python -m compat.bench`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import report, syncs
from .catalogue import all_stores, all_workloads
from .data import SCALES, Scale
from .interpreters import Interpreter, find, variable
from .runner import Bench, Options, titled

_DESCRIPTION = "Measure durabledbm, its peers and the limits of the machine side by side."
_EPILOG = f"""\
A full run of everything (5 rounds) is estimated at three to four hours on two cores and 25 GB of disk;
--quick took nine minutes and takes 1 GB. Choose stores and workloads to take less: names may hold * and
?. Leave the machine alone meanwhile. A dbm.* module that the running interpreter lacks is looked for in
the machine's others; {variable("dbm.gnu")} (and likewise for any store) names one. The scratch
directory (--dir, else TMPDIR) must be on the disk to measure: a tmpfs syncs nothing.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    stores = _chosen(parser, "store", options.store, list(all_stores()))
    workloads = _chosen(parser, "workload", options.workload, list(all_workloads()))
    if options.list:
        return _list(stores, workloads, SCALES["quick" if options.quick else "full"])
    if options.verify_syncs:
        print(syncs.table(stores, options.dir), end="")
        return 0
    if options.read:
        data = json.loads(Path(options.read).read_text())
    else:
        data = Bench(
            Options(
                stores=stores, workloads=workloads, rounds=options.rounds or (2 if options.quick else 5),
                scale="quick" if options.quick else "full", directory=options.dir, seconds=options.seconds,
                command=shlex.join(["python", "-m", "compat.bench", *given]),
            )
        ).run()  # fmt: skip
    return _write(options, data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m compat.bench", description=_DESCRIPTION, epilog=_EPILOG)
    add = parser.add_argument
    add("--quick", action="store_true", help="small data sets, 0.2 s per cell, 2 rounds: to see that it works")
    add("--store", nargs="+", metavar="NAME", help="only these stores")
    add("--workload", nargs="+", metavar="NAME", help="only these workloads")
    add("--rounds", type=int, metavar="N", help="how often each cell is measured (5; 2 with --quick)")
    add(
        "--seconds",
        type=float,
        default=0.0,
        metavar="S",
        help=f"timed part of a cell ({SCALES['full'].seconds:g})",
    )
    add(
        "--dir",
        metavar="DIR",
        help="where to put the stores; a directory is made there and removed at the end",
    )
    add("--json", metavar="FILE", help="write everything measured, round by round")
    add("--markdown", metavar="FILE", help="write the tables here instead of to standard output")
    add("--plot", metavar="DIR", help="write plots as SVG (needs matplotlib)")
    add("--read", metavar="FILE", help="measure nothing: report on a JSON file written earlier")
    add(
        "--verify-syncs",
        action="store_true",
        help="count the syncs per durable put with strace, and print them",
    )
    add("--list", action="store_true", help="list the stores, with what runs them, and the workloads")
    return parser


def _chosen(parser: argparse.ArgumentParser, what: str, wanted: list[str] | None, known: list[str]) -> list[str]:
    if not wanted:
        return known
    for pattern in wanted:
        if not any(fnmatch(name, pattern) for name in known):
            parser.error(f"no {what} {pattern!r}; known are {', '.join(known)}")
    return [name for name in known if any(fnmatch(name, pattern) for pattern in wanted)]


def _list(stores: list[str], workloads: list[str], scale: Scale) -> int:
    for name in stores:
        answer = find(name)
        if isinstance(answer, Interpreter):
            print(f"{name:20} {answer.version or '-':28} Python {answer.python:8} {all_stores()[name].note}")
        else:
            print(f"{name:20} MISSING: {answer}")
    print()
    for name in workloads:
        workload = all_workloads()[name]
        print(f"{name:20} {titled(workload, scale)}, {workload.unit}")
    return 0


def _write(options: argparse.Namespace, data: dict[str, Any]) -> int:
    if options.json:
        Path(options.json).write_text(json.dumps(data, indent=1) + "\n")
    text = report.markdown(data)
    if options.markdown:
        Path(options.markdown).write_text(text)
    else:
        print(text, end="")
    if options.plot:
        from . import plots

        for path in plots.draw(data, options.plot):
            print(path, file=sys.stderr)
    return 1 if data["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
