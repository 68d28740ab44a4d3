"""A database made by a script, and the SHA-256 of its bytes: the same with kernels and without.

    python tests/support/scripted.py

The script takes every way into a leaf: bulk loads in order and not, large batches and small ones, single puts,
deletions that join leaves, values of all sizes, packing, and moving to the front of the file. What differs from run to
run, the times and the random numbers in the meta pages, is left out.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[2]))

sys.path.insert(0, str(Path(__file__).parent))
from simdisk import SimVolume

from durabledbm._engine.kernels import RUNNING
from durabledbm._engine.meta import META_AREA, META_SIZE, decode_meta
from durabledbm.database import open_on


def key(rng: Random) -> bytes:
    return b"%07d" % rng.randrange(10**6) * rng.choice((1, 1, 1, 2, 40))


def value(rng: Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 100, 100, 100, 100, 700, 3000, 9000)))


def make(page_size: int, scale: int) -> SimVolume:
    """The database, `/db`, on a disk of its own."""
    rng = Random(page_size)
    volume = SimVolume()
    with open_on(volume, "/db", "n", page_size=page_size) as db:
        db.update({b"%07d" % number: b"%0100d" % number for number in range(0, 10**6, 10**6 // (20 * scale))})
        db.update({key(rng): value(rng) for _ in range(2 * scale)})
        for _ in range(12):
            db.update({key(rng): value(rng) for _ in range(scale // 5)})
            db.update({b"%07d" % rng.randrange(10**6): b"%0100d" % rng.randrange(10**6) for _ in range(scale // 10)})
            for _ in range(5):
                db[key(rng)] = value(rng)
            with db.transaction():
                for some in rng.sample(db.keys(), scale // 2):
                    del db[some]
        with db.snapshot():
            db.update({key(rng): value(rng) for _ in range(scale)})
        assert not db.check()
        db.reorganize()
        db.update({key(rng): value(rng) for _ in range(scale)})
        assert all(db[some] == stored for some, stored in list(db.items()))
    return volume


def fingerprint(image: bytes) -> str:
    """The SHA-256 of a file, but for what is random in it."""
    slots = [decode_meta(image[at : at + META_SIZE]) for at in range(0, META_AREA, META_SIZE)]
    fixed = [slot and slot._replace(time_ns=0, generation=b"", database_id=b"") for slot in slots]
    return hashlib.sha256(repr(fixed).encode() + image[META_AREA:]).hexdigest()


def main(scale: int = 300) -> None:
    print("kernels" if RUNNING else "Python")
    for page_size in (4096, 16384):
        image = make(page_size, scale).content("/db")
        print(page_size, len(image), fingerprint(image))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
