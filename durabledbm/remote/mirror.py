"""mirror: a database on a server that follows a file, until the program that uses the file is moved over.

::

    with Mirror("app.db", remote.open("postgresql://...", table="app")) as mirror:
        mirror.load()                     # one state of the file
        while not ready_to_switch():
            mirror.catch_up()             # what was committed since, again and again
        mirror.finish()                   # the file has no writers any more: the last changes

Programs may go on using the file, and need not cooperate. The mirror holds a snapshot of what it has copied, and
compares it with the present state. The trees of two states share everything that has not changed, so comparing costs
only what has changed. The snapshot keeps replaced pages from being reused, so the file grows with what changes between
two comparisons.

An attached change log would not be a better source. Commits that its program had no time to log one by one are one
commit there, and a snapshot taken among them cannot be continued from it.

Everything that is applied is a step from one commit of the file to a later one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._files.arguments import Meter, Path, Progress
from .._files.tree_diff import differences
from ..changelog import Commit
from ..database import open as open_database
from ..errors import error
from ..snapshot import Snapshot

if TYPE_CHECKING:
    from .database import RemoteDatabase

__all__ = ["Mirror"]




class Mirror:
    """Copies a file to `target`, and then what is committed to it meanwhile. A context manager; `close()` ends it.

    file: a database file. It is only read, except by `finish`.
    target: a database of `durabledbm.remote`, to which nothing else writes.
    replace: delete what `target` holds. Otherwise `load` refuses a target that is not empty.
    timeout: seconds that `finish` waits for a writer.
    """

    def __init__(
        self, file: Path, target: RemoteDatabase, *, replace: bool = False, timeout: float | None = 30.0
    ) -> None:
        self.path = os.fsdecode(file)
        self.target = target
        self._replace = replace
        self._timeout = timeout
        self._db = open_database(self.path, "r")
        self._shown: Snapshot | None = None
        """The state of the file that the target shows."""

    @property
    def commit(self) -> Commit | None:
        """The commit of the file that the target shows; None before `load` and after `close`."""
        return None if self._shown is None else _commit_of(self._shown)

    # -- the three steps -----------------------------------------------------------------------------------------

    def load(self, progress: Progress | None = None) -> int:
        """Copy one state of the file, and return the number of its entries.

        On PostgreSQL it is one commit. `progress(done, total)` counts entries, including those that are read back and
        compared. Raises `error` if the target is not empty or the file has other tables than the main one, and what the
        file and the server raise.
        """
        if not self._replace and self.target:
            raise error(f"{self.target.location}: the table {self.target.name!r} is not empty")
        snapshot = self._db.snapshot()
        if snapshot.tables():
            raise error(f"{self.path}: holds tables beside the main one, and only that can be mirrored")
        total = 2 * len(snapshot)
        meter = Meter(progress, total)
        with self.target.loading(progress, replace=self._replace) as loader:
            for key, value in meter.watch(snapshot.items()):
                loader.change(key, value)
        if progress is not None:
            progress(total, total)
        self._shown = snapshot
        return meter.done

    def catch_up(self) -> Commit | None:
        """Copy what was committed since, and return the commit that the target shows then; None if there was nothing.

        On PostgreSQL it is one commit, on Redis one for each thousand changes. If it raises, `ConnectionLostError` or
        `BusyError` for example, it may be called again.
        """
        before = self._shown
        if before is None:
            raise error("load() comes before catch_up()")
        after = self._db.snapshot()
        if after.txid == before.txid:
            after.close()
            return None
        try:
            old = before._state
            self.target._apply_all(differences(old.view.tree, after._state, old.meta.changes))
        except BaseException:
            after.close()
            raise
        self._shown = after
        before.close()
        return _commit_of(after)

    def finish(self) -> Commit:
        """Copy the last changes while the file is locked against writers, and return the file's last commit.

        Later writes to the file are not copied. Raises `BusyError` if another writer holds the file for longer than
        `timeout`, and `error` if the target has a different number of entries than the file, because then something
        else has written there.
        """
        while self.catch_up() is not None:
            pass  # most of it, before anybody has to wait
        with open_database(self.path, "w", timeout=self._timeout) as writer, writer.transaction():
            self.catch_up()
            shown = self._shown
            assert shown is not None
            if len(shown) != len(self.target):
                raise error(f"{self.target.location}: {self.target.name!r} does not match the file")
            return _commit_of(shown)

    def verify(self, progress: Progress | None = None) -> int:
        """Compare every entry of the file with the target's, and return their number. Raises `error` at a difference.

        Call it after `finish`, while neither is written to. `progress(done, total)` counts entries.
        """
        with self._db.snapshot() as snapshot:
            meter, theirs = Meter(progress, len(snapshot)), iter(self.target.items())
            for entry in meter.watch(snapshot.items()):
                self._compare(entry, next(theirs, None))
            if next(theirs, None) is not None:
                raise error(f"{self.target.location}: there are more entries than in the file")
        return meter.done

    def _compare(self, entry: tuple[bytes, bytes], theirs: tuple[bytes, bytes] | None) -> None:
        if theirs != entry:
            raise error(f"{self.target.location}: the entry {entry[0][:50]!r} differs from the file")

    def close(self) -> None:
        """Release the file. The target stays open. Closing twice is harmless."""
        self._shown = None
        self._db.close()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _commit_of(snapshot: Snapshot) -> Commit:
    meta = snapshot._state.meta
    return Commit(meta.txid, meta.time_ns)
