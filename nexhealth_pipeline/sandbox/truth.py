"""Everything the API can show, for comparison with what a sync has stored."""

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from .access import enabled, vanished
from .listing import unlisted
from .rows import Record, Row
from .shapes import list_shape, pick
from .singles_people import address, subscriber
from .state import State

__all__ = ["truth"]

_TOLD = ("location_ids", "database", "patient_id", "location_id", "charge_id", "appointment_type_id")
_OF_A_PATIENT = frozenset({"documents", "alerts"})
"""Collections that are listed under each patient only."""
_WIDEST = {
    "providers": ("locations",),
    "operatories": ("appointment_types",),
    "charges": ("claim_payouts",),
    "working_hours": ("appointment_types",),
}


def truth(state: State, collection: str) -> list[Record]:
    """Every row of a collection that the API can show, hidden-by-default ones too, in its list's shape, by id.

    Not there are rows that no location of theirs has (finance and alerts where they are not enabled), and documents
    and alerts of a patient who is gone.

    Each is `{institution_id, record, ...}` with what only the path or the location passes tell: `location_ids` of
    patients and providers, `location_id` of document types, `patient_id` of documents, `charge_id` of claim_payouts.
    Charges hold their payouts, treatment plans their procedures. A member of staff has a line per institution;
    deleted treatment plans have none, nor appointments that are deleted without a flag. A patient whom no list shows
    now is `unlisted`: whoever reads lists alone has them only if one showed them before. Also told, as the reads by id
    show them: `patient_addresses`, `coverage_subscribers` (only where there is one), and `treatment_plan_procedures`.
    """
    with state.lock:
        derived = _DERIVED.get(collection)
        if derived:
            return list(derived(state))
        store = state.store(collection)
        rows = [row for _, row in sorted(store.rows.items())]
        rows = [row for row in rows if not vanished(collection, row)]
        if collection in _OF_A_PATIENT:
            rows = [row for row in rows if row.facts["patient_id"] in state.store("patients").rows]
        rows = [row for row in rows if enabled(state, collection, row)]
        return [line for row in rows for line in _lines(state, collection, row)]


def _lines(state: State, collection: str, row: Row) -> list[Record]:
    told = pick(row.facts, _TOLD)
    if collection == "patients" and unlisted(state, row, state.time):
        told["unlisted"] = True
    record: Any = orjson.loads(list_shape(state, collection, row, _WIDEST.get(collection, ())))
    homes = row.facts["inst_ids"] if collection == "nex_staff" else [row.institution_id]
    return [told | {"institution_id": home, "record": record} for home in homes]


def _addresses(state: State) -> Iterator[Record]:
    for number, row in sorted(state.store("patients").rows.items()):
        shown = address(row.record()["bio"])
        yield {"institution_id": row.institution_id, "patient_id": number, "record": shown}


def _subscribers(state: State) -> Iterator[Record]:
    for number, row in sorted(state.store("insurance_coverages").rows.items()):
        found = subscriber(state, row)
        if found:
            yield {"institution_id": row.institution_id, "coverage_id": number, "record": found["subscriber"]}


def _planned(state: State) -> Iterator[Record]:
    for line in truth(state, "treatment_plans"):
        for record in line["record"]["procedures"]:
            told = {"institution_id": line["institution_id"], "treatment_plan_id": line["record"]["id"]}
            yield told | {"record": record}


def _paid_out(state: State) -> Iterator[Record]:
    for line in truth(state, "charges"):
        for record in line["record"]["claim_payouts"]:
            told = {"institution_id": line["institution_id"], "charge_id": line["record"]["id"]}
            yield told | {"record": record}


_DERIVED: dict[str, Callable[[State], Iterator[Record]]] = {
    "claim_payouts": _paid_out,
    "patient_addresses": _addresses,
    "coverage_subscribers": _subscribers,
    "treatment_plan_procedures": _planned,
}
