"""zarr 2: arrays in a `DBMStore` over a durabledbm file. Arguments: the file, the number of the run."""

import json
import pickle
import sys
import warnings

import numpy
import zarr

import durabledbm

warnings.simplefilter("ignore", FutureWarning)  # zarr's, about DBMStore being gone in version 3
path, run = sys.argv[1], int(sys.argv[2])
with zarr.DBMStore(path, open=durabledbm.open, durability="process") as store:
    root = zarr.group(store=store)
    if run == 1:
        array = root.create_group("a").zeros("b", shape=(100, 100), chunks=(10, 10), dtype="i4")
        array[:] = numpy.arange(10_000).reshape(100, 100)
        root.attrs["made by"] = "the first run"
    array = root["a/b"]
    before = int(array[:].sum())
    array[run, :] = -1
    array.append(numpy.full((10, 100), run))
    root["a"].zeros(f"run {run}", shape=10)
    store.flush()
    again = pickle.loads(pickle.dumps(store))  # as worker processes get it
    assert int(zarr.group(store=again)["a/b"][run, 0]) == -1
    again.close()
    answer = {
        "sum before": before,
        "shape": array.shape,
        "attributes": dict(root.attrs),
        "arrays": sorted(root["a"].array_keys()),
        "chunks": array.nchunks_initialized,
    }
print(json.dumps(answer))
