"""What a request may reach: institutions, locations, parents named in the path, and what is not enabled there.

Two things can be missing at a location, and then answer 403: `finance`, until the vendor enables it (API.md K; see
`State.enable`), and `alerts`, which some practice systems do not keep (A.7 [guess]). What belongs to the whole
institution is there as soon as one of its locations has it [guess].
"""

from collections.abc import Collection

from .call import FORBIDDEN, Call
from .kinds import KINDS
from .params import parse_int
from .reply import ApiError
from .route import Scope
from .rows import Row
from .state import NoSuchRowError, State

__all__ = ["address", "check_enabled", "enabled", "institutions_of", "patient_of", "reachable", "singular", "vanished"]


def singular(collection: str) -> str:
    """The name of one row, as error messages use it."""
    return collection.removesuffix("s").replace("_", " ").capitalize()


def address(state: State, call: Call) -> None:
    """Find the institution, location and parent row of a request. Raises ApiError 403 or 404."""
    _find_institution(state, call)
    _find_location(state, call)
    if call.route.under[0]:
        _find_parent(state, call)


def _find_institution(state: State, call: Call) -> None:
    subdomain = call.query.get("subdomain") if call.route.scoped else None
    if subdomain is None:
        return
    if call.allowed is not None and subdomain not in call.allowed:
        raise ApiError(403, FORBIDDEN)
    try:
        call.institution = state.institution(subdomain)
    except NoSuchRowError:
        raise ApiError(403, FORBIDDEN) from None


def _find_location(state: State, call: Call) -> None:
    text = call.query.get("location_id")
    if text is None or call.institution is None:
        return
    number = parse_int("location_id", text)
    place = state.store("locations").rows.get(number)
    if place is None or place.institution_id != call.institution.id or place.facts["inactive"]:
        raise ApiError(404, f"Location with id {number} not found")
    call.location = place


def _find_parent(state: State, call: Call) -> None:
    name, number = call.route.under[0], call.number or 0
    if name == "patients":
        patient_of(state, call.scope_id, number)
        return
    row = state.store(name).rows.get(number)
    if name == "locations":
        homes = {home.id for home in institutions_of(state, call)}
        found = row is not None and row.institution_id in homes and not row.facts["inactive"]
    else:
        found = row is not None and row.institution_id == call.scope_id
    if not found:
        raise ApiError(404, f"{singular(name)} with id {number} not found")


def patient_of(state: State, institution_id: int, number: int) -> Row:
    """A patient of the institution. Raises ApiError 404."""
    row = state.store("patients").rows.get(number)
    if row is None or row.institution_id != institution_id:
        raise ApiError(404, f"Patient with id {number} not found")
    return row


def institutions_of(state: State, call: Call) -> list[Row]:
    """The institutions of a key-wide request."""
    if call.institution is not None:
        return [call.institution]
    rows = sorted(state.store("institutions").rows.values(), key=lambda row: row.id)
    return [row for row in rows if call.allowed is None or row.facts["subdomain"] in call.allowed]


def vanished(collection: str, row: Row) -> bool:
    """Whether a row is deleted and nothing shows it as such: its single read does not find it."""
    kind = KINDS[collection]
    if kind.flagged_delete:
        return bool(row.facts["deleted"]) and "deleted" not in row.record()
    return kind.hidden_delete and row.facts.get("deleted_at") is not None


def reachable(state: State, call: Call, row: Row) -> bool:
    """Whether a single read finds this row."""
    if vanished(call.route.collection, row):
        return False
    if call.route.scope is Scope.KEY:
        return row.institution_id in {home.id for home in institutions_of(state, call)}
    if call.route.scope is Scope.LOCATION and row.facts["location_id"] != call.location_id:
        return False
    if call.route.collection == "procedures" and _closed(state, row):
        return False  # listed, but not readable by id (API.md C.2), as those without a location
    if call.route.collection == "insurance_balances" and not enabled(state, call.route.collection, row):
        return False  # as of a location that the key does not reach, says its specification
    if call.route.under[0] and row.facts[call.route.under[1]] != call.number:
        return False
    return row.institution_id == call.scope_id


def _closed(state: State, row: Row) -> bool:
    place = state.store("locations").rows.get(row.facts["location_id"] or 0)
    return place is None or bool(place.facts["inactive"])


def _capability(collection: str) -> str | None:
    if KINDS[collection].finance:
        return "finance"
    return "alerts" if collection == "alerts" else None


def check_enabled(state: State, call: Call) -> None:
    """Refuse a list that its location, or none of its institution's, has. Raises ApiError 403."""
    capability = _capability(call.route.collection)
    if capability is None or call.route.single:
        return
    if call.route.scope is Scope.INSTITUTION and not call.route.under[0]:
        _refuse(_open_places(state, call.scope_id), capability)
    elif call.location is not None:
        _refuse([call.location], capability)
    elif call.route.under[0] == "patients":
        _refuse(_places(state, state.row("patients", call.number or 0)), capability)


def _refuse(places: Collection[Row], capability: str) -> None:
    if places and all(capability in place.facts.get("lacks", ()) for place in places):
        raise ApiError(403, FORBIDDEN)


def _places(state: State, row: Row) -> list[Row]:
    """The locations a row belongs to: the one it names, its patient's, or all of its EHR database or institution."""
    locations = state.store("locations").rows
    if not {"location_id", "location_ids", "patient_id", "database"} & row.facts.keys():
        return _open_places(state, row.institution_id)
    if row.facts.get("location_id") is not None:
        named = [row.facts["location_id"]]
    elif "location_ids" in row.facts:
        named = row.facts["location_ids"]
    else:
        patient = state.store("patients").rows.get(row.facts.get("patient_id") or 0)
        database = row.facts.get("database", patient.facts["database"] if patient else None)
        return [place for place in locations.values() if place.facts["database"] == database]
    return [locations[number] for number in named if number in locations]


def _open_places(state: State, institution_id: int) -> list[Row]:
    """The active locations of an institution."""
    return [place for place in state.locations(institution_id) if not place.facts["inactive"]]


def enabled(state: State, collection: str, row: Row) -> bool:
    """Whether some location of the row has the collection; a row of no known location has it."""
    capability = _capability(collection)
    if capability is None:
        return True
    places = _places(state, row)
    return not places or any(capability not in place.facts.get("lacks", ()) for place in places)
