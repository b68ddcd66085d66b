"""GETs about money and treatment. Source: API.md A.4, C.2, D and E.1.

Single reads that find nothing answer 400 where the specification declares no 404 [guess]; an unknown claim is 500.
"""

from collections.abc import Mapping

from .params import Filter, same
from .route import BY_UPDATE, HIDES_DELETED, HIDES_INACTIVE, SINCE, Route, Scope, ints
from .rows import Row

__all__ = ["LEDGER"]

_I, _L, _K = Scope.INSTITUTION, Scope.LOCATION, Scope.KEY
_PEOPLE = ("patient", "provider", "guarantor")
_STATES = ("not_applicable", "proposed", "accepted", "rejected", "completed")


def _date(fact: str, *, after: bool) -> Filter:
    """Rows whose date lies on the given one or behind (before) it."""

    def keep(row: Row, wanted: str) -> bool:
        day = row.facts[fact]
        return day is not None and (day >= wanted[:10] if after else day <= wanted[:10])

    return Filter("time", keep)


def _owes(row: Row, wanted: bool) -> bool:
    return wanted or str(row.facts["total_balance.amount"]).strip("-0.") != ""


_PROCEDURE_FILTERS = {
    **ints("provider_id", "patient_id", "appointment_id"),
    **SINCE,
    "started_after": _date("start_date", after=True),
    "started_before": _date("start_date", after=False),
    "ended_after": _date("end_date", after=True),
    "ended_before": _date("end_date", after=False),
}
_NOTE_FILTERS = {
    **ints("patient_id", "procedure_id"),
    "entered_before": Filter("time", lambda row, wanted: (row.facts["entered_at"] or "~") <= wanted),
    "entered_after": Filter("time", lambda row, wanted: (row.facts["entered_at"] or "") >= wanted),
    **SINCE,
}


def _ledger(
    name: str,
    *numbers: str,
    more: Mapping[str, Filter] | None = None,
    includes: tuple[str, ...] = (),
    sort: bool = True,
) -> Route:
    """A list of one location that refuses to come without a filter."""
    filters = ints(*numbers) | dict(more or {}) | SINCE
    return Route(
        f"/{name}",
        name,
        _L,
        cursor=True,
        sorts=BY_UPDATE if sort else (),
        one_of=tuple(filters),
        filters=filters | (HIDES_DELETED if name in _DELETABLE else {}),
        includes=includes,
        narrow=tuple(number for number in numbers if number in _INDEXED),
    )


def _types(name: str) -> Route:
    return Route(f"/{name}", name, _L, cursor=True, filters=SINCE | HIDES_INACTIVE)


def _one(name: str, *includes: str, unknown: int = 404) -> Route:
    return Route(f"/{name}/{{id}}", name, _I, single=True, includes=includes, unknown=unknown)


_DELETABLE = ("charges", "payments", "adjustments", "claims")
_INDEXED = ("patient_id", "guarantor_id", "charge_id", "claim_id", "fee_schedule_id")

LEDGER: tuple[Route, ...] = (
    _ledger("charges", "patient_id", "provider_id", "procedure_id", "guarantor_id", includes=("claim_payouts",)),
    _one("charges", *_PEOPLE, "procedure", "claims", "claim_payouts", "totals", unknown=400),
    _ledger(
        "payments",
        *("patient_id", "provider_id", "guarantor_id", "charge_id", "claim_id"),
        more={"transaction_id": same("text", "transaction_id")},
    ),
    _one("payments", *_PEOPLE, "claim", "charge", "payment_plan", "payment_type", unknown=400),
    _ledger("adjustments", "patient_id", "provider_id", "guarantor_id", "claim_id", "charge_id"),
    _one("adjustments", *_PEOPLE, "claim", "charge", "adjustment_type", unknown=400),
    _ledger(
        "claims",
        *("patient_id", "guarantor_id", "provider_id"),
        more={"date_of_service": Filter("time", lambda row, wanted: row.facts["date_of_service"] == wanted[:10])},
    ),
    _one("claims", *_PEOPLE, "charges", "charge_payouts", unknown=500),
    Route(
        "/guarantor_balances",
        "guarantor_balances",
        _L,
        cursor=True,
        sorts=BY_UPDATE,
        one_of=("guarantor_id", "updated_since"),
        filters=ints("guarantor_id") | SINCE | {"show_zero_balances": Filter("bool", _owes, default=False)},
        narrow=("guarantor_id",),
    ),
    Route("/guarantor_balances/{id}", "guarantor_balances", _K, single=True, includes=("guarantor",)),
    _ledger("insurance_balances", "patient_id", "guarantor_id"),
    _one("insurance_balances"),
    Route(
        "/payment_plans",
        "payment_plans",
        _L,
        cursor=True,
        sorts=BY_UPDATE,
        filters=ints("patient_id", "guarantor_id") | SINCE,
        narrow=("patient_id", "guarantor_id"),
        legacy=True,
    ),
    Route(
        "/payment_plans/{id}",
        "payment_plans",
        _K,
        single=True,
        includes=("patient", "guarantor"),
        legacy=True,
        unknown=400,
    ),
    _types("payment_types"),
    _one("payment_types", unknown=400),
    _types("adjustment_types"),
    _one("adjustment_types", unknown=400),
    _types("fee_schedules"),
    _one("fee_schedules", "procedure_fees"),
    _ledger("fee_schedule_procedures", "fee_schedule_id", sort=False),
    Route(
        "/procedures",
        "procedures",
        _I,
        cursor=True,
        sorts=BY_UPDATE,
        one_of=tuple(_PROCEDURE_FILTERS),
        filters=_PROCEDURE_FILTERS | ints("location_id"),
        narrow=("appointment_id", "patient_id"),
    ),
    _one("procedures"),
    Route(
        "/treatment_plans",
        "treatment_plans",
        _I,
        cursor=True,
        filters=ints("patient_id")
        | {"status": Filter("choice", lambda row, wanted: row.facts["status"] == wanted, choices=_STATES)}
        | SINCE,
        narrow=("patient_id",),
    ),
    _one("treatment_plans"),
    Route(
        "/clinical_notes",
        "clinical_notes",
        _L,
        cursor=True,
        one_of=tuple(_NOTE_FILTERS),
        filters=_NOTE_FILTERS,
        narrow=("patient_id", "procedure_id"),
    ),
)
"""Every list here names what it cannot do without."""
