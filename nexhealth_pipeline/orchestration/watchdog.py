"""The watchdog of continuous sync: every quarter of an hour it asks whether events still come and are applied.

NexHealth switches an endpoint off after two days of errors and tells nobody, so somebody must ask. Results are
asset checks of the table of events; `nexhealth status` shows them as well. A run that was killed is repeated by
the next tick: all it does can be done twice.
"""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import psycopg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from nexhealth_pipeline.errors import ConfigurationError, PipelineError
from nexhealth_pipeline.orchestration.dead_runs import in_the_way
from nexhealth_pipeline.orchestration.holes import fill_holes
from nexhealth_pipeline.orchestration.housekeeping import dagster_database, keep_house_daily
from nexhealth_pipeline.orchestration.names import EVENTS_ASSET, SHORT_TAGS, WATCHDOG_JOB, WATCHDOG_STEP
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.orchestration.step import step
from nexhealth_pipeline.orchestration.worker import done_aside
from nexhealth_pipeline.sync.practice import load_practices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.check_rules import Severity
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.warehouse.migrate import require_release
from nexhealth_pipeline.warehouse.webhook_health import HEALTH_RULES, Health, examine, store_health
from nexhealth_pipeline.webhooks.registering.checking import check_endpoints
from nexhealth_pipeline.webhooks.sealing import Sealer

__all__ = ["EVENTS_SPEC", "WATCHDOG_CHECKS", "watchdog_job", "watchdog_schedule"]

_LOG = logging.getLogger(__name__)
_SEVERITY = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARNING: dg.AssetCheckSeverity.WARN}
_REST_SECONDS = 23 * 3600
"""Where nothing is registered, old changes are still to be removed: once a day."""

EVENTS_SPEC = dg.AssetSpec(
    EVENTS_ASSET,
    group_name="webhooks",
    description="Every request that came to the webhook receiver, and what became of it.",
    owners=["team:data-engineering"],
    kinds={"nexhealth", "postgres"},
    metadata={"dagster/table_name": f"public.{EVENTS_ASSET}"},
)
"""The table of events: the receiver fills it, runs observe it."""


@dg.multi_asset_check(
    name=WATCHDOG_STEP,
    specs=[dg.AssetCheckSpec(rule.name, asset=EVENTS_ASSET, description=rule.doc) for rule in HEALTH_RULES],
    can_subset=True,
    description="Asks NexHealth and the warehouse whether events still come and are applied; reads what was missed.",
)
def _check_webhooks(
    context: dg.AssetCheckExecutionContext, nexhealth: NexHealthResource
) -> Iterator[dg.AssetCheckResult]:
    wanted = {key.name for key in context.selected_asset_check_keys}
    with step(context) as stop, nexhealth.session(context.run.run_id, stop) as session:
        done_aside(context, lambda: _look(session, dagster_database(context.instance)), stop)
        if not stop.is_set():
            closed = fill_holes(context, session)
            if closed:
                context.log.info(f"what was missed has been read: endpoints {closed}")
        found, reasons = _examined(session), _unasked(session)
    yield from (_result(one, reasons.get(one.rule.name)) for one in found if one.rule.name in wanted)


WATCHDOG_CHECKS: tuple[dg.AssetChecksDefinition, ...] = (_check_webhooks,)
"""The watchdog's asset checks."""


def _look(session: SyncSession, dagster: str | None) -> None:
    """Ask NexHealth about our endpoints, remove what is old, and keep what the warehouse says."""
    _ask(session)
    keep_house_daily(session.settings, session.url, dagster, session.stop)
    _examined(session)


def _ask(session: SyncSession) -> None:
    """Look at the endpoints at NexHealth; what could not be asked shows in the checks after a while."""
    try:
        states = check_endpoints(session, Sealer.of(session.settings))
    except ConfigurationError as error:
        _LOG.warning("the endpoints cannot be checked", extra={"nexhealth": {"reason": str(error)}})
        return
    for state in states:
        fields = {"endpoint_id": state.endpoint_id, "verdict": state.verdict.value, "reason": state.reason}
        level = logging.INFO if state.fine else logging.WARNING
        _LOG.log(level, "an endpoint was checked", extra={"nexhealth": fields})


