"""One patient on demand: everything about that patient, nothing else, and no watermark moves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import InvalidSetting, KeyRefused, MissingSetting
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.patient import _KNOWN, _guarantor, _location_ids, _version, refresh_patient
from nexhealth_pipeline.sync.slices import SliceResult
from nexhealth_pipeline.warehouse.checks import CHECKS, run
from tests.effort import pages_looked_at

from .kit import LISTS_READ, Rows, noting_loads, open_session, sync_all
from .test_full import assert_equal, subdomain_of


def refresh(settings: Settings, patient_id: int) -> dict[str, SliceResult]:
    with open_session(settings) as session:
        results = refresh_patient(session, session.practices(), patient_id)
    return {result.slice.collection.name: result for result in results}


def test_one_patient_is_refreshed_with_everything_about_it(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    sync_all(settings, SyncOptions(mode=Mode.FULL))
    patient, guarantor = rows(
        "SELECT p.id, p.guarantor_id FROM nexhealth_patients p JOIN nexhealth_appointments a ON a.patient_id = p.id"
        " WHERE p.guarantor_id NOT IN (0, p.id) ORDER BY a.id LIMIT 1"
    )[0]
    state = rows("SELECT * FROM nexhealth_sync_state ORDER BY 1, 2, 3, 4, 5")
    box.state.update("patients", int(str(patient)), {"first_name": "Changed"})
    box.state.update("patients", int(str(guarantor)), {"first_name": "Payer"})
    ((balance,),) = rows(f"SELECT id FROM nexhealth_guarantor_balances WHERE guarantor_id = {guarantor}")
    box.state.update("guarantor_balances", balance, {"foreign_id": "changed"})
    box.state.create("documents", subdomain=subdomain_of(rows, "patients", int(str(patient))), patient_id=patient)
    appointment = rows(f"SELECT id FROM nexhealth_appointments WHERE patient_id = {patient} ORDER BY id LIMIT 1")[0][0]
    box.state.update("appointments", int(str(appointment)), {"note": "changed"})
    results = refresh(settings, int(str(patient)))
    assert results["patients"].counts.updated == 2
    assert results["documents"].counts.inserted == 1
    assert results["appointments"].counts.updated == 1
    assert results["guarantor_balances"].counts.updated == 1
    assert {str(result.status) for result in results.values()} == {"succeeded"}
    assert results["patient_addresses"].counts.records_read == 1
    assert rows("SELECT * FROM nexhealth_sync_state ORDER BY 1, 2, 3, 4, 5") == state
    assert_equal(box, rows)


def test_a_balance_is_found_at_whichever_office_keeps_the_account(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """It need not be one that lists the patient; of offices that share no database with it none is asked."""
    sync_all(settings, only=set())
    ((offices,),) = rows(
        "SELECT ARRAY(SELECT (l ->> 'id')::bigint FROM jsonb_array_elements(locations) l ORDER BY 1)"
        " FROM nexhealth_sync_status ORDER BY jsonb_array_length(locations) DESC LIMIT 1"
    )
    home, other = offices
    patient, payer = next(
        (int(row.id), int(row.facts["guarantor_id"] or row.id))
        for row in box.state.world.rows["patients"]
        if row.facts["location_ids"] == [home]
    )
    for number in box.state.ids("guarantor_balances"):
        if box.state.row("guarantor_balances", number).value("guarantor_id") == payer:
            box.state.update("guarantor_balances", number, {"location_id": other})
    assert refresh(settings, patient)["guarantor_balances"].counts.inserted == 1
    assert rows("SELECT guarantor_id, location_id FROM nexhealth_guarantor_balances") == [(payer, other)]
    asked = {one.param("location_id") for one in box.requests.matching("/guarantor_balances")}
    assert asked == {str(home), str(other)}


def test_whose_patient_it_is_is_looked_up_by_the_whole_key(oldest_database_url: str) -> None:
    """PostgreSQL before 18 looks for an id alone from one end of the key to the other: of millions, for each refresh."""
    with psycopg.connect(oldest_database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO nexhealth_patients (institution_id, id, raw, source_read_at, synced_at, row_hash)"
            " SELECT n % 10, n, '{}', now(), now(), '' FROM generate_series(1, 20000) n"
        )
        connection.execute("VACUUM ANALYZE nexhealth_patients")
        whose = ([*range(10)], 12345)
        assert len(connection.execute(_KNOWN, whose).fetchall()) == 1
        assert 0 < pages_looked_at(connection, _KNOWN, whose) < 100


@pytest.mark.parametrize("path", ["/documents", "/alerts", ""], ids=["documents", "alerts", "address"])
def test_what_changes_while_a_list_is_read_is_due_again(
    settings: Settings, database_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Risk: the older list is noted as of the newer patient, and what was added comes a month later."""
    only = {"patients", "patient_addresses", "documents", "alerts"}
    sync_all(settings, SyncOptions(mode=Mode.FULL), only=only)
    patient = rows("SELECT min(id) FROM nexhealth_patients")[0][0]
    refresh(settings, patient)
    assert overtaken(rows, patient) == []

    def changed(answer: Callable[..., Any]) -> Callable[..., Any]:
        def asking(client: NexHealthClient, request: ApiRequest, **more: Any) -> Any:
            found = answer(client, request, **more)
            found = found if isinstance(found, Page) else iter(list(found))
            if request.path == f"/patients/{patient}{path}":
                with psycopg.connect(database_url) as other:
                    newer = "UPDATE nexhealth_patients SET updated_at = updated_at + interval '1 hour' WHERE id = %s"
                    other.execute(newer, (patient,))
            return found

        return asking

    monkeypatch.setattr(NexHealthClient, "pages", changed(NexHealthClient.pages))
    monkeypatch.setattr(NexHealthClient, "get", changed(NexHealthClient.get))
    refresh(settings, patient)
    assert {"": "patient_addresses"}.get(path, path.strip("/")) in overtaken(rows, patient)


