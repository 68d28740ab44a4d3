"""Kernels beside their twins: each gives what the Python function gives (see `durabledbm._engine.kernels`).

The functions below draw their input from a `random.Random`, which may be Hypothesis's. On sound input the two must
agree in everything, types included. On forged input a kernel may also refuse what its twin does not look at; but what
it returns, the twin returns, too.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import partial
from random import Random
from typing import Any, NoReturn
from zlib import crc32

from durabledbm._engine.balance import Splitter, inline_max
from durabledbm._engine.checksum import crc32c
from durabledbm._engine.kernels import PYTHON
from durabledbm._engine.node import Branch, Overflow, decode_branch, encode_branch, separator
from durabledbm._engine.page import BRANCH, CRC_SIZE, HEADER, LEAF, REF
from durabledbm._engine.pager import MALFORMED
from durabledbm._engine.tree import find

assert find  # its module is imported, so that all twins are known

REFUSED = object()

PAGE_SIZES = (4096, 8192, 65536)


def outcome(function: Any, *args: Any) -> object:
    """What the function returns, with its types; or `REFUSED`."""
    try:
        return typed(function(*args))
    except MALFORMED:
        return REFUSED


def typed(result: Any) -> object:
    if type(result) in (list, tuple):
        return type(result), [typed(item) for item in result]
    return type(result), result


def agree(kernels: Any, name: str, *args: Any, forged: bool = False, **named: Any) -> None:
    own, reference = (outcome(partial(which, **named), *args) for which in (getattr(kernels, name), PYTHON[name]))
    if forged and own is REFUSED:
        return
    assert own == reference, f"{name}{args!r}"
    assert forged or own is not REFUSED, f"{name}{args!r}"


# -- input ---------------------------------------------------------------------------------------------------------


def entries(rng: Random, page_size: int) -> tuple[list[bytes], list[bytes]]:
    """The entries of a leaf, some of them empty, or larger than a page, or large values elsewhere."""
    count = rng.choice((0, 1, 2, 3, 8, 30))
    if rng.random() < 0.3:  # all of one size, as in many databases
        keys = sorted({rng.randbytes(16) for _ in range(count)})
        return keys, [rng.randbytes(100) for _ in keys]
    keys = sorted({rng.randbytes(rng.choice((0, 1, 2, 8, 16, 40, 300))) for _ in range(count)})
    longest = page_size + 100 if rng.random() < 0.3 else 900
    values = [rng.randbytes(rng.choice((0, 1, 9, 100, longest))) for _ in keys]
    if rng.random() < 0.3:
        values = [Overflow.make(rng.randbytes(16), 7) if rng.random() < 0.4 else value for value in values]
    return keys, values


def leaf(rng: Random) -> tuple[bytes, list[bytes]]:
    """A sealed leaf, and its keys."""
    page_size = rng.choice(PAGE_SIZES)
    keys, values = entries(rng, page_size)
    flags, payload = PYTHON["encode_leaf"](keys, values, page_size)
    return PYTHON["seal"](LEAF, flags, len(keys), rng.getrandbits(40), 7, page_size, payload), keys


def forged(rng: Random, run: bytes) -> bytes:
    """The run with a few other bytes where they hurt most: in the header, in the tables; or cut off."""
    if rng.random() < 0.1:
        return run[: rng.choice((0, 1, 31, 32, 35, 36, len(run) // 2))]
    body = bytearray(run)
    count = int.from_bytes(run[4:8], "little")
    for _ in range(rng.choice((1, 1, 2, 4))):
        tables = (32, min(32 + 6 * count + 4, len(run)))
        low, high = rng.choice(((1, 2), (4, 8), (28, 32), tables, tables, tables, (32, len(run))))
        at = rng.randrange(low, max(high, low + 1))
        fixed = rng.choice((b"\0", b"\1", b"\xff", b"\0\0", b"\xff\xff", b"\xff\xff\xff\xff"))
        new = rng.choice((fixed, fixed, rng.randbytes(1), rng.randbytes(2)))
        body[at : at + len(new)] = new
    return bytes(body[: len(run)])


def wanted(rng: Random, keys: list[bytes]) -> list[bytes]:
    """Keys to look for: some that are there, some that are not."""
    return [*rng.sample(keys, min(len(keys), 3)), rng.randbytes(16), b""]


# -- what must be so -----------------------------------------------------------------------------------------------


def checksums(kernels: Any, rng: Random) -> None:
    data = rng.randbytes(rng.choice((0, 1, 3, 4, 7, 8, 9, 100, 4079, 4080, 4081, 4092, 9000)))
    value = rng.getrandbits(32)
    assert kernels.crc32c(data, value) == crc32c(data, value)


def runs(kernels: Any, rng: Random) -> None:
    payload = [rng.randbytes(rng.choice((0, 1, 100, 4060, 5000))) for _ in range(rng.choice((0, 1, 3)))]
    numbers = rng.getrandbits(8), rng.getrandbits(8), rng.getrandbits(32), rng.getrandbits(64), rng.getrandbits(64)
    page_size = rng.choice(PAGE_SIZES)
    agree(kernels, "seal", *numbers, page_size, *payload)
    agree(kernels, "seal", *numbers, page_size, *payload, tree=rng.getrandbits(16))
    run = PYTHON["seal"](*numbers, page_size, *payload)
    ref = REF.pack(numbers[3], len(run) // page_size, int.from_bytes(run[-CRC_SIZE:], "little"))
    at, bit = rng.randrange(REF.size), 1 << rng.randrange(8)
    other = ref[:at] + bytes((ref[at] ^ bit,)) + ref[at + 1 :]
    at = rng.randrange(len(run))
    damaged = run[:at] + bytes((run[at] ^ bit,)) + run[at + 1 :]
    for some in (run, damaged, run[:-page_size], run[: HEADER.size], b""):
        for kind in (numbers[0], numbers[0] ^ 1):
            agree(kernels, "matches", some, ref, kind)
            agree(kernels, "matches", some, other, kind)
    # What lacks a header may end in its own checksum, and have it in the ref.
    crc = crc32c(run[:8]).to_bytes(CRC_SIZE, "little")
    agree(kernels, "matches", run[:8] + crc, ref[:12] + crc, numbers[0])


def leaves(kernels: Any, rng: Random) -> None:
    page_size = rng.choice(PAGE_SIZES)
    keys, values = entries(rng, page_size)
    agree(kernels, "leaf_ends", keys, values)
    agree(kernels, "encode_leaf", keys, values, page_size)
    run, keys = leaf(rng)
    agree(kernels, "decode_leaf", run)
    agree(kernels, "leaf_keys", run)
    for key in wanted(rng, keys):
        agree(kernels, "find_value", run, key)


def forged_leaves(kernels: Any, rng: Random) -> None:
    run, keys = leaf(rng)
    run = forged(rng, run)
    agree(kernels, "decode_leaf", run, forged=True)
    agree(kernels, "leaf_keys", run, forged=True)
    for key in wanted(rng, keys):
        agree(kernels, "find_value", run, key, forged=True)


def edits(kernels: Any, rng: Random, *, forging: bool = False) -> None:
    run, keys = leaf(rng)
    page_size = rng.choice(PAGE_SIZES)
    if forging:
        run = forged(rng, run)
    sizes = (0, 1, 100, 800, 2500, 6000)
    changes: dict[bytes, Any] = {}
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        key = rng.choice(keys) if keys and rng.random() < 0.6 else rng.randbytes(rng.choice((0, 1, 16, 3000)))
        changes[key] = None if rng.random() < 0.3 else rng.randbytes(rng.choice(sizes))
    if rng.random() < 0.1:
        changes[key] = rng.choice((Overflow.make(bytes(16), 9), object()))
    splitter = Splitter(page_size, packing=False)
    usual = splitter.underfull_below, page_size - HEADER.size - CRC_SIZE, inline_max(page_size)
    # With the last ones the leaf may grow too large after some of the changes, and be small enough after all.
    limits = rng.choice((usual, (0, min(page_size, 20_000), 100_000), (0, min(len(run) // 2, 30_000), 100_000)))
    agree_on_edit(kernels, run, changes, limits, forged=forging)


def forged_edits(kernels: Any, rng: Random) -> None:
    edits(kernels, rng, forging=True)


def agree_on_edit(kernels: Any, run: bytes, changes: Any, limits: Any, *, forged: bool = False) -> None:
    def joined(edit: Any) -> Any:
        def result(*args: Any) -> Any:
            edited = edit(*args)
            return edited and (*edited[:2], b"".join(edited[2]))

        return result

    args = run, changes, sorted(changes), limits
    own, reference = outcome(joined(kernels.edit_leaf), *args), outcome(joined(PYTHON["edit_leaf"]), *args)
    assert own == reference or (forged and own is REFUSED), (str(own)[:200], str(reference)[:200], args)


def branch(separators: list[bytes], refs: list[bytes]) -> bytes:
    """A sealed branch."""
    parts = b"".join(refs), encode_branch(separators, 4096)
    return PYTHON["seal"](BRANCH, 0, len(refs), 3, 7, 4096, *parts)  # type: ignore[no-any-return]


def branches(kernels: Any, rng: Random) -> None:
    longest = rng.choice((16, 300, 3000))  # the last makes a run of more than 65,536 bytes
    separators = sorted({rng.randbytes(rng.choice((1, 2, longest))) for _ in range(rng.choice((0, 1, 2, 30, 60)))})
    run = branch(separators, [rng.randbytes(REF.size) for _ in range(len(separators) + 1)])
    for key in (*wanted(rng, separators), b"\xff" * 20):
        agree(kernels, "find_child", run, key)
        agree(kernels, "find_child", forged(rng, run), key, forged=True)


class Nodes:
    """A pager of nodes in memory, as far as `find` needs one."""

    def __init__(self, nodes: dict[bytes, Any]) -> None:
        self.nodes = nodes

    def child(self, ref: bytes, key: bytes) -> bytes:
        node = self.nodes.get(ref, b"")
        if type(node) is bytes:
            if not node or node[0] != BRANCH:
                raise ValueError
            node = decode_branch(node)
        return node.refs[bisect_right(node.separators, key)]  # type: ignore[no-any-return]

    def leaf(self, ref: bytes) -> bytes:
        node = self.nodes.get(ref, b"")
        if type(node) is not bytes or not node or node[0] != LEAF:
            raise ValueError
        return node


def descents(kernels: Any, rng: Random, *, forging: bool = False) -> None:
    keys = sorted({rng.randbytes(rng.choice((1, 2, 16))) for _ in range(40)})
    nodes: dict[bytes, Any] = {}
    level: list[tuple[bytes, bytes]] = []
    for at in range(0, len(keys), 7):
        some = keys[at : at + 7]
        flags, payload = PYTHON["encode_leaf"](some, some, 4096)
        ref = b"leaf" + at.to_bytes(12, "little")
        nodes[ref] = PYTHON["seal"](LEAF, flags, len(some), at, 1, 4096, payload)
        level.append((separator(keys[at - 1], some[0]) if at else b"", ref))
    depth = 1
    while len(level) > 1:
        above = []
        for at in range(0, len(level), 3):
            lows, refs = zip(*level[at : at + 3], strict=True)
            ref = b"branch" + bytes((depth, at)) + bytes(8)
            sealed = rng.random() < 0.5
            nodes[ref] = branch(list(lows[1:]), list(refs)) if sealed else Branch(list(lows[1:]), list(refs), b"")
            above.append((lows[0], ref))
        level, depth = above, depth + 1
    if forging:
        ref = rng.choice(list(nodes))
        run = rng.choice([node for node in nodes.values() if type(node) is bytes])
        replacements = (Branch([], [], b""), Branch([b"a"] * 9, [ref], b""), b"", run, forged(rng, run))
        nodes[ref] = rng.choice(replacements)
        if rng.random() < 0.3:  # a branch among the leaves, or the other way round
            nodes[rng.choice(list(nodes))] = rng.choice(list(nodes.values()))
    young = {ref: node for ref, node in nodes.items() if rng.random() < 0.6}
    for key in wanted(rng, keys):
        agree(kernels, "find", young, Nodes(nodes), level[0][1], depth, key, forged=forging)


def forged_descents(kernels: Any, rng: Random) -> None:
    descents(kernels, rng, forging=True)


ALL = (checksums, runs, leaves, forged_leaves, edits, forged_edits, branches, descents, forged_descents)


def search(kernels: Any, rounds: int, seed: int = 1) -> None:
    """All of them, so many times."""
    kernels.use(Overflow)
    rng = Random(seed)
    for _ in range(rounds):
        for check in ALL:
            check(kernels, rng)


class Interrupting(dict[bytes, bytes]):
    """A mapping that raises when it is read."""

    def __getitem__(self, key: bytes) -> NoReturn:
        raise KeyboardInterrupt


def fingerprinted_alike(count: int) -> list[bytes]:
    """So many keys with the same fingerprint."""
    keys = (b"key %d" % number for number in range(count * 1000))
    return sorted([key for key in keys if crc32(key) & 0xFF == 0][:count])
