"""Kernels give what their twins in Python give, on sound runs and on forged ones, and run only where they should."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple
from zlib import crc32

import pytest
import twins
from hypothesis import given, settings
from hypothesis import strategies as st

from durabledbm._engine import kernels, node, page
from durabledbm._engine.node import Branch, Overflow, decode_leaf, find_value
from durabledbm._engine.page import LEAF

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
SOURCE = Path(kernels.__file__).with_name("_kernels.c")


@pytest.fixture(scope="module")
def compiled() -> Any:
    """The extension module, also where it was built and is not in use."""
    module = pytest.importorskip("durabledbm._engine._kernels", reason="python .ci/kernels.py builds it")
    module.use(Overflow)
    return module


def run_python(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an interpreter with this package."""
    path = os.pathsep.join([str(Path(kernels.__file__).parents[2]), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *argv], env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


# -- which of them runs --------------------------------------------------------------------------------------------


def test_the_environment_chooses_python() -> None:
    told = run_python("-m", "durabledbm", "--version", DURABLEDBM_PURE="1")
    assert told.stdout.endswith(", without kernels)\n"), told


@pytest.mark.parametrize(
    "module", [None, "INTERFACE = 0", "INTERFACE = {interface}\ncrc32c = lambda *args: 0", "1 / 0"]
)
def test_a_module_of_another_version_or_one_that_fails_is_not_used(tmp_path: Path, module: str | None) -> None:
    other = "" if module is None else module.format(interface=kernels.INTERFACE)
    code = f"""
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "durabledbm._engine._kernels":
            return ModuleSpec(name, self) if {module is not None} else sys.exit("tried")
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        try:
            exec({other!r}, module.__dict__)
        except ZeroDivisionError:
            raise ImportError
sys.meta_path.insert(0, Finder())
from durabledbm._engine.kernels import RUNNING
print(RUNNING)
"""
    told = run_python("-c", code, DURABLEDBM_PURE="0")
    if module is None:
        assert told.stderr == "tried\n", told
    else:
        assert told.stdout == "False\n", told


def test_what_has_a_twin_is_replaced_as_a_whole_or_not_at_all(compiled: Any) -> None:
    names = {name for name in dir(compiled) if callable(getattr(compiled, name)) and not name.startswith("_")}
    assert names - {"use", "crc32c"} == kernels.PYTHON.keys()
    for name, function in kernels.PYTHON.items():
        module = sys.modules[function.__module__]
        used = getattr(module, name)
        assert used is (getattr(compiled, name) if kernels.RUNNING else function), name


def test_the_build_is_that_of_the_source(compiled: Any) -> None:
    assert compiled.INTERFACE == kernels.INTERFACE
    assert compiled.SOURCE in (0, crc32(SOURCE.read_bytes()) >> 1), "python .ci/kernels.py builds it anew"


def test_the_layout_is_that_of_the_reference(compiled: Any) -> None:
    assert (page.HEADER.size, page.CRC_SIZE, page.REF.size) == (compiled.HEADER, compiled.CRC, compiled.REF)
    assert (page.LEAF, page.BRANCH, node.HAS_OVERFLOW) == (compiled.LEAF, compiled.BRANCH, compiled.HAS_OVERFLOW)
    assert (node._NARROW_MAX, node.LEAF_OVERHEAD) == (compiled.NARROW_MAX, compiled.LEAF_OVERHEAD)


def test_a_scripted_database_is_the_same_with_kernels_and_without(compiled: Any) -> None:
    told = [run_python(str(SUPPORT / "scripted.py"), "150", DURABLEDBM_PURE=pure) for pure in "01"]
    (own, *files), (reference, *same) = [result.stdout.splitlines() for result in told]
    assert (own, reference) == ("kernels", "Python"), told
    assert files == same
    assert len(files) == 2


# -- how they are built --------------------------------------------------------------------------------------------


def script() -> Any:
    """`.ci/kernels.py`, as a module."""
    spec = importlib.util.spec_from_file_location("building", ROOT / ".ci" / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("compiler", ["a compiler", "none", "one that fails", "none is asked for"])
def test_a_wheel_is_tagged_for_what_it_holds(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []

    class Interface:
        app = SimpleNamespace(display_warning=warnings.append)
        root = str(tmp_path)

    interface = "hatchling.builders.hooks.plugin.interface"
    monkeypatch.setitem(sys.modules, interface, SimpleNamespace(BuildHookInterface=Interface))
    monkeypatch.setenv("DURABLEDBM_PURE", "1" if compiler == "none is asked for" else "0")
    if compiler in ("none", "one that fails"):
        monkeypatch.setenv("CC", str(tmp_path / "none") if compiler == "none" else "false")
    building = script()
    if compiler == "a compiler" and (building.why_not() or not shutil.which("cc")):
        pytest.skip("there is no compiler, or kernels are not for this interpreter")
    (tmp_path / building.SOURCE).parent.mkdir(parents=True)
    (tmp_path / building.SOURCE).write_text("int x;" if compiler == "a compiler" else "")
    hook, data = building.get_build_hook()(), {"force_include": {}, "pure_python": True}
    hook.initialize("standard", data)
    if compiler == "a compiler":
        assert not warnings
        assert re.fullmatch(r"cp310-abi3-\w+", data.pop("tag"))
        ((module, place),) = data.pop("force_include").items()
        assert Path(module).exists()
        assert (place, data) == (building.MODULE.as_posix(), {"pure_python": False})
    else:
        assert "built without kernels" in warnings[0]
        assert data == {"force_include": {}, "pure_python": True}
    hook.finalize("standard", data, "")
    assert not list(tmp_path.rglob("*.so")), "nothing is left in the tree"


# -- they agree ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", twins.ALL, ids=lambda check: check.__name__)
@settings(deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_a_kernel_gives_what_its_twin_gives(compiled: Any, check: Callable[[Any, Random], None], rng: Random) -> None:
    check(compiled, rng)


@pytest.mark.parametrize("seed", range(3))
def test_they_agree_on_much_that_is_drawn(compiled: Any, seed: int) -> None:
    twins.search(compiled, 100, seed)


def leaf_of(entries: dict[bytes, bytes], page_size: int = 4096) -> bytes:
    keys = sorted(entries)
    flags, payload = kernels.PYTHON["encode_leaf"](keys, [entries[key] for key in keys], page_size)
    run: bytes = kernels.PYTHON["seal"](LEAF, flags, len(keys), 2, 1, page_size, payload)
    return run


@pytest.mark.parametrize("size", [4000, 4096, 5000, 65_000, 65_536, 70_000])
def test_entries_larger_than_a_page(compiled: Any, size: int) -> None:
    entries = {b"a": b"1", b"b" * size: b"2", b"c": b"x" * size, b"d": b""}
    keys, values = sorted(entries), [entries[key] for key in sorted(entries)]
    twins.agree(compiled, "encode_leaf", keys, values, 4096)
    twins.agree(compiled, "leaf_ends", keys, values)
    run = leaf_of(entries)
    twins.agree(compiled, "decode_leaf", run)
    for key in (*keys, b"b" * (size - 1), b"b" * (size + 1)):
        twins.agree(compiled, "find_value", run, key)
    for changes in ({b"a": b"x" * size}, {b"b" * size: None}, {b"c": None}, {b"e" * size: b""}):
        twins.agree_on_edit(compiled, run, changes, (0, 30_000, 30_000))


def test_nodes_without_content(compiled: Any) -> None:
    empty = leaf_of({})
    for name in ("decode_leaf", "leaf_keys"):
        twins.agree(compiled, name, empty)
        for run in (b"", empty[:31], empty[:32], empty[:35]):
            twins.agree(compiled, name, run, forged=True)
            with pytest.raises(ValueError, match="a leaf shorter than a header"):
                getattr(compiled, name)(run)
    twins.agree(compiled, "find_value", empty, b"")
    twins.agree_on_edit(compiled, empty, {b"": b""}, (0, 4000, 2000))
    twins.agree_on_edit(compiled, empty, {b"": None}, (0, 4000, 2000))
    ref = bytes(16)
    for nodes in (Branch([], [], b""), b"", Branch([b"a"], [], b"")):
        for depth in (1, 2):
            twins.agree(compiled, "find", {ref: nodes}, twins.Nodes({ref: nodes}), ref, depth, b"a", forged=True)


def test_a_node_of_another_type_is_refused(compiled: Any) -> None:
    leaf = leaf_of({b"key": b"value"})
    below, root = b"leaf" * 4, bytes(16)
    like_a_branch = below + node.encode_branch([], 4096)
    sound, forged = (kernels.PYTHON["seal"](kind, 0, 1, 2, 1, 4096, like_a_branch) for kind in (page.BRANCH, LEAF))
    like_a_leaf = bytes((page.BRANCH,)) + leaf[1:]
    pager = twins.Nodes({})
    assert compiled.find({root: sound, below: leaf}, pager, root, 2, b"key") == b"value"
    with pytest.raises(ValueError, match="a leaf where a branch should be"):
        compiled.find({root: forged, below: leaf}, pager, root, 2, b"key")
    with pytest.raises(ValueError, match="a branch where a leaf should be"):
        compiled.find({root: sound, below: like_a_leaf}, pager, root, 2, b"key")


def test_an_edit_that_grows_too_large_midway(compiled: Any) -> None:
    run = leaf_of({b"a": b"x" * 1000, b"b": b"x" * 1000})
    grown = {b"a": None, b"c": b"x" * 1500}  # from the back: too large before there is room
    fits = {b"a": b"x" * 1500, b"c": None}
    replaced = {b"a": b"", b"b": b"x" * 2500}  # a replacement may be too large for a moment
    for changes in (grown, fits, replaced, {**grown, b"d": b"x" * 2000}):
        for most in (2000, 2500, 2530, 3000, 3500, 4060):
            twins.agree_on_edit(compiled, run, changes, (0, most, 3000))
    assert compiled.edit_leaf(run, grown, sorted(grown), (0, 3000, 3000)) is None
    assert compiled.edit_leaf(run, replaced, sorted(replaced), (0, 3000, 3000)) is not None


def test_keys_of_one_fingerprint_are_told_apart(compiled: Any) -> None:
    keys = twins.fingerprinted_alike(6)
    run = leaf_of({key: key * 2 for key in keys[::2]})
    for key in keys:
        twins.agree(compiled, "find_value", run, key)


def test_an_exception_of_what_a_kernel_calls_goes_through(compiled: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        compiled.edit_leaf(leaf_of({b"a": b"b"}), twins.Interrupting({b"a": b"c"}), [b"a"], (0, 4000, 4000))
    for depth in (1, 2):
        with pytest.raises(AttributeError):
            compiled.find({}, None, bytes(16), depth, b"key")


@pytest.mark.parametrize(
    "name", ["seal", "matches", "find_value", "find_child", "leaf_ends", "encode_leaf", "edit_leaf", "find", "crc32c"]
)
def test_wrong_arguments_raise(compiled: Any, name: str) -> None:
    for count in range(12):
        for argument in (None, -1, 1 << 70, b"", [], {}, [None], (1, 2, 3)):
            if (name, count, argument) != ("leaf_ends", 2, []):
                with pytest.raises((TypeError, ValueError, OverflowError)):
                    getattr(compiled, name)(*[argument] * count)


def test_seal_takes_one_argument_by_name(compiled: Any) -> None:
    args = (LEAF, 0, 3, 7, 9, 4096, b"payload")
    assert compiled.seal(*args, tree=65535) == kernels.PYTHON["seal"](*args, tree=65535)
    for names in ({"tree": 65536}, {"tree": -1}, {"tree": None}, {"kind": 1}, {"tree": 1, "more": 2}):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            compiled.seal(*args, **names)


def test_none_is_counted_also_by_a_build_for_all_versions() -> None:
    """What newer headers take for immortal, older interpreters free when it was returned often enough."""
    assert "Py_RETURN_" not in SOURCE.read_text("utf-8").replace("Not Py_RETURN_NONE", "")


def test_nothing_is_leaked(compiled: Any) -> None:
    rng = Random(5)
    keys, values = [b"k%d" % n for n in range(9)], [b"v"] * 8 + [Overflow.make(bytes(16), 5)]
    key, value = keys[0], values[-1]
    run = leaf_of(dict(zip(keys, values, strict=True)))
    plain = leaf_of(dict.fromkeys(keys, b"v"))
    changes: dict[bytes, Any] = {key: values[0], keys[1]: None, b"none": None, b"wrong": object()}
    ref = bytes(16)
    held = (key, value, run, plain, changes[b"wrong"], ref, Overflow, None)

    def once() -> None:
        compiled.encode_leaf(keys, values, 4096)
        compiled.leaf_ends(keys, values)
        compiled.decode_leaf(run)
        compiled.leaf_keys(run)
        compiled.find_value(run, keys[-1])
        compiled.find({ref: run}, None, ref, 1, key)
        compiled.find({ref: Branch([key], [ref, b"leaf" * 4], b"")}, twins.Nodes({b"leaf" * 4: run}), ref, 2, key)
        for some in ([key], [key, keys[1]], [b"none"], [b"wrong"]):
            compiled.edit_leaf(plain, changes, some, (0, 4000, 10))
        for bad in (run[:40], twins.forged(rng, run)):
            twins.outcome(compiled.decode_leaf, bad)

    once()
    before = [sys.getrefcount(item) for item in held]
    for _ in range(100):
        once()
    after = [sys.getrefcount(item) for item in held]
    assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True)), (before, after)


def test_what_was_found_outlives_the_leaf() -> None:
    keys, values = decode_leaf(leaf_of({b"key": b"value" * 100}))
    value = find_value(leaf_of({b"key": b"value" * 100}), b"key")
    assert (keys, values, value) == ([b"key"], [b"value" * 100], b"value" * 100)


# -- and what would not be noticed ---------------------------------------------------------------------------------


class Mutation(NamedTuple):
    """A bug: `old`, which occurs once in the source, becomes `new`."""

    old: str
    new: str


MUTATIONS = {
    "believe an entry count": Mutation("if (start > size) {", "if (0) {"),
    "believe that there is a header": Mutation("if (size < HEADER + CRC) { refuse", "if (size < 0) { refuse"),
    "believe that offsets ascend": Mutation(" = offset(leaf, i)) < last) {", " = offset(leaf, i)) < 0) {"),
    "believe the last offset": Mutation("if ((Py_ssize_t)last > leaf->room) {", "if (0) {"),
    "believe the first offset": Mutation("if (last) {", "if (0) {"),
    "believe the end of a value": Mutation("if (c < b || (Py_ssize_t)c > leaf.room)", "if (0)"),
    "believe a separator": Mutation("if (b < a || body + b > size)", "if (0)"),
    "believe a count of children": Mutation("if (!count || body > size)", "if (0)"),
    "take a leaf for a branch": Mutation("run_size && run[0] == BRANCH ?", "run_size ?"),
    "take a branch for a leaf": Mutation("size && run[0] == LEAF ?", "size ?"),
    "take any large value": Mutation("|| !leaf->cells[i - leaf->count]) return value", "|| 0) return value"),
    "narrow offsets for entries larger than a page": Mutation("* page_size > NARROW_MAX;", "* page_size > INT32_MAX;"),
    "believe a payload size": Mutation("if (payload != leaf.cells - leaf.data - HEADER + body)", "if (0)"),
    "go on with an edit that is too large midway": Mutation("if (*body > limits[1]) return -2;", ""),
    "go on with an edit that is too large": Mutation("(size > limits[1] || size <", "(size <"),
    "look behind the last change": Mutation("high = edit->at;\n", "high = leaf->count;\n"),
    "forget the checksum": Mutation("&& crc32c(0, run, (size_t)size - CRC) == get32(ref + 12)", ""),
}


def built(source: str, directory: Path) -> Path:
    """A module of its own, from a source."""
    building = script()
    (directory / building.SOURCE).parent.mkdir(parents=True)
    (directory / building.SOURCE).write_text(source)
    target = directory / building.MODULE.name
    problem = building.why_not() or building.build(directory, target, ["-O0"])
    if problem is not None:
        pytest.skip(problem)
    return target


PROBE = """
import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
import twins
sys.path.insert(0, sys.argv[2])
import test_kernels
loader = ExtensionFileLoader("_kernels", sys.argv[1])
module = module_from_spec(ModuleSpec("_kernels", loader, origin=sys.argv[1]))
loader.exec_module(module)
test_kernels.test_an_edit_that_grows_too_large_midway(module)
test_kernels.test_nodes_without_content(module)
test_kernels.test_a_node_of_another_type_is_refused(module)
twins.search(module, 150)
"""


def found_in(source: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return run_python("-c", PROBE, str(built(source, tmp_path)), str(Path(__file__).parent), DURABLEDBM_PURE="1")


LONG = MUTATIONS.keys() - {
    "believe that there is a header",
    "narrow offsets for entries larger than a page",
    "go on with an edit that is too large midway",
}
"""Each takes some seconds."""


def test_without_a_planted_bug_nothing_is_found(tmp_path: Path) -> None:
    result = found_in(SOURCE.read_text("utf-8"), tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in MUTATIONS])
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    source = SOURCE.read_text("utf-8")
    mutation = MUTATIONS[name]
    assert source.count(mutation.old) == 1, "the kernels have changed: the mutation must be written anew"
    result = found_in(source.replace(mutation.old, mutation.new), tmp_path)
    noticed = re.search("^(Assertion|System|Memory)Error|^Failed", result.stderr, re.MULTILINE)
    assert result.returncode < 0 or noticed, result
