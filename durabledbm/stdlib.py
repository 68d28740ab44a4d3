"""`install()`, `uninstall()` and `whichdb()`: the standard library's `dbm` and `shelve` use durabledbm.

This module changes the state of the `dbm` module, and recognizes files. `dbm` has three variables that decide what
`dbm.open` does, and one function:

* `_names`, the modules to try. It is left alone: CPython's own tests require it to contain only `dbm.*`.
* `_modules`, those that were imported. `dbm.open` fills it only while `_defaultmod` is None. So code that sets
  `_defaultmod` must fill it, or files of the other formats could no longer be opened.
* `_defaultmod`, for new files.
* `whichdb`, for existing files. It knows only its own formats, so it is wrapped. `dbm.open` looks it up by name each
  time, and `shelve.open` goes through `dbm.open`: nothing else needs to change.

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

from ._engine.disk import FileVolume
from ._files.opening import OpenOptions
from ._foreign.kinds import OURS, beside, kind_of
from ._process import children
from .database import Database
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

    That is the name of a module of the standard library, "" for a file of unknown kind, or None if there is no readable
    file. A file of 0 bytes is one of ours, not initialised yet.
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
    """One call of `install()`, in effect until `uninstall()` or until the end of a `with` block."""

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
    """What `dbm` uses as a module: a name, `open` and `error`."""

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
    """Have `dbm.open` and `shelve.open` create durabledbm files, and `dbm.whichdb` recognize them.

    `open_options` are those of `durabledbm.open` (durability, timeout and others); they apply to every file of ours
    that is opened this way. Existing files of other formats are opened by their own modules, as before. It also affects
    modules that imported `dbm` or `shelve` earlier, except that `from dbm import whichdb` keeps the old function.

    Python processes that are started afterwards are affected too, with the same options: children of multiprocessing in
    any start method, and others that receive this process's environment (PYTHONPATH and DURABLEDBM_INSTALL are set in
    it), do not ignore it (`python -E`, `-I`, `-S`) and can import durabledbm. A process that cannot import it warns
    when it imports `dbm`.

    `install()` may be called again: the newest options apply. `uninstall()` undoes all calls; `with
    durabledbm.install():` undoes one at the end of the block. Raises `TypeError` for an option that is not a str, a
    number or None.
    """
    installation = Installation(open_options)
    with _lock:
        if not _installations:
            _patch()
        _installations.append(installation)
        _announce()
        return installation


def uninstall() -> None:
    """Undo every `install()`, here and in processes that are started afterwards. Open databases stay open."""
    with _lock:
        _installations.clear()
        _announce()
        _restore()


def inherit() -> None:
    """Follow the parent process: `install()` with its options, or undo what was inherited."""
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
    """Tell child processes which options are in effect."""
    children.announce(_installations[-1].message if _installations else None)


def _patch() -> None:
    """Change `dbm`, and record how to change it back."""
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
        # Code that kept a reference to this function gets the old answers after uninstall().
        return _whichdb(filename, original) if _installations else original(filename)

    whichdb.__doc__ = original.__doc__
    whichdb.original = original  # type: ignore[attr-defined]
    _dbm.whichdb = whichdb

    def undo() -> None:
        # What other code has replaced since is left alone.
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
