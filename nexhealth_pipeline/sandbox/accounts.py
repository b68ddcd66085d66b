"""Guarantor and insurance balances as rows: made with the world, and brought in line with the ledger on request."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, timedelta

from .balances import TOTALS, Account, guarantor_figures, insurance_figures, owed, sum_payouts
from .kinds import KINDS
from .money import money
from .practices import PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["balance_rows", "due_figures"]


def _guarantor(patient: Row, number: int, account: Account) -> Row:
    place = patient.facts["location_ids"][0]
    record: Record = {
        "id": number,
        "foreign_id": str(patient.id % 1_000_000),
        "guarantor_id": patient.id,
        "location_id": place if number % 45 else None,
        "updated_at": account.updated,
    }
    record |= guarantor_figures(account)
    return make_row(KINDS["guarantor_balances"], record, patient.institution_id, database=patient.facts["database"])


def _insurance(patient: Row, number: int, account: Account) -> Row:
    place = patient.facts["location_ids"][0]
    record: Record = {
        "id": number,
        "patient_id": patient.id,
        "guarantor_id": patient.facts["guarantor_id"] or patient.id,
        "location_id": place if number % 45 else None,
        "updated_at": account.updated,
    }
    record |= insurance_figures(account)
    return make_row(KINDS["insurance_balances"], record, patient.institution_id, database=patient.facts["database"])


def _orphans(plan: PracticePlan, base: datetime, first: int) -> Iterator[tuple[str, Row]]:
    """Accounts that lost their guarantor or patient, per database: nothing is owed on them."""
    for index, database in enumerate(sorted({place.database for place in plan.active})):
        updated = stamp(base - timedelta(days=200 + index, milliseconds=index))
        for name, number, figures in (
            ("guarantor_balances", first + index, guarantor_figures),
            ("insurance_balances", first + 5_000_001 + index * 2, insurance_figures),
        ):
            record: Record = dict(KINDS[name].blank) | {"id": number, "updated_at": updated}
            yield name, make_row(KINDS[name], record | figures(Account()), plan.id, database=database)


def balance_rows(plan: PracticePlan, rows: Mapping[str, Iterable[Row]], base: datetime) -> dict[str, list[Row]]:
    """A balance for everyone the ledger in `rows` names, at zero too."""
    accounts = owed(rows, base.date())
    people = {row.id: row for row in rows["patients"]}
    first = 610_000_000 + (plan.id - 11200) * 10_000_000
    guarantors = [
        _guarantor(people[payer], first + 10 + index * 2, accounts.guarantors[payer])
        for index, payer in enumerate(sorted(accounts.guarantors))
    ]
    insured = [
        _insurance(people[patient], first + 5_000_000 + index * 2, accounts.patients[patient])
        for index, patient in enumerate(sorted(accounts.patients))
    ]
    made = {"guarantor_balances": guarantors, "insurance_balances": insured}
    for name, row in _orphans(plan, base, first):
        made[name].append(row)
    return made


def _totals(rows: Mapping[str, Iterable[Row]]) -> Iterator[tuple[str, int, Record]]:
    """Per claim, the sums of its payouts."""
    sums, nothing = sum_payouts(rows["claim_payouts"]), dict.fromkeys(TOTALS, 0)
    for row in rows["claims"]:
        shown = {name: money(amount) for name, amount in sums.get(row.id, nothing).items()}
        yield "claims", row.id, {"totals": shown}


def due_figures(rows: Mapping[str, Iterable[Row]], today: date) -> Iterator[tuple[str, int, Record]]:
    """What claims, guarantor and insurance balances should say now: collection, row id (0 = new) and fields."""
    yield from _totals(rows)
    accounts = owed(rows, today)
    for row in rows["guarantor_balances"]:
        account = accounts.guarantors.get(row.facts["guarantor_id"] or 0, Account())
        yield "guarantor_balances", row.id, guarantor_figures(account)
    for row in rows["insurance_balances"]:
        account = accounts.patients.get(row.facts["patient_id"] or 0, Account())
        yield "insurance_balances", row.id, insurance_figures(account)
    known = {row.facts["guarantor_id"] for row in rows["guarantor_balances"]}
    people = {row.id: row for row in rows["patients"]}
    for payer in sorted(set(accounts.guarantors) & set(people) - known):
        home = {"guarantor_id": payer, "location_id": people[payer].facts["location_ids"][0]}
        yield "guarantor_balances", 0, home | guarantor_figures(accounts.guarantors[payer])
    insured = {row.facts["patient_id"] for row in rows["insurance_balances"]}
    for patient in sorted(set(accounts.patients) & set(people) - insured):
        facts = people[patient].facts
        home = {"patient_id": patient, "guarantor_id": facts["guarantor_id"] or patient}
        home |= {"location_id": facts["location_ids"][0]}
        yield "insurance_balances", 0, home | insurance_figures(accounts.patients[patient])
