"""An office that NexHealth reads no more, in an EHR database that another one still reads: its patients stay its own."""

from collections import defaultdict
from dataclasses import replace

import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings

from .kit import Rows, sync_all
from .reconciled import FULL, NORTH, RECONCILE, SOUTH, gone, practice

pytestmark = pytest.mark.small_box(visits=0)

ONLY = {"patients"}


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


def listed(rows: Rows) -> dict[int, set[int]]:
    """Patients by location."""
    found: dict[int, set[int]] = defaultdict(set)
    for location, patient in rows(
        "SELECT location_id, patient_id FROM nexhealth_patient_locations WHERE gone_at IS NULL"
    ):
        found[location].add(patient)
    return found


@pytest.mark.parametrize(("off", "left"), [(NORTH, SOUTH), (SOUTH, NORTH)])
def test_the_office_that_is_left_lists_nobody_but_its_own(
    settings: Settings, box: SandboxServer, rows: Rows, off: int, left: int
) -> None:
    """Nobody shared the database any more, it seemed, and so all that are in it were noted at the one that is left."""
    sync_all(settings, FULL, only=ONLY)
    before = listed(rows)
    theirs = min(before[off] - before[left])
    box.state.update("locations", off, {"inactive": True})
    box.state.update("patients", theirs, {"first_name": "Changed"})
    sync_all(settings, only=ONLY)
    assert listed(rows) == before
    assert rows(f"SELECT first_name FROM nexhealth_patients WHERE id = {theirs}") == [("Changed",)]
    sync_all(settings, replace(RECONCILE, allow_mass_delete=True), only=ONLY)
    assert listed(rows) == before
    assert gone(rows, "patients") == set()
