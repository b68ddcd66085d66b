"""The sandbox's data and the changes that can be made to it while it runs.

Every change goes through one place, gets a new `updated_at` where the collection has one, is written to the
journal if there is one, and is returned with the record before and after.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .journal import Journal
from .papers import document_url
from .rows import KINDS, Record, Row, make_row
from .store import Store
from .times import Clock, as_time, stamp, stamp_at
from .world import World

__all__ = ["Change", "NoSuchRowError", "State"]


class NoSuchRowError(LookupError):
    """A change names a row or collection that is not there."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one change did; `before` is None for a creation, `after` for a row that vanished."""

    operation: str
    collection: str
    id: int
    institution_id: int
    at: str
    before: Record | None
    after: Record | None


class State:
    """All collections. Safe to change from any thread while the server answers."""

    def __init__(self, world: World, clock: Clock, journal: Journal | None = None) -> None:
        self.world = world
        self.lock = threading.RLock()
        self.changes: list[Change] = []
        self._clock = clock
        self._journal = journal
        self._stores = {name: Store(KINDS[name], world.rows.get(name, ())) for name in KINDS}
        self._last = ""
        for entry in journal.entries() if journal else ():
            self._replay(entry)

    def store(self, collection: str) -> Store:
        """The rows of a collection. Raises NoSuchRowError for an unknown name."""
        try:
            return self._stores[collection]
        except KeyError:
            raise NoSuchRowError(f"no collection {collection}: one of {', '.join(self._stores)}") from None

    def row(self, collection: str, row_id: int) -> Row:
        """One row. Raises NoSuchRowError."""
        row = self.store(collection).rows.get(row_id)
        if row is None:
            raise NoSuchRowError(f"no {collection} with id {row_id}")
        return row

    def ids(self, collection: str) -> list[int]:
        """All ids of a collection, ascending."""
        with self.lock:
            return sorted(self.store(collection).rows)

    def records(self, collection: str) -> list[Record]:
        """All records of a collection as stored, by id (what a list answers may add embedded objects)."""
        with self.lock:
            return [row.record() for _, row in sorted(self.store(collection).rows.items())]

    def institution(self, subdomain: str) -> Row:
        """The institution of a subdomain. Raises NoSuchRowError."""
        for row in self.store("institutions").rows.values():
            if row.facts["subdomain"] == subdomain:
                return row
        raise NoSuchRowError(f"no institution {subdomain}")

    def locations(self, institution_id: int) -> list[Row]:
        """Locations of an institution, inactive ones too, by id."""
        return sorted(self.store("locations").find("institution_id", institution_id), key=lambda row: row.id)

    def update(
        self,
        collection: str,
        row_id: int,
        fields: Mapping[str, Any],
        *,
        about: Mapping[str, Any] | None = None,
        drop: Iterable[str] = (),
        touch: bool = True,
        operation: str = "update",
    ) -> Change:
        """Set `fields` of a record (objects are merged), leave out the keys of `drop`, change hidden facts by `about`.

        `updated_at` moves to now where the collection has one, unless `fields` sets it or `touch` is false.
        """
        with self.lock:
            old = self.row(collection, row_id)
            record = _merged(old.record(), fields)
            for name in drop:
                record.pop(name, None)
            if touch and KINDS[collection].updated and "updated_at" not in fields and "updated_at" in record:
                record["updated_at"] = self._now()
            hidden = {name: old.facts[name] for name in old.facts if name not in KINDS[collection].facts}
            return self._put(operation, collection, record, old.institution_id, row_id, hidden | dict(about or {}))

    def cancel(self, appointment_id: int) -> Change:
        """Cancel an appointment."""
        fields = {"cancelled": True, "cancelled_at": self._now()}
        return self.update("appointments", appointment_id, fields, operation="cancel")

    def move(self, appointment_id: int, *, days: float = 0, start_time: str | None = None) -> Change:
        """Move an appointment by `days` or to `start_time` (as the API prints it); its length stays."""
        record = self.row("appointments", appointment_id).record()
        start, end = as_time(record["start_time"]), as_time(record["end_time"])
        new = as_time(start_time) if start_time else start + timedelta(days=days)
        fields = {"start_time": stamp(new), "end_time": stamp(new + (end - start))}
        return self.update("appointments", appointment_id, fields, operation="move")

    def delete(self, collection: str, row_id: int, *, hard: bool = False) -> Change:
        """Delete a row: `deleted_at` is set where the collection has it (unless `hard`), else the row vanishes."""
        with self.lock:
            row = self.row(collection, row_id)
            if KINDS[collection].soft_delete and not hard:
                return self.update(collection, row_id, {"deleted_at": self._now()}, operation="delete")
            self.store(collection).remove(row_id)
            self._write({"op": "remove", "collection": collection, "id": row_id})
            change = Change("delete", collection, row_id, row.institution_id, self._now(), row.record(), None)
            self.changes.append(change)
            return change

    def create(
        self, collection: str, fields: Mapping[str, Any] | None = None, *, subdomain: str, **about: Any
    ) -> Change:
        """Add a row to the institution; `about` gives what the record does not show.

        patients: `location_ids=[...]`; documents: `patient_id=`; document_types: `location_id=`;
        providers: `location_ids=[...]`. Appointments and coverages carry their ids in `fields`.
        """
        with self.lock:
            institution = self.institution(subdomain).id
            record = self._blank(collection, institution, about) | dict(fields or {})
            if collection == "patients":
                about.setdefault("database", self.row("locations", about["location_ids"][0]).facts["database"])
            missing = [name for name in KINDS[collection].about if name not in about]
            if missing:
                raise NoSuchRowError(f"a new row of {collection} needs {', '.join(missing)}")
            return self._put("create", collection, record, institution, record["id"], about)

    def counts(self) -> dict[str, int]:
        """Rows per collection."""
        with self.lock:
            return {name: len(store.rows) for name, store in self._stores.items()}

    def _blank(self, collection: str, institution: int, about: Mapping[str, Any]) -> Record:
        kind, now = KINDS[collection], self._now()
        rows = self.store(collection).rows
        record: Record = {"id": max(rows, default=0) + 1} | dict(kind.blank)
        if rows and "institution_id" in next(iter(rows.values())).record():
            record["institution_id"] = institution
        record |= {"created_at": now} if kind.created else {}
        record |= {"updated_at": now} if kind.updated else {}
        if collection == "documents":
            record["url"] = document_url(record["id"])
            record["document_type_id"] = self._first_document_type(about)
        if collection == "appointments":
            record |= {"start_time": now, "end_time": stamp(as_time(now) + timedelta(minutes=30))}
        return record

    def _first_document_type(self, about: Mapping[str, Any]) -> int:
        patient = self.row("patients", about["patient_id"])
        place = patient.facts["location_ids"][0]
        return min(row.id for row in self.store("document_types").find("location_id", place))

    def _put(
        self, operation: str, collection: str, record: Record, institution: int, row_id: int, about: Mapping[str, Any]
    ) -> Change:
        store = self.store(collection)
        old = store.rows.get(row_id)
        row = make_row(KINDS[collection], record, institution, row_id, **about)
        store.put(row)
        entry = {"op": "put", "collection": collection, "id": row_id, "institution_id": institution}
        self._write(entry | {"record": record, "about": dict(about)})
        change = Change(operation, collection, row_id, institution, self._now(), old.record() if old else None, record)
        self.changes.append(change)
        return change

    def _write(self, entry: dict[str, Any]) -> None:
        if self._journal:
            self._journal.append(entry)

    def _replay(self, entry: Mapping[str, Any]) -> None:
        store = self.store(entry["collection"])
        if entry["op"] == "remove":
            store.remove(entry["id"])
            return
        kind = KINDS[entry["collection"]]
        store.put(make_row(kind, entry["record"], entry["institution_id"], entry["id"], **entry["about"]))

    def _now(self) -> str:
        """The clock's stamp, but always later than any given before: no two changes share an `updated_at`."""
        now = stamp_at(self._clock())
        if now <= self._last:
            now = stamp(as_time(self._last) + timedelta(milliseconds=1))
        self._last = now
        return now


def _merged(record: Record, fields: Mapping[str, Any]) -> Record:
    """`fields` over `record`; an object over an object is merged one level deep."""
    merged = dict(record)
    for name, value in fields.items():
        old = merged.get(name)
        merged[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
