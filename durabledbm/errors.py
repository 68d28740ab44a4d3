"""The exceptions of durabledbm, all in one tree.

::

    OSError
    └── error                  anything that a file, a disk or a caller did wrong
        ├── BusyError          a writer waited longer than `timeout` for another writer
        ├── CorruptionError    the file's bytes are not what was written
        ├── ReadOnlyError      a write through a handle opened with flag "r"
        └── ClosedError        a handle used after close()

Everything is an `OSError`, so `except dbm.error` (the standard library's tuple) catches it. `KeyError`, `TypeError`
and `ValueError` are raised where a dict would raise them. What durabledbm's own code guarantees is asserted: an
`AssertionError` is a bug in durabledbm, never the user's fault.
"""

from __future__ import annotations

__all__ = ["BusyError", "ClosedError", "CorruptionError", "ReadOnlyError", "error"]


class error(OSError):  # noqa: N801 - the name that every dbm module uses
    """Base class of every failure that durabledbm reports. `errno` and `filename` are set where they are known."""

    @classmethod
    def wrap(cls, cause: OSError, path: str | None = None) -> error:
        """Return `cause`, an error of the operating system, as one of ours, keeping errno and file name.

        If it is one of ours already, it is raised, since `raise error.wrap(exc) from exc` would make it its own cause:
        a circle of references, which keeps everything alive that its traceback can see, snapshots among it.
        """
        if isinstance(cause, error):
            try:
                raise cause
            finally:
                del cause  # this frame is in the traceback now: else another circle
        if cause.errno is None:
            return cls(str(cause))
        return cls(cause.errno, cause.strerror, path if path is not None else cause.filename)

    @classmethod
    def because(cls, cause: BaseException, what: str, path: str) -> error:
        """Return the error that says `what` failed earlier because of `cause`, with the errno of that if it has one."""
        if isinstance(cause, OSError) and cause.errno is not None:
            return cls(cause.errno, f"{what}: {cause.strerror}", path)
        return cls(f"{path}: {what}: {cause}")


class BusyError(error):
    """Another writer held the file for longer than `timeout` seconds. Nothing was written."""


class ReadOnlyError(error):
    """A write was asked of a handle that was opened for reading only. Nothing was written."""


class ClosedError(error):
    """The handle (or the transaction or snapshot) was used after its end."""

    def __init__(self, message: str = "DBM object has already been closed") -> None:
        super().__init__(message)


class CorruptionError(error):
    """The file holds something that durabledbm did not write there.

    `path` is the file, `page_id` the page (None if no single page is to blame).
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
