"""Starting the sandbox: in a thread for tests and the demo, or in the foreground for `nexhealth sandbox`."""

import asyncio
import gc
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import uvicorn

from .api import Api
from .app import App, Receive, Scope, Send
from .auth import SANDBOX_API_KEY, Auth
from .faults import Faults
from .hold import Hold
from .journal import Journal, Origin
from .limits import Limits
from .log import RequestLog
from .state import State
from .times import Clock, stamp_at
from .webhooks import Webhooks, settings_of
from .world import DEFAULT_APPOINTMENTS, DEFAULT_PATIENTS, DEFAULT_SEED, World, build_world

__all__ = ["NoListeningError", "SandboxServer", "build_app", "serve"]


class NoListeningError(OSError):
    """The address cannot be listened on: it is taken, not ours, or not allowed."""


TOKEN_SECONDS = 86_400.0
"""Lifetime of a token: 24 hours, as the vendor's own sandbox gives (API.md B)."""


def _wanted(
    kept: Origin | None, seed: int | None, base: datetime | None, patients: int | None, mean: float | None, clock: Clock
) -> Origin:
    """The world to serve: the folder's, or a new one from the arguments. Raises ValueError where they disagree."""
    if kept is None:
        now = datetime.fromtimestamp(clock(), UTC).replace(second=0, microsecond=0)
        sizes = DEFAULT_PATIENTS if patients is None else patients, DEFAULT_APPOINTMENTS if mean is None else mean
        return Origin(DEFAULT_SEED if seed is None else seed, base or now, *sizes)
    asked = {"seed": seed, "base": base, "patients": patients, "appointments_per_patient": mean}
    wrong = [name for name, value in asked.items() if value is not None and value != getattr(kept, name)]
    if wrong:
        raise ValueError(f"the state folder holds a sandbox with another {wrong[0]}: use another folder or delete it")
    return kept


def _world(origin: Origin) -> World:
    return build_world(
        origin.seed,
        base=origin.base,
        patients=origin.patients,
        appointments_per_patient=origin.appointments_per_patient,
    )


def _made_from(world: World) -> tuple[int, datetime, int, float]:
    return world.seed, world.base, world.patients, world.appointments_per_patient


def build_app(
    *,
    seed: int | None = None,
    world: World | None = None,
    base: datetime | None = None,
    patients: int | None = None,
    appointments_per_patient: float | None = None,
    state_dir: Path | str | None = None,
    api_keys: Mapping[str, tuple[str, ...] | None] | None = None,
    token_seconds: float = TOKEN_SECONDS,
    limits: bool = True,
    limit_scale: float = 1.0,
    webhook_time_scale: float | None = None,
    webhooks: Mapping[str, Any] | None = None,
    clock: Clock = time.time,
) -> App:
    """The application with its world. See SandboxServer for the arguments. Raises ValueError as it does."""
    settings = settings_of(webhooks, webhook_time_scale)
    journal = Journal(Path(state_dir)) if state_dir is not None else None
    kept = journal.origin() if journal else None
    if world is not None:
        seed, base, patients, appointments_per_patient = _made_from(world)
    origin = _wanted(kept, seed, base, patients, appointments_per_patient, clock)
    world = world or _world(origin)
    if journal and kept is None:
        journal.begin(origin)
    secret = sha256(f"sandbox:{world.seed}".encode()).digest()
    state = State(world, clock, journal)
    return App(
        state=state,
        auth=Auth(api_keys or {SANDBOX_API_KEY: None}, secret, token_seconds, clock),
        limits=Limits(enabled=limits, scale=limit_scale),
        faults=Faults(world.seed),
        requests=RequestLog(),
        clock=clock,
        api=Api(state, secret, lambda: stamp_at(clock())),
        webhooks=Webhooks(state, lambda offset: stamp_at(clock() + offset), settings),
    )


def _expected(record: logging.LogRecord) -> bool:
    """False for uvicorn's complaint about an unfinished answer: that is how a cut one is made."""
    return "without completing response" not in record.getMessage()


