"""Short transactions that PostgreSQL ends because of another one's: none ends the sync, and what is made again counts once.

Those of pages, of lists under rows and of marks: test_database_faults.
"""

from types import ModuleType

import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import keeper, patient, reader, reconcile
from nexhealth_pipeline.sync.patient import refresh_patient
from nexhealth_pipeline.warehouse.absence import Missing

from .ended import ended_once
from .kit import Rows, open_session, sync_all
from .reconciled import DESERT, FULL, RECONCILE, at_patient, figures, gone, practice
from .test_full import subdomain_of

pytestmark = pytest.mark.small_box(visits=0)


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    """One practice of the two."""
    return practice(box, database_url, "willow-dental")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        pytest.param(keeper, "begin_seen", id="begin of a pass"),
        pytest.param(keeper, "complete_seen", id="end of lists under rows"),
        pytest.param(reader, "record_freshness", id="what is known of a slice"),
        pytest.param(reconcile, "judged", id="what was judged"),
    ],
)
def test_what_is_noted_of_a_read_is_noted_again(
    where: ModuleType,
    name: str,
    settings: Settings,
    box: SandboxServer,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Risk: a night of a thousand locations ends, or a reconcile has marked what is gone at the first ones only."""
    sync_all(settings, FULL, only={"patients", "documents"})
    (document,) = rows("SELECT min(id) FROM nexhealth_documents")[0]
    box.state.delete("documents", document, hard=True)
    calls = ended_once(monkeypatch, where, name)
    results = sync_all(settings, RECONCILE, only={"documents"})
    assert len(calls) > 1
    assert {str(one.status) for one in results} == {"succeeded"}
    assert gone(rows, "documents") == {document}
    assert rows("SELECT count(*) FROM nexhealth_seen_passes WHERE judged_at IS NULL") == [(0,)]


def test_a_row_that_its_single_read_still_has_is_loaded_again(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a reconcile asks for what lists lack, webhooks write the same rows."""
    sync_all(settings, FULL, only={"patients"})
    number = at_patient(rows, DESERT)
    box.state.update("patients", number, {"first_name": "Hidden"}, about={"location_ids": [], "database": 999})
    calls = ended_once(monkeypatch, Missing, "confirm")
    results = sync_all(settings, RECONCILE, only={"patients"})
    assert len(calls) == 3, "noted as there, made again, and none as gone"
    (absence,) = figures(results, "patients")
    assert (absence.missing, absence.confirmed, absence.found, absence.tombstoned) == (1, 0, 1, 0)
    (counts,) = [one.counts for one in results if one.absence == absence]
    assert (counts.requests, counts.records_read, counts.updated) == (1, 1, 1)
    assert rows(f"SELECT first_name, deleted_at FROM nexhealth_patients WHERE id = {number}") == [("Hidden", None)]


@pytest.mark.parametrize("name", ["record_child_reads", "record_locations"])
def test_one_patient_is_loaded_again(
    name: str, settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody waits for the answer, who would be told of a failure that is none."""
    sync_all(settings, FULL, only={"patients", "documents"})
    (number,) = rows("SELECT min(id) FROM nexhealth_patients")[0]
    box.state.create("documents", subdomain=subdomain_of(rows, "patients", number), patient_id=number)
    calls = ended_once(monkeypatch, patient, name)
    with open_session(settings) as session:
        done = refresh_patient(session, session.practices(), number)
    assert len(calls) > 1
    results = {one.slice.collection.name: one for one in done}
    assert "failed" not in {str(one.status) for one in done}
    address = results["patient_addresses"].counts
    assert (address.records_read, address.inserted) == (1, 1)
    assert results["documents"].counts.inserted == 1
    logged = "SELECT collection, sum(inserted)::int FROM nexhealth_sync_logs WHERE mode = 'patient' AND inserted > 0 GROUP BY 1"
    inserted: dict[str, int] = dict(rows(logged))
    assert inserted["patient_addresses"] == 1
