"""Jobs of continuous sync: events applied as they come, events replayed, endpoints registered.

A run of `nexhealth_webhook_apply` goes on while events come, so that a burst is one run and not a run every
five seconds. It reports partitions and never single events: a materialization where the slice is complete,
else an observation (what it has is right, but there may be more).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import dagster as dg

from nexhealth_pipeline.orchestration.config import ApplyConfig, ReplayConfig, SetupConfig
from nexhealth_pipeline.orchestration.names import (
    APPLY_JOB,
    APPLY_OP,
    EVENTS_ASSET,
    REPLAY_JOB,
    REPLAY_OP,
    SETUP_JOB,
    SETUP_OP,
    SHORT_TAGS,
    WEBHOOK_TAGS,
)
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.orchestration.step import report, step
from nexhealth_pipeline.orchestration.webhook_apply import Stay, Tally, apply_and_report
from nexhealth_pipeline.orchestration.worker import Context, done_aside
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.webhooks.applying.apply import PATIENCE
from nexhealth_pipeline.webhooks.applying.replaying import Selection, rehearse, replay
from nexhealth_pipeline.webhooks.registering.registration import SetUp, set_up

__all__ = ["WEBHOOK_JOB_DEFINITIONS", "heard"]

_Told = Callable[[dict[str, Any]], None]
_listeners: list[_Told] = []


@contextmanager
def heard(listener: _Told) -> Iterator[None]:
    """Hand what runs in this process have done to `listener`, as JSON: how a command learns it."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _tell(result: dict[str, Any]) -> None:
    for listener in _listeners:
        listener(result)


@dg.op(name=APPLY_OP, description="Applies events until none comes any more, or those that are due are done.")
def _apply(context: dg.OpExecutionContext, config: ApplyConfig, nexhealth: NexHealthResource) -> None:
    with step(context) as stop:
        stay = None if config.due_only else Stay(*config.stay())
        with nexhealth.session(context.run.run_id, stop, retry=PATIENCE) as session:
            _tell(_counted(apply_and_report(context, session, stay=stay)))


def _counted(tally: Tally) -> dict[str, Any]:
    return {**tally.counts, "rows": tally.rows, "still_due": tally.still_due}


@dg.op(name=REPLAY_OP, description="Marks stored events pending again, and applies them.")
def _replay(context: dg.OpExecutionContext, config: ReplayConfig, nexhealth: NexHealthResource) -> None:
    with step(context) as stop:
        selection = _selection(config)
        with nexhealth.session(context.run.run_id, stop, dry_run=config.dry_run, retry=PATIENCE) as session:
            _tell(_rehearsed(context, session, selection) if config.dry_run else _replayed(context, session, selection))


def _selection(config: ReplayConfig) -> Selection:
    since, until = config.period()
    return Selection(since, until, tuple(config.resources), tuple(config.statuses), tuple(config.ids))


def _rehearsed(context: Context, session: SyncSession, selection: Selection) -> dict[str, Any]:
    found = asdict(done_aside(context, lambda: rehearse(session, selection), session.stop))
    context.log.info("would replay: " + ", ".join(f"{count:,} {name}" for name, count in found.items()))
    return {"dry_run": True, **found}


def _replayed(context: Context, session: SyncSession, selection: Selection) -> dict[str, Any]:
    def mark() -> int:
        with driver_errors("choosing webhook events"), session.pool.connection() as connection:
            return replay(connection, selection)

    marked = done_aside(context, mark, session.stop)
    context.log.info(f"{marked:,} events are pending again")
    return {"dry_run": False, "events": marked, **_counted(apply_and_report(context, session, stay=None))}


@dg.op(name=SETUP_OP, description="Registers with NexHealth where events are posted to.")
def _set_up(context: dg.OpExecutionContext, config: SetupConfig, nexhealth: NexHealthResource) -> None:
    with step(context) as stop, nexhealth.session(context.run.run_id, stop, dry_run=config.dry_run) as session:
        wish = config.model_dump()
        done = done_aside(context, lambda: set_up(session, **wish), stop)
        _tell(done.as_json())
        _report_set_up(context, done)


def _report_set_up(context: Context, done: SetUp) -> None:
    """Say what there is now; a refusal fails the run, what was made stays."""
    for one in done.keys:
        metadata: dict[str, Any] = {
            "key_name": one.key_name or "NEXHEALTH_API_KEY",
            "endpoint_id": one.endpoint_id,
            "changes": one.changes,
            "institutions": one.institutions,
            "subscriptions": one.subscriptions,
            "subscriptions_created": one.subscriptions_created,
            "endpoints_removed": one.endpoints_removed,
        }
        state = "set up" if one.institutions else "ended"  # with nobody left whom its endpoint would be for
        context.log.info(f"{state}: " + ", ".join(f"{name} {count}" for name, count in metadata.items()))
        if not done.dry_run:
            report(context, [dg.AssetObservation(EVENTS_ASSET, metadata=metadata)])
    if done.failures:
        lines = [f"{what}: {reason}" for what, reason in done.failures]
        raise dg.Failure("not everything could be set up:\n" + "\n".join(lines), allow_retries=False)


@dg.job(name=APPLY_JOB, description="Applies the webhook events that wait.", tags=WEBHOOK_TAGS)
def _apply_job() -> None:
    """Started by the sensor; starting it by hand does no harm."""
    _apply()


@dg.job(name=REPLAY_JOB, description="Applies stored webhook events once more.", tags=SHORT_TAGS)
def _replay_job() -> None:
    """Started by a person, in Dagit or by `nexhealth webhooks replay`."""
    _replay()


@dg.job(name=SETUP_JOB, description="Registers with NexHealth, as `nexhealth webhooks setup` does.", tags=SHORT_TAGS)
def _setup_job() -> None:
    """Started by a person."""
    _set_up()


WEBHOOK_JOB_DEFINITIONS = [_apply_job, _replay_job, _setup_job]
"""The op jobs of continuous sync."""
