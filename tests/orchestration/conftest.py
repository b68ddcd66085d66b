"""A house for a test: sandbox, warehouse and Dagster's storage, all real, all its own."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.sync import months
from nexhealth_pipeline.sync.session import SyncSession
from tests.sync.kit import Unlimited, first_test_month
from tests.webhooks.kit import know_practice

from .kit import BATCH_SIZE, House
from .webhook_kit import Post

REPO = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Dagster says of a part it offers that it is in beta each time it is used."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::dagster.BetaWarning"))


@pytest.fixture(scope="session")
def dagster_template(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a database with Dagster's tables, which take a second to make."""
    name = f"dagster_template_{uuid.uuid4().hex[:12]}"
    url = server_url.replace("@/postgres?", f"@/{name}?")
    with psycopg.connect(server_url, autocommit=True) as db, pytest.MonkeyPatch.context() as patch:
        db.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        patch.setenv("DAGSTER_DATABASE_URL", url)
        patch.setenv("NEXHEALTH_HOME", str(tmp_path_factory.mktemp("home")))
        with dg.DagsterInstance.from_config(str(REPO)) as opened:
            opened.get_runs_count()
    yield name
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def dagster_database_url(server_url: str, dagster_template: str) -> Iterator[str]:
    """Dagster's database of one test."""
    name = f"dagster_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE {dagster_template} STRATEGY FILE_COPY")
    yield server_url.replace("@/postgres?", f"@/{name}?")
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def batches_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many events are written at once is left to the storage, which sets it for its process: not beyond this test."""
    monkeypatch.setenv(BATCH_SIZE, "")
    monkeypatch.delenv(BATCH_SIZE)


@pytest.fixture
def environment(
    database_url: str,
    dagster_database_url: str,
    batches_by_default: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> dict[str, str]:
    """Both databases and a home of the test's own, in the environment; no key yet."""
    values = {
        "DATABASE_URL": database_url,
        "DAGSTER_DATABASE_URL": dagster_database_url,
        "NEXHEALTH_HOME": str(tmp_path),
        "NEXHEALTH_DATA_KIND": "sandbox",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return values


@pytest.fixture
def instance(environment: dict[str, str]) -> Iterator[dg.DagsterInstance]:
    """The repository's Dagster instance, on a database of the test's own."""
    with dg.DagsterInstance.from_config(str(REPO)) as opened:
        yield opened


@pytest.fixture
def few_months(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight months instead of fifty."""
    monkeypatch.setattr(months, "FIRST_MONTH", first_test_month())
    monkeypatch.setattr(months, "MONTHS_AHEAD", 3)


@pytest.fixture
def box() -> Iterator[SandboxServer]:
    """Everything is enabled everywhere; what is not is tested by itself."""
    with SandboxServer(patients=40, appointments_per_patient=4, limits=False) as server:
        for location in server.state.ids("locations"):
            for capability in ("finance", "alerts"):
                server.state.enable(location, capability)
        yield server


@pytest.fixture
def house(
    box: SandboxServer,
    instance: dg.DagsterInstance,
    few_months: None,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
) -> Iterator[House]:
    """Nothing read yet; requests are not slowed down."""
    monkeypatch.setenv("NEXHEALTH_API_URL", box.url)
    monkeypatch.setenv("NEXHEALTH_API_KEY", box.api_key)
    monkeypatch.setattr(SyncSession, "_shared_budget", lambda *_: Unlimited())
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as warehouse:
        yield House(box, instance, warehouse)


@pytest.fixture
def known(house: House) -> House:
    """A house whose institutions and locations have been read."""
    assert house.run(Scope.PRACTICE).success
    return house


@pytest.fixture
def post(instance: dg.DagsterInstance, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Post]:
    """One practice, known and read; nothing answers at the API's address."""
    monkeypatch.setenv("NEXHEALTH_API_KEY", "some-key")
    monkeypatch.setenv("NEXHEALTH_API_URL", "http://127.0.0.1:9")
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as warehouse:
        know_practice(warehouse)
        yield Post(instance, warehouse)
