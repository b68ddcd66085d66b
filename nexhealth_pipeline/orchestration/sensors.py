"""Runs whose process died are found by their lock."""

import dagster as dg

from nexhealth_pipeline.errors import PipelineError
from nexhealth_pipeline.orchestration.dead_runs import end_dead_runs
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.warehouse.migrate import require_release

__all__ = ["SENSORS"]


@dg.sensor(
    name="nexhealth_dead_runs",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs whose process is gone, so that their slices are read again.",
)
def _dead_runs(context: dg.SensorEvaluationContext, nexhealth: NexHealthResource) -> dg.SkipReason:
    try:
        with nexhealth.warehouse() as connection:
            require_release(connection)
            ended = end_dead_runs(context.instance, connection)
    except PipelineError as error:
        return dg.SkipReason(str(error))
    return dg.SkipReason(f"{len(ended)} dead runs found" if ended else "no run is dead")


SENSORS = [_dead_runs]
"""Sensors that look after runs."""
