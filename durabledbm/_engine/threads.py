"""The threads of one process: what may interrupt them, how they wait, and how they queue.

**The interrupt discipline.** A signal handler, `PyThreadState_SetAsyncExc` or a finalizer may raise an exception, or
run other code, between any two bytecodes. Whatever takes and gives back (locks, leases, pins, marks) therefore obeys
two rules, here and in all modules that refer to this page:

1. *Record before acquiring; clear the record after releasing.* So an interrupt in between leaves a record of something
   that is perhaps not held, never something held without a record.
2. *Releasing twice is harmless.* So a cleanup releases all that is recorded, without asking how far it got.

A record is therefore made inside the `try` whose `finally` releases it, and releasing is the first statement of that
`finally`, before which no interrupt can strike. Attributes that must change together are assigned in one statement,
which no interrupt divides.

From Python 3.12 on, a loop may return to its start by a jump that no `try` around it covers: if it is a `while` with a
condition, or if its body ends with an `if`. An interrupt at that jump skips the cleanup. So no loop in a `with`, or in
a `try` that cleans up, has that form; a test examines the bytecode.

`Patience` waits with a limit. `FairLock` is a queue of `Lease`s. `Inside` finds calls that interrupt their own thread.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from operator import methodcaller
from time import monotonic, sleep
from typing import Any, Protocol, TypeVar

from .._interrupts import is_from_handler
from ..errors import BusyError

__all__ = ["FairLock", "Inside", "Lease", "Patience", "forget_threads", "held_here", "report"]

T = TypeVar("T")

_LOOK = 0.2
"""Seconds after which a thread that waits for its lease looks by itself whether it has come."""

_BELIEVED = 1.0
"""Seconds that a nap may take beyond what it was to take. If the clock tells of more, it has jumped."""


class Waited(Protocol):
    """A `threading.Lock`, as far as it is waited for."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait at most `timeout` seconds; whether it was to be had."""


class Patience:
    """The time that is left for waiting: `seconds` in all, None for ever. It counts what was really waited.

    A clock may stand still or jump: tests replace it, and some machines adjust it while they are suspended. A wait that
    ends at a moment of the clock then never ends, or ends at once. So the naps are added up: a nap has taken as long as
    planned, or longer if the clock says so and can be believed.
    """

    __slots__ = ("left",)

    def __init__(self, seconds: float | None) -> None:
        self.left = inf if seconds is None else seconds
        """Seconds that are left."""

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.left <= 0

    def nap(self, seconds: float) -> None:
        """Sleep for `seconds`, or for what is left."""
        seconds = max(0.0, min(seconds, self.left))
        began = monotonic()
        sleep(seconds)
        self._count(seconds, monotonic() - began)

    def acquire(self, lock: Waited, seconds: float) -> bool:
        """Wait for `lock`, for at most `seconds`, whatever is left. Whether it was to be had."""
        began = monotonic()
        if lock.acquire(timeout=seconds):
            self._count(0.0, min(seconds, monotonic() - began))
            return True
        self._count(seconds, monotonic() - began)
        return False

    def _count(self, planned: float, told: float) -> None:
        self.left -= told if planned <= told <= planned + _BELIEVED else planned


# -- queues -------------------------------------------------------------------------------------


class Holder(Protocol):
    """What a lease is of: a `WriterLock`, say."""

    def release(self, entry: weakref.ref[Lease] | None) -> None:
        """Let the next one in, if it was the turn of `entry`; else only take `entry` out of the queue."""


