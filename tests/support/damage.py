"""Images of small databases, ways to damage them, and what may come of it.

`forge` changes a run and makes all checksums right again, up to the meta pages, so that a file made to hurt
gets past them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from functools import cache

from crc32c import crc32c
from simdisk import Operation, SimVolume

from durabledbm import error
from durabledbm._engine.meta import META_AREA, META_SIZE, Meta, decode_meta, encode_meta
from durabledbm._engine.page import HEADER, REF, TYPE_NAMES, read_header
from durabledbm.database import open_on

PAGE = 4096
READS_MAX = 30_000
"""So many reads are enough for any small file; more are a loop."""


class TooManyReads(BaseException):
    """ChangeSet without end."""


@cache
def images() -> tuple[bytes, bytes, dict[bytes, bytes]]:
    """A database of 64 KiB, one of its images from before, and its content."""
    rng = random.Random(64)
    volume = SimVolume()
    with open_on(volume, "/db", "c") as db:
        db.update({b"key %03d" % n: rng.randbytes(rng.randrange(120)) for n in range(200)})
        db[b"large"] = rng.randbytes(6000)
        before = volume.content("/db")
        for n in range(0, 60, 6):
            db[b"key %03d" % n] = rng.randbytes(400)
        del db[b"key 100"]
        db[b"last"] = b"in the meta page"
        content = dict(db.items())
    image = volume.content("/db")
    assert 50 * 1024 < len(image) <= 64 * 1024, len(image)
    return image.ljust(64 * 1024, b"\0"), before.ljust(64 * 1024, b"\0"), content


def outcome(image: bytes, *, write: bool = False, forged: bool = False) -> dict[bytes, bytes] | error:
    """What reading everything gives: the content, or our error. Anything else is raised."""
    volume = SimVolume({"/db": bytes(image)})
    reads = 0

    def count(operation: Operation) -> None:
        nonlocal reads
        reads += 1
        if reads > READS_MAX:
            raise TooManyReads

    volume.before = count
    try:
        with open_on(volume, "/db", "w" if write else "r") as db:
            content = dict(db.items())
            if not forged and dict(reversed(list(db.range(reverse=True)))) != content:
                raise AssertionError("backwards there is something else")
            if write:
                _write(db)
            return content
    except error as exc:
        return exc


def _write(db: object) -> None:
    """Changes all over the tree; what is there afterwards is for the caller to look at."""
    db[b"key 050"] = b"x" * 300  # type: ignore[index]
    db.update({b"key %03d" % n: b"y" * 40 for n in range(0, 200, 17)})  # type: ignore[attr-defined]
    db[b"large"] = b"z" * 9000  # type: ignore[index]
    db.check()  # type: ignore[attr-defined]


def problems(image: bytes) -> list[object]:
    """What `check()` says, or why it cannot say anything."""
    try:
        with open_on(SimVolume({"/db": bytes(image)}), "/db", "r") as db:
            return list(db.check())
    except error as exc:
        return [exc]


def is_right(image: bytes, content: dict[bytes, bytes]) -> bool:
    """Whether reading gives the content or our error; for `pytest` and for worker processes."""
    found = outcome(image)
    return isinstance(found, error) or found == content


def flipped(bit: int) -> bytes:
    """The image with one bit changed."""
    image = bytearray(images()[0])
    image[bit >> 3] ^= 1 << (bit & 7)
    return bytes(image)


def bad_flips(bits: range) -> list[int]:
    """The bits whose change is neither answered rightly nor detected."""
    content = images()[2]
    return [bit for bit in bits if not is_right(flipped(bit), content)]


# -- files with right checksums


def runs(image: bytes, page_size: int = PAGE) -> Iterator[tuple[int, bytes]]:
    """Page id and bytes of all intact runs."""
    for page_id in range(META_AREA // page_size, len(image) // page_size):
        head = read_header(image[page_id * page_size : page_id * page_size + HEADER.size])
        run = image[page_id * page_size : (page_id + head.page_count) * page_size]
        whole = len(run) == head.page_count * page_size > 0 and crc32c(run[:-4]) == int.from_bytes(run[-4:], "little")
        if whole and head.type in TYPE_NAMES and head.page_id == page_id:
            yield page_id, run


def forge(image: bytes, page_id: int, run: bytes, *, hops: int = 20) -> bytes:
    """The image with another run at `page_id`, and everything that points at it pointing at the new one.

    If something points in a circle, that ends after so many hops, with one ref that is wrong.
    """
    old = dict(runs(image))[page_id]
    run = run[:-4] + struct.pack("<I", crc32c(run[:-4]))
    start = page_id * PAGE
    image = image[:start] + run + image[start + len(run) :]
    old_ref = REF.pack(page_id, len(old) // PAGE, struct.unpack("<I", old[-4:])[0])
    new_ref = REF.pack(page_id, len(run) // PAGE, struct.unpack("<I", run[-4:])[0])
    for parent, content in list(runs(image)):
        if parent != page_id and old_ref in content and hops:
            return forge(image, parent, content.replace(old_ref, new_ref), hops=hops - 1)
    return with_metas(image, lambda slot: slot.replace(old_ref, new_ref))


def with_metas(image: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The image with both meta pages changed, and sealed again."""
    slots = []
    for at in (0, META_SIZE):
        slot = change(image[at : at + META_SIZE])
        slots.append(slot[:-4] + struct.pack("<I", crc32c(slot[:-4])))
    return b"".join(slots) + image[META_AREA:]


def claiming(image: bytes, **claims: object) -> bytes:
    """The image whose metas say something else."""
    meta = decode_meta(image[:META_SIZE])
    assert isinstance(meta, Meta)
    return encode_meta(meta._replace(**claims)) * 2 + image[META_AREA:]  # type: ignore[arg-type]


def pinned_checksum(body: bytes, at: int, checksum: int) -> bytes:
    """`body` with the 4 bytes at `at` such that its CRC32C is `checksum`: a page can then point at itself."""
    def crc(value: int) -> int:
        return crc32c(body[:at] + struct.pack("<I", value) + body[at + 4 :])

    base = crc(0)
    rows = [(crc(1 << bit) ^ base, 1 << bit) for bit in range(32)]
    wanted, value = base ^ checksum, 0
    for bit in reversed(range(32)):  # Gaussian elimination: checksums are linear
        pivot = next((row for row in rows if row[0] >> bit & 1), None)
        if pivot is None:
            continue
        others = [row for row in rows if row is not pivot]
        rows = [(row[0] ^ pivot[0], row[1] ^ pivot[1]) if row[0] >> bit & 1 else row for row in others]
        if wanted >> bit & 1:
            wanted, value = wanted ^ pivot[0], value ^ pivot[1]
    assert crc(value) == checksum
    return body[:at] + struct.pack("<I", value) + body[at + 4 :]
