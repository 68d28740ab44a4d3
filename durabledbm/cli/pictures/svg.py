"""The map as an SVG image: one file that any browser, editor or web page shows.

Each page is a square, filled from the bottom as far as the page is in use. If there are not too many,
pointing at one tells what it is.
"""

from __future__ import annotations

from html import escape as quoted

from ...maintenance.file_map import FileMap, Run
from ..text import escape, shorten
from .layout import FREED, WITHOUT_AGE, Cell, cells_of, facts_of, marked_cells, part_of_age, totals_of
from .palette import KINDS, RAMP, ramp

__all__ = ["svg"]

_WIDTH = 1000
_MARGIN = 24
_CELLS_MAX = 16384
_TITLES_MAX = 6000
"""Squares that still get a text of their own."""

_SIDES = ((20, 600), (16, 1500), (12, 3500), (10, 6000))
"""Side of a square in pixels, for up to how many squares: few are not huge, and many are not dots."""

_SMALLEST = 7

_FONT = "font-family=\"ui-sans-serif, system-ui, 'DejaVu Sans', sans-serif\""

_STYLE = (
    ".name{font-size:20px;font-weight:600;fill:#1b1f24}.fact{font-size:13px;fill:#444b55}"
    ".label{font-size:13px;fill:#1b1f24}.note{font-size:12px;fill:#6a717c}.bad{font-size:13px;fill:#b3150c}"
    "g.cells path{shape-rendering:crispEdges}"
)


def svg(picture: FileMap, *, mode: str = "kind") -> str:
    """The image. `mode` says what the colours mean: "kind", "fill" or "age"."""
    return _Drawing(picture, mode).text()


def _about(picture: FileMap, run: Run) -> str:
    """What a run is, in a few lines."""
    last = run.page_id + run.page_count - 1
    where = f"page {run.page_id:,}" if run.page_count == 1 else f"pages {run.page_id:,} to {last:,}"
    lines = [f"{where}: {KINDS[run.kind].name}"]
    if run.note:
        lines.append(run.note)
    if run.kind in ("leaf", "branch", "overflow"):
        lines.append(f"{round(100 * run.used / (run.page_count * picture.page_size))} % full")
    if run.kind in ("leaf", "branch"):
        lines.append(f"{run.entries:,} {'entries' if run.kind == 'leaf' else 'children'}")
    if run.txid:
        lines.append(f"{'freed' if run.kind in ('pending', 'pinned') else 'written'} by commit {run.txid:,}")
    if run.first_key:
        lines.append(f"{'key' if run.kind == 'overflow' else 'first key'}: {escape(run.first_key)}")
    if run.parent:
        lines.append(f"under page {run.parent:,}")
    return "\n".join(lines)


