"""One database for all tests of a module: its tables of made-up collections go, system tables are emptied."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import _fresh

Rows = Callable[[str], list[tuple[Any, ...]]]
_SYSTEM = (
    "nexhealth_schema_changes, nexhealth_runs, nexhealth_sweeps, nexhealth_sync_state, nexhealth_sync_logs,"
    " nexhealth_child_reads, nexhealth_seen, nexhealth_freshness, nexhealth_capabilities,"
    " nexhealth_patient_locations, nexhealth_quarantine, nexhealth_patients, nexhealth_locations, nexhealth_sync_status"
)


@pytest.fixture(scope="module")
def shared_url(server_url: str, template: str) -> Iterator[str]:
    """A warehouse at the newest migration, for the tests of one module."""
    yield from _fresh(server_url, template)


@pytest.fixture
def connection(shared_url: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection; what a test leaves behind is removed after it."""
    with psycopg.connect(shared_url, autocommit=True) as connection:
        yield connection
        connection.execute(f"DROP TABLE IF EXISTS nexhealth_gadgets; TRUNCATE {_SYSTEM}")


@pytest.fixture
def other(shared_url: str, connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A second connection to the same database."""
    with psycopg.connect(shared_url, autocommit=True) as other:
        yield other


@pytest.fixture
def rows(connection: psycopg.Connection) -> Rows:
    """Runs a query."""
    return lambda query: connection.execute(query).fetchall()
