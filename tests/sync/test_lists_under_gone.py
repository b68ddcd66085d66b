"""Documents of a patient who is gone: they go with the patient, whenever their list was read."""

import threading
from dataclasses import replace

import pytest

from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.patient import refresh_patient

from .kit import Rows, open_session, sync_all
from .reconciled import DESERT, FULL, RECONCILE, figures, gone, practice

pytestmark = pytest.mark.small_box(visits=0)


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


def test_a_document_that_came_while_a_reconcile_lay_still_goes_with_its_patient(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written after the reconcile had begun, and so it was taken for newer than what said that the patient is gone."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 2)
    sync_all(settings, FULL, only={"patients", "documents"})
    patient = rows(f"SELECT max(patient_id) FROM nexhealth_patient_locations WHERE location_id = {DESERT}")[0][0]
    (began,) = rows("SELECT clock_timestamp()")[0]
    stop, small = threading.Event(), replace(RECONCILE, batch_pages=1, concurrency=1, fresh_after=began)

    def after_one(label: str, pages: int, records: int) -> None:
        if label == f"patients willow-dental.{DESERT}":
            stop.set()

    sync_all(settings, small, only={"patients"}, on_progress=after_one, stop=stop)
    box.state.create("documents", subdomain="willow-dental", patient_id=patient)
    with open_session(settings) as session:
        refresh_patient(session, session.practices(), patient)
    theirs = f"SELECT id FROM nexhealth_documents WHERE patient_id = {patient}"
    assert rows(f"{theirs} AND synced_at > '{began}'"), "the new one"
    box.state.delete("patients", patient, hard=True)
    sync_all(settings, small, only={"patients"})
    assert gone(rows, "patients") == {patient}
    assert gone(rows, "documents") == {number for (number,) in rows(theirs)}


def test_a_list_that_is_committed_after_its_patient_was_marked_is_marked_by_the_next_reconcile(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Another run had asked for it before, and was about to write it. No list of that patient is asked for any more."""
    sync_all(settings, FULL, only={"patients", "documents"})
    (patient,) = rows("SELECT patient_id FROM nexhealth_documents ORDER BY 1 LIMIT 1")[0]
    box.state.delete("patients", patient, hard=True)
    sync_all(settings, RECONCILE, only={"patients"})
    theirs = gone(rows, "documents")
    assert theirs
    rows("UPDATE nexhealth_documents SET deleted_at = NULL, deleted_by = NULL WHERE deleted_at IS NOT NULL RETURNING 1")
    results = sync_all(settings, RECONCILE, only={"patients"})
    assert gone(rows, "documents") == theirs
    (absence,) = figures(results, "documents")
    assert absence.tombstoned == len(theirs)
    assert rows("SELECT sum(tombstoned) FROM nexhealth_sync_logs WHERE collection = 'documents'") == [
        (2 * len(theirs),)
    ]
    before = rows("SELECT id, xmin FROM nexhealth_documents ORDER BY 1")
    assert figures(sync_all(settings, RECONCILE, only={"patients"}), "documents") == []
    assert rows("SELECT id, xmin FROM nexhealth_documents ORDER BY 1") == before
