"""The differences between two states of one database, found by comparing their trees.

A commit copies what it changes and shares the rest. So two trees of one file share every subtree that no commit between
them touched, and a shared subtree is recognized by its ref: place and checksum are equal, and so is everything below.
Comparing costs what changed, not what exists, and needs no record of the changes. Everything is read and verified
through refs: if a page of the older tree has been reused, that is a `CorruptionError`, never a wrong answer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import lt

from .._engine.catalog import CATALOG, TableKey, prefix_of
from .._engine.node import Overflow, decode_leaf
from .._engine.pager import MALFORMED, Pager
from .._engine.tree import Tree
from .._engine.view import State, View

__all__ = ["differences", "table_differences", "tree_differences"]

_Node = tuple[bytes, bytes]
"""A low, which no key in or below the node is smaller than, and a ref."""

_GROUP = 4096
"""So many nodes of one level are compared at once; more are first cut into ranges of keys."""


def differences(
    old: Tree, new: State, suspects: Iterable[bytes] = ()
) -> Iterator[tuple[bytes, bytes | None]]:
    """Keys of the main table with their values in `new` (None: no value): all whose value differs from that in `old`,
    and some others.

    `suspects` are keys to report in any case. Each key is reported once.
    """
    view = new.view
    named = {key for key in (*suspects, *new.meta.changes) if type(key) is bytes}
    for key in sorted(named):
        yield key, view.get(key)
    for key, value in tree_differences(old, view.tree):
        if key not in named:
            yield key, view.tree.pager.value(value, key) if type(value) is Overflow else value


def table_differences(
    old: View, new: State, suspects: Iterable[bytes] = ()
) -> Iterator[tuple[bytes, bytes | None]]:
    """The same of all other tables. The keys are `TableKey`s, without those of the catalog. Deletions come first: a
    table that was emptied and filled again has two ids, and what is deleted under one may be there under the other.
    """
    view = new.view
    named = sorted({bytes(key) for key in (*suspects, *new.meta.changes) if type(key) is TableKey})
    values = {key: view.get(TableKey(key)) for key in named if prefix_of(key) != CATALOG}
    for deleted in (True, False):
        for key, value in values.items():
            if (value is None) is deleted:
                yield TableKey(key), value
        for key, value in tree_differences(old.tables, view.tables):
            if (value is None) is deleted and key not in values and prefix_of(key) != CATALOG:
                yield TableKey(key), view.tree.pager.value(value, key) if type(value) is Overflow else value


def tree_differences(old: Tree, new: Tree) -> Iterator[tuple[bytes, bytes | None]]:
    """The keys whose leaf entries differ, ascending, with what the leaf of `new` holds (None: nothing)."""
    if not (old.depth and new.depth):
        for keys, values, _ in new.chunks(None, None, reverse=False, with_values=True):
            yield from zip(keys, values, strict=True)
        for keys, _, _ in old.chunks(None, None, reverse=False, with_values=False):
            yield from ((key, None) for key in keys)
    elif old.root != new.root:
        level = min(old.depth, new.depth)
        olds, news = _at_level(old, level), _at_level(new, level)
        yield from _compared(new.pager, olds, news, level)


def _at_level(tree: Tree, level: int) -> list[_Node]:
    """All nodes at that level of the tree. Leaves are at level 1."""
    nodes = [(b"", tree.root)]
    for _ in range(tree.depth - level):
        nodes = _children(tree.pager, nodes)
    return nodes


def _compared(
    pager: Pager, olds: list[_Node], news: list[_Node], level: int
) -> Iterator[tuple[bytes, bytes | None]]:
    """Compare nodes of one level that cover the same range of keys."""
    olds, news = _unshared(olds, news)
    if len(olds) + len(news) > _GROUP and (parts := _cut(olds, news)) is not None:
        for some_olds, some_news in parts:
            yield from _compared(pager, some_olds, some_news, level)
    elif level > 1:
        yield from _compared(pager, _children(pager, olds), _children(pager, news), level - 1)
    else:
        yield from _merged(_entries(pager, olds), _entries(pager, news))


def _children(pager: Pager, nodes: list[_Node]) -> list[_Node]:
    children: list[_Node] = []
    for low, ref in nodes:
        branch = pager.branch(ref)
        children += zip([low, *branch.separators], branch.refs, strict=True)
    lows = [low for low, _ in children]
    if not all(map(lt, lows, lows[1:])):  # else a branch that is its own child would lead to ever more of them
        raise pager.malformed(nodes[0][1], "the separators are out of order")
    return children


def _unshared(olds: list[_Node], news: list[_Node]) -> tuple[list[_Node], list[_Node]]:
    """The nodes that are not in both lists."""
    shared = {ref for _, ref in olds} & {ref for _, ref in news}
    if not shared:
        return olds, news
    return [node for node in olds if node[1] not in shared], [node for node in news if node[1] not in shared]


def _cut(olds: list[_Node], news: list[_Node]) -> Iterator[tuple[list[_Node], list[_Node]]] | None:
    """The nodes in parts, cut where a node begins in both lists; None if there is no such place.

    A node never extends beyond the low of the next one in its list, also where shared nodes are left out.
    """
    common = sorted({low for low, _ in olds} & {low for low, _ in news})
    step = max(1, len(common) * _GROUP // (4 * (len(olds) + len(news))))
    bounds = common[step::step]
    if not bounds:
        return None
    return _parts(olds, news, bounds)


def _parts(
    olds: list[_Node], news: list[_Node], bounds: list[bytes]
) -> Iterator[tuple[list[_Node], list[_Node]]]:
    old_lows, new_lows = [low for low, _ in olds], [low for low, _ in news]
    old_at = new_at = 0
    for bound in bounds:
        old_end, new_end = bisect_left(old_lows, bound, old_at), bisect_left(new_lows, bound, new_at)
        yield olds[old_at:old_end], news[new_at:new_end]
        old_at, new_at = old_end, new_end
    yield olds[old_at:], news[new_at:]


def _entries(pager: Pager, leaves: list[_Node]) -> Iterator[tuple[list[bytes], list[bytes]]]:
    highs: list[bytes | None] = [*(low for low, _ in leaves[1:]), None] if leaves else []
    for (low, ref), high in zip(leaves, highs, strict=True):
        try:
            keys, values = decode_leaf(pager.leaf(ref, keep=False))
        except MALFORMED as exc:
            raise pager.malformed(ref, exc) from exc
        if not keys:
            raise pager.malformed(ref, "an empty leaf")
        if keys[0] < low or (high is not None and keys[-1] >= high):
            raise pager.malformed(ref, "keys lie outside of the parent's separators")
        yield keys, values


def _merged(
    olds: Iterator[tuple[list[bytes], list[bytes]]], news: Iterator[tuple[list[bytes], list[bytes]]]
) -> Iterator[tuple[bytes, bytes | None]]:
    """The entries of the new leaves that the old ones lack, and the keys (with None) that only the old ones have."""
    waiting: dict[bytes, bytes] = {}
    """Old entries that the new leaves have not come to yet."""
    order: list[bytes] = []
    for keys, values in news:
        last = keys[-1]
        while not order or order[-1] <= last:
            more = next(olds, None)
            if more is None:
                break
            order += more[0]
            waiting.update(zip(*more, strict=True))
        end = bisect_right(order, last)
        gone = {key: waiting.pop(key) for key in order[:end]}
        del order[:end]
        entries = zip(keys, values, strict=True)
        changed: dict[bytes, bytes | None] = {k: v for k, v in entries if not _same(gone.pop(k, None), v)}
        if gone:
            changed.update(dict.fromkeys(gone))
            yield from sorted(changed.items())
        else:
            yield from changed.items()
    for key in order:
        yield key, None
    for keys, _ in olds:
        for key in keys:
            yield key, None


def _same(old: bytes | None, new: bytes) -> bool:
    return old == new and type(old) is type(new)
