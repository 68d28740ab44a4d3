"""mirror: a database on a server that follows a file, until the program that uses the file is moved over.

::

    with Mirror("app.db", remote.open("postgresql://...", table="app")) as mirror:
        mirror.load()                     # one state of the file
        while not ready_to_switch():
            mirror.catch_up()             # what was committed since, again and again
        mirror.finish()                   # nobody writes to the file any more: the last of it

The file is in use meanwhile. What was committed is found in one of two ways. With the log of changes that the program
has attached to the file, its commits are read from there, and the file is left alone. Without one, the mirror holds a
snapshot of what it has brought over, and compares it with the present state; the trees of two states share all that
has not changed, so that costs what has changed. The snapshot keeps the pages that are replaced from being used again,
so the file grows with what is changed between two looks.

Everything that is applied is a step from one commit of the file to a later one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from ._treediff import differences
from .changelog import Change, ChangeLog, Commit
from .database import Database
from .database import open as open_database
from .dump import open_log
from .errors import error
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .remote.database import RemoteDatabase

__all__ = ["Mirror"]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Progress = Callable[[int, "int | None"], None]
_Changes = Iterator[tuple[bytes, "bytes | None"]]

_REPORT_EVERY = 1024

_STEP = 1000
"""Changes after which a step ends with the commit that they belong to."""


class _Source(Protocol):
    """What tells the changes behind a commit."""

    def changes(self) -> _Changes | None:
        """Those of the next step, or None if there are none yet."""

    def done(self) -> Commit:
        """The step was made. Returns the commit that it led to."""

    def again(self) -> None:
        """The step was not made, or it is not known whether: tell it again."""


class Mirror:
    """Brings a file over to `target`, and what is committed to it meanwhile. A context manager, or `close()` it.

    file: a database file. It is only read, but by `finish`.
    target: a database of `durabledbm.remote`, which nobody else writes to.
    log: the directory of the log of changes that is attached to the file. Without it the file is compared with itself.
    replace: delete what `target` holds. Otherwise `load` refuses one that is not empty.
    timeout: seconds that `finish` waits for a writer.
    """

    def __init__(
        self, file: Path, target: RemoteDatabase, *, log: Path | None = None, replace: bool = False,
        timeout: float | None = 30.0,
    ) -> None:  # fmt: skip
        self.path = os.fsdecode(file)
        self.target = target
        self.commit: Commit | None = None
        """The commit of the file that the target shows; None before `load`."""
        self._log = log
        self._replace = replace
        self._timeout = timeout
        self._stack = ExitStack()
        self._db = self._stack.enter_context(open_database(self.path, "r"))
        self._source: _Source | None = None

    # -- the three steps -----------------------------------------------------------------------------------------

    def load(self, progress: Progress | None = None) -> int:
        """Bring one state of the file over, and return the number of its entries.

        On PostgreSQL it is one commit. `progress(done, total)` is called with numbers of entries, those that are read
        back to compare them included. Raises `error` if the target is not empty, or the log does not belong to the
        file; what the file and the server raise.
        """
        snapshot = self._stack.enter_context(self._db.snapshot())
        source: _Source = _Differences(self._db, snapshot) if self._log is None else _Log(self._log, snapshot)
        if not self._replace and self.target:
            raise error(f"{self.target.location}: the table {self.target.name!r} is not empty")
        total, count = 2 * len(snapshot), 0
        with self.target.loading(progress, replace=self._replace) as loader:
            for key, value in snapshot.items():
                loader.change(key, value)
                count += 1
                if progress is not None and count % _REPORT_EVERY == 0:
                    progress(count, total)
        if progress is not None:
            progress(total, total)
        self.commit = _commit_of(snapshot)
        self._source = source
        if self._log is not None:
            snapshot.close()  # from now on the log tells
        return count

    def catch_up(self) -> Commit | None:
        """Bring over what was committed since, and return the commit that the target shows then; None: nothing was.

        On PostgreSQL it is one commit, on Redis one for each thousand changes. If it raises, `ConnectionLostError` or
        `BusyError` for example, it may be called again.
        """
        if self._source is None:
            raise error("load() comes before catch_up()")
        changes = self._source.changes()
        if changes is None:
            return None
        try:
            self.target._apply_all(changes)
        except BaseException:
            self._source.again()
            raise
        self.commit = self._source.done()
        return self.commit

    def finish(self) -> Commit:
        """Bring over the last of it, while nobody can write to the file, and return the file's last commit.

        Who writes to the file after this writes to nobody. Raises `BusyError` if somebody is writing for longer than
        `timeout`, or has the log attached and has not caught up; `error` if the target has not as many entries as the
        file, since then somebody else has written there.
        """
        with ExitStack() as stack:
            writer = stack.enter_context(open_database(self.path, "w", timeout=self._timeout))
            while self.catch_up() is not None:
                pass  # most of it, before anybody has to wait
            if self._log is not None and self.commit != _newest(writer):  # the program has ended without its log
                log = stack.enter_context(ChangeLog(self._log))
                writer.attach(log).detach()
            with writer.transaction():
                while self.catch_up() is not None:
                    pass
                with self._db.snapshot() as snapshot:
                    if self.commit != _commit_of(snapshot) or len(snapshot) != len(self.target):
                        raise error(f"{self.target.location}: {self.target.name!r} is not what the file is")
                    return _commit_of(snapshot)

    def verify(self, progress: Progress | None = None) -> int:
        """Compare every entry of the file with the target's, and return their number. Raises `error` at a difference.

        To be called after `finish`, while nobody writes here or there. `progress(done, total)` counts entries.
        """
        with self._db.snapshot() as snapshot:
            count, total, theirs = 0, len(snapshot), iter(self.target.items())
            for entry in snapshot.items():
                if next(theirs, None) != entry:
                    raise error(f"{self.target.location}: the entry {entry[0][:50]!r} is not what it is in the file")
                count += 1
                if progress is not None and count % _REPORT_EVERY == 0:
                    progress(count, total)
            if next(theirs, None) is not None:
                raise error(f"{self.target.location}: there are more entries than in the file")
        return count

    def close(self) -> None:
        """Let go of the file. The target stays open. Closing twice is harmless."""
        self._source = None
        self._stack.close()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _commit_of(snapshot: Snapshot) -> Commit:
    meta = snapshot._state.meta
    return Commit(meta.txid, meta.time_ns)


def _newest(db: Database) -> Commit:
    with db.snapshot() as snapshot:
        return _commit_of(snapshot)


class _Differences:
    """What changed between a snapshot and the present."""

    def __init__(self, db: Database, snapshot: Snapshot) -> None:
        self._db = db
        self._before = snapshot
        self._after: Snapshot | None = None

    def changes(self) -> _Changes | None:
        after = self._db.snapshot()
        if after.txid == self._before.txid:
            after.close()
            return None
        self._after = after
        before = self._before._state
        return differences(before.view.tree, after._state, before.meta.changes)

    def done(self) -> Commit:
        assert self._after is not None
        self._before.close()
        self._before, self._after = self._after, None
        return _commit_of(self._before)

    def again(self) -> None:
        if self._after is not None:
            self._after.close()
            self._after = None


class _Log:
    """What an attached log has behind the commit of a snapshot."""

    def __init__(self, directory: Path, snapshot: Snapshot) -> None:
        self._log = open_log(directory, "binary")
        if self._log.span().identity != snapshot._state.meta.database_id:
            raise error(f"{self._log.directory}: is not a log of this file")
        self._commit = self._reached = _commit_of(snapshot)
        self._items = self._log.follow(self._commit.txid)

    def changes(self) -> _Changes | None:
        first = next(self._items)
        return None if first is None else self._step(first)

    def _step(self, item: Change | Commit | None) -> _Changes:
        """The changes of whole commits, until they are enough, or there are no more for now."""
        count = 0
        while item is not None:
            if isinstance(item, Commit):
                self._reached = item
                if count >= _STEP:
                    return
            else:
                yield item.key, item.value
                count += 1
            item = next(self._items)

    def done(self) -> Commit:
        self._commit = self._reached
        return self._commit

    def again(self) -> None:
        self._reached = self._commit
        self._items = self._log.follow(self._commit.txid)
