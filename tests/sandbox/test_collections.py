"""The collections about money, treatment and the practice's routine: filters, hidden rows, refusals."""

from typing import Any

import pytest

from .asking import BOTH, DELETED, ENABLED, EVER, FINANCE_LISTS, HOMES
from .calls import BASE, CLOSED, DESERT, HARBOR, ISLAND, NORTH, PIER, SOUTH, WILLOW, Caller

WHERE = {"subdomain": WILLOW, "location_id": NORTH}
FORBIDDEN = (403, ["You don't have access to perform this action"])
NEED_A_FILTER = (
    *("/charges", "/payments", "/adjustments", "/claims", "/guarantor_balances", "/insurance_balances"),
    *("/fee_schedule_procedures", "/clinical_notes"),
)


@pytest.mark.parametrize("path", [*NEED_A_FILTER, "/procedures"])
def test_lists_that_need_a_filter_refuse_to_come_whole(reader: Caller, path: str) -> None:
    """Risk: the location alone is no filter (API.md A.4, and the trap of /procedures)."""
    status, errors = reader.errors(path, **WHERE)
    assert status == 400
    assert "at least one of" in errors[0]
    assert reader.errors(path, **WHERE, **DELETED, show_zero_balances="true")[0] == 400
    assert reader.walk(path, **WHERE, **EVER)


@pytest.mark.parametrize("name", ["charges", "payments", "adjustments", "claims"])
def test_deleted_ledger_rows_are_hidden_until_asked_for(reader: Caller, name: str) -> None:
    """Risk: a deletion that is never seen keeps counting."""
    seen: dict[int, Any] = {}
    for subdomain, place in ENABLED:
        where = {"subdomain": subdomain, "location_id": place}
        shown = reader.walk(f"/{name}", **where, **EVER)
        every = reader.walk(f"/{name}", **where, **EVER, **DELETED)
        assert {row["deleted_at"] for row in shown} == {None}
        assert [row for row in every if row["deleted_at"] is None] == shown
        seen |= {row["id"]: row for row in every}
    assert any(row["deleted_at"] for row in seen.values())
    hidden = {row.id for row in reader.server.state.store(name).rows.values() if row.facts["database"] == 42}
    truth = {row["id"]: row for row in reader.server.state.records(name)}
    assert seen == {number: row for number, row in truth.items() if number not in hidden}


def test_rows_without_a_location_are_listed_at_every_location_of_their_database(reader: Caller) -> None:
    """Risk: rows that name no location come twice from a shared database, and must be one row."""
    north, south, desert = (
        {row["id"]: row["location_id"] for row in reader.walk("/payments", subdomain=WILLOW, location_id=place, **EVER)}
        for place in (NORTH, SOUTH, DESERT)
    )
    both = set(north) & set(south)
    assert both
    assert {north[number] for number in both} == {None}
    assert {north[number] for number in set(north) - both} == {NORTH}
    assert not set(north) & set(desert)
    for path in ("/payment_types", "/payment_plans", "/patient_recalls"):
        twice = [reader.walk(path, subdomain=WILLOW, location_id=place) for place in (NORTH, SOUTH)]
        assert twice[0] == twice[1]


def test_zero_balances_are_hidden_until_asked_for(reader: Caller) -> None:
    """Risk: a debt that was paid disappears instead of becoming zero (API.md E.1)."""
    shown = reader.walk("/guarantor_balances", **WHERE, **EVER)
    every = reader.walk("/guarantor_balances", **WHERE, **EVER, show_zero_balances="true")
    assert shown == [row for row in every if row["total_balance"]["amount"] != "0.00"]
    assert len(shown) < len(every)
    one = shown[0]["guarantor_id"]
    assert reader.walk("/guarantor_balances", **WHERE, guarantor_id=one) == [
        row for row in shown if row["guarantor_id"] == one
    ]


@pytest.mark.parametrize("path", ["/payment_types", "/adjustment_types", "/fee_schedules", "/working_hours"])
def test_inactive_rows_are_hidden_until_asked_for(reader: Caller, path: str) -> None:
    """Risk: one pass sees active rows only."""
    default, active, inactive = (reader.walk(path, **WHERE, **params) for params in ({}, *BOTH))
    assert default == active
    assert inactive
    assert {row["active"] for row in inactive} == {False}


