"""The parts of an engine, put together around a file in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from simdisk import SimVolume

from durabledbm._engine.freemap import FreeMap
from durabledbm._engine.merge import Change, Merged, merge
from durabledbm._engine.meta import Meta, encode_meta, first_page
from durabledbm._engine.node import Overflow, decode_leaf
from durabledbm._engine.page import NO_REF, REF
from durabledbm._engine.page_writer import PageWriter
from durabledbm._engine.pager import Pager
from durabledbm._engine.tree import PageSet, Tree, Visit, walk

PATH = "/db"
DATABASE_ID = bytes(range(16))


def empty_file(page_size: int = 4096) -> bytes:
    """What a new file holds."""
    meta = Meta(1, page_size, DATABASE_ID, first_page(page_size), steady_txid=1, steady=True)
    return encode_meta(meta) * 2


def leaf_refs(
    tree: Tree, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False
) -> Iterator[bytes]:
    """The refs of the leaves that may hold keys from `start` up to `stop`."""
    return chain.from_iterable(tree._siblings(start, stop, reverse, tree.depth, tree.root))


class Engine:
    """A file in memory, the free space in it, a tree, and a number that counts commits."""

    def __init__(self, page_size: int = 4096, cache_size: int = 1 << 20) -> None:
        self.volume = SimVolume({PATH: empty_file(page_size)})
        self.disk = self.volume.open(PATH, writable=True)
        self.page_size = page_size
        self.pager = Pager(self.disk, page_size, cache_size)
        self.space = FreeMap(page_size, first_page(page_size), first_page(page_size))
        self.txid = 1
        self.tree = Tree(self.pager)
        self.count = 0

    def writer(self) -> PageWriter:
        """The writer of the next commit."""
        self.txid += 1
        return PageWriter(self.disk.writes(), self.pager, self.space, self.txid)

    def merge(self, changes: Mapping[bytes, Change], *, packing: bool = False) -> Merged:
        """Merge changes into the tree, and make the result the tree. What it freed may be used at once."""
        writer = self.writer()
        merged = merge(self.pager, writer, self.tree.root, self.tree.depth, changes, packing=packing)
        writer.release_place()
        self.space.save(self.txid, writer.write)
        self.extents = writer.finish()
        self.space.release(self.txid)
        self.tree = Tree(self.pager, merged.root, merged.depth)
        self.count += merged.growth
        return merged

    def entries(self) -> dict[bytes, bytes]:
        """All that is in the tree."""
        found = {}
        for keys, values, _ in self.tree.chunks(None, None, reverse=False, with_values=True):
            for key, value in zip(keys, values, strict=True):
                assert key not in found
                found[key] = self.pager.value(value, key) if type(value) is Overflow else value
        return found

    def tree_pages(self) -> set[int]:
        """The pages of the tree. No page is in it twice."""
        pages: set[int] = set()
        for visit in self.walk():
            run = set(range(visit.page_id, visit.page_id + visit.page_count))
            assert not run & pages
            pages |= run
        return pages

    def walk(self) -> Iterator[Visit]:
        """All runs of the tree."""
        return walk(self.tree, self.pages())

    def pages(self) -> PageSet:
        """The pages of the file, for a walk to claim. None has been cut off while it was written."""
        return PageSet(first_page(self.page_size), max(self.space.pages.page_count, self.disk.size() // self.page_size))

    def leaves(self) -> list[list[bytes]]:
        """The keys of each leaf."""
        return [decode_leaf(self.pager.leaf(ref, keep=False))[0] for ref in leaf_refs(self.tree)]

    def assert_sound(self) -> None:
        """What is always true of a tree and of the space around it."""
        own = {
            page
            for ref in self.space.own_runs()
            for page in range(REF.unpack(ref)[0], REF.unpack(ref)[0] + REF.unpack(ref)[1])
        }
        free = {page for start, count in self.space.pages.free_runs() for page in range(start, start + count)}
        waiting = {page for _, (start, count) in self.space.pending_runs() for page in range(start, start + count)}
        tree = self.tree_pages()
        everything = set(range(first_page(self.page_size), self.space.pages.page_count))
        assert own | free | waiting | tree == everything
        assert len(own) + len(free) + len(waiting) + len(tree) == len(everything)
        if self.tree.depth:
            self._assert_node(self.tree.root, self.tree.depth, None, None)
        else:
            assert self.tree.root == NO_REF

    def _assert_node(self, ref: bytes, level: int, low: bytes | None, high: bytes | None) -> None:
        if level == 1:
            keys = decode_leaf(self.pager.leaf(ref, keep=False))[0]
            assert keys
            assert keys == sorted(set(keys))
            assert low is None or low <= keys[0]
            assert high is None or keys[-1] < high
            return
        branch = self.pager.branch(ref)
        bounds = [low, *branch.separators, high]
        assert branch.refs
        assert branch.separators == sorted(set(branch.separators))
        for at, child in enumerate(branch.refs):
            self._assert_node(child, level - 1, bounds[at], bounds[at + 1])
