"""What is due at night and in the morning, decided from the warehouse alone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.orchestration.nightly import Due, due_at_night, due_in_the_morning
from nexhealth_pipeline.sync.months import CHANGES, month_keys
from nexhealth_pipeline.warehouse.knowledge import record_freshness
from tests.effort import counted

from .practices import add_locations, complete_months

LISTS = {
    scope: [one.name for one in DECLARED if one.is_asset and one.scope is scope and not one.may_be_disabled]
    for scope in Scope
}
OF_LOCATIONS = [*LISTS[Scope.LOCATION], *LISTS[Scope.LOCATION_MONTH]]
NIGHT = datetime.now(UTC) - timedelta(hours=8)


def _months() -> list[str]:
    """Asked anew each time: tests may begin in one month and end in the next."""
    return month_keys(datetime.now(UTC).date())


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
    assert due.months == [f"{key}|{month}" for key in ("acme.1", "bond.3") for month in _months()]


def test_later_nights_read_changes_and_only_the_months_that_are_missing(db: psycopg.Connection) -> None:
    """Each month a new last month appears, which must not throw the location back to reading all."""
    complete_months(db, 10, [1], _months())
    complete_months(db, 20, [3], [*_months()[:-1], CHANGES])
    due = due_at_night(db, ())
    assert due.months == [f"bond.3|{_months()[-1]}"]
    assert due.changes == ["acme.1", "bond.3"]


def test_a_month_of_which_one_pass_is_missing_is_not_complete(db: psycopg.Connection) -> None:
    """The passes with and without cancelled appointments make one month; of the others the changes come all the same."""
    complete_months(db, 10, [1], _months())
    db.execute("DELETE FROM nexhealth_sync_state WHERE window_key = %s AND pass <> 'kept'", (_months()[3],))
    passes = db.execute("SELECT count(*) FROM nexhealth_sync_state WHERE window_key = %s", (_months()[3],)).fetchone()
    assert passes == (1,)
    due = due_at_night(db, ())
    assert [month for month in due.months if month.startswith("acme")] == [f"acme.1|{_months()[3]}"]
    assert due.changes == ["acme.1"], "a month that fails for weeks must not let the others age"


@pytest.mark.parametrize("left_complete", [True, False])
def test_what_was_read_of_a_location_where_it_belonged_before_says_nothing(
    db: psycopg.Connection, left_complete: bool
) -> None:
    """It keeps its id: taken for read it never became complete where it is now, or a month was read whole every night."""
    complete_months(db, 10, [1], _months())
    db.execute("UPDATE nexhealth_locations SET deleted_at = now() WHERE institution_id = 10")
    add_locations(db, 20, "bond", [1])
    if not left_complete:
        complete_months(db, 20, [1], _months())
        db.execute(
            "UPDATE nexhealth_sync_state SET watermark = NULL WHERE (institution_id, window_key, pass) = (10, %s, 'kept')",
            (_months()[3],),
        )
    due = due_at_night(db, ())
    assert [month for month in due.months if month.startswith("bond.1|")] == [
        f"bond.1|{month}" for month in _months() if left_complete
    ]
    assert due.changes == ([] if left_complete else ["bond.1"])


def test_chosen_subdomains_limit_what_is_due(db: psycopg.Connection) -> None:
    """NEXHEALTH_SUBDOMAINS must hold at night as it does in a shell."""
    due = due_at_night(db, ("bond",))
    assert (due.institutions, due.locations) == (["bond"], ["bond.3"])


def test_the_morning_leaves_alone_what_the_night_read_right(db: psycopg.Connection) -> None:
    """A catch-up that reads all again would double the cost of a night."""
    complete_months(db, 10, [1], _months())
    complete_months(db, 20, [3], _months())
    for institution, location in ((10, 1), (20, 3)):
        _read_now(db, institution, location, OF_LOCATIONS)
        _read_now(db, institution, 0, LISTS[Scope.INSTITUTION])
    due = due_in_the_morning(db, (), NIGHT)
    assert (due.institutions, due.locations, due.months, due.changes) == ([], [], [], [])


@pytest.mark.parametrize(
    ("late", "lists", "changes"),
    [("patients", ["bond.3"], []), ("documents", ["bond.3"], []), ("appointments", [], ["bond.3"])],
)
def test_the_morning_reads_of_a_location_what_is_late_and_nothing_else(
    db: psycopg.Connection, late: str, lists: list[str], changes: list[str]
) -> None:
    """A night in which one collection failed did not go right; all the others are not read again for it."""
    complete_months(db, 10, [1], _months())
    complete_months(db, 20, [3], _months())
    for institution, location in ((10, 1), (20, 3)):
        _read_now(db, institution, location, OF_LOCATIONS)
        _read_now(db, institution, 0, LISTS[Scope.INSTITUTION])
    _read_now(db, 20, 3, [late], ago="10 h")
    due = due_in_the_morning(db, (), NIGHT)
    assert (due.institutions, due.locations, due.months, due.changes) == ([], lists, [], changes)


def test_the_morning_reads_lists_of_an_institution_by_themselves_and_with_an_office_that_lacked(
    db: psycopg.Connection,
) -> None:
    """They are read for all offices at once: of one that was offline, or new, they may hold less than there is."""
    complete_months(db, 10, [1], _months())
    complete_months(db, 20, [3], _months())
    for institution, location in ((10, 1), (20, 3)):
        _read_now(db, institution, location, OF_LOCATIONS)
        _read_now(db, institution, 0, LISTS[Scope.INSTITUTION])
    _read_now(db, 20, 0, ["providers"], ago="10 h")
    due = due_in_the_morning(db, (), NIGHT)
    assert (due.institutions, due.locations, due.months, due.changes) == (["bond"], [], [], [])
    _read_now(db, 20, 0, ["providers"])
    db.execute(
        "UPDATE nexhealth_freshness SET source_read_status = 'red' WHERE (location_id, collection) = (1, 'patients')"
    )
    due = due_in_the_morning(db, (), NIGHT)
    assert (due.institutions, due.locations, due.changes) == (["acme"], ["acme.1"], [])
    db.execute("UPDATE nexhealth_freshness SET source_read_status = NULL")
    add_locations(db, 20, "bond", [4])
    due = due_in_the_morning(db, (), NIGHT)
    assert (due.institutions, due.locations, due.changes) == (["bond"], ["bond.4"], [])
    assert due.months == [f"bond.4|{month}" for month in _months()]


def test_the_morning_does_not_wait_for_what_nobody_is_asked_for(db: psycopg.Connection) -> None:
    """Where types belong to locations and none is active, no night reads them: all other lists would be read twice a day."""
    add_locations(db, 30, "cove", [5], inactive=True)
    db.execute(
        "UPDATE nexhealth_institutions SET raw = '{\"appointment_types_location_scoped\": true}' WHERE id IN (20, 30)"
    )
    for institution in (10, 20, 30):
        _read_now(db, institution, 0, [name for name in LISTS[Scope.INSTITUTION] if name != "appointment_types"])
    for institution, location in ((10, 1), (20, 3)):
        _read_now(db, institution, location, OF_LOCATIONS)
    assert due_in_the_morning(db, (), NIGHT).institutions == ["acme", "bond"]
    for institution in (10, 20):
        _read_now(db, institution, 0, ["appointment_types"])
    assert due_in_the_morning(db, (), NIGHT).institutions == []
    _read_now(db, 30, 0, ["providers"], ago="10 h")
    assert due_in_the_morning(db, (), NIGHT).institutions == ["cove"]


def test_the_morning_reads_what_was_offline_at_night(db: psycopg.Connection) -> None:
    """What an office's server held back at two o'clock, NexHealth has at nine."""
    for institution, location in ((10, 1), (20, 3)):
        _read_now(db, institution, location, OF_LOCATIONS)
        _read_now(db, institution, 0, LISTS[Scope.INSTITUTION])
    db.execute("UPDATE nexhealth_freshness SET source_read_status = 'red' WHERE location_id = 1")
    assert due_in_the_morning(db, (), NIGHT).locations == ["acme.1"]
    db.execute(
        "UPDATE nexhealth_freshness SET source_read_status = 'green',"
        " source_read_status_at = complete_through - interval '10 h'"
    )
    assert due_in_the_morning(db, (), NIGHT).locations == ["acme.1", "bond.3"]


def test_what_is_read_late_in_the_night_was_not_offline_for_that(db: psycopg.Connection) -> None:
    """How offices are is asked as the night begins: three hours later a hole is filled, or a long night goes on."""
    complete_months(db, 10, [1], [*_months(), CHANGES])
    complete_months(db, 20, [3], [*_months(), CHANGES])
    for institution, location in ((10, 1), (20, 3)):
        _read_now(db, institution, 0, ["sync_status"], ago="8 h")
        _read_now(db, institution, location, OF_LOCATIONS, ago="5 h")
        _read_now(db, institution, 0, LISTS[Scope.INSTITUTION], ago="5 h")
    db.execute(
        "UPDATE nexhealth_freshness SET source_read_status = 'green', source_read_status_at = %s",
        (NIGHT - timedelta(minutes=2),),
    )
    assert due_in_the_morning(db, (), NIGHT) == Due()
    db.execute("UPDATE nexhealth_freshness SET source_read_status_at = %s", (NIGHT - timedelta(minutes=62),))
    assert due_in_the_morning(db, (), NIGHT).changes == ["acme.1", "bond.3"]
    # What an earlier night has read is judged by then, and is no sign that the office is offline.
    db.execute("UPDATE nexhealth_freshness SET source_read_status_at = %s", (NIGHT,))
    db.execute(
        "UPDATE nexhealth_freshness SET complete_through = complete_through - interval '27 h',"
        " source_read_status_at = source_read_status_at - interval '1 day' WHERE (location_id, collection) = (3, 'patients')"
    )
    due = due_in_the_morning(db, (), NIGHT)
    assert (due.institutions, due.locations, due.changes) == ([], ["bond.3"], [])


def _visited(db: psycopg.Connection) -> int:
    """Rows of any table that the running transaction has looked at."""
    row = db.execute(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int FROM pg_stat_xact_user_tables"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_thousand_locations_cost_no_more_each_than_a_hundred(db: psycopg.Connection) -> None:
    """A tick that takes longer than Dagster's patience is a night without a sync."""
    db.execute("SET max_parallel_workers_per_gather = 0")  # what a worker looks at is not this transaction's
    found = []
    for ids in (range(1000, 1098), range(1098, 1998)):
        add_locations(db, 30, "many", ids)
        complete_months(db, 30, ids, [*_months(), CHANGES])
        db.execute("ANALYZE")
        due_at_night(db, ())  # what is made at first use
        with db.transaction(), counted() as effort:
            due = due_at_night(db, ())
            visited = _visited(db)
        assert (len(due.locations), len(due.changes)) == (ids.stop - 998, ids.stop - 1000)
        found.append((effort, visited))
    (few, few_visited), (many, many_visited) = found
    assert many.statements == few.statements
    assert many.rows < 3 * 1000, "one for the location, and one for all of its windows"
    assert many.calls <= 10 * few.calls
    assert many_visited <= 10 * few_visited