@pytest.mark.parametrize("path", FINANCE_LISTS)
def test_finance_is_refused_at_the_location_where_it_is_not_enabled(reader: Caller, path: str) -> None:
    """Risk: "not enabled" must not look like an empty list, nor spoil the other locations (API.md K)."""
    where = {"subdomain": HARBOR, "location_id": ISLAND}
    assert reader.errors(path, **where, **EVER) == FORBIDDEN
    assert reader.get(path, subdomain=HARBOR, location_id=PIER, **EVER).status_code == 200
    assert reader.get("/patients", **where).status_code == 200
    collection = path.strip("/")
    rows = reader.server.state.store(collection).rows.values()
    refused = next(row.id for row in rows if row.facts["database"] == 42)
    if collection not in ("fee_schedule_procedures",):
        status = reader.errors(f"{path}/{refused}", subdomain=HARBOR)[0]
        assert status == {"claims": 500, "insurance_balances": 404}.get(collection, 403)


def test_what_is_not_finance_answers_at_that_location(reader: Caller) -> None:
    """Risk: a 403 of finance taken for a 403 of everything."""
    where = {"subdomain": HARBOR, "location_id": ISLAND}
    for path in ("/insurance_plans", "/insurance_coverages", "/procedures", "/treatment_plans", "/clinical_notes"):
        assert reader.get(path, **where, **EVER).status_code == 200, path
    state = reader.server.state
    charge = next(row for row in state.store("charges").rows.values() if row.facts["location_id"] == ISLAND)
    body = reader.data(f"/patients/{charge.facts['patient_id']}", subdomain=HARBOR, include__=["charges", "procedures"])
    assert body["charges"] == []
    assert body["procedures"]


def test_enabling_finance_shows_what_was_there_all_along(caller: Caller) -> None:
    """Risk: rows that appear with an old `updated_at` are missed by an increment (API.md K)."""
    where = {"subdomain": HARBOR, "location_id": ISLAND}
    assert caller.get("/charges", **where, **EVER).status_code == 403
    body = {"operation": "enable", "id": ISLAND}
    assert caller.admin("POST", "/sandbox/changes", body).status_code == 201
    rows = caller.walk("/charges", **where, **EVER)
    assert rows
    assert caller.walk("/charges", **where, updated_since=BASE.isoformat()) == []
    ledger = caller.data("/locations", subdomain=HARBOR, filter_by_subscription_feature="ledger_sync")
    assert [place["id"] for place in ledger[0]["locations"]] == [PIER, ISLAND]
    caller.server.state.enable(ISLAND, on=False)
    assert caller.get("/charges", **where, **EVER).status_code == 403
    wrong = caller.admin("POST", "/sandbox/changes", {"operation": "enable", "id": ISLAND, "capability": "flight"})
    assert wrong.status_code == 400


def test_insurance_plans_are_refused_where_no_location_has_finance(caller: Caller) -> None:
    """Risk: they are among what is closed until finance is enabled (API.md K), and belong to no location."""
    state = caller.server.state
    plan = caller.walk("/insurance_plans", subdomain=HARBOR)[0]["id"]
    state.enable(PIER, on=False)
    assert caller.errors("/insurance_plans", subdomain=HARBOR) == FORBIDDEN
    assert caller.errors(f"/insurance_plans/{plan}", subdomain=HARBOR) == FORBIDDEN
    assert caller.get("/insurance_coverages", subdomain=HARBOR).status_code == 200
    assert caller.get("/insurance_plans", subdomain=WILLOW).status_code == 200
    state.enable(ISLAND)
    assert caller.data(f"/insurance_plans/{plan}", subdomain=HARBOR)["id"] == plan
    assert caller.get("/insurance_plans", subdomain=HARBOR).status_code == 200


def test_alerts_are_kept_by_one_practice_system_only(reader: Caller) -> None:
    """Risk: a practice without alerts refuses one request per patient."""
    alert = next(row for row in reader.server.state.records("alerts") if "disabled_at" in row)
    path = f"/patients/{alert['patient_id']}/alerts"
    assert alert not in reader.data(path, subdomain=HARBOR)
    assert alert in reader.data(path, subdomain=HARBOR, include_disabled="true")
    assert reader.data(f"{path}/{alert['id']}", subdomain=HARBOR) == alert
    other = reader.walk("/patients", subdomain=HARBOR, location_id=PIER)[0]["id"]
    if other != alert["patient_id"]:
        assert reader.errors(f"/patients/{other}/alerts/{alert['id']}", subdomain=HARBOR)[0] == 404
    patient = reader.walk("/patients", **WHERE)[0]["id"]
    assert reader.errors(f"/patients/{patient}/alerts", subdomain=WILLOW) == FORBIDDEN
    assert reader.errors("/patients/1/alerts", subdomain=WILLOW)[0] == 404
    assert reader.data(f"/patients/{patient}", subdomain=WILLOW, include__="patient_alerts")["patient_alerts"] == []


