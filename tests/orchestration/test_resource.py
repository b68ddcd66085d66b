"""The resource: settings in force, secrets kept, nothing opened before a run asks."""

import threading

import dagster as dg
import psycopg
import pytest

from nexhealth_pipeline.errors import (
    InvalidSetting,
    MissingSetting,
    WarehouseError,
    WarehouseOutdated,
    WarehouseRefused,
)
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.warehouse.migrate import HEAD
from nexhealth_pipeline.warehouse.runs import is_dead
from tests.poolers import pooler


def test_what_is_given_wins_over_the_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment may bind its own variables."""
    monkeypatch.setenv("NEXHEALTH_API_KEY", "from-environment")
    monkeypatch.setenv("OTHER_KEY", "from-resource")
    assert NexHealthResource().settings().api_keys() == {"": "from-environment"}
    with NexHealthResource(api_key=dg.EnvVar("OTHER_KEY")).process_config_and_initialize_cm() as resource:
        assert isinstance(resource, NexHealthResource)
        assert resource.settings().api_keys() == {"": "from-resource"}
        assert "from-resource" not in repr(resource.settings())


def test_a_setting_that_cannot_be_used_is_named() -> None:
    with pytest.raises(InvalidSetting, match="NEXHEALTH_API_URL"):
        NexHealthResource(api_url="ftp://x").settings()


def test_without_a_key_nothing_is_started(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """An embedded server that starts for a run that cannot succeed would puzzle people."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    with (
        pytest.raises(MissingSetting, match=r"NEXHEALTH_API_KEY.*nexhealth dev"),
        NexHealthResource().session("a-run", threading.Event()),
    ):
        pass


def test_a_session_upgrades_the_warehouse_and_remembers_its_kind(
    environment: dict[str, str], empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's own runs may be the first to see a new warehouse, and must not mix sandbox into it later."""
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("NEXHEALTH_API_KEY", "some-key")
    with NexHealthResource().session("run-0", threading.Event(), dry_run=True):
        pass
    with psycopg.connect(empty_database_url) as db:
        assert db.execute("SELECT kind FROM nexhealth_warehouse").fetchall() == [], "a dry run decides nothing"
    with NexHealthResource().session("run-1", threading.Event()) as session:
        assert session.practices().institutions == ()
    with psycopg.connect(empty_database_url) as db:
        assert db.execute("SELECT status FROM nexhealth_runs WHERE run_id = 'run-1'").fetchall() == [("succeeded",)]
        assert db.execute("SELECT kind FROM nexhealth_warehouse").fetchall() == [("sandbox",)]
    monkeypatch.setenv("NEXHEALTH_DATA_KIND", "real")
    with pytest.raises(WarehouseRefused), NexHealthResource().session("run-2", threading.Event()):
        pass


def test_a_dry_session_leaves_a_warehouse_of_an_earlier_release_as_it_is(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run may be launched on Dagit's pages as well."""
    before = (f"{int(HEAD) - 1:04}",)
    monkeypatch.setenv("NEXHEALTH_API_KEY", "some-key")
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        db.execute("UPDATE nexhealth_alembic_version SET version_num = %s", before)
        with (
            pytest.raises(WarehouseOutdated, match="run `nexhealth db upgrade`"),
            NexHealthResource().session("a-run", threading.Event(), dry_run=True),
        ):
            pass
        assert db.execute("SELECT version_num FROM nexhealth_alembic_version").fetchall() == [before]


def test_a_query_that_fails_is_told_without_the_servers_words(environment: dict[str, str]) -> None:
    """Dagster stores a tick's error; the server's may quote a row."""
    with pytest.raises(WarehouseError) as caught, NexHealthResource().warehouse() as connection:
        connection.execute("SELECT 'Jane Doe'::bigint")
    assert "Jane" not in str(caught.value)


def test_by_a_pooler_in_transaction_mode_nobody_looks_for_dead_runs(
    environment: dict[str, str], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor's tick would close a living run, or wait for ever for a lock that it gave back in another session."""
    with pooler(database_url, sessions=False) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        refused = pytest.raises(WarehouseError, match="pooler in transaction mode")
        with refused, NexHealthResource().warehouse():
            pass


def test_a_run_that_only_asks_the_warehouse_holds_its_lock_and_says_how_it_ended(environment: dict[str, str]) -> None:
    """Else a killed one cannot be told from one that takes long, nor a stopped one from one that failed."""
    with NexHealthResource().warehouse_of_run("done") as connection:
        assert not is_dead(connection, "done")
        connection.execute("SELECT 1")
    with pytest.raises(KeyboardInterrupt), NexHealthResource().warehouse_of_run("stopped"):
        raise KeyboardInterrupt
    with pytest.raises(WarehouseError), NexHealthResource().warehouse_of_run("broken") as connection:
        connection.execute("SELECT 1 / 0")
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        found: dict[str, str] = dict(db.execute("SELECT run_id, status FROM nexhealth_runs").fetchall())
        assert found == {"done": "succeeded", "stopped": "cancelled", "broken": "failed"}
        assert all(is_dead(db, run_id) for run_id in found)
