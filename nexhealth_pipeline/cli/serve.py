"""`nexhealth serve`: the webhook receiver."""

import logging
import sys
from typing import TYPE_CHECKING

import click

from nexhealth_pipeline.cli.household import end_like_interrupt
from nexhealth_pipeline.cli.options import HOST
from nexhealth_pipeline.cli.realm import Realm, account
from nexhealth_pipeline.cli.realm import demo as demo_realm
from nexhealth_pipeline.errors import InvalidSetting, WarehouseNewer

if TYPE_CHECKING:
    import socket

__all__ = ["serve"]

_log = logging.getLogger(__name__)


@click.command()
@click.option(
    "--host", type=HOST, default="127.0.0.1", show_default=True, help="Address to listen on; put TLS before it."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--demo", is_flag=True, help="Receive for the demo's warehouse instead of the account's.")
def serve(host: str, port: int, *, demo: bool) -> None:
    """Receive webhooks until Ctrl-C.

    NexHealth posts to /api/nexhealth-webhook, through a proxy with TLS; /health/ready and /metrics are for
    your own monitors. Prints its address on stdout once it receives.
    """
    from nexhealth_pipeline.log import set_up_for
    from nexhealth_pipeline.webhooks.receiving import serving
    from nexhealth_pipeline.webhooks.sealing import Sealer

    realm = demo_realm() if demo else account()
    set_up_for(realm.settings)
    end_like_interrupt()
    sealer = Sealer.of_receiver(realm.settings)
    url = _prepared(realm)
    with _listener(host, port) as listener:
        address = _address(listener)
        serving.serve(url, realm.settings, sealer, listener, on_ready=lambda: _announce(address))


def _prepared(realm: Realm) -> str:
    """The address of the warehouse, brought up to date. Raises WarehouseError."""
    from nexhealth_pipeline.warehouse.migrate import declare_kind, upgrade

    url = realm.warehouse_url()
    try:
        upgrade(url)
    except WarehouseNewer as newer:
        # A release is being rolled out: until it has replaced this receiver, this one serves.
        _log.warning(str(newer))
    declare_kind(url, realm.kind)
    return url


def _listener(host: str, port: int) -> "socket.socket":
    from nexhealth_pipeline.webhooks.receiving.serving import bind

    try:
        return bind(host, port)
    except OSError as error:
        raise InvalidSetting(f"--host {host} --port {port}: cannot be listened on ({error.strerror})") from None


def _address(listener: "socket.socket") -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(address: str) -> None:
    from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH

    click.echo(address)
    sys.stdout.flush()
    if sys.stdout.isatty():
        click.echo(f"Receives webhooks at {address}{WEBHOOK_PATH} until Ctrl-C.", err=True)
