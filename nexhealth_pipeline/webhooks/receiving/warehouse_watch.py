"""What the receiver has to know and what changes while it runs: secrets, institutions, the warehouse's release.

Asked for in a thread every few seconds, at once where an endpoint is being registered, and soon where a signature
was of no known secret. While the warehouse is away the last answer counts; one that is frozen and keeps the connection
open is waited for a few seconds, then the connection is cut (see `link`).
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import psycopg

from nexhealth_pipeline.log import described
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.warehouse.connect import connecting, driver_errors, watch
from nexhealth_pipeline.warehouse.migrate import HEAD, current_revision
from nexhealth_pipeline.webhooks.endpoints import SECRETS_CHANNEL, LiveSecret, live_secrets
from nexhealth_pipeline.webhooks.receiving.link import SERVERS_PART, cut, receivers_conninfo
from nexhealth_pipeline.webhooks.sealing import Sealer

__all__ = ["Known", "WarehouseWatch", "secrets_of"]

_LOG = logging.getLogger(__name__)
_SOONEST_SECONDS = 1.0
"""Pause between two looks, however many signatures are doubted."""
_POLL_SECONDS = 0.5
"""How soon the thread sees, while it listens to the warehouse, that it is asked to look or to end."""


@dataclass(frozen=True, slots=True)
class Known:
    """One look at the warehouse."""

    secrets: tuple[LiveSecret, ...] = field(default=(), repr=False)
    institutions: Mapping[str, int] = field(default_factory=dict)
    """Id by subdomain."""
    schema_fits: bool = False
    """Whether the warehouse is at this release's migration, or at a newer one: the old receivers go on while a release
    is rolled out."""


def secrets_of(settings: Settings) -> tuple[LiveSecret, ...]:
    """The secrets in NEXHEALTH_WEBHOOK_SECRETS."""
    given = settings.webhook_secrets.get_secret_value() if settings.webhook_secrets is not None else ""
    return tuple(LiveSecret(None, one.strip()) for one in given.split(",") if one.strip())


class WarehouseWatch:
    """Keeps :attr:`known` up to date; use it as a context manager.

    `sealer` None: only the settings' secrets count.
    """

    def __init__(
        self,
        url: str,
        settings: Settings,
        sealer: Sealer | None,
        *,
        every_seconds: float,
        seconds: float,
    ) -> None:
        """A look is taken every `every_seconds`, and given up after `seconds`; to connect may take as long before it."""
        self._conninfo = receivers_conninfo(url, "nexhealth-receiver-secrets")
        self._sealer, self._every, self._seconds = sealer, every_seconds, seconds
        self._given = secrets_of(settings)
        self.known = Known(secrets=self._given)
        self._stop, self._doubted = threading.Event(), threading.Event()
        self._connection: psycopg.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="receiver knowledge", daemon=True)

    def __enter__(self) -> "WarehouseWatch":
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._doubted.set()
        self._thread.join(timeout=2.0)  # a frozen server holds the thread a little longer; it ends with the process

    def doubt(self) -> None:
        """Look soon: what is known may be too old."""
        self._doubted.set()

    def look(self) -> None:
        """Ask the warehouse now; where it cannot be asked, what was known stays."""
        try:
            self.known = self._read()
        except Exception as error:  # the thread has to live on
            self._drop()
            _LOG.warning("secrets could not be read anew", extra={"nexhealth": {"error": described(error)}})

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wait()
            self._doubted.clear()
            if not self._stop.is_set():
                self.look()
                self._stop.wait(_SOONEST_SECONDS)
        self._drop()

    def _wait(self) -> None:
        """Wait until it is time to look again: told by the warehouse, by a doubt, or by the clock."""
        deadline = time.monotonic() + self._every
        while not self._doubted.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._connection is None:
                self._doubted.wait(left)
                return
            try:
                if any(True for _ in self._connection.notifies(timeout=min(left, _POLL_SECONDS), stop_after=1)):
                    return
            except psycopg.Error:
                self._drop()

    def _read(self) -> Known:
        with driver_errors("reading webhook secrets"):
            new = self._connection is None
            connection = self._connection = self._connection or self._connected()
            with _in_time(connection, self._seconds):
                if new:
                    self._prepare(connection)
                return self._ask(connection)

    def _connected(self) -> psycopg.Connection:
        with connecting(self._conninfo):
            return psycopg.connect(self._conninfo, autocommit=True)

    def _prepare(self, connection: psycopg.Connection) -> None:
        """The server gives each statement up before we do: a lock would else collect those that were cut."""
        watch(connection)
        milliseconds = str(int(self._seconds * SERVERS_PART))
        connection.execute("SELECT set_config('statement_timeout', %s, false)", (milliseconds,))
        connection.execute(f"LISTEN {SECRETS_CHANNEL}")

    def _ask(self, connection: psycopg.Connection) -> Known:
        began = time.monotonic()
        if (current_revision(connection) or "") < HEAD:
            return replace(self.known, schema_fits=False)
        stored = live_secrets(connection, self._sealer) if self._sealer is not None else []
        rows = connection.execute("SELECT subdomain, id FROM nexhealth_institutions ORDER BY id").fetchall()
        _LOG.debug("looked", extra={"nexhealth": {"secrets": len(stored), "seconds": time.monotonic() - began}})
        return Known(
            (*self._given, *stored), {str(name): int(number) for name, number in rows if name}, schema_fits=True
        )

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def _in_time(connection: psycopg.Connection, seconds: float) -> Iterator[None]:
    """Cut `connection` after `seconds`, unless what is done on it has come to its end."""
    timer = threading.Timer(seconds, cut, (connection,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # closed meanwhile, the file's number could be another connection's
