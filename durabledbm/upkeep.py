"""The methods of a database that look after its file: check, stats, reorganize, backup, attach.

Each is a module of its own; this is where they meet the handle.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ._engine.group import Group
from ._engine.locks import Turn
from ._engine.store import Store
from .check import Problem, Progress, check_state
from .errors import error
from .reorganize import reorganize
from .snapshot import Pin
from .stats import Stats, gather

if TYPE_CHECKING:
    from ._engine.deferred import Deferred
    from .attach import Attachment
    from .changelog import ChangeLog
    from .transaction import Transaction

__all__ = ["Upkeep"]


class Upkeep:
    """What `Database` inherits from here works on the store and the pipeline that it has."""

    __slots__ = ()

    _store: Store
    _pipeline: Group | Deferred
    _transactions: list[Transaction]

    @property
    def readonly(self) -> bool:
        """Whether the handle was opened with flag "r"."""
        return self._store.readonly

    def _pin(self) -> Pin:
        raise NotImplementedError

    def _error(self, cause: OSError) -> error:
        raise NotImplementedError

    def _raise_background_failure(self) -> None:
        raise NotImplementedError

    def sync(self) -> None:
        raise NotImplementedError

    def check(self, *, progress: Progress | None = None) -> list[Problem]:
        """Verify every page of the newest commit, from the disk. An empty list means that all is well.

        Others may read and write meanwhile. `progress(done, total)` is called with numbers of pages.
        """
        pin = self._pin()
        try:
            return check_state(self._store, pin.state, progress)
        except OSError as exc:
            raise self._error(exc) from exc
        finally:
            pin.release()

    def stats(self) -> Stats:
        """Figures of the newest commit and of this handle (see `Stats`). Reads the branches of the tree, no leaf."""
        pin = self._pin()
        try:
            return gather(self._store, pin.state)
        except OSError as exc:
            raise self._error(exc) from exc
        finally:
            pin.release()

    def reorganize(self, *, progress: Progress | None = None) -> None:
        """Make the file as small as its content allows, by ordinary commits, while others read and write.

        Needs free disk space of about a megabyte. What a snapshot pins stays. `progress(done, total)` is called now
        and then.
        """
        self._store.check_writable()
        self._raise_background_failure()
        turn = Turn()
        try:
            reorganize(self._store, partial(self._pipeline.turn, turn), progress)
        except OSError as exc:
            raise self._error(exc) from exc
        finally:
            turn.end()

    def backup(self, target: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
        """Write a consistent, compact copy to `target`, which appears whole or not at all.

        Others may read and write meanwhile. `progress(done, total)` is called with numbers of entries.
        """
        from .backup import backup

        if not self.readonly and not self._transactions:
            self.sync()
        pin = self._pin()
        try:
            backup(self._store, pin.state, target, progress)
        except OSError as exc:
            raise self._error(exc) from exc
        finally:
            pin.release()

    def attach(self, log: ChangeLog) -> Attachment:
        """Append every commit from now on to `log`, too, in order, after it is durable: an incremental backup.

        What the log lacks is added first. Raises `error` if it belongs to another database.
        """
        from .attach import attach

        self._store.check_writable()
        return attach(self._store, self._pipeline.turn, log)
