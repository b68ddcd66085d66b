"""What a program costs: its own process by the kernel's account, and PostgreSQL's by its processes and counters."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

_TICK = os.sysconf("SC_CLK_TCK")


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
    answer: str
    """What it printed last."""


def run(command: Sequence[str], environment: Mapping[str, str], admin_url: str, database_url: str) -> Cost:
    """Run `command` and account for it. Raises RuntimeError where it fails."""
    with psycopg.connect(admin_url, autocommit=True) as admin, psycopg.connect(database_url, autocommit=True) as db:
        db.execute("VACUUM ANALYZE")
        admin.execute("CHECKPOINT")
        before = _counters(admin, db)
        server = server_cpu(admin)
        began = time.monotonic()
        process = subprocess.Popen(
            command, env=_as_installed(environment), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        if process.returncode:
            raise RuntimeError(f"{' '.join(command[:2])} ended with {process.returncode}")
        after = _counters(admin, db)
        return Cost(
            wall,
            usage.ru_utime + usage.ru_stime,
            server_cpu(admin) - server,
            usage.ru_maxrss / 1024,
            after[0] - before[0],
            after[1] - before[1],
            output.strip().splitlines()[-1] if output.strip() else "",
        )


def _as_installed(environment: Mapping[str, str]) -> dict[str, str]:
    """Our environment with `environment`; modules may be kept compiled, as they are where somebody installed them."""
    found = {**os.environ, **environment}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def _counters(admin: psycopg.Connection, db: psycopg.Connection) -> tuple[int, int]:
    """Bytes of WAL so far, and rows written so far."""
    admin.execute("SELECT pg_stat_force_next_flush()")
    time.sleep(0.1)
    wal = admin.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
    rows = db.execute("SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables").fetchone()
    assert wal
    assert rows
    return wal[0], rows[0] or 0


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


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
