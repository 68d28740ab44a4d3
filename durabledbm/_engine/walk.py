"""Every run that a tree consists of: for what must know all pages, such as rebuilding the free space or checking."""

from __future__ import annotations

from collections.abc import Iterator

from .node import Overflow, decode_leaf
from .page import BRANCH, LEAF, OVERFLOW
from .pager import MALFORMED
from .tree import Tree

__all__ = ["walk"]


def walk(tree: Tree) -> Iterator[tuple[bytes, int]]:
    """The ref and the type of each run, parents before children. Raises `CorruptionError`.

    A large value's run is named, not read.
    """
    if tree.depth:
        yield from _below(tree, tree.root, tree.depth)


def _below(tree: Tree, ref: bytes, level: int) -> Iterator[tuple[bytes, int]]:
    if level > 1:
        yield ref, BRANCH
        for child in tree.pager.branch(ref).refs:
            yield from _below(tree, child, level - 1)
        return
    yield ref, LEAF
    try:
        values = decode_leaf(tree.pager.leaf(ref, keep=False))[1]
    except MALFORMED as exc:
        raise tree.pager.malformed(ref, exc) from exc
    for value in values:
        if type(value) is Overflow:
            yield value.ref, OVERFLOW
