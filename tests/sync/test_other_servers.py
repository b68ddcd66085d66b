"""A server that was set up for other people: its zone, its style of dates, its schemas, its encoding, its limits."""

import psycopg
import pytest
from psycopg import sql

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.warehouse.connect import connect
from nexhealth_pipeline.warehouse.migrate import upgrade

from .kit import Rows, sync_all

ONLY = {"patients"}
FOR_OTHERS = {
    "timezone": "Asia/Kolkata",
    "datestyle": "German",
    "intervalstyle": "iso_8601",
    "client_encoding": "latin1",
    "search_path": "reporting",
    "statement_timeout": "1ms",
}


def set_up_for_others(url: str, settings: dict[str, str] = FOR_OTHERS) -> None:
    """From the next connection on."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS reporting")
        base = sql.SQL("ALTER DATABASE {} SET {} = {}")
        for name, value in settings.items():
            name_of_base = sql.Identifier(connection.info.dbname)
            connection.execute(base.format(name_of_base, sql.Identifier(name), sql.Literal(value)))


@pytest.mark.small_box(visits=1)
def test_what_changed_between_two_syncs_is_read_whatever_the_server_is_set_to(
    settings: Settings, box: SandboxServer, rows: Rows, database_url: str
) -> None:
    """Risk: a watermark came back in the server's zone and was sent as UTC: east of it, what changed was never asked for."""
    set_up_for_others(database_url)
    sync_all(settings, SyncOptions(mode=Mode.FULL), only=ONLY)
    patient = rows("SELECT min(id) FROM nexhealth_patients")[0][0]
    box.state.update("patients", patient, {"first_name": "Łucja 🦷"})
    results = sync_all(settings, only=ONLY)
    assert rows(f"SELECT first_name FROM nexhealth_patients WHERE id = {patient}") == [("Łucja 🦷",)]
    assert sum(one.counts.updated for one in results) == 1


def test_a_warehouse_is_made_in_public_whatever_schema_comes_first(empty_database_url: str) -> None:
    """A schema of the role's own name comes first by PostgreSQL's default."""
    set_up_for_others(empty_database_url)
    upgrade(empty_database_url)
    with connect(empty_database_url) as connection:
        schemas = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'nexhealth%'"
        assert connection.execute(schemas).fetchall() == [("public",)]
