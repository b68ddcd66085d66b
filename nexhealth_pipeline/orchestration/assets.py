"""The catalog's collections as assets: one multi-asset per partition scope.

One step reads many slices, so a run pays its start once and one collection's failure skips no other.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime

import dagster as dg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, RESUME_RETRY_TAG, RETRY_NUMBER_TAG, SCHEDULE_NAME_TAG

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.errors import ConfigurationError, InvalidSetting
from nexhealth_pipeline.orchestration.config import SyncConfig
from nexhealth_pipeline.orchestration.event_log import forget_planned_checks
from nexhealth_pipeline.orchestration.metadata import collection_metadata, result_metadata
from nexhealth_pipeline.orchestration.names import TWO_DAYS_SECONDS
from nexhealth_pipeline.orchestration.partitions import INSTITUTIONS, LOCATION_MONTHS, LOCATIONS, MONTHS, add_keys
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.orchestration.step import (
    Context,
    Event,
    chosen_partitions,
    how_to_repeat,
    raise_failures,
    read,
    report,
    step,
)
from nexhealth_pipeline.sync.filters import choose
from nexhealth_pipeline.sync.months import utc_today
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.plan import in_window, slices_of
from nexhealth_pipeline.sync.practice import Location, Practices
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult, place_of

__all__ = [
    "ASSETS",
    "PARTITIONS",
    "add_partitions",
    "collections_in",
    "events_of",
    "fresh_after",
    "require_in_time",
    "require_known",
    "require_partitions",
    "require_reached",
    "step_name",
    "unreached",
    "warn_of_skipped",
]

PARTITIONS: dict[Scope, dg.PartitionsDefinition[str] | None] = {
    Scope.PRACTICE: None,
    Scope.INSTITUTION: INSTITUTIONS,
    Scope.LOCATION: LOCATIONS,
    Scope.LOCATION_MONTH: LOCATION_MONTHS,
}
"""Partitions of the assets of each scope."""

_SCOPE_NAMES = {
    Scope.PRACTICE: "practice",
    Scope.INSTITUTION: "institutions",
    Scope.LOCATION: "locations",
    Scope.LOCATION_MONTH: "appointments",
}
_FORMS = {
    Scope.INSTITUTION: "<subdomain>",
    Scope.LOCATION: "<subdomain>.<location id>",
    Scope.LOCATION_MONTH: "<subdomain>.<location id>|<year>-<month>",
}
_NOT_REACHED = "the API key, or NEXHEALTH_SUBDOMAINS, does not reach it"
_NAMED_KEYS = 5
_BY_THE_DAEMON = frozenset({RETRY_NUMBER_TAG})
_GOES_ON = _BY_THE_DAEMON | {RESUME_RETRY_TAG}
"""Tags of a run that goes on with another: repeated by the daemon, or "re-executed from failure" in Dagit."""


def step_name(scope: Scope) -> str:
    """Name of the step that reads a scope's collections: `read_locations` and so on."""
    return f"read_{_SCOPE_NAMES[scope]}"


def collections_in(scope: Scope) -> tuple[Collection, ...]:
    """The collections whose assets have this scope."""
    return tuple(collection for collection in DECLARED if collection.is_asset and collection.scope is scope)


def events_of(result: SliceResult) -> Iterable[Event]:
    """What Dagster is told of a slice: a materialization where it is complete, else an observation."""
    asset, key = result.slice.collection.table, result.slice.partition_key
    if result.absence is not None:
        if not result.absence.quiet or result.reason:
            # Of a database, not of a slice: some have no partition to name.
            named = result.slice.collection.scope in (Scope.INSTITUTION, _scope_of(result.slice))
            where = key if named else None
            yield dg.AssetObservation(asset, partition=where, metadata=result_metadata(result))
    elif result.complete:
        yield dg.AssetMaterialization(asset, partition=key, metadata=result_metadata(result))
    else:
        yield dg.AssetObservation(asset, partition=key, metadata=result_metadata(result))


def _scope_of(piece: Slice) -> Scope:
    return Scope.INSTITUTION if piece.location is None else Scope.LOCATION


def fresh_after(context: Context, session: SyncSession) -> datetime:
    """Since when a complete slice need not be read again: the start of the run, or of the first it goes on with.

    A run that failed before it held its lock, as while the warehouse was away, has no row: those after it did the work.
    """
    runs = [run.run_id for run in _attempts(context.instance, context.run, _GOES_ON)]
    with session.pool.connection() as connection:
        row = connection.execute(
            "SELECT coalesce(min(started_at), clock_timestamp()) FROM nexhealth_runs WHERE run_id = ANY(%s)", (runs,)
        ).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


