"""Synthetic insurance: plans (some deleted) and patients' coverages (some ended)."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from random import Random

from .kinds import KINDS
from .names import CITIES, EMPLOYERS, PAYERS, STREETS
from .practices import PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["coverage_rows", "plan_rows"]

_OTHER_RELATIONS = (
    *(
        [
            "spouse",
            "child",
            "child",
            "employee",
            "handicap_dep",
            "signif_other",
            "injured_plaintiff",
            "life_partner",
            "dependent",
            "other",
        ]
    ),
)
_TYPES = ("dental", "dental", "dental", "medical", "vision", None)


def _plan(plan: PracticePlan, number: int, index: int, base: datetime, rng: Random) -> Row:
    bare = index % 11 == 7
    gone = index % 10 == 4
    city, state, zip_code = rng.choice(CITIES)
    updated = base - timedelta(days=rng.randrange(1, 900), milliseconds=rng.randrange(86_400_000))
    shown: Record = {
        "payer_id": f"{60000 + index * 7}",
        "name": f"{rng.choice(PAYERS)} {index + 1}",
        "address": f"{rng.randrange(1, 999)} {rng.choice(STREETS)}",
        "address2": "Floor 3" if index % 3 == 0 else "",
        "city": city,
        "state": state,
        "zip_code": zip_code,
        "country_code": "US",
        "group_num": f"G{rng.randrange(10000, 99999)}",
        "employer_name": rng.choice(EMPLOYERS),
        "foreign_id": str(index + 1),
    }
    record: Record = {"id": number} | (dict.fromkeys(shown) if bare else shown)
    record |= {"updated_at": stamp(updated), "deleted_at": stamp(updated) if gone else None}
    return make_row(KINDS["insurance_plans"], record, plan.id)


def plan_rows(plan: PracticePlan, base: datetime, rng: Random, count: int) -> list[Row]:
    """`count` plans of an institution; one in ten is soft-deleted, one in eleven nearly empty."""
    first = 902_000 + (plan.id - 11200) * 100_000
    return [_plan(plan, first + index * 3, index, base, rng) for index in range(count)]


def _coverage(patient: Row, priority: int, number: int, plans: Sequence[Row], base: datetime, rng: Random) -> Row:
    guarantor = patient.facts["guarantor_id"]
    own = not guarantor or guarantor == patient.id
    began = base - timedelta(days=rng.randrange(30, 1500))
    active = rng.random() < 0.75
    ended = began + timedelta(days=364)
    updated = began + (base - timedelta(minutes=30) - began) * rng.random()
    record: Record = {
        "id": number,
        "subscription_relation": "self" if own else rng.choice(_OTHER_RELATIONS),
        "patient_id": patient.id if rng.random() < 0.995 else None,
        "priority": priority if rng.random() < 0.95 else None,
        "plan_id": rng.choice(plans).id if rng.random() < 0.97 else None,
        "subscriber_num": f"S{rng.randrange(10**8):08d}" if rng.random() < 0.9 else rng.choice(("", None)),
        "effective_date": began.date().isoformat() if rng.random() < 0.9 else None,
        "expiration_date": ended.date().isoformat() if not active or rng.random() < 0.3 else None,
        "insurance_type": rng.choice(_TYPES),
        "updated_at": stamp(updated),
        "active": active,
    }
    subscriber = patient.id if own else guarantor
    return make_row(KINDS["insurance_coverages"], record, patient.institution_id, subscriber_id=subscriber)


def coverage_rows(
    plan: PracticePlan, patients: Sequence[Row], plans: Sequence[Row], base: datetime, rng: Random
) -> Iterator[Row]:
    """No, one or two coverages per patient; a quarter has ended."""
    number = 71_000_000 + (plan.id - 11200) * 10_000_000
    for patient in patients:
        roll = rng.random()
        for priority in range(0 if roll < 0.35 else 1 if roll < 0.8 else 2):
            number += rng.randrange(1, 6)
            yield _coverage(patient, priority, number, plans, base, rng)
