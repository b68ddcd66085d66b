"""What the forked children of a sync do: discover and plan, or execute one Dagster run."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import date, datetime
from typing import Any
from uuid import uuid4

import dagster as dg
import msgspec
import psycopg
from dagster._core.events import RunFailureReason

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.errors import Cancelled, InvalidSetting, PipelineError, TryLater, WarehouseError
from nexhealth_pipeline.orchestration.assets import PARTITIONS, add_partitions, require_reached, step_name
from nexhealth_pipeline.orchestration.code_location import DEFINITIONS
from nexhealth_pipeline.orchestration.command_runs import COMMAND_TAGS
from nexhealth_pipeline.orchestration.dead_runs import end_dead_runs
from nexhealth_pipeline.orchestration.instance import open_instance
from nexhealth_pipeline.orchestration.names import CHANGES_JOB, CHANGES_OP, PATIENT_JOB, PATIENT_OP, SCOPE_JOBS
from nexhealth_pipeline.orchestration.partitions import partition_tags
from nexhealth_pipeline.orchestration.request import SyncRequest
from nexhealth_pipeline.orchestration.step import EXIT_STATUS, FAILED_SLICES, listen
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.filters import choose
from nexhealth_pipeline.sync.months import CHANGES, utc_today
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import due_slices
from nexhealth_pipeline.sync.practice import Location, Practices, load_practices, practices_of_records
from nexhealth_pipeline.sync.slices import Slice, SliceResult
from nexhealth_pipeline.warehouse.connect import connect, driver_errors
from nexhealth_pipeline.warehouse.migrate import prepare
from nexhealth_pipeline.warehouse.state import database_time, load_watermarks
from nexhealth_pipeline.warehouse.sweeps import SWEEP_LISTS, begin_sweep, finish_sweep, open_sweep

__all__ = ["KINDS", "catch_up", "discover", "execute", "failure_of", "finish", "run_job"]

Job = dict[str, Any]
"""One Dagster run to execute, as JSON: job, op, run_id, assets, config."""
KINDS: dict[object, type[PipelineError]] = {2: InvalidSetting, 3: TryLater, 4: WarehouseError}
"""What to raise for an exit status that a run or a slice has told."""


def discover(settings: Settings, url: str, request: SyncRequest, kind: str) -> dict[str, Any]:
    """Read the practice collections and plan the runs of the rest.

    Raises ConfigurationError, ApiError where nothing could be read, WarehouseError.
    """
    prepare(url, kind, dry_run=request.dry_run)
    with open_instance(settings) as instance:
        with _warehouse(url, "planning a sync") as connection:
            end_dead_runs(instance, connection)
            began = database_time(connection)
        practice = _job(Scope.PRACTICE, _collections(Scope.PRACTICE, ()), [], {"dry_run": request.dry_run})
        found: dict[str, list[bytes]] = {}
        with listen(lambda result: found.update({result.slice.collection.name: result.records})):
            results, stopped, failure = _run(instance, practice)
    if stopped:
        raise Cancelled("stopped while the institutions and locations were read")
    if failure is not None:
        raise failure
    with _warehouse(url, "planning a sync") as connection:
        practices = load_practices(connection, settings.subdomains)
        if request.dry_run and not practices.institutions:
            practices = practices_of_records(found, settings.subdomains)
            # Dagster's keys are no data: without them it refuses the runs.
            with open_instance(settings) as instance:
                add_partitions(instance, practices)
        _require_practices(practices, results, request, settings)
        sweep, swept_from = _sweep(connection, settings, request)
        full_from = swept_from if request.mode.whole and swept_from else began
        lists_from = swept_from if swept_from and began - swept_from < SWEEP_LISTS else began
        jobs, planned = _plan(connection, practices, request, _fresh(full_from, lists_from))
        if request.dry_run:
            for job in jobs:
                job["config"]["practices"] = msgspec.json.encode(practices).decode()
    return {
        "run_id": practice["run_id"],
        "results": results,
        "jobs": jobs,
        "planned": planned,
        "dry_run": request.dry_run,
        "sweep": sweep,
        "catch_up": _fresh(began, lists_from) if full_from < began else None,
        "troubles": _troubles(practices, results),
    }


@contextmanager
def _warehouse(url: str, doing: str) -> Iterator[psycopg.Connection]:
    with connect(url, autocommit=True) as connection, driver_errors(doing):
        yield connection


def _sweep(
    connection: psycopg.Connection, settings: Settings, request: SyncRequest
) -> tuple[int | None, datetime | None]:
    """The sweep that this sync closes when it comes to its end, and since when a killed one had read."""
    if request.dry_run or request.patient is not None or request.filters:
        return None, None
    scope = _scope_hash(settings, request)
    if request.mode.whole:
        sweep, began, taken_up = begin_sweep(connection, request.mode.value, scope)
        return sweep, began if taken_up else None
    return open_sweep(connection, Mode.FULL.value, scope) or (None, None)


def _fresh(after: datetime, whole_after: datetime) -> dict[str, str]:
    return {"fresh_after": after.isoformat(), "whole_after": whole_after.isoformat()}


def catch_up(settings: Settings, url: str, request: SyncRequest, config: dict[str, str]) -> dict[str, Any]:
    """Plan the end of a full sync that went on with a killed one: changes of what that one had read.

    `config`: since when lists are fresh enough (this sync's begin; for those read whole the killed one's).

    Lists without an increment stay as the killed sync read them, at most a day ago. Raises WarehouseError.
    """
    names = tuple(
        one.name
        for one in DECLARED
        if one.is_asset and (one.increment or one.per) and (not request.resources or one.name in request.resources)
    )
    with _warehouse(url, "planning a sync") as connection:
        practices = load_practices(connection, settings.subdomains)
        changes = replace(request, mode=Mode.INCREMENTAL, resources=names, allow_mass_delete=False)
        jobs, planned = _plan(connection, practices, changes, config) if names else ([], 0)
    return {"jobs": jobs, "planned": planned}


def execute(job: Job, tell: Callable[[SliceResult], None] | None = None) -> dict[str, Any]:
    """Execute one Dagster run in this process: its slices' results, whether it was stopped, and what it broke off by.

    Each result goes to `tell` as it comes, too.
    """
    with open_instance(load_settings()) as instance, listen(tell) if tell else nullcontext():
        results, stopped, failure = _run(instance, job)
    return {"results": results, "stopped": stopped, "failure": failure and _broken_off(failure, results)}


def _broken_off(failure: PipelineError, results: list[dict[str, Any]]) -> dict[str, Any]:
    read = sum(row["absence"] is None for row in results)
    message = f"broke off after {read:,} slices: {failure}" if read else str(failure)
    return {"message": message, "exit_status": failure.exit_status}


def finish(url: str, sweep: int) -> None:
    """Note that a full sync came to its end by itself. Raises WarehouseError."""
    with _warehouse(url, "closing a sync") as connection:
        finish_sweep(connection, sweep)


def _run(instance: dg.DagsterInstance, job: Job) -> tuple[list[dict[str, Any]], bool, PipelineError | None]:
    results: list[SliceResult] = []
    tags = {**job["tags"], **partition_tags(instance, _definition(job), job["config"].get("partitions", ()))}
    with listen(results.append):
        outcome, stopped = run_job(instance, _definition_of(job), job["op"], job["config"], job["run_id"], tags)
    # What was read before it broke off is done, and counts.
    return [_as_json(result) for result in results], stopped, None if stopped else failure_of(outcome)


def _definition_of(job: Job) -> dg.JobDefinition:
    """The job with the wanted assets alone: an asset selection without a choice of checks would plan all their checks."""
    whole = DEFINITIONS.resolve_job_def(job["job"])
    assets = frozenset(dg.AssetKey(name) for name in job["assets"])
    return whole.get_subset(asset_selection=assets, asset_check_selection=frozenset()) if assets else whole


def run_job(
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    op: str,
    config: Mapping[str, Any],
    run_id: str,
    tags: Mapping[str, str],
) -> tuple[dg.ExecuteInProcessResult, bool]:
    """Execute a job of one op in this process, without a word on the console; what came of it, and whether it was stopped."""
    outcome = job.execute_in_process(
        instance=instance,
        run_id=run_id,
        run_config={
            "ops": {op: {"config": config}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        tags=dict(tags),
        raise_on_error=False,
    )
    return outcome, _was_stopped(instance, run_id)


def _was_stopped(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run was canceled; one that a signal met before its first slice Dagster takes for failed."""
    run = instance.get_run_by_id(run_id)
    if run is None:
        return False
    if run.tags.get("dagster/failure_reason") == RunFailureReason.UNEXPECTED_TERMINATION.value:
        instance.report_run_canceled(run, message="stopped by the user before anything was read")
        return True
    return run.status is dg.DagsterRunStatus.CANCELED


