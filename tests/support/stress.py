"""One process of the stress in tests/test_stress.py: everything that ordinary programs do to an open handle, mixed.

    python stress.py FILE LOG MODE SEED

Two threads write numbered values to keys of their own, in single writes and in transactions of which some outgrow
their memory, some are rolled back and some use savepoints. Beside them a signal handler reads and writes many times a
second, objects with finalizers that use the handle die in reference cycles, iterators are dropped half read, and
children are forked that write, read or do nothing. All of it ends when the process is killed.

LOG is the witness. It is written without buffers: what it says was said before a kill. A line is `b NUMBER KEY...`
before keys are set to a number, `a NUMBER KEY...` when that is acknowledged, and `s SIZE` when all that SIZE bytes
of the log acknowledge has been synced.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time

import durabledbm
import durabledbm.transaction

KEYS = 12
"""Keys of each thread."""

SPILL_SIZE = 50_000
"""Bytes a transaction may take here: some of them take more."""


class Cycle:
    """It reads the handle when the collector finds it."""

    def __init__(self, db: durabledbm.Database, key: str) -> None:
        self.db, self.key, self.me = db, key, self

    def __del__(self) -> None:
        try:
            self.db.get(self.key)
            self.db["finalized"] = "x"
        except (durabledbm.BusyError, durabledbm.ClosedError):
            pass  # the collector has interrupted a write of this handle, or the handle is closed by now


class Process:
    """What one process does."""

    def __init__(self, path: str, log: str, mode: str, seed: int) -> None:
        self.mode = mode
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.name = f"{seed}"
        self.shared = mode in ("full", "process")
        self.db = durabledbm.open(path, "c", durability=mode, interval=0.02, timeout=60)  # type: ignore[call-overload]

    def say(self, kind: str, number: int = 0, keys: list[str] | None = None) -> None:
        os.write(self.log, " ".join([kind, str(number), *(keys or [])]).encode() + b"\n")

    def on_signal(self, *_: object) -> None:
        try:
            self.db.get("signal")
            self.db["signal"] = str(time.monotonic_ns())
        except (durabledbm.BusyError, durabledbm.ClosedError):
            pass  # it has interrupted a write of its own thread

    # -- what a thread does

    def work(self, thread: int) -> None:
        rng = random.Random(f"{self.name} {thread}")
        keys = [f"{self.name}/{thread}/{number}" for number in range(KEYS)]
        state: dict[str, int] = {}
        for number in range(1, 1 << 30):
            step = rng.choices(
                [self.put, self.group, self.spill, self.undone, self.look, self.sync, self.fork, self.tidy],
                [30, 10, 3, 3, 10, 6, 1, 1],
            )[0]
            step(rng, number, keys, state)

    def acknowledged(self, number: int, keys: list[str], state: dict[str, int]) -> None:
        self.say("a", number, keys)
        state.update(dict.fromkeys(keys, number))

    def put(self, rng: random.Random, number: int, keys: list[str], state: dict[str, int]) -> None:
        key = rng.choice(keys)
        self.say("b", number, [key])
        self.db[key] = value_of(number)
        self.acknowledged(number, [key], state)

    def group(self, rng: random.Random, number: int, keys: list[str], state: dict[str, int]) -> None:
        chosen = rng.sample(keys, rng.randrange(2, KEYS))
        self.say("b", number, chosen)
        with self.db.transaction() as tx:
            for key in chosen:
                tx[key] = value_of(number)
                if rng.random() < 0.2:
                    try:
                        with self.db.transaction():
                            self.db[rng.choice(keys)] = "never"
                            raise KeyError
                    except KeyError:
                        pass
        self.acknowledged(number, chosen, state)

    def spill(self, rng: random.Random, number: int, keys: list[str], state: dict[str, int]) -> None:
        self.say("b", number, keys)
        with self.db.transaction() as tx:
            for filler in range(rng.randrange(100, 1500)):
                tx[f"{keys[0]}/filler/{filler}"] = value_of(number)
            tx.update(dict.fromkeys(keys, value_of(number)))
        self.acknowledged(number, keys, state)

    def undone(self, rng: random.Random, number: int, keys: list[str], state: dict[str, int]) -> None:
        try:
            with self.db.transaction() as tx:
                for filler in range(rng.choice([1, 1000])):
                    tx[f"{keys[0]}/filler/{filler}"] = "never"
                tx.update(dict.fromkeys(keys, "never"))
                raise KeyError
        except KeyError:
            pass

    def look(self, rng: random.Random, number: int, keys: list[str], state: dict[str, int]) -> None:
        """What was acknowledged is there, whoever looks and however."""
        with self.db.snapshot() as snapshot:
            for source in (self.db, snapshot):
                for key in keys:
                    expected = value_of(state[key]) if key in state else None
                    assert source.get(key) == expected, (self.mode, key, state.get(key), source.get(key))
        iterator = self.db.range(prefix=self.name)
        for _ in range(rng.randrange(20)):
            next(iterator, None)
        Cycle(self.db, keys[0])
        if rng.random() < 0.3:
            gc.collect()

    def sync(self, rng: random.Random, number: int, keys: list[str], state: dict[str, int]) -> None:
        self.db.sync()

    def fork(self, rng: random.Random, number: int, keys: list[str], state: dict[str, int]) -> None:
        what = rng.choice(["nothing", "reads", "writes"])
        child = os.fork()
        if child == 0:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                if what != "nothing":
                    self.db.get(keys[0])
                if what == "writes" and self.shared:
                    self.db[f"child of {keys[0]}"] = str(number)
            except BaseException as exc:  # reported by the status, for the parent
                os.write(2, f"child {what}: {exc!r}\n".encode())
                os._exit(3)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, (what, status)

    def tidy(self, rng: random.Random, number: int, keys: list[str], state: dict[str, int]) -> None:
        self.db.reorganize()
        assert self.db.check() == []

    # -- all of it

    def run(self) -> None:
        signal.signal(signal.SIGALRM, self.on_signal)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.013)
        threads = [threading.Thread(target=self.guarded, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        self.synced_regularly()

    def synced_regularly(self) -> None:
        """The main thread is where signals arrive. It notes what a sync has covered."""
        while True:
            size = os.fstat(self.log).st_size
            self.db.sync()
            self.say("s", size)
            time.sleep(0.005)

    def guarded(self, number: int) -> None:
        try:
            self.work(number)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            os._exit(4)


def value_of(number: int) -> bytes:
    """What a key is set to: the longer the more digits, in a row of some lengths."""
    return b"%d." % number * (1 + number % 40)


def number_of(value: bytes) -> int:
    """Which number a value says, if it is whole."""
    number = int(value.split(b".")[0])
    assert value == value_of(number), value[:80]
    return number


if __name__ == "__main__":
    durabledbm.transaction.SPILL_SIZE = SPILL_SIZE
    Process(*sys.argv[1:4], int(sys.argv[4])).run()
