"""durabledbm: a dict that lasts.

A crash-safe replacement for `dbm` and `shelve`: `import durabledbm as dbm` is the whole change. See README.md.
"""

from .database import Database, open  # noqa: A004
from .errors import BusyError, ClosedError, CorruptionError, ReadOnlyError, error
from .snapshot import Snapshot
from .transaction import Transaction

__all__ = [
    "BusyError", "ClosedError", "CorruptionError", "Database", "ReadOnlyError", "Snapshot", "Transaction", "error",
    "open",
]  # fmt: skip

__version__ = "0.1.0"
