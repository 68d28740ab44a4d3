"""Files that were made to hurt, with right checksums, and everything that can be asked of them.

    PYTHONPATH=. python tests/support/forging.py named [NAME ...]    # those in `NAMED`
    PYTHONPATH=. python tests/support/forging.py FIRST LAST [all]    # random ones by seed; all operations, or a few

The files are small on the disk, whatever they claim. So each operation must end soon, with little memory, and with an
answer or an error of ours: the process limits itself, where the system can (Windows cannot), and ends with status 1
when one does not.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import durabledbm
from durabledbm._engine.checksum import crc32c, with_zeros
from durabledbm._engine.freemap import _CHUNK, _EXTENT, _FIXED, _LOG
from durabledbm._engine.large_value import INDEX, PIECE, PLACE, room
from durabledbm._engine.meta import Extent, Meta, encode_meta, first_page
from durabledbm._engine.node import Overflow, encode_branch, encode_leaf
from durabledbm._engine.page import (
    BRANCH,
    HEADER,
    LEAF,
    MAP,
    NO_REF,
    OVERFLOW,
    PENDING,
    REF,
    SPACE,
    crc_of,
    pages_for,
    seal,
)  # fmt: skip

SECONDS = 20
"""Processor time for one operation. What is right takes milliseconds."""

MEMORY = 600 << 20
"""Bytes of address space that one may take."""

TERA = 1 << 40

Entries = list[tuple[bytes, bytes]]


class TooLong(BaseException):
    """An operation has used up its time."""


class Forgery:
    """A file in the making: runs whose checksums are right, at whatever places."""

    def __init__(self, page_size: int = 4096) -> None:
        self.page_size = page_size
        self.pages: dict[int, list[tuple[int, bytes]]] = {}
        self.next = first_page(page_size)
        self.size = 0
        """Bytes of the file at least; more than was written makes it sparse."""
        self.meta: dict[str, Any] = {}

    def put(self, run: bytes, page_id: int, page_count: int | None = None) -> bytes:
        """Place a sealed run; its ref."""
        count = len(run) // self.page_size if page_count is None else page_count
        self.pages.setdefault(page_id, []).append((0, run))
        self.next = max(self.next, page_id + count)
        return REF.pack(page_id, count, int.from_bytes(crc_of(run), "little"))

    def run(
        self, kind: int, flags: int, count: int, *payload: bytes, page_id: int | None = None, txid: int = 2
    ) -> bytes:
        """Seal a run and place it, behind all others unless it is said where; its ref."""
        place = self.next if page_id is None else page_id
        return self.put(seal(kind, flags, count, place, txid, self.page_size, *payload), place)

    def leaf(self, entries: Entries, **where: Any) -> bytes:
        keys, values = [key for key, _ in entries], [value for _, value in entries]
        flags, payload = encode_leaf(keys, values, self.page_size)
        return self.run(LEAF, flags, len(keys), payload, **where)

    def branch(self, refs: list[bytes], separators: list[bytes], **where: Any) -> bytes:
        return self.run(BRANCH, 0, len(refs), b"".join(refs), encode_branch(separators, self.page_size), **where)

    def tower(self, ref: bytes, levels: int, prefix: bytes = b"") -> bytes:
        """Branches above a page, so many levels: all 150 children of each are the page below it."""
        for _ in range(levels):
            ref = self.branch([ref] * 150, [prefix + b"%04d" % number for number in range(1, 150)])
        return ref

    def value(self, key: bytes, value: bytes, **where: Any) -> Overflow:
        return Overflow.make(self.run(OVERFLOW, 0, len(key), key, value, **where), len(value))

    def pieces(self, key: bytes, value: bytes, repeat: int = 1) -> Overflow:
        """A value in pieces; an index that lists each of them more than once claims as much more."""
        full = room(len(key))
        refs = [
            self.run(OVERFLOW, PIECE, len(key), key, PLACE.pack(at // full), value[at : at + full])
            for at in range(0, len(value), full)
        ]
        index = self.run(OVERFLOW, INDEX, len(key), key, b"".join(refs) * repeat)
        return Overflow.make(index, len(value) * repeat)

    def hollow(
        self, key: bytes, length: int, *, page_id: int | None = None, right: bool = True, flags: int = 0,
        claims: int | None = None,
    ) -> Overflow:  # fmt: skip
        """A large value of zeros that are a hole, or another run with these `flags`, of a value that `claims` a length;
        its checksum is `right`, or not.
        """
        size, place = self.page_size, self.next if page_id is None else page_id
        count = pages_for(len(key) + length, size)
        head = HEADER.pack(OVERFLOW, flags, 0, len(key), place, 2, count, (len(key) + length) & 0xFFFFFFFF) + key
        crc = with_zeros(crc32c(head), count * size - len(head) - 4) ^ (not right)
        self.pages.setdefault(place, []).append((0, head))
        self.pages.setdefault(place + count - 1, []).append((size - 4, crc.to_bytes(4, "little")))
        self.next = max(self.next, place + count)
        return Overflow.make(REF.pack(place, count, crc), length if claims is None else claims)

    def space(self, *log: tuple[int, int, int], maps: list[bytes] = [], chunks: list[bytes] = []) -> bytes:  # noqa: B006
        """A run that records free space."""
        fixed = _FIXED.pack(3, len(maps), len(chunks), len(log), 0)
        parts = [_CHUNK.pack(ref, 2) for ref in chunks]
        return self.run(SPACE, 0, 0, fixed, *maps, *parts, *(_LOG.pack(*record) for record in log))

    def tree(self, root: bytes, depth: int, count: int, **fields: Any) -> None:
        """What the meta pages say."""
        self.meta = {"root": root, "depth": depth, "entry_count": count, "tree_count": count, **fields}

    def write(self, path: str) -> None:
        """Make the file."""
        page_count = self.meta.pop("page_count", None) or self.next
        base = Meta(3, self.page_size, b"forged, and large", page_count, steady=True, steady_txid=3)
        newest = base._replace(database_id=base.database_id[:16], **self.meta)
        older = newest if newest.steady else newest._replace(txid=2, steady=True, extents=())
        with open(path, "wb") as file:
            file.write(encode_meta(newest) + encode_meta(older))
            for page_id, parts in self.pages.items():
                for offset, data in parts:
                    file.seek(page_id * self.page_size + offset)
                    file.write(data)
            size = max(self.size, self.next * self.page_size)
            if size > file.seek(0, os.SEEK_END):
                file.truncate(size)


SOME: Entries = [(b"k%02d" % number, b"value") for number in range(10)]


# -- by name -------------------------------------------------------------------------------------------------------


def aliased() -> Forgery:
    """All children of a branch are one page, nine levels deep."""
    file = Forgery()
    ref = file.leaf(SOME)
    ref = file.tower(ref, 9)
    file.tree(ref, 10, 10)
    return file


def aliased_and_unknown_space() -> Forgery:
    """The same, so that whoever writes must find out what is in use."""
    file = aliased()
    file.meta["space"] = REF.pack(5, 1, 1)
    return file


def descending() -> Forgery:
    """A leaf whose last key is smaller than its first: behind it, it seems to come again in order."""
    file = Forgery()
    ref = file.leaf([(b"z", b"1"), (b"a", b"2")])
    ref = file.tower(ref, 9)
    file.tree(ref, 10, 2)
    return file


def barren() -> Forgery:
    """Separators out of order, between which no child can be, under branches of one page, eight levels deep."""
    file = Forgery()
    ref = file.branch([file.leaf(SOME)] * 3, [b"y", b"b"])
    ref = file.tower(ref, 8, b"c")
    file.tree(ref, 10, 10)
    return file


def overlapping_log() -> Forgery:
    """A log of 40,000 records of 16,000 pages each, all of the same ones."""
    file = Forgery()
    root = file.leaf(SOME)
    file.tree(root, 1, 10, space=file.space(*[(4, 16_000, 2)] * 40_000), page_count=16_384)
    return file


def aliased_maps() -> Forgery:
    """The map is one page 100,000 times."""
    file = Forgery()
    one = file.run(MAP, 0, 0, b"\xff" * (file.page_size - 36))
    file.tree(file.leaf(SOME), 1, 10, space=file.space(maps=[one] * 100_000), page_count=20_000)
    return file


def aliased_lists() -> Forgery:
    """Of lists of freed pages there is one 40,000 times."""
    file = Forgery()
    one = file.run(PENDING, 0, 300, _EXTENT.pack(4, 10) * 300)
    file.tree(file.leaf(SOME), 1, 10, space=file.space(chunks=[one] * 40_000), page_count=20_000)
    return file


def endless_extent() -> Forgery:
    """The newest meta page lists a run of eight terabytes, which the file has as a hole."""
    file = Forgery()
    root = file.leaf(SOME)
    file.pages[3] = [(0, HEADER.pack(LEAF, 0, 0, 3, 3, 2, 1 << 31, 0))]
    file.size = 8 * TERA + (1 << 20)
    file.tree(root, 1, 10, steady=False, steady_txid=2, extents=(Extent(3, 1 << 31, 5),))
    return file


def endless_value() -> Forgery:
    """A value of 200 GiB, in a hole."""
    file = Forgery()
    file.next = 5
    large = file.hollow(b"big", 200 << 30, right=False)
    file.tree(file.leaf([(b"big", large)], page_id=2), 1, 1, page_count=3)
    return file


def hollow_values() -> Forgery:
    """Values of zeros that are holes: one is a gigabyte and damaged, one is small and right."""
    file = Forgery()
    damaged, right = file.hollow(b"damaged", 1 << 30, right=False), file.hollow(b"right", 20 << 20)
    file.tree(file.leaf([(b"damaged", damaged), (b"right", right)]), 1, 2)
    return file


def mostly_hole() -> Forgery:
    """Eight terabytes of pages, of which a handful is there."""
    file = Forgery()
    file.size = 8 * TERA
    file.tree(file.leaf(SOME), 1, 10, page_count=1 << 31)
    return file


def hollow_tail() -> Forgery:
    """Behind the end of a small database a hole of four terabytes, and a page that says that all of it is its own."""
    file = Forgery()
    root = file.leaf(SOME)
    file.pages[9] = [(0, HEADER.pack(OVERFLOW, 0, 0, 3, 9, 2, 1 << 30, (1 << 32) - 1))]
    file.size = 4 * TERA
    file.tree(root, 1, 10)
    return file


def hollow_middle() -> Forgery:
    """As many pages as may be hollow, some of them free, the last one in nobody's hands."""
    file = Forgery()
    count = 1 << 22
    span = (file.page_size - 36) * 8
    maps = [NO_REF] * (count // span)
    for number in range(0, len(maps), 2):
        maps[number] = file.run(MAP, 0, number, b"\xfe" * (file.page_size - 36))
    file.tree(file.leaf(SOME), 1, 10, space=file.space(maps=maps), page_count=count)
    file.size = count * file.page_size
    return file


def nested_values() -> Forgery:
    """Large values of which each contains all that follow."""
    file = Forgery()
    first, count, size = file.next, 400, file.page_size
    content = b""
    cells: Entries = []
    for number in reversed(range(count)):
        key, page_id = b"%04d" % number, first + number
        payload = bytes(size - HEADER.size - len(key)) + content
        run = seal(OVERFLOW, 0, len(key), page_id, 2, size, key, payload)
        ref = REF.pack(page_id, len(run) // size, int.from_bytes(crc_of(run), "little"))
        cells.append((key, Overflow.make(ref, len(payload))))
        content = run
    file.put(content, first)
    file.tree(file.leaf(cells[::-1]), 1, count)
    return file


def claims_to_the_end() -> Forgery:
    """No meta page, and every page says that it begins a run that reaches to the end of the file."""
    file = Forgery()
    first, count = file.next, 2000
    for page_id in range(first, first + count):
        pages = first + count - page_id
        file.pages[page_id] = [(0, HEADER.pack(OVERFLOW, 0, 0, 1, page_id, 2, pages, pages * 4096 - 36))]
    file.next += count
    file.tree(NO_REF, 0, 0)
    file.pages[0], file.pages[1] = [(20, b"damage")], [(20, b"damage")]
    return file


def wrong_counts() -> Forgery:
    """Fewer entries than there are, and the highest number of a commit."""
    file = Forgery()
    file.tree(file.leaf(SOME), 1, 0, txid=(1 << 62) - 1)
    return file


def large_values_of_one_page() -> Forgery:
    """A thousand keys with one large value."""
    file = Forgery()
    large = file.value(b"k000", b"x" * 3_000_000)
    leaf = file.leaf([(b"k%03d" % number, large) for number in range(1000)])
    file.tree(leaf, 1, 1000)
    return file


def hollow_index() -> Forgery:
    """An index of a gigabyte that is a hole: its value would have 17 terabytes."""
    file = Forgery()
    large = file.hollow(b"k", 2**30 - 64, flags=INDEX, claims=(2**30 - 64) // 16 * room(1))
    file.tree(file.leaf([(b"k", large)]), 1, 1)
    return file


def one_piece_again_and_again() -> Forgery:
    """An index that lists its only full piece a thousand times."""
    file = Forgery()
    large = file.pieces(b"k", b"x" * room(1), 1000)
    file.tree(file.leaf([(b"k", large)]), 1, 1)
    return file


NAMED = {
    build.__name__: build
    for build in (
        aliased, aliased_and_unknown_space, descending, barren, overlapping_log, aliased_maps, aliased_lists,
        endless_extent, endless_value, hollow_values, mostly_hole, hollow_tail, hollow_middle, nested_values,
        claims_to_the_end, wrong_counts, large_values_of_one_page, hollow_index, one_piece_again_and_again,
    )
}  # fmt: skip


# -- at random -----------------------------------------------------------------------------------------------------


class _Random:
    """One random file: a tree that may be anything, with large values, free space and numbers that may be, too."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.file = Forgery(self.rng.choice([4096] * 6 + [8192, 65536]))
        self.flaws = self.rng.choice([0, 0.02, 0.1, 0.4])
        """How often something is other than it should be."""
        self.refs: list[bytes] = []

    def bad(self) -> bool:
        return self.rng.random() < self.flaws

    def number(self) -> int:
        few = self.rng.randrange(2, 40)
        return self.rng.choice([few, few, 0, 1, self.file.next, 2**16, 2**31, 2**32 - 1])

    def ref(self) -> bytes:
        """A ref to something that is there, or to nothing."""
        if self.refs and self.rng.random() < 0.8:
            return self.rng.choice(self.refs)
        return REF.pack(self.number() * self.rng.choice([1, 1, 1 << 20]), self.number(), self.rng.getrandbits(32))

    def build(self) -> Forgery:
        rng, file = self.rng, self.file
        nodes = self.leaves(rng.choice([0, 1, 1, 3, 20]))
        depth = 1 if nodes else 0
        while len(nodes) > 1 or (nodes and depth < rng.choice([1, 2, 6])):
            nodes = self.branches(nodes)
            depth += 1
        count = self.count
        if self.bad():
            depth, count = rng.choice([0, depth + 1, 64, 2**32 - 1]), rng.choice([0, 1, 2**31, 2**63])
        fields: dict[str, Any] = {"space": self.space()}
        if self.bad():
            fields["extents"] = tuple(Extent(self.number(), self.number(), 7) for _ in range(rng.randrange(1, 5)))
            fields["steady"], fields["steady_txid"] = False, 2
        if rng.random() < 0.3:
            changes = {b"k%05d" % rng.randrange(300): rng.choice([None, b"new"]) for _ in range(rng.randrange(30))}
            fields["changes"] = changes
        if rng.random() < 0.2:
            file.size = file.next * file.page_size + rng.choice([1, 5000, 1 << 30, TERA])
        if self.bad():
            fields["page_count"] = max(2, rng.choice([self.number(), 3 * file.next, file.size // file.page_size]))
        if self.bad():
            fields["txid"] = rng.choice([1, 2**40, 2**62 - 1])
        file.tree(nodes[0][1] if nodes else NO_REF, depth, count, **fields)
        return file

    count = 0

    def leaves(self, number: int) -> list[tuple[bytes, bytes]]:
        rng, nodes, at = self.rng, [], 0
        for _ in range(number):
            entries: Entries = []
            for _ in range(rng.randrange(1, 30)):
                key = b"k%05d" % at
                at += 1
                entries.append((key, self.value(key) if rng.random() < 0.1 else bytes(rng.randrange(60))))
            if self.bad():
                rng.shuffle(entries)
            if self.bad():
                entries *= rng.choice([0, 2])
            self.count += len(entries)
            nodes.append((entries[0][0] if entries else b"", self.noted(self.file.leaf(entries))))
        return nodes

    def value(self, key: bytes) -> Overflow:
        rng, file = self.rng, self.file
        if self.bad():
            return Overflow.make(self.ref(), self.number() * rng.choice([1, 1 << 20]))
        owner = b"other" if self.bad() else key
        if rng.random() < 0.2:
            return file.hollow(owner, rng.choice([1, 300, 3000]) << 10, right=not self.bad())
        if rng.random() < 0.05:
            return file.pieces(owner, rng.randbytes(2) * 140_000, 1 + self.bad())
        large = file.value(owner, rng.randbytes(rng.choice([10, 3000, 90_000])))
        self.noted(large.ref)
        return large

    def branches(self, nodes: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        rng, result = self.rng, []
        width = rng.choice([2, 3, 10])
        for start in range(0, len(nodes), width):
            some = nodes[start : start + width]
            separators, refs = [low for low, _ in some[1:]], [ref for _, ref in some]
            if self.bad():
                refs = [self.ref() if rng.random() < 0.5 else ref for ref in refs] * rng.choice([1, 1, 50])
                separators = [b"k%05d" % number for number in range(len(refs) - 1)]
            if self.bad():
                rng.shuffle(separators)
            if self.bad() and len(separators) > 1:
                separators[1] = separators[0]
            where = {"page_id": rng.randrange(2, self.file.next)} if self.bad() else {}
            result.append((some[0][0], self.noted(self.file.branch(refs, separators, **where))))
        return result

    def noted(self, ref: bytes) -> bytes:
        self.refs.append(ref)
        return ref

    def space(self) -> bytes:
        rng, file = self.rng, self.file
        kind = rng.choice(["none", "none", "any", "log", "maps", "lists"])
        if kind == "none":
            return NO_REF
        if kind == "any":
            return self.ref()
        log = [(self.number(), self.number(), rng.choice([0, 1, 2, 2**63])) for _ in range(rng.choice([1, 5, 300]))]
        if rng.random() < 0.5:
            log = [(max(2, page_id), max(1, count), txid) for page_id, count, txid in log]
        maps, chunks = [], []
        if kind == "maps":
            one = file.run(MAP, 0, 0, rng.randbytes(file.page_size - 36))
            maps = [rng.choice([one, self.ref(), NO_REF]) for _ in range(rng.choice([1, 3, 500]))]
        if kind == "lists":
            count = rng.choice([1, 20, 2**31])
            one = file.run(PENDING, 0, count, b"".join(_EXTENT.pack(self.number(), self.number()) for _ in range(20)))
            chunks = [rng.choice([one, self.ref()]) for _ in range(rng.choice([1, 3, 500]))]
        return file.space(*log, maps=maps, chunks=chunks)


# -- what is asked -------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """Something that one may do with a file. It gets the path of a file of its own."""

    name: str
    run: Callable[[str], object]


def reading(use: Callable[[durabledbm.Database], object]) -> Callable[[str], object]:
    def run(path: str) -> object:
        with durabledbm.open(path, "r") as db:
            return use(db)

    return run


def writing(use: Callable[[durabledbm.Database], object], **options: Any) -> Callable[[str], object]:
    def run(path: str) -> object:
        with durabledbm.open(path, "w", **options) as db:
            use(db)
        with durabledbm.open(path, "r") as db:
            return [len(db), *islice(db, 100)]

    return run


def look_up(db: durabledbm.Database) -> None:
    for key in (b"k00000", b"k01", b"k00017", b"z", b"", b"big", b"right", b"0007"):
        assert (key in db) or db.get(key) is None
        db.nextkey(key)
    db.get_many([b"k%05d" % number for number in range(50)])


def scan(db: durabledbm.Database) -> None:
    for part in (db.items(), db, db.values()):
        try:
            for _ in islice(part, 100_000):
                pass
        except durabledbm.CorruptionError:
            pass
    len(db), list(islice(reversed(db), 1000)), list(islice(db.range(b"k", b"k9"), 1000)), list(islice(db.keys(), 9))
    db.first(), db.last(), db.firstkey()


def range_of_few(db: durabledbm.Database) -> None:
    list(islice(db.range(b"c0100", b"c0120"), 1000))


def put(key: bytes, value: bytes) -> Callable[[durabledbm.Database], None]:
    def use(db: durabledbm.Database) -> None:
        db[key] = value
        assert db[key] == value, "what was acknowledged is not there"

    return use


def transaction(db: durabledbm.Database) -> None:
    with db.transaction():
        for number in range(60):
            db[b"k%05d" % (7 * number)] = b"new" * 20
        for number in range(0, 300, 11):
            db.pop(b"k%05d" % number, None)
        len(db)


def delete_all(db: durabledbm.Database) -> None:
    with db.transaction():
        for key in islice(db, 2000):
            del db[key]


def shrink(db: durabledbm.Database) -> None:
    db.update({b"more %05d" % number: b"x" * 200 for number in range(600)})
    delete_all(db)
    db.setdefault(b"k00003", b"default")
    db.popitem()


def attached(path: str) -> None:
    with durabledbm.open(path, "w") as db, durabledbm.changelog.ChangeLog(path + ".log") as log:
        db.attach(log)
        db[b"k00001"] = b"x" * 3000
        db.update({b"k%05d" % number: b"y" * 30 for number in range(0, 300, 13)})


def copied(path: str) -> None:
    with durabledbm.open(path, "r") as db:
        db.backup(path + ".backup")
    with durabledbm.open(path + ".backup", "r") as db:
        assert db.check() == []


def dumped(path: str) -> None:
    from durabledbm.dump import dump

    with durabledbm.open(path, "r") as db, db.snapshot() as snapshot:
        dump(snapshot, path + ".dump")


def inspected(path: str) -> None:
    from durabledbm.cli.pictures.html import html
    from durabledbm.cli.pictures.svg import svg
    from durabledbm.cli.pictures.terminal import draw
    from durabledbm.maintenance.inspect import inspect

    picture = inspect(path, key=b"k00001")
    inspect(path, key=b"big")
    draw(picture), draw(picture, rows=None, colour=False), svg(picture), html(picture)


def salvaged(path: str) -> None:
    from durabledbm.salvage import salvage

    salvage(path, path + ".salvaged")
    with durabledbm.open(path + ".salvaged", "r") as db:
        assert db.check() == []


OPERATIONS = [
    Operation("get", reading(look_up)),
    Operation("scan", reading(scan)),
    Operation("range", reading(range_of_few)),
    Operation("stats", reading(lambda db: db.stats())),
    Operation("check", reading(lambda db: db.check())),
    Operation("backup", copied),
    Operation("dump", dumped),
    Operation("inspect", inspected),
    Operation("salvage", salvaged),
    Operation("put", writing(put(b"k00001", b"value"))),
    Operation("put large", writing(put(b"x", b"y" * 5000))),
    Operation("put later", writing(put(b"x", b"y" * 5000), durability="manual")),
    Operation("update", writing(lambda db: db.update({b"k%05d" % number: b"z" * 40 for number in range(0, 400, 3)}))),
    Operation("delete", writing(lambda db: db.pop(b"k00002", None))),
    Operation("delete all", writing(delete_all)),
    Operation("transaction", writing(transaction)),
    Operation("shrink", writing(shrink)),
    Operation("clear", writing(lambda db: db.clear())),
    Operation("reorganize", writing(lambda db: db.reorganize())),
    Operation("attach", attached),
]


def refused(operation: Operation, path: str) -> str | None:
    """Why the operation has not ended as it should."""

    def over(number: int, frame: object) -> None:
        raise TooLong

    if sys.platform != "win32":
        signal.signal(signal.SIGPROF, over)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        operation.run(path)
    except (durabledbm.error, KeyError):
        pass
    except BaseException:
        return traceback.format_exc()
    finally:
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def limit_memory() -> None:
    """Let this process take no more than it has and `MEMORY`."""
    if sys.platform == "win32":
        return
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def files(arguments: list[str]) -> Iterator[tuple[str, Forgery, list[Operation]]]:
    """What the command line asks for: a name, the file, and what to do with it."""
    if arguments[0] == "named":
        for name in arguments[1:] or NAMED:
            yield name, NAMED[name](), OPERATIONS
        return
    for seed in range(int(arguments[0]), int(arguments[1])):
        some = OPERATIONS if arguments[2:] == ["all"] else random.Random(seed).sample(OPERATIONS, 5)
        yield f"seed {seed}", _Random(seed).build(), some


def main(arguments: list[str]) -> int:
    inspected_first = tempfile.mkdtemp()  # imports what is imported late, before memory is limited
    Forgery().write(os.path.join(inspected_first, "db"))
    for operation in OPERATIONS:
        refused(operation, os.path.join(inspected_first, "db"))
    shutil.rmtree(inspected_first)
    limit_memory()
    bad = 0
    for name, file, operations in files(arguments):
        meta = dict(file.meta)
        for operation in operations:
            file.meta = dict(meta)
            with tempfile.TemporaryDirectory() as directory:
                path = os.path.join(directory, "db")
                try:
                    file.write(path)
                except OSError as exc:
                    if exc.errno != errno.EFBIG:
                        raise
                    print(f"{name}: this file system has no files of that size")
                    break
                print(f"{name}: {operation.name}", flush=True)
                if (why := refused(operation, path)) is not None:
                    bad += 1
                    print(f"FAILED {name}: {operation.name}\n{why}", flush=True)
    print(f"{bad} failed" if bad else "all is well")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
