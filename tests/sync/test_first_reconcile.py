"""A reconcile that is the first read of a practice judges tables that PostgreSQL has had no time to look at."""

import time

from tests.client.stub import running

from .kit import Rows, settings_of, sync_all
from .reconciled import RECONCILE
from .test_memory import Office


def rows_looked_at(rows: Rows, table: str) -> int:
    """By all who have ended; the server counts them."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + 30
    while rows(others) != [(0,)]:
        assert time.monotonic() < deadline, "somebody is still connected"
        time.sleep(0.02)
    looked = "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname ="
    return int(rows(f"{looked} '{table}'")[0][0])


def test_who_is_missing_is_found_without_comparing_each_patient_with_every_other(database_url: str, rows: Rows) -> None:
    """Of two thousand patients six million memberships were looked at; ten thousand took the better part of a minute."""
    office = Office(a_page=500, width=10)
    office.pages = 4  # a table that is smaller is read as a whole, whatever is known of it
    with running(office):
        results = sync_all(settings_of(office, database_url), RECONCILE, only={"patients"})
    patients = office.pages * office.a_page
    assert [one.absence.seen for one in results if one.absence is not None] == [patients, 0]
    assert rows_looked_at(rows, "nexhealth_patient_locations") < 20 * patients
