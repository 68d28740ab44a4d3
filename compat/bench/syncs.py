"""Counts the syncs behind a durable put, from outside: a row is only durable if the kernel was asked to sync.

A worker makes N puts under strace, another makes 3 N; the difference divided by 2 N is the cost of one put,
without that of opening and closing. Counted are fsync, fdatasync, sync_file_range, syncfs, msync with
MS_SYNC, and writes to files opened with O_SYNC or O_DSYNC (LMDB writes its meta page so), and RWF_SYNC and
RWF_DSYNC."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable

from .catalogue import all_stores, all_workloads
from .interpreters import ROOT, WORKER, Interpreter, environment, find, last_line

_PUTS = 100
_CALLS = "fsync,fdatasync,sync_file_range,syncfs,msync,openat,open,write,pwrite64,writev,pwritev,pwritev2"
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
_RESUMED = re.compile(r"^(?:\d+ +)?<\.\.\. (\w+) resumed>")
_RESULT = re.compile(r"= (\d+)$")
_SYNCS = ("fsync", "fdatasync", "sync_file_range", "syncfs", "msync", "synchronous writes")
_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")


def table(stores: Iterable[str], directory: str | None) -> str:
    """A Markdown table of the system calls per durable put, one line per store that has durable puts."""
    if shutil.which("strace") is None:
        return "The syncs were not counted: there is no strace.\n"
    single_put = all_workloads()["put_durable_1"]
    columns = (*_SYNCS, "syncs", "writes", "bytes written")
    lines = [
        "System calls per durable put, counted with strace, opening and closing left out. Bytes written",
        "through a mapping (dbm.gnu) are not seen.",
        "",
        "| store | " + " | ".join(columns) + " |",
        "|" + " --- |" * (len(columns) + 1),
    ]
    for name in stores:
        if single_put.why_not(all_stores()[name], 0) is not None:
            continue
        answer = find(name)
        if isinstance(answer, str):
            lines.append(f"| {name} | missing: {answer} |" + " |" * (len(columns) - 1))
            continue
        try:
            lines.append(_row(name, columns, per_put(name, answer, directory)))
        except RuntimeError as exc:
            lines.append(f"| {name} | failed: {exc} |" + " |" * (len(columns) - 1))
    return "\n".join(lines) + "\n"


def _row(name: str, columns: tuple[str, ...], cost: dict[str, float]) -> str:
    total = sum(cost[call] for call in _SYNCS)
    cost = {**cost, "syncs": total}
    cells = [f"{cost[column]:,.0f}" if column == "bytes written" else f"{cost[column]:.2f}" for column in columns]
    return f"| {name} | " + " | ".join(cell if cell != "0.00" else "" for cell in cells) + " |"


def per_put(store: str, interpreter: Interpreter, directory: str | None) -> dict[str, float]:
    """System calls per durable put by name, with "synchronous writes", "writes" and "bytes written"."""
    few = _count(store, interpreter, directory, _PUTS)
    many = _count(store, interpreter, directory, 3 * _PUTS)
    names = (*_SYNCS, "writes", "bytes written")
    return {name: max(many[name] - few[name], 0) / (2 * _PUTS) for name in names}


def _count(store: str, interpreter: Interpreter, directory: str | None, puts: int) -> Counter[str]:
    with tempfile.TemporaryDirectory(prefix="durabledbm-bench-", dir=directory) as base:
        place, trace = os.path.join(base, "store"), os.path.join(base, "trace")
        os.mkdir(place)
        spec = json.dumps({"action": "puts", "store": store, "directory": place, "count": puts, "scale": "tiny"})
        command = ["strace", "-f", "-qq", "-s", "0", "-e", f"trace={_CALLS}", "-o", trace]
        command += [interpreter.executable, *WORKER, spec]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise RuntimeError(last_line(done.stderr))
        with open(trace, errors="replace") as file:
            return parse(file)


def parse(lines: Iterable[str]) -> Counter[str]:
    """Count the calls of an strace of one process."""
    counts: Counter[str] = Counter()
    synchronous: set[str] = set()
    for line in lines:
        text = line.rstrip()
        result = _RESULT.search(text)
        if resumed := _RESUMED.match(text):
            if resumed[1] in _WRITES and result:
                counts["bytes written"] += int(result[1])
            continue
        match = _LINE.match(text)
        if match is None:
            continue
        call, arguments = match.groups()
        if call in ("open", "openat"):
            if result:
                (synchronous.add if re.search(r"\bO_D?SYNC\b", arguments) else synchronous.discard)(result[1])
        elif call in _WRITES:
            counts["writes"] += 1
            counts["bytes written"] += int(result[1]) if result else 0
            fd = arguments.split(",", 1)[0].strip()
            counts["synchronous writes"] += fd in synchronous or re.search(r"\bRWF_D?SYNC\b", arguments) is not None
        elif call != "msync" or "MS_SYNC" in arguments:
            counts[call] += 1
    return counts
