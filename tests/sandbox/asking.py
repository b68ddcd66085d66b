"""How to read everything that a path can answer, hidden rows included."""

from collections.abc import Iterator
from typing import Any

from .calls import ALL_TIME, DESERT, HARBOR, ISLAND, NORTH, PIER, SOUTH, WILLOW, Caller

HOMES = ((WILLOW, NORTH), (WILLOW, SOUTH), (WILLOW, DESERT), (HARBOR, PIER), (HARBOR, ISLAND))
ENABLED = HOMES[:-1]
"""Locations with finance."""

EVER = {"updated_since": "1970-01-01"}
DELETED = {"include_deleted": "true"}
BOTH: tuple[dict[str, Any], ...] = ({"active": "true"}, {"active": "false"})

INSTITUTION_LISTS: dict[str, tuple[dict[str, Any], ...]] = {
    "/providers": tuple(
        {"inactive": flag, "include__": ["locations", "availabilities", "appointment_types"]}
        for flag in ("true", "false")
    ),
    "/insurance_plans": (DELETED,),
    "/insurance_coverages": BOTH,
    "/procedures": (EVER,),
    "/treatment_plans": ({},),
    "/working_hour_labels": ({},),
}
LOCATION_LISTS: dict[str, tuple[dict[str, Any], ...]] = {
    "/patients": ({},),
    "/appointments": (ALL_TIME,),
    "/operatories": ({"include__": "appointment_types"},),
    "/working_hours": tuple(flag | {"include__": "appointment_types"} for flag in BOTH),
    "/patient_recalls": ({},),
    "/clinical_notes": (EVER,),
}
FINANCE_LISTS: dict[str, tuple[dict[str, Any], ...]] = {
    "/charges": (EVER | DELETED | {"include__": "claim_payouts"},),
    "/payments": (EVER | DELETED,),
    "/adjustments": (EVER | DELETED,),
    "/claims": (EVER | DELETED,),
    "/guarantor_balances": (EVER | {"show_zero_balances": "true"},),
    "/insurance_balances": (EVER,),
    "/payment_plans": ({},),
    "/payment_types": BOTH,
    "/adjustment_types": BOTH,
    "/fee_schedules": BOTH,
    "/fee_schedule_procedures": (EVER,),
}
WHOLE_LISTS: dict[str, tuple[dict[str, Any], ...]] = {
    "/appointment_types": ({"include__": "descriptors"},),
    "/document_types": ({"active": "true"},),
    "/recall_types": ({},),
}

INCLUDES = {
    "patients": [
        *("upcoming_appts", "last_visited_appointment", "children", "guarantor", "procedures", "insurance_coverages"),
        *("adjustments", "charges", "payments", "patient_alerts", "address", "provider"),
    ],
    "appointments": [
        *("patient", "guarantor", "descriptors", "booking_details", "procedures", "operatory", "appointment_type")
    ],
    "providers": ["locations", "availabilities", "appointment_types"],
    "operatories": ["appointment_types"],
    "appointment_types": ["descriptors"],
    "insurance_plans": ["patient_coverages", "subscribers", "fee_schedule"],
    "working_hours": ["appointment_types"],
    "charges": ["patient", "provider", "procedure", "guarantor", "claims", "claim_payouts", "totals"],
    "payments": ["patient", "provider", "guarantor", "claim", "charge", "payment_plan", "payment_type"],
    "adjustments": ["patient", "provider", "guarantor", "claim", "charge", "adjustment_type"],
    "claims": ["patient", "provider", "guarantor", "charges", "charge_payouts"],
    "guarantor_balances": ["guarantor"],
    "payment_plans": ["patient", "guarantor"],
    "fee_schedules": ["procedure_fees"],
}

