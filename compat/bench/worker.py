"""The process that runs one workload on one store once: `python -m compat.bench.worker SPEC`, SPEC being
JSON.

It prints one line of JSON. It uses the standard library only, because some stores exist in some
interpreters only."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .catalogue import all_stores, all_workloads
from .data import SCALES, Dataset, datasets, pairs, record_of, shelf_key, value_of
from .stores import DURABLE, RELAXED, Store, sync_tree
from .timing import Run

Spec = dict[str, Any]


def describe(spec: Spec) -> dict[str, Any]:
    """Whether this interpreter can run the store, and in which version."""
    store = all_stores()[spec["store"]]("")
    store.import_library()
    return {"version": store.version(), "python": platform.python_version()}


def prepare(spec: Spec) -> dict[str, Any]:
    """Fill an empty directory with a data set, for workloads of this and later rounds."""
    store, dataset = _store(spec), _dataset(spec)
    assert dataset is not None
    if dataset.kind == "shelf" and "limit" not in store.traits:
        shelf = store.shelf(RELAXED)
        for index in range(dataset.count):
            shelf[shelf_key(index)] = record_of(index)
        store.flush()
        store.close_shelf(shelf)
    else:
        store.prepare(pairs(dataset))
    sync_tree(spec["directory"])
    return {}


def run(spec: Spec) -> dict[str, Any]:
    """Run the workload once."""
    store = _store(spec)
    scale = SCALES[spec["scale"]]
    if spec.get("seconds"):
        scale = replace(scale, seconds=spec["seconds"])
    execution = Run(store, _dataset(spec), scale, spec["seed"])
    result = all_workloads()[spec["workload"]].run(execution)
    return {**execution.memory(), **result}


def puts(spec: Spec) -> dict[str, Any]:
    """Make `count` durable puts and nothing else: what `syncs` counts the system calls of."""
    store = _store(spec)
    store.open(DURABLE)
    for number in range(spec["count"]):
        store.put(b"%016d" % number, value_of(number, 100))
    store.close()
    return {}


def _store(spec: Spec) -> Store:
    dataset = _dataset(spec)
    store = all_stores()[spec["store"]](spec["directory"], dataset.value_size if dataset is not None else 100)
    store.import_library()
    return store


def _dataset(spec: Spec) -> Dataset | None:
    name = spec.get("dataset")
    return datasets(SCALES[spec["scale"]])[name] if name else None


ACTIONS: dict[str, Callable[[Spec], dict[str, Any]]] = {
    "describe": describe, "prepare": prepare, "run": run, "puts": puts,
}  # fmt: skip


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(ACTIONS[request["action"]](request)), flush=True)