def _unasked(session: SyncSession) -> dict[str, str]:
    """Why a rule fails here that others would pass, by its name: the receiver may have a key that the daemon has not."""
    try:
        Sealer.of(session.settings)
    except ConfigurationError as error:
        return {"endpoint_active": f"NexHealth is not asked: {error}"}
    return {}


def _examined(session: SyncSession) -> list[Health]:
    """Ask the warehouse, and keep the answers."""
    with driver_errors("checking webhooks"), session.pool.connection() as connection:
        subdomains = session.settings.subdomains
        found = examine(connection, silence_hours=session.settings.webhook_silence_hours, subdomains=subdomains)
        practices = load_practices(connection, subdomains)
        store_health(connection, found, [one.id for one in practices.institutions])
    return found


def _result(health: Health, reason: str | None) -> dg.AssetCheckResult:
    told = f"{health.count:,} not so: {_where(health)}{f'. {reason}' if reason else ''}"
    return dg.AssetCheckResult(
        asset_key=EVENTS_ASSET,
        check_name=health.rule.name,
        passed=not health.count,
        severity=_SEVERITY[health.rule.severity],
        description=told if health.count else health.rule.doc,
        metadata={
            "count": health.count,
            "institutions": {str(institution): count for institution, count in health.institutions.items()},
            "sample_ids": [one for ids in health.sample_ids.values() for one in ids],
        },
    )


def _where(health: Health) -> str:
    named = [f"institution {one} ({count:,})" for one, count in health.institutions.items() if one]
    ids = ", ".join(health.sample_ids.get(0, ()))
    return ", ".join([*named[:5], *([f"ids {ids}"] if ids else [])])


watchdog_job: UnresolvedAssetJobDefinition = dg.define_asset_job(
    WATCHDOG_JOB,
    selection=dg.AssetSelection.checks(*WATCHDOG_CHECKS),
    description="Checks that events come and are applied; switches endpoints on again and reads what was missed.",
    tags=SHORT_TAGS,
)
"""The job of the watchdog."""


@dg.schedule(
    name=WATCHDOG_JOB,
    cron_schedule="*/15 * * * *",
    execution_timezone="UTC",
    job=watchdog_job,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Asks whether events still come and are applied.",
)
def watchdog_schedule(
    context: dg.ScheduleEvaluationContext, nexhealth: NexHealthResource
) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run, unless there is nothing to watch or the last one is still going."""
    try:
        nexhealth.settings().api_keys()
        with nexhealth.warehouse() as connection:
            require_release(connection)
            in_use, synced = _in_use(connection)
            busy = in_the_way(context.instance, connection, WATCHDOG_JOB)
    except PipelineError as error:
        return dg.SkipReason(str(error))
    if busy is not None:
        return dg.SkipReason(f"run {busy.run_id} of {WATCHDOG_JOB} is {busy.status.value.lower()}")
    if not in_use and not synced:
        return dg.SkipReason("nothing was synced yet, which begins with a run of nexhealth_practice")
    if not in_use and _ran_lately(context.instance):
        return dg.SkipReason("nothing is registered with NexHealth: run `nexhealth webhooks setup URL`")
    return dg.RunRequest()


def _in_use(connection: psycopg.Connection) -> tuple[bool, bool]:
    """Whether webhooks come (an endpoint is registered, or events came to one of elsewhere), and whether anything ran."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM nexhealth_webhooks WHERE removed_at IS NULL)"
        " OR EXISTS (SELECT FROM nexhealth_webhook_events), EXISTS (SELECT FROM nexhealth_runs)"
    ).fetchone()
    return (bool(row[0]), bool(row[1])) if row else (False, False)


def _ran_lately(instance: dg.DagsterInstance) -> bool:
    done = dg.RunsFilter(job_name=WATCHDOG_JOB, statuses=[dg.DagsterRunStatus.SUCCESS])
    records = instance.get_run_records(done, limit=1)
    ended = records[0].end_time if records else None
    # Later than now is by a clock that was ahead: it would rest until then.
    return ended is not None and 0 <= datetime.now(UTC).timestamp() - ended < _REST_SECONDS
