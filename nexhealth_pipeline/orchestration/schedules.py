"""The nightly run and the morning catch-up: a few runs for any number of locations.

A Dagster schedule launches one job, so there is one schedule per job and time of day, each asking for at
most one run (at night one more, of what is reconciled). The keys go into the run config, so that any choice of locations is one run. All run by
default; without a key they skip and say so.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import psycopg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    RUN_KEY_TAG,
    SCHEDULE_NAME_TAG,
    SCHEDULED_EXECUTION_TIME_TAG,
)
from dagster._utils.schedules import get_latest_completed_cron_tick

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.errors import InvalidSetting, PipelineError
from nexhealth_pipeline.orchestration.assets import PARTITIONS, step_name
from nexhealth_pipeline.orchestration.crons import check_crons
from nexhealth_pipeline.orchestration.dead_runs import end_dead_runs
from nexhealth_pipeline.orchestration.jobs import JOBS
from nexhealth_pipeline.orchestration.names import CHANGES_JOB, CHANGES_OP, MOST_TWO_DAYS, NIGHT_TAGS, SCOPE_JOBS
from nexhealth_pipeline.orchestration.nightly import Due, due_at_night, due_in_the_morning
from nexhealth_pipeline.orchestration.partitions import INSTITUTIONS, LOCATIONS, add_keys, keys_between, partition_tags
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.options import Mode
from nexhealth_pipeline.sync.slices import place_of
from nexhealth_pipeline.warehouse.migrate import require_release

__all__ = ["SCHEDULES"]

_BUSY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_Answer = list[dg.RunRequest] | dg.RunRequest | dg.SkipReason


@dataclass(frozen=True)
class _Timetable:
    """When, and what is due then."""

    name: str
    cron: str
    due: Callable[[psycopg.Connection, tuple[str, ...], datetime], Due]
    """Of these institutions (none named: all), as of the tick's time."""
    why: str


@dataclass(frozen=True)
class _Target:
    """A job, the step that its config is for, and its keys among what is due."""

    job: str
    step: str
    keys: Callable[[Due], list[str]]
    partitions: dg.PartitionsDefinition[str] | None = None


def _asset_target(scope: Scope, keys: Callable[[Due], list[str]]) -> _Target:
    return _Target(SCOPE_JOBS[scope], step_name(scope), keys, PARTITIONS[scope])


_PRACTICE = _Target(SCOPE_JOBS[Scope.PRACTICE], step_name(Scope.PRACTICE), lambda _: [])
_TARGETS = (
    _asset_target(Scope.INSTITUTION, lambda due: due.institutions),
    _asset_target(Scope.LOCATION, lambda due: due.locations),
    _asset_target(Scope.LOCATION_MONTH, lambda due: due.months),
    _Target(CHANGES_JOB, CHANGES_OP, lambda due: due.changes),
)


def _tick(
    context: dg.ScheduleEvaluationContext, nexhealth: NexHealthResource, timetable: _Timetable, target: _Target
) -> _Answer:
    """The runs of a tick, at most one a mode, or why there is none."""
    try:
        settings = nexhealth.settings()
        settings.api_keys()
        keys, gone = ([], []) if target is _PRACTICE else _keys(context, nexhealth, settings, timetable, target)
    except PipelineError as error:
        return dg.SkipReason(str(error))
    if not (keys or gone) and target is not _PRACTICE:
        chosen = f" of NEXHEALTH_SUBDOMAINS ({', '.join(settings.subdomains)})" if settings.subdomains else ""
        return dg.SkipReason(f"nothing{chosen} is due; a location is known once nexhealth_practice has read it")
    living = [
        run
        for run in context.instance.get_runs(dg.RunsFilter(job_name=target.job, statuses=_BUSY))
        if not _is_of_this_tick(context, run, _name(timetable, target))
    ]
    busy, others = _in_the_way(context.instance, living, target, {*keys, *gone})
    if busy is not None:
        return dg.SkipReason(f"run {busy.run_id} of {target.job} is still going; the next tick takes up the rest")
    keys, gone = ([key for key in some if key not in others] for some in (keys, gone))
    if not gone:
        return _request(context, target, keys)
    reconcile = _request(context, target, gone, Mode.RECONCILE)
    return [_request(context, target, keys, Mode.INCREMENTAL), reconcile] if keys else [reconcile]


def _is_of_this_tick(context: dg.ScheduleEvaluationContext, run: dg.DagsterRun, schedule: str) -> bool:
    """Whether this tick has asked for the run already: the daemon was killed in it, and evaluates it once more.

    It starts none twice that has the same key, and what was still to be asked for must not be lost.
    """
    return (
        run.tags.get(SCHEDULE_NAME_TAG) == schedule
        and RUN_KEY_TAG in run.tags
        and run.tags.get(SCHEDULED_EXECUTION_TIME_TAG) == context.scheduled_execution_time.astimezone(UTC).isoformat()
    )


def _in_the_way(
    instance: dg.DagsterInstance, living: Sequence[dg.DagsterRun], target: _Target, due: set[str]
) -> tuple[dg.DagsterRun | None, set[str]]:
    """A run of `living` that stands in the way of one over what is `due`, or None; and what of that is left to others.

    Those of schedules do. What somebody reads by hand is left to them, since a run that reads it as well waits for theirs,
    for days if that is a first load; and it must not cost other locations their night.
    """
    covered: set[str] = set()
    last = None
    for run in living:
        keys = _keys_of(instance, run, target)
        if keys is None:
            return run, set()
        if not due.isdisjoint(keys):
            covered |= due & keys
            last = run
    return last if covered == due else None, covered


