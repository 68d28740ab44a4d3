"""Writes docs/api.md, the reference of the Python interface, from signatures and docstrings.

    python tests/support/make_reference.py

`tests/test_docs.py` holds the page to what this makes. The source is read, not imported: what stands there is the same
whichever Python runs this, and whichever optional packages are installed.
"""

from __future__ import annotations

import ast
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["CHAPTERS", "Chapter", "markdown", "undocumented"]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"

_WIDTH = 100

_HEAD = """# The Python interface

Generated from the docstrings by `python tests/support/make_reference.py`; a test compares the two. Frequent questions
and edge cases are in [reference.md](reference.md); [guide/](guide/index.md) goes by task.

Sizes are in bytes and times in seconds unless a name says otherwise (`time_ns`). Functions named `progress` are called
with `(done, total)` now and then, in units that each function names; an exception that they raise ends the work.
Every failure of a file, a disk or a lock is a `durabledbm.error`, which is an `OSError`; a wrong argument is a
`TypeError` or a `ValueError`, a missing key a `KeyError`.

| in signatures | stands for |
|---|---|
| `Key`, `Value` | `str` (stored as UTF-8), `bytes`, `bytearray` or `memoryview` |
| `Path` | `str`, `bytes` or `os.PathLike` of either: the name of a file |
| `Progress` | a function of two numbers, `(done, total)` |
| `Flag` | `durabledbm.Flag`, for type checkers: "r", "w", "c" or "n", perhaps with some of "f", "s" and "u" after it |
| `Durability` | `durabledbm.Durability`, for type checkers: "full", "process", "interval" or "manual" |
| `OpenOptions` | the keyword arguments of `durabledbm.open` |
| `ShelfOptions` | `mode`, `serializer`, `deserializer` and `writeback_size`, and those of `durabledbm.open` |
"""


class Chapter(NamedTuple):
    """A part of the page: a heading, what stands below it, and the names that it documents."""

    title: str
    text: str
    names: tuple[str, ...]
    """`module:function` or `module:Class`, or `module:Class=as shown`. Below a class stand its public methods."""


CHAPTERS = (
    Chapter(
        "Opening", "",
        ("database:open", "stdlib:whichdb", "sharded/__init__:open_sharded"),
    ),
    Chapter(
        "Errors", "All in one tree, below `OSError`, so that `except dbm.error` catches them.",
        tuple(f"errors:{name}" for name in ("error", "BusyError", "CorruptionError", "ReadOnlyError", "ClosedError")),
    ),
    Chapter(
        "Mappings", "What databases, transactions, snapshots and sharded databases have in common. Keys and values go "
        "in as `str` (UTF-8), `bytes`, `bytearray` or `memoryview`, and come out as `bytes`.",
        ("mapping:Readable=mapping.Readable", "mapping:Writable=mapping.Writable"),
    ),
    Chapter(
        "Databases", "",
        ("database:Database", "table:WithTables=WithTables", "table:Table=Table", "transaction:Transaction",
         "table:TransactionTable=TransactionTable", "snapshot:Snapshot", "table:TableSnapshot=TableSnapshot",
         "checkpoint:Checkpoint=Checkpoint", "checkpoint:Change=Change",
         "maintenance/stats:Stats", "maintenance/stats:OldestSnapshot=OldestSnapshot", "maintenance/check:Problem"),
    ),
    Chapter(
        "Sharded databases", "",
        ("sharded/__init__:ShardedDatabase",
         "sharded/tables:ShardedTable=sharded.tables.ShardedTable", "reshard:reshard=reshard.reshard"),
    ),
    Chapter(
        "Shelves", "`import durabledbm.shelve as shelve` replaces the standard library's module.",
        ("shelve/__init__:open=shelve.open", "shelve/__init__:Shelf=shelve.Shelf",
         "shelve/__init__:DbfilenameShelf=shelve.DbfilenameShelf",
         "shelve/__init__:BsdDbShelf=shelve.BsdDbShelf", "shelve/__init__:ShelveError=shelve.ShelveError"),
    ),
    Chapter(
        "In place of dbm and shelve", "",
        ("stdlib:install", "stdlib:uninstall", "stdlib:Installation=stdlib.Installation"),
    ),
    Chapter(
        "The log of changes", "Its files are described in [changelog-format.md](changelog-format.md).",
        ("changelog:ChangeLog=changelog.ChangeLog", "changelog:Span=changelog.Span",
         "_log/records:Change=changelog.Change",
         "_log/records:Commit=changelog.Commit", "_log/files:Tail=changelog.Tail",
         "attach:Attachment=attach.Attachment"),
    ),
    Chapter(
        "Copies and other formats",
        "Each function is in the module of its name: `from durabledbm.restore import restore`.",
        ("restore:restore=restore.restore", "dump:dump=dump.dump", "dump:load=dump.load", "dump:Loaded=dump.Loaded",
         "migration:migrate", "export:export=export.export", "salvage:salvage=salvage.salvage",
         "salvage:Report=salvage.Report"),
    ),
    Chapter(
        "On a server", "The same mapping on PostgreSQL and on Redis. [scaling.md](scaling.md#when-to-leave) tells what "
        "a server changes in the promises.",
        ("remote/__init__:open=remote.open", "remote/failures:ConnectionLostError=remote.ConnectionLostError",
         "remote/database:RemoteDatabase=remote.database.RemoteDatabase",
         "remote/postgresql/database:PostgresDatabase=remote.postgresql.database.PostgresDatabase",
         "remote/redis/database:RedisDatabase=remote.redis.database.RedisDatabase",
         "remote/blocks:Transaction=remote.blocks.Transaction", "remote/snapshots:Snapshot=remote.snapshots.Snapshot",
         "remote/blocks:Table=remote.blocks.Table",
         "remote/loading:Loader=remote.loading.Loader", "remote/database:Stats=remote.database.Stats",
         "remote/mirror:Mirror=remote.mirror.Mirror"),
    ),
)  # fmt: skip