def overtaken(rows: Rows, patient: int) -> list[str]:
    """Lists of the patient that were read for another version of them than is there."""
    found = rows(
        "SELECT r.collection FROM nexhealth_child_reads r JOIN nexhealth_patients p ON p.id = r.patient_id"
        f" WHERE p.id = {patient} AND r.patient_version IS DISTINCT FROM p.updated_at ORDER BY 1"
    )
    return [name for (name,) in found]


def test_the_patients_lists_are_as_old_as_their_requests(
    settings: Settings, rows: Rows, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_all(settings, SyncOptions(mode=Mode.FULL), only={"patients"})
    loads = noting_loads(monkeypatch, database_url, "documents")
    ((patient,),) = rows("SELECT min(id) FROM nexhealth_patients")
    refresh(settings, patient)
    ((_, read_at),) = rows(LISTS_READ)
    assert read_at < loads[patient]


@pytest.mark.parametrize("read_before", [set(), {"documents"}], ids=["never read", "read last night"])
def test_a_list_whose_record_came_spoilt_is_asked_for_by_the_next_sync(
    settings: Settings, box: SandboxServer, rows: Rows, read_before: set[str]
) -> None:
    """Noted as read, what could not be loaded would wait for the patient's turn, weeks later."""
    sync_all(settings, SyncOptions(mode=Mode.FULL), only={"patients", *read_before})
    ((patient,),) = rows("SELECT min(id) FROM nexhealth_patients")
    box.state.create("documents", subdomain=subdomain_of(rows, "patients", patient), patient_id=patient)
    box.faults.add("garbled", path=f"/patients/{patient}/documents")
    refresh(settings, patient)
    box.faults.clear()
    here = (
        "SELECT r.collection FROM nexhealth_child_reads r JOIN nexhealth_patients p ON p.id = r.patient_id"
        f" WHERE p.id = {patient} AND r.patient_version = p.updated_at ORDER BY 1"
    )
    assert rows(here) == [("alerts",), ("patient_addresses",)]
    open_notes = "SELECT collection FROM nexhealth_quarantine WHERE resolved_at IS NULL"
    assert set(rows(open_notes)) == {("documents",)}
    sync_all(settings, only={"patients", "documents"})
    assert rows(open_notes) == []
    assert rows(f"SELECT count(*) FROM nexhealth_documents WHERE patient_id = {patient}") > [(0,)]


def test_a_document_that_moved_to_the_patient_is_not_missed_where_it_was(
    settings: Settings, box: SandboxServer, rows: Rows, database_url: str
) -> None:
    """A check would warn of rows that were lost, until the other list is read in its turn."""
    sync_all(settings, SyncOptions(mode=Mode.FULL), only={"patients", "documents"})
    (old, moved), (new, _) = rows(
        "SELECT patient_id, min(id) FROM nexhealth_documents GROUP BY institution_id, patient_id"
        " HAVING institution_id = (SELECT min(institution_id) FROM nexhealth_documents) ORDER BY 1 LIMIT 2"
    )
    box.state.update("documents", moved, {}, about={"patient_id": new})
    refresh(settings, new)
    assert rows(f"SELECT patient_id FROM nexhealth_documents WHERE id = {moved}") == [(new,)]
    (check,) = [one for one in CHECKS if (one.collection.name, one.rule.name) == ("documents", "lists_complete")]
    with psycopg.connect(database_url, autocommit=True) as connection:
        result = run(connection, check)
    assert result.passed, (old, result)


def test_what_one_office_has_not_and_a_window_that_is_refused_cost_a_patient_nothing(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Finance is enabled office by office; what span of appointments is taken nobody says."""
    sync_all(settings, only={"patients"})
    wanted = (
        "SELECT patient_id, min(location_id) FROM nexhealth_patient_locations l WHERE gone_at IS NULL GROUP BY 1"
        " HAVING count(*) > 1 ORDER BY 1"
    )
    patient, closed = next(
        (patient, location)
        for patient, location in rows(wanted)
        if {row.facts["location_id"] for row in box.state.world.rows["charges"] if row.facts["patient_id"] == patient}
        - {location}
    )
    box.faults.add("status", path="/charges", location_id=closed, status=403)
    box.faults.add("status", path="/appointments", query="start=1900.*end=2200|end=2200.*start=1900", status=400)
    results = refresh(settings, patient)
    assert {name: results[name].status.value for name in ("charges", "appointments")} == {
        "charges": "succeeded",
        "appointments": "succeeded",
    }
    ((charges,),) = rows(f"SELECT count(*) FROM nexhealth_charges WHERE location_id <> {closed}")
    assert charges > 0
    box.faults.clear()
    box.faults.add("status", path="/charges", status=403)
    assert refresh(settings, patient)["charges"].status.value == "skipped"


@pytest.mark.parametrize(
    ("name", "path", "parameter"),
    [
        ("insurance_coverages", "/insurance_coverages", "patient_id"),
        ("appointments", "/appointments", "patient_ids[]"),
        ("insurance_coverages", "/insurance_coverages", "active"),
        ("alerts", "/patients/.*/alerts", "include_disabled"),
        ("patient_addresses", "/patients/[0-9]*", "include[]"),
    ],
)
def test_a_list_that_was_not_limited_to_the_patient_or_not_opened_is_not_taken(
    settings: Settings,
    box: SandboxServer,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    path: str,
    parameter: str,
) -> None:
    """Unlimited it is the whole location's, and all of it would be held in memory; unopened it is no read of the list."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 5)
    sync_all(settings, only={"patients"})
    one_place = "SELECT patient_id FROM nexhealth_patient_locations GROUP BY 1 HAVING count(*) = 1 ORDER BY 1 LIMIT 1"
    ((patient,),) = rows(one_place)
    box.faults.add("ignored_parameter", path=path, parameter=parameter)
    before = len(box.requests.matching(path))
    result = refresh(settings, patient)[name]
    assert (result.status.value, result.counts.records_read) == ("failed", 0)
    assert f"asked with {parameter}" in (result.reason or "")
    assert len(box.requests.matching(path)) - before <= 2  # the patient and the guarantor, or one page
    assert rows(f"SELECT count(*) FROM nexhealth_child_reads WHERE collection = '{name}'") == [(0,)]

    box.faults.clear()
    assert refresh(settings, patient)[name].status.value == "succeeded"


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        *((b"[1,2]", [1, 2]), (b'["1",2]', [1, 2]), (b"[]", []), (b'[1,"x"]', None), (b"[1,true]", None), (b"7", None)),
        *((b"[%d]" % (2**63 - 1), [2**63 - 1]), (b"[1,%d]" % 2**63, None), (b'["%s"]' % (b"9" * 5000), None)),
    ],
    ids=lambda one: one[:20].decode() if isinstance(one, bytes) else None,
)
def test_locations_that_cannot_be_read_are_none_that_the_patient_left(said: bytes, ids: list[int] | None) -> None:
    """Ids are texts in some places of the API (API.md H)."""
    assert _location_ids({"location_ids": msgspec.Raw(said)}) == ids


