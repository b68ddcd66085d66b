"""A whole synthetic world from a seed, a base time and two sizes; the same arguments give the same bytes.

Nothing in it was changed later than `base`, so every change made while the sandbox runs is newer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from random import Random

from .accounts import balance_rows
from .care import alert_rows, recall_rows
from .clinic import Clinic, note_rows, treat
from .fees import fee_rows
from .hours import hour_rows, label_rows, recall_type_rows, staff_rows
from .insurance import coverage_rows, plan_rows
from .kinds import KINDS
from .ledger import book
from .papers import document_rows
from .people import patient_rows
from .practices import PRACTICES, PracticePlan, practice_rows
from .rows import Row
from .schedule import Desk, appointment_rows, arrival_rows, block_rows

__all__ = ["DEFAULT_APPOINTMENTS", "DEFAULT_PATIENTS", "DEFAULT_SEED", "World", "build_world"]

DEFAULT_SEED = 1
"""Seed of the world that `nexhealth sandbox` serves."""

DEFAULT_PATIENTS = 2000
"""Patients of the default world, both institutions together."""

DEFAULT_APPOINTMENTS = 7.8
"""Mean number of appointments per patient of the default world."""

_FIRST_APPOINTMENT = 1_599_000_000


@dataclass(frozen=True, slots=True)
class World:
    """Rows by collection, ready to be put into a State, and what they were made from."""

    seed: int
    base: datetime
    patients: int
    appointments_per_patient: float
    rows: Mapping[str, list[Row]]


def _desks(plan: PracticePlan, base: datetime, made: dict[str, list[Row]]) -> dict[int, Desk]:
    desks = {}
    for place in plan.active:
        providers = [row for row in made["providers"] if place.id in row.facts["location_ids"]]
        owners = {place.id, plan.id}
        types = [row.record() for row in made["appointment_types"] if row.facts["parent_id"] in owners]
        desks[place.id] = Desk(
            plan,
            place,
            base,
            [(row.id, row.record()["name"]) for row in providers],
            [row.id for row in made["operatories"] if row.facts["location_id"] == place.id],
            [(kind["id"], kind["minutes"]) for kind in types],
        )
    return desks


def _first(plan: PracticePlan) -> int:
    """Where an institution's appointment ids begin."""
    return _FIRST_APPOINTMENT + (plan.id - 11200) * 50_000_000


def _by_location(rows: Iterable[Row]) -> dict[int, list[int]]:
    ids: dict[int, list[int]] = {}
    for row in rows:
        ids.setdefault(row.facts["location_id"], []).append(row.id)
    return ids


def _covers(coverages: Iterable[Row]) -> dict[int, list[int]]:
    """The insurance plans of each patient's active coverages, the primary first."""
    covers: dict[int, list[int]] = {}
    for row in coverages:
        if row.facts["active"] and row.facts["patient_id"] and row.facts["plan_id"]:
            covers.setdefault(row.facts["patient_id"], []).append(row.facts["plan_id"])
    return covers


_Rng = Callable[[str], Random]


def _people(plan: PracticePlan, base: datetime, total: int, mean: float, made: dict[str, list[Row]], rng: _Rng) -> None:
    """Patients with their appointments, coverages and documents."""
    people = [row for _, row in patient_rows(plan, base, rng("patients"), made["providers"], total)]
    plans = plan_rows(plan, base, rng("plans"), max(11, min(60, total // 30)))
    desks = _desks(plan, base, made)
    first = _first(plan)
    blocks = round(total * mean / 500) if mean else 0
    made |= {
        "patients": people,
        "appointments": [
            *appointment_rows(desks, people, mean, rng("appointments"), first),
            *block_rows(desks, blocks, rng("blocks"), first + 45_000_000),
        ],
        "insurance_plans": plans,
        "insurance_coverages": list(coverage_rows(plan, people, plans, base, rng("coverages"))),
        "documents": list(document_rows(plan, people, _by_location(made["document_types"]), base, rng("documents"))),
    }


def _hours(plan: PracticePlan, base: datetime, made: dict[str, list[Row]], rng: _Rng) -> None:
    """Staff, opening hours and kinds of recalls."""
    labels = label_rows(plan)
    made |= {
        "nex_staff": staff_rows(plan, base, rng("staff")),
        "working_hour_labels": labels,
        "working_hours": hour_rows(plan, base, labels, made),
        "recall_types": recall_type_rows(plan, base),
    }


def _care(plan: PracticePlan, base: datetime, made: dict[str, list[Row]], rng: _Rng) -> Clinic:
    """Procedures, treatment plans, notes, recalls and alerts."""
    people = made["patients"]
    clinic = treat(plan, people, made["appointments"], base, rng("procedures"))
    kinds = _by_location(made["recall_types"])
    made |= {
        "procedures": clinic.procedures,
        "treatment_plans": clinic.plans,
        "clinical_notes": list(note_rows(clinic, people, rng("notes"))),
        "patient_recalls": list(recall_rows(plan, people, kinds, clinic.first_visits, base, rng("recalls"))),
        "alerts": list(alert_rows(plan, people, base, rng("alerts"))) if plan.alerts else [],
    }
    return clinic


def _money(plan: PracticePlan, base: datetime, clinic: Clinic, made: dict[str, list[Row]], rng: _Rng) -> None:
    """Fees, the ledger, and the balances that follow from it."""
    fees, prices = fee_rows(plan, base, rng("fees"))
    for name, row in fees:
        made.setdefault(name, []).append(row)
    made |= book(clinic, prices, _covers(made["insurance_coverages"]), rng("ledger"))
    made |= balance_rows(plan, made, base)


def _practice(plan: PracticePlan, seed: int, base: datetime, total: int, mean: float) -> dict[str, list[Row]]:
    def rng(part: str) -> Random:
        return Random(
            f"{seed}:{plan.subdomain}:{part}"
        )  # one stream per part: a change of one size moves only its part

    made = practice_rows(plan, base, rng("practice"))
    _hours(plan, base, made, rng)
    _people(plan, base, total, mean, made, rng)
    clinic = _care(plan, base, made, rng)
    # Behind the care, which they need not have yet: what was made of the other appointments stays as it is.
    made["appointments"] += arrival_rows(
        _desks(plan, base, made), made["patients"], f"{seed}:{plan.subdomain}:arrivals", _first(plan) + 46_000_000
    )
    _money(plan, base, clinic, made, rng)
    return made


def build_world(
    seed: int = DEFAULT_SEED,
    *,
    base: datetime,
    patients: int = DEFAULT_PATIENTS,
    appointments_per_patient: float = DEFAULT_APPOINTMENTS,
) -> World:
    """Build both institutions. `base` (aware, UTC) is "now" of the world; sizes are of all locations together."""
    rows: dict[str, list[Row]] = {name: [] for name in KINDS}
    for plan in PRACTICES:
        for name, made in _practice(plan, seed, base, patients, appointments_per_patient).items():
            rows[name].extend(made)
    return World(seed, base, patients, appointments_per_patient, rows)