def test_staff_come_in_numbered_pages_of_300_at_most(reader: Caller) -> None:
    """Risk: the only list with page numbers; `count` is the total (API.md D.2)."""
    first = reader.get("/nex_staff", subdomain=WILLOW).json()
    assert (len(first["data"]), first["count"]) == (5, 10)
    assert "page_info" not in first
    second = reader.data("/nex_staff", subdomain=WILLOW, page=2)
    assert [row["id"] for row in first["data"] + second] == sorted(row["id"] for row in first["data"] + second)
    assert reader.data("/nex_staff", subdomain=WILLOW, page=3) == []
    every = reader.data("/nex_staff", subdomain=WILLOW, per_page=1000)
    assert len(every) == 10
    assert reader.errors("/nex_staff", subdomain=WILLOW, page=0)[0] == 400
    inactive = reader.data("/nex_staff", subdomain=WILLOW, per_page=300, inactive="true")
    assert 0 < len(inactive) < len(every)
    desert = reader.data("/nex_staff", subdomain=WILLOW, per_page=300, location_ids__=[DESERT])
    assert desert == [row for row in every if DESERT in row["location_ids"]]


def test_one_member_of_staff_works_for_both_institutions(reader: Caller) -> None:
    """Risk: an id alone is no key."""
    willow, harbor = (reader.data("/nex_staff", subdomain=name, per_page=300) for name in (WILLOW, HARBOR))
    (both,) = [row for row in willow if row in harbor]
    assert both["inst_ids"] == [11201, 11202]


def test_a_repeated_page_can_be_had_of_numbered_pages_too(caller: Caller) -> None:
    """Risk: the one list without cursors escapes the check for repeated pages."""
    first = caller.data("/nex_staff", subdomain=WILLOW)
    caller.server.faults.add("repeated_page", path="/nex_staff")
    assert caller.data("/nex_staff", subdomain=WILLOW, page=2) == first


@pytest.mark.parametrize("place", [CLOSED, None])
def test_procedures_of_a_closed_location_or_of_none_are_listed_but_not_readable_by_id(
    reader: Caller, place: int | None
) -> None:
    """Risk: a 404 by id does not prove that a listed procedure is gone (API.md C.2)."""
    closed = [row for row in reader.walk("/procedures", subdomain=WILLOW, **EVER) if row["location_id"] == place]
    assert closed
    assert reader.errors(f"/procedures/{closed[0]['id']}", subdomain=WILLOW)[0] == 404
    north = reader.walk("/procedures", **WHERE, **EVER)
    assert {row["location_id"] for row in north} == {NORTH}


def test_procedures_are_found_by_patient_appointment_and_date(reader: Caller) -> None:
    """Risk: the one-patient read asks this way."""
    every = reader.walk("/procedures", subdomain=WILLOW, **EVER)
    one = next(row for row in every if row["appointment_id"] and row["status"] == "completed")
    for name in ("patient_id", "appointment_id", "provider_id"):
        found = reader.walk("/procedures", subdomain=WILLOW, **{name: one[name]})
        assert found == [row for row in every if row[name] == one[name]]
    day = one["start_date"]
    window = reader.walk("/procedures", subdomain=WILLOW, started_after=day, started_before=day)
    assert window == [row for row in every if row["start_date"] == day]
    ended = reader.walk("/procedures", subdomain=WILLOW, ended_after=day, ended_before=day)
    assert {row["end_date"] for row in ended} == {day}