_SHOWN = {
    "__getitem__": "db[key]", "__setitem__": "db[key] = value", "__delitem__": "del db[key]", "__len__": "len(db)",
    "__contains__": "key in db", "__iter__": "iter(db)", "__reversed__": "reversed(db)", "__eq__": "db == other",
    "__bool__": "bool(db)",
}  # fmt: skip
"""Methods that are used by way of syntax."""


@cache
def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for chapter in CHAPTERS:
        parts.append(f"## {chapter.title}\n")
        if chapter.text:
            parts += [*textwrap.wrap(chapter.text, 120), ""]
        for name in chapter.names:
            parts += _entry(name)
    return "\n".join(parts).rstrip() + "\n"


def undocumented() -> list[str]:
    """Public methods and functions of the page that have no docstring."""
    missing = []
    for chapter in CHAPTERS:
        for name in chapter.names:
            node, shown = _found(name)
            if not ast.get_docstring(node):
                missing.append(shown)
            if isinstance(node, ast.ClassDef):
                methods = _methods(node).items()
                missing += [f"{shown}.{method}" for method, nodes in methods if not ast.get_docstring(nodes[-1])]
    return missing


def _found(name: str) -> tuple[ast.FunctionDef | ast.ClassDef, str]:
    """The definition, and how the page calls it."""
    where, _, shown = name.partition("=")
    module, _, wanted = where.partition(":")
    for node in ast.walk(_tree(module)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == wanted:
            return node, shown or wanted
    raise LookupError(name)


@cache
def _source(module: str) -> str:
    return (ROOT / "durabledbm" / f"{module}.py").read_text("utf-8")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module))


def _entry(name: str) -> list[str]:
    node, shown = _found(name)
    page = _Page(_source(name.partition(":")[0]))
    own = shown.rpartition(".")[2]
    if not isinstance(node, ast.ClassDef):
        return [f"### `durabledbm.{shown}`\n", page.signature(own, [node]), *page.text(node)]
    lines = [] if node.name == "Upkeep" else [f"### `durabledbm.{shown}`\n", *page.of_class(node)]
    for method in _methods(node).values():
        lines += page.method(method, own)
    return lines


def _methods(node: ast.ClassDef) -> dict[str, list[ast.FunctionDef]]:
    """What users call, in the order of the source, each with the overloads that it may have instead of itself."""
    found: dict[str, list[ast.FunctionDef]] = {}
    for item in node.body:
        if not isinstance(item, ast.FunctionDef) or item.name in _PLUMBING:
            continue
        if len(item.body) == 1 and isinstance(item.body[0], ast.Raise):
            continue  # abstract
        if item.name[0] != "_" or (item.name in _SHOWN and ast.get_docstring(item)):
            found.setdefault(item.name, []).append(item)
    return found


_PLUMBING = {
    "abandon", "mine", "orphan", "admit", "committed", "start", "lost",
    "wrap", "because", "in_use_here",
}  # fmt: skip
"""Methods that are public for other modules."""

_MADE_BY_US = {"args", "database", "pin", "store", "options", "ticket"}
"""Arguments of classes that users do not make."""

_NAMED = {
    "DEFAULT_CACHE_SIZE": "64 * 2**20", "DEFAULT_SHARDS": "8", "WRITEBACK_SIZE": "64 * 2**20", "_REQUIRED": "...",
}  # fmt: skip
"""Defaults that have a name in the source, as what they are."""


