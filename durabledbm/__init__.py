"""durabledbm: a dict that lasts.

A crash-safe replacement for `dbm` and `shelve`: `import durabledbm as dbm` is the whole change. See README.md.
"""

from __future__ import annotations

from .errors import BusyError, ClosedError, CorruptionError, ReadOnlyError, error

TYPE_CHECKING = False
"""What `typing` has under this name, without the time that importing it takes."""

if TYPE_CHECKING:
    from . import changelog, remote
    from . import dump as dump
    from . import export as export
    from . import reshard as reshard
    from . import restore as restore
    from . import salvage as salvage
    from . import shelve as shelve
    from .database import Database, Durability, Flag, open  # noqa: A004
    from .maintenance.check import Problem
    from .maintenance.stats import Stats
    from .migration import migrate
    from .sharded import ShardedDatabase, open_sharded
    from .snapshot import Snapshot
    from .stdlib import install, uninstall, whichdb
    from .transaction import Transaction

    _Database = Database  # what typeshed calls the class that `dbm.open` returns

__all__ = [
    "BusyError", "ClosedError", "CorruptionError", "Database", "Durability", "Flag", "Problem", "ReadOnlyError",
    "ShardedDatabase", "Snapshot", "Stats", "Transaction", "__version__", "changelog", "error", "install", "migrate",
    "open", "open_sharded", "remote", "uninstall", "whichdb",
]  # fmt: skip

__version__ = "0.1.0"

_LAZY = {
    "Database": "database", "Durability": "database", "Flag": "database", "Problem": "maintenance.check",
    "ShardedDatabase": "sharded", "Snapshot": "snapshot", "Stats": "maintenance.stats", "Transaction": "transaction",
    "changelog": "", "dump": "", "export": "", "install": "stdlib", "migrate": "migration", "open": "database",
    "open_sharded": "sharded", "remote": "", "reshard": "", "restore": "", "salvage": "", "shelve": "",
    "uninstall": "stdlib", "whichdb": "stdlib",
}  # fmt: skip
"""What is imported when it is first asked for, as `dbm` does: `import durabledbm` alone costs next to nothing. The
names without a module are modules themselves."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        try:
            module = import_module(f".{_LAZY[name] or name}", __name__)
        except ImportError as exc:
            if exc.name == "crc32c":
                raise exc.with_traceback(None) from None  # the message says what to do; the traceback would not help
            if (exc.name or "").startswith(f"{__name__}."):
                lost = "this process no longer finds the files of the package, as after os.chroot(): use it once before"
                raise error(f"durabledbm.{name} cannot be imported: {lost}") from exc
            raise
        except OSError as exc:  # no descriptor is left, for example
            raise error.because(exc, f"durabledbm.{name} cannot be imported", __file__) from exc
        value = getattr(module, name) if _LAZY[name] else module
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, "errors", *(name for name in globals() if name.startswith("__"))})
