"""A PostgreSQL server of a test's own, since what is done to it everybody on it would feel."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from nexhealth_pipeline.warehouse import migrate
from nexhealth_pipeline.warehouse.embedded import EmbeddedServer, ensure, release


@dataclass
class Server:
    """A server that may be hurt."""

    home: Path
    numbers: "itertools.count[int]"

    def up(self) -> EmbeddedServer:
        """Running, and watched by a supervisor, whatever was done to it."""
        return ensure(self.home, durable=False)

    @property
    def supervisor_lock(self) -> Path:
        """Holds the number of the process that watches the server."""
        return self.home / "postgres/server/supervisor.lock"

    @property
    def pid(self) -> int:
        return int((self.home / "postgres/server/data/postmaster.pid").read_text().split()[0])

    def tree(self) -> list[int]:
        """The postmaster and its processes."""
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.pid)], capture_output=True, text=True, check=False
        )
        return [self.pid, *map(int, children.stdout.split())]

    def crash(self) -> None:
        """Its processes end when they next wait for anything; until it is gone itself they go on, and might even be done.

        It stays away until `up`: who would start it again goes first.
        """
        os.kill(int(self.supervisor_lock.read_text()), signal.SIGKILL)
        self._end(signal.SIGKILL)

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """What `pg_ctl restart` does, -m fast unless told otherwise: everybody is sent away, then it comes again."""
        self._end(how)
        self.up()

    def _end(self, how: signal.Signals) -> None:
        pid = self.pid
        os.kill(pid, how)
        deadline = time.monotonic() + 120
        while _runs(pid):
            assert time.monotonic() < deadline, "the server does not end"
            time.sleep(0.02)

    def freeze(self, seconds: float) -> None:
        """Stand still from now on, in the middle of whatever is done."""
        stopped = self.tree()
        _signal(stopped, signal.SIGSTOP)
        threading.Timer(seconds, _signal, (stopped, signal.SIGCONT)).start()

    def database(self, options: str = "") -> str:
        """A new warehouse, empty."""
        name = f"ware_{next(self.numbers)}"
        with psycopg.connect(self.up().url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE ready {options} STRATEGY FILE_COPY")
        return self.up().url(name)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _signal(pids: list[int], how: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # one that has just ended
            os.kill(pid, how)


@contextmanager
def server_of_its_own() -> Iterator[Server]:
    """Runs one; its template `ready` is at the newest migration."""
    root = Path(tempfile.mkdtemp(prefix="nexhealth tests "))
    root.chmod(0o711)
    server = Server(root / "a home", itertools.count())
    running = server.up()
    with psycopg.connect(running.url("postgres"), autocommit=True) as connection:
        # What a commit means must not change with the speed of tests.
        connection.execute("ALTER ROLE postgres SET synchronous_commit = on")
    running.create_database("ready")
    migrate.upgrade(running.url("ready"))
    yield server
    server.up()
    supervisor = int(server.supervisor_lock.read_text())
    release(server.home)
    deadline = time.monotonic() + 60
    while (there := Path(f"/proc/{supervisor}").exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    shutil.rmtree(root, ignore_errors=True)
    assert not there, "the server does not end"
