"""The sandbox's data and the changes that can be made to it while it runs.

Every change goes through one place, gets a new `updated_at` where the collection has one, is written to the
journal if there is one, and is returned with the record before and after.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .accounts import due_figures
from .blanks import about_new, blank_record
from .endpoints import KEPT_COLLECTIONS
from .journal import Journal
from .kinds import KINDS
from .practices import LEDGER_FEATURE
from .rows import Record, Row, make_row
from .store import Store
from .times import Clock, as_time, stamp, stamp_at
from .world import World

__all__ = ["Change", "NoSuchRowError", "State"]

logger = logging.getLogger(__name__)

_RENAMED = {"descriptors": "appointment_descriptors"}
"""Collections that older state folders call otherwise."""


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
    """All collections. Safe to change from any thread while the server answers.

    `listener`, if set, is told every change with the row before and after, under the lock. `kept` are the journal's
    entries that are not about rows, `keep` adds one.
    """

    def __init__(self, world: World, clock: Clock, journal: Journal | None = None) -> None:
        self.world = world
        self.lock = threading.RLock()
        self.changes: list[Change] = []
        self.listener: Callable[[Change, Row | None, Row | None], None] | None = None
        self.kept: list[Mapping[str, Any]] = []
        self._clock = clock
        self._journal = journal
        self._stores = {name: Store(KINDS[name], world.rows.get(name, ())) for name in KINDS}
        self._last = ""
        for entry in journal.entries() if journal else ():
            self._replay(entry)

    @property
    def time(self) -> str:
        """The clock's reading as the API prints it."""
        return stamp_at(self._clock())

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
        parents: bool = True,
        operation: str = "update",
    ) -> Change:
        """Set `fields` of a record (objects are merged), leave out the keys of `drop`, change hidden facts by `about`.

        `updated_at` moves to now where the collection has one, unless `fields` sets it or `touch` is false; so does
        that of the records which hold this one (a treatment plan its procedures, a charge and a claim their
        payouts), unless `parents` is false [guess].
        """
        with self.lock:
            old, now = self.row(collection, row_id), self._now()
            record = _merged(old.record(), fields)
            for name in drop:
                record.pop(name, None)
            if touch and KINDS[collection].updated and "updated_at" not in fields and "updated_at" in record:
                record["updated_at"] = now
            hidden = _hidden(old, collection) | ({"updated_at": now} if _secret(collection, touch) else {})
            about = hidden | dict(about or {})
            change = self._put(operation, collection, record, old.institution_id, row_id, about, now)
            if touch and parents:
                self._touch_parents(collection, self.row(collection, row_id))
            return change

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

    def delete(
        self, collection: str, row_id: int, *, hard: bool = False, flagged: bool = False, listed: bool = False
    ) -> Change:
        """Delete a row: `deleted_at` is set where the collection has it (unless `hard`), else the row vanishes.

        An appointment stays, `deleted` true, where it is to be `flagged`: in the list without `cancelled` and by id
        [guess]; update it with `drop=("deleted",)` to revive it. Where it is to be `listed` it stays in that list as it
        was, as v3's records have no such key (API.md H), and by id it is not found [guess]; any update revives it. A
        treatment plan's time of deletion is not shown; update it with `about={"deleted_at": None}` to revive it. Raises
        ValueError for what takes no flag.
        """
        with self.lock:
            row, kind = self.row(collection, row_id), KINDS[collection]
            if (flagged or listed) and not kind.flagged_delete:
                raise ValueError(f"{collection} have no flag for their deletion")
            if flagged:
                return self.update(collection, row_id, {"deleted": True}, operation="delete")
            if listed:
                return self.update(collection, row_id, {}, about={"deleted": True}, operation="delete")
            if kind.soft_delete and not hard:
                return self.update(collection, row_id, {"deleted_at": self._now()}, operation="delete")
            if kind.hidden_delete and not hard:
                return self.update(collection, row_id, {}, about={"deleted_at": self._now()}, operation="delete")
            now = self._now()
            self.store(collection).remove(row_id)
            self._write({"op": "remove", "collection": collection, "id": row_id})
            change = Change("delete", collection, row_id, row.institution_id, now, row.record(), None)
            self._tell(change, row, None)
            self._touch_parents(collection, row)
            return change

    def create(
        self, collection: str, fields: Mapping[str, Any] | None = None, *, subdomain: str, **about: Any
    ) -> Change:
        """Add a row to the institution; `about` gives what the record does not show.

        patients, providers: `location_ids=[...]`; documents: `patient_id=`; document_types: `location_id=`;
        claim_payouts: `charge_id=`; treatment_plans: `procedure_ids=[...]`; appointment_descriptors:
        `appointment_type_id=`; working_hours: `label_id=`, `type_ids=[...]`; payment and adjustment types:
        `database=`, as for any row that names neither a location nor a patient. Others carry their ids in `fields`.
        """
        with self.lock:
            institution, now = self.institution(subdomain).id, self._now()
            record = blank_record(self, collection, institution, about, now) | dict(fields or {})
            about = about_new(self, collection, record, about, now)
            missing = [name for name in KINDS[collection].about if name not in about]
            if missing:
                raise NoSuchRowError(f"a new row of {collection} needs {', '.join(missing)}")
            row_id = record.get("id", max(self.store(collection).rows, default=0) + 1)
            change = self._put("create", collection, record, institution, row_id, about, now)
            self._touch_parents(collection, self.row(collection, row_id))
            return change

    def enable(self, location_id: int, capability: str = "finance", *, on: bool = True) -> Change:
        """Let a location answer for `finance` or `alerts`, or with `on=False` refuse it: 403 then (API.md K).

        Insurance plans, which are the institution's, are refused while none of its locations has finance. The
        location's rows do not change: they appear with the `updated_at` they always had.
        """
        if capability not in ("finance", "alerts"):
            raise ValueError(f"no capability {capability!r}: finance or alerts")
        with self.lock:
            facts = self.row("locations", location_id).facts
            lacks = [name for name in facts.get("lacks", ()) if name != capability] + ([] if on else [capability])
            features = [name for name in facts.get("features", ()) if name != LEDGER_FEATURE]
            about = {"lacks": lacks, "features": features + ([] if "finance" in lacks else [LEDGER_FEATURE])}
            operation = "enable" if on else "disable"
            return self.update("locations", location_id, {}, about=about, touch=False, operation=operation)

    def rebalance(self) -> list[Change]:
        """Bring claim totals and balances in line with the ledger after changes to it; returns what was not."""
        with self.lock:
            rows = {name: list(store.rows.values()) for name, store in self._stores.items()}
            made = []
            for collection, row_id, fields in due_figures(rows, self.world.base.date()):
                if row_id == 0:
                    patient = self.row("patients", fields["patient_id" if "patient_id" in fields else "guarantor_id"])
                    home = self.row("institutions", patient.institution_id).facts["subdomain"]
                    made.append(self.create(collection, fields, subdomain=home))
                elif any(self.row(collection, row_id).value(name) != value for name, value in fields.items()):
                    made.append(self.update(collection, row_id, fields, operation="rebalance"))
            return made

    def counts(self) -> dict[str, int]:
        """Rows per collection."""
        with self.lock:
            return {name: len(store.rows) for name, store in self._stores.items()}

    def _touch_parents(self, collection: str, row: Row) -> None:
        """Move `updated_at` of the records that hold this row."""
        found: list[tuple[str, int]] = []
        if collection == "procedures":
            plans = self.store("treatment_plans").find("patient_id", row.facts["patient_id"])
            found = [("treatment_plans", plan.id) for plan in plans if row.id in plan.facts["procedure_ids"]]
        elif collection == "claim_payouts":
            found = [("charges", row.facts["charge_id"]), ("claims", row.facts["claim_id"])]
        for name, number in found:
            if number in self.store(name).rows:
                self.update(name, number, {})

    def _put(
        self,
        operation: str,
        collection: str,
        record: Record,
        institution: int,
        row_id: int,
        about: Mapping[str, Any],
        now: str,
    ) -> Change:
        store = self.store(collection)
        old = store.rows.get(row_id)
        row = make_row(KINDS[collection], record, institution, row_id, **about)
        store.put(row)
        entry = {"op": "put", "collection": collection, "id": row_id, "institution_id": institution}
        self._write(entry | {"record": record, "about": dict(about)})
        change = Change(operation, collection, row_id, institution, now, old.record() if old else None, record)
        self._tell(change, old, row)
        return change

    def _tell(self, change: Change, old: Row | None, new: Row | None) -> None:
        self.changes.append(change)
        if self.listener:
            self.listener(change, old, new)

    def keep(self, entry: dict[str, Any]) -> None:
        """Write an entry that is not about a row to the journal, if there is one."""
        self._write(entry)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._journal:
            self._journal.append(entry | {"at": self._last})

    def _replay(self, entry: Mapping[str, Any]) -> None:
        self._last = max(self._last, entry.get("at", ""))  # many changes at once run ahead of the clock
        name = _RENAMED.get(entry["collection"], entry["collection"])
        if name in KEPT_COLLECTIONS:
            self.kept.append(entry)
            return
        if name not in self._stores:
            logger.warning("a kept change is of an unknown collection", extra={"nexhealth": {"collection": name}})
            return
        store, row_id = self.store(name), entry["id"]
        if entry["op"] == "remove":
            store.remove(row_id)
            return
        old = store.rows.get(row_id)
        about = (_hidden(old, name) if old else {}) | entry["about"]  # an older sandbox knew fewer facts
        store.put(make_row(KINDS[name], entry["record"], entry["institution_id"], row_id, **about))

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


def _hidden(row: Row, collection: str) -> Record:
    """The facts of a row that its record does not show."""
    return {name: value for name, value in row.facts.items() if name not in KINDS[collection].facts}


def _secret(collection: str, touch: bool) -> bool:
    """Whether a change moves a time that the record does not show."""
    return touch and KINDS[collection].hidden_update
