"""The methods of a database that look after its file: check, stats, reorganize, backup, attach.

Each is a module of its own; this is where they meet the handle. They are imported with it, not when they are first
used: by then the process may have another root directory, or no descriptor left to read a module with.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ._engine.pipeline import Pipeline
from ._engine.store import Store
from ._engine.threads import Lease
from .backup import backup
from .check import Problem, Progress, check_state
from .errors import ClosedError, error
from .reorganize import reorganize
from .snapshot import Pin
from .stats import Stats, gather

if TYPE_CHECKING:
    import weakref

    from .attach import Attachment
    from .changelog import ChangeLog
    from .transaction import Transaction

__all__ = ["Upkeep"]


class Upkeep:
    """What `Database` inherits from here works on the store and the pipeline that it has."""

    __slots__ = ()

    _store: Store
    _pipeline: Pipeline
    _transactions: list[weakref.ref[Transaction]]
    path: str

    @property
    def readonly(self) -> bool:
        """Whether the handle was opened with flag "r"."""
        return self._store.readonly

    def _check(self) -> None:
        self._store.check()

    def _pin(self, *, displaced: bool = False) -> Pin:
        raise NotImplementedError

    def _error(self, cause: OSError) -> error:
        """What to raise for an error of the operating system: if the handle was closed meanwhile, that counts."""
        try:
            return ClosedError() if self._store.closed else error.wrap(cause, self.path)
        finally:
            del cause  # see `wrap`

    def _raise_background_failure(self) -> None:
        raise NotImplementedError

    def sync(self) -> None:
        raise NotImplementedError

    def check(self, *, progress: Progress | None = None) -> list[Problem]:
        """Verify every page of the newest commit, from the disk. An empty list means that all is well.

        Others may read and write meanwhile. `progress(done, total)` is called with numbers of pages. Damage is
        reported, not raised; `error` is raised if the file cannot be read at all.
        """
        pin = self._pin()
        try:
            return check_state(self._store, pin.state, progress)
        except OSError as exc:
            raise self._error(exc) from exc
        finally:
            pin.release()

    def stats(self) -> Stats:
        """Figures of the newest commit and of this handle (see `Stats`). Reads the branches of the tree, no leaf.

        Raises `CorruptionError` if what it reads is damaged.
        """
        pin = self._pin()
        try:
            return gather(self._store, pin.state)
        except OSError as exc:
            raise self._error(exc) from exc
        finally:
            pin.release()

    def reorganize(self, *, progress: Progress | None = None) -> None:
        """Make the file as small as its content allows, by ordinary commits, while others read and write.

        Needs free disk space of about a megabyte. What a snapshot pins stays. An interruption, by a crash or by an
        exception of `progress(done, total)`, which is called now and then, loses nothing. Raises `ReadOnlyError`,
        `BusyError` if another writer holds the file for longer than `timeout`, and what a commit raises.
        """
        self._store.check_writable()
        self._raise_background_failure()
        lease = Lease()
        try:
            self._store.inside.call(reorganize, self._pipeline.committer, partial(self._pipeline.writing, lease), progress)
        except OSError as exc:
            raise self._error(exc) from exc
        finally:
            lease.end()

    def backup(
        self, target: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, progress: Progress | None = None
    ) -> None:
        """Write a consistent, compact copy, synced, to the file `target`, which appears whole or not at all.

        A file that is there is replaced. The copy has the database's identity, permissions and commit number. Others
        may read and write meanwhile. `progress(done, total)` is called with numbers of entries. Raises `error` if the
        target cannot be written or is the database itself, and `CorruptionError` if the database is damaged.

        A file that was moved or removed while it was open is copied, too, as of its last commit: nothing else can be
        done with it any more.
        """
        if not self.readonly and not self._transactions and self._store.in_place():
            self.sync()
        pin = self._pin(displaced=True)
        try:
            backup(self._store, pin.state, target, progress)
        except OSError as exc:
            raise self._error(exc) from exc
        finally:
            pin.release()

    def attach(self, log: ChangeLog) -> Attachment:
        """Append every commit from now on to `log`, too, in order, after it is durable: an incremental backup.

        What the log lacks is added first. An empty log is bound to this database and begins here: take a backup
        after this, not before. Raises `error` if the log belongs to another database or cannot be completed, or if one
        is attached already; `BusyError` if somebody else writes to the log; `ReadOnlyError`.
        """
        if not hasattr(log, "_attach_to"):
            raise TypeError(f"attach() needs a ChangeLog, not {type(log).__name__}")
        self._store.check_writable()
        return self._store.inside.call(log._attach_to, self._pipeline.committer, self._pipeline.writing)
