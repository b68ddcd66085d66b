"""One job of continuous sync out of a command, recorded in Dagster as if Dagit had started it.

It runs in a forked child, so that Ctrl-C stops it on a committed batch and the command's own process holds no
connection of Dagster's.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from nexhealth_pipeline.errors import Cancelled
from nexhealth_pipeline.orchestration.code_location import DEFINITIONS
from nexhealth_pipeline.orchestration.command_runs import COMMAND_TAGS
from nexhealth_pipeline.orchestration.fork import run_side_by_side
from nexhealth_pipeline.orchestration.forked import failure_of, run_job
from nexhealth_pipeline.orchestration.instance import open_instance
from nexhealth_pipeline.orchestration.launch import pass_on, raise_unless_answered
from nexhealth_pipeline.orchestration.names import (
    APPLY_JOB,
    APPLY_OP,
    REPLAY_JOB,
    REPLAY_OP,
    SETUP_JOB,
    SETUP_OP,
)
from nexhealth_pipeline.orchestration.webhook_jobs import heard
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.warehouse.connect import DAGSTER_DATABASE, WAREHOUSE_DATABASE
from nexhealth_pipeline.warehouse.connect import dagster_url as find_dagster_url
from nexhealth_pipeline.warehouse.connect import warehouse_url as find_warehouse_url

__all__ = ["WebhookRun", "run_webhook_job"]

_OPS = {APPLY_JOB: APPLY_OP, REPLAY_JOB: REPLAY_OP, SETUP_JOB: SETUP_OP}


@dataclass(frozen=True, slots=True)
class WebhookRun:
    """What came of one job."""

    run_id: str
    result: dict[str, Any] = field(default_factory=dict)
    """What the job says it has done, as JSON: see the job."""
    seconds: float = 0.0
    exit_status: int = 0
    """0 done, 1 something to look at, 130 stopped."""


def run_webhook_job(
    settings: Settings,
    job: str,
    config: Mapping[str, Any],
    *,
    kind: Literal["real", "sandbox"],
    warehouse_database: str = WAREHOUSE_DATABASE,
    dagster_database: str = DAGSTER_DATABASE,
) -> WebhookRun:
    """Run `job` (a name of :mod:`.names`) with the config of its step, and wait for its end.

    Must be called before any thread or connection is open. Raises PipelineError for what stopped it before it
    had done anything.
    """
    began = time.monotonic()
    pass_on(
        DATABASE_URL=find_warehouse_url(settings, database_name=warehouse_database),
        DAGSTER_DATABASE_URL=find_dagster_url(settings, database_name=dagster_database),
        NEXHEALTH_DATA_KIND=kind,
    )
    run_id = str(uuid4())
    (outcome,) = run_side_by_side([partial(_execute, job, dict(config), run_id)])
    if outcome.result is None:  # what one did that was stopped then is to be told
        raise_unless_answered(outcome, dry_run=config.get("dry_run", False))
    answer = outcome.result
    stopped = answer["stopped"] or outcome.status == Cancelled.exit_status
    status = Cancelled.exit_status if stopped else int(answer["failed"])
    return WebhookRun(run_id, answer["result"], time.monotonic() - began, status)


def _execute(job: str, config: dict[str, Any], run_id: str) -> dict[str, Any]:
    """In the child: execute the run; what it said, and how it ended."""
    told: dict[str, Any] = {}
    with open_instance(load_settings()) as instance, heard(told.update):
        definition = DEFINITIONS.resolve_job_def(job)
        outcome, stopped = run_job(instance, definition, _OPS[job], config, run_id, COMMAND_TAGS)
        if not stopped and not told and (failure := failure_of(outcome)) is not None:
            raise failure
    return {"result": told, "stopped": stopped, "failed": not outcome.success or bool(told.get("failed"))}
