"""`nexhealth webhooks`: registers this pipeline with NexHealth, shows what is registered, removes it again."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from nexhealth_pipeline.cli.json_output import json_line, told_as_json
from nexhealth_pipeline.cli.options import demo_option, json_option
from nexhealth_pipeline.cli.realm import Realm, account
from nexhealth_pipeline.cli.realm import demo as demo_realm
from nexhealth_pipeline.cli.tables import moment, table
from nexhealth_pipeline.cli.webhook_events import apply, replay
from nexhealth_pipeline.errors import InvalidSetting

if TYPE_CHECKING:
    import psycopg

    from nexhealth_pipeline.sync.session import SyncSession
    from nexhealth_pipeline.webhooks.registering.one_key import KeySetUp
    from nexhealth_pipeline.webhooks.registering.registration import SetUp

__all__ = ["EndpointLine", "endpoint_lines", "webhooks"]

_LINE_SECONDS = 5.0
"""Between two lines of progress where there is no terminal."""


@click.group()
def webhooks() -> None:
    """Continuous sync: where NexHealth posts events to."""


@webhooks.command()
@click.argument("url")
@click.option("--rotate", is_flag=True, help="Change the secret: a new endpoint takes over, the old one goes in 49 h.")
@click.option("--prune", is_flag=True, help="Delete our subscriptions and endpoints that are no longer wanted.")
@click.option(
    "--replace", is_flag=True, help="Delete another's endpoint with this URL whose secret NexHealth does not show."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be changed.")
@json_option
def setup(url: str, *, rotate: bool, prune: bool, replace: bool, dry_run: bool, as_json: bool) -> int:
    """Let NexHealth post events to URL.

    URL is where `nexhealth serve` is reached from outside: https://, or http:// on this machine; without a path,
    /api/nexhealth-webhook. Makes the endpoint and a subscription for every institution and event that a collection
    takes, and stores the secret, sealed. What is there stays: run it again after every change, it makes what is missing.
    Institutions are those that a sync has read: of one that has joined since, run
    `nexhealth sync --resource institutions --resource locations` first, or wait for the night.
    An endpoint with the same URL that this pipeline did not make is taken over where NexHealth shows its secret;
    otherwise nothing is changed without --replace.

    Exit status 1: an institution was refused, the others are set up.
    """
    from nexhealth_pipeline.webhooks.registering.registration import set_up
    from nexhealth_pipeline.webhooks.sealing import Sealer
    from nexhealth_pipeline.webhooks.target import usable_url

    with told_as_json(as_json):
        realm = account()
        wanted, sealer = usable_url(url), Sealer.of(realm.settings)  # before anything is started
        with _session(realm, dry_run=dry_run) as session, _progress(quiet=as_json) as show:
            wish = {"prune": prune, "rotate": rotate, "replace": replace, "dry_run": dry_run}
            done = set_up(session, wanted, **wish, sealer=sealer, on_progress=show)
    click.echo(json_line(done.as_json()) if as_json else "\n".join(_set_up_lines(done)))
    return done.exit_status


@webhooks.command("list")
@json_option
@demo_option
def show(*, as_json: bool, demo: bool) -> int:
    """Show our endpoints.

    As they were found when NexHealth was last asked, how many events each institution is subscribed to, and when the
    last one came. Asks NexHealth nothing, and never shows a secret.
    """
    with told_as_json(as_json):
        found = _endpoints(demo_realm() if demo else account())
    if as_json:
        click.echo(json_line({"endpoints": [asdict(one) for one in found]}))
    else:
        click.echo("\n".join(_list_lines(found)))
    return 0


@webhooks.command()
@click.argument("url", required=False)
@click.option("--all", "everything", is_flag=True, help="All our endpoints, whatever their URL.")
@click.option("--forget", is_flag=True, help="Delete none, but forget those whose API key is not among the settings.")
@json_option
def remove(url: str | None, *, everything: bool, forget: bool, as_json: bool) -> int:
    """Delete our endpoint with URL.

    And with it its subscriptions: NexHealth posts nothing more to it. What was received stays. Without its API key an
    endpoint cannot be deleted; one that is forgotten is checked no more, and what NexHealth may still post to it is
    refused.
    """
    from nexhealth_pipeline.webhooks.registering.registration import remove as remove_at_nexhealth

    with told_as_json(as_json):
        if (url is None) != everything:
            raise InvalidSetting("give the endpoint's URL, or --all" + (": not both" if everything else ""))
        with _session(account()) as session:
            done = remove_at_nexhealth(session, url, forget=forget)
    lines = [f"endpoint {number} deleted: {address}" for number, address in done.removed]
    lines += [f"endpoint {number} forgotten: {address}" for number, address in done.forgotten]
    lines += [f"failed: {what}: {reason}" for what, reason in done.failures]
    click.echo(
        json_line(done.as_json())
        if as_json
        else "\n".join(lines or ["nothing to forget" if forget else "nothing is registered"])
    )
    return done.exit_status


for _command in (apply, replay):
    webhooks.add_command(_command)


@dataclass(frozen=True, slots=True)
class EndpointLine:
    """One endpoint of ours, without its secret."""

    endpoint_id: int
    url: str
    active: bool
    subscriptions: dict[str, int]
    """How many events, by institution."""
    registered_at: datetime
    checked_at: datetime
    last_event_at: datetime | None
    """Of the last seven days, since it was registered: nothing finds older ones but a look at every event."""
    hole_since: datetime | None
    """Since when events may be missing."""
    retire_at: datetime | None
    """When it is deleted, another one having taken its place."""


def _endpoints(realm: Realm) -> list[EndpointLine]:
    """Our endpoints as the realm's warehouse knows them. Raises WarehouseError."""
    from nexhealth_pipeline.log import set_up_for
    from nexhealth_pipeline.warehouse.connect import connect, driver_errors
    from nexhealth_pipeline.warehouse.migrate import check

    set_up_for(realm.settings, quiet=True)
    url = realm.warehouse_url()
    check(url)
    with driver_errors("reading endpoints"), connect(url, autocommit=True) as connection:
        return endpoint_lines(connection)


