"""Changes made while the server runs, as the API then shows them."""

import pytest

from nexhealth_pipeline.sandbox import NoSuchRowError, truth

from .calls import ALL_TIME, BASE, DESERT, NORTH, SOUTH, WILLOW, Caller

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


@pytest.mark.parametrize(
    "collection", ["patients", "appointments", "insurance_plans", "insurance_coverages", "documents"]
)
def test_a_created_row_has_every_key_of_the_others(caller: Caller, collection: str) -> None:
    """Risk: a row made in a test that lacks keys hides a bug about missing ones."""
    patient = caller.server.state.ids("patients")[0]
    about = {"patients": {"location_ids": [NORTH]}, "documents": {"patient_id": patient}}.get(collection, {})
    old = caller.server.state.records(collection)[0]
    new = caller.server.state.create(collection, subdomain=WILLOW, **about).after
    assert new is not None
    assert set(new) == set(old)


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


def test_a_question_the_data_cannot_answer_gets_500_in_an_envelope(caller: Caller) -> None:
    """Risk: a record broken on purpose must not look like a broken connection."""
    state = caller.server.state
    state.update("providers", state.ids("providers")[0], {}, about={"location_ids": None})
    answer = caller.get("/providers", subdomain=WILLOW, location_id=NORTH)
    assert (answer.status_code, answer.json()["code"]) == (500, False)
