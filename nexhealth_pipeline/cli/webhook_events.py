"""`nexhealth webhooks apply` and `replay`: stored events, applied now or once more."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from nexhealth_pipeline.cli.household import Household, end_like_interrupt
from nexhealth_pipeline.cli.json_output import json_line, told_as_json
from nexhealth_pipeline.cli.loading import loading
from nexhealth_pipeline.cli.options import json_option
from nexhealth_pipeline.cli.realm import Realm, account, shut_in_demo, usable_demo_home
from nexhealth_pipeline.cli.realm import demo as demo_realm
from nexhealth_pipeline.cli.sandbox import start_sandbox
from nexhealth_pipeline.errors import Cancelled, InvalidSetting

if TYPE_CHECKING:
    from nexhealth_pipeline.orchestration.webhook_launch import WebhookRun

__all__ = ["apply", "replay"]

_GRACE_SECONDS = 3.0
_OUTCOMES = ("applied", "superseded", "failed", "waiting", "parked")
_demo_option = click.option(
    "--demo", is_flag=True, help="The demo's warehouse, with its local NexHealth, instead of the account's."
)


@click.command()
@json_option
@_demo_option
def apply(*, as_json: bool, demo: bool) -> int:
    """Apply the events that wait.

    All that are due when it begins, however long that takes. `nexhealth dev` and Dagster's daemon do so by themselves
    within seconds. Runs through Dagster, whose pages show it as well. Ctrl-C ends it on a committed batch (exit status
    130).

    Exit status 1: an event failed, and is tried again later, or was parked, or still waits; `nexhealth status` says more.
    """
    from nexhealth_pipeline.orchestration.names import APPLY_JOB

    with told_as_json(as_json):
        run = _run(APPLY_JOB, {"due_only": True}, demo=demo)
    return _print(run, as_json=as_json, lines=_applied_lines)


@click.command()
@click.option("--since", metavar="TIME", help="Received at this day (YYYY-MM-DD) or time (ISO 8601), or later.")
@click.option("--until", metavar="TIME", help="Received before this day or time.")
@click.option("--resource", "resources", metavar="COLLECTION", multiple=True, help="Of this collection; repeatable.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice(("applied", "superseded", "parked")),
    multiple=True,
    help="With this status; repeatable. All of them unless given.",
)
@click.option("--id", "ids", type=click.IntRange(1), metavar="N", multiple=True, help="This event; repeatable.")
@click.option("--dry-run", is_flag=True, help="Apply them, say what changed, and roll it back. Asks the API nothing.")
@json_option
@_demo_option
def replay(*, dry_run: bool, as_json: bool, demo: bool, **chosen: Any) -> int:
    """Apply stored events once more.

    At least one of the options says which; they add up. What the tables have in this version or a newer one stays
    untouched, so that replaying a week on a current copy changes nothing. Events whose payload was removed
    (NEXHEALTH_WEBHOOK_PAYLOAD_DAYS) are left out.
    """
    from nexhealth_pipeline.orchestration.names import REPLAY_JOB

    with told_as_json(as_json):
        config = _config(**chosen)
        run = _run(REPLAY_JOB, {**config, "dry_run": dry_run}, demo=demo)
    return _print(run, as_json=as_json, lines=_rehearsed_lines if dry_run else _replayed_lines, dry_run=dry_run)


def _config(
    since: str | None, until: str | None, resources: tuple[str, ...], statuses: tuple[str, ...], ids: tuple[int, ...]
) -> dict[str, Any]:
    """Run config of a replay. Raises InvalidSetting before anything is started."""
    from nexhealth_pipeline.webhooks.applying.replaying import Selection

    if not (since or until or resources or statuses or ids):
        raise InvalidSetting("say which events: --since, --until, --resource, --status or --id")
    names = tuple(name.removeprefix("nexhealth_") for name in resources)
    begins, ends = _moment("--since", since), _moment("--until", until)
    Selection(begins, ends, names, statuses, ids)
    config = {
        "since": begins and begins.isoformat(),
        "until": ends and ends.isoformat(),
        "resources": list(names),
        "statuses": list(statuses),
        "ids": list(ids),
    }
    return {name: value for name, value in config.items() if value}


def _moment(option: str, text: str | None) -> datetime | None:
    from nexhealth_pipeline.sync.filters import moment_of

    return None if text is None else moment_of(option, text)


def _run(job: str, config: dict[str, Any], *, demo: bool) -> "WebhookRun":
    """Run a job and wait for it. Raises PipelineError."""
    end_like_interrupt()
    with _demo() if demo else nullcontext(account()) as realm:
        return _run_in(realm, job, config)


@contextmanager
def _demo() -> Iterator[Realm]:
    """The demo's realm, beside its local NexHealth; this process sees nothing of the account's any more."""
    with Household(_GRACE_SECONDS) as household:
        realm = demo_realm(start_sandbox(household, usable_demo_home()))
        shut_in_demo(realm)
        yield realm


def _run_in(realm: Realm, job: str, config: dict[str, Any]) -> "WebhookRun":
    from nexhealth_pipeline.log import set_up_for
    from nexhealth_pipeline.warehouse.migrate import prepare

    with loading():
        from nexhealth_pipeline.orchestration.webhook_launch import run_webhook_job
    set_up_for(realm.settings)
    realm.settings.api_keys()  # events may make it ask the API
    url = realm.warehouse_url()
    prepare(url, realm.kind, dry_run=config.get("dry_run", False))
    return run_webhook_job(
        realm.settings,
        job,
        config,
        kind=realm.kind,
        warehouse_database=realm.warehouse_database,
        dagster_database=realm.dagster_database,
    )


def _has_news(run: "WebhookRun") -> bool:
    return any(run.result.get(name) for name in ("failed", "parked", "waiting", "still_due"))


def _print(
    run: "WebhookRun", *, as_json: bool, lines: Callable[[dict[str, Any]], list[str]], dry_run: bool = False
) -> int:
    """Say what was done; the command's exit status."""
    status = run.exit_status or int(_has_news(run))
    if as_json:
        told = {"run_id": run.run_id, "seconds": round(run.seconds, 3), **run.result, "exit_status": status}
        click.echo(json_line(told))
        return status
    is_stopped = status == Cancelled.exit_status
    said = lines(run.result) if run.result or not is_stopped else []  # it may have done much, and not told
    stopped = f"stopped: {'a dry run keeps nothing' if dry_run else 'what was committed stays'}"
    click.echo("\n".join([*said, stopped] if is_stopped else said))
    return status


def _applied_lines(result: dict[str, Any]) -> list[str]:
    counts = {name: result.get(name, 0) for name in _OUTCOMES}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    left = result.get("still_due", 0)
    told = told or ("none done" if left else "none waited")
    rest = f"; {left:,} still wait" if left else ""
    return [f"{sum(counts.values()):,} events: {told}; {result.get('rows', 0):,} rows changed{rest}"]


def _replayed_lines(result: dict[str, Any]) -> list[str]:
    return [f"{result.get('events', 0):,} events chosen", *_applied_lines(result)]


def _rehearsed_lines(result: dict[str, Any]) -> list[str]:
    events, applied, rows, failed = (result.get(name, 0) for name in ("events", "applied", "rows", "failed"))
    lines = [
        "Nothing was changed: a dry run.",
        f"{events:,} events chosen: {applied:,} would change {rows:,} rows, {failed:,} would fail",
    ]
    if result.get("hints"):
        lines.append(f"for {result['hints']:,} of them the API would be asked, which a dry run does not do")
    return lines
