"""One database for all tests of a module: its tables of made-up collections go, system tables are emptied."""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.warehouse.embedded import release
from tests.conftest import room_for_databases
from tests.waiting import until

from .embedded_kit import processes_of

Rows = Callable[[str], list[tuple[Any, ...]]]
_SYSTEM = (
    *("schema_changes", "runs", "sweeps", "sync_state", "sync_logs", "child_reads", "seen", "seen_passes", "freshness"),
    *("capabilities", "patient_locations", "quarantine", "patients", "locations", "sync_status", "history"),
    *("schema_drift", "check_results"),
    # Last: what goes above is a change as well.
    *("changes", "changes_pruned"),
)
_CLEAN = "; ".join(
    ["DROP TABLE IF EXISTS nexhealth_gadgets CASCADE", *(f"DELETE FROM nexhealth_{name}" for name in _SYSTEM)]
)
"""Not TRUNCATE: that makes new files for each table, and costs a test more than all else."""


@pytest.fixture
def connection(shared_url: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection; what a test leaves behind is removed after it."""
    with psycopg.connect(shared_url, autocommit=True) as connection:
        yield connection
        connection.execute(_CLEAN)


@pytest.fixture
def other(shared_url: str, connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A second connection to the same database."""
    with psycopg.connect(shared_url, autocommit=True) as other:
        yield other


@pytest.fixture
def rows(connection: psycopg.Connection) -> Rows:
    """Runs a query."""
    return lambda query: connection.execute(query).fetchall()


@pytest.fixture
def home() -> Iterator[Path]:
    """Of an embedded server: a folder with a space in its path; after the test nothing may run from it."""
    root = Path(tempfile.mkdtemp(prefix="nexhealth tests ", dir=room_for_databases()))
    root.chmod(0o711)
    yield root / "a home"
    release(root / "a home")
    until(lambda: not processes_of(root), "no process is left")
    for record in root.rglob("place.json"):
        for private in re.findall(r"/var/tmp/nexhealth-\w+", record.read_text()):
            shutil.rmtree(private)
    shutil.rmtree(root)
