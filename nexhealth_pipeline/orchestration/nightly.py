"""What a schedule asks for, as data: decided by pure queries of the warehouse, tested without a daemon."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.sync.months import CHANGES, month_keys
from nexhealth_pipeline.sync.practice import Practices, load_practices

__all__ = ["Due", "due_at_night", "due_in_the_morning"]


@dataclass(slots=True)
class Due:
    """Partition keys to read, by scope, and location keys whose appointments' changes are to be read."""

    institutions: list[str] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    months: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def due_at_night(connection: psycopg.Connection, subdomains: tuple[str, ...]) -> Due:
    """Everything: lists of all institutions and locations, changes of appointments, months never read."""
    return _due(connection, load_practices(connection, subdomains), only=None)


def due_in_the_morning(connection: psycopg.Connection, subdomains: tuple[str, ...]) -> Due:
    """Locations the night could not read right: offline then, failed, or not known yet.

    Offline then = NexHealth had not read the office in the hours before our own read.
    """
    practices = load_practices(connection, subdomains)
    current = {
        row[0]
        for row in connection.execute(
            """
            SELECT f.location_id FROM nexhealth_freshness f
            WHERE f.collection = 'patients' AND f.complete_through > clock_timestamp() - interval '12 hours'
              AND coalesce(f.source_read_status, 'green') = 'green'
              AND coalesce(f.source_read_status_at > f.complete_through - interval '1 hour', true)
            """
        )
    }
    late = {location.key for location in practices.active() if location.id not in current}
    return _due(connection, practices, only=late)


def _due(connection: psycopg.Connection, practices: Practices, only: set[str] | None) -> Due:
    locations = [location for location in practices.active() if only is None or location.key in only]
    subdomains = {location.institution.subdomain for location in locations}
    due = Due(
        institutions=[one.subdomain for one in practices.institutions if one.subdomain in subdomains],
        locations=[location.key for location in locations],
    )
    complete = _complete_months(connection)
    today = datetime.now(UTC).date()
    for location in locations:
        unread = [key for key in month_keys(today) if (location.id, key) not in complete]
        due.months += [f"{location.key}|{key}" for key in unread]
        if not unread or (location.id, CHANGES) in complete:
            due.changes.append(location.key)
    return due


def _complete_months(connection: psycopg.Connection) -> set[tuple[int, str]]:
    """(location, window) of every window of appointments whose passes have all been complete once."""
    windowed = [one for one in DECLARED if one.scope is Scope.LOCATION_MONTH]
    return {
        (row[0], row[1])
        for row in connection.execute(
            "SELECT location_id, window_key FROM nexhealth_sync_state WHERE collection = ANY(%s)"
            " GROUP BY location_id, window_key HAVING count(*) >= %s AND bool_and(watermark IS NOT NULL)",
            (
                [one.name for one in windowed],
                sum(len(one.passes) for one in windowed),
            ),
        )
    }