@pytest.mark.parametrize(
    ("said", "guarantor"),
    [
        *((b"515", 515), (b'"515"', 515), (b"0", None), (b'"0"', None), (b'""', None), (b"null", None)),
        *((b"true", None), (b'"x"', None), (b"-5", None), (b"%d" % 2**63, None)),
    ],
)
def test_who_pays_is_who_the_patients_own_row_says(said: bytes, guarantor: int | None) -> None:
    """Risk: an id that came as text is in the row, and the patient's own balance is asked for instead."""
    assert _guarantor({"guarantor_id": msgspec.Raw(said)}) == guarantor


@pytest.mark.parametrize(
    "said", ['"2026-03-01T10:00:00+20:00"', '"2026-03-01T10:00:00"', '"0026-03-01T10:00:00Z"', "7"]
)
def test_a_version_that_the_patients_own_row_has_not_is_none_of_its_lists(said: str) -> None:
    """PostgreSQL refuses the first, and the whole patient with it."""
    assert _version({"updated_at": msgspec.Raw(said.encode())}) is None


def test_a_patient_nobody_knows_is_named(settings: Settings, box: SandboxServer) -> None:
    sync_all(settings, only=set())
    with pytest.raises(InvalidSetting, match="patient 7: no institution"):
        refresh(settings, 7)


