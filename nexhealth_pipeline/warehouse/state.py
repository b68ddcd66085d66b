"""What the next sync starts from: one row of `nexhealth_sync_state` per pass of a slice.

Written in the transaction of the rows it speaks of, so a killed run goes on at the next page.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, fields, replace
from datetime import datetime
from sys import intern
from typing import Any

import psycopg

__all__ = [
    "PassKey",
    "PassState",
    "database_time",
    "least",
    "load_elsewhere",
    "load_fresh",
    "load_state",
    "load_watermarks",
    "save_state",
    "take_over",
]


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
    """Start of the last complete pass, in the API's time."""
    pass_started_at: datetime | None = None
    begun_at: datetime | None = None
    """Start of the pass in the database's time, which is what other processes' times are compared with."""
    mode: str = ""
    since: datetime | None = None
    """What the pass asks `updated_since`; None = everything."""
    filter_hash: str = ""
    cursor: str = ""
    page: int = 0
    page_hashes: list[str] = field(default_factory=list)
    """Fingerprints of the pages read last, so that a repeated one is known again after a restart."""
    records: int = 0
    total: int | None = None
    """What the API itself counted; None where it gives no count, or the pass asked for changes only."""
    absent_fields: list[str] | None = None
    """Declared fields that no record had since the last whole read began (of lists under rows: had, the last one that was
    made in one go); None = there was no record."""
    complete_at: datetime | None = None
    """End of the last complete pass, in the API's time, as that of the rows which are compared with it."""
    last_full_at: datetime | None = None
    """Start of the last complete pass that read everything."""
    fresh_at: datetime | None = None
    """`begun_at` of the last complete pass."""
    full_at: datetime | None = None
    """`begun_at` of the last complete pass that read everything."""
    run_id: str = ""

    @property
    def unfinished(self) -> bool:
        """Whether the pass read last did not reach its end."""
        return self.pass_started_at is not None and self.pass_started_at != self.watermark

    def behind(self, others: "Iterable[PassState]") -> "PassState":
        """The state of a pass that is to ask from now on for what those of `others` asked for as well.

        From where the one least far had come; whole, where one was never complete. None is gone on with: it would lack
        what the others list before its cursor.
        """
        states = [self, *others]
        watermark = least(one.watermark for one in states)
        return replace(
            self,
            watermark=watermark,
            pass_started_at=watermark,
            cursor="",
            page_hashes=[],
            since=least(one.since for one in states),
            last_full_at=least(one.last_full_at for one in states),
            fresh_at=least(one.fresh_at for one in states),
            full_at=least(one.full_at for one in states),
        )

    def completed(self, now: datetime) -> "PassState":
        """The state after the pass's last page."""
        done = replace(
            self, watermark=self.pass_started_at, cursor="", page_hashes=[], complete_at=now, fresh_at=self.begun_at
        )
        return replace(done, last_full_at=self.pass_started_at, full_at=self.begun_at) if self.since is None else done


_KEY_COLUMNS = {
    "collection": "collection",
    "institution_id": "institution_id",
    "location_id": "location_id",
    "window_key": "window_key",
    "pass_name": "pass",
}
"""Fields of PassKey -> columns."""
_FIELDS = tuple(one.name for one in fields(PassState) if one.name != "key")
_COLUMNS = (*_KEY_COLUMNS.values(), *_FIELDS)
_BY_OUR_CLOCK = ("begun_at", "fresh_at", "full_at")
"""Times of the database. One that has not come yet is of a clock that was ahead then, and says nothing: taken at its word,
nothing would be read again until it has come."""
_READ = (
    f"CASE WHEN {name} <= clock_timestamp() THEN {name} END" if name in _BY_OUR_CLOCK else name for name in _COLUMNS
)
_SELECT = f"SELECT {', '.join(_READ)} FROM nexhealth_sync_state "  # noqa: S608 - names of dataclass fields
_UPSERT = (
    f"INSERT INTO nexhealth_sync_state ({', '.join(_COLUMNS)}) VALUES ({', '.join(['%s'] * len(_COLUMNS))})"  # noqa: S608 - names of columns
    f" ON CONFLICT ({', '.join(_KEY_COLUMNS.values())}) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _FIELDS)
)


