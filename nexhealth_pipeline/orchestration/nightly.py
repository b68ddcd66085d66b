"""What a schedule asks for, as data: decided by pure queries of the warehouse, tested without a daemon."""

from collections import Counter
from collections.abc import Collection as AnyCollection
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.sync.months import month_keys, utc_today
from nexhealth_pipeline.sync.plan import has_nobody_to_ask
from nexhealth_pipeline.sync.practice import Institution, Location, Practices, load_practices
from nexhealth_pipeline.sync.slices import place_of
from nexhealth_pipeline.warehouse.state import database_time

__all__ = ["Due", "Place", "Tried", "complete_windows", "due_at_night", "due_in_the_morning", "whose_turn"]

_WINDOWED = [one for one in DECLARED if one.scope is Scope.LOCATION_MONTH]
_PASSES = sum(len(one.regular_passes) for one in _WINDOWED)
_PASS_NAMES = [regular.name for one in _WINDOWED for regular in one.regular_passes]
_REST = timedelta(days=6, hours=12)
"""What was judged, or held, so lately rests: each once a week, whatever hour the night begins at."""
_NIGHTS = 7
_BEFORE_NIGHT = "1 hour"
"""What was read so shortly before the night counts as read in it: the clocks of hosts differ."""
_NEVER = datetime.min.replace(tzinfo=UTC)
_EXPECTED = {
    kind: [one.name for one in DECLARED if one.is_asset and one.scope is scope and not one.may_be_disabled]
    for kind, scope in (
        ("institution", Scope.INSTITUTION),
        ("location", Scope.LOCATION),
        ("months", Scope.LOCATION_MONTH),
    )
}
"""Collections that every institution has, and every location, by how they are read."""


@dataclass(slots=True)
class Due:
    """Partition keys to read, by scope, and location keys whose appointments' changes are to be read."""

    institutions: list[str] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    months: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    reconcile: "Due | None" = None
    """What is to be reconciled, in runs of its own."""


def due_at_night(connection: psycopg.Connection, subdomains: AnyCollection[str]) -> Due:
    """Everything: lists of all institutions and locations, months never read, changes of appointments in the others.

    A seventh of it is reconciled instead: deletions have no event and no increment. Lists under rows, a request each,
    are no part of that: whatever reads a location judges by its thirtieth of them (`SyncOptions.rotation_days`).
    """
    practices = load_practices(connection, subdomains)
    due = _due(connection, practices.institutions, practices.active())
    _rotate(connection, practices, due)
    return due


def due_in_the_morning(connection: psycopg.Connection, subdomains: AnyCollection[str], night: datetime) -> Due:
    """What the night, begun at `night`, could not read right: offline then, failed, or not known yet.

    Lists and appointments of a location are judged apart, and an institution's lists by themselves: what was read right
    is not read again for what was not. Only an office that was offline, or is new, may lack in its institution's lists.
    Offline then = NexHealth had not read the office since an hour before the night began (or before our own read, where
    that was earlier still). How offices are is asked as the night begins, and whatever is read later, as by a long night
    or to fill a hole, notes that answer: by the time of its own read each would look offline.
    """
    practices = load_practices(connection, subdomains)
    found = _found(connection, night, _not_asked(practices))
    active = practices.active()
    places = {one: found.get((one.institution.id, one.id), _NOTHING) for one in active}
    touched = {one.institution.id for one in active if not places[one].online}
    institutions = [
        one for one in practices.institutions if one.id in touched or not found.get((one.id, 0), _NOTHING).lists
    ]
    due = _due(connection, institutions, [one for one in active if not places[one].months])
    due.locations = [one.key for one in active if not places[one].lists]
    return due


class _Found(NamedTuple):
    """What the night has read of a location, or of an institution as a whole."""

    lists: bool
    """All lists, from a source that was online."""
    months: bool
    """Appointments, likewise."""
    online: bool
    """Nothing was read from a source that was offline."""


_NOTHING = _Found(lists=False, months=False, online=False)


def _not_asked(practices: Practices) -> list[tuple[int, str]]:
    """Institutions, and lists of theirs that no night reads: none of the locations to ask is active."""
    lists = [COLLECTIONS[name] for name in _EXPECTED["institution"]]
    return [
        (one.id, each.name)
        for one in practices.institutions
        for each in lists
        if has_nobody_to_ask(each, one, practices)
    ]