def _attempts(instance: dg.DagsterInstance, run: dg.DagsterRun, links: frozenset[str]) -> list[dg.DagsterRun]:
    """The run and all that it repeats by way of runs with one of the tags `links`, the first of them last."""
    if not run.tags.keys() & links:
        return [run]
    parent = instance.get_run_by_id(run.tags.get(PARENT_RUN_ID_TAG, ""))
    return [run] if parent is None else [run, *_attempts(instance, parent, links)]


def require_in_time(context: Context) -> None:
    """End a schedule's run that the daemon repeats after all the time that such a run may take: later ticks wait for it.

    The daemon repeats what was ended for its length as it does what was killed. Where somebody has repeated the night,
    the time begins with that. Raises Failure.
    """
    run = context.run
    if SCHEDULE_NAME_TAG not in run.tags or RETRY_NUMBER_TAG not in run.tags:
        return
    first = context.instance.get_run_record_by_id(_attempts(context.instance, run, _BY_THE_DAEMON)[-1].run_id)
    if first is not None and first.start_time is not None and time.time() - first.start_time > TWO_DAYS_SECONDS:
        raise dg.Failure(
            description=f"run {first.dagster_run.run_id}, which this one repeats, began more than "
            f"{TWO_DAYS_SECONDS // 3600} hours ago: the next tick of its schedule takes up the rest",
            allow_retries=False,
        )


def _spec(collection: Collection) -> dg.AssetSpec:
    upstream = [name for name in collection.upstream if COLLECTIONS[name].is_asset]
    return dg.AssetSpec(
        collection.table,
        group_name=collection.group,
        description=collection.doc,
        deps=[dg.AssetDep(COLLECTIONS[name].table, partition_mapping=_mapping(collection, name)) for name in upstream],
        owners=["team:data-engineering"],
        kinds={"nexhealth", "postgres"},
        metadata=collection_metadata(collection),
        skippable=True,
        partitions_def=PARTITIONS[collection.scope],
    )


def _mapping(collection: Collection, upstream: str) -> dg.PartitionMapping | None:
    """Lineage between scopes is for people: there no partition points to any.

    A backfill would follow it: to every location from one, where somebody chooses that, and where one fails or is
    skipped. And each run lists all that its assets point to, 53,000 months at a thousand locations.
    """
    if collection.scope is COLLECTIONS[upstream].scope or COLLECTIONS[upstream].scope is Scope.PRACTICE:
        return None
    return dg.SpecificPartitionsPartitionMapping([])


def _read(context: dg.AssetExecutionContext, config: SyncConfig, nexhealth: NexHealthResource, scope: Scope) -> None:
    collections = [one for one in collections_in(scope) if dg.AssetKey(one.table) in context.selected_asset_keys]
    # A backfill, and "Materialize" in Dagit, plan the checks of their assets; behind a step without outputs none runs.
    forget_planned_checks(context.instance.event_log_storage, context.run.run_id)
    require_in_time(context)
    with step(context) as stop, nexhealth.session(context.run.run_id, stop, dry_run=config.dry_run) as session:
        options = config.options(session.settings, fresh_after(context, session))
        collections = _filtered(context, collections, scope, options)
        practices = config.known_practices() or session.practices()
        keys: list[str] = []
        if scope is not Scope.PRACTICE:
            require_known(practices, session.settings.subdomains)
            require_partitions(context.instance, scope, config.partitions, practices)
            keys = chosen_partitions(context, config.partitions, plan=not options.partial)
        slices = _slices(context, collections, scope, keys, practices)
        if options.start or options.end:
            slices = _in_window(context, slices, options)
        try:
            results = read(
                context,
                session,
                lambda: run_slices(session, slices, options),
                len(slices),
                (lambda _: ()) if options.dry_run else events_of,
            )
        finally:
            discovers = scope is Scope.PRACTICE and not options.dry_run
            refused = _refused(context, session) if discovers else None
        if stop.is_set():
            return
        raise_failures(results, how_to_repeat(context, options))
        if refused is not None:
            raise refused
        if not options.partial and "institutions" in {one.name for one in collections}:
            require_reached(session.practices(), session.settings.subdomains)


