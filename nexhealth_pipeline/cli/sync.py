"""`nexhealth sync`: the main job from a shell."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import click

from nexhealth_pipeline.cli.later import not_in_this_version
from nexhealth_pipeline.cli.progress import showing_progress
from nexhealth_pipeline.cli.realm import Realm, account
from nexhealth_pipeline.errors import InvalidSetting, PipelineError

if TYPE_CHECKING:
    from nexhealth_pipeline.orchestration.launch import SyncRequest, SyncSummary

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
    dry_run: bool


@click.command()
@click.option(
    "--mode",
    type=click.Choice(_MODES),
    default="incremental",
    show_default=True,
    help="incremental: what changed since the last sync, and all that was never read. full: everything again. "
    "reconcile: not in this version.",
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
@click.option("--start", type=_Day(), help="Only appointments that start on this day or later.")
@click.option("--end", type=_Day(), help="Only appointments that start on this day or earlier.")
@click.option("--dry-run", is_flag=True, help="Read all of it, write nothing, report what would be written.")
@click.option(
    "--explain", is_flag=True, help="Only say which requests it would send, how many, and how long they take."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--allow-mass-delete", is_flag=True, hidden=True)
def sync(*, explain: bool, as_json: bool, allow_mass_delete: bool, **asked: Any) -> int:
    """Copy what changed into the warehouse.

    Runs through Dagster, whose pages show it as well. Ctrl-C ends it on a committed page (exit status 130); the next sync goes on from there. Exit status 0: done;
    1: done, with a failed slice or a refused record to look at; 2: wrong use; 3: nothing could be read;
    4: the database could not be used.
    """
    if allow_mass_delete:
        raise not_in_this_version("nexhealth sync --allow-mass-delete")
    options = _Options(**asked)
    _check(options)
    realm = account()
    _begin(realm)
    realm.settings.api_keys()  # without a key nothing else is worth a start
    if explain:
        return _explain(realm, options, as_json=as_json)
    return run(realm, _request(options), as_json=as_json)


def _check(options: _Options) -> None:
    """Refuse what contradicts itself, before anything is started."""
    if options.mode == "reconcile":
        raise not_in_this_version("nexhealth sync --mode reconcile")
    if options.start and options.end and options.start > options.end:
        raise InvalidSetting(f"--start {options.start} is after --end {options.end}")
    if (options.start or options.end) and options.resources and not _windowed(options.resources):
        raise InvalidSetting(f"--start and --end are for appointments, not for {', '.join(options.resources)}")
    if options.patient and (options.resources or options.locations or options.start or options.end):
        raise InvalidSetting("--patient reads everything about one patient: leave out the other filters")
    if options.patient and options.dry_run:
        raise InvalidSetting("--patient and --dry-run do not go together")


def _windowed(resources: Sequence[str]) -> list[str]:
    from nexhealth_pipeline.catalog.collections import COLLECTIONS

    return [name for name in resources if COLLECTIONS[name].window is not None]


def _begin(realm: Realm) -> None:
    """Signals, logging, and the one loud word about real data on the embedded server."""
    from nexhealth_pipeline.cli.embedded_warning import warn_once
    from nexhealth_pipeline.cli.household import end_like_interrupt
    from nexhealth_pipeline.log import set_up_for

    end_like_interrupt()
    set_up_for(realm.settings)
    warn_once(realm)


def _request(options: _Options) -> "SyncRequest":
    from nexhealth_pipeline.orchestration.launch import SyncRequest
    from nexhealth_pipeline.sync.options import Mode

    return SyncRequest(
        mode=Mode(options.mode),
        resources=options.resources,
        locations=options.locations,
        start=options.start,
        end=options.end,
        dry_run=options.dry_run,
        patient=options.patient,
    )


def _explain(realm: Realm, options: _Options, *, as_json: bool) -> int:
    """Print what a sync would ask."""
    from nexhealth_pipeline.cli.explain import explained, explained_lines

    if options.patient:
        raise InvalidSetting("--explain cannot tell the requests of one patient: leave out --patient")
    found = explained(realm, _request(options))
    click.echo(json.dumps(found) if as_json else "\n".join(explained_lines(found)))
    return 0


def run(realm: Realm, request: "SyncRequest", *, as_json: bool) -> int:
    """Run a sync in `realm` and print how it ended; its exit status. Raises PipelineError."""
    from nexhealth_pipeline.cli.summary import summary_lines

    try:
        summary = _run(realm, request, as_json=as_json)
    except PipelineError as error:
        if as_json:
            click.echo(json.dumps({"error": str(error), "exit_status": error.exit_status}))
        raise
    if as_json:
        click.echo(json.dumps(summary.as_json(), default=str))
    else:
        click.echo("\n".join(summary_lines(summary, dry_run=request.dry_run)))
    return summary.exit_status


def _run(realm: Realm, request: "SyncRequest", *, as_json: bool) -> "SyncSummary":
    from nexhealth_pipeline.orchestration.launch import run_sync

    with showing_progress(json=as_json) as show:
        return run_sync(
            realm.settings,
            request,
            kind=realm.kind,
            warehouse_database=realm.warehouse_database,
            dagster_database=realm.dagster_database,
            on_progress=show,
        )
