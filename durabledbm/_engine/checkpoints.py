"""Checkpoints: commits that are kept under names, and whose pages are not reused.

A page is part of a tree from the commit that wrote it, its *birth*, which its header names, to the commit that frees
it; it never comes back into a tree that it has left. So what a commit frees is needed by a checkpoint if and only if
its birth is not after the newest checkpoint, and then it is simply not freed: it counts as in use. Nothing is recorded
but the checkpoints themselves, in the catalog, and the number of the newest one, in the meta page.

Dropping a checkpoint frees the runs that its neighbours do not have: those that are not in the next newer trees, which
are another checkpoint's or the present ones, and whose birth is after the next older checkpoint. They are found by
comparing the trees from above; subtrees that are shared, or older, are not entered. So it costs what differs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from .._interrupts import is_from_handler
from .catalog import CATALOG, CHECKPOINTS, Kept, TableKey
from .large_value import is_indexed
from .merge import Touch
from .node import Overflow, decode_branch, decode_leaf, has_overflow
from .page import BRANCH, LEAF, read_header
from .pager import MALFORMED, Pager
from .tree import Tree, Visit, walk
from .view import State, TableView, View

__all__ = [
    "changed_checkpoints", "checkpoints", "freed_by_dropping", "has_checkpoints", "runs_not_in_newer", "trees_of",
    "walk_all",
]  # fmt: skip

_KIND = CHECKPOINTS[len(CATALOG) :]


def checkpoints(view: View) -> dict[str, Kept]:
    """All checkpoints that a view knows, the oldest first. Raises `CorruptionError` if the catalog makes no sense."""
    found = {}
    for key, value in TableView(view, CATALOG).items(_KIND, bytes([_KIND[0] + 1])):
        try:
            found[key[len(_KIND) :].decode()] = Kept.unpack(value)
        except MALFORMED as exc:
            if is_from_handler(exc):
                raise
            raise view.tree.pager.malformed(view.tables.root, exc) from exc
    return dict(sorted(found.items(), key=lambda item: item[1].txid))


def trees_of(kept: Kept, pager: Pager) -> tuple[Tree, Tree]:
    """The trees that a checkpoint keeps."""
    return Tree(pager, kept.root, kept.depth), Tree(pager, kept.tables_root, kept.tables_depth)


def has_checkpoints(changes: Iterable[bytes]) -> bool:
    """Whether checkpoints may be made or dropped by these changes."""
    return any(type(key) is TableKey and key.startswith(CHECKPOINTS) for key in changes)


def changed_checkpoints(old: State, changes: Mapping[bytes, object]) -> tuple[list[str], int]:
    """The checkpoints, the oldest first, that the changes drop or replace; and the newest one after them."""
    if not has_checkpoints(changes):
        return [], old.meta.checkpoint_txid
    before = checkpoints(old.view)
    named: dict[str, object] = {}
    for key, value in changes.items():
        if type(key) is not TableKey or not key.startswith(CHECKPOINTS) or isinstance(value, Touch):
            continue
        if value != old.view.get(key):  # else it only moves, from the meta page into the tree
            named[key[len(CHECKPOINTS) :].decode()] = value
    stay = [checkpoint.txid for name, checkpoint in before.items() if name not in named]
    added = [Kept.unpack(value).txid for value in named.values() if type(value) is bytes]
    return [name for name in before if name in named], max([0, *stay, *added])


def freed_by_dropping(old: State, dropped: Sequence[str]) -> list[bytes]:
    """The refs of runs that nothing needs when these checkpoints are dropped."""
    gone: list[bytes] = []
    older_txid = 0
    for name, checkpoint in checkpoints(old.view).items() if dropped else ():
        if name in dropped:
            gone += runs_not_in_newer(old, name, older_txid)
        else:
            older_txid = checkpoint.txid
    return gone


def runs_not_in_newer(state: State, name: str, older_txid: int = 0) -> Iterator[bytes]:
    """The refs of the runs that a checkpoint has, and neither the next newer one (or the present, if it is the newest)
    nor commit `older_txid`.
    """
    found, pager = checkpoints(state.view), state.view.tree.pager
    order = list(found)
    place = order.index(name) + 1
    newer = trees_of(found[order[place]], pager) if place < len(order) else state.view.trees()
    for tree, other in zip(trees_of(found[name], pager), newer, strict=True):
        yield from exclusive_runs(tree, other, older_txid)


def exclusive_runs(tree: Tree, newer: Tree, older_txid: int) -> Iterator[bytes]:
    """The refs of the runs of a tree that the `newer` one has not, and no tree of commit `older_txid` has.

    Level by level: a run that both have leads to nothing that one of them has alone.
    """
    pager = tree.pager
    mine: list[bytes] = []
    theirs: list[bytes] = []
    for level in range(max(tree.depth, newer.depth), -1, -1):
        if level and level == tree.depth:
            mine = [tree.root]
        if level and level == newer.depth:
            theirs = [newer.root]
        shared = set(mine) & set(theirs)
        mine = [ref for ref in mine if ref not in shared]
        theirs = [ref for ref in theirs if ref not in shared]
        below: list[bytes] = []
        for ref in mine:
            if level:
                run = pager.read(ref, BRANCH if level > 1 else LEAF)
                if read_header(run).txid <= older_txid:
                    continue
                below += _below(pager, run, level)
            elif pager.birth(ref) <= older_txid:
                continue
            yield ref
        wanted = below or tree.depth < level
        theirs = [
            child for ref in theirs for child in _below(pager, pager.read(ref, BRANCH if level > 1 else LEAF), level)
        ] if wanted and level else []
        mine = below


def _below(pager: Pager, run: bytes, level: int) -> list[bytes]:
    """The refs of what a branch, or a leaf, leads to: of large values also the pieces."""
    if level > 1:
        return decode_branch(run).refs
    refs: list[bytes] = []
    for key, value in zip(*decode_leaf(run), strict=True) if has_overflow(run) else ():
        if type(value) is Overflow:
            refs.append(value.ref)
            if is_indexed(value, key):
                refs += pager.refs_in(pager.index_run(value, key), key)
    return refs


def walk_all(state: State, but: Container[str] = ()) -> Iterator[Visit]:
    """Visit the runs of all trees of a state and of its checkpoints, `but` some, each once.

    Raises `CorruptionError` for damage.
    """
    pages = state.pages()
    for tree in state.view.trees():
        yield from walk(tree, pages)
    for name, kept in reversed(checkpoints(state.view).items()):
        for tree in trees_of(kept, state.view.tree.pager) if name not in but else ():
            yield from walk(tree, pages, shared=True)
