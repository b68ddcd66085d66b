"""The synthetic practices: sizes, shapes, and the same bytes for the same seed."""

import time
from collections import Counter
from datetime import timedelta

import pytest

from nexhealth_pipeline.sandbox import World, build_world
from nexhealth_pipeline.sandbox.rows import Record

from .calls import BASE


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(base=BASE)


def _records(world: World, collection: str) -> list[Record]:
    return [row.record() for row in world.rows[collection]]


def test_the_same_seed_and_base_give_the_same_bytes() -> None:
    """Risk: a finding that cannot be repeated."""
    sizes = {"base": BASE, "patients": 60, "appointments_per_patient": 5}
    one, two, other = build_world(3, **sizes), build_world(3, **sizes), build_world(4, **sizes)
    assert [row.body for row in one.rows["appointments"]] == [row.body for row in two.rows["appointments"]]
    assert one.rows == two.rows
    assert one.rows["patients"] != other.rows["patients"]


def test_the_default_world_is_as_large_as_promised(world: World) -> None:
    """Risk: `nexhealth demo` promises these numbers."""
    counts = {name: len(rows) for name, rows in world.rows.items()}
    assert 2000 <= counts["patients"] <= 2300
    assert counts["appointments"] >= 15_000
    assert counts["insurance_coverages"] >= 1200
    assert counts["documents"] >= 1500
    assert sum(not row.facts["inactive"] for row in world.rows["locations"]) == 5


def test_a_small_world_is_made_in_no_time() -> None:
    """Risk: hundreds of tests build one."""
    began = time.process_time()
    made = build_world(base=BASE, patients=60, appointments_per_patient=5)
    assert time.process_time() - began < 0.2
    assert 55 <= len(made.rows["patients"]) <= 65
    assert 200 <= len(made.rows["appointments"]) <= 450


def test_ids_are_unique_and_nothing_was_changed_after_the_base(world: World) -> None:
    """Risk: the first incremental sync would not be empty."""
    latest = BASE.isoformat()
    for name, rows in world.rows.items():
        assert len({row.id for row in rows}) == len(rows), name
        assert all(row.updated < latest for row in rows), name


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


def test_every_reference_points_to_a_row(world: World) -> None:
    """Risk: joins in views come out empty."""
    ids = {name: {row.id for row in rows} for name, rows in world.rows.items()}
    for row in _records(world, "appointments"):
        assert row["patient_id"] in ids["patients"] | {None}
        assert row["provider_id"] in ids["providers"]
        assert row["operatory_id"] in ids["operatories"] | {None}
        assert row["appointment_type_id"] in ids["appointment_types"] | {0, None}
    for row in _records(world, "insurance_coverages"):
        assert row["plan_id"] in ids["insurance_plans"] | {None}
        assert row["patient_id"] in ids["patients"] | {None}
    assert {row["document_type_id"] for row in _records(world, "documents")} <= ids["document_types"]


def test_hidden_rows_exist_in_every_collection_that_hides_some(world: World) -> None:
    """Risk: completeness cannot be tested where nothing is hidden."""
    assert {row["inactive"] for row in _records(world, "providers")} == {True, False}
    assert {row["active"] for row in _records(world, "operatories")} == {True, False}
    assert {row["active"] for row in _records(world, "document_types")} == {True, False}
    assert {row["active"] for row in _records(world, "insurance_coverages")} == {True, False}
    assert sum(row["deleted_at"] is not None for row in _records(world, "insurance_plans")) > 5
    assert {row["appointment_types_location_scoped"] for row in _records(world, "institutions")} == {True, False}
