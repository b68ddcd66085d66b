"""A sync whose predecessor ended early, or whose API tells another time, misses nothing."""

import time
from datetime import datetime

import pytest

from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions

from .kit import Rows, sync_all
from .reconciled import NORTH
from .test_full import assert_equal


def test_a_server_that_repeats_pages_is_never_believed_however_often_it_is_asked(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new sync resumed one page further and committed the repeated page, until the list looked complete."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 5)
    box.faults.add("repeated_page", path="/patients")
    for _ in range(6):
        results = sync_all(
            settings, SyncOptions(batch_pages=1), only={"patients"}, retry=RetryPolicy(sleep=lambda _: None)
        )
        read = [result for result in results if result.slice.collection.name == "patients"]
        assert {str(result.status) for result in read} == {"failed"}
    box.faults.clear()
    sync_all(settings, only={"patients"})
    assert_equal(box, rows, {"patients"})


@pytest.mark.parametrize("ahead", [-7200, 300, 7200])
def test_a_clock_of_the_api_that_is_off_hides_no_change(
    ahead: int, database_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fresh is judged by the database's clock: by the API's, a sync right after another read nothing."""
    with SandboxServer(patients=30, limits=False, clock=lambda: time.time() + ahead) as box:
        settings = load_settings(
            {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEY": box.api_key, "DATABASE_URL": database_url},
            environ={},
            env_file=None,
        )
        for mode in (Mode.FULL, Mode.FULL, Mode.INCREMENTAL):
            box.state.update("patients", box.state.ids("patients")[0], {"first_name": mode})
            now = rows("SELECT clock_timestamp()")[0][0]
            assert isinstance(now, datetime)
            results = sync_all(settings, SyncOptions(mode=mode, fresh_after=now), only={"patients", "documents"})
            assert {str(result.status) for result in results} == {"succeeded"}
            assert rows("SELECT count(*) FROM nexhealth_patients WHERE first_name = '" + mode + "'") == [(1,)]


def test_rows_without_a_version_that_a_wrong_clock_met_unchanged_are_taken_when_they_change(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: read last by a clock three days ahead, what is asked for again comes from before that, and is refused.

    A row that was written by that clock says so itself, and is refused for as long.
    """
    sync_all(settings, SyncOptions(mode=Mode.FULL), only={"payment_plans"})
    ahead = "watermark = now() + interval '3 days', pass_started_at = now() + interval '3 days'"
    rows(
        f"UPDATE nexhealth_sync_state SET {ahead}, fresh_at = now() - interval '1 day'"
        " WHERE collection = 'payment_plans' RETURNING 1"
    )
    plan = box.state.ids("payment_plans")[0]
    active = not box.state.row("payment_plans", plan).record()["active"]
    box.state.update("payment_plans", plan, {"active": active})
    sync_all(settings, only={"payment_plans"})
    assert rows(f"SELECT active FROM nexhealth_payment_plans WHERE id = {plan}") == [(active,)]


@pytest.mark.small_box(visits=0)
@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize("mode", list(Mode))
def test_a_clock_of_the_database_that_was_ahead_hides_no_change(
    mode: Mode, unfinished: bool, settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: what was read by it counts as read already until that time has come, and every sync is green."""
    names = {"patients", "documents"}
    sync_all(settings, SyncOptions(mode=mode), only=names)
    then = "now() + interval '3 days'"
    rows(f"UPDATE nexhealth_sync_state SET begun_at = {then}, fresh_at = {then}, full_at = {then} RETURNING 1")
    rows(f"UPDATE nexhealth_seen_passes SET begun_at = {then} RETURNING 1")
    rows(f"UPDATE nexhealth_child_reads SET read_at = {then}, judged_at = {then} RETURNING 1")
    if unfinished:
        rows("UPDATE nexhealth_sync_state SET watermark = watermark - interval '1 s', cursor = 'x' RETURNING 1")
    patient = box.state.ids("patients")[0]
    where = f"WHERE patient_id IN (SELECT patient_id FROM nexhealth_patient_locations WHERE location_id = {NORTH})"
    (document, other) = rows(f"SELECT min(id), max(id) FROM nexhealth_documents {where}")[0]
    box.state.update("patients", patient, {"first_name": "Later"})
    box.state.update("documents", document, {"filename": "later.pdf"})
    box.state.delete("documents", other, hard=True)
    now = rows("SELECT clock_timestamp()")[0][0]
    results = sync_all(settings, SyncOptions(mode=mode, fresh_after=now), only=names)
    assert {str(result.status) for result in results if result.absence is None} == {"succeeded"}
    assert rows(f"SELECT first_name FROM nexhealth_patients WHERE id = {patient}") == [("Later",)]
    if mode.whole:
        assert rows(f"SELECT filename FROM nexhealth_documents WHERE id = {document}") == [("later.pdf",)]
    if mode is Mode.RECONCILE:
        assert rows(f"SELECT deleted_by FROM nexhealth_documents WHERE id = {other}") == [("absence",)]
