"""Everything a sync needs, opened once: database, run lock, client, budget; and its end."""

import ctypes
import logging
import sys
import threading
import uuid
from collections.abc import Callable
from collections.abc import Collection as AnyCollection
from contextlib import suppress
from datetime import datetime
from types import TracebackType

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.client.budget import Budget
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.errors import Cancelled, MissingRights, WarehouseError
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.practice import Practices, load_practices
from nexhealth_pipeline.sync.slices import SliceResult
from nexhealth_pipeline.warehouse.budget import BudgetConnection, PostgresBudget
from nexhealth_pipeline.warehouse.connect import connect, driver_errors, pool
from nexhealth_pipeline.warehouse.migrate import check
from nexhealth_pipeline.warehouse.runs import RunLock, close_dead_runs
from nexhealth_pipeline.warehouse.sessions import require_sessions
from nexhealth_pipeline.warehouse.state import PassKey, load_watermarks
from nexhealth_pipeline.warehouse.tables import ensure_indexes

__all__ = ["SyncSession"]

_log = logging.getLogger(__name__)
_ARENA_MAX, _TRIM_THRESHOLD, _MMAP_THRESHOLD = -8, -1, -3
"""Of glibc's malloc.h."""
_KEPT_BYTES = 16 << 20
_TURN_SECONDS = 0.001
"""How long one thread computes while another waits for its turn. A batch is some fifteen questions to the database, and
after each its thread waits for the one that encodes the next page: at Python's 5 ms a load took a fifth longer."""
_LOCK_SECONDS = 60.0
"""Between two looks at the run's lock."""
_MOST_CONNECTIONS = 2 * 64 + 4
"""For the greatest concurrency that a run takes, in two lanes."""


class SyncSession:
    """One run of the pipeline, as a context: holds the run's lock and closes what it opened.

    `url` is the warehouse, already at this release's schema (`warehouse.migrate.upgrade`). Setting `stop`
    ends the run on a committed page. `budget_for` and `retry` replace the budget that all
    processes share and the client's patience (tests).
    """

    def __init__(
        self,
        settings: Settings,
        url: str,
        *,
        run_id: str | None = None,
        stop: threading.Event | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
        budget_for: Callable[[str], Budget] | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.settings = settings
        self.url = url
        self.run_id = run_id or str(uuid.uuid4())
        self.stop = stop or threading.Event()
        self._on_progress = on_progress
        self._budget_for = budget_for or self._shared_budget
        self._retry = retry
        self._keys = settings.api_keys()
        self._status = "succeeded"
        self._over = threading.Event()
        self._budgets = BudgetConnection(url, stop=self.stop)
        self.dry_patients: dict[tuple[int, int], set[int]] = {}
        """Patients that a dry run has met, by institution and location: nobody else remembers them."""
        self.refusals: dict[str, MissingRights] = {}
        """By collection, what PostgreSQL refused a slice of it: no other of as many as are read together is tried, since each
        would ask NexHealth in vain. It has no row in the sync log."""

    def __enter__(self) -> "SyncSession":
        _share_memory()
        sys.setswitchinterval(_TURN_SECONDS)
        check(self.url)
        with connect(self.url, autocommit=True) as connection, driver_errors("closing dead runs"):
            require_sessions(self.url, connection)
            for dead in close_dead_runs(connection):
                _log.warning("closed a dead run", extra={"nexhealth": {"run_id": dead}})
        self.lock = RunLock(self.url, self.run_id).__enter__()
        # One connection a slice in work and some to plan with, opened on demand: a run may be told another
        # concurrency than the settings', and a slice that waits for a connection longer than a while fails.
        self.pool = pool(self.url, _MOST_CONNECTIONS)
        self.client = NexHealthClient(
            api_url=self.settings.api_url,
            api_keys=self._keys,
            budget_for=self._budget_for,
            timeout_seconds=self.settings.timeout_seconds,
            retry=self._retry,
            stop=self.stop,
        )
        self._keeper = threading.Thread(target=self._keep_lock, name="nexhealth-run-lock", daemon=True)
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        try:
            self._keeper.join()
            with driver_errors("closing the run"):
                self.lock.finish(self._ended(error))
        finally:
            self.client.close()
            self._budgets.close()
            self.pool.close()
            self.lock.__exit__(kind, error, trace)

    def _ended(self, error: BaseException | None) -> str:
        """How the run ended: by an error it failed, whatever that has stopped beside it."""
        if isinstance(error, Exception) and not isinstance(error, Cancelled):
            return "failed"
        return "cancelled" if error is not None or self.stop.is_set() else self._status

    def _shared_budget(self, key_hash: str) -> Budget:
        return PostgresBudget(self._budgets, key_hash, self.settings.rate_share)

    def practices(self, subdomains: AnyCollection[str] = ()) -> Practices:
        """Institutions and locations the warehouse knows, those of the settings unless given."""
        with driver_errors("reading what the warehouse knows"), self.pool.connection() as connection:
            return load_practices(connection, subdomains or self.settings.subdomains)

    def watermarks(self, collections: list[str]) -> dict[PassKey, datetime]:
        """Watermarks of passes that were ever complete, for planning."""
        with driver_errors("reading what has been read"), self.pool.connection() as connection:
            return load_watermarks(connection, collections)

    def index(self, collections: AnyCollection[Collection]) -> None:
        """Make the indexes that tables with rows lack. What was read is complete without: a failure is only told."""
        try:
            with driver_errors("making indexes"), self.pool.connection() as connection:
                ensure_indexes(connection, collections, stop=self.stop.is_set)
        except WarehouseError as error:
            _log.warning("indexes are left to the next run", extra={"nexhealth": {"reason": str(error)}})

    def progress(self, label: str, pages: int, records: int) -> None:
        """Tell whoever watches that a slice has come so far."""
        if self._on_progress is not None:
            self._on_progress(label, pages, records)

    def _keep_lock(self) -> None:
        """Now and then see that the run's lock is still held.

        A proxy may end a connection that is silent for minutes: the run looks dead then, and is repeated beside itself.
        On a thread of its own, for a run may be busy so long without any transaction: with an index, with rows that are
        asked for one by one, or with waiting for another run.
        """
        while not self._over.wait(_LOCK_SECONDS):
            try:
                with driver_errors("holding the run's lock"):
                    self.lock.keep()
            except WarehouseError as error:  # whoever loads finds out; this one may come again
                _log.warning("the run's lock could not be looked after", extra={"nexhealth": {"reason": str(error)}})

    def note(self, result: SliceResult) -> None:
        """Remember how a slice ended, for the run's own status."""
        if result.status == "failed":
            self._status = "failed"


def _share_memory() -> None:
    """Let the threads to come share two arenas of glibc's allocator; does nothing where there is another one.

    By default each gets its own and keeps what a page took there: a load of sixteen locations by eight threads
    peaked at 290 MiB, so at 224. And by default what an answer took goes back to the system, to be asked for again
    for the next one: 235,000 page faults in a load of 200,000 patients, so 25,000, at the same peak.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library, or none to be loaded
        library = ctypes.CDLL(None)
        library.mallopt(_ARENA_MAX, 2)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
