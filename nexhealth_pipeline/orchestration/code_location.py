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
from nexhealth_pipeline.orchestration.watchdog import EVENTS_SPEC, WATCHDOG_CHECKS, watchdog_job, watchdog_schedule
from nexhealth_pipeline.orchestration.webhook_jobs import WEBHOOK_JOB_DEFINITIONS
from nexhealth_pipeline.orchestration.webhook_sensor import webhook_sensor

__all__ = ["DEFINITIONS"]

DEFINITIONS = dg.Definitions(
    assets=[*ASSETS, EVENTS_SPEC],
    asset_checks=[*ASSET_CHECKS, *WATCHDOG_CHECKS],
    jobs=[*JOBS, checks_job, *WEBHOOK_JOB_DEFINITIONS, watchdog_job],
    schedules=[*SCHEDULES, watchdog_schedule],
    sensors=[*SENSORS, checks_sensor, webhook_sensor],
    resources={"nexhealth": NexHealthResource()},
    # One process a run: steps of their own would pay the start-up again, and threads inside read side by side.
    executor=dg.in_process_executor,
)
"""Assets and their checks, jobs, schedules, sensors, resources."""
