"""All stores and all workloads of the benchmark, in the order of the tables."""

from __future__ import annotations

from . import (
    stores_dbm,
    stores_limits,
    stores_lmdb,
    stores_log,
    stores_own,
    stores_sqlite,
    workloads_read,
    workloads_write,
)
from .stores import Store
from .workloads import GROUPS, WORKLOADS, Workload

__all__ = ["all_stores", "all_workloads"]

_STORES = (stores_own, stores_limits, stores_dbm, stores_sqlite, stores_lmdb, stores_log)

assert workloads_read, workloads_write  # importing them has filled WORKLOADS


def all_stores() -> dict[str, type[Store]]:
    """All adapters by name."""
    return {store.name: store for module in _STORES for store in module.STORES}


def all_workloads() -> dict[str, Workload]:
    """All workloads by name."""
    order = list(GROUPS)
    return dict(sorted(WORKLOADS.items(), key=lambda item: order.index(item[1].group)))
