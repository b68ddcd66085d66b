"""What is old goes after its time, and only that: nobody needs it any more."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.warehouse import housekeeping
from nexhealth_pipeline.warehouse.housekeeping import claim, expunge, make_partitions, note_done, remove_old
from nexhealth_pipeline.warehouse.state import PassKey, PassState, save_state
from tests.webhooks.kit import patient, store, updated

from .conftest import Rows

PAST = """
INSERT INTO nexhealth_quarantine (collection, institution_id, location_id, record_id, field, rule, loaded, raw,
    fingerprint, run_id, resolved_at)
SELECT 'gadgets', 7, 0, name, 'f', 'r', false, '', name::bytea, 'r', now() - ago
FROM (VALUES ('old', interval '91 days'), ('young', interval '89 days'), ('open', NULL)) given (name, ago);

INSERT INTO nexhealth_runs (run_id, host, pid, status, finished_at)
SELECT name, 'h', 1, status, now() - ago FROM (VALUES
    ('idle', 'succeeded', interval '8 days'), ('read', 'succeeded', interval '8 days'), ('new', 'succeeded', interval '6 days'),
    ('failed', 'failed', interval '8 days'), ('failed long ago', 'failed', interval '100 days'), ('live', 'running', NULL)
) given (name, status, ago);
INSERT INTO nexhealth_sync_logs (run_id, asset, collection, mode, status) VALUES ('read', 'a', 'c', 'full', 'succeeded');

INSERT INTO nexhealth_check_results (collection, check_name, institution_id, severity, faults, sample_ids, checked_at)
SELECT 'gadgets', name, 7, 'error', 1, '{}', now() - ago
FROM (VALUES ('asked no more', interval '32 days'), ('asked lately', interval '30 days'), ('asked', interval '0')) given (name, ago);

WITH passes AS (
    INSERT INTO nexhealth_seen_passes
        (collection, institution_id, location_id, window_key, pass, begun_at, offline, complete, judged_at)
    SELECT 'gadgets', 7, number, '', 'rows', now() - ago, '{}', complete, judged_at
    FROM (VALUES (1, interval '91 days', true, NULL), (2, interval '91 days', false, NULL), (3, interval '89 days', true, NULL),
        (4, interval '91 days', true, now() - interval '90 days')) given (number, ago, complete, judged_at)
    RETURNING id)
INSERT INTO nexhealth_seen (pass_id, key) SELECT id, generate_series(1, 3)::text FROM passes;

INSERT INTO nexhealth_sweeps (mode, scope_hash, started_at)
VALUES ('full', 'old', now() - interval '31 days'), ('full', 'young', now() - interval '29 days');
"""
VERSIONS = """
INSERT INTO nexhealth_history (collection, institution_id, key, id, version, valid_from, valid_to, recorded_from,
    recorded_to, cause, changed_fields, raw, fields)
SELECT 'gadgets', 7, jsonb_build_object('id', id), id, version, now() - ago - interval '1 day', now() - ago,
       now() - ago - interval '1 day', now() - ago, 'page', '{note}', '{}', '{}'
FROM (VALUES (1, 1, interval '400 days'), (1, 2, interval '390 days'), (1, 3, interval '10 days'), (2, 1, interval '400 days'))
    given (id, version, ago)
"""


@pytest.fixture(autouse=True)
def emptied(connection: psycopg.Connection) -> None:
    connection.execute("DELETE FROM nexhealth_webhook_events; DELETE FROM nexhealth_housekeeping")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The defaults, in batches of two."""
    monkeypatch.setattr(housekeeping, "_BATCH", 2)
    return load_settings(environ={}, env_file=None)


def age(connection: psycopg.Connection, status: str, days: float) -> int:
    """An event of that status, received so many days ago."""
    number = len(connection.execute("SELECT 1 FROM nexhealth_webhook_events").fetchall())
    (event,) = store(connection, updated(patient(number + 1, 1)))
    connection.execute(
        "UPDATE nexhealth_webhook_events SET status = %s, received_at = clock_timestamp() - %s * interval '1 day'"
        " WHERE id = %s",
        (status, days, event),
    )
    return event


