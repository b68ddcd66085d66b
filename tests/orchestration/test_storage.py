"""Dagster's records in PostgreSQL: the right driver, few connections, and no event lost or misplaced."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InternalError

from nexhealth_pipeline.errors import MissingRights, WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.orchestration import storage as module
from nexhealth_pipeline.orchestration.event_log import PooledEventLogStorage
from nexhealth_pipeline.orchestration.storage import (
    NexHealthDagsterStorage,
    database_of,
    psycopg2_url,
)
from nexhealth_pipeline.warehouse.connect import WATCH
from nexhealth_pipeline.warehouse.embedded import ensure
from tests.poolers import pooler

from .both import BOTH, run_both
from .kit import event_transactions

REPO = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


@pytest.fixture
def instance(
    empty_database_url: str, batches_by_default: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[dg.DagsterInstance]:
    """The repository's instance, on a database of the test's own."""
    monkeypatch.setenv("DAGSTER_DATABASE_URL", empty_database_url)
    monkeypatch.setenv("NEXHEALTH_HOME", str(tmp_path))
    with dg.DagsterInstance.from_config(str(REPO)) as opened:
        yield opened


def _process(script: str, url: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run `script` in a process that has nothing but its places from us."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={"DAGSTER_DATABASE_URL": url, "NEXHEALTH_HOME": str(folder), "PYTHONPATH": str(REPO)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("libpq", "sqlalchemy"),
    [
        ("postgresql://u@h:5433/db", "postgresql+psycopg2://u@h:5433/db"),
        ("postgresql://u:p%40%2F%25@h/db?sslmode=require", "postgresql+psycopg2://u:p%40%2F%25@h/db?sslmode=require"),
        ("postgresql://u@/db?host=/a%20b/c&port=7", "postgresql+psycopg2://u@/db?host=%2Fa+b%2Fc&port=7"),
        ("postgresql://u@%2Fa%20b%2Fc/db", "postgresql+psycopg2://u@/db?host=%2Fa+b%2Fc"),
        ("postgresql://u@h1:1,h2:2/db", "postgresql+psycopg2://u@/db?host=h1%2Ch2&port=1%2C2"),
        ("postgresql://u@h1,h2/db?port=7", "postgresql+psycopg2://u@/db?host=h1%2Ch2&port=7%2C7"),
        (
            "postgresql://u@/db?hostaddr=10.0.0.1,10.0.0.2&port=1,2",
            "postgresql+psycopg2://u@/db?host=10.0.0.1%2C10.0.0.2&hostaddr=10.0.0.1%2C10.0.0.2&port=1%2C2",
        ),
        ("postgresql:///db", "postgresql+psycopg2:///db"),
    ],
)
def test_every_form_of_address_that_libpq_takes_keeps_its_meaning(libpq: str, sqlalchemy: str) -> None:
    """With a plain `postgresql://` the first event of every run fails under SQLAlchemy 2.1, which also counts hosts and ports."""
    assert psycopg2_url(libpq) == sqlalchemy
    _, given = create_engine(sqlalchemy).dialect.create_connect_args(make_url(sqlalchemy))
    wanted = {name: value for name, value in conninfo_to_dict(libpq).items() if name != "port"}
    assert {name: given[name] for name in wanted} == wanted


@pytest.mark.parametrize("server", ["u:p%40%2F%25+%20@h:5433", "u@%2Fa%20b%2Fc:7", "u@h1:1,h2:2"])
def test_who_connects_without_sqlalchemy_reaches_the_same_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention does: a space in the path of the socket must not become a plus."""
    monkeypatch.setattr(PooledEventLogStorage, "__init__", lambda self, url: setattr(self, "postgres_url", url))
    given = f"postgresql://{server}/db?sslmode=require"
    address = database_of(PooledEventLogStorage(psycopg2_url(given)))
    assert address is not None
    assert conninfo_to_dict(address) == conninfo_to_dict(given)


