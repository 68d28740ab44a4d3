"""How child processes learn of `install()`.

Through their environment: DURABLEDBM_INSTALL holds the options as JSON, and PYTHONPATH begins with this directory,
whose `sitecustomize` reads them. This reaches every Python that is started with this process's environment, by
`subprocess`, the `os.exec` functions, multiprocessing or a shell, and its children in turn.

multiprocessing also passes its children a dict, which they unpickle first. It contains an object whose unpickling runs
`sitecustomize.py`, by its file name, because the child's `sys.path` is not set yet. Two kinds of children need it:
those whose interpreters ignore the environment because their parent's does (`python -E` and the like), and those of a
fork server that was started before the last `install()` or `uninstall()`.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from importlib.machinery import PathFinder
from typing import Any

from .sitecustomize import PREPARATION, VARIABLE, AfterImport
from .sitecustomize import announce as announce_in

__all__ = ["announce", "environment", "message", "options_from_parent"]

_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sitecustomize.py")
_SPAWN = "multiprocessing.spawn"
_KEY = "durabledbm"

_told: str | None = None


def message(options: dict[str, Any]) -> str:
    """What children are told: the options of `install()`, and the directories to import durabledbm and crc32c from.

    Raises `TypeError` for options that cannot be written as JSON.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(_FILE)))
    checksums = PathFinder.find_spec("crc32c")
    places = [os.path.dirname(package)]
    if checksums is not None and checksums.origin is not None:
        places.append(os.path.dirname(os.path.dirname(os.path.abspath(checksums.origin))))
    told = {"options": options, "python": sys.implementation.cache_tag, "path": list(dict.fromkeys(places))}
    try:
        return json.dumps(told)
    except TypeError as exc:
        raise TypeError(f"an option that cannot be passed to child processes: {exc}") from exc


def options_from_parent() -> dict[str, Any] | None:
    """The options of the parent's `install()`; None if it made none. Raises `ValueError` if they are malformed."""
    told = os.environ.get(VARIABLE)
    if told is None:
        return None
    known = json.loads(told)
    options = known.get("options") if isinstance(known, dict) else None
    if not isinstance(options, dict):
        raise ValueError(f"{VARIABLE} holds {told!r} instead of options")
    return options


def environment(options: dict[str, Any]) -> dict[str, str]:
    """This process's environment, for a child in which `install(**options)` is in effect.

    Raises `ValueError` if this directory's name cannot be part of PYTHONPATH.
    """
    directory = os.path.dirname(_FILE)
    if os.pathsep in directory:
        raise ValueError(f"{directory}: a directory with '{os.pathsep}' in its name can't stand in PYTHONPATH")
    environ = dict(os.environ)
    announce_in(environ, message(options))
    return environ


def announce(told: str | None) -> None:
    """Tell every process that is started from now on `told`, a `message()`; None: nothing is installed."""
    global _told
    _told = told
    announce_in(os.environ, told)
    waiting = [finder for finder in sys.meta_path if isinstance(finder, AfterImport) and finder.name == _SPAWN]
    if _SPAWN in sys.modules:
        _change_preparation()
    elif told is None:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in waiting]
    elif not waiting:
        AfterImport(_SPAWN, _change_preparation)


class _Preparation:
    """What multiprocessing pickles for a child: unpickling it runs `sitecustomize.py` in the child."""

    def __init__(self, told: str | None) -> None:
        self.told = told

    def __reduce__(self) -> tuple[Any, ...]:
        return runpy.run_path, (_FILE, {"TOLD": self.told}, PREPARATION)


def _change_preparation() -> None:
    """Extend the preparation data of multiprocessing's children, or restore the original."""
    spawn: Any = sys.modules[_SPAWN]
    original = getattr(spawn.get_preparation_data, "original", None)
    if original is not None:
        if _told is None and not _server_runs():
            spawn.get_preparation_data = original
        return
    if _told is None or not os.path.isfile(_FILE):
        return  # in a zip archive, the environment must do
    original = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = original(name)
        data[_KEY] = _Preparation(_told)
        return data

    get_preparation_data.original = original  # type: ignore[attr-defined]
    spawn.get_preparation_data = get_preparation_data


def _server_runs() -> bool:
    """Whether a fork server was started, whose children would otherwise know only what held at its start."""
    module: Any = sys.modules.get("multiprocessing.forkserver")
    return module is not None and getattr(module._forkserver, "_forkserver_pid", None) is not None
