"""An office that comes to share another's EHR database: from then on one reads for both, and nothing falls between."""

from datetime import UTC, datetime, timedelta

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.plan import due_slices
from nexhealth_pipeline.sync.runner import run_slices

from .kit import Rows, open_session, sync_all
from .reconciled import DESERT, FULL, NORTH, SOUTH, practice

pytestmark = pytest.mark.small_box(visits=0)

CHANGES = SyncOptions(overlap=timedelta(0))
QUICK = RetryPolicy(attempts=2, sleep=lambda _: None)
ONLY = {"patients"}
STATE = "nexhealth_sync_state WHERE collection = 'patients' AND pass = 'all'"


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    # A closed office was in it as well, which would still count as one that shares it.
    box.state.update("sync_status", 36, {}, about={"location_ids": [DESERT]})
    return practice(box, database_url, "willow-dental")


def join(box: SandboxServer) -> None:
    """The office with a database of its own comes into that of the other two, with all its patients."""
    state = box.state
    own = state.row("locations", DESERT).facts["database"]
    for number in state.ids("patients"):
        if state.row("patients", number).facts["database"] == own:
            state.update("patients", number, {}, about={"database": 35}, touch=False)
    state.update("locations", DESERT, {}, about={"database": 35})
    state.update("sync_status", own, {}, about={"location_ids": []})
    state.update("sync_status", 35, {}, about={"location_ids": [NORTH, SOUTH, DESERT]})


def read_alone(settings: Settings, location: int) -> None:
    with open_session(settings) as session:
        due = due_slices([COLLECTIONS["patients"]], session.practices(), {}, CHANGES, datetime.now(UTC).date())
        list(run_slices(session, [one for one in due if one.location_id == location], CHANGES))


def test_who_had_fallen_behind_is_caught_up_by_whoever_reads_for_it_from_then_on(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """The one with the lowest number reads for all, since it had read last itself: what the other lacked by then waited
    for the next reconcile, and the copy said that it was complete.
    """
    sync_all(settings, FULL, only=ONLY)
    ago = ", ".join(f"{name} = {name} - interval '2 hours'" for name in ("watermark", "pass_started_at", "fresh_at"))
    ((mark,),) = rows(
        f"UPDATE nexhealth_sync_state SET {ago} WHERE collection = 'patients' AND location_id = {DESERT} RETURNING watermark"
    )
    ((patient,),) = rows(
        "SELECT p.id FROM nexhealth_patients p JOIN nexhealth_patient_locations l ON l.patient_id = p.id"
        f" WHERE l.location_id = {DESERT} ORDER BY p.updated_at, p.id LIMIT 1"
    )
    changed = datetime.now(UTC) - timedelta(hours=1)
    box.state.update("patients", patient, {"first_name": "Changed", "updated_at": changed.strftime("%FT%T.000Z")})
    join(box)
    sync_all(settings, CHANGES, only=set())
    through = "SELECT complete_through FROM nexhealth_freshness WHERE collection = 'patients' AND location_id"

    read_alone(settings, DESERT)
    assert rows(f"{through} = {DESERT}") == [(mark,)], "who reads for it now has not read yet"
    box.faults.add("status", path="/patients", query="location_strict=false")
    sync_all(settings, CHANGES, only=ONLY, retry=QUICK)
    assert rows(f"{through} IN ({SOUTH}, {DESERT})") == [(mark,), (mark,)], "or could not"
    box.faults.clear()

    sync_all(settings, CHANGES, only=ONLY)
    assert rows(f"SELECT first_name FROM nexhealth_patients WHERE id = {patient}") == [("Changed",)]
    assert rows(f"SELECT location_id FROM {STATE}") == [(NORTH,)]
    box.requests.clear()
    sync_all(settings, CHANGES, only=ONLY)
    (asked,) = [one for one in box.requests.matching("/patients") if one.param("location_strict") == "false"]
    assert datetime.fromisoformat(str(asked.param("updated_since"))) > changed, "once is enough"
    assert {one for (one,) in rows(f"{through} IN ({NORTH}, {SOUTH}, {DESERT})") if one <= changed} == set()


def test_who_was_never_read_to_the_end_is_read_whole_by_whoever_reads_for_it_from_then_on(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All it had from before the other's last read would wait for the next reconcile."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 5)
    box.faults.add("status", path="/patients", query="end_cursor=.", location_id=DESERT)
    sync_all(settings, FULL, only=ONLY, retry=QUICK)
    box.faults.clear()
    assert rows(f"SELECT location_id FROM {STATE} AND watermark IS NULL") == [(DESERT,)]
    join(box)
    sync_all(settings, CHANGES, only=ONLY)
    here = [one for one in box.state.ids("patients") if box.state.row("patients", one).facts["database"] == 35]
    assert {one for (one,) in rows("SELECT id FROM nexhealth_patients")} == set(here)
