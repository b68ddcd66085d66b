"""Synthetic recalls and alerts of patients."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from random import Random

from .kinds import KINDS
from .practices import PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["alert_rows", "recall_rows"]

_ALERTS = ("Pays late", "Allergic to latex ☎️", 'Wants "Dr. Q" only', "Line one\nLine two", "Needs the 2nd floor's lift")


def recall_rows(
    plan: PracticePlan,
    patients: Sequence[Row],
    types: Mapping[int, Sequence[int]],
    visits: Mapping[int, int],
    base: datetime,
    rng: Random,
) -> Iterator[Row]:
    """A recall for half of the patients; `types` are kinds by location, `visits` an appointment of a patient."""
    number = 30_000_000 + (plan.id - 11200) * 4_000_000
    for patient in patients:
        if patient.facts["bio.non_patient"] or rng.random() < 0.45:
            continue
        number += rng.randrange(1, 5)
        kinds = types[patient.facts["location_ids"][0]]
        bare = rng.random() < 0.04
        created = base - timedelta(minutes=rng.randrange(100, 600_000), milliseconds=rng.randrange(60_000))
        due = base + timedelta(days=rng.randrange(-300, 180))
        record: Record = {
            "id": number,
            "appointment_id": visits.get(patient.id) if rng.random() < 0.3 else None,
            "date_due": None if bare else due.date().isoformat(),
            "foreign_id": str(number % 1_000_000),
            "foreign_id_type": f"msg-{plan.emr[1]}-DataSource-{patient.facts['database']}",
            "recall_id": None if bare else kinds[rng.randrange(100) % len(kinds)],
            "patient_id": patient.id if rng.random() < 0.99 else None,
            "created_at": stamp(created),
            "updated_at": stamp(created + timedelta(minutes=rng.randrange(95))),
        }
        yield make_row(KINDS["patient_recalls"], record, plan.id, database=patient.facts["database"])


def alert_rows(plan: PracticePlan, patients: Sequence[Row], base: datetime, rng: Random) -> Iterator[Row]:
    """Alerts for a fifth of the patients; a third of the alerts is switched off."""
    number = 12_000_000 + (plan.id - 11200) * 1_000_000
    for index, patient in enumerate(patients):
        for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 2)) or index == 0):
            number += rng.randrange(1, 5)
            created = base - timedelta(minutes=rng.randrange(500, 900_000), milliseconds=rng.randrange(60_000))
            updated = stamp(created + timedelta(minutes=rng.randrange(400)))
            record: Record = {"id": number, "patient_id": patient.id, "note": rng.choice(_ALERTS)}
            record |= {"created_at": stamp(created), "updated_at": updated}
            if rng.random() < 0.33:
                record["disabled_at"] = updated
            yield make_row(KINDS["alerts"], record, plan.id)