def _keep(
    db: psycopg.Connection,
    institution: int,
    location: int,
    name: str,
    *,
    days: float,
    judged: bool = True,
    complete: bool = True,
) -> None:
    """A reconcile's pass begun so many days ago."""
    db.execute(
        "INSERT INTO nexhealth_seen_passes (collection, institution_id, location_id, window_key, pass, begun_at, offline,"
        " complete, judged_at) SELECT %s, %s, %s, '', 'all', at, '{}', %s, CASE WHEN %s THEN at END"
        " FROM (SELECT clock_timestamp() - %s * interval '1 day' AS at) t",
        (name, institution, location, complete, judged, days),
    )


@pytest.fixture
def read(db: psycopg.Connection) -> psycopg.Connection:
    """Everything has been read completely once; locations 3 and 4 of bond share a database."""
    add_locations(db, 20, "bond", [4])
    db.execute(
        "INSERT INTO nexhealth_sync_status (institution_id, sync_source_type, sync_source_name, locations, raw, synced_at,"
        " source_read_at, row_hash) VALUES (20, 'x', 'y', '[{\"id\": 3}, {\"id\": 4}]', '{}', now(), now(), '')"
    )
    for institution, location in ((10, 1), (20, 3), (20, 4)):
        complete_months(db, institution, [location], [*_months(), CHANGES])
        _read_now(db, institution, location, OF_LOCATIONS)
    for institution in (10, 20):
        _read_now(db, institution, 0, LISTS[Scope.INSTITUTION])
    return db


