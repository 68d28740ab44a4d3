"""The standard library's `dbm` and `shelve`, made to use durabledbm: `install()`, `uninstall()`, `whichdb()`.

What may live here: changes to the state of the `dbm` module, and recognizing files. `dbm` has three
variables that decide what `dbm.open` does, and one function:

* `_names`, the modules to try. It is left alone: CPython's own tests hold it to contain `dbm.*` only.
* `_modules`, those that were imported. `dbm.open` fills it while `_defaultmod` is None and never again, so
  whoever sets `_defaultmod` must fill it, or files of the other formats could no longer be opened.
* `_defaultmod`, for new files.
* `whichdb`, for existing ones. It knows its own formats only, so it is wrapped. `dbm.open` looks it up by
  name each time, and `shelve.open` goes through `dbm.open`: nothing else has to be touched.
"""

from __future__ import annotations

import builtins
import dbm
import importlib
import os
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

from ._engine.meta import META_SIZE, has_magic
from .database import Database, OpenOptions
from .database import open as open_database
from .errors import error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    from typing_extensions import Unpack

    _Path = str | bytes | PathLike[str] | PathLike[bytes]

__all__ = ["Installation", "install", "run_script", "uninstall", "whichdb"]

NAME = "durabledbm"

# dbm's variables are private, which type checkers hold against us.
_dbm: Any = dbm
_lock = threading.RLock()
_installations: list[Installation] = []
_undo: list[Callable[[], None]] = []


def whichdb(filename: _Path) -> str | None:
    """The module that a database file belongs to: "durabledbm" for ours, else what `dbm.whichdb` says.

    That is the name of a module of the standard library, "" for a file of no known kind, None if there is no
    readable file. A file of 0 bytes is one of ours that was not initialised yet.
    """
    return _whichdb(filename, getattr(_dbm.whichdb, "original", _dbm.whichdb))


def _whichdb(filename: _Path, others: Callable[[Any], str | None]) -> str | None:
    name = os.fsdecode(filename)  # Python 3.10's whichdb takes nothing else
    try:
        with open(name, "rb") as file:
            # Either meta page will do: a crash may have damaged one of them.
            head = file.read(2 * META_SIZE)
    except OSError:
        return others(name)
    if has_magic(head) or has_magic(head[META_SIZE:]):
        return NAME
    answer = others(name)
    return NAME if answer == "" and not head else answer


class Installation:
    """One call of `install()`, in effect until `uninstall()`, or until the end of a `with` block over it."""

    def __init__(self, options: OpenOptions) -> None:
        self.options = options

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with _lock:
            if self in _installations:
                _installations.remove(self)
            if not _installations:
                _restore()


class _Backend:
    """What `dbm` takes for a module: a name, `open` and `error`."""

    __name__ = NAME
    error = error

    @staticmethod
    def open(file: Any, flag: Any = "r", mode: int = 0o666) -> Database:
        """`durabledbm.open` with the options of the newest `install()`."""
        options: OpenOptions = _installations[-1].options if _installations else {}
        return open_database(file, flag, mode, **options)

    whichdb = staticmethod(whichdb)


_backend = _Backend()


def install(**open_options: Unpack[OpenOptions]) -> Installation:
    """Let `dbm.open` and `shelve.open` create durabledbm files, and `dbm.whichdb` know them.

    `open_options` are those of `durabledbm.open` (durability, timeout and others) for every file of ours
    opened this way. Existing files of other formats are opened by their own modules, as before. Modules
    that imported `dbm` or `shelve` earlier take part; those that did `from dbm import whichdb` keep the old
    one of that function only.

    May be repeated: the newest options hold. `uninstall()` undoes all of it; `with durabledbm.install():`
    undoes one call at the end of the block.
    """
    with _lock:
        installation = Installation(open_options)
        if not _installations:
            _patch()
        _installations.append(installation)
        return installation


def uninstall() -> None:
    """Undo every `install()`: `dbm` is again as it was before the first. Open databases stay open."""
    with _lock:
        _installations.clear()
        _restore()


def run_script(path: str, argv: Sequence[str] = (), **open_options: Unpack[OpenOptions]) -> None:
    """Run a Python script as `python path argv...` would, with `install(**open_options)` in effect.

    Meant to be the last thing that a process does: threads and exit handlers of the script may outlive it,
    so nothing is undone. The script's exceptions, SystemExit among them, come out as they are; `error` is
    raised if it can't be read.
    """
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as exc:
        raise error.wrap(exc, path) from exc
    code = compile(source, path, "exec", dont_inherit=True)
    sys.argv = [path, *argv]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0:1] = [os.path.dirname(os.path.abspath(path))]
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins)
    sys.modules["__main__"] = main  # so that the script's classes can be pickled by name
    install(**open_options)
    exec(code, main.__dict__)


def _patch() -> None:
    """Change `dbm`, and note how to change it back."""
    assert not _undo
    for name in _dbm._names:
        if name not in _dbm._modules:
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
            _set_module(name, module)
    _set_module(NAME, _backend)
    default = _dbm._defaultmod
    _dbm._defaultmod = _backend
    original = _dbm.whichdb

    def whichdb(filename: _Path) -> str | None:
        # Whoever kept a reference to this function gets the old answers once it is uninstalled.
        return _whichdb(filename, original) if _installations else original(filename)

    whichdb.__doc__ = original.__doc__
    whichdb.original = original  # type: ignore[attr-defined]
    _dbm.whichdb = whichdb

    def undo() -> None:
        # What somebody else has replaced since is not ours to put back.
        if _dbm._defaultmod is _backend:
            _dbm._defaultmod = default
        if _dbm.whichdb is whichdb:
            _dbm.whichdb = original

    _undo.append(undo)


def _set_module(name: str, module: Any) -> None:
    _dbm._modules[name] = module

    def undo() -> None:
        if _dbm._modules.get(name) is module:
            del _dbm._modules[name]

    _undo.append(undo)


def _restore() -> None:
    while _undo:
        _undo.pop()()


