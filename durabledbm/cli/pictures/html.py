"""The map as one HTML page that needs nothing else: no network, no other file.

Pointing at a page tells what it is and marks the branches above it; a click keeps it. The data are embedded
as JSON, and reach the page as text only, never as markup: keys come from the file, and a file may come from
anywhere.
"""

from __future__ import annotations

import json
from html import escape as quoted
from importlib.resources import files

from ...maintenance.file_map import FileMap
from ..text import escape
from .layout import cells_of, facts_of, totals_of
from .palette import KINDS, RAMP

__all__ = ["html"]

_CELLS_MAX = 120_000
"""More pages than this are shown several to a square."""


def html(picture: FileMap, *, mode: str = "kind") -> str:
    """The page. `mode` says what the colours mean at first: "kind", "fill" or "age"."""
    unit, cells = cells_of(picture, _CELLS_MAX)
    names = list(KINDS)
    if unit == 1:
        boxes = [
            [
                run.page_id,
                run.page_count,
                names.index(run.kind),
                run.txid,
                run.entries,
                run.used,
                run.parent,
                escape(run.first_key),
                run.note,
            ]
            for run in picture.runs
        ]
    else:
        boxes = [
            [cell.page_id, cell.page_count, names.index(cell.kind), cell.txid, 0,
             round(cell.fill * cell.page_count * picture.page_size), 0, "",
             f"{cell.page_count} pages, mostly of this kind"]
            for cell in cells
        ]  # fmt: skip
    totals = totals_of(picture)
    steps = [step for step in picture.steps if step.page_id + step.page_count <= picture.page_count]
    kinds = [
        [name, look.name, look.colour, look.ground, totals[name].page_count if name in totals else 0]
        for name, look in KINDS.items()
    ]
    data = {
        "unit": unit, "pageSize": picture.page_size, "pageCount": picture.page_count, "txid": picture.txid,
        "mode": mode, "kinds": kinds, "ramp": RAMP, "boxes": boxes, "facts": facts_of(picture),
        "problems": picture.problems[:200], "problemCount": len(picture.problems),
        "steps": [[step.page_id, step.page_count, step.what] for step in steps],
    }  # fmt: skip
    # "<" begins markup even inside a script, and U+2028 ends a line there.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = files(__package__).joinpath("page.html").read_text("utf-8")
    name = quoted(picture.path.encode("utf-8", "replace").decode("utf-8"))
    return template.replace("{{name}}", name).replace("{{data}}", embedded)
