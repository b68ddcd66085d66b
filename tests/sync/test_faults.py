"""A server that misbehaves: passing faults change nothing, lasting ones fail their slice and no other."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.slices import Status

from .kit import Rows, sync_all
from .test_full import assert_equal

QUICK = RetryPolicy(sleep=lambda _: None)
SOME = {"patients", "operatories", "providers"}
FULL = SyncOptions(mode=Mode.FULL)


def test_passing_faults_on_lists_patients_and_tokens_change_nothing(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """5 % errors of each kind, two malformed answers for each page, tokens that expire all the time."""
    box.faults.add("status", probability=0.05, status=500)
    box.faults.add("throttle", probability=0.03, retry_after="seconds", seconds=0)
    box.faults.add("throttle", probability=0.03, retry_after="date", seconds=0)
    box.faults.add("throttle", probability=0.03, retry_after="none")
    box.faults.add("cut", probability=0.03)
    box.faults.add("malformed", path="/(patients|providers).*", count=2, per_url=True)
    box.faults.add("token_expired", probability=0.03, path="/(?!authenticates).*", count=1, per_url=True)
    box.faults.add("status", path="/authenticates", probability=0.2, status=503)
    # A token that expires costs an attempt of whoever is under way with it, so that a hundred of them, at whatever
    # moment each comes, can use up the ten of a request that does not wait in between.
    results = sync_all(settings, FULL, retry=replace(QUICK, attempts=30))
    assert {result.status for result in results} == {Status.SUCCEEDED}, [r.reason for r in results if r.reason]
    assert_equal(box, rows)
    total = rows("SELECT sum(requests), sum(retries) > 0 FROM nexhealth_sync_logs")
    assert total == [(len(box.requests), True)]


@pytest.mark.parametrize("kind", ["malformed", "html", "code_false", "status", "repeated_page", "cursor_loop"])
def test_a_lasting_fault_fails_its_slice_and_no_other(
    kind: str, settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a success: a list cut short by a bad page would look like deleted patients."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 5)
    location = rows_location(settings, rows)
    box.faults.add(kind, path="/patients", location_id=location, skip=1)
    results = sync_all(settings, FULL, only=SOME, retry=QUICK)
    failed = [result for result in results if result.status is Status.FAILED]
    assert [(result.slice.collection.name, result.slice.location_id) for result in failed] == [("patients", location)]
    assert f"location {location}" in (failed[0].reason or "") or str(location) in (failed[0].reason or "")
    assert rows(
        f"SELECT status FROM nexhealth_sync_logs WHERE collection = 'patients' AND location_id = {location}"
    ) == [("failed",)]
    state = rows(
        f"SELECT watermark FROM nexhealth_sync_state WHERE collection = 'patients' AND location_id = {location}"
    )
    assert state in ([], [(None,)])
    box.faults.clear()
    healed = sync_all(settings, SyncOptions(mode=Mode.INCREMENTAL), only=SOME, retry=QUICK)
    assert {result.status for result in healed} == {Status.SUCCEEDED}
    assert_equal(box, rows, SOME)


def rows_location(settings: Settings, rows: Rows) -> int:
    """A location that owns a database alone."""
    sync_all(settings, FULL, only=set())
    query = (
        "SELECT (locations->0->>'id')::bigint FROM nexhealth_sync_status WHERE jsonb_array_length(locations) = 1"
        " AND NOT EXISTS (SELECT FROM nexhealth_locations l WHERE l.id = (locations->0->>'id')::bigint AND l.inactive)"
        " ORDER BY 1 LIMIT 1"
    )
    return int(str(rows(query)[0][0]))


def test_a_bad_record_goes_to_quarantine_and_the_rest_loads(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """One record that cannot be stored must not stop a practice's load, nor be lost."""
    first, second = box.state.ids("patients")[:2]
    box.state.update("patients", first, {"bio": {"date_of_birth": "2024-02-30"}})
    box.state.update("patients", second, {"email": "nul\x00@example.com"})
    results = sync_all(settings, FULL, only={"patients"})
    assert {result.status for result in results} == {Status.SUCCEEDED}
    assert sum(result.new_notes for result in results) == 1
    assert rows("SELECT record_id, field, loaded FROM nexhealth_quarantine") == [
        (str(first), "bio_date_of_birth", True)
    ]
    assert rows(f"SELECT bio_date_of_birth FROM nexhealth_patients WHERE id = {first}") == [(None,)]
    assert rows(f"SELECT email FROM nexhealth_patients WHERE id = {second}") == [("nul\u2400@example.com",)]
    again = sync_all(settings, FULL, only={"patients"})
    assert sum(result.new_notes for result in again) == 0