@pytest.mark.usefixtures("settings")
def test_payloads_go_and_their_audit_rows_stay(connection: psycopg.Connection, rows: Rows) -> None:
    """A patient's data must not outlive its purpose in a log; that something came may be asked for a year later."""
    gone = [age(connection, status, days) for status in ("applied", "superseded") for days in (31, 40)]
    gone.append(age(connection, "parked", 301))
    kept = [age(connection, "applied", 29), age(connection, "parked", 299), age(connection, "pending", 400)]
    assert expunge(connection, 30) == len(gone)
    found: dict[Any, Any] = dict(
        rows("SELECT id, payload IS NULL AND expunged_at IS NOT NULL FROM nexhealth_webhook_events")
    )
    assert found == dict.fromkeys(gone, True) | dict.fromkeys(kept, False)
    assert expunge(connection, 30) == 0


def test_old_payloads_are_found_without_passing_over_rows_that_have_lost_theirs(connection: psycopg.Connection) -> None:
    """Audit rows stay for years."""
    connection.execute("SET enable_seqscan = off")
    plan = connection.execute(
        "EXPLAIN " + housekeeping._OLD_PAYLOADS, {"days": 30, "parked": 300, "received": None, "id": None, "batch": 9}
    ).fetchall()
    found_by_index(plan, "nexhealth_webhook_events_payloads")


def found_by_index(plan: list[Any], index: str) -> None:
    """Only the old ones: an index that is merely read in its order would, for the last batch, be read to its end."""
    lines = [line.strip() for (line,) in plan]
    (place,) = (at for at, line in enumerate(lines) if index in line)
    assert lines[place + 1].startswith("Index Cond: (received_at < "), lines


def test_every_table_loses_what_is_older_than_the_settings_keep(
    connection: psycopg.Connection, rows: Rows, settings: Settings
) -> None:
    connection.execute(PAST)
    for status, days in (("applied", 401), ("duplicate", 500), ("rejected", 401), ("applied", 399), ("pending", 500)):
        age(connection, status, days)
    settings = settings.model_copy(update={"webhook_event_days": 400})
    assert remove_old(connection, settings) == {
        "payloads": 4,
        "webhook_refusals": 1,
        "webhook_events": 2,
        "quarantine": 1,
        "runs": 2,
        "sweeps": 1,
        "check_results": 1,
        "reads": 3,
    }
    assert rows("SELECT record_id FROM nexhealth_quarantine ORDER BY 1") == [("open",), ("young",)]
    assert rows("SELECT run_id FROM nexhealth_runs ORDER BY 1") == [("failed",), ("live",), ("new",), ("read",)]
    assert rows("SELECT scope_hash FROM nexhealth_sweeps") == [("young",)]
    assert rows("SELECT check_name FROM nexhealth_check_results ORDER BY 1") == [("asked",), ("asked lately",)]
    assert rows("SELECT location_id FROM nexhealth_seen_passes ORDER BY 1") == [(3,), (4,)]
    assert rows("SELECT DISTINCT location_id FROM nexhealth_seen JOIN nexhealth_seen_passes p ON p.id = pass_id") == [
        (3,)
    ]
    assert rows("SELECT count(*) FROM nexhealth_seen") == [(3,)]
    assert sorted(rows("SELECT status FROM nexhealth_webhook_events")) == [("applied",), ("pending",)]
    assert remove_old(connection, settings) == {}


