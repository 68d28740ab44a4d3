"""The map in a terminal: a character for each cell, in colour, or as letters where there is none."""

from __future__ import annotations

import os

from ...maintenance.file_map import FileMap
from ..progress import quantity
from ..text import printable
from .layout import FREED, WITHOUT_AGE, Cell, cells_of, facts_of, marked_cells, part_of_age, totals_of, written_by
from .palette import KINDS, ramp

__all__ = ["MODES", "draw"]

MODES = ("kind", "fill", "age")

_LEVELS = "▁▂▃▄▅▆▇█"
_SIGNS = {"free": "·", "pending": "░", "pinned": "▒", "unreachable": "?", "damaged": "✕"}
_GLYPHS = _LEVELS + "".join(_SIGNS.values())
_BUCKETS = 24
_PROBLEMS_SHOWN = 12

_CELLS_MAX = 1 << 18
"""Pages that get cells of their own if all are to have them."""


class _Pen:
    """Writes cells and texts as the terminal can show them."""

    def __init__(self, *, colour: bool, unicode: bool) -> None:
        self.colour = colour
        self.unicode = unicode
        self._true_colour = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")

    def paint(self, text: str, front: str | None = None, back: str | None = None, *, bold: bool = False) -> str:
        if not self.colour:
            return text
        codes = ["1"] if bold else []
        codes += [self._code(38, front)] if front else []
        codes += [self._code(48, back)] if back else []
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if codes else text

    def _code(self, layer: int, colour: str) -> str:
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        if self._true_colour:
            return f"{layer};2;{red};{green};{blue}"
        levels = [round(part / 255 * 5) for part in (red, green, blue)]
        return f"{layer};5;{16 + 36 * levels[0] + 6 * levels[1] + levels[2]}"

    def cell(self, cell: Cell, mode: str, newest: int, *, marked: bool) -> str:
        look = KINDS[cell.kind]
        if marked:
            return self.paint("@" if not self.colour else look.letter, "#000000", "#ffffff", bold=True)
        if not self.colour:
            return look.letter if mode == "kind" else _digit(cell, mode, newest)
        if cell.kind == "damaged":
            return self.paint(_SIGNS["damaged"] if self.unicode else look.letter, "#ffffff", look.colour, bold=True)
        if not self.unicode:
            return self.paint(look.letter, "#000000", look.colour)
        if cell.kind == "free" or (mode != "kind" and cell.kind in FREED):
            return self.paint(_SIGNS["free"], "#808080")
        if mode != "kind" and cell.kind not in WITHOUT_AGE:
            return self.paint("█", ramp(cell.fill if mode == "fill" else part_of_age(cell.txid, newest)))
        if cell.kind == "unreachable":
            return self.paint(_SIGNS[cell.kind], "#000000", look.colour)
        if cell.kind in _SIGNS:
            return self.paint(_SIGNS[cell.kind], look.colour)
        if cell.kind == "space":
            return self.paint("█", look.colour)
        return self.paint(_LEVELS[min(int(cell.fill * 8), 7)], look.colour, _dark(look.colour))


def _digit(cell: Cell, mode: str, newest: int) -> str:
    """In letters, fill and age are a digit: 0 for empty or old, 9 for full or new."""
    if cell.kind in WITHOUT_AGE:
        return KINDS[cell.kind].letter
    part = cell.fill if mode == "fill" else part_of_age(cell.txid, newest)
    return str(min(int(part * 10), 9))


def _dark(colour: str) -> str:
    """The ground on which a level stands: the same hue, at a third of its brightness."""
    return "#" + "".join(f"{int(colour[at : at + 2], 16) * 3 // 10:02x}" for at in (1, 3, 5))


def draw(
    picture: FileMap, *, width: int = 80, rows: int | None = 24, mode: str = "kind", colour: bool = True,
    encoding: str = "utf-8", start: int = 0, stop: int | None = None, only_map: bool = False,
) -> list[str]:  # fmt: skip
    """The lines of the picture. `rows` limits the height of the map; None gives every page a cell of its own, unless
    there are hundreds of thousands.

    `only_map` leaves out everything but the map and its legend.
    """
    pen = _Pen(colour=colour, unicode=_can_show(encoding))
    pages = start, picture.page_count if stop is None else stop
    if only_map:
        return [*_map(picture, pen, width, rows, mode, pages), *_legend(picture, pen, mode)]
    lines = [pen.paint(printable(picture.path), bold=True)]
    lines += _wrapped([f"{name}: {value}" for name, value in facts_of(picture)], width)
    if picture.page_count:
        lines += ["", *_map(picture, pen, width, rows, mode, pages), "", *_legend(picture, pen, mode)]
        lines += _ages(picture, pen)
    lines += _problems(picture, pen)
    return lines


