"""A record as the sandbox keeps it: its JSON already encoded, beside the few facts that filters look at.

Pages are made by joining bytes, so a page of 1,000 patients costs no encoding. A change encodes one record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

__all__ = ["KINDS", "Kind", "Record", "Row", "make_row"]

Record = dict[str, Any]
"""One decoded JSON object."""


@dataclass(slots=True)
class Row:
    """One record of one collection."""

    id: int
    institution_id: int
    body: bytes
    updated: str
    facts: Record

    def record(self) -> Record:
        """The record as an API client reads it, decoded afresh (safe to change)."""
        decoded: Record = orjson.loads(self.body)
        return decoded

    def value(self, name: str) -> Any:
        """A field or fact; `bio.city` reaches into an object."""
        if name in self.facts:
            return self.facts[name]
        return _dig(self.record(), name)


@dataclass(frozen=True, slots=True)
class Kind:
    """What the sandbox has to know of a collection besides its rows.

    `facts` are fields copied beside the body, `indexes` the facts by which rows are looked up,
    `about` the facts that the record does not show (a document's patient) and creation must give.
    """

    name: str
    facts: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    blank: Mapping[str, Any] = field(default_factory=dict)
    updated: bool = True
    created: bool = True
    soft_delete: bool = False


_ALWAYS_CHANGED = "~"
"""Sorts behind every time: a row whose `updated_at` a test has broken is never hidden by `updated_since`."""


def _dig(record: Record, name: str) -> Any:
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def make_row(kind: Kind, record: Record, institution_id: int, row_id: int | None = None, **about: Any) -> Row:
    """Encode `record`; `about` are facts that the record does not show."""
    facts = {name: _dig(record, name) for name in kind.facts}
    updated = record.get("updated_at")
    return Row(
        record["id"] if row_id is None else row_id,
        institution_id,
        bytes(memoryview(orjson.dumps(record))),  # a copy: orjson leaves several kB of its buffer allocated behind it
        updated if isinstance(updated, str) else _ALWAYS_CHANGED if "updated_at" in record else "",
        facts | about,
    )


def _nulls(*names: str) -> Record:
    return dict.fromkeys(names)


_PERSON = _nulls("email", "middle_name", "foreign_id", "last_sync_time") | {
    "first_name": "New",
    "last_name": "Person",
    "name": "New Person",
    "foreign_id_type": "none",
    "bio": {},
    "inactive": False,
}

_KINDS = (
    Kind("institutions", facts=("subdomain",), blank={"name": "New", "emrs": []}),
    Kind("locations", facts=("inactive", "foreign_id"), about=("database",), blank={"name": "New", "inactive": False}),
    Kind("providers", facts=("inactive",), about=("location_ids",), blank=_PERSON | _nulls("display_name", "npi")),
    Kind("operatories", indexes=("location_id",), facts=("location_id",), blank={"name": "New", "active": True}),
    Kind(
        "appointment_types",
        facts=("parent_type", "parent_id"),
        blank={"name": "New", "minutes": 30, "bookable_online": False, "parent_type": "Institution"},
        updated=False,
        created=False,
    ),
    Kind(
        "descriptors",
        facts=("location_id", "active"),
        indexes=("appointment_type_id",),
        about=("appointment_type_id",),
    ),
    Kind(
        "patients",
        facts=("inactive", "bio.new_patient", "bio.non_patient", "guarantor_id"),
        indexes=("database", "guarantor_id"),
        about=("location_ids", "database"),
        blank=_PERSON
        | _nulls("guarantor_id", "billing_type", "chart_id", "preferred_language", "provider_id")
        | {"hipaa": {}},
    ),
    Kind(
        "appointments",
        facts=("location_id", "patient_id", "start_time", "cancelled", "unavailable"),
        indexes=("location_id", "patient_id"),
        blank=_nulls(
            *(
                [
                    "patient_id",
                    "provider_id",
                    "provider_name",
                    "confirmed",
                    "patient_missed",
                    "note",
                    "appointment_type_id",
                    "checkin_at",
                ]
            ),
            *(
                [
                    "location_id",
                    "foreign_id",
                    "misc",
                    "last_sync_time",
                    "patient_confirmed",
                    "created_by_user_id",
                    "is_guardian",
                ]
            ),
            *(["patient_confirmed_at", "cancelled_at", "is_new_clients_patient", "confirmed_at", "sooner_if_possible"]),
            *(["operatory_id", "checked_out", "checked_out_at", "referrer", "is_past_patient"]),
        )
        | {
            "unavailable": False,
            "cancelled": False,
            "timezone": "UTC",
            "foreign_id_type": "none",
            "timezone_offset": "+0:00",
        },
    ),
    Kind(
        "document_types",
        facts=("active",),
        indexes=("location_id",),
        about=("location_id",),
        blank={"name": "New", "active": True},
        updated=False,
        created=False,
    ),
    Kind(
        "documents",
        indexes=("patient_id",),
        about=("patient_id",),
        blank={"filename": "new.pdf", "type": "application/pdf", "document_type_id": 0},
        updated=False,
    ),
    Kind(
        "insurance_plans",
        blank=_nulls(
            *(
                [
                    "payer_id",
                    "name",
                    "address",
                    "address2",
                    "city",
                    "state",
                    "zip_code",
                    "country_code",
                    "group_num",
                    "employer_name",
                ]
            ),
            *(["foreign_id", "deleted_at"]),
        ),
        facts=("deleted_at",),
        created=False,
        soft_delete=True,
    ),
    Kind(
        "insurance_coverages",
        facts=("patient_id", "plan_id", "active"),
        indexes=("patient_id", "plan_id"),
        blank=_nulls("patient_id", "priority", "plan_id", "subscriber_num", "effective_date", "expiration_date")
        | {"subscription_relation": "self", "insurance_type": "dental", "active": True},
        created=False,
    ),
    Kind("sync_status", facts=("read_status", "write_status"), about=("location_ids",), updated=False, created=False),
)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _KINDS}
"""Every collection of the sandbox by name."""
