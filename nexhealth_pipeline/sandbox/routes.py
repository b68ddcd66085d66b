"""Every GET of the sandbox as a table of data: scope, required parameters, filters, hidden rows, sort, includes.

Source: API.md D and E.1. Reading this file should tell what the server does with a request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .params import Filter, same, updated_since
from .rows import Row

__all__ = ["ROUTES", "Route", "Scope", "find_route"]


class Scope(Enum):
    """What a request must be addressed to."""

    KEY = "key"
    """Everything the key reaches; `subdomain` optional."""
    INSTITUTION = "institution"
    """`subdomain` required."""
    LOCATION = "location"
    """`subdomain` and `location_id` required."""


@dataclass(frozen=True, slots=True)
class Route:
    """One GET. `{id}` in `path` stands for a number; `single` answers one object by it."""

    path: str
    collection: str
    scope: Scope
    single: bool = False
    cursor: bool = False
    sorts: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    filters: Mapping[str, Filter] = field(default_factory=dict)
    params: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    default_includes: tuple[str, ...] = ()
    legacy: bool = False

    def known(self) -> frozenset[str]:
        """Parameters that are honoured; any other is ignored and named in `description`."""
        names = {*self.required, *self.one_of, *self.filters, *self.params}
        if self.scope is not Scope.KEY or not self.single:
            names.add("subdomain")
        if self.scope is Scope.LOCATION:
            names.add("location_id")
        if self.cursor:
            names |= {"per_page", "start_cursor", "end_cursor"}
        if self.sorts:
            names.add("sort")
        if self.includes:
            names.add("include[]")
        return frozenset(names)


_BY_UPDATE = ("updated_at", "-updated_at")
_COLORS = ("green", "red")
_FEATURES = (
    *(
        [
            "messaging",
            "campaigns",
            "reviews",
            "recalls",
            "reminders",
            "online_booking",
            "waitlist",
            "forms",
            "payments",
            "ledger_sync",
        ]
    ),
    *(["enterprise", "insurance_verification"]),
)
_PHONES = ("phone_number", "cell_phone_number", "home_phone_number", "work_phone_number")
_PATIENT_INCLUDES = (
    *(["upcoming_appts", "last_visited_appointment", "children", "guarantor", "procedures", "insurance_coverages"]),
    *(["adjustments", "charges", "payments", "patient_alerts", "address", "provider"]),
)
_APPOINTMENT_INCLUDES = (
    *(["patient", "guarantor", "descriptors", "booking_details", "procedures", "operatory", "appointment_type"]),
)


def _contains(row: Row, fact: str, wanted: str) -> bool:
    return wanted.casefold() in str(row.value(fact) or "").casefold()


def _has_phone(row: Row, wanted: str) -> bool:
    bio = row.value("bio") or {}
    return any(bio.get(name) == wanted for name in _PHONES)


def _at_location(row: Row, wanted: int) -> bool:
    return wanted in row.facts["location_ids"]


def _strict(_row: Row, _wanted: Any) -> bool:
    return True  # the server applies it: it needs the request's location


_PATIENT_FILTERS = {
    "name": Filter("text", lambda row, wanted: _contains(row, "name", wanted)),
    "email": Filter("text", lambda row, wanted: str(row.value("email")).casefold() == wanted.casefold()),
    "phone_number": Filter("text", _has_phone),
    "date_of_birth": Filter("time", lambda row, wanted: row.value("bio.date_of_birth") == wanted[:10]),
    "inactive": same("bool", "inactive"),
    "foreign_id": same("text", "foreign_id"),
    "new_patient": Filter("bool", lambda row, wanted: bool(row.facts["bio.new_patient"]) == wanted),
    "non_patient": Filter("bool", lambda row, wanted: bool(row.facts["bio.non_patient"]) == wanted),
    "forms_syncable": Filter("bool", lambda row, wanted: bool(row.value("foreign_id")) == wanted),
    "location_strict": Filter("bool", _strict, default=False),
    "updated_since": updated_since,
}

_APPOINTMENT_FILTERS = {
    "start": Filter("time", lambda row, wanted: str(row.facts["start_time"]) >= wanted),
    "end": Filter("time", lambda row, wanted: str(row.facts["start_time"]) <= wanted),
    "location_id": same("int", "location_id"),
    "cancelled": same("bool", "cancelled"),
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

_PROVIDER_FILTERS = {
    "location_id": Filter("int", _at_location),
    "foreign_id": same("text", "foreign_id"),
    "requestable": Filter("bool", lambda row, wanted: bool(row.facts.get("requestable")) == wanted),
    "inactive": same("bool", "inactive", default=False),
    "ids[]": same("ints", "id"),
    "updated_since": updated_since,
}

_I, _L, _K = Scope.INSTITUTION, Scope.LOCATION, Scope.KEY

ROUTES: tuple[Route, ...] = (
    Route("/institutions", "institutions", _K, legacy=True),
    Route("/institutions/{id}", "institutions", _K, single=True, legacy=True),
    Route(
        "/locations",
        "locations",
        _K,
        legacy=True,
        filters={
            "inactive": same("bool", "inactive"),
            "foreign_id": same("text", "foreign_id"),
            "filter_by_subscription_feature": Filter(
                "choice", lambda row, wanted: wanted in row.facts.get("features", ()), choices=_FEATURES
            ),
        },
    ),
    Route("/locations/{id}", "locations", _K, single=True, legacy=True),
    Route(
        "/sync_status",
        "sync_status",
        _K,
        legacy=True,
        filters={
            "read_status": Filter("choice", lambda row, wanted: row.value("read_status") == wanted, choices=_COLORS),
            "write_status": Filter("choice", lambda row, wanted: row.value("write_status") == wanted, choices=_COLORS),
            "location_ids[]": Filter("ints", lambda row, wanted: not wanted.isdisjoint(row.facts["location_ids"])),
        },
    ),
    Route(
        "/providers",
        "providers",
        _I,
        cursor=True,
        sorts=_BY_UPDATE,
        filters=_PROVIDER_FILTERS,
        includes=("locations", "availabilities", "appointment_types"),
        default_includes=("locations",),
    ),
    Route(
        "/providers/{id}",
        "providers",
        _I,
        single=True,
        includes=("locations", "availabilities", "appointment_types"),
        default_includes=("locations",),
    ),
    Route(
        "/operatories",
        "operatories",
        _L,
        cursor=True,
        filters={
            "location_id": same("int", "location_id"),
            "search_name": Filter("text", lambda row, wanted: _contains(row, "name", wanted)),
            "foreign_id": same("text", "foreign_id"),
            "updated_since": updated_since,
        },
        includes=("appointment_types", "appt_categories"),
    ),
    Route(
        "/operatories/{id}",
        "operatories",
        _I,
        single=True,
        includes=("appointment_types", "appt_categories"),
        legacy=True,
    ),
    Route(
        "/appointment_types", "appointment_types", _I, params=("location_id",), includes=("descriptors",), legacy=True
    ),
    Route(
        "/appointment_types/{id}",
        "appointment_types",
        _I,
        single=True,
        params=("location_id",),
        includes=("descriptors",),
        legacy=True,
    ),
    Route(
        "/patients",
        "patients",
        _L,
        cursor=True,
        sorts=("id", "-id", *_BY_UPDATE),
        filters=_PATIENT_FILTERS,
    ),
    Route("/patients/{id}", "patients", _I, single=True, includes=_PATIENT_INCLUDES),
    Route("/patients/{id}/documents", "documents", _I, legacy=True),
    Route(
        "/appointments",
        "appointments",
        _I,
        cursor=True,
        sorts=_BY_UPDATE,
        required=("start", "end"),
        one_of=("location_id", "foreign_id"),
        filters=_APPOINTMENT_FILTERS,
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
        filters={"location_id": same("int", "location_id"), "active": same("bool", "active", default=True)},
        legacy=True,
    ),
    Route("/document_types/{id}", "document_types", _L, single=True, legacy=True),
    Route(
        "/insurance_plans",
        "insurance_plans",
        _I,
        cursor=True,
        sorts=_BY_UPDATE,
        filters={
            "payer_id": same("text", "payer_id"),
            "group_num": same("text", "group_num"),
            "include_deleted": Filter(
                "bool", lambda row, wanted: wanted or row.facts["deleted_at"] is None, default=False
            ),
            "updated_since": updated_since,
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
        filters={
            "patient_id": same("int", "patient_id"),
            "active": same("bool", "active", default=True),
            "updated_since": updated_since,
        },
    ),
    Route("/insurance_coverages/{id}", "insurance_coverages", _I, single=True),
)
"""Every GET that the sandbox answers, except the download of a document."""

_BY_PATH = {route.path: (route, route.known()) for route in ROUTES}


def find_route(path: str) -> tuple[Route, frozenset[str], int | None] | None:
    """The route of a request path, its known parameters and the number in it; None for an unknown path."""
    found = _BY_PATH.get(path)
    if found:
        return *found, None
    parts = path.split("/")
    if len(parts) < 3 or not parts[2].isdecimal():
        return None
    number, parts[2] = int(parts[2]), "{id}"
    found = _BY_PATH.get("/".join(parts))
    return (*found, number) if found else None
