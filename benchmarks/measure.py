"""What a program costs: its own process by the kernel's account, and PostgreSQL's by its processes and counters."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

_TICK = os.sysconf("SC_CLK_TCK")


# A process begins with the peak memory of the one that started it, by the kernel's account: a large benchmark would
# tell its own. So a small one starts the program, and tells what its children took.
_ACCOUNT = """
import json, os, resource, signal, sys
told, command = int(sys.argv[1]), sys.argv[2:]
child = os.posix_spawnp(command[0], command, os.environ)
signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
os.write(told, json.dumps([status, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]).encode())
"""


@dataclass(frozen=True, slots=True)
class Used:
    """One program and its children, from start to end."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds."""
    rss: float
    """Greatest peak of one of its processes, MiB."""
    status: int
    """How it ended."""
    output: str
    """What it printed."""


def accounted(command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> Used:
    """Run `command` in `environment` and account for it; modules may be kept compiled, as for somebody who installed it."""
    environment = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    heard, told = os.pipe()
    with os.fdopen(heard, "rb") as account:
        began = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _ACCOUNT, str(told), *command],
            env=environment, cwd=folder, pass_fds=(told,), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            os.close(told)
            try:
                output, complaint = process.communicate()
            except BaseException:
                process.terminate()
                raise
        wall = time.monotonic() - began
        status, cpu, rss = json.loads(account.read())
    if status:
        print(complaint.strip()[-2000:], file=sys.stderr)
    return Used(wall, cpu, rss, status, output)


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of one program."""

    wall: float
    """Seconds."""
    client_cpu: float
    """Seconds, of the program and its children."""
    server_cpu: float
    """Seconds, of all PostgreSQL processes."""
    rss: float
    """Peak of the program, MiB."""
    wal: int
    """Bytes."""
    rows_written: int
    """Inserted, updated and deleted rows of ordinary tables."""
    rows_of_patients: int
    """The same of tables of patients, which end so in everybody's database."""
    answer: str
    """What it printed last."""


def run(command: Sequence[str], environment: Mapping[str, str], admin_url: str, database_url: str) -> Cost:
    """Run `command` and account for it. Raises RuntimeError where it fails."""
    with psycopg.connect(admin_url, autocommit=True) as admin, psycopg.connect(database_url, autocommit=True) as db:
        settle(db)
        before = _counters(admin, db)
        server = server_cpu(admin)
        used = accounted(command, {**os.environ, **environment})
        if used.status:
            raise RuntimeError(f"{' '.join(command[:2])} ended with {used.status}")
        after = _counters(admin, db)
        return Cost(
            used.wall,
            used.cpu,
            server_cpu(admin) - server,
            used.rss,
            after[0] - before[0],
            after[1] - before[1],
            after[2] - before[2],
            used.output.strip().splitlines()[-1] if used.output.strip() else "",
        )


def settle(db: psycopg.Connection) -> None:
    """Leave nothing of what was written before to be written by whoever comes next; `db` commits by itself.

    Not VACUUM ANALYZE: the first to read what that has written about the tables would mark it, 0.4 MB of WAL.
    """
    for command in ("ANALYZE", "VACUUM", "CHECKPOINT"):
        db.execute(command)


def _counters(admin: psycopg.Connection, db: psycopg.Connection) -> tuple[int, int, int]:
    """Bytes of WAL so far, and rows written so far: all, and those of patients' tables."""
    admin.execute("SELECT pg_stat_force_next_flush()")
    time.sleep(0.1)
    wal = admin.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
    written = "coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del)"
    rows = db.execute(
        f"SELECT {written}, 0)::bigint, {written} FILTER (WHERE relname LIKE '%patients'), 0)::bigint FROM pg_stat_user_tables"
    ).fetchone()
    assert wal
    assert rows
    return wal[0], *rows


def server_cpu(admin: psycopg.Connection) -> float:
    """CPU seconds of the postmaster and all it ever waited for: backends that ended are in its children's times."""
    row = admin.execute("SELECT pg_backend_pid()").fetchone()
    assert row
    postmaster = int(_stat(row[0])[1])
    total = 0.0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = _stat(int(folder.name))
            except OSError:
                continue
            if int(folder.name) == postmaster:
                total += sum(map(int, fields[11:15]))
            elif int(fields[1]) == postmaster:
                total += sum(map(int, fields[11:13]))
    return total / _TICK


def children_cpu(*, without: str | None = None) -> float:
    """CPU seconds of this process's living children, theirs, and all that those ever waited for.

    Not counted are those whose command line has the words `without`.
    """
    counted = [fields for pid, fields in _descendants().items() if without is None or without not in _command_line(pid)]
    return sum(sum(map(int, fields[11:15])) for fields in counted) / _TICK


def peak_rss(pid: int) -> float:
    """MiB that a living process has had at most.

    Raises FileNotFoundError where it has ended, ProcessLookupError where nobody has waited for it yet: both are OSError.
    """
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if peak is None:  # the kernel keeps its status, and has taken its memory back
        raise ProcessLookupError(f"process {pid} has ended: it has no memory any more")
    return int(peak[1]) / 1024


def peak_rss_of(words: str) -> float:
    """MiB that one of this process's living descendants has had at most, of those whose command line has `words`.

    Raises LookupError where none of them is living.
    """
    found = []
    for pid in _descendants():
        with contextlib.suppress(OSError):  # it has ended
            if words in _command_line(pid):
                found.append(peak_rss(pid))
    if not found:
        raise LookupError(f"no process with {words!r} in its command line is there")
    return max(found)


def _descendants() -> dict[int, list[str]]:
    """Living children of this process, theirs, and so on: the fields of each."""
    all_there: dict[int, list[str]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                all_there[int(folder.name)] = _stat(int(folder.name))
    family = {os.getpid()}
    while grown := {pid for pid, fields in all_there.items() if int(fields[1]) in family} - family:
        family |= grown
    return {pid: all_there[pid] for pid in family - {os.getpid()}}


def _command_line(pid: int) -> str:
    """What a process was started with; empty where it has ended and nobody has waited for it yet, or somebody has."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
