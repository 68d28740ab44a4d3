"""Beaker: cached values and a session, with its `dbm` backend on durabledbm. Argument: the data directory."""

import json
import sys

from beaker.cache import CacheManager
from beaker.session import Session

import durabledbm

made = []


def make(name):
    made.append(name)
    return {"name": name, "numbers": list(range(100))}


manager = CacheManager(type="dbm", data_dir=sys.argv[1], dbmmodule=durabledbm)
cache = manager.get_cache("things")
values = [cache.get(f"key {i}", createfunc=lambda i=i: make(f"thing {i}")) for i in range(20)]
cache.remove_value("key 0")
assert "key 0" not in cache
cache.put("key 0", values[0])

options = {"dbmmodule": durabledbm}
session = Session({}, id="one", type="dbm", data_dir=sys.argv[1], use_cookies=False, **options)
visits = session["visits"] = session.get("visits", 0) + 1
session.save()

print(json.dumps({"made": len(made), "visits": visits, "values": values}))
