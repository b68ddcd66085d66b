"""Runs the receiver: one process, one event loop, uvicorn, until SIGTERM or Ctrl-C.

At the end it accepts nothing more, answers what it has read, writes down the last refusals, and returns.
"""

import asyncio
import contextlib
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import uvicorn
import uvloop

from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.webhooks.receiving.audit import Audit
from nexhealth_pipeline.webhooks.receiving.connections import Guard, protocol_class
from nexhealth_pipeline.webhooks.receiving.health import pages
from nexhealth_pipeline.webhooks.receiving.inbox import Inbox
from nexhealth_pipeline.webhooks.receiving.link import Link
from nexhealth_pipeline.webhooks.receiving.metrics import Metrics
from nexhealth_pipeline.webhooks.receiving.receiver import Limits, Receiver
from nexhealth_pipeline.webhooks.receiving.sources import Sources
from nexhealth_pipeline.webhooks.receiving.warehouse_watch import WarehouseWatch
from nexhealth_pipeline.webhooks.sealing import Sealer

__all__ = ["Plan", "Server", "bind", "serve"]

_BACKLOG = 1024
_STOP_SECONDS = 6
"""For answers that are on their way: one waits up to 5 s for the warehouse."""
_KEEP_ALIVE_SECONDS = 75
"""Longer than nginx keeps a connection to us (60 s): who closes first may lose a request."""
_FILES = 4096
"""Open files asked for; each connection is one."""
_OTHER_FILES = 64


@dataclass(frozen=True)
class Plan:
    """How a receiver is set up; tests make times and sizes small."""

    limits: Limits = field(default_factory=Limits)
    header_seconds: float = 10.0
    statement_seconds: float = 4.0
    """For one statement, or one look for new secrets; a frozen warehouse holds a request up so long."""
    answer_seconds: float = 5.0
    """For storing one event, waiting included."""
    secrets_seconds: float = 10.0
    """Between two looks for new secrets."""
    audit_seconds: float = 1.0
    """Between two times that refusals are written down."""


class Server(uvicorn.Server):
    """uvicorn that ends without raising the signal again, and tells when it listens."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM, SIGINT and, unless it is ignored, SIGHUP end the server and nothing else; a second SIGINT does not wait."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ending = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup`
            ending.append(signal.SIGHUP)
        before = {one: signal.signal(one, self.handle_exit) for one in ending}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def serve(
    url: str,
    settings: Settings,
    sealer: Sealer | None,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_server: Callable[[uvicorn.Server], None] = lambda server: None,  # noqa: ARG005 - nothing is done with it by default
    plan: Plan | None = None,
) -> None:
    """Receive webhooks on `listener` into the warehouse at `url` until told to stop (`should_exit` of the server).

    `sealer` None: only the secrets in the settings count. `on_server` is given the server before it starts, `on_ready`
    is called once requests are taken.
    """
    plan = plan or Plan()
    connections = _most_connections()
    proxies = Sources(settings.webhook_proxies)
    guard = Guard(
        connections=connections,
        of_one_peer=connections // 2,
        header_seconds=plan.header_seconds,
        is_proxy=lambda peer: bool(settings.webhook_proxies) and proxies.allows(proxies.address_of(peer, ())),
    )
    with WarehouseWatch(
        url, settings, sealer, every_seconds=plan.secrets_seconds, seconds=plan.statement_seconds
    ) as live:
        metrics, audit = Metrics(), Audit()

        async def run() -> None:
            link = Link(url, seconds=plan.statement_seconds, on_change=metrics.database.set)
            async with Inbox(
                link, audit, metrics, seconds=plan.answer_seconds, audit_seconds=plan.audit_seconds
            ) as inbox:
                shown = pages(lambda: live.known, lambda: inbox.is_up, metrics)
                app = Receiver(settings, live, inbox, audit, metrics, shown, limits=plan.limits)
                server = Server(_config(app, guard), on_ready)
                on_server(server)
                await server.serve(sockets=[listener])

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port` (0 = a free one). Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _config(app: Receiver, guard: Guard) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol_class(guard),
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="critical",  # a line for each malformed request is a gift to whoever sends them
        access_log=False,
        proxy_headers=False,  # which addresses are believed is decided in `sources`
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_STOP_SECONDS,
        backlog=_BACKLOG,
    )


def _most_connections() -> int:
    """As many as files may be open, after asking for enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(_OTHER_FILES, (_FILES if soft == resource.RLIM_INFINITY else min(soft, _FILES)) - _OTHER_FILES)