def _definition(job: Job) -> dg.PartitionsDefinition[str] | None:
    """The partitions of the job's assets; None for op jobs, whose keys are config alone."""
    return next((PARTITIONS[scope] for scope, name in SCOPE_JOBS.items() if name == job["job"]), None)


def failure_of(outcome: dg.ExecuteInProcessResult) -> PipelineError | None:
    """Why a run did not come to its end: the text of its Failure, else the kind of its error.

    None where it did: slices may have failed, each for itself.
    """
    if outcome.success:
        return None
    details = [event.event_specific_data for event in outcome.all_events]
    for detail in details:
        told = getattr(detail, "user_failure_data", None)
        if told is None or not told.metadata:
            continue
        if FAILED_SLICES in told.metadata:
            return None
        if EXIT_STATUS in told.metadata:
            kind = KINDS.get(told.metadata[EXIT_STATUS].value, PipelineError)
            return kind(told.description or "the run failed")
    errors = [error for detail in details if (error := getattr(detail, "error", None)) is not None]
    # Dagster wraps what a step raises.
    name = (errors[0].cause or errors[0]).cls_name if errors else "no error told"
    return PipelineError(f"the run failed ({name}); its log is in Dagster")


def _as_json(result: SliceResult) -> dict[str, Any]:
    return {
        "collection": result.slice.collection.name,
        "scope": result.slice.collection.scope,
        "label": result.slice.label,
        "status": result.status.value,
        "reason": result.reason,
        "exit_status": result.exit_status,
        "counts": asdict(result.counts),
        "seconds": result.seconds,
        "new_notes": result.new_notes,
        "absence": None if result.absence is None else asdict(result.absence),
    }


