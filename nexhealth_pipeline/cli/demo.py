"""`nexhealth demo`: two synthetic dental groups from a local NexHealth into PostgreSQL, through Dagster."""

from functools import partial
from typing import TYPE_CHECKING

import click

from nexhealth_pipeline.cli.household import Household, end_like_interrupt
from nexhealth_pipeline.cli.json_output import told_as_json
from nexhealth_pipeline.cli.options import json_option
from nexhealth_pipeline.cli.realm import Realm, shut_in_demo, usable_demo_home
from nexhealth_pipeline.cli.realm import demo as demo_realm

if TYPE_CHECKING:
    from nexhealth_pipeline.orchestration.request import SyncRequest

__all__ = ["demo"]

_GRACE_SECONDS = 3.0


@click.command()
@json_option
def demo(*, as_json: bool) -> int:
    """Try everything without an account.

    Starts a local NexHealth with synthetic practices and reads all of it into PostgreSQL, through Dagster; then
    lets one patient move there and shows how the webhook of that reaches the table.
    Ignores every setting but NEXHEALTH_HOME and works in databases of its own, so it never meets real data.
    The local NexHealth keeps its practices: a second demo reads all of them again and changes no row by it.
    """
    from nexhealth_pipeline.cli.loop import show_loop
    from nexhealth_pipeline.cli.sandbox import start_sandbox
    from nexhealth_pipeline.cli.sync import run
    from nexhealth_pipeline.log import set_up_for

    with told_as_json(as_json):
        set_up_for(demo_realm().settings, quiet=True)
        home = usable_demo_home()
    end_like_interrupt()
    with Household(_GRACE_SECONDS) as household, told_as_json(as_json):
        _say("Starting a local NexHealth with two synthetic dental groups ...", as_json=as_json)
        realm = demo_realm(start_sandbox(household, home))
        shut_in_demo(realm)
        _say("Reading all of it within NexHealth's documented rate limits ...", as_json=as_json)
        loop = partial(show_loop, household, realm, partial(_say, as_json=as_json))
        status = run(realm, _everything(), as_json=as_json, then=loop)
    if status in (0, 1) and not as_json:
        click.echo("\n".join(_what_next(realm)))
    return status


def _say(text: str, *, as_json: bool) -> None:
    click.echo(text, err=as_json)


def _everything() -> "SyncRequest":
    from nexhealth_pipeline.orchestration.request import SyncRequest
    from nexhealth_pipeline.sync.options import Mode

    return SyncRequest(mode=Mode.FULL)


def _what_next(realm: Realm) -> list[str]:
    """Where everything is, and what to try."""
    from nexhealth_pipeline.cli.sandbox import state_folder
    from nexhealth_pipeline.warehouse.connect import home_folder

    home = home_folder(realm.settings)
    return [
        "",
        "What is where",
        f"  rows              tables nexhealth_* in database {realm.warehouse_database} of the embedded PostgreSQL",
        f"  runs and events   Dagster's history, in database {realm.dagster_database}",
        f"  the practices     {state_folder(home)}",
        "",
        "What to do next",
        "  nexhealth db psql --demo          a SQL shell: SELECT * FROM nexhealth_appointments LIMIT 5;",
        "  nexhealth status --demo           how fresh each collection is",
        "  nexhealth dev --demo              Dagster's pages: assets, partitions, runs, backfills",
        "  README.md                         how to point it at a real account",
        "(nexhealth is .venv/bin/nexhealth unless the environment is activated.)",
    ]
