"""What comments say of columns: roles for analysts are built from the PHI classes at their ends."""

from typing import Any

from nexhealth_pipeline.catalog.collection import Phi

from .conftest import Rows

CLASSES = tuple(f"PHI class: {phi.value}." for phi in Phi)
TOLD = """
SELECT c.relname::text, a.attname::text, coalesce(col_description(c.oid, a.attnum), '')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND (
    a.attname IN ('patient_id', 'key', 'sample_id', 'sample_ids', 'resource_ids', 'payload')
    OR a.atttypid IN ('bytea'::regtype, 'jsonb'::regtype, 'json'::regtype)
    OR c.relname = 'nexhealth_quarantine' AND a.attname <> 'id')
"""


def test_every_column_of_records_and_of_patients_ids_ends_with_its_class(rows: Rows) -> None:
    """Risk: a table that is no collection's is granted to a role whose columns are chosen by class. Partitions too."""
    told = {(table, column): comment for table, column, comment in rows(TOLD)}
    assert len(told) > 100
    assert not [place for place, comment in told.items() if not comment.endswith(CLASSES)]
    for table, column, kind in (
        ("quarantine", "raw", "clinical"),
        ("quarantine", "request", "id"),
        ("patient_locations", "patient_id", "id"),
        ("child_reads", "patient_id", "id"),
        # As text, numbers or arrays, which are no records by their types.
        ("seen", "key", "id"),
        ("schema_drift", "sample_id", "id"),
        ("check_results", "sample_ids", "id"),
        ("webhook_events", "payload", "clinical"),
        ("webhook_events", "resource_ids", "id"),
        ("history_default", "fields", "clinical"),
        ("changes_default", "key", "id"),
    ):
        assert told[f"nexhealth_{table}", column].endswith(f"PHI class: {kind}."), (table, column)


def test_no_deletion_is_said_to_be_the_apis_where_a_reconcile_may_set_it(rows: Rows) -> None:
    """Risk: what a complete read lacked is reported as deleted by the practice."""
    found: list[Any] = rows(
        "SELECT attrelid::regclass::text, col_description(attrelid, attnum) FROM pg_attribute"
        " WHERE attname = 'deleted_at' AND attrelid IN (SELECT tgrelid FROM pg_trigger WHERE tgname = 'nexhealth_history')"
    )
    assert {"nexhealth_charges", "nexhealth_insurance_plans", "nexhealth_patients"} <= {table for table, _ in found}
    assert not [table for table, comment in found if "API" in comment and "absence" not in comment]
    assert "absence" in dict(found)["nexhealth_charges"]
