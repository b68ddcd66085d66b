"""Synthetic staff, opening hours with their labels, and kinds of recalls: rows of a practice without a patient."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random

from .kinds import KINDS
from .names import family_name, given_name
from .practices import LocationPlan, PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["hour_rows", "label_rows", "recall_type_rows", "staff_rows"]

_LABELS = ("New patients", "Emergencies ‼️")
_RECALLS = (
    ("PROPHY", "Cleaning every six months", 6, "M"),
    ("PERIO", "Gum care after deep cleaning", 3, "M"),
    ("X-RAY", "", 2, "Y"),
)
_WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
_OFFSETS = {"America/Los_Angeles": "-0800", "America/Phoenix": "-0700", "America/New_York": "-0500"}
_SHARED_STAFF = 640_001
"""One person works for both institutions and is listed under each."""


def staff_rows(plan: PracticePlan, base: datetime, rng: Random) -> list[Row]:
    """Logins of an institution: a third inactive, some for several locations, one for both institutions."""
    rows = []
    for index in range(len(plan.active) * 3):
        number = 640_000 + (plan.id - 11200) * 1000 + index * 2
        homes = [place.id for place in plan.active] if index % 4 == 1 else [plan.active[index % len(plan.active)].id]
        rows.append(_person(number, [plan.id], homes, index, base, rng))
    if plan.id == 11201:
        rows.append(_person(_SHARED_STAFF, [11201, 11202], [place.id for place in plan.active], 0, base, rng))
    return rows


def _person(number: int, institutions: list[int], homes: list[int], index: int, base: datetime, rng: Random) -> Row:
    created = base - timedelta(days=rng.randrange(200, 1400), milliseconds=rng.randrange(86_400_000))
    record: Record = {
        "id": number,
        "email": f"staff{number}@example.com",
        "first_name": given_name(rng),
        "last_name": family_name(rng),
        "created_at": stamp(created),
        "updated_at": stamp(created + timedelta(days=rng.randrange(190))),
        "patientable": index % 5 == 0,
        "inst_ids": institutions,
        "unsubscribe_emails": index % 3 == 0,
        "inactive": index % 3 == 2,
        "unsubscribe_sms": index % 4 == 0,
        "location_ids": homes,
    }
    return make_row(KINDS["nex_staff"], record, institutions[0])


def label_rows(plan: PracticePlan) -> list[Row]:
    """One label for the whole institution, two per location; the last of a location is no longer used."""
    first = 880_000 + (plan.id - 11200) * 1000
    rows = [_label(plan, first, None, "Regular", active=True)]
    for which, place in enumerate(plan.active):
        for index, name in enumerate(_LABELS):
            rows.append(_label(plan, first + 10 * (which + 1) + index, place.id, name, active=index == 0))
    return rows


def _label(plan: PracticePlan, number: int, place: int | None, name: str, *, active: bool) -> Row:
    record = {"id": number, "location_id": place, "name": name}
    return make_row(KINDS["working_hour_labels"], record, plan.id, active=active)


def hour_rows(plan: PracticePlan, base: datetime, labels: Sequence[Row], made: dict[str, list[Row]]) -> list[Row]:
    """Opening hours: weekly ones per provider, ended ones, single dates, recurrences, and one of a room."""
    rows: list[Row] = []
    number = 920_000 + (plan.id - 11200) * 10_000
    for place in plan.active:
        types = [row.id for row in made["appointment_types"] if row.facts["parent_id"] in (place.id, plan.id)]
        near = [row for row in labels if row.facts["location_id"] in (None, place.id)]
        room = next(row.id for row in made["operatories"] if row.facts["location_id"] == place.id)
        people = [row.id for row in made["providers"] if place.id in row.facts["location_ids"]]
        for index, fields in enumerate([*_weekly(people), *_special(people[0], room, base)]):
            number += 1
            chosen = near[index % len(near)].id
            rows.append(
                make_row(
                    KINDS["working_hours"],
                    _hours(place, number, fields),
                    plan.id,
                    label_id=chosen,
                    type_ids=types[: index % 4],
                )
            )
    return rows


def _hours(place: LocationPlan, number: int, fields: Record) -> Record:
    record: Record = {"id": number, "provider_id": None, "location_id": place.id, "operatory_id": None}
    record |= {"begin_time": "08:00", "end_time": "17:00", "days": [], "specific_date": None}
    record |= {"custom_recurrence": None, "tz_offset": _OFFSETS.get(place.tz, "-0400"), "active": True}
    return record | {"source": "synced"} | fields


def _weekly(people: Sequence[int]) -> list[Record]:
    hours: list[Record] = [{"provider_id": person, "days": _WEEK[index % 2 :]} for index, person in enumerate(people)]
    return [*hours, {"provider_id": people[0], "days": ["Saturday"], "end_time": "12:30", "source": "manual"}]


def _special(person: int, room: int, base: datetime) -> list[Record]:
    past, ahead = ((base + timedelta(days=days)).date().isoformat() for days in (-40, 20))
    return [
        {"provider_id": person, "days": ["Sunday"], "active": False, "source": "manual"},
        {"provider_id": person, "specific_date": past, "source": "manual"},
        {"provider_id": person, "specific_date": ahead, "days": None, "source": "manual"},
        {"provider_id": person, "custom_recurrence": {"num": 2, "unit": "week", "ref": past}},
        {"operatory_id": room, "days": _WEEK},
    ]


def recall_type_rows(plan: PracticePlan, base: datetime) -> list[Row]:
    """Three kinds of recalls per location."""
    rows = []
    for which, place in enumerate(plan.active):
        for index, (name, text, num, unit) in enumerate(_RECALLS):
            number = 41_000 + (plan.id - 11200) * 1000 + which * 10 + index
            record: Record = {
                "id": number,
                "name": name,
                "description": text,
                "foreign_id": str(index + 1),
                "foreign_id_type": f"msg-{plan.emr[1]}-DataSource-{place.database}",
                "interval_num": num,
                "interval_unit": unit,
                "location_id": place.id,
                "created_at": stamp(base - timedelta(days=1300)),
                "updated_at": stamp(base - timedelta(days=100 + number % 90)),
            }
            rows.append(make_row(KINDS["recall_types"], record, plan.id))
    return rows
