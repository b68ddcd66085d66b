"""Records in events: which version holds, what a deletion does, and what stays of a row that an event does not tell."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.webhooks.applying import snapshots
from nexhealth_pipeline.webhooks.applying.snapshots import _layers

from .kit import MINUTE, T0, apply_all, body, load_page, moment, patient, settings_for, store, updated


def value(practice: psycopg.Connection, columns: str, table: str = "patients") -> Any:
    rows = practice.execute(f"SELECT {columns} FROM nexhealth_{table}").fetchall()
    assert len(rows) == 1
    return rows[0] if "," in columns else rows[0][0]


def statuses(practice: psycopg.Connection) -> list[str]:
    return [status for (status,) in practice.execute("SELECT status FROM nexhealth_webhook_events ORDER BY id")]


def applied(practice: psycopg.Connection, practice_url: str, *bodies: bytes) -> list[str]:
    """What became of events that came one after the other."""
    for one in bodies:
        store(practice, one)
        apply_all(settings_for(practice_url))
    return statuses(practice)


def replayed_quietly(practice: psycopg.Connection, practice_url: str, table: str) -> None:
    """Applying everything again writes nothing."""
    question = f"SELECT ctid, xmin, xmax FROM nexhealth_{table} ORDER BY id"
    before = practice.execute(question).fetchall()
    practice.execute("UPDATE nexhealth_webhook_events SET status = 'pending', replays = replays + 1")
    for limit in (1, None):
        apply_all(settings_for(practice_url), limit=limit)
    assert practice.execute(question).fetchall() == before
    assert set(statuses(practice)) == {"superseded"}


def test_an_older_version_changes_nothing(practice: psycopg.Connection, practice_url: str) -> None:
    """Events come in no order."""
    assert applied(practice, practice_url, updated(patient(1, 9)), updated(patient(1, 5))) == ["applied", "superseded"]
    assert value(practice, "last_name") == "v9"


def test_of_a_batch_only_the_newest_version_is_written(practice: psycopg.Connection, practice_url: str) -> None:
    """Ten edits in a minute are one row version."""
    store(practice, *(updated(patient(1, at)) for at in (3, 9, 5)))
    _, total = apply_all(settings_for(practice_url))
    assert (statuses(practice), total.rows) == (["superseded", "applied", "superseded"], 1)
    assert value(practice, "last_name") == "v9"
    assert practice.execute("SELECT count(*) FROM nexhealth_history").fetchall() == [(0,)]


def test_a_page_of_the_same_version_read_since_holds(practice: psycopg.Connection, practice_url: str) -> None:
    """The API was asked later than the event was sent."""
    load_page(practice, "patients", [patient(1, 5, first_name="of the page")], read_at=6)
    assert applied(practice, practice_url, updated(patient(1, 5, first_name="of the event"))) == ["superseded"]
    assert value(practice, "first_name") == "of the page"


def test_a_page_replaces_an_event_of_the_same_version(practice: psycopg.Connection, practice_url: str) -> None:
    """What the event left out comes with the next read."""
    applied(practice, practice_url, updated(patient(1, 5, first_name="of the event")))
    load_page(practice, "patients", [patient(1, 5, first_name="of the page")], read_at=6)
    assert value(practice, "first_name") == "of the page"


def test_two_events_of_one_version_do_not_take_turns(practice: psycopg.Connection, practice_url: str) -> None:
    """Else every replay would write both again."""
    bodies = updated(patient(1, 5, first_name="one")), updated(patient(1, 5, first_name="other"))
    assert applied(practice, practice_url, *bodies) == ["applied", "superseded"]
    assert value(practice, "first_name") == "one"
    replayed_quietly(practice, practice_url, "patients")


def test_what_was_found_absent_comes_back_by_a_version_since_then_only(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """A late or replayed event must not raise the dead: not even one that the row had missed."""
    load_page(practice, "patients", [patient(1, 5)], read_at=6)
    practice.execute(
        "UPDATE nexhealth_patients SET deleted_at = %s, deleted_by = 'absence', synced_at = clock_timestamp()",
        (T0 + 8 * MINUTE,),
    )
    assert applied(practice, practice_url, updated(patient(1, 5), at=20)) == ["superseded"]
    assert value(practice, "deleted_by") == "absence"
    assert applied(practice, practice_url, updated(patient(1, 7), at=20))[-1] == "superseded"
    assert value(practice, "deleted_by, last_name") == ("absence", "v5")
    assert applied(practice, practice_url, updated(patient(1, 9)))[-1] == "applied"
    assert value(practice, "deleted_at, deleted_by, last_name") == (None, None, "v9")
    assert practice.execute("SELECT cause, event_id IS NULL FROM nexhealth_history ORDER BY version").fetchall() == [
        ("absence", True),
        ("revival", False),
    ]


def test_what_was_found_absent_while_an_event_was_applied_stays_so(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """The row was there when the event was compared with it, and is gone once it is locked."""
    load_page(practice, "patients", [patient(1, 5)], read_at=6)
    store(practice, updated(patient(1, 7)))
    with (
        psycopg.connect(practice_url) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        other.execute("UPDATE nexhealth_patients SET deleted_at = %s, deleted_by = 'absence'", (T0 + 8 * MINUTE,))
        run = pool.submit(apply_all, settings_for(practice_url))
        await_lock(practice)
        other.commit()
        run.result(30)
    assert (statuses(practice), value(practice, "deleted_by")) == (["superseded"], "absence")


def await_lock(connection: psycopg.Connection) -> None:
    """Until somebody waits for a row of another's transaction."""
    question = (  # in this database: other tests have theirs on the same server
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND locktype = 'transactionid' AND datname = current_database()"
    )
    for _ in range(600):
        if connection.execute(question).fetchall() != [(0,)]:
            return
        time.sleep(0.05)
    raise AssertionError("nobody waits")


