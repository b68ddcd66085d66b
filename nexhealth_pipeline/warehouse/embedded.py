"""The embedded PostgreSQL: started on demand, shared by processes, gone when the last of them has gone.

`ensure(home)` gives a running server and takes a lease on it for the rest of this process's life: a
shared file lock that the kernel drops however the process ends, and that forked children share. A small
supervisor process (`supervisor.py`) waits until no lease is left and stops the server. Nothing here
trusts a process number: running means that the server answers.

    a user is killed            its lease is dropped by the kernel, nothing else happens
    the server is killed        the supervisor starts it again while it is used, PostgreSQL recovers
    the supervisor is killed    the server goes on; the next `ensure`, or a user's exit, starts a new one
    all are killed              the next `ensure` adopts or restarts what it finds

The server is reached through a Unix socket in a folder that only its account and root may enter. As
root it runs as `nobody`. It is for demos and trials: it has no encryption and no backups.
"""

import atexit
import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import pq, sql

from nexhealth_pipeline.errors import WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.warehouse import binaries, supervisor
from nexhealth_pipeline.warehouse.account import Account, server_account
from nexhealth_pipeline.warehouse.file_locks import exclusive, shared_lock, try_exclusive
from nexhealth_pipeline.warehouse.place import Place, check_home, find_place
from nexhealth_pipeline.warehouse.supervisor import SUPERUSER, Order, accepts

__all__ = ["EmbeddedServer", "ensure", "release"]

_START_SECONDS = 180.0
"""Longest start: crash recovery may have 2 GB of log to replay."""
_STARTS = 4
"""A server that was killed may leave processes that end a moment later; until then a start is refused."""
_ANSWER_SECONDS = 5
"""Longest wait for a sign of life of the server."""
_PAUSE_SECONDS = 0.02
_TRY_AGAIN_SECONDS = 0.5
_UNUSED_SECONDS = 5.0
_BUILTIN_LOCALE = 17
"""Release that brought a locale of its own, the same on every system."""
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running server that this process holds a lease on."""

    place: Place

    @property
    def psql(self) -> Path:
        """The `psql` that comes with the server."""
        return binaries.bin_folder() / "psql"

    def url(self, database: str) -> str:
        """URL for libpq of `database` through the socket. It holds no secret."""
        port = f"&port={self.place.tcp_port}" if self.place.tcp_port else ""
        return f"postgresql://{SUPERUSER}@/{quote(database, safe='')}?host={quote(str(self.place.socket))}{port}"

    def tcp_url(self, database: str) -> str:
        """URL for libpq of `database` through 127.0.0.1, password included: print it only where it was asked for.

        Raises WarehouseError where the server was not started with `tcp=True`.
        """
        if self.place.tcp_port is None:
            raise WarehouseError(
                "the embedded PostgreSQL does not listen on 127.0.0.1: ask with `nexhealth db url --tcp`"
            )
        password = self.place.password_file.read_text(encoding="utf-8").strip()
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self.place.tcp_port}/{quote(database, safe='')}"

    def create_database(self, name: str) -> None:
        """Create database `name` unless it exists. Raises WarehouseUnreachable, or WarehouseError where it cannot."""
        with self._administrator() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                return
            with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))

    def clients(self) -> int:
        """How many clients are connected now. Raises WarehouseUnreachable, or WarehouseError where one more cannot be."""
        with self._administrator() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
        return int(row[0]) if row else 0

    @contextlib.contextmanager
    def _administrator(self) -> Iterator[psycopg.Connection]:
        try:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                yield connection
        except psycopg.errors.DiskFull:
            raise WarehouseError(
                f"the embedded PostgreSQL has no room left (53100): make room on the disk of {self.place.folder}, then try again"
            ) from None
        except psycopg.OperationalError as error:
            code = error.sqlstate
            if code is None and "too many clients" in str(error):  # a refusal to connect has no code
                raise WarehouseError(
                    "the embedded PostgreSQL has no connection left: end some of the programs that use it"
                ) from None
            if code is None or code.startswith(("08", "57P")):
                raise WarehouseUnreachable(
                    f"the embedded PostgreSQL ended while it was used: try again, or see the end of {self.place.log}"
                ) from None
            raise WarehouseError(
                f"the embedded PostgreSQL gave up ({code} {type(error).__name__}): try again"
            ) from None


@dataclass(slots=True)
class _Lease:
    server: EmbeddedServer
    descriptor: int


_ELSEWHERE = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGSERVICEFILE", "PGOPTIONS", "PGGSSENCMODE",
              "PGTARGETSESSIONATTRS", "PGREQUIREAUTH")  # fmt: skip
"""By these libpq fills in what an address leaves open: another server would be meant, or none."""

_leases: dict[Path, _Lease] = {}
_guard = threading.RLock()


def ensure(home: Path, *, linger_seconds: float = 0, durable: bool = True, tcp: bool = False) -> EmbeddedServer:
    """A running server with its state in `home`, leased until this process and its forked children end.

    `linger_seconds`: how long it stays up after the last user, and then while any client is connected.
    `durable=False` trades safety after a power cut for speed (tests); it counts when the server starts.
    `tcp=True` makes it listen on 127.0.0.1 with a password as well, from now on at every start.
    What the environment says of other PostgreSQL servers is forgotten, in this process and for those that it starts.

    Raises InvalidSetting where `home` cannot be used, WarehouseError where the server cannot be made or started, or
    where TCP is asked for while somebody uses a server without; no lease is held then.
    """
    home = home.expanduser().absolute()
    for name in _ELSEWHERE:
        os.environ.pop(name, None)
    with _guard:
        lease = _leases.get(home)
        if lease is None or not _healthy(lease.server) or (tcp and lease.server.place.tcp_port is None):
            lease = _start(home, durable=durable, tcp=tcp)
        if linger_seconds > 0:
            _ask_to_linger(lease.server.place, linger_seconds)
        return lease.server


def release(home: Path) -> None:
    """Give this process's lease on the server of `home` back before the process ends."""
    with _guard:
        lease = _leases.pop(home.expanduser().absolute(), None)
        if lease is not None:
            os.close(lease.descriptor)