def _reconciled(db: psycopg.Connection) -> tuple[list[str], list[str], list[str]]:
    """Institutions, locations, and locations by months, that the night reconciles."""
    found = due_at_night(db, ()).reconcile or Due()
    return found.institutions, found.locations, list(dict.fromkeys(key.partition("|")[0] for key in found.months))


def test_a_seventh_of_all_is_reconciled_each_night_instead_of_read(read: psycopg.Connection) -> None:
    """Deletions have no event and no increment; and a database is judged whole or not at all."""
    _keep(read, 10, 1, "patients", days=8)
    _keep(read, 20, 4, "patients", days=9)
    _keep(read, 10, 1, "appointments", days=10)
    _keep(read, 20, 3, "appointments", days=9)
    due = due_at_night(read, ())
    assert due.reconcile is not None
    assert (due.locations, due.reconcile.locations) == (["acme.1"], ["bond.3", "bond.4"])
    assert (due.months, due.reconcile.months) == ([], [f"acme.1|{month}" for month in _months()])
    assert len(due.institutions) == len(due.reconcile.institutions) == 1


def test_what_was_judged_by_a_clock_that_was_ahead_rests_no_longer_than_others(read: psycopg.Connection) -> None:
    _keep(read, 10, 1, "patients", days=-300)
    for location in (3, 4):
        _keep(read, 20, location, "patients", days=9)
    assert _reconciled(read)[1] == ["acme.1"]


