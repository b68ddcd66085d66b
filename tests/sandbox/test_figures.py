"""Do the synthetic figures hang together? Added up here from the records alone, not with the sandbox's own code."""

from collections import defaultdict
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from nexhealth_pipeline.sandbox import State, World, build_app

from .calls import BASE, WILLOW

TOTALS = ("amount_billed_to_insurance", "estimated_insurance_payment", "insurance_payment", "write_off")
ZERO = Decimal(0)


def _amount(record: dict[str, Any], name: str) -> Decimal:
    assert isinstance(record[name]["amount"], str)
    assert record[name]["currency"] == "USD"
    return Decimal(record[name]["amount"])


class Books:
    """The records of a world by collection, and what follows from them."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.charges = self._kept("charges")
        self.payments, self.adjustments, self.claims = (
            self._kept(name) for name in ("payments", "adjustments", "claims")
        )
        self.payouts = [(row.facts["charge_id"], row.record()) for row in state.store("claim_payouts").rows.values()]
        self.patients = {row["id"]: row for row in state.records("patients")}

    def _kept(self, name: str) -> dict[int, dict[str, Any]]:
        return {row["id"]: row for row in self.state.records(name) if row["deleted_at"] is None}

    def payer(self, row: dict[str, Any]) -> int | None:
        if row["guarantor_id"] or not row["patient_id"]:
            return row["guarantor_id"]
        return self.patients[row["patient_id"]]["guarantor_id"] or row["patient_id"]

    def totals(self) -> dict[int | None, Decimal]:
        """What each guarantor owes: charges less write-offs of received claims, payments, adjustments (API.md A.6)."""
        owed: dict[int | None, Decimal] = defaultdict(Decimal)
        for row in self.charges.values():
            owed[self.payer(row)] += _amount(row, "fee")
        for row in self.payments.values():
            owed[self.payer(row)] += _amount(row, "payment_amount")
        for row in self.adjustments.values():
            owed[self.payer(row)] += _amount(row, "adjustment_amount")
        for charge, payout in self.payouts:
            claim = self.claims.get(payout["claim_id"])
            if claim and claim["status"] == "received" and charge in self.charges:
                owed[self.payer(self.charges[charge])] -= _amount(payout, "write_off")
        return owed

    def estimates(self, name: str) -> dict[int | None, Decimal]:
        """What draft and sent claims promise each guarantor."""
        found: dict[int | None, Decimal] = defaultdict(Decimal)
        for charge, payout in self.payouts:
            claim = self.claims.get(payout["claim_id"])
            if claim and claim["status"] in ("draft", "sent") and charge in self.charges:
                found[self.payer(self.charges[charge])] += _amount(payout, name)
        return found

    def check(self) -> None:
        owed, insured, off = self.totals(), self.estimates(TOTALS[1]), self.estimates("write_off")
        balances = {row["guarantor_id"]: row for row in self.state.records("guarantor_balances")}
        assert {payer for payer, amount in owed.items() if payer and amount} <= set(balances)
        for payer, row in balances.items():
            total = owed.get(payer, ZERO)
            assert _amount(row, "total_balance") == total
            assert _amount(row, "insurance_estimate") == insured.get(payer, ZERO)
            assert _amount(row, "write_off_estimate") == off.get(payer, ZERO)
            portion = total - insured.get(payer, ZERO) - off.get(payer, ZERO)
            assert _amount(row, "guarantor_portion") == portion
            ages = [_amount(row, f"total_balance_{age}") for age in ("under_30", "31_60", "61_90", "over_90")]
            assert sum(ages) == total

    def check_claims(self) -> None:
        sums: dict[int, dict[str, Decimal]] = defaultdict(lambda: dict.fromkeys(TOTALS, ZERO))
        for _, payout in self.payouts:
            for name in TOTALS:
                sums[payout["claim_id"]][name] += _amount(payout, name)
        for row in self.state.records("claims"):
            assert {name: _amount(row["totals"], name) for name in TOTALS} == sums[row["id"]]


@pytest.fixture(scope="module")
def books(default_world: World) -> Books:
    return Books(build_app(world=default_world).state)


def test_guarantor_balances_equal_the_ledger(books: Books) -> None:
    """Risk: a check that compares balances with the ledger fails on the sandbox's own mistakes."""
    books.check()
    totals = [_amount(row, "total_balance") for row in books.state.records("guarantor_balances")]
    assert min(totals) < 0 < max(totals), "credits and debts"
    assert sum(total == 0 for total in totals) > 100


def test_claim_totals_equal_their_payouts_and_what_insurers_paid(books: Books) -> None:
    """Risk: the child table of payouts cannot be checked against its claims."""
    books.check_claims()
    paid: dict[int, Decimal] = defaultdict(Decimal)
    for row in books.payments.values():
        assert (row["insurance_plan_id"] is None) == (row["claim_id"] is None)
        if row["claim_id"]:
            paid[row["claim_id"]] -= _amount(row, "payment_amount")
            assert row["insurance_plan_id"] == books.claims[row["claim_id"]]["primary_insurance_plan_id"]
    for number, row in books.claims.items():
        assert _amount(row["totals"], "insurance_payment") == paid[number]
    assert {row["status"] for row in books.claims.values()} == {"draft", "sent", "received", "canceled", None}