class Lease:
    """One writer's turn. It is made before it is asked for, so it can be ended whatever happened since.

    Ending it puts right whatever an interrupt left half done, and may be done twice. A lease that was never ended ends
    when the last reference to it goes away: an operation that is interrupted even on its way out leaves nothing locked.
    """

    __slots__ = ("__weakref__", "entry", "holder", "stuck", "thread", "wakeup")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        """The thread that made it."""
        self.stuck: Callable[[], bool] | None = None
        """Tells whether the lease cannot end while the calling thread waits for it. None: it is taken and ended by one
        thread in one operation, so that is true for this thread and for no other."""
        self.holder: Holder | None = None
        self.entry: weakref.ref[Lease] | None = None
        """What stands for it in the queue, without keeping it alive."""
        self.wakeup: threading.Lock | None = None
        """What it waits for, if it has to wait."""

    def left_over(self) -> bool:
        """Whether it belongs to an earlier operation of this thread, whose end was interrupted."""
        return self.stuck is None and self.thread == threading.get_ident()

    def end(self) -> None:
        """Let the next writer in."""
        holder = self.holder
        if holder is not None:
            holder.release(self.entry)
            self.holder = self.entry = None


class FairLock:
    """A lock of this process that is handed over in the order of asking: a queue, whose first entry has it.

    The queue is the only record of who has the lock, and each change of it is one step. So an interrupt may strike
    anywhere: `leave` takes an entry out, wherever in the queue it is.
    """

    __slots__ = ("queue",)

    def __init__(self) -> None:
        self.queue: deque[weakref.ref[Lease]] = deque()

    def acquire(self, lease: Lease, patience: Patience, dropped: Callable[[weakref.ref[Lease]], None]) -> bool:
        """Wait for as long as there is patience. False if the lock was not free in that time.

        `dropped` is called if the last reference to the lease goes away before it has left the queue.
        """
        entry = lease.entry = weakref.ref(lease, dropped)
        queue = self.queue
        queue.append(entry)
        if queue and queue[0] is entry:
            return True
        wakeup = lease.wakeup = threading.Lock()
        wakeup.acquire()
        while (first := queue[0] if queue else None) is not entry:
            if first is None:
                return False  # a signal handler has forked, and this is the child: the leases are the parent's
            holder = first()
            if holder is None:
                self.leave(first)
                continue
            if holder.left_over():
                holder.end()
                self.leave(first)  # whatever became of it before: what is still first here next time is not asked again
                continue
            if patience.over:
                self.leave(entry)
                return False
            patience.acquire(wakeup, min(patience.left, _LOOK))
        return True

    def leave(self, entry: weakref.ref[Lease] | None) -> None:
        """Take an entry out of the queue, and wake the first one, which may have been the second till now."""
        queue = self.queue
        try:
            queue.remove(entry)  # type: ignore[arg-type]
        except ValueError as exc:
            if is_from_handler(exc):
                raise
        try:
            if queue and (first := queue[0]()) is not None and first.wakeup is not None:
                first.wakeup.release()
        except (IndexError, RuntimeError) as exc:  # the queue is empty by now, or the first one is awake
            if is_from_handler(exc):
                raise


# -- failures that no caller waits for ----------------------------------------------------------


class _Report:
    """Raises `failure` when it is called, and is shown as `what`."""

    def __init__(self, what: str, failure: BaseException) -> None:
        self.what, self.failure = what, failure

    def __call__(self, _: object) -> None:
        raise self.failure

    def __repr__(self) -> str:
        return self.what


class _Nothing:
    """Something to refer to weakly."""


def report(what: str, failure: BaseException) -> None:
    """Have `sys.unraisablehook` tell of a failure, which prints it. Only the interpreter can make what the hook takes,
    so it is made to meet the failure where it cannot raise it.
    """
    reference = weakref.ref(_Nothing(), _Report(what, failure))  # freed at once, but for interpreters that wait
    del reference


# -- calls that interrupt their own thread ------------------------------------------------------


class _Mark:
    """Stands for one operation that is going on."""

    __slots__ = ("__weakref__", "inside", "over")

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        self.over = False


_marks: dict[int, tuple[weakref.ref[_Mark], ...]] = {}
"""The operations that each thread is inside of, the innermost last."""


_is_owned = methodcaller("_is_owned")


def held_here(lock: Any) -> bool:
    """Whether the calling thread holds the lock, an `RLock`."""
    return bool(_is_owned(lock))