def _found(
    connection: psycopg.Connection, night: datetime, not_asked: list[tuple[int, str]]
) -> dict[tuple[int, int], _Found]:
    """By institution and location (0 = the institution as a whole); without what is not asked for at an institution."""
    rows = connection.execute(
        """
        SELECT institution_id, location_id,
            count(*) FILTER (WHERE good AND collection = ANY(lists)) = cardinality(lists),
            count(*) FILTER (WHERE good AND collection = ANY(months)) = cardinality(months),
            bool_and(online)
        FROM nexhealth_freshness,
            LATERAL (SELECT CASE location_id WHEN 0 THEN ARRAY(SELECT name FROM unnest(%(institution)s::text[]) name
                    WHERE (institution_id, name) NOT IN (SELECT * FROM unnest(%(ids)s::bigint[], %(names)s::text[])))
                ELSE %(location)s::text[] END AS lists, %(months)s::text[] AS months) expected,
            LATERAL (SELECT coalesce(source_read_status, 'green') = 'green'
                AND coalesce(source_read_status_at > least(complete_through, %(night)s::timestamptz) - %(before)s::interval,
                    true) AS online) source,
            LATERAL (SELECT online AND complete_through > %(night)s::timestamptz - %(before)s::interval AS good) judged
        WHERE collection = ANY(lists || months)
        GROUP BY 1, 2, lists, months
        """,
        {
            **_EXPECTED,
            "night": night,
            "before": _BEFORE_NIGHT,
            "ids": [institution_id for institution_id, _ in not_asked],
            "names": [name for _, name in not_asked],
        },
    )
    return {(row[0], row[1]): _Found(*row[2:]) for row in rows}


def _due(
    connection: psycopg.Connection, institutions: AnyCollection[Institution], locations: AnyCollection[Location]
) -> Due:
    due = Due([one.subdomain for one in institutions], [location.key for location in locations])
    complete = complete_windows(connection)
    months = _months()
    for location in locations:
        unread = [key for key in months if (location.institution.id, location.id, key) not in complete]
        due.months += [f"{location.key}|{key}" for key in unread]
        if len(unread) < len(months):  # one month may fail for weeks: the others must not age
            due.changes.append(location.key)
    return due


def _rotate(connection: psycopg.Connection, practices: Practices, due: Due) -> None:
    """Move what is to be reconciled this night out of `due`: databases by their lists and by their months apart.

    Changes of appointments stay due everywhere: another tick asks for them, and the reconciling run may be skipped.
    """
    databases: dict[Place, list[Location]] = {}
    for location in practices.active():
        databases.setdefault((location.institution.id, location.owner_id), []).append(location)
    lists, months = (
        {
            location.key
            for database in _next(connection, scope, {key: [one.id for one in of] for key, of in databases.items()})
            for location in databases[database]
        }
        for scope in (Scope.LOCATION, Scope.LOCATION_MONTH)
    )
    chosen = _next(connection, Scope.INSTITUTION, {(one.id, 0): [0] for one in practices.institutions})
    institutions = {one.subdomain for one in practices.institutions if (one.id, 0) in chosen}
    if not (lists or months or institutions):
        return
    due.reconcile = Due(
        institutions=[key for key in due.institutions if key in institutions],
        locations=[key for key in due.locations if key in lists],
        months=[f"{key}|{month}" for key in due.locations if key in months for month in _months()],
    )
    due.institutions = [key for key in due.institutions if key not in institutions]
    due.locations = [key for key in due.locations if key not in lists]
    due.months = [key for key in due.months if place_of(key) not in months]


Place = tuple[int, int]
"""An institution, and the location that reads for an EHR database of it; 0 = the institution as a whole."""


class Tried(NamedTuple):
    """When reconciles tried a location, or an institution as a whole, last."""

    begun: datetime = _NEVER
    judged: datetime = _NEVER
    """When absences were judged, or the brake held them."""


