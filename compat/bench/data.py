"""The data that every store is given: keys, values, data sets and the two sizes of the benchmark.

Everything is made from seeds, so that a worker can check what it reads without having seen it written, and
no bytes object is handed to a store twice: a cached hash or a shared value would flatter stores that live
in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

KEY_SIZE = 16
ZIPF_THETA = 0.99  # YCSB's constant
_BLOCK = 1 << 16
_NOISE = random.Random("noise").randbytes(1 << 20)


@dataclass(frozen=True)
class Scale:
    """How large the data sets are and how long a timed part may take (seconds)."""

    name: str
    tiny: int
    small: int
    large: int
    wide: int
    huge: int
    shelf: int
    churn: int
    mebi: int  # how many values of `mebi_size` bytes
    mebi_size: int
    vast: int  # how many values of `vast_size` bytes
    vast_size: int
    seconds: float  # the timed part of most workloads
    load_seconds: float  # the bound on one bulk load


FULL = Scale("full", 10_000, 100_000, 1_000_000, 1_000_000, 10_000_000, 100_000, 100_000,
             64, 1 << 20, 4, 64 << 20, 1.0, 10.0)  # fmt: skip
QUICK = Scale("quick", 1_000, 10_000, 50_000, 20_000, 100_000, 5_000, 5_000,
              16, 1 << 20, 2, 8 << 20, 0.2, 3.0)  # fmt: skip
TINY = Scale("tiny", 100, 300, 500, 200, 1_000, 100, 200, 2, 1 << 16, 1, 1 << 18, 0.02, 1.0)
SCALES = {scale.name: scale for scale in (FULL, QUICK, TINY)}


@dataclass(frozen=True)
class Dataset:
    """What a prepared store holds: `count` entries, keys of 16 random bytes, values of `value_size` bytes.

    `kind` is "bytes", or "shelf" for pickled `Record`s under keys of 16 hexadecimal digits.
    """

    name: str
    count: int
    value_size: int
    kind: str = "bytes"

    @property
    def size(self) -> int:
        """Bytes of keys and values."""
        return self.count * (KEY_SIZE + self.value_size)


def datasets(scale: Scale) -> dict[str, Dataset]:
    """The data sets of a scale, by name."""
    sets = [
        Dataset("tiny", scale.tiny, 100),
        Dataset("small", scale.small, 100),
        Dataset("large", scale.large, 100),
        Dataset("wide", scale.wide, 1024),
        Dataset("huge", scale.huge, 100),
        Dataset("shelf", scale.shelf, 120, "shelf"),
        Dataset("mebi", scale.mebi, scale.mebi_size),
        Dataset("vast", scale.vast, scale.vast_size),
    ]
    return {dataset.name: dataset for dataset in sets}


class Keys:
    """The keys of a data set as one string of bytes; a key is cut out anew whenever it is asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        blocks = -(-count // _BLOCK)
        self._bytes = b"".join(random.Random(f"keys {n}").randbytes(_BLOCK * KEY_SIZE) for n in range(blocks))
        self._zipf: list[float] = []

    def __getitem__(self, index: int) -> bytes:
        return self._bytes[index * KEY_SIZE : (index + 1) * KEY_SIZE]

    def __iter__(self) -> Iterator[bytes]:
        data = self._bytes
        return (data[start : start + KEY_SIZE] for start in range(0, self.count * KEY_SIZE, KEY_SIZE))

    def uniform(self, rng: random.Random, size: int) -> list[bytes]:
        """`size` keys, each entry as likely as any other."""
        data = self._bytes
        starts = rng.choices(range(0, self.count * KEY_SIZE, KEY_SIZE), k=size)
        return [data[start : start + KEY_SIZE] for start in starts]

    def zipfian(self, rng: random.Random, size: int) -> list[bytes]:
        """`size` keys, the n-th most popular with a weight of 1 / n**0.99. Popularity is not in key order."""
        if not self._zipf:
            self._zipf = list(accumulate(1 / n**ZIPF_THETA for n in range(1, self.count + 1)))
        data = self._bytes
        starts = rng.choices(range(0, self.count * KEY_SIZE, KEY_SIZE), cum_weights=self._zipf, k=size)
        return [data[start : start + KEY_SIZE] for start in starts]

    def mixed(self, rng: random.Random, size: int) -> list[bytes]:
        """`size` keys to write: about half are entries of the data set, half are new."""
        keys = self.uniform(rng, size)
        new = missing(rng, size)
        return [key if n & 1 else other for n, (key, other) in enumerate(zip(keys, new, strict=True))]


def missing(rng: random.Random, size: int) -> list[bytes]:
    """`size` random keys, in no data set (but for a chance of one in 2**100)."""
    data = rng.randbytes(size * KEY_SIZE)
    return [data[start : start + KEY_SIZE] for start in range(0, size * KEY_SIZE, KEY_SIZE)]


def value_of(index: int, size: int) -> bytes:
    """The value of entry `index`: `size` bytes that begin with the index and do not compress."""
    start = index * 7919 % (len(_NOISE) - 4096)
    body = _NOISE[start : start + size - 8]
    if len(body) < size - 8:
        body = (body + _NOISE * (size // len(_NOISE) + 1))[: size - 8]
    return index.to_bytes(8, "little") + body


def values(rng: random.Random, count: int, size: int) -> list[bytes]:
    """`count` values that belong to no entry in particular."""
    first = rng.getrandbits(40)
    return [value_of(first + n, size) for n in range(count)]


def pairs(dataset: Dataset) -> Iterator[tuple[bytes, bytes]]:
    """All entries of a data set of bytes, in random key order."""
    return ((key, value_of(index, dataset.value_size)) for index, key in enumerate(Keys(dataset.count)))


@dataclass
class Record:
    """What the shelf workloads keep: small, with fields of several types."""

    number: int
    name: str
    price: float
    tags: list[str] = field(default_factory=list)


def record_of(index: int) -> Record:
    """The record of entry `index` of a shelf."""
    return Record(index, f"record {index}", index / 8, ["small", "data", "class"])


def shelf_key(index: int) -> str:
    """The key of entry `index` of a shelf: 16 hexadecimal digits in no particular order."""
    return f"{(index * 0x9E3779B97F4A7C15 + 0x1234567) & 0xFFFFFFFFFFFFFFFF:016x}"
