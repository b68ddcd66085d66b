"""Synthetic ledgers: charges for what was done, claims with payouts, payments, adjustments and payment plans.

How the figures hang together (API.md A.6 and K; balances.py adds them up):
- one charge per completed procedure, its fee positive;
- a claim covers a visit's charges, one payout each; the claim's totals are the sums of its payouts;
- a received claim has been paid: its insurer's payment is a negative payment with `insurance_plan_id` and
  `claim_id`, and what it wrote off stands in the payouts, or in adjustments with a `claim_id` and then not there;
- a draft or sent claim's payouts are estimates; a canceled or deleted claim owes nothing;
- payments and credits are negative, refunds and finance charges positive; deleted rows count nowhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from random import Random

from .clinic import Clinic, Visit
from .fees import TREATMENTS, Prices
from .kinds import KINDS
from .money import money
from .practices import PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["LEDGER", "book"]

LEDGER = ("charges", "payments", "adjustments", "claims", "claim_payouts", "payment_plans")
"""The collections made here."""

_CASH, _CARD, _INSURER = 0, 2, 3
_COURTESY, _WRITE_OFF, _FINANCE, _CORRECTION = 0, 1, 2, 3
_CLAIM_NOTES = ("Sent with X-rays", "Appeal pending", 'Payer says: "not covered"', "")


@dataclass(slots=True)
class _Claim:
    """A claim while its payouts are made: amounts in cents."""

    id: int
    status: str
    billed: int = 0
    estimated: int = 0
    paid: int = 0
    written_off: int = 0
    booked_off: int = 0


@dataclass(slots=True)
class _Book:
    """The ledger of an institution, as it is made."""

    plan: PracticePlan
    base: datetime
    rng: Random
    prices: Mapping[int, Prices]
    covers: Mapping[int, Sequence[int]]
    rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in LEDGER})
    plans: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def number(self, name: str) -> int:
        """The next id of a collection; those of charges and claims do not fit 32 bits."""
        first = {"charges": 7_100_000_000, "claims": 9_200_000_000, "payments": 410_000_000}.get(name, 520_000_000)
        self.count += 1
        return first + (self.plan.id - 11200) * 10_000_000 + self.count

    def add(self, name: str, database: int, record: Record) -> int:
        """Keep a record."""
        self.rows[name].append(make_row(KINDS[name], record, self.plan.id, database=database))
        number: int = record["id"]
        return number

    def moment(self, day: str, after: int) -> str:
        """A time `after` days behind `day`, but before the world's base."""
        rng = self.rng
        hours = f"{rng.randrange(8, 18):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}"
        when = date.fromisoformat(day) + timedelta(days=after)
        latest = stamp(self.base - timedelta(minutes=2, milliseconds=rng.randrange(60_000)))
        return min(f"{when.isoformat()}T{hours}.{rng.randrange(1000):03d}Z", latest)


def _payer(patient: Row) -> int:
    """0 and nothing mean that the patient pays (API.md A.6)."""
    return patient.facts["guarantor_id"] or patient.id


def _entry(book: _Book, name: str, visit: Visit, updated: str, text: str | None) -> Record:
    """The fields that charges, payments and adjustments share; a few lack their location or provider."""
    number = book.number(name)
    return {
        "id": number,
        "foreign_id": str(number % 10_000_000),
        "location_id": visit.location_id if number % 90 else None,
        "patient_id": visit.patient.id,
        "guarantor_id": _payer(visit.patient) if number % 110 else None,
        "provider_id": visit.provider_id if number % 12 else None,
        "updated_at": updated,
        "description": text,
        "deleted_at": None,
    }


def _twice(book: _Book, name: str, database: int, record: Record, odds: float) -> None:
    """The same entered twice by mistake, and the second deleted."""
    if book.rng.random() < odds:
        number = book.number(name)
        second = {"id": number, "foreign_id": str(number % 10_000_000), "deleted_at": record["updated_at"]}
        book.add(name, database, record | second)


def _charge(book: _Book, visit: Visit, procedure: int, item: int) -> int:
    what = TREATMENTS[item]
    record = _entry(book, "charges", visit, visit.updated, what.name) | {
        "procedure_id": procedure,
        "procedure_code": what.code,
        "fee": money(what.fee),
        "charged_at": visit.day,
    }
    database = visit.patient.facts["database"]
    _twice(book, "charges", database, record, 0.03)
    return book.add("charges", database, record)


def _status(book: _Book, visit: Visit) -> str:
    age = (book.base.date() - date.fromisoformat(visit.day)).days
    roll = book.rng.random()
    if age < 4:
        return "draft"
    if roll < 0.04:
        return "canceled"
    return "sent" if age < 25 or roll < 0.12 else "received"


