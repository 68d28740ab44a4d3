"""How the source is kept: layers, sizes, exports, words. The rules are data here, and nothing else enforces them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "durabledbm"

LINES_OF_A_FILE = 600
LINES_OF_A_FUNCTION = 60

LAYERS = """
_interrupts
errors  _files.arguments  _process.caller_context  sharded.threads
_messages
_engine.allocator  _engine.cache  _engine.catalog  _engine.checksum  _engine.disk.protocol  _engine.kernels
_engine.disk.posix  _engine.page  _engine.threads
_engine.disk.windows  _engine.freemap  _engine.locks  _engine.meta  _engine.node  _engine.sparse
_engine.disk.kernel32  _engine.large_value  _engine.recovery
_engine.pager
_engine.disk  _engine.files  _engine.page_writer  _engine.readers  _engine.tree
_engine.balance  _engine.value_writer  _engine.view
_engine.changeset  _engine.merge
_engine.tables  _engine.checkpoints
_engine.bulkload  _engine.shrink  _engine.spill  _engine.store
_engine.flusher  _engine.prepare
_engine.commit
_engine.pipeline
_engine.deferred_commit  _engine.group_commit
_engine.durability
_process.handles  _process.children.*  _transaction_context  shelve.lock  shelve.writeback  streams
_value_stream  mapping
_files.intact_pages  _files.sorting  _files.temporary  _files.tree_diff
_files.publish  _log.records  _log.overlay
_log.files  _foreign.kinds  _foreign.file
_log.writer  _log.streams  _foreign.berkeley  _foreign.dumb  _foreign.gnu  _foreign.lmdb
_files.opening  _foreign.sources
table
snapshot  transaction  maintenance.check  maintenance.reorganize  maintenance.stats  maintenance.backup
attach  checkpoint  closing  maintenance.file_map
changelog  maintenance.survey
database  maintenance.inspect
sharded.manifest  salvage  stdlib  remote.*
sharded.views
sharded.tables
dump  sharded  shelve
restore  migration  reshard
export
__init__
cli.*
__main__
"""
"""Bottom first. A module imports only from the rows above its own; modules of one row do not know each other.
`name.*` is a package whose modules may import each other, but not in circles."""

TOUCHES_THE_SYSTEM = {
    "_engine.disk.posix": "it is the system's interface",
    "_engine.disk.kernel32": "it is the system's interface on Windows",
    "_engine.disk.windows": "it is the system's interface on Windows",
    "_engine.disk.protocol": "os.stat_result only: a type",
    "_engine.files": "os.path only: a name in the same directory",
    "_engine.kernels": "os.environ only: DURABLEDBM_PURE",
    "_engine.node": "io.BytesIO only: bytes in memory, cut up by its read",
    "_engine.pager": "io.BytesIO only: bytes in memory, put together by its write",
}
"""Modules of the engine that may import os, fcntl, or the like, and why. All others are handed what they need."""

OPTIONAL = {"tqdm", "lmdb", "psycopg", "redis"}
"""What a module above the engine may import if it is there."""

SYSTEM_MODULES = {
    "os",
    "fcntl",
    "mmap",
    "shutil",
    "signal",
    "socket",
    "stat",
    "subprocess",
    "tempfile",
    "pathlib",
    "io",
}

PICTURES = {
    "errors": "the tree of exceptions is drawn",
    "cli.*": "what it prints for people",
}
"""Modules with characters beyond ASCII, and why."""

OPEN_TO_ALL = {
    "_engine.bulkload", "_engine.checksum", "_engine.disk", "_engine.disk.protocol", "_engine.files", "_engine.kernels",
    "_engine.locks", "_engine.meta", "_engine.sparse",
}  # fmt: skip
"""Modules of the engine that others may use: files, names, locks, what a file says of itself, checksums."""

LOOKS_INTO_THE_ENGINE = """
_files.*  _foreign.kinds  _process.handles  _transaction_context  _value_stream  attach  changelog  checkpoint  closing
database  maintenance.*  migration  salvage  sharded  sharded.views  shelve.lock  snapshot  streams  table  transaction
"""
"""Modules above the engine that may import the rest of it."""


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    if name == "__init__":
        return name
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def source(module: str) -> str:
    return MODULES[module].read_text("utf-8")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(source(module))


def covers(pattern: str, module: str) -> bool:
    if pattern.endswith(".*"):
        return module == pattern[:-2] or module.startswith(pattern[:-1])
    return module == pattern


def row_of(module: str) -> int | None:
    for number, row in enumerate(LAYERS.split("\n")):
        if any(covers(pattern, module) for pattern in row.split()):
            return number
    return None


def statements(module: str, *, types: bool = True) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports, also those inside functions. Without `types` those for type checkers alone are left out."""

    def below(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
        for child in ast.iter_child_nodes(node):
            if not types and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                yield child
            yield from below(child)

    return below(tree(module))


@cache
def imported(module: str) -> frozenset[str]:
    """The modules of the package that a module imports, if only for their types."""
    package = list(MODULES[module].relative_to(PACKAGE).parent.parts)
    result = set()
    for statement in statements(module):
        if isinstance(statement, ast.Import) or not statement.level:
            continue
        base = package[: len(package) - statement.level + 1]
        origin = [*base, *(statement.module or "").split(".")] if statement.module else base
        for alias in statement.names:
            whole = ".".join([*origin, alias.name])
            result.add(whole if whole in MODULES else ".".join(origin) or "__init__")
    return frozenset(result - {module})


@cache
def foreign(module: str) -> frozenset[str]:
    """The modules of others that a module imports, by their first name."""
    result = set()
    for statement in statements(module, types=False):
        if isinstance(statement, ast.Import):
            result |= {alias.name.split(".")[0] for alias in statement.names}
        elif not statement.level and statement.module:
            result.add(statement.module.split(".")[0])
    return frozenset(result)


def is_empty(module: str) -> bool:
    """Whether it is the docstring of a folder and nothing more."""
    return not imported(module) and not has_code(module)


# -- layers --------------------------------------------------------------------------------------------------------


def test_every_module_has_a_layer() -> None:
    assert [module for module in MODULES if row_of(module) is None and not is_empty(module)] == []


def test_every_layer_has_its_modules() -> None:
    patterns = LAYERS.split()
    assert len(patterns) == len(set(patterns))
    assert [pattern for pattern in patterns if not any(covers(pattern, module) for module in MODULES)] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    row = row_of(module)
    wrong = []
    for other in imported(module):
        other_row = row_of(other)
        together = any(covers(pattern, module) and covers(pattern, other) for pattern in LAYERS.split())
        if not together and (other_row is None or row is None or other_row >= row):
            wrong.append(other)
    assert wrong == []


def in_circles(imports: dict[str, frozenset[str]]) -> list[str]:
    """The modules that import themselves by way of others, and those that import such modules."""
    left = set(imports)
    while ready := {module for module in left if not imports[module] & left}:
        left -= ready
    return sorted(left)


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert in_circles({module: imported(module) for module in MODULES}) == []
    assert in_circles({"a": frozenset({"b"}), "b": frozenset({"a"}), "c": frozenset()}) == ["a", "b"]


def test_the_benchmark_has_no_circles() -> None:
    paths = {path.stem: path for path in (ROOT / "compat" / "bench").glob("*.py")}
    imports = {}
    for name, path in paths.items():
        found = {
            name
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom) and node.level == 1
            for name in ([node.module] if node.module else [alias.name for alias in node.names])
        }
        imports[name] = frozenset(found & paths.keys()) - {name}
    assert in_circles(imports) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("_engine.")])
