"""What a run holds while it works."""

import threading
import time
from contextlib import nullcontext

import psycopg
import pytest
from pydantic import SecretStr

from nexhealth_pipeline.errors import Cancelled, WarehouseError
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import session as sessions
from nexhealth_pipeline.sync.retry_quarantine import retry_quarantine
from nexhealth_pipeline.warehouse.runs import RunLock, is_dead, lock_key
from tests.poolers import pooler

from .kit import open_session

HELD_BY = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = %s"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def test_a_run_takes_its_lock_again_though_it_commits_nothing(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: a proxy ends the connection while another run is waited for, and the living run is closed as dead."""
    monkeypatch.setattr(sessions, "_LOCK_SECONDS", 1.0)
    with (
        open_session(settings, run_id="mine"),
        psycopg.connect(database_url, autocommit=True) as other,
    ):
        (holder,) = other.execute(HELD_BY, (lock_key("run", "mine"),)).fetchall()
        other.execute("SELECT pg_terminate_backend(%s, 5000)", holder)
        deadline = time.monotonic() + 30
        while other.execute(HELD_BY, (lock_key("run", "mine"),)).fetchall() in ([], [holder]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not is_dead(other, "mine")
    assert "nexhealth-run-lock" not in {thread.name for thread in threading.enumerate()}


def test_by_a_pooler_in_transaction_mode_no_run_begins_and_none_is_taken_for_dead(
    settings: Settings, database_url: str
) -> None:
    """Risk: the session that holds a living run's lock is the next client's, who gets the lock as well and closes the run."""
    with pooler(database_url, sessions=False) as url, psycopg.connect(database_url) as db:
        with RunLock(url, "mine"):
            through = settings.model_copy(update={"database_url": SecretStr(url)})
            with pytest.raises(WarehouseError, match="pooler in transaction mode"), open_session(through):
                pass
            with pytest.raises(WarehouseError, match="pooler in transaction mode"):
                retry_quarantine(url)
        assert db.execute("SELECT run_id, status FROM nexhealth_runs").fetchall() == [("mine", "running")]


@pytest.mark.parametrize(
    ("error", "stopped", "status"),
    [
        (None, False, "succeeded"),
        (None, True, "cancelled"),
        (Cancelled("stopped"), False, "cancelled"),
        (KeyboardInterrupt(), True, "cancelled"),
        (WarehouseError("no room left"), True, "failed"),
        (ValueError("a fault of ours"), False, "failed"),
    ],
    ids=str,
)
def test_a_run_that_breaks_off_by_an_error_has_failed_though_the_error_stopped_its_threads(
    error: BaseException | None, stopped: bool, status: str, settings: Settings, database_url: str
) -> None:
    """Risk: a night that ended by a full disk is listed among those that somebody stopped."""
    with pytest.raises(type(error)) if error else nullcontext(), open_session(settings, run_id="mine") as session:
        if stopped:
            session.stop.set()
        if error:
            raise error
    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT status FROM nexhealth_runs WHERE run_id = 'mine'").fetchone() == (status,)
