"""The Dagster resource through which assets and ops reach NexHealth and the warehouse."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from dagster import ConfigurableResource
from pydantic import Field

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.connect import connect, driver_errors, warehouse_url
from nexhealth_pipeline.warehouse.migrate import prepare
from nexhealth_pipeline.warehouse.runs import RunLock
from nexhealth_pipeline.warehouse.sessions import require_sessions

__all__ = ["NexHealthResource"]


class NexHealthResource(ConfigurableResource[None]):
    """Settings of the environment, with what is given here on top; secrets by `EnvVar` only.

    Nothing is opened until a run asks, so definitions load with no variable set.
    """

    api_key: str | None = Field(default=None, description="NexHealth API key; default NEXHEALTH_API_KEY.")
    api_url: str | None = Field(default=None, description="Root of the API; default NEXHEALTH_API_URL.")
    database_url: str | None = Field(default=None, description="The warehouse; default DATABASE_URL.")

    def settings(self) -> Settings:
        """The settings in force. Raises InvalidSetting."""
        given = {
            "NEXHEALTH_API_KEY": self.api_key,
            "NEXHEALTH_API_URL": self.api_url,
            "DATABASE_URL": self.database_url,
        }
        return load_settings({name: value for name, value in given.items() if value})

    @contextmanager
    def session(
        self, run_id: str, stop: threading.Event, *, dry_run: bool = False, retry: RetryPolicy | None = None
    ) -> Iterator[SyncSession]:
        """A sync session of a Dagster run, the warehouse upgraded first, unless it is a dry one; `retry` is the client's patience.

        Raises MissingSetting without a key, WarehouseError.
        """
        settings = self.settings()
        settings.api_keys()  # said before anything is started
        url = warehouse_url(settings)
        prepare(url, settings.data_kind, dry_run=dry_run)
        with SyncSession(settings, url, run_id=run_id, stop=stop, retry=retry) as session:
            yield session

    @contextmanager
    def warehouse(self) -> Iterator[psycopg.Connection]:
        """A connection for sensors and schedules, in autocommit mode. Raises WarehouseError."""
        url = warehouse_url(self.settings())
        with (
            connect(url, autocommit=True) as connection,
            driver_errors("reading what is due"),
        ):
            require_sessions(url, connection)
            yield connection

    @contextmanager
    def warehouse_of_run(self, run_id: str) -> Iterator[psycopg.Connection]:
        """A connection for a run that asks the warehouse only, in autocommit mode.

        It holds the run's lock, so that its death is seen. Raises WarehouseError.
        """
        with self.warehouse() as connection, RunLock(warehouse_url(self.settings()), run_id) as lock:
            try:
                yield connection
            except BaseException as error:
                lock.finish("failed" if isinstance(error, Exception) else "cancelled")
                raise
            lock.finish("succeeded")
