"""What a record looks like from outside: the stored fields plus the objects the API embeds in it."""

from collections.abc import Collection, Iterable
from typing import Any

import orjson

from .rows import Record, Row
from .state import State

__all__ = ["extend", "list_shape", "location_groups", "single_shape", "truth"]

_USER = (
    *(
        [
            "id",
            "email",
            "first_name",
            "middle_name",
            "last_name",
            "name",
            "created_at",
            "updated_at",
            "institution_id",
            "foreign_id",
        ]
    ),
    *(["foreign_id_type", "bio", "inactive", "last_sync_time"]),
)
_BASIC_LOCATION = (
    *(
        [
            "id",
            "name",
            "street_address",
            "street_address_2",
            "city",
            "state",
            "zip_code",
            "phone_number",
            "email",
            "inactive",
        ]
    ),
)
_BASIC_APPOINTMENT = ("id", "provider_id", "provider_name", "start_time", "end_time", "location_id", "confirmed")
_BASIC_TYPE = ("id", "name", "parent_type", "parent_id", "minutes", "bookable_online")
_INNER_COVERAGE = (
    *(
        [
            "id",
            "subscription_relation",
            "patient_id",
            "priority",
            "plan_id",
            "subscriber_num",
            "effective_date",
            "expiration_date",
        ]
    ),
)
_UNKEPT = ("procedures", "adjustments", "charges", "payments", "patient_alerts")
"""Includes of collections that the sandbox has no data for: always empty."""


def extend(body: bytes, extra: Record) -> bytes:
    """`extra` keys added to an encoded object."""
    if not extra:
        return body
    joint = b"" if body == b"{}" else b","
    return body[:-1] + joint + orjson.dumps(extra)[1:]


def _pick(record: Record, names: Iterable[str]) -> Record:
    return {name: record[name] for name in names if name in record}


def _basic_location(row: Row) -> Record:
    record = _pick(row.record(), _BASIC_LOCATION)
    return {name: "" if value is None else value for name, value in record.items()}


def _basic_appointment(row: Row) -> Record:
    record = _pick(row.record(), _BASIC_APPOINTMENT)
    return {name: value for name, value in record.items() if value is not None}


def _rows_of(state: State, collection: str, ids: Iterable[int]) -> list[Row]:
    rows = state.store(collection).rows
    return [rows[number] for number in ids if number in rows]


def _types_for(state: State, institution_id: int, location_ids: Collection[int]) -> list[Record]:
    parents = {institution_id, *location_ids}
    rows = state.store("appointment_types").find("institution_id", institution_id)
    return [_pick(row.record(), _BASIC_TYPE) for row in rows if row.facts["parent_id"] in parents]


def _availabilities(state: State, provider: Row, with_types: bool) -> list[Record]:
    """Working hours made up from the provider's id: the sandbox keeps none."""
    hours = []
    for index, place in enumerate(provider.facts["location_ids"]):
        types = _types_for(state, provider.institution_id, [place]) if with_types else []
        hours.append(
            {
                "id": provider.id % 1_000_000 * 10 + index,
                "provider_id": provider.id,
                "location_id": place,
                "operatory_id": None,
                "begin_time": "08:00",
                "end_time": "17:00",
                "days": ["Monday", "Tuesday", "Thursday"],
                "specific_date": None,
                "custom_recurrence": None,
                "tz_offset": "-0800",
                "active": True,
                "source": "synced",
                "label": {"id": 1, "location_id": place, "name": "Regular"},
                "appointment_types": types,
            }
        )
    return hours


def _provider(state: State, row: Row, includes: Collection[str]) -> bytes:
    ids: list[int] = row.facts["location_ids"]
    bookable: list[int] = row.facts.get("requestable") or []
    extra: Record = {"provider_requestables": [{"location_id": place} for place in bookable]}
    if "locations" in includes:
        extra["locations"] = [place.record() for place in _rows_of(state, "locations", ids)]
    if "availabilities" in includes or "appointment_types" in includes:
        extra["availabilities"] = _availabilities(state, row, "appointment_types" in includes)
    return extend(row.body, extra)


