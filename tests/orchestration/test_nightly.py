"""What is due at night and in the morning, decided from the warehouse alone."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.orchestration.nightly import due_at_night, due_in_the_morning
from nexhealth_pipeline.sync.months import CHANGES, month_keys
from nexhealth_pipeline.warehouse.knowledge import record_freshness

from .practices import add_locations, complete_months

LISTS = {
    scope: [one.name for one in DECLARED if one.is_asset and one.scope is scope and not one.may_be_disabled]
    for scope in Scope
}
OF_LOCATIONS = [*LISTS[Scope.LOCATION], *LISTS[Scope.LOCATION_MONTH]]
MONTHS = month_keys(datetime.now(UTC).date())


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    """Two institutions: acme with locations 1 and 2 (inactive), bond with 3."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        add_locations(connection, 10, "acme", [1])
        add_locations(connection, 10, "acme", [2], inactive=True)
        add_locations(connection, 20, "bond", [3])
        yield connection


def _read_now(db: psycopg.Connection, institution: int, location: int, names: list[str], ago: str = "0 h") -> None:
    for name in names:
        row = db.execute("SELECT clock_timestamp() - %s::interval", (ago,)).fetchone()
        assert row is not None
        record_freshness(
            db,
            institution_id=institution,
            location_id=location,
            collection=name,
            complete_through=row[0],
            last_full_at=None,
            changed=False,
        )


def test_the_first_night_reads_everything_and_no_changes(db: psycopg.Connection) -> None:
    """A change read before the months have been read would have nothing to start from."""
    due = due_at_night(db, ())
    assert (due.institutions, due.locations, due.changes) == (["acme", "bond"], ["acme.1", "bond.3"], [])
    assert due.months == [f"{key}|{month}" for key in ("acme.1", "bond.3") for month in MONTHS]


def test_later_nights_read_changes_and_only_the_months_that_are_missing(db: psycopg.Connection) -> None:
    """Each month a new last month appears, which must not throw the location back to reading all."""
    complete_months(db, 10, [1], MONTHS)
    complete_months(db, 20, [3], [*MONTHS[:-1], CHANGES])
    due = due_at_night(db, ())
    assert due.months == [f"bond.3|{MONTHS[-1]}"]
    assert due.changes == ["acme.1", "bond.3"]


def test_a_month_of_which_one_pass_is_missing_is_not_complete(db: psycopg.Connection) -> None:
    """The passes with and without cancelled appointments make one month."""
    complete_months(db, 10, [1], MONTHS)
    db.execute("DELETE FROM nexhealth_sync_state WHERE window_key = %s AND pass <> 'active'", (MONTHS[3],))
    passes = db.execute("SELECT count(*) FROM nexhealth_sync_state WHERE window_key = %s", (MONTHS[3],)).fetchone()
    assert passes is not None
    due = due_at_night(db, ())
    assert f"acme.1|{MONTHS[3]}" in due.months
    assert due.changes == []


def test_chosen_subdomains_limit_what_is_due(db: psycopg.Connection) -> None:
    """NEXHEALTH_SUBDOMAINS must hold at night as it does in a shell."""
    due = due_at_night(db, ("bond",))
    assert (due.institutions, due.locations) == (["bond"], ["bond.3"])


def test_the_morning_leaves_alone_what_the_night_read_right(db: psycopg.Connection) -> None:
    """A catch-up that reads all again would double the cost of a night."""
    complete_months(db, 10, [1], MONTHS)
    complete_months(db, 20, [3], MONTHS)
    for institution, location in ((10, 1), (20, 3)):
        _read_now(db, institution, location, OF_LOCATIONS)
        _read_now(db, institution, 0, LISTS[Scope.INSTITUTION])
    due = due_in_the_morning(db, ())
    assert (due.institutions, due.locations, due.months, due.changes) == ([], [], [], [])


@pytest.mark.parametrize("late", ["patients", "documents", "appointments"])
def test_the_morning_reads_a_location_of_which_any_list_is_late(db: psycopg.Connection, late: str) -> None:
    """A night in which only one collection failed is not a night that went right."""
    complete_months(db, 10, [1], MONTHS)
    complete_months(db, 20, [3], MONTHS)
    for institution, location in ((10, 1), (20, 3)):
        _read_now(db, institution, location, OF_LOCATIONS)
        _read_now(db, institution, 0, LISTS[Scope.INSTITUTION])
    _read_now(db, 20, 3, [late], ago="13 h")
    due = due_in_the_morning(db, ())
    assert (due.institutions, due.locations, due.months, due.changes) == (["bond"], ["bond.3"], [], ["bond.3"])


def test_the_morning_reads_what_was_offline_at_night(db: psycopg.Connection) -> None:
    """What an office's server held back at two o'clock, NexHealth has at nine."""
    for institution, location in ((10, 1), (20, 3)):
        _read_now(db, institution, location, OF_LOCATIONS)
        _read_now(db, institution, 0, LISTS[Scope.INSTITUTION])
    db.execute("UPDATE nexhealth_freshness SET source_read_status = 'red' WHERE location_id = 1")
    assert due_in_the_morning(db, ()).locations == ["acme.1"]
    db.execute(
        "UPDATE nexhealth_freshness SET source_read_status = 'green',"
        " source_read_status_at = complete_through - interval '5 h'"
    )
    assert due_in_the_morning(db, ()).locations == ["acme.1", "bond.3"]


def test_a_thousand_locations_are_decided_upon_in_a_second(db: psycopg.Connection) -> None:
    """A tick that takes longer than Dagster's patience is a night without a sync."""
    add_locations(db, 30, "many", range(1000, 2000))
    complete_months(db, 30, range(1000, 2000), [*MONTHS, CHANGES])
    db.execute("ANALYZE")
    began = time.process_time(), time.monotonic()
    due = due_at_night(db, ())
    assert len(due.locations) == 1002
    assert len(due.changes) == 1000
    assert time.process_time() - began[0] < 1.0
    assert time.monotonic() - began[1] < 3.0, "the machine may be busy; measured alone it takes 0.3 s"
