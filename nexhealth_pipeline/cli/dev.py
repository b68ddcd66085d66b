"""`nexhealth dev`: Dagster's pages, daemon and the webhook receiver; a local NexHealth where there is no account."""

import os
import socket
import sys
import time
import urllib.request
from pathlib import Path

import click

from nexhealth_pipeline.cli.household import Household, end_like_interrupt
from nexhealth_pipeline.cli.options import HOST
from nexhealth_pipeline.cli.realm import Realm, account, demo_environment, real_environment, usable_demo_home
from nexhealth_pipeline.cli.realm import demo as demo_realm
from nexhealth_pipeline.errors import InvalidSetting, MissingSetting, PipelineError

__all__ = ["dev"]

_PORT = 3000
"""Dagster's own default, taken where it is free."""
_RECEIVER_PORT = 8090
"""The default of `nexhealth serve`, taken where it is free."""
_GRACE_SECONDS = 20.0
"""For runs to end on a committed page."""
_READY_SECONDS = 120.0
_LOOK_SECONDS = 0.3


@click.command()
@click.option("--demo", is_flag=True, help="The local NexHealth, even though an API key is set.")
@click.option(
    "--host",
    type=HOST,
    default="127.0.0.1",
    show_default=True,
    help="Address of Dagster's pages; they ask no password.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), help=f"Port of Dagster's pages.  [default: {_PORT} or a free one]"
)
def dev(*, demo: bool, host: str, port: int | None) -> int:
    """Dagster's pages, its daemon, the webhook receiver.

    Without an API key, or with --demo, it also starts the demo's local NexHealth, which posts its webhooks to the
    receiver, and works on the demo's databases, ignoring every setting but NEXHEALTH_HOME.

    Runs that are going on when it ends are gone on with at its next start; terminate those on Dagster's pages that
    are not wanted any more.
    """
    from nexhealth_pipeline.log import set_up_for

    end_like_interrupt()
    realm = None if demo else _account_with_key()
    set_up_for((realm or demo_realm()).settings)
    port = _checked_port(host, port) if port else _usable_port(host)
    try:
        with Household(_GRACE_SECONDS) as household:
            lines = _start(household, realm, host, port)
            _until_ready(household, host, port)
            click.echo("\n".join(("", *lines)))
            click.echo(f"Dagster is at http://{_shown(host)}:{port} (Ctrl-C ends everything)\n")
            return _until_one_ends(household)
    except KeyboardInterrupt:
        click.echo("\nended, with everything it had started", err=True)
        return 0


def _account_with_key() -> Realm | None:
    """The account's realm; None where no key is set. Raises InvalidSetting."""
    from nexhealth_pipeline.orchestration.crons import check_crons

    realm = account()
    has_key = realm.settings.api_key is not None or realm.settings.api_keys_file is not None
    if not has_key:
        return None
    check_crons(realm.settings)  # here, not among the messages of Dagster's processes
    realm.settings.api_keys()  # a file of keys that cannot be read would fail every run
    return realm


def _start(household: Household, realm: Realm | None, host: str, port: int) -> list[str]:
    """Start everything; with `realm` None the demo's. What to tell when it is up.

    Raises ConfigurationError, WarehouseError.
    """
    from nexhealth_pipeline.cli.embedded_warning import warn_once
    from nexhealth_pipeline.orchestration.instance import workspace_file

    is_demo = realm is None
    if realm is None:
        realm, environment, folder = _demo(household)
    else:
        warn_once(realm)
        environment, folder = _real(realm)
    _prepare(realm)
    environment["DAGSTER_HOME"] = str(folder)
    lines = _receiver(household, realm, environment, folder, is_demo=is_demo)
    workspace = ["-w", str(workspace_file(folder))]
    python = [sys.executable, "-P", "-m"]
    pages = [*python, "dagster_webserver", "-h", host, "-p", str(port), *workspace]
    household.start("webserver", pages, environment=environment, folder=folder)
    household.start("daemon", [*python, "dagster._daemon", "run", *workspace], environment=environment, folder=folder)
    return lines


