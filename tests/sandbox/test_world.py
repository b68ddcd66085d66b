"""The synthetic practices: sizes, shapes, and the same bytes for the same seed."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from nexhealth_pipeline.sandbox import World, build_world
from nexhealth_pipeline.sandbox.rows import Record
from tests.effort import counted

from .calls import BASE


@pytest.fixture(scope="module")
def world(default_world: World) -> World:
    return default_world


def _records(world: World, collection: str) -> list[Record]:
    return [row.record() for row in world.rows[collection]]


def test_the_same_seed_and_base_give_the_same_bytes() -> None:
    """Risk: a finding that cannot be repeated."""
    sizes: dict[str, Any] = {"base": BASE, "patients": 60, "appointments_per_patient": 5}
    one, two, other = build_world(3, **sizes), build_world(3, **sizes), build_world(4, **sizes)
    assert [row.body for row in one.rows["appointments"]] == [row.body for row in two.rows["appointments"]]
    assert one.rows == two.rows
    assert one.rows["patients"] != other.rows["patients"]


def test_the_hour_of_the_base_changes_no_more_than_what_became_of_its_day() -> None:
    """Risk: a test of a practice's visits that goes well in the morning alone."""

    def visits(hour: int) -> list[tuple[object, ...]]:
        world = build_world(1, base=BASE.replace(hour=hour), patients=40, appointments_per_patient=7.8)
        return [(one["id"], one["patient_id"], one["location_id"]) for one in _records(world, "appointments")]

    assert visits(1) == visits(23)


def test_the_default_world_is_as_large_as_promised(world: World) -> None:
    """Risk: `nexhealth demo` promises these numbers."""
    counts = {name: len(rows) for name, rows in world.rows.items()}
    assert counts["patients"] == 2000
    assert counts["appointments"] >= 15_000
    assert counts["insurance_coverages"] >= 1200
    assert counts["documents"] >= 1500
    assert counts["procedures"] >= 8000
    assert counts["charges"] >= 6000
    assert counts["payments"] >= 5000
    assert counts["claims"] >= 2000
    assert min(counts.values()) >= 2, "no collection is empty"
    assert sum(not row.facts["inactive"] for row in world.rows["locations"]) == 5


def test_a_small_world_costs_what_its_rows_cost() -> None:
    """Risk: hundreds of tests build one."""
    build_world(base=BASE, patients=1, appointments_per_patient=0)  # what is made at first use
    with counted() as effort:
        made = build_world(base=BASE, patients=60, appointments_per_patient=5)
    assert effort.calls < 160 * sum(map(len, made.rows.values()))  # 79 with Python 3.11
    assert 55 <= len(made.rows["patients"]) <= 65
    assert 200 <= len(made.rows["appointments"]) <= 450


def test_ids_are_unique_and_nothing_was_changed_after_the_base(world: World) -> None:
    """Risk: the first incremental sync would not be empty."""
    latest = BASE.isoformat()
    for name, rows in world.rows.items():
        assert len({row.id for row in rows}) == len(rows), name
        assert all(row.updated < latest for row in rows), name
        assert all(row.body.count(b'"deleted_at":"2') == 0 or row.facts["deleted_at"] < latest for row in rows), name


def test_patients_have_the_shapes_of_real_ones(world: World) -> None:
    """Risk: clean data proves little."""
    people = _records(world, "patients")
    numbers = {row["id"] for row in people}
    families = Counter(row["guarantor_id"] for row in people)
    assert sum(1 for head, size in families.items() if head and size > 1) > 100
    assert families[0] > 20
    assert families[None] > 20
    assert {head for head in families if head} <= numbers
    for flag in ("inactive", "bio.new_patient", "bio.non_patient"):
        assert sum(bool(row.facts[flag]) for row in world.rows["patients"]) > 20, flag
    assert sum(row["bio"] == {} for row in people) > 20
    assert sum(row["email"] == "" for row in people) > 20
    assert sum("ssn" in row["bio"] for row in people) > 10
    names = "".join(row["name"] for row in people)
    for odd in "'é🌞\"\\\t李Ł":
        assert odd in names, odd


def test_nobody_in_it_could_be_real(world: World) -> None:
    """Risk: a synthetic record that reaches a real person."""
    for row in _records(world, "patients") + _records(world, "providers"):
        assert not row["email"] or row["email"].endswith(("@example.com", "@example.org"))
        numbers = [value for name, value in row["bio"].items() if name.endswith("phone_number") and value]
        assert all(len(number) == 10 and number[3:8] == "55501" for number in numbers)
        assert row["bio"].get("ssn", "000").startswith("000")


def test_appointments_reach_two_years_back_and_half_a_year_ahead(world: World) -> None:
    """Risk: month slices at both ends stay empty."""
    visits = _records(world, "appointments")
    starts = sorted(row["start_time"] for row in visits)
    assert starts[0] < (BASE - timedelta(days=700)).isoformat()
    assert starts[-1] > (BASE + timedelta(days=160)).isoformat()
    assert 0.1 < sum(row["cancelled"] for row in visits) / len(visits) < 0.2
    blocks = [row for row in visits if row["unavailable"]]
    assert len(blocks) > 100
    assert {row["patient_id"] for row in blocks} == {None}
    assert {0, None} <= {row["appointment_type_id"] for row in visits}
    assert min(row["id"] for row in visits) > 1_590_000_000
    assert any(row["foreign_id"] is None and row["last_sync_time"] is None for row in visits)
    assert any(row["cancelled_at"] and not row["cancelled"] for row in visits), "kept when un-cancelled"


