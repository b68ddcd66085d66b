"""From a stored event to what it tells: records to load, or places where the API is to be asked again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from nexhealth_pipeline.catalog.collection import Collection, SqlType
from nexhealth_pipeline.errors import RecordRefused
from nexhealth_pipeline.sync.practice import Institution, Practices
from nexhealth_pipeline.warehouse.history import Cause
from nexhealth_pipeline.warehouse.values import CONVERTERS, says_deleted
from nexhealth_pipeline.webhooks.applying.feeds import FEEDS, Feed
from nexhealth_pipeline.webhooks.applying.pending import LONGEST_PAUSE, Mark, Outcome, StoredEvent
from nexhealth_pipeline.webhooks.applying.snapshots import Deletion, Snapshot
from nexhealth_pipeline.webhooks.events import EventMalformed, parse, why_parked

__all__ = ["Told", "read_event"]

_Record = Mapping[str, msgspec.Raw]
_record = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_value = msgspec.json.Decoder().decode
_DONE = ("", ".complete")
"""What events are called besides their names, but for those of writes that failed (API.md F.4)."""
_NULL = msgspec.Raw(b"null")
_DISCOVERED = timedelta(hours=26)
"""Within so long a sync has read a new institution, or a new name of one: the next night, and two hours for its length."""
_SHORTEST_PAUSE = timedelta(minutes=1)
_ANY_BEAT = datetime(2000, 1, 1, tzinfo=UTC)
_CLOCK = timedelta(minutes=10)
"""From beat to beat. All that wait are tried at one: thousands, each at a minute of its own, kept a run busy all day."""


@dataclass(slots=True)
class Told:
    """What an event tells about one collection of one institution."""

    event: StoredEvent
    feed: Feed
    institution: Institution
    hint: bool
    """The API is to be asked again."""
    creates: bool
    """Its records are there if it is true: it tells neither of a deletion nor of a write that failed."""
    snapshots: list[Snapshot] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    locations: set[int] = field(default_factory=set)
    """Locations of its records, where they say so."""
    unplaced: bool = False
    """Some record does not say which location's it is."""
    owners: set[int] = field(default_factory=set)
    """Rows whose own lists changed (a document's patient), where the records say so."""
    records: set[int] = field(default_factory=set)
    """Records of such lists, where they do not say whose."""
    created: set[int] = field(default_factory=set)
    """Records of such lists that an answer must hold."""
    fault: str | None = None
    """Why some of its records cannot be loaded; the others can."""

    @property
    def cause(self) -> Cause:
        """What its changes are said to come from."""
        return Cause.REPLAY if self.event.replays else Cause.WEBHOOK


def read_event(event: StoredEvent, practices: Practices) -> Told | Mark:
    """What `event` tells, or why it tells nothing that can be used."""
    if event.payload is None:
        return Mark(event.id, Outcome.PARKED, "its payload was removed")
    try:
        parsed = parse(event.payload.encode())
    except EventMalformed as malformed:
        return Mark(event.id, Outcome.PARKED, str(malformed))
    if (reason := why_parked(parsed)) is not None:
        return Mark(event.id, Outcome.PARKED, reason)
    institution = next((one for one in practices.institutions if one.subdomain == parsed.subdomain), None)
    if institution is None and parsed.subdomain in practices.left_out:
        return Mark(event.id, Outcome.SUPERSEDED, "its institution is left out by NEXHEALTH_SUBDOMAINS")
    if institution is None:
        return _unknown(event)
    happened = min(parsed.event_time or event.received_at, event.received_at)
    feed = FEEDS[parsed.base_name]
    creates = not feed.deletes and parsed.event_name.removeprefix(parsed.base_name) in _DONE
    told = Told(event, feed, institution, hint=not feed.snapshot, creates=creates)
    try:
        _read_records(told, parsed.records, happened)
    except RecordRefused as refused:
        name = told.feed.collection.name
        return Mark(event.id, Outcome.FAILED, f"{name}: {refused}", institution.id)
    return told


def _unknown(event: StoredEvent) -> Mark:
    """Of an event whose institution is not known: the next discovery may bring it, and all tries would be over by then.

    It waits as long as it has waited already, for whoever reads a practice for the first time knows it in minutes; after
    ten on to the next beat, so that thousands share a run.
    """
    now = datetime.now(UTC)
    age = abs(now - event.received_at)
    outcome = Outcome.WAITING if age < _DISCOVERED else Outcome.FAILED
    pause = min(max(age, _SHORTEST_PAUSE), LONGEST_PAUSE - _CLOCK)
    if age > _CLOCK:
        pause += (_ANY_BEAT - now - pause) % _CLOCK
    return Mark(event.id, outcome, "subdomain: no institution that has been read", pause=pause)