class _Page:
    """Definitions of one source file as Markdown."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines = source.split("\n")

    def of_class(self, node: ast.ClassDef) -> list[str]:
        """What it is; how it is made, if by its users; the fields that it has."""
        lines = []
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                names = {argument.arg for argument in ast.walk(item.args) if isinstance(argument, ast.arg)}
                if not names & _MADE_BY_US:
                    lines.append(self.signature(node.name, [item], method=True))
        fields = self.fields(node)
        return [*lines, *self.text(node), *fields, ""] if fields else [*lines, *self.text(node)]

    def fields(self, node: ast.ClassDef) -> list[str]:
        """The annotated fields that are documented by what follows them, or are all that the class has."""
        tuple_like = any(ast.unparse(base) == "NamedTuple" for base in node.bases) or bool(node.decorator_list)
        lines = []
        for number, item in enumerate(node.body, 1):
            following = node.body[number] if number < len(node.body) else None
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if item.target.id[0] == "_" or not (tuple_like or documented):
                continue
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = ": " + " ".join(str(following.value.value).split())
            field = f"- `{item.target.id}` (`{self.code(item.annotation)}`){text}"
            lines += textwrap.wrap(field, 120, subsequent_indent="  ", break_on_hyphens=False)
        return lines

    def method(self, nodes: list[ast.FunctionDef], owner: str) -> list[str]:
        node = nodes[-1]
        shown = _SHOWN.get(node.name, f"{owner}.{node.name}")
        lines = [f"#### `{shown}`\n"]
        if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
            assert node.returns is not None
            return [*lines, f"A property: `{self.code(node.returns)}`.\n", *self.text(node)]
        if node.name not in _SHOWN:
            lines.append(self.signature(node.name, nodes[:-1] or nodes, method=True))
        return [*lines, *self.text(node)]

    def signature(self, name: str, nodes: list[ast.FunctionDef], *, method: bool = False) -> str:
        """The call, once for each overload: on one line if it fits, else with a line for each argument."""
        calls = []
        for node in nodes:
            parts = self.arguments(node.args)[1 if method else 0 :]
            returns = "" if node.returns is None or node.name == "__init__" else f" -> {self.code(node.returns)}"
            call = f"{name}({', '.join(parts)}){returns}"
            if len(call) > _WIDTH:
                call = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"
            calls.append(call)
        return "<!-- not run: a signature -->\n```python\n" + "\n".join(calls) + "\n```\n"

    def arguments(self, arguments: ast.arguments) -> list[str]:
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
        defaults += arguments.defaults
        parts = []
        for number, (argument, default) in enumerate(zip(positional, defaults, strict=True), 1):
            parts.append(self.argument(argument, default))
            if number == len(arguments.posonlyargs):
                parts.append("/")
        if arguments.vararg is not None:
            parts.append("*" + self.argument(arguments.vararg, None))
        elif arguments.kwonlyargs:
            parts.append("*")
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        parts += [self.argument(argument, default) for argument, default in pairs if argument.arg != "volume"]
        if arguments.kwarg is not None:
            parts.append("**" + self.argument(arguments.kwarg, None))
        return parts[:-1] if parts and parts[-1] == "*" else parts

    def argument(self, argument: ast.arg, default: ast.expr | None) -> str:
        text = argument.arg
        if argument.annotation is not None:
            text += f": {self.code(argument.annotation).strip(chr(34))}"
        if default is None:
            return text
        shown = self.code(default)
        return f"{text}{' = ' if argument.annotation is not None else '='}{_NAMED.get(shown, shown)}"

    def code(self, node: ast.expr) -> str:
        """As it stands in the source, on one line."""
        if node.lineno == node.end_lineno:
            text = self.lines[node.lineno - 1][node.col_offset : node.end_col_offset]  # quick, if the line is ASCII
        else:
            text = " ".join((ast.get_source_segment(self.source, node) or "").split())
        text = text.replace("str | bytes | os.PathLike[str] | os.PathLike[bytes]", "Path")
        return re.sub(r"\b_(Path|Serializer|Deserializer|V|T|Store)\b", r"\1", text)

    def text(self, node: ast.FunctionDef | ast.ClassDef) -> list[str]:
        """The docstring as Markdown: a paragraph that describes arguments, `name: meaning`, becomes a list."""
        names = {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
        lines = []
        for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
            items = re.split(r"\n(?=\S)", paragraph)
            pairs = [" ".join(item.split()).partition(": ") for item in items]
            if all(pair[1] and set(pair[0].split(", ")) <= names for pair in pairs):
                for pair in pairs:
                    item = f"- `{'`, `'.join(pair[0].split(', '))}`: {pair[2]}"
                    lines += textwrap.wrap(item, 120, subsequent_indent="  ", break_on_hyphens=False)
            else:
                lines.append(paragraph)
            lines.append("")
        return lines


if __name__ == "__main__":
    PAGE.write_text(markdown(), "utf-8")
