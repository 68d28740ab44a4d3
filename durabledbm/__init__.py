"""durabledbm: a dict that lasts.

A crash-safe replacement for `dbm` and `shelve`: `import durabledbm as dbm` is the whole change. See README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .database import open  # noqa: A004
from .errors import BusyError, ClosedError, CorruptionError, ReadOnlyError, error
from .handle import Database
from .snapshot import Snapshot
from .transaction import Transaction

if TYPE_CHECKING:
    from . import changelog
    from .migration import migrate
    from .sharded import ShardedDatabase, open_sharded
    from .stdlib import install, uninstall, whichdb

__all__ = [
    "BusyError", "ClosedError", "CorruptionError", "Database", "ReadOnlyError", "ShardedDatabase", "Snapshot",
    "Transaction", "__version__", "changelog", "error", "install", "migrate", "open", "open_sharded", "uninstall",
    "whichdb",
]  # fmt: skip

__version__ = "0.1.0"

_LAZY = {
    "ShardedDatabase": "sharded", "changelog": "", "install": "stdlib", "migrate": "migration",
    "open_sharded": "sharded", "shelve": "", "uninstall": "stdlib", "whichdb": "stdlib",
}  # fmt: skip
"""What is imported when it is first asked for: opening a database should not cost more than it must."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f".{_LAZY[name] or name}", __name__)
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
