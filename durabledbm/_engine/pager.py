"""The pager: verified reads of runs, through a cache with a limit.

The cache is keyed by ref, that is by place *and* content: a run that was replaced has another ref, so an entry is
never wrong and never needs to be invalidated.

Nothing that was read is used before its checksum, its place and its type are verified against the ref. Any number of
threads may use a pager at once.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO

from .._interrupts import is_from_handler, is_interrupt
from ..errors import CorruptionError, error
from .cache import Generations
from .checksum import crc32c
from .disk.protocol import Readable
from .kernels import RUNNING
from .large_value import INDEX, PIECE, PLACE, WHOLE_VALUE, is_indexed, piece_count, size_of_piece
from .node import Branch, Overflow, decode_branch, find_child
from .node import pieces as cut_up
from .page import BRANCH, CRC_SIZE, HEADER, LEAF, OVERFLOW, REF, matches, mismatch, pages_for, read_header
from .sparse import LONG, crc_if_whole, is_sparse, kept_pages

__all__ = ["MALFORMED", "Pager"]

MALFORMED = (struct.error, ValueError, IndexError, TypeError, OverflowError)
"""What decoding raises on a run whose checksum is right but whose content makes no sense: a file made to hurt."""

_BRANCH_COST = 120
"""Bytes of memory, about, that a child takes in a decoded branch."""

_RAW_MAX = 64
"""Branches that are kept as bytes, in case that they are asked for again."""

_LEAF_RARITY = 4
"""Once the cache is full, one leaf of so many that were read is kept. Keeping costs more than reading: memory that was
not touched for long, for the new leaf, in place of what the last one has just left."""

_AHEAD = 1 << 16
"""Bytes, about, that a scan reads at a time."""

_BEYOND = "the page is beyond the file's end"
_LEAF_INSTEAD = "a leaf where a branch should be"
_CHECKSUM = "the checksum does not match the content"
_OTHER_KEY = "the large value belongs to another key"
_OTHER_RUN = "the page is not the large value that its parent points at"

_CHUNK = 1 << 24
"""Bytes of a large value that are read and checked at a time."""


def _nothing_to_mend(cause: error) -> bool:
    return False


class Pager:
    """Reads of one file. `cache_size` is in bytes; what is in use by readers meanwhile comes on top."""

    __slots__ = (
        "__weakref__", "_disk", "_raw", "mend", "misses", "nodes", "page_size",
    )  # fmt: skip

    def __init__(self, disk: Readable, page_size: int, cache_size: int) -> None:
        self._disk = disk
        self.page_size = page_size
        self.nodes: Generations[bytes | Branch] = Generations(cache_size)
        """Leaves as bytes, branches as bytes or decoded, by ref. Read by the tree directly; written by `keep` only."""
        self._raw: dict[bytes, bytes] = {}
        """Branches as bytes that were searched once, by ref."""
        self.misses = 0
        self.mend: Callable[[error], bool] = _nothing_to_mend
        """Called when a run cannot be read or is not what it should be. It may raise an error that says more; True if
        it has mended something, so that the run is to be read again."""

    def use(self, disk: Readable) -> None:
        """Read from another `Disk` of the same file from now on."""
        self._disk = disk

    def successor(self) -> Pager:
        """Another pager for the same file, which takes over what this one has in memory."""
        other = Pager(self._disk, self.page_size, self.nodes.limit)
        other.nodes, self.nodes = self.nodes, other.nodes
        other._raw, self._raw = self._raw, other._raw
        other.mend = self.mend
        return other

    def file_size(self) -> int:
        """Bytes of the file."""
        return self._disk.size()

    def kept_pages(self) -> int:
        """Pages of the file that take space on the disk."""
        return kept_pages(self._disk, self.page_size)

    def birth(self, ref: bytes) -> int:
        """The commit that wrote the run at `ref`, as its header says; the rest is not read."""
        page_id = REF.unpack(ref)[0]
        head = self._disk.read(HEADER.size, page_id * self.page_size)
        if len(head) < HEADER.size:
            raise self.malformed(ref, _BEYOND)
        txid: int = HEADER.unpack(head)[5]
        return txid

    def branch(self, ref: bytes) -> Branch:
        """The branch at `ref`, decoded."""
        node = self.nodes.young.get(ref)
        if type(node) is Branch:
            return node
        node = node or self.nodes.old.get(ref)
        if not isinstance(node, Branch):
            run = node or self._raw.pop(ref, None) or self.read(ref, BRANCH)
            if run[0] != BRANCH:
                raise self.malformed(ref, _LEAF_INSTEAD)
            try:
                node = decode_branch(run)
            except MALFORMED as exc:
                raise self.malformed(ref, exc) from exc
        self.keep(ref, node)
        return node

    def child(self, ref: bytes, key: bytes) -> bytes:
        """The ref of the child of the branch at `ref` that `key` belongs to.

        Decoding a branch takes longer than reading it, so it is searched as it is at first, and decoded when it is
        asked again: a program that opens a file for one look-up decodes nothing that it does not need. Kernels search
        bytes as fast as lists, and bytes take a sixth of the memory: then only merges and scans decode branches.
        """
        node = self.nodes.young.get(ref) or self.nodes.old.get(ref)
        if node is None and ref not in self._raw:
            node = self.read(ref, BRANCH)
            if not RUNNING:
                if len(self._raw) >= _RAW_MAX:
                    self._raw.clear()
                self._raw[ref] = node
                return find_child(node, key)
        if RUNNING and type(node) is bytes:
            if node[0] != BRANCH:
                raise self.malformed(ref, _LEAF_INSTEAD)
            self.keep(ref, node)
            return find_child(node, key)
        separators, refs, _ = self.branch(ref)
        return refs[bisect_right(separators, key)]

    def leaf(self, ref: bytes, *, keep: bool = True) -> bytes:
        """The sealed run of the leaf at `ref`. `keep` false leaves the cache alone: for long scans."""
        nodes = self.nodes
        node = nodes.young.get(ref)
        if node is None:
            node = nodes.old.get(ref)
            if node is None:
                node = self.read(ref, LEAF)
                keep = keep and not (nodes.old and self.misses % _LEAF_RARITY)
            if keep:
                self.keep(ref, node)
        if type(node) is not bytes or node[0] != LEAF:
            raise self.malformed(ref, "a branch where a leaf should be")
        return node

    def leaves(self, refs: Sequence[bytes]) -> Iterator[bytes]:
        """The sealed runs of the leaves at `refs`, for a scan: the cache is left alone, neighbours are read together.

        Each is verified when it is its turn, so what is damaged does not come before what is not.
        """
        size = self.page_size
        most = _AHEAD // size
        at = 0
        while at < len(refs):
            ref = refs[at]
            low, count, _ = REF.unpack(ref)
            if count > most or ref in self.nodes.young or ref in self.nodes.old:
                yield self.leaf(ref, keep=False)
                at += 1
                continue
            places = [(low, count)]
            high = low + count
            while at + len(places) < len(refs) and high - low < most:
                page_id, count, _ = REF.unpack(refs[at + len(places)])
                if page_id == high and count <= most:
                    high += count
                elif page_id + count == low and count <= most:
                    low = page_id
                else:
                    break
                places.append((page_id, count))
            try:
                run = self._disk.read((high - low) * size, low * size)
            except OSError as exc:
                if is_interrupt(exc):
                    raise
                run = b""  # reading them one by one tells what is wrong
            for page_id, count in places:
                leaf = run[(page_id - low) * size : (page_id - low + count) * size]
                if len(leaf) < count * size or not matches(leaf, refs[at], LEAF):
                    leaf = self.read(refs[at], LEAF)  # which says what is wrong, if it still is
                else:
                    self.misses += 1
                yield leaf
                at += 1

    def keep(self, ref: bytes, node: bytes | Branch) -> None:
        """Put a verified node in the cache."""
        size = _BRANCH_COST * len(node.refs) if isinstance(node, Branch) else len(node)
        self.nodes.put(ref, node, size + 100)

    def clear(self) -> None:
        """Drop everything."""
        self.nodes.clear()
        self._raw = {}

    def read(self, ref: bytes, kind: int) -> bytes:
        """The run at `ref`, from the disk, verified. Raises `CorruptionError`."""
        try:
            return self._read(ref, kind)
        except error as exc:
            if not self.mend(exc):
                raise
        return self._read(ref, kind)

    def _read(self, ref: bytes, kind: int) -> bytes:
        page_id, page_count, _ = REF.unpack(ref)
        size = page_count * self.page_size
        try:
            if size > LONG:
                self._check_long(ref, kind)
            run = self._disk.read(size, page_id * self.page_size) if size <= _CHUNK else b""
            if len(run) == size and matches(run, ref, kind):
                self.misses += 1
                return run
            if len(run) < size:
                run = b"".join(self._pieces(page_id * self.page_size, size))
        except OSError as exc:
            raise error.wrap(exc, self._disk.path) from exc
        except OverflowError as exc:
            raise self.malformed(ref, _BEYOND) from exc
        problem = mismatch(run, ref, (kind,)) if len(run) == size and size else _BEYOND
        if problem is not None:
            raise CorruptionError(problem, path=self._disk.path, page_id=page_id)
        self.misses += 1
        return run

    def value(self, overflow: Overflow, key: bytes) -> bytes:
        """The large value that `overflow` stands for, as the value of `key`, read and verified in pieces."""
        try:
            return self._whole_value(overflow, key)
        except error as exc:
            if not self.mend(exc):
                raise
        return self._whole_value(overflow, key)

    def index(self, overflow: Overflow, key: bytes) -> list[bytes]:
        """The refs of the pieces of a value that is indexed, as the value of `key`. Raises `CorruptionError`."""
        return self.refs_in(self.index_run(overflow, key), key)

    def index_run(self, overflow: Overflow, key: bytes) -> bytes:
        """The run of the index. Raises `CorruptionError`."""
        size = piece_count(overflow.length, len(key)) * REF.size
        if size > LONG and size > self.kept_pages() * REF.size:  # a hole can have any size, and no piece is a hole
            raise self.malformed(overflow.ref, "the index has more pieces than there are pages")
        run = self.read(overflow.ref, OVERFLOW)
        self._check_part(overflow.ref, key, run, INDEX, size)
        return run

    def refs_in(self, run: bytes, key: bytes) -> list[bytes]:
        """The refs in the run of an index that was verified."""
        return cut_up(run[HEADER.size + len(key) : HEADER.size + read_header(run).payload_size], REF.size)

    def piece(self, overflow: Overflow, key: bytes, number: int, ref: bytes) -> memoryview:
        """Piece `number` of an indexed value, which its index says is at `ref`. Raises `CorruptionError`."""
        run, start = self._piece(overflow, key, number, ref)
        return memoryview(run)[start : start + size_of_piece(number, overflow.length, len(key))]

    def check_piece(self, overflow: Overflow, key: bytes, number: int, ref: bytes) -> int:
        """Verify it, and return the commit that wrote it. Raises `CorruptionError`."""
        return read_header(self._piece(overflow, key, number, ref)[0]).txid

    def _piece(self, overflow: Overflow, key: bytes, number: int, ref: bytes) -> tuple[bytes, int]:
        """The run of a piece, and where its part of the value begins."""
        run = self.read(ref, OVERFLOW)
        size = size_of_piece(number, overflow.length, len(key))
        self._check_part(ref, key, run, PIECE, PLACE.size + size)
        start = HEADER.size + len(key)
        if PLACE.unpack_from(run, start)[0] != number:
            raise self.malformed(ref, "the page is another piece of the large value")
        return run, start + PLACE.size

    def _check_part(self, ref: bytes, key: bytes, run: bytes, flags: int, size: int) -> None:
        """Refuse a verified run that is no index, or no piece, of the value of `key`; `size` bytes follow the key."""
        _, own_flags, _, key_size, _, _, page_count, payload = HEADER.unpack_from(run)
        if (
            (own_flags, key_size, payload) != (flags, len(key), len(key) + size)
            or page_count != pages_for(payload, self.page_size)
        ):
            raise self.malformed(ref, _OTHER_RUN)
        if not run.startswith(key, HEADER.size):
            raise self.malformed(ref, _OTHER_KEY)

    def _whole_value(self, overflow: Overflow, key: bytes) -> bytes:
        try:
            if is_indexed(overflow, key):
                whole = BytesIO()  # not a list to be joined: so each piece is read into the memory of the last one
                for number, ref in enumerate(self.index(overflow, key)):
                    whole.write(self.piece(overflow, key, number, ref))
                return whole.getvalue()
            return self._value(overflow, key)
        except OSError as exc:
            raise error.wrap(exc, self._disk.path) from exc
        except MALFORMED as exc:
            if is_from_handler(exc):
                raise
            raise CorruptionError(str(exc), path=self._disk.path) from exc

    def _value(self, overflow: Overflow, key: bytes) -> bytes:
        ref, length = overflow.ref, overflow.length
        page_id, page_count, _ = REF.unpack(ref)
        start, end = page_id * self.page_size, (page_id + page_count) * self.page_size
        at = start + HEADER.size + len(key)
        if end - start <= _AHEAD:
            run = self._disk.read(end - start, start)
            if len(run) < end - start:
                run = b"".join(self._pieces(start, end - start))
                if len(run) < end - start:
                    raise self.malformed(ref, _BEYOND)
            self._check_head(overflow, key, run)
            if not run.startswith(key, HEADER.size):
                raise self.malformed(ref, _OTHER_KEY)
            if not matches(run, ref, OVERFLOW):
                raise self.malformed(ref, _CHECKSUM)
            return run[at - start : at - start + length]
        checksum = self._check_place(overflow, key, start, end)
        if is_sparse(self._disk, start, end):
            self._check_crc(ref, start, end)
        parts = []
        for piece in self._pieces(at, length):
            checksum = crc32c(piece, checksum)
            parts.append(piece)
        tail = b"".join(self._pieces(at + length, end - at - length))
        checksum = crc32c(tail[:-CRC_SIZE], checksum)
        if not checksum.to_bytes(CRC_SIZE, "little") == tail[-CRC_SIZE:] == ref[-CRC_SIZE:]:
            raise self.malformed(ref, _CHECKSUM)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_value(self, overflow: Overflow, key: bytes) -> int:
        """Verify the run that `overflow` refers to, a large value or an index; return the commit that wrote it.

        Raises `CorruptionError`.
        """
        if is_indexed(overflow, key):
            return read_header(self.index_run(overflow, key)).txid
        try:
            page_id, page_count, _ = REF.unpack(overflow.ref)
            start, end = page_id * self.page_size, (page_id + page_count) * self.page_size
            self._check_place(overflow, key, start, end)
            self._check_crc(overflow.ref, start, end)
            return HEADER.unpack(self._disk.read(HEADER.size, start))[5]  # type: ignore[no-any-return]
        except OSError as exc:
            raise error.wrap(exc, self._disk.path) from exc
        except MALFORMED as exc:
            if is_from_handler(exc):
                raise
            raise CorruptionError(str(exc), path=self._disk.path) from exc

    def _check_head(self, overflow: Overflow, key: bytes, head: bytes) -> None:
        """Refuse what does not begin as the run of the value of `key`."""
        ref = overflow.ref
        payload = len(key) + overflow.length
        _, page_count, _ = REF.unpack(ref)
        if len(head) < HEADER.size:
            raise self.malformed(ref, _BEYOND)
        kind, flags, _, key_size, _, _, _, own_payload = HEADER.unpack_from(head)
        if (
            (kind, flags, key_size, own_payload) != (OVERFLOW, WHOLE_VALUE, len(key), payload)
            or (head[8:16], head[24:28]) != (ref[:8], ref[8:12])
            or page_count != pages_for(payload, self.page_size)
        ):
            raise self.malformed(ref, _OTHER_RUN)

    def _check_place(self, overflow: Overflow, key: bytes, start: int, end: int) -> int:
        """Refuse a long run that is not the one of the value of `key`. The checksum of its header and key.

        A value stands beside its key, so no two keys have it in common, and no scan comes to it twice.
        """
        ref = overflow.ref
        if end > self._disk.size():
            raise self.malformed(ref, _BEYOND)
        head = self._disk.read(HEADER.size, start)
        self._check_head(overflow, key, head)
        checksum, at = crc32c(head), 0
        for piece in self._pieces(start + HEADER.size, len(key)):
            if piece != key[at : at + len(piece)]:
                raise self.malformed(ref, _OTHER_KEY)
            checksum = crc32c(piece, checksum)
            at += len(piece)
        return checksum

    def _check_long(self, ref: bytes, kind: int) -> None:
        """Look at a long run before memory is taken for it: where it is sparse it must be verified first."""
        page_id, page_count, _ = REF.unpack(ref)
        start, end = page_id * self.page_size, (page_id + page_count) * self.page_size
        if end > self._disk.size():
            raise self.malformed(ref, _BEYOND)
        head = self._disk.read(HEADER.size, start)
        if len(head) < HEADER.size or (head[0], head[8:16], head[24:28]) != (kind, ref[:8], ref[8:12]):
            raise self.malformed(ref, "the page is not the one that its parent points at")
        if is_sparse(self._disk, start, end):
            self._check_crc(ref, start, end)

    def _check_crc(self, ref: bytes, start: int, end: int) -> None:
        if crc_if_whole(self._disk, start, end - start) != ref[-CRC_SIZE:]:
            raise self.malformed(ref, _CHECKSUM)

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        """Read `size` bytes in pieces, fewer if the file ends before. A read may stop short; 0 bytes is the end."""
        end = offset + size
        while offset < end:
            piece = self._disk.read(min(end - offset, _CHUNK), offset)
            if not piece:
                return
            yield piece
            offset += len(piece)

    def malformed(self, ref: bytes, what: object) -> CorruptionError:
        """The error for a run, or something below it, that makes no sense. If `what` is an interrupt, it is raised."""
        if isinstance(what, BaseException) and is_from_handler(what):
            raise what
        return CorruptionError(str(what), path=self._disk.path, page_id=REF.unpack(ref)[0])