class _Server(uvicorn.Server):
    """uvicorn that looks every 10 ms, not every 100, whether it should stop: tests start hundreds."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(0.01)


def _uvicorn(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> uvicorn.Server:
    logging.getLogger("uvicorn.error").addFilter(_expected)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        interface="asgi3",
        lifespan="off",
        ws="none",
        date_header=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        backlog=512,
    )
    return _Server(config)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)  # answers wait in the queue from here on, so the address may be told
    except OSError as error:
        listener.close()
        raise NoListeningError(*error.args) from None
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class SandboxServer:
    """A sandbox in a thread of this process, for tests and the demo.

    `seed`, `patients`, `appointments_per_patient`, `base` ("now" of the world) decide the world, or `world` is
    given ready. `state_dir` keeps the world's origin and all changes: a later start with that folder serves the
    same data (a different seed, base or size is then a ValueError). `api_keys` maps keys to the subdomains they
    reach (None = all). `limits=False` switches rate limits off, `limit_scale=0.1` makes them ten times tighter.
    `webhooks` are settings of webhook deliveries by name (see DeliverySettings), `webhook_time_scale=0.001` lets
    their retries come a thousand times sooner. `clock` decides tokens, limits, changes, the Date header and the
    timestamps of webhooks.

    Raises NoListeningError where the port is taken, RuntimeError where the server cannot start, FolderHeldError (a ValueError)
    where another process serves `state_dir`.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int | None = None,
        world: World | None = None,
        base: datetime | None = None,
        patients: int | None = None,
        appointments_per_patient: float | None = None,
        state_dir: Path | str | None = None,
        api_keys: Mapping[str, tuple[str, ...] | None] | None = None,
        token_seconds: float = TOKEN_SECONDS,
        limits: bool = True,
        limit_scale: float = 1.0,
        webhook_time_scale: float | None = None,
        webhooks: Mapping[str, Any] | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._hold = Hold(state_dir)
        self._hold.take()
        try:
            self.app = build_app(
                seed=seed,
                world=world,
                base=base,
                patients=patients,
                appointments_per_patient=appointments_per_patient,
                state_dir=state_dir,
                api_keys=api_keys,
                token_seconds=token_seconds,
                limits=limits,
                limit_scale=limit_scale,
                webhook_time_scale=webhook_time_scale,
                webhooks=webhooks,
                clock=clock,
            )
        except BaseException:
            self._hold.release()
            raise
        self.api_key = next(iter(api_keys or {SANDBOX_API_KEY: None}))
        self._host, self._port = host, port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.url = ""

    @property
    def state(self) -> State:
        """The data, and the changes that can be made to it."""
        return self.app.state

    @property
    def faults(self) -> Faults:
        """The faults in force."""
        return self.app.faults

    @property
    def requests(self) -> RequestLog:
        """What was asked so far."""
        return self.app.requests

    @property
    def limits(self) -> Limits:
        """The rate limits."""
        return self.app.limits

    @property
    def auth(self) -> Auth:
        """Keys and tokens."""
        return self.app.auth

    @property
    def webhooks(self) -> Webhooks:
        """Endpoints, subscriptions and deliveries."""
        return self.app.webhooks

    def replace(self, app: App) -> None:
        """Serve another application (see build_app) from the next request on: cheaper than another server."""
        self.app.webhooks.stop()
        self.app = app
        if self._server is not None:
            app.webhooks.start()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    def start(self) -> Self:
        """Bind, serve in a daemon thread, and return once requests are accepted."""
        self._hold.take()
        self.app.stopping = False
        try:
            listener = _bind(self._host, self._port)
        except OSError:
            self._hold.release()
            raise
        self.url = _address(listener)
        self._server = _uvicorn(self._answer)
        self._thread = threading.Thread(target=self._run, args=(self._server, listener), name="sandbox", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.002)
        if not self._server.started:
            raise RuntimeError("the sandbox's server ended while it was starting")
        self.app.webhooks.start()
        return self

    def _run(self, server: uvicorn.Server, listener: socket.socket) -> None:
        with listener:
            server.run(sockets=[listener])

    def stop(self) -> None:
        """Stop serving; answers that hang are let go."""
        self.app.webhooks.stop()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self.app.stopping = True
            self._thread.join(timeout=10)
            self._server = self._thread = None
        self._hold.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()


def serve(
    host: str = "127.0.0.1",
    port: int = 8089,
    seed: int | None = None,
    state_dir: Path | str | None = None,
    *,
    patients: int | None = None,
    appointments_per_patient: float | None = None,
    limits: bool = True,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve in the foreground until SIGINT or SIGTERM. `port` 0 takes a free one; `on_ready` is told the address.

    Raises NoListeningError where the port is taken, ValueError where `state_dir` cannot be used, holds another world or
    another process serves it.
    """
    with Hold(state_dir):
        try:
            app = build_app(
                seed=seed,
                patients=patients,
                appointments_per_patient=appointments_per_patient,
                state_dir=state_dir,
                limits=limits,
            )
        except OSError as error:
            raise ValueError(f"this folder cannot be used ({error.strerror})") from None
        gc.freeze()  # the world stays: looking through it again and again would cost a tenth of a second each time
        _serve(app, host, port, on_ready)


def _serve(app: App, host: str, port: int, on_ready: Callable[[str], None] | None) -> None:
    with _bind(host, port) as listener:
        if on_ready:
            on_ready(_address(listener))
        app.webhooks.start()
        try:
            _uvicorn(app).run(sockets=[listener])
        except (KeyboardInterrupt, asyncio.CancelledError):
            return
        finally:
            app.webhooks.stop()
