"""The sensor of continuous sync: events that wait in the table get a run, one at a time.

The table is the truth and there is no cursor: ids are committed out of order, and whatever a tick, a run or a
daemon that died has left is found by the next tick.
"""

import itertools
import time
from datetime import UTC, datetime
from typing import NamedTuple

import dagster as dg
import psycopg

from nexhealth_pipeline.errors import PipelineError
from nexhealth_pipeline.orchestration.dead_runs import in_the_way, met_no_error
from nexhealth_pipeline.orchestration.names import APPLY_JOB, WEBHOOK_SENSOR
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.warehouse.migrate import require_release
from nexhealth_pipeline.webhooks.applying.pending import DUE

__all__ = ["webhook_sensor"]

_INTERVAL_SECONDS = 4
"""The daemon looks every 5 s and leaves out a sensor whose last tick was a moment less than its interval ago."""
_COUNTED = 10_000
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_LOOKED_AT = 20
"""The last runs, among which those that failed are counted."""
_FIRST_PAUSE_SECONDS = 20.0
_LONGEST_PAUSE_SECONDS = 600.0

_DUE = f"""
SELECT count(*), extract(epoch FROM clock_timestamp() - min(received_at))::float FROM (
    SELECT received_at FROM nexhealth_webhook_events
    WHERE status = 'pending' AND {DUE}
    ORDER BY id LIMIT %s) due
"""  # noqa: S608 - a constant
_WAITING = """
SELECT count(*), min(next_attempt_at) FROM (
    SELECT next_attempt_at FROM nexhealth_webhook_events WHERE status = 'pending' LIMIT %s) waiting
"""


class _Due(NamedTuple):
    """Events that can be applied now."""

    events: int
    """At most 10,000 are counted."""
    oldest_seconds: float


@dg.sensor(
    name=WEBHOOK_SENSOR,
    job_name=APPLY_JOB,
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts a run where webhook events wait and none is going on.",
)
def webhook_sensor(context: dg.SensorEvaluationContext, nexhealth: NexHealthResource) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run where an event is due, unless one is on its way."""
    try:
        nexhealth.settings().api_keys()
        with nexhealth.warehouse() as connection:
            require_release(connection)
            due = _due(connection)
            if due is None:
                return dg.SkipReason(_why_none(connection))
            busy = in_the_way(context.instance, connection, APPLY_JOB)
    except PipelineError as error:
        return dg.SkipReason(str(error))
    if busy is not None:
        return dg.SkipReason(
            f"run {busy.run_id} of {APPLY_JOB} is {busy.status.value.lower()}; it takes up these events"
        )
    pause = _pause(context.instance)
    if pause > 0:
        return dg.SkipReason(f"the last runs of {APPLY_JOB} failed; the next one begins in {pause:.0f} s")
    return _request(due)


def _request(due: _Due) -> dg.RunRequest:
    counted = f"{due.events:,}" if due.events < _COUNTED else f"{_COUNTED:,} or more"
    return dg.RunRequest(tags={"nexhealth/events": counted, "nexhealth/oldest_seconds": f"{due.oldest_seconds:.1f}"})


def _due(connection: psycopg.Connection) -> _Due | None:
    row = connection.execute(_DUE, (_COUNTED,)).fetchone()
    return _Due(row[0], row[1]) if row and row[0] else None


def _why_none(connection: psycopg.Connection) -> str:
    row = connection.execute(_WAITING, (_COUNTED,)).fetchone()
    if row is None or not row[0]:
        return "no event is pending"
    at: datetime | None = row[1]
    until = f", the first until {at.astimezone(UTC):%H:%M:%S} UTC" if at is not None else ""
    return f"{row[0]:,} events wait for their next try{until}"


def _pause(instance: dg.DagsterInstance) -> float:
    """Seconds until the next run may begin: runs that fail one after the other must not follow every five seconds.

    A run whose process was killed met no error that the next one would meet: it neither counts nor ends the row. Nor is one
    waited for that ended much later than now, by a clock that was ahead; a little later, by another host's, it may have.
    """
    records = instance.get_run_records(dg.RunsFilter(job_name=APPLY_JOB, statuses=_ENDED), limit=_LOOKED_AT)
    unbroken = itertools.takewhile(lambda record: record.dagster_run.status is dg.DagsterRunStatus.FAILURE, records)
    failed = [one for one in unbroken if not met_no_error(one.dagster_run)]
    if len(failed) < 2:
        return 0.0
    pause: float = min(_FIRST_PAUSE_SECONDS * 2 ** (len(failed) - 2), _LONGEST_PAUSE_SECONDS)
    left: float = pause - (time.time() - (failed[0].end_time or 0.0))
    return left if left <= 2 * _LONGEST_PAUSE_SECONDS else 0.0
