"""The standard library's `dbm` and `shelve`, made to use durabledbm: `install()`, `uninstall()`, `whichdb()`.

What may live here: changes to the state of the `dbm` module, and recognizing files. `dbm` has three
variables that decide what `dbm.open` does, and one function:

* `_names`, the modules to try. It is left alone: CPython's own tests hold it to contain `dbm.*` only.
* `_modules`, those that were imported. `dbm.open` fills it while `_defaultmod` is None and never again, so
  whoever sets `_defaultmod` must fill it, or files of the other formats could no longer be opened.
* `_defaultmod`, for new files.
* `whichdb`, for existing ones. It knows its own formats only, so it is wrapped. `dbm.open` looks it up by
  name each time, and `shelve.open` goes through `dbm.open`: nothing else has to be touched.

`_process.children` tells child processes. The end of this module does what the parent told this process.
"""

from __future__ import annotations

import dbm
import importlib
import os
import stat
import threading
import warnings
from typing import TYPE_CHECKING, Any

from ._engine.native import FileVolume
from ._foreign.kinds import OURS, beside, kind_of
from ._process import children
from .database import Database, OpenOptions
from .database import open as open_database
from .errors import error

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from ._files.arguments import Path

__all__ = ["Installation", "inherit", "install", "uninstall", "whichdb"]

# dbm's variables are private, which type checkers hold against us.
_dbm: Any = dbm
_lock = threading.RLock()
_installations: list[Installation] = []
_undo: list[Callable[[], None]] = []
_inherited: Installation | None = None


def whichdb(filename: Path) -> str | None:
    """The module that a database file belongs to: "durabledbm" for ours, else what `dbm.whichdb` says.

    That is the name of a module of the standard library, "" for a file of no known kind, None if there is no
    readable file. A file of 0 bytes is one of ours that was not initialised yet.
    """
    return _whichdb(filename, getattr(_dbm.whichdb, "original", _dbm.whichdb))


def _whichdb(filename: Path, others: Callable[[Any], str | None]) -> str | None:
    name = os.fsdecode(filename)  # Python 3.10's whichdb takes nothing else
    volume = FileVolume()
    kind = kind_of(volume, name)
    if kind == OURS and not _is_empty(name):
        return OURS
    if any(map(_is_special, (name, name + ".pag", name + ".dir", name + ".db", name + ".dat"))):
        # The standard library would wait for the other end of a pipe.
        found = beside(volume, name)
        answer = found.kind if found is not None else "" if os.path.exists(name) else None
    else:
        answer = others(name)
    return kind if answer == "" and kind == OURS else answer


def _is_empty(path: str) -> bool:
    try:
        return not os.stat(path).st_size
    except OSError:
        return False


def _is_special(path: str) -> bool:
    """Whether this is a pipe, a socket or a device."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


class Installation:
    """One call of `install()`, in effect until `uninstall()`, or until the end of a `with` block over it."""

    def __init__(self, options: OpenOptions) -> None:
        self.options = options
        self.message = children.message({**options})

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with _lock:
            if self in _installations:
                _installations.remove(self)
            _announce()
            if not _installations:
                _restore()


class _Backend:
    """What `dbm` takes for a module: a name, `open` and `error`."""

    __name__ = OURS
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

    Python processes that are started from now on take part as well, with the same options: those of
    multiprocessing, whichever way it starts them, and others if they get this process's environment (which is
    changed for it: PYTHONPATH and DURABLEDBM_INSTALL), do not ignore it (`python -E`, `-I`, `-S`), and find
    durabledbm. One that does not find it warns when it imports `dbm`.

    May be repeated: the newest options hold. `uninstall()` undoes all of it; `with durabledbm.install():`
    undoes one call at the end of the block. Raises `TypeError` for an option that is no str, number or None.
    """
    installation = Installation(open_options)
    with _lock:
        if not _installations:
            _patch()
        _installations.append(installation)
        _announce()
        return installation


def uninstall() -> None:
    """Undo every `install()`: `dbm` is again as it was before the first, here and in processes that are started
    from now on. Open databases stay open.
    """
    with _lock:
        _installations.clear()
        _announce()
        _restore()


def inherit() -> None:
    """Do as this process's parent has told it: `install()` with the parent's options, or undo what was inherited."""
    global _inherited
    with _lock:
        try:
            options = children.options_from_parent()
        except ValueError as exc:
            warnings.warn(f"install() of the parent process is not heard: {exc}", RuntimeWarning, stacklevel=2)
            return
        if _inherited is not None:
            _inherited.__exit__()
        _inherited = None if options is None else install(**options)


def _announce() -> None:
    """Tell child processes what is in effect here."""
    children.announce(_installations[-1].message if _installations else None)


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
    _set_module(OURS, _backend)
    default = _dbm._defaultmod
    _dbm._defaultmod = _backend
    original = _dbm.whichdb

    def whichdb(filename: Path) -> str | None:
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


inherit()
