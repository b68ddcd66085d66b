"""New patients without an appointment ahead are in no list: a reconcile asks for them by id, and believes that alone."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from nexhealth_pipeline.sandbox import SandboxServer, truth
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import verdict

from .kit import Rows, sync_all
from .reconciled import FULL, NORTH, RECONCILE, SOUTH, figures, gone, practice, told

MANY = 14
"""More than the brake lets go at once."""
MEMBERS = "SELECT patient_id, location_id FROM nexhealth_patient_locations WHERE gone_at IS NULL ORDER BY 1, 2"

PLACED = f"""NOT bio_new_patient AND id IN (SELECT patient_id FROM nexhealth_patient_locations
    WHERE location_id IN ({NORTH}, {SOUTH}))"""


@pytest.fixture
def box() -> Iterator[SandboxServer]:
    with SandboxServer(patients=60, appointments_per_patient=0, limits=False) as server:
        yield server


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


@pytest.fixture
def people(box: SandboxServer) -> list[int]:
    """New patients of two locations that share a database, each with an appointment ahead."""
    state = box.state
    found = [row for row in state.store("patients").rows.values() if {NORTH, SOUTH} & {*row.facts["location_ids"]}]
    start = (datetime.now(UTC) + timedelta(days=9)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    for row in found[:MANY]:
        state.update("patients", row.id, {"bio": {"new_patient": True}})
        visit = {"patient_id": row.id, "location_id": row.facts["location_ids"][0], "start_time": start}
        state.create("appointments", visit, subdomain="willow-dental")
    return [row.id for row in found[:MANY]]


def hide(box: SandboxServer, people: list[int]) -> None:
    """Their visits are cancelled."""
    for patient in people:
        for visit in list(box.state.store("appointments").find("patient_id", patient)):
            box.state.cancel(visit.id)


def test_those_that_are_there_by_id_are_kept_where_they_were_and_one_that_is_not_is_gone(
    settings: Settings, box: SandboxServer, rows: Rows, people: list[int]
) -> None:
    """Risk: the brake holds every reconcile of the practice for good, and they leave their locations."""
    sync_all(settings, FULL, only={"patients"})
    before = rows(MEMBERS)
    assert {patient for patient, _ in before} >= {*people}
    hide(box, people)
    victim = people.pop()
    box.state.delete("patients", victim, hard=True)
    box.requests.clear()

    results = sync_all(settings, RECONCILE, only={"patients"})
    assert told(results, "patients") == {f"willow-dental.{NORTH}": ("succeeded", None)}
    (absence,) = figures(results, "patients")
    assert (absence.missing, absence.found, absence.confirmed, absence.tombstoned) == (MANY, MANY - 1, 1, 1)
    asked = sorted(one.path for one in box.requests if one.path.startswith("/patients/"))
    assert asked == sorted(f"/patients/{number}" for number in (*people, victim))
    assert gone(rows, "patients") == {victim}
    assert rows(MEMBERS) == [one for one in before if one[0] != victim]


def test_so_many_that_are_gone_are_held_all_the_same(
    settings: Settings, box: SandboxServer, rows: Rows, people: list[int]
) -> None:
    """Risk: an institution whose single reads fail with 404 loses all of them at once."""
    sync_all(settings, FULL, only={"patients"})
    hide(box, people)
    for patient in people:
        box.state.delete("patients", patient, hard=True)
    results = sync_all(settings, RECONCILE, only={"patients"})
    (absence,) = figures(results, "patients")
    assert (absence.braked, absence.confirmed, absence.tombstoned) == (True, MANY, 0)
    assert f"{MANY} of" in str(told(results, "patients")[f"willow-dental.{NORTH}"][1])
    assert gone(rows, "patients") == set()
    sync_all(settings, replace(RECONCILE, allow_mass_delete=True), only={"patients"})
    assert gone(rows, "patients") == {*people}


def test_those_that_were_not_asked_for_are_taken_to_be_like_those_that_were(
    settings: Settings, box: SandboxServer, rows: Rows, people: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: of thousands that are gone just so many are asked for as the brake lets go, each week again."""
    sync_all(settings, FULL, only={"patients"})
    hide(box, people)
    for patient in people:
        box.state.delete("patients", patient, hard=True)
    monkeypatch.setattr(verdict, "MOST_AT_ONCE", 8)
    results = sync_all(settings, RECONCILE, only={"patients"})
    (absence,) = figures(results, "patients")
    assert (absence.braked, absence.confirmed, absence.tombstoned) == (True, 8, 0)
    assert f"{MANY} of" in str(told(results, "patients")[f"willow-dental.{NORTH}"][1])
    sync_all(settings, replace(RECONCILE, allow_mass_delete=True), only={"patients"})
    assert gone(rows, "patients") == {*people}


def test_others_that_are_gone_say_nothing_of_those_that_were_not_asked_for(
    settings: Settings, box: SandboxServer, rows: Rows, people: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_all(settings, FULL, only={"patients"})
    hide(box, people)
    others = [number for (number,) in rows(f"SELECT id FROM nexhealth_patients WHERE {PLACED} ORDER BY id LIMIT 7")]
    for patient in others:
        box.state.delete("patients", patient, hard=True)
    monkeypatch.setattr(verdict, "MOST_AT_ONCE", 8)
    results = sync_all(settings, RECONCILE, only={"patients"})
    (absence,) = figures(results, "patients")
    assert (absence.braked, absence.found, absence.confirmed, absence.tombstoned) == (False, 8, 7, 7)
    assert gone(rows, "patients") == {*others}


def test_a_new_patient_that_no_list_ever_showed_is_no_lack(
    settings: Settings, box: SandboxServer, rows: Rows, people: list[int]
) -> None:
    """The first sync brings all that is listed, and whoever has an appointment again comes with the next whole read."""
    hide(box, people)
    sync_all(settings, FULL, only={"patients"})
    shown = [one for one in truth(box.state, "patients") if one["institution_id"] == 11201]
    listed = {one["record"]["id"] for one in shown if not one.get("unlisted")}
    assert {one["record"]["id"] for one in shown} == listed | {*people}
    assert {number for (number,) in rows("SELECT id FROM nexhealth_patients")} == listed
    visit = min(row.id for row in box.state.store("appointments").find("patient_id", people[0]))
    box.state.update("appointments", visit, {"cancelled": False})
    sync_all(settings, FULL, only={"patients"})
    assert {number for (number,) in rows("SELECT id FROM nexhealth_patients")} == listed | {people[0]}
