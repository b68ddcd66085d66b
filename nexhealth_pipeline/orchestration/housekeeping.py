"""Keeping house in both databases: what is old goes from the warehouse and from Dagster's records.

The watchdog does it once a day; where no daemon runs, so does the first `nexhealth sync` of a day, beside its runs.
"""

import logging
import threading
from dataclasses import asdict

import dagster as dg

from nexhealth_pipeline.errors import ClocksDiffer, MissingRights, PipelineError
from nexhealth_pipeline.orchestration.retention import remove_old_records, remove_void_checks
from nexhealth_pipeline.orchestration.storage import database_of
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.warehouse.connect import connect, driver_errors
from nexhealth_pipeline.warehouse.housekeeping import claim, make_partitions, note_done, remove_old, require_clock

__all__ = ["dagster_database", "keep_house", "keep_house_beside", "keep_house_daily"]

_LOG = logging.getLogger(__name__)


def dagster_database(instance: dg.DagsterInstance) -> str | None:
    """Address of the database in which `instance` keeps its records; None where that is no storage of ours."""
    return database_of(instance.event_log_storage)


def keep_house(
    settings: Settings, warehouse: str, dagster: str | None, stop: threading.Event | None = None
) -> dict[str, int]:
    """Remove what is older than the settings keep; how many of each, where there were any.

    `warehouse` and `dagster` are the databases' addresses. Once `stop` is set, the rest is left. Raises WarehouseError,
    what the one does not allow after the other was seen to; where clocks differ, nothing is removed from that one.
    """
    removed: dict[str, int] = {}
    failure: PipelineError | None = None
    try:
        with connect(warehouse, autocommit=True) as connection, driver_errors("removing what is old"):
            require_clock(connection)
            removed |= remove_old(connection, settings, stop)
    except PipelineError as error:
        failure = error
    if dagster is not None:
        try:
            records = asdict(remove_old_records(dagster, settings.dagster_days, stop))
            removed |= {f"dagster_{name}": count for name, count in records.items() if count}
        except PipelineError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return removed


def keep_house_daily(
    settings: Settings, warehouse: str, dagster: str | None, stop: threading.Event | None = None
) -> None:
    """Make the partitions to come, remove what is old unless that was done today, and checks that were planned in vain.

    What was not removed to its end is tried again an hour later, and the next day where a right is missing, or Dagster's
    database has another time than this host. Where the warehouse has, that is logged, and nothing removed. Raises
    WarehouseError.
    """
    with connect(warehouse, autocommit=True) as connection, driver_errors("keeping house"):
        make_partitions(connection)
        try:
            require_clock(connection)
            due = claim(connection)
        except ClocksDiffer as error:
            _LOG.warning("nothing old is removed", extra={"nexhealth": {"reason": str(error)}})
            due = False
        if due:
            try:
                removed = keep_house(settings, warehouse, dagster, stop)
            except (MissingRights, ClocksDiffer):
                note_done(connection)
                raise
            _LOG.info("old data was removed", extra={"nexhealth": removed})
            if stop is None or not stop.is_set():
                note_done(connection)
    if dagster is not None:
        try:
            remove_void_checks(dagster)
        except PipelineError as error:  # what a check shows is not worth what else its caller has to do
            _LOG.warning("checks planned in vain could not be removed", extra={"nexhealth": {"reason": str(error)}})


def keep_house_beside(settings: Settings, warehouse: str, dagster: str) -> dict[str, int]:
    """Keep house, in a child of a command, whose runs it must not disturb: what could not be done is logged, no more.

    Returns nothing to tell the command.
    """
    try:
        keep_house_daily(settings, warehouse, dagster)
    except PipelineError as error:
        _LOG.warning("old data could not be removed", extra={"nexhealth": {"reason": str(error)}})
    return {}
