"""What a workload is called, needs and measures; `register` enters it in `WORKLOADS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .stores import Store, can
from .timing import Result, Run

GROUPS = {
    "read": "Reading",
    "scan": "Scanning",
    "open": "Opening",
    "durable": "Durable writes",
    "relaxed": "Relaxed writes",
    "mix": "Reads mixed with updates",
    "bulk": "Bulk loading",
    "shelf": "Shelves",
    "big": "Large values",
    "size": "Size",
}


@dataclass(frozen=True)
class Workload:
    """One workload. `value` of a result is in `unit`; `better` says whether more of it is better, or less.

    `data` tells the runner what to hand over: "shared" a prepared data set that is only read, "copy" one that
    may be written, "own" one that is written by all rounds in turn, "empty" an empty directory.
    """

    name: str
    group: str
    title: str
    needs: str
    run: Callable[[Run], Result]
    dataset: str = ""
    data: str = "shared"
    unit: str = "ops/s"
    better: str = "more"

    def why_not(self, store: type[Store], entries: int) -> str | None:
        """None if the workload applies to the store with a data set of so many entries, else the reason."""
        if store.only and self.name not in store.only:
            return ""
        if entries > store.max_entries:
            return f"not run with {entries:,} entries: it would take too long"
        return can(store, self.needs)


WORKLOADS: dict[str, Workload] = {}


def register(name: str, group: str, title: str, run: Callable[[Run], Result], needs: str, **more: str) -> None:
    """Enter a workload; `more` are the further fields of `Workload`."""
    assert group in GROUPS
    assert name not in WORKLOADS
    WORKLOADS[name] = Workload(name, group, title, needs, run, **more)
