"""Rows about money read by id: what `include[]` adds to them."""

from collections.abc import Collection

import orjson

from .balances import TOTALS, sum_payouts
from .money import money
from .rows import Record, Row
from .shapes import extend, list_shape, payouts, pick
from .singles_people import USER, patient_with_guarantor, plans_of
from .state import State

__all__ = ["balance_shape", "charge_shape", "claim_shape", "entry_shape", "fee_schedule_shape", "payment_plan_shape"]


def _filled(record: Record) -> Record:
    """Without its nulls, where an embedded object's schema allows none."""
    return {name: value for name, value in record.items() if value is not None}


def _row(state: State, collection: str, number: object) -> Row | None:
    return state.store(collection).rows.get(number) if isinstance(number, int) else None


def _people(state: State, record: Record, includes: Collection[str], *, older: bool) -> Record:
    """Patient, provider and guarantor of a ledger row; `older` ones are shaped as in v2."""
    found: Record = {}
    patient, guarantor = (_row(state, "patients", record[name]) for name in ("patient_id", "guarantor_id"))
    provider = _row(state, "providers", record.get("provider_id"))
    if "patient" in includes and patient:
        found["patient"] = patient_with_guarantor(state, patient, False) if older else _basic_patient(patient)
    if "guarantor" in includes and guarantor:
        found["guarantor"] = (
            patient_with_guarantor(state, guarantor, False) if older else pick(guarantor.record(), USER)
        )
    if "provider" in includes and provider:
        found["provider"] = _provider_inside(provider)
    return found


def _provider_inside(provider: Row) -> Record:
    record = provider.record()
    loose = ("display_name", "npi", "tin", "state_license", "specialty_code")
    return {name: value for name, value in record.items() if value is not None or name not in loose}


def _basic_patient(row: Row) -> Record:
    return {name: value for name, value in row.record().items() if name != "hipaa"}


def _old_claim(state: State, row: Row) -> Record:
    """A claim inside a payment or adjustment: an older shape with other totals."""
    record, totals = row.record(), row.record()["totals"]
    shown = pick(
        record, ("id", "location_id", "patient_id", "provider_id", "guarantor_id", "status", "sent_at", "note")
    )
    covers = list(state.store("insurance_coverages").find("patient_id", record["patient_id"]))
    shown |= {"subscription_id": covers[0].id if covers else None, "finalized_at": record["received_at"]}
    shown |= {"payment_estimate_total": totals["estimated_insurance_payment"], "deleted_at": record["deleted_at"]}
    return _filled(shown | {"write_off_estimate_total": totals["write_off"], "write_off_total": totals["write_off"]})


def _old_charge(state: State, row: Row) -> Record:
    """A charge inside a payment or adjustment."""
    record, sums = row.record(), _charge_totals(state, row)
    procedure, day = record.pop("procedure_id"), record.pop("charged_at")
    record.pop("procedure_code")
    claims = [one.facts["claim_id"] for one in state.store("claim_payouts").find("charge_id", row.id)]
    record |= _filled({"charged_at": day, "procedure_id": str(procedure) if procedure else None}) | {
        "claim_ids": claims
    }
    record |= {"payment_estimate_total": sums["estimated_insurance_payment"]}
    return record | {"write_off_estimate_total": sums["write_off"], "write_off_total": sums["write_off"]}


def _charge_totals(state: State, row: Row) -> Record:
    rows = list(state.store("claim_payouts").find("charge_id", row.id))
    added = sum_payouts(rows).values()
    return {name: money(sum(sums[name] for sums in added)) for name in TOTALS}


def charge_shape(state: State, row: Row, includes: Collection[str]) -> bytes:
    """A charge read by id."""
    record = row.record()
    extra = _people(state, record, includes, older=False)
    procedure = _row(state, "procedures", record["procedure_id"])
    if "procedure" in includes and procedure:
        extra["procedure"] = procedure.record() | {"treatment_plan_ids": plans_of(state, procedure)}
    if "claims" in includes:
        numbers = [one.facts["claim_id"] for one in state.store("claim_payouts").find("charge_id", row.id)]
        claims = [claim for claim in (_row(state, "claims", number) for number in numbers) if claim]
        extra["claims"] = [_without_deletion(claim.record()) for claim in claims]
    if "totals" in includes:
        extra["totals"] = _charge_totals(state, row)
    return extend(list_shape(state, "charges", row, includes), extra)


def _without_deletion(record: Record) -> Record:
    """Inside another record nothing says when one was deleted."""
    record.pop("deleted_at", None)
    return record


_LINKED = {
    "payment_plan": ("payment_plan_id", "payment_plans"),
    "payment_type": ("payment_type_id", "payment_types"),
    "adjustment_type": ("adjustment_type_id", "adjustment_types"),
}


def entry_shape(state: State, row: Row, includes: Collection[str]) -> bytes:
    """A payment or an adjustment read by id."""
    record = row.record()
    extra = _people(state, record, includes, older=True)
    claim, charge = _row(state, "claims", record["claim_id"]), _row(state, "charges", record["charge_id"])
    if "claim" in includes and claim:
        extra["claim"] = _old_claim(state, claim)
    if "charge" in includes and charge:
        extra["charge"] = _old_charge(state, charge)
    for name, (fact, collection) in _LINKED.items():
        found = _row(state, collection, record.get(fact))
        if name in includes and found:
            extra[name] = found.record()
    return extend(row.body, extra)


def claim_shape(state: State, row: Row, includes: Collection[str]) -> bytes:
    """A claim read by id."""
    extra = _people(state, row.record(), includes, older=False)
    if "charges" in includes:
        numbers = [one.facts["charge_id"] for one in state.store("claim_payouts").find("claim_id", row.id)]
        charges = [charge for charge in (_row(state, "charges", number) for number in numbers) if charge]
        extra["charges"] = [_without_deletion(charge.record()) for charge in charges]
    if "charge_payouts" in includes:
        extra["charge_payouts"] = [orjson.loads(body) for body in payouts(state, "claim_id", row.id)]
    return extend(row.body, extra)


def balance_shape(state: State, row: Row, includes: Collection[str]) -> bytes:
    """A guarantor's balance read by id."""
    guarantor = _row(state, "patients", row.facts["guarantor_id"])
    shown = "guarantor" in includes and guarantor
    return extend(row.body, {"guarantor": _basic_patient(guarantor)} if shown and guarantor else {})


def payment_plan_shape(state: State, row: Row, includes: Collection[str]) -> bytes:
    """A payment plan read by id."""
    return extend(row.body, _people(state, row.record(), includes, older=True))


def fee_schedule_shape(state: State, row: Row, includes: Collection[str]) -> bytes:
    """A fee schedule read by id."""
    if "procedure_fees" not in includes:
        return row.body
    fees = state.store("fee_schedule_procedures").find("fee_schedule_id", row.id)
    return extend(
        row.body, {"procedure_fees": [pick(fee.record(), ("procedure_code_id", "fee", "code")) for fee in fees]}
    )
