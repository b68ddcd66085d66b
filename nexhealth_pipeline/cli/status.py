"""`nexhealth status`: how fresh each collection is at each location, and what is being read now."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from itertools import zip_longest
from typing import TYPE_CHECKING

import click

from nexhealth_pipeline.cli.json_output import json_line, told_as_json
from nexhealth_pipeline.cli.options import demo_option
from nexhealth_pipeline.cli.realm import Realm, account
from nexhealth_pipeline.cli.realm import demo as demo_realm
from nexhealth_pipeline.cli.report import Report, read_report
from nexhealth_pipeline.cli.tables import age, moment, number, table
from nexhealth_pipeline.errors import InvalidSetting, WarehouseOutdated

if TYPE_CHECKING:
    import psycopg

    from nexhealth_pipeline.settings import Settings
    from nexhealth_pipeline.warehouse.check_results import FailedCheck
    from nexhealth_pipeline.warehouse.webhook_health import EndpointState

__all__ = ["status", "status_lines", "watch"]

_EVERY_SECONDS = 2.0
_RUNS_ON_SCREEN = 3
"""Of a screen of 24 lines all five, with their head, would leave three lines for what is wrong and what is read."""


@click.command()
@click.option("--watch", "watching", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (with --watch one a line).")
@click.option("--check", "checking", is_flag=True, help="Run the checks now; otherwise those of the last night count.")
@click.option(
    "--acknowledge", is_flag=True, help="Note that the failed checks shown have been seen: all, or --only some."
)
@click.option(
    "--only",
    multiple=True,
    metavar="CHECK",
    help="With --acknowledge: this check alone (fresh), or of one collection (charges.fresh). Repeatable.",
)
@demo_option
def status(
    *, watching: bool, as_json: bool, checking: bool, acknowledge: bool, only: tuple[str, ...], demo: bool
) -> int:
    """Show how fresh each collection is.

    At each location; and what is being read now, what went wrong, and which checks failed.

    Exit status 1: a check found something that was not acknowledged.
    """
    from nexhealth_pipeline.warehouse.connect import connect

    with told_as_json(as_json):
        if watching and (checking or acknowledge):
            given = "--check" if checking else "--acknowledge"
            raise InvalidSetting(f"--watch only shows: leave out {given}, or --watch")
        if only:
            _refuse_unknown(only, acknowledge=acknowledge)
        realm, url = _warehouse(demo)
        with connect(url, autocommit=True) as connection:
            if watching:
                return watch(connection, as_json=as_json)
            if checking:
                _check(connection, realm.settings)
            report = read_report(connection)
    _print(report, as_json=as_json)
    if acknowledge:
        with connect(url, autocommit=True) as connection:
            _acknowledge(connection, report, only)
    return 1 if report.has_news else 0


def _warehouse(demo: bool) -> tuple[Realm, str]:
    """The realm and the address of its warehouse, at this release's schema. Raises InvalidSetting, WarehouseError."""
    from nexhealth_pipeline.log import set_up_for
    from nexhealth_pipeline.warehouse.migrate import check

    realm = demo_realm() if demo else account()
    set_up_for(realm.settings, quiet=True)
    url = realm.warehouse_url()
    try:
        check(url)
    except WarehouseOutdated:
        if demo:
            raise WarehouseOutdated(
                "the demo's warehouse is empty or older than this release: run `nexhealth demo`"
            ) from None
        raise
    return realm, url


def _check(connection: "psycopg.Connection", settings: "Settings") -> None:
    """Run every check, as the nightly job and the watchdog do; NexHealth is not asked."""
    from nexhealth_pipeline.sync.practice import load_practices
    from nexhealth_pipeline.warehouse.check_results import run_all
    from nexhealth_pipeline.warehouse.connect import driver_errors
    from nexhealth_pipeline.warehouse.webhook_health import examine, store_health

    with driver_errors("checking the warehouse"):
        institutions = [one.id for one in load_practices(connection, settings.subdomains).institutions]
        run_all(connection, institutions)
        found = examine(connection, silence_hours=settings.webhook_silence_hours, subdomains=settings.subdomains)
        store_health(connection, found, institutions)