def test_the_row_keeps_what_the_event_lacks_and_the_event_what_lists_lack(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """`raw` is always the list's shape; which optional fields an event has is not promised."""
    load_page(practice, "patients", [patient(1, 0, email="a@example.org", odd="kept")])
    applied(practice, practice_url, updated(patient(1, 5, email=..., location_ids=[3], address={"city": "Lund"})))
    assert value(practice, "email, last_name") == ("a@example.org", "v5")
    raw = value(practice, "raw")
    assert (raw["email"], raw["odd"], raw["last_name"]) == ("a@example.org", "kept", "v5")
    assert raw.keys().isdisjoint({"location_ids", "address"})


@pytest.mark.parametrize(
    ("name", "key", "around"),
    [
        ("appointments", "appointment", ("patient",)),
        ("charges", "charge", ("patient", "guarantor", "claims")),
        ("payments", "payment", ("patient", "guarantor", "claim")),
        ("adjustments", "adjustment", ("patient", "guarantor", "charge")),
        ("claims", "claim", ("patient", "guarantor", "charges")),
        ("insurance_coverages", "insurance_coverage", ("subscriber", "plan")),
    ],
)
def test_a_row_points_to_persons_and_does_not_hold_them(
    practice: psycopg.Connection, practice_url: str, name: str, key: str, around: tuple[str, ...]
) -> None:
    """Risk: `raw` of a visit has the patient's number at social security, which no table is to keep."""
    person = patient(1, bio={"ssn": "078-05-1120"})
    record = {"id": 9, "patient_id": 1, "updated_at": moment(5)} | dict.fromkeys(around, person)
    events = COLLECTIONS[name].events
    assert events is not None
    assert applied(practice, practice_url, body(events.snapshots[0], {key: record})) == ["applied"]
    assert value(practice, "raw", name).keys() == {"id", "patient_id", "updated_at"}


def test_a_person_whom_an_earlier_release_kept_in_a_row_is_not_kept_any_longer(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """Risk: what the row has and the event lacks stays, so the visit's patient would be handed on for ever."""
    load_page(practice, "appointments", [{"id": 9, "updated_at": moment(0), "odd": "kept", "patient": patient(1)}])
    visit = {"id": 9, "updated_at": moment(5), "note": "Changed", "patient": patient(1)}
    assert applied(practice, practice_url, body("appointment_updated", {"appointment": visit})) == ["applied"]
    assert value(practice, "raw", "appointments").keys() == {"id", "updated_at", "odd", "note"}


def test_what_an_earlier_event_of_the_batch_told_stays(practice: psycopg.Connection, practice_url: str) -> None:
    """Events without some keys are applied in order, so that the batch's size makes no difference."""
    load_page(practice, "patients", [patient(1, 0, email="old@example.org")])
    store(practice, updated(patient(1, 9, email=...)), updated(patient(1, 5, email="new@example.org")))
    apply_all(settings_for(practice_url))
    assert value(practice, "email, last_name") == ("new@example.org", "v9")
    assert statuses(practice) == ["applied", "superseded"]
    replayed_quietly(practice, practice_url, "patients")


def test_events_whose_keys_take_turns_are_no_layer_each(practice: psycopg.Connection, practice_url: str) -> None:
    """Each layer is a stage and a merge of its own: five hundred events of one record were five hundred."""
    bare: dict[str, Any] = {"first_name": ..., "last_name": ..., "inactive": ..., "bio": ..., "email": ...}
    for at in range(9, 0, -1):
        kept = "email" if at % 2 else "last_name"
        store(practice, updated(patient(1, at, **bare | {kept: None if at == 8 else f"{kept} {at}"})))
    layers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "_layers", lambda given: layers.append(_layers(given)) or layers[-1])
        apply_all(settings_for(practice_url))
    assert [[one.version for one in layer] for layer in layers[0]] == [[T0 + 8 * MINUTE], [T0 + 9 * MINUTE]]
    assert value(practice, "email, last_name") == ("email 9", None), "what the last one with a key says holds, null too"
    replayed_quietly(practice, practice_url, "patients")


@pytest.mark.parametrize(
    "data",
    [
        {"patient": patient(1, 5)},
        {"patients": [patient(1, 5)]},
        {"user": patient(1, 5)},
        patient(1, 5),
        [patient(1, 5)],
    ],
)
def test_the_record_is_found_wherever_it_stands(data: object, practice: psycopg.Connection, practice_url: str) -> None:
    """Documented and seen shapes of `data` (API.md F.4)."""
    assert applied(practice, practice_url, body("patient_created.complete", data)) == ["applied"]
    assert value(practice, "last_name") == "v5"


def test_an_event_with_several_records_loads_all_of_them(practice: psycopg.Connection, practice_url: str) -> None:
    """And counts as applied if one of them is new."""
    load_page(practice, "patients", [patient(1, 9)])
    assert applied(practice, practice_url, body("patient_updated", {"patients": [patient(1, 5), patient(2, 5)]})) == [
        "applied"
    ]
    assert practice.execute("SELECT id, last_name FROM nexhealth_patients ORDER BY id").fetchall() == [
        (1, "v9"),
        (2, "v5"),
    ]


def test_one_bad_record_of_an_event_does_not_stop_the_others(practice: psycopg.Connection, practice_url: str) -> None:
    """The rest loads, and the event says that something did not."""
    several = [patient(1, 5), {"id": "no number"}, 7, patient(2, 5)]
    assert applied(practice, practice_url, body("patient_created", {"patients": several})) == ["parked"]
    assert practice.execute("SELECT id FROM nexhealth_patients ORDER BY id").fetchall() == [(1,), (2,)]
    (reason,) = practice.execute("SELECT error FROM nexhealth_webhook_events").fetchone() or ("",)
    assert reason == "patients: id: missing, or no integer; its other records were loaded"


def test_a_record_under_a_key_that_nobody_expected_is_loaded(practice: psycopg.Connection, practice_url: str) -> None:
    """The keys of `data` are guesses for most events: such an event was given up after all its tries."""
    coverage = {"id": 9, "patient_id": 1, "plan_id": 2, "updated_at": moment(5)}
    told = body("patient_insurance_updated", {"coverages": [coverage]}, resource_type="PatientInsurance")
    assert applied(practice, practice_url, told) == ["applied"]
    assert value(practice, "id, patient_id", "insurance_coverages") == (9, 1)
    replayed_quietly(practice, practice_url, "insurance_coverages")


def charge(at: float, **fields: Any) -> dict[str, Any]:
    record = {"id": 4, "patient_id": 1, "location_id": 70, "updated_at": moment(at), "deleted_at": None}
    return {name: one for name, one in (record | fields).items() if one is not ...}


@pytest.mark.parametrize("deleted_at", [..., None, True, "2026-03-01"])
def test_a_deletion_marks_the_row_where_the_record_does_not(
    deleted_at: object, practice: psycopg.Connection, practice_url: str
) -> None:
    """Its version may be that of the last change: the deletion holds all the same."""
    load_page(practice, "charges", [charge(5)], read_at=6)
    assert applied(
        practice, practice_url, body("charge_deleted", {"charge": charge(5, deleted_at=deleted_at)}, at=8)
    ) == ["applied"]
    assert value(practice, "deleted_at, deleted_by", "charges") == (T0 + 8 * MINUTE, "source")
    replayed_quietly(practice, practice_url, "charges")
    load_page(practice, "charges", [charge(5)], read_at=9)
    assert value(practice, "deleted_at", "charges") is None, "the API was asked later"


@pytest.mark.parametrize("deleted_at", [True, "2026-03-01"])
def test_a_record_that_says_deleted_without_a_time_is_deleted_since_its_version(
    deleted_at: object, practice: psycopg.Connection, practice_url: str
) -> None:
    """It holds against a version as old that says nothing, as one with a time does."""
    told = [body("charge_updated", {"charge": charge(5, deleted_at=one)}) for one in (None, deleted_at)]
    assert applied(practice, practice_url, *told) == ["applied", "applied"]
    assert value(practice, "deleted_at, deleted_by", "charges") == (T0 + 5 * MINUTE, "source")
    replayed_quietly(practice, practice_url, "charges")


def test_a_deletion_that_came_before_the_last_read_is_outdated(practice: psycopg.Connection, practice_url: str) -> None:
    """The page was read after it and still has the record."""
    load_page(practice, "charges", [charge(5)], read_at=9)
    assert applied(practice, practice_url, body("charge_deleted", {"charge": charge(5)}, at=8)) == ["superseded"]
    assert value(practice, "deleted_at", "charges") is None


def test_lists_inside_a_record_come_with_it(practice: psycopg.Connection, practice_url: str) -> None:
    """A charge's payouts are a table of their own."""
    payouts = [{"id": 1, "claim_id": 31}, {"id": 2, "claim_id": 32}]
    applied(practice, practice_url, body("charge_created", {"charge": charge(5, claim_payouts=payouts)}))
    assert practice.execute("SELECT claim_id FROM nexhealth_claim_payouts ORDER BY 1").fetchall() == [(31,), (32,)]
    applied(practice, practice_url, body("charge_updated", {"charge": charge(7, claim_payouts=payouts[:1])}))
    gone = "SELECT claim_id FROM nexhealth_claim_payouts WHERE deleted_at IS NOT NULL"
    assert practice.execute(gone).fetchall() == [(32,)]
    applied(practice, practice_url, body("charge_updated", {"charge": charge(9)}))
    assert practice.execute(gone).fetchall() == [(32,)]


def plan(at: float, **fields: Any) -> dict[str, Any]:
    record = {"id": 6, "patient_id": 1, "status": "active", "updated_at": moment(at)}
    return {name: one for name, one in (record | fields).items() if one is not ...}


def deletion(at: float, **fields: Any) -> bytes:
    return body("treatment_plan_deleted", {"treatment_plan": plan(at, **fields)}, at=at)


@pytest.mark.parametrize("fields", [{}, {"updated_at": ...}])
def test_a_deletion_of_what_has_no_deletion_time_marks_the_row_as_absent(
    fields: dict[str, Any], practice: psycopg.Connection, practice_url: str
) -> None:
    """Treatment plans only ever vanish from their list; with one go the rows of the list inside it."""
    load_page(practice, "treatment_plans", [plan(5, procedures=[{"id": 61}])], read_at=6)
    assert value(practice, "deleted_at", "treatment_plan_procedures") is None
    assert applied(practice, practice_url, deletion(8, **fields)) == ["applied"]
    for table in ("treatment_plans", "treatment_plan_procedures"):
        assert value(practice, "deleted_at, deleted_by", table) == (T0 + 8 * MINUTE, "absence")
    late = body("treatment_plan_updated", {"treatment_plan": plan(7)}, at=7)
    assert applied(practice, practice_url, late)[-1] == "superseded"
    replayed_quietly(practice, practice_url, "treatment_plans")
    newer = body("treatment_plan_updated", {"treatment_plan": plan(9)}, at=9)
    assert applied(practice, practice_url, newer)[-1] == "applied"
    assert value(practice, "deleted_at", "treatment_plans") is None


def test_a_record_with_a_flag_that_it_is_deleted_is_and_comes_back_by_a_version_without(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """An appointment has no event and no time of its deletion; older deliveries change nothing, whatever they say."""

    def visit(at: float, **fields: object) -> bytes:
        record = {"id": 9, "location_id": 70, "start_time": moment(90), "updated_at": moment(at), **fields}
        return body("appointment_updated", {"appointment": record}, at=at)

    deleted = "deleted_by, deleted_at, raw -> 'deleted'"
    load_page(practice, "appointments", [{"id": 9, "location_id": 70, "updated_at": moment(0), "note": "kept"}])
    assert applied(practice, practice_url, visit(5, deleted=True)) == ["applied"]
    assert value(practice, deleted, "appointments") == ("source", T0 + 5 * MINUTE, True)
    assert applied(practice, practice_url, visit(3))[-1] == "superseded"
    assert value(practice, "deleted_by", "appointments") == "source"
    assert applied(practice, practice_url, visit(7))[-1] == "applied"
    assert value(practice, f"{deleted}, note", "appointments") == (None, None, None, "kept")
    assert applied(practice, practice_url, visit(9, deleted=False))[-1] == "applied"
    assert value(practice, "deleted_by", "appointments") is None
    replayed_quietly(practice, practice_url, "appointments")


@pytest.mark.parametrize("fields", [{}, {"updated_at": ...}, {"updated_at": ..., "patient_id": ..., "status": ...}])
def test_what_was_deleted_before_it_was_ever_seen_stays_deleted(
    fields: dict[str, Any], practice: psycopg.Connection, practice_url: str
) -> None:
    """Deliveries are repeated for two days, so a record's creation may come after its deletion."""
    late = body("treatment_plan_created", {"treatment_plan": plan(7)}, at=7)
    assert applied(practice, practice_url, deletion(8, **fields), late) == ["applied", "superseded"]
    assert value(practice, "deleted_at, deleted_by", "treatment_plans") == (T0 + 8 * MINUTE, "absence")
    replayed_quietly(practice, practice_url, "treatment_plans")
    load_page(practice, "treatment_plans", [plan(5)], read_at=9)
    assert value(practice, "deleted_at, status", "treatment_plans") == (None, "active")


def test_a_deletion_older_than_the_row_marks_nothing(practice: psycopg.Connection, practice_url: str) -> None:
    """Also in a batch that holds both."""
    load_page(practice, "treatment_plans", [plan(5)], read_at=9)
    assert applied(practice, practice_url, deletion(8, updated_at=...)) == ["superseded"]
    store(practice, body("treatment_plan_updated", {"treatment_plan": plan(12)}, at=12), deletion(11))
    apply_all(settings_for(practice_url))
    assert statuses(practice) == ["superseded", "applied", "superseded"]
    assert value(practice, "deleted_at", "treatment_plans") is None


def test_a_time_of_the_event_in_the_future_counts_as_now(practice: psycopg.Connection, practice_url: str) -> None:
    """Else no read could ever prove it wrong."""
    load_page(practice, "charges", [charge(5)], read_at=6)
    applied(practice, practice_url, body("charge_deleted", {"charge": charge(5)}, at=10_000_000))
    row = practice.execute(
        "SELECT c.deleted_at = e.received_at FROM nexhealth_charges c, nexhealth_webhook_events e"
    ).fetchone()
    assert row == (True,)


def test_a_version_from_the_future_is_no_newer_than_when_it_came(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """Else no read could find the record gone, or bring what the event lacked."""
    far = 10_000_000
    applied(practice, practice_url, updated(patient(1, far, first_name=...)))
    row = practice.execute(
        "SELECT p.source_read_at = e.received_at FROM nexhealth_patients p, nexhealth_webhook_events e"
    ).fetchone()
    assert row == (True,)
    arrived = (datetime.now(UTC) - T0) / MINUTE
    load_page(practice, "patients", [patient(1, far)], read_at=arrived + 1)
    assert value(practice, "first_name") == "Ann"
    applied(practice, practice_url, body("treatment_plan_deleted", {"treatment_plan": plan(far)}, at=far))
    row = practice.execute("SELECT deleted_at <= clock_timestamp() FROM nexhealth_treatment_plans").fetchone()
    assert row == (True,)
