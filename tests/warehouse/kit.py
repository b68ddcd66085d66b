"""A made-up collection of every column type, and a table of it that a test loads records into."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from nexhealth_pipeline.catalog.collection import (
    Collection,
    Phi,
    Scope,
    SqlType,
    Window,
    column,
    flatten,
    money,
    nested,
)
from nexhealth_pipeline.warehouse.encode import Note, RecordEncoder
from nexhealth_pipeline.warehouse.merge import Change, Merged, Stage
from nexhealth_pipeline.warehouse.tables import ensure_tables

INSTITUTION = 7
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

GADGETS = Collection(
    name="gadgets",
    group="practice",
    doc="A made-up thing.",
    path="/gadgets",
    scope=Scope.LOCATION,
    version="updated_at",
    sensitive=(("tin",), ("box", "ssn")),
    columns=flatten(
        column("id", SqlType.BIGINT, Phi.ID, "Id."),
        column("name", SqlType.TEXT, Phi.DEMOGRAPHIC, "Name."),
        column("note", SqlType.TEXT, Phi.CLINICAL, "Free text."),
        column("location_id", SqlType.BIGINT, Phi.NONE, "Where it stands."),
        column("active", SqlType.BOOLEAN, Phi.NONE, "In use."),
        column("born", SqlType.DATE, Phi.DEMOGRAPHIC, "When it was made."),
        column("start_time", SqlType.TIMESTAMPTZ, Phi.NONE, "When it begins."),
        column("weight", SqlType.DOUBLE, Phi.NONE, "Kilograms."),
        column("tags", SqlType.JSONB, Phi.NONE, "Labels."),
        column("box", SqlType.JSONB, Phi.DEMOGRAPHIC, "What is around it."),
        money("price", "What it costs."),
        nested("maker", column("city", SqlType.TEXT, Phi.CONTACT, "City of the maker.")),
        column("updated_at", SqlType.TIMESTAMPTZ, Phi.NONE, "Version."),
    ),
    indexes=(("name",), ("location_id", "start_time")),
)
UNVERSIONED = replace(GADGETS, version=None)
WINDOWED = replace(GADGETS, window=Window("start", "end", "start_time"))
SOFT_DELETED = replace(
    GADGETS,
    soft_delete="deleted_at",
    columns=flatten(GADGETS.columns, column("deleted_at", SqlType.TIMESTAMPTZ, Phi.NONE, "Deleted, by the API.")),
)


def gadget(number: int = 1, **fields: Any) -> dict[str, Any]:
    """A valid record; a field given as `...` is left out."""
    record = {
        "id": number,
        "name": "Zoë",
        "note": "first",
        "location_id": 3,
        "active": True,
        "born": "2001-02-03",
        "start_time": "2026-02-10T09:00:00Z",
        "weight": 1.5,
        "tags": ["a", {"b": None}],
        "box": {"colour": "red"},
        "price": {"amount": "12.50", "currency": "USD"},
        "maker": {"city": "Malmö"},
        "updated_at": "2026-03-01T10:00:00Z",
    }
    return {name: value for name, value in (record | fields).items() if value is not ...}


@dataclass
class Table:
    """A collection's table on one connection (autocommit)."""

    connection: psycopg.Connection
    collection: Collection = GADGETS
    request: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        ensure_tables(self.connection, [self.collection])
        self.encoder = RecordEncoder(self.collection, INSTITUTION)
        self.notes: list[Note] = []

    def stage(self, *records: dict[str, Any] | bytes, read_at: datetime = NOON) -> Stage:
        """A stage that holds `records`."""
        stage = Stage(self.connection, self.collection, self.encoder)
        stage.open()
        self.add(stage, *records, read_at=read_at)
        return stage

    def add(self, stage: Stage, *records: dict[str, Any] | bytes, read_at: datetime = NOON) -> None:
        """More records into `stage`, as of another page."""
        raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in records]
        encoded = self.encoder.encode(raw, read_at, self.request or {})
        self.notes += encoded.notes
        stage.add(encoded)

    def load(
        self, *records: dict[str, Any] | bytes, read_at: datetime = NOON, not_before: datetime | None = None
    ) -> tuple[int, int]:
        """Stage and merge; rows (inserted, updated)."""
        merged = self.stage(*records, read_at=read_at).merge(not_before)
        return merged.inserted, merged.updated

    def classify(self, *records: dict[str, Any], read_at: datetime = NOON) -> Merged:
        """What loading would do."""
        return self.stage(*records, read_at=read_at).classify(target_exists=True)

    def changes(self, *records: dict[str, Any], read_at: datetime = NOON) -> set[Change]:
        """Places that loading would change."""
        return set(self.stage(*records, read_at=read_at).changes(None))

    def bury(self, number: int, at: datetime) -> None:
        """Mark a row as absent, as a complete read that lacked it does."""
        self.connection.execute(
            f"UPDATE {self.collection.table} SET deleted_at = %s, deleted_by = 'absence' WHERE id = %s", (at, number)
        )

    def value(self, name: str, number: int = 1) -> Any:
        """One value of one row."""
        row = self.connection.execute(f"SELECT {name} FROM {self.collection.table} WHERE id = %s", (number,)).fetchone()
        assert row is not None
        return row[0]

    def places(self) -> list[tuple[Any, ...]]:
        """Where each row version lies and who wrote it: the same before and after means nothing was written."""
        return self.connection.execute(
            f"SELECT ctid, xmin, xmax, id FROM {self.collection.table} ORDER BY id"
        ).fetchall()


def until_it_waits(connection: psycopg.Connection, other: psycopg.Connection) -> None:
    """Until the other connection waits for a lock."""
    waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
    deadline = time.monotonic() + 60
    while connection.execute(waits, (other.info.backend_pid,)).fetchone() != (True,):
        assert time.monotonic() < deadline, "it does not wait"
        connection.execute("SELECT pg_stat_clear_snapshot()")
