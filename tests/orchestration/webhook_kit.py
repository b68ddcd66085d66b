"""A warehouse with one practice and stored events, and runs of the webhook jobs in this process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import psycopg

from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.orchestration.names import APPLY_JOB, APPLY_OP
from nexhealth_pipeline.orchestration.resource import NexHealthResource

QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


@dataclass
class Post:
    """The warehouse and the Dagster instance of a test."""

    instance: dg.DagsterInstance
    db: psycopg.Connection

    def rows(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        return self.db.execute(query, params).fetchall()

    def statuses(self) -> dict[str, int]:
        return dict(self.rows("SELECT status, count(*) FROM nexhealth_webhook_events GROUP BY 1"))

    def apply(
        self, run_id: str | None = None, tags: Mapping[str, str] | None = None, **config: float
    ) -> dg.ExecuteInProcessResult:
        """A run of the apply job, which waits 0.1 s for more."""
        return run_job(self.instance, APPLY_JOB, APPLY_OP, run_id=run_id, tags=tags, linger_seconds=0.1, **config)

    def tick(self, name: str) -> dg.RunRequest | str:
        """A tick of a sensor: its request, or why there is none."""
        repository = defs.get_repository_def()
        context = dg.build_sensor_context(
            instance=self.instance, resources={"nexhealth": NexHealthResource()}, repository_def=repository
        )
        data = repository.get_sensor_def(name).evaluate_tick(context)
        if data.skip_message:
            return data.skip_message
        (request,) = data.run_requests or ()
        return request

    def told(self, run_id: str) -> list[Any]:
        """Materializations and observations of a run."""
        kinds = {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION}
        records = self.instance.get_records_for_run(run_id, of_type=kinds, limit=5000).records
        return [record.event_log_entry.dagster_event for record in records]

    def log(self, run_id: str) -> list[str]:
        """What the run's own log says."""
        return [entry.message for entry in self.instance.all_logs(run_id) if entry.dagster_event is None]


def run_job(
    instance: dg.DagsterInstance,
    job: str,
    op: str,
    *,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    **config: object,
) -> dg.ExecuteInProcessResult:
    """A run of one of the op jobs."""
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        run_id=run_id,
        run_config={"ops": {op: {"config": config}}, "loggers": QUIET},
        tags=tags,
        raise_on_error=False,
    )


def metadata(event: Any) -> dict[str, Any]:
    """Plain values of an event's metadata."""
    data = event.event_specific_data
    found = (data.materialization if hasattr(data, "materialization") else data.asset_observation).metadata
    return {name: value.value for name, value in found.items()}
