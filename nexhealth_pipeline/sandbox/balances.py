"""What is owed, added up from the ledger: per guarantor and, towards insurers, per patient.

A guarantor's figures, over rows that are not deleted (API.md A.6):
- `total_balance` = fees of charges - what received claims wrote off + payments + adjustments;
- `insurance_estimate` and `write_off_estimate` = the estimates of payouts of draft and sent claims;
- `guarantor_portion` = total_balance - insurance_estimate - write_off_estimate;
- the four ages of the total are by the day of each charge, and a payment or adjustment ages with its charge,
  or else by its own day; undated rows count as old.
A row without a guarantor belongs to its patient's; where both are missing it belongs to nobody.
An insurance balance adds up the payouts of a patient's draft and sent claims, by the day of service.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from .money import cents, money
from .rows import Record, Row

__all__ = ["AGES", "TOTALS", "Account", "Owed", "guarantor_figures", "insurance_figures", "owed", "sum_payouts"]

AGES = ("under_30", "31_60", "61_90", "over_90")
"""Days since the charge, as the fields are called."""

TOTALS = ("amount_billed_to_insurance", "estimated_insurance_payment", "insurance_payment", "write_off")
"""The amounts of a payout that a claim's totals add up."""

_OPEN = frozenset({"draft", "sent"})


@dataclass(slots=True)
class Account:
    """What one guarantor owes, or insurers owe for one patient: cents."""

    total: int = 0
    insurance: int = 0
    write_off: int = 0
    ages: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    billed: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    updated: str = ""

    def add(self, amount: int, age: int, updated: str) -> None:
        """Add an amount of that age."""
        self.total += amount
        self.ages[age] += amount
        self.updated = max(self.updated, updated)


@dataclass(frozen=True, slots=True)
class Owed:
    """Accounts by guarantor, and by patient towards insurers."""

    guarantors: Mapping[int, Account]
    patients: Mapping[int, Account]


def _age(day: object, today: date) -> int:
    try:
        days = (today - date.fromisoformat(str(day)[:10])).days
    except ValueError:
        return 3
    return 0 if days <= 30 else 1 if days <= 60 else 2 if days <= 90 else 3


def _payer(record: Record, patients: Mapping[int, Row]) -> int | None:
    number: int | None = record.get("guarantor_id")
    if number:
        return number
    patient = patients.get(record.get("patient_id") or 0)
    if patient is None:
        return None
    found: int = patient.facts["guarantor_id"] or patient.id
    return found


def _kept(rows: Iterable[Row]) -> list[Record]:
    return [row.record() for row in rows if row.facts["deleted_at"] is None]


@dataclass(slots=True)
class _Sum:
    """The adding up, with what it looks things up in."""

    patients: Mapping[int, Row]
    today: date
    guarantors: dict[int, Account] = field(default_factory=lambda: defaultdict(Account))
    insured: dict[int, Account] = field(default_factory=lambda: defaultdict(Account))
    charges: dict[int, tuple[int | None, int]] = field(default_factory=dict)

    def entry(self, record: Record, amount: int, day: object) -> None:
        payer = _payer(record, self.patients)
        charge = self.charges.get(record.get("charge_id") or 0)
        if payer is not None:
            self.guarantors[payer].add(amount, charge[1] if charge else _age(day, self.today), record["updated_at"])

    def charge(self, record: Record) -> None:
        payer, age = _payer(record, self.patients), _age(record["charged_at"], self.today)
        self.charges[record["id"]] = (payer, age)
        if payer is not None:
            self.guarantors[payer].add(cents(record["fee"]), age, record["updated_at"])

    def payout(self, record: Record, charge_id: int, claim: Record) -> None:
        payer, age = self.charges.get(charge_id, (None, 3))
        off, estimate = cents(record["write_off"]), cents(record["estimated_insurance_payment"])
        if payer is not None and claim["status"] == "received":
            self.guarantors[payer].add(-off, age, claim["updated_at"])
        elif payer is not None and claim["status"] in _OPEN:
            account = self.guarantors[payer]
            account.insurance += estimate
            account.write_off += off
            account.updated = max(account.updated, claim["updated_at"])
        if claim["patient_id"] and claim["status"] in _OPEN:
            insured, old = self.insured[claim["patient_id"]], _age(claim["date_of_service"], self.today)
            insured.add(estimate, old, claim["updated_at"])
            insured.billed[old] += cents(record["amount_billed_to_insurance"])


def owed(rows: Mapping[str, Iterable[Row]], today: date) -> Owed:
    """Add up the ledger in `rows` (patients, charges, claims, claim_payouts, payments, adjustments)."""
    added = _Sum({row.id: row for row in rows["patients"]}, today)
    for record in _kept(rows["charges"]):
        added.charge(record)
    for record in _kept(rows["payments"]):
        added.entry(record, cents(record["payment_amount"]), record["paid_at"])
    for record in _kept(rows["adjustments"]):
        added.entry(record, cents(record["adjustment_amount"]), record["adjusted_at"])
    claims = {record["id"]: record for record in _kept(rows["claims"])}
    for row in rows["claim_payouts"]:
        claim = claims.get(row.facts["claim_id"])
        if claim:
            added.payout(row.record(), row.facts["charge_id"], claim)
    for record in claims.values():
        if record["patient_id"]:
            account = added.insured[record["patient_id"]]
            account.updated = max(account.updated, record["updated_at"])
    return Owed(dict(added.guarantors), dict(added.insured))


def sum_payouts(payouts: Iterable[Row]) -> dict[int, dict[str, int]]:
    """Cents per claim and amount."""
    sums: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(TOTALS, 0))
    for row in payouts:
        record, of_claim = row.record(), sums[row.facts["claim_id"]]
        for name in TOTALS:
            of_claim[name] += cents(record[name])
    return dict(sums)


def guarantor_figures(account: Account) -> dict[str, Any]:
    """The money fields of a guarantor balance."""
    shown = {
        "write_off_estimate": money(account.write_off),
        "total_balance": money(account.total),
        "insurance_estimate": money(account.insurance),
        "guarantor_portion": money(account.total - account.insurance - account.write_off),
    }
    return shown | {f"total_balance_{age}": money(part) for age, part in zip(AGES, account.ages, strict=True)}


def insurance_figures(account: Account) -> dict[str, Any]:
    """The money fields of an insurance balance."""
    estimated = {f"estimated_amount_{age}": money(part) for age, part in zip(AGES, account.ages, strict=True)}
    return estimated | {f"billed_amount_{age}": money(part) for age, part in zip(AGES, account.billed, strict=True)}