def _next(connection: psycopg.Connection, scope: Scope, places: Mapping[Place, list[int]]) -> list[Place]:
    """Those of `places` (and the locations of each) whose collections of `scope` are reconciled this night."""
    names = [one.name for one in DECLARED if one.is_asset and one.scope is scope and one.per is None]
    return whose_turn(places, _tried(connection, names), _complete(connection, names), database_time(connection))


def _tried(connection: psycopg.Connection, names: list[str]) -> dict[Place, Tried]:
    """By institution and location."""
    rows = connection.execute(
        # Later than now is by a clock that was ahead then: it would rest for so much longer.
        "SELECT institution_id, location_id, max(begun_at) FILTER (WHERE begun_at <= clock_timestamp()),"
        " max(judged) FILTER (WHERE judged <= clock_timestamp())"
        " FROM nexhealth_seen_passes, LATERAL (SELECT greatest(judged_at, held_at) AS judged) one"
        " WHERE collection = ANY(%s) GROUP BY 1, 2",
        (names,),
    )
    return {(row[0], row[1]): Tried(*(one or _NEVER for one in row[2:])) for row in rows}


def _complete(connection: psycopg.Connection, names: list[str]) -> set[Place]:
    """Institutions and locations that have been read completely once."""
    rows = connection.execute(
        "SELECT DISTINCT institution_id, location_id FROM nexhealth_freshness"
        " WHERE collection = ANY(%s) AND complete_through IS NOT NULL",
        (names,),
    )
    return {(row[0], row[1]) for row in rows}


def whose_turn(
    places: Mapping[Place, list[int]], tried: Mapping[Place, Tried], complete: AnyCollection[Place], now: datetime
) -> list[Place]:
    """A seventh of `places` (each with its locations), at least one, longest not tried first.

    Left out are those judged less than a week ago, or held by the brake, which holds until somebody lifts it, and those
    not read completely yet, where nothing can be gone. `tried` and `complete` are by institution and location.

    An institution's come together where they are no more than a seventh, those that rest as well, the last one's even
    beyond it: rows of no location are judged by all of them. One that was tried this week, and came to no end, is tried
    again by itself.
    """
    lately = now - _REST
    lot = -(-len(places) // _NIGHTS)
    sizes = Counter(institution for institution, _ in places)
    together: dict[Place, list[Place]] = {}
    waiting: dict[Place, datetime] = {}
    for place, locations in places.items():
        if not all((place[0], one) in complete for one in locations):
            continue
        group = (place[0], 0) if sizes[place[0]] <= lot else place
        together.setdefault(group, []).append(place)
        known = [tried.get((place[0], one), Tried()) for one in locations]
        if any(one.judged > lately for one in known):
            continue
        begun = max(one.begun for one in known)
        turn = place if begun > lately else group
        waiting[turn] = min(begun, waiting.get(turn, begun))
    chosen: dict[Place, None] = {}
    for turn in sorted(waiting, key=lambda turn: (waiting[turn], turn)):
        if len(chosen) < lot:
            chosen |= dict.fromkeys(together.get(turn, [turn]))
    return list(chosen)


def _months() -> list[str]:
    return month_keys(utc_today())


def complete_windows(
    connection: psycopg.Connection, locations: AnyCollection[int] | None = None
) -> set[tuple[int, int, str]]:
    """(institution id, location id, window) of every window of appointments whose passes have all been complete once.

    A location that has moved to another institution keeps its id: what was read of it there says nothing here.
    """
    found = connection.execute(
        # One row a location: of a thousand locations, a row a window took half a second to read.
        "SELECT institution_id, location_id, string_agg(window_key, ' ') FROM ("
        " SELECT institution_id, location_id, window_key FROM nexhealth_sync_state"
        " WHERE collection = ANY(%s) AND pass = ANY(%s) AND (%s::bigint[] IS NULL OR location_id = ANY(%s))"
        " GROUP BY institution_id, location_id, window_key HAVING count(*) >= %s AND bool_and(watermark IS NOT NULL)"
        ") complete GROUP BY 1, 2",
        ([one.name for one in _WINDOWED], _PASS_NAMES, *[None if locations is None else list(locations)] * 2, _PASSES),
    )
    return {(row[0], row[1], window) for row in found for window in row[2].split(" ")}