def test_insurance_balances_are_what_open_claims_expect(books: Books) -> None:
    """Risk: as above, towards insurers."""
    expected: dict[int, Decimal] = defaultdict(Decimal)
    for _, payout in books.payouts:
        claim = books.claims.get(payout["claim_id"])
        if claim and claim["status"] in ("draft", "sent"):
            expected[claim["patient_id"]] += _amount(payout, "estimated_insurance_payment")
    rows = {row["patient_id"]: row for row in books.state.records("insurance_balances")}
    assert {patient for patient, amount in expected.items() if amount} <= set(rows)
    for patient, row in rows.items():
        ages = [_amount(row, f"estimated_amount_{age}") for age in ("under_30", "31_60", "61_90", "over_90")]
        assert sum(ages) == expected[patient]


def test_balances_age_with_the_charges(books: Books) -> None:
    """Risk: the four ages add up although everything stands in one."""
    rows = books.state.records("guarantor_balances")
    for age in ("under_30", "31_60", "61_90", "over_90"):
        assert sum(_amount(row, f"total_balance_{age}") != 0 for row in rows) > 20, age
    oldest = (BASE.date() - timedelta(days=31)).isoformat()
    young = {row["guarantor_id"] for row in rows if _amount(row, "total_balance_under_30")}
    entries = [*books.charges.values(), *books.payments.values(), *books.adjustments.values()]
    days = ("charged_at", "paid_at", "adjusted_at")
    fresh = {books.payer(row) for row in entries for name in days if (row.get(name) or "") > oldest}
    assert young <= fresh


def test_completed_procedures_are_charged_once_and_every_sign_is_as_documented(books: Books) -> None:
    """Risk: payments with the wrong sign double a balance instead of clearing it (API.md K)."""
    procedures = {row["id"]: row for row in books.state.records("procedures")}
    charged = [row["procedure_id"] for row in books.charges.values() if row["procedure_id"]]
    assert len(charged) == len(set(charged))
    assert {procedures[number]["status"] for number in charged} == {"completed", None}
    for row in books.charges.values():
        assert _amount(row, "fee") >= 0
        if row["procedure_id"]:
            assert _amount(procedures[row["procedure_id"]], "fee") == _amount(row, "fee")
    signs = {_amount(row, "payment_amount") > 0 for row in books.payments.values()}
    assert signs == {True, False}, "refunds are positive"
    assert all(date.fromisoformat(row["paid_at"]) <= BASE.date() for row in books.payments.values() if row["paid_at"])


def test_after_changes_to_the_ledger_rebalancing_makes_it_agree_again() -> None:
    """Risk: a test that changes a payment leaves the world inconsistent for the checks."""
    state = build_app(patients=60, appointments_per_patient=5, base=BASE).state
    assert state.rebalance() == [], "a new world agrees with itself"
    charge = next(row["id"] for row in state.records("charges") if row["fee"]["amount"] != "0.00")
    state.update("charges", charge, {"fee": {"amount": "1234.56"}})
    state.delete("payments", next(row["id"] for row in state.records("payments") if row["deleted_at"] is None))
    claim = next(row["id"] for row in state.records("claims") if row["status"] == "received")
    state.update("claims", claim, {"status": "canceled"})
    payout = next(row for row in state.store("claim_payouts").rows.values() if row.facts["claim_id"] == claim)
    state.update("claim_payouts", payout.id, {"write_off": {"amount": "3.21"}})
    payers = {row["guarantor_id"] for row in state.records("guarantor_balances")}
    patient = next(number for number in state.ids("patients") if number not in payers)
    home = state.row("patients", patient)
    subdomain = WILLOW if home.institution_id == 11201 else "harbor-smiles"
    fields = {"patient_id": patient, "guarantor_id": patient, "payment_amount": {"amount": "-5.00", "currency": "USD"}}
    state.create("payments", fields, subdomain=subdomain)
    changed = state.rebalance()
    assert {change.collection for change in changed} >= {"claims", "guarantor_balances"}
    books = Books(state)
    books.check()
    books.check_claims()
    assert state.rebalance() == []


def test_rebalancing_makes_a_balance_towards_insurers_where_a_patient_had_none() -> None:
    """Risk: the first claim of a patient is owed by nobody."""
    state = build_app(patients=60, appointments_per_patient=5, base=BASE).state
    insured = {row["patient_id"] for row in state.records("insurance_balances")}
    patient = next(row for row in state.store("patients").rows.values() if row.id not in insured)
    subdomain = state.row("institutions", patient.institution_id).facts["subdomain"]
    charge = next(
        row
        for row in state.store("charges").rows.values()
        if row.institution_id == patient.institution_id and row.facts["deleted_at"] is None
    )
    fields = {"patient_id": patient.id, "status": "sent", "date_of_service": BASE.date().isoformat()}
    claim = state.create("claims", fields, subdomain=subdomain).id
    payout = {"claim_id": claim, "estimated_insurance_payment": {"amount": "12.50", "currency": "USD"}}
    state.create("claim_payouts", payout, subdomain=subdomain, charge_id=charge.id)
    made = [change for change in state.rebalance() if change.operation == "create"]
    assert [change.collection for change in made] == ["insurance_balances"]
    balance = state.row("insurance_balances", made[0].id)
    assert (balance.facts["patient_id"], balance.institution_id) == (patient.id, patient.institution_id)
    assert balance.facts["database"] == patient.facts["database"]
    assert balance.value("estimated_amount_under_30.amount") == "12.50"
    assert state.rebalance() == []
