"""Dagster's event log in PostgreSQL, for runs of thousands of partitions and a database that may be away for a while."""

import logging
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AnySet
from contextlib import contextmanager, suppress

from dagster import AssetKey
from dagster._core.event_api import EventLogCursor, EventLogRecord
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.stats import (
    STEP_STATS_EVENT_TYPES,
    RunStepKeyStatsSnapshot,
    build_run_step_stats_from_events,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._core.storage.event_log.base import EventLogConnection
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._serdes import deserialize_value
from dagster_postgres import PostgresEventLogStorage
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy import exc, func, literal, select, tuple_

__all__ = ["AWAY", "EVENTS_A_MESSAGE", "EVENT_BATCH_SIZE", "PooledEventLogStorage", "forget_planned_checks"]

AWAY = (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError, DagsterPostgresException)
"""What Dagster raises while its database is not there, or there for reading only, as where another server takes over (an
internal error, for the driver, as is a damaged index). That it refuses something, for want of a right say, is not among it."""
EVENT_BATCH_SIZE = 1000
"""Planned events stored in one statement; Dagster's own default is one statement an event."""
EVENTS_A_MESSAGE = 100
"""Events that a run's page is sent at a time, and the most that GraphQL gives of a run's log at once. A thousand, Dagster's
default, keep the webserver busy for half a second, in which it answers nobody."""
_LAST_ID = 2**63 - 1
_PLANNED = (DagsterEventType.ASSET_MATERIALIZATION_PLANNED, DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED)
_TIMES_OF_STEPS = STEP_STATS_EVENT_TYPES - {DagsterEventType.ASSET_MATERIALIZATION}

_SILENT_SECONDS = 10.0
"""After a try that failed no line of a log is tried for so long: each takes Dagster eleven seconds or more, in which every
thread that says a line waits."""
_LOG = logging.getLogger("nexhealth_dagster_storage")
"""Outside the package, whose lines go to where these cannot. In the daemon's runs nothing of ours is set up, and of a record
the message alone is written: it says all."""


class PooledEventLogStorage(PostgresEventLogStorage):
    """The event log, with asset events written many at a time, and lines of a log only where that is possible.

    Dagster stores each planned and each finished partition with four statements on two connections,
    one of them a NOTIFY that nothing listens to any more. Here a batch is one insert, and one update of
    each asset for each kind of event; a single event takes the same way.
    """

    _silent_until = 0.0
    _lost_lines = 0
    _last_error = ""

    def store_event(self, event: EventLogEntry) -> None:
        """Store one event.

        What a run or a tick says goes missing while the database is away, and is counted: raising would end a sync of
        hours for a line of its log, in whichever of its threads that was.
        """
        if not event.is_dagster_event:
            self._store_line(event)
            return
        with self._noticed():
            if _is_asset_event(event):
                self._store_asset_events([event])
            else:
                super().store_event(event)

    def _store_line(self, event: EventLogEntry) -> None:
        if time.monotonic() >= self._silent_until:
            with suppress(*AWAY), self._noticed():
                super().store_event(event)
                return
        self._lost_lines += 1
        if self._lost_lines == 1:
            _LOG.warning("Dagster's database is away (%s): lines of its runs' logs are lost", self._last_error)

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        """Notice whether the database is there. Raises what the body raises."""
        try:
            yield
        except AWAY as error:
            self._silent_until, self._last_error = time.monotonic() + _SILENT_SECONDS, type(error).__name__
            raise
        self._silent_until = 0.0
        lost, self._lost_lines = self._lost_lines, 0
        if lost:
            _LOG.warning("Dagster's database is there again: %d lines of its runs' logs were lost", lost)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store `events`; other kinds than those of assets one by one."""
        asset_events = [event for event in events if _is_asset_event(event)]
        if asset_events:
            with self._noticed():
                self._store_asset_events(asset_events)
        for event in events:
            if not _is_asset_event(event):
                self.store_event(event)

    def _store_asset_events(self, events: Sequence[EventLogEntry]) -> None:
        insert = SqlEventLogStorageTable.insert().returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)
        rows = [self._event_to_row(event) for event in events]
        last: dict[tuple[str, str], tuple[EventLogEntry, int]] = {}
        with self.index_transaction() as connection:
            ids = [int(row[0]) for row in connection.execute(insert, rows)]
            self._store_asset_event_tags(connection, events, ids)
            for row, event, event_id in zip(rows, events, ids, strict=True):
                last[row["asset_key"], row["dagster_event_type"]] = (event, event_id)
            # Of each kind the last: an observation tells nothing of the materialization before it. Every process locks
            # the assets' rows in one order.
            for _, told in sorted(last.items(), key=lambda one: (one[0][0], one[1][1])):
                self._store_asset_event(connection, *told)

    def get_records_for_run(
        self,
        run_id: str,
        cursor: str | None = None,
        of_type: DagsterEventType | set[DagsterEventType] | None = None,
        limit: int | None = None,
        ascending: bool = True,
    ) -> EventLogConnection:
        """A run's events; where all kinds are asked for piece by piece, without the planned ones.

        So asks the page of a run, which shows none of them: of a night's 44,000 events they are the first half.
        """
        after = EventLogCursor.parse(cursor) if cursor else EventLogCursor.from_storage_id(-1)
        if of_type or not limit or not ascending or not after.is_id_cursor():
            return super().get_records_for_run(run_id, cursor, of_type, limit, ascending)
        records = self._piece(run_id, after.storage_id(), limit)
        last = records[-1].storage_id if records else after.storage_id()
        return EventLogConnection(records, str(EventLogCursor.from_storage_id(last)), has_more=len(records) == limit)

    def _piece(self, run_id: str, after: int, limit: int) -> list[EventLogRecord]:
        """At most so many of a run's events after one.

        As a range of the index of runs and their events. Of a run's events in the order of ids, as Dagster asks, PostgreSQL
        takes the key for that, and reads all older runs' on its way: 45 ms for the first piece after three nights of 1,000
        locations, more with each night, and 0.03 ms so.
        """
        log = SqlEventLogStorageTable.c
        place = tuple_(log.run_id, log.id)
        piece = (
            select(log.id, log.event)
            .where(place > tuple_(literal(run_id), literal(after)), place < tuple_(literal(run_id), literal(_LAST_ID)))
            .where(func.coalesce(log.dagster_event_type, "").not_in([kind.value for kind in _PLANNED]))
            .order_by(log.run_id, log.id)
            .limit(limit)
        )
        with self.run_connection(run_id) as connection:
            rows = connection.execute(piece).all()
        return [EventLogRecord(id_, deserialize_value(event, EventLogEntry)) for id_, event in rows]

    def get_asset_keys_for_run(
        self, run_id: str, of_type: DagsterEventType | set[DagsterEventType] | None = None
    ) -> AnySet[AssetKey]:
        """The assets that a run has events of these kinds of, without their partitions.

        Dagster reads those as well, 22,000 of a night, in Python: its answer came after 1.1 s beside all that a run's page
        asks, and comes after 0.5, and the page's events waited for it.
        """
        log = SqlEventLogStorageTable.c
        keys = select(log.asset_key).where(log.run_id == run_id, log.asset_key.is_not(None)).distinct()
        if of_type:
            kinds = {of_type} if isinstance(of_type, DagsterEventType) else of_type
            keys = keys.where(log.dagster_event_type.in_([kind.value for kind in kinds]))
        with self.run_connection(run_id) as connection:
            found = connection.execute(keys).scalars().all()
        return {key for text in found if (key := AssetKey.from_db_string(text)) is not None}

    def get_step_stats_for_run(
        self, run_id: str, step_keys: Sequence[str] | None = None
    ) -> Sequence[RunStepKeyStatsSnapshot]:
        """When each step began and ended, and how; without what it materialized, which no page asks this for.

        Dagster reads every materialization here, of which a night has 22,000: four CPU seconds of the webserver
        for each look at such a run.
        """
        records = self.get_records_for_run(run_id, of_type=_TIMES_OF_STEPS).records
        entries = [record.event_log_entry for record in records]
        return build_run_step_stats_from_events(
            run_id, [entry for entry in entries if not step_keys or entry.step_key in step_keys]
        )

    def forget_planned_checks(self, run_id: str) -> None:
        """Remove the checks that were planned for a run and have no result yet."""
        checks = AssetCheckExecutionsTable
        planned = checks.c.execution_status == AssetCheckExecutionRecordStatus.PLANNED.value
        with self.index_connection() as connection:
            connection.execute(checks.delete().where(checks.c.run_id == run_id, planned))

    def dispose(self) -> None:
        """Close the pool: of the three parts, an instance disposes of this one last."""
        super().dispose()
        self._engine.dispose()


def _is_asset_event(event: EventLogEntry) -> bool:
    """Whether `event` is recorded with its asset, and in no further table."""
    return bool(
        event.dagster_event is not None
        and event.dagster_event.event_type in ASSET_EVENTS
        and event.dagster_event.asset_key is not None
        and event.dagster_event.event_type not in ASSET_CHECK_EVENTS
    )


def forget_planned_checks(events: object, run_id: str) -> None:
    """Forget in an instance's event log that a run was to run checks; one that is not of this module is left as it is.

    Once the run has ended, each would stand for skipped, or for failed, in the place of the check's last result.
    """
    if isinstance(events, PooledEventLogStorage):
        events.forget_planned_checks(run_id)