def test_changes_are_read_where_months_are_reconciled_as_well(read: psycopg.Connection) -> None:
    """Two ticks ask for them: where the run before is still going and nothing is reconciled, the night's changes come."""
    _keep(read, 20, 3, "appointments", days=9)
    due = due_at_night(read, ())
    assert due.reconcile is not None
    assert due.reconcile.months
    assert (due.changes, due.reconcile.changes) == (["acme.1", "bond.3", "bond.4"], [])


def test_what_was_judged_this_week_rests(read: psycopg.Connection) -> None:
    """One office alone would else be read whole every night."""
    for institution, location in ((10, 1), (20, 3)):
        _keep(read, institution, location, "patients", days=2)
        _keep(read, institution, location, "appointments", days=6.6)
    _keep(read, 10, 0, "providers", days=1)
    _keep(read, 20, 0, "providers", days=1)
    assert _reconciled(read) == ([], [], ["acme.1"])


def test_lists_judged_in_turn_every_night_give_a_database_no_rest(read: psycopg.Connection) -> None:
    """Risk: documents are judged in every sync, and the rest of the database would never be."""
    for institution, location in ((10, 1), (20, 3)):
        _keep(read, institution, location, "patients", days=8)
        _keep(read, institution, location, "documents", days=1)
        _keep(read, institution, 0, "coverage_subscribers", days=1)
    institutions, locations, _ = _reconciled(read)
    assert (len(institutions), locations) == (1, ["acme.1"])


def test_one_that_never_comes_to_its_end_takes_no_turn_of_the_others(read: psycopg.Connection) -> None:
    """Tried last night and not judged: tried again when nobody waits longer."""
    _keep(read, 10, 1, "patients", days=1, judged=False, complete=False)
    _keep(read, 20, 3, "patients", days=7)
    assert _reconciled(read)[1] == ["bond.3", "bond.4"]
    read.execute("UPDATE nexhealth_seen_passes SET judged_at = now() WHERE location_id = 3")
    assert _reconciled(read)[1] == ["acme.1"]