def _read_records(told: Told, records: list[bytes], happened: datetime) -> None:
    """Raises RecordRefused where no record that is to be loaded can be; where some can, they are."""
    if told.feed.snapshot and not records:
        raise RecordRefused("data", "holds no record")
    refused: RecordRefused | None = None
    for raw in records:
        try:
            record = _decoded(raw)
            _note_places(told, record)
            if told.feed.snapshot:
                _note_version(told, raw, record, happened)
        except RecordRefused as refusal:
            refused = refused or refusal
            told.unplaced = True
    if refused is not None:
        if not (told.snapshots or told.deletions or told.hint):
            raise refused
        told.fault = f"{told.feed.collection.name}: {refused}; its other records were loaded"


def _decoded(raw: bytes) -> _Record:
    try:
        return _record(raw)
    except (msgspec.MsgspecError, RecursionError):
        raise RecordRefused("data", "holds something that is no record") from None


def _note_places(told: Told, record: _Record) -> None:
    collection = told.feed.collection
    if (location := _number(record, "location_id")) is None:
        told.unplaced = True
    else:
        told.locations.add(location)
    if collection.per is None:
        return
    id_ = _number(record, "id")
    if (row := _number(record, collection.from_request[0].name)) is not None:
        told.owners.add(row)
    elif id_ is not None:
        told.records.add(id_)
    if id_ is not None and told.creates:
        told.created.add(id_)


def _note_version(told: Told, raw: bytes, record: _Record, happened: datetime) -> None:
    """The record as a version of its row; without a usable time the whole event is a hint."""
    collection, deletes = told.feed.collection, told.feed.deletes
    id_ = _number(record, "id")
    if id_ is None:
        raise RecordRefused("id", "missing, or no integer")
    version = _moment(record, collection.version or "")
    kept = _list_shape(collection, record)
    if deletes and collection.soft_delete is None:
        last = version or happened
        at = min(max(happened, last), told.event.received_at)
        told.deletions.append(Deletion(told.event.id, id_, at, last, msgspec.json.encode(kept)))
    if version is None:
        told.hint = told.hint or not told.deletions
        return
    deleted = _says_deleted(collection, record)
    if deletes and collection.soft_delete is not None and _moment(record, collection.soft_delete) is None:
        kept = {**kept, collection.soft_delete: msgspec.Raw(msgspec.json.encode(happened.isoformat()))}
    told.snapshots.append(
        Snapshot(
            event_id=told.event.id,
            id=id_,
            version=version,
            # A version from the future is no older than any read to come, and could never be found gone.
            read_at=min(
                max(version, happened) if deletes and collection.soft_delete else version, told.event.received_at
            ),
            deleted=collection.soft_delete is not None and (deletes or deleted),
            raw=raw if kept is record else msgspec.json.encode(kept),
            keys=frozenset(kept),
        )
    )


def _list_shape(collection: Collection, record: _Record) -> _Record:
    """The record without keys that lists lack; the record itself where it has none."""
    if record.keys().isdisjoint(collection.single_only):
        return record
    return {name: value for name, value in record.items() if name not in collection.single_only}


def _says_deleted(collection: Collection, record: _Record) -> bool:
    """Whether the record itself says that it is deleted, in a collection whose records can."""
    if collection.deleted_if is not None:
        return _converted(record, collection.deleted_if, SqlType.BOOLEAN) == "True"
    return collection.soft_delete is not None and says_deleted(_read(record, collection.soft_delete))


def _number(record: _Record, name: str) -> int | None:
    text = _converted(record, name, SqlType.BIGINT)
    return None if text is None else int(text)


def _moment(record: _Record, name: str) -> datetime | None:
    text = _converted(record, name, SqlType.TIMESTAMPTZ)
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)


def _converted(record: _Record, name: str, type_: SqlType) -> str | None:
    """The field as a value of this type; None where it is absent or none."""
    try:
        return CONVERTERS[type_](_read(record, name))
    except RecordRefused:
        return None


def _read(record: _Record, name: str) -> object:
    """The field's value; None where it is absent, null or cannot be read."""
    try:
        return _value(record.get(name, _NULL))
    except (msgspec.MsgspecError, RecursionError):
        return None
