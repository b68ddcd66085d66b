"""What a webhook's body says: which event of which practice, about which records.

NexHealth documents the envelope (`resource_type`, `event_name`, `event_time`, `subdomain`, `data`,
`delivery_errors`) but not the shape of `data` for each event, and handlers in the field met others
(API.md F.4). So the record is looked for under every key the catalog declares, in `data` itself, and in
the only member of it that by its name and its fields can be one. Which resource type an event is of is not documented either (F.3): its
name tells what it is about. Records stay the bytes received: their meaning is the loader's business.

There is no event id. What tells events apart is their name, practice, time and `data`; a repeated
delivery may differ in `delivery_errors`, and is still the same event.
"""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import msgspec

from nexhealth_pipeline.catalog.collection import Collection, Events
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.webhooks.moment import moment_of

__all__ = ["EVENTS_CHANNEL", "Event", "EventMalformed", "dedup_hash", "parse", "why_parked"]

EVENTS_CHANNEL = "nexhealth_webhook_events"
"""Notified where an event has been stored that waits to be applied."""

_T = TypeVar("_T")
_NULL = msgspec.Raw(b"null")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,99}")
"""What an event or a resource type is called; anything else is not repeated in a log or a column."""
_SUBDOMAIN = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_ID = re.compile(r"[0-9]{1,19}")
_LARGEST_ID = 2**63 - 1
_NO_NAME = "(no name)"
_DECLARED: dict[str, Events] = {name: one.events for one in DECLARED if one.events for name in one.events.names}


def _called(collection: Collection) -> set[str]:
    """What a record of the collection may be called where it stands in another object."""
    keys = collection.events.keys if collection.events else ()
    links = (column for one in DECLARED for column, target in one.references if target == collection.name)
    return {collection.name, collection.name.removesuffix("s"), *keys, *(link.removesuffix("_id") for link in links)}


@dataclass(frozen=True, slots=True)
class _Unexpected:
    """By what a record is known that stands in `data` under a key that nobody declared."""

    beside: frozenset[str]
    """Members that are something else, such as a charge's patient, or the record as it was before."""
    version: str
    links: frozenset[str]
    """Fields that point to other records: who did it or where has an id and a time as well, and none of these."""


def _unexpected(collection: Collection) -> _Unexpected | None:
    if collection.version is None:
        return None
    words = {word for other in DECLARED for word in (*_called(other), *other.single_only)}
    return _Unexpected(
        # A patient's guarantor is another patient.
        frozenset((words | _BEFORE) - _called(collection) | {*collection.single_only}),
        collection.version,
        frozenset(column for column, _ in collection.references),
    )


_BEFORE = {"previous", "before", "old"}
_DELETED = "_deleted"
_UNEXPECTED: dict[str, _Unexpected] = {
    name: known
    for one in DECLARED
    if one.events and (known := _unexpected(one)) is not None
    for name in one.events.snapshots
    if not name.endswith(_DELETED)
}
"""By events that hold the record, those that mark one as deleted excepted: whoever deleted it has an id, too."""


class EventMalformed(ValueError):
    """The body is no event. Says which field breaks which rule, and carries no part of the body."""


@dataclass(frozen=True, slots=True)
class Event:
    """One delivered event."""

    event_name: str
    """As delivered, with a suffix such as `.complete`."""
    base_name: str
    """As subscribed to, without the suffix."""
    resource_type: str
    """The catalog's for this event; of one that no collection declares as delivered, or ""."""
    other_type: str
    """The one delivered, where it is another word than the catalog's; else ""."""
    subdomain: str
    """The institution's; "" where the body has none."""
    event_time: datetime | None
    """When it happened (UTC), None where the body does not say so readably."""
    records: list[bytes] = field(repr=False)
    """Raw JSON of each record in `data`, as received; empty where `data` is empty or absent."""
    resource_ids: tuple[int, ...]
    """Ids of the records that have a usable one, in their order."""
    identity: tuple[bytes, ...] = field(repr=False)
    """What tells it apart from other events: raw bytes of event name, subdomain, event time and `data`."""


class _Wire(msgspec.Struct):
    """The envelope, unread: an oddity in one field must not cost the others."""

    event_name: msgspec.Raw = _NULL
    event: msgspec.Raw = _NULL
    resource_type: msgspec.Raw = _NULL
    event_time: msgspec.Raw = _NULL
    subdomain: msgspec.Raw = _NULL
    data: msgspec.Raw = _NULL


class _Identified(msgspec.Struct):
    id: msgspec.Raw = _NULL


_wire = msgspec.json.Decoder(_Wire)
_any = msgspec.json.Decoder()
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list = msgspec.json.Decoder(list[msgspec.Raw])
_identified = msgspec.json.Decoder(_Identified)


