"""The ways of a write to the disk, one for each durability mode.

An *operation* is a function of a `Work`: it reads what there is, makes its changes and returns a result. A pipeline
runs operations one at a time and decides when their changes are committed: `Group` (durability "full" and "process")
before `run` returns, `Deferred` ("interval" and "manual") later, all at once. A `Flusher` is the thread that syncs or
commits in time, for the modes that promise one.
"""

from __future__ import annotations

from .deferred import Deferred
from .flusher import Flusher
from .group import Group
from .store import Store

__all__ = ["make_pipeline"]


def make_pipeline(store: Store, durability: str, interval: float, timeout: float | None) -> Group | Deferred:
    """The pipeline of a durability mode, with its flusher. Where nothing is written nothing is deferred either."""
    if store.readonly or durability == "full":
        return Group(store, timeout, sync=True)
    pipeline: Group | Deferred
    if durability == "process":
        pipeline = Group(store, timeout, sync=False)
    else:
        pipeline = Deferred(store, timeout)
    if durability in ("process", "interval"):
        pipeline.flusher = Flusher(pipeline, interval)
    return pipeline