def test_what_the_brake_holds_rests_and_what_was_stopped_before_its_judgement_does_not(
    read: psycopg.Connection,
) -> None:
    """Risk: what is held is read whole every night until somebody lifts the brake; what was stopped waits a week more."""
    for location in (3, 4):
        _keep(read, 20, location, "appointments", days=2, judged=False)
    _keep(read, 10, 1, "appointments", days=1)
    assert _reconciled(read)[2] == ["bond.3", "bond.4"]
    read.execute("UPDATE nexhealth_seen_passes SET held_at = begun_at WHERE location_id = 3")
    assert _reconciled(read)[2] == []
    read.execute("UPDATE nexhealth_seen_passes SET held_at = held_at - interval '5 days' WHERE location_id = 3")
    assert _reconciled(read)[2] == ["bond.3", "bond.4"]


def test_nothing_is_reconciled_before_it_was_read_completely(read: psycopg.Connection) -> None:
    """There nothing can be gone, and it is read whole anyway."""
    read.execute("DELETE FROM nexhealth_freshness WHERE location_id = 4")
    _keep(read, 10, 1, "patients", days=1)
    _keep(read, 10, 1, "appointments", days=1)
    assert _reconciled(read)[1:] == ([], [])


def test_fifteen_databases_are_three_a_night(read: psycopg.Connection) -> None:
    add_locations(read, 10, "acme", range(100, 113))
    for location in range(100, 113):
        _read_now(read, 10, location, ["patients", "appointments"])
    assert len(_reconciled(read)[1]) == 3


def test_an_institution_s_databases_are_reconciled_in_one_night(read: psycopg.Connection) -> None:
    """Rows of no location are judged by all of an institution: read in two nights, they never would be."""
    for institution, subdomain, locations in (
        (30, "coast", [30, 31]),
        (40, "dune", [40, 41]),
        (50, "many", range(50, 58)),
    ):
        add_locations(read, institution, subdomain, locations)
        for location in locations:
            _read_now(read, institution, location, ["patients"])
            # Offices of one institution were tried far apart; 40 rests, and comes along.
            _keep(read, institution, location, "patients", days={30: 9, 31: 12, 40: 3, 41: 14}.get(location, 10))
    for institution, location in ((10, 1), (20, 3)):
        _keep(read, institution, location, "patients", days=10)
    nights = []
    for _ in range(7):
        nights.append(_reconciled(read)[1])
        judged = [int(key.partition(".")[2]) for key in nights[-1]]
        now = "begun_at = clock_timestamp(), judged_at = clock_timestamp()"
        read.execute(f"UPDATE nexhealth_seen_passes SET {now} WHERE location_id = ANY(%s)", (judged,))
    assert nights[:2] == [["dune.40", "dune.41"], ["coast.30", "coast.31"]]
    everybody = ["acme.1", "bond.3", "bond.4", *(f"coast.{one}" for one in (30, 31))]
    everybody += [*(f"dune.{one}" for one in (40, 41)), *(f"many.{one}" for one in range(50, 58))]
    assert sorted(key for night in nights for key in night) == sorted(everybody), "each once, within a week"


def test_a_database_that_is_tried_again_brings_along_none_of_its_institution_that_rests(
    read: psycopg.Connection,
) -> None:
    """Risk: one that comes to no end has all its institution read whole every night. Once a week it brings them along."""
    for institution, subdomain, locations in ((30, "coast", [30, 31]), (50, "many", range(50, 58))):
        add_locations(read, institution, subdomain, locations)
        for location in locations:
            _read_now(read, institution, location, ["patients"])
            _keep(read, institution, location, "patients", days=1, judged=location != 31, complete=location != 31)
    for institution, location in ((10, 1), (20, 3)):
        _keep(read, institution, location, "patients", days=1)
    assert _reconciled(read)[1] == ["coast.31"]
    read.execute("UPDATE nexhealth_seen_passes SET begun_at = begun_at - interval '6 days' WHERE location_id = 31")
    assert _reconciled(read)[1] == ["coast.30", "coast.31"]