def _xml(text: str) -> str:
    """For XML, which has no place for most control characters and none for surrogates."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return quoted("".join(char if char >= " " or char in "\n\t" else "\ufffd" for char in clean))


class _Drawing:
    """The image, from top to bottom."""

    def __init__(self, picture: FileMap, mode: str) -> None:
        self._picture = picture
        self._mode = mode
        self._parts: list[str] = []
        self._top = _MARGIN
        """Where the next thing goes."""

    def text(self) -> str:
        """The whole file."""
        self._header()
        self._legend()
        self._map()
        picture = self._picture
        steps = [f"page {step.page_id:,}: {step.what}" for step in picture.steps]
        self._list("the way to the key, framed in the map:", steps, "label")
        count = len(picture.problems)
        self._list(f"{count:,} problem{'' if count == 1 else 's'}:", picture.problems[:20], "bad")
        height = self._top + _MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
            f'height="{height}" {_FONT}>\n<title>{_xml(picture.path)}</title>\n<style>{_STYLE}</style>\n'
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(self._parts) + "\n</svg>\n"
        )

    def _write(self, x: float, y: float, text: str, kind: str) -> None:
        self._parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{_xml(text)}</text>')

    def _rect(self, x: float, y: float, width: float, height: float, rest: str) -> None:
        self._parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {rest}/>')

    def _path(self, steps: list[str], rest: str) -> None:
        if steps:
            self._parts.append(f'<path {rest} d="{"".join(steps)}"/>')

    def _header(self) -> None:
        self._write(_MARGIN, self._top + 12, shorten(self._picture.path, 90), "name")
        facts = "   ·   ".join(f"{name}: {value}" for name, value in facts_of(self._picture))
        self._write(_MARGIN, self._top + 36, facts, "fact")
        self._top += 52

    def _legend(self) -> None:
        totals = totals_of(self._picture)
        x = _MARGIN
        for kind, look in KINDS.items():
            if kind not in totals:
                continue
            label = f"{look.name}: {totals[kind].page_count:,}"
            width = 42 + round(7.4 * len(label))
            if x + width > _WIDTH - _MARGIN:
                x, self._top = _MARGIN, self._top + 24
            if self._mode == "kind" or kind in WITHOUT_AGE - FREED:
                self._rect(x, self._top + 2, 14, 14, f'rx="2" fill="{look.colour}" stroke="#00000022"')
            self._write(x + 20, self._top + 14, label, "label")
            x += width
        self._top += 30
        if self._mode != "kind":
            for at, colour in enumerate(RAMP):
                self._rect(_MARGIN + at * 22, self._top, 22, 14, f'fill="{colour}"')
            scale = "empty to full" if self._mode == "fill" else "written by the oldest commit to the newest"
            self._write(_MARGIN + len(RAMP) * 22 + 8, self._top + 12, scale, "label")
            self._top += 26

    def _map(self) -> None:
        unit, cells = cells_of(self._picture, _CELLS_MAX)
        if not cells:
            return
        side = next((side for side, most in _SIDES if len(cells) <= most), _SMALLEST)
        columns = (_WIDTH - 2 * _MARGIN) // side
        self._parts.append('<g class="cells">')
        self._squares(cells, unit, columns, side)
        self._parts.append("</g>")
        self._top += -(-len(cells) // columns) * side + 22
        each = "a page" if unit == 1 else f"{unit} pages"
        self._write(_MARGIN, self._top, f"each square is {each}, in the order of the file, row by row", "note")
        self._top += 20

    def _squares(self, cells: list[Cell], unit: int, columns: int, side: int) -> None:
        grounds: dict[str, list[str]] = {}
        levels: dict[str, list[str]] = {}
        marks: list[str] = []
        crosses: list[str] = []
        titles: list[str] = []
        size = side - 1
        marked = marked_cells(self._picture, unit)
        for at, cell in enumerate(cells):
            x, y = _MARGIN + at % columns * side, self._top + at // columns * side
            colour, ground, part = self._look(cell)
            level = max(round(size * part), 1)
            if level < size:
                grounds.setdefault(ground, []).append(f"M{x} {y}h{size}v{size}h-{size}z")
            levels.setdefault(colour, []).append(f"M{x} {y + size - level}h{size}v{level}h-{size}z")
            if cell.kind == "damaged":
                arm = size - 4
                crosses.append(f"M{x + 2} {y + 2}l{arm} {arm}m0 -{arm}l-{arm} {arm}")
            if cell.page_id in marked:
                marks.append(f"M{x - 1} {y - 1}h{size + 2}v{size + 2}h-{size + 2}z")
            if len(cells) <= _TITLES_MAX:
                place = f'x="{x}" y="{y}" width="{size}" height="{size}"'
                title = _xml(self._title(cell, unit))
                titles.append(f'<rect {place} fill="transparent"><title>{title}</title></rect>')
        for colours in (grounds, levels):
            for colour, steps in colours.items():
                self._path(steps, f'fill="{colour}"')
        self._path(crosses, 'stroke="#ffffff" stroke-width="1.5" fill="none"')
        self._path(marks, 'stroke="#000000" stroke-width="2" fill="none"')
        self._parts += titles

    def _look(self, cell: Cell) -> tuple[str, str, float]:
        """Colour and ground of a cell, and what part of it the colour fills."""
        look = KINDS[cell.kind]
        if self._mode != "kind" and cell.kind in FREED:
            look = KINDS["free"]
        if self._mode == "kind" or cell.kind in WITHOUT_AGE:
            return look.colour, look.ground, cell.fill if look.colour != look.ground else 1.0
        part = cell.fill if self._mode == "fill" else part_of_age(cell.txid, self._picture.txid)
        return ramp(part), "", 1.0

    def _title(self, cell: Cell, unit: int) -> str:
        if unit == 1:
            return _about(self._picture, self._picture.runs[cell.run])
        last = cell.page_id + cell.page_count - 1
        return f"pages {cell.page_id:,} to {last:,}: mostly {KINDS[cell.kind].name}"

    def _list(self, title: str, lines: list[str], kind: str) -> None:
        if not lines:
            return
        self._write(_MARGIN, self._top + 14, title, kind)
        for line in lines:
            self._top += 20
            self._write(_MARGIN + 16, self._top + 14, shorten(line, 130), kind)
        self._top += 30
