"""The catalog's checks as asset checks: one step for all of them, so that a night costs one run.

They ask the warehouse only, so they are left out of the jobs that sync; after a night's runs have ended a
sensor starts the job, and once a day where none came, so that a copy nobody keeps is seen to grow old. Where a check was
never run, as a release has brought it or the runs broke off before it, the sensor starts the job as soon as no sync is going
on. Dagit runs any of them on demand.

A failed check of severity ERROR is blocking: it fails its run, after all have told theirs. No sync is held up by it, whose
jobs run none (a "Materialize" in Dagit plans them, and `orchestration.assets` forgets that): what it brings may mend the rows.
Assets of somebody's that run together with the checks are, and that is what the flag is for.
"""

import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import dagster as dg
import psycopg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from nexhealth_pipeline.errors import PipelineError
from nexhealth_pipeline.orchestration.dead_runs import in_the_way, met_no_error
from nexhealth_pipeline.orchestration.names import CHECKS_JOB, SHORT_TAGS, WEBHOOK_JOBS
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.sync.practice import load_practices
from nexhealth_pipeline.warehouse.check_results import run_all
from nexhealth_pipeline.warehouse.check_rules import Severity
from nexhealth_pipeline.warehouse.checks import CHECKS, Check, CheckResult
from nexhealth_pipeline.warehouse.migrate import require_release

__all__ = ["ASSET_CHECKS", "CHECKS_SENSOR", "checks_job", "checks_sensor"]

CHECKS_SENSOR = "nexhealth_checks_after_syncs"
_REST_HOURS = 6
"""Least time between two runs that the sensor asks for: a catch-up in the morning makes a second one."""
_STALE_HOURS = 24
"""After so long the sensor asks for a run though nothing was synced: that is what some of the checks tell."""
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_LOOKED_AT = 20
"""The last runs, among which those that ended without an answer are counted."""
_KILLED = 2
"""So many whose process was killed are followed by the next one at once."""
_FIRST_PAUSE_SECONDS = 3600.0
_LONGEST_PAUSE_SECONDS = _REST_HOURS * 3600.0
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

    While some check was never run, all syncs that ever were count as since, and nothing rests.

    No key is asked for: without one nothing is synced any more.
    """
    try:
        with nexhealth.warehouse() as connection:
            require_release(connection)
            busy = in_the_way(context.instance, connection, CHECKS_JOB)
            last = _last_checks(connection)
            reason = _why_not(connection, last, _webhook_runs(context.instance))
    except PipelineError as error:
        return dg.SkipReason(str(error))
    if busy is not None:
        return dg.SkipReason(f"run {busy.run_id} of {CHECKS_JOB} is {busy.status.value.lower()}")
    reason = reason or _pause(context.instance, last)
    return dg.SkipReason(reason) if reason else dg.RunRequest()


class _LastChecks(NamedTuple):
    """When the checks were run last."""

    at: datetime | None
    """Of each the last time, of these the first: a click on one check in Dagit is no run of them all. None = never."""
    all_ran: bool
    """Whether every check that there is was ever run; else no time stands for all of them."""


def _last_checks(connection: psycopg.Connection) -> _LastChecks:
    row = connection.execute(
        # Later than now is by a clock that was ahead then: none would run until that time. Minutes are a clock set right.
        "SELECT min(at), bool_and(at IS NOT NULL) FROM (SELECT max(r.checked_at)"
        "  FILTER (WHERE r.checked_at < clock_timestamp() + interval '5 minutes') AS at"
        " FROM unnest(%s::text[], %s::text[]) c (collection, check_name)"
        " LEFT JOIN nexhealth_check_results r USING (collection, check_name) GROUP BY collection, check_name) each",
        ([one.collection.name for one in CHECKS], [one.rule.name for one in CHECKS]),
    ).fetchone()
    assert row is not None
    return _LastChecks(*row)


def _pause(instance: dg.DagsterInstance, last: _LastChecks) -> str | None:
    """Why the next run must wait, or None: what ended without an answer would end so again five minutes later.

    Those count that began after the last answers, but not the first two whose process was killed: they met no error
    that the next one would meet. What ended much later than now, by a clock that was ahead, is not waited for.
    """
    records = instance.get_run_records(dg.RunsFilter(job_name=CHECKS_JOB, statuses=_ENDED), limit=_LOOKED_AT)
    broken = [*itertools.takewhile(lambda record: _is_broken(record, last), records)]
    killed = [record for record in broken if met_no_error(record.dagster_run)]
    excused = killed[-_KILLED:]
    counted = [record for record in broken if record not in excused]
    if not counted:
        return None
    pause = min(_FIRST_PAUSE_SECONDS * 2 ** (len(counted) - 1), _LONGEST_PAUSE_SECONDS)
    again = (counted[0].end_time or 0.0) + pause
    if not 0 < again - time.time() <= 2 * _LONGEST_PAUSE_SECONDS:
        return None
    run = counted[0].dagster_run
    ended = "was canceled" if run.status is dg.DagsterRunStatus.CANCELED else "failed"
    return f"run {run.run_id} of {CHECKS_JOB} {ended}; the next one begins at {datetime.fromtimestamp(again, UTC):%H:%M} UTC"


def _is_broken(record: dg.RunRecord, last: _LastChecks) -> bool:
    if record.dagster_run.status is dg.DagsterRunStatus.SUCCESS:
        return False
    began = record.start_time or record.end_time or 0.0
    return not last.all_ran or last.at is None or began > last.at.timestamp()


def _webhook_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ids of the runs of continuous sync that are going on: they go on for most of the day, and change little."""
    live = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    filters = [dg.RunsFilter(job_name=job, statuses=live) for job in WEBHOOK_JOBS]
    return [run.run_id for one in filters for run in instance.get_runs(one)]


def _why_not(connection: psycopg.Connection, last: _LastChecks, others: list[str]) -> str | None:
    """Why the checks need not run now, or None; `others` are running and are no syncs."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM nexhealth_runs WHERE finished_at IS NULL AND run_id <> ALL(%s)),"
        " EXISTS (SELECT FROM nexhealth_runs r WHERE r.finished_at > coalesce(%s::timestamptz, '-infinity') AND EXISTS ("
        "  SELECT FROM nexhealth_sync_logs g WHERE g.run_id = r.run_id AND g.mode NOT IN ('webhook', 'replay'))),"
        " extract(epoch FROM clock_timestamp() - %s::timestamptz) / 3600",
        (others, last.at if last.all_ran else None, last.at),
    ).fetchone()
    assert row is not None
    running, synced, hours = row
    if hours is not None and hours >= _STALE_HOURS:
        return None  # syncs of many locations may take days
    if running:
        return "a sync is going on"
    if not synced:
        return "nothing was synced since the last checks"
    rested = hours is None or hours >= _REST_HOURS or not last.all_ran
    return None if rested else f"the checks ran in the last {_REST_HOURS} hours"