def test_the_engine_touches_the_system_only_through_the_disk(module: str) -> None:
    """Time, threads and random numbers are not meant: files, directories and processes are."""
    if module not in TOUCHES_THE_SYSTEM:
        assert not foreign(module) & SYSTEM_MODULES


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("_engine")])
def test_few_modules_look_into_the_engine(module: str) -> None:
    allowed = any(covers(pattern, module) for pattern in LOOKS_INTO_THE_ENGINE.split())
    inside = {other for other in imported(module) - OPEN_TO_ALL if other.startswith("_engine.")}
    assert allowed or not inside


def test_the_only_thing_that_must_be_installed_is_crc32c() -> None:
    """Everything else is the standard library's, or is imported where it is used, if it is there."""
    for module in MODULES:
        optional = OPTIONAL if not module.startswith("_engine") else set()
        assert foreign(module) <= {*sys.stdlib_module_names, "crc32c", "durabledbm", *optional}, module


# -- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_not_too_long(module: str) -> None:
    assert source(module).count("\n") <= LINES_OF_A_FILE


@pytest.mark.parametrize("module", MODULES)
def test_a_function_fits_on_a_screen(module: str) -> None:
    long = [
        (node.name, node.end_lineno - node.lineno + 1)
        for node in ast.walk(tree(module))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > LINES_OF_A_FUNCTION
    ]
    assert long == []


# -- names and words -----------------------------------------------------------------------------------------------


def exported(module: str) -> list[str] | None:
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def has_code(module: str) -> bool:
    """Whether there is more in the module than a docstring and imports."""
    return any(not isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr)) for node in tree(module).body)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__main__"])
