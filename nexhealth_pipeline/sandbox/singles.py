"""What a record looks like when it is read by id: its list's shape plus the objects that `include[]` asks for."""

from collections.abc import Collection

from .rows import Row
from .shapes import extend, list_shape
from .singles_ledger import (
    balance_shape,
    charge_shape,
    claim_shape,
    entry_shape,
    fee_schedule_shape,
    payment_plan_shape,
)
from .singles_people import appointment_shape, patient_shape, plan_shape, plans_of, subscriber
from .state import State

__all__ = ["single_shape"]

_SINGLE = {
    "appointments": appointment_shape,
    "insurance_plans": plan_shape,
    "charges": charge_shape,
    "payments": entry_shape,
    "adjustments": entry_shape,
    "claims": claim_shape,
    "guarantor_balances": balance_shape,
    "payment_plans": payment_plan_shape,
    "fee_schedules": fee_schedule_shape,
}


def single_shape(
    state: State, collection: str, row: Row, includes: Collection[str], location_id: int | None, now: str
) -> bytes:
    """A record as the read by id answers it."""
    if collection == "patients":
        return patient_shape(state, row, includes, now)
    if collection == "insurance_coverages":
        return extend(row.body, subscriber(state, row))
    if collection == "procedures":
        return extend(row.body, {"treatment_plan_ids": plans_of(state, row)})
    dress = _SINGLE.get(collection)
    return dress(state, row, includes) if dress else list_shape(state, collection, row, includes, location_id)
