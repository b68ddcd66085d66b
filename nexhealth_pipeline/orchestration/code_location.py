"""What Dagster is given: the lists that this room builds, put together.

`nexhealth_pipeline.definitions` is the name that Dagster loads it by; commands of ours take it from here,
because a room must not import what stands above it.
"""

import dagster as dg

from nexhealth_pipeline.orchestration.assets import ASSETS
from nexhealth_pipeline.orchestration.checks import ASSET_CHECKS, checks_job, checks_sensor
from nexhealth_pipeline.orchestration.jobs import JOBS
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.orchestration.schedules import SCHEDULES
from nexhealth_pipeline.orchestration.sensors import SENSORS

__all__ = ["DEFINITIONS"]

DEFINITIONS = dg.Definitions(
    assets=ASSETS,
    asset_checks=ASSET_CHECKS,
    jobs=[*JOBS, checks_job],
    schedules=SCHEDULES,
    sensors=[*SENSORS, checks_sensor],
    resources={"nexhealth": NexHealthResource()},
    # One process a run: steps of their own would pay the start-up again, and threads inside read side by side.
    executor=dg.in_process_executor,
)
"""Assets and their checks, jobs, schedules, sensors, resources."""