def _require_practices(
    practices: Practices, results: list[dict[str, Any]], request: SyncRequest, settings: Settings
) -> None:
    """Without one institution nothing can be planned, and where nothing answers nothing else would.

    A discovery that failed in part goes on with what is known; but one that is asked for is not to be called unknown
    where the list of locations failed.
    """
    failed = [row for row in results if row["status"] == "failed"]
    nothing_read = len(failed) == len(results) and not any(row["counts"]["pages"] for row in failed)
    if failed and (not practices.institutions or nothing_read):
        raise _refused(failed[0])
    unlisted = [row for row in failed if row["collection"] == "locations"]
    if unlisted and not all(map(practices.named, request.locations)):
        raise _refused(unlisted[0])
    if not failed:
        require_reached(practices, settings.subdomains)


def _troubles(practices: Practices, results: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Label and reason of what is wrong though every list was read: institutions are known, and no location of any.

    A copy that lacks every patient would look like one of a practice that has none.
    """
    if practices.locations or not practices.institutions or any(row["status"] == "failed" for row in results):
        return []
    names = _named([one.subdomain for one in practices.institutions])
    fix = "nothing of an office is copied; ask NexHealth which locations the key may read"
    return [("locations", f"NexHealth lists {names}, and no location there: {fix}")]


def _refused(row: dict[str, Any]) -> PipelineError:
    return KINDS.get(row["exit_status"], TryLater)(str(row["reason"]))


def _plan(
    connection: psycopg.Connection,
    practices: Practices,
    request: SyncRequest,
    fresh: dict[str, str],
) -> tuple[list[Job], int]:
    if request.patient is not None:
        return [_new_job(PATIENT_JOB, PATIENT_OP, (), {"patient_id": request.patient}, "1 patient")], 0
    locations = practices.chosen(request.locations)
    collections = [one for scope in list(Scope)[1:] for one in _collections(scope, request.resources)]
    if request.start or request.end:
        collections = [one for one in collections if one.window is not None]
    collections = choose(collections, request.filters, named=bool(request.resources), known=DECLARED)
    watermarks = load_watermarks(connection, [one.name for one in collections])
    options = SyncOptions(
        mode=request.mode, start=request.start, end=request.end, filters=request.filters, dry_run=request.dry_run
    )
    today = utc_today()
    slices = [
        piece
        for piece in due_slices(collections, practices, watermarks, options, today)
        if not locations or _chosen(piece, locations)
    ]
    config = _config(request, fresh)
    jobs = [job for scope in list(Scope)[1:] if (job := _scope_job(scope, slices, config)) is not None]
    changes = sorted({piece.location.key for piece in slices if piece.window_key == CHANGES and piece.location})
    if changes:
        jobs.append(_new_job(CHANGES_JOB, CHANGES_OP, (), {**config, "partitions": changes}, _named(changes)))
    return jobs, len(slices)


def _scope_job(scope: Scope, slices: Sequence[Slice], config: dict[str, Any]) -> Job | None:
    mine = [piece for piece in slices if piece.collection.scope is scope and piece.window_key != CHANGES]
    if not mine:
        return None
    keys = list(dict.fromkeys(piece.partition_key for piece in mine if piece.partition_key))
    collections = list({piece.collection.name: piece.collection for piece in mine}.values())
    return _job(scope, collections, keys, config)


def _job(scope: Scope, collections: Sequence[Collection], keys: list[str], config: dict[str, Any]) -> Job:
    if PARTITIONS[scope] is not None:
        config = {**config, "partitions": keys}
    assets = tuple(collection.table for collection in collections)
    return _new_job(SCOPE_JOBS[scope], step_name(scope), assets, config, _named(keys))


def _new_job(name: str, op: str, assets: tuple[str, ...], config: dict[str, Any], partitions: str) -> Job:
    # A command that was killed is repeated by whoever gave it, not by the daemon.
    tags = {**COMMAND_TAGS, "dagster/max_retries": "0"}
    if partitions:
        tags["nexhealth/partitions"] = partitions
    return {"job": name, "op": op, "run_id": str(uuid4()), "assets": assets, "config": config, "tags": tags}


def _named(keys: Sequence[str], most: int = 5) -> str:
    more = f" +{len(keys) - most}" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _config(request: SyncRequest, fresh: dict[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {"mode": request.mode.value, "dry_run": request.dry_run, **fresh}
    if request.allow_mass_delete:
        config["allow_mass_delete"] = True
    for name, day in (("start", request.start), ("end", request.end)):
        if isinstance(day, date):
            config[name] = day.isoformat()
    filters = request.filters
    if filters.status is not None:
        config["status"] = filters.status
    if filters.providers:
        config["providers"] = list(filters.providers)
    if filters.updated_since is not None:
        config["updated_since"] = filters.updated_since.isoformat()
    return config


def _collections(scope: Scope, names: Sequence[str]) -> list[Collection]:
    unknown = set(names) - {one.name for one in DECLARED if one.is_asset}
    if unknown:
        choices = ", ".join(name for name, one in COLLECTIONS.items() if one.is_asset)
        raise InvalidSetting(f"resource {sorted(unknown)[0]!r} is not known; use one of: {choices}")
    return [one for one in DECLARED if one.is_asset and one.scope is scope and (not names or one.name in names)]


def _chosen(piece: Slice, locations: list[Location]) -> bool:
    """Whether a slice belongs to the chosen locations; institution-wide lists go with their institution."""
    if piece.location is None:
        return piece.institution in {location.institution for location in locations}
    return piece.location in locations


def _scope_hash(settings: Settings, request: SyncRequest) -> str:
    """What a full sync is about, so that only the same one is taken up."""
    scope = [settings.subdomains, request.resources, request.locations, str(request.start), str(request.end)]
    return hashlib.blake2b(json.dumps(scope).encode(), digest_size=12).hexdigest()