def forget_threads() -> None:
    """In a child process: the threads of the parent are not here."""
    _marks.clear()


def _going_on(thread: int) -> Iterator[_Mark]:
    """The operations that the thread is inside of."""
    for reference in _marks.get(thread, ()):
        mark = reference()
        if mark is not None and not mark.over:
            yield mark


class Inside:
    """Which threads are inside an operation of one handle, and what is to be done when they are out."""

    __slots__ = ("_path", "_postponed", "file", "locks")

    def __init__(self, path: str, file: object) -> None:
        self._path = path
        self.file = file
        """What tells the file from others: two handles may have the same."""
        self._postponed: tuple[int | None, Callable[[], None]] | None = None
        """What to do, and by which thread; None: by any."""
        self.locks: tuple[Any, ...] = ()
        """The handle's locks (`RLock`s). Who holds one of them must not wait for any other."""

    def call(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Call `operation(*arguments)`. Raises `BusyError` if this thread is inside an operation already."""
        mark = _Mark(self)
        try:
            self._enter(mark)
            return operation(*arguments)
        finally:
            mark.over = True  # no interrupt can strike between the start of the `finally` and this
            self._leave(mark)

    def _enter(self, mark: _Mark) -> None:
        if self.here():
            raise self._busy("the handle")
        thread = threading.get_ident()
        _marks[thread] = (*_marks.get(thread, ()), weakref.ref(mark))

    def _leave(self, mark: _Mark) -> None:
        thread = threading.get_ident()
        marks = _marks.get(thread, ())
        if len(marks) == 1 and marks[0]() is mark:
            _marks.pop(thread, None)
        elif left := tuple(weakref.ref(mark) for mark in _going_on(thread)):
            _marks[thread] = left
        else:
            _marks.pop(thread, None)
        if self._postponed is not None:
            self.came_out()

    def check_file(self) -> None:
        """Raise `BusyError` if this thread is inside an operation of another handle of the same file."""
        if len(_marks.get(threading.get_ident(), ())) > 1 and any(
            mark.inside is not self and mark.inside.file == self.file for mark in _going_on(threading.get_ident())
        ):
            raise self._busy("another handle of the file")

    def _busy(self, whose: str) -> BusyError:
        return BusyError(
            f"{self._path}: this thread is inside an operation of {whose}, which this call has interrupted "
            "(from a signal handler, a finalizer or a callback), so it cannot wait for that"
        )

    def here(self) -> bool:
        """Whether the calling thread is inside an operation, or holds a lock of the handle."""
        thread = threading.get_ident()
        inside = thread in _marks and any(mark.inside is self for mark in _going_on(thread))
        return inside or self.holds_lock()

    @property
    def occupied(self) -> bool:
        """Whether any thread is inside an operation."""
        return any(mark.inside is self for thread in list(_marks) for mark in _going_on(thread))

    def holds_lock(self) -> bool:
        """Whether the calling thread holds a lock of the handle."""
        return any(map(_is_owned, self.locks))

    def postpone(self, action: Callable[[], None], *, by_any: bool = False) -> None:
        """Have `action` called when this thread is outside again, or by the next thread that is."""
        self._postponed = None if by_any else threading.get_ident(), action

    def put_off(self, action: Callable[[], None]) -> bool:
        """If this thread is inside, have `action` called when it is outside again. Whether it is."""
        if not self.here():
            return False
        self.postpone(action)
        return True

    @property
    def postponed(self) -> bool:
        """Whether something is."""
        return self._postponed is not None

    def came_out(self) -> None:
        """Do what was postponed, if it is time. What it raises is reported: no caller waits for it."""
        postponed = self._postponed
        if postponed is None or postponed[0] not in (None, threading.get_ident()) or self.here():
            return
        self._postponed = None
        try:
            postponed[1]()
        except Exception as exc:
            if is_from_handler(exc):
                raise
            report(f"{self._path}: closing was put off, and failed", exc)
