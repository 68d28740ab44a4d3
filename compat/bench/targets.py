"""The ratios that durabledbm sets out to reach, as data. Above 1 is ahead of the peer, whatever the unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .catalogue import all_stores
from .stores import Store

OWN = "durabledbm"


@dataclass(frozen=True)
class Target:
    """`own` on `workload` against each of `peers` on `peer_workload` (the same one, if empty).

    `at_least` is None where no ratio is demanded but it is to be shown.
    """

    row: str
    workload: str
    against: str
    peers: tuple[str, ...]
    at_least: float | None
    peer_workload: str = ""
    own: str = OWN


def targets() -> list[Target]:
    """All targets, in the order in which they were set."""
    stores = all_stores()
    peers = {name: store for name, store in stores.items() if not store.traits & {"own", "limit"}}
    durable = _names(peers, lambda store: bool(store.durable))
    group = tuple(name for name in durable if name != "plyvel")
    shared = _names(peers, lambda store: "shared" in store.traits)
    dict_like = _names(peers, lambda store: "dict_like" in store.traits)
    log = _names(peers, lambda store: "log" in store.traits)
    crash_safe = _names(peers, lambda store: store.relaxed_safe)
    lmdb = ("lmdb_txn", "lmdb_dict")
    stdlib = ("dbm.gnu", "dbm.sqlite3")
    put, load, scans = "put_durable_1", "load_", ("scan_keys", "scan_items")
    rows = [
        Target("single durable put, one thread", put, "the raw limit", ("sync1",), 0.70),
        Target("single durable put, one thread", put, "every peer", durable, 1.0),
        Target("single durable put, one thread", put, "lmdb", lmdb, 1.5),
        Target("durable puts, 64 threads", "put_durable_64", "every peer but LevelDB", group, 1.5),
        Target("durable puts, 64 threads", "put_durable_64", "LevelDB", ("plyvel",), 0.5),
        Target("durable update() of 1,000", "update_1000", "lmdb, dbm.gnu, SQLite",
               (*lmdb, "dbm.gnu", "sqlite_wal", "dbm.sqlite3"), 1.0),
        Target("durable update() of 1,000", "update_1000", "log-structured", log, None),
        Target("bulk load, random", load + "random", "lmdb in one transaction", ("lmdb_txn",), 1.0),
        Target("bulk load, random", load + "random", "lmdb, sorted first", ("lmdb_sort",), None),
        Target("bulk load, sorted", load + "sorted", "lmdb in one transaction", ("lmdb_txn",), 0.8),
        Target("Zipfian get", "get_zipf", "peers that let others write meanwhile", shared, 1.0),
        Target("Zipfian get", "get_zipf", "dbm.gnu", ("dbm.gnu",), 0.6),
        Target("Zipfian get in a snapshot", "snap_zipf", "dbm.gnu", ("dbm.gnu",), 1.0, "get_zipf"),
        Target("uniform get", "get_large", "dict-like peers", dict_like, 1.0),
        Target("uniform get", "get_large", "lmdb in one transaction", ("lmdb_txn",), 0.6),
        *(Target(f"full {scan}", scan, "dict-like peers", dict_like, 1.0) for scan in scans),
        *(Target(f"full {scan}", scan, "lmdb cursor", ("lmdb_txn",), 0.6) for scan in scans),
        Target("relaxed put", "put_relaxed", "peers in their fastest crash-safe mode", crash_safe, 2.0),
        Target("open + get + close", "open_warm", "dbm.sqlite3", ("dbm.sqlite3",), 3.0),
        Target("open + get + close", "open_warm", "dbm.gnu", ("dbm.gnu",), 0.7),
        Target("shelf get", "shelf_get", "stdlib shelve", stdlib, 1.0),
        Target("shelf put, relaxed", "shelf_put", "stdlib shelve", stdlib, 1.0),
        Target("file size after churn", "churn", "lmdb, dbm.gnu, dbm.sqlite3", ("lmdb_txn", *stdlib), 1.0),
        Target("durable put, largest size", "put_at_huge", "itself, smallest", (OWN,), 0.4, "put_at_tiny"),
    ]  # fmt: skip
    big = [
        replace(row, row=row.row + ", large cache", own="durabledbm_bigcache")
        for row in rows
        if row.workload in ("get_large", "get_zipf", "snap_zipf", *scans)
    ]
    return rows + big


def _names(stores: dict[str, type[Store]], wanted: object) -> tuple[str, ...]:
    assert callable(wanted)
    return tuple(name for name, store in stores.items() if wanted(store))
