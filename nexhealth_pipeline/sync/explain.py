"""What a sync would ask the API, how often, and how long the rate limits make that take. Asks nothing."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from math import ceil

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.catalog.limits import LIMITS, RateClass, rate_classes
from nexhealth_pipeline.catalog.paging import MOST_A_PAGE
from nexhealth_pipeline.sync.filters import NO_FILTERS
from nexhealth_pipeline.sync.months import CHANGES
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.plan import passes_of, was_read
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.child_reads import due_rows
from nexhealth_pipeline.warehouse.knowledge import NOT_OFFERED
from nexhealth_pipeline.warehouse.state import load_watermarks

__all__ = ["Explained", "explain", "floor_seconds"]


@dataclass(frozen=True, slots=True)
class Explained:
    """What one collection costs."""

    collection: str
    path: str
    slices: int
    requests: int
    """An estimate: lists grow, and an increment's size is known only when it is asked for."""
    why: str
    uncounted: int = 0
    """Slices whose requests are not all among these: never read completely, nor the collection that they ask for each row of.

    Of a list the first page of each pass is.
    """


def explain(connection: psycopg.Connection, slices: list[Slice], options: SyncOptions, today: date) -> list[Explained]:
    """One line a collection for `slices` (from `plan.due_slices`), and discovery's three requests."""
    by_collection: dict[str, list[Slice]] = {
        name: [Slice(one)] for name, one in COLLECTIONS.items() if one.scope is Scope.PRACTICE
    }
    for piece in slices:
        by_collection.setdefault(piece.collection.name, []).append(piece)
    return [_explained(connection, COLLECTIONS[name], pieces, options, today) for name, pieces in by_collection.items()]


def floor_seconds(requests_by_path: Mapping[str, int], share: float) -> float:
    """Seconds that the documented limits allow the requests in at an even rate: the slowest rate class, since classes overlap.

    A window's worth may go at once, so few requests take less, and many up to a window less.
    `share` is the part of the limits in use (NEXHEALTH_RATE_SHARE).
    """
    by_class: Counter[RateClass] = Counter()
    for path, requests in requests_by_path.items():
        for rate_class in rate_classes(path):
            by_class[rate_class] += requests
    return max(
        (
            requests * LIMITS[rate_class].window_seconds / (LIMITS[rate_class].requests * share)
            for rate_class, requests in by_class.items()
        ),
        default=0.0,
    )


def _explained(
    connection: psycopg.Connection, collection: Collection, pieces: list[Slice], options: SyncOptions, today: date
) -> Explained:
    if collection.per:
        requests = sum(_due(connection, piece, options) for piece in pieces) * len(collection.passes)
        uncounted = _never_read(connection, COLLECTIONS[collection.per], pieces, today)
        return Explained(
            collection.name,
            collection.path,
            len(pieces),
            requests,
            _why_single(collection.per, len(pieces), requests, uncounted),
            uncounted,
        )
    if collection.scope is Scope.PRACTICE:
        options = replace(options, filters=NO_FILTERS)  # discovery is never filtered
    passes = sum(len(passes_of(piece, today, options.filters, reconcile=options.reconciles)) for piece in pieces)
    # Of a filtered list nobody knows the length beforehand.
    whole = options.mode.whole and collection.window is None and not options.filters
    lists = _rows(connection, collection, pieces) if whole else []
    pages = sum(ceil(rows / MOST_A_PAGE[collection.paging]) for rows in lists)
    uncounted = 0
    if collection.scope is not Scope.PRACTICE and not options.filters:
        # An increment's length is not known either, but small beside what was read.
        months = [piece for piece in pieces if piece.window_key != CHANGES]
        uncounted = _never_read(connection, collection, months, today)
    why = _why(collection, pieces, options)
    if uncounted:
        why += f"; of {uncounted:,} slice(s) never read the first page alone is counted"
    return Explained(collection.name, collection.path, len(pieces), max(passes, pages), why, uncounted)


def _why(collection: Collection, pieces: list[Slice], options: SyncOptions) -> str:
    if options.filters:
        return f"only by {options.filters.in_words()}; at least one request a pass"
    passes = len(collection.passes if options.reconciles else collection.regular_passes)
    if collection.window is None:
        return f"{passes} pass(es) a slice, {MOST_A_PAGE[collection.paging]} records a page"
    changes = sum(piece.window_key == CHANGES for piece in pieces)
    return f"{len(pieces) - changes} month(s) and {changes} change read(s), {passes} passes each"


def _why_single(parents: str, slices: int, requests: int, uncounted: int) -> str:
    if uncounted == slices and uncounted and not requests:
        return f"not counted: its {parents} are not known yet (a request each)"
    why = f"one request for each of the {parents} that is due"
    return f"{why}; in part not counted: of {uncounted:,} slice(s) not all are known yet" if uncounted else why


def _never_read(connection: psycopg.Connection, collection: Collection, pieces: list[Slice], today: date) -> int:
    """Of how many `pieces` nobody knows how many rows of `collection` there are: it was never read completely there.

    What a practice does not have has no rows, and is never read.
    """
    watermarks = load_watermarks(connection, [collection.name])
    unread = [piece for piece in pieces if not was_read(replace(piece, collection=collection), watermarks, today)]
    rows = connection.execute(
        "SELECT institution_id, location_id FROM nexhealth_capabilities WHERE collection = %s AND status = ANY(%s)",
        (collection.name, list(NOT_OFFERED)),
    )
    lacking = set(rows.fetchall())
    return sum((piece.institution_id, piece.location_id) not in lacking for piece in unread)


def _due(connection: psycopg.Connection, piece: Slice, options: SyncOptions) -> int:
    due = due_rows(
        connection,
        collection=piece.collection,
        institution_id=piece.institution_id,
        location_id=piece.location_id,
        # Everything read so far is due again in a full sync.
        read_before=datetime.now(UTC) if options.mode_of_lists.whole else None,
        rotation_days=options.rotation_days,
    )
    return sum(1 for _ in due)


def _rows(connection: psycopg.Connection, collection: Collection, pieces: list[Slice]) -> list[float]:
    """Rows the warehouse holds of each list that `pieces` read.

    Of locations' lists that no index tells apart each is taken to be an even part of the institution's. Rows marked as
    gone are counted as well, and there those of offices that are read no more: to leave those few out, of millions each
    would be looked at, and not only an index.
    """
    by_location = collection.scope is Scope.LOCATION and ("location_id",) in collection.indexes
    place = "location_id" if by_location else "institution_id"
    lists = Counter(piece.location_id if by_location else piece.institution_id for piece in pieces)
    query = sql.SQL("SELECT {0}, count(*) FROM {1} WHERE {0} = ANY(%s) OR %s GROUP BY 1").format(
        sql.Identifier(place), sql.Identifier(collection.table)
    )
    counted = connection.execute(query, (list(lists), collection.scope is Scope.PRACTICE)).fetchall()
    if by_location or collection.scope is not Scope.LOCATION:
        return [rows for _, rows in counted]
    active = _active_locations(connection)
    return [
        rows / active.get(institution, lists[institution])
        for institution, rows in counted
        for _ in range(lists[institution])
    ]


def _active_locations(connection: psycopg.Connection) -> dict[int, int]:
    """How many each institution has."""
    return dict(
        connection.execute(
            "SELECT institution_id, count(*) FROM nexhealth_locations"
            " WHERE NOT coalesce(inactive, false) AND deleted_at IS NULL GROUP BY 1"
        ).fetchall()
    )
