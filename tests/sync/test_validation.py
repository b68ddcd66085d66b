"""A sound copy passes its checks, a change of the API is noticed, and every tenant's rows say whose they are."""

from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.warehouse.check_results import run_all
from nexhealth_pipeline.warehouse.checks import CHECKS, run

from .kit import Rows, sync_all

CANARY = "canary-5550100"
KEY_WIDE = {"institutions", "locations", "sync_status"}
NOT_A_TENANTS = {
    *("nexhealth_warehouse", "nexhealth_schema_changes", "nexhealth_runs", "nexhealth_sweeps"),
    *("nexhealth_webhook_attempts", "nexhealth_housekeeping"),
    "nexhealth_seen",  # its institution is that of the pass it belongs to
    "nexhealth_changes_pruned",
    "nexhealth_webhooks",  # an endpoint is an API key's
    "nexhealth_webhook_events",  # has it, where what came could be trusted and names one that is known
}
"""System tables that speak of no practice's data; those of the key's rate budget and alembic are told by their names."""


def faults(rows: Rows, url: str) -> dict[tuple[str, str], Any]:
    """What the checks find, by collection and rule."""
    with psycopg.connect(url, autocommit=True) as connection:
        results = [run(connection, check) for check in CHECKS]
    assert CANARY not in repr([(one.details, one.description) for one in results])
    return {(one.check.collection.name, one.check.rule.name): one for one in results if not one.passed}


def test_a_full_sync_passes_every_check_and_every_row_log_and_result_names_its_institution(
    settings: Settings, database_url: str, rows: Rows
) -> None:
    """Two institutions with one key: a false alarm is ignored soon, and a row of nobody can be shown to anybody."""
    assert {one.status for one in sync_all(settings)} == {"succeeded"}
    found = faults(rows, database_url)
    assert set(found) == {("sync_status", "offices_online")}  # one office of the sandbox is offline
    assert set(found["sync_status", "offices_online"].details) == {"harbor-smiles.348622 is offline"}
    tenants = {int(row[0]) for row in rows("SELECT id FROM nexhealth_institutions")}
    assert len(tenants) == 2
    for collection in DECLARED:
        seen = {row[0] for row in rows(f"SELECT DISTINCT institution_id FROM {collection.table}")}
        assert seen, collection.name
        assert seen <= tenants, collection.name
        assert seen == tenants or collection.may_be_disabled or collection.per, collection.name
    logged = rows("SELECT DISTINCT collection FROM nexhealth_sync_logs WHERE institution_id IS NULL")
    assert {row[0] for row in logged} == KEY_WIDE == {one.name for one in DECLARED if one.scope is Scope.PRACTICE}
    with psycopg.connect(database_url, autocommit=True) as connection:
        run_all(connection, tenants)
    kept = rows("SELECT institution_id, count(*) FROM nexhealth_check_results GROUP BY 1")
    assert dict(kept) == dict.fromkeys({0, *tenants}, len(CHECKS))


def test_every_table_has_its_tenant_and_the_collections_have_it_first_in_their_key(rows: Rows) -> None:
    """Roles and row-level security hang on this column; a table without it is open to all."""
    columns = rows(
        "SELECT table_name, bool_or(column_name = 'institution_id' AND (is_nullable = 'NO' OR table_name LIKE"
        " 'nexhealth\\_sync\\_logs%')) FROM information_schema.columns WHERE table_schema = 'public' GROUP BY 1"
    )
    without = {str(name) for name, has in columns if not has}
    assert {name for name in without if "alembic" not in name and "budget" not in name} <= NOT_A_TENANTS
    assert {one.table for one in DECLARED} <= {str(name) for name, has in columns if has}
    assert {one.key[0] for one in DECLARED} == {"institution_id"}


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each record of a list is changed into before it is encoded, by collection: a new version of the API."""
    import msgspec

    from nexhealth_pipeline.warehouse.encode import RecordEncoder

    changes: dict[str, Any] = {}
    encode = RecordEncoder.encode

    def changed(self: RecordEncoder, records: list[bytes], *more: Any) -> Any:
        change = changes.get(self._collection.name)
        if change is not None:
            records = [msgspec.json.encode(change(msgspec.json.decode(one))) for one in records]
        return encode(self, records, *more)

    monkeypatch.setattr(RecordEncoder, "encode", changed)
    return changes


def test_a_field_that_is_new_retyped_or_gone_is_noticed_with_the_sync_that_meets_it(
    settings: Settings, database_url: str, rows: Rows, patched: dict[str, Any]
) -> None:
    """Nobody reads the vendor's changelog at night."""
    only = {"operatories", "patients"}
    sync_all(settings, only=only)
    patched["operatories"] = lambda one: {**one, "colour": CANARY, "name": [CANARY], "active": CANARY}
    patched["patients"] = lambda one: {
        **{name: value for name, value in one.items() if name != "chart_id"},
        "bio": {**(one.get("bio") or {}), "nickname": CANARY},
    }
    sync_all(settings, SyncOptions(mode=Mode.FULL), only=only)
    found = faults(rows, database_url)
    assert set(found["operatories", "schema_as_declared"].details) == {"new colour", "retyped name", "retyped active"}
    assert set(found["patients", "schema_as_declared"].details) == {"new bio.nickname", "missing chart_id"}
    assert len(found["patients", "schema_as_declared"].institutions) == 2
    drift = rows("SELECT d::text FROM nexhealth_schema_drift d")
    assert CANARY not in str(drift)
    del patched["patients"]
    sync_all(settings, SyncOptions(mode=Mode.FULL), only=only)
    assert set(faults(rows, database_url)["patients", "schema_as_declared"].details) == {"new bio.nickname"}


def test_what_the_api_counted_is_kept_of_whole_reads_only(
    settings: Settings, box: SandboxServer, database_url: str, rows: Rows
) -> None:
    """A count of changes would make the table look too long; a row that is lost must show."""
    sync_all(settings, only={"nex_staff", "document_types"})
    counted = rows("SELECT sum(total)::int, sum(records)::int FROM nexhealth_sync_state WHERE collection = 'nex_staff'")
    assert counted == rows("SELECT count(*)::int, count(*)::int FROM nexhealth_nex_staff")
    assert rows("SELECT total FROM nexhealth_sync_state WHERE collection = 'locations'") == [(None,)]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM nexhealth_nex_staff WHERE id = (SELECT min(id) FROM nexhealth_nex_staff)")
    assert set(faults(rows, database_url)["nex_staff", "no_rows_lost"].institutions.values()) == {1}
    assert COLLECTIONS["nex_staff"].increment is None