def test_answers_of_a_check_by_a_clock_that_was_ahead_take_away_no_others(
    connection: psycopg.Connection, rows: Rows, settings: Settings
) -> None:
    """With them went what somebody had acknowledged: it would be told as something new."""
    connection.execute("DELETE FROM nexhealth_check_results")
    connection.execute(
        "INSERT INTO nexhealth_check_results"
        " (collection, check_name, institution_id, severity, faults, acknowledged, checked_at)"
        " SELECT 'gadgets', name, 7, 'error', 1, 1, now() + days * interval '1 day'"
        " FROM (VALUES ('ahead', 60), ('asked', 0), ('asked no more', -32)) given (name, days)"
    )
    assert remove_old(connection, settings) == {"check_results": 1}
    assert rows("SELECT check_name, acknowledged FROM nexhealth_check_results ORDER BY 1") == [
        ("ahead", 1),
        ("asked", 1),
    ]


def test_what_one_table_does_not_allow_keeps_no_other_from_being_cleared(
    connection: psycopg.Connection, rows: Rows, settings: Settings
) -> None:
    """Somebody's view of an old day: nothing else would ever be removed, and all of it grows."""
    connection.execute(PAST)
    day = "nexhealth_changes_2020_01_01"
    connection.execute(
        f"CREATE TABLE {day} PARTITION OF nexhealth_changes FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z')"
    )
    connection.execute(f"CREATE VIEW of_an_analyst AS SELECT * FROM {day}")
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        remove_old(connection, settings)
    assert rows("SELECT scope_hash FROM nexhealth_sweeps") == [("young",)]
    connection.execute("DROP VIEW of_an_analyst")
    assert remove_old(connection, settings) == {"days_of_changes": 1}


def test_refused_webhooks_go_after_a_month_whatever_the_settings_say(
    connection: psycopg.Connection, rows: Rows, settings: Settings
) -> None:
    """Anybody may post what is refused. An event whose payload is gone still tells its repetitions: those rows stay."""
    for days in (32, 40, 400, 30):
        age(connection, "rejected", days)
    for status in ("applied", "superseded", "duplicate", "parked", "pending"):
        age(connection, status, 400)
    connection.execute("UPDATE nexhealth_webhook_events SET payload = NULL WHERE status <> 'pending'")
    assert settings.webhook_event_days is None
    assert remove_old(connection, settings) == {"webhook_refusals": 3}
    assert sorted(rows("SELECT status, count(*) FROM nexhealth_webhook_events GROUP BY 1")) == [
        (status, 1) for status in ("applied", "duplicate", "parked", "pending", "rejected", "superseded")
    ]


def test_old_refusals_are_found_without_passing_over_the_events_between_them(connection: psycopg.Connection) -> None:
    connection.execute("SET enable_seqscan = off")
    plan = connection.execute(
        "EXPLAIN " + housekeeping._RULES["webhook_refusals"], {"refusal_days": 31, "batch": 9}
    ).fetchall()
    found_by_index(plan, "nexhealth_webhook_events_refusals")


def test_audit_rows_that_a_setting_removes_are_found_by_their_age(connection: psycopg.Connection) -> None:
    connection.execute("SET enable_seqscan = off")
    plan = connection.execute(
        "EXPLAIN " + housekeeping._RULES["webhook_events"], {"webhook_event_days": 400, "batch": 9}
    ).fetchall()
    found_by_index(plan, "nexhealth_webhook_events_received")


def test_superseded_versions_are_kept_for_ever_unless_a_setting_says_otherwise(
    connection: psycopg.Connection, rows: Rows, settings: Settings
) -> None:
    """The last one of each record stays: else the present one would seem to have held since the record is known."""
    connection.execute(VERSIONS)
    assert remove_old(connection, settings) == {}
    assert remove_old(connection, settings.model_copy(update={"history_months": 12})) == {"versions": 2}
    assert rows("SELECT id, version FROM nexhealth_history ORDER BY 1") == [(1, 3), (2, 1)]


