"""`nexhealth sync`: the main job from a shell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import click

from nexhealth_pipeline.cli.json_output import json_line, told_as_json
from nexhealth_pipeline.cli.loading import loading
from nexhealth_pipeline.cli.options import json_option
from nexhealth_pipeline.cli.progress import look_seconds, showing_progress
from nexhealth_pipeline.cli.realm import Realm, account
from nexhealth_pipeline.errors import InvalidSetting

if TYPE_CHECKING:
    from nexhealth_pipeline.orchestration.launch import SyncSummary
    from nexhealth_pipeline.orchestration.request import SyncRequest
    from nexhealth_pipeline.sync.filters import Filters, Status

__all__ = ["run", "sync"]

_MODES = ("incremental", "full", "reconcile")


class _Day(click.ParamType[date]):
    """A date as people write it for machines."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """`value` as a date, or an error that says how to write one."""
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no date: write YYYY-MM-DD, for example 2026-01-31.", param, ctx)


class _Moment(click.ParamType[datetime]):
    """A time with a zone, or a day (UTC)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """`value` as a time in UTC, or an error that says how to write one."""
        from nexhealth_pipeline.sync.filters import moment_of

        if isinstance(value, datetime):
            return value
        try:
            return moment_of("", str(value))
        except InvalidSetting as error:
            self.fail(f"{str(error).strip()}, for example 2026-01-31T08:00:00Z.", param, ctx)


class _Resource(click.ParamType[str]):
    """A collection, by its name or its table's."""

    name = "collection"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The collection's name, or an error that lists all."""
        from nexhealth_pipeline.catalog.collections import COLLECTIONS

        names = [name for name, collection in COLLECTIONS.items() if collection.is_asset]
        name = str(value).removeprefix("nexhealth_")
        if name not in names:
            self.fail(f"{value!r} is no collection; use one of: {', '.join(names)}.", param, ctx)
        return name


@dataclass(frozen=True, slots=True)
class _Options:
    """What was asked for, as typed."""

    mode: str
    resources: tuple[str, ...]
    locations: tuple[str, ...]
    patient: int | None
    start: date | None
    end: date | None
    status: "Status | None"
    providers: tuple[int, ...]
    updated_since: datetime | None
    dry_run: bool
    allow_mass_delete: bool

    @property
    def filters(self) -> "Filters":
        """Which rows are wanted."""
        from nexhealth_pipeline.sync.filters import Filters

        return Filters(self.status, self.providers, self.updated_since)


@click.command()
@click.option(
    "--mode",
    type=click.Choice(_MODES),
    default="incremental",
    show_default=True,
    help="incremental: what changed since the last sync, and all that was never read. full: everything again. "
    "reconcile: everything again, then marks as deleted what the complete lists lack.",
)
@click.option("--resource", "resources", type=_Resource(), multiple=True, help="Only this collection; repeatable.")
@click.option(
    "--location",
    "locations",
    metavar="KEY",
    multiple=True,
    help="Only this location, by key (subdomain.id), id or name; repeatable.",
)
@click.option("--patient", type=click.IntRange(1), metavar="ID", help="Only this patient, and everything about them.")
@click.option("--start", type=_Day(), help="Only appointments of this day's month or later: whole months are read.")
@click.option("--end", type=_Day(), help="Only appointments of this day's month or earlier: whole months are read.")
@click.option(
    "--status",
    type=click.Choice(("active", "inactive")),
    help="Only rows that are active, or inactive, of the collections that NexHealth filters so.",
)
@click.option(
    "--provider",
    "providers",
    type=click.IntRange(1),
    metavar="ID",
    multiple=True,
    help="Only rows of this provider, of the collections that NexHealth filters so; repeatable.",
)
@click.option(
    "--updated-since",
    type=_Moment(),
    help="Only rows changed since this day or time, of the collections that NexHealth filters so.",
)
@click.option("--dry-run", is_flag=True, help="Read all of it, write nothing, report what would be written.")
@click.option(
    "--explain", is_flag=True, help="Only say which requests it would send, how many, and how long they take."
)
@json_option
@click.option(
    "--allow-mass-delete",
    is_flag=True,
    help="With --mode reconcile: mark rows as deleted even where suspiciously many would be at once.",
)
def sync(*, explain: bool, as_json: bool, **asked: Any) -> int:
    """Copy what changed into the warehouse.

    Filters add up. A filtered sync brings the rows asked for and leaves all else as it is: the next sync without filters
    reads as if it had not been.

    Runs through Dagster, whose pages show it as well. Ctrl-C ends it on a committed page (exit status 130); the next sync goes on from there, but for one of a part (filters, days, one patient), which is read anew. Exit status 0: done;
    1: done, with a failed slice or a refused record to look at; 2: wrong use; 3: nothing could be read;
    4: the database could not be used.
    """
    with told_as_json(as_json):
        options = _Options(**asked)
        _check(options)
        realm = account()
        _begin(realm)
        realm.settings.api_keys()  # without a key nothing else is worth a start
        if explain:
            return _explain(realm, options, as_json=as_json)
        if options.filters and not as_json:
            click.echo(f"Only rows by {options.filters.in_words()}, of {', '.join(_filtered(options))}.")
        return run(realm, _request(options), as_json=as_json)