def endpoint_lines(connection: "psycopg.Connection") -> list[EndpointLine]:
    """Our endpoints by id, removed ones left out."""
    from nexhealth_pipeline.warehouse.webhook_health import endpoint_states
    from nexhealth_pipeline.webhooks.endpoints import known_endpoints

    last_events = {one.endpoint_id: one.last_event_at for one in endpoint_states(connection)}
    return [
        EndpointLine(
            one.endpoint_id,
            one.target_url,
            one.active,
            _by_institution(one.subscribed),
            one.registered_at,
            one.checked_at,
            last_events.get(one.endpoint_id),
            one.hole_since,
            one.retire_at,
        )
        for one in known_endpoints(connection)
    ]


def _by_institution(subscriptions: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in subscriptions:
        counts[one.subdomain] = counts.get(one.subdomain, 0) + one.active
    return counts


@contextmanager
def _session(realm: Realm, *, dry_run: bool = False) -> Iterator["SyncSession"]:
    """A session in the realm's warehouse, brought up to date unless it is a dry run."""
    from nexhealth_pipeline.cli.household import end_like_interrupt
    from nexhealth_pipeline.log import set_up_for
    from nexhealth_pipeline.sync.session import SyncSession
    from nexhealth_pipeline.warehouse.migrate import prepare

    end_like_interrupt()
    set_up_for(realm.settings)
    realm.settings.api_keys()  # without a key nothing else is worth a start
    url = realm.warehouse_url()
    prepare(url, realm.kind, dry_run=dry_run)
    with SyncSession(realm.settings, url) as session:
        yield session


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """What to call with subscriptions settled and planned: on a terminal one line that changes, elsewhere a few."""
    if quiet:
        yield None
        return
    terminal = sys.stderr.isatty()
    next_line = time.monotonic() + (0.0 if terminal else _LINE_SECONDS)

    def show(done: int, planned: int) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            click.echo(f"{done:,} of {planned:,} subscriptions", err=True, nl=not terminal)
            click.echo("\r" if terminal else "", err=True, nl=False)
            next_line = time.monotonic() + (0.1 if terminal else _LINE_SECONDS)

    yield show
    if terminal:
        click.echo("\033[K", err=True, nl=False)


def _set_up_lines(done: "SetUp") -> list[str]:
    lines = ["Nothing was changed: a dry run. What it would have done:"] if done.dry_run else []
    for key in done.keys:
        lines += _key_lines(done.url, key)
    lines += [f"failed: {what}: {reason}" for what, reason in done.failures]
    lines += [f"warning: {one}" for one in done.warnings]
    if not done.dry_run:
        lines.append("Events are received by `nexhealth serve`; `nexhealth webhooks list` shows what is registered.")
    return lines


def _key_lines(url: str, key: "KeySetUp") -> list[str]:
    whose = f" (key of {key.key_name})" if key.key_name else ""
    deleted = f"  deleted: endpoint {', '.join(map(str, key.endpoints_removed))}"
    if not key.institutions:
        key_name = f"the key of {key.key_name}" if key.key_name else "NEXHEALTH_API_KEY"
        return [f"{key_name}: no institution that it reaches is wanted any more", deleted]
    number = str(key.endpoint_id or "(new)")
    state = "created" if key.created else "active again" if key.reactivated else "is there"
    lines = [f"endpoint {number}{whose}: {state}: {url}"]
    counted = {
        "created": key.subscriptions_created,
        "activated": key.subscriptions_resumed,
        "moved": key.subscriptions_moved,
        "deleted": key.subscriptions_removed,
    }
    done = ", ".join(f"{count:,} {word}" for word, count in counted.items() if count) or "nothing to do"
    plural = "" if key.institutions == 1 else "s"
    lines.append(f"  {key.subscriptions:,} subscriptions of {key.institutions:,} institution{plural}: {done}")
    if key.rotated_from:
        lines.append(f"  endpoint {key.rotated_from} is deleted after 49 hours; until then both secrets are taken")
    if key.endpoints_removed:
        lines.append(deleted)
    if key.others:
        others = ", ".join(map(str, key.others))
        lines.append(f"  not ours, with the same URL, posts every event again: endpoint {others}")
    lines += [f"  {name}: not enabled by NexHealth: {', '.join(types)}" for name, types in key.not_enabled.items()]
    return lines


def _list_lines(found: list[EndpointLine]) -> list[str]:
    if not found:
        return ["nothing is registered: `nexhealth webhooks setup URL`"]
    head = ("endpoint", "state", "checked", "last event", "events missing since", "URL")
    rows = [
        [
            str(one.endpoint_id),
            f"until {moment(one.retire_at)}" if one.retire_at else "active" if one.active else "inactive",
            moment(one.checked_at),
            moment(one.last_event_at) or "none in 7 days",
            moment(one.hole_since),
            one.url,
        ]
        for one in found
    ]
    lines = table(head, rows, right=">")
    subscribed = [
        [str(one.endpoint_id), institution, str(count)]
        for one in found
        for institution, count in sorted(one.subscriptions.items())
    ]
    return lines + (["", *table(("endpoint", "institution", "events"), subscribed, right="> >")] if subscribed else [])