def _healthy(server: EmbeddedServer) -> bool:
    """Whether the server answers and somebody will stop it in the end."""
    if not _answers(server):
        return False
    lock = try_exclusive(server.place.supervisor_lock)
    if lock is None:
        return True
    os.close(lock)
    return False


def _answers(server: EmbeddedServer) -> bool:
    # Without a limit a server that stands still would hold up whoever asks, Ctrl-C included: libpq waits in C.
    address = f"{server.url('postgres')}&connect_timeout={_ANSWER_SECONDS}"
    return pq.PGconn.ping(address.encode()) == pq.Ping.OK


def _start(home: Path, *, durable: bool, tcp: bool) -> _Lease:
    """Make what is missing of place, data, lease, supervisor and server."""
    check_home(home)
    account = server_account()
    with exclusive(home / "postgres" / "start.lock", _START_SECONDS):
        place = find_place(home, account)
        _make_data(place, account, durable=durable)
        if tcp and place.tcp_port is None:
            release(home)
            _end_unused(place)
            place = place.with_tcp()
        if home not in _leases:
            descriptor = shared_lock(place.users_lock, _START_SECONDS)
            _leases[home] = _Lease(EmbeddedServer(place), descriptor)
        lease = _leases[home]
        try:
            lease.server = _bring_up(place, account, durable=durable)
        except BaseException:
            release(home)
            raise
    return lease


def _end_unused(place: Place) -> None:
    """Let a server that nobody uses end. Raises WarehouseError where somebody does."""
    if _has_ended(place):
        return
    used = False
    with contextlib.suppress(WarehouseUnreachable):  # it is ending already
        used = EmbeddedServer(place).clients() > 0
    if not used:
        (place.folder / "linger").unlink(missing_ok=True)
        deadline = time.monotonic() + _UNUSED_SECONDS
        while not _has_ended(place) and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
    if not _has_ended(place):
        raise WarehouseError(
            "the embedded PostgreSQL is in use and does not listen on 127.0.0.1 yet: "
            "end the other nexhealth processes, then ask for TCP again"
        )


def _has_ended(place: Place) -> bool:
    """Whether no server runs, nor will by itself: a supervisor starts one again that was killed, by what it knew of ports."""
    lock = try_exclusive(place.supervisor_lock)
    if lock is None:
        return False
    os.close(lock)
    return not accepts(place.socket_file)


def _make_data(place: Place, account: Account | None, *, durable: bool) -> None:
    """Run initdb once; a run that was cut short leaves only `data.new`, which the next one replaces."""
    if place.data.is_dir():
        _check_release(place)
        return
    new = place.folder / "data.new"
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    password = place.socket / "password"
    _keep_secret(secrets.token_urlsafe(32), password)
    if account is not None:
        account.own(new)
        account.own(password)
    programs = binaries.bin_folder_for(account, place.folder)
    _run_initdb(programs, new, password, account, durable=durable)
    _keep_secret(password.read_text(encoding="utf-8"), place.password_file)
    password.unlink()
    new.rename(place.data)


def _keep_secret(text: str, file: Path) -> None:
    """Write `text` to a new file that nobody else can read, not even in the moment in which it is made."""
    file.unlink(missing_ok=True)  # of a run that was cut short
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(text)


