"""Which pipeline each durability mode has.

Where nothing is written nothing is deferred either. A `Flusher` is the thread that syncs or commits in time, for the
modes that promise it.
"""

from __future__ import annotations

from .commit import Committer
from .deferred_commit import DeferredCommit
from .flusher import Flusher
from .group_commit import GroupCommit
from .pipeline import Pipeline
from .store import Store

__all__ = ["make_pipeline"]


def make_pipeline(store: Store, durability: str, interval: float, timeout: float | None) -> Pipeline:
    """The pipeline of a durability mode, with its flusher."""
    committer = Committer(store)
    if store.readonly or durability == "full":
        return GroupCommit(committer, timeout, sync=True)
    pipeline: Pipeline
    if durability == "process":
        pipeline = GroupCommit(committer, timeout, sync=False)
    else:
        pipeline = DeferredCommit(committer, timeout)
    if durability in ("process", "interval"):
        pipeline.flusher = Flusher(pipeline, interval)
    return pipeline