def _state(row: tuple[Any, ...]) -> PassState:
    return PassState(PassKey(*row[: len(_KEY_COLUMNS)]), *row[len(_KEY_COLUMNS) :])


def load_state(connection: psycopg.Connection, key: PassKey) -> PassState:
    """The stored state of a pass; a new one where none is stored."""
    row = connection.execute(
        _SELECT + "WHERE (collection, institution_id, location_id, window_key, pass) = (%s, %s, %s, %s, %s)",
        astuple(key),
    ).fetchone()
    return PassState(key) if row is None else _state(row)


def load_elsewhere(connection: psycopg.Connection, key: PassKey, locations: Iterable[int]) -> list[PassState]:
    """What is stored of the same pass at others of these locations."""
    others = [one for one in locations if one != key.location_id]
    if not others:
        return []
    rows = connection.execute(
        _SELECT + "WHERE (collection, institution_id, window_key, pass) = (%s, %s, %s, %s) AND location_id = ANY(%s)"
        " ORDER BY location_id",
        (key.collection, key.institution_id, key.window_key, key.pass_name, others),
    )
    return [_state(row) for row in rows]


def take_over(connection: psycopg.Connection, key: PassKey, locations: Iterable[int]) -> None:
    """Let a pass go on for others of these locations, which made it for themselves until now; does so once.

    What they lack is asked for by whoever makes it from now on, and were one of them to make it again, it would begin
    anew. `connection` must be in autocommit mode.
    """
    others = load_elsewhere(connection, key, locations)
    if not others:
        return
    with connection.transaction():
        save_state(connection, load_state(connection, key).behind(others))
        for one in others:
            connection.execute(
                "DELETE FROM nexhealth_sync_state"
                " WHERE (collection, institution_id, location_id, window_key, pass) = (%s, %s, %s, %s, %s)",
                astuple(one.key),
            )


def load_watermarks(
    connection: psycopg.Connection, collections: list[str], institutions: Iterable[int] | None = None
) -> dict[PassKey, datetime]:
    """Watermarks of the passes of `collections` that were ever complete: what planning goes by.

    A thousand locations have 106,000 passes of months alone: as whole states they took 200 MiB. Who plans for a few
    `institutions` (ids; 0 for key-wide collections) reads no others' (None: all).
    """
    only = "" if institutions is None else " AND institution_id = ANY(%s)"
    rows = connection.execute(
        f"SELECT {', '.join(_KEY_COLUMNS.values())}, watermark FROM nexhealth_sync_state"  # noqa: S608 - names of columns
        f" WHERE collection = ANY(%s){only} AND watermark IS NOT NULL",
        (collections,) if institutions is None else (collections, list(institutions)),
    )
    return {
        PassKey(intern(collection), institution, location, intern(window), intern(name)): watermark
        for collection, institution, location, window, name, watermark in rows
    }


def load_fresh(connection: psycopg.Connection, collections: list[str], after: datetime) -> set[PassKey]:
    """Passes of `collections` that were begun after this time, in the database's, and are complete."""
    rows = connection.execute(
        f"SELECT {', '.join(_KEY_COLUMNS.values())} FROM nexhealth_sync_state"  # noqa: S608 - names of columns
        " WHERE collection = ANY(%s) AND fresh_at BETWEEN %s AND clock_timestamp() AND pass_started_at = watermark",
        (collections, after),
    )
    return {PassKey(*row) for row in rows}


def least(moments: Iterable[datetime | None]) -> datetime | None:
    """The earliest of `moments`; None where one is unknown or there is none."""
    known = list(moments)
    return None if not known or None in known else min(one for one in known if one is not None)


def save_state(connection: psycopg.Connection, state: PassState) -> None:
    """Store a pass's state; the caller commits it together with its rows."""
    connection.execute(_UPSERT, (*astuple(state.key), *(getattr(state, name) for name in _FIELDS)))


def database_time(connection: psycopg.Connection) -> datetime:
    """The database's clock: the one that all processes of all hosts share."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment
