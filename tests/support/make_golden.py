"""Makes tests/data/golden-v2.db: a file of format version 2, for every later version to read.

    python tests/support/make_golden.py tests/data/golden-v2.db

The file is made once for each format version that is released, and then kept: it shows what was written then,
whatever the engine writes now. It has a fixed database id, a fixed generation and fixed times, and holds every
structure that docs/format.md names: leaves of one page and of several, branches on two levels, large values, one of
them in pieces, both kinds of changes in a meta page, other tables, a free-space map with all its parts, and free pages.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from simdisk import SimVolume

from durabledbm._engine import freemap as space
from durabledbm._engine.meta import META_AREA, META_SIZE, Meta, decode_meta, encode_meta, first_page
from durabledbm.database import open_on

DATABASE_ID = bytes(range(16))
GENERATION = bytes(range(100, 108))
TIME_NS = 1_700_000_000_000_000_000
PAGE_SIZE = 4096

DELETED = [b"deleted", b"large 1"]
IN_PIECES = b"large, in pieces"


def numbered(number: int) -> bytes:
    """A key so long that a branch has few children: the tree shall have two levels of branches."""
    return b"entry " + b"-" * 400 + b"%04d" % number


def contents() -> dict[bytes, bytes]:
    """What the golden file holds."""
    entries = {numbered(n): b"value %d " % n * (n % 7) for n in range(200)}
    entries |= {b"large %d" % n: bytes(range(256)) * (16 * n + 9) for n in (0, 2, 3)}
    entries |= {
        b"": b"empty key",
        b"empty value": b"",
        b"long key " + b"k" * 9000: b"in a leaf of several pages",
    }
    entries |= {bytes([n]): bytes([255 - n]) for n in range(256)}
    entries |= {IN_PIECES: bytes(range(256)) * 1025}
    return entries | {numbered(100): b"changed", b"in the meta page": b"added last"}


def tables() -> dict[str, dict[bytes, bytes]]:
    """What its other tables hold."""
    small = {b"": b"empty key", b"large": bytes(range(256)) * 20, b"key": b"", b"last": b"in the meta page"}
    return {"small": small, "n\u00e4me": {b"%03d" % n: b"value" * (n % 9) for n in range(300)}}


def make() -> bytes:
    """The golden file."""
    meta = Meta(
        txid=1,
        page_size=PAGE_SIZE,
        database_id=DATABASE_ID,
        page_count=first_page(PAGE_SIZE),
        steady_txid=1,
        steady=True,
        time_ns=TIME_NS,
    )
    volume = SimVolume({"/golden.db": encode_meta(meta) * 2})
    target = contents()
    log_pages, chunk_min = space._LOG_PAGES, space._CHUNK_MIN
    with open_on(volume, "/golden.db", "w") as db:
        first = {key: value for key, value in target.items() if key not in (b"in the meta page", IN_PIECES)}
        db.update(first)
        db.update({numbered(n): b"to be overwritten" for n in range(0, 200, 9)})
        db.update(dict.fromkeys(DELETED, b"to be deleted" * 1000))
        with db.snapshot():  # the pages that these commits free wait, and are free at once when it ends
            db.update({numbered(n): b"to be changed" * 50 for n in range(0, 200, 20)})
            db.update(first)
        with db.snapshot():  # the pages that these commits free still wait in the end
            db.update({numbered(n): b"to be changed" for n in range(50)})
            space._LOG_PAGES, space._CHUNK_MIN = 0, 1  # to have a map and a list before they are worth it
            db.update({numbered(n): b"to be changed" for n in range(50, 100)})
            space._LOG_PAGES, space._CHUNK_MIN = log_pages, chunk_min
            db.update(first)
            db[IN_PIECES] = target[IN_PIECES]
            for name, entries in tables().items():
                db.table(name).update(entries)
            db.table("dropped").update(tables()["small"])
            db.drop_table("dropped")
            db[numbered(100)] = b"changed"
            db[b"in the meta page"] = b"added last"
            for key in DELETED:
                del db[key]
            db.table("small")[b"last"] = b"in the meta page"
            assert dict(db.items()) == target
            image = volume.content("/golden.db")
    slots = [decode_meta(image[:META_SIZE]), decode_meta(image[META_SIZE:META_AREA])]
    fixed = {"time_ns": TIME_NS, "generation": GENERATION}
    area = b"".join(encode_meta(slot._replace(**fixed)) for slot in slots if slot is not None)  # type: ignore[arg-type]
    assert len(area) == META_AREA
    return area + image[META_AREA:]


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        file.write(make())
