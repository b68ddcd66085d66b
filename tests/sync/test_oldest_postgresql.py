"""The oldest PostgreSQL that is supported takes every kind of work on a warehouse, not only the migrations."""

from datetime import UTC, datetime

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.sync.retry_quarantine import retry_quarantine
from nexhealth_pipeline.warehouse import encode
from nexhealth_pipeline.warehouse.checks import CHECKS, run
from nexhealth_pipeline.warehouse.housekeeping import remove_old
from nexhealth_pipeline.warehouse.values import CONVERTERS
from tests.webhooks.kit import apply_all, store, updated

from .kit import sync_all
from .reconciled import FULL, RECONCILE, gone, practice

WILLOW = 11201
KINDS = {"patients", "operatories", "documents", "appointments"}
"""Of what is reconciled: a list of each kind."""


@pytest.mark.small_box(visits=2)
def test_the_oldest_postgresql_takes_all_that_the_newest_takes(
    box: SandboxServer, oldest_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has it would be the first to find a function that it does not have: all else runs on the newest."""
    settings = practice(box, oldest_database_url, "willow-dental")
    lost, kept = [row.id for row in box.state.store("patients").rows.values() if row.institution_id == WILLOW][:2]
    box.state.update("patients", kept, {"bio": {"date_of_birth": "2024-02-30"}})
    with psycopg.connect(oldest_database_url, autocommit=True) as connection:

        def rows(query: str) -> list[tuple[object, ...]]:
            return connection.execute(query).fetchall()

        sync_all(settings, FULL)
        box.state.delete("patients", lost, hard=True)
        sync_all(settings, RECONCILE, only=KINDS)
        assert gone(rows, "patients") == {lost}

        with monkeypatch.context() as lenient:
            lenient.setattr(encode, "CONVERTERS", CONVERTERS | {"date": lambda value: value and f"{value[:7]}-01"})
            retried = retry_quarantine(oldest_database_url)
        assert retried.tried == retried.loaded > 0

        record = box.state.row("patients", kept).record()
        record |= {"first_name": "Zoë", "updated_at": datetime.now(UTC).isoformat()}
        store(connection, updated(record, subdomain="willow-dental"))
        assert apply_all(settings)[1].applied == 1
        assert rows(f"SELECT first_name FROM nexhealth_current.patients WHERE id = {kept}") == [("Zoë",)]

        found = {check.rule.name for check in CHECKS if run(connection, check, [WILLOW]).count}
        assert found == {"quarantine_empty"}, "the event held no better date of birth"
        views = rows("SELECT schemaname, viewname FROM pg_views WHERE schemaname IN ('public', 'nexhealth_current')")
        assert len(views) > len(DECLARED)
        for schema, view in views:
            rows(f"SELECT * FROM {schema}.{view}")
        assert remove_old(connection, settings) == {}