def _operatory(state: State, row: Row, includes: Collection[str]) -> bytes:
    if "appointment_types" not in includes:
        return row.body
    places = [row.facts["location_id"]]
    return extend(row.body, {"appointment_types": _types_for(state, row.institution_id, places)})


def _descriptors(state: State, type_id: int, location_id: int | None) -> list[Record]:
    rows = state.store("descriptors").find("appointment_type_id", type_id)
    return [row.record() for row in rows if location_id in (None, row.facts["location_id"])]


def list_shape(
    state: State, collection: str, row: Row, includes: Collection[str] = (), location_id: int | None = None
) -> bytes:
    """A record as its list answers it."""
    match collection:
        case "institutions":
            places = [_basic_location(place) for place in state.locations(row.id)]
            return extend(row.body, {"locations": places})
        case "sync_status":
            places = [_basic_location(place) for place in _rows_of(state, "locations", row.facts["location_ids"])]
            return extend(row.body, {"locations": places})
        case "providers":
            return _provider(state, row, includes)
        case "operatories":
            return _operatory(state, row, includes)
        case "appointment_types" if "descriptors" in includes:
            return extend(row.body, {"descriptors": _descriptors(state, row.id, location_id)})
    return row.body


def location_groups(state: State, institutions: Iterable[Row], rows: Collection[int]) -> list[bytes]:
    """GET /locations: one element per institution, its locations (those of `rows`) inside."""
    groups = []
    for institution in institutions:
        inside = b",".join(place.body for place in state.locations(institution.id) if place.id in rows)
        head = orjson.dumps(_pick(institution.record(), ("id", "name", "subdomain")))
        groups.append(head[:-1] + b',"locations":[' + inside + b"]}")
    return groups


def _user(state: State, collection: str, number: int | None) -> Record | None:
    row = state.store(collection).rows.get(number or 0)
    return _pick(row.record(), _USER) if row else None


def _subscriber(state: State, coverage: Row) -> Record:
    row = state.store("patients").rows.get(coverage.facts.get("subscriber_id") or 0)
    if row is None:
        return {}
    found: Record = {"id": row.id, "name": row.value("name"), "date_of_birth": row.value("bio.date_of_birth")}
    return {"subscriber": found}


def _inner_coverage(state: State, row: Row) -> Record:
    record = row.record()
    plan = state.store("insurance_plans").rows.get(record["plan_id"] or 0)
    inner = _pick(record, _INNER_COVERAGE) | _subscriber(state, row)
    return inner | ({"plan": plan.record()} if plan else {})


def _address(bio: Record) -> Record:
    return {
        "line_1": bio.get("address_line_1"),
        "line_2": bio.get("address_line_2"),
        "postal_code": bio.get("zip_code"),
        "city": bio.get("city"),
        "region": bio.get("state"),
    }


def _children(state: State, patient: Row) -> list[Record]:
    family = state.store("patients").find("guarantor_id", patient.id)
    return [_pick(row.record(), _USER) for row in family if row.id != patient.id]


def _visits(state: State, patient: Row, includes: Collection[str], now: str) -> Record:
    rows = sorted(state.store("appointments").find("patient_id", patient.id), key=lambda row: row.facts["start_time"])
    kept = [row for row in rows if not row.facts["cancelled"]]
    found: Record = {}
    if "upcoming_appts" in includes:
        upcoming = [row for row in kept if row.facts["start_time"] > now]
        found["upcoming_appts"] = [_basic_appointment(row) for row in upcoming]
    visited = [row for row in kept if row.facts["start_time"] <= now and row.value("checked_out")]
    if "last_visited_appointment" in includes and visited:
        found["last_visited_appointment"] = _basic_appointment(visited[-1])
    return found


