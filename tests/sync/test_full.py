"""A full sync leaves the warehouse equal to the API, hidden rows included, and a second one changes nothing."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.sandbox import SandboxServer, truth
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.slices import SliceResult, Status
from nexhealth_pipeline.warehouse.usual import UsualRecords
from tests.conftest import _fresh
from tests.effort import counted

from .conftest import settings_for, whole_box
from .kit import Rows, sync_all, use_few_months
from .reconciled import gone, practice

MARKED = ("patients", "operatories", "providers", "documents", "appointments")
"""One of each kind of list: a database's, a location's, an institution's, a patient's own, a month's."""
KINDS = {*MARKED, "patient_addresses"}


def canonical(institution: object, record: object) -> str:
    return json.dumps([institution, record], sort_keys=True)


def without_sensitive(collection: Collection, record: dict) -> dict:
    record = json.loads(json.dumps(record).replace("\\u0000", "\u2400"))
    for path in collection.sensitive:
        holder = record
        for key in path[:-1]:
            holder = holder.get(key) or {}
        holder.pop(path[-1], None)
    return record


def expected(box: SandboxServer, collection: Collection) -> list[str]:
    rows = truth(box.state, collection.name)
    return sorted(canonical(row["institution_id"], without_sensitive(collection, row["record"])) for row in rows)


def stored(rows: Rows, collection: Collection) -> list[str]:
    return sorted(canonical(*row) for row in rows(f"SELECT institution_id, raw FROM {collection.table}"))


def assert_equal(box: SandboxServer, rows: Rows, only: set[str] | None = None) -> None:
    for collection in [one for one in DECLARED if only is None or one.name in only]:
        assert stored(rows, collection) == expected(box, collection), collection.name


