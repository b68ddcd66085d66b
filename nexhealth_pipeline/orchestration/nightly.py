"""What a schedule asks for, as data: decided by pure queries of the warehouse, tested without a daemon."""

from collections.abc import Collection as AnyCollection
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.sync.months import CHANGES, month_keys
from nexhealth_pipeline.sync.practice import Institution, Location, load_practices

__all__ = ["Due", "complete_windows", "due_at_night", "due_in_the_morning"]

_WINDOWED = [one for one in DECLARED if one.scope is Scope.LOCATION_MONTH]
_PASSES = sum(len(one.passes) for one in _WINDOWED)
_EXPECTED = {
    scopes: [one.name for one in DECLARED if one.is_asset and one.scope in scopes and not one.may_be_disabled]
    for scopes in ((Scope.INSTITUTION,), (Scope.LOCATION, Scope.LOCATION_MONTH))
}
"""Collections that every institution, and every location, has."""


@dataclass(slots=True)
class Due:
    """Partition keys to read, by scope, and location keys whose appointments' changes are to be read."""

    institutions: list[str] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    months: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def due_at_night(connection: psycopg.Connection, subdomains: AnyCollection[str]) -> Due:
    """Everything: lists of all institutions and locations, changes of appointments, months never read."""
    practices = load_practices(connection, subdomains)
    return _due(connection, practices.institutions, practices.active())


def due_in_the_morning(connection: psycopg.Connection, subdomains: AnyCollection[str]) -> Due:
    """Institutions and locations the night could not read right: offline then, failed, or not known yet.

    Offline then = NexHealth had not read the office in the hour before our own read.
    """
    practices = load_practices(connection, subdomains)
    current = _current(connection)
    late = [one for one in practices.active() if (one.institution.id, one.id) not in current]
    touched = {location.institution.id for location in late}
    institutions = [one for one in practices.institutions if one.id in touched or (one.id, 0) not in current]
    return _due(connection, institutions, late)


def _current(connection: psycopg.Connection) -> set[tuple[int, int]]:
    """(institution, location or 0) of which every collection was read lately, from a source that was online."""
    by_institution, by_location = _EXPECTED.values()
    return {
        (row[0], row[1])
        for row in connection.execute(
            """
            SELECT institution_id, location_id FROM nexhealth_freshness
            WHERE complete_through > clock_timestamp() - interval '12 hours'
              AND coalesce(source_read_status, 'green') = 'green'
              AND coalesce(source_read_status_at > complete_through - interval '1 hour', true)
              AND collection = ANY(CASE location_id WHEN 0 THEN %(institution)s::text[] ELSE %(location)s::text[] END)
            GROUP BY 1, 2
            HAVING count(*) = cardinality(CASE location_id WHEN 0 THEN %(institution)s::text[] ELSE %(location)s::text[] END)
            """,
            {"institution": by_institution, "location": by_location},
        )
    }


def _due(
    connection: psycopg.Connection, institutions: AnyCollection[Institution], locations: AnyCollection[Location]
) -> Due:
    due = Due([one.subdomain for one in institutions], [location.key for location in locations])
    complete = complete_windows(connection)
    months = month_keys(datetime.now(UTC).date())
    for location in locations:
        unread = [key for key in months if (location.id, key) not in complete]
        due.months += [f"{location.key}|{key}" for key in unread]
        if not unread or (location.id, CHANGES) in complete:
            due.changes.append(location.key)
    return due


def complete_windows(
    connection: psycopg.Connection, locations: AnyCollection[int] | None = None
) -> set[tuple[int, str]]:
    """(location id, window) of every window of appointments whose passes have all been complete once."""
    return {
        (row[0], row[1])
        for row in connection.execute(
            "SELECT location_id, window_key FROM nexhealth_sync_state"
            " WHERE collection = ANY(%s) AND (%s::bigint[] IS NULL OR location_id = ANY(%s))"
            " GROUP BY location_id, window_key HAVING count(*) >= %s AND bool_and(watermark IS NOT NULL)",
            ([one.name for one in _WINDOWED], *[None if locations is None else list(locations)] * 2, _PASSES),
        )
    }
