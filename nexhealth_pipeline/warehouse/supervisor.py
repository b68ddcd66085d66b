"""The small process that owns the embedded server: starts it, and stops it when its last user is gone.

It runs as a script with Python's standard library alone (`python -I supervisor.py ORDER`), so that it
starts in milliseconds and stays small. Every user of the server holds a shared lock on `users.lock`; the
kernel drops it however the user dies. This process tries for the exclusive lock: once it has it, nobody
uses the server. It is the only one that holds `supervisor.lock`, handed over by its starter as an open
file; whoever finds that lock free may start a new supervisor, which adopts a server that still runs.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["SUPERUSER", "Order", "accepts", "main", "socket_file"]

SUPERUSER = "postgres"
"""The database role that owns the embedded server; its socket is reached by the folder's owner only."""

_POLL_SECONDS = 0.1
_CLIENT_POLL_SECONDS = 2.0
_FAST_STOP_SECONDS = 60.0
_LAST_STOP_SECONDS = 20.0
_AWAY_SECONDS = 300.0
"""For so long a server that was killed in use is started again: until what it left has ended its statement, a start is refused."""
_TRY_AGAIN_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Before the first of these starts, which doubles with each."""
_SETTLED_SECONDS = 60.0
"""One that ran for so long is started again for as long anew."""
_LOG_BYTES = 5_000_000

_SETTINGS = {
    "max_connections": "200",
    "unix_socket_permissions": "0700",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # An error's text may quote a row. `log` leaves ERROR out and keeps LOG, FATAL and PANIC.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
    "log_lock_waits": "off",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


_CONTAINERS_MEMORY = Path("/sys/fs/cgroup/memory.max")


def _buffers() -> int:
    """Megabytes that the server keeps of its tables: a first load's is read again for each index, from there if it fits."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # a container's, which says "max" where it has none of its own
        memory = min(memory, int(_CONTAINERS_MEMORY.read_text()))
    return min(512, max(128, memory >> 25))  # a thirty-second of it


@dataclass(frozen=True, slots=True)
class Order:
    """What to supervise. Paths are texts, since an order travels as JSON in an argument."""

    folder: str
    """Holds data, locks, log and the mark `linger`."""
    socket: str
    """Folder of the server's socket."""
    programs: str
    """Folder of PostgreSQL's programs."""
    port: int
    """Number in the socket's name, and the TCP port."""
    tcp: bool
    """Listen on 127.0.0.1 as well."""
    durable: bool
    """False = an operating system crash may lose or break the data (tests)."""
    uid: int
    """Account of the server; -1 = the supervisor's own."""
    gid: int
    lock: int
    """The open file that holds `supervisor.lock`."""

    def text(self) -> str:
        """The order as an argument for :func:`main`."""
        return json.dumps(asdict(self))


def socket_file(folder: str | Path, port: int) -> Path:
    """The socket a server with `port` makes in `folder`."""
    return Path(folder) / f".s.PGSQL.{port}"


