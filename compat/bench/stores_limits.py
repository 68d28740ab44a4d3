"""The limits: what the machine and plain Python allow, measured in the same rounds as the stores."""

from __future__ import annotations

import os
import pickle
import struct
import threading
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from .stores import Store, lacks

_PAGE = 4096
_LENGTHS = struct.Struct("<II")
_NOT_A_DICTS = (
    "snapshot", "cold", "durable", "mix_durable", "threads", "processes", "range", "churn", "shelf", "big",
)  # fmt: skip


class Dict(Store):
    """A Python dict: nothing that answers the same question in Python can be faster."""

    name = family = "dict"
    note = "a dict in memory"
    relaxed = "nothing is kept"
    traits = frozenset({"limit"})
    persistent = False
    gaps = lacks(**dict.fromkeys(_NOT_A_DICTS, "a dict in memory"))

    def open(self, mode: str) -> None:
        self.mode = mode
        self.face = {}
        self.put = self.face.__setitem__

    def close(self) -> None:
        self.face = None

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        self.face.update(entries)
        return len(entries)

    def fill(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Put a data set in after `open`: there are no prepared files."""
        self.face.update(entries)


class Sync1(Store):
    """One 4 KiB page overwritten in place, and fdatasync: the least that a durable put can cost."""

    name = family = "sync1"
    note = "one 4 KiB pwrite into an existing file + one fdatasync per put, each thread or process its own page"
    durable = "fdatasync"
    traits = frozenset({"limit"})
    only = frozenset({"put_durable_1", "put_durable_16", "put_durable_64", "put_durable_4p"})
    _pages = 128

    def open(self, mode: str) -> None:
        self.mode = mode
        new = not os.path.exists(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        if new:
            for page in range(self._pages):
                os.pwrite(self._fd, bytes(_PAGE), page * _PAGE)
            os.fsync(self._fd)
        self._next = os.getpid() % self._pages
        self._lock = threading.Lock()
        self.put = self.thread_put()[0]

    def close(self) -> None:
        os.close(self._fd)

    def thread_put(self) -> tuple[Callable[[bytes, bytes], Any], Callable[[], None]]:
        with self._lock:
            self._next = (self._next + 1) % self._pages
            offset = self._next * _PAGE
        fd, rest = self._fd, bytes(_PAGE)

        def put(key: bytes, value: bytes) -> None:
            page = key + value + rest
            os.pwrite(fd, page[:_PAGE], offset)
            os.fdatasync(fd)

        return put, lambda: None

    def prepare(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        self.open("load")
        self.close()


class Seq(Store):
    """Encode the entries one after another and append them to a file: the bandwidth limit of writing."""

    name = family = "seq"
    note = "entries joined with their lengths, written in sequence, one fdatasync at the end of a load or batch"
    durable = "fdatasync"
    relaxed = "a write per value, one fdatasync at the end"
    traits = frozenset({"limit"})
    only = frozenset({"load_random", "load_sorted", "update_1000", "big_1m_put", "big_64m_put"})

    def open(self, mode: str) -> None:
        self.mode = mode
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.put = lambda key, value: self._append([(key, value)])

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, entries: list[tuple[bytes, bytes]]) -> None:
        parts: list[bytes] = []
        for key, value in entries:
            parts += (_LENGTHS.pack(len(key), len(value)), key, value)
        data = memoryview(b"".join(parts))
        while data:
            data = data[os.write(self._fd, data) :]

    def load(self, entries: list[tuple[bytes, bytes]], deadline: float, *, in_order: bool) -> int:
        for start in range(0, len(entries), 10_000):
            self._append(entries[start : start + 10_000])
        self.flush()
        return len(entries)

    def batch(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        self._append(puts)
        self.flush()

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def prepare(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        self.open("load")
        self.close()


class _Pickles(dict[str, bytes]):
    """A dict that pickles on the way in and unpickles on the way out, as little as a shelf can do."""

    def __getitem__(self, key: str) -> Any:
        return pickle.loads(super().__getitem__(key))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, pickle.dumps(value))


class Pickle(Store):
    """Pickling alone: the limit of a shelf."""

    name = family = "pickle"
    note = "pickle.dumps and pickle.loads over a dict"
    relaxed = "nothing is kept"
    traits = frozenset({"limit"})
    only = frozenset({"shelf_get", "shelf_put"})
    persistent = False

    def open(self, mode: str) -> None:
        self.face = _Pickles()

    def close(self) -> None:
        self.face = None

    def shelf(self, mode: str) -> MutableMapping[str, Any]:
        self.open(mode)
        return self.face  # type: ignore[no-any-return]


STORES: list[type[Store]] = [Dict, Sync1, Seq, Pickle]
