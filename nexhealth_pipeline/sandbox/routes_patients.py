"""GETs about patients: themselves, their appointments, papers, alerts, recalls and insurance.

Source: API.md D and E.1. Reading this file should tell what the server does with a request.
"""

from .params import Filter, same, updated_since
from .route import BY_UPDATE, HIDES_DELETED, HIDES_INACTIVE, SINCE, Route, Scope, anything, has_name, ints
from .rows import Row

__all__ = ["PATIENTS"]

_PHONES = ("phone_number", "cell_phone_number", "home_phone_number", "work_phone_number")
_PATIENT_INCLUDES = (
    *(["upcoming_appts", "last_visited_appointment", "children", "guarantor", "procedures", "insurance_coverages"]),
    *(["adjustments", "charges", "payments", "patient_alerts", "address", "provider"]),
)
_APPOINTMENT_INCLUDES = (
    *(["patient", "guarantor", "descriptors", "booking_details", "procedures", "operatory", "appointment_type"]),
)


def _has_phone(row: Row, wanted: str) -> bool:
    bio = row.value("bio") or {}
    return any(bio.get(name) == wanted for name in _PHONES)


_PATIENT_FILTERS = {
    "name": Filter("text", has_name),
    "email": Filter("text", lambda row, wanted: str(row.value("email")).casefold() == wanted.casefold()),
    "phone_number": Filter("text", _has_phone),
    "date_of_birth": Filter("time", lambda row, wanted: row.value("bio.date_of_birth") == wanted[:10]),
    "inactive": same("bool", "inactive"),
    "foreign_id": same("text", "foreign_id"),
    "new_patient": Filter("bool", lambda row, wanted: bool(row.facts["bio.new_patient"]) == wanted),
    "non_patient": Filter("bool", lambda row, wanted: bool(row.facts["bio.non_patient"]) == wanted),
    "forms_syncable": Filter("bool", lambda row, wanted: not wanted or bool(row.value("foreign_id"))),
    "location_strict": Filter("bool", anything, default=False),
    "updated_since": updated_since,
}

_APPOINTMENT_FILTERS = {
    "start": Filter("time", lambda row, wanted: str(row.facts["start_time"]) >= wanted, local=True),
    "end": Filter("time", lambda row, wanted: str(row.facts["start_time"]) <= wanted, local=True),
    "location_id": same("int", "location_id"),
    # Without it deleted ones come as well (API.md H).
    "cancelled": Filter("bool", lambda row, wanted: row.facts["cancelled"] == wanted and not row.facts["deleted"]),
    "unavailable": Filter("bool", lambda row, wanted: bool(row.facts["unavailable"]) == wanted),
    "nex_only": Filter("bool", lambda row, wanted: not wanted or bool(row.value("misc.is_booked_on_nexhealth"))),
    "updated_since": updated_since,
    "appointment_type_id": same("int", "appointment_type_id"),
    "foreign_id": same("text", "foreign_id"),
    "created_by": same("int", "created_by_user_id"),
    "patient_ids[]": Filter("ints", lambda row, wanted: row.facts["patient_id"] in wanted, most=25),
    "provider_ids[]": same("ints", "provider_id"),
    "operatory_ids[]": same("ints", "operatory_id"),
}

_RECALL_FILTERS = {
    **ints("recall_id", "patient_id"),
    "foreign_id": same("text", "foreign_id"),
    **SINCE,
    "due_after": Filter("time", lambda row, wanted: (row.facts["date_due"] or "") >= wanted[:10]),
}

_HIDES_DISABLED = {
    "include_disabled": Filter("bool", lambda row, wanted: wanted or row.facts["disabled_at"] is None, default=False)
}

_I, _L = Scope.INSTITUTION, Scope.LOCATION

PATIENTS: tuple[Route, ...] = (
    Route(
        "/patients",
        "patients",
        _L,
        cursor=True,
        sorts=("id", "-id", *BY_UPDATE),
        filters=_PATIENT_FILTERS,
    ),
    Route("/patients/{id}", "patients", _I, single=True, includes=_PATIENT_INCLUDES),
    Route("/patients/{id}/documents", "documents", _I, under=("patients", "patient_id"), legacy=True),
    Route(
        "/appointments",
        "appointments",
        _I,
        cursor=True,
        sorts=BY_UPDATE,
        required=("start", "end"),
        one_of=("location_id", "foreign_id"),
        filters=_APPOINTMENT_FILTERS,
        narrow=("location_id",),
        params=("timezone",),
    ),
    Route(
        "/appointments/{id}",
        "appointments",
        _I,
        single=True,
        includes=_APPOINTMENT_INCLUDES,
        default_includes=("patient",),
        legacy=True,
    ),
    Route(
        "/document_types",
        "document_types",
        _L,
        filters=HIDES_INACTIVE,
        legacy=True,
    ),
    Route("/document_types/{id}", "document_types", _L, single=True, legacy=True),
    Route(
        "/insurance_plans",
        "insurance_plans",
        _I,
        cursor=True,
        sorts=BY_UPDATE,
        filters={
            "payer_id": same("text", "payer_id"),
            "group_num": same("text", "group_num"),
            **HIDES_DELETED,
            **SINCE,
        },
    ),
    Route(
        "/insurance_plans/{id}",
        "insurance_plans",
        _I,
        single=True,
        includes=("patient_coverages", "subscribers", "fee_schedule"),
    ),
    Route(
        "/insurance_coverages",
        "insurance_coverages",
        _I,
        cursor=True,
        filters=ints("patient_id") | HIDES_INACTIVE | SINCE,
        narrow=("patient_id",),
    ),
    Route("/insurance_coverages/{id}", "insurance_coverages", _I, single=True),
    Route(
        "/appointments/{id}/appointment_descriptors",
        "appointment_descriptors",
        _I,
        under=("appointments", ""),
        filters={"descriptor_type": same("text", "descriptor_type")},
        legacy=True,
    ),
    Route(
        "/patients/{id}/alerts", "alerts", _I, under=("patients", "patient_id"), filters=_HIDES_DISABLED, legacy=True
    ),
    Route("/patients/{id}/alerts/{inner}", "alerts", _I, single=True, under=("patients", "patient_id"), legacy=True),
    Route(
        "/patient_recalls",
        "patient_recalls",
        _L,
        cursor=True,
        sorts=("date_due", "-date_due"),
        filters=_RECALL_FILTERS,
        narrow=("patient_id",),
    ),
    Route("/patient_recalls/{id}", "patient_recalls", _I, single=True, legacy=True),
    Route(
        "/recall_types", "recall_types", _L, filters={"foreign_id": same("text", "foreign_id"), **SINCE}, legacy=True
    ),
    Route("/recall_types/{id}", "recall_types", _I, single=True, legacy=True),
)
"""Source: API.md D and E.1."""