def _receiver(
    household: Household, realm: Realm, environment: dict[str, str], folder: Path, *, is_demo: bool
) -> list[str]:
    """Start the receiver, and let the demo's NexHealth post to it; what to tell."""
    from nexhealth_pipeline.cli.loop import start_receiver
    from nexhealth_pipeline.sync.session import SyncSession
    from nexhealth_pipeline.webhooks.registering.registration import set_up
    from nexhealth_pipeline.webhooks.sealing import Sealer

    try:
        Sealer.of_receiver(realm.settings)
    except MissingSetting as missing:
        return [f"No webhooks are received: {missing}"]
    port = _RECEIVER_PORT if _is_free("127.0.0.1", _RECEIVER_PORT) else 0
    url = start_receiver(household, port=port, environment=environment, folder=folder)
    if not is_demo:
        return [f"Webhooks are received at {url} (docs/receiver.md: how NexHealth gets there)"]
    with SyncSession(realm.settings, realm.warehouse_url()) as session:
        set_up(session, url, prune=True)
    change = '{"collection": "patients", "id": 515000007, "fields": {"bio": {"city": "Riverton"}}}'
    return [
        f"The local NexHealth posts its webhooks to {url}. Let a patient move there, and see the row follow:",
        f"  curl {realm.settings.api_url}/sandbox/changes -d '{change}'",
        '  nexhealth db psql --demo -- -c "SELECT bio_city FROM nexhealth_patients WHERE id = 515000007"',
    ]


def _demo(household: Household) -> tuple[Realm, dict[str, str], Path]:
    """The demo's realm, and environment and folder for Dagster; starts the sandbox.

    Dagster's folder is the packaged one: Dagster reads `.env` of a checkout beside its dagster.yaml.
    """
    from nexhealth_pipeline.cli.sandbox import start_sandbox
    from nexhealth_pipeline.orchestration.instance import dagster_home

    realm = demo_realm(start_sandbox(household, usable_demo_home()))
    click.echo(f"A local NexHealth with synthetic practices is at {realm.settings.api_url}")
    folder = dagster_home(realm.settings, start=Path("/"))
    return realm, demo_environment(realm), folder


def _real(realm: Realm) -> tuple[dict[str, str], Path]:
    from nexhealth_pipeline.orchestration.instance import dagster_home

    realm.warehouse_url()  # this process keeps the embedded server up
    return real_environment(realm), dagster_home(realm.settings, chosen=os.environ.get("DAGSTER_HOME"))


def _prepare(realm: Realm) -> None:
    """Bring the warehouse up to date, and refuse one that holds the other kind of data."""
    from nexhealth_pipeline.warehouse.migrate import prepare

    prepare(realm.warehouse_url(), realm.kind)


def _usable_port(host: str) -> int:
    return _PORT if _is_free(host, _PORT) else _free_port(host)


def _checked_port(host: str, port: int) -> int:
    if not _is_free(host, port):
        raise InvalidSetting(f"--host {host} --port {port}: cannot be listened on; leave out --port to take a free one")
    return port


def _is_free(host: str, port: int) -> bool:
    try:
        with _listener(host, port):
            return True
    except OSError:
        return False


def _free_port(host: str) -> int:
    try:
        with _listener(host, 0) as listener:
            return int(listener.getsockname()[1])
    except OSError:
        raise InvalidSetting(f"--host {host}: not an address of this machine") from None


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _shown(host: str) -> str:
    """The host as a browser on this machine takes it."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - nothing is bound here


def _until_ready(household: Household, host: str, port: int) -> None:
    """Wait until Dagster's pages answer. Raises PipelineError where they do not."""
    address = f"http://{_shown(host)}:{port}/server_info"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        name = household.ended()
        if name is not None:
            raise PipelineError(f"the {name} does not start: see its messages above")
        try:
            with direct.open(address, timeout=2):
                return
        except OSError:
            time.sleep(_LOOK_SECONDS)
    raise PipelineError(f"Dagster's pages do not answer at {address}: see the messages above")


def _until_one_ends(household: Household) -> int:
    while (name := household.ended()) is None:
        time.sleep(_LOOK_SECONDS)
    click.echo(f"nexhealth: the {name} ended by itself, so everything ends; its last messages are above", err=True)
    return 1
