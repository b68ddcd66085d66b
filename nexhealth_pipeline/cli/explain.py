"""What `nexhealth sync --explain` prints: the requests a sync would send, how many, and how long they take."""

from collections import Counter
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from nexhealth_pipeline.cli.realm import Realm
from nexhealth_pipeline.cli.tables import beside_seconds, number, table
from nexhealth_pipeline.errors import InvalidSetting

if TYPE_CHECKING:
    import psycopg

    from nexhealth_pipeline.orchestration.request import SyncRequest
    from nexhealth_pipeline.sync.explain import Explained
    from nexhealth_pipeline.sync.options import SyncOptions
    from nexhealth_pipeline.sync.slices import Slice

__all__ = ["explained", "explained_lines"]

_NONE_KNOWN = "No location is known yet, so {}: `nexhealth sync --resource locations` reads them"
_LOWER_BOUND = (
    "It will be more: {} cost a request for each patient or coverage, which are not known yet;"
    " `nexhealth sync --resource patients --resource insurance_coverages` reads them"
)
_FIRST_PAGES = "It may be more: of lists that were never read to their end only the first page is counted."


def explained(realm: Realm, request: "SyncRequest") -> dict[str, Any]:
    """Per collection path, slices and requests; the seconds they take at the limits' rate. Sends nothing.

    `unknown` names the collections for which both figures are too small: some or all of them was never read completely.
    Raises InvalidSetting for a location that is unknown or inactive, WarehouseError.
    """
    from nexhealth_pipeline.sync.explain import explain, floor_seconds
    from nexhealth_pipeline.sync.months import utc_today
    from nexhealth_pipeline.warehouse.connect import connect, driver_errors
    from nexhealth_pipeline.warehouse.migrate import check

    url = realm.warehouse_url()
    check(url)
    today = utc_today()
    with connect(url, autocommit=True) as connection, driver_errors("explaining a sync"):
        slices, known = _slices(connection, realm, request, today)
        found = explain(connection, slices, _options(realm, request), today)
    floor = floor_seconds(_per_path(found), realm.settings.rate_share)
    return {
        "collections": [{name: getattr(one, name) for name in one.__slots__} for one in found],
        "requests": sum(one.requests for one in found),
        "floor_seconds": round(floor, 1),
        "unknown": [one.collection for one in found if one.uncounted],
        "rate_share": realm.settings.rate_share,
        "locations_known": known,
    }


def explained_lines(found: dict[str, Any]) -> list[str]:
    """What :func:`explained` found, as lines for people."""
    from nexhealth_pipeline.catalog.collections import COLLECTIONS

    rows = [
        [one["collection"], f"GET {one['path']}", number(one["slices"]), number(one["requests"]), one["why"]]
        for one in found["collections"]
    ]
    lines = table(("collection", "request", "slices", "requests", ""), rows, right="  >>")
    lines += ["", _figures(found)]
    singles = [name for name in found["unknown"] if COLLECTIONS[name].per]
    if singles:
        lines.append(_LOWER_BOUND.format(", ".join(singles)))
    if len(singles) < len(found["unknown"]):
        lines.append(_FIRST_PAGES)
    lines.append("Nothing was asked or written.")
    if not found["locations_known"]:
        lines.append(_NONE_KNOWN.format("this is the discovery alone") + ".")
    return lines


def _figures(found: dict[str, Any]) -> str:
    about = "at least" if found["unknown"] else "about"
    return (
        f"{about} {found['requests']:,} requests; NexHealth's rate limits, of which {found['rate_share']:.0%} are used, "
        f"allow them in {found['floor_seconds']:,.0f} s{beside_seconds(found['floor_seconds'])} at an even rate"
    )


def _per_path(found: "list[Explained]") -> dict[str, int]:
    requests: Counter[str] = Counter()
    for one in found:
        requests[one.path] += one.requests
    return requests


def _options(realm: Realm, request: "SyncRequest") -> "SyncOptions":
    from nexhealth_pipeline.sync.options import SyncOptions

    return replace(
        SyncOptions.of(realm.settings),
        mode=request.mode,
        start=request.start,
        end=request.end,
        filters=request.filters,
    )


def _slices(
    connection: "psycopg.Connection", realm: Realm, request: "SyncRequest", today: date
) -> tuple[list["Slice"], int]:
    """The slices that the sync would read after discovery, and how many locations are known."""
    from nexhealth_pipeline.catalog.collection import Scope
    from nexhealth_pipeline.catalog.collections import COLLECTIONS
    from nexhealth_pipeline.sync.filters import choose
    from nexhealth_pipeline.sync.plan import due_slices
    from nexhealth_pipeline.sync.practice import load_practices
    from nexhealth_pipeline.warehouse.state import load_watermarks

    practices = load_practices(connection, realm.settings.subdomains)
    if request.locations and not practices.locations:
        raise InvalidSetting(_NONE_KNOWN.format(f"--location {request.locations[0]!r} cannot be looked up"))
    chosen = {location.key for location in practices.chosen(request.locations)}
    institutions = {key.rpartition(".")[0] for key in chosen}
    collections = [
        one
        for one in COLLECTIONS.values()
        if one.is_asset and one.scope is not Scope.PRACTICE and (one.name in request.resources or not request.resources)
    ]
    if request.start or request.end:
        collections = [one for one in collections if one.window is not None]
    collections = choose(collections, request.filters, named=bool(request.resources), known=COLLECTIONS.values())
    watermarks = load_watermarks(connection, [one.name for one in collections])
    due = due_slices(collections, practices, watermarks, _options(realm, request), today)
    wanted = [
        piece
        for piece in due
        if not chosen or (piece.location.key in chosen if piece.location else piece.subdomain in institutions)
    ]
    return wanted, len(practices.locations)
