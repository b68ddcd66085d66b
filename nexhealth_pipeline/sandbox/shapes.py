"""What a record looks like in its list: the stored fields plus the objects the API embeds there."""

from collections.abc import Callable, Collection, Iterable

import orjson

from .rows import Record, Row
from .state import State

__all__ = [
    "BASIC_TYPE",
    "descriptors",
    "extend",
    "list_shape",
    "location_groups",
    "payouts",
    "pick",
    "rows_of",
]

_BASIC_LOCATION = (
    *("id", "name", "street_address", "street_address_2", "city", "state", "zip_code", "phone_number", "email"),
    "inactive",
)
BASIC_TYPE = ("id", "name", "parent_type", "parent_id", "minutes", "bookable_online")
"""Fields of an appointment type inside other records."""
_BASIC_RECALL_TYPE = ("id", "name", "description", "interval_num", "interval_unit")


def extend(body: bytes, extra: Record) -> bytes:
    """`extra` keys added to an encoded object."""
    if not extra:
        return body
    joint = b"" if body == b"{}" else b","
    return body[:-1] + joint + orjson.dumps(extra)[1:]


def pick(record: Record, names: Iterable[str]) -> Record:
    """The fields of `names` that a record has."""
    return {name: record[name] for name in names if name in record}


def _basic_location(row: Row) -> Record:
    record = pick(row.record(), _BASIC_LOCATION)
    return {name: "" if value is None else value for name, value in record.items()}


def _nest(body: bytes, name: bytes, inner: Iterable[bytes]) -> bytes:
    """A list of encoded objects added to an encoded object."""
    return body[:-1] + b',"' + name + b'":[' + b",".join(inner) + b"]}"


def rows_of(state: State, collection: str, ids: Iterable[int]) -> list[Row]:
    """The rows of those ids that exist."""
    rows = state.store(collection).rows
    return [rows[number] for number in ids if number in rows]


def _types_for(state: State, institution_id: int, location_ids: Collection[int]) -> list[Record]:
    parents = {institution_id, *location_ids}
    rows = state.store("appointment_types").find("institution_id", institution_id)
    return [pick(row.record(), BASIC_TYPE) for row in rows if row.facts["parent_id"] in parents]


def _hours(state: State, row: Row, includes: Collection[str]) -> bytes:
    label = rows_of(state, "working_hour_labels", [row.facts["label_id"] or 0])
    extra: Record = {"label": label[0].record()} if label else {}
    if "appointment_types" in includes:
        types = rows_of(state, "appointment_types", row.facts["type_ids"] or ())
        extra["appointment_types"] = [pick(kind.record(), BASIC_TYPE) for kind in types]
    return extend(row.body, extra)


def _provider(state: State, row: Row, includes: Collection[str]) -> bytes:
    ids: list[int] = row.facts["location_ids"]
    bookable: list[int] = row.facts.get("requestable") or []
    extra: Record = {"provider_requestables": [{"location_id": place} for place in bookable]}
    if "locations" in includes:
        extra["locations"] = [place.record() for place in rows_of(state, "locations", ids)]
    body = extend(row.body, extra)
    if "availabilities" in includes or "appointment_types" in includes:
        inside = [name for name in includes if name == "appointment_types"]
        hours = state.store("working_hours").find("provider_id", row.id)
        body = _nest(body, b"availabilities", [_hours(state, one, inside) for one in hours])
    return body


def _operatory(state: State, row: Row, includes: Collection[str]) -> bytes:
    if "appointment_types" not in includes:
        return row.body
    places = [row.facts["location_id"]]
    return extend(row.body, {"appointment_types": _types_for(state, row.institution_id, places)})


def descriptors(state: State, type_id: int, location_id: int | None) -> list[Record]:
    """What an appointment type means to the practice's system, at one location or all."""
    rows = state.store("appointment_descriptors").find("appointment_type_id", type_id)
    return [row.record() for row in rows if location_id in (None, row.facts["location_id"])]


def payouts(state: State, fact: str, number: int) -> list[bytes]:
    """Payouts of a charge or a claim, encoded; each names the other one (API.md E.3)."""
    shown = []
    for row in state.store("claim_payouts").find(fact, number):
        fee = state.store("fee_schedule_procedures").rows.get(row.facts["fee_id"] or 0)
        body = row.body
        if fact == "claim_id":
            record = {name: value for name, value in row.record().items() if name != "claim_id"}
            body = orjson.dumps(record | {"charge_id": row.facts["charge_id"]})
        shown.append(body[:-1] + b',"fee_schedule_procedure_code":' + fee.body + b"}" if fee else body)
    return shown


def _charge(state: State, row: Row, includes: Collection[str]) -> bytes:
    if "claim_payouts" not in includes:
        return row.body
    return _nest(row.body, b"claim_payouts", payouts(state, "charge_id", row.id))


def _treatment_plan(state: State, row: Row, _includes: Collection[str]) -> bytes:
    inside = rows_of(state, "procedures", row.facts["procedure_ids"] or ())
    return _nest(row.body, b"procedures", [procedure.body for procedure in inside])


def _recall(state: State, row: Row, _includes: Collection[str]) -> bytes:
    kind = state.store("recall_types").rows.get(row.facts["recall_id"] or 0)
    return extend(row.body, {"recall_type": pick(kind.record(), _BASIC_RECALL_TYPE)} if kind else {})


def _institution(state: State, row: Row, _includes: Collection[str]) -> bytes:
    return extend(row.body, {"locations": [_basic_location(place) for place in state.locations(row.id)]})


def _sync(state: State, row: Row, _includes: Collection[str]) -> bytes:
    places = rows_of(state, "locations", row.facts["location_ids"])
    return extend(row.body, {"locations": [_basic_location(place) for place in places]})


_DRESSED: dict[str, Callable[[State, Row, Collection[str]], bytes]] = {
    "institutions": _institution,
    "sync_status": _sync,
    "providers": _provider,
    "operatories": _operatory,
    "working_hours": _hours,
    "charges": _charge,
    "treatment_plans": _treatment_plan,
    "patient_recalls": _recall,
}


def list_shape(
    state: State, collection: str, row: Row, includes: Collection[str] = (), location_id: int | None = None
) -> bytes:
    """A record as its list answers it."""
    if collection == "appointment_types" and "descriptors" in includes:
        return extend(row.body, {"descriptors": descriptors(state, row.id, location_id)})
    dress = _DRESSED.get(collection)
    return dress(state, row, includes) if dress else row.body


def location_groups(state: State, institutions: Iterable[Row], rows: Collection[int]) -> list[bytes]:
    """GET /locations: one element per institution, its locations (those of `rows`) inside."""
    groups = []
    for institution in institutions:
        inside = b",".join(place.body for place in state.locations(institution.id) if place.id in rows)
        head = orjson.dumps(pick(institution.record(), ("id", "name", "subdomain")))
        groups.append(head[:-1] + b',"locations":[' + inside + b"]}")
    return groups
