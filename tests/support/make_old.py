"""Writes tests/data/old.gdbm.gz and tests/data/old.db.gz, as gdbm and Berkeley DB lay them out. Run once, by hand.

A Python is needed that has dbm.gnu and dbm.ndbm, the latter with Berkeley DB, such as Debian's with python3-gdbm.
"""

from __future__ import annotations

import gzip
import importlib
import tempfile
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"

ENTRIES = {b"key %d" % i: b"value %d " % i * (i % 30) for i in range(1, 300) if i % 3 and i % 30}
ENTRIES |= {bytes(range(120, 140)): b"bytes beyond ASCII", b"large": b"x" * 10_000, b"k" * 3000: b"a large key"}


def write(name: str, path: str) -> None:
    """Write it, after as much as stays was deleted: so there is free space in it."""
    with importlib.import_module(name).open(path, "n") as db:
        for i in range(300):
            db[b"key %d" % i] = b"deleted"
        for i in range(300):
            del db[b"key %d" % i]
        for key, value in ENTRIES.items():
            db[key] = value


def main() -> None:
    """Write both."""
    for name, suffix, target in (("dbm.gnu", "", "old.gdbm.gz"), ("dbm.ndbm", ".db", "old.db.gz")):
        with tempfile.TemporaryDirectory() as directory:
            write(name, f"{directory}/old")
            (DATA / target).write_bytes(gzip.compress(Path(f"{directory}/old{suffix}").read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
