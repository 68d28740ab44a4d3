"""The benchmark: durabledbm, its peers and the raw limits of the machine, side by side.

Run it with `python -m compat.bench --help` from the root of the repository. Reading order:

`data`         keys, values and data sets: the same bytes for every store, made from seeds
`stores`       the adapter interface; one class per store in `stores_own`, `stores_limits` (what machine and
               Python allow), `stores_dbm`, `stores_sqlite`, `stores_lmdb`, `stores_log`
`timing`       what a workload is handed: opened stores, bounded timing, warming, checks, memory
`workloads`    what a workload is; the functions are in `workloads_read`, `workloads_write` and `parallel`
`catalogue`    all stores and all workloads
`worker`       the process that runs one (store, workload) once and prints one line of JSON
`interpreters` which Python can run which store (dbm.gnu and dbm.sqlite3 are not in every build)
`runner`       prepares data sets once, starts workers in interleaved rounds, bounds everything in time
`targets`      the ratios to be shown, as data
`report`       Markdown; `plots` draws; `syncs` counts the syncs behind durable rows; `machine` describes it

Rules: `worker` and all that it imports use the standard library only; a store's library is imported inside
its adapter, so that any interpreter can run its stores. No adapter knows a workload, nor the reverse.
"""
