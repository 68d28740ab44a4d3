"""Runs the cells: every (store, workload, round) in a process of its own, rounds interleaved over the stores.

Data sets are prepared once and shared by all rounds: reading workloads share the files, writing ones get a
synced copy, and only the largest data set is written in place. One data set exists at a time, and
everything is removed at the end. A worker that takes too long is killed and reported; it is not tried
again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from . import machine
from .catalogue import all_stores, all_workloads
from .data import SCALES, Scale, datasets
from .interpreters import ROOT, WORKER, Interpreter, environment, find, last_line
from .stores import Store, sync_tree
from .workloads import Workload

_RUN_TIMEOUT = 180
_PREPARE_TIMEOUT = 1200
_ORDER = ("", "tiny", "small", "shelf", "mebi", "vast", "large", "wide", "huge")


class WorkerError(Exception):
    """A worker failed or took too long; the text is its last word."""


@dataclass
class Options:
    """What to run. `stores` and `workloads` are names; `seconds` replaces the scale's timed part if not 0."""

    stores: list[str]
    workloads: list[str]
    rounds: int
    scale: str = "full"
    directory: str | None = None
    seconds: float = 0.0
    command: str = ""
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)


class Bench:
    """One run of the benchmark."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.scale = SCALES[options.scale]
        self.datasets = datasets(self.scale)
        self.classes = all_stores()
        self.workloads = all_workloads()
        self.found: dict[str, Interpreter] = {}
        self.missing: dict[str, str] = {}
        self.gaps: list[dict[str, str]] = []
        self.failures: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self._failed: set[tuple[str, str]] = set()

    def run(self) -> dict[str, Any]:
        """Run everything; return the report as plain data."""
        options = self.options
        started = time.time()
        for name in options.stores:
            answer = find(name)
            if isinstance(answer, Interpreter):
                self.found[name] = answer
            else:
                self.missing[name] = answer
                options.say(f"{name} is missing: {answer}")
        self.base = tempfile.mkdtemp(prefix="durabledbm-bench-", dir=options.directory)
        try:
            about = machine.describe(self.base)
            for dataset in _ORDER:
                self._phase(dataset, [name for name in options.workloads if self.workloads[name].dataset == dataset])
        finally:
            shutil.rmtree(self.base, ignore_errors=True)
        return self._report(started, about)

    # -- one data set

    def _phase(self, dataset: str, names: list[str]) -> None:
        cells = {name: self._stores_for(self.workloads[name]) for name in names}
        prepared = self._prepare(dataset, {store for stores in cells.values() for store in stores}) if dataset else {}
        for name, stores in cells.items():
            for number in range(1, self.options.rounds + 1):
                for store in stores:
                    if (store, name) not in self._failed:
                        self._cell(self.workloads[name], store, number, prepared.get(self.classes[store].family, ""))
        for directory in prepared.values():
            shutil.rmtree(directory, ignore_errors=True)

    def _stores_for(self, workload: Workload) -> list[str]:
        entries = self.datasets[workload.dataset].count if workload.dataset else self.scale.churn
        chosen = []
        for name in self.found:
            reason = workload.why_not(self.classes[name], entries)
            if reason is None:
                chosen.append(name)
            elif reason:
                self.gaps.append({"store": name, "workload": workload.name, "reason": reason})
        return chosen

    def _prepare(self, dataset: str, stores: set[str]) -> dict[str, str]:
        """A directory with the data set for each family of stores."""
        prepared: dict[str, str] = {}
        for name in self.found:
            family = self.classes[name].family
            if name not in stores or family in prepared or not self.classes[name].persistent:
                continue
            directory = os.path.join(self.base, f"{dataset}-{family}")
            os.mkdir(directory)
            begin = time.perf_counter()
            spec = {"action": "prepare", "store": name, "dataset": dataset, "directory": directory}
            try:
                self._work(name, spec, _PREPARE_TIMEOUT)
            except WorkerError as exc:
                self._fail(name, "*", 0, f"preparing {dataset}: {exc}")
                relatives = [other for other in stores if self.classes[other].family == family]
                self._failed.update((other, workload) for other in relatives for workload in self._using(dataset))
                shutil.rmtree(directory, ignore_errors=True)
                continue
            prepared[family] = directory
            self.options.say(f"prepared {dataset} for {family} in {time.perf_counter() - begin:.1f} s")
        return prepared

    def _using(self, dataset: str) -> Iterable[str]:
        return (name for name, workload in self.workloads.items() if workload.dataset == dataset)

    # -- one cell

    def _cell(self, workload: Workload, store: str, number: int, prepared: str) -> None:
        scratch = os.path.join(self.base, "scratch")
        shared = bool(prepared) and workload.data in ("shared", "own")
        if prepared and workload.data == "copy":
            shutil.copytree(prepared, scratch, copy_function=_copy_sparse)
            sync_tree(scratch)
        else:
            os.mkdir(scratch)
        spec = {
            "action": "run", "store": store, "workload": workload.name, "dataset": workload.dataset,
            "directory": prepared if shared else scratch, "seed": f"{workload.name} {number}",
            "seconds": self.options.seconds,
        }  # fmt: skip
        try:
            result = self._work(store, spec, _RUN_TIMEOUT)
        except WorkerError as exc:
            self._failed.add((store, workload.name))
            self._fail(store, workload.name, number, str(exc))
        else:
            load = round(os.getloadavg()[0], 2)
            self.rows.append({"store": store, "workload": workload.name, "round": number, "load": load, **result})
            self.options.say(f"{workload.name} round {number} {store}: {result['value']:,.1f} {workload.unit}")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _fail(self, store: str, workload: str, number: int, reason: str) -> None:
        self.failures.append({"store": store, "workload": workload, "round": number, "reason": reason})
        self.options.say(f"{workload} round {number} {store} FAILED: {reason}")

    def _work(self, store: str, spec: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Run a worker in the store's interpreter and return what it printed."""
        request = json.dumps({"scale": self.scale.name, **spec})
        command = [self.found[store].executable, *WORKER, request]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WorkerError(f"took longer than {timeout:.0f} s") from None
        if done.returncode:
            if done.returncode < 0:
                raise WorkerError(f"killed by signal {-done.returncode}")
            raise WorkerError(last_line(done.stderr))
        return json.loads(last_line(done.stdout))  # type: ignore[no-any-return]

    # -- the report

    def _report(self, started: float, about: dict[str, Any]) -> dict[str, Any]:
        return {
            "command": self.options.command,
            "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(started)),
            "seconds": round(time.time() - started),
            "machine": about,
            "rounds": self.options.rounds,
            "scale": asdict(self.scale) | ({"seconds": self.options.seconds} if self.options.seconds else {}),
            "stores": {name: self._about(self.classes[name], answer) for name, answer in self.found.items()},
            "missing": self.missing,
            "gaps": self.gaps,
            "failures": self.failures,
            "workloads": {
                name: {
                    "title": titled(workload, self.scale), "group": workload.group, "unit": workload.unit,
                    "better": workload.better,
                }
                for name, workload in self.workloads.items()
                if name in self.options.workloads
            },
            "rows": self.rows,
        }  # fmt: skip

    @staticmethod
    def _about(store: type[Store], answer: Interpreter) -> dict[str, Any]:
        return {
            "version": answer.version, "python": answer.python, "note": store.note, "durable": store.durable,
            "relaxed": store.relaxed, "relaxed_safe": store.relaxed_safe, "traits": sorted(store.traits),
        }  # fmt: skip