def test_an_older_version_never_replaces_a_newer_one(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    patient = box.state.ids("patients")[0]
    sync_all(settings, FULL, only={"patients"})
    rows_before = rows(f"SELECT first_name, updated_at FROM nexhealth_patients WHERE id = {patient}")
    box.state.update("patients", patient, {"first_name": "Older", "updated_at": "2001-01-01T00:00:00.000Z"})
    sync_all(settings, FULL, only={"patients"})
    assert rows(f"SELECT first_name, updated_at FROM nexhealth_patients WHERE id = {patient}") == rows_before


def test_no_access_to_insurance_is_recorded_and_fails_nothing(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """The vendor enables finance per practice; until then 403 is an answer, not an outage."""
    box.faults.add(
        "status", path="/insurance_plans", status=403, message="You don't have access to perform this action"
    )
    results = sync_all(settings, FULL, only={"insurance_plans", "providers"})
    assert {str(result.status) for result in results} == {"succeeded", "skipped"}
    assert rows("SELECT DISTINCT collection, status FROM nexhealth_capabilities WHERE status = 'not_enabled'") == [
        ("insurance_plans", "not_enabled")
    ]


def test_documents_are_no_fresher_than_their_patients(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """Nobody due because patients could not be read must not look like a copy that is up to date."""
    sync_all(settings, FULL, only={"patients", "documents"})
    fresh = "SELECT location_id, complete_through FROM nexhealth_freshness WHERE collection = 'documents' ORDER BY 1"
    before = rows(fresh)
    box.faults.add("status", path="/patients", status=400)
    results = sync_all(settings, only={"patients", "documents"})
    assert {str(r.status) for r in results if r.slice.collection.name == "patients"} == {"failed"}
    patients: dict[Any, Any] = dict(
        rows("SELECT location_id, complete_through FROM nexhealth_freshness WHERE collection = 'patients' ORDER BY 1")
    )
    assert all(through <= max(patients.values()) for _, through in rows(fresh))
    assert [location for location, _ in rows(fresh)] == [location for location, _ in before]


def test_documents_of_patients_never_read_are_not_complete(settings: Settings, box: SandboxServer) -> None:
    box.faults.add("status", path="/patients", status=400)
    results = sync_all(settings, only={"patients", "documents"})
    documents = [result for result in results if result.slice.collection.name == "documents"]
    assert {(str(result.status), result.complete) for result in documents} == {("succeeded", False)}


def test_one_patients_bad_list_does_not_starve_the_patients_after(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """The slice fails and names the cause; every other patient's documents are there."""
    sync_all(settings, FULL, only={"patients"})
    (bad,) = rows("SELECT patient_id FROM nexhealth_patient_locations ORDER BY patient_id LIMIT 1")
    box.faults.add("malformed", path=f"/patients/{bad[0]}/documents")
    for _ in range(2):
        results = sync_all(settings, only={"patients", "documents"}, retry=QUICK)
        failed = [result for result in results if result.status is Status.FAILED]
        assert [result.slice.collection.name for result in failed] == ["documents"]
        assert "1 single reads of" in (failed[0].reason or "")
    assert rows("SELECT count(*) FROM nexhealth_child_reads") == [(len(box.state.ids("patients")) - 1,)]
    box.faults.clear()
    sync_all(settings, only={"patients", "documents"})
    assert_equal(box, rows, {"patients", "documents"})


def test_a_location_whose_every_list_fails_is_given_up_soon(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    sync_all(settings, FULL, only={"patients"})
    box.faults.add("status", path="/patients/[0-9]+/documents", status=400)
    box.requests.clear()
    results = sync_all(settings, only={"documents"}, retry=QUICK)
    documents = [result for result in results if result.slice.collection.name == "documents"]
    assert {str(result.status) for result in documents} == {"failed"}
    assert len(box.requests.matching("/patients/[0-9]+/documents")) <= 25 * len(documents)


def test_pages_that_hold_less_than_the_api_counts_are_no_success(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an answer says how many there are, a list that ends early is known by it."""
    pages = NexHealthClient.pages

    def counted(client: NexHealthClient, request: ApiRequest, **more: Any) -> Iterator[Page]:
        for page in pages(client, request, **more):
            yield replace(page, total=len(page.records) + (request.path == "/providers"))

    monkeypatch.setattr(NexHealthClient, "pages", counted)
    results = sync_all(settings, FULL, only={"providers", "operatories"}, retry=QUICK)
    assert {r.slice.collection.name for r in results if r.status is Status.FAILED} == {"providers"}
    assert all("rows are missing" in (r.reason or "") for r in results if r.status is Status.FAILED)
    monkeypatch.setattr(NexHealthClient, "pages", pages)
    assert {str(result.status) for result in sync_all(settings, only=SOME)} == {"succeeded"}
    assert_equal(box, rows, SOME)
