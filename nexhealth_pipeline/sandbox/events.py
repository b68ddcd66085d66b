"""Which change of the data makes which webhook event, and what the event's body says (API.md F.3, F.4).

Not everything has events: patients, appointments, procedures and coverages have none for a deletion, and the
collections missing below have none at all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from .kinds import KINDS
from .rows import Row
from .shapes import extend, list_shape
from .state import Change, State

__all__ = ["EVENTS", "Announcement", "body_of", "data_of", "document_extra", "events_of", "resource_of", "told_of"]

EVENTS: dict[str, tuple[str, ...]] = {
    "Adjustment": ("adjustment_created", "adjustment_updated", "adjustment_deleted", "adjustment_insertion"),
    "AdjustmentType": ("adjustment_type_created", "adjustment_type_updated"),
    "Appointment": ("appointment_insertion", "appointment_created", "appointment_updated", "appointment_requested"),
    "Charge": ("charge_created", "charge_updated", "charge_deleted"),
    "Claim": ("claim_created", "claim_updated", "claim_deleted"),
    "Document": ("document_insertion",),
    "FeeSchedule": ("fee_schedule_created", "fee_schedule_updated"),
    "FormResponse": ("form_response_insertion",),
    "Message": ("message_created", "message_updated"),
    "Onboarding": ("onboarding_created", "onboarding_updated", "onboarding_availability_ready"),
    "Patient": ("patient_created", "patient_updated"),
    "PatientInsuranceCoverage": ("patient_insurance_created", "patient_insurance_updated"),
    "Payment": ("payment_created", "payment_updated", "payment_deleted", "payment_insertion"),
    "PaymentType": ("payment_type_created", "payment_type_updated"),
    "Procedure": ("procedure_created", "procedure_updated"),
    "ProcedureCode": ("procedure_code_created", "procedure_code_updated", "procedure_code_deleted"),
    "SyncStatus": ("sync_status_read_change", "sync_status_write_change"),
    "TreatmentPlan": ("treatment_plan_created", "treatment_plan_updated", "treatment_plan_deleted"),
}
"""Resource types with their events; the pairing is by name [guess] (API.md F.3)."""

_RESOURCE_OF = {event: resource for resource, events in EVENTS.items() for event in events}

_TOLD = {
    "adjustments": ("Adjustment", "adjustment", "adjustment"),
    "adjustment_types": ("AdjustmentType", "adjustment_type", "adjustment_type"),
    "appointments": ("Appointment", "appointment", "appointment"),
    "charges": ("Charge", "charge", "charge"),
    "claims": ("Claim", "claim", "claim"),
    "documents": ("Document", "document", "document"),
    "fee_schedules": ("FeeSchedule", "fee_schedule", "fee_schedule"),
    "patients": ("Patient", "patient", "patient"),
    "insurance_coverages": ("PatientInsuranceCoverage", "patient_insurance", "patient_insurance_coverage"),
    "payments": ("Payment", "payment", "payment"),
    "payment_types": ("PaymentType", "payment_type", "payment_type"),
    "procedures": ("Procedure", "procedure", "procedure"),
    "sync_status": ("SyncStatus", "sync_status", "syncstatus"),
    "treatment_plans": ("TreatmentPlan", "treatment_plan", "treatment_plan"),
}
"""Collection -> resource type, how its events begin, and the key of `data` that holds its record."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """One event, before it is known who hears of it. `data` is encoded JSON; `event` may have a suffix."""

    event: str
    institution_id: int | None
    subdomain: str
    collection: str
    ids: tuple[int, ...]
    at: str
    data: bytes

    @property
    def base(self) -> str:
        """The event as a subscription names it: a suffix (`.complete`) is no part of that."""
        return self.event.partition(".")[0]


def resource_of(event: str) -> str:
    """The resource type of an event's base name. Raises ValueError for an unknown event."""
    try:
        return _RESOURCE_OF[event]
    except KeyError:
        raise ValueError(f"no event {event!r}: see API.md F.3") from None


def told_of(collection: str, kind: str) -> str:
    """The event of a collection that ends in `kind` (`insertion`). Raises ValueError where it has none."""
    _, prefix, _ = _TOLD.get(collection, ("", "", ""))
    event = f"{prefix}_{kind}"
    if event not in _RESOURCE_OF:
        raise ValueError(f"{collection} has no event {kind}")
    return event


def events_of(change: Change, old: Row | None, new: Row | None) -> Iterator[str]:
    """The events of one change: one as a rule, none where the vendor tells nothing of it."""
    if change.collection not in _TOLD:
        return
    if change.collection == "sync_status":
        yield from _recoveries(old, new)
        return
    resource, prefix, _ = _TOLD[change.collection]
    if change.collection == "documents":
        kind = "insertion" if change.operation == "create" else ""
    elif _is_deletion(change):
        kind = "deleted"
    else:
        kind = "created" if old is None else "updated"
    if f"{prefix}_{kind}" in EVENTS[resource]:
        yield f"{prefix}_{kind}.complete" if kind == "insertion" else f"{prefix}_{kind}"


def _is_deletion(change: Change) -> bool:
    if change.operation == "delete" or change.after is None:
        return True
    return bool(change.before and not change.before.get("deleted_at") and change.after.get("deleted_at"))


def _recoveries(old: Row | None, new: Row | None) -> Iterator[str]:
    """Only red to green is told (API.md A.4)."""
    if old is None or new is None:
        return
    for part in ("read", "write"):
        if old.facts[f"{part}_status"] == "red" and new.facts[f"{part}_status"] == "green":
            yield f"sync_status_{part}_change"


def document_extra(row: Row) -> dict[str, Any]:
    """Whose a document is: its list does not say it, but an event of an unknown patient would be of no use [guess]."""
    return {"patient_id": row.facts.get("patient_id")}


def data_of(state: State, collection: str, event: str, rows: Iterable[Row], *, owners: bool = True) -> bytes:
    """The `data` of an event as JSON: records in their list's shape, under the key the vendor uses (API.md F.4).

    With `owners` a document also tells its patient.
    """
    shapes = [
        extend(row.body, document_extra(row))
        if collection == "documents" and owners
        else _shape(state, collection, row)
        for row in rows
    ]
    key = _TOLD[collection][2] if collection in _TOLD else collection
    if collection == "patients" or event.partition(".")[0] == "appointment_created" or len(shapes) != 1:
        return b'{"%ss":[%b]}' % (key.encode(), b",".join(shapes))
    return b'{"%s":%b}' % (key.encode(), shapes[0])


def _shape(state: State, collection: str, row: Row) -> bytes:
    return list_shape(state, collection, row) if collection in KINDS else row.body


def body_of(announcement: Announcement, errors: Iterable[str] = ()) -> bytes:
    """The whole body of a delivery; `errors` are those of the attempts before [guess: as texts]."""
    head = {
        "resource_type": resource_of(announcement.base),
        "event_name": announcement.event,
        "event_time": announcement.at,
        "subdomain": announcement.subdomain or None,
    }
    return b'%b,"data":%b,"delivery_errors":%b}' % (orjson.dumps(head)[:-1], announcement.data, orjson.dumps([*errors]))