def test_no_connection_waits_for_ever(instance: dg.DagsterInstance) -> None:
    """Of a host that swallows packets libpq waits two minutes a try, and Dagster tries six times; the webserver's engine too."""
    for _ in range(2):
        with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]  # PostgreSQL's
            given = connection.connection.dbapi_connection.info.dsn_parameters
        assert {name: given[name] for name in ("connect_timeout", "keepalives_idle", "tcp_user_timeout")} == {
            "connect_timeout": "10",
            "keepalives_idle": "30",
            "tcp_user_timeout": "60000",
        }
        instance.optimize_for_webserver(statement_timeout=0, pool_recycle=3600, max_overflow=5)


@pytest.mark.parametrize(
    ("words", "limit"), [(WATCH, "60000"), ("SET no_such_setting = 1", "0")], ids=["on Linux", "elsewhere"]
)
def test_a_host_that_vanishes_gives_the_assets_rows_back(
    words: str, limit: str, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the systems' own defaults the server would keep them for two hours, in which other runs hang at an event."""
    monkeypatch.setattr(module, "WATCH", words)
    url = ensure(own_home, durable=False, tcp=True).tcp_url("postgres")
    engine = create_engine(psycopg2_url(url))
    with engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT current_setting('tcp_user_timeout'), current_setting('TimeZone')"
        ).one()
    engine.dispose()
    assert tuple(row) == (limit, "UTC")


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_dagster_s_times_are_those_of_the_clock_whatever_zone_the_server_has(
    zone: str, empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: a run that has just been made was hours old, and passed over; or will be made in hours, and stood in the way."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET timezone = {}").format(name, sql.Literal(zone)))
        connection.execute(sql.SQL("ALTER DATABASE {} SET lock_timeout = '1s'").format(name))
    monkeypatch.setenv("DAGSTER_DATABASE_URL", empty_database_url)
    monkeypatch.setenv("NEXHEALTH_HOME", str(tmp_path))
    with dg.DagsterInstance.from_config(str(REPO)) as instance:
        for webserver in (False, True):
            if webserver:
                instance.optimize_for_webserver(statement_timeout=0, pool_recycle=3600, max_overflow=5)
            run = instance.create_run_for_job(BOTH)
            instance.report_engine_event("started", run)
            record = instance.get_run_record_by_id(run.run_id)
            assert record is not None
            for moment in (record.create_timestamp, record.update_timestamp):
                assert abs(moment.timestamp() - time.time()) < 600
            with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]  # PostgreSQL's
                assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"


def test_a_process_keeps_few_connections_and_outlives_their_loss(
    instance: dg.DagsterInstance, empty_database_url: str
) -> None:
    """Thirty runs must fit into a server's hundred connections; a server that restarts must not fail a run."""
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        others += " AND backend_type = 'client backend'"
        run_both(instance, 3)
        deadline = time.monotonic() + 10  # one that was closed is there until the server has noticed
        while (count := db.execute(f"SELECT count(*) {others}").fetchone()) and count[0] > 3:
            assert time.monotonic() < deadline, f"{count[0]} connections"
            time.sleep(0.05)
        assert count is not None
        assert count[0] >= 1
        db.execute(f"SELECT pg_terminate_backend(pid) {others}")
        assert len(run_both(instance, 3).asset_materializations_for_node("two_assets")) == 5


def test_a_process_lets_go_of_a_server_from_which_another_has_taken_over(
    instance: dg.DagsterInstance, empty_database_url: str
) -> None:
    """It takes no rows any more and answers all the same: a daemon kept its connections to it for an hour."""
    engine: Any = instance.event_log_storage._engine  # type: ignore[attr-defined]  # PostgreSQL's
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        base = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(base))
        engine.dispose()
        with pytest.raises(InternalError):
            instance.add_dynamic_partitions("test_locations", ["demo.1"])
        connection.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(base))
    instance.add_dynamic_partitions("test_locations", ["demo.1"])
    assert instance.get_dynamic_partitions("test_locations") == ["demo.1"]