REFERENCES = {
    "appointments": {"patient_id": "patients", "provider_id": "providers", "operatory_id": "operatories"}
    | {"appointment_type_id": "appointment_types", "location_id": "locations"},
    "insurance_coverages": {"plan_id": "insurance_plans", "patient_id": "patients"},
    "documents": {"document_type_id": "document_types"},
    "alerts": {"patient_id": "patients"},
    "patient_recalls": {"patient_id": "patients", "recall_id": "recall_types", "appointment_id": "appointments"},
    "recall_types": {"location_id": "locations"},
    "appointment_descriptors": {"location_id": "locations"},
    "working_hours": {"provider_id": "providers", "location_id": "locations", "operatory_id": "operatories"},
    "working_hour_labels": {"location_id": "locations"},
    "procedures": {"patient_id": "patients", "provider_id": "providers", "appointment_id": "appointments"}
    | {"location_id": "locations"},
    "treatment_plans": {"patient_id": "patients"},
    "clinical_notes": {"patient_id": "patients", "procedure_id": "procedures"},
    "charges": {"patient_id": "patients", "guarantor_id": "patients", "provider_id": "providers"}
    | {"procedure_id": "procedures", "location_id": "locations"},
    "payments": {"patient_id": "patients", "guarantor_id": "patients", "provider_id": "providers"}
    | {"charge_id": "charges", "claim_id": "claims", "payment_plan_id": "payment_plans"}
    | {"insurance_plan_id": "insurance_plans", "payment_type_id": "payment_types", "location_id": "locations"},
    "adjustments": {"patient_id": "patients", "guarantor_id": "patients", "provider_id": "providers"}
    | {"charge_id": "charges", "claim_id": "claims", "adjustment_type_id": "adjustment_types"},
    "claims": {"patient_id": "patients", "guarantor_id": "patients", "provider_id": "providers"}
    | {"primary_insurance_plan_id": "insurance_plans", "secondary_insurance_plan_id": "insurance_plans"},
    "claim_payouts": {"claim_id": "claims"},
    "guarantor_balances": {"guarantor_id": "patients", "location_id": "locations"},
    "insurance_balances": {"patient_id": "patients", "guarantor_id": "patients", "location_id": "locations"},
    "payment_plans": {"patient_id": "patients", "guarantor_id": "patients"},
    "fee_schedules": {"location_id": "locations"},
    "fee_schedule_procedures": {"location_id": "locations", "fee_schedule_id": "fee_schedules"},
}


@pytest.mark.parametrize("collection", REFERENCES)
def test_every_reference_points_to_a_row_of_the_same_institution(world: World, collection: str) -> None:
    """Risk: joins in views come out empty."""
    for field, other in REFERENCES[collection].items():
        homes = {row.id: row.institution_id for row in world.rows[other]}
        named = {(row.institution_id, row.value(field)) for row in world.rows[collection]}
        found = {(home, number) for home, number in named if number}  # 0 is none, too
        assert found, (collection, field)
        assert all(homes.get(number) == home for home, number in found), (collection, field)


def test_treatment_belongs_to_the_patient_of_its_appointment_and_plan(world: World) -> None:
    """Risk: a join over two ways to the patient contradicts itself."""
    visits = {row.id: row.facts for row in world.rows["appointments"]}
    procedures = {row.id: row.facts for row in world.rows["procedures"]}
    kept = [facts for facts in procedures.values() if facts["appointment_id"]]
    assert len(kept) > 5000
    for facts in kept:
        visit = visits[facts["appointment_id"]]
        assert facts["patient_id"] in (None, visit["patient_id"])
        assert facts["location_id"] in (None, visit["location_id"])
    for row in world.rows["treatment_plans"]:
        assert {procedures[number]["patient_id"] for number in row.facts["procedure_ids"]} <= {row.facts["patient_id"]}
    for row in world.rows["charges"]:
        if row.facts["procedure_id"]:
            assert procedures[row.facts["procedure_id"]]["patient_id"] in (None, row.facts["patient_id"])
    states = Counter(row.value("status") for row in world.rows["procedures"])
    assert set(states) == {"planned", "scheduled", "completed", "inactive", "referred", None}


def test_hidden_rows_exist_in_every_collection_that_hides_some(world: World) -> None:
    """Risk: completeness cannot be tested where nothing is hidden."""
    assert {row["inactive"] for row in _records(world, "providers")} == {True, False}
    assert {row["active"] for row in _records(world, "operatories")} == {True, False}
    assert {row["active"] for row in _records(world, "document_types")} == {True, False}
    assert {row["active"] for row in _records(world, "insurance_coverages")} == {True, False}
    assert sum(row["deleted_at"] is not None for row in _records(world, "insurance_plans")) > 5
    assert {row["appointment_types_location_scoped"] for row in _records(world, "institutions")} == {True, False}
    for name in ("payment_types", "adjustment_types", "fee_schedules", "working_hours", "appointment_descriptors"):
        assert {row["active"] for row in _records(world, name)} == {True, False}, name
    for name in ("charges", "payments", "adjustments", "claims"):
        assert sum(row.facts["deleted_at"] is not None for row in world.rows[name]) > 20, name
    for name in ("charges", "payments", "adjustments", "claims", "guarantor_balances", "insurance_balances"):
        assert any(row.facts["location_id"] is None for row in world.rows[name]), name
    assert {"disabled_at" in row for row in _records(world, "alerts")} == {True, False}
    assert {row["inactive"] for row in _records(world, "nex_staff")} == {True, False}
    assert {row.facts["deleted_at"] is None for row in world.rows["treatment_plans"]} == {True, False}
    zero = Counter(row["total_balance"]["amount"] == "0.00" for row in _records(world, "guarantor_balances"))
    assert min(zero.values()) > 100
