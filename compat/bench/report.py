"""The report as Markdown, from the plain data that `runner` returns (or that was kept as JSON)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .targets import OWN, targets
from .workloads import GROUPS

Report = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One cell over its rounds."""

    median: float
    low: float
    high: float
    memory: float  # median of the peak resident bytes that the store added
    by_round: dict[int, float]
    notes: tuple[str, ...]


def figures(report: Report) -> dict[tuple[str, str], Figure]:
    """Median, minimum and maximum by (workload, store)."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        cells.setdefault((row["workload"], row["store"]), []).append(row)
    return {key: _figure(rows) for key, rows in cells.items()}


def _figure(rows: list[dict[str, Any]]) -> Figure:
    values = [row["value"] for row in rows]
    memory = statistics.median(row["rss_store"] for row in rows)
    notes = tuple(dict.fromkeys(row["note"] for row in rows if "note" in row))
    return Figure(
        statistics.median(values),
        min(values),
        max(values),
        memory,
        {row["round"]: row["value"] for row in rows},
        notes,
    )


def short(value: float) -> str:
    """A figure with three digits: 1.23M, 45.6k, 7.89."""
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}" + suffix if value < 1000 * limit else f"{value / limit:,.0f}" + suffix
    return f"{value:.3g}"


def ratio(ours: Figure, theirs: Figure, better: str) -> tuple[float, float, float]:
    """How far ahead we are: of the medians, and the least and the most within one round."""

    def ahead(a: float, b: float) -> float:
        above, below = (a, b) if better == "more" else (b, a)
        return above / below if below else float("inf")  # a starved store may finish nothing in time

    rounds = [ahead(value, theirs.by_round[n]) for n, value in ours.by_round.items() if n in theirs.by_round]
    middle = ahead(ours.median, theirs.median)
    return middle, min(rounds, default=middle), max(rounds, default=middle)


def markdown(report: Report) -> str:
    """The whole report."""
    cells = figures(report)
    parts = [*_head(report), *_targets(report, cells), *_groups(report, cells), *_ratios(report, cells)]
    parts += [*_memory(report, cells), *_stores(report), *_absent(report)]
    return "\n".join(parts) + "\n"


def _head(report: Report) -> list[str]:
    about = report["machine"]
    loads = [row["load"] for row in report["rows"]] or [0.0]
    return [
        "# Benchmark",
        "",
        f"`{report['command']}`, {report['started']}, {report['seconds'] / 60:.0f} minutes. {about['cpu']}, "
        f"{about['cores']} cores, {about['memory_bytes'] / 2**30:.0f} GiB; "
        f"{about['kernel']} ({about['architecture']}); "
        f"{about['filesystem']}; Python {about['python']}. Load average "
        f"{about['load_before']:.1f} at the start, then a median of {statistics.median(loads):.1f} and "
        f"at most {max(loads):.1f} (the benchmark itself is 1 to 2; more means that others were at work).",
        "",
        f"Scale `{report['scale']['name']}`. Medians of {report['rounds']} interleaved rounds, minimum and "
        "maximum in brackets. Every cell is a process of its own. Keys are 16 random bytes, values 100 B "
        "unless said.",
    ]


def _table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def _targets(report: Report, cells: dict[tuple[str, str], Figure]) -> list[str]:
    rows = []
    for target in targets():
        ours = cells.get((target.workload, target.own))
        for peer in target.peers:
            theirs = cells.get((target.peer_workload or target.workload, peer))
            if ours is None or theirs is None:
                continue
            better = report["workloads"][target.workload]["better"]
            middle, low, high = ratio(ours, theirs, better)
            wanted, met = "", ""
            if target.at_least is not None:
                wanted, met = f"{target.at_least:g}", "yes" if middle >= target.at_least else "**no**"
            measured = f"{middle:.2f} ({low:.2f}-{high:.2f})"
            rows.append([target.row, target.against, peer, measured, wanted, met])
    if not rows:
        return []
    return [
        "", "## Targets", "",
        f"Ratio {OWN} / peer, of the medians (least and most of any one round); above 1 is ahead.", "",
        *_table(["row", "against", "peer", "ratio", "at least", "met"], rows),
    ]  # fmt: skip


def _groups(report: Report, cells: dict[tuple[str, str], Figure]) -> list[str]:
    lines: list[str] = []
    for group, title in GROUPS.items():
        names = [name for name, about in report["workloads"].items() if about["group"] == group]
        names = [name for name in names if any((name, store) in cells for store in report["stores"])]
        if not names:
            continue
        lines += ["", f"## {title}", ""]
        lines += [f"- `{name}`: {report['workloads'][name]['title']}, {_unit(report, name)}" for name in names]
        rows = []
        for store in report["stores"]:
            row = [_cell(cells.get((name, store))) for name in names]
            if any(row):
                rows.append([store, *row])
        lines += ["", *_table(["store", *(f"`{name}`" for name in names)], rows)]
        lines += _notes(names, report, cells)
    return lines


def _unit(report: Report, name: str) -> str:
    about = report["workloads"][name]
    return about["unit"] + (" (less is better)" if about["better"] == "less" else "")


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    mark = "*" if figure.notes else ""
    return f"{short(figure.median)}{mark} ({short(figure.low)}-{short(figure.high)})"


def _notes(names: list[str], report: Report, cells: dict[tuple[str, str], Figure]) -> list[str]:
    found = [
        f"\\* {store}, `{name}`: {note}"
        for name in names
        for store in report["stores"]
        if (name, store) in cells
        for note in cells[name, store].notes[:1]
    ]
    return ["", "; ".join(found) + "."] if found else []


def _ratios(report: Report, cells: dict[tuple[str, str], Figure]) -> list[str]:
    lines: list[str] = []
    about = report["stores"]
    for own in (name for name in about if "own" in about[name]["traits"]):
        peers = [name for name in about if "own" not in about[name]["traits"]]
        rows = []
        for name, workload in report["workloads"].items():
            ours = cells.get((name, own))
            if ours is None:
                continue
            row = []
            for peer in peers:
                theirs = cells.get((name, peer))
                row.append(f"{ratio(ours, theirs, workload['better'])[0]:.2f}" if theirs else "")
            rows.append([f"`{name}`", *row])
        used = [n for n in range(len(peers)) if any(row[n + 1] for row in rows)]
        if used:
            header = ["workload", *(peers[n] for n in used)]
            lines += ["", f"## Ratios, {own} / peer", ""]
            lines += _table(header, ([row[0], *(row[n + 1] for n in used)] for row in rows))
    return lines


def _memory(report: Report, cells: dict[tuple[str, str], Figure]) -> list[str]:
    rows = []
    used = [store for store in report["stores"] if any(key[1] == store for key in cells)]
    for name in report["workloads"]:
        row = [f"{cells[name, store].memory / 2**20:.0f}" if (name, store) in cells else "" for store in used]
        if any(row):
            rows.append([f"`{name}`", *row])
    if not rows:
        return []
    return [
        "", "## Memory", "",
        "Peak resident memory that the store added to its process, MiB. Pages of mapped files count "
        "(dbm.gnu, lmdb): the kernel can take them back.", "",
        *_table(["workload", *used], rows),
    ]  # fmt: skip


def _stores(report: Report) -> list[str]:
    rows = []
    for name, about in report["stores"].items():
        safe = "" if about["relaxed_safe"] or not about["relaxed"] else " - **not crash-safe**"
        if "limit" in about["traits"]:
            safe = ""
        rows.append(
            [
                name,
                about["version"],
                about["python"],
                about["note"],
                about["durable"] or "none",
                about["relaxed"] + safe,
            ]
        )
    return [
        "",
        "## Stores",
        "",
        *_table(["store", "version", "Python", "used as", "durable", "relaxed"], rows),
    ]


def _absent(report: Report) -> list[str]:
    lines: list[str] = []
    if report["missing"]:
        lines += ["", "## Missing stores", ""]
        lines += [f"- {store}: {reason}" for store, reason in report["missing"].items()]
    if report["failures"]:
        lines += ["", "## Failures", ""]
        lines += [
            f"- {row['store']}, `{row['workload']}`, round {row['round']}: {row['reason']}"
            for row in report["failures"]
        ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for gap in report["gaps"]:
        reasons.setdefault((gap["store"], gap["reason"]), []).append(gap["workload"])
    if reasons:
        lines += ["", "## Not run, and why", ""]
        for (store, reason), names in reasons.items():
            lines.append(f"- {store}, {', '.join(f'`{name}`' for name in names)}: {reason}")
    return lines