def _refused(context: dg.AssetExecutionContext, session: SyncSession) -> InvalidSetting | None:
    """Add the partitions of what is known; what of it cannot be one, to be told after what ended the read."""
    try:
        add_partitions(context.instance, session.practices())
    except InvalidSetting as error:
        return error
    return None


def _filtered(
    context: dg.AssetExecutionContext, collections: list[Collection], scope: Scope, options: SyncOptions
) -> list[Collection]:
    """Those that have the run's filters: of a whole job the others are left out, assets chosen by name are refused."""
    chosen = len(collections) < len(collections_in(scope))
    kept = choose(collections, options.filters, named=chosen, known=DECLARED)
    if len(kept) < len(collections):
        context.log.info(f"filtered by {options.filters.in_words()}: {', '.join(one.name for one in kept)}")
    return kept


def require_partitions(instance: dg.DagsterInstance, scope: Scope, keys: Sequence[str], practices: Practices) -> None:
    """Refuse `keys` of a run's config that are no partitions: nothing would be read for them, and the run would be green.

    Those of what can no longer be read stay partitions. Raises ConfigurationError.
    """
    if scope is Scope.INSTITUTION:
        definition, places = INSTITUTIONS, {one.subdomain for one in practices.institutions}
    else:
        definition, places = LOCATIONS, {one.key for one in practices.locations}
    places.update(instance.get_dynamic_partitions(str(definition.name)))
    months = MONTHS.get_partition_keys() if scope is Scope.LOCATION_MONTH else []
    months_there = f", {months[0]} to {months[-1]}" if months else ""
    ends = {f"|{month}" for month in months} or {""}
    for key in keys:
        place, bar, month = key.partition("|")
        if place not in places:
            raise unreached(key, _FORMS[scope] + months_there, practices)
        if bar + month not in ends:
            wrong = "its month is missing, or none that there is" if months else "nothing of this job is kept by month"
            raise ConfigurationError(f"partition {key!r}: {wrong}; write {_FORMS[scope]}{months_there}")


def _slices(
    context: dg.AssetExecutionContext,
    collections: Sequence[Collection],
    scope: Scope,
    keys: Sequence[str],
    practices: Practices,
) -> list[Slice]:
    """The slices of the run's partitions; one of an inactive location, or with none that could be asked, is left out.

    Raises ConfigurationError where there is no partition, or none of a known institution or location.
    """
    wanted = set(keys)
    if scope is not Scope.PRACTICE:
        if not wanted:
            raise ConfigurationError(
                "no partition is chosen: launch the run with partitions, or name some in its config"
            )
        known = {one.subdomain for one in practices.institutions} | {one.key for one in practices.locations}
        if not any(place_of(key) in known for key in wanted):
            raise unreached(keys[0], _FORMS[scope], practices)
    slices = {
        collection.table: [
            piece
            for piece in slices_of(collection, practices, utc_today())
            if scope is Scope.PRACTICE or piece.partition_key in wanted
        ]
        for collection in collections
    }
    lacking = {table: wanted - {piece.partition_key for piece in read} for table, read in slices.items()}
    _tell_skipped(context, practices, lacking)
    return [piece for read in slices.values() for piece in read]


def _in_window(context: dg.AssetExecutionContext, slices: list[Slice], options: SyncOptions) -> list[Slice]:
    """The months of the run's partitions that its window overlaps. Raises ConfigurationError where none does."""
    kept = in_window(slices, options, utc_today())
    window = " ".join(f"{name} {day}" for name, day in (("start", options.start), ("end", options.end)) if day)
    if slices and not kept:
        raise ConfigurationError(
            f"{window}: none of the chosen partitions is a month of appointments in this window: choose its months, "
            "or leave it out"
        )
    if len(kept) < len(slices):
        context.log.info(f"{window}: {len(kept)} of {len(slices)} months")
    return kept


def require_known(practices: Practices, subdomains: Sequence[str]) -> None:
    """Refuse a run before anything is known of `subdomains` (of all, if empty): it could read nothing and look done."""
    if not practices.institutions:
        chosen = f" of NEXHEALTH_SUBDOMAINS ({', '.join(subdomains)})" if subdomains else ""
        raise ConfigurationError(
            f"no institution or location{chosen} is known yet: run the job nexhealth_practice (or `nexhealth sync`) first"
        )