def accepts(path: Path) -> bool:
    """Whether a server listens on the socket `path`; a socket file alone says nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


class _Server:
    """The postmaster: started here, or adopted from a supervisor that was killed."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._data = Path(order.folder) / "data"
        self._child: subprocess.Popen[bytes] | None = None
        self._adopted = 0
        self._started_at = 0.0
        self._away_since = 0.0
        self._pause = 0.0
        self._socket = socket_file(order.socket, order.port)

    def start(self) -> None:
        """Start the server, or adopt the one that listens already."""
        self._started_at = time.monotonic()
        if accepts(self._socket):
            self._child, self._adopted = None, self._pid()
            return
        self._clear_stale_pid()
        self._child = subprocess.Popen(self._command(), cwd="/", stdin=subprocess.DEVNULL, **self._account())

    def pause(self) -> float | None:
        """Seconds until a server that is gone is to be started again; None where it ended by itself, or that was tried for long.

        Only one that was killed leaves its file behind: one that somebody stopped, or that cannot start, removes it, and one
        whose start is refused finds that of the one before.
        """
        now, pid = time.monotonic(), self._pid()
        killed = pid == (self._child.pid if self._child else self._adopted)
        if killed and (not self._pause or now - self._started_at > _SETTLED_SECONDS):
            self._away_since, self._pause = now, _TRY_AGAIN_SECONDS / 2
        if not pid or not self._pause or now - self._away_since > _AWAY_SECONDS:
            return None
        self._pause = min(_LONGEST_PAUSE_SECONDS, 2 * self._pause)
        return self._pause

    def _command(self) -> list[str]:
        order = self._order
        quoted = order.socket.replace('"', '""')
        settings = {
            **_SETTINGS,
            "shared_buffers": f"{_buffers()}MB",
            **({} if order.durable else _NOT_DURABLE),
            "unix_socket_directories": f'"{quoted}"',
            "listen_addresses": "127.0.0.1" if order.tcp else "",
            "port": str(order.port),
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(Path(order.programs) / "postgres"), "-D", str(self._data), *flags]

    def _account(self) -> dict[str, Any]:
        if self._order.uid < 0:
            return {}
        return {"user": self._order.uid, "group": self._order.gid, "extra_groups": ()}

    def _pid(self) -> int:
        """The postmaster by its own file; 0 where there is none."""
        try:
            return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return 0

    def _clear_stale_pid(self) -> None:
        """Wait for a server that is just stopping, and drop its file where another process has its number.

        After a restart of a container the number in it may belong to anything, and PostgreSQL would then
        refuse to start. Where no process has it, PostgreSQL clears up by itself, with checks of its own.
        """
        deadline = time.monotonic() + _LAST_STOP_SECONDS
        while (pid := self._pid()) and _serves(pid, self._data) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if pid and not _serves(pid, self._data) and _exists(pid):
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    def runs(self) -> bool:
        """Whether the server still lives."""
        return not self._gone(self._child.pid if self._child else self._adopted)

    def clients(self) -> int:
        """How many clients are connected; 0 where the server does not say."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        psql = [str(Path(self._order.programs) / "psql"), "-XAtq", "-U", SUPERUSER, "-d", "postgres"]
        where = ["-h", self._order.socket, "-p", str(self._order.port)]
        try:
            done = subprocess.run([*psql, *where, "-c", query], check=False, capture_output=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):  # the programs were removed meanwhile, or it does not answer
            return 0
        return int(done.stdout) if done.returncode == 0 else 0

    def stop(self) -> None:
        """Stop the server: connected clients are sent away, the data is left clean."""
        for number, seconds in ((signal.SIGINT, _FAST_STOP_SECONDS), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
            pid = self._child.pid if self._child else self._adopted
            if self._gone(pid):
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while not self._gone(pid) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS / 5)

    def _gone(self, pid: int) -> bool:
        if self._child is not None:
            return self._child.poll() is not None
        return not _serves(pid, self._data)


def _exists(pid: int) -> bool:
    """Whether a process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _serves(pid: int, data: Path) -> bool:
    """Whether process `pid` is a PostgreSQL server of the folder `data`."""
    if Path("/proc/self/cmdline").exists():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for a dead process nobody has collected
        except OSError:
            return False
    else:
        command = subprocess.run(["/bin/ps", "-p", str(pid), "-o", "command="], check=False, capture_output=True).stdout
    return b"postgres" in command and os.fsencode(data) in command


class _Users:
    """The lock that every user of the server shares."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)

    def none_left(self) -> bool:
        """Whether nobody uses the server; then newcomers wait until this process has ended."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EINTR}:
                return False
            raise
        return True

    def let_in(self) -> None:
        """Give the exclusive lock back."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def _linger_left(folder: Path) -> float | None:
    """Seconds the server was asked to stay up without users; None where nobody asked."""
    try:
        return float((folder / "linger").read_text()) - time.monotonic()
    except (OSError, ValueError):
        return None


def _stays(server: _Server, folder: Path) -> float:
    """Seconds to wait before looking again, though nobody holds a lease; 0 = stop now."""
    left = _linger_left(folder)
    if left is None:
        return 0
    if left > 0:
        return min(left, _POLL_SECONDS)
    return _CLIENT_POLL_SECONDS if server.clients() else 0


def _supervise(order: Order) -> None:
    folder = Path(order.folder)
    users = _Users(folder)
    server = _Server(order)
    stopping = _Stopping()  # first: nobody would stop a server that is started just before
    try:
        server.start()
        while not stopping.asked:
            if not server.runs():
                # A receiver that runs for weeks asks for no server again.
                pause = server.pause()
                if users.none_left() or pause is None or stopping.within(pause):
                    break
                server.start()
                continue
            if users.none_left():
                pause = _stays(server, folder)
                if not pause:
                    break
                users.let_in()
                time.sleep(pause)
            else:
                time.sleep(_POLL_SECONDS)
    finally:
        server.stop()  # also where the watch ends by an error: nobody else would
        (folder / "linger").unlink(missing_ok=True)


class _Stopping:
    """SIGTERM stops the server first; the keys of a terminal do not reach this process."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def within(self, seconds: float) -> bool:
        """Wait for so long at most; whether it came."""
        deadline = time.monotonic() + seconds
        while not self.asked and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return self.asked

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


def _detach(folder: Path) -> None:
    """Leave the starter: own session, no terminal, output to the log, not its child."""
    log = folder / "server.log"
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(folder / "server.log.1")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)


def main(argument: str) -> None:
    """Carry out the order in `argument` (:meth:`Order.text`) until nobody uses the server."""
    order = Order(**json.loads(argument))
    _detach(Path(order.folder))
    os.set_inheritable(order.lock, False)  # the server must not hold it when this process is killed
    os.ftruncate(order.lock, 0)
    os.pwrite(order.lock, str(os.getpid()).encode(), 0)
    _supervise(order)


if __name__ == "__main__":
    main(sys.argv[1])
