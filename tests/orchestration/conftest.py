"""A house for a test: sandbox, warehouse and Dagster's storage, all real, all its own."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.sync.session import SyncSession
from tests.conftest import _fresh
from tests.sync.kit import Unlimited, use_few_months
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


@pytest.fixture(scope="session")
def base() -> datetime:
    """When each test's sandbox begins: they are alike, so whoever has read one knows them all."""
    return datetime.now(UTC).replace(second=0, microsecond=0)


@pytest.fixture(scope="session")
def templates_of_known(
    server_url: str, template: str, dagster_template: str, base: datetime, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Names of a warehouse, and of Dagster's database, after a run has read institutions and locations of a `box`."""
    for warehouse in _fresh(server_url, template):
        for dagster in _fresh(server_url, dagster_template):
            with pytest.MonkeyPatch.context() as patch, whole_box(base) as box:
                let_storage_choose_batches(patch)
                set_environment(patch, warehouse, dagster, tmp_path_factory.mktemp("home"))
                use_few_months(patch)
                with dg.DagsterInstance.from_config(str(REPO)) as instance, furnished(patch, box, instance) as house:
                    assert house.run(Scope.PRACTICE).success
            yield name_of(warehouse), name_of(dagster)


def name_of(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])


@pytest.fixture
def database_url(request: pytest.FixtureRequest, server_url: str, template: str) -> Iterator[str]:
    """The warehouse of one test: empty, but for what makes a house `known`."""
    known = "known" in request.fixturenames
    yield from _fresh(server_url, request.getfixturevalue("templates_of_known")[0] if known else template)


@pytest.fixture
def dagster_database_url(request: pytest.FixtureRequest, server_url: str, dagster_template: str) -> Iterator[str]:
    """Dagster's database of one test."""
    known = "known" in request.fixturenames
    yield from _fresh(server_url, request.getfixturevalue("templates_of_known")[1] if known else dagster_template)


@pytest.fixture
def batches_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    let_storage_choose_batches(monkeypatch)


def let_storage_choose_batches(patch: pytest.MonkeyPatch) -> None:
    """How many events are written at once is set by the storage for its process: not beyond `patch`."""
    patch.setenv(BATCH_SIZE, "")
    patch.delenv(BATCH_SIZE)


@pytest.fixture
def environment(
    database_url: str,
    dagster_database_url: str,
    batches_by_default: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> dict[str, str]:
    """Both databases and a home of the test's own, in the environment; no key yet."""
    return set_environment(monkeypatch, database_url, dagster_database_url, tmp_path)


def set_environment(patch: pytest.MonkeyPatch, warehouse: str, dagster: str, home: Path) -> dict[str, str]:
    """What is set."""
    values = {
        "DATABASE_URL": warehouse,
        "DAGSTER_DATABASE_URL": dagster,
        "NEXHEALTH_HOME": str(home),
        "NEXHEALTH_DATA_KIND": "sandbox",
    }
    for name, value in values.items():
        patch.setenv(name, value)
    patch.chdir(home)
    return values


@pytest.fixture
def instance(environment: dict[str, str]) -> Iterator[dg.DagsterInstance]:
    """The repository's Dagster instance, on a database of the test's own."""
    with dg.DagsterInstance.from_config(str(REPO)) as opened:
        yield opened


@pytest.fixture
def few_months(monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_months(monkeypatch)


@pytest.fixture
def box(base: datetime) -> Iterator[SandboxServer]:
    with whole_box(base) as box:
        yield box


@contextmanager
def whole_box(base: datetime) -> Iterator[SandboxServer]:
    """Everything is enabled everywhere; what is not is tested by itself."""
    with SandboxServer(patients=40, appointments_per_patient=4, limits=False, base=base) as server:
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
) -> Iterator[House]:
    """Nothing read yet."""
    with furnished(monkeypatch, box, instance) as house:
        yield house


@contextmanager
def furnished(patch: pytest.MonkeyPatch, box: SandboxServer, instance: dg.DagsterInstance) -> Iterator[House]:
    """A house on the databases in the environment; requests are not slowed down."""
    patch.setenv("NEXHEALTH_API_URL", box.url)
    patch.setenv("NEXHEALTH_API_KEY", box.api_key)
    patch.setattr(SyncSession, "_shared_budget", lambda *_: Unlimited())
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as warehouse:
        yield House(box, instance, warehouse)


@pytest.fixture
def known(house: House) -> House:
    """A house whose institutions and locations have been read: its databases are copies of those where a run did."""
    return house


@pytest.fixture
def post(instance: dg.DagsterInstance, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Post]:
    """One practice, known and read; nothing answers at the API's address."""
    monkeypatch.setenv("NEXHEALTH_API_KEY", "some-key")
    monkeypatch.setenv("NEXHEALTH_API_URL", "http://127.0.0.1:9")
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as warehouse:
        know_practice(warehouse)
        yield Post(instance, warehouse)