def _patient(state: State, row: Row, includes: Collection[str], now: str) -> bytes:
    record = row.record()
    extra: Record = {"location_ids": row.facts["location_ids"]}
    if "children" in includes:
        extra["children"] = _children(state, row)
    if "guarantor" in includes:
        extra["guarantor"] = _user(state, "patients", record["guarantor_id"] or row.id)
    if "provider" in includes and record["provider_id"]:
        extra["provider"] = _user(state, "providers", record["provider_id"])
    if "address" in includes:
        extra["address"] = _address(record["bio"])
    if "insurance_coverages" in includes:
        rows = state.store("insurance_coverages").find("patient_id", row.id)
        extra["insurance_coverages"] = [
            _inner_coverage(state, coverage) for coverage in rows if coverage.facts["active"]
        ]
    extra |= _visits(state, row, includes, now)
    extra |= {name: [] for name in _UNKEPT if name in includes}
    return extend(row.body, {name: value for name, value in extra.items() if value is not None})


def _appointment_patient(state: State, patient: Row, with_guarantor: bool) -> Record:
    record = patient.record()
    for name in ("provider_id", "hipaa"):
        record.pop(name, None)
    record |= {"preferred_locale": record["preferred_language"], "location_ids": patient.facts["location_ids"]}
    if with_guarantor:
        record["guarantor"] = _user(state, "patients", record["guarantor_id"] or patient.id)
    return record


def _appointment(state: State, row: Row, includes: Collection[str]) -> bytes:
    record, extra = row.record(), dict[str, Any]()
    patient = state.store("patients").rows.get(record["patient_id"] or 0)
    if patient and not {"patient", "guarantor"}.isdisjoint(includes):
        extra["patient"] = _appointment_patient(state, patient, "guarantor" in includes)
    room = state.store("operatories").rows.get(record["operatory_id"] or 0)
    if "operatory" in includes and room:
        extra["operatory"] = room.record()
    kind = state.store("appointment_types").rows.get(record["appointment_type_id"] or 0)
    if "appointment_type" in includes and kind:
        extra["appointment_type"] = _pick(kind.record(), _BASIC_TYPE)
    if "descriptors" in includes:
        extra["descriptors"] = _descriptors(state, kind.id, record["location_id"]) if kind else []
    if "procedures" in includes:
        extra["procedures"] = []
    if "booking_details" in includes and record["misc"]:
        extra["booking_details"] = _BOOKING
    return extend(row.body, extra)


_BOOKING = {
    "booked_via_nexhealth_generated_link": True,
    "campaign_type": "recall",
    "campaign_id": "1",
    "campaign_medium": "sms",
    "booked_via_one_click": False,
}


def _plan(state: State, row: Row, includes: Collection[str]) -> bytes:
    coverages = list(state.store("insurance_coverages").find("plan_id", row.id))
    extra: Record = {}
    if "patient_coverages" in includes:
        extra["patient_coverages"] = [_pick(coverage.record(), _INNER_COVERAGE) for coverage in coverages]
    if "subscribers" in includes:
        found = [_subscriber(state, coverage) for coverage in coverages]
        extra["subscribers"] = [one["subscriber"] for one in found if one]
    if "fee_schedule" in includes:
        fee = {"id": 113, "name": "Standard", "active": True, "location_id": None, "updated_at": row.updated}
        extra["fee_schedule"] = fee
    return extend(row.body, extra)


def single_shape(
    state: State, collection: str, row: Row, includes: Collection[str], location_id: int | None, now: str
) -> bytes:
    """A record as the read by id answers it."""
    match collection:
        case "patients":
            return _patient(state, row, includes, now)
        case "appointments":
            return _appointment(state, row, includes)
        case "insurance_plans":
            return _plan(state, row, includes)
        case "insurance_coverages":
            return extend(row.body, _subscriber(state, row))
    return list_shape(state, collection, row, includes, location_id)


def truth(state: State, collection: str) -> list[Record]:
    """Every row of a collection, hidden ones too, in the shape its list answers, ordered by id.

    Each is `{institution_id, record, ...}` with what only the path or the location passes tell:
    `location_ids` of patients and providers, `location_id` of document types, `patient_id` of documents.
    """
    with state.lock:
        rows = sorted(state.store(collection).rows.items())
        return [
            _pick(row.facts, ("location_ids", "database", "patient_id", "location_id"))
            | {"institution_id": row.institution_id, "record": orjson.loads(_default(state, collection, row))}
            for _, row in rows
        ]


def _default(state: State, collection: str, row: Row) -> bytes:
    return list_shape(state, collection, row, ("locations",) if collection == "providers" else ())
