"""Synthetic appointments from 24 months back to 6 ahead: kept, missed, cancelled, and blocks without a patient."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import Random
from zoneinfo import ZoneInfo

from .kinds import KINDS
from .names import NOTES
from .practices import LocationPlan, PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["Desk", "appointment_rows", "arrival_rows", "block_rows"]

_DAYS_BACK, _DAYS_AHEAD = 730, 182
_SOON = range(2, _DAYS_AHEAD)
_OF_VISITS = ("provider_id", "provider_name", "confirmed", "patient_missed", "patient_confirmed", "checked_out")
"""What some practice systems leave open for a block in the schedule."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What one location's front desk books with."""

    plan: PracticePlan
    place: LocationPlan
    base: datetime
    providers: Sequence[tuple[int, str]]
    operatories: Sequence[int]
    types: Sequence[tuple[int, int]]


class _Ids:
    """Ascending appointment ids with gaps, near the real ones."""

    def __init__(self, first: int) -> None:
        self.last = first

    def next(self, rng: Random) -> int:
        self.last += rng.randrange(1, 20)
        return self.last


@lru_cache(maxsize=8192)
def _offset(zone: str, day: datetime) -> timedelta:
    return day.replace(tzinfo=ZoneInfo(zone)).utcoffset() or timedelta(0)


def _offset_text(offset: timedelta) -> str:
    minutes = int(offset.total_seconds()) // 60
    sign = "-" if minutes < 0 else "+"
    return f"{sign}{abs(minutes) // 60}:{abs(minutes) % 60:02d}"


def _slot(desk: Desk, rng: Random, days: range) -> tuple[datetime, timedelta]:
    """A start on one of these days from the base, on a quarter of an hour, with the local offset."""
    noon = desk.base.replace(tzinfo=None, hour=12, minute=0, second=0, microsecond=0)  # wall time at the practice
    day = noon + timedelta(days=rng.randrange(days.start, days.stop))
    offset = _offset(desk.place.tz, day)
    local = day.replace(hour=8) + timedelta(minutes=15 * rng.randrange(36))
    return (local - offset).replace(tzinfo=UTC), offset


def _state(desk: Desk, rng: Random, start: datetime, blank: bool) -> tuple[Record, datetime, datetime]:
    """What became of the appointment, when it was made and when last touched.

    Past is what began before the base's day: were it the base's hour, another one would be another world.
    """
    past = start < desk.base.replace(hour=0, minute=0, second=0, microsecond=0)
    earliest = min(start, desk.base - timedelta(hours=1))
    created = earliest - timedelta(minutes=rng.randrange(60, 86400))
    cancelled = rng.random() < (0.03 if blank else 0.14)
    missed = past and not cancelled and not blank and rng.random() < 0.04
    seen = past and not cancelled and not missed and not blank
    confirmed = not blank and rng.random() < (0.85 if past else 0.4)
    settled = start + timedelta(hours=2) if past else created + timedelta(minutes=rng.randrange(1, 60))
    touched = max(created, min(settled, desk.base - timedelta(minutes=rng.randrange(4, 60))))
    late = touched - timedelta(seconds=30)
    return (
        {
            "confirmed": confirmed,
            "patient_missed": missed,
            "unavailable": blank,
            "cancelled": cancelled,
            "checkin_at": stamp(start - timedelta(minutes=4)) if seen else None,
            "patient_confirmed": confirmed and rng.random() < 0.5,
            "patient_confirmed_at": stamp(late) if confirmed and rng.random() < 0.5 else None,
            "cancelled_at": stamp(late) if cancelled or rng.random() < 0.01 else None,
            "confirmed_at": stamp(late) if confirmed else None,
            "checked_out": seen,
            "checked_out_at": stamp(start + timedelta(hours=1)) if seen else None,
        },
        created,
        touched,
    )


def _booking(rng: Random, blank: bool) -> Record:
    online = not blank and rng.random() < 0.1
    return {
        "misc": {"is_booked_on_nexhealth": True} if online else None,
        "created_by_user_id": rng.randrange(800, 830) if online else None,
        "is_guardian": online and rng.random() < 0.2 if not blank else None,
        "is_new_clients_patient": online and rng.random() < 0.5 if not blank else None,
        "sooner_if_possible": rng.random() < 0.05 if not blank else None,
        "referrer": "https://booking.example.com/?a=1&b=2" if online else None,
        "is_past_patient": not online if not blank else None,
    }