def writes(rows: Rows) -> dict[str, int]:
    """Writes so far per table of rows, of memberships and of superseded versions.

    Backends report them when they end, so wait until all have.
    """
    others = (
        "SELECT pid, application_name, state FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    deadline = time.monotonic() + 30
    while there := rows(others):
        assert time.monotonic() < deadline, f"still connected: {there}"
        time.sleep(0.02)
    rows("SELECT pg_stat_clear_snapshot()")
    tables = [collection.table for collection in DECLARED] + ["nexhealth_patient_locations"]
    return dict(
        rows(
            "SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables"
            f" WHERE relname IN ({', '.join(repr(table) for table in tables)}) OR relname LIKE 'nexhealth_history%'"
        )
    )


def full_sync(settings: Settings) -> list[SliceResult]:
    results = sync_all(settings, SyncOptions(mode=Mode.FULL))
    assert {result.status for result in results} == {Status.SUCCEEDED}, [r.reason for r in results if r.reason]
    return results


@pytest.fixture
def synced(settings: Settings) -> Settings:
    full_sync(settings)
    return settings


@dataclass(frozen=True)
class Read:
    """A warehouse that was read completely once, its source, and what the sync told."""

    box: SandboxServer
    results: list[SliceResult]
    rows: Rows


@pytest.fixture(scope="module")
def read(server_url: str, template: str) -> Iterator[Read]:
    """For tests that only look."""
    with whole_box() as box, pytest.MonkeyPatch.context() as patch:
        use_few_months(patch)
        for url in _fresh(server_url, template):
            results = full_sync(settings_for(box, url))
            with psycopg.connect(url, autocommit=True) as connection:
                yield Read(box, results, lambda query: connection.execute(query).fetchall())


@pytest.mark.parametrize("collection", DECLARED, ids=lambda one: one.name)
def test_records_as_the_api_has_them_are_read_the_quick_way(read: Read, collection: Collection) -> None:
    """A type that is declared another way than it comes costs twice the time, which nobody would notice.

    But for February 29, which is the encoder's to look at: the sandbox's days move with the day of the test.
    """
    usual = UsualRecords(collection)
    for row in truth(read.box.state, collection.name):
        record = json.dumps(without_sensitive(collection, row["record"]), ensure_ascii=False)
        assert usual.read(record.replace("-02-29", "-02-28").encode()) is not None, record


def test_a_full_sync_equals_the_api_for_every_collection(read: Read) -> None:
    assert_equal(read.box, read.rows)


def test_tables_that_a_full_sync_filled_have_their_indexes(read: Read) -> None:
    """They are made once the rows are there: nothing else would tell that somebody forgot to."""
    made = {name for (name,) in read.rows("SELECT indexrelid::regclass::text FROM pg_index WHERE indisvalid")}
    filled = [one for one in DECLARED if read.rows(f"SELECT EXISTS (SELECT FROM {one.table})") == [(True,)]]
    assert len(filled) > 30
    for collection in filled:
        wanted = {f"{collection.table}_{'_'.join(index)}_idx"[:63] for index in collection.indexes}
        assert wanted <= made, collection.name


def test_every_typed_column_holds_what_the_record_says(read: Read) -> None:
    """A column filled from the wrong path would still leave `raw` right."""
    for collection in DECLARED:
        for column in collection.columns:
            path = "{" + ",".join(column.path) + "}"
            typed = f"nullif(raw #>> '{path}', '')" if column.type != "text" else f"raw #>> '{path}'"
            if column.type == "jsonb":
                typed = f"nullif(raw #> '{path}', 'null')"
            query = (
                f'SELECT count(*) FROM {collection.table} WHERE "{column.name}" IS DISTINCT FROM'
                f" ({typed})::{column.type.value}"
            )
            assert read.rows(query) == [(0,)], f"{collection.name}.{column.name}"


def test_no_column_waits_for_what_nobody_asks_for(read: Read) -> None:
    """Risk: one that only an `include[]` fills is noted as missing for every institution, for ever."""
    noted = "SELECT DISTINCT collection, field FROM nexhealth_schema_drift WHERE kind = 'missing'"
    assert read.rows(noted) == []


def test_a_second_full_sync_asks_the_same_and_writes_no_row(synced: Settings, box: SandboxServer, rows: Rows) -> None:
    asked = len(box.requests)
    before = writes(rows)
    sync_all(synced, SyncOptions(mode=Mode.FULL))
    assert len(box.requests) == 2 * asked
    assert writes(rows) == before


@pytest.mark.small_box(visits=2)
def test_a_reconcile_without_a_change_writes_no_row(box: SandboxServer, database_url: str, rows: Rows) -> None:
    """It meets every record once more and judges what is missing; what was marked before stays as it is."""
    settings = practice(box, database_url, "willow-dental")
    sync_all(settings, SyncOptions(mode=Mode.FULL), only=KINDS)
    for name in MARKED:
        ((victim,),) = rows(f"SELECT min(id) FROM nexhealth_{name}")
        box.state.delete(name, victim, hard=True)
    sync_all(settings, SyncOptions(mode=Mode.RECONCILE), only=KINDS)
    assert [bool(gone(rows, name)) for name in MARKED] == [True] * len(MARKED)
    before = writes(rows)
    results = sync_all(settings, SyncOptions(mode=Mode.RECONCILE), only=KINDS)
    judged = {result.slice.collection.name for result in results if result.absence is not None}
    assert judged >= KINDS
    assert writes(rows) == before


def test_membership_of_two_locations_with_one_database_equals_the_server(read: Read) -> None:
    closed = inactive(read.rows)
    want = {
        (row["record"]["id"], location)
        for row in truth(read.box.state, "patients")
        for location in row["location_ids"]
        if location not in closed
    }
    assert (
        set(read.rows("SELECT patient_id, location_id FROM nexhealth_patient_locations WHERE gone_at IS NULL")) == want
    )


def subdomain_of(rows: Rows, collection: str, row_id: int) -> str:
    query = f"SELECT i.subdomain FROM nexhealth_{collection} c JOIN nexhealth_institutions i USING (institution_id) WHERE c.id = {row_id}"
    return str(rows(query)[0][0])


def inactive(rows: Rows) -> set[object]:
    return {row[0] for row in rows("SELECT id FROM nexhealth_locations WHERE inactive")}


def test_an_incremental_sync_brings_exactly_the_changes(synced: Settings, box: SandboxServer, rows: Rows) -> None:
    patient = box.state.ids("patients")[3]
    appointment, moved = box.state.ids("appointments")[5:7]
    box.state.update("patients", patient, {"first_name": "Zoë Ó'Test"})
    box.state.cancel(appointment)
    box.state.move(moved, days=45)
    subdomain = subdomain_of(rows, "patients", patient)
    box.state.create("documents", subdomain=subdomain, patient_id=patient)
    before = writes(rows)
    results = sync_all(synced)
    changed = {result.slice.collection.name: 0 for result in results}
    for result in results:
        changed[result.slice.collection.name] += result.counts.inserted + result.counts.updated
    assert {name: count for name, count in changed.items() if count} == {
        "patients": 1,
        "appointments": 2,
        "documents": 1,
    }
    after = writes(rows)
    assert sum(after.values()) - sum(before.values()) == 4 + 3, "four rows, and what three of them were before"
    assert_equal(box, rows)


def test_a_dry_run_reports_what_a_sync_would_do_and_writes_nothing(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    sync_all(settings, SyncOptions(mode=Mode.FULL), only={"patients"})
    box.state.update("patients", box.state.ids("patients")[0], {"last_name": "Testerson"})
    before, logs = writes(rows), rows("SELECT count(*) FROM nexhealth_sync_logs")
    results = sync_all(settings, SyncOptions(dry_run=True))
    patients = [result.counts for result in results if result.slice.collection.name == "patients"]
    appointments = [result.counts for result in results if result.slice.collection.name == "appointments"]
    assert sum(counts.updated for counts in patients) == 1
    assert sum(counts.inserted for counts in patients) == 0
    assert sum(counts.inserted for counts in appointments) >= len(box.state.ids("appointments"))
    assert writes(rows) == before
    assert rows("SELECT count(*) FROM nexhealth_sync_logs") == logs
    assert rows("SELECT count(*) FROM nexhealth_sync_state WHERE collection = 'appointments'") == [(0,)]


def test_the_log_holds_the_counts_of_each_slice(read: Read) -> None:
    assert read.rows("SELECT DISTINCT status FROM nexhealth_sync_logs") == [("succeeded",)]
    totals = read.rows("SELECT sum(requests), count(DISTINCT run_id) FROM nexhealth_sync_logs")
    assert totals == [(len(read.box.requests), 1)]
    bad = read.rows(
        "SELECT count(*) FROM nexhealth_sync_logs WHERE records_read <> inserted + updated + unchanged + quarantined"
    )
    assert bad == [(0,)]


def test_a_slice_knows_its_rows(read: Read) -> None:
    """Dagster shows them per partition; together they are the table, a month's neighbours not counted."""
    found: dict[str, int] = {}
    for result in read.results:
        if result.rows is not None:
            found[result.slice.collection.name] = found.get(result.slice.collection.name, 0) + result.rows
    for name in ("appointments", "operatories", "providers", "institutions", "insurance_coverages"):
        assert [(found[name],)] == read.rows(f"SELECT count(*) FROM nexhealth_{name}"), name
    assert [(found["patients"],)] == read.rows("SELECT count(*) FROM nexhealth_patient_locations")


def test_a_first_dry_run_counts_the_documents_of_patients_it_stores_nowhere(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """On an empty warehouse nobody remembers the patients but the run itself."""
    sync_all(settings, only=set())
    results = sync_all(settings, SyncOptions(dry_run=True))
    inserted: dict[str, int] = {}
    for result in results:
        name = result.slice.collection.name
        inserted[name] = inserted.get(name, 0) + result.counts.inserted
    assert inserted["documents"] == len(box.state.ids("documents"))
    assert inserted["patients"] == len(box.state.ids("patients"))
    assert rows("SELECT count(*) FROM nexhealth_patients") == [(0,)]
    assert rows("SELECT count(*) FROM nexhealth_patient_locations") == [(0,)]


def test_a_dry_run_looks_for_no_other_patients_than_it_met(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """An institution may have a million, and each list of each of its locations would ask for all of them."""
    sync_all(settings, only=set())
    rows(
        "INSERT INTO nexhealth_patients (institution_id, id, raw, source_read_at, synced_at, row_hash)"
        " SELECT i.id, 1000000000 + n, '{}', now(), now(), '' FROM nexhealth_institutions i, generate_series(1, 2000) n"
        " RETURNING id"
    )
    with counted() as effort:
        results = sync_all(settings, SyncOptions(dry_run=True), only={"patients", "documents"})
    inserted = sum(one.counts.inserted for one in results if one.slice.collection.name == "documents")
    assert inserted == len(box.state.ids("documents"))
    assert 0 < effort.rows < 2000