def test_treatment_plans_hold_their_procedures_and_deleted_ones_never_come(reader: Caller) -> None:
    """Risk: a deleted plan is only noticed by its absence (API.md E.1)."""
    plans = reader.walk("/treatment_plans", subdomain=WILLOW)
    procedures = {row["id"]: row for row in reader.walk("/procedures", subdomain=WILLOW, **EVER)}
    assert [row["id"] for row in plans] == sorted(row["id"] for row in plans)
    inside = [(plan, procedure) for plan in plans for procedure in plan["procedures"]]
    assert inside
    for plan, procedure in inside:
        assert procedure["patient_id"] == plan["patient_id"]
        assert procedure == procedures[procedure["id"]]
    plan, procedure = inside[0]
    single = reader.data(f"/procedures/{procedure['id']}", subdomain=WILLOW)
    assert plan["id"] in single["treatment_plan_ids"]
    state = reader.server.state
    for number in set(state.ids("treatment_plans")) - {row["id"] for row in plans}:
        if state.row("treatment_plans", number).institution_id == 11201:
            assert reader.errors(f"/treatment_plans/{number}", subdomain=WILLOW)[0] == 404
    some = reader.walk("/treatment_plans", subdomain=WILLOW, status="proposed", patient_id=plan["patient_id"])
    assert some == [row for row in plans if (row["status"], row["patient_id"]) == ("proposed", plan["patient_id"])]


@pytest.mark.parametrize(
    ("collection", "status"),
    [
        ("claims", 500),
        *((name, 400) for name in ("charges", "payments", "adjustments", "payment_types", "adjustment_types")),
        *((name, 404) for name in ("procedures", "patient_recalls", "recall_types", "fee_schedules", "working_hours")),
        *((name, 404) for name in ("treatment_plans", "insurance_balances")),
    ],
)
def test_an_unknown_id_gets_the_status_the_specification_leaves(reader: Caller, collection: str, status: int) -> None:
    """Risk: a missing claim looks like a broken server; most ledger reads declare no 404 (API.md C.2)."""
    assert reader.errors(f"/{collection}/1", subdomain=WILLOW)[0] == status
    number = reader.server.state.ids(collection)[0]
    home = reader.server.state.row(collection, number).institution_id
    stranger = HARBOR if home == 11201 else WILLOW
    assert reader.errors(f"/{collection}/{number}", subdomain=stranger)[0] == status


def test_a_claim_read_by_id_has_its_charges_and_payouts(reader: Caller) -> None:
    """Risk: the list of claims has totals only."""
    charges = reader.walk("/charges", **WHERE, **EVER, include__="claim_payouts")
    one = next(row for row in charges if row["claim_payouts"])
    payout = dict(one["claim_payouts"][0])
    number = payout.pop("claim_id")
    claim = reader.data(f"/claims/{number}", subdomain=WILLOW, include__=["charges", "charge_payouts"])
    assert payout | {"charge_id": one["id"]} in claim["charge_payouts"]
    assert one["id"] in {charge["id"] for charge in claim["charges"]}
    plain = reader.walk("/charges", **WHERE, **EVER)
    assert not any("claim_payouts" in row for row in plain)
    body = reader.get("/claims", **WHERE, **EVER, include__="charges").json()
    assert "include" in body["description"]


def test_a_coverage_read_by_id_names_its_subscriber(reader: Caller) -> None:
    """Risk: subscribers are in no list."""
    number = next(row["id"] for row in reader.walk("/insurance_coverages", subdomain=WILLOW) if row["patient_id"])
    coverage = reader.data(f"/insurance_coverages/{number}", subdomain=WILLOW)
    assert set(coverage["subscriber"]) == {"id", "name", "date_of_birth"}


def test_recalls_sort_by_date_and_carry_their_type(reader: Caller) -> None:
    """Risk: the only list that does not sort by time of change."""
    rows = reader.walk("/patient_recalls", **WHERE, sort="-date_due", per_page=7)
    days = [row["date_due"] or "" for row in rows]
    assert days == sorted(days, reverse=True)
    assert sorted(row["id"] for row in rows) == [row["id"] for row in reader.walk("/patient_recalls", **WHERE)]
    types = {row["id"]: row for row in reader.data("/recall_types", **WHERE)}
    for row in rows:
        if row["recall_id"] in types:
            assert row["recall_type"]["name"] == types[row["recall_id"]]["name"]
    due = reader.walk("/patient_recalls", **WHERE, due_after="2026-11-20")
    assert due == [row for row in sorted(rows, key=lambda row: row["id"]) if (row["date_due"] or "") >= "2026-11-20"]
    assert reader.errors("/patient_recalls", **WHERE, sort="updated_at")[0] == 400


