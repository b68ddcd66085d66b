"""A small sandbox and a fresh warehouse."""

from collections.abc import Iterator

import psycopg
import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync import months

from .kit import Rows, first_test_month


@pytest.fixture(autouse=True)
def _few_months(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Eight months instead of fifty: the code is the same, the tests are not about how many there are."""
    if "all_months" not in request.keywords:
        monkeypatch.setattr(months, "FIRST_MONTH", first_test_month())
        monkeypatch.setattr(months, "MONTHS_AHEAD", 3)


@pytest.fixture
def box() -> Iterator[SandboxServer]:
    """Everything is enabled everywhere; what is not is tested by itself."""
    with SandboxServer(patients=60, appointments_per_patient=4, limits=False) as server:
        for location in server.state.ids("locations"):
            for capability in ("finance", "alerts"):
                server.state.enable(location, capability)
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