def test_versions_are_found_wherever_they_lie_among_those_that_stay(
    connection: psycopg.Connection, rows: Rows, settings: Settings
) -> None:
    """In batches of two, and each behind the one before: ids from 1 to 20, every third with a version to be removed."""
    connection.execute(
        "INSERT INTO nexhealth_history (collection, institution_id, key, id, version, valid_from, valid_to, recorded_from,"
        " recorded_to, cause, changed_fields, raw, fields) SELECT 'gadgets', 7, jsonb_build_object('id', id), id, version,"
        " at, at, at, at, 'page', '{}', '{}', '{}' FROM generate_series(1, 20) id, generate_series(1, 2) version,"
        " LATERAL (SELECT now() - interval '400 days' + version * interval '1 day' AS at) t WHERE version = 1 OR id % 3 = 0"
    )
    assert remove_old(connection, settings.model_copy(update={"history_months": 12})) == {"versions": 6}
    assert rows("SELECT id FROM nexhealth_history ORDER BY 1") == [(one,) for one in range(1, 21)]
    assert rows("SELECT id FROM nexhealth_history WHERE version = 2 ORDER BY 1") == [(one,) for one in range(3, 21, 3)]


DRIFT = """
INSERT INTO nexhealth_schema_drift (collection, institution_id, field, kind, last_seen_at)
SELECT %s, 7, field, kind, now() - age FROM (VALUES ('new', 'new', interval '32 days'), ('retyped', 'retyped', interval '32 days'),
    ('of late', 'new', interval '30 days'), ('missing', 'missing', interval '400 days')) given (field, kind, age)
"""

_Read = tuple[int, str, str, float | None, float | None]


def made(days: float | None, whole: float | None, *, location: int = 0, window: str = "", name: str = "all") -> _Read:
    """A pass, and how many days ago it was last made, and last made whole; None = never."""
    return location, window, name, days, whole


@pytest.mark.parametrize(
    ("collection", "reads", "stay"),
    [
        pytest.param("providers", [made(0, 0, name="active")], {"of late"}, id="read whole"),
        # Risk: a patient whose date was bad a month ago, and is so still; nobody has changed the record since.
        pytest.param("patients", [made(0, 40)], {"new", "retyped", "of late"}, id="changes only since"),
        pytest.param("patients", [made(0, 0.5)], {"of late"}, id="whole lately"),
        pytest.param("patients", [], {"new", "retyped", "of late"}, id="never read"),
        pytest.param(
            "patients",
            [made(0, 0, location=1), made(36, 36, location=2)],
            {"new", "retyped", "of late"},
            id="another location fails",
        ),
        pytest.param(
            "patients",
            [made(0, 0, location=1), made(None, None, location=2)],
            {"of late"},
            id="another location was never read",
        ),
        pytest.param(
            "patients",
            [made(0, 0, location=1), made(91, 91, location=2)],
            {"of late"},
            id="another location is read no more",
        ),
        # By a clock that was ahead: what came lately would go, or what came long ago stay until that time is long past.
        pytest.param("patients", [made(-60, -60)], {"new", "retyped", "of late"}, id="read later than now"),
        pytest.param(
            "patients",
            [made(0, 0, location=1), made(-60, None, location=2)],
            {"of late"},
            id="another location was read later than now",
        ),
        pytest.param("patients", [made(0, 0), made(60, 60, location=2, name="members")], {"of late"}, id="members"),
        pytest.param(
            "providers",
            [made(0, 0, name="active"), made(60, 60, name="active_again")],
            {"of late"},
            id="second look",
        ),
        pytest.param(
            "appointments",
            [made(0, None, window="changes", name="kept"), made(0, 0, window="2026-01", name="kept")],
            {"of late"},
            id="months",
        ),
        pytest.param(
            "appointments",
            [
                *(
                    made(0, None, location=1, window="changes", name="kept"),
                    made(0, 0, location=1, window="2026-01", name="kept"),
                ),
                *(
                    made(0, None, location=2, window="changes", name="kept"),
                    made(200, 200, location=2, window="2026-01", name="kept"),
                ),
            ],
            {"new", "retyped", "of late"},
            id="another location's months were read long ago",
        ),
        pytest.param(
            "appointments",
            [
                made(0, None, window="changes", name="kept"),
                *(
                    made(0, 0, window="2026-01", name="kept"),
                    made(None, None, window="2026-02", name="kept"),
                ),
            ],
            {"new", "retyped", "of late"},
            id="a month was never read",
        ),
        # Lists are read in turn: a month of nights, and the office is not online in every one.
        pytest.param("alerts", [made(0, 0)], {"new", "retyped", "of late"}, id="lists in turn"),
    ],
)
def test_a_field_that_came_otherwise_is_forgotten_once_all_was_read_whole_a_month_later(
    connection: psycopg.Connection,
    rows: Rows,
    settings: Settings,
    collection: str,
    reads: list[_Read],
    stay: set[str],
) -> None:
    """One bad date failed its check for ever. What no whole read has come by since may still be so."""
    store_reads(connection, collection, 7, reads)
    connection.execute(DRIFT, (collection,))
    remove_old(connection, settings)
    assert {field for (field,) in rows("SELECT field FROM nexhealth_schema_drift")} == {*stay, "missing"}


