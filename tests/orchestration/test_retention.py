"""Retention of Dagster's records: rows go, and no state that Dagit shows changes by it."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import psycopg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.storage.defs_state.base import set_defs_state_storage
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster_graphql.cli import execute_query
from pydantic import Field

from nexhealth_pipeline.orchestration import retention
from nexhealth_pipeline.orchestration.retention import Removed, remove_old_records
from nexhealth_pipeline.warehouse.runs import lock_key

PLACES = dg.DynamicPartitionsDefinition(name="test_places")
MONTHS = dg.StaticPartitionsDefinition(["2026-01", "2026-02"])
ALL = [f"demo.{number}" for number in range(5)]
STATUS = """{ assetNodes { id
    assetPartitionStatuses {
        ... on DefaultPartitionStatuses { materializedPartitions failedPartitions materializingPartitions }
        ... on MultiPartitionStatuses { ranges { secondaryDim {
            ... on DefaultPartitionStatuses { materializedPartitions failedPartitions materializingPartitions } }
            primaryDimStartKey primaryDimEndKey } } }
    assetMaterializations(limit: 1) { runId partition }
    assetObservations(limit: 1) { runId partition }
    assetChecksOrError { ... on AssetChecks { checks { name
        executionForLatestMaterialization { status runId evaluation { success } } } } } } }"""


class _Config(dg.Config):
    fail: list[str] = Field(default_factory=list)


@dg.multi_asset(
    specs=[dg.AssetSpec("lists", skippable=True)],
    partitions_def=PLACES,
    can_subset=True,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def lists(context: dg.AssetExecutionContext, config: _Config) -> Iterator[dg.AssetMaterialization]:
    for key in context.partition_keys:
        if key not in config.fail:
            yield dg.AssetMaterialization("lists", partition=key)
    if config.fail:
        raise dg.Failure("some slices failed")


@dg.multi_asset(
    specs=[dg.AssetSpec("months", skippable=True)],
    partitions_def=dg.MultiPartitionsDefinition({"month": MONTHS, "place": PLACES}),
    can_subset=True,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def months(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization | dg.AssetObservation]:
    yield dg.AssetObservation("watched")
    for key in context.partition_keys:
        yield dg.AssetMaterialization("months", partition=key)


@dg.asset
def whole() -> None: ...


@dg.asset_check(asset=whole)
def is_fine(config: _Config) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=not config.fail)


defs = dg.Definitions(
    assets=[lists, months, whole, dg.AssetSpec("watched")],
    asset_checks=[is_fine],
    jobs=[
        dg.define_asset_job("read_lists", dg.AssetSelection.assets(lists)),
        dg.define_asset_job("read_months", dg.AssetSelection.assets(months)),
        dg.define_asset_job("read_whole", dg.AssetSelection.assets(whole)),
    ],
    executor=dg.in_process_executor,
)


class Past:
    """An instance on which runs were made, at times of the test's choice."""

    def __init__(self, instance: dg.DagsterInstance, url: str, db: psycopg.Connection) -> None:
        self.instance, self.url, self.db = instance, url, db

    def run(self, job: str, first: str | None = None, last: str | None = None, **config: object) -> str:
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
        ops = {"read_lists": ["lists"], "read_whole": ["whole_is_fine"]}.get(job, [])
        result = defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            tags={name: value for name, value in tags.items() if value is not None},
            run_config={"ops": {op: {"config": config} for op in ops}} if config else None,
            raise_on_error=False,
        )
        return result.run_id

    def age(self, days: int) -> None:
        """Everything so far happened so many days earlier."""
        self.db.execute(
            "UPDATE event_logs SET timestamp = timestamp - %(by)s;"
            " UPDATE runs SET create_timestamp = create_timestamp - %(by)s, update_timestamp = update_timestamp - %(by)s,"
            " end_time = end_time - extract(epoch FROM %(by)s);"
            " UPDATE asset_check_executions SET evaluation_event_timestamp = evaluation_event_timestamp - %(by)s,"
            " create_timestamp = create_timestamp - %(by)s".replace("%(by)s", f"interval '{days} days'").encode()
        )

    def shown(self) -> Any:
        """What Dagit asks for, and what it asks for without what it has in its cache."""
        seen = []
        for _ in range(2):
            target = LoadableTargetOrigin(python_file=__file__, attribute="defs")
            origin = InProcessCodeLocationOrigin(target, location_name="test")
            with (
                set_defs_state_storage(None),  # else of whichever instance a test before has closed
                WorkspaceProcessContext(self.instance, InProcessWorkspaceLoadTarget(origin)) as workspace,
            ):
                answer = execute_query(workspace, STATUS)
            assert "errors" not in answer, answer
            seen.append(answer["data"])
            self.db.execute("UPDATE asset_keys SET cached_status_data = NULL")
        assert seen[0] == seen[1]
        return seen[0], self.known()

    def known(self) -> Any:
        store = self.instance.event_log_storage
        keys = [dg.AssetKey(name) for name in ("lists", "months", "whole", "watched")]
        return (
            [self.instance.get_materialized_partitions(key) for key in keys],
            [store.get_latest_asset_partition_materialization_attempts_without_materializations(key) for key in keys],
            [store.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION) for key in keys],
            self.instance.get_event_tags_for_asset(dg.AssetKey("months")).__len__() > 0,
            self.instance.get_dynamic_partitions("test_places"),
            [one.asset_entry.last_run_id for one in self.instance.get_asset_records(keys)],
            store.get_asset_check_summary_records([dg.AssetCheckKey(dg.AssetKey("whole"), "is_fine")]),
        )

    def count(self, table: str, where: str = "true") -> int:
        row = self.db.execute(f"SELECT count(*) FROM {table} WHERE {where}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    def size(self, table: str) -> int:
        """Bytes, its indexes not counted."""
        row = self.db.execute("SELECT pg_relation_size(%s)", (table,)).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def past(instance: dg.DagsterInstance, dagster_database_url: str) -> Iterator[Past]:
    instance.add_dynamic_partitions("test_places", ALL)
    with psycopg.connect(dagster_database_url, autocommit=True) as db:
        yield Past(instance, dagster_database_url, db)


def test_old_rows_go_and_nothing_that_dagit_shows_changes(past: Past) -> None:
    """Deleting runs the way Dagit does would make a thousand slices look never read."""
    first = past.run("read_lists", ALL[0], ALL[-1], fail=[ALL[3], ALL[4]])
    past.run("read_months", "2026-01|demo.0", "2026-02|demo.4")
    past.run("read_whole", fail=["x"])
    past.age(10)
    second = past.run("read_lists", ALL[0], ALL[2])  # all that the first one read, so that only what failed is its own
    third = past.run("read_months", "2026-01|demo.0", "2026-02|demo.4")
    past.run("read_whole", fail=["x"])
    past.age(40)
    recent = past.run("read_lists", ALL[0])
    before, events, runs = past.shown(), past.count("event_logs"), past.count("runs")
    tags = past.count("asset_event_tags")
    removed = remove_old_records(past.url, 30)
    assert past.shown() == before
    failed = before[0]["assetNodes"][0]["assetPartitionStatuses"]["failedPartitions"]
    assert failed == [ALL[3], ALL[4]], "the query shows what it is meant to"
    left = past.db.execute(
        "SELECT run_id, dagster_event_type, asset_key, count(*) FROM event_logs WHERE run_id <> %s"
        " GROUP BY 1, 2, 3 ORDER BY 2, 3, 4",
        (recent,),
    ).fetchall()
    kinds = [(kind, asset, number) for _, kind, asset, number in left]
    assert kinds == [
        ("ASSET_CHECK_EVALUATION", None, 1),
        ("ASSET_MATERIALIZATION", '["lists"]', 2),
        ("ASSET_MATERIALIZATION", '["months"]', 10),
        ("ASSET_MATERIALIZATION", '["whole"]', 1),
        ("ASSET_MATERIALIZATION_PLANNED", '["lists"]', 2),
        ("ASSET_MATERIALIZATION_PLANNED", '["whole"]', 1),
        ("ASSET_OBSERVATION", '["watched"]', 1),
    ]
    assert {run for run, kind, asset, _ in left if asset == '["lists"]'} == {first, second}
    assert removed.events == events - past.count("event_logs") > 50
    assert (removed.runs, past.count("runs")) == (2, runs - 2)
    assert removed.check_results == 1
    assert past.count("asset_event_tags", "event_id NOT IN (SELECT id FROM event_logs)") == 0 < tags
    assert third in {run.run_id for run in past.instance.get_runs()}
    assert remove_old_records(past.url, 30) == Removed()


def test_runs_that_go_on_and_recent_ones_keep_everything(past: Past) -> None:
    """Whatever the age: who waits in the queue for a month must still find itself."""
    waiting = past.run("read_whole")
    past.age(40)
    past.db.execute("UPDATE runs SET status = 'STARTED' WHERE run_id = %s", (waiting,))
    past.run("read_whole")
    before = past.count("event_logs")
    removed = remove_old_records(past.url, 30)
    assert (removed.events, removed.runs, past.count("event_logs")) == (0, 0, before)


def test_the_room_is_used_again(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_VACUUM_ROWS", 1)
    fill = (
        "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp)"
        " SELECT 'old', repeat('x', 1000), 'LOGS_CAPTURED', clock_timestamp() AT TIME ZONE 'UTC' - interval '40 days'"
        " FROM generate_series(1, 5000)"
    )
    past.db.execute(fill)
    size = past.size("event_logs")
    assert remove_old_records(past.url, 30).events == 4999  # the newest stays
    past.db.execute(fill)
    assert past.size("event_logs") < 1.1 * size  # a page more where others' rows lie differently


def test_events_of_a_host_whose_clock_was_ahead_end_no_walk(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing behind them went any more, until the time had come at which they seem to be."""
    monkeypatch.setattr(retention, "_BATCH", 2)
    past.db.execute(
        "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp)"
        " SELECT run_id, '', 'LOGS_CAPTURED', clock_timestamp() AT TIME ZONE 'UTC' + days * interval '1 day'"
        " FROM (VALUES (1, 'ahead', 60), (2, 'ahead', 60), (3, 'old', -40), (4, 'old', -40), (5, 'old', -40), (6, 'new', 0))"
        " given (number, run_id, days) ORDER BY number"
    )
    assert remove_old_records(past.url, 30).events == 3
    assert past.db.execute("SELECT run_id FROM event_logs ORDER BY id").fetchall() == [("ahead",), ("ahead",), ("new",)]


def test_it_gives_way(past: Past) -> None:
    """To another process that does the same, and to whoever stops the run."""
    past.run("read_whole")
    past.age(40)
    past.run("read_whole")
    stop = threading.Event()
    stop.set()
    assert remove_old_records(past.url, 30, stop) == Removed()
    past.db.execute("SELECT pg_advisory_lock(%s)", (lock_key("dagster retention"),))
    assert remove_old_records(past.url, 30) == Removed()
    past.db.execute("SELECT pg_advisory_unlock_all()")
    assert remove_old_records(past.url, 30).events > 0


def _printed(home: Path, place: str, name: str, days: int) -> Path:
    """A folder below Dagster's that something of that name left so many days ago."""
    folder = home / "dagster" / place / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.out").write_text("printed")
    then = time.time() - days * 86400
    os.utime(folder, (then, then))
    return folder


def test_what_runs_printed_goes_too(past: Past, tmp_path: Path) -> None:
    for place in ("compute_logs", "storage"):
        old, young = (_printed(tmp_path, place, str(uuid4()), days) for days in (31, 29))
        assert remove_old_records(past.url, 30).folders == 1
        assert (old.exists(), young.exists()) == (False, True)


def test_nobody_loses_what_is_still_used(past: Past, tmp_path: Path) -> None:
    """A backfill may take longer than its records are kept; and assets of other code locations lie beside our runs'."""
    living, ended = past.run("read_whole"), past.run("read_whole")
    past.db.execute("UPDATE runs SET status = 'STARTED', end_time = NULL WHERE run_id = %s", (living,))
    past.age(40)
    lately = past.run("read_whole")
    gone = [_printed(tmp_path, place, ended, 40) for place in ("compute_logs", "storage")]
    kept = [_printed(tmp_path, "compute_logs", name, 40) for name in (living, lately)]
    kept += [_printed(tmp_path, "storage", name, 40) for name in (living, "sales")]
    assert remove_old_records(past.url, 30).folders == 2
    assert not any(folder.exists() for folder in gone)
    assert all((folder / "step.out").exists() for folder in kept)