def test_descriptors_are_read_under_locations_types_and_appointments(reader: Caller) -> None:
    """Risk: one of three paths has other rows; the first takes no subdomain."""
    rows = reader.data(f"/locations/{NORTH}/appointment_descriptors")
    assert {row["location_id"] for row in rows} == {NORTH}
    assert {row["active"] for row in rows} == {True, False}
    typed = reader.data(f"/locations/{NORTH}/appointment_descriptors", descriptor_type="Appointment Category")
    assert typed == [row for row in rows if row["descriptor_type"] == "Appointment Category"]
    assert reader.errors("/locations/1/appointment_descriptors")[0] == 404
    assert reader.errors(f"/locations/{CLOSED}/appointment_descriptors")[0] == 404
    kind = reader.data("/appointment_types", **WHERE)[0]["id"]
    of_type = reader.data(f"/appointment_types/{kind}/appointment_descriptors", subdomain=WILLOW)
    assert of_type
    assert all(row in rows for row in of_type)
    state = reader.server.state
    visit = next(row["id"] for row in state.records("appointments") if row["appointment_type_id"] == kind)
    assert reader.data(f"/appointments/{visit}/appointment_descriptors", subdomain=WILLOW) == of_type
    assert reader.errors("/appointments/1/appointment_descriptors", subdomain=WILLOW)[0] == 404


def test_working_hours_leave_out_past_dates_on_request_and_labels_follow_their_location(reader: Caller) -> None:
    """Risk: hours of single dates stay for ever."""
    rows = reader.walk("/working_hours", **WHERE)
    recent = reader.walk("/working_hours", **WHERE, ignore_past_dates="true")
    gone = [row for row in rows if row not in recent]
    assert [row["specific_date"] for row in gone] == ["2026-10-11"]
    assert all("appointment_types" not in row for row in rows)
    assert {row["label"]["location_id"] for row in rows} == {None, NORTH}
    one = rows[0]["label"]["id"]
    assert reader.walk("/working_hours", **WHERE, label_id=one) == [row for row in rows if row["label"]["id"] == one]
    labels = reader.walk("/working_hour_labels", **WHERE)
    assert {row["location_id"] for row in labels} == {None, NORTH}
    unused = reader.walk("/working_hour_labels", **WHERE, active="false")
    assert [row["location_id"] for row in unused] == [NORTH]


def test_notes_are_found_by_patient_procedure_and_time(reader: Caller) -> None:
    """Risk: notes are listed by the EHR database, like patients."""
    rows = reader.walk("/clinical_notes", **WHERE, **EVER)
    one = next(row for row in rows if row["procedure_id"])
    for name in ("patient_id", "procedure_id"):
        found = reader.walk("/clinical_notes", **WHERE, **{name: one[name]})
        assert found == [row for row in rows if row[name] == one[name]]
    later = reader.walk("/clinical_notes", **WHERE, entered_after=one["entered_at"])
    assert later == [row for row in rows if (row["entered_at"] or "") >= one["entered_at"]]
    assert reader.walk("/clinical_notes", subdomain=WILLOW, location_id=SOUTH, **EVER) == rows


def test_ledger_lists_narrow_by_whom_and_what_they_are_about(reader: Caller) -> None:
    """Risk: the one-patient read asks this way."""
    for path, names in (
        ("/charges", ("patient_id", "guarantor_id", "procedure_id", "provider_id")),
        ("/payments", ("patient_id", "guarantor_id", "charge_id", "claim_id", "transaction_id")),
        ("/claims", ("patient_id", "guarantor_id", "date_of_service")),
        ("/fee_schedule_procedures", ("fee_schedule_id",)),
        ("/insurance_balances", ("patient_id", "guarantor_id")),
    ):
        rows = reader.walk(path, **WHERE, **EVER)
        for name in names:
            value = next(row[name] for row in rows if row[name])
            found = reader.walk(path, **WHERE, **{name: value})
            assert found == [row for row in rows if row[name] == value], (path, name)


@pytest.mark.parametrize("home", HOMES)
def test_a_patient_read_by_id_includes_what_the_lists_have(reader: Caller, home: tuple[str, int]) -> None:
    """Risk: two ways to the same rows that disagree."""
    subdomain, place = home
    visits = [row.facts for row in reader.server.state.store("procedures").find("location_id", place)]
    patient = next(one["patient_id"] for one in visits if one["appointment_id"] and one["patient_id"])
    body = reader.data(f"/patients/{patient}", subdomain=subdomain, include__=["procedures", "charges", "payments"])
    listed = reader.walk("/procedures", subdomain=subdomain, patient_id=patient)
    shown = [{name: row[name] for name in row if name != "treatment_plan_ids"} for row in body["procedures"]]
    assert sorted(shown, key=lambda row: row["id"]) == listed
    assert bool(body["charges"]) == (place != ISLAND)
