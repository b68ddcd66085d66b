"""Synthetic patients: families under one guarantor, guarantors who are no patients, inactive and nearly empty records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from random import Random
from typing import Any

from .kinds import KINDS
from .names import CITIES, STREETS, email, family_name, given_name, middle_name, phone
from .practices import LocationPlan, PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["patient_rows"]

_BILLING = ("Standard Billing - finance charges", "No finance charges", "Collections")
_LANGUAGES = ("en", "en", "en", "es", "fr", "uk")


@dataclass(slots=True)
class _Family:
    """Who the next patient may belong to."""

    guarantor_id: int = 0
    last_name: str = ""
    home: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Draw:
    """The dice of one patient, thrown once."""

    bare: bool
    non_patient: bool
    inactive: bool
    new: bool


def _draw(rng: Random) -> _Draw:
    roll = rng.random()
    return _Draw(roll < 0.05, 0.05 <= roll < 0.08, 0.08 <= roll < 0.17, 0.17 <= roll < 0.20)


def _home(rng: Random) -> dict[str, str]:
    city, state, zip_code = rng.choice(CITIES)
    line = f"{rng.randrange(1, 9999)} {rng.choice(STREETS)}"
    return {"city": city, "state": state, "zip_code": zip_code, "address_line_1": line, "street_address": line}


def _bio(rng: Random, draw: _Draw, home: dict[str, str], base: date) -> Record:
    born = base - timedelta(days=rng.randrange(700, 32000))
    if draw.bare:
        return {} if rng.random() < 0.5 else {"date_of_birth": "", "phone_number": "", "non_patient": False}
    bio: Record = dict(home)
    bio |= {"gender": rng.choice(("Female", "Male", "Other", "")), "date_of_birth": born.isoformat()}
    bio |= {"new_patient": draw.new, "non_patient": draw.non_patient, "address_line_2": ""}
    number = phone(rng)
    bio |= {"phone_number": number, "cell_phone_number": number if rng.random() < 0.8 else ""}
    bio |= {"home_phone_number": phone(rng) if rng.random() < 0.2 else "", "work_phone_number": ""}
    if rng.random() < 0.02:
        bio["ssn"] = f"000-00-{rng.randrange(10000):04d}"  # area 000 was never issued
    return bio


def _hipaa(rng: Random, created: datetime, bare: bool) -> Record:
    if bare:
        return {}
    hipaa: Record = {name: rng.random() < 0.7 for name in ("authorization", "privacy", "consent")}
    return hipaa | {f"{name}_date": created.date().isoformat() for name, signed in hipaa.items() if signed}


def _guarantor(rng: Random, number: int, draw: _Draw, family: _Family) -> int | None:
    """Own id, 0 or nothing all mean "pays for himself" (API.md A.6)."""
    roll = rng.random()
    if draw.bare or roll < 0.03:
        return None
    if roll < 0.08:
        return 0
    if roll < 0.45 and family.guarantor_id and not draw.non_patient:
        return family.guarantor_id
    return number


def _homes(rng: Random, plan: PracticePlan, place: LocationPlan) -> list[int]:
    """The locations a patient belongs to; one in six visits every location of the database."""
    siblings = [other.id for other in plan.active if other.database == place.database]
    return siblings if len(siblings) > 1 and rng.random() < 0.16 else [place.id]


def _person(rng: Random, number: int, draw: _Draw, family: _Family) -> Record:
    first = given_name(rng)
    last = family.last_name if family.last_name and rng.random() < 0.4 else family_name(rng)
    middle = None if draw.bare else middle_name(rng)
    address = "" if rng.random() < 0.06 else email(rng, number)
    return {
        "id": number,
        "email": None if draw.bare or rng.random() < 0.05 else address,
        "first_name": first,
        "middle_name": middle,
        "last_name": last,
        "name": f"{first} {last}",
    }


def _patient(
    plan: PracticePlan,
    place: LocationPlan,
    number: int,
    base: datetime,
    rng: Random,
    family: _Family,
    providers: Sequence[Row],
) -> Row:
    draw = _draw(rng)
    record = _person(rng, number, draw, family)
    created = base - timedelta(days=rng.randrange(5, 1400), milliseconds=rng.randrange(86_400_000))
    updated = created + (base - timedelta(minutes=20) - created) * rng.random()
    guarantor = _guarantor(rng, number, draw, family)
    if guarantor == number:
        family.guarantor_id, family.last_name, family.home = number, record["last_name"], _home(rng)
    record |= {
        "created_at": stamp(created),
        "updated_at": stamp(updated),
        "institution_id": plan.id,
        "foreign_id": None if draw.bare else str(number % 1_000_000),
        "foreign_id_type": f"msg-{plan.emr[1]}-DataSource-{place.database}",
        "bio": _bio(rng, draw, family.home or _home(rng), base.date()),
        "inactive": draw.inactive,
        "last_sync_time": None if draw.bare else stamp(updated),
        "guarantor_id": guarantor,
        "billing_type": None if draw.bare or rng.random() < 0.3 else rng.choice(_BILLING),
        "chart_id": None if draw.bare else f"{number % 1_000_000:06d}",
        "preferred_language": None if draw.bare or rng.random() < 0.2 else rng.choice(_LANGUAGES),
        "provider_id": None if draw.bare or rng.random() < 0.1 else rng.choice(providers).id,
        "hipaa": _hipaa(rng, created, draw.bare),
    }
    about: dict[str, Any] = {"location_ids": _homes(rng, plan, place), "database": place.database}
    return make_row(KINDS["patients"], record, plan.id, **about)


def patient_rows(
    plan: PracticePlan, base: datetime, rng: Random, providers: Sequence[Row], total: int
) -> Iterator[tuple[LocationPlan, Row]]:
    """Patients of an institution with the location each was made for; `total` counts both institutions' patients."""
    number = 495_000_000 + (plan.id - 11200) * 10_000_000
    for place in plan.active:
        local = [row for row in providers if place.id in row.facts["location_ids"]]
        family = _Family()
        for _ in range(round(total * place.weight)):
            number += rng.randrange(1, 9)
            yield place, _patient(plan, place, number, base, rng, family, local)
