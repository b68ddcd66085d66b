"""What a new row starts with, and the facts about it that creation need not say."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .kinds import KINDS
from .papers import document_url
from .rows import Record
from .times import as_time, stamp

if TYPE_CHECKING:
    from .state import State

__all__ = ["about_new", "blank_record"]

_OPTIONAL: Mapping[str, Callable[[], Any]] = {
    "type_ids": list,
    "procedure_ids": list,
    "label_id": int,
    "fee_id": int,
    "appointment_type_id": int,
    "active": lambda: True,
}
"""Hidden facts with a value that says nothing."""


def blank_record(state: "State", collection: str, institution: int, about: Mapping[str, Any], now: str) -> Record:
    """A record with every key of the others, made `now`. Raises NoSuchRowError for a document of nobody."""
    kind, rows = KINDS[collection], state.store(collection).rows
    record: Record = {} if kind.keyless else {"id": max(rows, default=0) + 1}
    record |= kind.blank
    if rows and "institution_id" in next(iter(rows.values())).record():
        record["institution_id"] = institution
    record |= {"created_at": now} if kind.created else {}
    record |= {"updated_at": now} if kind.updated else {}
    if collection == "documents":
        record["url"] = document_url(record["id"])
        record["document_type_id"] = _first_document_type(state, about)
    if collection == "appointments":
        record |= {"start_time": now, "end_time": stamp(as_time(now) + timedelta(minutes=30))}
    if collection == "nex_staff":
        record["inst_ids"] = [institution]
    return record


def about_new(state: "State", collection: str, record: Record, about: Mapping[str, Any], now: str) -> Record:
    """`about` with what can be found or left open: the EHR database, an empty list of procedures and the like."""
    kind, found = KINDS[collection], dict(about)
    for name in kind.about:
        if name in _OPTIONAL:
            found.setdefault(name, _OPTIONAL[name]())
    if "database" in kind.about and "database" not in found:
        found |= _database(state, record | found)
    if kind.hidden_update:
        found.setdefault("updated_at", now)
    return found


def _database(state: "State", told: Mapping[str, Any]) -> Record:
    """The EHR database of the location or person a row names; nothing where it names none."""
    places = [*(told.get("location_ids") or []), told.get("location_id")]
    for number in places:
        if number:
            return {"database": state.row("locations", number).facts["database"]}
    for name in ("patient_id", "guarantor_id"):
        if told.get(name):
            return {"database": state.row("patients", told[name]).facts["database"]}
    return {}


def _first_document_type(state: "State", about: Mapping[str, Any]) -> int:
    patient = state.row("patients", about["patient_id"])
    place = patient.facts["location_ids"][0]
    return min(row.id for row in state.store("document_types").find("location_id", place))
