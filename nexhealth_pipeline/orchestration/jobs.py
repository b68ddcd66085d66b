"""Jobs: one per partition scope, the nightly change read of appointments, and one patient on demand.

A webhook or change read sees parts of many slices, so it is an op job: it reports the partitions whose
rows changed and leaves how fresh the rest is to `nexhealth_freshness`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.orchestration.assets import (
    ASSETS,
    collections_in,
    fresh_after,
    require_in_time,
    require_known,
    require_partitions,
    step_name,
    unreached,
    warn_of_skipped,
)
from nexhealth_pipeline.orchestration.config import PatientConfig, SyncConfig
from nexhealth_pipeline.orchestration.metadata import as_of_metadata, result_metadata
from nexhealth_pipeline.orchestration.names import (
    BULK_TAGS,
    CHANGES_JOB,
    CHANGES_OP,
    PATIENT_JOB,
    PATIENT_OP,
    SCOPE_JOBS,
)
from nexhealth_pipeline.orchestration.nightly import complete_windows
from nexhealth_pipeline.orchestration.partitions import location_month_key
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.orchestration.step import Event, how_to_repeat, raise_failures, read, step
from nexhealth_pipeline.sync.filters import choose
from nexhealth_pipeline.sync.months import CHANGES, month_keys, utc_today
from nexhealth_pipeline.sync.patient import refresh_patient
from nexhealth_pipeline.sync.practice import Location, Practices
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult
from nexhealth_pipeline.warehouse.merge import Change

__all__ = ["JOBS", "change_events"]


@dg.op(name=CHANGES_OP, description="Reads what changed since the last read, however old its date.")
def _read_changes(context: dg.OpExecutionContext, config: SyncConfig, nexhealth: NexHealthResource) -> None:
    require_in_time(context)
    with step(context) as stop, nexhealth.session(context.run.run_id, stop, dry_run=config.dry_run) as session:
        _require_no_window(config)
        options = config.options(session.settings, fresh_after(context, session))
        practices = config.known_practices() or session.practices()
        require_known(practices, session.settings.subdomains)
        locations = _locations(context, practices, config.partitions)
        slices = [
            Slice(collection, location.institution, location, CHANGES)
            for collection in choose(collections_in(Scope.LOCATION_MONTH), options.filters, named=False, known=DECLARED)
            for location in locations
        ]
        results = read(
            context,
            session,
            lambda: run_slices(session, slices, options),
            len(slices),
            (lambda _: ()) if options.dry_run else partial(change_events, session),
        )
        if not stop.is_set():
            raise_failures(results, how_to_repeat(context, options))


def _require_no_window(config: SyncConfig) -> None:
    """Refuse days: changes are asked for by when they were made. Raises InvalidSetting."""
    if window := " ".join(f"{name} {day}" for name, day in (("start", config.start), ("end", config.end)) if day):
        raise InvalidSetting(
            f"{window}: changes are read of appointments of all days; leave it out, or launch "
            f"{SCOPE_JOBS[Scope.LOCATION_MONTH]} with it"
        )


def _locations(context: dg.OpExecutionContext, practices: Practices, keys: Sequence[str]) -> Sequence[Location]:
    """The active locations of `keys`, whose others are named and left out; all where there are no keys.

    Raises ConfigurationError where one is no partition at all, or none is of a location that is reached.
    """
    if not keys:
        return practices.active()
    require_partitions(context.instance, Scope.LOCATION, keys, practices)
    wanted = set(keys)
    known = [location for location in practices.locations if location.key in wanted]
    if not known:
        raise unreached(keys[0], "<subdomain>.<location id>", practices)
    active = [location for location in known if not location.inactive]
    warn_of_skipped(context, practices, sorted(wanted - {location.key for location in active}))
    return active


def change_events(session: SyncSession, result: SliceResult) -> Iterator[Event]:
    """The read itself as an observation; months with changed rows as materialized where they are complete."""
    piece, table = result.slice, result.slice.collection.table
    yield dg.AssetObservation(table, metadata=result_metadata(result))
    if not result.changes or not result.complete:
        return
    keys = _keys(session, piece, {change.location_id for change in result.changes})
    with session.pool.connection() as connection:
        complete = complete_windows(connection, [change.location_id for change in result.changes])
    for place, rows in _months(result.changes).items():
        if (piece.institution_id, *place) in complete and place[0] in keys:
            yield dg.AssetMaterialization(
                table,
                partition=location_month_key(keys[place[0]], place[1]),
                metadata={**as_of_metadata(result), "rows_changed": rows},
            )


def _keys(session: SyncSession, piece: Slice, location_ids: set[int]) -> dict[int, str]:
    """Keys by location; a read of changes nearly always tells of its own, which asks no question of the warehouse."""
    own = piece.location
    if own is not None and location_ids <= {own.id}:
        return {own.id: own.key}
    return {location.id: location.key for location in session.practices().active(piece.institution_id)}


def _months(changes: Iterable[Change]) -> Counter[tuple[int, str]]:
    """Changed rows by location and month of a partition: the first and last months own what lies beyond them."""
    months = month_keys(utc_today())
    rows: Counter[tuple[int, str]] = Counter()
    for change in changes:
        rows[change.location_id, min(max(change.month, months[0]), months[-1])] += change.rows
    return rows


@dg.op(name=PATIENT_OP, description="Reads everything about one patient, now.")
def _read_patient(context: dg.OpExecutionContext, config: PatientConfig, nexhealth: NexHealthResource) -> None:
    with step(context) as stop:
        patient = config.patient()
        with nexhealth.session(context.run.run_id, stop) as session:
            results = read(
                context,
                session,
                lambda: refresh_patient(session, session.practices(), patient),
                0,
                lambda result: [dg.AssetObservation(result.slice.collection.table, metadata=result_metadata(result))],
            )
            if not stop.is_set():
                raise_failures(results)


@dg.job(
    name=CHANGES_JOB,
    description="Brings changed appointments of all locations, however old their date.",
    tags=BULK_TAGS,
)
def _changes_job() -> None:
    _read_changes()


@dg.job(name=PATIENT_JOB, description="Refreshes one patient with everything about it.")
def _patient_job() -> None:
    _read_patient()


def _scope_job(scope: Scope) -> UnresolvedAssetJobDefinition:
    assets = next(assets for assets in ASSETS if assets.op.name == step_name(scope))
    return dg.define_asset_job(
        SCOPE_JOBS[scope],
        selection=dg.AssetSelection.assets(*assets.keys).without_checks(),
        description=f"Reads all collections kept by {scope.value.replace('_', ' and ')}.",
        # Discovery is a few requests, and waits for no long run: by it others know what there is, and who is offline.
        tags={} if scope is Scope.PRACTICE else BULK_TAGS,
    )


JOBS: list[dg.JobDefinition | UnresolvedAssetJobDefinition] = [
    *(_scope_job(scope) for scope in Scope),
    _changes_job,
    _patient_job,
]
"""All jobs of the code location."""