SINGLES = (
    *("/institutions/{id}", "/locations/{id}", "/providers/{id}", "/operatories/{id}", "/appointment_types/{id}"),
    *("/document_types/{id}", "/patients/{id}", "/appointments/{id}", "/insurance_plans/{id}", "/working_hours/{id}"),
    *("/insurance_coverages/{id}", "/patient_recalls/{id}", "/recall_types/{id}", "/charges/{id}", "/payments/{id}"),
    *("/adjustments/{id}", "/claims/{id}", "/guarantor_balances/{id}", "/insurance_balances/{id}"),
    *("/payment_plans/{id}", "/payment_types/{id}", "/adjustment_types/{id}", "/fee_schedules/{id}"),
    *("/procedures/{id}", "/treatment_plans/{id}"),
)
OTHERS = (
    *("/institutions", "/locations", "/sync_status", "/nex_staff", "/locations/{id}/appointment_descriptors"),
    *("/appointment_types/{id}/appointment_descriptors", "/appointments/{id}/appointment_descriptors"),
    *("/patients/{id}/documents", "/patients/{id}/alerts", "/patients/{id}/alerts/{alert_id}"),
)
PATHS = (*OTHERS, *INSTITUTION_LISTS, *LOCATION_LISTS, *FINANCE_LISTS, *WHOLE_LISTS, *SINGLES)


def bodies(whole: Caller, path: str) -> Iterator[dict[str, Any]]:
    """Answers of a path that together hold every record there is to read with it; of single reads, a sample."""
    if path in INSTITUTION_LISTS:
        for subdomain in (WILLOW, HARBOR):
            for params in INSTITUTION_LISTS[path]:
                yield from whole.pages(path, subdomain=subdomain, per_page=1000, **params)
    elif path in LOCATION_LISTS or path in FINANCE_LISTS:
        for subdomain, place in ENABLED if path in FINANCE_LISTS else HOMES:
            for params in (LOCATION_LISTS | FINANCE_LISTS)[path]:
                yield from whole.pages(path, subdomain=subdomain, location_id=place, per_page=1000, **params)
    elif path in WHOLE_LISTS:
        for subdomain, place in HOMES:
            for params in WHOLE_LISTS[path]:
                yield whole.get(path, subdomain=subdomain, location_id=place, **params).json()
    else:
        yield from _singles(whole, path) if path in SINGLES else _others(whole, path)


def _others(whole: Caller, path: str) -> Iterator[dict[str, Any]]:
    state = whole.server.state
    match path:
        case "/institutions" | "/locations" | "/sync_status":
            yield whole.get(path).json()
        case "/nex_staff":
            for subdomain in (WILLOW, HARBOR):
                for page in (1, 2, 3):
                    yield whole.get(path, subdomain=subdomain, page=page, per_page=5).json()
        case "/locations/{id}/appointment_descriptors":
            for _, place in HOMES:
                yield whole.get(path.format(id=place)).json()
        case "/patients/{id}/documents":
            for number in state.ids("patients")[:120:3]:
                yield whole.get(path.format(id=number), subdomain=WILLOW).json()
        case "/patients/{id}/alerts":
            for number in sorted({row["patient_id"] for row in state.records("alerts")})[:60]:
                yield whole.get(path.format(id=number), subdomain=HARBOR, include_disabled="true").json()
        case "/patients/{id}/alerts/{alert_id}":
            for row in state.records("alerts")[:40]:
                yield whole.get(path.format(id=row["patient_id"], alert_id=row["id"]), subdomain=HARBOR).json()
        case _:
            parent = path.split("/")[1]
            for number in _sample(whole, parent, 40):
                yield whole.get(path.format(id=number), subdomain=WILLOW).json()


def _sample(whole: Caller, collection: str, count: int) -> list[int]:
    rows = whole.server.state.store(collection).rows.values()
    mine = [row.id for row in rows if row.institution_id == 11201]
    return mine[:: max(1, len(mine) // count)]


def _singles(whole: Caller, path: str) -> Iterator[dict[str, Any]]:
    collection = path.split("/")[1]
    if collection in ("institutions", "locations"):
        for number in whole.server.state.ids(collection):
            yield whole.get(path.format(id=number)).json()
        return
    for number in _sample(whole, collection, 120 if collection in ("patients", "appointments") else 36):
        facts = whole.server.state.row(collection, number).facts
        if facts.get("deleted_at") and collection == "treatment_plans":
            continue
        if collection == "procedures" and facts["location_id"] in (None, 348514):
            continue
        place = facts.get("parent_id") or facts.get("location_id") or NORTH
        located = {"location_id": place} if collection in ("appointment_types", "document_types") else {}
        home = {} if collection in ("guarantor_balances", "payment_plans") else {"subdomain": WILLOW}
        includes = {"include__": INCLUDES[collection]} if collection in INCLUDES else {}
        yield whole.get(path.format(id=number), **home, **includes, **located).json()
