"""From runs of pages to cells of a picture, and to sums.

A cell is one page where there is room for all, else a power of two of them. It shows what most of its pages
are, but damage always shows: a picture of a damaged file must not look sound.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from ...maintenance.file_map import FileMap, Run

__all__ = [
    "FREED",
    "WITHOUT_AGE",
    "Cell",
    "Total",
    "cells_of",
    "facts_of",
    "marked_cells",
    "part_of_age",
    "totals_of",
    "written_by",
]

_LOUD = ("damaged", "unreachable")
_QUIET = ("free", "pending", "pinned")

FREED = frozenset(("pending", "pinned"))
"""Kinds that hold nothing: where colours mean fill or age they are as good as free."""

WITHOUT_AGE = frozenset(_LOUD + _QUIET)
"""Kinds that are shown as what they are, also where colours mean fill or age."""


class Cell(NamedTuple):
    """A place in the picture."""

    page_id: int
    page_count: int
    kind: str
    fill: float
    """What part of it is used, 0 to 1; freed pages count as empty."""
    txid: int
    """The newest commit that wrote one of its pages."""
    run: int
    """Index of the run that the first of its pages belongs to."""


class Total(NamedTuple):
    """All pages of a kind."""

    page_count: int
    run_count: int
    used: int
    """Bytes."""


def cells_of(picture: FileMap, limit: int, start: int = 0, stop: int | None = None) -> tuple[int, list[Cell]]:
    """How many pages a cell stands for, and about `limit` cells at most, of the pages in [start, stop)."""
    stop = picture.page_count if stop is None else min(stop, picture.page_count)
    unit = 1
    while (stop - start) > limit * unit:
        unit *= 2
    cells: list[Cell] = []
    parts: list[
        tuple[int, int, Run, int]
    ] = []  # of one cell: run index, pages, run, offset of the first page in its run
    position = start
    for index, run in enumerate(picture.runs):
        at, end = max(run.page_id, start), min(run.page_id + run.page_count, stop)
        while at < end:
            take = min(end - at, position + unit - at)
            parts.append((index, take, run, at - run.page_id))
            at += take
            if at == position + unit:
                cells.append(_cell(position, parts, picture.page_size))
                parts, position = [], at
    if parts:
        cells.append(_cell(position, parts, picture.page_size))
    return unit, cells


def _cell(page_id: int, parts: list[tuple[int, int, Run, int]], page_size: int) -> Cell:
    counts: Counter[str] = Counter()
    used = pages = 0
    for _, count, run, offset in parts:
        counts[run.kind] += count
        pages += count
        if run.kind not in _QUIET:
            used += min(max(run.used - offset * page_size, 0), count * page_size)
    kind = next((loud for loud in _LOUD if loud in counts), None) or counts.most_common(1)[0][0]
    txid = max((run.txid for _, _, run, _ in parts if run.kind not in _QUIET), default=0)
    return Cell(page_id, pages, kind, used / (pages * page_size), txid, parts[0][0])


def totals_of(picture: FileMap) -> dict[str, Total]:
    """What there is of each kind."""
    totals: dict[str, Total] = {}
    for run in picture.runs:
        old = totals.get(run.kind, Total(0, 0, 0))
        totals[run.kind] = Total(old.page_count + run.page_count, old.run_count + 1, old.used + run.used)
    return totals


def marked_cells(picture: FileMap, unit: int, start: int = 0, stop: int | None = None) -> set[int]:
    """Of the cells of `unit` pages each in [start, stop), the first pages of those on the way to the key."""
    stop = picture.page_count if stop is None else min(stop, picture.page_count)  # a damaged page may lead anywhere
    marked: set[int] = set()
    for step in picture.steps:
        first = max(step.page_id - start, 0) // unit * unit + start
        marked.update(range(first, min(step.page_id + step.page_count, stop), unit))
    return marked


def part_of_age(txid: int, newest: int) -> float:
    """0 for what the first commit wrote, 1 for the newest."""
    return txid / newest if newest else 1.0


def written_by(picture: FileMap, buckets: int) -> list[int]:
    """How many of the pages in use were written by each of `buckets` equal spans of commits, oldest first."""
    counts = [0] * buckets
    for run in picture.runs:
        if run.kind not in _QUIET and run.txid:
            counts[min(int(part_of_age(run.txid, picture.txid) * buckets), buckets - 1)] += run.page_count
    return counts


def facts_of(picture: FileMap) -> list[tuple[str, str]]:
    """Name and value of what stands above every picture."""
    import time

    from ..progress import quantity

    facts = [
        ("file", quantity(picture.file_size, "bytes")),
        ("pages", f"{picture.page_count:,} of {quantity(picture.page_size, 'bytes')}"),
    ]
    if picture.time_ns:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(picture.time_ns / 1e9))
        facts += [
            ("entries", f"{picture.entry_count:,}"),
            ("depth", f"{picture.depth} level{'' if picture.depth == 1 else 's'}"),
            ("newest commit", f"{picture.txid:,} ({when})"),
        ]
    if picture.waiting_count:
        facts.append(
            (
                "in the meta page",
                f"{picture.waiting_count:,} change{'' if picture.waiting_count == 1 else 's'}",
            )
        )
    if picture.oldest_snapshot is not None:
        facts.append(("oldest snapshot", f"commit {picture.oldest_snapshot:,}"))
    return facts
