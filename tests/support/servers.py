"""Real servers for tests: PostgreSQL and Redis, each on a socket in a directory of its own, of nobody else's.

    with Postgres() as server:
        remote.open(server.url, table="app")
        server.restart()

A server ends with the process that started it, however that ends: it is kept by a shell that waits for the end of a
pipe. Where a server cannot be had, `skip_reason` says why in one line.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any
from urllib.parse import quote

__all__ = ["Postgres", "Redis", "postgres_skipped", "redis_skipped"]

PATIENCE = 60.0
"""Seconds to wait for a server: far more than it needs on a busy machine."""

_KEEPER = """
log=$1; signal=$2; shift 2
"$@" >>"$log" 2>&1 &
echo $!
cat >/dev/null
kill -s "$signal" $!
wait $!
"""


def _programs(name: str) -> str | None:
    """Where a program of PostgreSQL is. Debian keeps those of each version in a directory that is not in PATH."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=_version)
    return shutil.which(name) or (found[-1] if found else None)


def _version(path: str) -> float:
    return float(path.split("/")[4])


def postgres_skipped() -> str | None:
    """Why there is no PostgreSQL server here; None if there is."""
    if sys.platform == "win32":
        return "no PostgreSQL: the tests start it on a Unix socket, from a shell"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "no PostgreSQL: the package psycopg is not installed (pip install 'psycopg[binary]')"
    if _programs("initdb") is None or _programs("postgres") is None:
        return "no PostgreSQL: its server is not installed (apt-get install postgresql)"
    if os.geteuid() == 0 and _other_user() is None:
        return "no PostgreSQL: it does not run as root, and there is no other user"
    return None


def redis_skipped() -> str | None:
    """Why there is no Redis server here; None if there is."""
    if sys.platform == "win32":
        return "no Redis: the tests start it on a Unix socket, from a shell"
    try:
        import redis  # noqa: F401
    except ImportError:
        return "no Redis: the package redis is not installed (pip install redis)"
    if shutil.which("redis-server") is None:
        return "no Redis: its server is not installed (apt-get install redis-server)"
    return None


def _other_user() -> str | None:
    import pwd  # Windows has none

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


class _Server:
    """A program in a directory of its own."""

    signal = "TERM"
    """What ends it at once."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="durabledbm-")
        self._user: dict[str, Any] = {}
        self._keeper: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = os.path.join(self.directory, "log")
        self._keeper = subprocess.Popen(
            ["sh", "-c", _KEEPER, "sh", log, self.signal, *self.command()], cwd=self.directory,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, **self._user,
        )  # fmt: skip
        assert self._keeper.stdout is not None
        self.pid = int(self._keeper.stdout.readline())
        self._wait(self.answers, log)

    def _wait(self, reached: Callable[[], bool], log: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if not os.path.exists(f"/proc/{self.pid}") or time.monotonic() > deadline:
                with open(log, encoding="utf-8", errors="replace") as file:
                    raise AssertionError(f"the server does not start:\n{file.read()[-3000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once, as a crash does."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            assert keeper.stdin is not None
            assert keeper.stdout is not None
            keeper.stdin.close()
            keeper.stdout.close()
            keeper.wait(PATIENCE)

    def restart(self) -> None:
        """A crash, and a new start."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """End it, and remove its files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Any:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


class Postgres(_Server):
    """A PostgreSQL server without a port. What a crash of the machine would lose, it does not care for."""

    signal = "QUIT"

    def __init__(self, **settings: str) -> None:
        super().__init__()
        self._settings = {"fsync": "off", "max_connections": "60", "shared_buffers": "32MB", **settings}
        if os.geteuid() == 0:
            user = _other_user()
            shutil.chown(self.directory, user)
            import pwd

            group = pwd.getpwnam(user or "").pw_gid
            self._user = {"user": user, "group": group, "extra_groups": []}
        self.data = os.path.join(self.directory, "data")
        self.url = f"postgresql://durabledbm@/postgres?host={quote(self.directory, safe='')}"
        try:
            self._run(
                "initdb", "--pgdata", self.data, "--auth", "trust", "--username", "durabledbm", "--encoding", "UTF8",
                "--no-locale", "--no-sync", "--no-instructions",
            )  # fmt: skip
        except BaseException:
            self.remove()
            raise

    def _run(self, program: str, *args: str) -> None:
        path = _programs(program)
        assert path is not None
        done = subprocess.run([path, *args], capture_output=True, cwd=self.directory, check=False, **self._user)
        assert done.returncode == 0, done.stderr.decode(errors="replace")

    @property
    def environment(self) -> dict[str, str]:
        """What lets `postgresql:///postgres` lead here."""
        return {"PGHOST": self.directory, "PGUSER": "durabledbm"}

    def command(self) -> list[str]:
        path = _programs("postgres")
        assert path is not None
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        return [path, "-D", self.data, "-k", self.directory, "-c", "listen_addresses=", *settings]

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def run(self, statement: str, *parameters: object) -> list[Any]:
        """The rows of a statement of an administrator's."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return [] if cursor.description is None else cursor.fetchall()

    def kill_connections(self) -> int:
        """End all connections but the own one, as an administrator does; return how many there were."""
        ended = self.run(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return len(ended)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """A block during which the server is not there."""
        self.stop()
        try:
            yield
        finally:
            self.start()


class Redis(_Server):
    """A Redis server without a port, which keeps what it has in memory, and, with `keep`, in a file."""

    def __init__(self, *, keep: bool = False) -> None:
        super().__init__()
        self._keep = keep
        self.socket = os.path.join(self.directory, "socket")
        self.url = f"unix://{self.socket}"

    def command(self) -> list[str]:
        place = ["--port", "0", "--unixsocket", self.socket, "--dir", self.directory]
        keep = ["--appendonly", "yes", "--appendfsync", "always"] if self._keep else ["--appendonly", "no"]
        return ["redis-server", *place, "--save", "", *keep]

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(self.socket)
            except OSError:
                return False
            client.sendall(b"PING\r\n")
            return client.recv(100).startswith(b"+PONG")

    def stop(self) -> None:
        super().stop()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)

    def kill_connections(self) -> None:
        """End all connections of normal clients."""
        import redis

        client = redis.Redis.from_url(self.url)
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        client.close()