def _run_initdb(programs: Path, data: Path, password: Path, account: Account | None, *, durable: bool) -> None:
    command = [str(programs / "initdb"), "-D", str(data), "-U", SUPERUSER, "-E", "UTF8", "--locale=C"]
    if _release(programs) >= _BUILTIN_LOCALE:  # characters are known as such; text still sorts by code point
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    command += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}", "--no-instructions"]
    command += [] if durable else ["--no-sync"]
    options = account.options() if account else {}
    done = subprocess.run(command, check=False, cwd="/", env=_environment(), capture_output=True, text=True, **options)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WarehouseError(f"the embedded PostgreSQL cannot be made in {data.parent}: {last}")


def _release(programs: Path) -> int:
    """Major release of the programs in a folder."""
    done = subprocess.run([programs / "postgres", "-V"], check=True, capture_output=True, text=True)
    return int(re.findall(r"\) (\d+)", done.stdout)[0])


def _check_release(place: Place) -> None:
    """Refuse data of another major release: PostgreSQL would, in its log only."""
    found = (place.data / "PG_VERSION").read_text().strip()
    ours = str(_release(binaries.bin_folder()))
    if found != ours:
        raise WarehouseError(
            f"{place.data} was made by PostgreSQL {found}, this is PostgreSQL {ours}: install the release that "
            "made it, dump it, and load it into a new NEXHEALTH_HOME"
        )


def _bring_up(place: Place, account: Account | None, *, durable: bool) -> EmbeddedServer:
    """The server, once it answers and a supervisor watches it."""
    server = EmbeddedServer(place)
    deadline = time.monotonic() + _START_SECONDS
    started = 0
    while time.monotonic() < deadline:
        lock = try_exclusive(place.supervisor_lock)
        if lock is None:
            if _answers(server):
                return server
            time.sleep(_PAUSE_SECONDS)
        elif started < _STARTS:
            try:
                if started:
                    time.sleep(_TRY_AGAIN_SECONDS)
                elif not accepts(place.socket_file):
                    (place.folder / "linger").unlink(missing_ok=True)
                    place = place.with_usable_port()
                    server = EmbeddedServer(place)
                _spawn_supervisor(place, lock, account, durable=durable)
            finally:
                os.close(lock)  # the supervisor has it now
            started += 1
        else:
            os.close(lock)
            break
    raise WarehouseUnreachable(f"the embedded PostgreSQL does not start: see the end of {place.log}")


def _spawn_supervisor(place: Place, lock: int, account: Account | None, *, durable: bool) -> None:
    """Start a supervisor and hand it the lock. It leaves this process at once, so none is left to collect."""
    order = Order(
        folder=str(place.folder),
        socket=str(place.socket),
        programs=str(binaries.bin_folder_for(account, place.folder)),
        port=place.port,
        tcp=place.tcp_port is not None,
        durable=durable,
        uid=account.uid if account else -1,
        gid=account.gid if account else -1,
        lock=lock,
    )
    command = [sys.executable, "-I", supervisor.__file__, order.text()]
    try:
        subprocess.run(command, check=True, cwd="/", env=_environment(), stdin=subprocess.DEVNULL, pass_fds=(lock,))
    except (OSError, subprocess.CalledProcessError):
        raise WarehouseError(f"the embedded PostgreSQL's supervisor does not start with {sys.executable}") from None


def _environment() -> dict[str, str]:
    """What the server's processes get to see of the environment: no secret, no PG*, no locale."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def _ask_to_linger(place: Place, seconds: float) -> None:
    """Write down until when the server stays up; a later time already written down stands."""
    mark = place.folder / "linger"
    until = time.monotonic() + seconds  # one clock for all processes since the machine's start
    with exclusive(place.record.with_name("start.lock"), _START_SECONDS):  # two at once write one file
        with contextlib.suppress(OSError, ValueError):
            until = max(until, float(mark.read_text()))
        new = mark.with_suffix(".new")
        new.write_text(str(until))
        new.replace(mark)


def _after_fork() -> None:
    """A child keeps the leases; only the thread lock may have been held by a thread it does not have."""
    global _guard  # noqa: PLW0603 - one lock a process, and this is another process
    _guard = threading.RLock()


def _leave() -> None:
    """At exit: where the supervisor was killed, start one that stops the server once all have gone."""
    for lease in list(_leases.values()):
        place = lease.server.place
        lock = try_exclusive(place.supervisor_lock) if place.folder.is_dir() else None
        if lock is None:
            continue
        if accepts(place.socket_file):
            _spawn_supervisor(place, lock, server_account(), durable=True)
        else:
            os.close(lock)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_leave)
