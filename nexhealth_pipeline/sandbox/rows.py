"""A record as the sandbox keeps it: its JSON already encoded, beside the few facts that filters look at.

Pages are made by joining bytes, so a page of 1,000 patients costs no encoding. A change encodes one record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

__all__ = ["Kind", "Record", "Row", "make_row"]

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
    `about` the facts that the record does not show (a document's patient) and creation must give; `database`
    among them is found from the location or patient where creation does not say it. `blank` are a new record's
    fields. `keyless` records show no id, `hidden_update` ones no time of change, `hidden_delete` ones vanish from
    all answers when they are deleted, `flagged_delete` ones may stay in a list, with `deleted` true or without a word
    (API.md H). `finance` collections are served only where the vendor has enabled them.
    """

    name: str
    facts: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    blank: Mapping[str, Any] = field(default_factory=dict)
    updated: bool = True
    created: bool = True
    soft_delete: bool = False
    hidden_update: bool = False
    hidden_delete: bool = False
    flagged_delete: bool = False
    keyless: bool = False
    finance: bool = False


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
    updated = record.get("updated_at", about.get("updated_at"))
    return Row(
        record["id"] if row_id is None else row_id,
        institution_id,
        bytes(memoryview(orjson.dumps(record))),  # a copy: orjson leaves several kB of its buffer allocated behind it
        updated if isinstance(updated, str) else _ALWAYS_CHANGED if "updated_at" in record else "",
        facts | about,
    )