def _copy_sparse(source: str, target: str) -> str:
    """Copy a file, leaving its holes holes: LMDB's and others' files are sparse."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        end = os.fstat(reader.fileno()).st_size
        offset = 0
        while offset < end:
            try:
                start = os.lseek(reader.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break  # only a hole is left
            offset = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            _copy_part(reader.fileno(), writer.fileno(), start, offset)
        os.ftruncate(writer.fileno(), end)
    shutil.copymode(source, target)
    return target


def _copy_part(source: int, target: int, start: int, stop: int) -> None:
    # Pages are written one by one: a larger write leaves larger units in the page cache, and a store that
    # writes through a mapping would then be charged for syncing the whole unit around each page that it
    # touches.
    while start < stop and (data := os.pread(source, min(1 << 20, stop - start), start)):
        for place in range(0, len(data), 4096):
            os.pwrite(target, data[place : place + 4096], start + place)
        start += len(data)


def titled(workload: Workload, scale: Scale) -> str:
    """The workload's title with the sizes of a scale."""
    return workload.title.format(**{name: _words(value, name) for name, value in asdict(scale).items()})


def _words(value: Any, name: str) -> str:
    """A size of the scale, in words for titles."""
    if name in ("mebi_size", "vast_size"):
        return f"{value >> 20} MiB" if value >= 1 << 20 else f"{value >> 10} KiB"
    if isinstance(value, int):
        if value >= 1_000_000 and value % 1_000_000 == 0:
            return f"{value // 1_000_000}M"
        return f"{value // 1000}k" if value >= 1000 and value % 1000 == 0 else str(value)
    return str(value)
