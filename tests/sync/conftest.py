"""A small sandbox and a fresh warehouse."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings

from .kit import Rows, use_few_months


@pytest.fixture(autouse=True)
def _few_months(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight months instead of fifty: the code is the same, the tests are not about how many there are."""
    use_few_months(monkeypatch)


@contextmanager
def whole_box() -> Iterator[SandboxServer]:
    """Everything is enabled everywhere; what is not is tested by itself."""
    with SandboxServer(patients=60, appointments_per_patient=4, limits=False) as server:
        for location in server.state.ids("locations"):
            for capability in ("finance", "alerts"):
                server.state.enable(location, capability)
        yield server


def settings_for(box: SandboxServer, database_url: str) -> Settings:
    """Of a sync of `box`."""
    return load_settings(
        {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEY": box.api_key, "DATABASE_URL": database_url},
        environ={},
        env_file=None,
    )


def small_box(visits: int, base: datetime) -> SandboxServer:
    """One of fewer people, with so many visits each."""
    return SandboxServer(patients=40, appointments_per_patient=visits, limits=False, base=base)


@pytest.fixture(scope="module")
def base() -> datetime:
    """When a module's small sandboxes begin: those of as many visits are alike, so whoever has read one knows them all."""
    return datetime.now(UTC).replace(second=0, microsecond=0)


@pytest.fixture
def box(request: pytest.FixtureRequest, base: datetime) -> Iterator[SandboxServer]:
    """The whole one; of tests marked `small_box(visits=...)` one of fewer people, with so many visits each."""
    small = request.node.get_closest_marker("small_box")
    with small_box(small.kwargs["visits"], base) if small else whole_box() as box:
        yield box


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return settings_for(box, database_url)


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    """Runs a query in the warehouse."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield lambda query: connection.execute(query).fetchall()
