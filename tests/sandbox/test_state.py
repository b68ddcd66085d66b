"""Changes made while the server runs, as the API then shows them."""

import pytest

from nexhealth_pipeline.sandbox import NoSuchRowError, truth
from nexhealth_pipeline.sandbox.kinds import KINDS

from .calls import ALL_TIME, BASE, DESERT, ISLAND, NORTH, SOUTH, WILLOW, Caller

WHERE = {"subdomain": WILLOW, "location_id": NORTH}


def test_nothing_is_newer_than_the_worlds_base_until_it_is_changed(caller: Caller) -> None:
    """Risk: an incremental sync would bring rows that nobody touched."""
    assert caller.walk("/patients", **WHERE, updated_since=BASE.isoformat()) == []
    number = caller.walk("/patients", **WHERE)[3]["id"]
    change = caller.server.state.update("patients", number, {"first_name": "Renée", "bio": {"city": "Elsewhere"}})
    (row,) = caller.walk("/patients", **WHERE, updated_since=BASE.isoformat())
    assert row == change.after
    assert (row["first_name"], row["bio"]["city"]) == ("Renée", "Elsewhere")
    assert len(row["bio"]) >= 2, "an object is merged, not replaced"
    assert change.before is not None
    assert row["updated_at"] > change.before["updated_at"]


def test_no_two_changes_share_a_time_even_when_the_clock_stands(caller: Caller) -> None:
    """Risk: equal versions cannot be ordered."""
    numbers = caller.server.state.ids("patients")[:3]
    times = [caller.server.state.update("patients", number, {}).after for number in numbers]
    assert len({row["updated_at"] for row in times if row}) == 3


def test_cancelling_and_moving_an_appointment(caller: Caller) -> None:
    """Risk: a moved appointment leaves one window and enters another."""
    where = {"subdomain": WILLOW, "location_id": DESERT}
    first, second, *_ = caller.walk("/appointments", **where, **ALL_TIME, cancelled="false")
    caller.server.state.cancel(first["id"])
    row = caller.data(f"/appointments/{first['id']}", subdomain=WILLOW)
    assert (row["cancelled"], row["cancelled_at"][:10]) == (True, "2026-11-20")
    change = caller.server.state.move(second["id"], days=400)
    assert change.after is not None
    window = {"start": change.after["start_time"], "end": change.after["start_time"]}
    (moved,) = caller.walk("/appointments", **where, **window)
    assert moved["id"] == second["id"]
    assert moved["updated_at"] > second["updated_at"]
    still = {"start": second["start_time"], "end": second["start_time"]}
    assert second["id"] not in {row["id"] for row in caller.walk("/appointments", **where, **still)}


def test_a_deleted_row_vanishes_or_gets_its_deletion_time(caller: Caller) -> None:
    """Risk: only plans have `deleted_at`; everything else just stops being listed."""
    state = caller.server.state
    patient = caller.walk("/patients", **WHERE)[0]["id"]
    gone = state.delete("patients", patient)
    assert gone.after is None
    assert caller.errors(f"/patients/{patient}", subdomain=WILLOW)[0] == 404
    plan = caller.walk("/insurance_plans", subdomain=WILLOW)[0]["id"]
    kept = state.delete("insurance_plans", plan)
    assert kept.after is not None
    assert kept.after["deleted_at"] is not None
    assert plan not in {row["id"] for row in caller.walk("/insurance_plans", subdomain=WILLOW)}
    since = {"include_deleted": "true", "updated_since": BASE.isoformat()}
    assert [row["id"] for row in caller.walk("/insurance_plans", subdomain=WILLOW, **since)] == [plan]
    state.delete("insurance_plans", plan, hard=True)
    assert caller.walk("/insurance_plans", subdomain=WILLOW, **since) == []


