"""Processes that tests start, talk to, and kill: each runs one function of this file in an interpreter of
its own.

    with Child("hold_snapshot", path) as child:
        txid = child.hear("pinned")       # waits for the line that begins with this word
        child.tell("go")
        child.finish()                    # waits for its end, which must be a good one
        child.kill()                      # or else SIGKILL

Lines are JSON lists, the first item is a word. What a child has written to its pipe can be read after it was
killed: the pipe is the witness of what was acknowledged. This file imports neither pytest nor a test, so a
child starts quickly.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from linearizability import Operation, Recorder

import durabledbm

PATIENCE = 120.0
"""Seconds to wait for a child: far more than it needs on a busy machine."""

ACK = struct.Struct("<qq")
"""A number that was acknowledged, and when, in nanoseconds of `time.monotonic_ns`."""


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A new directory that every user may get to, unlike those of pytest. Afterwards it is removed."""
    directory = Path(tempfile.mkdtemp())
    try:
        directory.chmod(0o755)
        yield directory
    finally:
        directory.chmod(0o755)
        shutil.rmtree(directory)


_UNPRIVILEGED = """
import os, sys, durabledbm
import durabledbm.attach, durabledbm.database, durabledbm.dump, durabledbm.reshard, durabledbm.restore
import durabledbm.cli.targets, durabledbm.migration, durabledbm.salvage
if not os.getuid():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


def unprivileged(program: str, directory: Path) -> None:
    """Run a program in `directory`, where permissions count: if this is root's process, the child becomes nobody's."""
    if sys.platform == "win32":
        import pytest

        pytest.skip("Windows keeps files from users by access control lists, not by modes")
    subprocess.run(
        [sys.executable, "-c", _UNPRIVILEGED + program], check=True, cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))},
    )  # fmt: skip


def run_apart(function: Callable[..., object], *args: object) -> int:
    """Call a function of a module in a process of its own, forked if the system can; return its exit code."""
    method = "fork" if hasattr(os, "fork") else "spawn"
    process = multiprocessing.get_context(method).Process(target=function, args=args)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


class Child:
    """A process that runs one function. At the end of the `with` block it is killed if it is still there."""

    def __init__(self, function: str, *args: object) -> None:
        places = [os.path.dirname(__file__), *filter(None, sys.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, function, json.dumps(args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment,
        )  # fmt: skip
        self._rest = b""
        self._said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Take what the child writes, to the end: Windows cannot wait for a pipe with a limit of time."""
        assert self._process.stdout is not None
        while more := os.read(self._process.stdout.fileno(), 1 << 16):
            self._said.put(more)
        self._said.put(b"")

    @property
    def pid(self) -> int:
        return self._process.pid

    def _receive(self) -> bytes:
        """Some bytes that the child wrote; none at the end."""
        try:
            return self._said.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"process {self.pid} says nothing") from None

    def hear(self, word: str) -> Any:
        """What the child says next, which must be `word`: the items after it, or the only one."""
        while b"\n" not in self._rest:
            more = self._receive()
            assert more, f"process {self.pid} ended; it had said {self._rest!r}, {word!r} was expected"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        first, *items = json.loads(line)
        assert first == word, f"process {self.pid} says {line!r}, {word!r} was expected"
        return items[0] if len(items) == 1 else items

    def rest(self) -> bytes:
        """Everything that the child has written and not been heard, to its end."""
        rest, self._rest = self._rest, b""
        while more := self._receive():
            rest += more
        return rest

    def drain(self, seconds: float) -> None:
        """Let the child go on for some time, in which it must not end."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                more = self._said.get(timeout=left)
                assert more, f"process {self.pid} ended; it had said {self._rest[-200:]!r}"
                self._rest += more

    def tell(self, *items: object) -> None:
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), json.dumps(items).encode() + b"\n")

    def kill(self) -> int:
        """SIGKILL, and wait. Returns when it was sent, in nanoseconds of `time.monotonic_ns`."""
        now = time.monotonic_ns()
        self._process.kill()
        self._process.wait(PATIENCE)
        return now

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def finish(self, code: int = 0) -> None:
        """Wait for the end of the process."""
        assert self._process.wait(PATIENCE) == code

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        self._listener.join(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


# In the child


def say(*items: object) -> None:
    os.write(1, json.dumps(items).encode() + b"\n")


def heard() -> list[Any]:
    """What the test tells next; the end if the test is gone."""
    line = sys.stdin.readline()
    if not line:
        os._exit(3)
    return json.loads(line)  # type: ignore[no-any-return]


def content(mapping: Any) -> list[list[str]]:
    """All entries, as JSON can carry them."""
    return [[key.decode("latin-1"), value.decode("latin-1")] for key, value in mapping.items()]


def hold_transaction(path: str, key: str, options: dict[str, Any]) -> None:
    """Begin a transaction, and end it when told to: "commit" or "roll back"."""
    with durabledbm.open(path, "c", **options) as db, db.transaction() as tx:
        tx[key] = "held"
        say("holding")
        if heard() == ["roll back"]:
            tx.rollback()
    say("done")


def hold_snapshot(path: str) -> None:
    """Pin a snapshot, and show it whenever told to."""
    with durabledbm.open(path, "r") as db, db.snapshot() as snapshot:
        say("pinned", snapshot.txid)
        while heard() == ["show"]:
            say("content", content(snapshot))
    say("done")


def read_all(path: str) -> None:
    """Read in every way there is."""
    with durabledbm.open(path, "r") as db, db.snapshot() as snapshot:
        say("read", len(db), content(db), content(snapshot), content({key: db[key] for key in db}))


def create(path: str, key: str) -> None:
    """Create the file at the same moment as others, and write to it."""
    say("ready")
    heard()
    with durabledbm.open(path, "c") as db:
        db[key] = "created"
    say("done")


def create_sharded(attempts: list[tuple[str, int]]) -> None:
    """Create sharded databases at the same moments as others; tell what each turned out to have."""
    for path, shards in attempts:
        say("ready")
        heard()
        try:
            with durabledbm.open_sharded(path, "c", shards=shards) as db:
                db[str(os.getpid())] = "1"
                say("made", f"has {db.shards}")
        except durabledbm.error as exc:
            say("made", str(exc))


def write_numbers(path: str, options: dict[str, Any], sync_every: int) -> None:
    """Write 1, 2, 3 ... each under a key of its own; report each as soon as it is acknowledged.

    With `sync_every`, call `sync()` so often and report only the numbers for which it returned.
    """
    db = durabledbm.open(path, "c", **options)
    say("ready")
    number = len(db)
    while True:
        number += 1
        db[b"%010d" % number] = b"x" * (number * 37 % 200)
        if sync_every:
            if number % sync_every:
                continue
            db.sync()
        os.write(1, ACK.pack(number, time.monotonic_ns()))


def write_and_end(path: str, options: dict[str, Any], how: str) -> None:
    """Write, and end without closing."""
    db = durabledbm.open(path, "c", **options)
    globals()["kept"] = db  # no destructor closes it early
    for number in range(100):
        db[b"%03d" % number] = b"value"
    say("written")
    if how == "sys.exit":
        sys.exit(0)
    elif how == "exception":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the traceback is no news
        raise RuntimeError("unhandled")
    elif how == "os._exit":
        os._exit(0)
    assert how == "return"


def idle_flusher(path: str) -> None:
    """End with a handle open whose flusher would sleep for an hour."""
    db = durabledbm.open(path, "c", durability="interval", interval=3600.0)
    globals()["kept"] = db
    db["k"] = "v"
    say("threads", [thread.name for thread in threading.enumerate() if thread.daemon])


def end_beside_a_transaction(path: str) -> None:
    """End while a daemon thread is in a transaction, with something deferred."""
    db = durabledbm.open(path, "c", durability="interval", interval=3600.0, timeout=None)
    globals()["kept"] = db
    db["before"] = "v"
    begun = threading.Event()

    def hold() -> None:
        with db.transaction():
            db["inside"] = "v"
            begun.set()
            time.sleep(3600)

    threading.Thread(target=hold, daemon=True).start()
    begun.wait()
    say("ending")


def stress(path: str, seed: int, accounts: int) -> None:
    """Four threads move money and four audit, until the process is killed. Reports once in 50 transfers."""
    db = durabledbm.open(path, "w", cache_size=200_000)
    longest = [0.0]

    def fail_loudly(function: Callable[[random.Random], None], client: int) -> None:
        rng = random.Random(f"{seed} {client}")
        try:
            while True:
                function(rng)
        except BaseException as exc:
            say("failed", repr(exc))
            raise

    def write(rng: random.Random) -> None:
        for _ in range(50):
            move(db, rng, accounts)
        say("round", 50, longest[0])

    def read(rng: random.Random) -> None:
        before = time.monotonic()
        with db.snapshot() as snapshot:
            first = snapshot[b"account %03d" % rng.randrange(accounts)]
            longest[0] = max(longest[0], time.monotonic() - before)
            assert int(first) >= 0
            assert sum(map(int, snapshot.values())) == 100 * accounts
        time.sleep(rng.random() / 100)

    say("ready")
    threads = [
        threading.Thread(target=fail_loudly, args=(function, client))
        for client, function in enumerate([write] * 4 + [read] * 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def put_for(path: str, name: str, seconds: float, timeout: float) -> None:
    """Write as often as possible, and report how often that was and what the longest wait was."""
    with durabledbm.open(path, "w", timeout=timeout) as db:
        say("ready")
        heard()
        deadline = time.monotonic() + seconds
        count, longest = 0, 0.0
        while (before := time.monotonic()) < deadline:
            db[name] = str(count)
            count += 1
            longest = max(longest, time.monotonic() - before)
    say("waited", count, longest)


def transfer(path: str, seed: int, count: int, accounts: int) -> None:
    """Move money between accounts; check in a snapshot of every tenth transfer that none was made or lost."""
    rng = random.Random(seed)
    with durabledbm.open(path, "w") as db:
        say("ready")
        for number in range(count):
            move(db, rng, accounts)
            if number % 10 == 0:
                with db.snapshot() as snapshot:
                    say("sum", sum(map(int, snapshot.values())))
    say("done")


class WithdrawnError(Exception):
    """A transfer that was given up on purpose."""


WIDTH = 400
"""Bytes of an account, so that some do not fit in a meta page and transfers change the tree."""


def amount_of(number: int) -> bytes:
    """An account that holds so much: `int` reads it."""
    return str(number).encode().ljust(WIDTH)


def move(db: durabledbm.Database, rng: random.Random, accounts: int) -> None:
    """One transfer: a transaction that reads two accounts and writes both. Some are given up half-way."""
    source, target = (b"account %03d" % number for number in rng.sample(range(accounts), 2))
    with contextlib.suppress(WithdrawnError), db.transaction():
        amount = rng.randrange(1 + int(db[source]))
        db[source] = amount_of(int(db[source]) - amount)
        if rng.random() < 0.05:
            raise WithdrawnError
        db[target] = amount_of(int(db[target]) + amount)


def perform(path: str, client: int, seed: int, count: int, options: dict[str, Any]) -> None:
    """Perform random operations in two threads, and report each before and after."""
    with durabledbm.open(path, "w", **options) as db:
        say("ready")
        heard()
        clients = client * 2, client * 2 + 1
        threads = [threading.Thread(target=_perform, args=(db, number, seed, count)) for number in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    say("done")


def _perform(db: durabledbm.Database, client: int, seed: int, count: int) -> None:
    def note(operation: Operation) -> None:
        key, kind, argument, result, start, end = operation
        say("operation", client, key.decode(), kind, text(argument), text(result), start, end)

    random_operations(Recorder(db, note), client, seed, count)


def text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def random_operations(recorder: Recorder, client: int, seed: int, count: int, keys: int = 3) -> None:
    """Perform random operations on few keys; no two writes write the same value.

    Some values are long, so that they do not stay in the meta page together, and the tree changes.
    """
    rng = random.Random(f"{seed} {client}")
    for number in range(count):
        kind = rng.choices(("get", "put", "delete", "pop", "setdefault"), (10, 5, 1, 1, 1))[0]
        argument = None
        if kind in ("put", "setdefault"):
            argument = b"%d of client %d" % (number, client) + b"." * rng.choice((0, 10, 1500))
        recorder.perform(kind, b"key %d" % rng.randrange(keys), argument)


def multiprocessing_by(method: str, path: str) -> None:
    """Hand a handle to a process that was not forked, which is refused, and then the file's name."""
    context = multiprocessing.get_context(method)
    with durabledbm.open(path, "w") as db:
        process = context.Process(target=put_there, args=(db,))
        try:
            process.start()
        except TypeError as exc:
            say("refused", str(exc))
        process = context.Process(target=put_there, args=(path,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert db["child"] == b"v"


def put_there(path: str) -> None:
    with durabledbm.open(path, "w") as db:
        db["child"] = "v"


if __name__ == "__main__":
    globals()[sys.argv[1]](*json.loads(sys.argv[2]))