def _kind(desk: Desk, rng: Random, blank: bool) -> tuple[int | None, int]:
    """An appointment type id (0 and null mean none) and its minutes."""
    roll = rng.random()
    if blank or roll < 0.03:
        return None, 60
    return (0, 30) if roll < 0.15 else rng.choice(desk.types)


def _appointment(desk: Desk, rng: Random, number: int, patient_id: int | None, days: range) -> Row:
    start, offset = _slot(desk, rng, days)
    blank = patient_id is None
    state, created, touched = _state(desk, rng, start, blank)
    provider, provider_name = rng.choice(desk.providers)
    kind, minutes = _kind(desk, rng, blank)
    unwritten = rng.random() < 0.02
    record: Record = {
        "id": number,
        "patient_id": patient_id,
        "provider_id": provider,
        "provider_name": provider_name if rng.random() < 0.97 else None,
        "start_time": stamp(start),
        "created_at": stamp(created),
        "updated_at": stamp(touched),
        "note": rng.choice(NOTES) if rng.random() < 0.3 else None,
        "end_time": stamp(start + timedelta(minutes=minutes)),
        "timezone": desk.place.tz,
        "institution_id": desk.plan.id,
        "appointment_type_id": kind,
        "location_id": desk.place.id,
        "foreign_id": None if unwritten else str(number % 10_000_000),
        "foreign_id_type": f"msg-{desk.plan.emr[1]}-DataSource-{desk.place.database}",
        "last_sync_time": None if unwritten else stamp(touched),
        "operatory_id": rng.choice(desk.operatories) if rng.random() < 0.9 else None,
        "timezone_offset": _offset_text(offset),
    }
    record |= state | _booking(rng, blank)
    if blank and number % 7 == 0:
        record |= dict.fromkeys(_OF_VISITS)
    elif number % 200 == 0:
        record["unavailable"] = None
    return make_row(KINDS["appointments"], record, desk.plan.id)


def _count(rng: Random, mean: float) -> int:
    """A skewed number of visits around `mean`."""
    return int(rng.expovariate(1.6 / mean) + mean * 0.375 + 0.5) if mean else 0


def appointment_rows(
    desks: dict[int, Desk], patients: Sequence[Row], mean: float, rng: Random, first: int
) -> Iterator[Row]:
    """Appointments of `patients` at their own locations, `mean` each; ids follow `first`."""
    ids = _Ids(first)
    for patient in patients:
        if patient.facts["bio.non_patient"]:
            continue
        days = range(-_DAYS_BACK, -200 if patient.facts["inactive"] else _DAYS_AHEAD)
        visits = max(1, _count(rng, mean)) if patient.facts["bio.new_patient"] and mean else _count(rng, mean)
        for _ in range(visits):
            desk = desks[rng.choice(patient.facts["location_ids"])]
            yield _appointment(desk, rng, ids.next(rng), patient.id, days)


def block_rows(desks: dict[int, Desk], count: int, rng: Random, first: int) -> Iterator[Row]:
    """`count` schedule blocks (`unavailable`, no patient) per location."""
    ids = _Ids(first)
    for desk in desks.values():
        for _ in range(count):
            yield _appointment(desk, rng, ids.next(rng), None, range(-_DAYS_BACK, _DAYS_AHEAD))


def arrival_rows(desks: dict[int, Desk], patients: Sequence[Row], seed: str, first: int) -> Iterator[Row]:
    """The appointment ahead that each new patient has booked: without one no list shows them.

    Each is drawn by itself, so that nothing else of the world depends on how many there are.
    """
    for index, patient in enumerate(row for row in patients if row.facts["bio.new_patient"]):
        rng, desk = Random(f"{seed}:{patient.id}"), desks[patient.facts["location_ids"][0]]
        booked = _appointment(desk, rng, first + index, patient.id, _SOON)
        while booked.facts["cancelled"]:
            booked = _appointment(desk, rng, first + index, patient.id, _SOON)
        yield booked
