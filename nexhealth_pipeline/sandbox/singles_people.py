"""Patients, appointments and insurance plans read by id: what `include[]` adds to them."""

from collections.abc import Collection
from typing import Any

from .access import enabled
from .rows import Record, Row
from .shapes import BASIC_TYPE, descriptors, extend, pick
from .state import State

__all__ = [
    "USER",
    "address",
    "appointment_shape",
    "patient_shape",
    "patient_with_guarantor",
    "plan_shape",
    "plans_of",
    "subscriber",
]

USER = (
    *("id", "email", "first_name", "middle_name", "last_name", "name", "created_at", "updated_at", "institution_id"),
    *("foreign_id", "foreign_id_type", "bio", "inactive", "last_sync_time"),
)
_BASIC_APPOINTMENT = ("id", "provider_id", "provider_name", "start_time", "end_time", "location_id", "confirmed")
_INNER_COVERAGE = (
    *("id", "subscription_relation", "patient_id", "priority", "plan_id", "subscriber_num", "effective_date"),
    "expiration_date",
)


def _basic_appointment(row: Row) -> Record:
    record = pick(row.record(), _BASIC_APPOINTMENT)
    return {name: value for name, value in record.items() if value is not None}


def _user(state: State, collection: str, number: int | None) -> Record | None:
    row = state.store(collection).rows.get(number or 0)
    return pick(row.record(), USER) if row else None


def subscriber(state: State, coverage: Row) -> Record:
    """Who holds a coverage; nothing where nobody is known."""
    row = state.store("patients").rows.get(coverage.facts.get("subscriber_id") or 0)
    if row is None:
        return {}
    found: Record = {"id": row.id, "name": row.value("name"), "date_of_birth": row.value("bio.date_of_birth")}
    return {"subscriber": found}


def _inner_coverage(state: State, row: Row) -> Record:
    record = row.record()
    plan = state.store("insurance_plans").rows.get(record["plan_id"] or 0)
    inner = pick(record, _INNER_COVERAGE) | subscriber(state, row)
    return inner | ({"plan": plan.record()} if plan else {})


def address(bio: Record) -> Record:
    """A patient's address, as `include[]=address` shows it."""
    return {
        "line_1": bio.get("address_line_1"),
        "line_2": bio.get("address_line_2"),
        "postal_code": bio.get("zip_code"),
        "city": bio.get("city"),
        "region": bio.get("state"),
    }


def _children(state: State, patient: Row) -> list[Record]:
    family = state.store("patients").find("guarantor_id", patient.id)
    return [pick(row.record(), USER) for row in family if row.id != patient.id]


def _visits(state: State, patient: Row, includes: Collection[str], now: str) -> Record:
    rows = sorted(state.store("appointments").find("patient_id", patient.id), key=lambda row: row.facts["start_time"])
    kept = [row for row in rows if not (row.facts["cancelled"] or row.facts["deleted"])]
    found: Record = {}
    if "upcoming_appts" in includes:
        upcoming = [row for row in kept if row.facts["start_time"] > now]
        found["upcoming_appts"] = [_basic_appointment(row) for row in upcoming]
    visited = [row for row in kept if row.facts["start_time"] <= now and row.value("checked_out")]
    if "last_visited_appointment" in includes and visited:
        found["last_visited_appointment"] = _basic_appointment(visited[-1])
    return found


_OF_PATIENT = {name: name for name in ("procedures", "adjustments", "charges", "payments")} | {
    "patient_alerts": "alerts"
}
"""What a patient can be asked to include, and from which collection; nothing where it is not enabled [guess]."""


def _of_patient(state: State, include: str, patient: Row) -> list[Record]:
    collection = _OF_PATIENT[include]
    rows = [row for row in state.store(collection).find("patient_id", patient.id) if enabled(state, collection, row)]
    if include == "procedures":
        return [row.record() | {"treatment_plan_ids": plans_of(state, row)} for row in rows]
    return [row.record() for row in rows]


def plans_of(state: State, procedure: Row) -> list[int]:
    """The treatment plans that hold a procedure."""
    plans = state.store("treatment_plans").find("patient_id", procedure.facts["patient_id"])
    return [
        plan.id for plan in plans if procedure.id in plan.facts["procedure_ids"] and not plan.facts.get("deleted_at")
    ]


def patient_shape(state: State, row: Row, includes: Collection[str], now: str) -> bytes:
    """A patient read by id."""
    record = row.record()
    extra: Record = {"location_ids": row.facts["location_ids"]}
    if "children" in includes:
        extra["children"] = _children(state, row)
    if "guarantor" in includes:
        extra["guarantor"] = _user(state, "patients", record["guarantor_id"] or row.id)
    if "provider" in includes and record["provider_id"]:
        extra["provider"] = _user(state, "providers", record["provider_id"])
    if "address" in includes:
        extra["address"] = address(record["bio"])
    if "insurance_coverages" in includes:
        rows = state.store("insurance_coverages").find("patient_id", row.id)
        extra["insurance_coverages"] = [
            _inner_coverage(state, coverage) for coverage in rows if coverage.facts["active"]
        ]
    extra |= _visits(state, row, includes, now)
    extra |= {name: _of_patient(state, name, row) for name in _OF_PATIENT if name in includes}
    return extend(row.body, {name: value for name, value in extra.items() if value is not None})


def patient_with_guarantor(state: State, patient: Row, with_guarantor: bool) -> Record:
    """A patient inside an appointment, payment or adjustment: an older shape."""
    record = patient.record()
    for name in ("provider_id", "hipaa"):
        record.pop(name, None)
    record |= {"preferred_locale": record["preferred_language"], "location_ids": patient.facts["location_ids"]}
    if with_guarantor:
        record["guarantor"] = _user(state, "patients", record["guarantor_id"] or patient.id)
    return record


def appointment_shape(state: State, row: Row, includes: Collection[str]) -> bytes:
    """An appointment read by id."""
    record, extra = row.record(), dict[str, Any]()
    patient = state.store("patients").rows.get(record["patient_id"] or 0)
    if patient and not {"patient", "guarantor"}.isdisjoint(includes):
        extra["patient"] = patient_with_guarantor(state, patient, "guarantor" in includes)
    room = state.store("operatories").rows.get(record["operatory_id"] or 0)
    if "operatory" in includes and room:
        extra["operatory"] = room.record()
    kind = state.store("appointment_types").rows.get(record["appointment_type_id"] or 0)
    if "appointment_type" in includes and kind:
        extra["appointment_type"] = pick(kind.record(), BASIC_TYPE)
    if "descriptors" in includes:
        extra["descriptors"] = descriptors(state, kind.id, record["location_id"]) if kind else []
    if "procedures" in includes:
        extra["procedures"] = [one.record() for one in state.store("procedures").find("appointment_id", row.id)]
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


def plan_shape(state: State, row: Row, includes: Collection[str]) -> bytes:
    """An insurance plan read by id."""
    coverages = list(state.store("insurance_coverages").find("plan_id", row.id))
    extra: Record = {}
    if "patient_coverages" in includes:
        extra["patient_coverages"] = [pick(coverage.record(), _INNER_COVERAGE) for coverage in coverages]
    if "subscribers" in includes:
        found = [subscriber(state, coverage) for coverage in coverages]
        extra["subscribers"] = [one["subscriber"] for one in found if one]
    if "fee_schedule" in includes:
        shared = [fee for fee in state.store("fee_schedules").find("location_id", None) if fee.facts["active"]]
        own = [fee.record() for fee in shared if fee.institution_id == row.institution_id]
        extra |= {"fee_schedule": own[0]} if own else {}
    return extend(row.body, extra)
