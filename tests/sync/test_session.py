"""What a run holds while it works."""

import psycopg
import pytest

from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import session as sessions
from nexhealth_pipeline.warehouse.runs import is_dead, lock_key

from .kit import open_session

HELD_BY = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = %s"


def test_a_run_that_works_takes_its_lock_again(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: a proxy ends a connection that was silent for hours, and the living run is closed as dead."""
    monkeypatch.setattr(sessions, "_LOCK_SECONDS", 0.0)
    with (
        open_session(settings, run_id="mine") as session,
        psycopg.connect(database_url, autocommit=True) as other,
    ):
        (holder,) = other.execute(HELD_BY, (lock_key("run", "mine"),)).fetchall()
        other.execute("SELECT pg_terminate_backend(%s, 5000)", holder)
        assert is_dead(other, "mine")
        session.keep_lock()
        assert not is_dead(other, "mine")