def _payout(book: _Book, claim: _Claim, visit: Visit, charge: int, item: int) -> int:
    """One charge's share of a claim; returns what is left to the patient, in cents."""
    what, (fee_id, allowed) = TREATMENTS[item], book.prices[visit.patient.facts["database"]].allowed[item]
    due = allowed * what.covered // 100
    off = what.fee - allowed
    settled, void = claim.status == "received", claim.status == "canceled"
    by_hand = settled and claim.id % 9 == 0
    claim.billed += what.fee
    claim.estimated += 0 if void else due
    claim.paid += due if settled else 0
    claim.written_off += 0 if void or by_hand else off
    claim.booked_off += off if by_hand else 0
    record: Record = {
        "amount_billed_to_insurance": money(what.fee),
        "estimated_insurance_payment": money(0 if void else due),
        "insurance_payment": money(due if settled else 0),
        "write_off": money(0 if void or by_hand else off),
        "allowed_amount": money(allowed),
        "claim_id": claim.id,
    }
    row_id = len(book.rows["claim_payouts"]) + 1 + (book.plan.id - 11200) * 10_000_000
    row = make_row(KINDS["claim_payouts"], record, book.plan.id, row_id, charge_id=charge, fee_id=fee_id)
    book.rows["claim_payouts"].append(row)
    return what.fee if void else what.fee - due - off


def _claim(book: _Book, visit: Visit, charges: Sequence[int], plans: Sequence[int]) -> int:
    """A visit's claim with payouts and what the insurer paid; returns what is left to the patient."""
    claim = _Claim(book.number("claims"), _status(book, visit))
    left = 0
    for charge, (_, item) in zip(charges, visit.done, strict=True):
        left += _payout(book, claim, visit, charge, item)
    record = _claim_record(book, claim, visit, plans)
    database = visit.patient.facts["database"]
    book.add("claims", database, record)
    if claim.id % 30 == 0:
        zeros = dict.fromkeys(record["totals"], money(0))
        gone = {"id": book.number("claims"), "totals": zeros, "deleted_at": record["updated_at"]}
        book.add("claims", database, record | gone)
    if claim.paid:
        _insurer_pays(book, claim, visit, charges, plans[0], record["received_at"])
    if claim.booked_off:
        _adjust(book, visit, -claim.booked_off, _WRITE_OFF, record["received_at"], claim.id)
    return left


def _claim_record(book: _Book, claim: _Claim, visit: Visit, plans: Sequence[int]) -> Record:
    sent = book.moment(visit.day, 1 + claim.id % 3) if claim.status in ("sent", "received") else None
    received = max(book.moment(visit.day, 8 + claim.id % 16), sent or "") if claim.status == "received" else None
    return {
        "id": claim.id,
        "location_id": visit.location_id if claim.id % 70 else None,
        "patient_id": visit.patient.id,
        "provider_id": visit.provider_id if claim.id % 50 else None,
        "guarantor_id": _payer(visit.patient) if claim.id % 80 else None,
        "status": claim.status,
        "received_at": received,
        "sent_at": sent,
        "note": _CLAIM_NOTES[claim.id % 4] if claim.id % 7 == 0 else None,
        "primary_insurance_plan_id": plans[0],
        "secondary_insurance_plan_id": plans[1] if len(plans) > 1 else None,
        "date_of_service": visit.day,
        "totals": {
            "amount_billed_to_insurance": money(claim.billed),
            "estimated_insurance_payment": money(claim.estimated),
            "insurance_payment": money(claim.paid),
            "write_off": money(claim.written_off),
        },
        "updated_at": received or sent or visit.updated,
        "deleted_at": None,
    }


def _payment(book: _Book, visit: Visit, amount: int, when: str, kind: int | None, text: str | None) -> Record:
    types = book.prices[visit.patient.facts["database"]].payment_types
    return _entry(book, "payments", visit, when, text) | {
        "payment_amount": money(amount),
        "paid_at": when[:10],
        "transaction_id": None,
        "charge_id": None,
        "claim_id": None,
        "payment_plan_id": None,
        "insurance_plan_id": None,
        "payment_type_id": None if kind is None else types[kind],
    }


def _insurer_pays(book: _Book, claim: _Claim, visit: Visit, charges: Sequence[int], insurer: int, when: str) -> None:
    record = _payment(book, visit, -claim.paid, when, _INSURER, "Insurance check")
    record |= {"claim_id": claim.id, "insurance_plan_id": insurer}
    record |= {"charge_id": charges[0] if len(charges) == 1 else None}
    book.add("payments", visit.patient.facts["database"], record)


