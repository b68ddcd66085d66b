"""A small sandbox and a fresh warehouse."""

from collections.abc import Iterator

import psycopg
import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings

from .kit import Rows


@pytest.fixture
def box() -> Iterator[SandboxServer]:
    with SandboxServer(patients=60, appointments_per_patient=4, limits=False) as server:
        yield server


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return load_settings(
        {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEY": box.api_key, "DATABASE_URL": database_url},
        environ={},
        env_file=None,
    )


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    """Runs a query in the warehouse."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield lambda query: connection.execute(query).fetchall()