def parse(body: bytes) -> Event:
    """The event in `body`. Raises EventMalformed where there is none: no JSON object, no event name, no readable data.

    An event that no collection declares is parsed as well; :func:`why_parked` tells.
    """
    try:
        body.decode()
        wire = _wire.decode(body)
    except UnicodeDecodeError:
        raise EventMalformed("body: not UTF-8") from None
    except (msgspec.MsgspecError, RecursionError):
        raise EventMalformed("body: not a JSON object") from None
    name = _text(wire.event_name) or _text(wire.event)
    if not _NAME.fullmatch(name):
        raise EventMalformed("event_name: missing, or not a name")
    base_name = name.split(".", 1)[0]
    declared = _DECLARED.get(base_name)
    records = _records(bytes(wire.data), declared, _UNEXPECTED.get(base_name))
    resource_type, other_type = _resource_types(wire.resource_type, declared)
    return Event(
        event_name=name,
        base_name=base_name,
        resource_type=resource_type,
        other_type=other_type,
        subdomain=_subdomain(wire.subdomain),
        event_time=moment_of(_text(wire.event_time)),
        records=records,
        resource_ids=tuple(one for record in records if (one := _id_of(record)) is not None),
        identity=(name.encode(), bytes(wire.subdomain), bytes(wire.event_time), bytes(wire.data)),
    )


def dedup_hash(event: Event | None, body: bytes) -> bytes:
    """SHA-256 over what tells `event` apart; over the body where that is no event (None)."""
    if event is None:
        return hashlib.sha256(body).digest()
    digest = hashlib.sha256(b"event")
    for part in event.identity:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def why_parked(event: Event) -> str | None:
    """Why `event` can never be applied, whatever the tables hold; None where it may be."""
    if event.base_name not in _DECLARED:
        return f"no collection is fed by event {event.event_name} of resource type {event.resource_type or '(none)'}"
    return None if event.subdomain else "subdomain: missing, or not a name"


def _plain(name: str) -> str:
    """`PatientInsuranceCoverage` and `patient_insurance_coverage` are one resource type."""
    return name.replace("_", "").lower()


def _text(raw: msgspec.Raw) -> str:
    """A JSON text or number as text, "" for anything else."""
    try:
        value = _any.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return ""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _resource_types(raw: msgspec.Raw, declared: Events | None) -> tuple[str, str]:
    """An event's resource type, and the one delivered where it is another word."""
    text = _text(raw)
    delivered = text if not text or _NAME.fullmatch(text) else _NO_NAME
    if declared is None:
        return delivered, ""
    other = delivered and _plain(delivered) != _plain(declared.resource_type)
    return declared.resource_type, delivered if other else ""


def _subdomain(raw: msgspec.Raw) -> str:
    name = _text(raw)
    return name if _SUBDOMAIN.fullmatch(name) else ""


def _records(data: bytes, declared: Events | None, unexpected: _Unexpected | None) -> list[bytes]:
    """The records in `data`: a list, under one of the declared keys, or `data` itself.

    Or, where that has no id, what its only member holds that by its name and its fields can be nothing else.
    """
    if data == b"null":
        return []
    if data[:1] == b"[":
        return _elements(data)
    if data[:1] != b"{":
        raise EventMalformed("data: neither an object nor a list")
    members = _decode(_keys, data)
    for key in declared.keys if declared is not None else ():
        # `user` or `patients` may also be a field of the record: a record never is text, a number or null.
        if (value := bytes(members.get(key, b""))[:1]) == b"{":
            return [bytes(members[key])]
        if value == b"[":
            return _elements(bytes(members[key]))
    if unexpected is not None and "id" not in members:
        others = (bytes(one) for name, one in members.items() if name not in unexpected.beside)
        held = [found for one in others if (found := _identified_in(one))]
        if len(held) == 1 and all(_is_one(record, unexpected) for record in held[0]):
            return held[0]
    return [data] if members else []


def _identified_in(value: bytes) -> list[bytes]:
    """The object or the objects that `value` is, where each has a usable id."""
    try:
        records = _elements(value) if value[:1] == b"[" else [value]
    except EventMalformed:
        return []
    return records if all(_id_of(one) is not None for one in records) else []


def _is_one(record: bytes, unexpected: _Unexpected) -> bool:
    """Whether a record has the version and one link at least of the collection's."""
    try:
        fields = _decode(_keys, record)
    except EventMalformed:
        return False
    return unexpected.version in fields and not unexpected.links.isdisjoint(fields)


def _elements(raw: bytes) -> list[bytes]:
    return [bytes(one) for one in _decode(_list, raw)]


def _decode(decoder: "msgspec.json.Decoder[_T]", raw: bytes) -> _T:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        raise EventMalformed("data: not readable as JSON") from None


def _id_of(record: bytes) -> int | None:
    """The record's `id` (a number, or digits in a text), None where it has no usable one."""
    try:
        text = _text(_identified.decode(record).id)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return int(text) if _ID.fullmatch(text) and int(text) <= _LARGEST_ID else None
