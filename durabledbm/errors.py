"""The exceptions of durabledbm, all in one tree.

::

    OSError
    └── error                  something that a file, a disk or a caller did wrong
        ├── BusyError          a writer waited for another writer longer than `timeout`, or would deadlock
        ├── CorruptionError    the file's bytes are not what durabledbm wrote
        ├── ReadOnlyError      a write through a handle opened with flag "r"
        └── ClosedError        a handle used after close()

All of them are `OSError`s, so `except dbm.error` (the standard library's tuple) catches them. `KeyError`, `TypeError`
and `ValueError` are raised where a dict would raise them. What durabledbm's own code guarantees is asserted: an
`AssertionError` is a bug in durabledbm.
"""

from __future__ import annotations

from ._interrupts import is_interrupt

__all__ = ["BusyError", "ClosedError", "CorruptionError", "ReadOnlyError", "error"]


class error(OSError):  # noqa: N801 - the name that every dbm module uses
    """Base class of every failure that durabledbm reports. `errno` and `filename` are set where they are known."""

    @classmethod
    def wrap(cls, cause: OSError, path: str | None = None) -> error:
        """Return an operating system error as one of ours, with its errno and file name.

        If it is one of ours already, or an interrupt, it is raised. `raise error.wrap(exc) from exc` would otherwise
        make it its own cause: a reference cycle that keeps alive everything its traceback refers to.
        """
        if isinstance(cause, error) or is_interrupt(cause):
            try:
                raise cause
            finally:
                del cause  # this frame is in the traceback now: else another circle
        if cause.errno is None:
            return cls(str(cause))
        return cls(cause.errno, cause.strerror, path if path is not None else cause.filename)

    @classmethod
    def because(cls, cause: BaseException, what: str, path: str) -> error:
        """Return an error that says `what` failed earlier because of `cause`, with the cause's errno if it has one."""
        if isinstance(cause, OSError) and cause.errno is not None:
            return cls(cause.errno, f"{what}: {cause.strerror}", path)
        return cls(f"{path}: {what}: {cause}")


class BusyError(error):
    """Another writer held the file for longer than `timeout` seconds, or waiting would deadlock. Nothing was written.
    """


class ReadOnlyError(error):
    """A write through a handle that was opened for reading only. Nothing was written."""


class ClosedError(error):
    """The handle, transaction or snapshot was used after its end."""

    def __init__(self, message: str = "DBM object has already been closed") -> None:
        super().__init__(message)


class CorruptionError(error):
    """The file contains something that durabledbm did not write there.

    `path` is the file and `page_id` the page, or None if no single page is damaged.
    """

    def __init__(self, message: str, *, path: str | None = None, page_id: int | None = None) -> None:
        where = "" if page_id is None else f" (page {page_id})"
        prefix = "" if path is None else f"{path}: "
        super().__init__(f"{prefix}{message}{where}")
        self.message = message
        self.path = path
        self.page_id = page_id

    def __reduce__(self) -> tuple[object, ...]:
        return _corruption, (self.message, self.path, self.page_id)


def _corruption(message: str, path: str | None, page_id: int | None) -> CorruptionError:
    return CorruptionError(message, path=path, page_id=page_id)