def test_a_module_says_what_it_exports(module: str) -> None:
    names = exported(module)
    if names is None:
        assert not has_code(module)
        return
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    defined = {ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Name)}
    for node in ast.walk(tree(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {alias.asname or alias.name for alias in node.names}
    lazy = {key.value for node in ast.walk(tree(module)) if isinstance(node, ast.Dict) for key in node.keys
            if isinstance(key, ast.Constant)}  # fmt: skip
    assert set(names) <= defined | lazy


@pytest.mark.parametrize("module", MODULES)
def test_a_module_tells_what_it_is(module: str) -> None:
    text = ast.get_docstring(tree(module))
    assert text
    assert len(text) > 20


@pytest.mark.parametrize("module", MODULES)
def test_what_is_exported_is_documented(module: str) -> None:
    """Public functions and classes, and their public methods unless a class above documents them."""
    names = exported(module) or []
    missing = []
    for node in tree(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            overloaded = isinstance(node, ast.FunctionDef) and any(
                "overload" in ast.unparse(d) for d in node.decorator_list
            )
            if not ast.get_docstring(node) and not overloaded:
                missing.append(node.name)
    assert missing == []


@pytest.mark.parametrize("module", MODULES)
def test_the_source_is_ascii(module: str) -> None:
    if any(covers(pattern, module) for pattern in PICTURES):
        return
    assert sorted({character for character in source(module) if not character.isascii()}) == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_left_to_be_done(module: str) -> None:
    assert re.findall(r"\b(TODO|FIXME|XXX|HACK)\b", source(module)) == []
    prints = [
        node for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("breakpoint", "pdb.set_trace")
    ]  # fmt: skip
    assert prints == []


VOCABULARY = {
    "txn": "transaction", "pgno": "page_id", "env": "database", "bucket": "shard", "freelist": "free space",
    "mutex_": "mutex", "cur": "cursor", "ovfl": "overflow",
}  # fmt: skip
"""Words of other engines, and ours for the same. Never two words for one thing."""


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("_engine.")])
def test_names_are_of_one_vocabulary(module: str) -> None:
    names = {node.id for node in ast.walk(tree(module)) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree(module)) if isinstance(node, ast.arg)}
    assert sorted(names & set(VOCABULARY)) == []


@pytest.mark.parametrize("module", MODULES)
def test_what_a_file_says_is_not_asserted(module: str) -> None:
    """An assert is about our own code: it is gone under `python -O`. So none stands where bytes are decoded."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith(("decode", "read_", "load", "parse")):
            assert not [inner for inner in ast.walk(node) if isinstance(inner, ast.Assert)], node.name


@pytest.mark.parametrize("module", MODULES)
def test_no_exception_is_swallowed_without_a_word(module: str) -> None:
    """A bare `except:` catches what nobody meant."""
    bare = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ExceptHandler) and node.type is None]
    assert bare == []


# -- only one place syncs ------------------------------------------------------------------------------------------


def test_on_the_way_of_a_write_only_the_commit_and_the_creation_sync() -> None:
    callers = {
        module
        for module in MODULES
        if module.startswith("_engine.")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sync"
        and ast.unparse(node.func.value).endswith("disk")
    }  # fmt: skip
    assert callers <= {"_engine.bulkload", "_engine.commit", "_engine.files"}


# -- what the documents say ----------------------------------------------------------------------------------------


def test_the_tests_that_the_documents_name_exist() -> None:
    """As files, as functions or, in docs/durability.md, as workloads of the crash tests."""
    tests = ROOT / "tests"
    missing = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        for file, name in re.findall(r"\b(test_\w+\.py)(?:::(\w+))?", page.read_text("utf-8")):
            found = [path for path in (tests / file, tests / "engine" / file) if path.exists()]
            if not found or (name and not any(f"def {name}(" in path.read_text("utf-8") for path in found)):
                missing.append(f"{page.name}: {file}::{name}")
    assert missing == []


def test_the_workloads_that_show_the_steps_of_a_commit_exist() -> None:
    table = (ROOT / "docs" / "durability.md").read_text("utf-8").split("step by step")[1].split("\n\n")[1]
    crashes = (ROOT / "tests" / "support" / "crashes.py").read_text("utf-8")
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z_]+)`", row.split("|")[4])]
    assert len(named) > 5
    assert [name for name in named if f"def {name}(" not in crashes and name != "full"] == []


def test_what_the_page_about_the_source_names_exists() -> None:
    text = (ROOT / "docs" / "source.md").read_text("utf-8")
    files = re.findall(r"`([a-z_/0-9]+(?:\.py|/))`", text)
    assert len(files) > 40
    assert [file for file in files if not (PACKAGE / file).exists() and not (ROOT / file).exists()] == []
    defined = {node.name for module in MODULES for node in ast.walk(tree(module))
               if isinstance(node, (ast.ClassDef, ast.FunctionDef))}  # fmt: skip
    found = re.findall(r"`([A-Za-z_]+(?:\.[a-z_]+)?)`", text)
    names = [part for name in found if not name.endswith(".py") for part in name.split(".")]
    attributes = {"LAYERS", "stamp", "state", "phase", "dbm", "pread"}
    assert [name for name in names if name not in defined | attributes] == []