def _keys_of(instance: dg.DagsterInstance, run: dg.DagsterRun, target: _Target) -> set[str] | None:
    """Keys of a run that somebody started; None = it is of a schedule, or reads all there are, or unknown ones."""
    if SCHEDULE_NAME_TAG in run.tags:  # repetitions of such a run have it as well
        return None
    ops: Any = run.run_config.get("ops") or {}
    chosen = ((ops.get(target.step) or {}).get("config") or {}).get("partitions")
    if chosen:
        return set(chosen)
    if PARTITION_NAME_TAG in run.tags:
        return {run.tags[PARTITION_NAME_TAG]}
    first, last = (run.tags.get(tag) for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG))
    if not (first and last and target.partitions):
        return None
    return keys_between(instance, target.partitions, first, last)


def _request(
    context: dg.ScheduleEvaluationContext, target: _Target, keys: list[str], mode: Mode | None = None
) -> dg.RunRequest:
    """One run; where a tick asks for two, the mode tells the daemon one from the other."""
    told: dict[str, object] = {} if mode is None else {"mode": mode.value}
    if mode is Mode.RECONCILE:
        told["every_list"] = False  # those have a slower rotation of their own, in every sync
    config = {"ops": {target.step: {"config": {"partitions": keys, **told}}}} if keys else {}
    tags = partition_tags(context.instance, target.partitions, keys)
    return dg.RunRequest(
        run_key=None if mode is None else mode.value,
        run_config=config,
        # What a first load of that long has not read is taken up by the next night. Discovery waits for no long run.
        tags={
            **tags,
            "nexhealth/partitions": str(len(keys) or 1),
            **MOST_TWO_DAYS,
            **({} if target is _PRACTICE else NIGHT_TAGS),
        },
    )


def _keys(
    context: dg.ScheduleEvaluationContext,
    nexhealth: NexHealthResource,
    settings: Settings,
    timetable: _Timetable,
    target: _Target,
) -> tuple[list[str], list[str]]:
    """Keys to read, and keys to reconcile; made partitions where they are none yet."""
    with nexhealth.warehouse() as connection:
        require_release(connection)
        end_dead_runs(context.instance, connection)
        due = timetable.due(connection, settings.subdomains, context.scheduled_execution_time)
    keys, gone = target.keys(due), [] if due.reconcile is None else target.keys(due.reconcile)
    known = _partitions(context.instance, target, [*keys, *gone])
    return [key for key in keys if place_of(key) in known], [key for key in gone if place_of(key) in known]


def _partitions(instance: dg.DagsterInstance, target: _Target, keys: list[str]) -> set[str]:
    """Institutions or locations that Dagster knows, those of `keys` added: it refuses a run of any other.

    Its database may be younger than the warehouse, or somebody has deleted a key. Of names that cannot be keys
    nexhealth_practice tells.
    """
    definition = INSTITUTIONS if target.partitions is INSTITUTIONS else LOCATIONS
    with suppress(InvalidSetting):
        add_keys(instance, definition, map(place_of, keys))
    return set(instance.get_dynamic_partitions(str(definition.name)))


def _name(timetable: _Timetable, target: _Target) -> str:
    return f"{timetable.name}_{target.job.removeprefix('nexhealth_')}"


def _schedule(timetable: _Timetable, target: _Target, timezone: str) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=_name(timetable, target),
        cron_schedule=timetable.cron,
        execution_timezone=timezone,
        job=next(job for job in JOBS if job.name == target.job),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=timetable.why,
    )
    def tick(context: dg.ScheduleEvaluationContext, nexhealth: NexHealthResource) -> _Answer:
        return _tick(context, nexhealth, timetable, target)

    return tick


def _settings_for_crons() -> Settings:
    """Crons and time zone; other settings that cannot be read are told by the runs, not by loading the code."""
    names = ("NEXHEALTH_NIGHTLY", "NEXHEALTH_CATCHUP", "NEXHEALTH_TIMEZONE")
    try:
        return load_settings()
    except PipelineError:
        given = {name: os.environ[name] for name in names if name in os.environ}
        return load_settings(environ=given, env_file=None)


def _schedules() -> list[dg.ScheduleDefinition]:
    settings = _settings_for_crons()
    check_crons(settings)

    def due_tonight(connection: psycopg.Connection, subdomains: tuple[str, ...], _tick: datetime) -> Due:
        return due_at_night(connection, subdomains)

    def due_after_the_night(connection: psycopg.Connection, subdomains: tuple[str, ...], tick: datetime) -> Due:
        # A daemon that was away comes to it late, perhaps after the next night's own tick.
        night = get_latest_completed_cron_tick(settings.nightly, tick, settings.timezone)
        return due_in_the_morning(connection, subdomains, night)

    nightly = _Timetable(
        "nexhealth_nightly",
        settings.nightly,
        due_tonight,
        "Every location's changes, however old their date; what was never complete is read in full, and a seventh "
        "of all is reconciled: read whole to see what is gone. Lists under patients and coverages are read by a thirtieth.",
    )
    catchup = _Timetable(
        "nexhealth_catchup",
        settings.catchup,
        due_after_the_night,
        "Locations whose office was offline at night, whose read failed, or that are new.",
    )
    timetables = [(nightly, target) for target in (_PRACTICE, *_TARGETS)] + [(catchup, one) for one in _TARGETS]
    return [_schedule(timetable, target, settings.timezone) for timetable, target in timetables]


SCHEDULES = _schedules()
"""All schedules of the code location."""
