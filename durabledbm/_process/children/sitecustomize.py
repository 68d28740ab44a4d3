"""The first thing that a Python process runs if `install()` is in effect in its parent.

The directory of this file is first in the child's PYTHONPATH, so `site` imports this module instead of the
environment's own `sitecustomize`, which is then imported from here. A child of multiprocessing runs the file once more
as part of its preparation: that reaches interpreters which ignore the environment, and children of a fork server that
was started earlier.

It runs in any interpreter: perhaps an old one, or one without durabledbm. So it uses only the standard library, imports
durabledbm only when the program itself imports `dbm`, and leaves `sys.path` as it would be without it.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["PREPARATION", "VARIABLE", "AfterImport", "announce"]

VARIABLE = "DURABLEDBM_INSTALL"
"""The environment variable that holds what a child is told, as `durabledbm._process.children` writes it."""

PREPARATION = "durabledbm preparation"
"""`__name__` of this file where it runs as part of multiprocessing's preparation. `TOLD` is then a global of it."""

_DIRECTORY = os.path.dirname(os.path.abspath(__file__))


def announce(environ: "MutableMapping[str, str]", told: "str | None") -> None:
    """Put what children are told into an environment that they will be started with; None takes it out again."""
    path = environ.pop("PYTHONPATH", _DIRECTORY)
    others = [entry for entry in path.split(os.pathsep) if entry != _DIRECTORY]
    if told is None:
        environ.pop(VARIABLE, None)
    else:
        environ[VARIABLE] = told
        others = [_DIRECTORY, *others] if path else [_DIRECTORY]
    if others:
        environ["PYTHONPATH"] = os.pathsep.join(others)


class AfterImport:
    """A finder on `sys.meta_path` that calls `action()` once, after the module `name` has been imported."""

    def __init__(self, name: str, action: "Callable[[], None]") -> None:
        self.name = name
        self.action = action
        sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Let the finders behind this one find the module, and have its loader call the action."""
        if name != self.name or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None

    def done(self) -> None:
        """The module has been imported."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self.action()


class _Loader:
    """A loader that calls back when it is done. The module does not see it, nor does code that only looks for the
    module.
    """

    def __init__(self, loader: "Any", watch: AfterImport) -> None:
        self.loader = loader
        self.watch = watch

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: "ModuleType") -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.watch.done()


def _start() -> None:
    """Make `dbm` use durabledbm: now, or when it is imported."""
    if "dbm" in sys.modules:
        _install()
    else:
        AfterImport("dbm", _install)


def _install() -> None:
    """Import durabledbm, which does what this process was told (`durabledbm.stdlib.inherit`).

    Whatever goes wrong here, as in a Python that is too old for durabledbm, the program goes on with plain `dbm`.
    """
    try:
        import durabledbm.stdlib  # noqa: F401
    except Exception as exc:
        if not _imported_from_parent():
            import warnings

            warnings.warn(
                f"dbm and shelve do not use durabledbm in this process, as they do in its parent: {exc}",
                RuntimeWarning, stacklevel=2,
            )  # fmt: skip


def _imported_from_parent() -> bool:
    """Import durabledbm from where the parent has it, if that is the same Python."""
    import importlib
    import json

    path = list(sys.path)
    try:
        told = json.loads(os.environ[VARIABLE])
        if told["python"] != sys.implementation.cache_tag:
            return False
        sys.path += told["path"]
        importlib.import_module("durabledbm.stdlib")
        return True
    except Exception:  # the message may be garbled, the packages of another build
        return False
    finally:
        sys.path[:] = path


def _prepare(told: "str | None") -> None:
    """In a child of multiprocessing: the parent's latest options, whatever the environment or the fork server says."""
    announce(os.environ, told)
    stdlib: Any = sys.modules.get("durabledbm.stdlib")
    if stdlib is not None:
        stdlib.inherit()
    elif told is not None:
        _start()


def _next_sitecustomize() -> None:
    """Import the module that this one hides. If there is none, `site` expects this very ImportError."""
    sys.path[:] = [entry for entry in sys.path if entry != _DIRECTORY]
    sys.modules.pop("sitecustomize", None)
    __import__("sitecustomize")


if __name__ == "sitecustomize":
    _start()
    _next_sitecustomize()
elif __name__ == PREPARATION:
    _prepare(globals()["TOLD"])