def _refuse_unknown(only: tuple[str, ...], *, acknowledge: bool) -> None:
    """Raise InvalidSetting for an --only that chooses nothing: a misspelt one would leave its check to wake somebody."""
    from nexhealth_pipeline.warehouse.checks import CHECKS
    from nexhealth_pipeline.warehouse.webhook_health import COLLECTION, HEALTH_RULES

    if not acknowledge:
        raise InvalidSetting("--only says what --acknowledge is to note: give that as well")
    known = [(check.collection.name, check.rule.name) for check in CHECKS]
    known += [(COLLECTION, rule.name) for rule in HEALTH_RULES]
    names = dict.fromkeys(name for _, name in known)
    for one in only:
        if one not in names and tuple(one.split(".")) not in known:
            raise InvalidSetting(
                f"--only {one}: no check has that name; use one of: {', '.join(names)}"
                " (or with its collection before it, as in charges.fresh)"
            )


def _acknowledge(connection: "psycopg.Connection", shown: Report, only: tuple[str, ...]) -> None:
    """Note what was shown as seen, or those alone that `only` names."""
    from nexhealth_pipeline.warehouse.check_results import acknowledge
    from nexhealth_pipeline.warehouse.connect import driver_errors

    chosen = [
        one for one in shown.checks if not only or not {one.check, f"{one.collection}.{one.check}"}.isdisjoint(only)
    ]
    with driver_errors("acknowledging checks"):
        acknowledge(connection, chosen)


def _print(report: Report, *, as_json: bool) -> None:
    click.echo(json_line(asdict(report)) if as_json else "\n".join(status_lines(report)))


def watch(connection: "psycopg.Connection", *, as_json: bool, sleep: Callable[[float], None] = time.sleep) -> int:
    """Show the report again and again; Ctrl-C is the way to end it, so it ends with 0."""
    try:
        if sys.stdout.isatty() and not as_json:
            _watch_on_terminal(connection, sleep)
        while True:
            _print(read_report(connection), as_json=as_json)
            sleep(_EVERY_SECONDS)
    except KeyboardInterrupt:
        return 0


def _watch_on_terminal(connection: "psycopg.Connection", sleep: Callable[[float], None]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False, screen=True) as live:
        while True:
            size = live.console.size
            lines = _screen_lines(read_report(connection), size.width, size.height)
            live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)
            sleep(_EVERY_SECONDS)