def _check(options: _Options) -> None:
    """Refuse what contradicts itself, before anything is started."""
    _check_reconcile(options)
    if options.start and options.end and options.start > options.end:
        raise InvalidSetting(f"--start {options.start} is after --end {options.end}")
    if (options.start or options.end) and (without := _without_window(options.resources)):
        raise InvalidSetting(f"--start and --end are for appointments, not for {', '.join(without)}")
    if options.patient and (options.resources or options.locations or options.start or options.end or options.filters):
        raise InvalidSetting("--patient reads everything about one patient: leave out the other filters")
    if options.patient and options.dry_run:
        raise InvalidSetting("--patient and --dry-run do not go together")
    _filtered(options)


def _check_reconcile(options: _Options) -> None:
    """Absence can be told by complete reads only."""
    from nexhealth_pipeline.sync.options import Mode, require_judged

    given = {
        "--patient": options.patient,
        "--start": options.start,
        "--end": options.end,
        "--status": options.status,
        "--provider": options.providers,
        "--updated-since": options.updated_since,
    }
    part = [name for name, value in given.items() if value]
    require_judged(Mode(options.mode), allow_mass_delete=options.allow_mass_delete, part=part)


def _filtered(options: _Options) -> list[str]:
    """Names of the collections that a filtered sync reads. Raises InvalidSetting where a named one lacks a filter."""
    from nexhealth_pipeline.catalog.collections import COLLECTIONS
    from nexhealth_pipeline.sync.filters import choose

    if not options.filters:
        return []
    named = [COLLECTIONS[name] for name in options.resources]
    wanted = [one for one in named or COLLECTIONS.values() if one.window or not (options.start or options.end)]
    chosen = choose(wanted, options.filters, named=bool(named), known=COLLECTIONS.values())
    return [one.name for one in chosen]


def _without_window(resources: Sequence[str]) -> list[str]:
    from nexhealth_pipeline.catalog.collections import COLLECTIONS

    return [name for name in resources if COLLECTIONS[name].window is None]


def _begin(realm: Realm) -> None:
    """Signals, logging, and the one loud word about real data on the embedded server."""
    from nexhealth_pipeline.cli.embedded_warning import warn_once
    from nexhealth_pipeline.cli.household import end_like_interrupt
    from nexhealth_pipeline.log import set_up_for

    end_like_interrupt()
    set_up_for(realm.settings)
    warn_once(realm)


def _request(options: _Options) -> "SyncRequest":
    from nexhealth_pipeline.orchestration.request import SyncRequest
    from nexhealth_pipeline.sync.options import Mode

    return SyncRequest(
        mode=Mode(options.mode),
        resources=options.resources,
        locations=options.locations,
        start=options.start,
        end=options.end,
        filters=options.filters,
        dry_run=options.dry_run,
        allow_mass_delete=options.allow_mass_delete,
        patient=options.patient,
    )


def _explain(realm: Realm, options: _Options, *, as_json: bool) -> int:
    """Print what a sync would ask."""
    from nexhealth_pipeline.cli.explain import explained, explained_lines

    if options.patient:
        raise InvalidSetting("--explain cannot tell the requests of one patient: leave out --patient")
    found = explained(realm, _request(options))
    click.echo(json_line(found) if as_json else "\n".join(explained_lines(found)))
    return 0


def run(realm: Realm, request: "SyncRequest", *, as_json: bool, then: Callable[[], None] | None = None) -> int:
    """Run a sync in `realm` and print how it ended; its exit status. Raises PipelineError.

    `then`: what is to be shown after one that was not in vain. JSON is printed last: it says how all of it ended.
    """
    from nexhealth_pipeline.cli.summary import summary_lines

    summary = _run(realm, request, as_json=as_json)
    if not as_json:
        how = {"dry_run": request.dry_run, "partial": request.partial, "reconcile": request.mode == "reconcile"}
        click.echo("\n".join(summary_lines(summary, **how)))
    if then is not None and summary.exit_status in (0, 1):
        then()
    if as_json:
        click.echo(json_line(summary.as_json()))
    return summary.exit_status


def _run(realm: Realm, request: "SyncRequest", *, as_json: bool) -> "SyncSummary":
    with loading():
        from nexhealth_pipeline.orchestration.launch import run_sync

    with showing_progress(json=as_json) as show:
        return run_sync(
            realm.settings,
            request,
            kind=realm.kind,
            warehouse_database=realm.warehouse_database,
            dagster_database=realm.dagster_database,
            on_progress=show,
            look_seconds=look_seconds(),
        )