@pytest.mark.dagster
def test_a_process_with_nothing_set_writes_events_in_bulk(empty_database_url: str, tmp_path: Path) -> None:
    """Each event in a transaction of its own is what made a night's events cost minutes."""
    script = f"""
import dagster as dg
keys = [f"demo.{{number}}" for number in range(40)]
@dg.asset(partitions_def=dg.StaticPartitionsDefinition(keys), backfill_policy=dg.BackfillPolicy.single_run())
def one() -> None: pass
defs = dg.Definitions(
    assets=[one], jobs=[dg.define_asset_job("all_of_it", selection="*")], executor=dg.in_process_executor
)
with dg.DagsterInstance.from_config({str(REPO)!r}) as instance:
    defs.resolve_job_def("all_of_it").execute_in_process(
        instance=instance,
        tags={{"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}},
    )
"""
    done = _process(script, empty_database_url, tmp_path)
    assert done.returncode == 0, done.stderr
    for kind in (dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, dg.DagsterEventType.ASSET_MATERIALIZATION):
        assert [*event_transactions(empty_database_url, kind).values()] == [(40, 1)], kind


def test_an_unreachable_database_is_named_without_its_address() -> None:
    """The address may hold a password."""
    with pytest.raises(WarehouseUnreachable, match="DAGSTER_DATABASE_URL") as caught:
        NexHealthDagsterStorage("postgresql+psycopg2://u:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


def test_a_pooler_in_transaction_mode_is_refused(empty_database_url: str) -> None:
    """The lock under which tables are made was given back in another session, and the next process waited for ever."""
    refused = pytest.raises(WarehouseError, match="pooler in transaction mode")
    with pooler(empty_database_url, sessions=False) as url, refused:
        NexHealthDagsterStorage(psycopg2_url(url))


@pytest.mark.parametrize("schema", ["", "REVOKE ALL ON SCHEMA public FROM PUBLIC"])
def test_a_role_that_may_not_make_dagster_s_tables_is_told_the_statement(empty_database_url: str, schema: str) -> None:
    """An administrator made the database as their own; it looked like a bug of ours, with no right named."""
    role = f"lodger_{os.getpid()}"
    url = psycopg2_url(empty_database_url.replace("postgres@", f"{role}@"))
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} LOGIN; {schema}")
        try:
            with pytest.raises(MissingRights) as caught:
                NexHealthDagsterStorage(url)
            statement = f"GRANT USAGE, CREATE ON SCHEMA public TO {role};"
            assert statement in str(caught.value)
            assert caught.value.__suppress_context__
            db.execute(statement)
            NexHealthDagsterStorage(url).event_log_storage.dispose()
        finally:
            db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("given", "usable"), [("SELECT", False), ("INSERT", False), ("SELECT, INSERT, UPDATE, DELETE", True)]
)
def test_a_role_that_may_not_use_the_tables_of_another_is_told_at_the_start(
    empty_database_url: str, given: str, *, usable: bool
) -> None:
    """A sync found out at its first statement, and called it a bug of ours."""
    role = f"lodger_{os.getpid()}"
    url = psycopg2_url(empty_database_url.replace("postgres@", f"{role}@"))
    NexHealthDagsterStorage(psycopg2_url(empty_database_url)).event_log_storage.dispose()
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} LOGIN; GRANT {given} ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            with nullcontext() if usable else pytest.raises(MissingRights, match="`nexhealth doctor` names"):
                NexHealthDagsterStorage(url).event_log_storage.dispose()
        finally:
            db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.dagster
def test_processes_that_start_at_once_on_an_empty_database_all_start(empty_database_url: str, tmp_path: Path) -> None:
    """Webserver, daemon and forked runs of a first start all want to create the same tables."""
    script = f"""
import dagster
from nexhealth_pipeline.orchestration.fork import run_side_by_side
def opens():
    with dagster.DagsterInstance.from_config({str(REPO)!r}) as instance:
        return instance.get_runs_count()
print([(outcome.result, outcome.status) for outcome in run_side_by_side([opens] * 4)])
"""
    done = _process(script, empty_database_url, tmp_path)
    assert done.stdout == "[(0, 0), (0, 0), (0, 0), (0, 0)]\n", done.stderr
    assert "Retrying" not in done.stderr