def test_a_deleted_appointment_may_stay_with_a_flag(caller: Caller) -> None:
    """Risk: the vendor's list without `cancelled` is said to hold deleted ones too; whoever reads it must be able to tell."""
    state, where = caller.server.state, {"subdomain": WILLOW, "location_id": DESERT, **ALL_TIME}
    visit = caller.walk("/appointments", **where, cancelled="false")[0]["id"]
    state.delete("appointments", visit, flagged=True)
    for value in ("true", "false"):
        assert visit not in {row["id"] for row in caller.walk("/appointments", **where, cancelled=value)}
    assert [row["id"] for row in caller.walk("/appointments", **where) if row.get("deleted")] == [visit]
    assert caller.data(f"/appointments/{visit}", subdomain=WILLOW)["deleted"] is True
    state.update("appointments", visit, {}, drop=("deleted",))
    assert visit in {row["id"] for row in caller.walk("/appointments", **where, cancelled="false")}
    with pytest.raises(ValueError, match="no flag"):
        state.delete("patients", state.ids("patients")[0], flagged=True)


def test_a_deleted_appointment_may_stay_without_a_word(caller: Caller) -> None:
    """Risk: v3's records have no key that says so, and the list without `cancelled` holds it as it was."""
    state, where = caller.server.state, {"subdomain": WILLOW, "location_id": DESERT, **ALL_TIME}
    before = caller.walk("/appointments", **where, cancelled="false")[0]
    visit = before["id"]
    state.delete("appointments", visit, listed=True)
    for value in ("true", "false"):
        assert visit not in {row["id"] for row in caller.walk("/appointments", **where, cancelled=value)}
    (still,) = [row for row in caller.walk("/appointments", **where) if row["id"] == visit]
    assert still == before | {"updated_at": still["updated_at"]}
    assert caller.errors(f"/appointments/{visit}", subdomain=WILLOW)[0] == 404
    assert visit not in {line["record"]["id"] for line in truth(state, "appointments")}
    state.update("appointments", visit, {})
    assert visit in {row["id"] for row in caller.walk("/appointments", **where, cancelled="false")}
    assert caller.data(f"/appointments/{visit}", subdomain=WILLOW)["id"] == visit
    with pytest.raises(ValueError, match="no flag"):
        state.delete("patients", state.ids("patients")[0], listed=True)


def test_created_rows_appear_where_they_belong(caller: Caller) -> None:
    """Risk: a new row must be reachable on every path that lists its kind."""
    state = caller.server.state
    patient = state.create("patients", {"first_name": "Novel"}, subdomain=WILLOW, location_ids=[SOUTH])
    assert patient.id in {row["id"] for row in caller.walk("/patients", **WHERE)}
    strict = caller.walk("/patients", **WHERE, location_strict="true")
    assert patient.id not in {row["id"] for row in strict}
    document = state.create("documents", subdomain=WILLOW, patient_id=patient.id)
    assert [row["id"] for row in caller.data(f"/patients/{patient.id}/documents", subdomain=WILLOW)] == [document.id]
    fields = {"location_id": SOUTH, "patient_id": patient.id, "start_time": "2027-01-04T17:00:00.000Z"}
    visit = state.create("appointments", fields, subdomain=WILLOW)
    listed = caller.walk("/appointments", subdomain=WILLOW, location_id=SOUTH, **ALL_TIME, patient_ids__=[patient.id])
    assert [row["id"] for row in listed] == [visit.id]
    cover = state.create("insurance_coverages", {"patient_id": patient.id}, subdomain=WILLOW)
    (row,) = caller.walk("/insurance_coverages", subdomain=WILLOW, patient_id=patient.id)
    assert row["id"] == cover.id
    kind = state.create("document_types", {"name": "Memo"}, subdomain=WILLOW, location_id=NORTH)
    assert kind.id in {row["id"] for row in caller.data("/document_types", **WHERE)}


_EVERY = sorted(set(KINDS) - {"institutions", "locations", "sync_status"})
_ABOUT: dict[str, dict[str, object]] = {
    "patients": {"location_ids": [NORTH]},
    "providers": {"location_ids": [NORTH]},
    "document_types": {"location_id": NORTH},
    "payment_types": {"database": 35},
    "adjustment_types": {"database": 35},
}
_PLACED = ("location_id", "patient_id", "guarantor_id")


