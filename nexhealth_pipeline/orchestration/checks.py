"""The catalog's checks as asset checks: one step for all of them, so that a night costs one run.

They ask the warehouse only, so they are left out of the jobs that sync; after a night's runs have ended a
sensor starts the job, and once a day where none came, so that a copy nobody keeps is seen to grow old. Dagit runs
any of them on demand. A failed check of severity ERROR is blocking: it fails its run.
"""

from collections.abc import Iterator

import dagster as dg
import psycopg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from nexhealth_pipeline.errors import PipelineError
from nexhealth_pipeline.orchestration.dead_runs import in_the_way
from nexhealth_pipeline.orchestration.jobs import CHECKS_JOB
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.orchestration.webhook_names import SHORT_TAGS, WEBHOOK_JOBS
from nexhealth_pipeline.sync.practice import load_practices
from nexhealth_pipeline.warehouse.check_results import run_all
from nexhealth_pipeline.warehouse.check_rules import Severity
from nexhealth_pipeline.warehouse.checks import CHECKS, Check, CheckResult
from nexhealth_pipeline.warehouse.migrate import require_release
from nexhealth_pipeline.warehouse.webhook_health import COLLECTION

__all__ = ["ASSET_CHECKS", "CHECKS_SENSOR", "checks_job", "checks_sensor"]

CHECKS_SENSOR = "nexhealth_checks_after_syncs"
_REST_HOURS = 6
"""Least time between two runs that the sensor asks for: a catch-up in the morning makes a second one."""
_STALE_HOURS = 24
"""After so long the sensor asks for a run though nothing was synced: that is what some of the checks tell."""
_SEVERITY = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARNING: dg.AssetCheckSeverity.WARN}


def _key(check: Check) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(dg.AssetKey(check.asset), check.name)


def _spec(check: Check) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        check.name,
        asset=check.asset,
        description=check.rule.doc,
        blocking=check.rule.severity is Severity.ERROR,
        metadata={"table": check.collection.table},
    )


@dg.multi_asset_check(
    name="check_warehouse",
    specs=[_spec(check) for check in CHECKS],
    can_subset=True,
    description="Asks the warehouse whether the copy is complete, consistent and fresh.",
)
def _check_warehouse(
    context: dg.AssetCheckExecutionContext, nexhealth: NexHealthResource
) -> Iterator[dg.AssetCheckResult]:
    wanted = context.selected_asset_check_keys
    try:
        with nexhealth.warehouse_of_run(context.run.run_id) as connection:
            results = _run(connection, nexhealth, [check for check in CHECKS if _key(check) in wanted])
    except PipelineError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None
    yield from map(_result, results)


ASSET_CHECKS: tuple[dg.AssetChecksDefinition, ...] = (_check_warehouse,)
"""All asset checks."""


def _run(connection: psycopg.Connection, nexhealth: NexHealthResource, checks: list[Check]) -> list[CheckResult]:
    """Run and keep the results; institutions that the settings leave out are left out here as well."""
    practices = load_practices(connection, nexhealth.settings().subdomains)
    return run_all(connection, [one.id for one in practices.institutions], checks)


def _result(result: CheckResult) -> dg.AssetCheckResult:
    check = result.check
    return dg.AssetCheckResult(
        asset_key=check.asset,
        check_name=check.name,
        passed=result.passed,
        severity=_SEVERITY[check.rule.severity],
        description=result.description,
        metadata={
            "count": result.count,
            "institutions": {str(institution): count for institution, count in result.institutions.items()},
            "sample_ids": [one for ids in result.sample_ids.values() for one in ids],
            "details": result.details,
        },
    )


checks_job: UnresolvedAssetJobDefinition = dg.define_asset_job(
    CHECKS_JOB,
    selection=dg.AssetSelection.checks(*ASSET_CHECKS),
    description="Checks the whole copy; reads the warehouse only.",
    tags=SHORT_TAGS,
)
"""The job that runs all checks."""


@dg.sensor(
    name=CHECKS_SENSOR,
    job=checks_job,
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Checks the copy once the syncs that changed it have ended, and once a day in any case.",
)
def checks_sensor(context: dg.SensorEvaluationContext, nexhealth: NexHealthResource) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run of the checks once the syncs since the last one have ended, and after a day in any case.

    No key is asked for: without one nothing is synced any more.
    """
    try:
        with nexhealth.warehouse() as connection:
            require_release(connection)
            busy = in_the_way(context.instance, connection, CHECKS_JOB)
            reason = _why_not(connection, _webhook_runs(context.instance))
    except PipelineError as error:
        return dg.SkipReason(str(error))
    if busy is not None:
        return dg.SkipReason(f"run {busy.run_id} of {CHECKS_JOB} is {busy.status.value.lower()}")
    return dg.SkipReason(reason) if reason else dg.RunRequest()


def _webhook_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ids of the runs of continuous sync that are going on: they go on for most of the day, and change little."""
    live = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    filters = [dg.RunsFilter(job_name=job, statuses=live) for job in WEBHOOK_JOBS]
    return [run.run_id for one in filters for run in instance.get_runs(one)]


def _why_not(connection: psycopg.Connection, others: list[str]) -> str | None:
    """Why the checks need not run now, or None; `others` are running and are no syncs."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM nexhealth_runs WHERE finished_at IS NULL AND run_id <> ALL(%s)),"
        " EXISTS (SELECT FROM nexhealth_runs r WHERE r.finished_at > coalesce(c.at, '-infinity') AND EXISTS ("
        "  SELECT FROM nexhealth_sync_logs g WHERE g.run_id = r.run_id AND g.mode NOT IN ('webhook', 'replay'))),"
        " extract(epoch FROM clock_timestamp() - c.at) / 3600"
        " FROM (SELECT max(checked_at) AS at FROM nexhealth_check_results WHERE collection <> %s) c",
        (others, COLLECTION),
    ).fetchone()
    assert row is not None
    running, synced, hours = row
    if hours is not None and hours >= _STALE_HOURS:
        return None  # syncs of many locations may take days
    if running:
        return "a sync is going on"
    if not synced:
        return "nothing was synced since the last checks"
    return f"the checks ran in the last {_REST_HOURS} hours" if hours is not None and hours < _REST_HOURS else None
