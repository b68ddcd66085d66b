"""What is gone is marked, and nothing else: each rule of a reconcile, and each case in which it must not mark."""

import threading
from dataclasses import replace
from datetime import date
from typing import Any

import orjson
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.sandbox import api as sandbox_api
from nexhealth_pipeline.sandbox.call import Call
from nexhealth_pipeline.sandbox.listing import view_of
from nexhealth_pipeline.sandbox.state import State
from nexhealth_pipeline.sandbox.store import View
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import slices_of
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.verdict import brake
from nexhealth_pipeline.warehouse.absence import Figures

from .kit import Rows, open_session, sync_all
from .reconciled import DESERT, FULL, NORTH, RECONCILE, SOUTH, at, at_patient, figures, gone, practice, told

pytestmark = pytest.mark.small_box(visits=2)

QUICK = RetryPolicy(sleep=lambda _: None)


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    """One practice of the two: half the requests."""
    return practice(box, database_url, "willow-dental")


def test_what_a_complete_read_lacks_is_marked_once_and_comes_back_when_it_is_listed(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Of each kind of list: a whole database's, a location's, an institution's, a patient's own."""
    names = {"patients", "operatories", "providers", "documents", "appointment_types"}
    sync_all(settings, FULL, only=names)
    document, keeper = rows("SELECT id, patient_id FROM nexhealth_documents ORDER BY id LIMIT 1")[0]
    victims: dict[str, Any] = {
        "patients": rows(f"SELECT max(id) FROM nexhealth_patients WHERE id <> {keeper}")[0][0],
        "operatories": at(rows, "operatories", DESERT)[0],
        "providers": rows("SELECT min(id) FROM nexhealth_providers")[0][0],
        "appointment_types": rows("SELECT min(id) FROM nexhealth_appointment_types")[0][0],
        "documents": document,
    }
    before = {name: box.state.row(name, number) for name, number in victims.items()}
    for name, number in victims.items():
        box.state.delete(name, number, hard=True)

    results = sync_all(settings, RECONCILE, only=names)
    with_patient = {
        row[0] for row in rows(f"SELECT id FROM nexhealth_documents WHERE patient_id = {victims['patients']}")
    }
    for name, number in victims.items():
        assert gone(rows, name) == {number} | (with_patient if name == "documents" else set()), name
        marked = sum(one.counts.tombstoned for one in results if one.slice.collection.name == name)
        assert marked == len(gone(rows, name))
    (patient,) = figures(results, "patients")
    assert (patient.missing, patient.confirmed, patient.tombstoned) == (1, 1, 1)
    assert figures(results, "operatories")[0].confirmed == 0
    all_marked = len(victims) + len(with_patient)
    assert rows("SELECT sum(tombstoned) FROM nexhealth_sync_logs WHERE status = 'succeeded'") == [(all_marked,)]
    listed = "SELECT count(*) FROM nexhealth_patient_locations WHERE gone_at IS NULL AND patient_id ="
    assert rows(f"{listed} {victims['patients']}") == [(0,)]
    assert rows("SELECT count(*) FROM nexhealth_seen") == [(0,)]

    del before["providers"]  # stays away
    for name, row in before.items():
        box.state.store(name).put(row)
    marks = rows("SELECT deleted_at, synced_at FROM nexhealth_providers WHERE deleted_by = 'absence'")
    back = sync_all(settings, RECONCILE, only=names)
    assert {name for name in names if gone(rows, name)} == {"providers"}
    assert [one.revived for one in figures(back, "operatories")] == [1]
    assert figures(back, "providers") == []
    assert rows("SELECT deleted_at, synced_at FROM nexhealth_providers WHERE deleted_by = 'absence'") == marks


def test_an_incremental_sync_brings_back_what_is_listed_again(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """With the version it had: its own lists are due again all the same."""
    names = {"patients", "documents"}
    papers = box.state.store("documents").rows.values()
    patient = min(one.facts["patient_id"] for one in papers if one.institution_id == 11201)
    box.state.update("patients", patient, {})
    sync_all(settings, FULL, only=names)
    row = box.state.row("patients", patient)
    box.state.delete("patients", patient, hard=True)
    sync_all(settings, RECONCILE, only=names)
    lost = gone(rows, "documents")
    assert (gone(rows, "patients"), bool(lost)) == ({patient}, True)
    box.state.store("patients").put(row)
    sync_all(settings, only=names)
    assert (gone(rows, "patients"), gone(rows, "documents")) == (set(), set())


def test_what_moved_or_is_hidden_by_a_filter_is_not_gone(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """Another month, and a sibling that shares the database, are places to have moved to; no filter hides a row."""
    names = {"patients", "appointments", "operatories"}
    sync_all(settings, FULL, only=names)
    moved, deleted = at(rows, "appointments", NORTH, 2)
    unclear = at(rows, "appointments", DESERT)[0]
    box.state.move(moved, days=45)
    box.state.update("appointments", unclear, {"cancelled": None})  # in neither list: asked for by id
    box.state.delete("appointments", deleted, hard=True)
    room = at(rows, "operatories", NORTH)[0]
    box.state.update("operatories", room, {"location_id": SOUTH})
    only_north = "GROUP BY 1 HAVING array_agg(location_id) = ARRAY[348511::bigint] ORDER BY 1 LIMIT 1"
    patient = rows(f"SELECT patient_id FROM nexhealth_patient_locations {only_north}")[0][0]
    box.state.update("patients", int(str(patient)), {}, about={"location_ids": [SOUTH]})
    box.requests.clear()
    results = sync_all(settings, RECONCILE, only=names)
    assert (gone(rows, "appointments"), gone(rows, "patients"), gone(rows, "operatories")) == ({deleted}, set(), set())
    asked = {one.path for one in box.requests if one.path.startswith(("/appointments/", "/patients/"))}
    assert asked == {f"/appointments/{deleted}", f"/appointments/{unclear}"}, "what any list holds needs no single read"
    assert sum(one.confirmed for one in figures(results, "appointments")) == 1
    memberships = "SELECT location_id FROM nexhealth_patient_locations WHERE gone_at IS NULL AND patient_id ="
    assert rows(f"{memberships} {patient}") == [(SOUTH,)]

    sync_all(settings, only=names)
    passes = (
        "SELECT DISTINCT pass FROM nexhealth_sync_state WHERE collection = 'appointments' AND window_key = 'changes'"
    )
    assert sorted(str(row[0]) for row in rows(passes)) == ["cancelled", "kept"]


@pytest.mark.parametrize(
    ("live", "missing", "empty", "braked"),
    [
        (20, 10, False, False),
        (20, 11, False, True),
        (1000, 50, False, False),
        (1000, 51, False, True),
        (100_000, 500, False, False),
        (100_000, 501, False, True),
        (3, 1, True, True),
    ],
)
def test_the_brake(live: int, missing: int, empty: bool, braked: bool) -> None:
    """More than ten and one in twenty, or more than 500, or all of a place."""
    assert (brake(Figures(live=live, seen=0, missing=missing, empty=empty)) is not None) == braked


def test_too_many_at_once_are_left_alone_unless_they_are_allowed_to_go(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """A list that came back short by mistake must not empty a practice; each database is judged for itself."""
    sync_all(settings, FULL, only={"operatories", "document_types", "patients"})
    shared = f"SELECT DISTINCT patient_id FROM nexhealth_patient_locations WHERE location_id IN ({NORTH}, {SOUTH})"
    many = [int(str(row[0])) for row in rows(f"{shared} ORDER BY 1 LIMIT 11")]
    for number in many:
        box.state.delete("patients", number, hard=True)
    rooms = at(rows, "operatories", DESERT)
    for number in rooms:  # only five, but all of them
        box.state.delete("operatories", number, hard=True)
    room = at(rows, "operatories", NORTH)[0]
    box.state.delete("operatories", room, hard=True)

    results = sync_all(settings, RECONCILE, only={"operatories", "patients"})
    assert gone(rows, "patients") == set()
    assert gone(rows, "operatories") == {room}
    (braked,) = figures(results, "patients")
    assert (braked.missing, braked.braked, braked.tombstoned) == (11, True, 0)
    ended = told(results, "operatories")[f"willow-dental.{DESERT}"]
    assert ended[0] == "failed"
    assert "the answer was empty, and 5 rows are there; a reconcile with --allow-mass-delete" in str(ended[1])
    assert rows("SELECT count(*) FROM nexhealth_sync_logs WHERE status = 'failed' AND error LIKE 'absences%'") == [(2,)]

    allowed = replace(RECONCILE, allow_mass_delete=True)
    sync_all(settings, allowed, only={"operatories", "patients"})
    assert gone(rows, "patients") == set(many)
    assert gone(rows, "operatories") == {room, *rooms}


def test_what_a_practice_does_not_have_is_no_lack(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """Else every week a line for each collection that the vendor has not enabled."""
    sync_all(settings, FULL, only={"payment_types"})
    box.faults.add("status", status=403, path="/payment_types", location_id=DESERT)
    results = sync_all(settings, RECONCILE, only={"payment_types"})
    assert told(results, "payment_types") == {}
    assert gone(rows, "payment_types") == set()


def test_a_record_whose_id_cannot_be_read_may_be_any_of_the_missing(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    sync_all(settings, FULL, only={"operatories"})
    number = at(rows, "operatories", NORTH)[0]
    row = box.state.row("operatories", number)
    box.state.update("operatories", number, {"id": "x"})
    results = sync_all(settings, RECONCILE, only={"operatories"})
    assert "id could not be read" in str(told(results, "operatories")[f"willow-dental.{NORTH}"])
    assert gone(rows, "operatories") == set()
    box.state.store("operatories").put(row)


@pytest.mark.parametrize("location", [DESERT, NORTH], ids=["a database of its own", "a shared one"])
def test_a_refused_record_that_says_which_row_it_is_is_there_and_the_missing_are_gone(
    settings: Settings, box: SandboxServer, rows: Rows, location: int
) -> None:
    """Risk: one spoilt record, and nothing of the practice is ever marked; or its own row, or who is listed, goes."""
    sync_all(settings, FULL, only={"patients"})
    listed = f"SELECT patient_id FROM nexhealth_patient_locations WHERE location_id = {location} AND gone_at IS NULL"
    before = sorted(one for (one,) in rows(listed))
    spoilt, victim = before[:2]
    box.state.update("patients", spoilt, {"last_name": orjson.Fragment(b"NaN")})
    box.state.delete("patients", victim, hard=True)
    results = sync_all(settings, RECONCILE, only={"patients"})
    assert rows("SELECT record_id, loaded FROM nexhealth_quarantine") == [(str(spoilt), False)]
    assert gone(rows, "patients") == {victim}, told(results, "patients")
    assert sorted(one for (one,) in rows(listed)) == [one for one in before if one != victim]


def test_a_read_that_sees_part_or_is_no_reconcile_marks_nothing(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    sync_all(settings, FULL, only={"operatories"})
    box.state.delete("operatories", at(rows, "operatories", NORTH)[0], hard=True)
    windowed = replace(RECONCILE, start=date(2000, 1, 1))
    for options in (SyncOptions(), FULL, replace(RECONCILE, dry_run=True), windowed):
        results = sync_all(settings, options, only={"operatories"})
        assert not any(one.absence for one in results)
        assert gone(rows, "operatories") == set()


def test_a_row_that_its_single_read_still_has_is_loaded_instead(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """No list holds it, and it is there: only a 404 says that it is gone."""
    sync_all(settings, FULL, only={"patients"})
    patient = at_patient(rows, DESERT)
    about = {"location_ids": [], "database": 999}
    box.state.update("patients", patient, {"first_name": "Hidden"}, about=about)
    results = sync_all(settings, RECONCILE, only={"patients"})
    (absence,) = figures(results, "patients")
    assert (absence.missing, absence.confirmed, absence.found, absence.tombstoned) == (1, 0, 1, 0)
    row = f"SELECT first_name, raw ? 'location_ids', deleted_at FROM nexhealth_patients WHERE id = {patient}"
    assert rows(row) == [("Hidden", False, None)]


def hide(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Lists leave a row out that its single read has."""

    def without(state: State, call: Call, mark: bytes, now: str) -> View:
        view = view_of(state, call, mark, now)
        return View([row for row in view.rows if call.route.collection != name or row.id != number], view.order)

    monkeypatch.setattr(sandbox_api, "view_of", without)


@pytest.mark.parametrize("name", ["insurance_coverages", "insurance_plans", "treatment_plans"])
def test_what_an_institution_s_list_hides_is_asked_for_by_its_id(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Risk: a cover in force is marked as deleted because a list left it out once."""
    sync_all(settings, FULL, only={name})
    hidden, deleted = (number for (number,) in rows(f"SELECT id FROM nexhealth_{name} ORDER BY id LIMIT 2"))
    box.state.update(name, hidden, {})
    box.state.delete(name, deleted, hard=True)
    hide(monkeypatch, name, hidden)
    box.requests.clear()
    results = sync_all(settings, RECONCILE, only={name})
    asked = sorted(one.path for one in box.requests if one.path.startswith(f"/{name}/"))  # side by side
    assert asked == [f"/{name}/{hidden}", f"/{name}/{deleted}"]
    (absence,) = figures(results, name)
    assert (absence.missing, absence.confirmed, absence.found, absence.tombstoned) == (2, 1, 1, 1)
    assert gone(rows, name) == {deleted}
    if name == "insurance_coverages":
        assert rows(f"SELECT raw ? 'subscriber' FROM nexhealth_{name} WHERE id = {hidden}") == [(False,)]


def test_a_person_whom_an_earlier_release_kept_in_a_row_does_not_come_again_with_its_single_read(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: what is kept of the answer goes by what the row has, and so the subscriber would be kept for ever."""
    name = "insurance_coverages"
    sync_all(settings, FULL, only={name})
    ((hidden,),) = rows(f"SELECT min(id) FROM nexhealth_{name}")
    keys = f"SELECT array_agg(key ORDER BY key) FROM nexhealth_{name}, jsonb_object_keys(raw) key WHERE id = {hidden}"
    before = rows(keys)
    rows(f"UPDATE nexhealth_{name} SET raw = raw || '{{\"subscriber\": {{}}}}' WHERE id = {hidden} RETURNING id")
    box.state.update(name, hidden, {})
    hide(monkeypatch, name, hidden)
    (absence,) = figures(sync_all(settings, RECONCILE, only={name}), name)
    assert (absence.found, rows(keys)) == (1, before)


def test_a_single_read_that_fails_leaves_all_of_the_collection_unmarked(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    sync_all(settings, FULL, only={"patients"})
    query = (
        f"SELECT DISTINCT patient_id FROM nexhealth_patient_locations WHERE location_id = {DESERT} ORDER BY 1 LIMIT 2"
    )
    pair = [int(str(row[0])) for row in rows(query)]
    for number in pair:
        box.state.delete("patients", number, hard=True)
    box.faults.add("status", path=f"/patients/{pair[1]}")
    results = sync_all(settings, RECONCILE, only={"patients"}, retry=QUICK)
    status, reason = told(results, "patients")[f"willow-dental.{DESERT}"]
    assert status == "failed"
    assert "could not be asked for" in str(reason)
    assert gone(rows, "patients") == set()


def test_lists_under_a_patient_that_could_not_all_be_read_tell_nothing(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    sync_all(settings, FULL, only={"patients", "documents"})
    (first, holder), (_, other) = rows("SELECT min(id), patient_id FROM nexhealth_documents GROUP BY 2 ORDER BY 2")[:2]
    box.state.delete("documents", int(str(first)), hard=True)
    box.faults.add("status", path=f"/patients/{other}/documents")
    results = sync_all(settings, RECONCILE, only={"patients", "documents"}, retry=QUICK)
    assert any("not complete" in str(reason) for _, reason in told(results, "documents").values())
    assert gone(rows, "documents") == set()
    box.faults.clear()
    sync_all(settings, RECONCILE, only={"patients", "documents"})
    assert gone(rows, "documents") == {first}, holder


def test_a_stopped_reconcile_goes_on_and_then_judges_by_all_it_has_met(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first part met is kept; an incremental sync between the parts keeps it as well."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 2)
    names = {"patients"}
    sync_all(settings, FULL, only=names)
    victim = at_patient(rows, DESERT)
    box.state.delete("patients", victim, hard=True)
    began = rows("SELECT clock_timestamp()")[0][0]
    small = replace(RECONCILE, batch_pages=1, concurrency=1, fresh_after=began)
    for mode in (small, replace(small, mode=Mode.INCREMENTAL)):
        stop = threading.Event()

        def after_one(label: str, pages: int, records: int, stop: threading.Event = stop) -> None:
            if label == f"patients willow-dental.{DESERT}":
                stop.set()

        sync_all(settings, mode, only=names, on_progress=after_one, stop=stop)
        assert gone(rows, "patients") == set()
    state = f"SELECT page, mode FROM nexhealth_sync_state WHERE location_id = {DESERT} AND pass = 'all'"
    assert rows(state) == [(2, "reconcile")]
    box.requests.clear()
    results = sync_all(settings, small, only=names)
    assert gone(rows, "patients") == {victim}
    (absence,) = figures(results, "patients")
    assert (absence.missing, absence.found) == (1, 0)
    whole = {("location_id", str(DESERT)), ("location_strict", "false")}
    asked = [one for one in box.requests if one.path == "/patients" and whole <= {*one.params}]
    assert len(asked) == -(-absence.seen // 2) - 2, "it went on, and did not begin anew"


def test_a_reconcile_does_not_rest_on_what_an_earlier_one_met(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: the half of a database that was read last week and the half read now make no whole."""
    sync_all(settings, FULL, only={"operatories"})
    box.faults.add("status", path="/operatories", location_id=SOUTH)
    sync_all(settings, RECONCILE, only={"operatories"}, retry=QUICK)
    box.faults.clear()
    box.state.delete("operatories", at(rows, "operatories", SOUTH)[0], hard=True)
    began = rows("SELECT clock_timestamp()")[0][0]
    options = replace(RECONCILE, fresh_after=began)
    with open_session(settings) as session:
        pieces = slices_of(COLLECTIONS["operatories"], session.practices(), date(2026, 1, 1))
        results = list(run_slices(session, [one for one in pieces if one.location_id == SOUTH], options))
    assert "1 of 2 reads are not complete" in str(told(results, "operatories")[f"willow-dental.{NORTH}"])
    assert gone(rows, "operatories") == set()


def test_lists_inside_a_record_go_with_it(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """Nobody tells of a plan's procedures once the plan is gone."""
    sync_all(settings, FULL, only={"treatment_plans"})
    plan, procedures = rows(
        "SELECT treatment_plan_id, count(*) FROM nexhealth_treatment_plan_procedures GROUP BY 1 ORDER BY 1 LIMIT 1"
    )[0]
    box.state.delete("treatment_plans", int(str(plan)))
    sync_all(settings, RECONCILE, only={"treatment_plans"})
    assert gone(rows, "treatment_plans") == {plan}
    marked = "SELECT treatment_plan_id, count(*) FROM nexhealth_treatment_plan_procedures WHERE deleted_by = 'absence' GROUP BY 1"
    assert rows(marked) == [(plan, procedures)]
    box.state.update("treatment_plans", int(str(plan)), {}, about={"deleted_at": None})
    sync_all(settings, only={"treatment_plans"})
    assert rows(marked) == []