@pytest.mark.parametrize("collection", _EVERY)
def test_rows_of_every_collection_can_be_created_changed_and_deleted(caller: Caller, collection: str) -> None:
    """Risk: a row made in a test that lacks keys hides a bug about missing ones; a change without its time too."""
    state = caller.server.state
    row = next(row for row in state.store(collection).rows.values() if row.facts.get("disabled_at") is None)
    old, patient = row.record(), state.store("patients").find("database", 35)
    fields = {name: NORTH if name == "location_id" else next(iter(patient)).id for name in _PLACED if name in old}
    about: dict[str, object] = dict(_ABOUT.get(collection, {}))
    about |= {"patient_id": fields.get("patient_id", state.ids("patients")[0])} if collection == "documents" else {}
    about |= {"charge_id": state.ids("charges")[0]} if collection == "claim_payouts" else {}
    made = state.create(collection, fields, subdomain=WILLOW, **about)
    assert made.after is not None
    dressed = {"display_name", "npi", "tin", "state_license", "specialty_code", "parent_id"}
    assert set(old) - set(made.after) <= (dressed if collection in ("providers", "appointment_types") else _EXTRAS)
    assert set(made.after) <= set(old)
    assert made.id in {row.id for row in state.store(collection).rows.values()}
    changed = state.update(collection, made.id, {})
    assert changed.after is not None
    if "updated_at" in old:
        assert changed.after["updated_at"] > made.after["updated_at"] > BASE.isoformat()
    gone = state.delete(collection, made.id)
    if "deleted_at" in old:
        assert gone.after is not None
        assert gone.after["deleted_at"] < gone.after["updated_at"]
        state.delete(collection, made.id, hard=True)
    if collection != "treatment_plans":
        assert made.id not in state.ids(collection)
    assert made.id not in {line["record"].get("id") for line in truth(state, collection)}


_EXTRAS = {"foreign_id", "foreign_id_type", "last_sync_time", "location_id", "display_name", "bookable_online"}
"""Keys that a new room lacks: nothing depends on them."""


def test_a_new_ledger_row_is_listed_at_its_location_or_its_databases(caller: Caller) -> None:
    """Risk: rows made by a test that no list shows."""
    state = caller.server.state
    patient = caller.walk("/patients", **WHERE, location_strict="true")[0]["id"]
    fields = {"location_id": SOUTH, "patient_id": patient}
    charge = state.create("charges", fields, subdomain=WILLOW)
    loose = state.create("payments", {"patient_id": patient}, subdomain=WILLOW)
    note = state.create("clinical_notes", {"patient_id": patient}, subdomain=WILLOW)
    since = {"updated_since": BASE.isoformat()}
    south = {"subdomain": WILLOW, "location_id": SOUTH}
    assert [row["id"] for row in caller.walk("/charges", **south, **since)] == [charge.id]
    assert caller.walk("/charges", **WHERE, **since) == []
    for where in (WHERE, south):
        assert [row["id"] for row in caller.walk("/payments", **where, **since)] == [loose.id]
        assert [row["id"] for row in caller.walk("/clinical_notes", **where, **since)] == [note.id]
    with pytest.raises(NoSuchRowError, match="needs database"):
        state.create("charges", subdomain=WILLOW)


def test_a_changed_part_moves_the_time_of_the_record_that_holds_it(caller: Caller) -> None:
    """Risk: an increment misses what changed inside a treatment plan or a charge."""
    state = caller.server.state
    plan = next(row for row in state.store("treatment_plans").rows.values() if row.facts["procedure_ids"])
    state.update("treatment_plans", plan.id, {}, about={"deleted_at": None}, touch=False)
    inside = plan.facts["procedure_ids"][0]
    assert state.row("treatment_plans", plan.id).updated == plan.updated
    state.update("procedures", inside, {"name": "Renamed"}, parents=False)
    assert state.row("treatment_plans", plan.id).updated == plan.updated
    state.update("procedures", inside, {"name": "Again"})
    assert state.row("treatment_plans", plan.id).updated > BASE.isoformat()
    payout = next(iter(state.store("claim_payouts").rows.values()))
    state.update("claim_payouts", payout.id, {"allowed_amount": {"amount": "1.00"}})
    assert state.row("charges", payout.facts["charge_id"]).updated > BASE.isoformat()
    assert state.row("claims", payout.facts["claim_id"]).updated > BASE.isoformat()


