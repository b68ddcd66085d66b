"""Offices that no status names: nobody knows which of them share an EHR database, so their own lists say whose a patient is."""

from typing import Any

import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.sandbox.truth import truth
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.slices import Status

from .kit import Rows, sync_all
from .reconciled import DESERT, FULL, NORTH, RECONCILE, SOUTH, gone, practice

pytestmark = pytest.mark.small_box(visits=0)

ONLY = {"patients", "documents"}
OWN_LISTS = ("location_strict", "true")


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


def listed(rows: Rows) -> set[tuple[Any, ...]]:
    return set(rows("SELECT location_id, patient_id FROM nexhealth_patient_locations WHERE gone_at IS NULL"))


def told(box: SandboxServer) -> set[tuple[int, int]]:
    """What the offices' own lists say, by the server itself."""
    return {
        (location, row["record"]["id"])
        for row in truth(box.state, "patients")
        for location in row["location_ids"]
        if location in (NORTH, SOUTH, DESERT) and "unlisted" not in row
    }


@pytest.mark.parametrize("all_of_it", [True, False], ids=["no status", "statuses of nobody"])
def test_patients_are_noted_at_the_offices_that_list_them(
    settings: Settings, box: SandboxServer, rows: Rows, all_of_it: bool
) -> None:
    """Each was noted at every office of the database, in silence: each office counted as alone in one of its own."""
    for number in box.state.ids("sync_status"):
        if all_of_it:
            box.state.delete("sync_status", number)
        else:
            box.state.update("sync_status", number, {}, about={"location_ids": []})
    assert {one.status for one in sync_all(settings, FULL, only={"patients"})} == {Status.SUCCEEDED}
    assert listed(rows) == told(box)
    in_two = "SELECT count(DISTINCT location_id) = 1 FROM nexhealth_patient_locations GROUP BY patient_id"
    assert (True,) in rows(in_two), "else the whole list would say the same"


def test_offices_that_a_status_names_later_are_read_as_it_says(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """What was noted of their own lists while nobody knew must hold nothing up, nor end a membership."""
    names = {one: box.state.row("sync_status", one).facts["location_ids"] for one in (35, 36)}
    for number in names:
        box.state.update("sync_status", number, {}, about={"location_ids": []})
    sync_all(settings, FULL, only=ONLY)
    for number, ids in names.items():
        # A closed office was in the last one's as well, which would still count as one that shares it.
        here = [one for one in ids if one in (NORTH, SOUTH, DESERT)]
        box.state.update("sync_status", number, {"read_status": "green"}, about={"location_ids": here})
    before = rows("SELECT location_id, complete_through FROM nexhealth_freshness WHERE collection = 'documents'")
    box.requests.clear()

    results = sync_all(settings, only=ONLY)
    assert {one.status for one in results} == {Status.SUCCEEDED}, [one.reason for one in results if one.reason]
    strict = {one.param("location_id") for one in box.requests.matching("/patients") if OWN_LISTS in one.params}
    assert strict == {str(NORTH), str(SOUTH)}, "the third is alone now"
    assert listed(rows) == told(box)
    for location, through in before:
        query = f"SELECT complete_through FROM nexhealth_freshness WHERE collection = 'documents' AND location_id = {location}"
        assert rows(query)[0][0] > through, location

    theirs = min(patient for location, patient in told(box) if location == DESERT)
    box.state.delete("patients", theirs, hard=True)
    assert {one.status for one in sync_all(settings, RECONCILE, only=ONLY)} == {Status.SUCCEEDED}
    assert gone(rows, "patients") == {theirs}
    assert listed(rows) == told(box)
