"""Runs of the real jobs in this process, and what Dagster and the warehouse say of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import dagster as dg
import psycopg

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration.assets import PARTITIONS, step_name
from nexhealth_pipeline.orchestration.code_location import DEFINITIONS
from nexhealth_pipeline.orchestration.names import SCOPE_JOBS
from nexhealth_pipeline.orchestration.partitions import partition_tags
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.warehouse.sync_log import Counts

BATCH_SIZE = "DAGSTER_EVENT_BATCH_SIZE"
"""What Dagster reads how many events it writes at once from. A started process must not have it from here."""
COUNTS = [field.name for field in fields(Counts) if field.name != "throttled_seconds"]
WILLOW, HARBOR = "willow-dental", "harbor-smiles"
NORTH, SOUTH, DESERT, CLOSED = (f"{WILLOW}.{number}" for number in (348511, 348512, 348513, 348514))
PIER, ISLAND = f"{HARBOR}.348621", f"{HARBOR}.348622"
Rows = list[tuple[Any, ...]]


@dataclass
class House:
    """A sandbox, a warehouse and a Dagster instance of one test."""

    box: SandboxServer
    instance: dg.DagsterInstance
    warehouse: psycopg.Connection

    def rows(self, query: str, *params: object) -> Rows:
        return self.warehouse.execute(query, params).fetchall()

    def one(self, query: str, *params: object) -> Any:
        return self.rows(query, *params)[0][0]

    def run(
        self,
        scope: Scope,
        keys: Sequence[str] = (),
        *,
        assets: Sequence[str] = (),
        tags: dict[str, str] | None = None,
        **config: object,
    ) -> dg.ExecuteInProcessResult:
        """A run of a scope's job, as schedules and commands make it."""
        if tags is None:
            tags = partition_tags(self.instance, PARTITIONS[scope], keys)
        return self.job(SCOPE_JOBS[scope], step_name(scope), assets, tags, {**config, "partitions": list(keys)})

    def job(
        self,
        name: str,
        op: str,
        assets: Sequence[str] = (),
        tags: dict[str, str] | None = None,
        config: dict[str, object] | None = None,
    ) -> dg.ExecuteInProcessResult:
        return DEFINITIONS.resolve_job_def(name).execute_in_process(
            instance=self.instance,
            run_config={
                "ops": {op: {"config": config or {}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            asset_selection=[dg.AssetKey(f"nexhealth_{asset}") for asset in assets] or None,
            tags=tags or {},
            raise_on_error=False,
        )

    def events(self, result: dg.ExecuteInProcessResult, *kinds: dg.DagsterEventType) -> list[Any]:
        """What was said of assets in a run: materializations and observations, unless `kinds` are given."""
        wanted = set(kinds or (dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION))
        records = self.instance.get_records_for_run(result.run_id, of_type=wanted, limit=5000).records
        return [record.event_log_entry.dagster_event for record in records]

    def partitions(self, result: dg.ExecuteInProcessResult, kind: dg.DagsterEventType) -> set[tuple[str, str | None]]:
        return {
            (event.asset_key.path[-1].removeprefix("nexhealth_"), event.partition)
            for event in self.events(result, kind)
        }

    def told(self, result: dg.ExecuteInProcessResult) -> dict[str, float]:
        """Sums of the counts in the metadata of a run's events."""
        sums: Counter[str] = Counter()
        for event in self.events(result):
            for name, value in _metadata(event).items():
                if name in COUNTS:
                    sums[name] += value.value
        return {name: sums[name] for name in COUNTS}

    def logged(self, result: dg.ExecuteInProcessResult) -> dict[str, float]:
        """The same sums in `nexhealth_sync_logs`."""
        columns = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in COUNTS)
        row = self.rows(f"SELECT {columns} FROM nexhealth_sync_logs WHERE run_id = %s", result.run_id)[0]
        return dict(zip(COUNTS, row, strict=True))

    def status(self, asset: str) -> dict[str, dg.AssetPartitionStatus | None]:
        """Colour of each partition that is not grey."""
        key = dg.AssetKey(f"nexhealth_{asset}")
        definition = DEFINITIONS.resolve_asset_graph().get(key).partitions_def
        assert definition is not None
        with dg.partition_loading_context(dynamic_partitions_store=self.instance):
            keys = list(definition.get_partition_keys())
            found = self.instance.get_status_by_partition(key, keys, definition) or {}
        return {name: colour for name, colour in found.items() if colour is not None}

    def failure(self, result: dg.ExecuteInProcessResult) -> str:
        """The text a failed run ended with."""
        (event,) = self.events(result, dg.DagsterEventType.STEP_FAILURE)
        return str(event.event_specific_data.user_failure_data.description)


def event_transactions(url: str, kind: dg.DagsterEventType) -> dict[str, tuple[int, int]]:
    """Of each run in Dagster's database at `url`: how many events of `kind` it has, in how many transactions written."""
    with psycopg.connect(url) as db:
        found = db.execute(
            "SELECT run_id, count(*), count(DISTINCT xmin::text) FROM event_logs WHERE dagster_event_type = %s GROUP BY 1",
            (kind.value,),
        )
        return {run: (events, written) for run, events, written in found}


def _metadata(event: Any) -> Any:
    data = event.event_specific_data
    return (data.materialization if hasattr(data, "materialization") else data.asset_observation).metadata