def _screen_lines(report: Report, width: int, height: int) -> list[str]:
    """What of the report a terminal of that size has room for, the least fresh first.

    Freshness is what it is watched for, so it has half of the screen, or what it needs of that. What is read no more
    never gets fresher, so it comes last: else an office that was closed would be first for ever.
    """
    news = "\n".join(_news_lines(report)).split("\n")
    fresh = sorted(report.fresh, key=lambda one: (one.closed, one.complete_through is not None, one.complete_through))
    below = ["", *_fresh_lines(replace(report, fresh=fresh[:height]), width)]
    room = max(height, 3) - 1
    whole = len(news) + len(below) + len(fresh[height:])
    if whole <= room:
        return [*news, *below]
    news = "\n".join(_pressing_lines(report)).split("\n")
    room -= 1
    above = min(len(news), max(room // 2, room - len(below)))
    shown = [*news[:above], *below[: room - above]]
    return [*shown, f"... {whole - len(shown):,} lines more: `nexhealth status` without --watch shows them"]


def _pressing_lines(report: Report) -> list[str]:
    """The same as `_news_lines`, for a screen that has no room for all: few runs, and what is wrong before what is read.

    Of what is wrong the first of each kind comes first: a hundred failed slices hide no endpoint that is off.
    """
    endpoints = report.webhooks.endpoints if report.webhooks else []
    kinds = (
        [_endpoint_line(one, report.now) for one in endpoints if not one.active],
        _problem_lines(report),
        [_check_line(one) for one in report.checks if one.is_new],
        _quarantine_lines(report),
    )
    wrong = [line for firsts in zip_longest(*kinds) for line in firsts if line is not None]
    told = set(wrong)
    return [*_run_lines(report, _RUNS_ON_SCREEN), "", *wrong, *(one for one in _now_lines(report) if one not in told)]


def status_lines(report: Report) -> list[str]:
    """The report for people: what happens now first, what is long first seen last."""
    return [*_news_lines(report), "", *_fresh_lines(report)]


def _news_lines(report: Report) -> list[str]:
    """All but freshness."""
    return [*_run_lines(report), "", *_now_lines(report)]


def _now_lines(report: Report) -> list[str]:
    """All but freshness and runs."""
    lines = [*_reading_lines(report), *_problem_lines(report), *_quarantine_lines(report), *_webhook_lines(report)]
    return [*lines, *map(_check_line, report.checks)]


def _problem_lines(report: Report) -> list[str]:
    return [f"{one.status}: {one.slice} at {moment(one.at)}: {one.error}" for one in report.problems]


def _quarantine_lines(report: Report) -> list[str]:
    if not report.open_notes:
        return []
    return [f"in quarantine: {report.open_notes:,} (`nexhealth quarantine list` shows which records, and why)"]


def _webhook_lines(report: Report) -> list[str]:
    """Endpoints and the events that are not in the tables, where webhooks are in use."""
    state = report.webhooks
    if state is None:
        return []
    lines = [_endpoint_line(one, report.now) for one in state.endpoints]
    oldest = f" (the oldest for {age(state.oldest_pending_at, report.now)})" if state.oldest_pending_at else ""
    last = "" if state.last_event_at is None else f"last {age(state.last_event_at, report.now)} ago, "
    lines.append(
        f"webhook events: {last}{state.pending:,} pending{oldest}, {state.parked:,} parked,"
        f" {state.rejected_last_day:,} requests refused in the last day"
    )
    return lines


def _endpoint_line(one: "EndpointState", now: datetime) -> str:
    facts = [
        f"{'active' if one.active else 'INACTIVE'}, as NexHealth said {age(one.checked_at, now)} ago",
        f"{one.subscriptions:,} subscriptions",
        f"last event {age(one.last_event_at, now)} ago"
        if one.last_event_at
        else f"no event in {age(one.looked_since, now)}",
    ]
    if one.hole_since is not None:
        facts.append(f"events since {moment(one.hole_since)} may be missing")
    if one.retire_at is not None:
        facts.append(f"to be deleted at {moment(one.retire_at)}")
    return f"webhook endpoint {one.endpoint_id} ({one.target_url}): {', '.join(facts)}"


def _check_line(one: "FailedCheck") -> str:
    return (
        f"check {'failed' if one.is_new else 'acknowledged'} ({one.severity}): nexhealth_{one.collection} {one.check},"
        f" {f'institution {one.institution_id}' if one.institution_id else 'everything'}: {one.faults:,} fault{'s'[: one.faults > 1]}"
        + (f", for example {', '.join(one.sample_ids)}" if one.sample_ids else "")
    )


def _run_lines(report: Report, most: int | None = None) -> list[str]:
    """The latest runs, those that run first; `most` of them."""
    if not report.runs:
        return ["Nothing was synced yet: run `nexhealth sync` (the demo's warehouse is shown with --demo)."]
    rows = [
        [
            run.run_id,
            run.status,
            moment(run.started_at),
            moment(run.finished_at),
            f"{run.done} of {run.slices}",
            *map(number, (run.records, run.inserted, run.updated, run.requests)),
        ]
        for run in sorted(report.runs, key=lambda run: run.finished_at is not None)[:most]
    ]
    head = ("latest runs", "status", "began (UTC)", "ended", "slices", "read", "inserted", "updated", "requests")
    return table(head, rows, right="    >>>>>")


def _reading_lines(report: Report) -> list[str]:
    return [
        f"reading {one.slice}: {one.pages:,} pages, {one.records:,} records, since {age(one.started_at, report.now)}"
        if one.alive
        else f"interrupted: {one.slice} after {one.pages:,} pages; its process is gone, the next sync goes on there"
        for one in report.reading
    ]


def _fresh_lines(report: Report, width: int | None = None) -> list[str]:
    """A row a collection and place; without the places' names where they would push the ages off a screen of `width`."""
    if not report.fresh:
        return ["no collection was read completely yet"]
    rows = [
        [
            one.place,
            one.name,
            one.collection,
            moment(one.complete_through) or "not yet complete",
            age(one.complete_through, report.now),
            moment(one.last_full_at),
            moment(one.last_change_at),
            _source(one.source_read_status, age(one.source_read_status_at, report.now)),
        ]
        for one in report.fresh
    ]
    head = ("location", "name", "collection", "current to (UTC)", "age", "last read in full", "last change", "office")
    lines = table(head, rows, right="    >")
    if width is None or len(lines[1]) <= width:
        return lines
    return table((head[0], *head[2:]), [[row[0], *row[2:]] for row in rows], right="   >")


def _source(read_status: str | None, since: str) -> str:
    """NexHealth's own connection to the office: what it cannot read, nobody can copy."""
    if read_status is None:
        return ""
    return f"{'online' if read_status == 'green' else 'OFFLINE'}, read {since} ago" if since else read_status
