"""What the next sync starts from: one row of `nexhealth_sync_state` per pass of a slice.

Written in the transaction of the rows it speaks of, so a killed run goes on at the next page.
"""

from dataclasses import dataclass, replace
from datetime import datetime

import psycopg
from psycopg.rows import class_row

__all__ = ["PassKey", "PassState", "load_state", "load_states", "save_state"]


@dataclass(frozen=True, slots=True)
class PassKey:
    """Which pass of which slice."""

    collection: str
    institution_id: int
    location_id: int
    """0 where the slice is not one location's."""
    window_key: str
    """Month `YYYY-MM`, `changes` for the change read of a windowed collection, else empty."""
    pass_name: str


@dataclass(frozen=True, slots=True)
class PassState:
    """How far a pass has come, and when it was last complete (all times UTC)."""

    key: PassKey
    watermark: datetime | None = None
    """Start of the last complete pass."""
    pass_started_at: datetime | None = None
    mode: str = ""
    since: datetime | None = None
    """What the pass asks `updated_since`; None = everything."""
    filter_hash: str = ""
    cursor: str = ""
    page: int = 0
    records: int = 0
    complete_at: datetime | None = None
    last_full_at: datetime | None = None
    """Start of the last complete pass that read everything."""
    run_id: str = ""

    @property
    def unfinished(self) -> bool:
        """Whether the pass read last did not reach its end."""
        return self.pass_started_at is not None and self.pass_started_at != self.watermark

    def completed(self, now: datetime) -> "PassState":
        """The state after the pass's last page."""
        full = self.pass_started_at if self.since is None else self.last_full_at
        return replace(self, watermark=self.pass_started_at, cursor="", complete_at=now, last_full_at=full)


@dataclass(slots=True)
class _Row:
    collection: str
    institution_id: int
    location_id: int
    window_key: str
    pass_name: str
    watermark: datetime | None
    pass_started_at: datetime | None
    mode: str
    since: datetime | None
    filter_hash: str
    cursor: str
    page: int
    records: int
    complete_at: datetime | None
    last_full_at: datetime | None
    run_id: str

    def state(self) -> PassState:
        key = PassKey(self.collection, self.institution_id, self.location_id, self.window_key, self.pass_name)
        return PassState(
            key,
            self.watermark,
            self.pass_started_at,
            self.mode,
            self.since,
            self.filter_hash,
            self.cursor,
            self.page,
            self.records,
            self.complete_at,
            self.last_full_at,
            self.run_id,
        )


_SELECT = """
SELECT collection, institution_id, location_id, window_key, pass AS pass_name, watermark, pass_started_at, mode, since,
       filter_hash, cursor, page, records, complete_at, last_full_at, run_id
FROM nexhealth_sync_state
"""


def load_state(connection: psycopg.Connection, key: PassKey) -> PassState:
    """The stored state of a pass; a new one where none is stored."""
    with connection.cursor(row_factory=class_row(_Row)) as cursor:
        row = cursor.execute(
            _SELECT + "WHERE (collection, institution_id, location_id, window_key, pass) = (%s, %s, %s, %s, %s)",
            (key.collection, key.institution_id, key.location_id, key.window_key, key.pass_name),
        ).fetchone()
    return PassState(key) if row is None else row.state()


def load_states(connection: psycopg.Connection, collections: list[str]) -> dict[PassKey, PassState]:
    """All stored states of `collections` by key: for planning, not for resuming."""
    with connection.cursor(row_factory=class_row(_Row)) as cursor:
        rows = cursor.execute(_SELECT + "WHERE collection = ANY(%s)", (collections,)).fetchall()
    states = [row.state() for row in rows]
    return {state.key: state for state in states}


def save_state(connection: psycopg.Connection, state: PassState) -> None:
    """Store a pass's state; the caller commits it together with its rows."""
    key = state.key
    connection.execute(
        """
        INSERT INTO nexhealth_sync_state AS s
            (collection, institution_id, location_id, window_key, pass, watermark, pass_started_at, mode, since,
             filter_hash, cursor, page, records, complete_at, last_full_at, run_id)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (collection, institution_id, location_id, window_key, pass) DO UPDATE SET
            watermark = excluded.watermark, pass_started_at = excluded.pass_started_at, mode = excluded.mode,
            since = excluded.since, filter_hash = excluded.filter_hash, cursor = excluded.cursor,
            page = excluded.page, records = excluded.records, complete_at = excluded.complete_at,
            last_full_at = excluded.last_full_at, run_id = excluded.run_id
        """,
        (
            key.collection,
            key.institution_id,
            key.location_id,
            key.window_key,
            key.pass_name,
            state.watermark,
            state.pass_started_at,
            state.mode,
            state.since,
            state.filter_hash,
            state.cursor,
            state.page,
            state.records,
            state.complete_at,
            state.last_full_at,
            state.run_id,
        ),
    )