def test_a_field_of_other_kinds_of_lists_is_forgotten_as_well(
    connection: psycopg.Connection, rows: Rows, settings: Settings
) -> None:
    """A list inside records is read with them, the list of locations is everybody's, and lists are read in turn."""
    store_reads(connection, "charges", 7, [made(0, 0)])
    store_reads(connection, "locations", 0, [made(0, 0)])
    store_reads(connection, "alerts", 7, [made(0, 380)])
    for collection in ("claim_payouts", "locations", "alerts", "documents"):
        connection.execute(DRIFT, (collection,))
    connection.execute(
        "UPDATE nexhealth_schema_drift SET last_seen_at = now() - interval '91 days' WHERE field = 'retyped'"
    )
    remove_old(connection, settings)
    found = rows("SELECT collection, field FROM nexhealth_schema_drift WHERE field IN ('new', 'retyped') ORDER BY 1, 2")
    assert found == [("alerts", "new"), ("documents", "new"), ("documents", "retyped")]


def store_reads(
    connection: psycopg.Connection,
    collection: str,
    institution: int,
    reads: list[_Read],
) -> None:
    for location, window, name, *ages in reads:
        fresh, full = (None if age is None else datetime.now(UTC) - timedelta(days=age) for age in ages)
        key = PassKey(collection, institution, location, window, name)
        save_state(connection, PassState(key, fresh_at=fresh, full_at=full))


def test_it_stops_when_it_is_told_to(connection: psycopg.Connection, rows: Rows, settings: Settings) -> None:
    connection.execute(PAST)
    stop = threading.Event()
    stop.set()
    assert remove_old(connection, settings, stop) == {}
    assert rows("SELECT count(*) FROM nexhealth_runs") == [(6,)]


def test_one_process_a_day_does_it(connection: psycopg.Connection, other: psycopg.Connection) -> None:
    """A shell's sync every quarter of an hour must not search all tables every time."""
    assert claim(connection)
    assert not claim(other)
    note_done(connection)
    connection.execute("UPDATE nexhealth_housekeeping SET begun_at = begun_at - interval '19 hours'")
    assert not claim(other)
    connection.execute("UPDATE nexhealth_housekeeping SET begun_at = now() - interval '21 hours'")
    assert claim(other)
    assert not claim(connection)


def test_a_clock_that_was_ahead_keeps_nobody_from_it(connection: psycopg.Connection) -> None:
    assert claim(connection)
    connection.execute("UPDATE nexhealth_housekeeping SET begun_at = now() + interval '3 days'")
    assert claim(connection)
    assert not claim(connection)


def test_partitions_of_the_days_and_months_to_come_are_made(connection: psycopg.Connection, rows: Rows) -> None:
    parts = "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE relkind = 'r' ORDER BY 1"
    make_partitions(connection)  # the tests' template may be of yesterday
    before = rows(parts)
    for table in ("changes", "history", "sync_logs"):
        (name,) = next(row for row in reversed(before) if row[0].startswith(f"nexhealth_{table}_2"))
        connection.execute(f"DROP TABLE {name}")
    make_partitions(connection)
    assert rows(parts) == before