def require_reached(practices: Practices, subdomains: Iterable[str]) -> None:
    """Refuse names in NEXHEALTH_SUBDOMAINS that a whole discovery has not met: nothing of them would ever be read.

    They are mistyped, or NexHealth has renamed the institution. Raises InvalidSetting.
    """
    missing = sorted(set(subdomains) - {institution.subdomain for institution in practices.institutions})
    if missing:
        raise InvalidSetting(
            f"NEXHEALTH_SUBDOMAINS: the key reaches no institution {', '.join(map(repr, missing))}; subdomains are "
            "case-sensitive"
        )


def unreached(key: str, form: str, practices: Practices) -> ConfigurationError:
    """Why a run is refused that names no partition of anything known, `key` first: it would read nothing and be green.

    `form` is how such keys are written.
    """
    if (location := _renamed(key, _by_id(practices))) is not None:
        name, now = location.institution.subdomain, key.replace(place_of(key), location.key, 1)
        return ConfigurationError(f"partition {key!r}: its institution is called {name} now; write {now}")
    return ConfigurationError(
        f"partition {key!r}: the API key, or NEXHEALTH_SUBDOMAINS, reaches nothing of that name; write {form}"
    )


def warn_of_skipped(context: Context, practices: Practices, keys: Sequence[str]) -> None:
    """Say in the run's log which keys can no longer be read, and why."""
    if keys:
        reasons = _why_skipped(practices, keys[:_NAMED_KEYS])
        named = ", ".join(f"{key} ({why})" for key, why in reasons.items())
        more = f" and {len(keys) - _NAMED_KEYS} more" if len(keys) > _NAMED_KEYS else ""
        context.log.warning(f"{len(keys)} partitions skipped: {named}{more}")


def _why_skipped(practices: Practices, keys: Iterable[str]) -> dict[str, str]:
    reasons = {location.key: "its location is inactive" for location in practices.locations if location.inactive}
    reasons |= {one.subdomain: "none of its locations is active" for one in practices.institutions}
    by_id = _by_id(practices)
    return {key: reasons.get(place_of(key)) or _why_unknown(key, by_id) for key in keys}


def _why_unknown(key: str, by_id: Mapping[str, Location]) -> str:
    location = _renamed(key, by_id)
    return _NOT_REACHED if location is None else f"its institution is called {location.institution.subdomain} now"


def _by_id(practices: Practices) -> dict[str, Location]:
    return {str(location.id): location for location in practices.locations}


def _renamed(key: str, by_id: Mapping[str, Location]) -> Location | None:
    """The location that had this key before its institution got another subdomain, or it another institution."""
    subdomain, _, number = place_of(key).rpartition(".")
    location = by_id.get(number) if subdomain else None
    return None if location is None or location.key == place_of(key) else location


def _tell_skipped(
    context: dg.AssetExecutionContext, practices: Practices, lacking: Mapping[str, AbstractSet[str]]
) -> None:
    """Say of which keys tables (by name) lack a slice: on the asset, and in the log where no table of the run has one.

    Keys are never deleted, so some may stand for what can no longer be read.
    """
    reasons = _why_skipped(practices, {key for keys in lacking.values() for key in keys})
    warn_of_skipped(context, practices, sorted(frozenset(reasons).intersection(*lacking.values())))
    report(
        context,
        [
            dg.AssetObservation(table, partition=key, metadata={"skipped": reasons[key]})
            for table, keys in lacking.items()
            for key in sorted(keys)
        ],
    )


def add_partitions(instance: dg.DagsterInstance, practices: Practices) -> None:
    """Add the keys of what is known and active; nothing is ever deleted, least of all after a failed read.

    Raises InvalidSetting for a name that cannot be a key, when all others are there.
    """
    refused: list[InvalidSetting] = []
    for definition, keys in (
        (INSTITUTIONS, [institution.subdomain for institution in practices.institutions]),
        (LOCATIONS, [location.key for location in practices.active()]),
    ):
        try:
            add_keys(instance, definition, keys)
        except InvalidSetting as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _build(scope: Scope) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=step_name(scope),
        specs=[_spec(collection) for collection in collections_in(scope)],
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run() if PARTITIONS[scope] else None,
        description=f"Reads collections by {scope.value.replace('_', ' and ')}, slice by slice.",
    )
    def read_scope(
        context: dg.AssetExecutionContext, config: SyncConfig, nexhealth: NexHealthResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        _read(context, config, nexhealth, scope)
        yield from ()  # a generator: no output is expected of it

    return read_scope


ASSETS: tuple[dg.AssetsDefinition, ...] = tuple(_build(scope) for scope in Scope)
"""One multi-asset per scope."""