def _can_show(encoding: str) -> bool:
    try:
        _GLYPHS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _wrapped(parts: list[str], width: int) -> list[str]:
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) + 3 > width:
            lines.append("")
        lines[-1] += f"   {part}" if lines[-1] else part
    return lines


def _map(picture: FileMap, pen: _Pen, width: int, rows: int | None, mode: str, pages: tuple[int, int]) -> list[str]:
    start, stop = pages
    gutter = len(f"{picture.page_count:,}") + 2
    room = max(width - gutter - 1, 8)
    columns = room // 16 * 16 if room >= 16 else 8
    limit = min(picture.page_count, _CELLS_MAX) if rows is None else columns * rows
    unit, cells = cells_of(picture, max(limit, 1), start, stop)
    shown = marked_cells(picture, unit, start, stop)
    lines = []
    for at in range(0, len(cells), columns):
        row = cells[at : at + columns]
        drawn = "".join(pen.cell(cell, mode, picture.txid, marked=cell.page_id in shown) for cell in row)
        lines.append(f"{row[0].page_id:>{gutter - 1},} {drawn}")
    each = "a page" if unit == 1 else f"{unit} pages"
    about = {
        "kind": "the height of a block is how full it is" if pen.colour else "letters as below",
        "fill": "by how full pages are",
        "age": "by when pages were written",
    }
    lines.append(pen.paint(f"{'':>{gutter}}each character is {each}; {about[mode]}", "#808080"))
    return lines


def _legend(picture: FileMap, pen: _Pen, mode: str) -> list[str]:
    totals = totals_of(picture)
    lines = []
    for kind, look in KINDS.items():
        total = totals.get(kind)
        if total is None:
            continue
        size = total.page_count * picture.page_size
        sign = pen.cell(Cell(0, 1, kind, 0.99, picture.txid, 0), "kind", picture.txid, marked=False)
        pages = f"{total.page_count:>10,} page{' ' if total.page_count == 1 else 's'}"
        line = f"  {sign} {look.name:<24}{pages}  {quantity(size, 'bytes'):>10}"
        if kind in ("leaf", "branch", "overflow"):
            line += f"  {round(100 * total.used / size)} % full"
        lines.append(line)
    if mode != "kind":
        scale = "".join(pen.paint("█", ramp(i / 9)) for i in range(9)) if pen.colour and pen.unicode else "0 to 9"
        lines.append(f"  {scale} from {'empty to full' if mode == 'fill' else 'the oldest commit to the newest'}")
    if picture.steps:
        lines.append(
            f"  {pen.paint('@' if not pen.colour else 'L', '#000000', '#ffffff', bold=True)} on the way to the key"
        )
    return lines


def _ages(picture: FileMap, pen: _Pen) -> list[str]:
    """When the pages in use were written: a bar for each span of commits."""
    if picture.txid < 2 or not pen.unicode:
        return []
    counts = written_by(picture, min(_BUCKETS, picture.txid))
    most = max(counts)
    if not most:
        return []
    bars = "".join(
        pen.paint(_LEVELS[max(min(-(-8 * count // most), 8) - 1, 0)] if count else " ", ramp((at + 1) / len(counts)))
        for at, count in enumerate(counts)
    )
    return ["", f"  written by commit 1 {bars} {picture.txid:,}"]


def _problems(picture: FileMap, pen: _Pen) -> list[str]:
    if not picture.problems:
        return []
    shown = picture.problems[:_PROBLEMS_SHOWN]
    lines = [
        "",
        pen.paint(
            f"{len(picture.problems):,} problem{'' if len(picture.problems) == 1 else 's'}:",
            "#d5281e",
            bold=True,
        ),
    ]
    lines += [f"  {problem}" for problem in shown]
    if len(picture.problems) > len(shown):
        lines.append(f"  and {len(picture.problems) - len(shown):,} more")
    return lines