def test_a_deleted_treatment_plan_is_gone_until_it_is_revived(caller: Caller) -> None:
    """Risk: a row that comes back after its tombstone."""
    state = caller.server.state
    (plan, *_) = [row["id"] for row in caller.walk("/treatment_plans", subdomain=WILLOW)]
    state.delete("treatment_plans", plan)
    assert caller.errors(f"/treatment_plans/{plan}", subdomain=WILLOW)[0] == 404
    assert plan not in {row["id"] for row in caller.walk("/treatment_plans", subdomain=WILLOW)}
    state.update("treatment_plans", plan, {}, about={"deleted_at": None})
    assert caller.data(f"/treatment_plans/{plan}", subdomain=WILLOW)["updated_at"] > BASE.isoformat()


def test_a_payment_plan_changes_although_it_shows_no_time(caller: Caller) -> None:
    """Risk: `updated_since` works on a time that the record does not have (API.md E.3)."""
    state = caller.server.state
    patient = caller.walk("/patients", **WHERE)[0]["id"]
    made = state.create("payment_plans", {"patient_id": patient, "guarantor_id": patient}, subdomain=WILLOW)
    since = state.row("payment_plans", made.id).updated
    assert made.id in {row["id"] for row in caller.walk("/payment_plans", **WHERE, updated_since=since)}
    state.update("payment_plans", made.id, {"active": False})
    later = state.row("payment_plans", made.id).updated
    assert later > since
    rows = caller.walk("/payment_plans", **WHERE, updated_since=later, sort="-updated_at")
    assert [row["active"] for row in rows] == [False]


def test_a_patient_can_move_to_another_location_without_a_change_of_its_record(caller: Caller) -> None:
    """Risk: membership is not part of the record."""
    number = next(row["id"] for row in caller.walk("/patients", **WHERE, location_strict="true"))
    change = caller.server.state.update("patients", number, {}, about={"location_ids": [SOUTH]}, touch=False)
    assert change.before == change.after
    assert number not in {row["id"] for row in caller.walk("/patients", **WHERE, location_strict="true")}
    assert caller.data(f"/patients/{number}", subdomain=WILLOW)["location_ids"] == [SOUTH]


def test_a_record_can_be_broken_on_purpose(caller: Caller) -> None:
    """Risk: the quarantine needs records with wrong types and missing keys, and lists must still answer."""
    state = caller.server.state
    numbers = [row["id"] for row in caller.walk("/patients", **WHERE)][:3]
    state.update("patients", numbers[0], {"updated_at": 17, "bio": "none"})
    state.update("patients", numbers[1], {"guarantor_id": [1, 2]}, drop=["email"])
    rows = {row["id"]: row for row in caller.walk("/patients", **WHERE, updated_since=BASE.isoformat())}
    assert set(rows) == set(numbers[:2])
    assert rows[numbers[0]]["updated_at"] == 17
    assert "email" not in rows[numbers[1]]
    visit = caller.walk("/appointments", **WHERE, **ALL_TIME)[0]["id"]
    state.update("appointments", visit, {"start_time": 5, "cancelled": "yes"})
    assert caller.get("/appointments", **WHERE, **ALL_TIME).status_code == 200