def _patient_pays(book: _Book, visit: Visit, charges: Sequence[int], left: int) -> None:
    """What the family paid: all, half, nothing, or too much, half the time with a refund."""
    rng, database = book.rng, visit.patient.facts["database"]
    roll = rng.random()
    if not left or roll < 0.14:
        return
    half = roll < 0.26
    amount = left // 2 if half else left + (2500 if roll > 0.97 else 0)
    record = _payment(book, visit, -amount, visit.updated, rng.choice((_CASH, 1, _CARD, _CARD)), None)
    record |= {"charge_id": charges[0] if len(charges) == 1 else None}
    if (half and left > 30_000) or not book.rows["payment_plans"]:  # every practice has one
        record |= {"payment_plan_id": _payment_plan(book, visit)}
    if record["id"] % 6 == 0:
        record |= {"transaction_id": f"NHP:{record['id']:X}", "description": "Card, online ☑️"}
    _twice(book, "payments", database, record, 0.025)
    book.add("payments", database, record)
    if roll > 0.985:
        when = book.moment(visit.day, 5)
        book.add("payments", database, _payment(book, visit, 2500, when, None, "Refund"))


def _payment_plan(book: _Book, visit: Visit) -> int:
    """The family's payment plan, made with its first payment."""
    payer = _payer(visit.patient)
    if payer not in book.plans:
        due = date.fromisoformat(visit.day) + timedelta(days=30)
        record: Record = {
            "id": book.number("payment_plans"),
            "patient_id": visit.patient.id,
            "guarantor_id": payer,
            "first_payment_due_date": due.isoformat(),
            "created_date": visit.day,
            "active": due > book.base.date() - timedelta(days=400),
        }
        about = {"database": visit.patient.facts["database"], "updated_at": visit.updated}
        book.rows["payment_plans"].append(make_row(KINDS["payment_plans"], record, book.plan.id, **about))
        book.plans[payer] = record["id"]
    return book.plans[payer]


def _adjust(book: _Book, visit: Visit, amount: int, kind: int, when: str, claim: int | None = None) -> None:
    database = visit.patient.facts["database"]
    record = _entry(book, "adjustments", visit, when, None if amount % 3 else "Agreed by phone") | {
        "adjustment_amount": money(amount),
        "adjusted_at": when[:10],
        "transaction_id": None,
        "charge_id": None,
        "claim_id": claim,
        "adjustment_type_id": book.prices[database].adjustment_types[kind],
    }
    if record["id"] % 25 == 0:
        record |= {"transaction_id": f"NHA:{record['id']:X}"}
    _twice(book, "adjustments", database, record, 0.05)
    book.add("adjustments", database, record)


def _discount(book: _Book, visit: Visit, charges: Sequence[int], left: int) -> int:
    """A courtesy discount, a finance charge or a correction now and then; returns what is left then."""
    roll = book.rng.random()
    if not left or roll > 0.09:
        return left
    kind, amount = (_COURTESY, -left // 10) if roll < 0.05 else (_FINANCE, 500) if roll < 0.07 else (_CORRECTION, -100)
    _adjust(book, visit, amount, kind, book.moment(visit.day, 1))
    row = book.rows["adjustments"][-1]
    record = row.record() | {"charge_id": charges[0]}
    book.rows["adjustments"][-1] = make_row(KINDS["adjustments"], record, book.plan.id, database=row.facts["database"])
    return left + amount


def _bare(book: _Book, database: int) -> None:
    """Rows that say almost nothing, with an amount of zero (API.md E.1: no NOT NULL on ledger rows)."""
    when = stamp(book.base - timedelta(days=30, milliseconds=book.rng.randrange(86_400_000)))
    for name, amount in (("charges", "fee"), ("payments", "payment_amount"), ("adjustments", "adjustment_amount")):
        record = dict(KINDS[name].blank) | {"id": book.number(name), "updated_at": when, amount: money(0)}
        book.add(name, database, record)
    record = dict(KINDS["claims"].blank) | {"id": book.number("claims"), "updated_at": when, "status": None}
    book.add("claims", database, record)


def book(
    clinic: Clinic, prices: Mapping[int, Prices], covers: Mapping[int, Sequence[int]], rng: Random
) -> dict[str, list[Row]]:
    """The ledger of an institution's visits; `covers` are the insurance plans of patients, the primary first."""
    made = _Book(clinic.plan, clinic.base, rng, prices, covers)
    for database in sorted(prices):
        _bare(made, database)
    for visit in clinic.visits:
        charges = [_charge(made, visit, procedure, item) for procedure, item in visit.done]
        plans = covers.get(visit.patient.id, ())
        if plans and rng.random() < 0.85:
            left = _claim(made, visit, charges, plans)
        else:
            left = sum(TREATMENTS[item].fee for _, item in visit.done)
        left = _discount(made, visit, charges, left)
        _patient_pays(made, visit, charges, left)
    return made.rows
