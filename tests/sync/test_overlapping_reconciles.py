"""Two reconciles of one practice at once: what the second has not met again yet is not gone."""

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import reconcile
from nexhealth_pipeline.sync.confirm import Confirmation
from nexhealth_pipeline.warehouse.seen import SeenPass, begin_seen, record_seen, seen_passes
from nexhealth_pipeline.warehouse.state import PassKey, database_time

from .kit import Rows, sync_all
from .reconciled import DESERT, FULL, NORTH, RECONCILE, SOUTH, practice, told

pytestmark = pytest.mark.small_box(visits=2)


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    made = practice(box, database_url, "willow-dental")
    sync_all(made, FULL, only={"patients"})
    return made


def test_a_read_begun_anew_while_missing_rows_are_asked_for_ends_no_membership(
    settings: Settings, box: SandboxServer, rows: Rows, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the finding and the marking lie the single reads: minutes, in which another run forgets what was met."""
    listed = f"SELECT patient_id FROM nexhealth_patient_locations WHERE location_id = {DESERT} AND gone_at IS NULL"
    before = {one for (one,) in rows(listed)}
    victim = min(before)
    box.state.delete("patients", victim, hard=True)
    ask = Confirmation.run

    def meanwhile(self: Confirmation, width: int) -> None:
        ask(self, width)
        with psycopg.connect(database_url) as other:
            (institution,) = rows("SELECT DISTINCT institution_id FROM nexhealth_patient_locations")[0]
            for key in seen_passes(other, "patients", institution):
                begun = begin_seen(other, key, database_time(other))
                record_seen(other, begun, [str(max(before))])

    monkeypatch.setattr(Confirmation, "run", meanwhile)
    sync_all(settings, replace(RECONCILE, allow_mass_delete=True), only={"patients"})
    assert {one for (one,) in rows(listed)} == before - {victim}
    assert rows("SELECT id FROM nexhealth_patients WHERE deleted_by = 'absence'") == [(victim,)]


def test_what_another_run_has_begun_to_read_again_is_left_for_it_to_judge(
    settings: Settings, rows: Rows, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: noted as judged, one list of a database keeps that run from judging by it and the list read anew."""

    def meanwhile(*asked: Any) -> dict[PassKey, SeenPass]:
        found = seen_passes(*asked)
        with psycopg.connect(database_url) as other:
            for key in found:
                if key.location_id == SOUTH:
                    begin_seen(other, key, database_time(other))
        return found

    monkeypatch.setattr(reconcile, "seen_passes", meanwhile)
    results = sync_all(settings, RECONCILE, only={"patients"})
    assert "another run has begun" in str(told(results, "patients")[f"willow-dental.{NORTH}"])
    judged = f"SELECT bool_or(judged_at IS NOT NULL) FROM nexhealth_seen_passes WHERE location_id IN ({NORTH}, {SOUTH})"
    assert rows(judged) == [(False,)]
