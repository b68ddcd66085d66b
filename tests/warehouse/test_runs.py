"""A dead run's rows are closed; a live one's never."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from nexhealth_pipeline.warehouse.runs import RunLock, close_dead_runs, is_dead, lock_key
from nexhealth_pipeline.warehouse.sync_log import Counts, SyncLog

from .conftest import Rows

_HOLDER = """
import sys
from nexhealth_pipeline.warehouse.runs import RunLock
with RunLock(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
RUNS = "SELECT run_id, status, finished_at IS NOT NULL FROM nexhealth_runs ORDER BY 1"
LOGS = "SELECT run_id, status, finished_at IS NOT NULL, error FROM nexhealth_sync_logs ORDER BY 1"


def log_row(connection: psycopg.Connection, run_id: str) -> SyncLog:
    return SyncLog.open(
        connection,
        run_id=run_id,
        asset="nexhealth_gadgets",
        collection="gadgets",
        institution_id=7,
        location_id=3,
        partition_key="x.3",
        mode="full",
    )


@pytest.fixture
def holder(shared_url: str, connection: psycopg.Connection) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of run `elsewhere`."""
    command = [sys.executable, "-c", _HOLDER, shared_url, "elsewhere"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def wait_until_free(connection: psycopg.Connection, run_id: str) -> None:
    """The server notices within milliseconds that a killed client's socket is closed."""
    connection.execute("SELECT pg_advisory_lock(%s)", (lock_key("run", run_id),))
    connection.execute("SELECT pg_advisory_unlock(%s)", (lock_key("run", run_id),))


def test_a_killed_runs_rows_are_closed_and_a_live_ones_are_not(
    connection: psycopg.Connection, shared_url: str, rows: Rows, holder: subprocess.Popen[str]
) -> None:
    """Risk: progress that never moves again; or a run that is declared dead while it works."""
    with RunLock(shared_url, "mine"):
        for run_id in ("elsewhere", "mine"):
            log_row(connection, run_id)
        assert close_dead_runs(connection) == []
        holder.kill()
        holder.wait()
        wait_until_free(connection, "elsewhere")
        assert close_dead_runs(connection) == ["elsewhere"]
        assert rows(RUNS) == [("elsewhere", "interrupted", True), ("mine", "running", False)]
        assert [row[:3] for row in rows(LOGS)] == [("elsewhere", "interrupted", True), ("mine", "running", False)]
        assert rows(LOGS)[0][3]
        assert close_dead_runs(connection) == []


def test_closing_leaves_no_lock_behind(connection: psycopg.Connection, shared_url: str, rows: Rows) -> None:
    with RunLock(shared_url, "mine"):
        pass
    wait_until_free(connection, "mine")
    assert close_dead_runs(connection) == ["mine"]
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    assert rows(held) == [(0,)]


def test_a_finished_run_says_how_and_closes_log_rows_left_open(
    connection: psycopg.Connection, shared_url: str, rows: Rows
) -> None:
    with RunLock(shared_url, "mine") as lock:
        log_row(connection, "mine")
        done = log_row(connection, "mine")
        done.finish(connection, "succeeded", Counts(pages=2))
        lock.finish("cancelled")
    assert rows(RUNS) == [("mine", "cancelled", True)]
    assert sorted(row[1] for row in rows(LOGS)) == ["failed", "succeeded"]
    assert close_dead_runs(connection) == []


def test_a_run_that_cannot_close_its_log_rows_is_not_closed_either(
    connection: psycopg.Connection, shared_url: str, rows: Rows
) -> None:
    """Risk: rows that say running for ever, as only those of open runs are looked at."""
    with RunLock(shared_url, "mine") as lock:
        log_row(connection, "mine")
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
            "CREATE TRIGGER refuse BEFORE UPDATE ON nexhealth_sync_logs FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        with pytest.raises(psycopg.errors.RaiseException):
            lock.finish("succeeded")
        connection.execute("DROP FUNCTION refuse() CASCADE")
    wait_until_free(connection, "mine")
    assert close_dead_runs(connection) == ["mine"]
    assert [row[1] for row in rows(RUNS) + rows(LOGS)] == ["interrupted", "interrupted"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_run_takes_its_lock_again_when_the_server_dropped_it(
    connection: psycopg.Connection, shared_url: str, rows: Rows
) -> None:
    """PostgreSQL may be restarted under a run of hours."""
    with RunLock(shared_url, "mine") as lock:
        mine = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        (pid,) = rows(f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND {mine}")[0]
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        wait_until_free(connection, "mine")
        close_dead_runs(connection)
        lock.keep()
        assert close_dead_runs(connection) == []
        assert rows(RUNS) == [("mine", "running", False)]
        lock.finish("succeeded")
    assert rows(RUNS) == [("mine", "succeeded", True)]


@contextmanager
def kept_while_held(lock: RunLock, connection: psycopg.Connection) -> Iterator[tuple[Future[None], int]]:
    """A run looks after its lock, which `connection` holds since the run's own was lost, and waits: who, and as which backend.

    As a server does that has not noticed yet that the connection before is gone.
    """
    key = "locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {key}")
    connection.execute("SELECT pg_advisory_lock(%s)", (lock_key("run", lock.run_id),))
    with ThreadPoolExecutor(1) as pool:
        keeping = pool.submit(lock.keep)
        waiting: list[tuple[int]] = []
        try:
            while not waiting and not keeping.done():
                waiting = connection.execute(f"SELECT pid FROM pg_locks WHERE {key} AND NOT granted").fetchall()
            yield keeping, waiting[0][0]
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (lock_key("run", lock.run_id),))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_run_that_waited_in_vain_for_its_lock_does_not_take_itself_to_hold_it(
    connection: psycopg.Connection, shared_url: str
) -> None:
    """Risk: a run that looks dead to all others, for as long as it goes on."""
    with RunLock(shared_url, "mine") as lock:
        with kept_while_held(lock, connection) as (keeping, backend):
            connection.execute("SELECT pg_cancel_backend(%s)", (backend,))
            with pytest.raises(psycopg.errors.QueryCanceled):
                keeping.result(10)
        lock.keep()
        assert not is_dead(connection, "mine")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_roles_limits_do_not_end_the_wait_for_the_runs_lock(connection: psycopg.Connection, shared_url: str) -> None:
    """An administrator's ALTER ROLE is meant for long queries; no row is read while a run waits."""
    limits = "options=-c%20statement_timeout%3D50%20-c%20lock_timeout%3D50"
    with RunLock(f"{shared_url}{'&' if '?' in shared_url else '?'}{limits}", "mine") as lock:
        with kept_while_held(lock, connection) as (keeping, _), pytest.raises(TimeoutError):
            keeping.result(0.2)
        keeping.result(10)
        assert not is_dead(connection, "mine")


def test_a_run_is_dead_when_nobody_holds_its_lock(connection: psycopg.Connection, shared_url: str, rows: Rows) -> None:
    with RunLock(shared_url, "mine"):
        assert not is_dead(connection, "mine")
    wait_until_free(connection, "mine")
    assert is_dead(connection, "mine")
    assert rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()") == [(0,)]


def test_keeping_a_lock_that_stands_changes_nothing(
    shared_url: str, connection: psycopg.Connection, rows: Rows
) -> None:
    with RunLock(shared_url, "mine") as lock:
        before = rows("SELECT xmin, * FROM nexhealth_runs")
        lock.keep()
        assert rows("SELECT xmin, * FROM nexhealth_runs") == before


def test_lock_keys_are_stable_and_apart() -> None:
    """Two releases, and two hosts, have to agree on them."""
    assert lock_key("run", "abc") == lock_key("run", "abc")
    keys = {lock_key("run", "a"), lock_key("slice", "a"), lock_key("slice", "a", 1), lock_key("slice", "a1")}
    assert len(keys) == 4
    assert all(-(2**63) <= key < 2**63 for key in keys)
