"""Plots of a report: one SVG per group of workloads, a panel per workload, a bar per store."""

from __future__ import annotations

import os
from typing import Any

from .report import Figure, Report, figures, short
from .workloads import GROUPS

_OWN, _LIMIT, _PEER = "#c2410c", "#9ca3af", "#3b6ea5"


def draw(report: Report, directory: str) -> list[str]:
    """Write the plots into `directory` and return their paths. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "durabledbm"
    os.makedirs(directory, exist_ok=True)
    cells = figures(report)
    paths = []
    for group, title in GROUPS.items():
        names = [name for name, about in report["workloads"].items() if about["group"] == group]
        names = [name for name in names if any(key[0] == name for key in cells)]
        if names:
            paths.append(_draw_group(report, cells, names, title, os.path.join(directory, f"bench-{group}.svg")))
    return paths


def _draw_group(report: Report, cells: dict[tuple[str, str], Figure], names: list[str], title: str, path: str) -> str:
    from matplotlib import pyplot

    columns = min(len(names), 2)
    lines = -(-len(names) // columns)
    tallest = max(sum((name, store) in cells for store in report["stores"]) for name in names)
    figure, panels = pyplot.subplots(
        lines,
        columns,
        figsize=(6.5 * columns, lines * (1.1 + 0.24 * tallest)),
        squeeze=False,
        layout="constrained",
    )
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(panels.flat, names, strict=False):
        _draw_panel(panel, report, cells, name)
    figure.suptitle(f"{title} (medians, whiskers from least to most)")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _draw_panel(panel: Any, report: Report, cells: dict[tuple[str, str], Figure], name: str) -> None:
    about = report["workloads"][name]
    stores = [store for store in report["stores"] if (name, store) in cells]
    stores.sort(key=lambda store: cells[name, store].median, reverse=about["better"] == "less")
    found = [cells[name, store] for store in stores]
    medians = [one.median for one in found]
    spread = [[one.median - one.low for one in found], [one.high - one.median for one in found]]
    panel.barh(
        stores,
        medians,
        xerr=spread,
        color=[_colour(report, store) for store in stores],
        ecolor="#222",
        height=0.7,
    )
    panel.set_xscale("log")
    least = min((one.low for one in found if one.low), default=1.0)
    panel.set_xlim(least / 3, max(one.high for one in found) * 6)
    for place, one in enumerate(found):
        panel.text(one.high * 1.15, place, short(one.median), va="center", fontsize=8)
    less = ", less is better" if about["better"] == "less" else ""
    panel.set_title(f"{about['title']} [{about['unit']}{less}]", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _colour(report: Report, store: str) -> str:
    traits = report["stores"][store]["traits"]
    return _OWN if "own" in traits else _LIMIT if "limit" in traits else _PEER
