"""Synthetic treatment: procedures of appointments and of treatment plans, and the notes about them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random

from .fees import TREATMENTS
from .kinds import KINDS
from .money import money
from .practices import PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["Clinic", "Visit", "note_rows", "treat"]

_SURFACES = ("O", "MO", "MOD", "B", "")
_PLAN_NAMES = ("Active treatment plan", "Phase 1 – urgent", "Implant, upper left", None)
_PLAN_STATES = ("proposed", "accepted", "rejected", "completed", "not_applicable")
_NOTES = (
    "Patient tolerated the procedure well.",
    "Discussed options;\npatient will call back.",
    'Reports "sharp" pain, upper left \\ cold test +',
    "Numbness until évening explained 🦷",
    "",
)
_CLOSED_DATABASE, _CLOSED = 36, 348514


@dataclass(slots=True)
class Visit:
    """An appointment at which something was done: what the ledger charges for."""

    patient: Row
    location_id: int
    provider_id: int
    day: str
    updated: str
    done: list[tuple[int, int]]
    """Ids of completed procedures, each with its place among TREATMENTS."""


@dataclass(slots=True)
class Clinic:
    """All treatment of an institution, as it is made."""

    plan: PracticePlan
    base: datetime
    rng: Random
    number: int
    procedures: list[Row] = field(default_factory=list)
    plans: list[Row] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    first_visits: dict[int, int] = field(default_factory=dict)
    """An appointment of each patient who has one."""

    def add(self, record: Record, item: int) -> int:
        """Add a procedure of the kind `item`; one in 150 has no code, and of those of a visit one lost each of three links."""
        self.number += self.rng.randrange(1, 6)
        what, rng = TREATMENTS[item], self.rng
        bare = self.number % 150 == 0
        fields: Record = {
            "id": self.number,
            "location_id": None,
            "patient_id": None,
            "provider_id": None,
            "appointment_id": None,
            "code": None if bare else what.code,
            "name": None if bare else what.name,
            "status": None,
            "updated_at": "",
            "body_site": _BODY[what.teeth] if what.teeth != 1 else _site(rng),
            "fee": money(what.fee),
            "start_date": None,
            "end_date": None,
        }
        if record.get("appointment_id") and (lost := _LOST.get(self.number % 150)):
            record = record | {lost: None}
        self.procedures.append(make_row(KINDS["procedures"], fields | record, self.plan.id))
        return self.number


_LOST = {30: "location_id", 60: "patient_id", 90: "status"}
_BODY = {
    0: {"tooth": [], "surface": ""},
    2: {"tooth": ["3", "14"], "surface": ""},
    4: {"tooth": ["UR"], "surface": ""},
}


def _site(rng: Random) -> Record:
    return {"tooth": [str(rng.randrange(1, 33))], "surface": rng.choice(_SURFACES)}


def _item(rng: Random) -> int:
    """Common treatments are common."""
    return int(len(TREATMENTS) * rng.random() ** 2)


def _attend(clinic: Clinic, patient: Row, row: Row) -> None:
    """What was, will or would have been done at one appointment."""
    rng, facts = clinic.rng, row.facts
    day, roll = facts["start_time"][:10], rng.random()
    shared: Record = {
        "location_id": facts["location_id"],
        "patient_id": patient.id,
        "provider_id": facts["provider_id"],
        "appointment_id": row.id,
        "updated_at": f"{row.updated[:-4]}{rng.randrange(1000):03d}Z",
        "start_date": day,
    }
    if facts["checked_out"]:
        count = 0 if roll < 0.42 else 1 if roll < 0.82 else 2
        visit = Visit(patient, facts["location_id"], facts["provider_id"], day, shared["updated_at"], [])
        for item in [_item(rng) for _ in range(count)]:
            visit.done.append((clinic.add(shared | {"status": "completed", "end_date": day}, item), item))
        if visit.done:
            clinic.visits.append(visit)
    elif facts["cancelled"]:
        if roll < 0.12:
            clinic.add(shared | {"status": "inactive"}, _item(rng))
    elif facts["start_time"] > stamp(clinic.base) and roll < 0.6:
        clinic.add(shared | {"status": "scheduled", "end_date": None}, _item(rng))


def _past(clinic: Clinic, days: int) -> tuple[str, str]:
    """A day within the last `days` and a stamp on it."""
    minutes = clinic.rng.randrange(10, days * 1440)
    text = stamp(clinic.base - timedelta(minutes=minutes, milliseconds=clinic.rng.randrange(60_000)))
    return text[:10], text


def _intend(clinic: Clinic, patient: Row) -> None:
    """A treatment plan: planned work and, where it is completed, work done elsewhere; one in twenty is deleted."""
    rng = clinic.rng
    state = rng.choice(_PLAN_STATES)
    bare = rng.random() < 0.05
    ids = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 4)) or not clinic.plans):
        day, updated = _past(clinic, 500)
        shared: Record = {
            "location_id": patient.facts["location_ids"][0],
            "patient_id": patient.id,
            "provider_id": None,
            "status": rng.choice(("planned", "planned", "planned", "referred", "inactive")),
            "updated_at": updated,
            "start_date": day if rng.random() < 0.3 else None,
        }
        ids.append(clinic.add(shared, _item(rng)))
    _, updated = _past(clinic, 300)
    number = 5_500_000_000 + clinic.plan.id * 100_000 + len(clinic.plans)
    owner = None if not ids and number % 2 else patient.id  # an empty one may have lost its patient
    record: Record = {"id": number, "name": None if bare else rng.choice(_PLAN_NAMES), "patient_id": owner}
    record |= {"updated_at": updated, "status": None if bare else state}
    deleted = updated if number % 20 == 7 else None
    row = make_row(KINDS["treatment_plans"], record, clinic.plan.id, procedure_ids=ids, deleted_at=deleted)
    clinic.plans.append(row)


def _remember(clinic: Clinic, patient: Row) -> None:
    """Work at the location that is closed now: listed for the institution, not readable by id (API.md C.2)."""
    day, updated = _past(clinic, 600)
    record: Record = {"location_id": _CLOSED, "patient_id": patient.id, "status": "completed"}
    clinic.add(record | {"updated_at": updated, "start_date": day, "end_date": day}, 0)


def treat(
    plan: PracticePlan, patients: Sequence[Row], appointments: Sequence[Row], base: datetime, rng: Random
) -> Clinic:
    """Procedures and treatment plans of an institution, and the visits to charge for."""
    clinic = Clinic(plan, base, rng, 6_000_000_000 + (plan.id - 11200) * 100_000_000)
    people = {row.id: row for row in patients}
    for row in appointments:
        patient = people.get(row.facts["patient_id"])
        if patient:
            clinic.first_visits.setdefault(patient.id, row.id)
            _attend(clinic, patient, row)
    for index, patient in enumerate(patients):
        if patient.facts["bio.non_patient"]:
            continue
        if rng.random() < 0.14 or not clinic.plans:
            _intend(clinic, patient)
        if patient.facts["database"] == _CLOSED_DATABASE and index % 30 == 0:
            _remember(clinic, patient)
    return clinic


def note_rows(clinic: Clinic, patients: Sequence[Row], rng: Random) -> Iterator[Row]:
    """Notes about a third of the visits, and some about no procedure."""
    number = 8_800_000 + clinic.plan.id * 1_000_000
    about = [(visit.patient, visit.done[0][0], visit.updated) for visit in clinic.visits if rng.random() < 0.33]
    loose = [(patient, None, _past(clinic, 700)[1]) for patient in patients if rng.random() < 0.06]
    for patient, procedure, moment in [*about, *loose]:
        number += rng.randrange(1, 4)
        bare = number % 60 == 0
        record: Record = {
            "id": number,
            "patient_id": None if bare else patient.id,
            "procedure_id": None if bare else procedure,
            "entered_at": None if bare else moment,
            "content": rng.choice(_NOTES),
            "signed": None if bare else rng.random() < 0.8,
            "completed": None if bare else rng.random() < 0.7,
            "updated_at": moment,
        }
        yield make_row(KINDS["clinical_notes"], record, clinic.plan.id, database=patient.facts["database"])