def with_key_of(
    subdomain: str, box: SandboxServer, database_url: str, folder: Path, key: str | None = None
) -> Settings:
    """A file of keys with this one line."""
    file = folder / "keys.toml"
    file.write_text(f'{subdomain} = "{key or box.api_key}"\n')
    given = {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEYS_FILE": str(file), "DATABASE_URL": database_url}
    return load_settings(given, environ={}, env_file=None)


def test_an_institution_without_a_key_is_passed_over_unless_the_patient_is_its_own(
    settings: Settings, box: SandboxServer, rows: Rows, database_url: str, tmp_path: Path
) -> None:
    """Risk: a practice that left has no line in the file of keys any more, and nobody new is found at the others."""
    sync_all(settings, only=set())
    names = rows("SELECT id, subdomain FROM nexhealth_institutions ORDER BY id")
    (_, first), (institution, second) = names[0], names[-1]
    patient = min(row.id for row in box.state.store("patients").rows.values() if row.institution_id == institution)

    theirs = with_key_of(second, box, database_url, tmp_path)
    with pytest.raises(InvalidSetting, match="patient 7: no institution"):
        refresh(theirs, 7)
    assert refresh(theirs, patient)["patients"].counts.inserted > 0

    for other in (first, "elsewhere"):
        with pytest.raises(MissingSetting, match=f"no API key for institution {second}"):
            refresh(with_key_of(other, box, database_url, tmp_path), patient)
    with pytest.raises(MissingSetting, match="no API key for institution"):
        refresh(with_key_of("elsewhere", box, database_url, tmp_path), 7)


def test_that_the_patients_own_institution_has_no_key_is_told_before_anothers_refusal(
    settings: Settings, box: SandboxServer, rows: Rows, database_url: str, tmp_path: Path
) -> None:
    """Risk: the key of a practice that the patient never was at is mended, and the patient's is still missing."""
    sync_all(settings, only=set())
    names = rows("SELECT id, subdomain FROM nexhealth_institutions ORDER BY id")
    (_, first), (institution, second) = names[0], names[-1]
    patient = min(row.id for row in box.state.store("patients").rows.values() if row.institution_id == institution)
    refused = with_key_of(first, box, database_url, tmp_path, key="no-key")
    with pytest.raises(KeyRefused):
        refresh(refused, patient)
    refresh(settings, patient)
    with pytest.raises(MissingSetting, match=f"no API key for institution {second}"):
        refresh(refused, patient)