def test_naming_what_is_not_there_is_an_error(caller: Caller) -> None:
    """Risk: a change that changes nothing makes a test prove nothing."""
    state = caller.server.state
    for attempt in (
        lambda: state.update("patients", 1, {}),
        lambda: state.delete("nothings", 1),
        lambda: state.create("patients", subdomain="nobody", location_ids=[NORTH]),
        lambda: state.create("documents", subdomain=WILLOW, patient_id=1),
    ):
        with pytest.raises(NoSuchRowError):
            attempt()


def test_the_truth_holds_every_row_as_its_list_shows_it(caller: Caller) -> None:
    """Risk: the warehouse is compared with this."""
    state = caller.server.state
    rows = truth(state, "patients")
    assert len(rows) == len(state.ids("patients"))
    north = [line for line in rows if NORTH in line["location_ids"]]
    listed = caller.walk("/patients", **WHERE, location_strict="true")
    assert [line["record"] for line in north] == listed
    providers = {line["record"]["id"]: line["record"] for line in truth(state, "providers")}
    for inactive in ("true", "false"):
        for row in caller.walk("/providers", subdomain=WILLOW, inactive=inactive):
            assert providers[row["id"]] == row
    assert {line["institution_id"] for line in truth(state, "institutions")} == {11201, 11202}
    assert all(line["patient_id"] for line in truth(state, "documents"))


def test_the_truth_leaves_out_what_no_answer_shows(caller: Caller) -> None:
    """Risk: a warehouse that has all there is to read looks incomplete."""
    state = caller.server.state
    hidden = {row.id for row in state.store("charges").rows.values() if row.facts["database"] == 42}
    told = {line["record"]["id"] for line in truth(state, "charges")}
    assert hidden
    assert told == set(state.ids("charges")) - hidden
    state.enable(ISLAND)
    assert {line["record"]["id"] for line in truth(state, "charges")} == told | hidden
    patient = truth(state, "documents")[0]["patient_id"]
    state.delete("patients", patient, hard=True)
    assert caller.get(f"/patients/{patient}/documents", subdomain=WILLOW).status_code == 404
    assert patient not in {line["patient_id"] for line in truth(state, "documents")}
    assert list(state.store("documents").find("patient_id", patient))


def test_the_truth_of_what_only_single_reads_show_agrees_with_them(caller: Caller) -> None:
    """Risk: addresses, subscribers and planned procedures are compared with something that the API never says."""
    state = caller.server.state
    lines = {line["patient_id"]: line["record"] for line in truth(state, "patient_addresses")}
    assert set(lines) == set(state.ids("patients"))
    patient = caller.walk("/patients", **WHERE)[0]["id"]
    shown = caller.data(f"/patients/{patient}", subdomain=WILLOW, include__="address")["address"]
    assert lines[patient] == shown
    covers = {line["coverage_id"]: line["record"] for line in truth(state, "coverage_subscribers")}
    number = caller.walk("/insurance_coverages", subdomain=WILLOW)[0]["id"]
    assert covers.get(number) == caller.data(f"/insurance_coverages/{number}", subdomain=WILLOW).get("subscriber")
    plans = caller.walk("/treatment_plans", subdomain=WILLOW)
    planned = [line for line in truth(state, "treatment_plan_procedures") if line["institution_id"] == 11201]
    assert [line["record"] for line in planned] == [row for plan in plans for row in plan["procedures"]]


def test_the_truth_of_staff_has_a_line_per_institution(caller: Caller) -> None:
    """Risk: one person under two institutions is two rows of a warehouse."""
    lines = truth(caller.server.state, "nex_staff")
    both = [line["institution_id"] for line in lines if len(line["record"]["inst_ids"]) == 2]
    assert sorted(both) == [11201, 11202]


def test_a_question_the_data_cannot_answer_gets_500_in_an_envelope(caller: Caller) -> None:
    """Risk: a record broken on purpose must not look like a broken connection."""
    state = caller.server.state
    state.update("providers", state.ids("providers")[0], {}, about={"location_ids": None})
    answer = caller.get("/providers", subdomain=WILLOW, location_id=NORTH)
    assert (answer.status_code, answer.json()["code"]) == (500, False)
