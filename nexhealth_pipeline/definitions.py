"""The Dagster code location: lists of what `orchestration` builds. Loads with no variable set and without I/O."""

import dagster as dg

from nexhealth_pipeline.orchestration.assets import ASSETS
from nexhealth_pipeline.orchestration.jobs import JOBS
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.orchestration.schedules import SCHEDULES
from nexhealth_pipeline.orchestration.sensors import SENSORS

__all__ = ["defs"]

defs = dg.Definitions(
    assets=ASSETS,
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=SENSORS,
    resources={"nexhealth": NexHealthResource()},
    # One process a run: steps of their own would pay the start-up again, and threads inside read side by side.
    executor=dg.in_process_executor,
)
