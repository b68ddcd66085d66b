"""Which slices a sync reads, and what each pass of a slice asks the API.

Pure functions of the catalog, the practices and the stored state: no request is made here.
"""

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

from nexhealth_pipeline.catalog.collection import Collection, Pass, Reader, Scope
from nexhealth_pipeline.catalog.paging import MOST_A_PAGE
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.sync.filters import NO_FILTERS, Filters, filtered_passes
from nexhealth_pipeline.sync.months import CHANGES, month_bounds, month_keys, month_window, widest_window
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.practice import Institution, Location, Practices
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.state import PassKey

__all__ = [
    "PassPlan",
    "api_time",
    "due_slices",
    "filter_hash",
    "has_nobody_to_ask",
    "in_window",
    "is_fresh",
    "owner_keys",
    "passes_of",
    "slices_of",
    "was_read",
]

Watermarks = Mapping[PassKey, datetime]
"""Of passes that were ever complete."""


@dataclass(frozen=True, slots=True)
class PassPlan:
    """One pass of a slice: its state's key and its request without increment."""

    pass_: Pass
    key: PassKey
    request: ApiRequest
    location: Location | None


def slices_of(collection: Collection, practices: Practices, today: date) -> Iterator[Slice]:
    """All slices of a collection at active locations; of windowed ones the months."""
    match collection.scope:
        case Scope.PRACTICE:
            yield Slice(collection)
        case Scope.INSTITUTION:
            for institution in practices.institutions:
                if not has_nobody_to_ask(collection, institution, practices):
                    asks_each = collection.per_location_if in institution.flags
                    members = practices.active(institution.id) if asks_each else ()
                    yield Slice(collection, institution, members=members)
        case Scope.LOCATION:
            for location in practices.active():
                yield Slice(collection, location.institution, location)
        case Scope.LOCATION_MONTH:
            for location in practices.active():
                for key in month_keys(today):
                    yield Slice(collection, location.institution, location, key)


def has_nobody_to_ask(collection: Collection, institution: Institution, practices: Practices) -> bool:
    """Whether an institution's list is asked for at each active location, and there is none: without one the API refuses."""
    return collection.per_location_if in institution.flags and not practices.active(institution.id)


def due_slices(
    collections: Iterable[Collection],
    practices: Practices,
    watermarks: Watermarks,
    options: SyncOptions,
    today: date,
) -> list[Slice]:
    """What a sync of whole collections reads: of windowed ones, months or the change slice."""
    due: list[Slice] = []
    for collection in collections:
        slices = slices_of(collection, practices, today)
        if collection.window is None:
            due += slices
        else:
            due += _due_months(list(slices), watermarks, options, today)
    return due


def _due_months(slices: list[Slice], watermarks: Watermarks, options: SyncOptions, today: date) -> list[Slice]:
    """Months in the asked window, of filtered reads all at once; else months never complete and the change slices.

    Changes are asked for as soon as one month is complete: another may fail for weeks, and the rest must not age.
    """
    if options.start or options.end:
        return in_window(slices, options, today)
    if options.filters:
        return list({piece.location_id: replace(piece, window_key=CHANGES) for piece in slices}.values())
    if options.mode is not Mode.INCREMENTAL:
        return slices
    unread: list[Slice] = []
    changes: dict[int, Slice] = {}
    for piece in slices:
        if not was_read(piece, watermarks, today):
            unread.append(piece)
        elif piece.location_id not in changes:
            changes[piece.location_id] = replace(piece, window_key=CHANGES)
    return [*unread, *changes.values()]


def in_window(slices: Iterable[Slice], options: SyncOptions, today: date) -> list[Slice]:
    """The months that overlap the window of `options`, whose ends are both included."""
    return [piece for piece in slices if piece.window_key and _overlaps(piece.window_key, options, today)]


def _overlaps(key: str, options: SyncOptions, today: date) -> bool:
    # By what the month owns: a day more on both sides is asked for, which brings what an office's clock has in the next one.
    start, end = month_bounds(key, today)
    return (options.end is None or start.date() <= options.end) and (
        options.start is None or end.date() > options.start
    )


def was_read(piece: Slice, watermarks: Watermarks, today: date) -> bool:
    """Whether every pass of a slice was complete once."""
    return all(plan.key in watermarks for plan in passes_of(piece, today))


def is_fresh(piece: Slice, fresh: Container[PassKey], today: date) -> bool:
    """Whether every pass of a slice is among those that need not be made again."""
    return all(plan.key in fresh for plan in passes_of(piece, today))


def passes_of(piece: Slice, today: date, filters: Filters = NO_FILTERS, *, reconcile: bool = False) -> list[PassPlan]:
    """The passes that the slice's reader has to make, in order; with `filters` those that bring the rows wanted.

    `reconcile`: also those that are made only before absences are judged.
    """
    passes: Iterable[Pass] = piece.collection.passes if reconcile else piece.collection.regular_passes
    if filters:
        passes = filtered_passes(piece.collection, filters, owner=piece.location is None or piece.location.is_owner)
    return [
        _plan(piece, pass_, location, today)
        for pass_ in passes
        if _makes(piece.location, pass_)
        for location in (piece.members or (piece.location,))
    ]


def owner_keys(piece: Slice) -> list[PassKey]:
    """Passes of its database's owner by which the rows of a slice come; none where it reads them itself."""
    location = piece.location
    if location is None or location.is_owner:
        return []
    return [
        PassKey(piece.collection.name, piece.institution_id, location.owner_id, piece.window_key, one.name)
        for one in piece.collection.regular_passes
        if one.reader is Reader.OWNER
    ]


def _makes(location: Location | None, pass_: Pass) -> bool:
    match pass_.reader:
        case Reader.OWNER:
            return location is None or location.is_owner
        case Reader.SHARED:
            return location is not None and location.shared
        case Reader.EVERY:
            return True


def _plan(piece: Slice, pass_: Pass, location: Location | None, today: date) -> PassPlan:
    collection = piece.collection
    location_id = location.id if location else 0
    params = list(pass_.params)
    if collection.sort:
        params.append(("sort", collection.sort))
    in_path = "{location_id}" in collection.path
    if location and not collection.per and not in_path:
        params.append(("location_id", str(location_id)))
    if collection.window and piece.window_key:
        start, end = widest_window() if piece.window_key == CHANGES else month_window(piece.window_key, today)
        params += [(collection.window.start, api_time(start)), (collection.window.end, api_time(end))]
    request = ApiRequest(
        path=collection.path.replace("{location_id}", str(location_id)),
        params=tuple(params),
        # What the location in the path tells anyway is no parameter there: the API would say that it ignored it.
        subdomain=None if in_path else piece.subdomain,
        paging=collection.paging,
        per_page=MOST_A_PAGE[collection.paging],
        legacy_accept=collection.legacy_accept,
        records_at=collection.records_at,
        key_name=piece.subdomain or "",
    )
    key = PassKey(collection.name, piece.institution_id, location_id, piece.window_key, pass_.name)
    return PassPlan(pass_, key, request, location)


def api_time(moment: datetime) -> str:
    """A time of any zone as the API recommends it: in UTC, cut to whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")


def filter_hash(request: ApiRequest) -> str:
    """Fingerprint of what a cursor is valid for: path, scope and filters."""
    text = "\0".join((request.path, request.subdomain or "", *(f"{name}={value}" for name, value in request.params)))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
